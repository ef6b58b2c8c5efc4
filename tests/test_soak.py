# SPDX-License-Identifier: GPL-2.0-only
"""Promises of a soak: a clean one holds; planted leaks and stalls are found, and named, and
nobody else is; whatever ends it leaves its samples and a report; it can go on."""
import itertools
import json
import os
import pty
import signal
import sqlite3
import subprocess
import sys
import time

import numpy as np
import pytest

import planted
from shmkern import cli, command, vmstat, worker
from shmkern_stress import common, harness, recording, samples, soak, trend, verdict
from shmkern_stress.sampler import Sampler

pytestmark = pytest.mark.timeout(120)

SHMKERN = [sys.executable, str(command.ENTRY), "soak"]


@pytest.fixture(autouse=True)
def planted_scenarios(monkeypatch):
    """The planted faults as scenarios."""
    for module in planted.SCENARIOS:
        monkeypatch.setitem(common.SCENARIOS, module.NAME, "planted")
        monkeypatch.setitem(sys.modules, f"shmkern_stress.{module.NAME}", module)


@pytest.fixture
def run_soak(tmp_path):
    """run_soak(line) runs `shmkern soak line` here, short by default: (exit status, result)."""
    def run(line, **more):
        parser = common.Parser()
        soak.add_options(parser)
        result = tmp_path / "result.json"
        args = parser.parse_args(["--workers", "4", "--every", "0.1", "--seed", "5", "--samples",
                                  str(tmp_path / "samples.db"), "--json", str(result), *line.split()])
        status = soak.main(args)
        return status, json.loads(result.read_text())
    return run


@pytest.fixture
def go_on_until(monkeypatch):
    """go_on_until(enough) has each turn last, beyond its time, until enough(one), where one(query) is what the
    samples say: on a busy host a second may hold none."""
    def go_on_until(enough):
        def through(supervision, through=harness.Supervision.through):
            return through(supervision) and enough(lambda query: supervision.tick.samples.rows(query)[0][0])
        monkeypatch.setattr(harness.Supervision, "through", through)
    return go_on_until


def kinds(result):
    """{(kind, who)} of a result's findings."""
    return {(finding["kind"], finding["who"].split(" (")[0]) for finding in result["findings"]}


# ---- a trend --------------------------------------------------------------------------

def series(seed, count=120):
    """Times and noise."""
    rng = np.random.default_rng(seed)
    return np.arange(count, dtype=float), rng


@pytest.mark.parametrize("seed", range(20))
def test_noise_has_no_trend(seed):
    times, rng = series(seed)
    noise = rng.normal(0, 100, len(times)) + 300 * (rng.random(len(times)) < 0.2)
    assert not trend.fit(times, 1000 + noise).grows(1)


@pytest.mark.parametrize("seed", range(20))
def test_a_slow_leak_in_noise_is_found(seed):
    times, rng = series(seed)
    values = 1000 + 3 * times + rng.normal(0, 30, len(times))
    values[rng.random(len(times)) < 0.1] += 1000    # a tenth of them wild
    found = trend.fit(times, values)
    assert found.grows(1) and found.low < 3 < found.high


def test_what_fills_up_and_stays_does_not_grow():
    times, _rng = series(0)
    assert not trend.fit(times, 1000 * (1 - np.exp(-times / 15))).grows(1)
    assert not trend.fit(times, np.where(times < 70, 0.0, 1000.0)).grows(1)     # one step


def test_warming_up_is_left_out():
    times, _rng = series(0)
    assert not trend.fit(times, np.minimum(times, 35.0)).grows(1)


def test_growth_below_the_floor_is_let_go_and_too_little_says_nothing():
    times, _rng = series(0)
    found = trend.fit(times, times)
    assert found.grows(70) and not found.grows(80)
    assert trend.fit(times[:10], times[:10]) is None and trend.fit([], []) is None
    assert trend.fit(np.zeros(50), times[:50]) is None


# ---- clean, and planted ---------------------------------------------------------------

# Samples of the last turn while it ran.
RUNNING = "FROM sample WHERE phase = 'running' AND turn = (SELECT max(number) FROM turn)"


