"""Kernels of deformable attention with a bias table.

Scores are products of queries and keys plus a bilinear read of the table. The table comes as *cells*: the four
coefficients of the bilinear polynomial between four entries, around the middle of the cell, side by side. So a score
takes one read. Zeros lie around the table as far as any query and key can reach, so no read needs a check (keys
further away are moved to the border of these zeros, where nothing changes).

Coordinates are in cells, separately of queries and keys: query minus key is 0 in the middle of the cell that the
pointer to the cells points to.

Maps come as ``(B, pixels, C)``.

Letters: BH images times heads, CHANNELS of a head, D the same padded to a power of two.
"""

import triton
import triton.language as tl

from .common import LOG2E, dot, finite_maximum, load_rows, of_head, store_rows

# Adding this to a small float32 rounds it to a whole number, which stands in the lowest bits. The instructions that
# convert between numbers are four times slower.
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2**23
ROUND_BITS = tl.constexpr(0x4B400000)
LOG2 = tl.constexpr(LOG2E)

#: Arguments that follow the size of maps, which changes from image to image: no kernel of its own for any.
SIZES = [
    *('heads', 'heads_of_group', 'num_queries', 'height', 'width', 'num_keys', 'cells_of_head', 'cells_in_row'),
    *('table_height', 'table_width', 'table_row', 'table_col', 'taps_y', 'taps_x', 'copies'),
    *('cell_rows', 'before_y', 'before_x', 'lanes'),
]


