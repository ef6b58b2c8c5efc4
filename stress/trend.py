# SPDX-License-Identifier: GPL-2.0-only
"""A leak, told from noise.

Two points say nothing: a process grows while it warms up, and its memory goes up and down
after that.  So the first third of what was sampled is left out, the rest is cut into bins of
which the medians count (samples a second apart are not independent), and the trend is that
of Theil and Sen: the median of the slopes between all pairs, which a third of wild values
does not move, with the confidence interval that Kendall's rank statistic gives it.

It is growth when even the lower end of the interval, over the whole steady part, amounts to
more than a floor below which nobody cares, and when the second half of the steady part still
grows: what fills up and then stays is no leak.
"""
from typing import NamedTuple

import numpy as np

WARM_UP = 1 / 3
BINS = 40
# Fewer medians than this decide nothing.
BINS_MIN = 8
# Of a thousand processes that leak nothing one is still suspected; the floor and the second
# half acquit it.
CONFIDENCE = 0.999
# The second half must grow at least so much as fast as the whole.
LASTING = 0.3


class Trend(NamedTuple):
    """The steady part of a series, from `start` to `end` in seconds: the line through it, which
    begins at `level`, and the lower and upper end of its slope, per second."""
    start: float
    end: float
    level: float
    slope: float
    low: float
    high: float
    lasting: bool

    @property
    def growth(self):
        """What it has grown at least, over the steady part."""
        return self.low * (self.end - self.start)

    def grows(self, floor):
        """Whether this is growth, and more than `floor`."""
        return self.lasting and self.low > 0 and self.growth > floor


def medians(times, values):
    """The series in at most BINS bins of equal numbers of samples: their median times and values."""
    count = min(BINS, len(times))
    parts = np.array_split(np.arange(len(times)), count)
    return (np.array([np.median(times[part]) for part in parts]),
            np.array([np.median(values[part]) for part in parts]))


def steady(times, values):
    """The series without the time in which it warms up."""
    first = times[0] + (times[-1] - times[0]) * WARM_UP
    return times[times >= first], values[times >= first]


def fit(times, values):
    """The Trend of a series, or None when it is too short to tell."""
    # Not above: who makes machines forks tasks, and with scipy in it each fork takes twice as long.
    from scipy.stats import theilslopes

    times, values = np.asarray(times, float), np.asarray(values, float)
    if len(times) < BINS_MIN:
        return None
    times, values = medians(*steady(times, values))
    if len(times) < BINS_MIN or times[-1] <= times[0]:
        return None
    slope, intercept, low, high = theilslopes(values, times, CONFIDENCE)
    half = len(times) // 2
    late = theilslopes(values[half:], times[half:])[0]
    return Trend(float(times[0]), float(times[-1]), float(intercept + slope * times[0]), float(slope), float(low),
                 float(high), bool(late > 0 and late >= LASTING * slope))
