# SPDX-License-Identifier: GPL-2.0-only
"""Address spaces: mm_struct, and the system calls that shape one (mm/mmap.c,
mm/mprotect.c, mm/mremap.c, kernel/fork.c).

Each of do_mmap, do_munmap, do_mprotect and do_mremap takes mmap_sem for writing around
its _locked half.  They return an address or 0, or a negative errno with nothing changed
that a program could see.

A range that is to change is first cut out of its areas (carve_range), which is the only
step that can run out of memory; then whole areas are changed, and merged again with what
they have become equal to.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EACCES, EAGAIN, EBADF, EBUSY, EFAULT, EINVAL, ENOMEM, EOVERFLOW, EPERM


# ---- life and death ----------------------------------------------------------

def __mm_alloc(oldmm):
    """A new, empty address space with one user, in the group of `oldmm` (NULL: the root), for
    mm_list; NULL without memory."""
    k = kernel()
    mm = cast(pointer(MmStruct), kmem_cache_alloc(k.mm_cachep))
    if mm == NULL:
        return NULL
    mm.pgd = pgd_alloc()
    if mm.pgd == NULL:
        kmem_cache_free(k.mm_cachep, mm)
        return NULL
    mm.mm_users = 1
    mem_cgroup_init_mm(mm, oldmm)
    spin_lock(addressof(k.mmlist_lock))
    k.next_mm_id += 1
    mm.id = k.next_mm_id
    spin_unlock(addressof(k.mmlist_lock))
    return mm


def mm_list(mm):
    """Lets swapoff find an address space, whose areas it walks with mmap_sem.  Takes mmlist_lock."""
    k = kernel()
    spin_lock(addressof(k.mmlist_lock))
    list_add_tail(addressof(mm.mmlist), addressof(k.init_mmlist))
    spin_unlock(addressof(k.mmlist_lock))


def mm_alloc():
    """A new, empty address space with one user, in the root group; NULL without memory."""
    mm = __mm_alloc(cast(pointer(MmStruct), NULL))
    if mm != NULL:
        mm_list(mm)
    return mm


def mmget(mm):
    """One more user, by somebody who is one."""
    atomic_add_return32(addressof(mm.mm_users), 1)


def exit_mmap(mm):
    """Unmaps everything.  Nobody runs the address space any more."""
    remove_areas(mm, 0, TASK_SIZE)
    VM_BUG_ON(mm.mmap != NULL or mm.map_count != 0 or mm.total_vm != 0)
    VM_BUG_ON(mm.nr_ptes != 0 or mm.anon_rss != 0 or mm.file_rss != 0 or mm.swap_ents != 0)


def mmput(mm):
    """Drops a use; the last one tears the address space down.  Sleeps on nothing but
    spinlocks."""
    k = kernel()
    if atomic_add_return32(addressof(mm.mm_users), -1) != 0:
        return
    exit_mmap(mm)
    mem_cgroup_exit_mm(mm)
    spin_lock(addressof(k.mmlist_lock))
    list_del(addressof(mm.mmlist))
    spin_unlock(addressof(k.mmlist_lock))
    table_free_one(mm.pgd)
    kmem_cache_free(k.mm_cachep, mm)


def dup_mmap(mm, oldmm):
    """Copies all areas and page-table entries to the child `mm`.  Returns 0 or -ENOMEM,
    with what was copied left for its exit_mmap.  Holds the parent's mmap_sem for writing."""
    vma = oldmm.mmap
    while vma != NULL:
        if vma.vm_flags & VM_DONTCOPY:
            vma = vma.vm_next
            continue
        # What is locked is the parent's.
        child = vma_alloc(mm, vma.vm_start, vma.vm_end, vma.vm_flags & ~cast(u64, VM_LOCKED), vma.vm_pgoff,
                          vma.vm_file, vma.vm_ops)
        if child == NULL:
            return -ENOMEM
        if vma.vm_policy != NULL:
            child.vm_policy = mpol_dup(vma.vm_policy)
            if child.vm_policy == NULL:
                vma_free(child)
                return -ENOMEM
        child.anon_vma = vma.anon_vma
        # Before the first entry is copied: a walk that restores migration entries must
        # find the child's copies, behind the parent's.
        vma_link_file_after(child, vma)
        anon_vma_link(child)
        insert_vm_struct(mm, child)
        if copy_page_range(mm, oldmm, vma) != 0:
            return -ENOMEM
        vma = vma.vm_next
    return 0


