# SPDX-License-Identifier: GPL-2.0-only
"""Page tables: how entries are encoded, and how long tables live."""
import errno
import functools
import random

import pytest

from shmkern import layout, vmstat
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

pytestmark = pytest.mark.timeout(60)

PAGE_SIZE = C["PAGE_SIZE"]
MIB2, GIB, GIB512 = 1 << 21, 1 << 30, 1 << 39
SHIFTS = [12, 21, 30, 39]
FIXED = C["MAP_FIXED"] | C["MAP_PRIVATE"] | C["MAP_ANONYMOUS"]
TASK_SIZE = 0x7ffffffff000

PRESENT, RW, USER, ACCESSED, DIRTY, PROTNONE, SPECIAL, NX = (
    1, 2, 4, 1 << 5, 1 << 6, 1 << 8, 1 << 9, 1 << 63)


# ---- encodings: pure numbers, no machine --------------------------------------

def test_x86_bits_of_an_entry():
    names = ["_PAGE_PRESENT", "_PAGE_RW", "_PAGE_USER", "_PAGE_ACCESSED", "_PAGE_DIRTY", "_PAGE_FILE",
             "_PAGE_PROTNONE", "_PAGE_SPECIAL", "_PAGE_TABLE"]
    assert [C[name] for name in names] == [1, 2, 4, 0x20, 0x40, 0x40, 0x100, 0x200, 0x67]


@pytest.mark.parametrize("flags, prot", [
    (0, PROTNONE | ACCESSED),
    (C["VM_READ"], PRESENT | USER | ACCESSED | NX),
    (C["VM_WRITE"], PRESENT | USER | ACCESSED | NX),
    (C["VM_READ"] | C["VM_WRITE"], PRESENT | USER | ACCESSED | NX),
    (C["VM_EXEC"], PRESENT | USER | ACCESSED),
    (C["VM_READ"] | C["VM_WRITE"] | C["VM_EXEC"], PRESENT | USER | ACCESSED),
    (C["VM_READ"] | C["VM_WRITE"] | C["VM_SHARED"], PRESENT | RW | USER | ACCESSED | NX),
    (C["VM_READ"] | C["VM_SHARED"], PRESENT | USER | ACCESSED | NX),
])
def test_protection_of_an_area_is_x86s_protection_map(flags, prot):
    """A private area never gets RW from it: the first write may have to copy."""
    assert ksym.vm_get_page_prot(flags | C["VM_MAYREAD"] | C["VM_MAYWRITE"] | C["VM_MAYEXEC"]) == prot


def test_entry_holds_the_frame_from_bit_12_on():
    pte = ksym.pfn_pte(0x12345678, PRESENT | RW | NX)
    assert pte == NX | 0x12345678003
    assert ksym.pte_pfn(pte) == 0x12345678


def test_new_protection_keeps_frame_accessed_dirty_and_special():
    pte = ksym.pfn_pte(77, PRESENT | RW | USER | ACCESSED | DIRTY | SPECIAL)
    assert ksym.pte_modify(pte, PROTNONE) == ksym.pfn_pte(77, PROTNONE | ACCESSED | DIRTY | SPECIAL)
    assert ksym.pte_modify(ksym.pfn_pte(77, PRESENT | RW | NX), PRESENT) == ksym.pfn_pte(77, PRESENT)
    # An area's protection has accessed in it, and a page that was not accessed stays so.
    prot = ksym.vm_get_page_prot(C["VM_READ"])
    assert prot & ACCESSED
    assert ksym.pte_modify(ksym.pfn_pte(77, PRESENT | RW), prot) == ksym.pfn_pte(77, prot & ~ACCESSED)


def test_entry_without_access_is_present_to_the_kernel():
    assert ksym.pte_present(PROTNONE) and ksym.pte_present(PRESENT) and not ksym.pte_present(RW | DIRTY)
    assert not ksym.is_swap_pte(PROTNONE) and not ksym.is_swap_pte(0)


@pytest.mark.parametrize("kind", [0, 1, 17, 29, 30, 31])
@pytest.mark.parametrize("offset", [0, 1, 511, 0x12345, (1 << 28) - 1, (1 << 40) - 1])
def test_swap_entry_has_its_type_in_bits_1_to_5_and_its_offset_from_bit_9(kind, offset):
    entry = ksym.swp_entry(kind, offset)
    assert entry == kind << 1 | offset << 9
    assert (ksym.swp_type(entry), ksym.swp_offset(entry)) == (kind, offset)
    pte = ksym.swp_entry_to_pte(entry)
    assert ksym.pte_to_swp_entry(pte) == entry
    # Neither present nor a file offset nor accessible without access, whatever is in it.
    assert not pte & (PRESENT | PROTNONE | C["_PAGE_FILE"])
    assert ksym.is_swap_pte(pte) == (pte != 0)
    assert ksym.is_migration_entry(entry) == (kind >= 30)
    assert ksym.is_write_migration_entry(entry) == (kind == 31)


