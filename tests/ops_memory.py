"""What an operator adds to the memory of a process; run by test_ops_memory.py, each case in a process of its own.

python tests/ops_memory.py forward|training NAME...     prints "NAME: bytes of the inputs, bytes beyond them" for each
"""

import os
import resource
import sys
from functools import partial

import torch
from conftest import NANO

from mmdat import DAT
from mmdat.ops import (
    FixedBias,
    LogBias,
    TableBias,
    deformable_attention,
    neighborhood_attention,
    window_attention,
)


def axis(size):
    return (torch.arange(size) + 0.5) / size * 2 - 1


def deformable(kind, size, key_size, batch=1, heads=2, groups=1, table=None, dropout=0.0, evenly_spaced=True):
    query = torch.randn(batch, heads * 8, *size)
    key, value = [torch.randn(batch, heads * 8, *key_size) for _ in range(2)]
    position = torch.rand(batch, groups, *key_size, 2) * 2 - 1
    if kind == 'table':
        parts = [torch.randn(heads, *(table or [2 * side - 1 for side in size])), position]
    elif kind == 'log':
        parts = [*(torch.randn(*shape) for shape in ((32, 2), (32,), (heads // groups, 32))), position]
    elif kind == 'fixed':
        parts = [torch.randn(heads, 196, 49)]
    else:
        parts = []

    def attend(query, key, value, *parts):
        bias = {
            'table': lambda: TableBias(*parts, *map(axis, size), evenly_spaced=evenly_spaced),
            'log': lambda: LogBias(*parts, *map(axis, size)),
            'fixed': lambda: FixedBias(*parts, size, key_size[0] * key_size[1]),
            'none': lambda: None,
        }[kind]()
        return deformable_attention(query, key, value, heads, bias, dropout)

    return attend, [query, key, value, *parts]


def neighborhood(size, batch=1, heads=2, kernel=7):
    maps = [torch.randn(batch, heads * 8, *size) for _ in range(3)]
    table = torch.randn(heads, 2 * kernel - 1, 2 * kernel - 1)
    return lambda *inputs: neighborhood_attention(*inputs, heads, kernel), [*maps, table]


def windows(size, batch=1, heads=2):
    maps = [torch.randn(batch, heads * 8, *size) for _ in range(3)]
    return lambda *inputs: window_attention(*inputs, heads, 7, 4), [*maps, torch.randn(169, heads)]


def backbone(generation, size):
    model = DAT(NANO[generation], img_size=size)
    return lambda image: sum(one.sum() for one in model(image)), [torch.randn(1, 3, *size)]


#: Small enough to be quick; with a small budget, naive forms would hold several times what is allowed.
SMALL = {
    'thin map': lambda: deformable('table', (1, 1400), (1, 1400)),
    'thin map, queries anywhere': lambda: deformable('table', (160, 1), (160, 1), evenly_spaced=False),
    'long map': lambda: deformable('table', (8, 512), (4, 512), heads=1),
    'table, batch': lambda: deformable('table', (14, 14), (14, 14), batch=16, heads=8, groups=4),
    'dropout': lambda: deformable('table', (40, 40), (40, 40), dropout=0.1),
    'log': lambda: deformable('log', (32, 32), (32, 32)),
    'log, thin': lambda: deformable('log', (1, 1200), (1, 600)),
    'fixed, batch': lambda: deformable('fixed', (14, 14), (14, 14), batch=16, heads=8),
    'neighborhood, thin': lambda: neighborhood((7, 1024)),
    'neighborhood, batch': lambda: neighborhood((16, 16), batch=16, heads=8),
    'windows, batch': lambda: windows((14, 14), batch=32, heads=8),
}
#: As large as the maps of real images.
LARGE = {
    'log, 1024x1024 pixels': lambda: deformable('log', (64, 64), (64, 64), heads=12, groups=3),
    'fixed, 1024x1024 pixels': lambda: deformable('fixed', (64, 64), (64, 64), heads=12),
    'table, 800x1344 pixels, batch': lambda: deformable(
        'table', (50, 84), (50, 84), batch=4, heads=12, groups=3, table=(27, 27)
    ),
    'large map': lambda: deformable('table', (72, 72), (72, 72)),
    'no bias': lambda: deformable('none', (72, 72), (72, 72)),
    'table, few keys': lambda: deformable('table', (200, 336), (7, 11), batch=2, table=(111, 111)),
    'very long map': lambda: deformable('table', (8, 8192), (2, 2048), heads=1),
    'neighborhood': lambda: neighborhood((200, 336), batch=2),
    'neighborhood, large batch': lambda: neighborhood((56, 56), batch=64, heads=4),
    'windows': lambda: windows((203, 336), batch=2, heads=3),
}
#: Images of 32x8192 pixels: whole backbones, whose tables are made for that size.
THIN = {f'{generation}, 32x8192 pixels': partial(backbone, generation, (32, 8192)) for generation in sorted(NANO)}
CASES = {**SMALL, **LARGE, **THIN}


def memory() -> int:
    """The most bytes that were resident in this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(function, inputs, training: bool) -> None:
    inputs = [x.requires_grad_(training) for x in inputs]
    with torch.set_grad_enabled(training):
        out = function(*inputs)
    if training:
        out.sum().backward()


def measure(name: str, training: bool) -> None:
    torch.manual_seed(0)
    # The pages of libraries that an operator touches for the first time are not its own memory.
    for kind in ('table', 'log', 'fixed', 'none'):
        run(*deformable(kind, (4, 4), (4, 4), dropout=0.1 if kind == 'none' else 0.0), training)
    run(*deformable('table', (4, 4), (4, 4), dropout=0.1), training)
    run(*neighborhood((8, 8)), training)
    run(*windows((7, 7)), training)
    function, inputs = CASES[name]()
    before = memory()
    run(function, inputs, training)
    size = sum(x.numel() * x.element_size() for x in inputs)
    print(f'{name}: {size} {memory() - before}', flush=True)


def main() -> None:
    mode, *names = sys.argv[1:]
    for name in names:
        child = os.fork()
        if not child:
            measure(name, mode == 'training')
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f'{name} failed')


if __name__ == '__main__':
    main()
