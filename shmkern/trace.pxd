# SPDX-License-Identifier: GPL-2.0-only
# Tracepoints.  May use: current and below.
#
# Names and arguments are Linux's where it has them (include/trace/events/); what it leaves to
# its function tracer (the end of a fault, the stages of a migration, a wait that is for no
# lock) has a name here.  tracing.py has the same list, with the text of each.
#
# A tracepoint that is off is a look at one word, which nobody writes, and a branch not taken.

from shmkern.atomics cimport *
from shmkern.current cimport *

# enum trace_event: bit numbers of Kernel.trace_events
cdef enum:
    TRACE_PAGE_FAULT_USER = 0
    TRACE_PAGE_FAULT_USER_EXIT = 1
    TRACE_CONTENTION_BEGIN = 2
    TRACE_CONTENTION_END = 3
    TRACE_WAIT_BEGIN = 4
    TRACE_WAIT_END = 5
    TRACE_SCHED_WAKING = 6
    TRACE_TASK_NEWTASK = 7
    TRACE_SCHED_PROCESS_EXIT = 8
    TRACE_MM_MIGRATE_PAGES_START = 9
    TRACE_MM_MIGRATE_PAGES = 10
    TRACE_MIGRATE_STAGE = 11
    TRACE_SET_MIGRATION_PTE = 12
    TRACE_REMOVE_MIGRATION_PTE = 13
    TRACE_TLB_FLUSH = 14
    TRACE_PAGE_REF_FREEZE = 15
    TRACE_PAGE_REF_UNFREEZE = 16
    TRACE_MM_PAGE_ALLOC = 17
    TRACE_MM_PAGE_FREE = 18
    TRACE_MM_LRU_INSERTION = 19
    NR_TRACE_EVENTS = 20

# Stages of unmap_and_move, each traced as it begins.
cdef enum:
    MIGRATE_STAGE_NEW_PAGE = 0
    MIGRATE_STAGE_LOCK = 1
    MIGRATE_STAGE_UNMAP = 2
    MIGRATE_STAGE_MOVE = 3
    MIGRATE_STAGE_REMAP = 4
    MIGRATE_STAGE_PUTBACK = 5
    MIGRATE_STAGE_DONE = 6

# arch/x86/include/asm/trap_pf.h: X86_PF_WRITE, X86_PF_USER
cdef enum:
    PF_ERROR_WRITE = 2
    PF_ERROR_USER = 4

# Flags of contention_begin (include/trace/events/lock.h).
cdef enum:
    LCB_F_SPIN = 1
    LCB_F_READ = 2
    LCB_F_WRITE = 4

# enum tlb_flush_reason
cdef enum:
    TLB_REMOTE_SEND_IPI = 4

cdef void trace_write(u64 event, u64 arg0, u64 arg1, u64 arg2, u64 arg3, u64 arg4, u64 arg5) noexcept nogil
cdef void trace_stop() noexcept nogil
cdef void trace_wait(bint begin, u64 kind, const void* channel) noexcept nogil
cdef void trace_page_ref(u64 event, Page* page, u64 value, u64 ret) noexcept nogil
cdef void trace_task(u64 event, Task* task) noexcept nogil

cdef inline bint trace_enabled(int event) noexcept nogil:
    return unlikely((READ_ONCE64(&kernel().trace_events) & <u64>1 << event) != 0)

cdef inline u64 trace_pfn(Page* page) noexcept nogil:
    return <u64>(page - kernel().mem_map) if page != NULL else <u64>-1

# ---- faults ----

cdef inline void trace_page_fault_user(u64 address, bint write) noexcept nogil:
    if trace_enabled(TRACE_PAGE_FAULT_USER):
        trace_write(TRACE_PAGE_FAULT_USER, address, PF_ERROR_USER | (PF_ERROR_WRITE if write else 0), 0, 0, 0, 0)

cdef inline void trace_page_fault_user_exit(u64 address, int rc) noexcept nogil:
    if trace_enabled(TRACE_PAGE_FAULT_USER_EXIT):
        trace_write(TRACE_PAGE_FAULT_USER_EXIT, address, <u64>rc, 0, 0, 0, 0)

# ---- waits: contention of a lock (spinlock, rwsem), or anything else ----

cdef inline void trace_wait_begin(u64 kind, const void* channel) noexcept nogil:
    if trace_enabled(TRACE_WAIT_BEGIN) or trace_enabled(TRACE_CONTENTION_BEGIN):
        trace_wait(True, kind, channel)