def test_last_two_swap_types_are_migration_entries():
    assert (C["SWP_MIGRATION_READ"], C["SWP_MIGRATION_WRITE"], C["MAX_SWAPFILES"]) == (30, 31, 30)


def test_migration_entry_names_the_frame_and_whether_it_was_writable(machine):
    page = layout.kernel().mem_map + 1234 * layout.sizeof("Page")
    write, read = ksym.make_migration_entry(page, 1), ksym.make_migration_entry(page, 0)
    assert (write, read) == (31 << 1 | 1234 << 9, 30 << 1 | 1234 << 9)
    assert ksym.migration_entry_to_page(write) == ksym.migration_entry_to_page(read) == page
    assert ksym.make_migration_entry_read(write) == ksym.make_migration_entry_read(read) == read


@pytest.mark.parametrize("address, end, shift, expected", [
    (0, 1 << 47, 21, MIB2),
    (MIB2 - 4096, 1 << 47, 21, MIB2),
    (MIB2, MIB2 + 4096, 21, MIB2 + 4096),
    (MIB2, 2 * MIB2, 21, 2 * MIB2),
    (GIB512 + 5 * GIB, GIB512 + 7 * GIB, 30, GIB512 + 6 * GIB),
    (TASK_SIZE - 4096, TASK_SIZE, 39, TASK_SIZE),
])
def test_range_of_an_entry_ends_at_its_boundary_or_at_the_end(address, end, shift, expected):
    assert ksym.addr_end(address, end, (1 << 64) - (1 << shift)) == expected


# ---- tables in memory ---------------------------------------------------------

def tables_of(task):
    """The tables of an address space below the top one, as {(level, number)}: the number is
    the address of what the table covers, shifted by its size.  Level 0 are the last-level
    tables, of 2 MiB each."""
    kernel = layout.kernel()
    found = set()

    def walk(table, level, base):
        for index, entry in enumerate(table.tolist()):
            if not entry & PRESENT:
                continue
            assert entry & 0xfff == C["_PAGE_TABLE"], hex(entry)
            pfn = (entry & 0xffffffffff000) >> 12
            page = layout.struct("Page", kernel.mem_map + pfn * 64)
            assert page.flags >> C["PG_pagetable"] & 1 and page._count == 1
            number = base << 9 | index
            found.add((level, number))
            if level:
                walk(layout.view("u64", kernel.frames_base + pfn * PAGE_SIZE, 512), level - 1, number)
    walk(layout.view("u64", layout.struct("MmStruct", slot(task.cpu).mm).pgd, 512), 2, 0)
    return found


@functools.cache
def covered_by(start, end):
    """The tables that have something to say about [start, end)."""
    return {(level, number) for level in range(3)
            for number in range(start >> SHIFTS[level + 1], (end - 1 >> SHIFTS[level + 1]) + 1)}


def test_tables_are_made_on_the_way_to_a_page_and_counted(run):
    def program(task):
        mm = layout.struct("MmStruct", slot(task.cpu).mm)
        before = vmstat.vmstat()["nr_pagetable"]
        counts = []
        for va in (0x10000000, 0x10001000, 0x10000000 + MIB2, 0x10000000 + GIB, 0x10000000 + GIB512):
            task.store(task.mmap(PAGE_SIZE, flags=FIXED, addr=va), b"x")
            counts.append((mm.nr_ptes, vmstat.vmstat()["nr_pagetable"] - before))
        return counts, tables_of(task) == set().union(*(covered_by(va, va + 1) for va in (
            0x10000000, 0x10000000 + MIB2, 0x10000000 + GIB, 0x10000000 + GIB512)))
    counts, as_expected = run(program)
    assert counts == [(1, 3), (1, 3), (2, 4), (3, 6), (4, 9)]
    assert as_expected


@pytest.mark.parametrize("boundary", [MIB2, GIB, GIB512], ids=["2M", "1G", "512G"])
@pytest.mark.parametrize("neighbour", ["none", "below", "above", "both"])
@pytest.mark.parametrize("shape", ["ends there", "begins there", "crosses", "just before", "just behind"])
def test_munmap_frees_the_tables_that_no_neighbour_needs(run, boundary, neighbour, shape):
    """At each kind of boundary between tables, with areas next to it or none."""
    edge = 8 * GIB512 + 3 * boundary
    start, end = {"ends there": (edge - 3 * PAGE_SIZE, edge), "begins there": (edge, edge + 3 * PAGE_SIZE),
                  "crosses": (edge - PAGE_SIZE, edge + PAGE_SIZE),
                  "just before": (edge - 4 * PAGE_SIZE, edge - PAGE_SIZE),
                  "just behind": (edge + PAGE_SIZE, edge + 4 * PAGE_SIZE)}[shape]
    areas = [(start, end)]
    if neighbour in ("below", "both"):
        areas.append((start - 2 * PAGE_SIZE, start - PAGE_SIZE))
    if neighbour in ("above", "both"):
        areas.append((end + PAGE_SIZE, end + 2 * PAGE_SIZE))

    def program(task):
        for low, high in areas:
            task.mmap(high - low, flags=FIXED, addr=low)
            for va in range(low, high, PAGE_SIZE):
                task.store(va, b"x")
        before = tables_of(task)
        task.munmap(start, end - start)
        after = tables_of(task)
        mm = layout.struct("MmStruct", slot(task.cpu).mm)
        nr_ptes = mm.nr_ptes
        for low, high in areas[1:]:
            task.munmap(low, high - low)
        return before, after, nr_ptes, tables_of(task), mm.nr_ptes
    before, after, nr_ptes, last, nr_last = run(program)
    assert before == set().union(*(covered_by(*area) for area in areas))
    assert after == set().union(*(covered_by(*area) for area in areas[1:]))
    assert nr_ptes == sum(level == 0 for level, _number in after)
    assert last == set() and nr_last == 0


