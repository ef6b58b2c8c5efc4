# SPDX-License-Identifier: GPL-2.0-only
"""What setup.py compiles again after an edit: all that depends on it, and nothing else."""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from helpers import until

# A compiler, on a machine that may be busy.
pytestmark = pytest.mark.timeout(170)

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from pxd_declarations import declarations, text_needed, unneeded_names  # noqa: E402

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
    int first
    Inner inner
    int last

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
cdef int aside_work(Outer* outer) noexcept nogil
""",
    "aside.py": """
def aside_work(outer):
    return LARGE + outer.first
""",
}
# What the modules take of structs, as struct_uses.py has it.
TAKEN = {"middle": {"Outer": None, "Inner": None}, "aside": {"Outer": "first"}}


def stale(before, after):
    """The modules that an edit makes out of date: before and after are texts as KERNEL has."""
    includes = {"low": ["types", "low"], "middle": ["types", "low", "middle"],
                "top": ["types", "low", "middle", "top"], "aside": ["types", "low", "aside"]}
    return {module for module, names in includes.items()
            if text_of(before, module, names) != text_of(after, module, names)}


def text_of(texts, module, includes):
    return text_needed([texts[f"{module}.py"], texts[f"{module}.pxd"]],
                       {name: texts[f"{name}.pxd"] for name in includes}, TAKEN.get(module, {}))


def edited(name, old, new):
    assert old in KERNEL[name]
    return KERNEL | {name: KERNEL[name].replace(old, new, 1)}


@pytest.mark.parametrize("name, old, new, expected", [
    ("types.pxd", "    SMALL = 3", "    # Said.\n    SMALL = 3", set()),
    ("types.pxd", "SMALL = 3", "SMALL = 4", {"middle"}),
    ("types.pxd", "LARGE = 1000", "LARGE = 1001", {"aside"}),
    ("types.pxd", "    LARGE = 1000", "    LARGE", {"middle", "aside"}),      # counted from the one before
    ("types.pxd", "    int value\n", "    int value\n    int other\n", {"middle"}),    # top knows of a pointer
    ("types.pxd", "    int last\n", "    int last\n    int more\n", {"middle"}),
    ("types.pxd", "    int first\n", "    int first\n    int more\n", {"middle"}),
    ("types.pxd", "    int first\n", "    int more\n    int first\n", {"middle", "aside"}),
    ("types.pxd", "    int first\n", "    long first\n", {"middle", "aside"}),
    ("types.pxd", "    int last\n", "    Lonely* last\n", {"middle"}),
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


def test_a_member_that_is_gone_makes_who_takes_it_out_of_date():
    gone = KERNEL | {"types.pxd": KERNEL["types.pxd"].replace("    int first\n", "")}
    with pytest.raises(ValueError):
        text_of(gone, "aside", ["types", "low", "aside"])


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
    ("cdef struct A:\n    B b\n    C* c\n", {"A"}, False),
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


@pytest.mark.parametrize("members, parts", [
    ("B b\n    const C* c[D][2]", [("b", {"B"}), ("c", {"const", "C", "D"})]),
    ("int a, b", []),                   # not told apart, so all of them are in the text
    ("int (*call)(A* a)", []),
])
def test_the_members_of_a_struct(members, parts):
    (declaration,) = declarations("some.pxd", f"cdef struct A:\n    {members}\n")
    assert [(member.name, member.words) for member in declaration.members] == parts
    told = " ".join([declaration.text, *(member.text for member in declaration.members)]).split()
    assert set(re.findall(r"\w+", members)) <= set(told)


# ---- struct_uses.py ----------------------------------------------------------

# A function's body, what it takes of S, and of the struct P that is a member of it; NOTHING, a member's name or WHOLE.
NOTHING, WHOLE = "nothing", None
USES = {
    "s.two": ("two", NOTHING),
    "s.two + s.one": ("two", NOTHING),
    "s.one + s.two": ("two", NOTHING),
    "address(s.two) == NULL": ("two", NOTHING),
    "s == NULL or s == t": (NOTHING, NOTHING),
    "taker(s if n else t)": (NOTHING, NOTHING),
    "n if s else 0": (NOTHING, NOTHING),
    "cast(u64, s)": (NOTHING, NOTHING),
    "taker(pairs[n])": (NOTHING, NOTHING),
    "pairs[n].two": ("two", NOTHING),
    "part_taker(address(s.part))": ("part", WHOLE),      # where it is depends on its members' alignment
    "s.part.x": ("part", WHOLE),
    "p.x": (NOTHING, "x"),
    "s.three": ("three", WHOLE),
    "s.parts[n].x": ("parts", WHOLE),
    "inline_two(s)": ("two", NOTHING),
    "inline_next(s)": (WHOLE, WHOLE),
    "sizeof(S)": (WHOLE, WHOLE),
    "sizeof(s[0])": (WHOLE, WHOLE),
    "sizeof(s.part)": ("part", WHOLE),
    "taker(s + 1)": (WHOLE, WHOLE),
    "s - t": (WHOLE, WHOLE),
    "s[n].one": (WHOLE, WHOLE),
    "taker(address(s[n]))": (WHOLE, WHOLE),
    "taker(address(all_of_s[n]))": (WHOLE, WHOLE),
    "taker(address(local))": (WHOLE, WHOLE),
}
STATEMENTS = {
    "s[0] = t[0]": (WHOLE, WHOLE),
    "s += 1; taker(s)": (WHOLE, WHOLE),
    "s.part = t.part": ("part", WHOLE),
    "s.three += 1": ("three", WHOLE),
    "while s: s = s.next": ("next", WHOLE),
}
TRANSLATE = """
import json, sys
import translator
arguments = ["-I", ".", "-3", "-X", "cdivision=True", "--line-directives", "--module-name", "shmkern.uses", "-o", "uses.c", "shmkern/uses.py"]
json.dump(translator.translate("shmkern.uses", arguments), sys.stdout)
"""


def write_uses(tree):
    """A module in which each of USES and STATEMENTS has a struct of its own."""
    package = tree / "shmkern"
    package.mkdir()
    types, inlines, own, code = [], [], [], ["from cython import NULL, address, cast, sizeof"]
    for number, body in enumerate([*USES, *STATEMENTS]):
        def renamed(text):
            return re.sub(r"\b(S|P|taker|part_taker|inline_two|inline_next|all_of_s)\b", rf"\g<1>{number}", text)
        types.append(renamed(
            "cdef struct P:\n    int x\n    int y\n"
            "cdef struct S:\n    int one\n    int two\n    P part\n    int three\n    P parts[2]\n    S* next\n    int last\n"))
        inlines.append(renamed(
            "cdef inline int inline_two(S* s) noexcept nogil:\n    return s.two\n"
            "cdef inline S* inline_next(S* s) noexcept nogil:\n    return s + 1\n"))
        own.append(renamed(
            "cdef int taker(S* s) noexcept nogil\ncdef int part_taker(P* p) noexcept nogil\n"
            + ("cdef S all_of_s[4]\n" if "all_of_s" in body else "")
            + ("@cython.locals(local=S)\n" if "local" in body else "")
            + f"cdef u64 use{number}(S* s, S* t, S** pairs, P* p, int n) noexcept nogil\n"))
        code.append(renamed(
            "def taker(s):\n    return s != NULL\ndef part_taker(p):\n    return p != NULL\n"
            f"def use{number}(s, t, pairs, p, n):\n    "
            + (f"return cast(u64, {body})" if body in USES else f"{body}\n    return n")))
    (package / "__init__.py").touch()
    (package / "__init__.pxd").touch()
    (package / "types.pxd").write_text(
        "ctypedef unsigned long u64\n"
        + "".join(f"cdef struct {name}:\n    int one\n" for name in ("Held", "Lent", "Given", "Returned")) + "".join(types))
    (package / "inlines.pxd").write_text("from shmkern.types cimport *\ncdef class Holder:\n    cdef Held held\n" + "".join(inlines))
    own.append("cdef int use_held(Holder holder)\ncdef Lent lent[2]\ncdef int unused(Given given, int n) noexcept nogil\n"
               "cdef Returned returned() noexcept nogil\n")
    code.append("def use_held(holder):\n    return holder.held.one\ndef unused(given, n):\n    return n\n"
                "def returned():\n    pass\n")
    (package / "uses.pxd").write_text("cimport cython\nfrom shmkern.inlines cimport *\n" + "".join(own))
    (package / "uses.py").write_text("\n".join(code))


@pytest.fixture(scope="module")
def uses(tmp_path_factory):
    """What Cython says of that module, and its C."""
    tree = tmp_path_factory.mktemp("uses")
    write_uses(tree)
    run = subprocess.run([sys.executable, "-c", TRANSLATE], cwd=tree, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0 and run.stdout != "null", run.stdout + run.stderr
    return json.loads(run.stdout)[1], tree / "uses.c"


@pytest.mark.parametrize("number, body", [*enumerate([*USES, *STATEMENTS])])
def test_what_a_module_takes_of_a_struct(uses, number, body):
    last, _ = uses
    assert tuple(last.get(f"{struct}{number}", NOTHING) for struct in "SP") == (USES | STATEMENTS)[body]


@pytest.mark.parametrize("struct", [
    "Held",         # by a class of another module, whose size is looked at when it is imported
    "Lent",         # a variable, which only others use
    "Given",        # an argument that is not used: where the next one is depends on its size
    "Returned",
])
def test_a_struct_is_taken_whole_by_what_has_no_code(uses, struct):
    assert uses[0][struct] is WHOLE


def object_code(c_file, text):
    """What gcc makes of a text of the C file."""
    return subprocess.run(["gcc", "-O1", "-g0", "-fno-strict-aliasing", "-w", "-fPIC", "-S", "-x", "c", "-", "-o", "-",
                           f"-I{sysconfig.get_path('include')}", f"-I{ROOT / 'shmkern'}", f"-I{c_file.parent}"],
                          input=text, capture_output=True, text=True, check=True).stdout


def stretched(text, last):
    """C in which each struct has a page more behind the last of the members that are said to be taken of it, and
    an alignment that it did not have."""
    count, more = 0, " __int128 stretch[256];"

    def stretch(match):
        nonlocal count
        name = match["name"][int(match["length"]) + 1:]
        if last.get(name, NOTHING) is WHOLE:
            return match[0]
        count += 1
        if name not in last:
            return f"{match['head']}{more}{match['body']}"
        body, found = re.subn(rf"(?<=[ *(])(?:__pyx_)?{last[name]}\b[^;\n]*;", rf"\g<0>{more}", match["body"], count=1)
        assert found, f"{name} has no {last[name]}"
        return match["head"] + body
    result = re.sub(r"(?P<head>\nstruct __pyx_t_7shmkern_(?P<length>\d+)(?P<name>\w+) {)(?P<body>.*?\n};)", stretch, text, flags=re.S)
    return result, count


def test_what_is_not_said_to_be_taken_makes_no_difference(uses):
    last, c_file = uses
    text, count = stretched(c_file.read_text(), last)
    assert count > len(USES)
    assert object_code(c_file, text) == object_code(c_file, c_file.read_text())
    # Were one member forgotten, there would be one.
    text, _ = stretched(c_file.read_text(), {**last, "S0": "one"})
    assert object_code(c_file, text) != object_code(c_file, c_file.read_text())


@pytest.mark.parametrize("module", ["lackey", "move_pages", "shmem", "swapoff", "process"])
def test_what_the_kernel_is_not_said_to_take_makes_no_difference(module):
    done = ROOT / "build" / "inplace" / f"shmkern.{module}.done"
    last, c_file = json.loads(done.read_text())[3], done.with_suffix(".c")
    text, count = stretched(c_file.read_text(), last)
    assert count > 0
    assert object_code(c_file, text) == object_code(c_file, c_file.read_text())


def test_no_two_structs_of_the_kernel_have_one_name():
    """What is taken of them is known by it."""
    structs = [name for path in (ROOT / "shmkern").glob("*.pxd") for each in declarations(path.name, path.read_text())
               for name in each.names if each.members]
    assert len(structs) > 50 and len(structs) == len(set(structs))


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
    for name in ("setup.py", "build_helper.py", "pxd_declarations.py", "struct_uses.py", "translator.py"):
        shutil.copy(ROOT / name, tree)
    (tree / "shmkern" / "explore").mkdir(parents=True)
    for name, text in {**KERNEL, "__init__.py": "", "__init__.pxd": "", "explore/runtime.c": "int nothing;\n"}.items():
        (tree / "shmkern" / name).write_text(text)
    compiled, run = build(tree)
    assert compiled == {"low", "middle", "top", "aside", "runtime"}, run.stderr
    assert answer(tree).stdout == "11 7 12\n"
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

    # Behind all that `aside` takes of it.
    types = KERNEL["types.pxd"].replace("int last", "int last\n    int more").replace("SMALL = 3", "SMALL = 4")
    (package / "types.pxd").write_text(types)
    compiled, run = build(tmp_path)
    assert compiled == {"middle"}, run.stderr
    assert answer(tmp_path).stdout == "12 7 16\n"

    # A function that only `low` needs.
    (package / "low.pxd").write_text(KERNEL["low.pxd"].replace("int low_unused(int number)", "Nothing low_unused(int number)"))
    _, run = build(tmp_path)
    assert run.returncode != 0
    assert "shmkern/low.pxd:9:5: 'Nothing' is not a type identifier" in run.stderr
    assert "Cython refuses shmkern/" in run.stderr

    (package / "low.pxd").write_text(KERNEL["low.pxd"])
    _, run = build(tmp_path)
    assert run.returncode == 0, run.stderr
    assert answer(tmp_path).stdout == "12 7 16\n"
    assert build(tmp_path)[0] == set()


def test_another_way_to_build_makes_all_out_of_date(tmp_path, alone):
    assert build(tmp_path)[0] == set()
    assert build(tmp_path, CPPFLAGS="-DNOTHING")[0] == {"low", "runtime"}


def test_pip_builds_it_too(tmp_path, alone):
    """It runs the text of setup.py, in which nothing can be found by a module's name."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "shmkern"\nversion = "1"\n[tool.setuptools]\npackages = ["shmkern"]\n')
    run = subprocess.run([sys.executable, "-c", "from setuptools import build_meta; print(build_meta.build_wheel('.'))"],
                         cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    names = zipfile.ZipFile(tmp_path / run.stdout.split()[-1]).namelist()
    assert {name.split(".")[0] for name in names if name.endswith(".so")} == {
        "shmkern/low", "shmkern/explore/kernel/low", "shmkern/explore/runtime"}


def test_python_h_is_compiled_once(tmp_path, alone):
    """gcc -H tells what it includes: "!" is before what had been compiled already."""
    _, run = build(tmp_path, CC="gcc -H")
    assert re.search(r"^! build/inplace/Python.h.gch/", run.stderr, re.M), run.stderr


def test_no_python_h_of_another_build_is_used(tmp_path, alone):
    """It may be another Python's, or half of one."""
    (left,) = tmp_path.glob("build/inplace/Python.h.gch/*")
    os.truncate(left, left.stat().st_size // 2)
    left = left.rename(left.with_name("shmkern.gone"))
    (alone / "low.py").write_text(KERNEL["low.py"] + "# Edited.\n")
    compiled, run = build(tmp_path)
    assert compiled == {"low"} and run.returncode == 0, run.stderr
    assert not left.exists()


def test_after_an_edit_of_a_header_only_gcc_works(tmp_path, alone):
    (alone / "low.h").write_text("#define STEP 2\n")
    (alone / "low.pxd").write_text(KERNEL["low.pxd"] + 'cdef extern from "low.h":\n    int STEP\n')
    (alone / "low.py").write_text(KERNEL["low.py"].replace("2 *", "STEP *") + "def answer():\n    return low_twice(4),\n")
    build(tmp_path)
    c_file = tmp_path / "build/inplace/shmkern.low.c"
    before = c_file.stat().st_mtime_ns
    (alone / "low.h").write_text("#define STEP 3\n")
    assert build(tmp_path)[0] == {"low", "runtime"}
    assert answer(tmp_path, "low").stdout == "12\n"
    assert c_file.stat().st_mtime_ns == before
    assert build(tmp_path)[0] == set()


def test_what_was_edited_while_it_was_compiled_is_compiled_again(tmp_path, alone):
    """Also if the edit is taken back, before the end or later."""
    header = alone / "low.h"
    header.write_text("#define STEP 2\n")
    # A compiler in whose way somebody edits.
    (tmp_path / "cc").write_text("#!/bin/sh\ncase $* in *low.c*) test ! -f edit || sh edit;; esac\n"
                                 "gcc \"$@\" || exit\ncase $* in *low.c*) test ! -f back || sh back;; esac\n")
    (tmp_path / "cc").chmod(0o755)
    (alone / "low.pxd").write_text(KERNEL["low.pxd"] + 'cdef extern from "low.h":\n    int STEP\n')
    (alone / "low.py").write_text(KERNEL["low.py"].replace("2 *", "STEP *") + "def answer():\n    return low_twice(4),\n")
    edit, back = tmp_path / "edit", tmp_path / "back"
    edit.write_text("cp -p shmkern/low.h kept; echo '#define STEP 3' >shmkern/low.h")
    assert build(tmp_path, CC="./cc")[1].returncode == 0
    assert answer(tmp_path, "low").stdout == "12\n"
    header.write_text("#define STEP 2\n")
    back.write_text("mv kept shmkern/low.h")
    assert "low" in build(tmp_path, CC="./cc")[0]
    assert answer(tmp_path, "low").stdout == "12\n" and header.read_text() == "#define STEP 2\n"
    back.unlink()
    # A builder.
    edit.write_text("echo '# Edited.' >>setup.py")
    assert "low" in build(tmp_path, CC="./cc")[0]
    edit.unlink()
    assert answer(tmp_path, "low").stdout == "8\n"
    assert "low" in build(tmp_path, CC="./cc")[0]
    assert build(tmp_path, CC="./cc")[0] == set()


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
    (tmp_path / "cc").write_text("#!/bin/sh\ncase $* in *low.c*) until test -e go; do sleep 0.01; done; esac\nexec gcc \"$@\"\n")
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
    """Each type, function and variable of another module is in a module's C under its name."""
    texts = {path.stem: path.read_text() for path in (ROOT / "shmkern").glob("*.pxd")}
    checked = 0
    for done in (ROOT / "build" / "inplace").glob("shmkern.*.done"):
        module = done.stem.removeprefix("shmkern.")
        includes = [Path(path).stem for path in json.loads(done.read_text())[2]]
        if not includes:        # explore/runtime.c
            continue
        own = [(ROOT / "shmkern" / f"{module}.py").read_text(), texts[module]]
        unneeded = unneeded_names(own, {include: texts[include] for include in includes})
        code = re.sub(r'"[^"\n]*"', "", done.with_suffix(".c").read_text())
        cnames = re.findall(r"\b__pyx_(?:v?[fp]|t)_7shmkern_(\d+)(\w+)", code)
        for owner, name in {(name[:int(length)], name[int(length) + 1:]) for length, name in cnames}:
            if owner != module:
                assert name not in unneeded, f"{module} has {name} of {owner}"
                checked += 1
    assert checked > 3000
