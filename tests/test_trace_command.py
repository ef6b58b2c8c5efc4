# SPDX-License-Identifier: GPL-2.0-only
"""`shmkern trace`: what it writes can be read, however the run ends, and what is missing in it
is told.  The protobuf is read back here; where Perfetto's own trace processor can be had, its SQL
has to say the same."""
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from perfetto.prebuilts.manifests.trace_processor_shell import TRACE_PROCESSOR_SHELL_MANIFEST
from perfetto.prebuilts.perfetto_prebuilts import get_perfetto_prebuilt
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace, TrackEvent
from perfetto.trace_processor import TraceProcessor, TraceProcessorConfig

from helpers import PAGE, Puppet, page_at, until, until_asleep
from shmkern import cli, cli_trace, command, direct_map, layout, perfetto_trace, tracing
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

SHMKERN = [sys.executable, str(command.ENTRY)]
BEGIN, END = TrackEvent.TYPE_SLICE_BEGIN, TrackEvent.TYPE_SLICE_END
STAGES = ["new_page", "lock", "unmap", "move", "remap", "putback"]


def shmkern_trace(*args):
    """Runs `shmkern trace` to its end."""
    return subprocess.run([*SHMKERN, "trace", *map(str, args)], capture_output=True, text=True, timeout=50)


class Read:
    """A trace read back: names of tracks, slices [(track, name, begin, end, children)] and flows."""

    def __init__(self, path):
        trace = Trace()
        trace.ParseFromString(path.read_bytes())
        self.tracks, self.threads, self.counters, self.instants = {}, {}, defaultdict(list), []
        self.slices, self.flow_begin, self.flow_end = [], {}, {}
        stacks = defaultdict(list)
        for packet in trace.packet:
            if packet.HasField("track_descriptor"):
                track = packet.track_descriptor
                self.tracks[track.uuid] = track.name
                if track.HasField("thread"):
                    self.threads[track.uuid] = track.thread.thread_name
                continue
            event, stack = packet.track_event, stacks[packet.track_event.track_uuid]
            assert event.track_uuid in self.tracks
            if event.type == TrackEvent.TYPE_COUNTER:
                self.counters[self.tracks[event.track_uuid]].append((packet.timestamp, event.counter_value))
                continue
            for flow in event.flow_ids:
                assert flow not in self.flow_begin
                self.flow_begin[flow] = event.track_uuid, packet.timestamp
            for flow in event.terminating_flow_ids:
                assert flow not in self.flow_end
                self.flow_end[flow] = event.track_uuid, packet.timestamp
            if event.type == BEGIN:
                stack.append((event.name, packet.timestamp, []))
            elif event.type == END:
                name, began, children = stack.pop()
                assert packet.timestamp >= began
                self.slices.append((event.track_uuid, name, began, packet.timestamp, children))
                if stack:
                    stack[-1][2].append(name)
            else:
                self.instants.append((event.track_uuid, event.name, packet.timestamp))
        assert not any(stacks.values()), "a slice does not end"

    def named(self, name):
        return [one for one in self.slices if one[1] == name]


def recorded(machine, tracer):
    """A Record of what the tracer has, as the command would make it."""
    record = cli_trace.Record()
    record.sample()
    record.add(tracer.read(), 1 << 20)
    record.names, record.lost = tracer.names, tracer.lost
    return record


# A machine whose tasks do one thing after the other, and so much of it, however the host shares its time
# out: three workers touch 64 pages each, then a migrator moves these to and fro.
PROGRAM = """
import time
import multiprocess
from shmkern import Machine, layout

def worker(task, touched, stop):
    va = task.mmap(64 * 4096)
    for page in range(64):
        task.store64(va + page * 4096, page)
    touched.release()
    while not stop.is_set():
        task.load64(va)

def migrator(task):
    for turn in range(15):
        task.migrate_prep()
        pfn = begin = turn % 2 * 1024
        while pfn < begin + 1024:
            pfn, _stayed = task.migrate_frames(pfn, begin + 1024, 1 - turn % 2)

with Machine(nodes=2, frames_per_node=1024, max_tasks=16) as machine:
    while not layout.kernel().trace_events:
        time.sleep(0.01)
    touched, stop = multiprocess.Semaphore(0), multiprocess.Event()
    workers = [machine.spawn(worker, touched, stop) for _ in range(3)]
    for _ in workers:
        touched.acquire()
    machine.spawn(migrator).result()
    stop.set()
    for worker in workers:
        worker.result()
print("moved")
"""


