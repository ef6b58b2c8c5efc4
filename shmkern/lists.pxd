# SPDX-License-Identifier: GPL-2.0-only
# Circular doubly linked lists, as include/linux/list.h.

from shmkern.atomics cimport u64, VM_BUG_ON_PAGE, WRITE_ONCE64
from shmkern.mm_types cimport ListHead, Page, Slab, VmAreaStruct, MmStruct, RbNode, Inode

# Where a removed entry points, so that a second removal is seen.
cdef enum:
    LIST_POISON1 = 0x100100
    LIST_POISON2 = 0x200200

cdef inline void INIT_LIST_HEAD(ListHead* head) noexcept nogil:
    head.next = head
    head.prev = head

cdef inline bint list_empty(ListHead* head) noexcept nogil:
    return head.next == head

cdef inline void __list_add(ListHead* new, ListHead* prev, ListHead* next) noexcept nogil:
    next.prev = new
    new.next = next
    new.prev = prev
    # Marked, here and below: next_free_page looks at lists without their lock.
    WRITE_ONCE64(&prev.next, <u64>new)

cdef inline void list_add(ListHead* new, ListHead* head) noexcept nogil:
    __list_add(new, head, head.next)

cdef inline void list_add_tail(ListHead* new, ListHead* head) noexcept nogil:
    __list_add(new, head.prev, head)

cdef inline void list_del(ListHead* entry) noexcept nogil:
    VM_BUG_ON_PAGE(entry.next.prev != entry or entry.prev.next != entry, entry)
    entry.next.prev = entry.prev
    WRITE_ONCE64(&entry.prev.next, <u64>entry.next)
    entry.next = <ListHead*>LIST_POISON1
    entry.prev = <ListHead*>LIST_POISON2

cdef inline void list_move(ListHead* entry, ListHead* head) noexcept nogil:
    list_del(entry)
    list_add(entry, head)

# container_of, spelled out for each list there is.
cdef inline Page* list_entry_page(ListHead* lru) noexcept nogil:
    return <Page*>(<u64>lru - <u64>&(<Page*>0).lru)

cdef inline Slab* list_entry_slab(ListHead* list) noexcept nogil:
    return <Slab*>(<u64>list - <u64>&(<Slab*>0).list)

cdef inline VmAreaStruct* list_entry_vma(ListHead* anon_vma_node) noexcept nogil:
    return <VmAreaStruct*>(<u64>anon_vma_node - <u64>&(<VmAreaStruct*>0).anon_vma_node)

cdef inline MmStruct* list_entry_mm(ListHead* mmlist) noexcept nogil:
    return <MmStruct*>(<u64>mmlist - <u64>&(<MmStruct*>0).mmlist)

cdef inline VmAreaStruct* rb_entry_shared(RbNode* shared) noexcept nogil:
    return <VmAreaStruct*>(<u64>shared - <u64>&(<VmAreaStruct*>0).shared)

cdef inline VmAreaStruct* rb_entry_vma(RbNode* node) noexcept nogil:
    return <VmAreaStruct*>(<u64>node - <u64>&(<VmAreaStruct*>0).vm_rb)

# lru_to_page (seed line 37): the oldest page of a list.
cdef inline Page* lru_to_page(ListHead* head) noexcept nogil:
    return list_entry_page(head.prev)

cdef inline Inode* list_entry_inode(ListHead* i_list) noexcept nogil:
    return <Inode*>(<u64>i_list - <u64>&(<Inode*>0).i_list)
