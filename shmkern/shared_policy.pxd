# SPDX-License-Identifier: GPL-2.0-only
# Policies of shared objects.  May use: mempolicy, rbtree and below.

cimport cython
from shmkern.mempolicy cimport *
from shmkern.rbtree cimport *

cdef inline SpNode* rb_entry_sp(RbNode* node) noexcept nogil:
    # It is the first field, so NULL stays NULL.
    return <SpNode*>node

cdef SpNode* sp_lookup(SharedPolicy* sp, u64 start, u64 end) noexcept nogil
cdef void sp_insert(SharedPolicy* sp, SpNode* new) noexcept nogil
cdef SpNode* sp_alloc(u64 start, u64 end, Mempolicy* pol) noexcept nogil
cdef void sp_free(SpNode* n) noexcept nogil
cdef void sp_delete(SharedPolicy* sp, SpNode* n) noexcept nogil
@cython.locals(used=bint)
cdef bint shared_policy_replace(SharedPolicy* sp, u64 start, u64 end, SpNode* new, SpNode* spare) noexcept nogil
@cython.locals(new=pointer_to_sp_node)
cdef int mpol_set_shared_policy(SharedPolicy* sp, u64 start, u64 end, Mempolicy* pol) noexcept nogil
@cython.locals(pol=pointer_to_policy)
cdef Mempolicy* mpol_shared_policy_lookup(SharedPolicy* sp, u64 index) noexcept nogil
cdef void mpol_free_shared_policy(SharedPolicy* sp) noexcept nogil

ctypedef SpNode* pointer_to_sp_node
