# SPDX-License-Identifier: GPL-2.0-only
# Page trees.  May use: rcu and below.

cimport cython
from shmkern.rcu cimport *

# Tags of a page tree (include/linux/fs.h).
cdef enum:
    PAGECACHE_TAG_DIRTY = 0
    PAGECACHE_TAG_WRITEBACK = 1
    RADIX_TREE_NO_TAG = -1
    RADIX_TREE_EXCEPTIONAL = 1

cdef extern from *:
    """
    #define RADIX_TREE_MAX_INDEX ((1UL << 36) - 1)
    """
    const u64 RADIX_TREE_MAX_INDEX

# The largest index that a tree of this height has room for.
cdef inline u64 radix_tree_maxindex(u32 height) noexcept nogil:
    return (<u64>1 << (height * RADIX_TREE_MAP_SHIFT)) - 1

cdef inline u64 radix_tree_offset(u64 index, u32 height) noexcept nogil:
    return index >> ((height - 1) * RADIX_TREE_MAP_SHIFT) & (RADIX_TREE_MAP_SIZE - 1)

# What a slot holds.  Acquire: the node or page behind it is complete.
cdef inline void* radix_tree_deref_slot(void** slot) noexcept nogil:
    return <void*>smp_load_acquire64(slot)

# Whether an item is no pointer, but a word of the tree's owner.
cdef inline bint radix_tree_exceptional_entry(void* item) noexcept nogil:
    return (<u64>item & RADIX_TREE_EXCEPTIONAL) != 0

# Another item in a slot that has one.
cdef inline void radix_tree_replace_slot(void** slot, void* item) noexcept nogil:
    smp_store_release64(slot, <u64>item)

# Whether any item is tagged.  Holds the tree's lock, or is within rcu_read_lock.  Acquire: who asks
# for two tags in turn without the lock sees them in that order.
cdef inline bint radix_tree_tagged(RadixTreeRoot* root, int tag) noexcept nogil:
    node = <RadixTreeNode*>smp_load_acquire64(&root.rnode)
    return node != NULL and smp_load_acquire64(&node.tags[tag]) != 0

cdef int radix_tree_preload() noexcept nogil
cdef void radix_tree_drain_preloads(Task* task) noexcept nogil
cdef RadixTreeNode* radix_tree_node_alloc(u32 height) noexcept nogil
cdef void radix_tree_node_free(RadixTreeNode* node) noexcept nogil
cdef void radix_tree_extend(RadixTreeRoot* root, u64 index) noexcept nogil
@cython.locals(child=pointer_to_node)
cdef int radix_tree_insert(RadixTreeRoot* root, u64 index, void* item) noexcept nogil
cdef void** radix_tree_lookup_slot(RadixTreeRoot* root, u64 index) noexcept nogil
cdef void* radix_tree_lookup(RadixTreeRoot* root, u64 index) noexcept nogil
cdef RadixTreeNode* radix_tree_leaf(RadixTreeRoot* root, u64 index) noexcept nogil
cdef void radix_tree_shrink(RadixTreeRoot* root) noexcept nogil
@cython.locals(item=pointer_to_void)
cdef void* radix_tree_delete(RadixTreeRoot* root, u64 index) noexcept nogil
cdef void radix_tree_tag_set(RadixTreeRoot* root, u64 index, int tag) noexcept nogil
cdef void radix_tree_tag_clear(RadixTreeRoot* root, u64 index, int tag) noexcept nogil
cdef bint radix_tree_tag_get(RadixTreeRoot* root, u64 index, int tag) noexcept nogil
cdef u64 radix_tree_next_offset(RadixTreeNode* node, u64 offset, int tag) noexcept nogil
@cython.locals(offset=u64, found=u64)
cdef void** radix_tree_next_slot(RadixTreeRoot* root, u64* index, int tag) noexcept nogil

ctypedef RadixTreeNode* pointer_to_node
ctypedef void* pointer_to_void
