# SPDX-License-Identifier: GPL-2.0-only
"""Loads and stores of the current task through its MMU.

An access is: enter (publish that a translation is in use), translate, touch the frame,
leave.  On a TLB miss the page table is walked inside the access; when that gives nothing
the access is left, the fault handled, and all of it starts over.  An access never spans
two pages, so it is short; longer copies are one access a page.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.cpython.buffer import PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cython.cimports.libc.errno import EFAULT
from cython.cimports.libc.string import memcpy


def user_access_slow(address, write, rc):
    """user_access_begin after a TLB miss."""
    me = current()
    rc[0] = -EFAULT
    # A non-canonical address, or the kernel's half.
    if address >= TASK_SIZE or me.mm == NULL:
        return NULL
    me.vm_events[TLB_MISS] += 1
    while True:
        access_begin(me)
        entry = tlb_fill(me, me.mm, address, write)
        if entry & TLB_VALID:
            return tlb_frame(entry) + (address & (PAGE_SIZE - 1))
        access_end(me)
        rc[0] = do_page_fault(address, write)
        if rc[0] != 0:
            return NULL


def copy_from_user(to, address, length, rc):
    """Loads `length` bytes.  Returns how many could not be loaded, with the reason in *rc;
    0 when all were."""
    me = current()
    while length:
        part = min(length, PAGE_SIZE - (address & (PAGE_SIZE - 1)))
        frame = user_access_begin(address, 0, rc)
        if frame == NULL:
            break
        memcpy(to, frame, part)
        access_end(me)
        to = cast(pointer(char), to) + part
        address += part
        length -= part
    return length


def copy_to_user(address, source, length, rc):
    """Stores `length` bytes.  Returns how many could not be stored, with the reason in *rc;
    0 when all were.  What could is stored, from the front."""
    me = current()
    while length:
        part = min(length, PAGE_SIZE - (address & (PAGE_SIZE - 1)))
        frame = user_access_begin(address, 1, rc)
        if frame == NULL:
            break
        memcpy(frame, source, part)
        access_end(me)
        source = cast(pointer(char), source) + part
        address += part
        length -= part
    return length


# ---- what system calls copy -----------------------------------------------------

def copy_in(to, address, length):
    """copy_from_user for a system call: 0, or -EFAULT with part of it copied.  May fault, so the
    caller holds no lock that a fault takes.

    With KERNEL_DS the address is one of this process (set_fs of asm/uaccess.h), which is how
    Python's arrays get in.
    """
    if current().addr_limit == KERNEL_DS:
        memcpy(to, cast(pointer(char), address), length)
        return 0
    rc = 0
    return -EFAULT if copy_from_user(to, address, length, addressof(rc)) else 0


def copy_out(address, source, length):
    """copy_to_user for a system call, as copy_in."""
    return -EFAULT if copy_out_some(address, source, length) else 0


def copy_out_some(address, source, length):
    """As copy_out, but returns how many bytes could not be copied."""
    if current().addr_limit == KERNEL_DS:
        memcpy(cast(pointer(char), address), source, length)
        return 0
    rc = 0
    return copy_to_user(address, source, length, addressof(rc))


def copy_in_inatomic(to, address, length):
    """As copy_in, but never faults, so the caller may hold locks that a fault takes.  Returns how many
    bytes could not be copied: from the first page on that is not there just now."""
    me = current()
    if me.addr_limit == KERNEL_DS:
        memcpy(to, cast(pointer(char), address), length)
        return 0
    while length and address < TASK_SIZE and me.mm != NULL:
        part = min(length, PAGE_SIZE - (address & (PAGE_SIZE - 1)))
        access_begin(me)
        entry = tlb_fill(me, me.mm, address, False)
        if not entry & TLB_VALID:
            access_end(me)
            break
        memcpy(to, tlb_frame(entry) + (address & (PAGE_SIZE - 1)), part)
        access_end(me)
        to = cast(pointer(char), to) + part
        address += part
        length -= part
    return length


def fault_in_readable(address, length):
    """Touches the first and the last byte of a range that spans one page boundary at most, so that all
    of it is there for a moment.  Returns 0 or -EFAULT.  May fault (fault_in_pages_readable)."""
    rc = 0
    if current().addr_limit == KERNEL_DS:
        return 0
    for place in range(2):
        if user_access_begin(address + (length - 1 if place else 0), 0, addressof(rc)) == NULL:
            return -EFAULT
        access_end(current())
    return 0


def probe_write(address):
    """Makes one byte writable, as a CPU does for both pages before it stores across a
    boundary.  Returns 0, -EFAULT or -ENOMEM."""
    rc = 0
    if user_access_begin(address, 1, addressof(rc)) == NULL:
        return rc
    access_end(current())
    return 0


def bytes_of(exporter):
    """Where the contiguous bytes of an array or memoryview lie in the host's memory, for as long as the
    caller keeps it and the GIL.  (Cython's typed memoryviews would double what there is to compile.)"""
    PyObject_GetBuffer(exporter, addressof(view), PyBUF_SIMPLE)
    found = cast(pointer(char), view.buf)
    PyBuffer_Release(addressof(view))
    return found
