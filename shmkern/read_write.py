# SPDX-License-Identifier: GPL-2.0-only
"""Reading and writing open files through the page cache (fs/read_write.c, and of mm/filemap.c
do_generic_file_read and generic_perform_write).

There is one page cache, so what is written is what mappings show, and the other way round.  A
read holds a reference to a page while it copies, and a write its lock: neither lets migration
take the page away in the middle.

The program's memory may have to be faulted in, and may even be a mapping of the page that is
being written.  So a write never faults with a page locked: it touches the memory first, and copies
what is there under the lock.  When that is nothing, because somebody has taken the page away
again, it copies from a page that it holds: where memory is as short as that (a control group at
its limit), making room for the file's page may take away the program's, and the other way round,
again and again.

Locks: i_mutex for a write; then mmap_sem, in faults; PG_locked.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EBADF, EFAULT, EFBIG, EINVAL, ENOMEM
from cython.cimports.libc.string import memset


# ---- reading -----------------------------------------------------------------

def find_uptodate_page(mapping, index, out):
    """The page at an index, read if it has to be, in *out, with a reference.  Returns 0, -ENOMEM
    or -EIO.  May sleep."""
    out[0] = find_get_page(mapping, index)
    if out[0] != NULL:
        if PageUptodate(out[0]):
            return 0
        put_page(out[0])
    rc = lock_uptodate_page(mapping, index, out, False)
    if rc == 0:
        unlock_page(out[0])
    return rc


def generic_file_read(file, buf, count, pos):
    """Copies up to `count` bytes from `pos` on to the program's `buf`.  Returns how many, 0 at the end
    of the file; or -EFAULT, -ENOMEM or -EIO when there are none.  May sleep."""
    mapping = file.f_mapping
    prev_pos = READ_ONCE64(addressof(file.f_prev_pos))
    done = 0
    while done < count and pos < READ_ONCE64(addressof(mapping.host.i_size)):
        page = NULL
        rc = find_uptodate_page(mapping, pos >> PAGE_SHIFT, addressof(page))
        if rc != 0:
            return done if done else rc
        # The size again: the file may have become shorter, and the page be zeros.  Acquire: the bytes
        # before a new end were there first, see extend_file.
        size = smp_load_acquire64(addressof(mapping.host.i_size))
        offset = pos & (PAGE_SIZE - 1)
        part = min(min(PAGE_SIZE - offset, count - done), size - pos if size > pos else 0)
        # Who goes on in the middle of a page is still at the same use of it.
        if offset == 0 or pos != prev_pos:
            mark_page_accessed(page)
        # May fault; the page is not locked.
        left = copy_out_some(buf + done, cast(pointer(char), page_address(page)) + offset, part)
        put_page(page)
        done += part - left
        pos += part - left
        if left != 0:
            return done if done else -EFAULT
    return done


# ---- writing -----------------------------------------------------------------

def extend_file(inode, end):
    """Moves the end of a file to `end`, if it lies before.  Returns 0 or the host's negative errno.
    Holds i_mutex, and the page before the new end, which has its bytes already: readers take no
    lock."""
    rc = 0
    if end > inode.i_size:
        # The host first, as in do_truncate.
        rc = host_truncate(inode, end)
        if rc == 0:
            smp_store_release64(addressof(inode.i_size), end)
    return rc


def forget_behind_end(mapping, page):
    """Takes back what was written behind the end of a file that could not become longer: it would be
    there when somebody else makes the file longer.  Holds i_mutex; the page is locked."""
    start = page.index << PAGE_SHIFT
    size = mapping.host.i_size
    if start >= size:
        truncate_complete_page(mapping, page)
    elif size - start < PAGE_SIZE:
        memset(cast(pointer(char), page_address(page)) + (size - start), 0, PAGE_SIZE - (size - start))


def write_into_page(mapping, buf, count, pos):
    """Copies `count` bytes, which lie within one page of the file, from the program's `buf` to it, and
    moves the file's end if they lie behind.  Returns how many were copied: fewer, or none, when a
    page of the program's is not there (any more); or -ENOMEM, -EIO, or what the host says to the new
    end.  Holds i_mutex; sleeps."""
    page = NULL
    rc = lock_uptodate_page(mapping, pos >> PAGE_SHIFT, addressof(page), False)
    if rc != 0:
        return rc
    copied = 0
    # Dirty before it is written, and locked until it is: nobody cleans it in between.
    rc = make_page_writable(page)
    if rc == 0:
        to = cast(pointer(char), page_address(page)) + (pos & (PAGE_SIZE - 1))
        copied = count - copy_in_inatomic(to, buf, count)
        if copied:
            rc = extend_file(mapping.host, pos + copied)
        mark_page_accessed(page)
        if rc != 0:
            forget_behind_end(mapping, page)
    unlock_page(page)
    put_page(page)
    return rc if rc != 0 else copied


def hold_user_page(address, rc):
    """The page of the program's at `address`, with a reference; NULL with -EFAULT or -ENOMEM in *rc.
    Takes mmap_sem; sleeps."""
    mm = current().mm
    page = cast(pointer(Page), NULL)
    rc[0] = -EFAULT
    down_read(addressof(mm.mmap_sem))
    vma = find_vma(mm, address)
    if vma != NULL and address >= vma.vm_start and not access_error(vma, False):
        page = get_user_page(vma, address, False, rc)
    up_read(addressof(mm.mmap_sem))
    return page


def write_from_held_page(mapping, buf, count, pos):
    """write_into_page from one page of the program's, which is held meanwhile, so that a byte is copied at
    least.  Returns as that, and -EFAULT.  Not with KERNEL_DS, where nothing can be gone."""
    me = current()
    rc = 0
    source = hold_user_page(buf, addressof(rc))
    if source == NULL:
        return rc
    offset = buf & (PAGE_SIZE - 1)
    me.addr_limit = KERNEL_DS
    copied = write_into_page(mapping, cast(u64, page_address(source)) + offset, min(count, PAGE_SIZE - offset), pos)
    me.addr_limit = USER_DS
    put_page(source)
    return copied


def generic_perform_write(mapping, buf, count, pos):
    """Copies `count` bytes from the program's `buf` into the file from `pos` on.  Returns how many; or
    -EFAULT, or as write_into_page, when there are none.  Holds i_mutex; sleeps."""
    done = 0
    while done < count:
        part = min(PAGE_SIZE - (pos & (PAGE_SIZE - 1)), count - done)
        if fault_in_readable(buf + done, part) != 0:
            return done if done else -EFAULT
        rc = write_into_page(mapping, buf + done, part, pos)
        if rc == 0:
            # What was faulted in has gone again.
            rc = write_from_held_page(mapping, buf + done, part, pos)
        if rc < 0:
            return done if done else rc
        done += rc
        pos += rc
    return done


def generic_file_write(mapping, buf, count, pos):
    """generic_perform_write, within the bounds of a file, and behind its end with zeros in between.
    Returns as that, and -EFBIG.  Takes i_mutex."""
    inode = mapping.host
    limit = cast(u64, RADIX_TREE_MAX_INDEX) << PAGE_SHIFT
    if count == 0:
        return 0
    if pos >= limit:
        return -EFBIG
    down_write(addressof(inode.i_mutex))
    if pos > inode.i_size:
        # What programs stored behind the end in the last page was never part of the file.
        zero_tail(mapping, inode.i_size)
    rc = generic_perform_write(mapping, buf, min(count, limit - pos), pos)
    up_write(addressof(inode.i_mutex))
    return rc


# ---- system calls ------------------------------------------------------------

def vfs_read(file, buf, count, pos):
    """Reads from an open file, of which the caller has a reference.  Returns how many bytes were read,
    -EBADF (it is open for writing only), -EFAULT, -ENOMEM or -EIO."""
    if file.f_flags & O_ACCMODE == O_WRONLY:
        return -EBADF
    rc = generic_file_read(file, buf, min(count, cast(u64, MAX_RW_COUNT)), pos)
    if rc > 0:
        WRITE_ONCE64(addressof(file.f_prev_pos), pos + rc)
    return rc


def vfs_write(file, buf, count, pos):
    """Writes to an open file, of which the caller has a reference.  Returns how many bytes were written,
    -EBADF (it is open for reading only), -EFBIG, -EFAULT, -ENOMEM, -EIO, or what the host says to the
    file's new end."""
    if not file_may_write(file):
        return -EBADF
    return generic_file_write(file.f_mapping, buf, min(count, cast(u64, MAX_RW_COUNT)), pos)


