# SPDX-License-Identifier: GPL-2.0-only
# Swap areas and their slots.  May use: inode and below.

cimport cython
from shmkern.inode cimport *
from shmkern.swapops cimport *

cdef enum:
    SWAPFILE_CLUSTER = 256     # slots that are given out in a row where there is room
    PAGE_CLUSTER = 3           # of a machine that has just been booted
    PAGE_CLUSTER_MAX = 10

# More than half of the slots are in use: pages that are in memory should not keep one.
cdef inline bint vm_swap_full() noexcept nogil:
    return READ_ONCE64(&kernel().nr_swap_pages) * 2 < READ_ONCE64(&kernel().total_swap_pages)

# Whether pages may go to the entry's area; not while swapoff brings back what is in it.
cdef inline bint swap_writeok(swp_entry_t entry) noexcept nogil:
    return (READ_ONCE64(&kernel().swap_info[swp_type(entry)].flags) & SWP_WRITEOK) != 0

@cython.locals(offset=u64, run=u64)
cdef u64 find_cluster(SwapInfo* si) noexcept nogil
@cython.locals(offset=u64)
cdef u64 scan_swap_map(SwapInfo* si) noexcept nogil
cdef swp_entry_t get_swap_page() noexcept nogil
cdef SwapInfo* swap_info_get(swp_entry_t entry) noexcept nogil
cdef u32 swap_entry_free(SwapInfo* si, u64 offset) noexcept nogil
cdef void swap_free(swp_entry_t entry) noexcept nogil
@cython.locals(used=bint)
cdef bint swap_duplicate(swp_entry_t entry) noexcept nogil
@cython.locals(used=bint)
cdef bint swap_slot_in_use(SwapInfo* si, u64 offset) noexcept nogil
@cython.locals(first=u64, end=u64, low=u64, high=u64)
cdef u64 valid_swaphandles(swp_entry_t entry, u64* offset) noexcept nogil
@cython.locals(count=u32)
cdef u32 page_swapcount(Page* page) noexcept nogil
@cython.locals(start=u64, place=u64, moved=bint)
cdef u16* find_swap_map(u64 size) noexcept nogil
@cython.locals(found=bint)
cdef bint is_swap_file(u64 dev, u64 ino) noexcept nogil
cdef i32 do_swapon(int host_fd, u64 pages, u64 dev, u64 ino) noexcept nogil
cdef void set_swap_writeok(SwapInfo* si, bint writeok) noexcept nogil
