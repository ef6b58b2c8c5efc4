# SPDX-License-Identifier: GPL-2.0-only
# Giving a swap area back.  May use: fault, file and below.

cimport cython
from shmkern.fault cimport *
from shmkern.swap_state cimport *
from shmkern.file cimport *

@cython.locals(users=u32)
cdef bint mmget_not_zero(MmStruct* mm) noexcept nogil
@cython.locals(found=pointer_to_mm)
cdef MmStruct* next_mm(MmStruct* mm) noexcept nogil
cdef int unuse_pte_range(VmAreaStruct* vma, u64* pmd, u64 address, u64 end, u64 type) noexcept nogil
@cython.locals(at=u64, stop=u64, rc=cython.int)
cdef int unuse_mm(MmStruct* mm, u64 type) noexcept nogil
@cython.locals(mm=pointer_to_mm, rc=cython.int)
cdef int unuse_all_mms(u64 type) noexcept nogil
@cython.locals(found=pointer_to_inode)
cdef Inode* next_swapped_inode(Inode* inode) noexcept nogil
@cython.locals(index=u64, entry=swp_entry_t, rc=cython.int)
cdef int shmem_unuse_inode(AddressSpace* mapping, u64 type) noexcept nogil
@cython.locals(inode=pointer_to_inode, rc=cython.int)
cdef int shmem_unuse(u64 type) noexcept nogil
@cython.locals(entry=swp_entry_t, page=pointer_to_page)
cdef void unuse_cache(SwapInfo* si, u64 type) noexcept nogil
@cython.locals(rc=cython.int, inuse=u64, fewest=u64)
cdef int try_to_unuse(SwapInfo* si, u64 type) noexcept nogil
@cython.locals(rc=cython.int)
cdef int do_swapoff(u32 type) noexcept nogil

ctypedef MmStruct* pointer_to_mm
