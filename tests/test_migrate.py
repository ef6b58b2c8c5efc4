# SPDX-License-Identifier: GPL-2.0-only
"""Page migration, seed lines 43-800, step by step: a page is taken into the air by hand, the
others do what they do, and then it lands or goes back.  Each test names the lines it is
about.  At the end all of it at once, for a while."""
import ctypes
import errno
import random
import time

import multiprocess
import pytest

import shmkern
from helpers import (C, PAGE, Mapper, Puppet, counter, flags, frame_bytes, free_frames, is_present, migration_entry,
                     mm_of, node_at, page, page_at, pfn_at, pte_of, until, until_asleep, until_waits, woken)
from shmkern import (MPOL_MF_MOVE_ALL, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE, layout,
                     worker)
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE
GFP = C["GFP_HIGHUSER_MOVABLE"]
EAGAIN, EIO, ENOMEM = -errno.EAGAIN, -errno.EIO, -errno.ENOMEM


class InTheAir:
    """A page that a task of its own has isolated, locked and unmapped: what unmap_and_move
    (lines 612-735) does, cut in two."""

    def __init__(self, machine, owner, va):
        self.mover = Puppet(machine)
        self.page = page_at(owner, va)
        self.pfn = pfn_at(owner, va)
        self.old = old = self.page.address
        assert self.mover(lambda task: (ksym.migrate_prep(), ksym.isolate_lru_page(old))[1]) == 0
        self.mover(lambda task: (ksym.lock_page(old), ksym.rcu_read_lock()))
        self.mover(lambda task: ksym.try_to_unmap(old, 1))

    def put_back(self):
        """The migration has failed."""
        old = self.old
        self.mover(lambda task: (ksym.remove_migration_ptes(old, old), ksym.rcu_read_unlock(),
                                 ksym.unlock_page(old), ksym.putback_lru_page(old)))

    def land(self, node=1):
        """Moves the page.  Returns what move_to_new_page does; if that is an error the page is
        back where it was."""
        old = self.old

        def landing(task):
            new = ksym.alloc_pages_node(node, GFP | C["__GFP_THISNODE"], 0)
            rc = ksym.move_to_new_page(new, old)
            if rc:
                ksym.remove_migration_ptes(old, old)
            ksym.rcu_read_unlock()
            ksym.unlock_page(old)
            ksym.putback_lru_page(old)
            ksym.putback_lru_page(new)
            return rc
        return self.mover(landing)


@pytest.fixture
def owner(machine):
    """A task with 4 pages on node 0, page i full of i; `va` is where."""
    puppet = Puppet(machine)
    puppet.va = va = puppet(lambda task: task.mmap(4 * PAGE))
    puppet(lambda task: task.store(va, b"".join(bytes([i]) * PAGE for i in range(4))))
    machine.init.move_pages(puppet.pid, [va + i * PAGE for i in range(4)], [0] * 4)
    puppet(lambda task: [task.fetch_add64(va + i * PAGE, 0) for i in range(4)])
    machine.init.migrate_prep()
    return puppet


def migrate(task, pages, get_new_page):
    """Isolates pages and has migrate_pages (lines 751-800) move them.  get_new_page(page)
    returns the address of a new page or 0.  Returns (what it returns, {page: result left})."""
    results = {}

    def new_page(page, private, result):
        results[page] = ctypes.c_int(12345)
        ctypes.cast(result, ctypes.POINTER(ctypes.c_uint64))[0] = ctypes.addressof(results[page])
        return get_new_page(page)

    callback = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(new_page)
    head = (ctypes.c_uint64 * 2)()
    at = ctypes.addressof(head)
    ksym.INIT_LIST_HEAD(at)
    ksym.migrate_prep()
    for one in pages:
        assert ksym.isolate_lru_page(one) == 0
        ksym.list_add_tail(one + layout.offsetof("Page", "lru"), at)
    rc = ksym.migrate_pages(at, ctypes.cast(callback, ctypes.c_void_p).value, 0)
    assert ksym.list_empty(at)
    return rc, {page: result.value for page, result in results.items()}


# ---- isolation and putback -------------------------------------------------------

def test_migrate_prep_puts_on_the_lru_what_waits_in_any_pagevec(machine):
    """Lines 43-55."""
    puppets = [Puppet(machine) for _ in range(3)]
    pages = []
    for puppet in puppets:
        va = puppet(lambda task: task.mmap(PAGE))
        puppet(lambda task: task.store(va, b"x"))
        pages.append(page_at(puppet, va))
    assert all(not one.flags & flags("PG_lru") and one._count == 2 for one in pages)
    count = counter(machine)
    puppets[0](lambda task: ksym.migrate_prep())
    assert all(one.flags & flags("PG_lru") and one._count == 1 for one in pages)
    assert count("nr_active_anon") == 3


def test_putback_returns_each_page_to_its_list_and_counts_them(machine, owner):
    """Lines 57-74."""
    va = owner.va
    pages = [page_at(owner, va + i * PAGE).address for i in range(3)]
    count = counter(machine)

    def isolate_and_put_back(task):
        head = (ctypes.c_uint64 * 2)()
        at = ctypes.addressof(head)
        ksym.INIT_LIST_HEAD(at)
        for one in pages:
            assert ksym.isolate_lru_page(one) == 0
            ksym.list_add_tail(one + layout.offsetof("Page", "lru"), at)
        return ksym.putback_lru_pages(at), ksym.list_empty(at)

    assert Puppet(machine)(isolate_and_put_back) == (3, 1)
    machine.init.migrate_prep()
    assert count("nr_active_anon") == 0
    machine.audit().raise_if_broken()


# ---- into the air ------------------------------------------------------------------

