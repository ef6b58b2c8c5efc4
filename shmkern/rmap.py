# SPDX-License-Identifier: GPL-2.0-only
"""Reverse mapping: which PTEs map a page, and how to take them away (mm/rmap.c).

An anonymous page points to the anon_vma of the VMA that first mapped it, and the
anon_vma has a list of all VMAs that may map such pages: that VMA, what was split off
it, moved from it or forked from it.  The page's index and a VMA's start and pgoff say
at which address to look.

A page of a file points to its address_space, which has a tree of all VMAs that map the
file, i_mmap; the index is the page's place in the file.  A private VMA of a file may have
pages of both sorts, and then is found in both ways.

Locks: i_mmap_lock, then anon_vma->lock, then a split page-table lock.  A VMA's vm_start,
vm_end and vm_pgoff change under the locks of whatever it can be found by, so that a walk
computes with either the old or the new.

The order of list and tree matters: a forked VMA stands behind the one it was copied from,
for the same reason that fork links it before it copies the entries; see
remove_anon_migration_ptes.
"""
from cython import NULL, address as addressof, cast, pointer


# ---- anon_vma ----------------------------------------------------------------

def anon_vma_alloc():
    """A new anon_vma without VMAs; NULL without memory."""
    anon_vma = cast(pointer(AnonVma), kmem_cache_alloc(kernel().anon_vma_cachep))
    if anon_vma != NULL:
        INIT_LIST_HEAD(addressof(anon_vma.head))
    return anon_vma


def anon_vma_free(anon_vma):
    """Frees an anon_vma when nobody can be looking at it: page_lock_anon_vma may have
    found it through a page that was still mapped."""
    call_rcu(addressof(anon_vma.rcu), kernel().anon_vma_cachep, anon_vma)


def __anon_vma_link(vma):
    """Adds a VMA at the end of its anon_vma's list.  Holds anon_vma->lock."""
    list_add_tail(addressof(vma.anon_vma_node), addressof(vma.anon_vma.head))


def anon_vma_link(vma):
    """Adds a VMA to its anon_vma's list, if it has one."""
    anon_vma = vma.anon_vma
    if anon_vma != NULL:
        spin_lock(addressof(anon_vma.lock))
        __anon_vma_link(vma)
        spin_unlock(addressof(anon_vma.lock))


def __anon_vma_merge(vma, next):
    """Takes `next` off the list when it is merged into `vma`.  Holds anon_vma->lock."""
    BUG_ON(vma.anon_vma != next.anon_vma)
    list_del(addressof(next.anon_vma_node))


def anon_vma_unlink(vma):
    """Takes a VMA off its anon_vma's list, and frees the anon_vma with the last."""
    anon_vma = vma.anon_vma
    if anon_vma == NULL:
        return
    # When we are not the last, nothing of ours keeps it any more, and spin_unlock looks for waiters after it has
    # given the lock back: should we lose our CPU in between, the last one may free it, and what is there
    # then lose a bit that looks like SPIN_WAITERS.
    rcu_read_lock()
    spin_lock(addressof(anon_vma.lock))
    list_del(addressof(vma.anon_vma_node))
    # It cannot come back to life: who adds a VMA has another one in the list.
    empty = list_empty(addressof(anon_vma.head))
    spin_unlock(addressof(anon_vma.lock))
    rcu_read_unlock()
    vma.anon_vma = NULL
    if empty:
        anon_vma_free(anon_vma)


def page_lock_anon_vma(page):
    """The page's anon_vma, locked and within rcu_read_lock; NULL, and neither, when the
    page is not anonymous or not mapped any more.

    The page may lose its last mapping, and the anon_vma its last VMA, between any two
    lines.  Seen mapped under rcu_read_lock, the anon_vma is not freed before we leave.
    """
    rcu_read_lock()
    mapping = READ_ONCE64(addressof(page.mapping))
    if mapping & PAGE_MAPPING_ANON and page_mapped(page):
        anon_vma = cast(pointer(AnonVma), mapping - PAGE_MAPPING_ANON)
        spin_lock(addressof(anon_vma.lock))
        return anon_vma
    rcu_read_unlock()
    return NULL


