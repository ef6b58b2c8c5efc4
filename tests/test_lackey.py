# SPDX-License-Identifier: GPL-2.0-only
"""Promises of shmkern.lackey: what valgrind's lackey prints becomes accesses, and a line of anything else
is told."""
import numpy as np
import pytest

from shmkern import lackey
from shmkern.replay import ACCESS, LOAD, MODIFY, STORE


def test_lackey_lines_become_accesses():
    text = (b"==123== Lackey, an example Valgrind tool\nI  04001090,3\n S 1ffeffe7e0,8\n L 04222cac,4\r\n\n"
            b"--123-- a warning\n M 0421C7CC,512\n**123** a message\n L 7fffffffeff8,7")
    made, lines, bad = lackey.parse_lackey(text)
    assert (lines, bad) == (9, None)
    assert made.tolist() == [(0x1ffeffe7e0, 8, STORE), (0x4222cac, 4, LOAD), (0x421c7cc, 512, MODIFY),
                             (0x7fffffffeff8, 7, LOAD)]
    assert made.dtype == ACCESS
    made, lines, bad = lackey.parse_lackey(b"")
    assert (made.tolist(), lines, bad) == ([], 0, None)


@pytest.mark.parametrize("line", [
    b" L 1fff000,0", b" X 1fff000,1", b" L 1fff000", b" L ,1", b" L 1fff000,8x", b" L 1fff000,", b" L 1fff000,8 ",
    b" L fffffffffffffffff1,8", b" L 7fffffffeff8,8000", b" L 7fffffffeff8,9", b" L ffff,1", b" L 1fff000,4097",
    b"=12=", b"==12=", b"==", b"==x==", b"I 1", b"I  10", b"I", b" ", b" L", b"L 1fff000,8", b"\0\0\0\0", b"\xff\xfe", b" L -1,8",
    b" L 0x1fff000,8", b"total: 25"])
def test_line_of_anything_else_is_told(line):
    text = b" L 1fff000,8\n==1== x\n" + line + b"\n L 1fff000,8\n"
    made, lines, bad = lackey.parse_lackey(text)
    assert (made.tolist(), lines, bad) == ([(0x1fff000, 8, LOAD)], 2, line)
    assert lackey.parse_lackey(text.removesuffix(b"\n L 1fff000,8\n"))[1:] == (2, line)


def test_random_accesses_survive_being_printed():
    rng = np.random.default_rng(5)
    made = np.zeros(20000, ACCESS)
    made["address"] = rng.integers(65536, 0x7ffffffff000 - 4096, size=len(made))
    made["size"], made["op"] = rng.integers(1, 4097, size=len(made)), rng.integers(3, size=len(made))
    text = "".join(f" {'LSM'[op]} {address:08x},{size}\n" for address, size, op in made.tolist())
    again, lines, bad = lackey.parse_lackey(text.encode())
    assert (lines, bad) == (len(made), None)
    assert (again == made).all()
