# SPDX-License-Identifier: GPL-2.0-only
"""Lists and trees that may be damaged.

Circular lists with many entries are checked without walking them: links must be each other's inverses, and pointer
doubling shows that all members lead to the list's head.  Short lists, and red-black trees, are walked with an eye on
each step.

For the steps of audit.audit().  May import: layout.
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


def walk_rb_tree(nodes, address_of, number, root):
    """(order, faults) of one red-black tree.

    `nodes` are tuples (parent, left, right, red), `number` maps addresses to indices into
    it.  order lists the indices as an in-order walk meets them, faults pairs of an address
    and what is wrong there.
    """
    order, faults, heights, seen = [], [], set(), set()
    # (address, parent, parent is red, black nodes above), or an index to put into order.
    stack = [(root, 0, True, 0)]
    while stack:
        top = stack.pop()
        if isinstance(top, int):
            order.append(top)
            continue
        address, parent, red_parent, blacks = top
        if address == 0:
            heights.add(blacks)
            continue
        index = number.get(address)
        if index is None or index in seen:
            faults.append((address, "a pointer leads to no VMA of the list" if index is None
                           else "a node is reached twice"))
            continue
        seen.add(index)
        its_parent, left, right, red = nodes[index]
        if its_parent != parent:
            faults.append((address, f"rb_parent is {its_parent:#x}, not {parent:#x}"))
        if red not in (0, 1):
            faults.append((address, f"the colour is {red}"))
        if red and red_parent:
            faults.append((address, "a red node has a red parent" if parent else "the root is red"))
        below = address_of[index], bool(red), blacks + (not red)
        stack += [(right, *below), index, (left, *below)]
    if len(heights) > 1:
        faults.append((root, f"the number of black nodes on a path varies: {sorted(heights)}"))
    return order, faults


def list_addresses(m, head, struct, field):
    """The structs on a short circular list, by address.

    What breaks the list is reported and ends the walk.  Returns (addresses, whole).
    """
    offset = layout.offsetof(struct, field)
    found, previous, node = {}, head, m.u64(head)
    while node != head:
        address = node - offset
        fault = m.object_fault(address, struct) or \
            ("is on it twice" if address in found else None)
        if fault:
            m.report.add("mm", f"the list {field}: an entry {fault}", address=node)
            return list(found), False
        if m.u64(node + 8) != previous:
            m.report.add("mm", f"the list {field}: prev does not lead back", address=node,
                         expected=hex(previous), found=hex(m.u64(node + 8)))
        found[address] = None
        previous, node = node, m.u64(node)
    if m.u64(head + 8) != previous:
        m.report.add("mm", f"the list {field}: the head's prev is not the last entry", address=head,
                     expected=hex(previous), found=hex(m.u64(head + 8)))
    return list(found), True
