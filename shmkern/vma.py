# SPDX-License-Identifier: GPL-2.0-only
"""Virtual memory areas of an address space (the list and tree half of mm/mmap.c).

The sorted list mm->mmap is what there is; the red-black tree finds places in it.  All
changes are made of three steps: insert an area, split one in two, let one absorb its
neighbour.  Linux's vma_merge and vma_adjust do several of these at once, to save an
allocation; the areas that come out are the same.

Locks: the caller has mmap_sem, for writing when it changes anything.  What a reverse
map walk reads (vm_start, vm_end, vm_pgoff, membership in the anon_vma's list and in the
file's tree) changes under i_mmap_lock and anon_vma->lock.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import ENOMEM


def vma_wants_writenotify(vma):
    """Whether the first write to a clean page of this area must fault, so that the page becomes
    dirty: it is of a file that dirty pages are written back to."""
    return (vma.vm_flags & (VM_WRITE | VM_SHARED)) == (VM_WRITE | VM_SHARED) and vma.vm_file != NULL and \
        mapping_cap_account_dirty(vma.vm_file.f_mapping)


def vma_set_page_prot(vma):
    """Computes vm_page_prot from vm_flags."""
    flags = vma.vm_flags
    if vma_wants_writenotify(vma):
        flags &= ~cast(u64, VM_SHARED)
    # A migrator may be reading it; see remove_migration_pte.
    WRITE_ONCE64(addressof(vma.vm_page_prot), vm_get_page_prot(flags))


def vm_get_page_prot(vm_flags):
    """The PTE protection of an area (protection_map of arch/x86): a private area never
    gets RW from here, for the first write may have to copy."""
    if not vm_flags & VM_ACCESS_FLAGS:
        return _PAGE_PROTNONE | _PAGE_ACCESSED
    prot = cast(u64, _PAGE_PRESENT | _PAGE_USER | _PAGE_ACCESSED)
    if vm_flags & VM_WRITE and vm_flags & VM_SHARED:
        prot |= _PAGE_RW
    if not vm_flags & VM_EXEC:
        prot |= _PAGE_NX
    return prot


def get_file(file):
    """One more reference to an open file, by somebody who has one; NULL is none."""
    if file != NULL:
        atomic_add_return32(addressof(file.f_count), 1)


def vma_ops(vma):
    """What the owner of an area's memory does, in this process's table."""
    return addressof(vm_operations[vma.vm_ops])


def vma_alloc(mm, start, end, vm_flags, pgoff, file, vm_ops):
    """A new area [start, end), in no list yet, with a reference to its file; NULL without
    memory."""
    vma = cast(pointer(VmAreaStruct), kmem_cache_alloc(kernel().vm_area_cachep))
    if vma != NULL:
        get_file(file)
        vma.vm_mm = mm
        vma.vm_start = start
        vma.vm_end = end
        vma.vm_flags = vm_flags
        vma.vm_pgoff = pgoff
        vma.vm_file = file
        vma.vm_ops = vm_ops
        vma_set_page_prot(vma)
    return vma


# ---- areas of a file -----------------------------------------------------------

def vma_link_file(vma):
    """Enters an area in its file's i_mmap, if it has a file.  Takes i_mmap_lock."""
    mapping = vma_mapping(vma)
    if mapping != NULL:
        spin_lock(addressof(mapping.i_mmap_lock))
        vma_interval_tree_insert(vma, addressof(mapping.i_mmap))
        spin_unlock(addressof(mapping.i_mmap_lock))


def vma_link_file_after(vma, prev):
    """As vma_link_file, right behind the area that it was copied from."""
    mapping = vma_mapping(vma)
    if mapping != NULL:
        spin_lock(addressof(mapping.i_mmap_lock))
        vma_interval_tree_insert_after(vma, prev, addressof(mapping.i_mmap))
        spin_unlock(addressof(mapping.i_mmap_lock))


