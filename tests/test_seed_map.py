# SPDX-License-Identifier: GPL-2.0-only
"""docs/seed-map.md is true: its lines go up, each function of the seed is there, what it names here
exists, and so does each test."""
import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROWS = re.findall(r"^\| (\d+)-(\d+) \| (.*?) \| `(\w+)\.(\w+)` \| `(test_\w+)` \|$",
                  (ROOT / "docs/seed-map.md").read_text(), re.M)
FUNCTIONS = """migrate_prep putback_lru_pages remove_migration_pte remove_file_migration_ptes
    remove_anon_migration_ptes remove_migration_ptes migration_entry_wait migrate_page_move_mapping
    migrate_page_copy fail_migrate_page migrate_page buffer_migrate_page writeout fallback_migrate_page
    move_to_new_page unmap_and_move migrate_pages new_page_node do_move_page_to_node_array do_pages_move
    do_pages_stat sys_move_pages""".split()


def functions_of(path):
    """The functions that a .py defines."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def test_every_function_of_the_seed_is_there():
    table = [line for line in (ROOT / "docs/seed-map.md").read_text().splitlines() if re.match(r"\| \d", line)]
    assert len(table) == len(ROWS), "a row that is not of the form of the others"
    named = " ".join(row[2] for row in ROWS)
    assert [name for name in FUNCTIONS if f"`{name}`" not in named] == []


def test_every_name_exists():
    tests = set().union(*(functions_of(path) for path in (ROOT / "tests").glob("test_*.py")))
    for _first, _last, _what, module, function, test in ROWS:
        assert function in functions_of(ROOT / "shmkern" / f"{module}.py"), f"{module}.{function}"
        assert test in tests, test


def test_every_name_of_the_tables_of_differences_exists():
    """Their last column says where: functions, some of which are inline and in a .pxd only."""
    text = (ROOT / "docs/seed-map.md").read_text()
    for heading in ("## What 2.6.30 has and the seed has not", "## Where a later kernel's way is taken"):
        _columns, _line, *rows = re.findall(r"^\|.*$", text.split(heading)[1].split("\n## ")[0], re.M)
        assert rows
        for row in rows:
            where = row.split("|")[-2]
            names = re.findall(r"`(\w+)\.(\w+)`", where)
            assert ", ".join(f"`{module}.{function}`" for module, function in names) == where.strip(), row
            for module, function in names:
                header = (ROOT / "shmkern" / f"{module}.pxd").read_text()
                inline = re.findall(r"^cdef inline .*?(\w+)\(", header, re.M)
                assert function in functions_of(ROOT / "shmkern" / f"{module}.py") | set(inline), f"{module}.{function}"
