# SPDX-License-Identifier: GPL-2.0-only
"""Each worker owns memory, private and shared, and loads and stores all over it; all together own twice
as much as there are frames, so pages go to a file of the host and come back, while a migrator moves those
that are in."""
import os
import tempfile

from shmkern import MAP_PRIVATE, MAP_SHARED
from shmkern_stress import common
from shmkern_stress.anon import load_and_store

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
    """The swap area, with room for all."""
    swapon(machine, 3 * options.frames)


def swapon(machine, slots):
    """Gives a machine a swap area: a file that nobody else sees, gone when init is."""
    file, path = tempfile.mkstemp(prefix="shmkern-swap-")
    os.close(file)
    try:
        machine.swapon(path, slots)
    finally:
        os.unlink(path)


def worker(task, run, number):
    """One worker: as of anon, but it looks up more often to see whether the run is over, and half of its
    memory is of the shared kind."""
    load_and_store(task, run, number, ACCESSES, ROUNDS, (MAP_PRIVATE, MAP_SHARED))


if __name__ == "__main__":
    common.script(NAME)
