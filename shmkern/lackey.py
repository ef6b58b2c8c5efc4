# SPDX-License-Identifier: GPL-2.0-only
"""What valgrind's lackey prints of a program's memory accesses, as records for replay()."""
import numpy as np
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EINVAL
from cython.cimports.libc.string import memchr

from shmkern.replay import ACCESS


def parse_number(at, end, base, stop, number):
    """Reads digits from *at to a `stop` character or the end, and moves *at past it.  Says
    whether that was a number below 2^60."""
    value = 0
    digits = 0
    while at[0] < end and at[0][0] != stop:
        digit = at[0][0]
        if 48 <= digit <= 57:
            digit -= 48
        elif base == 16 and 97 <= (digit | 32) <= 102:
            digit = (digit | 32) - 87
        else:
            return 0
        digits += 1
        if value >> 56:
            return 0
        value = value * base + digit
        at[0] += 1
    number[0] = value
    if at[0] < end:
        at[0] += 1
        return digits > 0
    # It must have ended where it was to end.
    return digits > 0 and stop == 10


def parse_access(at, end, access):
    """Reads "address,size" after the letter `at` points to.  Says whether it is an access
    that a task can make."""
    kind = at[0]
    at += 2
    if kind == b"I":
        at += 1
    if at >= end:
        return 0
    address = 0
    size = 0
    if not parse_number(addressof(at), end, 16, 44, addressof(address)) or \
            not parse_number(addressof(at), end, 10, 10, addressof(size)):
        return 0
    if size == 0 or size > ACCESS_SIZE_MAX or address > TASK_SIZE - size or address < MMAP_MIN_ADDR:
        return 0
    access.address = address
    access.size = size
    access.op = ACCESS_LOAD if kind == b"L" else ACCESS_STORE if kind == b"S" else ACCESS_MODIFY
    return 1


def is_valgrinds(at, end):
    """Whether a line is valgrind's own: "==pid==", "--pid--" or "**pid**"."""
    mark = at[0]
    if end - at < 5 or (mark != b"=" and mark != b"-" and mark != b"*") or at[1] != mark:
        return 0
    at += 2
    number = 0
    return parse_number(addressof(at), end, 10, mark, addressof(number)) and at < end and at[0] == mark


def parse_lines(at, end, records, count, lines):
    """Reads lines from *at on; leaves how many accesses and lines they were.  Returns 0, or
    -EINVAL with *at at the line that is neither lackey's nor valgrind's."""
    while at[0] < end:
        line = at[0]
        eol = cast(text_pointer, memchr(line, 10, end - line))
        if eol == NULL:
            eol = end
        at[0] = eol + 1 if eol < end else end
        lines[0] += 1
        if eol > line and (eol - 1)[0] == 13:
            eol -= 1
        if line == eol or is_valgrinds(line, eol):
            continue
        if eol - line > 3 and line[0] == 32 and line[2] == 32 and \
                (line[1] == b"L" or line[1] == b"S" or line[1] == b"M") and \
                parse_access(line + 1, eol, addressof(records[count[0]])):
            count[0] += 1
        elif not (eol - line > 3 and line[0] == b"I" and line[1] == 32 and line[2] == 32 and
                  parse_access(line, eol, addressof(records[count[0]]))):
            at[0] = line
            return -EINVAL
    return 0


def parse_lackey(text):
    """The loads, stores and modifies in what `valgrind --tool=lackey --trace-mem=yes` prints.

    text: bytes, whole lines.  Lines about instructions and valgrind's own are passed over.
    Returns (records, lines, None); or with a line in place of None that is none of these,
    and what was read before it.
    """
    view = memoryview(text).cast("B")
    size = view.nbytes
    records = np.zeros(bytes(text).count(b"\n") + 2, ACCESS)
    at = cast(text_pointer, bytes_of(view))
    begin = at
    count = 0
    lines = 0
    rc = parse_lines(addressof(at), begin + size, cast(pointer(Access), bytes_of(records)), addressof(count), addressof(lines))
    if rc == 0:
        return records[:count], lines, None
    bad = bytes(view[at - begin:]).split(b"\n", 1)[0]
    return records[:count], lines - 1, bad
