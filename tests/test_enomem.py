# SPDX-License-Identifier: GPL-2.0-only
"""Allocations that fail, one after the other: the first of an operation, then the second,
until it no longer meets the failure.  After each: -ENOMEM and nothing else, what the task had
is as it was, and nothing has leaked."""
import errno

import pytest

from helpers import PAGE, Puppet, free_frames, mm_of, node_at, vmas
from shmkern import (MPOL_MF_MOVE_ALL, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE, layout)

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE
FIXED = 0x32
A = 0x10_0000_0000
TABLE = 512 * PAGE


def attempt(call, nth):
    """call(task) with its nth allocation failing: (errno or None, whether it came that far)."""
    def program(task):
        task.fail_nth(nth)
        try:
            call(task)
            error = None
        except OSError as caught:
            error = caught.errno
        return error, task.fail_nth(0) == 0
    return program


def objects_in_use():
    """How many kernel objects there are of each sort, without those that RCU has yet to free."""
    kernel = layout.kernel()
    counts = (kernel.caches["nr_objects"] - kernel.caches["nr_free"])[:kernel.nr_caches].tolist()
    anon_vma = (kernel.anon_vma_cachep - kernel.address - layout.offsetof("Kernel", "caches")) // \
        layout.sizeof("KmemCache")
    counts[anon_vma] -= kernel.rcu_pending
    return counts


def state_of(puppet, machine, places):
    """What must be as it was after a failure."""
    mm = mm_of(puppet)
    contents = [puppet(lambda task: task.load(place, PAGE)) for place in places]
    return contents, vmas(puppet), mm.total_vm, mm.map_count, mm.anon_rss, objects_in_use()


def check_each_failure(machine, puppet, call, places, afresh=None):
    """Lets each allocation of call(task) fail in turn, and lets it succeed in the end; returns
    how many there were.

    `places` are pages whose contents must survive.  A fault that fails may leave tables and an
    anon_vma that it made before; they are the area's, and go with it: afresh(task) makes the
    area anew.
    """
    before = state_of(puppet, machine, places)
    free = free_frames(machine)
    nth = 0
    while True:
        nth += 1
        error, reached = puppet(attempt(call, nth))
        machine.audit().raise_if_broken()
        if not reached:
            assert error is None
            break
        assert error == errno.ENOMEM, f"allocation {nth} failed, and the call said {error}"
        if afresh is not None:
            puppet(afresh)
        assert state_of(puppet, machine, places) == before, f"allocation {nth} failed, and it shows"
        assert free_frames(machine) == free, f"allocation {nth} failed, and frames are lost"
    return nth - 1


def map_afresh(va):
    """A function that gives a task a new page at `va`, without anything left of the old."""
    def function(task):
        task.munmap(va, PAGE)
        task.mmap(PAGE, RW, FIXED, va)
    return function


@pytest.fixture
def puppet(machine):
    """A task with 8 pages at A, each full of its number."""
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(8 * PAGE, RW, FIXED, A))
    puppet(lambda task: task.store(A, b"".join(bytes([i]) * PAGE for i in range(8))))
    return puppet


ALL = [A + i * PAGE for i in range(8)]


def test_mmap(machine, puppet):
    assert check_each_failure(machine, puppet, lambda task: task.mmap(PAGE), ALL) == 1


def test_mmap_over_the_middle_of_an_area(machine, puppet):
    assert check_each_failure(machine, puppet, lambda task: task.mmap(2 * PAGE, PROT_READ, FIXED, A + 3 * PAGE),
                              ALL) == 3
    assert puppet(lambda task: task.load(A + 2 * PAGE, 4 * PAGE)) == \
        b"\2" * PAGE + bytes(2 * PAGE) + b"\5" * PAGE


def test_munmap_of_the_middle_of_an_area(machine, puppet):
    assert check_each_failure(machine, puppet, lambda task: task.munmap(A + 3 * PAGE, 2 * PAGE), ALL) == 2


def test_munmap_across_two_areas(machine, puppet):
    puppet(lambda task: task.mprotect(A + 4 * PAGE, 4 * PAGE, PROT_READ))
    assert check_each_failure(machine, puppet, lambda task: task.munmap(A + 2 * PAGE, 4 * PAGE), ALL) == 2
    assert vmas(puppet) == [(A, A + 2 * PAGE, RW), (A + 6 * PAGE, A + 8 * PAGE, PROT_READ)]


