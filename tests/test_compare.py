"""tools/compare.py: what may differ, and a whole comparison on demo data."""

import json
from pathlib import Path

import pytest
from in_process import run_tool
from mmengine.config import Config

from mmdat.apis.compare import check_comparable
from mmdat.apis.model import build_model
from mmdat.datasets import make_shapes
from mmdat.errors import RunError

DEMO = Path(__file__).parents[1] / 'configs/demo'
BACKBONES = ('datnano', 'datppnano', 'swinnano')


def demo(task, *changes):
    """The demo configs of a task, one with changes."""
    cfgs = {name: Config.fromfile(DEMO / f'{task}_{name}_shapes.py') for name in BACKBONES}
    for change in changes:
        cfgs['swinnano'].merge_from_dict(change)
    return cfgs


@pytest.mark.parametrize('task', ['maskrcnn', 'upernet'])
def test_demo_backbones_are_of_equal_size_and_nothing_else_differs(task):
    cfgs = demo(task)
    check_comparable(cfgs)
    sizes = {
        name: sum(parameter.numel() for parameter in build_model(cfg).backbone.parameters())
        for name, cfg in cfgs.items()
    }
    assert max(sizes.values()) < 1.25 * min(sizes.values()), sizes


@pytest.mark.parametrize(
    'change, message',
    [
        (
            {'optim_wrapper.optimizer.lr': 0.1},
            r'swinnano differs from datnano in optim_wrapper.optimizer.lr, 0.1 and',
        ),
        ({'model.neck.out_channels': 32}, r'differs from datnano in model.neck.out_channels'),
        ({'train_dataloader.batch_size': 2}, r'in train_dataloader.batch_size'),
        ({'train_cfg.max_epochs': 1}, r'in train_cfg.max_epochs'),
        ({'custom_hooks': [dict(type='EMAHook')]}, r'in custom_hooks'),
    ],
)
def test_what_else_differs_is_named(change, message):
    with pytest.raises(RunError, match=message):
        check_comparable(demo('maskrcnn', change))


def test_channels_that_come_from_the_backbone_may_differ():
    check_comparable(demo('maskrcnn', {'model.neck.in_channels': [1, 2, 3, 4]}))
    channels = {'model.decode_head.in_channels': [1, 2, 3, 4], 'model.auxiliary_head.in_channels': 3}
    check_comparable(demo('upernet', channels))
    with pytest.raises(RunError, match='model.rpn_head.in_channels'):  # which come from the neck
        check_comparable(demo('maskrcnn', {'model.rpn_head.in_channels': 32}))


@pytest.mark.slow
def test_a_comparison_goes_on_and_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    make_shapes('data/shapes', num_train=4, num_val=4, size=64)
    configs = [DEMO / f'upernet_{name}_shapes.py' for name in ('datnano', 'swinnano')]
    short = ['train_cfg.max_iters=4', 'train_cfg.val_interval=2', 'default_hooks.logger.interval=1']
    args = [*configs, '--seeds', 3, 5, '--work-dir', 'work', '--cfg-options', *short]
    assert run_tool(monkeypatch, 'compare', *args, '--only', 'upernet_datnano_shapes/7') == 1
    assert 'no run upernet_datnano_shapes/7: choose one of upernet_datnano_shapes/3' in capsys.readouterr().err
    assert run_tool(monkeypatch, 'compare', *args, '--only', 'upernet_datnano_shapes/5') == 0
    assert 'still to be made' in capsys.readouterr().out
    first = Path('work/upernet_datnano_shapes/seed5/result.json').read_text()
    assert run_tool(monkeypatch, 'compare', *args) == 0
    assert Path('work/upernet_datnano_shapes/seed5/result.json').read_text() == first, 'it was made again'
    table = Path('work/comparison.md').read_text()
    assert table in capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split('|')[1:-1]] for line in table.splitlines()]
    assert [row[0] for row in rows] == ['config', '---', 'upernet_datnano_shapes', 'upernet_swinnano_shapes']
    values = json.loads(Path('work/comparison.json').read_text())['upernet_swinnano_shapes']
    low, high = sorted(values['last']['mIoU'])
    assert rows[3][2] == f'{(low + high) / 2:.2f} ± {(high - low) / 2**0.5:.2f}'
    assert values['curves'][0]['loss'] != values['curves'][1]['loss'], 'the seeds do nothing'
    assert [step for step, _ in values['curves'][0]['loss']] == [1, 2, 3, 4]
    assert [step for step, _ in values['curves'][0]['mIoU']] == [2, 4]
    assert Path('work/comparison.png').stat().st_size > 10_000


@pytest.mark.slow
def test_a_run_that_fails_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    configs = [DEMO / f'upernet_{name}_shapes.py' for name in ('datnano', 'swinnano')]
    assert run_tool(monkeypatch, 'compare', *configs, '--work-dir', 'work') == 1
    assert 'the run of upernet_datnano_shapes with seed 0 failed: ' in capsys.readouterr().err
    assert 'make_shapes.py' in Path('work/upernet_datnano_shapes/seed0/output.txt').read_text()
