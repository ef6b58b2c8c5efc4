# SPDX-License-Identifier: GPL-2.0-only
# Locks of the machine.  May use: current and below.

cimport cython
from shmkern.atomics cimport *
from shmkern.current cimport *
from shmkern.page_flags cimport *
from shmkern.trace cimport *

cdef enum:
    SPIN_WAITERS = 0x80000000
    SPIN_OWNER = 0x0000ffff    # the half that only the holder writes
    SPIN_LIMIT = 128           # bounded spin before parking
    RWSEM_WRITER = 0x80000000
    RWSEM_WAITERS = 0x40000000
    RWSEM_TURN = 0x20000000    # a reader has waited for a writer, and goes before the next one
    RWSEM_READERS = 0x0000ffff
    # How a sleeping lock is held, in the low bits of Task.held_locks.
    HELD_PAGE = 1
    HELD_READ = 2
    HELD_WRITE = 3
    WAIT_SLICE_NS = 1000000000 # a sleeper looks up this often

# ---- what every wait has in common ----

cdef void wait_begin(u64 kind, const void* channel) noexcept nogil
cdef void wait_end() noexcept nogil
cdef void account_latency(u64* buckets, u64 ns) noexcept nogil
cdef void wait_check() noexcept nogil
cdef void wait_sleep(u32* word, u32 expected) noexcept nogil
cdef void lock_acquired(const void* lock, u64 how) noexcept nogil
cdef void lock_released(const void* lock, u64 how) noexcept nogil

# Whoever may sleep says so first.  A spinlock holder or RCU reader must not.
cdef inline void might_sleep() noexcept nogil:
    BUG_ON(current().preempt_count != 0 or current().rcu_nesting != 0)

# ---- spinlocks ----

cdef void spin_lock_slow(Spinlock* lock) noexcept nogil
cdef void spin_wake(Spinlock* lock) noexcept nogil
cdef bint spin_trylock(Spinlock* lock) noexcept nogil

cdef inline void spin_lock(Spinlock* lock) noexcept nogil:
    cdef Task* me = current()
    if unlikely(cmpxchg32(&lock.word, 0, me.cpu + 1) != 0):
        spin_lock_slow(lock)
    me.preempt_count += 1

cdef inline bint spin_is_held(Spinlock* lock) noexcept nogil:
    return READ_ONCE16(&lock.word) == current().cpu + 1

# No locked instruction: a store to the holder's half of the word, then a look at the other.
# The CPU may look before its store is seen; whoever parks meanwhile pays for that, with a
# fence on every CPU between setting SPIN_WAITERS and looking again (spin_lock_slow).
# What the lock lies in must not be freed in between by whoever has it next: who gives it back
# holds a reference to that, or is within rcu_read_lock.
cdef inline void spin_unlock(Spinlock* lock) noexcept nogil:
    VM_BUG_ON_PAGE(not spin_is_held(lock), lock)
    current().preempt_count -= 1
    smp_store_release16(&lock.word, 0)
    if unlikely(READ_ONCE16(<u16*>&lock.word + 1) != 0):
        spin_wake(lock)

# ---- reader/writer semaphores ----

@cython.locals(turn=bint)
cdef void down_read(RwSem* sem) noexcept nogil
cdef bint down_read_trylock(RwSem* sem) noexcept nogil
@cython.locals(last=bint)
cdef void up_read(RwSem* sem) noexcept nogil
cdef void down_write(RwSem* sem) noexcept nogil
cdef void up_write(RwSem* sem) noexcept nogil

cdef void rwsem_wake(RwSem* sem) noexcept nogil
cdef void rwsem_sleep(RwSem* sem, u32 word, u32 sequence, u32 bits) noexcept nogil

# ---- page lock ----

cdef u64 page_hash(Page* page) noexcept nogil
cdef WaitQueueHead* page_waitqueue(Page* page) noexcept nogil
cdef void page_sleep(Page* page, u64 flags, u32 sequence) noexcept nogil
cdef void wake_up_page(Page* page) noexcept nogil

cdef bint trylock_page(Page* page) noexcept nogil
cdef void __set_page_locked(Page* page) noexcept nogil
cdef void lock_page(Page* page) noexcept nogil
cdef void unlock_page(Page* page) noexcept nogil
cdef void wait_on_page_bit(Page* page, u64 bit, u64 kind) noexcept nogil
cdef void clear_page_bit(Page* page, u64 bit) noexcept nogil

# Acquire, as when they wait: who finds the bit clear comes after what was done under it.
cdef inline void wait_on_page_locked(Page* page) noexcept nogil:
    if smp_load_acquire64(&page.flags) >> PG_locked & 1:
        wait_on_page_bit(page, PG_locked, WAIT_PAGE_LOCK)

cdef inline void wait_on_page_writeback(Page* page) noexcept nogil:
    if smp_load_acquire64(&page.flags) >> PG_writeback & 1:
        wait_on_page_bit(page, PG_writeback, WAIT_PAGE_WRITEBACK)

# ---- condition variables, sequence counters ----

cdef void cond_wait(CondVar* cond, Spinlock* lock) noexcept nogil
cdef void cond_signal(CondVar* cond) noexcept nogil
cdef void cond_broadcast(CondVar* cond) noexcept nogil

cdef u32 read_seqcount_begin(SeqCount* count) noexcept nogil
cdef bint read_seqcount_retry(SeqCount* count, u32 start) noexcept nogil
cdef void write_seqcount_begin(SeqCount* count) noexcept nogil
cdef void write_seqcount_end(SeqCount* count) noexcept nogil