def test_a_page_in_the_air_is_an_entry_that_remembers_writing(machine, owner):
    """Lines 692-693, and try_to_unmap of mm/rmap.c."""
    va = owner.va
    owner(lambda task: task.mprotect(va + PAGE, PAGE, PROT_READ))
    one, other = InTheAir(machine, owner, va), InTheAir(machine, owner, va + PAGE)
    assert migration_entry(pte_of(owner, va)) == ("write", one.pfn)
    assert migration_entry(pte_of(owner, va + PAGE)) == ("read", other.pfn)
    for air in (one, other):
        assert air.page._mapcount == -1 and air.page._count == 1
    # What is not mapped is still this address space's.
    assert mm_of(owner).anon_rss == 4
    one.put_back(), other.land()
    assert pte_of(owner, va) & C["_PAGE_RW"] and not pte_of(owner, va + PAGE) & C["_PAGE_RW"]
    assert owner(lambda task: task.load(va, 2 * PAGE)) == bytes(PAGE) + b"\1" * PAGE
    machine.audit().raise_if_broken()


def test_a_cpu_that_knows_the_old_frame_forgets_it_before_the_copy(machine, owner):
    """Line 693: ptep_clear_flush.  A store through a stale translation would be lost."""
    va, thread = owner.va, owner.clone()
    for puppet in (owner, thread):
        puppet(lambda task: task.store64(va, 1))
    air = InTheAir(machine, owner, va)
    for puppet in (owner, thread):
        assert not (layout.view("u64", ksym_slot(puppet, va))[()])
        puppet.begin(lambda task: task.fetch_add64(va, 1))
    for puppet in (owner, thread):
        assert until_waits(puppet, "WAIT_PAGE_LOCK") == air.old
    assert frame_bytes(air.pfn)[0] == 1
    air.put_back()
    assert sorted([owner.reply(), thread.reply()]) == [1, 2]


def test_who_comes_to_sleep_on_a_page_that_is_unlocked_by_now_leaves_no_mark(owner):
    """page_sleep: PG_waiters goes with the lock, and after that nobody would take it off."""
    page = page_at(owner, owner.va)
    address, locked = page.address, page.flags | flags("PG_locked")
    owner(lambda task: ksym.page_sleep(address, locked, 0))
    assert not page.flags & flags("PG_waiters")


def ksym_slot(puppet, va):
    """Where the translation of an address would be in a task's TLB."""
    slot = worker.slot(puppet.cpu)
    return slot.address + layout.offsetof("Task", "tlb") + (va >> 12 & C["TLB_ENTRIES"] - 1) * 8


def test_unmapping_waits_for_a_cpu_in_the_middle_of_an_access(machine, owner):
    """It has looked the old frame up, and may be about to write to it."""
    va = owner.va
    owner(lambda task: ksym.access_begin(worker.slot(task.cpu)))
    mover, old = Puppet(machine), page_at(owner, va).address
    mover(lambda task: (ksym.migrate_prep(), ksym.isolate_lru_page(old), ksym.lock_page(old)))
    mover.begin(lambda task: ksym.try_to_unmap(old, 1))
    assert until_waits(mover, "WAIT_TLB_ACK") == worker.slot(owner.cpu).address
    assert not mover.is_done()
    owner(lambda task: ksym.access_end(worker.slot(task.cpu)))
    assert mover.reply() == C["SWAP_SUCCESS"]
    mover(lambda task: (ksym.remove_migration_ptes(old, old), ksym.unlock_page(old), ksym.putback_lru_page(old)))
    machine.audit().raise_if_broken()


def test_the_migrator_is_an_rcu_reader_while_it_has_the_page_in_the_air(machine, owner):
    """Lines 654-664: else the anon_vma could go with its last area, between unmapping and
    restoring.  Seen while unmap_and_move waits for a CPU to forget the page: rmap is a reader
    by itself, and unmap_and_move around it."""
    va, pid = owner.va, owner.pid
    owner(lambda task: ksym.access_begin(worker.slot(task.cpu)))
    mover = Puppet(machine)
    mover.begin(lambda task: task.move_pages(pid, [va], [1]))
    until_waits(mover, "WAIT_TLB_ACK")
    slot = worker.slot(mover.cpu)
    assert slot.rcu_nesting == 2 and slot.rcu_epoch != 0
    owner(lambda task: ksym.access_end(worker.slot(task.cpu)))
    assert mover.reply() == [1]
    assert slot.rcu_nesting == 0 and slot.rcu_epoch == 0


def test_dirt_in_the_page_table_goes_to_the_page(machine, owner):
    """try_to_unmap: the PTE's dirty bit would be gone.  Lines 362-371: and on to the new page."""
    va = owner.va
    assert pte_of(owner, va) & C["_PAGE_DIRTY"] and not page_at(owner, va).flags & flags("PG_dirty")
    dirty = InTheAir(machine, owner, va)
    assert dirty.page.flags & flags("PG_dirty")
    assert dirty.land() == 0
    assert page_at(owner, va).flags & flags("PG_dirty") and not dirty.page.flags & flags("PG_dirty")
    assert not pte_of(owner, va) & C["_PAGE_DIRTY"]
    # A clean one stays clean: brought in by a copy that only read it since.
    page_at(owner, va).flags &= ~flags("PG_dirty")
    clean = InTheAir(machine, owner, va)
    assert clean.land(0) == 0 and not page_at(owner, va).flags & flags("PG_dirty")


# ---- landing ---------------------------------------------------------------------

def test_a_page_that_lands_has_the_contents_the_place_and_the_lists_of_the_old(machine, owner):
    """Lines 79-155, 556-610, 708-728."""
    va = owner.va
    air = InTheAir(machine, owner, va + 2 * PAGE)
    index, mapping = air.page.index, air.page.mapping
    count = counter(machine)
    assert air.land() == 0
    new = page_at(owner, va + 2 * PAGE)
    assert new.address != air.old and node_at(owner, va + 2 * PAGE) == 1
    assert (new.index, new.mapping, new._mapcount, new._count) == (index, mapping, 0, 2)
    machine.init.migrate_prep()
    assert new._count == 1
    assert new.flags & ~(63 << C["NODES_PGSHIFT"]) == \
        flags("PG_uptodate", "PG_dirty", "PG_lru", "PG_active", "PG_swapbacked")
    assert (air.page._count, air.page.mapping, air.page._mapcount) == (0, 0, -1)
    assert count("nr_free_pages") == 0 and count("nr_active_anon") == 1 and count("nr_anon_pages") == 1
    pte = pte_of(owner, va + 2 * PAGE)
    # Old: it was written to another frame.
    assert pte & C["_PAGE_RW"] and not pte & C["_PAGE_ACCESSED"]
    assert owner(lambda task: task.load(va, 4 * PAGE)) == b"".join(bytes([i]) * PAGE for i in range(4))
    machine.audit().raise_if_broken()


