# SPDX-License-Identifier: GPL-2.0-only
"""What `shmkern stress NAME` and `python stress/NAME.py` have in common: options, the
printed result, the JSON file, the exit status.

A scenario is a module with NAME, worker(task, run, number), plan(options), which gives what
the workers need and checks the options, and perhaps roots(options): how many workers the
supervisor starts, if they start others; prepare(machine, options): what a machine needs first;
and MACHINE, more arguments of its Machine.  What the run itself does is in harness.py, what tasks
have at hand in board.py.
"""
import argparse
import contextlib
import importlib
import json
import math
import os
import signal
import sys

import shmkern
from shmkern.command import Parser, check_outputs, duration, file_name, problem_text
from shmkern.errors import ArgumentError, UsageError
from shmkern.interrupts import write_whole
from shmkern_stress.board import entering      # noqa: F401 (scenarios fork and clone with it)
from shmkern_stress.display import Display, say, unwritten

SCENARIOS = {
    "anon": "each worker owns memory and loads and stores all over it while its pages move",
    "threads": "workers share address spaces and increment shared counters; the sums must be exact",
    "fork": "trees of forks with copy-on-write, unmapping, moving, protecting and exiting",
    "memcg": "workers wander between control groups, whose limits they hit, which are emptied and removed",
    "move_pages": "every task moves every other task's pages, and what move_pages says of them is checked",
    "offline": "nodes are emptied and brought back under load",
    "file": "workers map files, shared and private, sync and truncate them; memory and disk must agree",
    "buffers": "the same on files with buffer heads of every size",
    "swap": "as anon, with twice as much memory as there are frames, the rest of it in a file of the host",
    "all": "all of these on one machine, with a swap area, control groups and nodes that come and go",
    "trace": "each worker replays the memory accesses of a real program",
}
HELD, BROKEN, BAD_USE = 0, 1, 2
FRAMES_MIN = 8192
FRAMES_PER_WORKER = 512
FRAMES_PER_NODE_MIN, FRAMES_PER_NODE_MAX = 64, 1 << 22
MAX_WORKERS = 400
# Of all frames: so that any node of two can hold everything, with room to spare.
USABLE_PERCENT = 35


def take_frames(options, need):
    """Settles options.frames for a scenario that maps `need` pages at least.  Returns how many
    frames it may fill.  Raises UsageError when there are too few."""
    least = max(math.ceil(need * 100 / USABLE_PERCENT), options.nodes * FRAMES_PER_NODE_MIN)
    if options.frames is None:
        options.frames = max(least, FRAMES_MIN, options.workers * FRAMES_PER_WORKER)
        options.frames += -options.frames % options.nodes
    if options.frames < least:
        raise UsageError(f"{options.frames} frames are too few for {options.workers} workers on {options.nodes} "
                         f"nodes; {least} will do")
    if options.frames > options.nodes * FRAMES_PER_NODE_MAX:
        raise UsageError(f"{options.frames} frames are too many for {options.nodes} nodes, which have "
                         f"{FRAMES_PER_NODE_MAX} at most")
    options.frames -= options.frames % options.nodes
    return options.frames * USABLE_PERCENT // 100


# ---- options -----------------------------------------------------------------------

def whole(low, high):
    """An argparse type: whole numbers from low to high."""
    def parse(text):
        try:
            value = int(text, 0)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {low} to {high}")
        return value
    return parse


def add_options(parser, name):
    """Adds a scenario's options to its parser."""
    if name == "trace":
        parser.add_argument("file", type=file_name, metavar="FILE",
                            help="what valgrind's lackey prints, plain or gzip; see `shmkern record`")
    parser.add_argument("--workers", type=whole(1, MAX_WORKERS), default=8, metavar="N",
                        help="tasks that run at once (default 8)")
    parser.add_argument("--nodes", type=whole(2, 64), default=2, metavar="N", help="nodes, 2 to 64 (default 2)")
    parser.add_argument("--frames", type=whole(1, 1 << 28), metavar="N",
                        help="page frames of 4 KiB, over all nodes together (default: what the workers need, "
                             f"{FRAMES_MIN} at least)")
    seconds = "30, and once through the trace" if name == "trace" else "30"
    parser.add_argument("--seconds", type=duration, metavar="S", help=f"how long (default {seconds})")
    parser.add_argument("--seed", type=whole(0, (1 << 62) - 1), metavar="N",
                        help="what all random numbers follow from (default: a new one, which is printed)")
    parser.add_argument("--migrators", type=whole(1, 64), metavar="N",
                        help="processes that move pages (default 1, and one more for every 32 workers)")
    add_html(parser)
    parser.add_argument("--json", type=file_name, metavar="FILE",
                        help="also write the result to FILE, as JSON; - is the standard output")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    example = "shmkern record -o ls.gz -- ls / && shmkern stress trace ls.gz" if name == "trace" else \
        f"shmkern stress {name} --workers 8 --seconds 10 --json {name}.json"
    parser.description = f"{SCENARIOS[name][0].upper()}{SCENARIOS[name][1:]}."
    parser.epilog = f"example:\n  {example}\n\nexit status: 0 held, 1 a promise was broken, 2 bad use"


def add_html(parser):
    """The option of every run that can write a report."""
    parser.add_argument("--html", type=file_name, metavar="FILE", help="also write a report to FILE, one HTML page")


# ---- the result --------------------------------------------------------------------

