"""The families of mmdet and mmseg on DAT: their own configs as installed, with the smallest change that fits.

One loss with its gradients and one prediction of the whole model, untrained. docs/other_projects.md has the changes.
Every folder of configs is either run here or left out for a reason.
"""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from conftest import NANO
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmdat import DAT
from mmdat.apis.model import build_model
from mmdat.apis.toolbox import toolbox
from mmdat.config.walk import dicts

CONFIGS = {name: Path(find_spec(name).origin).parent / '.mim/configs' for name in ('mmdet', 'mmseg')}

# What changes in the model: ``out_indices`` of the backbone and, by its path, each setting that names channels of
# maps. An integer stands for the channels of that stage. A third entry has other settings, by their paths.
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
    'boxinst/boxinst_r50_fpn_ms-90k_coco': NECK,
    'cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco': NECK,
    'cascade_rpn/cascade-rpn_faster-rcnn_r50-caffe_fpn_1x_coco': NECK,
    'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco': NECK,
    'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance': NECK,
    'conditional_detr/conditional-detr_r50_8xb2-50e_coco': NECK_OF_ONE,
    'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman': NECK,
    'dab_detr/dab-detr_r50_8xb2-50e_coco': NECK_OF_ONE,
    'ddod/ddod_r50_fpn_1x_coco': NECK,
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
    'fpg/faster-rcnn_r50_fpg-chn128_crop640-50e_coco': NECK,
    'free_anchor/freeanchor_r50_fpn_1x_coco': NECK,
    'fsaf/fsaf_r50_fpn_1x_coco': NECK,
    'gfl/gfl_r50_fpn_1x_coco': NECK,
    'ghm/retinanet_r50_fpn_ghm-1x_coco': NECK,
    'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco': NECK,
    'groie/mask-rcnn_r50_fpn_groie_1x_coco': NECK,
    'guided_anchoring/ga-faster-rcnn_r50_fpn_1x_coco': NECK,
    'guided_anchoring/ga-retinanet_r50_fpn_1x_coco': NECK,
    'htc/htc_r50_fpn_1x_coco': NECK,
    # Their trained teachers would be downloaded, and LD's config is named as in a checkout of mmdet.
    'lad/lad_r50-paa-r101_fpn_2xb8_coco_1x': (*NECK, {'teacher_ckpt': None, 'teacher_backbone.init_cfg': None}),
    'ld/ld_r50-gflv1-r101_fpn_1x_coco': (
        *NECK,
        {'teacher_ckpt': None, 'teacher_config': str(CONFIGS['mmdet'] / 'gfl/gfl_r101_fpn_ms-2x_coco.py')},
    ),
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
    # Untrained, it finds boxes outside of the image, where mmdet cannot paste masks on CPUs.
    'queryinst/queryinst_r50_fpn_1x_coco': (*NECK, {'roi_head.bbox_head.5.bbox_coder.clip_border': True}),
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
    'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco': NECK,
    'tood/tood_r50_fpn_1x_coco': NECK,
    'vfnet/vfnet_r50_fpn_1x_coco': NECK,
    'yolact/yolact_r50_1xb8-55e_coco': NECK,
    'yolo/yolov3_d53_8xb8-320-273e_coco': DARKNET,
    'yolof/yolof_r50-c5_8xb8-1x_coco': (LAST, {'neck.in_channels': 3}),
    'yolox/yolox_tiny_8xb8-300e_coco': NECK_OF_THREE,
}

