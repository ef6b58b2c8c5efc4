# SPDX-License-Identifier: GPL-2.0-only
"""Page faults: fresh memory, the zero page, writing to what is mapped read-only, running out
of frames."""
import errno
import os

import pytest

import shmkern
from helpers import (C, PAGE, Puppet, counter, frame_bytes, free_frames, is_present, kinds, mm_of, page,
                     page_at, pfn_at, pte_of, run, until_waits)
from shmkern import PROT_NONE, PROT_READ, PROT_WRITE, layout
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE


def zero_pfn():
    return layout.kernel().zero_pfn


# ---- fresh memory ---------------------------------------------------------------

def test_a_read_of_fresh_memory_maps_the_zero_page_and_takes_no_frame(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(100 * PAGE))
    puppet(lambda task: task.load(va, 1))
    count, free = counter(machine), machine.vmstat()["nr_free_pages"]
    assert puppet(lambda task: task.load(va, 100 * PAGE)) == bytes(100 * PAGE)
    assert count("pgfault_zero") == 99 and count("pgfault_anon") == 0
    assert machine.vmstat()["nr_free_pages"] == free
    pte = pte_of(puppet, va + 50 * PAGE)
    assert pfn_at(puppet, va + 50 * PAGE) == zero_pfn() and pte & C["_PAGE_SPECIAL"] and not pte & C["_PAGE_RW"]
    assert mm_of(puppet).anon_rss == 0 and page(zero_pfn())._count == 1
    machine.audit().raise_if_broken()


def test_a_write_to_the_zero_page_gets_a_page_of_its_own(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(2 * PAGE))
    puppet(lambda task: task.load(va, 2 * PAGE))
    count = counter(machine)
    puppet(lambda task: task.store(va + 7, b"mine"))
    assert count("pgfault_cow") == 1
    assert pfn_at(puppet, va) != zero_pfn() == pfn_at(puppet, va + PAGE)
    assert puppet(lambda task: task.load(va, 12)) == bytes(7) + b"mine\0"
    assert puppet(lambda task: task.load(va + PAGE, PAGE)) == bytes(PAGE)
    assert frame_bytes(zero_pfn()) == bytes(PAGE)
    assert mm_of(puppet).anon_rss == 1
    machine.audit().raise_if_broken()


def test_fresh_memory_is_zero_whatever_the_frame_held(machine):
    """Freed frames are poisoned, so a frame that is not cleared shows."""
    def program(task):
        for _ in range(3):
            va = task.mmap(200 * PAGE)
            for index in range(200):
                task.store(va + index * PAGE + 100, b"\xff" * 50)
                seen = task.load(va + index * PAGE, PAGE)
                assert seen == bytes(100) + b"\xff" * 50 + bytes(PAGE - 150)
            task.munmap(va, 200 * PAGE)
        return True
    assert run(machine, program)


def test_the_mmu_sets_accessed_and_dirty_as_x86_does(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"x"))
    # mprotect twice makes it read-only and clean of translations, and keeps both bits.
    assert pte_of(puppet, va) & C["_PAGE_ACCESSED"] and pte_of(puppet, va) & C["_PAGE_DIRTY"]
    # A page that was migrated comes back old and clean; its dirt is in the struct page.
    assert machine.init.move_pages(puppet.pid, [va], [1]) == [1]
    pte = pte_of(puppet, va)
    assert not pte & C["_PAGE_ACCESSED"] and not pte & C["_PAGE_DIRTY"] and pte & C["_PAGE_RW"]
    puppet(lambda task: task.load(va, 1))
    pte = pte_of(puppet, va)
    assert pte & C["_PAGE_ACCESSED"] and not pte & C["_PAGE_DIRTY"]
    count = counter(machine)
    puppet(lambda task: task.store(va, b"y"))
    assert pte_of(puppet, va) & C["_PAGE_DIRTY"]
    # That was the MMU's doing, not a fault's.
    assert count("pgfault") == 0
    machine.audit().raise_if_broken()


def test_two_threads_that_fault_at_once_get_one_page(machine):
    def touch(task, va, go):
        os.read(go, 1)
        for index in range(300):
            task.fetch_add64(va + index * PAGE, 1)

    def program(task):
        va = task.mmap(300 * PAGE)
        go, start = os.pipe()
        children = [task.clone(touch, va, go) for _ in range(4)]
        os.write(start, b"!!!!")
        for child in children:
            child.result(20)
        return [task.load64(va + index * PAGE) for index in range(300)]

    for _ in range(3):
        count = counter(machine)
        assert run(machine, program) == [4] * 300
        assert count("pgfault_anon") == 300
    machine.audit().raise_if_broken()


# ---- writing to what is mapped read-only ----------------------------------------

def test_the_last_user_of_a_page_writes_it_without_a_copy(machine):
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store(va, b"once"))
    frame = pfn_at(parent, va)
    child = parent.fork()
    child.exit()
    count = counter(machine)
    parent(lambda task: task.store(va, b"ONCE"))
    assert (count("pgfault_reuse"), count("pgfault_cow")) == (1, 0)
    assert pfn_at(parent, va) == frame
    assert parent(lambda task: task.load(va, 4)) == b"ONCE"


