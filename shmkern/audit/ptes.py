# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of page tables and their entries: whose they are, what they map and may, that rmap finds them.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.machine import VPN_BITS
from shmkern.audit.mm import access_prot
from shmkern.audit.swap import is_swap_entry
from shmkern.dump import ACCESSED, DIRTY, PRESENT, PROTNONE, PTE_PFN_MASK, RW, SPECIAL, USER, pte_text

C = layout.constants
PAGE_SIZE = C["PAGE_SIZE"]
PAGE_SHIFT = C["PAGE_SHIFT"]
ANON = C["PAGE_MAPPING_ANON"]
PTE_FILE = C["_PAGE_FILE"]
ENTRIES = C["PTRS_PER_TABLE"]
VM_WRITE = C["VM_WRITE"]
VM_ACCESS = C["VM_ACCESS_FLAGS"]


# ---- page tables ------------------------------------------------------------

def admit_tables(m, pfn, mm, describe):
    """Which of the frames `pfn`, that something points to as page tables, are; marks them.

    Each is flagged PG_pagetable and pointed to once.  `describe(i)` names the pointer.
    """
    inside = pfn < m.max_pfn
    flagged = inside.copy()
    flagged[inside] = m.has("PG_pagetable")[pfn[inside]]
    new = flagged.copy()
    new[flagged] = ~m.table[pfn[flagged]]
    candidates = np.flatnonzero(new)
    first = np.zeros(len(pfn), bool)
    first[candidates[np.unique(pfn[candidates], return_index=True)[1]]] = True

    def finding(text):
        def one(i):
            page = int(pfn[i]) if inside[i] else None
            return f"{describe(i)} {text}", {**m.whose(mm[i]), "page": page, "found": pfn[i]}
        return one

    for mask, text in ((~inside, "points to no frame"),
                       (inside & ~flagged, "points to a frame that is no page table"),
                       (flagged & ~first, "points to a table that is in use elsewhere")):
        m.report.each(mask, "pagetable", finding(text))
    m.table[pfn[first]] = True
    m.table_mm[pfn[first]] = mm[first]
    return first


def find_page_tables(m):
    """Walks all address spaces' upper levels at once; each table is reached exactly once.

    Tables of a level stay in the order of address space and address, so the entries of the
    last level come out sorted.
    """
    m.table = np.zeros(m.max_pfn, bool)
    m.table_mm = np.full(m.max_pfn, -1)
    pgd = m.mm["pgd"]
    # Not a multiple of the page size, or below the frames: a number that is no frame.
    pfn = np.where(pgd % PAGE_SIZE == 0, (pgd - m.kernel.frames_base) >> PAGE_SHIFT, m.max_pfn)
    pfn, mm, vpn = np.minimum(pfn, m.max_pfn).astype(np.int64), np.arange(len(m.mm)), \
        np.zeros(len(m.mm), np.int64)
    good = admit_tables(m, pfn, mm, lambda i: f"pgd of {m.mm_text(i)}")
    pfn, mm, vpn = pfn[good], mm[good], vpn[good]
    for level in ("PGDIR", "PUD", "PMD"):
        entries = m.frames[pfn].ravel()
        at = np.flatnonzero(entries)
        value, row = entries[at], at // ENTRIES
        vpn = vpn[row] + (at % ENTRIES << (C[f"{level}_SHIFT"] - PAGE_SHIFT))
        mm = mm[row]

        def entry(i, level=level, mm=mm, vpn=vpn):
            return f"the {level} entry over {vpn[i] << PAGE_SHIFT:#x} of {m.mm_text(mm[i])}"

        usable = (value & (PRESENT | RW | USER)) == PRESENT | RW | USER
        m.report.each(~usable, "pagetable", lambda i, entry=entry, value=value, mm=mm: (
            f"{entry(i)} is no table entry", {**m.whose(mm[i]), "found": hex(value[i])}))
        mm, vpn = mm[usable], vpn[usable]
        pfn = ((value[usable] & PTE_PFN_MASK) >> PAGE_SHIFT).astype(np.int64)
        good = admit_tables(m, pfn, mm, lambda i, entry=entry, back=np.flatnonzero(usable):
                            entry(back[i]))
        pfn, mm, vpn = pfn[good], mm[good], vpn[good]
    m.leaf_mm = mm
    find_ptes(m, pfn, mm, vpn)


