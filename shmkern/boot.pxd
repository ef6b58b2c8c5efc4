# SPDX-License-Identifier: GPL-2.0-only
# Carving the block and starting the kernel in it.  May use: process and below.

cimport cython
from shmkern.process cimport *

# Sizes of a machine, in bytes from the start of the block.
cdef struct BootLayout:
    u64 mem_map
    u64 page_cgroup
    u64 tasks
    u64 zones
    u64 nodes
    u64 wait_table
    u64 swap_maps
    u64 slabs
    u64 slab
    u64 slab_end
    u64 frames
    u64 end
    u64 trace_end              # of the addresses behind the block that trace rings may take

cdef u64 align_up(u64 offset, u64 alignment) noexcept nogil
cdef void carve(u64 nr_nodes, u64 frames_per_node, u64 max_tasks, bint memcg, BootLayout* layout) noexcept nogil
@cython.locals(layout=BootLayout)
cdef void start_kernel(u64 nr_nodes, u64 frames_per_node, u64 max_tasks, u64 hung_task_timeout_ns, bint poison, bint memcg, u64 memoryless, u64 movable) noexcept nogil
