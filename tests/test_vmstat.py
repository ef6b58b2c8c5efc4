# SPDX-License-Identifier: GPL-2.0-only
"""Promises of the latency histograms: a wait and a fault enter the right bucket, what nobody
waited for enters none, and a task's entries outlive it."""
import time
from collections import Counter

import numpy as np

from helpers import Puppet, counter, page_at, until_asleep
from shmkern import layout, vmstat
from shmkern.kallsyms import ksym
from shmkern.worker import slot

C = layout.constants


def bounds_ns(bucket):
    """The least and the first too long time of a bucket."""
    octave, quarter = divmod(bucket, 4)
    return (4 + quarter) * 2**octave / 4, (5 + quarter) * 2**octave / 4


def entries(name):
    """{bucket: count} of a histogram."""
    buckets = vmstat.histogram(name)
    return {int(bucket): int(buckets[bucket]) for bucket in np.flatnonzero(buckets)}


def wait_for_page_lock(machine):
    """Has one task wait for a page that another has locked.  Returns the two, and between which
    times, in ns, the wait lasted."""
    holder, waiter = Puppet(machine), Puppet(machine)
    va = holder(lambda task: task.mmap(4096))
    holder(lambda task: task.store(va, b"x"))
    page = page_at(holder, va).address
    holder(lambda task: ksym.lock_page(page))
    began = time.monotonic_ns()
    waiter.begin(lambda task: (ksym.lock_page(page), ksym.unlock_page(page)))
    until_asleep(waiter, "WAIT_PAGE_LOCK")
    waits = time.monotonic_ns()
    least = waits + 20_000_000
    while time.monotonic_ns() < least:
        pass
    unlocked = time.monotonic_ns()
    holder(lambda task: ksym.unlock_page(page))
    waiter.reply()
    return holder, waiter, unlocked - waits, time.monotonic_ns() - began


def test_a_wait_for_a_lock_enters_the_bucket_of_its_length(machine):
    _holder, waiter, least, most = wait_for_page_lock(machine)
    (bucket, count), = entries("lock wait").items()
    low, end = bounds_ns(bucket)
    # A process that could not run for two slices takes them for one (wait_check).
    assert count == 1 and end > min(least, C["WAIT_SLICE_NS"]) and low <= most
    assert slot(waiter.cpu).lock_wait_buckets[bucket] == 1
    assert slot(waiter.cpu).vm_events[C["FUTEX_WAIT"]] >= 1


def test_a_free_lock_enters_nothing(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(4096))
    puppet(lambda task: task.store(va, b"x"))
    page = page_at(puppet, va).address
    puppet(lambda task: (ksym.lock_page(page), ksym.unlock_page(page)))
    assert entries("lock wait") == {} == entries("migration wait")
    assert machine.vmstat()["futex_wait"] == 0


def test_entries_outlive_their_task(machine):
    holder, waiter, _least, _most = wait_for_page_lock(machine)
    faults, waits = entries("fault"), entries("lock wait")
    assert sum(waits.values()) == 1 and faults
    holder.exit()
    waiter.exit()
    assert (entries("fault"), entries("lock wait")) == (faults, waits)


def test_one_fault_in_sixteen_is_timed_and_only_whole_ones(machine):
    puppet, counted = Puppet(machine), counter(machine)
    va = puppet(lambda task: task.mmap(160 * 4096))

    def touch(task):
        began = time.monotonic_ns()
        for page in range(160):
            task.store(va + page * 4096, b"x")
        return time.monotonic_ns() - began
    before = Counter(entries("fault"))
    took = puppet(touch)
    faults, after = counted("pgfault"), Counter(entries("fault"))
    timed = after - before
    assert faults >= 160 and abs(timed.total() - faults / C["FAULT_SAMPLE"]) <= 1
    assert all(bounds_ns(bucket)[0] <= took for bucket in timed)
    # One that ends in SIGSEGV is no fault served.
    seen = after.total()
    puppet(lambda task: [_segv(task, 0x1000) for _ in range(40)])
    assert sum(entries("fault").values()) == seen


def _segv(task, address):
    """A load where nothing is mapped."""
    try:
        task.load(address, 1)
    except Exception as error:
        return str(error)
    raise AssertionError("nothing is mapped there")


def test_percentiles_of_a_histogram():
    buckets = np.zeros(C["NR_WAIT_BUCKETS"], np.uint64)
    assert vmstat.percentile_us(buckets, 99.9) == 0.0
    buckets[40], buckets[80] = 999, 1      # around a microsecond, and a millisecond
    assert bounds_ns(40)[0] <= vmstat.percentile_us(buckets, 50) * 1000 < bounds_ns(40)[1]
    assert bounds_ns(80)[0] <= vmstat.percentile_us(buckets, 99.99) * 1000 < bounds_ns(80)[1]
