"""The values of a recipe as docs/recipes.md shows them, read from what a config builds.

One function per field of configs/recipes.yml, from a config and its model to a text or a list of numbers. The model may
be on the meta device; what needs numbers (anchors, the data preprocessor) is built anew on the CPU.
"""

import functools
import math
import re
from typing import Any

import mmdet.utils
import numpy as np
import torch
import torch.nn as nn
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS, TASK_UTILS, TRANSFORMS
from mmseg.structures import SegDataSample

from mmdat.models import DeformableAttention, NeighborhoodAttention, WindowAttention

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d, nn.SyncBatchNorm)
# Learned parts of DINO and Mask2Former that have no inputs: queries and the codes of the feature levels.
EMBEDDINGS = r'(query_embed|query_feat|level_embed|query_embedding)(\.weight)?$'
# Iterations in an epoch, where the length of an epoch does not matter; more than COCO's warm-up of 500.
EPOCH_LENGTH = 510
IMAGE = (480, 640)  # height, width


def number(value: float) -> str:
    return format(float(value), '.10g')


def numbers(values) -> str:
    return ', '.join(map(number, values))


def sizes(shapes: list) -> str:
    """Heights and widths of an image on its way through a pipeline."""
    return ', then '.join(f'{height}x{width}' for height, width in shapes)


# --- optimizer -----------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def groups(model: nn.Module, settings: str) -> tuple:
    """The optimizer wrapper of a model, and its groups by parameter."""
    wrapper = build_optim_wrapper(model, Config.fromstring(settings, '.py').optim_wrapper)
    return wrapper, {id(p): group for group in wrapper.optimizer.param_groups for p in group['params']}


def built_optimizer(config: Config, model: nn.Module) -> tuple:
    return groups(model, Config(dict(optim_wrapper=config.optim_wrapper)).dump())


def kinds(model: nn.Module) -> dict:
    """All parameters, by what optimizers tell apart."""
    norms = {id(p) for module in model.modules() if isinstance(module, NORMS) for p in module.parameters()}
    found: dict = {}
    for name, parameter in model.named_parameters():
        if id(parameter) in norms:
            kind = 'norms of the backbone' if name.startswith('backbone.') else 'norms of neck and heads'
        elif name.endswith('.relative_position_bias_table'):
            kind = 'position-bias tables'
        elif re.search(EMBEDDINGS, name):
            kind = 'query and level embeddings'
        else:
            kind = 'other biases' if name.endswith('bias') else 'weights'
        found.setdefault(kind, []).append((name, parameter))
    return found


def optimizer(config: Config, model: nn.Module) -> str:
    built = built_optimizer(config, model)[0].optimizer
    betas = ' and '.join(map(number, built.defaults['betas']))
    return f'{type(built).__name__}, betas {betas}, eps {number(built.defaults["eps"])}'


def learning_rate(config: Config, model: nn.Module) -> str:
    by_parameter = built_optimizer(config, model)[1]
    rates: dict = {True: set(), False: set()}
    for name, parameter in model.named_parameters():
        rates[name.startswith('backbone.')].add(number(by_parameter[id(parameter)]['lr']))
    (backbone,), (rest,) = rates[True], rates[False]
    return rest if rest == backbone else f'{rest}, backbone {backbone}'


def weight_decay(config: Config, model: nn.Module) -> str:
    by_parameter = built_optimizer(config, model)[1]
    decay = number(config.optim_wrapper.optimizer.weight_decay)
    spared = []
    for kind, members in kinds(model).items():
        used = {number(by_parameter[id(parameter)]['weight_decay']) for _, parameter in members}
        assert used in ({'0'}, {decay}), f'{kind}: {used}'
        if used == {'0'}:
            spared.append(kind)
    return f'{decay}; spared: {", ".join(sorted(spared)) or "nothing"}'


def clipping(config: Config, model: nn.Module) -> str:
    options = built_optimizer(config, model)[0].clip_grad_kwargs
    return f'gradient norm {number(options["max_norm"])}' if options else 'none'


