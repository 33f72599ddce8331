"""python -m mmdat.doctor: what works is tried, and what does not comes with advice."""

import runpy
import subprocess
import sys

import pytest

from mmdat import doctor, explain
from mmdat.errors import RunError


def test_operators_and_a_training_step_work_here():
    assert 'give what they should' in doctor.operators('cpu')
    assert doctor.training_step('cpu').startswith('loss ')


@pytest.mark.parametrize('needed', [True, False])
def test_what_fails_comes_with_its_reason_and_advice(needed, capsys):
    def fail():
        raise RuntimeError('no kernel image is available\nand more')

    assert doctor.report(doctor.Check('operators', fail, 'compile them', needed)) is not needed
    mark, *rest = capsys.readouterr().out.split()
    assert mark == ('FAILS' if needed else 'no')
    assert ' '.join(rest) == 'operators: no kernel image is available -> compile them'


@pytest.mark.parametrize(
    'module, advice', [('mmdet', 'see stack, above'), ('mmcv._ext', 'compile them'), ('tomli', 'compile them')]
)
def test_where_a_package_is_missing_no_other_advice_is_given(module, advice, capsys):
    def fail():
        raise ModuleNotFoundError(f'No module named {module!r}', name=module)

    doctor.report(doctor.Check('training step', fail, 'compile them'))
    assert capsys.readouterr().out.rstrip().endswith(f'-> {advice}')


def distribution(directory, name):
    metadata = directory / f'{name.replace("-", "_")}-2.0.0.dist-info' / 'METADATA'
    metadata.parent.mkdir()
    metadata.write_text(f'Metadata-Version: 2.1\nName: {name}\nVersion: 2.0.0\n')


def test_two_distributions_of_one_package_are_named(tmp_path, monkeypatch):
    distribution(tmp_path, 'mmcv-lite')
    distribution(tmp_path, 'onedl-mmcv')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match='mmcv-lite and onedl-mmcv own the same files: `pip uninstall .*mmcv-lite'):
        doctor.stack()


@pytest.mark.parametrize('at_fault', ['mmpretrain/models/multimodal', 'site-packages/transformers', 'others'])
def test_transformers_of_an_unknown_version_is_named(at_fault, tmp_path, monkeypatch, capsys):
    file = tmp_path / at_fault / 'model.py'
    file.parent.mkdir(parents=True)
    file.write_text('class Model(None): ...')
    distribution(tmp_path, 'transformers')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(explain, '_is_known', lambda file: True)
    doctor.report(doctor.Check('stack', lambda: runpy.run_path(str(file)), 'install it'))
    named = 'transformers 2.0.0 is of a version that the toolboxes cannot be imported with: pip install'
    assert (named in capsys.readouterr().out) == (at_fault != 'others')


def test_a_sentence_that_says_what_to_do_comes_without_other_advice(capsys):
    def fail():
        raise RunError('pip uninstall it')

    assert not doctor.report(doctor.Check('stack', fail, 'install it'))
    assert capsys.readouterr().out.split() == ['FAILS', 'stack:', 'pip', 'uninstall', 'it']


@pytest.mark.slow
@pytest.mark.parametrize('broken', [False, True])
def test_the_exit_code_is_the_verdict(broken, tmp_path, monkeypatch):
    if broken:  # a module in the place of mmdet that cannot be imported
        (tmp_path / 'mmdet.py').write_text('raise ImportError("libGL.so.1: cannot open shared object file")')
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setenv('PYTHONPATH', str(tmp_path), prepend=':')
    done = subprocess.run([sys.executable, '-m', 'mmdat.doctor'], capture_output=True, text=True)
    assert done.returncode == broken, done.stdout
    assert ('libGL.so.1' in done.stdout) == broken
    assert done.stdout.rstrip().splitlines()[-1].startswith('Training cannot run' if broken else 'Training can run')
