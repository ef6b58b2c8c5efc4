# SPDX-License-Identifier: GPL-2.0-only
# Writing dirty pages back.  May use: rmap and below.

cimport cython
from shmkern.rmap cimport *

cdef extern from *:
    """
    #define AOP_WRITEPAGE_ACTIVATE 0x80000
    #define LONG_MAX_PAGES (~0UL >> 1)
    """
    const int AOP_WRITEPAGE_ACTIVATE   # from writepage: not now; the page is still locked
    const i64 LONG_MAX_PAGES

cdef bint clear_page_dirty_for_io(Page* page) noexcept nogil
cdef bint test_set_page_writeback(Page* page) noexcept nogil
cdef void set_page_writeback(Page* page) noexcept nogil
cdef void end_page_writeback(Page* page) noexcept nogil
cdef void redirty_page_for_writepage(Page* page) noexcept nogil
cdef u64 bytes_in_file(Inode* inode, Page* page) noexcept nogil
cdef int file_writepage(Page* page, WritebackControl* wbc) noexcept nogil
cdef int write_one_page(AddressSpace* mapping, Page* page, WritebackControl* wbc) noexcept nogil
@cython.locals(pages=page_batch, index=u64)
cdef int write_cache_pages(AddressSpace* mapping, WritebackControl* wbc) noexcept nogil
@cython.locals(pages=page_batch, index=u64)
cdef void wait_on_page_writeback_range(AddressSpace* mapping, u64 start, u64 end) noexcept nogil
@cython.locals(wbc=WritebackControl)
cdef int filemap_write_and_wait_range(AddressSpace* mapping, u64 start, u64 end) noexcept nogil
cdef int filemap_write_and_wait(AddressSpace* mapping) noexcept nogil

ctypedef Page* page_batch[14]          # PAGEVEC_SIZE
