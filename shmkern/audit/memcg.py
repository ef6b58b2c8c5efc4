# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of memory control groups: who is charged for a frame follows from what the
frame is, and what a group is charged and has on its LRU lists from who is charged for the frames.

Steps of audit.audit(), which says what they may take for granted.  May import: layout, audit.lists.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.lists import check_rings, lru_of, ring_links

C = layout.constants
PAGE_SIZE = C["PAGE_SIZE"]
PCG = {name: C[name] for name in ("PCG_CACHE", "PCG_USED", "PCG_MIGRATION")}


def find_mem_cgroups(m):
    """The list of groups is whole, and leads to live objects only.  Fills in mem_cgroup_address
    and mem_cgroup (rows; none in a machine without groups), page_cgroup (rows, one a frame),
    group_of (the number of the group that is charged for each frame, or was last; -1: none) and
    mem_cgroup_zones."""
    kernel = m.kernel
    m.mem_cgroup_address = []
    if kernel.page_cgroup:
        head = kernel.address + layout.offsetof("Kernel", "mem_cgroups")
        offset, before, node = layout.offsetof("MemCgroup", "list"), head, m.u64(head)
        while node != head:
            address = node - offset
            fault = m.object_fault(address, "MemCgroup") or \
                ("is on it twice" if address in m.mem_cgroup_address else None) or \
                ("has a prev that does not lead back" if m.u64(node + 8) != before else None)
            if fault:
                m.report.add("memcg", f"the list of groups: an entry {fault}", address=node)
                break
            m.mem_cgroup_address.append(address)
            before, node = node, m.u64(node)
        else:
            if m.u64(head + 8) != before:
                m.report.add("memcg", "the list of groups: the head's prev is not the last", address=head,
                             expected=hex(before), found=hex(m.u64(head + 8)))
    if kernel.root_mem_cgroup != (m.mem_cgroup_address or [0])[0]:
        m.report.add("memcg", "root_mem_cgroup is not the first group", expected=hex((m.mem_cgroup_address or [0])[0]),
                     found=hex(kernel.root_mem_cgroup))
    m.mem_cgroup = m.gather(m.mem_cgroup_address, "MemCgroup")
    m.page_cgroup = layout.view("PageCgroup", kernel.page_cgroup, m.max_pfn).copy() if kernel.page_cgroup else \
        np.zeros(0, layout.dtypes["PageCgroup"])
    m.group_of = numbers_of(m, m.page_cgroup["mem_cgroup"])
    find_mem_cgroup_zones(m)


def find_mem_cgroup_zones(m):
    """Each group but the first, the root, has a live object for its lists in each zone, and none else.
    Fills in mem_cgroup_zones: their addresses, group by group; no more than are good."""
    m.mem_cgroup_zones = []
    for number, nodeinfo in enumerate(m.mem_cgroup["nodeinfo"]):
        for nid, address in enumerate(nodeinfo.tolist()):
            if number == 0 or nid >= len(m.zones):
                fault = "is there" if address else None
            else:
                fault = m.object_fault(address, "MemCgroupPerZone")
                m.mem_cgroup_zones += [address] if not fault else []
            if fault:
                m.report.add("memcg", f"{group_text(m, number)}: nodeinfo[{nid}] {fault}",
                             address=m.mem_cgroup_address[number], found=hex(address))


def numbers_of(m, addresses):
    """The numbers of the groups at these addresses; -1 where there is none."""
    if not len(m.mem_cgroup_address):
        return np.full(len(addresses), -1)
    known = np.array(m.mem_cgroup_address, np.uint64)
    order = np.argsort(known)
    at = order[np.minimum(np.searchsorted(known[order], addresses), len(known) - 1)]
    return np.where(known[at] == addresses, at, -1)


def group_text(m, number):
    """A group by its name and id."""
    row = m.mem_cgroup[number]
    return f"group {row['name'].decode('utf-8', 'replace')!r} ({row['id']})"


def pcg_text(m, pfn):
    """A page_cgroup in words."""
    row = m.page_cgroup[pfn]
    names = [name for name, bit in PCG.items() if row["flags"] & bit] or ["0"]
    who = group_text(m, m.group_of[pfn]) if m.group_of[pfn] >= 0 else hex(row["mem_cgroup"])
    return f"{'|'.join(names)}, charged to {who}" if row["flags"] & PCG["PCG_USED"] else "|".join(names)


