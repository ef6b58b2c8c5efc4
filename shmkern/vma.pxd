# SPDX-License-Identifier: GPL-2.0-only
# Virtual memory areas: find, insert, split, merge.  May use: rmap and below.

cimport cython
from shmkern.rmap cimport *
from shmkern.rbtree cimport *
from shmkern.uapi cimport *

# include/linux/mm.h
cdef enum:
    VM_READ = 0x01
    VM_WRITE = 0x02
    VM_EXEC = 0x04
    VM_SHARED = 0x08
    VM_MAYREAD = 0x10
    VM_MAYWRITE = 0x20
    VM_MAYEXEC = 0x40
    VM_ACCESS_FLAGS = 7        # VM_READ | VM_WRITE | VM_EXEC, equal to the PROT_ bits
    VM_PFNMAP = 0x400          # frames without struct pages
    VM_IO = 0x4000
    VM_DONTCOPY = 0x20000
    VM_DONTEXPAND = 0x40000
    VM_RESERVED = 0x80000
    VM_SPECIAL = 0xc4400       # VM_IO | VM_DONTEXPAND | VM_RESERVED | VM_PFNMAP
    MAX_MAP_COUNT = 65536      # /proc/sys/vm/max_map_count

# What the owner of an area's memory does (struct vm_operations_struct).  The table lies in the
# module, which all processes of a machine have at one address, since they are forked.
ctypedef void (*vma_close_t)(VmAreaStruct* vma) noexcept nogil
ctypedef int (*vma_migrate_t)(VmAreaStruct* vma, u64 to_nodes, u64 from_nodes, u64 flags) noexcept nogil

cdef struct VmOperations:
    vma_close_t close
    vma_migrate_t migrate

cdef inline VmOperations* vma_ops(VmAreaStruct* vma) noexcept nogil:
    return <VmOperations*>vma.vm_ops

# Whether pages of the area can be moved one by one (include/linux/migrate.h).
cdef inline bint vma_migratable(VmAreaStruct* vma) noexcept nogil:
    return not vma.vm_flags & (VM_IO | VM_PFNMAP | VM_RESERVED)

cdef inline u64 vma_pages(VmAreaStruct* vma) noexcept nogil:
    return (vma.vm_end - vma.vm_start) >> PAGE_SHIFT

cdef inline bint is_cow_mapping(u64 flags) noexcept nogil:
    return (flags & (VM_SHARED | VM_MAYWRITE)) == VM_MAYWRITE

cdef void account_pages(MmStruct* mm, u64 vm_flags, i64 pages) noexcept nogil
cdef u64 vm_get_page_prot(u64 vm_flags) noexcept nogil
cdef VmAreaStruct* vma_alloc(MmStruct* mm, u64 start, u64 end, u64 vm_flags, u64 pgoff) noexcept nogil
cdef void vma_free(VmAreaStruct* vma) noexcept nogil
cdef VmAreaStruct* find_vma_prev(MmStruct* mm, u64 address, VmAreaStruct** prev_out) noexcept nogil
cdef VmAreaStruct* find_vma(MmStruct* mm, u64 address) noexcept nogil
cdef VmAreaStruct* find_vma_intersection(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef void insert_vm_struct(MmStruct* mm, VmAreaStruct* vma) noexcept nogil
cdef void detach_vma(MmStruct* mm, VmAreaStruct* vma) noexcept nogil
cdef int split_vma(MmStruct* mm, VmAreaStruct* vma, u64 address) noexcept nogil
cdef void vma_set_end(MmStruct* mm, VmAreaStruct* vma, u64 end) noexcept nogil
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
