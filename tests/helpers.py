# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of whole machines share: tasks that are led step by step, and looks inside.

    a = Puppet(machine)
    va = a(lambda task: task.mmap(4096))         # done when this returns
    b = a.fork()
    b.begin(lambda task: task.store(va, b"x"))   # under way; b.reply() waits for it
    until_waits(b, "WAIT_PAGE_LOCK")

So the order of events is the test's, and nothing sleeps to get it.
"""
import errno
import os
import signal
import time

import multiprocess
from multiprocess import reduction
from multiprocess.connection import Connection
from multiprocess.pool import ExceptionWithTraceback

from shmkern import MAP_SHARED, PROT_READ, PROT_WRITE, direct_map, layout, worker
from shmkern.errors import TaskDied

C = layout.constants
PAGE = C["PAGE_SIZE"]
PTE_PFN_MASK = 0x000ffffffffff000
TASK_SIZE = 0x7ffffffff000
TIMEOUT = 20
_fork = multiprocess.get_context("fork")


def until(condition, what, timeout=TIMEOUT, check=None):
    """Returns the first true value of condition(); AssertionError after `timeout` seconds.
    Calls check() between the looks."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"{what}: not within {timeout} s"
        if check is not None:
            check()
        time.sleep(0.0005)


def blocks_of(pid):
    """The names of the blocks that a process has made."""
    records = {name: direct_map.read_header(name) for name in direct_map.blocks()}
    return [name for name, record in records.items() if record is not None and record["supervisor_pid"] == pid]


def run(machine, program, *args, timeout=TIMEOUT):
    """Runs a program as a task of its own and returns its result."""
    return machine.spawn(program, *args).result(timeout)


# ---- tasks led step by step ---------------------------------------------------

def _obey(task, connection):
    """A puppet's program: does what comes through the pipe until None comes."""
    while True:
        # Fails for a function that refers to what only the test has.
        received, function = _attempt(connection.recv)
        if not received:
            connection.send((False, function))
            continue
        if function is None:
            return
        if function in ("fork", "clone"):
            strings = Connection(reduction.recv_handle(connection))
            reply = _attempt(lambda: getattr(task, function)(_obey, strings))
            strings.close()
            # A Child cannot be sent.
            reply = (True, (reply[1].cpu, reply[1].pid, reply[1].os_pid)) if reply[0] else reply
        else:
            reply = _attempt(lambda: function(task))
        connection.send(reply)


def _attempt(function):
    """(True, what it returns) or (False, what it raises)."""
    try:
        return True, function()
    except Exception as error:
        return False, ExceptionWithTraceback(error, error.__traceback__)


class Puppet:
    """A task that does what the test says, one function at a time.  `cpu` is its slot, `pid`
    its pid in the machine, `os_pid` the host's."""

    def __init__(self, machine, slot=None, **rights):
        """`rights` are Machine.spawn's: uid and so on.  slot: of a task that is made already
        (_copy_process), and begins to run."""
        self.machine = machine
        self.connection, strings = _fork.Pipe()
        if slot is None:
            child = machine.spawn(_obey, strings, **rights)
        else:
            child = worker.start_process(slot, _obey, (strings,), machine.check)
            machine.children.append(child)
        strings.close()
        self.cpu, self.pid, self.os_pid = child.cpu, child.pid, child.os_pid
        # So that it is a task for sure, and not only a process that is going to be one.
        self(lambda task: None)

    def begin(self, function):
        """Sends it off to do function(task)."""
        self.connection.send(function)

    def is_done(self):
        """Whether there is a reply to what it was sent off to do."""
        return self.connection.poll(0)

    def reply(self, timeout=TIMEOUT):
        """Waits for what begin() started: returns what that returned, raises what it raised."""
        deadline = time.monotonic() + timeout
        while not self.connection.poll(0.05):
            self.machine.check()
            if direct_map.process_stat(self.os_pid)[0] in ("", "Z", "X") and not self.connection.poll(0):
                raise TaskDied(self.pid, None)
            assert time.monotonic() < deadline, f"task {self.pid} has not answered within {timeout} s"
        succeeded, value = self.connection.recv()
        if succeeded:
            return value
        raise value

    def __call__(self, function, timeout=TIMEOUT):
        """Has function(task) done and returns its result."""
        self.begin(function)
        return self.reply(timeout)

    def begin_fork(self, how="fork"):
        """Sends it off to fork (or clone); the result of end_fork() is the child, a Puppet."""
        child = object.__new__(Puppet)
        child.machine = self.machine
        child.connection, strings = _fork.Pipe()
        self.connection.send(how)
        reduction.send_handle(self.connection, strings.fileno(), self.os_pid)
        strings.close()
        return child

    def end_fork(self, child, timeout=TIMEOUT):
        """Waits for begin_fork()."""
        child.cpu, child.pid, child.os_pid = self.reply(timeout)
        child(lambda task: None)
        return child

    def fork(self):
        """A child with a copy of its address space, as a Puppet."""
        return self.end_fork(self.begin_fork())

    def clone(self):
        """A child that shares its address space, as a Puppet."""
        return self.end_fork(self.begin_fork("clone"))

    def exit(self):
        """Ends it; returns when it has left the machine."""
        self.connection.send(None)
        until(lambda: not is_running(self), f"the exit of task {self.pid}", check=self.machine.check)
        self.connection.close()

    def kill(self):
        """SIGKILL; returns when the process is gone (the machine may not have noticed)."""
        os.kill(self.os_pid, signal.SIGKILL)
        until(lambda: direct_map.process_stat(self.os_pid)[0] in ("", "Z", "X"), "its death")
        self.connection.close()


