# SPDX-License-Identifier: GPL-2.0-only
"""Promises of reclaim, one function at a time (mm/vmscan.c): what it does with a page that it cannot free, which
lists it looks at, and how far it goes.  Each machine is audited at the end."""
import ctypes
import os

import pytest

from helpers import C, PAGE, Mapper, Puppet, flags, page_at
from shmkern import MAP_SHARED, MPOL_BIND, PROT_READ, PROT_WRITE, layout, worker
from shmkern.kallsyms import ksym

ANON, FILE = 0, 1
SHRUNK = "free"
KEPT = []

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


def task_words(count):
    """The address of some words of the process, for as long as it lives."""
    words = (ctypes.c_uint64 * count)()
    KEPT.append(words)
    return ctypes.addressof(words)


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


def in_swap_cache(task, va):
    """Gives the anonymous page at `va` a slot, and makes it one that has not been used lately.  Its address."""
    page = ksym.follow_page(ksym.find_vma(worker.slot(task.cpu).mm, va), va, 0)
    ksym.lock_page(page)
    assert ksym.add_to_swap(page)
    ksym.page_referenced(page, 1, 0)
    ksym.unlock_page(page)
    ksym.put_page(page)
    return page


def shrink_page(page):
    """What shrink_page says of a page that is isolated for it, and the flags that the page has then; SHRUNK, if it is
    free."""
    ksym.lru_add_drain()
    assert ksym.isolate_lru_page(page) == 0
    layout.struct("Page", page).flags &= ~flags("PG_active")
    if ksym.shrink_page(page, ScanControl()):
        ksym.free_hot_page(page)
        return SHRUNK
    found = layout.struct("Page", page).flags
    ksym.putback_lru_page(page)
    return found


@pytest.mark.parametrize("scarce", [False, True])
def test_a_page_in_use_gives_its_slot_back_when_slots_are_scarce(small, scarce):
    puppet = Puppet(small)
    va = old_pages(puppet, 1)

    def program(task):
        page = in_swap_cache(task, va)
        entries = [ksym.get_swap_page() for _ in range(300 if scarce else 100)]
        task.load64(va)
        found = shrink_page(page)
        for entry in entries:
            ksym.swap_free(entry)
        return found
    found = puppet(program)
    assert found & flags("PG_active") and bool(found & flags("PG_swapcache")) is not scarce
    small.audit().raise_if_broken()


def test_a_page_that_only_swap_entries_lead_to_is_in_use_once_it_is_marked(small):
    """It was read ahead, or is shared: who has read the slot will come for it."""
    puppet = Puppet(small)
    va = old_pages(puppet, 1)

    def program(task):
        page = in_swap_cache(task, va)
        ksym.lock_page(page)
        assert ksym.try_to_unmap(page, 0) == C["SWAP_SUCCESS"]
        ksym.unlock_page(page)
        ksym.mark_page_accessed(page)
        return shrink_page(page), shrink_page(page)
    found, then = puppet(program)
    assert found != SHRUNK and found & flags("PG_active") and then == SHRUNK
    small.audit().raise_if_broken()


def test_a_page_that_is_being_written_is_left_where_it_is(small):
    puppet = Puppet(small)
    va = old_pages(puppet, 1)

    def program(task):
        page = in_swap_cache(task, va)
        ksym.lock_page(page)
        ksym.set_page_writeback(page)
        ksym.unlock_page(page)
        found = shrink_page(page), ksym.page_mapcount(page)
        ksym.end_page_writeback(page)
        return found, shrink_page(page)
    (found, mapped), then = puppet(program)
    assert found != SHRUNK and not found & flags("PG_active") and mapped == 1 and then == SHRUNK
    small.audit().raise_if_broken()


def written_pages(puppet, path, count, **kind):
    """A file of pages that have just been written, which are dirty, and marked as used, but mapped by nobody; their
    addresses, and the file's descriptor."""
    path.write_bytes(bytes(count * PAGE))

    def program(task):
        fd = task.open(path, os.O_RDWR, **kind)
        va = task.mmap(count * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=fd)
        pages = []
        for number in range(count):
            task.store64(va + number * PAGE, number + 1)
            page = ksym.follow_page(ksym.find_vma(worker.slot(task.cpu).mm, va), va + number * PAGE, 0)
            ksym.put_page(page)
            pages.append(page)
        task.munmap(va, count * PAGE)
        ksym.lru_add_drain_all()
        for page in pages:
            assert layout.struct("Page", page).flags & flags("PG_dirty", "PG_referenced") == flags("PG_dirty", "PG_referenced")
        return pages, fd
    return puppet(program)


