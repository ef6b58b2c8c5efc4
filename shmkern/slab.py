# SPDX-License-Identifier: GPL-2.0-only
"""kmem_cache: fixed-size object caches in an arena of the block.

A cache takes the arena page by page and keeps it: the machine's kernel objects
(VMAs, address spaces, anon_vmas) are few against its frames, so memory never flows
back, and a stale pointer at least points at an object of its own type.  A free
object is filled with POISON_FREE but for its first word, the link of the free list;
a fill that is not intact when the object is handed out again was written through a
dangling pointer, and that stops the machine.
"""
from cython import NULL, address, cast, pointer, sizeof
from cython.cimports.libc.string import memset, strncpy


def kmem_cache_create(name, object_size):
    """Adds a cache of `object_size`-byte objects (a multiple of 8, 16 at least).

    Called while the machine boots, by one process.
    """
    k = kernel()
    BUG_ON(k.nr_caches >= SLAB_CACHES_MAX or object_size % 8 != 0 or object_size < 16)
    cache = address(k.caches[k.nr_caches])
    k.nr_caches += 1
    memset(cache, 0, sizeof(KmemCache))
    strncpy(cache.name, name, SLAB_NAME_LEN - 1)
    cache.object_size = object_size
    return cache


def kmem_cache_alloc(cache):
    """A zeroed object, or NULL when the arena is used up.  Takes cache->lock."""
    if should_fail():
        return NULL
    spin_lock(address(cache.lock))
    if cache.freelist == NULL and not cache_grow(cache):
        spin_unlock(address(cache.lock))
        return NULL
    obj = cache.freelist
    cache.freelist = cast(pointer(pointer(u64)), obj)[0]
    cache.nr_free -= 1
    spin_unlock(address(cache.lock))
    if not object_is_poisoned(cache, obj):
        BUG_AT(b"Slab corruption: a free object was written to", obj)
    memset(obj, 0, cache.object_size)
    return obj


def kmem_cache_free(cache, obj):
    """Gives an object back.  Takes cache->lock."""
    if object_is_poisoned(cache, obj):
        BUG_AT(b"Slab: double free", obj)
    poison_object(cache, obj)
    spin_lock(address(cache.lock))
    cast(pointer(pointer(u64)), obj)[0] = cast(pointer(u64), cache.freelist)
    cache.freelist = obj
    cache.nr_free += 1
    spin_unlock(address(cache.lock))


def cache_grow(cache):
    """Carves one more page of the arena into objects.  Holds cache->lock, takes
    slab_lock.  False when the arena is used up."""
    k = kernel()
    spin_lock(address(k.slab_lock))
    slab = k.slab_next
    room = slab + PAGE_SIZE <= k.slab_end
    if room:
        k.slab_next += PAGE_SIZE
    spin_unlock(address(k.slab_lock))
    if not room:
        return False
    for index in range(PAGE_SIZE // cache.object_size):
        obj = cast(pointer(u64), slab + index * cache.object_size)
        poison_object(cache, obj)
        obj[0] = cast(u64, cache.freelist)
        cache.freelist = obj
        cache.nr_objects += 1
        cache.nr_free += 1
    return True


def poison_object(cache, obj):
    """Fills all but the first word."""
    memset(cast(pointer(u64), obj) + 1, POISON_FREE, cache.object_size - 8)


def object_is_poisoned(cache, obj):
    """Whether all but the first word is the fill."""
    words = cast(pointer(u64), obj)
    for index in range(1, cache.object_size // 8):
        if words[index] != cast(u64, 0x6b6b6b6b6b6b6b6b):
            return False
    return True
