# SPDX-License-Identifier: GPL-2.0-only
"""The command `shmkern`.

Each command is a function that takes parsed arguments and returns the exit status: 0 held or
done, 1 a promise was broken, 2 bad use.  What a user can get wrong is a UsageError: one
sentence, never a traceback.
"""
import argparse
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

import shmkern
from shmkern import direct_map, interrupts, layout, record
from shmkern.command import DONE, Parser, carry_out, file_name, positive, table, write_json
from shmkern.errors import UsageError

C = layout.constants
CHECKOUT = Path(shmkern.__file__).resolve().parent.parent
# Accesses that `record` keeps by default; as a trace, about three megabytes.
RECORD_LIMIT = 2_000_000


# ---- blocks ------------------------------------------------------------------------

class LeftTask(NamedTuple):
    """A task of a block whose process runs: pid in the machine, the host's pid and its start."""
    pid: int
    os_pid: int
    start: int


class BlockState(NamedTuple):
    """What a file of ours in /dev/shm is.  `supervisor` is a pid, of the process that started then, `alive`
    whether it runs, `note` why nothing is known of nodes, frames and tasks, if so; `uid` is the owner of the
    file."""
    name: str
    size: int
    used: int
    supervisor: int
    supervisor_start: int
    alive: bool
    age: float
    nodes: int
    frames: int
    tasks: list
    note: str
    uid: int

    @property
    def state(self):
        """In a word or two."""
        return ("running" if self.alive else "left behind") + (f" ({self.note})" if self.note else "")


def _pread(fd, dtype, offset, count=1):
    """`count` records of a block, copied; they may change at any time."""
    data = os.pread(fd, dtype.itemsize * count, offset)
    if len(data) < dtype.itemsize * count:
        raise ValueError("damaged")
    return np.frombuffer(data, dtype, count)


def _read_machine(fd, header):
    """(nodes, frames, tasks) of a block.  Reads it as a file: a damaged one does no harm.
    Raises ValueError, saying what is wrong with it."""
    if header["layout_hash"] != layout.layout_hash():
        raise ValueError("of another build")
    kernel = _pread(fd, layout.dtypes["Kernel"], C["PAGE_SIZE"])[0]
    if not 0 < kernel["max_tasks"] <= C["NR_CPUS"]:
        # Killed, or still at it, while it booted.
        return 0, 0, []
    slots = _pread(fd, layout.dtypes["Task"], int(kernel["tasks"] - header["base"]), int(kernel["max_tasks"]))
    tasks = [LeftTask(int(slot["pid"]), int(slot["os_pid"]), int(slot["start_time"]))
             for slot in slots[slots["state"] == C["TASK_RUNNING"]]]
    return int(kernel["nr_nodes"]), int(kernel["max_pfn"]), \
        [task for task in tasks if not direct_map.process_gone(task.os_pid, task.start)]


def _has_in_hand(pid, path):
    """Whether a process has a file open or mapped."""
    try:
        process = psutil.Process(pid)
        # In this order: it is open until it is mapped.
        return any(file.path == str(path) for file in process.open_files()) or \
            any(area.path == str(path) for area in process.memory_maps())
    except psutil.Error:
        return False


def block_state(name):
    """The BlockState of a file in /dev/shm, or None when it is gone or not ours to read."""
    try:
        fd = direct_map.open_block(name)
    except OSError:
        return None
    try:
        stat, header = os.fstat(fd), direct_map.header_of(fd)
        if header is None:
            # Its maker died, or is at work, before it was a block.  The name has its pid, which may be another's
            # by now.
            maker = name.removeprefix(direct_map.PREFIX).split("-")[0]
            maker = int(maker) if maker.isdecimal() else 0
            start = direct_map.process_start(maker)
            return BlockState(name, stat.st_size, stat.st_blocks * 512, maker, start,
                              _has_in_hand(maker, direct_map.SHM_DIR / name), time.time() - stat.st_mtime,
                              0, 0, [], "unfinished", stat.st_uid)
        nodes, frames, tasks, note = 0, 0, [], ""
        try:
            nodes, frames, tasks = _read_machine(fd, header)
        except (ValueError, OSError) as error:
            note = str(error)
        except OverflowError:
            note = "damaged"
    except OSError:
        return None
    finally:
        os.close(fd)
    return BlockState(name, stat.st_size, stat.st_blocks * 512, int(header["supervisor_pid"]),
                      int(header["supervisor_start"]), direct_map.supervisor_alive(header),
                      time.time() - int(header["boot_time_ns"]) / 1e9, nodes, frames, tasks, note, stat.st_uid)


def block_states():
    """All blocks on this host that we may read."""
    names = sorted(path.name for path in direct_map.SHM_DIR.glob(f"{direct_map.PREFIX}*"))
    return [state for state in map(block_state, names) if state is not None]


