# SPDX-License-Identifier: GPL-2.0-only
"""Writing dirty pages back to their files (mm/page-writeback.c, the waiting half of
mm/filemap.c).

A page is dirty from its first write on, which page_mkclean has made fault.  To be written
back it is locked and cleaned, with writing taken away from all PTEs; then it is under
writeback and unlocked, so that others may read and write it again; then its bytes go to the
file.  A write that comes meanwhile makes the page dirty again, and the page is written again
some day.

The tags in the page tree say which pages to look at: DIRTY from the first write until
writeback begins, WRITEBACK until it ends.

What could not be written is dirty again, and its mapping has an error to tell.

Locks: PG_locked, then i_mmap_lock and page tables (page_mkclean), then tree_lock.
"""
from cython import NULL, address as addressof, cast


def clear_page_dirty_for_io(page):
    """Cleans a locked page that is going to be written, or moved.  Says whether it was dirty.  The
    page tree's tag stays until the writing begins (test_set_page_writeback)."""
    BUG_ON(not PageLocked(page))
    mapping = page_mapping(page)
    if mapping == NULL or not mapping_cap_account_dirty(mapping):
        return TestClearPageDirty(page)
    if page_mkclean(page):
        # Written through a PTE: into the page with that, before the flag is cleared, so that at
        # each moment either the flag or a PTE says it.
        set_page_dirty(page)
    if not TestClearPageDirty(page):
        return False
    dec_zone_page_state(page, NR_FILE_DIRTY)
    return True


def test_set_page_writeback(page):
    """Begins writeback of a page: sets PG_writeback and the tag, and takes the dirty tag off a
    page that is clean.  Says whether it was under writeback already.  Takes tree_lock."""
    mapping = page_mapping(page)
    spin_lock(addressof(mapping.tree_lock))
    was = TestSetPageWriteback(page)
    if not was:
        radix_tree_tag_set(addressof(mapping.page_tree), page_index(page), PAGECACHE_TAG_WRITEBACK)
        inc_zone_page_state(page, NR_WRITEBACK)
    if not PageDirty(page):
        radix_tree_tag_clear(addressof(mapping.page_tree), page_index(page), PAGECACHE_TAG_DIRTY)
    spin_unlock(addressof(mapping.tree_lock))
    return was


def set_page_writeback(page):
    """test_set_page_writeback by who has the page's lock and has waited for the last one."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    if test_set_page_writeback(page):
        BUG_AT(b"a page is written back twice at once", page)


def end_page_writeback(page):
    """Ends writeback of a page and wakes whoever waits for that.  The page stays in its mapping as
    long as PG_writeback is set.  Takes tree_lock."""
    BUG_ON(not PageWriteback(page))
    mapping = page_mapping(page)
    if mapping != NULL:
        spin_lock(addressof(mapping.tree_lock))
        radix_tree_tag_clear(addressof(mapping.page_tree), page_index(page), PAGECACHE_TAG_WRITEBACK)
        dec_zone_page_state(page, NR_WRITEBACK)
        spin_unlock(addressof(mapping.tree_lock))
    clear_page_bit(page, PG_writeback)


def redirty_page_for_writepage(page):
    """Makes a page dirty again that has been cleaned and was not written: without its buffers,
    which still are."""
    __set_page_dirty_nobuffers(page)


def bytes_in_file(inode, page):
    """How many bytes of a page are in its file."""
    size = READ_ONCE64(addressof(inode.i_size))
    start = page.index << PAGE_SHIFT
    return 0 if size <= start else min(size - start, cast(u64, PAGE_SIZE))


def file_writepage(page, wbc):
    """Writes a whole page: the writepage of files without buffers.  The page is locked, cleaned
    and not under writeback; it is unlocked when this returns.  0, -EIO or -ENOSPC; then the page
    is dirty again, and its mapping has the error."""
    mapping = page_mapping(page)
    # Under the page's lock: who makes the file shorter waits for that, and for the writeback.
    count = bytes_in_file(mapping.host, page)
    set_page_writeback(page)
    unlock_page(page)
    rc = 0
    if count > 0:
        rc = host_write(mapping.host, page_address(page), count, page.index << PAGE_SHIFT)
        count_vm_event(PGPGOUT)
    if rc != 0:
        SetPageError(page)
        redirty_page_for_writepage(page)
        mapping_set_error(mapping, rc)
    end_page_writeback(page)
    return rc


def write_one_page(mapping, page, wbc):
    """Writes a locked page back if it is in the mapping and dirty; it is unlocked when this
    returns.  0, -EIO or -ENOSPC."""
    if page_mapping(page) != mapping or not PageDirty(page):
        unlock_page(page)
        return 0
    if wbc.sync_mode != WB_SYNC_NONE:
        wait_on_page_writeback(page)
    if PageWriteback(page) or not clear_page_dirty_for_io(page):
        unlock_page(page)
        return 0
    rc = a_ops(mapping).writepage(page, wbc)
    wbc.nr_to_write -= 1
    if rc == AOP_WRITEPAGE_ACTIVATE:
        unlock_page(page)
        rc = 0
    return rc


def write_cache_pages(mapping, wbc):
    """Writes back the dirty pages of a mapping, from range_start to range_end, up to nr_to_write
    of them; leaves in range_start where to go on.  Goes on after an error: what can be written
    is.  Returns 0, or the first -EIO or -ENOSPC.  Sleeps."""
    ret = 0
    index = wbc.range_start
    while wbc.nr_to_write > 0:
        count = find_get_pages_tag(mapping, addressof(index), wbc.range_end, PAGECACHE_TAG_DIRTY, pages)
        if count == 0:
            break
        for place in range(count):
            page = pages[place]
            if wbc.nr_to_write > 0:
                lock_page(page)
                rc = write_one_page(mapping, page, wbc)
                if ret == 0:
                    ret = rc
            else:
                # The first of those that are left is where to go on.
                index = min(index, page.index)
            put_page(page)
    wbc.range_start = index
    return ret


def wait_on_page_writeback_range(mapping, start, end):
    """Waits until no page from `start` to `end` is under writeback that was so on entry."""
    index = start
    while True:
        count = find_get_pages_tag(mapping, addressof(index), end, PAGECACHE_TAG_WRITEBACK, pages)
        if count == 0:
            return
        for place in range(count):
            wait_on_page_writeback(pages[place])
            put_page(pages[place])


def filemap_write_and_wait_range(mapping, start, end):
    """Writes the dirty pages from `start` to `end` to the file and waits for those that others
    write.  Returns 0, or an error of any writing since the last that was told: -EIO, -ENOSPC."""
    if READ_ONCE64(addressof(mapping.nrpages)) == 0 or a_ops(mapping).writepage == NULL:
        return filemap_check_errors(mapping)
    wbc.sync_mode = WB_SYNC_ALL
    wbc.nr_to_write = LONG_MAX_PAGES
    wbc.range_start = start
    wbc.range_end = end
    rc = write_cache_pages(mapping, addressof(wbc))
    wait_on_page_writeback_range(mapping, start, end)
    told = filemap_check_errors(mapping)
    return rc if rc != 0 else told


def filemap_write_and_wait(mapping):
    """filemap_write_and_wait_range for the whole file."""
    return filemap_write_and_wait_range(mapping, 0, RADIX_TREE_MAX_INDEX)
