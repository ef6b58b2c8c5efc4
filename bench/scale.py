# SPDX-License-Identifier: GPL-2.0-only
"""What moving a page costs as the machine grows: with more migrators, workers, frames, and address
spaces that share each page.

Each row is a machine of its own: its pages are mapped, migrators move all of them from node to
node for a while, and what counts is time by the number of pages that arrived: elapsed time, and the
migrators' CPU time, which neighbours on the host do not lengthen.  One number varies
along a line, the others stay at their first value.  Workers load and store to their own pages all
the time; whoever shares pages, or only owns them, sleeps.
"""
import mmap
import os
import time

import common
import multiprocess
import numpy as np
import psutil

import shmkern
from shmkern import calibrate, provenance

PAGE = 4096
LINES = {"migrators": [1, 2, 4], "workers": [1, 2, 4, 8, 16, 32, 64, 128, 256],
         "frames": [1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20],
         "sharers": [1, 2, 4, 8, 16, 32, 64]}
# Pages mapped where it is not the frames that vary.
PAGES = 8192
TABLES = 16


class TooBig(Exception):
    """The host has no room for a row."""


class Flags:
    """Words that all processes of a row see: how many are ready, and whether to stop."""

    def __init__(self):
        self._memory = mmap.mmap(-1, PAGE)
        self.stop = np.frombuffer(self._memory, np.uint8, 1)
        self.ready = multiprocess.Semaphore(0)

    def wait_for(self, count):
        """Returns when `count` processes have said that they are ready."""
        for _number in range(count):
            if not self.ready.acquire(timeout=120):
                raise RuntimeError("the workers do not get ready")


def sleep(flags):
    """Does nothing until it is told to stop."""
    flags.ready.release()
    while not flags.stop[0]:
        time.sleep(0.01)


def worker(task, flags, pages):
    """Maps pages, and stores to them over and over."""
    va = task.mmap(pages * PAGE)
    calibrate.store64_loop(va, PAGE, pages)
    flags.ready.release()
    while not flags.stop[0]:
        calibrate.store64_loop(va, PAGE, pages)
        os.sched_yield()


def family(task, flags, pages, sharers):
    """Maps pages, and has children that share all of them."""
    va = task.mmap(pages * PAGE)
    calibrate.store64_loop(va, PAGE, pages)
    children = [task.fork(lambda _task: sleep(flags)) for _number in range(sharers - 1)]
    sleep(flags)
    for child in children:
        child.result()


def measure(line, value, seconds):
    """One row."""
    at = {name: values[0] for name, values in LINES.items()} | {line: value}
    pages = value if line == "frames" else PAGES
    tasks = at["workers"] if line == "workers" else at["sharers"]
    frames = pages + pages // 16 + TABLES * tasks + 2048
    if 2 * frames * PAGE > common.available() // 2:
        raise TooBig(f"{2 * frames * PAGE >> 20} MiB, of {common.available() >> 20} MiB that are available")
    common.progress(f"{value:,} {line}")
    flags = Flags()
    with shmkern.Machine(2, frames, max_tasks=2 * tasks + at["migrators"] + 8) as machine:
        if line == "workers":
            roots = [machine.spawn(worker, flags, max(1, pages // tasks)) for _number in range(tasks)]
        else:
            roots = [machine.spawn(family, flags, pages, at["sharers"])]
        flags.wait_for(tasks)
        moved, elapsed, cpu = pace(machine, at["migrators"], seconds, 2 * pages)
        flags.stop[0] = 1
        for root in roots:
            root.result(timeout=120)
        machine.audit().raise_if_broken()
    return {"line": line, "value": value, "pages": pages, "ns": elapsed * 1e9 / moved, "cpu_ns": cpu * 1e9 / moved,
            "pages_per_second": moved / elapsed}


def pace(machine, count, seconds, first):
    """(pages moved, seconds, seconds of CPU) of `count` migrators, once they have moved `first` pages: all of
    them there and back, for the host gives a frame its memory when it is first written."""
    migrators = [machine.start_migrator(seed=number) for number in range(count)]
    while machine.vmstat()["pgmigrate_success"] < first:
        machine.check()
        time.sleep(0.001)
    processes = [psutil.Process(migrator.child.os_pid) for migrator in migrators]
    began, before, used = time.monotonic(), machine.vmstat()["pgmigrate_success"], cpu_of(processes)
    # On a busy host a short time may hold none.
    while time.monotonic() - began < seconds or machine.vmstat()["pgmigrate_success"] - before < 1000:
        machine.check()
        time.sleep(0.01)
    moved, elapsed = machine.vmstat()["pgmigrate_success"] - before, time.monotonic() - began
    cpu = cpu_of(processes) - used
    for migrator in migrators:
        migrator.stop(timeout=120)
    return moved, elapsed, cpu


def cpu_of(processes):
    """Seconds of CPU that processes have used."""
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def plot(rows):
    """A figure with one panel a line: elapsed time, and the migrators' CPU time."""
    from shmkern.html_report import SERIES, plot as new_plot

    lines = list(dict.fromkeys(row["line"] for row in rows))
    figure, axes = new_plot(1, len(lines), height=2.6, sharey=True)
    for line, ax in zip(lines, axes):
        for series, (key, name) in enumerate((("ns", "elapsed"), ("cpu_ns", "CPU"))):
            points = [(row["value"], row[key]) for row in rows if row["line"] == line]
            ax.plot(*zip(*points), color=SERIES[series], marker="o", markersize=3, label=name)
        ax.set_xscale("log", base=2)
        ax.set_title(line)
        ax.set_ylim(bottom=0)
    axes[0].set_ylabel("ns a page")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper right", ncols=2)
    return figure


def main():
    parser = common.parser(__doc__.splitlines()[0], "shmkern bench scale --only sharers --html scale.html")
    parser.add_argument("--only", choices=LINES, action="append", help="this line; may be given again (all)")
    parser.add_argument("--most", type=common.positive, metavar="N", help="leave out what is more than N")
    parser.add_argument("--seconds", type=common.duration, default=1.0, help="how long each row is measured (1)")
    options = parser.parse_args()
    rows, notes = [], []
    for line in options.only or LINES:
        for value in LINES[line]:
            if options.most is None or value <= options.most:
                try:
                    rows.append(measure(line, value, options.seconds))
                except (TooBig, shmkern.BootError) as error:
                    notes.append(f"Skipped: {value:,} {line}: {error}.")
    if not rows:
        parser.error("nothing is left to measure")
    columns = {"line": "of", "value": "how many", "pages": "pages", "ns": "ns a page", "cpu_ns": "CPU ns a page",
               "pages_per_second": "pages/s"}
    notes.append(f"{os.cpu_count()} CPUs: with more running processes than that, elapsed time is shared; CPU time is that of "
                 "the migrators alone.")
    common.show("what moving a page costs as the machine grows", columns, rows, notes)
    common.write_json(options.json, {"bench": "scale", "host": provenance.host(), "rows": rows, "notes": notes})
    least, most = min(row["ns"] for row in rows), max(row["ns"] for row in rows)
    common.write_html(options.html, "what moving a page costs as the machine grows",
                      f"From {least:,.0f} to {most:,.0f} ns a page, elapsed.", columns, rows,
                      [(plot(rows), "The cost of a page, as one number grows")], notes)


if __name__ == "__main__":
    common.run(main)
