# SPDX-License-Identifier: GPL-2.0-only
"""Reclaim: takes pages away from those who need them least (mm/vmscan.c).

Each zone has an active and an inactive list of anonymous pages, and of pages of files, and so has
each group in each zone.  A page
enters one end of a list and is looked at when it comes to the other: on the active list to be
moved to the inactive one; on the inactive list to be freed, unless it was used since it was
looked at last, and then it is active again.  To be freed an anonymous page gets a place in swap
(add_to_swap), is unmapped (try_to_unmap: each PTE becomes a swap entry), written (pageout), and
taken out of the swap cache when nobody has a reference but the cache and us (__remove_mapping).
A page of a file has its place already, and goes the same way.

It is done by kswapd, a process of its own for each node, when its free frames are below the low
watermark; and by whoever needs a frame when there is none above the min watermark.  Whoever would take
a group beyond its limit does the same to the lists of that group, in all zones.

Written is written when pageout returns: the host's page cache takes it.  So nobody ever waits
for a device here.

Locks: PG_locked of one page at a time, by trylock, as the caller may hold others; below that
rmap's and the swap cache's.  lru_lock is held for no longer than it takes to move
SWAP_CLUSTER_MAX pages.
"""
from cython import NULL, address as addressof, cast


# ---- one page ----------------------------------------------------------------

def page_mapping_inuse(page):
    """Whether it matters that a page is referenced: somebody maps it or is going to, or maps its
    file."""
    if page_mapped(page) or PageSwapCache(page):
        return True
    # The page need not be locked: it may leave its file, and the file be gone.
    rcu_read_lock()
    mapping = page_mapping(page)
    inuse = mapping != NULL and READ_ONCE64(addressof(mapping.i_mmap.rb_node)) != 0
    rcu_read_unlock()
    return inuse


def is_page_cache_freeable(page):
    """Whether nobody has a reference but the cache and the caller."""
    return page_count(page) - PagePrivate(page) == 2


def pageout(page, mapping):
    """Writes a dirty, locked page.  Returns PAGE_SUCCESS with the page unlocked, or one of the
    others with the page locked."""
    # Whoever has a reference will want it again.
    if not is_page_cache_freeable(page):
        return PAGE_KEEP
    if mapping == NULL:
        # An orphan of a file: what is dirty about it will never be written.
        if not PagePrivate(page) or not try_to_free_buffers(page):
            return PAGE_KEEP
        ClearPageDirty(page)
        return PAGE_CLEAN
    if a_ops(mapping).writepage == NULL:
        return PAGE_ACTIVATE
    if not clear_page_dirty_for_io(page):
        return PAGE_CLEAN
    wbc.sync_mode = WB_SYNC_NONE
    wbc.nr_to_write = SWAP_CLUSTER_MAX
    wbc.range_start = 0
    wbc.range_end = RADIX_TREE_MAX_INDEX
    # What could not be written is dirty again.
    if a_ops(mapping).writepage(page, addressof(wbc)) == AOP_WRITEPAGE_ACTIVATE:
        return PAGE_ACTIVATE
    return PAGE_SUCCESS


def __remove_mapping(mapping, page):
    """Takes a clean, unmapped, locked page out of its mapping if nobody has a reference but the
    cache and the caller.  Says whether it did: then it has no references any more.  Takes
    tree_lock, then swap_lock."""
    VM_BUG_ON_PAGE(not PageLocked(page) or mapping != page_mapping(page), page)
    # With its last page in our hands nothing but this keeps the mapping.
    rcu_read_lock()
    removed = __remove_mapping_rcu(mapping, page)
    rcu_read_unlock()
    return removed


def __remove_mapping_rcu(mapping, page):
    """__remove_mapping within rcu_read_lock."""
    spin_lock(addressof(mapping.tree_lock))
    # The references before the dirt: who has written the page since had one, and gave it back
    # after the page was dirty.
    if not page_freeze_refs(page, 2):
        spin_unlock(addressof(mapping.tree_lock))
        return False
    if PageDirty(page):
        page_unfreeze_refs(page, 2)
        spin_unlock(addressof(mapping.tree_lock))
        return False
    entry = cast(swp_entry_t, 0)
    if PageSwapCache(page):
        entry = page.private
        __delete_from_swap_cache(page)
    else:
        __remove_from_page_cache(page)
    spin_unlock(addressof(mapping.tree_lock))
    if entry != 0:
        mem_cgroup_uncharge_page(page)
        swap_free(entry)
    else:
        mem_cgroup_uncharge_cache_page(page)
    return True


