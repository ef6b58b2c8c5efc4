# SPDX-License-Identifier: GPL-2.0-only
"""Compiles the kernel; everything else about the package stands in pyproject.toml.

Every shmkern/NAME.py with a shmkern/NAME.pxd beside it is a kernel module: Cython
makes C of it and gcc a shared object.  A module is compiled again when its .py or .pxd,
a declaration that it needs of another .pxd (pxd_declarations.py), a header (gcc's part alone), an option,
setup.py, translator.py or struct_uses.py has changed since it was last finished, or while it was compiled;
build_temp/NAME.done says with what that was.  Of a struct only the members count up to the last that the module
takes (struct_uses.py).

The C of a module is compiled twice: optimised, and for the explorer, whose runtime is
told of every access (explore/runtime.c).  Both flavours have the same module names; the
second lies in shmkern/explore/kernel, where only an explorer's process looks for it.

    python setup.py build_ext --inplace     the modules, beside their sources
    SHMKERN_FLAVOURS=explore python setup.py build_ext --inplace
                                            the second flavour alone (the museum's copies)
    python setup.py check-machine           is what the build needs there?

check-machine runs before there is any package, so setuptools is imported after it.
"""
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from tokenize import TokenError

PYTHON_WANTED = (3, 11)
DIRECTIVES = {
    "language_level": "3",
    "infer_types": True,
    "cdivision": True,
    "boundscheck": False,
    "wraparound": False,
    "initializedcheck": False,
    "auto_pickle": False,
    "emit_code_comments": False,    # a third of the C; its line directives say where it comes from
}
GCC_FLAGS = [
    "-O1",
    "-g1",
    "-fno-strict-aliasing",     # memory is words here and structs there, as in Linux
    "-Wno-unused-function",     # the inline functions of a .pxd, where it is cimported
    "-Wno-unused-variable",
    "-Wno-unused-but-set-variable",
    "-DCYTHON_COMPRESS_STRINGS=0",  # gcc takes longer for the code that unpacks them than for the strings
    "-DPY_SSIZE_T_CLEAN",       # as Cython does before it includes Python.h, which is compiled before that
]
# What runs once for each page or access of a program.  The rest runs once for each system call or machine: it
# would take gcc half as long again with -O2, and nobody would see it.
HOT = {"buffer", "bulk", "calibrate", "fault", "filemap", "frames", "locks", "lru", "memcg", "memory", "migrate", "mm",
       "pagetable", "radix_tree", "rcu", "replay", "rmap", "slab", "swap_state", "tlb", "trace", "uaccess", "vmscan"}
HOT_GCC_FLAGS = [*GCC_FLAGS, "-O2"]
# Every access becomes a call of __tsan_*, which the explorer's runtime has instead of
# libtsan; what goes to libc and must be seen or decided by the explorer is wrapped.
WRAPPED = ["memcpy", "memmove", "memset", "strncpy", "syscall", "sched_yield", "clock_gettime", "_exit",
           "pread64", "pwrite64", "ftruncate64", "fdatasync", "open64", "close"]
EXPLORE_GCC_FLAGS = [
    *GCC_FLAGS,
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fno-builtin",             # gcc would expand memset and its like unseen
    "-Wno-tsan",                # that libtsan ignores fences; ours does not
]
EXPLORE_LINK_FLAGS = ["-Wl,--wrap=" + name for name in WRAPPED]
FLAVOURS = ("shipped", "explore")
ASKED_FOR = (os.environ.get("SHMKERN_FLAVOURS") or " ".join(FLAVOURS)).split()


def missing_tool(for_venv=False):
    """What this machine lacks for the build, as a sentence for the user, or None."""
    if sys.version_info < PYTHON_WANTED:
        return "shmkern needs Python 3.11 or newer, but {} is Python {}.".format(
            sys.executable, sys.version.split()[0])
    if for_venv:
        try:
            import ensurepip, venv  # noqa: F401 E401
        except ImportError:
            return ("shmkern needs Python's venv to set itself up: "
                    "install the Debian package python3-venv.")
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if not shutil.which(compiler[0]):
        return ("shmkern needs a C compiler, and there is no {}: "
                "install the Debian package gcc.".format(compiler[0]))
    for header, package in (("stdio.h", "libc6-dev"), ("Python.h", "python3-dev")):
        if not has_header(compiler, header):
            return ("shmkern needs the C header {} to build, and {} does not find it: "
                    "install the Debian package {}.".format(header, compiler[0], package))
    return None


