# SPDX-License-Identifier: GPL-2.0-only
"""swapoff: brings everything back that is in an area (mm/swapfile.c).

2.6.30 goes from slot to slot, and for each through all page tables.  Later kernels go through
the page tables once and fault in every entry of the area that they meet, then take out of the
swap cache what only that has; and again, for an entry may have been forked to where they had
already been.  So it is done here.

Locks: mmap_sem for reading, of one address space at a time; then those of a fault.
"""
from cython import NULL, address as addressof, cast
from cython.cimports.libc.errno import EINVAL


def mmget_not_zero(mm):
    """Takes a use of an address space unless the last one is gone; says whether it did."""
    users = READ_ONCE32(addressof(mm.mm_users))
    while users != 0:
        seen = cmpxchg32(addressof(mm.mm_users), users, users + 1)
        if seen == users:
            return True
        users = seen
    return False


def next_mm(mm):
    """The address space behind `mm` on init_mmlist (the first for NULL), with a use taken, and the
    caller's use of `mm` dropped; NULL at the end.  Takes mmlist_lock."""
    k = kernel()
    found = NULL
    spin_lock(addressof(k.mmlist_lock))
    node = k.init_mmlist.next if mm == NULL else mm.mmlist.next
    while node != addressof(k.init_mmlist):
        if mmget_not_zero(list_entry_mm(node)):
            found = list_entry_mm(node)
            break
        node = node.next
    spin_unlock(addressof(k.mmlist_lock))
    if mm != NULL:
        mmput(mm)
    return found


def unuse_pte_range(vma, pmd, address, end, type):
    """Faults in every entry of the area in one table's part of [address, end).  Returns 0,
    -ENOMEM or -VM_FAULT_SIGBUS."""
    while address < end:
        pte = READ_PTE(pte_offset(pmd, address))
        while is_swap_pte(pte) and swp_type(pte_to_swp_entry(pte)) == type:
            rc = handle_mm_fault(vma.vm_mm, vma, address, 0)
            if rc != 0:
                return rc
            pte = READ_PTE(pte_offset(pmd, address))
        address += PAGE_SIZE
    return 0


def unuse_mm(mm, type):
    """unuse_pte_range for a whole address space.  Takes mmap_sem for reading."""
    rc = 0
    down_read(addressof(mm.mmap_sem))
    vma = mm.mmap
    while vma != NULL and rc == 0:
        at = vma.vm_start
        while rc == 0:
            pmd = next_pmd(mm, addressof(at), vma.vm_end)
            if pmd == NULL:
                break
            stop = addr_end(at, vma.vm_end, PMD_MASK)
            rc = unuse_pte_range(vma, pmd, at, stop, type)
            at = stop
        vma = vma.vm_next
    up_read(addressof(mm.mmap_sem))
    return rc


def unuse_all_mms(type):
    """unuse_mm for every address space."""
    rc = 0
    mm = next_mm(NULL)
    while mm != NULL:
        if READ_ONCE64(addressof(mm.swap_ents)) != 0 and rc == 0:
            rc = unuse_mm(mm, type)
        mm = next_mm(mm)
    return rc


def next_swapped_inode(inode):
    """The inode in use behind `inode` on the list (the first for NULL) that has pages in swap, with a
    use taken, and the caller's use of `inode` dropped; NULL at the end.  Takes inode_lock."""
    k = kernel()
    found = NULL
    spin_lock(addressof(k.inode_lock))
    node = k.inodes.next if inode == NULL else inode.i_list.next
    while node != addressof(k.inodes) and found == NULL:
        other = list_entry_inode(node)
        # Without a use it is on its way out, and gives its slots back itself.
        if other.i_count > 0 and READ_ONCE64(addressof(other.i_swapped)) != 0:
            other.i_count += 1
            found = other
        node = node.next
    spin_unlock(addressof(k.inode_lock))
    if inode != NULL:
        iput(inode)
    return found


def shmem_unuse_inode(mapping, type):
    """Brings back what a file of shared anonymous memory has in the area.  Returns as
    unuse_pte_range."""
    index = 0
    while True:
        entry = shmem_next_swapped(mapping, addressof(index))
        if entry == 0:
            return 0
        if swp_type(entry) == type:
            rc = shmem_swapin(mapping, index, entry)
            if rc != 0:
                return rc
        index += 1


def shmem_unuse(type):
    """shmem_unuse_inode for every file."""
    rc = 0
    inode = next_swapped_inode(NULL)
    while inode != NULL:
        if rc == 0:
            rc = shmem_unuse_inode(addressof(inode.i_data), type)
        inode = next_swapped_inode(inode)
    return rc


def unuse_cache(si, type):
    """Takes those pages of the area out of the swap cache that have no swap entry left."""
    for offset in range(1, si.max):
        if not swap_slot_in_use(si, offset):
            continue
        entry = swp_entry(type, offset)
        page = lookup_swap_cache(entry)
        if page == NULL:
            continue
        lock_page(page)
        wait_on_page_writeback(page)
        if PageSwapCache(page) and page.private == entry:
            try_to_free_swap(page)
        unlock_page(page)
        put_page(page)


def try_to_unuse(si, type):
    """Brings back what is in an area, of which no slot is given out any more.  Returns 0, -ENOMEM,
    or -VM_FAULT_SIGBUS for a slot that cannot be read.  It hangs when the area has not become emptier
    for as long as the hung-task limit."""
    fewest = si.max
    since = cast(u64, 0)
    while True:
        if READ_ONCE64(addressof(si.inuse_pages)) == 0:
            return 0
        began = ktime_get_ns()
        rc = unuse_all_mms(type)
        if rc == 0:
            rc = shmem_unuse(type)
        if rc != 0:
            return rc
        unuse_cache(si, type)
        # Behind the round, in which it may have got on; and a round that took long, for its I/O or because
        # this process could not run, counts for a slice, as in wait_check.
        inuse = READ_ONCE64(addressof(si.inuse_pages))
        now = ktime_get_ns()
        if inuse < fewest:
            fewest = inuse
            since = now
        elif now - began > 2 * WAIT_SLICE_NS:
            since += now - began - WAIT_SLICE_NS
        # What is left is being forked, zapped or read this moment, and nobody wakes us after that.
        wait_begin(WAIT_SWAPOFF, si)
        # Each round has had waits of its own; it is the rounds that must not go on for ever.
        current().wait_since = since
        cpu_yield()
        wait_check()
        wait_end()


def do_swapoff(type):
    """Gives an area back, when everything in it is in memory.  Returns 0, -EINVAL (there is no such
    area, or somebody else is at it), -ENOMEM or -EIO: then it stays, and nothing is lost.  Sleeps.
    Takes swap_lock."""
    k = kernel()
    if type >= MAX_SWAPFILES:
        return -EINVAL
    si = addressof(k.swap_info[type])
    spin_lock(addressof(k.swap_lock))
    if not si.flags & SWP_WRITEOK:
        spin_unlock(addressof(k.swap_lock))
        return -EINVAL
    set_swap_writeok(si, False)
    spin_unlock(addressof(k.swap_lock))
    rc = try_to_unuse(si, type)
    spin_lock(addressof(k.swap_lock))
    if rc == 0:
        si.flags = 0
    else:
        set_swap_writeok(si, True)
    spin_unlock(addressof(k.swap_lock))
    return rc


def swapoff(type):
    """do_swapoff for init: 0 or a negative errno."""
    kernel_enter()
    rc = do_swapoff(type)
    kernel_exit()
    return rc
