# SPDX-License-Identifier: GPL-2.0-only
"""What setup.py has its helpers call.

They are told by the name of its module, and setup.py has none where pip runs it.  And translator.py imports Cython,
which takes a quarter of a second: only the helpers need it.
"""
import fcntl
import gc
import os
import select
import signal
from multiprocessing import parent_process


def begin():
    """What each helper begins with.  Ctrl-C is setup.py's, and ends it; so does whatever else ends setup.py."""
    gc.disable()    # What it reads stays, and whatever it makes C in ends after one module.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It has the other end of this pipe.  (PR_SET_PDEATHSIG would go by the thread that has started us.)
    setup = parent_process().sentinel
    fcntl.fcntl(setup, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(setup, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([setup], [], [], 0)[0]:
        os._exit(1)


def load():
    """Imports what translate() needs, ahead of the first module."""
    import translator  # noqa: F401


def translate(module, arguments):
    import translator
    return translator.translate(module, arguments)
