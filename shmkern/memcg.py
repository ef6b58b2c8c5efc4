# SPDX-License-Identifier: GPL-2.0-only
"""Memory control groups: who pays for a frame (mm/memcontrol.c, kernel/res_counter.c).

Every frame has a page_cgroup that says which group is charged for it.  A group counts what
it is charged in a res_counter, with what its children are charged, and a charge that would
take it or one of its ancestors beyond its limit fails.  An address space belongs to a group,
its parent's at birth; what it faults in is charged to that group and stays so when it goes
to another.

A page of a file is charged while it is in the page cache, to who brought it there.  An
anonymous page is charged from just before its first mapping until its last one goes, or until
it leaves the swap cache; whether it has gone is decided under the page_cgroup's lock.  A page
that migrates would lose its charge on the way, and so the charges of both pages are held
(PCG_MIGRATION) from mem_cgroup_prepare_migration to mem_cgroup_end_migration.

For reclaim at its limit a group has LRU lists of its own; page_cgroup says what is on them.

Locks: cgroup_lock, then an mm's memcg_lock.  Of the leaves, page_cgroup->lock and the
res_counters' locks (one at a time), the first is never held when taking another.  All of
them may be taken under a split page-table lock and under lru_lock.

Two things are not as in 2.6.30: all groups are hierarchical (there, with use_hierarchy); an
address space knows its group (there, through mm->owner, and before 2.6.26 as here).
"""
from cython import NULL, address as addressof, cast, pointer, sizeof
from cython.cimports.libc.errno import EBUSY, EEXIST, EINVAL, ENODEV, ENOENT, ENOMEM
from cython.cimports.libc.string import memset, strncmp, strncpy


# ---- res_counter -------------------------------------------------------------

def res_counter_init(counter, parent):
    """A counter without limit, below `parent` or (NULL) below none."""
    counter.limit = RESOURCE_MAX
    counter.parent = parent


def res_counter_charge_one(counter, val):
    """Counts `val` bytes more if the limit allows it; says whether it did.  Takes its lock."""
    spin_lock(addressof(counter.lock))
    fits = counter.usage + val <= counter.limit
    if fits:
        WRITE_ONCE64(addressof(counter.usage), counter.usage + val)
        WRITE_ONCE64(addressof(counter.max_usage), max(counter.max_usage, counter.usage))
    else:
        WRITE_ONCE64(addressof(counter.failcnt), counter.failcnt + 1)
    spin_unlock(addressof(counter.lock))
    return fits


def res_counter_uncharge_until(counter, top, val):
    """Counts `val` bytes less, from `counter` up to, but without, its ancestor `top` (NULL: in
    all).  Takes their locks one by one."""
    while counter != top:
        spin_lock(addressof(counter.lock))
        VM_BUG_ON(counter.usage < val)
        WRITE_ONCE64(addressof(counter.usage), counter.usage - val)
        spin_unlock(addressof(counter.lock))
        counter = counter.parent


def res_counter_charge(counter, val):
    """Counts `val` bytes more in a counter and all its ancestors.  Returns NULL; or the one whose
    limit does not allow it, with nothing counted."""
    at = counter
    while at != NULL:
        if not res_counter_charge_one(at, val):
            res_counter_uncharge_until(counter, at, val)
            return at
        at = at.parent
    return at


def res_counter_set_limit(counter, limit):
    """Sets the limit.  Returns 0, or -EBUSY when the usage is beyond it already."""
    rc = -EBUSY
    spin_lock(addressof(counter.lock))
    if counter.usage <= limit:
        # Marked: who is at the limit looks without the lock how much that is.
        WRITE_ONCE64(addressof(counter.limit), limit)
        rc = 0
    spin_unlock(addressof(counter.lock))
    return rc


# ---- groups ------------------------------------------------------------------

def mem_cgroup_init(page_cgroup):
    """Gives the machine groups, while it boots: `page_cgroup` is an array of zeros, one for each
    frame.  There is one group then, the root."""
    k = kernel()
    k.mem_cgroup_cachep = kmem_cache_create(b"mem_cgroup", sizeof(MemCgroup))
    k.mem_cgroup_per_zone_cachep = kmem_cache_create(b"mem_cgroup_per_zone", sizeof(MemCgroupPerZone))
    INIT_LIST_HEAD(addressof(k.mem_cgroups))
    k.root_mem_cgroup = mem_cgroup_alloc(False)
    BUG_ON(k.root_mem_cgroup == NULL)
    mem_cgroup_online(k.root_mem_cgroup, cast(pointer(MemCgroup), NULL), b"/", RESOURCE_MAX)
    k.page_cgroup = page_cgroup


def alloc_mem_cgroup_per_zone_info(memcg, nid):
    """Gives a group its lists in a node's zone.  Says whether there was memory."""
    mz = cast(pointer(MemCgroupPerZone), kmem_cache_alloc(kernel().mem_cgroup_per_zone_cachep))
    if mz == NULL:
        return False
    for lru in range(NR_LRU_LISTS):
        INIT_LIST_HEAD(addressof(mz.lists[lru]))
    memcg.nodeinfo[nid] = mz
    return True


