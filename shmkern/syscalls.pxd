# SPDX-License-Identifier: GPL-2.0-only
# System calls and memory instructions, as Python methods.  May use: uaccess, process
# and below.

cimport cython
from shmkern.uaccess cimport *
from shmkern.process cimport *
from shmkern.migrate cimport *

cdef int user_fault(u64 address, bint write, int rc) except -1
cdef i64 check_errno(i64 rc) except -1
cdef int do_pages_move(MmStruct* mm, u64[::1] addrs, int[::1] nodes, int[::1] status, bint migrate_all) except? -1

cdef class Syscalls:
    @cython.locals(rc=cython.int, left=u64, cbuf=cython.p_char)
    cpdef bytes load(self, u64 address, u64 length)
    @cython.locals(rc=cython.int, left=u64, view=bytes_view)
    cpdef store(self, u64 address, data)
    @cython.locals(rc=cython.int, left=u64, value=u64, frame=cython.p_char)
    cpdef u64 load64(self, u64 address) except? 0xffffffffffffffff
    @cython.locals(rc=cython.int, left=u64, frame=cython.p_char)
    cpdef store64(self, u64 address, u64 value)
    @cython.locals(rc=cython.int, seen=u64, frame=cython.p_char)
    cpdef u64 cmpxchg64(self, u64 address, u64 old, u64 new) except? 0xffffffffffffffff
    @cython.locals(rc=cython.int, before=u64, frame=cython.p_char)
    cpdef u64 fetch_add64(self, u64 address, u64 delta) except? 0xffffffffffffffff
    @cython.locals(rc=i64)
    cpdef mmap(self, length, prot=*, flags=*, addr=*)
    @cython.locals(rc=i64)
    cpdef munmap(self, addr, length)
    @cython.locals(rc=i64)
    cpdef mprotect(self, addr, length, prot)
    @cython.locals(rc=i64)
    cpdef mremap(self, old_address, old_size, new_size, flags=*, new_address=*)
    @cython.locals(rc=cython.int)
    cpdef sys_move_pages(self, i32 pid, u64[::1] addrs, int[::1] nodes, int[::1] status, int flags)
    @cython.locals(rc=cython.int, done=u64)
    cpdef migrate_frames(self, u64 pfn, u64 end, int node)
    cpdef migrate_prep(self)
    @cython.locals(name=bytes)
    cpdef _become(self, u32 cpu, i32 os_pid, u64 start_time, str comm)
    @cython.locals(rc=cython.int)
    cpdef _copy_process(self, bint share_mm)
    cpdef _abandon(self, u32 cpu)
    cpdef _exit(self)
    cpdef _reap(self, u32 cpu)
    cpdef fail_nth(self, u32 nth)

ctypedef const unsigned char[::1] bytes_view
