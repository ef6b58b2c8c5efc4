# SPDX-License-Identifier: GPL-2.0-only
# LRU lists and the last reference.  May use: page_cgroup and below.

cimport cython
from shmkern.page_cgroup cimport *

cdef enum:
    ISOLATE_SCAN = 128         # frames that isolate_lru_pages looks at under one lru_lock

cdef inline bint page_is_file_cache(Page* page) noexcept nogil:
    return not PageSwapBacked(page)

cdef inline int page_lru(Page* page) noexcept nogil:
    if PageUnevictable(page):
        return LRU_UNEVICTABLE
    return 2 * page_is_file_cache(page) + PageActive(page)

cdef void add_page_to_lru_list(Zone* zone, Page* page, int lru) noexcept nogil
cdef void del_page_from_lru_list(Zone* zone, Page* page, int lru) noexcept nogil
cdef void __put_page(Page* page) noexcept nogil

# Drops a reference; the last one frees the page.
cdef inline void put_page(Page* page) noexcept nogil:
    if put_page_testzero(page):
        __put_page(page)

cdef void free_page_mlock(Page* page) noexcept nogil
cdef void __page_cache_release(Page* page) noexcept nogil
cdef void __pagevec_lru_add(Pagevec* pvec, int lru) noexcept nogil
cdef void lru_cache_add_lru(Page* page, int lru) noexcept nogil
cdef void add_page_to_unevictable_list(Page* page) noexcept nogil
cdef void __drain_cpu_pagevecs(Task* task) noexcept nogil
cdef void drain_cpu_pagevecs(Task* task) noexcept nogil
cdef void lru_add_drain() noexcept nogil
cdef bint pagevecs_pending(Task* task) noexcept nogil
cdef void lru_add_drain_all() noexcept nogil
cdef void lru_add_try_drain_all() noexcept nogil
cdef void activate_page(Page* page) noexcept nogil
cdef void mark_page_accessed(Page* page) noexcept nogil
cdef bint __isolate_lru_page(Zone* zone, Page* page, int lru) noexcept nogil
cdef int isolate_lru_page(Page* page) noexcept nogil
@cython.locals(batch=cython.int)
cdef u64 isolate_lru_pages(u64 pfn, u64 end, int limit, ListHead* pagelist) noexcept nogil
cdef bint page_evictable(Page* page) noexcept nogil
cdef void putback_lru_page(Page* page) noexcept nogil
