# SPDX-License-Identifier: GPL-2.0-only
"""move_pages(2): moves pages of a task, named by their addresses, or tells where they are.
Seed lines 803-1099.

The arrays are the caller's own memory.  They are read and written a chunk at a time, with no
lock held, since each access may fault; within a chunk mmap_sem of the target is held for
reading from the look at an address until its page has moved.  (The seed takes
all arrays into one large allocation, and asks under mmap_sem, where a fault of the caller on
its own array may wait for ever.  Linux has read them in chunks since commit 3140a2273009, and
empties the pagevecs once a call since 35282a2de4e5.)

Line numbers are the seed's.
"""
from cython import NULL, address as addressof, cast, pointer, sizeof
from cython.cimports.libc.errno import E2BIG, EACCES, EFAULT, EINVAL, ENODEV, ENOENT, ENOMEM, EPERM


# ---- moving ------------------------------------------------------------------

def new_page_node(page, private, result):
    """A page on the node that the request names for `page`.  `private` is the address of
    the PageToNode array, which ends with node MAX_NUMNODES.  Lines 813-828."""
    pm = cast(pointer(PageToNode), private)
    while pm.node != MAX_NUMNODES and pm.page != page:
        pm += 1
    if pm.node == MAX_NUMNODES:
        return NULL
    result[0] = addressof(pm.status)
    return alloc_pages_node(pm.node, GFP_HIGHUSER_MOVABLE | __GFP_THISNODE, 0)


def add_page_for_migration(mm, pp, migrate_all, pagelist):
    """Isolates the page of one request onto the list.  Returns its status so far: 0 when it
    is on the list, its node when it is there already, or -EFAULT (no VMA, or the zero
    page), -ENOENT (nothing mapped), -EACCES (shared with another address space), -EBUSY.
    Lines 850-904.  Holds mmap_sem for reading."""
    vma = find_vma(mm, pp.addr)
    if vma == NULL or pp.addr < vma.vm_start or not vma_migratable(vma):
        return -EFAULT
    page = follow_page(vma, pp.addr, 0)
    if page == NULL:
        return -ENOENT
    err = -EFAULT
    if not PageReserved(page):
        err = page_to_nid(page)
        if err != pp.node:
            if page_mapcount(page) > 1 and not migrate_all:
                err = -EACCES
            else:
                err = isolate_lru_page(page)
                if err == 0:
                    # Only now: of two requests for one page the one that moves it counts.
                    pp.page = page
                    list_add_tail(addressof(page.lru), pagelist)
    # Isolation took a reference of its own.
    put_page(page)
    return err


def do_move_page_to_node_array(mm, pm, migrate_all):
    """Moves the pages at the addresses of `pm`, which ends with node MAX_NUMNODES, to their
    nodes, and leaves each one's outcome in its status.  Lines 830-913.

    Returns as migrate_pages.  Takes mmap_sem for reading.
    """
    INIT_LIST_HEAD(addressof(pagelist))
    down_read(addressof(mm.mmap_sem))
    migrate_begin()
    pp = pm
    while pp.node != MAX_NUMNODES:
        # Matches no page that is moved.
        pp.page = ZERO_PAGE()
        pp.status = add_page_for_migration(mm, pp, migrate_all, addressof(pagelist))
        pp += 1
    err = 0
    if not list_empty(addressof(pagelist)):
        err = migrate_pages(addressof(pagelist), new_page_node, cast(u64, pm))
    migrate_end()
    up_read(addressof(mm.mmap_sem))
    return err


def get_page_to_node(pp, args, index):
    """Reads request number `index` from the caller's arrays.  Returns 0, -EFAULT, -ENODEV when the
    node has no memory, or -EACCES when the target may not use it.  Lines 948-971."""
    if copy_in(addressof(pp.addr), args.pages + index * sizeof(u64), sizeof(u64)) != 0 or \
            copy_in(addressof(pp.node), args.nodes + index * sizeof(int), sizeof(int)) != 0:
        return -EFAULT
    if not node_state(pp.node, N_HIGH_MEMORY):
        return -ENODEV
    return 0 if node_isset(pp.node, args.task_nodes) else -EACCES


