# SPDX-License-Identifier: GPL-2.0-only
# The swap cache.  May use: writeback, swapfile and below.

cimport cython
from shmkern.writeback cimport *
from shmkern.swapfile cimport *
from shmkern.mempolicy cimport *
from shmkern.memcg cimport *

cdef int add_to_swap_cache(Page* page, swp_entry_t entry) noexcept nogil
cdef void __delete_from_swap_cache(Page* page) noexcept nogil
cdef void delete_from_swap_cache(Page* page) noexcept nogil
@cython.locals(rc=cython.int, entry=swp_entry_t)
cdef bint add_to_swap(Page* page) noexcept nogil
cdef bint try_to_free_swap(Page* page) noexcept nogil
cdef void free_swap_cache(Page* page) noexcept nogil
cdef bint reuse_swap_page(Page* page) noexcept nogil
@cython.locals(page=pointer_to_page)
cdef void free_swap_and_cache(swp_entry_t entry) noexcept nogil
cdef Page* lookup_swap_cache(swp_entry_t entry) noexcept nogil
@cython.locals(new=pointer_to_page, found=pointer_to_page, rc=cython.int)
cdef Page* read_swap_cache_async(swp_entry_t entry, u64 gfp, Mempolicy* pol, u64 ilx) noexcept nogil
@cython.locals(offset=u64, end=u64)
cdef Page* swapin_readahead(swp_entry_t entry, u64 gfp, Mempolicy* pol, u64 ilx) noexcept nogil
@cython.locals(fd=cython.int, done=i64, left=u64, position=u64)
cdef int swap_io(Page* page, bint write) noexcept nogil
cdef void swap_readpage(Page* page) noexcept nogil
cdef int swap_writepage(Page* page, WritebackControl* wbc) noexcept nogil
