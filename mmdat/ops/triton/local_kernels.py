"""Kernels of attention to pixels nearby: neighbourhoods and windows, with a relative position bias.

A program takes a tile of SIDE x SIDE queries and, one after another, the blocks of ROWS x SIDE keys that hold all that
these see (for gradients of keys, a tile of keys and blocks of queries). A read of the bias table serves as the mask as
well: -inf where a query does not see a key.

A tile of a map cut into windows lies within one window; windows larger than a tile are cut into PARTS along each axis.
Tiles of other maps begin ``before`` pixels before the map, see :mod:`mmdat.ops.local_attention.tiles`, which says why
keys up to MARGIN pixels around a tile suffice. (With windows, ``before`` is that of the first window.)

Maps come as ``(B, pixels, C)``; pixels of query, key and value are ``stride`` apart, those of the others C.

Letters: BH images times heads, CHANNELS of a head, D the same padded to a power of two, SIZE the side of windows or
neighbourhoods, BLOCKS_Y and BLOCKS_X how many blocks of keys hold what a tile sees.
"""

import triton
import triton.language as tl

from .common import dot, finite_maximum, load_rows, of_head, store_rows

#: Arguments that follow the size of maps, which changes from image to image: no kernel of its own for any.
SIZES = ['heads', 'height', 'width', 'before_y', 'before_x', 'tiles_y', 'tiles_x', 'batch']


@triton.jit
def tile_start(tile, before, SIZE: tl.constexpr, WINDOW: tl.constexpr, SIDE: tl.constexpr, PARTS: tl.constexpr):
    """First pixel of a tile along an axis, maybe before the map."""
    if WINDOW:
        return tile // PARTS * SIZE + tile % PARTS * SIDE - before
    else:
        return tile * SIDE - before


