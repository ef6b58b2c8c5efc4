# SPDX-License-Identifier: GPL-2.0-only
"""Promises of shmkern.bulk: words in bulk are what they are one by one."""
import errno
import random

import numpy as np
import pytest

from shmkern import SegmentationFault, bulk, vmstat

pytestmark = pytest.mark.timeout(60)
PAGE = 4096


def in_task(machine, program, *args):
    """What program(task) returns, run as a task."""
    return machine.spawn(program, *args).result(timeout=30)


def test_bulk_words_are_what_they_are_one_by_one(machine):
    def program(task):
        one, many = task.mmap(2 * PAGE), task.mmap(2 * PAGE)
        rng = random.Random(2)
        offsets = [rng.randrange(32) * 8 + PAGE - 128 for _ in range(500)]
        values = [rng.randrange(1 << 64) for _ in range(500)]
        where = many + np.array(offsets, np.uint64)
        bulk.store64_many(where, np.array(values, np.uint64))
        for offset, value in zip(offsets, values):
            task.store64(one + offset, value)
        before = bulk.fetch_add64_many(where, np.array(values[::-1], np.uint64))
        assert before.tolist() == [task.fetch_add64(one + offset, value)
                                   for offset, value in zip(offsets, values[::-1])]
        before = bulk.cmpxchg_add64_many(where, 3)
        assert before.tolist() == [task.fetch_add64(one + offset, 3) for offset in offsets]
        old = [task.load64(one + offset) ^ (number & 1) for number, offset in enumerate(offsets)]
        seen = bulk.cmpxchg64_many(where, np.array(old, np.uint64), np.array(values, np.uint64))
        assert seen.tolist() == [task.cmpxchg64(one + offset, was, value)
                                 for offset, was, value in zip(offsets, old, values)]
        assert bulk.load64_many(where).tolist() == [task.load64(one + offset) for offset in offsets]
        assert task.load(one, 2 * PAGE) == task.load(many, 2 * PAGE)
    in_task(machine, program)


def test_bulk_takes_lists_numbers_and_negative_deltas(machine):
    def program(task):
        start = task.mmap(2 * PAGE)
        assert bulk.fetch_add64_many(start, [1, -1, 5, -6]).tolist() == [0, 1, 0, 5]
        assert bulk.load64_many([start, start + 8]).tolist() == [2 ** 64 - 1, 0]
        assert bulk.load64_many(start).tolist() == 2 ** 64 - 1
        assert bulk.load64_many([]).tolist() == []
        # Off a multiple of 8, across a page boundary.
        bulk.store64_many(start + PAGE - 3, 0x0102030405060708)
        assert bulk.load64_many([start + PAGE - 3]).tolist() == [0x0102030405060708]
        assert task.load(start + PAGE - 3, 8) == bytes(range(8, 0, -1))
    in_task(machine, program)


def test_bulk_raises_what_single_words_raise(machine):
    def program(task):
        start = task.mmap(PAGE)
        with pytest.raises(SegmentationFault) as fault:
            bulk.store64_many([start, start + PAGE, start + 8], [1, 2, 3])
        assert (fault.value.address, fault.value.access) == (start + PAGE, "store")
        # What came before it is done, what came after is not.
        assert bulk.load64_many([start, start + 8]).tolist() == [1, 0]
        with pytest.raises(SegmentationFault) as fault:
            bulk.load64_many([start, 16])
        assert (fault.value.address, fault.value.access) == (16, "load")
        task.mprotect(start, PAGE, 1)
        for change in (lambda: bulk.fetch_add64_many(start, 1), lambda: bulk.cmpxchg64_many(start, 1, 2),
                       lambda: bulk.cmpxchg_add64_many(start, 1)):
            with pytest.raises(SegmentationFault):
                change()
        for change in (lambda: bulk.fetch_add64_many(start + 4, 1), lambda: bulk.cmpxchg64_many(start + 4, 1, 2)):
            with pytest.raises(OSError) as error:
                change()
            assert error.value.errno == errno.EINVAL
        with pytest.raises(ValueError):
            bulk.store64_many([start, start + 8], [1, 2, 3])
        assert bulk.load64_many(start).tolist() == 1
    in_task(machine, program)


def test_shared_counters_are_exact_while_their_page_moves(machine):
    """Three tasks of one address space, all on the same words, until their page has moved a lot."""
    def member(task, start, add):
        rounds = 0
        while rounds < 50 or vmstat.vmstat()["pgmigrate_success"] < 100:
            add(start + 8 * (np.arange(500, dtype=np.uint64) % np.uint64(4)), 1)
            rounds += 1
        return rounds

    def program(task):
        start = task.mmap(PAGE)
        bulk.store64_many(start, 0)
        others = [task.clone(member, start, add) for add in (bulk.fetch_add64_many, bulk.cmpxchg_add64_many)]
        rounds = member(task, start, bulk.cmpxchg_add64_many) + sum(other.result(timeout=30) for other in others)
        assert bulk.load64_many(start + 8 * np.arange(4, dtype=np.uint64)).tolist() == [rounds * 125] * 4

    migrator = machine.start_migrator()
    in_task(machine, program)
    migrator.stop(20)


def test_a_task_has_the_bulk_versions(machine):
    def program(task):
        where = task.mmap(4096) + 8 * np.arange(3, dtype=np.uint64)
        task.store64_many(where, [10, 20, 30])
        added = task.fetch_add64_many(where, 5).tolist()
        seen = task.cmpxchg64_many(where, [15, 0, 35], 1).tolist()
        return added, seen, task.load64_many(where).tolist()
    assert machine.spawn(program).result(10) == ([10, 20, 30], [15, 25, 35], [1, 25, 1])
