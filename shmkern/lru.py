# SPDX-License-Identifier: GPL-2.0-only
"""LRU lists, per-CPU pagevecs, isolation and putback, and what happens to a page with
its last reference (mm/swap.c, mm/vmscan.c, mm/internal.h).

A page that is to enter a list waits in a pagevec of its CPU, which holds a reference,
until fourteen have gathered and one lru_lock serves them all.  Linux drains another
CPU's pagevecs by running a work item there; here whoever drains does it from outside,
so each task's pagevecs have a lock, which only a drain ever contends for.

Locks: pvec_lock, then zone->lru_lock.
"""
from cython import NULL, address, cast, pointer
from cython.cimports.libc.errno import EBUSY


def add_page_to_lru_list(zone, page, lru):
    """Puts a page at the head of a list and counts it, and the same for its group.  Holds lru_lock."""
    list_add(address(page.lru), address(zone.lru[lru]))
    WRITE_ONCE64(address(zone.vm_stat[lru]), zone.vm_stat[lru] + 1)
    mem_cgroup_add_lru_list(page, lru)


def del_page_from_lru_list(zone, page, lru):
    """Takes a page off a list and counts it, and the same for its group.  Holds lru_lock."""
    list_del(address(page.lru))
    WRITE_ONCE64(address(zone.vm_stat[lru]), zone.vm_stat[lru] - 1)
    mem_cgroup_del_lru_list(page, lru)


def __put_page(page):
    """Frees a page whose last reference is gone.  May take lru_lock, takes zone->lock."""
    __page_cache_release(page)
    if unlikely(PageMlocked(page)):
        free_page_mlock(page)
    free_hot_page(page)


def free_page_mlock(page):
    """A page dies locked when it is truncated, or in swap, while locked areas want it."""
    ClearPageMlocked(page)
    dec_zone_page_state(page, NR_MLOCK)


def __page_cache_release(page):
    """Takes a page without references off its list.  Nobody can isolate it any more:
    isolate_lru_page gets no reference.  Takes lru_lock if it is on one."""
    if PageLRU(page):
        zone = page_zone(page)
        spin_lock(address(zone.lru_lock))
        VM_BUG_ON_PAGE(not PageLRU(page), page)
        del_page_from_lru_list(zone, page, page_lru(page))
        ClearPageLRU(page)
        ClearPageActive(page)
        ClearPageUnevictable(page)
        spin_unlock(address(zone.lru_lock))


# ---- pagevecs ----------------------------------------------------------------

def __pagevec_lru_add(pvec, lru):
    """Moves a pagevec's pages to list `lru` of their zones, and drops the references
    that the pagevec held.  Takes lru_lock, once for a run of pages of one zone."""
    zone = cast(pointer(Zone), NULL)
    for index in range(pvec.nr):
        page = pvec.pages[index]
        if page_zone(page) != zone:
            if zone != NULL:
                spin_unlock(address(zone.lru_lock))
            zone = page_zone(page)
            spin_lock(address(zone.lru_lock))
        VM_BUG_ON_PAGE(PageLRU(page) or PageActive(page) or PageUnevictable(page), page)
        # PG_lru, and PG_active for an active list, in one go.
        fetch_or64(address(page.flags), cast(u64, 1) << PG_lru | cast(u64, lru & 1) << PG_active)
        add_page_to_lru_list(zone, page, lru)
        trace_mm_lru_insertion(page, lru)
    if zone != NULL:
        spin_unlock(address(zone.lru_lock))
    for index in range(pvec.nr):
        put_page(pvec.pages[index])
    WRITE_ONCE64(address(pvec.nr), 0)


def lru_cache_add_lru(page, lru):
    """Lets a page enter list `lru` (not the unevictable one), with the next batch.  Takes
    over a reference of the caller's, and drops it when the page is on the list.  (Linux
    takes one of its own, and both of its callers then drop theirs.)"""
    VM_BUG_ON_PAGE(PageUnevictable(page) or PageActive(page) or PageLRU(page), page)
    me = current()
    spin_lock(address(me.pvec_lock))
    pvec = address(me.lru_add_pvecs[lru])
    pvec.pages[pvec.nr] = page
    # Marked: lru_add_drain_all looks without the lock.
    WRITE_ONCE64(address(pvec.nr), pvec.nr + 1)
    if pvec.nr == PAGEVEC_SIZE:
        __pagevec_lru_add(pvec, lru)
    spin_unlock(address(me.pvec_lock))


def add_page_to_unevictable_list(page):
    """Puts a page on the unevictable list at once: a page that waits in a pagevec could
    become evictable meanwhile and be stranded.  The caller keeps its reference.  Takes lru_lock."""
    zone = page_zone(page)
    spin_lock(address(zone.lru_lock))
    SetPageUnevictable(page)
    SetPageLRU(page)
    add_page_to_lru_list(zone, page, LRU_UNEVICTABLE)
    spin_unlock(address(zone.lru_lock))


def __drain_cpu_pagevecs(task):
    """Empties the pagevecs of a CPU, this one's or another's.  Holds pvec_lock; takes lru_lock."""
    for lru in range(NR_LRU_LISTS - 1):
        if task.lru_add_pvecs[lru].nr:
            __pagevec_lru_add(address(task.lru_add_pvecs[lru]), lru)


def drain_cpu_pagevecs(task):
    """__drain_cpu_pagevecs with pvec_lock taken for it."""
    spin_lock(address(task.pvec_lock))
    __drain_cpu_pagevecs(task)
    spin_unlock(address(task.pvec_lock))