def test_clean_soak_holds_and_its_samples_are_whole(run_soak, go_on_until, capsys):
    grown = [f"SELECT max({column}) FROM process WHERE name = 'worker 0'"
             for column in ("cpu_seconds", "voluntary", "involuntary", "futex_waits", "progress")]
    moved = "SELECT max(value) FROM counter WHERE name = 'pgmigrate_success'"
    whole = f"SELECT count(*) {RUNNING} AND (SELECT count(*) FROM process WHERE sample = number) = 7"

    def enough(one):
        if one(f"SELECT count(*) {RUNNING}") <= 8:
            return False
        turn = one("SELECT max(number) FROM turn")
        return one(whole) >= 5 if turn == 1 else turn == 2 or one(moved) > 1000 and all(map(one, grown))
    go_on_until(enough)
    status, result = run_soak("anon threads fork --seconds 3 --every 0.05")
    assert (status, result["findings"]) == (common.HELD, [])
    assert [turn["scenario"] for turn in result["turns"]] == ["anon", "threads", "fork"]
    assert {turn["state"] for turn in result["turns"]} == {"held"}
    assert "soak held: 3 turns" in capsys.readouterr().out
    db = sqlite3.connect(result["samples"])

    def one(query):
        return db.execute(query).fetchone()[0]
    assert one("SELECT count(*) FROM sample WHERE phase = 'running'") > 25
    # Four workers, init and the supervisor are in every sample of anon, and soon the migrator.
    counts = [row[0] for row in db.execute("SELECT count(*) FROM process JOIN sample ON sample = number WHERE "
                                           "turn = 1 AND phase = 'running' GROUP BY sample")]
    assert set(counts) <= {6, 7} and counts[-5:] == [7] * 5
    for check in ("rss > shared AND shared > 0 AND fds > 3 AND threads >= 1",
                  "cpu_seconds >= 0 AND voluntary >= 0 AND involuntary >= 0 AND futex_waits >= 0"):
        assert one(f"SELECT count(*) FROM process WHERE NOT ({check})") == 0, check
    assert all(one(query) > 0 for query in grown) and one(moved) > 1000
    assert one("SELECT count(*) FROM node WHERE free > spanned OR free + anon + pagetable > spanned + 64") == 0
    assert one("SELECT max(in_use) FROM slab WHERE cache = 'vm_area_struct'") > 0
    assert {row[0] for row in db.execute("SELECT DISTINCT kind FROM latency")} == set(vmstat.HISTOGRAMS)
    assert one("SELECT count(*) FROM sample WHERE phase = 'between'") == 3
    assert one("SELECT ended FROM session") == "by itself"
    db.close()


def test_leaks_of_descriptors_and_memory_are_found_and_nobody_else_is_suspected(run_soak, go_on_until, capsys):
    go_on_until(lambda one: one(f"SELECT count(*) {RUNNING}") > 45)
    status, result = run_soak("leaking --seconds 6 --workers 4")
    assert status == common.BROKEN
    assert kinds(result) == {("growth in descriptors", "worker 1"), ("growth in memory", "worker 2")}
    said = capsys.readouterr().out
    assert "soak BROKEN" in said and "worker 1 (task " in said and "descriptors grow" in said
    slopes = {t["who"].split(" (")[0]: t["slope"] for t in result["trends"] if t["grows"]}
    assert 1 < slopes["worker 1"] < 3.2 and 100 < slopes["worker 2"] / 1024 < 320


def test_a_page_reference_leaked_once_in_10000_migrations_is_found(run_soak, monkeypatch):
    monkeypatch.setattr(harness, "AUDIT_EVERY", 0.5)
    status, result = run_soak("careless --seconds 60")
    assert status == common.BROKEN
    texts = [finding["text"] for finding in result["findings"] if finding["kind"] == "broken promise"]
    assert any("audit" in text and "refcount" in text and "page" in text for text in texts), result["findings"]


def test_a_migrator_that_stops_is_found(run_soak, monkeypatch):
    monkeypatch.setattr(worker, "migrator", planted.stopping_migrator)
    status, result = run_soak("anon --seconds 60 --stall 2")
    assert status == common.BROKEN and kinds(result) == {("stalled migrator", "migrator 0")}
    assert "has moved no page for" in result["findings"][0]["text"] and result["turns"][0]["result"]["seconds"] < 60


def test_a_task_that_stops_is_found(run_soak):
    status, result = run_soak("idle --seconds 60 --stall 2")
    assert status == common.BROKEN and kinds(result) == {("no progress", "worker 1")}
    assert result["turns"][0]["result"]["seconds"] < 60


@pytest.mark.parametrize("leak", [0, 1])
def test_a_leak_from_turn_to_turn_is_found(leak):
    """The supervisor keeps a descriptor of each turn, or none."""
    file = samples.Samples.create(":memory:")
    sampler = Sampler(file, clock=itertools.count().__next__)
    kept = []
    for turn in range(1, 16):
        sampler.begin(turn)
        sampler.between()
        kept += [os.open(os.devnull, os.O_RDONLY) for _ in range(leak)]
    found = [judgement for judgement in verdict.judge_between(file) if judgement.grows]
    for fd in kept:
        os.close(fd)
    file.close()
    assert [judgement.quantity for judgement in found] == [verdict.DESCRIPTORS] * leak
    assert all("supervisor" in str(judgement) and "between turns" in str(judgement) for judgement in found)