@pytest.mark.parametrize("kind", [{}, {"fs": "buffer"}], ids=["page", "buffer"])
def test_a_dirty_page_of_a_file_is_written_only_when_it_was_not_just_used(small, tmp_path, kind):
    puppet = Puppet(small)
    (page,), _fd = written_pages(puppet, tmp_path / "file", 1, **kind)
    found, then = puppet(lambda task: (shrink_page(page), shrink_page(page)))
    assert found != SHRUNK and found & flags("PG_dirty") and not found & flags("PG_active") and then == SHRUNK
    assert (tmp_path / "file").read_bytes()[0] == 1
    small.audit().raise_if_broken()


def test_a_dirty_page_of_which_somebody_has_a_reference_is_not_written(small, tmp_path):
    """Whoever has it will use it."""
    puppet = Puppet(small)
    (page,), _fd = written_pages(puppet, tmp_path / "file", 1)

    def program(task):
        shrink_page(page)
        ksym.get_page(page)
        found = shrink_page(page)
        ksym.put_page(page)
        return found
    found = puppet(program)
    assert found != SHRUNK and found & flags("PG_dirty") and (tmp_path / "file").read_bytes()[0] == 0
    small.audit().raise_if_broken()


def test_a_page_that_has_left_its_file_goes_with_its_buffers(small, tmp_path):
    """Truncation left it, because somebody had one of them."""
    puppet = Puppet(small)
    (page,), fd = written_pages(puppet, tmp_path / "file", 1, fs="buffer")

    def program(task):
        buffer = layout.struct("Page", page).private
        ksym.get_bh(buffer)
        task.ftruncate(fd, 0)
        orphan = not layout.struct("Page", page).mapping
        ksym.put_bh(buffer)
        return orphan, shrink_page(page)
    assert puppet(program) == (True, SHRUNK)
    small.audit().raise_if_broken()


# ---- one list ------------------------------------------------------------------------

def list_of(lru):
    """The pages on a list of the one zone, newest first."""
    head = layout.kernel().zones + layout.offsetof("Zone", "lru") + C[lru] * layout.sizeof("ListHead")
    found, node = [], layout.struct("ListHead", head).next
    while node != head:
        found.append(node - layout.offsetof("Page", "lru"))
        node = layout.struct("ListHead", node).next
    return found


def test_pages_that_stay_keep_their_order(small, tmp_path):
    puppet = Puppet(small)
    pages, _fd = written_pages(puppet, tmp_path / "file", 20)

    def program(task):
        ksym.shrink_inactive_list(layout.kernel().zones, FILE, 18, ScanControl())
        return list_of("LRU_INACTIVE_FILE")
    # Oldest first they have come around.
    assert puppet(program) == pages[17::-1] + pages[:17:-1]


def test_what_waits_in_a_pagevec_of_who_reclaims_is_within_reach(small, tmp_path):
    (tmp_path / "file").write_bytes(bytes(PAGE))
    puppet = Puppet(small)
    fd = puppet(lambda task: task.open(tmp_path / "file"))

    def program(task):
        task.pread(fd, PAGE, 0)
        before = list_of("LRU_INACTIVE_FILE")
        control = ScanControl()
        ksym.shrink_inactive_list(layout.kernel().zones, FILE, 1, control)
        return before, control.nr_reclaimed
    assert puppet(program) == ([], 1)


def test_without_a_free_slot_a_page_that_has_none_is_not_taken(small):
    puppet = Puppet(small)
    va = old_pages(puppet, 2)

    def program(task):
        page = in_swap_cache(task, va)
        deactivate(task)
        entries = list(iter(ksym.get_swap_page, 0))
        control = ScanControl()
        ksym.shrink_inactive_list(layout.kernel().zones, ANON, 2, control)
        left = list_of("LRU_INACTIVE_ANON")
        for entry in entries:
            ksym.swap_free(entry)
        return page, control.nr_reclaimed, left
    page, freed, left = puppet(program)
    assert freed == 1 and left == [page_at(puppet, va + PAGE).address] and page not in left
    small.audit().raise_if_broken()


def test_a_page_that_was_locked_in_memory_meanwhile_is_put_on_the_unevictable_list(small):
    """And its neighbours, before and behind it, on theirs."""
    puppet = Puppet(small)
    va = old_pages(puppet, 3)
    pages = [page_at(puppet, va + number * PAGE).address for number in range(3)]

    def program(task):
        pagelist = task_words(2)
        ksym.INIT_LIST_HEAD(pagelist)
        for page in pages:
            ksym.isolate_lru_page(page)
            ksym.list_add_tail(page + layout.offsetof("Page", "lru"), pagelist)
        task.mlock(va + PAGE, PAGE)
        ksym.putback_isolated(layout.kernel().zones, pagelist, ScanControl())
        return list_of("LRU_UNEVICTABLE"), list_of("LRU_ACTIVE_ANON")
    assert puppet(program) == ([pages[1]], [pages[2], pages[0]])
    assert [page_at(puppet, va + number * PAGE)._count for number in range(3)] == [1] * 3
    small.audit().raise_if_broken()


