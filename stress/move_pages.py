# SPDX-License-Identifier: GPL-2.0-only
"""Every task moves every other task's pages, while their owners load and store all over them and
the migrators move them too.  What move_pages says of each page is checked: it is where it was
asked to be, or was busy just then.  Half of the calls have their arrays in the caller's own
memory, which the others move as well."""
import errno

import numpy as np

from shmkern import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, PROT_READ, PROT_WRITE
from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import PAGE, WORKING, Broken, random_accesses

NAME = "move_pages"
PAGES_MAX = 128
TABLES = 8
ACCESSES = 2048
CALLS = 4
PAGES_PER_CALL = 24
# Everybody's memory is at the same addresses, so that everybody knows where the others' is: first
# the pages of addresses, nodes and statuses, then the rest.
ARRAYS, MEMORY = 0x200000000, 0x200003000
# A page may be isolated or in use by somebody else, or be in the air.
BUSY = [-errno.EBUSY, -errno.EAGAIN, -errno.ENOENT]
UNWRITTEN = 12345


def plan(options):
    """Pages of each worker."""
    frames = common.take_frames(options, (8 + TABLES) * options.workers)
    return min(frames // options.workers - TABLES, PAGES_MAX)


def everybody(run):
    """The pids of all workers that have set up their memory."""
    rows = run.board.rows
    return rows["pid"][(rows["state"] == WORKING) & (rows["pid"] != 0)]


def worker(task, run, number, targets=everybody, pardoned=(errno.ENOMEM,)):
    """One worker, that moves the pages of targets(run): tasks with such memory as its own.  `pardoned`
    are the errnos with which a whole call may fail: a node may be full for a moment."""
    rng, shadow, length = run.rng(number), Shadow(), run.plan * PAGE
    for start, size in ((ARRAYS, MEMORY - ARRAYS), (MEMORY, length)):
        task.mmap(size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, start)
        task.store(start, bytes(size))
    memory, stream = [(MEMORY, length)], number << 32
    run.working()
    while not run.board.stopping:
        run.checked(random_accesses(rng, memory, ACCESSES), shadow, run.options.seed + stream)
        stream += 1
        for _call in range(CALLS):
            move_somebodys(task, run, rng, targets(run), pardoned)
    run.check_ranges(memory, shadow)
    run.park()


def move_somebodys(task, run, rng, pids, pardoned):
    """Moves some pages of some worker, perhaps this one's own; or asks where they are."""
    if not len(pids):
        return
    pid, total = int(rng.choice(pids)), MEMORY - ARRAYS + run.plan * PAGE
    places = ARRAYS + rng.choice(total // PAGE, min(PAGES_PER_CALL, total // PAGE), replace=False) * PAGE
    pages = (places + rng.integers(PAGE, size=len(places))).astype(np.uint64)
    asking = rng.random() < 0.2
    nodes = None if asking else rng.integers(run.options.nodes, size=len(pages)).astype(np.int32)
    flags = int(rng.choice([0, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL]))
    call = with_own_arrays if rng.random() < 0.5 else task_move_pages
    try:
        statuses = call(task, pid, pages, nodes, flags)
    except OSError as error:
        # It may have ended.
        if error.errno in pardoned or (run.board.stopping and error.errno in (errno.ESRCH, errno.EINVAL)):
            return
        raise
    expected = np.arange(run.options.nodes) if asking else nodes
    for index, status in enumerate(statuses):
        good = status in expected if asking else status == expected[index]
        if not good and status not in BUSY:
            asked = "where it is" if asking else f"for node {expected[index]}"
            raise Broken("status", f"move_pages of task {pid}, asked {asked}, says {status}", int(pages[index]) & -PAGE)


def task_move_pages(task, pid, pages, nodes, flags):
    """The call on arrays of this process."""
    return task.move_pages(pid, pages, nodes, flags)


def with_own_arrays(task, pid, pages, nodes, flags):
    """The call on arrays in the task's memory."""
    nodes_at, status_at = ARRAYS + PAGE, ARRAYS + 2 * PAGE
    task.store(ARRAYS, pages.tobytes())
    if nodes is not None:
        task.store(nodes_at, nodes.tobytes())
    task.store(status_at, np.full(len(pages) + 1, UNWRITTEN, np.int32).tobytes())
    task.sys_move_pages(pid, len(pages), ARRAYS, 0 if nodes is None else nodes_at, status_at, flags)
    statuses = np.frombuffer(task.load(status_at, 4 * len(pages) + 4), np.int32).tolist()
    if statuses.pop() != UNWRITTEN:
        raise Broken("status", "move_pages wrote behind the array of statuses", status_at)
    return statuses


if __name__ == "__main__":
    common.script(NAME)
