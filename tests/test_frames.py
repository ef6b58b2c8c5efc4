# SPDX-License-Identifier: GPL-2.0-only
"""Page frames: references, the buddy allocator, watermarks, nodes."""
import random

import numpy as np
import pytest
from multiprocess import get_context

from shmkern import layout, vmstat
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

PAGE_SIZE, GFP_KERNEL, GFP_ATOMIC = C["PAGE_SIZE"], C["GFP_KERNEL"], C["GFP_ATOMIC"]
THISNODE = GFP_KERNEL | C["__GFP_THISNODE"]


def pfn_of(page):
    """The frame number of a struct page's address."""
    return (page - layout.kernel().mem_map) // layout.sizeof("Page")


def node_of(page):
    """The node of a struct page's address."""
    return pfn_of(page) // layout.kernel().frames_per_node


def frames(page, order=0):
    """The words of the frames of a block, live."""
    kernel = layout.kernel()
    return layout.view("u64", kernel.frames_base + pfn_of(page) * PAGE_SIZE, 512 << order)


def free_block(page, order):
    """Gives back a block that has one reference."""
    assert ksym.put_page_testzero(page) == 1
    ksym.__free_pages(page, order)


def free_lists():
    """The lengths of all free lists: a row for each node, a column for each order."""
    return vmstat.zones()["free_area"]["nr_free"].astype(int)


def alloc_all(nid, gfp, order=0):
    """Allocates blocks until there is no more."""
    pages = []
    while page := ksym.alloc_pages_node(nid, gfp, order):
        pages.append(page)
    return pages


def put_all(pages):
    """Drops a reference to each."""
    for page in pages:
        ksym.put_page(page)


@pytest.fixture
def booted(boot):
    """booted(nodes, frames_per_node) is a machine that has come to rest."""
    def booted(*args, **options):
        machine = boot(*args, **options)
        machine.init.migrate_prep()
        return machine
    return booted


def stopped(machine, program):
    """What a program returns that runs as a task of `machine`."""
    return machine.spawn(program).result(timeout=40)


# ---- references ---------------------------------------------------------------

def test_new_page_has_one_reference_and_the_last_put_frees_it(run):
    def program(task):
        free = vmstat.vmstat()["nr_free_pages"]
        page = ksym.alloc_page(GFP_KERNEL)
        ksym.get_page(page)
        counts = [ksym.page_count(page), vmstat.vmstat()["nr_free_pages"] - free]
        ksym.put_page(page)
        counts += [ksym.page_count(page), vmstat.vmstat()["nr_free_pages"] - free]
        ksym.put_page(page)
        return counts + [ksym.page_count(page), vmstat.vmstat()["nr_free_pages"] - free]
    assert run(program) == [2, -1, 1, -1, 0, 0]


def test_reference_to_a_free_page_is_not_to_be_had(run):
    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        got = ksym.get_page_unless_zero(page)
        put_all([page, page])
        return got, ksym.get_page_unless_zero(page), ksym.page_count(page)
    assert run(program) == (1, 0, 0)


@pytest.mark.parametrize("misuse", [
    lambda page: ksym.get_page(page),
    lambda page: ksym.put_page(page),
    lambda page: ksym.put_page_testzero(page),
    lambda page: ksym.page_unfreeze_refs(page, 0),
], ids=["get", "put", "put_testzero", "unfreeze"])
def test_misused_reference_of_a_free_page_is_a_kernel_bug(machine, stops, misuse):
    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        ksym.put_page(page)
        misuse(page)
    report = stops(machine, program)
    assert "frames.pxd:" in report and "about page " in report


def test_frozen_page_has_no_references_to_give(run):
    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        ksym.get_page(page)
        results = [ksym.page_freeze_refs(page, 1), ksym.page_count(page),
                   ksym.page_freeze_refs(page, 2), ksym.page_count(page),
                   ksym.get_page_unless_zero(page)]
        ksym.page_unfreeze_refs(page, 3)
        results.append(ksym.page_count(page))
        put_all([page] * 3)
        return results
    assert run(program) == [0, 2, 1, 0, 0, 3]


