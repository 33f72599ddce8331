"""Every config of the zoo: parses, builds, has the published size and the recipe of docs/recipes.md."""

import copy
import functools
import importlib
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn as nn
import yaml
from in_process import load_script
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, METRICS, MODELS, TRANSFORMS, init_default_scope
from mmengine.runner import Runner
from recipe_values import FIELDS, built_optimizer

from mmdat import DAT
from mmdat.analysis import backbone_operations

ROOT = Path(__file__).parents[1] / 'configs'
CONFIGS = sorted(path.stem for path in ROOT.glob('*.py'))
# What the metafiles say of each config.
METADATA = {
    model['Name']: model['Metadata']
    for path in ROOT.glob('metafiles/*.yml')
    for model in yaml.safe_load(path.read_text())['Models']
}

# The counts of the papers and of the released DAT+, of models for 224x224 with 1000 classes.
CLASSIFIER_PARAMETERS = {
    'dat_t': 28319138,
    'dat_s': 49700402,
    'dat_b': 87881632,
    'datp_t': 22772796,
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
RECIPES = {config: family for family in load_script('dev/recipes.py').families() for config in family.configs}
# DAT's Semantic FPN has the published sizes with position-bias tables for this image size; docs/model_zoo.md says more.
SEMFPN_IMG_SIZE = 384


class Name:
    """What the name of a config says: {head}_{dat|datp|datpp}_{t|s|b}_{schedule}_{dataset}."""

    def __init__(self, name: str):
        match = re.fullmatch(
            r'(?:(\w+)_)?(dat|datp|datpp)_([tsb])_([0-9]+[xek])_(coco|coco_panoptic|ade20k|in1k(?:_384)?)', name
        )
        self.name = name
        assert match, f'{name} does not follow the naming rule of configs/README.md'
        self.head = match[1] or 'classifier'
        self.generation, self.size, self.schedule, self.dataset = match.groups()[1:]
        self.backbone = f'{self.generation}_{self.size}'
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
    assert backbone.arch == size + built.name.generation[len('dat') :].replace('p', '+')
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


@functools.lru_cache
def backbone_cost(size: tuple, backbone: str) -> int:
    """Multiply-adds of a backbone's config; many configs share one."""
    config = json.loads(backbone)
    config.pop('type')
    return sum(backbone_operations(size, **config).values())


def test_metafile_tells_size_cost_and_length(built):
    metadata, model, loop = METADATA[str(built.name)], built.model, built.config.train_cfg
    count = parameters(model)
    if built.name.head == 'dino':
        # Metafiles count what the current stack builds: a layer that reads 1024 numbers, 512 in OpenMMLab's release.
        layer = model.decoder.ref_point_head.layers[0]
        count += (1024 - layer.in_features) * layer.out_features
    assert metadata['Parameters'] == count
    size = tuple(map(int, metadata['FLOPs Input Size'].split('x')))
    cost = backbone_cost(size, json.dumps({**built.config.model.backbone, 'drop_path_rate': 0, 'init_cfg': None}))
    if built.name.head == 'classifier':
        assert metadata['FLOPs'] == cost + model.head.fc.weight.numel()
    else:
        assert metadata['FLOPs'] > cost
    assert metadata.get('Epochs') == loop.get('max_epochs')
    assert metadata.get('Iterations') == loop.get('max_iters')


def test_recipe_says_what_is_built(built):
    """docs/recipes.md, value by value."""
    name = str(built.name)
    table = {field: RECIPES[name].of(name, field).value for field in FIELDS}
    assert {field: read(built.config, built.model) for field, read in FIELDS.items()} == table


def test_optimizer_spares_what_the_backbone_names(built):
    """The lists of the configs follow from the model's own."""
    backbone = built.model.backbone
    by_parameter = built_optimizer(built.config, built.model)[1]
    spared = {name for name, p in backbone.named_parameters() if by_parameter[id(p)]['weight_decay'] == 0}
    biases = {name for name, _ in backbone.named_parameters() if name.endswith('.bias')}
    assert spared == backbone.no_weight_decay() | (biases if built.name.head == 'classifier' else set())


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
