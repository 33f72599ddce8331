"""What users feed the tools by mistake: one sentence names the thing and the cure, and nothing is overwritten.

:data:`CASES` is the list; ``python tests/test_bad_input.py`` writes it into docs/measurements/reliability.md.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any, Callable, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from in_process import run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from mmdat import DAT
from mmdat.datasets import make_shapes

ROOT = Path(__file__).parents[1]
DETECTOR = ROOT / 'configs/demo/maskrcnn_datnano_shapes.py'
CLASSIFIER = ROOT / 'configs/demo/datnano_shapes.py'
OWN = ROOT / 'configs/own_data'
SHAPES = Path('data/shapes')
TRAIN_JSON = Path('my_data/annotations/train.json')
CIRCLE = SHAPES / 'classification/train/circle'
IMAGE = SHAPES / 'images/validation/shapes_val_00001.jpg'
WORKS = 'works'


def nothing() -> None:
    pass


def write(path: Any, content: Any = b'') -> Callable[[], None]:
    """Replace a file by bytes, text, or an image."""

    def make() -> None:
        if isinstance(content, np.ndarray):
            assert cv2.imwrite(str(path), content)
        elif isinstance(content, str):
            Path(path).write_text(content)
        else:
            Path(path).write_bytes(content)

    return make


def coco(change: Callable[[dict], Any]) -> Callable[[], None]:
    """Change the annotations for training of the folder my_data."""

    def make() -> None:
        annotations = json.loads(TRAIN_JSON.read_text())
        change(annotations)
        TRAIN_JSON.write_text(json.dumps(annotations))

    return make


def of_the_class(image: Any) -> Callable[[], None]:
    """Put an image, or bytes in the place of one, into the place of the classifier's first training image."""
    suffix = '.png' if isinstance(image, np.ndarray) else '.jpg'

    def make() -> None:
        shutil.rmtree(CIRCLE)
        CIRCLE.mkdir()
        write(CIRCLE / f'x{suffix}', image)()

    return make


def save(content: Callable[[], Any]) -> Callable[[], None]:
    return lambda: torch.save(content(), 'x.pth')


def remove(path: Path) -> Callable[[], None]:
    return lambda: shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path) -> Callable[[], None]:
    return lambda: (shutil.rmtree(path), path.mkdir())


def other_arch() -> dict:
    return {f'backbone.{key}': value for key, value in DAT('tiny').state_dict().items()}


