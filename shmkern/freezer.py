# SPDX-License-Identifier: GPL-2.0-only
"""The freezer: keeps every task out of the kernel while the audit looks at it.

Tasks that are inside run on until they leave; tasks that want in sleep.  Loads and
stores that hit the TLB go on: they change no kernel object.
"""
from cython import address


def refrigerator():
    """Sleeps outside the kernel while the machine is frozen; returns inside."""
    me = current()
    wait_begin(WAIT_FREEZER, address(kernel().freezing))
    while True:
        smp_store_release32(address(me.in_kernel), 0)
        while READ_ONCE32(address(kernel().freezing)) != 0:
            # However long that takes: no other task is to blame for it.
            futex_wait(address(kernel().freezing), 1, WAIT_SLICE_NS)
            if kernel_panicked():
                wait_check()
        smp_store_mb32(address(me.in_kernel), 1)
        if READ_ONCE32(address(kernel().freezing)) == 0:
            break
    wait_end()


def freeze():
    """Asks every task to leave the kernel; returns at once.  Called by the supervisor,
    which is no task."""
    smp_store_mb32(address(kernel().freezing), 1)


def tasks_in_kernel():
    """The CPU numbers of tasks that have not left yet.  Those without a pid have nothing left to do
    there but to give their slot back (release_task)."""
    k = kernel()
    inside = []
    for cpu in range(k.max_tasks):
        if k.tasks[cpu].state != TASK_UNUSED and smp_load_acquire32(address(k.tasks[cpu].in_kernel)) and \
                k.tasks[cpu].pid != 0:
            inside.append(cpu)
    return inside


def thaw():
    """Lets them in again."""
    smp_store_mb32(address(kernel().freezing), 0)
    futex_wake(address(kernel().freezing), 0x7fffffff)
