# SPDX-License-Identifier: GPL-2.0-only
"""Runs Cython on one kernel module after the other: what setup.py's helpers do.

Reading the .pxd files that a module includes takes Cython longer than the module.  They mean the
same to all modules, so each is read once; then a fork makes the C, and leaves no trace here.
"""
import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path

from Cython.Build.Dependencies import create_dependency_tree
from Cython.Build.SharedModule import generate_shared_module
from Cython.Compiler import Errors, Nodes, Symtab
from Cython.Compiler.CmdLine import parse_command_line
from Cython.Compiler.Main import Context, compile_single

import struct_uses
from pxd_declarations import unneeded_names

PR_SET_PDEATHSIG = 1
# Has what Cython's own code of all modules has in common: gcc reads it once, not with each.
SHARED = "shmkern.cython_shared"
context = None

# Before its own body a method would look whether a subclass has overridden it, which takes gcc longer than the
# body.  That is for calls from C: Python finds the subclass's method first, and in C nothing calls one that is.
Nodes.OverrideCheckNode.generate_execution_code = lambda self, code: None

# Looks through all that the .pxd files declare, for each of them, whether one has to do with a PyMutex.
Symtab.Scope.find_shared_usages_of_type = lambda self, type_to_find, _seen_scopes=None: False

# Where a module's C comes to what loads it, which runs once, and to how it converts what Python gives and takes,
# which takes less than a call from Python.  gcc needs a fifth of its time for them, unless told to optimise them less.
LEVELS = {"/* #### Code section: module_exttypes ### */\n": "O0", "/* #### Code section: utility_code_def ### */\n": "O1"}


class SharedContext(Context):
    """What has been read, for modules that need different parts of it."""

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

    def keep(self, files, unneeded):
        """Forget all other .pxd files, and the names that are not needed of these: Cython compiles every inline
        function that it knows, and imports every function that one of them calls.  What is needed and was not said
        to be is an error then, not a module that is not compiled again."""
        self.pxds = {module: (tree, scope) for module, (tree, scope) in sorted(self.pxds.items())
                     if os.path.realpath(tree.pos[0].filename) in files}
        for tree, _ in self.pxds.values():
            tree.stats = [function for function in tree.stats if function.entry.name not in unneeded]
        for scope in self.scopes:
            for name in unneeded & scope.entries.keys():
                del scope.entries[name]
            for entries in (scope.type_entries, scope.sue_entries, scope.c_class_entries, scope.var_entries,
                            scope.cfunc_entries):
                entries[:] = [entry for entry in entries if entry.name not in unneeded]
        for entry in set().union(*self.used.values()):
            entry.used = False
        self.set_used(set().union(*map(self.used.get, self.pxds)))

    def take_used(self):
        used = {entry for scope in self.scopes for entry in scope.entries.values() if entry.used}
        for entry in used:
            entry.used = False
        return used

    def set_used(self, entries):
        for entry in entries:
            entry.used = True


def translate(module, arguments):
    """Make C of a kernel module.  Returns the .pxd files of ours that it includes, and what of each struct it uses
    (struct_uses.py); or None if Cython refuses."""
    global context
    options, (source,) = parse_command_line(arguments)
    options.configure_language_defaults("py")
    context = context or SharedContext.from_options(options)
    Errors.open_listing_file(None, options.errors_to_stderr)
    context.find_module(module)
    if Errors.get_errors_count():
        return None
    files = create_dependency_tree(context, quiet=True).all_dependencies(source)
    includes = sorted(path for path in files if path.startswith("shmkern/") and path.endswith(".pxd"))
    own = [Path(path).read_text() for path in [source, source.removesuffix(".py") + ".pxd"]]
    unneeded = unneeded_names(own, {path: Path(path).read_text() for path in includes})
    helper = os.getpid()
    answer, to_answer = os.pipe()
    pid = os.fork()
    if pid == 0:
        exit_code = 1
        try:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != helper:
                os._exit(1)
            if module == SHARED:
                exit_code = generate_shared(options)
            else:
                options.shared_utility_qualified_name = SHARED
                context.options = options
                context.keep(set(map(os.path.realpath, files)), unneeded)
                struct_uses.watch(last := {})
                exit_code = min(compile_single(source, options, None, context=context).num_errors, 1)
                if exit_code == 0:
                    optimise_functions_only(Path(options.output_file))
                    os.write(to_answer, json.dumps(last).encode())
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(exit_code)
    os.close(to_answer)
    with open(answer) as uses:
        last = uses.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        return None
    return includes, json.loads(last or "{}")


def generate_shared(options):
    """Make C of the shared module.  Returns an exit code."""
    options.shared_c_file_path = options.output_file
    options.shared_utility_features_disabled = ["MemoryView"]       # half of it, and nobody has one
    error, _ = generate_shared_module(options)
    return int(error is not None)


def optimise_functions_only(c_file):
    text = c_file.read_text()
    for section, level in LEVELS.items():
        before, after = text.split(section)
        text = f'{before}{section}#pragma GCC optimize ("{level}")\n{after}'
    c_file.write_text(text)