def status_of(result):
    """The exit status that a result calls for."""
    if result["failures"] or result["audit"] or result["lost_writes"]:
        return BROKEN
    return 128 + result["signal"] if result["signal"] else HELD


def summary(result):
    """The result in words, a list of lines."""
    status = status_of(result)
    word = {HELD: "held", BROKEN: "BROKEN"}.get(status, "interrupted")
    audit = "clean audit" if not result["audit"] else f"{len(result['audit'])} audit findings"
    lines = [f"{result['scenario']} {word}: {result['lost_writes']} lost writes, {audit}, seed {result['seed']}"]
    lines += [f"  {failure}" for failure in result["failures"]]
    shown = {"workers": f"{result['workers']} on {result['nodes']} nodes of "
                        f"{result['frames'] // result['nodes']:,} frames, {result['seconds']:.1f} s",
             "accesses": f"{result['accesses']:,}", "faults": f"{result['faults']:,}",
             "migration waits": f"{result['migration_waits']:,} (half of them up to {result['wait_p50_us']:,.1f} us, "
                                f"99 % up to {result['wait_p99_us']:,.1f} us)",
             "pages migrated": f"{result['pages_migrated']:,} ({result['pages_per_second']:,} a second), "
                               f"{result['migrate_retried']:,} retried, {result['migrate_failed']:,} failed",
             "TLB shootdowns": f"{result['tlb_shootdowns']:,}"}
    if result["pages_swapped_in"]:
        shown["pages swapped"] = f"{result['pages_swapped_out']:,} out, {result['pages_swapped_in']:,} in"
    if result["forks"]:
        shown["forks"] = f"{result['forks']:,}, up to {result['tasks_live_max']} tasks at once"
    lines += [f"  {name:16} {value}" for name, value in shown.items()]
    if status == HELD and result["migration_waits"] == 0:
        lines.append("  No task met a migration entry, so this run shows little; a longer one would.")
    return lines


def write_json(path, result):
    """Writes the result.  Raises UsageError when it cannot be written."""
    try:
        if path == "-":
            say(sys.stdout, json.dumps(result, indent=2))
        elif path is not None:
            write_whole(path, json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"the result cannot be written to {path}: {error.strerror}") from None


# ---- the command ---------------------------------------------------------------------

def planned(name, options):
    """(module, plan) of a scenario with parsed options, which are settled.  Raises UsageError."""
    scenario = importlib.import_module(f"shmkern_stress.{name}")
    settle(name, options)
    return scenario, scenario.plan(options)


def run(name, options, file=None, tick=None, signals=None):
    """Runs a scenario with parsed options, showing progress on `file`.  Returns the result, a
    dict.  Raises UsageError and BootError.  `tick(supervision)` is called at every look; that is
    how the sampler sees the run, and how the tests break machines.  `signals` is an entered
    harness.Signals that goes on after the run, if there is one."""
    from shmkern_stress import harness

    scenario, plan = planned(name, options)
    with Display(file or sys.stdout) as display, \
            harness.Signals() if signals is None else contextlib.nullcontext(signals) as signals:
        say(display.file, f"{name}: {options.workers} workers, {options.nodes} nodes, {options.frames} frames, "
                          f"{options.seconds:g} s, seed {options.seed}")
        return harness.Supervision(scenario, options, plan, signals, display, tick).supervise()


def settle(name, options):
    """Gives the options that were left open their values."""
    # May be called twice.
    options.once_through = getattr(options, "once_through", name == "trace" and options.seconds is None)
    options.seconds = 30.0 if options.seconds is None else options.seconds
    options.migrators = 1 + options.workers // 32 if options.migrators is None else options.migrators
    options.seed = int.from_bytes(os.urandom(4), "little") if options.seed is None else options.seed


def run_sampled(name, options, file):
    """run(), with samples for a report.  Returns the result and what writes the report."""
    from shmkern_stress import run_report
    from shmkern_stress.recording import Recording
    from shmkern_stress.samples import Samples

    settle(name, options)
    recording = Recording(Samples.create(":memory:", seed=options.seed, seconds=options.seconds),
                          min(1.0, options.seconds / 60))
    recording.begin_turn(name, options)
    result = run(name, options, file, recording.sampler)
    recording.end_turn(name, result, [("broken promise", name, failure) for failure in result["failures"]])
    recording.end("by itself")
    return result, lambda: run_report.write(options.html, recording.samples, recording.result())


def main(name, options):
    """Does what a parsed command asks for.  Returns the exit status."""
    file = sys.stderr if options.json == "-" else sys.stdout
    try:
        # Now, and not after the run.
        check_outputs(options.json, options.html)
        if options.html is None:
            result, write_html = run(name, options, file), None
        else:
            result, write_html = run_sampled(name, options, file)
        say(file, "\n".join(summary(result)))
        problem = None
        try:
            write_json(options.json, result)
            if write_html:
                write_html()
        except UsageError as error:
            problem = error
        problem = problem or unwritten()
        if problem:
            print(f"shmkern stress {name}: {problem}", file=sys.stderr)
        return status_of(result) or (BAD_USE if problem else HELD)
    except (UsageError, shmkern.BootError, ArgumentError) as error:
        problem = error
    except OSError as error:
        problem = problem_text(error)
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    print(f"shmkern stress {name}: {problem}", file=sys.stderr)
    return BAD_USE


def script(name):
    """`python stress/NAME.py`."""
    parser = Parser()
    add_options(parser, name)
    sys.exit(main(name, parser.parse_args()))
