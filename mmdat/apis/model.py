"""The one way from a config to a model, or to its backbone alone."""

from typing import Optional, Union

import torch.nn as nn
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner.checkpoint import CheckpointLoader

from mmdat.checkpoints.without_code import reading_without_code
from mmdat.config.walk import dicts
from mmdat.errors import CheckpointError, RunError
from mmdat.models import DAT
from mmdat.models.checkpoint import backbone_entries, unwrap

from .toolbox import toolbox


def build_model(cfg: Config) -> nn.Module:
    """The whole model of a config, with weights as they are before training.

    Raises:
        RunError: If the config is of no known toolbox.
    """
    with toolbox(cfg.get('default_scope')):
        model = MODELS.build(cfg.model)
    return model


def load_backbone(cfg: Config, checkpoint: Optional[str] = None, trust_files: bool = False) -> tuple[DAT, bool]:
    """The backbone of a config, in eval mode, and whether its weights are trained.

    Weights are those of the checkpoint, or without one those that the config's ``init_cfg`` names.

    Args:
        cfg: The whole config.
        checkpoint: File or address.
        trust_files: Let the checkpoint run code that it may contain.

    Raises:
        RunError: If the config is of no known toolbox or has no backbone ``mmdat.DAT``.
        CheckpointError: If the checkpoint is missing or of another model.
    """
    with toolbox(cfg.get('default_scope')):
        backbone_cfg = next((node for node in dicts(cfg.get('model')) if node.get('type') in ('mmdat.DAT', DAT)), None)
        if backbone_cfg is None:
            raise RunError(f'the config {cfg.filename} has no backbone of type mmdat.DAT: choose another config')
        backbone = MODELS.build(backbone_cfg).eval()
    checkpoint = checkpoint or _pretrained(backbone_cfg.get('init_cfg'))
    if checkpoint:
        with reading_without_code(trust_files):
            _load(backbone, checkpoint)
    return backbone, bool(checkpoint)


def _pretrained(init_cfg: Union[dict, list[dict], None]) -> Optional[str]:
    """The checkpoint that ``init_cfg`` of a backbone names, if any."""
    return next((one.get('checkpoint') for one in dicts(init_cfg) if one.get('type') == 'Pretrained'), None)


def _load(backbone: DAT, path: str) -> None:
    checkpoint = CheckpointLoader.load_checkpoint(path, map_location='cpu')  # init_cfg may have an address
    try:
        missing = backbone.load_state_dict(backbone_entries(unwrap(checkpoint)), strict=False).missing_keys
    except CheckpointError as error:
        raise CheckpointError(f'{path}: {error}') from error
    # Only the output norms may be missing: those of classifiers are not those of detectors.
    missing = [key for key in missing if not key.startswith('norm')]
    if missing:
        raise CheckpointError(
            f'{path} lacks weights of the backbone, such as {missing[0]}: choose a checkpoint of this config'
        )
