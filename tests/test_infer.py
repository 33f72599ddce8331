"""tools/infer.py: images, folders, globs and videos in, pictures and predictions out, for all three tasks."""

import json
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from in_process import run_tool
from mmdet.structures import DetDataSample
from mmengine.logging import HistoryBuffer
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

import mmdat.apis.predictor
from mmdat.apis import evaluate
from mmdat.apis.drawing import DRAWN_SIDE, draw_label_map, draw_objects, shrink
from mmdat.apis.pictures import Picture, batches, find_inputs
from mmdat.apis.predictor import Predictor
from mmdat.config.load import load_config
from mmdat.datasets import make_shapes

ROOT = Path(__file__).parents[1]
CONFIGS = {
    'detection': ROOT / 'configs/demo/maskrcnn_datnano_shapes.py',
    'segmentation': ROOT / 'configs/demo/upernet_datppnano_shapes.py',
    'classification': ROOT / 'configs/demo/datnano_shapes.py',
}
CLASSES = {
    'detection': ['circle', 'square', 'triangle', 'star'],
    'segmentation': ['background', 'circle', 'square', 'triangle', 'star'],
    'classification': ['circle', 'square', 'star', 'triangle'],
}
TASKS = sorted(CONFIGS)
# An untrained model finds something everywhere; drawing all of it takes long.
FEW = {'detection': {'model.test_cfg.rcnn.max_per_img': 6}}