def dup_mm(oldmm):
    """A copy of an address space, copy-on-write, with one user; NULL without memory."""
    mm = __mm_alloc(oldmm)
    if mm == NULL:
        return NULL
    down_write(addressof(oldmm.mmap_sem))
    rc = dup_mmap(mm, oldmm)
    # The parent's CPUs may still write what is now shared.
    flush_tlb_mm(oldmm)
    up_write(addressof(oldmm.mmap_sem))
    # Not before: nobody holds the child's mmap_sem.  (Linux does.)  If swapoff has passed by meanwhile
    # it finds the entries that were copied on its next round.
    mm_list(mm)
    if rc != 0:
        mmput(mm)
        return NULL
    return mm


def vma_free(vma):
    """Frees an area that is in no list any more, and drops its reference to its file.  May
    sleep."""
    VM_BUG_ON(vma.anon_vma != NULL)
    fput(vma.vm_file)
    mpol_put(vma.vm_policy)
    kmem_cache_free(kernel().vm_area_cachep, vma)


# ---- ranges ------------------------------------------------------------------

def get_unmapped_area(mm, length):
    """The highest gap of `length` bytes below MMAP_BASE; 0 when there is none."""
    found = 0
    prev_end = MMAP_MIN_ADDR
    vma = mm.mmap
    while True:
        gap_end = MMAP_BASE if vma == NULL else min(vma.vm_start, MMAP_BASE)
        if gap_end >= prev_end and gap_end - prev_end >= length:
            found = gap_end - length
        if vma == NULL:
            return found
        prev_end = max(vma.vm_end, MMAP_MIN_ADDR)
        vma = vma.vm_next


def carve_range(mm, start, end):
    """Splits areas so that none crosses `start` or `end`.  Returns 0, or -ENOMEM with the
    areas as they were."""
    vma = find_vma(mm, start)
    if vma != NULL and vma.vm_start < start and split_vma(mm, vma, start) != 0:
        return -ENOMEM
    vma = find_vma(mm, end)
    if vma != NULL and vma.vm_start < end and split_vma(mm, vma, end) != 0:
        merge_boundary(mm, start)
        return -ENOMEM
    return 0


def merge_boundary(mm, address):
    """Merges the two areas that meet at `address`, if they do and can be one."""
    prev = cast(pointer(VmAreaStruct), NULL)
    vma = find_vma_prev(mm, address, addressof(prev))
    if prev != NULL and vma != NULL and can_vma_merge(prev, vma):
        vma_absorb(mm, prev, vma)


def unmap_region(mm, first, after, floor):
    """Unmaps a chain of areas that are out of the list and tree already, frees their tables
    and the areas.  `after` is the area behind them, `floor` where the one before ends."""
    end = first.vm_end
    tlb_gather_mmu(addressof(tlb), mm)
    vma = first
    while vma != NULL:
        unmap_page_range(addressof(tlb), vma, vma.vm_start, vma.vm_end, True)
        end = vma.vm_end
        vma = vma.vm_next
    # Off the reverse map before the tables go: a walk takes no lock to get to a table.
    vma = first
    while vma != NULL:
        unlink_file_vma(vma)
        anon_vma_unlink(vma)
        vma = vma.vm_next
    free_pgd_range(addressof(tlb), first.vm_start, end, floor, after.vm_start if after != NULL else 0)
    tlb_finish_mmu(addressof(tlb))
    while first != NULL:
        vma = first.vm_next
        vma_free(first)
        first = vma


