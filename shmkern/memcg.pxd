# SPDX-License-Identifier: GPL-2.0-only
# Memory control groups.  May use: lru, slab and below.
#
# What others call is inline, and in a machine without groups costs one branch.

cimport cython
from shmkern.lru cimport *
from shmkern.slab cimport *

cdef extern from *:
    """
    #define RESOURCE_MAX 0x7fffffffffffffffUL
    #define MEM_CGROUP_FORCE_EMPTY_NS 10000000000UL
    """
    const u64 RESOURCE_MAX     # no limit (include/linux/res_counter.h)
    const u64 MEM_CGROUP_FORCE_EMPTY_NS    # that a group's pages are waited for at most

cdef enum:
    MEM_CGROUP_FORCE_EMPTY_RETRIES = 100   # in a row, with nobody to wait for
    MEM_CGROUP_RECLAIM_RETRIES = 5

# How pages of a group are freed, told by set_mem_cgroup_reclaim (it stands above: this process's address
# of it).
ctypedef u64 (*mem_cgroup_reclaim_t)(MemCgroup* memcg, u64 gfp) noexcept nogil
cdef mem_cgroup_reclaim_t try_to_free_mem_cgroup_pages_hook

# What the files of a group's directory say, in bytes and pages.
cdef struct MemCgroupStat:
    u64 usage
    u64 max_usage
    u64 limit
    u64 failcnt
    u64 stat[4]                # MEM_CGROUP_STAT_NSTATS
    u64 total_stat[4]          # with the children's

# What the group itself has, without those below it.
cdef inline u64 mem_cgroup_local_usage(MemCgroup* memcg) noexcept nogil:
    return READ_ONCE64(&memcg.stat[MEM_CGROUP_STAT_CACHE]) + READ_ONCE64(&memcg.stat[MEM_CGROUP_STAT_RSS])

cdef inline MemCgroup* mem_cgroup_of_counter(ResCounter* counter) noexcept nogil:
    return <MemCgroup*>(<u64>counter - <u64>&(<MemCgroup*>0).res)

cdef inline MemCgroup* list_entry_mem_cgroup(ListHead* list) noexcept nogil:
    return <MemCgroup*>(<u64>list - <u64>&(<MemCgroup*>0).list)

# Whether a group is charged for a page, at the first look.
cdef inline bint page_cgroup_charged_to(PageCgroup* pc, MemCgroup* memcg) noexcept nogil:
    return READ_ONCE64(&pc.mem_cgroup) == <u64>memcg and (READ_ONCE32(&pc.flags) & PCG_USED) != 0

# Whether an address space is a group's own.
cdef inline bint mm_match_cgroup(MmStruct* mm, MemCgroup* memcg) noexcept nogil:
    return READ_ONCE64(&mm.mem_cgroup) == <u64>memcg

# ---- res_counter ----

cdef void res_counter_init(ResCounter* counter, ResCounter* parent) noexcept nogil
@cython.locals(fits=bint)
cdef bint res_counter_charge_one(ResCounter* counter, u64 val) noexcept nogil
cdef void res_counter_uncharge_until(ResCounter* counter, ResCounter* top, u64 val) noexcept nogil
cdef ResCounter* res_counter_charge(ResCounter* counter, u64 val) noexcept nogil
cdef int res_counter_set_limit(ResCounter* counter, u64 limit) noexcept nogil

# ---- groups ----

cdef void mem_cgroup_init(PageCgroup* page_cgroup) noexcept nogil
cdef bint alloc_mem_cgroup_per_zone_info(MemCgroup* memcg, i32 nid) noexcept nogil
cdef void __mem_cgroup_free(MemCgroup* memcg) noexcept nogil
cdef MemCgroup* mem_cgroup_alloc(bint with_lists) noexcept nogil
cdef void mem_cgroup_online(MemCgroup* memcg, MemCgroup* parent, const char* name, u64 limit) noexcept nogil
cdef MemCgroup* find_mem_cgroup(i32 id) noexcept nogil
cdef MemCgroup* find_child(MemCgroup* parent, const char* name) noexcept nogil
@cython.locals(rc=i32)
cdef i32 mem_cgroup_create(i32 parent_id, const char* name, u64 limit) noexcept nogil
cdef int mem_cgroup_remove(i32 id) noexcept nogil
cdef MemCgroup* get_mem_cgroup(i32 id) noexcept nogil
cdef void css_get(MemCgroup* memcg) noexcept nogil
cdef void css_put(MemCgroup* memcg) noexcept nogil
cdef bint is_in_subtree(MemCgroup* memcg, MemCgroup* root) noexcept nogil
cdef void mem_cgroup_get_total_stat(MemCgroup* memcg, u64* total) noexcept nogil
cdef int mem_cgroup_read(i32 id, MemCgroupStat* out) noexcept nogil
cdef int mem_cgroup_resize_limit(i32 id, u64 limit) noexcept nogil

