# SPDX-License-Identifier: GPL-2.0-only
"""Page frames: struct page, nodes, zones and the buddy allocator (mm/page_alloc.c).

Each node has one zone, of `frames_per_node` frames in a row; node n's first frame is
n * frames_per_node.  A zone keeps its free frames in blocks of 2^order, order 0 to
MAX_ORDER - 1, aligned to their size counted from the zone's start; two free buddies
are always merged.  All of that is under zone->lock, which is innermost but for the
slab's and RCU's.

There are no per-CPU lists in front of the zone: a frame that another CPU keeps for
itself is a frame that -ENOMEM lies about.

A freed frame is filled with PAGE_POISON, so that a load through a stale translation
is seen by whoever compares it, and not taken for old data that happens to be right.
"""
from cython import NULL, address, cast, pointer, sizeof
from cython.cimports.libc.string import memset

# ---- zone counters -----------------------------------------------------------

def fold_vm_stat_diff(task):
    """Hands over to the zones what a CPU has counted for itself (refresh_cpu_vm_stats, mm/vmstat.c).
    Called by that CPU, or when nobody runs on it any more."""
    k = kernel()
    for nid in range(k.nr_nodes):
        for item in range(NR_VM_ZONE_STAT_ITEMS):
            diff = address(task.vm_stat_diff[nid * VM_STAT_STRIDE + item])
            if diff[0] != 0:
                atomic_add_return64(address(k.zones[nid].vm_stat[item]), cast(i64, diff[0]))
                WRITE_ONCE32(diff, 0)


# ---- the buddy allocator -----------------------------------------------------


def bad_page(page):
    """Stops the machine when a page is freed or handed out while something still uses
    it (bad_page, free_pages_check and prep_new_page of mm/page_alloc.c)."""
    # Only the node and a stale PG_waiters are no sign of use.
    in_use = page.flags & ((cast(u64, 1) << NODES_PGSHIFT) - 1) & ~(cast(u64, 1) << PG_waiters)
    VM_BUG_ON_PAGE(in_use != 0, page)
    VM_BUG_ON_PAGE(page_count(page) != 0, page)
    VM_BUG_ON_PAGE(page_mapcount(page) != 0, page)
    VM_BUG_ON_PAGE(page.mapping != NULL, page)


def list_free_block(zone, page, order):
    """Enters a block in its free list.  Holds zone->lock."""
    page.private = order
    __SetPageBuddy(page)
    list_add(address(page.lru), address(zone.free_area[order].free_list))
    zone.free_area[order].nr_free += 1


def unlist_free_block(zone, page, order):
    """Takes a block off its free list.  Holds zone->lock."""
    list_del(address(page.lru))
    __ClearPageBuddy(page)
    page.private = 0
    zone.free_area[order].nr_free -= 1


def __free_one_page(zone, page, order):
    """Frees a block of 2^order frames and merges it with its buddies.  Holds zone->lock."""
    base = pfn_to_page(zone.zone_start_pfn)
    index = cast(u64, page - base)
    VM_BUG_ON_PAGE(index & ((cast(u64, 1) << order) - 1) != 0, page)
    WRITE_ONCE64(address(zone.vm_stat[NR_FREE_PAGES]),
                 zone.vm_stat[NR_FREE_PAGES] + (cast(u64, 1) << order))
    while order < MAX_ORDER - 1:
        buddy_index = index ^ (cast(u64, 1) << order)
        if buddy_index + (cast(u64, 1) << order) > zone.spanned_pages:
            break
        buddy = base + buddy_index
        if not PageBuddy(buddy) or buddy.private != order:
            break
        unlist_free_block(zone, buddy, order)
        index &= buddy_index
        order += 1
    list_free_block(zone, base + index, order)


def __rmqueue(zone, order):
    """Takes the smallest free block that holds 2^order frames, gives the rest back, and
    returns its first page, or NULL.  Holds zone->lock."""
    current_order = order
    while current_order < MAX_ORDER and list_empty(address(zone.free_area[current_order].free_list)):
        current_order += 1
    if current_order == MAX_ORDER:
        return NULL
    page = list_entry_page(zone.free_area[current_order].free_list.next)
    unlist_free_block(zone, page, current_order)
    while current_order > order:
        current_order -= 1
        list_free_block(zone, page + (cast(u64, 1) << current_order), current_order)
    WRITE_ONCE64(address(zone.vm_stat[NR_FREE_PAGES]),
                 zone.vm_stat[NR_FREE_PAGES] - (cast(u64, 1) << order))
    return page


