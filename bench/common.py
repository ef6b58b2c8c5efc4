# SPDX-License-Identifier: GPL-2.0-only
"""What the benches share: options, a table on the terminal, the same rows as JSON and as a page."""
import argparse
import json
import shlex
import signal
import statistics
import sys
from pathlib import Path

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from shmkern import provenance
from shmkern.command import (BAD_USE, Parser, check_apart, check_writable, duration, file_name, positive,      # noqa: F401
                             told_to_end)
from shmkern.errors import ArgumentError, BootError, UsageError
from shmkern.interrupts import write_whole


class BenchParser(Parser):
    """Whose two results have a file each."""

    def parse_args(self, *args, **kwargs):
        options = super().parse_args(*args, **kwargs)
        try:
            check_apart(options.json, options.html)
        except UsageError as error:
            self.error(str(error))
        return options


def parser(description, example):
    """An argument parser with the options that every bench has."""
    result = BenchParser(description=description, epilog=f"example:\n  {example}",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--json", type=writable, metavar="FILE", help="also write the rows to FILE, as JSON")
    result.add_argument("--html", type=writable, metavar="FILE", help="also write a report to FILE, one HTML page")
    return result


def writable(path):
    """An argparse type: a file that can be written, which is better known before the work."""
    try:
        check_writable(file_name(path))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return path


def run(main):
    """Runs a bench's main(), and ends with what a user can understand."""
    try:
        with told_to_end():
            sys.exit(main())
    except (BootError, ArgumentError) as error:
        # As of frames that a machine cannot have.
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(BAD_USE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def available():
    """Bytes of memory that the host could give without swapping."""
    return psutil.virtual_memory().available


def median(values):
    """The median, which a neighbour on the host moves less than the mean."""
    return statistics.median(values)


def progress(text):
    """Shows on a terminal what is being measured.  One line, and no thread that draws it: machines
    fork."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def show(title, columns, rows, notes=()):
    """Prints rows (dicts) as a table with the given columns, {key: heading}."""
    progress("")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for key, heading in columns.items():
        # As narrow as its numbers, so that none is cut short where the terminal is; headings and texts are broken.
        narrow = {"width": max(map(len, [*heading.split(), *(cell(row[key]) for row in rows)]))}
        table.add_column(heading, justify="right", **({} if any(isinstance(row[key], str) for row in rows) else narrow))
    for row in rows:
        table.add_row(*(cell(row[key]) for key in columns))
    console = Console()
    console.print(table)
    for note in notes:
        console.print(note)


def cell(value):
    """A number as a person reads it."""
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def write_json(path, result):
    """Writes the result; exit status 2 with a sentence when that fails."""
    if not path:
        return
    try:
        write_whole(path, json.dumps(result, indent=1))
    except OSError as error:
        cannot_write(path, error)


def write_html(path, title, sentence, columns, rows, figures=(), notes=()):
    """Writes a page with the same table and with figures, as (figure, caption), if `path` is one;
    exit status 2 with a sentence when that fails."""
    if not path:
        return
    from shmkern.html_report import Page

    host = provenance.host()
    page = Page(f"shmkern bench: {title}", "measured", sentence, {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "commit": provenance.revision(),
        "host": f"{host['cpu']}, {host['cores']} cores, {host['memory_mib']:,} MiB, Linux {host['kernel']}, load "
                f"{host['load']:.1f} at the end"})
    page.section("Figures" if figures else "Rows", " ".join(notes))
    for figure, caption in figures:
        page.figure(figure, caption)
    page.table([heading or "what" for heading in columns.values()],
               [[cell(row[key]) for key in columns] for row in rows])
    try:
        page.write(path)
    except OSError as error:
        cannot_write(path, error)


def cannot_write(path, error):
    """Ends with a sentence and status 2."""
    print(f"{Path(sys.argv[0]).name}: {path} cannot be written: {error.strerror}", file=sys.stderr)
    sys.exit(BAD_USE)


def bars(labels, values, unit):
    """A figure with horizontal bars: a group for each label, with one of each {name: numbers}."""
    from shmkern.html_report import SERIES, plot

    figure, (ax,) = plot(1, height=0.35 + 0.3 * len(labels) * len(values))
    thick = 0.8 / len(values)
    for number, (name, numbers) in enumerate(values.items()):
        bars = ax.barh([at + number * thick for at in range(len(labels))], numbers, thick * 0.9, color=SERIES[number],
                       label=name)
        ax.bar_label(bars, [cell(float(number)) for number in numbers], padding=3)
    ax.set_yticks([at + 0.4 - thick / 2 for at in range(len(labels))], labels)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    ax.set_xlabel(unit)
    if len(values) > 1:
        ax.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=len(values))
    return figure
