"""What each step of a training trains, and at which learning rate."""

import math
from itertools import accumulate

from benchmarks.dice.networks import Entry

WARM_UP = 0.1  # share of the steps in which the learning rate rises
LATE_COST = 3.3  # seconds of a step with a pyramid's copies, over one without, by costs_hippocampus_cuda.json
ESTIMATOR_RATE = 5e-3  # where it is trained by itself, as the sizes of its images: by its error on validation images
ESTIMATOR_OCTAVES = 0.25


class Stages:
    """The steps of a training of this many steps: by default all of one kind.

    A canonicaliser can have others: its network alone at first, the copies of a :py:class:`LatePyramid` later, the
    estimator of sizes at some steps only or by itself at the end.
    """

    def __init__(self, steps: int, entry: Entry) -> None:
        self.last = min(entry.estimator_last, steps // 2)
        self.segmenting, self.alone = steps - self.last, int(entry.alone * steps)
        self.every = entry.estimator_every
        self.of_a_canonicaliser = self.every > 1 or self.last > 0

    def trains_estimator(self, step: int) -> bool:
        """Whether a step of segmentation trains the estimator too."""
        return not self.last and (step >= self.alone or step % self.every == 0)

    def kind(self, step: int) -> tuple[float, ...]:
        """Steps that do the same on other samples have the same."""
        return (step < self.alone, self.trains_estimator(step), step < self.segmenting)

    def rates(self, peak: float) -> list[float]:
        """Learning rate of each step."""
        places = times(self.segmenting, self.alone) if self.alone else range(self.segmenting)
        return [
            *(rate_at(place, self.segmenting, peak) for place in places),
            *(rate_at(i, self.last, ESTIMATOR_RATE) for i in range(self.last)),
        ]


def times(steps: int, alone: int) -> list[float]:
    """When each step begins, in mean steps, where those after ``alone`` last ``LATE_COST`` times as long."""
    costs = [1.0] * alone + [LATE_COST] * (steps - alone)
    return [steps * start / sum(costs) for start in accumulate(costs[:-1], initial=0.0)]


def rate_at(step: float, steps: int, peak: float) -> float:
    """Learning rate: a straight rise, then half a cosine."""
    rising = max(int(WARM_UP * steps), 1)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rising) / max(steps - rising, 1)))
