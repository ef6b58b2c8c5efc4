# SPDX-License-Identifier: GPL-2.0-only
"""Taking a node's memory offline, and bringing it back (mm/memory_hotplug.c,
mm/page_isolation.c).

First the zone is isolated: nothing is allocated from it any more, and what is freed stays
free; who may use only this node, by its cpuset or its policy, has memory as if it were gone.
Then all its pages are moved to other nodes, found by frame and not by address, until every
frame is free; then the frames are no longer there.  What cannot be moved (a page table, the
zero page) makes it fail at once, which is what movable nodes are for: the kernel's own memory
never comes from them.  What is only busy is tried again, until the time is up.

Locks: hotplug_sem for writing around all of it; zone->lock; at the end cpuset_sem, since what
tasks may use has changed.
"""
from cython import NULL, address as addressof
from cython.cimports.libc.errno import EBUSY, EINVAL, ENOMEM


def has_unmovable_pages(zone):
    """Whether a zone holds what will not move.  Looks without a lock: in an isolated zone no such
    page can appear, and one that is freed meanwhile makes the answer too careful."""
    first = pfn_to_page(zone.zone_start_pfn)
    for index in range(zone.spanned_pages):
        if PagePageTable(first + index) or PageReserved(first + index):
            return True
    return False


def set_isolated(zone, isolated):
    """Begins or ends isolation.  Under zone->lock, so that whoever is allocating has finished, and
    finds other nodes if it has come too late.  Holds hotplug_sem for writing."""
    k = kernel()
    bit = node_bit(zone.node)
    spin_lock(addressof(zone.lock))
    WRITE_ONCE64(addressof(k.isolated_nodes), k.isolated_nodes | bit if isolated else k.isolated_nodes & ~bit)
    zone.isolated = isolated
    atomic_add_return64(addressof(k.mems_sequence), 1)
    spin_unlock(addressof(zone.lock))


def hotremove_migrate_alloc(page, private, result):
    """A page for one that has to leave: from the nearest node, its own being isolated."""
    return alloc_pages_node(page_to_nid(page), GFP_HIGHUSER_MOVABLE, 0)


def do_migrate_range(zone):
    """Moves the pages of a zone that are on the LRU.  Returns 0 when all moved, the number of a
    range's pages that stayed, or -ENOMEM."""
    end = zone.zone_start_pfn + zone.spanned_pages
    pfn = zone.zone_start_pfn
    worst = 0
    while pfn < end:
        done = pfn
        rc = migrate_pfn_range(pfn, end, hotremove_migrate_alloc, 0, addressof(done))
        pfn = done
        if rc < 0:
            return rc
        worst = max(worst, rc)
    return worst


def drop_read_ahead(zone):
    """Takes those of a zone's pages out of the swap cache that nobody has mapped since they were read:
    migration leaves them alone, and their slots have what is in them.  (In Linux they have to wait
    for reclaim.)  Pages that wait to enter a list have a reference for that, and stay.  Takes PG_locked
    by trylock, then tree_lock and swap_lock."""
    space = addressof(kernel().swapper_space)
    first = pfn_to_page(zone.zone_start_pfn)
    for index in range(zone.spanned_pages):
        page = first + index
        # A look without a reference; then again, and at the rest, with the page's lock.
        if not PageSwapCache(page) or not get_page_unless_zero(page):
            continue
        if trylock_page(page):
            if PageSwapCache(page) and page.mapping == NULL and not PageWriteback(page):
                remove_mapping(space, page)
            unlock_page(page)
        put_page(page)


