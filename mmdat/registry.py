"""mmdat's registries: children of MMEngine's, so ``type='mmdat.DAT'`` resolves in any MM toolbox.

MMEngine imports this module when a config names a type that begins with ``mmdat.``; the models themselves do not need
MMEngine.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import LOOPS as MMENGINE_LOOPS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import PARAM_SCHEDULERS as MMENGINE_PARAM_SCHEDULERS
from mmengine.registry import Registry

from .checkpoints import schemes  # noqa: F401, registers mmdat://NAME and .safetensors files with MMEngine
from .models import DAT, DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention

MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmdat')
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmdat', locations=['mmdat.hooks'])
DATASETS = Registry(
    'dataset',
    parent=MMENGINE_DATASETS,
    scope='mmdat',
    locations=['mmdat.datasets.label_maps', 'mmdat.datasets.class_folders'],
)
LOOPS = Registry('loop', parent=MMENGINE_LOOPS, scope='mmdat', locations=['mmdat.hooks'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope='mmdat',
    locations=['mmdat.hooks.layer_decay'],
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler', parent=MMENGINE_PARAM_SCHEDULERS, scope='mmdat', locations=['mmdat.schedulers']
)

for model in (DAT, DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention, WindowAttention):
    MODELS.register_module(module=model)
