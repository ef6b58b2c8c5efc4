# SPDX-License-Identifier: GPL-2.0-only
# The page cache.  May use: inode, mempolicy, memcg and below.

cimport cython
from shmkern.mempolicy cimport *
from shmkern.memcg cimport *
from shmkern.inode cimport *
from shmkern.swapops cimport *

cdef enum:
    # A file page's answer to an access that it has no byte for; a signal in Linux.
    VM_FAULT_SIGBUS = 5        # as -EIO

# The mapping that a page is in: a file's, or the swap cache's; NULL for a page in none.
cdef inline AddressSpace* page_mapping(Page* page) noexcept nogil:
    cdef u64 mapping = READ_ONCE64(&page.mapping)
    if unlikely(PageSwapCache(page)):
        return &kernel().swapper_space
    if mapping & PAGE_MAPPING_ANON:
        return NULL
    return <AddressSpace*>mapping

# A page's place in its mapping.
cdef inline u64 page_index(Page* page) noexcept nogil:
    if unlikely(PageSwapCache(page)):
        return swp_index(page.private)
    return page.index

cdef inline bint mapping_cap_account_dirty(AddressSpace* mapping) noexcept nogil:
    return a_ops(mapping).account_dirty

cdef int add_to_page_cache_locked(Page* page, AddressSpace* mapping, u64 offset) noexcept nogil
cdef int add_to_page_cache(Page* page, AddressSpace* mapping, u64 offset) noexcept nogil
cdef int add_to_page_cache_lru(Page* page, AddressSpace* mapping, u64 offset) noexcept nogil
cdef void __remove_from_page_cache(Page* page) noexcept nogil
cdef void remove_from_page_cache(Page* page) noexcept nogil
@cython.locals(page=pointer_to_page)
cdef Page* find_get_page(AddressSpace* mapping, u64 offset) noexcept nogil
cdef Page* find_lock_page(AddressSpace* mapping, u64 offset) noexcept nogil
cdef u64 find_get_pages_tag(AddressSpace* mapping, u64* index, u64 end, int tag, Page** pages) noexcept nogil
cdef bint set_page_dirty(Page* page) noexcept nogil
cdef void tag_page_dirty(Page* page, AddressSpace* mapping) noexcept nogil
cdef bint __set_page_dirty_nobuffers(Page* page) noexcept nogil
cdef bint __set_page_dirty_no_writeback(Page* page) noexcept nogil
cdef int read_into_page(Inode* inode, Page* page, u64 first, u64 end) noexcept nogil
cdef int filemap_readpage(AddressSpace* mapping, Page* page) noexcept nogil
cdef int page_cache_read(AddressSpace* mapping, u64 offset) noexcept nogil
cdef int lock_uptodate_page(AddressSpace* mapping, u64 offset, Page** out, bint fault) noexcept nogil
cdef int filemap_fault(AddressSpace* mapping, u64 offset, Page** out) noexcept nogil

ctypedef Page* pointer_to_page
