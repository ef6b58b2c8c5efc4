# SPDX-License-Identifier: GPL-2.0-only
"""Locks between processes: spinlocks, rwsems, page locks, condition variables,
sequence counters.

All of them are a word in the block and a futex.  What was considered:

- *Pure spinning* is what a kernel does, but here a holder can be preempted with its
  lock, and 64 workers share two cores: a waiter would burn its whole time slice.
  So a spinlock spins a bounded while and then parks.
- *Robust or priority-inheritance futexes* keep a per-thread list in private memory;
  nobody could read from outside who holds what.  A word that names its owner can be
  read by the hung-task report, the audit and gdb.
- *One wait queue a lock* costs memory for what is nearly always empty.  Page locks
  share a table of sequence words, as Linux's zone->wait_table does; a collision only
  costs a spurious wake-up.

The rule against lost wake-ups is the same everywhere: read the word to sleep on
first, then announce oneself as a waiter, then look at the condition again.  Whoever
makes the condition true afterwards must see the announcement and change the word,
so the sleep ends at once.  Both sides need a full fence for that, between what they
write and what they look at.  A spinlock's unlock, of which a page move has a dozen,
goes without: the waiter pays for both, with membarrier(2).

The order of all locks of the machine is in docs/locking.md.
"""
from cython import address, cast, pointer


# ---- what every wait has in common -------------------------------------------

def wait_begin(kind, channel):
    """Notes what this task waits for, and since when, where others can read it."""
    me = current()
    me.wait_since = ktime_get_ns()
    # Of this process alone: when it last looked up, in the per-CPU page behind `current` and its pid.
    # Not in the block, where the explorer would take each look for something done.
    looked = cast(pointer(u64), PERCPU_BASE) + 2
    looked[0] = me.wait_since
    me.wait_channel = cast(u64, channel)
    me.wait_kind = kind
    trace_wait_begin(kind, channel)


def wait_end():
    """The wait is over; one for a lock enters the histogram of those."""
    me = current()
    if me.wait_kind == WAIT_SPINLOCK or me.wait_kind == WAIT_PAGE_LOCK or \
            me.wait_kind == WAIT_RWSEM_READ or me.wait_kind == WAIT_RWSEM_WRITE:
        account_latency(me.lock_wait_buckets, ktime_get_ns() - me.wait_since)
    trace_wait_end(me.wait_kind, cast(pointer(Task), me.wait_channel))
    me.wait_kind = WAIT_NONE


def account_latency(buckets, ns):
    """Enters a time in a histogram of the current task's: four buckets to an octave of ns."""
    if ns < 4:
        ns = 4
    octave = 63 - __builtin_clzl(ns)
    bucket = 4 * octave + (ns >> (octave - 2) & 3)
    buckets[min(bucket, cast(u64, NR_WAIT_BUCKETS - 1))] += 1


def wait_check():
    """One look up from a wait: stops with a dead machine, and panics past the
    hung-task limit.  Called at least every WAIT_SLICE_NS by every waiter."""
    me = current()
    now = ktime_get_ns()
    looked = cast(pointer(u64), PERCPU_BASE) + 2
    if now - looked[0] > 2 * WAIT_SLICE_NS:
        # Nobody sleeps that long: this process could not run, and those it waits for perhaps could not
        # either, as after Ctrl-Z.  That time counts against nobody, but for a slice.
        me.wait_since += now - looked[0] - WAIT_SLICE_NS
    looked[0] = now
    if kernel_panicked() or now - me.wait_since > kernel().hung_task_timeout_ns:
        kernel_panic(PANIC_HUNG_TASK, b"", 0, b"a task waits longer than the hung-task limit",
                     cast(pointer(Page), me.wait_channel))


def wait_sleep(word, expected):
    """Sleeps while *word == expected, for one slice at most."""
    count_vm_event(FUTEX_WAIT)
    futex_wait(word, expected, WAIT_SLICE_NS)
    wait_check()


def lock_acquired(lock, how):
    """Enters a sleeping lock in the list of what this task holds."""
    me = current()
    VM_BUG_ON(me.nr_held >= HELD_LOCKS_MAX)
    me.held_locks[me.nr_held] = cast(u64, lock) | how
    me.nr_held += 1


def lock_released(lock, how):
    """Strikes a sleeping lock from the list; the newest first, since locks nest.

    A lock that is not there was taken by somebody else, and that is a bug.
    """
    me = current()
    entry = cast(u64, lock) | how
    slot = me.nr_held
    while slot > 0:
        slot -= 1
        if me.held_locks[slot] == entry:
            me.nr_held -= 1
            me.held_locks[slot] = me.held_locks[me.nr_held]
            return
    BUG_AT(b"a task gives back a lock it does not hold", lock)


