# SPDX-License-Identifier: GPL-2.0-only
"""Groups of workers, each group with one address space.  They increment shared counters with
fetch_add64 and compare-and-exchange loops, and the sums must be exact.  In the same pages
each has bytes of its own that it checks as `anon` does, each maps, protects and unmaps memory
beside them, and each forks now and then.  And the leader takes and gives the right to write
to a common that all the others write to as long as they may."""
import mmap
import os

import numpy as np

import shmkern
from shmkern import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, PROT_READ, PROT_WRITE, bulk, replay
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
FORK_CHANCE = 0.02
WATCH_CHANCE, LOOKS = 0.1, 20
SCRATCH_PAGES = 8
# Where nothing else is ever mapped, so that a late write hits the common or nothing.
COMMON, COMMON_PAGES = 0x4000000000, 8
READ_WRITE = PROT_READ | PROT_WRITE


class Plan:
    """What the groups share besides their memory: counts[group, member, counter] is how much
    that member has added to that counter."""

    def __init__(self, workers):
        self.groups = groups_of(workers)
        shape = (len(self.groups), GROUP + 1, PAGES * COUNTERS)
        self._memory = mmap.mmap(-1, 8 * int(np.prod(shape)) + len(self.groups) * 8 * (GROUP + 1))
        self.counts = np.frombuffer(self._memory, np.uint64, int(np.prod(shape))).reshape(shape)
        self.done = np.frombuffer(self._memory, np.uint64, len(self.groups) * (GROUP + 1),
                                  self.counts.nbytes).reshape(shape[:2])


def groups_of(workers):
    """How many members each group has."""
    groups = [min(GROUP, workers - first) for first in range(0, workers, GROUP)]
    if len(groups) > 1 and groups[-1] == 1:
        # Alone it would share with nobody.
        groups[-2:] = [GROUP + 1]
    return groups


def plan(options):
    """The groups, of two to five."""
    if options.workers < 2:
        raise common.UsageError("threads needs two workers at least, to share an address space")
    groups = Plan(options.workers)
    member_pages = SCRATCH_PAGES + COMMON_PAGES + TABLES
    common.take_frames(options, len(groups.groups) * (PAGES + TABLES + (GROUP + 1) * member_pages))
    return groups


def roots(options):
    """The leaders; they make the others."""
    return len(groups_of(options.workers))


def worker(task, run, group):
    """A group's leader: makes the memory and the other members, and is the first member."""
    memory = task.mmap(PAGES * PAGE)
    others = [task.clone(common.entering(run, member, f"member {number}"), group, number, memory)
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
        add = bulk.fetch_add64_many if rng.random() < 0.5 else bulk.cmpxchg_add64_many
        count_up(run, rng, add, counters, run.plan.counts[group, number], seen)
        run.checked(random_accesses(rng, own, ACCESSES), shadow, run.options.seed + stream)
        if rng.random() < WATCH_CHANCE:
            watch(run, counters, run.plan.counts[group])
        churn(task, run, rng, run.options.seed + stream)
        if number == 0:
            guard(task, rng)
        else:
            poach(rng)
        if rng.random() < FORK_CHANCE:
            task.fork(common.entering(run, copy), rng, own, shadow, counters, seen, run.options.seed + stream).result()
            run.row["forks"] += 1
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


def watch(run, counters, counts):
    """Looks at the counters without touching them: none is ever below what all have said they
    added.  A translation from before a copy-on-write would show an old page."""
    for _look in range(LOOKS):
        least = counts.sum(axis=0)
        found = bulk.load64_many(counters)
        behind = np.flatnonzero(found < least)
        if len(behind):
            address = int(counters[behind[0]])
            raise Broken("wrong sum", f"the counter at {address:#x} shows {found[behind[0]]} where {least[behind[0]]} "
                         "was added at least", address & -PAGE)
        os.sched_yield()


def churn(task, run, rng, stream):
    """Maps memory beside the shared one, uses it, forbids writing it, and unmaps it: changes to
    the address space that the others run in."""
    if rng.random() < 0.75:
        return
    length = SCRATCH_PAGES * PAGE
    shadow, start = Shadow(), task.mmap(length)
    records = random_accesses(rng, [(start, length)], 64)
    run.checked(records, shadow, stream)
    task.mprotect(start, length, PROT_READ)
    must_fault(task, start + int(rng.integers(length)), "store")
    run.check_ranges([(start, length)], shadow)
    task.munmap(start, length)


def poach(rng):
    """Writes all over the common, until it may not."""
    words = COMMON + rng.integers(COMMON_PAGES * PAGE // 8, size=256, dtype=np.uint64) * np.uint64(8)
    try:
        bulk.store64_many(words, rng.integers(1, 1 << 62, dtype=np.uint64))
    except shmkern.SegmentationFault:
        pass


def guard(task, rng):
    """Gives the common to all, or takes it from all; what nobody may write must not change."""
    length = COMMON_PAGES * PAGE
    what = rng.integers(3)
    if what == 0:
        task.mmap(length, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, COMMON)
        return
    if what == 1:
        task.mmap(length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, COMMON)
        before = bytes(length)
    else:
        # Perhaps it is mapped, perhaps not.
        try:
            task.mprotect(COMMON, length, PROT_READ)
        except OSError:
            must_fault(task, COMMON + int(rng.integers(length)), "load")
            return
        before = task.load(COMMON, length)
    for _look in range(8):
        os.sched_yield()
        after = task.load(COMMON, length)
        if after != before:
            where = next(at for at in range(length) if before[at] != after[at])
            raise Broken("write through a stale translation", f"byte {COMMON + where:#x} was {before[where]:#x} and "
                         f"became {after[where]:#x} where nobody may write", COMMON + where & -PAGE)
    task.munmap(COMMON, length)


def copy(task, run, rng, own, shadow, counters, seen, stream):
    """A forked child of one member: has what the member had, and none of what the others do
    from now on."""
    run.working()
    counts = bulk.load64_many(counters)
    back = np.flatnonzero(counts < seen)
    if len(back):
        address = int(counters[back[0]])
        raise Broken("wrong sum", f"the child has {counts[back[0]]} at {address:#x}, where the parent had seen "
                     f"{seen[back[0]]}", address & -PAGE)
    bulk.fetch_add64_many(counters, 1)
    run.checked(random_accesses(rng, own, ACCESSES), shadow, stream ^ 1 << 62)
    wrong = np.flatnonzero(bulk.load64_many(counters) != counts + np.uint64(1))
    if len(wrong):
        address = int(counters[wrong[0]])
        raise Broken("wrong sum", f"the child's own counter at {address:#x} is not one more than before",
                     address & -PAGE)


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
    found = bulk.load64_many(counters)
    wrong = np.flatnonzero(sums != found)
    if len(wrong):
        first = wrong[0]
        raise Broken("wrong sum", f"{len(wrong)} of {len(counters)} counters; the one at {int(counters[first]):#x} "
                     f"should be {sums[first]} and is {found[first]}", int(counters[first]) & -PAGE)


if __name__ == "__main__":
    common.script(NAME)
