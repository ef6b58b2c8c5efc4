# SPDX-License-Identifier: GPL-2.0-only
# Page frames, nodes, zones.  May use: locks and below.

cimport cython
from shmkern.atomics cimport *
from shmkern.current cimport *
from shmkern.page_flags cimport *
from shmkern.lists cimport *
from shmkern.locks cimport *
from shmkern.nodemask cimport *
from shmkern.fault_inject cimport should_fail

# include/linux/gfp.h
cdef enum:
    __GFP_HIGHMEM = 0x02
    __GFP_MOVABLE = 0x08
    __GFP_WAIT = 0x10
    __GFP_HIGH = 0x20
    __GFP_IO = 0x40
    __GFP_FS = 0x80
    __GFP_ZERO = 0x8000
    __GFP_HARDWALL = 0x20000
    __GFP_THISNODE = 0x40000
    GFP_ATOMIC = __GFP_HIGH
    GFP_KERNEL = __GFP_WAIT | __GFP_IO | __GFP_FS
    GFP_HIGHUSER_MOVABLE = GFP_KERNEL | __GFP_HARDWALL | __GFP_HIGHMEM | __GFP_MOVABLE

# The watermark of those who free memory, see alloc_pages_slowpath.
cdef enum:
    WMARK_NONE = 3             # NR_WMARK
    MAX_RECLAIM_RETRIES = 16

cdef extern from *:
    """
    #define CONGESTION_WAIT_NS 20000000UL
    #define RECLAIM_PATIENCE_NS 10000000000UL
    #define STARVING_NS 100000000UL
    """
    const u64 CONGESTION_WAIT_NS
    const u64 RECLAIM_PATIENCE_NS      # as long as a process may stand still on a busy host
    const u64 STARVING_NS

cdef enum:
    PAGE_POISON = 0xaa         # include/linux/poison.h

# ---- between numbers, structs and addresses ----

cdef inline Page* pfn_to_page(u64 pfn) noexcept nogil:
    return kernel().mem_map + pfn

cdef inline u64 page_to_pfn(Page* page) noexcept nogil:
    return <u64>(page - kernel().mem_map)

cdef inline void* pfn_to_kaddr(u64 pfn) noexcept nogil:
    return <void*>(kernel().frames_base + (pfn << PAGE_SHIFT))

cdef inline void* page_address(Page* page) noexcept nogil:
    return pfn_to_kaddr(page_to_pfn(page))

cdef inline i32 page_to_nid(Page* page) noexcept nogil:
    return <i32>(page.flags >> NODES_PGSHIFT)

cdef inline Zone* page_zone(Page* page) noexcept nogil:
    return kernel().zones + page_to_nid(page)

cdef inline Page* ZERO_PAGE() noexcept nogil:
    return kernel().mem_map + kernel().zero_pfn

cdef inline i32 numa_node_id() noexcept nogil:
    return current().numa_node

# Any number will do for `node`: a program may have named it.
cdef inline bint node_state(i64 node, int state) noexcept nogil:
    return 0 <= node < MAX_NUMNODES and (READ_ONCE64(&kernel().node_states[state]) >> node & 1) != 0

# ---- which nodes may be used ----

# A cpuset's nodes that are among `usable`, or when there are none, those of the nearest one above
# that has any.
cdef inline u64 cpuset_mems_among(u32 cpuset, u64 usable) noexcept nogil:
    cdef Kernel* k = kernel()
    cdef u64 mems = READ_ONCE64(&k.cpusets[cpuset].mems_allowed) & usable
    while mems == 0 and k.cpusets[cpuset].parent >= 0:
        cpuset = k.cpusets[cpuset].parent
        mems = READ_ONCE64(&k.cpusets[cpuset].mems_allowed) & usable
    return mems

# The nodes with memory that a cpuset may use: its own, or when they are all gone, those of the
# nearest one above that has any (guarantee_online_mems, kernel/cpuset.c).  A node that is going
# offline counts: policies are bound to these nodes, and it may stay after all.
cdef inline u64 cpuset_mems(u32 cpuset) noexcept nogil:
    return cpuset_mems_among(cpuset, READ_ONCE64(&kernel().node_states[N_HIGH_MEMORY]))

