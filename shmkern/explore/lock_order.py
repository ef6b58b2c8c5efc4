# SPDX-License-Identifier: GPL-2.0-only
"""The order of locks, by class, as the kernel's lockdep judges it.

A lock's class is the struct and field that it is.  Whenever a task takes one lock while it holds
another, the pair is an edge from class to class, with where each was taken.  Wrong is

    a circle of edges: one order here, another there, whether or not the two can meet;
    two locks of one class, unless the function that takes the second has a rule for their order (NESTED);
    a lock that is taken again by the task that holds it.

The rules about edges are lockdep's.  Who only tries a lock cannot wait for it, so there is no edge to
it; there are edges from it once it is taken.  A semaphore that is held for reading counts as if for
writing: a writer that waits keeps new readers out, so a reader may wait for another.  In addition,
waiting until a page is unlocked counts as taking its lock.

May import: names, engine.
"""
from typing import NamedTuple

from shmkern import layout
from shmkern.explore.names import Names, Source

C = layout.constants
HOW = C["HELD_PAGE"] | C["HELD_READ"] | C["HELD_WRITE"]

# The functions that take a lock for their caller, and those of them that wait for it.
WAITING = {"spin_lock", "spin_lock_slow", "cond_wait", "lock_page", "wait_on_page_bit", "down_read", "down_write",
           "lock_buffer"}
TAKING = WAITING | {"spin_trylock", "trylock_page", "__set_page_locked", "down_read_trylock", "trylock_buffer",
                    "lock_acquired", "page_sleep", "wait_sleep", "wait_on_page_locked", "futex_wait"}

# Where two locks of one class are held at once, and the order that makes it right; as spin_lock_nested
# marks it in Linux.
NESTED = {
    ("Page.ptl", "copy_pte_range"): "the child's first, and nobody else has that yet",
    ("Page.ptl", "move_ptes"): "within mmap_sem for writing, and nobody else takes two of one address space",
    ("PG_locked", "writeout"): "the one held is the new page, which nobody else has yet",
    ("buffer lock", "lock_page_buffers"): "in the ring's order",
    ("buffer lock", "lock_dirty_buffers"): "in the ring's order",
}


class Site(NamedTuple):
    """Where a lock was taken: the line and function that wanted it, and whether it would have waited."""
    line: str
    function: str
    waits: bool

    def __str__(self):
        return f"{self.line} {self.function}"


class Edge(NamedTuple):
    """A lock of the class `taken` was taken while one of `held` was; `same`: that very lock."""
    held: str
    taken: str
    held_at: Site
    taken_at: Site
    same: bool


def class_of(names, lock):
    """A lock's class, in words."""
    if lock & HOW == C["HELD_PAGE"]:
        return "PG_locked"
    place = names.of(lock & ~HOW)
    if (place.struct, place.field) == ("BufferHead", "b_state"):
        return "buffer lock"
    return f"{place.struct}.{place.field.removesuffix('.word')}".replace("[", " ").split(" ")[0]


def site_of(source, pcs):
    """The Site of a lock that was taken at these return addresses, innermost first."""
    waits, function = False, "setting up"
    for line in source.lines([pc for pc in pcs if pc]):
        waits |= line.inline in WAITING or line.function in WAITING
        if not line.line:       # No kernel code: a program called the lock function by name.
            break
        if line.function not in TAKING:
            return Site(str(line), line.function, waits)
        function = line.function
    return Site("the scenario's", function, waits)


class LockOrder:
    """The edges that were seen in this process and those that it was forked for."""

    def __init__(self):
        self.seen = {}          # pairs of Held: their classes
        self.told = set()       # Edges that another process has left
        self._read = 0
        self._source = Source()

    def look(self, engine, count):
        """Notes what the runtime has seen since the last look: it has `count` edges now.  Called
        before the memory is restored, which says what the locks are."""
        if count != self._read:
            self._read = count
            names = Names()
            for held, taken in engine.lock_edges():
                if (held, taken) not in self.seen:
                    self.seen[held, taken] = class_of(names, held.lock), class_of(names, taken.lock)

    def edges(self):
        """All edges, in order."""
        return self._named(self.seen)

    def _named(self, seen):
        """Edges of some of `seen`, and those that were told, in order."""
        self._source.lines(sorted({pc for edge in seen for lock in edge for pc in lock.site if pc}))
        edges = [Edge(*self.seen[held, taken], site_of(self._source, held.site), site_of(self._source, taken.site),
                      held.lock & ~HOW == taken.lock & ~HOW) for held, taken in seen]
        return sorted(self.told | {edge for edge in edges if edge.taken_at.waits})

    def wrong(self):
        """What is wrong with the edges, in words, or None."""
        edges = self._named(self._suspects())
        for edge in edges:
            if edge.same:
                return f"{edge.taken} is taken at {edge.taken_at} by a task that holds it since {edge.held_at}"
            if edge.held == edge.taken and (edge.taken, edge.taken_at.function) not in NESTED:
                return f"a second {edge.taken} is taken at {edge.taken_at}, with one held since {edge.held_at}, and " \
                    "no rule says in which order"
        circle = find_circle([(edge.held, edge.taken, edge) for edge in edges])
        return circle and "locks are taken in a circle: " + "; ".join(
            f"{edge.taken} at {edge.taken_at} with {edge.held} held since {edge.held_at}" for edge in circle)

    def _suspects(self):
        """What of `seen` is of one class, or lies on a circle of classes: only of these the lines are
        looked up, each module of which takes addr2line some 10 ms."""
        after = {}
        for held, taken in {*self.seen.values(), *((edge.held, edge.taken) for edge in self.told)}:
            after.setdefault(held, {})[taken] = None
        round_trips = {(held, taken) for held, taken in self.seen.values()
                       if held == taken or way_back(after, held, {taken: None}) is not None}
        return [pair for pair, classes in self.seen.items() if classes in round_trips]


def find_circle(edges):
    """The things of the (from, to, thing) on the shortest way from a class over others back to it; None
    when there is none."""
    after = {}
    for held, taken, thing in edges:
        if held != taken:
            after.setdefault(held, {}).setdefault(taken, thing)
    circles = (way_back(after, first, after[first]) for first in sorted(after))
    return min(filter(None, circles), key=len, default=None)


def way_back(after, start, first):
    """The things on the shortest way from a class to itself whose first step is one of `first`, or None."""
    ways, seen = [(start, [])], set()
    for at, way in ways:
        for taken, thing in (after.get(at, {}) if way else first).items():
            if taken == start:
                return [*way, thing]
            if taken not in seen:
                seen.add(taken)
                ways.append((taken, [*way, thing]))
    return None
