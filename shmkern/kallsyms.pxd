# SPDX-License-Identifier: GPL-2.0-only
# Out-of-line copies of inline functions, for Python to call.  May use: everything.

cimport shmkern.buffer as buffer
cimport shmkern.frames as frames
cimport shmkern.freezer as freezer
cimport shmkern.locks as locks
cimport shmkern.lists as lists
cimport shmkern.lru as lru
cimport shmkern.mempolicy as mempolicy
cimport shmkern.pagetable as pagetable
cimport shmkern.rcu as rcu
cimport shmkern.swapops as swapops
cimport shmkern.tlb as tlb
from shmkern.atomics cimport u32, u64
from shmkern.mm_types cimport BufferHead, ListHead, MmStruct, Page, Spinlock, Task
from shmkern.pagetable cimport pte_t
from shmkern.swapops cimport swp_entry_t

# locks
cdef void might_sleep() noexcept nogil
cdef void spin_lock(Spinlock* lock) noexcept nogil
cdef void spin_unlock(Spinlock* lock) noexcept nogil
cdef bint spin_is_held(Spinlock* lock) noexcept nogil
cdef void wait_on_page_locked(Page* page) noexcept nogil
cdef void wait_on_page_writeback(Page* page) noexcept nogil

# rcu
cdef void rcu_read_lock() noexcept nogil
cdef void rcu_read_unlock() noexcept nogil

# lists
cdef void INIT_LIST_HEAD(ListHead* head) noexcept nogil
cdef bint list_empty(ListHead* head) noexcept nogil
cdef void list_add(ListHead* new, ListHead* head) noexcept nogil
cdef void list_add_tail(ListHead* new, ListHead* head) noexcept nogil
cdef void list_del(ListHead* entry) noexcept nogil

# frames
cdef Page* pfn_to_page(u64 pfn) noexcept nogil
cdef u64 page_to_pfn(Page* page) noexcept nogil
cdef void* page_address(Page* page) noexcept nogil
cdef int page_count(Page* page) noexcept nogil
cdef int page_mapcount(Page* page) noexcept nogil
cdef void get_page(Page* page) noexcept nogil
cdef bint get_page_unless_zero(Page* page) noexcept nogil
cdef bint put_page_testzero(Page* page) noexcept nogil
cdef bint page_freeze_refs(Page* page, int count) noexcept nogil
cdef void page_unfreeze_refs(Page* page, int count) noexcept nogil

# lru
cdef int page_lru(Page* page) noexcept nogil
cdef void put_page(Page* page) noexcept nogil

# buffer
cdef void get_bh(BufferHead* bh) noexcept nogil
cdef void put_bh(BufferHead* bh) noexcept nogil

# mempolicy
cdef Page* alloc_page(u64 gfp) noexcept nogil

# pagetable
cdef u64* walk_to_pmd(MmStruct* mm, u64 address) noexcept nogil
cdef pte_t* pte_offset(u64* pmd, u64 address) noexcept nogil
cdef Spinlock* pte_lockptr(u64* pmd) noexcept nogil
cdef pte_t pfn_pte(u64 pfn, u64 prot) noexcept nogil
cdef pte_t pte_modify(pte_t pte, u64 prot) noexcept nogil
cdef bint pte_present(pte_t pte) noexcept nogil
cdef bint pte_file(pte_t pte) noexcept nogil
cdef bint is_swap_pte(pte_t pte) noexcept nogil
cdef u64 pte_pfn(pte_t pte) noexcept nogil
cdef swp_entry_t swp_entry(u64 type, u64 offset) noexcept nogil
cdef u64 swp_type(swp_entry_t entry) noexcept nogil
cdef u64 swp_offset(swp_entry_t entry) noexcept nogil
cdef swp_entry_t pte_to_swp_entry(pte_t pte) noexcept nogil
cdef pte_t swp_entry_to_pte(swp_entry_t entry) noexcept nogil
cdef swp_entry_t make_migration_entry(Page* page, bint write) noexcept nogil
cdef swp_entry_t make_migration_entry_read(swp_entry_t entry) noexcept nogil
cdef bint is_migration_entry(swp_entry_t entry) noexcept nogil
cdef bint is_write_migration_entry(swp_entry_t entry) noexcept nogil
cdef Page* migration_entry_to_page(swp_entry_t entry) noexcept nogil
cdef u64 addr_end(u64 address, u64 end, u64 mask) noexcept nogil

# tlb
cdef u64* tlb_slot(Task* task, u64 address) noexcept nogil
cdef u64 tlb_tag(u64 address) noexcept nogil
cdef void access_begin(Task* me) noexcept nogil
cdef void access_end(Task* me) noexcept nogil

# freezer
cdef void kernel_enter() noexcept nogil
cdef void kernel_exit() noexcept nogil