def unlink_file_vma(vma):
    """Takes an area out of its file's i_mmap, if it has a file.  Takes i_mmap_lock."""
    mapping = vma_mapping(vma)
    if mapping != NULL:
        spin_lock(addressof(mapping.i_mmap_lock))
        vma_interval_tree_remove(vma, addressof(mapping.i_mmap))
        spin_unlock(addressof(mapping.i_mmap_lock))


def lock_rmap(mapping, anon_vma):
    """Keeps reverse map walks away that come through either; both may be NULL."""
    if mapping != NULL:
        spin_lock(addressof(mapping.i_mmap_lock))
    if anon_vma != NULL:
        spin_lock(addressof(anon_vma.lock))


def unlock_rmap(mapping, anon_vma):
    """Undoes lock_rmap."""
    if anon_vma != NULL:
        spin_unlock(addressof(anon_vma.lock))
    if mapping != NULL:
        spin_unlock(addressof(mapping.i_mmap_lock))


# ---- its policy --------------------------------------------------------------

def __get_vma_policy(vma, address):
    """The policy that a page of an area has because of the area or of what that maps; NULL when there
    is none.  mpol_cond_put gives it back.  Holds mmap_sem."""
    get_policy = vma_ops(vma).get_policy
    return vma.vm_policy if get_policy == NULL else get_policy(vma, address)


def get_vma_policy(vma, address, ilx):
    """The policy by which memory for a page of an area is chosen: its own, else the current task's,
    as without an area; and in *ilx the page's number, for interleaving.  Returns NULL for the local
    node.  mpol_cond_put gives it back.  Holds mmap_sem of the area."""
    ilx[0] = NO_INTERLEAVE_INDEX
    pol = NULL
    if vma != NULL:
        ilx[0] = vma.vm_pgoff + ((address - vma.vm_start) >> PAGE_SHIFT)
        pol = __get_vma_policy(vma, address)
    return pol if pol != NULL else current().mempolicy


def alloc_page_vma(gfp, vma, address):
    """A frame for the page at `address` of an area, by get_vma_policy.  Returns NULL when the policy's
    nodes have none.  Holds mmap_sem of the area."""
    pol = get_vma_policy(vma, address, addressof(ilx))
    page = alloc_pages_mpol(gfp, 0, pol, ilx)
    mpol_cond_put(pol)
    return page


# ---- find --------------------------------------------------------------------

def find_vma_prev(mm, address, prev_out):
    """The first area that ends above `address` (it may begin above it too), or NULL; and
    in *prev_out the area before it, or NULL."""
    node = mm.mm_rb.rb_node
    found = cast(pointer(VmAreaStruct), NULL)
    prev_out[0] = NULL
    while node != NULL:
        vma = rb_entry_vma(node)
        if address < vma.vm_end:
            found = vma
            node = node.rb_left
        else:
            prev_out[0] = vma
            node = node.rb_right
    return found


def find_vma(mm, address):
    """The first area that ends above `address`, or NULL."""
    node = mm.mm_rb.rb_node
    found = cast(pointer(VmAreaStruct), NULL)
    while node != NULL:
        vma = rb_entry_vma(node)
        if address < vma.vm_end:
            found = vma
            if vma.vm_start <= address:
                break
            node = node.rb_left
        else:
            node = node.rb_right
    return found


def find_vma_intersection(mm, start, end):
    """The first area that has an address in [start, end), or NULL."""
    vma = find_vma(mm, start)
    if vma != NULL and vma.vm_start < end:
        return vma
    return NULL


# ---- insert, remove ----------------------------------------------------------

def account_pages(mm, vm_flags, pages):
    """Counts pages that an area with these flags gains, or loses."""
    mm.total_vm += pages
    if vm_flags & VM_LOCKED:
        # Marked: populate_mapped looks without mmap_sem.
        WRITE_ONCE64(addressof(mm.locked_vm), mm.locked_vm + pages)