def check_mem_cgroup_tree(m):
    """The groups are a tree below the root: parents come first on the list, counters know their
    parents', nr_children counts; none is being removed.  Every address space is in a group, which
    counts them."""
    rows, addresses = m.mem_cgroup, m.mem_cgroup_address
    if not len(rows):
        return
    parent = numbers_of(m, rows["parent"])
    root = rows["parent"] == 0
    m.report.each((np.arange(len(rows)) == 0) != root, "memcg", lambda i: (
        f"{group_text(m, i)} is a root" if root[i] else f"{group_text(m, i)}, the first, has a parent",
        {"address": addresses[i], "expected": hex(m.kernel.root_mem_cgroup)}))
    m.report.each(~root & ((parent < 0) | (parent >= np.arange(len(rows)))), "memcg", lambda i: (
        f"the parent of {group_text(m, i)} is no group before it",
        {"address": addresses[i], "found": hex(rows["parent"][i])}))
    above = np.where(root, 0, rows["parent"] + np.uint64(layout.offsetof("MemCgroup", "res")))
    ids, times = np.unique(rows["id"], return_counts=True)
    spaces = numbers_of(m, m.mm["mem_cgroup"])
    m.report.each(spaces < 0, "memcg", lambda i: (
        f"{m.mm_text(i)} is in no group", {**m.whose(i), "found": hex(m.mm["mem_cgroup"][i])}))
    for what, found, expected in (
            ("res.parent", rows["res"]["parent"], above),
            ("nr_children", rows["nr_children"], np.bincount(parent[parent >= 0], minlength=len(rows))),
            ("nr_mms", rows["nr_mms"], np.bincount(spaces[spaces >= 0], minlength=len(rows))),
            ("removing", rows["removing"], np.zeros(len(rows), int)),
            ("the number of groups with its id", times[np.searchsorted(ids, rows["id"])], np.ones(len(rows), int))):
        compare(m, what, found, expected)


def compare(m, what, found, expected):
    """One finding for each group of which a number is not what it should be."""
    m.report.each(found != expected, "memcg", lambda i: (
        f"{group_text(m, i)}: {what} is wrong",
        {"address": m.mem_cgroup_address[i], "expected": expected[i], "found": found[i]}))


def check_page_cgroups(m):
    """Exactly the anonymous pages that are mapped and the pages of files in the page cache are charged,
    each to a group that there is; and none is in the air.  A page of the swap cache that is not mapped
    may have kept its charge."""
    if not len(m.page_cgroup):
        return
    flags = m.page_cgroup["flags"]
    expected = np.where((m.nr_maps > 0) & ((m.mapping & C["PAGE_MAPPING_ANON"]) != 0), PCG["PCG_USED"], 0)
    expected[m.cached & ~m.swapped] = PCG["PCG_USED"] | PCG["PCG_CACHE"]
    # Without a mapping it is a file's.
    kept = np.where(flags & PCG["PCG_USED"], flags & np.where(m.mapping == 0, PCG["PCG_USED"] | PCG["PCG_CACHE"],
                                                              PCG["PCG_USED"]), 0)
    expected = np.where(m.swapped & (m.nr_maps == 0), kept, expected)

    def describe(pfn):
        text, where = m.mapped_by(pfn)
        free = ", and is free" if m.free[pfn] else ""
        names = "|".join(name for name, bit in PCG.items() if expected[pfn] & bit) or "0"
        return f"the page_cgroup is not what the page is: {text}{free}", \
            {**where, "expected": names, "found": pcg_text(m, pfn)}

    m.report.each(flags != expected, "memcg", describe)
    used = (flags & PCG["PCG_USED"]) != 0
    m.report.each(used & (m.group_of < 0), "memcg", lambda pfn: (
        "a page is charged to what is no group", {"page": pfn, "found": pcg_text(m, pfn)}))


