# SPDX-License-Identifier: GPL-2.0-only
"""Red-black trees whose nodes lie in the objects they order.

As with lib/rbtree.c, the caller walks down by its own comparison and links the node;
the tree then rebalances.  The algorithm is the one of Cormen, Leiserson, Rivest and
Stein, chapter 13, with NULL for the sentinel.
"""
from cython import NULL, address, cast


def rb_replace_child(root, parent, old, new):
    """Makes `new` the child of `parent` (or the root) that `old` was."""
    if parent == NULL:
        # Marked, here and below: page_mapping_inuse looks without a lock whether a tree is empty.
        WRITE_ONCE64(address(root.rb_node), cast(u64, new))
    elif parent.rb_left == old:
        parent.rb_left = new
    else:
        parent.rb_right = new


def rb_rotate_left(root, node):
    """Lifts node's right child into its place."""
    pivot = node.rb_right
    node.rb_right = pivot.rb_left
    if pivot.rb_left != NULL:
        pivot.rb_left.rb_parent = node
    pivot.rb_parent = node.rb_parent
    rb_replace_child(root, node.rb_parent, node, pivot)
    pivot.rb_left = node
    node.rb_parent = pivot


def rb_rotate_right(root, node):
    """Lifts node's left child into its place."""
    pivot = node.rb_left
    node.rb_left = pivot.rb_right
    if pivot.rb_right != NULL:
        pivot.rb_right.rb_parent = node
    pivot.rb_parent = node.rb_parent
    rb_replace_child(root, node.rb_parent, node, pivot)
    pivot.rb_right = node
    node.rb_parent = pivot


def rb_insert(root, node, parent, link):
    """Hangs `node` at *link, an empty child slot of `parent` or the root's, and rebalances
    (rb_link_node and rb_insert_color)."""
    node.rb_parent = parent
    node.rb_left = NULL
    node.rb_right = NULL
    node.rb_red = 1
    WRITE_ONCE64(link, cast(u64, node))
    rb_insert_color(root, node)


def rb_insert_color(root, node):
    """Mends a red node that may have a red parent, upwards."""
    while not rb_is_black(node.rb_parent):
        parent = node.rb_parent
        grandparent = parent.rb_parent
        on_left = 1 if parent == grandparent.rb_left else 0
        uncle = grandparent.rb_right if on_left else grandparent.rb_left
        if not rb_is_black(uncle):
            parent.rb_red = 0
            uncle.rb_red = 0
            grandparent.rb_red = 1
            node = grandparent
            continue
        if on_left:
            if node == parent.rb_right:
                rb_rotate_left(root, parent)
                parent = node
            parent.rb_red = 0
            grandparent.rb_red = 1
            rb_rotate_right(root, grandparent)
        else:
            if node == parent.rb_left:
                rb_rotate_right(root, parent)
                parent = node
            parent.rb_red = 0
            grandparent.rb_red = 1
            rb_rotate_left(root, grandparent)
        break
    root.rb_node.rb_red = 0


def rb_erase(root, node):
    """Takes `node` out and rebalances."""
    if node.rb_left != NULL and node.rb_right != NULL:
        heir = node.rb_right
        while heir.rb_left != NULL:
            heir = heir.rb_left
    else:
        heir = node
    # `heir` has one child at most; it leaves its place, and takes node's if it is another.
    child = heir.rb_left if heir.rb_left != NULL else heir.rb_right
    parent = heir.rb_parent
    removed_red = heir.rb_red
    rb_replace_child(root, parent, heir, child)
    if child != NULL:
        child.rb_parent = parent
    if heir != node:
        if parent == node:
            parent = heir
        heir.rb_parent = node.rb_parent
        heir.rb_left = node.rb_left
        heir.rb_right = node.rb_right
        heir.rb_red = node.rb_red
        rb_replace_child(root, node.rb_parent, node, heir)
        if heir.rb_left != NULL:
            heir.rb_left.rb_parent = heir
        if heir.rb_right != NULL:
            heir.rb_right.rb_parent = heir
    if not removed_red:
        rb_erase_color(root, child, parent)