def test_unfreezing_a_page_that_is_not_frozen_is_a_kernel_bug(machine, stops):
    assert "frames.pxd:" in stops(machine, lambda task: ksym.page_unfreeze_refs(ksym.alloc_page(GFP_KERNEL), 2))


def test_freeze_and_reference_exclude_each_other(machine, run, shared):
    frozen, start = shared("u64"), mp.Barrier(3)
    page = run(lambda task: ksym.alloc_page(GFP_KERNEL))

    def freezer(task):
        start.wait(20)
        times = 0
        while times < 300:
            if ksym.page_freeze_refs(page, 1):
                frozen[0] = 1
                times += 1
                frozen[0] = 0
                ksym.page_unfreeze_refs(page, 1)
        frozen[0] = 2

    def user(task):
        start.wait(20)
        wrong = got = 0
        while frozen[0] != 2:
            if ksym.get_page_unless_zero(page):
                wrong += frozen[0] == 1
                got += 1
                ksym.put_page(page)
        return int(wrong), got
    children = [machine.spawn(program) for program in (user, user, freezer)]
    users = [child.result(timeout=40) for child in children][:2]
    assert [wrong for wrong, _got in users] == [0, 0]
    assert ksym.page_count(page) == 1
    run(lambda task: ksym.put_page(page))


# ---- the buddy allocator ------------------------------------------------------