@pytest.fixture(scope="module")
def trace_of_moves(tmp_path_factory):
    """The first 20,000 events of PROGRAM, and the command that wrote them."""
    path = tmp_path_factory.mktemp("trace") / "moves.pftrace"
    return path, shmkern_trace("-o", path, "--limit", 20_000, "--", sys.executable, "-c", PROGRAM)


# ---- the trace ------------------------------------------------------------------------

def test_a_run_becomes_a_trace_with_tracks_slices_flows_and_counters(trace_of_moves):
    path, done = trace_of_moves
    assert done.returncode == 0 and done.stdout == "moved\n", done
    assert "limit of 20,000 events" in done.stderr and "20,000 events of" in done.stderr and str(path) in done.stderr
    assert "lost" not in done.stderr
    read = Read(path)
    names = [re.sub(r" \d+$", "", name) for name in read.threads.values()]
    assert sorted(names) == ["migrator", *["worker"] * 3]
    assert len(read.named("page fault")) >= 3 * 64
    pages = [one for one in read.named("migrate page")
             if [child for child in one[4] if not child.startswith("wait")] == STAGES]
    assert len(pages) > 100
    migrator = {track for track, name in read.threads.items() if name.startswith("migrator")}
    assert {one[0] for one in pages} == migrator
    for node in (0, 1):
        free = [value for _time, value in read.counters[f"node {node} free"]]
        assert free and all(0 <= value <= 1024 for value in free)
    for flow, (track, ended) in read.flow_end.items():
        assert read.flow_begin[flow][0] != track and read.flow_begin[flow][1] <= ended


def test_sql_of_perfettos_trace_processor_answers(trace_of_moves):
    """The package fetches the program once, over the network, and keeps it in the user's home."""
    try:
        host = urlsplit(TRACE_PROCESSOR_SHELL_MANIFEST[0]["url"]).hostname
        socket.create_connection((host, 443), timeout=5).close()
        program = get_perfetto_prebuilt(TRACE_PROCESSOR_SHELL_MANIFEST)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"Perfetto's trace processor cannot be had here: {error}")
    path, _done = trace_of_moves
    with TraceProcessor(trace=str(path), config=TraceProcessorConfig(bin_path=program)) as processor:
        counted = {row.name: row.n for row in processor.query("select name, count(*) as n from slice group by name")}
    read = Read(path)
    assert counted == Counter(name for _track, name, *_rest in read.slices) + Counter(name for _track, name, _time in read.instants)


def test_an_arrow_leads_from_an_unlock_to_each_task_that_it_woke(machine, tmp_path):
    """And none to a task that waits for something else."""
    holder, *waiters, stranger = [Puppet(machine) for _ in range(4)]
    pages = []
    for puppet in (holder, stranger):
        va = puppet(lambda task: task.mmap(PAGE))
        puppet(lambda task: task.store(va, b"x"))
        pages.append(page_at(puppet, va).address)
    page, other = pages
    holder(lambda task: (ksym.lock_page(page), ksym.lock_page(other)))
    with tracing.Tracing() as tracer:
        for puppet in waiters:
            puppet.begin(lambda task: ksym.wait_on_page_locked(page))
        stranger.begin(lambda task: ksym.wait_on_page_locked(other))
        for puppet in (*waiters, stranger):
            until_asleep(puppet, "WAIT_PAGE_LOCK")
        holder(lambda task: ksym.unlock_page(page))
        for puppet in waiters:
            puppet.reply()
        holder(lambda task: ksym.unlock_page(other))
        stranger.reply()
        record = recorded(machine, tracer)
    perfetto_trace.write(tmp_path / "t", record)
    read = Read(tmp_path / "t")
    track = {int(name.split()[-1]): uuid for uuid, name in read.threads.items()}
    arrows = {(read.flow_begin[flow], end[0]) for flow, end in read.flow_end.items()}
    assert {end for _begin, end in arrows} == {track[puppet.pid] for puppet in (*waiters, stranger)}
    assert {begin[0] for begin, _end in arrows} == {track[holder.pid]}
    assert len({begin for begin, end in arrows if end != track[stranger.pid]}) == 1
    assert len({begin for begin, _end in arrows}) == 2
    assert len(read.named("wait: page_lock")) == 3
    assert record.channels[page] == f"page {(page - layout.kernel().mem_map) // 64}"


