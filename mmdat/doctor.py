"""What is installed, what of it works here, and what to do about what does not.

    python -m mmdat.doctor

Nothing is looked up where it can be tried: operators, mixed precision, NCCL, ``torch.compile`` and one training step of
a small Mask R-CNN run, on the CPU and on each GPU. Exit code 0 only if training can run on all of them.
"""

import importlib
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import torch

from mmdat.errors import RunError
from mmdat.explain import explain

#: Module -> the distributions that hold it: of OpenMMLab (classic stack), and of its maintained forks (current).
DISTRIBUTIONS = {
    'mmengine': (('mmengine', 'mmengine-lite'), ('onedl-mmengine',)),
    'mmcv': (('mmcv', 'mmcv-lite'), ('onedl-mmcv',)),
    'mmdet': (('mmdet',), ('onedl-mmdetection',)),
    'mmseg': (('mmsegmentation',), ('onedl-mmsegmentation',)),
    'mmpretrain': (('mmpretrain',), ('onedl-mmpretrain',)),
}
OTHERS = ('mmdat', 'mmcv-ops-torchvision', 'torch', 'torchvision', 'triton', 'numpy', 'opencv-python')

COMPILE = 'bash tools/install.sh --compile-ops'
NO_COMPILED = 'reinstall mmcv without compiled operators, and `pip install ./mmcv-ops-torchvision`'


class Check(NamedTuple):
    """One thing to try: ``run`` returns what is to be said about it, or raises."""

    name: str
    run: Callable[[], str]
    advice: str
    needed: bool = True


