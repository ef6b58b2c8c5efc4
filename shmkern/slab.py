# SPDX-License-Identifier: GPL-2.0-only
"""kmem_cache: fixed-size object caches in an arena of the block (mm/slab.c).

A cache takes the arena page by page.  Each page, a slab, has a list of its own of the
objects in it that are free, so a slab whose last object comes back can go back to the
arena: what one cache has used up in a bad hour serves another one afterwards.  One empty
slab a cache keeps, or a program that maps and unmaps would carve a page each time.

All free memory of the arena is filled with POISON_FREE, but for the first word of a free
object, the link of its list.  A fill that is not intact when the memory is handed out
again was written through a dangling pointer, and that stops the machine.

Locks: cache->lock, then slab_lock.
"""
from cython import NULL, address, cast, pointer, sizeof
from cython.cimports.libc.string import memset, strncpy


def kmem_cache_create(name, object_size):
    """Adds a cache of `object_size`-byte objects (a multiple of 8, 16 at least).

    Called while the machine boots, by one process.
    """
    k = kernel()
    BUG_ON(k.nr_caches >= SLAB_CACHES_MAX or object_size % 8 != 0 or object_size < 16 or object_size > PAGE_SIZE)
    cache = address(k.caches[k.nr_caches])
    k.nr_caches += 1
    memset(cache, 0, sizeof(KmemCache))
    strncpy(cache.name, name, SLAB_NAME_LEN - 1)
    cache.object_size = object_size
    INIT_LIST_HEAD(address(cache.slabs_partial))
    return cache


def set_slab_reclaim(reclaim):
    """Tells this process how objects come back that somebody has freed already; see rcu_reclaim."""
    global slab_reclaim_hook
    slab_reclaim_hook = reclaim


def kmem_cache_alloc(cache):
    """A zeroed object, or NULL when the arena is used up.  May sleep; takes cache->lock.

    Used up is not what waits for a grace period: a reader that has lost its CPU may keep thousands of
    objects from coming back.
    """
    might_sleep()
    if should_fail():
        return NULL
    obj = __kmem_cache_alloc(cache)
    retries = 0
    while obj == NULL and retries < MAX_SLAB_RETRIES:
        # Others may take what comes back.  After so many rounds this is not bad luck.
        retries += 1
        more = slab_reclaim_hook()
        obj = __kmem_cache_alloc(cache)
        if not more:
            break
    return obj


def __kmem_cache_alloc(cache):
    """A zeroed object of those that are free now, or NULL.  Takes cache->lock."""
    spin_lock(address(cache.lock))
    if not list_empty(address(cache.slabs_partial)):
        slab = list_entry_slab(cache.slabs_partial.next)
    else:
        slab = cache_grow(cache)
        if slab == NULL:
            spin_unlock(address(cache.lock))
            return NULL
    obj = cast(pointer(u64), slab.freelist)
    slab.freelist = cast(pointer(pointer(u64)), obj)[0]
    slab.inuse += 1
    cache.nr_free -= 1
    if slab.freelist == NULL:
        list_del(address(slab.list))
    spin_unlock(address(cache.lock))
    if not words_are_poisoned(obj, 1, cache.object_size // 8):
        BUG_AT(b"Slab corruption: a free object was written to", obj)
    memset(obj, 0, cache.object_size)
    return obj


def kmem_cache_free(cache, obj):
    """Gives an object back.  Takes cache->lock, and slab_lock when a slab has become empty."""
    slab = virt_to_slab(obj)
    if slab.cache != cache:
        BUG_AT(b"Slab: an object is given to a cache that it is not from", obj)
    words = cast(pointer(u64), obj)
    if words_are_poisoned(words, 1, cache.object_size // 8):
        BUG_AT(b"Slab: double free", obj)
    poison_words(words, 1, cache.object_size // 8)
    spin_lock(address(cache.lock))
    if slab.freelist == NULL:
        list_add(address(slab.list), address(cache.slabs_partial))
    words[0] = cast(u64, slab.freelist)
    slab.freelist = obj
    slab.inuse -= 1
    cache.nr_free += 1
    if slab.inuse == 0 and cache.nr_free >= 2 * (PAGE_SIZE // cache.object_size):
        slab_destroy(cache, slab)
    spin_unlock(address(cache.lock))


def slab_page_alloc():
    """A page of the arena, in nobody's hands, or NULL when all are taken.  Takes slab_lock."""
    k = kernel()
    slab = cast(pointer(Slab), NULL)
    spin_lock(address(k.slab_lock))
    if not list_empty(address(k.slabs_free)):
        slab = list_entry_slab(k.slabs_free.next)
        list_del(address(slab.list))
    elif k.slab_next + PAGE_SIZE <= k.slab_end:
        slab = virt_to_slab(cast(pointer(u64), k.slab_next))
        poison_words(cast(pointer(u64), k.slab_next), 0, PAGE_SIZE // 8)
        k.slab_next += PAGE_SIZE
    spin_unlock(address(k.slab_lock))
    return slab


def cache_grow(cache):
    """One more slab for the cache, all of its objects free and on slabs_partial; NULL when the
    arena is used up.  Holds cache->lock, takes slab_lock."""
    slab = slab_page_alloc()
    if slab == NULL:
        return NULL
    start = slab_address(slab)
    if not words_are_poisoned(cast(pointer(u64), start), 0, PAGE_SIZE // 8):
        BUG_AT(b"Slab corruption: a free page was written to", slab)
    objects = PAGE_SIZE // cache.object_size
    slab.cache = cache
    slab.freelist = NULL
    slab.inuse = 0
    for index in range(objects):
        obj = cast(pointer(u64), start + index * cache.object_size)
        obj[0] = cast(u64, slab.freelist)
        slab.freelist = obj
    list_add(address(slab.list), address(cache.slabs_partial))
    cache.nr_objects += objects
    cache.nr_free += objects
    return slab


def slab_destroy(cache, slab):
    """Gives an empty slab's page back to the arena.  Holds cache->lock, takes slab_lock."""
    k = kernel()
    objects = PAGE_SIZE // cache.object_size
    list_del(address(slab.list))
    cache.nr_objects -= objects
    cache.nr_free -= objects
    # The links between the objects; the rest is filled.
    for index in range(objects):
        cast(pointer(u64), slab_address(slab) + index * cache.object_size)[0] = POISON_FREE_WORD
    slab.cache = NULL
    slab.freelist = NULL
    spin_lock(address(k.slab_lock))
    list_add(address(slab.list), address(k.slabs_free))
    spin_unlock(address(k.slab_lock))


def poison_words(words, first, end):
    """Fills words[first:end]."""
    memset(words + first, POISON_FREE, (end - first) * 8)


def words_are_poisoned(words, first, end):
    """Whether words[first:end] are the fill."""
    for index in range(first, end):
        if words[index] != POISON_FREE_WORD:
            return False
    return True