def test_what_is_open_ends_where_events_are_lost(machine, tmp_path):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(8 * PAGE))
    with tracing.Tracing() as tracer:
        puppet(lambda task: task.store(va, b"x" * 2 * PAGE))
        record = recorded(machine, tracer)
    events = record.events
    first = np.flatnonzero(events["event"] == perfetto_trace.E["page_fault_user"])[0]
    gap = events[first + 1:first + 2].copy()
    gap["event"], gap["pid"], gap["args"][0, 0] = tracing.LOST, 0, 7
    ahead = gap.copy()
    ahead["time"] = events["time"][0]
    record._parts = [ahead, events[:first + 1], gap, events[first + 2:]]
    perfetto_trace.write(tmp_path / "t", record)
    read = Read(tmp_path / "t")
    assert len(read.named("page fault")) == 2
    # On the task's own track, also where nothing of it came before.
    assert [read.threads[track] for track, name, _time in read.instants if name == "LOST EVENTS"] == [f"_obey {puppet.pid}"] * 2


def test_a_machine_is_traced_from_its_first_task_on(tmp_path):
    """However short it lives, or the second that the command makes lives: it is not waited for."""
    program = ("import shmkern\nfor turn in range(2):\n    with shmkern.Machine() as machine:\n"
               "        machine.spawn(lambda task: task.store64(task.mmap(4096), 1)).result()\n")
    done = shmkern_trace("--text", "--", sys.executable, "-c", program)
    assert done.returncode == 0, done
    events = [line.split(": ")[1] for line in done.stdout.splitlines() if not line.startswith("#")]
    assert events[0] == "task_newtask" and "page_fault_user" in events


def test_who_waits_for_a_tracer_waits_until_it_traces(monkeypatch):
    with cli_trace.Gate() as gate:
        monkeypatch.setenv(tracing.WAITING_TRACER, gate.path)
        waiter = threading.Thread(target=tracing.await_tracer, args=[3600], daemon=True)
        waiter.start()
        # Whoever does not wait is gone.
        stat = Path(f"/proc/self/task/{waiter.native_id}/stat")
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "S", "the wait")
        gate.open()
        waiter.join(30)
        assert not waiter.is_alive()
        tracing.await_tracer(3600)
    tracing.await_tracer(3600)


def test_text_is_ftraces_and_of_the_events_asked_for(tmp_path):
    done = shmkern_trace("--text", "-e", "migrate:mm_*", "-e", "set_migration_pte", "--limit", 1500, "--",
                         sys.executable, "-c", PROGRAM)
    assert done.returncode == 0, done
    lines = [line for line in done.stdout.splitlines() if not line.startswith("#")]
    assert "moved" in done.stderr and len(lines) == 1500
    assert done.stdout.startswith("# tracer: nop\n")
    found = {re.fullmatch(r" *\S+-\d+ +\[\d{3}\] \.{5} +\d+\.\d{6}: (\w+): .*", line).group(1)
             for line in lines}
    assert found == {"mm_migrate_pages_start", "mm_migrate_pages", "set_migration_pte"}


def test_lost_events_are_told(machine, capsys):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(600 * PAGE))
    with tracing.Tracing(ring_events=1024) as tracer:
        puppet(lambda task: task.store(va, b"x" * 600 * PAGE))
        record = recorded(machine, tracer)
    cli_trace.say(record, "file", SimpleNamespace(limit=10**6))
    assert re.search(r"[\d,]+ events were lost", capsys.readouterr().err) and record.lost > 0


# ---- a machine that runs --------------------------------------------------------------

def test_a_running_machine_is_traced_by_name_and_left_as_it_was(machine, tmp_path):
    process = subprocess.Popen([*SHMKERN, "trace", "-o", str(tmp_path / "t"), "--seconds", "300", machine.name],
                               stderr=subprocess.PIPE, text=True)
    until(lambda: layout.kernel().trace_events, "tracing", 20, machine.check)
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"x"))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, process.stderr.read()
    process.stderr.close()
    assert layout.kernel().trace_events == 0 and layout.kernel().trace_owner == 0
    assert Read(tmp_path / "t").named("page fault")
    # Or it ends by itself.
    done = shmkern_trace("-o", tmp_path / "t", "--seconds", "0.1", machine.name)
    assert done.returncode == 0 and layout.kernel().trace_owner == 0, done


