# SPDX-License-Identifier: GPL-2.0-only
"""An explorer's process.  Run by its path, so that nothing of shmkern is imported before
the explorer's flavour is in place:

    python shmkern/explore/__main__.py explore fault
"""
import gc
import signal
import sys
from pathlib import Path

if __name__ == "__main__":
    # As in shmkern_entry.py.
    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()
    # Not this directory, whose modules are shmkern.explore's, but the one of the package.
    sys.path[0] = str(Path(__file__).resolve().parent.parent.parent)
    sys.path.insert(1, str(Path(__file__).resolve().parent))
    import flavour
    del sys.path[1]
    try:
        flavour.runtime = flavour.install()
    except ImportError as error:
        sys.exit(f"shmkern: {error}")
    sys.modules["shmkern.explore.flavour"] = flavour
    from shmkern.explore import command
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)
    sys.exit(command.main(sys.argv[1:]))