def insert_vm_struct(mm, vma):
    """Enters an area, for which there is room, in list and tree."""
    link = addressof(mm.mm_rb.rb_node)
    parent = cast(pointer(RbNode), NULL)
    prev = cast(pointer(VmAreaStruct), NULL)
    while link[0] != NULL:
        parent = link[0]
        other = rb_entry_vma(parent)
        VM_BUG_ON(vma.vm_start < other.vm_end and other.vm_start < vma.vm_end)
        if vma.vm_start < other.vm_start:
            link = addressof(parent.rb_left)
        else:
            prev = other
            link = addressof(parent.rb_right)
    if prev != NULL:
        vma.vm_next = prev.vm_next
        prev.vm_next = vma
    else:
        vma.vm_next = mm.mmap
        mm.mmap = vma
    rb_insert(addressof(mm.mm_rb), addressof(vma.vm_rb), parent, link)
    mm.map_count += 1
    account_pages(mm, vma.vm_flags, vma_pages(vma))


def detach_vma(mm, vma):
    """Takes an area out of list and tree.  Its anon_vma's list still has it."""
    prev = cast(pointer(VmAreaStruct), NULL)
    find_vma_prev(mm, vma.vm_start, addressof(prev))
    if prev != NULL:
        prev.vm_next = vma.vm_next
    else:
        mm.mmap = vma.vm_next
    rb_erase(addressof(mm.mm_rb), addressof(vma.vm_rb))
    mm.map_count -= 1
    account_pages(mm, vma.vm_flags, -cast(i64, vma_pages(vma)))


def vma_set_end(mm, vma, end):
    """Moves the end of an area; nothing is mapped between the old end and the new."""
    mapping = vma_mapping(vma)
    lock_rmap(mapping, vma.anon_vma)
    if mapping != NULL:
        vma_interval_tree_remove(vma, addressof(mapping.i_mmap))
    account_pages(mm, vma.vm_flags, -cast(i64, vma_pages(vma)))
    vma.vm_end = end
    account_pages(mm, vma.vm_flags, vma_pages(vma))
    if mapping != NULL:
        vma_interval_tree_insert(vma, addressof(mapping.i_mmap))
    unlock_rmap(mapping, vma.anon_vma)


# ---- split, merge ------------------------------------------------------------

def split_vma(mm, vma, address):
    """Splits an area at `address`, inside it and page aligned; `vma` keeps the lower half.

    Returns 0, or -ENOMEM with nothing changed: no memory, or too many areas.
    """
    if mm.map_count >= MAX_MAP_COUNT:
        return -ENOMEM
    high = vma_alloc(mm, address, vma.vm_end, vma.vm_flags,
                     vma.vm_pgoff + ((address - vma.vm_start) >> PAGE_SHIFT), vma.vm_file, vma.vm_ops)
    if high == NULL:
        return -ENOMEM
    high.anon_vma = vma.anon_vma
    mpol_get(vma.vm_policy)
    high.vm_policy = vma.vm_policy
    mapping = vma_mapping(vma)
    # A walk finds each page in exactly one half.
    lock_rmap(mapping, vma.anon_vma)
    if mapping != NULL:
        vma_interval_tree_remove(vma, addressof(mapping.i_mmap))
    if high.anon_vma != NULL:
        __anon_vma_link(high)
    account_pages(mm, vma.vm_flags, -cast(i64, vma_pages(high)))
    vma.vm_end = address
    if mapping != NULL:
        vma_interval_tree_insert(vma, addressof(mapping.i_mmap))
        vma_interval_tree_insert(high, addressof(mapping.i_mmap))
    unlock_rmap(mapping, vma.anon_vma)
    insert_vm_struct(mm, high)
    return 0


def vmas_are_alike(low, high, flags):
    """Whether one area goes on where the other ends: they touch, agree in all that a PTE depends on, of
    vm_flags in those of `flags`, and count their pages alike."""
    return low.vm_end == high.vm_start and low.vm_flags & flags == high.vm_flags & flags and \
        low.vm_file == high.vm_file and low.vm_ops == high.vm_ops and \
        mpol_equal(low.vm_policy, high.vm_policy) and \
        low.vm_pgoff + vma_pages(low) == high.vm_pgoff


def can_vma_merge(low, high):
    """Whether two areas could be one: they are alike, and at most one anon_vma is between them."""
    return vmas_are_alike(low, high, ~cast(u64, 0)) and \
        (low.anon_vma == NULL or high.anon_vma == NULL or low.anon_vma == high.anon_vma)


