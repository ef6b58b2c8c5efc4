# SPDX-License-Identifier: GPL-2.0-only
"""The system calls mbind, set_mempolicy, get_mempolicy and migrate_pages (mm/mempolicy.c).

The policy itself, and allocation by it, are in mempolicy.py.  Here a policy is put on a range
of areas, and the pages that lie on other nodes are found (check_range) and moved.

Locks: mmap_sem, for writing by mbind; under it alloc_lock for a moment, and the split lock
while pages are looked for.  Masks in programs' memory are copied before and after.
"""
from cython import NULL, address as addressof, cast, pointer, sizeof
from cython.cimports.libc.errno import EFAULT, EINVAL, EIO, ENOMEM, EPERM


# ---- pages in the wrong place --------------------------------------------------

def migrate_page_add(page, queue):
    """Isolates a page onto the queue's list.  One that others map is left alone without
    MPOL_MF_MOVE_ALL, and counted as one that stays, as is one that somebody else has isolated.
    Holds a split lock under which it is mapped."""
    if (queue.flags & MPOL_MF_MOVE_ALL or page_mapcount(page) == 1) and isolate_lru_page(page) == 0:
        list_add_tail(addressof(page.lru), queue.pagelist)
    else:
        queue.nr_unmovable += 1


def check_pte_range(vma, pmd, address, end, queue):
    """Looks at one table's part of [address, end) for pages on the queue's nodes (on others, with
    MPOL_MF_INVERT).  With one of the MOVE flags they are queued; else the first is enough, and
    it says whether there is one."""
    ptep = pte_offset(pmd, address)
    ptl = pte_lockptr(pmd)
    found = False
    invert = queue.flags & MPOL_MF_INVERT
    spin_lock(ptl)
    while address < end and not found:
        pte = READ_PTE(ptep)
        # The zero page lies where it lies, and so does what has no struct page.
        if pte_present(pte) and not pte_special(pte):
            page = pte_page(pte)
            if node_isset(page_to_nid(page), queue.nodes) != (invert != 0):
                if queue.flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
                    migrate_page_add(page, queue)
                else:
                    found = True
        ptep += 1
        address += PAGE_SIZE
    spin_unlock(ptl)
    return found


def check_area(vma, start, end, queue):
    """check_pte_range for all tables of [start, end), inside `vma`.  Returns 0 or -EIO."""
    at = start
    while True:
        pmd = next_pmd(vma.vm_mm, addressof(at), end)
        if pmd == NULL:
            return 0
        stop = addr_end(at, end, PMD_MASK)
        if check_pte_range(vma, pmd, at, stop, queue):
            return -EIO
        at = stop


def check_range(mm, start, end, queue):
    """Finds the misplaced pages of [start, end).  Holds mmap_sem.

    Returns 0; -EFAULT when there is a hole in the range (unless MPOL_MF_DISCONTIG_OK), or no area from
    `start` on; -EIO for a misplaced page with MPOL_MF_STRICT alone.  What is queued until then stays
    so.  (2.6.30 overlooks a hole before the first area, and one at the end with an area behind it.)
    """
    vma = find_vma(mm, start)
    if vma == NULL:
        return -EFAULT
    reached = start
    while vma != NULL and vma.vm_start < end:
        if vma.vm_start > reached and not queue.flags & MPOL_MF_DISCONTIG_OK:
            return -EFAULT
        if queue.flags & MPOL_MF_STRICT or \
                (queue.flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL) and vma_migratable(vma)):
            if check_area(vma, max(vma.vm_start, start), min(vma.vm_end, end), queue) != 0:
                return -EIO
        reached = vma.vm_end
        vma = vma.vm_next
    if reached < end and not queue.flags & MPOL_MF_DISCONTIG_OK:
        return -EFAULT
    return 0


# ---- mbind ---------------------------------------------------------------------

def policy_vma(vma, pol):
    """Gives an area a policy, or what it maps if that is whose policy it is; NULL for none.  Returns 0
    or -ENOMEM.  Holds mmap_sem for writing."""
    set_policy = vma_ops(vma).set_policy
    if set_policy != NULL:
        return set_policy(vma, pol)
    old = vma.vm_policy
    mpol_get(pol)
    vma.vm_policy = pol
    mpol_put(old)
    return 0


def mbind_range(mm, start, end, pol):
    """Gives the areas of [start, end) a policy, or what they map; NULL for none.  Holds mmap_sem for
    writing.

    Returns 0; or -ENOMEM, with nothing changed but what lies before an object that cannot have its
    policy.  Areas that have become equal are merged.  (2.6.30 leaves them split, until there are too
    many; mended by Linux commit 9d8cebd4bcd7.)
    """
    if carve_range(mm, start, end) != 0:
        return -ENOMEM
    vma = find_vma(mm, start)
    while vma != NULL and vma.vm_start < end:
        if policy_vma(vma, pol) != 0:
            merge_boundary(mm, vma.vm_start)
            merge_boundary(mm, end)
            return -ENOMEM
        vma = vma_merge(mm, vma).vm_next
    return 0


