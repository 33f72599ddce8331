"""The learning-rate curve of the released ImageNet recipes."""

import math

from mmengine.optim import CosineAnnealingLR

from mmdat.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(CosineAnnealingLR):
    """Cosine annealing over the whole run, with a linear warm-up in place of its beginning, as in timm.

    MMEngine's own schedulers make the cosine start when the warm-up ends. In timm's ``CosineLRScheduler``, with which
    DAT and DAT++ were trained, it runs from step 0: when the warm-up has reached the peak, the rate drops to the point
    that the cosine has come to by then, ``cos(pi * warmup)``.

    Args:
        optimizer: The optimizer or optimizer wrapper.
        warmup: Length of the warm-up as a fraction of the run, less than 1. A fraction needs no conversion when
            ``convert_to_iter_based`` turns epochs to iterations.
        warmup_ratio: Where the warm-up starts, as a fraction of the peak.
        **kwargs: Of MMEngine's ``CosineAnnealingLR``; ``begin`` must be 0, and ``end`` is needed.

    Raises:
        ValueError: For a ``begin`` that is not 0 or a warm-up that leaves nothing for the cosine.
    """

    def __init__(self, optimizer, *args, warmup: float = 0.0, warmup_ratio: float = 0.001, **kwargs):
        if kwargs.get('begin', 0) != 0:
            raise ValueError(f'WarmupCosineLR must begin at 0, got begin={kwargs["begin"]}')
        if not 0 <= warmup < 1:
            raise ValueError(f'warmup must be a fraction of the run, at least 0 and less than 1, got {warmup}')
        self.warmup = warmup
        self.warmup_ratio = warmup_ratio
        super().__init__(optimizer, *args, **kwargs)

    def _get_value(self) -> list[float]:
        """The rate of each group at the current step; MMEngine asks every scheduler to implement this method."""
        progress = self.last_step / self.T_max
        values = []
        for peak in self.base_values:
            if progress < self.warmup:
                value = peak * (self.warmup_ratio + (1 - self.warmup_ratio) * progress / self.warmup)
            else:
                end = self.eta_min if self.eta_min_ratio is None else peak * self.eta_min_ratio
                value = end + 0.5 * (peak - end) * (1 + math.cos(math.pi * progress))
            values.append(value)
        return values
