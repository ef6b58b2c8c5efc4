# SPDX-License-Identifier: GPL-2.0-only
# Address spaces.  May use: file, mlock and below.

cimport cython
from shmkern.mlock cimport *
from shmkern.file cimport *

cdef extern from *:
    """
    #define MMAP_MIN_ADDR 65536UL
    #define MMAP_BASE (TASK_SIZE - (128UL << 20))
    """
    const u64 MMAP_MIN_ADDR
    const u64 MMAP_BASE

cdef void mm_list(MmStruct* mm) noexcept nogil
cdef MmStruct* __mm_alloc(MmStruct* oldmm) noexcept nogil
cdef MmStruct* mm_alloc() noexcept nogil
cdef void exit_mmap(MmStruct* mm) noexcept nogil
cdef void mmput(MmStruct* mm) noexcept nogil
cdef void mmget(MmStruct* mm) noexcept nogil
cdef int dup_mmap(MmStruct* mm, MmStruct* oldmm) noexcept nogil
cdef MmStruct* dup_mm(MmStruct* oldmm) noexcept nogil
@cython.locals(gap_end=u64, prev_end=u64)
cdef u64 get_unmapped_area(MmStruct* mm, u64 length) noexcept nogil
@cython.locals(tlb=MmuGather)
cdef void unmap_region(MmStruct* mm, VmAreaStruct* first, VmAreaStruct* after, u64 floor) noexcept nogil
cdef int carve_range(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef void merge_boundary(MmStruct* mm, u64 address) noexcept nogil
cdef void close_area(VmAreaStruct* vma) noexcept nogil
cdef void remove_areas(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef int munmap_locked(MmStruct* mm, u64 start, u64 length) noexcept nogil
cdef void vma_free(VmAreaStruct* vma) noexcept nogil
cdef i64 mmap_flags(u64 prot, u64 flags, File* file) noexcept nogil
cdef i64 mmap_address(MmStruct* mm, u64 addr, u64 length, u64 flags) noexcept nogil
@cython.locals(vm_flags=i64, rc=i64, vm_ops=u64, locked=u64)
cdef i64 mmap_locked(MmStruct* mm, u64 addr, u64 length, u64 prot, u64 flags, File* file, u64 pgoff) noexcept nogil
cdef void mprotect_area(VmAreaStruct* vma, u64 prot) noexcept nogil
cdef int mprotect_locked(MmStruct* mm, u64 start, u64 length, u64 prot) noexcept nogil
@cython.locals(moved=u64, pgoff=u64, keep=bint)
cdef i64 move_vma(MmStruct* mm, u64 old_addr, u64 old_len, u64 new_addr, u64 new_len) noexcept nogil
cdef int mremap_check(MmStruct* mm, u64 addr, u64 old_len, u64 new_len, u64 flags, u64 new_addr) noexcept nogil
cdef int mremap_area_check(MmStruct* mm, u64 addr, u64 old_len, u64 new_len) noexcept nogil
cdef i64 mremap_locked(MmStruct* mm, u64 addr, u64 old_len, u64 new_len, u64 flags, u64 new_addr) noexcept nogil
cdef i64 do_mmap(MmStruct* mm, u64 addr, u64 length, u64 prot, u64 flags, int fd, u64 offset) noexcept nogil
cdef int do_munmap(MmStruct* mm, u64 start, u64 length) noexcept nogil
cdef int do_mprotect(MmStruct* mm, u64 start, u64 length, u64 prot) noexcept nogil
cdef i64 do_mremap(MmStruct* mm, u64 addr, u64 old_len, u64 new_len, u64 flags, u64 new_addr) noexcept nogil
@cython.locals(first=u64, mapping=pointer_to_mapping)
cdef int do_msync(MmStruct* mm, u64 start, u64 length, u64 flags) noexcept nogil

ctypedef AddressSpace* pointer_to_mapping
