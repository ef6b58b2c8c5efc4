# SPDX-License-Identifier: GPL-2.0-only
"""LRU lists: pages enter by the batch, leave by isolation, and come back to the list that
their flags say."""
import errno

import pytest
from multiprocess import get_context

from helpers import Puppet
from shmkern import layout, vmstat
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

PAGE_SIZE, BATCH = C["PAGE_SIZE"], C["PAGEVEC_SIZE"]
LISTS = ["LRU_INACTIVE_ANON", "LRU_ACTIVE_ANON", "LRU_INACTIVE_FILE", "LRU_ACTIVE_FILE", "LRU_UNEVICTABLE"]


def page_at(task, va):
    """struct page of what is mapped at `va`."""
    page = ksym.follow_page(ksym.find_vma(slot(task.cpu).mm, va), va, 0)
    ksym.put_page(page)
    return layout.struct("Page", page)


def touch(task, count):
    """Maps and touches `count` pages; their struct pages in that order."""
    va = task.mmap(count * PAGE_SIZE)
    for index in range(count):
        task.store(va + index * PAGE_SIZE, b"x")
    return [page_at(task, va + index * PAGE_SIZE) for index in range(count)]


def has(page, flag):
    """Whether a flag of a page is set."""
    return bool(page.flags >> C[flag] & 1)


def pages_on(zone, lru):
    """The struct pages on a list of a zone, newest first."""
    head = zone.address + layout.offsetof("Zone", "lru") + C[lru] * layout.sizeof("ListHead")
    found, node = [], layout.struct("ListHead", head).next
    while node != head:
        found.append(node - layout.offsetof("Page", "lru"))
        node = layout.struct("ListHead", node).next
    return found


def zone_of(page):
    """struct Zone of a page."""
    return layout.struct("Zone", layout.kernel().zones
                         + (page.flags >> C["NODES_PGSHIFT"]) * layout.sizeof("Zone"))


def list_of(page):
    """The names of the lists that a page is on."""
    return [lru for lru in LISTS if page.address in pages_on(zone_of(page), lru)]


def levels():
    """How many pages the counters say are on each kind of list."""
    return [int(vmstat.zones()["vm_stat"][:, C[lru]].sum()) for lru in LISTS]


# ---- pagevecs -----------------------------------------------------------------

def test_pages_wait_in_the_pagevec_until_there_are_fourteen(run):
    def program(task):
        pages = touch(task, BATCH - 1)
        waiting = slot(task.cpu).lru_add_pvecs[C["LRU_ACTIVE_ANON"]]["nr"].item()
        before = [(has(page, "PG_lru"), page._count) for page in pages], levels()[1]
        pages += touch(task, 1)
        after = [(has(page, "PG_lru"), page._count) for page in pages], levels()[1]
        left = slot(task.cpu).lru_add_pvecs[C["LRU_ACTIVE_ANON"]]["nr"].item()
        return waiting, before, after, left
    waiting, before, after, left = run(program)
    assert waiting == BATCH - 1 and left == 0
    assert before == ([(False, 2)] * (BATCH - 1), 0)
    assert after == ([(True, 1)] * BATCH, BATCH)


def test_fresh_anonymous_page_goes_to_the_active_list_newest_first(run):
    def program(task):
        pages = touch(task, 3)
        ksym.lru_add_drain()
        lists = {tuple(list_of(page)) for page in pages}
        order = pages_on(zone_of(pages[0]), "LRU_ACTIVE_ANON")
        return lists, order, [page.address for page in pages]
    lists, order, pages = run(program)
    assert lists == {("LRU_ACTIVE_ANON",)}
    assert order == pages[::-1]


