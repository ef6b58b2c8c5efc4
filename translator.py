# SPDX-License-Identifier: GPL-2.0-only
"""Runs Cython on one kernel module after the other: what setup.py's helpers do.

Reading the .pxd files that a module includes takes Cython longer than the module.  They mean the
same to all modules, so each is read once; then a fork makes the C, and leaves no trace here.
"""
import ctypes
import fcntl
import os
import select
import signal
import sys
import traceback
from multiprocessing import parent_process

from Cython.Build.Dependencies import create_dependency_tree
from Cython.Compiler import Errors
from Cython.Compiler.CmdLine import parse_command_line
from Cython.Compiler.Main import Context, compile_single

PR_SET_PDEATHSIG = 1
context = None


class SharedContext(Context):
    """What has been read, for modules that include different parts of it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scopes = []
        self.used = {}      # by module: what its .pxd, and those that were read with it, call

    def process_pxd(self, source, scope, module):
        self.scopes.append(scope)
        before = self.take_used()
        result = super().process_pxd(source, scope, module)
        self.used[module] = self.take_used()
        self.set_used(before | self.used[module])
        return result

    def keep(self, files):
        """Forget what only other .pxd files contain or call: Cython compiles all of the one, and
        imports all of the other."""
        self.pxds = {module: (tree, scope) for module, (tree, scope) in sorted(self.pxds.items())
                     if os.path.realpath(tree.pos[0].filename) in files}
        self.take_used()
        self.set_used(set().union(*map(self.used.get, self.pxds)))

    def take_used(self):
        used = {entry for scope in self.scopes for entry in scope.entries.values() if entry.used}
        for entry in used:
            entry.used = False
        return used

    def set_used(self, entries):
        for entry in entries:
            entry.used = True


def begin():
    """What each helper begins with.  Ctrl-C is setup.py's, and ends it; so does whatever else ends setup.py."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # It has the other end of this pipe.  (PR_SET_PDEATHSIG would go by the thread that has started us.)
    setup = parent_process().sentinel
    fcntl.fcntl(setup, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(setup, fcntl.F_SETFL, os.O_ASYNC)
    if select.select([setup], [], [], 0)[0]:
        os._exit(1)


def translate(module, arguments):
    """Make C of a kernel module; returns the .pxd files of ours that it includes, or None if Cython refuses."""
    global context
    options, (source,) = parse_command_line(arguments)
    options.configure_language_defaults("py")
    context = context or SharedContext.from_options(options)
    Errors.open_listing_file(None, options.errors_to_stderr)
    context.find_module(module)
    if Errors.get_errors_count():
        return None
    files = create_dependency_tree(context, quiet=True).all_dependencies(source)
    helper = os.getpid()
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != helper:
                os._exit(1)
            context.options = options
            context.keep(set(map(os.path.realpath, files)))
            exit_code = min(compile_single(source, options, None, context=context).num_errors, 1)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(exit_code)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        return None
    return sorted(path for path in files if path.startswith("shmkern/") and path.endswith(".pxd"))