def new_vma_page(page, private, result):
    """A page for what mbind moves, by the policy of the area that maps it: `private` is the first
    area of the range."""
    vma = cast(pointer(VmAreaStruct), private)
    address = page_address_in_vma(page, vma)
    while address == 0 and vma.vm_next != NULL:
        vma = vma.vm_next
        address = page_address_in_vma(page, vma)
    if address == 0:
        vma = NULL
    return alloc_page_vma(GFP_HIGHUSER_MOVABLE, vma, address)


def mbind_locked(mm, start, end, pol, nodes, flags):
    """mbind(2) with mmap_sem held for writing and a policy whose nodes are set."""
    INIT_LIST_HEAD(addressof(pagelist))
    queue.nodes = nodes
    queue.flags = flags | MPOL_MF_INVERT
    queue.pagelist = addressof(pagelist)
    queue.nr_unmovable = 0
    migrate_begin()
    rc = check_range(mm, start, end, addressof(queue))
    if rc == 0:
        rc = mbind_range(mm, start, end, pol)
    stayed = 0
    if rc != 0:
        putback_lru_pages(addressof(pagelist))
    elif not list_empty(addressof(pagelist)):
        stayed = migrate_pages(addressof(pagelist), new_vma_page, cast(u64, find_vma(mm, start)))
    migrate_end()
    # Also when a page was not even tried: Linux commits a7f40cfe3b7a and d883544515aa.
    if rc == 0 and flags & MPOL_MF_STRICT and (stayed != 0 or queue.nr_unmovable != 0):
        return -EIO
    return rc