def test_zone_counters_follow_the_page_to_the_other_node(machine, owner):
    """Lines 319-330, for NR_ANON_PAGES and the LRU lists."""
    def levels():
        machine.init.migrate_prep()
        return [(zone["nr_anon_pages"], zone["nr_active_anon"]) for zone in machine.zoneinfo()]
    assert levels() == [(4, 4), (0, 0)]
    assert InTheAir(machine, owner, owner.va).land() == 0
    assert levels() == [(3, 3), (1, 1)]
    InTheAir(machine, owner, owner.va).put_back()
    assert levels() == [(3, 3), (1, 1)]


@pytest.mark.parametrize("name", ["PG_error", "PG_referenced", "PG_uptodate", "PG_active", "PG_checked",
                                  "PG_mappedtodisk", "PG_dirty", "PG_unevictable"])
@pytest.mark.parametrize("is_set", [True, False])
def test_each_flag_is_carried_over(machine, name, is_set):
    """Lines 346-374: set or not, and the old page is without it when it is freed.  PG_mlocked, which
    is counted, has its own test in test_mlock.py."""
    def copy(task):
        new, old = (ksym.alloc_pages_node(node, GFP, 0) for node in (1, 0))
        old_page, new_page = (layout.struct("Page", one) for one in (old, new))
        node_bits = 63 << C["NODES_PGSHIFT"]
        others = flags("PG_uptodate", "PG_referenced") & ~flags(name)
        old_page.flags |= others | (flags(name) if is_set else 0)
        new_page.flags |= flags("PG_swapbacked")
        ksym.migrate_page_copy(new, old)
        result = new_page.flags & ~node_bits, old_page.flags & ~node_bits
        # What these mean, nothing here has seen to.
        new_page.flags &= ~flags("PG_active", "PG_unevictable")
        ksym.put_page(new), ksym.put_page(old)
        return result, others
    (new, old), others = Puppet(machine)(copy)
    assert new == flags("PG_swapbacked") | others | (flags(name) if is_set else 0)
    moved = flags("PG_active", "PG_dirty", "PG_mlocked", "PG_unevictable")
    assert old & moved == 0
    machine.audit().raise_if_broken()


def test_the_old_page_is_stripped_and_waiters_on_the_new_one_are_woken(machine):
    """Lines 377-393."""
    puppet, waiter = Puppet(machine), Puppet(machine)
    new, old = puppet(lambda task: [ksym.alloc_pages_node(node, GFP, 0) for node in (1, 0)])
    struct = layout.struct("Page", old)
    struct.flags |= flags("PG_swapcache", "PG_private")
    struct.private, struct.mapping = 77, layout.kernel().address + C["PAGE_MAPPING_ANON"]
    layout.struct("Page", new).flags |= flags("PG_writeback")
    waiter.begin(lambda task: ksym.wait_on_page_writeback(new))
    until_waits(waiter, "WAIT_PAGE_WRITEBACK")
    puppet(lambda task: ksym.migrate_page_copy(new, old))
    waiter.reply()
    assert struct.private == 0 and not struct.flags & flags("PG_swapcache", "PG_private")
    # An anonymous page stays one until it is freed.
    assert struct.mapping == layout.kernel().address + C["PAGE_MAPPING_ANON"]
    assert not layout.struct("Page", new).flags & flags("PG_writeback")
    puppet(lambda task: (ksym.put_page(new), ksym.put_page(old)))
    machine.audit().raise_if_broken()


def test_an_inactive_and_an_unevictable_page_land_on_lists_of_their_kind(machine, owner):
    """Lines 352-356, 374, and putback_lru_page."""
    va, mover = owner.va, Puppet(machine)
    inactive, mlocked = page_at(owner, va), page_at(owner, va + PAGE)
    address = inactive.address
    assert mover(lambda task: ksym.isolate_lru_page(address)) == 0
    inactive.flags &= ~flags("PG_active")
    mover(lambda task: ksym.putback_lru_page(address))
    owner(lambda task: task.mlock(va + PAGE, PAGE))
    machine.init.migrate_prep()
    count = counter(machine)
    assert machine.zoneinfo()[0]["nr_inactive_anon"] == machine.zoneinfo()[0]["nr_unevictable"] == 1
    assert mlocked.flags & flags("PG_unevictable")
    assert InTheAir(machine, owner, va).land() == 0 and InTheAir(machine, owner, va + PAGE).land() == 0
    machine.init.migrate_prep()
    assert machine.zoneinfo()[1]["nr_inactive_anon"] == machine.zoneinfo()[1]["nr_unevictable"] == 1
    assert count("nr_inactive_anon") == count("nr_unevictable") == 0
    assert page_at(owner, va + PAGE).flags & flags("PG_mlocked", "PG_unevictable") == \
        flags("PG_mlocked", "PG_unevictable")
    # And back again when it fails.
    InTheAir(machine, owner, va).put_back(), InTheAir(machine, owner, va + PAGE).put_back()
    machine.init.migrate_prep()
    assert machine.zoneinfo()[1]["nr_inactive_anon"] == machine.zoneinfo()[1]["nr_unevictable"] == 1
    machine.audit().raise_if_broken()


