# SPDX-License-Identifier: GPL-2.0-only
"""Policies of shared memory (struct shared_policy of mm/mempolicy.c).

Memory that several tasks map belongs to none of their areas, so its policy is the object's, for
ranges of its pages: whoever maps it has it, and it stays when the area is gone through which it was
set.  The ranges are a red-black tree in the inode.

Each range has a policy that is nobody else's but of ranges that were cut from it: an area's is rebound
when its task's cpuset changes, and the other tasks' cpusets are none of that one's business.  (2.6.30
shares the object with the area: mended by Linux commit 869833f2c5c6.)

Lock: SharedPolicy.lock, under which only those of the slab are taken.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import ENOMEM


def sp_lookup(sp, start, end):
    """The first range that has a page of [start, end), or NULL.  Holds the lock."""
    node = sp.root.rb_node
    found = cast(pointer(SpNode), NULL)
    while node != NULL:
        n = rb_entry_sp(node)
        if start < n.end:
            found = n
            node = node.rb_left
        else:
            node = node.rb_right
    return found if found != NULL and found.start < end else cast(pointer(SpNode), NULL)


def sp_insert(sp, new):
    """Enters a range for which there is room.  Holds the lock."""
    link = addressof(sp.root.rb_node)
    parent = cast(pointer(RbNode), NULL)
    while link[0] != NULL:
        parent = link[0]
        other = rb_entry_sp(parent)
        VM_BUG_ON(new.start < other.end and other.start < new.end)
        link = addressof(parent.rb_left) if new.start < other.start else addressof(parent.rb_right)
    rb_insert(addressof(sp.root), addressof(new.nd), parent, link)


def sp_alloc(start, end, pol):
    """A range with a copy of a policy, in no tree yet; NULL without memory."""
    n = cast(pointer(SpNode), kmem_cache_alloc(kernel().sp_cachep))
    if n == NULL:
        return NULL
    n.policy = mpol_dup(pol)
    if n.policy == NULL:
        sp_free(n)
        return NULL
    n.policy.flags |= MPOL_F_SHARED
    n.start = start
    n.end = end
    return n


def sp_free(n):
    """Frees a range that is in no tree, and drops its reference to its policy."""
    mpol_put(n.policy)
    kmem_cache_free(kernel().sp_cachep, n)


def sp_delete(sp, n):
    """Takes a range out and frees it.  Holds the lock, unless nobody else has the object."""
    rb_erase(addressof(sp.root), addressof(n.nd))
    sp_free(n)


def shared_policy_replace(sp, start, end, new, spare):
    """Cuts [start, end) out of the ranges that are there and enters `new` in its place; NULL for
    none.  Of a range that reaches over both ends a second piece is left, which is `spare`; says
    whether it was needed.  Takes the lock."""
    used = False
    spin_lock(addressof(sp.lock))
    n = sp_lookup(sp, start, end)
    while n != NULL and n.start < end:
        following = rb_next(addressof(n.nd))
        if n.start >= start and n.end <= end:
            sp_delete(sp, n)
        elif n.start >= start:
            # What comes first in the tree still does.
            n.start = end
        else:
            if n.end > end:
                mpol_get(n.policy)
                spare.policy = n.policy
                spare.start = end
                spare.end = n.end
                used = True
            n.end = start
            if used:
                sp_insert(sp, spare)
                break
        n = rb_entry_sp(following)
    if new != NULL:
        sp_insert(sp, new)
    spin_unlock(addressof(sp.lock))
    return used


def mpol_set_shared_policy(sp, start, end, pol):
    """Gives the pages [start, end) of an object a policy, of which it takes a copy; NULL for none.
    Returns 0, or -ENOMEM with nothing changed.  Takes the lock."""
    # Before the lock, though mostly in vain: with it nothing can be allocated, and without it what
    # there is to cut changes.
    spare = cast(pointer(SpNode), kmem_cache_alloc(kernel().sp_cachep))
    if spare == NULL:
        return -ENOMEM
    new = NULL
    if pol != NULL:
        new = sp_alloc(start, end, pol)
        if new == NULL:
            sp_free(spare)
            return -ENOMEM
    if not shared_policy_replace(sp, start, end, new, spare):
        sp_free(spare)
    return 0


def mpol_shared_policy_lookup(sp, index):
    """The policy of an object's page, with a reference taken, or NULL.  Takes the lock."""
    pol = NULL
    spin_lock(addressof(sp.lock))
    n = sp_lookup(sp, index, index + 1)
    if n != NULL:
        pol = n.policy
        mpol_get(pol)
    spin_unlock(addressof(sp.lock))
    return pol


def mpol_free_shared_policy(sp):
    """Frees the policies of an object that nobody else can find any more."""
    while sp.root.rb_node != NULL:
        sp_delete(sp, rb_entry_sp(sp.root.rb_node))