def next_free_page(zone):
    """The page that the next allocation of one frame will probably take: a hint for who wants
    its cache lines early.  Looks without the lock, so it may be any page, but is one."""
    for order in range(MAX_ORDER):
        first = cast(pointer(ListHead), READ_ONCE64(address(zone.free_area[order].free_list.next)))
        if first != address(zone.free_area[order].free_list):
            return list_entry_page(first)
    return pfn_to_page(zone.zone_start_pfn)


def zone_watermark_ok(zone, order, mark, gfp):
    """Whether 2^order frames can be taken and `mark` are still left, with enough of them
    in large blocks.  __GFP_HIGH may go down to half the mark."""
    # Signed, for without a block of that size nothing is left of what is free, and less.
    least = cast(i64, mark)
    if gfp & __GFP_HIGH:
        least -= least // 2
    free = cast(i64, READ_ONCE64(address(zone.vm_stat[NR_FREE_PAGES]))) - (cast(i64, 1) << order) + 1
    if free <= least:
        return False
    for smaller in range(order):
        # At the next order, this order's blocks are of no use.
        free -= cast(i64, zone.free_area[smaller].nr_free << smaller)
        least >>= 1
        if free <= least:
            return False
    return True


def rmqueue_checked(zone, order, mark, gfp):
    """Takes a block from one zone if the watermark allows it; NULL otherwise.  Takes
    zone->lock, under which the answer of the watermark is exact."""
    spin_lock(address(zone.lock))
    page = cast(pointer(Page), NULL)
    if not zone.isolated and zone_watermark_ok(zone, order, mark, gfp):
        page = __rmqueue(zone, order)
    spin_unlock(address(zone.lock))
    return page


def allowed_nodes(gfp):
    """The nodes from which the current task may be given frames.

    What does not move keeps to nodes that need not be emptied.  A program's own memory keeps
    to its cpuset, with __GFP_HARDWALL; what the kernel needs for itself may come from as far
    as the nearest hard wall; what cannot wait, or must be from one node, from anywhere.  A node that
    is going offline is none from the start, as it will be in the end.
    """
    k = kernel()
    usable = READ_ONCE64(address(k.node_states[N_HIGH_MEMORY if gfp & __GFP_MOVABLE else N_NORMAL_MEMORY]))
    usable &= ~READ_ONCE64(address(k.isolated_nodes))
    if not gfp & __GFP_WAIT or gfp & __GFP_THISNODE:
        return usable
    me = current()
    nodes = READ_ONCE64(address(me.mems_allowed)) & usable
    if not gfp & __GFP_HARDWALL:
        return nodes | hardwall_mems(READ_ONCE32(address(me.cpuset)), usable)
    return nodes if nodes != 0 else cpuset_mems_among(READ_ONCE32(address(me.cpuset)), usable)


def get_page_from_freelist(nid, gfp, order, mark, nodes):
    """Tries the zones of node `nid`'s zonelist that are among `nodes`, nearest first, down to one
    of their watermarks (WMARK_MIN, LOW, HIGH; NONE).  With __GFP_THISNODE only the first."""
    k = kernel()
    for place in range(k.nr_nodes):
        node = k.nodes[nid].zonelist[place]
        if node < 0:
            break
        if node_isset(node, nodes):
            zone = k.zones + node
            least = 0 if mark == WMARK_NONE else READ_ONCE64(address(zone.watermark[mark]))
            page = rmqueue_checked(zone, order, least, gfp)
            if page != NULL:
                return page
        if gfp & __GFP_THISNODE:
            break
    return NULL


def poison_frames(page, order):
    """Fills the frames of a block that is about to be free."""
    if kernel().poison:
        memset(page_address(page), PAGE_POISON, cast(u64, PAGE_SIZE) << order)


