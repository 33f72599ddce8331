"""The families of mmdet and mmseg on DAT: their own configs as installed, with the smallest change that fits.

One loss with its gradients and one prediction of the whole model, untrained. docs/other_projects.md has the changes.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import NANO
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmdat.apis.model import build_model
from mmdat.apis.toolbox import toolbox
from mmdat.config.walk import dicts

pytestmark = pytest.mark.slow

# What changes in the model: ``out_indices`` of the backbone and, by its path, each setting that names channels of
# maps. An integer stands for the channels of that stage.
ALL, LAST_THREE, LAST = (0, 1, 2, 3), (1, 2, 3), (3,)
NECK = (ALL, {'neck.in_channels': [0, 1, 2, 3]})
FIRST_NECK = (ALL, {'neck.0.in_channels': [0, 1, 2, 3]})
NECK_OF_THREE = (LAST_THREE, {'neck.in_channels': [1, 2, 3]})
NECK_OF_ONE = (LAST, {'neck.in_channels': [3]})
DARKNET = (LAST_THREE, {'neck.in_channels': [3, 2, 1]})
PANOPTIC = (ALL, {'panoptic_head.in_channels': [0, 1, 2, 3]})

DETECTORS = {
    'atss/atss_r50_fpn_1x_coco': NECK,
    'autoassign/autoassign_r50-caffe_fpn_1x_coco': NECK,
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': NECK,
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco': NECK,
    'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco': NECK,
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': NECK,
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco': NECK_OF_ONE,
    'dab_detr/dab-detr_r50_8xb2-50e_coco': NECK_OF_ONE,
    'ddq/ddq-detr-4scale_r50_8xb2-12e_coco': NECK_OF_THREE,
    'deformable_detr/deformable-detr_r50_16xb2-50e_coco': NECK_OF_THREE,
    'detr/detr_r50_8xb2-150e_coco': NECK_OF_ONE,
    'dino/dino-4scale_r50_8xb2-12e_coco': NECK_OF_THREE,
    'double_heads/dh-faster-rcnn_r50_fpn_1x_coco': NECK,
    'dyhead/atss_r50_fpn_dyhead_1x_coco': FIRST_NECK,
    'dynamic_rcnn/dynamic-rcnn_r50_fpn_1x_coco': NECK,
    'faster_rcnn/faster-rcnn_r50_fpn_1x_coco': NECK,
    'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco': NECK,
    'foveabox/fovea_r50_fpn_4xb4-1x_coco': NECK,
    'free_anchor/freeanchor_r50_fpn_1x_coco': NECK,
    'fsaf/fsaf_r50_fpn_1x_coco': NECK,
    'gfl/gfl_r50_fpn_1x_coco': NECK,
    'ghm/retinanet_r50_fpn_ghm-1x_coco': NECK,
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco': NECK,
    'groie/mask-rcnn_r50_fpn_groie_1x_coco': NECK,
    'htc/htc_r50_fpn_1x_coco': NECK,
    'libra_rcnn/libra-faster-rcnn_r50_fpn_1x_coco': FIRST_NECK,
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco': PANOPTIC,
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco': NECK,
    'maskformer/maskformer_r50_ms-16xb1-75e_coco': PANOPTIC,
    'ms_rcnn/ms-rcnn_r50_fpn_1x_coco': NECK,
    'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco': NECK,
    'nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco': NECK,
    'paa/paa_r50_fpn_1x_coco': NECK,
    'pafpn/faster-rcnn_r50_pafpn_1x_coco': NECK,
    'panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco': NECK,
    'pisa/faster-rcnn_r50_fpn_pisa_1x_coco': NECK,
    'point_rend/point-rend_r50-caffe_fpn_ms-1x_coco': NECK,
    'reppoints/reppoints-moment_r50_fpn_1x_coco': NECK,
    'retinanet/retinanet_r50_fpn_1x_coco': NECK,
    'rpn/rpn_r50_fpn_1x_coco': NECK,
    'rtmdet/rtmdet_tiny_8xb32-300e_coco': NECK_OF_THREE,
    'rtmdet/rtmdet-ins_tiny_8xb32-300e_coco': NECK_OF_THREE,
    'sabl/sabl-faster-rcnn_r50_fpn_1x_coco': NECK,
    'scnet/scnet_r50_fpn_1x_coco': NECK,
    'seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1': NECK,
    'solo/solo_r50_fpn_1x_coco': NECK,
    'solov2/solov2_r50_fpn_1x_coco': NECK,
    'vfnet/vfnet_r50_fpn_1x_coco': NECK,
    'yolact/yolact_r50_1xb8-55e_coco': NECK,
    'yolo/yolov3_d53_8xb8-320-273e_coco': DARKNET,
    'yolof/yolof_r50-c5_8xb8-1x_coco': (LAST, {'neck.in_channels': 3}),
    'yolox/yolox_tiny_8xb8-300e_coco': NECK_OF_THREE,
}

HEAD = (ALL, {'decode_head.in_channels': 3, 'auxiliary_head.in_channels': 2})
SEGMENTORS = {
    'ann/ann_r50-d8_4xb4-80k_ade20k-512x512': (
        ALL,
        {'decode_head.in_channels': [2, 3], 'auxiliary_head.in_channels': 2},
    ),
    'apcnet/apcnet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'ccnet/ccnet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'danet/danet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'deeplabv3/deeplabv3_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512': (
        ALL,
        {**HEAD[1], 'decode_head.c1_in_channels': 0},
    ),
    'dmnet/dmnet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'dnlnet/dnl_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'emanet/emanet_r50-d8_4xb2-80k_cityscapes-769x769': HEAD,
    'encnet/encnet_r50-d8_4xb4-80k_ade20k-512x512': (
        ALL,
        {'decode_head.in_channels': [1, 2, 3], 'auxiliary_head.in_channels': 2},
    ),
    'fcn/fcn_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'gcnet/gcnet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'isanet/isanet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'knet/knet-s3_r50-d8_upernet_8xb2-adamw-80k_ade20k-512x512': (
        ALL,
        {'decode_head.kernel_generate_head.in_channels': [0, 1, 2, 3], 'auxiliary_head.in_channels': 2},
    ),
    'mask2former/mask2former_r50_8xb2-160k_ade20k-512x512': (ALL, {'decode_head.in_channels': [0, 1, 2, 3]}),
    'maskformer/maskformer_r50-d32_8xb2-160k_ade20k-512x512': (ALL, {'decode_head.in_channels': [0, 1, 2, 3]}),
    'nonlocal_net/nonlocal_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512': NECK,
    'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512': (ALL, {'decode_head.in_channels': [0, 1, 2, 3]}),
    'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512': NECK,
    'upernet/upernet_r50_4xb4-160k_ade20k-512x512': (
        ALL,
        {'decode_head.in_channels': [0, 1, 2, 3], 'auxiliary_head.in_channels': 2},
    ),
}


def changed(toolbox: str, name: str, change: tuple, arch: dict) -> Config:
    """A config of a toolbox with DAT as its backbone."""
    cfg = Config.fromfile(Path(find_spec(toolbox).origin).parent / f'.mim/configs/{name}.py')
    out_indices, settings = change
    channels = arch['dims']
    cfg.model.backbone = dict(type='mmdat.DAT', arch=arch, out_indices=out_indices)
    cfg.model.data_preprocessor.pop('batch_augments', None)  # some ask the Runner for the iteration
    cfg.model.pop('pretrained', None)  # mmseg would hand it on to the backbone
    for path, stages in settings.items():
        value = [channels[stage] for stage in stages] if isinstance(stages, list) else channels[stages]
        cfg.merge_from_dict({f'model.{path}': value})
    for node in dicts(cfg.model):  # fewer proposals and queries, for time
        node.update({name: 32 for name in ('max_per_img', 'nms_pre', 'num_queries') if name in node})
        if node.get('type') == 'RandomSampler':
            node.num = 16
    return cfg


def lose_and_predict(cfg: Config, batch: dict) -> list:
    """Samples with predictions of an untrained model, after a loss whose gradients reach all of its backbone."""
    model = revert_sync_batchnorm(build_model(cfg))
    with toolbox(cfg.default_scope):
        model.train()
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
        loss.backward()
        assert loss.isfinite()
        gradients = {name: parameter.grad for name, parameter in model.backbone.named_parameters()}
        # Of a map that no neck or head reads, such as the first where FPN has start_level=1, the norm is not used.
        assert {name.split('.')[0] for name, grad in gradients.items() if grad is None} <= {'norm0', 'norm1'}
        assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None)
        model.eval()
        with torch.no_grad():
            return model(**model.data_preprocessor(batch, False), mode='predict')


@pytest.mark.parametrize('generation', sorted(NANO))
@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: name.split('/')[1])
def test_detectors(name, generation):
    if name.startswith('paa'):
        pytest.importorskip('sklearn')
    cfg = changed('mmdet', name, DETECTORS[name], NANO[generation])
    truth = dict(with_mask='rtmdet_tiny' not in name, with_semantic=True)  # RTMDet of boxes takes no bitmaps
    batch = demo_mm_inputs(2, [(3, 128, 128)] * 2, num_items=[2, 3], num_classes=2, **truth)
    for sample in lose_and_predict(cfg, batch):
        found = sample.get('pred_instances', sample.get('pred_panoptic_seg'))
        assert found is not None


@pytest.mark.parametrize('generation', sorted(NANO))
@pytest.mark.parametrize('name', SEGMENTORS, ids=lambda name: name.split('/')[1])
def test_segmentors(name, generation):
    cfg = changed('mmseg', name, SEGMENTORS[name], NANO[generation])
    cfg.model.data_preprocessor.update(size=(64, 96))
    cfg.model.test_cfg.mode = 'whole'
    meta = dict(img_shape=(64, 96), ori_shape=(64, 96), pad_shape=(64, 96))
    samples = [SegDataSample(metainfo=meta) for _ in range(2)]
    for sample in samples:
        sample.gt_sem_seg = PixelData(data=torch.randint(5, (1, 64, 96)))
    batch = dict(inputs=[torch.randint(256, (3, 64, 96), dtype=torch.uint8) for _ in samples], data_samples=samples)
    for sample in lose_and_predict(cfg, batch):
        assert sample.pred_sem_seg.data.shape == (1, 64, 96)
