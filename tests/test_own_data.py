"""What people's data have in them: it is trained on as it is meant, or named in one sentence before anything is learnt.

Configs are loaded, as tools do it, and the datasets that they describe are built; nothing is trained.
"""

import json
import shutil
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from in_process import run_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools.coco import COCO

import mmdat.apis
from mmdat.config.load import load_config
from mmdat.config.own_data.colours import well_apart
from mmdat.config.own_data.layout import printable
from mmdat.datasets.files import find_images, held_out
from mmdat.errors import RunError
from mmdat.hooks.data_check import check_evaluators, count, table

ROOT = Path(__file__).parents[1]
CONFIGS = {
    'coco_folder': 'maskrcnn_datnano_shapes',
    'image_label_folder': 'upernet_datnano_shapes',
    'class_folders': 'datnano_shapes',
    'voc_folder': 'maskrcnn_datnano_shapes',
    'yolo_folder': 'maskrcnn_datnano_shapes',
}
SIZE = (48, 64)  # height, width
COUNTS = dict(train=4, val=2)
PARTS = dict(train='train', val='val', test='val')


def square(number):
    """An image with a square, and its mask."""
    mask = np.zeros(SIZE, np.uint8)
    mask[8 + number : 24 + number, 16:40] = 1
    return np.where(mask[..., None], 200, 60).repeat(3, 2).astype(np.uint8), mask


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_coco(edit=lambda data: None, dump=json.dumps, splits=('train', 'val')):
    for split in splits:
        data = dict(images=[], annotations=[], categories=[dict(id=1, name='cat'), dict(id=2, name='dog')])
        for i in range(COUNTS[split]):
            image, mask = square(i)
            Path('data', split).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(f'data/{split}/{i}.jpg', image)
            x, y, w, h = cv2.boundingRect(mask)
            polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
            data['images'].append(dict(id=i, file_name=f'{i}.jpg', height=SIZE[0], width=SIZE[1]))
            about = dict(id=i + 1, image_id=i, category_id=i % 2 + 1)
            data['annotations'].append(dict(about, bbox=[x, y, w, h], area=w * h, iscrowd=0, segmentation=[polygon]))
        edit(data)
        Path('data/annotations').mkdir(exist_ok=True)
        text = dump(data)
        Path(f'data/annotations/{split}.json').write_bytes(text if isinstance(text, bytes) else text.encode())


def make_maps(
    encode=lambda mask: mask, val=None, classes='background\nobject\n', suffix='.png', splits=('train', 'val')
):
    for split in splits:
        for kind in ('images', 'labels'):
            Path('data', kind, split).mkdir(parents=True, exist_ok=True)
        for i in range(COUNTS[split]):
            image, mask = square(i)
            cv2.imwrite(f'data/images/{split}/{i}.jpg', image)
            label_map = (val if split == 'val' and val else encode)(mask)
            assert cv2.imwrite(
                f'data/labels/{split}/{i}{suffix}', np.asarray(label_map).astype(np.asarray(label_map).dtype)
            )
    if classes:
        Path('data/classes.txt').write_text(classes)


def make_folders(suffix='.jpg', splits=('train', 'val')):
    for split in splits:
        for name in ('cat', 'dog'):
            Path('data', split, name).mkdir(parents=True, exist_ok=True)
            for i in range(COUNTS[split]):
                cv2.imwrite(f'data/{split}/{name}/{i}{suffix}', square(i)[0])


def load(helper, **options):
    return load_config(
        str(ROOT / f'configs/demo/{CONFIGS[helper]}.py'),
        override=str(ROOT / f'configs/own_data/{helper}.py'),
        options=options or None,
        data='data',
        work_dir='work',
    )


def built(cfg, part='train'):
    init_default_scope(cfg.default_scope)
    return DATASETS.build(cfg[f'{part}_dataloader'].dataset)


def notes(cfg):
    """What the log of the training will say about its data."""
    return list(cfg.default_hooks.data_check.notes)


def every(**change):
    return lambda data: [annotation.update(change) for annotation in data['annotations']]


def without(*keys, of='annotations'):
    return lambda data: [item.pop(key) for item in data[of] for key in keys]


def boxes(change):
    return lambda data: [a.update(bbox=[float(v) for v in change(*a['bbox'])]) for a in data['annotations']]


def first(**change):
    return lambda data: data['annotations'][0].update(change)


def of_images(**change):
    return lambda data: [image.update(change) for image in data['images']]


def strings(data):
    for annotation in data['annotations']:
        annotation.update(bbox=[str(v) for v in annotation['bbox']], image_id=str(annotation['image_id']), iscrowd='0')
        annotation.update(category_id=str(annotation['category_id']), area=str(annotation['area']))


def named_images(data):
    for name, key in (('images', 'id'), ('annotations', 'image_id')):
        for item in data[name]:
            item[key] = f'photo {item[key]}'


def large_ids(data, shift):
    for image in data['images']:
        image['id'] += shift
    for annotation in data['annotations']:
        annotation.update(id=annotation['id'] + shift, image_id=annotation['image_id'] + shift)


# --- COCO ------------------------------------------------------------------------------------------

COMPLETED = {
    'no iscrowd': without('iscrowd'),
    'no area': without('area'),
    'area 0': every(area=0),
    'area NaN': every(area=float('nan')),
    'no ids of annotations': without('id'),
    'one id for all': every(id=7),
    'id 0': lambda data: data['annotations'][0].update(id=0),
    'no sizes': without('height', 'width', of='images'),
    'sizes 0': of_images(height=0, width=0),
    'sizes as text': of_images(height=str(SIZE[0]), width=str(SIZE[1])),
    'no boxes': without('bbox'),
    'numbers as text': strings,
    'ids of images that are names': named_images,
    'one flat polygon': lambda data: [a.update(segmentation=a['segmentation'][0]) for a in data['annotations']],
    'points in pairs': lambda data: [
        a.update(segmentation=[np.reshape(a['segmentation'][0], (-1, 2)).tolist()]) for a in data['annotations']
    ],
    'a polygon of two points beside another': lambda data: [
        a.update(segmentation=[[1, 1, 9, 9], *a['segmentation']]) for a in data['annotations']
    ],
    'file names with backslashes': lambda data: [
        image.update(file_name=f'.\\{image["file_name"]}') for image in data['images']
    ],
    'crowd as a truth value': every(iscrowd=False),
    'ids of 70 bits': lambda data: large_ids(data, 2**70),
}