@triton.jit
def load_entries(table, row, col, height, width):
    """Of a table ``(height, width)``, zeros around it."""
    inside = (row >= 0) & (row < height) & (col >= 0) & (col < width)
    return tl.load(table + row * width + col, mask=inside, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def cells_kernel(
    table,
    cells,
    table_height,
    table_width,
    cell_rows,
    cells_in_row,
    before_y,
    before_x,
    BLOCK: tl.constexpr,
):
    """Cells ``(heads, cell_rows, cells_in_row, 4)`` in units of log 2 from a table ``(heads, height, width)``.

    The table begins ``before`` entries after the first cell.
    """
    head = tl.program_id(1).to(tl.int64)
    cell = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, col = cell // cells_in_row - before_y, cell % cells_in_row - before_x
    table += head * table_height * table_width
    upper_left = load_entries(table, row, col, table_height, table_width)
    upper_right = load_entries(table, row, col + 1, table_height, table_width)
    lower_left = load_entries(table, row + 1, col, table_height, table_width)
    lower_right = load_entries(table, row + 1, col + 1, table_height, table_width)
    upper, lower = (upper_left + upper_right) / 2, (lower_left + lower_right) / 2
    upper_slope, lower_slope = upper_right - upper_left, lower_right - lower_left
    there = cell < cell_rows * cells_in_row
    cells += 4 * (head * cell_rows * cells_in_row + cell)
    tl.store(cells, ((upper + lower) / 2 * LOG2).to(cells.dtype.element_ty), mask=there)
    tl.store(cells + 1, ((upper_slope + lower_slope) / 2 * LOG2).to(cells.dtype.element_ty), mask=there)
    tl.store(cells + 2, ((lower - upper) * LOG2).to(cells.dtype.element_ty), mask=there)
    tl.store(cells + 3, ((lower_slope - upper_slope) * LOG2).to(cells.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def coordinates_kernel(
    position,
    query_y,
    query_x,
    key_cells,
    query_cells,
    not_finite,
    height,
    width,
    lanes,
    num_keys,
    table_height,
    table_width,
    BLOCK: tl.constexpr,
):
    """Coordinates in cells of keys ``(2, lanes, num_keys)`` and of queries ``(height + width,)``.

    Their difference is counted from the middle of the cell after the centre of the table, small near the centre, where
    most reads are: float32 is exact to 1e-7 of it. Queries are at most 2 apart, which is (size - 1) / 2 in cells. So a
    key can be moved to where all queries see it beyond the table, among its zeros, if it is further: as far as the
    cells go.

    ``not_finite`` ``(lanes, num_keys)`` becomes NaN where a position is not finite (its key has coordinates within
    reach), else 0.
    """
    axis = tl.program_id(1)
    size, count, query, to = table_height, height, query_y, query_cells
    if axis == 1:
        size, count, query, to = table_width, width, query_x, query_cells + height
    cells = (size - 1).to(tl.float32) / 4
    step = tl.arange(0, BLOCK)
    first = tl.full([BLOCK], float('inf'), tl.float32)
    for start in range(0, count, BLOCK):
        coordinate = tl.load(query + start + step, mask=start + step < count, other=float('inf'))
        first = tl.minimum(first, coordinate.to(tl.float32))
    first = tl.min(first, 0) * cells
    index = tl.program_id(0) * BLOCK + step
    offset = (size - 1).to(tl.float32) / 2 - (size - 1) // 2 - 0.5
    coordinate = tl.load(query + index, mask=index < count, other=0.0).to(tl.float32) * cells + offset
    tl.store(to + index, coordinate, mask=index < count)
    there = index < lanes * num_keys
    y = tl.load(position + 2 * index, mask=there, other=0.0).to(tl.float32)
    x = tl.load(position + 2 * index + 1, mask=there, other=0.0).to(tl.float32)
    finite = (tl.abs(y) < float('inf')) & (tl.abs(x) < float('inf'))
    key = tl.where(finite, tl.where(axis == 0, y, x), 0.0) * cells
    key = tl.minimum(tl.maximum(key, first - (size + 1).to(tl.float32) / 2), first + size + 0.5)
    tl.store(key_cells + axis * lanes * num_keys + index, key, mask=there)
    bad = tl.where(finite, 0.0, float('nan')).to(not_finite.dtype.element_ty)
    tl.store(not_finite + index, bad, mask=there & (axis == 0))


@triton.jit
def nearest(coordinate):
    """The nearest whole number, and how far the coordinate is beyond it."""
    rounded = coordinate + ROUND
    return rounded.to(tl.int32, bitcast=True) - ROUND_BITS, coordinate - (rounded - ROUND)


@triton.jit
def nearest_half_up(coordinate):
    """As :func:`nearest`, halves upwards: at the border of two cells, ``grid_sample`` takes the slope of the next."""
    rounded = coordinate + ROUND
    beyond = coordinate - (rounded - ROUND)
    up = beyond == 0.5
    return rounded.to(tl.int32, bitcast=True) - ROUND_BITS + up.to(tl.int32), tl.where(up, -0.5, beyond)


@triton.jit
def as_float(bits, HALF: tl.constexpr):
    """The lowest bits of a word as a number."""
    if HALF:
        return bits.to(tl.int16).to(tl.float16, bitcast=True).to(tl.float32)
    else:
        return bits.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def read_cells(cells, index, HALF: tl.constexpr):
    """Coefficients of 1, x, y, x * y; four float16 in a word of 8 bytes, or four float32 in two."""
    if HALF:
        word = tl.load(cells + index)
        return as_float(word, HALF), as_float(word >> 16, HALF), as_float(word >> 32, HALF), as_float(word >> 48, HALF)
    else:
        low, high = tl.load(cells + 2 * index), tl.load(cells + 2 * index + 1)
        return as_float(low, HALF), as_float(low >> 32, HALF), as_float(high, HALF), as_float(high >> 32, HALF)


@triton.jit
def cells_of(cells, head, cells_of_head, HALF: tl.constexpr):
    """Pointer to the cells of a head."""
    return cells + head * cells_of_head * (1 if HALF else 2)


@triton.jit
def biased(products, scale, cells, query_y, query_x, key_y, key_x, cells_in_row, HALF: tl.constexpr):
    """Scores of queries (along axis 0) and keys (along axis 1)."""
    row, y = nearest(query_y[:, None] - key_y[None, :])
    col, x = nearest(query_x[:, None] - key_x[None, :])
    one, by_x, by_y, by_xy = read_cells(cells, row * cells_in_row + col, HALF)
    return products * scale + (one + x * by_x + y * (by_y + x * by_xy))


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def forward_kernel(
    query,
    key,
    value,
    cells,
    query_y,
    query_x,
    key_y,
    key_x,
    out,
    lse,
    heads,
    heads_of_group,
    num_queries,
    width,
    num_keys,
    cells_of_head,
    cells_in_row,
    scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Output ``(B, num_queries, C)`` and log-sum-exp in units of log 2 ``(BH, num_queries)``.

    A program takes QUERIES queries of a head, one after another in the flattened map, to KEYS keys at a time.
    """
    head = tl.program_id(1).to(tl.int64)
    lane = head // heads_of_group
    channels = heads * CHANNELS
    query = of_head(query, head, heads, num_queries, channels, CHANNELS)
    out = of_head(out, head, heads, num_queries, channels, CHANNELS)
    key = of_head(key, head, heads, num_keys, channels, CHANNELS)
    value = of_head(value, head, heads, num_keys, channels, CHANNELS)
    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = tl.minimum(queries, num_queries - 1)
    y, x = tl.load(query_y + inside // width), tl.load(query_x + inside % width)
    q = load_rows(query, queries, num_queries, channels, CHANNELS, D)
    cells = cells_of(cells, head % heads, cells_of_head, HALF)
    top = tl.full([QUERIES], float('-inf'), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    sums = tl.zeros([QUERIES, D], tl.float32)
    for start in range(0, num_keys, KEYS):
        keys = start + tl.arange(0, KEYS)
        there = keys < num_keys
        k = load_rows(key, keys, num_keys, channels, CHANNELS, D)
        ky = tl.load(key_y + lane * num_keys + keys, mask=there, other=0.0)
        kx = tl.load(key_x + lane * num_keys + keys, mask=there, other=0.0)
        scores = biased(dot(q, k.T, PRECISION, UPCAST), scale, cells, y, x, ky, kx, cells_in_row, HALF)
        scores = tl.where(there[None, :], scores, float('-inf'))
        new_top = tl.maximum(top, tl.max(scores, 1))
        shift = finite_maximum(new_top)
        p = tl.exp2(scores - shift[:, None])
        shrink = tl.exp2(top - shift)
        total = total * shrink + tl.sum(p, 1)
        v = load_rows(value, keys, num_keys, channels, CHANNELS, D)
        sums = sums * shrink[:, None] + dot(p.to(v.dtype), v, PRECISION, UPCAST)
        top = new_top
    store_rows(out, queries, num_queries, channels, sums / total[:, None], CHANNELS, D)
    tl.store(lse + head * num_queries + queries, top + tl.log2(total), mask=queries < num_queries)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def query_gradient_kernel(
    query,
    key,
    value,
    cells,
    query_y,
    query_x,
    key_y,
    key_x,
    out,
    lse,
    grad,
    delta,
    grad_query,
    heads,
    heads_of_group,
    num_queries,
    width,
    num_keys,
    cells_of_head,
    cells_in_row,
    scale,
    grad_scale,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradient of the query, and delta ``(BH, num_queries)``: the product of each output with its gradient."""
    head = tl.program_id(1).to(tl.int64)
    lane = head // heads_of_group
    channels = heads * CHANNELS
    query = of_head(query, head, heads, num_queries, channels, CHANNELS)
    out = of_head(out, head, heads, num_queries, channels, CHANNELS)
    grad = of_head(grad, head, heads, num_queries, channels, CHANNELS)
    grad_query = of_head(grad_query, head, heads, num_queries, channels, CHANNELS)
    key = of_head(key, head, heads, num_keys, channels, CHANNELS)
    value = of_head(value, head, heads, num_keys, channels, CHANNELS)
    queries = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    inside = tl.minimum(queries, num_queries - 1)
    y, x = tl.load(query_y + inside // width), tl.load(query_x + inside % width)
    q = load_rows(query, queries, num_queries, channels, CHANNELS, D)
    g = load_rows(grad, queries, num_queries, channels, CHANNELS, D)
    o = load_rows(out, queries, num_queries, channels, CHANNELS, D)
    d = tl.sum(g.to(tl.float32) * o.to(tl.float32), 1)
    tl.store(delta + head * num_queries + queries, d, mask=queries < num_queries)
    log = tl.load(lse + head * num_queries + inside)
    cells = cells_of(cells, head % heads, cells_of_head, HALF)
    sums = tl.zeros([QUERIES, D], tl.float32)
    for start in range(0, num_keys, KEYS):
        keys = start + tl.arange(0, KEYS)
        there = keys < num_keys
        k = load_rows(key, keys, num_keys, channels, CHANNELS, D)
        ky = tl.load(key_y + lane * num_keys + keys, mask=there, other=0.0)
        kx = tl.load(key_x + lane * num_keys + keys, mask=there, other=0.0)
        scores = biased(dot(q, k.T, PRECISION, UPCAST), scale, cells, y, x, ky, kx, cells_in_row, HALF)
        p = tl.exp2(tl.where(there[None, :], scores, float('-inf')) - log[:, None])
        v = load_rows(value, keys, num_keys, channels, CHANNELS, D)
        grad_scores = p * (dot(g, v.T, PRECISION, UPCAST) - d[:, None])
        sums += dot(grad_scores.to(k.dtype), k, PRECISION, UPCAST)
    store_rows(grad_query, queries, num_queries, channels, sums * grad_scale, CHANNELS, D)


@triton.jit(do_not_specialize=SIZES, do_not_specialize_on_alignment=SIZES)
def key_gradients_kernel(
    query,
    key,
    value,
    cells,
    query_y,
    query_x,
    key_y,
    key_x,
    lse,
    grad,
    delta,
    grad_key,
    grad_value,
    grad_key_y,
    grad_key_x,
    grad_table,
    heads,
    heads_of_group,
    height,
    width,
    num_keys,
    cells_of_head,
    cells_in_row,
    table_height,
    table_width,
    table_row,
    table_col,
    taps_y,
    taps_x,
    copies,
    scale,
    grad_scale,
    slope_y,
    slope_x,
    CHANNELS: tl.constexpr,
    D: tl.constexpr,
    SIDE: tl.constexpr,
    KEYS: tl.constexpr,
    HALF: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Gradients of keys, values, positions and the table; the slopes are by what coordinates change with positions.

    A program takes KEYS keys of a head and every so many tile of SIDE x SIDE queries; the sums of all that share keys
    (along axis 2 of the grid) are stored one after another: ``(parts, B, num_keys, C)``, ``(parts, BH, num_keys)``.

    Within a tile, a row of scores has one row coordinate to each key, and a column one column coordinate. So the
    gradients of the table's entries are sums over rows, then columns, with the weights of linear interpolation (hats);
    they go to ``copies`` copies of the table, ``(copies, heads, table_height, table_width)``.
    """
    head = tl.program_id(1).to(tl.int64)
    part = tl.program_id(2)
    lane = head // heads_of_group
    num_queries = height * width
    channels = heads * CHANNELS
    query = of_head(query, head, heads, num_queries, channels, CHANNELS)
    grad = of_head(grad, head, heads, num_queries, channels, CHANNELS)
    key = of_head(key, head, heads, num_keys, channels, CHANNELS)
    value = of_head(value, head, heads, num_keys, channels, CHANNELS)
    sums_of_part = part.to(tl.int64) * tl.num_programs(1) * num_keys * CHANNELS
    grad_key = of_head(grad_key + sums_of_part, head, heads, num_keys, channels, CHANNELS)
    grad_value = of_head(grad_value + sums_of_part, head, heads, num_keys, channels, CHANNELS)
    tiles_in_row = tl.cdiv(width, SIDE)
    tiles = tl.cdiv(height, SIDE) * tiles_in_row
    keys = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    there = keys < num_keys
    k = load_rows(key, keys, num_keys, channels, CHANNELS, D)
    v = load_rows(value, keys, num_keys, channels, CHANNELS, D)
    ky = tl.load(key_y + lane * num_keys + keys, mask=there, other=0.0)
    kx = tl.load(key_x + lane * num_keys + keys, mask=there, other=0.0)
    cells = cells_of(cells, head % heads, cells_of_head, HALF)
    copy = (tl.program_id(0) + part + head // heads) % copies
    table = grad_table + (copy * heads + head % heads) * table_height * table_width
    k_sums = tl.zeros([KEYS, D], tl.float32)
    v_sums = tl.zeros([KEYS, D], tl.float32)
    y_sums = tl.zeros([KEYS], tl.float32)
    x_sums = tl.zeros([KEYS], tl.float32)
    for tile in range(part, tiles, tl.num_programs(2)):
        top, left = tile // tiles_in_row * SIDE, tile % tiles_in_row * SIDE
        numbers = tl.arange(0, SIDE * SIDE)
        rows, cols = top + numbers // SIDE, left + numbers % SIDE
        queries = tl.where((rows < height) & (cols < width), rows * width + cols, num_queries)
        q = load_rows(query, queries, num_queries, channels, CHANNELS, D)
        g = load_rows(grad, queries, num_queries, channels, CHANNELS, D)
        # Beyond the map, infinite: such scores weigh nothing.
        log = tl.load(lse + head * num_queries + queries, mask=queries < num_queries, other=float('inf'))
        d = tl.load(delta + head * num_queries + queries, mask=queries < num_queries, other=0.0)
        qy = tl.load(query_y + tl.minimum(top + tl.arange(0, SIDE), height - 1))
        qx = tl.load(query_x + tl.minimum(left + tl.arange(0, SIDE), width - 1))
        # Keys along axis 0; queries by row and column along axes 1 and 2, or flattened along axis 1.
        at_y, at_x = qy[None, :] - ky[:, None], qx[None, :] - kx[:, None]
        row, y = nearest_half_up(at_y)
        col, x = nearest_half_up(at_x)
        index = (row * cells_in_row)[:, :, None] + col[:, None, :]
        one, by_x, by_y, by_xy = read_cells(cells, index, HALF)
        bias = one + x[:, None, :] * by_x + y[:, :, None] * (by_y + x[:, None, :] * by_xy)
        scores = dot(k, q.T, PRECISION, UPCAST) * scale + tl.reshape(bias, [KEYS, SIDE * SIDE])
        p = tl.exp2(scores - log[None, :])
        v_sums += dot(p.to(g.dtype), g, PRECISION, UPCAST)
        grad_scores = p * (dot(v, g.T, PRECISION, UPCAST) - d[None, :])
        k_sums += dot(grad_scores.to(q.dtype), q, PRECISION, UPCAST)
        grad_bias = tl.reshape(grad_scores, [KEYS, SIDE, SIDE])
        y_sums += tl.sum(tl.sum(grad_bias * (by_y + x[:, None, :] * by_xy), 1), 1)
        x_sums += tl.sum(tl.sum(grad_bias * (by_x + y[:, :, None] * by_xy), 1), 1)
        # Coordinates are those of cells' middles: entry 0 of a cell is half a cell before.
        first_y, first_x = tl.min(row, 1), tl.min(col, 1)
        for s in range(taps_y):
            hat = tl.maximum(1 - tl.abs(at_y - (first_y + s).to(tl.float32)[:, None] + 0.5), 0.0)
            by_col = tl.sum(grad_bias * hat[:, :, None], 1)
            to_row = first_y + s + table_row
            in_table = there & (to_row >= 0) & (to_row < table_height)
            for t in range(taps_x):
                hat_x = tl.maximum(1 - tl.abs(at_x - (first_x + t).to(tl.float32)[:, None] + 0.5), 0.0)
                to_col = first_x + t + table_col
                entry = table + to_row * table_width + to_col
                here = in_table & (to_col >= 0) & (to_col < table_width)
                tl.atomic_add(entry, tl.sum(by_col * hat_x, 1), mask=here, sem='relaxed')
    place = part * tl.num_programs(1) + head
    store_rows(grad_key, keys, num_keys, channels, k_sums * grad_scale, CHANNELS, D)
    store_rows(grad_value, keys, num_keys, channels, v_sums, CHANNELS, D)
    tl.store(grad_key_y + place * num_keys + keys, y_sums * slope_y, mask=there)
    tl.store(grad_key_x + place * num_keys + keys, x_sums * slope_x, mask=there)