def __mem_cgroup_free(memcg):
    """Gives a group's memory back."""
    k = kernel()
    for nid in range(k.nr_nodes):
        if memcg.nodeinfo[nid] != NULL:
            kmem_cache_free(k.mem_cgroup_per_zone_cachep, memcg.nodeinfo[nid])
    kmem_cache_free(k.mem_cgroup_cachep, memcg)


def mem_cgroup_alloc(with_lists):
    """The memory of a group, with lists in the zones of all nodes or (the root's) without; NULL without
    memory.  May sleep."""
    k = kernel()
    memcg = cast(pointer(MemCgroup), kmem_cache_alloc(k.mem_cgroup_cachep))
    if memcg == NULL:
        return NULL
    if with_lists:
        for nid in range(k.nr_nodes):
            if not alloc_mem_cgroup_per_zone_info(memcg, nid):
                __mem_cgroup_free(memcg)
                return NULL
    return memcg


def mem_cgroup_online(memcg, parent, name, limit):
    """Makes that memory a group below `parent` (NULL: the root), on the list of all.  Holds cgroup_lock
    (or boots)."""
    k = kernel()
    res_counter_init(addressof(memcg.res), cast(pointer(ResCounter), NULL))
    if parent != NULL:
        memcg.res.parent = addressof(parent.res)
        WRITE_ONCE64(addressof(parent.nr_children), parent.nr_children + 1)
    memcg.res.limit = limit
    memcg.parent = parent
    memcg.css_refcnt = 1
    k.next_css_id += 1
    memcg.id = k.next_css_id
    strncpy(memcg.name, name, MEM_CGROUP_NAME_LEN - 1)
    list_add_tail(addressof(memcg.list), addressof(k.mem_cgroups))


def find_mem_cgroup(id):
    """The group with that id, unless there is none or it is being removed: NULL.  Holds
    cgroup_lock."""
    k = kernel()
    node = k.mem_cgroups.next
    while node != addressof(k.mem_cgroups):
        memcg = list_entry_mem_cgroup(node)
        if memcg.id == id and not memcg.removing:
            return memcg
        node = node.next
    return NULL


def find_child(parent, name):
    """The child of that name, or NULL.  Holds cgroup_lock."""
    k = kernel()
    node = k.mem_cgroups.next
    while node != addressof(k.mem_cgroups):
        memcg = list_entry_mem_cgroup(node)
        if memcg.parent == parent and strncmp(memcg.name, name, MEM_CGROUP_NAME_LEN) == 0:
            return memcg
        node = node.next
    return NULL


def mem_cgroup_create(parent_id, name, limit):
    """mkdir: a group below another.  Returns its id; -ENODEV (a machine without groups), -ENOENT
    (no such parent), -EEXIST or -ENOMEM.  Takes cgroup_lock."""
    if mem_cgroup_disabled():
        return -ENODEV
    memcg = mem_cgroup_alloc(True)
    if memcg == NULL:
        return -ENOMEM
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    parent = find_mem_cgroup(parent_id)
    if parent == NULL:
        rc = -ENOENT
    elif find_child(parent, name) != NULL:
        rc = -EEXIST
    else:
        mem_cgroup_online(memcg, parent, name, limit)
        rc = memcg.id
    spin_unlock(addressof(k.cgroup_lock))
    if rc < 0:
        __mem_cgroup_free(memcg)
    return rc


def get_mem_cgroup(id):
    """A reference to the group with that id, for css_put; NULL when there is none.  Takes
    cgroup_lock."""
    if mem_cgroup_disabled():
        return NULL
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    memcg = find_mem_cgroup(id)
    if memcg != NULL:
        css_get(memcg)
    spin_unlock(addressof(k.cgroup_lock))
    return memcg


def css_get(memcg):
    """One more reference, by somebody who has one or is counted in nr_mms."""
    atomic_add_return64(addressof(memcg.css_refcnt), 1)


def css_put(memcg):
    """Drops a reference.  Never the last: that is the group's own."""
    left = atomic_add_return64(addressof(memcg.css_refcnt), -1)
    VM_BUG_ON(left == 0)


def is_in_subtree(memcg, root):
    """Whether a group is `root` or one of its descendants."""
    while memcg != NULL and memcg != root:
        memcg = memcg.parent
    return memcg != NULL


def mem_cgroup_get_total_stat(memcg, total):
    """Sums up the numbers of a group and its descendants.  Holds cgroup_lock."""
    k = kernel()
    node = k.mem_cgroups.next
    while node != addressof(k.mem_cgroups):
        other = list_entry_mem_cgroup(node)
        if is_in_subtree(other, memcg):
            for item in range(MEM_CGROUP_STAT_NSTATS):
                total[item] += READ_ONCE64(addressof(other.stat[item]))
        node = node.next