def remove_mapping(mapping, page):
    """__remove_mapping for a caller who keeps its reference."""
    if not __remove_mapping(mapping, page):
        return False
    page_unfreeze_refs(page, 1)
    return True


def shrink_locked_page(page, sc):
    """Frees a locked, isolated page that was on an inactive list, if it can.

    Returns SHRINK_FREED: it has no references any more, and is still locked; SHRINK_UNLOCKED: it
    stays, and its lock is gone; SHRINK_KEEP, SHRINK_ACTIVATE or SHRINK_MLOCKED: it stays, locked.
    """
    if not page_evictable(page):
        return SHRINK_MLOCKED
    if PageWriteback(page):
        return SHRINK_KEEP
    # What swapoff has brought back stays: it could go to the same slot again, and in a group that is
    # at its limit would, as often as swapoff comes by.
    if PageSwapCache(page) and not swap_writeok(page.private):
        return SHRINK_ACTIVATE
    referenced = page_referenced(page, True, sc.mem_cgroup)
    if referenced and page_mapping_inuse(page):
        return SHRINK_ACTIVATE
    if PageAnon(page) and not PageSwapCache(page):
        if not sc.gfp & __GFP_IO:
            return SHRINK_KEEP
        if not add_to_swap(page):
            return SHRINK_ACTIVATE
    mapping = page_mapping(page)
    if page_mapped(page) and mapping != NULL:
        rc = try_to_unmap(page, 0)
        if rc == SWAP_FAIL:
            return SHRINK_ACTIVATE
        if rc == SWAP_MLOCK:
            return SHRINK_MLOCKED
        if rc != SWAP_SUCCESS:
            return SHRINK_KEEP
    if PageDirty(page):
        if referenced:
            return SHRINK_KEEP
        rc = pageout(page, mapping)
        if rc == PAGE_KEEP:
            return SHRINK_KEEP
        if rc == PAGE_ACTIVATE:
            return SHRINK_ACTIVATE
        if rc == PAGE_SUCCESS:
            # Unlocked meanwhile, it may have come into use again, or be somebody else's to free.
            if PageWriteback(page) or PageDirty(page) or not trylock_page(page):
                return SHRINK_UNLOCKED
            # Nor need it be clean any more: what follows asks, __remove_mapping when nobody else has a reference,
            # and try_to_free_buffers of each buffer.
            mapping = page_mapping(page)
    if PagePrivate(page):
        if not try_to_release_page(page, sc.gfp):
            return SHRINK_ACTIVATE
        if mapping == NULL and page_freeze_refs(page, 1):
            # An orphan; its buffers were all that kept it.
            return SHRINK_FREED
    if mapping == NULL or not __remove_mapping(mapping, page):
        return SHRINK_KEEP
    return SHRINK_FREED


def shrink_page(page, sc):
    """shrink_locked_page for a page that is not locked; says whether it is free to go.  An
    activated page is PG_active, and gives its place in swap back when that is scarce; one that is locked
    in memory does so in any case, for it will not be swapped out before long."""
    if not trylock_page(page):
        return False
    rc = shrink_locked_page(page, sc)
    if rc == SHRINK_UNLOCKED:
        return False
    if rc == SHRINK_MLOCKED:
        try_to_free_swap(page)
    if rc == SHRINK_ACTIVATE:
        if PageSwapCache(page) and vm_swap_full():
            try_to_free_swap(page)
        SetPageActive(page)
        count_vm_event(PGACTIVATE)
    unlock_page(page)
    return rc == SHRINK_FREED


def shrink_page_list(pagelist, sc):
    """shrink_page for a list of isolated pages; those that stay are left on it."""
    node = pagelist.next
    while node != pagelist:
        page = list_entry_page(node)
        node = node.next
        list_del(addressof(page.lru))
        if shrink_page(page, sc):
            sc.nr_reclaimed += 1
            free_hot_page(page)
        else:
            list_add_tail(addressof(page.lru), node)


