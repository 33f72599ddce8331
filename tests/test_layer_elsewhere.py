"""The examples of docs/layer.md, run as they stand there, each with the real library."""

import re

import pytest
import torch
from paths import ROOT

from mmdat import DeformableAttention

ALONE, TORCHVISION, UNET, YOLO, TIMM = re.findall(r'```python\n(.*?)```', (ROOT / 'docs/layer.md').read_text(), re.S)


def run(example):
    """The namespace of an example, and the deformable layers of its ``model``."""
    namespace = {}
    exec(example, namespace)
    model = namespace.get('model', torch.nn.Identity())
    return namespace, [module for module in model.modules() if isinstance(module, DeformableAttention)]


def has_gradient(layer):
    gradient = layer.offset_net[-1].weight.grad
    return bool(gradient.any()) and bool(gradient.isfinite().all())


def test_by_itself():
    """The shapes that the comments name."""
    calls = re.findall(r'^(\w+\(torch.*\))  # (\(.*\))$', ALONE, re.M)
    assert len(calls) == 4
    namespace, _ = run(ALONE)
    for call, shape in calls:
        assert str(tuple(eval(call, namespace).shape)) == shape


def test_in_a_resnet_of_torchvision(capsys):
    pytest.importorskip('torchvision')
    _, layers = run(TORCHVISION)
    assert re.search(r'# (torch\.Size.*)', TORCHVISION)[1] in capsys.readouterr().out
    assert len(layers) == 2 and all(map(has_gradient, layers))


def test_in_a_unet_of_segmentation_models():
    smp = pytest.importorskip('segmentation_models_pytorch')
    try:
        namespace, (layer,) = run(UNET)
    finally:
        smp.encoders.encoders.pop('deformable18', None)
    assert layer.in_channels == 512 and has_gradient(layer)
    assert namespace['model'](torch.randn(2, 3, 128, 192)).shape == (2, 4, 128, 192)


def test_in_a_yolo_of_ultralytics(tmp_path, monkeypatch):
    monkeypatch.setenv('YOLO_CONFIG_DIR', str(tmp_path))  # where it writes its settings when it is imported
    tasks = pytest.importorskip('ultralytics.nn.tasks')
    monkeypatch.setattr(tasks, 'DeformableAttention', None, raising=False)  # the example sets it
    namespace, (layer,) = run(YOLO)
    model = namespace['model']
    assert layer.in_channels == 128 and model.stride.tolist() == [8, 16]
    assert namespace['predictions'][0].isfinite().all()
    scores = model.train()(torch.randn(2, 3, 128, 192))
    tensors = scores.values() if isinstance(scores, dict) else scores
    sum(x.square().mean() for x in tensors if torch.is_tensor(x)).backward()
    assert has_gradient(layer)


def test_in_a_vision_transformer_of_timm():
    pytest.importorskip('timm')
    _, layers = run(TIMM)
    assert len(layers) == 3 and all(map(has_gradient, layers))
    assert all(layer.relative_position_bias_table.shape[1:] == (27, 27) for layer in layers)
