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

With each edge is kept a schedule that shows it.  Which one depends on nothing but the exploration: that with
the fewest preemptions, and of these the first, by round, unit and run.

May import: names, engine.
"""
from typing import NamedTuple

from shmkern import layout
from shmkern.explore.engine import RUN_ON, Held, Segment
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

    def __str__(self):
        return f"{self.taken} at {self.taken_at} with {self.held} held since {self.held_at}"


class Pair(NamedTuple):
    """Two locks of these classes, as the runtime saw them: an Edge, but for the lines."""
    held: str
    taken: str
    held_lock: Held
    taken_lock: Held


class Sight(NamedTuple):
    """A schedule that shows an edge, which ends with taking the lock; `when` is its round, unit and run."""
    preemptions: int
    when: tuple
    segments: list


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
    """The edges that were seen, each as its best Sight: by Pair, or by Edge where another process has
    seen them."""

    def __init__(self, engine):
        self.seen = {}
        self._engine = engine
        self._pairs = {}
        self._read = 0
        self._source = Source()

    def forget(self):
        """From here on every edge is new again to look()."""
        self._engine.forget_edges()
        self._read = 0

    def look(self, count):
        """(Pair, LockEdge) of each edge that is new since the last look: there are `count` now.  Called
        before the memory is restored, which says what the locks are."""
        if count == self._read:
            return []
        found, names = self._engine.lock_edges(self._read), None
        self._read = count
        for edge in found:
            if edge[:2] not in self._pairs:
                names = names or Names()
                self._pairs[edge[:2]] = Pair(class_of(names, edge.held.lock), class_of(names, edge.taken.lock), *edge[:2])
        return [(self._pairs[edge[:2]], edge) for edge in found]

    def shown(self):
        """{Edge: LockEdge} of the last run, which was the only one since forget()."""
        found = {}
        for pair, edge in self.look(self._engine.statistics().edges):
            for named in self._named({pair: None}):
                found.setdefault(named, edge)
        return found

    def add(self, sights):
        """Learns Sights, by Pair or Edge."""
        keep_best(self.seen, sights.items())

    def edges(self):
        """The Sights of all edges."""
        return self._named(self.seen)

    def _named(self, seen):
        """Sights by Pair or Edge, by Edge; without those that did not wait."""
        pairs = [key for key in seen if isinstance(key, Pair)]
        self._source.lines(sorted({pc for pair in pairs for lock in pair[2:] for pc in lock.site if pc}))
        return keep_best({}, ((edge, sight) for edge, sight in ((self._edge(key), sight) for key, sight in seen.items())
                              if edge.taken_at.waits))

    def _edge(self, key):
        if isinstance(key, Edge):
            return key
        return Edge(key.held, key.taken, site_of(self._source, key.held_lock.site), site_of(self._source, key.taken_lock.site),
                    key.held_lock.lock & ~HOW == key.taken_lock.lock & ~HOW)

    def wrong(self):
        """Sights of edges that are wrong together: none if all are right."""
        edges = self._named(self._suspects())
        circle = next(([edge] for edge in sorted(edges) if is_wrong(edge)), None) or find_circle(
            [(edge.held, edge.taken, edge) for edge in sorted(edges)]) or []
        return {edge: edges[edge] for edge in circle}

    def _suspects(self):
        """What of `seen` is of one class, or lies on a circle of classes: only of these the lines are
        looked up, each module of which takes addr2line some 10 ms."""
        after = {}
        for key in self.seen:
            after.setdefault(key.held, {})[key.taken] = None
        round_trips = {(key.held, key.taken) for key in self.seen
                       if key.held == key.taken or way_back(after, key.held, {key.taken: None}) is not None}
        return {key: sight for key, sight in self.seen.items() if (key.held, key.taken) in round_trips}


def keep_best(seen, sights):
    """Enters (key, Sight) pairs where there is none for the key, or a worse one.  Returns `seen`."""
    for key, sight in sights:
        if key not in seen or sight < seen[key]:
            seen[key] = sight
    return seen


def way_to(done, edge):
    """The schedule that shows a LockEdge, from what its run did."""
    return [*done[:edge.done], Segment(edge.task, RUN_ON)]


def is_wrong(edge):
    """Whether an edge is wrong by itself."""
    return edge.same or (edge.held == edge.taken and (edge.taken, edge.taken_at.function) not in NESTED)


def wrong_text(edges):
    """What is wrong with edges, in words."""
    first = edges[0]
    if first.same:
        return f"{first.taken} is taken at {first.taken_at} by a task that holds it since {first.held_at}"
    if len(edges) == 1:
        return f"a second {first.taken} is taken at {first.taken_at}, with one held since {first.held_at}, and " \
            "no rule says in which order"
    return "locks are taken in a circle: " + "; ".join(map(str, edges))


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