# ---- whose an address space is ----

cdef void __mem_cgroup_move_mm(MmStruct* mm, MemCgroup* memcg) noexcept nogil
cdef void __mem_cgroup_init_mm(MmStruct* mm, MmStruct* oldmm) noexcept nogil
cdef void __mem_cgroup_exit_mm(MmStruct* mm) noexcept nogil
cdef int mem_cgroup_attach(MmStruct* mm, i32 id) noexcept nogil
cdef MemCgroup* get_mem_cgroup_from_mm(MmStruct* mm) noexcept nogil

# A new address space is its parent's group's, or the root's.
cdef inline void mem_cgroup_init_mm(MmStruct* mm, MmStruct* oldmm) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_init_mm(mm, oldmm)

cdef inline void mem_cgroup_exit_mm(MmStruct* mm) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_exit_mm(mm)

# ---- reclaim at a limit ----

cdef void set_mem_cgroup_reclaim(mem_cgroup_reclaim_t reclaim) noexcept nogil
cdef MemCgroup* mem_cgroup_next_victim(MemCgroup* root, i32 behind) noexcept nogil
cdef MemCgroup* mem_cgroup_select_victim(MemCgroup* root, bint from_start) noexcept nogil
@cython.locals(rounds=cython.int, progress=bint, asked=bint)
cdef bint mem_cgroup_hierarchical_reclaim(MemCgroup* root, u64 gfp, u64 enough) noexcept nogil
ctypedef MemCgroup* pointer_to_memcg
@cython.locals(found=bint)
cdef bint mem_cgroup_can_reclaim(MemCgroup* root) noexcept nogil

# ---- a group's LRU lists ----

cdef inline u64 mem_cgroup_zone_nr_pages(MemCgroup* memcg, Zone* zone, int lru) noexcept nogil:
    return READ_ONCE64(&mem_cgroup_zoneinfo(memcg, zone.node).count[lru])

cdef u64 mem_cgroup_get_local_zonestat(MemCgroup* memcg, int lru) noexcept nogil
cdef bint mem_cgroup_inactive_anon_is_low(MemCgroup* memcg) noexcept nogil
cdef bint mem_cgroup_inactive_file_is_low(MemCgroup* memcg) noexcept nogil
@cython.locals(scanned=u64)
cdef u64 mem_cgroup_isolate_pages(MemCgroup* memcg, Zone* zone, int lru, u64 nr_to_scan, bint swapped, ListHead* pagelist, u64* nr_taken) noexcept nogil

# ---- charging ----

cdef void mem_cgroup_charge_statistics(MemCgroup* memcg, u32 flags, bint charge) noexcept nogil
@cython.locals(rc=cython.int, wait=ReclaimWait, over=pointer_to_memcg, waited=bint, before=u64)
cdef int __mem_cgroup_try_charge(MemCgroup* memcg, u64 gfp, bint patient) noexcept nogil
cdef void __mem_cgroup_cancel_charge(MemCgroup* memcg) noexcept nogil
cdef void mem_cgroup_set_charge(MemCgroup* memcg, PageCgroup* pc, u32 flags) noexcept nogil
cdef void __mem_cgroup_commit_charge(MemCgroup* memcg, PageCgroup* pc, u32 flags) noexcept nogil
cdef int mem_cgroup_charge_common(Page* page, MmStruct* mm, u64 gfp, u32 flags) noexcept nogil
cdef void __mem_cgroup_uncharge_common(PageCgroup* pc, u32 unless) noexcept nogil
cdef bint mem_cgroup_page_is_used(Page* page) noexcept nogil
cdef void __mem_cgroup_uncharge_page(Page* page) noexcept nogil

# Charges the mm's group for an anonymous page that is going to be mapped for the first time.
cdef inline int mem_cgroup_newpage_charge(Page* page, MmStruct* mm, u64 gfp) noexcept nogil:
    if mem_cgroup_disabled():
        return 0
    VM_BUG_ON_PAGE(page_mapped(page), page)
    return mem_cgroup_charge_common(page, mm, gfp, 0)

# Charges the mm's group (without one, the root) for a page that is going into the page cache.
cdef inline int mem_cgroup_cache_charge(Page* page, MmStruct* mm, u64 gfp) noexcept nogil:
    if mem_cgroup_disabled():
        return 0
    return mem_cgroup_charge_common(page, mm, gfp, PCG_CACHE)

