# SPDX-License-Identifier: GPL-2.0-only
"""Circular lists with many entries, checked without walking them: links must be each other's
inverses, and pointer doubling shows that all members lead to the list's head.

For the audits.  May import: layout.
"""
import numpy as np

from shmkern import layout

C = layout.constants


def check_rings(next_, prev, owner):
    """Which nodes of circular lists are linked wrongly.

    Nodes are numbered.  `next_` and `prev` hold numbers, -1 for a pointer that leads to no
    node; `owner` the number of the head on whose list a node must be, heads their own, -1
    for a node that must be on none.  Returns masks (broken, lost): broken nodes have a next
    that is not on the same list, or whose prev is another; lost ones are linked well, but
    to each other and not to their head.
    """
    nodes = np.arange(len(owner))
    on_list = owner >= 0
    broken = on_list & ((owner[next_] != owner) | (next_ < 0) | (prev[next_] != nodes))
    # Doubling: after k rounds `step` is 2^k links away.  Heads, and nodes that are broken
    # anyway, keep who arrives; who never arrives goes round a ring without a head.
    stop = broken | (owner == nodes) | ~on_list
    step = np.where(stop, nodes, next_)
    for _round in range(len(owner).bit_length()):
        further = step[step]
        if np.array_equal(further, step):
            break
        step = further
    return broken, ~stop[step]


def ring_links(member, links, first, stride, head_at, heads):
    """(next, prev) of all entries and list heads as node numbers: an entry's index, or the number of
    entries + the head's index; -1 for a pointer to neither, and for entries that are no `member`.

    `links` are the columns (next, prev) of the entries, whose ListHeads lie `stride` bytes apart from
    `first` on; `heads` the rows of the heads, which lie at `head_at`.
    """
    members, by_address = np.flatnonzero(member), np.argsort(head_at)

    def numbers(of_entries, of_heads):
        pointers = np.append(of_entries[members], of_heads)
        offset = pointers - np.uint64(first)
        node = (offset // np.uint64(stride)).astype(np.int64)
        good = (offset % np.uint64(stride) == 0) & (offset < np.uint64(len(member) * stride))
        rest = np.flatnonzero(~good)
        at = np.minimum(np.searchsorted(head_at[by_address], pointers[rest]), len(head_at) - 1)
        is_head = head_at[by_address[at]] == pointers[rest]
        node[rest] = np.where(is_head, len(member) + by_address[at], -1)
        all_nodes = np.full(len(member) + len(head_at), -1)
        all_nodes[members] = node[:len(members)]
        all_nodes[len(member):] = node[len(members):]
        return all_nodes

    return numbers(links[0], heads["next"]), numbers(links[1], heads["prev"])


def lru_of(flags):
    """page_lru() of many pages: the LRU list that their flags say."""
    def bit(name):
        return (flags >> C[name] & 1).astype(np.int64)
    return np.where(bit("PG_unevictable") == 1, C["LRU_UNEVICTABLE"],
                    C["LRU_INACTIVE_FILE"] * (1 - bit("PG_swapbacked")) + bit("PG_active"))
