# SPDX-License-Identifier: GPL-2.0-only
# Entering and leaving the kernel, and the freezer.  May use: locks and below.

from shmkern.locks cimport *

cdef void refrigerator() noexcept nogil

# Each system call and page fault is between these two.  The store and the look at
# `freezing` are a full fence apart, as the freezer's store and its look at in_kernel
# are: either we see that the machine is to be still, or the freezer waits for us.
cdef inline void kernel_enter() noexcept nogil:
    smp_store_mb32(&current().in_kernel, 1)
    if unlikely(READ_ONCE32(&kernel().freezing) != 0):
        refrigerator()

# For a fault, which may come from a program or from a system call that copies from or to one:
# then the kernel is entered already.  Says whether kernel_exit is due.
cdef inline bint kernel_enter_nested() noexcept nogil:
    if current().in_kernel:
        return False
    kernel_enter()
    return True

cdef inline void kernel_exit() noexcept nogil:
    smp_store_release32(&current().in_kernel, 0)