# ---- spinlocks ---------------------------------------------------------------

def spin_trylock(lock):
    """Takes the lock if it is free, and says whether it did."""
    me = current()
    word = READ_ONCE32(address(lock.word))
    if word & SPIN_OWNER or cmpxchg32(address(lock.word), word, word | me.cpu + 1) != word:
        return False
    me.preempt_count += 1
    return True


def spin_lock_slow(lock):
    """The contended half of spin_lock: spins SPIN_LIMIT times, then parks.

    Whoever has parked takes the lock together with SPIN_WAITERS, for it cannot know
    whether it was the last one asleep; at worst its unlock wakes nobody.
    """
    me = current()
    mine = me.cpu + 1
    if READ_ONCE16(address(lock.word)) == mine:
        BUG_AT(b"a task takes a spinlock it already holds", lock)
    for _spin in range(SPIN_LIMIT):
        word = READ_ONCE32(address(lock.word))
        if not word & SPIN_OWNER and cmpxchg32(address(lock.word), word, word | mine) == word:
            return
        cpu_relax()
    count_vm_event(SPIN_PARK)
    wait_begin(WAIT_SPINLOCK, lock)
    while True:
        word = READ_ONCE32(address(lock.word))
        if not word & SPIN_OWNER:
            if cmpxchg32(address(lock.word), word, mine | SPIN_WAITERS) == word:
                break
        elif word & SPIN_WAITERS or \
                cmpxchg32(address(lock.word), word, word | SPIN_WAITERS) == word:
            # The holder may have looked for SPIN_WAITERS before it was there, and its store to
            # the other half may not be seen yet.  After this it is; and whoever looks later sees
            # the bit.
            smp_mb_everywhere()
            word = READ_ONCE32(address(lock.word))
            if word & SPIN_OWNER and word & SPIN_WAITERS:
                wait_sleep(address(lock.word), word)
    wait_end()


def spin_wake(lock):
    """Wakes one who has parked on a lock that was just given back.  Somebody else may hold it by
    now: then the woken one sets the bit again."""
    if fetch_and32(address(lock.word), ~cast(u32, SPIN_WAITERS)) & SPIN_WAITERS:
        trace_sched_waking(lock)
        futex_wake(address(lock.word), 1)


# ---- reader/writer semaphores ------------------------------------------------
#
# The word counts readers and says whether a writer is in and whether anybody sleeps.
# Sleepers of both kinds share one sequence word.  A writer that waits keeps new
# readers out, or faults would starve mmap for ever.  A reader that has waited for a
# writer goes before the next one, or mmaps would starve faults: several threads that
# map all the time are never all outside.

def rwsem_wake(sem):
    """Wakes all sleepers.  The caller has just taken RWSEM_WAITERS off the word."""
    atomic_add_return32(address(sem.sequence), 1)
    trace_sched_waking(sem)
    futex_wake(address(sem.sequence), 0x7fffffff)


def rwsem_sleep(sem, word, sequence, bits):
    """Sleeps until the semaphore changes hands.  `word` is what made us wait and
    `sequence` was read before it.  Sets `bits`, RWSEM_WAITERS among them."""
    if word & bits == bits or cmpxchg32(address(sem.word), word, word | bits) == word:
        # A reader may be here because of a writer that waited when nobody held it.  That one
        # may have come and gone since, before our bit was there to see; then nobody is left
        # to wake us.
        if word & (cast(u32, RWSEM_WRITER) | RWSEM_READERS | RWSEM_TURN) or \
                READ_ONCE32(address(sem.writers_waiting)) != 0:
            wait_sleep(address(sem.sequence), sequence)


def down_read_trylock(sem):
    """Takes the semaphore for reading unless a writer has it or somebody waits."""
    word = READ_ONCE32(address(sem.word))
    while not word & (cast(u32, RWSEM_WRITER) | RWSEM_WAITERS):
        seen = cmpxchg32(address(sem.word), word, word + 1)
        if seen == word:
            lock_acquired(sem, HELD_READ)
            return True
        word = seen
    return False


