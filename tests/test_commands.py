"""The commands on the pages are typed, in their order, in a directory that looks like a user's.

Data and weights are made here: small pictures, weights of untrained models. What would take hours is made short by
options that are added, see :data:`SHORT`; everything else is typed as it stands.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import pytest
import test_own_data
import torch
from mmdet.datasets import CocoDataset
from official_layout import to_official
from paths import ROOT
from test_docs import TEXTS
from test_infer import make_video

from mmdat import DAT
from mmdat.apis.model import build_model
from mmdat.config.load import load_config
from mmdat.datasets import make_shapes

#: Commands that are not typed here, and what types them.
ELSEWHERE = {
    r'pip (un)?install': 'dev/release.sh, in an empty environment',
    r'bash tools/(install|demo|test)\.sh': 'continuous integration',
    r'bash tools/dist_train\.sh': 'tests/test_distributed.py, without GPUs',
    r'(bash|python) dev/': 'a release, see CONTRIBUTING.md',
    r'python benchmarks/deployment\.py': 'who measures, for docs/deploy.md',
    r'python vis_cam\.py': 'tests/test_other_libraries.py',
    r'python "\$\(python -c|mim train': 'tests/test_own_tools_of_others.py',
}

#: What is added to commands that would take hours, or taken from those that need a GPU.
ITERATION = 'train_cfg.max_iters=1 train_cfg.val_interval=1'
EPOCH = 'train_cfg.max_epochs=1 train_cfg.val_interval=1'
SHORT = {
    r'tools/(train|compare)\.py .*(_160k_|upernet)': ITERATION,
    r'tools/(train|compare)\.py .*(_1x_|_300e_|maskrcnn)': EPOCH,
    r'on_shapes_coco': 'train_dataloader.dataset.indices=2 val_dataloader.dataset.indices=2',
}
REPLACED = {'epoch_12': 'epoch_1', ' --amp': '', ' --seeds 0 1 2': ' --seeds 0'}


def blocks(page: Path, language: str) -> list:
    """The blocks of code on a page that are in a language."""
    return re.findall(rf'```{language}\n(.*?)```', TEXTS[page], re.S)


PAGES = [page for page in TEXTS if page.suffix == '.md' and blocks(page, 'bash')]


def commands(block: str) -> list:
    """The commands of a block, as they are typed here."""
    text = re.sub(r'(\s|^)#.*', '', block.replace('\\\n', ' '), flags=re.M)
    lines = [' '.join(line.split()) for line in text.splitlines()]
    typed = []
    for line in lines:
        if not line or any(re.match(pattern, line) for pattern in ELSEWHERE):
            continue
        for pattern, options in SHORT.items():
            if re.search(pattern, line) and 'max_iters' not in line:
                line += f' {options}' if '--cfg-options' in line else f' --cfg-options {options}'
        for found, replacement in REPLACED.items():
            line = line.replace(found, replacement)
        typed.append(line)
    return typed


def test_commands_are_found_and_made_short():
    text = 'pip install .  # all\n# Then\npython tools/train.py configs/a_1x_coco.py \\\n    --amp\nbash tools/demo.sh'
    assert commands(text) == [f'python tools/train.py configs/a_1x_coco.py --cfg-options {EPOCH}']


LAYOUTS = {
    'coco_folder': test_own_data.make_coco,
    'voc_folder': test_own_data.make_voc,
    'image_label_folder': test_own_data.make_maps,
    'class_folders': test_own_data.make_folders,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current directory: the checkout, public data, and files of the names that the pages use."""
    for path in ROOT.iterdir():
        if path.name in ('benchmarks', 'configs', 'demo', 'mmdat', 'tools'):
            (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(test_own_data, 'SIZE', (32, 640))  # thin ones, which full-size recipes do not make large
    make('coco_folder', 'data/coco')
    for split in ('train', 'val'):
        file = Path(f'data/coco/annotations/{split}.json')
        data = json.loads(file.read_text())
        data['categories'] = [dict(id=i, name=name) for i, name in enumerate(CocoDataset.METAINFO['classes'], 1)]
        file.with_name(f'instances_{split}2017.json').write_text(json.dumps(data))
        os.rename(f'data/coco/{split}', f'data/coco/{split}2017')
    make('image_label_folder', 'data/made')
    for split, name in (('train', 'training'), ('val', 'validation')):
        for kind, kinds in (('images', 'images'), ('labels', 'annotations')):
            target = Path('data/ade/ADEChallengeData2016', kinds)
            target.mkdir(parents=True, exist_ok=True)
            os.rename(f'data/made/{kind}/{split}', target / name)
        for file in Path('data/ade/ADEChallengeData2016/annotations', name).iterdir():  # its classes count from 1
            cv2.imwrite(str(file), cv2.imread(str(file), cv2.IMREAD_UNCHANGED) + 1)
    make_shapes('data/shapes')
    for name in ('my_images', 'photos'):
        shutil.copytree('data/coco/val2017', name)
    shutil.copy('my_images/0.jpg', 'image.jpg')
    make_video('film.mp4')
    save_weights('configs/maskrcnn_dat_t_1x_coco.py', 'checkpoint.pth', 'epoch_1.pth')
    save_weights('configs/demo/maskrcnn_datnano_shapes.py', 'work_dirs/demo/maskrcnn_datnano_shapes/epoch_9.pth')
    os.mkdir('weights')
    torch.save(dict(model=to_official(DAT('tiny', out_indices=(3,)).state_dict())), 'weights/dat_tiny_in1k_224.pth')
    monkeypatch.setenv('MMDAT_WEIGHTS', 'weights')
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]))
    monkeypatch.setenv('PATH', os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']]))
    yield tmp_path
    shutil.rmtree(tmp_path)  # a gigabyte


def make(layout: str, folder: str) -> None:
    """Data of one's own in a folder, in the place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir='.') as scratch:
        with pytest.MonkeyPatch.context() as there:
            there.chdir(scratch)
            LAYOUTS[layout]()
        Path(folder).parent.mkdir(exist_ok=True)
        os.rename(f'{scratch}/data', folder)


def save_weights(config: str, *files: str) -> None:
    state_dict = build_model(load_config(config)).state_dict()
    for file in files:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state_dict=state_dict), file)


@pytest.mark.slow
@pytest.mark.parametrize('page', PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_do_what_they_say(page, place):
    if 'export_onnx.py' in TEXTS[page]:
        pytest.importorskip('onnxscript', reason='pip install -r requirements/export.txt')
    for own in blocks(page, 'python'):  # the config that a command names
        Path('my_retinanet_swin_t.py').write_text(own)
    for block in blocks(page, 'bash'):
        for layout in LAYOUTS:
            if layout in block:
                make(layout, 'my_data')
        if '_annotations.coco.json' in block:  # as Roboflow exports it
            for split, name in (('train', 'train'), ('val', 'valid')):
                os.rename(f'my_data/annotations/{split}.json', f'my_data/{split}/_annotations.coco.json')
                os.rename(f'my_data/{split}', f'my_data/{name}')
        script = '\n'.join(['set -ex', *commands(block)])
        done = subprocess.run(['bash', '-c', script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert done.returncode == 0, f'{script}\n{done.stdout[-5000:]}'