def vma_absorb(mm, low, high):
    """Lets `low` take over the range and the pages of `high`, which is freed."""
    anon_vma = low.anon_vma if low.anon_vma != NULL else high.anon_vma
    mapping = vma_mapping(low)
    detach_vma(mm, high)
    lock_rmap(mapping, anon_vma)
    if mapping != NULL:
        vma_interval_tree_remove(low, addressof(mapping.i_mmap))
        vma_interval_tree_remove(high, addressof(mapping.i_mmap))
    # Easily overlooked: the pages of `high` must be found through `low` from now on.
    if anon_vma != NULL and low.anon_vma == NULL:
        low.anon_vma = anon_vma
        __anon_vma_link(low)
    if high.anon_vma != NULL:
        __anon_vma_merge(low, high)
    account_pages(mm, low.vm_flags, vma_pages(high))
    low.vm_end = high.vm_end
    if mapping != NULL:
        vma_interval_tree_insert(low, addressof(mapping.i_mmap))
    unlock_rmap(mapping, anon_vma)
    high.anon_vma = NULL
    if high.vm_file != NULL:
        # Not the last reference: `low` has one.
        atomic_add_return32(addressof(high.vm_file.f_count), -1)
        high.vm_file = NULL
    mpol_put(high.vm_policy)
    kmem_cache_free(kernel().vm_area_cachep, high)


def vma_merge(mm, vma):
    """Merges an area with the neighbours that it can be one with; returns what holds its
    range now."""
    prev = NULL
    find_vma_prev(mm, vma.vm_start, addressof(prev))
    # The lower one first: with an anon_vma on each side only one of them can be joined.
    if prev != NULL and can_vma_merge(prev, vma):
        vma_absorb(mm, prev, vma)
        vma = prev
    following = vma.vm_next
    while following != NULL and can_vma_merge(vma, following):
        vma_absorb(mm, vma, following)
        following = vma.vm_next
    return vma


# ---- anon_vma of an area -----------------------------------------------------

def find_mergeable_anon_vma(vma):
    """A neighbour's anon_vma, if the two areas may be merged some day: they touch and
    differ at most in protection.  NULL otherwise."""
    flags = ~cast(u64, VM_ACCESS_FLAGS)
    following = vma.vm_next
    if following != NULL and following.anon_vma != NULL and vmas_are_alike(vma, following, flags):
        return following.anon_vma
    prev = NULL
    find_vma_prev(vma.vm_mm, vma.vm_start, addressof(prev))
    if prev != NULL and prev.anon_vma != NULL and vmas_are_alike(prev, vma, flags):
        return prev.anon_vma
    return NULL


def anon_vma_prepare(vma):
    """Gives an area an anon_vma before its first anonymous page (mm/rmap.c).

    The caller has mmap_sem for reading, so other tasks of this mm may do the same now.
    Returns 0 or -ENOMEM.  Takes anon_vma->lock, then page_table_lock.
    """
    # Acquire: who sees the pointer sees the list entry behind it.
    if smp_load_acquire64(addressof(vma.anon_vma)):
        return 0
    anon_vma = find_mergeable_anon_vma(vma)
    allocated = cast(pointer(AnonVma), NULL)
    if anon_vma == NULL:
        allocated = anon_vma_alloc()
        if allocated == NULL:
            return -ENOMEM
        anon_vma = allocated
    mm = vma.vm_mm
    spin_lock(addressof(anon_vma.lock))
    spin_lock(addressof(mm.page_table_lock))
    if vma.anon_vma == NULL:
        list_add_tail(addressof(vma.anon_vma_node), addressof(anon_vma.head))
        smp_store_release64(addressof(vma.anon_vma), cast(u64, anon_vma))
        allocated = NULL
    spin_unlock(addressof(mm.page_table_lock))
    spin_unlock(addressof(anon_vma.lock))
    if allocated != NULL:
        anon_vma_free(allocated)
    return 0
