# SPDX-License-Identifier: GPL-2.0-only
# A device with memory of its own, and areas that map it.  May use: mm and below.

cimport cython
from shmkern.mm cimport *

# The bank, and so the node, of a frame of the device's.
cdef inline int device_node(u64 pfn) noexcept nogil:
    return <int>((pfn - kernel().max_pfn) // DEVICE_FRAMES)

cdef u64 device_alloc(int node) noexcept nogil
cdef void device_free(u64 pfn) noexcept nogil
@cython.locals(at=u64, pfn=u64)
cdef void device_close(VmAreaStruct* vma) noexcept nogil
@cython.locals(pfn=u64)
cdef bint device_move_page(VmAreaStruct* vma, u64* pmd, u64 address, u64 to_nodes, u64 from_nodes) noexcept nogil
@cython.locals(at=u64)
cdef int device_migrate(VmAreaStruct* vma, u64 to_nodes, u64 from_nodes, u64 flags) noexcept nogil
@cython.locals(pmd=pointer_to_u64, pfn=u64, at=u64)
cdef int device_fill(MmStruct* mm, VmAreaStruct* vma, int node) noexcept nogil
@cython.locals(rc=i64)
cdef i64 do_device_mmap(u64 length, int node) noexcept nogil