@pytest.mark.parametrize('edit', COMPLETED.values(), ids=COMPLETED)
def test_what_is_missing_is_completed_in_a_copy(edit, place):
    make_coco()
    expected = [built(load('coco_folder'), part) for part in ('train', 'val')]
    expected = [[one.get_data_info(i) for i in range(len(one))] for one in expected]
    assert not Path('work/annotations').exists()
    shutil.rmtree('data')
    make_coco(edit)
    before = Path('data/annotations/train.json').read_bytes()
    cfg = load('coco_folder')
    for part, infos in zip(('train', 'val'), expected):
        dataset = built(cfg, part)
        assert len(dataset) == len(infos)
        for i, info in enumerate(infos):
            found = dataset.get_data_info(i)
            assert {key: found[key] for key in ('height', 'width')} == dict(height=SIZE[0], width=SIZE[1])
            assert [one['bbox'] for one in found['instances']] == [one['bbox'] for one in info['instances']]
            assert [one['bbox_label'] for one in found['instances']] == [one['bbox_label'] for one in info['instances']]
            assert found['instances'][0]['mask'] == info['instances'][0]['mask']
            assert found['instances'][0]['ignore_flag'] == 0
    assert Path('data/annotations/train.json').read_bytes() == before
    written = json.loads(Path('work/annotations/train.json').read_text())
    assert cfg.val_evaluator.ann_file == str(Path('work/annotations/val.json').absolute())
    ids = [annotation['id'] for annotation in written['annotations']]
    assert len(set(ids)) == len(ids) and min(ids) > 0
    assert all(annotation['area'] > 0 and annotation['iscrowd'] == 0 for annotation in written['annotations'])


def test_large_ids_are_told_apart(place):
    """As floats, ids of 61 bits would be one."""
    make_coco(lambda data: large_ids(data, 2**60))
    cfg = load('coco_folder')
    assert notes(cfg) == [] and count(built(cfg)).of_class.tolist() == [2, 2]


def test_numbers_of_rle(place):
    runs = [20 * SIZE[0] + 10, 9, SIZE[0] * SIZE[1] - 20 * SIZE[0] - 19]
    make_coco(every(segmentation=dict(size=[str(side) for side in SIZE], counts=[float(run) for run in runs])))
    cfg = load('coco_folder')
    mask = built(cfg).get_data_info(0)['instances'][0]['mask']
    assert mask == dict(size=list(SIZE), counts=runs)
    assert 'RLE as whole numbers (4)' in notes(cfg)[0]


def test_objects_whose_mask_cannot_be_read_are_left_out_of_metrics_too(place):
    make_coco(first(segmentation=[[1, 1, 9, 9]]))
    cfg = load('coco_folder')
    assert '1 of 4 objects of data/annotations/train.json are not used: 1 without a polygon' in notes(cfg)[0]
    assert count(built(cfg)).of_class.tolist() == [1, 2]
    truth = COCO(cfg.val_evaluator.ann_file)
    crowd = [one['iscrowd'] for one in truth.dataset['annotations'] if truth.annToMask(one).any()]
    assert crowd == [1, 0]


def test_a_few_empty_masks_are_said(place):
    make_coco(first(segmentation=[[50, 40, 60, 40, 60, 46]]))
    cfg = load('coco_folder')
    assert [note.split(': ')[1] for note in notes(cfg)] == ['they are learnt as empty masks.'] * 2
    assert notes(cfg)[0].startswith('1 of 4 masks of data/annotations/train.json have no pixel in their boxes')


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16', 'utf-32'])
def test_byte_order_marks(encoding, place):
    make_coco(dump=lambda data: json.dumps(data).encode(encoding))
    assert count(built(load('coco_folder'))).of_class.tolist() == [2, 2]


REFUSED = {
    'all crowd': (every(iscrowd=1), 'train.json has no object that can be learnt, of 4: 4 marked iscrowd'),
    'all ignored': (every(ignore=1), 'has no object that can be learnt, of 4: 4 marked ignore'),
    'below a pixel': (every(bbox=[5, 5, 0.5, 0.5]), 'no object that can be learnt, of 4: 4 smaller than a pixel'),
    'outside': (every(bbox=[70, 60, 9, 9]), 'no object that can be learnt, of 4: 4 outside of the image'),
    'two corners': (boxes(lambda x, y, w, h: (x, y, x + w, y + h)), 'boxes in the form x1, y1, x2, y2'),
    'fractions': (boxes(lambda x, y, w, h: (x / 64, y / 48, w / 64, h / 48)), 'boxes that are fractions of the image'),
    'infinite': (first(bbox=[1, 2, float('inf'), 4]), r'annotations\[0\] \(id 1\) .* has inf in bbox: .*finite'),
    'NaN': (first(bbox=[float('nan'), 2, 3, 4]), r'annotations\[0\] .* has nan in bbox: coordinates must be finite'),
    'null': (first(bbox=[None, 2, 3, 4]), r'annotations\[0\] .* has None in bbox'),
    'absurd box': (first(bbox=[1, 2, 1e9, 4]), r'annotations\[0\] .* has 1e\+09 in bbox, far outside of the image'),
    'absurd polygon': (first(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), r'annotations\[0\] .*1e\+09 in segmentation'),
    'polygon of NaN': (first(segmentation=[[0, 0, float('nan'), 0, 9, 9]]), 'nan in segmentation'),
    'box of three': (first(bbox=[1, 2, 3]), r'annotations\[0\] .* has the bbox \[1, 2, 3\]: it must be \[x, y, width'),
    'words in a box': (first(bbox=['a', 2, 3, 4]), r"annotations\[0\] .* has 'a' in bbox"),
    'nothing at all': (lambda data: [data['annotations'][0].pop(k) for k in ('bbox', 'segmentation')], 'neither bbox'),
    'RLE of another size': (
        first(segmentation=dict(size=[10**6, 10**6], counts=[10**12])),
        r'annotations\[0\] .* mask \(RLE\) of the size \[1000000, 1000000\], but its image has 48x64',
    ),
    'RLE with a wrong sum': (
        first(segmentation=dict(size=list(SIZE), counts=[5, 10**9])),
        'does not count 3072 pixels',
    ),
    'compressed RLE that is none': (first(segmentation=dict(size=list(SIZE), counts='ooooooP')), 'does not count 3072'),
    'polygons of two points': (every(segmentation=[[1, 1, 9, 9]]), '4 without a polygon of three points or more'),
    'polygons with half a point': (
        every(segmentation=[[1, 1, 9, 9, 1, 9, 5]]),
        'no object that can be learnt, of 4: 4 without a polygon',
    ),
    'masks of a line': (every(segmentation=[[20, 20, 30, 20, 40, 20]]), '4 of 4 masks .* have no pixel in their boxes'),
    'empty RLE': (
        every(segmentation=dict(size=list(SIZE), counts=[SIZE[0] * SIZE[1]])),
        '4 of 4 masks .* have no pixel in their boxes, such as that of the id 1: bbox and segmentation must be',
    ),
    'masks in fractions': (
        lambda data: [a.update(segmentation=[[v / 64 for v in a['segmentation'][0]]]) for a in data['annotations']],
        'have no pixel in their boxes',
    ),
    'crowd of text': (first(iscrowd='no'), r"annotations\[0\] .* has iscrowd 'no': set it to 0 or 1"),
    'two images of one id': (of_images(id=3), r'images\[1\] .* has the id 3 as 0.jpg has'),
    'two categories of one id': (lambda data: data['categories'][1].update(id=1), 'has the id 1 as another has'),
    'two categories of one name': (lambda data: data['categories'][1].update(name='cat'), '2 categories named cat'),
    'category without a name': (lambda data: data['categories'][0].update(name=None), 'has the name None'),
    'other sizes': (of_images(height=480, width=640), 'has 480x640 pixels .*, but it has 48x64'),
    'no image id': (without('id', of='images'), r'images\[0\] .* has the id None'),
    'file name that is a number': (of_images(file_name=5), r'images\[0\] .* has the file_name 5'),
    'list in the place of an annotation': (
        lambda data: data['annotations'].append([]),
        r'annotations\[4\] is no object',
    ),
}