HEAD = (ALL, {'decode_head.in_channels': 3, 'auxiliary_head.in_channels': 2})
SEGMENTORS = {
    'bisenetv1/bisenetv1_r18-d32_4xb4-160k_coco-stuff164k-512x512': (
        ALL,
        {
            'backbone.context_channels': [1, 2, 3],
            'backbone.spatial_channels': [1, 1, 1, 1],
            'auxiliary_head.0.in_channels': 1,
            'auxiliary_head.1.in_channels': 1,
        },
    ),
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
    'fastfcn/fastfcn_r50-d32_jpu_psp_4xb4-80k_ade20k-512x512': (
        LAST_THREE,
        {'neck.in_channels': (1, 2, 3), 'auxiliary_head.in_channels': 2},
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
    'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024': (
        LAST,
        {'decode_head.0.in_channels': 3, 'decode_head.1.in_channels': 3},
        {'decode_head.0.in_index': 0, 'decode_head.1.in_index': 0},  # both heads want maps of one size
    ),
    'point_rend/pointrend_r50_4xb4-160k_ade20k-512x512': NECK,
    'psanet/psanet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'pspnet/pspnet_r50-d8_4xb4-80k_ade20k-512x512': HEAD,
    'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512': (ALL, {'decode_head.in_channels': [0, 1, 2, 3]}),
    'segmenter/segmenter_vit-s_mask_8xb1-160k_ade20k-512x512': (LAST, {'decode_head.in_channels': 3}),
    'segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512': (ALL, {'decode_head.in_channels': [1, 2, 3]}),
    'sem_fpn/fpn_r50_4xb4-160k_ade20k-512x512': NECK,
    'setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512': (
        ALL,
        {'decode_head.in_channels': 3, **{f'auxiliary_head.{stage}.in_channels': stage for stage in range(3)}},
    ),
    'upernet/upernet_r50_4xb4-160k_ade20k-512x512': (
        ALL,
        {'decode_head.in_channels': [0, 1, 2, 3], 'auxiliary_head.in_channels': 2},
    ),
}


# Folders of configs without a family to run, by reason.
OTHER_BACKBONE = 'another backbone; its heads are those of the families that are run'
OTHER_DATA = 'data, schedules or augmentation; its models are those of the families that are run'
OWN_NETWORK = 'a network of its own, without a backbone of four maps'
TRACKER = 'follows objects through videos'
LANGUAGE = 'needs a pretrained language or diffusion model'
LEFT_OUT = dict(
    mmdet={
        OTHER_BACKBONE: 'convnext dcn dcnv2 efficientnet empirical_attention gcnet gn gn+ws hrnet pvt regnet res2net '
        'resnest resnet_strikes_back scratch selfsup_pretrain swin timm_example',
        OTHER_DATA: '_base_ albu_example cityscapes common deepfashion dsdl instaboost legacy_1.x lvis objects365 '
        'openimages pascal_voc simple_copy_paste strong_baselines v3det wider_face',
        OWN_NETWORK: 'centripetalnet cornernet ssd tridentnet',
        TRACKER: 'bytetrack deepsort mask2former_vis masktrack_rcnn ocsort qdtrack reid sort strongsort',
        LANGUAGE: 'glip grounding_dino mm_grounding_dino',
        'its neck hands maps back to the ResNet': 'detectors',
        'its proposals come from files': 'fast_rcnn',
        'trains a detector that is run here on images without truth': 'soft_teacher',
        'models of Detectron2': 'misc',
        'finds lanes, which the made-up images lack': 'clrnet',
        'an operator of mmcv that has no form for CPUs': 'carafe',
    },
    mmseg={
        OTHER_BACKBONE: 'beit convnext hrnet mae mobilenet_v2 mobilenet_v3 poolformer resnest swin twins vit',
        OTHER_DATA: '_base_ dsdl',
        OWN_NETWORK: 'bisenetv2 cgnet ddrnet erfnet fastscnn pidnet stdc unet',
        LANGUAGE: 'san vpd',
        'takes the tokens of a plain ViT': 'dpt',
        'takes a ResNet apart': 'icnet',
    },
)


@pytest.mark.parametrize('toolbox, families', [('mmdet', DETECTORS), ('mmseg', SEGMENTORS)])
def test_every_folder_of_configs_is_run_or_left_out_for_a_reason(toolbox, families):
    folders = {path.name for path in CONFIGS[toolbox].iterdir() if path.is_dir()}
    known = {name.split('/')[0] for name in families}
    known.update(*(names.split() for names in LEFT_OUT[toolbox].values()))
    assert folders and folders <= known, folders - known


def changed(toolbox: str, name: str, change: tuple, arch: dict) -> Config:
    """A config of a toolbox with DAT as its backbone."""
    cfg = Config.fromfile(CONFIGS[toolbox] / f'{name}.py')
    out_indices, settings, *others = change
    backbone = dict(type='mmdat.DAT', arch=arch, out_indices=out_indices)
    if 'backbone_cfg' in cfg.model.backbone:  # a network around another
        cfg.model.backbone.backbone_cfg = backbone
    else:
        cfg.model.backbone = backbone
    cfg.model.data_preprocessor.pop('batch_augments', None)  # they change the size of the images
    cfg.model.pop('pretrained', None)  # mmseg would hand it on to the backbone
    for path, stages in settings.items():
        value = (
            arch['dims'][stages] if isinstance(stages, int) else type(stages)(arch['dims'][stage] for stage in stages)
        )
        cfg.merge_from_dict({f'model.{path}': value})
    for path, value in dict(*others).items():
        cfg.merge_from_dict({f'model.{path}': value})
    for node in dicts(cfg.model):  # fewer proposals and queries, for time
        node.update({name: 32 for name in ('max_per_img', 'nms_pre', 'num_proposals', 'num_queries') if name in node})
        if node.get('type') == 'RandomSampler':
            node.num = 16
    return cfg


def lose_and_predict(cfg: Config, batch: dict) -> list:
    """The sample of the first image, with predictions of an untrained model, after a loss of all images.

    The gradients of the loss reach all of the backbone.
    """
    model = revert_sync_batchnorm(build_model(cfg))
    model.init_weights()  # as the Runner does: until then, some parameters are whatever their memory held
    hub = MessageHub.get_current_instance()  # some losses ask it how far the training is
    hub.update_info('iter', 0)
    hub.update_info('epoch', 0)
    with toolbox(cfg.default_scope):
        model.train()
        loss, _ = model.parse_losses(model(**model.data_preprocessor(batch, True), mode='loss'))
        loss.backward()
        assert loss.isfinite()
        (backbone,) = [module for module in model.modules() if isinstance(module, DAT)]
        gradients = {name: parameter.grad for name, parameter in backbone.named_parameters()}
        # Of a map that no neck or head reads, such as the first where FPN has start_level=1, the norm is not used.
        assert {name.split('.')[0] for name, grad in gradients.items() if grad is None} <= {'norm0', 'norm1'}
        assert all(grad.isfinite().all() for grad in gradients.values() if grad is not None)
        model.eval()
        first = {name: part[:1] for name, part in batch.items()}  # guided anchoring predicts for one image at a time
        with torch.no_grad():
            return model(**model.data_preprocessor(first, False), mode='predict')


@pytest.mark.slow
@pytest.mark.parametrize('generation', sorted(NANO))
@pytest.mark.parametrize('name', DETECTORS, ids=lambda name: name.split('/')[1])
def test_detectors(name, generation):
    if name.startswith(('paa', 'lad')):
        pytest.importorskip('sklearn')
    cfg = changed('mmdet', name, DETECTORS[name], NANO[generation])
    truth = dict(with_mask='rtmdet_tiny' not in name, with_semantic=True)  # RTMDet of boxes takes no bitmaps
    batch = demo_mm_inputs(2, [(3, 128, 128)] * 2, num_items=[2, 3], num_classes=2, **truth)
    for sample in lose_and_predict(cfg, batch):
        found = sample.get('pred_instances', sample.get('pred_panoptic_seg'))
        assert found is not None


@pytest.mark.slow
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
