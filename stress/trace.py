# SPDX-License-Identifier: GPL-2.0-only
"""Replays a real program's memory accesses, at the program's own addresses, by each worker in
its own address space.  Pages are mapped when they are first touched."""
import numpy as np

from shmkern import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE, record
from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import PAGE, Broken

NAME = "trace"
# Frames for page tables, of a program with a heap, libraries and a stack.
TABLES = 24


def plan(options):
    """The trace, with frames for every worker to map all of it."""
    try:
        records = record.read_trace(options.file)
    except record.TraceError as error:
        raise common.UsageError(str(error)) from None
    common.take_frames(options, (len(touched_pages(records)) + TABLES) * options.workers)
    return records


def touched_pages(records):
    """The numbers of all pages that the accesses touch."""
    first = records["address"] >> np.uint64(12)
    last = (records["address"] + records["size"] - np.uint64(1)) >> np.uint64(12)
    return np.union1d(first, last)


def worker(task, run, number):
    """One worker: the program, over and over, each time with other data."""
    rng, shadow, mapped = run.rng(number), Shadow(), set()
    stream = number << 32
    run.working()
    while run_through(task, run, shadow, run.options.seed + stream, mapped):
        run.check_ranges([(page, PAGE) for page in mapped], shadow)
        stream += 1
        run.row["passes"] += 1
        if rng.random() < 0.5:
            # As a new process of the program would find it.
            for page in mapped:
                task.munmap(page, PAGE)
            mapped.clear()
            shadow.clear()
    run.check_ranges([(page, PAGE) for page in mapped], shadow)
    run.park()


def run_through(task, run, shadow, seed, mapped):
    """The whole trace once.  Says whether it came to the end before it had to stop."""
    index = 0
    while index < len(run.plan):
        index, fault = run.replay(run.plan, shadow, seed, index, may_stop=True)
        if fault is not None:
            map_page(task, fault & -PAGE, mapped)
        elif index < len(run.plan):
            return False
    return True


def map_page(task, page, mapped):
    """Maps a page that the program touches for the first time."""
    if page in mapped:
        raise Broken("fault", "an access to a mapped page faults", page)
    task.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, page)
    mapped.add(page)


if __name__ == "__main__":
    common.script(NAME)
