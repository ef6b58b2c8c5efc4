# SPDX-License-Identifier: GPL-2.0-only
# Yardsticks for bench/.  May use: uaccess and below.

cimport cython
from shmkern.uaccess cimport *


@cython.locals(count=u64, pfns=word_pointer)
cpdef evict_frames(frames)
@cython.locals(count=u64, old=word_pointer, new=word_pointer)
cpdef u64 memcpy_frames(sources, targets)
cdef char* frame_numbers(array) except? NULL
