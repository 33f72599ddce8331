"""mmdat.export and its tools: what onnxruntime makes of exported models, and refusals in one sentence."""

import io
import json
import re
import shlex
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import NANO
from in_process import ROOT, load_tool, run_tool
from mmdet.structures import DetDataSample
from mmengine.registry import DefaultScope
from pycocotools import mask as coco
from test_mixers import MIXERS

import mmdat.export.onnx
from mmdat import DAT
from mmdat.apis import network_input
from mmdat.apis.predictor import dataset_meta
from mmdat.config.load import load_config
from mmdat.datasets import make_shapes
from mmdat.errors import RunError
from mmdat.export.models import AveragePool, Backbone, load_model
from mmdat.export.onnx import compare, export_checked, require_packages
from mmdat.models.arch import ARCHS

try:
    require_packages()
    import onnxruntime

    MISSING = ''
except RunError as error:
    MISSING = str(error)
can_export = pytest.mark.skipif(bool(MISSING), reason=MISSING)

PAGE = (ROOT / 'docs/deploy.md').read_text()
OPENVINO, *TORCH_EXPORT = re.findall(r'```python\n(.*?)```', PAGE, re.S)
COMMANDS = re.findall(r'^python tools/export_onnx.py (.*)$', PAGE.replace('\\\n', ''), re.M)

DETECTORS = {
    'maskrcnn': 'configs/demo/maskrcnn_{}nano_shapes.py',
    'retinanet': 'configs/retinanet_{}_t_1x_coco.py',
    'cascade': 'configs/cascade_maskrcnn_{}_t_1x_coco.py',
}


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, args)])
    load_tool('export_onnx').main()


def detector_config(kind, generation):
    """A detector of a family of the zoo with the demo's backbone, and few proposals."""
    cfg = load_config(str(ROOT / DETECTORS[kind].format(generation)))
    if kind == 'retinanet':
        cfg.model.test_cfg.nms_pre = 100
    else:
        cfg.model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
        cfg.model.test_cfg.rcnn.max_per_img = 20
    if kind != 'maskrcnn':
        demo = load_config(str(ROOT / DETECTORS['maskrcnn'].format(generation))).model
        cfg.model.backbone, cfg.model.neck.in_channels = demo.backbone, demo.neck.in_channels
    return cfg


def make_certain(model):
    """Spread the scores of an untrained detector, so that no two objects tie."""
    for name, weight in model.named_parameters():
        if any(part in name for part in ('fc_cls.weight', 'rpn_cls.weight', 'conv_logits.weight')):
            torch.nn.init.normal_(weight, std=0.05)
        if 'retina_cls.weight' in name:
            torch.nn.init.normal_(weight, std=0.005)
    return model


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_of_the_page_are_understood(command, monkeypatch):
    calls = []
    monkeypatch.setattr('mmdat.export.export_onnx', lambda *args: calls.append(args) or [])
    call(monkeypatch, *shlex.split(command))
    assert calls[0][:2] == tuple(shlex.split(command)[:2])


@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize('kind', sorted(DETECTORS))
def test_detectors_as_functions_of_tensors_equal_mmdet(kind, generation):
    """Also where a part of the input is padding."""
    model = make_certain(load_model(detector_config(kind, generation), whole=True))
    image = torch.rand(1, 3, 128, 160) * 4 - 2
    shape = (120, 150)
    boxes, scores, labels, *masks = model(image, torch.tensor(shape, dtype=torch.float32))
    meta = dict(img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0), batch_input_shape=(128, 160))
    (sample,) = model.detector.predict(image, [DetDataSample(metainfo=meta)])
    expected = sample.pred_instances
    assert len(expected) > 3
    torch.testing.assert_close(boxes, expected.bboxes)
    torch.testing.assert_close(scores, expected.scores)
    assert torch.equal(labels, expected.labels)
    if masks:
        paste = load_tool('infer_onnx').paste
        for probabilities, box, mask in zip(masks[0], boxes, expected.masks):
            pasted = paste(probabilities.numpy(), box.numpy(), *shape)
            assert (pasted != mask.numpy()).mean() < 1e-3  # pixels on the edge, by rounding


@pytest.mark.parametrize(
    'options, message',
    [
        ({'model.test_cfg.nms.type': 'soft_nms'}, 'type soft_nms cannot be exported'),
        ({'model.type': 'FCOS', 'model.bbox_head.type': 'FCOSHead'}, 'a whole FCOS cannot be exported'),
    ],
)
def test_detectors_that_cannot_be_exported(options, message):
    cfg = detector_config('retinanet', 'dat')
    if 'model.type' in options:
        cfg.model.bbox_head = dict(type='FCOSHead', num_classes=2, in_channels=256)
    cfg.merge_from_dict(options)
    with pytest.raises(RunError, match=message):
        load_model(cfg, whole=True)