@pytest.mark.parametrize('edit, message', REFUSED.values(), ids=REFUSED)
def test_what_has_no_one_meaning_is_named(edit, message, place):
    make_coco(edit)
    with pytest.raises(RunError, match=message) as error:
        load('coco_folder')
    assert '\n' not in str(error.value)


def test_numbers_are_names_and_names_are_printable(place):
    def edit(data):
        data['categories'] = [dict(id=1, name=5), dict(id=2, name='\x1b[31mdog\x07')]

    make_coco(edit)
    cfg = load('coco_folder')
    assert cfg.train_dataloader.dataset.metainfo.classes == ('5', '[31mdog')
    assert count(built(cfg)).of_class.tolist() == [2, 2]


@pytest.mark.parametrize('content', [b'[' * 100000, b'{"a":' * 100000, b'\xff\xfe\x00', b'[1, 2]', b'{"images": 5}'])
def test_files_that_are_no_annotations(content, place):
    make_coco()
    Path('data/annotations/train.json').write_bytes(content)
    with pytest.raises(RunError, match='train.json is no annotation file in COCO format'):
        load('coco_folder')


@pytest.mark.parametrize('stored', [True, False])
def test_turned_photos(stored, place):
    """json sizes are those of the pixels as stored, or as a viewer shows them; images are loaded to fit them."""
    height, width = SIZE

    def edit(data):
        for image in data['images']:
            image.update(height=height if stored else width, width=width if stored else height)
        if not stored:
            for annotation in data['annotations']:
                x, y, w, h = annotation['bbox']
                annotation.update(bbox=[y, x, h, w], segmentation=[[y, x, y + h, x, y + h, x + w, y, x + w]])

    make_coco(edit)
    for path in Path('data').glob('*/*.jpg'):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).save(path, exif=exif)
    cfg = load('coco_folder')
    dataset = built(cfg)
    sample = dataset[0]['data_samples']
    assert sample.ori_shape == (SIZE if stored else SIZE[::-1])
    assert sample.gt_instances.masks.masks.shape[1:] == sample.ori_shape
    assert (cfg.test_dataloader.dataset.pipeline[0].get('color_type') == 'color_ignore_orientation') == stored


@pytest.mark.parametrize('missing', ['nothing', 'val'])
def test_validation_from_a_part_of_the_training_data(missing, place):
    make_coco(splits=('train', 'val') if missing == 'nothing' else ('train',))
    cfg = load('coco_folder', val_fraction=0.25)
    assert [len(built(cfg, part)) for part in ('train', 'val')] == [3, 1]
    ids = [
        {built(cfg, part).get_data_info(i)['img_id'] for i in range(len(built(cfg, part)))} for part in ('train', 'val')
    ]
    assert not ids[0] & ids[1]


@pytest.mark.parametrize(
    'helper, make', [('coco_folder', make_coco), ('image_label_folder', make_maps), ('class_folders', make_folders)]
)
@pytest.mark.parametrize('left', ['nothing', 'empty folders'])
def test_no_validation_data(helper, make, left, place):
    make(splits=('train',))
    if left == 'empty folders':
        for folder in ('val', 'images/val', 'labels/val'):
            Path('data', folder).mkdir(parents=True)
    cfg = load(helper)
    assert notes(cfg)[0].endswith('--val-fraction 0.1 keeps a tenth of the training data for it.')
    assert cfg.val_dataloader is None and cfg.val_cfg is None and cfg.val_evaluator is None
    assert len(cfg.test_dataloader.dataset.metainfo.classes) == 2  # for inference
    assert count(built(cfg)).of_class.all()


def test_the_option_of_the_command_line(place, monkeypatch, capsys):
    """tools/train.py --val-fraction, up to the first sentence that ends it."""
    make_folders(splits=('train',))
    paths = [ROOT / 'configs/demo/datnano_shapes.py', '--override', ROOT / 'configs/own_data/class_folders.py']
    started = []
    monkeypatch.setattr(mmdat.apis, 'train', lambda cfg, *args: started.append(cfg))
    assert run_tool(monkeypatch, 'train', *paths, '--data', 'data', '--val-fraction', 0.25) == 0
    assert [count(built(started[0], part)).of_class.tolist() for part in COUNTS] == [[3, 3], [1, 1]]
    assert run_tool(monkeypatch, 'train', *paths, '--data', 'data', '--val-fraction', 1.5) == 1
    assert 'val_fraction must be a number between 0 and 1, such as 0.1, got 1.5' in capsys.readouterr().err
    assert run_tool(monkeypatch, 'train', paths[0], '--val-fraction', 0.1) == 1
    assert '--val-fraction 0.1 needs --override with the layout of your data' in capsys.readouterr().err


@pytest.mark.parametrize('fraction', [0, 1, -0.5, 'half', True])
def test_fractions_that_are_none(fraction, place):
    make_coco()
    with pytest.raises(RunError, match='val_fraction must be a number between 0 and 1'):
        load('coco_folder', val_fraction=fraction)


def test_several_folders(place):
    make_coco()
    shutil.copytree('data/train', 'data/more')
    shutil.copy('data/annotations/train.json', 'data/annotations/more.json')
    files = dict(
        ann_file=['annotations/train.json', 'annotations/more.json'],
        **{'data_prefix.img': ['train/', 'more/']},
    )
    cfg = load('coco_folder', **{f'train_dataloader.dataset.{key}': value for key, value in files.items()})
    assert count(built(cfg)).of_class.tolist() == [4, 4]
    folders = {Path(built(cfg).get_data_info(i)['img_path']).parent.name for i in range(8)}
    assert folders == {'train', 'more'}
    both = {f'{part}_dataloader.dataset.{key}': value for key, value in files.items() for part in ('val', 'test')}
    cfg = load('coco_folder', **both)
    assert count(built(cfg, 'val')).of_class.tolist() == [4, 4]
    assert len(json.loads(Path(cfg.val_evaluator.ann_file).read_text())['images']) == 8


