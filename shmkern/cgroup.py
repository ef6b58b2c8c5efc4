# SPDX-License-Identifier: GPL-2.0-only
"""Memory control groups as the supervisor sees them: what the files of a cgroup's directory say,
and what writing to them does.  Numbers are in bytes; what is read is read from the block, what
changes anything is done by init."""
from shmkern import layout

C = layout.constants
NO_LIMIT = 0x7fffffffffffffff
STAT = {"cache": "MEM_CGROUP_STAT_CACHE", "rss": "MEM_CGROUP_STAT_RSS",
        "pgpgin": "MEM_CGROUP_STAT_PGPGIN_COUNT", "pgpgout": "MEM_CGROUP_STAT_PGPGOUT_COUNT"}


def groups():
    """struct MemCgroup of every group there is, live, in the order they were made."""
    head = layout.kernel().address + layout.offsetof("Kernel", "mem_cgroups")
    offset, found = layout.offsetof("MemCgroup", "list"), []
    node = layout.struct("ListHead", head).next
    while node != head:
        found.append(layout.struct("MemCgroup", node - offset))
        node = layout.struct("ListHead", node).next
    return found


class Cgroup:
    """One group; `id` is its number.  Its properties raise OSError(ENOENT) when it was removed."""

    def __init__(self, machine, id):
        self._machine, self.id = machine, id

    def __repr__(self):
        return f"Cgroup({self.id})"

    def _group(self):
        self._machine._mine()
        for group in groups():
            if group.id == self.id:
                return group
        raise OSError(2, f"there is no memory control group {self.id}")

    # ---- what it says ----

    @property
    def name(self):
        return self._group().name.decode()

    @property
    def usage(self):
        """memory.usage_in_bytes: what it and its children are charged now."""
        return int(self._group().res["usage"])

    @property
    def max_usage(self):
        """memory.max_usage_in_bytes: the most that ever was."""
        return int(self._group().res["max_usage"])

    @property
    def failcnt(self):
        """memory.failcnt: how many charges its limit did not allow."""
        return int(self._group().res["failcnt"])

    @property
    def stat(self):
        """memory.stat, a dict: cache and rss, in bytes; pgpgin and pgpgout, pages charged and
        uncharged since it was made; total_* are the same with the children's."""
        all_groups, mine = groups(), self._group()
        family = {mine.address}
        for group in all_groups:        # Parents come before their children.
            if group.parent in family:
                family.add(group.address)
        rows = [group.stat for group in all_groups if group.address in family]
        stat = {key: int(mine.stat[C[name]]) for key, name in STAT.items()}
        return stat | {f"total_{key}": sum(int(row[C[name]]) for row in rows) for key, name in STAT.items()}

    @property
    def limit(self):
        """memory.limit_in_bytes; None: no limit.  Setting it raises OSError: EBUSY when it uses
        more, EINVAL for the root."""
        limit = int(self._group().res["limit"])
        return None if limit == NO_LIMIT else limit

    # ---- what it does ----

    @limit.setter
    def limit(self, value):
        self._machine.init.cgroup_set_limit(self.id, value)

    def attach(self, pid):
        """tasks: moves a task, and all that share its address space, here.  Raises OSError(ESRCH)."""
        self._machine.init.cgroup_attach(self.id, pid)

    def force_empty(self):
        """memory.force_empty: its parent is charged for all that it still has.  Raises OSError:
        EBUSY when it has tasks or children, EINVAL for the root."""
        self._machine.init.cgroup_force_empty(self.id)

    def remove(self):
        """rmdir.  Raises OSError(EBUSY) when it has tasks or children."""
        self._machine.init.cgroup_remove(self.id)
