# SPDX-License-Identifier: GPL-2.0-only
"""Promises of reclaim, one function at a time (mm/vmscan.c): what it does with a page that it cannot free, which
lists it looks at, and how far it goes.  Each machine is audited at the end."""
import ctypes

import pytest

from helpers import C, PAGE, Puppet, flags, page_at
from shmkern import MAP_SHARED, PROT_READ, layout, worker
from shmkern.kallsyms import ksym

ANON, FILE = 0, 1

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def small(boot, tmp_path):
    """A machine of one node of 256 frames, with a swap area; whoever reclaims is the test."""
    machine = boot(1, 256)
    machine.swapon(tmp_path / "swap", 500)
    return machine


class ScanControl(ctypes.Structure):
    """struct ScanControl: of vmscan.pxd, so not in the layout."""
    _fields_ = [("nr_reclaimed", ctypes.c_uint64), ("gfp", ctypes.c_uint64), ("kswapd", ctypes.c_int),
                ("mem_cgroup", ctypes.c_uint64)]

    def __init__(self, kswapd=1):
        super().__init__(0, C["GFP_KERNEL"], kswapd, 0)

    @property
    def address(self):
        return ctypes.addressof(self)


def slots_in_use():
    """Slots of all areas that are in use."""
    return layout.kernel().total_swap_pages - layout.kernel().nr_swap_pages


# ---- one page ----------------------------------------------------------------------

@pytest.mark.parametrize("marked", [True, False], ids=["PG_mlocked", "VM_LOCKED"])
def test_a_page_that_is_found_locked_in_memory_gives_its_slot_back(small, marked):
    """It was isolated before it was locked; or its area is VM_LOCKED, and its turn to be PG_mlocked has not come."""
    puppet = Puppet(small)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store64(va, 7))
    page = page_at(puppet, va).address

    def begin(task):
        ksym.lru_add_drain_all()
        ksym.shrink_active_list(layout.kernel().zones, ANON, 1, ScanControl())
        ksym.lock_page(page)
        added = ksym.add_to_swap(page)
        ksym.unlock_page(page)
        return added, ksym.isolate_lru_page(page)
    assert puppet(begin) == (1, 0) and slots_in_use() == 1
    # Read-only, or locking would write to it, and that would take it out of the swap cache.
    puppet(lambda task: (task.mprotect(va, PAGE, PROT_READ), task.mlock(va, PAGE)))

    def shrink(task):
        ksym.lock_page(page)
        if not marked:
            ksym.clear_page_mlock(page)
        ksym.page_referenced(page, 1, 0)
        ksym.unlock_page(page)
        free = ksym.shrink_page(page, ScanControl())
        seen = layout.struct("Page", page).flags
        ksym.lock_page(page)
        ksym.mlock_vma_page(page)
        ksym.unlock_page(page)
        ksym.putback_lru_page(page)
        return free, seen
    free, seen = puppet(shrink)
    assert not free and not seen & flags("PG_active") and seen & flags("PG_dirty")
    assert not seen & flags("PG_swapcache") and slots_in_use() == 0
    assert page_at(puppet, va).flags & flags("PG_unevictable") and puppet(lambda task: task.load64(va)) == 7
    small.audit().raise_if_broken()


# ---- all there is --------------------------------------------------------------------

def last_file_page(puppet, path):
    """A page of a file that has been used through a mapping, and is the only one that could be freed."""
    path.write_bytes(bytes(PAGE))
    fd = puppet(lambda task: task.open(path))
    va = puppet(lambda task: task.mmap(PAGE, PROT_READ, MAP_SHARED, fd=fd))
    puppet(lambda task: task.load64(va))
    return page_at(puppet, va).address, []


def last_swapped_page(puppet):
    """The same of an anonymous page that has a slot, when no other is free; and those others."""
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store64(va, 7))
    page = page_at(puppet, va).address

    def take_all_slots(task):
        ksym.lru_add_drain_all()
        ksym.shrink_active_list(layout.kernel().zones, ANON, 1, ScanControl())
        ksym.lock_page(page)
        ksym.add_to_swap(page)
        ksym.unlock_page(page)
        return list(iter(ksym.get_swap_page, 0))
    entries = puppet(take_all_slots)
    assert layout.kernel().nr_swap_pages == 0
    puppet(lambda task: task.load64(va))
    return page, entries


@pytest.mark.parametrize("kind", ["file", "anonymous"])
def test_no_page_is_given_up_because_it_is_of_the_wrong_kind_and_was_just_used(small, tmp_path, kind):
    """As hardly any memory is free, only anonymous pages are asked for; as no slot is, only those of files.  That
    must have an end before the last look, for then what was just used is only activated."""
    puppet = Puppet(small)
    page, entries = last_file_page(puppet, tmp_path / "file") if kind == "file" else last_swapped_page(puppet)
    zone = layout.struct("Zone", layout.kernel().zones)
    high, zone.watermark[C["WMARK_HIGH"]] = zone.watermark[C["WMARK_HIGH"]], 1 << 30

    def free(task):
        seen = layout.struct("Page", page).flags
        freed = ksym.try_to_free_pages(0, C["GFP_KERNEL"], 0, 1)
        for entry in entries:
            ksym.swap_free(entry)
        return seen, freed
    seen, freed = puppet(free)
    zone.watermark[C["WMARK_HIGH"]] = high
    assert not seen & flags("PG_active") and freed == 1
    small.audit().raise_if_broken()


# ---- one zone ------------------------------------------------------------------------

