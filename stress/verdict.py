# SPDX-License-Identifier: GPL-2.0-only
"""What the samples of a turn, and those between the turns, say of growth: a trend (trend.py) for
each process's memory and descriptors and for each kind of kernel object.

Memory is what a process has for itself, resident less shared: the shared part is mostly the
block, of which a process comes to see all sooner or later.  What the machine has is judged as a
whole: objects in use of each slab cache, and frames that are not free.
"""
from typing import NamedTuple

import numpy as np

from shmkern_stress import trend
from shmkern_stress.sampler import SUPERVISOR

MIB = 1 << 20


class Quantity(NamedTuple):
    """What is judged: growth over the steady part counts from `floor` on, or from `share` of the
    level if that is more."""
    name: str
    verb: str
    unit: str
    floor: float
    share: float


MEMORY = Quantity("memory", "grows", "bytes", MIB // 4, 0.0)
DESCRIPTORS = Quantity("descriptors", "grow", "", 2.0, 0.0)
FRAMES = Quantity("frames in use", "grow", "", 64.0, 0.05)
OBJECTS = Quantity("objects in use", "grow", "", 32.0, 0.05)


class Judgement(NamedTuple):
    """A series and its trend, which is None when it is too short.  `who` is the process, the slab
    cache or the machine; `key` finds its samples again; `turn` is None between the turns."""
    turn: int | None
    quantity: Quantity
    who: str
    key: object
    trend: trend.Trend | None

    @property
    def grows(self):
        """Whether this is a leak."""
        return self.trend is not None and self.trend.grows(
            max(self.quantity.floor, self.quantity.share * abs(self.trend.level)))

    def __str__(self):
        t = self.trend
        during = "between turns" if self.turn is None else f"turn {self.turn}"
        return (f"growth: {self.who}: {self.quantity.name} {self.quantity.verb} by {amount(self.quantity, t.slope)} a second "
                f"({amount(self.quantity, t.low)} to {amount(self.quantity, t.high)}, {100 * trend.CONFIDENCE:g} % "
                f"confidence), by {amount(self.quantity, t.growth)} at least in the last {t.end - t.start:.0f} s "
                f"of {during}, from {amount(self.quantity, t.level)} on")


def amount(quantity, value):
    """A value with its unit, as a person reads it."""
    if quantity.unit == "bytes":
        return f"{value / 1024:,.1f} KiB" if abs(value) < 10 * MIB else f"{value / MIB:,.1f} MiB"
    return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"


def judge(samples, turn):
    """The Judgements of a turn."""
    found = []
    for (os_pid, who), rows in processes(samples, turn).items():
        for quantity, column in ((MEMORY, 1), (DESCRIPTORS, 2)):
            found.append(Judgement(turn, quantity, who, os_pid, trend.fit(rows[:, 0], rows[:, column])))
    rows = frames(samples, turn)
    found.append(Judgement(turn, FRAMES, "the machine", None, trend.fit(rows[:, 0], rows[:, 1])))
    for cache, rows in slabs(samples, turn).items():
        found.append(Judgement(turn, OBJECTS, f"slab cache {cache}", cache, trend.fit(rows[:, 0], rows[:, 1])))
    return found


def judge_between(samples):
    """The Judgements of the supervisor from turn to turn."""
    rows = np.array(samples.rows("SELECT t, rss - shared, fds FROM process JOIN sample ON sample = number "
                                 "WHERE phase = 'between' ORDER BY number"), float).reshape(-1, 3)
    return [Judgement(None, quantity, SUPERVISOR, None, trend.fit(rows[:, 0], rows[:, column]))
            for quantity, column in ((MEMORY, 1), (DESCRIPTORS, 2))]


# ---- series, as arrays whose first column is the time ----

def processes(samples, turn):
    """{(host pid, name): rows of t, memory, descriptors} while the turn ran."""
    found = {}
    for os_pid, pid, name, *row in samples.rows(
            "SELECT os_pid, pid, name, t, rss - shared, fds - host_files FROM process JOIN sample ON sample = number "
            "WHERE turn = ? AND phase = 'running' ORDER BY number", turn):
        who = name if name == SUPERVISOR else f"{name} (task {pid}, host pid {os_pid})"
        found.setdefault((os_pid, who), []).append(row)
    return {key: np.array(rows, float) for key, rows in found.items()}


def frames(samples, turn):
    """Rows of t, frames in use."""
    return np.array(samples.rows("SELECT t, sum(spanned - free) FROM node JOIN sample ON sample = number "
                                 "WHERE turn = ? AND phase = 'running' GROUP BY number ORDER BY number", turn),
                    float).reshape(-1, 2)


def slabs(samples, turn):
    """{cache: rows of t, objects in use}."""
    found = {}
    for cache, *row in samples.rows("SELECT cache, t, in_use FROM slab JOIN sample ON sample = number "
                                    "WHERE turn = ? AND phase = 'running' ORDER BY number", turn):
        found.setdefault(cache, []).append(row)
    return {cache: np.array(rows, float) for cache, rows in found.items()}
