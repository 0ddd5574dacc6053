"""The learning rate as a pure function of the step: no scheduler object, so nothing can drift over a resume."""

import math


def cosine(step: int, total_steps: int) -> float:
    """Return 1/2 (1 + cos(pi step / total_steps)): 1 at step 0, 0 at `total_steps`."""
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))


def learning_rate(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    peak: float,
    start_factor: float = 0.0,
    floor: float = 0.0,
    cosine_extra_steps: int = 0,
) -> float:
    """Return the learning rate of an optimiser step, counted from 0 (paper, section 6.3).

    Linear from start_factor * peak at step 0 to `peak` at `warmup_steps`, then a cosine to `floor`, which it reaches
    `cosine_extra_steps` after `total_steps`.
    """
    if step < warmup_steps:
        start = peak * start_factor
        return start + (peak - start) * step / warmup_steps
    if total_steps == warmup_steps:
        return peak
    return floor + (peak - floor) * cosine(step - warmup_steps, total_steps + cosine_extra_steps - warmup_steps)
