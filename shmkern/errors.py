# SPDX-License-Identifier: GPL-2.0-only
"""What the Python side raises besides OSError."""

# Of the RuntimeError for who uses a Task where there is none.
NO_TASK = "this process is not a task of the machine, or not any more"


class SegmentationFault(Exception):
    """A task touched memory that it may not: where a CPU would raise SIGSEGV.

    `address` is the first byte that could not be accessed, `access` "load" or "store".
    """

    def __init__(self, address, access):
        super().__init__(address, access)
        self.address = address
        self.access = access

    def __str__(self):
        return f"{self.access} at {self.address:#x}"


class BusError(Exception):
    """A task touched a page that its file does not have, or that the host cannot read: where a CPU
    would raise SIGBUS.

    `address` is the first byte that could not be accessed, `access` "load" or "store".
    """

    def __init__(self, address, access):
        super().__init__(address, access)
        self.address = address
        self.access = access

    def __str__(self):
        return f"{self.access} at {self.address:#x}, behind the end of its file or not readable"


class KernelBug(Exception):
    """The machine has stopped: a kernel invariant broke, a task hung, or the host ran out
    of memory.  The text is the whole report; `kind` is "kernel BUG", "hung task", "host
    memory" or "lost task"."""

    def __init__(self, kind, report):
        super().__init__(kind, report)
        self.kind = kind
        self.report = report

    def __str__(self):
        return self.report


class TaskDied(Exception):
    """A task's process ended without a result.  `pid` is the machine's, `status` the exit
    status as multiprocess gives it: negative for a signal."""

    def __init__(self, pid, status):
        super().__init__(pid, status)
        self.pid = pid
        self.status = status

    def __str__(self):
        how = f"was killed by signal {-self.status}" if self.status is not None and self.status < 0 \
            else f"exited with status {self.status}"
        return f"task {self.pid} {how} before it had a result"


class HostError(OSError):
    """The host does not give what it takes to be a task: a process, or descriptors.  `errno` is the
    host's."""


class UsageError(Exception):
    """A command cannot be done as given; the text is one sentence."""


class ArgumentError(ValueError):
    """There can be no machine of that kind, or it cannot do that; the text says which argument is why."""


class BootError(Exception):
    """A machine cannot be made or attached to; the text says why."""