def batch(config: Config, model: nn.Module) -> str:
    total, per_device = config.auto_scale_lr.base_batch_size, config.train_dataloader.batch_size
    assert total % per_device == 0 and not config.auto_scale_lr.enable
    return f'{total} ({total // per_device} devices, {per_device} each)'


def precision(config: Config, model: nn.Module) -> str:
    wrapper = type(built_optimizer(config, model)[0]).__name__
    return {'OptimWrapper': 'float32; float16 with --amp', 'AmpOptimWrapper': 'float16'}[wrapper]


# --- schedule ------------------------------------------------------------------------------------------------------


def length(config: Config, model: nn.Module) -> str:
    loop = config.train_cfg
    return f'{loop.max_epochs} epochs' if 'max_epochs' in loop else f'{loop.max_iters} iterations'


def warm_up(config: Config, model: nn.Module) -> str:
    first = config.param_scheduler[0]
    if first.type == 'mmdat.WarmupCosineLR':
        return f'{number(first.warmup * first.end)} epochs from {number(first.warmup_ratio)} of the rate'
    if first.type == 'LinearLR':
        return f'{first.end - first.begin - 1} iterations from {number(first.start_factor)} of the rate'
    return 'none'


def curve(config: Config) -> list:
    """The learning rate of each iteration, the schedulers stepped as MMEngine's ParamSchedulerHook does.

    In epochs of EPOCH_LENGTH iterations, where the config counts in epochs.
    """
    schedulers = Config(dict(scheduler=config.param_scheduler)).dump()
    by_epoch = 'max_epochs' in config.train_cfg
    iterations = config.train_cfg.max_epochs * EPOCH_LENGTH if by_epoch else config.train_cfg.max_iters
    return _curve(schedulers, config.optim_wrapper.optimizer.lr, iterations, by_epoch)


@functools.cache
def _curve(schedulers: str, lr: float, iterations: int, by_epoch: bool) -> list:
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=lr)
    built = []
    for options in Config.fromstring(schedulers, '.py').scheduler:
        convert = dict(epoch_length=EPOCH_LENGTH) if options.get('convert_to_iter_based') else {}
        built.append(PARAM_SCHEDULERS.build(dict(options, **convert), default_args=dict(optimizer=optimizer)))
    rates = []
    optimizer.step()  # once, for the schedulers' check of the order
    for i in range(iterations):
        rates.append(optimizer.param_groups[0]['lr'])
        for one in built:
            if not one.by_epoch or (by_epoch and (i + 1) % EPOCH_LENGTH == 0):
                one.step()
    return rates


# --- model ---------------------------------------------------------------------------------------------------------


def drop_path(config: Config, model: nn.Module) -> str:
    rates = [block.drop_path.drop_prob for stage in model.backbone.stages for block in stage.blocks]
    assert np.allclose(rates, np.linspace(0, rates[-1], len(rates)), atol=1e-6), 'does not rise linearly'
    return number(rates[-1])


def mixers(model: nn.Module, kind: type) -> list:
    """The mixers of a kind, for each stage that has some."""
    found = [
        [block.mixer for block in stage.blocks if isinstance(block.mixer, kind)] for stage in model.backbone.stages
    ]
    return [of_stage for of_stage in found if of_stage]


def tables(config: Config, model: nn.Module) -> str:
    parts = []
    for letters, kind in (('D', DeformableAttention), ('N', NeighborhoodAttention), ('L and S', WindowAttention)):
        sides = []
        for of_stage in mixers(model, kind):
            shapes = {tuple(mixer.relative_position_bias_table.shape) for mixer in of_stage}
            (shape,) = shapes
            sides.append(math.isqrt(shape[0]) if kind is WindowAttention else shape[-1])
        if sides:
            sides = sides if len(set(sides)) > 1 else sides[:1]
            parts.append(f'{letters} {" / ".join(map(str, sides))}')
    return ', '.join(parts)


