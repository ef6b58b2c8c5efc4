# SPDX-License-Identifier: GPL-2.0-only
"""The page cache: the pages of files, found by file and index (mm/filemap.c, the dirty half of
mm/page-writeback.c).

A page of the cache has one reference for being in it.  It enters and leaves its page tree
with PG_locked and tree_lock held, so either of the two keeps it there.

A look-up takes neither.  It finds a page in the tree, takes a reference unless the page has
none, and then looks whether the page is still in that slot.  If not, the page was taken out,
or replaced by migration, before we had the reference; it may even be free, or somebody else's
by now, and what we hold is nothing but a number that keeps it from being freed.  So we give
that back and look again.  A page without references is frozen by whoever replaces it
(migrate_page_move_mapping), or already free.

This is why nobody may ever set a page's count by a plain store once it has left 0.

Locks: PG_locked, then tree_lock; the page-table lock may be held (set_page_dirty).
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EEXIST, EIO, ENOMEM
from cython.cimports.libc.string import memset


# ---- into the cache and out of it --------------------------------------------

def add_to_page_cache_locked(page, mapping, offset):
    """Enters a locked page that is in no mapping yet, and charges the current task's group for it.
    Takes a reference for the cache.  Returns 0, -EEXIST (there is a page already) or -ENOMEM."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if mem_cgroup_cache_charge(page, current().mm, GFP_KERNEL) != 0:
        return -ENOMEM
    if radix_tree_preload() != 0:
        mem_cgroup_uncharge_cache_page(page)
        return -ENOMEM
    get_page(page)
    page.index = offset
    WRITE_ONCE64(addressof(page.mapping), cast(u64, mapping))
    spin_lock(addressof(mapping.tree_lock))
    # From here on others find it.
    rc = radix_tree_insert(addressof(mapping.page_tree), offset, page)
    if rc == 0:
        # Marked, here and below: filemap_write_and_wait_range looks without the lock.
        WRITE_ONCE64(addressof(mapping.nrpages), mapping.nrpages + 1)
        inc_zone_page_state(page, NR_FILE_PAGES)
    spin_unlock(addressof(mapping.tree_lock))
    if rc != 0:
        WRITE_ONCE64(addressof(page.mapping), 0)
        mem_cgroup_uncharge_cache_page(page)
        put_page(page)
    return rc


def add_to_page_cache(page, mapping, offset):
    """Locks a page that nobody else has and enters it; unlocked again when that fails.  Returns
    as add_to_page_cache_locked."""
    __set_page_locked(page)
    rc = add_to_page_cache_locked(page, mapping, offset)
    if rc != 0:
        unlock_page(page)
    return rc


def add_to_page_cache_lru(page, mapping, offset):
    """add_to_page_cache, and the page is sent to its LRU list."""
    rc = add_to_page_cache(page, mapping, offset)
    if rc == 0:
        # The pagevec takes a reference over.
        get_page(page)
        lru_cache_add_lru(page, LRU_INACTIVE_FILE if page_is_file_cache(page) else LRU_ACTIVE_ANON)
    return rc


def __remove_from_page_cache(page):
    """Takes a page out of its mapping.  The cache's reference and its charge are the caller's now.
    Holds the page's lock and tree_lock; the page is not mapped."""
    mapping = page_mapping(page)
    VM_BUG_ON_PAGE(page_mapped(page), page)
    radix_tree_delete(addressof(mapping.page_tree), page_index(page))
    WRITE_ONCE64(addressof(page.mapping), 0)
    WRITE_ONCE64(addressof(mapping.nrpages), mapping.nrpages - 1)
    dec_zone_page_state(page, NR_FILE_PAGES)
    # Somebody may have dirtied it after its dirt was cancelled; from here on that is not counted.
    if PageDirty(page) and mapping_cap_account_dirty(mapping):
        dec_zone_page_state(page, NR_FILE_DIRTY)
        ClearPageDirty(page)


def remove_from_page_cache(page):
    """__remove_from_page_cache with tree_lock taken for it, and the page's charge given back.  Holds
    the page's lock."""
    mapping = page_mapping(page)
    BUG_ON(not PageLocked(page))
    spin_lock(addressof(mapping.tree_lock))
    __remove_from_page_cache(page)
    spin_unlock(addressof(mapping.tree_lock))
    mem_cgroup_uncharge_cache_page(page)


# ---- look-ups ----------------------------------------------------------------

def find_get_page(mapping, offset):
    """The page at an index, with a reference taken; NULL when there is none, or one in swap."""
    page = NULL
    rcu_read_lock()
    while True:
        slot = radix_tree_lookup_slot(addressof(mapping.page_tree), offset)
        page = cast(pointer(Page), radix_tree_deref_slot(slot)) if slot != NULL else NULL
        if radix_tree_exceptional_entry(page):
            page = NULL
        if page == NULL:
            break
        if get_page_unless_zero(page):
            if page == radix_tree_deref_slot(slot):
                break
            put_page(page)
        # Frozen, or just replaced.  Whoever does that holds tree_lock, but may have lost its CPU.
        cpu_yield()
        if kernel_panicked():
            wait_check()
    rcu_read_unlock()
    return page


def find_lock_page(mapping, offset):
    """find_get_page, and the page is locked and still in the mapping.  May sleep."""
    while True:
        page = find_get_page(mapping, offset)
        if page == NULL:
            return NULL
        lock_page(page)
        if page_mapping(page) == mapping:
            # It cannot have come back to another place, for we have a reference.
            VM_BUG_ON_PAGE(page_index(page) != offset, page)
            return page
        # Truncated, or migrated away, while we waited.
        unlock_page(page)
        put_page(page)