def prep_new_page(page, order, gfp):
    """Makes a block fresh off the free list what alloc_pages returns: without flags, and zeroed if that
    is asked for; its first page has the one reference to all of it."""
    for index in range(cast(u64, 1) << order):
        one = page + index
        bad_page(one)
        WRITE_ONCE64(address(one.flags), one.flags & cast(u64, 63) << NODES_PGSHIFT)
        one.private = 0
        one.index = 0
    if gfp & __GFP_ZERO:
        memset(page_address(page), 0, cast(u64, PAGE_SIZE) << order)
    smp_store_release32(address(page._count), 1)


# ---- when memory is short ------------------------------------------------------
#
# Below the low watermark kswapd is woken, which frees until the high one.  Below the min
# watermark whoever wants memory has to free some itself.  What is left below that is for those
# who are freeing.

def wakeup_kswapd(nid):
    """Wakes a node's kswapd, if there is one and it is not awake already.

    It sees what the caller has seen, if the caller finds it awake and it is just about to look: that the node is low
    was found under zone->lock, under which the frames were taken, and that is before this look at kswapd_wait."""
    pgdat = kernel().nodes + nid
    if READ_ONCE32(address(pgdat.kswapd_pid)) != 0 and READ_ONCE32(address(pgdat.kswapd_wait)) == 0 and \
            xchg32(address(pgdat.kswapd_wait), 1) == 0:
        futex_wake(address(pgdat.kswapd_wait), 1)


def wake_all_kswapd(nid, gfp, nodes):
    """Wakes the kswapds of all nodes that an allocation has found low."""
    k = kernel()
    for place in range(k.nr_nodes):
        node = k.nodes[nid].zonelist[place]
        if node < 0:
            break
        if node_isset(node, nodes):
            wakeup_kswapd(node)
        if gfp & __GFP_THISNODE:
            break


def isolation_begin():
    """The current task begins to take pages off the LRU lists; who finds no memory waits until it has given
    them back."""
    me = current()
    if me.isolating_since == 0:
        WRITE_ONCE64(address(me.isolating_since), ktime_get_ns())
    atomic_add_return32(address(kernel().nr_isolators), 1)


def isolation_end():
    """It has given them back; who waits for memory looks again."""
    k = kernel()
    me = current()
    if not me.flags & PF_MIGRATE:
        WRITE_ONCE64(address(me.isolating_since), 0)
    # The sequence first; and behind it once more, for who has seen us there and is falling asleep.
    atomic_add_return32(address(k.reclaim_sequence), 1)
    atomic_add_return32(address(k.nr_isolators), -1)
    atomic_add_return32(address(k.reclaim_sequence), 1)
    smp_mb__after_atomic()
    if READ_ONCE32(address(k.reclaim_waiters)) != 0:
        futex_wake(address(k.reclaim_sequence), 0x7fffffff)


def reclaim_begin():
    """The current task begins to free memory, and may use what is kept for that."""
    current().flags |= PF_MEMALLOC
    isolation_begin()


def reclaim_end(progress):
    """It is done, and has freed `progress` pages."""
    current().flags &= ~cast(u32, PF_MEMALLOC)
    if progress != 0:
        # Before we are gone from nr_isolators: see alloc_pages_slowpath.
        atomic_add_return64(address(kernel().reclaim_progress), 1)
    isolation_end()


def are_pages_in_hand(since, now):
    """Whether somebody else has had pages in hand from `since` to `now` without a break, and may be standing
    still; not after RECLAIM_PATIENCE_NS.

    Who waits for a lock does not stand still: it may be ours.  And who moves pages waits for nobody who may
    be moving some, and wait for it.
    """
    k = kernel()
    if now - since > RECLAIM_PATIENCE_NS or current().flags & PF_MIGRATE:
        return False
    for cpu in range(k.max_tasks):
        task = address(k.tasks[cpu])
        began = READ_ONCE64(address(task.isolating_since))
        if began != 0 and began <= since and task != current() and READ_ONCE64(address(task.wait_kind)) == 0:
            return True
    return False


def reclaim_wait_look(wait):
    """The current task has found nothing.  If that is so for a while, whoever only moves pages lets it go first
    (migrate_begin)."""
    wait.now = ktime_get_ns()
    if wait.since == 0:
        wait.since = wait.now
    if not wait.starving and wait.now - wait.since > STARVING_NS:
        wait.starving = 1
        atomic_add_return32(address(kernel().nr_starving), 1)


