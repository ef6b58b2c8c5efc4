# SPDX-License-Identifier: GPL-2.0-only
# Checked streams of accesses.  May use: uaccess and below.

cimport cython
from shmkern.uaccess cimport *

cdef enum:
    ACCESS_LOAD = 0
    ACCESS_STORE = 1
    ACCESS_MODIFY = 2          # a load, then a store of the same bytes
    ACCESS_SIZE_MAX = 4096

# Why a replay stopped, besides a negative errno.
cdef enum:
    REPLAY_MISMATCH = 1
    REPLAY_NO_MEMORY = 2       # of the host's, for the shadow

# One access; what numpy calls replay.ACCESS.
cdef struct Access:
    u64 address
    u16 size
    u8 op
    u8 _pad[5]

# A hash of pages by their number, open addressed, at most three quarters full.
cdef struct ShadowTable:
    u64* numbers               # page number + 1; 0 where nothing is
    char** pages               # NULL when the page was discarded
    u64 capacity               # a power of two
    u64 used

# Where a replay stopped, and on what.
cdef struct Outcome:
    u64 address                # the first byte that mattered
    u64 size
    unsigned char expected[4096]
    unsigned char found[4096]

cdef class Shadow:
    cdef ShadowTable table
    cpdef bytes read(self, u64 address, u64 length)
    @cython.locals(size=u64)
    cpdef write(self, u64 address, data)
    cpdef discard(self, u64 address, u64 length)
    @cython.locals(page=cython.p_char)
    cpdef move(self, u64 old, u64 new, u64 length)
    cpdef clear(self)
    cpdef pages(self)

@cython.locals(slot=u64)
cdef u64 shadow_slot(ShadowTable* table, u64 number) noexcept nogil
cdef int shadow_resize(ShadowTable* table, u64 capacity) noexcept nogil
cdef char* shadow_page(ShadowTable* table, u64 number) noexcept nogil
cdef char* shadow_new_page(ShadowTable* table, u64 number) noexcept nogil
@cython.locals(part=u64)
cdef void shadow_read(ShadowTable* table, u64 address, void* to, u64 length) noexcept nogil
@cython.locals(part=u64)
cdef int shadow_write(ShadowTable* table, u64 address, const void* source, u64 length) noexcept nogil
cdef void shadow_drop(ShadowTable* table, u64 number) noexcept nogil
cdef void shadow_free(ShadowTable* table) noexcept nogil

@cython.locals(word=u64, part=u64)
cdef void fill_pattern(void* to, u64 length, u64 seed, u64 index) noexcept nogil
@cython.locals(rc=cython.int, left=u64)
cdef int checked_load(ShadowTable* shadow, const Access* access, Outcome* out) noexcept nogil
@cython.locals(last=u64, rc=cython.int)
cdef int probe_store(const Access* access, Outcome* out) noexcept nogil
@cython.locals(rc=cython.int, left=u64)
cdef int checked_store(ShadowTable* shadow, const Access* access, u64 seed, u64 index, Outcome* out) noexcept nogil
cdef int perform(ShadowTable* shadow, const Access* access, u64 seed, u64 index, Outcome* out) noexcept nogil
cdef u64 perform_all(ShadowTable* shadow, const Access* records, u64 seed, u64 start, u64 end,
                     Outcome* out, int* reason) noexcept nogil
@cython.locals(out=Outcome, reason=cython.int, count=u64, stop=u64, index=u64,
               accesses=access_pointer)
cpdef replay(records, Shadow shadow, u64 seed, u64 start=*, end=*)

ctypedef const Access* access_pointer
