"""Weights by name: fetching them from a server that fails in every way, and loading them wherever one loads weights."""

import hashlib
import re
import resource
import runpy
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NANO
from in_process import run_tool
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from mmpretrain.utils import register_all_modules
from official_layout import to_official
from PIL import Image
from small_runs import in_processes
from test_official_models import CONFIGS, build, official_file
from weights_server import serving

import mmdat
from mmdat import DAT, list_weights
from mmdat.apis import network_input
from mmdat.checkpoints.pretrained import load_pretrained, read_published
from mmdat.checkpoints.reading import load_weights
from mmdat.checkpoints.without_code import reading_without_code
from mmdat.checkpoints.writing import save_weights
from mmdat.datasets import make_shapes
from mmdat.errors import CheckpointError
from mmdat.models.checkpoint import adapt_input, backbone_entries, convert_official
from mmdat.weights import fetch, find_weights

ROOT = Path(__file__).parents[1]
FILE = 'dat_tiny_in1k_224.pth'


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where downloads are kept, as torch.hub says."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'home'))
    monkeypatch.delenv('MMDAT_WEIGHTS', raising=False)
    return tmp_path / 'home/hub/checkpoints'


@pytest.fixture
def server(tmp_path):
    """Serves a small file, which fetch knows nothing about."""
    (tmp_path / 'served').mkdir()
    torch.save(dict(model={'a': torch.randn(600_000)}), tmp_path / 'served' / FILE)
    with serving(tmp_path / 'served') as server:
        yield server


def published_at(address):
    return replace(find_weights('dat_t_in1k'), page=f'{address}/')


def left(cache):
    """What is in the cache but locks."""
    return sorted(file.name for file in cache.glob('*') if file.suffix != '.lock')


# --- fetching --------------------------------------------------------------------------------------


