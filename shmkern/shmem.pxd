# SPDX-License-Identifier: GPL-2.0-only
# Shared anonymous memory.  May use: swap_state, shared_policy and below.

cimport cython
from shmkern.swap_state cimport *
from shmkern.shared_policy cimport *

# What a page tree has for a page in swap: its entry, with bit 0 set, which is none of a pointer's.
cdef inline void* swp_to_radix_entry(swp_entry_t entry) noexcept nogil:
    return <void*>(entry | RADIX_TREE_EXCEPTIONAL)

cdef inline swp_entry_t radix_to_swp_entry(void* item) noexcept nogil:
    return <u64>item & ~<u64>RADIX_TREE_EXCEPTIONAL

cdef int shmem_set_policy(VmAreaStruct* vma, Mempolicy* pol) noexcept nogil
cdef Mempolicy* shmem_get_policy(VmAreaStruct* vma, u64 address) noexcept nogil
cdef Mempolicy* shmem_page_policy(AddressSpace* mapping, u64 offset) noexcept nogil
cdef Page* shmem_alloc_page(u64 gfp, AddressSpace* mapping, u64 offset) noexcept nogil
@cython.locals(entry=swp_entry_t, item=pointer_to_void)
cdef swp_entry_t shmem_swap_entry(AddressSpace* mapping, u64 offset) noexcept nogil
@cython.locals(entry=swp_entry_t)
cdef swp_entry_t shmem_next_swapped(AddressSpace* mapping, u64* index) noexcept nogil
@cython.locals(entry=swp_entry_t)
cdef int shmem_writepage(Page* page, WritebackControl* wbc) noexcept nogil
@cython.locals(entry=swp_entry_t)
cdef void shmem_unswap_page(AddressSpace* mapping, u64 offset, Page* page) noexcept nogil
cdef int shmem_swapin_locked(AddressSpace* mapping, u64 offset, Page* page, swp_entry_t entry) noexcept nogil
@cython.locals(rc=cython.int)
cdef int shmem_swapin(AddressSpace* mapping, u64 offset, swp_entry_t entry) noexcept nogil
@cython.locals(entry=swp_entry_t)
cdef void shmem_truncate_swapped(AddressSpace* mapping, u64 index) noexcept nogil
cdef int shmem_getpage(AddressSpace* mapping, u64 offset) noexcept nogil
@cython.locals(rc=cython.int, entry=swp_entry_t)
cdef int shmem_fault(AddressSpace* mapping, u64 offset, Page** out) noexcept nogil
