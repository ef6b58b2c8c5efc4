# SPDX-License-Identifier: GPL-2.0-only
"""The swap cache: pages that have a swap entry, found by it (mm/swap_state.c, mm/page_io.c, and
what of mm/swapfile.c needs the cache).

It is an address_space, swapper_space, whose index is the entry; so everybody who comes to an
entry at the same time comes to the same page.  A page is in it from before its first page-table
entry becomes a swap entry, and may leave it when no swap entry is left: until then it is what
the slot means, whether the slot has been written or not.  The cache has a reference to the
page, and a use of the slot.

A page is read into the cache locked, and is up to date before it is unlocked; if the host could
not read it, it is unlocked without that, and whoever wanted it gets a bus error.  It is on the
LRU then, but nobody has mapped it yet and so it has no mapping: migration meets such pages.  Those
that were read ahead may stay like that.

Locks: PG_locked, then swap_lock, then tree_lock.  A page enters and leaves the cache with
PG_locked held, so either PG_locked or tree_lock keeps it there.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EEXIST, EINTR, EIO, ENOMEM, errno


# ---- into the cache and out of it --------------------------------------------

def add_to_swap_cache(page, entry):
    """Enters a locked page under an entry, of which it takes over the caller's use.  Takes a
    reference for the cache.  Returns 0, -EEXIST (there is a page already) or -ENOMEM."""
    VM_BUG_ON_PAGE(not PageLocked(page) or PageSwapCache(page) or not PageSwapBacked(page), page)
    space = addressof(kernel().swapper_space)
    if radix_tree_preload() != 0:
        return -ENOMEM
    get_page(page)
    page.private = entry
    SetPageSwapCache(page)
    spin_lock(addressof(space.tree_lock))
    rc = radix_tree_insert(addressof(space.page_tree), swp_index(entry), page)
    if rc == 0:
        # Marked, here and below: can_swap looks without the lock.
        WRITE_ONCE64(addressof(space.nrpages), space.nrpages + 1)
        inc_zone_page_state(page, NR_FILE_PAGES)
    spin_unlock(addressof(space.tree_lock))
    if rc != 0:
        ClearPageSwapCache(page)
        page.private = 0
        put_page(page)
    return rc


def __delete_from_swap_cache(page):
    """Takes a page out.  The cache's reference, its use of the slot and, if the page is not mapped,
    its charge are the caller's now.  Holds the page's lock and tree_lock."""
    VM_BUG_ON_PAGE(not PageLocked(page) or not PageSwapCache(page) or PageWriteback(page), page)
    space = addressof(kernel().swapper_space)
    found = radix_tree_delete(addressof(space.page_tree), swp_index(page.private))
    VM_BUG_ON_PAGE(found != page, page)
    ClearPageSwapCache(page)
    page.private = 0
    WRITE_ONCE64(addressof(space.nrpages), space.nrpages - 1)
    dec_zone_page_state(page, NR_FILE_PAGES)


def delete_from_swap_cache(page):
    """Takes a page out and drops what the cache had, but for the charge.  The page is locked; the
    caller has a reference.  Takes tree_lock, then swap_lock."""
    space = addressof(kernel().swapper_space)
    entry = page.private
    spin_lock(addressof(space.tree_lock))
    __delete_from_swap_cache(page)
    spin_unlock(addressof(space.tree_lock))
    swap_free(entry)
    put_page(page)


def add_to_swap(page):
    """Gives an anonymous page a place in swap and enters it in the cache.  The page is locked.
    Says whether there was room."""
    VM_BUG_ON_PAGE(not PageLocked(page) or not PageUptodate(page), page)
    while True:
        entry = get_swap_page()
        if entry == 0:
            return False
        rc = add_to_swap_cache(page, entry)
        if rc == 0:
            # The slot holds nothing of it yet.
            SetPageDirty(page)
            return True
        swap_free(entry)
        # A task that read a slot just before it was freed is entering a page for it.
        if rc != -EEXIST:
            return False


def try_to_free_swap(page):
    """Takes a page out of the cache if no swap entry is left but in the cache: it will need a new
    place when it is swapped out again.  The page is locked.  Says whether it did."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if not PageSwapCache(page) or PageWriteback(page) or page_swapcount(page) != 0:
        return False
    delete_from_swap_cache(page)
    mem_cgroup_uncharge_page(page)
    SetPageDirty(page)
    return True


def free_swap_cache(page):
    """try_to_free_swap for a page that has just lost a mapping, if nobody has it locked.  The
    caller has a reference."""
    if PageSwapCache(page) and not page_mapped(page) and trylock_page(page):
        try_to_free_swap(page)
        unlock_page(page)


