# SPDX-License-Identifier: GPL-2.0-only
# Groups of tasks and the nodes they may use.  May use: mbind and below.

cimport cython
from shmkern.mbind cimport *

cdef int validate_cpuset(i32 parent, u64 mems, u32 flags) noexcept nogil
@cython.locals(rc=cython.int)
cdef int cpuset_create(i32 parent, u64 mems, u32 flags) noexcept nogil
cdef bint cpuset_has(u32 cpuset, bint children) noexcept nogil
@cython.locals(rc=cython.int)
cdef int cpuset_remove(u32 cpuset) noexcept nogil
cdef void update_task_mems(Task* task, bint migrate) noexcept nogil
cdef void update_all_tasks(int cpuset, bint migrate) noexcept nogil
@cython.locals(rc=cython.int)
cdef int cpuset_set_mems(u32 cpuset, u64 mems) noexcept nogil
@cython.locals(rc=cython.int)
cdef int cpuset_attach(u32 cpuset, i32 pid) noexcept nogil