def down_read(sem):
    """Takes the semaphore for reading; sleeps while a writer has it, or wants it and none has had it
    since we came."""
    might_sleep()
    if down_read_trylock(sem):
        return
    count_vm_event(RWSEM_WAIT)
    wait_begin(WAIT_RWSEM_READ, sem)
    turn = False
    first = smp_load_acquire32(address(sem.sequence))
    while True:
        sequence = smp_load_acquire32(address(sem.sequence))
        word = READ_ONCE32(address(sem.word))
        # Or it came and went and we did not look while it was in: of two who woke us only the first can
        # have been a reader that was in before it.
        turn = turn or word & RWSEM_WRITER != 0 or sequence - first > 1
        if word & RWSEM_WRITER:
            # No other writer gets in between this one and us, however late we wake up.
            rwsem_sleep(sem, word, sequence, RWSEM_WAITERS | RWSEM_TURN)
        elif not turn and READ_ONCE32(address(sem.writers_waiting)) != 0:
            rwsem_sleep(sem, word, sequence, RWSEM_WAITERS)
        # With RWSEM_TURN off for all: another reader whose turn it is gets in beside us, or says so again.
        elif cmpxchg32(address(sem.word), word, (word & ~cast(u32, RWSEM_TURN)) + 1) == word:
            break
    wait_end()
    lock_acquired(sem, HELD_READ)


def up_read(sem):
    """Gives a read hold back; the last reader out wakes whoever sleeps."""
    lock_released(sem, HELD_READ)
    while True:
        word = READ_ONCE32(address(sem.word))
        left = word - 1
        last = left & RWSEM_READERS == 0
        if last:
            left &= ~cast(u32, RWSEM_WAITERS)
        if cmpxchg32(address(sem.word), word, left) == word:
            break
    if last and word & RWSEM_WAITERS:
        rwsem_wake(sem)


def down_write(sem):
    """Takes the semaphore for writing; sleeps while anybody has it."""
    might_sleep()
    me = current()
    if cmpxchg32(address(sem.word), 0, RWSEM_WRITER) != 0:
        BUG_ON(READ_ONCE32(address(sem.owner)) == me.cpu + 1)
        count_vm_event(RWSEM_WAIT)
        wait_begin(WAIT_RWSEM_WRITE, sem)
        atomic_add_return32(address(sem.writers_waiting), 1)
        while True:
            sequence = smp_load_acquire32(address(sem.sequence))
            word = READ_ONCE32(address(sem.word))
            if word & (cast(u32, RWSEM_WRITER) | RWSEM_READERS | RWSEM_TURN):
                # With RWSEM_TURN and nobody in, a reader is on its way, and wakes us when it leaves.
                rwsem_sleep(sem, word, sequence, RWSEM_WAITERS)
            elif cmpxchg32(address(sem.word), word, word | RWSEM_WRITER) == word:
                break
        # Not before the word says that we are in: a reader that saw neither would
        # slip past us.
        atomic_add_return32(address(sem.writers_waiting), -1)
        wait_end()
    WRITE_ONCE32(address(sem.owner), me.cpu + 1)
    lock_acquired(sem, HELD_WRITE)


def up_write(sem):
    """Gives the write hold back and wakes whoever sleeps."""
    lock_released(sem, HELD_WRITE)
    WRITE_ONCE32(address(sem.owner), 0)
    if fetch_and32(address(sem.word), RWSEM_TURN) & RWSEM_WAITERS:
        rwsem_wake(sem)


# ---- page lock ---------------------------------------------------------------

def page_waitqueue(page):
    """The wait queue that `page` shares with a few others."""
    return address(kernel().wait_table[page_hash(page)])


def page_hash(page):
    """Spreads neighbouring pages over the table: the top bits of a multiple of the golden
    ratio, as hash_long."""
    return (cast(u64, page) >> 6) * cast(u64, 0x9e37fffffffc0001) >> (64 - WAIT_TABLE_BITS)


def page_sleep(page, flags, sequence):
    """Sleeps until the page's queue is woken.  `flags` is what made us wait and
    `sequence` was read before it.  PG_waiters is set only on flags that still say
    so, or it would be left behind on a page that nobody unlocks."""
    waiters = cast(u64, 1) << PG_waiters
    if flags & waiters or cmpxchg64(address(page.flags), flags, flags | waiters) == flags:
        wait_sleep(address(page_waitqueue(page).sequence), sequence)


def wake_up_page(page):
    """Wakes all who sleep on the page's queue.  The caller has just taken PG_waiters
    off; who still has to wait puts it back.  The page may be gone by now: only its
    address is used."""
    queue = page_waitqueue(page)
    atomic_add_return32(address(queue.sequence), 1)
    trace_sched_waking(page)
    futex_wake(address(queue.sequence), 0x7fffffff)