def mem_cgroup_read(id, out):
    """Reads what a group says of itself into *out, which is zero.  Returns 0, -ENODEV or -ENOENT.
    Takes cgroup_lock."""
    if mem_cgroup_disabled():
        return -ENODEV
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    memcg = find_mem_cgroup(id)
    if memcg != NULL:
        out.usage = READ_ONCE64(addressof(memcg.res.usage))
        out.max_usage = READ_ONCE64(addressof(memcg.res.max_usage))
        out.limit = READ_ONCE64(addressof(memcg.res.limit))
        out.failcnt = READ_ONCE64(addressof(memcg.res.failcnt))
        for item in range(MEM_CGROUP_STAT_NSTATS):
            out.stat[item] = READ_ONCE64(addressof(memcg.stat[item]))
        mem_cgroup_get_total_stat(memcg, out.total_stat)
    spin_unlock(addressof(k.cgroup_lock))
    return 0 if memcg != NULL else -ENOENT


def mem_cgroup_resize_limit(id, limit):
    """Gives a group another limit.  Returns 0, -ENOENT, -EINVAL (the root has none) or -EBUSY: it
    uses more, and that cannot be freed.  Sleeps."""
    memcg = get_mem_cgroup(id)
    if memcg == NULL:
        return -ENOENT
    rc = -EINVAL
    if memcg.parent != NULL:
        rc = res_counter_set_limit(addressof(memcg.res), limit)
        while rc == -EBUSY and mem_cgroup_hierarchical_reclaim(memcg, GFP_KERNEL, limit):
            rc = res_counter_set_limit(addressof(memcg.res), limit)
    css_put(memcg)
    return rc


def mem_cgroup_remove(id):
    """rmdir: what the group is still charged for goes to its parent.  Returns 0, -ENOENT, or
    -EBUSY: it is the root, has children or address spaces, or (see __mem_cgroup_force_empty) somebody
    keeps hold of it.  Sleeps."""
    if mem_cgroup_disabled():
        return -ENOENT
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    memcg = find_mem_cgroup(id)
    rc = 0 if memcg != NULL else -ENOENT
    if memcg != NULL and (memcg.parent == NULL or memcg.nr_children != 0 or memcg.nr_mms != 0):
        rc = -EBUSY
    if rc == 0:
        memcg.removing = 1
    spin_unlock(addressof(k.cgroup_lock))
    if rc != 0:
        return rc
    rc = __mem_cgroup_force_empty(memcg, 1)
    # From here on nobody can find it through a page.  Who found it before has a reference, or
    # puts the page on a list of it, within lru_lock.
    if rc == 0 and cmpxchg64(addressof(memcg.css_refcnt), 1, 0) != 1:
        rc = -EBUSY
    if rc == 0:
        mem_cgroup_force_empty_lists(memcg)
    spin_lock(addressof(k.cgroup_lock))
    memcg.removing = 0
    if rc == 0:
        list_del(addressof(memcg.list))
        WRITE_ONCE64(addressof(memcg.parent.nr_children), memcg.parent.nr_children - 1)
    spin_unlock(addressof(k.cgroup_lock))
    if rc == 0:
        __mem_cgroup_free(memcg)
    return rc


# ---- whose an address space is -----------------------------------------------

def __mem_cgroup_move_mm(mm, memcg):
    """Whatever `mm` faults in from now on is charged to `memcg`; with NULL it will not fault any
    more.  Holds cgroup_lock; takes memcg_lock."""
    if memcg != NULL:
        WRITE_ONCE64(addressof(memcg.nr_mms), memcg.nr_mms + 1)
    spin_lock(addressof(mm.memcg_lock))
    source = mm.mem_cgroup
    # Marked: mm_match_cgroup looks without the lock.
    WRITE_ONCE64(addressof(mm.mem_cgroup), cast(u64, memcg))
    spin_unlock(addressof(mm.memcg_lock))
    if source != NULL:
        WRITE_ONCE64(addressof(source.nr_mms), source.nr_mms - 1)


def __mem_cgroup_init_mm(mm, oldmm):
    """Puts a new address space into its parent's group, or (NULL) into the root.  Takes
    cgroup_lock."""
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    __mem_cgroup_move_mm(mm, oldmm.mem_cgroup if oldmm != NULL else k.root_mem_cgroup)
    spin_unlock(addressof(k.cgroup_lock))


def __mem_cgroup_exit_mm(mm):
    """An address space that nobody uses any more leaves its group.  Takes cgroup_lock."""
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    __mem_cgroup_move_mm(mm, cast(pointer(MemCgroup), NULL))
    spin_unlock(addressof(k.cgroup_lock))


def mem_cgroup_attach(mm, id):
    """Moves an address space to a group; what it has been charged for stays where it is.  The
    caller has a use of it.  Returns 0, -ENODEV or -ENOENT.  Takes cgroup_lock."""
    if mem_cgroup_disabled():
        return -ENODEV
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    memcg = find_mem_cgroup(id)
    if memcg != NULL:
        __mem_cgroup_move_mm(mm, memcg)
    spin_unlock(addressof(k.cgroup_lock))
    return 0 if memcg != NULL else -ENOENT


