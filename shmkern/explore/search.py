# SPDX-License-Identifier: GPL-2.0-only
"""Explores one scenario.

An exhaustive exploration goes in rounds.  A round tries, at every point (runtime.c) that is
known when it begins, every other task, up to the bound of preemptions; what turns out to be a
point on the way is one from the next round on.  A round that finds no new point has covered
everything.  A few random schedules before the first round find most points at once.

A round is cut into units: the first run of the round leaves schedules to be tried, and these
are dealt out in UNITS shares, each of which is explored with all that follows from it, with a
cache of its own.  Whatever the number of jobs, a unit does the same, so the result is the same.

What was considered: frontrun 0.7.0's DPOR engine is fed by Python with one call an access, and
cannot bound preemptions without losing schedules; sleep and source sets prune a schedule because
a sibling covers it, which with a bound on preemptions need not be so (Coons, Musuvathi and
McKinley 2013); caching what was seen, with the preemptions it took, stays exact under a bound.

May import: room, lock_order, engine.
"""
import hashlib
import json
import mmap
import os
import signal
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path

import numpy as np

from shmkern.errors import UsageError
from shmkern.explore import engine as engine_module
from shmkern.explore.engine import RUN_ON, Segment
from shmkern.explore.lock_order import Edge, LockOrder, Sight, Site, way_to, wrong_text

UNITS = 16
FIRST_RUN = -1              # the number of the unit that is a round's first run; and of the random ones
SEED_RUNS = 64
KERNEL = Path(__file__).resolve().parent.parent


@dataclass
class Options:
    """How to explore.  `strategy` is dpor, all, pct or random; `preemptions` (up to
    engine.PREEMPTIONS_MAX) and `steps` (None: no bound) bound dpor; `runs` is the number of schedules
    of the others, `depth` the bug depth of pct; `seconds` ends any of them (None: no end)."""
    strategy: str = "dpor"
    preemptions: int = 2
    steps: int | None = None
    runs: int = 10000
    depth: int = 3
    seed: int = 1
    seconds: float | None = None

    @property
    def exhaustive(self):
        """Whether it goes in rounds."""
        return self.strategy in ("dpor", "all")


@dataclass
class Unit:
    """What became of one unit."""
    runs: int = 0
    cut: int = 0
    states: set = field(default_factory=set)
    most_points: int = 0
    complete: bool = True
    new_points: list = field(default_factory=list)
    failure: dict | None = None     # kind, text, segments
    edges: dict = field(default_factory=dict)     # Sights, as in LockOrder.seen


@dataclass
class Result:
    """What became of an exploration.  `exhausted` means that every schedule up to the bound was
    run, or is equivalent to one that was."""
    scenario: str
    options: Options
    tasks: int = 0
    exhausted: bool = False
    interrupted: bool = False
    rounds: int = 0
    points: int = 0
    runs: int = 0
    cut: int = 0
    states: int = 0
    most_points: int = 0
    seconds: float = 0.0
    failure: dict | None = None


class Interrupted(Exception):
    """Ctrl-C came."""