def offline_isolated_pages(zone):
    """When all frames of an isolated zone are free, takes them off its free lists for good, and
    says that it did.  Takes zone->lock, under which no frame can become used again."""
    spin_lock(addressof(zone.lock))
    all_free = zone.vm_stat[NR_FREE_PAGES] == zone.present_pages
    if all_free:
        for order in range(MAX_ORDER):
            while not list_empty(addressof(zone.free_area[order].free_list)):
                unlist_free_block(zone, list_entry_page(zone.free_area[order].free_list.next), order)
        first = pfn_to_page(zone.zone_start_pfn)
        for index in range(zone.spanned_pages):
            __SetPageReserved(first + index)
        WRITE_ONCE64(addressof(zone.vm_stat[NR_FREE_PAGES]), 0)
        zone.present_pages = 0
    spin_unlock(addressof(zone.lock))
    return all_free


def empty_zone(zone, deadline):
    """Empties an isolated zone.  Returns 0; -EBUSY when something will not move, or has not until
    `deadline`; -ENOMEM when the other nodes have no room."""
    failures = 0
    while not offline_isolated_pages(zone):
        if has_unmovable_pages(zone) or ktime_get_ns() > deadline:
            return -EBUSY
        migrate_prep()
        drop_read_ahead(zone)
        rc = do_migrate_range(zone)
        if rc < 0:
            failures += 1
            if failures == NR_OFFLINE_RETRIES:
                return rc
        # Whoever has the pages needs a moment: one that is on its way to a free list looks as if nothing were left.
        cpu_yield()
    return 0


def update_node_states(node, has_memory):
    """Makes it known that a node has memory, or has none any more: to allocation, to the
    watermarks, and to all tasks.  Takes cpuset_sem for writing."""
    k = kernel()
    down_write(addressof(k.cpuset_sem))
    bit = node_bit(node)
    if not has_memory:
        WRITE_ONCE64(addressof(k.node_states[N_NORMAL_MEMORY]), k.node_states[N_NORMAL_MEMORY] & ~bit)
        WRITE_ONCE64(addressof(k.node_states[N_HIGH_MEMORY]), k.node_states[N_HIGH_MEMORY] & ~bit)
    else:
        WRITE_ONCE64(addressof(k.node_states[N_HIGH_MEMORY]), k.node_states[N_HIGH_MEMORY] | bit)
        if not k.nodes[node].movable:
            WRITE_ONCE64(addressof(k.node_states[N_NORMAL_MEMORY]), k.node_states[N_NORMAL_MEMORY] | bit)
    setup_per_zone_pages_min()
    # The pages have moved already.
    update_all_tasks(-1, False)
    up_write(addressof(k.cpuset_sem))


def offline_node(node, timeout_ns):
    """Takes a node's memory offline.  Returns 0, -EINVAL (no such node, or it has no memory),
    -EBUSY or -ENOMEM; after an error it is as it was, but for the pages that have moved away.
    Sleeps; the caller holds no lock."""
    k = kernel()
    if not node_state(node, N_HIGH_MEMORY):
        return -EINVAL
    down_write(addressof(k.hotplug_sem))
    rc = -EINVAL
    if node_state(node, N_HIGH_MEMORY):
        zone = k.zones + node
        set_isolated(zone, True)
        rc = empty_zone(zone, ktime_get_ns() + timeout_ns)
        if rc == 0:
            update_node_states(node, False)
        # Last: at no moment it looks as if it had memory to give.
        set_isolated(zone, False)
    up_write(addressof(k.hotplug_sem))
    return rc


def online_node(node):
    """Brings the memory of an offline node back.  Returns 0, or -EINVAL: no such node, or one that
    has its memory, or never had any.  Takes hotplug_sem."""
    k = kernel()
    if not node_state(node, N_POSSIBLE):
        return -EINVAL
    down_write(addressof(k.hotplug_sem))
    zone = k.zones + node
    rc = -EINVAL
    if zone.present_pages == 0 and not k.nodes[node].memoryless:
        rc = 0
        spin_lock(addressof(zone.lock))
        free_area_online(zone)
        spin_unlock(addressof(zone.lock))
        update_node_states(node, True)
    up_write(addressof(k.hotplug_sem))
    return rc
