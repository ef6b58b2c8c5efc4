# SPDX-License-Identifier: GPL-2.0-only
"""Buffer heads: the blocks of a page of a file, each with a state and a lock of its own
(fs/buffer.c).

A page may have a ring of buffers: page.private leads to it, PG_private says so, and it has a
reference to the page.  Each buffer is 512 to 4096 bytes of the page and of the file.  A dirty
page with buffers has dirty buffers, and only those are written.

A buffer is busy while it is locked, dirty or somebody has a reference to it; a page whose
buffers are all idle can lose them (try_to_free_buffers), and a page without buffers can be
freed, or moved by a file system that knows no better.

Locks: PG_locked; a buffer's lock (sleeps); private_lock, against set_page_dirty, which has no
page lock; tree_lock.  The ring stays while the page is locked or under writeback.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import ENOMEM


# ---- the lock of a buffer ------------------------------------------------------

def buffer_waitqueue(bh):
    """The wait queue that a buffer shares with a few others, and with pages."""
    return page_waitqueue(cast(pointer(Page), bh))


def trylock_buffer(bh):
    """Takes BH_Lock if it is clear, and says whether it did."""
    return not fetch_or64(addressof(bh.b_state), cast(u64, 1) << BH_Lock) >> BH_Lock & 1


def lock_buffer(bh):
    """Takes BH_Lock; sleeps while another task has it.  The caller has a reference, or what keeps
    the ring."""
    might_sleep()
    if trylock_buffer(bh):
        return
    waiters = cast(u64, 1) << BH_Waiters
    wait_begin(WAIT_BUFFER, bh)
    while not trylock_buffer(bh):
        queue = buffer_waitqueue(bh)
        sequence = smp_load_acquire32(addressof(queue.sequence))
        state = READ_ONCE64(addressof(bh.b_state))
        if state >> BH_Lock & 1 and \
                (state & waiters or cmpxchg64(addressof(bh.b_state), state, state | waiters) == state):
            wait_sleep(addressof(queue.sequence), sequence)
    wait_end()


def unlock_buffer(bh):
    """Gives BH_Lock back and wakes whoever waits for it."""
    clear = cast(u64, 1) << BH_Lock | cast(u64, 1) << BH_Waiters
    if fetch_and64(addressof(bh.b_state), ~clear) >> BH_Waiters & 1:
        wake_up_page(cast(pointer(Page), bh))


# ---- making and freeing them ---------------------------------------------------

def set_bh_page(bh, page, offset):
    """A buffer lies at `offset` in `page` from now on."""
    bh.b_page = page
    bh.b_data = cast(u64, page_address(page)) + offset


def free_buffers(head):
    """Frees a ring, or the beginning of one that was not closed, that nobody can find."""
    bh = head
    while bh != NULL:
        following = bh.b_this_page
        kmem_cache_free(kernel().buffer_head_cachep, bh)
        bh = following if following != head else cast(pointer(BufferHead), NULL)


def alloc_page_buffers(page, blkbits):
    """A ring of buffers for a page, not attached yet; NULL without memory."""
    size = cast(u64, 1) << blkbits
    head = NULL
    tail = NULL
    offset = 0
    while offset < PAGE_SIZE:
        bh = cast(pointer(BufferHead), kmem_cache_alloc(kernel().buffer_head_cachep))
        if bh == NULL:
            free_buffers(head)
            return NULL
        set_bh_page(bh, page, offset)
        bh.b_size = size
        bh.b_blocknr = ((page.index << PAGE_SHIFT) + offset) >> blkbits
        if tail != NULL:
            tail.b_this_page = bh
        else:
            head = bh
        tail = bh
        offset += size
    tail.b_this_page = head
    return head


def create_empty_buffers(page):
    """Gives a locked page its ring; buffers of a page that is uptodate or dirty are so too.  Returns
    0 or -ENOMEM.  Takes private_lock."""
    mapping = page_mapping(page)
    head = alloc_page_buffers(page, mapping.host.i_blkbits)
    if head == NULL:
        return -ENOMEM
    spin_lock(addressof(mapping.private_lock))
    bh = head
    while True:
        if PageUptodate(page):
            set_bh(bh, BH_Uptodate)
        if PageDirty(page):
            set_bh(bh, BH_Dirty)
        bh = bh.b_this_page
        if bh == head:
            break
    get_page(page)
    page.private = cast(u64, head)
    SetPagePrivate(page)
    spin_unlock(addressof(mapping.private_lock))
    return 0


def buffer_busy(bh):
    """Whether somebody needs this buffer: it is locked, dirty, or referred to."""
    # Acquire: if it is idle it may be freed, after all that was done with it.
    state = smp_load_acquire64(addressof(bh.b_state))
    return smp_load_acquire32(addressof(bh.b_count)) != 0 or state & (cast(u64, 1) << BH_Lock | cast(u64, 1) << BH_Dirty)


def drop_buffers(page):
    """Takes the ring off a page if all of it is idle; returns it, or NULL.  Holds private_lock, if
    the page is in a mapping."""
    head = page_buffers(page)
    bh = head
    while True:
        if buffer_busy(bh):
            return NULL
        bh = bh.b_this_page
        if bh == head:
            break
    ClearPagePrivate(page)
    page.private = 0
    put_page(page)
    return head


def cancel_dirty_page(page):
    """The dirt of a page need not be written.  The page is locked.  Takes tree_lock."""
    mapping = page_mapping(page)
    if TestClearPageDirty(page) and mapping != NULL and mapping_cap_account_dirty(mapping):
        dec_zone_page_state(page, NR_FILE_DIRTY)
        spin_lock(addressof(mapping.tree_lock))
        radix_tree_tag_clear(addressof(mapping.page_tree), page_index(page), PAGECACHE_TAG_DIRTY)
        spin_unlock(addressof(mapping.tree_lock))


def try_to_free_buffers(page):
    """Frees the ring of a locked page if all of it is idle, and says whether it did.  Never waits.
    Takes private_lock."""
    BUG_ON(not PageLocked(page))
    if PageWriteback(page):
        return False
    mapping = page_mapping(page)
    if mapping == NULL:
        # An orphan: nobody can dirty it.
        head = drop_buffers(page)
    else:
        spin_lock(addressof(mapping.private_lock))
        head = drop_buffers(page)
        # Clean buffers on a dirty page: somebody has written them one by one.
        if head != NULL:
            cancel_dirty_page(page)
        spin_unlock(addressof(mapping.private_lock))
    if head == NULL:
        return False
    free_buffers(head)
    return True


def block_releasepage(page, gfp):
    """The releasepage of files with buffers."""
    return try_to_free_buffers(page)


def try_to_release_page(page, gfp):
    """Asks the file system to let go of what it has on a locked page; says whether it did
    (mm/filemap.c)."""
    BUG_ON(not PageLocked(page))
    if PageWriteback(page):
        return False
    mapping = page_mapping(page)
    if mapping != NULL and a_ops(mapping).releasepage != NULL:
        return a_ops(mapping).releasepage(page, gfp)
    return try_to_free_buffers(page)


# ---- truncation, dirtying --------------------------------------------------------

def discard_buffer(bh):
    """A buffer's bytes are gone from the file.  May sleep on its lock."""
    lock_buffer(bh)
    test_clear_bh(bh, BH_Dirty)
    test_clear_bh(bh, BH_Write_EIO)
    unlock_buffer(bh)


