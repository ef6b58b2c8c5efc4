# SPDX-License-Identifier: GPL-2.0-only
"""layout.py gives Python the structs that the compiler sees, and sees every change to them."""
import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from shmkern import layout
from shmkern.layout import constants, dtypes, offsetof, sizeof, struct, view

SOURCES = Path(layout.__file__).parent


@pytest.fixture
def page():
    """A struct page in memory of our own, and that memory."""
    memory = ctypes.create_string_buffer(64)
    return struct("Page", ctypes.addressof(memory)), memory


def load_copy(directory, changes=()):
    """layout.py as it is with `changes`, (file, old text, new text), made to its sources."""
    for path in [SOURCES / "layout.py", SOURCES / "atomics.h", *SOURCES.glob("*.pxd")]:
        shutil.copy(path, directory)
    for name, old, new in changes:
        text = (directory / name).read_text()
        assert text.count(old) == 1, f"{old!r} is not once in {name}"
        (directory / name).write_text(text.replace(old, new))
    spec = importlib.util.spec_from_file_location("layout_copy", directory / "layout.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ---- sizes and offsets ------------------------------------------------------

def test_sizes_are_the_compilers():
    boot = pytest.importorskip("shmkern.boot", reason="the kernel is not built")
    compiled = boot.struct_sizes()
    assert compiled == {name: sizeof(name) for name in compiled}
    assert {"Page", "Zone", "Task", "Kernel", "MmStruct", "VmAreaStruct"} <= set(compiled)


def test_struct_page_is_one_cache_line():
    assert sizeof("Page") == 64
    assert offsetof("Page", "lru") == 40
    assert offsetof("Page", "lru.prev") == 48
    assert dtypes["Page"].names[:3] == ("flags", "_count", "_mapcount")


@pytest.mark.parametrize("name", dtypes)
def test_no_struct_has_hidden_padding(name):
    """The padding is written down, so every compiler agrees on it."""
    fields = dtypes[name].fields.values()
    assert sum(dtype.itemsize for dtype, _offset in fields) == sizeof(name)
    for dtype, offset in fields:
        assert offset % dtype.base.alignment == 0


def test_block_header_is_the_same_in_both_files():
    known = {}
    header = layout.parse_header((SOURCES / "atomics.h").read_text(), known)["block_header"]
    extern = (SOURCES / "atomics.pxd").read_text().split("cdef extern", 1)[1].split("\n", 1)[1]
    declared = layout.parse_pxd(textwrap.dedent(extern), {})["block_header"]
    assert [line.split() for line in header] == [line.split() for line in declared]


def test_unknown_names_are_key_errors():
    for wrong in (lambda: sizeof("Pages"), lambda: offsetof("Page", "lru.first"),
                  lambda: offsetof("Nothing", "x"), lambda: view("Pages", 0)):
        with pytest.raises(KeyError):
            wrong()


def test_constants_come_from_all_files():
    assert constants["DIRECT_MAP_BASE"] == 0x2000000000
    assert constants["PERCPU_BASE"] == constants["DIRECT_MAP_BASE"] - 4096
    assert constants["PG_pagetable"] == 21
    assert constants["SPIN_WAITERS"] == 0x80000000
    assert constants["PANIC_NONE"] == 0 and constants["PANIC_BUG"] == 1


# ---- reading ----------------------------------------------------------------

def test_pxd_is_read_with_comments_arrays_and_counting_enums():
    known = {"TWO": 2}
    structs = layout.parse_pxd(textwrap.dedent("""
        cdef extern from "x.h":
            enum:
                ONLY_C_KNOWS
        cdef enum colour:   # a comment
            RED
            # another
            BLUE = 1 << 4
            GREEN           # 17

        cdef struct Thing:
            u32* words[2]   # three words

        cdef inline int f() noexcept nogil:
            return 1
        cdef enum:
            LAST = GREEN + TWO
        """), known)
    assert structs == {"Thing": ["u32* words[2]"]}
    assert known == {"TWO": 2, "RED": 0, "BLUE": 16, "GREEN": 17, "LAST": 19}


def test_header_is_read_without_code_and_comments():
    known = {}
    structs = layout.parse_header(textwrap.dedent("""
        #define SIZE 0x10UL /* in bytes */
        #define TWICE (SIZE * 2)
        #define twice(x) (2 * (x))
        #define CODE do { } while (0)
        enum kind { NONE, SOME = 5,
                    MORE };
        struct thing {
        	u64 a;	/* not: u64 b; */
        	char name[SIZE];
        };
        static int f(void)
        {
        	struct local { int x; };
        	return 0;
        }
        """), known)
    assert structs == {"thing": ["u64 a", "char name[SIZE]"]}
    assert known == {"SIZE": 16, "TWICE": 32, "NONE": 0, "SOME": 5, "MORE": 6}


@pytest.mark.parametrize("old, new", [
    ("    u64 index  ", "    u64 index, other  "),
    ("    u64 index  ", "    unknown_t index  "),
    ("    u64 index  ", "    u64 index[len(x)]  "),
    ("    PG_error = 1\n", "    PG_error = sizeof(Page)\n"),
    ("    PG_error = 1\n", "    PG_error = 1, PG_next\n"),
    ("    PG_error = 1\n", "    PG_error = 010\n"),       # eight in C
    ("    PG_error = 1\n", "    PG_error = 1\n    PG_locked = 7\n"),
])
def test_what_is_not_of_the_plain_form_is_refused(tmp_path, old, new):
    with pytest.raises(ValueError):
        load_copy(tmp_path, [("mm_types.pxd", old, new)])


# ---- the hash ---------------------------------------------------------------

@pytest.mark.parametrize("name, old, new", [
    ("mm_types.pxd", "    u32 _unused\n", "    u32 _unused\n    u64 more\n"),
    ("mm_types.pxd", "    i32 _count\n", "    u32 _count\n"),
    ("mm_types.pxd", "    i32 map_count\n", "    i32 maps\n"),
    ("mm_types.pxd", "    PG_error = 1\n", "    PG_error = 31\n"),
    ("mm_types.pxd", "    u64 _line1[7]\n", "    u64 _line1[15]\n"),
    ("atomics.h", "\tu32 panic_kind;\n", "\ti32 panic_kind;\n"),
    ("atomics.h", "DIRECT_MAP_BASE 0x2000000000UL", "DIRECT_MAP_BASE 0x4000000000UL"),
])
def test_hash_sees_every_change_of_the_layout(tmp_path, name, old, new):
    assert load_copy(tmp_path, [(name, old, new)]).layout_hash() != layout.layout_hash()


def test_hash_sees_nothing_else(tmp_path):
    copy = load_copy(tmp_path, [
        ("mm_types.pxd", "    PG_error = 1\n", "    # Said.\n\n    PG_error = 0x1   # here too\n"),
        ("atomics.h", "\tu32 panic_kind;\n", "\tu32   panic_kind;\t/* said */\n"),
        ("uapi.pxd", "MREMAP_MAYMOVE = 1", "MREMAP_MAYMOVE = 64")])
    assert copy.layout_hash() == layout.layout_hash()


def test_hash_is_the_same_in_every_process():
    program = "from shmkern import layout; print(layout.layout_hash())"
    hashes = {int(subprocess.run([sys.executable, "-c", program], check=True, text=True,
                                 capture_output=True, cwd=SOURCES.parent,
                                 env={**os.environ, "PYTHONHASHSEED": seed}).stdout)
              for seed in ("1", "2")}
    assert hashes == {layout.layout_hash()}
    assert 0 < layout.layout_hash() < 1 << 64


# ---- live memory ------------------------------------------------------------

def test_struct_reads_and_writes_memory(page):
    page, memory = page
    page.flags = 1 << 63
    page._count, page["_mapcount"] = 2, -1
    assert memory.raw[:16] == bytes([0] * 7 + [0x80, 2, 0, 0, 0] + [0xff] * 4)
    ctypes.memset(memory, 1, 8)
    assert page.flags == page["flags"] == 0x0101010101010101
    assert type(page.flags) is int and page._mapcount == -1


def test_nested_structs_arrays_and_names_are_live():
    memory = ctypes.create_string_buffer(sizeof("KmemCache") + sizeof("Pagevec"))
    cache = struct("KmemCache", ctypes.addressof(memory))
    cache.lock.word = 7
    cache.name = b"mm_struct"
    assert cache.lock.word == 7 and cache.name == b"mm_struct"
    assert cache.lock.address == cache.address + offsetof("KmemCache", "lock")
    pvec = struct("Pagevec", cache.address + sizeof("KmemCache"))
    pages = pvec.pages
    pages[3] = 9
    assert pvec.pages.tolist() == [0, 0, 0, 9] + [0] * 10


def test_view_is_a_live_array(page):
    page, memory = page
    words = view("u64", page.address, 8)
    pages = view("Page", page.address, 1)
    pages["lru"]["next"] = 5
    assert words[5] == page.lru.next == 5
    assert view("Page", page.address)["lru"]["next"] == 5
    assert view("Page", page.address).shape == () and pages.shape == (1,)
    assert np.shares_memory(words, pages)


def test_mistakes_are_not_silent(page):
    page, _memory = page
    with pytest.raises(AttributeError, match="struct Page has no field count"):
        page.count = 1
    with pytest.raises(AttributeError, match="struct Page has no field count"):
        page.count
    with pytest.raises(OverflowError):
        page._count = 1 << 31
    assert "lru" in dir(page) and repr(page).startswith("<Page at 0x")
