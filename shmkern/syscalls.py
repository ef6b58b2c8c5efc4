# SPDX-License-Identifier: GPL-2.0-only
"""What a task can do, as methods: system calls and memory instructions.

This is the border between Python and the kernel: arguments come in as Python numbers,
results go out as numbers or exceptions.  System calls take and give what their man page
says; a negative errno becomes OSError.  Memory instructions raise SegmentationFault.
The methods work on the current task of this process, whatever object they are called on.
"""
import errno
import os

from cython import NULL, address as addressof, cast, pointer, sizeof
from cython.cimports.cpython.bytes import PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cython.cimports.cpython.long import PyLong_AsLongLong, PyLong_AsUnsignedLong
from cython.cimports.cpython.number import PyNumber_Index
from cython.cimports.libc.errno import EBADF, EINVAL, ENOMEM, ESRCH
from cython.cimports.libc.string import memcpy, memset

from shmkern.errors import NO_TASK, BusError, SegmentationFault


def user_fault(address, write, rc):
    """Raises what an access that ended in `rc` (see user_access_begin) means."""
    if rc == -ESRCH:
        check_current()
    if rc == -ENOMEM:
        raise OSError(errno.ENOMEM, "out of frames", hex(address))
    if rc == -VM_FAULT_SIGBUS:
        raise BusError(address, "store" if write else "load")
    raise SegmentationFault(address, "store" if write else "load")


def check_current():
    """RuntimeError when this process is no task: has ended as one, or was forked by the program itself.  Its Task
    objects say so too (NoTask), but some thread may have got hold of a method before."""
    if current() == NULL:
        raise RuntimeError(NO_TASK)


def syscall_enter():
    """kernel_enter for whoever is a task, or RuntimeError.  No thread leaves in between, for we have the GIL."""
    check_current()
    kernel_enter()


def check_errno(rc):
    """`rc`, or OSError when it is a negative errno."""
    if -4096 < rc < 0:
        raise OSError(-rc, os.strerror(-rc))
    return rc


def unsigned(value):
    """A whole number from 0 to 2^64 - 1 as a word: an address, a length, flags.  TypeError for
    what is no whole number, OverflowError beyond the range."""
    return PyLong_AsUnsignedLong(PyNumber_Index(value))


def user_id(value):
    """A user id, from 0 to 2^32 - 2, or -1 for none, as a word."""
    number = PyNumber_Index(value)
    if not -1 <= number <= 0xfffffffe:
        raise OverflowError(f"{number} is no user id")
    return number & 0xffffffff


def descriptor(value):
    """A file descriptor; any number that cannot be one is -1.  TypeError for what is no whole
    number."""
    number = PyNumber_Index(value)
    return number if 0 <= number < NR_OPEN else -1


def word(value):
    """As unsigned(), but a negative number down to -2^63 is its two's complement."""
    number = PyNumber_Index(value)
    if number < 0:
        return cast(u64, PyLong_AsLongLong(number))
    return PyLong_AsUnsignedLong(number)


def contiguous(data):
    """Bytes, or anything that has contiguous ones, as a memoryview of bytes.  TypeError for anything else."""
    view = memoryview(data)
    # An array without elements cannot be cast.
    return view.cast("B") if view.nbytes else memoryview(b"")


