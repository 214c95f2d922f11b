"""The learning rate as a pure function of the step: linear warm-up, then a cosine to 0.

Chen et al. (ICML 2020), appendix: warm-up for one epoch, cosine decay to 0 after it.
"""

import math

from igpt.errors import UserError
from igpt.training.config import ScheduleConfig


def learning_rate(step: int, *, highest: float, warmup: int, steps: int) -> float:
    """The rate of the update that follows `step` finished ones, 0 <= step <= steps.

    It rises from highest / warmup to `highest` at the last step of warm-up, and is 0 at `steps`,
    which no update reaches.
    """
    if step < warmup:
        return highest * (step + 1) / warmup
    if step >= steps:
        return 0.0
    return highest * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def warmup_steps(schedule: ScheduleConfig, *, samples: int, global_batch: int) -> int:
    """The steps of warm-up: those of the schedule, or one epoch of `samples` training images.

    Raises UserError where one epoch is longer than the whole run: nobody would want that.
    """
    if schedule.warmup is not None:
        return schedule.warmup
    epoch = math.ceil(samples / global_batch)
    if epoch > schedule.steps:
        raise UserError(
            f"one epoch of warm-up, the paper's, is {epoch} steps of {global_batch} images, and "
            f"the whole run is {schedule.steps} steps",
            expected="a warm-up shorter than the run",
            mend=f"Set schedule.warmup, for example to {max(1, schedule.steps // 20)}",
        )
    return epoch