# Gives back the charge of an anonymous page when nobody maps it any more.
cdef inline void mem_cgroup_uncharge_page(Page* page) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_uncharge_page(page)

# Gives back the charge of a page that has left the page cache.  If it is migrating, that of the other
# page is given back when the migration ends.
cdef inline void mem_cgroup_uncharge_cache_page(Page* page) noexcept nogil:
    if mem_cgroup_disabled():
        return
    VM_BUG_ON_PAGE(page_mapped(page) or page.mapping != NULL, page)
    __mem_cgroup_uncharge_common(lookup_page_cgroup(page), 0)

# ---- swap ----

cdef int __mem_cgroup_try_charge_swapin(Page* page, MmStruct* mm, u64 gfp, MemCgroup** memcg) noexcept nogil

# Charges the mm's group for a page that is going to be mapped in a swap entry's place, unless it is
# charged: a charge that is nobody's yet, in *memcg, to commit once the page is mapped, or to cancel.
cdef inline int mem_cgroup_try_charge_swapin(Page* page, MmStruct* mm, u64 gfp, MemCgroup** memcg) noexcept nogil:
    memcg[0] = NULL
    if mem_cgroup_disabled():
        return 0
    return __mem_cgroup_try_charge_swapin(page, mm, gfp, memcg)

cdef void mem_cgroup_lru_add_after_commit_swapcache(Page* page) noexcept nogil
cdef void mem_cgroup_commit_charge_on_lru(Page* page, MemCgroup* memcg, u32 flags) noexcept nogil
cdef void __mem_cgroup_commit_charge_swapin(Page* page, MemCgroup* memcg) noexcept nogil

# The page is mapped now, and still locked and in the swap cache.
cdef inline void mem_cgroup_commit_charge_swapin(Page* page, MemCgroup* memcg) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_commit_charge_swapin(page, memcg)

cdef inline void mem_cgroup_cancel_charge_swapin(MemCgroup* memcg) noexcept nogil:
    if memcg != NULL:
        __mem_cgroup_cancel_charge(memcg)

@cython.locals(memcg=pointer_to_memcg)
cdef int __mem_cgroup_cache_charge_swapin(Page* page, MmStruct* mm, u64 gfp) noexcept nogil

# Charges the mm's group for a locked page of the swap cache that goes to the page cache, unless it is
# charged.
cdef inline int mem_cgroup_cache_charge_swapin(Page* page, MmStruct* mm, u64 gfp) noexcept nogil:
    if mem_cgroup_disabled():
        return 0
    return __mem_cgroup_cache_charge_swapin(page, mm, gfp)

# ---- migration ----

cdef int __mem_cgroup_prepare_migration(Page* page, Page* newpage) noexcept nogil
cdef void __mem_cgroup_end_migration(Page* page, Page* newpage) noexcept nogil
cdef void mem_cgroup_release_hold(Page* page) noexcept nogil
cdef void __mem_cgroup_migrate(Page* page, Page* newpage) noexcept nogil

cdef inline int mem_cgroup_prepare_migration(Page* page, Page* newpage) noexcept nogil:
    if mem_cgroup_disabled():
        return 0
    return __mem_cgroup_prepare_migration(page, newpage)

cdef inline void mem_cgroup_migrate(Page* page, Page* newpage) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_migrate(page, newpage)

# Whether somebody is charged for a page, or nobody for any.
cdef inline bint mem_cgroup_page_is_charged(Page* page) noexcept nogil:
    return mem_cgroup_disabled() or (READ_ONCE32(&lookup_page_cgroup(page).flags) & PCG_USED) != 0

cdef inline void mem_cgroup_end_migration(Page* page, Page* newpage) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_end_migration(page, newpage)

# ---- emptying a group ----

@cython.locals(moved=bint)
cdef void mem_cgroup_move_account(PageCgroup* pc, MemCgroup* source, MemCgroup* to) noexcept nogil
@cython.locals(moved=cython.int, left=bint)
cdef void mem_cgroup_force_empty_list(MemCgroup* memcg, Zone* zone, int lru) noexcept nogil
cdef void mem_cgroup_force_empty_lists(MemCgroup* memcg) noexcept nogil
cdef void mem_cgroup_move_all(MemCgroup* memcg) noexcept nogil
@cython.locals(retries=cython.int)
cdef int __mem_cgroup_force_empty(MemCgroup* memcg, u64 references) noexcept nogil
cdef int mem_cgroup_force_empty(i32 id) noexcept nogil