def get_mem_cgroup_from_mm(mm):
    """The address space's group, with a reference; the root when there is no address space.  Takes
    memcg_lock: unlocked, it could leave the group, and the group be removed, between the look and
    the reference."""
    if mm == NULL:
        memcg = kernel().root_mem_cgroup
        css_get(memcg)
        return memcg
    spin_lock(addressof(mm.memcg_lock))
    memcg = mm.mem_cgroup
    css_get(memcg)
    spin_unlock(addressof(mm.memcg_lock))
    return memcg


# ---- reclaim at a limit --------------------------------------------------------

def set_mem_cgroup_reclaim(reclaim):
    """Tells this process how pages of a group are freed."""
    global try_to_free_mem_cgroup_pages_hook
    try_to_free_mem_cgroup_pages_hook = reclaim


def mem_cgroup_next_victim(root, behind):
    """The first of `root` and the groups below it whose id is beyond `behind`, or NULL.  Holds cgroup_lock."""
    k = kernel()
    # The list is in the order of their ids.
    node = k.mem_cgroups.next
    while node != addressof(k.mem_cgroups):
        memcg = list_entry_mem_cgroup(node)
        if memcg.id > behind and not memcg.removing and is_in_subtree(memcg, root):
            return memcg
        node = node.next
    return NULL


def mem_cgroup_select_victim(root, from_start):
    """The next of `root` and the groups below it that is to give pages back, with a reference; NULL when
    the last of them has been given out, by whomever.  `from_start`: then it is the first again, and NULL
    means that `root` is being removed.  Takes cgroup_lock."""
    k = kernel()
    spin_lock(addressof(k.cgroup_lock))
    victim = mem_cgroup_next_victim(root, root.last_scanned_child)
    if victim == NULL and from_start:
        victim = mem_cgroup_next_victim(root, 0)
    root.last_scanned_child = victim.id if victim != NULL else 0
    if victim != NULL:
        css_get(victim)
    spin_unlock(addressof(k.cgroup_lock))
    return victim


def mem_cgroup_hierarchical_reclaim(root, gfp, enough):
    """Frees pages of `root` and the groups below it, of one after the other, until it uses no more
    than `enough` bytes, or all of them were asked.  Says whether it does, or any was freed.  The
    caller has a reference to it or one below it.  Sleeps.

    Who is next is known to all who do this for `root`, so that they share the work.  A round may begin in
    the middle, and counts only if this task has asked somebody in it: others may have been given all.
    """
    might_sleep()
    progress = False
    asked = False
    rounds = 0
    while rounds < 2:
        victim = mem_cgroup_select_victim(root, not asked)
        if victim == NULL:
            if not asked:
                break
            asked = False
            rounds += 1
            if rounds == 1:
                # What they have just faulted in may wait to enter a list.
                lru_add_try_drain_all()
            continue
        asked = True
        if mem_cgroup_local_usage(victim) != 0 and try_to_free_mem_cgroup_pages_hook(victim, gfp) != 0:
            progress = True
        css_put(victim)
        if READ_ONCE64(addressof(root.res.usage)) <= enough:
            return True
    return progress


def mem_cgroup_can_reclaim(root):
    """Whether there is anything of `root` and the groups below it that could come back into reach: pages of
    files, wherever they are, or with a swap area any.  Takes cgroup_lock."""
    k = kernel()
    if READ_ONCE64(addressof(k.total_swap_pages)) != 0:
        return True
    found = False
    spin_lock(addressof(k.cgroup_lock))
    node = k.mem_cgroups.next
    while node != addressof(k.mem_cgroups) and not found:
        memcg = list_entry_mem_cgroup(node)
        found = READ_ONCE64(addressof(memcg.stat[MEM_CGROUP_STAT_CACHE])) != 0 and is_in_subtree(memcg, root)
        node = node.next
    spin_unlock(addressof(k.cgroup_lock))
    return found


# ---- a group's LRU lists -----------------------------------------------------

def mem_cgroup_get_local_zonestat(memcg, lru):
    """How many pages of a group are on that list of all zones."""
    total = cast(u64, 0)
    for nid in range(kernel().nr_nodes):
        total += READ_ONCE64(addressof(mem_cgroup_zoneinfo(memcg, nid).count[lru]))
    return total


def mem_cgroup_inactive_anon_is_low(memcg):
    """inactive_anon_is_low for a group, by its size instead of the zone's."""
    inactive = mem_cgroup_get_local_zonestat(memcg, LRU_INACTIVE_ANON)
    active = mem_cgroup_get_local_zonestat(memcg, LRU_ACTIVE_ANON)
    return inactive * calc_inactive_ratio(inactive + active) < active


def mem_cgroup_inactive_file_is_low(memcg):
    """inactive_file_is_low for a group."""
    return mem_cgroup_get_local_zonestat(memcg, LRU_INACTIVE_FILE) < \
        mem_cgroup_get_local_zonestat(memcg, LRU_ACTIVE_FILE)


