"""Every config of the zoo: parses, builds, has the published size, optimizer, schedule and data types."""

import copy
import functools
import importlib
import re
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import yaml
from in_process import load_tool
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, METRICS, MODELS, PARAM_SCHEDULERS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner

from mmdat import DAT

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(path.stem for path in ROOT.glob('*.py'))
# What the metafiles say of each config.
METADATA = {
    model['Name']: model['Metadata']
    for path in ROOT.glob('metafiles/*.yml')
    for model in yaml.safe_load(path.read_text())['Models']
}

# The papers' counts, of models for 224x224 with 1000 classes.
CLASSIFIER_PARAMETERS = {
    'dat_t': 28319138,
    'dat_s': 49700402,
    'dat_b': 87881632,
    'datpp_t': 23962876,
    'datpp_s': 53127366,
    'datpp_b': 93690640,
}
# The DAT paper's sizes of whole models, in millions, in the order T, S, B.
MODEL_PARAMETERS = {
    'retinanet': (38, 60),
    'maskrcnn': (48, 69),
    'cascade_maskrcnn': (86, 107, 145),
    'semfpn': (32, 53, 92),
    'upernet': (60, 81, 121),
}
# DAT's Semantic FPN has the published sizes with position-bias tables for this image size; docs/model_zoo.md says more.
SEMFPN_IMG_SIZE = 384
# (learning rate, weight decay, batch size they are for, epochs or iterations, final learning rate)
RECIPES = {
    'retinanet_1x': (5e-5, 0.05, 16, 12, 5e-7),
    'retinanet_3x': (5e-5, 0.05, 16, 36, 5e-7),
    'maskrcnn_1x': (1e-4, 0.05, 16, 12, 1e-6),
    'maskrcnn_3x': (1e-4, 0.05, 16, 36, 1e-6),
    'cascade_maskrcnn_1x': (1e-4, 0.05, 16, 12, 1e-6),
    'cascade_maskrcnn_3x': (1e-4, 0.05, 16, 36, 1e-6),
    'semfpn_80k': (1e-4, 1e-4, 16, 80000, 0),
    'semfpn_40k': (2e-4, 1e-4, 32, 40000, 0),
    'upernet_160k': (6e-5, 0.01, 16, 160000, 0),
    'classifier_300e': (1e-3, 0.05, 1024, 300, 1e-5),
    'dat_b_300e': (8e-4, 0.05, 1024, 300, 1e-5),
    'dat_b_30e': (2e-6, 1e-8, 512, 30, 1e-7),
    'datpp_b_30e': (2e-5, 1e-8, 512, 30, 2e-7),
    'dino_12e': (1e-4, 1e-4, 16, 12, 1e-5),
    'dino_36e': (1e-4, 1e-4, 16, 36, 1e-6),
    'mask2former_50e': (1e-4, 0.05, 16, 368750, 1e-6),
    'mask2former_160k': (1e-4, 0.05, 16, 160000, 0),
}
# Stochastic depth in the order T, S, B; None where there is no such config.
DROP_PATH = {
    'retinanet_dat_1x': (0.1, 0.1),
    'retinanet_dat_3x': (0.2, 0.2),
    'retinanet_datpp_1x': (0.0, 0.1),
    'retinanet_datpp_3x': (0.2, 0.5),
    'maskrcnn_dat_1x': (0.1, 0.1),
    'maskrcnn_dat_3x': (0.2, 0.2),
    'maskrcnn_datpp_1x': (0.0, 0.1),
    'maskrcnn_datpp_3x': (0.3, 0.5),
    'cascade_maskrcnn_dat_1x': (0.0,),
    'cascade_maskrcnn_dat_3x': (0.2, 0.2, 0.3),
    'cascade_maskrcnn_datpp_1x': (0.0,),
    'cascade_maskrcnn_datpp_3x': (0.1, 0.5, 0.8),
    'semfpn_dat_80k': (0.2, 0.3, 0.5),
    'semfpn_datpp_40k': (0.4, 0.4, 0.7),
    'upernet_dat_160k': (0.3, 0.3, 0.3),
    'upernet_datpp_160k': (0.3, 0.5, 0.7),
    'classifier_dat_300e': (0.2, 0.3, 0.5),
    'classifier_datpp_300e': (0.2, 0.4, 0.7),
    'classifier_dat_30e': (None, None, 0.5),
    'classifier_datpp_30e': (None, None, 0.6),
    'dino_dat_12e': (0.2,),
    'dino_dat_36e': (0.2,),
    'dino_datpp_12e': (0.2, None, 0.2),
    'dino_datpp_36e': (0.2, None, 0.2),
    'mask2former_dat_50e': (0.3,),
    'mask2former_dat_160k': (0.3,),
    'mask2former_datpp_50e': (0.3, None, 0.3),
    'mask2former_datpp_160k': (0.3, None, 0.3),
}


