# SPDX-License-Identifier: GPL-2.0-only
# The areas that map a file, by their page ranges.  May use: rbtree, lists.

cimport cython
from shmkern.atomics cimport *
from shmkern.current cimport *
from shmkern.lists cimport *
from shmkern.rbtree cimport *

cdef inline u64 vma_last_index(VmAreaStruct* vma) noexcept nogil:
    return vma.vm_pgoff + ((vma.vm_end - vma.vm_start) >> PAGE_SHIFT) - 1

cdef void vma_interval_update(RbNode* node) noexcept nogil
cdef void vma_interval_tree_insert(VmAreaStruct* vma, RbRoot* root) noexcept nogil
cdef void vma_interval_tree_insert_after(VmAreaStruct* vma, VmAreaStruct* prev, RbRoot* root) noexcept nogil
cdef void vma_interval_tree_remove(VmAreaStruct* vma, RbRoot* root) noexcept nogil
cdef VmAreaStruct* vma_interval_subtree_search(RbNode* node, u64 start, u64 last) noexcept nogil
cdef VmAreaStruct* vma_interval_tree_iter_first(RbRoot* root, u64 start, u64 last) noexcept nogil
cdef VmAreaStruct* vma_interval_tree_iter_next(VmAreaStruct* vma, u64 start, u64 last) noexcept nogil