class Mapper(Puppet):
    """A task that has a host file of eight pages open as `fd`, and mapped shared at `va`."""
    PAGES = 8

    def __init__(self, machine, path, how=MAP_SHARED, flags=os.O_RDWR, prot=PROT_READ | PROT_WRITE, prepare=None,
                 **options):
        """prepare(self), if given, is called before the file is opened."""
        super().__init__(machine)
        size = self.PAGES * PAGE
        if prepare is not None:
            prepare(self)

        def program(task):
            fd = task.open(path, flags, **options)
            return fd, task.mmap(size, prot, how, fd=fd)
        self.fd, self.va = self(program)

    def load(self, offset, length):
        va = self.va + offset
        return self(lambda task: task.load(va, length))

    def store(self, offset, data):
        va = self.va + offset
        self(lambda task: task.store(va, data))

    def sync(self):
        """msync of all of it."""
        va, size = self.va, self.PAGES * PAGE
        self(lambda task: task.msync(va, size))


def errno_of(call):
    """The name of the errno with which call() fails; None when it does not."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]
    return None


def is_running(puppet):
    """Whether its slot is still its own."""
    slot = worker.slot(puppet.cpu)
    return slot.state == C["TASK_RUNNING"] and slot.pid == puppet.pid


def until_waits(puppet, kind):
    """Returns when the task waits for something of that kind, as its slot says.  What it is."""
    slot = worker.slot(puppet.cpu)
    until(lambda: slot.wait_kind == C[kind], f"{kind} of task {puppet.pid}", check=puppet.machine.check)
    return slot.wait_channel


def until_asleep(puppet, kind):
    """until_waits, and until its process sleeps: then it has said so, and has to be woken."""
    channel = until_waits(puppet, kind)
    until(lambda: direct_map.process_stat(puppet.os_pid)[0] == "S", f"the sleep of task {puppet.pid}")
    return channel


def woken(one_round):
    """Whether those who wait are woken.  one_round() is how long each of them was away, in seconds, from before
    it came until it had what it came for, having slept.  Whom nobody wakes looks up after a slice, and is never
    away for less; a host that stands still spoils a round, but not ten."""
    return any(max(one_round()) < C["WAIT_SLICE_NS"] / 1e9 for _ in range(10))


# ---- looks inside -------------------------------------------------------------

def mm_of(puppet):
    """struct MmStruct of a task (anything with a `cpu`), live."""
    return layout.struct("MmStruct", worker.slot(puppet.cpu).mm)


def pte_address(mm, va):
    """Where the PTE of `va` is; None when there is no table for it."""
    table = mm.pgd
    for shift in (39, 30, 21):
        entry = int(layout.view("u64", table + (va >> shift & 511) * 8)[()])
        if not entry & C["_PAGE_PRESENT"]:
            return None
        table = layout.kernel().frames_base + (entry & PTE_PFN_MASK)
    return table + (va >> 12 & 511) * 8


def pte_of(puppet, va):
    """The PTE of an address in a task's address space; 0 when there is none."""
    where = pte_address(mm_of(puppet), va)
    return int(layout.view("u64", where)[()]) if where else 0


def set_pte(puppet, va, value):
    """Writes a PTE, as nobody should."""
    layout.view("u64", pte_address(mm_of(puppet), va))[()] = value


def is_present(pte):
    """Whether a PTE maps a page."""
    return bool(pte & (C["_PAGE_PRESENT"] | C["_PAGE_PROTNONE"]))


def pfn_of(pte):
    """The frame of a present PTE."""
    assert is_present(pte), f"PTE {pte:#x} is not present"
    return (pte & PTE_PFN_MASK) >> 12


def migration_entry(pte):
    """("read" or "write", pfn) of a migration entry; None for any other PTE."""
    kind = pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]
    if pte == 0 or is_present(pte) or kind < C["SWP_MIGRATION_READ"]:
        return None
    return "write" if kind == C["SWP_MIGRATION_WRITE"] else "read", pte >> C["SWP_OFFSET_SHIFT"]


def pfn_at(puppet, va):
    """The frame that a task has mapped at an address."""
    return pfn_of(pte_of(puppet, va))


def node_at(puppet, va):
    """The node of the frame that a task has mapped at an address."""
    return pfn_at(puppet, va) // layout.kernel().frames_per_node


def page(pfn):
    """struct Page of a frame, live."""
    return layout.struct("Page", layout.kernel().mem_map + pfn * layout.sizeof("Page"))


def page_at(puppet, va):
    """struct Page of what a task has mapped at an address, live."""
    return page(pfn_at(puppet, va))


def frame_bytes(pfn):
    """The contents of a frame."""
    return layout.view("u8", layout.kernel().frames_base + pfn * PAGE, PAGE).tobytes()


def flags(*names):
    """A mask of page flags by name."""
    return sum(1 << C[name] for name in names)


def free_frames(machine):
    """How many frames are free when no pagevec holds one back."""
    machine.init.migrate_prep()
    return machine.vmstat()["nr_free_pages"]


def vmas(puppet):
    """[(start, end, prot)] of a task's address space."""
    found, address = [], mm_of(puppet).mmap
    while address:
        vma = layout.struct("VmAreaStruct", address)
        found.append((vma.vm_start, vma.vm_end, vma.vm_flags & 7))
        address = vma.vm_next
    return found


def kinds(audit):
    """The kinds of an audit's findings."""
    return {finding.kind for finding in audit.findings}


def counter(machine):
    """count(name): how much a counter of vmstat has grown since now."""
    before = machine.vmstat()
    return lambda name: machine.vmstat()[name] - before[name]


class Stop(Exception):
    """What stop() raises."""


def stop(*_arguments):
    """A signal handler that raises."""
    raise Stop