def reclaim_wait_progress(wait):
    """Somebody has freed memory meanwhile."""
    wait.retries = 0
    wait.since = wait.now
    wait.last = 0


def reclaim_wait_for_hands(wait):
    """Waits a moment for those who have had pages in hand since this was asked first; whether there are any."""
    if not are_pages_in_hand(wait.last or wait.now, wait.now):
        return False
    wait.last = wait.last or wait.now
    congestion_wait(True)
    return True


def reclaim_wait_end(wait):
    """The current task has memory, or gives up."""
    if wait.starving:
        atomic_add_return32(address(kernel().nr_starving), -1)


def congestion_wait(anyway):
    """Waits a moment for others who free memory or move it: the pages that there are may be in their
    hands.  Says whether there was anybody to wait for; waits `anyway`, if told to, when there was not."""
    k = kernel()
    sequence = smp_load_acquire32(address(k.reclaim_sequence))
    # Acquire: who finds that the last one has left looks next what that one has freed, and must not have
    # looked before; see isolation_end.
    others = smp_load_acquire32(address(k.nr_isolators))
    if current().flags & PF_MIGRATE:
        others -= 1
    if others == 0 and not anyway:
        return False
    atomic_add_return32(address(k.reclaim_waiters), 1)
    futex_wait(address(k.reclaim_sequence), sequence, CONGESTION_WAIT_NS)
    atomic_add_return32(address(k.reclaim_waiters), -1)
    return True


def set_reclaim(reclaim):
    """Tells this process how memory is freed."""
    global try_to_free_pages_hook
    try_to_free_pages_hook = reclaim


def alloc_pages_slowpath(nid, gfp, order, nodes):
    """alloc_pages_nodemask below the low watermark: wakes kswapd, and frees memory itself when there
    is none and it may sleep.  Returns the block, not yet prepared, or NULL.

    Somebody else may take what was freed; as long as there is progress it goes on, be it others': what
    this task looks at may be in use whenever it looks, if its CPU is slow, while others get on.  (Linux
    never lets a single frame fail; where nobody gets on it kills a task.)  Without progress it waits for
    others who are at it, a few times, and until those have let go who still have pages in hand then; and then there
    is none.  Nor is there, for who is to look again, when the task may not use all of `nodes` any more.
    """
    me = current()
    k = kernel()
    wake_all_kswapd(nid, gfp, nodes)
    page = get_page_from_freelist(nid, gfp, order, WMARK_MIN, nodes)
    if page != NULL:
        return page
    if me.flags & PF_MEMALLOC:
        return get_page_from_freelist(nid, gfp, order, WMARK_NONE, nodes)
    # Who wants a certain node's memory goes elsewhere without it, and does better there.
    if not gfp & __GFP_WAIT or gfp & __GFP_THISNODE:
        return NULL
    might_sleep()
    memset(address(wait), 0, sizeof(ReclaimWait))
    while True:
        before = READ_ONCE64(address(k.reclaim_progress))
        sequence = smp_load_acquire32(address(k.reclaim_sequence))
        reclaim_begin()
        progress = try_to_free_pages_hook(nid, gfp, order, nodes)
        reclaim_end(progress)
        page = get_page_from_freelist(nid, gfp, order, WMARK_MIN, nodes)
        if page != NULL or not nodes_subset(nodes, allowed_nodes(gfp)):
            break
        if progress == 0:
            reclaim_wait_look(address(wait))
            # Who has ended since we began, besides us, may have given back what we did not find.
            waited = wait.retries < MAX_RECLAIM_RETRIES and \
                (congestion_wait(False) or smp_load_acquire32(address(k.reclaim_sequence)) != cast(u32, sequence + 2))
            if READ_ONCE64(address(k.reclaim_progress)) != before:
                reclaim_wait_progress(address(wait))
            elif waited:
                wait.retries += 1
            elif not reclaim_wait_for_hands(address(wait)):
                # Who has left, or given memory back, since we looked?
                page = get_page_from_freelist(nid, gfp, order, WMARK_MIN, nodes)
                break
            if kernel_panicked():
                wait_check()
    reclaim_wait_end(address(wait))
    return page


