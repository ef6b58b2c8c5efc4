# SPDX-License-Identifier: GPL-2.0-only
# Who is charged for a frame, and the groups' LRU lists.  May use: frames and below.
#
# What others call is inline, and in a machine without groups costs one branch.

cimport cython
from shmkern.frames cimport *

# Whether the machine was booted without groups.
cdef inline bint mem_cgroup_disabled() noexcept nogil:
    return likely(kernel().page_cgroup == NULL)

cdef inline PageCgroup* lookup_page_cgroup(Page* page) noexcept nogil:
    return kernel().page_cgroup + page_to_pfn(page)

cdef inline Page* page_of_cgroup(PageCgroup* pc) noexcept nogil:
    return kernel().mem_map + <u64>(pc - kernel().page_cgroup)

cdef inline PageCgroup* list_entry_page_cgroup(ListHead* lru) noexcept nogil:
    return <PageCgroup*>(<u64>lru - <u64>&(<PageCgroup*>0).lru)

cdef inline bint mem_cgroup_is_root(MemCgroup* memcg) noexcept nogil:
    return memcg == kernel().root_mem_cgroup

# What a group other than the root has in the zone of node `nid`.
cdef inline MemCgroupPerZone* mem_cgroup_zoneinfo(MemCgroup* memcg, i32 nid) noexcept nogil:
    return memcg.nodeinfo[nid]

# Whether a page is on a list of its group.  Within lru_lock, or where nobody can put it on one.
cdef inline bint page_cgroup_on_lru(PageCgroup* pc) noexcept nogil:
    return READ_ONCE64(&pc.lru.next) != 0

cdef void __mem_cgroup_add_lru_list(Page* page, int lru) noexcept nogil
cdef void __mem_cgroup_del_lru_list(Page* page, int lru) noexcept nogil
cdef void __mem_cgroup_rotate_lru_list(Page* page, int lru) noexcept nogil

# A page has come to the head of list `lru` of its zone, is leaving that list, or was moved to its head
# again.  Within lru_lock.
cdef inline void mem_cgroup_add_lru_list(Page* page, int lru) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_add_lru_list(page, lru)

cdef inline void mem_cgroup_del_lru_list(Page* page, int lru) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_del_lru_list(page, lru)

cdef inline void mem_cgroup_rotate_lru_list(Page* page, int lru) noexcept nogil:
    if not mem_cgroup_disabled():
        __mem_cgroup_rotate_lru_list(page, lru)
