# SPDX-License-Identifier: GPL-2.0-only
"""The command `shmkern trace`: runs a command and traces the machine that it makes, or traces
one that runs.

The tracer is a process of its own that attaches to the machine, takes events off the rings
every few milliseconds, and writes them when it is over: writing them takes longer than they
take to happen.
"""
import argparse
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
from rich.console import Console
from rich.progress import track

from shmkern import command, direct_map, layout, perfetto_trace, report, tracing, vmstat
from shmkern.errors import BootError, UsageError

C = layout.constants
EXAMPLE = "shmkern trace -o anon.pftrace -- stress anon --seconds 2"
OUTPUT = "shmkern.pftrace"
LIMIT = 500_000
POLL = 0.002
COUNTERS_EVERY = 0.01
WAITS = [C[f"TRACE_{name}"] for name in ("CONTENTION_BEGIN", "WAIT_BEGIN", "SCHED_WAKING")]
_PR_SET_PDEATHSIG = 1


def add_options(parser):
    """The command's options."""
    parser.usage = "shmkern trace [-h] [-o FILE] [--text] [-e EVENT] [...] (-- COMMAND... | NAME)"
    parser.epilog += "\n\nThe trace opens in https://ui.perfetto.dev.  Events:\n  " + "\n  ".join(
        f"{event.system}:{event.name}" for event in tracing.EVENTS.values())
    parser.add_argument("-o", dest="output", type=command.file_name, metavar="FILE",
                        help=f"where to (default: {OUTPUT}; with --text the standard output)")
    parser.add_argument("--text", action="store_true", help="as ftrace prints it, instead of Perfetto's protobuf")
    parser.add_argument("-e", dest="events", action="append", metavar="EVENT",
                        help="only events of this name or pattern, as migrate:* or tlb_flush; may be repeated")
    parser.add_argument("--seconds", type=command.duration, metavar="S", help="trace no longer than that")
    parser.add_argument("--limit", type=command.positive, default=LIMIT, metavar="N",
                        help=f"trace no more than N events (default {LIMIT:,})")
    parser.add_argument("--buffer", type=command.positive, metavar="N",
                        help="events that each task may be ahead of the tracer, a power of two "
                             f"(default: what fits into {tracing.RINGS_BYTES >> 20} MiB, for all tasks together)")
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND",
                        help="a command of shmkern's, or a program, that makes a machine; or the NAME of a "
                             "machine that runs, as `shmkern ls` shows it")


class Record:
    """What was traced: events (a tracing.EVENT array), lost, names {pid: name}, channels {address:
    what it is}, counters [(time, zones' vm_stat)], machine (its name), nodes."""

    def __init__(self):
        self._parts, self.count, self.lost = [], 0, 0
        self.names, self.channels, self.counters = {}, {}, []
        self.machine, self.nodes = direct_map.mapped.name, layout.kernel().nr_nodes

    def add(self, events, limit):
        """Takes the next events, up to `limit` in all; while the machine runs, for later nobody could
        say what a channel was."""
        counts = self.count + np.cumsum(events["event"] != tracing.LOST)
        events = events[:np.searchsorted(counts, limit, "right")]
        self._parts.append(events)
        self.count = int(counts[len(events) - 1]) if len(events) else self.count
        for channel in np.unique(events["args"][np.isin(events["event"], WAITS), 0]).tolist():
            if channel not in self.channels:
                self.channels[channel] = report.describe(channel)

    def sample(self):
        """Notes the nodes' counters."""
        self.counters.append((time.monotonic_ns(), vmstat.zones()["vm_stat"].copy()))

    @property
    def events(self):
        """All events, in the order of time."""
        events = np.concatenate([np.empty(0, tracing.EVENT), *self._parts])
        return events[np.argsort(events["time"], kind="stable")]


# ---- the machine --------------------------------------------------------------------