def close_area(vma):
    """What an area must do before its pages are unmapped: unlock them, or give back what only its
    owner knows of."""
    if vma.vm_flags & VM_LOCKED:
        munlock_vma_pages_range(vma, vma.vm_start, vma.vm_end)
    if vma_ops(vma).close != NULL:
        vma_ops(vma).close(vma)


def remove_areas(mm, start, end):
    """Unmaps all areas of [start, end); none crosses its bounds."""
    prev = cast(pointer(VmAreaStruct), NULL)
    vma = find_vma_prev(mm, start, addressof(prev))
    first = cast(pointer(VmAreaStruct), NULL)
    last = cast(pointer(VmAreaStruct), NULL)
    while vma != NULL and vma.vm_start < end:
        following = vma.vm_next
        detach_vma(mm, vma)
        close_area(vma)
        vma.vm_next = NULL
        if last != NULL:
            last.vm_next = vma
        else:
            first = vma
        last = vma
        vma = following
    if first != NULL:
        unmap_region(mm, first, vma, prev.vm_end if prev != NULL else 0)


# ---- munmap ------------------------------------------------------------------

def munmap_locked(mm, start, length):
    """munmap(2), with mmap_sem held for writing.  Returns 0, -EINVAL, -ENOMEM."""
    if start & ~PAGE_MASK or start > TASK_SIZE or length > TASK_SIZE - start:
        return -EINVAL
    length = PAGE_ALIGN(length)
    if length == 0:
        return -EINVAL
    if carve_range(mm, start, start + length) != 0:
        return -ENOMEM
    remove_areas(mm, start, start + length)
    return 0


def do_munmap(mm, start, length):
    """munmap(2).  Returns 0, -EINVAL (unaligned, empty or outside the address space) or
    -ENOMEM."""
    down_write(addressof(mm.mmap_sem))
    rc = munmap_locked(mm, start, length)
    up_write(addressof(mm.mmap_sem))
    return rc


# ---- mmap --------------------------------------------------------------------

def mmap_flags(prot, flags, file):
    """The vm_flags of a new area; -EINVAL when it is to be neither shared nor private, or both; -EACCES
    when the file was not opened for that.  A shared mapping of a file that may not be written is never
    VM_SHARED (do_mmap_pgoff)."""
    if flags & MAP_TYPE != MAP_PRIVATE and flags & MAP_TYPE != MAP_SHARED:
        return -EINVAL
    vm_flags = (prot & VM_ACCESS_FLAGS) | VM_MAYREAD | VM_MAYWRITE | VM_MAYEXEC
    if file != NULL and (file.f_flags & O_ACCMODE) == O_WRONLY:
        return -EACCES
    if flags & MAP_TYPE == MAP_SHARED:
        vm_flags |= VM_SHARED | VM_MAYSHARE
        if file != NULL and not file_may_write(file):
            if prot & PROT_WRITE:
                return -EACCES
            vm_flags &= ~cast(u64, VM_SHARED | VM_MAYWRITE)
    return vm_flags


def mmap_address(mm, addr, length, flags):
    """Where a new area of `length` bytes goes: the address, or -ENOMEM, -EINVAL."""
    if flags & MAP_FIXED:
        if length > TASK_SIZE or addr > TASK_SIZE - length:
            return -ENOMEM
        return -EINVAL if addr & ~PAGE_MASK else addr
    # The address is a hint, rounded to what it can be (round_hint_to_min), and taken if
    # it is free.
    addr &= PAGE_MASK
    if addr != 0 and addr < MMAP_MIN_ADDR:
        addr = MMAP_MIN_ADDR
    if addr == 0 or length > TASK_SIZE or addr > TASK_SIZE - length or \
            find_vma_intersection(mm, addr, addr + length) != NULL:
        addr = get_unmapped_area(mm, length)
        if addr == 0:
            return -ENOMEM
    return addr


