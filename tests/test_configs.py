"""Every config of the zoo: parses, builds, has the published size, optimizer, schedule and data types."""
import functools
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(path.stem for path in ROOT.glob('*.py'))

# The papers' counts, of models for 224x224 with 1000 classes.
CLASSIFIER_PARAMETERS = {
    'dat_t': 28319138,
    'dat_s': 49700402,
    'dat_b': 87881632,
    'datpp_t': 23962876,
    'datpp_s': 53127366,
    'datpp_b': 93690640,
}
# The DAT paper's sizes of whole models, in millions.
MODEL_PARAMETERS = {
    ('retinanet', 'dat_t'): 38,
    ('retinanet', 'dat_s'): 60,
    ('maskrcnn', 'dat_t'): 48,
    ('maskrcnn', 'dat_s'): 69,
    ('upernet', 'dat_t'): 60,
    ('upernet', 'dat_s'): 81,
    ('upernet', 'dat_b'): 121,
}
# (learning rate, weight decay, batch size it is for, epochs or iterations, final learning rate)
RECIPES = {
    ('retinanet', '1x'): (5e-5, 0.05, 16, 12, 5e-7),
    ('maskrcnn', '1x'): (1e-4, 0.05, 16, 12, 1e-6),
    ('upernet', '160k'): (6e-5, 0.01, 16, 160000, 0),
    ('classifier', '300e'): (1e-3, 0.05, 1024, 300, 1e-5),
}
# Stochastic depth: by schedule, then in the order T, S, B. One number is for all sizes.
DROP_PATH = {
    ('retinanet', 'dat'): {'1x': 0.1},
    ('retinanet', 'datpp'): {'1x': (0.0, 0.1)},
    ('maskrcnn', 'dat'): {'1x': 0.1},
    ('maskrcnn', 'datpp'): {'1x': (0.0, 0.1)},
    ('upernet', 'dat'): {'160k': 0.3},
    ('upernet', 'datpp'): {'160k': (0.3, 0.5, 0.7)},
    ('classifier', 'dat'): {'300e': (0.2, 0.3, 0.5)},
    ('classifier', 'datpp'): {'300e': (0.2, 0.4, 0.7)},
}


class Name:
    """What the name of a config says: {head}_{dat|datpp}_{t|s|b}_{schedule}_{dataset}."""

    def __init__(self, name: str):
        match = re.fullmatch(r'(?:(\w+)_)?(dat|datpp)_([tsb])_([0-9]+[xek])_(coco|coco_panoptic|ade20k|in1k(?:_384)?)',
                             name)
        assert match, f'{name} does not follow the naming rule of configs/README.md'
        self.head = match[1] or 'classifier'
        self.generation, self.size, self.schedule, self.dataset = match.groups()[1:]
        self.backbone = f'{self.generation}_{self.size}'
        self.toolbox = {'coco': 'mmdet', 'ade20k': 'mmseg', 'in1k': 'mmpretrain'}[self.dataset.split('_')[0]]


