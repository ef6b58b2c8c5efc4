# SPDX-License-Identifier: GPL-2.0-only
"""Each worker owns memory and loads and stores all over it; the migrator bounces all of it
between nodes."""
from shmkern import MAP_ANONYMOUS, MAP_PRIVATE
from shmkern.replay import Shadow
from shmkern_stress import common
from shmkern_stress.board import PAGE, random_accesses

NAME = "anon"
PAGES_MIN, PAGES_MAX = 4, 256
# Frames for the page tables of one worker.
TABLES = 6
ACCESSES = 4096
ROUNDS = 8


def plan(options):
    """Pages of each worker: together about a third of all frames, so that one node can hold
    them and the migrator has where to go."""
    frames = common.take_frames(options, (PAGES_MIN + TABLES) * options.workers)
    return min(frames // options.workers - TABLES, PAGES_MAX)


def worker(task, run, number):
    """One worker."""
    load_and_store(task, run, number, ACCESSES, ROUNDS)


def load_and_store(task, run, number, accesses, rounds, kinds=(MAP_PRIVATE,)):
    """Maps run.plan pages, in equal parts of these kinds, and loads and stores all over them until the
    run is over: so many accesses to random addresses, each so many times with other bytes."""
    rng, shadow, length = run.rng(number), Shadow(), run.plan // len(kinds) * PAGE
    memory = [(task.mmap(length, flags=kind | MAP_ANONYMOUS), length) for kind in kinds]
    stream = number << 32
    run.working()
    while not run.board.stopping:
        records = random_accesses(rng, memory, accesses)
        for _round in range(rounds):
            run.checked(records, shadow, run.options.seed + stream)
            stream += 1
    run.check_ranges(memory, shadow)
    run.park()


if __name__ == "__main__":
    common.script(NAME)
