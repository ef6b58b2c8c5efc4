# SPDX-License-Identifier: GPL-2.0-only
# Page migration.  May use: memory, writeback, buffer and below.

cimport cython
from shmkern.memory cimport *
from shmkern.writeback cimport *
from shmkern.buffer cimport *

# Gives the page that `page` shall move to, and where to leave the outcome for it (or
# NULL in *result): a node, or a negative errno.
ctypedef Page* (*new_page_t)(Page* page, u64 private, int** result) noexcept nogil

cdef enum:
    NR_MIGRATE_PASSES = 10
    NR_OFFLINE_AT_ONCE_PAGES = 256     # mm/memory_hotplug.c
    CACHE_LINE = 64                    # bytes; where a line is longer, some hints are for nothing
    PAGE_LINES = 64
    LINES_AT_ONCE = 8                  # see prefetch_upcoming; a move has nine calls, or eight

# What migrate_page_copy does to the flags (seed lines 346-379): the new page takes these
# over, and the old page loses those.
cdef inline u64 page_flags_carried() noexcept nogil:
    return <u64>1 << PG_error | <u64>1 << PG_referenced | <u64>1 << PG_uptodate | \
        <u64>1 << PG_active | <u64>1 << PG_unevictable | <u64>1 << PG_checked | \
        <u64>1 << PG_mappedtodisk | <u64>1 << PG_dirty | <u64>1 << PG_mlocked

cdef inline u64 page_flags_stripped() noexcept nogil:
    return <u64>1 << PG_active | <u64>1 << PG_unevictable | <u64>1 << PG_dirty | \
        <u64>1 << PG_mlocked | <u64>1 << PG_swapcache | <u64>1 << PG_private

# Asks for a few more cache lines of the page that is copied next, and of where to.
#
# A copy waits for memory, and what is done between two copies does not: it is lock after lock.  So memory works for
# the next copy meanwhile.  (No hardware prefetcher goes beyond a page.)  Only a few lines at a time, for a CPU has only
# so many on their way, and what comes next has its own.  But all of them in the end: for the first that is left the
# copy would wait as long as for all.
cdef inline void prefetch_upcoming() noexcept nogil:
    if current().upcoming_line < PAGE_LINES:
        prefetch_lines()

# A stage of a move begins.  `rc` is the outcome so far.
cdef inline void migrate_stage(int stage, Page* page, Page* newpage, int rc) noexcept nogil:
    trace_migrate_stage(stage, page, newpage, rc)
    prefetch_upcoming()

cdef void migrate_prep() noexcept nogil
cdef void migrate_begin() noexcept nogil
cdef void migrate_end() noexcept nogil
cdef int putback_lru_pages(ListHead* pagelist) noexcept nogil
@cython.locals(pte=pte_t)
cdef void remove_migration_pte(VmAreaStruct* vma, Page* old, Page* new) noexcept nogil
cdef void remove_anon_migration_ptes(Page* old, Page* new) noexcept nogil
cdef void remove_file_migration_ptes(Page* old, Page* new) noexcept nogil
cdef void remove_migration_ptes(Page* old, Page* new) noexcept nogil
cdef void migration_entry_wait(MmStruct* mm, u64* pmd, u64 address) noexcept nogil
cdef int migrate_page_move_mapping(AddressSpace* mapping, Page* newpage, Page* page) noexcept nogil
cdef void expect_copy(Page* target) noexcept nogil
@cython.locals(first=u64, last=u64, line=u64)
cdef void prefetch_lines() noexcept nogil
cdef void migrate_page_copy(Page* newpage, Page* page) noexcept nogil
cdef int fail_migrate_page(AddressSpace* mapping, Page* newpage, Page* page) noexcept nogil
cdef int migrate_page(AddressSpace* mapping, Page* newpage, Page* page) noexcept nogil
cdef void lock_page_buffers(BufferHead* head) noexcept nogil
cdef void unlock_page_buffers(BufferHead* head) noexcept nogil
cdef int buffer_migrate_page(AddressSpace* mapping, Page* newpage, Page* page) noexcept nogil
@cython.locals(wbc=WritebackControl)
cdef int writeout(AddressSpace* mapping, Page* page) noexcept nogil
cdef int fallback_migrate_page(AddressSpace* mapping, Page* newpage, Page* page) noexcept nogil
cdef int move_to_new_page(Page* newpage, Page* page) noexcept nogil
cdef int unmap_and_move_mapped(Page* newpage, Page* page) noexcept nogil
cdef int unmap_and_move_locked(Page* newpage, Page* page) noexcept nogil
cdef int lock_and_move(Page* newpage, Page* page, bint force) noexcept nogil
@cython.locals(result=pointer_to_int)
cdef int unmap_and_move(new_page_t get_new_page, u64 private, Page* page, bint force) noexcept nogil
cdef int migrate_pages(ListHead* pagelist, new_page_t get_new_page, u64 private) noexcept nogil
cdef int migrate_list(ListHead* pagelist, new_page_t get_new_page, u64 private) noexcept nogil
cdef Page* alloc_on_node(Page* page, u64 private, int** result) noexcept nogil
@cython.locals(pagelist=ListHead)
cdef int migrate_pfn_range(u64 pfn, u64 end, new_page_t get_new_page, u64 private, u64* done) noexcept nogil
@cython.locals(rc=cython.int)
cdef int migrate_vmas(MmStruct* mm, u64 to_nodes, u64 from_nodes, u64 flags) noexcept nogil

ctypedef int* pointer_to_int