def test_a_page_of_ten_tasks_lands_in_all_of_them(machine, owner):
    """Lines 200-201: every area on the anon_vma's list."""
    va = owner.va
    family = [owner] + [owner.fork() for _ in range(5)]
    family += [family[5].fork() for _ in range(4)]
    air = InTheAir(machine, owner, va)
    assert {migration_entry(pte_of(one, va)) for one in family} == {("read", air.pfn)}
    assert air.land() == 0
    frames = {pfn_at(one, va) for one in family}
    assert len(frames) == 1 and frames != {air.pfn} and page(frames.pop())._mapcount == 9
    for number, one in enumerate(family):
        one(lambda task: task.store64(va, number))
    assert [one(lambda task: task.load64(va)) for one in family] == list(range(10))
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("others", [0, 1, 2])
def test_references_to_the_new_page_that_others_still_have_are_kept(machine, owner, others):
    """Lines 137-146.  A sharer may map the new page, unmap it, and still have its reference when
    the next entry becomes a PTE."""
    air = InTheAir(machine, owner, owner.va)
    old, mapping, index = air.old, air.page.mapping, air.page.index

    def landing(task):
        new = ksym.alloc_pages_node(1, GFP, 0)
        assert ksym.trylock_page(new)
        row = layout.struct("Page", new)
        row.mapping, row.index = mapping, index
        row.flags |= flags("PG_swapbacked", "PG_uptodate")
        ksym.migrate_page_copy(new, old)
        for _ in range(others):
            ksym.get_page(new)
        ksym.remove_migration_ptes(old, new)
        counts = row._count, row._mapcount
        for _ in range(others):
            ksym.put_page(new)
        for locked in (new, old):
            ksym.unlock_page(locked)
        ksym.rcu_read_unlock()
        ksym.putback_lru_page(old)
        ksym.putback_lru_page(new)
        return counts
    # Ours, the PTE's and theirs; one mapping.
    assert air.mover(landing) == (2 + others, 0)
    machine.audit().raise_if_broken()


def test_another_page_at_the_same_place_of_a_relative_is_left_alone(machine, owner):
    """Lines 119-122: after copy-on-write the two differ, in anon_vma and index they do not."""
    va, child = owner.va, owner.fork()
    child(lambda task: task.store(va, b"child"))
    mine, childs = page_at(owner, va), page_at(child, va)
    assert (mine.mapping, mine.index) == (childs.mapping, childs.index) and mine.address != childs.address
    one = InTheAir(machine, owner, va)
    assert is_present(pte_of(child, va))
    other = InTheAir(machine, child, va)
    assert one.land() == 0
    assert migration_entry(pte_of(child, va)) == ("write", other.pfn) and is_present(pte_of(owner, va))
    other.put_back()
    assert owner(lambda task: task.load(va, 5)) + child(lambda task: task.load(va, 5)) == bytes(5) + b"child"
    machine.audit().raise_if_broken()


# ---- failing and going back ---------------------------------------------------------

def test_a_reference_of_anybody_else_sends_the_page_back(machine, owner):
    """Lines 269-279, 602-605, 698-699: -EAGAIN, everything as it was."""
    va, other = owner.va, Puppet(machine)
    owner.fork().exit()
    owner(lambda task: task.store64(va, 7))
    air = InTheAir(machine, owner, va)
    old = air.old
    other(lambda task: ksym.get_page(old))
    count = counter(machine)
    assert air.land() == EAGAIN
    assert pfn_at(owner, va) == air.pfn and pte_of(owner, va) & C["_PAGE_RW"]
    assert air.page._mapcount == 0 and air.page.flags & flags("PG_dirty", "PG_locked") == flags("PG_dirty")
    assert count("nr_anon_pages") == 1
    other(lambda task: ksym.put_page(old))
    machine.init.migrate_prep()
    assert air.page._count == 1 and owner(lambda task: task.load64(va)) == 7
    machine.audit().raise_if_broken()


def test_what_a_new_page_was_given_is_taken_back_when_the_move_fails(machine, owner):
    """Lines 577-607: index, mapping and PG_swapbacked, under its lock."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    old = air.old

    def fail(task):
        new = ksym.alloc_pages_node(1, GFP, 0)
        ksym.get_page(old)
        rc = ksym.move_to_new_page(new, old)
        ksym.put_page(old)
        struct = layout.struct("Page", new)
        seen = rc, struct.mapping, struct.flags & flags("PG_locked"), struct._mapcount, ksym.page_count(new)
        ksym.putback_lru_page(new)
        return seen

    before = machine.vmstat()["nr_free_pages"]
    assert air.mover(fail) == (EAGAIN, 0, 0, -1, 1)
    assert machine.vmstat()["nr_free_pages"] == before
    air.put_back()
    machine.audit().raise_if_broken()


def test_who_waits_for_the_page_keeps_it_from_moving_and_gets_it_back(machine, owner):
    """Lines 225-259: the waiter's reference is one more than migrate_page_move_mapping wants.
    It waits for the page lock, also when the migration fails."""
    va = owner.va
    count = counter(machine)
    air = InTheAir(machine, owner, va)
    owner.begin(lambda task: task.fetch_add64(va, 5))
    assert until_waits(owner, "WAIT_PAGE_LOCK") == air.old
    assert count("migration_entry_wait") == 1 and air.page._count == 2
    assert air.land() == EAGAIN
    assert owner.reply() == 0
    assert pfn_at(owner, va) == air.pfn and owner(lambda task: task.load64(va)) == 5
    machine.audit().raise_if_broken()


def test_a_task_that_meets_the_entry_too_late_for_a_reference_finds_the_new_page(machine, owner):
    """Lines 245-252: references are frozen, and the fault is simply retried.  A plain get_page
    would bring a page without references back to life."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    old = air.old
    assert air.mover(lambda task: ksym.page_freeze_refs(old, 1))
    count = counter(machine)
    owner.begin(lambda task: task.fetch_add64(va, 5))
    until(lambda: worker.slot(owner.cpu).vm_events[C["MIGRATION_ENTRY_RETRY"]] >= 10, "ten retries",
          check=machine.check)
    assert air.page._count == 0 and not owner.is_done() and count("migration_entry_wait") == 0
    air.mover(lambda task: ksym.page_unfreeze_refs(old, 1))
    assert until_waits(owner, "WAIT_PAGE_LOCK") == old
    air.put_back()
    assert owner.reply() == 0
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_waiters_are_woken_at_once_when_it_is_over(machine, owner, how):
    """Lines 704-705, 253-255: unlock_page wakes them, and does not leave it to their next look
    up, a second later."""
    va, threads = owner.va, [owner.clone() for _ in range(3)]

    def load(task):
        came = time.monotonic()
        return task.load64(va), time.monotonic() - came

    def one_round():
        air = InTheAir(machine, owner, va)
        for thread in threads:
            thread.begin(load)
            assert until_asleep(thread, "WAIT_PAGE_LOCK") == air.old
        # They have references, so it does not land; but it comes down.
        air.land() if how == "land" else air.put_back()
        replies = [thread.reply() for thread in threads]
        assert {value for value, _away in replies} == {0}
        return [away for _value, away in replies]
    assert woken(one_round)
    machine.audit().raise_if_broken()