def do_pages_move_chunk(mm, args, first, count, pm, migrate_all):
    """Moves `count` pages from request number `first` on; `pm` has room for one more.  Returns 0,
    or a negative errno: then none of the chunk's statuses need have been written."""
    for index in range(count):
        rc = get_page_to_node(addressof(pm[index]), args, first + index)
        if rc != 0:
            return rc
    pm[count].node = MAX_NUMNODES
    rc = do_move_page_to_node_array(mm, pm, migrate_all)
    if rc < 0:
        return rc
    # Also when some pages would not move: each says so itself.
    for index in range(count):
        if copy_out(args.status + (first + index) * sizeof(int), addressof(pm[index].status), sizeof(int)) != 0:
            return -EFAULT
    return 0


def do_pages_move(mm, args, migrate_all):
    """Moves pages to nodes and writes the array of statuses.  Lines 916-988.

    Returns 0 also when some pages were not moved; -E2BIG for more pages than there can be,
    -ENOMEM without room for a chunk or when a node is full, -EFAULT, -ENODEV, -EACCES.  What lies before
    the chunk with the error is done, statuses included.
    """
    if args.nr_pages >= ~cast(u64, 0) // sizeof(PageToNode) - 1:
        return -E2BIG
    chunk = alloc_page(GFP_KERNEL)
    if chunk == NULL:
        return -ENOMEM
    migrate_prep()
    rc = 0
    first = 0
    while first < args.nr_pages and rc == 0:
        count = min(args.nr_pages - first, cast(u64, MOVE_PAGES_CHUNK))
        rc = do_pages_move_chunk(mm, args, first, count, cast(pointer(PageToNode), page_address(chunk)), migrate_all)
        first += count
    put_page(chunk)
    return rc


# ---- asking ------------------------------------------------------------------

def page_status(mm, addr):
    """Where the page at `addr` is: its node, -EFAULT without a VMA or for a device's memory, -ENOENT when
    nothing is mapped or it is the zero page.  Lines 1011-1028."""
    vma = find_vma(mm, addr)
    # All of a device's area is mapped, to frames without a struct page (follow_page: bad_page).
    if vma == NULL or addr < vma.vm_start or vma.vm_flags & VM_PFNMAP:
        return -EFAULT
    page = follow_page(vma, addr, 0)
    if page == NULL:
        return -ENOENT
    err = -ENOENT
    if not PageReserved(page):
        err = page_to_nid(page)
    put_page(page)
    return err


def do_pages_stat_array(mm, count, addrs, status):
    """Fills `status` with page_status for each address.  Takes mmap_sem for reading."""
    down_read(addressof(mm.mmap_sem))
    for index in range(count):
        status[index] = page_status(mm, addrs[index])
    up_read(addressof(mm.mmap_sem))


def do_pages_stat(mm, args):
    """Tells for each page where it is.  Returns 0 or -EFAULT, with what lies before written.
    Lines 990-1036."""
    first = 0
    while first < args.nr_pages:
        count = min(args.nr_pages - first, cast(u64, STAT_PAGES_CHUNK))
        if copy_in(addrs, args.pages + first * sizeof(u64), count * sizeof(u64)) != 0:
            return -EFAULT
        do_pages_stat_array(mm, count, addrs, status)
        if copy_out(args.status + first * sizeof(int), status, count * sizeof(int)) != 0:
            return -EFAULT
        first += count
    return 0


# ---- the system call ---------------------------------------------------------

def do_move_pages(pid, args, flags):
    """move_pages(2), lines 1043-1099; without an array of nodes it only asks.

    Returns 0, or in this order -EINVAL (flags), -EPERM (MPOL_MF_MOVE_ALL without CAP_SYS_NICE),
    -ESRCH, -EINVAL (no address space), -EPERM (not ours to move), the security module's
    refusal, and what do_pages_move or do_pages_stat return.
    """
    if flags & ~(MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        return -EINVAL
    if flags & MPOL_MF_MOVE_ALL and not capable(CAP_SYS_NICE):
        return -EPERM
    rc = get_task_memory(pid, addressof(target))
    if rc != 0:
        return rc
    rc = may_move_memory(addressof(target))
    if rc == 0:
        rc = security_task_movememory(addressof(target))
    args.task_nodes = target.mems_allowed
    if rc == 0:
        if args.nodes:
            rc = do_pages_move(target.mm, args, flags & MPOL_MF_MOVE_ALL)
        else:
            rc = do_pages_stat(target.mm, args)
    mmput(target.mm)
    return rc
