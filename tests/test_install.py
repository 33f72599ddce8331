"""The installation scripts' own words, and what a wheel carries."""

import subprocess
import sys
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
    ],
)
def test_wrong_options_are_named(args, message, tmp_path):
    result = install(*(arg.format(tmp=tmp_path) for arg in args))
    assert result.returncode == 1
    assert message in result.stderr
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


def test_the_wheel_carries_configs_and_tools(tmp_path):
    source = tmp_path / 'source'
    files = subprocess.run(['git', 'ls-files', '-z'], cwd=ROOT, capture_output=True, text=True)
    if files.returncode:
        pytest.skip('not a git checkout')
    for name in filter(None, files.stdout.split('\0')):
        if (ROOT / name).is_file() and not name.startswith('tests/'):
            target = source / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((ROOT / name).read_bytes())
    subprocess.check_call(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '-q',
            '--no-deps',
            '--no-build-isolation',
            '-w',
            str(tmp_path),
            str(source),
        ]
    )
    [wheel] = tmp_path.glob('mmdat-*.whl')
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        'mmdat/models/dat.py',
        'mmdat/.mim/configs/maskrcnn_dat_t_1x_coco.py',
        'mmdat/.mim/tools/train.py',
        'mmdat/.mim/model-index.yml',
    } <= names
    assert not any(name.startswith(('tests', 'configs', 'tools')) for name in names)
