# SPDX-License-Identifier: GPL-2.0-only
"""Tracing a machine from outside: switching tracepoints on, reading the rings, and the events
as ftrace prints them.

    with tracing.Tracing(["migrate:*"]) as trace:
        ...
        events, lost = trace.read()         # an EVENT array, oldest first

Works on the block that this process has mapped for writing, as a machine's supervisor or
attached to it.  A machine is traced by one process at a time; if that is killed, the next
one takes over.  trace.pxd has the tracepoints, trace.py what they write.
"""
import contextlib
import fnmatch
import os
import select
import time
from typing import NamedTuple

import numpy as np

from shmkern import direct_map, layout, report, vmstat
from shmkern.errors import BootError
from shmkern.trace import end_breaks, go_on, read_ring, rings_are_ready     # noqa: F401 (go_on: for who sets breaks)
from shmkern.worker import slot

C = layout.constants
RING_EVENTS_MIN = 1024
# What all rings together take unless somebody asks for more.
RINGS_BYTES = 128 << 20
ARGS = 6
WAIT_NAMES = {C[name]: name.removeprefix("WAIT_").lower() for name in C if name.startswith("WAIT_")
              and name not in ("WAIT_TABLE_BITS", "WAIT_TABLE_SIZE", "WAIT_SLICE_NS", "WAIT_NONE")}
STAGES = {C[name]: name.removeprefix("MIGRATE_STAGE_").lower() for name in C if name.startswith("MIGRATE_STAGE_")}
PAGE_FLAGS = {C[name]: name.removeprefix("PG_") for name in C if name.startswith("PG_")}
CONTENTION_FLAGS = {C["LCB_F_SPIN"]: "SPIN", C["LCB_F_READ"]: "READ", C["LCB_F_WRITE"]: "WRITE"}

# One event as read() gives it.  `event` is a number of trace.pxd, or LOST: events of this
# CPU are missing here, args[0] of them.
EVENT = np.dtype([("time", "u8"), ("event", "u4"), ("pid", "i4"), ("cpu", "u4"), ("args", "u8", (ARGS,))])
LOST = C["NR_TRACE_EVENTS"]

# In the environment: the path of a pipe that a tracer has open for writing until it traces a machine of
# this process or one that this has started.
WAITING_TRACER = "SHMKERN_WAITING_TRACER"


class TracingError(BootError):
    """A machine cannot be traced, or not like that; the text is one sentence."""


def signed(word):
    """A word of the kernel's as the int that was put there."""
    return int(word) - (1 << 64) if int(word) >> 63 else int(word)


def comm(words):
    """The name that task_newtask and sched_process_exit hold in four words."""
    return words.tobytes().split(b"\0")[0].decode(errors="replace")


def _task_text(args):
    return f"pid={args[0]} comm={comm(args[1:5])}"


def _page_ref_text(args):
    flags = "|".join(name for bit, name in PAGE_FLAGS.items() if int(args[1]) >> bit & 1)
    return f"pfn={args[0]:#x} flags={flags} count={signed(args[2])} mapcount={signed(args[3])} val={signed(args[4])}"


def _stage_text(args):
    stage, pfn, new, rc = STAGES[int(args[0])], args[1], signed(args[2]), signed(args[3])
    return f"pfn={pfn:#x} stage={stage}" + (f" new_pfn={new:#x}" if new >= 0 else "") + (f" rc={rc}" if rc else "")


def _lru_text(args):
    mapped = "M" if signed(args[3]) >= 0 else " "
    swapbacked = "b" if int(args[2]) >> C["PG_swapbacked"] & 1 else " "
    anon = "a" if swapbacked == "b" else "f"
    return f"pfn={args[0]:#x} lru={args[1]} flags={mapped}{anon} {swapbacked}  "


class Event(NamedTuple):
    """A tracepoint: Linux's subsystem and name, and its arguments as text."""
    system: str
    name: str
    text: object


