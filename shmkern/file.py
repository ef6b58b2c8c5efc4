# SPDX-License-Identifier: GPL-2.0-only
"""Open files: descriptors, the life of a file and its inode, fsync, and the flusher's round
(fs/file_table.c, fs/open.c, fs/sync.c, fs/fs-writeback.c).

An inode stays as long as a file of it is open or mapped, or has bytes that could not be
written yet.  With the last use its dirty pages are written and all its pages given up, so
that who opens the file again finds what the host has.

Locks: i_mutex, then those of truncate.  file_lock and inode_lock are leaves.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EBADF, EBUSY, EINVAL, EMFILE, ENOMEM, ENXIO, ETXTBSY


def file_may_write(file):
    """Whether it was opened for writing (FMODE_WRITE)."""
    return (file.f_flags & O_ACCMODE) != O_RDONLY


# ---- inodes ------------------------------------------------------------------

def mapping_has_dirt(mapping):
    """Whether a file has pages that are still to be written to it: now, without tree_lock."""
    # The root of the tree may be replaced, or go with the last page.
    rcu_read_lock()
    # Dirty twice: what reclaim was writing at the first look, and could not write, may be dirty again at the
    # second.  (A page always has the tag that it gets before it loses the other.)
    tagged = radix_tree_tagged(addressof(mapping.page_tree), PAGECACHE_TAG_DIRTY) or \
        radix_tree_tagged(addressof(mapping.page_tree), PAGECACHE_TAG_WRITEBACK) or \
        radix_tree_tagged(addressof(mapping.page_tree), PAGECACHE_TAG_DIRTY)
    rcu_read_unlock()
    return tagged and a_ops(mapping).writepage != NULL


def iput(inode):
    """Drops a use of an inode.  The last one writes its pages back and frees it; if some cannot be
    written it stays, and the flusher tries again.  May sleep."""
    k = kernel()
    mapping = addressof(inode.i_data)
    failed = 0
    spin_lock(addressof(k.inode_lock))
    while inode.i_count == 1 and mapping_has_dirt(mapping) and not failed:
        spin_unlock(addressof(k.inode_lock))
        # While we still have our use.  Who opened it will not ask any more how that went.
        failed = filemap_write_and_wait(mapping)
        spin_lock(addressof(k.inode_lock))
    inode.i_count -= 1
    gone = 0
    if inode.i_count == 0 and not mapping_has_dirt(mapping):
        gone = 1
        list_del(addressof(inode.i_list))
    spin_unlock(addressof(k.inode_lock))
    if gone:
        evict_inode(inode)


def evict_inode(inode):
    """Frees an inode that nobody can find any more, with its pages and their policies."""
    truncate_inode_pages(addressof(inode.i_data), 0)
    mpol_free_shared_policy(addressof(inode.i_policy))
    inode_free(inode)


def register_host_file(dev, ino, size, kind, blkbits, fd, writable):
    """Makes a host file known, for which init has the descriptor `fd`, or gives it a descriptor
    that may write.  Run by init.  Returns 1 when it keeps `fd`, 0 when it need not, -ENOMEM, or
    -ETXTBSY when it is to be written and is a swap area."""
    k = kernel()
    if writable and is_swap_file(dev, ino):
        return -ETXTBSY
    new = inode_alloc(kind, size)
    if new == NULL:
        return -ENOMEM
    spin_lock(addressof(k.inode_lock))
    inode = ilookup(dev, ino)
    taken = 0
    if inode == NULL:
        taken = 1
        new.i_dev = dev
        new.i_ino = ino
        new.i_host_fd = fd
        new.i_writable = writable
        new.i_blkbits = blkbits
        # Until somebody opens it.
        new.i_count = 0
        list_add_tail(addressof(new.i_list), addressof(k.inodes))
        new = NULL
    elif writable and not inode.i_writable:
        taken = 1
        # Marked: host_fd looks without the lock.
        WRITE_ONCE32(addressof(inode.i_host_fd), fd)
        WRITE_ONCE32(addressof(inode.i_writable), 1)
        # Whoever has the old descriptor under the old id opens the new one.
        smp_store_release64(addressof(inode.i_id), new.i_id)
    spin_unlock(addressof(k.inode_lock))
    if new != NULL:
        inode_free(new)
    return taken


def host_fds_in_use(fds, room):
    """Fills `fds` with init's descriptors of all inodes, up to `room` of them.  Returns how many there
    are.  Takes inode_lock."""
    k = kernel()
    count = 0
    spin_lock(addressof(k.inode_lock))
    node = k.inodes.next
    while node != addressof(k.inodes):
        inode = list_entry_inode(node)
        if inode.i_host_fd >= 0:
            if count < room:
                fds[count] = inode.i_host_fd
            count += 1
        node = node.next
    spin_unlock(addressof(k.inode_lock))
    return count


# ---- files -------------------------------------------------------------------

def file_alloc(inode, flags):
    """An open file with one reference, over a use of the inode that it takes over; NULL without
    memory, and then the use is still the caller's."""
    file = cast(pointer(File), kmem_cache_alloc(kernel().filp_cachep))
    if file != NULL:
        file.f_count = 1
        file.f_flags = flags
        file.f_mapping = addressof(inode.i_data)
    return file


