"""The checks in front of a run: whatever is missing is named in one sentence, before the model is built."""

import re
import shutil
import subprocess
import sys
from functools import partial

import pytest
import torch
from mmengine.config import Config
from mmengine.utils import digit_version
from paths import ROOT

from mmdat import DAT
from mmdat.apis import evaluate, train
from mmdat.cli import run
from mmdat.config.checks import check_run
from mmdat.config.load import load_config
from mmdat.errors import CheckpointError, RunError

MASK_RCNN = ROOT / 'configs/demo/maskrcnn_datnano_shapes.py'
UPERNET = ROOT / 'configs/demo/upernet_datnano_shapes.py'
CLASSIFIER = ROOT / 'configs/demo/datnano_shapes.py'
CAN_COMPILE = digit_version(torch.__version__) >= digit_version('2.4')


DEMO_DATA = dict(num_train=2, num_val=1, size=64)


@pytest.fixture
def workplace(data, tmp_path, monkeypatch):
    """The current directory for a test, with the demo data (a copy to spoil) where configs look for it."""
    shutil.copytree(data, tmp_path / 'data/shapes')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(path, **options):
    return load_config(str(path), options=options or None, work_dir='work')


@pytest.mark.parametrize('path', [MASK_RCNN, UPERNET, CLASSIFIER])
def test_complete_data_passes(path, workplace):
    check_run(config(path), training=True)
    check_run(config(path), training=False)


@pytest.mark.parametrize(
    'path, missing, part',
    [
        (MASK_RCNN, 'annotations/instances_train.json', 'train_dataloader needs the annotation file'),
        (MASK_RCNN, 'annotations/instances_val.json', 'val_dataloader needs the annotation file'),
        (MASK_RCNN, 'images/training', 'train_dataloader needs the directory'),
        (UPERNET, 'annotations/training', 'train_dataloader needs the directory'),
        (UPERNET, 'images/validation', 'val_dataloader needs the directory'),
        (CLASSIFIER, 'classification', 'train_dataloader needs the directory'),
        (CLASSIFIER, 'classification/val', 'val_dataloader needs the directory'),
    ],
)
def test_missing_data(path, missing, part, workplace):
    target = workplace / 'data/shapes' / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    with pytest.raises(RunError) as error:
        check_run(config(path), training=True)
    assert str(error.value) == (
        f'{part} {target}, which does not exist: make the demo data with python tools/make_shapes.py'
    )


def test_an_empty_directory_is_missing_data(workplace):
    folder = workplace / 'data/shapes/images/training'
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(RunError, match='images/training, which is empty'):
        check_run(config(UPERNET), training=True)


def test_testing_needs_no_training_data(workplace):
    shutil.rmtree(workplace / 'data/shapes/images/training')
    check_run(config(MASK_RCNN), training=False)


@pytest.mark.parametrize(
    'wrap',
    [
        lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
        lambda dataset: dict(type='ConcatDataset', datasets=[dataset]),
        lambda dataset: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=dataset),
        lambda dataset: dict(
            type='MultiImageMixDataset', pipeline=[], dataset=dict(type='RepeatDataset', dataset=dataset)
        ),
    ],
)
def test_missing_data_below_wrappers(wrap, workplace):
    cfg = config(MASK_RCNN)
    dataset = cfg.train_dataloader.dataset
    dataset.ann_file = 'annotations/nope.json'
    cfg.train_dataloader.dataset = wrap(dataset)
    with pytest.raises(RunError, match=r'annotation file /.*/annotations/nope\.json'):
        check_run(cfg, training=True)


def test_missing_annotation_file_of_the_evaluator(workplace):
    cfg = config(MASK_RCNN)
    cfg.val_evaluator = [dict(cfg.val_evaluator, ann_file='data/coco/annotations/nope.json')]
    with pytest.raises(RunError, match='val_evaluator needs.*nope.json.*COCO 2017.*on_shapes_coco'):
        check_run(cfg, training=True)


