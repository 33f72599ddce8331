"""What the Triton kernels need of a GPU, from the compiler alone: no GPU is needed.

    python benchmarks/kernel_resources.py [--arch 80 90 ...] [--dtype float16 ...] [--channels 32 ...] [--out FILE]

compiles every kernel for generations of processors and reads registers, spills, shared memory and instructions from the
machine code. The table is docs/gpu.md's.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

#: Shared memory of a block and of a multiprocessor in bytes, warps and blocks of a multiprocessor
#: (CUDA C++ programming guide, table of technical specifications per compute capability).
LIMITS = {
    80: (163 * 1024, 164 * 1024, 64, 32),
    86: (99 * 1024, 100 * 1024, 48, 16),
    89: (99 * 1024, 100 * 1024, 48, 24),
    90: (227 * 1024, 228 * 1024, 64, 32),
    100: (227 * 1024, 228 * 1024, 64, 32),
    120: (99 * 1024, 100 * 1024, 48, 24),
}
REGISTERS = 65536  # of a multiprocessor
RESERVED_SHARED = 1024  # of a block

DTYPES = ('float16', 'bfloat16', 'float32')
CHANNELS = (16, 32, 64)
#: By name: module and kernel.
KERNELS = {
    'deformable forward': ('deformable_kernels', 'forward_kernel'),
    'deformable query gradient': ('deformable_kernels', 'query_gradient_kernel'),
    'deformable key, value, position and table gradients': ('deformable_kernels', 'key_gradients_kernel'),
    'neighbourhood forward': ('local_kernels', 'forward_kernel'),
    'neighbourhood query gradient': ('local_kernels', 'query_gradient_kernel'),
    'neighbourhood key and value gradients': ('local_kernels', 'key_gradients_kernel'),
    'neighbourhood table gradient': ('local_kernels', 'bias_gradient_kernel'),
    'window forward': ('local_kernels', 'forward_kernel'),
    'window query gradient': ('local_kernels', 'query_gradient_kernel'),
    'window key and value gradients': ('local_kernels', 'key_gradients_kernel'),
    'window table gradient': ('local_kernels', 'bias_gradient_kernel'),
}
MAPS = ('query', 'key', 'value', 'out', 'grad', 'grad_query')


def compile_kernel(name: str, dtype: str, channels: int, arch: int) -> dict[str, Any]:
    """Compile a kernel of :data:`KERNELS` as it would be launched, and read its resources.

    Returns:
        ``registers`` of a thread, bytes of ``stack`` and ``spills`` (instructions that move registers to memory and
        back), bytes of ``shared`` memory, ``tensor_core`` instructions, ``blocks`` and ``occupancy`` of a
        multiprocessor, ``per_score`` instructions per score in the longest loop.
    """
    from importlib import import_module

    import triton
    from triton.backends.compiler import GPUTarget

    module = import_module(f'mmdat.ops.triton.{KERNELS[name][0]}')
    kernel = getattr(module, KERNELS[name][1])
    constants, chosen = launch_options(name, kernel.arg_names, dtype, channels, arch)
    signature = {arg: argument_type(arg, module, constants, dtype, name) for arg in kernel.arg_names}
    aligned = [['tt.divisibility', 16]]
    known = [signature[arg].startswith('*') or arg == 'stride' for arg in kernel.arg_names]
    attributes = {(i,): aligned for i, whole in enumerate(known) if whole}
    source = triton.compiler.ASTSource(kernel, signature, constants, attributes)
    options = dict(num_warps=chosen.num_warps, num_stages=chosen.num_stages)
    compiled = triton.compile(source, target=GPUTarget('cuda', arch, 32), options=options)
    usage, assembly = disassemble(compiled.asm['cubin'])
    instructions = re.findall(r'^\s+/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z]\w*)([^;]*);', assembly, re.MULTILINE)
    counts = Counter(opcode for _, opcode, _ in instructions)
    registers = int(re.search(r'REG:(\d+)', usage)[1])
    result = dict(
        kernel=name,
        dtype=dtype,
        channels=channels,
        arch=arch,
        tile=[chosen.queries, chosen.keys],
        warps=chosen.num_warps,
        registers=registers,
        stack=int(re.search(r'STACK:(\d+)', usage)[1]),
        spills=counts['LDL'] + counts['STL'],
        shared=compiled.metadata.shared,
        tensor_core=sum(count for opcode, count in counts.items() if 'MMA' in opcode),
        per_score=longest_loop(instructions) * 32 * chosen.num_warps / (chosen.queries * chosen.keys),
    )
    return {**result, **occupancy(arch, registers, result['shared'], chosen.num_warps)}


def launch_options(name: str, arguments: list[str], dtype: str, channels: int, arch: int) -> tuple[dict[str, Any], Any]:
    """The constants and the settings that a kernel is launched with."""
    from mmdat.ops.triton.settings import SIDE, tiles

    kind = 'local' if not name.startswith('deformable') else 'keys' if 'key' in name else 'queries'
    chosen = tiles(kind, getattr(torch, dtype), channels, arch // 10)
    if not name.startswith('deformable'):
        window = name.startswith('window')
        # Windows and neighbourhoods of 7, those of all published models.
        rows, key_side = chosen.keys // SIDE, 7 if window else 14
        options = dict(SIZE=7, WINDOW=window, SIDE=SIDE, PARTS=1, MARGIN=0 if window else 3, ROWS=rows)
        options.update(BLOCKS_Y=-(-key_side // rows), BLOCKS_X=-(-key_side // SIDE))
    else:
        options = dict(QUERIES=chosen.queries, KEYS=chosen.keys, HALF=dtype != 'float32', SIDE=int(chosen.queries**0.5))
    options.update(CHANNELS=channels, D=channels, PRECISION='tf32x3', UPCAST=False)
    return {key: value for key, value in options.items() if key in arguments}, chosen


def argument_type(arg: str, module: Any, constants: dict[str, Any], dtype: str, name: str) -> str:
    if arg in constants:
        return 'constexpr'
    if arg in ('scale', 'grad_scale', 'slope_y', 'slope_x'):
        return 'fp32'
    if arg in module.SIZES or arg == 'stride':
        return 'i32'
    if arg == 'cells':
        return '*i64'
    half = arg in MAPS or (arg in ('grad_key', 'grad_value') and not name.startswith('deformable'))
    return '*' + dict(float16='fp16', bfloat16='bf16', float32='fp32')[dtype if half else 'float32']


def disassemble(binary: bytes) -> tuple[str, str]:
    """The resources of a binary and its machine code, as text; by the program that comes with Triton."""
    import triton

    program = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary)
        file.flush()
        return tuple(
            subprocess.run([program, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ('-res-usage', '-sass')
        )


def longest_loop(instructions: list[tuple[str, str, str]]) -> int:
    """Instructions of the longest loop: from where a branch goes back to, to the branch."""
    places = {int(address, 16): i for i, (address, _, _) in enumerate(instructions)}
    longest = 0
    for i, (address, opcode, rest) in enumerate(instructions):
        target = re.search(r'0x([0-9a-f]+)', rest)
        if opcode == 'BRA' and target and int(target[1], 16) <= int(address, 16):
            longest = max(longest, i + 1 - places.get(int(target[1], 16), i + 1))
    # Without a loop (windows of one tile), all of it.
    return longest if longest > 20 else len(instructions)


def occupancy(arch: int, registers: int, shared: int, warps: int) -> dict[str, Any]:
    """Blocks that a multiprocessor holds at a time, and the part of its warps that these are."""
    _, all_shared, all_warps, most = LIMITS[arch]
    of_warp = -(-registers * 32 // 256) * 256
    blocks = min(REGISTERS // (of_warp * warps), all_shared // (shared + RESERVED_SHARED), all_warps // warps, most)
    return dict(blocks=blocks, occupancy=blocks * warps / all_warps)


def all_resources(archs: list[int], dtypes: list[str], channels: list[int]) -> Iterator[dict[str, Any]]:
    for name in KERNELS:
        for dtype in dtypes:
            for count in channels:
                for arch in archs:
                    yield compile_kernel(name, dtype, count, arch)


#: Data sheets: multiprocessors x 128 lanes x clock, FLOP/s of dense float16 products, bytes/s of memory.
CARDS = {
    'A100 (SXM, 80 GB)': (80, 108 * 128 * 1.41e9, 312e12, 2.04e12),
    'H100 (SXM)': (90, 132 * 128 * 1.98e9, 989e12, 3.35e12),
}
#: Layers at 800x1344 with a batch of 2: images times heads, queries, keys that a query meets (seen or masked), and how
#: much longer the maps get when squares of 8 pixels fill them.
LAYERS = {
    'deformable attention, DAT-T stage 3': ('deformable', 24, 50 * 84, 50 * 84, 56 * 88 / (50 * 84)),
    'deformable attention, DAT-T++ stage 1': ('deformable', 4, 200 * 336, 25 * 42, 1.0),
    'neighbourhood attention, DAT-T++ stage 1': ('neighbourhood', 4, 200 * 336, 256, 1.0),
    'shifted window attention, DAT-T stage 1': ('window', 6, 203 * 336, 64, 64 / 49 * (210 * 343) / (203 * 336)),
}


def roofline(results: list[dict[str, Any]]) -> str:
    """A Markdown table of what layers take at least by instructions, products and memory: calculated, not measured.

    Of memory, each map is counted once per kernel: what several programs read lies in the cache.
    """
    lines = [
        '| layer (float16, batch 2, 800x1344) | kernel | M scores | MB | '
        + ' | '.join(f'{card}: instructions, products, memory' for card in CARDS)
        + ' |',
        '|---|---|---|---|---|---|',
    ]
    channels = 32
    for layer, (family, heads, queries, keys, waste) in LAYERS.items():
        scores = heads * queries * keys
        num_keys = keys if family == 'deformable' else queries
        totals = dict.fromkeys(CARDS, 0.0)
        for name in (name for name in KERNELS if name.startswith(family)):
            # Products: two per score forward, three for the query, four for keys and values, two for a table alone.
            kind = name.split(' ', 1)[1]
            products = {'forward': 2, 'query gradient': 3, 'table gradient': 2}.get(kind, 4)
            maps = {'forward': (2, 2), 'query gradient': (4, 2), 'table gradient': (2, 2)}.get(kind, (2, 6))
            moved = 2 * channels * heads * (maps[0] * queries + maps[1] * num_keys)
            squares = waste if family != 'deformable' or 'key' in kind else 1.0
            cells = []
            for card, (arch, lanes, flops, memory) in CARDS.items():
                (found,) = [
                    r
                    for r in results
                    if (r['kernel'], r['dtype'], r['channels'], r['arch']) == (name, 'float16', channels, arch)
                ]
                times = [
                    scores * squares * found['per_score'] / lanes,
                    scores * squares * products * 2 * channels / flops,
                    moved / memory,
                ]
                totals[card] += max(times)
                cells.append(', '.join(f'{1e3 * t:.2f}' for t in times) + ' ms')
            lines.append(f'| {layer} | {kind} | {scores / 1e6:.0f} | {moved / 1e6:.0f} | {" | ".join(cells)} |')
        cells = [f'**{1e3 * total:.2f} ms**' for total in totals.values()]
        lines.append(f'| {layer} | all, the longest of each | | | {" | ".join(cells)} |')
    return '\n'.join(lines)


def table(results: list[dict[str, Any]]) -> str:
    """A Markdown table."""
    lines = [
        '| kernel | dtype | channels | sm | tile, warps | registers | spills | shared KB | blocks, occupancy '
        '| instructions per score |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for r in results:
        tile = f'{r["tile"][0]}x{r["tile"][1]}, {r["warps"]}'
        lines.append(
            f'| {r["kernel"]} | {r["dtype"]} | {r["channels"]} | {r["arch"]} | {tile} | {r["registers"]} '
            f'| {r["spills"]} | {r["shared"] / 1024:.0f} | {r["blocks"]}, {r["occupancy"]:.0%} | {r["per_score"]:.0f} |'
        )
    return '\n'.join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--arch', type=int, nargs='+', choices=LIMITS, default=[80, 90])
    parser.add_argument('--dtype', nargs='+', choices=DTYPES, default=['float16'])
    parser.add_argument('--channels', type=int, nargs='+', choices=CHANNELS, default=[32])
    parser.add_argument('--out', type=Path, help='JSON file for the numbers')
    args = parser.parse_args()
    results = []
    for result in all_resources(args.arch, args.dtype, args.channels):
        print(table([result]).splitlines()[-1], flush=True)
        results.append(result)
    if args.out:
        args.out.write_text(json.dumps(results, indent=1))
    print(table(results))
    if {80, 90} <= set(args.arch) and 'float16' in args.dtype and 32 in args.channels:
        print('\n' + roofline(results))


if __name__ == '__main__':
    main()
