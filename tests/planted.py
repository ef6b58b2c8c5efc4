# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios with a fault, which a soak has to find: as `anon`, but that one worker leaks, or
stops, or that the migrator does.  They are known to the harness only while a test runs.
"""
import mmap
import os
import time
import types

from shmkern import worker as worker_module
from shmkern import vmstat
from shmkern.kallsyms import ksym
from shmkern.replay import Shadow
from shmkern.worker import slot
from shmkern_stress import anon, board

KIB = 1024
MIGRATIONS = 10_000


def accesses(task, run, number, fault):
    """A worker of `anon` that calls fault(task, memory) now and then."""
    rng, shadow, length = run.rng(number), Shadow(), run.plan * board.PAGE
    memory = task.mmap(length)
    run.working()
    stream = number << 32
    while not run.board.stopping:
        run.checked(board.random_accesses(rng, [(memory, length)], anon.ACCESSES), shadow, run.options.seed + stream)
        fault(task, memory)
        stream += 1
    run.park()


def twice_a_second(leak):
    """A fault that calls leak() as often as half seconds have gone by, however long the way to it."""
    began, done = time.monotonic(), 0

    def fault(_task, _memory):
        nonlocal done
        while done < int(2 * (time.monotonic() - began)):
            leak()
            done += 1
    return fault


def no_fault(_task, _memory):
    """None."""


def some_memory(size):
    """Memory that is the host's to give: a heap that the process inherited may have room for more
    than a test has time to leak."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * size)
    return memory


def leaking_worker(task, run, number):
    """Worker 1 leaks two descriptors a second, worker 2 200 KiB a second."""
    kept = []
    faults = {1: twice_a_second(lambda: os.open(os.devnull, os.O_RDONLY)),
              2: twice_a_second(lambda: kept.append(some_memory(100 * KIB)))}
    accesses(task, run, number, faults.get(number, no_fault))


def careless_worker(task, run, number):
    """Worker 1 takes a reference to one of its pages each 10,000 migrations, and keeps it."""
    leaked = 0

    def fault(task, memory):
        nonlocal leaked
        if vmstat.vmstat()["pgmigrate_success"] // MIGRATIONS > leaked:
            leaked += 1
            mm = slot(task.cpu).mm
            ksym.follow_page(ksym.find_vma(mm, memory), memory, 0)
    accesses(task, run, number, fault if number == 1 else no_fault)


def idle_worker(task, run, number):
    """Worker 1 does nothing after a second."""
    began = time.monotonic()

    def fault(_task, _memory):
        while time.monotonic() - began > 1 and not run.board.stopping:
            time.sleep(0.01)
    accesses(task, run, number, fault if number == 1 else no_fault)


def stopping_migrator(task, connection, nodes, seed, work=worker_module.migrator):
    """The machine's migrator, for a second; then it does nothing more."""
    class Deadline:
        """The connection, which says after a second that the work is over."""
        def __init__(self):
            self.end = time.monotonic() + 1

        def poll(self):
            return time.monotonic() > self.end or connection.poll()
    count = work(task, Deadline(), nodes, seed)
    connection.poll(None)
    return count


def scenario(name, worker):
    """A scenario as a module of the stress package is one."""
    module = types.ModuleType(name)
    module.NAME, module.plan, module.worker = name, anon.plan, worker
    return module


SCENARIOS = [scenario("leaking", leaking_worker), scenario("careless", careless_worker),
             scenario("idle", idle_worker)]
