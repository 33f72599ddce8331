"""The generated demo data: the same bytes each time, and labels of the three tasks that agree."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mmdat.datasets import CLASSES, SEMANTIC_CLASSES, make_shapes

ARGUMENTS = dict(num_train=9, num_val=4, size=96)
SPLITS = [('train', 'training', 9), ('val', 'validation', 4)]


def contents(directory):
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob('*') if path.is_file()}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp('data') / 'shapes'
    assert make_shapes(out, **ARGUMENTS)
    return out


def test_equal_arguments_give_equal_bytes(data, tmp_path):
    make_shapes(tmp_path / 'again', **ARGUMENTS)
    assert contents(tmp_path / 'again') == contents(data)


def test_an_image_does_not_depend_on_how_many_there_are(data, tmp_path):
    make_shapes(tmp_path / 'few', num_train=2, num_val=1, size=96)
    name = 'images/training/shapes_train_00002.jpg'
    assert (tmp_path / 'few' / name).read_bytes() == (data / name).read_bytes()


def test_whole_data_is_kept_and_half_made_data_made_again(tmp_path):
    out = tmp_path / 'shapes'
    small = dict(num_train=3, num_val=2, size=64)
    assert make_shapes(out, **small)
    whole = contents(out)
    assert not make_shapes(out, **small)

    (out / 'annotations/training/shapes_train_00002.png').unlink()
    assert make_shapes(out, **small)
    assert contents(out) == whole

    (out / 'shapes.json').write_text('{"num_tr')  # as if cut off while written
    assert make_shapes(out, **small)
    assert contents(out) == whole

    assert make_shapes(out, **dict(small, num_val=1))
    assert len(list((out / 'images/validation').iterdir())) == 1


def test_a_directory_of_another_origin_is_left_alone(tmp_path):
    (tmp_path / 'annotations').mkdir()
    (tmp_path / 'annotations/mine.json').write_text('{}')
    with pytest.raises(ValueError, match='was not made by this tool'):
        make_shapes(tmp_path, **ARGUMENTS)
    assert (tmp_path / 'annotations/mine.json').exists()


def test_refuses_numbers_that_make_no_data(tmp_path):
    with pytest.raises(ValueError, match='num_val must be at least 1, got 0'):
        make_shapes(tmp_path / 'x', num_val=0)


@pytest.mark.parametrize('split, folder, count', SPLITS)
def test_coco_annotations_are_valid(data, split, folder, count):
    coco = COCO(str(data / f'annotations/instances_{split}.json'))
    assert [category['name'] for category in coco.loadCats(coco.getCatIds())] == list(CLASSES)
    assert len(coco.imgs) == count
    for image in coco.loadImgs(coco.getImgIds()):
        picture = cv2.imread(str(data / 'images' / folder / image['file_name']))
        assert picture.shape == (image['height'], image['width'], 3)
        annotations = coco.loadAnns(coco.getAnnIds(image['id']))
        assert len(annotations) >= 2
        for annotation in annotations:
            mask = coco.annToMask(annotation)
            assert mask.shape == picture.shape[:2]
            rows, cols = np.nonzero(mask)
            box = [cols.min(), rows.min(), np.ptp(cols) + 1, np.ptp(rows) + 1]
            assert annotation['bbox'] == box
            assert annotation['area'] == len(rows) == coco_mask.area(coco.annToRLE(annotation))


@pytest.mark.parametrize('split, folder, count', SPLITS)
def test_semantic_maps_match_the_instances(data, split, folder, count):
    coco = COCO(str(data / f'annotations/instances_{split}.json'))
    seen = set()
    for image in coco.loadImgs(coco.getImgIds()):
        name = image['file_name'].replace('.jpg', '.png')
        semantic = cv2.imread(str(data / 'annotations' / folder / name), cv2.IMREAD_UNCHANGED)
        covered = np.zeros_like(semantic)
        for annotation in coco.loadAnns(coco.getAnnIds(image['id'])):
            mask = coco.annToMask(annotation)
            covered += mask
            # Labels of the maps: 0 other, 1 background, then the classes.
            assert set(semantic[mask > 0]) == {annotation['category_id'] + 1}
        assert covered.max() == 1, 'what hides another shape is not part of its mask'
        assert set(semantic[covered == 0]) <= {0, 1}
        seen |= set(semantic.flat)
    assert seen == set(range(len(SEMANTIC_CLASSES) + 1))


def test_some_shapes_overlap(data):
    """Otherwise occlusion, which masks must respect, would not occur at all."""
    annotations = json.loads((data / 'annotations/instances_train.json').read_text())['annotations']
    pairs = [(a, b) for a in annotations for b in annotations if a['image_id'] == b['image_id'] and a['id'] < b['id']]
    overlaps = [coco_mask.iou([a['bbox']], [b['bbox']], [0])[0, 0] for a, b in pairs]
    assert max(overlaps) > 0.2


def test_classification_folders(data):
    for split, _, count in SPLITS:
        folder = data / 'classification' / split
        assert sorted(path.name for path in folder.iterdir()) == sorted(CLASSES)
        images = list(folder.rglob('*.png'))
        assert len(images) == count
        assert all(cv2.imread(str(path)).shape == (96, 96, 3) for path in images)


def test_the_tool(tmp_path):
    tool = Path(__file__).parents[1] / 'tools/make_shapes.py'
    command = [sys.executable, str(tool), '--out', 'shapes', '--num-train', '0']
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert refused.returncode != 0
    assert refused.stderr.splitlines()[-1] == 'make_shapes.py: num_train must be at least 1, got 0'
