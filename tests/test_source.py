# SPDX-License-Identifier: GPL-2.0-only
"""Rules of the source that the compiler does not check."""
import ast
import re
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import shmkern
from shmkern import cli, layout

PACKAGE = Path(shmkern.__file__).parent
HEADERS = sorted(header for header in PACKAGE.glob("*.pxd") if header.stem != "__init__")
KERNEL = [header for header in HEADERS if header.with_suffix(".py").exists()]


def declared_locals(header):
    """{function: names with a declared type} of a .pxd."""
    found, pending = {}, set()
    for line in header.read_text().splitlines():
        if line.lstrip().startswith("@cython.locals("):
            pending |= set(re.findall(r"(\w+)=", line))
        elif match := re.match(r"\s*cp?def (?:inline )?.*?(\w+)\(", line):
            found[match.group(1)] = pending
            pending = set()
    return found


def undeclared_nulls(source, header):
    """Locals that are assigned a bare NULL and have no declared type: "function: name"."""
    declared = declared_locals(header)
    for function in ast.walk(ast.parse(source.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        known = {argument.arg for argument in function.args.args} | declared.get(function.name, set())
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name) and node.value.id == "NULL":
                for target in node.targets:
                    if isinstance(target, ast.Name) and target.id not in known:
                        yield f"{function.name}: {target.id}"


@pytest.mark.parametrize("header", KERNEL, ids=lambda header: header.stem)
def test_a_local_that_may_be_null_has_a_declared_type(header):
    """What Cython infers for it depends on the order in which it happens to look."""
    assert list(undeclared_nulls(header.with_suffix(".py"), header)) == []


def test_an_undeclared_null_is_found(tmp_path):
    source, header = tmp_path / "x.py", tmp_path / "x.pxd"
    source.write_text("def f(a):\n    found = NULL\n    a = NULL\n")
    header.write_text("cdef void f(u64* a) noexcept nogil\n")
    assert list(undeclared_nulls(source, header)) == ["f: found"]
    header.write_text("@cython.locals(found=pointer)\ncdef void f(u64* a) noexcept nogil\n")
    assert list(undeclared_nulls(source, header)) == []


def returned_types(headers):
    """{function: the type that it returns} of some .pxd, as C knows it."""
    found = {}
    for header in headers:
        for kind, name in re.findall(r"^(?:cdef (?:inline )?|    )(\w+\**) (\w+)\(", header.read_text(), re.M):
            if kind not in ("cpdef", "return"):
                found[name] = "int" if kind == "i32" else kind
    return found


def mixed_locals(source, header, types):
    """Locals without a declared type that take, themselves or by way of another, what functions of different types
    return: "function: name"."""
    declared = declared_locals(header)
    for function in ast.walk(ast.parse(source.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        taken = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                value = node.value.func if isinstance(node.value, ast.Call) else node.value
                for target in node.targets:
                    if isinstance(target, ast.Name) and isinstance(value, ast.Name):
                        taken.setdefault(target.id, set()).add(value.id)
        for _ in taken:
            for names in taken.values():
                names.update(*(taken[name] for name in names & taken.keys()))
        for local in taken.keys() - {argument.arg for argument in function.args.args} - declared.get(function.name, set()):
            if len({types[name] for name in taken[local] & types.keys()}) > 1:
                yield f"{function.name}: {local}"


@pytest.mark.parametrize("header", KERNEL, ids=lambda header: header.stem)
def test_a_local_that_takes_values_of_several_types_has_a_declared_one(header):
    """Of a pte_t and a u64 Cython takes the one that it happens to look at first."""
    assert list(mixed_locals(header.with_suffix(".py"), header, returned_types(HEADERS))) == []


def test_an_undeclared_local_of_several_types_is_found(tmp_path):
    source, header = tmp_path / "x.py", tmp_path / "x.pxd"
    source.write_text("def f(a):\n    x = one(a)\n    y = one(a)\n    while x:\n        z = two(x)\n        x = z\n")
    types = "cdef pte_t one(int a) noexcept nogil\ncdef extern from \"y.h\":\n    u64 two(int a)\n"
    header.write_text(f"{types}cdef void f(int a) noexcept nogil\n")
    assert list(mixed_locals(source, header, returned_types([header]))) == ["f: x"]
    header.write_text(f"{types}@cython.locals(x=pte_t)\ncdef void f(int a) noexcept nogil\n")
    assert list(mixed_locals(source, header, returned_types([header]))) == []


def idle_declarations(source, header):
    """Declared types of what is no local of the function, and functions that are declared twice: "function: name"."""
    text = header.read_text()
    functions = {node.name: {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
                 for node in ast.walk(ast.parse(source.read_text())) if isinstance(node, ast.FunctionDef)}
    for function, names in declared_locals(header).items():
        yield from (f"{function}: {name}" for name in sorted(names - functions.get(function, names)))
    declared = re.findall(r"^cdef .*?(\w+)\(.*\) noexcept nogil$", text, re.M)
    yield from (f"{function}: {function}" for function in sorted(set(declared)) if declared.count(function) > 1)


@pytest.mark.parametrize("header", KERNEL, ids=lambda header: header.stem)
def test_what_is_declared_is_there_and_is_declared_once(header):
    assert list(idle_declarations(header.with_suffix(".py"), header)) == []


def test_an_idle_declaration_is_found(tmp_path):
    source, header = tmp_path / "x.py", tmp_path / "x.pxd"
    source.write_text("def f(a):\n    found = a\n")
    header.write_text("@cython.locals(found=u64, lost=u64)\ncdef void f(u64 a) noexcept nogil\n"
                      "cdef void f(u64 a) noexcept nogil\n")
    assert list(idle_declarations(source, header)) == ["f: f"]
    header.write_text("@cython.locals(found=u64, lost=u64)\ncdef void f(u64 a) noexcept nogil\n")
    assert list(idle_declarations(source, header)) == ["f: lost"]


SOURCES = sorted(file for folder in (".", "shmkern", "shmkern/audit", "shmkern/explore", "stress", "bench", "tests")
                 for file in (PACKAGE.parent / folder).glob("*.py"))


def idle_imports(source):
    """What a file imports and does not use, but for packages whose face that is."""
    text = source.read_text()
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom) and "noqa: F401" not in lines[node.lineno - 1]:
            names = [(alias.asname or alias.name).split(".")[0] for alias in node.names]
            yield from (name for name in names if name != "*" and len(re.findall(rf"\b{name}\b", text)) == 1)


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: f"{source.parent.name}/{source.name}")
def test_what_is_imported_is_used(source):
    if source.name != "__init__.py":
        assert list(idle_imports(source)) == []


def without_comments(source):
    """The text of a file, but for comments; the name of an array's size, behind it, stays: `[3]  # NR_WMARK`."""
    return re.sub(r"(\] +# \w+)|(?:^|\s)#.*", r"\1", source.read_text(), flags=re.M)


def dead_declarations(headers, sources):
    """Enumerators and inline functions of some .pxd files whose names stand nowhere else in these and the sources."""
    texts = {header.name: without_comments(header) for header in headers}
    used = Counter(re.findall(r"\w+", " ".join([*texts.values(), *map(without_comments, sources)])))
    for name, text in texts.items():
        declared = re.findall(r"^ +(\w+) = |^cdef inline .*?(\w+)\(", text, re.M)
        yield from (f"{name}: {constant or function}" for constant, function in declared if used[constant or function] == 1)


def test_constants_and_inline_functions_are_used():
    assert list(dead_declarations(HEADERS, [*SOURCES, *PACKAGE.glob("explore/*.c")])) == []


def test_a_dead_declaration_is_found(tmp_path):
    source, header = tmp_path / "x.py", tmp_path / "x.pxd"
    source.write_text("used()  # and lost, said a comment\n")
    header.write_text("cdef enum:\n    LOST = 1\n    NR_A = 3          # not LOST\n\ncdef struct X:\n    u64 a[3]  # NR_A\n\n"
                      "cdef inline int used() noexcept nogil:\n    return 1\n\ncdef inline u64* lost(int a) noexcept nogil:\n"
                      "    return NULL\n")
    assert list(dead_declarations([header], [source])) == ["x.pxd: LOST", "x.pxd: lost"]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: header.stem)
def test_an_array_is_as_long_as_the_constant_that_it_names(header):
    named = re.findall(r"\w\[(\d+)\] +# ([A-Z_]{3,})\b", header.read_text())
    assert [(size, name) for size, name in named if layout.constants[name] != int(size)] == []


def imported(name):
    """What a module of the package, or a package in it, imports and cimports of it, anywhere in its .py and .pxd."""
    header, found = PACKAGE / f"{name}.pxd", set()
    if header.exists():
        found |= set(re.findall(r"^(?:from|cimport) shmkern\.(\w+)", header.read_text(), re.M))
    for source in [*PACKAGE.glob(f"{name}.py"), *PACKAGE.glob(f"{name}/*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            for module in modules:
                first, *rest = module.removeprefix("cython.cimports.").split(".")
                if first == "shmkern":
                    found.add(rest[0] if rest else "__init__")
    if name == "cli":
        found |= {module for module, _summary in cli.MODULES.values()}
    return found


def rooms():
    """{module: its row} of the table in docs/architecture.md."""
    text = (PACKAGE.parent / "docs/architecture.md").read_text()
    table = text[text.index("| file |"):text.index("## The block")]
    cells = [line.split("|")[1] for line in table.splitlines()[2:] if line.startswith("|")]
    named = [(name, row) for row, cell in enumerate(cells) for name in re.findall(r"`(\w+)(?:\.h|\.pxd|/)?`", cell)]
    assert len(named) == len(dict(named)), "a module is in two rows"
    return dict(named)


def test_files_import_only_from_above_in_the_table_of_rooms():
    modules = {file.stem for pattern in ("*.py", "*.pxd") for file in PACKAGE.glob(pattern)}
    modules |= {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    row = rooms()
    assert row.keys() == modules
    wrong = [f"{name} imports {other}" for name in sorted(modules) for other in sorted(imported(name))
             if row[other] > row[name]]
    assert wrong == []
    assert {"page_cgroup"} <= imported("lru") and {"top", "direct_map"} <= imported("top_screen")


def test_cimports_have_no_circle():
    """So they have an order from the floor up, within a row of that table as well."""
    below = {header.stem: imported(header.stem) & {other.stem for other in HEADERS} for header in HEADERS}
    order = list(TopologicalSorter(below).static_order())
    assert order[0] == "atomics"
    assert order.index("migrate") < order.index("fault") < order.index("syscalls")


def test_every_file_names_its_licence():
    root = PACKAGE.parent
    files = [*PACKAGE.glob("*.py"), *HEADERS, *PACKAGE.glob("*.h"),
             *PACKAGE.glob("*/*.py"), *PACKAGE.glob("explore/*.c"), *PACKAGE.glob("explore/*.html"),
             *(file for folder in ("tests", "stress", "bench") for file in (root / folder).glob("*.py"))]
    assert [file.name for file in files if "SPDX-License-Identifier: GPL-2.0-only" not in file.read_text()
            and file.stat().st_size] == []