def config(task, **options):
    return load_config(
        str(CONFIGS[task]),
        options=dict(FEW.get(task, {}), **options),
        work_dir='work',
    )


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Demo data, and a checkpoint of each task as MMEngine saves it, with random weights."""
    place = tmp_path_factory.mktemp('infer')
    make_shapes(place / 'data/shapes', num_train=1, num_val=2, size=64)
    for task in TASKS:
        cfg = config(task)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        cfg.model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        model = MODELS.build(cfg.model)
        for parameter in model.parameters():  # some are zero at first, and all predictions alike
            torch.nn.init.normal_(parameter, std=0.05)
        palette = dict(palette=[[9 * i, 90, 250 - 9 * i] for i in range(5)]) if task == 'segmentation' else {}
        torch.save(
            dict(
                meta=dict(dataset_meta=dict(classes=tuple(CLASSES[task]), **palette), seed=np.int64(0)),
                state_dict=model.state_dict(),
                message_hub=dict(log_scalars={'train/loss': HistoryBuffer([1.0], [1])}),
            ),
            place / f'{task}.pth',
        )
    return place


@pytest.fixture
def workplace(place, tmp_path, monkeypatch):
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def infer(workplace, monkeypatch):
    """Run the tool in this process, up to its exit; returns images.json, predictions.json."""

    def call(task, *args, code=0):
        arguments = [CONFIGS[task], f'{task}.pth', *args, '--device', 'cpu', '--out-dir', 'out']
        if task in FEW:
            arguments += ['--cfg-options', *(f'{key}={value}' for key, value in FEW[task].items())]
        assert run_tool(monkeypatch, 'infer', *arguments) == code
        return [json.loads(Path('out', name).read_text()) for name in ('images.json', 'predictions.json')]

    return call


def make_video(path, size=(46, 70), frames=4, rate=7):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'MJPG'), rate, size[::-1])
    assert writer.isOpened()
    for i in range(frames):
        frame = np.full((*size, 3), 60 * i, np.uint8)
        frame[10:30, 10 + 5 * i : 30 + 5 * i] = (0, 200, 255)
        writer.write(frame)
    writer.release()


@pytest.mark.parametrize('task', TASKS)
def test_it_predicts_what_testing_predicts(task, infer):
    loading = {
        f'test_dataloader.{key}': value
        for key, value in dict(num_workers=0, persistent_workers=False, batch_size=1).items()
    }
    evaluate(config(task, **loading, custom_hooks=[]), f'{task}.pth', out='expected.pkl')
    expected = pickle.loads(Path('expected.pkl').read_bytes())
    if task == 'classification':
        images, predictions = infer(task, *(f'data/shapes/classification/val/{name}' for name in ('circle', 'square')))
        for prediction, sample in zip(predictions, expected):
            np.testing.assert_allclose(prediction['scores'], sample['pred_score'], atol=1e-5)
            best = int(np.argmax(prediction['scores']))
            assert prediction['category_id'] == best + 1 and prediction['category'] == CLASSES[task][best]
            assert prediction['score'] == prediction['scores'][best]
    else:
        images, predictions = infer(task, 'data/shapes/images/validation', '--score-thr', 0)
    if task == 'segmentation':
        for prediction, sample in zip(predictions, expected):
            labels = cv2.imread(str(Path('out', prediction['label_map'])), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(labels, sample['pred_sem_seg']['data'][0])
    if task == 'detection':
        assert len(predictions) == sum(len(sample['pred_instances']['scores']) for sample in expected) > 0
        coco = COCO('out/images.json')
        results = coco.loadRes('out/predictions.json')
        for image, sample in zip(images['images'], expected):
            found = results.loadAnns(results.getAnnIds(imgIds=image['id']))
            wanted = sample['pred_instances']
            np.testing.assert_allclose([one['score'] for one in found], wanted['scores'], atol=1e-5)
            assert [one['category_id'] - 1 for one in found] == wanted['labels'].tolist()
            corners = [[x, y, x + w, y + h] for x, y, w, h in (one['bbox'] for one in found)]
            np.testing.assert_allclose(corners, wanted['bboxes'], atol=1e-3)
            masks = coco_mask.decode([one['segmentation'] for one in found])
            assert (masks == coco_mask.decode(wanted['masks'])).mean() > 0.999
    assert len(images['images']) == len(expected) == 2
    assert [category['name'] for category in images['categories']] == CLASSES[task]
    for image in images['images']:
        drawn = cv2.imread(f'out/pictures/{Path(image["file_name"]).stem}.jpg')
        original = cv2.imread(image['file_name'])
        assert drawn.shape == original.shape == (image['height'], image['width'], 3)
        # Not the picture as it was, but still that picture: in the right order of channels.
        assert np.abs(drawn.astype(int) - original).max() > 40


@pytest.mark.parametrize('task', TASKS)
def test_unreadable_files_are_left_out_and_the_rest_is_finished(task, infer, capsys):
    folder = Path('mixed')
    folder.mkdir()
    for number, size in enumerate([(64, 64), (64, 64), (96, 64), (64, 96)]):
        name = 'same.png' if number == 3 else f'{"same" if number == 2 else number}.jpg'
        image = np.random.default_rng(number).integers(0, 255, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), image)
    (folder / 'broken.jpg').write_bytes(b'no image')
    (folder / 'empty.png').touch()
    (folder / 'broken.mp4').write_bytes(b'no video' * 20)
    (folder / 'notes.txt').write_text('not looked at')
    images, predictions = infer(task, folder, '--batch-size', 2, '--score-thr', 0, code=1)
    names = ['0.jpg', '1.jpg', 'same.jpg', 'same.png']
    assert [image['file_name'] for image in images['images']] == [f'mixed/{name}' for name in names]
    assert {prediction['image_id'] for prediction in predictions} == {1, 2, 3, 4}
    assert {path.name for path in Path('out/pictures').iterdir()} == {'0.jpg', '1.jpg', 'same.jpg', 'same_2.jpg'}
    error = capsys.readouterr().err
    last = error.strip().splitlines()[-1]
    assert last.startswith('infer.py: 3 files could not be read and were left out: ')
    for name in ('broken.jpg', 'empty.png', 'broken.mp4'):
        assert f'skipped mixed/{name}: ' in error and f'mixed/{name} (' in last
    assert 'Traceback' not in error


def test_batches_are_of_one_size(infer):
    pictures = [
        Picture(Path(str(i)), np.zeros(shape))
        for i, shape in enumerate('aabbbba')
        for shape in [(8, 8, 3) if shape == 'a' else (9, 8, 3)]
    ]
    assert [len(batch) for batch in batches(iter(pictures), 3)] == [2, 3, 1, 1]


def test_predictions_are_on_the_disk_file_by_file(infer, monkeypatch):
    """A run that is killed at the third image leaves the first two, in files that can be read."""
    Path('photos').mkdir()
    for number in range(4):
        cv2.imwrite(f'photos/{number}.png', np.full((40 + number, 64, 3), 60 * number, np.uint8))
    predict = Predictor.predict

    def until_the_third(self, images):
        if images[0]['img_path'].endswith('2.png'):
            raise KeyboardInterrupt
        return predict(self, images)

    monkeypatch.setattr(Predictor, 'predict', until_the_third)
    with pytest.raises(KeyboardInterrupt):
        infer('segmentation', 'photos')
    images = json.loads(Path('out/images.json').read_text())['images']
    assert [Path(image['file_name']).name for image in images] == ['0.png', '1.png']
    assert [one['image_id'] for one in json.loads(Path('out/predictions.json').read_text())] == [1, 2]
    assert {path.name for path in Path('out/label_maps').iterdir()} == {'0.png', '1.png'}


@pytest.mark.parametrize('fault', [RuntimeError('out of memory'), ValueError('cannot reshape'), KeyError('scale')])
def test_a_file_that_the_model_cannot_take_costs_no_other(fault, infer, monkeypatch, capsys):
    Path('photos').mkdir()
    for number in range(3):
        cv2.imwrite(f'photos/{number}.png', np.full((40, 64, 3), 60 * number, np.uint8))
    predict = Predictor.predict

    def but_the_second(self, images):
        if any(image['img_path'].endswith('1.png') for image in images):
            raise fault
        return predict(self, images)

    monkeypatch.setattr(Predictor, 'predict', but_the_second)
    images, predictions = infer('segmentation', 'photos', '--batch-size', 3, code=1)
    assert [Path(image['file_name']).name for image in images['images']] == ['0.png', '2.png']
    assert (
        len(predictions) == 2 and '1 files could not be read and were left out: photos/1.png' in capsys.readouterr().err
    )


def test_pictures_and_large_files_can_be_left_out(infer, capsys):
    cv2.imwrite('small.png', np.zeros((40, 64, 3), np.uint8))
    cv2.imwrite('large.png', np.zeros((80, 64, 3), np.uint8))
    images, _ = infer('segmentation', 'small.png', 'large.png', '--no-pictures', '--max-pixels', 3000, code=1)
    assert [image['file_name'] for image in images['images']] == ['small.png']
    assert not Path('out/pictures').exists()
    assert 'large.png (it has 5,120 pixels, more than the 3,000 of --max-pixels)' in capsys.readouterr().err


def test_large_photos_are_drawn_smaller_and_at_their_places():
    height, width = 1500, 6000
    box = torch.tensor([[3000.0, 600.0, 4500.0, 1200.0]])
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[0, 600:1200, 3000:4500] = True
    sample = DetDataSample(metainfo=dict(ori_shape=(height, width)))
    sample.pred_instances = InstanceData(bboxes=box, masks=mask, scores=torch.ones(1), labels=torch.zeros(1).long())
    photo = np.full((height, width, 3), 100, np.uint8)
    drawn = draw_objects(shrink(photo), sample, ['nut'], [(255, 0, 0)], 0.3)
    assert drawn.shape == (500, DRAWN_SIDE, 3)
    rows, cols = np.nonzero((drawn != 100).any(-1))
    found = np.array([cols.min(), rows.min(), cols.max(), rows.max()])
    assert np.abs(found - np.array([1000, 200, 1500, 400])).max() <= 2


def test_label_maps_are_drawn_with_the_names_of_their_classes():
    labels = np.zeros((120, 200), int)
    labels[:, 100:] = 1
    photo, palette = np.full((120, 200, 3), 100, np.uint8), [(250, 0, 0), (0, 0, 250)]
    named = draw_label_map(photo, labels, ['nut', 'bolt'], palette)
    plain = (0.4 * photo + 0.6 * np.array(palette)[labels]).round().astype(np.uint8)
    written = (named != plain).any(-1)
    for half, centre in ((written[:, :100], 50), (written[:, 100:], 50)):
        rows, cols = np.nonzero(half)
        assert abs(cols.mean() - centre) < 12 and np.ptp(rows) < 40
    np.testing.assert_array_equal(draw_label_map(photo, labels, ['', ''], palette), plain)


def test_inputs_of_every_kind(infer):
    folder = Path('photos')
    folder.mkdir()
    for name in ('b.JPG', 'a.png', 'clip.avi', 'notes.txt'):
        (folder / name).touch()
    assert find_inputs(['photos']) == [folder / name for name in ('a.png', 'b.JPG', 'clip.avi')]
    assert find_inputs(['photos/*.png', 'photos/a.png', 'photos/b.JPG']) == [folder / 'a.png', folder / 'b.JPG']
    (folder / 'odd[1].png').touch()
    assert find_inputs(['photos/odd[1].png']) == [folder / 'odd[1].png']


@pytest.mark.parametrize('task', TASKS)
def test_video(task, infer):
    make_video('clip.avi')
    images, predictions = infer(task, 'clip.avi', '--batch-size', 3, '--score-thr', 0)
    assert [(image['frame'], image['file_name'], image['height'], image['width']) for image in images['images']] == [
        (i, 'clip.avi', 46, 70) for i in range(4)
    ]
    assert {prediction['frame'] for prediction in predictions} == {0, 1, 2, 3}
    drawn = cv2.VideoCapture('out/pictures/clip.mp4')
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert (drawn.get(cv2.CAP_PROP_FRAME_HEIGHT), drawn.get(cv2.CAP_PROP_FRAME_WIDTH)) == (46, 70)
    assert drawn.get(cv2.CAP_PROP_FPS) == pytest.approx(7)
    if task == 'segmentation':
        assert sorted(path.name for path in Path('out/label_maps/clip').iterdir()) == [f'{i:06d}.png' for i in range(4)]


def test_where_nothing_is_found_the_image_is_the_picture(workplace, monkeypatch):
    """Queries of Mask2Former that find nothing are empty masks with empty boxes, and a panoptic map of no segment."""
    predictor = Predictor(config('detection'), 'detection.pth', 'cpu')
    image = np.full((32, 48, 3), (200, 100, 50), np.uint8)
    sample = DetDataSample()
    sample.pred_instances = InstanceData(
        bboxes=torch.zeros(2, 4),
        labels=torch.zeros(2).long(),
        scores=torch.ones(2),
        masks=torch.zeros(2, 32, 48).bool(),
    )
    sample.pred_panoptic_seg = PixelData(sem_seg=torch.full((1, 32, 48), len(CLASSES['detection'])))
    monkeypatch.setattr(predictor.model, 'test_step', lambda data: [sample])
    (predicted,) = predictor.predict([image])
    assert len(predicted.pred_instances) == 0
    np.testing.assert_array_equal(predictor.draw(image, predicted, 0.3), image)


def test_the_example_of_the_documentation(workplace):
    (example,) = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/custom_data.md').read_text(), re.S)
    Path('config.py').write_text(config('classification').dump())
    Path('checkpoint.pth').symlink_to('classification.pth')
    cv2.imwrite('photo.jpg', np.zeros((64, 80, 3), np.uint8))
    exec(example, {})
    assert cv2.imread('drawn.jpg').shape == (64, 80, 3)


def test_video_without_a_codec_becomes_frames(infer, monkeypatch, capsys):
    make_video('clip.avi', frames=2)
    monkeypatch.setattr(cv2, 'VideoWriter_fourcc', lambda *letters: int.from_bytes(b'none', 'little'))
    infer('classification', 'clip.avi')
    assert 'no codec here to write out/pictures/clip.mp4' in capsys.readouterr().err
    assert [path.relative_to('out/pictures').as_posix() for path in sorted(Path('out/pictures').rglob('*.*'))] == [
        'clip/000000.jpg',
        'clip/000001.jpg',
    ]


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['{config}', '{checkpoint}', 'nope.jpg'], r'there is no input /.*/nope.jpg: name an image, a folder'),
        (['{config}', '{checkpoint}', 'no*.jpg'], r'there is no input /.*/no\*.jpg'),
        (['{config}', '{checkpoint}', '/dev/zero'], 'the input /dev/zero is neither a file nor a folder'),
        (['{config}', '{checkpoint}', '{image}', '--score-thr', 'nan'], '--score-thr must be from 0 to 1, got nan'),
        (['{config}', '{checkpoint}', '{image}', '--max-pixels', 'nan'], '--max-pixels must be at least 1, got nan'),
        (['{config}', '{checkpoint}', 'bare'], 'the folder /.*/bare has no images or videos'),
        (['nope.py', '{checkpoint}', '{image}'], 'there is no config file /.*/nope.py'),
        (['{config}', 'nope.pth', '{image}'], 'needs the checkpoint /.*/nope.pth, which does not exist'),
        (['{config}', 'https://example.com/x.pth', '{image}'], 'download https://example.com/x.pth first'),
        (['{config}', 'official.pth', '{image}'], 'official.pth holds only a backbone in the official layout'),
        (['{config}', 'text.pth', '{image}'], 'text.pth is not a readable PyTorch checkpoint'),
        (['{config}', '{checkpoint}', '{image}', '--device', 'gpu9'], "the device 'gpu9' cannot be used here"),
        (['{config}', '{checkpoint}', '{image}', '--batch-size', '0'], '--batch-size must be at least 1, got 0'),
        (['{config}', '{checkpoint}', '{image}', '--out-dir', 'text.pth'], '--out-dir must be a directory'),
        (['{config}', '{checkpoint}', '{image}', '--cfg-options', 'default_scope=mmpose'], 'but the config has mmpose'),
    ],
)
def test_what_is_missing_is_said_before_the_model_is_built(arguments, message, workplace, monkeypatch, capsys):
    Path('bare').mkdir()
    Path('text.pth').write_text('text')
    torch.save({'model': {'patch_proj.0.weight': torch.zeros(1)}}, 'official.pth')
    names = dict(
        config=CONFIGS['detection'],
        checkpoint='detection.pth',
        image='data/shapes/images/validation/shapes_val_00001.jpg',
    )

    def build(*args):
        raise AssertionError('the model was built')

    monkeypatch.setattr(mmdat.apis.predictor, '_build', build)
    assert run_tool(monkeypatch, 'infer', *(argument.format(**names) for argument in arguments)) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith('infer.py: ') and re.search(message, last)
    assert not Path('work_dirs').exists()


def test_weights_of_other_heads_are_refused(workplace, monkeypatch, capsys):
    image = 'data/shapes/classification/val/circle'
    command = [CONFIGS['classification'], 'classification.pth', image, '--device', 'cpu']
    weights = torch.load('classification.pth', weights_only=False)
    weights['state_dict']['head.fc.weight'] = torch.zeros(7, 256)
    Path('classification.pth').unlink()
    torch.save(weights, 'classification.pth')
    assert run_tool(monkeypatch, 'infer', *command) == 1
    assert 'head.fc.weight is (7, 256) in the file and (4, 256) in the model' in capsys.readouterr().err
    weights['state_dict'] = {key: value for key, value in weights['state_dict'].items() if 'head' not in key}
    torch.save(weights, 'classification.pth')
    assert run_tool(monkeypatch, 'infer', *command) == 1
    assert 'it has none of the weights of the heads, such as head.fc.weight' in capsys.readouterr().err
