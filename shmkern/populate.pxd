# SPDX-License-Identifier: GPL-2.0-only
# The system calls mlock, munlock and mlockall.  May use: fault and below.

cimport cython
from shmkern.fault cimport *

@cython.locals(rc=cython.int, page=pointer_to_page)
cdef int mlock_page_at(VmAreaStruct* vma, u64 address, bint fault) noexcept nogil
@cython.locals(rc=cython.int, failed=cython.int)
cdef int populate_area(VmAreaStruct* vma, u64 start, u64 end) noexcept nogil
@cython.locals(rc=cython.int, one=cython.int)
cdef int mm_populate(MmStruct* mm, u64 start, u64 end) noexcept nogil
cdef void populate_mapped(u64 start, u64 length) noexcept nogil
cdef void mlock_fixup(VmAreaStruct* vma, bint lock) noexcept nogil
@cython.locals(reached=u64)
cdef int mlock_range(MmStruct* mm, u64 start, u64 end, bint lock) noexcept nogil
cdef int mlock_errno(int rc) noexcept nogil
@cython.locals(rc=cython.int, end=u64)
cdef int do_mlock(u64 start, u64 length) noexcept nogil
@cython.locals(rc=cython.int, end=u64)
cdef int do_munlock(u64 start, u64 length) noexcept nogil
cdef int do_mlockall(u64 flags) noexcept nogil
cdef int do_munlockall() noexcept nogil
