# SPDX-License-Identifier: GPL-2.0-only
"""What is done to a range of page tables: unmap, free, copy at fork, change protection,
move (mm/memory.c, mm/mprotect.c, mm/mremap.c).

All of it meets migration entries, for a range may be unmapped, forked, protected or
moved while a migrator has pages of it in the air.  A migration entry holds no reference
and no mapping of its page: the page must be left alone, it belongs to the migrator.  A swap
entry is a use of its slot, and nothing else.

The caller has mmap_sem for writing, or is the only user of the address space left.
Locks taken: the split page-table lock; the copy takes the child's, then the parent's;
the move takes the locks of the reverse map, then the lower and the upper table's.
unmap_mapping_range comes from the file and has no mmap_sem, but i_mmap_lock.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import ENOMEM


def next_pmd(mm, address, end):
    """The next pmd entry with a table in [*address, end), with *address moved up to it;
    NULL past the end."""
    while address[0] < end:
        pgd = pgd_offset(mm, address[0])
        if not table_present(READ_ONCE64(pgd)):
            address[0] = addr_end(address[0], end, PGDIR_MASK)
            continue
        pud = pud_offset(pgd, address[0])
        if not table_present(READ_ONCE64(pud)):
            address[0] = addr_end(address[0], end, PUD_MASK)
            continue
        pmd = pmd_offset(pud, address[0])
        # Acquire: as in walk_to_pmd.
        if table_present(smp_load_acquire64(pmd)):
            return pmd
        address[0] = addr_end(address[0], end, PMD_MASK)
    return NULL


def follow_page(vma, address, write):
    """The page mapped at `address`, with a reference taken (FOLL_GET); NULL when none is, or none
    that can be written if that is asked for, or what is mapped has no struct page.  The zero page
    counts as one.  Takes the split lock.  Holds mmap_sem for reading."""
    pmd = walk_to_pmd(vma.vm_mm, address)
    if pmd == NULL:
        return NULL
    ptl = pte_lockptr(pmd)
    spin_lock(ptl)
    pte = READ_PTE(pte_offset(pmd, address))
    page = cast(pointer(Page), NULL)
    if pte_present(pte) and (pte_write(pte) or not write) and pte_pfn(pte) < kernel().max_pfn:
        page = pte_page(pte)
        get_page(page)
    spin_unlock(ptl)
    return page


def rss_of(mm, page):
    """The counter that a mapping of the page is counted in.  Also for the page of a migration
    entry: an anonymous page is one until it is freed, which cannot be while an entry stands."""
    return addressof(mm.anon_rss) if PageAnon(page) else addressof(mm.file_rss)


# ---- unmap -------------------------------------------------------------------

def zap_pte(tlb, vma, address, ptep):
    """Takes one entry away; the page it mapped goes to the gather, a dirty one of a file after a flush of
    its own.  Holds the split lock."""
    mm = vma.vm_mm
    pte = READ_PTE(ptep)
    if is_swap_pte(pte) and is_migration_entry(pte_to_swp_entry(pte)):
        # Its page was counted when it was mapped and has lost its rmap and reference since; only
        # this mm's share of the count is left to give back.  (2.6.30 forgets it: fixed by Linux
        # commit 9f9f1acd713d.)  While the entry still stands: the migrator looks at it without the
        # lock, and frees the page when there is none.
        atomic_add_return64(rss_of(mm, migration_entry_to_page(pte_to_swp_entry(pte))), -1)
    # Atomically: a CPU may be setting the dirty bit.
    pte = ptep_get_and_clear(ptep)
    if pte_present(pte):
        if pte_special(pte):
            return
        page = pte_page(pte)
        if pte_dirty(pte):
            if not PageAnon(page):
                # Not with the rest of the gather: a CPU may go on storing until then, and once the page
                # does not count as mapped any more writeback would clean it and not ask that CPU.  (Linux
                # commits 1cf35d47712d and 5df397dec7c4.)
                smp_mb__after_atomic()
                shoot_down(mm, address, address + PAGE_SIZE)
            set_page_dirty(page)
        # A page of a file outlives its mapping, and so must what the mapping knew of its use.
        if not PageAnon(page) and pte_young(pte):
            mark_page_accessed(page)
        atomic_add_return64(rss_of(mm, page), -1)
        page_remove_rmap(page)
        free_swap_cache(page)
        tlb_remove_page(tlb, page)
    elif not pte_none(pte):
        entry = pte_to_swp_entry(pte)
        if not is_migration_entry(entry):
            atomic_add_return64(addressof(mm.swap_ents), -1)
            free_swap_and_cache(entry)


def is_file_pte(pte):
    """Whether an entry maps, or is going to map, a page of a file, and not a private copy."""
    if pte_present(pte):
        return not pte_special(pte) and not PageAnon(pte_page(pte))
    entry = pte_to_swp_entry(pte)
    return is_migration_entry(entry) and not PageAnon(migration_entry_to_page(entry))


def zap_pte_range(tlb, vma, pmd, address, end, even_cows):
    """zap_pte for one table's part of [address, end); without `even_cows` private copies stay."""
    ptep = pte_offset(pmd, address)
    ptl = pte_lockptr(pmd)
    spin_lock(ptl)
    while address < end:
        pte = READ_PTE(ptep)
        if not pte_none(pte) and (even_cows or is_file_pte(pte)):
            # For each entry anew: a full gather is flushed on the way and forgets.
            tlb_note_range(tlb, address, address + PAGE_SIZE)
            zap_pte(tlb, vma, address, ptep)
        ptep += 1
        address += PAGE_SIZE
    spin_unlock(ptl)


