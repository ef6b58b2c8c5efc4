# SPDX-License-Identifier: GPL-2.0-only
"""Fork: two address spaces, one set of frames, until somebody writes."""
import random

import pytest

from helpers import C, PAGE, Puppet, counter, free_frames, mm_of, page, pfn_at, pte_of, run, vmas
from shmkern import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE


@pytest.fixture
def family(machine):
    """A parent with 8 pages, page i full of i, and its child; and where the pages are."""
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(8 * PAGE))
    parent(lambda task: task.store(va, b"".join(bytes([i]) * PAGE for i in range(8))))
    return parent, parent.fork(), va


def contents(puppet, va, pages=8):
    """The first byte of each page."""
    return list(puppet(lambda task: b"".join(task.load(va + i * PAGE, 1) for i in range(pages))))


def test_a_fork_shares_every_frame_read_only(family):
    parent, child, va = family
    for index in range(8):
        at = va + index * PAGE
        assert pfn_at(parent, at) == pfn_at(child, at)
        assert not (pte_of(parent, at) | pte_of(child, at)) & C["_PAGE_RW"]
        frame = page(pfn_at(parent, at))
        assert (frame._mapcount, frame._count) in ((1, 2), (1, 3))
    assert mm_of(parent).anon_rss == mm_of(child).anon_rss == 8
    assert vmas(parent) == vmas(child)


def test_what_a_child_has_not_touched_is_old(family):
    """copy_one_pte: the parent's use is no use of the child's."""
    parent, child, va = family
    assert pte_of(parent, va) & C["_PAGE_ACCESSED"] and not pte_of(child, va) & C["_PAGE_ACCESSED"]
    assert contents(child, va)[0] == 0 and pte_of(child, va) & C["_PAGE_ACCESSED"]


def test_neither_side_sees_what_the_other_writes(family, machine):
    parent, child, va = family
    parent(lambda task: task.store(va + PAGE, b"P"))
    child(lambda task: task.store(va + 2 * PAGE, b"C"))
    parent(lambda task: task.store(va + 3 * PAGE, b"P"))
    child(lambda task: task.store(va + 3 * PAGE, b"C"))
    assert contents(parent, va) == [0, ord("P"), 2, ord("P"), 4, 5, 6, 7]
    assert contents(child, va) == [0, 1, ord("C"), ord("C"), 4, 5, 6, 7]
    assert parent(lambda task: task.load(va + PAGE + 1, PAGE - 1)) == b"\1" * (PAGE - 1)
    machine.audit().raise_if_broken()


def test_a_parents_cached_translation_does_not_write_through_to_the_child(machine):
    """The parent's TLB says writable and dirty from before the fork."""
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store64(va, 1))
    thread = parent.clone()
    thread(lambda task: task.store64(va + 8, 1))
    for value in range(2, 6):
        child = parent.fork()
        parent(lambda task: task.store64(va, value))
        thread(lambda task: task.store64(va + 8, value))
        assert child(lambda task: [task.load64(va), task.load64(va + 8)]) == [value - 1, value - 1]
        child.exit()
    assert parent(lambda task: task.load64(va + 8)) == 5
    machine.audit().raise_if_broken()


def test_a_fork_of_read_only_and_inaccessible_memory(family, machine):
    parent, _, va = family
    parent(lambda task: (task.mprotect(va, PAGE, PROT_READ), task.mprotect(va + PAGE, PAGE, PROT_NONE)))
    child = parent.fork()
    assert child(lambda task: task.load(va, 1)) == b"\0"
    child(lambda task: task.mprotect(va, 2 * PAGE, RW))
    child(lambda task: (task.store(va, b"x"), task.store(va + PAGE, b"y")))
    parent(lambda task: task.mprotect(va, 2 * PAGE, PROT_READ))
    assert contents(parent, va) == list(range(8))
    machine.audit().raise_if_broken()


