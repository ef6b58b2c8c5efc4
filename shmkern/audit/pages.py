# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of struct pages: references, mappings, owners, flags, the lists that they are on, and the zones'
counters of all that.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout, vmstat
from shmkern.audit.lists import check_rings, lru_of, ring_links
from shmkern.dump import PAGE_FLAGS, page_flags_text

C = layout.constants
NODE_SHIFT = C["NODES_PGSHIFT"]
ANON = C["PAGE_MAPPING_ANON"]
NR_LRU = C["NR_LRU_LISTS"]
MAX_ORDER = C["MAX_ORDER"]
LRU_NAMES = sorted((name for name in C if name.startswith("LRU_")), key=C.get)


# ---- pages ------------------------------------------------------------------

def find_pagevecs(m):
    """A pagevec holds a reference to each of its pages, which are on no list yet, and wait
    in one place only."""
    pvecs = m.tasks["lru_add_pvecs"]
    nr = pvecs["nr"]
    m.report.each((nr > C["PAGEVEC_SIZE"]).any(axis=1), "pagevec", lambda cpu: (
        f"a pagevec of CPU {cpu} is longer than a pagevec",
        {"task": m.pid[cpu], "expected": f"at most {C['PAGEVEC_SIZE']}", "found": nr[cpu].max()}))
    used = np.arange(C["PAGEVEC_SIZE"]) < nr[:, :, None]
    offset = pvecs["pages"][used] - m.kernel.mem_map
    size = layout.sizeof("Page")
    task = m.pid[np.nonzero(used)[0]]
    good = (offset % size == 0) & (offset // size < m.max_pfn)
    m.report.each(~good, "pagevec", lambda i: (
        "a pagevec entry is no page", {"task": task[i], "found": hex(pvecs["pages"][used][i])}))
    pfn = (offset[good] // size).astype(np.int64)
    m.nr_held = np.bincount(pfn, minlength=m.max_pfn)
    waits = m.nr_held > 0

    def holder(page):
        return {"page": page, "task": task[good][pfn == page][0]}

    m.report.each(waits & m.has("PG_lru"), "pagevec", lambda page: (
        "a page in a pagevec is on an LRU list", holder(page)))
    m.report.each(m.nr_held > 1, "pagevec", lambda page: (
        "a page is in pagevecs more than once", {**holder(page), "found": m.nr_held[page]}))


def zero_page(m):
    """Mask of the one zero page."""
    mask = np.zeros(m.max_pfn, bool)
    mask[m.kernel.zero_pfn] = True
    return mask


def check_counts(m):
    """_mapcount + 1 is the number of PTEs; _count is that, one for each pagevec slot, one
    for a page table, one for the zero page, one for the page cache, one for buffers.  Isolated pages have one more, but nobody
    isolates a page in a still machine."""
    def details(pfn, expected, found):
        text, where = m.mapped_by(pfn)
        return f": {text}", {**where, "expected": expected, "found": found}

    def mapcount(pfn):
        text, where = details(pfn, m.nr_maps[pfn] - 1, m.mapcount[pfn])
        return f"_mapcount is not the number of PTEs - 1{text}", where

    def refcount(pfn):
        text, where = details(pfn, expected[pfn], m.count[pfn])
        return f"_count is not the number of references{text}", where

    m.report.each(m.mapcount + 1 != m.nr_maps, "mapcount", mapcount)
    expected = m.nr_maps + m.nr_held + m.table + zero_page(m) + m.cached + m.private
    wrong, owned = m.count != expected, (expected > 0) | m.free
    m.report.each(wrong & owned, "refcount", refcount)
    # A page table that nobody leads to has been told already.
    m.report.each(wrong & ~owned & ~m.has("PG_pagetable"), "leak", lambda pfn: (
        "a frame in use that nobody owns",
        {"page": pfn, "expected": 0, "found": m.count[pfn]}))
    m.report.each(~wrong & ~owned & ~m.absent, "leak", lambda pfn: (
        "a frame that is neither in use nor free", {"page": pfn}))


def check_owners(m):
    """A frame is one thing only: free, a page table, a mapped page, the zero page, or one of a node
    without memory."""
    uses = {"that of a node without memory": m.absent, "free": m.free, "a page table": m.table, "the zero page": zero_page(m),
            "mapped, cached or in a pagevec": (m.nr_maps > 0) | (m.nr_held > 0) | m.cached | m.private}
    several = sum(mask.astype(np.int8) for mask in uses.values()) > 1

    def describe(pfn):
        text, where = m.mapped_by(pfn)
        names = " and ".join(name for name, mask in uses.items() if mask[pfn])
        return f"a frame is {names} at once: {text}", where

    m.report.each(several, "owner", describe)


def check_page_flags(m):
    """In a still machine no page is locked or under writeback; PG_reserved is the zero
    page's, and that of frames that are not there; an anonymous page that is mapped is swap-backed, and on an LRU list or about to
    be, as is a page of the page cache; what is neither, nor an orphan that its buffers keep, is on
    none."""
    def found(message):
        def one(pfn):
            text, where = m.mapped_by(pfn)
            return f"{message}: {text}{page_lock_text(m, pfn)}", \
                {**where, "found": page_flags_text(int(m.flags[pfn]))}
        return one

    mapped, lru = m.nr_maps > 0, m.has("PG_lru")
    unknown = m.flags & ~np.uint64(sum(1 << bit for bit in PAGE_FLAGS.values()) | ((1 << 64) - (1 << NODE_SHIFT)))
    m.report.each((unknown != 0) & ~m.free, "flags", found("a page has a flag that there is not"))
    m.report.each(m.has("PG_locked"), "flags", found("a page is locked"))
    m.report.each(m.has("PG_waiters") & ~m.has("PG_locked", "PG_writeback") & ~m.free, "flags", found(
        "PG_waiters is left on a page that nobody unlocks"))
    m.report.each(m.has("PG_writeback"), "flags", found("a page is under writeback"))
    m.report.each(m.has("PG_reserved") != (zero_page(m) | m.absent), "flags", found(
        "PG_reserved is not on the zero page and absent frames alone"))
    anon = mapped & ((m.mapping & ANON) != 0)
    m.report.each(anon & ~m.has("PG_swapbacked"), "flags", found(
        "an anonymous page is not PG_swapbacked"))
    m.report.each(anon & ~m.has("PG_uptodate"), "flags", found(
        "an anonymous page is mapped and was never filled"))
    kernels = m.table | zero_page(m)
    own = np.where(m.table, 1 << PAGE_FLAGS["PG_pagetable"], 1 << PAGE_FLAGS["PG_reserved"]).astype(np.uint64)
    wrong = ((m.flags & ~np.uint64((1 << 64) - (1 << NODE_SHIFT))) != own) | (m.mapping != 0)
    m.report.each(kernels & wrong & ~m.free & ~mapped, "flags", found(
        "a page table, or the zero page, has the flags or the mapping of something else"))
    if m.frames[m.kernel.zero_pfn].any():
        m.report.add("flags", "the zero page is not zero", page=m.kernel.zero_pfn)
    m.report.each((mapped | m.cached) & ~lru & (m.nr_held == 0), "lru", found(
        "a mapped or cached page is on no LRU list and in no pagevec"))
    m.report.each(lru & ~mapped & ~m.cached & ~m.private & ~m.free, "lru", found(
        "a page on an LRU list is neither mapped nor cached"))


def check_mlocked(m):
    """A page is PG_mlocked exactly when a VM_LOCKED area maps it, and nothing else is on the
    unevictable list."""
    locked_vma = np.append(m.vma["vm_flags"] & C["VM_LOCKED"] != 0, False)
    locked = np.zeros(m.max_pfn, bool)
    locked[m.map_pfn[locked_vma[m.pte_vma[m.maps]]]] = True

    def found(message, expected):
        def one(pfn):
            text, where = m.mapped_by(pfn)
            return f"{message}: {text}", {**where, "expected": expected, "found": page_flags_text(int(m.flags[pfn]))}
        return one

    mlocked = m.has("PG_mlocked")
    m.report.each(locked & ~mlocked, "mlock", found("a locked area maps a page that is not PG_mlocked", "PG_mlocked"))
    # A page of the swap cache may be locked for an area that has a swap entry for it.
    m.report.each(mlocked & ~locked & ~m.free & ~m.has("PG_swapcache"), "mlock", found("a PG_mlocked page that no locked area maps", "not PG_mlocked"))
    m.report.each(m.has("PG_unevictable") & ~mlocked & ~m.free, "mlock", found(
        "a page on the unevictable list could be evicted", "PG_mlocked"))


def page_lock_text(m, pfn):
    """Who holds a page's lock, as far as tasks say."""
    page = m.kernel.mem_map + pfn * layout.sizeof("Page")
    holders = [m.pid[cpu] for cpu in range(len(m.pid))
               if page | C["HELD_PAGE"] in
               m.tasks["held_locks"][cpu][:min(int(m.tasks["nr_held"][cpu]), C["HELD_LOCKS_MAX"])]]
    return f"; locked by task {', '.join(map(str, holders))}" if holders else ""


# ---- lists of pages, counters -----------------------------------------------

def list_heads(m):
    """Addresses and names of all list heads that pages hang on: NR_LRU for each zone, then
    MAX_ORDER for each zone."""
    addresses, names = [], []
    for field, count, step, name in (
            ("lru", NR_LRU, layout.sizeof("ListHead"), "{}"),
            ("free_area", MAX_ORDER, layout.sizeof("FreeArea"), "free_area[{}]")):
        for nid in range(len(m.zones)):
            first = m.kernel.zones + nid * layout.sizeof("Zone") + layout.offsetof("Zone", field)
            for i in range(count):
                addresses.append(first + i * step)
                names.append(f"zone {nid} " + name.format(LRU_NAMES[i] if field == "lru" else i))
    return np.array(addresses, np.uint64), names


def check_page_lists(m):
    """A page with PG_lru is on the list of its zone that its flags say, a free block on that
    of its order, and nothing else is on these lists, forwards or backwards."""
    head_at, names = list_heads(m)
    owner = np.full(m.max_pfn + len(head_at), -1)
    owner[m.max_pfn:] = np.arange(m.max_pfn, len(owner))
    on_lru = np.flatnonzero(m.has("PG_lru") & ~m.has("PG_buddy"))
    owner[on_lru] = m.max_pfn + on_lru // m.zone_size * NR_LRU + lru_of(m.flags[on_lru])
    free_lists = m.max_pfn + len(m.zones) * NR_LRU
    owner[m.block_head] = free_lists + m.block_head // m.zone_size * MAX_ORDER + m.block_order
    next_, prev = ring_links(owner[:m.max_pfn] >= 0, (m.next, m.prev), m.kernel.mem_map + layout.offsetof("Page", "lru"),
                             layout.sizeof("Page"), head_at, m.gather(head_at, "ListHead"))
    broken, lost = check_rings(next_, prev, owner)

    def name(node):
        if node < 0:
            return "something that is no list entry"
        return f"page {node}" if node < m.max_pfn else "the head"

    def describe(node):
        where = f"of {names[owner[node] - m.max_pfn]}"
        details = {"page": node} if node < m.max_pfn else {}
        if node < m.max_pfn:
            details = {**m.mapped_by(node)[1], "found": page_flags_text(int(m.flags[node]))}
        if lost[node]:
            return f"{name(node)} {where} is on a ring that does not lead to the head", details
        after = next_[node]
        text = f"{name(node)} {where}: next is {name(after)}, "
        if after < 0 or owner[after] != owner[node]:
            return text + "which is not on that list", details
        return text + f"whose prev is {name(prev[after])}", details

    wrong = broken | lost
    free_list = owner >= free_lists
    m.report.each(wrong & ~free_list, "lru", describe)
    m.report.each(wrong & free_list, "free_list", describe)


def check_zone_counters(m):
    """vm_stat of each zone, with what CPUs have counted for themselves, is what its pages add up to."""
    found = vmstat.zone_page_states()
    mapped = m.nr_maps > 0
    anon = (m.mapping & ANON) != 0
    on_lru = m.has("PG_lru") & ~m.has("PG_buddy")
    lru = lru_of(m.flags)
    expected = {item: m.per_zone(on_lru & (lru == i)) for i, item in enumerate(
        ("NR_INACTIVE_ANON", "NR_ACTIVE_ANON", "NR_INACTIVE_FILE", "NR_ACTIVE_FILE",
         "NR_UNEVICTABLE"))}
    expected["NR_FREE_PAGES"] = m.per_zone(m.free)
    expected["NR_ANON_PAGES"] = m.per_zone(mapped & anon)
    expected["NR_FILE_MAPPED"] = m.per_zone(mapped & ~anon)
    expected["NR_PAGETABLE"] = m.per_zone(m.table)
    expected["NR_MLOCK"] = m.per_zone(m.has("PG_mlocked") & ~m.free)
    expected["NR_FILE_PAGES"] = m.per_zone(m.cached)
    expected["NR_FILE_DIRTY"] = m.per_zone(m.cached & m.accounts & m.has("PG_dirty"))
    expected["NR_WRITEBACK"] = m.per_zone(m.cached & m.has("PG_writeback"))
    stray = m.tasks["vm_stat_diff"].reshape(-1, C["MAX_NUMNODES"], C["VM_STAT_STRIDE"]).copy()
    stray[:, :len(m.zones), :C["NR_VM_ZONE_STAT_ITEMS"]] = 0
    m.report.each(stray.any(axis=(1, 2)), "counter", lambda cpu: (
        f"CPU {cpu} has counted for a zone, or an item, that there is not", {"task": m.pid[cpu]}))
    for item, sums in expected.items():
        m.report.each(found[:, C[item]] != sums, "counter", lambda nid, item=item, sums=sums: (
            f"zone {nid}: {item} is wrong", {"expected": sums[nid], "found": found[nid, C[item]]}))