def source_hash(build):
    """A name for the source of the kernel, the explorer and a scenario as they are now."""
    digest = hashlib.blake2b(digest_size=8)
    files = [path for folder in (KERNEL, KERNEL / "explore") for pattern in ("*.py", "*.pxd", "*.h", "*.c")
             for path in sorted(folder.glob(pattern))]
    for path in (*files, Path(build.__code__.co_filename)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Search:
    """One exploration of the scenario in `room`, which is called `name`.

    `progress(result, units done, of)` is called now and then; with None, None when Ctrl-C has come.
    """

    def __init__(self, room, name, options, jobs=1, progress=lambda result, done, of: None):
        self.room, self.engine, self.options, self.jobs, self.progress = room, room.engine, options, jobs, progress
        self.result = Result(name, options, len(room.programs))
        self.deadline = None
        self.states = set()     # that schedules ended in, as numbers
        self.done = {}          # units of this round that are complete, by number
        self.lock_order = LockOrder(self.engine)
        # Shared with the jobs, which are forked: 1 when Ctrl-C has come.
        self._stop = mmap.mmap(-1, 1)

    # ---- from outside ----

    def run(self, saved=False):
        """Explores, from the beginning or, after restore(), on.  Returns a Result."""
        began = time.monotonic()
        if self.options.seconds is not None:
            self.deadline = began + self.options.seconds
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            if not saved:
                self._find_first_points()
            if self.result.failure is None:
                if self.options.exhaustive:
                    self._rounds()
                else:
                    self.result.points, self.result.rounds = self.engine.round(), 1
                    self._round(self._sampling_units())
        except Interrupted:
            self.result.interrupted = True
        finally:
            signal.signal(signal.SIGINT, before)
        # Last, for a schedule that fails says more than an order that might.
        wrong = self.lock_order.wrong() if self.result.failure is None else None
        if wrong:
            self.result.failure = {"kind": "lock order", "text": wrong_text(list(wrong)),
                                   "orders": [(edge, sight.segments) for edge, sight in wrong.items()]}
        self.result.seconds = time.monotonic() - began
        return self.result

    def _interrupt(self, _signal, _frame):
        if self.stopped:    # It does not end, and so is not to be kept.
            for job in active_children():
                job.kill()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        self._stop[0] = 1
        self.progress(self.result, None, None)

    @property
    def stopped(self):
        """Whether Ctrl-C has come."""
        return bool(self._stop[0])

    # ---- keeping and taking up again ----

    def save(self):
        """What is known so far, for restore(), as plain data.  The round that is under way will be
        begun again, with the units that are done."""
        return {"scenario": self.result.scenario, "source": source_hash(self.room.build), "options": asdict(self.options),
                "points": self._points(), "result": {"rounds": self.result.rounds - 1, "runs": self.result.runs,
                                                     "cut": self.result.cut, "most_points": self.result.most_points},
                "states": sorted(self.states), "edges": list(self.lock_order.edges().items()),
                "units": {str(number): asdict(unit) | {"states": sorted(unit.states), "edges": {}}
                          for number, unit in self.done.items()}}

    def restore(self, saved):
        """Goes on from what save() gave.  ValueError when that was another exploration."""
        if (saved["scenario"], saved["source"], saved["options"]) != \
                (self.result.scenario, source_hash(self.room.build), asdict(self.options)):
            raise ValueError("another scenario, source or choice of options")
        self._mark(saved["points"])
        for name, value in saved["result"].items():
            setattr(self.result, name, value)
        self.states = set(saved["states"])
        self.lock_order.add({Edge(held, taken, Site(*held_at), Site(*taken_at), same):
                             Sight(preemptions, tuple(when), [Segment(*segment) for segment in segments])
                             for (held, taken, held_at, taken_at, same), (preemptions, when, segments) in saved["edges"]})
        self.done = {int(number): Unit(**unit) for number, unit in saved["units"].items()}

    def _points(self):
        """The words that are points now, by number."""
        words = self.engine.words(self.room.size)
        return np.flatnonzero(words & engine_module.WORD_POINT).tolist()

    def _mark(self, points):
        """Makes words points from the next round on."""
        words = self.engine.words(self.room.size)
        for word in points:
            if not words[word] & engine_module.WORD_POINT:
                words[word] |= engine_module.WORD_NEW_POINT

    def _new_points(self):
        words = self.engine.words(self.room.size)
        return np.flatnonzero(words & engine_module.WORD_NEW_POINT).tolist()

    # ---- rounds and units ----

    def _set_strategy(self, strategy, seed=1, points=0):
        options = self.options
        steps = RUN_ON if options.steps is None else options.steps
        self.engine.strategy(strategy, options.preemptions, steps, seed, options.depth, points)

    def _set_exhaustive(self):
        self._set_strategy(engine_module.ALL if self.options.strategy == "all" else engine_module.EXHAUSTIVE)

    def _find_first_points(self):
        """A few random schedules, so that the first round knows most points."""
        unit = Unit()
        self.lock_order.forget()
        for seed in range(SEED_RUNS):
            self._set_strategy(engine_module.RANDOM, seed + 1)
            self.engine.plan([])
            if self._one_run(unit, FIRST_RUN):
                break
            if seed % 8 == 7:
                self.engine.round()
        self.lock_order.add(unit.edges)
        self._account([unit])

    def _rounds(self):
        """Rounds until one finds no new point, or something fails."""
        while True:
            self.result.points = self.engine.round()
            self.result.rounds += 1
            shares = self._shares()
            new = self._round(shares)
            if self.result.failure is not None or not self.complete:
                return
            self.done = {}
            if not new:
                self.result.exhausted = True
                return
            self._mark(new)

    def _shares(self):
        """The schedules that the first run of a round leaves to be tried, in UNITS shares."""
        unit = Unit()
        self._set_exhaustive()
        self.engine.unit(0)
        self.lock_order.forget()
        self.engine.plan([])
        self._one_run(unit, FIRST_RUN)
        self.lock_order.add(unit.edges)
        left = []
        while self.engine.next():
            left.append(self.engine.planned())
        # Neighbours in one share: they have most in common.
        left.sort()
        self.done.setdefault(FIRST_RUN, unit)
        size = -(-len(left) // UNITS) or 1
        return [left[start:start + size] for start in range(0, len(left), size)]

    def _sampling_units(self):
        """The numbers of the runs of a sampling strategy, in shares."""
        size = -(-self.options.runs // UNITS)
        return [range(start, min(start + size, self.options.runs)) for start in range(0, self.options.runs, size)]

    def _round(self, shares):
        """Does all units that are not done.  Returns the new points."""
        global _searching
        _searching = self, shares
        failed = any(unit.failure for unit in self.done.values())
        wanted = [number for number in range(len(shares)) if number not in self.done and not failed]
        self.complete = True
        for number, unit in self._do_units(wanted):
            if unit.complete or unit.failure:
                self.done[number] = unit
            self.complete &= unit.complete
            self.lock_order.add(unit.edges)
            self.progress(self.result, len(self.done.keys() - {FIRST_RUN}), len(shares))
        if self.stopped and not any(unit.failure for unit in self.done.values()):
            raise Interrupted
        if not self.done.keys() >= set(range(len(shares))):
            self.complete = False
        self._account([self.done[number] for number in sorted(self.done)])
        return sorted({word for unit in self.done.values() for word in unit.new_points} | set(self._new_points()))

    def _do_units(self, wanted):
        """(number, Unit) of each unit of this round; none behind one that failed."""
        if self.jobs == 1 or len(wanted) < 2:
            for number in wanted:
                unit = do_unit(number)
                yield number, unit
                if unit.failure or self.stopped:
                    return
            return
        try:
            # It makes all its processes at once, whether there is something for them to do or not.
            with ProcessPoolExecutor(min(self.jobs, len(wanted)), get_context("fork"), _start_job) as pool:
                waiting = [(number, pool.submit(do_unit, number)) for number in wanted]
                failed = False
                for number, future in waiting:
                    # What is done already when Ctrl-C comes is kept, what runs ends soon, the rest does not begin.
                    if (self.stopped or failed) and (future.cancel() or failed):
                        continue
                    unit = future.result()
                    failed = unit.failure is not None
                    yield number, unit
        except BrokenProcessPool:
            raise UsageError(f"a job of the exploration of {self.result.scenario} was killed") from None
        except OSError:
            # The host gives no more processes.  Those there are wait for work, and our exit would for them.
            for job in active_children():
                job.kill()
            raise

    def _account(self, units):
        """Adds units to the result; the first failure counts."""
        for unit in units:
            self.result.runs += unit.runs
            self.result.cut += unit.cut
            self.states |= unit.states
            self.result.most_points = max(self.result.most_points, unit.most_points)
            if unit.failure and self.result.failure is None:
                self.result.failure = unit.failure
        self.result.states = len(self.states)

    def _one_run(self, unit, number):
        """One run of a unit of that number, judged.  True when it failed, which is then in `unit`."""
        run = self.room.run()
        self.room.judge(run)
        unit.runs += 1
        unit.states.add(run.state)
        statistics = self.engine.statistics()
        unit.most_points = max(unit.most_points, statistics.points)
        for pair, edge in self.lock_order.look(statistics.edges):
            way = way_to(self.engine.done(), edge)
            unit.edges[pair] = Sight(preemptions(way), (self.result.rounds, number, unit.runs), way)
        if run.failed:
            unit.failure = {"kind": run.kind, "text": run.text, "segments": self.engine.done()}
        self.engine.restore()
        return run.failed

    def _time_is_up(self):
        return self.stopped or (self.deadline is not None and time.monotonic() > self.deadline)

    def do_unit(self, number, share):
        """Explores one unit."""
        unit = Unit()
        cut = self.engine.statistics().cut
        self.lock_order.forget()
        if self.options.exhaustive:
            self._exhaust(unit, number, share)
        else:
            self._sample(unit, number, share)
        self.engine.drop_work()
        unit.cut = self.engine.statistics().cut - cut
        unit.new_points = self._new_points()
        return unit

    def _exhaust(self, unit, number, share):
        self._set_exhaustive()
        self.engine.unit(number + 1)
        # Those with few preemptions first, as the engine does with what follows from them.
        for plan in sorted(share, key=preemptions):
            self.engine.plan(plan)
            while True:
                if self._one_run(unit, number):
                    return
                if unit.runs % 64 == 0 and self._time_is_up():
                    unit.complete = False
                    return
                if not self.engine.next():
                    break

    def _sample(self, unit, number, share):
        strategy = engine_module.PCT if self.options.strategy == "pct" else engine_module.RANDOM
        for run in share:
            # Of what this unit has seen, and not this process: jobs share the units out.
            points = max(self.result.most_points, unit.most_points)
            self._set_strategy(strategy, self.options.seed * 1_000_003 + run, points)
            self.engine.plan([])
            if self._one_run(unit, number):
                return
            if unit.runs % 64 == 0 and self._time_is_up():
                unit.complete = False
                return


# The search of this process and the shares of its round: jobs are forked, and have it with them.
_searching = None


def _start_job():
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def do_unit(number):
    """One unit of the round that this process, or the one it was forked from, is in."""
    search, shares = _searching
    return Unit(complete=False) if search.stopped else search.do_unit(number, shares[number])


def preemptions(segments):
    """How many switches of a schedule the task did not ask for."""
    return sum(segment.until != RUN_ON for segment in segments)


# ---- the file that an interrupted exploration leaves --------------------------------

def progress_file(name):
    """Where an interrupted exploration of a scenario is kept."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return state / "shmkern" / f"explore-{name}.json"


def save_progress(search):
    """Writes what an interrupted search knows; returns the file."""
    path = progress_file(search.result.scenario)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(search.save()))
    os.replace(draft, path)
    return path


def load_progress(name):
    """What save_progress() wrote."""
    saved = json.loads(progress_file(name).read_text())
    for unit in saved["units"].values():
        unit["states"] = set(unit["states"])
        if unit["failure"]:
            unit["failure"]["segments"] = [Segment(*segment) for segment in unit["failure"]["segments"]]
    return saved