def do_mbind(start, length, mode, mode_flags, nodes, flags):
    """mbind(2), with its mask in hand.

    Returns 0 or, in this order, -EINVAL (flags), -EPERM (MPOL_MF_MOVE_ALL without CAP_SYS_NICE),
    -EINVAL (unaligned, wraps around, no nodes where there must be, or the other way round),
    -ENOMEM, -EINVAL (none of the nodes may be used), -EFAULT (a hole), -EIO.  After the last,
    with a MOVE flag, the policy is set all the same.
    """
    if flags & ~cast(u64, MPOL_MF_STRICT | MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        return -EINVAL
    if flags & MPOL_MF_MOVE_ALL and not capable(CAP_SYS_NICE):
        return -EPERM
    if start & ~PAGE_MASK:
        return -EINVAL
    if mode == MPOL_DEFAULT:
        flags &= ~cast(u64, MPOL_MF_STRICT)
    end = start + PAGE_ALIGN(length)
    if end < start:
        return -EINVAL
    if end == start:
        return 0
    pol = mpol_new(mode, mode_flags, nodes)
    if IS_ERR(pol):
        return PTR_ERR(pol)
    if pol == NULL:
        # Taking policies away is as well where nothing is mapped.
        flags |= MPOL_MF_DISCONTIG_OK
    if flags & (MPOL_MF_MOVE | MPOL_MF_MOVE_ALL):
        migrate_prep()
    me = current()
    mm = me.mm
    down_write(addressof(mm.mmap_sem))
    spin_lock(addressof(me.alloc_lock))
    rc = mpol_set_nodemask(pol, nodes)
    spin_unlock(addressof(me.alloc_lock))
    if rc == 0:
        rc = mbind_locked(mm, start, end, pol, nodes, flags)
    up_write(addressof(mm.mmap_sem))
    mpol_put(pol)
    return rc


# ---- a task's policy -------------------------------------------------------------

def do_set_mempolicy(mode, flags, nodes):
    """set_mempolicy(2), with its mask in hand.  Returns 0, -EINVAL or -ENOMEM."""
    pol = mpol_new(mode, flags, nodes)
    if IS_ERR(pol):
        return PTR_ERR(pol)
    me = current()
    spin_lock(addressof(me.alloc_lock))
    rc = mpol_set_nodemask(pol, nodes)
    if rc != 0:
        spin_unlock(addressof(me.alloc_lock))
        mpol_put(pol)
        return rc
    old = me.mempolicy
    me.mempolicy = pol
    if pol != NULL and pol.mode == MPOL_INTERLEAVE:
        me.il_next = first_node(pol.nodes)
    spin_unlock(addressof(me.alloc_lock))
    mpol_put(old)
    return 0


def get_policy_nodemask(pol):
    """A policy's nodes as a program is told; none for the local node."""
    if pol == NULL:
        return 0
    if pol.mode == MPOL_PREFERRED:
        return 0 if pol.flags & MPOL_F_LOCAL else node_bit(pol.preferred_node)
    return pol.nodes


def lookup_node(vma, address):
    """The node of the page at `address`, which is faulted in if need be; -EFAULT where nothing can be
    read, or -ENOMEM.  Holds mmap_sem for reading."""
    if not vma.vm_flags & VM_READ:
        return -EFAULT
    rc = 0
    page = get_user_page(vma, address & PAGE_MASK, 0, addressof(rc))
    if page == NULL:
        return rc
    rc = page_to_nid(page)
    put_page(page)
    return rc


def describe_policy(pol, vma, address, flags, policy, nodes):
    """What get_mempolicy says of a policy: of an area if there is one, else the task's."""
    if flags & MPOL_F_NODE:
        if vma != NULL:
            rc = lookup_node(vma, address)
            if rc < 0:
                return rc
            policy[0] = rc
        elif pol != NULL and pol.mode == MPOL_INTERLEAVE:
            policy[0] = current().il_next
        else:
            return -EINVAL
    elif pol == NULL:
        policy[0] = MPOL_DEFAULT
    else:
        policy[0] = pol.mode | (pol.flags & MPOL_MODE_FLAGS)
    nodes[0] = get_policy_nodemask(pol)
    return 0


def do_get_mempolicy(address, flags, policy, nodes):
    """get_mempolicy(2).  Returns 0, -EINVAL, or -EFAULT when nothing is mapped at `address`."""
    me = current()
    if flags & ~cast(u64, MPOL_F_NODE | MPOL_F_ADDR | MPOL_F_MEMS_ALLOWED):
        return -EINVAL
    if flags & MPOL_F_MEMS_ALLOWED:
        if flags & (MPOL_F_NODE | MPOL_F_ADDR):
            return -EINVAL
        policy[0] = 0
        nodes[0] = me.mems_allowed
        return 0
    if not flags & MPOL_F_ADDR:
        return -EINVAL if address else describe_policy(me.mempolicy, NULL, 0, flags, policy, nodes)
    down_read(addressof(me.mm.mmap_sem))
    vma = find_vma_intersection(me.mm, address, address + 1)
    rc = -EFAULT
    if vma != NULL:
        # Without a policy of its own it has the default, and not the task's.
        pol = __get_vma_policy(vma, address)
        rc = describe_policy(pol, vma, address, flags, policy, nodes)
        mpol_cond_put(pol)
    up_read(addressof(me.mm.mmap_sem))
    return rc


# ---- from nodes to nodes -----------------------------------------------------------

def migrate_to_node(mm, source, dest, flags):
    """Moves the pages of an address space that are on node `source` to `dest`.  Returns how many
    were not moved, or -ENOMEM.  Holds mmap_sem for reading."""
    INIT_LIST_HEAD(addressof(pagelist))
    queue.nodes = node_bit(source)
    queue.flags = flags | MPOL_MF_DISCONTIG_OK
    queue.pagelist = addressof(pagelist)
    queue.nr_unmovable = 0
    migrate_begin()
    check_range(mm, 0, TASK_SIZE, addressof(queue))
    rc = 0
    if not list_empty(addressof(pagelist)):
        # To that node and no other: Linux commit b360edb43f8e.
        rc = migrate_pages(addressof(pagelist), alloc_on_node, dest)
    migrate_end()
    return rc


def pick_node(left, from_nodes, to_nodes, dest):
    """The node of `left` to empty next, and in *dest where to; -1 when nothing is left to move.

    One whose destination is not about to be emptied itself is best: else pages that arrive there
    would move on with those that leave.
    """
    source = -1
    s = first_node(left)
    while s < MAX_NUMNODES:
        d = node_remap(s, from_nodes, to_nodes)
        if d != s:
            source = s
            dest[0] = d
            if not node_isset(d, left):
                break
        s = next_node(s, left)
    return source


def do_migrate_pages(mm, from_nodes, to_nodes, flags):
    """Moves an address space from one set of nodes to another, keeping its layout: a node's pages
    stay together.  Returns how many pages were not moved, or a negative errno.  Takes mmap_sem
    for reading."""
    migrate_prep()
    busy = 0
    down_read(addressof(mm.mmap_sem))
    rc = migrate_vmas(mm, to_nodes, from_nodes, flags)
    left = from_nodes
    dest = 0
    while rc >= 0 and left:
        source = pick_node(left, from_nodes, to_nodes, addressof(dest))
        if source < 0:
            break
        left &= ~node_bit(source)
        rc = migrate_to_node(mm, source, dest, flags)
        if rc > 0:
            busy += rc
    up_read(addressof(mm.mmap_sem))
    return rc if rc < 0 else busy


# ---- masks in programs' memory -------------------------------------------------------

def get_nodes(nodes, nmask, maxnode):
    """Copies a mask of maxnode - 1 bits in.  Returns 0; -EINVAL when it is longer than a page or
    names a node that cannot be; -EFAULT."""
    bits = maxnode - 1
    nodes[0] = 0
    if bits == 0 or nmask == 0:
        return 0
    if bits > PAGE_SIZE * 8:
        return -EINVAL
    words = (bits + 63) // 64
    last = ~cast(u64, 0) if bits % 64 == 0 else (cast(u64, 1) << bits % 64) - 1
    for index in range(words):
        if copy_in(addressof(word), nmask + index * sizeof(u64), sizeof(u64)) != 0:
            return -EFAULT
        if index == words - 1:
            word &= last
        if index == 0:
            nodes[0] = word
        elif word != 0:
            return -EINVAL
    return 0


def copy_nodes_to_user(nmask, maxnode, nodes):
    """Copies a mask out, in whole words that hold maxnode - 1 bits.  Returns 0, -EINVAL or
    -EFAULT."""
    copy = (maxnode - 1 + 63) // 64 * sizeof(u64)
    if copy > PAGE_SIZE:
        return -EINVAL
    zero = 0
    at = 0
    while at < copy:
        if copy_out(nmask + at, addressof(zero) if at else addressof(nodes), sizeof(u64)) != 0:
            return -EFAULT
        at += sizeof(u64)
    return 0


def sys_mbind(start, length, mode, nmask, maxnode, flags):
    """mbind(2)."""
    mode_flags = mode & MPOL_MODE_FLAGS
    mode &= ~cast(u64, MPOL_MODE_FLAGS)
    if mode >= MPOL_MAX or mode_flags == MPOL_MODE_FLAGS:
        return -EINVAL
    rc = get_nodes(addressof(nodes), nmask, maxnode)
    return rc if rc else do_mbind(start, length, mode, mode_flags, nodes, flags)


def sys_set_mempolicy(mode, nmask, maxnode):
    """set_mempolicy(2)."""
    mode_flags = mode & MPOL_MODE_FLAGS
    mode &= ~cast(u64, MPOL_MODE_FLAGS)
    if mode >= MPOL_MAX or mode_flags == MPOL_MODE_FLAGS:
        return -EINVAL
    rc = get_nodes(addressof(nodes), nmask, maxnode)
    return rc if rc else do_set_mempolicy(mode, mode_flags, nodes)


def sys_get_mempolicy(policy_at, nmask, maxnode, address, flags):
    """get_mempolicy(2); either place for a result may be NULL."""
    if nmask and maxnode < MAX_NUMNODES:
        return -EINVAL
    policy = 0
    rc = do_get_mempolicy(address, flags, addressof(policy), addressof(nodes))
    if rc != 0:
        return rc
    if policy_at and copy_out(policy_at, addressof(policy), sizeof(int)) != 0:
        return -EFAULT
    return copy_nodes_to_user(nmask, maxnode, nodes) if nmask else 0


def sys_migrate_pages(pid, maxnode, old_nodes, new_nodes):
    """migrate_pages(2).

    To no node nothing is moved, and that is 0; since 4.16 it is -EINVAL, as the man page says ("mm/mempolicy: add
    nodes_empty check in SYSC_migrate_pages").

    Returns how many pages were not moved, or in this order -EINVAL or -EFAULT (a mask), -ESRCH,
    -EINVAL (no address space), -EPERM (not ours to move; or to nodes that the task may not use,
    without CAP_SYS_NICE), -EINVAL (a node without memory), the security module's refusal, -ENOMEM.
    """
    rc = get_nodes(addressof(old), old_nodes, maxnode)
    if rc == 0:
        rc = get_nodes(addressof(new), new_nodes, maxnode)
    if rc == 0:
        rc = get_task_memory(pid, addressof(target))
    if rc != 0:
        return rc
    rc = may_move_memory(addressof(target))
    if rc == 0 and not nodes_subset(new, target.mems_allowed) and not capable(CAP_SYS_NICE):
        rc = -EPERM
    if rc == 0 and not nodes_subset(new, kernel().node_states[N_HIGH_MEMORY]):
        rc = -EINVAL
    if rc == 0:
        rc = security_task_movememory(addressof(target))
    if rc == 0:
        rc = do_migrate_pages(target.mm, old, new,
                              MPOL_MF_MOVE_ALL if capable(CAP_SYS_NICE) else MPOL_MF_MOVE)
    mmput(target.mm)
    return rc
