# SPDX-License-Identifier: GPL-2.0-only
# Buffer heads: the blocks of a file in a page.  May use: writeback and below.

cimport cython
from shmkern.writeback cimport *

# Bits of b_state (include/linux/buffer_head.h).
cdef enum:
    BH_Uptodate = 0
    BH_Dirty = 1
    BH_Lock = 2
    BH_Async_Write = 3         # locked to be written by block_write_full_page
    BH_Write_EIO = 4           # the last try to write it failed
    BH_Waiters = 5             # somebody sleeps on its lock

cdef inline bint test_bh(BufferHead* bh, int bit) noexcept nogil:
    return (READ_ONCE64(&bh.b_state) >> bit & 1) != 0

cdef inline void set_bh(BufferHead* bh, int bit) noexcept nogil:
    fetch_or64(&bh.b_state, <u64>1 << bit)

cdef inline bint test_clear_bh(BufferHead* bh, int bit) noexcept nogil:
    return (fetch_and64(&bh.b_state, ~(<u64>1 << bit)) >> bit & 1) != 0

cdef inline bint page_has_buffers(Page* page) noexcept nogil:
    return PagePrivate(page)

cdef inline BufferHead* page_buffers(Page* page) noexcept nogil:
    return <BufferHead*>page.private

cdef inline u64 bh_offset(BufferHead* bh) noexcept nogil:
    return bh.b_data & (PAGE_SIZE - 1)

cdef inline void get_bh(BufferHead* bh) noexcept nogil:
    atomic_add_return32(&bh.b_count, 1)

cdef inline void put_bh(BufferHead* bh) noexcept nogil:
    atomic_add_return32(&bh.b_count, <u32>-1)

cdef WaitQueueHead* buffer_waitqueue(BufferHead* bh) noexcept nogil
cdef bint trylock_buffer(BufferHead* bh) noexcept nogil
cdef void lock_buffer(BufferHead* bh) noexcept nogil
cdef void unlock_buffer(BufferHead* bh) noexcept nogil
cdef void set_bh_page(BufferHead* bh, Page* page, u64 offset) noexcept nogil
cdef void free_buffers(BufferHead* head) noexcept nogil
@cython.locals(head=pointer_to_bh, tail=pointer_to_bh, size=u64, offset=u64)
cdef BufferHead* alloc_page_buffers(Page* page, u32 blkbits) noexcept nogil
cdef int create_empty_buffers(Page* page) noexcept nogil
cdef bint buffer_busy(BufferHead* bh) noexcept nogil
cdef BufferHead* drop_buffers(Page* page) noexcept nogil
cdef bint try_to_free_buffers(Page* page) noexcept nogil
cdef bint try_to_release_page(Page* page, u64 gfp) noexcept nogil
cdef bint block_releasepage(Page* page, u64 gfp) noexcept nogil
cdef void cancel_dirty_page(Page* page) noexcept nogil
cdef void discard_buffer(BufferHead* bh) noexcept nogil
cdef void block_invalidatepage(Page* page, u64 offset) noexcept nogil
cdef bint __set_page_dirty_buffers(Page* page) noexcept nogil
cdef int block_page_mkwrite(Page* page) noexcept nogil
@cython.locals(rc=cython.int)
cdef int block_read_full_page(AddressSpace* mapping, Page* page) noexcept nogil
@cython.locals(mine=cython.int, busy=cython.int)
cdef int lock_dirty_buffers(BufferHead* head, WritebackControl* wbc, int* busy_out) noexcept nogil
@cython.locals(count=u64)
cdef int write_buffer(Inode* inode, Page* page, BufferHead* bh) noexcept nogil
@cython.locals(busy=cython.int, rc=cython.int)
cdef int block_write_full_page(Page* page, WritebackControl* wbc) noexcept nogil

ctypedef BufferHead* pointer_to_bh
