# SPDX-License-Identifier: GPL-2.0-only
"""A device with memory of its own: a bank beside each node, which programs map and which has no
struct pages.  It stands for the accelerators that migrate_vmas is there for: whoever moves an
address space to other nodes asks the driver to take its memory along.

A bank has DEVICE_FRAMES frames, whose numbers follow those of the nodes' frames.  An area of the
device's is VM_PFNMAP, all of it is mapped from the start, and each frame is mapped once.

Locks: mmap_sem, then the split page-table lock, then device_lock.
"""
from cython import NULL, address as addressof, cast
from cython.cimports.libc.errno import EINVAL, ENOMEM
from cython.cimports.libc.string import memset


def device_alloc(node):
    """A frame of a node's bank, zeroed; 0 when all are in use.  Takes device_lock."""
    k = kernel()
    pfn = cast(u64, 0)
    spin_lock(addressof(k.device_lock))
    if k.device_free[node]:
        index = __builtin_ctzl(k.device_free[node])
        k.device_free[node] &= k.device_free[node] - 1
        pfn = k.max_pfn + node * DEVICE_FRAMES + index
    spin_unlock(addressof(k.device_lock))
    if pfn:
        memset(pfn_to_kaddr(pfn), 0, PAGE_SIZE)
    return pfn


def device_free(pfn):
    """Gives a frame back that no CPU can have a translation for.  Takes device_lock."""
    k = kernel()
    memset(pfn_to_kaddr(pfn), PAGE_POISON, PAGE_SIZE)
    spin_lock(addressof(k.device_lock))
    k.device_free[device_node(pfn)] |= cast(u64, 1) << (pfn - k.max_pfn) % DEVICE_FRAMES
    spin_unlock(addressof(k.device_lock))


# ---- what an area's vm_ops do ------------------------------------------------

def device_close(vma):
    """Unmaps an area and gives its frames back.  Holds mmap_sem for writing, or is the last user."""
    at = vma.vm_start
    while at < vma.vm_end:
        pmd = walk_to_pmd(vma.vm_mm, at)
        if pmd != NULL:
            ptep = pte_offset(pmd, at)
            ptl = pte_lockptr(pmd)
            pfn = 0
            spin_lock(ptl)
            if pte_present(READ_PTE(ptep)):
                pfn = pte_pfn(ptep_clear_flush(vma.vm_mm, at, ptep))
            spin_unlock(ptl)
            if pfn:
                device_free(pfn)
        at += PAGE_SIZE


def device_move_page(vma, pmd, address, to_nodes, from_nodes):
    """Moves one page to the bank that its own is mapped to, if that is another.  Says whether there
    was room.  Takes the split lock: a task that touches the page meanwhile waits for it."""
    ptep = pte_offset(pmd, address)
    ptl = pte_lockptr(pmd)
    source = device_node(pte_pfn(READ_PTE(ptep)))
    dest = node_remap(source, from_nodes, to_nodes)
    if dest == source:
        return True
    pfn = device_alloc(dest)
    if pfn == 0:
        return False
    spin_lock(ptl)
    # Another migration of this address space may have been faster.
    old = READ_PTE(ptep)
    if device_node(pte_pfn(old)) == source:
        old = ptep_clear_flush(vma.vm_mm, address, ptep)
        copy_page(pfn_to_kaddr(pfn), pfn_to_kaddr(pte_pfn(old)))
        set_pte_at(ptep, pte_mkspecial(pfn_pte(pfn, vma.vm_page_prot)))
        pfn = pte_pfn(old)
    spin_unlock(ptl)
    device_free(pfn)
    return True


def device_migrate(vma, to_nodes, from_nodes, flags):
    """Moves an area's pages from the banks of some nodes to those of others.  Returns 0, or -ENOMEM
    when a bank is full.  Holds mmap_sem for reading."""
    at = vma.vm_start
    while at < vma.vm_end:
        pmd = walk_to_pmd(vma.vm_mm, at)
        # What was cut out by mremap is not there.
        if pmd != NULL and pte_present(READ_PTE(pte_offset(pmd, at))) and \
                not device_move_page(vma, pmd, at, to_nodes, from_nodes):
            return -ENOMEM
        at += PAGE_SIZE
    return 0


vm_operations[VM_OPS_DEVICE].close = device_close
vm_operations[VM_OPS_DEVICE].migrate = device_migrate


# ---- mapping -----------------------------------------------------------------

def device_fill(mm, vma, node):
    """Maps a new area to frames of one bank (remap_pfn_range).  Returns 0 or -ENOMEM, with what was
    mapped left for device_close.  Holds mmap_sem for writing."""
    at = vma.vm_start
    while at < vma.vm_end:
        pmd = NULL
        ptep = pte_alloc(mm, at, addressof(pmd))
        pfn = device_alloc(node) if ptep != NULL else cast(u64, 0)
        if pfn == 0:
            return -ENOMEM
        set_pte_at(ptep, pte_mkspecial(pfn_pte(pfn, vma.vm_page_prot)))
        at += PAGE_SIZE
    return 0


def do_device_mmap(length, node):
    """Maps `length` bytes of the device's memory, from the bank of `node`.  Returns the address;
    -EINVAL (no length, no such bank); -ENOMEM (no room, no memory, too many areas)."""
    if length == 0 or not node_state(node, N_POSSIBLE):
        return -EINVAL
    if length > TASK_SIZE:
        return -ENOMEM
    mm = current().mm
    length = PAGE_ALIGN(length)
    flags = cast(u64, VM_READ | VM_WRITE | VM_SHARED | VM_MAYREAD | VM_MAYWRITE | VM_IO | VM_PFNMAP |
                 VM_RESERVED | VM_DONTCOPY | VM_DONTEXPAND)
    down_write(addressof(mm.mmap_sem))
    rc = -ENOMEM
    addr = get_unmapped_area(mm, length)
    if addr != 0 and mm.map_count <= MAX_MAP_COUNT:
        vma = vma_alloc(mm, addr, addr + length, flags, addr >> PAGE_SHIFT, NULL, VM_OPS_DEVICE)
        if vma != NULL:
            insert_vm_struct(mm, vma)
            rc = addr
            if device_fill(mm, vma, node) != 0:
                remove_areas(mm, addr, addr + length)
                rc = -ENOMEM
    up_write(addressof(mm.mmap_sem))
    return rc
