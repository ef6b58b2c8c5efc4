# SPDX-License-Identifier: GPL-2.0-only
# What a program sees of the kernel: constants of the system calls, with Linux's
# names and x86-64 values.  Python gets them from layout.py.

cdef enum:
    PROT_NONE = 0
    PROT_READ = 1
    PROT_WRITE = 2
    PROT_EXEC = 4
    PROT_SEM = 8               # of some architectures; x86 takes it and does nothing
    PROT_GROWSDOWN = 0x01000000    # with mprotect: of an area that grows; none does
    PROT_GROWSUP = 0x02000000

cdef enum:
    MAP_SHARED = 0x01
    MAP_PRIVATE = 0x02
    MAP_TYPE = 0x0f
    MAP_FIXED = 0x10
    MAP_ANONYMOUS = 0x20
    MAP_LOCKED = 0x2000

cdef enum:
    MCL_CURRENT = 1
    MCL_FUTURE = 2

cdef enum:
    MREMAP_MAYMOVE = 1
    MREMAP_FIXED = 2

cdef enum:
    MPOL_DEFAULT = 0
    MPOL_PREFERRED = 1
    MPOL_BIND = 2
    MPOL_INTERLEAVE = 3
    MPOL_MAX = 4
    MPOL_F_STATIC_NODES = 0x8000   # with the mode
    MPOL_F_RELATIVE_NODES = 0x4000
    MPOL_F_NODE = 1                # for get_mempolicy
    MPOL_F_ADDR = 2
    MPOL_F_MEMS_ALLOWED = 4

cdef enum:
    MPOL_MF_STRICT = 1
    MPOL_MF_MOVE = 2
    MPOL_MF_MOVE_ALL = 4

cdef enum:
    MS_ASYNC = 1
    MS_INVALIDATE = 2
    MS_SYNC = 4