def window(config: Config, model: nn.Module) -> str:
    parts = []
    for letters, kind, name in (
        ('L and S', WindowAttention, 'window_size'),
        ('N', NeighborhoodAttention, 'kernel_size'),
    ):
        sides = {getattr(mixer, name) for of_stage in mixers(model, kind) for mixer in of_stage}
        parts.extend(f'{letters} {side}' for side in sides)
    return ', '.join(parts)


def layers(module: nn.Module) -> str:
    """How many convolutions and linear layers a module has, and its norms."""
    counts: dict = {}
    for one in module.modules():
        if isinstance(one, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)):
            name = 'convolutions'
        elif isinstance(one, nn.Linear):
            name = 'linear layers'
        elif isinstance(one, NORMS):
            name = type(one).__name__
        else:
            continue
        counts[name] = counts.get(name, 0) + 1
    return ', '.join(f'{count} {name if count > 1 else name.removesuffix("s")}' for name, count in counts.items())


def neck(config: Config, model: nn.Module) -> str:
    if not getattr(model, 'neck', None):
        return 'none'
    text = layers(model.neck)
    name = type(model.neck).__name__
    if name == 'FPN':
        extra = len(model.neck.fpn_convs) - len(model.neck.lateral_convs)
        levels = f'{model.neck.num_outs} levels, {extra} of them trained beyond the stages'
        return f'FPN, {model.neck.out_channels} channels, {levels}'
    return f'{name}, {text}' if text else name


def heads(config: Config, model: nn.Module) -> str:
    names = ('rpn_head', 'bbox_head', 'panoptic_head', 'decode_head', 'auxiliary_head', 'head')
    parts = [getattr(model, name) for name in names if getattr(model, name, None)]
    if getattr(model, 'roi_head', None):
        parts += [model.roi_head.bbox_head, model.roi_head.mask_head]
    texts = []
    for part in parts:
        stages = part if isinstance(part, nn.ModuleList) else [part]
        times = f'{len(stages)} x ' if len(stages) > 1 else ''
        texts.append(f'{times}{type(stages[0]).__name__} ({layers(stages[0])})')
    return '; '.join(texts)


def losses(config: Config, model: nn.Module) -> str:
    found: dict = {}
    for name, module in model.named_modules():
        path, _, last = name.rpartition('.')
        weight = getattr(module, 'loss_weight', None)
        if weight is not None and re.match(r'loss', last):
            path = re.sub(r'\.\d+', '', path)
            text = f'{type(module).__name__} {number(weight)}'
            if text not in found.setdefault(path, []):
                found[path].append(text)
    return '; '.join(f'{path}: {", ".join(texts)}' for path, texts in found.items())


def anchors(config: Config, model: nn.Module) -> str:
    head = config.model.get('rpn_head') or config.model.get('bbox_head') or {}
    if 'anchor_generator' not in head:
        return 'none'
    mmdet.utils.register_all_modules(init_default_scope=False)
    generator = TASK_UTILS.build(dict(head.anchor_generator))
    strides = [stride for stride, _ in generator.strides]
    shapes = set()
    for stride, boxes in zip(strides, generator.base_anchors):
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        shapes.add(
            (
                tuple(sorted({round(float(s), 2) for s in (width * height).sqrt() / stride})),
                tuple(sorted({round(float(r), 2) for r in height / width})),
            )
        )
    ((sides, ratios),) = shapes
    return f'strides {numbers(strides)}; sides {numbers(sides)} x stride; height to width {numbers(ratios)}'


def matching(config: Config, model: nn.Module) -> str:
    """How predictions and objects are matched in training."""

    def described(options: Config) -> str:
        assigner = options.assigner
        if 'match_costs' in assigner:
            costs = ', '.join(f'{one.type.rpartition(".")[2]} {number(one.weight)}' for one in assigner.match_costs)
            return f'Hungarian by {costs}'
        text = f'overlap from {number(assigner.pos_iou_thr)}, none below {number(assigner.neg_iou_thr)}'
        if 'num' in options.sampler:
            text += f', {options.sampler.num} samples, {number(options.sampler.pos_fraction)} of them objects'
        return text

    head = config.model.get('decode_head') or config.model
    options = head.get('train_cfg') or {}
    if 'assigner' in options:
        return described(options)
    stages = options.get('rcnn') or []
    parts = [('RPN', options['rpn'])] if 'rpn' in options else []
    parts += [('boxes', stage) for stage in (stages if isinstance(stages, list) else [stages])]
    return '; '.join(f'{name}: {described(stage)}' for name, stage in parts) or 'none'


