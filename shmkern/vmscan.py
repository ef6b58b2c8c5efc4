# SPDX-License-Identifier: GPL-2.0-only
"""Reclaim: takes pages away from those who need them least (mm/vmscan.c).

Each zone has an active and an inactive list of anonymous pages, and of pages of files.  A page
enters one end of a list and is looked at when it comes to the other: on the active list to be
moved to the inactive one; on the inactive list to be freed, unless it was used since it was
looked at last, and then it is active again.  To be freed an anonymous page gets a place in swap
(add_to_swap), is unmapped (try_to_unmap: each PTE becomes a swap entry), written (pageout), and
taken out of the swap cache when nobody has a reference but the cache and us (__remove_mapping).
A page of a file has its place already, and goes the same way.

It is done by kswapd, a process of its own for each node, when its free frames are below the low
watermark; and by whoever needs a frame when there is none above the min watermark.

Written is written when pageout returns: the host's page cache takes it.  So nobody ever waits
for a device here.

Locks: PG_locked of one page at a time, by trylock, as the caller may hold others; below that
rmap's and the swap cache's.  lru_lock is held for no longer than it takes to move
SWAP_CLUSTER_MAX pages.
"""
from cython import NULL, address as addressof, cast, pointer


# ---- one page ----------------------------------------------------------------

def page_mapping_inuse(page):
    """Whether it matters that a page is referenced: somebody maps it or is going to, or maps its
    file."""
    if page_mapped(page) or PageSwapCache(page):
        return True
    mapping = page_mapping(page)
    return mapping != NULL and READ_ONCE64(addressof(mapping.i_mmap.rb_node)) != 0


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
    stays, and its lock is gone; SHRINK_KEEP or SHRINK_ACTIVATE: it stays, locked.
    """
    if not page_evictable(page) or PageWriteback(page):
        return SHRINK_KEEP
    # What swapoff has brought back stays: it could go to the same slot again, and in a group that is
    # at its limit would, as often as swapoff comes by.
    if PageSwapCache(page) and not swap_writeok(page.private):
        return SHRINK_ACTIVATE
    referenced = page_referenced(page, True)
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
    activated page is PG_active, and gives its place in swap back when that is scarce."""
    sc.nr_scanned += 1
    if not trylock_page(page):
        return False
    rc = shrink_locked_page(page, sc)
    if rc == SHRINK_UNLOCKED:
        return False
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