def block_invalidatepage(page, offset):
    """The invalidatepage of files with buffers: discards those that lie wholly behind `offset`, and
    frees the ring if that is all.  The page is locked."""
    head = page_buffers(page)
    bh = head
    while True:
        # It may go as soon as it is idle, were it not for the page's lock.
        following = bh.b_this_page
        if bh_offset(bh) >= offset:
            discard_buffer(bh)
        bh = following
        if bh == head:
            break
    if offset == 0:
        try_to_release_page(page, 0)


def __set_page_dirty_buffers(page):
    """The set_page_dirty of files with buffers: all of them become dirty, then the page.  Says
    whether the page was clean.  Takes private_lock, then tree_lock."""
    mapping = page_mapping(page)
    if mapping == NULL:
        return not TestSetPageDirty(page)
    # Against the ring's going, or being attached, in the middle.
    spin_lock(addressof(mapping.private_lock))
    if page_has_buffers(page):
        head = page_buffers(page)
        bh = head
        while True:
            set_bh(bh, BH_Dirty)
            bh = bh.b_this_page
            if bh == head:
                break
    was = TestSetPageDirty(page)
    spin_unlock(addressof(mapping.private_lock))
    if not was:
        tag_page_dirty(page, mapping)
    return not was


def block_page_mkwrite(page):
    """The page_mkwrite of files with buffers: a locked page that is going to be written has them.
    Returns 0 or -ENOMEM."""
    if page_has_buffers(page):
        return 0
    return create_empty_buffers(page)