def _die_with_me():
    """In the child, before exec: SIGTERM when the tracer is killed."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Gate:
    """Where the machine that a command makes waits until it is traced, so that nothing is missed
    (tracing.await_tracer): a pipe that is open for writing until then, by a path that all can open."""

    def __init__(self):
        self._reader, self._writer = os.pipe()
        self.path = f"/proc/{os.getpid()}/fd/{self._reader}"

    def __enter__(self):
        return self

    def open(self):
        """Lets it go on, and whoever comes later: the path, too, ends at nothing from now on."""
        with open(os.devnull) as nothing:
            os.dup2(nothing.fileno(), self._reader, inheritable=False)
            os.dup2(nothing.fileno(), self._writer, inheritable=False)

    def __exit__(self, *_exception):
        os.close(self._reader)
        os.close(self._writer)


def start(words, output, gate):
    """Starts the command, whose machine will wait at the gate.  It gets a session of its own, so that Ctrl-C
    comes to the tracer, which passes it on.  Raises UsageError."""
    if words[0] in ("stress", "bench", "soak", "show", "record"):
        words = [sys.executable, str(command.ENTRY), *words]
    try:
        return subprocess.Popen(words, stdout=output, start_new_session=True, preexec_fn=_die_with_me,
                                env=os.environ | {tracing.WAITING_TRACER: gate.path})
    except OSError as error:
        raise UsageError(f"{words[0]!r} cannot be run: {error.strerror}") from None


def find_machine(process):
    """The name of a machine that the process, or one of its descendants, has made; None while
    there is none."""
    try:
        parent = psutil.Process(process.pid)
        family = {process.pid, *(child.pid for child in parent.children(recursive=True))}
    except psutil.NoSuchProcess:
        return None
    for name in direct_map.blocks():
        header = direct_map.read_header(name)
        if header is not None and int(header["supervisor_pid"]) in family:
            return name
    return None


def attach(name):
    """Maps a machine, and returns when it has booted.  Raises BootError."""
    try:
        direct_map.attach(name, writable=True)
    except OSError as error:
        raise BootError(f"{name} cannot be traced: {error.strerror}") from None
    while not (layout.kernel().max_tasks and len(report.running())):
        if direct_map.has_ended():
            raise BootError(f"{name} has ended")
        time.sleep(POLL / 2)


# ---- tracing ------------------------------------------------------------------------

class Signals:
    """Within its `with` block, SIGINT, SIGTERM and SIGHUP are noted in `number` and passed on to
    the command; the trace so far is written all the same."""

    def __init__(self, process):
        self.number, self._process, self._before = 0, process, {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        self.number = number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def trace(args, process, signals, gate):
    """Traces the machine that is attached until it ends, or as long as is asked for, and lets it through
    the gate when that has begun.  Returns the Record."""
    record = Record()
    deadline = time.monotonic() + args.seconds if args.seconds else float("inf")
    next_sample = 0.0
    with tracing.Tracing(args.events or ["*"], args.buffer) as tracer:
        gate.open()
        while True:
            over = direct_map.has_ended() or signals.number or time.monotonic() >= deadline or \
                (process is not None and process.poll() is not None)
            record.add(tracer.read(), args.limit)
            if time.monotonic() >= next_sample:
                record.sample()
                next_sample = time.monotonic() + COUNTERS_EVERY
            if over or record.count >= args.limit:
                break
            time.sleep(POLL)
        tracer.stop()
        record.add(tracer.read(), args.limit)
        record.sample()
        record.names, record.lost = tracer.names, tracer.lost
    return record


def wait_for_machine(process, signals):
    """Attaches to the machine that the process makes.  Says whether it made one."""
    while not signals.number:
        name = find_machine(process)
        if name is not None:
            with contextlib.suppress(BootError):
                attach(name)
                return True
        if process.poll() is not None:
            break
        time.sleep(POLL)
    return False


def exit_status(process):
    """The exit status of the command when it has ended, as a shell tells it."""
    status = process.wait()
    return status if status >= 0 else 128 - status


def run(args):
    """shmkern trace"""
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise UsageError(f"nothing to trace; for example: {EXAMPLE}")
    tracing.event_mask(args.events or ["*"])
    if args.buffer is not None:
        tracing.check_ring_events(args.buffer)
    output = args.output or (None if args.text else OUTPUT)
    if output is not None:
        command.check_writable(output)
    machine = args.command[0] if args.command[0].startswith(direct_map.PREFIX) else None
    with Gate() as gate:
        process = None if machine else start(words, sys.stderr if output is None else None, gate)
        with Signals(process) as signals:
            if machine:
                attach(machine)
            elif not wait_for_machine(process, signals):
                status = exit_status(process)
                print(f"shmkern trace: {' '.join(words)} made no machine to trace", file=sys.stderr)
                return status or command.BAD_USE
            record = trace(args, process, signals, gate)
            status = exit_status(process) if process else command.DONE
    write(record, output, args.text)
    say(record, output, args)
    return status


def write(record, output, text):
    """Writes the trace.  Raises UsageError when it cannot be written."""
    console = Console(stderr=True)

    def progress(things):
        return track(things, "writing the trace", console=console, transient=True) if console.is_terminal else things

    try:
        if not text:
            perfetto_trace.write(output, record, progress)
            return
        with contextlib.nullcontext(sys.stdout) if output is None else open(output, "w", encoding="utf-8") as file:
            print(tracing.HEADER, file=file)
            for event in progress(record.events):
                print(tracing.text(event, record.names), file=file)
            file.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"the trace cannot be written to {output or 'the standard output'}: {error.strerror}") from None


def say(record, output, args):
    """Tells what was traced, and what was not."""
    lines = [f"{record.count:,} events of {record.machine} in {output or 'the standard output'}"]
    if record.lost:
        lines.append(f"{record.lost:,} events were lost: the tracer could not keep up; -e for fewer events or "
                     "--buffer for larger rings would help")
    if record.count >= args.limit:
        lines.append(f"tracing ended at its limit of {args.limit:,} events; --limit sets it")
    print("\n".join(f"shmkern trace: {line}" for line in lines), file=sys.stderr)
