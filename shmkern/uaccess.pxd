# SPDX-License-Identifier: GPL-2.0-only
# Memory accesses of the current task.  May use: fault and below.

cimport cython
from cpython.buffer cimport Py_buffer
from libc.errno cimport ESRCH
from shmkern.fault cimport *

# Task.addr_limit (include/asm/uaccess.h): whose memory a system call's pointers are in.
cdef enum:
    USER_DS = 0
    KERNEL_DS = 1

cdef char* user_access_slow(u64 address, bint write, int* rc) noexcept nogil
@cython.locals(part=u64)
cdef u64 copy_from_user(void* to, u64 address, u64 length, int* rc) noexcept nogil
@cython.locals(part=u64)
cdef u64 copy_to_user(u64 address, const void* source, u64 length, int* rc) noexcept nogil
@cython.locals(rc=cython.int)
cdef int copy_in(void* to, u64 address, u64 length) noexcept nogil
cdef int copy_out(u64 address, const void* source, u64 length) noexcept nogil
@cython.locals(rc=cython.int)
cdef u64 copy_out_some(u64 address, const void* source, u64 length) noexcept nogil
@cython.locals(part=u64)
cdef u64 copy_in_inatomic(void* to, u64 address, u64 length) noexcept nogil
@cython.locals(rc=cython.int)
cdef int fault_in_readable(u64 address, u64 length) noexcept nogil
@cython.locals(rc=cython.int)
cdef int probe_write(u64 address) noexcept nogil

ctypedef const u64* word_pointer

@cython.locals(view=Py_buffer)
cdef char* bytes_of(exporter) except? NULL

# Begins an access to memory within one page: the host address of the byte, valid until
# access_end(); or NULL, outside an access, with -EFAULT, -ENOMEM or -VM_FAULT_SIGBUS in *rc, or -ESRCH when this
# process is no task (any more): a thread of the program may not have heard of it.
cdef inline char* user_access_begin(u64 address, bint write, int* rc) noexcept nogil:
    cdef Task* me = current()
    cdef char* frame
    if unlikely(me == NULL):
        rc[0] = -ESRCH
        return NULL
    me.vm_events[ACCESSES] += 1
    if likely(address < TASK_SIZE):
        access_begin(me)
        frame = tlb_lookup(me, address, TLB_VALID | TLB_WRITE | TLB_DIRTY if write else TLB_VALID)
        if likely(frame != NULL):
            return frame + (address & (PAGE_SIZE - 1))
        access_end(me)
    return user_access_slow(address, write, rc)