@pytest.mark.parametrize('wrapper, counts', [('RepeatDataset', [2, 2]), ('ConcatDataset', [3, 3])])
def test_wrapped_datasets(wrapper, counts, place):
    make_coco()
    base = ROOT / f'configs/demo/{CONFIGS["coco_folder"]}.py'
    one = Config.fromfile(base).train_dataloader.dataset.to_dict()
    if wrapper == 'RepeatDataset':
        wrapped = dict(type=wrapper, times=3, dataset=one)
    else:
        places = [dict(ann_file=f'annotations/{name}.json', data_prefix=dict(img=f'{name}/')) for name in COUNTS]
        wrapped = dict(type=wrapper, datasets=[dict(one, **place) for place in places])
    Path('mine.py').write_text(
        f'_base_ = "{base}"\ntrain_dataloader = dict(dataset=dict(_delete_=True, **{wrapped!r}))\n'
    )
    cfg = load_config('mine.py', override=str(ROOT / 'configs/own_data/coco_folder.py'), data='data', work_dir='work')
    assert count(built(cfg)).of_class.tolist() == counts


def test_test_data_without_annotations(place):
    make_coco()
    data = json.loads(Path('data/annotations/val.json').read_text())
    del data['annotations']
    Path('data/annotations/test.json').write_text(json.dumps(data))
    cfg = load('coco_folder', **{'test_dataloader.dataset.ann_file': 'annotations/test.json'})
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/test.json'
    assert count(built(cfg)).of_class.tolist() == [2, 2]


# --- label maps ------------------------------------------------------------------------------------

times = lambda factor: lambda mask: mask * np.uint8(factor)  # noqa: E731
MAPS = {
    '0 and 255': (dict(encode=times(255)), 'values 0 .*, 255 .*nothing can be learnt: .*label_map=0:0,255:1 if 255'),
    '0 and 255 without names': (dict(encode=times(255), classes=''), 'set --cfg-options label_map=0:0,255:1'),
    'gray codes': (dict(encode=times(100), classes=''), 'as if they were gray values: .*label_map=0:0,100:1'),
    'gray codes with 255': (
        dict(encode=lambda mask: mask * np.uint8(170) + np.eye(*SIZE, dtype=np.uint8) * 85, classes=''),
        'label_map=0:0,85:1,170:2 .and 255:3 if 255 is a class, too',
    ),
    'gray codes with names': (dict(encode=times(128)), 'has the label 128, .*label_map=0:0,128:1; else'),
    'JPEG': (dict(suffix='_mask.jpg', options={'seg_map_suffix': '_mask.jpg'}), 'in JPEG files, .*save them as PNG'),
    'more classes than maps tell apart': (
        dict(classes='\n'.join(map(str, range(256)))),
        'names 256 classes, but maps of 8 bits tell 255 apart',
    ),
    'two classes of one name': (dict(classes='object\nobject\n'), 'classes.txt has 2 classes named object'),
    'one class only': (dict(encode=times(0)), r'values 0 \(100.0% of the pixels\), .*fewer than two classes'),
    'nothing but 255': (dict(encode=lambda mask: mask * 0 + 255), r'values 255 \(100.0%.*nothing can be learnt'),
    'labels from 1': (dict(encode=lambda mask: mask + 1), 'has the label 2, .*reduce_zero_label=True'),
    'stray label in training': (dict(encode=times(11)), 'labels/train/0.png has the label 11, .*label_map=11:255'),
    'stray label in validation': (dict(val=times(11)), 'labels/val/0.png has the label 11, as 2 of 2 maps'),
    'half the size': (dict(encode=lambda mask: mask[::2, ::2]), r'0.png has 24x32 pixels .*0.jpg has 48x64'),
    'turned': (dict(encode=lambda mask: mask.T.copy()), '64x48 pixels .*, which is turned'),
    'other size in validation': (dict(val=lambda mask: mask[::2, ::2]), 'labels/val/0.png has 24x32 pixels'),
    'colours': (dict(encode=lambda mask: np.dstack([mask * 9, mask, mask])), 'is a colour picture of 3 channels'),
    'gray in colour': (dict(encode=lambda mask: np.dstack([mask] * 3)), 'is a gray picture saved in colour'),
    '16 bits': (dict(encode=lambda mask: mask.astype(np.uint16) * 1000), 'values from 0 to 1000, but .* 8 bits'),
    'other names': (
        dict(suffix='_mask.png'),
        'no label map; .*NAME_mask.png: set train_dataloader.dataset.seg_map_suffix',
    ),
}


@pytest.mark.parametrize('made, message', MAPS.values(), ids=MAPS)
def test_label_maps_that_mean_something_else(made, message, place):
    made = dict(made)
    options = {f'train_dataloader.dataset.{key}': value for key, value in made.pop('options', {}).items()}
    make_maps(**made)
    with pytest.raises(RunError, match=message) as error:
        load('image_label_folder', **options)
    assert '\n' not in str(error.value)


OPTIONS = {
    'values of masks': (times(255), dict(label_map=['0:0', '255:1'])),
    'values of masks, as text': (times(255), dict(label_map='0:0,255:1')),
    'gray codes': (times(100), dict(label_map={'0': 0, '100': 1})),
    'labels from 1': (lambda mask: mask + 1, dict(reduce_zero_label=True)),
    'labels from 1, in one place': (lambda mask: mask + 1, {'train_dataloader.dataset.reduce_zero_label': True}),
    'as they are': (lambda mask: mask, {}),
}


@pytest.mark.parametrize('encode, options', OPTIONS.values(), ids=OPTIONS)
def test_options_map_values_without_rewriting_files(encode, options, place):
    make_maps(encode)
    cfg = load('image_label_folder', **options)
    for part in COUNTS:
        dataset = built(cfg, part)
        for i in range(COUNTS[part]):
            label_map = dataset[i]['data_samples'].gt_sem_seg.data[0].numpy()
            flipped = [square(i)[1]]
            flipped += [flipped[0][::-1], flipped[0][:, ::-1], flipped[0][::-1, ::-1]]
            assert any((label_map == one).all() for one in flipped)
        expected = sum(int(square(i)[1].sum()) for i in range(COUNTS[part]))
        assert count(dataset).of_class.tolist() == [COUNTS[part] * SIZE[0] * SIZE[1] - expected, expected]