EVENTS = {C[f"TRACE_{event.name.upper()}"]: event for event in (
    Event("exceptions", "page_fault_user", lambda a: f"address={a[0]:#x} error_code={a[1]:#x}"),
    Event("exceptions", "page_fault_user_exit", lambda a: f"address={a[0]:#x} ret={signed(a[1])}"),
    Event("lock", "contention_begin", lambda a: f"{a[0]:#x} (flags={CONTENTION_FLAGS[int(a[1])]})"),
    Event("lock", "contention_end", lambda a: f"{a[0]:#x} (ret={signed(a[1])})"),
    Event("sched", "wait_begin", lambda a: f"channel={a[0]:#x} for={WAIT_NAMES.get(int(a[1]), a[1])}"),
    Event("sched", "wait_end", lambda a: f"channel={a[0]:#x} for={WAIT_NAMES.get(int(a[1]), a[1])}"),
    Event("sched", "sched_waking", lambda a: f"channel={a[0]:#x}"),
    Event("task", "task_newtask", _task_text),
    Event("sched", "sched_process_exit", _task_text),
    Event("migrate", "mm_migrate_pages_start", lambda a: "mode=MIGRATE_SYNC"),
    Event("migrate", "mm_migrate_pages",
          lambda a: f"nr_succeeded={a[0]} nr_failed={max(0, signed(a[1]))} ret={signed(a[1])} mode=MIGRATE_SYNC"),
    Event("migrate", "migrate_stage", _stage_text),
    Event("migrate", "set_migration_pte", lambda a: f"addr={a[0]:x}, pte={a[1]:x} order=0"),
    Event("migrate", "remove_migration_pte", lambda a: f"addr={a[0]:x}, pte={a[1]:x} order=0"),
    Event("tlb", "tlb_flush", lambda a: f"pages:{a[1]} reason:remote ipi send ({a[0]})"),
    Event("page_ref", "page_ref_freeze", lambda a: f"{_page_ref_text(a)} ret={a[5]}"),
    Event("page_ref", "page_ref_unfreeze", _page_ref_text),
    Event("kmem", "mm_page_alloc", lambda a: f"pfn={signed(a[0]):#x} order={a[1]} gfp_flags={a[2]:#x}"),
    Event("kmem", "mm_page_free", lambda a: f"pfn={a[0]:#x} order={a[1]}"),
    Event("pagemap", "mm_lru_insertion", _lru_text),
)}


def event_mask(patterns):
    """The mask for Kernel.trace_events of all events that match one of these shell patterns, by
    "name" or "system:name".  Raises TracingError for one that matches none."""
    mask = 0
    for pattern in patterns:
        found = [number for number, event in EVENTS.items()
                 if fnmatch.fnmatchcase(event.name, pattern) or
                 fnmatch.fnmatchcase(f"{event.system}:{event.name}", pattern)]
        if not found:
            raise TracingError(f"there is no event {pattern!r}")
        mask |= sum(1 << number for number in found)
    return mask


# ---- reading ----------------------------------------------------------------------

class Reader:
    """Takes events off the rings as they come.  Only looks; the writers do not notice.

    `lost` counts those that were overwritten before they were read.
    """

    def __init__(self):
        self._heads = vmstat.tasks()["trace_head"]
        self._next = self._heads.copy()
        self._raw = np.empty(layout.kernel().trace_ring_events, layout.dtypes["TraceEvent"])
        self.lost = 0

    def read(self):
        """What was written since the last call: an EVENT array, in the order of time."""
        parts = [self._read_ring(int(cpu)) for cpu in np.flatnonzero(self._heads != self._next)]
        if not parts:
            return np.empty(0, EVENT)
        events = np.concatenate(parts)
        return events[np.argsort(events["time"], kind="stable")]

    def _read_ring(self, cpu):
        """The new events of one CPU; where some are lost, a LOST in front says how many."""
        begin, first, end = read_ring(cpu, int(self._next[cpu]), self._raw.ctypes.data)
        lost = first - int(self._next[cpu])
        self._next[cpu] = end
        self.lost += lost
        raw = self._raw[first - begin:end - begin]
        events = np.empty(len(raw) + (lost > 0), EVENT)
        kept = events[1:] if lost else events
        kept["time"], kept["args"], kept["cpu"] = raw["time"], raw["args"], cpu
        kept["event"], kept["pid"] = raw["what"] & np.uint64(0xffffffff), raw["what"] >> np.uint64(32)
        if lost:
            events[0] = (raw["time"][0] if len(raw) else time.monotonic_ns(), LOST, 0, cpu, [lost] + [0] * (ARGS - 1))
        return events


def _rings(size):
    """Offset and length in the block of rings with `size` events each."""
    kernel = layout.kernel()
    return kernel.trace_rings - direct_map.BASE, kernel.max_tasks * size * layout.sizeof("TraceEvent")


def check_ring_events(size):
    """Raises TracingError when a ring cannot have so many events."""
    if not RING_EVENTS_MIN <= size <= C["TRACE_RING_EVENTS_MAX"] or size & (size - 1):
        raise TracingError(f"a ring of {size} events; it must be a power of two from {RING_EVENTS_MIN} to "
                           f"{C['TRACE_RING_EVENTS_MAX']}")


def default_ring_events():
    """Events a ring, so that all rings take RINGS_BYTES or less, if that can be."""
    most = RINGS_BYTES // (layout.kernel().max_tasks * layout.sizeof("TraceEvent"))
    return min(max(1 << most.bit_length() - 1, RING_EVENTS_MIN), C["TRACE_RING_EVENTS_MAX"])


def _tracer_gone():
    """Whether somebody began to trace and was killed."""
    kernel = layout.kernel()
    return kernel.trace_owner != 0 and direct_map.process_gone(kernel.trace_owner, kernel.trace_owner_start)