def isolate_lru_tail(zone, lru, nr_to_scan, pagelist):
    """Takes up to `nr_to_scan` of the oldest pages off a list, with a reference each, oldest
    first.  Returns how many it looked at.  Takes lru_lock."""
    scanned = 0
    head = addressof(zone.lru[lru])
    spin_lock(addressof(zone.lru_lock))
    while scanned < nr_to_scan and not list_empty(head):
        page = lru_to_page(head)
        scanned += 1
        del_page_from_lru_list(zone, page, lru)
        if get_page_unless_zero(page):
            ClearPageLRU(page)
            list_add_tail(addressof(page.lru), pagelist)
            zone.recent_scanned[lru // 2] += 1
        else:
            # It is being freed, by somebody who waits for our lock.
            add_page_to_lru_list(zone, page, lru)
    spin_unlock(addressof(zone.lru_lock))
    return scanned


def putback_isolated(zone, pagelist):
    """Puts isolated pages of one zone on the lists that their flags say, and drops the references
    that isolation took.  Takes lru_lock, once for PAGEVEC_SIZE pages."""
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
                zone.recent_rotated[page_is_file_cache(page)] += 1
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
    scanned = isolate_lru_tail(zone, LRU_INACTIVE_ANON + 2 * file, nr_to_scan, addressof(pagelist))
    shrink_page_list(addressof(pagelist), sc)
    putback_isolated(zone, addressof(pagelist))
    me = current()
    me.vm_events[PGSCAN_KSWAPD if sc.kswapd else PGSCAN_DIRECT] += scanned
    me.vm_events[PGSTEAL_KSWAPD if sc.kswapd else PGSTEAL_DIRECT] += sc.nr_reclaimed - reclaimed


def shrink_active_list(zone, file, nr_to_scan):
    """Moves the oldest pages of an active list to the inactive one, and clears what tells that
    they were used: they have until they come to its end to be used again."""
    INIT_LIST_HEAD(addressof(pagelist))
    lru_add_drain()
    isolate_lru_tail(zone, LRU_ACTIVE_ANON + 2 * file, nr_to_scan, addressof(pagelist))
    moved = referenced = 0
    node = pagelist.next
    while node != addressof(pagelist):
        page = list_entry_page(node)
        node = node.next
        if page_mapping_inuse(page) and page_referenced(page, False):
            referenced += 1
        ClearPageActive(page)
        moved += 1
    spin_lock(addressof(zone.lru_lock))
    # They count as rotated, though they are not, so that a list of pages in use is left alone.
    zone.recent_rotated[file] += referenced
    spin_unlock(addressof(zone.lru_lock))
    putback_isolated(zone, addressof(pagelist))
    current().vm_events[PGDEACTIVATE] += moved


# ---- one zone ----------------------------------------------------------------

def zone_lru_pages(zone, lru):
    """How many pages are on a list."""
    return READ_ONCE64(addressof(zone.vm_stat[lru]))


def inactive_list_is_low(zone, file):
    """Whether there are too few inactive pages for those that are active to have a fair chance to
    be used again: of anonymous ones less than 1 in inactive_ratio, of files' less than half."""
    inactive = zone_lru_pages(zone, LRU_INACTIVE_ANON + 2 * file)
    active = zone_lru_pages(zone, LRU_ACTIVE_ANON + 2 * file)
    return inactive * (1 if file else zone.inactive_ratio) < active


def can_swap():
    """Whether an anonymous page can go.  Without a free slot only what is in the swap cache can."""
    k = kernel()
    return READ_ONCE64(addressof(k.nr_swap_pages)) != 0 or READ_ONCE64(addressof(k.swapper_space.nrpages)) != 0


def get_scan_ratio(zone, percent):
    """How much of the scan goes to anonymous pages, and how much to files': in favour of those of
    whom fewer were found in use lately.  Takes lru_lock now and then."""
    percent[0] = 0
    percent[1] = 100
    if not can_swap():
        return
    anon = zone_lru_pages(zone, LRU_ACTIVE_ANON) + zone_lru_pages(zone, LRU_INACTIVE_ANON)
    files = zone_lru_pages(zone, LRU_ACTIVE_FILE) + zone_lru_pages(zone, LRU_INACTIVE_FILE)
    if files + zone_lru_pages(zone, NR_FREE_PAGES) <= zone.watermark[WMARK_HIGH]:
        percent[0] = 100
        percent[1] = 0
        return
    for file in range(2):
        # What was long ago counts less and less.
        if zone.recent_scanned[file] > (files if file else anon) // 4:
            spin_lock(addressof(zone.lru_lock))
            zone.recent_scanned[file] //= 2
            zone.recent_rotated[file] //= 2
            spin_unlock(addressof(zone.lru_lock))
    anon_share = (SWAPPINESS + 1) * (zone.recent_scanned[0] + 1) // (zone.recent_rotated[0] + 1)
    file_share = (200 - SWAPPINESS + 1) * (zone.recent_scanned[1] + 1) // (zone.recent_rotated[1] + 1)
    percent[0] = 100 * anon_share // (anon_share + file_share + 1)
    percent[1] = 100 - percent[0]


def shrink_zone(zone, priority, sc):
    """Scans 1 / 2^priority of each of the zone's lists, SWAP_CLUSTER_MAX pages at least, in steps
    of that."""
    get_scan_ratio(zone, percent)
    for file in range(2):
        size = zone_lru_pages(zone, LRU_ACTIVE_ANON + 2 * file) + zone_lru_pages(zone, LRU_INACTIVE_ANON + 2 * file)
        left = min(size, max(size >> priority, cast(u64, SWAP_CLUSTER_MAX)) * percent[file] // 100)
        while left > 0:
            batch = min(left, cast(u64, SWAP_CLUSTER_MAX))
            if inactive_list_is_low(zone, file):
                shrink_active_list(zone, file, batch)
            shrink_inactive_list(zone, file, batch, sc)
            left -= batch
            if not sc.kswapd and sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
                return


# ---- who needs memory now ----------------------------------------------------

def try_to_free_pages(nid, gfp, order, nodes):
    """Direct reclaim: frees SWAP_CLUSTER_MAX pages, if it can, from those zones of node `nid`'s
    zonelist that are among `nodes`, looking at more and more of them.  Returns how many it freed.  The caller is within
    reclaim_begin, and sleeps on nothing but the host's files."""
    k = kernel()
    count_vm_event(ALLOCSTALL)
    sc.nr_scanned = sc.nr_reclaimed = 0
    sc.gfp = gfp
    sc.kswapd = 0
    priority = DEF_PRIORITY
    while priority >= 0:
        if priority == 0:
            # Everything there is, also what waits to enter a list.
            lru_add_drain_all()
        for place in range(k.nr_nodes):
            node = k.nodes[nid].zonelist[place]
            if node < 0:
                break
            if not node_isset(node, nodes):
                continue
            shrink_zone(addressof(k.zones[node]), priority, addressof(sc))
            if sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
                return sc.nr_reclaimed
        priority -= 1
    return sc.nr_reclaimed


set_reclaim(try_to_free_pages)


# ---- a group at its limit ----------------------------------------------------
#
# A group has no lists.  A hand goes round its frames as round a clock's face: a page that is active
# when the hand comes by becomes inactive, and one that was not used since then goes.

def shrink_mem_cgroup_page(page, sc):
    """Frees an isolated page if it can and it is inactive; makes it inactive if not; puts it back."""
    if PageActive(page):
        # What tells that it was used is cleared: it has a turn to be used again.
        page_referenced(page, False)
        ClearPageActive(page)
        count_vm_event(PGDEACTIVATE)
    elif shrink_page(page, sc):
        sc.nr_reclaimed += 1
        free_hot_page(page)
        return
    putback_lru_page(page)


def shrink_mem_cgroup(memcg, sc):
    """One turn of a group's hand, or less when enough was freed.

    The look at who is charged is unlocked.  A page that has just become another's may go as well: it
    is as when memory is short."""
    k = kernel()
    anon = can_swap()
    pfn = READ_ONCE64(addressof(memcg.reclaim_hand))
    for passed in range(k.max_pfn):
        pfn = pfn + 1 if pfn + 1 < k.max_pfn else 0
        if READ_ONCE64(addressof(k.page_cgroup[pfn].mem_cgroup)) != cast(u64, memcg):
            continue
        page = pfn_to_page(pfn)
        if (anon or page_is_file_cache(page)) and isolate_lru_page(page) == 0:
            shrink_mem_cgroup_page(page, sc)
            if sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
                break
    WRITE_ONCE64(addressof(memcg.reclaim_hand), pfn)


def try_to_free_mem_cgroup_pages(memcg, gfp):
    """Frees SWAP_CLUSTER_MAX pages, if it can, that a group is charged for, those of the groups below
    it not among them.  Returns how many it freed.  The caller has a reference to the group, and sleeps
    on nothing but the host's files."""
    if READ_ONCE64(addressof(memcg.stat[MEM_CGROUP_STAT_CACHE])) == 0 and not can_swap():
        return 0
    sc.nr_scanned = sc.nr_reclaimed = 0
    sc.gfp = gfp
    sc.kswapd = 0
    reclaim_begin()
    for turn in range(MEM_CGROUP_TURNS):
        # What it has just faulted in waits to enter a list.
        lru_add_drain_all()
        shrink_mem_cgroup(memcg, addressof(sc))
        if sc.nr_reclaimed >= SWAP_CLUSTER_MAX:
            break
    reclaim_end()
    me = current()
    me.vm_events[PGSCAN_DIRECT] += sc.nr_scanned
    me.vm_events[PGSTEAL_DIRECT] += sc.nr_reclaimed
    return sc.nr_reclaimed


set_mem_cgroup_reclaim(try_to_free_mem_cgroup_pages)


# ---- kswapd ------------------------------------------------------------------

def pgdat_balanced(pgdat):
    """Whether the node has as much free as kswapd wants."""
    zone = pgdat.node_zone
    return zone_watermark_ok(zone, 0, zone.watermark[WMARK_HIGH], 0)


def balance_pgdat(pgdat):
    """Frees until the node has its high watermark, looking at more and more of its pages; gives up
    when all of them did not suffice."""
    sc.nr_scanned = sc.nr_reclaimed = 0
    sc.gfp = GFP_KERNEL
    sc.kswapd = 1
    reclaim_begin()
    priority = DEF_PRIORITY
    while priority >= 0 and not pgdat_balanced(pgdat):
        shrink_zone(pgdat.node_zone, priority, addressof(sc))
        priority -= 1
    reclaim_end()


def kswapd_sleep(pgdat):
    """Sleeps until an allocation wants this kswapd.  The task is outside the kernel, and may stay
    there for ever."""
    while READ_ONCE32(addressof(pgdat.kswapd_wait)) == 0:
        futex_wait(addressof(pgdat.kswapd_wait), 0, WAIT_SLICE_NS)
        if kernel_panicked():
            wait_check()


def kswapd(nid):
    """One round of a node's kswapd: sleeps until it is wanted, and then frees."""
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


def swapon(host_fd, pages):
    """do_swapon for init: the area's number, or a negative errno."""
    kernel_enter()
    rc = do_swapon(host_fd, pages)
    kernel_exit()
    return rc