def unmap_page_range(tlb, vma, address, end, even_cows):
    """Takes all entries of [address, end), inside `vma`, away; without `even_cows` private copies
    stay.  The tables stay."""
    at = address
    while True:
        pmd = next_pmd(vma.vm_mm, addressof(at), end)
        if pmd == NULL:
            break
        stop = addr_end(at, end, PMD_MASK)
        zap_pte_range(tlb, vma, pmd, at, stop, even_cows)
        at = stop


def unmap_mapping_range(mapping, first, last, even_cows):
    """Takes all entries for the pages `first` to `last` of a file away, in every address space;
    with `even_cows` private copies of them as well.  Takes i_mmap_lock, and no mmap_sem: the
    tables of an area stay as long as it is in i_mmap."""
    spin_lock(addressof(mapping.i_mmap_lock))
    vma = vma_interval_tree_iter_first(addressof(mapping.i_mmap), first, last)
    while vma != NULL:
        low = max(first, vma.vm_pgoff)
        high = min(last, vma_last_index(vma))
        tlb_gather_mmu(addressof(tlb), vma.vm_mm)
        unmap_page_range(addressof(tlb), vma, vma.vm_start + ((low - vma.vm_pgoff) << PAGE_SHIFT),
                         vma.vm_start + ((high - vma.vm_pgoff + 1) << PAGE_SHIFT), even_cows)
        tlb_finish_mmu(addressof(tlb))
        vma = vma_interval_tree_iter_next(vma, first, last)
    spin_unlock(addressof(mapping.i_mmap_lock))


# ---- free tables -------------------------------------------------------------
#
# `floor` and `ceiling` are where the neighbouring areas end and begin (0 for none
# above): a table that also covers one of them stays.

def table_is_needed(address, floor, ceiling, mask):
    """Whether the table whose range (of size ~mask + 1) holds `address` also covers an area
    below `floor` or from `ceiling` on."""
    start = address & mask
    end = start + (~mask + 1)
    return start < floor or (ceiling != 0 and end > ceiling)


def free_table(tlb, entry, address):
    """Unhooks the empty table below `entry` and gives it to the gather: a CPU may be
    walking it for `address`, until the flush has waited for its access."""
    page = pte_page(READ_ONCE64(entry))
    tlb_note_range(tlb, address & PAGE_MASK, (address & PAGE_MASK) + PAGE_SIZE)
    WRITE_ONCE64(entry, 0)
    tlb_remove_page(tlb, page)


def free_pmd_range(tlb, pud, address, end, floor, ceiling):
    """Frees the last-level tables of [address, end) below one pud entry, then the pmd
    table itself when nothing else needs it."""
    start = address
    while address < end:
        stop = addr_end(address, end, PMD_MASK)
        pmd = pmd_offset(pud, address)
        if table_present(READ_ONCE64(pmd)) and not table_is_needed(address, floor, ceiling, PMD_MASK):
            free_table(tlb, pmd, address)
            tlb.mm.nr_ptes -= 1
        address = stop
    if not table_is_needed(start, floor, ceiling, PUD_MASK):
        free_table(tlb, pud, start)


