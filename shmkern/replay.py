# SPDX-License-Identifier: GPL-2.0-only
"""Checked streams of memory accesses: the current task's loads and stores, many to a call.

A stream is an array of ACCESS records.  replay() performs them in order through the MMU.
What each store writes is worked out from (seed, index of the access), so an access that
is tried again writes the same.  A Shadow keeps what must be there: private memory of this
process that the emulator cannot see.  Every load is compared with it, so a store that was
lost or torn shows at the next load of its bytes:

    shadow = Shadow()
    index, reason, detail = replay(records, shadow, seed)
    # reason 0: done; MISMATCH: detail is a Mismatch; -EFAULT or -ENOMEM: detail is the address

After -EFAULT the caller may map the page and go on from that index.
"""
from typing import NamedTuple

import numpy as np
from cython import NULL, address as addressof, cast, pointer, sizeof
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.libc.errno import EINVAL, ENOMEM
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcmp, memcpy, memset

# 16 bytes an access; the C side is struct Access.
ACCESS = np.dtype({"names": ["address", "size", "op"], "formats": ["<u8", "<u2", "u1"],
                   "offsets": [0, 8, 10], "itemsize": 16})
LOAD, STORE, MODIFY = ACCESS_LOAD, ACCESS_STORE, ACCESS_MODIFY
MISMATCH = REPLAY_MISMATCH


class Mismatch(NamedTuple):
    """A load that gave other bytes than were stored: the address of the access, and both."""
    address: int
    expected: bytes
    found: bytes

    def __str__(self):
        first = [expected == found for expected, found in zip(self.expected, self.found)].index(False)
        shown = slice(first, first + 16)
        return (f"{len(self.expected)} bytes at {self.address:#x}: from byte {first} on expected "
                f"{self.expected[shown].hex()}, found {self.found[shown].hex()}")


# ---- the shadow ----------------------------------------------------------------

class Shadow:
    """Sparse memory, all zeros at first: what a task's memory must hold.

    A fork inherits it with the rest of its process.  Raises MemoryError when the host has
    no memory.
    """

    def read(self, address, length):
        """`length` bytes from `address`."""
        buffer = PyBytes_FromStringAndSize(NULL, length)
        shadow_read(addressof(self.table), address, PyBytes_AS_STRING(buffer), length)
        return buffer

    def write(self, address, data):
        """Puts bytes at `address`."""
        view = memoryview(data).cast("B")
        size = view.nbytes
        if shadow_write(addressof(self.table), address, bytes_of(view), size):
            raise MemoryError("no memory for the shadow")

    def discard(self, address, length):
        """Zeros in all pages that [address, +length) touches, as after munmap."""
        for number in range(address >> PAGE_SHIFT, (address + length + PAGE_SIZE - 1) >> PAGE_SHIFT):
            shadow_drop(addressof(self.table), number)

    def move(self, old, new, length):
        """Moves whole pages, as mremap does; what was at the new place is gone.  The two
        ranges must not overlap."""
        for offset in range(0, length, PAGE_SIZE):
            page = shadow_page(addressof(self.table), (old + offset) >> PAGE_SHIFT)
            self.discard(new + offset, PAGE_SIZE)
            if page != NULL:
                self.write(new + offset, PyBytes_FromStringAndSize(page, PAGE_SIZE))
            self.discard(old + offset, PAGE_SIZE)

    def clear(self):
        """All zeros again."""
        shadow_free(addressof(self.table))

    def pages(self):
        """The addresses of pages that were written to, as a sorted array."""
        found = []
        for slot in range(self.table.capacity):
            if self.table.pages[slot] != NULL:
                found.append((self.table.numbers[slot] - 1) << PAGE_SHIFT)
        return np.sort(np.array(found, np.uint64))

    def __dealloc__(self):
        shadow_free(addressof(self.table))


def shadow_slot(table, number):
    """The slot of a page number, or the empty one where it belongs.  The table has room."""
    # Fibonacci hashing: neighbours in the address space are apart in the table.
    slot = ((number * cast(u64, 0x9E3779B97F4A7C15)) >> 32) & (table.capacity - 1)
    while table.numbers[slot] != 0 and table.numbers[slot] != number + 1:
        slot = (slot + 1) & (table.capacity - 1)
    return slot