def fput(file):
    """Drops a reference to an open file; the last one closes it.  May sleep."""
    if file != NULL and atomic_add_return32(addressof(file.f_count), -1) == 0:
        iput(file.f_mapping.host)
        kmem_cache_free(kernel().filp_cachep, file)


def shmem_file_setup(size):
    """The file behind shared anonymous memory of `size` bytes; NULL without memory."""
    inode = inode_alloc(AOPS_SHMEM, size)
    if inode == NULL:
        return NULL
    file = file_alloc(inode, O_RDWR)
    if file == NULL:
        inode_free(inode)
        return NULL
    inode_hash(inode)
    return file


# ---- descriptors -------------------------------------------------------------

def files_alloc():
    """An empty descriptor table with one user; NULL without memory."""
    files = cast(pointer(FilesStruct), kmem_cache_alloc(kernel().files_cachep))
    if files != NULL:
        files.count = 1
    return files


def dup_files(files):
    """A copy of a descriptor table, for a fork; NULL without memory.  Takes file_lock."""
    copy = files_alloc()
    if copy != NULL:
        spin_lock(addressof(files.file_lock))
        for fd in range(NR_OPEN):
            get_file(files.fd[fd])
            copy.fd[fd] = files.fd[fd]
        spin_unlock(addressof(files.file_lock))
    return copy


def put_files_struct(files):
    """Drops a use of a descriptor table; the last one closes what is open.  May sleep."""
    if atomic_add_return32(addressof(files.count), -1) == 0:
        for fd in range(NR_OPEN):
            fput(files.fd[fd])
        kmem_cache_free(kernel().files_cachep, files)


def exit_files(task):
    """Takes the descriptor table off a task.  May sleep."""
    files = task.files
    task.files = NULL
    if files != NULL:
        put_files_struct(files)


def fd_install(files, file):
    """Enters a file at the lowest free descriptor, with the caller's reference.  Returns it, or
    -EMFILE and the reference is still the caller's.  Takes file_lock."""
    found = -EMFILE
    spin_lock(addressof(files.file_lock))
    for fd in range(NR_OPEN):
        if files.fd[fd] == NULL:
            files.fd[fd] = file
            found = fd
            break
    spin_unlock(addressof(files.file_lock))
    return found


def fget(fd):
    """The current task's open file, with a reference taken; NULL when `fd` is none."""
    files = current().files
    if fd < 0 or fd >= NR_OPEN:
        return NULL
    spin_lock(addressof(files.file_lock))
    file = files.fd[fd]
    get_file(file)
    spin_unlock(addressof(files.file_lock))
    return file


def do_close(fd):
    """close(2).  Returns 0 or -EBADF.  May sleep."""
    files = current().files
    if fd < 0 or fd >= NR_OPEN:
        return -EBADF
    spin_lock(addressof(files.file_lock))
    file = files.fd[fd]
    files.fd[fd] = NULL
    spin_unlock(addressof(files.file_lock))
    if file == NULL:
        return -EBADF
    fput(file)
    return 0