def test_readers_and_writers_of_many_pages_wait_for_theirs_alone(machine, owner):
    va, threads = owner.va, [owner.clone() for _ in range(3)]
    airs = [InTheAir(machine, owner, va + i * PAGE) for i in range(3)]
    for number, thread in enumerate(threads):
        thread.begin(lambda task: task.fetch_add64(va + number * PAGE, 1) & 255)
    for air, thread in zip(airs, threads):
        assert until_waits(thread, "WAIT_PAGE_LOCK") == air.old
    assert owner(lambda task: task.load(va + 3 * PAGE, 1)) == b"\3"
    for number in (1, 2, 0):
        airs[number].put_back()
        assert threads[number].reply() == number
        assert sum(thread.is_done() for thread in threads) == 0
    machine.audit().raise_if_broken()


# ---- the owner's own business while the page is in the air -------------------------------

@pytest.mark.parametrize("how", ["land", "put_back"])
def test_fork_makes_a_write_entry_a_read_entry_on_both_sides(machine, owner, how):
    """copy_one_pte of mm/memory.c: else both would write the one page that lands."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    child = owner.fork()
    assert migration_entry(pte_of(owner, va)) == migration_entry(pte_of(child, va)) == ("read", air.pfn)
    assert mm_of(child).anon_rss == 4
    getattr(air, how)()
    frame = pfn_at(owner, va)
    assert frame == pfn_at(child, va) and (frame == air.pfn) == (how == "put_back")
    assert page(frame)._mapcount == 1 and not (pte_of(owner, va) | pte_of(child, va)) & C["_PAGE_RW"]
    owner(lambda task: task.store(va, b"parent"))
    assert child(lambda task: task.load(va, 6)) == bytes(6)
    machine.audit().raise_if_broken()


def test_a_child_forked_meanwhile_waits_as_its_parent_does(machine, owner):
    va = owner.va
    air = InTheAir(machine, owner, va)
    child = owner.fork()
    for one in (owner, child):
        one.begin(lambda task: task.fetch_add64(va, 3))
        until_waits(one, "WAIT_PAGE_LOCK")
    air.put_back()
    assert owner.reply() == child.reply() == 0
    assert owner(lambda task: task.load64(va)) == child(lambda task: task.load64(va)) == 3
    machine.audit().raise_if_broken()


def test_a_fork_overtaken_by_the_landing_leaves_no_entry_behind(machine, owner):
    """Lines 197-203, and the order of the anon_vma's list: the walk comes to the parent first
    and to the child after it, so what fork copies in between is restored as well.

    Fork has linked the child's area and waits for the parent's table, and so does the walk.
    """
    va, holder = owner.va, Puppet(machine)
    mm = mm_of(owner).address
    for how in ("land", "put_back") * 3:
        air = InTheAir(machine, owner, va)
        old, node = air.old, 1 - air.pfn // layout.kernel().frames_per_node
        holder(lambda task: ksym.spin_lock(ksym.pte_lockptr(ksym.walk_to_pmd(mm, va))))
        child = owner.begin_fork()
        until_waits(owner, "WAIT_SPINLOCK")
        new = old if how == "put_back" else air.mover(lambda task: ksym.alloc_pages_node(node, GFP, 0))
        air.mover.begin(lambda task: ksym.remove_migration_ptes(old, old) if new == old else
                        ksym.move_to_new_page(new, old))
        until_waits(air.mover, "WAIT_SPINLOCK")
        holder(lambda task: ksym.spin_unlock(ksym.pte_lockptr(ksym.walk_to_pmd(mm, va))))
        air.mover.reply()
        air.mover(lambda task: (ksym.rcu_read_unlock(), ksym.unlock_page(old), ksym.putback_lru_page(old)))
        if new != old:
            air.mover(lambda task: ksym.putback_lru_page(new))
        owner.end_fork(child)
        assert pfn_at(owner, va) == pfn_at(child, va)
        assert child(lambda task: task.load(va, PAGE)) == bytes(PAGE)
        machine.audit().raise_if_broken()
        child.exit(), air.mover.exit()


def test_mprotect_takes_writing_from_an_entry(machine, owner):
    """change_pte_range of mm/mprotect.c."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    owner(lambda task: task.mprotect(va, PAGE, PROT_READ))
    assert migration_entry(pte_of(owner, va)) == ("read", air.pfn)
    owner(lambda task: task.mprotect(va, PAGE, RW))
    assert migration_entry(pte_of(owner, va)) == ("read", air.pfn)
    owner(lambda task: task.mprotect(va, PAGE, PROT_READ))
    assert air.land() == 0
    assert is_present(pte_of(owner, va)) and not pte_of(owner, va) & C["_PAGE_RW"]
    with pytest.raises(shmkern.SegmentationFault):
        owner(lambda task: task.store(va, b"x"))
    owner(lambda task: task.mprotect(va, PAGE, RW))
    count = counter(machine)
    owner(lambda task: task.store(va, b"x"))
    assert count("pgfault_reuse") == 1
    machine.audit().raise_if_broken()


