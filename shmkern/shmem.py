# SPDX-License-Identifier: GPL-2.0-only
"""Shared anonymous memory (mm/shmem.c): a file of pages that have no place on the host, and go to
swap when memory is short.

What the file has at an index is in its page tree: a page, or while that is in swap its swap entry,
told apart by bit 0 (swp_to_radix_entry).  An entry in the tree is one use of its slot.  i_swapped
counts them.

A page goes out and comes back as one step to everybody else, since its lock is held and it is in
both trees in between: it enters the swap cache before the entry takes its place in the file, and
leaves it after it has taken the entry's.  So who finds the entry finds the page, if there is one.
It is unmapped before it goes and mapped after it came back; a page of the swap cache that is none
of an anonymous area has no mapping, and migration leaves it alone.

Which node a page comes from is the file's to say as well, for ranges of it (shared_policy.py): a
policy that is set through one area holds for all.

Locks: PG_locked, then tree_lock of the file, swap_lock, or tree_lock of the swap cache.
"""
from cython import NULL, address as addressof, cast
from cython.cimports.libc.errno import EEXIST, ENOMEM


# ---- its policy --------------------------------------------------------------

def shmem_set_policy(vma, pol):
    """Gives what an area maps a policy; NULL for none.  Returns 0 or -ENOMEM."""
    pages = (vma.vm_end - vma.vm_start) >> PAGE_SHIFT
    return mpol_set_shared_policy(addressof(vma.vm_file.f_mapping.host.i_policy), vma.vm_pgoff,
                                  vma.vm_pgoff + pages, pol)


def shmem_get_policy(vma, address):
    """The policy of the page at `address`, with a reference, or NULL."""
    return mpol_shared_policy_lookup(addressof(vma.vm_file.f_mapping.host.i_policy),
                                     vma.vm_pgoff + ((address - vma.vm_start) >> PAGE_SHIFT))


def shmem_page_policy(mapping, offset):
    """The policy by which memory for a page is chosen: its own, else the current task's.
    mpol_cond_put gives it back."""
    pol = mpol_shared_policy_lookup(addressof(mapping.host.i_policy), offset)
    return pol if pol != NULL else current().mempolicy


def shmem_alloc_page(gfp, mapping, offset):
    """A frame for the page at an index, by its policy; NULL when that has none."""
    pol = shmem_page_policy(mapping, offset)
    page = alloc_pages_mpol(gfp, 0, pol, offset)
    mpol_cond_put(pol)
    return page


# ---- what of it is in swap ----------------------------------------------------

def shmem_swap_entry(mapping, offset):
    """The swap entry at an index; 0 when there is none.  The caller has no use of it: it may be gone
    by now."""
    entry = cast(swp_entry_t, 0)
    rcu_read_lock()
    item = radix_tree_lookup(addressof(mapping.page_tree), offset)
    if radix_tree_exceptional_entry(item):
        entry = radix_to_swp_entry(item)
    rcu_read_unlock()
    return entry


def shmem_next_swapped(mapping, index):
    """The first swap entry from *index on, with *index moved up to it; 0 when there is none.  Takes
    tree_lock."""
    entry = cast(swp_entry_t, 0)
    spin_lock(addressof(mapping.tree_lock))
    while entry == 0 and mapping.host.i_swapped != 0:
        slot = radix_tree_next_slot(addressof(mapping.page_tree), index, RADIX_TREE_NO_TAG)
        if slot == NULL:
            break
        if radix_tree_exceptional_entry(slot[0]):
            entry = radix_to_swp_entry(slot[0])
        else:
            index[0] += 1
    spin_unlock(addressof(mapping.tree_lock))
    return entry


# ---- out ---------------------------------------------------------------------

def shmem_writepage(page, wbc):
    """Sends a page to swap.  It is locked, not mapped and not dirty any more.  Returns 0, with the page
    unlocked, or AOP_WRITEPAGE_ACTIVATE: there was no room; then it is dirty, and locked."""
    mapping = page_mapping(page)
    VM_BUG_ON_PAGE(page_mapped(page), page)
    if not add_to_swap(page):
        set_page_dirty(page)
        return AOP_WRITEPAGE_ACTIVATE
    entry = page.private
    # The tree's use.
    BUG_ON(not swap_duplicate(entry))
    # Once the page is out of the tree nothing but this keeps the mapping.
    rcu_read_lock()
    spin_lock(addressof(mapping.tree_lock))
    slot = radix_tree_lookup_slot(addressof(mapping.page_tree), page.index)
    VM_BUG_ON_PAGE(slot == NULL or slot[0] != page, page)
    radix_tree_replace_slot(slot, swp_to_radix_entry(entry))
    WRITE_ONCE64(addressof(page.mapping), 0)
    WRITE_ONCE64(addressof(mapping.nrpages), mapping.nrpages - 1)
    WRITE_ONCE64(addressof(mapping.host.i_swapped), mapping.host.i_swapped + 1)
    dec_zone_page_state(page, NR_FILE_PAGES)
    spin_unlock(addressof(mapping.tree_lock))
    rcu_read_unlock()
    put_page(page)      # The page tree's reference.
    ClearPageDirty(page)
    return swap_writepage(page, wbc)


