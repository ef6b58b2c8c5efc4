# SPDX-License-Identifier: GPL-2.0-only
# Reclaim.  May use: swap_state, buffer and below.

cimport cython
from shmkern.rmap cimport *
from shmkern.swap_state cimport *
from shmkern.buffer cimport *
from shmkern.freezer cimport *

cdef enum:
    DEF_PRIORITY = 12
    SWAP_CLUSTER_MAX = 32
    SWAPPINESS = 60

# Answers of pageout.
cdef enum:
    PAGE_KEEP = 0              # in use, or could not be written
    PAGE_ACTIVATE = 1          # cannot be written now
    PAGE_SUCCESS = 2           # has been written; the page is unlocked
    PAGE_CLEAN = 3

# Answers of shrink_locked_page.
cdef enum:
    SHRINK_FREED = 0
    SHRINK_KEEP = 1
    SHRINK_ACTIVATE = 2
    SHRINK_UNLOCKED = 3
    SHRINK_MLOCKED = 4

cdef struct ScanControl:
    u64 nr_reclaimed
    u64 gfp
    bint kswapd
    MemCgroup* mem_cgroup      # whose pages only; NULL: anybody's

# Of anonymous pages and of files': the part of a zone's scan that each gets, in percent, or in pages.
ctypedef u64 scan_ratio_t[2]

cdef inline bint scanning_global_lru(ScanControl* sc) noexcept nogil:
    return sc.mem_cgroup == NULL

# What was in use lately of the pages that are scanned in a zone.
cdef inline ZoneReclaimStat* get_reclaim_stat(Zone* zone, ScanControl* sc) noexcept nogil:
    if scanning_global_lru(sc):
        return &zone.reclaim_stat
    return &mem_cgroup_zoneinfo(sc.mem_cgroup, zone.node).reclaim_stat

# How many pages are on the list that is scanned.
cdef inline u64 zone_nr_pages(Zone* zone, ScanControl* sc, int lru) noexcept nogil:
    if scanning_global_lru(sc):
        return READ_ONCE64(&zone.vm_stat[lru])
    return mem_cgroup_zone_nr_pages(sc.mem_cgroup, zone, lru)

@cython.locals(inuse=bint)
cdef bint page_mapping_inuse(Page* page) noexcept nogil
cdef bint is_page_cache_freeable(Page* page) noexcept nogil
@cython.locals(wbc=WritebackControl)
cdef int pageout(Page* page, AddressSpace* mapping) noexcept nogil
@cython.locals(removed=bint)
cdef bint __remove_mapping(AddressSpace* mapping, Page* page) noexcept nogil
@cython.locals(entry=swp_entry_t)
cdef bint __remove_mapping_rcu(AddressSpace* mapping, Page* page) noexcept nogil
cdef bint remove_mapping(AddressSpace* mapping, Page* page) noexcept nogil
@cython.locals(referenced=bint)
cdef int shrink_locked_page(Page* page, ScanControl* sc) noexcept nogil
cdef bint shrink_page(Page* page, ScanControl* sc) noexcept nogil
cdef void shrink_page_list(ListHead* pagelist, ScanControl* sc) noexcept nogil
@cython.locals(scanned=u64)
cdef u64 isolate_pages_global(Zone* zone, int lru, u64 nr_to_scan, bint swapped, ListHead* pagelist, u64* nr_taken) noexcept nogil
@cython.locals(scanned=u64, taken=u64, swapped=bint)
cdef u64 isolate_pages(Zone* zone, int lru, u64 nr_to_scan, ListHead* pagelist, ScanControl* sc) noexcept nogil
@cython.locals(pvec=Pagevec, file=bint)
cdef void putback_isolated(Zone* zone, ListHead* pagelist, ScanControl* sc) noexcept nogil
@cython.locals(pagelist=ListHead)
cdef void shrink_inactive_list(Zone* zone, int file, u64 nr_to_scan, ScanControl* sc) noexcept nogil
@cython.locals(pagelist=ListHead, moved=u64, referenced=u64)
cdef void shrink_active_list(Zone* zone, int file, u64 nr_to_scan, ScanControl* sc) noexcept nogil
cdef bint inactive_anon_is_low_global(Zone* zone) noexcept nogil
cdef bint inactive_file_is_low_global(Zone* zone) noexcept nogil
cdef bint inactive_list_is_low(Zone* zone, int file, ScanControl* sc) noexcept nogil
cdef void get_scan_ratio(Zone* zone, int priority, ScanControl* sc, u64* percent) noexcept nogil
cdef void age_active_anon(Zone* zone, ScanControl* sc) noexcept nogil
@cython.locals(percent=scan_ratio_t, left=scan_ratio_t, size=u64, batch=u64)
cdef void shrink_zone(Zone* zone, int priority, ScanControl* sc) noexcept nogil
cdef void do_try_to_free_pages(i32 nid, u64 nodes, ScanControl* sc) noexcept nogil
@cython.locals(sc=ScanControl)
cdef u64 try_to_free_pages(i32 nid, u64 gfp, u64 order, u64 nodes) noexcept nogil
@cython.locals(sc=ScanControl)
cdef u64 try_to_free_mem_cgroup_pages(MemCgroup* memcg, u64 gfp) noexcept nogil
cdef bint can_swap() noexcept nogil
cdef bint pgdat_balanced(PgData* pgdat) noexcept nogil
@cython.locals(sc=ScanControl)
cdef void balance_pgdat(PgData* pgdat) noexcept nogil
cdef void kswapd_sleep(PgData* pgdat) noexcept nogil
cdef void kswapd(i32 nid) noexcept nogil
