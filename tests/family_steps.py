"""One training step and one prediction of a config of each family of the zoo, with a nano backbone and a made-up image.

With a compiled mmcv this file records the results for ``tests/test_without_compiled_operators.py``; with ``--check`` it
compares with what is recorded, and says which operators it did that with:

    python tests/family_steps.py [--check] [FAMILY ...]
"""

import logging
import sys
from pathlib import Path

import numpy as np
import torch
from conftest import NANO
from mmengine.registry import init_default_scope

from mmdat.config.load import load_config
from mmdat.models.arch import ARCHS

ROOT = Path(__file__).parents[1]
RECORDED = Path(__file__).parent / 'data' / 'compiled_mmcv' / 'families.pt'
SIZE = (64, 96)
#: Configs of the zoo, by generation.
FAMILIES = [
    'maskrcnn_{}_t_1x_coco',
    'cascade_maskrcnn_{}_t_1x_coco',
    'retinanet_{}_t_1x_coco',
    'dino_{}_t_12e_coco',
    'mask2former_{}_t_50e_coco',
    'mask2former_{}_t_50e_coco_panoptic',
    'mask2former_{}_t_160k_ade20k',
    'upernet_{}_t_160k_ade20k',
    'semfpn_{}_t_*_ade20k',
    '{}_t_300e_in1k',
    'demo/maskrcnn_{}nano_shapes',
]
HEADS = ('decode_head', 'auxiliary_head', 'panoptic_head', 'head')
NAMES = [name.format(generation) for name in FAMILIES for generation in ('dat', 'datpp')]


def detection_sample():
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData, PixelData

    boxes, labels = torch.tensor([[16.0, 8, 64, 40], [40, 20, 90, 60]]), torch.tensor([1, 0])
    masks = np.zeros((2, *SIZE), dtype=np.uint8)
    panoptic = np.full(SIZE, 90)
    for mask, label, (x1, y1, x2, y2) in zip(masks, labels.tolist(), boxes.int().tolist()):
        mask[y1:y2, x1:x2] = 1
        panoptic[y1:y2, x1:x2] = label
    shapes = dict(img_shape=SIZE, ori_shape=SIZE, scale_factor=(1.0, 1.0), batch_input_shape=SIZE)
    sample = DetDataSample(metainfo=shapes)
    sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, *SIZE))
    sample.gt_sem_seg = PixelData(sem_seg=torch.as_tensor(panoptic)[None])
    return sample


