"""dev/reproduce.py: published weights are tested, compared and written down; here on demo data, with made weights."""

import sys
from pathlib import Path

import pytest
import torch
import yaml
from official_layout import to_official

from mmdat import DAT
from mmdat.datasets import make_shapes
from mmdat.errors import RunError

ROOT = Path(__file__).parents[1]
ON_SHAPES = ['--override', ROOT / 'configs/demo/on_shapes_in1k.py']


@pytest.fixture
def reproduce(monkeypatch):
    """The main function of dev/reproduce.py."""
    monkeypatch.syspath_prepend(ROOT / 'dev')
    import reproduce

    def call(config, *args):
        reproduce.main([str(ROOT / f'configs/{config}.py'), *map(str, args)])

    yield call
    for name in ('reproduce', 'model_zoo'):
        sys.modules.pop(name)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A directory with demo data and with weights/, a made file of DAT-T with a head for their four classes."""
    place = tmp_path_factory.mktemp('place')
    make_shapes(place / 'data/shapes', num_train=2, num_val=4, size=64)
    torch.manual_seed(0)
    weights = to_official(DAT('tiny', out_indices=(3,)).half().state_dict())
    weights['cls_head.weight'], weights['cls_head.bias'] = torch.randn(4, 768).half(), torch.zeros(4).half()
    (place / 'weights').mkdir()
    torch.save(dict(model=weights), place / 'weights/dat_tiny_in1k_224.pth')
    return place


@pytest.fixture
def workplace(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv('MMDAT_WEIGHTS', str(place / 'weights'))


def test_a_row_is_written(reproduce, workplace, tmp_path, capsys):
    table = tmp_path / 'own.yml'
    table.write_text('# Mine.\ndat_b_300e_in1k:\n  Top 1 Accuracy: {result: 1.0}\n')
    reproduce('dat_t_300e_in1k', *ON_SHAPES, '--table', table, '--work-dir', tmp_path / 'work')
    assert table.read_text().startswith('# Mine.\n')
    rows = yaml.safe_load(table.read_text())
    assert rows['dat_b_300e_in1k'] == {'Top 1 Accuracy': {'result': 1.0}}
    row = rows['dat_t_300e_in1k']['Top 1 Accuracy']
    assert row['checkpoint'] == 'mmdat://dat_t_in1k' and row['images'] == 4 and row['result'] % 25 == 0
    assert f'torch {torch.__version__}' in row['versions'] and row['device'] and row['date']
    head, line = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == ['here', 'published', 'difference']
    assert [float(cell) for cell in line.split()[-3:]] == [row['result'], 82.0, row['result'] - 82]


def test_results_of_other_data_stay_out_of_the_model_zoo(reproduce, workplace):
    with pytest.raises(RunError, match='the test data have 4 images, but those of ImageNet-1k 50000'):
        reproduce('dat_t_300e_in1k', *ON_SHAPES)


@pytest.mark.parametrize(
    'config, args, message',
    [
        ('dino_dat_t_12e_coco', [], 'no results of dino_dat_t_12e_coco without .* are published'),
        ('dat_t_300e_in1k', ['--tta'], 'no results of dat_t_300e_in1k with test-time augmentation'),
        ('upernet_dat_t_160k_ade20k', [], 'the authors published no weights of upernet_dat_t_160k_ade20k'),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_runs(config, args, message, reproduce, workplace):
    with pytest.raises(RunError, match=message):
        reproduce(config, *args)


def test_every_published_result_can_be_compared(reproduce):
    module = sys.modules['reproduce']
    models = [model for metafile in module.model_zoo.metafiles() for model in metafile['Models']]
    results = [result for model in models for result in model.get('Results', [])]
    names = {metric.replace(' (paper)', '') for result in results for metric in result['Metrics']}
    assert names == set(module.METRICS)
    assert {result['Dataset'] for result in results} == set(module.IMAGES)
    measured = {'coco/bbox_mAP': 0.4683, 'coco/segm_mAP': 0.437}
    assert module.compare(measured, {'box AP': 46.8, 'mask AP': 43.7}) == {'box AP': 46.83, 'mask AP': 43.7}