def page_unlock_anon_vma(anon_vma):
    """Undoes page_lock_anon_vma."""
    spin_unlock(addressof(anon_vma.lock))
    rcu_read_unlock()


# ---- where a page is mapped --------------------------------------------------

def vma_address(page, vma):
    """The address at which `vma` maps the page if it does; 0 when outside the VMA.  (Linux
    returns -EFAULT; address 0 is never mapped here.)

    The index is marked: page_referenced looks at pages that it has not locked, and that are just being mapped.
    Whoever goes by an old one finds another page there, or none."""
    address = vma.vm_start + ((READ_ONCE64(addressof(page.index)) - vma.vm_pgoff) << PAGE_SHIFT)
    if address < vma.vm_start or address >= vma.vm_end:
        return 0
    return address


def page_address_in_vma(page, vma):
    """vma_address, or 0 when the VMA belongs to another mapping than the page."""
    if PageAnon(page):
        if vma.anon_vma != page_anon_vma(page):
            return 0
    elif page.mapping == NULL or page_mapping(page) != vma_mapping(vma):
        return 0
    return vma_address(page, vma)


def page_check_address(page, mm, address, ptlp, sync):
    """The PTE at `address` if it maps the page, with its split lock taken and left in
    *ptlp; NULL and no lock otherwise.

    The tables stay: the caller has the lock of an rmap list with a VMA over `address`.
    """
    pmd = walk_to_pmd(mm, address)
    if pmd == NULL:
        return NULL
    ptep = pte_offset(pmd, address)
    # A quick look without the lock.  It misses a PTE that is being changed (mprotect), which
    # only matters to who would not look again: that is what `sync` is for.
    if not sync and not pte_present(READ_PTE(ptep)):
        return NULL
    ptl = pte_lockptr(pmd)
    spin_lock(ptl)
    pte = READ_PTE(ptep)
    if pte_present(pte) and not pte_special(pte) and page_to_pfn(page) == pte_pfn(pte):
        ptlp[0] = ptl
        return ptep
    spin_unlock(ptl)
    return NULL


# ---- counting mappings -------------------------------------------------------

def __page_set_anon_rmap(page, vma, address):
    """Ties a page that is mapped for the first time to the VMA's anon_vma."""
    BUG_ON(vma.anon_vma == NULL)
    WRITE_ONCE64(addressof(page.index), ((address - vma.vm_start) >> PAGE_SHIFT) + vma.vm_pgoff)
    WRITE_ONCE64(addressof(page.mapping), cast(u64, vma.anon_vma) + PAGE_MAPPING_ANON)
    inc_zone_page_state(page, NR_ANON_PAGES)


def page_add_anon_rmap(page, vma, address):
    """Counts a mapping of an anonymous page.  Holds the split lock; the page is locked."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    VM_BUG_ON(address < vma.vm_start or address >= vma.vm_end)
    if cast(i32, atomic_add_return32(addressof(page._mapcount), 1)) == 0:
        __page_set_anon_rmap(page, vma, address)


def page_move_anon_rmap(page, vma, address):
    """Counts the first mapping of the page that takes another one's place, with a reference for
    it.  Holds the split lock.

    Only the caller has a reference, and no PTE leads here.  (A sharer may have mapped the page and
    unmapped it again; until it is done it has a reference.)  So nobody else can be counting its
    mappings now, and a plain store will do.
    """
    # A late find_get_page that takes the frame for what it was before may have a reference for a
    # moment: that count is never set by a plain store.
    get_page(page)
    WRITE_ONCE32(addressof(page._mapcount), 0)
    __page_set_anon_rmap(page, vma, address)


def page_add_new_anon_rmap(page, vma, address):
    """Counts the first mapping of a page that nobody else has seen, and sends it to the
    active list, or locks it when its area is locked.  Holds the split lock."""
    VM_BUG_ON(address < vma.vm_start or address >= vma.vm_end)
    __SetPageSwapBacked(page)
    page._mapcount = 0
    __page_set_anon_rmap(page, vma, address)
    if vma.vm_flags & VM_LOCKED:
        # Nobody else has it, so this needs no page lock.  Marked: whoever frees its buddy looks for PG_buddy.
        WRITE_ONCE64(addressof(page.flags), page.flags | cast(u64, 1) << PG_mlocked)
        inc_zone_page_state(page, NR_MLOCK)
        add_page_to_unevictable_list(page)
        return
    get_page(page)
    lru_cache_add_lru(page, LRU_ACTIVE_ANON)


def page_add_file_rmap(page):
    """Counts a mapping of a page of a file.  Holds the split lock."""
    if cast(i32, atomic_add_return32(addressof(page._mapcount), 1)) == 0:
        inc_zone_page_state(page, NR_FILE_MAPPED)


def page_dup_rmap(page):
    """Counts one more mapping at fork.  Holds the parent's split lock."""
    VM_BUG_ON_PAGE(page_mapcount(page) <= 0, page)
    atomic_add_return32(addressof(page._mapcount), 1)