def installed(name: str) -> Optional[str]:
    """The version of a distribution, None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# --- what is installed ---------------------------------------------------------------------


def packages() -> str:
    """Versions of what matters."""
    names = [name for both in DISTRIBUTIONS.values() for names in both for name in names]
    found = {name: installed(name) for name in (*OTHERS, *names)}
    python = f'Python {platform.python_version()} on {platform.platform()}'
    return ', '.join([python, *(f'{name} {found[name]}' for name in found if found[name])])


def stack() -> str:
    """Which stack the MM packages are of; raises if they are of both, or if one is missing."""
    found = {
        module: [[name for name in names if installed(name)] for names in both]
        for module, both in DISTRIBUTIONS.items()
    }
    for classic, current in found.values():
        names = [*classic, *current]
        if len(names) > 1:
            raise RunError(
                f'{" and ".join(names)} own the same files: `pip uninstall {" ".join(names)}`, then install one of them'
            )
    missing = [module for module, names in found.items() if not any(names)]
    if missing:
        raise RuntimeError(f'{", ".join(missing)} not installed')
    for module in found:
        importlib.import_module(module)  # each checks the versions of the others
    from mmdat.apis.toolbox import TOOLBOXES, import_toolbox

    for module in TOOLBOXES:
        import_toolbox(module)
    of_current = sum(bool(names[1]) for names in found.values())
    return {0: 'classic', len(found): 'current'}.get(of_current, 'packages of both, classic and current')


# --- devices -------------------------------------------------------------------------------


def driver() -> Optional[str]:
    """The version of the NVIDIA driver, None without one."""
    if shutil.which('nvidia-smi'):
        command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.split()[0]
    file = Path('/proc/driver/nvidia/version')
    return file.read_text().splitlines()[0] if file.exists() else None


def gpus() -> str:
    """The GPUs and their driver; raises if there is a driver, and PyTorch does not get at a GPU."""
    found = driver()
    if torch.cuda.is_available():
        names = []
        for index in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(index)
            names.append(f'{card.name} (sm_{card.major}{card.minor}, {card.total_memory / 2**30:.0f} GiB)')
        return f'{", ".join(names)}; driver {found}; CUDA {torch.version.cuda}'
    if found is None:
        return 'none; PyTorch computes on the CPU'
    if torch.version.cuda is None:
        raise RuntimeError(f'there is a driver ({found}), but PyTorch {torch.__version__} was built without CUDA')
    raise RuntimeError(f'there is a driver ({found}), but PyTorch, built for CUDA {torch.version.cuda}, cannot use it')


def devices() -> list:
    """The devices that training is tried on."""
    return ['cpu', *(f'cuda:{index}' for index in range(torch.cuda.device_count()))]


# --- what is tried -------------------------------------------------------------------------


def operators(device: str) -> str:
    """Calls operators of mmcv with inputs whose results are known; which implementation it was."""
    from mmcv import _ext, ops

    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]], device=device)
    kept = ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7], device=device), 0.5)[1]
    assert kept.tolist() == [0, 2], f'nms keeps {kept.tolist()}, not [0, 2]'
    maps = torch.ones(1, 2, 16, 16, device=device, requires_grad=True)
    regions = torch.cat([torch.zeros(1, 1, device=device), boxes[:1]], 1)
    pooled = ops.roi_align(maps, regions, 2)
    pooled.sum().backward()
    assert torch.allclose(pooled, torch.ones_like(pooled)), 'RoIAlign of ones is not 1'
    assert abs(maps.grad.sum().item() - 8) < 1e-3, "RoIAlign's gradients do not sum to the number of bins"
    weight, offset = torch.ones(1, 2, 3, 3, device=device), torch.zeros(1, 18, 14, 14, device=device)
    assert torch.allclose(ops.deform_conv2d(maps, offset, weight), torch.full_like(offset[:, :1], 18)), (
        'deformable convolution without offsets is no convolution'
    )
    kind = 'torchvision' if _ext.__file__.endswith('_ext.py') else 'compiled'
    return f'{kind} ({Path(_ext.__file__).name}): nms, RoIAlign and deformable convolution give what they should'


def detector() -> torch.nn.Module:
    """A Mask R-CNN with a small DAT: the model of the demo."""
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    package = Path(__file__).parent
    configs = next(path for path in (package / '.mim' / 'configs', package.parent / 'configs') if path.is_dir())
    init_default_scope('mmdet')
    return MODELS.build(Config.fromfile(configs / 'demo' / 'maskrcnn_datnano_shapes.py').model)


def training_step(device: str, dtype: Optional[torch.dtype] = None) -> str:
    """One training step and one prediction, under autocast if a ``dtype`` is given."""
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    torch.manual_seed(0)
    model = detector().to(device).train()
    mask = np.zeros((1, 64, 96), dtype=np.uint8)
    mask[0, 8:40, 16:64] = 1
    truth = InstanceData(
        bboxes=torch.tensor([[16.0, 8, 64, 40]]), labels=torch.tensor([1]), masks=BitmapMasks(mask, 64, 96)
    )
    shapes = dict(img_shape=(64, 96), ori_shape=(64, 96), scale_factor=(1.0, 1.0), batch_input_shape=(64, 96))
    sample = DetDataSample(metainfo=shapes, gt_instances=truth)
    image = torch.randint(256, (3, 64, 96), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.cuda.amp.GradScaler(enabled=dtype is torch.float16)
    with torch.autocast(device.split(':')[0], dtype=dtype, enabled=dtype is not None):
        losses = model(**model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), True), mode='loss')
        loss, _ = model.parse_losses(losses)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.isfinite(loss), f'the loss is {loss.item()}'
    with torch.no_grad():
        model.eval()(**model.data_preprocessor(dict(inputs=[image], data_samples=[sample])), mode='predict')
    return f'loss {loss.item():.3f}'


def kernels(device: str) -> str:
    """Output and gradient of layers with the fused kernels against the plain form; raises with what kernels lack."""
    from mmdat.models.mixers import DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention

    x = torch.linspace(-1, 1, 32 * 14 * 14, device=device).view(1, 32, 14, 14)
    for make in (DeformableAttention, NeighborhoodAttention, ShiftedWindowAttention):
        torch.manual_seed(0)
        layer = make(32, num_heads=2).to(device)
        for dtype, bound in ((torch.float32, 1e-3), (torch.float16, 5e-2))[: 1 if device == 'cpu' else 2]:
            results = []
            for layer.impl in ('triton', 'naive'):
                leaf = x.clone().requires_grad_()
                with torch.autocast(device.split(':')[0], dtype=dtype, enabled=dtype is not torch.float32):
                    out = layer(leaf)
                results.append((out, *torch.autograd.grad(out.float().square().sum(), leaf)))
            for fused, plain in zip(*results):
                error = (fused - plain).abs().max() / plain.abs().max()
                assert error <= bound, f'{make.__name__} in {dtype} is off by {error:.0e} of the largest value'
    return 'run, and give the numbers of the plain form'


def processes() -> str:
    """A sum over a group of one process, by NCCL where there is a GPU and by Gloo elsewhere."""
    import torch.distributed as dist

    backend, device = ('nccl', 'cuda') if torch.cuda.is_available() else ('gloo', 'cpu')
    with tempfile.TemporaryDirectory() as directory:
        store = dist.FileStore(str(Path(directory) / 'store'), 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            number = torch.ones(1, device=device)
            dist.all_reduce(number)
            assert number.item() == 1, f'the sum of 1 is {number.item()}'
        finally:
            dist.destroy_process_group()
    return backend


def compiler(device: str) -> str:
    """``torch.compile`` of a function with a gradient."""
    x = torch.linspace(-1, 1, 64, device=device, requires_grad=True)
    torch.compile(lambda t: (t.sin() * t).sum())(x).backward()
    assert torch.allclose(x.grad, x.cos() * x + x.sin(), atol=1e-5), 'a compiled function has other gradients'
    return 'works'


def checks() -> list:
    """What is tried, in order."""
    mm = 'install the MM packages: `pip install "mmdat[mm]"`, from a checkout `pip install ".[mm]"`'
    index = 'install a PyTorch for the CUDA version of your driver (tools/install.sh --torch-index), or a newer driver'
    found = [Check('packages', packages, ''), Check('stack', stack, mm), Check('GPU', gpus, index)]
    for device in devices():
        if device == 'cpu':
            advice = f'`pip install ./mmcv-ops-torchvision` from a checkout; for compiled ones, `{COMPILE}`'
        else:
            advice = f'these operators were not compiled for this GPU: `{COMPILE}`, or {NO_COMPILED}'
            other = "set attn_impl='tiled' of the backbone, and please report it"
            found.append(Check(f'attention kernels, {device}', lambda d=device: kernels(d), other, needed=False))
        amp = torch.bfloat16 if device == 'cpu' else torch.float16
        found += [
            Check(f'operators of mmcv, {device}', lambda d=device: operators(d), advice),
            Check(f'training step, {device}', lambda d=device: training_step(d), 'see the lines above'),
            Check(
                f'mixed precision ({str(amp)[6:]}), {device}',
                lambda d=device, t=amp: training_step(d, t),
                'train without --amp',
                needed=False,
            ),
            Check(
                f'torch.compile, {device}',
                lambda d=device: compiler(d),
                'train without --compile; it needs a C++ compiler and, for a GPU, Triton and the headers of Python',
                needed=False,
            ),
        ]
    found.append(Check('several processes', processes, 'train with one process', needed=False))
    return found


def report(check: Check) -> bool:
    """Run a check and print what came of it; False if training cannot run."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            mark, text = 'ok', check.run()
    except Exception as error:
        mark = 'FAILS' if check.needed else 'no'
        text = str(error) if isinstance(error, RunError) else explain(error)
        if text is None:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            package_is_missing = isinstance(error, ModuleNotFoundError) and error.name in DISTRIBUTIONS
            text = f'{reason}\n        -> {"see stack, above" if package_is_missing else check.advice}'
    print(f'{mark:>6}  {check.name}: {text}', flush=True)
    return mark != 'FAILS'


def main() -> None:
    results = [report(check) for check in checks()]
    good = all(results)
    print(f'\n{"Training can run." if good else "Training cannot run: see what FAILS above."}')
    sys.exit(not good)


if __name__ == '__main__':
    main()
