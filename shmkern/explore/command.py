# SPDX-License-Identifier: GPL-2.0-only
"""`shmkern explore` and `shmkern replay`, in a process of the explorer's own.

A process has one block, and a block one scenario; so each scenario is explored in a process
forked for it, which forks jobs of its own.

May import: everything.
"""
import argparse
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
from dataclasses import asdict
from importlib.machinery import SourceFileLoader
from multiprocessing import get_context
from pathlib import Path

from shmkern.cli import DONE, Parser, UsageError, _command
from shmkern.command import (BAD_USE, carry_out, check_apart, check_outputs, duration, file_name, positive, problem_text,
                             words_beside_json, write_json)
from shmkern.explore.engine import DEPTH_MAX, PREEMPTIONS_MAX
from shmkern.explore import findings, museum, room as room_module, search
from shmkern.explore import (scenarios, scenarios_files, scenarios_hotplug, scenarios_reclaim,  # noqa: F401
                             scenarios_swap)
from shmkern.interrupts import write_whole

BROKEN = 1
EXPLORE_EXAMPLE = "shmkern explore fault store --preemptions 3 --jobs 2"
REPLAY_EXAMPLE = "shmkern replay store.schedule --html store.html"


# ---- scenarios -------------------------------------------------------------------

def load_file(path):
    """Runs a user's file, whose scenarios register themselves.  Their names."""
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}")
    # Whatever its name ends in.
    spec = importlib.util.spec_from_loader("scenarios_of_user", SourceFileLoader("scenarios_of_user", str(path)))
    module = importlib.util.module_from_spec(spec)
    before = dict(room_module.scenarios)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    return [name for name, build in room_module.scenarios.items() if before.get(name) is not build]


def wanted_scenarios(args):
    """The names of the scenarios to explore."""
    of_file = load_file(args.file) if args.file else list(room_module.scenarios)
    if not of_file:
        raise UsageError(f"{args.file} has no scenario: a function with @scenario of shmkern.explore.room")
    names = args.scenarios or of_file
    for name in names:
        if name not in room_module.scenarios:
            raise UsageError(f"there is no scenario {name!r}; `shmkern explore --list` shows those there are")
    return names


def from_interrupted(names):
    """Those of the scenarios that are left to explore: one was interrupted, and they come in this order."""
    for index, name in enumerate(names):
        if search.progress_file(name).exists():
            return names[index:]
    raise UsageError(f"no exploration of {', '.join(names[:3])}{' or others' if names[3:] else ''} was interrupted")


def list_scenarios(file):
    """Prints the scenarios, each with its text, and writes them to a file as JSON, if it is not None."""
    texts = {name: " ".join((build.__doc__ or "").split()) for name, build in room_module.scenarios.items()}
    width = max(map(len, texts))
    for name, text in texts.items():
        print(f"{name:<{width}}  {text}")
    write_json(file, [{"scenario": name, "text": text} for name, text in texts.items()])


# ---- one scenario, in a process of its own -----------------------------------------

def in_own_process(function, *args):
    """function(*args) in a forked process, which deals with Ctrl-C itself.  KeyboardInterrupt when that
    has ended it."""
    context = get_context("fork")
    receiver, sender = context.Pipe(False)

    def work():
        try:
            outcome = function(*args), None
        except UsageError as error:
            outcome = None, error
        except OSError as error:
            outcome = None, UsageError(problem_text(error))
        sender.send(outcome)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = context.Process(target=work)
        process.start()
        sender.close()
        try:
            result, error = receiver.recv()
        except EOFError:
            process.join()
            if process.exitcode == -signal.SIGINT:
                raise KeyboardInterrupt from None
            raise UsageError(f"the process of {args[0]} has ended with {process.exitcode}, outside any schedule") from None
        process.join()
    finally:
        signal.signal(signal.SIGINT, before)
    if error:
        raise error
    return result


