# SPDX-License-Identifier: GPL-2.0-only
# What a program sees of the kernel: constants of the system calls, with Linux's
# names and x86-64 values.  Python gets them from layout.py.

cdef enum:
    PROT_NONE = 0
    PROT_READ = 1
    PROT_WRITE = 2
    PROT_EXEC = 4

cdef enum:
    MAP_SHARED = 0x01
    MAP_PRIVATE = 0x02
    MAP_TYPE = 0x0f
    MAP_FIXED = 0x10
    MAP_ANONYMOUS = 0x20

cdef enum:
    MREMAP_MAYMOVE = 1
    MREMAP_FIXED = 2

cdef enum:
    MPOL_MF_STRICT = 1
    MPOL_MF_MOVE = 2
    MPOL_MF_MOVE_ALL = 4