def mem_cgroup_isolate_pages(memcg, zone, lru, nr_to_scan, swapped, pagelist, nr_taken):
    """isolate_pages_global for a group's list.  Holds lru_lock."""
    scanned = 0
    head = addressof(mem_cgroup_zoneinfo(memcg, zone.node).lists[lru])
    node = head.prev
    while scanned < nr_to_scan and node != head:
        pc = list_entry_page_cgroup(node)
        node = node.prev
        # What the group is not charged for any more is only waiting to be freed.
        if not READ_ONCE32(addressof(pc.flags)) & PCG_USED:
            continue
        page = page_of_cgroup(pc)
        scanned += 1
        if (PageSwapCache(page) or not swapped) and __isolate_lru_page(zone, page, lru):
            list_add_tail(addressof(page.lru), pagelist)
            nr_taken[0] += 1
        else:
            mem_cgroup_rotate_lru_list(page, lru)
    return scanned


# ---- charging ----------------------------------------------------------------

def mem_cgroup_charge_statistics(memcg, flags, charge):
    """Counts a page that comes or goes in the group's own numbers."""
    kind = MEM_CGROUP_STAT_CACHE if flags & PCG_CACHE else MEM_CGROUP_STAT_RSS
    event = MEM_CGROUP_STAT_PGPGIN_COUNT if charge else MEM_CGROUP_STAT_PGPGOUT_COUNT
    atomic_add_return64(addressof(memcg.stat[kind]), PAGE_SIZE if charge else -PAGE_SIZE)
    atomic_add_return64(addressof(memcg.stat[event]), 1)


def __mem_cgroup_try_charge(memcg, gfp, patient):
    """Charges a group, and its ancestors, for a page.  At a limit pages of the group that has reached
    it are freed first, of nobody else.  Returns 0 or, when there was nothing to be freed, -ENOMEM.  The
    caller has a reference, which from then on is the charge's.  Sleeps.

    As when memory is short: as long as there is progress it goes on, for somebody else of the group
    may take what was freed; without, others may have the pages in hand, reclaim or migration, and who
    is `patient` waits for them and tries again, a few times, and until those have let go who still have
    some then.  (2.6.30's `oom`: nobody is killed here, but a program fails.)
    """
    rc = 0
    memset(addressof(wait), 0, sizeof(ReclaimWait))
    while True:
        counter = res_counter_charge(addressof(memcg.res), PAGE_SIZE)
        if counter == NULL:
            break
        over = mem_cgroup_of_counter(counter)
        limit = READ_ONCE64(addressof(counter.limit))
        if limit < PAGE_SIZE:
            rc = -ENOMEM
            break
        before = READ_ONCE64(addressof(over.reclaim_progress))
        if mem_cgroup_hierarchical_reclaim(over, gfp, limit - PAGE_SIZE):
            atomic_add_return64(addressof(over.reclaim_progress), 1)
        elif not patient:
            rc = -ENOMEM
            break
        else:
            reclaim_wait_look(addressof(wait))
            waited = wait.retries < MEM_CGROUP_RECLAIM_RETRIES and (congestion_wait(False) or mem_cgroup_can_reclaim(over))
            if READ_ONCE64(addressof(over.reclaim_progress)) != before:
                reclaim_wait_progress(addressof(wait))
            elif waited:
                wait.retries += 1
            elif not reclaim_wait_for_hands(addressof(wait)) and \
                    READ_ONCE64(addressof(counter.usage)) > limit - PAGE_SIZE:
                # Nor has anybody else given back what was in his hands (mem_cgroup_check_under_limit).
                rc = -ENOMEM
                break
            cpu_yield()
        if kernel_panicked():
            wait_check()
    reclaim_wait_end(addressof(wait))
    return rc


def __mem_cgroup_cancel_charge(memcg):
    """Gives a charge back, and its reference."""
    res_counter_uncharge_until(addressof(memcg.res), cast(pointer(ResCounter), NULL), PAGE_SIZE)
    css_put(memcg)


def mem_cgroup_set_charge(memcg, pc, flags):
    """Makes a charge that of a page, which has none and is on no group's list.  Takes
    page_cgroup->lock."""
    spin_lock(addressof(pc.lock))
    VM_BUG_ON(pc.flags & PCG_USED or page_cgroup_on_lru(pc))
    WRITE_ONCE64(addressof(pc.mem_cgroup), cast(u64, memcg))
    # Release: whoever puts the page on a list looks without the lock.
    smp_store_release32(addressof(pc.flags), pc.flags | PCG_USED | flags)
    spin_unlock(addressof(pc.lock))


def __mem_cgroup_commit_charge(memcg, pc, flags):
    """mem_cgroup_set_charge of a new charge, which is counted."""
    mem_cgroup_charge_statistics(memcg, flags, True)
    mem_cgroup_set_charge(memcg, pc, flags)


