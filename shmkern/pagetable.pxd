# SPDX-License-Identifier: GPL-2.0-only
# Page-table entries and the tables they lie in.  May use: mempolicy and below.

cimport cython
from shmkern.mempolicy cimport *
from shmkern.swapops cimport *

ctypedef u64 pte_t

# arch/x86/include/asm/pgtable.h
cdef enum:
    PGDIR_SHIFT = 39
    PUD_SHIFT = 30
    PMD_SHIFT = 21
    PTRS_PER_TABLE = 512
    _PAGE_PRESENT = 0x001
    _PAGE_RW = 0x002
    _PAGE_USER = 0x004
    _PAGE_ACCESSED = 0x020
    _PAGE_DIRTY = 0x040
    _PAGE_FILE = 0x040         # when not present
    _PAGE_PROTNONE = 0x100     # present to the kernel, not to the MMU
    _PAGE_SPECIAL = 0x200      # no struct page to account: the zero page
    _PAGE_TABLE = 0x067        # PRESENT | RW | USER | ACCESSED | DIRTY

cdef extern from *:
    """
    #define TASK_SIZE 0x7ffffffff000UL
    #define PAGE_MASK (~4095UL)
    #define PMD_MASK (~((1UL << 21) - 1))
    #define PUD_MASK (~((1UL << 30) - 1))
    #define PGDIR_MASK (~((1UL << 39) - 1))
    #define PTE_PFN_MASK 0x000ffffffffff000UL
    #define _PAGE_NX (1UL << 63)
    """
    const u64 TASK_SIZE
    const u64 PAGE_MASK
    const u64 PMD_MASK
    const u64 PUD_MASK
    const u64 PGDIR_MASK
    const u64 PTE_PFN_MASK
    const u64 _PAGE_NX

cdef inline u64 PAGE_ALIGN(u64 address) noexcept nogil:
    return (address + PAGE_SIZE - 1) & PAGE_MASK

# ---- entries ----

cdef inline bint pte_none(pte_t pte) noexcept nogil:
    return pte == 0

cdef inline bint pte_present(pte_t pte) noexcept nogil:
    return (pte & (_PAGE_PRESENT | _PAGE_PROTNONE)) != 0

cdef inline bint pte_write(pte_t pte) noexcept nogil:
    return (pte & _PAGE_RW) != 0

cdef inline bint pte_dirty(pte_t pte) noexcept nogil:
    return (pte & _PAGE_DIRTY) != 0

cdef inline bint pte_young(pte_t pte) noexcept nogil:
    return (pte & _PAGE_ACCESSED) != 0

cdef inline bint pte_special(pte_t pte) noexcept nogil:
    return (pte & _PAGE_SPECIAL) != 0

cdef inline bint pte_file(pte_t pte) noexcept nogil:
    return not pte_present(pte) and (pte & _PAGE_FILE) != 0

cdef inline u64 pte_pfn(pte_t pte) noexcept nogil:
    return (pte & PTE_PFN_MASK) >> PAGE_SHIFT

cdef inline Page* pte_page(pte_t pte) noexcept nogil:
    return pfn_to_page(pte_pfn(pte))

cdef inline pte_t pte_mkwrite(pte_t pte) noexcept nogil:
    return pte | _PAGE_RW

cdef inline pte_t pte_wrprotect(pte_t pte) noexcept nogil:
    return pte & ~<u64>_PAGE_RW

cdef inline pte_t pte_mkdirty(pte_t pte) noexcept nogil:
    return pte | _PAGE_DIRTY

cdef inline pte_t pte_mkclean(pte_t pte) noexcept nogil:
    return pte & ~<u64>_PAGE_DIRTY

cdef inline pte_t pte_mkyoung(pte_t pte) noexcept nogil:
    return pte | _PAGE_ACCESSED

cdef inline pte_t pte_mkold(pte_t pte) noexcept nogil:
    return pte & ~<u64>_PAGE_ACCESSED

cdef inline pte_t pte_mkspecial(pte_t pte) noexcept nogil:
    return pte | _PAGE_SPECIAL

cdef inline pte_t pfn_pte(u64 pfn, u64 prot) noexcept nogil:
    return pfn << PAGE_SHIFT | prot

cdef inline pte_t mk_pte(Page* page, u64 prot) noexcept nogil:
    return pfn_pte(page_to_pfn(page), prot)

# Another protection; the frame, accessed, dirty and special stay.  Also where the protection has one of them,
# as an area's has accessed, for new entries.
cdef inline pte_t pte_modify(pte_t pte, u64 prot) noexcept nogil:
    cdef u64 kept = PTE_PFN_MASK | _PAGE_ACCESSED | _PAGE_DIRTY | _PAGE_SPECIAL
    return (pte & kept) | (prot & ~kept)

# ---- swap and migration entries ----

cdef inline bint is_swap_pte(pte_t pte) noexcept nogil:
    return not pte_none(pte) and not pte_present(pte) and not pte_file(pte)

# One encoding serves the entry and the PTE that holds it.
cdef inline swp_entry_t pte_to_swp_entry(pte_t pte) noexcept nogil:
    return pte

cdef inline pte_t swp_entry_to_pte(swp_entry_t entry) noexcept nogil:
    return entry

cdef inline swp_entry_t make_migration_entry(Page* page, bint write) noexcept nogil:
    return swp_entry(SWP_MIGRATION_WRITE if write else SWP_MIGRATION_READ, page_to_pfn(page))