def page_remove_rmap(page):
    """Counts a mapping off.  Holds the split lock.  The page keeps its mapping and index
    until it is freed: who waits for it under its lock may still need them."""
    left = cast(i32, atomic_add_return32(addressof(page._mapcount), -1))
    VM_BUG_ON_PAGE(left < -1, page)
    if left == -1:
        mem_cgroup_uncharge_page(page)
        dec_zone_page_state(page, NR_ANON_PAGES if PageAnon(page) else NR_FILE_MAPPED)


# ---- writing noticed ---------------------------------------------------------
#
# A page of a file can only be written through a PTE if it is dirty: the first write to a clean
# one faults, and makes it dirty before it makes the PTE writable.  So who cleans a page, to
# write it back, takes writing away from all PTEs first.

def page_mkclean_one(page, vma):
    """Takes writing away from the page's PTE in one VMA, and its dirty bit.  Says whether there
    was either.  Holds i_mmap_lock; takes a split lock."""
    address = vma_address(page, vma)
    if address == 0:
        return False
    ptl = cast(pointer(Spinlock), NULL)
    ptep = page_check_address(page, vma.vm_mm, address, addressof(ptl), True)
    if ptep == NULL:
        return False
    pte = READ_PTE(ptep)
    was = pte_dirty(pte) or pte_write(pte)
    if was:
        pte = ptep_clear_flush(vma.vm_mm, address, ptep)
        set_pte_at(ptep, pte_mkclean(pte_wrprotect(pte)))
    spin_unlock(ptl)
    return was


def page_mkclean(page):
    """Takes writing away from all shared mappings of a locked page of a file.  Says whether it may
    have been written through one of them since.  Takes i_mmap_lock."""
    BUG_ON(not PageLocked(page))
    mapping = page_mapping(page)
    if mapping == NULL or not page_mapped(page):
        return False
    was = 0
    spin_lock(addressof(mapping.i_mmap_lock))
    vma = vma_interval_tree_iter_first(addressof(mapping.i_mmap), page.index, page.index)
    while vma != NULL:
        if READ_ONCE64(addressof(vma.vm_flags)) & VM_SHARED and page_mkclean_one(page, vma):
            was = 1
        vma = vma_interval_tree_iter_next(vma, page.index, page.index)
    spin_unlock(addressof(mapping.i_mmap_lock))
    return was


# ---- in use or not -----------------------------------------------------------

def page_referenced_one(page, vma):
    """Whether the page was accessed through its PTE in one VMA since somebody asked.  Holds
    anon_vma->lock or i_mmap_lock; takes a split lock.  (2.6.30 leaves areas with VM_LOCKED out, so that
    reclaim finds out that their pages are to be PG_mlocked; here they are.)"""
    address = vma_address(page, vma)
    if address == 0:
        return False
    ptl = cast(pointer(Spinlock), NULL)
    ptep = page_check_address(page, vma.vm_mm, address, addressof(ptl), False)
    if ptep == NULL:
        return False
    young = ptep_clear_flush_young(vma.vm_mm, address, ptep)
    spin_unlock(ptl)
    return young


