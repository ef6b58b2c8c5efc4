# SPDX-License-Identifier: GPL-2.0-only
"""What setup.py compiles again after an edit: all that depends on it, and nothing else."""
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import until

# A compiler, on a machine that may be busy.
pytestmark = pytest.mark.timeout(170)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from pxd_declarations import declarations, needed, text_needed  # noqa: E402

# A kernel of four modules.  `types` has no code; `low` is below all; `middle` calls it, `top` calls
# `middle`, and `aside` includes `low` but calls nothing of it.
KERNEL = {
    "types.pxd": """
cdef enum:
    SMALL = 3
    LARGE = 1000

cdef struct Inner:
    int value

cdef struct Outer:
    Inner inner

cdef struct Lonely:
    int value
""",
    "low.pxd": """
from shmkern.types cimport *
from shmkern.types cimport Lonely

# Said of it.
cdef int low_twice(int number) noexcept nogil
cdef int low_count
cdef int low_hidden(int number) noexcept nogil
cdef int low_unused(int number) noexcept nogil
cdef inline int low_inline(int number) noexcept nogil:
    return low_hidden(number) + 1
""",
    "low.py": """
def low_twice(number):
    return 2 * number
def low_hidden(number):
    return number
def low_unused(number):
    return number
""",
    "middle.pxd": """
from shmkern.low cimport *
cdef int middle_size(Outer* outer) noexcept nogil
cdef int middle_add(int number) noexcept nogil
""",
    "middle.py": """
from cython import sizeof
def middle_size(outer):
    return sizeof(outer[0])
def middle_add(number):
    return low_twice(number) + SMALL
""",
    "top.pxd": """
from shmkern.middle cimport *
""",
    "top.py": """
from cython import NULL, cast
def answer():
    return middle_add(4), low_inline(6), middle_size(NULL)
""",
    "aside.pxd": """
from shmkern.low cimport *
cdef int aside_work() noexcept nogil
""",
    "aside.py": """
def aside_work():
    return LARGE
""",
}


def stale(before, after):
    """The modules that an edit makes out of date: before and after are texts as KERNEL has."""
    includes = {"low": ["types", "low"], "middle": ["types", "low", "middle"],
                "top": ["types", "low", "middle", "top"], "aside": ["types", "low", "aside"]}
    return {module for module, names in includes.items()
            if text_of(before, module, names) != text_of(after, module, names)}


def text_of(texts, module, includes):
    return text_needed([texts[f"{module}.py"], texts[f"{module}.pxd"]],
                       {name: texts[f"{name}.pxd"] for name in includes})


def edited(name, old, new):
    assert old in KERNEL[name]
    return KERNEL | {name: KERNEL[name].replace(old, new, 1)}


@pytest.mark.parametrize("name, old, new, expected", [
    ("types.pxd", "    SMALL = 3", "    # Said.\n    SMALL = 3", set()),
    ("types.pxd", "SMALL = 3", "SMALL = 4", {"middle"}),
    ("types.pxd", "LARGE = 1000", "LARGE = 1001", {"aside"}),
    ("types.pxd", "    LARGE = 1000", "    LARGE", {"middle", "aside"}),      # counted from the one before
    ("types.pxd", "    int value\n", "    int value, other\n", {"middle"}),   # top knows of a pointer
    ("types.pxd", "cdef struct Lonely:\n    int value\n", "", {"low"}),       # a cimport is not a use
    ("low.pxd", "# Said of it.", "# Said of it otherwise.", {"low"}),
    ("low.pxd", "# Said of it.\n", "", {"low", "top"}),                       # the inline function moves up
    ("low.pxd", "+ 1", "+ 2", {"low", "top"}),
    ("low.pxd", "low_twice(int number)", "low_twice(long number)", {"low", "middle"}),
    ("low.pxd", "low_unused(int number)", "low_unused(long number)", {"low"}),
    ("low.pxd", "from shmkern", "cimport cython\nfrom shmkern", {"low", "middle", "top", "aside"}),
    ("low.pxd", "low_hidden(int number)", "low_hidden(long number)", {"low", "top"}),
    ("low.pxd", "int low_count", "long low_count", {"low"}),
    ("middle.pxd", "middle_add(int number)", "middle_add(short number)", {"middle", "top"}),
    ("low.py", "2 * number", "3 * number", {"low"}),
])
def test_what_depends_on_an_edit_is_out_of_date(name, old, new, expected):
    assert stale(KERNEL, edited(name, old, new)) == expected


