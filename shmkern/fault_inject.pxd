# SPDX-License-Identifier: GPL-2.0-only
# Fault injection in the manner of /proc/self/fail-nth: the nth allocation of this
# task, of a frame or a slab object, fails once.  Tests count n up until nothing
# fails any more, and audit after each.

from shmkern.current cimport Task, current

cdef inline bint should_fail() noexcept nogil:
    cdef Task* me = current()
    if me.fail_nth == 0:
        return False
    me.fail_nth -= 1
    return me.fail_nth == 0
