# SPDX-License-Identifier: GPL-2.0-only
# Words in bulk.  May use: uaccess and below, and of syscalls the exceptions.

cimport cython
from shmkern.uaccess cimport *
from shmkern.syscalls cimport check_errno, user_fault

# What the words of an array are put through.
cdef enum:
    BULK_LOAD = 0
    BULK_STORE = 1
    BULK_FETCH_ADD = 2
    BULK_CMPXCHG = 3
    BULK_CMPXCHG_ADD = 4       # a compare-and-exchange loop that adds

@cython.locals(rc=cython.int, frame=cython.p_char)
cdef int word_atomic(int op, u64 address, u64 a, u64 b, u64* result) noexcept nogil
@cython.locals(rc=cython.int, old=u64)
cdef int word_cmpxchg_add(u64 address, u64 delta, u64* result) noexcept nogil
@cython.locals(rc=cython.int, left=u64)
cdef int word_unaligned(int op, u64 address, u64 a, u64* result) noexcept nogil
@cython.locals(rc=cython.int)
cdef int bulk_words(int op, const u64* addresses, const u64* a, const u64* b, u64* results,
                    u64 count, u64* done) noexcept nogil
@cython.locals(done=u64, count=u64, rc=cython.int)
cdef bulk(int op, addresses, a, b)
