# SPDX-License-Identifier: GPL-2.0-only
"""Inodes, and the host files that they stand for (fs/inode.c, and what a block device is to
Linux).

A file of the machine is a file of the host: its pages are read with pread and written back
with pwrite.  Init keeps a descriptor of each (it gets it from whoever opens the file, and it
outlives every task); any other process that has to read or write opens init's descriptor
again, through /proc, the first time it needs to, and keeps its own.  So every process reaches
every file, whoever opened it, also when its name is gone.

A file that the host does not read or write is an I/O error of that file: -EIO, or -ENOSPC.

Locks: inode_lock for the list of inodes and for i_count at 0; a leaf.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EDQUOT, EFBIG, EINTR, EIO, ENOSPC, errno
from cython.cimports.libc.string import memset


def a_ops_of(kind):
    """The operations of a kind of file, in this process's table."""
    return addressof(a_ops_table[kind])


def a_ops(mapping):
    """The operations of a mapping."""
    return a_ops_of(mapping.a_ops)


# ---- the host's files --------------------------------------------------------

def init_os_pid():
    """The host's pid of init; 0 when there is none."""
    k = kernel()
    for cpu in range(1, k.max_tasks):
        task = addressof(k.tasks[cpu])
        if task.pid == 1 and smp_load_acquire32(addressof(task.state)) == TASK_RUNNING:
            return task.os_pid
    return 0


def host_fd_install(id, fd):
    """Takes over a descriptor of the file of inode `id` for this process, until another file
    wants its place."""
    global nr_host_files
    entry = addressof(host_files[id % HOST_FILES])
    if entry.id != 0:
        close(entry.fd)
    else:
        nr_host_files += 1
        # For those who look for leaks: these are none.
        WRITE_ONCE32(addressof(current().nr_host_files), nr_host_files)
    entry.id = id
    entry.fd = fd


def host_fd(inode):
    """This process's descriptor of an inode's file; -EIO when it cannot be opened."""
    while True:
        # Acquire: who sees a new id opens the descriptor that came with it (register_host_file).
        id = smp_load_acquire64(addressof(inode.i_id))
        entry = addressof(host_files[id % HOST_FILES])
        if entry.id == id:
            return entry.fd
        snprintf(path, 64, b"/proc/%d/fd/%d", init_os_pid(), cast(i32, READ_ONCE32(addressof(inode.i_host_fd))))
        fd = host_open(path, (O_RDWR if READ_ONCE32(addressof(inode.i_writable)) else O_RDONLY) | O_CLOEXEC)
        # Init may just be taking a descriptor that may write, and with the next request closes the old one,
        # whose number is another file's then.  What we have opened is this file's, and the id's, only
        # if the id still is the same.
        smp_rmb()
        if READ_ONCE64(addressof(inode.i_id)) == id:
            break
        if fd >= 0:
            close(fd)
    if fd < 0:
        return -EIO
    host_fd_install(id, fd)
    return fd


def host_read(inode, to, count, offset):
    """Reads from the host file; what lies behind its end reads as zeros.  Returns 0 or -EIO."""
    fd = host_fd(inode)
    if fd < 0:
        return fd
    while count > 0:
        done = pread(fd, to, count, offset)
        if done == 0:
            memset(to, 0, count)
            return 0
        if done < 0:
            if errno == EINTR:
                continue
            return -EIO
        to = cast(pointer(char), to) + done
        offset += done
        count -= done
    return 0


def host_write(inode, source, count, offset):
    """Writes to the host file.  Returns 0, -ENOSPC (also for a quota, or a limit of the file's
    size) or -EIO."""
    fd = host_fd(inode)
    if fd < 0:
        return fd
    while count > 0:
        done = pwrite(fd, source, count, offset)
        if done < 0:
            if errno == EINTR:
                continue
            return -ENOSPC if errno == ENOSPC or errno == EDQUOT or errno == EFBIG else -EIO
        source = cast(pointer(char), source) + done
        offset += done
        count -= done
    return 0


def host_truncate(inode, length):
    """ftruncate(2) of the host file.  Returns 0 or the host's negative errno."""
    fd = host_fd(inode)
    if fd < 0:
        return fd
    while ftruncate(fd, length) != 0:
        if errno != EINTR:
            return -errno
    return 0


def host_sync(inode):
    """Brings what was written to the host file to its disk.  Returns 0, -ENOSPC or -EIO."""
    fd = host_fd(inode)
    if fd < 0:
        return fd
    while fdatasync(fd) != 0:
        if errno != EINTR:
            return -ENOSPC if errno == ENOSPC or errno == EDQUOT else -EIO
    return 0


# ---- inodes ------------------------------------------------------------------

def inode_alloc(kind, size):
    """A new inode of that kind (AOPS_*), without a host file and with one use, in no list;
    NULL without memory."""
    k = kernel()
    inode = cast(pointer(Inode), kmem_cache_alloc(k.inode_cachep))
    if inode != NULL:
        inode.i_data.host = inode
        inode.i_data.a_ops = kind
        inode.i_id = atomic_add_return64(addressof(k.next_inode_id), 1)
        inode.i_size = size
        inode.i_count = 1
        inode.i_host_fd = -1
        inode.i_blkbits = PAGE_SHIFT
    return inode


def inode_free(inode):
    """Frees an inode without pages that is in no list any more, when nobody can be looking at its
    tree_lock: who has just taken the last page out gives that back."""
    VM_BUG_ON(inode.i_data.nrpages != 0 or inode.i_data.page_tree.rnode != NULL)
    VM_BUG_ON(inode.i_data.i_mmap.rb_node != NULL)
    call_rcu(addressof(inode.rcu), kernel().inode_cachep, inode)


def inode_hash(inode):
    """Enters a new inode in the list.  Takes inode_lock."""
    k = kernel()
    spin_lock(addressof(k.inode_lock))
    list_add_tail(addressof(inode.i_list), addressof(k.inodes))
    spin_unlock(addressof(k.inode_lock))


def ilookup(dev, ino):
    """The inode of a host file; NULL when there is none.  Holds inode_lock."""
    k = kernel()
    node = k.inodes.next
    while node != addressof(k.inodes):
        inode = list_entry_inode(node)
        if inode.i_ino == ino and inode.i_dev == dev and inode.i_host_fd >= 0:
            return inode
        node = node.next
    return NULL


# ---- errors of writing back ----------------------------------------------------

def mapping_set_error(mapping, error):
    """Notes that writing a page back failed; msync and fsync will tell, once."""
    if error != 0:
        flag = AS_ENOSPC if error == -ENOSPC else AS_EIO
        fetch_or64(addressof(mapping.flags), cast(u64, 1) << flag)


def filemap_check_errors(mapping):
    """What mapping_set_error noted since it was last asked: 0, -ENOSPC or -EIO."""
    both = cast(u64, 1) << AS_ENOSPC | cast(u64, 1) << AS_EIO
    if not READ_ONCE64(addressof(mapping.flags)) & both:
        return 0
    seen = fetch_and64(addressof(mapping.flags), ~both)
    if seen & (cast(u64, 1) << AS_EIO):
        return -EIO
    return -ENOSPC if seen & (cast(u64, 1) << AS_ENOSPC) else 0
