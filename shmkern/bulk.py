# SPDX-License-Identifier: GPL-2.0-only
"""Words in bulk: loads, stores and atomic operations of the current task on arrays of addresses, each
word an access of its own, in order."""
import operator

import numpy as np
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EINVAL


def word_atomic(op, address, a, b, result):
    """One instruction on an aligned word; what it gave goes to *result.  Returns 0, -EFAULT
    or -ENOMEM."""
    rc = 0
    frame = user_access_begin(address, op != BULK_LOAD, addressof(rc))
    if frame == NULL:
        return rc
    if op == BULK_LOAD:
        result[0] = smp_load_acquire64(frame)
    elif op == BULK_STORE:
        smp_store_release64(frame, a)
    elif op == BULK_FETCH_ADD:
        result[0] = atomic_add_return64(frame, a) - a
    elif op == BULK_CMPXCHG:
        result[0] = cmpxchg64(frame, a, b)
    access_end(current())
    return 0


def word_cmpxchg_add(address, delta, result):
    """Adds as programs without a fetch-and-add do: load, compare-and-exchange, until nobody
    came between.  Each of the two is an access of its own.  Returns as word_atomic."""
    rc = word_atomic(BULK_LOAD, address, 0, 0, result)
    while rc == 0:
        old = result[0]
        rc = word_atomic(BULK_CMPXCHG, address, old, old + delta, result)
        if result[0] == old:
            break
    return rc


def word_unaligned(op, address, a, result):
    """A load or store of a word that is not aligned, and may lie in two pages.  Returns 0,
    -EFAULT, -ENOMEM, or -EINVAL for what must be atomic."""
    rc = 0
    left = 0
    if op == BULK_LOAD:
        left = copy_from_user(result, address, 8, addressof(rc))
    elif op == BULK_STORE:
        left = copy_to_user(address, addressof(a), 8, addressof(rc))
    else:
        return -EINVAL
    return rc if left else 0


def bulk_words(op, addresses, a, b, results, count, done):
    """Puts words through `op` in order until one fails.  Returns 0 or its error, with the
    number of words that were done in *done."""
    for index in range(count):
        done[0] = index
        if addresses[index] & 7:
            rc = word_unaligned(op, addresses[index], a[index], addressof(results[index]))
        elif op == BULK_CMPXCHG_ADD:
            rc = word_cmpxchg_add(addresses[index], a[index], addressof(results[index]))
        else:
            rc = word_atomic(op, addresses[index], a[index], b[index], addressof(results[index]))
        if rc != 0:
            return rc
    return 0


def as_words(values, shape):
    """Whole numbers as a flat array of u64 for that shape; negative ones wrap, as they would in C.  TypeError for
    others, as for one word."""
    array = np.asarray(values)
    if array.dtype.kind not in "iub":
        # Or it is a list of which numpy cannot tell: of none, or of words with the highest bit set and without.
        words = [operator.index(value) for value in np.asarray(values, object).flat]
        array = np.array(words, np.uint64).reshape(array.shape)
    return np.ascontiguousarray(np.broadcast_to(array.astype(np.uint64), shape)).reshape(-1)


def bulk(op, addresses, a, b):
    """bulk_words for Python: arrays, lists or single numbers, broadcast against each other.
    Returns the array of results.  Raises ValueError (shapes), SegmentationFault,
    OSError(ENOMEM), and OSError(EINVAL) for an atomic operation off a multiple of 8; the
    words before that one are done."""
    shape = np.broadcast_shapes(np.shape(addresses), np.shape(a), np.shape(b))
    where = as_words(addresses, shape)
    first = as_words(a, shape)
    second = as_words(b, shape)
    results = np.zeros(shape, np.uint64)
    count = results.size
    done = 0
    rc = bulk_words(op, cast(word_pointer, bytes_of(where)), cast(word_pointer, bytes_of(first)), cast(word_pointer, bytes_of(second)),
                    cast(pointer(u64), bytes_of(results)), count, addressof(done))
    if rc == -EINVAL:
        check_errno(rc)
    if rc != 0:
        user_fault(int(where[done]), op != BULK_LOAD, rc)
    return results


def load64_many(addresses):
    """The words at `addresses`, as an array of u64.  For errors see bulk."""
    return bulk(BULK_LOAD, addresses, 0, 0)


def store64_many(addresses, values):
    """Stores a word at each address, in order.  For errors see bulk."""
    bulk(BULK_STORE, addresses, values, 0)


def fetch_add64_many(addresses, deltas):
    """Adds to the words, each atomically and modulo 2^64; returns what they were before.  For
    errors see bulk."""
    return bulk(BULK_FETCH_ADD, addresses, deltas, 0)


def cmpxchg64_many(addresses, old, new):
    """Stores `new` where the word is `old`, each atomically; returns what the words were.  For
    errors see bulk."""
    return bulk(BULK_CMPXCHG, addresses, old, new)


def cmpxchg_add64_many(addresses, deltas):
    """fetch_add64_many by compare-and-exchange loops."""
    return bulk(BULK_CMPXCHG_ADD, addresses, deltas, 0)