def test_a_process_that_outlives_its_turn_is_found(run_soak, monkeypatch):
    left = []
    run = common.run

    def careless(*args):
        left.append(subprocess.Popen(["sleep", "60"]))
        return run(*args)
    monkeypatch.setattr(common, "run", careless)
    status, result = run_soak("anon --seconds 2 --turn 1")
    left[0].kill()
    left[0].wait()
    assert len(left) == 1 and status == common.BROKEN
    assert kinds(result) == {("left behind", f"process {left[0].pid}")}


# ---- whatever ends it -----------------------------------------------------------------

@pytest.fixture
def start(tmp_path):
    """start(*options) starts a long soak as a process of its own, in a session of its own; returns
    when it has samples."""
    started = []

    def start(*more, **popen):
        process = subprocess.Popen([*SHMKERN, "anon", "--seconds", "100", "--workers", "2", "--every", "0.1",
                                    "--samples", tmp_path / "s.db", "--json", tmp_path / "r.json", *more],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   start_new_session=True, **popen)
        started.append(process)
        wait_for_samples(tmp_path / "s.db", process)
        return process
    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for block in cli.block_states():
            if block.supervisor == process.pid:
                cli.remove_block(block)


def count_samples(path, moved=-1):
    """Samples of the running phase, when more pages than that had moved, in a file that perhaps is not there yet."""
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        return db.execute("SELECT count(*) FROM sample JOIN counter ON sample = number WHERE phase = 'running' AND "
                          "name = 'pgmigrate_success' AND value > ?", (moved,)).fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def wait_for_samples(path, process, count=5):
    """Returns when `count` samples are on the disk, and pages have moved."""
    deadline = time.monotonic() + 60
    while count_samples(path, 0) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_full_report(start, tmp_path, number):
    process = start()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number and err == ""
    assert "soak interrupted: 1 turns" in out and "turn 1   interrupted anon" in out
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["turns"][0]["state"] == "interrupted" and result["turns"][0]["result"]["pages_migrated"] > 0


@pytest.mark.parametrize("states, word", [(["held", "interrupted"], "interrupted"), (["interrupted", "held"], "held"),
                                          (["cut short", "held"], "held")])
def test_what_was_interrupted_and_then_gone_on_with_has_held(states, word):
    result = {"findings": [], "seconds": 60.0, "planned_seconds": 60.0, "turns": [{"state": state} for state in states]}
    assert recording.state_of(result) == word


def test_it_outlives_its_terminal(tmp_path):
    """A real terminal, that closes: its processes get SIGHUP, and writing to it fails."""
    pid, master = pty.fork()
    if pid == 0:
        os.execv(SHMKERN[0], [*SHMKERN, "anon", "--seconds", "100", "--workers", "2", "--every", "0.1", "--samples",
                              str(tmp_path / "s.db"), "--json", str(tmp_path / "r.json")])
    os.set_blocking(master, False)
    deadline = time.monotonic() + 60
    while count_samples(tmp_path / "s.db") < 5:
        assert time.monotonic() < deadline
        try:
            os.read(master, 1 << 16)
        except BlockingIOError:
            time.sleep(0.02)
    at_closing = count_samples(tmp_path / "s.db")
    os.close(master)
    while count_samples(tmp_path / "s.db") < at_closing + 5:
        assert time.monotonic() < deadline and os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.02)
    os.kill(pid, signal.SIGTERM)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["turns"][0]["state"] == "interrupted" and result["turns"][0]["result"]["failures"] == []


def test_killed_and_resumed_it_goes_on_where_it_was(start, tmp_path):
    process = start("--seed", "7")
    process.kill()
    process.communicate()
    before = count_samples(tmp_path / "s.db")
    db = sqlite3.connect(tmp_path / "s.db")
    ran = db.execute("SELECT max(t) FROM sample").fetchone()[0]
    db.close()
    began = time.monotonic()
    done = subprocess.run([*SHMKERN, "--resume", tmp_path / "s.db", "--seconds", str(ran + 2), "--every", "0.1", "--json",
                           tmp_path / "r.json"], capture_output=True, text=True, timeout=90)
    took = time.monotonic() - began
    assert done.returncode == 0, done
    result = json.loads((tmp_path / "r.json").read_text())
    assert [turn["state"] for turn in result["turns"]] == ["cut short", "held"]
    assert [turn["seed"] for turn in result["turns"]] == [7, 8]
    assert count_samples(tmp_path / "s.db") > before and ran + 1 < result["seconds"] < ran + took + 0.1
    db = sqlite3.connect(tmp_path / "s.db")
    times = [row[0] for row in db.execute("SELECT t FROM sample ORDER BY number")]
    assert times == sorted(times)
    assert [row[0] for row in db.execute("SELECT ended FROM session")] == ["killed", "by itself"]
    db.close()
    # Nothing is left to do, so all that happens is the report.
    again = subprocess.run([*SHMKERN, "--resume", tmp_path / "s.db"], capture_output=True, text=True, timeout=60)
    assert again.returncode == 0 and "soak held: 2 turns" in again.stdout


