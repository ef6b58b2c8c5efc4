# SPDX-License-Identifier: GPL-2.0-only
# Tasks: how they begin and end.  May use: mm and below.

cimport cython
from shmkern.mm cimport *
from shmkern.cred cimport *
from shmkern.freezer cimport *

cdef enum:
    MLOCK_LIMIT = 65536        # include/linux/resource.h

# What a system call on another task's memory takes from that task, all at one moment.
cdef struct TaskMemory:
    MmStruct* mm
    u32 uid
    u32 suid
    u32 security
    u64 mems_allowed

cdef Task* alloc_task() noexcept nogil
cdef void release_task(Task* task) noexcept nogil
cdef void set_current(Task* task) noexcept nogil
cdef Task* find_task_by_pid(i32 pid) noexcept nogil
@cython.locals(same=bint)
cdef int get_task_memory(i32 pid, TaskMemory* target) noexcept nogil
cdef int may_move_memory(TaskMemory* target) noexcept nogil
cdef int security_task_movememory(TaskMemory* target) noexcept nogil
@cython.locals(target=TaskMemory)
cdef int do_cgroup_attach(i32 id, i32 pid) noexcept nogil
cdef int copy_files(Task* task, Task* parent, bint share) noexcept nogil
@cython.locals(rc=cython.int)
cdef int copy_process(Task* parent, bint share_mm, Task** out) noexcept nogil
@cython.locals(announced=u64)
cdef bint announce_process(Task* task, i32 pid, i32 os_pid) noexcept nogil
cdef bint start_task(Task* task, i32 pid, i32 os_pid, u64 start_time) noexcept nogil
cdef void fold_vm_events(Task* task) noexcept nogil
cdef void drop_mm(Task* task) noexcept nogil
cdef int copy_mempolicy(Task* child, Task* parent) noexcept nogil
cdef void drop_mempolicy(Task* task) noexcept nogil
cdef void retire(Task* task) noexcept nogil
cdef void do_exit() noexcept nogil
@cython.locals(running=bint)
cdef void reap_task(Task* task, i32 pid, i32 os_pid) noexcept nogil