def has_header(compiler, header):
    paths = sysconfig.get_paths()
    includes = ["-I" + paths["include"], "-I" + paths["platinclude"]]
    return subprocess.run(
        compiler + includes + ["-E", "-x", "c", "-"],
        input="#include <{}>\n".format(header).encode(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ).returncode == 0


def kernel_modules():
    """The names, without directory and suffix, of the modules that are compiled."""
    return sorted(pxd.stem for pxd in Path("shmkern").glob("*.pxd")
                  if pxd.stem != "__init__" and pxd.with_suffix(".py").exists())


if __name__ == "__main__" and sys.argv[1:] == ["check-machine"]:
    raise SystemExit(missing_tool(for_venv=True))

import hashlib  # noqa: E402
import json  # noqa: E402
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, ThreadPoolExecutor, wait  # noqa: E402
from copy import copy  # noqa: E402
from importlib.metadata import version  # noqa: E402
from multiprocessing import get_context  # noqa: E402

from setuptools import Extension, setup  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402
from setuptools.command.build_py import build_py  # noqa: E402
from setuptools.errors import CompileError  # noqa: E402

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))  # pip does not
import build_helper  # noqa: E402
from pxd_declarations import text_needed  # noqa: E402

BUILDERS = ("setup.py", "translator.py", "struct_uses.py")
HEADERS = sorted(str(header) for header in Path("shmkern").glob("*.h"))
RUNTIME = "shmkern.explore.runtime"
INPLACE = os.path.join("build", "inplace")


class BuildKernel(build_ext):
    def run(self):
        sentence = missing_tool()
        if sentence:
            raise SystemExit(sentence)
        if self.inplace:
            # Also under `pip install -e`, which would start anew in a
            # temporary directory.
            self.build_temp = self.build_lib = INPLACE
        super().run()

    def build_extensions(self):
        # distutils has a pool too, but that one works to its end on Ctrl-C.
        cpus = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cpus, get_context("spawn"), build_helper.begin) as self.translators, \
                ThreadPoolExecutor(cpus) as pool, ThreadPoolExecutor(cpus) as self.compilers:
            for _ in range(cpus):
                self.translators.submit(build_helper.load)      # while we look what there is to do
            # All at once, before any is compiled: a file edited from here on is out of date the next time.
            read = [*map(Path, BUILDERS), *(path for name in ("*.py", "*.pxd", "*.h", "explore/*.c")
                                            for path in Path("shmkern").glob(name))]
            self.changed = {str(path): os.stat(path).st_ctime_ns for path in read}
            self.texts = {str(path): path.read_text() for path in read}
            stale = [ext for ext in self.extensions if self.missing(ext)]
            stale.sort(key=lambda ext: -os.path.getsize(ext.sources[0]))
            # Of another Python, or half of one: gcc would take it.
            shutil.rmtree(Path(self.build_temp, "Python.h.gch"), ignore_errors=True)
            kernel = [ext for ext in stale if ext.name != RUNTIME]
            self.precompiled = [self.compilers.submit(self.precompile, made) for ext in kernel[:1] for made in flavours(ext)]
            try:
                jobs = [pool.submit(self.build_extension, ext) for ext in stale]
                for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                    job.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                self.compilers.shutdown(wait=False, cancel_futures=True)

    def build_extension(self, ext):
        """Make what is missing of ext, then its .done, which is absent meanwhile, so that a build
        killed at any point is taken up again."""
        sys.stdout.write("Compiling {}\n".format(ext.sources[0]))
        sys.stdout.flush()
        done = self.done(ext)
        done.parent.mkdir(parents=True, exist_ok=True)
        missing = self.missing(ext)
        made_with, compiled = self.made_with(ext)
        done.unlink(missing_ok=True)
        if not compiled:
            # Also a flavour that is not asked for: what there is of it was made of something else.
            for flavour in flavours(ext, FLAVOURS):
                self.shared_object(flavour).unlink(missing_ok=True)
        if made_with is None or not self.c_file(ext).exists():
            made_with = self.translate(ext)
        # At once: who has edited one file waits for the slower of the two, not for both.
        for job in [self.compilers.submit(self.compile, flavour) for flavour in missing]:
            job.result()

        if any(os.stat(path).st_ctime_ns != self.changed.get(path)
               for path in [*ext.sources, *ext.depends, *made_with[0]]):
            return      # Edited meanwhile, perhaps back again: who knows which text this was made of.
        draft = done.with_suffix(".draft")
        draft.write_text(json.dumps([self.c_made_of(ext, *made_with), self.compiled_with(), *made_with]))
        os.replace(draft, done)

    def precompile(self, ext):
        """Compile Python.h for all modules of a flavour: gcc would read it for a fifth of its time.  It finds
        this beside their C, and takes Python.h itself if that was meant for other options."""
        made = Path(self.build_temp, "Python.h.gch", ext.name)
        made.parent.mkdir(parents=True, exist_ok=True)
        headers = sysconfig.get_path("include")
        self.spawn([*self.compiler.compiler_so, *ext.extra_compile_args, "-I" + headers, "-x", "c-header",
                    os.path.join(headers, "Python.h"), "-o", str(made)])

    def compile(self, ext):
        """Make one shared object of C, and put it where it belongs when it is whole."""
        for job in self.precompiled:
            job.result()
        linked = Path(self.get_ext_fullpath(ext.name))
        linked.unlink(missing_ok=True)
        made = copy(ext)
        made.sources = [str(self.c_file(ext))]
        super().build_extension(made)
        if self.made_inplace:
            target = self.shared_object(ext)
            target.parent.mkdir(exist_ok=True)
            os.replace(linked, target)

    def translate(self, ext):
        """Run Cython where ext is a kernel module; returns what made_with() does."""
        if ext.name == RUNTIME:
            return [], {}
        c_file = self.c_file(ext)
        arguments = ["-I", ".", "--line-directives", "--module-name", ext.name, "-o", str(c_file)]
        for name, value in DIRECTIVES.items():
            arguments += ["-X", "{}={}".format(name, value)]
        made_with = self.translators.submit(build_helper.translate, ext.name, arguments + ext.sources).result()
        if made_with is None:
            raise CompileError("Cython refuses {}".format(ext.sources[0]))
        # The same text under a second name: the object files are named after it.
        self.c_file(explore_flavour(ext)).write_text("#include \"{}\"\n".format(c_file.name))
        return made_with

    def missing(self, ext):
        """The flavours of ext that are not there, or not of the present text."""
        _, compiled = self.made_with(ext)
        return [flavour for flavour in flavours(ext) if not compiled or not self.shared_object(flavour).exists()]

    def made_with(self, ext):
        """The .pxd files that the C of ext was made from, and what of each struct it uses; or None where it is to be
        made again.  And whether all that has been compiled of it need not be, with these headers and options."""
        try:
            c_made_of, compiled_with, *made_with = json.loads(self.done(ext).read_text())
            if c_made_of == self.c_made_of(ext, *made_with):
                return made_with, compiled_with == self.compiled_with()
        except (FileNotFoundError, KeyError, TypeError, ValueError,     # never built, or a source is gone
                SyntaxError, TokenError):                               # Cython will say it better
            pass
        return None, False

    def c_made_of(self, ext, includes, last):
        """A hash of all that decides what Cython makes of ext; `includes` are the .pxd files that it includes, `last`
        what it uses of each struct."""
        own = [self.texts[path] for path in ext.sources + ext.depends if path not in HEADERS]
        texts = text_needed(own, {path: self.texts[path] for path in includes}, last)
        return hash_of([version("Cython"), *(self.texts[name] for name in BUILDERS), *texts])

    def compiled_with(self):
        """A hash of all that decides what gcc makes of that."""
        environment = [os.environ.get(name) for name in ("CC", "CFLAGS", "CPPFLAGS", "LDFLAGS", "LDSHARED")]
        return hash_of([repr(environment), version("greenlet"), sysconfig.get_config_var("EXT_SUFFIX"),
                        *(self.texts[path] for path in HEADERS)])

    def c_file(self, ext):
        return Path(ext.sources[0]) if ext.name == RUNTIME else Path(self.build_temp, ext.name + ".c")

    def done(self, ext):
        return Path(self.build_temp, ext.name + ".done")

    def shared_object(self, ext):
        """Where ext's shared object belongs."""
        if not self.made_inplace:
            return Path(self.get_ext_fullpath(ext.name))
        return Path(self.get_ext_filename(self.get_ext_fullname(ext.name)))

    @property
    def made_inplace(self):             # run() of setuptools clears self.inplace
        return self.build_lib == INPLACE

    def copy_extensions_to_source(self):
        """They are there; drop those that have no source any more."""
        wanted = {self.shared_object(made) for ext in self.extensions for made in flavours(ext, FLAVOURS)}
        for found in Path("shmkern").rglob("*.so"):
            if found not in wanted:
                found.unlink()