def whole(config: Path, **change: Any) -> dict:
    """The state dict of an untrained model."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    cfg.merge_from_dict(change)
    return dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={})


def train(config: Path, *options: str) -> list:
    return ['train', config, '--work-dir', 'work', '--cfg-options', *QUICK, *options]


def own(*options: str) -> list:
    command = ['train', DETECTOR, '--override', OWN / 'coco_folder.py', '--data', 'my_data', '--work-dir', 'work']
    return [*command, '--cfg-options', *QUICK, *options]


QUICK = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'custom_hooks=[]'] + [
    f'{part}_dataloader.{option}'
    for part in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
]
TEST = ['test', CLASSIFIER, 'x.pth', '--work-dir', 'work', '--cfg-options', *QUICK]
START = train(CLASSIFIER, 'load_from=x.pth')
PRETRAINED = train(CLASSIFIER, 'model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=x.pth')
BACKBONE = 'model.backbone.'
VISUALIZE = ['visualize_deformation', IMAGE, '--config', CLASSIFIER]
GRAY = np.full((64, 64), 90, np.uint8)


class Case(NamedTuple):
    """One mistake: how it is made, the command, and a part of the sentence, … for anything (or that it works)."""

    name: str
    make: Callable[[], Any]
    command: list
    says: str


CASES = [
    # --- data
    Case('no dataset', remove(SHAPES), train(DETECTOR), 'needs the directory …data/shapes… make the demo data'),
    Case(
        'empty image folder',
        empty(SHAPES / 'images/training'),
        train(DETECTOR),
        'images/training, which is empty: make the demo data',
    ),
    Case(
        'data folder that does not exist',
        remove(Path('my_data')),
        own(),
        'there is no directory …my_data with your data: name yours with --data',
    ),
    Case(
        '--data without a layout',
        nothing,
        ['train', CLASSIFIER, '--data', 'my_data'],
        '--data my_data needs --override with the layout',
    ),
    Case(
        'annotations that are no JSON',
        write(TRAIN_JSON, 'hello'),
        own(),
        'train.json is no annotation file in COCO format: JSON',
    ),
    Case(
        'annotations in another format',
        write(TRAIN_JSON, '{"shapes": []}'),
        own(),
        'train.json is no annotation file in COCO format: it has no list "images"',
    ),
    Case(
        'no categories',
        coco(lambda a: a.update(categories=[])),
        own(),
        'train.json lists no categories: docs/custom_data.md shows',
    ),
    Case(
        'no images listed',
        coco(lambda a: a.update(images=[])),
        own(),
        'train.json lists no images: docs/custom_data.md shows',
    ),
    Case(
        'images without annotations',
        coco(lambda a: a.update(annotations=[])),
        own(),
        'train.json lists no annotations: docs/custom_data.md shows',
    ),
    Case(
        'category id that is not listed',
        coco(lambda a: a['annotations'][0].update(category_id=99)),
        own(),
        'category_id 99, but its categories are 1, 2, 3, 4: add the category, or correct the annotations',
    ),
    Case(
        'annotation of an image that is not listed',
        coco(lambda a: a['annotations'][0].update(image_id=99)),
        own(),
        'image_id 99, but lists no such image: add it, or remove them',
    ),
    Case(
        'image file that is missing',
        coco(lambda a: a['images'][0].update(file_name='nope.jpg')),
        own(),
        '1 of 2 images of … are missing; the first is my_data/train/nope.jpg: put them there, or correct file_name',
    ),
    Case(
        'training and validation with other categories',
        coco(lambda a: a['categories'][0].update(name='disc')),
        own(),
        'both must list the same in the same order',
    ),
    Case(
        'boxes for a model of masks',
        coco(lambda a: [one.pop('segmentation') for one in a['annotations']]),
        own(),
        'have no segmentation, but the config learns masks: choose a detector of boxes',
    ),
    Case(
        'mask polygon of two points',
        coco(lambda a: a['annotations'][0].update(segmentation=[[1, 1, 9, 9]])),
        own(),
        WORKS,
    ),
    Case('grayscale image', of_the_class(GRAY), train(CLASSIFIER), WORKS),
    Case('16-bit image', of_the_class(GRAY.astype(np.uint16) * 256), train(CLASSIFIER), WORKS),
    Case('image with transparency', of_the_class(np.full((64, 64, 4), 90, np.uint8)), train(CLASSIFIER), WORKS),
    Case(
        'image that is none',
        of_the_class(b'hello'),
        train(CLASSIFIER),
        'x.jpg is not a readable image: replace it, or take it out',
    ),
    Case(
        'empty image file',
        of_the_class(b''),
        train(CLASSIFIER),
        'an image file of the dataset is empty (find … replace it',
    ),
    Case(
        'truncated image to infer from',
        lambda: write(IMAGE, IMAGE.read_bytes()[:200])(),
        ['infer', CLASSIFIER, 'whole.pth', IMAGE, '--device', 'cpu', '--out-dir', 'out'],
        '1 files could not be read and were left out: …it is no image that OpenCV knows',
    ),
    Case(
        'image below 32 pixels',
        of_the_class(GRAY[:16, :16]),
        train(CLASSIFIER, 'train_dataloader.batch_size=1'),
        'the image must have at least 32x32 pixels, got 16x16: resize or pad it in the pipeline',
    ),
    # --- checkpoints
    Case(
        'checkpoint that does not exist',
        nothing,
        TEST,
        'needs the checkpoint …/x.pth, which does not exist: put the file there or correct the path',
    ),
    Case('empty file', write('x.pth'), TEST, 'x.pth is not a readable PyTorch checkpoint …: choose another file'),
    Case(
        'text file', write('x.pth', 'hello'), TEST, 'x.pth is not a readable PyTorch checkpoint …: choose another file'
    ),
    Case(
        'half a checkpoint',
        lambda: write('x.pth', Path('whole.pth').read_bytes()[:20000])(),
        TEST,
        'x.pth is not a readable PyTorch checkpoint …: choose another file',
    ),
    Case(
        'checkpoint that holds a list',
        save(lambda: [1]),
        TEST,
        'x.pth holds no checkpoint, but a list: choose another file',
    ),
    Case('checkpoint of another arch', save(other_arch), START, "are of arch='tiny', but the backbone is …: choose"),
    Case(
        'heads that fit, with the backbone of another model',
        save(lambda: {'backbone.conv1.weight': torch.ones(1), 'head.fc.bias': torch.ones(4)}),
        START,
        'are not of a DAT; they have, for example, conv1.weight: choose a checkpoint',
    ),
    Case(
        'init_cfg with weights of another model',
        save(lambda: {'conv1.weight': torch.ones(1)}),
        PRETRAINED,
        'are not of a DAT; they have, for example, conv1.weight: choose a checkpoint',
    ),
    Case(
        'load_from with weights of another model',
        save(lambda: {'conv1.weight': torch.ones(1)}),
        START,
        'x.pth has no weights of this model; it has, for example, conv1.weight: choose a checkpoint',
    ),
    Case(
        'checkpoint of another toolbox',
        save(lambda: whole(DETECTOR)),
        TEST,
        'x.pth does not fit the config: it has none of the weights of the heads, such as head.fc',
    ),
    Case(
        'official backbone for a whole model',
        save(lambda: {'model': {'patch_proj.0.weight': torch.ones(1)}}),
        TEST,
        'x.pth holds only a backbone in the official layout, not the whole model: load it into …init_cfg',
    ),
    Case(
        'checkpoint with another number of classes',
        save(lambda: whole(CLASSIFIER, **{'model.head.num_classes': 7})),
        TEST,
        'head.fc… is (7,… in the file and (4,… in the model; take the config',
    ),
    Case(
        'resuming from weights only',
        save(lambda: whole(CLASSIFIER)),
        [*START[:2], '--resume', 'x.pth', *START[2:-1]],
        'x.pth has no optimizer, so no run can be resumed from it: start from its weights with load_from',
    ),
    Case(
        'converting weights of another model',
        save(lambda: {'conv1.weight': torch.ones(1)}),
        ['convert_checkpoint', 'x.pth', 'out.pth'],
        'x.pth: the file holds no whole DAT: choose another file',
    ),
    # --- config and options
    Case(
        'config that does not exist',
        nothing,
        ['train', 'nope.py'],
        'there is no config file …/nope.py: correct the path',
    ),
    Case(
        'config that is no Python',
        write('x.py', 'model = ('),
        ['train', 'x.py'],
        'x.py cannot be read (SyntaxError…: correct it',
    ),
    Case(
        'config without a model',
        write('x.py', 'a = 1'),
        ['train', 'x.py'],
        'x.py has no model=dict(...): start from one of configs/',
    ),
    Case(
        'config without training',
        write('x.py', 'model = dict(type="DAT")'),
        ['train', 'x.py'],
        'has no train_dataloader, so nothing can be trained: start from one of configs/',
    ),
    Case(
        'config without a DAT',
        write('x.py', f'_base_ = "{CLASSIFIER}"\nmodel = dict(backbone=dict(_delete_=True, type="ResNet", depth=18))'),
        ['visualize_deformation', IMAGE, '--config', 'x.py'],
        'has no backbone of type mmdat.DAT: choose another config',
    ),
    Case(
        'unknown option of the config',
        nothing,
        train(CLASSIFIER, 'trian_cfg.max_epochs=2'),
        'trian_cfg.max_epochs changes nothing, … did you mean train_cfg',
    ),
    Case(
        'arguments of another backbone',
        nothing,
        train(CLASSIFIER, BACKBONE + 'norm_eval=True', BACKBONE + 'depth=50'),
        'DAT takes no depth, norm_eval: put _delete_=True into the dict of the backbone',
    ),
    Case(
        'unknown argument of another part',
        nothing,
        train(CLASSIFIER, 'model.head.depth=3'),
        "the config cannot be used, as …got an unexpected keyword argument 'depth': correct or remove",
    ),
    Case(
        'unknown type',
        nothing,
        train(CLASSIFIER, 'model.head.type=NoHead'),
        'NoHead is not in the …: correct the type',
    ),
    Case(
        'option below a value',
        nothing,
        train(CLASSIFIER, 'train_cfg.max_epochs.more=1'),
        '--cfg-options do not fit the config',
    ),
    Case(
        'option without a value', nothing, ['train', CLASSIFIER, '--cfg-options', 'a'], "'a' is not KEY=VALUE, such as"
    ),
    Case('unknown arch', nothing, train(CLASSIFIER, BACKBONE + 'arch=huge'), "unknown arch 'huge'; choose one of tiny"),
    Case(
        'stage spec of the wrong length',
        nothing,
        train(CLASSIFIER, BACKBONE + 'arch.stage_spec=("L","S","LDL","D")'),
        'stage_spec[2]… names 3 blocks, but depths[2]=2',
    ),
    Case(
        'stage spec with an unknown letter',
        nothing,
        train(CLASSIFIER, BACKBONE + 'arch.stage_spec=("L","S","LX","D")'),
        "unknown letter 'X'; the mixers are",
    ),
    Case(
        'out_indices out of range',
        nothing,
        train(CLASSIFIER, BACKBONE + 'out_indices=(7,)'),
        'out_indices must name different stages from 0 to 3, …, got (7,)',
    ),
    Case(
        'window of one', nothing, train(CLASSIFIER, BACKBONE + 'window_size=1'), 'window_size must be at least 2, got 1'
    ),
    Case(
        'batch of none',
        nothing,
        train(CLASSIFIER, 'train_dataloader.batch_size=0'),
        'train_dataloader.batch_size must be a whole number from 1 on, got 0',
    ),
    Case(
        'negative batch',
        nothing,
        train(CLASSIFIER, 'train_dataloader.batch_size=-2'),
        'batch_size must be a whole number from 1 on, got -2',
    ),
    Case(
        'batch of words',
        nothing,
        train(CLASSIFIER, 'train_dataloader.batch_size=two'),
        'train_dataloader.batch_size=two must be a number, such as',
    ),
    Case(
        'persistent workers without workers',
        nothing,
        train(CLASSIFIER, 'train_dataloader.persistent_workers=True'),
        'num_workers=0: set train_dataloader.persistent_workers=False as well',
    ),
    Case(
        "number of classes that is not the data's",
        nothing,
        train(CLASSIFIER, 'model.head.num_classes=9'),
        'has 4 classes, but the heads of the model have num_classes=9: set num_classes of each to 4',
    ),
    # --- places and other arguments
    Case(
        'work directory that cannot be written',
        write('file', 'precious'),
        ['train', CLASSIFIER, '--work-dir', 'file/work', '--cfg-options', *QUICK],
        'the work directory …file/work cannot be written …: name another with --work-dir',
    ),
    Case(
        'no space for a checkpoint',
        lambda: full('work/epoch_1.pth'),
        train(CLASSIFIER),
        'work/epoch_1.pth cannot be written (No space left on device): free some space',
    ),
    Case(
        'output directory that is a file',
        write('out', 'precious'),
        ['infer', CLASSIFIER, 'whole.pth', IMAGE, '--out-dir', 'out'],
        '--out-dir must be a directory, but out is a file',
    ),
    Case(
        'target that exists',
        lambda: shutil.copy('whole.pth', 'out.pth'),
        ['convert_checkpoint', 'whole.pth', 'out.pth'],
        'out.pth exists: name another file, or overwrite it with --force',
    ),
    Case(
        'unknown layer', nothing, [*VISUALIZE, '--layer', 'nope'], 'no deformable layer nope: the layers are stages.2'
    ),
    Case(
        'query outside of the image', nothing, [*VISUALIZE, '--query', '900,9'], 'query 900,9 is outside of the image'
    ),
    Case('query that is no pixel', nothing, [*VISUALIZE, '--query', 'here'], '--query takes pixels as x,y such as'),
]


def full(path: str) -> None:
    """Make the disk full for the file that is about to be written in another's place."""
    Path(path).parent.mkdir()
    Path(f'{path}.part').symlink_to('/dev/full')


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """The demo data, the same as a folder of one's own, and an untrained checkpoint."""
    place = tmp_path_factory.mktemp('place')
    shapes = place / 'data/shapes'
    make_shapes(shapes, num_train=2, num_val=1, size=64)
    (place / 'my_data/annotations').mkdir(parents=True)
    for ours, theirs in (('train', 'training'), ('val', 'validation')):
        shutil.copytree(shapes / 'images' / theirs, place / 'my_data' / ours)
        shutil.copy(shapes / f'annotations/instances_{ours}.json', place / f'my_data/annotations/{ours}.json')
    torch.manual_seed(0)
    torch.save(whole(CLASSIFIER), place / 'whole.pth')
    return place


