# SPDX-License-Identifier: GPL-2.0-only
# What each kind of file can do.  May use: migrate, truncate and below.

from shmkern.migrate cimport *
from shmkern.truncate cimport *

cdef u32 nr_file_kinds() noexcept nogil
cdef void fill_a_ops() noexcept nogil
