# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of free frames: buddies, free lists, poison.

Steps of audit.audit(), which says what they may take for granted.
"""
import ctypes

import numpy as np

from shmkern import layout
from shmkern.dump import PAGE_FLAGS, page_flags_text

C = layout.constants
PAGE_SIZE = C["PAGE_SIZE"]
NODE_SHIFT = C["NODES_PGSHIFT"]
MAX_ORDER = C["MAX_ORDER"]

_libc = ctypes.CDLL(None, use_errno=True)


# ---- free pages -------------------------------------------------------------

def find_free_blocks(m):
    """Free blocks have an order below MAX_ORDER, are aligned to their size and lie in their
    zone; no two overlap.  Marks all frames in them as free."""
    head = np.flatnonzero(m.has("PG_buddy"))
    order = m.private_word[head]
    relative = head % m.zone_size
    size = np.left_shift(1, np.minimum(order, MAX_ORDER - 1).astype(np.int64))
    bad = (order >= MAX_ORDER) | (relative % size != 0) | (relative + size > m.zone_size)
    m.report.each(bad, "buddy", lambda i: (
        "a free block has no order, is not aligned to it, or leaves its zone",
        {"page": head[i], "found": f"order {order[i]}"}))
    m.block_head, m.block_order = head[~bad], order[~bad].astype(np.int64)
    edges = np.zeros(m.max_pfn + 1, np.int64)
    np.add.at(edges, m.block_head, 1)
    np.add.at(edges, m.block_head + (1 << m.block_order), -1)
    cover = np.cumsum(edges[:-1])
    m.free = cover > 0
    m.report.each(cover > 1, "buddy", lambda pfn: ("free blocks overlap", {"page": pfn}))


def check_buddies(m):
    """A free block's buddy of the same order is not free too: they would have been merged."""
    order_at = np.full(m.max_pfn, -1)
    order_at[m.block_head] = m.block_order
    relative = m.block_head % m.zone_size
    relative_buddy = relative ^ (1 << m.block_order)
    buddy = m.block_head - relative + relative_buddy
    # Left ones only, so that a pair is told once; and none beyond the end of a zone.
    pairs = (buddy > m.block_head) & (m.block_order < MAX_ORDER - 1) & (relative_buddy < m.zone_size)
    pairs[pairs] = order_at[buddy[pairs]] == m.block_order[pairs]
    m.report.each(pairs, "buddy", lambda i: (
        f"two free buddies of order {m.block_order[i]} were not merged: pages "
        f"{m.block_head[i]} and {buddy[i]}", {"page": m.block_head[i]}))


def check_free_pages(m):
    """A free page is blank: no reference, mapping or flag but its node, and PG_buddy on the
    first of a block.  Anything else was left by, or belongs to, somebody who still uses it."""
    node_bits = ((1 << 6) - 1) << NODE_SHIFT
    expected = np.zeros(m.max_pfn, np.uint64)
    expected[m.block_head] = 1 << PAGE_FLAGS["PG_buddy"]
    flags = m.flags & ~np.uint64(node_bits)
    m.report.each(m.free & (flags != expected), "free_page", lambda pfn: (
        "a free page has flags", {"page": pfn, "expected": page_flags_text(int(expected[pfn])),
                                  "found": page_flags_text(int(m.flags[pfn]))}))
    m.report.each(m.free & (m.mapping != 0), "free_page", lambda pfn: (
        "a free page has a mapping", {"page": pfn, "expected": 0, "found": hex(m.mapping[pfn])}))


def check_free_counts(m):
    """nr_free counts the blocks of each order, NR_FREE_PAGES the frames in them."""
    key = m.block_head // m.zone_size * MAX_ORDER + m.block_order
    blocks = np.bincount(key, minlength=len(m.zones) * MAX_ORDER)
    nr_free = m.zones["free_area"]["nr_free"].ravel()
    m.report.each(nr_free != blocks, "counter", lambda i: (
        f"zone {i // MAX_ORDER}: free_area[{i % MAX_ORDER}].nr_free is not the number of blocks",
        {"expected": blocks[i], "found": nr_free[i]}))


# ---- poison -----------------------------------------------------------------

def check_frame_poison(m, chunk=4096):
    """A free frame that the host has memory for was used before, so it is filled with
    PAGE_POISON; one that is all zero was only looked at.  Reads every such frame."""
    vector = np.zeros(m.max_pfn, np.uint8)
    if _libc.mincore(ctypes.c_void_p(m.kernel.frames_base), ctypes.c_size_t(m.max_pfn * PAGE_SIZE),
                     ctypes.c_void_p(vector.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore")
    poison = int.from_bytes(bytes([C["PAGE_POISON"]]) * 8, "little")
    resident = np.flatnonzero(m.free & (vector & 1 != 0))
    for first in range(0, len(resident), chunk):
        pfn = resident[first:first + chunk]
        words = m.frames[pfn]
        dirty = (words != poison).any(axis=1) & words.any(axis=1)
        m.report.each(dirty, "poison", lambda i, pfn=pfn, words=words: (
            "a free frame was written to", {
                "page": pfn[i], "expected": hex(poison),
                "found": hex(words[i][words[i] != poison][0])}))
