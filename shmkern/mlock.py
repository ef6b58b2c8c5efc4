# SPDX-License-Identifier: GPL-2.0-only
"""Locked pages: PG_mlocked, and the unevictable list (mm/mlock.c).

A page is PG_mlocked exactly while some area with VM_LOCKED maps it.  The bit changes under the
page lock, so that it stands still while a page migrates, and an area's VM_LOCKED changes
before the bits of its pages: whoever clears the bit then looks for other locked areas
(try_to_munlock) and puts it back, and one that is unlocked at the same moment comes to the page
later itself.  (Linux lets both be inexact, and has reclaim put it right.)

Locks: mmap_sem, then PG_locked, then what rmap takes.
"""
from cython import NULL, address as addressof, cast, pointer


# ---- limits ------------------------------------------------------------------

def can_do_mlock():
    """Whether the current task may lock anything."""
    return capable(CAP_IPC_LOCK) or current().rlimit_memlock != 0


def may_lock(pages):
    """Whether the current task may have that many pages locked."""
    return capable(CAP_IPC_LOCK) or pages <= current().rlimit_memlock >> PAGE_SHIFT


# ---- pages -------------------------------------------------------------------

def mlock_vma_page(page):
    """Locks a page that an area with VM_LOCKED maps, and moves it to the unevictable list if
    nobody else has it off its list just now.  The page is locked."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if not PageMlocked(page):
        SetPageMlocked(page)
        inc_zone_page_state(page, NR_MLOCK)
        if isolate_lru_page(page) == 0:
            putback_lru_page(page)


def clear_page_mlock(page):
    """Unlocks a page that is truncated, whatever areas there are.  It is locked and not mapped."""
    if TestClearPageMlocked(page):
        dec_zone_page_state(page, NR_MLOCK)
        if isolate_lru_page(page) == 0:
            putback_lru_page(page)


def munlock_vma_page(page):
    """Unlocks a page that an area does not map any more, or that is unlocked, unless another locked
    area maps it.  Back on the evictable lists it comes, by us or by who has it isolated.  The page
    is locked."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if not TestClearPageMlocked(page):
        return
    dec_zone_page_state(page, NR_MLOCK)
    if try_to_munlock(page) == SWAP_MLOCK:
        SetPageMlocked(page)
        inc_zone_page_state(page, NR_MLOCK)
    elif isolate_lru_page(page) == 0:
        putback_lru_page(page)


def page_is_mapped_at(page, mm, address):
    """Whether the PTE at `address` maps the page."""
    ptl = cast(pointer(Spinlock), NULL)
    if page_check_address(page, mm, address, addressof(ptl), False) == NULL:
        return False
    spin_unlock(ptl)
    return True


def follow_landed_page(vma, address):
    """follow_page in a locked area; waits while a migrator has the page in the air, which maps it again without a
    fault that would lock it.  (FOLL_MIGRATION of later kernels, since 5117b3b835f2.)  Holds mmap_sem; sleeps."""
    pmd = walk_to_pmd(vma.vm_mm, address)
    if pmd == NULL:
        return NULL
    ptl = pte_lockptr(pmd)
    while True:
        page = follow_page(vma, address, 0)
        if page != NULL:
            return page
        # With the lock: without it a PTE that a migrator is just taking away looks like none.
        spin_lock(ptl)
        pte = READ_PTE(pte_offset(pmd, address))
        spin_unlock(ptl)
        if is_swap_pte(pte) and is_migration_entry(pte_to_swp_entry(pte)):
            migration_entry_wait(vma.vm_mm, pmd, address)
        elif not pte_present(pte):
            return NULL


def munlock_one(vma, page, address):
    """munlock_vma_page for a page that was just seen mapped at `address`, with a reference of the
    caller's, which it drops.  Says whether it was mapped there still: while we waited for its lock migration may
    have made a swap entry of its PTE.  Takes the page lock."""
    lock_page(page)
    mapped = page_is_mapped_at(page, vma.vm_mm, address)
    if mapped:
        munlock_vma_page(page)
    unlock_page(page)
    put_page(page)
    return mapped


def munlock_swapped(entry):
    """munlock_vma_page for a page of the swap cache whose PTE in a locked area has become a swap entry,
    as those do that migrate.  Another locked area with such an entry locks it again when it maps it.
    The entry stays: the caller holds mmap_sem for writing.  Takes the page lock."""
    page = lookup_swap_cache(entry)
    if page == NULL:
        return
    lock_page(page)
    # With the entry's use of the slot, and our reference, the page can neither leave the cache nor be replaced:
    # no reason to look again, as whoever only saw an entry must.
    VM_BUG_ON_PAGE(not PageSwapCache(page) or page.private != entry, page)
    munlock_vma_page(page)
    unlock_page(page)
    put_page(page)


def munlock_pte_range(vma, pmd, address, end):
    """munlock_one for one table's part of [address, end)."""
    ptl = pte_lockptr(pmd)
    while address < end:
        # With the lock: without it a PTE that a migrator is just taking away looks like none.
        spin_lock(ptl)
        pte = READ_PTE(pte_offset(pmd, address))
        spin_unlock(ptl)
        if is_swap_pte(pte) and is_migration_entry(pte_to_swp_entry(pte)):
            # The bit goes with the page, so wait until it has landed.
            migration_entry_wait(vma.vm_mm, pmd, address)
            continue
        if is_swap_pte(pte):
            munlock_swapped(pte_to_swp_entry(pte))
        if pte_present(pte) and not pte_special(pte):
            page = follow_page(vma, address, 0)
            if page == NULL or not munlock_one(vma, page, address):
                continue
        address += PAGE_SIZE


def munlock_vma_pages_range(vma, start, end):
    """Unlocks the pages of [start, end), which `vma` holds and which is no longer VM_LOCKED or about
    to be unmapped.  Holds mmap_sem for writing, or is the last user; sleeps."""
    # Marked here and elsewhere: the reverse map looks at it without mmap_sem.
    WRITE_ONCE64(addressof(vma.vm_flags), vma.vm_flags & ~cast(u64, VM_LOCKED))
    at = start
    while True:
        pmd = next_pmd(vma.vm_mm, addressof(at), end)
        if pmd == NULL:
            break
        stop = addr_end(at, end, PMD_MASK)
        munlock_pte_range(vma, pmd, at, stop)
        at = stop
