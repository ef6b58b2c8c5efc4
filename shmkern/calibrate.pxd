# SPDX-License-Identifier: GPL-2.0-only
# Yardsticks for bench/.  May use: uaccess and below.

cimport cython
from shmkern.uaccess cimport *

cpdef evict_frames(u64[::1] frames)
cpdef u64 memcpy_frames(u64[::1] sources, u64[::1] targets)
