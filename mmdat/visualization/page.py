"""A page of HTML that shows, wherever one points, what deformable attention looks at; no server and no network."""

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import torch
from torch import Tensor

from mmdat.models import DAT

from .attention import LayerAttention, observe
from .panels import received_heat
from .sheets import layer_names, stride_of
from .view import View

#: Bytes of the attention in a page, before they are written as text, which takes a third more. Of large maps and many
#: heads, fewer queries are kept.
ATTENTION_BYTES = 5 * 2**20
KEYS = 8  # of each query
MOST_QUERIES = 2500  # of a layer
PICTURE_SIDE = 1400  # pixels of the longest side
_TEMPLATE = Path(__file__).with_name('page.html')


@torch.no_grad()
def attention_page(
    backbone: DAT,
    inputs: Tensor,
    view: View,
    query: Optional[tuple[float, float]] = None,
    layers: Optional[Sequence[str]] = None,
    title: str = 'Deformable attention',
) -> str:
    """Run a backbone on an image, and write what its deformable attention looks at as one page of HTML.

    The page shows the most attended keys of the query under the pointer, by layer, head and offset group, where they
    were sampled and how far they moved; the offsets of all points; and the attention that each place receives.

    Args:
        backbone: The backbone; it runs in eval mode and is left in the mode it was in.
        inputs: Its input, one normalised image ``(1, 3, H, W)``.
        view: The picture to draw over, and how the input was made of it.
        query: Pixel (y, x) of the picture that is pointed at first; by default its centre.
        layers: Some of :func:`layer_names`; by default all.
        title: The heading.
    """
    records = observe(backbone, inputs)
    names = layer_names(backbone) if layers is None else layers
    # Each key of a query and view has a number and a weight, of two bytes each.
    views = sum(1 + records[name][0].points.position.shape[1] + records[name][0].num_heads for name in names)
    most = max(min(ATTENTION_BYTES // (4 * KEYS * views), MOST_QUERIES), 1)
    height, width = view.picture.shape[:2]
    scale = min(1.0, PICTURE_SIDE / max(height, width))
    row, col = query or view.default_queries()[0]
    data = dict(
        title=title,
        picture=_jpeg(view.picture, scale),
        scale=scale,
        query=[(col + 0.5) * scale, (row + 0.5) * scale],
        layers=[_layer(name, records[name][0], view, scale, most) for name in names],
    )
    text = json.dumps(data).replace('<', '\\u003c')  # so that no text ends the script that holds it
    return _TEMPLATE.read_text(encoding='utf-8').replace('"DATA"', text)


def _layer(name: str, attention: LayerAttention, view: View, scale: float, most: int) -> dict[str, Any]:
    """A layer as the page reads it; places are (x, y) in pixels of its picture."""
    stride = stride_of(name)

    def place(position: Tensor) -> np.ndarray:
        return ((view.locate(position, stride) + 0.5) * scale).flip(-1).numpy()

    points = attention.points
    height, width = attention.query.shape[2:]
    step = math.ceil(math.sqrt(height * width / most))
    rows, cols = [torch.arange(min(step // 2, side - 1), side, step) for side in (height, width)]
    corner = torch.stack(torch.meshgrid(rows / max(height - 1, 1), cols / max(width - 1, 1), indexing='ij'), -1) * 2 - 1
    index, weight = (torch.cat(parts, 1) for parts in zip(*(_strongest(attention, int(row), cols) for row in rows)))
    heat = received_heat(attention, view, stride)
    left, right, bottom, top = view.extent(stride)
    shown = heat.isfinite()
    peak = float(heat[shown].max())
    return dict(
        name=name,
        groups=points.position.shape[1],
        heads=attention.num_heads,
        keys=list(attention.key.shape[2:]),
        queries=[len(rows), len(cols)],
        at=_text(place(corner), np.float32),
        reference=_text(place(points.reference), np.float32),
        position=_text(place(points.position[0]), np.float32),
        index=_text(index.numpy(), np.uint16 if int(index.max()) < 2**16 else np.uint32),
        weight=_text((weight * 65535).round().numpy(), np.uint16),
        most=index.shape[2],
        heat=dict(
            size=list(heat.shape),
            # 0 is outside of the picture.
            values=_text((1 + heat / peak * 254).nan_to_num(0).round().numpy(), np.uint8),
            peak=round(peak, 2),
            box=[(side + 0.5) * scale for side in (left, top, right, bottom)],
        ),
    )


def _strongest(attention: LayerAttention, row: int, cols: Tensor) -> tuple[Tensor, Tensor]:
    """The most attended keys of some queries of a row, ``(views, queries, KEYS)``, numbered through the groups.

    The views are all heads together, each group, and each head; their weights sum up to 1 over all keys.
    """
    heads = attention.weights(row, row + 1)[0, :, cols.to(attention.query.device)].cpu()
    groups = attention.points.position.shape[1]
    per_group, num_keys = heads.unflatten(0, (groups, -1)).mean(1), heads.shape[2]
    views = [(per_group.transpose(0, 1).flatten(1)[None] / groups, torch.zeros(1))]
    views.append((per_group, torch.arange(groups)))
    views.append((heads, torch.arange(len(heads)) // (len(heads) // groups)))
    index, weight = [], []
    for weights, group in views:
        top = weights.topk(min(KEYS, num_keys))
        index.append(top.indices + group.long()[:, None, None] * num_keys)
        weight.append(top.values)
    return torch.cat(index), torch.cat(weight)


def _text(values: np.ndarray, dtype: type) -> dict[str, str]:
    """An array as the page reads it."""
    little = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder('<'))
    return {np.dtype(dtype).name: base64.b64encode(little.tobytes()).decode()}


def _jpeg(picture: np.ndarray, scale: float) -> dict[str, Any]:
    height, width = (max(round(side * scale), 1) for side in picture.shape[:2])
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode('.jpg', cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 85])
    return dict(
        width=width, height=height, src='data:image/jpeg;base64,' + base64.b64encode(encoded.tobytes()).decode()
    )
