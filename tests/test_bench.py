# SPDX-License-Identifier: GPL-2.0-only
"""Promises of the benches: they measure what there is on a host and say what they skip; a block of
the host's memory is online again whatever happens to the bench."""
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pexpect
import psutil
import pytest
from helpers import blocks_of, until

from shmkern import calibrate, layout

BENCH = Path(__file__).resolve().parent.parent / "bench"
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def kernel(monkeypatch):
    """bench/kernel.py as a module."""
    monkeypatch.syspath_prepend(BENCH)
    monkeypatch.delitem(sys.modules, "common", raising=False)
    monkeypatch.delitem(sys.modules, "kernel", raising=False)
    return importlib.import_module("kernel")


@pytest.fixture
def run(kernel, monkeypatch, tmp_path, capsys):
    """run() is the result of the bench on few pages, and what it printed."""
    def run():
        monkeypatch.setattr(sys, "argv", ["kernel.py", "--pages", "300", "--rounds", "5", "--json", str(tmp_path / "k.json"),
                                          "--html", str(tmp_path / "k.html")])
        kernel.main()
        return json.loads((tmp_path / "k.json").read_text()), capsys.readouterr().out
    return run


def test_a_copy_onto_a_frame_in_use_stops_the_machine(machine, stops):
    """It would be a page, or a table, of a task that knows nothing of the bench."""
    def program(task):
        task.store(task.mmap(4096), b"mine")
        kernel = layout.kernel()
        used = np.flatnonzero(layout.view("Page", kernel.mem_map, kernel.max_pfn)["mapping"]).astype(np.uint64)
        assert len(used) == 1
        calibrate.memcpy_frames(used, used)
    assert "calibrate.py" in stops(machine, program)


