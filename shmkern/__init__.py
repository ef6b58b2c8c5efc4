# SPDX-License-Identifier: GPL-2.0-only
"""shmkern: a Linux memory manager that lives in shared memory.

    with shmkern.Machine(nodes=2) as machine:
        child = machine.spawn(lambda task: task.mmap(4096))
        print(hex(child.result()))

Constants are Linux's, by name and value.
"""
from importlib.util import find_spec as _find_spec

if _find_spec("shmkern.boot").origin.endswith(".py"):
    raise ImportError("shmkern's kernel is not compiled: run `make build` in its source tree")

from shmkern import layout as _layout
from shmkern.audit import Audit, AuditError, Finding
from shmkern.errors import BootError, BusError, KernelBug, SegmentationFault, TaskDied
from shmkern.machine import Machine
from shmkern.worker import Child, Task

_PREFIXES = ("PROT_", "MAP_", "MREMAP_", "MPOL_", "MS_", "MCL_")
_CONSTANTS = {name: value for name, value in _layout.constants.items() if name.startswith(_PREFIXES)}
globals().update(_CONSTANTS)

__all__ = ["Audit", "AuditError", "BootError", "BusError", "Child", "Finding", "KernelBug", "Machine",
           "SegmentationFault", "Task", "TaskDied", *_CONSTANTS]
__version__ = "0.1.0"
