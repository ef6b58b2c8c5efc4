# SPDX-License-Identifier: GPL-2.0-only
"""Teams of workers whose memory is charged to control groups: a group for each team, and some
below it.  A worker wanders from group to group, its team's and others', and does to its memory
what `fork` does; it forks as well.  A store beyond a limit fails, and then it gives memory back.
Each team's leader closes a group, waits until nobody is in it, empties and removes it and opens
a new one with another limit, while the pages charged to it are in use and in the air."""
import errno
import mmap

import numpy as np

from shmkern_stress import common
from shmkern_stress.board import PAGE, Broken
from shmkern_stress.fork import AREAS_MAX, HEIRLOOM_PAGES, PAGES_MAX, TABLES, Space

NAME = "memcg"
TEAM, GROUPS = 8, 4
FORK_CHANCE, WANDER_CHANCE, LEAD_CHANCE = 0.03, 0.2, 0.3
CHILD_STEPS = 6
OPEN, CLOSED = 1, 0


class Plan:
    """Pages of a worker, if it shared none; and for each team the ids of its own group and of
    those below it, and which of these take workers in."""

    def __init__(self, pages, workers):
        self.pages, self.teams = pages, -(-workers // TEAM)
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


def plan(options):
    """The teams."""
    frames = common.take_frames(options, (AREAS_MAX + HEIRLOOM_PAGES + TABLES) * 2 * options.workers)
    pages = min(frames // (2 * options.workers) - HEIRLOOM_PAGES - TABLES, PAGES_MAX)
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
        child = member.task.fork(common.enter, run, descendant, member, (*member.key, born))
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


class Member(Space):
    """An address space that wanders from group to group; `group` is the one it is in."""

    def __init__(self, task, run, key, pages_max, parent=None):
        super().__init__(task, run, key, pages_max, parent)
        self.group = parent.group if parent else None

    def step(self):
        if self.rng.random() < WANDER_CHANCE or not self.is_welcome():
            self.wander()
        super().step()

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
