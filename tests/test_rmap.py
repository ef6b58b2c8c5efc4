# SPDX-License-Identifier: GPL-2.0-only
"""The reverse map: from a page to all its PTEs, through forks, splits and moves."""
import pytest
from multiprocess import get_context

from shmkern import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_READ, layout
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

PAGE = C["PAGE_SIZE"]
FIXED = C["MAP_FIXED"] | C["MAP_PRIVATE"] | C["MAP_ANONYMOUS"]
MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
RW, READ = C["_PAGE_RW"], C["SWP_MIGRATION_READ"]
WRITE = C["SWP_MIGRATION_WRITE"]


def mm_of(cpu):
    """struct MmStruct of a CPU's task."""
    return layout.struct("MmStruct", slot(cpu).mm)


def pte_at(cpu, va):
    """The PTE of an address in a CPU's task."""
    mm = mm_of(cpu)
    return int(layout.view("u64", ksym.pte_offset(ksym.walk_to_pmd(mm, va), va))[()])


def vma_at(cpu, va):
    """The area of an address in a CPU's task."""
    return layout.struct("VmAreaStruct", ksym.find_vma(mm_of(cpu), va))


def page_at(cpu, va):
    """struct page of what is mapped at an address in a CPU's task."""
    return layout.struct("Page", layout.kernel().mem_map + ksym.pte_pfn(pte_at(cpu, va)) * layout.sizeof("Page"))


def anon_vmas():
    """How many anon_vmas are in use and not waiting for a grace period."""
    kernel = layout.kernel()
    cache = layout.struct("KmemCache", kernel.anon_vma_cachep)
    return cache.nr_objects - cache.nr_free - kernel.rcu_pending


def migration(pte):
    """The type of a migration entry; None of another PTE."""
    return ksym.swp_type(pte) if ksym.is_swap_pte(pte) and ksym.is_migration_entry(pte) else None


class unmapped:
    """Within it the page is locked, and unmapped from everywhere by migration entries; after it
    it is mapped again as it was.  Another task is the RCU reader that keeps the anon_vma: this one
    may sleep."""

    def __init__(self, task, page):
        self.task, self.page, self._go = task, page, mp.Event()

    def __enter__(self):
        ready, go = mp.Event(), self._go

        def reader(task):
            ksym.rcu_read_lock()
            ready.set()
            assert go.wait(30)
            ksym.rcu_read_unlock()
        self.reader = self.task.clone(reader)
        assert ready.wait(20)
        ksym.get_page(self.page)
        ksym.lock_page(self.page)
        return ksym.try_to_unmap(self.page, 1)

    def __exit__(self, *_exception):
        ksym.remove_migration_ptes(self.page, self.page)
        self._go.set()
        self.reader.result(timeout=20)
        ksym.unlock_page(self.page)
        ksym.put_page(self.page)


class Family:
    """Tasks that are forked from one another and stand still until they are let go."""

    def __init__(self):
        self._go = mp.Event()
        self.children = []

    def fork(self, task, work=lambda task: None):
        """Forks a child that does its work and then stands still; its CPU."""
        ready = mp.Event()

        def stay(task):
            work(task)
            ready.set()
            assert self._go.wait(30)
        self.children.append(task.fork(stay))
        assert ready.wait(20)
        return self.children[-1].cpu

    def let_go(self):
        """Ends them."""
        self._go.set()
        for child in self.children:
            child.result(timeout=20)


# ---- counting -----------------------------------------------------------------

