"""The installation scripts' own words, and what a wheel carries."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def install(*args):
    return subprocess.run(['bash', ROOT / 'tools' / 'install.sh', *args], capture_output=True, text=True)


@pytest.mark.parametrize(
    'args, message',
    [
        (['--stack', 'newest'], "unknown stack 'newest'; choose one of: classic current"),
        (['--stack'], '--stack needs a value'),
        (['--cuda'], "unknown option '--cuda'"),
        (['--venv', '{tmp}/venv', '--python', 'no-such-python'], "no interpreter 'no-such-python'"),
        (['--venv', '{tmp}/venv', '--wheel', '{tmp}/mmcv.whl'], 'there is no wheel {tmp}/mmcv.whl'),
        (['--venv', '{tmp}/venv', '--wheel', '{tmp}'], '{tmp} holds 0 wheels of mmcv, not one'),
        (['--compile-ops', '--wheel', 'mmcv.whl'], 'leave --compile-ops or --wheel out'),
    ],
)
def test_wrong_options_are_named(args, message, tmp_path):
    result = install(*(arg.format(tmp=tmp_path) for arg in args))
    assert result.returncode == 1
    assert message.format(tmp=tmp_path) in result.stderr
    assert not (tmp_path / 'venv').exists()


def test_the_other_stack_goes_beside_an_environment_that_is_taken(tmp_path):
    tools = tmp_path / 'tools'
    (tmp_path / 'requirements').mkdir()
    tools.mkdir()
    (tools / 'install.sh').write_text((ROOT / 'tools' / 'install.sh').read_text())
    (tmp_path / 'requirements' / 'stacks').symlink_to(ROOT / 'requirements' / 'stacks')

    def venv(stack):
        command = ['bash', tools / 'install.sh', '--stack', stack, '--print-venv']
        return subprocess.check_output(command, text=True).strip()

    assert venv('current') == venv('classic') == str(tmp_path / '.venv')
    (tmp_path / '.venv').mkdir()
    (tmp_path / '.venv' / 'mmdat-stack').write_text('current\n')
    assert venv('current') == str(tmp_path / '.venv')
    assert venv('classic') == str(tmp_path / '.venv-classic')


@pytest.mark.parametrize(
    'options, first',
    [
        ([], ['torch torchvision']),
        # An index of PyTorch alone is enough; what PyTorch requires comes from it or from pip's own.
        (
            ['--torch-index', 'http://localhost/simple'],
            [
                '--no-deps --index-url http://localhost/simple torch torchvision',
                '--extra-index-url http://localhost/simple torch torchvision',
            ],
        ),
    ],
)
def test_where_pytorch_comes_from(options, first, tmp_path):
    python = tmp_path / 'venv' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    # It says its version, notes what pip is asked for, and stops at the MM packages.
    python.write_text(f"""#!/bin/bash
