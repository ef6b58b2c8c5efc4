# SPDX-License-Identifier: GPL-2.0-only
"""Tasks: slots, pids, fork, exit (kernel/fork.c, kernel/exit.c, kernel/pid.c).

A slot goes UNUSED -> EMBRYO (claimed by whoever makes the OS process) -> RUNNING (by that
process) -> UNUSED (by it when it exits, or by init when it was killed).  Every slot is one
CPU: one process runs on it, and nobody else ever does.

Whose OS process an EMBRYO waits for is entered by its maker and by the process itself,
whoever comes first: either may be killed before it gets there.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EACCES, EAGAIN, EINVAL, ENOMEM, EPERM, ESRCH
from cython.cimports.libc.string import memset


def set_current(task):
    """This process runs `task` from now on."""
    cast(pointer(pointer(Task)), PERCPU_BASE)[0] = task
    cast(pointer(i32), PERCPU_BASE)[2] = task.pid if task != NULL else 0


def alloc_task():
    """Claims a slot and gives it a pid; NULL when all are taken.  Needs no lock and no
    `current`, so the supervisor may call it."""
    k = kernel()
    # Slot 0 is the boot CPU's.
    for cpu in range(1, k.max_tasks):
        task = addressof(k.tasks[cpu])
        if READ_ONCE32(addressof(task.state)) == TASK_UNUSED and \
                cmpxchg32(addressof(task.state), TASK_UNUSED, TASK_EMBRYO) == TASK_UNUSED:
            task.flags = 0
            task.fail_nth = 0
            # Root's; who makes the task may change that before it runs.
            set_creds(task, 0, ~cast(u64, 0))
            task.security = 0
            task.addr_limit = 0
            task.rlimit_memlock = MLOCK_LIMIT
            task.trace_breaks = 0
            task.trace_stopped = 0
            WRITE_ONCE32(addressof(task.cpuset), 0)
            WRITE_ONCE64(addressof(task.mems_allowed), 0)
            task.il_next = 0
            # Who had the slot may have been killed asleep.
            task.wait_kind = WAIT_NONE
            task.numa_node = cpu % k.nr_nodes
            memset(cast(pointer(char), task.comm), 0, TASK_COMM_LEN)
            # One word with os_pid, which is 0 from here on; see announce_process.  Until now it was the
            # last one's, with no pid.
            WRITE_ONCE64(addressof(task.pid), atomic_add_return32(addressof(k.next_pid), 1))
            return task
    return NULL


def announce_process(task, pid, os_pid):
    """Enters the OS process that is, or is going to be, task `pid` in this slot.  False when the
    slot is no longer that task's: it was taken back, or has ended.  (Pids do not return.)"""
    expected = cast(u64, cast(u32, pid))
    announced = expected | cast(u64, cast(u32, os_pid)) << 32
    seen = cmpxchg64(addressof(task.pid), expected, announced)
    return seen == expected or seen == announced


def release_task(task):
    """Gives a slot back.  Whatever the task had is gone already."""
    VM_BUG_ON(task.mm != NULL or task.mempolicy != NULL or task.nr_held != 0 or task.preempt_count != 0)
    # A process that comes too late finds that it is no task.  Who is killed from here on has left, but for
    # the slot: os_pid stays, so that reap_task can see to that.
    WRITE_ONCE32(addressof(task.pid), 0)
    WRITE_ONCE32(addressof(task.parent_pid), 0)
    smp_store_release32(addressof(task.in_kernel), 0)
    smp_store_release32(addressof(task.state), TASK_UNUSED)


def find_task_by_pid(pid):
    """The running task with that pid, or NULL.  It may exit at any time: what is taken from
    it is taken with get_task_memory."""
    k = kernel()
    for cpu in range(1, k.max_tasks):
        task = addressof(k.tasks[cpu])
        if smp_load_acquire32(addressof(task.state)) == TASK_RUNNING and task.pid == pid:
            return task
    return NULL


# ---- another task's memory ---------------------------------------------------