@pytest.mark.parametrize("nodes, frames_per_node", [(1, 1024), (2, 1000), (3, 96), (1, 4096), (64, 64)])
def test_boot_gives_every_frame_to_its_node(booted, nodes, frames_per_node):
    machine = booted(nodes, frames_per_node)
    pages = layout.view("Page", layout.kernel().mem_map, nodes * frames_per_node)
    assert (pages["flags"] >> C["NODES_PGSHIFT"] == np.arange(len(pages)) // frames_per_node).all()
    blocks = free_lists() << np.arange(C["MAX_ORDER"])
    free = [info["nr_free_pages"] for info in machine.zoneinfo()]
    assert blocks.sum(axis=1).tolist() == free
    # All but the zero page and init's page directory.
    assert sum(free) == nodes * frames_per_node - 2
    assert all(info["spanned"] == frames_per_node for info in machine.zoneinfo())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("nodes, frames_per_node", [(2, 1024), (1, 1000), (3, 96)])
def test_random_blocks_are_aligned_apart_and_merge_again(booted, nodes, frames_per_node, seed):
    machine = booted(nodes, frames_per_node)
    before = free_lists()

    def program(task):
        rng = random.Random(seed)
        owner = np.full(nodes * frames_per_node, -1)
        blocks, refused, free = [], 0, sum(info["nr_free_pages"] for info in vmstat.zoneinfo())
        for step in range(600):
            if rng.random() < 0.55:
                order = min(int(rng.expovariate(0.7)), C["MAX_ORDER"] - 1)
                page = ksym.alloc_pages_node(rng.randrange(nodes), GFP_KERNEL, order)
                if not page:
                    refused += 1
                    continue
                pfn = pfn_of(page)
                assert pfn % frames_per_node % (1 << order) == 0, "not aligned"
                assert pfn % frames_per_node + (1 << order) <= frames_per_node, "not on one node"
                assert (owner[pfn:pfn + (1 << order)] == -1).all(), "handed out twice"
                owner[pfn:pfn + (1 << order)] = step
                blocks.append((page, order))
                free -= 1 << order
            elif blocks:
                page, order = blocks.pop(rng.randrange(len(blocks)))
                owner[pfn_of(page):pfn_of(page) + (1 << order)] = -1
                free_block(page, order)
                free += 1 << order
            assert sum(info["nr_free_pages"] for info in vmstat.zoneinfo()) == free
        rng.shuffle(blocks)
        for page, order in blocks:
            free_block(page, order)
        return refused
    stopped(machine, program)
    assert free_lists().tolist() == before.tolist()


def test_last_page_back_merges_all_of_a_node(booted):
    machine = booted(2, 1024)
    before = free_lists()

    def program(task):
        pages = alloc_all(0, GFP_ATOMIC | C["__GFP_THISNODE"])
        random.Random(1).shuffle(pages)
        put_all(pages[1:])
        merged = free_lists()
        ksym.put_page(pages[0])
        return merged.tolist()
    assert stopped(machine, program) != before.tolist()
    assert free_lists().tolist() == before.tolist()
    # Node 1 has lent one frame at most (init's page directory) and is one block but for it.
    assert before[1].sum() <= C["MAX_ORDER"]


def test_small_blocks_are_used_up_before_large_ones_are_split(booted):
    machine = booted(1, 1024)

    def program(task):
        lists = free_lists()[0]
        order = int(np.flatnonzero(lists)[0])
        page = ksym.alloc_pages_node(0, GFP_KERNEL, 0)
        after = free_lists()[0]
        ksym.put_page(page)
        return order, lists.tolist(), after.tolist()
    order, lists, after = stopped(machine, program)
    expected = list(lists)
    expected[order] -= 1
    for smaller in range(order):
        expected[smaller] += 1
    assert after == expected


def test_zeroed_and_freed_frames_are_what_they_should_be(run):
    def program(task):
        page = ksym.alloc_pages_node(0, GFP_KERNEL, 2)
        frames(page, 2)[:] = 7
        free_block(page, 2)
        poisoned = (frames(page, 2) == 0xaaaaaaaaaaaaaaaa).all()
        again = ksym.alloc_pages_node(0, GFP_KERNEL | C["__GFP_ZERO"], 2)
        zeroed = not frames(again, 2).any()
        free_block(again, 2)
        return page == again, bool(poisoned), bool(zeroed)
    assert run(program) == (True, True, True)


def test_machine_without_poison_leaves_freed_frames_as_they_are(booted):
    machine = booted(poison=False)

    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        frames(page)[:] = 7
        ksym.put_page(page)
        return bool((frames(page) == 7).all())
    assert stopped(machine, program)


def test_pages_come_without_a_past(run):
    """Whatever flags and fields they had when they were freed."""
    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        struct = layout.struct("Page", page)
        node = struct.flags
        for bit in ("PG_error", "PG_referenced", "PG_uptodate", "PG_dirty", "PG_checked", "PG_mappedtodisk",
                    "PG_reclaim", "PG_swapbacked", "PG_mlocked", "PG_waiters"):
            struct.flags |= 1 << C[bit]
        # Counted, as whoever locks a page does; it is counted off when the page dies.
        item = (node >> C["NODES_PGSHIFT"]) * C["VM_STAT_STRIDE"] + C["NR_MLOCK"]
        vmstat.tasks()["vm_stat_diff"][task.cpu, item] += 1
        struct.index, struct.private = 5, 6
        struct.mapping = layout.kernel().address | C["PAGE_MAPPING_ANON"]
        ksym.put_page(page)
        again = ksym.alloc_page(GFP_KERNEL)
        fields = struct.flags == node, struct.index, struct.private, struct.mapping, struct._mapcount
        ksym.put_page(again)
        return page == again, fields
    assert run(program) == (True, (True, 0, 0, 0, -1))


def test_allocations_are_counted(machine):
    before = machine.vmstat()

    def program(task):
        free_block(ksym.alloc_pages_node(0, GFP_KERNEL, 3), 3)
        free_block(ksym.alloc_pages_node(0, GFP_KERNEL, 0), 0)
        return [slot(task.cpu).vm_events[C[event]] for event in ("PGALLOC", "PGFREE")]
    alloc, free = stopped(machine, program)
    # And the task's page directory.
    assert (alloc, free) == (10, 9)
    after = machine.vmstat()
    assert after["pgalloc"] - before["pgalloc"] >= 10
    assert after["pgfree"] - before["pgfree"] >= 10


def test_no_frame_is_handed_out_to_two_processes(booted):
    """As many allocations a second as Python can make, and each task's number in its frames."""
    machine = booted(2, 1024, poison=False)
    before, start, kernel = free_lists(), mp.Barrier(4), layout.kernel()
    first_words = layout.view("u64", kernel.frames_base, kernel.max_pfn * 512)[::512]

    def program(task):
        rng, mem_map = random.Random(task.pid), kernel.mem_map
        start.wait(20)
        mine, wrong = [], 0
        for _ in range(3000):
            for order in (0, 0, rng.choice([0, 1, 2, 4])):
                page = ksym.alloc_pages_node(task.pid % 2, GFP_KERNEL, order)
                first_words[page - mem_map >> 6] = task.pid
                mine.append((page, order))
            while mine:
                page, order = mine.pop()
                wrong += first_words[page - mem_map >> 6] != task.pid
                free_block(page, order)
        return int(wrong)
    children = [machine.spawn(program) for _ in range(4)]
    assert [child.result(timeout=40) for child in children] == [0] * 4
    assert free_lists().tolist() == before.tolist()


# ---- freeing what is in use ---------------------------------------------------

def test_double_free_is_a_kernel_bug(machine, stops):
    def program(task):
        page = ksym.alloc_pages_node(0, GFP_KERNEL, 1)
        free_block(page, 1)
        ksym.__free_pages(page, 1)
    report = stops(machine, program)
    assert "frames.py:" in report and "buddy" in report


def test_freeing_an_unaligned_block_is_a_kernel_bug(machine, stops):
    def program(task):
        page = ksym.alloc_pages_node(0, GFP_KERNEL, 2)
        assert ksym.put_page_testzero(page)
        ksym.__free_pages(page + layout.sizeof("Page"), 1)
    assert "frames.py:" in stops(machine, program)


@pytest.mark.parametrize("flag", ["PG_locked", "PG_lru", "PG_private", "PG_writeback", "PG_reserved", "PG_buddy",
                                  "PG_active", "PG_swapcache", "PG_unevictable", "PG_pagetable"])
def test_freeing_a_page_whose_flags_say_that_it_is_in_use_is_a_kernel_bug(machine, stops, flag):
    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        layout.struct("Page", page).flags |= 1 << C[flag]
        # Not put_page, which would look for the page on an LRU list.
        assert ksym.put_page_testzero(page)
        ksym.free_hot_page(page)
    report = stops(machine, program)
    assert "frames.py:" in report and flag.removeprefix("PG_") in report


def test_freeing_a_mapped_page_is_a_kernel_bug(machine, stops):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        ksym.lru_add_drain()
        page = ksym.follow_page(ksym.find_vma(slot(task.cpu).mm, va), va, 0)
        put_all([page, page])
    report = stops(machine, program)
    assert "frames.py:" in report and "mapcount 1" in report


def test_freeing_a_page_of_a_mapping_is_a_kernel_bug(machine, stops):
    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        layout.struct("Page", page).mapping = layout.kernel().address
        ksym.put_page(page)
    assert "mapping" in stops(machine, program)


@pytest.mark.parametrize("nid, order", [(0, 11), (-1, 0), (2, 0)])
def test_allocating_what_there_can_never_be_is_a_kernel_bug(machine, stops, nid, order):
    assert "frames.py:" in stops(machine, lambda task: ksym.alloc_pages_node(nid, GFP_KERNEL, order))


# ---- watermarks and nodes -----------------------------------------------------

def test_watermarks_are_in_order_and_follow_the_size_of_memory(booted):
    for nodes, frames_per_node, expected in (1, 64, 2), (2, 1024, 32), (1, 16384, 256):
        machine = booted(nodes, frames_per_node)
        for info in machine.zoneinfo():
            assert info["min"] == expected
            assert (info["low"], info["high"]) == (expected + expected // 4, expected + expected // 2)
        machine.audit().raise_if_broken()
        machine.close()


def test_ordinary_allocations_stop_at_min_and_atomic_ones_at_half_of_it(booted):
    machine = booted(1, 1024)

    def program(task):
        pages = alloc_all(0, GFP_KERNEL)
        left = vmstat.zoneinfo()[0]["nr_free_pages"]
        atomic = alloc_all(0, GFP_ATOMIC)
        left_then = vmstat.zoneinfo()[0]["nr_free_pages"]
        put_all(pages + atomic)
        return left, left_then
    left, left_then = stopped(machine, program)
    info = machine.zoneinfo()[0]
    assert left == info["min"]
    assert left_then == info["min"] - info["min"] // 2


def test_large_block_is_refused_when_it_would_take_the_last_large_blocks(booted):
    """For each higher order, half as many frames must be left in blocks of that size."""
    machine = booted(1, 1024)

    def program(task):
        pages = alloc_all(0, GFP_ATOMIC)
        # Every second page back: much is free and nothing is in one piece.
        put_all(pages[::2])
        free = vmstat.zoneinfo()[0]["nr_free_pages"]
        singles, pairs = ksym.alloc_pages_node(0, GFP_KERNEL, 0), ksym.alloc_pages_node(0, GFP_KERNEL, 1)
        put_all(pages[1::2] + [singles])
        return free, bool(singles), bool(pairs)
    free, single, pair = stopped(machine, program)
    assert free > 400 and single and not pair


def test_no_watermark_allows_a_block_that_is_not_there(booted):
    """Without one, the frames that are left are fewer than none."""
    machine = booted(1, 1024)

    def program(task):
        # Down to the last frame; then back what is nobody's buddy.
        slot(task.cpu).flags |= C["PF_MEMALLOC"]
        pages = alloc_all(0, GFP_KERNEL)
        put_all(page for page in pages if pfn_of(page) % 2)
        allowed = [ksym.zone_watermark_ok(layout.kernel().zones, order, 0, 0) for order in range(3)]
        put_all(page for page in pages if not pfn_of(page) % 2)
        return allowed
    assert stopped(machine, program) == [True, False, False]


def test_thisnode_takes_from_that_node_or_not_at_all(booted):
    machine = booted(3, 256)

    def program(task):
        before = [info["nr_free_pages"] for info in vmstat.zoneinfo()]
        pages = alloc_all(1, THISNODE)
        after = [info["nr_free_pages"] for info in vmstat.zoneinfo()]
        nodes = {node_of(page) for page in pages}
        put_all(pages)
        return nodes, [one - two for one, two in zip(before, after)], len(pages)
    nodes, taken, count = stopped(machine, program)
    assert nodes == {1} and taken == [0, count, 0] and count > 200


def test_other_nodes_are_used_down_to_low_before_any_goes_down_to_min(booted):
    machine = booted(2, 1024)

    def program(task):
        order = []
        pages = alloc_all(1, GFP_KERNEL)
        for page in pages:
            if not order or order[-1] != node_of(page):
                order.append(node_of(page))
        put_all(pages)
        return order
    assert stopped(machine, program) == [1, 0, 1, 0]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8, 63, 64])
