"""What happens to a picture before the network, read from a config, as plain values for whoever runs the file."""

from typing import Any

from mmengine.config import Config

from mmdat.config.walk import innermost_datasets
from mmdat.errors import RunError

# Transforms of test pipelines that change no pixel.
_WITHOUT_EFFECT = ('Pack', 'Load', 'Annotations', 'Normalize')


def describe(cfg: Config) -> dict[str, Any]:
    """The preprocessing of a config's test pipeline and data preprocessor.

    Returns:
        ``steps``, a list of dicts that say what to do with the picture, with sizes as (height, width); ``mean`` and
        ``std`` per channel; ``rgb``, whether the network takes RGB rather than OpenCV's BGR; ``divisor``, of which the
        sides are made multiples by zeros at the right and bottom; ``task``.

    Raises:
        RunError: If a transform is not known here.
    """
    dataset = next(innermost_datasets(cfg.test_dataloader.dataset))
    steps = [step for step in map(_step, dataset.pipeline) if step]
    model = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return dict(
        task={'mmdet': 'detection', 'mmseg': 'segmentation', 'mmpretrain': 'classification'}[cfg.default_scope],
        steps=steps,
        mean=list(model.get('mean', (0.0, 0.0, 0.0))),
        std=list(model.get('std', (1.0, 1.0, 1.0))),
        rgb=bool(model.get('bgr_to_rgb') or model.get('to_rgb')),
        divisor=model.get('pad_size_divisor', 1),
    )


def _step(transform: dict[str, Any]) -> dict[str, Any]:
    kind = str(transform['type']).split('.')[-1]
    how = dict(
        backend=transform.get('backend', 'cv2'),
        interpolation=transform.get('interpolation', 'bilinear'),
    )
    if kind in ('Resize', 'FixScaleResize'):
        scale = transform.get('scale')
        if scale is None:
            return dict(do='scale', factor=float(transform['scale_factor']), **how)
        # (width, height), or one side for both.
        width, height = scale if isinstance(scale, (list, tuple)) else (scale, scale)
        if transform.get('keep_ratio'):
            return dict(do='fit', long=max(width, height), short=min(width, height), **how)
        return dict(do='resize', size=[height, width], **how)
    if kind == 'ResizeEdge':
        return dict(do='edge', size=transform['scale'], edge=transform.get('edge', 'short'), **how)
    if kind == 'CenterCrop':
        side = transform['crop_size']
        width, height = side if isinstance(side, (list, tuple)) else (side, side)
        return dict(do='crop', size=[height, width])
    if any(part in kind for part in _WITHOUT_EFFECT):
        return {}
    raise RunError(
        f'the test pipeline has {kind}, which cannot be written into the file: use Resize, ResizeEdge and CenterCrop'
    )
