# SPDX-License-Identifier: GPL-2.0-only
"""Making files shorter and longer (mm/truncate.c, vmtruncate of mm/memory.c).

A file becomes shorter in this order: its size, so that no fault brings a page behind the new
end from here on; all PTEs of such pages; the pages.  A fault that had looked at the old size
has its page locked until it is mapped, so we come after it when we lock the page, and unmap it
once more.

A page that is taken out may live on for who has a reference, as an orphan: it is in no
mapping, and its buffers, if it has any that are busy, keep it from being freed.

Locks: i_mutex, held by the caller; PG_locked; then those of writeback and of unmapping.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.string import memset


def do_invalidatepage(page, offset):
    """Tells the page's buffers that its bytes from `offset` on are gone.  The page is locked."""
    invalidatepage = a_ops(page_mapping(page)).invalidatepage
    if invalidatepage != NULL:
        invalidatepage(page, offset)


def truncate_complete_page(mapping, page):
    """Takes a page out of the mapping.  It is locked, not mapped and not under writeback."""
    if page_mapping(page) != mapping:
        return
    if PagePrivate(page):
        do_invalidatepage(page, 0)
    cancel_dirty_page(page)
    clear_page_mlock(page)
    remove_from_page_cache(page)
    put_page(page)      # The cache's reference.


def truncate_inode_pages(mapping, size):
    """Takes all pages out of the mapping that lie wholly behind `size` bytes.  May sleep."""
    index = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
    truncate_cached_pages(mapping, index)
    # After the pages, since reclaim may just have sent one there.
    shmem_truncate_swapped(mapping, index)


def truncate_cached_pages(mapping, index):
    """Takes all pages from an index on out of the mapping.  May sleep."""
    while True:
        count = find_get_pages_tag(mapping, addressof(index), RADIX_TREE_MAX_INDEX, RADIX_TREE_NO_TAG, pages)
        if count == 0:
            return
        for place in range(count):
            page = pages[place]
            lock_page(page)
            # Its identity is settled now; it may have been moved while we waited.
            wait_on_page_writeback(page)
            if page_mapping(page) == mapping and page_mapped(page):
                unmap_mapping_range(mapping, page.index, page.index, False)
            truncate_complete_page(mapping, page)
            unlock_page(page)
            put_page(page)


def truncate_partial_page(mapping, size):
    """Zeroes what lies behind `size` in the page that holds the new end, if it is cached."""
    first = size & (PAGE_SIZE - 1)
    if first == 0:
        return
    page = find_lock_page(mapping, size >> PAGE_SHIFT)
    if page == NULL:
        return
    # Who writes it back began with the old size.
    wait_on_page_writeback(page)
    memset(cast(pointer(char), page_address(page)) + first, 0, PAGE_SIZE - first)
    if PagePrivate(page):
        do_invalidatepage(page, first)
    unlock_page(page)
    put_page(page)


def zero_tail(mapping, size):
    """Before a file of `size` bytes becomes longer: what programs stored behind its end in its last
    page was never part of it."""
    first = size & (PAGE_SIZE - 1)
    if first == 0:
        return
    page = find_lock_page(mapping, size >> PAGE_SHIFT)
    if page != NULL:
        memset(cast(pointer(char), page_address(page)) + first, 0, PAGE_SIZE - first)
        unlock_page(page)
        put_page(page)


def do_truncate(inode, size):
    """Makes a file `size` bytes long.  Returns 0, or the host's negative errno with the size as
    before.  Holds i_mutex."""
    mapping = addressof(inode.i_data)
    old = inode.i_size
    if size >= old:
        # The host first: it may have no room, or a limit.
        rc = host_truncate(inode, size) if inode.i_host_fd >= 0 else 0
        if rc == 0:
            zero_tail(mapping, old)
            # Release: a reader that sees the new end sees the zeros before it, as in extend_file.
            smp_store_release64(addressof(inode.i_size), size)
        return rc
    # The host first, which may forbid it, and last: what is written back in between makes its file
    # longer again.
    rc = host_truncate(inode, size) if inode.i_host_fd >= 0 else 0
    if rc != 0:
        return rc
    smp_store_mb64(addressof(inode.i_size), size)
    hole = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
    unmap_mapping_range(mapping, hole, RADIX_TREE_MAX_INDEX, True)
    truncate_inode_pages(mapping, size)
    # Private copies that faults in the middle of it have made.
    unmap_mapping_range(mapping, hole, RADIX_TREE_MAX_INDEX, True)
    truncate_partial_page(mapping, size)
    rc = host_truncate(inode, size) if inode.i_host_fd >= 0 else 0
    if rc != 0:
        WRITE_ONCE64(addressof(inode.i_size), old)
    return rc
