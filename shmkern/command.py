# SPDX-License-Identifier: GPL-2.0-only
"""What the commands of `shmkern` have in common: exit statuses, types of arguments, results."""
import argparse
import json
import sys
from pathlib import Path

from shmkern.errors import UsageError

DONE, BROKEN, BAD_USE = 0, 1, 2


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message):
        self.exit(BAD_USE, f"{self.prog}: {message}\n")


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


def table(rows):
    """Rows of texts as aligned lines."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def check_writable(path):
    """Finds out now, and not after the work, that a result has nowhere to go."""
    try:
        open(path, "ab").close()
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def write_json(path, value):
    """Writes a result to a file; - is the standard output, None nowhere."""
    if path is None:
        return
    text = json.dumps(value, indent=2) + "\n"
    try:
        if path == "-":
            sys.stdout.write(text)
        else:
            Path(path).write_text(text)
    except OSError as error:
        raise UsageError(f"the result cannot be written to {path}: {error.strerror}") from None