def mmap_locked(mm, addr, length, prot, flags, file, pgoff):
    """mmap(2), with mmap_sem held for writing.  `file` is NULL with MAP_ANONYMOUS."""
    if length == 0:
        return -EINVAL
    if length > TASK_SIZE:
        return -ENOMEM
    length = PAGE_ALIGN(length)
    if pgoff + (length >> PAGE_SHIFT) > RADIX_TREE_MAX_INDEX:
        return -EOVERFLOW
    if mm.map_count > MAX_MAP_COUNT:
        return -ENOMEM
    rc = mmap_address(mm, addr, length, flags)
    if rc < 0:
        return rc
    addr = rc
    locked = mm.def_flags
    if flags & MAP_LOCKED:
        if not can_do_mlock():
            return -EPERM
        locked |= VM_LOCKED
    if locked & VM_LOCKED and not may_lock(mm.locked_vm + (length >> PAGE_SHIFT)):
        return -EAGAIN
    vm_flags = mmap_flags(prot, flags, file)
    if vm_flags < 0:
        return vm_flags
    # The last to be asked in 2.6.30 (security_file_mmap); since 3.5 it comes with the address, and is -EPERM.
    if addr < MMAP_MIN_ADDR:
        return -EACCES
    vm_flags |= locked
    vm_ops = VM_OPS_ANON
    if file != NULL:
        get_file(file)
        vm_ops = VM_OPS_FILE
    elif flags & MAP_TYPE == MAP_SHARED:
        file = shmem_file_setup(length)
        if file == NULL:
            return -ENOMEM
        pgoff = 0
        vm_ops = VM_OPS_SHMEM
    else:
        pgoff = addr >> PAGE_SHIFT
    vma = vma_alloc(mm, addr, addr + length, vm_flags, pgoff, file, vm_ops)
    # The area has a reference of its own.
    fput(file)
    if vma == NULL:
        return -ENOMEM
    if flags & MAP_FIXED:
        if carve_range(mm, addr, addr + length) != 0:
            vma_free(vma)
            return -ENOMEM
        remove_areas(mm, addr, addr + length)
    vma_link_file(vma)
    insert_vm_struct(mm, vma)
    vma_merge(mm, vma)
    return addr


def do_mmap(mm, addr, length, prot, flags, fd, offset):
    """mmap(2).

    Other bits of `prot` and `flags` are ignored, MAP_GROWSDOWN and MAP_POPULATE among them, which Linux
    knows.  Returns the address;
    -EAGAIN (locked memory beyond RLIMIT_MEMLOCK), -EBADF (no MAP_ANONYMOUS, and `fd` is
    not open), -EINVAL (empty, neither or both of MAP_SHARED
    and MAP_PRIVATE, unaligned offset, or address with MAP_FIXED), -EACCES (the file is not open
    for that, or it is below 64 KiB with MAP_FIXED), -EOVERFLOW (behind the last offset of a file),
    -EPERM (MAP_LOCKED, and no right to lock), -ENOMEM (no room, no memory, too many areas).
    """
    if offset & ~PAGE_MASK:
        return -EINVAL
    file = cast(pointer(File), NULL)
    if flags & MAP_ANONYMOUS:
        offset = 0
    else:
        file = fget(fd)
        if file == NULL:
            return -EBADF
    down_write(addressof(mm.mmap_sem))
    rc = mmap_locked(mm, addr, length, prot, flags, file, offset >> PAGE_SHIFT)
    up_write(addressof(mm.mmap_sem))
    fput(file)
    return rc


# ---- mprotect ----------------------------------------------------------------

def mprotect_area(vma, prot):
    """Gives one whole area a new protection and merges it with its neighbours."""
    WRITE_ONCE64(addressof(vma.vm_flags), (vma.vm_flags & ~cast(u64, VM_ACCESS_FLAGS)) | prot)
    vma_set_page_prot(vma)
    change_protection(vma, vma.vm_start, vma.vm_end)


