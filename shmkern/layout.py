# SPDX-License-Identifier: GPL-2.0-only
"""The structs of the block as numpy sees them.

`mm_types.pxd` and `atomics.h` are what the compiler reads.  This file reads the
same texts and gives numpy the same structs, and Python the enumerators of every
.pxd, so that no tool, audit or test carries a copy that could fall behind:

    constants["PG_locked"], dtypes["Page"], sizeof("Page"), offsetof("Page", "lru")
    view("Page", address, count)      a live structured array
    struct("Zone", address).node      one live struct
    layout_hash()                     what the block's header carries

Only the plain form of those files is understood, one field or enumerator a line;
anything else in a struct or enum is a ValueError at import, naming the line, and
never a wrong layout.
Imports numpy alone, nothing of the package.
"""
import ast
import ctypes
import functools
import hashlib
import operator
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Field(NamedTuple):
    """One line of a struct: `type name` or `type name[count]`; count is None for a scalar."""
    type: str
    name: str
    count: int | None


# The scalars of atomics.h.  A pointer is its address.
_SCALARS = {name: np.dtype(code) for name, code in {
    "u8": "u1", "u16": "u2", "u32": "u4", "u64": "u8", "i32": "i4", "i64": "i8", "int": "i4",
    "char": "S1"}.items()}
_POINTER = np.dtype("u8")

_OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
              ast.LShift: operator.lshift, ast.BitOr: operator.or_, ast.USub: operator.neg}


# ---- reading the files ------------------------------------------------------

def _value(text, known):
    """The integer that a constant expression of C or Cython stands for.

    `known` maps names to integers.  Raises ValueError for anything that is not
    integers, names, brackets and + - * << |.
    """
    text = text.strip()
    if re.fullmatch("0|[1-9][0-9]*", text):     # most of them; ast takes long
        return int(text)

    def walk(node):
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.Name) and node.id in known:
            return known[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.left), walk(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
            return _OPERATORS[type(node.op)](walk(node.operand))
        raise ValueError(f"not a constant: {text!r}")

    without_suffix = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]+\b", r"\1", text)
    try:
        return walk(ast.parse(without_suffix, mode="eval").body)
    except SyntaxError:
        raise ValueError(f"not a constant: {text!r}") from None


def _field(text, known):
    """The Field that one line of a struct declares, without its comment.

    Raises ValueError when the line is not of the plain form.
    """
    match = re.fullmatch(r"(?:struct\s+)?(\w+)\s*(\**)\s*(\w+)(?:\[([^\]]+)\])?", text.strip())
    if not match:
        raise ValueError(f"not a field of the plain form: {text!r}")
    kind, stars, name, count = match.groups()
    return Field(kind + stars, name, None if count is None else _value(count, known))


def _enumerators(texts, known):
    """Adds `NAME` or `NAME = value` of each text to `known`, counting as C does.

    Raises ValueError for a name that already stands for something else.
    """
    next_value = 0
    for text in texts:
        name, _, given = (part.strip() for part in text.partition("="))
        value = _value(given, known) if given else next_value
        if not name.isidentifier() or known.setdefault(name, value) != value:
            raise ValueError(f"not an enumerator, or one with another value elsewhere: {text!r}")
        next_value = value + 1


def parse_pxd(text, known):
    """The structs of a .pxd: {name: [line, ...]}; its enumerators are added to `known`.

    Passes over everything else, and over `cdef extern`, whose values only C knows.
    """
    structs, kind, name, body, indent = {}, None, None, [], 0

    def close():
        if kind == "enum":
            _enumerators(body, known)
        elif kind == "struct":
            structs[name] = body

    for line in text.splitlines():
        line = line.split("#")[0].rstrip()
        if not line.strip():
            continue
        depth = len(line) - len(line.lstrip())
        if kind and depth > indent:
            body.append(line.strip())
            continue
        close()
        opening = re.match(r"\s*cdef\s+(extern|enum|struct)\b\s*(\w*)", line)
        kind, name = opening.groups() if opening else (None, None)
        body, indent = [], depth
    close()
    return structs


def parse_header(text, known):
    """The structs of a C header: {name: [line, ...]}; enumerators and macros that are
    integers are added to `known`.

    Sees what begins in the first column only, which leaves out the bodies of functions.
    """
    text = re.sub(r"/\*.*?\*/", " ", text, flags=re.S)
    for name, value in re.findall(r"^#define[ \t]+(\w+)[ \t]+(\S.*)$", text, flags=re.M):
        try:
            known[name] = _value(value, known)
        except ValueError:
            pass        # a macro that is code
    for body in re.findall(r"^enum\b[^{;]*\{([^}]*)\}\s*;", text, flags=re.M):
        _enumerators([item for item in body.split(",") if item.strip()], known)
    structs = {}
    for name, body in re.findall(r"^struct\s+(\w+)\s*\{([^}]*)\}\s*;", text, flags=re.M):
        structs[name] = [item.strip() for item in body.split(";") if item.strip()]
    return structs


# ---- laying out -------------------------------------------------------------

