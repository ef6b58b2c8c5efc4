# SPDX-License-Identifier: GPL-2.0-only
"""Promises of shmkern.replay: streams of accesses are done in order and checked, the shadow is
what memory must hold."""
import errno
import random

import numpy as np
import pytest

from shmkern import replay
from shmkern.replay import ACCESS, LOAD, MISMATCH, MODIFY, STORE, Shadow

pytestmark = pytest.mark.timeout(60)
PAGE = 4096
MAP_FIXED_ANON = 0x32


def records(*accesses):
    """Accesses as an array."""
    made = np.zeros(len(accesses), ACCESS)
    for index, access in enumerate(accesses):
        made[index] = access
    return made


def in_task(machine, program, *args):
    """What program(task) returns, run as a task."""
    return machine.spawn(program, *args).result(timeout=30)


# ---- the shadow ----

def test_shadow_is_memory_of_zeros():
    shadow, model, rng = Shadow(), bytearray(64 * PAGE), random.Random(1)
    base = 0x7f0000000000
    for _round in range(2000):
        at, length = rng.randrange(63 * PAGE), rng.choice((1, 8, 63, PAGE))
        if rng.random() < 0.5:
            data = rng.randbytes(length)
            shadow.write(base + at, data)
            model[at:at + length] = data
        else:
            assert shadow.read(base + at, length) == model[at:at + length]
    assert shadow.read(base, len(model)) == model
    assert shadow.read(base + len(model), 10) == bytes(10)


def test_shadow_grows_and_forgets():
    shadow = Shadow()
    addresses = [number * 977 * PAGE for number in range(1, 3001)]
    for address in addresses:
        shadow.write(address, address.to_bytes(8, "little"))
    assert shadow.pages().tolist() == addresses
    for address in addresses[::2]:
        shadow.discard(address, PAGE)
    assert shadow.pages().tolist() == addresses[1::2]
    assert all(shadow.read(address, 8) == bytes(8) for address in addresses[::2])
    shadow.write(addresses[0], b"again")
    assert shadow.read(addresses[0], 5) == b"again"
    assert all(int.from_bytes(shadow.read(address, 8), "little") == address for address in addresses[1::2])
    shadow.clear()
    assert len(shadow.pages()) == 0 and shadow.read(addresses[1], 8) == bytes(8)


def test_shadow_discards_every_page_that_a_range_touches():
    shadow = Shadow()
    shadow.write(PAGE, b"a" * 3 * PAGE)
    shadow.discard(2 * PAGE - 1, 2)
    assert shadow.pages().tolist() == [3 * PAGE]


def test_shadow_moves_pages():
    shadow = Shadow()
    shadow.write(0x10000, b"one")
    shadow.write(0x12000, b"three")
    shadow.write(0x50000, b"in the way")
    shadow.write(0x51000, b"in the way")
    shadow.move(0x10000, 0x50000, 3 * PAGE)
    assert shadow.pages().tolist() == [0x50000, 0x52000]
    assert shadow.read(0x50000, 10) == b"one".ljust(10, b"\0")
    assert shadow.read(0x52000, 5) == b"three"


# ---- replay ----

def test_stream_is_done_in_order_and_reaches_memory_and_shadow(machine):
    def program(task):
        start, shadow = task.mmap(4 * PAGE), Shadow()
        stream = records((start, 8, STORE), (start, 8, LOAD), (start + 4, 8, MODIFY), (start + PAGE - 3, 64, STORE),
                         (start + PAGE - 3, 64, LOAD), (start + 2 * PAGE + 5, 4096, STORE), (start + 3 * PAGE, 1, LOAD))
        assert replay.replay(stream, shadow, 7) == (len(stream), 0, None)
        memory = task.load(start, 4 * PAGE)
        assert memory == shadow.read(start, 4 * PAGE)
        # Every store wrote something of its own.
        assert len({memory[:4], memory[4:12], memory[PAGE - 3:PAGE + 5], memory[2 * PAGE + 5:2 * PAGE + 13]}) == 4
        assert memory[12:PAGE - 3] == bytes(PAGE - 15)
    in_task(machine, program)


def test_bytes_stored_follow_from_seed_and_index(machine):
    def program(task):
        start = task.mmap(PAGE)
        stream = records(*[(start + 64 * number, 64, STORE) for number in range(8)])

        def stored(seed, *parts):
            for first, last in parts:
                replay.replay(stream, Shadow(), seed, first, last)
            return task.load(start, 512)

        whole = stored(1, (0, 8))
        assert stored(2, (0, 8)) != whole
        # In parts, with one of them twice, as after a fault.
        assert stored(1, (0, 3), (2, 5), (5, 8)) == whole
    in_task(machine, program)