def find_ptes(m, pfn, mm, vpn):
    """All entries that are not none, out of the last-level tables `pfn`; finds for each its
    VMA (-1: none), and counts how often each frame is mapped."""
    entries = m.frames[pfn].ravel()
    at = np.flatnonzero(entries)
    row = at // ENTRIES
    m.pte = entries[at]
    m.pte_mm = mm[row]
    m.pte_vpn = vpn[row] + at % ENTRIES
    m.pte_key = (m.pte_mm << VPN_BITS) + m.pte_vpn
    m.pte_pfn = ((m.pte & PTE_PFN_MASK) >> PAGE_SHIFT).astype(np.int64)
    m.pte_vma = vmas_of(m, m.pte_key)
    m.pte_present = (m.pte & (PRESENT | PROTNONE)) != 0
    counts = m.pte_present & ((m.pte & SPECIAL) == 0) & (m.pte_pfn < m.max_pfn)
    m.maps = np.flatnonzero(counts)
    m.map_pfn = m.pte_pfn[m.maps]
    m.nr_maps = np.bincount(m.map_pfn, minlength=m.max_pfn)


def vmas_of(m, keys):
    """The number of the VMA that each key (address space and page number) lies in, or -1."""
    if not len(m.vma):
        return np.full(len(keys), -1)
    most = 1 << VPN_BITS
    base = m.vma_mm << VPN_BITS
    start = base + np.minimum(m.vma["vm_start"] >> PAGE_SHIFT, most).astype(np.int64)
    end = base + np.minimum(m.vma["vm_end"] >> PAGE_SHIFT, most).astype(np.int64)
    order = np.argsort(start, kind="stable")
    vma = order[np.searchsorted(start[order], keys, side="right") - 1]
    return np.where((start[vma] <= keys) & (keys < end[vma]), vma, -1)


def check_page_tables(m):
    """PG_pagetable is on the frames that were reached and no others; nr_ptes counts each
    address space's last-level tables."""
    m.report.each(m.has("PG_pagetable") & ~m.table, "leak", lambda pfn: (
        "a page table that no address space leads to", {"page": pfn}))
    tables = np.bincount(m.leaf_mm, minlength=len(m.mm))
    m.report.each(tables != m.mm["nr_ptes"], "counter", lambda i: (
        f"nr_ptes is not the number of last-level tables of {m.mm_text(i)}",
        {**m.whose(i), "expected": tables[i], "found": m.mm["nr_ptes"][i]}))


# ---- page table entries and rmap --------------------------------------------

def check_ptes(m):
    """A PTE lies in a VMA and maps a frame, or nothing; in a still machine no migration
    entry is left; a swap entry is that of a slot."""
    def found(i):
        return {**m.pte_details(i), "found": pte_text(int(m.pte[i]))}

    m.report.each(m.pte_vma < 0, "pte", lambda i: ("a PTE outside any VMA", found(i)))
    kind = m.pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]
    swap = ~m.pte_present & ((m.pte & PTE_FILE) == 0)
    migration = swap & (kind >= C["SWP_MIGRATION_READ"])
    m.report.each(migration, "migration_entry", lambda i: (
        "a migration entry is left",
        {**found(i), "page": int(m.pte[i]) >> C["SWP_OFFSET_SHIFT"]}))
    m.report.each(~m.pte_present & ~migration & ~is_swap_entry(m), "pte", lambda i: (
        "neither a frame nor a swap or migration entry", found(i)))
    of_device = find_device_ptes(m)
    m.report.each(m.pte_present & (m.pte_pfn >= m.max_pfn) & ~of_device, "pte", lambda i: (
        "a PTE maps a frame that does not exist", found(i)))
    zero = m.pte_pfn == m.kernel.zero_pfn
    special = (m.pte & SPECIAL) != 0
    m.report.each(m.pte_present & (zero != special) & ~of_device, "pte", lambda i: (
        "SPECIAL is for the zero page, and the zero page for it", found(i)))
    m.report.each(m.pte_present & zero & ((m.pte & RW) != 0), "pte", lambda i: (
        "the zero page is mapped writable", found(i)))


