# SPDX-License-Identifier: GPL-2.0-only
"""What a run's processes share besides the machine: the board, in memory of its own, and
what a task of a scenario does with it.

The supervisor writes the two flags, each task its own row; failures go down a pipe, one
line each.  Nothing here is part of the machine that is under stress.
"""
import errno
import json
import mmap
import os
import time

import numpy as np
import numpy.random     # before there are tasks: when it is first used is in each of them

import shmkern
from shmkern import replay
from shmkern.errors import HostError

PAGE = 4096
MESSAGE_MAX = 3000      # a line of up to PIPE_BUF bytes is written in one piece
PARK_POLL = 0.002
# Accesses between two yields.
SLICE = 1024

# A row is a slot of the machine.  pid is 0 when no task of the scenario runs there.
# Who WAITS does so for other tasks of the scenario, and makes no progress meanwhile.
ABSENT, SETTING_UP, WORKING, WAITING, PARKED = range(5)
_ROW = np.dtype([("pid", "i4"), ("state", "u4"), ("passes", "u8"), ("forks", "u8"), ("refused", "u8")])


class Broken(Exception):
    """A promise was broken; `kind` is "lost write", "wrong sum" or what else, `page` the
    address of the page."""

    def __init__(self, kind, text, page=None):
        super().__init__(kind, text, page)
        self.kind, self.text, self.page = kind, text, page


class Board:
    """Flags, a row for each task, and the pipe for failures."""

    def __init__(self, max_tasks):
        self._memory = mmap.mmap(-1, PAGE + max_tasks * _ROW.itemsize)
        self._flags = np.frombuffer(self._memory, np.uint32, 3)
        self.rows = np.frombuffer(self._memory, _ROW, max_tasks, PAGE)
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        # A task with more to say than the pipe holds has said enough.
        os.set_blocking(self._write, False)
        self._rest = b""

    # ---- the supervisor's part ----

    def stop(self):
        """Asks all tasks to check what they have and to park."""
        self._flags[0] = 1

    def release(self):
        """Lets parked tasks end."""
        self._flags[1] = 1

    def messages(self):
        """The failures that have been told since the last call, as dicts."""
        try:
            while block := os.read(self._read, 1 << 16):
                self._rest += block
        except BlockingIOError:
            pass
        *lines, self._rest = self._rest.split(b"\n")
        return [json.loads(line) for line in lines]

    def count(self, *states):
        """How many tasks are in one of these states."""
        return int(np.isin(self.rows["state"], states).sum())

    def close(self):
        """Gives the pipe back."""
        os.close(self._read)
        os.close(self._write)

    # ---- a task's part ----

    @property
    def broken(self):
        """Whether somebody has failed."""
        return self._flags[2] != 0

    @broken.setter
    def broken(self, value):
        self._flags[2] = value

    @property
    def stopping(self):
        """Whether tasks are to check what they have and park."""
        return self._flags[0] != 0

    @property
    def released(self):
        """Whether parked tasks may end."""
        return self._flags[1] != 0

    def tell(self, **message):
        """Sends a failure to the supervisor."""
        self.broken = True
        message["text"] = message["text"][:MESSAGE_MAX]
        try:
            os.write(self._write, json.dumps(message).encode() + b"\n")
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EPIPE):
                raise