def find_get_pages_tag(mapping, index, end, tag, pages):
    """Fills `pages` with up to PAGEVEC_SIZE pages from *index to `end` that have the tag (all
    pages with RADIX_TREE_NO_TAG), a reference taken to each; *index is left behind the last one.
    Returns their number.  Takes tree_lock."""
    count = cast(u64, 0)
    spin_lock(addressof(mapping.tree_lock))
    while count < PAGEVEC_SIZE:
        slot = radix_tree_next_slot(addressof(mapping.page_tree), index, tag)
        if slot == NULL or index[0] > end:
            break
        # What is in the tree has a reference, and is not frozen while we have the lock.
        if not radix_tree_exceptional_entry(slot[0]):
            pages[count] = cast(pointer(Page), slot[0])
            get_page(pages[count])
            count += 1
        index[0] += 1
    spin_unlock(addressof(mapping.tree_lock))
    return count


# ---- dirty -------------------------------------------------------------------

def set_page_dirty(page):
    """Marks a page dirty, in the way of its mapping.  Says whether it was clean.

    The caller has the page's lock, or the page is mapped and it holds the page-table lock.
    """
    mapping = page_mapping(page)
    if mapping != NULL:
        return a_ops(mapping).set_page_dirty(page)
    return not PageDirty(page) and not TestSetPageDirty(page)


def tag_page_dirty(page, mapping):
    """Counts and tags a page that has just got PG_dirty, if it is to be written back some day.
    Takes tree_lock."""
    if not mapping_cap_account_dirty(mapping):
        return
    spin_lock(addressof(mapping.tree_lock))
    # It may have been truncated meanwhile.
    if page_mapping(page) == mapping:
        inc_zone_page_state(page, NR_FILE_DIRTY)
        radix_tree_tag_set(addressof(mapping.page_tree), page_index(page), PAGECACHE_TAG_DIRTY)
    spin_unlock(addressof(mapping.tree_lock))


def __set_page_dirty_nobuffers(page):
    """Marks a page dirty and tags it in its tree, but not its buffers.  Says whether it was
    clean.  Takes tree_lock."""
    if PageDirty(page) or TestSetPageDirty(page):
        return False
    mapping = page_mapping(page)
    if mapping != NULL:
        tag_page_dirty(page, mapping)
    return True


def __set_page_dirty_no_writeback(page):
    """Marks a page dirty that will never be written back: nobody has to find it."""
    return not PageDirty(page) and not TestSetPageDirty(page)


# ---- reading -----------------------------------------------------------------

def read_into_page(inode, page, first, end):
    """Reads the bytes [first, end) of a page from the file; what lies behind the file's end is
    zeros.  Returns 0 or -EIO."""
    offset = (page.index << PAGE_SHIFT) + first
    size = READ_ONCE64(addressof(inode.i_size))
    count = min(end - first, size - offset if size > offset else 0)
    to = cast(pointer(char), page_address(page)) + first
    rc = host_read(inode, to, count, offset) if count > 0 else 0
    memset(to + count, 0, end - first - count)
    return rc


def filemap_readpage(mapping, page):
    """Reads a whole page: the readpage of files without buffers.  The page is locked, and
    unlocked when this returns.  0 or -EIO."""
    rc = read_into_page(mapping.host, page, 0, PAGE_SIZE)
    if rc == 0:
        SetPageUptodate(page)
        ClearPageError(page)
    else:
        SetPageError(page)
    count_vm_event(PGPGIN)
    unlock_page(page)
    return rc


def page_cache_read(mapping, offset):
    """Brings the page at an index into the cache.  Returns 0 (also when somebody else was
    faster), -ENOMEM or -EIO."""
    page = alloc_page(GFP_HIGHUSER_MOVABLE)
    if page == NULL:
        return -ENOMEM
    rc = add_to_page_cache_lru(page, mapping, offset)
    if rc == 0:
        rc = a_ops(mapping).readpage(mapping, page)
    elif rc == -EEXIST:
        rc = 0
    put_page(page)
    return rc


def lock_uptodate_page(mapping, offset, out, fault):
    """The page at an index, read if it has to be, locked and with a reference, in *out.  `fault`: for one, which
    is a major one then.  Returns 0, -ENOMEM or -EIO."""
    while True:
        page = find_lock_page(mapping, offset)
        if page == NULL:
            rc = page_cache_read(mapping, offset)
            if fault:
                count_vm_event(PGMAJFAULT)
        elif PageUptodate(page):
            out[0] = page
            return 0
        else:
            # Reading it failed before; once more.
            rc = a_ops(mapping).readpage(mapping, page)
            put_page(page)
        if rc != 0:
            return rc


def filemap_fault(mapping, offset, out):
    """The page of a file for a fault, in *out, as lock_uptodate_page leaves it.  Returns 0,
    -ENOMEM, or -VM_FAULT_SIGBUS: behind the end of the file, or it cannot be read."""
    if offset >= i_size_pages(mapping.host):
        return -VM_FAULT_SIGBUS
    rc = lock_uptodate_page(mapping, offset, out, True)
    if rc == 0 and offset >= i_size_pages(mapping.host):
        # Truncation waits for our page lock; it has set the size first.
        unlock_page(out[0])
        put_page(out[0])
        return -VM_FAULT_SIGBUS
    return rc
