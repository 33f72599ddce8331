"""What a config and its weights are for: training, evaluation, prediction."""

from .compare import compare
from .deformation import draw_deformation
from .infer import infer
from .model import build_model, load_backbone
from .network_input import network_input
from .predictor import Predictor
from .train import evaluate, train

__all__ = [
    'Predictor',
    'build_model',
    'compare',
    'draw_deformation',
    'evaluate',
    'infer',
    'load_backbone',
    'network_input',
    'train',
]