def rb_erase_color(root, node, parent):
    """Mends a subtree at `node` (perhaps empty) that is one black node short, upwards."""
    while rb_is_black(node) and parent != NULL:
        if node == parent.rb_left:
            sibling = parent.rb_right
            if sibling.rb_red:
                sibling.rb_red = 0
                parent.rb_red = 1
                rb_rotate_left(root, parent)
                sibling = parent.rb_right
            if rb_is_black(sibling.rb_left) and rb_is_black(sibling.rb_right):
                sibling.rb_red = 1
                node = parent
                parent = node.rb_parent
                continue
            if rb_is_black(sibling.rb_right):
                sibling.rb_left.rb_red = 0
                sibling.rb_red = 1
                rb_rotate_right(root, sibling)
                sibling = parent.rb_right
            sibling.rb_red = parent.rb_red
            parent.rb_red = 0
            sibling.rb_right.rb_red = 0
            rb_rotate_left(root, parent)
        else:
            sibling = parent.rb_left
            if sibling.rb_red:
                sibling.rb_red = 0
                parent.rb_red = 1
                rb_rotate_right(root, parent)
                sibling = parent.rb_left
            if rb_is_black(sibling.rb_left) and rb_is_black(sibling.rb_right):
                sibling.rb_red = 1
                node = parent
                parent = node.rb_parent
                continue
            if rb_is_black(sibling.rb_left):
                sibling.rb_right.rb_red = 0
                sibling.rb_red = 1
                rb_rotate_left(root, sibling)
                sibling = parent.rb_left
            sibling.rb_red = parent.rb_red
            parent.rb_red = 0
            sibling.rb_left.rb_red = 0
            rb_rotate_right(root, parent)
        node = root.rb_node
        break
    if node != NULL:
        node.rb_red = 0


def rb_first(root):
    """The leftmost node, or NULL."""
    node = root.rb_node
    while node != NULL and node.rb_left != NULL:
        node = node.rb_left
    return node


def rb_next(node):
    """The node after this one in order, or NULL."""
    if node.rb_right != NULL:
        node = node.rb_right
        while node.rb_left != NULL:
            node = node.rb_left
        return node
    while node.rb_parent != NULL and node == node.rb_parent.rb_right:
        node = node.rb_parent
    return node.rb_parent


# ---- what a node knows of its subtree ----------------------------------------
#
# Rotations move nodes near the path from the place of a change up to the root: the path's
# own and their siblings.  So it is enough to compute those anew, upwards.

def rb_augment_path(node, augment):
    """Computes a node, its sibling, and so on up to the root."""
    while node != NULL:
        augment(node)
        parent = node.rb_parent
        if parent != NULL:
            sibling = parent.rb_right if node == parent.rb_left else parent.rb_left
            if sibling != NULL:
                augment(sibling)
        node = parent


def rb_augment_insert(node, augment):
    """After rb_insert.  Rotations may have lifted the new node, so its children are first."""
    if node.rb_left != NULL:
        augment(node.rb_left)
    if node.rb_right != NULL:
        augment(node.rb_right)
    rb_augment_path(node, augment)


def rb_augment_erase_begin(node):
    """Before rb_erase: the lowest node whose subtree will have changed, or NULL."""
    if node.rb_left == NULL and node.rb_right == NULL:
        return node.rb_parent
    if node.rb_right == NULL:
        return node.rb_left
    if node.rb_left == NULL:
        return node.rb_right
    heir = rb_next(node)
    if heir.rb_right != NULL:
        return heir.rb_right
    return heir.rb_parent if heir.rb_parent != node else heir


def rb_augment_erase_end(deepest, augment):
    """After rb_erase.  Rotations may have pushed that node down, so its children are first."""
    if deepest != NULL:
        rb_augment_insert(deepest, augment)