def test_kernel_bench_without_root_says_so_and_measures_the_rest(run, kernel, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    result, said = run()
    assert result["skipped"] == {"the host's migration": "not root"}
    assert "Skipped: the host's migration: not root." in said
    rows = {row["what"].strip(): row for row in result["rows"]}
    assert rows["migration of 300 pages"]["host"] == "–" and rows["migration of 300 pages"]["ours"] > 1000
    for what in ("anonymous fault, a first store", "file fault, a first store to a page in the cache"):
        fault = rows[what]
        assert fault["ratio"] == pytest.approx(fault["host"] / fault["ours"]) and fault["host"] > 50 and fault["ours"] > 50
    assert 0 < rows["flushing it, of that"]["ours"] < rows["copying it, of that"]["ours"]
    assert "could not be measured here" in (tmp_path / "k.html").read_text()


def test_kernel_bench_without_sysfs_says_so(run, kernel, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(kernel, "MEMORY_BLOCKS", tmp_path / "none")
    monkeypatch.setattr(kernel, "NODES", tmp_path / "none")
    assert "block_size_bytes: No such file" in run()[0]["skipped"]["the host's migration"]


def test_kernel_bench_beside_a_host_that_moves_pages(run, kernel, monkeypatch):
    """2,000 ns a page is what this host is given to take, 500 of them on the CPU."""
    monkeypatch.setattr(kernel, "host_migration", lambda _pages, _rounds: ("hot-remove", [(400, 800_000, 200_000)] * 3))
    result, _said = run()
    rows = {row["what"].strip(): row for row in result["rows"]}
    pace = rows["migration of 400 pages (hot-remove)"]
    assert pace["host"] == 500_000 and pace["ratio"] == pytest.approx(pace["ours"] / 500_000)
    assert rows["a page"]["host"] == 2000 and rows["a page, CPU time"]["host"] == 500
    assert rows["a page"]["ratio"] == pytest.approx(2000 / rows["a page"]["ours"])


def test_block_is_offline_within_and_online_after(kernel, tmp_path):
    state = tmp_path / "state"
    state.write_text("online")
    ns, cpu = kernel.offline_and_back(state)
    assert ns > 0 and cpu >= 0 and state.read_text() == "online"


def test_block_that_cannot_go_offline_is_an_error_and_stays_online(kernel, tmp_path, monkeypatch):
    state = tmp_path / "state"
    state.write_text("online")
    monkeypatch.setattr(kernel, "take_offline", lambda _state, connection: connection.send((0, 0, 16)))
    with pytest.raises(OSError, match="busy"):
        kernel.offline_and_back(state)
    # One that cannot be emptied is given up.
    monkeypatch.setattr(kernel, "OFFLINE_LIMIT", 0.2)
    monkeypatch.setattr(kernel, "take_offline", lambda state, _connection: (state.write_text("offline"), time.sleep(60)))
    with pytest.raises(OSError, match="timed out"):
        kernel.offline_and_back(state)
    assert state.read_text() == "online"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_block_is_back_online_however_the_bench_dies(tmp_path, number):
    state = tmp_path / "state"
    state.write_text("online")
    program = f"""import signal, sys, time
sys.path.insert(0, {str(BENCH)!r})
import kernel
from pathlib import Path
signal.signal(signal.SIGTERM, signal.default_int_handler)
state = Path({str(state)!r})
with kernel.put_back(state):
    state.write_text("offline")
    print("offline", flush=True)
    # Not one long sleep: Python does not notice a signal that comes just before it.
    for _turn in range(600):
        time.sleep(0.1)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout.readline() == "offline\n" and state.read_text() == "offline"
    process.send_signal(number)
    process.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while state.read_text() != "online":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_migrate_bench_has_a_row_for_each_kind_of_page(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "migrate.py", "--pages", "300", "--rounds", "2", "--json", tmp_path / "m.json"],
                          capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, ""), done
    rows = json.loads((tmp_path / "m.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == ["anonymous", "swap cache", "page cache", "buffers"]
    assert all(0 < row["ratio_min"] <= row["ratio"] <= row["ratio_max"] and row["copy_ns"] > 50 for row in rows)


def test_a_table_on_a_narrow_terminal_has_all_numbers(monkeypatch, kernel, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    common = sys.modules["common"]
    numbers = {"pages": 1_000_000, "ns a move": 12_345.0, "ns a copy": 23_456.0, "moves/s": 1_234_567.0,
               "copy/move": 0.789, "lowest": 0.678, "highest": 0.891}
    columns = {key: key for key in ("pages of", *numbers)}
    common.show("what it costs", columns, [{"pages of": "swap cache"} | numbers])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80, out
    assert all(common.cell(number) in out for number in numbers.values()), out
    assert "…" not in out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_bench_that_is_told_to_end_leaves_nothing(number):
    bench = subprocess.Popen([sys.executable, BENCH / "migrate.py", "--pages", "300", "--rounds", "1000000"],
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    process = psutil.Process(bench.pid)
    # Init, the owner of the pages, the migrator.
    until(lambda: blocks_of(bench.pid) and len(process.children()) == 3, "the migrator", 60)
    children = process.children()
    bench.send_signal(number)
    said = bench.communicate(timeout=60)
    assert (bench.returncode, *said) == (128 + number, "", "")
    assert blocks_of(bench.pid) == []
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_terminal_is_told_what_is_measured():
    said, status = pexpect.run(f"{sys.executable} {BENCH / 'fault.py'} --pages 300 --rounds 2", withexitstatus=True, timeout=100)
    assert status == 0 and said.index(b"2 rounds of 300 pages") < said.index(b"what an access costs")


def test_scale_bench_prints_the_cost_of_a_page(tmp_path):
    done = subprocess.run([sys.executable, BENCH / "scale.py", "--only", "sharers", "--only", "workers", "--most", "2",
                           "--seconds", "0.2", "--json", tmp_path / "s.json", "--html", tmp_path / "s.html"],
                          capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [(row["line"], row["value"]) for row in rows] == [("sharers", 1), ("sharers", 2), ("workers", 1), ("workers", 2)]
    assert all(row["ns"] == pytest.approx(1e9 / row["pages_per_second"]) and 50 < row["ns"] < 1e7 for row in rows)
    assert all(f"{row['pages_per_second']:,.0f}" in done.stdout for row in rows)
    assert "<svg" in (tmp_path / "s.html").read_text()


def test_a_value_error_of_the_benchs_own_is_no_bad_use(kernel):
    def bug():
        raise ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        kernel.common.run(bug)


@pytest.mark.parametrize("name, line, words", [("scale", "--most 0", "'0'"), ("scale", "--seconds x", "'x'"),
                                               ("scale", "--only sharers --most 1 --json /nowhere/x", "/nowhere/x"),
                                               ("kernel", "--pages 0", "'0'"), ("scale", "--only x", "'x'"),
                                               ("migrate", "--pages -5", "'-5'"), ("fault", "--rounds 0", "'0'"),
                                               *((name, "--pages 99999999999999", f"{name}.py: frames_per_node is 1")
                                                 for name in ("migrate", "fault", "kernel")),
                                               *((name, "--pages 300 --rounds 1 --json /dev/full",
                                                  f"{name}.py: /dev/full cannot be written: No space left")
                                                 for name in ("migrate", "fault")),
                                               ("migrate", "--json /nowhere/x", "/nowhere/x"), ("top", "--seconds 0", "'0'")])
def test_bad_use_is_a_sentence_and_status_2(name, line, words):
    done = subprocess.run([sys.executable, BENCH / f"{name}.py", *line.split()], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and words in done.stderr and len(done.stderr.splitlines()) == 1, done
