# SPDX-License-Identifier: GPL-2.0-only
# Memory policies of ranges and tasks, and migration from nodes to nodes.  May use: uaccess,
# process and below.

cimport cython
from shmkern.uaccess cimport *
from shmkern.process cimport *
from shmkern.migrate cimport *

cdef enum:
    # Flags of check_range that programs do not see.
    MPOL_MF_DISCONTIG_OK = 0x100
    MPOL_MF_INVERT = 0x200

# What check_range looks for and what it has found.
cdef struct PageQueue:
    u64 nodes
    u64 flags
    ListHead* pagelist
    u64 nr_unmovable

cdef void migrate_page_add(Page* page, PageQueue* queue) noexcept nogil
@cython.locals(found=bint)
cdef bint check_pte_range(VmAreaStruct* vma, u64* pmd, u64 address, u64 end, PageQueue* queue) noexcept nogil
@cython.locals(at=u64, stop=u64)
cdef int check_area(VmAreaStruct* vma, u64 start, u64 end, PageQueue* queue) noexcept nogil
@cython.locals(reached=u64)
cdef int check_range(MmStruct* mm, u64 start, u64 end, PageQueue* queue) noexcept nogil
cdef int policy_vma(VmAreaStruct* vma, Mempolicy* pol) noexcept nogil
cdef int mbind_range(MmStruct* mm, u64 start, u64 end, Mempolicy* pol) noexcept nogil
@cython.locals(vma=pointer_to_vma)
cdef Page* new_vma_page(Page* page, u64 private, int** result) noexcept nogil
@cython.locals(pagelist=ListHead, queue=PageQueue)
cdef int mbind_locked(MmStruct* mm, u64 start, u64 end, Mempolicy* pol, u64 nodes, u64 flags) noexcept nogil
@cython.locals(rc=cython.int)
cdef int do_mbind(u64 start, u64 length, int mode, u32 mode_flags, u64 nodes, u64 flags) noexcept nogil
@cython.locals(rc=cython.int)
cdef int do_set_mempolicy(int mode, u32 flags, u64 nodes) noexcept nogil
cdef u64 get_policy_nodemask(Mempolicy* pol) noexcept nogil
@cython.locals(rc=cython.int)
cdef int lookup_node(VmAreaStruct* vma, u64 address) noexcept nogil
@cython.locals(rc=cython.int)
cdef int describe_policy(Mempolicy* pol, VmAreaStruct* vma, u64 address, u64 flags, int* policy, u64* nodes) noexcept nogil
@cython.locals(rc=cython.int)
cdef int do_get_mempolicy(u64 address, u64 flags, int* policy, u64* nodes) noexcept nogil
@cython.locals(pagelist=ListHead, queue=PageQueue)
cdef int migrate_to_node(MmStruct* mm, int source, int dest, u64 flags) noexcept nogil
@cython.locals(d=cython.int, s=cython.int)
cdef int pick_node(u64 left, u64 from_nodes, u64 to_nodes, int* dest) noexcept nogil
@cython.locals(rc=cython.int, dest=cython.int)
cdef int do_migrate_pages(MmStruct* mm, u64 from_nodes, u64 to_nodes, u64 flags) noexcept nogil

@cython.locals(bits=u64, words=u64, last=u64, word=u64, index=u64)
cdef int get_nodes(u64* nodes, u64 nmask, u64 maxnode) noexcept nogil
@cython.locals(copy=u64, zero=u64, at=u64)
cdef int copy_nodes_to_user(u64 nmask, u64 maxnode, u64 nodes) noexcept nogil
@cython.locals(nodes=u64, rc=cython.int)
cdef int sys_mbind(u64 start, u64 length, u64 mode, u64 nmask, u64 maxnode, u64 flags) noexcept nogil
@cython.locals(nodes=u64, rc=cython.int)
cdef int sys_set_mempolicy(u64 mode, u64 nmask, u64 maxnode) noexcept nogil
@cython.locals(nodes=u64, policy=cython.int, rc=cython.int)
cdef int sys_get_mempolicy(u64 policy_at, u64 nmask, u64 maxnode, u64 address, u64 flags) noexcept nogil
@cython.locals(old=u64, new=u64, rc=cython.int, target=TaskMemory)
cdef int sys_migrate_pages(i32 pid, u64 maxnode, u64 old_nodes, u64 new_nodes) noexcept nogil