def load(name: str) -> Config:
    """Parse a config and let its toolbox register its classes."""
    config = Config.fromfile(ROOT / f'{name}.py')
    importlib.import_module(f'{config.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(config.default_scope)
    return config


class Built:
    """A parsed config and its model."""

    def __init__(self, name: str):
        self.name = Name(name)
        self.config = load(name)
        self.model = MODELS.build(self.config.model)


@pytest.fixture(scope='module', params=CONFIGS)
def built(request):
    return Built(request.param)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_config_follows_the_naming_rule(built):
    backbone = built.config.model.backbone
    assert backbone.type == 'mmdat.DAT'
    size = dict(t='tiny', s='small', b='base')[built.name.size]
    assert backbone.arch == size + ('++' if built.name.generation == 'datpp' else '')
    assert built.config.default_scope == built.name.toolbox


def test_config_inherits_only_from_its_own_base_files():
    for path in ROOT.rglob('*.py'):
        assert not re.search(r'[\'"]mm\w+::', path.read_text()), f'{path} inherits from another package'


def test_channels_follow_the_backbone(built):
    channels = built.model.backbone.feature_channels
    assert built.config.channels == list(channels)
    # The layers that read the backbone's maps: their sizes tell what they were made for.
    model, head = built.model, built.name.head
    if head == 'classifier':
        inputs, expected = [model.head.fc.in_features], channels[-1:]
    elif head == 'upernet':
        inputs = [conv.conv.in_channels for conv in model.decode_head.lateral_convs]
        inputs += [model.decode_head.psp_modules[0][1].conv.in_channels, model.auxiliary_head.convs[0].conv.in_channels]
        expected = (*channels, channels[2])
    else:
        inputs = [conv.conv.in_channels for conv in model.neck.lateral_convs]
        expected = model.backbone.out_channels
    assert tuple(inputs) == tuple(expected)


def test_backbone_has_the_published_number_of_parameters(built):
    backbone = built.model.backbone
    count = parameters(backbone) + nn.Linear(backbone.feature_channels[-1], 1000).weight.numel() + 1000
    # The published count has the norm of the last stage only.
    for stage in backbone.out_indices[:-1]:
        count -= parameters(getattr(backbone, f'norm{stage}'))
    assert count == CLASSIFIER_PARAMETERS[built.name.backbone]


def test_model_has_the_published_size(built):
    published = MODEL_PARAMETERS.get((built.name.head, built.name.backbone))
    if published is None:
        pytest.skip('no published size')
    assert round(parameters(built.model) / 1e6) == published


def test_drop_path_rises_to_the_published_rate(built):
    rate = DROP_PATH[built.name.head, built.name.generation][built.name.schedule]
    if isinstance(rate, tuple):
        rate = rate['tsb'.index(built.name.size)]
    blocks = [block for stage in built.model.backbone.stages for block in stage.blocks]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx(torch.linspace(0, rate, len(blocks)).tolist(), abs=1e-6)


def test_weight_decay_spares_norms_and_tables(built):
    config, model = built.config, built.model
    lr, decay = RECIPES[built.name.head, built.name.schedule][:2]
    norms = {
        id(parameter)
        for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
        for parameter in module.parameters()
    }
    optimizer = build_optim_wrapper(model, config.optim_wrapper).optimizer
    assert isinstance(optimizer, torch.optim.AdamW)
    settings = {id(p): group for group in optimizer.param_groups for p in group['params']}
    tables = 0
    for name, parameter in model.named_parameters():
        group = settings.pop(id(parameter))
        is_table = name.endswith('.relative_position_bias_table')
        tables += is_table
        free = id(parameter) in norms or is_table
        if built.name.head == 'classifier':
            free = free or name.endswith('.bias')
        assert group['weight_decay'] == (0 if free else decay), name
        assert group['lr'] == pytest.approx(lr), name
        assert tuple(group['betas']) == (0.9, 0.999)
    assert not settings, 'the optimizer holds parameters that the model does not have'
    assert tables == sum(built.model.backbone.arch.depths)


def test_auto_scale_lr_knows_its_batch_size(built):
    assert built.config.auto_scale_lr == dict(
        enable=False, base_batch_size=RECIPES[built.name.head, built.name.schedule][2])


def test_schedule_has_the_published_length_and_end(built):
    lr, _, _, length, end = RECIPES[built.name.head, built.name.schedule]
    loop = built.config.train_cfg
    by_epoch = 'max_epochs' in loop
    assert (loop.max_epochs if by_epoch else loop.max_iters) == length
    rates = learning_rates(Config(dict(scheduler=built.config.param_scheduler)).dump(), lr, length, by_epoch)
    assert max(rates) == pytest.approx(lr)
    assert rates[-1] == pytest.approx(end, abs=lr / 1000)


# Long enough for the warm-up of 500 iterations to end before the first milestone.
EPOCH_LENGTH = 100


@functools.lru_cache(maxsize=None)
def learning_rates(scheduler: str, lr: float, length: int, by_epoch: bool) -> list:
    """The learning rate of each iteration (a list), as MMEngine's ParamSchedulerHook steps the schedulers."""
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = []
    for options in Config.fromstring(scheduler, '.py').scheduler:
        options = dict(options)
        if options.pop('convert_to_iter_based', False):
            options['epoch_length'] = EPOCH_LENGTH
            options['convert_to_iter_based'] = True
        schedulers.append(PARAM_SCHEDULERS.build(options, default_args=dict(optimizer=optimizer)))
    rates = []
    iterations = length * EPOCH_LENGTH if by_epoch else length
    optimizer.step()  # once, for the schedulers' check of the order
    for i in range(iterations):
        rates.append(optimizer.param_groups[0]['lr'])
        for one in schedulers:
            if not one.by_epoch or (by_epoch and (i + 1) % EPOCH_LENGTH == 0):
                one.step()
    return rates


def registered(registry, type_name: str) -> bool:
    """Whether a type is found from the config's default scope."""
    with registry.switch_scope_and_registry(None) as scoped:
        return scoped.get(type_name) is not None


def test_datasets_and_pipelines_exist(built):
    config = built.config
    for part in ('train', 'val', 'test'):
        dataset = config[f'{part}_dataloader'].dataset
        assert registered(DATASETS, dataset.type)
        Compose(dataset.pipeline)
        if part != 'train':
            evaluators = config[f'{part}_evaluator']
            for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
                assert registered(METRICS, evaluator.type)
    if built.name.toolbox == 'mmseg':
        Compose(config.tta_pipeline)
        assert registered(MODELS, config.tta_model.type)


@pytest.mark.parametrize('name', [name for name in CONFIGS if '_t_' in name])
def test_runner_misses_nothing_but_the_data(name, tmp_path):
    config = load(name)
    config.work_dir = str(tmp_path)
    config.experiment_name = name
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.data_root = str(tmp_path / 'nowhere')
    runner = Runner.from_cfg(config)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        runner.train()