@pytest.fixture(scope='module', params=['maskrcnn_datnano', 'maskrcnn_datppnano', 'upernet_datppnano', 'datnano'])
def whole(request, tmp_path_factory):
    """A directory with a whole model of the demo, ``whole.onnx`` and ``weights.pth``; its config; three pictures."""
    directory = tmp_path_factory.mktemp(request.param)
    make_shapes(directory / 'data/shapes', num_train=1, num_val=3, size=64)
    pictures = sorted((directory / 'data/shapes/images/validation').glob('*.jpg'))
    config = ROOT / f'configs/demo/{request.param}_shapes.py'
    torch.manual_seed(0)
    model = make_certain(load_model(load_config(str(config)), whole=True))
    (inner,) = model.children()
    torch.save(dict(state_dict=inner.state_dict(), meta={}), directory / 'weights.pth')
    images = ['--images', *pictures] if 'maskrcnn' in request.param else []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        options = '--whole', '--checkpoint', 'weights.pth', '--size', 64, 64
        call(patch, config, 'whole.onnx', *options, *images)
    return directory, config, pictures


@can_export
@pytest.mark.slow
def test_a_whole_model_predicts_the_same_without_pytorch(whole, tmp_path, monkeypatch):
    """The files of tools/infer_onnx.py are those of tools/infer.py: objects, masks, label maps, scores."""
    directory, config, pictures = whole
    model, weights = directory / 'whole.onnx', directory / 'weights.pth'
    monkeypatch.chdir(tmp_path)
    options = '--out-dir', 'torch', '--device', 'cpu', '--score-thr', 0.1
    assert run_tool(monkeypatch, 'infer', config, weights, *pictures, *options) == 0
    monkeypatch.setattr(
        sys, 'argv', ['infer_onnx.py', str(model), *map(str, pictures), '--out-dir', 'onnx', '--score-thr', '0.1']
    )
    assert load_tool('infer_onnx').main() == 0

    expected, found = [json.loads((tmp_path / way / 'predictions.json').read_text()) for way in ('torch', 'onnx')]
    assert len(expected) == len(found) >= 3
    for one, other in zip(expected, found):
        assert one.keys() == other.keys()
        assert one.get('category_id') == other.get('category_id') and one['image_id'] == other['image_id']
        if 'bbox' in one:
            np.testing.assert_allclose(one['bbox'], other['bbox'], atol=0.1)
            masks = [coco.decode(way['segmentation']) for way in (one, other)]
            assert (masks[0] != masks[1]).mean() < 1e-3
        if 'score' in one:
            assert abs(one['score'] - other['score']) < 1e-4
        if 'label_map' in one:
            import cv2

            maps = [cv2.imread(str(tmp_path / way / one['label_map']), -1) for way in ('torch', 'onnx')]
            assert (maps[0] != maps[1]).mean() < 1e-3


@can_export
@pytest.mark.slow
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize('kind', sorted(DETECTORS))
def test_a_picture_without_objects(kind, generation, tmp_path):
    """Its file was traced on one with objects."""
    model = make_certain(load_model(detector_config(kind, generation), whole=True))
    images = [(torch.rand(1, 3, 64, 64) * 4 - 2, (64, 64)) for _ in range(2)]
    best = [float(model(image, torch.tensor(size))[1].max()) for image, size in images]
    settings = model.cfg if kind == 'retinanet' else model.detector.roi_head.test_cfg
    settings.score_thr = sum(best) / 2
    images.sort(key=lambda example: -len(model(example[0], torch.tensor(example[1]))[0]))
    assert max(export_checked(model, tmp_path / 'out.onnx', (64, 64), images=images)) < 1


@can_export
@pytest.mark.slow
def test_openvino_reads_whole_models(whole, tmp_path, monkeypatch):
    """With float32 asked for, as on the page: the same objects, probabilities and logits as onnxruntime."""
    pytest.importorskip('openvino')
    import onnxruntime

    directory, config, pictures = whole
    path = directory / 'whole.onnx'
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    shutil.copy(path, tmp_path / 'maskrcnn.onnx')
    monkeypatch.chdir(tmp_path)
    example = OPENVINO if 'maskrcnn' in config.name else OPENVINO[: OPENVINO.index('found =')]
    namespace = dict(image=np.zeros((1, 3, 64, 64), np.float32), size=np.float32([64, 64]))
    exec(example, namespace)
    compiled = namespace['model']
    assert len(pictures) == 3
    for picture in pictures:
        image, sides = network_input(load_config(str(config)), picture, conv_stem=False)[0], [64, 64]
        inputs = dict(zip((node.name for node in session.get_inputs()), (image.numpy(), np.float32(sides))))
        found = compiled(inputs)
        for node, expected in zip(session.get_outputs(), session.run(None, inputs)):
            assert len(expected)
            np.testing.assert_allclose(found[node.name], expected, atol=1e-4 * np.abs(expected).max())