def test_maps_of_one_bit(place):
    make_maps()
    for path in Path('data/labels').rglob('*.png'):
        Image.fromarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED) * 255).convert('1').save(path)
    assert count(built(load('image_label_folder'))).of_class.all()


def test_255_may_stand_for_a_class(place):
    make_maps(lambda mask: np.where(np.eye(*SIZE), 255, mask).astype(np.uint8), classes='a\nb\nc\n')
    (note,) = notes(load('image_label_folder'))
    assert 'have the value 255' in note and note.endswith(
        'no pixel belongs to c: if 255 stands for it, set --cfg-options label_map=255:2.'
    )


def test_maps_without_an_image_are_named(place):
    make_maps()
    Path('data/images/train/2.jpg').unlink()
    (note,) = notes(load('image_label_folder'))
    assert note == '1 label maps, such as data/labels/train/2.png, have no image, and are not used.'


def test_suffixes_as_mmseg_pairs_them(place):
    make_maps(suffix='_mask.png')
    for path in Path('data/images').rglob('*.jpg'):
        path.rename(path.with_name(f'{path.stem}_photo.jpg'))
    suffixes = dict(img_suffix='_photo.jpg', seg_map_suffix='_mask.png')
    parts = ('train', 'val', 'test')
    options = {f'{part}_dataloader.dataset.{key}': value for part in parts for key, value in suffixes.items()}
    assert len(built(load('image_label_folder', **options))) == COUNTS['train']


def test_images_and_maps_in_one_folder(place):
    make_maps(suffix='_mask.png')
    for split in COUNTS:
        for path in Path('data/labels', split).iterdir():
            cv2.imwrite(
                f'data/images/{split}/{path.name[0]}.png', cv2.imread(f'data/images/{split}/{path.name[0]}.jpg')
            )
            Path(f'data/images/{split}/{path.name[0]}.jpg').unlink()
            path.rename(f'data/images/{split}/{path.name}')
    options = {}
    for part, split in dict(train='train', val='val', test='val').items():
        options[f'{part}_dataloader.dataset.seg_map_suffix'] = '_mask.png'
        options[f'{part}_dataloader.dataset.data_prefix.seg_map_path'] = f'images/{split}'
    assert len(built(load('image_label_folder', **options))) == COUNTS['train']


def test_maps_that_are_jpegs_by_another_name(place):
    make_maps()
    path = Path('data/labels/train/2.png')
    Image.open(path).save(path, format='JPEG')
    with pytest.raises(RunError, match='labels/train/2.png is a JPEG, which changes the values of pixels'):
        load('image_label_folder')


def test_label_maps_to_what_is_no_class(place):
    make_maps(times(255))
    with pytest.raises(RunError, match='label_map makes the label 7, but there are 2 classes, from 0 on'):
        load('image_label_folder', label_map='0:0,255:7')


@pytest.mark.parametrize('option', ['0', '0:a', '0:300', [['0']], '0:0,0:1', '1:0'])
def test_label_maps_that_are_none(option, place):
    make_maps()
    with pytest.raises(RunError, match='label_map'):
        load('image_label_folder', label_map=option)


def test_hidden_files_are_no_images(place):
    make_maps()
    for name in ('._0.jpg', '.ipynb_checkpoints/0.jpg', '__MACOSX/0.jpg'):
        path = Path('data/images/train', name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b'system')
    assert len(built(load('image_label_folder'))) == COUNTS['train']


@pytest.mark.parametrize('label', [2, -1])
def test_labels_of_a_file_that_no_class_has(label, place):
    make_folders()
    Path('data/labels.txt').write_text(f'cat/0.jpg 0\ndog/0.jpg {label}\n')
    init_default_scope('mmpretrain')
    dataset = DATASETS.build(
        dict(
            type='CustomDataset',
            data_root='data',
            ann_file='labels.txt',
            data_prefix='train',
            metainfo=dict(classes=('cat', 'dog')),
        )
    )
    with pytest.raises(RunError, match=f'dog/0.jpg has the label {label}, but there are 2 classes, numbered from 0'):
        count(dataset)


def test_the_palette_of_the_user_is_kept(place):
    make_maps()
    palette = [[1, 2, 3], [4, 5, 6]]
    cfg = load('image_label_folder', **{'train_dataloader.dataset.metainfo.palette': palette})
    assert cfg.train_dataloader.dataset.metainfo.palette == [(1, 2, 3), (4, 5, 6)]
    assert notes(cfg) == []


@pytest.mark.parametrize('palette', [[[1, 2, 3]], [[1, 2, 3], [4, 5, 600]], 'red', [1, 2], []])
def test_a_palette_that_does_not_fit_is_replaced_and_said(palette, place):
    make_maps()
    cfg = load('image_label_folder', **{'train_dataloader.dataset.metainfo.palette': palette})
    assert cfg.train_dataloader.dataset.metainfo.palette == well_apart(2)
    assert notes(cfg) == [
        'metainfo.palette is not used, as it is no list of 2 colours, each of three numbers from 0 to 255: colours are '
        'made.'
    ]


# --- class folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize('suffix', ['.jpg', '.webp', '.PNG', '.tiff', '.bmp'])
def test_all_common_images_are_read(suffix, place):
    make_folders(suffix)
    assert count(built(load('class_folders'))).of_class.tolist() == [4, 4]


@pytest.mark.parametrize('name', ['.ipynb_checkpoints', '__MACOSX', '@eaDir', '$RECYCLE.BIN', '__pycache__'])
def test_hidden_folders_are_no_classes(name, place):
    make_folders()
    for split in COUNTS:
        Path('data', split, name).mkdir()
    cfg = load('class_folders')
    assert cfg.train_dataloader.dataset.metainfo.classes == ('cat', 'dog')
    assert count(built(cfg, 'val')).of_class.tolist() == [2, 2]


@pytest.mark.parametrize('folder', ['none', 'empty'])
def test_a_class_that_is_not_validated(folder, place):
    make_folders()
    shutil.rmtree('data/val/cat')
    if folder == 'empty':
        Path('data/val/cat').mkdir()
    cfg = load('class_folders')
    assert count(built(cfg, 'val')).of_class.tolist() == [0, 2]
    assert notes(cfg) == ['data/val has no images of cat: of these classes nothing is validated.']


def test_links_to_nothing_are_named(place):
    make_folders()
    Path('data/train/cat/9.jpg').symlink_to('nowhere.jpg')
    cfg = load('class_folders')
    assert notes(cfg) == ['1 images, such as data/train/cat/9.jpg, are links to nothing or no files, and are not used.']
    assert count(built(cfg)).of_class.tolist() == [4, 4]


