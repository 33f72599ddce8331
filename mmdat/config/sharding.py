"""Sharded training (FSDP) by MMEngine's strategy: configs/sharded/fsdp.py."""

import torch.nn as nn
from mmengine.config import Config

from mmdat.errors import RunError
from mmdat.models.dat import Block


def is_block(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy``: a unit for each block of the backbone, one for all the rest.

    Units by size would cut up detection heads, whose losses are not computed in ``forward``.
    """
    return recurse or isinstance(module, Block)


def check_sharding(cfg: Config) -> None:
    """Check that a run with FSDP, if asked for, trains as one without.

    Raises:
        RunError: If something of the config would silently mean something else.
    """
    if cfg.get('strategy', {}).get('type') != 'FSDPStrategy':
        return
    if cfg.launcher == 'none':
        raise RunError('FSDPStrategy shards the model over several processes: start them with tools/dist_train.sh')
    clip_grad = cfg.optim_wrapper.get('clip_grad')
    if clip_grad and clip_grad.get('type', 'norm') == 'norm':
        raise RunError(
            'FSDPStrategy does not go with optim_wrapper.clip_grad, as each process would clip by the norm of its own '
            'shard: train without FSDP, or add --cfg-options optim_wrapper.clip_grad=None'
        )
    constructor = str(cfg.optim_wrapper.get('constructor', ''))
    if 'Decay' in constructor:
        raise RunError(
            f'FSDPStrategy does not go with {constructor}, which tells depths by names that FSDP changes: train '
            f'without FSDP, or without layer-wise decay of the learning rate'
        )