@can_export
def test_backbone(nano, tmp_path):
    """Maps that need padding in windows and are no multiples of the stride."""
    model = Backbone(DAT(nano, img_size=64, attn_impl='naive').eval())
    path = str(tmp_path / 'nano.onnx')
    assert max(export_checked(model, path, (70, 99))) <= 1
    # The check can fail: other weights, and a size that the file is not made for.
    other = Backbone(DAT(nano, img_size=64, attn_impl='naive').eval())
    assert compare(other, path, [(torch.randn(1, 3, 70, 99), (70, 99))])[0] > 100
    with pytest.warns(UserWarning, match='onnxruntime failed'):
        assert compare(model, path, [(torch.randn(1, 3, 64, 96), (64, 96))]) == [float('inf')]


@can_export
@pytest.mark.slow
@pytest.mark.parametrize(
    'arch',
    [
        dict(generation='dat', groups=(-1, -1, 2, 4), stage_spec=('L', 'S', 'D', 'D')),
        dict(generation='dat++', groups=(-1, 1, 2, 4), stage_spec=('N', 'D', 'D', 'D')),
    ],
    ids=lambda arch: arch['generation'],
)
def test_any_batch_and_size(arch, tmp_path):
    """All mixers, below and above the size of the example, with and without padding, down to maps of one pixel."""
    arch = dict(arch, dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), heads=(1, 2, 4, 8))
    model = Backbone(DAT(arch, img_size=64, attn_impl='naive').eval())
    path = str(tmp_path / 'any.onnx')
    export_checked(model, path, (256, 256), dynamic=True)
    shapes = [(1, 32, 32), (2, 32, 100), (1, 64, 64), (3, 65, 99), (1, 200, 333)]
    assert max(compare(model, path, [(torch.randn(b, 3, *sides), sides) for b, *sides in shapes])) <= 1


@can_export
@pytest.mark.slow
@pytest.mark.parametrize('dynamic', [False, True], ids=['fixed', 'dynamic'])
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_segmentor(generation, dynamic, tmp_path, monkeypatch, capsys):
    import onnxruntime

    path = tmp_path / 'upernet.onnx'
    config = ROOT / f'configs/demo/upernet_{generation}nano_shapes.py'
    call(monkeypatch, config, path, '--whole', '--size', 64, 96, *(['--dynamic'] if dynamic else []))
    out = capsys.readouterr().out
    print(out)
    assert 'computes what PyTorch does' in out
    (logits,) = onnxruntime.InferenceSession(str(path)).get_outputs()
    assert [isinstance(side, str) for side in logits.shape] == [dynamic, False, dynamic, dynamic]
    if not dynamic:
        assert logits.shape[0] == 1 and logits.shape[2:] == [64, 96]


