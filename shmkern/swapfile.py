# SPDX-License-Identifier: GPL-2.0-only
"""Swap areas: host files of slots, and who uses which slot (mm/swapfile.c).

A swap entry is an area and a slot.  The area's map counts the uses of each slot: one for each
page-table entry that holds the swap entry, and one for the swap cache while it has a page for
it.  A slot whose count comes to 0 is free, and what is in it means nothing any more.

Slots are given out in a row, SWAPFILE_CLUSTER at a time where there is room for so many, so
that what is written together lies together.  Slot 0 is never given out: an entry of 0 is none.

Lock: swap_lock, for all of it.  (Linux gives it back during long searches.  Here a search reads
two bytes a slot, and is over before a waiter would have parked.)
"""
from cython import NULL, address as addressof, cast
from cython.cimports.libc.errno import EINVAL, ENOMEM, EPERM
from cython.cimports.libc.string import memset


# ---- free slots --------------------------------------------------------------

def find_cluster(si):
    """The first of SWAPFILE_CLUSTER free slots in a row; 0 when there are none."""
    run = 0
    for offset in range(si.lowest_bit, si.highest_bit + 1):
        run = 0 if si.swap_map[offset] else run + 1
        if run == SWAPFILE_CLUSTER:
            return offset + 1 - SWAPFILE_CLUSTER
    return 0


def scan_swap_map(si):
    """Takes a free slot of an area, with one use; 0 when there is none.  Holds swap_lock."""
    if si.inuse_pages == si.max - 1:
        return 0
    if si.cluster_nr == 0:
        si.cluster_nr = SWAPFILE_CLUSTER
        if si.max - 1 - si.inuse_pages >= SWAPFILE_CLUSTER:
            offset = find_cluster(si)
            if offset != 0:
                si.cluster_next = offset
    si.cluster_nr -= 1
    offset = si.cluster_next
    if offset < si.lowest_bit or offset > si.highest_bit:
        offset = si.lowest_bit
    while si.swap_map[offset] != 0:
        offset = offset + 1 if offset < si.highest_bit else si.lowest_bit
    si.swap_map[offset] = 1
    WRITE_ONCE64(addressof(si.inuse_pages), si.inuse_pages + 1)
    if offset == si.lowest_bit:
        si.lowest_bit += 1
    if offset == si.highest_bit:
        si.highest_bit -= 1
    if si.inuse_pages == si.max - 1:
        si.lowest_bit = si.max
        si.highest_bit = 0
    si.cluster_next = offset + 1
    return offset


def get_swap_page():
    """A free slot, with one use, which is the caller's; 0 when there is none.  Areas are filled
    one after the other.  Takes swap_lock."""
    k = kernel()
    entry = cast(swp_entry_t, 0)
    if READ_ONCE64(addressof(k.nr_swap_pages)) == 0:
        return entry
    spin_lock(addressof(k.swap_lock))
    for type in range(k.nr_swapfiles):
        si = addressof(k.swap_info[type])
        if si.flags & SWP_WRITEOK:
            offset = scan_swap_map(si)
            if offset != 0:
                WRITE_ONCE64(addressof(k.nr_swap_pages), k.nr_swap_pages - 1)
                entry = swp_entry(type, offset)
                break
    spin_unlock(addressof(k.swap_lock))
    return entry


# ---- uses of a slot ----------------------------------------------------------

def swap_info_get(entry):
    """The area of an entry whose slot is in use, with swap_lock taken."""
    k = kernel()
    type, offset = swp_type(entry), swp_offset(entry)
    BUG_ON(type >= READ_ONCE32(addressof(k.nr_swapfiles)))
    si = addressof(k.swap_info[type])
    spin_lock(addressof(k.swap_lock))
    BUG_ON(not si.flags & SWP_USED or offset == 0 or offset >= si.max or si.swap_map[offset] == 0)
    return si


def swap_entry_free(si, offset):
    """Drops a use of a slot; returns how many are left.  Holds swap_lock."""
    k = kernel()
    si.swap_map[offset] -= 1
    if si.swap_map[offset] == 0:
        si.lowest_bit = min(si.lowest_bit, offset)
        si.highest_bit = max(si.highest_bit, offset)
        WRITE_ONCE64(addressof(si.inuse_pages), si.inuse_pages - 1)
        if si.flags & SWP_WRITEOK:
            WRITE_ONCE64(addressof(k.nr_swap_pages), k.nr_swap_pages + 1)
    return si.swap_map[offset]


def swap_free(entry):
    """Drops a use of an entry.  Takes swap_lock."""
    si = swap_info_get(entry)
    swap_entry_free(si, swp_offset(entry))
    spin_unlock(addressof(kernel().swap_lock))


def swap_duplicate(entry):
    """Takes another use of an entry, if its slot is in use.  Says whether it did.  Takes
    swap_lock.

    Whoever has a use of its own, or the lock of a page-table entry that is one, gets another one
    for sure; others may come too late.
    """
    k = kernel()
    type, offset = swp_type(entry), swp_offset(entry)
    BUG_ON(type >= READ_ONCE32(addressof(k.nr_swapfiles)))
    si = addressof(k.swap_info[type])
    spin_lock(addressof(k.swap_lock))
    # The area may have been given back since the entry was seen, and its map be another's.
    used = si.flags & SWP_USED and offset < si.max and si.swap_map[offset] != 0
    if used:
        # One for each task at most, and they are not so many.
        BUG_ON(si.swap_map[offset] >= SWAP_MAP_MAX)
        si.swap_map[offset] += 1
    spin_unlock(addressof(k.swap_lock))
    return used