def mem_cgroup_charge_common(page, mm, gfp, flags):
    """Charges the group of `mm` for a page.  Returns 0 or -ENOMEM."""
    memcg = get_mem_cgroup_from_mm(mm)
    if __mem_cgroup_try_charge(memcg, gfp, True) != 0:
        css_put(memcg)
        return -ENOMEM
    __mem_cgroup_commit_charge(memcg, lookup_page_cgroup(page), flags)
    return 0


def mem_cgroup_page_is_used(page):
    """Whether a page has somebody who has to be charged for it: it is mapped, or in a cache.

    In this order: an anonymous page is entered in the swap cache before it is unmapped, and leaves
    that for its file when it is entered there.  For the way from the swap cache to a page table
    see __mem_cgroup_commit_charge_swapin.  Acquire: aarch64 would also look at the later place first, and a
    page that moves there between the two looks be in neither."""
    if cast(i32, smp_load_acquire32(addressof(page._mapcount))) >= 0:
        return True
    if smp_load_acquire64(addressof(page.flags)) & cast(u64, 1) << PG_swapcache:
        return True
    mapping = READ_ONCE64(addressof(page.mapping))
    return mapping != 0 and not mapping & PAGE_MAPPING_ANON


def __mem_cgroup_uncharge_common(pc, unless):
    """Gives back the charge of a page, if it has one; not when its page_cgroup has one of the
    flags `unless`, and then not when the page is in use either.  Takes page_cgroup->lock."""
    spin_lock(addressof(pc.lock))
    flags = pc.flags
    if not flags & PCG_USED or (unless and (flags & unless or mem_cgroup_page_is_used(page_of_cgroup(pc)))):
        spin_unlock(addressof(pc.lock))
        return
    # Its name stays, for the list that the page may be on.
    memcg = pc.mem_cgroup
    WRITE_ONCE32(addressof(pc.flags), flags & ~cast(u32, PCG_USED | PCG_CACHE))
    mem_cgroup_charge_statistics(memcg, flags, False)
    spin_unlock(addressof(pc.lock))
    __mem_cgroup_cancel_charge(memcg)


def __mem_cgroup_uncharge_page(page):
    """mem_cgroup_uncharge_page.  The caller has a reference.  Whoever takes the last mapping away
    comes here after it; if the page is migrating then, mem_cgroup_end_migration comes later.

    One may take the last mapping away and another the page out of the swap cache, both at this moment.
    Each has done his own by an atomic, then looks at the other's, and with a full fence in between one
    of them sees both.  On aarch64 the atomic is none for the look behind it: both would leave the
    charge to each other, and the frame be freed with it.  (Who lets go of a migrating page has the
    page_cgroup's lock in common with them instead.)"""
    smp_mb__after_atomic()
    if not mem_cgroup_page_is_used(page):
        __mem_cgroup_uncharge_common(lookup_page_cgroup(page), PCG_MIGRATION)


# ---- swap --------------------------------------------------------------------
#
# A page of the swap cache keeps its charge while it is there, mapped or not.  One that was read
# from its slot has none until somebody maps it, and then is whoever's who is the first.

def __mem_cgroup_try_charge_swapin(page, mm, gfp, memcg):
    """mem_cgroup_try_charge_swapin.  The page is locked, and in the swap cache, which keeps its
    charge.  Returns 0 or -ENOMEM."""
    if READ_ONCE32(addressof(lookup_page_cgroup(page).flags)) & PCG_USED:
        return 0
    memcg[0] = get_mem_cgroup_from_mm(mm)
    if __mem_cgroup_try_charge(memcg[0], gfp, True) == 0:
        return 0
    css_put(memcg[0])
    memcg[0] = NULL
    return -ENOMEM


def mem_cgroup_lru_add_after_commit_swapcache(page):
    """Puts a page that has just been charged on its group's list, if it is on its zone's and nobody put it
    on both meanwhile.  Takes lru_lock."""
    zone = page_zone(page)
    spin_lock(addressof(zone.lru_lock))
    if PageLRU(page) and not page_cgroup_on_lru(lookup_page_cgroup(page)):
        __mem_cgroup_add_lru_list(page, page_lru(page))
    spin_unlock(addressof(zone.lru_lock))


def mem_cgroup_commit_charge_on_lru(page, memcg, flags):
    """__mem_cgroup_commit_charge for a page of the swap cache, which may be on an LRU list.  The page is
    locked, so nobody else charges it.  Takes lru_lock."""
    zone = page_zone(page)
    spin_lock(addressof(zone.lru_lock))
    # If it was charged before it is still on that group's list.  Nobody puts it on one while it is not
    # charged.  (2.6.30: mem_cgroup_lru_del_before_commit_swapcache.)
    __mem_cgroup_del_lru_list(page, page_lru(page))
    spin_unlock(addressof(zone.lru_lock))
    __mem_cgroup_commit_charge(memcg, lookup_page_cgroup(page), flags)
    mem_cgroup_lru_add_after_commit_swapcache(page)


