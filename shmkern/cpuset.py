# SPDX-License-Identifier: GPL-2.0-only
"""cpusets: groups of tasks, in a tree, each with the nodes that its tasks may use
(kernel/cpuset.c).

A group's nodes are a part of its parent's.  The first one has all nodes, and every task that
was not put elsewhere.  When a group's nodes change, its tasks' policies are rebound to the
new ones, and with CS_MEMORY_MIGRATE their pages move there.

Groups are slots of a table and never freed under anybody's eyes, so that allocation may look
at them without a lock.  Locks: cpuset_sem for writing around every change, which keeps forks
out; then a task's alloc_lock, or an address space's mmap_sem.
"""
from cython import NULL, address as addressof, cast
from cython.cimports.libc.errno import EACCES, EBUSY, EINVAL, ENOENT, ENOSPC, ESRCH


def validate_cpuset(parent, mems, flags):
    """Whether a group below `parent` may have these nodes: 0, -ENOENT (no such parent), -EINVAL
    (a node without memory, or none; with CS_MEM_HARDWALL none that the kernel may use for itself),
    -EACCES (not the parent's).  Holds cpuset_sem."""
    k = kernel()
    if parent < 0 or parent >= NR_CPUSETS or not k.cpusets[parent].in_use:
        return -ENOENT
    if mems == 0 or not nodes_subset(mems, k.node_states[N_HIGH_MEMORY]):
        return -EINVAL
    # Its tasks could have no page table.
    if flags & CS_MEM_HARDWALL and mems & k.node_states[N_NORMAL_MEMORY] == 0:
        return -EINVAL
    return 0 if nodes_subset(mems, k.cpusets[parent].mems_allowed) else -EACCES


def cpuset_create(parent, mems, flags):
    """Makes a group without tasks.  Returns its number, or -ENOENT, -EINVAL, -EACCES, or -ENOSPC
    when there are NR_CPUSETS.  Takes cpuset_sem."""
    k = kernel()
    down_write(addressof(k.cpuset_sem))
    rc = validate_cpuset(parent, mems, flags)
    if rc == 0:
        rc = -ENOSPC
        for slot in range(1, NR_CPUSETS):
            if not k.cpusets[slot].in_use:
                k.cpusets[slot].parent = parent
                k.cpusets[slot].flags = flags
                WRITE_ONCE64(addressof(k.cpusets[slot].mems_allowed), mems)
                k.cpusets[slot].in_use = 1
                rc = slot
                break
    up_write(addressof(k.cpuset_sem))
    return rc


def cpuset_has(cpuset, children):
    """Whether a group has children, or tasks.  Holds cpuset_sem."""
    k = kernel()
    if children:
        for slot in range(1, NR_CPUSETS):
            if k.cpusets[slot].in_use and k.cpusets[slot].parent == cast(i32, cpuset):
                return True
        return False
    for cpu in range(1, k.max_tasks):
        if READ_ONCE32(addressof(k.tasks[cpu].state)) != TASK_UNUSED and \
                READ_ONCE32(addressof(k.tasks[cpu].cpuset)) == cpuset:
            return True
    return False


def cpuset_remove(cpuset):
    """Removes a group without tasks and children.  Returns 0, -ENOENT or -EBUSY.  Takes
    cpuset_sem."""
    k = kernel()
    down_write(addressof(k.cpuset_sem))
    rc = 0
    if cpuset == 0 or cpuset >= NR_CPUSETS or not k.cpusets[cpuset].in_use:
        rc = -ENOENT
    elif cpuset_has(cpuset, True) or cpuset_has(cpuset, False):
        rc = -EBUSY
    else:
        k.cpusets[cpuset].in_use = 0
    up_write(addressof(k.cpuset_sem))
    return rc


def update_task_mems(task, migrate):
    """Brings a task in line with its group: what it may use, its policy, the policies of its
    address space, and with `migrate` its pages.  Holds cpuset_sem for writing; takes alloc_lock,
    then mmap_sem."""
    new = cpuset_mems(READ_ONCE32(addressof(task.cpuset)))
    spin_lock(addressof(task.alloc_lock))
    old = task.mems_allowed
    WRITE_ONCE64(addressof(task.mems_allowed), new)
    mpol_rebind_policy(task.mempolicy, new)
    if old != new:
        atomic_add_return64(addressof(kernel().mems_sequence), 1)
    mm = task.mm
    if mm != NULL:
        mmget(mm)
    spin_unlock(addressof(task.alloc_lock))
    if mm == NULL:
        return
    if old != new:
        # A policy that is set from now on is made for the new nodes, and need not be met here.
        down_write(addressof(mm.mmap_sem))
        vma = mm.mmap
        while vma != NULL:
            mpol_rebind_policy(vma.vm_policy, new)
            vma = vma.vm_next
        up_write(addressof(mm.mmap_sem))
        if migrate:
            do_migrate_pages(mm, old, new, MPOL_MF_MOVE_ALL)
    mmput(mm)


def update_all_tasks(cpuset, migrate):
    """update_task_mems for all tasks of a group (of all groups, with -1).  Holds cpuset_sem for
    writing.  A task that nobody forked, and that only just got its slot, reads its group's nodes
    after this."""
    k = kernel()
    # Nobody holds a lock for it: it is seen here to have its slot, or (alloc_task's atomic, then the
    # fence of kernel_enter in start_task) sees what the caller has written.
    smp_mb()
    for cpu in range(1, k.max_tasks):
        task = addressof(k.tasks[cpu])
        if smp_load_acquire32(addressof(task.state)) != TASK_UNUSED and \
                (cpuset < 0 or READ_ONCE32(addressof(task.cpuset)) == cast(u32, cpuset)):
            update_task_mems(task, migrate)


def cpuset_set_mems(cpuset, mems):
    """Gives a group other nodes.  Returns 0, or -ENOENT, -EINVAL and -EACCES as when it is made, or
    -EBUSY when a child has nodes that it would lose.  Takes cpuset_sem."""
    k = kernel()
    down_write(addressof(k.cpuset_sem))
    rc = -ENOENT
    if 0 < cpuset < NR_CPUSETS and k.cpusets[cpuset].in_use:
        rc = validate_cpuset(k.cpusets[cpuset].parent, mems, k.cpusets[cpuset].flags)
    if rc == 0:
        for slot in range(1, NR_CPUSETS):
            if k.cpusets[slot].in_use and k.cpusets[slot].parent == cast(i32, cpuset) and \
                    not nodes_subset(k.cpusets[slot].mems_allowed, mems):
                rc = -EBUSY
    if rc == 0:
        WRITE_ONCE64(addressof(k.cpusets[cpuset].mems_allowed), mems)
        update_all_tasks(cpuset, k.cpusets[cpuset].flags & CS_MEMORY_MIGRATE)
    up_write(addressof(k.cpuset_sem))
    return rc


def cpuset_attach(cpuset, pid):
    """Puts a task in a group.  Returns 0, -ENOENT or -ESRCH.  Takes cpuset_sem."""
    k = kernel()
    down_write(addressof(k.cpuset_sem))
    rc = -ENOENT
    if cpuset < NR_CPUSETS and k.cpusets[cpuset].in_use:
        task = find_task_by_pid(pid)
        rc = -ESRCH
        if task != NULL:
            WRITE_ONCE32(addressof(task.cpuset), cpuset)
            update_task_mems(task, k.cpusets[cpuset].flags & CS_MEMORY_MIGRATE)
            rc = 0
    up_write(addressof(k.cpuset_sem))
    return rc