def check_mem_cgroup_counters(m):
    """A group's own numbers are those of the pages charged to it; its usage is that of its pages
    and all its descendants'; it has a reference for each page, and its own."""
    rows = m.mem_cgroup
    if not len(rows):
        return
    used = (m.page_cgroup["flags"] & PCG["PCG_USED"]) != 0
    cache = (m.page_cgroup["flags"] & PCG["PCG_CACHE"]) != 0
    known = m.group_of >= 0

    def pages(mask):
        return np.bincount(m.group_of[mask & known], minlength=len(rows)).astype(np.uint64)

    own, parent = pages(used), numbers_of(m, rows["parent"])
    usage = own.copy()
    # Children come after their parents.
    for number in reversed(range(len(rows))):
        if 0 <= parent[number] < number:
            usage[parent[number]] += usage[number]
    stat = rows["stat"]
    size = np.uint64(PAGE_SIZE)
    compare(m, "res.usage", rows["res"]["usage"], usage * size)
    compare(m, "css_refcnt", rows["css_refcnt"], own + np.uint64(1))
    compare(m, "stat[CACHE]", stat[:, C["MEM_CGROUP_STAT_CACHE"]], pages(used & cache) * size)
    compare(m, "stat[RSS]", stat[:, C["MEM_CGROUP_STAT_RSS"]], pages(used & ~cache) * size)
    compare(m, "stat[PGPGIN_COUNT] - stat[PGPGOUT_COUNT]", stat[:, C["MEM_CGROUP_STAT_PGPGIN_COUNT"]] -
            stat[:, C["MEM_CGROUP_STAT_PGPGOUT_COUNT"]], own)
    compare(m, "min(res.limit, res.usage)", np.minimum(rows["res"]["limit"], rows["res"]["usage"]), rows["res"]["usage"])
    compare(m, "max(res.max_usage, res.usage)", np.maximum(rows["res"]["max_usage"], rows["res"]["usage"]),
            rows["res"]["max_usage"])


def check_mem_cgroup_lists(m):
    """A page that a group other than the root is charged for, and that is on an LRU list of its zone,
    is on that list of its group, and counted there.  So may be one that the group was charged for; nothing
    else is."""
    zones, nr_lru = len(m.zones), C["NR_LRU_LISTS"]
    if not len(m.page_cgroup) or len(m.mem_cgroup_zones) != (len(m.mem_cgroup) - 1) * zones:
        return
    links = m.page_cgroup["lru"]
    listed = links["next"] != 0
    may_be = m.has("PG_lru") & ~m.has("PG_buddy") & (m.group_of > 0)
    must_be = may_be & ((m.page_cgroup["flags"] & PCG["PCG_USED"]) != 0)
    m.report.each(np.where(listed, ~may_be, must_be), "memcg", lambda pfn: (
        "a page is on a list of a group, and should be on none" if listed[pfn] else
        "a page is not on the list of the group that is charged for it",
        {**m.mapped_by(pfn)[1], "found": pcg_text(m, pfn)}))
    if not m.mem_cgroup_zones:
        return
    lists_at = np.array(m.mem_cgroup_zones, np.uint64) + np.uint64(layout.offsetof("MemCgroupPerZone", "lists"))
    head_at = (lists_at[:, None] + np.arange(nr_lru, dtype=np.uint64) * np.uint64(layout.sizeof("ListHead"))).ravel()
    owner = np.append(np.full(m.max_pfn, -1), m.max_pfn + np.arange(len(head_at)))
    pages = np.flatnonzero(listed & may_be)
    zone = (m.group_of[pages] - 1) * zones + pages // m.zone_size
    owner[pages] = m.max_pfn + zone * nr_lru + lru_of(m.flags[pages])
    broken, lost = check_rings(*ring_links(
        owner[:m.max_pfn] >= 0, (links["next"], links["prev"]),
        m.kernel.page_cgroup + layout.offsetof("PageCgroup", "lru"), layout.sizeof("PageCgroup"),
        head_at, m.gather(head_at, "ListHead")), owner)

    def list_text(number):
        group, rest = divmod(number, zones * nr_lru)
        return f"list {rest % nr_lru} of {group_text(m, group + 1)} in zone {rest // nr_lru}"

    def describe(node):
        what = f"page {node}" if node < m.max_pfn else "the head"
        fault = "not reached from the head" if lost[node] else "not followed by one that leads back"
        return f"{list_text(owner[node] - m.max_pfn)}: {what} is {fault}", \
            {"page": node} if node < m.max_pfn else {"address": head_at[node - m.max_pfn]}

    m.report.each(broken | lost, "memcg", describe)
    expected = np.bincount(owner[pages] - m.max_pfn, minlength=len(head_at))
    found = m.gather(m.mem_cgroup_zones, "MemCgroupPerZone")["count"].ravel()
    m.report.each(found != expected.astype(np.uint64), "memcg", lambda number: (
        f"{list_text(number)}: count is not the number of pages",
        {"address": head_at[number], "expected": expected[number], "found": found[number]}))
