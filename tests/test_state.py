"""Whatever mmdat does with MMEngine, mmpretrain and PyTorch, they are afterwards as they were before."""

import gc
import importlib
import multiprocessing
import os
import warnings
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path

import cv2
import mmengine.registry
import mmpretrain.utils.progress
import mmpretrain.visualization
import mmseg.visualization  # noqa: F401
import pytest
import torch
from mmengine.fileio.backends.registry_utils import backends, prefix_to_backends
from mmengine.fileio.handlers import file_handlers
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, DefaultScope, Registry
from mmengine.runner import CheckpointLoader
from small_runs import SIZE, small_config

import mmdat.hooks  # noqa: F401
from mmdat.apis import Predictor, build_model, draw_deformation, evaluate, infer, load_backbone, network_input, train
from mmdat.datasets import make_shapes

IMAGE = 'data/shapes/images/validation/shapes_val_00001.jpg'
TASKS = ('classifier', 'maskrcnn', 'upernet')


@HOOKS.register_module()
class Fail(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        raise KeyError('a hook that fails')


def registries(registry):
    yield registry
    for child in registry.children.values():
        yield from registries(child)


def state():
    """What the packages keep for a whole process."""
    roots = [value for value in vars(mmengine.registry).values() if isinstance(value, Registry)]
    scope = DefaultScope.get_current_instance()
    return {
        'environment': dict(os.environ),
        'registries': {(one.name, one.scope): dict(one.module_dict) for root in roots for one in registries(root.root)},
        # There is no public way to ask for the loaders.
        'loaders of checkpoints': dict(CheckpointLoader._schemes),
        'file handlers': dict(file_handlers),
        'file backends': (dict(backends), dict(prefix_to_backends)),
        'default scope': scope and scope.scope_name,
        'progress bar': mmpretrain.utils.progress.disable_progress_bar,
        'cuDNN': (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        'deterministic': torch.are_deterministic_algorithms_enabled(),
        'functions of torch': (torch.load, torch.compile, torch.nn.Module.forward, torch.get_default_dtype()),
        'gradients': torch.is_grad_enabled(),
        'process group': torch.distributed.is_initialized(),
        'start method': multiprocessing.get_start_method(),
        'threads': (torch.get_num_threads(), cv2.getNumThreads()),
        'warnings': list(warnings.filters),
    }


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Demo data and an untrained checkpoint for each task; all that is registered by imports is registered."""
    place = tmp_path_factory.mktemp('state')
    with suppress(ImportError):  # a run may import it, and it adds a filter of warnings
        importlib.import_module('pkg_resources')
    make_shapes(place / 'data/shapes', num_train=2, num_val=1, size=SIZE)
    for task in TASKS:
        model = build_model(small_config(task, 'dat', 'work'))
        torch.save(dict(state_dict=model.state_dict(), meta={}), place / f'{task}.pth')
    return place


@pytest.fixture
def workplace(place, tmp_path, monkeypatch):
    for path in place.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    torch.save(dict(state_dict={'head.fc.bias': torch.zeros(7)}), 'other.pth')
    return tmp_path


def config(task='classifier', **options):
    options = {'custom_hooks': [], 'env_cfg.cudnn_benchmark': True, 'env_cfg.mp_cfg.opencv_num_threads': 1, **options}
    return small_config(task, 'dat', Path.cwd() / 'work', options)


#: What works, and what fails at different depths.
USES = {
    'train': lambda: train(config()),
    'evaluate': lambda: evaluate(config(), 'classifier.pth'),
    'predict': lambda: [Predictor(config(task), f'{task}.pth', 'cpu').predict([cv2.imread(IMAGE)]) for task in TASKS],
    'infer': lambda: infer(config(), 'classifier.pth', [IMAGE], 'out', 'cpu'),
    'draw': lambda: draw_deformation(config(), IMAGE, 'classifier.pth'),
    'read': lambda: network_input(config(), IMAGE, 'dat') and load_backbone(config(), 'classifier.pth'),
    'trust': lambda: evaluate(config(), 'classifier.pth', trust_files=True),
    'failing hook': lambda: train(config(custom_hooks=[dict(type='Fail')])),
    'failing model': lambda: train(config(**{'model.head.in_channels': -1})),
    'missing data': lambda: train(config(**{'train_dataloader.dataset.data_root': 'nope'})),
    'other weights to test': lambda: evaluate(config(), 'other.pth'),
    'other weights to predict with': lambda: Predictor(config(), 'other.pth', 'cpu'),
    'other weights to draw': lambda: draw_deformation(config(), IMAGE, 'other.pth'),
    'missing image': lambda: network_input(config(), 'nope.jpg', 'dat'),
}


@pytest.mark.parametrize('name', USES)
def test_everything_is_as_it_was(name, workplace):
    before = state()
    if 'failing' in name or 'missing' in name or 'other' in name:
        with pytest.raises((RuntimeError, KeyError)):
            USES[name]()
    else:
        USES[name]()
    after = state()
    for kind, value in before.items():
        assert after[kind] == value, kind


@pytest.mark.parametrize('task', TASKS)
def test_nothing_keeps_the_weights_of_a_deleted_predictor(task, workplace):
    predictor = Predictor(config(task), f'{task}.pth', 'cpu')
    image = cv2.imread(IMAGE)
    predictor.draw(image, predictor.predict([image])[0], 0.3)
    parameters = [weakref.ref(parameter) for parameter in predictor.model.parameters()]
    assert len(parameters) > 50 and all(parameter() is not None for parameter in parameters)
    del predictor
    gc.collect()
    assert all(parameter() is None for parameter in parameters)


def test_another_projects_loader_of_checkpoints_is_back_after_a_run(workplace):
    loader = partial(dict, 'theirs')
    before = dict(CheckpointLoader._schemes)
    try:
        CheckpointLoader.register_scheme('', loader, force=True)
        evaluate(config(), 'classifier.pth')
        assert CheckpointLoader._schemes[''] is loader
    finally:
        CheckpointLoader._schemes = before
