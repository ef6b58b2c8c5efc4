# SPDX-License-Identifier: GPL-2.0-only
# Memory policies, and allocation by them.  May use: lru, slab and below.

cimport cython
from shmkern.slab cimport *
from shmkern.lru cimport *
from shmkern.uapi cimport *

cdef enum:
    # Of no concern to programs:
    MPOL_F_SHARED = 1          # of an object, which may lose it any moment: whoever uses it has a reference
    MPOL_F_LOCAL = 4           # prefer the local node
    MPOL_MODE_FLAGS = 0xc000   # MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES

# A page's number for interleaving, where it has none: whoever allocates has turns.
cdef extern from *:
    """
    #define NO_INTERLEAVE_INDEX (~0UL)
    """
    const u64 NO_INTERLEAVE_INDEX

# A policy, or the errno for which there is none.
cdef inline bint IS_ERR(const void* pointer) noexcept nogil:
    return <u64>pointer >= <u64>-4095

cdef inline int PTR_ERR(const void* pointer) noexcept nogil:
    return <int><i64>pointer

cdef inline Mempolicy* ERR_POLICY(int error) noexcept nogil:
    return <Mempolicy*><u64><i64>error

cdef inline void mpol_get(Mempolicy* pol) noexcept nogil:
    if pol != NULL:
        atomic_add_return32(&pol.refcnt, 1)

cdef inline void mpol_put(Mempolicy* pol) noexcept nogil:
    if pol != NULL and atomic_add_return32(&pol.refcnt, -1) == 0:
        kmem_cache_free(kernel().policy_cachep, pol)

# Gives back what get_vma_policy may have taken.
cdef inline void mpol_cond_put(Mempolicy* pol) noexcept nogil:
    if pol != NULL and pol.flags & MPOL_F_SHARED:
        mpol_put(pol)

cdef inline bint mpol_store_user_nodemask(Mempolicy* pol) noexcept nogil:
    return (pol.flags & MPOL_MODE_FLAGS) != 0

cdef inline bint mpol_equal(Mempolicy* a, Mempolicy* b) noexcept nogil:
    return a == b or (a != NULL and b != NULL and __mpol_equal(a, b))

cdef inline Page* alloc_page(u64 gfp) noexcept nogil:
    return alloc_pages_current(gfp, 0)

cdef u64 mpol_relative_nodemask(u64 nodes, u64 relative_to) noexcept nogil
cdef Mempolicy* mpol_new(int mode, u32 flags, u64 nodes) noexcept nogil
cdef int mpol_set_nodemask(Mempolicy* pol, u64 nodes) noexcept nogil
cdef Mempolicy* mpol_dup(Mempolicy* old) noexcept nogil
cdef bint __mpol_equal(Mempolicy* a, Mempolicy* b) noexcept nogil
cdef void mpol_rebind_nodemask(Mempolicy* pol, u64 nodes) noexcept nogil
cdef void mpol_rebind_preferred(Mempolicy* pol, u64 nodes) noexcept nogil
cdef void mpol_rebind_policy(Mempolicy* pol, u64 nodes) noexcept nogil
cdef int policy_node(u64 gfp, Mempolicy* pol) noexcept nogil
cdef u64 policy_nodemask(u64 gfp, Mempolicy* pol) noexcept nogil
cdef int interleave_nodes(Mempolicy* pol) noexcept nogil
cdef int offset_il_node(Mempolicy* pol, u64 offset) noexcept nogil
cdef Page* alloc_pages_mpol(u64 gfp, u64 order, Mempolicy* pol, u64 ilx) noexcept nogil
cdef Page* alloc_pages_current(u64 gfp, u64 order) noexcept nogil

ctypedef Mempolicy* pointer_to_policy