def test_the_file_is_downloaded_once_and_its_checksum_noted(server, cache):
    weights = published_at(f'{server.address}/good')
    first = fetch(weights, load_weights)
    again = fetch(weights, load_weights)
    assert torch.equal(first['model']['a'], again['model']['a'])
    assert server.asked == dict(good=1)
    assert left(cache) == [FILE, f'{FILE}.sha256']
    assert (cache / f'{FILE}.sha256').read_text() == f'{sha256(server.directory / FILE)}  {FILE}\n'


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    'case, why',
    [
        ('missing', 'answers 404 Not Found'),
        ('page', r'sends another file \(.*not a readable'),
        ('silent', 'sent nothing for 0.3 s'),
        ('half', r'broke off after 1,200,\d+ of 2,401,\d+ bytes'),
        ('half-of-unknown', r'sends another file \(.*not a readable'),
        ('reset', r'broke the connection \(Remote end closed connection without response\)'),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_leaves_nothing(case, why, server, cache):
    weights = published_at(f'{server.address}/{case}')
    with pytest.raises(CheckpointError, match=why) as error:
        fetch(weights, load_weights, timeout=0.3)
    says_what_to_do_by_hand(str(error.value), weights, cache)
    assert left(cache) == []
    # Once the server is well again, so is everything else.
    fetch(published_at(f'{server.address}/good'), load_weights)
    assert left(cache) == [FILE, f'{FILE}.sha256']


def says_what_to_do_by_hand(sentence, weights, cache):
    assert len(sentence.splitlines()) == 1
    assert f'{weights.page} or {weights.other_page} and save it as {cache / FILE}' in sentence


def test_without_a_network(cache):
    with socket.socket() as free:  # nobody listens here
        free.bind(('127.0.0.1', 0))
        weights = published_at(f'http://127.0.0.1:{free.getsockname()[1]}')
        with pytest.raises(CheckpointError, match=r'cannot be reached \(.*refused') as error:
            fetch(weights, load_weights)
    says_what_to_do_by_hand(str(error.value), weights, cache)
    unknown = published_at('http://no-such-host.invalid')
    with pytest.raises(CheckpointError, match='http://no-such-host.invalid/.dl=1 cannot be reached'):
        fetch(unknown, load_weights)
    assert left(cache) == []


def test_on_a_full_disk(server, cache):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(CheckpointError, match=f'dat_t_in1k cannot be kept in {cache} .*free some space'):
            fetch(published_at(f'{server.address}/good'), load_weights)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert left(cache) == []


def test_what_a_killed_download_left_is_written_over(server, cache):
    cache.mkdir(parents=True)
    (cache / f'{FILE}.part').write_bytes(b'PK')
    fetch(published_at(f'{server.address}/good'), load_weights)
    assert left(cache) == [FILE, f'{FILE}.sha256']


def _fetch_and_compare(weights, expected):
    assert torch.equal(fetch(weights, load_weights)['model']['a'], expected)


def test_one_process_of_a_machine_downloads(server, cache):
    expected = torch.load(server.directory / FILE)['model']['a']
    in_processes(3, _fetch_and_compare, published_at(f'{server.address}/slow'), expected)
    assert server.asked == dict(slow=1)
    assert left(cache) == [FILE, f'{FILE}.sha256']


def test_a_later_change_of_the_file_is_named(server, cache):
    weights = published_at(f'{server.address}/good')
    fetch(weights, load_weights)
    before = sha256(cache / FILE)
    torch.save(dict(model={'a': torch.zeros(1)}), cache / FILE)
    with pytest.raises(CheckpointError, match='has changed since its first use') as error:
        fetch(weights, load_weights)
    assert before in str(error.value) and sha256(cache / FILE) in str(error.value)
    (cache / f'{FILE}.sha256').unlink()  # as the sentence says
    assert fetch(weights, load_weights)['model']['a'].shape == (1,)


# --- a directory or a mirror of the user's ---------------------------------------------------------


def test_a_directory_is_asked_before_the_cache(server, cache, tmp_path, monkeypatch):
    fetch(published_at(f'{server.address}/good'), load_weights)
    (tmp_path / 'mine').mkdir()
    torch.save(dict(model={'a': torch.zeros(1)}), tmp_path / 'mine' / FILE)
    monkeypatch.setenv('MMDAT_WEIGHTS', str(tmp_path / 'mine'))
    assert fetch(published_at(f'{server.address}/good'), load_weights)['model']['a'].shape == (1,)
    assert server.asked == dict(good=1)


def test_what_a_directory_lacks_is_downloaded_into_the_cache(server, cache, tmp_path, monkeypatch):
    (tmp_path / 'mine').mkdir()
    monkeypatch.setenv('MMDAT_WEIGHTS', str(tmp_path / 'mine'))
    fetch(published_at(f'{server.address}/good'), load_weights)
    assert left(cache) == [FILE, f'{FILE}.sha256'] and left(tmp_path / 'mine') == []


@pytest.mark.parametrize('slash', ['', '/'])
def test_a_mirror_is_asked_before_the_authors(slash, server, cache, monkeypatch):
    monkeypatch.setenv('MMDAT_WEIGHTS', f'{server.address}/mirror{slash}')
    fetch(published_at(f'{server.address}/good'), load_weights)
    assert server.asked == dict(mirror=1)


def test_when_the_mirror_fails_the_authors_are_asked(server, cache, monkeypatch):
    monkeypatch.setenv('MMDAT_WEIGHTS', f'{server.address}/missing')
    fetch(published_at(f'{server.address}/good'), load_weights)
    assert server.asked == dict(missing=1, good=1)


def test_when_both_fail_both_are_named(server, cache, monkeypatch):
    monkeypatch.setenv('MMDAT_WEIGHTS', f'{server.address}/missing')
    message = f'as {server.address}/missing/{FILE} answers 404 Not Found, and {server.address}/reset/.dl=1 broke'
    with pytest.raises(CheckpointError, match=message):
        fetch(published_at(f'{server.address}/reset'), load_weights)
    assert left(cache) == []


def test_a_directory_that_is_none(cache, monkeypatch):
    monkeypatch.setenv('MMDAT_WEIGHTS', '/no/such/directory')
    with pytest.raises(CheckpointError, match='MMDAT_WEIGHTS=/no/such/directory is neither a directory nor an address'):
        fetch(find_weights('dat_t_in1k'), load_weights)


# --- the right weights -----------------------------------------------------------------------------


@pytest.fixture(scope='module')
def released(tmp_path_factory):
    """A directory with files in the authors' layout, of their architectures; the values are made, in half precision."""
    directory = tmp_path_factory.mktemp('released')
    torch.manual_seed(0)
    for name in ('dat_t_in1k', 'datpp_t_in1k'):
        weights = find_weights(name)
        model = to_official(DAT(weights.arch, out_indices=(3,)).half().state_dict())
        head = torch.nn.Linear(model['cls_norm.norm.weight'].numel(), 1000).half()
        model['cls_head.weight'], model['cls_head.bias'] = head.weight.data, head.bias.data
        torch.save(dict(model=model), directory / weights.file)
    return directory


@pytest.fixture
def given(released, cache, monkeypatch):
    monkeypatch.setenv('MMDAT_WEIGHTS', str(released))
    return released


def values_of(given, name):
    """The backbone's weights in a file, by our keys, as they are in a model."""
    official = torch.load(given / find_weights(name).file)['model']
    return {key: value.float() for key, value in convert_official(official).items()}


def holds(model, values):
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in values.items() if key in own)


