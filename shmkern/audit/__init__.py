# SPDX-License-Identifier: GPL-2.0-only
"""What must hold in a machine that stands still, computed from the page tables up.

Primary state is what the machine means: which tasks run which address space, its VMAs,
its page tables.  All the rest (reference and map counts, rmap, LRU and free lists,
counters, TLBs, lock words) follows from it.  The audit computes what follows and
compares it with what the block says; each difference is a Finding.

The machine is a patient that may be badly hurt: no pointer is followed before it is
known to lead to a whole object of the right region, every walk of a list is bounded,
and whatever fails that is a finding too.  So the audit itself neither crashes nor hangs.

How it is fast: struct page is read once into columns, the last-level page tables are
taken out of the frames with one indexing, and every check is an operation on these
arrays.  Lists of a million pages are not walked (see lists.py).  Only objects that are few (VMAs, address spaces,
free slab objects) are visited one by one.

Still means that nobody is inside the kernel.  Tasks may go on accessing memory that is
mapped: their MMUs fill TLBs and set ACCESSED and DIRTY in PTEs, and nothing else.  So the
TLBs are read before the PTEs that they must agree with.

May import, all files of this package: layout, vmstat, dump.  Takes no lock; whoever calls it has frozen the machine.
"""
from shmkern.audit.block import check_header, check_regions, check_zones
from shmkern.audit.files import check_cached_pages, check_i_mmap, find_buffers, find_cached_pages, find_files
from shmkern.audit.findings import Audit, AuditError, Finding, Report
from shmkern.audit.free import (
    check_buddies, check_frame_poison, check_free_counts, check_free_pages, find_free_blocks)
from shmkern.audit.locks import check_locks
from shmkern.audit.machine import Machine
from shmkern.audit.memcg import (
    check_mem_cgroup_counters, check_mem_cgroup_lists, check_mem_cgroup_tree, check_page_cgroups, find_mem_cgroups)
from shmkern.audit.mm import (
    check_anon_vmas, check_rb_trees, check_tasks, check_vma_flags, check_vmas, find_address_spaces, find_vmas)
from shmkern.audit.pages import (
    check_counts, check_mlocked, check_owners, check_page_flags, check_page_lists, check_zone_counters,
    find_pagevecs)
from shmkern.audit.policy import check_cpusets, find_policies, find_shared_policies
from shmkern.audit.ptes import (
    check_page_tables, check_pte_protection, check_ptes, check_rmap, check_rss, find_page_tables)
from shmkern.audit.slab import check_slab_usage, find_caches, find_free_objects, find_rcu_pending
from shmkern.audit.swap import check_swap_map, find_swap_cache
from shmkern.audit.tlb import check_tlbs


def audit(strict_tlb=True, check_poison=False):
    """Audits the machine whose block is mapped in this process; nobody may be inside the
    kernel meanwhile.

    Without `strict_tlb` the TLBs are left out.  `check_poison` also reads all free frames
    that were ever used, if the machine poisons them.  Returns an Audit; raises
    OSError(ENXIO) when no machine is mapped.
    """
    report = Report()
    if not check_header(report) or not check_regions(report):
        return Audit(report.findings)
    m = Machine(report)
    # Each of the find_* functions needs those before it.
    for step in (check_zones, find_caches, find_free_objects, find_rcu_pending,
                 check_tasks, find_address_spaces, find_vmas, check_vmas, check_rb_trees,
                 find_files, check_vma_flags, find_cached_pages, find_swap_cache, find_buffers, check_i_mmap, check_anon_vmas,
                 find_shared_policies, find_policies, check_cpusets, find_mem_cgroups, find_page_tables,
                 check_page_tables, find_pagevecs,
                 find_free_blocks, check_ptes, check_swap_map, check_pte_protection, check_rmap,
                 check_cached_pages, check_rss,
                 check_counts, check_owners, check_page_flags, check_mlocked,
                 check_buddies, check_free_pages, check_free_counts,
                 check_page_lists, check_zone_counters, check_mem_cgroup_tree,
                 check_page_cgroups, check_mem_cgroup_counters,
                 check_mem_cgroup_lists,
                 check_slab_usage, check_locks):
        step(m)
    if strict_tlb:
        check_tlbs(m)
    if check_poison and m.kernel.poison:
        check_frame_poison(m)
    return Audit(report.findings)
