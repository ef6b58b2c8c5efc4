# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios in rotation for hours, with a sample of everything once a second, and a verdict
that knows a leak from noise.

Each turn is a stress run of its own, with a machine of its own, so whatever a stress run finds
a soak finds; beyond that it fails on growth (verdict.py), on a stalled migrator and on a task
without progress (sampler.py), and on what a turn leaves behind.  The first turn that fails is
the last.

A soak outlives its terminal; Ctrl-C and SIGTERM end it, with a report on what there is.  The
samples are on the disk as soon as they are taken, and --resume goes on from there.
"""
import argparse
import json
import os
import shlex
import signal
import sys
from datetime import datetime

import psutil

import shmkern
from shmkern import direct_map
from shmkern.command import check_apart, check_outputs, file_name, problem_text
from shmkern.errors import ArgumentError
from shmkern_stress import common, harness, run_report, verdict
from shmkern_stress.common import BAD_USE, BROKEN, HELD, UsageError
from shmkern_stress.display import say, unwritten
from shmkern_stress.recording import Recording, state_of
from shmkern_stress.samples import Samples, SamplesError

TURN_MAX = 300.0
# A turn that would be shorter is not begun.
TURN_MIN = 1.0
STALL = 30.0
OWN_OPTIONS = ("seconds", "seed", "json", "html")
EXAMPLE = "shmkern soak anon 'fork --workers 16' --seconds 60"


# ---- options -----------------------------------------------------------------------

def hours(text):
    """An argparse type: hours, as seconds."""
    try:
        return common.duration(str(float(text) * 3600))
    except (ValueError, argparse.ArgumentTypeError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in hours") from None


def add_options(parser):
    """Adds the options of `shmkern soak` to its parser."""
    parser.description = "Stress scenarios in rotation for hours, and tell what grows or stalls."
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n  {EXAMPLE}\n\nexit status: 0 held, 1 a promise was broken, 2 it could not be done"
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO",
                        help="as after `shmkern stress`, in quotes if options follow (default: "
                             f"{', '.join(default_scenarios())})")
    long = parser.add_mutually_exclusive_group()
    long.add_argument("--hours", type=hours, dest="seconds", metavar="H", help="how long (default 1)")
    long.add_argument("--seconds", type=common.duration, dest="seconds", metavar="S", help="how long, in seconds")
    parser.add_argument("--turn", type=common.duration, metavar="S",
                        help=f"seconds of a turn (default {TURN_MAX:.0f}, less if not all would have theirs)")
    for option in ("--workers", "--nodes", "--frames", "--migrators"):
        parser.add_argument(option, metavar="N", help=f"{option} of every scenario that does not say otherwise")
    parser.add_argument("--seed", type=common.whole(0, (1 << 62) - 1), metavar="N",
                        help="what all random numbers follow from (default: a new one, which is printed)")
    parser.add_argument("--every", type=common.duration, default=1.0, metavar="S",
                        help="seconds from sample to sample (default 1)")
    parser.add_argument("--stall", type=common.duration, default=STALL, metavar="S",
                        help=f"seconds that nobody may stand still for (default {STALL:.0f})")
    parser.add_argument("--samples", type=file_name, metavar="FILE",
                        help="where the samples go (default soak-DATE-TIME.db)")
    parser.add_argument("--resume", type=file_name, metavar="FILE", help="go on with the soak that wrote these samples")
    common.add_html(parser)
    parser.add_argument("--json", type=file_name, metavar="FILE",
                        help="also write the result to FILE, as JSON; - is the standard output")


def default_scenarios():
    """Those that need no file."""
    return [name for name in common.SCENARIOS
            if all(action.option_strings for action in scenario_parser(name)._actions)]


def scenario_parser(name):
    """What parses the options of a scenario."""
    parser = common.Parser(prog=f"shmkern soak: {name}", add_help=False)
    common.add_options(parser, name)
    return parser


def parse_scenario(text, defaults):
    """(name, parsed options) of a SCENARIO argument.  Raises UsageError."""
    try:
        name, *rest = shlex.split(text)
    except ValueError:
        raise UsageError(f"{text!r} is no scenario") from None
    if name not in common.SCENARIOS:
        raise UsageError(f"there is no scenario {name!r}; there is {', '.join(common.SCENARIOS)}")
    options = scenario_parser(name).parse_args([*defaults, *rest])
    for option in OWN_OPTIONS:
        if getattr(options, option) is not None:
            raise UsageError(f"--{option} is the soak's own and goes behind the scenarios, not into {text!r}")
    return name, options


# ---- one soak ------------------------------------------------------------------------

class Soak:
    """A soak, new or resumed, in a file of samples that knows what it is to do."""

    def __init__(self, samples, every):
        self.meta = samples.meta()
        # Whoever runs the soak may have had children before.
        self.children = {child.pid for child in psutil.Process().children(recursive=True)}
        self.recording = Recording(samples, every, self.meta["stall"])

    @property
    def first_round(self):
        """Whether a scenario has not had its turn yet; it gets it whole, if that takes longer."""
        return self.recording.turns < len(self.meta["scenarios"])

    def left(self):
        """Seconds that are to come."""
        return self.meta["seconds"] - self.recording.elapsed()

    def run(self, file, signals):
        """Turn after turn, until the time is over, one fails, or a signal comes.  Raises UsageError,
        BootError and SamplesError."""
        recording = self.recording
        while (self.first_round or self.left() >= TURN_MIN) and not recording.broken and not signals.number:
            self.turn(file, signals)
            if recording.sampler.error is not None:
                raise recording.sampler.error

    def turn(self, file, signals):
        """One turn: runs it and judges it."""
        recording, meta = self.recording, self.meta
        text = meta["scenarios"][recording.turns % len(meta["scenarios"])]
        name, options = parse_scenario(text, meta["defaults"])
        options.seconds = meta["turn"] if self.first_round else min(meta["turn"], self.left())
        options.seed = meta["seed"] + recording.turns
        recording.begin_turn(text, options)
        say(file, f"turn {recording.turns}, {recording.turn_began:.0f} of {meta['seconds']:.0f} s")
        result = common.run(name, options, file, recording.sampler, signals)
        recording.end_turn(text, result, self.findings(text, result))

    def findings(self, text, result):
        """What was wrong with the turn that has just ended, as (kind, who, text)."""
        samples, stalled = self.recording.samples, self.recording.sampler.stalled
        found = [("broken promise", text, failure) for failure in result["failures"]
                 if not any(failure.startswith(known) for _kind, _who, known in stalled)]
        return found + stalled + left_behind(self.children) + [
            (f"growth in {judgement.quantity.name}", judgement.who, str(judgement))
            for judgement in [*verdict.judge(samples, self.recording.turns), *verdict.judge_between(samples)]
            if judgement.grows]


def left_behind(children):
    """What a turn should have ended and has not, as findings.  `children` were there before."""
    found = [("left behind", f"process {child.pid}", f"left behind: process {child.pid} outlives its machine")
             for child in psutil.Process().children(recursive=True) if child.pid not in children]
    mine = f"{direct_map.PREFIX}{os.getpid()}-"
    return found + [("left behind", name, f"left behind: the block {name} outlives its machine")
                    for name in direct_map.blocks() if name.startswith(mine)]




# ---- the result ----------------------------------------------------------------------

def summary(result):
    """The result in words, a list of lines."""
    findings = [f"  {finding['text']}" for finding in result["findings"]]
    found = "no growth, nobody stalled, nothing lost" if not findings else \
        "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    state = state_of(result)
    lines = [f"soak {state.upper() if state == 'broken' else state}: {len(result['turns'])} turns, {result['seconds']:,.0f} of "
             f"{result['planned_seconds']:,.0f} s, {found}, seed {result['seed']}", *findings]
    for turn in result["turns"]:
        measured = turn["result"]
        text = f"  turn {turn['number']:<3} {turn['state']:11} {turn['scenario']:20}"
        if measured:
            text += (f" {measured['seconds']:7.1f} s  {measured['pages_per_second']:>9,} pages/s  "
                     f"{measured['migration_waits']:>9,} waits  {measured['migrate_failed']:>7,} failed")
        lines.append(text)
    return [*lines, f"  samples in {result['samples']}"]


# ---- the command ---------------------------------------------------------------------

def new_soak(args):
    """The Soak that parsed arguments ask for."""
    scenarios = args.scenarios or default_scenarios()
    seconds = 3600.0 if args.seconds is None else args.seconds
    defaults = [text for option in ("workers", "nodes", "frames", "migrators")
                if (value := getattr(args, option)) is not None for text in (f"--{option}", value)]
    for text in scenarios:
        # What the last of them cannot do is told now, not when the others have had their hours.
        common.planned(*parse_scenario(text, defaults))
    seed = int.from_bytes(os.urandom(4), "little") if args.seed is None else args.seed
    meta = {"scenarios": scenarios, "defaults": defaults, "seconds": seconds, "seed": seed, "stall": args.stall,
            "turn": min(TURN_MAX, seconds / len(scenarios)) if args.turn is None else args.turn}
    path = args.samples or f"soak-{datetime.now():%Y%m%d-%H%M%S}.db"
    return Soak(Samples.create(path, **meta), args.every)


def resumed_soak(args):
    """The Soak that a file of samples holds, to go on."""
    for option in ("scenarios", "samples", "turn", "workers", "nodes", "frames", "migrators", "seed"):
        if getattr(args, option):
            raise UsageError(f"{option} is settled in {args.resume}; only --hours or --seconds can be given anew")
    samples = Samples.open(args.resume)
    if (user := samples.user()) is not None:
        raise UsageError(f"process {user} is at work on {args.resume}")
    if args.seconds is not None:
        with samples.writing() as db:
            db.execute("UPDATE meta SET value = ? WHERE key = 'seconds'", (json.dumps(args.seconds),))
    return Soak(samples, args.every)


def main(args):
    """Does what parsed arguments ask for.  Returns the exit status."""
    file = sys.stderr if args.json == "-" else sys.stdout
    problem = None
    with harness.Signals(outlive_terminal=True) as signals:
        try:
            check_apart(args.samples or args.resume, args.json, args.html)
            check_outputs(args.json, args.html)
            soak = resumed_soak(args) if args.resume else new_soak(args)
        except (UsageError, SamplesError) as error:
            return complain(error, BAD_USE)
        except OSError as error:
            return complain(problem_text(error), BAD_USE)
        recording = soak.recording
        try:
            soak.run(file, signals)
            recording.end("by a signal" if signals.number else "by itself")
        except (UsageError, SamplesError, shmkern.BootError, ArgumentError) as error:
            problem = error
        except OSError as error:
            problem = problem_text(error)
        except KeyboardInterrupt:
            # The second one.  What was sampled is on the disk.
            return 128 + signal.SIGINT
        result = recording.result()
        say(file, "\n".join(summary(result)))
        status = BROKEN if result["findings"] else 128 + signals.number if signals.number else HELD
        for problem in filter(None, [problem, *write_outputs(args, recording.samples, result), unwritten()]):
            status = complain(problem, status or BAD_USE)
        recording.samples.close()
        return status


def write_outputs(args, samples, result):
    """Writes the files that were asked for.  Returns what went wrong."""
    problems = []
    for write, path, *what in ((common.write_json, args.json, result),
                               (run_report.write, args.html, samples, result)):
        try:
            write(path, *what)
        except UsageError as error:
            problems.append(error)
    return problems


def complain(error, status):
    """Says what is wrong, in a sentence.  Returns the exit status."""
    say(sys.stderr, f"shmkern soak: {error}")
    return status


if __name__ == "__main__":
    parser = common.Parser()
    add_options(parser)
    sys.exit(main(parser.parse_args()))