def find_device_ptes(m):
    """Mask of the PTEs that map a device's frames: in VM_PFNMAP areas, which map nothing else, each
    frame once, and those that nobody maps are free."""
    pfnmap = np.append(m.vma["vm_flags"] & C["VM_PFNMAP"] != 0, False)[m.pte_vma]
    banks = m.kernel.nr_nodes * C["DEVICE_FRAMES"]
    frame = m.pte_pfn - m.max_pfn
    good = m.pte_present & pfnmap & (frame >= 0) & (frame < banks) & ((m.pte & SPECIAL) != 0)
    m.report.each(pfnmap & ~good, "device", lambda i: (
        "an area of a device's maps something else", {**m.pte_details(i), "found": pte_text(int(m.pte[i]))}))
    mapped = np.bincount(frame[good], minlength=banks)
    free = m.kernel.device_free[:m.kernel.nr_nodes, None] >> np.arange(C["DEVICE_FRAMES"], dtype=np.uint64) & 1
    m.report.each(mapped + free.ravel().astype(np.int64) != 1, "device", lambda i: (
        "a device's frame is mapped more than once, or neither mapped nor free, or both",
        {"expected": 1, "found": f"{mapped[i]} mappings, {'free' if free.ravel()[i] else 'in use'}"}))
    return good


def check_pte_protection(m):
    """A PTE allows no more than its VMA.  An anonymous page that can be written through one
    PTE has no other: copy-on-write would leak the writes to whoever shares it."""
    def found(i, expected):
        return {**m.pte_details(i), "found": pte_text(int(m.pte[i])), "expected": expected}

    inside = m.pte_present & (m.pte_vma >= 0)
    # One more, for the VMA number -1.
    flags = np.append(m.vma["vm_flags"], np.uint64(0))[m.pte_vma]
    writable = (m.pte & RW) != 0
    m.report.each(inside & writable & ((flags & VM_WRITE) == 0), "pte", lambda i: (
        "a writable PTE in a VMA that does not allow writing", found(i, "not RW")))
    allowed = (flags & VM_ACCESS) != 0
    m.report.each(inside & (allowed != ((m.pte & PRESENT) != 0)), "pte", lambda i: (
        "a PTE is PRESENT for the MMU exactly when its VMA allows any access",
        found(i, "PRESENT" if allowed[i] else "PROTNONE")))
    # RW has been seen to; the others come and go.
    fixed = ~np.uint64(PTE_PFN_MASK | ACCESSED | DIRTY | RW | SPECIAL)
    other = inside & (allowed == ((m.pte & PRESENT) != 0)) & (((m.pte ^ access_prot(flags)) & fixed) != 0)
    m.report.each(other, "pte", lambda i: (
        "a PTE has another protection than its VMA", found(i, pte_text(int(m.pte[i] & ~fixed | access_prot(flags)[i] & fixed)))))
    anon = (m.mapping[m.map_pfn] & ANON) != 0
    shared = anon & writable[m.maps] & (m.nr_maps[m.map_pfn] > 1)
    m.report.each(shared, "pte", lambda i: (
        f"a page with several mappings is mapped writable: {m.mapped_by(m.map_pfn[i])[0]}",
        found(m.maps[i], "not RW")))


def check_rmap(m):
    """rmap of a page finds each PTE that maps it: its mapping is the anon_vma of the VMA that the PTE
    lies in, or the mapping of that VMA's file, and its index the PTE's place there."""
    entry = m.maps[m.pte_vma[m.maps] >= 0]
    vma, pfn = m.pte_vma[entry], m.pte_pfn[entry]
    first = (m.vma["vm_start"] >> PAGE_SHIFT).astype(np.int64)
    start_index = m.vma["vm_pgoff"].astype(np.int64) - first
    file_page = (m.mapping[pfn] & ANON) == 0
    mapping = np.where(file_page & (m.vma_mapping[vma] != 0), m.vma_mapping[vma], m.vma["anon_vma"][vma] + ANON)
    index = m.pte_vpn[entry] + start_index[vma]
    found_mapping, found_index = m.mapping[pfn], m.index[pfn].astype(np.int64)
    m.report.each(found_mapping != mapping, "rmap", lambda i: (
        "the page's mapping is neither the anon_vma nor the file of the VMA that maps it",
        {**m.pte_details(entry[i]), "expected": hex(mapping[i]), "found": hex(found_mapping[i])}))
    m.report.each(found_index != index, "rmap", lambda i: (
        "the page's index is not its place in the VMA that maps it",
        {**m.pte_details(entry[i]), "expected": index[i], "found": found_index[i]}))


def check_rss(m):
    """anon_rss and file_rss count the PTEs that map a page of that sort."""
    anon = (m.mapping[m.map_pfn] & ANON) != 0
    for field, mask in (("anon_rss", anon), ("file_rss", ~anon)):
        count = np.bincount(m.pte_mm[m.maps][mask], minlength=len(m.mm))
        m.report.each(m.mm[field] != count, "counter", lambda i, field=field, count=count: (
            f"{field} is not the number of such PTEs of {m.mm_text(i)}",
            {**m.whose(i), "expected": count[i], "found": m.mm[field][i]}))
