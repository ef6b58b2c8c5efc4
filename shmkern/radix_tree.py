# SPDX-License-Identifier: GPL-2.0-only
"""Radix trees of pages, with tags (lib/radix-tree.c).

A tree of height h has room for the indices below 64^h.  A slot of a node of height 1 is an
item, any other slot a node one lower; the height stands in the node and never changes, so
whoever has got hold of a node knows how to go on.  A tag is a bit for each slot: of an item
that is tagged, of a node with such an item somewhere below it.

All that changes a tree happens under its owner's lock.  A look-up needs none, only RCU: a
node is complete before it is hung in, and freed a grace period after it was taken out.  What
a look-up finds may be out of date by then; see find_get_page.

Insertion takes its nodes from what radix_tree_preload() has laid by, so that it can neither
fail nor wait in the middle.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EEXIST, ENOMEM


def radix_tree_preload():
    """Lays nodes by for one insertion of the current task.  Returns 0 or -ENOMEM.  May sleep."""
    me = current()
    while me.nr_preloads < RADIX_TREE_PRELOAD_SIZE:
        node = cast(pointer(RadixTreeNode), kmem_cache_alloc(kernel().radix_tree_node_cachep))
        if node == NULL:
            return -ENOMEM
        me.radix_tree_preloads[me.nr_preloads] = node
        me.nr_preloads += 1
    return 0


def radix_tree_drain_preloads(task):
    """Frees the nodes of a task that will not insert any more."""
    while task.nr_preloads > 0:
        task.nr_preloads -= 1
        kmem_cache_free(kernel().radix_tree_node_cachep, task.radix_tree_preloads[task.nr_preloads])


def radix_tree_node_alloc(height):
    """One of the nodes laid by."""
    me = current()
    BUG_ON(me.nr_preloads == 0)
    me.nr_preloads -= 1
    node = me.radix_tree_preloads[me.nr_preloads]
    node.height = height
    return node


def radix_tree_node_free(node):
    """Frees a node that has been taken out, when no look-up can be in it any more."""
    call_rcu(addressof(node.rcu), kernel().radix_tree_node_cachep, node)


def radix_tree_extend(root, index):
    """Makes the tree high enough for `index`: new roots above the old one."""
    if root.rnode == NULL:
        height = cast(u32, 1)
        while index > radix_tree_maxindex(height):
            height += 1
        smp_store_release64(addressof(root.rnode), cast(u64, radix_tree_node_alloc(height)))
        return
    while index > radix_tree_maxindex(root.rnode.height):
        old = root.rnode
        node = radix_tree_node_alloc(old.height + 1)
        node.slots[0] = old
        node.count = 1
        for tag in range(RADIX_TREE_MAX_TAGS):
            node.tags[tag] = old.tags[tag] != 0
        old.parent = node
        smp_store_release64(addressof(root.rnode), cast(u64, node))


def radix_tree_insert(root, index, item):
    """Puts an item at a free index.  The caller has called radix_tree_preload and then taken the
    tree's lock.  Returns 0 or -EEXIST."""
    VM_BUG_ON(item == NULL or index > RADIX_TREE_MAX_INDEX)
    if root.rnode == NULL or index > radix_tree_maxindex(root.rnode.height):
        radix_tree_extend(root, index)
    node = root.rnode
    while node.height > 1:
        slot = addressof(node.slots[radix_tree_offset(index, node.height)])
        child = cast(pointer(RadixTreeNode), slot[0])
        if child == NULL:
            child = radix_tree_node_alloc(node.height - 1)
            child.parent = node
            node.count += 1
            radix_tree_replace_slot(slot, child)
        node = child
    slot = addressof(node.slots[radix_tree_offset(index, 1)])
    if slot[0] != NULL:
        return -EEXIST
    node.count += 1
    radix_tree_replace_slot(slot, item)
    return 0


def radix_tree_leaf(root, index):
    """The node of height 1 that has a slot for `index`; NULL when there is none.  Holds the
    tree's lock, or is within rcu_read_lock."""
    node = cast(pointer(RadixTreeNode), smp_load_acquire64(addressof(root.rnode)))
    if node == NULL or index > radix_tree_maxindex(node.height):
        return NULL
    while node != NULL and node.height > 1:
        slot = addressof(node.slots[radix_tree_offset(index, node.height)])
        node = cast(pointer(RadixTreeNode), radix_tree_deref_slot(slot))
    return node


def radix_tree_lookup_slot(root, index):
    """The slot for `index`, which may be empty; NULL when there is none.  Holds the tree's lock,
    or is within rcu_read_lock."""
    node = radix_tree_leaf(root, index)
    if node == NULL:
        return NULL
    return addressof(node.slots[radix_tree_offset(index, 1)])


