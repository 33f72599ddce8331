"""model-index.yml, the metafiles and docs/model_zoo.md agree; whether sizes are true is tested with the configs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from test_configs import CONFIGS, METADATA

from mmdat.analysis import model_operations
from mmdat.apis import build_model

ROOT = Path(__file__).parents[1]
METAFILES = [
    yaml.safe_load((ROOT / path).read_text())
    for path in yaml.safe_load((ROOT / 'model-index.yml').read_text())['Import']
]
MODELS = {model['Name']: model for metafile in METAFILES for model in metafile['Models']}


def test_every_config_is_in_the_index_and_nothing_else():
    assert sorted(MODELS) == CONFIGS
    assert sum(len(metafile['Models']) for metafile in METAFILES) == len(MODELS)
    for name, model in MODELS.items():
        assert model['Config'] == f'configs/{name}.py'


def test_collections_exist_and_no_weights_are_promised():
    collections = [collection['Name'] for metafile in METAFILES for collection in metafile['Collections']]
    assert len(set(collections)) == len(collections)
    for model in MODELS.values():
        assert model['In Collection'] in collections
        assert 'Weights' not in model


def test_results_are_labelled_as_the_papers():
    for model in MODELS.values():
        for result in model.get('Results', []):
            assert result['Metrics'] and all(metric.endswith('(paper)') for metric in result['Metrics'])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['retinanet_dat_t_1x_coco', 'maskrcnn_datpp_t_1x_coco', 'semfpn_dat_t_80k_ade20k'])
def test_cost_of_whole_models(name):
    metadata = METADATA[name]
    size = tuple(map(int, metadata['FLOPs Input Size'].split('x')))
    torch.manual_seed(0)
    cfg = Config.fromfile(ROOT / MODELS[name]['Config'])
    assert sum(model_operations(build_model(cfg), cfg, size).values()) == metadata['FLOPs']


def test_document_says_what_the_metafiles_say():
    done = subprocess.run([sys.executable, ROOT / 'dev/model_zoo.py', '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
