# SPDX-License-Identifier: GPL-2.0-only
"""What a stress run shows while it goes on: one live line on a terminal, otherwise a plain
line every few seconds."""
import contextlib
import errno
import os
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from shmkern import vmstat
from shmkern.command import FULL

LIVE_EVERY, PLAIN_EVERY = 0.2, 5.0
# A long run need not fill a log.
PLAIN_LINES = 20


def short(number):
    """A count in four characters or so: 1234567 is 1.2M."""
    for unit in ("", "k", "M", "G"):
        if number < 1000:
            return f"{number:.0f}{unit}" if unit == "" or number >= 100 else f"{number:.1f}{unit}"
        number /= 1000
    return f"{number:.1f}T"


# Why something that somebody may want to read was not written, until it is told.
_unwritten = []


@contextlib.contextmanager
def perhaps_unread(file):
    """What is written within goes nowhere, as all that follows, when nobody reads it any more: the
    pipe or the terminal is closed.  Or the disk is full, which unwritten() tells when the run is over."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EPIPE, errno.EIO, *FULL):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        if error.errno in FULL:
            _unwritten.append(f"the output could not be written: {error.strerror}")


def unwritten():
    """A sentence when something was not written, and nobody was told yet."""
    sentence = _unwritten[0] if _unwritten else None
    _unwritten.clear()
    return sentence


def say(file, text):
    """Prints lines, to whom may be gone."""
    with perhaps_unread(file):
        print(text, file=file, flush=True)


class Display:
    """Shows a Supervision's progress on `file`.  Use as a context manager."""

    def __init__(self, file):
        self.file = file
        self.console = Console(file=file, highlight=False)
        self.live = self.console.is_terminal
        self.progress = self.bar = None
        self.next = 0.0
        self.last = None

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        if self.progress:
            with perhaps_unread(self.file):
                self.progress.stop()

    def update(self, run):
        """Shows where the run is, unless that was done just now."""
        now = time.monotonic()
        if now < self.next or run.began is None:
            return
        values = self._measure(run, now)
        if self.live:
            self.next = now + LIVE_EVERY
            with perhaps_unread(self.file):
                self._draw(run, values)
        else:
            if self.next and run.running:
                say(self.file, "{elapsed:.0f} s: {pages} pages/s, {accesses} accesses/s, {waits} waits, "
                               "{failures} failures".format(**values))
            self.next = now + max(PLAIN_EVERY, run.options.seconds / PLAIN_LINES)

    def _measure(self, run, now):
        """The numbers to show; rates are since the last time."""
        counters = vmstat.vmstat()
        at, pages, accesses = self.last or (run.began, 0, counters["accesses"])
        self.last = now, counters["pgmigrate_success"], counters["accesses"]
        seconds = max(now - at, 1e-3)
        return {"elapsed": run.elapsed(), "pages": short(max(0, self.last[1] - pages) / seconds),
                "accesses": short(max(0, self.last[2] - accesses) / seconds),
                "waits": short(counters["migration_entry_wait"]), "failures": len(run.failures)}

    def _draw(self, run, values):
        """The live line.  It has no thread of its own, for this process forks."""
        if self.progress is None:
            text = ("{task.fields[elapsed]:.0f} s  {task.fields[pages]} pages/s  {task.fields[accesses]} accesses/s  "
                    "{task.fields[waits]} waits  {task.fields[failures]} failures")
            self.progress = Progress(TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn(text),
                                     console=self.console, auto_refresh=False)
            self.progress.start()
            self.bar = self.progress.add_task(run.scenario.NAME, total=run.options.seconds, **values)
        done = min(values["elapsed"], run.options.seconds)
        description = run.scenario.NAME if run.running else f"{run.scenario.NAME}, checking"
        self.progress.update(self.bar, completed=done, description=description, **values)
        self.progress.refresh()
