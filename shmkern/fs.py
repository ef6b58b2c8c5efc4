# SPDX-License-Identifier: GPL-2.0-only
"""What each kind of file can do: the table of address_space operations of this process, and what
areas do that map shared memory.

    page      no buffers; pages are moved by migrate_page
    buffer    buffer heads, moved with the page by buffer_migrate_page
    fallback  buffer heads, and no migratepage: dirty pages are written back before they can be
              moved, buffers are dropped (fallback_migrate_page)
    ramfs     neither migratepage nor writepage: what is written stays in memory until the last
              close, and a dirty page cannot be moved (-EINVAL)
    fixed     as page, but its pages cannot be moved at all (fail_migrate_page)
    shmem     shared anonymous memory; no file of the host, its pages go to swap
    swap      the swap cache; nothing looks for its dirty pages but reclaim, which comes to them
              by the LRU

An operation that a kind has not is NULL in the table.
"""


def nr_file_kinds():
    """How many kinds of files programs can choose from."""
    return AOPS_FIXED


def fill_a_ops():
    """Fills the table."""
    for kind in range(AOPS_PAGE, AOPS_SHMEM + 1):
        ops = a_ops_of(kind)
        if kind == AOPS_BUFFER or kind == AOPS_FALLBACK:
            ops.readpage = block_read_full_page
            ops.writepage = block_write_full_page
            ops.set_page_dirty = __set_page_dirty_buffers
            ops.page_mkwrite = block_page_mkwrite
            ops.releasepage = block_releasepage
            ops.invalidatepage = block_invalidatepage
            ops.account_dirty = True
        elif kind == AOPS_PAGE or kind == AOPS_FIXED:
            ops.readpage = filemap_readpage
            ops.writepage = file_writepage
            ops.set_page_dirty = __set_page_dirty_nobuffers
            ops.account_dirty = True
        else:
            ops.readpage = filemap_readpage
            ops.set_page_dirty = __set_page_dirty_no_writeback
    a_ops_of(AOPS_PAGE).migratepage = migrate_page
    a_ops_of(AOPS_BUFFER).migratepage = buffer_migrate_page
    a_ops_of(AOPS_FIXED).migratepage = fail_migrate_page
    a_ops_of(AOPS_SHMEM).migratepage = migrate_page
    a_ops_of(AOPS_SHMEM).writepage = shmem_writepage
    swap = a_ops_of(AOPS_SWAP)
    swap.writepage = swap_writepage
    swap.set_page_dirty = __set_page_dirty_no_writeback
    swap.migratepage = migrate_page


fill_a_ops()
vm_operations[VM_OPS_SHMEM].set_policy = shmem_set_policy
vm_operations[VM_OPS_SHMEM].get_policy = shmem_get_policy