def test_code_that_names_a_struct_depends_on_its_fields():
    """An inline function of another file may follow the pointer, without a field's name."""
    before = edited("low.pxd", "+ 1", "+ sizeof((<Inner*>NULL)[0])")
    after = before | {"types.pxd": before["types.pxd"].replace("int value", "long value", 1)}
    assert stale(before, after) == {"low", "middle", "top"}


def test_who_calls_a_function_that_moves_is_out_of_date():
    """It imports it from another module."""
    function = "cdef int low_twice(int number) noexcept nogil\n"
    moved = edited("low.pxd", function, "# It was here.\n") | {"types.pxd": KERNEL["types.pxd"] + function}
    assert stale(KERNEL, moved) == {"low", "middle"}


def test_a_header_that_a_file_includes_makes_all_out_of_date_who_include_the_file():
    """It may change the meaning of anything."""
    low = KERNEL["low.pxd"]
    before, after = (KERNEL | {"low.pxd": f"{low}cdef extern from '{header}':\n    pass\n"} for header in ("a.h", "b.h"))
    assert stale(before, after) == {"low", "middle", "top", "aside"}


@pytest.mark.parametrize("statement, names, code", [
    ("cdef u64* f(int (*g)(int), u64 h) noexcept nogil", {"f"}, False),
    ("@cython.locals(a=u64, b=Page)\ncdef int f(int a)", {"f"}, False),
    ("cdef inline int f(int a) noexcept:\n    return g(a)\n", {"f"}, True),
    ("ctypedef Page* (*new_page_t)(Page* page, int** result) noexcept nogil", {"new_page_t"}, False),
    ("ctypedef int (*table_t[4])(int a)", {"int", "table_t", "a"}, False),
    ("cdef int (*hook)(int a)", {"int", "hook", "a"}, False),
    ("cdef int (**hooks)(int a)", {"int", "hooks", "a"}, False),
    ("cdef int (*f(int a))(int b)", {"int", "f", "a", "b"}, False),
    ("cdef inline int f(int a) noexcept: return g(a)", {"f"}, True),
    ("cdef inline int[:] f(int a):\n    return g(a)\n", {"inline", "int", "f", "a", "return", "g"}, True),
    ("cdef int f(int a), g(int b)", {"int", "f", "a", "g", "b"}, False),
    ("cdef int f(int a); cdef int g(int b)", {"int", "f", "a", "g", "b"}, False),
    ("ctypedef const u64[::1] words_view", {"words_view"}, False),
    ("ctypedef char path_t[64]", {"path_t"}, False),
    ("cdef AddressSpaceOperations a_ops_table[16]     # NR_AOPS", {"a_ops_table"}, False),
    ("cdef packed struct A:\n    B b\n    C* c\n", {"A"}, False),
    ("cdef class A(B):\n    cdef C c\n    cpdef f(self)\n", {"A"}, False),
    ("cdef enum A:\n    B = 1\n    C\n", {"A", "B", "C"}, False),
    ("cdef int a, b", {"int", "a", "b"}, False),
    ("cdef int a[2][3]", {"int", "a"}, False),
    ("cdef int a[f(1)]", {"int", "a", "f"}, False),
    ("cdef extern from *:\n    const u64 A\n", set(), False),       # what C is in it concerns all
    ("cdef extern from 'some.h':\n    pass\n", set(), False),
    ("from shmkern.low cimport *", set(), False),
    ("include 'some.pxi'", set(), False),
])
def test_what_a_statement_declares(statement, names, code):
    """Code that is compiled into others has its lines in it."""
    (declaration,) = declarations("some.pxd", statement)
    assert (declaration.names, declaration.text.startswith("1:")) == (names, code)


