# SPDX-License-Identifier: GPL-2.0-only
# The system call move_pages(2).  May use: uaccess, process and below.

cimport cython
from shmkern.uaccess cimport *
from shmkern.process cimport *
from shmkern.migrate cimport *

# One page of a request (seed lines 806-811).
cdef struct PageToNode:
    u64 addr
    Page* page
    int node
    int status

cdef enum:
    # As many as fit a frame, with the one that ends them.
    MOVE_PAGES_CHUNK = 169
    STAT_PAGES_CHUNK = 16

# What is asked for: arrays in the caller's memory (see Task.addr_limit), of addresses, of nodes
# and of statuses.
cdef struct MovePagesArgs:
    u64 nr_pages
    u64 pages
    u64 nodes
    u64 status
    u64 task_nodes             # what the target may use

cdef Page* new_page_node(Page* page, u64 private, int** result) noexcept nogil
cdef int add_page_for_migration(MmStruct* mm, PageToNode* pp, bint migrate_all, ListHead* pagelist) noexcept nogil
@cython.locals(pagelist=ListHead)
cdef int do_move_page_to_node_array(MmStruct* mm, PageToNode* pm, bint migrate_all) noexcept nogil
cdef int get_page_to_node(PageToNode* pp, MovePagesArgs* args, u64 index) noexcept nogil
@cython.locals(rc=cython.int)
cdef int do_pages_move_chunk(MmStruct* mm, MovePagesArgs* args, u64 first, u64 count, PageToNode* pm, bint migrate_all) noexcept nogil
@cython.locals(rc=cython.int, count=u64, first=u64)
cdef int do_pages_move(MmStruct* mm, MovePagesArgs* args, bint migrate_all) noexcept nogil
cdef int page_status(MmStruct* mm, u64 addr) noexcept nogil
cdef void do_pages_stat_array(MmStruct* mm, u64 count, u64* addrs, int* status) noexcept nogil
@cython.locals(addrs=u64[16], status=int[16], count=u64, first=u64)
cdef int do_pages_stat(MmStruct* mm, MovePagesArgs* args) noexcept nogil
@cython.locals(target=TaskMemory)
cdef int do_move_pages(i32 pid, MovePagesArgs* args, int flags) noexcept nogil