@pytest.mark.parametrize('name', ['dat_t_in1k', 'tiny++'])
def test_from_pretrained(name, given):
    model = DAT.from_pretrained(name, out_indices=(3,))
    values = values_of(given, name)
    assert values.keys() == model.state_dict().keys()
    assert holds(model, values)


def test_from_pretrained_for_dense_tasks(given):
    model = DAT.from_pretrained('tiny', out_indices=(1, 3), img_size=96, window_size=5, drop_path_rate=0.1)
    assert [tuple(feature.shape) for feature in model(torch.randn(1, 3, 96, 64))] == [(1, 192, 12, 8), (1, 768, 3, 2)]
    unchanged = {key: value for key, value in values_of(given, 'tiny').items() if 'table' not in key}
    # The classifier's norm is no detector's.
    assert holds(model, {key: value for key, value in unchanged.items() if not key.startswith('norm3')})
    assert torch.equal(model.norm3.weight, torch.ones(768))


def test_from_pretrained_for_grey_images(given):
    """Three equal channels gave what the one gives now."""
    grey = torch.rand(1, 1, 32, 32)
    model, rgb = DAT.from_pretrained('tiny', in_channels=1), DAT.from_pretrained('tiny')
    torch.testing.assert_close(model.stem(grey), rgb.stem(grey.expand(1, 3, 32, 32)))
    assert holds(model, rgb.stages.state_dict(prefix='stages.'))


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
@pytest.mark.parametrize('channels', [2, 4, 6])
def test_first_convolutions_for_more_channels(channels, dtype):
    """As timm: repeated in turn, and scaled."""
    weight = torch.randn(8, 3, 4, 4, dtype=dtype)
    expected = torch.stack([weight[:, i % 3].float() for i in range(channels)], 1) * 3 / channels
    assert torch.equal(adapt_input(weight, 3), weight)
    torch.testing.assert_close(adapt_input(weight, channels), expected)


def test_features_by_name(given, tmp_path):
    """As the classifier's pipeline prepares images, and as its head gets them."""
    image = np.random.RandomState(0).randint(0, 256, (40, 70, 3), np.uint8)
    found = mmdat.features('tiny', image)
    assert [tuple(stage.shape) for stage in found.maps] == [(1, 96 * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4)]
    model = DAT.from_pretrained('tiny', out_indices=(3,))
    assert model.pretrained is find_weights('dat_t_in1k')
    torch.testing.assert_close(mmdat.features(model, image), found)


def test_unknown_names_and_arguments_are_refused_before_anything_is_fetched(cache):
    with pytest.raises(CheckpointError, match="no weights named 'resnet50': choose one of dat_t_in1k, dat_s_in1k"):
        DAT.from_pretrained('resnet50')
    with pytest.raises(ValueError, match='out_indices must name different stages'):
        DAT.from_pretrained('tiny', out_indices=(4,))
    assert not cache.exists()