def radix_tree_lookup(root, index):
    """The item at `index`, or NULL.  As radix_tree_lookup_slot."""
    slot = radix_tree_lookup_slot(root, index)
    if slot == NULL:
        return NULL
    return radix_tree_deref_slot(slot)


def radix_tree_shrink(root):
    """Takes roots out that have nothing but their first slot."""
    while root.rnode.height > 1 and root.rnode.count == 1 and root.rnode.slots[0] != NULL:
        old = root.rnode
        child = cast(pointer(RadixTreeNode), old.slots[0])
        child.parent = NULL
        # A look-up that is in the old root still finds its way down.
        smp_store_release64(addressof(root.rnode), cast(u64, child))
        radix_tree_node_free(old)


def radix_tree_delete(root, index):
    """Takes the item at `index` out, with its tags, and returns it; NULL when there is none."""
    node = radix_tree_leaf(root, index)
    if node == NULL:
        return NULL
    item = node.slots[radix_tree_offset(index, 1)]
    if item == NULL:
        return NULL
    for tag in range(RADIX_TREE_MAX_TAGS):
        radix_tree_tag_clear(root, index, tag)
    empty = cast(pointer(RadixTreeNode), NULL)
    while node != NULL:
        radix_tree_replace_slot(addressof(node.slots[radix_tree_offset(index, node.height)]), NULL)
        # Not before nothing leads there: a reader that begins after call_rcu is not waited for.
        if empty != NULL:
            radix_tree_node_free(empty)
        node.count -= 1
        if node.count != 0:
            radix_tree_shrink(root)
            return item
        empty = node
        node = node.parent
    smp_store_release64(addressof(root.rnode), 0)
    radix_tree_node_free(empty)
    return item


# ---- tags --------------------------------------------------------------------

def radix_tree_tag_set(root, index, tag):
    """Tags the item at `index`, which there is."""
    node = radix_tree_leaf(root, index)
    BUG_ON(node == NULL or node.slots[radix_tree_offset(index, 1)] == NULL)
    while node != NULL:
        # Release, here and below: radix_tree_tagged may look without the lock, and a page that gets one tag and
        # loses the other is not to be without either.
        bit = cast(u64, 1) << radix_tree_offset(index, node.height)
        smp_store_release64(addressof(node.tags[tag]), node.tags[tag] | bit)
        node = node.parent


def radix_tree_tag_clear(root, index, tag):
    """Takes the tag off the item at `index`, if there is one."""
    node = radix_tree_leaf(root, index)
    while node != NULL:
        bit = cast(u64, 1) << radix_tree_offset(index, node.height)
        smp_store_release64(addressof(node.tags[tag]), node.tags[tag] & ~bit)
        if node.tags[tag] != 0:
            return
        node = node.parent


def radix_tree_tag_get(root, index, tag):
    """Whether there is an item at `index` and it is tagged."""
    node = radix_tree_leaf(root, index)
    return node != NULL and (node.tags[tag] >> radix_tree_offset(index, 1) & 1) != 0


# ---- one after the other -----------------------------------------------------

def radix_tree_next_offset(node, offset, tag):
    """The first slot from `offset` on that is in use, or tagged when `tag` is one;
    RADIX_TREE_MAP_SIZE when there is none."""
    if tag == RADIX_TREE_NO_TAG:
        while offset < RADIX_TREE_MAP_SIZE and node.slots[offset] == NULL:
            offset += 1
        return offset
    tagged = node.tags[tag] >> offset << offset
    return __builtin_ctzl(tagged) if tagged else RADIX_TREE_MAP_SIZE


def radix_tree_next_slot(root, index, tag):
    """The slot of the first item from *index on (with that tag, or RADIX_TREE_NO_TAG), with
    *index moved up to it; NULL when there is none.  Holds the tree's lock."""
    node = root.rnode
    while node != NULL and index[0] <= radix_tree_maxindex(root.rnode.height):
        offset = radix_tree_offset(index[0], node.height)
        found = radix_tree_next_offset(node, offset, tag)
        shift = (node.height - 1) * RADIX_TREE_MAP_SHIFT
        if found == RADIX_TREE_MAP_SIZE:
            # Behind this node, and down again from the root.
            index[0] = ((index[0] >> shift >> RADIX_TREE_MAP_SHIFT) + 1) << RADIX_TREE_MAP_SHIFT << shift
            node = root.rnode
            continue
        if found != offset:
            index[0] = (index[0] >> shift >> RADIX_TREE_MAP_SHIFT << RADIX_TREE_MAP_SHIFT | found) << shift
        if node.height == 1:
            return addressof(node.slots[found])
        node = cast(pointer(RadixTreeNode), node.slots[found])
    return NULL