def test_a_shared_page_is_copied_by_who_writes_first_and_reused_by_the_other(machine):
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store(va, b"both"))
    frame = pfn_at(parent, va)
    child = parent.fork()
    assert pfn_at(child, va) == frame and page(frame)._mapcount == 1
    count = counter(machine)
    parent(lambda task: task.store(va, b"mine"))
    assert (count("pgfault_reuse"), count("pgfault_cow")) == (0, 1)
    assert pfn_at(parent, va) != frame == pfn_at(child, va)
    child(lambda task: task.store(va, b"CHLD"))
    assert (count("pgfault_reuse"), count("pgfault_cow")) == (1, 1)
    assert pfn_at(child, va) == frame
    assert parent(lambda task: task.load(va, 4)) + child(lambda task: task.load(va, 4)) == b"mineCHLD"
    machine.audit().raise_if_broken()


def test_whether_a_page_is_shared_is_decided_under_its_lock(machine):
    """A migrator has the page and has unmapped it from one of two sharers only so far: its
    mapcount is 1, and yet it must not be written in place."""
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store(va, b"both"))
    child = parent.fork()
    frame = page_at(parent, va)
    old = frame.address
    migrator = Puppet(machine)
    migrator(lambda task: ksym.lock_page(old))
    [vma] = [address for address, start, end in vma_addresses(child) if start <= va < end]
    migrator(lambda task: (ksym.rcu_read_lock(), ksym.try_to_unmap_one(old, vma, 1)))
    assert frame._mapcount == 0 and is_present(pte_of(parent, va)) and not is_present(pte_of(child, va))
    parent.begin(lambda task: task.store(va, b"MINE"))
    assert until_waits(parent, "WAIT_PAGE_LOCK") == old
    migrator(lambda task: (ksym.remove_migration_ptes(old, old), ksym.rcu_read_unlock(), ksym.unlock_page(old)))
    parent.reply()
    assert child(lambda task: task.load(va, 4)) == b"both"
    assert parent(lambda task: task.load(va, 4)) == b"MINE"
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("children", [1, 2])
def test_two_threads_that_copy_a_shared_page_at_once_end_with_one_copy(machine, children):
    """Both have seen the old page; the second finds that the entry is not what it was, whether
    it was going to copy or, being the last user by then, to reuse."""
    one = Puppet(machine)
    va = one(lambda task: task.mmap(PAGE))
    one(lambda task: task.store(va, b"shared"))
    other, holder = one.clone(), Puppet(machine)
    family = [one.fork() for _ in range(children)]
    old = page_at(one, va).address
    holder(lambda task: ksym.lock_page(old))
    for offset, thread in enumerate((one, other)):
        thread.begin(lambda task: task.store64(va + 8 * (offset + 1), offset + 1))
        assert until_waits(thread, "WAIT_PAGE_LOCK") == old
    holder(lambda task: ksym.unlock_page(old))
    one.reply(), other.reply()
    assert one(lambda task: (task.load64(va + 8), task.load64(va + 16), task.load(va, 6))) == (1, 2, b"shared")
    assert {child(lambda task: task.load(va, 24)) for child in family} == {b"shared" + bytes(18)}
    machine.audit().raise_if_broken()


def vma_addresses(puppet):
    """(address of the struct, start, end) of a task's areas."""
    found, address = [], mm_of(puppet).mmap
    while address:
        vma = layout.struct("VmAreaStruct", address)
        found.append((address, vma.vm_start, vma.vm_end))
        address = vma.vm_next
    return found


def test_a_write_after_mprotect_reuses_the_page(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"a"))
    frame = pfn_at(puppet, va)
    puppet(lambda task: (task.mprotect(va, PAGE, PROT_NONE), task.mprotect(va, PAGE, RW)))
    count = counter(machine)
    puppet(lambda task: task.store(va + 1, b"b"))
    assert count("pgfault_reuse") == 1 and pfn_at(puppet, va) == frame
    assert puppet(lambda task: task.load(va, 2)) == b"ab"


def test_a_page_table_entry_without_access_is_kept_and_never_present_to_the_mmu(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"a"))
    frame = pfn_at(puppet, va)
    puppet(lambda task: task.mprotect(va, PAGE, PROT_NONE))
    pte = pte_of(puppet, va)
    assert not pte & C["_PAGE_PRESENT"] and pte & C["_PAGE_PROTNONE"] and pfn_at(puppet, va) == frame
    machine.audit().raise_if_broken()


# ---- out of frames ---------------------------------------------------------------

def fill(task):
    """Stores to page after page until no frame is left; returns where and how many."""
    va = task.mmap(1 << 30)
    count = 0
    try:
        while True:
            task.store64(va + count * PAGE, count)
            count += 1
    except OSError as error:
        assert error.errno == errno.ENOMEM
    return va, count