def end_tracing():
    """Ends tracing and gives the rings' memory back.  Who stands at a tracepoint goes on."""
    kernel = layout.kernel()
    kernel.trace_events = 0
    end_breaks()
    # Who is still writing an event gets a new page for it.
    direct_map.give_back(direct_map.mapped, *_rings(kernel.trace_ring_events))
    kernel.trace_owner = 0


def end_what_is_left():
    """Ends what a tracer that was killed began, unless another is about to: that one does."""
    if _tracer_gone():
        with contextlib.suppress(BlockingIOError), direct_map.locked(direct_map.mapped, wait=False):
            # Now nobody can take it over between the look and the end.
            if _tracer_gone():
                end_tracing()


def await_tracer(seconds=10):
    """Waits for the tracer that has started this process, if one has, until it traces a machine or has ended;
    not for ever, for it may look for the machine elsewhere."""
    with contextlib.suppress(OSError):
        gate = os.open(os.environ.get(WAITING_TRACER, ""), os.O_RDONLY | os.O_NONBLOCK)
        try:
            os.read(gate, 1)        # Nothing, if nobody has it open for writing any more.
        except BlockingIOError:
            poll = select.poll()
            poll.register(gate, 0)
            poll.poll(seconds * 1000)
        finally:
            os.close(gate)


class Tracing:
    """Tracing, from `with` to its end.  `events` are patterns (see event_mask; all by default),
    `ring_events` how many events of each CPU are kept until they are read (by default as many as
    fit into RINGS_BYTES).

    The rings get memory the first time a machine is traced and keep that size; the memory is
    given back when tracing ends.  Raises TracingError, and BootError when the host has none.
    """

    def __init__(self, events=("*",), ring_events=None):
        self._mask = event_mask(events)
        self._kernel, self._block = layout.kernel(), direct_map.mapped
        self._wanted = ring_events

    def __enter__(self):
        # Of two that begin at once the second one waits, and then sees the first.
        with direct_map.locked(self._block):
            self._begin()
        return self

    def _begin(self):
        kernel = self._kernel
        if kernel.trace_owner:
            if not _tracer_gone():
                raise TracingError(f"the machine is being traced by process {kernel.trace_owner}")
            end_tracing()
        size = kernel.trace_ring_events
        if size and self._wanted not in (None, size):
            raise TracingError(f"the machine was traced before and its rings have {size} events each")
        size = size or self._wanted or default_ring_events()
        check_ring_events(size)
        direct_map.reserve(self._block, *_rings(size))
        # Before there is an owner: who ends this if we are killed gives the rings' memory back.
        kernel.trace_ring_events = size
        kernel.trace_owner_start = direct_map.process_start(os.getpid())
        try:
            kernel.trace_owner = os.getpid()
            self._reader = Reader()
            rings_are_ready()
            kernel.trace_events = self._mask
            # After that: who comes later says so.
            self.names = {int(task["pid"]): task["comm"].decode(errors="replace") for task in report.running()}
        except BaseException:
            # Ctrl-C, after which this process goes on, perhaps: nobody would take it for gone.
            end_tracing()
            raise

    def read(self):
        """What was written since the last call, as Reader.read(); `names` learns from it."""
        events = self._reader.read()
        for event in events[events["event"] == C["TRACE_TASK_NEWTASK"]]:
            self.names[int(event["args"][0])] = comm(event["args"][1:5])
        return events

    @property
    def lost(self):
        """How many events have been overwritten before they were read."""
        return self._reader.lost

    def stop(self):
        """Switches tracing off; what was written can still be read."""
        self._kernel.trace_events = 0

    def __exit__(self, *_exception):
        # A machine that was closed meanwhile has taken all of it along.
        if direct_map.mapped is self._block:
            end_tracing()


# ---- stopping at tracepoints ------------------------------------------------------

def set_breaks(cpu, patterns):
    """The task on `cpu` stops after each event that matches a pattern, if it is traced; with
    none it does not stop any more (but has to be told to go on, if it stands)."""
    slot(cpu).trace_breaks = event_mask(patterns) if patterns else 0


def is_stopped(cpu):
    """Whether the task on `cpu` stands at a tracepoint."""
    return slot(cpu).trace_stopped != 0


# ---- as text ----------------------------------------------------------------------

HEADER = """\
# tracer: nop
#
#           TASK-PID     CPU#  |||||  TIMESTAMP  FUNCTION
#              | |         |   |||||     |         |"""


def text(event, names):
    """One event as ftrace prints it; the name of its task comes from `names`."""
    number, pid = int(event["event"]), int(event["pid"])
    if number == LOST:
        return f"CPU:{event['cpu']} [LOST {event['args'][0]} EVENTS]"
    micros = int(event["time"]) // 1000
    what = EVENTS[number]
    return f"{names.get(pid, '<...>'):>16.16}-{pid:<7} [{event['cpu']:03}] ..... " \
           f"{micros // 1000000:5}.{micros % 1000000:06}: {what.name}: {what.text(event['args'])}"