def test_a_full_disk_is_a_sentence_and_what_was_measured_is_kept(tmp_path):
    """A file system of 600 KiB, in a mount namespace of its own."""
    script = f"""mount -t tmpfs -o size=600k tmpfs {tmp_path}/disk || exit 99
        {' '.join(SHMKERN)} anon --seconds 60 --workers 2 --every 0.05 --json {tmp_path}/r.json \\
            --samples {tmp_path}/disk/s.db; status=$?
        cp {tmp_path}/disk/* {tmp_path}/kept/; exit $status"""
    (tmp_path / "disk").mkdir()
    (tmp_path / "kept").mkdir()
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script], capture_output=True,
                          text=True, timeout=90)
    assert done.returncode == common.BAD_USE, done
    assert done.stderr.splitlines() == [
        f"shmkern soak: the samples cannot be written to {tmp_path}/disk/s.db: database or disk is full"]
    assert "soak interrupted: 1 turns" in done.stdout
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["turns"][0]["state"] == "interrupted" and result["turns"][0]["result"]["accesses"] > 0
    assert count_samples(tmp_path / "kept" / "s.db") > 5


@pytest.mark.parametrize("pages", range(20, 60, 3))
def test_a_disk_that_is_full_at_any_point_keeps_whole_samples(tmp_path, pages):
    file = samples.Samples.create(tmp_path / "s.db", seed=1)
    file.rows(f"PRAGMA max_page_count = {pages}")
    kept = 0
    with pytest.raises(samples.SamplesError, match="disk is full"):
        while True:
            with file.writing() as db:
                db.execute("INSERT INTO sample VALUES (?, 1, 'running', ?, 0)", (kept + 1, kept))
                db.executemany("INSERT INTO counter VALUES (?, ?, 1)", [(kept + 1, f"c{n}") for n in range(40)])
            kept += 1
    file.close()
    again = samples.Samples.open(tmp_path / "s.db")
    assert again.rows("SELECT count(*), coalesce(max(number), 0) FROM sample") == [(kept, kept)]
    assert again.rows("SELECT count(*) FROM counter") == [(40 * kept,)]
    again.close()


# ---- bad use --------------------------------------------------------------------------

@pytest.fixture
def complaint(capsys, tmp_path):
    """complaint(line) is the one sentence that a bad command line gets, with exit status 2."""
    def complain(line):
        parser = common.Parser()
        soak.add_options(parser)
        try:
            status = soak.main(parser.parse_args(line))
        except SystemExit as stop:
            status = stop.code
        out, said = capsys.readouterr()
        assert status == common.BAD_USE and len(said.splitlines()) == 1 and out == "", (out, said)
        return said
    return complain


@pytest.mark.parametrize("line, words", [
    (["nonsense"], "there is no scenario 'nonsense'"), (["anon --workers 0"], "'0' is not a whole number"),
    (["'"], "is no scenario"), (["anon --seconds 5"], "--seconds is the soak's own"), (["trace"], "FILE"),
    (["--hours", "0"], "not a time"), (["--hours", "x"], "not a time"), (["--workers", "x", "anon"], "'x'"),
    (["--every", "0"], "not a time"), (["--samples", "/nowhere/s.db"], "/nowhere/s.db"),
    (["--json", "/nowhere/x"], "/nowhere/x"), (["--resume", "/nowhere/x"], "no file of samples /nowhere/x"),
    (["--hours", "1", "--seconds", "1"], "not allowed with"),
    (["anon", "all", "--workers", "4", "--seconds", "9"], "all needs 8 workers"),
    (["anon --workers 2", "trace /nowhere/trace"], "/nowhere/trace")])
def test_bad_use_is_one_sentence(complaint, tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    assert words in complaint(line)


def test_files_that_are_not_samples_or_in_use_are_a_sentence(complaint, tmp_path, start):
    text = tmp_path / "text.db"
    text.write_text("nothing of the kind, and long enough to look at" * 100)
    assert "is no file of samples" in complaint(["--resume", str(text)])
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE x (y)")
    assert "is no file of samples" in complaint(["--resume", str(tmp_path / "other.db")])
    process = start()
    assert f"process {process.pid} is at work" in complaint(["--resume", str(tmp_path / "s.db")])
    assert "exists; --resume" in complaint(["anon", "--samples", str(tmp_path / "s.db")])
    assert "is settled in" in complaint(["anon", "--resume", str(tmp_path / "s.db")])
