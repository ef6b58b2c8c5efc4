# SPDX-License-Identifier: GPL-2.0-only
# Virtual memory areas: find, insert, split, merge.  May use: rmap and below.

cimport cython
from shmkern.rmap cimport *
from shmkern.rbtree cimport *
from shmkern.uapi cimport *

cdef enum:
    MAX_MAP_COUNT = 65536      # /proc/sys/vm/max_map_count

# What a fault does where nothing is mapped: numbers in VmAreaStruct.vm_ops.
cdef enum:
    VM_OPS_ANON = 0            # a page of its own
    VM_OPS_FILE = 1            # the file's page
    VM_OPS_SHMEM = 2           # the page of shared anonymous memory
    VM_OPS_DEVICE = 3          # all of the area is mapped from the start
    NR_VM_OPS = 4

# What else the owner of an area's memory does (struct vm_operations_struct), by the same numbers: a
# function has another address in each process.  NULL where there is nothing to do.
ctypedef void (*vma_close_t)(VmAreaStruct* vma) noexcept nogil
ctypedef int (*vma_set_policy_t)(VmAreaStruct* vma, Mempolicy* pol) noexcept nogil
ctypedef Mempolicy* (*vma_get_policy_t)(VmAreaStruct* vma, u64 address) noexcept nogil
ctypedef int (*vma_migrate_t)(VmAreaStruct* vma, u64 to_nodes, u64 from_nodes, u64 flags) noexcept nogil

cdef struct VmOperations:
    vma_close_t close
    vma_set_policy_t set_policy        # where the policy is not the area's
    vma_get_policy_t get_policy        # with a reference
    vma_migrate_t migrate

cdef VmOperations vm_operations[4]      # NR_VM_OPS
cdef VmOperations* vma_ops(VmAreaStruct* vma) noexcept nogil

# Whether pages of the area can be moved one by one (include/linux/migrate.h).
cdef inline bint vma_migratable(VmAreaStruct* vma) noexcept nogil:
    return not vma.vm_flags & (VM_IO | VM_PFNMAP | VM_RESERVED)

cdef inline u64 vma_pages(VmAreaStruct* vma) noexcept nogil:
    return (vma.vm_end - vma.vm_start) >> PAGE_SHIFT

cdef inline bint is_cow_mapping(u64 flags) noexcept nogil:
    return (flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE

cdef void account_pages(MmStruct* mm, u64 vm_flags, i64 pages) noexcept nogil
cdef u64 vm_get_page_prot(u64 vm_flags) noexcept nogil
cdef bint vma_wants_writenotify(VmAreaStruct* vma) noexcept nogil
cdef void vma_set_page_prot(VmAreaStruct* vma) noexcept nogil
cdef void get_file(File* file) noexcept nogil
cdef VmAreaStruct* vma_alloc(MmStruct* mm, u64 start, u64 end, u64 vm_flags, u64 pgoff, File* file, u64 vm_ops) noexcept nogil
cdef void vma_link_file(VmAreaStruct* vma) noexcept nogil
cdef void vma_link_file_after(VmAreaStruct* vma, VmAreaStruct* prev) noexcept nogil
cdef void unlink_file_vma(VmAreaStruct* vma) noexcept nogil
cdef void lock_rmap(AddressSpace* mapping, AnonVma* anon_vma) noexcept nogil
cdef void unlock_rmap(AddressSpace* mapping, AnonVma* anon_vma) noexcept nogil
cdef Mempolicy* __get_vma_policy(VmAreaStruct* vma, u64 address) noexcept nogil
@cython.locals(pol=pointer_to_policy)
cdef Mempolicy* get_vma_policy(VmAreaStruct* vma, u64 address, u64* ilx) noexcept nogil
@cython.locals(ilx=u64)
cdef Page* alloc_page_vma(u64 gfp, VmAreaStruct* vma, u64 address) noexcept nogil
cdef VmAreaStruct* find_vma_prev(MmStruct* mm, u64 address, VmAreaStruct** prev_out) noexcept nogil
cdef VmAreaStruct* find_vma(MmStruct* mm, u64 address) noexcept nogil
cdef VmAreaStruct* find_vma_intersection(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef void insert_vm_struct(MmStruct* mm, VmAreaStruct* vma) noexcept nogil
cdef void detach_vma(MmStruct* mm, VmAreaStruct* vma) noexcept nogil
cdef int split_vma(MmStruct* mm, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void vma_set_end(MmStruct* mm, VmAreaStruct* vma, u64 end) noexcept nogil
cdef bint vmas_are_alike(VmAreaStruct* low, VmAreaStruct* high, u64 flags) noexcept nogil
cdef bint can_vma_merge(VmAreaStruct* low, VmAreaStruct* high) noexcept nogil
cdef void vma_absorb(MmStruct* mm, VmAreaStruct* low, VmAreaStruct* high) noexcept nogil
@cython.locals(prev=pointer_to_vma)
cdef VmAreaStruct* vma_merge(MmStruct* mm, VmAreaStruct* vma) noexcept nogil
@cython.locals(prev=pointer_to_vma)
cdef AnonVma* find_mergeable_anon_vma(VmAreaStruct* vma) noexcept nogil
@cython.locals(anon_vma=pointer_to_anon_vma, allocated=pointer_to_anon_vma)
cdef int anon_vma_prepare(VmAreaStruct* vma) noexcept nogil

ctypedef VmAreaStruct* pointer_to_vma
ctypedef AnonVma* pointer_to_anon_vma