# ---- one list ----------------------------------------------------------------

def isolate_pages_global(zone, lru, nr_to_scan, swapped, pagelist, nr_taken):
    """Takes up to `nr_to_scan` of the oldest pages off a list of the zone, or only those of them that are
    `swapped`, in the swap cache; with a reference each, oldest first.  Adds their number to *nr_taken.
    Returns how many it looked at.  Holds lru_lock."""
    scanned = 0
    head = addressof(zone.lru[lru])
    while scanned < nr_to_scan and not list_empty(head):
        page = lru_to_page(head)
        scanned += 1
        if (PageSwapCache(page) or not swapped) and __isolate_lru_page(zone, page, lru):
            list_add_tail(addressof(page.lru), pagelist)
            nr_taken[0] += 1
        else:
            list_move(addressof(page.lru), head)
            mem_cgroup_rotate_lru_list(page, lru)
    return scanned


def isolate_pages(zone, lru, nr_to_scan, pagelist, sc):
    """isolate_pages_global, or mem_cgroup_isolate_pages, with lru_lock taken for it.  Returns how many
    pages it looked at."""
    taken = 0
    stat = get_reclaim_stat(zone, sc)
    # Without a free slot an anonymous page can go only if it has one.
    swapped = lru < LRU_INACTIVE_FILE and READ_ONCE64(addressof(kernel().nr_swap_pages)) == 0
    spin_lock(addressof(zone.lru_lock))
    if scanning_global_lru(sc):
        scanned = isolate_pages_global(zone, lru, nr_to_scan, swapped, pagelist, addressof(taken))
    else:
        scanned = mem_cgroup_isolate_pages(sc.mem_cgroup, zone, lru, nr_to_scan, swapped, pagelist, addressof(taken))
    # Marked, here and below: get_scan_ratio looks without the lock.
    WRITE_ONCE64(addressof(stat.recent_scanned[lru // 2]), stat.recent_scanned[lru // 2] + taken)
    spin_unlock(addressof(zone.lru_lock))
    return scanned


def putback_isolated(zone, pagelist, sc):
    """Puts isolated pages of one zone on the lists that their flags say, and drops the references
    that isolation took.  Takes lru_lock, once for PAGEVEC_SIZE pages."""
    stat = get_reclaim_stat(zone, sc)
    while not list_empty(pagelist):
        pvec.nr = 0
        spin_lock(addressof(zone.lru_lock))
        while pvec.nr < PAGEVEC_SIZE and not list_empty(pagelist):
            page = list_entry_page(pagelist.next)
            if not page_evictable(page):
                break
            list_del(addressof(page.lru))
            SetPageLRU(page)
            add_page_to_lru_list(zone, page, page_lru(page))
            if PageActive(page):
                file = page_is_file_cache(page)
                WRITE_ONCE64(addressof(stat.recent_rotated[file]), stat.recent_rotated[file] + 1)
            pvec.pages[pvec.nr] = page
            pvec.nr += 1
        spin_unlock(addressof(zone.lru_lock))
        for index in range(pvec.nr):
            put_page(pvec.pages[index])
        if pvec.nr == 0:
            page = list_entry_page(pagelist.next)
            list_del(addressof(page.lru))
            putback_lru_page(page)


def shrink_inactive_list(zone, file, nr_to_scan, sc):
    """Frees what it can of the oldest pages of an inactive list."""
    INIT_LIST_HEAD(addressof(pagelist))
    # What this CPU has just brought in is of its own working set, but must not be out of reach.
    lru_add_drain()
    reclaimed = sc.nr_reclaimed
    scanned = isolate_pages(zone, LRU_INACTIVE_ANON + 2 * file, nr_to_scan, addressof(pagelist), sc)
    shrink_page_list(addressof(pagelist), sc)
    putback_isolated(zone, addressof(pagelist), sc)
    me = current()
    me.vm_events[PGSCAN_KSWAPD if sc.kswapd else PGSCAN_DIRECT] += scanned
    me.vm_events[PGSTEAL_KSWAPD if sc.kswapd else PGSTEAL_DIRECT] += sc.nr_reclaimed - reclaimed


def shrink_active_list(zone, file, nr_to_scan, sc):
    """Moves the oldest pages of an active list to the inactive one, and clears what tells that
    they were used: they have until they come to its end to be used again."""
    INIT_LIST_HEAD(addressof(pagelist))
    lru_add_drain()
    isolate_pages(zone, LRU_ACTIVE_ANON + 2 * file, nr_to_scan, addressof(pagelist), sc)
    moved = referenced = 0
    node = pagelist.next
    while node != addressof(pagelist):
        page = list_entry_page(node)
        node = node.next
        if page_mapping_inuse(page) and page_referenced(page, False, sc.mem_cgroup):
            referenced += 1
        ClearPageActive(page)
        moved += 1
    stat = get_reclaim_stat(zone, sc)
    spin_lock(addressof(zone.lru_lock))
    # They count as rotated, though they are not, so that a list of pages in use is left alone.
    WRITE_ONCE64(addressof(stat.recent_rotated[file]), stat.recent_rotated[file] + referenced)
    spin_unlock(addressof(zone.lru_lock))
    putback_isolated(zone, addressof(pagelist), sc)
    current().vm_events[PGDEACTIVATE] += moved


# ---- one zone ----------------------------------------------------------------

def inactive_anon_is_low_global(zone):
    """Whether there are too few inactive anonymous pages for those that are active to have a fair
    chance to be used again: less than 1 in inactive_ratio."""
    inactive = READ_ONCE64(addressof(zone.vm_stat[LRU_INACTIVE_ANON]))
    return inactive * zone.inactive_ratio < READ_ONCE64(addressof(zone.vm_stat[LRU_ACTIVE_ANON]))


def inactive_file_is_low_global(zone):
    """The same of pages of files: less than half."""
    return READ_ONCE64(addressof(zone.vm_stat[LRU_INACTIVE_FILE])) < READ_ONCE64(addressof(zone.vm_stat[LRU_ACTIVE_FILE]))


def inactive_list_is_low(zone, file, sc):
    """The one of these that counts for the list that is scanned: the zone's, or that of a whole group."""
    if scanning_global_lru(sc):
        return inactive_file_is_low_global(zone) if file else inactive_anon_is_low_global(zone)
    return mem_cgroup_inactive_file_is_low(sc.mem_cgroup) if file else \
        mem_cgroup_inactive_anon_is_low(sc.mem_cgroup)


def can_swap():
    """Whether an anonymous page can go.  Without a free slot only what is in the swap cache can."""
    k = kernel()
    return READ_ONCE64(addressof(k.nr_swap_pages)) != 0 or READ_ONCE64(addressof(k.swapper_space.nrpages)) != 0


def get_scan_ratio(zone, priority, sc, percent):
    """How much of the scan goes to anonymous pages, and how much to files': in favour of those of
    whom fewer were found in use lately; all of both at the last two priorities.  (2.6.30: at the last.  But there
    what has just been used is only activated, and whoever finds nothing has no memory.)  Takes lru_lock now
    and then.

    Without a free slot nearly all anonymous pages would be looked at for nothing, so that is for the
    end."""
    percent[0] = 100 if priority <= 1 and can_swap() else 0
    percent[1] = 100
    if priority <= 1 or READ_ONCE64(addressof(kernel().nr_swap_pages)) == 0:
        return
    anon = zone_nr_pages(zone, sc, LRU_ACTIVE_ANON) + zone_nr_pages(zone, sc, LRU_INACTIVE_ANON)
    files = zone_nr_pages(zone, sc, LRU_ACTIVE_FILE) + zone_nr_pages(zone, sc, LRU_INACTIVE_FILE)
    if scanning_global_lru(sc) and files + READ_ONCE64(addressof(zone.vm_stat[NR_FREE_PAGES])) <= \
            READ_ONCE64(addressof(zone.watermark[WMARK_HIGH])):
        percent[0] = 100
        percent[1] = 0
        return
    stat = get_reclaim_stat(zone, sc)
    for file in range(2):
        # What was long ago counts less and less.
        if READ_ONCE64(addressof(stat.recent_scanned[file])) > (files if file else anon) // 4:
            spin_lock(addressof(zone.lru_lock))
            WRITE_ONCE64(addressof(stat.recent_scanned[file]), stat.recent_scanned[file] // 2)
            WRITE_ONCE64(addressof(stat.recent_rotated[file]), stat.recent_rotated[file] // 2)
            spin_unlock(addressof(zone.lru_lock))
    anon_share = (SWAPPINESS + 1) * (READ_ONCE64(addressof(stat.recent_scanned[0])) + 1) // \
        (READ_ONCE64(addressof(stat.recent_rotated[0])) + 1)
    file_share = (200 - SWAPPINESS + 1) * (READ_ONCE64(addressof(stat.recent_scanned[1])) + 1) // \
        (READ_ONCE64(addressof(stat.recent_rotated[1])) + 1)
    percent[0] = 100 * anon_share // (anon_share + file_share + 1)
    percent[1] = 100 - percent[0]


def age_active_anon(zone, sc):
    """Has anonymous pages become inactive when too few are, so that they have been so for a while when their
    turn comes.  Not where it never comes (as since 69c854817566)."""
    if can_swap() and inactive_list_is_low(zone, 0, sc):
        shrink_active_list(zone, 0, SWAP_CLUSTER_MAX, sc)


def shrink_zone(zone, priority, sc):
    """Scans 1 / 2^priority of each of the zone's lists, and SWAP_CLUSTER_MAX pages at least; or of a group's
    there, which may be few.  That many at a time, of each kind in turn: who stops early has taken of both."""
    get_scan_ratio(zone, priority, sc, percent)
    # 2.6.30 would scan nothing of a short list, and remember how much that was until it is SWAP_CLUSTER_MAX.
    # By then who needs memory would have none: what it can have is what one call finds.
    least = cast(u64, SWAP_CLUSTER_MAX if scanning_global_lru(sc) else 0)
    for file in range(2):
        size = zone_nr_pages(zone, sc, LRU_ACTIVE_ANON + 2 * file) + zone_nr_pages(zone, sc, LRU_INACTIVE_ANON + 2 * file)
        left[file] = min(size, max(size >> priority, least) * percent[file] // 100)
    while left[0] + left[1] > 0:
        for file in range(2):
            batch = min(left[file], cast(u64, SWAP_CLUSTER_MAX))
            if batch == 0:
                continue
            left[file] -= batch
            if inactive_list_is_low(zone, file, sc):
                shrink_active_list(zone, file, batch, sc)
            shrink_inactive_list(zone, file, batch, sc)
        if not sc.kswapd and sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
            break
    age_active_anon(zone, sc)


# ---- who needs memory now ----------------------------------------------------

def do_try_to_free_pages(nid, nodes, sc):
    """Frees SWAP_CLUSTER_MAX pages, if it can, from those zones of node `nid`'s zonelist that are among
    `nodes`, looking at more and more of them.  The caller is within reclaim_begin, and sleeps on nothing
    but the host's files."""
    k = kernel()
    sc.nr_reclaimed = 0
    sc.kswapd = 0
    priority = DEF_PRIORITY
    while priority >= 0:
        if priority == 1 and scanning_global_lru(sc):
            # Everything there is, also what waits to enter a list; while it is looked at twice, for what has
            # just been used is only activated at the first look.
            lru_add_drain_all()
        for place in range(k.nr_nodes):
            node = k.nodes[nid].zonelist[place]
            if node < 0:
                break
            if not node_isset(node, nodes):
                continue
            shrink_zone(addressof(k.zones[node]), priority, sc)
            if sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
                return
        priority -= 1


def try_to_free_pages(nid, gfp, order, nodes):
    """Direct reclaim: do_try_to_free_pages of anybody's pages.  Returns how many it freed."""
    count_vm_event(ALLOCSTALL)
    sc.gfp = gfp
    sc.mem_cgroup = NULL
    do_try_to_free_pages(nid, nodes, addressof(sc))
    return sc.nr_reclaimed


set_reclaim(try_to_free_pages)


def try_to_free_mem_cgroup_pages(memcg, gfp):
    """do_try_to_free_pages of those pages in all zones that a group is charged for, those of the groups
    below it not among them.  Returns how many it freed, be it one.  (2.6.30 says 0 when it is fewer than
    SWAP_CLUSTER_MAX, and lets a charge fail after a few of these, though others have what was freed.)  The
    caller has a reference to the group."""
    if READ_ONCE64(addressof(memcg.stat[MEM_CGROUP_STAT_CACHE])) == 0 and not can_swap():
        return 0
    sc.gfp = gfp
    sc.mem_cgroup = memcg
    reclaim_begin()
    do_try_to_free_pages(numa_node_id(), NODE_MASK_ALL, addressof(sc))
    reclaim_end(sc.nr_reclaimed)
    return sc.nr_reclaimed


set_mem_cgroup_reclaim(try_to_free_mem_cgroup_pages)


# ---- kswapd ------------------------------------------------------------------

def pgdat_balanced(pgdat):
    """Whether the node has as much free as kswapd wants."""
    zone = pgdat.node_zone
    return zone_watermark_ok(zone, 0, READ_ONCE64(addressof(zone.watermark[WMARK_HIGH])), 0)


def balance_pgdat(pgdat):
    """Frees SWAP_CLUSTER_MAX pages unless the node has its high watermark, looking at more and more of its pages,
    and asks to be called again.  Does not when all of them did not suffice: who needs memory then will say so,
    and is what all_unreclaimable is in 2.6.30."""
    sc.nr_reclaimed = 0
    sc.gfp = GFP_KERNEL
    sc.kswapd = 1
    sc.mem_cgroup = NULL
    reclaim_begin()
    priority = DEF_PRIORITY
    while priority >= 0 and sc.nr_reclaimed < SWAP_CLUSTER_MAX:
        age_active_anon(pgdat.node_zone, addressof(sc))
        if pgdat_balanced(pgdat):
            break
        shrink_zone(pgdat.node_zone, priority, addressof(sc))
        priority -= 1
    # A round is no longer than that, so that it begins at the first priority again though others take what it
    # frees; and the task has left the kernel in between, and those are awake who wait for progress.
    if sc.nr_reclaimed >= SWAP_CLUSTER_MAX and not pgdat_balanced(pgdat):
        WRITE_ONCE32(addressof(pgdat.kswapd_wait), 1)
    reclaim_end(sc.nr_reclaimed)


def kswapd_sleep(pgdat):
    """Sleeps until an allocation wants this kswapd.  The task is outside the kernel, and may stay
    there for ever."""
    while READ_ONCE32(addressof(pgdat.kswapd_wait)) == 0:
        futex_wait(addressof(pgdat.kswapd_wait), 0, WAIT_SLICE_NS)
        if kernel_panicked():
            wait_check()


def kswapd(nid):
    """One round of a node's kswapd: sleeps until it is wanted, if it is not already, and then frees."""
    pgdat = kernel().nodes + nid
    kswapd_sleep(pgdat)
    kernel_enter()
    # Who finds the node low from here on wakes us anew.
    smp_store_mb32(addressof(pgdat.kswapd_wait), 0)
    balance_pgdat(pgdat)
    kernel_exit()


# ---- for Python --------------------------------------------------------------

def run_kswapd(nid):
    """The life of a node's kswapd, as the current task."""
    k = kernel()
    if not 0 <= nid < k.nr_nodes:
        raise ValueError(f"there is no node {nid}")
    current().flags |= PF_KSWAPD | PF_SWAPWRITE
    WRITE_ONCE32(addressof(k.nodes[nid].kswapd_pid), current().pid)
    while True:
        kswapd(nid)


def swapon(host_fd, pages, dev, ino):
    """do_swapon for init: the area's number, or a negative errno."""
    kernel_enter()
    rc = do_swapon(host_fd, pages, dev, ino)
    kernel_exit()
    return rc


def swap_file_busy(dev, ino):
    """Whether a host file is an area already, or known to be written.  For init: nobody else makes areas,
    or has a file written that was not before."""
    kernel_enter()
    k = kernel()
    spin_lock(addressof(k.inode_lock))
    inode = ilookup(dev, ino)
    busy = inode != NULL and inode.i_writable
    spin_unlock(addressof(k.inode_lock))
    busy = busy or is_swap_file(dev, ino)
    kernel_exit()
    return busy
