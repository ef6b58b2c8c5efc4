# SPDX-License-Identifier: GPL-2.0-only
"""What the benches share: options, a table on the terminal, the same rows as JSON."""
import argparse
import json
import statistics
import sys

from rich.console import Console
from rich.table import Table


def parser(description, example):
    """An argument parser with the options that every bench has."""
    result = argparse.ArgumentParser(description=description, epilog=f"example: {example}",
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--json", metavar="FILE", help="write the rows to FILE as well")
    return result


def median(values):
    """The median, which a neighbour on the host moves less than the mean."""
    return statistics.median(values)


def show(title, columns, rows, notes=()):
    """Prints rows (dicts) as a table with the given columns, {key: heading}."""
    table = Table(title=title, title_justify="left")
    for heading in columns.values():
        table.add_column(heading, justify="right")
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
        with open(path, "w") as file:
            json.dump(result, file, indent=1)
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
