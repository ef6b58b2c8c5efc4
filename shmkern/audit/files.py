# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of files: who has one open, its page tree, its pages' buffers, the areas that map it.

Steps of audit.audit(), which says what they may take for granted.
"""
from collections import Counter

import numpy as np

from shmkern import layout
from shmkern.audit.findings import LIMIT
from shmkern.audit.lists import list_addresses, walk_rb_tree
from shmkern.dump import PAGE_FLAGS, RW, pte_text

C = layout.constants
PAGE_SIZE = C["PAGE_SIZE"]
PAGE_SHIFT = C["PAGE_SHIFT"]
ANON = C["PAGE_MAPPING_ANON"]

# Whose dirty pages are counted and tagged: those that are written back.
ACCOUNTING = [C[name] for name in ("AOPS_PAGE", "AOPS_BUFFER", "AOPS_FALLBACK", "AOPS_FIXED")]


def find_files(m):
    """Descriptor tables, open files, inodes: each counts who has it.  A task has a descriptor table;
    a descriptor and a VMA have a file; an open file has an inode, and all inodes are on one list."""
    head = m.kernel.address + layout.offsetof("Kernel", "inodes")
    m.inode_address, _whole = list_addresses(m, head, "Inode", "i_list")
    m.inode = m.gather(m.inode_address, "Inode")
    m.files, users = {}, Counter(int(address) for address in m.tasks["files"][m.live] if address)
    for address, count in users.items():
        fault = m.object_fault(address, "FilesStruct")
        if fault:
            m.report.add("file", f"a task's descriptor table {fault}", address=address)
            continue
        m.files[address] = count
        table = layout.struct("FilesStruct", address)
        if table.count != count:
            m.report.add("file", "the count of a descriptor table is not the number of tasks that have it",
                         address=address, expected=count, found=table.count)
    uses = Counter(int(file) for address in m.files for file in layout.struct("FilesStruct", address).fd if file)
    uses.update(int(file) for file in m.vma["vm_file"] if file)
    m.file_address, mapping_of, opened = [], {}, Counter()
    for address, count in uses.items():
        fault = m.object_fault(address, "File")
        if fault:
            m.report.add("file", f"an open file {fault}", address=address)
            continue
        m.file_address.append(address)
        file = layout.struct("File", address)
        # An inode begins with its mapping.
        mapping_of[address] = file.f_mapping
        opened[file.f_mapping] += 1
        if file.f_count != count:
            m.report.add("file", "f_count is not the number of descriptors and areas", address=address,
                         expected=count, found=file.f_count)
        if file.f_mapping not in m.inode_address:
            m.report.add("file", "an open file's inode is not on the list of inodes", address=address,
                         found=hex(file.f_mapping))
    for address, row in zip(m.inode_address, m.inode):
        if row["i_count"] != opened[address]:
            m.report.add("file", f"i_count of inode {row['i_id']} is not the number of its open files",
                         address=address, expected=opened[address], found=int(row["i_count"]))
    m.vma_mapping = np.array([mapping_of.get(int(file), 0) for file in m.vma["vm_file"]], np.uint64)
    check_inodes(m)


def check_inodes(m):
    """A mapping leads back to its inode and knows what to do with its pages; and an inode's number, by which
    processes know their descriptors, is its own."""
    ids = Counter(m.inode["i_id"].tolist())
    for address, row in zip(m.inode_address, m.inode):
        data = row["i_data"]
        for what, found, good in (
                ("i_data.host is another", data["host"], data["host"] == address),
                ("i_data.a_ops are no file's", data["a_ops"], C["AOPS_NONE"] < data["a_ops"] < C["AOPS_SWAP"]),
                ("i_id is another's as well, or was not given yet", row["i_id"],
                 ids[int(row["i_id"])] == 1 and row["i_id"] <= m.kernel.next_inode_id)):
            if not good:
                m.report.add("file", f"inode {row['i_id']}: {what}", address=address, found=found)


def find_preloads(m):
    """Nodes that a task has laid by for page trees are live objects, and each is one task's alone."""
    m.tree_nodes, most = set(), C["RADIX_TREE_PRELOAD_SIZE"]
    for cpu in np.flatnonzero(m.live & (m.tasks["nr_preloads"] != 0)).tolist():
        count = int(m.tasks["nr_preloads"][cpu])
        if count > most:
            m.report.add("page_tree", "a task has more preloads than there is room for", task=m.pid[cpu],
                         expected=f"at most {most}", found=count)
        for address in m.tasks["radix_tree_preloads"][cpu][:min(count, most)].tolist():
            fault = m.object_fault(address, "RadixTreeNode") or \
                ("is in use elsewhere" if address in m.tree_nodes | m.rcu_pending["RadixTreeNode"] else None)
            if fault:
                m.report.add("page_tree", f"a preload of a task {fault}", task=m.pid[cpu], address=address)
            else:
                m.tree_nodes.add(address)


