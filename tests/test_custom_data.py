"""configs/own_data: data of one's own, with other classes and sizes than any config knows, by one command."""

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import NANO
from in_process import call_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmdat.apis.predictor import Predictor
from mmdat.config.checks import check_run
from mmdat.config.load import load_config
from mmdat.errors import RunError

ROOT = Path(__file__).parents[1]
OWN = ROOT / 'configs/own_data'
CLASSES = ('nut', 'bolt', 'washer')
CATEGORY_IDS = (7, 3, 12)  # neither sorted nor without gaps
SIZES = ((96, 160), (150, 84), (71, 133), (141, 103))  # height, width


def draw(rng, size, label):
    """An image with one object, and its mask."""
    height, width = size
    image = rng.integers(90, 130, (height, width, 3), dtype=np.uint8)
    mask = np.zeros(size, np.uint8)
    center, axes = (width // 2, height // 2), (width // (3 + label), height // 4)
    cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
    image[mask > 0] = np.eye(3)[label] * 200
    return image, mask


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """One directory with the layouts of all three helper configs."""
    root = tmp_path_factory.mktemp('own') / 'my data'
    rng = np.random.default_rng(0)
    for split, count in (('train', 4), ('val', 2)):
        coco = dict(
            images=[],
            annotations=[],
            categories=[dict(id=number, name=name) for number, name in zip(CATEGORY_IDS, CLASSES)],
        )
        for number in range(count):
            label = number % 3
            image, mask = draw(rng, SIZES[number], label)
            paths = [
                root / split / f'{number}.png',
                root / 'images' / split / f'{number}.png',
                root / 'labels' / split / f'{number}.png',
                root / 'folders' / split / CLASSES[label] / f'{number}.png',
            ]
            for path in paths:
                path.parent.mkdir(parents=True, exist_ok=True)
                labels = np.where(mask > 0, label + 1, 0).astype(np.uint8)
                labels[0] = 255
                assert cv2.imwrite(str(path), labels if 'labels' in path.parts else image)
            contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            height, width = mask.shape
            coco['images'].append(dict(id=number + 50, file_name=f'{number}.png', height=height, width=width))
            coco['annotations'].append(
                dict(
                    id=number + 1,
                    image_id=number + 50,
                    category_id=CATEGORY_IDS[label],
                    bbox=list(cv2.boundingRect(mask)),
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=[contours[0].reshape(-1).tolist()],
                )
            )
        for name in CLASSES:
            (root / 'folders' / split / name).mkdir(exist_ok=True)
        (root / 'annotations').mkdir(exist_ok=True)
        (root / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
    (root / 'classes.txt').write_text('other\n' + '\n'.join(CLASSES) + '\n')
    return root


@pytest.fixture
def workplace(source, tmp_path, monkeypatch):
    """The current directory for a test, with a copy of the data in my_data."""
    shutil.copytree(source, tmp_path / 'my data')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(config, helper, root='my data', work_dir='work', **options):
    return load_config(
        str(config),
        override=str(OWN / f'{helper}.py'),
        options=options or None,
        data=root,
        work_dir=str(work_dir),
    )


# A full-size config with a nano backbone, as a user's own would be; and what makes two iterations of it short.
QUICK = ['train_dataloader.batch_size=2', 'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=1'] + [
    f'{part}_dataloader.{option}'
    for part in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False')
]
CHANNELS = list(NANO['dat']['dims'])
# In place of the many scales of the recipe.
PIPELINES = {
    'coco_folder': """
train_dataloader = dict(dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(160, 120), keep_ratio=True),
    dict(type='PackDetInputs'),
]))
"""
}
TASKS = {
    'coco_folder': (
        'maskrcnn_dat_t_1x_coco',
        dict(
            backbone=dict(arch=dict(NANO['dat'], _delete_=True)),
            neck=dict(in_channels=CHANNELS),
            roi_head=dict(bbox_head=dict(fc_out_channels=32)),
        ),
        [
            'train_cfg.max_epochs=1',
            'val_dataloader.dataset.pipeline.1.scale=(160,120)',
            'model.test_cfg.rcnn.score_thr=0.0',
            'model.train_cfg.rpn_proposal.max_per_img=50',
            'model.test_cfg.rpn.max_per_img=20',
            'model.test_cfg.rcnn.max_per_img=5',
        ],
        'coco/segm_mAP',
        'epoch_1.pth',
        CLASSES,
    ),
    'image_label_folder': (
        'upernet_datpp_t_160k_ade20k',
        dict(
            data_preprocessor=dict(size=(64, 64)),
            backbone=dict(arch=dict(NANO['dat++'], _delete_=True)),
            decode_head=dict(in_channels=CHANNELS, channels=16),
            auxiliary_head=dict(in_channels=CHANNELS[2], channels=16),
        ),
        [
            'train_cfg.max_iters=2',
            'train_cfg.val_interval=2',
            'train_dataloader.dataset.pipeline.2.scale=(256,64)',
            'train_dataloader.dataset.pipeline.3.crop_size=(64,64)',
            'val_dataloader.dataset.pipeline.1.scale=(256,64)',
        ],
        'mIoU',
        'iter_2.pth',
        ('other', *CLASSES),
    ),
    'class_folders': (
        'dat_t_300e_in1k',
        dict(backbone=dict(arch=dict(NANO['dat'], _delete_=True)), head=dict(in_channels=CHANNELS[-1])),
        [
            'train_cfg.max_epochs=1',
            'train_dataloader.dataset.pipeline.1.scale=64',
            'val_dataloader.dataset.pipeline.1.scale=64',
            'val_dataloader.dataset.pipeline.2.crop_size=64',
        ],
        'accuracy/top1',
        'epoch_1.pth',
        tuple(sorted(CLASSES)),
    ),
}


@pytest.mark.parametrize('helper', sorted(TASKS))
def test_train_and_evaluate(helper, workplace, monkeypatch):
    base, model, options, metric, checkpoint, classes = TASKS[helper]
    config = workplace / 'mine.py'
    config.write_text(f'_base_ = "{ROOT}/configs/{base}.py"\nmodel = {model!r}\n{PIPELINES.get(helper, "")}')
    root = 'my data/folders' if helper == 'class_folders' else 'my data'
    call_tool(
        monkeypatch,
        'train',
        config,
        '--override',
        OWN / f'{helper}.py',
        '--data',
        root,
        '--work-dir',
        'work',
        '--cfg-options',
        *QUICK,
        *options,
    )
    records = [json.loads(line) for line in next(Path('work').glob('*/vis_data/scalars.json')).read_text().splitlines()]
    losses = [record['loss'] for record in records if 'loss' in record]
    assert len(losses) == 2 and np.isfinite(losses).all()
    assert any(metric in record for record in records)
    saved = torch.load(Path('work') / checkpoint, map_location='cpu', weights_only=False)
    assert tuple(saved['meta']['dataset_meta']['classes']) == classes
    # The configuration that is left behind needs neither helper nor options.
    left = Config.fromfile('work/mine.py')
    assert 'classes_from' not in left
    check_run(left, training=True)
    heads = {
        'coco_folder': ['roi_head.bbox_head', 'roi_head.mask_head'],
        'image_label_folder': ['decode_head', 'auxiliary_head'],
        'class_folders': ['head'],
    }[helper]
    for head in heads:
        node = left.model
        for name in head.split('.'):
            node = node[name]
        assert node.num_classes == len(classes)
    # mmdet's visualizer takes a list for several colours.
    assert all(isinstance(colour, tuple) for colour in left.val_dataloader.dataset.metainfo.palette)
    predictor = Predictor(left, f'work/{checkpoint}', 'cpu')
    assert predictor.classes == list(classes)
    image = cv2.imread('my data/val/1.png')
    (sample,) = predictor.predict([image])
    drawn = predictor.draw(image, sample, 0.0)
    assert drawn.shape == image.shape and (drawn != image).any()


def zoo():
    names = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
    assert len(names) == 60
    return names


@pytest.mark.parametrize('name', zoo())
def test_every_head_of_every_config_follows(name, source, tmp_path):
    helper, count, root = {
        'in1k': ('class_folders', 3, source / 'folders'),
        'ade20k': ('image_label_folder', 4, source),
        'coco': ('coco_folder', 3, source),
    }[re.search('in1k|ade20k|coco', name)[0]]
    config = ROOT / f'configs/{name}.py'
    if 'panoptic' in name:
        with pytest.raises(RunError, match='not panoptic annotations: choose another config'):
            load(config, helper, str(root), tmp_path)
        return
    cfg = load(config, helper, str(root), tmp_path)
    found = []

    def look(node):
        if isinstance(node, dict):
            found.extend(node[key] for key in ('num_classes', 'num_things_classes') if key in node)
            if 'class_weight' in node:
                assert len(node['class_weight']) == count + 1 and node['class_weight'][-1] == 0.1
            node = list(node.values())
        if isinstance(node, (list, tuple)):
            for child in node:
                look(child)

    look([cfg.model, cfg.get('data_preprocessor')])
    assert found and set(found) == {count}
    check_run(cfg, training=True)
    check_run(cfg, training=False)


def test_labels_mean_what_the_annotations_say(workplace):
    cfg = load(ROOT / 'configs/maskrcnn_dat_t_1x_coco.py', 'coco_folder')
    init_default_scope('mmdet')
    for part, count in (('train', 4), ('val', 2)):
        dataset = DATASETS.build(cfg[f'{part}_dataloader'].dataset)
        assert dataset.metainfo['classes'] == CLASSES and len(dataset) == count
        for number in range(count):
            info = dataset.get_data_info(number)
            (label,) = (instance['bbox_label'] for instance in info['instances'])
            assert CLASSES[label] == CLASSES[int(Path(info['img_path']).stem) % 3]


def test_label_zero_is_a_class_and_255_is_none(workplace):
    """Unlike in ADE20K, whose configs drop label 0."""
    cfg = load(ROOT / 'configs/upernet_dat_t_160k_ade20k.py', 'image_label_folder')
    init_default_scope('mmseg')
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    labels = dataset[1]['data_samples'].gt_sem_seg.data
    assert labels.shape[-2:] == SIZES[1]
    assert set(labels.unique().tolist()) == {0, 2, 255}


def test_labels_are_counted_where_nobody_names_them(workplace):
    (workplace / 'my data/classes.txt').unlink()
    cfg = load(ROOT / 'configs/upernet_dat_t_160k_ade20k.py', 'image_label_folder')
    assert cfg.train_dataloader.dataset.metainfo.classes == ('class 0', 'class 1', 'class 2', 'class 3')


def test_other_places_by_options(workplace):
    """Names of files are options like any other; the metric looks where the dataset does."""
    (workplace / 'my data/annotations/val.json').rename(workplace / 'my data/holdout.json')
    cfg = load(
        ROOT / 'configs/retinanet_datpp_t_1x_coco.py',
        'coco_folder',
        **{f'{part}_dataloader.dataset.ann_file': 'holdout.json' for part in ('val', 'test')},
    )
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == 'my data/holdout.json'
    check_run(cfg, training=True)


def rewrite(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    'helper, spoil, message',
    [
        ('coco_folder', lambda root: (root / 'annotations/train.json').unlink(), 'no /.*annotations/train.json: docs/'),
        (
            'coco_folder',
            lambda root: (root / 'annotations/val.json').write_text('[]'),
            'val.json is no annotation file',
        ),
        (
            'coco_folder',
            lambda root: rewrite(root / 'annotations/val.json', lambda coco: coco['categories'].reverse()),
            r"val.json lists the categories \['washer', 'bolt', 'nut'\], but the training annotations",
        ),
        (
            'coco_folder',
            lambda root: rewrite(
                root / 'annotations/train.json', lambda coco: coco['annotations'][0].pop('segmentation')
            ),
            'train.json have no segmentation, but the config learns masks: choose a detector of boxes',
        ),
        ('image_label_folder', lambda root: (root / 'labels/val/1.png').unlink(), 'no label map; .*labels/val/1.png'),
        (
            'image_label_folder',
            lambda root: (root / 'classes.txt').write_text('a\nb\n'),
            'has the label [23], as 2 of 4 maps .*names of only 2 classes',
        ),
        (
            'image_label_folder',
            lambda root: cv2.imwrite(str(root / 'labels/train/0.png'), np.zeros((9, 9, 3), np.uint8)),
            'labels/train/0.png is a gray picture saved in colour',
        ),
        (
            'image_label_folder',
            lambda root: cv2.imwrite(str(root / 'images/train/9.jpg'), np.zeros((9, 9, 3), np.uint8)),
            'must all have one suffix, such as .jpg; there are: 4 .png, 1 .jpg',
        ),
        ('class_folders', lambda root: (root / 'val/bolt').rename(root / 'val/screw'), "val has the folders .*'screw'"),
        ('class_folders', lambda root: root.rename(root.parent / 'elsewhere'), 'no directory .*folders with your data'),
    ],
)
def test_faulty_data_is_named_in_one_sentence(helper, spoil, message, workplace):
    root = workplace / ('my data/folders' if helper == 'class_folders' else 'my data')
    spoil(root)
    config = {
        'coco_folder': 'maskrcnn_dat_t_1x_coco',
        'image_label_folder': 'upernet_dat_t_160k_ade20k',
        'class_folders': 'dat_t_300e_in1k',
    }[helper]
    with pytest.raises(RunError, match=message) as error:
        load(ROOT / f'configs/{config}.py', helper, str(root))
    assert '\n' not in str(error.value)


def test_data_needs_a_layout(workplace):
    with pytest.raises(RunError, match='--data my data needs --override with the layout of your data'):
        load_config(
            str(ROOT / 'configs/dat_t_300e_in1k.py'),
            data='my data',
            work_dir='work',
        )


def test_unknown_layouts_are_refused(workplace):
    with pytest.raises(
        RunError, match="classes_from must be one of coco, label_maps, class_folders, voc, yolo, got 'names'"
    ):
        load(ROOT / 'configs/dat_t_300e_in1k.py', 'class_folders', classes_from='names')
