# SPDX-License-Identifier: GPL-2.0-only
# Nodes that go offline and come back.  May use: cpuset, vmscan and below.

cimport cython
from shmkern.cpuset cimport *
from shmkern.vmscan cimport *

cdef enum:
    NR_OFFLINE_RETRIES = 5     # of a node that has no room elsewhere

cdef bint has_unmovable_pages(Zone* zone) noexcept nogil
cdef void set_isolated(Zone* zone, bint isolated) noexcept nogil
cdef Page* hotremove_migrate_alloc(Page* page, u64 private, int** result) noexcept nogil
@cython.locals(pfn=u64, done=u64, rc=cython.int, worst=cython.int)
cdef int do_migrate_range(Zone* zone) noexcept nogil
cdef void drop_read_ahead(Zone* zone) noexcept nogil
@cython.locals(all_free=bint)
cdef bint offline_isolated_pages(Zone* zone) noexcept nogil
@cython.locals(rc=cython.int, failures=cython.int)
cdef int empty_zone(Zone* zone, u64 deadline) noexcept nogil
cdef void update_node_states(int node, bint has_memory) noexcept nogil
@cython.locals(rc=cython.int)
cdef int offline_node(int node, u64 timeout_ns) noexcept nogil
@cython.locals(rc=cython.int)
cdef int online_node(int node) noexcept nogil
