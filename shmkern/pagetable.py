# SPDX-License-Identifier: GPL-2.0-only
"""Page tables: four levels of 512 entries in frames of their own (mm/memory.c,
arch/x86/mm/pgtable.c).

Entries of the upper levels appear under mm->page_table_lock and disappear only when
no VMA is left over them, so whoever holds mmap_sem, or a lock that keeps a VMA on its
rmap list, may walk without a lock.  Entries of the last level change under the lock in
their table's struct page (the split lock), except for the accessed and dirty bits,
which CPUs set at any time.
"""
from cython import NULL, address as addressof, cast, pointer


def table_alloc_one():
    """A zeroed frame for a table of any level, counted in NR_PAGETABLE; NULL if none."""
    page = alloc_page(GFP_KERNEL | __GFP_ZERO)
    if page == NULL:
        return NULL
    __SetPagePageTable(page)
    page.ptl = 0
    inc_zone_page_state(page, NR_PAGETABLE)
    return cast(pointer(u64), page_address(page))


def table_free_one(table):
    """Frees a table that no CPU's page walk can be in any more."""
    page = virt_to_page(table)
    VM_BUG_ON_PAGE(not PagePageTable(page) or page.ptl != 0, page)
    __ClearPagePageTable(page)
    dec_zone_page_state(page, NR_PAGETABLE)
    put_page(page)


def pgd_alloc():
    """The top level of a new address space; NULL without memory."""
    return table_alloc_one()


def table_alloc(mm, entry, address, shift):
    """The slot for `address` in the table below `entry`, whose index starts at bit
    `shift`.  Makes the table when there is none; NULL without memory.  Takes
    page_table_lock."""
    if not table_present(READ_ONCE64(entry)):
        table = table_alloc_one()
        if table == NULL:
            return NULL
        spin_lock(addressof(mm.page_table_lock))
        # Another task of this mm may have been faster.
        if table_present(READ_ONCE64(entry)):
            spin_unlock(addressof(mm.page_table_lock))
            table_free_one(table)
        else:
            if shift == PAGE_SHIFT:
                mm.nr_ptes += 1
            # Zeroed before it is reachable: page walks take no lock.
            smp_store_release64(entry, pfn_pte(page_to_pfn(virt_to_page(table)), _PAGE_TABLE))
            spin_unlock(addressof(mm.page_table_lock))
    return table_of(READ_ONCE64(entry)) + (address >> shift & (PTRS_PER_TABLE - 1))


def pmd_alloc(mm, address):
    """The pmd entry over `address`, with the levels above it made; NULL without memory.
    The caller holds mmap_sem."""
    pud = table_alloc(mm, pgd_offset(mm, address), address, PUD_SHIFT)
    if pud == NULL:
        return NULL
    return table_alloc(mm, pud, address, PMD_SHIFT)


def pte_alloc(mm, address, pmd_out):
    """The PTE of `address`, with all levels made, and its pmd entry in *pmd_out; NULL
    without memory.  The caller holds mmap_sem."""
    pmd = pmd_alloc(mm, address)
    if pmd == NULL:
        return NULL
    pmd_out[0] = pmd
    return table_alloc(mm, pmd, address, PAGE_SHIFT)
