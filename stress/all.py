# SPDX-License-Identifier: GPL-2.0-only
"""Everything at once, on one machine and under one set of migrators: workers of all other scenarios but
`trace`, each of whom does and checks what it does there.  The machine has memory control groups, a swap
area, and less memory than the workers own; its nodes go offline and come back; files are written
back and truncated; and who moves other tasks' pages empties nodes of whole tasks as well, of any
kind."""
import collections
import copy
import errno
import mmap

import numpy as np

from shmkern_stress import anon, buffers, common, file, fork, memcg, move_pages, offline, swap, threads

NAME = "all"
# What workers are, dealt out again and again; so the first eight have everything among them.
DEAL = ["offline", "threads", "threads", "fork", "file", "swap", "memcg", "move_pages",
        "buffers", "anon", "fork", "offline"]
# Those whose workers need not know that they are not alone.
PLAIN = {"anon": anon, "threads": threads, "file": file, "swap": swap, "offline": offline}
WORKERS_MIN = 8
FRAMES_PER_WORKER, FRAMES_MIN = 256, 4096
# Of each node, besides, and of each node for each worker: of small nodes little is left besides what cannot be
# reclaimed at the moment, such as the pages that each task and each kswapd has in its pagevecs.
NODE_FRAMES, NODE_FRAMES_PER_WORKER = 160, 8
# Frames that a worker takes at least, with its page tables: one of `threads` has most.
NEED = 80
PAGES_MAX = 64
# Of all frames, what the workers of `swap` own together; what the others have comes on top.
SWAP_PERCENT = 80
MIGRATE_CHANCE = 0.1
# What a task is told who asks for a node that is offline; or for one that has just come back, when
# the task's cpuset does not have it yet.
NOT_THERE = (errno.ENODEV, errno.EACCES)
# With which moving other tasks' pages may fail besides: a node is full, the task has ended.
PARDONED = (*NOT_THERE, errno.ENOMEM, errno.ESRCH, errno.EINVAL)


def deal(workers):
    """How many workers there are of each kind."""
    return collections.Counter(DEAL[seat % len(DEAL)] for seat in range(workers))


def seats(workers):
    """(kind, number within the kind) of each task that the supervisor starts."""
    count = deal(workers)
    starts = {**count, "threads": len(threads.groups_of(count["threads"])), "fork": fork.trees(count["fork"])}
    return [(kind, number) for kind in starts for number in range(starts[kind])]


class Plan:
    """The other scenarios' plans, and the pids of those whose pages the workers of `move_pages` know."""

    def __init__(self, options, pages):
        count = deal(options.workers)
        swapped = options.frames * SWAP_PERCENT // 100 // count["swap"]
        files = file.Plan(count["file"] + count["buffers"], pages)
        self.plans = {"anon": pages, "threads": threads.Plan(count["threads"]), "fork": pages, "file": files,
                      "buffers": files, "swap": swapped, "memcg": memcg.Plan(pages, count["memcg"]),
                      "move_pages": pages, "offline": pages}
        self.seats = seats(options.workers)
        self.first_of_buffers = count["file"]
        self._memory = mmap.mmap(-1, 4 * count["move_pages"])
        self.movers = np.frombuffer(self._memory, np.int32)


def plan(options):
    """Room for everybody but `swap`, who takes more than there is."""
    if options.workers < WORKERS_MIN:
        raise common.UsageError(f"all needs {WORKERS_MIN} workers at least, one or two of each kind")
    if options.frames is None:
        options.frames = max(FRAMES_MIN, options.workers * FRAMES_PER_WORKER,
                             options.nodes * (NODE_FRAMES + options.workers * NODE_FRAMES_PER_WORKER))
        options.frames += -options.frames % options.nodes
    # A private copy of each page of a file; copy-on-write in a tree and in a group.
    frames = common.take_frames(options, NEED * options.workers)
    return Plan(options, min(frames // options.workers // 2 - fork.HEIRLOOM_PAGES - fork.TABLES, PAGES_MAX))


def roots(options):
    """Whom the supervisor starts."""
    return len(seats(options.workers))


def machine_options(options):
    """As those of `memcg` and `offline` together."""
    return {**memcg.machine_options(options), **offline.machine_options(options)}


prepare = swap.prepare


def worker(task, run, number):
    """One worker."""
    kind, number = run.plan.seats[number]
    part = copy.copy(run)
    part.plan = run.plan.plans[kind]
    if kind == "fork":
        grow_tree(task, part, number)
    elif kind == "memcg":
        memcg.worker(task, part, number, Charged)
    elif kind == "move_pages":
        move(task, part, number, run.plan.movers)
    elif kind == "buffers":
        buffers.worker(task, part, run.plan.first_of_buffers + number)
    else:
        PLAIN[kind].worker(task, part, number)


def grow_tree(task, run, number):
    """A tree of forks, which may grow until there are as many tasks as workers were asked for."""
    run.options = copy.copy(run.options)
    # Its own count knows of the migrators, but not of the kswapds.
    run.options.workers += run.options.nodes
    fork.worker(task, run, number, Roamer)


class NodesComeAndGo:
    """A Space that may ask for a node that is offline."""

    def relocate(self):
        try:
            super().relocate()
        except OSError as error:
            if error.errno not in NOT_THERE:
                raise


class Roamer(NodesComeAndGo, fork.Space):
    """An address space of a tree."""


class Charged(NodesComeAndGo, memcg.Member):
    """An address space that wanders from group to group."""


def move(task, run, number, movers):
    """A worker of `move_pages`, that now and then also moves a whole task from node to node."""
    movers[number] = task.pid
    rng = run.rng(number, 1)

    def targets(run):
        everybody = move_pages.everybody(run)
        if len(everybody) and rng.random() < MIGRATE_CHANCE:
            migrate_somebody(task, run, rng, int(rng.choice(everybody)))
        return everybody[np.isin(everybody, movers)]
    move_pages.worker(task, run, number, targets, PARDONED)


def migrate_somebody(task, run, rng, pid):
    """migrate_pages(2) of a task of any kind."""
    nodes = rng.permutation(run.options.nodes)[:2].tolist()
    try:
        task.migrate_pages(pid, nodes[:1], nodes[1:])
    except OSError as error:
        if error.errno not in PARDONED:
            raise


if __name__ == "__main__":
    common.script(NAME)
