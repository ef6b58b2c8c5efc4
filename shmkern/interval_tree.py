# SPDX-License-Identifier: GPL-2.0-only
"""Interval trees of areas: which of them map a page of a file (mm/interval_tree.c of Linux
3.7, which took the place of 2.6.30's prio tree).

A red-black tree ordered by the first page index, in which each node knows the last page
index of any area below it.  A walk comes to the areas in the tree's order; a forked area
stands right behind the one it was copied from, for the reason that rmap.py gives.

Locks: all of it under the file's i_mmap_lock, also what changes an area's vm_pgoff, vm_start
or vm_end while it is in a tree.
"""
from cython import NULL, address as addressof, cast, pointer


def vma_interval_update(node):
    """Computes shared_last of one node from its area and its children."""
    vma = rb_entry_shared(node)
    last = vma_last_index(vma)
    if node.rb_left != NULL:
        last = max(last, rb_entry_shared(node.rb_left).shared_last)
    if node.rb_right != NULL:
        last = max(last, rb_entry_shared(node.rb_right).shared_last)
    vma.shared_last = last


def vma_interval_tree_insert(vma, root):
    """Enters an area."""
    link = addressof(root.rb_node)
    parent = cast(pointer(RbNode), NULL)
    while link[0] != NULL:
        parent = link[0]
        if vma.vm_pgoff < rb_entry_shared(parent).vm_pgoff:
            link = addressof(parent.rb_left)
        else:
            link = addressof(parent.rb_right)
    vma.shared_last = vma_last_index(vma)
    rb_insert(root, addressof(vma.shared), parent, link)
    rb_augment_insert(addressof(vma.shared), vma_interval_update)


def vma_interval_tree_insert_after(vma, prev, root):
    """Enters an area that begins at the same index as `prev`, right behind it."""
    VM_BUG_ON(vma.vm_pgoff != prev.vm_pgoff)
    parent = addressof(prev.shared)
    link = addressof(parent.rb_right)
    if link[0] != NULL:
        parent = link[0]
        while parent.rb_left != NULL:
            parent = parent.rb_left
        link = addressof(parent.rb_left)
    vma.shared_last = vma_last_index(vma)
    rb_insert(root, addressof(vma.shared), parent, link)
    rb_augment_insert(addressof(vma.shared), vma_interval_update)


def vma_interval_tree_remove(vma, root):
    """Takes an area out."""
    deepest = rb_augment_erase_begin(addressof(vma.shared))
    rb_erase(root, addressof(vma.shared))
    rb_augment_erase_end(deepest, vma_interval_update)


def vma_interval_subtree_search(node, start, last):
    """The first area of a subtree, in its order, that has an index in [start, last]; the
    subtree's shared_last is not below `start`.  NULL when there is none."""
    while True:
        if node.rb_left != NULL and rb_entry_shared(node.rb_left).shared_last >= start:
            # If there is one at all in the right order, it is down there: what reaches `start`
            # there begins no later than anything here.
            node = node.rb_left
            continue
        vma = rb_entry_shared(node)
        if vma.vm_pgoff > last:
            return NULL
        if vma_last_index(vma) >= start:
            return vma
        node = node.rb_right
        if node == NULL or rb_entry_shared(node).shared_last < start:
            return NULL


def vma_interval_tree_iter_first(root, start, last):
    """The first area that has an index in [start, last], or NULL."""
    node = root.rb_node
    if node == NULL or rb_entry_shared(node).shared_last < start:
        return NULL
    return vma_interval_subtree_search(node, start, last)


def vma_interval_tree_iter_next(vma, start, last):
    """The area after `vma` that has an index in [start, last], or NULL."""
    node = addressof(vma.shared)
    while True:
        # To the right of this node, or else of the first ancestor that it lies left of.
        right = node.rb_right
        if right != NULL and rb_entry_shared(right).shared_last >= start:
            return vma_interval_subtree_search(right, start, last)
        below = node
        node = node.rb_parent
        while node != NULL and node.rb_right == below:
            below = node
            node = node.rb_parent
        if node == NULL:
            return NULL
        vma = rb_entry_shared(node)
        if vma.vm_pgoff > last:
            return NULL
        if vma_last_index(vma) >= start:
            return vma