def test_memory_made_inaccessible_meanwhile_lands_inaccessible(machine, owner):
    """Line 139: vma->vm_page_prot of now."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    owner(lambda task: task.mprotect(va, PAGE, PROT_NONE))
    # Not to be waited for: the access is forbidden either way.
    with pytest.raises(shmkern.SegmentationFault):
        owner(lambda task: task.load(va, 1))
    assert air.land() == 0
    assert not pte_of(owner, va) & C["_PAGE_PRESENT"] and pte_of(owner, va) & C["_PAGE_PROTNONE"]
    owner(lambda task: task.mprotect(va, PAGE, RW))
    assert owner(lambda task: task.load(va, PAGE)) == bytes(PAGE)
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_unmapping_an_entry_frees_the_page_when_it_comes_down(machine, owner, how):
    """zap_pte_range of mm/memory.c; 2.6.30 forgot the rss.  Lines 708-728 free both pages."""
    va = owner.va
    before = free_frames(machine)
    air = InTheAir(machine, owner, va)
    owner(lambda task: task.munmap(va, PAGE))
    assert mm_of(owner).anon_rss == 3 and pte_of(owner, va) == 0
    # The page is the migrator's alone.
    assert air.page._count == 1 and air.page.flags & flags("PG_locked")
    getattr(air, how)()
    air.mover.exit()
    assert free_frames(machine) == before + 1
    assert machine.vmstat()["nr_anon_pages"] == 3
    machine.audit().raise_if_broken()


def test_memory_mapped_anew_at_the_place_of_an_entry_is_not_taken_for_it(machine, owner):
    """Lines 108-122: what stands there now is no entry for this page."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    owner(lambda task: (task.munmap(va, PAGE), task.mmap(PAGE, RW, 0x32, va), task.store(va, b"new")))
    frame = pfn_at(owner, va)
    assert air.land() == 0
    assert pfn_at(owner, va) == frame and page(frame)._mapcount == 0
    assert owner(lambda task: task.load(va, 4)) == b"new\0"
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_an_entry_that_mremap_moves_comes_down_at_its_new_place(machine, owner, how):
    """move_ptes of mm/mremap.c; page_address_in_vma (line 89) finds it there."""
    va = owner.va
    to = va - (1 << 30)
    air = InTheAir(machine, owner, va + PAGE)
    owner(lambda task: task.mremap(va, 3 * PAGE, 3 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to))
    assert pte_of(owner, va + PAGE) == 0 and migration_entry(pte_of(owner, to + PAGE)) == ("write", air.pfn)
    getattr(air, how)()
    assert owner(lambda task: [task.load(to + i * PAGE, 1)[0] for i in range(3)]) == [0, 1, 2]
    assert (pfn_at(owner, to + PAGE) == air.pfn) == (how == "put_back")
    machine.audit().raise_if_broken()


def test_move_ptes_waits_for_the_anon_vma_lock(machine, owner):
    """A walk that has passed the new place and not come to the old one would miss an entry that
    is moved behind its back, and nobody would ever restore it."""
    va, walker, thread = owner.va, Puppet(machine), owner.clone()
    lock = page_at(owner, va).mapping - C["PAGE_MAPPING_ANON"] + layout.offsetof("AnonVma", "lock")
    vma = mm_of(owner).mmap
    mm = mm_of(owner).address
    walker(lambda task: ksym.spin_lock(lock))
    # Onto itself: one table, another slot, and back.
    thread.begin(lambda task: [ksym.move_ptes(vma, ksym.walk_to_pmd(mm, va), one, one + PAGE,
                                              ksym.walk_to_pmd(mm, va), other)
                               for one, other in ((va, va + 4 * PAGE), (va + 4 * PAGE, va))])
    assert until_waits(thread, "WAIT_SPINLOCK") == lock
    assert is_present(pte_of(owner, va)) and pte_of(owner, va + 4 * PAGE) == 0
    walker(lambda task: ksym.spin_unlock(lock))
    thread.reply()
    assert owner(lambda task: task.load(va, 1)) == b"\0"
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_the_owner_may_exit_while_its_page_is_in_the_air(machine, owner, how):
    """Lines 654-664: rcu_read_lock keeps the anon_vma, and nothing else does."""
    va = owner.va
    air = InTheAir(machine, owner, va)
    anon_vma = air.page.mapping - C["PAGE_MAPPING_ANON"]
    owner.exit()
    # Others that exit look after RCU callbacks.
    for _ in range(3):
        machine.spawn(lambda task: task.store(task.mmap(PAGE), b"x")).result(10)
    poison = bytes([C["POISON_FREE"]]) * 8
    head = layout.view("u8", anon_vma + 8, 8)
    assert head.tobytes() != poison, "the anon_vma is gone, and the migrator is about to use it"
    getattr(air, how)()
    air.mover.exit()
    machine.spawn(lambda task: None).result(10)
    assert head.tobytes() == poison
    assert machine.vmstat()["nr_anon_pages"] == 0
    machine.audit().raise_if_broken()


def test_one_of_two_sharers_may_exit_while_the_page_is_in_the_air(machine, owner):
    va, child = owner.va, owner.fork()
    air = InTheAir(machine, owner, va)
    owner.exit()
    assert air.land() == 0
    assert page_at(child, va)._mapcount == 0 and child(lambda task: task.load(va, PAGE)) == bytes(PAGE)
    machine.audit().raise_if_broken()


# ---- pages that are not there any more ----------------------------------------------

def test_a_page_freed_under_the_migrator_is_done(machine, owner):
    """Lines 628-631, 708-716: the last reference is the migrator's."""
    va = owner.va
    old, kept = page_at(owner, va).address, page_at(owner, va + PAGE).address
    ours, theirs = multiprocess.Pipe()
    helper = owner.clone()
    before = free_frames(machine)

    def program(task, connection):
        def new_page(page):
            # Between isolation and locking; the test unmaps the page now.
            if page == old:
                connection.send("now")
                connection.recv()
            return ksym.alloc_pages_node(1, GFP, 0)
        return migrate(task, [old, kept], new_page)

    child = machine.spawn(program, theirs)
    assert ours.recv() == "now"
    helper(lambda task: task.munmap(va, PAGE))
    ours.send("go on")
    rc, results = child.result(10)
    assert rc == 0 and results[kept] == 1
    assert free_frames(machine) == before + 1
    assert owner(lambda task: task.load(va + PAGE, 1)) == b"\1"
    machine.audit().raise_if_broken()