def test_classes_in_a_folder_of_their_own_are_found(place):
    make_folders()
    for split in COUNTS:
        Path('data', split, 'animals').mkdir()
        for name in ('cat', 'dog'):
            Path('data', split, name).rename(f'data/{split}/animals/{name}')
    with pytest.raises(RunError, match='one class only, animals.* or name the folder above cat, dog in data_prefix'):
        load('class_folders')
    options = {f'{part}_dataloader.dataset.data_prefix': f'{split}/animals' for part, split in PARTS.items()}
    assert count(built(load('class_folders', **options))).of_class.tolist() == [4, 4]


def test_images_beside_the_folders_are_named(place):
    make_folders()
    shutil.copy('data/train/cat/0.jpg', 'data/train/cat_0.jpg')
    (note,) = notes(load('class_folders'))
    assert note == '1 images, such as data/train/cat_0.jpg, lie in no folder of a class, and are not used.'


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda: Path('data/train/bird').mkdir(), 'data/train has no images of the class bird'),
        (lambda: Path('data/val/bird').mkdir(), 'no class can be learnt for bird'),
        (lambda: [p.rename(p.with_suffix('.heic')) for p in Path('data/train/cat').iterdir()], r'\(4 .heic\)'),
        (lambda: Path('data/train/cat/9.jpg').write_bytes(b''), 'cat/9.jpg is not a readable image'),
        (lambda: cut('data/train/cat/1.jpg'), 'cat/1.jpg is not a readable image'),
        (lambda: cut('data/val/cat/1.jpg'), 'cat/1.jpg is not a readable image'),
        (lambda: [shutil.rmtree(f'data/{split}/cat') for split in COUNTS], 'one class only, dog'),
        (
            lambda: [
                path.rename(f'data/train/{number}.jpg') for number, path in enumerate(Path('data/train/cat').iterdir())
            ],
            'no images of the class cat .*4 images, such as .* lie in no folder of a class',
        ),
        (lambda: Path('data/train/cat/9.png').write_bytes(bomb()), '9.png is too large to be loaded'),
        (lambda: cut('data/train/cat/9.bmp'), 'cat/9.bmp cannot be read by the LoadImageFromFile .* PNG or JPEG$'),
        (
            lambda: small('data/train/cat/9.png', 1, 1),
            '9.png has 1x1 pixels .*, but .* from 32x32 on: take it out .* pad',
        ),
        (lambda: small('data/val/cat/9.png', 31, 40), 'val/cat/9.png has 31x40 pixels'),
        (lambda: floats('data/train/cat/9.tif'), "cat/9.tif cannot be read .* set imdecode_backend='tifffile' in the"),
    ],
)
def test_class_folders_that_cannot_be_learnt(spoil, message, place):
    make_folders()
    spoil()
    with pytest.raises(RunError, match=message):
        load('class_folders')


def small(path, height, width):
    assert cv2.imwrite(path, np.zeros((height, width, 3), np.uint8))


def floats(path):
    Image.fromarray(np.zeros(SIZE, np.float32)).save(path)


def cut(path):
    """Take the end of a file away."""
    if not Path(path).exists():
        small(path, *SIZE)
    Path(path).write_bytes(Path(path).read_bytes()[:-40])


def bomb():
    """The head of a PNG of 10^10 pixels."""

    def chunk(name, content):
        checksum = zlib.crc32(name + content)
        return len(content).to_bytes(4, 'big') + name + content + checksum.to_bytes(4, 'big')

    head = chunk(b'IHDR', (10**5).to_bytes(4, 'big') * 2 + b'\x08\x00\x00\x00\x00')
    return b'\x89PNG\r\n\x1a\n' + head + chunk(b'IDAT', zlib.compress(bytes(1000))) + chunk(b'IEND', b'')


@pytest.mark.parametrize(
    'step, size, message',
    [
        ('', (31, 40), 'has 31x40 pixels .* from 32x32 on: take it out of the dataset, or resize or pad images in its'),
        ('dict(type="Resize", scale=(64, 64)),', (31, 40), None),
        (
            'dict(type="Resize", scale=(64, 64)),',
            (1, 40),
            'has 1x40 pixels .* from 2x2 on: take it out of the dataset$',
        ),
    ],
)
@pytest.mark.parametrize('helper, make', [('image_label_folder', make_maps), ('class_folders', make_folders)])
def test_small_images(helper, make, step, size, message, place):
    """The toolboxes flip and squeeze what has a side of one pixel into something else."""
    make()
    folder = 'images/train' if helper == 'image_label_folder' else 'train/cat'
    small(f'data/{folder}/9.jpg', *size)
    if helper == 'image_label_folder':
        assert cv2.imwrite('data/labels/train/9.png', np.eye(*size, dtype=np.uint8))
    base = ROOT / f'configs/demo/{CONFIGS[helper]}.py'
    load_steps = 'dict(type="LoadImageFromFile"), dict(type="LoadAnnotations")'
    Path('mine.py').write_text(
        f'_base_ = "{base}"\ntrain_dataloader = dict(dataset=dict(pipeline=[{load_steps}, {step}]))\n'
    )
    options = dict(override=str(ROOT / f'configs/own_data/{helper}.py'), data='data', work_dir='work')
    if message is None:
        load_config('mine.py', **options)
        return
    with pytest.raises(RunError, match=message):
        load_config('mine.py', **options)


def test_photos_with_a_side_of_one_pixel(place):
    make_coco(lambda data: data['images'].append(dict(id=9, file_name='9.png', height=1, width=40)))
    for split in COUNTS:
        small(f'data/{split}/9.png', 1, 40)
    with pytest.raises(RunError, match='train/9.png has 1x40 pixels .* from 2x2 on: take it out of the dataset$'):
        load('coco_folder')


def test_maps_of_any_config_with_a_side_of_one_pixel(place):
    make_maps()
    cfg = load('image_label_folder')
    small('data/images/train/2.jpg', 40, 1)
    assert cv2.imwrite('data/labels/train/2.png', np.zeros((40, 1), np.uint8))
    with pytest.raises(RunError, match='data/labels/train/2.png has a side of one pixel, which mmseg loses: take it'):
        count(built(cfg))


@pytest.mark.parametrize('helper', ['coco_folder', 'image_label_folder'])
@pytest.mark.parametrize('place_of', ['image', 'map'])
def test_image_bombs(helper, place_of, place):
    dict(coco_folder=make_coco, image_label_folder=make_maps)[helper]()
    if place_of == 'map' and helper == 'coco_folder':
        pytest.skip('has no maps')
    folder = dict(image='images/train', map='labels/train')[place_of] if helper == 'image_label_folder' else 'train'
    Path('data', folder, '1.jpg' if place_of == 'image' else '1.png').write_bytes(bomb())
    with pytest.raises(RunError, match='is too large to be loaded'):
        load(helper)