def get_task_memory(pid, target):
    """Finds a task (0: the current one) and takes a use of its address space, and its
    credentials with it.  Seed lines 1059-1070.

    Returns 0, -ESRCH (nobody has that pid) or -EINVAL (it has no address space, being on its
    way in or out).  The caller drops target.mm with mmput.  Takes alloc_lock.
    """
    task = current() if pid == 0 else find_task_by_pid(pid)
    if task == NULL:
        return -ESRCH
    spin_lock(addressof(task.alloc_lock))
    mm = task.mm
    if mm != NULL:
        mmget(mm)
    # The slot may have changed hands since it was found.  Its pid changes before it gets an
    # address space again.
    same = pid == 0 or task.pid == pid
    target.mm = mm
    target.uid = task.uid
    target.suid = task.suid
    target.security = task.security
    target.mems_allowed = READ_ONCE64(addressof(task.mems_allowed))
    spin_unlock(addressof(task.alloc_lock))
    if same and mm != NULL:
        return 0
    if mm != NULL:
        mmput(mm)
    return -EINVAL if same else -ESRCH


def may_move_memory(target):
    """Whether the current task has the right to move another's memory: one of its ids is one of
    the other's, or it has CAP_SYS_NICE.  Returns 0 or -EPERM.  Seed lines 1072-1083."""
    me = current()
    if me.euid == target.suid or me.euid == target.uid or me.uid == target.suid or \
            me.uid == target.uid or capable(CAP_SYS_NICE):
        return 0
    return -EPERM


def security_task_movememory(target):
    """The security module's say (seed line 1085): a task's memory may be labelled as not to be
    moved by a system call, whoever asks.  Returns 0 or -EACCES, which is SELinux's answer."""
    return -EACCES if target.security else 0


def do_cgroup_attach(id, pid):
    """Moves the address space of a task to a memory control group.  Returns 0, -ESRCH, -EINVAL,
    -EPERM (only root may move the tasks of others: cgroup_attach_task), -ENODEV or -ENOENT."""
    rc = get_task_memory(pid, addressof(target))
    if rc != 0:
        return rc
    me = current()
    rc = -EPERM
    if me.euid == 0 or me.euid == target.uid or me.euid == target.suid:
        rc = mem_cgroup_attach(target.mm, id)
    mmput(target.mm)
    return rc


# ---- fork and exit -----------------------------------------------------------

def copy_files(task, parent, share):
    """Gives a child its descriptors: a thread shares its parent's table, another child has a copy.
    Returns 0 or -ENOMEM."""
    if share:
        atomic_add_return32(addressof(parent.files.count), 1)
        task.files = parent.files
        return 0
    task.files = dup_files(parent.files)
    return 0 if task.files != NULL else -ENOMEM


def copy_process(parent, share_mm, out):
    """Makes the task for a child process: with a copy of the parent's address space, or
    with a use of the same one.  Leaves it in *out.

    Returns 0, -EAGAIN (no slot) or -ENOMEM.  Runs in the parent.
    """
    task = alloc_task()
    if task == NULL:
        return -EAGAIN
    task.parent_pid = parent.pid
    copy_creds(task, parent)
    task.rlimit_memlock = parent.rlimit_memlock
    # Until the child has all that is rebound when a cpuset changes, none does.
    down_read(addressof(kernel().cpuset_sem))
    WRITE_ONCE32(addressof(task.cpuset), parent.cpuset)
    WRITE_ONCE64(addressof(task.mems_allowed), parent.mems_allowed)
    rc = copy_mempolicy(task, parent)
    if rc == 0:
        if share_mm:
            mmget(parent.mm)
            task.mm = parent.mm
        else:
            task.mm = dup_mm(parent.mm)
        if task.mm == NULL:
            rc = -ENOMEM
    up_read(addressof(kernel().cpuset_sem))
    if rc == 0:
        rc = copy_files(task, parent, share_mm)
    if rc != 0:
        drop_mm(task)
        drop_mempolicy(task)
        release_task(task)
        return rc
    out[0] = task
    return 0


def copy_mempolicy(child, parent):
    """Gives a forked task its parent's policy.  Returns 0 or -ENOMEM.  Holds cpuset_sem."""
    if parent.mempolicy == NULL:
        return 0
    child.mempolicy = mpol_dup(parent.mempolicy)
    child.il_next = parent.il_next
    return 0 if child.mempolicy != NULL else -ENOMEM


def drop_mempolicy(task):
    """Takes its policy off a task.  Takes alloc_lock."""
    spin_lock(addressof(task.alloc_lock))
    pol = task.mempolicy
    task.mempolicy = NULL
    spin_unlock(addressof(task.alloc_lock))
    mpol_put(pol)


