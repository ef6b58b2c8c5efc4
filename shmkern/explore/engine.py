# SPDX-License-Identifier: GPL-2.0-only
"""runtime.c, seen from Python: the constants and structs of its interface, and one object.

May import: flavour (installed by __main__).
"""
import ctypes
import enum
import sys
from typing import NamedTuple

import numpy as np

from shmkern import layout

PERCPU = layout.constants["PERCPU_BASE"]
MAX_TASKS, MAX_SEGMENTS = 4, 8192
FAULT_DEPTH = 12
RUN_ON = 0xffffffff
PREEMPTIONS_MAX = 62       # a state keeps with how many it was seen, in six bits
DEPTH_MAX = 16             # of bugs that pct looks for
EXHAUSTIVE, RANDOM, PCT, FOLLOW, ALL = 0, 1, 2, 3, 4
IS_WRITE, IS_ATOMIC, IS_ADD, IS_WAIT, IS_WAKE, IS_SLEEP, IS_RANGE = 1, 2, 4, 8, 16, 32, 64
WORD_POINT, WORD_SPLIT, WORD_COUNTER, WORD_IGNORED, WORD_NEW_POINT = 1, 2, 4, 8, 16

TRACED = np.dtype([("address", "u8"), ("pc", "u8"), ("before", "u8"), ("after", "u8"), ("size", "u4"),
                   ("step", "u4"), ("task", "u1"), ("how", "u1"), ("pad0", "u2"), ("pad1", "u4")])
MAX_TRACED = 1 << 18
HELD = np.dtype([("lock", "u8"), ("key", "u8"), ("site", "u8", 6), ("step", "u8")])
EDGE = np.dtype([("held", HELD), ("taken", HELD), ("task", "u8"), ("nr_done", "u8")])

# Files of the host: behind the block, each with its length in its first page.
HOST_FD, HOST_FILES, HOST_FILE_SIZE = 1 << 20, 2, 16 << 12


class Outcome(enum.IntEnum):
    """What rt_run returns."""
    HELD = 0
    RACE = 1
    BUG = 2
    OOPS = 3
    DEADLOCK = 4
    LOST_WAKEUP = 5
    LIVELOCK = 6
    DIVERGED = 7
    BROKEN = 8


class Held(NamedTuple):
    """A lock: its address, with HELD_* in the low bits, and where it was taken, as return addresses,
    innermost first."""
    lock: int
    site: tuple


class LockEdge(NamedTuple):
    """A lock that was taken while another was held, as first seen: `task` took them by its accesses of
    these numbers (0: before the run), when `done` segments of the schedule were over."""
    held: Held
    taken: Held
    task: int
    held_step: int
    taken_step: int
    done: int


class Segment(NamedTuple):
    """A task runs until it is about to do its until-th access; RUN_ON: until it cannot go on."""
    task: int
    until: int


class _Segment(ctypes.Structure):
    _fields_ = [("task", ctypes.c_uint32), ("until", ctypes.c_uint32)]


class Race(ctypes.Structure):
    """Two accesses that nothing orders."""
    _fields_ = [("address", ctypes.c_uint64), ("pc", ctypes.c_uint64 * 2), ("task", ctypes.c_uint32 * 2),
                ("how", ctypes.c_uint32 * 2)]


class Statistics(NamedTuple):
    """Numbers of the last run, or of all since the process began."""
    cut: int            # runs that met a state seen before, and branched no further
    new_points: int     # words that turned out to be points since the last rt_round
    steps: int
    points: int
    preemptions: int
    edges: int
    failed_task: int
    fault_address: int
    quiet_states: int   # that were audited at quiet points