class Run:
    """What a scenario's task knows of its run: options, plan (the scenario's own), board, and
    the task's row on it."""

    def __init__(self, options, plan, board):
        self.options, self.plan, self.board = options, plan, board
        self.row = None
        self.unyielding = 0

    def rng(self, *key):
        """The random numbers of whatever has this key: all follow from the seed."""
        return np.random.default_rng([self.options.seed, *key])

    def working(self):
        """Set-up is over: a migrator may come."""
        self.row["state"] = WORKING

    def park(self):
        """Waits until everybody has checked its memory and the machine was audited."""
        self.row["state"] = PARKED
        while not self.board.released:
            time.sleep(PARK_POLL)

    def replay(self, records, shadow, seed, index=0, may_stop=False):
        """replay(), with a yield now and then: a task that is preempted in the middle of an
        access holds up whoever moves its pages until it runs again, so it had better leave
        between two.  Returns (index, fault address): all done, or an access to memory that is
        not mapped; with `may_stop` also earlier, when the run is over.  Raises Broken, and
        OSError(ENOMEM) when the machine is out of frames."""
        while index < len(records) and not (may_stop and self.board.stopping):
            begin, end = index, min(index + SLICE - self.unyielding, len(records))
            index, reason, detail = replay.replay(records, shadow, seed, begin, end)
            if reason == replay.MISMATCH:
                raise Broken("lost write", f"{detail}; access {index} of stream {seed}", detail.address & -PAGE)
            if reason == -errno.ENOMEM:
                raise OSError(errno.ENOMEM, "out of frames")
            if reason:
                return index, detail
            self.unyielding += index - begin
            if self.unyielding >= SLICE:
                self.unyielding = 0
                os.sched_yield()
        return index, None

    def checked(self, records, shadow, seed):
        """replay() of accesses to mapped memory.  Raises as that; a fault is a broken promise."""
        index, fault = self.replay(records, shadow, seed)
        if fault is not None:
            raise Broken("fault", f"access {index} of stream {seed} faults at {fault:#x}", fault & -PAGE)

    def check_ranges(self, ranges, shadow):
        """Loads every byte of [(start, length), ...], whole pages, and compares it."""
        if ranges:
            self.checked(whole_pages(ranges), shadow, 0)

    def wait_until(self, condition):
        """Waits until condition() holds; when the run is over because a promise was broken it may
        never."""
        self.row["state"] = WAITING
        while not condition() and not (self.board.broken and self.board.stopping):
            time.sleep(PARK_POLL)
        self.row["state"] = WORKING


def entering(run, program, name=None):
    """What runs program(task, run, *args) as a task of a scenario, in a task that it is given to:
    with the program's name, or another one.  spawn(), fork() and clone() take it."""
    def enter(task, *args):
        _enter(task, run, program, args)
    enter.__name__ = name or program.__name__
    return enter


def _enter(task, run, program, args):
    """With a row on the board, and with failures told to the supervisor."""
    run.row = run.board.rows[task.cpu]
    run.row["state"] = SETTING_UP
    run.row["pid"] = task.pid
    try:
        program(task, run, *args)
    except Broken as broken:
        where = f" (page {broken.page:#x})" if broken.page is not None else ""
        run.board.tell(kind=broken.kind, task=task.pid, page=broken.page,
                       text=f"{broken.kind}: task {task.pid}{where}: {broken.text}")
    except HostError as error:
        run.board.tell(kind="host", task=task.pid, page=None, text=error.strerror)
    except Exception as error:
        run.board.tell(kind="error", task=task.pid, page=None, text=_error_text(task, error))
    # A task that is killed never comes here: that is how it is known.
    run.row["pid"] = 0
    run.row["state"] = ABSENT


def _error_text(task, error):
    """An exception that a scenario did not expect, with the place it came from."""
    place = error.__traceback__
    while place.tb_next:
        place = place.tb_next
    file = os.path.basename(place.tb_frame.f_code.co_filename)
    what = str(error) if isinstance(error, (OSError, shmkern.TaskDied)) else f"{type(error).__name__}: {error}"
    return f"task {task.pid} failed: {what} (in {file}, line {place.tb_lineno})"


# ---- streams of accesses ---------------------------------------------------------

SIZES = np.array([1, 2, 4, 8, 8, 8, 8, 16, 32, 64], np.uint16)
OPS = np.array([replay.LOAD] * 4 + [replay.STORE] * 3 + [replay.MODIFY], np.uint8)
HOT_BYTES = 4 * PAGE


def random_accesses(rng, ranges, count, ops=OPS):
    """`count` accesses of 1 to 64 bytes at any address within [(start, length), ...].  Half of
    them go to the first four pages of a range: such a hot page is wanted when it moves."""
    starts, lengths = np.array(ranges, np.uint64).T
    records = np.zeros(count, replay.ACCESS)
    which = np.searchsorted(np.cumsum(lengths), rng.integers(lengths.sum(), size=count, dtype=np.uint64), "right")
    sizes = SIZES[rng.integers(len(SIZES), size=count)]
    room = lengths[which] - sizes + np.uint64(1)
    hot = rng.random(count) < 0.5
    room[hot] = np.minimum(room[hot], np.uint64(HOT_BYTES))
    records["address"] = starts[which] + (rng.random(count) * room).astype(np.uint64)
    records["size"] = sizes
    records["op"] = ops[rng.integers(len(ops), size=count)]
    return records


def whole_pages(ranges):
    """A load of each page of [(start, length), ...]."""
    addresses = np.concatenate([np.arange(start, start + length, PAGE, dtype=np.uint64) for start, length in ranges])
    records = np.zeros(len(addresses), replay.ACCESS)
    records["address"] = addresses
    records["size"] = PAGE
    return records
