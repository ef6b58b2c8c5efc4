# SPDX-License-Identifier: GPL-2.0-only
"""mlock(2), munlock(2), mlockall(2): areas whose pages are there and stay (mm/mlock.c).

First the areas get VM_LOCKED, with mmap_sem held for writing; then, with it held for reading,
their pages are faulted in and locked one by one (mm_populate, as later kernels do it).  What a
locked area faults in afterwards is locked from the start.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EAGAIN, EFAULT, EINVAL, ENOMEM, EPERM


# ---- pages -------------------------------------------------------------------

def mlock_page_at(vma, address, fault):
    """Locks the page at `address` of a locked area, faulting it in if `fault`.  Returns 0, -ENOMEM or
    -EFAULT.  Holds mmap_sem for reading; takes the page lock."""
    rc = 0
    while True:
        if fault:
            # What will be written is copied now.
            page = get_user_page(vma, address, (vma.vm_flags & (VM_WRITE | VM_SHARED)) == VM_WRITE, addressof(rc))
        else:
            page = follow_landed_page(vma, address)
        if page == NULL:
            return rc
        if PageReserved(page):
            put_page(page)
            return 0
        lock_page(page)
        # It may have been replaced by a write while we waited for the lock.
        mapped = page_is_mapped_at(page, vma.vm_mm, address)
        if mapped:
            mlock_vma_page(page)
        unlock_page(page)
        put_page(page)
        if mapped:
            return 0


def populate_area(vma, start, end):
    """mlock_page_at for [start, end).  Returns 0; -EFAULT: an area without any access cannot be
    faulted in, nor what lies behind the end of a file; -ENOMEM: there are no frames.  Then what is there
    already is locked all the same."""
    rc = 0 if vma.vm_flags & VM_ACCESS_FLAGS else -EFAULT
    while start < end:
        failed = mlock_page_at(vma, start, rc == 0)
        if failed != 0:
            rc = failed
            continue
        start += PAGE_SIZE
    return rc


def mm_populate(mm, start, end):
    """Fills the locked areas of [start, end).  Returns 0, or the last error: -ENOMEM or -EFAULT.  Takes
    mmap_sem for reading."""
    rc = 0
    down_read(addressof(mm.mmap_sem))
    vma = find_vma(mm, start)
    while vma != NULL and vma.vm_start < end:
        if vma.vm_flags & VM_LOCKED:
            one = populate_area(vma, max(vma.vm_start, start), min(vma.vm_end, end))
            if one != 0:
                rc = one
        vma = vma.vm_next
    up_read(addressof(mm.mmap_sem))
    return rc


def populate_mapped(start, length):
    """mm_populate for what mmap or mremap has just given the current task.  That pages cannot be had is no
    error there.  Takes mmap_sem for reading."""
    mm = current().mm
    # A thread may lock areas right now; those it fills itself.
    if READ_ONCE64(addressof(mm.locked_vm)):
        mm_populate(mm, start, start + PAGE_ALIGN(length))


# ---- areas -------------------------------------------------------------------

def mlock_fixup(vma, lock):
    """Locks or unlocks one whole area; never that of a device, whose frames stay anyway, nor is it
    counted.  Holds mmap_sem for writing."""
    mm = vma.vm_mm
    if lock and not vma.vm_flags & (VM_LOCKED | VM_IO | VM_PFNMAP):
        WRITE_ONCE64(addressof(vma.vm_flags), vma.vm_flags | VM_LOCKED)
        WRITE_ONCE64(addressof(mm.locked_vm), mm.locked_vm + vma_pages(vma))
    elif not lock and vma.vm_flags & VM_LOCKED:
        WRITE_ONCE64(addressof(mm.locked_vm), mm.locked_vm - vma_pages(vma))
        munlock_vma_pages_range(vma, vma.vm_start, vma.vm_end)


def mlock_range(mm, start, end, lock):
    """mlock_fixup for the areas of [start, end), which are cut and merged as need be.  Returns 0 or
    -ENOMEM: no memory, or a hole in the range, before which all is done.  Holds mmap_sem for
    writing."""
    reached = start
    vma = find_vma(mm, start)
    while vma != NULL and vma.vm_start <= reached and reached < end:
        reached = vma.vm_end
        vma = vma.vm_next
    reached = min(reached, end)
    if carve_range(mm, start, reached) != 0:
        return -ENOMEM
    vma = find_vma(mm, start)
    while vma != NULL and vma.vm_start < reached:
        mlock_fixup(vma, lock)
        vma = vma_merge(mm, vma).vm_next
    return 0 if reached == end else -ENOMEM


# ---- the system calls --------------------------------------------------------

def mlock_errno(rc):
    """What POSIX wants to be told when pages could not be had (__mlock_posix_error_return)."""
    if rc == -EFAULT:
        return -ENOMEM
    return -EAGAIN if rc == -ENOMEM else rc


def do_mlock(start, length):
    """mlock(2).  Returns 0; -EPERM; -EINVAL when the range wraps around; -ENOMEM: more than
    RLIMIT_MEMLOCK, a hole, too many areas, no access, or behind the end of a file; -EAGAIN without
    frames."""
    if not can_do_mlock():
        return -EPERM
    end = PAGE_ALIGN(start + length)
    start &= PAGE_MASK
    if end < start:
        return -EINVAL
    if end == start:
        return 0
    # So that the pages can be moved to the unevictable list.
    lru_add_drain_all()
    mm = current().mm
    down_write(addressof(mm.mmap_sem))
    if not may_lock(mm.locked_vm + ((end - start) >> PAGE_SHIFT)):
        up_write(addressof(mm.mmap_sem))
        return -ENOMEM
    rc = mlock_range(mm, start, end, True)
    up_write(addressof(mm.mmap_sem))
    # Also when a hole ended it: what lies before is locked.
    populated = mm_populate(mm, start, end)
    return rc if rc != 0 else mlock_errno(populated)


def do_munlock(start, length):
    """munlock(2).  Returns 0, -EINVAL, or -ENOMEM for a hole."""
    end = PAGE_ALIGN(start + length)
    start &= PAGE_MASK
    if end < start:
        return -EINVAL
    if end == start:
        return 0
    mm = current().mm
    down_write(addressof(mm.mmap_sem))
    rc = mlock_range(mm, start, end, False)
    up_write(addressof(mm.mmap_sem))
    return rc


def do_mlockall(flags):
    """mlockall(2).  Returns 0, -EINVAL (flags), -EPERM, or -ENOMEM: more than RLIMIT_MEMLOCK.  Pages
    that cannot be had are no error."""
    if flags == 0 or flags & ~cast(u64, MCL_CURRENT | MCL_FUTURE):
        return -EINVAL
    if not can_do_mlock():
        return -EPERM
    lru_add_drain_all()
    mm = current().mm
    down_write(addressof(mm.mmap_sem))
    if flags & MCL_CURRENT and not may_lock(mm.total_vm):
        up_write(addressof(mm.mmap_sem))
        return -ENOMEM
    mm.def_flags = VM_LOCKED if flags & MCL_FUTURE else 0
    vma = mm.mmap if flags & MCL_CURRENT else cast(pointer(VmAreaStruct), NULL)
    while vma != NULL:
        mlock_fixup(vma, True)
        vma = vma_merge(mm, vma).vm_next
    up_write(addressof(mm.mmap_sem))
    if flags & MCL_CURRENT:
        mm_populate(mm, 0, TASK_SIZE)
    return 0


def do_munlockall():
    """munlockall(2): unlocks everything, and what is mapped from now on."""
    mm = current().mm
    down_write(addressof(mm.mmap_sem))
    mm.def_flags = 0
    vma = mm.mmap
    while vma != NULL:
        mlock_fixup(vma, False)
        vma = vma_merge(mm, vma).vm_next
    up_write(addressof(mm.mmap_sem))
    return 0
