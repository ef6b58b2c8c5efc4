# SPDX-License-Identifier: GPL-2.0-only
# From a page to the PTEs that map it.  May use: tlb and below.

cimport cython
from shmkern.tlb cimport *
from shmkern.rcu cimport *
from shmkern.memcg cimport *
from shmkern.filemap cimport *
from shmkern.interval_tree cimport *
from shmkern.swapfile cimport *

# Returns of try_to_unmap (include/linux/rmap.h).
cdef enum:
    SWAP_SUCCESS = 0
    SWAP_AGAIN = 1
    SWAP_FAIL = 2
    SWAP_MLOCK = 3

cdef inline AnonVma* page_anon_vma(Page* page) noexcept nogil:
    return <AnonVma*>(<u64>page.mapping - PAGE_MAPPING_ANON)

cdef inline AddressSpace* vma_mapping(VmAreaStruct* vma) noexcept nogil:
    return vma.vm_file.f_mapping if vma.vm_file != NULL else NULL

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
cdef pte_t* page_check_address(Page* page, MmStruct* mm, u64 address, Spinlock** ptlp, bint sync) noexcept nogil
cdef void __page_set_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_add_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_move_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_add_new_anon_rmap(Page* page, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void page_add_file_rmap(Page* page) noexcept nogil
cdef void page_dup_rmap(Page* page) noexcept nogil
cdef void page_remove_rmap(Page* page) noexcept nogil
cdef bint page_mkclean_one(Page* page, VmAreaStruct* vma) noexcept nogil
cdef bint page_mkclean(Page* page) noexcept nogil
cdef bint page_referenced_one(Page* page, VmAreaStruct* vma) noexcept nogil
@cython.locals(referenced=bint)
cdef bint page_referenced_anon(Page* page, MemCgroup* memcg) noexcept nogil
@cython.locals(referenced=bint)
cdef bint page_referenced_file(Page* page, MemCgroup* memcg) noexcept nogil
@cython.locals(referenced=bint)
cdef bint page_referenced(Page* page, bint locked, MemCgroup* memcg) noexcept nogil
cdef int try_to_unmap_one(Page* page, VmAreaStruct* vma, bint migration) noexcept nogil
cdef int try_to_unmap_file(Page* page, bint migration) noexcept nogil
cdef int try_to_unmap_anon(Page* page, bint migration) noexcept nogil
cdef int try_to_munlock(Page* page) noexcept nogil
cdef bint is_locked_in(Page* page, VmAreaStruct* vma) noexcept nogil
cdef int try_to_munlock_file(Page* page) noexcept nogil
cdef int try_to_unmap(Page* page, bint migration) noexcept nogil