def test_mprotect_of_the_middle_of_an_area(machine, puppet):
    assert check_each_failure(machine, puppet, lambda task: task.mprotect(A + 3 * PAGE, 2 * PAGE, PROT_NONE),
                              ALL) == 2
    assert len(vmas(puppet)) == 3


def test_mprotect_across_two_areas(machine, puppet):
    puppet(lambda task: task.mprotect(A + 4 * PAGE, 4 * PAGE, PROT_READ))
    assert check_each_failure(machine, puppet, lambda task: task.mprotect(A + 2 * PAGE, 4 * PAGE, PROT_READ),
                              ALL) >= 1


def test_mremap_to_another_place(machine, puppet):
    """Two areas are cut, one is made, and the new place needs tables: three levels of them, and
    two of the last, so that a part has moved when the last one fails."""
    to = (1 << 46) + TABLE - 2 * PAGE
    count = check_each_failure(machine, puppet, lambda task: task.mremap(
        A + PAGE, 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to), ALL)
    assert count == 2 + 1 + 4
    assert puppet(lambda task: [task.load(to + i * PAGE, 1)[0] for i in range(6)]) == [1, 2, 3, 4, 5, 6]


def test_mremap_without_memory_brings_back_what_it_has_moved(boot):
    """Not one allocation fails, but all from some point on.  What one table at the new place holds came from two,
    of which the one behind has never been there: nothing may want it on the way back."""
    machine = boot(1, 512)
    puppet = Puppet(machine)
    at, length = A + TABLE - 2 * PAGE, 2 * TABLE + 2 * PAGE
    places = [at, at + PAGE] + [A + 2 * TABLE + i * PAGE for i in (0, 1, 300, 511)]
    to = (1 << 46) + TABLE - 100 * PAGE
    puppet(lambda task: (task.mmap(length, RW, FIXED, at), [task.store64(place, place) for place in places]))

    def fill(task):
        rest = task.mmap(512 * PAGE)
        for number in range(512):
            try:
                task.store64(rest + number * PAGE, number)
            except OSError as error:
                assert error.errno == errno.ENOMEM
                return rest
        raise AssertionError("there is more memory than that")
    rest = puppet(fill)
    moved, tries = False, 0
    while not moved:
        try:
            moved = puppet(lambda task: task.mremap(at, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, to)) == to
        except OSError as error:
            assert error.errno == errno.ENOMEM
        offset = to - at if moved else 0
        assert puppet(lambda task: [task.load64(place + offset) for place in places]) == places, f"with {tries} frames"
        machine.audit().raise_if_broken()
        # One frame more.
        puppet(lambda task: task.munmap(rest + tries * PAGE, PAGE))
        tries += 1
    assert tries > 3


def test_mremap_that_has_to_move_to_grow(machine, puppet):
    puppet(lambda task: (task.mmap(PAGE, RW, FIXED, A + 8 * PAGE), task.mprotect(A + 8 * PAGE, PAGE, PROT_NONE)))
    assert check_each_failure(machine, puppet, lambda task: task.mremap(A, 8 * PAGE, 16 * PAGE, MREMAP_MAYMOVE),
                              ALL) >= 1


def test_fork(machine, puppet):
    """The address space, its top table, each area, each table below."""
    puppet(lambda task: (task.mmap(PAGE, RW, FIXED, A + (1 << 30)), task.store(A + (1 << 30), b"far")))
    puppet(lambda task: task.mprotect(A + 4 * PAGE, PAGE, PROT_READ))

    def call(task):
        task.fork(lambda task: task.load(A + 7 * PAGE, 1)).result(10)

    count = check_each_failure(machine, puppet, call, ALL)
    # mm, pgd, four areas, and pud, pmd, pte for one place and pmd, pte for the other.
    assert count == 1 + 1 + 4 + 5 + 1


def test_fork_may_fail_while_threads_go_on_writing(machine, puppet):
    """A failed fork has made their pages read-only, and they must not notice."""
    thread = puppet.clone()
    for nth in range(1, 8):
        error, reached = puppet(attempt(lambda task: task.fork(lambda task: None).result(10), nth))
        assert reached == (error == errno.ENOMEM)
        thread(lambda task: [task.store64(A + i * PAGE, nth) for i in range(8)])
        assert puppet(lambda task: [task.load64(A + i * PAGE) for i in range(8)]) == [nth] * 8
    machine.audit().raise_if_broken()


