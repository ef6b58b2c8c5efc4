# SPDX-License-Identifier: GPL-2.0-only
# Whose task it is, and what it may do.  May use: locks and below.

cimport cython
from shmkern.atomics cimport *
from shmkern.current cimport *

cdef extern from *:
    """
    #define KEEP_ID 0xffffffffu
    """
    const u32 KEEP_ID

# Whether the current task has a capability.
cdef inline bint capable(int cap) noexcept nogil:
    return (current().cap_effective >> cap & 1) != 0

cdef void set_creds(Task* task, u32 uid, u64 caps) noexcept nogil
cdef void copy_creds(Task* child, Task* parent) noexcept nogil
cdef bint is_own_id(u32 id) noexcept nogil
@cython.locals(was_root=bint, was_effective=bint)
cdef int do_setresuid(u32 ruid, u32 euid, u32 suid) noexcept nogil