def test_ctrl_c_ends_the_run_and_writes_what_there_is(tmp_path):
    path = tmp_path / "t"
    process = subprocess.Popen([*SHMKERN, "trace", "-o", str(path), "-e", "mm_migrate_pages", "--",
                                "stress", "anon", "--seconds", "300", "--workers", "2"],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_tracer(process)
    process.send_signal(signal.SIGINT)
    said, errors_ = process.communicate(timeout=40)
    assert process.returncode == 128 + signal.SIGINT, errors_
    assert "anon interrupted" in said and Read(path).counters


def wait_for_tracer(process):
    """Returns the name of the machine that a `shmkern trace` of ours traces."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        for name in direct_map.blocks():
            try:
                with (direct_map.SHM_DIR / name).open("rb") as file:
                    file.seek(PAGE + layout.offsetof("Kernel", "trace_owner"))
                    if int.from_bytes(file.read(8), "little") == process.pid:
                        return name
            except OSError:
                continue
        time.sleep(0.005)
    raise AssertionError("nothing is traced")


def test_a_killed_tracer_takes_its_run_with_it(tmp_path):
    process = subprocess.Popen([*SHMKERN, "trace", "-o", str(tmp_path / "t"), "--", "stress", "anon",
                                "--seconds", "300", "--workers", "2"], stdout=subprocess.DEVNULL)
    name = wait_for_tracer(process)
    process.kill()
    process.wait()
    until(lambda: not (direct_map.SHM_DIR / name).exists(), "the end of the run")


# ---- what can go wrong ----------------------------------------------------------------

@pytest.mark.parametrize("args, status, words", [
    ([], 2, ["nothing to trace", "for example"]), (["--"], 2, ["nothing to trace"]),
    (["-e", "nonsense", "--", "stress", "anon"], 2, ["no event 'nonsense'"]),
    (["-o", "/nowhere/x", "--", "stress", "anon"], 2, ["/nowhere/x", "No such file"]),
    (["--limit", "0", "--", "true"], 2, ["'0'"]), (["--seconds", "x", "--", "true"], 2, ["'x'"]),
    (["--text", "--", "true"], 2, ["made no machine"]), (["--text", "--", "false"], 1, ["made no machine"]),
    (["--text", "--", "sh", "-c", "kill -INT $$"], 130, ["made no machine"]),
    (["--text", "--", ""], 2, ["'' cannot be run"]),
    (["--text", "--", "no-such-program"], 2, ["no-such-program", "No such file"]),
    (["--text", "shmkern-1-nonsense"], 2, ["no machine 'shmkern-1-nonsense'"]),
    (["--text", "--buffer", "3", "--", "sh", "-c", "echo begun >&2"], 2, ["a ring of 3 events", "a power of two"]),
    (["--nonsense"], 2, ["--nonsense"]),
])
def test_what_cannot_be_traced_is_a_sentence(args, status, words, capfd):
    try:
        found = cli.main(["trace", *args])
    except SystemExit as stop:
        found = stop.code
    said = capfd.readouterr()
    assert found == status and said.out == ""
    assert len(said.err.splitlines()) == 1 and all(word in said.err for word in words), said.err


def test_a_full_disk_is_a_sentence(tmp_path):
    done = shmkern_trace("-o", "/dev/full", "-e", "mm_migrate_pages", "--", "stress", "anon", "--seconds", "0.2",
                         "--workers", "2")
    assert done.returncode == 2 and "cannot be written to /dev/full" in done.stderr, done


def test_text_that_cannot_be_written_is_one_sentence(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SHMKERN, "trace", "--text", "--limit", "2000", "--", sys.executable, program], stdout=full,
                              stderr=subprocess.PIPE, text=True, timeout=50)
    assert done.returncode == 2, done
    assert done.stderr == "moved\nshmkern trace: the trace cannot be written to the standard output: " \
        "No space left on device\n"
