# SPDX-License-Identifier: GPL-2.0-only
"""Counters of a machine, as /proc/vmstat and /proc/zoneinfo give them."""
import numpy as np

from shmkern import layout

C = layout.constants
ZONE_ITEMS = ["NR_INACTIVE_ANON", "NR_ACTIVE_ANON", "NR_INACTIVE_FILE", "NR_ACTIVE_FILE",
              "NR_UNEVICTABLE", "NR_FREE_PAGES", "NR_ANON_PAGES", "NR_FILE_MAPPED",
              "NR_FILE_PAGES", "NR_PAGETABLE", "NR_MLOCK", "NR_FILE_DIRTY", "NR_WRITEBACK"]
EVENTS = ["PGALLOC", "PGFREE", "PGFAULT", "PGFAULT_ANON", "PGFAULT_COW", "PGFAULT_REUSE",
          "PGFAULT_ZERO", "PGFAULT_SEGV", "PGFAULT_OOM", "PGMIGRATE_SUCCESS",
          "PGMIGRATE_FAIL", "PGMIGRATE_RETRY", "MIGRATION_ENTRY_WAIT",
          "MIGRATION_ENTRY_RETRY", "TLB_MISS", "TLB_SHOOTDOWN", "TLB_ACK_WAIT", "ACCESSES",
          "SPIN_PARK", "PAGE_LOCK_WAIT", "RWSEM_WAIT", "FUTEX_WAIT", "PGMAJFAULT",
          "PGFAULT_SIGBUS", "PGPGIN", "PGPGOUT", "PSWPIN", "PSWPOUT", "PGACTIVATE", "PGDEACTIVATE",
          "PGSCAN_KSWAPD", "PGSCAN_DIRECT", "PGSTEAL_KSWAPD", "PGSTEAL_DIRECT", "ALLOCSTALL"]
HISTOGRAMS = {"migration wait": "wait_buckets", "fault": "fault_buckets", "lock wait": "lock_wait_buckets"}


def tasks():
    """All slots, as a live structured array of struct Task."""
    kernel = layout.kernel()
    return layout.view("Task", kernel.tasks, kernel.max_tasks)


def zones():
    """All zones, as a live structured array of struct Zone; one a node."""
    kernel = layout.kernel()
    return layout.view("Zone", kernel.zones, kernel.nr_nodes)


def zone_page_states():
    """The zones' counters, with what CPUs have counted for themselves: an i64 array, a row for
    each zone, a column for each item.  (The sum is exact while nobody is in the kernel.)"""
    rows, nodes = zones()["vm_stat"].view(np.int64), layout.kernel().nr_nodes
    diffs = tasks()["vm_stat_diff"].reshape(-1, C["MAX_NUMNODES"], C["VM_STAT_STRIDE"])
    return rows + diffs[:, :nodes, :rows.shape[1]].sum(axis=0, dtype=np.int64)


def vmstat():
    """A dict of all counters, by Linux's lower-case names: nr_* are levels, in pages, over all
    nodes; the others count since boot, over all tasks there are and were."""
    levels = zone_page_states().sum(axis=0)
    events = tasks()["vm_events"].sum(axis=0) + layout.kernel().vm_events
    counters = {name.lower(): int(levels[C[name]]) for name in ZONE_ITEMS}
    counters |= {name.lower(): int(events[C[name]]) for name in EVENTS}
    return counters


def zoneinfo():
    """A list with a dict for each node: its number, its spanned and its present pages, its watermarks and its
    nr_* counters, in pages."""
    return [{"node": int(zone["node"]), "spanned": int(zone["spanned_pages"]),
             "present": int(zone["present_pages"]),
             "min": int(zone["watermark"][C["WMARK_MIN"]]), "low": int(zone["watermark"][C["WMARK_LOW"]]),
             "high": int(zone["watermark"][C["WMARK_HIGH"]]),
             **{name.lower(): int(level[C[name]]) for name in ZONE_ITEMS}}
            for zone, level in zip(zones(), zone_page_states())]


def histogram(name):
    """A histogram by its name in HISTOGRAMS, of all tasks there are and were: counts of
    NR_WAIT_BUCKETS buckets, four to an octave of nanoseconds.  Of the faults one in FAULT_SAMPLE
    is there."""
    field = HISTOGRAMS[name]
    return tasks()[field].sum(axis=0) + layout.kernel()[field]


def bucket_ns(bucket):
    """The middle of a bucket, in ns."""
    octave, quarter = divmod(bucket, 4)
    return (1 << octave) * (1 + (quarter + 0.5) / 4)


def percentile_us(buckets, percent):
    """The value, in microseconds, that `percent` of the entries of a histogram do not exceed;
    0.0 when it is empty.  Exact to an eighth."""
    total = int(buckets.sum())
    if total == 0:
        return 0.0
    rank = min(int(np.searchsorted(np.cumsum(buckets), total * percent / 100)), len(buckets) - 1)
    return bucket_ns(rank) / 1000
