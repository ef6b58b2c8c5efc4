# SPDX-License-Identifier: GPL-2.0-only
"""Puts the explorer's flavour of the kernel in the place of the shipped one.

Called before anything of shmkern is imported: from then on shmkern.migrate is
explore/kernel/migrate.*.so in this process, and its accesses go to the runtime.  Imports
nothing of the package.
"""
import ctypes
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.util import spec_from_file_location
from pathlib import Path

HERE = Path(__file__).resolve().parent


class _Finder:
    """Finds kernel modules in explore/kernel."""

    @staticmethod
    def find_spec(name, _path=None, _target=None):
        package, _, module = name.rpartition(".")
        if package == "shmkern":
            for suffix in EXTENSION_SUFFIXES:
                path = HERE / "kernel" / (module + suffix)
                if path.exists():
                    return spec_from_file_location(name, path)
        return None


def install():
    """Makes this process an explorer's.  Returns the runtime, as a ctypes library."""
    if any(name.startswith("shmkern.") for name in sys.modules):
        raise ImportError("the shipped kernel is loaded in this process already")
    built = [path for suffix in EXTENSION_SUFFIXES for path in HERE.glob("runtime" + suffix)]
    # One module of the shipped kernel among these would run unseen.
    shipped, kernel = ({path.name for path in place.glob("*.so")} for place in (HERE.parent, HERE / "kernel"))
    if not built or shipped - kernel:
        raise ImportError("the explorer is not compiled: run `make build` in shmkern's source tree")
    sys.meta_path.insert(0, _Finder)
    # Global, because the kernel's modules look there for what gcc makes them call; and with
    # the GIL kept, because greenlets are switched inside.
    return ctypes.PyDLL(str(built[0]), mode=ctypes.RTLD_GLOBAL)
