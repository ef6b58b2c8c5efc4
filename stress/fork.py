# SPDX-License-Identifier: GPL-2.0-only
"""Trees of forks with copy-on-write.  Each child inherits its parent's memory and shadow,
changes it, unmaps, moves, shrinks, grows and protects parts of it, forks in its turn, and
exits, before or after its parent, while the pages move."""
import contextlib
import errno

import numpy as np

from shmkern import (MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ,
                     PROT_WRITE, replay, vmstat)
from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import OPS, PAGE, Broken, random_accesses, whole_pages
from shmkern_stress.threads import must_fault

NAME = "fork"
READ_WRITE = PROT_READ | PROT_WRITE
PAGES_MAX = 64
AREAS_MAX = 8
TABLES = 16
ACCESSES = 512
# A task forks where there is room below this generation, and lives for so many steps.
GENERATIONS = 6
STEPS = 10
TASKS_PER_ROOT = 32
# Pages that a whole tree only reads, and so shares: moving one takes it from everybody.
HEIRLOOM_PAGES = 8
LOADS = np.array([replay.LOAD], np.uint8)
# What move_pages may say of a page: shared, busy, moving, untouched, read only so far.
MOVE_STATUSES = [-errno.EACCES, -errno.EBUSY, -errno.EAGAIN, -errno.ENOENT, -errno.EFAULT, -errno.ENOMEM]
# Where areas are moved to: 64 MiB of addresses, so that they meet.
TARGETS, TARGET_PAGES = 0x100000000, 16384