def shadow_resize(table, capacity):
    """Moves everything to a table of another size, and forgets discarded pages.  Returns 0
    or -ENOMEM."""
    old = table[0]
    numbers = cast(pointer(u64), calloc(capacity, sizeof(u64)))
    pages = cast(pointer(pointer(char)), calloc(capacity, sizeof(pointer(char))))
    if numbers == NULL or pages == NULL:
        free(numbers)
        free(pages)
        return -ENOMEM
    table.numbers = numbers
    table.pages = pages
    table.capacity = capacity
    table.used = 0
    for index in range(old.capacity):
        if old.pages[index] != NULL:
            slot = shadow_slot(table, old.numbers[index] - 1)
            numbers[slot] = old.numbers[index]
            pages[slot] = old.pages[index]
            table.used += 1
    free(old.numbers)
    free(old.pages)
    return 0


def shadow_page(table, number):
    """The page with that number, or NULL: all zeros."""
    if table.capacity == 0:
        return NULL
    slot = shadow_slot(table, number)
    return table.pages[slot] if table.numbers[slot] != 0 else NULL


def shadow_new_page(table, number):
    """The page with that number, made of zeros if there is none; NULL when the host has no
    memory."""
    if table.used * 4 >= table.capacity * 3 and shadow_resize(table, max(table.capacity * 2, cast(u64, 64))) != 0:
        return NULL
    slot = shadow_slot(table, number)
    if table.pages[slot] == NULL:
        table.pages[slot] = cast(pointer(char), calloc(1, PAGE_SIZE))
        if table.pages[slot] == NULL:
            return NULL
        if table.numbers[slot] == 0:
            table.numbers[slot] = number + 1
            table.used += 1
    return table.pages[slot]


def shadow_read(table, address, to, length):
    """Copies bytes out of the shadow."""
    while length:
        part = min(length, PAGE_SIZE - (address & (PAGE_SIZE - 1)))
        page = shadow_page(table, address >> PAGE_SHIFT)
        if page == NULL:
            memset(to, 0, part)
        else:
            memcpy(to, page + (address & (PAGE_SIZE - 1)), part)
        to = cast(pointer(char), to) + part
        address += part
        length -= part


def shadow_write(table, address, source, length):
    """Copies bytes into the shadow.  Returns 0 or -ENOMEM."""
    while length:
        part = min(length, PAGE_SIZE - (address & (PAGE_SIZE - 1)))
        page = shadow_page(table, address >> PAGE_SHIFT)
        if page == NULL:
            page = shadow_new_page(table, address >> PAGE_SHIFT)
            if page == NULL:
                return -ENOMEM
        memcpy(page + (address & (PAGE_SIZE - 1)), source, part)
        source = cast(pointer(char), source) + part
        address += part
        length -= part
    return 0


def shadow_drop(table, number):
    """Frees one page; its slot stays taken until the table is resized."""
    if table.capacity != 0:
        slot = shadow_slot(table, number)
        free(table.pages[slot])
        table.pages[slot] = NULL


def shadow_free(table):
    """Frees everything."""
    for slot in range(table.capacity):
        free(table.pages[slot])
    free(table.numbers)
    free(table.pages)
    memset(table, 0, sizeof(ShadowTable))


# ---- one access ----------------------------------------------------------------

def fill_pattern(to, length, seed, index):
    """The bytes that access `index` of a stream stores: splitmix64 of a counter."""
    counter = seed + index * cast(u64, 0x9E3779B97F4A7C15)
    while length:
        word = counter
        word = (word ^ (word >> 30)) * cast(u64, 0xBF58476D1CE4E5B9)
        word = (word ^ (word >> 27)) * cast(u64, 0x94D049BB133111EB)
        word ^= word >> 31
        part = min(length, cast(u64, 8))
        memcpy(to, addressof(word), part)
        to = cast(pointer(char), to) + part
        length -= part
        counter += cast(u64, 0xD1B54A32D192ED03)