def do_pread(fd, buf, count, pos):
    """pread(2).  Returns as vfs_read, -EBADF also when there is no such file, and -EINVAL."""
    if pos < 0:
        return -EINVAL
    file = fget(fd)
    if file == NULL:
        return -EBADF
    rc = vfs_read(file, buf, count, pos)
    fput(file)
    return rc


def do_pwrite(fd, buf, count, pos):
    """pwrite(2).  Returns as vfs_write, -EBADF also when there is no such file, and -EINVAL."""
    if pos < 0:
        return -EINVAL
    file = fget(fd)
    if file == NULL:
        return -EBADF
    rc = vfs_write(file, buf, count, pos)
    fput(file)
    return rc


def do_read(fd, buf, count):
    """read(2): vfs_read from the file's position on, which moves.  (Two tasks that share the file may
    read the same bytes, as in 2.6.30.)"""
    file = fget(fd)
    if file == NULL:
        return -EBADF
    pos = cast(i64, READ_ONCE64(addressof(file.f_pos)))
    rc = vfs_read(file, buf, count, pos)
    if rc > 0:
        WRITE_ONCE64(addressof(file.f_pos), pos + rc)
    fput(file)
    return rc


def do_write(fd, buf, count):
    """write(2): vfs_write at the file's position, which moves."""
    file = fget(fd)
    if file == NULL:
        return -EBADF
    pos = cast(i64, READ_ONCE64(addressof(file.f_pos)))
    rc = vfs_write(file, buf, count, pos)
    if rc > 0:
        WRITE_ONCE64(addressof(file.f_pos), pos + rc)
    fput(file)
    return rc


def do_lseek(fd, offset, whence):
    """lseek(2) with SEEK_SET, SEEK_CUR or SEEK_END.  Returns the new position, -EBADF or -EINVAL."""
    file = fget(fd)
    if file == NULL:
        return -EBADF
    base = cast(i64, 0)
    if whence == SEEK_CUR:
        base = cast(i64, READ_ONCE64(addressof(file.f_pos)))
    elif whence == SEEK_END:
        base = cast(i64, READ_ONCE64(addressof(file.f_mapping.host.i_size)))
    limit = cast(i64, RADIX_TREE_MAX_INDEX) << PAGE_SHIFT
    rc = cast(i64, -EINVAL)
    if SEEK_SET <= whence <= SEEK_END and -base <= offset <= limit - base:
        rc = base + offset
        WRITE_ONCE64(addressof(file.f_pos), rc)
    fput(file)
    return rc