def lru_add_drain():
    """Empties this CPU's pagevecs."""
    drain_cpu_pagevecs(current())


def pagevecs_pending(task):
    """Whether a page waits in a CPU's pagevecs, by an unlocked look: what slips past it was added while
    we were at work."""
    for lru in range(NR_LRU_LISTS - 1):
        if READ_ONCE64(address(task.lru_add_pvecs[lru].nr)):
            return True
    return False


def lru_add_drain_all():
    """Empties all CPUs' pagevecs.  What is added afterwards is not covered."""
    k = kernel()
    for cpu in range(k.max_tasks):
        if pagevecs_pending(address(k.tasks[cpu])):
            drain_cpu_pagevecs(address(k.tasks[cpu]))


def lru_add_try_drain_all():
    """lru_add_drain_all, but for those pagevecs that somebody is at: for who is in need of any pages,
    not of these, and would find all others in need waiting there as well."""
    k = kernel()
    for cpu in range(k.max_tasks):
        task = address(k.tasks[cpu])
        if pagevecs_pending(task) and spin_trylock(address(task.pvec_lock)):
            __drain_cpu_pagevecs(task)
            spin_unlock(address(task.pvec_lock))


# ---- use ---------------------------------------------------------------------

def activate_page(page):
    """Moves a page from an inactive list to the active one.  Takes lru_lock."""
    zone = page_zone(page)
    spin_lock(address(zone.lru_lock))
    if PageLRU(page) and not PageActive(page) and not PageUnevictable(page):
        lru = page_lru(page)
        del_page_from_lru_list(zone, page, lru)
        SetPageActive(page)
        add_page_to_lru_list(zone, page, lru + 1)
        count_vm_event(PGACTIVATE)
    spin_unlock(address(zone.lru_lock))


def mark_page_accessed(page):
    """A page was used, and no PTE says so (any more): an inactive page is noted the first time and
    activated the second.  The caller has a reference.  Takes lru_lock."""
    if not PageReferenced(page):
        SetPageReferenced(page)
    elif not PageActive(page) and not PageUnevictable(page) and PageLRU(page):
        activate_page(page)
        ClearPageReferenced(page)


# ---- isolation ---------------------------------------------------------------

def __isolate_lru_page(zone, page, lru):
    """Takes a page that is on list `lru` off it, and a reference to it.  Says whether it did: not when
    the page is being freed, by somebody who waits for our lock.  Holds lru_lock."""
    if not get_page_unless_zero(page):
        return False
    del_page_from_lru_list(zone, page, lru)
    ClearPageLRU(page)
    return True


def isolate_lru_page(page):
    """Takes a page off its list and a reference to it, so that the caller alone moves it
    (mm/vmscan.c).

    Returns 0, or -EBUSY when it is on no list: somebody else has it, it waits in a
    pagevec, or it is being freed.  Takes lru_lock.
    """
    ret = -EBUSY
    if PageLRU(page):
        zone = page_zone(page)
        spin_lock(address(zone.lru_lock))
        # Without a list entry, or without references, the page is no longer ours to take.
        if PageLRU(page) and __isolate_lru_page(zone, page, page_lru(page)):
            ret = 0
        spin_unlock(address(zone.lru_lock))
    return ret


def isolate_lru_pages(pfn, end, limit, pagelist):
    """Isolates up to `limit` pages of the frames from `pfn` to `end`, all of one zone, onto the
    end of a list; those that isolate_lru_page would not take are passed over.

    Returns the frame to go on with.  Takes lru_lock once for up to PAGEVEC_SIZE pages: the
    lock and its release cost more than isolating a page under it.  Gives it back now and then
    where there is nothing to isolate, for others want it.
    """
    zone = page_zone(pfn_to_page(pfn))
    while pfn < end and limit > 0:
        batch = min(limit, PAGEVEC_SIZE)
        stop = min(end, pfn + ISOLATE_SCAN)
        spin_lock(address(zone.lru_lock))
        while pfn < stop and batch > 0:
            page = pfn_to_page(pfn)
            pfn += 1
            if PageLRU(page) and __isolate_lru_page(zone, page, page_lru(page)):
                list_add_tail(address(page.lru), pagelist)
                batch -= 1
                limit -= 1
        spin_unlock(address(zone.lru_lock))
    return pfn


def page_evictable(page):
    """Whether reclaim may have the page: it is not mlocked."""
    return not PageMlocked(page)


def putback_lru_page(page):
    """Puts an isolated page back on the list that its flags say, and drops the reference
    that isolation took (mm/vmscan.c).

    Without other references the page was freed while it was isolated, or replaced by
    migration: it goes back to its zone now.  (2.6.30 would let it pass through a list
    first, and free it from there.)
    """
    VM_BUG_ON_PAGE(PageLRU(page), page)
    # Looked at before they are cleared: a locked instruction costs as much as the rest.
    active = PageActive(page) and TestClearPageActive(page)
    if PageUnevictable(page):
        ClearPageUnevictable(page)
    if page_count(page) == 1:
        put_page(page)
        return
    while True:
        if page_evictable(page):
            lru_cache_add_lru(page, 2 * page_is_file_cache(page) + active)
            return
        add_page_to_unevictable_list(page)
        # munlock may have looked for the page on a list just before we put it there,
        # and then it is up to us to move it.
        if not page_evictable(page) or isolate_lru_page(page) != 0:
            break
        ClearPageUnevictable(page)
        put_page(page)
    put_page(page)
