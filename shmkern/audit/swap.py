# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of swap: the swap cache, and that each slot is counted as often as it is used.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.files import walk_page_tree
from shmkern.dump import RW, page_flags_text

C = layout.constants
PAGE_SHIFT = C["PAGE_SHIFT"]
PTE_FILE = C["_PAGE_FILE"]


def entry_text(area, slot):
    """A swap entry in words, as pte_text has it."""
    return f"swap entry of type {area}, offset {slot}"


def entry_word(area, slot):
    """A swap entry as PTEs and pages have it."""
    return area << C["SWP_TYPE_SHIFT"] | slot << C["SWP_OFFSET_SHIFT"]


def find_swap_areas(m):
    """Each area's map lies in the room for maps and overlaps no other's.

    Makes m.swap_maps, a live array of counts for each area that is in use, and m.swap_uses, the
    counts that will be found.
    """
    kernel = m.kernel
    m.swap_maps, m.swap_uses, taken = {}, {}, []
    for area in range(kernel.nr_swapfiles):
        info = kernel.swap_info[area]
        if not info["flags"] & C["SWP_USED"]:
            continue
        first = (int(info["swap_map"]) - kernel.swap_maps) // 2
        end = first + int(info["max"])
        if not 0 <= first < end <= kernel.swap_maps_size or \
                any(first < other_end and other < end for other, other_end in taken):
            m.report.add("swap", f"area {area}: its map is not in the room for maps, or is another's as well",
                         address=info["swap_map"])
            continue
        taken.append((first, end))
        m.swap_maps[area] = layout.view("u16", int(info["swap_map"]), int(info["max"]))
        m.swap_uses[area] = np.zeros(int(info["max"]), np.int64)


def find_swap_cache(m):
    """The pages of the swap cache's tree are those with PG_swapcache, each at the index of the entry
    that its private has; nrpages counts them.  They are m.cached too."""
    find_swap_areas(m)
    space, pages = m.kernel.swapper_space, []
    if space.page_tree.rnode:
        walk_page_tree(m, "swapper_space", space.page_tree.rnode, 0, None, 0, pages)
    if len(pages) != space.nrpages:
        m.report.add("counter", "swapper_space.nrpages is not the number of pages in its tree",
                     expected=len(pages), found=space.nrpages)
    m.swapped = np.zeros(m.max_pfn, bool)
    for entry in m.file_entries:
        area, slot = entry >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"], entry >> C["SWP_OFFSET_SHIFT"]
        if area not in m.swap_uses or not 0 < slot < len(m.swap_uses[area]):
            m.report.add("swap", f"a page tree has {entry_text(area, slot)}, which no area has", found=hex(entry))
        else:
            m.swap_uses[area][slot] += 1
    for pfn, index, _tags in pages:
        area, slot = index >> C["SWP_INDEX_TYPE_SHIFT"], index & (1 << C["SWP_INDEX_TYPE_SHIFT"]) - 1
        text = entry_text(area, slot)
        if m.cached[pfn]:
            m.report.add("swap", f"a page is in the swap cache for {text}, and in a cache already", page=pfn)
        m.cached[pfn] = m.swapped[pfn] = True
        if area not in m.swap_uses or not 0 < slot < len(m.swap_uses[area]):
            m.report.add("swap", f"the swap cache has a page for {text}, which no area has", page=pfn)
            continue
        m.swap_uses[area][slot] += 1
        if m.private_word[pfn] != entry_word(area, slot):
            m.report.add("swap", f"private of a page in the swap cache is not {text}", page=pfn,
                         expected=hex(entry_word(area, slot)), found=hex(m.private_word[pfn]))
    m.report.each(m.has("PG_swapcache") != m.swapped, "swap", lambda pfn: (
        "PG_swapcache is not on the pages of the swap cache alone",
        {"page": pfn, "found": page_flags_text(int(m.flags[pfn]))}))


def is_swap_entry(m):
    """Mask of the PTEs that are swap entries of a slot that some area has."""
    kind = (m.pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]).astype(np.int64)
    slot = (m.pte >> C["SWP_OFFSET_SHIFT"]).astype(np.int64)
    most = np.zeros(C["SWP_TYPE_MASK"] + 1, np.int64)
    for area, uses in m.swap_uses.items():
        most[area] = len(uses)
    return ~m.pte_present & ((m.pte & PTE_FILE) == 0) & (slot > 0) & (slot < most[kind])


