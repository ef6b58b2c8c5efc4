# SPDX-License-Identifier: GPL-2.0-only
# System calls and memory instructions, as Python methods.  May use: uaccess, process
# and below.

cimport cython
from shmkern.uaccess cimport *
from shmkern.read_write cimport *
from shmkern.populate cimport *
from shmkern.process cimport *
from shmkern.migrate cimport *
from shmkern.move_pages cimport *
from shmkern.fs cimport nr_file_kinds

cdef int user_fault(u64 address, bint write, int rc) except -1
cdef int check_current() except -1
cdef int syscall_enter() except -1
cdef i64 check_errno(i64 rc) except -1

cdef u32 user_id(value) except? 0xfffffffe
cdef u64 unsigned(value) except? 0xffffffffffffffff
cdef int descriptor(value) except? -2
cdef u64 word(value) except? 0xffffffffffffffff

cdef contiguous(data)

@cython.locals(size=u64)
cdef u64 page_counter(value) except? 0xffffffffffffffff

cdef class Syscalls:
    @cython.locals(rc=cython.int, va=u64, size=u64, left=u64, cbuf=cython.p_char)
    cpdef bytes load(self, address, length)
    @cython.locals(rc=cython.int, va=u64, size=u64, left=u64)
    cpdef store(self, address, data)
    @cython.locals(rc=cython.int, va=u64, left=u64, value=u64, frame=cython.p_char)
    cpdef load64(self, address)
    @cython.locals(rc=cython.int, va=u64, new=u64, left=u64, frame=cython.p_char)
    cpdef store64(self, address, value)
    @cython.locals(rc=cython.int, va=u64, expected=u64, desired=u64, seen=u64, frame=cython.p_char)
    cpdef cmpxchg64(self, address, old, new)
    @cython.locals(rc=cython.int, va=u64, step=u64, before=u64, frame=cython.p_char)
    cpdef fetch_add64(self, address, delta)
    @cython.locals(rc=i64, arg0=u64, arg1=u64, arg2=u64, arg3=u64, arg4=cython.int, arg5=u64)
    cpdef mmap(self, length, prot=*, flags=*, addr=*, fd=*, offset=*)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, arg2=u64)
    cpdef msync(self, addr, length, flags=*)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, id=u64)
    cpdef _open(self, dev, ino, u32 flags, u32 kind, u32 blkbits, int host_fd)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, arg2=u64)
    cpdef _register_host_file(self, dev, ino, size, u32 kind, u32 blkbits, int fd, bint writable)
    @cython.locals(buffer=bytes, fds=cython.p_int, count=Py_ssize_t, index=Py_ssize_t)
    cpdef list _host_fds(self, Py_ssize_t room)
    @cython.locals(rc=cython.int, arg=cython.int)
    cpdef close(self, fd)
    @cython.locals(rc=cython.int, arg=cython.int)
    cpdef fsync(self, fd)
    @cython.locals(rc=cython.int, arg=cython.int, size=u64)
    cpdef ftruncate(self, fd, length)
    @cython.locals(arg=cython.int, size=i64)
    cpdef fstat_size(self, fd)
    @cython.locals(rc=i64, arg=cython.int, size=u64, place=u64)
    cpdef bytes pread(self, fd, count, offset)
    @cython.locals(rc=i64, arg=cython.int, place=u64)
    cpdef pwrite(self, fd, data, offset)
    @cython.locals(rc=i64, arg=cython.int, size=u64)
    cpdef bytes read(self, fd, count)
    @cython.locals(rc=i64, arg=cython.int)
    cpdef write(self, fd, data)
    @cython.locals(rc=i64, arg=cython.int, place=i64, how=cython.int)
    cpdef lseek(self, fd, offset, whence=*)
    @cython.locals(rc=i64, arg=cython.int, arg0=u64, arg1=u64, arg2=u64)
    cpdef sys_pread(self, fd, buf, count, offset)
    @cython.locals(rc=i64, arg=cython.int, arg0=u64, arg1=u64, arg2=u64)
    cpdef sys_pwrite(self, fd, buf, count, offset)
    @cython.locals(rc=i64, arg=u64)
    cpdef writeback(self, nr_to_write=*)
    @cython.locals(rc=i64, arg0=u64, arg1=u64)
    cpdef munmap(self, addr, length)
    @cython.locals(rc=i64, arg0=u64, arg1=u64, arg2=u64)
    cpdef mprotect(self, addr, length, prot)
    @cython.locals(rc=i64, arg0=u64, arg1=u64, arg2=u64, arg3=u64, arg4=u64)
    cpdef mremap(self, old_address, old_size, new_size, flags=*, new_address=*)
    @cython.locals(rc=i64, arg0=u64, arg1=u64)
    cpdef mlock(self, addr, length)
    @cython.locals(rc=i64, arg0=u64, arg1=u64)
    cpdef munlock(self, addr, length)
    @cython.locals(rc=i64, arg0=u64)
    cpdef mlockall(self, flags)
    @cython.locals(rc=i64)
    cpdef munlockall(self)
    @cython.locals(rc=cython.int, args=MovePagesArgs, target=i32, how=cython.int)
    cpdef sys_move_pages(self, pid, nr_pages, pages, nodes, status, flags)
    @cython.locals(rc=cython.int, args=MovePagesArgs, target=i32, how=cython.int, addresses=list, count=Py_ssize_t,
                   index=Py_ssize_t, page_array=bytes, node_array=bytes, status_array=bytes,
                   words=pointer_to_u64, ints=cython.p_int, status=cython.p_int)
    cpdef list move_pages(self, pid, pages, nodes=*, flags=*)
    @cython.locals(rc=cython.int, arg0=u32, arg1=u32, arg2=u32)
    cpdef setresuid(self, ruid, euid, suid)
    @cython.locals(rc=cython.int, done=u64, first=u64, last=u64, target=u64)
    cpdef migrate_frames(self, pfn, end, node)
    cpdef migrate_prep(self)
    @cython.locals(rc=i64, text=bytes, cbuf=cython.p_char, arg0=i32, arg1=u64)
    cpdef cgroup_create(self, str name, limit=*, parent=*)
    @cython.locals(rc=cython.int, arg0=i32)
    cpdef cgroup_remove(self, id)
    @cython.locals(rc=cython.int, arg0=i32, arg1=i32)
    cpdef cgroup_attach(self, id, pid=*)
    @cython.locals(rc=cython.int, arg0=i32, stat=MemCgroupStat, item=cython.int)
    cpdef cgroup_stat(self, id)
    @cython.locals(rc=cython.int, arg0=i32, arg1=u64)
    cpdef cgroup_set_limit(self, id, limit)
    @cython.locals(rc=cython.int, arg0=i32)
    cpdef cgroup_force_empty(self, id)
    @cython.locals(name=bytes)
    cpdef _become(self, u32 cpu, i32 pid, i32 os_pid, u64 start_time, str comm)
    @cython.locals(rc=cython.int)
    cpdef _prepare_mm(self, u32 cpu, i32 id)
    @cython.locals(rc=cython.int)
    cpdef _copy_process(self, bint share_mm)
    cpdef _abandon(self, u32 cpu, i32 pid)
    cpdef _exit(self)
    cpdef _reap(self, u32 cpu, i32 pid, i32 os_pid)
    @cython.locals(arg=u32)
    cpdef fail_nth(self, nth)
