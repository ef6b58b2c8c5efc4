# SPDX-License-Identifier: GPL-2.0-only
"""Schedules a second: the explorer on a fault against a migration, and on a counter beside
frontrun's DPOR engine on the same counter.

The counter: two tasks read it and write it back one larger, INCREMENTS times each, and every
order of these reads and writes with up to two preemptions is wanted.  In shmkern each is a load
or store of a task through its MMU, in frontrun one of an attribute by a Python thread.

    python bench/explore.py

frontrun is no dependency of shmkern: pip puts the version that pyproject.toml names into build/bench
the first time.  Where it cannot, there is no ratio, and the benchmark says so.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

import common

TREE = Path(__file__).resolve().parent.parent
PEERS = TREE / "build" / "bench"
INCREMENTS = 20
LIMIT = 5000            # schedules a second of a fault against a migration
SCENARIO = f"""
from shmkern.explore.room import PAGE, scenario

@scenario
def counter(room):
    one = room.task()
    va = one.mmap(PAGE)
    one.store64(va, 0)
    two = room.task(shares=one)
    two.load64(va)

    def increment(task):
        for _ in range({INCREMENTS}):
            task.store64(va, task.load64(va) + 1)
    room.program(one, increment)
    room.program(two, increment)
    room.check(lambda: one.load64(va) <= {2 * INCREMENTS})
"""


def ours(scenario, *options):
    """(schedules, seconds) of an exploration with two preemptions on one core."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "counter.py").write_text(SCENARIO)
        subprocess.run([sys.executable, "-m", "shmkern.cli", "explore", scenario, "--json", "result", *options],
                       cwd=directory, check=True, stdout=subprocess.DEVNULL)
        result = json.loads((Path(directory) / "result").read_text())[0]
    assert result["exhausted"], result
    return result["runs"], result["seconds"]


class Counter:
    """frontrun's."""

    def __init__(self):
        self.value = 0

    def increment(self):
        """Not atomic."""
        for _ in range(INCREMENTS):
            temp = self.value
            self.value = temp + 1


def install_peer():
    """frontrun as pyproject.toml has it, "frontrun==0.7.0", once it is in PEERS.  OSError when pip cannot get it."""
    wanted = tomllib.loads((TREE / "pyproject.toml").read_text())["dependency-groups"]["bench"][0]
    if not (PEERS / f"{wanted.replace('==', '-')}.dist-info").is_dir():
        done = subprocess.run([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--upgrade",
                               "--target", PEERS, wanted], capture_output=True, text=True)
        if done.returncode != 0:
            raise OSError(f"pip cannot get {wanted}: {done.stderr.strip().splitlines()[-1]}")
    return wanted


def theirs(seconds):
    """(schedules, seconds) of frontrun with two preemptions, on one core.  It wants to be started by
    its own command, which puts its locks in the place of Python's."""
    command = [sys.executable, "-m", "frontrun.cli", sys.executable, __file__, "--peer", "--seconds", str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(PEERS)})
    runs, took = done.stdout.split()
    return int(runs), float(took)


def be_peer(seconds):
    """What theirs() runs: prints schedules and seconds."""
    import frontrun
    began = time.perf_counter()
    result = frontrun.explore(setup=Counter, workers=Counter.increment, count=2, stop_on_first=False,
                              invariant=lambda counter: counter.value <= 2 * INCREMENTS, preemption_bound=2,
                              detect_io=False, total_timeout=seconds)
    print(result.num_explored, time.perf_counter() - began)
    return 0


def main():
    """Runs the benchmark.  Exit status 1 when the limit is missed."""
    parser = common.parser(__doc__.split("\n\n")[0], "shmkern bench explore --seconds 5")
    parser.add_argument("--seconds", type=common.duration, default=30.0, help="for frontrun at most (default 30)")
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        return be_peer(args.seconds)
    figures = {}
    runs, seconds = ours("first_touch")
    figures["first_touch"] = runs / seconds
    print(f"shmkern, two first touches:        {runs:>9,} schedules, {runs / seconds:>9,.0f} a second")
    runs, seconds = ours("fault", "--preemptions", "4")
    figures["fault"] = runs / seconds
    print(f"shmkern, fault against migration:  {runs:>9,} schedules, {runs / seconds:>9,.0f} a second "
          f"(limit {LIMIT:,})")
    runs, seconds = ours("counter", "--file", "counter.py")
    figures["counter"] = runs / seconds
    print(f"shmkern, counter:                  {runs:>9,} schedules, {runs / seconds:>9,.0f} a second")
    try:
        peer = install_peer()
    except OSError as error:
        print(f"no ratio to frontrun: {error}")
    else:
        runs, seconds = theirs(args.seconds)
        figures["frontrun"] = runs / seconds
        figures["ratio"] = figures["counter"] / figures["frontrun"]
        print(f"{peer}, counter:         {runs:>9,} schedules, {runs / seconds:>9,.0f} a second")
        print(f"ratio: {figures['ratio']:.0f}")
    common.write_json(args.json, figures)
    common.write_html(args.html, "schedules a second", f"A fault against a migration: {figures['fault']:,.0f} a second.",
                      {"what": "what", "value": "a second, or times as many"},
                      [{"what": what, "value": value} for what, value in figures.items()])
    return 0 if figures["fault"] >= LIMIT else 1


if __name__ == "__main__":
    common.run(main)