# The nodes among `usable` that the kernel may use for itself on behalf of a task: they end at the
# nearest hard wall (cpuset_zone_allowed_softwall) that has any of them inside.
cdef inline u64 hardwall_mems(u32 cpuset, u64 usable) noexcept nogil:
    cdef Kernel* k = kernel()
    while k.cpusets[cpuset].parent >= 0 and not k.cpusets[cpuset].flags & CS_MEM_HARDWALL:
        cpuset = k.cpusets[cpuset].parent
    return cpuset_mems_among(cpuset, usable)

# Whether it is the same after an allocation says, together with the nodes' being the same, that they
# were all the time: they may have changed and changed back.
cdef inline u64 read_mems_sequence() noexcept nogil:
    return smp_load_acquire64(&kernel().mems_sequence)

# ---- references ----

cdef inline int page_count(Page* page) noexcept nogil:
    return <int>READ_ONCE32(&page._count)

cdef inline int page_mapcount(Page* page) noexcept nogil:
    return <int>READ_ONCE32(&page._mapcount) + 1

cdef inline bint page_mapped(Page* page) noexcept nogil:
    return <int>READ_ONCE32(&page._mapcount) >= 0

cdef inline bint PageAnon(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.mapping) & PAGE_MAPPING_ANON) != 0

cdef inline void get_page(Page* page) noexcept nogil:
    # Whoever takes another reference already has one.
    VM_BUG_ON_PAGE(page_count(page) <= 0, page)
    atomic_add_return32(&page._count, 1)

# Takes a reference unless there is none left; says whether it did.
cdef inline bint get_page_unless_zero(Page* page) noexcept nogil:
    cdef u32 count = READ_ONCE32(&page._count), seen
    while count != 0:
        seen = cmpxchg32(&page._count, count, count + 1)
        if seen == count:
            return True
        count = seen
    return False

# Drops a reference; true when it was the last one and the caller has to free.
cdef inline bint put_page_testzero(Page* page) noexcept nogil:
    VM_BUG_ON_PAGE(page_count(page) <= 0, page)
    return atomic_add_return32(&page._count, <u32>-1) == 0

# Takes all `count` references at once, if nobody else has one: from here on
# get_page_unless_zero fails.
cdef inline bint page_freeze_refs(Page* page, int count) noexcept nogil:
    cdef bint frozen = <int>cmpxchg32(&page._count, count, 0) == count
    trace_page_ref_freeze(page, count, frozen)
    return frozen

cdef inline void page_unfreeze_refs(Page* page, int count) noexcept nogil:
    VM_BUG_ON_PAGE(page_count(page) != 0 or count == 0, page)
    smp_store_release32(&page._count, count)
    trace_page_ref_unfreeze(page, count)

# ---- zone counters ----


cdef enum:
    STAT_THRESHOLD = 32        # calculate_threshold (mm/vmstat.c): what a CPU keeps to itself

# Counts on this CPU, and hands over to the zone when much has come together: a locked
# instruction on a line that all CPUs want would cost more than the rest of the caller.
cdef inline void mod_zone_page_state(Zone* zone, int item, int delta) noexcept nogil:
    cdef i32* diff = &current().vm_stat_diff[zone.node * VM_STAT_STRIDE + item]
    cdef i32 sum = diff[0] + delta
    if unlikely(sum > STAT_THRESHOLD or sum < -STAT_THRESHOLD):
        atomic_add_return64(&zone.vm_stat[item], <u64><i64>sum)
        sum = 0
    WRITE_ONCE32(diff, sum)

cdef inline void inc_zone_page_state(Page* page, int item) noexcept nogil:
    mod_zone_page_state(page_zone(page), item, 1)

cdef inline void dec_zone_page_state(Page* page, int item) noexcept nogil:
    mod_zone_page_state(page_zone(page), item, -1)

cdef void fold_vm_stat_diff(Task* task) noexcept nogil

# ---- allocation ----

