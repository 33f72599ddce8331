"""configs/recipes.yml as a whole, the curves of the learning rate, and what the training pipelines do to images.

The other values are compared config by config in test_configs.py.
"""

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from in_process import load_script
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dataset import Compose
from mmengine.optim import CosineAnnealingLR
from recipe_values import EPOCH_LENGTH, IMAGE, curve, sample
from test_configs import CONFIGS, FIELDS, load

from mmdat.schedulers import WarmupCosineLR

ROOT = Path(__file__).parents[1]
recipes = load_script('dev/recipes.py')
FAMILIES = recipes.families()
FAMILY = {config: family for family in FAMILIES for config in family.configs}
# A config of each curve.
CURVES = {}
for config, family in FAMILY.items():
    CURVES.setdefault(tuple(family.of(config, 'schedule').value.items()), config)
CURVES = sorted(CURVES.values())


def test_every_config_is_in_one_family():
    assert sorted(config for family in FAMILIES for config in family.configs) == CONFIGS


def test_every_family_has_all_fields_and_their_sources():
    sources = recipes.yaml.safe_load(recipes.SOURCE.read_text())['sources']
    assert set(recipes.FIELDS) == {*FIELDS, 'schedule'}
    for family in FAMILIES:
        assert set(family.fields) == set(recipes.FIELDS), family.name
        for name, (value, source, *differs) in family.fields.items():
            assert source in sources, (family.name, name)
            assert differs if source == 'inferred' and value != 'none' else True, (
                family.name,
                name,
            )


