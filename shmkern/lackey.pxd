# SPDX-License-Identifier: GPL-2.0-only
# Traces of valgrind's lackey.  May use: replay and below.

cimport cython
from shmkern.replay cimport *

ctypedef const char* text_pointer

@cython.locals(digit=cython.int, value=u64)
cdef int parse_number(text_pointer* at, text_pointer end, int base, char stop, u64* number) noexcept nogil
@cython.locals(address=u64, size=u64, kind=cython.char)
cdef int parse_access(text_pointer at, text_pointer end, Access* access) noexcept nogil
@cython.locals(number=u64)
cdef bint is_valgrinds(text_pointer at, text_pointer end) noexcept nogil
@cython.locals(eol=text_pointer)
cdef int parse_lines(text_pointer* at, text_pointer end, Access* records, u64* count, u64* lines) noexcept nogil
@cython.locals(at=text_pointer, begin=text_pointer, size=u64, count=u64, lines=u64, rc=cython.int)
cpdef parse_lackey(text)
