# SPDX-License-Identifier: GPL-2.0-only
# Object caches.  May use: locks and below.

cimport cython
from shmkern.atomics cimport *
from shmkern.current cimport *
from shmkern.lists cimport *
from shmkern.locks cimport *
from shmkern.fault_inject cimport should_fail

cdef enum:
    POISON_FREE = 0x6b         # include/linux/poison.h
    MAX_SLAB_RETRIES = 16

cdef extern from *:
    """
    #define POISON_FREE_WORD 0x6b6b6b6b6b6b6b6bUL
    """
    const u64 POISON_FREE_WORD

# The slab that an object lies in, and a slab's page.
cdef inline Slab* virt_to_slab(const void* obj) noexcept nogil:
    return kernel().slabs + ((<u64>obj - kernel().slab_base) >> PAGE_SHIFT)

cdef inline u64 slab_address(Slab* slab) noexcept nogil:
    return kernel().slab_base + (<u64>(slab - kernel().slabs) << PAGE_SHIFT)

cdef KmemCache* kmem_cache_create(const char* name, u32 object_size) noexcept nogil
ctypedef bint (*slab_reclaim_t)() noexcept nogil
cdef slab_reclaim_t slab_reclaim_hook
cdef void set_slab_reclaim(slab_reclaim_t reclaim) noexcept nogil
@cython.locals(retries=cython.int, more=bint)
cdef void* kmem_cache_alloc(KmemCache* cache) noexcept nogil
cdef void* __kmem_cache_alloc(KmemCache* cache) noexcept nogil
cdef void kmem_cache_free(KmemCache* cache, void* obj) noexcept nogil
cdef Slab* slab_page_alloc() noexcept nogil
cdef Slab* cache_grow(KmemCache* cache) noexcept nogil
cdef void slab_destroy(KmemCache* cache, Slab* slab) noexcept nogil
cdef void poison_words(u64* words, u64 first, u64 end) noexcept nogil
cdef bint words_are_poisoned(u64* words, u64 first, u64 end) noexcept nogil