def test_every_process_that_maps_a_page_is_counted(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        page, family, counts = page_at(task.cpu, va), Family(), []
        counts.append(ksym.page_mapcount(page))
        for _ in range(3):
            family.fork(task)
            counts.append(ksym.page_mapcount(page))
        family.fork(task, lambda task: task.store(va, b"own copy"))
        counts.append(ksym.page_mapcount(page))
        family.fork(task, lambda task: task.munmap(va, PAGE))
        counts.append(ksym.page_mapcount(page))
        family.let_go()
        counts.append(ksym.page_mapcount(page))
        task.munmap(va, PAGE)
        return counts, ksym.page_mapcount(page)
    assert run(program) == ([1, 2, 3, 4, 4, 4, 1], 0)


def test_page_belongs_to_the_anon_vma_of_the_area_it_was_made_in(run):
    def program(task):
        va = task.mmap(4 * PAGE)
        task.store(va + 3 * PAGE, b"x")
        page, vma = page_at(task.cpu, va + 3 * PAGE), vma_at(task.cpu, va)
        return page.mapping == vma.anon_vma | C["PAGE_MAPPING_ANON"], page.index == vma.vm_pgoff + 3, \
            ksym.vma_address(page, vma) == va + 3 * PAGE, ksym.page_address_in_vma(page, vma) == va + 3 * PAGE
    assert run(program) == (True, True, True, True)


def test_page_is_at_no_address_of_an_area_that_it_is_outside_of(run):
    def program(task):
        va = 1 << 32
        task.mmap(4 * PAGE, flags=FIXED, addr=va)
        task.store(va + PAGE, b"x")
        page = page_at(task.cpu, va + PAGE)
        task.mprotect(va + PAGE, PAGE, PROT_READ)
        found = [ksym.vma_address(page, vma_at(task.cpu, va + index * PAGE)) for index in range(4)]
        # An area far below and one far above, so that the difference wraps.
        for other in 1 << 20, 1 << 46:
            task.mmap(PAGE, flags=FIXED, addr=other)
            found.append(ksym.vma_address(page, vma_at(task.cpu, other)))
            found.append(ksym.page_address_in_vma(page, vma_at(task.cpu, other)))
        return found
    assert run(program) == [0, (1 << 32) + PAGE, 0, 0, 0, 0, 0, 0]


# ---- unmapping ----------------------------------------------------------------

def test_page_is_unmapped_from_every_process_and_comes_back_as_it_was(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"shared")
        family = Family()
        cpus = [task.cpu] + [family.fork(task) for _ in range(3)]
        page = page_at(task.cpu, va)
        ksym.lru_add_drain_all()
        before = [pte_at(cpu, va) for cpu in cpus], page._count, ksym.page_mapcount(page)
        with unmapped(task, page) as result:
            inside = [migration(pte_at(cpu, va)) for cpu in cpus], page._count, ksym.page_mapcount(page)
            pfns = {ksym.swp_offset(pte_at(cpu, va)) for cpu in cpus}
        after = [pte_at(cpu, va) for cpu in cpus], page._count, ksym.page_mapcount(page)
        right = pfns == {(page.address - layout.kernel().mem_map) // layout.sizeof("Page")}
        family.let_go()
        return result, inside, right, before, after, task.load(va, 6)
    result, inside, right, before, after, text = run(program)
    assert result == C["SWAP_SUCCESS"]
    # Copy-on-write: nobody may write it. Our own reference is left.
    assert inside == ([READ] * 4, 1, 0) and right
    ptes, count, mapcount = after
    assert count == mapcount == before[2] == 4
    accessed_dirty = C["_PAGE_ACCESSED"] | C["_PAGE_DIRTY"]
    assert [pte & ~accessed_dirty for pte in ptes] == [pte & ~accessed_dirty for pte in before[0]]
    assert text == b"shared"


def test_writable_entry_is_a_write_migration_entry_and_its_dirty_bit_is_the_pages(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        page = page_at(task.cpu, va)
        dirty_before = page.flags >> C["PG_dirty"] & 1
        with unmapped(task, page):
            inside = migration(pte_at(task.cpu, va))
        return inside, dirty_before, page.flags >> C["PG_dirty"] & 1, bool(pte_at(task.cpu, va) & RW)
    assert run(program) == (WRITE, 0, 1, True)


def test_page_without_a_place_in_swap_cannot_be_unmapped_for_good(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        page = page_at(task.cpu, va)
        ksym.lock_page(page)
        result = ksym.try_to_unmap(page, 0)
        ksym.unlock_page(page)
        return result, ksym.page_mapcount(page), task.load(va, 1)
    assert run(program) == (C["SWAP_FAIL"], 1, b"x")


def test_page_that_is_not_locked_must_not_be_unmapped(machine, stops):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        ksym.try_to_unmap(page_at(task.cpu, va), 1)
    assert "rmap.py:" in stops(machine, program)


def test_unmapped_page_has_no_anon_vma_to_lock(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        page = page_at(task.cpu, va)
        ksym.get_page(page)
        anon_vma = ksym.page_lock_anon_vma(page)
        held = layout.struct("AnonVma", anon_vma).lock.word, slot(task.cpu).rcu_nesting
        ksym.page_unlock_anon_vma(anon_vma)
        task.munmap(va, PAGE)
        gone = ksym.page_lock_anon_vma(page), slot(task.cpu).rcu_nesting, slot(task.cpu).preempt_count
        ksym.put_page(page)
        return held == (task.cpu + 1, 1), gone, slot(task.cpu).rcu_nesting
    assert run(program) == (True, (0, 0, 0), 0)


@pytest.mark.parametrize("remap", [
    lambda task, va: task.mprotect(va + PAGE, PAGE, PROT_READ),
    lambda task, va: task.munmap(va + 2 * PAGE, PAGE),
    lambda task, va: task.munmap(va, PAGE),
    lambda task, va: task.mremap(va, 3 * PAGE, 3 * PAGE, MOVE, 1 << 40),
    lambda task, va: task.mremap(va + PAGE, PAGE, PAGE, MOVE, 1 << 40),
    lambda task, va: task.mremap(va + PAGE, 2 * PAGE, 8 * PAGE, MOVE, (1 << 40) - PAGE),
    lambda task, va: (task.mprotect(va + PAGE, PAGE, PROT_READ), task.mprotect(va, 3 * PAGE, PROT_READ)),
    lambda task, va: (task.mremap(va, 2 * PAGE, 2 * PAGE, MOVE, 1 << 40),
                      task.mremap(1 << 40, 2 * PAGE, 2 * PAGE, MOVE, va)),
], ids=["protected apart", "split by a hole", "cut in front", "moved", "moved from the middle", "moved and grown",
        "merged again", "moved there and back"])
def test_page_is_found_wherever_it_has_gone_in_both_of_two_processes(machine, run, remap):
    """The middle one of three pages, which a fork shares; the parent then changes its areas."""
    def program(task):
        va = 1 << 32
        task.mmap(3 * PAGE, flags=FIXED, addr=va)
        task.store(va, bytes(3 * PAGE))
        family = Family()
        child = family.fork(task)
        remap(task, va)
        page = page_at(child, va + PAGE)
        results = []
        with unmapped(task, page) as result:
            results += [result, ksym.page_mapcount(page), migration(pte_at(child, va + PAGE))]
        results.append(ksym.page_mapcount(page))
        family.let_go()
        return results
    assert run(program) == [C["SWAP_SUCCESS"], 0, READ, 2]
    machine.audit().raise_if_broken()


def test_moved_page_keeps_its_index_and_is_found_at_its_new_address(run):
    def program(task):
        va = task.mmap(2 * PAGE)
        task.store(va + PAGE, b"x")
        page = page_at(task.cpu, va + PAGE)
        index = page.index
        there = task.mremap(va, 2 * PAGE, 2 * PAGE, MOVE, 1 << 40)
        same = page_at(task.cpu, there + PAGE).address == page.address
        with unmapped(task, page) as result:
            inside = migration(pte_at(task.cpu, there + PAGE))
        return same, page.index == index, ksym.vma_address(page, vma_at(task.cpu, there)) == there + PAGE, \
            result, inside, task.load(there + PAGE, 1)
    assert run(program) == (True, True, True, C["SWAP_SUCCESS"], WRITE, b"x")


# ---- what happens to a page while it is unmapped -------------------------------

def test_area_that_goes_while_its_page_is_unmapped_leaves_nothing_to_map(machine, run):
    """The page is then nobody's but the migrator's, and goes with its reference."""
    def program(task):
        va = task.mmap(2 * PAGE)
        task.store(va, bytes(2 * PAGE))
        ksym.lru_add_drain_all()
        page = page_at(task.cpu, va)
        unmapping = unmapped(task, page)
        unmapping.__enter__()
        # Not from this task, which may not sleep now.
        task.clone(lambda task: task.munmap(va, 2 * PAGE)).result(timeout=20)
        inside = page._count, ksym.page_mapcount(page), mm_of(task.cpu).anon_rss
        unmapping.__exit__()
        return inside, page._count, ksym.page_mapcount(page)
    assert run(program) == ((1, 0, 0), 0, 0)
    machine.audit().raise_if_broken()


def test_fork_copies_migration_entries_and_takes_the_right_to_write_from_both(machine, run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        page, cpu = page_at(task.cpu, va), task.cpu
        unmapping = unmapped(task, page)
        unmapping.__enter__()
        before = migration(pte_at(cpu, va))
        forked, go = mp.Queue(), mp.Event()

        def forker(task):
            family = Family()
            forked.put(family.fork(task))
            assert go.wait(30)
            family.let_go()
        thread = task.clone(forker)
        child = forked.get(timeout=20)
        inside = [migration(pte_at(cpu, va)) for cpu in (task.cpu, child)], ksym.page_mapcount(page)
        unmapping.__exit__()
        after = [bool(pte_at(cpu, va) & RW) for cpu in (task.cpu, child)], ksym.page_mapcount(page)
        go.set()
        thread.result(timeout=20)
        forked.close()
        return before, inside, after, task.load(va, 1)
    assert run(program) == (WRITE, ([READ, READ], 0), ([False, False], 2), b"x")
    machine.audit().raise_if_broken()


def test_mprotect_takes_the_right_to_write_from_a_migration_entry(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        page = page_at(task.cpu, va)
        unmapping = unmapped(task, page)
        unmapping.__enter__()
        task.clone(lambda task: task.mprotect(va, PAGE, PROT_READ)).result(timeout=20)
        inside = migration(pte_at(task.cpu, va))
        unmapping.__exit__()
        return inside, bool(pte_at(task.cpu, va) & RW), task.load(va, 1)
    assert run(program) == (READ, False, b"x")


def test_migration_entry_is_moved_by_mremap_and_found_there(run):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"moved")
        page = page_at(task.cpu, va)
        unmapping = unmapped(task, page)
        unmapping.__enter__()
        task.clone(lambda task: task.mremap(va, PAGE, PAGE, MOVE, 1 << 40)).result(timeout=20)
        inside = migration(pte_at(task.cpu, 1 << 40))
        unmapping.__exit__()
        return inside, task.load(1 << 40, 5)
    assert run(program) == (WRITE, b"moved")


# ---- the life of an anon_vma --------------------------------------------------

def test_anon_vma_goes_with_the_last_area_that_shares_it(run):
    """Areas that were split off it, moved from it or forked from it."""
    def program(task):
        va, counts = 1 << 32, []
        task.mmap(3 * PAGE, flags=FIXED, addr=va)
        counts.append(anon_vmas())
        task.store(va, bytes(3 * PAGE))
        counts.append(anon_vmas())
        task.mprotect(va + PAGE, PAGE, PROT_READ)
        task.mremap(va + 2 * PAGE, PAGE, PAGE, MOVE, 1 << 40)
        family = Family()
        family.fork(task)
        counts.append(anon_vmas())
        task.munmap(va, 2 * PAGE)
        task.munmap(1 << 40, PAGE)
        # The child's are left.
        counts.append(anon_vmas())
        family.let_go()
        counts.append(anon_vmas())
        return counts
    assert run(program) == [0, 1, 1, 1, 0]


def test_areas_that_were_never_written_have_no_anon_vma(run):
    def program(task):
        va = task.mmap(3 * PAGE)
        task.load(va, 3 * PAGE)
        return anon_vmas(), vma_at(task.cpu, va).anon_vma
    assert run(program) == (0, 0)


def test_areas_apart_have_an_anon_vma_each(run):
    def program(task):
        counts = []
        for index in range(4):
            task.mmap(PAGE, flags=FIXED, addr=(1 << 32) + 2 * index * PAGE)
            task.store((1 << 32) + 2 * index * PAGE, b"x")
            counts.append(anon_vmas())
        return counts
    assert run(program) == [1, 2, 3, 4]


def test_two_tasks_that_write_an_area_first_at_once_give_it_one_anon_vma(run, meet):
    count = 300

    def writer(task, me):
        for index in range(count):
            va = (1 << 32) + (4 * index + me) * PAGE
            meet(me)
            task.store(va, b"x")

    def program(task):
        for index in range(count):
            task.mmap(2 * PAGE, flags=FIXED, addr=(1 << 32) + 4 * index * PAGE)
        thread = task.clone(writer, 1)
        writer(task, 0)
        thread.result(timeout=40)
        wrong = 0
        for index in range(count):
            va = (1 << 32) + 4 * index * PAGE
            pages = [page_at(task.cpu, va + me * PAGE) for me in (0, 1)]
            wrong += {page.mapping for page in pages} != {vma_at(task.cpu, va).anon_vma | C["PAGE_MAPPING_ANON"]}
        return wrong, anon_vmas()
    assert run(program) == (0, count)