get_flops = load_tool('get_flops')


class Name:
    """What the name of a config says: {head}_{dat|datpp}_{t|s|b}_{schedule}_{dataset}."""

    def __init__(self, name: str):
        match = re.fullmatch(
            r'(?:(\w+)_)?(dat|datpp)_([tsb])_([0-9]+[xek])_(coco|coco_panoptic|ade20k|in1k(?:_384)?)', name
        )
        self.name = name
        assert match, f'{name} does not follow the naming rule of configs/README.md'
        self.head = match[1] or 'classifier'
        self.generation, self.size, self.schedule, self.dataset = match.groups()[1:]
        self.backbone = f'{self.generation}_{self.size}'
        #: The published settings: (learning rate, weight decay, batch size, epochs or iterations, final learning rate).
        self.recipe = RECIPES.get(f'{self.backbone}_{self.schedule}') if self.head == 'classifier' else None
        self.recipe = self.recipe or RECIPES[f'{self.head}_{self.schedule}']
        self.toolbox = {'coco': 'mmdet', 'ade20k': 'mmseg', 'in1k': 'mmpretrain'}[self.dataset.split('_')[0]]

    def __str__(self) -> str:
        return self.name


def load(name: str) -> Config:
    """Parse a config and let its toolbox register its classes."""
    config = Config.fromfile(ROOT / f'{name}.py')
    importlib.import_module(f'{config.default_scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(config.default_scope)
    MMLogger.get_current_instance().setLevel('WARNING')  # MMEngine logs the settings of every parameter
    return config


class Built:
    """A parsed config and its model."""

    def __init__(self, name: str):
        self.name = Name(name)
        self.config = load(name)
        # The meta device holds shapes but no numbers: fast, and no memory even for the largest. A copy, because some
        # detectors write into the config they are built from.
        with torch.device('meta'):
            self.model = MODELS.build(copy.deepcopy(self.config.model))


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
    # The layers that read the backbone's maps: their weights tell what they were made for.
    model, head = built.model, built.name.head
    expected = model.backbone.out_channels
    if head == 'classifier':
        readers = [model.head.fc]
    elif head == 'upernet':
        readers = [*model.decode_head.lateral_convs, model.decode_head.psp_modules[0][1], model.auxiliary_head.convs[0]]
        expected = (*channels, channels[2])
    elif head == 'mask2former':
        decoder = (model.panoptic_head if built.name.toolbox == 'mmdet' else model.decode_head).pixel_decoder
        readers = [*decoder.lateral_convs, *reversed(decoder.input_convs)]
    elif head == 'dino':
        readers = [*model.neck.convs, model.neck.extra_convs[0]]
        expected = (*expected, channels[-1])
    else:
        readers = model.neck.lateral_convs
    assert tuple(next(reader.parameters()).shape[1] for reader in readers) == tuple(expected)


def test_backbone_has_the_published_number_of_parameters(built):
    backbone, options = built.model.backbone, built.config.model.backbone
    if 'img_size' in options:  # the published counts are of models for 224x224
        with torch.device('meta'):
            backbone = DAT(options.arch, out_indices=options.out_indices)
    count = parameters(backbone) + parameters(nn.Linear(backbone.feature_channels[-1], 1000))
    # The classifier that was counted has the norm of the last stage only.
    for stage in backbone.out_indices[:-1]:
        count -= parameters(getattr(backbone, f'norm{stage}'))
    assert count == CLASSIFIER_PARAMETERS[built.name.backbone]


def test_model_has_the_published_size(built):
    name = built.name
    if name.generation == 'datpp' or name.head not in MODEL_PARAMETERS:
        pytest.skip('no published size')
    model = built.model
    if name.head == 'semfpn':
        config = copy.deepcopy(built.config.model)
        config.backbone.img_size = SEMFPN_IMG_SIZE
        with torch.device('meta'):
            model = MODELS.build(config)
    assert round(parameters(model) / 1e6) == MODEL_PARAMETERS[name.head]['tsb'.index(name.size)]


def test_metafile_tells_size_cost_and_length(built):
    metadata, model, loop = METADATA[str(built.name)], built.model, built.config.train_cfg
    count = parameters(model)
    if built.name.head == 'dino':
        # Metafiles count what the current stack builds: a layer that reads 1024 numbers, 512 in OpenMMLab's release.
        layer = model.decoder.ref_point_head.layers[0]
        count += (1024 - layer.in_features) * layer.out_features
    assert metadata['Parameters'] == count
    size = tuple(map(int, metadata['FLOPs Input Size'].split('x')))
    cost = sum(get_flops.backbone_operations(model.backbone, size).values())
    if built.name.head == 'classifier':
        assert metadata['FLOPs'] == cost + model.head.fc.weight.numel()
    else:
        assert metadata['FLOPs'] > cost
    assert metadata.get('Epochs') == loop.get('max_epochs')
    assert metadata.get('Iterations') == loop.get('max_iters')


def test_drop_path_rises_to_the_published_rate(built):
    name = built.name
    rate = DROP_PATH[f'{name.head}_{name.generation}_{name.schedule}']['tsb'.index(name.size)]
    blocks = [block for stage in built.model.backbone.stages for block in stage.blocks]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx(torch.linspace(0, rate, len(blocks)).tolist(), abs=1e-6)


def test_optimizer_spares_norms_and_tables_from_weight_decay(built):
    config, model = built.config, built.model
    lr, decay = built.name.recipe[:2]
    learned_queries = built.name.head in ('dino', 'mask2former')
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm))
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
        if built.name.head in ('semfpn', 'upernet'):
            free = free and name.startswith('backbone.')
        if built.name.head == 'classifier':
            free = free or name.endswith('.bias')
        if built.name.head == 'mask2former':
            free = free or bool(re.search(r'(query_embed|query_feat|level_embed)\.weight$', name))
        if built.name.head == 'dino':
            free = free or name in ('query_embedding.weight', 'level_embed')
        assert group['weight_decay'] == (0 if free else decay), name
        slow = learned_queries and name.startswith('backbone.')
        assert group['lr'] == pytest.approx(0.1 * lr if slow else lr), name
        assert tuple(group['betas']) == (0.9, 0.999)
    assert not settings, 'the optimizer holds parameters that the model does not have'
    assert tables == sum(model.backbone.arch.depths)


