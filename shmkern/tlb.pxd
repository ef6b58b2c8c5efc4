# SPDX-License-Identifier: GPL-2.0-only
# The MMU: translation, accessed and dirty, shootdown.  May use: pagetable and below.

cimport cython
from shmkern.pagetable cimport *

# A TLB entry is one word, so that a flusher can remove it with one store:
# bits 63..32 the page number above the index, 31..4 the frame, 2..0 these.
cdef enum:
    TLB_VALID = 1
    TLB_WRITE = 2              # the PTE allowed writing when the entry was made
    TLB_DIRTY = 4              # and the PTE's dirty bit is set
    TLB_PFN_SHIFT = 4
    TLB_TAG_SHIFT = 32
    TLB_INDEX_BITS = 10
    TLB_FLUSH_ALL = 33         # pages; a longer range empties the TLB

cdef extern from *:
    """
    #define TLB_TAG_MASK 0xffffffff00000000UL
    """
    const u64 TLB_TAG_MASK

# What tlb_fill finds instead of a translation.
cdef enum:
    FAULT_PROT = 0             # present, but not for this access
    FAULT_NOT_PRESENT = 8      # bit 0 clear in both: not a valid entry

cdef enum:
    GATHER_PAGES = 500

# Pages and tables that are unmapped but not free until no TLB leads to them
# (include/asm-generic/tlb.h).
cdef struct MmuGather:
    MmStruct* mm
    u64 start
    u64 end
    u64 nr
    Page* pages[500]           # GATHER_PAGES

cdef inline u64* tlb_slot(Task* task, u64 address) noexcept nogil:
    return &task.tlb[address >> PAGE_SHIFT & (TLB_ENTRIES - 1)]

cdef inline u64 tlb_tag(u64 address) noexcept nogil:
    return address >> (PAGE_SHIFT + TLB_INDEX_BITS) << TLB_TAG_SHIFT

# The frame address that a valid entry stands for.
cdef inline char* tlb_frame(u64 entry) noexcept nogil:
    return <char*>pfn_to_kaddr((entry & ~TLB_TAG_MASK) >> TLB_PFN_SHIFT)

# Enters and leaves a memory access.  The entry is a full fence: from here on a
# flusher that did not see us has emptied its TLB slot before we look at it.
cdef inline void access_begin(Task* me) noexcept nogil:
    smp_store_mb32(&me.access_seq, me.access_seq + 1)

cdef inline void access_end(Task* me) noexcept nogil:
    smp_store_release32(&me.access_seq, me.access_seq + 1)

# The frame address of a translation for this access, or NULL.  Inside an access.
cdef inline char* tlb_lookup(Task* me, u64 address, u64 need) noexcept nogil:
    cdef u64 entry = READ_ONCE64(tlb_slot(me, address))
    if likely((entry & (TLB_TAG_MASK | need)) == (tlb_tag(address) | need)):
        return tlb_frame(entry)
    return NULL

@cython.locals(pte=pte_t)
cdef u64 tlb_fill(Task* me, MmStruct* mm, u64 address, bint write) noexcept nogil
cdef void tlb_invalidate(Task* task, u64 start, u64 end) noexcept nogil
cdef void tlb_wait_for_access(Task* task) noexcept nogil
cdef void flush_tlb_range(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef void flush_tlb_mm(MmStruct* mm) noexcept nogil
cdef void shoot_down(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef pte_t ptep_clear_flush(MmStruct* mm, u64 address, pte_t* ptep) noexcept nogil
cdef bint ptep_clear_flush_young(MmStruct* mm, u64 address, pte_t* ptep) noexcept nogil
cdef void activate_mm(MmStruct* mm) noexcept nogil
cdef void deactivate_mm(MmStruct* mm, Task* task) noexcept nogil
cdef void tlb_gather_mmu(MmuGather* tlb, MmStruct* mm) noexcept nogil
cdef void tlb_note_range(MmuGather* tlb, u64 start, u64 end) noexcept nogil
cdef void tlb_remove_page(MmuGather* tlb, Page* page) noexcept nogil
cdef void tlb_finish_mmu(MmuGather* tlb) noexcept nogil
