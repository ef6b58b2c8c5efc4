# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of TLBs: none knows an entry that the page tables do not have.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.machine import VPN_BITS
from shmkern.dump import ACCESSED, DIRTY, PRESENT, PTE_PFN_MASK, RW, pte_text

C = layout.constants
PAGE_SHIFT = C["PAGE_SHIFT"]


def check_tlbs(m):
    """A translation in a TLB is the page table's: the PTE is PRESENT and ACCESSED and maps
    that frame; it is RW if the TLB lets writes pass, and DIRTY if it lets them pass unseen.
    Otherwise a store goes to a page that is not there any more.  CPUs in the middle of an access are
    left out.  A CPU that runs an address space is in its cpu_vm_mask, or no flush would ever reach it."""
    has_mm = m.users_of[m.quiet] >= 0
    rows, tlb = m.quiet[has_mm], m.tlb[has_mm]
    row, slot = np.nonzero(tlb)
    entry, cpu = tlb[row, slot], rows[row]
    mm = m.users_of[cpu]
    vpn = (entry >> C["TLB_TAG_SHIFT"] << C["TLB_INDEX_BITS"]).astype(np.int64) + slot
    pfn = (entry & ((1 << C["TLB_TAG_SHIFT"]) - 1)) >> C["TLB_PFN_SHIFT"]
    pte = lookup_ptes(m, mm, vpn)
    needed = PRESENT | ACCESSED | np.where((entry & C["TLB_WRITE"]) != 0, RW, 0) | \
        np.where((entry & C["TLB_DIRTY"]) != 0, DIRTY, 0)
    valid = (entry & C["TLB_VALID"]) != 0
    stale = ((pte & needed.astype(np.uint64)) != needed) | \
        ((pte & PTE_PFN_MASK) >> PAGE_SHIFT != pfn)

    def describe(i):
        bits = [name for name in ("WRITE", "DIRTY") if entry[i] & C[f"TLB_{name}"]]
        return f"CPU {cpu[i]}: a TLB entry does not agree with the PTE", {
            "page": int(pfn[i]) if pfn[i] < m.max_pfn else None, "task": m.pid[cpu[i]],
            "mm": m.mm["id"][mm[i]], "address": int(vpn[i]) << PAGE_SHIFT,
            "expected": pte_text(int(pte[i])), "found": f"page {'|'.join([str(pfn[i]), *bits])}"}

    m.report.each(valid & stale, "tlb", describe)
    m.report.each(~valid, "tlb", lambda i: (
        f"CPU {cpu[i]}: TLB slot {slot[i]} is neither empty nor valid",
        {"task": m.pid[cpu[i]], "found": hex(entry[i])}))
    # Whether it has translations already or not: the next access makes one.
    used = np.flatnonzero(m.running & (m.users_of >= 0))
    mask = m.mm["cpu_vm_mask"][m.users_of[used], used // 64] >> (used % 64).astype(np.uint64)
    m.report.each(mask & 1 == 0, "tlb", lambda i: (
        f"CPU {used[i]} runs an address space and is not in its cpu_vm_mask",
        {**m.whose(m.users_of[used[i]]), "task": m.pid[used[i]]}))


def lookup_ptes(m, mm, vpn):
    """The PTEs of pages `vpn` of address spaces `mm`; 0 where there is none."""
    if not len(m.pte):
        return np.zeros(len(vpn), np.uint64)
    key = (mm << VPN_BITS) + vpn
    at = np.minimum(np.searchsorted(m.pte_key, key), len(m.pte) - 1)
    return np.where((m.pte_key[at] == key) & (vpn < 1 << VPN_BITS), m.pte[at], 0)