def alloc_pages_nodemask(nid, gfp, order, nodes):
    """2^order frames in a row from one of `nodes`: from node `nid` if it has them, else from the
    nearest that does; with __GFP_THISNODE from that node or not at all.  `nodes` are among
    allowed_nodes; when there is no memory, the caller looks whether they still are the right ones.

    Returns the first page, with one reference, or NULL: every zone that may be used is
    down to its min watermark (below it with __GFP_HIGH), and who may free memory, with __GFP_WAIT and
    without __GFP_THISNODE, found none to free.  Takes zone locks; with __GFP_WAIT may sleep.
    """
    if should_fail():
        return NULL
    VM_BUG_ON(order >= MAX_ORDER or nid < 0 or cast(u64, nid) >= kernel().nr_nodes)
    page = get_page_from_freelist(nid, gfp, order, WMARK_LOW, nodes)
    if page == NULL:
        page = alloc_pages_slowpath(nid, gfp, order, nodes)
    if page != NULL:
        prep_new_page(page, order, gfp)
        current().vm_events[PGALLOC] += cast(u64, 1) << order
    trace_mm_page_alloc(page, order, gfp)
    return page


def alloc_pages_node(nid, gfp, order):
    """alloc_pages_nodemask from any node that the current task may use."""
    while True:
        sequence = read_mems_sequence()
        nodes = allowed_nodes(gfp)
        page = alloc_pages_nodemask(nid, gfp, order, nodes)
        # As with get_mems_allowed: the cpuset may have changed meanwhile.
        if page != NULL or allowed_nodes(gfp) == nodes and read_mems_sequence() == sequence:
            return page


def __free_pages(page, order):
    """Frees a block whose last reference is gone.  Takes zone->lock."""
    zone = page_zone(page)
    for index in range(cast(u64, 1) << order):
        bad_page(page + index)
    poison_frames(page, order)
    current().vm_events[PGFREE] += cast(u64, 1) << order
    trace_mm_page_free(page, order)
    spin_lock(address(zone.lock))
    __free_one_page(zone, page, order)
    spin_unlock(address(zone.lock))


def free_hot_page(page):
    """Frees one frame whose last reference is gone."""
    if PageAnon(page):
        page.mapping = NULL
    # Who still had to see these is gone with its reference.
    keep = cast(u64, 63) << NODES_PGSHIFT | cast(u64, 1) << PG_lru | cast(u64, 1) << PG_locked | \
        cast(u64, 1) << PG_writeback | cast(u64, 1) << PG_private | cast(u64, 1) << PG_reserved | \
        cast(u64, 1) << PG_buddy | cast(u64, 1) << PG_active | cast(u64, 1) << PG_swapcache | \
        cast(u64, 1) << PG_unevictable | cast(u64, 1) << PG_pagetable
    WRITE_ONCE64(address(page.flags), page.flags & keep)
    __free_pages(page, 0)


# ---- boot --------------------------------------------------------------------

def memmap_init_zone(zone):
    """Makes the zone's struct pages, none of which stands for memory that is there."""
    nid = zone.node
    pfn = zone.zone_start_pfn
    for index in range(zone.spanned_pages):
        page = pfn_to_page(pfn + index)
        page.flags = cast(u64, nid) << NODES_PGSHIFT | cast(u64, 1) << PG_reserved
        page._mapcount = -1


def free_area_online(zone):
    """Puts all frames of a zone that has none on its free lists, in blocks as large as they come.
    The frames themselves are not touched.  Holds zone->lock, or is at boot."""
    pfn = zone.zone_start_pfn
    for index in range(zone.spanned_pages):
        __ClearPageReserved(pfn_to_page(pfn + index))
    index = 0
    while index < zone.spanned_pages:
        order = MAX_ORDER - 1
        while index & ((cast(u64, 1) << order) - 1) or \
                index + (cast(u64, 1) << order) > zone.spanned_pages:
            order -= 1
        list_free_block(zone, pfn_to_page(pfn + index), order)
        index += cast(u64, 1) << order
    # Marked: kswapd looks without the lock.
    WRITE_ONCE64(address(zone.vm_stat[NR_FREE_PAGES]), zone.spanned_pages)
    zone.present_pages = zone.spanned_pages


