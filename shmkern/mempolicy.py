# SPDX-License-Identifier: GPL-2.0-only
"""Memory policies: on which nodes a task, or an area, wants its pages (mm/mempolicy.c).

An area's policy goes before its task's, and where neither has one the local node is
preferred.  A policy is a small counted object.  A task changes its own, under alloc_lock; an
area's is changed with mmap_sem held for writing.  When a cpuset changes, others rebind a
policy under the same locks: they replace its set of nodes, a word, and allocation reads
that word once.

Allocation takes no lock for a policy: the task's own cannot go, an area's is kept by mmap_sem, of
an object's (shared_policy.py) whoever allocates has a reference.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EINVAL, ENOMEM


# ---- making ------------------------------------------------------------------

def mpol_relative_nodemask(nodes, relative_to):
    """With MPOL_F_RELATIVE_NODES, numbers count within what is allowed: 0 is its first node."""
    if relative_to == 0:
        return 0
    return nodes_onto(nodes_fold(nodes, nodes_weight(relative_to)), relative_to)


def mpol_new(mode, flags, nodes):
    """A policy without nodes yet, with one reference; NULL for MPOL_DEFAULT.  Test the result
    with IS_ERR: -EINVAL (nodes with MPOL_DEFAULT, or none where there have to be), -ENOMEM."""
    if mode == MPOL_DEFAULT:
        return ERR_POLICY(-EINVAL) if nodes else cast(pointer(Mempolicy), NULL)
    # Preferring no node means the local one, and then there is nothing to be relative to.
    if nodes == 0 and (mode != MPOL_PREFERRED or flags):
        return ERR_POLICY(-EINVAL)
    pol = cast(pointer(Mempolicy), kmem_cache_alloc(kernel().policy_cachep))
    if pol == NULL:
        return ERR_POLICY(-ENOMEM)
    pol.refcnt = 1
    pol.mode = mode
    pol.flags = flags
    return pol


def mpol_set_nodemask(pol, nodes):
    """Gives a new policy the nodes of `nodes` that the current task may use and that have
    memory.  Returns 0, or -EINVAL when there are none.  Holds alloc_lock, so that no cpuset
    changes meanwhile without rebinding the policy afterwards."""
    if pol == NULL:
        return 0
    if nodes == 0:
        pol.flags |= MPOL_F_LOCAL
        return 0
    mems_allowed = current().mems_allowed
    usable = mems_allowed & kernel().node_states[N_HIGH_MEMORY]
    if mpol_store_user_nodemask(pol):
        pol.user_nodemask = nodes
    else:
        pol.cpuset_mems_allowed = mems_allowed
    if pol.flags & MPOL_F_RELATIVE_NODES:
        usable = mpol_relative_nodemask(nodes, usable)
    else:
        usable &= nodes
    if usable == 0:
        return -EINVAL
    if pol.mode == MPOL_PREFERRED:
        pol.preferred_node = first_node(usable)
    else:
        pol.nodes = usable
    return 0


def mpol_dup(old):
    """A copy for a forked task or area; NULL without memory.  The caller sees to it that no
    cpuset changes meanwhile (copy_process)."""
    new = cast(pointer(Mempolicy), kmem_cache_alloc(kernel().policy_cachep))
    if new != NULL:
        new[0] = old[0]
        new.refcnt = 1
    return new


def __mpol_equal(a, b):
    """Whether two policies mean the same, so that two areas can be one."""
    if a.mode != b.mode or a.flags != b.flags:
        return False
    if mpol_store_user_nodemask(a) and a.user_nodemask != b.user_nodemask:
        return False
    if a.mode == MPOL_PREFERRED:
        return a.preferred_node == b.preferred_node
    return a.nodes == b.nodes


# ---- following a cpuset --------------------------------------------------------

def mpol_rebind_nodemask(pol, nodes):
    """MPOL_BIND and MPOL_INTERLEAVE: each node becomes the one in the same place of `nodes`."""
    if pol.flags & MPOL_F_STATIC_NODES:
        rebound = pol.user_nodemask & nodes
    elif pol.flags & MPOL_F_RELATIVE_NODES:
        rebound = mpol_relative_nodemask(pol.user_nodemask, nodes)
    else:
        rebound = nodes_remap(pol.nodes, pol.cpuset_mems_allowed, nodes)
        pol.cpuset_mems_allowed = nodes
    # Empty for static nodes that are all forbidden now: then the policy says nothing.
    WRITE_ONCE64(addressof(pol.nodes), rebound)


def mpol_rebind_preferred(pol, nodes):
    """MPOL_PREFERRED.  Static nodes that are forbidden leave the local node, until they are
    allowed again."""
    if pol.flags & MPOL_F_STATIC_NODES:
        node = first_node(pol.user_nodemask)
        if node_isset(node, nodes):
            WRITE_ONCE32(addressof(pol.preferred_node), node)
            WRITE_ONCE32(addressof(pol.flags), pol.flags & ~cast(u32, MPOL_F_LOCAL))
        else:
            WRITE_ONCE32(addressof(pol.flags), pol.flags | MPOL_F_LOCAL)
    elif pol.flags & MPOL_F_RELATIVE_NODES:
        WRITE_ONCE32(addressof(pol.preferred_node), first_node(mpol_relative_nodemask(pol.user_nodemask, nodes)))
    elif not pol.flags & MPOL_F_LOCAL:
        WRITE_ONCE32(addressof(pol.preferred_node), node_remap(pol.preferred_node, pol.cpuset_mems_allowed, nodes))
        pol.cpuset_mems_allowed = nodes


def mpol_rebind_policy(pol, nodes):
    """Moves a policy to the nodes that its tasks are allowed now; NULL stays NULL.  Holds
    alloc_lock or mmap_sem, by whose policy it is.  Doing it twice does no harm."""
    if pol == NULL or nodes == 0:
        return
    if not mpol_store_user_nodemask(pol) and pol.cpuset_mems_allowed == nodes:
        return
    if pol.mode == MPOL_PREFERRED:
        mpol_rebind_preferred(pol, nodes)
    else:
        mpol_rebind_nodemask(pol, nodes)


# ---- allocation ----------------------------------------------------------------

def policy_node(gfp, pol):
    """The node from which a policy (but MPOL_INTERLEAVE) looks for memory."""
    nid = numa_node_id()
    if pol == NULL:
        return nid
    # One look at each: a cpuset that changes rebinds the policy meanwhile, and may leave it without nodes.
    if pol.mode == MPOL_PREFERRED and not READ_ONCE32(addressof(pol.flags)) & MPOL_F_LOCAL:
        return cast(i32, READ_ONCE32(addressof(pol.preferred_node)))
    if pol.mode == MPOL_BIND and gfp & __GFP_THISNODE:
        nodes = READ_ONCE64(addressof(pol.nodes))
        if nodes != 0 and not node_isset(nid, nodes):
            return first_node(nodes)
    return nid


def policy_nodemask(gfp, pol):
    """The nodes from which the current task may be given frames by a policy: of allowed_nodes those of
    MPOL_BIND.  It is set aside when none is among them, as for the kernel's own memory when all are
    movable nodes (apply_policy_zone)."""
    # One look: what it is allowed in the next moment may be none of what it was in this.
    allowed = allowed_nodes(gfp)
    if pol == NULL or pol.mode != MPOL_BIND:
        return allowed
    nodes = READ_ONCE64(addressof(pol.nodes)) & allowed
    return nodes if nodes != 0 else allowed


def interleave_nodes(pol):
    """The current task's turn among a policy's nodes; the next allocation goes to the next."""
    me = current()
    nodes = READ_ONCE64(addressof(pol.nodes))
    nid = me.il_next
    if not node_isset(nid, nodes):
        # Rebound since.
        nid = next_node(nid, nodes)
        if nid == MAX_NUMNODES:
            nid = first_node(nodes)
        if nid == MAX_NUMNODES:
            return numa_node_id()
    following = next_node(nid, nodes)
    me.il_next = following if following < MAX_NUMNODES else first_node(nodes)
    return nid


def offset_il_node(pol, offset):
    """The node of page number `offset` of an area that is interleaved: the same whoever
    touches it first."""
    nodes = READ_ONCE64(addressof(pol.nodes))
    if nodes == 0:
        return numa_node_id()
    return nth_node(cast(i32, offset % nodes_weight(nodes)), nodes)


def alloc_pages_mpol(gfp, order, pol, ilx):
    """2^order frames by a policy; NULL is the local node.  MPOL_INTERLEAVE goes by the page's number
    `ilx`, or with NO_INTERLEAVE_INDEX by the current task's turn.  Returns NULL when the policy's
    nodes have none.  The caller sees to it that the policy stays."""
    if pol != NULL and pol.mode == MPOL_INTERLEAVE:
        nid = interleave_nodes(pol) if ilx == NO_INTERLEAVE_INDEX else offset_il_node(pol, ilx)
        return alloc_pages_node(nid, gfp, order)
    while True:
        sequence = read_mems_sequence()
        nodes = policy_nodemask(gfp, pol)
        page = alloc_pages_nodemask(policy_node(gfp, pol), gfp, order, nodes)
        # As with get_mems_allowed: the cpuset, or the policy, may have changed meanwhile.
        if page != NULL or policy_nodemask(gfp, pol) == nodes and read_mems_sequence() == sequence:
            return page


def alloc_pages_current(gfp, order):
    """2^order frames by the current task's policy, which __GFP_THISNODE sets aside."""
    pol = cast(pointer(Mempolicy), NULL) if gfp & __GFP_THISNODE else current().mempolicy
    return alloc_pages_mpol(gfp, order, pol, NO_INTERLEAVE_INDEX)