@pytest.mark.parametrize(
    'make, why',
    [
        (lambda path, given: path.write_text('<html>Sign in</html>'), 'it is a web page'),
        (lambda path, given: path.write_bytes(b'PK\3\4 and no more'), 'not a readable checkpoint of a DAT'),
        (lambda path, given: torch.save({'model': {'conv1.weight': torch.ones(1)}}, path), 'not a readable checkpoint'),
        (
            lambda path, given: shutil.copy(given / 'dat_pp_tiny_in1k_224.pth', path),
            r"it holds arch='tiny\+\+', and not arch='tiny'",
        ),
    ],
    ids=['page', 'damaged', 'another model', 'another size'],
)
def test_files_of_something_else_are_refused(make, why, released, cache):
    cache.mkdir(parents=True)
    make(cache / FILE, released)
    with pytest.raises(CheckpointError, match=f'{cache / FILE} is not dat_t_in1k .*{why}.*: delete it') as error:
        load_pretrained('dat_t_in1k')
    assert len(str(error.value).splitlines()) == 1
    assert left(cache) == [FILE]


def test_a_page_in_the_place_of_a_download_is_named(released, cache):
    with serving(released) as server, pytest.raises(CheckpointError, match=r'sends another file \(it is a web page'):
        fetch(published_at(f'{server.address}/page'), lambda path: read_published(path, find_weights('dat_t_in1k')))
    assert left(cache) == []


def test_a_name_is_fetched_from_a_mirror(released, cache, monkeypatch):
    """From end to end; the authors are not asked, so that this needs no network."""
    with serving(released) as server:
        monkeypatch.setenv('MMDAT_WEIGHTS', f'{server.address}/mirror')
        assert load_pretrained('dat_t_in1k')['state_dict']['head.fc.weight'].shape == (1000, 768)
        assert server.asked == dict(mirror=1)
    assert left(cache) == [FILE, f'{FILE}.sha256']


class _Planted:
    def __reduce__(self):
        return Path.touch, (Path('planted'),)