def trylock_page(page):
    """Takes PG_locked if it is clear, and says whether it did."""
    locked = cast(u64, 1) << PG_locked
    if fetch_or64(address(page.flags), locked) & locked:
        return False
    lock_acquired(page, HELD_PAGE)
    return True


def __set_page_locked(page):
    """Takes PG_locked of a page that nobody else can see yet."""
    WRITE_ONCE64(address(page.flags), page.flags | cast(u64, 1) << PG_locked)
    lock_acquired(page, HELD_PAGE)


def lock_page(page):
    """Takes PG_locked; sleeps while another task has it.  The caller has a reference."""
    might_sleep()
    if trylock_page(page):
        return
    count_vm_event(PAGE_LOCK_WAIT)
    wait_begin(WAIT_PAGE_LOCK, page)
    while True:
        sequence = smp_load_acquire32(address(page_waitqueue(page).sequence))
        flags = READ_ONCE64(address(page.flags))
        if flags & (cast(u64, 1) << PG_locked):
            page_sleep(page, flags, sequence)
        elif trylock_page(page):
            break
    wait_end()


def unlock_page(page):
    """Gives PG_locked back and wakes whoever waits for it, with no system call when
    nobody does."""
    VM_BUG_ON_PAGE(not PageLocked(page), page)
    lock_released(page, HELD_PAGE)
    clear = cast(u64, 1) << PG_locked | cast(u64, 1) << PG_waiters
    if fetch_and64(address(page.flags), ~clear) & (cast(u64, 1) << PG_waiters):
        wake_up_page(page)


def wait_on_page_bit(page, bit, kind):
    """Sleeps until `bit` of the page's flags is clear.  It may be set again by the
    time this returns.  The caller has a reference."""
    might_sleep()
    wait_begin(kind, page)
    while True:
        sequence = smp_load_acquire32(address(page_waitqueue(page).sequence))
        flags = smp_load_acquire64(address(page.flags))
        if not flags & (cast(u64, 1) << bit):
            break
        page_sleep(page, flags, sequence)
    wait_end()


def clear_page_bit(page, bit):
    """Clears a bit of the page's flags and wakes whoever waits for that."""
    clear = cast(u64, 1) << bit | cast(u64, 1) << PG_waiters
    if fetch_and64(address(page.flags), ~clear) & (cast(u64, 1) << PG_waiters):
        wake_up_page(page)


# ---- condition variables -----------------------------------------------------

def cond_wait(cond, lock):
    """Gives `lock` back, sleeps until the condition is signalled, and takes the lock
    again.  May return without a signal; the caller looks at its condition in a loop.
    `lock` is the only spinlock held."""
    me = current()
    VM_BUG_ON(not spin_is_held(lock))
    VM_BUG_ON(me.preempt_count != 1)
    cond.waiters += 1
    sequence = READ_ONCE32(address(cond.sequence))
    spin_unlock(lock)
    wait_begin(WAIT_CONDVAR, cond)
    while smp_load_acquire32(address(cond.sequence)) == sequence:
        wait_sleep(address(cond.sequence), sequence)
    wait_end()
    spin_lock(lock)
    cond.waiters -= 1


def cond_signal(cond):
    """Wakes one waiter.  The caller holds the lock that goes with the condition."""
    if cond.waiters != 0:
        atomic_add_return32(address(cond.sequence), 1)
        trace_sched_waking(cond)
        futex_wake(address(cond.sequence), 1)


def cond_broadcast(cond):
    """Wakes all waiters.  The caller holds the lock that goes with the condition."""
    if cond.waiters != 0:
        atomic_add_return32(address(cond.sequence), 1)
        trace_sched_waking(cond)
        futex_wake(address(cond.sequence), 0x7fffffff)


# ---- sequence counters -------------------------------------------------------

def read_seqcount_begin(count):
    """Starts a read section: waits out a writer and returns the count to check with."""
    start = smp_load_acquire32(address(count.sequence))
    if start & 1:
        wait_begin(WAIT_SPINLOCK, count)
        while start & 1:
            cpu_yield()
            wait_check()
            start = smp_load_acquire32(address(count.sequence))
        wait_end()
    return start


def read_seqcount_retry(count, start):
    """Whether a writer was in since `start`, so that what was read must be thrown away."""
    smp_rmb()
    return READ_ONCE32(address(count.sequence)) != start


def write_seqcount_begin(count):
    """Makes the count odd.  Writers exclude each other by a lock of their own."""
    WRITE_ONCE32(address(count.sequence), count.sequence + 1)
    smp_wmb()


def write_seqcount_end(count):
    """Makes the count even again."""
    smp_store_release32(address(count.sequence), count.sequence + 1)
