# SPDX-License-Identifier: GPL-2.0-only
"""Each worker owns memory and loads and stores all over it; all together own twice as much as
there are frames, so pages go to a file of the host and come back, while a migrator moves those
that are in."""
import os
import tempfile

from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import PAGE, random_accesses

NAME = "swap"
FRAMES_PER_WORKER = 128
FRAMES_MIN = 2048
# Frames for the page tables of one worker.
TABLES = 6
# What reclaim, the migrators and the watermarks need to work in.
SPARE = 512
ACCESSES = 512
ROUNDS = 4


def plan(options):
    """Pages of each worker: together twice the frames."""
    if options.frames is None:
        options.frames = max(FRAMES_MIN, options.workers * FRAMES_PER_WORKER)
        options.frames += -options.frames % options.nodes
    least = options.workers * TABLES * 2 + options.nodes * SPARE
    if options.frames < least:
        raise common.UsageError(f"{options.frames} frames are too few for {options.workers} workers on "
                                f"{options.nodes} nodes; {least} will do")
    return 2 * options.frames // options.workers


def prepare(machine, options):
    """The swap area: a file that nobody else sees, gone when init is."""
    file, path = tempfile.mkstemp(prefix="shmkern-swap-")
    os.close(file)
    try:
        machine.swapon(path, 3 * options.frames)
    finally:
        os.unlink(path)


def worker(task, run, number):
    """One worker."""
    rng, shadow, length = run.rng(number), Shadow(), run.plan * PAGE
    memory = [(task.mmap(length), length)]
    stream = number << 32
    run.working()
    while not run.board.stopping:
        records = random_accesses(rng, memory, ACCESSES)
        for _round in range(ROUNDS):
            # The same addresses, other bytes.
            run.checked(records, shadow, run.options.seed + stream)
            stream += 1
    run.check_ranges(memory, shadow)
    run.park()


if __name__ == "__main__":
    common.script(NAME)
