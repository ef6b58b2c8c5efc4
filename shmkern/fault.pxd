# SPDX-License-Identifier: GPL-2.0-only
# Page faults.  May use: device and below.

cimport cython
from shmkern.device cimport *
from shmkern.freezer cimport *

cdef enum:
    FAULT_SAMPLE = 16          # one fault in so many is timed

cdef int do_zero_page(VmAreaStruct* vma, pte_t* ptep, Spinlock* ptl) noexcept nogil
cdef int do_anonymous_page(MmStruct* mm, VmAreaStruct* vma, u64 address, pte_t* ptep, Spinlock* ptl, bint write) noexcept nogil
cdef int make_page_writable(Page* page) noexcept nogil
cdef Page* cow_fault_page(VmAreaStruct* vma, u64 address, Page* file_page) noexcept nogil
cdef void map_file_page(MmStruct* mm, VmAreaStruct* vma, Page* page, pte_t* ptep, Spinlock* ptl, bint write) noexcept nogil
cdef void map_cow_page(MmStruct* mm, VmAreaStruct* vma, u64 address, Page* page, pte_t* ptep, Spinlock* ptl) noexcept nogil
@cython.locals(page=pointer_to_page)
cdef int do_fault(MmStruct* mm, VmAreaStruct* vma, u64 address, pte_t* ptep, Spinlock* ptl, bint write) noexcept nogil
@cython.locals(same=bint)
cdef bint pte_unmap_same(pte_t* ptep, Spinlock* ptl, pte_t pte) noexcept nogil
@cython.locals(entry=swp_entry_t, memcg=pointer_to_memcg, same=bint)
cdef int do_swap_page_locked(MmStruct* mm, VmAreaStruct* vma, u64 address, pte_t* ptep, Spinlock* ptl, pte_t pte, Page* page, bint write) noexcept nogil
@cython.locals(page=pointer_to_page, entry=swp_entry_t, ilx=u64)
cdef int do_swap_page(MmStruct* mm, VmAreaStruct* vma, u64 address, u64* pmd, pte_t* ptep, Spinlock* ptl, pte_t pte, bint write) noexcept nogil
cdef bint pte_unchanged(pte_t* ptep, pte_t pte) noexcept nogil
cdef void wp_page_reuse(pte_t* ptep) noexcept nogil
@cython.locals(same=bint)
cdef int wp_page_copy(MmStruct* mm, VmAreaStruct* vma, u64 address, pte_t* ptep, Spinlock* ptl, pte_t pte) noexcept nogil
cdef int wp_page_shared(VmAreaStruct* vma, pte_t* ptep, Spinlock* ptl, pte_t pte, Page* page) noexcept nogil
@cython.locals(same=bint, copy=bint)
cdef bint wp_page_anon(pte_t* ptep, Spinlock* ptl, pte_t pte, Page* page) noexcept nogil
@cython.locals(copy=bint)
cdef int do_wp_page(MmStruct* mm, VmAreaStruct* vma, u64 address, pte_t* ptep, Spinlock* ptl, pte_t pte) noexcept nogil
cdef int handle_pte_fault(MmStruct* mm, VmAreaStruct* vma, u64 address, u64* pmd, pte_t* ptep, bint write) noexcept nogil
cdef void mlock_faulted_page(VmAreaStruct* vma, u64 address) noexcept nogil
@cython.locals(pmd=pointer_to_u64)
cdef int handle_mm_fault(MmStruct* mm, VmAreaStruct* vma, u64 address, bint write) noexcept nogil
cdef Page* get_user_page(VmAreaStruct* vma, u64 address, bint write, int* rc) noexcept nogil
cdef bint access_error(VmAreaStruct* vma, bint write) noexcept nogil
@cython.locals(entered=bint)
cdef int do_page_fault(u64 address, bint write) noexcept nogil