cdef inline void trace_wait_end(u64 kind, const void* channel) noexcept nogil:
    if trace_enabled(TRACE_WAIT_END) or trace_enabled(TRACE_CONTENTION_END):
        trace_wait(False, kind, channel)

# Whoever waits for `channel` is about to be woken.
cdef inline void trace_sched_waking(const void* channel) noexcept nogil:
    if trace_enabled(TRACE_SCHED_WAKING):
        trace_write(TRACE_SCHED_WAKING, <u64>channel, 0, 0, 0, 0, 0)

# ---- tasks ----

cdef inline void trace_task_newtask(Task* task) noexcept nogil:
    if trace_enabled(TRACE_TASK_NEWTASK):
        trace_task(TRACE_TASK_NEWTASK, task)

cdef inline void trace_sched_process_exit(Task* task) noexcept nogil:
    if trace_enabled(TRACE_SCHED_PROCESS_EXIT):
        trace_task(TRACE_SCHED_PROCESS_EXIT, task)

# ---- migration ----

cdef inline void trace_mm_migrate_pages_start() noexcept nogil:
    if trace_enabled(TRACE_MM_MIGRATE_PAGES_START):
        trace_write(TRACE_MM_MIGRATE_PAGES_START, 0, 0, 0, 0, 0, 0)

cdef inline void trace_mm_migrate_pages(u64 succeeded, int rc) noexcept nogil:
    if trace_enabled(TRACE_MM_MIGRATE_PAGES):
        trace_write(TRACE_MM_MIGRATE_PAGES, succeeded, <u64>rc, 0, 0, 0, 0)

# `rc` is the outcome so far.
cdef inline void trace_migrate_stage(int stage, Page* page, Page* newpage, int rc) noexcept nogil:
    if trace_enabled(TRACE_MIGRATE_STAGE):
        trace_write(TRACE_MIGRATE_STAGE, stage, trace_pfn(page), trace_pfn(newpage), <u64>rc, 0, 0)

cdef inline void trace_set_migration_pte(u64 address, u64 pte) noexcept nogil:
    if trace_enabled(TRACE_SET_MIGRATION_PTE):
        trace_write(TRACE_SET_MIGRATION_PTE, address, pte, 0, 0, 0, 0)

cdef inline void trace_remove_migration_pte(u64 address, u64 pte) noexcept nogil:
    if trace_enabled(TRACE_REMOVE_MIGRATION_PTE):
        trace_write(TRACE_REMOVE_MIGRATION_PTE, address, pte, 0, 0, 0, 0)

cdef inline void trace_tlb_flush(u64 start, u64 end) noexcept nogil:
    if trace_enabled(TRACE_TLB_FLUSH):
        trace_write(TRACE_TLB_FLUSH, TLB_REMOTE_SEND_IPI, (end - start) >> PAGE_SHIFT, start, 0, 0, 0)

# ---- pages ----

cdef inline void trace_page_ref_freeze(Page* page, int count, bint frozen) noexcept nogil:
    if trace_enabled(TRACE_PAGE_REF_FREEZE):
        trace_page_ref(TRACE_PAGE_REF_FREEZE, page, <u64>count, frozen)

cdef inline void trace_page_ref_unfreeze(Page* page, int count) noexcept nogil:
    if trace_enabled(TRACE_PAGE_REF_UNFREEZE):
        trace_page_ref(TRACE_PAGE_REF_UNFREEZE, page, <u64>count, 0)

cdef inline void trace_mm_page_alloc(Page* page, u64 order, u64 gfp) noexcept nogil:
    if trace_enabled(TRACE_MM_PAGE_ALLOC):
        trace_write(TRACE_MM_PAGE_ALLOC, trace_pfn(page), order, gfp, 0, 0, 0)

cdef inline void trace_mm_page_free(Page* page, u64 order) noexcept nogil:
    if trace_enabled(TRACE_MM_PAGE_FREE):
        trace_write(TRACE_MM_PAGE_FREE, trace_pfn(page), order, 0, 0, 0, 0)

cdef inline void trace_mm_lru_insertion(Page* page, int lru) noexcept nogil:
    if trace_enabled(TRACE_MM_LRU_INSERTION):
        trace_write(TRACE_MM_LRU_INSERTION, trace_pfn(page), lru, page.flags, <u64>page._mapcount, 0, 0)