def free_pud_range(tlb, pgd, address, end, floor, ceiling):
    """As free_pmd_range, one level up."""
    start = address
    while address < end:
        stop = addr_end(address, end, PUD_MASK)
        pud = pud_offset(pgd, address)
        if table_present(READ_ONCE64(pud)):
            free_pmd_range(tlb, pud, address, stop, floor, ceiling)
        address = stop
    if not table_is_needed(start, floor, ceiling, PGDIR_MASK):
        free_table(tlb, pgd, start)


def free_pgd_range(tlb, address, end, floor, ceiling):
    """Frees the tables that only [address, end) needed.  The range is unmapped, and its
    areas are off their anon_vmas' lists: no reverse map walk comes here any more."""
    while address < end:
        stop = addr_end(address, end, PGDIR_MASK)
        pgd = pgd_offset(tlb.mm, address)
        if table_present(READ_ONCE64(pgd)):
            free_pud_range(tlb, pgd, address, stop, floor, ceiling)
        address = stop


# ---- copy at fork ------------------------------------------------------------

def copy_one_pte(dst_mm, dst, src, vm_flags):
    """Copies one entry to the child; a writable page becomes read-only on both sides.
    Holds both split locks."""
    pte = READ_PTE(src)
    if not pte_present(pte):
        entry = pte_to_swp_entry(pte)
        if not is_migration_entry(entry):
            BUG_ON(not swap_duplicate(entry))
            atomic_add_return64(addressof(dst_mm.swap_ents), 1)
            set_pte_at(dst, pte)
            return
        if is_write_migration_entry(entry) and is_cow_mapping(vm_flags):
            # When the page arrives, neither may write it without copying.
            pte = swp_entry_to_pte(make_migration_entry_read(entry))
            set_pte_at(src, pte)
        atomic_add_return64(rss_of(dst_mm, migration_entry_to_page(entry)), 1)
        set_pte_at(dst, pte)
        return
    if is_cow_mapping(vm_flags):
        # The parent's CPUs keep their writable translations until the flush at the end of
        # the fork; what they write until then, the child sees as well.
        ptep_set_wrprotect(src)
        pte = pte_wrprotect(pte)
    pte = pte_mkold(pte)
    if not pte_special(pte):
        page = pte_page(pte)
        get_page(page)
        page_dup_rmap(page)
        atomic_add_return64(rss_of(dst_mm, page), 1)
    set_pte_at(dst, pte)


def copy_pte_range(dst_mm, src_mm, src_pmd, vma, address, end):
    """Copies one table's part of [address, end).  Returns 0 or -ENOMEM."""
    dst_pmd = NULL
    dst = pte_alloc(dst_mm, address, addressof(dst_pmd))
    if dst == NULL:
        return -ENOMEM
    src = pte_offset(src_pmd, address)
    dst_ptl = pte_lockptr(dst_pmd)
    src_ptl = pte_lockptr(src_pmd)
    # The child does not run yet, so nobody takes these the other way round.
    spin_lock(dst_ptl)
    spin_lock(src_ptl)
    while address < end:
        if not pte_none(READ_PTE(src)):
            copy_one_pte(dst_mm, dst, src, vma.vm_flags)
        src += 1
        dst += 1
        address += PAGE_SIZE
    spin_unlock(src_ptl)
    spin_unlock(dst_ptl)
    return 0


def copy_page_range(dst_mm, src_mm, vma):
    """Copies the entries of the parent's area `vma` to the child.  Returns 0 or -ENOMEM,
    with what was copied left for the child's exit_mmap."""
    # Without an anon_vma nothing but zero pages and pages of a file are mapped, and the child's
    # own faults bring those.  So no entry of a shared area is ever copied.
    if vma.anon_vma == NULL:
        return 0
    at = vma.vm_start
    while True:
        pmd = next_pmd(src_mm, addressof(at), vma.vm_end)
        if pmd == NULL:
            return 0
        stop = addr_end(at, vma.vm_end, PMD_MASK)
        if copy_pte_range(dst_mm, src_mm, pmd, vma, at, stop) != 0:
            return -ENOMEM
        at = stop