def proposals(config: Config, model: nn.Module) -> str:
    train, test = getattr(model, 'train_cfg', None) or {}, getattr(model, 'test_cfg', None) or {}
    parts = []
    for when, options in (('training', train.get('rpn_proposal')), ('test', test.get('rpn'))):
        if options:
            overlap = number(options.nms.iou_threshold)
            parts.append(f'{when}: {options.nms_pre} per level, NMS {overlap}, {options.max_per_img} left')
    final = test.get('rcnn') or test
    if 'nms' in final:
        kept = f'boxes above {number(final.score_thr)}, NMS {number(final.nms.iou_threshold)}'
        before = f', {final.nms_pre} per level' if 'nms_pre' in final else ''
        parts.append(f'result: {kept}{before}, {final.max_per_img} per image')
    elif 'max_per_img' in final or 'max_per_image' in final:
        queries = config.model.get('num_queries') or config.model.panoptic_head.num_queries
        parts.append(f'{queries} queries, {final.get("max_per_img") or final.max_per_image} per image')
    return '; '.join(parts) or 'none'


def sliding_windows(config: Config, model: nn.Module) -> str:
    mode = (getattr(model, 'test_cfg', None) or {}).get('mode')
    return {'whole': 'none, whole images', None: 'none'}[mode]


# --- data ----------------------------------------------------------------------------------------------------------


def build(transform: dict) -> Any:
    return TRANSFORMS.build(dict(transform))


def walk(pipeline: list) -> list:
    """The settings of all transforms of a pipeline, choices included."""
    found = []
    for transform in pipeline:
        if transform.type == 'RandomChoice':
            found += [one for branch in transform.transforms for one in walk(branch)]
        else:
            found.append(transform)
    return found


def sample() -> dict:
    image = np.random.randint(0, 256, (*IMAGE, 3), dtype=np.uint8)
    return dict(img=image, img_shape=IMAGE, ori_shape=IMAGE, height=IMAGE[0], width=IMAGE[1])


def applied(pipeline: list) -> list:
    """The sizes that an image of IMAGE has after each transform of a test pipeline that changes its size."""
    results, shapes = sample(), [IMAGE]
    for transform in pipeline:
        if not re.match(r'Load|Pack', transform.type):
            results = build(transform)(results)
            if results['img'].shape[:2] != shapes[-1]:
                shapes.append(results['img'].shape[:2])
    return shapes[1:]


def test_sizes(config: Config, model: nn.Module) -> str:
    return sizes(applied(config.test_dataloader.dataset.pipeline))


def training_sizes(config: Config, model: nn.Module) -> str:
    return '; '.join(size_changes(config.train_dataloader.dataset.pipeline))


def size_changes(pipeline: list) -> list:
    """What the transforms of a training pipeline do to the size of an image, in words."""
    texts = []
    for options in pipeline:
        if options.type == 'RandomChoice':
            texts.append('either ' + ', or '.join(', then '.join(size_changes(one)) for one in options.transforms))
        elif options.type == 'RandomChoiceResize':
            one = build(options)
            long = options.get('max_size') or one.scales[0][1]
            shorts = [scale if isinstance(scale, int) else scale[0] for scale in one.scales]
            steps = {b - a for a, b in zip(shorts, shorts[1:])}
            text = f'{shorts[0]} to {shorts[-1]} by {steps.pop()}' if len(steps) == 1 else numbers(shorts)
            texts.append(f'short side {text} (long at most {long})')
        elif options.type == 'RandomResize':
            scale, ratios = options.scale, options.ratio_range
            texts.append(f'within {scale[0]}x{scale[1]} times {number(ratios[0])} to {number(ratios[1])}')
        elif options.type == 'RandomCrop':
            low, high = options.crop_size
            kind = f'{low} to {high}' if options.get('crop_type') == 'absolute_range' else f'{low}x{high}'
            filled = f' (no class above {options.cat_max_ratio} of it)' if 'cat_max_ratio' in options else ''
            texts.append(f'crop {kind}{filled}')
        elif options.type == 'RandomResizedCrop':
            one = build(options)
            low, high = one.crop_ratio_range
            texts.append(f'crop of {number(low)} to {number(high)} of the area, to {one.scale[0]}x{one.scale[1]}')
    return texts