def __mem_cgroup_commit_charge_swapin(page, memcg):
    """mem_cgroup_commit_charge_swapin.  Takes page_cgroup->lock, and lru_lock."""
    if memcg != NULL:
        mem_cgroup_commit_charge_on_lru(page, memcg, 0)
        return
    # It kept its charge in the swap cache, and now that it is mapped will keep it when it has left that.
    # But somebody may have found it unmapped just before, and be about to look whether it is in the swap
    # cache; he is through when we have had the lock.
    pc = lookup_page_cgroup(page)
    spin_lock(addressof(pc.lock))
    VM_BUG_ON_PAGE(not pc.flags & PCG_USED, page)
    spin_unlock(addressof(pc.lock))


def __mem_cgroup_cache_charge_swapin(page, mm, gfp):
    """mem_cgroup_cache_charge_swapin.  Returns 0 or -ENOMEM."""
    memcg = cast(pointer(MemCgroup), NULL)
    if __mem_cgroup_try_charge_swapin(page, mm, gfp, addressof(memcg)) != 0:
        return -ENOMEM
    if memcg != NULL:
        mem_cgroup_commit_charge_on_lru(page, memcg, PCG_CACHE)
    return 0


# ---- migration ---------------------------------------------------------------

def __mem_cgroup_prepare_migration(page, newpage):
    """Charges the new page to the old one's group, and holds both charges: a page in the air has
    no mapping, and from the first entry that is a PTE again others may unmap it.  Seed lines
    633-641.

    The caller has isolated `page`, so that nobody else migrates it.  Returns 0, or -ENOMEM with
    nothing held.
    """
    pc = lookup_page_cgroup(page)
    newpc = lookup_page_cgroup(newpage)
    memcg = cast(pointer(MemCgroup), NULL)
    spin_lock(addressof(pc.lock))
    flags = pc.flags
    VM_BUG_ON_PAGE(flags & PCG_MIGRATION, page)
    WRITE_ONCE32(addressof(pc.flags), flags | PCG_MIGRATION)
    if flags & PCG_USED:
        memcg = pc.mem_cgroup
        css_get(memcg)
    spin_unlock(addressof(pc.lock))
    # Nobody else knows the new page; but mem_cgroup_move_all looks at every frame.
    VM_BUG_ON_PAGE(newpc.flags != 0, newpage)
    WRITE_ONCE32(addressof(newpc.flags), PCG_MIGRATION)
    if memcg != NULL:
        # A page that cannot be moved now can be moved another time.
        if __mem_cgroup_try_charge(memcg, GFP_KERNEL, False) != 0:
            css_put(memcg)
            mem_cgroup_release_hold(newpage)
            mem_cgroup_release_hold(page)
            return -ENOMEM
        __mem_cgroup_commit_charge(memcg, newpc, flags & PCG_CACHE)
    return 0


def mem_cgroup_release_hold(page):
    """Lets a page's charge go its way again; if the page was unmapped meanwhile, that is away.
    Takes page_cgroup->lock."""
    pc = lookup_page_cgroup(page)
    spin_lock(addressof(pc.lock))
    WRITE_ONCE32(addressof(pc.flags), pc.flags & ~cast(u32, PCG_MIGRATION))
    spin_unlock(addressof(pc.lock))
    __mem_cgroup_uncharge_page(page)


def __mem_cgroup_migrate(page, newpage):
    """Hands the old page's charge over to the new page, unless that has one of its own: the page was
    not charged yet when mem_cgroup_prepare_migration looked, but has been since, by who brought it back
    from swap.  The limit has nothing to do with it.  Takes a page_cgroup's lock, twice.

    Both pages are locked and unmapped, and the new one has taken the old one's place.  (The seed charges
    the new page again in remove_migration_pte, line 136, beyond the limit or not at all; since
    Linux 3.17, "mm: memcontrol: rewrite uncharge API", every charge is handed over.)
    """
    pc = lookup_page_cgroup(page)
    newpc = lookup_page_cgroup(newpage)
    if READ_ONCE32(addressof(newpc.flags)) & PCG_USED:
        return
    spin_lock(addressof(pc.lock))
    flags = pc.flags
    memcg = pc.mem_cgroup
    WRITE_ONCE32(addressof(pc.flags), flags & ~cast(u32, PCG_USED | PCG_CACHE))
    spin_unlock(addressof(pc.lock))
    # Now it is nobody's; whoever empties the group sees the reference.
    if flags & PCG_USED:
        mem_cgroup_set_charge(memcg, newpc, flags & PCG_CACHE)


def __mem_cgroup_end_migration(page, newpage):
    """Lets both charges go their way again.  That of the page that is not used any more is away with that: the
    old one, or if it was not moved the new one.  Seed line 720.

    The caller still has a reference to both.  (The seed uncharges the old page when it is unmapped,
    and charges it again if it is to stay, for which there may be no room any more: Linux commit
    01b1ae63c227.  ac39cf8cb86c holds the old charge as here, but not the new one.)
    """
    mem_cgroup_release_hold(page)
    mem_cgroup_release_hold(newpage)