def make_room(name):
    """The Room of a scenario.  UsageError when that cannot be set up."""
    try:
        return room_module.Room(room_module.scenarios[name])
    except Exception as error:
        raise UsageError(f"{name} cannot be set up: {room_module.describe_error(error)}") from error


def explore_one(name, file, options, jobs, resume):
    """Explores one scenario.  Returns (search.Result, findings.Finding or None)."""
    # What a user's file does here may hang.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    room = make_room(name)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exploration = search.Search(room, name, options, jobs, show_progress if sys.stderr.isatty() else lambda *_args: None)
    if resume:
        try:
            exploration.restore(search.load_progress(name))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{search.progress_file(name)} was not left by this exploration as it is now, with these "
                             "options: begin anew without --resume") from error
    result = exploration.run(resume)
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if result.interrupted and options.exhaustive:
        print(f"{name}: kept in {search.save_progress(exploration)}; go on with --resume")
    elif resume:
        search.progress_file(name).unlink(missing_ok=True)
    if result.failure is None:
        return result, None
    return result, findings.tell(room, name, file, result.failure)


def show_progress(result, done, of):
    """One line that overwrites itself."""
    text = f"round {result.rounds}, {result.points} points, {done} of {of} units" if of is not None else \
        "stopping; Ctrl-C again ends it at once, with nothing kept"
    print(f"\r\033[K{result.scenario}: {text}", end="", file=sys.stderr, flush=True)


def counted(number, noun):
    """As "1 step", "2 steps"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def verdict(result):
    """What a Result says, in a few words."""
    options = result.options
    if result.failure is not None:
        return f"FAILS: {result.failure['kind']}"
    if result.interrupted:
        return "interrupted"
    if options.strategy == "pct":
        chance = result.tasks * max(1, result.most_points) ** (options.depth - 1)
        return f"held; each schedule would have met a bug of depth {options.depth} with probability 1/{chance:,}"
    if options.strategy == "random":
        return "held"
    bound = counted(options.preemptions, "preemption") + \
        (f" and {counted(options.steps, 'step')}" if options.steps is not None else "")
    return f"held; exhausted at {bound}" if result.exhausted else f"held; not exhausted at {bound}"


def row(result):
    """A line of the table."""
    speed = result.runs / result.seconds if result.seconds else 0
    return f"{result.scenario:<18}{result.runs:>10,}{result.cut:>10,}{result.points:>7}{result.states:>7}" \
        f"{result.seconds:>8.1f}{speed:>9,.0f}  {verdict(result)}"


HEAD = f"{'scenario':<18}{'schedules':>10}{'cut':>10}{'points':>7}{'states':>7}{'s':>8}{'a second':>9}"


def bug_depth(text):
    """For argparse: a depth of bugs that the engine looks for."""
    if text.isdecimal() and 1 <= int(text) <= DEPTH_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from 1 to {DEPTH_MAX}")


def preemption_bound(text):
    """For argparse: a bound that the engine can keep to, or -1."""
    if text.lstrip("-").isdecimal() and -1 <= int(text) <= PREEMPTIONS_MAX:
        return int(text)
    raise argparse.ArgumentTypeError(f"'{text}' is not a whole number from -1 to {PREEMPTIONS_MAX}")


def run_explore(args):
    """The command `explore`."""
    if args.list:
        if args.file:
            load_file(args.file)
        check_outputs(args.json)
        list_scenarios(args.json)
        return DONE
    if args.museum:
        need_museum_options(args)
        return museum.run_museum(args.scenarios, args.jobs, args.json)
    names = wanted_scenarios(args)
    if (args.html or args.output) and len(names) > 1:
        raise UsageError("--html and --output are for one scenario")
    if args.resume:
        names = from_interrupted(names)
    preemptions = args.preemptions if args.preemptions >= 0 else PREEMPTIONS_MAX
    options = search.Options(args.strategy, preemptions, args.steps, args.runs, args.depth, args.seed, args.seconds)
    file = os.path.abspath(args.file) if args.file else None
    # Before an hour of exploring, what cannot be done.
    check_outputs(args.output, args.html, args.json)
    pieces = museum.pieces_of(names) if args.with_museum else []
    print(HEAD, flush=True)
    outcomes, status = [], DONE
    for name in names:
        try:
            result, finding = in_own_process(explore_one, name, file, options, args.jobs, args.resume and name == names[0])
        except KeyboardInterrupt:
            print(f"{name}: interrupted, and nothing kept")
            return 128 + signal.SIGINT
        print(row(result), flush=True)
        outcomes.append(asdict(result))
        if finding is not None:
            status = written(BROKEN, args, tell_finding, finding, args.output or f"{name}.schedule", args.html)
        if result.interrupted:
            status = status or 128 + signal.SIGINT
            break
    else:
        if args.with_museum:
            print()
            verdicts, found = museum.judge_all(pieces, args.jobs, {result["scenario"] for result in outcomes})
            status = status or found
            outcomes = {"scenarios": outcomes, "museum": [asdict(verdict) for verdict in verdicts]}
    return written(status, args, write_json, args.json, outcomes)


def need_museum_options(args):
    """UsageError for an option that the museum would ignore, and for a result that has nowhere to go."""
    defaults = vars(make_parser().parse_args(["explore"]))
    idle = [f"--{name.replace('_', '-')}" for name, value in vars(args).items()
            if value != defaults[name] and name not in ("museum", "scenarios", "jobs", "json")]
    if idle:
        raise UsageError(f"--museum does without {', '.join(idle)}: each piece has its scenario, explored at "
                         f"{defaults['preemptions']} preemptions")
    check_outputs(args.json)


def written(status, args, write, *what):
    """The exit status when write(*what) has been called: `status`, unless that was to be DONE and what was to be
    written cannot be.  That is told, and what else there is can still be done."""
    try:
        write(*what)
    except UsageError as error:
        sys.stdout.flush()
        print(f"shmkern {args.command_name}: {error}", file=sys.stderr)
        return status or BAD_USE
    return status


@contextlib.contextmanager
def writing(path):
    """UsageError when what is done within it cannot be, for that file's sake."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error


