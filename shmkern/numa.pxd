# SPDX-License-Identifier: GPL-2.0-only
# System calls about nodes, as Python methods.  May use: hotplug, syscalls and below.

cimport cython
from shmkern.syscalls cimport *
from shmkern.hotplug cimport *

cdef u64 node_mask(nodes) except? 0xffffffffffffffff
cdef list nodes_of(u64 mask)

cdef class NumaSyscalls(Syscalls):
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, arg2=u64, arg3=u64, arg4=u64, arg5=u64)
    cpdef sys_mbind(self, addr, length, mode, nmask, maxnode, flags)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, arg2=u64)
    cpdef sys_set_mempolicy(self, mode, nmask, maxnode)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, arg2=u64, arg3=u64, arg4=u64)
    cpdef sys_get_mempolicy(self, policy, nmask, maxnode, addr, flags)
    @cython.locals(rc=cython.int, arg0=i32, arg1=u64, arg2=u64, arg3=u64)
    cpdef sys_migrate_pages(self, pid, maxnode, old_nodes, new_nodes)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, arg2=u64, arg3=u64, mask=u64)
    cpdef mbind(self, addr, length, mode, nodes=*, flags=*)
    @cython.locals(rc=cython.int, arg0=u64, mask=u64)
    cpdef set_mempolicy(self, mode, nodes=*)
    @cython.locals(rc=cython.int, arg0=u64, arg1=u64, policy=cython.int, mask=u64)
    cpdef get_mempolicy(self, addr=*, flags=*)
    @cython.locals(rc=cython.int, arg0=i32, old=u64, new=u64)
    cpdef migrate_pages(self, pid, old_nodes, new_nodes)
    @cython.locals(rc=i64, arg0=u64, arg1=cython.int)
    cpdef mmap_device(self, length, node)
    @cython.locals(rc=cython.int, arg0=cython.int, arg1=u64)
    cpdef offline_node(self, node, timeout=*)
    @cython.locals(rc=cython.int, arg0=cython.int)
    cpdef online_node(self, node)
    @cython.locals(rc=cython.int, arg0=i32, arg1=u64, arg2=u32)
    cpdef _cpuset_create(self, parent, mems, flags)
    @cython.locals(rc=cython.int, arg0=u32)
    cpdef _cpuset_remove(self, cpuset)
    @cython.locals(rc=cython.int, arg0=u32, arg1=u64)
    cpdef _cpuset_set_mems(self, cpuset, mems)
    @cython.locals(rc=cython.int, arg0=u32, arg1=i32)
    cpdef _cpuset_attach(self, cpuset, pid)