# ---- setup.py itself ---------------------------------------------------------

BUILD = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]


def build(tree, **environment):
    """Run setup.py there; returns the names of the modules that it compiled and the finished process."""
    run = subprocess.run(BUILD, cwd=tree, env=os.environ | {"SHMKERN_FLAVOURS": "shipped"} | environment,
                         capture_output=True, text=True)
    return set(re.findall(r"Compiling shmkern/(?:explore/)?(\w+)\.", run.stdout)), run


def answer(tree, module="top"):
    return subprocess.run([sys.executable, "-c", f"import shmkern.{module}; print(*shmkern.{module}.answer())"], cwd=tree,
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A tree of the sources of KERNEL, and what setup.py has made of them."""
    tree = tmp_path_factory.mktemp("built")
    for name in ("setup.py", "pxd_declarations.py", "translator.py"):
        shutil.copy(ROOT / name, tree)
    (tree / "shmkern" / "explore").mkdir(parents=True)
    for name, text in {**KERNEL, "__init__.py": "", "__init__.pxd": "", "explore/runtime.c": "int nothing;\n"}.items():
        (tree / "shmkern" / name).write_text(text)
    compiled, run = build(tree)
    assert compiled == {"low", "middle", "top", "aside", "runtime"}, run.stderr
    assert answer(tree).stdout == "11 7 4\n"
    return tree


@pytest.fixture
def package(built, tmp_path):
    """shmkern/ of a tree of one's own."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return tmp_path / "shmkern"


@pytest.fixture
def alone(package):
    """The same with one module, which takes less time."""
    for name in ("middle", "top", "aside"):
        for path in package.glob(f"{name}.*"):
            path.unlink()
    return package


def test_a_build_makes_what_is_out_of_date_and_nothing_else(tmp_path, package):
    for path in package.glob("*.p*"):
        path.touch()
    # What it has made of them on the way need not be there, as in the trees of the explorer's museum.
    for path in tmp_path.glob("build/inplace/*.c"):
        path.unlink()
    assert build(tmp_path)[0] == set()

    (package / "types.pxd").write_text(KERNEL["types.pxd"].replace("SMALL = 3", "SMALL = 4"))
    compiled, run = build(tmp_path)
    assert compiled == {"middle"}, run.stderr
    assert answer(tmp_path).stdout == "12 7 4\n"

    # A function that only `low` needs.
    (package / "low.pxd").write_text(KERNEL["low.pxd"].replace("int low_unused(int number)", "Nothing low_unused(int number)"))
    _, run = build(tmp_path)
    assert run.returncode != 0
    assert "shmkern/low.pxd:9:5: 'Nothing' is not a type identifier" in run.stderr
    assert "Cython refuses shmkern/" in run.stderr

    (package / "low.pxd").write_text(KERNEL["low.pxd"])
    _, run = build(tmp_path)
    assert run.returncode == 0, run.stderr
    assert answer(tmp_path).stdout == "12 7 4\n"
    assert build(tmp_path)[0] == set()


def test_another_way_to_build_makes_all_out_of_date(tmp_path, alone):
    assert build(tmp_path)[0] == set()
    assert build(tmp_path, CPPFLAGS="-DNOTHING")[0] == {"low", "runtime"}


def test_what_was_edited_while_it_was_compiled_is_compiled_again(tmp_path, alone):
    """Also if the edit is taken back."""
    (alone / "low.h").write_text("#define STEP 2\n")
    # A compiler in whose way somebody edits.
    (tmp_path / "cc").write_text("#!/bin/sh\ncase $* in *low.c*) test ! -f edit || mv edit shmkern/low.h; esac\nexec gcc $*\n")
    (tmp_path / "cc").chmod(0o755)
    (alone / "low.pxd").write_text(KERNEL["low.pxd"] + 'cdef extern from "low.h":\n    int STEP\n')
    (alone / "low.py").write_text(KERNEL["low.py"].replace("2 *", "STEP *") + "def answer():\n    return low_twice(4),\n")
    (tmp_path / "edit").write_text("#define STEP 3\n")
    assert build(tmp_path, CC="./cc")[1].returncode == 0
    assert answer(tmp_path, "low").stdout == "12\n"
    (alone / "low.h").write_text("#define STEP 2\n")
    assert "low" in build(tmp_path, CC="./cc")[0]
    assert answer(tmp_path, "low").stdout == "8\n"


def test_a_flavour_that_was_not_asked_for_is_made_when_it_is(tmp_path, alone):
    """And until then there is none of another text."""
    shipped, explorers = (lambda: [*alone.glob("low.*.so")]), (lambda: [*alone.glob("explore/kernel/low.*.so")])
    assert shipped() and not explorers()
    before = shipped()[0].stat().st_ino
    assert build(tmp_path, SHMKERN_FLAVOURS="")[0] == {"low"}
    assert explorers() and shipped()[0].stat().st_ino == before
    assert build(tmp_path, SHMKERN_FLAVOURS="")[0] == set()
    (alone / "low.py").write_text(KERNEL["low.py"].replace("2 *", "3 *"))
    # Smaller, so it comes last.
    (alone / "aside.py").write_text("def\n")
    (alone / "aside.pxd").write_text(KERNEL["aside.pxd"])
    assert build(tmp_path, SHMKERN_FLAVOURS="explore")[1].returncode != 0
    assert not shipped()
    for path in alone.glob("aside.p*"):
        path.unlink()
    assert build(tmp_path)[1].returncode == 0
    assert shipped()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_build_that_is_ended_leaves_no_process_and_is_taken_up_again(tmp_path, alone, number):
    shutil.rmtree(tmp_path / "build")
    for path in alone.glob("low.*.so"):
        path.unlink()
    # A compiler that is not through before the signal has come.
    (tmp_path / "cc").write_text("#!/bin/sh\ncase $* in *low.c*) until test -e go; do sleep 0.01; done; esac\nexec gcc $*\n")
    (tmp_path / "cc").chmod(0o755)
    process = subprocess.Popen(BUILD, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                               env=os.environ | {"SHMKERN_FLAVOURS": "shipped", "CC": "./cc"})
    until(lambda: [*tmp_path.glob("build/inplace/*.c")], "the first C", 60)
    process.send_signal(number)
    (tmp_path / "go").touch()
    # Until all are gone who may write there.
    process.communicate(timeout=60)
    assert process.returncode != 0
    compiled, run = build(tmp_path, CC="./cc")
    assert "low" in compiled and run.returncode == 0
    assert len([*alone.glob("low.*.so")]) == 1


def test_nothing_is_in_the_kernels_c_but_what_its_modules_need():
    """Each type, function and variable of another module is in a module's C under its name; and a struct's
    fields are where it is needed as a whole."""
    texts = {path.stem: path.read_text() for path in (ROOT / "shmkern").glob("*.pxd")}
    declared = {(module, name): declaration for module, text in texts.items()
                for declaration in declarations(module, text) for name in declaration.names}
    checked = 0
    for done in (ROOT / "build" / "inplace").glob("shmkern.*.done"):
        module = done.stem.removeprefix("shmkern.")
        includes = [Path(line).stem for line in done.read_text().splitlines()[1:]]
        if not includes:        # explore/runtime.c
            continue
        own = [(ROOT / "shmkern" / f"{module}.py").read_text(), texts[module]]
        needs, whole = needed(own, {include: texts[include] for include in includes})
        code = re.sub(r'"[^"\n]*"', "", done.with_suffix(".c").read_text())
        for found, cname in ((needs, r"\b__pyx_(?:v?[fp]|t)_7shmkern_(\d+)(\w+)"),
                             (whole, r"\nstruct __pyx_t_7shmkern_(\d+)(\w+) {")):
            # Each has its module's length before it.
            for owner, name in {(name[:int(length)], name[int(length) + 1:]) for length, name in re.findall(cname, code)}:
                if owner != module:
                    assert declared[owner, name] in found, f"{module} has {name} of {owner}"
                    checked += 1
    assert checked > 3000