def test_a_page_of_a_file_that_somebody_else_has_locked_counts_as_used(small, tmp_path):
    """page_referenced cannot ask its page tables then; whoever has it is about to use it."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    owner, other = Mapper(small, str(path)), Puppet(small)
    owner.load(0, 1)
    page = page_at(owner, owner.va).address
    owner(lambda task: ksym.page_referenced(page, 0, 0))
    assert owner(lambda task: ksym.page_referenced(page, 0, 0)) == 0
    other(lambda task: ksym.lock_page(page))
    assert owner(lambda task: ksym.page_referenced(page, 0, 0)) == 1
    other(lambda task: ksym.unlock_page(page))


@pytest.mark.parametrize("kind", [ANON, FILE], ids=["anonymous", "file"])
def test_what_was_looked_at_and_what_was_in_use_is_counted_for_its_kind(small, tmp_path, kind):
    puppet = Puppet(small)
    va = old_pages(puppet, 20)
    path = tmp_path / "file"
    path.write_bytes(bytes(20 * PAGE))
    fd = puppet(lambda task: task.open(path))
    file_va = puppet(lambda task: task.mmap(20 * PAGE, PROT_READ, MAP_SHARED, fd=fd))

    def program(task):
        zone, at = layout.kernel().zones, (va, file_va)[kind]
        for number in range(20):
            task.load64(file_va + number * PAGE)
        ksym.lru_add_drain_all()
        for page in list_of("LRU_INACTIVE_FILE"):
            ksym.page_referenced(page, 0, 0)
        deactivate(task)
        stat = layout.struct("Zone", zone).reclaim_stat

        def counted():
            return [int(value) for value in (*stat.recent_scanned, *stat.recent_rotated)]
        for word in (stat.recent_scanned, stat.recent_rotated):
            word[:] = 0, 0
        for number in range(5):
            task.load64(at + number * PAGE)
        control = ScanControl()
        ksym.shrink_inactive_list(zone, kind, 20, control)
        first = counted()
        # They are active now: and have been used again, all but one.
        for number in range(4):
            task.load64(at + number * PAGE)
        ksym.shrink_active_list(zone, kind, 5, ScanControl())
        second = counted()
        # By that it is forgotten.
        ksym.shrink_inactive_list(zone, kind, 5, control)
        return first, second, control.nr_reclaimed
    first, second, freed = puppet(program)
    other = 2 * [0]
    other[kind] = 1
    assert first == [20 * one for one in other] + [5 * one for one in other]
    assert second == [25 * one for one in other] + [9 * one for one in other]
    assert freed == 20
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


def test_what_was_seen_counts_less_only_when_it_is_much_for_its_kind(small, tmp_path):
    puppet = Puppet(small)
    old_pages(puppet, 1, tmp_path / "file", 80)
    stat = layout.struct("Zone", layout.kernel().zones).reclaim_stat
    stat.recent_scanned[:] = 0, 20
    puppet(lambda task: ksym.get_scan_ratio(layout.kernel().zones, C["DEF_PRIORITY"], ScanControl(), task_words(2)))
    assert list(stat.recent_scanned) == [0, 20]
    stat.recent_scanned[1] = 21
    puppet(lambda task: ksym.get_scan_ratio(layout.kernel().zones, C["DEF_PRIORITY"], ScanControl(), task_words(2)))
    assert list(stat.recent_scanned) == [0, 10]


def test_memory_is_taken_only_from_nodes_that_may_be_used(boot, tmp_path):
    machine = boot(2, 256)
    puppet = Puppet(machine)
    (tmp_path / "file").write_bytes(bytes(40 * PAGE))
    fd = puppet(lambda task: task.open(tmp_path / "file"))

    def program(task):
        task.set_mempolicy(MPOL_BIND, [0])
        task.pread(fd, 40 * PAGE, 0)
        ksym.lru_add_drain_all()
        return [ksym.try_to_free_pages(0, C["GFP_KERNEL"], 0, nodes) for nodes in (1 << 1, 1 << 0)]
    assert puppet(program) == [0, C["SWAP_CLUSTER_MAX"]]


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