def swap_slot_in_use(si, offset):
    """Whether a slot of an area has a use, at this moment.  Takes swap_lock."""
    spin_lock(addressof(kernel().swap_lock))
    used = si.swap_map[offset] != 0
    spin_unlock(addressof(kernel().swap_lock))
    return used


def valid_swaphandles(entry, offset):
    """The slots that are worth reading together with an entry's: of its block of 2^page_cluster, those
    in use that lie in a row with it.  Returns how many, with the entry's own, and in *offset the first;
    0 when there is no other.  Takes swap_lock.

    Any of them may be free again at once: read_swap_cache_async takes a use of its own.
    """
    k = kernel()
    cluster = READ_ONCE32(addressof(k.page_cluster))
    if cluster == 0:
        return 0
    size = cast(u64, 1) << cluster
    si = addressof(k.swap_info[swp_type(entry)])
    low = swp_offset(entry)
    high = low + 1
    first = low & ~(size - 1)
    spin_lock(addressof(k.swap_lock))
    end = min(first + size, si.max)
    # The area may have been given back since the entry was seen, and be another without such a slot.
    if si.flags & SWP_USED and low < end:
        while high < end and si.swap_map[high] != 0:
            high += 1
        # Slot 0 is never given out.
        while low > max(first, cast(u64, 1)) and si.swap_map[low - 1] != 0:
            low -= 1
    spin_unlock(addressof(k.swap_lock))
    offset[0] = low
    return high - low if high - low > 1 else 0


def page_swapcount(page):
    """How many page-table entries hold the entry of a page of the swap cache.  The page is
    locked.  Takes swap_lock."""
    si = swap_info_get(page.private)
    # Without the cache's own.
    count = si.swap_map[swp_offset(page.private)] - 1
    spin_unlock(addressof(kernel().swap_lock))
    return count


# ---- areas -------------------------------------------------------------------

def find_swap_map(size):
    """Room for a map of `size` slots among those of the other areas; NULL when there is none.
    Holds swap_lock."""
    k = kernel()
    start = 0
    moved = True
    while moved:
        moved = False
        for type in range(k.nr_swapfiles):
            si = addressof(k.swap_info[type])
            if si.flags & SWP_USED:
                place = cast(u64, si.swap_map - k.swap_maps)
                if start < place + si.max and place < start + size:
                    start = place + si.max
                    moved = True
    if start + size > k.swap_maps_size:
        return NULL
    return k.swap_maps + start


def is_swap_file(dev, ino):
    """Whether a host file is that of an area (IS_SWAPFILE).  Takes swap_lock."""
    k = kernel()
    found = False
    spin_lock(addressof(k.swap_lock))
    for type in range(k.nr_swapfiles):
        si = addressof(k.swap_info[type])
        if si.flags & SWP_USED and si.swap_file.i_dev == dev and si.swap_file.i_ino == ino:
            found = True
    spin_unlock(addressof(k.swap_lock))
    return found


def do_swapon(host_fd, pages, dev, ino):
    """Makes an area of `pages` slots in init's open host file, which has room for them and for
    slot 0; `dev` and `ino` tell it from others, and it is no area yet.  Returns its number, -EINVAL (no
    slots), -EPERM (there are MAX_SWAPFILES areas) or -ENOMEM (no room for the map).  Takes swap_lock."""
    k = kernel()
    if pages == 0 or pages >= cast(u64, 1) << SWP_INDEX_TYPE_SHIFT:
        return -EINVAL
    spin_lock(addressof(k.swap_lock))
    type = cast(u32, 0)
    while type < k.nr_swapfiles and k.swap_info[type].flags & SWP_USED:
        type += 1
    swap_map = find_swap_map(pages + 1)
    if type == MAX_SWAPFILES or swap_map == NULL:
        spin_unlock(addressof(k.swap_lock))
        return -EPERM if type == MAX_SWAPFILES else -ENOMEM
    si = addressof(k.swap_info[type])
    memset(swap_map, 0, (pages + 1) * 2)
    swap_map[0] = SWAP_MAP_BAD
    si.swap_map = swap_map
    si.max = pages + 1
    si.inuse_pages = 0
    si.lowest_bit = si.cluster_next = 1
    si.highest_bit = pages
    si.cluster_nr = 0
    si.swap_file.i_id = atomic_add_return64(addressof(k.next_inode_id), 1)
    si.swap_file.i_dev = dev
    si.swap_file.i_ino = ino
    si.swap_file.i_host_fd = host_fd
    si.swap_file.i_writable = 1
    si.swap_file.i_size = si.max << PAGE_SHIFT
    si.flags = SWP_USED
    set_swap_writeok(si, True)
    if type == k.nr_swapfiles:
        WRITE_ONCE32(addressof(k.nr_swapfiles), type + 1)
    spin_unlock(addressof(k.swap_lock))
    return type


def set_swap_writeok(si, writeok):
    """Lets slots of an area be given out, or no longer; they count as long as they may.  Holds
    swap_lock."""
    k = kernel()
    pages = si.max - 1
    free = pages - si.inuse_pages
    if writeok:
        WRITE_ONCE64(addressof(si.flags), si.flags | SWP_WRITEOK)
    else:
        WRITE_ONCE64(addressof(si.flags), si.flags & ~cast(u64, SWP_WRITEOK))
        pages = -pages
        free = -free
    WRITE_ONCE64(addressof(k.total_swap_pages), k.total_swap_pages + pages)
    WRITE_ONCE64(addressof(k.nr_swap_pages), k.nr_swap_pages + free)