def test_zero_pages_are_not_counted_by_fork(machine):
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(4 * PAGE))
    parent(lambda task: (task.load(va, 4 * PAGE), task.store(va, b"x")))
    child = parent.fork()
    assert mm_of(child).anon_rss == 1
    child(lambda task: task.store(va + PAGE, b"c"))
    parent(lambda task: task.store(va + PAGE, b"p"))
    assert contents(child, va, 4) == [ord("x"), ord("c"), 0, 0]
    assert contents(parent, va, 4) == [ord("x"), ord("p"), 0, 0]
    machine.audit().raise_if_broken()


def test_what_either_side_maps_or_unmaps_after_the_fork_is_its_own(family, machine):
    parent, child, va = family
    parent(lambda task: task.munmap(va, 4 * PAGE))
    child(lambda task: task.mremap(va + 6 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
                                   va + 100 * PAGE))
    assert contents(child, va, 6) == [0, 1, 2, 3, 4, 5]
    assert contents(child, va + 100 * PAGE, 2) == [6, 7]
    assert contents(parent, va + 4 * PAGE, 4) == [4, 5, 6, 7]
    machine.audit().raise_if_broken()


def test_frames_are_freed_with_the_last_sharer(machine):
    before = free_frames(machine)
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(50 * PAGE))
    parent(lambda task: task.store(va, b"x" * 50 * PAGE))
    used = before - free_frames(machine)
    children = [parent.fork() for _ in range(4)]
    assert before - free_frames(machine) < used + 4 * 10
    parent.exit()
    for child in children[:-1]:
        child.exit()
    assert children[-1](lambda task: task.load(va, 50 * PAGE)) == b"x" * 50 * PAGE
    children[-1].exit()
    assert free_frames(machine) == before
    machine.audit().raise_if_broken()


def test_a_chain_of_generations_each_sees_its_own_history(machine):
    puppets = [Puppet(machine)]
    va = puppets[0](lambda task: task.mmap(10 * PAGE))
    for generation in range(8):
        puppets[-1](lambda task: task.store64(va + generation * PAGE, generation + 1))
        puppets.append(puppets[-1].fork())
    # Now everybody writes to a page that all later ones share with it.
    for number, puppet in enumerate(puppets):
        puppet(lambda task: task.store64(va + 9 * PAGE, number + 100))
    for number, puppet in enumerate(puppets):
        history = [generation + 1 if generation <= number else 0 for generation in range(8)]
        history[number:] = [number + 1] * (number < 8) + [0] * (7 - number)
        assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(8)]) == history
        assert puppet(lambda task: task.load64(va + 9 * PAGE)) == number + 100
    machine.audit().raise_if_broken()
    rng = random.Random(1)
    rng.shuffle(puppets)
    for puppet in puppets:
        puppet.exit()
        machine.audit().raise_if_broken()


def test_a_fork_while_another_thread_writes_is_a_snapshot_of_each_word(machine):
    """The child sees for each word some value that the writer had stored by then, never one
    from after the fork."""
    def write(task, va, stop):
        number = 0
        while not task.load64(stop):
            number += 1
            for index in range(4):
                task.store64(va + index * PAGE, number)
        return number

    def look(task, va):
        first = [task.load64(va + i * PAGE) for i in range(4)]
        again = [task.load64(va + i * PAGE) for i in range(4)]
        return first, first == again

    def program(task):
        va = task.mmap(5 * PAGE)
        stop = va + 4 * PAGE
        writer = task.clone(write, va, stop)
        seen = [task.fork(look, va).result(10) for _ in range(30)]
        task.store64(stop, 1)
        return seen, writer.result(10)

    seen, last = run(machine, program)
    assert all(same for _, same in seen), seen
    for values, _ in seen:
        # Stored in this order, so each is the one before or one less.
        assert sorted(values, reverse=True) == values and values[0] - values[-1] <= 1, values
    assert seen[-1][0][0] <= last
    machine.audit().raise_if_broken()


def test_a_copy_is_made_once_for_all_threads_of_a_side(machine):
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store(va, b"x"))
    thread = parent.clone()
    child = parent.fork()
    count = counter(machine)
    parent(lambda task: task.store(va, b"p"))
    thread(lambda task: task.store(va + 1, b"t"))
    assert count("pgfault_cow") == 1
    assert child(lambda task: task.load(va, 2)) == b"x\0"
    assert parent(lambda task: task.load(va, 2)) == b"pt"