def mprotect_locked(mm, start, length, prot):
    """mprotect(2), with mmap_sem held for writing."""
    grows = prot & (PROT_GROWSDOWN | PROT_GROWSUP)
    prot &= ~cast(u64, PROT_GROWSDOWN | PROT_GROWSUP)
    if grows == PROT_GROWSDOWN | PROT_GROWSUP or start & ~PAGE_MASK:
        return -EINVAL
    if length == 0:
        return 0
    end = start + PAGE_ALIGN(length)
    if end <= start:
        return -ENOMEM
    if prot & ~cast(u64, PROT_READ | PROT_WRITE | PROT_EXEC | PROT_SEM):
        return -EINVAL
    prot &= VM_ACCESS_FLAGS
    rc = -ENOMEM
    reached = start
    vma = find_vma(mm, start)
    # From where an area that grows begins, or to where it ends; but none grows.
    if grows and vma != NULL and vma.vm_start < (end if grows == PROT_GROWSDOWN else start + 1):
        return -EINVAL
    while vma != NULL and vma.vm_start <= reached and reached < end:
        reached = vma.vm_end
        vma = vma.vm_next
    # What lies before a hole is protected, and then the hole is reported; the same with a file that
    # is not open for writing: VM_MAYWRITE is VM_WRITE << 4, and so on.
    reached = min(reached, end)
    vma = find_vma(mm, start)
    while vma != NULL and vma.vm_start < reached:
        if prot & ~(vma.vm_flags >> 4):
            rc = -EACCES
            reached = max(vma.vm_start, start)
            break
        vma = vma.vm_next
    if reached == start:
        return rc
    if carve_range(mm, start, reached) != 0:
        return -ENOMEM
    vma = find_vma(mm, start)
    while vma != NULL and vma.vm_start < reached:
        mprotect_area(vma, prot)
        vma = vma_merge(mm, vma).vm_next
    return 0 if reached == end else rc


def do_mprotect(mm, start, length, prot):
    """mprotect(2).  Returns 0, -EINVAL (unaligned, unknown protection), -EACCES (the file of an area
    is not open for that) or -ENOMEM (a hole in the range, such as what lies behind the address space), and what
    lies before has changed; -ENOMEM (no memory, too many areas, or no range), and nothing has."""
    down_write(addressof(mm.mmap_sem))
    rc = mprotect_locked(mm, start, length, prot)
    up_write(addressof(mm.mmap_sem))
    return rc


# ---- mremap ------------------------------------------------------------------

def move_vma(mm, old_addr, old_len, new_addr, new_len):
    """Moves [old_addr, +old_len), inside one area, to the free range [new_addr, +new_len); with no
    old_len maps there what the area maps from old_addr on.  Returns new_addr or -ENOMEM."""
    if mm.map_count >= MAX_MAP_COUNT - 3:
        return -ENOMEM
    # Nothing leaves its place when a shared area is mapped once more (old_len 0).
    if old_len != 0 and carve_range(mm, old_addr, old_addr + old_len) != 0:
        return -ENOMEM
    vma = find_vma(mm, old_addr)
    # Pages keep their index, and so does a file.  Anonymous memory without pages counts for its new
    # place, so that it can merge there.
    keep = vma.anon_vma != NULL or vma.vm_file != NULL
    pgoff = vma.vm_pgoff + ((old_addr - vma.vm_start) >> PAGE_SHIFT) if keep else new_addr >> PAGE_SHIFT
    new_vma = vma_alloc(mm, new_addr, new_addr + new_len, vma.vm_flags, pgoff, vma.vm_file, vma.vm_ops)
    if new_vma == NULL:
        merge_boundary(mm, old_addr)
        merge_boundary(mm, old_addr + old_len)
        return -ENOMEM
    mpol_get(vma.vm_policy)
    new_vma.vm_policy = vma.vm_policy
    new_vma.anon_vma = vma.anon_vma
    vma_link_file(new_vma)
    anon_vma_link(new_vma)
    insert_vm_struct(mm, new_vma)
    moved = move_page_tables(vma, old_addr, new_vma, new_addr, old_len, False)
    if moved < old_len:
        # Back to where the tables still are; that takes no memory.
        move_page_tables(new_vma, new_addr, vma, old_addr, moved, True)
        remove_areas(mm, new_addr, new_addr + new_len)
        merge_boundary(mm, old_addr)
        merge_boundary(mm, old_addr + old_len)
        return -ENOMEM
    if old_len != 0:
        remove_areas(mm, old_addr, old_addr + old_len)
    vma_merge(mm, new_vma)
    return new_addr


