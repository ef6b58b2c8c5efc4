# SPDX-License-Identifier: GPL-2.0-only
"""Teams of workers whose memory is charged to control groups: a group for each team, and some
below it.  A worker wanders from group to group, its team's and others', and does to its memory
what `fork` does; it forks as well, and it has a file, mapped shared.  Beyond a limit pages of the
group go to their files or to swap, which is too small for all; when none can go a store fails, and
then the worker gives memory back.
Each team's leader closes a group, waits until nobody is in it, empties and removes it and opens
a new one with another limit, while the pages charged to it are in use and in the air."""
import errno
import mmap
import os
import tempfile

import numpy as np

from shmkern import MAP_SHARED, MS_SYNC, PROT_READ, PROT_WRITE
from shmkern_stress import common, swap
from shmkern_stress.board import PAGE, Broken
from shmkern_stress.fork import AREAS_MAX, HEIRLOOM_PAGES, PAGES_MAX, TABLES, Space

NAME = "memcg"
TEAM, GROUPS = 8, 4
FORK_CHANCE, WANDER_CHANCE, LEAD_CHANCE = 0.03, 0.2, 0.3
CHILD_STEPS = 6
FILE_PAGES, FILE_ACCESSES, SYNC_CHANCE = 4, 8, 0.05
# One slot of swap for so many frames.
FRAMES_PER_SLOT = 512
ROOT_GROUP = 1
OPEN, CLOSED = 1, 0