def test_drain_all_empties_the_pagevecs_of_other_cpus(machine):
    touched, drained = mp.Event(), mp.Event()

    def owner(task):
        pages = touch(task, 5)
        waiting = [has(page, "PG_lru") for page in pages]
        touched.set()
        assert drained.wait(20)
        return waiting, [has(page, "PG_lru") for page in pages], [page._count for page in pages]
    child = machine.spawn(owner)
    assert touched.wait(20)
    machine.spawn(lambda task: ksym.lru_add_drain_all()).result(timeout=20)
    drained.set()
    assert child.result(timeout=20) == ([False] * 5, [True] * 5, [1] * 5)


def test_drain_all_leaves_no_cpu_out(boot):
    """Neither the first nor the last, nor the one it runs on."""
    machine = boot(max_tasks=5)
    machine.init.store64(machine.init.mmap(PAGE_SIZE), 1)
    puppets = [Puppet(machine) for _ in range(3)]
    for puppet in puppets:
        puppet(lambda task: task.store64(task.mmap(PAGE_SIZE), 1))
    waiting = vmstat.tasks()["lru_add_pvecs"]["nr"]
    assert [int(row.sum()) for row in waiting][-4:] == [1] * 4
    puppets[1](lambda task: ksym.lru_add_drain_all())
    assert not vmstat.tasks()["lru_add_pvecs"]["nr"].any()


def test_task_that_exits_leaves_no_page_in_its_pagevec(machine):
    machine.spawn(lambda task: touch(task, 5) and None).result(timeout=20)
    assert not vmstat.tasks()["lru_add_pvecs"]["nr"].any()
    assert levels()[1] == 0