def start_task(task, pid, os_pid, start_time):
    """The first thing the process of task `pid` does: it becomes the CPU.  `start_time` is the OS
    process's, which tells it from another that gets its pid one day.

    False when the slot was taken back, since whoever made the process was killed before it could
    tell of it."""
    if not announce_process(task, pid, os_pid):
        return False
    VM_BUG_ON(task.state != TASK_EMBRYO)
    set_current(task)
    # Who is killed in here may have the lock.
    kernel_enter()
    task.start_time = start_time
    # A fork inherits them.
    WRITE_ONCE32(addressof(task.nr_host_files), nr_host_files)
    if task.mm != NULL:
        activate_mm(task.mm)
    if task.parent_pid == 0:
        # Under alloc_lock, so that a cpuset that changes now finds the task before or after.
        spin_lock(addressof(task.alloc_lock))
        WRITE_ONCE64(addressof(task.mems_allowed), cpuset_mems(task.cpuset))
        spin_unlock(addressof(task.alloc_lock))
    # A forked task has its parent's, and follows its cpuset since: its policies and pages are those of
    # mems_allowed, and must be when a cpuset that is changing right now comes to it.
    smp_store_release32(addressof(task.state), TASK_RUNNING)
    kernel_exit()
    return True


def fold_vm_events(task):
    """Adds a task's counts to those of the tasks that are gone.  Takes events_lock."""
    k = kernel()
    spin_lock(addressof(k.events_lock))
    for item in range(NR_VM_EVENTS):
        k.vm_events[item] += task.vm_events[item]
        task.vm_events[item] = 0
    for bucket in range(NR_WAIT_BUCKETS):
        k.wait_buckets[bucket] += task.wait_buckets[bucket]
        k.lock_wait_buckets[bucket] += task.lock_wait_buckets[bucket]
        k.fault_buckets[bucket] += task.fault_buckets[bucket]
        task.wait_buckets[bucket] = task.lock_wait_buckets[bucket] = task.fault_buckets[bucket] = 0
    spin_unlock(addressof(k.events_lock))


def drop_mm(task):
    """Takes the address space off a task, and drops its use of it."""
    spin_lock(addressof(task.alloc_lock))
    mm = task.mm
    task.mm = NULL
    spin_unlock(addressof(task.alloc_lock))
    if mm != NULL:
        mmput(mm)


def retire(task):
    """Takes everything off a task that nobody runs any more, and gives its slot back."""
    mm = task.mm
    trace_sched_process_exit(task)
    if mm != NULL:
        # Its CPU uses no translation from here on, so nobody need wait for it.
        deactivate_mm(mm, task)
    drop_mm(task)
    drop_mempolicy(task)
    exit_files(task)
    radix_tree_drain_preloads(task)
    drain_cpu_pagevecs(task)
    fold_vm_stat_diff(task)
    fold_vm_events(task)
    release_task(task)


def do_exit():
    """The current task leaves the kernel for good; from here on this process is nobody.  It
    may live on for a while, to hand over a result."""
    me = current()
    kernel_enter()
    VM_BUG_ON(me.nr_held != 0 or me.preempt_count != 0)
    rcu_process_callbacks()
    retire(me)
    set_current(cast(pointer(Task), NULL))


def reap_task(task, pid, os_pid):
    """Does do_exit for task `pid`, whose process `os_pid` was killed outside the kernel.  Run by init.
    With pid 0 all of that was done, and the process killed in release_task.

    Does nothing when the slot is not that task's: the supervisor asks again when it was interrupted
    while it waited for the answer, and somebody else may have the slot by now.

    The process may have died in the middle of a memory access; it is over now.  Or there is none
    that anybody knows of, as its maker was killed: then it may come yet, and if it does while we
    are here, the slot is its own.
    """
    # First of all: if the slot is given back and claimed while we are here, the new task has its pid before
    # it runs, and so is not taken for the one that left nothing but the slot.
    running = smp_load_acquire32(addressof(task.state)) == TASK_RUNNING
    # The host's pid too.  An orphan may have come since the supervisor found that nobody had; and another
    # task may be on its way out right now, without a pid, and alive.
    if task.pid != pid or READ_ONCE32(addressof(task.os_pid)) != cast(u32, os_pid):
        return
    if pid == 0:
        if running:
            release_task(task)
        return
    if os_pid == 0 and not announce_process(task, pid, -1):
        return
    VM_BUG_ON(task.in_kernel != 0 or task.rcu_nesting != 0)
    if READ_ONCE32(addressof(task.access_seq)) & 1:
        atomic_add_return32(addressof(task.access_seq), 1)
    retire(task)