def reuse_swap_page(page):
    """Whether the one who maps a page is its only user, and may write it.  The page is locked.  Takes it
    out of the cache then, for the slot will no longer say what is in it."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    users = page_mapcount(page)
    if users <= 1 and PageSwapCache(page):
        users += page_swapcount(page)
        if users == 1 and not PageWriteback(page):
            delete_from_swap_cache(page)
            SetPageDirty(page)
    return users == 1


def free_swap_and_cache(entry):
    """Drops the use that a page-table entry had, and what is in the cache if that was the last
    use but the cache's.  The split lock is held.  Takes swap_lock."""
    page = NULL
    si = swap_info_get(entry)
    if swap_entry_free(si, swp_offset(entry)) == 1:
        page = find_get_page(addressof(kernel().swapper_space), swp_index(entry))
        # Locked before swap_lock is given back, the page cannot get another entry.
        if page != NULL and not trylock_page(page):
            put_page(page)
            page = NULL
    spin_unlock(addressof(kernel().swap_lock))
    if page != NULL:
        if PageSwapCache(page) and not PageWriteback(page) and (not page_mapped(page) or vm_swap_full()):
            delete_from_swap_cache(page)
            mem_cgroup_uncharge_page(page)
            SetPageDirty(page)
        unlock_page(page)
        put_page(page)


# ---- from an entry to its page -----------------------------------------------

def lookup_swap_cache(entry):
    """The page for an entry, with a reference taken; NULL when it is not in the cache."""
    return find_get_page(addressof(kernel().swapper_space), swp_index(entry))


def read_swap_cache_async(entry, gfp, pol, ilx):
    """The page for an entry, read if it is not in the cache, with a reference taken.  Its frame is
    chosen by a policy, as page `ilx`.

    Returns NULL when there is no memory, or when the entry is no longer in use: the caller has
    not got a use of its own, and finds out which by another look at its page-table entry.  A page
    that could not be read is not PG_uptodate.  Sleeps.
    """
    new = NULL
    while True:
        found = lookup_swap_cache(entry)
        if found != NULL:
            break
        if new == NULL:
            new = alloc_pages_mpol(gfp, 0, pol, ilx)
            if new == NULL:
                break
        if not swap_duplicate(entry):
            break
        __SetPageSwapBacked(new)
        __set_page_locked(new)
        rc = add_to_swap_cache(new, entry)
        if rc == 0:
            # The pagevec takes a reference over.
            get_page(new)
            lru_cache_add_lru(new, LRU_INACTIVE_ANON)
            swap_readpage(new)
            return new
        unlock_page(new)
        swap_free(entry)
        if rc == -ENOMEM:
            break
        # Somebody else has just entered a page; or frees the entry, and has one still.
        cpu_yield()
    if new != NULL:
        put_page(new)
    return found


def swapin_readahead(entry, gfp, pol, ilx):
    """read_swap_cache_async for an entry and, before that, for its neighbours: what went out together
    is likely to be wanted together.  All frames are chosen as for the entry's own.

    Neighbours are read as long as there is memory for them; whatever happens to them is of no concern
    to the caller.  They are in the cache, mapped by nobody and paid for by no group, until somebody
    comes to their entries or reclaim to them.  Sleeps.
    """
    offset = 0
    count = valid_swaphandles(entry, addressof(offset))
    if count != 0:
        end = offset + count
        while offset < end:
            page = read_swap_cache_async(swp_entry(swp_type(entry), offset), gfp, pol, ilx)
            if page == NULL:
                break
            put_page(page)
            offset += 1
        # Where reclaim finds them.
        lru_add_drain()
    return read_swap_cache_async(entry, gfp, pol, ilx)


# ---- between a page and its slot ---------------------------------------------

def swap_io(page, write):
    """Reads a page of the cache from its slot, or writes it there.  Returns 0 or -EIO: the host
    does not do it, whatever its reason, or the file is shorter than it was."""
    si = addressof(kernel().swap_info[swp_type(page.private)])
    fd = host_fd(addressof(si.swap_file))
    if fd < 0:
        return -EIO
    at = cast(pointer(char), page_address(page))
    left = PAGE_SIZE
    position = swp_offset(page.private) << PAGE_SHIFT
    while left > 0:
        done = pwrite(fd, at, left, position) if write else pread(fd, at, left, position)
        if done < 0 and errno == EINTR:
            continue
        if done <= 0:
            return -EIO
        at += done
        position += done
        left -= done
    return 0


def swap_readpage(page):
    """Reads a locked page of the cache from its slot, and unlocks it.  It is PG_uptodate then, or
    PG_error."""
    if swap_io(page, 0) == 0:
        SetPageUptodate(page)
    else:
        SetPageError(page)
    count_vm_event(PSWPIN)
    unlock_page(page)


def swap_writepage(page, wbc):
    """Writes a page of the cache to its slot: the writepage of swapper_space.  The page is locked
    and no longer dirty; it is unlocked when this returns, and PG_writeback meanwhile.

    Returns 0.  A page that could not be written is dirty again, and stays."""
    if try_to_free_swap(page):
        unlock_page(page)
        return 0
    set_page_writeback(page)
    unlock_page(page)
    count_vm_event(PSWPOUT)
    if swap_io(page, 1) != 0:
        SetPageError(page)
        SetPageDirty(page)
    end_page_writeback(page)
    return 0