def test_clone_needs_no_memory(machine, puppet):
    error, reached = puppet(attempt(lambda task: task.clone(lambda task: None).result(10), 1))
    assert (error, reached) == (None, False)


def test_the_first_store_to_an_address_space(machine):
    """Three tables, an anon_vma, the page."""
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(PAGE, RW, FIXED, A))
    assert check_each_failure(machine, puppet, lambda task: task.store(A, b"x"), [], map_afresh(A)) == 5


def test_the_first_load_of_an_address_space(machine):
    """Tables alone: the zero page is there."""
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(PAGE, RW, FIXED, A))
    assert check_each_failure(machine, puppet, lambda task: task.load(A, 1), [], map_afresh(A)) == 3


def test_the_first_store_to_a_page_beside_others(machine, puppet):
    puppet(lambda task: task.mmap(PAGE, RW, FIXED, A + 8 * PAGE))
    assert check_each_failure(machine, puppet, lambda task: task.store(A + 8 * PAGE, b"x"), ALL) == 1


def test_a_store_to_the_zero_page(machine, puppet):
    """An anon_vma and the page."""
    at = A + 64 * PAGE

    def afresh(task):
        map_afresh(at)(task)
        task.load(at, 1)

    puppet(afresh)
    assert check_each_failure(machine, puppet, lambda task: task.store(at, b"x"), ALL + [at], afresh) == 2


def test_a_store_to_a_page_shared_with_a_child(machine, puppet):
    child = puppet.fork()
    assert check_each_failure(machine, puppet, lambda task: task.store(A, b"x"), ALL) == 1
    assert child(lambda task: task.load(A, PAGE)) == bytes(PAGE)
    assert puppet(lambda task: task.load(A, 2)) == b"x\0"


def test_a_store_across_pages_stores_what_comes_before_the_failure(machine):
    puppet = Puppet(machine)
    puppet(lambda task: (task.mmap(3 * PAGE, RW, FIXED, A), task.store(A, b"0")))
    error, reached = puppet(attempt(lambda task: task.store(A, b"x" * 3 * PAGE), 2))
    assert (error, reached) == (errno.ENOMEM, True)
    assert puppet(lambda task: task.load(A, 3 * PAGE)) == b"x" * 2 * PAGE + bytes(PAGE)
    machine.audit().raise_if_broken()


def test_move_pages(machine, puppet):
    """A frame for the request, then one for each page; the first that cannot be had ends the call,
    and what had moved by then has moved."""
    machine.init.move_pages(puppet.pid, ALL, [0] * 8)
    machine.init.migrate_prep()
    free, before = free_frames(machine), state_of(puppet, machine, ALL)
    for nth in range(1, 10):
        machine.init.move_pages(puppet.pid, ALL, [0] * 8)
        error, reached = puppet(attempt(lambda task: task.move_pages(0, ALL, [1] * 8, MPOL_MF_MOVE_ALL), nth))
        assert (error, reached) == (errno.ENOMEM, True)
        assert [node_at(puppet, place) for place in ALL] == [1] * max(nth - 2, 0) + [0] * min(10 - nth, 8)
        assert state_of(puppet, machine, ALL) == before and free_frames(machine) == free
        machine.audit().raise_if_broken()
    machine.init.move_pages(puppet.pid, ALL, [0] * 8)
    assert puppet(attempt(lambda task: task.move_pages(0, ALL, [1] * 8, MPOL_MF_MOVE_ALL), 10)) == (None, False)
    assert [node_at(puppet, place) for place in ALL] == [1] * 8


def test_fail_nth_counts_for_its_task_alone_and_once(machine):
    one, other = Puppet(machine), Puppet(machine)
    one(lambda task: task.fail_nth(2))
    for _ in range(5):
        other(lambda task: task.mmap(PAGE))
    one(lambda task: task.mmap(PAGE))
    assert one(lambda task: task.fail_nth(1)) == 1
    error, _ = one(attempt(lambda task: task.mmap(PAGE), 1))
    assert error == errno.ENOMEM
    one(lambda task: task.mmap(PAGE))