def page_counter(value):
    """A number of bytes, rounded up to whole pages."""
    size = unsigned(value)
    return RESOURCE_MAX if size > RESOURCE_MAX - PAGE_SIZE else (size + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE


class Syscalls:
    """System calls and memory instructions of the current task.

    Arguments are words: TypeError for what is no whole number, OverflowError for what does not
    fit 64 bits (or is negative, but for values of words).
    """

    # ---- memory instructions ----

    def load(self, address, length):
        """`length` bytes from `address`.  Raises SegmentationFault, or OSError(ENOMEM)."""
        va = unsigned(address)
        size = unsigned(length)
        if size > TASK_SIZE:
            raise OverflowError("the length is more than an address space has")
        buffer = PyBytes_FromStringAndSize(NULL, size)
        cbuf = PyBytes_AS_STRING(buffer)
        rc = 0
        left = copy_from_user(cbuf, va, size, addressof(rc))
        if left:
            user_fault(va + (size - left), 0, rc)
        return buffer

    def store(self, address, data):
        """Stores bytes, or anything that has contiguous ones, at `address`.  What lies before an
        address that cannot be stored to is stored.  Raises SegmentationFault, or
        OSError(ENOMEM)."""
        va = unsigned(address)
        source = contiguous(data)
        size = source.nbytes
        if size == 0:
            return
        rc = 0
        left = copy_to_user(va, bytes_of(source), size, addressof(rc))
        if left:
            user_fault(va + (size - left), 1, rc)

    def load64(self, address):
        """The 64-bit word at `address`, in one piece when it is aligned."""
        va = unsigned(address)
        rc = 0
        if va & 7:
            value = 0
            left = copy_from_user(addressof(value), va, 8, addressof(rc))
            if left:
                user_fault(va + 8 - left, 0, rc)
            return value
        frame = user_access_begin(va, 0, addressof(rc))
        if frame == NULL:
            user_fault(va, 0, rc)
        value = smp_load_acquire64(frame)
        access_end(current())
        return value

    def store64(self, address, value):
        """Stores a 64-bit word, in one piece when it is aligned."""
        va = unsigned(address)
        new = word(value)
        rc = 0
        if va & 7:
            left = copy_to_user(va, addressof(new), 8, addressof(rc))
            if left:
                user_fault(va + 8 - left, 1, rc)
            return
        frame = user_access_begin(va, 1, addressof(rc))
        if frame == NULL:
            user_fault(va, 1, rc)
        smp_store_release64(frame, new)
        access_end(current())

    def cmpxchg64(self, address, old, new):
        """Stores `new` if the aligned word is `old`, atomically; returns what it was.  Raises
        OSError(EINVAL) when the address is not a multiple of 8."""
        va = unsigned(address)
        expected = word(old)
        desired = word(new)
        rc = 0
        if va & 7:
            check_errno(-EINVAL)
        frame = user_access_begin(va, 1, addressof(rc))
        if frame == NULL:
            user_fault(va, 1, rc)
        seen = cmpxchg64(frame, expected, desired)
        access_end(current())
        return seen

    def fetch_add64(self, address, delta):
        """Adds to the aligned word, atomically and modulo 2^64; returns what it was.  Raises
        OSError(EINVAL) when the address is not a multiple of 8."""
        va = unsigned(address)
        step = word(delta)
        rc = 0
        if va & 7:
            check_errno(-EINVAL)
        frame = user_access_begin(va, 1, addressof(rc))
        if frame == NULL:
            user_fault(va, 1, rc)
        before = atomic_add_return64(frame, step) - step
        access_end(current())
        return before

    # ---- system calls on the own address space ----

    def mmap(self, length, prot=3, flags=0x22, addr=0, fd=-1, offset=0):
        """mmap(2); PROT_READ|PROT_WRITE and MAP_PRIVATE|MAP_ANONYMOUS by default.  Without
        MAP_ANONYMOUS of the file that is open as `fd`.  Returns the address."""
        arg0, arg1, arg2, arg3 = unsigned(addr), unsigned(length), unsigned(prot), unsigned(flags)
        arg4, arg5 = descriptor(fd), unsigned(offset)
        syscall_enter()
        rc = do_mmap(current().mm, arg0, arg1, arg2, arg3, arg4, arg5)
        if rc > 0:
            populate_mapped(rc, arg1)
        kernel_exit()
        return check_errno(rc)

    def munmap(self, addr, length):
        """munmap(2)."""
        arg0, arg1 = unsigned(addr), unsigned(length)
        syscall_enter()
        rc = do_munmap(current().mm, arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def mprotect(self, addr, length, prot):
        """mprotect(2)."""
        arg0, arg1, arg2 = unsigned(addr), unsigned(length), unsigned(prot)
        syscall_enter()
        rc = do_mprotect(current().mm, arg0, arg1, arg2)
        kernel_exit()
        check_errno(rc)

    def mremap(self, old_address, old_size, new_size, flags=0, new_address=0):
        """mremap(2).  Returns the new address."""
        arg0, arg1, arg2 = unsigned(old_address), unsigned(old_size), unsigned(new_size)
        arg3, arg4 = unsigned(flags), unsigned(new_address)
        syscall_enter()
        rc = do_mremap(current().mm, arg0, arg1, arg2, arg3, arg4)
        if rc > 0:
            populate_mapped(rc, arg2)
        kernel_exit()
        return check_errno(rc)

    def mlock(self, addr, length):
        """mlock(2).  Raises OSError: EPERM, EINVAL, ENOMEM, EAGAIN."""
        arg0, arg1 = unsigned(addr), unsigned(length)
        syscall_enter()
        rc = do_mlock(arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def munlock(self, addr, length):
        """munlock(2).  Raises OSError: EINVAL, ENOMEM."""
        arg0, arg1 = unsigned(addr), unsigned(length)
        syscall_enter()
        rc = do_munlock(arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def mlockall(self, flags):
        """mlockall(2) with MCL_CURRENT, MCL_FUTURE or both.  Raises OSError: EINVAL, EPERM,
        ENOMEM."""
        arg0 = unsigned(flags)
        syscall_enter()
        rc = do_mlockall(arg0)
        kernel_exit()
        check_errno(rc)

    def munlockall(self):
        """munlockall(2)."""
        syscall_enter()
        rc = do_munlockall()
        kernel_exit()
        check_errno(rc)

    def msync(self, addr, length, flags=4):
        """msync(2), with MS_SYNC by default.  Raises OSError: also EIO or ENOSPC, when the host did not
        take the bytes; they are still there, and the next msync tries again."""
        arg0, arg1, arg2 = unsigned(addr), unsigned(length), unsigned(flags)
        syscall_enter()
        rc = do_msync(current().mm, arg0, arg1, arg2)
        kernel_exit()
        check_errno(rc)

    # ---- files ----

    def _open(self, dev, ino, flags, kind, blkbits, host_fd):
        """do_open for Python; on success this process's descriptor of the file is the kernel's."""
        arg0, arg1 = unsigned(dev), unsigned(ino)
        id = 0
        syscall_enter()
        rc = do_open(arg0, arg1, flags, kind, blkbits, addressof(id))
        if rc >= 0:
            host_fd_install(id, host_fd)
        kernel_exit()
        return check_errno(rc)

    def _register_host_file(self, dev, ino, size, kind, blkbits, fd, writable):
        """register_host_file for Python.  Init's."""
        arg0, arg1, arg2 = unsigned(dev), unsigned(ino), unsigned(size)
        syscall_enter()
        rc = register_host_file(arg0, arg1, arg2, kind, blkbits, fd, writable)
        kernel_exit()
        return check_errno(rc)

    def _host_fds(self, room):
        """Init's descriptors that inodes use, a list; there are no more than `room`."""
        buffer = PyBytes_FromStringAndSize(NULL, room * sizeof(cython.int))
        fds = cast(pointer(cython.int), PyBytes_AS_STRING(buffer))
        syscall_enter()
        count = host_fds_in_use(fds, room)
        kernel_exit()
        return [fds[index] for index in range(count)]

    def close(self, fd):
        """close(2)."""
        arg = descriptor(fd)
        syscall_enter()
        rc = do_close(arg)
        kernel_exit()
        check_errno(rc)

    def fsync(self, fd):
        """fsync(2).  Raises OSError as msync."""
        arg = descriptor(fd)
        syscall_enter()
        rc = do_fsync(arg)
        kernel_exit()
        check_errno(rc)

    def ftruncate(self, fd, length):
        """ftruncate(2)."""
        arg, size = descriptor(fd), unsigned(length)
        syscall_enter()
        rc = do_ftruncate(arg, size)
        kernel_exit()
        check_errno(rc)

    def fstat_size(self, fd):
        """The size of an open file, as fstat(2) gives it."""
        arg = descriptor(fd)
        syscall_enter()
        file = fget(arg)
        size = cast(i64, file.f_mapping.host.i_size) if file != NULL else -EBADF
        fput(file)
        kernel_exit()
        return check_errno(size)

    def pread(self, fd, count, offset):
        """pread(2): up to `count` bytes from `offset` on, through the page cache."""
        arg, place = descriptor(fd), unsigned(offset)
        size = min(unsigned(count), self.fstat_size(fd), MAX_RW_COUNT)
        buffer = PyBytes_FromStringAndSize(NULL, size)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = do_pread(arg, cast(u64, PyBytes_AS_STRING(buffer)), size, place)
        current().addr_limit = USER_DS
        kernel_exit()
        return buffer[:check_errno(rc)]

    def pwrite(self, fd, data, offset):
        """pwrite(2) of bytes, or anything that has contiguous ones, into the page cache.  Returns how many
        were written."""
        arg, place = descriptor(fd), unsigned(offset)
        source = contiguous(data)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = do_pwrite(arg, cast(u64, bytes_of(source)), source.nbytes, place)
        current().addr_limit = USER_DS
        kernel_exit()
        return check_errno(rc)

    def read(self, fd, count):
        """read(2): as pread, from the file's position on, which moves."""
        arg = descriptor(fd)
        size = min(unsigned(count), self.fstat_size(fd), MAX_RW_COUNT)
        buffer = PyBytes_FromStringAndSize(NULL, size)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = do_read(arg, cast(u64, PyBytes_AS_STRING(buffer)), size)
        current().addr_limit = USER_DS
        kernel_exit()
        return buffer[:check_errno(rc)]

    def write(self, fd, data):
        """write(2): as pwrite, at the file's position, which moves."""
        arg = descriptor(fd)
        source = contiguous(data)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = do_write(arg, cast(u64, bytes_of(source)), source.nbytes)
        current().addr_limit = USER_DS
        kernel_exit()
        return check_errno(rc)

    def lseek(self, fd, offset, whence=SEEK_SET):
        """lseek(2); whence is SEEK_SET, SEEK_CUR or SEEK_END.  Returns the new position."""
        arg, place = descriptor(fd), word(offset)
        how = PyNumber_Index(whence)
        syscall_enter()
        rc = do_lseek(arg, place, how)
        kernel_exit()
        return check_errno(rc)

    def sys_pread(self, fd, buf, count, offset):
        """pread(2) as a program in this address space would call it: to memory at `buf`.  Returns how many
        bytes were read."""
        arg, arg0, arg1, arg2 = descriptor(fd), unsigned(buf), unsigned(count), unsigned(offset)
        syscall_enter()
        rc = do_pread(arg, arg0, arg1, arg2)
        kernel_exit()
        return check_errno(rc)

    def sys_pwrite(self, fd, buf, count, offset):
        """pwrite(2) from memory at `buf`, which may be a mapping of the very file.  Returns how many bytes
        were written."""
        arg, arg0, arg1, arg2 = descriptor(fd), unsigned(buf), unsigned(count), unsigned(offset)
        syscall_enter()
        rc = do_pwrite(arg, arg0, arg1, arg2)
        kernel_exit()
        return check_errno(rc)

    def writeback(self, nr_to_write=1024):
        """The flusher's round: writes up to that many dirty pages of each file back.  Returns how many
        were written.  What fails is told to who calls msync or fsync."""
        arg = min(unsigned(nr_to_write), cast(u64, LONG_MAX_PAGES))
        syscall_enter()
        rc = writeback_inodes(arg)
        kernel_exit()
        return rc

    # ---- migration ----

    def sys_move_pages(self, pid, nr_pages, pages, nodes, status, flags):
        """move_pages(2) as a program in this address space would call it: `pages`, `nodes` (0 to
        ask) and `status` are addresses of arrays of u64, int and int in the task's own memory.
        move_pages takes lists.

        Raises OSError: EINVAL, EPERM, ESRCH, EACCES, ENODEV, E2BIG, EFAULT, ENOMEM.
        """
        target, how = PyNumber_Index(pid), PyNumber_Index(flags)
        args.nr_pages, args.pages = unsigned(nr_pages), unsigned(pages)
        args.nodes, args.status = unsigned(nodes), unsigned(status)
        syscall_enter()
        rc = do_move_pages(target, addressof(args), how)
        kernel_exit()
        check_errno(rc)

    def move_pages(self, pid, pages, nodes=None, flags=MPOL_MF_MOVE):
        """move_pages(2): moves the pages at the addresses `pages` of task `pid` (0: this one)
        to `nodes`, one each; with nodes=None only asks.

        Returns a list with a node or a negative errno for each page.  Raises ValueError when there are
        not as many nodes as pages, and OSError for what fails the whole call: EINVAL, EPERM, ESRCH,
        EACCES, ENODEV, ENOMEM.  sys_move_pages takes arrays in the task's memory, as a program would.
        """
        target, how = PyNumber_Index(pid), PyNumber_Index(flags)
        addresses = list(pages)
        nodes = list(nodes) if nodes is not None else None
        count = len(addresses)
        if nodes is not None and len(nodes) != count:
            raise ValueError(f"{count} pages and {len(nodes)} nodes")
        page_array = PyBytes_FromStringAndSize(NULL, count * sizeof(u64))
        node_array = PyBytes_FromStringAndSize(NULL, count * sizeof(cython.int))
        status_array = PyBytes_FromStringAndSize(NULL, count * sizeof(cython.int))
        words = cast(pointer(u64), PyBytes_AS_STRING(page_array))
        ints = cast(pointer(cython.int), PyBytes_AS_STRING(node_array))
        status = cast(pointer(cython.int), PyBytes_AS_STRING(status_array))
        for index in range(count):
            words[index] = unsigned(addresses[index])
            status[index] = 0
            if nodes is not None:
                ints[index] = PyNumber_Index(nodes[index])
        args.nr_pages, args.pages, args.status = count, cast(u64, words), cast(u64, status)
        args.nodes = cast(u64, ints) if nodes is not None else 0
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = do_move_pages(target, addressof(args), how)
        current().addr_limit = USER_DS
        kernel_exit()
        check_errno(rc)
        return [status[index] for index in range(count)]

    def migrate_frames(self, pfn, end, node):
        """Moves up to 256 movable pages of the frames [pfn, end), of one node, to `node`, as taking memory
        offline does.  Returns the frame to go on with and how many pages stayed, or minus
        ENOMEM when the node is full."""
        k = kernel()
        first, last, target = unsigned(pfn), unsigned(end), word(node)
        if first >= last or last > k.max_pfn or target >= k.nr_nodes or \
                first // k.frames_per_node != (last - 1) // k.frames_per_node:
            check_errno(-EINVAL)
        done = first
        syscall_enter()
        rc = migrate_pfn_range(first, last, alloc_on_node, target, addressof(done))
        kernel_exit()
        return done, rc

    def migrate_prep(self):
        """Empties all pagevecs, so that what is in them can be isolated."""
        syscall_enter()
        migrate_prep()
        kernel_exit()

    # ---- rights ----

    def setresuid(self, ruid, euid, suid):
        """setresuid(2): the real, the effective and the saved user id; -1 keeps one.  Raises
        OSError(EPERM)."""
        arg0, arg1, arg2 = user_id(ruid), user_id(euid), user_id(suid)
        syscall_enter()
        rc = do_setresuid(arg0, arg1, arg2)
        kernel_exit()
        check_errno(rc)

    # ---- memory control groups, by id; the root's is 1 ----

    def cgroup_create(self, name, limit=None, parent=1):
        """mkdir: a new group below `parent`, limited to so many bytes (rounded up to pages; None: not
        limited).  Returns its id.  Raises OSError: EINVAL (no name for a directory), ENODEV (the
        machine has no groups), ENOENT (no such parent), EEXIST, ENOMEM."""
        text = name.encode()
        if not 0 < len(text) < MEM_CGROUP_NAME_LEN or text in (b".", b"..") or b"/" in text or b"\0" in text:
            check_errno(-EINVAL)
        arg0, arg1 = PyNumber_Index(parent), RESOURCE_MAX if limit is None else page_counter(limit)
        cbuf = PyBytes_AS_STRING(text)
        syscall_enter()
        rc = mem_cgroup_create(arg0, cbuf, arg1)
        kernel_exit()
        return check_errno(rc)

    def cgroup_remove(self, id):
        """rmdir; what the group is still charged for goes to its parent.  Raises OSError: ENOENT,
        EBUSY (the root, or it has children or tasks, or a page of it is being moved)."""
        arg0 = PyNumber_Index(id)
        syscall_enter()
        rc = mem_cgroup_remove(arg0)
        kernel_exit()
        check_errno(rc)

    def cgroup_attach(self, id, pid=0):
        """Moves task `pid` (0: this one), and all that share its address space, to a group.  Only
        what it faults in from then on is charged to it.  Raises OSError: ENODEV, ENOENT, ESRCH,
        EINVAL (no address space), EPERM (neither ours nor are we root)."""
        arg0, arg1 = PyNumber_Index(id), PyNumber_Index(pid)
        syscall_enter()
        rc = do_cgroup_attach(arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def cgroup_stat(self, id):
        """What the files of a group say, a dict.  usage, max_usage and limit (None: none) in bytes,
        and failcnt, the charges that its limit did not allow, are with the children's.  cache and
        rss, in bytes, and pgpgin and pgpgout, pages charged and uncharged since it was made, are
        without; total_cache and so on are with them.  Raises OSError: ENODEV, ENOENT."""
        arg0 = PyNumber_Index(id)
        memset(addressof(stat), 0, sizeof(MemCgroupStat))
        syscall_enter()
        rc = mem_cgroup_read(arg0, addressof(stat))
        kernel_exit()
        check_errno(rc)
        found = {"usage": stat.usage, "max_usage": stat.max_usage, "failcnt": stat.failcnt,
                 "limit": None if stat.limit == RESOURCE_MAX else stat.limit}
        for item, name in enumerate(("cache", "rss", "pgpgin", "pgpgout")):
            found[name], found["total_" + name] = stat.stat[item], stat.total_stat[item]
        return found

    def cgroup_set_limit(self, id, limit):
        """Limits a group to so many bytes, rounded up to pages; None lifts the limit.  Raises
        OSError: ENOENT, EINVAL (the root), EBUSY (it uses more)."""
        arg0, arg1 = PyNumber_Index(id), RESOURCE_MAX if limit is None else page_counter(limit)
        syscall_enter()
        rc = mem_cgroup_resize_limit(arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def cgroup_force_empty(self, id):
        """memory.force_empty: moves what a group without tasks is charged for to its parent.
        Raises OSError: ENOENT, EINVAL (the root), EBUSY (it has tasks or children, or somebody else is at it)."""
        arg0 = PyNumber_Index(id)
        syscall_enter()
        rc = mem_cgroup_force_empty(arg0)
        kernel_exit()
        check_errno(rc)

    # ---- this process as a task ----

    def _become(self, cpu, pid, os_pid, start_time, comm):
        """This process is task `pid` in slot `cpu` from now on.  Gives the task an address space
        and descriptors unless it has them from its parent.  Raises ProcessLookupError when the slot was taken
        back, OSError(ENOMEM)."""
        task = addressof(kernel().tasks[cpu])
        if not start_task(task, pid, os_pid, start_time):
            check_errno(-ESRCH)
        name = comm.encode(errors="replace")[:TASK_COMM_LEN - 1]
        memcpy(cast(pointer(char), task.comm), PyBytes_AS_STRING(name), len(name))
        trace_task_newtask(task)
        if task.mm == NULL:
            syscall_enter()
            task.mm = mm_alloc()
            if task.mm != NULL:
                activate_mm(task.mm)
            kernel_exit()
        # Who begins in a group has been given an address space, and nothing else.
        if task.files == NULL:
            syscall_enter()
            task.files = files_alloc()
            kernel_exit()
        if task.mm == NULL or task.files == NULL:
            check_errno(-ENOMEM)

    def _prepare_mm(self, cpu, id):
        """Gives the task that is going to run in slot `cpu` an address space in a group."""
        task = addressof(kernel().tasks[cpu])
        rc = -ENOMEM
        syscall_enter()
        mm = mm_alloc()
        if mm != NULL:
            rc = mem_cgroup_attach(mm, id)
            if rc == 0:
                task.mm = mm
            else:
                mmput(mm)
        kernel_exit()
        check_errno(rc)

    def _copy_process(self, share_mm):
        """copy_process for Python: the child's slot."""
        child = cast(pointer(Task), NULL)
        syscall_enter()
        rc = copy_process(current(), share_mm, addressof(child))
        kernel_exit()
        check_errno(rc)
        return child.cpu

    def _abandon(self, cpu, pid):
        """Undoes _copy_process, or _prepare_mm, when making the process of task `pid` has failed.  If there
        is one all the same, it is the task and keeps what it has; or it has not come yet, and will find
        that it is none."""
        task = addressof(kernel().tasks[cpu])
        syscall_enter()
        if announce_process(task, pid, -1):
            drop_mm(task)
            drop_mempolicy(task)
            exit_files(task)
            release_task(task)
        kernel_exit()

    def _exit(self):
        """Leaves the kernel; the process ends some time later."""
        do_exit()

    def _reap(self, cpu, pid, os_pid):
        """Cleans up after task `pid` in slot `cpu`, whose process `os_pid` was killed outside the kernel."""
        syscall_enter()
        reap_task(addressof(kernel().tasks[cpu]), pid, os_pid)
        kernel_exit()

    def fail_nth(self, nth):
        """Fault injection: the nth allocation from now on, of a frame or a kernel object,
        fails.  Returns what was left of the last count: 0 when that one was reached.  With 0
        nothing fails."""
        arg = PyNumber_Index(nth)
        check_current()
        left = current().fail_nth
        current().fail_nth = arg
        return left