def test_auto_scale_lr_knows_its_batch_size(built):
    batch_size = built.name.recipe[2]
    assert built.config.auto_scale_lr == dict(enable=False, base_batch_size=batch_size)
    gpus = 8
    assert built.config.train_dataloader.batch_size * gpus == batch_size


def test_schedule_has_the_published_length_and_end(built):
    lr, _, _, length, end = built.name.recipe
    loop = built.config.train_cfg
    by_epoch = 'max_epochs' in loop
    assert (loop.max_epochs if by_epoch else loop.max_iters) == length
    rates = learning_rates(Config(dict(scheduler=built.config.param_scheduler)).dump(), lr, length, by_epoch)
    assert max(rates) == pytest.approx(lr, rel=0.012)
    assert rates[-1] == pytest.approx(end, abs=lr / 1000)


# Long enough for the warm-up of 500 iterations to end before the first milestone.
EPOCH_LENGTH = 100


@functools.cache
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


def assert_registered(registry, options: dict) -> None:
    """The type is found from the config's default scope."""
    with registry.switch_scope_and_registry(None) as scoped:
        assert scoped.get(options['type']) is not None, f'{options["type"]} is not in the registry'


def build_pipeline(pipeline: list) -> None:
    """Build all transforms, so that their arguments are checked as well."""
    for transform in pipeline:
        assert_registered(TRANSFORMS, transform)
    try:
        Compose(pipeline)
    except ImportError as error:
        if 'panopticapi' not in str(error):
            raise
        pytest.skip('panopticapi, which mmdet needs for COCO panoptic, is not installed')


def test_datasets_and_pipelines_exist(built):
    config = built.config
    for part in ('train', 'val', 'test'):
        dataset = config[f'{part}_dataloader'].dataset
        assert_registered(DATASETS, dataset)
        build_pipeline(dataset.pipeline)
        if part != 'train':
            evaluators = config[f'{part}_evaluator']
            for evaluator in evaluators if isinstance(evaluators, list) else [evaluators]:
                assert_registered(METRICS, evaluator)
    if built.name.toolbox == 'mmseg':
        build_pipeline(config.tta_pipeline)
        assert_registered(MODELS, config.tta_model)


@pytest.mark.parametrize(
    'name',
    [
        'maskrcnn_dat_t_1x_coco',
        'maskrcnn_datpp_t_1x_coco',
        'retinanet_dat_t_1x_coco',
        'retinanet_datpp_t_1x_coco',
        'upernet_dat_t_160k_ade20k',
        'upernet_datpp_t_160k_ade20k',
        'dat_t_300e_in1k',
        'datpp_t_300e_in1k',
    ],
)
def test_runner_misses_nothing_but_the_data(name, tmp_path):
    config = load(name)
    config.work_dir = str(tmp_path)
    config.experiment_name = name
    for part in ('train', 'val', 'test'):
        config[f'{part}_dataloader'].dataset.data_root = str(tmp_path / 'nowhere')
    runner = Runner.from_cfg(config)
    with pytest.raises(FileNotFoundError, match='nowhere'):
        runner.train()
