# SPDX-License-Identifier: GPL-2.0-only
# The machine and the task of whoever asks.  May use: atomics, mm_types.

from shmkern.atomics cimport DIRECT_MAP_BASE, PERCPU_BASE
from shmkern.mm_types cimport *

cdef inline Kernel* kernel() noexcept nogil:
    return <Kernel*>(DIRECT_MAP_BASE + PAGE_SIZE)

cdef inline Task* current() noexcept nogil:
    return (<Task**>PERCPU_BASE)[0]

# Nobody else writes these words, so a plain increment is exact.
cdef inline void count_vm_event(int item) noexcept nogil:
    current().vm_events[item] += 1
