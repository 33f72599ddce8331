"""Nothing that the tools read runs code, and nothing is written where an annotation file wants it.

Each hostile file would make the directory ``ran``; at last its test reads it the plain way, to see that it does.
"""

import io
import json
import os
import pickle
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from in_process import run_tool
from mmengine.config import Config
from mmengine.fileio import load
from mmengine.logging import HistoryBuffer

from mmdat import DAT
from mmdat.apis import build_model
from mmdat.checkpoints.reading import load_pickle, load_weights
from mmdat.checkpoints.without_code import reading_without_code
from mmdat.datasets import make_shapes
from mmdat.errors import CheckpointError
from mmdat.export.models import load_model

DEMO = Path(__file__).parents[1] / 'configs/demo'
CLASSIFIER = DEMO / 'datnano_shapes.py'
IMAGE = 'data/shapes/images/validation/shapes_val_00001.jpg'
FEW = ['--cfg-options', 'custom_hooks=[]'] + [
    f'{part}_dataloader.{option}'
    for part in ('train', 'val', 'test')
    for option in ('num_workers=0', 'persistent_workers=False', 'batch_size=2')
]
QUICK = [*FEW, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']


class Hostile:
    def __reduce__(self):
        return os.makedirs, (str(Path('ran').absolute()), 0o777, True)


def ran():
    return Path('ran').exists()


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Demo data and ``epoch_1.pth`` of a run with them."""
    place = tmp_path_factory.mktemp('place')
    make_shapes(place / 'data/shapes', num_train=2, num_val=1, size=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert run_tool(patch, 'train', CLASSIFIER, '--work-dir', 'run', *QUICK) == 0
    shutil.move(place / 'run/epoch_1.pth', place)
    shutil.rmtree(place / 'run')
    return place


@pytest.fixture
def workplace(place, tmp_path, monkeypatch):
    shutil.copytree(place, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def hostile(workplace):
    """``bad.pth``: a whole checkpoint with hostile objects in several places."""
    checkpoint = torch.load('epoch_1.pth', weights_only=False)
    checkpoint['meta']['more'] = Hostile()
    checkpoint['bad'] = [Hostile()]
    torch.save(checkpoint, 'bad.pth')
    return workplace


INIT_CFG = ['model.backbone.init_cfg.type=Pretrained', 'model.backbone.init_cfg.checkpoint=bad.pth']
TRAIN = [CLASSIFIER, '--work-dir', 'work']
# Those that only need weights do their work; a run that is to go on needs all of the file, and stops.
COMMANDS = {
    'train: load_from': (0, 'train', [*TRAIN, *QUICK, 'load_from=bad.pth']),
    'train: init_cfg': (0, 'train', [*TRAIN, *QUICK, *INIT_CFG]),
    'train: --resume PATH': (1, 'train', [*TRAIN, '--resume', 'bad.pth', *QUICK, 'train_cfg.max_epochs=2']),
    'train: --resume': (1, 'train', [*TRAIN, '--resume', *QUICK, 'train_cfg.max_epochs=2']),
    'test': (0, 'test', [CLASSIFIER, 'bad.pth', '--work-dir', 'work', *QUICK]),
    'infer': (0, 'infer', [CLASSIFIER, 'bad.pth', IMAGE, '--device', 'cpu']),
    'infer: init_cfg': (
        0,
        'infer',
        [CLASSIFIER, 'epoch_1.pth', IMAGE, '--device', 'cpu', '--cfg-options', *INIT_CFG],
    ),
    'visualize': (0, 'visualize_deformation', [IMAGE, '--config', CLASSIFIER, '--checkpoint', 'bad.pth']),
    'visualize: init_cfg': (
        0,
        'visualize_deformation',
        [IMAGE, '--config', CLASSIFIER, '--cfg-options', *INIT_CFG],
    ),
    'convert': (0, 'convert_checkpoint', ['bad.pth', 'out.pth']),
}


@pytest.mark.parametrize('command', COMMANDS)
def test_no_tool_runs_code_of_a_checkpoint(command, hostile, monkeypatch, capsys):
    code, tool, args = COMMANDS[command]
    if args[-1] == 'train_cfg.max_epochs=2' and 'bad.pth' not in args:
        Path('work').mkdir()
        shutil.copy('bad.pth', 'work/epoch_1.pth')
        Path('work/last_checkpoint').write_text('work/epoch_1.pth')
    assert run_tool(monkeypatch, tool, *args) == code
    assert not ran()
    if code:
        assert 'could run code' in capsys.readouterr().err
    torch.load('bad.pth', weights_only=False)
    assert ran()


@pytest.mark.parametrize(
    'command',
    ['train: load_from', 'train: --resume PATH', 'test', 'infer', 'visualize', 'visualize: init_cfg'],
)
def test_files_that_are_trusted_are_read_whole(command, hostile, monkeypatch):
    _, tool, args = COMMANDS[command]
    args = [args[0], '--trust-files', *args[1:]] if tool != 'infer' else [*args, '--trust-files']
    assert run_tool(monkeypatch, tool, *args) == 0
    assert ran()
    if tool in ('train', 'test'):
        (log,) = Path('work').glob('*/*.log')
        assert 'Files are trusted (--trust-files)' in log.read_text()


@pytest.mark.parametrize('source, whole', [('tiny', False), (CLASSIFIER, False), ('segmentor', True)])
def test_export_runs_no_code_of_a_checkpoint(source, whole, hostile):
    if source == 'segmentor':
        source = DEMO / 'upernet_datnano_shapes.py'
    weights = DAT('tiny').state_dict() if source == 'tiny' else torch.load('epoch_1.pth', weights_only=False)
    torch.save(dict(state_dict=weights.get('state_dict', weights), bad=Hostile()), 'bad.pth')
    if whole:
        with pytest.raises(CheckpointError, match='lacks weights of the model'):
            load_model(str(source), 'bad.pth', whole)
    else:
        load_model(str(source), 'bad.pth', whole)
    assert not ran()
    torch.load('bad.pth', weights_only=False)
    assert ran()


def test_resuming_runs_no_config_of_a_checkpoint(workplace, monkeypatch):
    """MMEngine runs the text ``config`` of the meta data as Python; no pickled code is needed for it."""
    checkpoint = torch.load('epoch_1.pth', weights_only=False)
    checkpoint['meta']['config'] = text = f'__import__("os").mkdir({str(workplace / "ran")!r})\n'
    torch.save(checkpoint, 'bad.pth')
    assert run_tool(monkeypatch, 'train', *TRAIN, '--resume', 'bad.pth', *QUICK, 'train_cfg.max_epochs=2') == 0
    assert Path('work/epoch_2.pth').exists() and not ran()
    Config.fromstring(text, file_format='.py')
    assert ran()


@pytest.mark.parametrize('address', ['http://127.0.0.1:9/bad.pth', 'https://127.0.0.1:9/bad.pth'])
def test_files_of_addresses_are_read_likewise(address, hostile, monkeypatch):
    """The file is in the cache of downloads already."""
    monkeypatch.setenv('TORCH_HOME', str(hostile / 'cache'))
    (hostile / 'cache/hub/checkpoints').mkdir(parents=True)
    shutil.copy('bad.pth', 'cache/hub/checkpoints')
    assert run_tool(monkeypatch, 'test', CLASSIFIER, address, '--work-dir', 'work', *QUICK) == 0
    assert not ran()


def test_an_address_without_a_server_ends_in_one_sentence(workplace, monkeypatch, capsys):
    monkeypatch.setenv('TORCH_HOME', 'cache')
    code = run_tool(monkeypatch, 'test', CLASSIFIER, 'http://127.0.0.1:9/x.pth', '--work-dir', 'work', *QUICK)
    assert code == 1
    assert 'http://127.0.0.1:9/x.pth cannot be downloaded' in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize('suffix', ['pkl', 'pickle', 'yaml', 'yml'])
def test_annotation_files_run_no_code(suffix, workplace, monkeypatch, capsys):
    path = Path(f'data/shapes/bad.{suffix}')
    if suffix in ('pkl', 'pickle'):
        path.write_bytes(pickle.dumps(dict(metainfo={}, data_list=[Hostile()])))
    else:
        path.write_text(f'data_list:\n- !!python/object/apply:os.mkdir ["{workplace / "ran"}"]\n')
    config = Path('mine.py')
    config.write_text(
        f'_base_ = "{CLASSIFIER}"\n'
        # A dataset that leaves its annotations to MMEngine, as most do.
        f'train_dataloader = dict(dataset=dict(_delete_=True, type="MultiLabelDataset", ann_file="{path}"))\n'
    )
    assert run_tool(monkeypatch, 'train', config, '--work-dir', 'work', *QUICK) == 1
    assert not ran()
    assert 'of the data ' in capsys.readouterr().err.splitlines()[-1]
    load(str(path))
    assert ran()


@reading_without_code()
def test_plain_annotations_are_read(tmp_path):
    plain = dict(metainfo=dict(classes=('a',)), data_list=[dict(img_path='x', gt_label=[1, 2.5], flag=None)])
    (tmp_path / 'plain.pkl').write_bytes(pickle.dumps(dict(plain, boxes=np.arange(6.0).reshape(2, 3))))
    loaded = load(str(tmp_path / 'plain.pkl'))
    assert np.array_equal(loaded.pop('boxes'), np.arange(6.0).reshape(2, 3)) and loaded == plain
    (tmp_path / 'plain.yaml').write_text(yaml.safe_dump(dict(plain, metainfo={})))
    assert load(str(tmp_path / 'plain.yaml')) == dict(plain, metainfo={})


# --- what is read ----------------------------------------------------------------------------------


@pytest.mark.parametrize('zipped', [True, False])
def test_checkpoints_are_read_as_they_were_saved(zipped, tmp_path):
    weights = {'a': torch.randn(3, 4), 'b': torch.nn.Parameter(torch.ones(2)), 'half': torch.ones(1).half()}
    weights['a'].mark = True  # an attribute, as FSDP puts on tensors
    logs = HistoryBuffer([1.0, 2.5], [1, 3])
    numbers = dict(i=np.int64(3), f=np.float32(0.5), b=np.bool_(True), column=np.asfortranarray(np.ones((2, 3), 'f4')))
    path = tmp_path / 'a.pth'
    torch.save(
        dict(state_dict=weights, meta=dict(classes=('x', 'y'), some={1, 2}, **numbers), message_hub=dict(loss=logs)),
        path,
        _use_new_zipfile_serialization=zipped,
    )
    loaded = load_weights(path, everything=True)
    for key, value in weights.items():
        assert torch.equal(loaded['state_dict'][key], value) and loaded['state_dict'][key].dtype == value.dtype
    assert loaded['meta']['classes'] == ('x', 'y') and loaded['meta']['some'] == {1, 2}
    for key, value in numbers.items():
        assert np.array_equal(loaded['meta'][key], value) and type(loaded['meta'][key]) is type(value)
        assert loaded['meta'][key].dtype == value.dtype
    read = loaded['message_hub']['loss']
    assert [list(part) for part in read.data] == [[1.0, 2.5], [1, 3]] and read.mean() == logs.mean()


def test_checkpoints_of_training_are_read_whole(workplace):
    loaded = load_weights('epoch_1.pth', everything=True)
    expected = torch.load('epoch_1.pth', weights_only=False)
    assert loaded.keys() == expected.keys()
    for key in ('optimizer', 'param_schedulers', 'meta'):
        assert repr(loaded[key]) == repr(expected[key])
    logs, expected_logs = (checkpoint['message_hub']['log_scalars'] for checkpoint in (loaded, expected))
    assert logs.keys() == expected_logs.keys()
    for key, log in logs.items():
        assert type(log) is HistoryBuffer and np.array_equal(log.data, expected_logs[key].data)


@pytest.mark.parametrize('zipped', [True, False])
def test_other_objects_are_left_out_or_refused(zipped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(
        dict(state_dict={'a': torch.ones(1)}, bad=Hostile(), more={1: Hostile()}),
        'bad.pth',
        _use_new_zipfile_serialization=zipped,
    )
    assert torch.equal(load_weights('bad.pth')['state_dict']['a'], torch.ones(1))
    with pytest.raises(CheckpointError, match='bad.pth holds os.makedirs.*could run code.*not be resumed'):
        load_weights('bad.pth', everything=True)
    assert not ran()


class ForgedDType:
    """Makes arrays of pointers that say they are none: numpy would follow whatever addresses a file has."""

    def __reduce__(self):
        return np.dtype, ('O8', False, True), (3, '|', None, None, None, -1, -1, 0)


def test_no_array_of_pointers_is_made(tmp_path):
    assert pickle.loads(pickle.dumps(ForgedDType())).hasobject is False
    torch.save(dict(bad=ForgedDType()), tmp_path / 'bad.pth')
    with pytest.raises(CheckpointError, match='not of numbers'):
        load_weights(tmp_path / 'bad.pth')


def test_torchscript_is_not_run(tmp_path):
    torch.jit.save(torch.jit.trace(torch.nn.ReLU(), torch.ones(1)), tmp_path / 'script.pth')
    with pytest.raises(CheckpointError, match='script.pth is not a readable .*TorchScript'):
        load_weights(tmp_path / 'script.pth')


@pytest.mark.parametrize(
    'content, message',
    [(None, 'there is no checkpoint /.*/a.pth'), (b'hello', 'not a readable'), (b'', 'not a readable')],
)
def test_what_is_no_checkpoint(content, message, tmp_path):
    path = tmp_path / 'a.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_weights(path)


def test_what_holds_no_dict(tmp_path):
    torch.save([1], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='list.pth holds no checkpoint'):
        load_weights(tmp_path / 'list.pth')


# --- what is written -------------------------------------------------------------------------------


def coco(name):
    path = Path('data/shapes/annotations/instances_val.json')
    annotations = json.loads(path.read_text())
    annotations['images'][0]['file_name'] = name
    path.write_text(json.dumps(annotations))
    return []


def listed(name):
    """For mmseg and mmpretrain: a text file that lists the images."""
    Path('data/shapes/list.txt').write_text(str(Path(name).with_suffix('')))
    return [f'test_dataloader.dataset.ann_file={Path("data/shapes/list.txt").absolute()}']


@pytest.mark.parametrize('absolute', [False, True])
@pytest.mark.parametrize('config, name_images', [('maskrcnn_datnano_shapes', coco), ('upernet_datnano_shapes', listed)])
def test_pictures_stay_where_they_belong(config, name_images, absolute, workplace, monkeypatch):
    """File names of annotations that lead out of the data root: what is written appears below the given directories."""
    (workplace / 'elsewhere').mkdir()
    image = shutil.copy(IMAGE, workplace / 'elsewhere/x.jpg')
    shutil.copy(IMAGE.replace('images', 'annotations').replace('jpg', 'png'), workplace / 'elsewhere/x.png')
    options = name_images(str(image) if absolute else '../../../../elsewhere/x.jpg')
    save_untrained(DEMO / f'{config}.py', 'weights.pth')
    before = {path: path.read_bytes() for path in workplace.rglob('*') if path.is_file()}
    common = ['--work-dir', 'work', '--show-dir', 'pictures', *FEW, *options]
    assert run_tool(monkeypatch, 'test', DEMO / f'{config}.py', 'weights.pth', *common) == 0
    after = {path: path.read_bytes() for path in workplace.rglob('*') if path.is_file()}
    written = {path.relative_to(workplace) for path in after if after[path] != before.get(path)}
    assert {path.parts[0] for path in written} == {'pictures', 'work'}
    assert [path for path in written if path.parts[0] == 'pictures' and 'x' in path.name]


def save_untrained(config, path):
    torch.save(dict(state_dict=build_model(Config.fromfile(config)).state_dict(), meta={}), path)


# --- files that take time or memory ----------------------------------------------------------------


def shared_containers():
    node = [torch.zeros(1)]
    for _ in range(40):
        node = [node, node]
    torch.save(dict(state_dict={}, node=node), 'a.pth')


def containers_that_hold_themselves():
    node = []
    node.append(node)
    torch.save(dict(node=node), 'a.pth')


def pickle_of(content, legacy=True):
    """Put a pickle in the place of the one of a checkpoint, in the old format or the present one."""

    def make():
        torch.save(dict(a=1), 'a.pth', _use_new_zipfile_serialization=not legacy)
        if legacy:
            head = io.BytesIO(Path('a.pth').read_bytes())
            for _ in range(3):  # magic number, version, system
                pickle.load(head)
            Path('a.pth').write_bytes(head.getvalue()[: head.tell()] + content)
        else:
            rewrite(
                lambda archive, entry, old: archive.writestr(entry, content if 'data.pkl' in entry.filename else old)
            )

    return make


def rewrite(write):
    with zipfile.ZipFile('a.pth') as archive:
        entries = [(entry, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile('a.pth', 'w') as archive:
        for entry, content in entries:
            write(archive, entry, content)


def compressed_records():
    torch.save(dict(a=torch.zeros(2**22)), 'a.pth')
    rewrite(lambda archive, entry, content: archive.writestr(entry.filename, content, zipfile.ZIP_DEFLATED))


def records_longer_than_the_file():
    torch.save(dict(a=torch.zeros(8)), 'a.pth')
    content = Path('a.pth').read_bytes()
    where = content.rindex(b'PK\x01\x02')
    # The size of the last record in the table of contents, twice: compressed and as it is.
    Path('a.pth').write_bytes(content[: where + 20] + (10**9).to_bytes(4, 'little') * 2 + content[where + 28 :])


def tar_with_a_pipe():
    os.mkfifo('storages')
    with tarfile.open('a.pth', 'w') as archive:
        archive.add('storages')


MEMO = b'\x80\x02]r' + (2**31 - 1).to_bytes(4, 'little') + b'.'
ATTACKS = {
    'shared containers': (shared_containers, 'hold each other more than 10000000 times'),
    'containers that hold themselves': (containers_that_hold_themselves, 'holds itself'),
    'deep containers': (
        pickle_of(b'\x80\x02' + b']' * 500 + b'a' * 499 + b'.', legacy=False),
        'nested more than 100 deep',
    ),
    'memo index, old format': (pickle_of(MEMO), 'memo index 2147483647'),
    'memo index, zip': (pickle_of(MEMO, legacy=False), 'memo index 2147483647'),
    'memo index as text': (pickle_of(b'(lp2000000000\n.'), 'memo index 2000000000'),
    'bytes that are not there': (pickle_of(b'\x80\x04\x8e' + (2**40).to_bytes(8, 'little') + b'.'), 'not a readable'),
    'compressed records': (compressed_records, 'compressed records'),
    'records longer than the file': (records_longer_than_the_file, 'not a readable'),
    'tar file with a pipe': (tar_with_a_pipe, 'it is a tar file'),
}


@pytest.mark.parametrize('make, message', ATTACKS.values(), ids=ATTACKS)
def test_files_that_would_take_all_memory_or_never_end(make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make()
    before = psutil.Process().memory_info().rss
    start = time.perf_counter()
    with pytest.raises(
        CheckpointError, match=f'a.pth is not a readable PyTorch checkpoint .*{message}|{message}'
    ) as error:
        load_weights('a.pth')
    assert '\n' not in str(error.value)
    assert time.perf_counter() - start < 1
    assert psutil.Process().memory_info().rss - before < 50e6


def test_sharing_that_checkpoints_have_is_kept(tmp_path):
    group = dict(lr=0.1, betas=(0.9, 0.99))
    torch.save(dict(one=[group, group], two=group), tmp_path / 'a.pth')
    loaded = load_weights(tmp_path / 'a.pth')
    assert loaded['two'] == group and loaded['one'][0] is loaded['one'][1] is loaded['two']


def test_annotation_files_take_no_memory_either():
    with pytest.raises(pickle.UnpicklingError, match='memo index'):
        load_pickle(io.BytesIO(MEMO))