def check_swap_map(m):
    """Each slot's count is the number of its uses; swap_ents counts each address space's swap
    entries; a page that somebody may write has no swap entry left; and what an area and the
    machine count of slots is what the maps say."""
    swapped = np.flatnonzero(is_swap_entry(m))
    kind = (m.pte[swapped] >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]).astype(np.int64)
    slot = (m.pte[swapped] >> C["SWP_OFFSET_SHIFT"]).astype(np.int64)
    users = np.bincount(m.pte_mm[swapped], minlength=len(m.mm))
    m.report.each(m.mm["swap_ents"] != users, "counter", lambda i: (
        f"swap_ents is not the number of swap entries of {m.mm_text(i)}",
        {**m.whose(i), "expected": users[i], "found": m.mm["swap_ents"][i]}))
    page_of = {int(m.private_word[pfn]): pfn for pfn in np.flatnonzero(m.swapped).tolist()}
    check_shared_writable(m, kind, slot)
    free, pages = 0, 0
    for area, uses in m.swap_uses.items():
        np.add.at(uses, slot[kind == area], 1)
        check_area(m, area, uses, lambda at, area=area: swapped[(kind == area) & (slot == at)], page_of)
        pages += len(uses) - 1
        free += int((m.swap_maps[area][1:] == 0).sum())
    for counter, expected in (("total_swap_pages", pages), ("nr_swap_pages", free)):
        if m.kernel[counter] != expected:
            m.report.add("counter", f"kernel.{counter} is not what the areas add up to", expected=expected,
                         found=m.kernel[counter])


def check_shared_writable(m, kind, slot):
    """A page that is mapped writable has no swap entry: its slot's other user would see the writes."""
    entries = set(zip(kind.tolist(), slot.tolist(), strict=True))
    rw = (m.pte[m.maps] & RW) != 0
    writable = m.maps[rw & m.swapped[m.map_pfn]]
    for entry in writable.tolist():
        private = int(m.private_word[m.pte_pfn[entry]])
        area, at = private >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"], private >> C["SWP_OFFSET_SHIFT"]
        if (area, at) in entries:
            m.report.add("swap", f"a page is mapped writable while others have {entry_text(area, at)} for it",
                         **m.pte_details(entry))


def check_area(m, area, uses, entries_of, page_of):
    """One area: its map, its count of slots in use, and the bounds of its free slots."""
    info, found = m.kernel.swap_info[area], m.swap_maps[area].astype(np.int64)
    if found[0] != C["SWAP_MAP_BAD"]:
        m.report.add("swap", f"area {area}: slot 0 can be given out", expected=hex(C["SWAP_MAP_BAD"]),
                     found=hex(found[0]))
    uses[0] = found[0]

    def describe(slot):
        entry = entry_word(area, slot)
        details = {"expected": uses[slot], "found": found[slot]}
        if entry in page_of:
            details["page"] = page_of[entry]
        users = entries_of(slot)
        if len(users):
            details |= {"address": int(m.pte_vpn[users[0]]) << PAGE_SHIFT, **m.whose(m.pte_mm[users[0]])}
        return f"the count of {entry_text(area, slot)} is not the number of its uses", details

    m.report.each(found != uses, "swap", describe)
    free = np.flatnonzero(found[1:] == 0) + 1
    if info["inuse_pages"] != len(found) - 1 - len(free):
        m.report.add("counter", f"area {area}: inuse_pages is not the number of slots in use",
                     expected=len(found) - 1 - len(free), found=info["inuse_pages"])
    if info["highest_bit"] >= len(found):
        m.report.add("swap", f"area {area}: highest_bit is no slot", expected=f"below {len(found)}", found=info["highest_bit"])
    outside = free[(free < info["lowest_bit"]) | (free > info["highest_bit"])]
    if len(outside):
        m.report.add("swap", f"area {area}: free slot {outside[0]} lies outside lowest_bit and highest_bit, and "
                     "will never be found", expected=f"{info['lowest_bit']}-{info['highest_bit']}", found=outside[0])