@pytest.mark.parametrize("seed", range(6))
def test_tables_live_as_long_as_an_area_is_over_them(run, seed):
    """Random mappings round boundaries of every kind, touched and unmapped in random order."""
    def program(task):
        rng = random.Random(seed)
        edges = [8 * GIB512 + step * size for size in (MIB2, GIB, GIB512) for step in (1, 2, 3)]
        pages, tables = set(), set()
        for _ in range(120):
            low = rng.choice(edges) + rng.randrange(-6, 6) * PAGE_SIZE
            high = low + rng.randrange(1, 9) * PAGE_SIZE
            if rng.random() < 0.1:
                high = low + rng.choice([MIB2, 2 * MIB2, 2 * MIB2 + PAGE_SIZE])
            touched, mapped = [], rng.random() < 0.55
            if mapped:
                task.mmap(high - low, flags=FIXED, addr=low)
                pages.update(range(low, high, PAGE_SIZE))
                touched = [va for va in range(low, high, PAGE_SIZE) if rng.random() < 0.5][:6]
            else:
                task.munmap(low, high - low)
                pages.difference_update(range(low, high, PAGE_SIZE))
            over = set().union(*(covered_by(va, va + 1) for va in pages))
            tables &= over
            for va in touched:
                task.store(va, b"x")
            new = set().union(*(covered_by(va, va + 1) for va in touched))
            found = tables_of(task)
            if mapped:
                # What was mapped there before is unmapped first, perhaps with its tables.
                assert new <= found <= tables | new
            else:
                assert found == tables
            tables = found
        for low in edges:
            task.munmap(low - 8 * PAGE_SIZE, 16 * PAGE_SIZE + 3 * MIB2)
        return tables_of(task)
    assert run(program) == set()


def test_exit_gives_every_table_back(machine, run):
    machine.init.migrate_prep()

    def program(task):
        for va in (65536, 5 * MIB2, 7 * GIB, 9 * GIB512, TASK_SIZE - PAGE_SIZE):
            task.store(task.mmap(PAGE_SIZE, flags=FIXED, addr=va), b"x")
        return vmstat.vmstat()["nr_pagetable"]
    before = machine.vmstat()
    assert run(program) == before["nr_pagetable"] + 1 + 3 + 1 + 2 + 3 + 3
    after = machine.vmstat()
    assert (after["nr_pagetable"], after["nr_free_pages"]) == (before["nr_pagetable"], before["nr_free_pages"])


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_fault_without_memory_for_a_table_is_enomem_and_leaks_nothing(machine, run, nth):
    """The pud, the pmd, the pte table, then the page itself (its anon_vma is the one before)."""
    def program(task):
        va = task.mmap(PAGE_SIZE, flags=FIXED, addr=3 * GIB512)
        task.fail_nth(nth)
        with pytest.raises(OSError) as refused:
            task.store(va, b"x")
        left = task.fail_nth(0)
        tables = len(tables_of(task))
        task.munmap(va, PAGE_SIZE)
        return refused.value.errno, left, tables, tables_of(task)
    assert run(program) == (errno.ENOMEM, 0, min(nth - 1, 3), set())
    machine.audit().raise_if_broken()


def test_two_tasks_that_need_the_same_table_make_one(run, meet):
    """Two threads of one address space fault side by side at the same moment, again and again;
    who comes second gives its table back."""
    regions = 450

    def toucher(task, base, me):
        for index in range(regions):
            va = base + index * MIB2 + me * PAGE_SIZE
            meet(me)
            task.store(va, b"x")

    def program(task):
        base = task.mmap(regions * MIB2, addr=1 << 40)
        thread = task.clone(toucher, base, 1)
        toucher(task, base, 0)
        thread.result(timeout=40)
        mm = layout.struct("MmStruct", slot(task.cpu).mm)
        texts = {task.load(base + index * MIB2 + me * PAGE_SIZE, 1) for index in range(regions) for me in (0, 1)}
        return mm.nr_ptes, sum(level == 0 for level, _number in tables_of(task)), mm.anon_rss, texts
    assert run(program) == (regions, regions, 2 * regions, {b"x"})