@pytest.mark.parametrize("size", [1, 7, 8, 64, 4096])
def test_load_of_other_bytes_is_a_mismatch(machine, size):
    def program(task):
        start, shadow = task.mmap(2 * PAGE), Shadow()
        stream = records((start, 8, LOAD), (start + 100, size, STORE), (start + 100, size, LOAD), (start, 8, STORE))
        assert replay.replay(stream, shadow, 3, 0, 2) == (2, 0, None)
        was = task.load(start + 100, size)
        task.store(start + 100 + size - 1, bytes([was[-1] ^ 1]))
        index, reason, detail = replay.replay(stream, shadow, 3, 2)
        assert (index, reason) == (2, MISMATCH)
        assert detail == (start + 100, was, was[:-1] + bytes([was[-1] ^ 1]))
        assert f"from byte {size - 1} on" in str(detail)
        # Nothing after it was done.
        assert task.load(start, 8) == bytes(8)
    in_task(machine, program)


def test_modify_compares_before_it_stores(machine):
    def program(task):
        start, shadow = task.mmap(PAGE), Shadow()
        task.store(start, b"x")
        assert replay.replay(records((start, 4, MODIFY)), shadow, 3)[:2] == (0, MISMATCH)
        assert task.load(start, 4) == b"x\0\0\0"
    in_task(machine, program)


def test_fault_names_the_address_and_the_stream_goes_on_after_mapping(machine):
    def program(task):
        base, shadow, faults = 0x100000000, Shadow(), []
        stream = records((base + 10, 8, STORE), (base + PAGE - 4, 8, LOAD), (base + 3 * PAGE - 4, 8, STORE),
                         (base + 10, 8, LOAD), (base + 3 * PAGE - 4, 8, LOAD))
        index = 0
        while index < len(stream):
            index, reason, detail = replay.replay(stream, shadow, 5, index)
            if reason:
                assert reason == -errno.EFAULT
                faults.append((index, detail - base))
                task.mmap(PAGE, 3, MAP_FIXED_ANON, detail & -PAGE)
        return faults
    # The load across a boundary names the first byte that is not there, the store the byte of
    # each page that it would write first.
    assert in_task(machine, program) == [(0, 10), (1, PAGE), (2, 3 * PAGE - 4), (2, 3 * PAGE)]


def test_store_across_pages_is_done_whole_or_not_at_all(machine):
    def program(task):
        start, shadow = task.mmap(2 * PAGE), Shadow()
        task.mprotect(start + PAGE, PAGE, 1)
        index, reason, detail = replay.replay(records((start + PAGE - 4, 8, STORE)), shadow, 5)
        assert (index, reason, detail) == (0, -errno.EFAULT, start + PAGE)
        assert task.load(start, 2 * PAGE) == bytes(2 * PAGE)
        assert len(shadow.pages()) == 0
        task.mprotect(start + PAGE, PAGE, 3)
        assert replay.replay(records((start + PAGE - 4, 8, STORE), (start, 4096, LOAD)), shadow, 5) == (2, 0, None)
        assert task.load(start + PAGE - 4, 8) == shadow.read(start + PAGE - 4, 8) != bytes(8)
    in_task(machine, program)


def test_store_without_frames_is_enomem_and_can_be_tried_again(machine):
    def program(task):
        start, shadow = task.mmap(2 * PAGE), Shadow()
        task.store(start, b"x")
        shadow.write(start, b"x")
        stream = records((start + PAGE - 4, 8, STORE), (start, 4096, LOAD), (start + PAGE, 4096, LOAD))
        task.fail_nth(1)
        assert replay.replay(stream, shadow, 5) == (0, -errno.ENOMEM, start + PAGE)
        assert replay.replay(stream, shadow, 5) == (3, 0, None)
    in_task(machine, program)


def test_forked_shadow_goes_its_own_way(machine):
    def change(task, start, shadow, seed):
        stream = records((start, 64, LOAD), (start, 64, MODIFY), (start, 64, LOAD))
        return replay.replay(stream, shadow, seed)

    def program(task):
        start, shadow = task.mmap(PAGE), Shadow()
        assert change(task, start, shadow, 1)[1] == 0
        before = shadow.read(start, 64)
        assert task.fork(change, start, shadow, 2).result(timeout=20) == (3, 0, None)
        assert task.load(start, 64) == shadow.read(start, 64) == before
        assert change(task, start, shadow, 3)[1] == 0
    in_task(machine, program)


@pytest.mark.parametrize("access", [(0x10000, 0, LOAD), (0x10000, 4097, LOAD), (0x10000, 8, 3)])
def test_record_that_is_no_access_is_refused(machine, access):
    def program(task):
        with pytest.raises(ValueError, match="access 0"):
            replay.replay(records(access), Shadow(), 0)
    in_task(machine, program)


def test_bad_arguments_are_refused():
    stream = records((0x10000, 8, LOAD))
    for bad in (lambda: replay.replay(np.zeros(3, np.uint64), Shadow(), 0),
                lambda: replay.replay(np.zeros((2, 2), ACCESS), Shadow(), 0),
                lambda: replay.replay(stream, Shadow(), 0, 0, 2), lambda: replay.replay(stream, Shadow(), 0, 1, 0)):
        with pytest.raises(ValueError):
            bad()
    for bad in (lambda: replay.replay(stream, None, 0), lambda: replay.replay(stream, object(), 0)):
        with pytest.raises((TypeError, AttributeError)):
            bad()
