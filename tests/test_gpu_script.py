"""benchmarks/gpu.py, tried on the CPU, and what README.md says of its results."""

import argparse
import json
import os
import sys
import time

import pytest
from in_process import ROOT, load_script

PARTS = ('doctor', 'tests', 'kernels', 'operators', 'backbones', 'batch', 'training')


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / 'benchmarks'))
    return load_script('benchmarks/gpu.py')


def run(script, monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['gpu.py', '--device', 'cpu', '--quick', *map(str, args)])
    return script.main()


def test_a_part_and_some_of_its_cases(script, monkeypatch, tmp_path):
    code = run(
        script, monkeypatch, '--out', tmp_path, '--parts', 'operators', '--cases', 'window.*float32', '--minutes', 60
    )
    assert code == 0, (tmp_path / 'operators.log').read_text()
    report = json.loads((tmp_path / 'gpu.json').read_text())
    assert report['machine']['device'] == 'cpu' and report['machine']['torch']
    rows = report['parts']['operators']['rows']
    assert len(rows) == 6 and all('window' in row['operator'] and row['dtype'] == 'float32' for row in rows)
    for row in rows:
        if row['impl'] == 'triton':
            assert "impl='triton' needs" in row['error']
        else:
            assert 0 < row['fastest'] <= row['seconds'] <= row['slowest']
    page = (tmp_path / 'README.md').read_text()
    assert 'its numbers mean nothing' in page and page.count('shifted window attention') == 6
    assert '(operators.png)' in page and (tmp_path / 'operators.png').stat().st_size


def test_a_part_that_is_stopped_keeps_what_it_found(script, monkeypatch, tmp_path):
    """All that it has started ends, too."""
    endless = tmp_path / 'endless.py'
    endless.write_text(
        'import subprocess, sys, time\n'
        'with open(sys.argv[sys.argv.index("--out") + 1] + "/batch.jsonl", "a") as file:\n'
        '    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
        '    file.write(f\'{{"backbone": "a", "process": {child.pid}}}\\n{{"backb\')\n'
        'time.sleep(600)\n'
    )
    monkeypatch.setattr(script, '__file__', str(endless))
    args = argparse.Namespace(
        out=tmp_path, device='cpu', cases='', quick=True, minutes=2.5 / 60 / script.PARTS['batch']
    )
    found = script.start_part('batch', args)
    assert not found['ok'] and found['problem'].startswith('stopped after')
    ((backbone, process),) = [tuple(row.values()) for row in found['rows']]
    assert backbone == 'a'
    for _ in range(100):  # whoever inherits a process takes note of its end
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        raise AssertionError('a process of the part goes on')


def test_cases_for_which_there_is_no_time_are_named(script, tmp_path):
    args = argparse.Namespace(part='batch', device='cpu', quick=True, cases='DAT-T', minutes=0)
    rows = list(script.run_cases(args))
    assert [row['error'] for row in rows] == ['no time left'] * 3


@pytest.mark.parametrize(
    'error, known',
    [
        (RuntimeError('CUDA error'), False),
        (ModuleNotFoundError("No module named 'mmdet'"), True),
        (RuntimeError("impl='triton' needs a CUDA device"), True),
    ],
)
def test_what_keeps_a_case_from_being_measured_is_told(script, error, known):
    import gpu_parts

    def measure():
        raise error

    assert gpu_parts.attempt(dict(backbone='a'), measure) == dict(backbone='a', error=str(error), ok=known)


@pytest.mark.slow
def test_all_parts(script, monkeypatch, tmp_path):
    pytest.importorskip('mmdet')
    code = run(script, monkeypatch, '--out', tmp_path, '--minutes', 60)
    report = json.loads((tmp_path / 'gpu.json').read_text())
    assert tuple(report['parts']) == PARTS
    problems = {name: part['problem'] for name, part in report['parts'].items() if not part['ok']}
    assert code == 0 and not problems
    page = (tmp_path / 'README.md').read_text()
    for name in ('Swin-T (mmdet)', 'Swin-T (torchvision)', 'DAT-T++, tiled', 'compiled', 'Training can run', 'passed'):
        assert name in page
    assert {path.name for path in tmp_path.glob('*.png')} == {'operators.png', 'backbones.png', 'training.png'}


@pytest.fixture
def summary():
    return load_script('dev/gpu_summary.py')


def test_the_readme_says_what_was_measured(summary):
    report = json.loads(summary.SOURCE.read_text()) if summary.SOURCE.exists() else None
    text = summary.TARGET.read_text()
    assert summary.filled(text, report) == text, 'run python dev/gpu_summary.py'
    assert summary.MARKS[0] in text


def test_the_readme_names_the_card(summary):
    case = dict(backbone='DAT-T, fast', size='224x224', precision='AMP, float16', batch=128, memory=3 * 2**30)
    modes = [('forward', 2000.4), ('training step', 700.6)]
    rows = [dict(case, mode=mode, images_per_second=speed) for mode, speed in modes]
    rows.append(dict(case, mode='forward', backbone='Swin-T (mmdet)', error='no time left'))
    machine = dict(device='cuda', card='Card X', driver='1.2', torch='2.14', triton='3.8')
    report = dict(machine=machine, quick=False, parts=dict(backbones=dict(rows=rows)))
    text = summary.summary(report)
    assert 'Measured on Card X with driver 1.2' in text
    assert '| DAT-T | 224x224, 128 | AMP, float16 | 2000 | 701 | 3.0 |' in text
    assert 'Swin-T' not in text and 'tiled' not in text
    for tried in (dict(report, quick=True), dict(report, machine=dict(machine, device='cpu')), None):
        assert 'No GPU has been measured' in summary.summary(tried)
