# SPDX-License-Identifier: GPL-2.0-only
"""RCU: an object that readers may still look at is freed after a grace period.

A kernel learns that all readers are gone from the scheduler: every CPU has switched
tasks.  Processes have no such moment in common, so readers publish the epoch they
entered in, and an object retired in epoch E is free to go when no reader is left from
before E.  A reader that read the epoch just before it was advanced only looks older
than it is; that delays a free and harms nothing.

call_rcu frees to a slab cache, as kfree_rcu does: a function pointer would mean
something else in each process.
"""
from cython import NULL, address, cast, pointer


def call_rcu(head, cache, obj):
    """Frees `obj`, which `head` lies in, to `cache` once a grace period is over.  New
    readers can no longer reach it.  Takes rcu_lock; never waits."""
    k = kernel()
    head.object = obj
    head.cache = cache
    head.next = NULL
    spin_lock(address(k.rcu_lock))
    head.epoch = atomic_add_return64(address(k.rcu_epoch), 1)
    if k.rcu_tail != NULL:
        k.rcu_tail.next = head
    else:
        k.rcu_head = head
    k.rcu_tail = head
    WRITE_ONCE32(address(k.rcu_pending), k.rcu_pending + 1)
    due = k.rcu_pending >= RCU_BATCH
    spin_unlock(address(k.rcu_lock))
    if due:
        rcu_process_callbacks()


def rcu_oldest_reader():
    """The oldest epoch that a reader is in, or the largest number when there is none."""
    k = kernel()
    oldest = ~cast(u64, 0)
    # What was unlinked before must be seen by every reader we do not see here.
    smp_mb()
    for cpu in range(k.max_tasks):
        epoch = smp_load_acquire64(address(k.tasks[cpu].rcu_epoch))
        if epoch != 0 and epoch < oldest:
            oldest = epoch
    return oldest


def rcu_process_callbacks():
    """Frees what no reader can hold any more.  Takes rcu_lock and cache locks."""
    k = kernel()
    # The queue is in order of epochs, so the oldest reader cuts it in two.
    spin_lock(address(k.rcu_lock))
    done = k.rcu_head
    last = cast(pointer(RcuHead), NULL)
    oldest = rcu_oldest_reader()
    if done != NULL and done.epoch <= oldest:
        # Before the first leaves the queue: who finds it empty sees that they are in our hands.  The fence
        # is for aarch64, where a plain store may overtake that of an atomic before it: rcu_reclaim, without
        # the lock, would find neither, and -ENOMEM come of it.
        atomic_add_return32(address(k.rcu_freers), 1)
        smp_mb__after_atomic()
    while k.rcu_head != NULL and k.rcu_head.epoch <= oldest:
        last = k.rcu_head
        k.rcu_head = last.next
        # Marked, here and below: rcu_reclaim looks without the lock.
        WRITE_ONCE32(address(k.rcu_pending), k.rcu_pending - 1)
    if k.rcu_head == NULL:
        k.rcu_tail = NULL
    spin_unlock(address(k.rcu_lock))
    if last == NULL:
        return
    last.next = NULL
    freed = 0
    while done != NULL:
        following = done.next
        kmem_cache_free(done.cache, done.object)
        done = following
        freed += 1
    atomic_add_return64(address(k.rcu_freed), freed)
    atomic_add_return32(address(k.rcu_freers), -1)


def synchronize_rcu():
    """Returns when every reader that was in on entry has left."""
    might_sleep()
    epoch = atomic_add_return64(address(kernel().rcu_epoch), 1)
    wait_begin(WAIT_RCU, address(kernel().rcu_epoch))
    while rcu_oldest_reader() < epoch:
        cpu_yield()
        wait_check()
    wait_end()


def rcu_reclaim():
    """Waits until some of what was retired has been freed.  Says whether it was, or more may be: False
    when nothing waits to be freed.

    Another task may have taken all of the queue, and lost its CPU before it has freed it.
    """
    k = kernel()
    before = smp_load_acquire64(address(k.rcu_freed))
    synchronize_rcu()
    rcu_process_callbacks()
    wait_begin(WAIT_RCU, address(k.rcu_freers))
    while smp_load_acquire32(address(k.rcu_freers)) != 0 and READ_ONCE64(address(k.rcu_freed)) == before:
        cpu_yield()
        wait_check()
    wait_end()
    # In the order in which an object goes, so that none is overlooked.
    return smp_load_acquire32(address(k.rcu_pending)) != 0 or smp_load_acquire32(address(k.rcu_freers)) != 0 or \
        READ_ONCE64(address(k.rcu_freed)) != before


set_slab_reclaim(rcu_reclaim)