def kill_process(pid, start, uid):
    """direct_map.kill_process; returns when the process is gone."""
    try:
        killed = direct_map.kill_process(pid, start, uid)
        deadline = time.monotonic() + 10
        while killed and not direct_map.process_gone(pid, start) and time.monotonic() < deadline:
            time.sleep(0.002)
        return killed
    except OSError as error:
        raise UsageError(f"process {pid} cannot be ended: {error.strerror}") from None


# ---- ls and rm ---------------------------------------------------------------------

def _age(seconds):
    """A time in its largest unit."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def list_blocks(args):
    """shmkern ls"""
    states = block_states()
    rows = [("NAME", "MEMORY", "NODES", "FRAMES", "TASKS", "SUPERVISOR", "AGE", "STATE")]
    rows += [(block.name, f"{block.used / 2**20:.0f} of {block.size / 2**20:.0f} MiB", str(block.nodes),
              str(block.frames), str(len(block.tasks)), str(block.supervisor), _age(block.age), block.state)
             for block in states]
    if args.json != "-":
        _print(*(table(rows) if states else ["There are no machines."]))
    write_json(args.json, [{**block._asdict(), "tasks": [task._asdict() for task in block.tasks]} for block in states])
    return DONE


def remove_block(block):
    """Ends what belongs to a block and removes it.  Returns a sentence."""
    if block.alive:
        # First: it looks after its tasks.
        kill_process(block.supervisor, block.supervisor_start, block.uid)
    ended = sum(kill_process(task.os_pid, task.start, block.uid) for task in block.tasks)
    try:
        (direct_map.SHM_DIR / block.name).unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{block.name} cannot be removed: {error.strerror}") from None
    return f"removed {block.name}" + (f" and ended {ended} tasks" if ended else "")


def remove_blocks(args):
    """shmkern rm"""
    states = {block.name: block for block in block_states()}
    for name in args.names:
        if name not in states:
            raise UsageError(f"there is no machine {name!r}; `shmkern ls` shows those there are")
        if states[name].alive and not args.force:
            raise UsageError(f"{name} is in use by process {states[name].supervisor}; --force ends it first")
    chosen = [states[name] for name in args.names] or \
        [block for block in states.values() if args.force or not block.alive]
    removed = [remove_block(block) for block in chosen]
    left = len(states) - len(chosen) if not args.names else 0
    _print(*removed)
    if not removed:
        _print("Nothing was left behind." + (f" {left} machines are running." if left else ""))
    return DONE


# ---- record, bench, stress, soak ---------------------------------------------------

def record_trace(args):
    """shmkern record"""
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        raise UsageError("no command to record; for example: shmkern record -o ls.gz -- ls /")
    path = args.output or f"{Path(command[0]).name}.lackey.gz"
    try:
        count, status, ended = record.record(command, path, args.limit)
    except record.TraceError as error:
        raise UsageError(str(error)) from None
    # The standard output is the program's.
    how = {None: f"exit status {status}", "limit": f"ended after {count:,} accesses", signal.SIGINT: "ended by Ctrl-C",
           signal.SIGTERM: "ended by SIGTERM", signal.SIGHUP: "ended by SIGHUP"}[ended]
    print(f"shmkern record: {count:,} accesses in {path} ({command[0]}: {how})", file=sys.stderr)
    return DONE if ended in (None, "limit") else 128 + ended


def run_bench(args):
    """shmkern bench"""
    folder = CHECKOUT / "bench"
    if not folder.is_dir():
        raise UsageError("there are no benchmarks here; they are in the directory bench of shmkern's sources")
    names = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_") and path.stem != "common")
    if args.name not in names:
        raise UsageError(f"{f'there is no benchmark {args.name!r}' if args.name else 'no benchmark is named'}; "
                         f"there is {', '.join(names) or 'none'}")
    # Becomes it, so that signals come to it alone: Ctrl-C twice would be once too often.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(folder / f"{args.name}.py"), *args.arguments])


def run_stress(args):
    """shmkern stress"""
    return args.common.main(args.scenario, args)


def run_soak(args):
    """shmkern soak"""
    return args.soak.main(args)


# ---- the command -------------------------------------------------------------------

STRESS = "put a machine under stress and check every store"
# Commands with a module of their own, which has EXAMPLE, add_options(parser) and run(args).
MODULES = {
    "top": ("top", "watch a running machine: nodes, tasks, waits, hottest locks"),
    "trace": ("cli_trace", "trace a run, for ui.perfetto.dev or as ftrace prints it"),
    "show": ("show", "show a migration, stopped after each of its steps"),
}
SOAK = "stress scenarios in rotation for hours, and tell what grows or stalls"


def _print(*lines):
    if lines:
        print("\n".join(lines), flush=True)


def _command(commands, name, function, summary, example):
    """Adds a command."""
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.",
                                 epilog=f"example:\n  {example}",
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(run=function)
    return parser


def _scenarios(parser, module):
    """A module of the scenarios, which come with a package of their own."""
    try:
        return importlib.import_module(f"shmkern_stress.{module}")
    except ImportError:
        return parser.error("the scenarios are not installed; they are in the directory stress of shmkern's sources")


def _add_stress(commands):
    """The stress command."""
    parser = _command(commands, "stress", run_stress, STRESS, "shmkern stress anon --seconds 10")
    common = _scenarios(parser, "common")
    names = parser.add_subparsers(metavar="SCENARIO", required=True, parser_class=Parser, dest="scenario")
    for name, summary in common.SCENARIOS.items():
        scenario = names.add_parser(name, help=summary)
        common.add_options(scenario, name)
        scenario.set_defaults(common=common, scenario=name)


def _add_soak(commands):
    """The soak command."""
    parser = commands.add_parser("soak", help=SOAK)
    parser.set_defaults(run=run_soak)
    soak = _scenarios(parser, "soak")
    soak.add_options(parser)
    parser.set_defaults(soak=soak)


def _add_module(commands, name):
    """A command of MODULES."""
    module, summary = MODULES[name]
    module = importlib.import_module(f"shmkern.{module}")
    module.add_options(_command(commands, name, module.run, summary, module.EXAMPLE))


def explorer(argv):
    """Becomes an explorer, which has the kernel in another flavour and so needs a process that has
    not loaded this one; its own parser is in explore/command.py."""
    program = Path(shmkern.__file__).parent / "explore" / "__main__.py"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(program), *argv])


def make_parser(wanted=None):
    """The parser of all commands.  What only one command needs is imported only for it."""
    parser = Parser(prog="shmkern", description="A small Linux memory manager that lives in shared memory.",
                    epilog="example:\n  shmkern stress anon --seconds 10\n\n"
                           "exit status: 0 held, 1 a promise was broken, 2 bad use",
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"shmkern {shmkern.__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser, dest="command_name")
    for name, add, summary in (("stress", _add_stress, STRESS), ("soak", _add_soak, SOAK)):
        if wanted == name:
            add(commands)
        else:
            commands.add_parser(name, help=summary)
    for name, (_module, summary) in MODULES.items():
        if wanted == name:
            _add_module(commands, name)
        else:
            commands.add_parser(name, help=summary)
    commands.add_parser("explore", help="try every interleaving of small scenarios of the kernel")
    commands.add_parser("replay", help="run a failed schedule of an exploration again")
    tracer = _command(commands, "record", record_trace, "record a program's memory accesses, for `stress trace`",
                      "shmkern record -o ls.gz -- ls / && shmkern stress trace ls.gz --seconds 10")
    tracer.usage = "shmkern record [-h] [-o FILE] [--limit N] -- COMMAND..."
    tracer.add_argument("-o", dest="output", type=file_name, metavar="FILE", help="where to (default: COMMAND.lackey.gz)")
    tracer.add_argument("--limit", type=positive, default=RECORD_LIMIT, metavar="N",
                        help=f"accesses to record, after which the program is ended (default {RECORD_LIMIT:,})")
    tracer.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND", help="the program and its arguments")
    lister = _command(commands, "ls", list_blocks, "list the machines on this host, running or left behind",
                      "shmkern ls --json -")
    lister.add_argument("--json", type=file_name, metavar="FILE",
                        help="also write the list to FILE, as JSON; - is the standard output")
    remover = _command(commands, "rm", remove_blocks, "remove machines that killed supervisors left behind",
                       "shmkern rm --all")
    remover.add_argument("names", nargs="*", metavar="NAME", help="as `shmkern ls` shows it (default: all)")
    remover.add_argument("--all", action="store_true", help="all that nobody uses, which is the default")
    remover.add_argument("--force", action="store_true", help="running ones as well, with all their processes")
    bench = _command(commands, "bench", run_bench, "run a benchmark", "shmkern bench migrate")
    bench.usage = "shmkern bench [-h] NAME ..."
    bench.add_argument("name", nargs="?", default="", metavar="NAME", help="a file of the directory bench, without .py")
    bench.add_argument("arguments", nargs=argparse.REMAINDER, help="what the benchmark is given")
    return parser


def main(argv=None):
    """Runs a command line.  Returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    return carry_out(argv[0] if argv else "", lambda: run(argv))


def run(argv):
    """Does what a command line asks for.  Returns the exit status."""
    if argv and argv[0] in ("explore", "replay"):
        explorer(argv)
    with interrupts.deadly():
        parser = make_parser(argv[0] if argv else None)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