def tell_finding(finding, path, page):
    """Prints a finding and saves it."""
    print()
    print_table(finding)
    with writing(path):
        findings.save(finding, path)
    print(f"\nsaved: shmkern replay {path}")
    if page:
        write_page(finding, page)
    print()


def write_page(finding, path):
    """Writes a finding as a page."""
    with writing(path):
        write_whole(path, findings.page(finding))
    print(f"page: {path}")


def print_table(finding):
    """Prints a finding, in the width of the terminal if it goes to one."""
    print(findings.table(finding, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


# ---- replay --------------------------------------------------------------------------

def run_replay(args):
    """The command `replay`."""
    check_apart(args.schedule, args.html, args.json)
    check_outputs(args.html, args.json)
    try:
        saved = findings.load(args.schedule)
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {args.schedule}") from error
    except OSError as error:
        raise UsageError(f"{args.schedule} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UsageError(str(error)) from error
    if saved.file:
        load_file(saved.file)
    if saved.scenario not in room_module.scenarios:
        raise UsageError(f"there is no scenario {saved.scenario!r} any more")
    if args.gdb:
        become_gdb(args)
    room = make_room(saved.scenario)
    try:
        finding = findings.replay(room, saved)
    except ValueError as error:
        why = error if search.source_hash(room.build) != saved.source else \
            "it runs in another way than when it was saved, and no source has changed: do the programs do the same in every run?"
        raise UsageError(f"{args.schedule} no longer applies: {why}") from error
    if finding.kind is None:
        why = finding.text or "the schedule runs to its end and nothing fails"
        print(f"{saved.scenario}: {why} (it was: {saved.kind})")
        return DONE
    print_table(finding)
    if args.html:
        written(BROKEN, args, write_page, finding, args.html)
    return written(BROKEN, args, write_json, args.json, asdict(finding))


def become_gdb(args):
    """Goes on as gdb with the same replay in it, which stops at each switch, in the task that is about
    to lose its CPU: its kernel functions are on the stack.  And where a lock is taken in a wrong order."""
    gdb = shutil.which("gdb")
    if not gdb:
        raise UsageError("there is no gdb; install the Debian package gdb")
    options = [text for name in ("html", "json") if getattr(args, name) for text in (f"--{name}", getattr(args, name))]
    program = str(Path(__file__).with_name("__main__.py"))
    os.execv(gdb, [gdb, "-q", "-ex", "set breakpoint pending on", "-ex", "break runtime.c:switch_to",
                   "-ex", "break runtime.c:lock_shown", "--args",
                   sys.executable, program, "replay", *options, "--", args.schedule])


# ---- the command line -------------------------------------------------------------------

def make_parser():
    """The parser of both commands."""
    parser = Parser(prog="shmkern")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser, dest="command_name")
    explore = _command(commands, "explore", run_explore, "try every interleaving of small scenarios of the kernel",
                       EXPLORE_EXAMPLE)
    explore.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="as --list shows it (default: all)")
    explore.add_argument("--list", action="store_true", help="show the scenarios")
    explore.add_argument("--file", type=file_name, metavar="FILE",
                         help="a Python file with scenarios of your own; docs/explore.md")
    explore.add_argument("--strategy", choices=("dpor", "all", "pct", "random"), default="dpor",
                         help="dpor: all schedules, equivalent ones seldom twice; all: each of them; pct, random: --runs of "
                              "them (default dpor)")
    explore.add_argument("--preemptions", type=preemption_bound, default=2, metavar="N",
                         help="bound dpor by this many switches that no task asked for; -1: as many as are counted, "
                              f"{PREEMPTIONS_MAX} (default 2)")
    explore.add_argument("--steps", type=positive, metavar="N", help="bound dpor to switches in the first N accesses")
    explore.add_argument("--runs", type=positive, default=10000, metavar="N", help="of pct and random (default 10000)")
    explore.add_argument("--depth", type=bug_depth, default=3, metavar="D", help="bug depth of pct (default 3)")
    explore.add_argument("--seed", type=int, default=1, metavar="N", help="of pct and random (default 1)")
    explore.add_argument("--seconds", type=duration, metavar="S", help="stop each scenario then")
    explore.add_argument("--jobs", type=positive, default=1, metavar="N", help="processes (default 1)")
    explore.add_argument("--resume", action="store_true", help="go on with what Ctrl-C interrupted")
    explore.add_argument("--output", type=file_name, metavar="FILE",
                         help="where a failed schedule goes (default SCENARIO.schedule)")
    explore.add_argument("--html", type=file_name, metavar="FILE",
                         help="also write a failed schedule as a page to step through")
    explore.add_argument("--museum", action="store_true",
                         help="build the kernel with bugs that Linux had and find each; SCENARIOs are then their names")
    explore.add_argument("--with-museum", action="store_true",
                         help="after the SCENARIOs, build and find the bugs that these show")
    explore.add_argument("--json", type=file_name, metavar="FILE",
                         help="also write the results to FILE, as JSON; - is the standard output")
    replay = _command(commands, "replay", run_replay, "run a failed schedule again, exactly", REPLAY_EXAMPLE)
    replay.add_argument("schedule", type=file_name, metavar="FILE", help="what `shmkern explore` has saved")
    replay.add_argument("--gdb", action="store_true", help="under gdb, which stops at each switch once one says run")
    replay.add_argument("--html", type=file_name, metavar="FILE", help="also write it as a page to step through")
    replay.add_argument("--json", type=file_name, metavar="FILE", help="also write it to FILE, as JSON; - is the standard output")
    return parser


def main(argv):
    """Runs a command line.  Does not return."""
    args = make_parser().parse_args(argv)

    def work():
        with words_beside_json(args.json):
            return args.run(args)
    status = carry_out(args.command_name, work)
    # Tasks that never came to an end are not to be ended by the interpreter's clearing up.
    os._exit(status)