def find_cached_pages(m):
    """Each page tree is well formed, with tags, and has nrpages pages, each of which says that it is
    there; and each page that says so is."""
    m.cached = np.zeros(m.max_pfn, bool)
    m.tagged, m.accounts, m.behind = m.cached.copy(), m.cached.copy(), m.cached.copy()
    m.file_entries = []
    find_preloads(m)
    for address, row in zip(m.inode_address, m.inode):
        data, pages, entries = row["i_data"], [], []
        if data["page_tree"]["rnode"]:
            walk_page_tree(m, int(row["i_id"]), int(data["page_tree"]["rnode"]), 0, None, 0, pages, entries)
        if len(pages) != data["nrpages"]:
            m.report.add("page_tree", f"nrpages of inode {row['i_id']} is wrong", address=address,
                         expected=len(pages), found=int(data["nrpages"]))
        if len(entries) != row["i_swapped"]:
            m.report.add("page_tree", f"i_swapped of inode {row['i_id']} is wrong", address=address,
                         expected=len(entries), found=int(row["i_swapped"]))
        if entries and data["a_ops"] != C["AOPS_SHMEM"]:
            m.report.add("page_tree", f"inode {row['i_id']}, a file of the host, has swap entries", address=address)
        m.file_entries += entries
        accounts = data["a_ops"] in ACCOUNTING
        end = -(-int(row["i_size"]) // PAGE_SIZE)
        for pfn, index, tags in pages:
            if m.cached[pfn]:
                m.report.add("page_tree", "a page is in a page tree twice", page=pfn)
            m.cached[pfn], m.accounts[pfn], m.behind[pfn] = True, accounts, index >= end
            m.tagged[pfn] = tags >> C["PAGECACHE_TAG_DIRTY"] & 1
            if m.mapping[pfn] != address or m.index[pfn] != index:
                m.report.add("page_tree", f"a page in the tree of inode {row['i_id']} at index {index} says otherwise",
                             page=pfn, expected=hex(address), found=f"{m.mapping[pfn]:#x}, index {m.index[pfn]}")
            if tags >> C["PAGECACHE_TAG_WRITEBACK"] & 1:
                m.report.add("page_tree", "a page is tagged as under writeback", page=pfn)
    lost = (m.mapping != 0) & ((m.mapping & ANON) == 0) & ~m.cached
    m.report.each(lost & ~m.has("PG_buddy"), "page_tree", lambda pfn: (
        "a page says that it is in a mapping and is not", {"page": pfn, "found": hex(m.mapping[pfn])}))


def walk_page_tree(m, inode, address, parent, height, base, pages, entries=None):
    """Adds (frame, index, tags) of all pages below a node, whose height must be `height` (None: any),
    and the swap entries to `entries` (None: there may be none).  Returns which tags are set below it."""
    fault = m.object_fault(address, "RadixTreeNode") or \
        ("is in use elsewhere" if address in m.tree_nodes | m.rcu_pending["RadixTreeNode"] else None)
    if fault:
        m.report.add("page_tree", f"a node of the tree of inode {inode} {fault}", address=address)
        return 0
    m.tree_nodes.add(address)
    node = layout.struct("RadixTreeNode", address)
    slots, of_node = node.slots.copy(), [int(tags) for tags in node.tags]
    used = np.flatnonzero(slots).tolist()
    height = node.height if height is None else height
    if node.height != height or not 1 <= height <= C["RADIX_TREE_MAX_PATH"] or \
            node.parent != parent or node.count != len(used):
        m.report.add("page_tree", f"a node of the tree of inode {inode} is wrong", address=address,
                     expected=f"height {height}, parent {parent:#x}, count {len(used)}",
                     found=f"height {node.height}, parent {node.parent:#x}, count {node.count}")
        return 0
    tags_of = {}
    for slot in used:
        index = base << C["RADIX_TREE_MAP_SHIFT"] | slot
        if height > 1:
            tags_of[slot] = walk_page_tree(m, inode, int(slots[slot]), address, height - 1, index, pages, entries)
            continue
        tags_of[slot] = sum((tags >> slot & 1) << tag for tag, tags in enumerate(of_node))
        if entries is not None and slots[slot] & C["RADIX_TREE_EXCEPTIONAL"]:
            entries.append(int(slots[slot]) & ~C["RADIX_TREE_EXCEPTIONAL"])
            continue
        pfn, rest = divmod(int(slots[slot]) - m.kernel.mem_map, layout.sizeof("Page"))
        if rest or not 0 <= pfn < m.max_pfn:
            m.report.add("page_tree", f"the tree of inode {inode} has what is no page", address=int(slots[slot]))
        else:
            pages.append((pfn, index, tags_of[slot]))
    for tag, found in enumerate(of_node):
        expected = sum(1 << slot for slot in used if tags_of[slot] >> tag & 1)
        if found != expected:
            m.report.add("page_tree", f"tag {tag} of a node of inode {inode} is wrong", address=address,
                         expected=hex(expected), found=hex(found))
    return sum(1 << tag for tag, tags in enumerate(of_node) if tags)


def find_buffers(m):
    """A page with PG_private has a ring of buffers that fill it, in order, and know it; nobody uses
    one in a still machine; a dirty one lies in a dirty page."""
    m.private = m.has("PG_private") & ~m.has("PG_buddy")
    m.nr_buffers, seen = 0, set()
    for pfn in np.flatnonzero(m.private).tolist():
        first = address = int(m.private_word[pfn])
        offset, dirty, fault = 0, False, None
        while not fault and (address != first or offset == 0):
            fault = m.object_fault(address, "BufferHead") or ("is in a ring twice" if address in seen else None)
            if fault:
                break
            seen.add(address)
            bh = layout.struct("BufferHead", address)
            fault = buffer_fault(m, bh, pfn, offset)
            dirty |= bool(bh.b_state >> C["BH_Dirty"] & 1)
            offset += bh.b_size
            address = bh.b_this_page
        if not fault and offset != PAGE_SIZE:
            fault = f"is one of a ring of {offset} bytes"
        if fault:
            m.report.add("buffer", f"a buffer {fault}", page=pfn, address=address)
        elif dirty and not m.flags[pfn] >> PAGE_FLAGS["PG_dirty"] & 1:
            m.report.add("buffer", "a dirty buffer in a clean page", page=pfn, address=first)
    m.nr_buffers = len(seen)


def buffer_fault(m, bh, pfn, offset):
    """Why this cannot be the buffer at `offset` of a page, or None."""
    if bh.b_page != m.kernel.mem_map + pfn * layout.sizeof("Page") or \
            bh.b_data != m.kernel.frames_base + pfn * PAGE_SIZE + offset or bh.b_size not in (512, 1024, 2048, 4096):
        return "is not that part of its page"
    if m.cached[pfn] and bh.b_blocknr * bh.b_size != m.index[pfn] * PAGE_SIZE + offset:
        return f"is of block {bh.b_blocknr}, and page {m.index[pfn]} of the file"
    if m.flags[pfn] >> PAGE_FLAGS["PG_uptodate"] & 1 and not bh.b_state >> C["BH_Uptodate"] & 1:
        return "was not read, and its page was"
    if bh.b_count != 0 or bh.b_state >> C["BH_Lock"] & 1 or bh.b_state >> C["BH_Async_Write"] & 1:
        return "is in use"
    return None


def check_cached_pages(m):
    """A page of a file that is written back is tagged dirty exactly when it is dirty, and dirty when a
    PTE lets a program write it: or the flusher would not find what is written.  What is mapped has
    been read.  Behind its file's end is at most what a fault has brought that came too late."""
    dirty = m.has("PG_dirty")
    m.report.each(m.cached & (m.tagged != (dirty & m.accounts)), "page_tree", lambda pfn: (
        "the dirty tag of a page is not its PG_dirty",
        {"page": pfn, "expected": int(dirty[pfn] & m.accounts[pfn]), "found": int(m.tagged[pfn])}))
    entry = m.maps[m.cached[m.map_pfn] & m.accounts[m.map_pfn]]
    clean = ((m.pte[entry] & RW) != 0) & ~dirty[m.pte_pfn[entry]]
    m.report.each(clean, "pte", lambda i: (
        "a clean page of a file is mapped writable", {**m.pte_details(entry[i]), "found": pte_text(int(m.pte[entry[i]]))}))
    m.report.each(m.behind & (dirty | (m.nr_maps > 0)), "page_tree", lambda pfn: (
        "a page behind the end of its file is dirty or mapped", {**m.mapped_by(pfn)[1], "found": m.index[pfn]}))
    m.report.each(m.cached & (m.nr_maps > 0) & ~m.has("PG_uptodate"), "flags", lambda pfn: (
        "a page of a file is mapped and was not read", m.mapped_by(pfn)[1]))


def check_i_mmap(m):
    """Each mapping's i_mmap is a red-black tree of just the VMAs that map the file, by their first
    index, in which each node knows the last index below it."""
    offset = layout.offsetof("VmAreaStruct", "shared")
    last = m.vma["vm_pgoff"] + ((m.vma["vm_end"] - m.vma["vm_start"]) >> PAGE_SHIFT) - 1
    for address, row in zip(m.inode_address, m.inode):
        mine = np.flatnonzero(m.vma_mapping == address).tolist()
        node_address = [m.vma_address[i] + offset for i in mine]
        number = {node: i for i, node in enumerate(node_address)}
        nodes = [tuple(m.vma["shared"][i].tolist()) for i in mine]
        order, faults = walk_rb_tree(nodes, node_address, number, int(row["i_data"]["i_mmap"]["rb_node"]))
        starts = [int(m.vma["vm_pgoff"][mine[i]]) for i in order]
        if not faults and (len(order) != len(mine) or starts != sorted(starts)):
            faults = [(address, "it does not have all areas that map the file, in order")]
        for i in [] if faults else order:
            below = [int(last[mine[i]])] + [int(m.vma["shared_last"][mine[number[child]]])
                                            for child in nodes[i][1:3] if child]
            if m.vma["shared_last"][mine[i]] != max(below):
                faults.append((node_address[i], "a node does not know the last index below it"))
        for where, fault in faults[:LIMIT]:
            m.report.add("i_mmap", f"i_mmap of inode {row['i_id']}: {fault}", address=where)