def test_part_of_each_class_is_held_out(place):
    make_folders(splits=('train',))
    cfg = load('class_folders', val_fraction=0.25)
    assert [count(built(cfg, part)).of_class.tolist() for part in COUNTS] == [[3, 3], [1, 1]]


def test_part_of_the_label_maps_is_held_out(place):
    make_maps(splits=('train',))
    cfg = load('image_label_folder', val_fraction=0.25)
    paths = [
        {built(cfg, part).get_data_info(i)['img_path'] for i in range(size)}
        for part, size in (('train', 3), ('val', 1))
    ]
    assert len(paths[0] | paths[1]) == 4


# --- any config ------------------------------------------------------------------------------------

OBJECTS = {
    'polygon': (first(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), 'has 1e.09 in segmentation, far outside'),
    'box': (first(bbox=[1, 1, 1e9, 9]), 'has 1e.09 in bbox, far outside'),
    'RLE': (first(segmentation=dict(size=list(SIZE), counts=[5, 10**9])), 'has a mask whose RLE does not count 3072'),
    'no mask': (lambda data: data['annotations'][0].pop('segmentation'), 'has no segmentation, but the config learns'),
}


@pytest.mark.parametrize('edit, message', OBJECTS.values(), ids=OBJECTS)
def test_objects_of_any_config_are_looked_at(edit, message, place):
    make_coco()
    cfg = load('coco_folder')
    make_coco(edit)  # what the config reads is not what was looked at when it was loaded
    with pytest.raises(RunError, match=f'an object in data/train/0.jpg {message}'):
        count(built(cfg))


def test_classes_without_a_category_shift_no_labels(place):
    """A config of 80 classes, and a file that has two of them."""
    make_coco()
    cfg = load_config(str(ROOT / 'configs/maskrcnn_dat_t_1x_coco.py'))
    dataset = cfg.train_dataloader.dataset
    dataset.update(data_root='data', ann_file='annotations/train.json', data_prefix=dict(img='train/'))
    with pytest.raises(RunError, match='has categories for 2 of the 80 classes .* --override'):
        count(built(cfg))
    dataset.metainfo = dict(classes=('dog', 'cat'))
    assert count(built(cfg)).of_class.tolist() == [2, 2]


def test_annotations_of_metrics_are_looked_at(place):
    make_coco(first(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]], area=0))  # which the dataset leaves out, but no metric
    metric = dict(type='CocoMetric', ann_file='data/annotations/val.json')
    with pytest.raises(RunError, match='the annotation 1 of data/annotations/val.json, in 0.jpg, has 1e.09 in segm'):
        check_evaluators([metric, dict(type='DumpResults')])
    make_coco()
    check_evaluators(metric)


# --- VOC and YOLO ----------------------------------------------------------------------------------

XML = """<annotation><filename>{i}.jpg</filename>
<size><width>{width}</width><height>{height}</height><depth>3</depth></size>
<object><name>{name}</name><bndbox><xmin>16</xmin><ymin>{top}</ymin><xmax>40</xmax><ymax>{bottom}</ymax></bndbox></object>
</annotation>"""


def make_voc():
    for name in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        Path('data', name).mkdir(parents=True)
    for split, numbers in dict(train=range(4), val=range(4, 6)).items():
        Path(f'data/ImageSets/Main/{split}.txt').write_text(''.join(f'{i}\n' for i in numbers))
        for i in numbers:
            cv2.imwrite(f'data/JPEGImages/{i}.jpg', square(i)[0])
            about = dict(i=i, name=['cat', 'dog'][i % 2], height=SIZE[0], width=SIZE[1])
            text = XML.format(**about, top=8 + i, bottom=24 + i)
            Path(f'data/Annotations/{i}.xml').write_text(text)


def make_yolo():
    for split in COUNTS:
        for kind in ('images', 'labels'):
            Path('data', kind, split).mkdir(parents=True)
        for i in range(COUNTS[split]):
            cv2.imwrite(f'data/images/{split}/{i}.jpg', square(i)[0])
            line = f'{i % 2} {28 / 64} {(16 + i) / 48} {24 / 64} {16 / 48}\n'
            Path(f'data/labels/{split}/{i}.txt').write_text(line)
    Path('data/data.yaml').write_text('names: [cat, dog]\n')


BOXES_ONLY = {
    f'{part}_dataloader.dataset.pipeline.{n}.with_mask': False for part, n in (('train', 1), ('val', 2), ('test', 2))
}


@pytest.mark.parametrize('helper, make', [('voc_folder', make_voc), ('yolo_folder', make_yolo)])
def test_boxes_of_other_formats(helper, make, place):
    pytest.importorskip('globox')
    make()
    cfg = load(helper, **BOXES_ONLY)
    dataset = built(cfg)
    assert dataset.metainfo['classes'] == ('cat', 'dog') and len(dataset) == 4
    for i in range(4):
        (one,) = dataset.get_data_info(i)['instances']
        assert one['bbox_label'] == i % 2 and one['bbox'] == pytest.approx([16, 8 + i, 40, 24 + i], abs=1e-6)
    assert len(built(cfg, 'val')) == 2
    with pytest.raises(RunError, match='have no segmentation, but the config learns masks'):
        load(helper)


@pytest.mark.parametrize('masks', [True, False])
def test_polygons_of_yolo_are_masks_and_the_boxes_around_them(masks, place):
    pytest.importorskip('globox')
    make_yolo()
    left, top, right, bottom = 16 / 64, 8 / 48, 40 / 64, 24 / 48
    pointed = f'{left} {top} {right} {top} {right} {bottom} {left} {bottom} {left} {top}'
    for path in Path('data/labels').rglob('*.txt'):
        path.write_text(f'{path.read_text()[0]} {pointed}\n\n')
    Path('data/labels/train/1.txt').write_text('')  # an image without objects
    cfg = load('yolo_folder', **({} if masks else BOXES_ONLY))
    (one,) = built(cfg).get_data_info(0)['instances']
    assert one['bbox'] == pytest.approx([16, 8, 40, 24], abs=1e-6)
    assert one['mask'] == [pytest.approx([16, 8, 40, 8, 40, 24, 16, 24, 16, 8])]
    assert count(built(cfg)).of_class.sum() == 3
    assert 'oriented' not in ' '.join(notes(cfg))


def test_boxes_and_polygons_of_yolo_in_one_file(place):
    pytest.importorskip('globox')
    make_yolo()
    Path('data/labels/train/0.txt').write_text('0 .5 .5 .2 .2\n1 .1 .1 .4 .1 .4 .5\n')
    cfg = load('yolo_folder', **BOXES_ONLY)
    assert [one['bbox'] for one in built(cfg).get_data_info(0)['instances']] == [
        pytest.approx([25.6, 19.2, 38.4, 28.8], abs=1e-6),
        pytest.approx([6.4, 4.8, 25.6, 24], abs=1e-6),
    ]
    with pytest.raises(RunError, match='annotations in .* have no segmentation, but the config learns masks'):
        load('yolo_folder')


