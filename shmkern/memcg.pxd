# SPDX-License-Identifier: GPL-2.0-only
# Memory control groups: the hooks where migration meets them, as include/linux/
# memcontrol.h has them for a kernel built without groups.

from shmkern.mm_types cimport Page, MmStruct

cdef inline int mem_cgroup_prepare_migration(Page* page, Page* newpage) noexcept nogil:
    return 0

cdef inline void mem_cgroup_end_migration(Page* newpage) noexcept nogil:
    pass

cdef inline int mem_cgroup_charge(Page* page, MmStruct* mm, unsigned long gfp) noexcept nogil:
    return 0