def plan(options):
    """Pages of a task, if it shared none."""
    frames = common.take_frames(options, (AREAS_MAX + HEIRLOOM_PAGES + TABLES) * options.workers)
    return min(frames // options.workers - HEIRLOOM_PAGES - TABLES, PAGES_MAX)


def roots(options):
    """The trees' roots, which live as long as the run."""
    return trees(options.workers)


def trees(workers):
    """How many trees so many tasks make."""
    return -(-workers // TASKS_PER_ROOT)


def worker(task, run, number, kind=None):
    """The root of a tree; `kind` is what its address spaces are, Space by default."""
    space = (kind or Space)(task, run, (number,), run.plan)
    space.make_heirloom()
    live(space, None)


def descendant(task, run, space, key):
    """A forked task: it goes on with a copy of its parent's memory and shadow."""
    live(type(space)(task, run, key, run.plan, space), int(run.rng(*key, 0).geometric(1 / STEPS)))


def live(space, steps):
    """Steps, forking where there is room; then checks its memory and ends: at once, with
    whatever children it has, or after them."""
    run, rng = space.run, space.rng
    children, born = [], 0
    run.working()
    while not run.board.stopping and steps != 0:
        space.step()
        if len(space.key) < GENERATIONS and population() < run.options.workers + run.options.migrators + 1:
            born += 1
            children.append(make_child(space, born))
        children = [child for child in children if child is not None and not collected(child)]
        steps = steps if steps is None else steps - 1
    space.check()
    if not run.board.stopping and rng.random() < 0.5:
        return
    run.wait_until(lambda: run.board.stopping or all(collected(child) for child in children))
    # What the children did to their copies must not show here.
    space.check()
    if run.board.stopping:
        run.park()
    for child in children:
        child.result()


def population():
    """How many tasks the machine has, with those that are just being made."""
    return np.count_nonzero(vmstat.tasks()["state"])


def make_child(space, number):
    """A child, or None when the machine has no room for one now."""
    run = space.run
    try:
        child = space.task.fork(common.entering(run, descendant), space, (*space.key, number))
    except OSError:
        run.row["refused"] += 1
        return None
    run.row["forks"] += 1
    return child


def collected(child):
    """Whether a child has ended.  Raises what befell it."""
    if child.is_alive():
        return False
    child.result()
    return True


class Space:
    """An address space as it must be: areas, as (start, length, protection), and the shadow of
    what they hold.  An area lies within one VMA of the kernel's, which may hold several.  It
    keeps to `pages_max` pages, or a few more for a moment."""

    def __init__(self, task, run, key, pages_max, parent=None):
        self.task, self.run, self.key, self.pages_max = task, run, key, pages_max
        self.rng = run.rng(*key)
        self.stream = int(self.rng.integers(1 << 62))
        self.areas = list(parent.areas) if parent else []
        self.heirloom = parent.heirloom if parent else None
        # This process's copy of the parent's: both go on from the same contents.
        self.shadow = parent.shadow if parent else Shadow()

    def make_heirloom(self):
        """Fills the pages that the tree will share, and forbids writing them."""
        length = HEIRLOOM_PAGES * PAGE
        self.heirloom = (self.task.mmap(length), length)
        records = whole_pages([self.heirloom])
        records["op"] = replay.STORE
        self.run.checked(records, self.shadow, self.stream)
        self.task.mprotect(*self.heirloom, PROT_READ)

    def step(self):
        """Loads, stores, and one change to the address space.  When the machine is out of
        frames, gives an area back instead."""
        changes = (self.map, self.punch, self.resize, self.move, self.protect, self.protect,
                   self.trespass, self.relocate)
        try:
            self.access()
            changes[self.rng.integers(len(changes))]()
            if len(self.areas) > AREAS_MAX or self.pages() > self.pages_max:
                self.drop()
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            self.run.row["refused"] += 1
            # Even that may take memory, to split an area of the kernel's.
            with contextlib.suppress(OSError):
                self.drop()

    def pages(self):
        """How many pages are mapped."""
        return sum(length for _start, length, _prot in self.areas) // PAGE

    def ranges(self, *protections):
        """(start, length) of the areas with one of these protections."""
        return [(start, length) for start, length, prot in self.areas if prot in protections]

    def pick(self):
        """One area, which is now the last of the list: whoever has changed it takes it off and
        puts back what is left of it."""
        self.areas.append(self.areas.pop(int(self.rng.integers(len(self.areas)))))
        return self.areas[-1]

    def some_part(self, length):
        """(offset, length) of some pages of an area, perhaps all of it."""
        first, last = np.sort(self.rng.integers(length // PAGE, size=2)).tolist()
        return first * PAGE, (last - first + 1) * PAGE

    def is_free(self, start, length):
        """Whether no area lies in that range."""
        return all(start + length <= other or other + size <= start
                   for other, size in [self.heirloom, *self.ranges(READ_WRITE, PROT_READ, PROT_NONE)])

    def some_place(self, length):
        """A free range of addresses."""
        while True:
            start = TARGETS + int(self.rng.integers(TARGET_PAGES)) * PAGE
            if self.is_free(start, length):
                return start

    # ---- what a step may be ----

    def access(self):
        """Random accesses to what may be accessed."""
        self.stream += 1
        for protection, ops, count in ((READ_WRITE, OPS, ACCESSES), (PROT_READ, LOADS, ACCESSES // 4)):
            ranges = self.ranges(protection)
            if ranges:
                self.run.checked(random_accesses(self.rng, ranges, count, ops), self.shadow, self.stream)
        self.run.checked(random_accesses(self.rng, [self.heirloom], ACCESSES, LOADS), self.shadow, self.stream)

    def map(self, protection=READ_WRITE):
        """A new area, where the kernel likes or at a place of its own."""
        length = int(self.rng.integers(1, max(2, self.pages_max // 2))) * PAGE
        flags = MAP_PRIVATE | MAP_ANONYMOUS
        if self.rng.random() < 0.5:
            start = self.task.mmap(length, protection, flags)
        else:
            place = self.some_place(length)
            start = self.task.mmap(length, protection, flags | MAP_FIXED, place)
        self.areas.append((start, length, protection))

    def punch(self):
        """Unmaps some pages of an area."""
        if not self.areas:
            return
        start, length, protection = self.pick()
        offset, size = self.some_part(length)
        self.task.munmap(start + offset, size)
        self.shadow.discard(start + offset, size)
        self.areas.pop()
        self._put_back((start, offset, protection),
                       (start + offset + size, length - offset - size, protection))

    def resize(self):
        """Grows or shrinks an area; a growing one may move."""
        if not self.areas:
            return
        start, length, protection = self.pick()
        size = int(self.rng.integers(1, 2 * length // PAGE + 1)) * PAGE
        place = self.task.mremap(start, length, size, MREMAP_MAYMOVE)
        self.areas.pop()
        self.shadow.discard(start + min(size, length), max(0, length - size))
        if place != start:
            self.shadow.move(start, place, min(size, length))
        self.areas.append((place, size, protection))

    def move(self):
        """Moves an area, or some pages of it, to another place."""
        if not self.areas:
            return
        start, length, protection = self.pick()
        offset, size = self.some_part(length)
        place = self.some_place(size)
        self.task.mremap(start + offset, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, place)
        self.shadow.move(start + offset, place, size)
        self.areas.pop()
        self._put_back((start, offset, protection), (place, size, protection),
                       (start + offset + size, length - offset - size, protection))

    def protect(self):
        """Gives some pages of an area another protection."""
        if not self.areas:
            return
        start, length, old = self.pick()
        offset, size = self.some_part(length)
        new = (READ_WRITE, READ_WRITE, PROT_READ, PROT_NONE)[self.rng.integers(4)]
        self.task.mprotect(start + offset, size, new)
        self.areas.pop()
        self._put_back((start, offset, old), (start + offset, size, new),
                       (start + offset + size, length - offset - size, old))

    def trespass(self):
        """Accesses that must fault: to protected areas, and beside all areas."""
        for start, length in self.ranges(PROT_READ, PROT_NONE):
            must_fault(self.task, start + int(self.rng.integers(length)), "store")
        for start, length in self.ranges(PROT_NONE):
            must_fault(self.task, start + int(self.rng.integers(length)), "load")
        must_fault(self.task, self.some_place(PAGE), "store" if self.rng.random() < 0.5 else "load")

    def relocate(self):
        """Moves some pages itself, against the migrator: move_pages(2) on this task."""
        start, length = self.heirloom if not self.areas else self.areas[-1][:2]
        pages = np.arange(start, start + length, PAGE, dtype=np.uint64)
        nodes = self.rng.integers(self.run.options.nodes, size=len(pages), dtype=np.int32)
        for status in self.task.move_pages(0, pages, nodes):
            if status not in MOVE_STATUSES and not 0 <= status < self.run.options.nodes:
                raise Broken("status", f"move_pages says {status}", start)

    def drop(self):
        """Unmaps a whole area."""
        if self.areas:
            start, length, _protection = self.pick()
            self.task.munmap(start, length)
            self.areas.pop()
            self.shadow.discard(start, length)

    def check(self):
        """Loads all that may be loaded and compares it."""
        for start, length in [self.heirloom, *self.ranges(READ_WRITE, PROT_READ)]:
            try:
                self.run.check_ranges([(start, length)], self.shadow)
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                self.check_pages(start, length)

    def check_pages(self, start, length):
        """check() of an area, page by page, when the machine is out of frames: a page that was
        never touched may need one for its page table, and then has nothing to compare."""
        for page in range(start, start + length, PAGE):
            try:
                self.run.check_ranges([(page, PAGE)], self.shadow)
            except OSError as error:
                if error.errno != errno.ENOMEM or page in self.shadow.pages():
                    raise
                self.run.row["refused"] += 1

    def _put_back(self, *parts):
        self.areas += [part for part in parts if part[1]]


if __name__ == "__main__":
    common.script(NAME)