def do_open(dev, ino, flags, kind, blkbits, id):
    """Opens a host file that init knows; leaves in *id what processes know their descriptor of it
    by.  `kind` may be AOPS_NONE: whatever it is.  Returns a descriptor; -ENXIO when init does not
    know the file, or not for writing; -EBUSY when it is open as another kind; -EMFILE, -ENOMEM."""
    k = kernel()
    spin_lock(addressof(k.inode_lock))
    inode = ilookup(dev, ino)
    rc = 0
    if inode == NULL or ((flags & O_ACCMODE) != O_RDONLY and not inode.i_writable):
        rc = -ENXIO
    elif kind != AOPS_NONE and (kind != inode.i_data.a_ops or blkbits != inode.i_blkbits):
        rc = -EBUSY
    else:
        inode.i_count += 1
        id[0] = inode.i_id
    spin_unlock(addressof(k.inode_lock))
    if rc != 0:
        return rc
    file = file_alloc(inode, flags)
    if file == NULL:
        iput(inode)
        return -ENOMEM
    rc = fd_install(current().files, file)
    if rc < 0:
        fput(file)
    return rc


# ---- fsync, ftruncate ----------------------------------------------------------

def vfs_fsync_range(mapping, start, end):
    """Brings the pages `start` to `end` of a file to its disk.  Returns 0, -EIO or -ENOSPC, which is
    told once.  May sleep."""
    rc = filemap_write_and_wait_range(mapping, start, end)
    if mapping.host.i_host_fd >= 0 and a_ops(mapping).writepage != NULL:
        synced = host_sync(mapping.host)
        if rc == 0:
            rc = synced
    return rc


def do_fsync(fd):
    """fsync(2).  Returns 0, -EBADF, -EIO or -ENOSPC.  Takes i_mutex."""
    file = fget(fd)
    if file == NULL:
        return -EBADF
    inode = file.f_mapping.host
    down_write(addressof(inode.i_mutex))
    rc = vfs_fsync_range(file.f_mapping, 0, RADIX_TREE_MAX_INDEX)
    up_write(addressof(inode.i_mutex))
    fput(file)
    return rc


def do_ftruncate(fd, size):
    """ftruncate(2).  Returns 0, -EBADF, -EINVAL (not open for writing, or too large), or what the
    host says.  Takes i_mutex."""
    if size > RADIX_TREE_MAX_INDEX << PAGE_SHIFT:
        return -EINVAL
    file = fget(fd)
    if file == NULL:
        return -EBADF
    inode = file.f_mapping.host
    rc = -EINVAL
    if file_may_write(file):
        down_write(addressof(inode.i_mutex))
        rc = do_truncate(inode, size)
        up_write(addressof(inode.i_mutex))
    fput(file)
    return rc


# ---- the flusher ---------------------------------------------------------------

def writeback_inode(inode, nr_to_write):
    """Writes up to that many dirty pages of an inode, from where the last round ended.  Returns how
    many were written.  May sleep."""
    mapping = addressof(inode.i_data)
    wbc.sync_mode = WB_SYNC_NONE
    wbc.nr_to_write = nr_to_write
    wbc.range_start = mapping.writeback_index
    wbc.range_end = RADIX_TREE_MAX_INDEX
    write_cache_pages(mapping, addressof(wbc))
    # From the front again when the end was reached.
    mapping.writeback_index = wbc.range_start if wbc.nr_to_write <= 0 else 0
    return nr_to_write - wbc.nr_to_write


def next_inode(id):
    """An inode with an id above `id`, the lowest there is, with a use taken; NULL at the end.
    Takes inode_lock."""
    k = kernel()
    found = cast(pointer(Inode), NULL)
    spin_lock(addressof(k.inode_lock))
    node = k.inodes.next
    while node != addressof(k.inodes):
        inode = list_entry_inode(node)
        if inode.i_id > id and (found == NULL or inode.i_id < found.i_id):
            found = inode
        node = node.next
    if found != NULL:
        found.i_count += 1
    spin_unlock(addressof(k.inode_lock))
    return found


def writeback_inodes(nr_to_write):
    """One round over all files: up to that many dirty pages of each.  Returns how many were written.
    May sleep."""
    written = cast(i64, 0)
    id = 0
    while True:
        inode = next_inode(id)
        if inode == NULL:
            return written
        id = inode.i_id
        if mapping_has_dirt(addressof(inode.i_data)):
            written += writeback_inode(inode, nr_to_write)
        iput(inode)