def test_no_code_of_the_file_runs(given, cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMDAT_WEIGHTS', str(tmp_path))
    official = torch.load(given / FILE)['model']
    torch.save(dict(model=official, config=_Planted()), tmp_path / FILE)
    DAT.from_pretrained('tiny')
    assert not Path('planted').exists()
    torch.load(tmp_path / FILE, weights_only=False)
    assert Path('planted').exists()


@pytest.mark.parametrize(
    'name, found',
    [
        ('dat_t_in1k', 'dat_t_in1k'),
        ('mmdat://datpp_b_in1k_384', 'datpp_b_in1k_384'),
        ('tiny', 'dat_t_in1k'),
        ('base', 'dat_b_in1k'),
        ('base++', 'datpp_b_in1k'),
    ],
)
def test_names_and_architectures(name, found):
    assert find_weights(name).name == found


@pytest.mark.parametrize('name', list_weights())
def test_the_table_says_what_the_configs_say(name):
    weights = find_weights(name)
    backbone = Config.fromfile(ROOT / f'configs/{weights.config}.py').model.backbone
    assert (weights.arch, weights.img_size, weights.window_size) == (
        backbone.arch,
        backbone.get('img_size', 224),
        backbone.get('window_size', 7),
    )
    same = (name == weights.config) if not weights.is_classifier else (re.sub('_[0-9]+e_', '_', weights.config) == name)
    assert same, 'names follow the configs'


@pytest.mark.parametrize('name', [name for name in list_weights() if find_weights(name).is_classifier])
def test_images_are_prepared_as_in_the_config(name, tmp_path):
    """By mmpretrain's transforms and preprocessor, which give the published accuracy."""
    weights = find_weights(name)
    array = np.random.RandomState(0).randint(0, 256, (40, 70, 3), np.uint8)
    Image.fromarray(array).save(tmp_path / 'a.png')
    cfg = Config.fromfile(ROOT / f'configs/{weights.config}.py')
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        expected, _ = network_input(cfg, tmp_path / 'a.png', 'dat')
        backbone = DAT(NANO['dat'], img_size=64).double()
    backbone.pretrained = weights
    images = []
    backbone.stem.register_forward_hook(lambda module, args, output: images.append(args[0]))
    mmdat.features(backbone, array)
    torch.testing.assert_close(images[0].float(), expected)


def test_the_documented_table_is_this_one():
    script = runpy.run_path(str(ROOT / 'dev/weights_table.py'))
    text = script['TARGET'].read_text()
    assert script['filled'](text) == text, 'run python dev/weights_table.py'


def test_every_published_file_has_a_name():
    assert len(list_weights()) == len(set(list_weights())) == 26
    assert len({find_weights(name).page for name in list_weights()}) == 26
    assert len({find_weights(name).file for name in list_weights()}) == 26


# --- wherever MMEngine takes a checkpoint ----------------------------------------------------------


def test_init_cfg_takes_a_name(given):
    model = DAT('tiny', in_channels=1, init_cfg=dict(type='Pretrained', checkpoint='mmdat://dat_t_in1k'))
    model.init_weights()
    unchanged = {key: value for key, value in values_of(given, 'tiny').items() if key[:4] not in ('stem', 'norm')}
    assert holds(model, unchanged)


OTHER_PROJECT = """
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import CheckpointLoader, load_checkpoint

paths = ['a.pth', 'http://a/a.pth', 'https://a/a.pth', 'torchvision://resnet50', 's3://a']
before = [CheckpointLoader._get_checkpoint_loader(path) for path in paths]
cfg = Config.fromfile('config.py')
init_default_scope('mmpretrain')
model = MODELS.build(cfg.model)  # the first that MMEngine hears of mmdat
assert [CheckpointLoader._get_checkpoint_loader(path) for path in paths] == before

load_checkpoint(model, 'mmdat://dat_t_in1k')
official = torch.load('given/dat_tiny_in1k_224.pth')['model']
assert torch.equal(model.head.fc.weight, official['cls_head.weight'].float())
assert torch.equal(model.backbone.norm3.weight, official['cls_norm.norm.weight'].float())
assert torch.equal(model.backbone.stem[0].weight, official['patch_proj.0.weight'].float())
print('loaded')
"""


def test_a_config_of_another_project_takes_a_name(given, tmp_path):
    """And what MMEngine loaded other checkpoints by is not replaced."""
    (tmp_path / 'given').symlink_to(given)
    (tmp_path / 'config.py').write_text(
        "model = dict(type='mmpretrain.ImageClassifier', "
        "backbone=dict(type='mmdat.DAT', arch='tiny', out_indices=(3,)), "
        "neck=dict(type='mmpretrain.GlobalAveragePooling'), "
        "head=dict(type='mmpretrain.LinearClsHead', num_classes=1000, in_channels=768))"
    )
    done = subprocess.run([sys.executable, '-c', OTHER_PROJECT], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ['loaded'], done.stderr


ON_TORCH_ALONE = """
import sys

for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain'):
    sys.modules[name] = None  # which makes Python refuse to import it
import numpy
import mmdat

model = mmdat.DAT.from_pretrained('tiny', out_indices=(1, 3))
print(mmdat.features('tiny', numpy.zeros((32, 32, 3), numpy.uint8)).pooled.shape, len(mmdat.list_weights()))
"""


def test_names_and_features_need_pytorch_alone(given):
    done = subprocess.run([sys.executable, '-c', ON_TORCH_ALONE], capture_output=True, text=True)
    assert done.stdout == 'torch.Size([1, 768]) 26\n', done.stderr


# --- safetensors -----------------------------------------------------------------------------------


@pytest.fixture
def both_formats(nano, tmp_path):
    """A model's weights in both formats, and the model."""
    pytest.importorskip('safetensors')
    model = DAT(nano, img_size=64)
    weights = {f'backbone.{key}': value for key, value in model.state_dict().items()}
    for name in ('a.pth', 'a.safetensors'):
        save_weights(tmp_path / name, weights, dict(mmdat_version='x'))
    return model


def test_both_formats_hold_the_same(both_formats, tmp_path):
    pth, safe = (load_weights(tmp_path / name) for name in ('a.pth', 'a.safetensors'))
    assert pth['state_dict'].keys() == safe['state_dict'].keys()
    assert all(torch.equal(value, safe['state_dict'][key]) for key, value in pth['state_dict'].items())
    assert pth['meta']['mmdat_version'] == safe['meta']['mmdat_version'] == 'x'


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_both_formats_load_by_every_way_of_mmengine(name, both_formats, nano, tmp_path):
    path = str(tmp_path / name)
    by_init_cfg = DAT(nano, img_size=64, init_cfg=dict(type='Pretrained', checkpoint=path))
    by_init_cfg.init_weights()
    by_load_checkpoint = DAT(nano, img_size=64)
    load_checkpoint(by_load_checkpoint, path)
    with reading_without_code():
        restricted = DAT(nano, img_size=64)
        load_checkpoint(restricted, path)
    for model in (by_init_cfg, by_load_checkpoint, restricted):
        assert holds(model, both_formats.state_dict())


def test_both_formats_load_in_plain_pytorch(both_formats, nano, tmp_path):
    for name in ('a.pth', 'a.safetensors'):
        model = DAT(nano, img_size=64)
        model.load_state_dict(load_weights(tmp_path / name))
        assert holds(model, both_formats.state_dict())


def test_weights_that_share_memory_or_are_views_are_written(tmp_path):
    pytest.importorskip('safetensors')
    base = torch.randn(3, 4)
    save_weights(tmp_path / 'a.safetensors', dict(a=base, b=base, c=base.t()), {})
    read = load_weights(tmp_path / 'a.safetensors')['state_dict']
    assert torch.equal(read['a'], base) and torch.equal(read['b'], base) and torch.equal(read['c'], base.t())


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_files_are_written_whole_or_not_at_all(name, tmp_path):
    pytest.importorskip('safetensors')
    (tmp_path / name).write_text('precious')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(CheckpointError, match=f'{tmp_path / name} cannot be written .*: free some space'):
            save_weights(tmp_path / name, dict(a=torch.randn(1 << 20)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / name).read_text() == 'precious' and len(list(tmp_path.iterdir())) == 1


def test_a_damaged_file_of_safetensors(tmp_path):
    pytest.importorskip('safetensors')
    (tmp_path / 'a.safetensors').write_bytes(b'12345678 and more')
    with pytest.raises(CheckpointError, match='a.safetensors is not a readable safetensors file'):
        load_weights(tmp_path / 'a.safetensors')


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'safetensors', None)  # which makes Python refuse to import it
    (tmp_path / 'a.safetensors').touch()
    with pytest.raises(CheckpointError, match='reading .*a.safetensors needs .* pip install safetensors'):
        load_weights(tmp_path / 'a.safetensors')
    with pytest.raises(CheckpointError, match='writing .*b.safetensors needs .* pip install safetensors'):
        save_weights(tmp_path / 'b.safetensors', {}, {})


# --- whole models -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['retinanet_datpp_t_1x_coco', 'maskrcnn_datpp_t_1x_coco', 'upernet_datpp_t_160k_ade20k']
)
def test_whole_models_load_strictly_by_name(name, cache, tmp_path, monkeypatch):
    monkeypatch.setenv('MMDAT_WEIGHTS', str(tmp_path))
    released = build(name, 'cpu').half()
    torch.save(official_file(released, CONFIGS[name]), tmp_path / f'{name}.pth')
    model = build(name, 'cpu')
    load_checkpoint(model, f'mmdat://{name}', strict=True)
    assert holds(model, {key: value.float() for key, value in released.state_dict().items()})


# --- the tools -------------------------------------------------------------------------------------

CLASSIFIER = ROOT / 'configs/dat_t_300e_in1k.py'


def test_a_name_is_converted(given, tmp_path, monkeypatch, capsys):
    pytest.importorskip('safetensors')
    target = tmp_path / 'dat_t.safetensors'
    assert run_tool(monkeypatch, 'convert_checkpoint', 'mmdat://dat_t_in1k', target) == 0
    assert "arch='tiny'" in capsys.readouterr().out
    state_dict = load_weights(target)['state_dict']
    assert holds(DAT.from_pretrained('tiny', out_indices=(3,)).half(), backbone_entries(state_dict))
    assert state_dict['head.fc.weight'].shape == (1000, 768)


def test_features_and_classes_of_the_documentation(given, tmp_path, monkeypatch, capsys):
    """The page's examples, as they stand there."""
    first, _, features, inferencer = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/weights.md').read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for name in ('a.jpg', 'b.jpg'):
        Image.new('RGB', (40, 30), 'red').save(name)
    exec(first, {})
    assert 'datpp_b_in1k_384' in capsys.readouterr().out
    exec(features, {})
    printed = capsys.readouterr().out.splitlines()
    assert printed == [line.partition('  # ')[2].partition(':')[0] for line in features.splitlines() if '  # ' in line]
    namespace = {}
    with DefaultScope.overwrite_default_scope('mmpretrain'):  # as in a process of its own
        exec(inferencer, namespace)
    (result,) = namespace['classify'](np.array(Image.open('a.jpg')), show_dir=None)
    assert result['pred_scores'].shape == (1000,)


@pytest.mark.slow
@pytest.mark.parametrize('checkpoint', ['mmdat://dat_t_in1k', 'dat_t.safetensors'])
def test_tools_take_names_and_both_formats(checkpoint, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_shapes('data/shapes', num_train=2, num_val=2, size=64)
    if checkpoint != 'mmdat://dat_t_in1k':
        assert run_tool(monkeypatch, 'convert_checkpoint', 'mmdat://dat_t_in1k', checkpoint) == 0
    four = ['--override', ROOT / 'configs/demo/on_shapes_in1k.py']
    init_cfg = ['model.backbone.init_cfg.type=Pretrained', f'model.backbone.init_cfg.checkpoint={checkpoint}']
    image = next(Path('data/shapes/images/validation').iterdir())
    assert run_tool(monkeypatch, 'train', CLASSIFIER, *four, '--work-dir', 'a', '--cfg-options', *init_cfg) == 0
    start = ['--work-dir', 'b', '--cfg-options', f'load_from={checkpoint}']
    assert run_tool(monkeypatch, 'train', CLASSIFIER, *four, *start) == 0
    assert run_tool(monkeypatch, 'test', CLASSIFIER, checkpoint, *four, '--work-dir', 'c') == 1  # 1000 classes, not 4
    assert run_tool(monkeypatch, 'infer', CLASSIFIER, checkpoint, image, '--device', 'cpu') == 0
    drawn = ['visualize_deformation', image, '--config', CLASSIFIER, '--checkpoint', checkpoint]
    assert run_tool(monkeypatch, *drawn) == 0


def test_tools_say_at_once_what_is_wrong_with_a_name(cache, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_shapes('data/shapes', num_train=2, num_val=1, size=64)
    for args in (
        ['test', ROOT / 'configs/demo/datnano_shapes.py', 'mmdat://dat_x'],
        ['train', ROOT / 'configs/demo/datnano_shapes.py', '--cfg-options', 'load_from=mmdat://dat_x'],
        ['infer', ROOT / 'configs/demo/datnano_shapes.py', 'mmdat://dat_x', 'data/shapes/images/validation'],
        ['convert_checkpoint', 'mmdat://dat_x', 'a.pth'],
    ):
        assert run_tool(monkeypatch, *args) == 1
        assert "there are no weights named 'dat_x': choose one of dat_t_in1k" in capsys.readouterr().err
    assert run_tool(monkeypatch, 'train', ROOT / 'configs/demo/datnano_shapes.py', '--resume', 'mmdat://dat_x') == 1
