# SPDX-License-Identifier: GPL-2.0-only
# From a page to the PTEs that map it.  May use: tlb and below.

cimport cython
from shmkern.tlb cimport *
from shmkern.rcu cimport *
from shmkern.memcg cimport *

# Returns of try_to_unmap (include/linux/rmap.h).
cdef enum:
    SWAP_SUCCESS = 0
    SWAP_AGAIN = 1
    SWAP_FAIL = 2
    SWAP_MLOCK = 3

# include/linux/mm.h; the others are in vma.pxd.
cdef enum:
    VM_LOCKED = 0x2000

cdef inline AnonVma* page_anon_vma(Page* page) noexcept nogil:
    return <AnonVma*>(<u64>page.mapping - PAGE_MAPPING_ANON)

# The address space of a page-cache page; NULL for an anonymous one.
cdef inline AddressSpace* page_mapping(Page* page) noexcept nogil:
    if <u64>page.mapping & PAGE_MAPPING_ANON:
        return NULL
    return <AddressSpace*>page.mapping

cdef AnonVma* anon_vma_alloc() noexcept nogil
cdef void anon_vma_free(AnonVma* anon_vma) noexcept nogil
cdef void __anon_vma_link(VmAreaStruct* vma) noexcept nogil
cdef void anon_vma_link(VmAreaStruct* vma) noexcept nogil
cdef void __anon_vma_merge(VmAreaStruct* vma, VmAreaStruct* next) noexcept nogil
@cython.locals(empty=bint)
cdef void anon_vma_unlink(VmAreaStruct* vma) noexcept nogil
cdef AnonVma* page_lock_anon_vma(Page* page) noexcept nogil
cdef void page_unlock_anon_vma(AnonVma* anon_vma) noexcept nogil
cdef u64 vma_address(Page* page, VmAreaStruct* vma) noexcept nogil
cdef u64 page_address_in_vma(Page* page, VmAreaStruct* vma) noexcept nogil
cdef pte_t* page_check_address(Page* page, MmStruct* mm, u64 address, Spinlock** ptlp) noexcept nogil
cdef void __page_set_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_add_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_move_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_add_new_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_dup_rmap(Page* page) noexcept nogil
cdef void page_remove_rmap(Page* page) noexcept nogil
cdef void set_page_dirty(Page* page) noexcept nogil
@cython.locals(ptl=pointer_to_spinlock)
cdef int try_to_unmap_one(Page* page, VmAreaStruct* vma, bint migration) noexcept nogil
cdef int try_to_unmap_anon(Page* page, bint migration) noexcept nogil
@cython.locals(ptl=pointer_to_spinlock)
cdef int try_to_munlock(Page* page) noexcept nogil
cdef int try_to_unmap(Page* page, bint migration) noexcept nogil

ctypedef Spinlock* pointer_to_spinlock