def test_enomem_comes_at_the_watermark_and_hits_its_task_alone(boot):
    machine = boot(frames_per_node=256)
    before = free_frames(machine)
    other = Puppet(machine)
    place = other(lambda task: task.mmap(4 * PAGE))
    other(lambda task: task.store(place, b"x"))
    greedy = Puppet(machine)
    va, count = greedy(fill)
    low = [zone["min"] for zone in machine.zoneinfo()]
    assert [zone["nr_free_pages"] for zone in machine.zoneinfo()] == low
    assert machine.vmstat()["pgfault_oom"] == 1
    # What it has is intact, and it can go on with that.
    assert greedy(lambda task: [task.load64(va + i * PAGE) for i in range(count)]) == list(range(count))
    with pytest.raises(OSError) as caught:
        greedy(lambda task: task.store(va + count * PAGE, b"x"))
    assert caught.value.errno == errno.ENOMEM
    # A read needs no frame; others are refused as well, and keep what they have.
    assert other(lambda task: task.load(place + PAGE, 1)) == b"\0"
    with pytest.raises(OSError):
        other(lambda task: task.store(place + PAGE, b"x"))
    assert other(lambda task: task.load(place, 1)) == b"x"
    machine.audit().raise_if_broken()
    # One page is given back, one can be had.
    greedy(lambda task: task.munmap(va, PAGE))
    machine.init.migrate_prep()
    other(lambda task: task.store(place + PAGE, b"y"))
    greedy.exit(), other.exit()
    assert free_frames(machine) == before
    machine.audit().raise_if_broken()


def test_enomem_of_a_copy_on_write_leaves_both_sharers_as_they_were(boot):
    machine = boot(frames_per_node=256)
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store(va, b"both"))
    child = parent.fork()
    greedy = Puppet(machine)
    greedy(fill)
    frame = pfn_at(parent, va)
    for sharer in (parent, child):
        with pytest.raises(OSError) as caught:
            sharer(lambda task: task.store(va, b"mine"))
        assert caught.value.errno == errno.ENOMEM
        assert pfn_at(sharer, va) == frame and sharer(lambda task: task.load(va, 4)) == b"both"
    machine.audit().raise_if_broken()
    greedy.exit()
    parent(lambda task: task.store(va, b"mine"))
    assert child(lambda task: task.load(va, 4)) == b"both"


def test_fork_without_memory_is_enomem_and_leaves_the_parent_as_it_was(boot):
    machine = boot(frames_per_node=256)
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(1 << 30))
    # A table for each, so that a copy needs as many.
    for index in range(20):
        parent(lambda task: task.store(va + (index << 21), b"%2d" % index))
    greedy = Puppet(machine)
    greedy(fill)
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            parent(lambda task: task.fork(lambda task: 1))
        assert caught.value.errno == errno.ENOMEM
        machine.audit().raise_if_broken()
    parent(lambda task: task.store(va, b"!!"))
    assert parent(lambda task: [task.load(va + (i << 21), 2) for i in range(20)]) == \
        [b"!!"] + [b"%2d" % i for i in range(1, 20)]
    # A clone needs no memory of the machine.
    assert parent.clone()(lambda task: task.load(va, 2)) == b"!!"
    machine.audit().raise_if_broken()


def test_a_task_for_which_there_is_no_frame_raises_enomem(boot):
    machine = boot(frames_per_node=256)
    greedy = Puppet(machine)
    greedy(fill)
    with pytest.raises(OSError) as caught:
        machine.spawn(lambda task: 1).result(10)
    assert caught.value.errno == errno.ENOMEM
    machine.audit().raise_if_broken()
    greedy.exit()
    assert run(machine, lambda task: 1) == 1


def test_memory_spills_to_other_nodes_nearest_first(boot):
    machine = boot(nodes=4, frames_per_node=128)
    puppet = Puppet(machine)
    va, count = puppet(fill)
    nodes = [pfn_at(puppet, va + i * PAGE) // 128 for i in range(count)]
    home = nodes[0]
    # Down to the low watermark everywhere, then to the min watermark everywhere.
    first_round = list(dict.fromkeys(nodes))
    assert set(first_round) == {0, 1, 2, 3}
    assert first_round[:3] == [home, (home + 1) % 4, (home + 3) % 4] and first_round[3] == (home + 2) % 4
    assert kinds(machine.audit()) == set()


def test_a_kernel_without_poison_leaves_freed_frames_alone(boot):
    machine = boot(poison=False)
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"secret"))
    frame = pfn_at(puppet, va)
    puppet(lambda task: task.munmap(va, PAGE))
    machine.init.migrate_prep()
    assert frame_bytes(frame)[:6] == b"secret"
    machine.close()
    machine = boot()
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"secret"))
    frame = pfn_at(puppet, va)
    puppet(lambda task: task.munmap(va, PAGE))
    machine.init.migrate_prep()
    assert frame_bytes(frame) == bytes([C["PAGE_POISON"]]) * PAGE
    assert machine.audit(check_poison=True).clean


def test_a_clean_exception_says_what_there_is_none_of(boot):
    machine = boot(frames_per_node=64)
    with pytest.raises(OSError, match="out of frames") as caught:
        run(machine, lambda task: [task.store(task.mmap(PAGE), b"x") for _ in range(1000)])
    assert caught.value.errno == errno.ENOMEM and not isinstance(caught.value, shmkern.SegmentationFault)