def page_referenced_anon(page, memcg):
    """page_referenced_one in every VMA of an anonymous page, or (not NULL) of a group.  Takes
    anon_vma->lock, within rcu_read_lock."""
    anon_vma = page_lock_anon_vma(page)
    if anon_vma == NULL:
        return False
    referenced = False
    node = anon_vma.head.next
    while node != addressof(anon_vma.head):
        vma = list_entry_vma(node)
        if (memcg == NULL or mm_match_cgroup(vma.vm_mm, memcg)) and page_referenced_one(page, vma):
            referenced = True
        node = node.next
    page_unlock_anon_vma(anon_vma)
    return referenced


def page_referenced_file(page, memcg):
    """page_referenced_one in every VMA that maps a page of a file, or (not NULL) of a group.  The
    page is locked.  Takes i_mmap_lock."""
    mapping = page_mapping(page)
    if mapping == NULL:
        return False
    referenced = False
    spin_lock(addressof(mapping.i_mmap_lock))
    vma = vma_interval_tree_iter_first(addressof(mapping.i_mmap), page.index, page.index)
    while vma != NULL:
        if (memcg == NULL or mm_match_cgroup(vma.vm_mm, memcg)) and page_referenced_one(page, vma):
            referenced = True
        vma = vma_interval_tree_iter_next(vma, page.index, page.index)
    spin_unlock(addressof(mapping.i_mmap_lock))
    return referenced


def page_referenced(page, locked, memcg):
    """Whether somebody used the page since this was asked last: through a page table, or by a
    mark of its own (PG_referenced).  Forgets it.  A page of a file that others have locked
    counts as used; `locked`: the caller has.  With `memcg`, only the page tables of that
    group are asked: at its limit, what others use counts for nothing."""
    referenced = PageReferenced(page) and TestClearPageReferenced(page)
    if not page_mapped(page):
        return referenced
    if PageAnon(page):
        if page_referenced_anon(page, memcg):
            referenced = True
    elif locked:
        if page_referenced_file(page, memcg):
            referenced = True
    elif not trylock_page(page):
        referenced = True
    else:
        if page_referenced_file(page, memcg):
            referenced = True
        unlock_page(page)
    return referenced


# ---- unmapping ---------------------------------------------------------------

def try_to_unmap_one(page, vma, migration):
    """Takes away the page's PTE in one VMA, if it has one there.  Leaves a swap entry for a page
    of the swap cache, and else with `migration` a migration entry, without it nothing: a page of
    a file is in its file.  Drops that mapping's reference.  Holds i_mmap_lock or anon_vma->lock;
    takes a split lock.

    Returns SWAP_AGAIN: there may be more mappings.  Without `migration` SWAP_FAIL when the page
    has been used since it was asked last, or is anonymous and has no place in swap; SWAP_MLOCK when
    the area is locked.
    """
    address = vma_address(page, vma)
    if address == 0:
        return SWAP_AGAIN
    if not migration and PageAnon(page) and not PageSwapCache(page):
        return SWAP_FAIL
    ptl = cast(pointer(Spinlock), NULL)
    mm = vma.vm_mm
    ptep = page_check_address(page, mm, address, addressof(ptl), False)
    if ptep == NULL:
        return SWAP_AGAIN
    if not migration and READ_ONCE64(addressof(vma.vm_flags)) & VM_LOCKED:
        spin_unlock(ptl)
        return SWAP_MLOCK
    if not migration and ptep_clear_flush_young(mm, address, ptep):
        spin_unlock(ptl)
        return SWAP_FAIL
    # Not a plain clear: until every CPU has dropped the translation, a store through it
    # would land in the old frame after it was copied, and be lost.
    pte = ptep_clear_flush(mm, address, ptep)
    # The dirty bit would go with the PTE.
    if pte_dirty(pte):
        set_page_dirty(page)
    if PageSwapCache(page):
        # For a migration as well: the cache leads to whichever page it is.
        BUG_ON(not swap_duplicate(page.private))
        atomic_add_return64(addressof(mm.anon_rss), -1)
        atomic_add_return64(addressof(mm.swap_ents), 1)
        set_pte_at(ptep, swp_entry_to_pte(page.private))
    elif migration:
        pte = swp_entry_to_pte(make_migration_entry(page, pte_write(pte)))
        set_pte_at(ptep, pte)
        trace_set_migration_pte(address, pte)
    else:
        atomic_add_return64(addressof(mm.file_rss), -1)
    page_remove_rmap(page)
    # Not the last reference: whoever unmaps a page has one.
    put_page(page)
    spin_unlock(ptl)
    return SWAP_AGAIN