def checked_load(shadow, access, out):
    """Loads and compares.  Returns 0, REPLAY_MISMATCH, -EFAULT or -ENOMEM."""
    rc = 0
    left = copy_from_user(out.found, access.address, access.size, addressof(rc))
    if left:
        out.address = access.address + (access.size - left)
        return rc
    shadow_read(shadow, access.address, out.expected, access.size)
    if memcmp(out.found, out.expected, access.size) == 0:
        return 0
    out.address = access.address
    out.size = access.size
    return REPLAY_MISMATCH


def probe_store(access, out):
    """Makes both pages of a store across a boundary writable, so that it is done whole or
    not at all.  Returns 0, -EFAULT or -ENOMEM."""
    last = access.address + access.size - 1
    if access.address >> PAGE_SHIFT == last >> PAGE_SHIFT:
        return 0
    out.address = access.address
    rc = probe_write(access.address)
    if rc == 0:
        out.address = last & ~cast(u64, PAGE_SIZE - 1)
        rc = probe_write(out.address)
    return rc


def checked_store(shadow, access, seed, index, out):
    """Stores the pattern of `index`, then tells the shadow.  Returns 0, -EFAULT, -ENOMEM or
    REPLAY_NO_MEMORY."""
    rc = probe_store(access, out)
    if rc != 0:
        return rc
    fill_pattern(out.expected, access.size, seed, index)
    left = copy_to_user(access.address, out.expected, access.size, addressof(rc))
    if left:
        out.address = access.address + (access.size - left)
        return rc
    return REPLAY_NO_MEMORY if shadow_write(shadow, access.address, out.expected, access.size) != 0 else 0


def perform(shadow, access, seed, index, out):
    """Performs one access.  Returns 0 or why it could not be done; -EINVAL for a record that
    is none."""
    if access.size == 0 or access.size > ACCESS_SIZE_MAX or access.op > ACCESS_MODIFY:
        return -EINVAL
    if access.op != ACCESS_STORE:
        rc = checked_load(shadow, access, out)
        if rc != 0:
            return rc
    if access.op != ACCESS_LOAD:
        return checked_store(shadow, access, seed, index, out)
    return 0


def perform_all(shadow, records, seed, start, end, out, reason):
    """Performs accesses until one cannot be done.  Returns its index, with why in *reason;
    or `end` and 0."""
    reason[0] = 0
    index = start
    while index < end:
        reason[0] = perform(shadow, addressof(records[index]), seed, index, out)
        if reason[0] != 0:
            break
        index += 1
    return index


def replay(records, shadow, seed, start=0, end=None):
    """Performs the accesses records[start:end] in order, as the current task.

    records: an array of ACCESS, sizes 1 to 4096.  seed: any number to 2^64; with the index
    of an access it gives the bytes that it stores.

    Returns (index, reason, detail) of the access that could not be done, or (end, 0, None):
    MISMATCH and a Mismatch; -EFAULT or -ENOMEM and the address.  A store that could not be
    done has not reached the shadow.  Raises ValueError for records that are none, and
    MemoryError.
    """
    if shadow is None:
        raise TypeError("a replay needs a Shadow")
    if records.dtype != ACCESS or records.ndim != 1:
        raise ValueError("records must be an array of replay.ACCESS")
    count = len(records)
    stop = count if end is None else end
    if start > stop or stop > count:
        raise ValueError(f"accesses {start} to {stop} of {count}")
    if start == stop:
        return stop, 0, None
    contiguous = np.ascontiguousarray(records)
    accesses = cast(access_pointer, bytes_of(contiguous))
    reason = 0
    # With the GIL, here and below: other threads of the program run on the same CPU.
    index = perform_all(addressof(shadow.table), accesses, seed, start, stop, addressof(out), addressof(reason))
    if reason == 0:
        return index, 0, None
    if reason == REPLAY_MISMATCH:
        return index, MISMATCH, Mismatch(out.address, out.expected[:out.size], out.found[:out.size])
    if reason == REPLAY_NO_MEMORY:
        raise MemoryError("no memory for the shadow")
    if reason == -EINVAL:
        raise ValueError(f"access {index} is none: {records[index]}")
    return index, reason, out.address
