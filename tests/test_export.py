"""tools/export_onnx.py: what onnxruntime makes of exported models, and refusals in one sentence."""

import sys

import pytest
import torch
import torch.nn.functional as F
from in_process import ROOT, load_tool

from mmdat import DAT
from mmdat.errors import RunError

export_onnx = load_tool('export_onnx')

try:
    export_onnx.require_packages()
    MISSING = ''
except RunError as error:
    MISSING = str(error)
can_export = pytest.mark.skipif(bool(MISSING), reason=MISSING)


def call(monkeypatch, *args):
    monkeypatch.setattr(sys, 'argv', ['export_onnx.py', *map(str, args)])
    export_onnx.main()


@can_export
def test_backbone(nano, tmp_path):
    """Maps that need padding in windows and are no multiples of the stride."""
    model = DAT(nano, img_size=64, attn_impl='naive').eval()
    path = str(tmp_path / 'nano.onnx')
    export_onnx.export(model, path, (70, 99))
    assert max(export_onnx.check(model, path, [(1, 70, 99)] * 3)) <= 1e-4
    # The check can fail: other weights, and a size that the file is not made for.
    other = DAT(nano, img_size=64, attn_impl='naive').eval()
    assert export_onnx.check(other, path, [(1, 70, 99)])[0] > 1e-2
    with pytest.warns(UserWarning, match='onnxruntime failed'):
        assert export_onnx.check(model, path, [(1, 64, 96)]) == [float('inf')]


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
    model = DAT(arch, img_size=64, attn_impl='naive').eval()
    path = str(tmp_path / 'any.onnx')
    export_onnx.export(model, path, (256, 256), dynamic=True)
    shapes = [(1, 32, 32), (2, 32, 100), (1, 64, 64), (3, 65, 99), (1, 200, 333)]
    assert max(export_onnx.check(model, path, shapes)) <= 1e-4


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
    assert 'agrees with PyTorch' in out
    (logits,) = onnxruntime.InferenceSession(str(path)).get_outputs()
    assert [isinstance(side, str) for side in logits.shape] == [dynamic, False, dynamic, dynamic]
    if not dynamic:
        assert logits.shape[0] == 1 and logits.shape[2:] == [64, 96]


@can_export
@pytest.mark.slow
@pytest.mark.parametrize('arch', sorted(export_onnx.ARCHS))
def test_published_archs(arch, tmp_path, monkeypatch, capsys):
    call(monkeypatch, arch, tmp_path / 'out.onnx', '--size', 224, 224)
    out = capsys.readouterr().out
    print(out)  # pytest -rP shows the differences
    assert 'agrees with PyTorch' in out


@can_export
@pytest.mark.slow
def test_an_older_file_stays_until_the_new_one_is_good(tmp_path, monkeypatch):
    path = tmp_path / 'out.onnx'
    path.write_bytes(b'old')
    monkeypatch.setattr(export_onnx, 'TOLERANCE', -1)
    with pytest.raises(RunError, match='was not kept'):
        call(monkeypatch, ROOT / 'configs/demo/datnano_shapes.py', path, '--size', 64, 64)
    assert list(tmp_path.iterdir()) == [path] and path.read_bytes() == b'old'


@pytest.mark.parametrize('bins', [1, 2, 3, 6])
def test_pooling_without_a_loop_equals_pytorch(bins):
    """Also of maps with fewer pixels than bins, and where bins share pixels."""
    for size in ((5, 7), (16, 12), (6, 1), (1, 25)):
        x = torch.randn(2, 3, *size, dtype=torch.float64)
        torch.testing.assert_close(export_onnx.AveragePool(bins)(x), F.adaptive_avg_pool2d(x, bins))


def test_loads_plain_operations_and_the_weights(tmp_path):
    backbone = DAT('tiny')
    torch.save(backbone.state_dict(), tmp_path / 'weights.pth')
    model = export_onnx.load_model('tiny', str(tmp_path / 'weights.pth'), whole=False)
    assert {m.impl for m in model.modules() if hasattr(m, 'impl')} == {'naive'}
    assert not model.training
    for name, value in backbone.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    'source, message',
    [
        ('tiny', 'is a backbone by itself'),
        (str(ROOT / 'configs/maskrcnn_dat_t_1x_coco.py'), 'exports segmentors only'),
        ('tiny+++', 'there is no config file'),
    ],
)
def test_refusals(source, message):
    with pytest.raises(RunError, match=message):
        export_onnx.load_model(source, None, whole=True)