def test_an_unmapped_anonymous_page_is_not_moved(machine, owner):
    """Lines 692-700, as later kernels have them: without a mapping seen under rcu_read_lock the
    anon_vma may be gone."""
    va, mover = owner.va, Puppet(machine)
    old = page_at(owner, va)
    address = old.address

    def attempt(task):
        assert ksym.isolate_lru_page(address) == 0
        ksym.get_page(address)
        new = ksym.alloc_pages_node(1, GFP, 0)
        ksym.lock_page(address)
        return new

    new = mover(attempt)
    owner(lambda task: task.munmap(va, PAGE))
    mapping = old.mapping
    assert mapping & C["PAGE_MAPPING_ANON"] and old._mapcount == -1
    assert mover(lambda task: ksym.unmap_and_move_locked(new, address)) == EAGAIN
    assert old.mapping == mapping and layout.struct("Page", new).mapping == 0
    mover(lambda task: (ksym.unlock_page(address), ksym.put_page(address), ksym.putback_lru_page(address),
                        ksym.putback_lru_page(new)))
    machine.audit().raise_if_broken()


def test_a_page_without_a_mapping_is_not_touched(machine):
    """Lines 678-690."""
    def attempt(task):
        new, old = (ksym.alloc_pages_node(node, GFP, 0) for node in (1, 0))
        ksym.lock_page(old)
        before = layout.view("Page", old).tobytes()
        rc = ksym.unmap_and_move_locked(new, old)
        after = layout.view("Page", old).tobytes()
        ksym.unlock_page(old)
        ksym.put_page(new), ksym.put_page(old)
        return rc, before == after
    assert Puppet(machine)(attempt) == (EAGAIN, True)
    machine.audit().raise_if_broken()


# ---- lists of pages --------------------------------------------------------------------

def test_a_list_is_moved_and_each_result_is_left_where_it_was_asked_for(machine, owner):
    """Lines 731-732, 751-800: the node, or the error."""
    va, other = owner.va, Puppet(machine)
    pages = [page_at(owner, va + i * PAGE).address for i in range(4)]
    busy = pages[2]
    other(lambda task: ksym.get_page(busy))
    count = counter(machine)
    rc, results = Puppet(machine)(lambda task: migrate(task, pages, lambda page: ksym.alloc_pages_node(1, GFP, 0)))
    assert rc == 1 and [results[one] for one in pages] == [1, 1, EAGAIN, 1]
    assert (count("pgmigrate_success"), count("pgmigrate_fail"), count("pgmigrate_retry")) == (3, 1, 10)
    assert [node_at(owner, va + i * PAGE) for i in range(4)] == [1, 1, 0, 1]
    other(lambda task: ksym.put_page(busy))
    machine.audit().raise_if_broken()


def test_what_cannot_move_is_counted_also_when_the_next_page_finds_no_memory(machine, owner, tmp_path):
    (tmp_path / "file").write_bytes(bytes(Mapper.PAGES * PAGE))
    fixed, va = Mapper(machine, str(tmp_path / "file"), fs="fixed"), owner.va
    fixed.load(0, 1)
    first, last = page_at(fixed, fixed.va).address, page_at(owner, va).address
    count = counter(machine)
    rc, results = Puppet(machine)(lambda task: migrate(
        task, [first, last], lambda page: ksym.alloc_pages_node(1, GFP, 0) if page == first else 0))
    assert rc == ENOMEM and results[first] == EIO
    assert (count("pgmigrate_success"), count("pgmigrate_fail")) == (0, 1)
    machine.audit().raise_if_broken()


def test_a_page_that_is_free_again_before_the_last_pass_is_moved(machine, owner):
    """Lines 765-790: ten passes over what was busy."""
    va, other = owner.va, Puppet(machine)
    busy = page_at(owner, va).address
    other(lambda task: ksym.get_page(busy))

    def program(task):
        attempts = []

        def new_page(page):
            attempts.append(page)
            if len(attempts) == 7:
                # Somebody's reference is dropped, before the seventh attempt.
                ksym.put_page(busy)
            return ksym.alloc_pages_node(1, GFP, 0)
        return migrate(task, [busy], new_page), len(attempts)

    (rc, results), attempts = Puppet(machine)(program)
    assert (rc, results[busy], attempts) == (0, 1, 7)
    assert node_at(owner, va) == 1
    machine.audit().raise_if_broken()


def test_without_a_page_to_move_to_the_call_ends_and_all_goes_back(machine, owner):
    """Lines 621-622, 774-776, 794: -ENOMEM at the third page; the fourth is not tried."""
    va = owner.va
    pages = [page_at(owner, va + i * PAGE).address for i in range(4)]

    def program(task):
        asked = []

        def new_page(page):
            asked.append(page)
            return 0 if len(asked) == 3 else ksym.alloc_pages_node(1, GFP, 0)
        return migrate(task, pages, new_page)[0], len(asked)

    assert Puppet(machine)(program) == (ENOMEM, 3)
    machine.init.migrate_prep()
    assert [node_at(owner, va + i * PAGE) for i in range(4)] == [1, 1, 0, 0]
    assert all(page_at(owner, va + i * PAGE).flags & flags("PG_lru") for i in range(4))
    machine.audit().raise_if_broken()


def test_pf_swapwrite_is_set_for_the_call_alone(machine, owner):
    """Lines 759-763, 791-792."""
    va = owner.va
    old = page_at(owner, va).address

    def program(task):
        slot, seen = worker.slot(task.cpu), []

        def new_page(page):
            seen.append(slot.flags & C["PF_SWAPWRITE"])
            return ksym.alloc_pages_node(1, GFP, 0)
        migrate(task, [old], new_page)
        seen.append(slot.flags & C["PF_SWAPWRITE"])
        slot.flags |= C["PF_SWAPWRITE"]
        migrate(task, [ksym.follow_page(vma, va, 0)], lambda page: (ksym.put_page(page),
                                                                ksym.alloc_pages_node(0, GFP, 0))[1])
        seen.append(slot.flags & C["PF_SWAPWRITE"])
        slot.flags &= ~C["PF_SWAPWRITE"]
        return seen

    vma = mm_of(owner).mmap
    assert Puppet(machine)(program) == [C["PF_SWAPWRITE"], 0, C["PF_SWAPWRITE"]]
    machine.audit().raise_if_broken()


# ---- what must never happen stops the machine ------------------------------------------

