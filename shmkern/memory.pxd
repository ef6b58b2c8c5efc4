# SPDX-License-Identifier: GPL-2.0-only
# Operations on ranges of page tables.  May use: vma and below.

cimport cython
from shmkern.vma cimport *
from shmkern.swap_state cimport *

cdef Page* follow_page(VmAreaStruct* vma, u64 address, bint write) noexcept nogil
cdef void zap_pte(MmuGather* tlb, VmAreaStruct* vma, u64 address, pte_t* ptep) noexcept nogil
cdef u64* rss_of(MmStruct* mm, Page* page) noexcept nogil
cdef bint is_file_pte(pte_t pte) noexcept nogil
cdef void zap_pte_range(MmuGather* tlb, VmAreaStruct* vma, u64* pmd, u64 address, u64 end, bint even_cows) noexcept nogil
cdef void unmap_page_range(MmuGather* tlb, VmAreaStruct* vma, u64 address, u64 end, bint even_cows) noexcept nogil
@cython.locals(tlb=MmuGather, low=u64, high=u64)
cdef void unmap_mapping_range(AddressSpace* mapping, u64 first, u64 last, bint even_cows) noexcept nogil
cdef bint table_is_needed(u64 address, u64 floor, u64 ceiling, u64 mask) noexcept nogil
cdef void free_table(MmuGather* tlb, u64* entry, u64 address) noexcept nogil
cdef void free_pgd_range(MmuGather* tlb, u64 address, u64 end, u64 floor, u64 ceiling) noexcept nogil
cdef void free_pud_range(MmuGather* tlb, u64* pgd, u64 address, u64 end, u64 floor, u64 ceiling) noexcept nogil
cdef void free_pmd_range(MmuGather* tlb, u64* pud, u64 address, u64 end, u64 floor, u64 ceiling) noexcept nogil
cdef void copy_one_pte(MmStruct* dst_mm, pte_t* dst, pte_t* src, u64 vm_flags) noexcept nogil
@cython.locals(dst_pmd=pointer_to_u64)
cdef int copy_pte_range(MmStruct* dst_mm, MmStruct* src_mm, u64* src_pmd, VmAreaStruct* vma, u64 address, u64 end) noexcept nogil
cdef int copy_page_range(MmStruct* dst_mm, MmStruct* src_mm, VmAreaStruct* vma) noexcept nogil
cdef void change_pte_range(MmStruct* mm, u64* pmd, u64 address, u64 end, u64 newprot) noexcept nogil
cdef void change_protection(VmAreaStruct* vma, u64 start, u64 end) noexcept nogil
cdef void move_ptes(VmAreaStruct* vma, u64* old_pmd, u64 old_addr, u64 old_end, u64* new_pmd, u64 new_addr) noexcept nogil
@cython.locals(new_pmd=pointer_to_u64, at=u64, to=u64, stop=u64)
cdef u64 move_page_tables(VmAreaStruct* vma, u64 old_addr, VmAreaStruct* new_vma, u64 new_addr, u64 length, bint back) noexcept nogil
cdef u64* next_pmd(MmStruct* mm, u64* address, u64 end) noexcept nogil

ctypedef u64* pointer_to_u64