@pytest.mark.parametrize(
    'option',
    [
        {'load_from': 'nope.pth'},
        {'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='nope.pth')},
        {'model.init_cfg': [dict(type='Normal', layer='Linear'), dict(type='Pretrained', checkpoint='nope.pth')]},
    ],
)
def test_missing_checkpoint(option, workplace):
    with pytest.raises(RunError, match=f'needs the checkpoint {workplace}/nope.pth, which does not exist'):
        check_run(config(MASK_RCNN, **option), training=True)


def test_addresses_are_left_to_mmengine(workplace):
    check_run(
        config(
            MASK_RCNN,
            **{
                'load_from': 'https://example.com/x.pth',
                'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='torchvision://resnet50'),
            },
        ),
        training=True,
    )


def test_missing_checkpoint_to_resume(workplace):
    with pytest.raises(CheckpointError, match='there is no checkpoint /.*/nope.pth'):
        train(config(MASK_RCNN), resume='nope.pth')
    (workplace / 'work').mkdir()
    (workplace / 'work/last_checkpoint').write_text('gone/epoch_3.pth')
    with pytest.raises(
        RunError, match='cannot resume.*no whole checkpoint .there is no checkpoint .*/work/epoch_3.pth'
    ):
        train(config(MASK_RCNN), resume='auto')


def test_an_official_backbone_is_no_whole_detector(workplace):
    torch.save({'model': {'patch_proj.0.weight': torch.zeros(1)}}, 'official.pth')
    with pytest.raises(RunError, match='only a backbone.*model.backbone.init_cfg.checkpoint=official.pth'):
        train(config(MASK_RCNN, load_from='official.pth'))
    with pytest.raises(RunError, match='only a backbone'):
        evaluate(config(MASK_RCNN), 'official.pth')


def test_options_that_cannot_be_served(workplace):
    torch.save({}, 'empty.pth')
    if not torch.cuda.is_available():
        with pytest.raises(RunError, match='mixed precision .* needs a GPU'):
            train(config(MASK_RCNN), amp=True)
    with pytest.raises(RunError, match='--auto-scale-lr needs .*base_batch_size'):
        train(config(MASK_RCNN, auto_scale_lr=dict(_delete_=True)), auto_scale_lr=True)
    with pytest.raises(RunError, match='--tta needs tta_model in the config'):
        evaluate(config(MASK_RCNN), 'empty.pth', tta=True)
    with pytest.raises(RunError, match='--out must name a .pkl file, got x.json'):
        evaluate(config(MASK_RCNN), 'empty.pth', out='x.json')


@pytest.mark.skipif(CAN_COMPILE, reason='this PyTorch can compile')
def test_compiling_is_refused_where_it_makes_nan(workplace):
    torch.save({}, 'empty.pth')
    message = re.escape(f'--compile needs PyTorch 2.4 or newer, this is {torch.__version__}')
    with pytest.raises(RunError, match=message):
        train(config(CLASSIFIER), compile=True)
    with pytest.raises(RunError, match=message):
        evaluate(config(CLASSIFIER), 'empty.pth', compile=True)


@pytest.mark.slow
@pytest.mark.skipif(not CAN_COMPILE, reason='torch.compile needs PyTorch 2.4')
def test_compiled_training_and_testing_give_the_same(workplace, monkeypatch):
    graphs = []

    def backend(graph, inputs):  # inductor, the default, takes minutes more on a CPU
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    loader = dict(batch_size=4, num_workers=0, persistent_workers=False)
    options = {
        **{f'{part}_dataloader': loader for part in ('train', 'val', 'test')},
        'train_cfg.max_epochs': 1,
        'train_cfg.val_interval': 2,
        'default_hooks.checkpoint.interval': 1,
        'custom_hooks': [],
    }
    weights, figures = [], []
    for compile in (False, True):
        for step in ('train', 'test'):
            torch.compiler.reset()  # graphs serve all models of a kind
            graphs.clear()
            if step == 'train':
                train(config(CLASSIFIER, **options), compile=compile)
                weights.append(torch.load('work/epoch_1.pth', map_location='cpu', weights_only=False)['state_dict'])
            else:
                figures.append(evaluate(config(CLASSIFIER, **options), 'work/epoch_1.pth', compile=compile))
            assert bool(graphs) == compile
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, rtol=1e-4, atol=1e-4)
    assert figures[0] == figures[1]


def test_missing_config(tmp_path):
    with pytest.raises(RunError, match=f'there is no config file {tmp_path}/nope.py'):
        config(tmp_path / 'nope.py')
    (tmp_path / 'child.py').write_text("_base_ = 'nope.py'")
    with pytest.raises(RunError, match='child.py names a base file that does not exist'):
        config(tmp_path / 'child.py')


def test_weights_of_another_architecture_end_in_one_sentence(workplace, monkeypatch, capsys):
    torch.save(DAT('tiny').state_dict(), 'tiny.pth')
    cfg = config(CLASSIFIER, **{'model.backbone.init_cfg': dict(type='Pretrained', checkpoint='tiny.pth')})
    monkeypatch.setattr(sys, 'argv', ['tools/train.py'])
    with pytest.raises(SystemExit) as exit:
        run(lambda: train(cfg))
    assert exit.value.code == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train.py: these weights are of arch='tiny', but the backbone is")


def test_the_script_ends_with_one_sentence_and_no_traceback(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/train.py'), str(ROOT / 'configs/maskrcnn_dat_t_1x_coco.py')],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith('train.py: ')]
    assert len(sentences) == 1
    assert f'needs the directory {tmp_path}/data/coco, which does not exist' in sentences[0]
    assert not (tmp_path / 'work_dirs').exists()


def test_the_work_directory_follows_the_config(tmp_path):
    assert load_config(str(MASK_RCNN)).work_dir == 'work_dirs/maskrcnn_datnano_shapes'
    assert load_config(str(MASK_RCNN), work_dir='x').work_dir == 'x'
    assert isinstance(load_config(str(MASK_RCNN)), Config)