# Frees pages that somebody could do without; returns how many (vmscan's try_to_free_pages, which
# stands above: this process's address of it).
ctypedef u64 (*reclaim_t)(i32 nid, u64 gfp, u64 order, u64 nodes) noexcept nogil
cdef reclaim_t try_to_free_pages_hook

cdef void bad_page(Page* page) noexcept nogil
cdef void list_free_block(Zone* zone, Page* page, u64 order) noexcept nogil
cdef void unlist_free_block(Zone* zone, Page* page, u64 order) noexcept nogil
cdef void __free_one_page(Zone* zone, Page* page, u64 order) noexcept nogil
cdef Page* __rmqueue(Zone* zone, u64 order) noexcept nogil
cdef Page* next_free_page(Zone* zone) noexcept nogil
@cython.locals(free=i64, least=i64)
cdef bint zone_watermark_ok(Zone* zone, u64 order, u64 mark, u64 gfp) noexcept nogil
cdef void poison_frames(Page* page, u64 order) noexcept nogil
cdef void prep_new_page(Page* page, u64 order, u64 gfp) noexcept nogil
cdef Page* rmqueue_checked(Zone* zone, u64 order, u64 mark, u64 gfp) noexcept nogil
cdef u64 allowed_nodes(u64 gfp) noexcept nogil
@cython.locals(least=u64)
cdef Page* get_page_from_freelist(i32 nid, u64 gfp, u64 order, int mark, u64 nodes) noexcept nogil
cdef Page* alloc_pages_nodemask(i32 nid, u64 gfp, u64 order, u64 nodes) noexcept nogil
cdef void wakeup_kswapd(i32 nid) noexcept nogil
cdef void wake_all_kswapd(i32 nid, u64 gfp, u64 nodes) noexcept nogil
cdef void isolation_begin() noexcept nogil
cdef void isolation_end() noexcept nogil
cdef void reclaim_begin() noexcept nogil
cdef void reclaim_end(u64 progress) noexcept nogil
# How long a task that has found no memory has waited for some: it begins as zeroes.
cdef struct ReclaimWait:
    u64 since                  # ns: since when nobody has got on, 0 for not yet
    u64 last                   # ns: since when it waits for those who have pages in hand, and for nobody else
    u64 now                    # ns: when it has looked in vain
    u32 starving               # it is counted in nr_starving
    i32 retries

@cython.locals(began=u64)
cdef bint are_pages_in_hand(u64 since, u64 now) noexcept nogil
cdef void reclaim_wait_look(ReclaimWait* wait) noexcept nogil
cdef void reclaim_wait_progress(ReclaimWait* wait) noexcept nogil
cdef bint reclaim_wait_for_hands(ReclaimWait* wait) noexcept nogil
cdef void reclaim_wait_end(ReclaimWait* wait) noexcept nogil
@cython.locals(sequence=u32, others=u32)
cdef bint congestion_wait(bint anyway) noexcept nogil
cdef void set_reclaim(reclaim_t reclaim) noexcept nogil
@cython.locals(wait=ReclaimWait, before=u64, sequence=u32, waited=bint)
cdef Page* alloc_pages_slowpath(i32 nid, u64 gfp, u64 order, u64 nodes) noexcept nogil
cdef Page* alloc_pages_node(i32 nid, u64 gfp, u64 order) noexcept nogil
cdef void __free_pages(Page* page, u64 order) noexcept nogil
cdef void free_hot_page(Page* page) noexcept nogil
@cython.locals(pfn=u64, nid=i32)
cdef void memmap_init_zone(Zone* zone) noexcept nogil
cdef void free_area_online(Zone* zone) noexcept nogil
cdef u64 int_sqrt(u64 x) noexcept nogil
@cython.locals(kbytes=u64, pages=u64, present=u64)
cdef void setup_per_zone_pages_min() noexcept nogil
@cython.locals(gigabytes=u64)
cdef u64 calc_inactive_ratio(u64 pages) noexcept nogil
cdef void setup_per_zone_inactive_ratio() noexcept nogil
cdef void build_zonelist(PgData* pgdat) noexcept nogil
cdef void free_area_init_node(i32 nid, bint memoryless, bint movable) noexcept nogil
