# SPDX-License-Identifier: GPL-2.0-only
# Inodes, their operations, and the host files behind them.  May use: radix_tree and below.

cimport cython
from shmkern.lists cimport *
from shmkern.radix_tree cimport *

# Kinds of files: numbers in AddressSpace.a_ops.  fs.py says what each can do.
cdef enum:
    AOPS_NONE = 0
    AOPS_PAGE = 1              # migrate_page
    AOPS_BUFFER = 2            # buffer heads, buffer_migrate_page
    AOPS_FALLBACK = 3          # buffer heads, no migratepage
    AOPS_RAMFS = 4             # neither migratepage nor writepage
    AOPS_FIXED = 5             # fail_migrate_page
    AOPS_SHMEM = 6             # shared anonymous memory
    AOPS_SWAP = 7              # the swap cache
    NR_AOPS = 16

# How much of a mapping shall be written (include/linux/writeback.h).
cdef enum:
    WB_SYNC_NONE = 0           # skip what is busy
    WB_SYNC_ALL = 1            # wait for it

cdef struct WritebackControl:
    int sync_mode
    i64 nr_to_write
    u64 range_start            # page indices, both included
    u64 range_end

# A function pointer would mean nothing in another process, so an address_space has a number
# and each process a table; a function is NULL where that kind of file has none.
# (include/linux/fs.h; Linux's readpage takes the file as well.)
cdef struct AddressSpaceOperations:
    int (*readpage)(AddressSpace* mapping, Page* page) noexcept nogil
    int (*writepage)(Page* page, WritebackControl* wbc) noexcept nogil
    bint (*set_page_dirty)(Page* page) noexcept nogil
    int (*page_mkwrite)(Page* page) noexcept nogil
    bint (*releasepage)(Page* page, u64 gfp) noexcept nogil
    void (*invalidatepage)(Page* page, u64 offset) noexcept nogil
    int (*migratepage)(AddressSpace* mapping, Page* newpage, Page* page) noexcept nogil
    bint account_dirty         # bdi_cap_account_dirty: dirty pages are on their way to a file

cdef AddressSpaceOperations a_ops_table[16]     # NR_AOPS

# This process's own descriptors of host files: a cache, by the inode's id.
cdef enum:
    HOST_FILES = 256

cdef struct HostFile:
    u64 id
    int fd

cdef HostFile host_files[256]      # HOST_FILES
cdef u32 nr_host_files             # of them in use

cdef extern from "<fcntl.h>" nogil:
    int host_open "open"(const char* path, int flags)
    const int O_RDONLY
    const int O_WRONLY
    const int O_RDWR
    const int O_ACCMODE
    const int O_CLOEXEC

cdef extern from "<unistd.h>" nogil:
    i64 pread(int fd, void* to, u64 count, i64 offset)
    i64 pwrite(int fd, const void* source, u64 count, i64 offset)
    int close(int fd)
    int ftruncate(int fd, i64 length)
    int fdatasync(int fd)

cdef extern from "<stdio.h>" nogil:
    int snprintf(char* to, u64 size, const char* form, int pid, int fd)

cdef AddressSpaceOperations* a_ops_of(u32 kind) noexcept nogil
cdef AddressSpaceOperations* a_ops(AddressSpace* mapping) noexcept nogil

cdef inline u64 i_size_pages(Inode* inode) noexcept nogil:
    return (READ_ONCE64(&inode.i_size) + PAGE_SIZE - 1) >> PAGE_SHIFT

cdef i32 init_os_pid() noexcept nogil
cdef void host_fd_install(u64 id, int fd) noexcept nogil
@cython.locals(path=path_t, fd=cython.int, id=u64)
cdef int host_fd(Inode* inode) noexcept nogil
cdef int host_read(Inode* inode, void* to, u64 count, u64 offset) noexcept nogil
cdef int host_write(Inode* inode, const void* source, u64 count, u64 offset) noexcept nogil
cdef int host_truncate(Inode* inode, u64 length) noexcept nogil
cdef int host_sync(Inode* inode) noexcept nogil
cdef Inode* inode_alloc(u32 kind, u64 size) noexcept nogil
cdef void inode_free(Inode* inode) noexcept nogil
cdef Inode* ilookup(u64 dev, u64 ino) noexcept nogil
cdef void inode_hash(Inode* inode) noexcept nogil
cdef void mapping_set_error(AddressSpace* mapping, int error) noexcept nogil
cdef int filemap_check_errors(AddressSpace* mapping) noexcept nogil

ctypedef char path_t[64]
