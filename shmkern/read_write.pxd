# SPDX-License-Identifier: GPL-2.0-only
# Reading and writing open files.  May use: uaccess and below.

cimport cython
from shmkern.uaccess cimport *

cdef enum:
    SEEK_SET = 0
    SEEK_CUR = 1
    SEEK_END = 2
    MAX_RW_COUNT = 0x7ffff000  # what one call reads or writes at most (fs/read_write.c)

cdef int find_uptodate_page(AddressSpace* mapping, u64 index, Page** out) noexcept nogil
@cython.locals(done=u64, part=u64, left=u64, size=u64, prev_pos=u64, page=pointer_to_page)
cdef i64 generic_file_read(File* file, u64 buf, u64 count, u64 pos) noexcept nogil
cdef int extend_file(Inode* inode, u64 end) noexcept nogil
cdef void forget_behind_end(AddressSpace* mapping, Page* page) noexcept nogil
@cython.locals(page=pointer_to_page, copied=u64, rc=cython.int)
cdef i64 write_into_page(AddressSpace* mapping, u64 buf, u64 count, u64 pos) noexcept nogil
cdef Page* hold_user_page(u64 address, int* rc) noexcept nogil
@cython.locals(rc=cython.int, offset=u64)
cdef i64 write_from_held_page(AddressSpace* mapping, u64 buf, u64 count, u64 pos) noexcept nogil
@cython.locals(done=u64, part=u64, rc=i64)
cdef i64 generic_perform_write(AddressSpace* mapping, u64 buf, u64 count, u64 pos) noexcept nogil
cdef i64 generic_file_write(AddressSpace* mapping, u64 buf, u64 count, u64 pos) noexcept nogil
cdef i64 vfs_read(File* file, u64 buf, u64 count, i64 pos) noexcept nogil
cdef i64 vfs_write(File* file, u64 buf, u64 count, i64 pos) noexcept nogil
cdef i64 do_pread(int fd, u64 buf, u64 count, i64 pos) noexcept nogil
cdef i64 do_pwrite(int fd, u64 buf, u64 count, i64 pos) noexcept nogil
cdef i64 do_read(int fd, u64 buf, u64 count) noexcept nogil
cdef i64 do_write(int fd, u64 buf, u64 count) noexcept nogil
cdef i64 do_lseek(int fd, i64 offset, int whence) noexcept nogil
