# SPDX-License-Identifier: GPL-2.0-only
"""Memory control groups as the supervisor sees them: what the files of a cgroup's directory say,
and what writing to them does.  Numbers are in bytes.  Everything is done by init."""

STAT = ("cache", "rss", "pgpgin", "pgpgout")


class Cgroup:
    """One group; `id` is its number, `name` its directory's.  Everything raises OSError(ENOENT)
    when it was removed."""

    def __init__(self, machine, id, name):
        self._machine, self.id, self.name = machine, id, name

    def __repr__(self):
        return f"Cgroup({self.id}, {self.name!r})"

    def _read(self, *names):
        """Some of what the kernel says of the group."""
        stat = self._machine.init.cgroup_stat(self.id)
        return [stat[name] for name in names]

    # ---- what it says ----

    @property
    def usage(self):
        """memory.usage_in_bytes: what it and its children are charged now."""
        return self._read("usage")[0]

    @property
    def max_usage(self):
        """memory.max_usage_in_bytes: the most that ever was."""
        return self._read("max_usage")[0]

    @property
    def failcnt(self):
        """memory.failcnt: how many charges its limit did not allow."""
        return self._read("failcnt")[0]

    @property
    def stat(self):
        """memory.stat, a dict: cache and rss, in bytes; pgpgin and pgpgout, pages charged and
        uncharged since it was made; total_* are the same with the children's."""
        names = [*STAT, *(f"total_{name}" for name in STAT)]
        return dict(zip(names, self._read(*names)))

    @property
    def limit(self):
        """memory.limit_in_bytes; None: no limit.  Setting it raises OSError: EBUSY when it uses
        more, EINVAL for the root."""
        return self._read("limit")[0]

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
