"""What a config and its weights are for: training, evaluation, prediction."""

from .network_input import load_backbone, network_input
from .predictor import Predictor
from .train import evaluate, train

__all__ = ['Predictor', 'evaluate', 'load_backbone', 'network_input', 'train']