def augmentation(config: Config, model: nn.Module) -> str:
    parts = []
    for options in walk(config.train_dataloader.dataset.pipeline):
        if options.type == 'RandomFlip':
            parts.append(f'flip {number(options.prob)}')
        elif options.type == 'RandAugment':
            one = build(options)
            assert one.total_level == 10 and options.policies == 'timm_increasing'
            level = f'{one.magnitude_level}, deviation {number(one.magnitude_std)}'
            parts.append(f'RandAugment of {one.num_policies}, level {level}, increasing')
        elif options.type == 'RandomErasing':
            area = f'{number(options.min_area_ratio)} to {options.max_area_ratio:.2f}'
            parts.append(f'erasing {number(options.erase_prob)}, {area} of the area, noise')
        elif options.type == 'PhotoMetricDistortion':
            parts.append('photometric distortion')
    for options in (config.model.get('train_cfg') or {}).get('augments') or []:
        parts.append(f'{options.type} {number(options.alpha)}')
    smoothing = getattr(getattr(getattr(model, 'head', None), 'loss_module', None), 'label_smooth_val', None)
    if smoothing:
        parts.append(f'label smoothing {number(smoothing)}')
    return ', '.join(parts)


def normalisation(config: Config, model: nn.Module) -> str:
    """By the effect on black, white and blue images; images are read as BGR."""
    options = config.model.get('data_preprocessor') or dict(type='ClsDataPreprocessor', **config.data_preprocessor)
    preprocessor = MODELS.build(dict(options)).eval()

    def normalised(blue: int, rest: int) -> torch.Tensor:
        image = torch.full((3, 32, 32), rest, dtype=torch.uint8)
        image[0] = blue
        samples = [SegDataSample()] if config.default_scope == 'mmseg' else None
        return preprocessor(dict(inputs=[image], data_samples=samples))['inputs'][0, :, 0, 0].double()

    black, white = normalised(0, 0), normalised(255, 255)
    std = 255 / (white - black)
    order = {0: 'BGR', 2: 'RGB'}[int((normalised(255, 0) - black).argmax())]
    mean = [round(value, 3) for value in (-black * std).tolist()]
    return f'mean {numbers(mean)}, std {numbers(round(value, 3) for value in std.tolist())}, {order}'


def test_time_augmentation(config: Config, model: nn.Module) -> str:
    if 'tta_pipeline' not in config:
        return 'none'
    scales, flips = config.tta_pipeline[1].transforms[:2]
    shapes = [(applied([scale]) or [IMAGE])[0] for scale in scales]
    assert [flip.prob for flip in flips] == [0.0, 1.0]
    return f'{", ".join(f"{height}x{width}" for height, width in shapes)}, each also flipped'


#: What the docs show, in this order; 'schedule' is compared as numbers.
FIELDS = dict(
    optimizer=optimizer,
    learning_rate=learning_rate,
    weight_decay=weight_decay,
    length=length,
    warm_up=warm_up,
    clipping=clipping,
    batch=batch,
    precision=precision,
    drop_path=drop_path,
    tables=tables,
    window=window,
    neck=neck,
    heads=heads,
    losses=losses,
    anchors=anchors,
    matching=matching,
    proposals=proposals,
    training_sizes=training_sizes,
    augmentation=augmentation,
    test_sizes=test_sizes,
    normalisation=normalisation,
    sliding_windows=sliding_windows,
    test_time_augmentation=test_time_augmentation,
)
