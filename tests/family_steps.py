"""One training step and one prediction of a small model of each family of the zoo, on made-up images.

Run with a compiled mmcv, this file records for ``tests/test_mmcv_ops_in_models.py`` which operators of mmcv the models
call, and what comes out:

    python tests/family_steps.py
"""

import importlib
from pathlib import Path

import numpy as np
import torch
from conftest import NANO
from mmdet.testing import demo_mm_inputs
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from mmpretrain.structures import DataSample
from mmseg.structures import SegDataSample

from mmdat.config.load import load_config

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / 'data' / 'compiled_mmcv' / 'families.pt'
SIZE = (64, 96)
CHANNELS = list(NANO['dat']['dims'])
#: Few proposals and detections; all anchors are learnt from, where training draws some.
SMALL_RPN = {
    'train_cfg.rpn.sampler.num': 10000,
    'train_cfg.rpn_proposal.nms_pre': 100,
    'train_cfg.rpn_proposal.max_per_img': 10,
    'test_cfg.rpn.nms_pre': 100,
    'test_cfg.rpn.max_per_img': 10,
    'test_cfg.rcnn.score_thr': 0.0,  # so that an untrained model finds something
    'test_cfg.rcnn.max_per_img': 10,
}
#: Mask2Former's batches of COCO are cut to a size.
SMALL_BATCH = {'panoptic_head.in_channels': CHANNELS, 'data_preprocessor.batch_augments.0.size': SIZE}
#: Configs by generation, and what makes their models small, beside a backbone of these channels. Those of the demo are.
FAMILIES = {
    'maskrcnn_{}_t_1x_coco': {'neck.in_channels': CHANNELS, **SMALL_RPN},
    'cascade_maskrcnn_{}_t_1x_coco': {'neck.in_channels': CHANNELS, **SMALL_RPN},
    'retinanet_{}_t_1x_coco': {
        'neck.in_channels': CHANNELS[1:],
        'test_cfg.nms_pre': 100,
        'test_cfg.score_thr': 0.0,
        'test_cfg.max_per_img': 10,
    },
    'dino_{}_t_12e_coco': {'neck.in_channels': CHANNELS[1:], 'num_queries': 20, 'test_cfg.max_per_img': 10},
    'mask2former_{}_t_50e_coco': SMALL_BATCH,
    'mask2former_{}_t_50e_coco_panoptic': SMALL_BATCH,
    'mask2former_{}_t_160k_ade20k': {'decode_head.in_channels': CHANNELS},
    'upernet_{}_t_160k_ade20k': {'decode_head.in_channels': CHANNELS, 'auxiliary_head.in_channels': CHANNELS[2]},
    'semfpn_{}_t_*_ade20k': {'neck.in_channels': CHANNELS},
    '{}_t_300e_in1k': {'head.in_channels': CHANNELS[3]},
    'demo/maskrcnn_{}nano_shapes': SMALL_RPN,
    'demo/upernet_{}nano_shapes': {},
    'demo/{}nano_shapes': {},
}
NAMES = [name.format(generation) for name in FAMILIES for generation in ('dat', 'datpp')]


def small_model(name: str) -> tuple:
    """The model of a config, and the toolbox it belongs to."""
    (path,) = (ROOT / 'configs').glob(f'{name}.py')
    config = load_config(str(path))
    generation = 'datpp' if 'datpp' in name else 'dat'
    # mmpretrain's configs have the preprocessor beside the model.
    config.model.setdefault('data_preprocessor', config.get('data_preprocessor'))
    if not name.startswith('demo/'):
        config.model.backbone.arch = NANO[generation.replace('pp', '++')]
    options = dict(next(small for family, small in FAMILIES.items() if family.format(generation) == name))
    if 'size' in config.model.data_preprocessor:
        options['data_preprocessor.size'] = SIZE
    options['backbone.drop_path_rate'] = 0.0
    config.merge_from_dict({f'model.{key}': value for key, value in options.items()})
    importlib.import_module(f'{config.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(config.default_scope)
    MMLogger.get_current_instance().setLevel('WARNING')  # MMEngine logs the initialization of every parameter
    model = MODELS.build(config.model)
    model.init_weights()
    draw_weights(model)
    return model, config.default_scope


def draw_weights(model: torch.nn.Module) -> None:
    """Draw by NumPy what initialization draws: PyTorch's random numbers are not those of its other releases."""
    rng = np.random.RandomState(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if (parameter != parameter.flatten()[0]).any():
                scale = parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
                parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape) * scale))


def batch_for(toolbox: str) -> dict:
    """Two images with their truth."""
    np.random.seed(0)
    batch = demo_mm_inputs(2, (3, *SIZE), num_items=[3, 2], num_classes=4, with_mask=True, with_semantic=True)
    for sample in batch['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0), batch_input_shape=SIZE, pad_shape=SIZE))
    if toolbox == 'mmseg':
        truth = [PixelData(data=sample.gt_sem_seg.sem_seg.long()) for sample in batch['data_samples']]
        shapes = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE)
        batch['data_samples'] = [SegDataSample(metainfo=shapes, gt_sem_seg=labels) for labels in truth]
    elif toolbox == 'mmpretrain':
        batch = dict(
            inputs=torch.stack(batch['inputs']), data_samples=[DataSample().set_gt_label(label) for label in (3, 1)]
        )
    return batch


def step(name: str) -> dict:
    """Losses and norm of the gradient of a training step, and the instances that are predicted, if any."""
    model, toolbox = small_model(name)
    model.train()
    total, losses = model.parse_losses(model(**model.data_preprocessor(batch_for(toolbox), True), mode='loss'))
    total.backward()
    gradients = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    model.eval()
    with torch.no_grad():
        predicted = model(**model.data_preprocessor(batch_for(toolbox)), mode='predict')[0]
    result = {key: value.detach() for key, value in losses.items()}
    result['gradient norm'] = torch.stack(gradients).norm()
    if toolbox == 'mmdet' and 'pred_instances' in predicted:
        instances = predicted.pred_instances
        result.update({key: instances[key] for key in ('bboxes', 'scores', 'labels')})
        if 'masks' in instances:
            result['mask areas'] = torch.as_tensor(instances.masks).sum((1, 2))
    return {key: value.clone() for key, value in result.items()}  # not a view, which is saved whole


class Calls:
    """The operators of an extension; remembers which were called."""

    def __init__(self, extension):
        self.extension, self.names = extension, set()

    def __getattr__(self, name):
        operator = getattr(self.extension, name)

        def call(*args, **kwargs):
            self.names.add(name)
            return operator(*args, **kwargs)

        return call


def modules_with_operators() -> list:
    """The modules of ``mmcv.ops`` that keep mmcv's extension under the name ``ext_module``."""
    import mmcv.ops

    names = [path.stem for path in Path(mmcv.ops.__file__).parent.glob('*.py')]
    found = [importlib.import_module(f'mmcv.ops.{name}') for name in names]
    return [module for module in found if hasattr(module, 'ext_module')]


def main() -> None:
    from mmcv import _ext

    recorded = {}
    for name in NAMES:
        calls = Calls(_ext)
        for module in modules_with_operators():
            module.ext_module = calls
        result = step(name)
        if calls.names:
            recorded[name] = result, sorted(calls.names)
        print(f'{name}: loss {result["loss"]:.7f}, {sorted(calls.names)}', flush=True)
    torch.save(recorded, RECORDED)
    print(f'recorded with {_ext.__file__} in {RECORDED}')


if __name__ == '__main__':
    main()