def int_sqrt(x):
    """The integer square root, rounded down."""
    root = cast(u64, 0)
    bit = cast(u64, 1) << 62
    while bit > x:
        bit >>= 2
    while bit:
        if x >= root + bit:
            x -= root + bit
            root = (root >> 1) + bit
        else:
            root >>= 1
        bit >>= 2
    return root


def setup_per_zone_pages_min():
    """The watermarks, by Linux's rule: min_free_kbytes is 4 * sqrt(memory in KiB), from
    128 KiB to 64 MiB, shared out by size; low and high lie a quarter and a half above
    min.  A machine so small that 128 KiB would be much of it keeps 1/32 of a zone."""
    k = kernel()
    present = 0
    for nid in range(k.nr_nodes):
        present += k.zones[nid].present_pages
    kbytes = int_sqrt((present << (PAGE_SHIFT - 10)) * 16)
    kbytes = min(max(kbytes, cast(u64, 128)), cast(u64, 65536))
    for nid in range(k.nr_nodes):
        zone = k.zones + nid
        pages = (kbytes >> (PAGE_SHIFT - 10)) * zone.present_pages // present
        pages = min(pages, zone.present_pages // 32)
        # Who allocates meanwhile, without a lock, goes by the old mark or by the new one.
        WRITE_ONCE64(address(zone.watermark[WMARK_MIN]), pages)
        WRITE_ONCE64(address(zone.watermark[WMARK_LOW]), pages + (pages >> 2))
        WRITE_ONCE64(address(zone.watermark[WMARK_HIGH]), pages + (pages >> 1))


def calc_inactive_ratio(pages):
    """How many active anonymous pages there should be for each inactive one, where there may be
    `pages` in all: 1 below a GiB of memory, and the square root of ten times the GiB above."""
    gigabytes = pages >> (30 - PAGE_SHIFT)
    return int_sqrt(10 * gigabytes) if gigabytes else 1


def setup_per_zone_inactive_ratio():
    """calc_inactive_ratio for all zones."""
    for nid in range(kernel().nr_nodes):
        zone = kernel().zones + nid
        zone.inactive_ratio = calc_inactive_ratio(zone.spanned_pages)


def build_zonelist(pgdat):
    """Orders all nodes by their distance from this one, as on a ring; of two at the same
    distance the one behind comes first, so that neighbours do not both spill upwards."""
    k = kernel()
    count = cast(i32, k.nr_nodes)
    pgdat.zonelist[0] = pgdat.node_id
    place = 1
    for distance in range(1, count // 2 + 1):
        pgdat.zonelist[place] = (pgdat.node_id + distance) % count
        place += 1
        if place < count:
            pgdat.zonelist[place] = (pgdat.node_id - distance + count) % count
            place += 1
    for rest in range(place, MAX_NUMNODES):
        pgdat.zonelist[rest] = -1


def free_area_init_node(nid, memoryless, movable):
    """Makes node `nid` and its zone, with all frames free, or without memory; of a movable one
    the kernel keeps off with what cannot move."""
    k = kernel()
    zone = k.zones + nid
    zone.node = nid
    zone.zone_start_pfn = nid * k.frames_per_node
    zone.spanned_pages = k.frames_per_node
    for order in range(MAX_ORDER):
        INIT_LIST_HEAD(address(zone.free_area[order].free_list))
    for lru in range(NR_LRU_LISTS):
        INIT_LIST_HEAD(address(zone.lru[lru]))
    memmap_init_zone(zone)
    if not memoryless:
        free_area_online(zone)
    pgdat = k.nodes + nid
    pgdat.node_id = nid
    pgdat.memoryless = memoryless
    pgdat.movable = movable
    k.node_states[N_POSSIBLE] |= node_bit(nid)
    k.node_states[N_ONLINE] |= node_bit(nid)
    if not memoryless:
        k.node_states[N_HIGH_MEMORY] |= node_bit(nid)
        if not movable:
            k.node_states[N_NORMAL_MEMORY] |= node_bit(nid)
    pgdat.node_zone = zone
    build_zonelist(pgdat)
