# SPDX-License-Identifier: GPL-2.0-only
"""What the commands of `shmkern` have in common: exit statuses, types of arguments, results."""
import argparse
import contextlib
import errno
import io
import json
import os
import signal
import sys
from pathlib import Path

from shmkern.errors import BootError, UsageError
from shmkern.interrupts import write_whole

DONE, BROKEN, BAD_USE = 0, 1, 2
# What runs a command line, as a script.
ENTRY = Path(__file__).resolve().parent.parent / "shmkern_entry.py"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message):
        self.exit(BAD_USE, f"{self.prog}: {message}\n")

    def exit(self, status=0, message=None):
        # A help that cannot be written.
        status, problem = flushed(status)
        super().exit(status, message or (f"{self.prog}: {problem}\n" if problem else None))


# ---- how a command ends ------------------------------------------------------------

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def carry_out(name, function):
    """The exit status of a command, which function() returns.  What it raises because of what the user
    or the host did is a sentence."""
    if sys.stderr is None:
        # It is closed.  What is printed to no file goes to the standard output.
        sys.stderr = open(os.devnull, "w")
    if sys.stdout is None:
        print(f"shmkern {name}: the standard output is closed", file=sys.stderr)
        return BAD_USE
    # As on the standard error: what the locale does not have is no reason to stop.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    status, problem = BAD_USE, None
    try:
        status = function()
    except (UsageError, BootError) as error:
        problem = str(error)
    except BrokenPipeError:
        # Whoever read our output has had enough.
        status = DONE
    except OSError as error:
        problem = problem_text(error)
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    status, unwritten = flushed(status)
    if problem or unwritten:
        print(f"shmkern {name}: {problem or unwritten}", file=sys.stderr)
    return status


@contextlib.contextmanager
def told_to_end():
    """Who is told to end within it leaves by way of `with` and `finally`, as with Ctrl-C, so that nothing of a
    machine is left behind."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        # nohup's stays ignored.
        if handler != signal.SIG_IGN:
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def flushed(status):
    """Writes what is left of the standard output, now and not when Python ends, for then nobody would
    know what to do.  Returns the exit status, and what went wrong, if it did."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        # What is left has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            return status or BAD_USE, problem_text(error)
    return status, None


def problem_text(error):
    """An OSError in words."""
    if error.filename is None and error.errno in FULL:
        return f"the standard output cannot be written: {error.strerror}"
    what = error.strerror or str(error)
    return what if error.filename is None else f"{error.filename}: {what}"


# ---- types of arguments ------------------------------------------------------------

def positive(text):
    """An argparse type: whole numbers from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def duration(text):
    """An argparse type: times in seconds."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e7:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds")
    return value


def file_name(text):
    """An argparse type: what names a file, perhaps."""
    if not text:
        raise argparse.ArgumentTypeError("'' is not the name of a file")
    return text


def table(rows):
    """Rows of texts as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def check_writable(path):
    """Finds out now, and not after the work, that a result has nowhere to go.  A file that was not there is not
    there afterwards."""
    was_there = os.path.lexists(path)
    try:
        open(path, "ab").close()
        if not was_there:
            os.unlink(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def check_outputs(*paths):
    """check_writable and check_apart for those of some options that name a file: None does not, nor does -."""
    for path in paths:
        if path not in (None, "-"):
            check_writable(path)
    check_apart(*paths)


def check_apart(*paths):
    """UsageError when two of them are one file, so that only the last result would be left.  A device takes all."""
    seen = set()
    for path in paths:
        if path in (None, "-") or os.path.exists(path) and not os.path.isfile(path):
            continue
        if os.path.realpath(path) in seen:
            raise UsageError(f"{path} is named for two things, and can be but one file")
        seen.add(os.path.realpath(path))


# Where JSON goes that is to go to the standard output, if not to where everything goes.
_json_output = None


@contextlib.contextmanager
def words_beside_json(path):
    """Within it what is printed goes to the standard error, when a result is to go to the standard output (-): it
    is alone there, so that a program can read it."""
    global _json_output
    if path != "-":
        yield
        return
    _json_output = sys.stdout
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _json_output = None


def write_json(path, value):
    """Writes a result to a file; - is the standard output, None nowhere."""
    if path is None:
        return
    text = json.dumps(value, indent=2) + "\n"
    try:
        if path == "-":
            (_json_output or sys.stdout).write(text)
        else:
            write_whole(path, text)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"the result cannot be written to {path}: {error.strerror}") from None