def mremap_check(mm, addr, old_len, new_len, flags, new_addr):
    """What mremap(2) says to its arguments: 0 or -EINVAL.  Lengths are aligned."""
    if flags & ~cast(u64, MREMAP_MAYMOVE | MREMAP_FIXED) or addr & ~PAGE_MASK or new_len == 0:
        return -EINVAL
    if flags & MREMAP_FIXED:
        if new_addr & ~PAGE_MASK or not flags & MREMAP_MAYMOVE or \
                new_len > TASK_SIZE or new_addr > TASK_SIZE - new_len:
            return -EINVAL
        # Also an empty old range within the new one: its mapping would be gone before it is looked up.
        if new_addr <= addr < new_addr + new_len or addr <= new_addr < addr + old_len:
            return -EINVAL
    return 0


def mremap_area_check(mm, addr, old_len, new_len):
    """What mremap(2) says to the old range: 0; -EFAULT when it is not in one area that may become
    longer; -EAGAIN when it would lock too much; -EINVAL behind the last offset of a file, or when
    private memory is to be mapped twice (which 2.6.30 takes for a wish for new memory; since 4.14:
    dba58d3b8c50)."""
    if addr > TASK_SIZE or old_len > TASK_SIZE - addr:
        return -EFAULT
    vma = find_vma(mm, addr)
    if vma == NULL or vma.vm_start > addr or old_len > vma.vm_end - addr:
        return -EFAULT
    if new_len > old_len and vma.vm_flags & VM_DONTEXPAND:
        return -EFAULT
    # Also of what only moves, as long as there is too much already.
    if vma.vm_flags & VM_LOCKED and not may_lock(mm.locked_vm + ((new_len - old_len) >> PAGE_SHIFT)):
        return -EAGAIN
    if vma.vm_file != NULL and \
            vma.vm_pgoff + ((addr - vma.vm_start) >> PAGE_SHIFT) + (new_len >> PAGE_SHIFT) > RADIX_TREE_MAX_INDEX:
        return -EINVAL
    if old_len == 0 and not vma.vm_flags & VM_MAYSHARE:
        return -EINVAL
    return 0


def mremap_locked(mm, addr, old_len, new_len, flags, new_addr):
    """mremap(2), with mmap_sem held for writing."""
    old_len = PAGE_ALIGN(old_len)
    new_len = PAGE_ALIGN(new_len)
    rc = mremap_check(mm, addr, old_len, new_len, flags, new_addr)
    if rc != 0:
        return rc
    if flags & MREMAP_FIXED:
        if new_addr < MMAP_MIN_ADDR:
            return -EACCES
        rc = munmap_locked(mm, new_addr, new_len)
        if rc != 0:
            return rc
    if old_len > new_len:
        rc = munmap_locked(mm, addr + new_len, old_len - new_len)
        if rc != 0:
            return rc
        old_len = new_len
    # Whatever is mapped there, in one area or more, or nothing (later kernels: -EFAULT).
    if old_len == new_len and not flags & MREMAP_FIXED:
        return addr
    rc = mremap_area_check(mm, addr, old_len, new_len)
    if rc != 0:
        return rc
    if not flags & MREMAP_FIXED:
        vma = find_vma(mm, addr)
        limit = vma.vm_next.vm_start if vma.vm_next != NULL else TASK_SIZE
        if old_len == vma.vm_end - addr and limit - addr >= new_len:
            vma_set_end(mm, vma, addr + new_len)
            vma_merge(mm, vma)
            return addr
        if not flags & MREMAP_MAYMOVE:
            return -ENOMEM
        new_addr = get_unmapped_area(mm, new_len)
        if new_addr == 0:
            return -ENOMEM
    return move_vma(mm, addr, old_len, new_addr, new_len)