def hash_of(texts):
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def explore_flavour(ext):
    """The extension that is the explorer's flavour of a kernel module."""
    made = copy(ext)
    made.name = ext.name.replace("shmkern.", "shmkern.explore.kernel.")
    made.extra_compile_args, made.extra_link_args = EXPLORE_GCC_FLAGS, EXPLORE_LINK_FLAGS
    return made


def flavours(ext, wanted=ASKED_FOR):
    """All that building `ext` makes."""
    if ext.name == RUNTIME:
        return [ext]
    return [made for flavour, made in zip(FLAVOURS, (ext, explore_flavour(ext))) if flavour in wanted]


def runtime():
    """The explorer's runtime: plain C, which calls greenlet's C API."""
    import greenlet
    return Extension(
        RUNTIME, sources=["shmkern/explore/runtime.c"], depends=HEADERS,
        include_dirs=[os.path.dirname(greenlet.__file__)],
        extra_compile_args=["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-parameter"])


class BuildPy(build_py):
    def run(self):
        # A module that is gone must not reach the wheel from an old build.
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


if __name__ == "__main__":
    setup(
        ext_modules=[
            Extension(
                "shmkern." + name,
                sources=["shmkern/{}.py".format(name)],
                depends=HEADERS + ["shmkern/{}.pxd".format(name)],
                include_dirs=["shmkern"],
                extra_compile_args=HOT_GCC_FLAGS if name in HOT else GCC_FLAGS,
            )
            for name in kernel_modules()
        ] + [runtime()],
        cmdclass={"build_ext": BuildKernel, "build_py": BuildPy},
    )