def test_zonelist_has_every_node_once_nearest_first(booted, nodes):
    booted(nodes, 64)
    table = layout.view("PgData", layout.kernel().nodes, nodes)
    for nid in range(nodes):
        order = table["zonelist"][nid].tolist()
        assert sorted(order[:nodes]) == list(range(nodes)) and set(order[nodes:]) <= {-1}
        distances = [min(abs(other - nid), nodes - abs(other - nid)) for other in order[:nodes]]
        assert distances == sorted(distances) and order[0] == nid


@pytest.mark.parametrize("nodes", [5, 64])
def test_full_node_spills_over_in_the_order_of_its_zonelist(booted, nodes):
    machine = booted(nodes, 64)

    def program(task):
        first_seen = []
        pages = alloc_all(3, GFP_KERNEL)
        for page in pages:
            if node_of(page) not in first_seen:
                first_seen.append(node_of(page))
        put_all(pages)
        return first_seen
    zonelist = layout.view("PgData", layout.kernel().nodes, nodes)["zonelist"][3].tolist()
    assert stopped(machine, program) == zonelist[:nodes]


def test_task_allocates_on_its_cpus_node_first(booted):
    machine = booted(4, 256)

    def program(task):
        page = ksym.alloc_page(GFP_KERNEL)
        node = node_of(page)
        ksym.put_page(page)
        return task.cpu, node, slot(task.cpu).numa_node
    for _ in range(3):
        child = machine.spawn(program)
        cpu, node, home = child.result(timeout=20)
        assert node == home == cpu % 4


# ---- fault injection ----------------------------------------------------------

def test_fail_nth_makes_that_allocation_fail_and_no_other(run):
    def program(task):
        task.fail_nth(3)
        pages = [ksym.alloc_page(GFP_KERNEL) for _ in range(5)]
        left = task.fail_nth(7)
        ksym.put_page(ksym.alloc_page(GFP_KERNEL))
        put_all(filter(None, pages))
        return [bool(page) for page in pages], left, task.fail_nth(0)
    assert run(program) == ([True, True, False, True, True], 0, 6)