class Plan:
    """Pages of a worker, if it shared none, and its file of the host; and for each team the ids of its
    own group and of those below it, and which of these take workers in."""

    def __init__(self, pages, workers):
        self.pages, self.teams = pages, -(-workers // TEAM)
        self.files = [tempfile.TemporaryFile() for _ in range(workers)]
        for file in self.files:
            file.truncate(FILE_PAGES * PAGE)
        self._memory = mmap.mmap(-1, 4 * self.teams * (1 + 2 * GROUPS))
        table = np.frombuffer(self._memory, np.int32).reshape(self.teams, 1 + 2 * GROUPS)
        self.parent, self.ids, self.open = table[:, 0], table[:, 1:1 + GROUPS], table[:, 1 + GROUPS:]

    @property
    def team_limit(self):
        """Pages that a team may have: less than it would like to."""
        return TEAM * self.pages // 2


def machine_options(options):
    """It has memory control groups."""
    return {"memcg": True}


def prepare(machine, options):
    """The swap area."""
    swap.swapon(machine, options.frames // FRAMES_PER_SLOT)


def plan(options):
    """The teams."""
    frames = common.take_frames(options, (AREAS_MAX + HEIRLOOM_PAGES + TABLES + FILE_PAGES) * 2 * options.workers)
    pages = min(frames // (2 * options.workers) - HEIRLOOM_PAGES - TABLES - FILE_PAGES, PAGES_MAX)
    return Plan(pages, options.workers)


def worker(task, run, number, kind=None):
    """One worker; the first of a team leads it.  `kind` is what its address space is, a Member by
    default."""
    team, seat = divmod(number, TEAM)
    if seat == 0:
        found_team(task, run, team)
    run.wait_until(lambda: run.plan.open.any(axis=1).all())
    member = (kind or Member)(task, run, (number,), run.plan.pages)
    member.make_heirloom()
    run.working()
    born = 0
    while not run.board.stopping:
        if seat == 0 and member.rng.random() < LEAD_CHANCE:
            lead(member, team)
        member.step()
        if member.rng.random() < FORK_CHANCE:
            born += 1
            fork(member, born)
    member.check()
    if seat == 0:
        check_limit(member, team)
    run.park()


def found_team(task, run, team):
    """Makes the groups of a team."""
    run.plan.parent[team] = task.cgroup_create(f"team{team}", run.plan.team_limit * PAGE)
    for slot in range(GROUPS):
        new_group(task, run, run.rng(1 << 20, team, slot), team, slot)


def new_group(task, run, rng, team, slot):
    """Makes one of the groups below a team's, and opens it."""
    limit = int(rng.integers(run.plan.team_limit // GROUPS, run.plan.team_limit)) * PAGE
    run.plan.ids[team, slot] = task.cgroup_create(f"group{slot}", limit, int(run.plan.parent[team]))
    run.plan.open[team, slot] = OPEN


def lead(member, team):
    """One step of a team's leader."""
    run, rng, task = member.run, member.rng, member.task
    slot, closed = int(rng.integers(GROUPS)), np.flatnonzero(run.plan.open[team] == CLOSED)
    if not len(closed):
        run.plan.open[team, slot] = CLOSED
        return
    slot = int(closed[0])
    group = int(run.plan.ids[team, slot])
    try:
        task.cgroup_force_empty(group)
        if rng.random() < 0.5:
            task.cgroup_remove(group)
            new_group(task, run, rng, team, slot)
    except OSError as error:
        # Somebody is in it, or a page of it is being moved.
        if error.errno not in (errno.EBUSY, errno.ENOMEM):
            raise
    check_limit(member, team)


def check_limit(member, team):
    """A team never had more than its limit."""
    stat = member.task.cgroup_stat(int(member.run.plan.parent[team]))
    if stat["max_usage"] > stat["limit"]:
        raise Broken("limit", f"team {team} was charged {stat['max_usage']} bytes, of {stat['limit']}")


def fork(member, born):
    """A child that goes on with a copy for a while, and is waited for."""
    run = member.run
    try:
        child = member.task.fork(common.entering(run, descendant), member, (*member.key, born))
    except OSError:
        run.row["refused"] += 1
        return
    run.row["forks"] += 1
    child.result()


def descendant(task, run, parent, key):
    """What a forked child does."""
    child = type(parent)(task, run, key, run.plan.pages, parent)
    run.working()
    for _step in range(CHILD_STEPS):
        child.step()
    child.check()


class SharedFile:
    """A worker's file, mapped shared, with a number in each page; `numbers` is what they must be."""

    def __init__(self, task, host):
        self.task, self.host = task, host
        fd = task.open(f"/proc/self/fd/{host.fileno()}", os.O_RDWR)
        self.start = task.mmap(FILE_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=fd)
        self.numbers = [0] * FILE_PAGES

    def step(self, rng):
        """Stores to some pages and loads others; now and then the host must have it all.  Says whether
        it was refused memory."""
        try:
            for page in rng.integers(FILE_PAGES, size=FILE_ACCESSES).tolist():
                if rng.random() < 0.5:
                    self.check([page])
                    continue
                number = int(rng.integers(1, 1 << 62))
                self.task.store64(self.start + page * PAGE, number)
                self.numbers[page] = number
            if rng.random() < SYNC_CHANCE:
                self.sync()
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            return True
        return False

    def check(self, pages):
        """Loads what is in pages.  Raises Broken."""
        for page in pages:
            self.compare(page, self.task.load64(self.start + page * PAGE), "memory")

    def sync(self):
        """Writes it back, and compares what the host has.  Raises Broken."""
        self.task.msync(self.start, FILE_PAGES * PAGE, MS_SYNC)
        for page in range(FILE_PAGES):
            self.compare(page, int.from_bytes(os.pread(self.host.fileno(), 8, page * PAGE), "little"), "the host's file")

    def compare(self, page, found, where):
        """Raises Broken when a number is not what it must be."""
        if found != self.numbers[page]:
            raise Broken("lost write", f"page {page} of a file in {where}: expected {self.numbers[page]:#x}, "
                                       f"found {found:#x}")


class Member(Space):
    """An address space that wanders from group to group; `group` is the one it is in."""

    def __init__(self, task, run, key, pages_max, parent=None):
        super().__init__(task, run, key, pages_max, parent)
        self.group = parent.group if parent else None
        self.file = None if parent else SharedFile(task, run.plan.files[key[0]])

    def step(self):
        if self.rng.random() < WANDER_CHANCE or not self.is_welcome():
            self.wander()
        if self.file:
            self.run.row["refused"] += self.file.step(self.rng)
        super().step()

    def check(self):
        """In the root group: elsewhere a limit may not let pages come back from swap."""
        self.task.cgroup_attach(ROOT_GROUP)
        super().check()
        if self.file:
            self.file.check(range(FILE_PAGES))
            self.file.sync()

    def is_welcome(self):
        """Whether the group it is in is open."""
        return self.group is not None and self.run.plan.open[self.group] == OPEN

    def wander(self):
        """Goes to some open group, if there is one left when it comes."""
        open_groups = np.argwhere(self.run.plan.open == OPEN)
        if not len(open_groups):
            return
        team, slot = open_groups[int(self.rng.integers(len(open_groups)))].tolist()
        try:
            self.task.cgroup_attach(int(self.run.plan.ids[team, slot]))
            self.group = team, slot
        except OSError as error:
            # It was removed meanwhile.
            if error.errno != errno.ENOENT:
                raise


if __name__ == "__main__":
    common.script(NAME)