def segmentation_sample():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    sample = SegDataSample(metainfo=dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE))
    return sample.set_data(dict(gt_sem_seg=PixelData(data=torch.arange(SIZE[0] * SIZE[1]).view(1, *SIZE) // 512)))


def classification_sample():
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(3)


def prediction_of(sample) -> dict:
    """What is compared of a prediction."""
    if 'pred_instances' in sample:
        found = sample.pred_instances
        result = {name: found[name][:20] for name in ('bboxes', 'scores', 'labels')}
        if 'masks' in found:
            result['mask areas'] = torch.as_tensor(found.masks[:20]).sum((1, 2))
        return result
    for name, values in (('pred_sem_seg', 'data'), ('pred_panoptic_seg', 'sem_seg')):
        if name in sample:
            return {name: getattr(sample, name).get(values).short()}
    return {'scores': sample.pred_score[:20]}


def make_nano(model) -> None:
    """Put the nano backbone of the same generation in, and its channels into what reads its maps."""
    generation = 'dat++' if model.backbone.arch.endswith('++') else 'dat'
    channels = dict(zip(ARCHS[model.backbone.arch]['dims'], NANO[generation]['dims']))
    model.backbone.arch = NANO[generation]
    for part in [model.neck] if 'in_channels' in model.get('neck', {}) else [model.get(head, {}) for head in HEADS]:
        given = part.get('in_channels')
        if given is not None:
            part.in_channels = channels[given] if isinstance(given, int) else [channels[number] for number in given]


def small_model(name: str):
    """The model of a config for images of ``SIZE``, seeded."""
    (path,) = (ROOT / 'configs').glob(f'{name}.py')
    config = load_config(str(path))
    model = config.model
    preprocessor = model.get('data_preprocessor', config.get('data_preprocessor'))
    for augment in preprocessor.get('batch_augments') or ():
        if isinstance(augment, dict) and 'size' in augment:
            augment.size = SIZE
    if preprocessor.get('size'):
        preprocessor.size = SIZE
    model.data_preprocessor = preprocessor
    model.backbone.pop('init_cfg', None)
    if not name.startswith('demo/'):
        make_nano(model)
    for part in (model.get('test_cfg') or {}, (model.get('test_cfg') or {}).get('rcnn') or {}):
        if 'score_thr' in part:
            part.score_thr = 0.0  # so that an untrained model finds something
    init_default_scope(config.get('default_scope', 'mmdet'))
    from mmengine.registry import MODELS

    torch.manual_seed(0)
    built = MODELS.build(model)
    built.init_weights()
    return built


def step(name: str) -> dict:
    """The losses of a training step, the norm of its gradient, and a prediction after it."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = small_model(name).train()
    scope = type(model).__module__.split('.')[0]
    sample = {'mmdet': detection_sample, 'mmseg': segmentation_sample, 'mmpretrain': classification_sample}[scope]
    images = list(torch.randint(256, (2, 3, *SIZE), dtype=torch.uint8))
    batch = dict(inputs=images, data_samples=[sample(), sample()])
    if scope == 'mmpretrain':
        batch['inputs'] = torch.stack(images)
    torch.manual_seed(1)
    losses = model(**model.data_preprocessor(batch, True), mode='loss')
    total, values = model.parse_losses(losses)
    total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        model.eval()
        batch = dict(inputs=batch['inputs'][:1], data_samples=[sample()])
        (predicted,) = model(**model.data_preprocessor(batch), mode='predict')
    values = {key: torch.as_tensor(value).detach().float() for key, value in values.items()}
    prediction = {key: value.cpu() for key, value in prediction_of(predicted).items()}
    return {'losses': values, 'gradient norm': norm, 'prediction': prediction}


def differences(result: dict, expected: dict) -> list:
    """Sentences on what is not the same: losses and norm to 1e-5, boxes to a thousandth of a pixel."""
    found = []
    for key, tolerance in (('losses', 1e-5), ('prediction', 1e-3)):
        if result[key].keys() != expected[key].keys():
            found.append(f'{key}: {sorted(result[key])}, not {sorted(expected[key])}')
            continue
        for name, value in result[key].items():
            other = expected[key][name]
            if value.shape != other.shape:
                found.append(f'{name}: {tuple(value.shape)}, not {tuple(other.shape)}')
            elif not torch.allclose(value.double(), other.double(), rtol=1e-5, atol=tolerance):
                found.append(f'{name}: off by {(value.double() - other.double()).abs().max():.3g}')
    norm, other = result['gradient norm'], expected['gradient norm']
    if not torch.allclose(norm, other, rtol=1e-4):
        found.append(f'gradient norm: {norm:.7g}, not {other:.7g}')
    return found


def main() -> None:
    from mmcv import _ext

    logging.disable(logging.WARNING)  # of the weights' initialization

    check, names = '--check' in sys.argv, [name for name in sys.argv[1:] if name != '--check'] or NAMES
    recorded = torch.load(RECORDED, weights_only=True) if RECORDED.exists() else {}
    print(f'operators: {_ext.__file__}')
    failed = False
    for name in names:
        result = step(name)
        if check:
            found = differences(result, recorded[name])
            failed |= bool(found)
            print(f'{name}: loss {result["losses"]["loss"]:.7f}, {"; ".join(found) or "the same"}', flush=True)
        else:
            recorded[name] = result
            print(f'{name}: loss {result["losses"]["loss"]:.7f}', flush=True)
            torch.save(recorded, RECORDED)
    sys.exit(failed)


if __name__ == '__main__':
    main()