if [[ "$*" == *version* ]]; then exec {sys.executable} "$@"; fi
if [[ $1 != -m || "$*" == *' -r '* ]]; then exit 1; fi
echo "$@" >>{tmp_path}/calls
""")
    python.chmod(0o755)
    result = install('--venv', str(python.parents[1]), *options)
    assert 'step "mmengine, mmdet, mmseg, mmpretrain" failed' in result.stderr
    calls = (tmp_path / 'calls').read_text().splitlines()
    asked = [call.split('--no-compile ')[1].split(' -c ')[0] for call in calls]
    assert asked == ['setuptools<81 wheel', *first]


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """What is under version control, without the tests."""
    source = tmp_path_factory.mktemp('checkout')
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip('not a git checkout')
    for name in filter(None, files.stdout.split('\0')):
        if (ROOT / name).is_file() and not name.startswith('tests/'):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    return source


def build(source, target):
    """The names in a wheel of ``source``, a directory or a requirement, and its requirements."""
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-build-isolation', '-w', str(target)]
    subprocess.check_call([*command, str(source)])
    [wheel] = target.glob('*.whl')
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [name for name in names if name.endswith('.dist-info/METADATA')]
        lines = archive.read(metadata).decode().splitlines()
    return set(names), [line.split(': ', 1)[1] for line in lines if line.startswith('Requires-Dist: ')]


def test_the_wheel_carries_configs_and_tools(source, tmp_path):
    names, requirements = build(source, tmp_path)
    assert {
        'mmdat/models/dat.py',
        'mmdat/visualization/page.html',
        'mmdat/weights/table.json',
        'mmdat/.mim/configs/maskrcnn_dat_t_1x_coco.py',
        'mmdat/.mim/tools/train.py',
        'mmdat/.mim/model-index.yml',
    } <= names
    assert not any(name.startswith(('tests', 'configs', 'tools', 'mmcv')) for name in names)
    # The backbones need PyTorch only, which itself requires filelock.
    core = [line for line in requirements if 'extra ==' not in line]
    assert {line.split('>')[0] for line in core} == {'filelock', 'numpy', 'torch'}
    # mmdat[mm] finds mmcv's operators beside it.
    [operators] = [line for line in requirements if line.startswith('mmcv-ops-torchvision')]
    assert operators.startswith(f'mmcv-ops-torchvision @ {(source / "mmcv-ops-torchvision").as_uri()}')
    assert not [
        line for line in requirements if "extra == 'mm'" in line.replace('"', "'") and '==' in line.split(';')[0]
    ]


@pytest.mark.slow
def test_pip_takes_no_older_operators_from_its_cache(source, tmp_path, monkeypatch):
    monkeypatch.setenv('PIP_CACHE_DIR', str(tmp_path / 'cache'))
    checkout = shutil.copytree(source, tmp_path / 'checkout')
    _, requirements = build(checkout, tmp_path / 'mmdat')
    [operators] = [line.split(';')[0] for line in requirements if line.startswith('mmcv-ops-torchvision')]
    for name in ('first.py', 'second.py'):
        (checkout / 'mmcv-ops-torchvision' / 'mmcv_ops_torchvision' / name).touch()
        names, _ = build(operators, tmp_path / name)
        assert f'mmcv_ops_torchvision/{name}' in names


def test_what_is_built_from_a_source_distribution_names_no_directory(source, tmp_path):
    subprocess.check_call(
        [sys.executable, 'setup.py', '-q', 'sdist', '-d', str(tmp_path)], cwd=source, stderr=subprocess.DEVNULL
    )
    [archive] = tmp_path.glob('mmdat-*.tar.gz')
    with tarfile.open(archive) as file:
        file.extractall(tmp_path)
    names, requirements = build(archive.with_name(archive.name[: -len('.tar.gz')]), tmp_path)
    assert 'mmdat/.mim/tools/train.py' in names
    assert not [line for line in requirements if 'file:' in line]
    assert [line for line in requirements if line.startswith('mmcv-ops-torchvision>=')]


def test_an_editable_installation_needs_no_links(source, tmp_path):
    code = """
import os, runpy, sys
def refuse(*args, **kwargs):
    raise OSError('a privilege is not held by the client')
os.symlink = os.link = refuse
sys.argv = ['setup.py', '-q', 'editable_wheel', '--dist-dir', sys.argv[1]]
runpy.run_path('setup.py', run_name='__main__')
"""
    subprocess.check_call([sys.executable, '-c', code, str(tmp_path)], cwd=source, stderr=subprocess.DEVNULL)
    assert (source / 'mmdat' / '.mim' / 'configs' / 'maskrcnn_dat_t_1x_coco.py').is_file()
    assert list(tmp_path.glob('mmdat-*.whl'))


def test_the_wheel_of_mmcvs_operators_adds_one_file_to_mmcv(source, tmp_path):
    names, requirements = build(source / 'mmcv-ops-torchvision', tmp_path)
    assert [name for name in names if name.startswith('mmcv/')] == ['mmcv/_ext.py']
    assert {'mmcv_ops_torchvision/boxes.py', 'mmcv_ops_torchvision/py.typed'} <= names
    assert {line.split('>')[0] for line in requirements} == {'numpy', 'torch', 'torchvision'}