def test_lists_of_voc(place):
    """Names twice, with flags, with Windows' line ends; other encodings and files of one image are named."""
    pytest.importorskip('globox')
    make_voc()
    listed = Path('data/ImageSets/Main/train.txt')
    listed.write_bytes(b'0 1\r\n1 -1\r\n0 1\r\n\r\n')
    assert len(built(load('voc_folder', **BOXES_ONLY))) == 2
    listed.write_bytes('0\n1\n'.encode('utf-16'))
    with pytest.raises(RunError, match='train.txt is no text in UTF-8'):
        load('voc_folder', **BOXES_ONLY)
    listed.write_text('0\n1\n')
    shutil.copy('data/Annotations/0.xml', 'data/Annotations/1.xml')
    with pytest.raises(RunError, match='several annotation files name the image 0.jpg'):
        load('voc_folder', **BOXES_ONLY)


def every_label(text):
    for path in Path('data/labels').rglob('*.txt'):
        path.write_text(text)


def test_oriented_boxes_of_yolo_are_said(place):
    pytest.importorskip('globox')
    make_yolo()
    every_label('0 .5 .2 .8 .5 .5 .8 .2 .5\n')
    cfg = load('yolo_folder')
    assert built(cfg).get_data_info(0)['instances'][0]['bbox'] == pytest.approx([12.8, 9.6, 51.2, 38.4], abs=1e-6)
    assert [note.split(', as')[0] for note in notes(cfg) if 'oriented' in note] == [
        'data/labels/train has four corners for each object',
        'data/labels/val has four corners for each object',
    ]


@pytest.mark.parametrize(
    'spoil, message',
    [
        (lambda: Path('data/labels/train/0.txt').write_text('0 0.5 half 0.1 0.1'), 'labels/train/0.txt cannot be read'),
        (lambda: Path('data/labels/train/0.txt').write_text('0 .5 .5 .1'), 'labels/train/0.txt cannot be read'),
        (lambda: Path('data/labels/train/0.txt').write_text('0 30 20 9 9'), 'numbers that are no fractions of the im'),
        (lambda: Path('data/labels/train/0.txt').write_text('0 .5 nan .1 .1'), 'numbers that are no fractions of the'),
        (lambda: Path('data/labels/train/0.txt').write_text('0 .1 .1 .2 .1 .2 .2 .1'), 'labels/train/0.txt cannot be'),
        (lambda: Path('data/labels/train/0.txt').write_bytes(b'\xff\xd8\xff\xe0'), 'train/0.txt is no text in UTF-8'),
        (lambda: Path('data/labels/train/0.txt').write_text('7 .5 .5 .1 .1'), 'objects of class 7'),
        (lambda: every_label('0 .5 .5 .2 .2 .45 .5 2 .55 .5 1\n'), 'labels/train has key points, which no config'),
        (
            lambda: Path('data/data.yaml').write_text('names: [cat, dog]\nkpt_shape: [2, 2]\n'),
            'labels/train has key points, which no config .* kpt_shape out of data.yaml',
        ),
        (lambda: Path('data/data.yaml').write_text('names: []'), 'data.yaml names no classes'),
        (lambda: Path('data/data.yaml').write_text('names: cat'), 'data.yaml names no classes'),
        (lambda: Path('data/data.yaml').write_text('cat\ndog\n'), 'data.yaml is no YAML file with names'),
        (lambda: Path('data/data.yaml').write_text('a: &a [x, x]\nnames: [*a, *a]'), 'names are no text: list them'),
        (lambda: Path('data/data.yaml').write_text('names: [cat, cat]'), '2 categories named cat'),
    ],
)
def test_faults_of_yolo_files(spoil, message, place):
    pytest.importorskip('globox')
    make_yolo()
    spoil()
    with pytest.raises(RunError, match=message) as error:
        load('yolo_folder', **BOXES_ONLY)
    assert '\n' not in str(error.value)


# --- parts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize('number', [1, 2, 20, 150])
def test_colours_are_well_apart(number):
    colours = np.array(well_apart(number), float)
    assert len(colours) == number
    distance = np.linalg.norm(colours[:, None] - colours, axis=-1) + 1e3 * np.eye(number)
    assert distance.min() > (90 if number <= 20 else 30)


def test_the_same_names_are_held_out_every_time():
    names = [f'{i}.jpg' for i in range(50)]
    chosen = held_out(names, 0.2, 0)
    assert len(chosen) == 10 and held_out(names[::-1], 0.2, 0) == chosen and held_out(names, 0.2, 1) != chosen
    assert len(held_out(names[:2], 0.01, 0)) == len(held_out(names[:2], 0.99, 0)) == 1


@pytest.mark.parametrize(
    'helper, make', [('coco_folder', make_coco), ('image_label_folder', make_maps), ('class_folders', make_folders)]
)
def test_a_seed_chooses_what_is_held_out(helper, make, place):
    make(splits=('train',))

    def parts(seed):
        cfg = load(helper, val_fraction=0.25, val_seed=seed)
        parts = [built(cfg, part) for part in COUNTS]
        return [tuple(one.get_data_info(i)['img_path'] for i in range(len(one))) for one in parts]

    found = [parts(seed) for seed in (0, 1, 0)]
    assert found[0] == found[2] != found[1]
    assert all(not set(train) & set(val) and len(train) == 3 * len(val) for train, val in found)


@pytest.mark.parametrize('seed', ['one', 1.5, True])
def test_seeds_that_are_none(seed, place):
    make_folders(splits=('train',))
    with pytest.raises(RunError, match='val_seed.* must be a '):
        load('class_folders', val_fraction=0.25, val_seed=seed)


@pytest.mark.parametrize(
    'name, shown', [('a\x1b[2Jb', 'a [2Jb'), (' a\n b\t', 'a b'), ('Ampel\u202e', 'Ampel'), ('日本', '日本')]
)
def test_names_are_printable(name, shown):
    assert printable(name) == shown


def test_the_table_is_short(place):
    make_folders()
    counts = count(built(load('class_folders')))
    lines = table(dict(train=counts), ['cat', 'dog'])
    assert lines[0] == 'What the run works on, images per class:' and lines[2].split() == ['cat', '4']
    many = counts._replace(of_class=np.ones(1000, int))
    lines = table(dict(train=many), [str(i) for i in range(1000)])
    assert len(lines) < 30 and lines[-1].split() == ['980', 'others', '980']


def test_images_in_capitals_are_found(tmp_path):
    for name in ('b.JPG', 'a.png', 'c.txt', '.d.png'):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ['a.png', 'b.JPG']