# ---- emptying a group --------------------------------------------------------

def mem_cgroup_move_account(pc, source, to):
    """Has `to`, the parent of `source`, pay for a page instead of it, if `source` does; in any
    case the page is on no list of `source` any more.  Holds lru_lock; takes page_cgroup->lock.

    The parent is charged for it already, with its child, so this never fails.  (2.6.30 charges
    it anew, which its limit may not allow; and isolates the page, which may be somebody else's to
    isolate just then.)
    """
    page = page_of_cgroup(pc)
    if READ_ONCE64(addressof(pc.mem_cgroup)) != cast(u64, source):
        return
    __mem_cgroup_del_lru_list(page, page_lru(page))
    spin_lock(addressof(pc.lock))
    moved = pc.flags & PCG_USED and pc.mem_cgroup == source
    if moved:
        mem_cgroup_charge_statistics(source, pc.flags, False)
        mem_cgroup_charge_statistics(to, pc.flags, True)
        css_get(to)
        WRITE_ONCE64(addressof(pc.mem_cgroup), cast(u64, to))
    spin_unlock(addressof(pc.lock))
    if moved:
        if PageLRU(page):
            __mem_cgroup_add_lru_list(page, page_lru(page))
        res_counter_uncharge_until(addressof(source.res), addressof(to.res), PAGE_SIZE)
        css_put(source)


def mem_cgroup_force_empty_list(memcg, zone, lru):
    """mem_cgroup_move_account for what is on a group's list.  Takes lru_lock, once for PAGEVEC_SIZE
    pages, and once at least: see mem_cgroup_remove."""
    head = addressof(mem_cgroup_zoneinfo(memcg, zone.node).lists[lru])
    left = True
    while left:
        spin_lock(addressof(zone.lru_lock))
        moved = 0
        while moved < PAGEVEC_SIZE and not list_empty(head):
            mem_cgroup_move_account(list_entry_page_cgroup(head.prev), memcg, memcg.parent)
            moved += 1
        left = not list_empty(head)
        spin_unlock(addressof(zone.lru_lock))


def mem_cgroup_force_empty_lists(memcg):
    """mem_cgroup_force_empty_list for all lists that a group has."""
    k = kernel()
    for nid in range(k.nr_nodes):
        for lru in range(NR_LRU_LISTS):
            mem_cgroup_force_empty_list(memcg, k.zones + nid, lru)


def mem_cgroup_move_all(memcg):
    """mem_cgroup_move_account for every frame that the group is charged for, wherever its page is: in
    a pagevec, isolated, or in the air.  Takes lru_lock."""
    k = kernel()
    for pfn in range(k.max_pfn):
        pc = addressof(k.page_cgroup[pfn])
        if page_cgroup_charged_to(pc, memcg):
            zone = page_zone(pfn_to_page(pfn))
            spin_lock(addressof(zone.lru_lock))
            mem_cgroup_move_account(pc, memcg, memcg.parent)
            spin_unlock(addressof(zone.lru_lock))


def __mem_cgroup_force_empty(memcg, references):
    """Moves all that a group is charged for to its parent.  Returns 0; -EINVAL (the root has no
    parent); -EBUSY when it has children or address spaces, or somebody keeps hold of it.  The
    caller has a reference, or is removing it; `references` is how many there are then, with the
    group's own, when it is charged for nothing.  Sleeps.

    Any other reference is that of a charge which is not yet a page's, or is going to be made (by a
    migration, or for an address space that has left), or of reclaim at the limit of a group above, which
    looks for pages here.  So the usage does not tell.  Both end; as long as anybody reclaims, that is
    waited for.  (2.6.30's rmdir waits until there are no references.)
    """
    might_sleep()
    if memcg.parent == NULL:
        return -EINVAL
    began = ktime_get_ns()
    retries = 0
    while retries < MEM_CGROUP_FORCE_EMPTY_RETRIES:
        if READ_ONCE64(addressof(memcg.nr_mms)) != 0 or READ_ONCE64(addressof(memcg.nr_children)) != 0:
            return -EBUSY
        lru_add_drain_all()
        mem_cgroup_force_empty_lists(memcg)
        # A look at every frame, if it must be.
        if smp_load_acquire64(addressof(memcg.css_refcnt)) != references:
            mem_cgroup_move_all(memcg)
        if smp_load_acquire64(addressof(memcg.css_refcnt)) == references:
            return 0
        if not congestion_wait(False):
            retries += 1
            cpu_yield()
        elif ktime_get_ns() - began < MEM_CGROUP_FORCE_EMPTY_NS:
            retries = 0
        else:
            return -EBUSY
        if kernel_panicked():
            wait_check()
    return -EBUSY


def mem_cgroup_force_empty(id):
    """memory.force_empty of a group.  Returns 0, -ENOENT, -EINVAL or -EBUSY."""
    memcg = get_mem_cgroup(id)
    if memcg == NULL:
        return -ENOENT
    rc = __mem_cgroup_force_empty(memcg, 2)
    css_put(memcg)
    return rc
