# SPDX-License-Identifier: GPL-2.0-only
"""What the machine's costs are measured against, on the machine's own memory."""
import cython
import numpy as np
from cython import address as addressof, cast, declare, pointer


def memcpy_frames(sources, targets):
    """Nanoseconds for copying frames, one memcpy of 4 KiB each (libc's), from those numbered in the u64
    array `sources` to those in `targets`.  The targets must be free; they are poisoned again
    afterwards."""
    count = len(targets)
    if len(sources) != len(targets):
        raise ValueError(f"{len(sources)} frames to copy, but {count} to copy to")
    old = cast(word_pointer, frame_numbers(sources))
    new = cast(word_pointer, frame_numbers(targets))
    for index in range(count):
        BUG_ON(page_count(pfn_to_page(new[index])) != 0)
    began = ktime_get_ns()
    for index in range(count):
        copy_page(pfn_to_kaddr(new[index]), pfn_to_kaddr(old[index]))
    ended = ktime_get_ns()
    for index in range(count):
        poison_frames(pfn_to_page(new[index]), 0)
    return ended - began


def evict_frames(frames):
    """Drops the contents and struct pages of the frames numbered in the u64 array from all
    caches, as if they had not been used for long."""
    count = len(frames)
    pfns = cast(word_pointer, frame_numbers(frames))
    for index in range(count):
        flush_cache_line(pfn_to_page(pfns[index]))
        for line in range(0, PAGE_SIZE, 64):
            flush_cache_line(cast(pointer(char), pfn_to_kaddr(pfns[index])) + line)
    smp_mb()


def frame_numbers(array):
    """The numbers in a contiguous u64 array, which the caller keeps.  TypeError for another."""
    if array.dtype != np.uint64:
        raise TypeError(f"frames are numbered by u64, not {array.dtype}")
    return bytes_of(array)


def load64_loop(start, stride, count, rounds):
    """Nanoseconds for `rounds` times `count` aligned loads of the current task, `stride` bytes
    apart from `start` on; all must be mapped."""
    base = declare(u64, start)
    step = declare(u64, stride)
    loads = declare(u64, count)
    times = declare(u64, rounds)
    rc = declare(cython.int, 0)
    total = declare(u64, 0)
    began = ktime_get_ns()
    for _round in range(times):
        for index in range(loads):
            frame = user_access_begin(base + index * step, 0, addressof(rc))
            BUG_ON(cast(u64, frame) == 0)
            total += READ_ONCE64(frame)
            access_end(current())
    return ktime_get_ns() - began


def store64_loop(start, stride, count):
    """Nanoseconds for `count` aligned stores of the current task, `stride` bytes apart from
    `start` on."""
    base = declare(u64, start)
    step = declare(u64, stride)
    stores = declare(u64, count)
    rc = declare(cython.int, 0)
    began = ktime_get_ns()
    for index in range(stores):
        frame = user_access_begin(base + index * step, 1, addressof(rc))
        BUG_ON(cast(u64, frame) == 0)
        WRITE_ONCE64(frame, index)
        access_end(current())
    return ktime_get_ns() - began


def flush_loop(mm, start, count):
    """Nanoseconds for `count` TLB shootdowns of one page each, from address `start` on, in the address
    space whose struct MmStruct is at `mm`; some task has it."""
    where = declare(u64, mm)
    space = cast(pointer(MmStruct), where)
    base = declare(u64, start)
    pages = declare(u64, count)
    began = ktime_get_ns()
    for index in range(pages):
        shoot_down(space, base + index * PAGE_SIZE, base + (index + 1) * PAGE_SIZE)
    return ktime_get_ns() - began


def host_fault_loop(start, count):
    """Nanoseconds for storing to `count` pages of the host's own memory, mapped at `start` and
    not touched yet: its anonymous page faults."""
    base = declare(u64, start)
    pages = declare(u64, count)
    began = ktime_get_ns()
    for index in range(pages):
        WRITE_ONCE64(cast(pointer(char), base + index * PAGE_SIZE), index)
    return ktime_get_ns() - began


def event_loop(event, count):
    """Nanoseconds for meeting a tracepoint `count` times, whether it is on or off."""
    number = declare(u64, event)
    times = declare(u64, count)
    began = ktime_get_ns()
    for index in range(times):
        if trace_enabled(number):
            trace_write(number, index, ~index, index, ~index, index, ~index)
    return ktime_get_ns() - began