AOT_LOADER = """
import sys
import torch

if sys.argv[1] == 'fast':
    import mmdat.ops
image, expected = torch.load('maps.pt')
found = torch._inductor.aoti_load_package('backbone.pt2')(image)
for map, right in zip(found, expected):
    torch.testing.assert_close(map, right, atol=1e-5, rtol=1e-5)
assert len(found) == 4 and (sys.argv[1] == 'fast') == ('mmdat' in sys.modules)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch._inductor, 'aoti_load_package'), reason='packages need torch 2.6')
@pytest.mark.skipif(shutil.which('g++') is None, reason='AOTInductor needs a C++ compiler')
@pytest.mark.parametrize('attn_impl', ['naive', 'fast'])
def test_aotinductor_package(attn_impl, nano, tmp_path):
    """The plain form runs where mmdat is not installed; the fast one calls operators that it registers."""
    model, image = DAT(nano, img_size=64, attn_impl=attn_impl).eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.save((image, list(model(image))), tmp_path / 'maps.pt')
        program = torch.export.export(model, (image,))
    torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / 'backbone.pt2'))
    command = [sys.executable, '-c', AOT_LOADER, attn_impl]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch._inductor, 'aoti_load_package'), reason='packages need torch 2.6')
@pytest.mark.skipif(shutil.which('g++') is None, reason='AOTInductor needs a C++ compiler')
def test_python_examples_of_the_page(tmp_path, monkeypatch):
    """As they stand there, with a small architecture."""
    monkeypatch.chdir(tmp_path)
    namespace = {}
    for example in TORCH_EXPORT:
        exec(example.replace("'tiny++'", repr(NANO['dat++'])), namespace)
    assert len(namespace['maps']) == 4 and (tmp_path / 'dat_pp_tiny.pt2').exists()


@can_export
@pytest.mark.slow
@pytest.mark.parametrize('arch', sorted(ARCHS))
def test_published_archs(arch, tmp_path, monkeypatch, capsys):
    call(monkeypatch, arch, tmp_path / 'out.onnx', '--size', 224, 224)
    out = capsys.readouterr().out
    print(out)  # pytest -rP shows the differences
    assert 'computes what PyTorch does' in out


@can_export
@pytest.mark.slow
def test_an_older_file_stays_until_the_new_one_is_good(tmp_path, monkeypatch):
    path = tmp_path / 'out.onnx'
    path.write_bytes(b'old')
    monkeypatch.setattr(mmdat.export.onnx, 'TOLERANCE', 1e-12)
    with pytest.raises(RunError, match='was not kept'):
        call(monkeypatch, ROOT / 'configs/demo/datnano_shapes.py', path, '--size', 64, 64)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b'old'


@can_export
@pytest.mark.parametrize('open_sizes', [False, True], ids=['fixed', 'dynamic'])
@pytest.mark.parametrize('change', [dict(), dict(attn_impl='tiled'), dict(position_bias='log')], ids=str)
def test_the_older_exporter_of_pytorch(change, open_sizes, nano):
    """Which mmdeploy and others call: right at other sizes, too, where they are left open."""
    change = dict(change)
    attn_impl = change.pop('attn_impl', 'fast')
    model = DAT({**nano, **change}, img_size=64, attn_impl=attn_impl).eval()
    names = ['stage1', 'stage2', 'stage3', 'stage4']
    axes = {name: {0: 'batch', 2: 'height', 3: 'width'} for name in ['image', *names]} if open_sizes else None
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # it is deprecated, and its tracer warns of much
        torch.onnx.export(
            model,
            (torch.randn(1, 3, 64, 96),),
            file,
            input_names=['image'],
            output_names=names,
            dynamic_axes=axes,
            opset_version=17,
            dynamo=False,
        )
    session = onnxruntime.InferenceSession(file.getvalue(), providers=['CPUExecutionProvider'])
    for shape in [(1, 3, 64, 96), (2, 3, 70, 93), (1, 3, 96, 33)][: 3 if open_sizes else 1]:
        x = torch.randn(shape)
        with torch.no_grad():
            expected = model(x)
        for out, right in zip(session.run(None, dict(image=x.numpy())), expected):
            np.testing.assert_allclose(out, right.numpy(), rtol=1e-4, atol=1e-5 * float(right.abs().max()))


def test_classes_are_found_whatever_toolbox_is_current():
    for task in ('maskrcnn_datnano', 'upernet_datnano', 'datnano'):
        cfg = load_config(str(ROOT / f'configs/demo/{task}_shapes.py'))
        with DefaultScope.overwrite_default_scope('mmengine'):
            assert 'circle' in dataset_meta(cfg, {})['classes']


@pytest.mark.parametrize('name', MIXERS)
def test_plain_attention_has_no_dropout_of_training(name):
    """Which onnxruntime runs, but other readers of ONNX files refuse."""
    mixer = getattr(mmdat, name)(32, **MIXERS[name]).eval()
    mixer.impl = 'naive'
    graph = torch.jit.trace(mixer, torch.randn(1, 32, 8, 8), check_trace=False).inlined_graph
    nodes = graph.findAllNodes('aten::dropout')
    assert nodes and not any(list(node.inputs())[2].toIValue() for node in nodes)


def test_no_axis_of_a_trace_is_moved_from_behind(nano):
    """Of ``movedim(-1, …)`` the tracing exporter makes a permutation with -1 in it, which onnxruntime refuses."""
    model = DAT(nano, img_size=64, attn_impl='naive').eval()
    graph = torch.jit.trace(model, torch.randn(1, 3, 64, 64), check_trace=False).inlined_graph
    moved = [list(node.inputs())[1].toIValue() for node in graph.findAllNodes('aten::movedim')]
    assert moved and min(moved) >= 0


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_pooling_without_a_loop_equals_pytorch(bins):
    """Also of maps with fewer pixels than bins, and where bins share pixels."""
    for size in ((5, 7), (16, 12), (6, 1), (1, 25)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(AveragePool(bins)(x), F.adaptive_avg_pool2d(x, bins))


def test_loads_plain_operations_and_the_weights(tmp_path):
    backbone = DAT('tiny')
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    model = load_model('tiny', str(tmp_path / 'weights.pth'), whole=False)
    assert {m.impl for m in model.modules() if hasattr(m, 'impl')} == {'naive'}
    assert not model.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value)


@pytest.mark.parametrize(
    'source, message',
    [
        ('tiny', 'is a backbone by itself'),
        ('tiny+++', 'there is no config file'),
    ],
)
def test_refusals(source, message):
    with pytest.raises(RunError, match=message):
        load_model(source, None, whole=True)