class Engine:
    """The functions of the runtime.  One in a process."""

    def __init__(self):
        lib = sys.modules["shmkern.explore.flavour"].runtime
        u32, u64 = ctypes.c_uint32, ctypes.c_uint64
        segments = ctypes.POINTER(_Segment)
        for name, result, arguments in (
                ("open", ctypes.c_int, [u64] * 4), ("flag_words", None, [u64, u64, ctypes.c_uint8]),
                ("words", ctypes.c_void_p, []), ("snapshot", None, [u64]), ("restore", None, []),
                ("state_hash", u64, []), ("task", None, [u32, u64, u64, u32, *[u64] * 4]),
                ("locks", None, [ctypes.POINTER(u64), ctypes.POINTER(u64), u64, u64]),
                ("strategy", None, [u32, u32, u32, u64, u32, u32]), ("plan", None, [segments, u32]),
                ("next", u32, []), ("drop_work", None, []), ("unit", None, [u64]), ("round", u32, []),
                ("done", segments, [ctypes.POINTER(u32)]), ("planned", segments, [ctypes.POINTER(u32)]),
                ("race", ctypes.POINTER(Race), []), ("edges", ctypes.c_void_p, []), ("forget_edges", None, []),
                ("fault_site", ctypes.POINTER(u64 * FAULT_DEPTH), []),
                ("show", None, [u32, u32]),
                ("on_quiet", None, [ctypes.c_void_p]), ("on_exit", None, [ctypes.c_void_p]),
                ("by_hand", None, []),
                ("statistics", None, [ctypes.POINTER(u64)]), ("trace", None, [ctypes.c_void_p, u64]),
                ("traced", u64, []), ("run", ctypes.c_int, [ctypes.POINTER(ctypes.py_object)])):
            function = getattr(lib, "rt_" + name)
            function.restype, function.argtypes = result, arguments
            setattr(self, "_" + name, function)
        # FOLLOW does what the plan says and then what comes first.
        self.open, self.flag_words, self.snapshot, self.restore = \
            self._open, self._flag_words, self._snapshot, self._restore
        self.state_hash, self.task = self._state_hash, self._task
        self.strategy, self.next, self.drop_work = self._strategy, self._next, self._drop_work
        self.unit, self.round, self.by_hand = self._unit, self._round, self._by_hand
        self.forget_edges, self.show = self._forget_edges, self._show
        self._count = u32()
        self._numbers = (u64 * len(Statistics._fields))()
        self._greenlets = (ctypes.py_object * MAX_TASKS)()

    def become(self, task, pid):
        """Makes a task the current one, outside runs."""
        ctypes.c_uint64.from_address(PERCPU).value = task
        ctypes.c_uint64.from_address(PERCPU + 8).value = pid

    def run(self, greenlets):
        """One run of the plan, as an Outcome's number."""
        self._greenlets[:len(greenlets)] = greenlets
        return self._run(self._greenlets)

    def on_quiet(self, function):
        """function() is called when nobody is inside the kernel and the memory is in a state that it was
        not called for yet; true when something is wrong, which ends the run as BROKEN.  It may not switch
        greenlets."""
        self._quiet = ctypes.PYFUNCTYPE(ctypes.c_int)(function)
        self._on_quiet(ctypes.cast(self._quiet, ctypes.c_void_p))

    def on_exit(self, function):
        """function() is called when the machine panics outside a run, which ends this process."""
        self._exit = ctypes.PYFUNCTYPE(None)(function)
        self._on_exit(ctypes.cast(self._exit, ctypes.c_void_p))

    def plan(self, segments):
        """What the next run does before its strategy decides."""
        self._plan((_Segment * len(segments))(*segments), len(segments))

    def _segments(self, function):
        found = function(ctypes.byref(self._count))
        return [Segment(found[i].task, found[i].until) for i in range(self._count.value)]

    def done(self):
        """What the last run did, as a plan that does it again."""
        return self._segments(self._done)

    def planned(self):
        """The plan of the next run."""
        return self._segments(self._planned)

    def race(self):
        """The data race that the last run met first."""
        return self._race().contents

    def fault_site(self):
        """Where a bad pointer was followed in the last run: addresses of code, innermost first."""
        return [pc for pc in self._fault_site().contents if pc]

    def statistics(self):
        """Numbers; see Statistics."""
        self._statistics(self._numbers)
        return Statistics(*self._numbers)

    def lock_edges(self, first=0):
        """The LockEdges since forget_edges(), from number `first` on."""
        count = self.statistics().edges - first
        if count <= 0:
            return []
        edges = np.ctypeslib.as_array((ctypes.c_uint8 * (EDGE.itemsize * count)).from_address(
            self._edges() + EDGE.itemsize * first)).view(EDGE)
        return [LockEdge(*(Held(lock, tuple(site)) for lock, _key, site, _step in (held, taken)), task, held[3], taken[3], done)
                for held, taken, task, done in edges.tolist()]

    def locks(self, code, buffer_code, buffer_lock, page_wait):
        """Tells what the runtime has to know of locks; the code as (begin, end)."""
        pair = ctypes.c_uint64 * 2
        self._locks(pair(*code), pair(*buffer_code), buffer_lock, page_wait)

    def words(self, size):
        """The flags of every word of the block, live."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * (size // 8)).from_address(self._words()))

    def trace(self, on):
        """Traces the runs that follow, or no more."""
        self._entries = np.zeros(MAX_TRACED, TRACED) if on else None
        self._trace(self._entries.ctypes.data if on else None, MAX_TRACED if on else 0)

    def traced(self):
        """What the last run did, access by access."""
        return self._entries[:self._traced()].copy()
