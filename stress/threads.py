# SPDX-License-Identifier: GPL-2.0-only
"""Groups of workers, each group with one address space.  They increment shared counters with
fetch_add64 and compare-and-exchange loops, and the sums must be exact.  In the same pages
each has bytes of its own that it checks as `anon` does, and each maps, protects and unmaps
memory beside them."""
import mmap

import numpy as np

import shmkern
from shmkern import replay
from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import PAGE, Broken, random_accesses

NAME = "threads"
GROUP = 4
PAGES = 32
TABLES = 8
# A page: counters in its lower half, and from OWN on 256 bytes for each of the group.
COUNTERS = 16
STRIDE = 128
OWN, OWN_BYTES = 2048, 256
ACCESSES = 2048
SCRATCH_PAGES = 8


class Plan:
    """What the groups share besides their memory: counts[group, member, counter] is how much
    that member has added to that counter."""

    def __init__(self, workers):
        self.groups = [min(GROUP, workers - first) for first in range(0, workers, GROUP)]
        if len(self.groups) > 1 and self.groups[-1] == 1:
            # Alone it would share with nobody.
            self.groups[-2:] = [GROUP + 1]
        shape = (len(self.groups), GROUP + 1, PAGES * COUNTERS)
        self._memory = mmap.mmap(-1, 8 * int(np.prod(shape)) + len(self.groups) * 8 * (GROUP + 1))
        self.counts = np.frombuffer(self._memory, np.uint64, int(np.prod(shape))).reshape(shape)
        self.done = np.frombuffer(self._memory, np.uint64, len(self.groups) * (GROUP + 1),
                                  self.counts.nbytes).reshape(shape[:2])


def plan(options):
    """The groups, of two to five."""
    if options.workers < 2:
        raise common.UsageError("threads needs two workers at least, to share an address space")
    groups = Plan(options.workers)
    common.take_frames(options, len(groups.groups) * (PAGES + TABLES + (GROUP + 1) * (SCRATCH_PAGES + 2)))
    return groups


def roots(options):
    """The leaders; they make the others."""
    return len(Plan(options.workers).groups)


def worker(task, run, group):
    """A group's leader: makes the memory and the other members, and is the first member."""
    memory = task.mmap(PAGES * PAGE)
    others = [task.clone(common.enter, run, member, group, number, memory)
              for number in range(1, run.plan.groups[group])]
    member(task, run, group, 0, memory)
    for other in others:
        other.result()


def member(task, run, group, number, memory):
    """One worker of a group."""
    rng, shadow = run.rng(group, number), Shadow()
    pages = np.arange(memory, memory + PAGES * PAGE, PAGE, dtype=np.uint64)
    counters = (pages[:, None] + np.arange(0, COUNTERS * STRIDE, STRIDE, dtype=np.uint64)).reshape(-1)
    own = [(int(page) + OWN + number * OWN_BYTES, OWN_BYTES) for page in pages]
    seen = np.zeros(len(counters), np.uint64)
    stream = (group * (GROUP + 1) + number) << 32
    run.working()
    while not run.board.stopping:
        add = replay.fetch_add64_many if rng.random() < 0.5 else replay.cmpxchg_add64_many
        count_up(run, rng, add, counters, run.plan.counts[group, number], seen)
        run.checked(random_accesses(rng, own, ACCESSES), shadow, run.options.seed + stream)
        churn(task, run, rng, run.options.seed + stream)
        stream += 1
    for start, length in own:
        run.checked(np.array([(start, length, replay.LOAD)], replay.ACCESS), shadow, 0)
    run.plan.done[group, number] = 1
    if number == 0:
        check_sums(run, group, counters)
    run.park()


def count_up(run, rng, add, counters, counts, seen):
    """Adds small numbers to random counters, and remembers how much to which."""
    which = rng.integers(len(counters), size=ACCESSES)
    # Half the time all want the same few.
    if rng.random() < 0.5:
        which %= COUNTERS
    deltas = rng.integers(1, 16, size=ACCESSES, dtype=np.uint64)
    before = add(counters[which], deltas)
    np.add.at(counts, which, deltas)
    # Counters only grow: one that is below what was seen earlier has lost an addition.
    back = np.flatnonzero(before < seen[which])
    if len(back):
        address = int(counters[which[back[0]]])
        raise Broken("wrong sum", f"the counter at {address:#x} went from {seen[which[back[0]]]} back to "
                     f"{before[back[0]]}", address & -PAGE)
    np.maximum.at(seen, which, before)


def churn(task, run, rng, stream):
    """Maps memory beside the shared one, uses it, forbids writing it, and unmaps it: changes to
    the address space that the others run in."""
    if rng.random() < 0.75:
        return
    length = SCRATCH_PAGES * PAGE
    shadow, start = Shadow(), task.mmap(length)
    records = random_accesses(rng, [(start, length)], 64)
    run.checked(records, shadow, stream)
    task.mprotect(start, length, shmkern.PROT_READ)
    must_fault(task, start + int(rng.integers(length)), "store")
    run.check_ranges([(start, length)], shadow)
    task.munmap(start, length)


def must_fault(task, address, access):
    """Tries an access of one byte that is not allowed.  Raises Broken when it succeeds, or
    fails in another way."""
    try:
        if access == "load":
            task.load(address, 1)
        else:
            task.store(address, b"x")
    except shmkern.SegmentationFault as fault:
        if (fault.address, fault.access) != (address, access):
            raise Broken("fault", f"a {access} at {address:#x} is reported as a {fault}", address & -PAGE) from None
        return
    raise Broken("fault", f"a {access} at {address:#x} succeeds where it is forbidden", address & -PAGE)


def check_sums(run, group, counters):
    """The leader, when all members have stopped: every counter is the sum of what was added."""
    members = run.plan.groups[group]
    run.wait_until(lambda: run.plan.done[group, :members].all())
    if not run.plan.done[group, :members].all():
        # Somebody failed or died, and has been told of.
        return
    sums = run.plan.counts[group].sum(axis=0)
    found = replay.load64_many(counters)
    wrong = np.flatnonzero(sums != found)
    if len(wrong):
        first = wrong[0]
        raise Broken("wrong sum", f"{len(wrong)} of {len(counters)} counters; the one at {int(counters[first]):#x} "
                     f"should be {sums[first]} and is {found[first]}", int(counters[first]) & -PAGE)


if __name__ == "__main__":
    common.script(NAME)
