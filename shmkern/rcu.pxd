# SPDX-License-Identifier: GPL-2.0-only
# Read-copy-update.  May use: slab and below.

cimport cython
from shmkern.atomics cimport *
from shmkern.current cimport *
from shmkern.locks cimport *
from shmkern.slab cimport *

cdef enum:
    RCU_BATCH = 16             # callbacks that wait before anybody looks

@cython.locals(due=bint)
cdef void call_rcu(RcuHead* head, KmemCache* cache, void* obj) noexcept nogil
@cython.locals(freed=u64)
cdef void rcu_process_callbacks() noexcept nogil
cdef void synchronize_rcu() noexcept nogil
cdef u64 rcu_oldest_reader() noexcept nogil
@cython.locals(before=u64)
cdef bint rcu_reclaim() noexcept nogil

# Entering publishes the epoch with a full fence, so that whoever looks for readers
# either sees this one or is seen by it.
cdef inline void rcu_read_lock() noexcept nogil:
    cdef Task* me = current()
    if me.rcu_nesting == 0:
        smp_store_mb64(&me.rcu_epoch, smp_load_acquire64(&kernel().rcu_epoch))
    me.rcu_nesting += 1

cdef inline void rcu_read_unlock() noexcept nogil:
    cdef Task* me = current()
    VM_BUG_ON(me.rcu_nesting == 0)
    me.rcu_nesting -= 1
    if me.rcu_nesting == 0:
        smp_store_release64(&me.rcu_epoch, 0)
