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
from shmkern.audit import block, files, free, locks, memcg, mm, pages, policy, ptes, slab, swap, tlb
from shmkern.audit.findings import Audit, AuditError, Finding, Report
from shmkern.audit.machine import Machine


def audit(strict_tlb=True, check_poison=False):
    """Audits the machine whose block is mapped in this process; nobody may be inside the
    kernel meanwhile.

    Without `strict_tlb` the TLBs are left out.  `check_poison` also reads all free frames
    that were ever used, if the machine poisons them.  Returns an Audit; raises
    OSError(ENXIO) when no machine is mapped.
    """
    report = Report()
    if not block.check_header(report) or not block.check_regions(report):
        return Audit(report.findings)
    m = Machine(report)
    # Each of the find_* functions needs those before it.
    for step in (block.check_zones, slab.find_caches, slab.find_free_objects, slab.find_rcu_pending, mm.check_tasks,
                 mm.find_address_spaces, mm.find_vmas, mm.check_vmas, mm.check_rb_trees, files.find_files,
                 mm.check_vma_flags, files.find_cached_pages, swap.find_swap_cache, files.find_buffers,
                 files.check_i_mmap, mm.check_anon_vmas, policy.find_shared_policies, policy.find_policies,
                 policy.check_cpusets, memcg.find_mem_cgroups, ptes.find_page_tables, ptes.check_page_tables,
                 pages.find_pagevecs, free.find_free_blocks, ptes.check_ptes, swap.check_swap_map,
                 ptes.check_pte_protection, ptes.check_rmap, files.check_cached_pages, ptes.check_rss,
                 pages.check_counts, pages.check_owners, pages.check_page_flags, pages.check_mlocked,
                 free.check_buddies, free.check_free_pages, free.check_free_counts, pages.check_page_lists,
                 pages.check_zone_counters, memcg.check_mem_cgroup_tree, memcg.check_page_cgroups,
                 memcg.check_mem_cgroup_counters, memcg.check_mem_cgroup_lists, slab.check_slab_usage,
                 locks.check_locks):
        step(m)
    if strict_tlb:
        tlb.check_tlbs(m)
    if check_poison and m.kernel.poison:
        free.check_frame_poison(m)
    return Audit(report.findings)