# ---- and back ----------------------------------------------------------------

def shmem_unswap_page(mapping, offset, page):
    """Gives a page of the swap cache its place in the file back, where its entry stands.  The page is
    locked, up to date and charged.  Takes tree_lock."""
    entry = page.private
    spin_lock(addressof(mapping.tree_lock))
    slot = radix_tree_lookup_slot(addressof(mapping.page_tree), offset)
    VM_BUG_ON_PAGE(slot == NULL or slot[0] != swp_to_radix_entry(entry), page)
    get_page(page)
    page.index = offset
    WRITE_ONCE64(addressof(page.mapping), cast(u64, mapping))
    radix_tree_replace_slot(slot, page)
    WRITE_ONCE64(addressof(mapping.nrpages), mapping.nrpages + 1)
    WRITE_ONCE64(addressof(mapping.host.i_swapped), mapping.host.i_swapped - 1)
    inc_zone_page_state(page, NR_FILE_PAGES)
    spin_unlock(addressof(mapping.tree_lock))
    delete_from_swap_cache(page)
    # The tree's use.
    swap_free(entry)
    set_page_dirty(page)


def shmem_swapin_locked(mapping, offset, page, entry):
    """shmem_swapin with the page found and locked.  It need not be the entry's any more."""
    if not PageSwapCache(page) or page.private != entry or shmem_swap_entry(mapping, offset) != entry:
        return 0
    # It is ours: nobody can bring it back but with its lock.
    if not PageUptodate(page):
        return -VM_FAULT_SIGBUS
    wait_on_page_writeback(page)
    if mem_cgroup_cache_charge_swapin(page, current().mm, GFP_KERNEL) != 0:
        return -ENOMEM
    shmem_unswap_page(mapping, offset, page)
    return 0


def shmem_swapin(mapping, offset, entry):
    """Brings the page at an index back, whose swap entry was found there.  Returns 0 (also when somebody
    else was faster), -ENOMEM, or -VM_FAULT_SIGBUS when it cannot be read.  Sleeps."""
    page = lookup_swap_cache(entry)
    if page == NULL:
        pol = shmem_page_policy(mapping, offset)
        page = swapin_readahead(entry, GFP_HIGHUSER_MOVABLE, pol, offset)
        mpol_cond_put(pol)
        if page == NULL:
            return -ENOMEM if shmem_swap_entry(mapping, offset) == entry else 0
        count_vm_event(PGMAJFAULT)
    lock_page(page)
    rc = shmem_swapin_locked(mapping, offset, page, entry)
    unlock_page(page)
    put_page(page)
    return rc


# ---- the end -------------------------------------------------------------------

def shmem_truncate_swapped(mapping, index):
    """Gives back what a file has in swap from an index on.  Nobody brings any of it back meanwhile:
    the file has no user left.  Takes tree_lock, then swap_lock."""
    while True:
        entry = shmem_next_swapped(mapping, addressof(index))
        if entry == 0:
            return
        spin_lock(addressof(mapping.tree_lock))
        radix_tree_delete(addressof(mapping.page_tree), index)
        WRITE_ONCE64(addressof(mapping.host.i_swapped), mapping.host.i_swapped - 1)
        spin_unlock(addressof(mapping.tree_lock))
        free_swap_and_cache(entry)


# ---- faults --------------------------------------------------------------------

def shmem_getpage(mapping, offset):
    """Makes the page at an index, of zeros.  Returns 0 (also when somebody else was faster) or
    -ENOMEM."""
    page = shmem_alloc_page(GFP_HIGHUSER_MOVABLE | __GFP_ZERO, mapping, offset)
    if page == NULL:
        return -ENOMEM
    __SetPageSwapBacked(page)
    SetPageUptodate(page)
    rc = add_to_page_cache_lru(page, mapping, offset)
    if rc == 0:
        # There is no other copy of it anywhere, so it never is clean.
        set_page_dirty(page)
        unlock_page(page)
    put_page(page)
    return 0 if rc == -EEXIST else rc


def shmem_fault(mapping, offset, out):
    """filemap_fault for shared anonymous memory, whose page may be in swap."""
    while True:
        if offset >= i_size_pages(mapping.host):
            return -VM_FAULT_SIGBUS
        page = find_lock_page(mapping, offset)
        if page != NULL:
            out[0] = page
            return 0
        entry = shmem_swap_entry(mapping, offset)
        rc = shmem_swapin(mapping, offset, entry) if entry != 0 else shmem_getpage(mapping, offset)
        if rc != 0:
            return rc
