# SPDX-License-Identifier: GPL-2.0-only
"""What a task can say about nodes, as methods: memory policies and migrate_pages(2).

As in syscalls.py.  Each call is there twice: sys_mbind and its like take masks where a
program has them, at an address of the task's own memory; mbind and its like take and give
collections of node numbers.
"""
from cython import address as addressof, cast
from cython.cimports.cpython.number import PyNumber_Index


def node_mask(nodes):
    """A mask of node numbers.  ValueError for a number that is no node's, TypeError for what is no whole number."""
    mask = 0
    for number in nodes:
        # A number of numpy's would be shifted in as few bits as it has.
        node = PyNumber_Index(number)
        if not 0 <= node < MAX_NUMNODES:
            raise ValueError(f"{node!r} is not the number of a node, 0 to {MAX_NUMNODES - 1}")
        mask |= 1 << node
    return mask


def nodes_of(mask):
    """The node numbers of a mask, ascending."""
    return [node for node in range(MAX_NUMNODES) if node_isset(node, mask)]


class NumaSyscalls(Syscalls):
    """System calls of the current task about nodes."""

    # ---- with masks in the task's memory ----

    def sys_mbind(self, addr, length, mode, nmask, maxnode, flags):
        """mbind(2)."""
        arg0, arg1, arg2 = unsigned(addr), unsigned(length), word(mode)
        arg3, arg4, arg5 = unsigned(nmask), unsigned(maxnode), word(flags)
        syscall_enter()
        rc = sys_mbind(arg0, arg1, arg2, arg3, arg4, arg5)
        kernel_exit()
        check_errno(rc)

    def sys_set_mempolicy(self, mode, nmask, maxnode):
        """set_mempolicy(2)."""
        arg0, arg1, arg2 = word(mode), unsigned(nmask), unsigned(maxnode)
        syscall_enter()
        rc = sys_set_mempolicy(arg0, arg1, arg2)
        kernel_exit()
        check_errno(rc)

    def sys_get_mempolicy(self, policy, nmask, maxnode, addr, flags):
        """get_mempolicy(2)."""
        arg0, arg1, arg2 = unsigned(policy), unsigned(nmask), unsigned(maxnode)
        arg3, arg4 = unsigned(addr), word(flags)
        syscall_enter()
        rc = sys_get_mempolicy(arg0, arg1, arg2, arg3, arg4)
        kernel_exit()
        check_errno(rc)

    def sys_migrate_pages(self, pid, maxnode, old_nodes, new_nodes):
        """migrate_pages(2).  Returns how many pages were not moved."""
        arg0, arg1, arg2, arg3 = PyNumber_Index(pid), unsigned(maxnode), unsigned(old_nodes), unsigned(new_nodes)
        syscall_enter()
        rc = sys_migrate_pages(arg0, arg1, arg2, arg3)
        kernel_exit()
        return check_errno(rc)

    # ---- with collections of nodes ----

    def mbind(self, addr, length, mode, nodes=(), flags=0):
        """mbind(2): the policy of a range.  Raises OSError: EINVAL, EPERM, ENOMEM, EFAULT, EIO."""
        arg0, arg1, arg2, arg3 = unsigned(addr), unsigned(length), word(mode), word(flags)
        mask = node_mask(nodes)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = sys_mbind(arg0, arg1, arg2, cast(u64, addressof(mask)), 65, arg3)
        current().addr_limit = USER_DS
        kernel_exit()
        check_errno(rc)

    def set_mempolicy(self, mode, nodes=()):
        """set_mempolicy(2): this task's policy.  Raises OSError: EINVAL, ENOMEM."""
        arg0 = word(mode)
        mask = node_mask(nodes)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = sys_set_mempolicy(arg0, cast(u64, addressof(mask)), 65)
        current().addr_limit = USER_DS
        kernel_exit()
        check_errno(rc)

    def get_mempolicy(self, addr=0, flags=0):
        """get_mempolicy(2): (mode, [nodes]).  With MPOL_F_NODE the first is a node; with
        MPOL_F_MEMS_ALLOWED the second are those that the task may use.  Raises OSError: EINVAL,
        EFAULT, ENOMEM."""
        arg0, arg1 = unsigned(addr), word(flags)
        policy, mask = 0, 0
        syscall_enter()
        rc = do_get_mempolicy(arg0, arg1, addressof(policy), addressof(mask))
        kernel_exit()
        check_errno(rc)
        return policy, nodes_of(mask)

    def migrate_pages(self, pid, old_nodes, new_nodes):
        """migrate_pages(2): moves task `pid`'s pages (0: this one's) from nodes to nodes.  Returns
        how many were not moved.  Raises OSError: EINVAL, EPERM, ESRCH, EACCES, ENOMEM."""
        arg0, old, new = PyNumber_Index(pid), node_mask(old_nodes), node_mask(new_nodes)
        syscall_enter()
        current().addr_limit = KERNEL_DS
        rc = sys_migrate_pages(arg0, 65, cast(u64, addressof(old)), cast(u64, addressof(new)))
        current().addr_limit = USER_DS
        kernel_exit()
        return check_errno(rc)

    # ---- memory that comes and goes, and a device's ----

    def mmap_device(self, length, node):
        """Maps memory of the device, from its bank beside a node.  Returns the address.  Raises
        OSError: EINVAL, ENOMEM."""
        arg0, arg1 = unsigned(length), PyNumber_Index(node)
        syscall_enter()
        rc = do_device_mmap(arg0, arg1)
        kernel_exit()
        return check_errno(rc)

    def offline_node(self, node, timeout=10.0):
        """Takes a node's memory offline; see Machine.offline."""
        # As long as one likes, which may be more nanoseconds than fit a word.
        arg0, arg1 = PyNumber_Index(node), int(min(timeout, 1e9) * 1e9)
        syscall_enter()
        rc = offline_node(arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def online_node(self, node):
        """Brings a node's memory back; see Machine.online."""
        arg0 = PyNumber_Index(node)
        syscall_enter()
        rc = online_node(arg0)
        kernel_exit()
        check_errno(rc)

    # ---- cpusets, for Machine ----

    def _cpuset_create(self, parent, mems, flags):
        """cpuset_create for Python: the group's number."""
        arg0, arg1, arg2 = parent, node_mask(mems), flags
        syscall_enter()
        rc = cpuset_create(arg0, arg1, arg2)
        kernel_exit()
        return check_errno(rc)

    def _cpuset_remove(self, cpuset):
        """cpuset_remove for Python."""
        arg0 = cpuset
        syscall_enter()
        rc = cpuset_remove(arg0)
        kernel_exit()
        check_errno(rc)

    def _cpuset_set_mems(self, cpuset, mems):
        """cpuset_set_mems for Python."""
        arg0, arg1 = cpuset, node_mask(mems)
        syscall_enter()
        rc = cpuset_set_mems(arg0, arg1)
        kernel_exit()
        check_errno(rc)

    def _cpuset_attach(self, cpuset, pid):
        """cpuset_attach for Python."""
        arg0, arg1 = cpuset, pid
        syscall_enter()
        rc = cpuset_attach(arg0, arg1)
        kernel_exit()
        check_errno(rc)
