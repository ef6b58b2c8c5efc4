# SPDX-License-Identifier: GPL-2.0-only
# Object caches.  May use: locks and below.

cimport cython
from shmkern.atomics cimport *
from shmkern.mm_types cimport *
from shmkern.locks cimport *
from shmkern.fault_inject cimport should_fail

cdef enum:
    POISON_FREE = 0x6b         # include/linux/poison.h

cdef KmemCache* kmem_cache_create(const char* name, u32 object_size) noexcept nogil
cdef void* kmem_cache_alloc(KmemCache* cache) noexcept nogil
cdef void kmem_cache_free(KmemCache* cache, void* obj) noexcept nogil
@cython.locals(room=bint)
cdef bint cache_grow(KmemCache* cache) noexcept nogil
cdef void poison_object(KmemCache* cache, void* obj) noexcept nogil
cdef bint object_is_poisoned(KmemCache* cache, void* obj) noexcept nogil