def try_to_unmap_file(page, migration):
    """Unmaps a page of a file from every VMA that maps its index.  The page is locked, which
    keeps its mapping.  Takes i_mmap_lock."""
    mapping = page_mapping(page)
    ret = SWAP_AGAIN
    spin_lock(addressof(mapping.i_mmap_lock))
    vma = vma_interval_tree_iter_first(addressof(mapping.i_mmap), page.index, page.index)
    while vma != NULL and ret == SWAP_AGAIN and page_mapped(page):
        ret = try_to_unmap_one(page, vma, migration)
        vma = vma_interval_tree_iter_next(vma, page.index, page.index)
    spin_unlock(addressof(mapping.i_mmap_lock))
    return ret


def try_to_unmap_anon(page, migration):
    """Unmaps an anonymous page from every VMA on its anon_vma's list.  Takes
    anon_vma->lock, within rcu_read_lock."""
    anon_vma = page_lock_anon_vma(page)
    if anon_vma == NULL:
        return SWAP_AGAIN
    ret = SWAP_AGAIN
    node = anon_vma.head.next
    while node != addressof(anon_vma.head) and ret == SWAP_AGAIN and page_mapped(page):
        ret = try_to_unmap_one(page, list_entry_vma(node), migration)
        node = node.next
    page_unlock_anon_vma(anon_vma)
    return ret


def is_locked_in(page, vma):
    """Whether an area with VM_LOCKED maps the page.  Holds i_mmap_lock or anon_vma->lock; takes a
    split lock."""
    address = vma_address(page, vma)
    if not READ_ONCE64(addressof(vma.vm_flags)) & VM_LOCKED or address == 0:
        return False
    ptl = cast(pointer(Spinlock), NULL)
    if page_check_address(page, vma.vm_mm, address, addressof(ptl), True) == NULL:
        return False
    spin_unlock(ptl)
    return True


def try_to_munlock_file(page):
    """try_to_munlock for a page of a file.  Takes i_mmap_lock."""
    mapping = page_mapping(page)
    if mapping == NULL:
        return SWAP_AGAIN       # Truncated.
    ret = SWAP_AGAIN
    spin_lock(addressof(mapping.i_mmap_lock))
    vma = vma_interval_tree_iter_first(addressof(mapping.i_mmap), page.index, page.index)
    while vma != NULL and ret == SWAP_AGAIN:
        if is_locked_in(page, vma):
            ret = SWAP_MLOCK
        vma = vma_interval_tree_iter_next(vma, page.index, page.index)
    spin_unlock(addressof(mapping.i_mmap_lock))
    return ret


def try_to_munlock(page):
    """Whether some area with VM_LOCKED maps the page: SWAP_MLOCK, or SWAP_AGAIN.  The page is
    locked, so that no mapping of it is a migration entry.  Takes i_mmap_lock or anon_vma->lock."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if not PageAnon(page):
        return try_to_munlock_file(page)
    anon_vma = page_lock_anon_vma(page)
    if anon_vma == NULL:
        return SWAP_AGAIN
    ret = SWAP_AGAIN
    node = anon_vma.head.next
    while node != addressof(anon_vma.head) and ret == SWAP_AGAIN:
        if is_locked_in(page, list_entry_vma(node)):
            ret = SWAP_MLOCK
        node = node.next
    page_unlock_anon_vma(anon_vma)
    return ret


def try_to_unmap(page, migration):
    """Takes away all PTEs of a page: each becomes a swap entry if the page is in the swap cache,
    and else, with `migration`, a migration entry.

    The page is locked and the caller has a reference.  Returns SWAP_SUCCESS when it is
    not mapped any more, SWAP_AGAIN when some mapping was missed, SWAP_FAIL when it
    cannot be unmapped, SWAP_MLOCK when it is locked in memory.  Takes i_mmap_lock or anon_vma->lock.
    """
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if PageAnon(page):
        ret = try_to_unmap_anon(page, migration)
    else:
        ret = try_to_unmap_file(page, migration)
    if not page_mapped(page):
        ret = SWAP_SUCCESS
    return ret