def _dtype_of(field, known_dtypes):
    """The dtype of one field, an array of it included.  Raises ValueError for an unknown type."""
    if field.type.endswith("*"):
        base = _POINTER
    elif field.type == "char" and field.count is not None:
        return np.dtype(f"S{field.count}")
    else:
        base = _SCALARS.get(field.type) or known_dtypes.get(field.type)
        if base is None:
            raise ValueError(f"field {field.name}: type {field.type} is not defined above it")
    return base if field.count is None else np.dtype((base, (field.count,)))


def _load():
    """(all constants, those of the block, fields, dtypes) of the files beside this one."""
    here = Path(__file__).parent
    known = {}
    structs = parse_header((here / "atomics.h").read_text(), known)
    structs |= parse_pxd((here / "mm_types.pxd").read_text(), known)
    of_the_block = dict(known)
    for path in sorted(here.glob("*.pxd")):
        try:
            parse_pxd(path.read_text(), known)
        except ValueError as error:
            raise ValueError(f"{path.name}: {error}") from None
    fields, made = {}, {}
    for name, lines in structs.items():
        fields[name] = [_field(line, known) for line in lines]
        # numpy's align is the C rule: each field at a multiple of its alignment,
        # the size a multiple of the largest.
        made[name] = np.dtype([(field.name, _dtype_of(field, made)) for field in fields[name]],
                              align=True)
    return known, of_the_block, fields, made


constants, _block_constants, _fields, dtypes = _load()


def _dtype(name):
    """The dtype of a struct or scalar.  Raises KeyError for an unknown name."""
    return dtypes[name] if name in dtypes else _SCALARS[name]


def sizeof(name):
    """Bytes of a struct or scalar.  Raises KeyError for an unknown name."""
    return _dtype(name).itemsize


def offsetof(name, field):
    """Offset of a field in bytes; `field` may be a path, as in offsetof("Page", "lru.prev").

    Raises KeyError for an unknown struct or field.
    """
    dtype, offset = dtypes[name], 0
    for part in field.split("."):
        dtype, step = dtype.fields[part][:2]
        offset += step
    return offset


@functools.cache
def layout_hash():
    """A 64-bit number that changes with every struct, field, offset and constant of
    `mm_types.pxd` and `atomics.h`.

    Two builds that agree on it can share a block.
    """
    lines = [f"{name} = {value}" for name, value in sorted(_block_constants.items())]
    for name, members in sorted(_fields.items()):
        lines.append(f"struct {name} {sizeof(name)}")
        lines += [f"{field.type} {field.name} {field.count} at {offsetof(name, field.name)}"
                  for field in members]
    digest = hashlib.blake2b("\n".join(lines).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


# ---- looking at live memory -------------------------------------------------

def view(name, address, count=None):
    """`count` structs (or scalars) at `address`, as a live numpy array; without a count
    an array without dimensions.

    Nothing is copied: what is written through it is written to the block.  The memory
    must be mapped in this process and stay so while the view lives.
    """
    dtype = _dtype(name)
    shape, size = ((), dtype.itemsize) if count is None else ((count,), dtype.itemsize * count)
    return np.ndarray(shape, dtype, buffer=(ctypes.c_char * size).from_address(address))


class Struct:
    """One live struct: reading an attribute reads the memory, assigning writes it.

    Scalars are Python ints, `char[]` bytes up to the first NUL, nested structs are Struct,
    arrays are live numpy arrays.  s["field"] is the same as s.field.
    """
    __slots__ = ("_array", "_name", "address")

    def __init__(self, name, array, address):
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_array", array)
        object.__setattr__(self, "address", address)

    def __getitem__(self, field):
        value = self._array[field]
        if value.ndim:
            return value
        if value.dtype.names:
            return Struct(f"{self._name}.{field}", value,
                          self.address + self._array.dtype.fields[field][1])
        return value.item()

    def __setitem__(self, field, value):
        self._array[field] = value

    def __getattr__(self, field):
        if field not in self._array.dtype.names:
            raise AttributeError(f"struct {self._name} has no field {field}")
        return self[field]

    def __setattr__(self, field, value):
        if field not in self._array.dtype.names:
            raise AttributeError(f"struct {self._name} has no field {field}")
        self[field] = value

    def __dir__(self):
        return [*super().__dir__(), *self._array.dtype.names]

    def __repr__(self):
        values = ", ".join(f"{name}={self._array[name].tolist()!r}"
                           for name in self._array.dtype.names if self._array[name].size <= 16)
        return f"<{self._name} at {self.address:#x}: {values}>"


def struct(name, address):
    """The struct `name` at `address`, live (see Struct, and view for the conditions)."""
    return Struct(name, view(name, address), address)


def header():
    """The block's first page, struct block_header, of the block mapped in this process."""
    return struct("block_header", constants["DIRECT_MAP_BASE"])


def kernel():
    """The machine's globals, struct Kernel, where kernel() of current.pxd finds them."""
    return struct("Kernel", constants["DIRECT_MAP_BASE"] + constants["PAGE_SIZE"])
