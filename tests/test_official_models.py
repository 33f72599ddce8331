"""Whole detectors and segmentors of the official release load into the configs' models, with nothing left over.

Their files hold {'state_dict': ...} as mmcv 1.x saved it: the backbone in the official layout below ``backbone.``,
neck and heads with the keys of mmdet 2 and mmseg 0.x, which are written out here. Those did not change in mmdet 3 and
mmseg 1, so there is no list of differences.
"""

import copy
import importlib

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from official_layout import to_official
from paths import ROOT


def layers(*names):
    return {f'{name}.{kind}' for name in names for kind in ('weight', 'bias')}


def convs(*names):
    """Keys of mmcv's ConvModule without norm."""
    return layers(*(f'{name}.conv' for name in names))


def bn_convs(*names):
    """Keys of mmcv's ConvModule with (Sync)BN."""
    kinds = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var', 'bn.num_batches_tracked')
    return {f'{name}.{kind}' for name in names for kind in kinds}


def numbered(name, count):
    return [f'{name}.{i}' for i in range(count)]


def fpn(laterals, outputs):
    return convs(*numbered('neck.lateral_convs', laterals), *numbered('neck.fpn_convs', outputs))


def mask_head(name):
    return convs(*numbered(f'{name}.convs', 4)) | layers(f'{name}.upsample', f'{name}.conv_logits')


RETINANET = convs(*numbered('bbox_head.cls_convs', 4), *numbered('bbox_head.reg_convs', 4)) | layers(
    'bbox_head.retina_cls', 'bbox_head.retina_reg'
)
RPN = layers('rpn_head.rpn_conv', 'rpn_head.rpn_cls', 'rpn_head.rpn_reg')
MASK_RCNN = (
    RPN
    | layers(*numbered('roi_head.bbox_head.shared_fcs', 2), 'roi_head.bbox_head.fc_cls', 'roi_head.bbox_head.fc_reg')
    | mask_head('roi_head.mask_head')
)
CASCADE = set(RPN)
for stage in range(3):
    head = f'roi_head.bbox_head.{stage}'
    CASCADE |= bn_convs(*numbered(f'{head}.shared_convs', 4))
    CASCADE |= layers(f'{head}.shared_fcs.0', f'{head}.fc_cls', f'{head}.fc_reg')
    CASCADE |= mask_head(f'roi_head.mask_head.{stage}')

SEMANTIC_FPN = layers('decode_head.conv_seg') | bn_convs(
    *(f'decode_head.scale_heads.{i}' for i in ('0.0', '1.0', '2.0', '2.2', '3.0', '3.2', '3.4'))
)
UPERNET = layers('decode_head.conv_seg', 'auxiliary_head.conv_seg') | bn_convs(
    *(f'decode_head.psp_modules.{i}.1' for i in range(4)),
    *numbered('decode_head.lateral_convs', 3),
    *numbered('decode_head.fpn_convs', 3),
    'decode_head.bottleneck',
    'decode_head.fpn_bottleneck',
    'auxiliary_head.convs.0',
)

# Neck and heads of a config of each family.
CONFIGS = {
    'retinanet_dat_t_1x_coco': fpn(3, 5) | RETINANET,
    'retinanet_datpp_t_1x_coco': fpn(3, 5) | RETINANET,
    # The fifth level: a max pooling in DAT's, a trained convolution in DAT++'s.
    'maskrcnn_dat_t_1x_coco': fpn(4, 4) | MASK_RCNN,
    'maskrcnn_datpp_t_1x_coco': fpn(4, 5) | MASK_RCNN,
    'cascade_maskrcnn_dat_t_1x_coco': fpn(4, 4) | CASCADE,
    'cascade_maskrcnn_datpp_t_1x_coco': fpn(4, 4) | CASCADE,
    'semfpn_dat_t_80k_ade20k': fpn(4, 4) | SEMANTIC_FPN,
    'semfpn_datpp_t_40k_ade20k': fpn(4, 4) | SEMANTIC_FPN,
    'upernet_dat_t_160k_ade20k': UPERNET,
    'upernet_datpp_t_160k_ade20k': UPERNET,
}


def build(name, device):
    config = Config.fromfile(ROOT / f'configs/{name}.py')
    importlib.import_module(f'{config.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(config.default_scope)
    with torch.device(device):
        return MODELS.build(copy.deepcopy(config.model))


def official_file(model, heads):
    """A checkpoint of the official layout with the shapes and values of a model."""
    state_dict = model.state_dict()
    backbone = {key[len('backbone.') :]: value for key, value in state_dict.items() if key.startswith('backbone.')}
    official = to_official(backbone)
    if 'norm0.weight' not in backbone:
        # RetinaNet returns stages 2 to 4; the release numbers output norms by stage.
        for key in [key for key in official if key.startswith('cls_norm.')]:
            del official[key]
        for i in (1, 2, 3):
            for kind in ('weight', 'bias'):
                official[f'norms.{i}.norm.{kind}'] = backbone[f'norm{i}.{kind}']
    entries = {f'backbone.{key}': value for key, value in official.items()}
    entries.update({key: state_dict[key] for key in heads})
    return {'meta': {'epoch': 12, 'iter': 7330, 'mmdet_version': '2.25.1'}, 'state_dict': entries}


@pytest.mark.parametrize('name', sorted(CONFIGS))
def test_nothing_is_missing_or_unexpected(name):
    model = build(name, 'meta')
    entries = official_file(model, CONFIGS[name])['state_dict']
    assert any('.attns.' in key for key in entries)
    model.load_state_dict(entries, strict=True)  # raises otherwise


def test_trained_fifth_level_reads_the_last_stage():
    model = build('maskrcnn_datpp_t_1x_coco', 'meta')
    assert model.neck.fpn_convs[4].conv.weight.shape == (256, 512, 3, 3)
    assert model.neck.fpn_convs[4].conv.stride == (2, 2)


@pytest.mark.parametrize('name', ['retinanet_dat_t_1x_coco', 'upernet_datpp_t_160k_ade20k'])
def test_every_value_arrives(name, tmp_path):
    source = build(name, 'cpu')
    for i, value in enumerate(source.state_dict().values()):
        value.fill_(i)  # cheap, and different everywhere
    torch.save(official_file(source, CONFIGS[name]), tmp_path / 'official.pth')
    target = build(name, 'cpu')
    load_checkpoint(target, str(tmp_path / 'official.pth'), map_location='cpu', strict=True)
    for (key, value), expected in zip(target.state_dict().items(), source.state_dict().values()):
        assert torch.equal(value, expected), key