@triton.jit
def seen(pixels, length, before, SIZE: tl.constexpr, WINDOW: tl.constexpr):
    """First and last key along an axis that queries see."""
    if WINDOW:
        first = (pixels + before) // SIZE * SIZE - before
        return tl.maximum(first, 0), tl.minimum(first + SIZE, length) - 1
    else:
        first = tl.minimum(tl.maximum(pixels - SIZE // 2, 0), length - SIZE)
        return first, first + SIZE - 1


@triton.jit
def bias_and_mask(
    table, query_y, query_x, key_y, key_x, height, width, before_y, before_x, SIZE: tl.constexpr, WINDOW: tl.constexpr
):
    """The table's entry for queries and keys (shapes that broadcast), -inf where a query does not see a key."""
    if not WINDOW:  # a query beyond the map would read beyond the table, so it takes the place of the nearest one
        query_y = tl.minimum(tl.maximum(query_y, 0), height - 1)
        query_x = tl.minimum(tl.maximum(query_x, 0), width - 1)
    first_y, last_y = seen(query_y, height, before_y, SIZE, WINDOW)
    first_x, last_x = seen(query_x, width, before_x, SIZE, WINDOW)
    visible = (key_y >= first_y) & (key_y <= last_y) & (key_x >= first_x) & (key_x <= last_x)
    entry = (key_y - query_y + SIZE - 1) * (2 * SIZE - 1) + key_x - query_x + SIZE - 1
    return tl.load(table + entry, mask=visible, other=float('-inf'))


@triton.jit
def block(top, left, height, width, ROWS: tl.constexpr, SIDE: tl.constexpr):
    """Rows and columns of the pixels of a block, and their places in the map (its end for those beyond)."""
    numbers = tl.arange(0, ROWS * SIDE)
    y, x = top + numbers // SIDE, left + numbers % SIDE
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y, x, tl.where(inside, y * width + x, height * width)


@triton.jit
def tile_of_queries(
    tile_y,
    tile_x,
    height,
    width,
    before_y,
    before_x,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """As :func:`block`; pixels of a window's last tile that the next window holds are beyond, too."""
    top = tile_start(tile_y, before_y, SIZE, WINDOW, SIDE, PARTS)
    left = tile_start(tile_x, before_x, SIZE, WINDOW, SIDE, PARTS)
    y, x, places = block(top, left, height, width, SIDE, SIDE)
    if WINDOW:
        inside = (y - top < SIZE - tile_y % PARTS * SIDE) & (x - left < SIZE - tile_x % PARTS * SIDE)
        places = tl.where(inside, places, height * width)
    return y, x, places


@triton.jit
def key_block(
    row,
    col,
    tile_y,
    tile_x,
    query_y,
    query_x,
    table,
    height,
    width,
    before_y,
    before_x,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Places in the map of the keys of a block, one of those that hold what a tile sees, and the bias."""
    if WINDOW:
        top, left = tile_y // PARTS * SIZE - before_y, tile_x // PARTS * SIZE - before_x
    else:
        top, left = tile_y * SIDE - before_y - MARGIN, tile_x * SIDE - before_x - MARGIN
    y, x, places = block(top + row * ROWS, left + col * SIDE, height, width, ROWS, SIDE)
    bias = bias_and_mask(
        table,
        query_y[:, None],
        query_x[:, None],
        y[None, :],
        x[None, :],
        height,
        width,
        before_y,
        before_x,
        SIZE,
        WINDOW,
    )
    return places, bias


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def forward_kernel(
    query,
    key,
    value,
    table,
    out,
    lse,
    stride,
    heads,
    height,
    width,
    before_y,
    before_x,
    tiles_x,
    scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS_Y: tl.constexpr,
    BLOCKS_X: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Output ``(B, H * W, C)`` and log-sum-exp in units of log 2 ``(BH, H * W)``."""
    head = tl.program_id(1).to(tl.int64)
    tile_y, tile_x = tl.program_id(0) // tiles_x, tl.program_id(0) % tiles_x
    pixels = height * width
    channels = heads * CHANNELS
    query = of_head(query, head, heads, pixels, stride, CHANNELS)
    key = of_head(key, head, heads, pixels, stride, CHANNELS)
    value = of_head(value, head, heads, pixels, stride, CHANNELS)
    out = of_head(out, head, heads, pixels, channels, CHANNELS)
    y, x, places = tile_of_queries(tile_y, tile_x, height, width, before_y, before_x, SIZE, WINDOW, SIDE, PARTS)
    q = load_rows(query, places, pixels, stride, CHANNELS, D)
    table += head % heads * (2 * SIZE - 1) * (2 * SIZE - 1)
    top = tl.full([SIDE * SIDE], float('-inf'), tl.float32)
    total = tl.zeros([SIDE * SIDE], tl.float32)
    sums = tl.zeros([SIDE * SIDE, D], tl.float32)
    for number in range(BLOCKS_Y * BLOCKS_X):
        keys, bias = key_block(
            number // BLOCKS_X,
            number % BLOCKS_X,
            tile_y,
            tile_x,
            y,
            x,
            table,
            height,
            width,
            before_y,
            before_x,
            SIZE,
            WINDOW,
            SIDE,
            PARTS,
            MARGIN,
            ROWS,
        )
        k = load_rows(key, keys, pixels, stride, CHANNELS, D)
        scores = dot(q, k.T, PRECISION, UPCAST) * scale + bias
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = finite_maximum(new_top)
        p = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows(value, keys, pixels, stride, CHANNELS, D)
        sums = sums * shrink[:, None] + dot(p.to(v.dtype), v, PRECISION, UPCAST)
        top = new_top
    store_rows(out, places, pixels, channels, sums / total[:, None], CHANNELS, D)
    tl.store(lse + head * pixels + places, top + tl.log2(total), mask=places < pixels)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def query_gradient_kernel(
    query,
    key,
    value,
    table,
    out,
    lse,
    grad,
    delta,
    grad_query,
    stride,
    heads,
    height,
    width,
    before_y,
    before_x,
    tiles_x,
    scale,
    grad_scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS_Y: tl.constexpr,
    BLOCKS_X: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradient of the query, and delta ``(BH, H * W)``: the product of each output with its gradient."""
    head = tl.program_id(1).to(tl.int64)
    tile_y, tile_x = tl.program_id(0) // tiles_x, tl.program_id(0) % tiles_x
    pixels = height * width
    channels = heads * CHANNELS
    query = of_head(query, head, heads, pixels, stride, CHANNELS)
    key = of_head(key, head, heads, pixels, stride, CHANNELS)
    value = of_head(value, head, heads, pixels, stride, CHANNELS)
    out = of_head(out, head, heads, pixels, channels, CHANNELS)
    grad = of_head(grad, head, heads, pixels, channels, CHANNELS)
    grad_query = of_head(grad_query, head, heads, pixels, channels, CHANNELS)
    y, x, places = tile_of_queries(tile_y, tile_x, height, width, before_y, before_x, SIZE, WINDOW, SIDE, PARTS)
    q = load_rows(query, places, pixels, stride, CHANNELS, D)
    g = load_rows(grad, places, pixels, channels, CHANNELS, D)
    o = load_rows(out, places, pixels, channels, CHANNELS, D)
    d = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + head * pixels + places, d, mask=places < pixels)
    log = tl.load(lse + head * pixels + places, mask=places < pixels, other=float('inf'))
    table += head % heads * (2 * SIZE - 1) * (2 * SIZE - 1)
    sums = tl.zeros([SIDE * SIDE, D], tl.float32)
    for number in range(BLOCKS_Y * BLOCKS_X):
        keys, bias = key_block(
            number // BLOCKS_X,
            number % BLOCKS_X,
            tile_y,
            tile_x,
            y,
            x,
            table,
            height,
            width,
            before_y,
            before_x,
            SIZE,
            WINDOW,
            SIDE,
            PARTS,
            MARGIN,
            ROWS,
        )
        k = load_rows(key, keys, pixels, stride, CHANNELS, D)
        p = tl.exp2(dot(q, k.T, PRECISION, UPCAST) * scale + bias - log[:, None])
        v = load_rows(value, keys, pixels, stride, CHANNELS, D)
        grad_scores = p * (dot(g, v.T, PRECISION, UPCAST) - d[:, None])
        sums += dot(grad_scores.to(k.dtype), k, PRECISION, UPCAST)
    store_rows(grad_query, places, pixels, channels, sums * grad_scale, CHANNELS, D)


@triton.jit
def queries_that_see(start, length, SIZE: tl.constexpr, SIDE: tl.constexpr):
    """First query along an axis that sees a key of SIDE that begin at ``start``, and how many up to the last one.

    The first and the last SIZE keys are seen by all queries up to the border.
    """
    first = tl.where(start < SIZE, 0, start - SIZE // 2)
    end = start + SIDE
    end = tl.where(end > length - SIZE, length, tl.minimum(end + SIZE // 2, length))
    return first, end - first


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def key_gradients_kernel(
    query,
    key,
    value,
    table,
    lse,
    grad,
    delta,
    grad_key,
    grad_value,
    stride,
    heads,
    height,
    width,
    before_y,
    before_x,
    tiles_x,
    scale,
    grad_scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradients of keys and values; a program takes a tile of keys."""
    head = tl.program_id(1).to(tl.int64)
    tile_y, tile_x = tl.program_id(0) // tiles_x, tl.program_id(0) % tiles_x
    pixels = height * width
    channels = heads * CHANNELS
    query = of_head(query, head, heads, pixels, stride, CHANNELS)
    key = of_head(key, head, heads, pixels, stride, CHANNELS)
    value = of_head(value, head, heads, pixels, stride, CHANNELS)
    grad = of_head(grad, head, heads, pixels, channels, CHANNELS)
    grad_key = of_head(grad_key, head, heads, pixels, channels, CHANNELS)
    grad_value = of_head(grad_value, head, heads, pixels, channels, CHANNELS)
    key_y, key_x, places = tile_of_queries(tile_y, tile_x, height, width, before_y, before_x, SIZE, WINDOW, SIDE, PARTS)
    k = load_rows(key, places, pixels, stride, CHANNELS, D)
    v = load_rows(value, places, pixels, stride, CHANNELS, D)
    table += head % heads * (2 * SIZE - 1) * (2 * SIZE - 1)
    if WINDOW:
        first_y, high = tile_y // PARTS * SIZE - before_y, SIZE
        first_x, wide = tile_x // PARTS * SIZE - before_x, SIZE
    else:
        first_y, high = queries_that_see(tile_y * SIDE - before_y, height, SIZE, SIDE)
        first_x, wide = queries_that_see(tile_x * SIDE - before_x, width, SIZE, SIDE)
    rows, cols = tl.cdiv(high, ROWS), tl.cdiv(wide, SIDE)
    k_sums = tl.zeros([SIDE * SIDE, D], tl.float32)
    v_sums = tl.zeros([SIDE * SIDE, D], tl.float32)
    for number in range(rows * cols):
        top, left = first_y + number // cols * ROWS, first_x + number % cols * SIDE
        y, x, queries = block(top, left, height, width, ROWS, SIDE)
        q = load_rows(query, queries, pixels, stride, CHANNELS, D)
        g = load_rows(grad, queries, pixels, channels, CHANNELS, D)
        log = tl.load(lse + head * pixels + queries, mask=queries < pixels, other=float('inf'))
        d = tl.load(delta + head * pixels + queries, mask=queries < pixels, other=0.0)
        bias = bias_and_mask(
            table,
            y[None, :],
            x[None, :],
            key_y[:, None],
            key_x[:, None],
            height,
            width,
            before_y,
            before_x,
            SIZE,
            WINDOW,
        )
        p = tl.exp2(dot(k, q.T, PRECISION, UPCAST) * scale + bias - log[None, :])
        v_sums += dot(p.to(g.dtype), g, PRECISION, UPCAST)
        grad_scores = p * (dot(v, g.T, PRECISION, UPCAST) - d[None, :])
        k_sums += dot(grad_scores.to(q.dtype), q, PRECISION, UPCAST)
    store_rows(grad_key, places, pixels, channels, k_sums * grad_scale, CHANNELS, D)
    store_rows(grad_value, places, pixels, channels, v_sums, CHANNELS, D)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def bias_gradient_kernel(
    query,
    key,
    value,
    table,
    lse,
    grad,
    delta,
    grad_bias,
    stride,
    heads,
    height,
    width,
    before_y,
    before_x,
    tiles_y,
    tiles_x,
    batch,
    scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    SIDE: tl.constexpr,
    PARTS: tl.constexpr,
    MARGIN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS_Y: tl.constexpr,
    BLOCKS_X: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Sums of the scores' gradients over tiles whose queries and keys lie to each other in the same way.

    A program (part, head, way) takes every so many tile of all images. A way is the part of a window that the queries
    are and the block of keys that they meet. Output ``(parts, heads, ways, SIDE**2, ROWS * SIDE)``; no atomics.
    """
    part, head, way = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    col, row = way % BLOCKS_X, way // BLOCKS_X % BLOCKS_Y
    part_x, part_y = way // (BLOCKS_Y * BLOCKS_X) % PARTS, way // (BLOCKS_Y * BLOCKS_X * PARTS)
    pixels, channels = height * width, heads * CHANNELS
    table += head * (2 * SIZE - 1) * (2 * SIZE - 1)
    windows_y, windows_x = tiles_y // PARTS, tiles_x // PARTS
    sums = tl.zeros([SIDE * SIDE, ROWS * SIDE], tl.float32)
    for number in range(part, batch * windows_y * windows_x, tl.num_programs(0)):
        tile_x = number % windows_x * PARTS + part_x
        tile_y = number // windows_x % windows_y * PARTS + part_y
        of_all = (number // (windows_x * windows_y) * heads + head).to(tl.int64)
        start = of_all * pixels
        y, x, places = tile_of_queries(tile_y, tile_x, height, width, before_y, before_x, SIZE, WINDOW, SIDE, PARTS)
        keys, bias = key_block(
            row,
            col,
            tile_y,
            tile_x,
            y,
            x,
            table,
            height,
            width,
            before_y,
            before_x,
            SIZE,
            WINDOW,
            SIDE,
            PARTS,
            MARGIN,
            ROWS,
        )
        q = load_rows(of_head(query, of_all, heads, pixels, stride, CHANNELS), places, pixels, stride, CHANNELS, D)
        g = load_rows(of_head(grad, of_all, heads, pixels, channels, CHANNELS), places, pixels, channels, CHANNELS, D)
        k = load_rows(of_head(key, of_all, heads, pixels, stride, CHANNELS), keys, pixels, stride, CHANNELS, D)
        v = load_rows(of_head(value, of_all, heads, pixels, stride, CHANNELS), keys, pixels, stride, CHANNELS, D)
        log = tl.load(lse + start + places, mask=places < pixels, other=float('inf'))
        d = tl.load(delta + start + places, mask=places < pixels, other=0.0)
        p = tl.exp2(dot(q, k.T, PRECISION, UPCAST) * scale + bias - log[:, None])
        sums += p * (dot(g, v.T, PRECISION, UPCAST) - d[:, None])
    queries, keys = tl.arange(0, SIDE * SIDE), tl.arange(0, ROWS * SIDE)
    ways = PARTS * PARTS * BLOCKS_Y * BLOCKS_X
    base = grad_bias + ((part * heads + head) * ways + way).to(tl.int64) * (SIDE * SIDE * ROWS * SIDE)
    tl.store(base + queries[:, None] * (ROWS * SIDE) + keys[None, :], sums)
