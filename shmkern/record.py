# SPDX-License-Identifier: GPL-2.0-only
"""Trace files: what `valgrind --tool=lackey --trace-mem=yes` prints about a program's
memory accesses, plain or gzip.  read_trace() reads one, record() makes one.
"""
import gzip
import os
import re
import shutil
import signal
import subprocess
import zlib

import numpy as np

from shmkern import lackey, replay

CHUNK = 1 << 24
_ACCESS_LINE = re.compile(rb"^ [LSM] [0-9a-f]+,[0-9]+\n", re.M)


class TraceError(Exception):
    """A trace cannot be read or made; the text says why."""


# ---- reading -------------------------------------------------------------------

def _chunks(path):
    """The contents of a trace file, unpacked, in blocks of whole lines."""
    with open(path, "rb") as file:
        # A pipe has no way back.
        packed = file.peek(2).startswith(b"\x1f\x8b")
        rest = b""
        stream = gzip.GzipFile(fileobj=file) if packed else file
        while block := stream.read(CHUNK):
            # No line is that long; parsing it will say so.
            cut = block.rfind(b"\n") + 1 or len(block)
            yield rest + block[:cut]
            rest = block[cut:]
        yield rest


def read_trace(path):
    """The accesses of a trace file, as an array of replay.ACCESS.

    Raises TraceError: the file cannot be read, is damaged, has no access in it, or has a
    line (named by its number) that is neither lackey's nor valgrind's own.
    """
    parts, lines = [], 0
    try:
        for text in _chunks(path):
            records, count, bad = lackey.parse_lackey(text)
            lines += count
            if bad is not None:
                shown = bad[:60].decode(errors="replace")
                raise TraceError(f"{path}, line {lines + 1} is no memory access as lackey prints them: {shown!r}")
            # As plain words: numpy drops the padding of records that it concatenates.  And a
            # copy, for what parse_lackey returns may be a small part of what it allocated.
            parts.append(records.view(np.uint64).copy())
    except OSError as error:
        # BadGzipFile is one without an errno.
        raise TraceError(f"{path}: {error.strerror or error}") from error
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{path} is damaged: {error}") from error
    records = np.concatenate(parts).view(replay.ACCESS)
    if len(records) == 0:
        raise TraceError(f"{path} has no memory access in it")
    return records


# ---- recording -------------------------------------------------------------------

def _valgrind():
    """The path of valgrind."""
    path = shutil.which("valgrind")
    if path is None:
        raise TraceError("valgrind is needed to record a trace; on Debian: apt install valgrind")
    return path


def _copy_accesses(pipe, file, limit):
    """Copies lines about loads, stores and modifies, `limit` of them at most, until the pipe
    ends.  Returns how many, and valgrind's last line about itself."""
    count, rest, message = 0, b"", b""
    while count < limit and (block := os.read(pipe, 1 << 20)):
        text = rest + block
        cut = text.rfind(b"\n") + 1
        text, rest = text[:cut], text[cut:]
        lines = _ACCESS_LINE.findall(text)[:limit - count]
        file.write(b"".join(lines))
        count += len(lines)
        for line in re.findall(rb"^==[0-9]+== *(.*)$", text, re.M):
            message = line or message
    return count, message


def _end(process):
    """Ends a program that was recorded long enough; kills it if it does not listen."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def record(command, path, limit):
    """Runs `command` (a list) under valgrind and writes its memory accesses to `path`, as gzip.

    The program's input and output are left alone.  After `limit` accesses it is ended.
    Ctrl-C ends it as well, or who tells us to end, and what was recorded until then is kept; the second
    time that has its usual effect.  Returns (accesses, the program's exit status as subprocess gives it, what
    ended it before its time: None, "limit" or the number of the signal).
    Raises TraceError: no valgrind, no such program, nothing recorded, no place to write to.
    """
    valgrind = _valgrind()
    if shutil.which(command[0]) is None:
        raise TraceError(f"there is no program {command[0]!r} to record")
    read_end, write_end = os.pipe()
    process, ended = None, None

    def interrupt(number, _frame):
        # No exception: it may come in the middle of a write.  The pipe closes when the program is gone.
        nonlocal ended
        ended = number
        restore()
        if process is not None:
            process.terminate()

    def restore():
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        # nohup's stays ignored.
        if handler != signal.SIG_IGN:
            signal.signal(number, interrupt)
    try:
        with gzip.open(path, "wb", compresslevel=6) as file:
            process = subprocess.Popen(
                [valgrind, "--tool=lackey", "--trace-mem=yes", "--child-silent-after-fork=yes",
                 f"--log-fd={write_end}", *command], pass_fds=[write_end])
            if ended:
                process.terminate()
            os.close(write_end)
            write_end = -1
            count, message = _copy_accesses(read_end, file, limit)
            if count >= limit:
                ended = "limit"
                # Or it stays in the middle of writing to a pipe that is full.
                os.close(read_end)
                read_end = -1
                _end(process)
            status = process.wait()
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
    finally:
        restore()
        for end in (read_end, write_end):
            if end >= 0:
                os.close(end)
        if process is not None and process.poll() is None:
            _end(process)
    if count == 0:
        if os.path.isfile(path):
            os.unlink(path)
        raise TraceError(f"nothing was recorded: {message.decode(errors='replace') or 'valgrind said nothing'}")
    return count, status, ended
