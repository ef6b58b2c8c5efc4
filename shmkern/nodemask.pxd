# SPDX-License-Identifier: GPL-2.0-only
# Sets of nodes (include/linux/nodemask.h): one word, since there are 64 nodes at most.  So a
# set is read and replaced in one piece, whoever is looking.

from shmkern.atomics cimport u64, __builtin_ctzl, __builtin_popcountl
from shmkern.mm_types cimport MAX_NUMNODES

cdef extern from *:
    """
    #define NODE_MASK_ALL (~0UL)
    """
    const u64 NODE_MASK_ALL

cdef inline u64 node_bit(int node) noexcept nogil:
    return <u64>1 << node

cdef inline bint node_isset(int node, u64 nodes) noexcept nogil:
    return (nodes >> node & 1) != 0

cdef inline bint nodes_subset(u64 some, u64 all) noexcept nogil:
    return (some & ~all) == 0

cdef inline int nodes_weight(u64 nodes) noexcept nogil:
    return __builtin_popcountl(nodes)

# MAX_NUMNODES when there is none.
cdef inline int first_node(u64 nodes) noexcept nogil:
    return __builtin_ctzl(nodes) if nodes else MAX_NUMNODES

cdef inline int next_node(int node, u64 nodes) noexcept nogil:
    return first_node(nodes & ~((<u64>2 << node) - 1)) if node < MAX_NUMNODES - 1 else MAX_NUMNODES

# The node number `index` of a set, counted from 0.
cdef inline int nth_node(int index, u64 nodes) noexcept nogil:
    while index > 0:
        nodes &= nodes - 1
        index -= 1
    return first_node(nodes)

# The node that has the place in `new` which `node` has in `old`, modulo the size of `new`; the
# node itself when it is not in `old`, or nothing is in `new`.
cdef inline int node_remap(int node, u64 old, u64 new) noexcept nogil:
    if not node_isset(node, old) or new == 0:
        return node
    return nth_node(nodes_weight(old & (node_bit(node) - 1)) % nodes_weight(new), new)

cdef inline u64 nodes_remap(u64 nodes, u64 old, u64 new) noexcept nogil:
    cdef u64 result = 0
    while nodes:
        result |= node_bit(node_remap(first_node(nodes), old, new))
        nodes &= nodes - 1
    return result

# Takes the numbers of a set modulo `size`.
cdef inline u64 nodes_fold(u64 nodes, int size) noexcept nogil:
    cdef u64 result = 0
    while nodes:
        result |= node_bit(first_node(nodes) % size)
        nodes &= nodes - 1
    return result

# Of `onto`, those whose place in it is a number in `nodes`.
cdef inline u64 nodes_onto(u64 nodes, u64 onto) noexcept nogil:
    cdef u64 result = 0
    cdef int place = 0
    while onto:
        if node_isset(place, nodes):
            result |= node_bit(first_node(onto))
        place += 1
        onto &= onto - 1
    return result