cdef inline bint is_migration_entry(swp_entry_t entry) noexcept nogil:
    return swp_type(entry) >= SWP_MIGRATION_READ

cdef inline bint is_write_migration_entry(swp_entry_t entry) noexcept nogil:
    return swp_type(entry) == SWP_MIGRATION_WRITE

# The page is locked by whoever migrates it for as long as the entry stands.
cdef inline Page* migration_entry_to_page(swp_entry_t entry) noexcept nogil:
    return pfn_to_page(swp_offset(entry))

cdef inline swp_entry_t make_migration_entry_read(swp_entry_t entry) noexcept nogil:
    return swp_entry(SWP_MIGRATION_READ, swp_offset(entry))

# ---- entries in memory: other CPUs' MMUs read and write them at any time ----

cdef inline pte_t READ_PTE(pte_t* ptep) noexcept nogil:
    return READ_ONCE64(ptep)

# Release: what the entry leads to (the zeroed or copied frame) is complete before it.
cdef inline void set_pte_at(pte_t* ptep, pte_t pte) noexcept nogil:
    smp_store_release64(ptep, pte)

cdef inline pte_t ptep_get_and_clear(pte_t* ptep) noexcept nogil:
    return xchg64(ptep, 0)

cdef inline void ptep_set_wrprotect(pte_t* ptep) noexcept nogil:
    fetch_and64(ptep, ~<u64>_PAGE_RW)

# ---- the four levels ----

cdef inline bint table_present(u64 entry) noexcept nogil:
    return (entry & _PAGE_PRESENT) != 0

cdef inline u64* table_of(u64 entry) noexcept nogil:
    return <u64*>pfn_to_kaddr(pte_pfn(entry))

cdef inline Page* virt_to_page(const void* kaddr) noexcept nogil:
    return pfn_to_page((<u64>kaddr - kernel().frames_base) >> PAGE_SHIFT)

cdef inline u64* pgd_offset(MmStruct* mm, u64 address) noexcept nogil:
    return mm.pgd + (address >> PGDIR_SHIFT & (PTRS_PER_TABLE - 1))

cdef inline u64* pud_offset(u64* pgd, u64 address) noexcept nogil:
    return table_of(READ_ONCE64(pgd)) + (address >> PUD_SHIFT & (PTRS_PER_TABLE - 1))

cdef inline u64* pmd_offset(u64* pud, u64 address) noexcept nogil:
    return table_of(READ_ONCE64(pud)) + (address >> PMD_SHIFT & (PTRS_PER_TABLE - 1))

cdef inline pte_t* pte_offset(u64* pmd, u64 address) noexcept nogil:
    return table_of(READ_ONCE64(pmd)) + (address >> PAGE_SHIFT & (PTRS_PER_TABLE - 1))

# The pmd entry over `address`, if it points to a table; NULL otherwise.
cdef inline u64* walk_to_pmd(MmStruct* mm, u64 address) noexcept nogil:
    cdef u64* entry = pgd_offset(mm, address)
    if not table_present(READ_ONCE64(entry)):
        return NULL
    entry = pud_offset(entry, address)
    if not table_present(READ_ONCE64(entry)):
        return NULL
    entry = pmd_offset(entry, address)
    # Acquire: who takes the table's lock next does so after it was made ready.
    if not table_present(smp_load_acquire64(entry)):
        return NULL
    return entry

# The PTE of `address` for who holds nothing that keeps the tables hooked in, as a CPU; NULL where there
# is none.  Each entry is read once: at a second look it may be gone, and lead to frame 0.
cdef inline pte_t* walk_once(MmStruct* mm, u64 address) noexcept nogil:
    cdef u64 entry = READ_ONCE64(pgd_offset(mm, address))
    if not table_present(entry):
        return NULL
    entry = READ_ONCE64(table_of(entry) + (address >> PUD_SHIFT & (PTRS_PER_TABLE - 1)))
    if not table_present(entry):
        return NULL
    entry = READ_ONCE64(table_of(entry) + (address >> PMD_SHIFT & (PTRS_PER_TABLE - 1)))
    if not table_present(entry):
        return NULL
    return table_of(entry) + (address >> PAGE_SHIFT & (PTRS_PER_TABLE - 1))

# The split lock of the table that a pmd entry points to.
cdef inline Spinlock* pte_lockptr(u64* pmd) noexcept nogil:
    return <Spinlock*>&pfn_to_page(pte_pfn(READ_ONCE64(pmd))).ptl

# As pgd_addr_end and its kin: the end of this entry's range, or of the whole.
cdef inline u64 addr_end(u64 address, u64 end, u64 mask) noexcept nogil:
    cdef u64 boundary = (address & mask) + (~mask + 1)
    return boundary if boundary - 1 < end - 1 else end

cdef u64* table_alloc_one() noexcept nogil
cdef void table_free_one(u64* table) noexcept nogil
cdef u64* pgd_alloc() noexcept nogil
cdef u64* table_alloc(MmStruct* mm, u64* entry, u64 address, int shift) noexcept nogil
cdef u64* pmd_alloc(MmStruct* mm, u64 address) noexcept nogil
cdef pte_t* pte_alloc(MmStruct* mm, u64 address, u64** pmd_out) noexcept nogil