# ---- change protection -------------------------------------------------------

def change_pte_range(mm, pmd, address, end, newprot):
    """Gives the entries of one table's part of [address, end) another protection."""
    ptep = pte_offset(pmd, address)
    ptl = pte_lockptr(pmd)
    spin_lock(ptl)
    while address < end:
        pte = READ_PTE(ptep)
        if pte_present(pte):
            # Cleared while it is changed, so that no CPU sets a bit that is then lost.
            pte = ptep_get_and_clear(ptep)
            set_pte_at(ptep, pte_modify(pte, newprot))
        elif not pte_none(pte):
            entry = pte_to_swp_entry(pte)
            if is_write_migration_entry(entry):
                # Writing may not be allowed when the page arrives; the fault finds out.
                set_pte_at(ptep, swp_entry_to_pte(make_migration_entry_read(entry)))
        ptep += 1
        address += PAGE_SIZE
    spin_unlock(ptl)


def change_protection(vma, start, end):
    """Gives all entries of [start, end) the protection that `vma` has now, and flushes."""
    at = start
    while True:
        pmd = next_pmd(vma.vm_mm, addressof(at), end)
        if pmd == NULL:
            break
        stop = addr_end(at, end, PMD_MASK)
        change_pte_range(vma.vm_mm, pmd, at, stop, vma.vm_page_prot)
        at = stop
    flush_tlb_range(vma.vm_mm, start, end)


# ---- move --------------------------------------------------------------------

def move_ptes(vma, old_pmd, old_addr, old_end, new_pmd, new_addr):
    """Moves entries between two tables (perhaps the same one).

    Takes the locks of the reverse map over the move: a walk that has passed one place and
    not yet come to the other would miss an entry that goes the wrong way round, and a
    missed migration entry is never restored, a missed PTE maps a truncated page.  (Linux met
    it in 2011 for anonymous pages, and takes anon_vma->lock since commit 38a76013ad80.)
    """
    mm = vma.vm_mm
    lock_rmap(vma_mapping(vma), vma.anon_vma)
    old_ptl = pte_lockptr(old_pmd)
    new_ptl = pte_lockptr(new_pmd)
    old_pte = pte_offset(old_pmd, old_addr)
    new_pte = pte_offset(new_pmd, new_addr)
    # mmap_sem for writing keeps other movers out, so the order of the two is free.
    spin_lock(old_ptl)
    if new_ptl != old_ptl:
        spin_lock(new_ptl)
    while old_addr < old_end:
        if not pte_none(READ_PTE(old_pte)):
            pte = ptep_clear_flush(mm, old_addr, old_pte)
            set_pte_at(new_pte, pte)
        old_pte += 1
        new_pte += 1
        old_addr += PAGE_SIZE
    if new_ptl != old_ptl:
        spin_unlock(new_ptl)
    spin_unlock(old_ptl)
    unlock_rmap(vma_mapping(vma), vma.anon_vma)


def move_page_tables(vma, old_addr, new_vma, new_addr, length, back):
    """Moves the entries of `length` bytes at `old_addr` in `vma` to `new_addr` in `new_vma`.  With
    `back`, to where they came from, which takes no memory.

    Returns how many bytes were moved: less than `length` when there was no memory for a
    table."""
    mm = vma.vm_mm
    at = old_addr
    old_end = old_addr + length
    while True:
        old_pmd = next_pmd(mm, addressof(at), old_end)
        if old_pmd == NULL:
            return length
        new_pmd = NULL
        to = new_addr + (at - old_addr)
        if back:
            # One table's entries may have come from two, and one of those be none: nothing came from there.
            # (Linux would make it, and lose what is behind it when it cannot.)
            new_pmd = walk_to_pmd(mm, to)
        elif pte_alloc(mm, to, addressof(new_pmd)) == NULL:
            return at - old_addr
        stop = addr_end(at, old_end, PMD_MASK)
        # As far as both tables reach.
        stop = at + min(stop - at, addr_end(to, to + (stop - at), PMD_MASK) - to)
        if new_pmd != NULL:
            move_ptes(vma, old_pmd, at, stop, new_pmd, to)
        at = stop