def test_page_that_is_freed_while_it_waits_in_the_pagevec_is_freed_by_the_drain(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        page = page_at(task, va)
        task.munmap(va, PAGE_SIZE)
        waiting = page._count, page._mapcount
        ksym.lru_add_drain()
        return waiting, page._count, has(page, "PG_lru"), levels()[1], has(page, "PG_active")
    assert run(program) == ((1, -1), 0, False, 0, False)


@pytest.mark.parametrize("flag", ["PG_lru", "PG_active", "PG_unevictable"])
def test_page_that_is_on_a_list_already_cannot_enter_another(machine, stops, flag):
    def program(task):
        page = ksym.alloc_page(C["GFP_KERNEL"])
        layout.struct("Page", page).flags |= 1 << C[flag]
        ksym.lru_cache_add_lru(page, C["LRU_ACTIVE_ANON"])
    assert "lru.py:" in stops(machine, program)


# ---- isolation ----------------------------------------------------------------

def test_isolated_page_is_on_no_list_and_has_one_more_reference(run):
    def program(task):
        [page] = touch(task, 1)
        ksym.lru_add_drain()
        before = page._count, list_of(page), levels()[1]
        result = ksym.isolate_lru_page(page)
        isolated = page._count, list_of(page), levels()[1], has(page, "PG_lru"), has(page, "PG_active")
        ksym.putback_lru_page(page)
        ksym.lru_add_drain()
        return before, result, isolated, (page._count, list_of(page), levels()[1])
    before, result, isolated, after = run(program)
    assert result == 0
    assert before == after == (1, ["LRU_ACTIVE_ANON"], 1)
    assert isolated == (2, [], 0, False, True)


def test_page_on_no_list_cannot_be_isolated(run):
    """It waits in a pagevec, somebody has it, it is free."""
    def program(task):
        [page] = touch(task, 1)
        results = [ksym.isolate_lru_page(page)]
        ksym.lru_add_drain()
        results += [ksym.isolate_lru_page(page), ksym.isolate_lru_page(page), page._count]
        ksym.putback_lru_page(page)
        free = ksym.alloc_page(C["GFP_KERNEL"])
        ksym.put_page(free)
        return results + [ksym.isolate_lru_page(free)]
    assert run(program) == [-errno.EBUSY, 0, -errno.EBUSY, 2, -errno.EBUSY]


def test_page_on_a_list_without_a_reference_cannot_be_isolated(run):
    """Its last reference has just gone and it is about to be taken off the list."""
    def program(task):
        [page] = touch(task, 1)
        ksym.lru_add_drain()
        assert ksym.page_freeze_refs(page, 1)
        result = ksym.isolate_lru_page(page), has(page, "PG_lru"), page._count
        ksym.page_unfreeze_refs(page, 1)
        return result
    assert run(program) == (-errno.EBUSY, True, 0)


def test_many_pages_are_isolated_at_once_and_all_come_back(run, shared):
    """migrate's way: by frame number, onto a list; putback_lru_pages undoes it."""
    pagelist = shared("ListHead")

    def program(task):
        pages = touch(task, 40)
        ksym.lru_add_drain()
        kernel = layout.kernel()
        pfns = [(page.address - kernel.mem_map) // 64 for page in pages]
        ksym.INIT_LIST_HEAD(pagelist)
        node = pfns[0] // kernel.frames_per_node
        stop = ksym.isolate_lru_pages(node * kernel.frames_per_node, (node + 1) * kernel.frames_per_node, 30, pagelist)
        isolated = [not has(page, "PG_lru") and page._count == 2 for page in pages]
        behind = [pfn >= stop for pfn in pfns]
        put_back = ksym.putback_lru_pages(pagelist)
        ksym.lru_add_drain()
        return isolated, behind, put_back, [list_of(page) for page in pages]
    isolated, behind, put_back, lists = run(program)
    assert sum(isolated) == put_back == 30
    assert [not one for one in isolated] == behind
    assert lists == [["LRU_ACTIVE_ANON"]] * 40


@pytest.mark.parametrize("set_, clear, lru", [
    ([], [], "LRU_ACTIVE_ANON"),
    ([], ["PG_active"], "LRU_INACTIVE_ANON"),
    ([], ["PG_active", "PG_swapbacked"], "LRU_INACTIVE_FILE"),
    ([], ["PG_swapbacked"], "LRU_ACTIVE_FILE"),
    (["PG_mlocked"], [], "LRU_UNEVICTABLE"),
    (["PG_mlocked"], ["PG_active"], "LRU_UNEVICTABLE"),
])
def test_page_is_put_back_on_the_list_that_its_flags_say(run, set_, clear, lru):
    def program(task):
        [page] = touch(task, 1)
        ksym.lru_add_drain()
        assert ksym.isolate_lru_page(page) == 0
        flags = page.flags
        for flag in set_:
            page.flags |= 1 << C[flag]
        for flag in clear:
            page.flags &= ~(1 << C[flag])
        ksym.putback_lru_page(page)
        at_once = list_of(page)
        ksym.lru_add_drain()
        result = at_once, list_of(page), levels(), page._count, ksym.page_lru(page), \
            has(page, "PG_unevictable"), has(page, "PG_active")
        # As it was, for the audit.
        assert ksym.isolate_lru_page(page) == 0
        page.flags = flags & ~(1 << C["PG_unevictable"])
        ksym.putback_lru_page(page)
        return result
    at_once, lists, counted, count, lru_of_flags, unevictable, active = run(program)
    assert lists == [lru] and count == 1 and lru_of_flags == C[lru]
    assert counted == [int(name == lru) for name in LISTS]
    # A page that waited in a pagevec could become evictable meanwhile and be stranded.
    assert at_once == ([lru] if lru == "LRU_UNEVICTABLE" else [])
    assert unevictable == (lru == "LRU_UNEVICTABLE")
    assert active == (lru in ("LRU_ACTIVE_ANON", "LRU_ACTIVE_FILE"))


def test_page_on_the_unevictable_list_is_not_activated(run):
    """Whoever wanted to activate it looked before it was locked."""
    def program(task):
        [page] = touch(task, 1)
        ksym.lru_add_drain()
        ksym.lock_page(page)
        ksym.mlock_vma_page(page)
        ksym.unlock_page(page)
        ksym.activate_page(page)
        found = list_of(page), has(page, "PG_active")
        ksym.lock_page(page)
        ksym.munlock_vma_page(page)
        ksym.unlock_page(page)
        return found
    assert run(program) == (["LRU_UNEVICTABLE"], False)


def test_page_that_is_munlocked_leaves_the_unevictable_list(run):
    def program(task):
        [page] = touch(task, 1)
        ksym.lru_add_drain()
        lists = []
        for mlocked in (1, 0):
            assert ksym.isolate_lru_page(page) == 0
            page.flags = page.flags & ~(1 << C["PG_mlocked"]) | mlocked << C["PG_mlocked"]
            ksym.putback_lru_page(page)
            ksym.lru_add_drain()
            lists.append(list_of(page))
        return lists, has(page, "PG_unevictable")
    lists, unevictable = run(program)
    assert lists[0] == ["LRU_UNEVICTABLE"] and lists[1] in (["LRU_INACTIVE_ANON"], ["LRU_ACTIVE_ANON"])
    assert not unevictable


def count_mlocked(task, page, pages):
    """Adds to NR_MLOCK of the page's zone, on this CPU."""
    node = page.flags >> C["NODES_PGSHIFT"]
    vmstat.tasks()["vm_stat_diff"][task.cpu, node * C["VM_STAT_STRIDE"] + C["NR_MLOCK"]] += pages


@pytest.mark.parametrize("flag", [None, "PG_unevictable", "PG_mlocked"])
def test_page_that_is_freed_while_it_is_isolated_is_freed_by_the_putback(run, flag):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        ksym.lru_add_drain()
        page = page_at(task, va)
        assert ksym.isolate_lru_page(page) == 0
        if flag:
            page.flags |= 1 << C[flag]
        # As mlock_vma_page counts it.
        count_mlocked(task, page, flag == "PG_mlocked")
        task.munmap(va, PAGE_SIZE)
        held = page._count
        ksym.putback_lru_page(page)
        return held, page._count, has(page, "PG_lru"), levels()
    assert run(program) == (1, 0, False, [0] * 5)


def test_last_reference_takes_a_page_off_its_list(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        ksym.lru_add_drain()
        page = page_at(task, va)
        listed = list_of(page)
        task.munmap(va, PAGE_SIZE)
        return listed, list_of(page), page._count, levels()[1]
    assert run(program) == (["LRU_ACTIVE_ANON"], [], 0, 0)


def test_putting_back_a_page_that_is_not_isolated_is_a_kernel_bug(machine, stops):
    def program(task):
        [page] = touch(task, 1)
        ksym.lru_add_drain()
        ksym.putback_lru_page(page)
    assert "lru.py:" in stops(machine, program)


def test_one_of_many_isolates_a_page_and_none_is_lost(run):
    """Isolation, putback, drains and the owner's own faults, all at once."""
    start = mp.Barrier(4)

    def owner(task):
        pages = [page.address for page in touch(task, 60)]
        ksym.lru_add_drain()
        others = [task.fork(mover, pages, number) for number in range(3)]
        start.wait(20)
        for _ in range(30):
            va = task.mmap(20 * PAGE_SIZE)
            for index in range(20):
                task.store(va + index * PAGE_SIZE, b"y")
            task.munmap(va, 20 * PAGE_SIZE)
        taken = [other.result(timeout=40) for other in others]
        ksym.lru_add_drain_all()
        lists = [list_of(layout.struct("Page", page)) for page in pages]
        return taken, lists

    def mover(task, pages, number):
        start.wait(20)
        taken = 0
        for turn in range(1500):
            page = pages[turn * (number + 3) % len(pages)]
            if ksym.isolate_lru_page(page) == 0:
                taken += 1
                ksym.putback_lru_page(page)
            if turn % 50 == 0:
                ksym.lru_add_drain_all()
        return taken
    taken, lists = run(owner)
    assert all(count > 0 for count in taken)
    assert lists == [["LRU_ACTIVE_ANON"]] * 60
