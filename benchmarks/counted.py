"""What the forms of the operators move, launch and hold, layer by layer of the published models: no GPU is needed.

    python benchmarks/counted.py [--models tiny tiny++ ...] [--sizes 224 800x1344] [--out FILE]

counts on the meta device a forward and backward pass with float16 maps, and float32 tables and positions, and says
which form ``'fast'`` takes on a GPU. The table is docs/gpu.md's.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple

import torch
from counter import Counter
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from mmdat.models.arch import ARCHS, NUM_STAGES, get_arch
from mmdat.ops import (
    TableBias,
    choose_deformable_attention,
    choose_neighborhood_attention,
    choose_window_attention,
    deformable_attention,
    neighborhood_attention,
    window_attention,
)

#: Images, with the batch of one GPU: of ImageNet training and of detection.
SIZES = {'224': ((224, 224), 128), '800x1344': ((800, 1344), 2)}
WINDOW = 7
#: To weigh bytes against kernels: what an A100 moves (bytes per second), and a launch (seconds). Of the order of
#: magnitude of a GPU; the choices hold for either twice as large or half.
BANDWIDTH, LAUNCH = 1.6e12, 5e-6


class Layer(NamedTuple):
    """The attention of a block.

    Attributes:
        name: Of the model, stage and mixer.
        images: Of a batch.
        channels, heads: Of the map.
        size: Of the map; windows are whole.
        mixer: Its letter.
        groups, keys, table: Of deformable attention.
    """

    name: str
    images: int
    channels: int
    heads: int
    size: tuple[int, int]
    mixer: str
    groups: int
    keys: tuple[int, int]
    table: tuple[int, int]


def layers(model: str, size: str) -> Iterator[Layer]:
    """The different layers of a published model."""
    arch = get_arch(model)
    image, images = SIZES[size]
    for stage in range(NUM_STAGES):
        stride = 4 * 2**stage
        pixels = tuple(-(-side // stride) for side in image)
        whole = tuple(-(-side // WINDOW) * WINDOW for side in pixels)
        for mixer in sorted(set(arch.stage_spec[stage])):
            yield Layer(
                f'{model}, stage {stage + 1}, {mixer}, {size}',
                images,
                arch.dims[stage],
                arch.heads[stage],
                whole if mixer in 'LS' else pixels,
                mixer,
                arch.groups[stage],
                tuple(side // arch.key_strides[stage] for side in pixels),
                (2 * (224 // stride) - 1,) * 2,
            )


def operator(layer: Layer, device: str, impl: str) -> tuple[Callable[..., Tensor], list[Tensor], Any]:
    """The operator of a layer as a function of tensors that may need a gradient, these, and the chosen form."""

    def make(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    def map_of(size: tuple[int, int]) -> Tensor:
        return make(layer.images, layer.channels, *size, dtype=torch.float16).to(memory_format=torch.channels_last)

    if layer.mixer == 'D':
        maps = [map_of(size) for size in (layer.size, layer.keys, layer.keys)]
        tensors = [*maps, make(layer.heads, *layer.table), make(layer.images, layer.groups, *layer.keys, 2)]
        axes = [make(side) for side in layer.size]

        def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor, position: Tensor) -> Tensor:
            bias = TableBias(table, position, *axes, True)
            return deformable_attention(query, key, value, layer.heads, bias, impl=impl)

        bias = TableBias(*tensors[3:], *axes, True)
        return attend, tensors, choose_deformable_attention(*maps, layer.heads, bias, impl=impl)
    maps = [map_of(layer.size) for _ in range(3)]
    if layer.mixer == 'N':
        tensors, options = [*maps, make(layer.heads, 2 * WINDOW - 1, 2 * WINDOW - 1)], (layer.heads, WINDOW)
        function, choose = neighborhood_attention, choose_neighborhood_attention
    else:
        shift = (WINDOW + 1) // 2 if layer.mixer == 'S' else 0
        tensors, options = [*maps, make((2 * WINDOW - 1) ** 2, layer.heads)], (layer.heads, WINDOW, shift)
        function, choose = window_attention, choose_window_attention
    return lambda *tensors: function(*tensors, *options, impl=impl), tensors, choose(*tensors, *options, impl=impl)


def chosen(layer: Layer) -> str:
    """The form that ``'fast'`` takes on a GPU."""
    with FakeTensorMode():
        return operator(layer, 'cuda', 'fast')[2].implementation


def count(layer: Layer, impl: str) -> dict[str, Any]:
    """Kernels and bytes of a forward and backward pass, and bytes held in between beyond inputs and output."""
    attend, tensors, _ = operator(layer, 'meta', impl)
    leaves = [x.requires_grad_() for x in tensors]
    held: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        held[id(x)] = x
        return x

    with Counter() as counter:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = attend(*leaves)
        torch.autograd.grad(out, leaves, torch.empty_like(out))
    of_tensors = sum(x.numel() * x.element_size() for x in held.values())
    return dict(
        kernels=counter.kernels,
        bytes=counter.bytes,
        held=of_tensors,
        seconds=counter.bytes / BANDWIDTH + counter.kernels * LAUNCH,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', choices=ARCHS, default=['tiny', 'tiny++'])
    parser.add_argument('--sizes', nargs='+', choices=SIZES, default=list(SIZES))
    parser.add_argument('--out', type=Path, help='JSON file for the numbers')
    args = parser.parse_args()
    print("| layer | plain: kernels, GB moved, GB held | tiles: kernels, GB moved, GB held | `'fast'` |")
    print('|---|---|---|---|')
    found = {}
    for layer in (layer for model in args.models for size in args.sizes for layer in layers(model, size)):
        forms = {impl: count(layer, impl) for impl in ('naive', 'tiled')}
        found[layer.name] = dict(chosen=chosen(layer), **forms)
        cells = [f'{f["kernels"]}, {f["bytes"] / 1e9:.1f}, {f["held"] / 1e9:.2f}' for f in forms.values()]
        print(f'| {layer.name} | {" | ".join(cells)} | {found[layer.name]["chosen"]} |', flush=True)
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == '__main__':
    main()