def do_mremap(mm, addr, old_len, new_len, flags, new_addr):
    """mremap(2).

    With an old length of 0 a shared area is mapped once more.  With a new one that is no longer and no
    MREMAP_FIXED the rest, if any, is unmapped, be it in one area or in several.

    Returns the new address; -EINVAL (unaligned, no new length, bad flags, overlap with
    MREMAP_FIXED, a second mapping of private memory), -EFAULT (what
    grows or moves is not in one area),
    -EACCES (below 64 KiB with MREMAP_FIXED),
    -ENOMEM (no room in place and MREMAP_MAYMOVE not given, or no memory), -EAGAIN (locked memory beyond
    RLIMIT_MEMLOCK).  With MREMAP_FIXED what was mapped at the new place may be gone after an error, and
    so may the end of the old range, as in Linux.
    """
    down_write(addressof(mm.mmap_sem))
    rc = mremap_locked(mm, addr, old_len, new_len, flags, new_addr)
    up_write(addressof(mm.mmap_sem))
    return rc


# ---- msync -------------------------------------------------------------------

def do_msync(mm, start, length, flags):
    """msync(2).  With MS_SYNC what the range maps shared of files is on their disks when this
    returns; MS_ASYNC and MS_INVALIDATE have nothing to do, since dirty pages are known and there is
    one page cache.

    Returns 0; -EINVAL (unaligned, bad flags), -ENOMEM (something in the range is not mapped; the rest
    was done), -EBUSY (MS_INVALIDATE of locked memory; what lies before was done), -EIO or -ENOSPC.
    Takes mmap_sem for reading, and gives it back to write.
    """
    if flags & ~cast(u64, MS_ASYNC | MS_INVALIDATE | MS_SYNC) or flags & MS_ASYNC and flags & MS_SYNC or \
            start & ~PAGE_MASK:
        return -EINVAL
    # None for a length of 0; nor for one that is less than a page short of 2^64, which is 0 as well.
    end = start + PAGE_ALIGN(length)
    if end < start:
        return -ENOMEM
    hole = 0
    while start < end:
        down_read(addressof(mm.mmap_sem))
        vma = find_vma(mm, start)
        if vma == NULL or vma.vm_start >= end:
            up_read(addressof(mm.mmap_sem))
            hole = 1
            break
        if vma.vm_start > start:
            start = vma.vm_start
            hole = 1
        if flags & MS_INVALIDATE and vma.vm_flags & VM_LOCKED:
            up_read(addressof(mm.mmap_sem))
            return -EBUSY
        stop = min(end, vma.vm_end)
        file = cast(pointer(File), NULL)
        if flags & MS_SYNC and vma.vm_flags & VM_SHARED and vma.vm_file != NULL:
            file = vma.vm_file
            get_file(file)
            mapping = file.f_mapping
            first = vma.vm_pgoff + ((start - vma.vm_start) >> PAGE_SHIFT)
        up_read(addressof(mm.mmap_sem))
        if file != NULL:
            # Without mmap_sem: whoever writes to the file has i_mutex and may fault.
            down_write(addressof(mapping.host.i_mutex))
            failed = vfs_fsync_range(mapping, first, first + ((stop - start) >> PAGE_SHIFT) - 1)
            up_write(addressof(mapping.host.i_mutex))
            fput(file)
            if failed != 0:
                return failed
        start = stop
    return -ENOMEM if hole else 0
