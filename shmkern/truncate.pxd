# SPDX-License-Identifier: GPL-2.0-only
# Taking pages out of a file.  May use: mlock, buffer, shmem and below.

cimport cython
from shmkern.mlock cimport *
from shmkern.buffer cimport *
from shmkern.shmem cimport *

cdef void do_invalidatepage(Page* page, u64 offset) noexcept nogil
cdef void truncate_complete_page(AddressSpace* mapping, Page* page) noexcept nogil
cdef void truncate_partial_page(AddressSpace* mapping, u64 size) noexcept nogil
@cython.locals(pages=page_batch)
cdef void truncate_cached_pages(AddressSpace* mapping, u64 index) noexcept nogil
@cython.locals(index=u64)
cdef void truncate_inode_pages(AddressSpace* mapping, u64 size) noexcept nogil
cdef void zero_tail(AddressSpace* mapping, u64 size) noexcept nogil
@cython.locals(old=u64)
cdef int do_truncate(Inode* inode, u64 size) noexcept nogil