def test_document_says_what_the_file_says():
    done = subprocess.run([sys.executable, ROOT / 'dev/recipes.py', '--check'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- learning rates ------------------------------------------------------------------------------------------------


def timm_cosine(peak, end, epochs, warm_up=0, start=0.0):
    """timm's CosineLRScheduler with one cycle, by iteration."""

    def rate(i):
        if i < warm_up * EPOCH_LENGTH:
            return start + i * (peak - start) / (warm_up * EPOCH_LENGTH)
        return end + 0.5 * (peak - end) * (1 + math.cos(math.pi * i / (epochs * EPOCH_LENGTH)))

    return rate


def warmed_up(rate, iterations, ratio):
    """mmcv 1's linear warm-up over another curve."""
    return lambda i: rate(i) * (1 - (1 - i / iterations) * (1 - ratio)) if i < iterations else rate(i)


def steps(peak, *epochs):
    return lambda i: peak * 0.1 ** sum(i >= epoch * EPOCH_LENGTH for epoch in epochs)


def poly(peak, power, iterations):
    return lambda i: peak * (1 - i / iterations) ** power


# What the authors' code computes, from the numbers in their files.
RELEASED = {
    'dat_s_300e_in1k': timm_cosine(1e-3, 1e-5, 300, 20, 1e-6),
    'dat_b_300e_in1k': timm_cosine(8e-4, 1e-5, 300, 50, 1e-6),
    'dat_b_30e_in1k_384': timm_cosine(2e-6, 1e-7, 30),
    'datpp_b_30e_in1k_384': timm_cosine(2e-5, 2e-7, 30),
    'retinanet_datpp_t_1x_coco': warmed_up(steps(5e-5, 8, 11), 500, 0.001),
    'retinanet_datpp_t_3x_coco': warmed_up(steps(5e-5, 27, 33), 500, 0.001),
    'maskrcnn_datpp_t_1x_coco': warmed_up(steps(1e-4, 8, 11), 500, 0.001),
    'cascade_maskrcnn_datpp_t_3x_coco': warmed_up(steps(1e-4, 27, 33), 500, 0.001),
    'semfpn_dat_t_80k_ade20k': poly(1e-4, 0.9, 80000),
    'semfpn_datpp_t_40k_ade20k': poly(2e-4, 0.9, 40000),
    'upernet_datpp_t_160k_ade20k': warmed_up(poly(6e-5, 1, 160000), 1500, 1e-6),
}


@pytest.mark.parametrize('name', RELEASED)
def test_learning_rate_is_the_released_one(name):
    rates = curve(load(name))
    released = [RELEASED[name](i) for i in range(len(rates))]
    assert np.abs(np.subtract(rates, released)).max() < 1e-12


@pytest.mark.parametrize('name', CURVES)
def test_learning_rate_goes_through_the_points_of_the_table(name):
    rates = curve(load(name))
    points = FAMILY[name].of(name, 'schedule').value
    assert len(points) == 10
    for point, rate in points.items():
        kind, count = point.rsplit(' ', 1)
        index = -1 if point == 'last iteration' else int(count) * (EPOCH_LENGTH if kind == 'epoch' else 1)
        assert rates[index] == pytest.approx(rate, rel=1e-8, abs=1e-15), point


def test_cosine_without_warm_up_is_mmengines():
    def rates(kind):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        scheduler = kind(optimizer, end=50, eta_min_ratio=0.01)
        found = []
        for _ in range(50):
            found.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            scheduler.step()
        return found

    assert rates(WarmupCosineLR) == pytest.approx(rates(CosineAnnealingLR), abs=1e-12)


def test_cosine_goes_on_from_its_state():
    def scheduler():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
        return optimizer, WarmupCosineLR(optimizer, end=50, warmup=0.4, eta_min_ratio=0.01)

    optimizer, first = scheduler()
    optimizer.step()
    for _ in range(10):
        first.step()
    resumed, second = scheduler()
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    for one in (first, second):
        one.step()
    assert (
        resumed.param_groups[0]['lr'] == optimizer.param_groups[0]['lr'] == pytest.approx(0.1 * (0.001 + 0.999 * 0.55))
    )


@pytest.mark.parametrize(
    'options, message', [(dict(begin=5), 'begin=5'), (dict(warmup=1.0), '1.0'), (dict(warmup=20), '20')]
)
def test_cosine_refuses_what_it_cannot_be(options, message):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(ValueError, match=message):
        WarmupCosineLR(optimizer, end=50, **options)


# --- sizes in training ---------------------------------------------------------------------------------------------


def annotations(toolbox):
    """What the transforms of a toolbox need beside the image."""
    if toolbox == 'mmseg':
        return dict(gt_seg_map=np.random.randint(0, 150, IMAGE).astype(np.uint8), seg_fields=['gt_seg_map'])
    if toolbox == 'mmpretrain':
        return {}
    return dict(
        gt_bboxes=HorizontalBoxes(np.array([[10.0, 10, 600, 450]], dtype=np.float32)),
        gt_bboxes_labels=np.zeros(1, dtype=np.int64),
        gt_ignore_flags=np.zeros(1, dtype=bool),
        gt_masks=BitmapMasks(np.ones((1, *IMAGE), dtype=np.uint8), *IMAGE),
    )


def trained_on(config, seed):
    """The size of a random image after the training pipeline, without loading and packing."""
    random.seed(seed)
    np.random.seed(seed)
    transforms = [dict(one) for one in config.train_dataloader.dataset.pipeline if one.type.startswith('Random')]
    return Compose(transforms)({**sample(), **annotations(config.default_scope)})['img'].shape[:2]


@pytest.mark.parametrize(
    'name, sides',
    [
        ('dat_t_300e_in1k', {224}),
        ('datpp_b_30e_in1k_384', {384}),
        ('retinanet_dat_t_1x_coco', set(range(480, 801, 32))),
        ('maskrcnn_datpp_t_3x_coco', set(range(480, 801, 32))),
        ('dino_dat_t_12e_coco', set(range(480, 801, 32))),
        ('upernet_dat_t_160k_ade20k', set(range(256, 513))),
        ('mask2former_datpp_b_160k_ade20k', {320, 384, 448, 512, 576, 640}),
    ],
)
def test_training_images_have_the_sizes_of_the_table(name, sides):
    config = load(name)
    short = {min(trained_on(config, seed)) for seed in range(12)}
    assert short <= sides
    assert len(short) > 1 or len(sides) == 1
