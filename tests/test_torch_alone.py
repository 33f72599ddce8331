"""The core needs PyTorch and nothing of OpenMMLab: tried where only PyTorch, and what it requires, can be imported."""

import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import PackageNotFoundError, distribution

import pytest
from paths import DATA, ROOT

import mmdat


def required(name, known=None):
    """The distributions that one requires, itself included."""
    known = {} if known is None else known
    try:
        found = distribution(name)
    except PackageNotFoundError:  # of another platform, or optional
        return known
    if name not in known:
        known[name] = found
        for requirement in found.requires or []:
            if 'extra ==' not in requirement:
                required(re.match(r'[\w.-]+', requirement)[0].lower(), known)
    return known


@pytest.fixture(scope='module')
def alone(tmp_path_factory):
    """A function that runs code with PyTorch, numpy and mmdat alone; returns what it printed."""
    packages = tmp_path_factory.mktemp('packages')
    (packages / 'mmdat').symlink_to(ROOT / 'mmdat')
    for found in {**required('torch'), **required('numpy')}.values():
        for top in {path.parts[0] for path in found.files or []} - {'..', '__pycache__'}:
            if not (packages / top).exists():
                (packages / top).symlink_to(found.locate_file(top))

    def run(code):
        environment = {**os.environ, 'PYTHONPATH': str(packages), 'OMP_NUM_THREADS': '1'}
        command = [sys.executable, '-S', '-c', textwrap.dedent(code)]
        result = subprocess.run(command, env=environment, cwd=packages, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def test_backbone_mixers_operators_and_official_files(alone):
    said = alone(f"""
        import importlib.util, sys
        for name in ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain', 'cv2', 'torchvision', 'matplotlib'):
            assert importlib.util.find_spec(name) is None, name
        import torch
        import mmdat
        from mmdat.ops import deform_sample
        print(*sorted(mmdat.__all__))
        torch.manual_seed(0)

        for name in ('dat_cls', 'datplus_cls', 'datpp_cls_112'):
            case = torch.load(f'{DATA}/{{name}}.pt', weights_only=True)
            fields = ('generation', 'dims', 'depths', 'heads', 'groups', 'stage_spec')
            arch = {{field: case['arch'][field] for field in fields}}
            model = mmdat.DAT(arch, img_size=case['arch'].get('img_size', 224), out_indices=3)
            model.load_state_dict({{key: value.float() for key, value in case['state_dict'].items()}})
            with mmdat.record_sampling(model) as points:
                (out,) = model(torch.randn(1, 3, 70, 96))
            out.mean().backward()
            assert points and all(len(records) == 1 for records in points.values())

        kinds = (mmdat.NeighborhoodAttention, mmdat.WindowAttention, mmdat.ShiftedWindowAttention)
        for mixer in (mmdat.DeformableAttention(8, 4, 2), *(kind(8, 4) for kind in kinds)):
            assert mixer(torch.randn(2, 8, 9, 10)).shape == (2, 8, 9, 10)
        assert deform_sample(torch.randn(1, 2, 3, 4), torch.zeros(1, 1, 5, 6, 2)).shape == (1, 2, 5, 6)

        try:
            mmdat.DAT(arch, init_cfg=dict(type='Pretrained', checkpoint='weights.pth'))
        except ImportError as error:
            print(error)
    """)
    offered, refusal = said.splitlines()
    assert offered.split() == sorted(mmdat.__all__)
    assert refusal.startswith('init_cfg needs MMEngine, which cannot be imported (')
    assert refusal.endswith('install mmengine, or leave init_cfg out and load weights with load_state_dict')


@pytest.mark.slow
def test_compile_and_export(alone):
    alone("""
        import torch
        from mmdat import DAT
        arch = dict(
            generation='dat++', dims=(8, 16, 16, 16), depths=(1, 1, 1, 1), heads=(1, 2, 2, 2), groups=(1, 1, 1, 1),
            stage_spec=('N', 'D', 'N', 'D'),
        )
        model = DAT(arch, img_size=64).eval()
        x = torch.randn(1, 3, 64, 64)
        expected = model(x)
        compiled = torch.compile(model, backend='aot_eager', fullgraph=True)
        for outs in (compiled(x), torch.export.export(model, (x,)).module()(x)):
            for out, other in zip(outs, expected):
                torch.testing.assert_close(out, other, rtol=1e-4, atol=1e-4)
    """)
