# SPDX-License-Identifier: GPL-2.0-only
"""Flags of struct page and PTEs in words, as dump_page() of mm/debug.c says them.

May import: layout.
"""
from shmkern import layout

C = layout.constants
PAGE_SHIFT = C["PAGE_SHIFT"]
NODE_SHIFT = C["NODES_PGSHIFT"]
PRESENT = C["_PAGE_PRESENT"]
RW = C["_PAGE_RW"]
USER = C["_PAGE_USER"]
ACCESSED = C["_PAGE_ACCESSED"]
DIRTY = C["_PAGE_DIRTY"]
PROTNONE = C["_PAGE_PROTNONE"]
SPECIAL = C["_PAGE_SPECIAL"]
NX = 1 << 63
PTE_BITS = {"PRESENT": PRESENT, "RW": RW, "USER": USER, "ACCESSED": ACCESSED, "DIRTY": DIRTY,
            "PROTNONE": PROTNONE, "SPECIAL": SPECIAL, "NX": NX}
# A macro in pagetable.pxd, so layout does not know it.
PTE_PFN_MASK = 0x000ffffffffff000
PAGE_FLAGS = {name: C[name] for name in C if name.startswith("PG_")}


def page_flags_text(flags):
    """struct page flags in words: "PG_lru|PG_active, node 1"."""
    names = [name for name, bit in PAGE_FLAGS.items() if flags >> bit & 1]
    return f"{'|'.join(names) or '0'}, node {flags >> NODE_SHIFT}"


def pte_text(pte):
    """A PTE in words."""
    if pte == 0:
        return "none"
    if pte & (PRESENT | PROTNONE):
        names = [name for name, bit in PTE_BITS.items() if pte & bit]
        return f"page {(pte & PTE_PFN_MASK) >> PAGE_SHIFT} {'|'.join(names)}"
    kind, offset = pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"], pte >> C["SWP_OFFSET_SHIFT"]
    if kind >= C["SWP_MIGRATION_READ"]:
        how = "write" if kind == C["SWP_MIGRATION_WRITE"] else "read"
        return f"{how} migration entry of page {offset}"
    return f"swap entry of type {kind}, offset {offset}"
