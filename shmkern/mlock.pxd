# SPDX-License-Identifier: GPL-2.0-only
# Locked pages.  May use: migrate and below.

cimport cython
from shmkern.migrate cimport *
from shmkern.cred cimport *

cdef bint can_do_mlock() noexcept nogil
cdef bint may_lock(u64 pages) noexcept nogil
cdef void mlock_vma_page(Page* page) noexcept nogil
cdef void clear_page_mlock(Page* page) noexcept nogil
cdef void munlock_vma_page(Page* page) noexcept nogil
cdef bint page_is_mapped_at(Page* page, MmStruct* mm, u64 address) noexcept nogil
@cython.locals(pte=pte_t)
cdef Page* follow_landed_page(VmAreaStruct* vma, u64 address) noexcept nogil
@cython.locals(mapped=bint)
cdef bint munlock_one(VmAreaStruct* vma, Page* page, u64 address) noexcept nogil
cdef void munlock_swapped(swp_entry_t entry) noexcept nogil
@cython.locals(pte=pte_t)
cdef void munlock_pte_range(VmAreaStruct* vma, u64* pmd, u64 address, u64 end) noexcept nogil
@cython.locals(at=u64, stop=u64)
cdef void munlock_vma_pages_range(VmAreaStruct* vma, u64 start, u64 end) noexcept nogil
