# SPDX-License-Identifier: GPL-2.0-only
# Swap entries: what stands for a page that is not in memory, or in the air (include/linux/swap.h,
# swapops.h).

from shmkern.atomics cimport u64

ctypedef u64 swp_entry_t

# The last two swap types are migration entries.
cdef enum:
    MAX_SWAPFILES = 30
    SWP_MIGRATION_READ = 30
    SWP_MIGRATION_WRITE = 31
    SWP_TYPE_SHIFT = 1
    SWP_TYPE_MASK = 31
    SWP_OFFSET_SHIFT = 9
    SWP_INDEX_TYPE_SHIFT = 31  # an area has fewer slots than that

cdef inline swp_entry_t swp_entry(u64 type, u64 offset) noexcept nogil:
    return type << SWP_TYPE_SHIFT | offset << SWP_OFFSET_SHIFT

cdef inline u64 swp_type(swp_entry_t entry) noexcept nogil:
    return entry >> SWP_TYPE_SHIFT & SWP_TYPE_MASK

cdef inline u64 swp_offset(swp_entry_t entry) noexcept nogil:
    return entry >> SWP_OFFSET_SHIFT

# An entry's place in the swap cache's tree: slots in a row lie in one node.
cdef inline u64 swp_index(swp_entry_t entry) noexcept nogil:
    return swp_type(entry) << SWP_INDEX_TYPE_SHIFT | swp_offset(entry)