# ---- reading and writing -----------------------------------------------------------

def block_read_full_page(mapping, page):
    """The readpage of files with buffers: reads those that are not uptodate.  The page is locked,
    and unlocked when this returns.  0, -EIO or -ENOMEM."""
    rc = 0
    if not page_has_buffers(page):
        rc = create_empty_buffers(page)
    if rc == 0:
        head = page_buffers(page)
        bh = head
        while True:
            if not test_bh(bh, BH_Uptodate):
                lock_buffer(bh)
                failed = read_into_page(mapping.host, page, bh_offset(bh), bh_offset(bh) + bh.b_size)
                if failed == 0:
                    set_bh(bh, BH_Uptodate)
                else:
                    rc = failed
                unlock_buffer(bh)
            bh = bh.b_this_page
            if bh == head:
                break
    if rc == 0:
        SetPageUptodate(page)
        ClearPageError(page)
    else:
        SetPageError(page)
    count_vm_event(PGPGIN)
    unlock_page(page)
    return rc


def lock_dirty_buffers(head, wbc, busy_out):
    """Locks and cleans the dirty buffers of a ring, marked BH_Async_Write; those that somebody else
    has locked only if the writing is to be complete, else they are counted in *busy_out.  Returns
    how many are locked."""
    mine = 0
    busy = 0
    bh = head
    while True:
        if test_bh(bh, BH_Dirty):
            locked = trylock_buffer(bh)
            if not locked and wbc.sync_mode != WB_SYNC_NONE:
                lock_buffer(bh)
                locked = True
            if not locked:
                busy += 1
            elif test_clear_bh(bh, BH_Dirty):
                set_bh(bh, BH_Async_Write)
                mine += 1
            else:
                unlock_buffer(bh)
        bh = bh.b_this_page
        if bh == head:
            break
    busy_out[0] = busy
    return mine


def write_buffer(inode, page, bh):
    """Writes one locked buffer, as far as it lies in the file, and unlocks it; dirty again after an
    error.  Returns 0, -EIO or -ENOSPC."""
    count = bytes_in_file(inode, page)
    count = min(count - bh_offset(bh), bh.b_size) if count > bh_offset(bh) else 0
    rc = 0
    if count > 0:
        rc = host_write(inode, cast(pointer(char), bh.b_data), count, (page.index << PAGE_SHIFT) + bh_offset(bh))
    test_clear_bh(bh, BH_Async_Write)
    if rc == 0:
        test_clear_bh(bh, BH_Write_EIO)
    else:
        set_bh(bh, BH_Write_EIO)
        set_bh(bh, BH_Dirty)
    unlock_buffer(bh)
    return rc


def block_write_full_page(page, wbc):
    """The writepage of files with buffers: writes the dirty ones.  The page is locked, cleaned and
    not under writeback; it is unlocked when this returns, 0, -EIO or -ENOSPC (and the page is dirty
    again); or, when all dirty buffers are busy, still locked and dirty: AOP_WRITEPAGE_ACTIVATE."""
    mapping = page_mapping(page)
    if not page_has_buffers(page):
        # Dirtied without a page_mkwrite of ours: written as a whole.
        return file_writepage(page, wbc)
    head = page_buffers(page)
    busy = 0
    mine = lock_dirty_buffers(head, wbc, addressof(busy))
    if busy != 0:
        redirty_page_for_writepage(page)
        if mine == 0:
            return AOP_WRITEPAGE_ACTIVATE
    set_page_writeback(page)
    unlock_page(page)
    rc = 0
    bh = head
    while True:
        # Not to be looked at any more when the last of ours is done: the writeback keeps the ring.
        following = bh.b_this_page
        if test_bh(bh, BH_Async_Write):
            failed = write_buffer(mapping.host, page, bh)
            if rc == 0:
                rc = failed
        bh = following
        if bh == head:
            break
    count_vm_event(PGPGOUT)
    if rc != 0:
        SetPageError(page)
        redirty_page_for_writepage(page)
        mapping_set_error(mapping, rc)
    end_page_writeback(page)
    return rc