def files(directory: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file() and not path.is_symlink()}


@pytest.mark.parametrize('case', CASES, ids=[case.name for case in CASES])
def test_bad_input(case, place, tmp_path, monkeypatch, capsys):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    case.make()
    before = files(tmp_path)
    code = run_tool(monkeypatch, *case.command)
    last = (capsys.readouterr().err.strip().splitlines() or [''])[-1]
    after = files(tmp_path)
    assert {path: after.get(path) for path in before} == before
    if case.says == WORKS:
        assert code == 0, last
    else:
        assert code != 0
        assert re.search(re.escape(case.says).replace('…', '.*'), last), last


def test_the_names_are_different():
    assert len({case.name for case in CASES}) == len(CASES) >= 25


# --- documentation ---------------------------------------------------------------------------------

DOCUMENT = ROOT / 'docs/measurements/reliability.md'


def document() -> str:
    """docs/measurements/reliability.md with the cases in the table of bad input."""
    rows = ['| input | tool | what happens: it works, or stops and says |', '|---|---|---|']
    rows += [f'| {case.name} | {case.command[0]} | {case.says.replace("|", " ")} |' for case in CASES]
    head, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + '\n' + '\n'.join(rows) + '\n' + END + tail


BEGIN, END = '<!-- written by python tests/test_bad_input.py -->', '<!-- end of what it writes -->'


def test_the_table_of_the_documentation_is_that_of_the_cases():
    assert DOCUMENT.read_text() == document(), 'run python tests/test_bad_input.py'


if __name__ == '__main__':
    DOCUMENT.write_text(document())
