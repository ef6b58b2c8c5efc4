# SPDX-License-Identifier: GPL-2.0-only
# Open files and descriptors.  May use: truncate and below.

cimport cython
from shmkern.truncate cimport *

cdef bint file_may_write(File* file) noexcept nogil
@cython.locals(tagged=bint)
cdef bint mapping_has_dirt(AddressSpace* mapping) noexcept nogil
cdef void iput(Inode* inode) noexcept nogil
cdef void evict_inode(Inode* inode) noexcept nogil
cdef int host_fds_in_use(int* fds, int room) noexcept nogil
cdef File* file_alloc(Inode* inode, u32 flags) noexcept nogil
cdef void fput(File* file) noexcept nogil
cdef File* shmem_file_setup(u64 size) noexcept nogil
cdef FilesStruct* files_alloc() noexcept nogil
cdef FilesStruct* dup_files(FilesStruct* files) noexcept nogil
cdef void put_files_struct(FilesStruct* files) noexcept nogil
cdef void exit_files(Task* task) noexcept nogil
cdef int fd_install(FilesStruct* files, File* file) noexcept nogil
cdef File* fget(int fd) noexcept nogil
cdef int do_close(int fd) noexcept nogil
@cython.locals(inode=pointer_to_inode, new=pointer_to_inode)
cdef int register_host_file(u64 dev, u64 ino, u64 size, u32 kind, u32 blkbits, int fd, bint writable) noexcept nogil
@cython.locals(file=pointer_to_file, inode=pointer_to_inode)
cdef int do_open(u64 dev, u64 ino, u32 flags, u32 kind, u32 blkbits, u64* id) noexcept nogil
cdef int vfs_fsync_range(AddressSpace* mapping, u64 start, u64 end) noexcept nogil
cdef int do_fsync(int fd) noexcept nogil
cdef int do_ftruncate(int fd, u64 size) noexcept nogil
@cython.locals(wbc=WritebackControl)
cdef i64 writeback_inode(Inode* inode, i64 nr_to_write) noexcept nogil
cdef Inode* next_inode(u64 id) noexcept nogil
@cython.locals(id=u64)
cdef i64 writeback_inodes(i64 nr_to_write) noexcept nogil

ctypedef Inode* pointer_to_inode
ctypedef File* pointer_to_file
