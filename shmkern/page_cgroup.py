# SPDX-License-Identifier: GPL-2.0-only
"""The groups' own LRU lists: a second set of links through those pages that a group is charged for
(mm/memcontrol.c; 2.6.30 has the page_cgroups in mm/page_cgroup.c).

Each group but the root has in each zone the lists that the zone has, for reclaim at its limit.
A page enters one with the zone's list and leaves it with that, under the same lru_lock.  The root's
pages are on none, for nobody limits it (as since 2.6.32: "memcg: remove the overhead associated with
the root cgroup").

A page need not be charged when it enters its zone's list, nor is it taken off when its charge goes,
which may be where lru_lock cannot be had.  So there are rules:

    A page is on the list of the group that pc->mem_cgroup names, and that name stands still while it is
    there.  It outlives the charge; it changes when the page is charged anew, and then it is on no
    list, or when the group is emptied, within lru_lock.
    A page that is charged while it is on its zone's list (only one of the swap cache is) is taken off
    its old group's list before, and put on the new one's behind that if nobody did meanwhile, each
    within lru_lock (mem_cgroup_commit_charge_on_lru).
    A group that goes takes off its lists what it is no longer charged for (2.6.33: "memcg: ensure list
    is empty at rmdir").

2.6.30 moves a page with its charge by isolating it; here the links change within lru_lock.
"""
from cython import NULL, address, cast, pointer


def __mem_cgroup_add_lru_list(page, lru):
    """Puts a page on its group's list, if it is charged to one.  Holds lru_lock."""
    pc = lookup_page_cgroup(page)
    # Acquire: whom it is charged to was written before that it is.  (2.6.30 has its barrier before both;
    # later "memcg: correctly order reading PCG_USED and pc->mem_cgroup".)
    if not smp_load_acquire32(address(pc.flags)) & PCG_USED:
        return
    # Should the charge go at this moment: whoever removes the group waits for lru_lock then.
    memcg = cast(pointer(MemCgroup), READ_ONCE64(address(pc.mem_cgroup)))
    if mem_cgroup_is_root(memcg):
        return
    mz = mem_cgroup_zoneinfo(memcg, page_to_nid(page))
    list_add(address(pc.lru), address(mz.lists[lru]))
    WRITE_ONCE64(address(mz.count[lru]), mz.count[lru] + 1)


def __mem_cgroup_del_lru_list(page, lru):
    """Takes a page off its group's list, if it is on one.  Holds lru_lock."""
    pc = lookup_page_cgroup(page)
    if not page_cgroup_on_lru(pc):
        return
    mz = mem_cgroup_zoneinfo(pc.mem_cgroup, page_to_nid(page))
    list_del(address(pc.lru))
    pc.lru.next = NULL
    VM_BUG_ON_PAGE(mz.count[lru] == 0, page)
    WRITE_ONCE64(address(mz.count[lru]), mz.count[lru] - 1)


def __mem_cgroup_rotate_lru_list(page, lru):
    """Moves a page to the head of its group's list, if it is on one.  Holds lru_lock."""
    pc = lookup_page_cgroup(page)
    if page_cgroup_on_lru(pc):
        list_move(address(pc.lru), address(mem_cgroup_zoneinfo(pc.mem_cgroup, page_to_nid(page)).lists[lru]))
