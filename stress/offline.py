# SPDX-License-Identifier: GPL-2.0-only
"""Nodes are emptied and brought back, again and again, while every worker loads and stores all
over its memory, changes its policies, and the migrators move pages.  The first node stays: it
has the page tables, and room for everything."""
import errno
import time

import numpy as np

from shmkern import MPOL_BIND, MPOL_DEFAULT, MPOL_INTERLEAVE, MPOL_MF_MOVE, MPOL_PREFERRED, vmstat
from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import PAGE, Broken, random_accesses

NAME = "offline"
PAGES_MAX = 128
TABLES = 6
ACCESSES = 2048
ROUNDS = 4
# How long a node may take to be emptied; how long it stays away, and then is there to be filled.
EMPTY_SECONDS, AWAY_SECONDS, BACK_SECONDS = 5.0, 0.05, 0.15
MODES = [MPOL_DEFAULT, MPOL_PREFERRED, MPOL_INTERLEAVE, MPOL_BIND]


def plan(options):
    """Pages of each worker: the first node must hold them all."""
    frames = common.take_frames(options, (8 + TABLES) * options.workers)
    return min(frames * 2 // options.nodes // options.workers - TABLES, PAGES_MAX)


def machine_options(options):
    """All nodes but the first can be emptied."""
    return {"movable": range(1, options.nodes)}


def worker(task, run, number):
    """The first worker takes nodes away; the others work."""
    if number == 0:
        operate(task, run)
        return
    rng, shadow, length = run.rng(number), Shadow(), run.plan * PAGE
    memory, stream = [(task.mmap(length), length)], number << 32
    run.working()
    while not run.board.stopping:
        change_policy(task, run, rng, memory[0][0])
        records = random_accesses(rng, memory, ACCESSES)
        for _round in range(ROUNDS):
            run.checked(records, shadow, run.options.seed + stream)
            stream += 1
    run.check_ranges(memory, shadow)
    run.park()


def change_policy(task, run, rng, va):
    """Another policy for some pages, which may move them.  Node 0 is always among the nodes that
    memory is bound to: the rest may be taken away."""
    first, last = sorted(rng.integers(run.plan + 1, size=2).tolist())
    mode = int(rng.choice(MODES))
    nodes = set() if mode == MPOL_DEFAULT else {0, *rng.integers(run.options.nodes, size=2).tolist()}
    try:
        task.mbind(va + first * PAGE, (last - first) * PAGE, mode, nodes, int(rng.choice([0, MPOL_MF_MOVE])))
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise


def operate(task, run):
    """Takes one node after another away, and brings it back."""
    rng, emptied, refused = run.rng(0), 0, 0
    run.working()
    while not run.board.stopping:
        node = int(rng.integers(1, run.options.nodes))
        try:
            task.offline_node(node, EMPTY_SECONDS)
        except OSError as error:
            # A page that somebody held all the time, or no room for a moment.
            if error.errno not in (errno.EBUSY, errno.ENOMEM):
                raise
            refused += 1
            run.row["refused"] = refused
            continue
        emptied += 1
        check_empty(run, node)
        time.sleep(AWAY_SECONDS)
        check_empty(run, node)
        task.online_node(node)
        run.row["passes"] = emptied
        time.sleep(BACK_SECONDS)
    if refused > 3 and not emptied:
        raise Broken("offline", f"no node could be emptied in {refused} attempts")
    run.park()


def check_empty(run, node):
    """Nothing may be on a node that is offline."""
    zone = vmstat.zones()[node]
    left = {name: int(count) for name, count in zip(vmstat.ZONE_ITEMS, np.array(zone["vm_stat"])) if count > 0}
    if zone["present_pages"] or zone["vm_stat"][vmstat.C["NR_FREE_PAGES"]]:
        raise Broken("offline", f"node {node} is offline and has memory: {left}")


if __name__ == "__main__":
    common.script(NAME)