def old_pages(puppet, anon, path=None, files=0):
    """Fills memory with anonymous pages, which are active, and reads those of a file, which are not; all have not
    been used since they were looked at last.  The address of the first anonymous one."""
    va = puppet(lambda task: task.mmap(anon * PAGE))
    if files:
        path.write_bytes(bytes(files * PAGE))
        fd = puppet(lambda task: task.open(path))

    def touch(task):
        for number in range(anon):
            task.store64(va + number * PAGE, number)
        if files:
            task.pread(fd, files * PAGE, 0)
        ksym.lru_add_drain_all()
        for number in range(anon):
            page = ksym.follow_page(ksym.find_vma(worker.slot(task.cpu).mm, va), va + number * PAGE, 0)
            ksym.page_referenced(page, 0, 0)
            ksym.put_page(page)
    puppet(touch)
    return va


def deactivate(task):
    """Has all anonymous pages inactive."""
    zone = layout.kernel().zones
    ksym.shrink_active_list(zone, ANON, layout.struct("Zone", zone).vm_stat[C["LRU_ACTIVE_ANON"]], ScanControl())


def shrink(priority, kswapd):
    """A program that is one shrink_zone.  Returns how many pages it freed."""
    def program(task):
        control = ScanControl(kswapd)
        ksym.shrink_zone(layout.kernel().zones, priority, control)
        return control.nr_reclaimed
    return program


def on_lists(machine, *kinds):
    """How many pages are on lists of the one zone."""
    machine.check()
    zone = layout.struct("Zone", layout.kernel().zones)
    return tuple(zone.vm_stat[C[kind]] for kind in kinds)


def test_a_task_takes_pages_of_both_kinds_when_it_stops_as_soon_as_it_has_enough(small, tmp_path):
    puppet = Puppet(small)
    old_pages(puppet, 80, tmp_path / "file", 80)
    puppet(deactivate)
    assert on_lists(small, "LRU_INACTIVE_ANON", "LRU_INACTIVE_FILE") == (80, 80)
    assert puppet(shrink(0, kswapd=0)) == 2 * C["SWAP_CLUSTER_MAX"]
    assert on_lists(small, "LRU_INACTIVE_ANON", "LRU_INACTIVE_FILE") == (80 - C["SWAP_CLUSTER_MAX"],) * 2
    # Who does it for everybody goes on.
    assert puppet(shrink(0, kswapd=1)) == 2 * (80 - C["SWAP_CLUSTER_MAX"])
    small.audit().raise_if_broken()


def use_much_anonymous_memory():
    """As if all anonymous pages that were looked at had been in use, and none of files: they are not worth a look."""
    stat = layout.struct("Zone", layout.kernel().zones).reclaim_stat
    stat.recent_rotated[0], stat.recent_scanned[0] = 1 << 20, 1


@pytest.mark.parametrize("swap", [True, False])
def test_anonymous_pages_become_inactive_in_time_though_only_files_are_looked_at(boot, tmp_path, swap):
    """So that they have the time until their turn comes to be used again; it never comes where nothing can be swapped."""
    machine = boot(1, 256)
    if swap:
        machine.swapon(tmp_path / "swap", 500)
    puppet = Puppet(machine)
    old_pages(puppet, 80, tmp_path / "file", 80)
    use_much_anonymous_memory()
    assert puppet(shrink(C["DEF_PRIORITY"], kswapd=1)) > 0
    assert on_lists(machine, "LRU_INACTIVE_ANON") == ((C["SWAP_CLUSTER_MAX"] if swap else 0),)
    machine.audit().raise_if_broken()


# ---- kswapd --------------------------------------------------------------------------

def balance(task):
    """Does what a node's kswapd does when it has been woken.  Returns how many pages are free then."""
    nid, node = 0, layout.struct("PgData", layout.kernel().nodes)
    node.kswapd_wait = 1
    while node.kswapd_wait:
        ksym.kswapd(nid)
    return layout.struct("Zone", layout.kernel().zones).vm_stat[C["NR_FREE_PAGES"]]


def test_kswapd_has_anonymous_pages_become_inactive_though_there_is_enough_free(small):
    puppet = Puppet(small)
    old_pages(puppet, 80)
    puppet(balance)
    assert on_lists(small, "LRU_INACTIVE_ANON", "LRU_ACTIVE_ANON") == (C["SWAP_CLUSTER_MAX"], 80 - C["SWAP_CLUSTER_MAX"])


def test_kswapd_frees_no_more_than_is_wanted_as_long_as_it_finds_pages_that_can_go(boot, tmp_path):
    """It begins anew with every few pages, so that it does not come to look at all there are."""
    machine = boot(1, 1024)
    machine.swapon(tmp_path / "swap", 2000)
    puppet = Puppet(machine)
    old_pages(puppet, 900)
    puppet(deactivate)
    zone = layout.struct("Zone", layout.kernel().zones)
    high, wanted = zone.watermark[C["WMARK_HIGH"]], zone.vm_stat[C["NR_FREE_PAGES"]] + 430
    zone.watermark[C["WMARK_HIGH"]] = wanted
    free = puppet(balance)
    zone.watermark[C["WMARK_HIGH"]] = high
    assert wanted < free <= wanted + 2 * C["SWAP_CLUSTER_MAX"]
    machine.audit().raise_if_broken()


def test_kswapd_sleeps_when_it_finds_nothing_that_can_go(small):
    puppet = Puppet(small)
    va = old_pages(puppet, 80)
    puppet(lambda task: task.mlock(va, 80 * PAGE))
    zone = layout.struct("Zone", layout.kernel().zones)
    high, zone.watermark[C["WMARK_HIGH"]] = zone.watermark[C["WMARK_HIGH"]], 1 << 30
    free = zone.vm_stat[C["NR_FREE_PAGES"]]
    assert puppet(balance) == free
    zone.watermark[C["WMARK_HIGH"]] = high