@pytest.mark.parametrize("crime, line", [
    ("ksym.unlock_page(old)", "PageLocked"),
    ("ksym.try_to_unmap(old, 1)", "PageLocked"),
    ("(ksym.lock_page(old), layout.view('u64', old).__setitem__((), layout.struct('Page', old).flags | "
     "flags('PG_writeback')), ksym.migrate_page(0, new, old))", "PageWriteback"),
    ("(ksym.lock_page(new), ksym.lock_page(old), ksym.move_to_new_page(new, old))", "PageLocked|is locked"),
    ("(ksym.rcu_read_lock(), ksym.lock_page(old))", "rcu_nesting"),
    ("(ksym.page_freeze_refs(old, 1), ksym.get_page(old))", "page_count"),
])
def test_a_broken_rule_is_a_kernel_bug_that_shows_it(boot, crime, line):
    """Lines 353, 419, 577-578 and the rules around them."""
    machine = boot()

    def program(task):
        old, new = (ksym.alloc_pages_node(node, GFP, 0) for node in (0, 1))
        eval(crime, globals(), {"old": old, "new": new})

    child = machine.spawn(program)
    with pytest.raises(shmkern.KernelBug, match=line) as caught:
        child.result(10)
    assert caught.value.kind == "kernel BUG" and f"task {child.pid} (program" in caught.value.report
    machine.close()


# ---- all at once ---------------------------------------------------------------------

def churn(task, seed, over, compared, depth=0):
    """Stores to memory of its own and compares it with what it remembers; meanwhile moves it,
    unmaps it, maps it anew and forks children that do the same with their copy; until over().
    Counts its comparisons in compared[0]."""
    rng = random.Random(seed)
    base = 0x10_0000_0000 + (depth << 32)
    spot = [base + i * 16 * PAGE for i in range(24)]
    shadow = {}
    children = []

    def check(va):
        for index in range(8):
            at = va + index * PAGE
            found, expected = task.load(at + 8 * index, 64), shadow[va][index]
            assert found == expected, f"{at:#x}: {found!r}, not {expected!r} (seed {seed})"
            compared[0] += 1

    def inherited(task, copy, seed, depth):
        for _ in range(3):
            for va, pages in copy.items():
                for index, expected in enumerate(pages):
                    found = task.load(va + index * PAGE + 8 * index, 64)
                    assert found == expected, f"child: {va + index * PAGE:#x}: {found!r}, not {expected!r}"
        for va, pages in copy.items():
            task.store(va, b"the child's own")
        if depth < 1:
            end = time.monotonic() + 0.15
            churn(task, seed, lambda: time.monotonic() >= end, [0], depth + 1)

    while not over():
        choice, va = rng.random(), rng.choice(spot)
        if va not in shadow:
            task.mmap(8 * PAGE, RW, 0x32, va)
            shadow[va] = [bytes(64)] * 8
        if choice < 0.80:
            for index in rng.sample(range(8), 4):
                data = rng.randbytes(64)
                task.store(va + index * PAGE + 8 * index, data)
                shadow[va][index] = data
            check(va)
        elif choice < 0.86:
            to = rng.choice(spot)
            if to != va:
                task.mremap(va, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to)
                shadow[to] = shadow.pop(va)
                check(to)
        elif choice < 0.92:
            task.munmap(va, 8 * PAGE)
            del shadow[va]
        elif choice < 0.97:
            task.mprotect(va + 2 * PAGE, 3 * PAGE, PROT_READ)
            check(va)
            task.mprotect(va, 8 * PAGE, RW)
        elif len(children) < 3:
            children.append(task.fork(inherited, {va: list(pages) for va, pages in shadow.items()},
                                      rng.random(), depth))
        else:
            children.pop(0).result(20)
    for va in list(shadow):
        check(va)
    for child in children:
        child.result(20)


def test_no_store_is_lost_while_pages_move_and_their_owners_do_what_they_like(boot, shared):
    """Four tasks and their children against two migrators that know frames only and one that
    asks by address."""
    machine = boot(nodes=3, frames_per_node=8192, max_tasks=128, hung_task_timeout=15)
    count, over, compared = counter(machine), shared("u64"), shared("u64", 4)
    migrators = [machine.start_migrator(seed=seed) for seed in range(2)]
    workers = [machine.spawn(churn, seed, lambda: over[0], compared[seed:seed + 1]) for seed in range(4)]
    rng, least = random.Random(0), time.monotonic() + 5
    while time.monotonic() < least or min(compared) <= 500 or count("pgmigrate_success") <= 1000 or \
            count("migration_entry_wait") == 0:
        places = [0x10_0000_0000 + rng.randrange(24 * 16) * PAGE for _ in range(32)]
        for child in workers:
            try:
                machine.init.move_pages(child.pid, places, [rng.randrange(3) for _ in places], MPOL_MF_MOVE_ALL)
            except OSError as error:
                # It has not begun, or is done; or forks have filled a node.
                assert error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOMEM)
        machine.check()
    over[0] = 1
    for child in workers:
        child.result(30)
    for migrator in migrators:
        migrator.stop(10)
    machine.audit(check_poison=True).raise_if_broken()
    assert machine.vmstat()["nr_anon_pages"] == 0


def test_no_increment_is_lost_by_threads_whose_memory_moves(boot, shared):
    """Threads of one address space, so that every flush has several CPUs to wait for."""
    machine, over = boot(nodes=2, frames_per_node=512, hung_task_timeout=15), shared("u64")

    def add(task, va):
        done = 0
        while not over[0]:
            for index in range(8):
                task.fetch_add64(va + index * PAGE, 1)
                task.fetch_add64(va + index * PAGE + 2048, 1 << 32)
            done += 1
        return done

    def program(task):
        va = task.mmap(8 * PAGE)
        threads = [task.clone(add, va) for _ in range(4)]
        total = sum(thread.result(40) for thread in threads)
        return total, [(task.load64(va + i * PAGE), task.load64(va + i * PAGE + 2048)) for i in range(8)]

    migrator, least, count = machine.start_migrator(), time.monotonic() + 1, counter(machine)
    child = machine.spawn(program)
    until(lambda: time.monotonic() >= least and count("tlb_shootdown") > 5000 and count("migration_entry_wait") > 20,
          "pages that move", check=machine.check)
    over[0] = 1
    total, sums = child.result(30)
    migrator.stop(10)
    assert sums == [(total, total << 32)] * 8
    machine.audit().raise_if_broken()
