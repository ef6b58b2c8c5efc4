# SPDX-License-Identifier: GPL-2.0-only
# Red-black trees.  May use: atomics, mm_types.

from shmkern.atomics cimport *
from shmkern.mm_types cimport RbNode, RbRoot

cdef void rb_rotate_left(RbRoot* root, RbNode* node) noexcept nogil
cdef void rb_rotate_right(RbRoot* root, RbNode* node) noexcept nogil
cdef void rb_replace_child(RbRoot* root, RbNode* parent, RbNode* old, RbNode* new) noexcept nogil
cdef void rb_insert(RbRoot* root, RbNode* node, RbNode* parent, RbNode** link) noexcept nogil
cdef void rb_insert_color(RbRoot* root, RbNode* node) noexcept nogil
cdef void rb_erase(RbRoot* root, RbNode* node) noexcept nogil
cdef void rb_erase_color(RbRoot* root, RbNode* node, RbNode* parent) noexcept nogil
cdef RbNode* rb_first(RbRoot* root) noexcept nogil
cdef RbNode* rb_next(RbNode* node) noexcept nogil

cdef inline bint rb_is_black(RbNode* node) noexcept nogil:
    return node == NULL or not node.rb_red

# Computes what a node knows of its subtree from its children.
ctypedef void (*rb_augment_f)(RbNode* node) noexcept nogil

cdef void rb_augment_path(RbNode* node, rb_augment_f augment) noexcept nogil
cdef void rb_augment_insert(RbNode* node, rb_augment_f augment) noexcept nogil
cdef RbNode* rb_augment_erase_begin(RbNode* node) noexcept nogil
cdef void rb_augment_erase_end(RbNode* deepest, rb_augment_f augment) noexcept nogil
