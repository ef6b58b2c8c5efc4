# SPDX-License-Identifier: GPL-2.0-only
"""Promises of the command `shmkern`, mostly on real processes: exit statuses, one sentence for
what a user gets wrong, nothing left behind however a run ends, and ls and rm for what a
killed supervisor leaves."""
import gzip
import json
import os
import pty
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

import shmkern
from shmkern import cli, command, direct_map, interrupts, layout, record

pytestmark = pytest.mark.timeout(60)

SHMKERN = [sys.executable, str(Path(shmkern.__file__).parent.parent / "shmkern_entry.py")]
LINES = " L 1ffeffe7e0,8\n S 1ffeffe7fc,8\n M 04a0000,64\n L 1ffeffe7fc,8\n" * 500
valgrind_only = pytest.mark.skipif(shutil.which("valgrind") is None, reason="needs valgrind")


def shmkern_run(*args, **more):
    """Runs the command to its end."""
    return subprocess.run([*SHMKERN, *map(str, args)], capture_output=True, text=True, timeout=50, **more)


def assert_bad_use(done, *words):
    """Status 2 and one sentence on stderr that has these words; no traceback."""
    assert done.returncode == 2, done
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert str(word) in done.stderr
    assert "Traceback" not in done.stdout


def until(condition, seconds=30):
    """Waits for condition() and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return value


def block_of(pid):
    """The state of the block that a process supervises, once it is there."""
    return next((block for block in cli.block_states() if block.supervisor == pid and not block.note), None)


@pytest.fixture
def running():
    """running(*options) starts a long `stress anon` in a session of its own and returns
    (process, the state of its block) when its workers work; killed at the end."""
    started = []

    def start(*more):
        process = subprocess.Popen([*SHMKERN, "stress", "anon", "--seconds", "500", "--workers", "3", *more],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        started.append(process)

        def ready():
            assert process.poll() is None, process.communicate()
            block = block_of(process.pid)
            return block if block and len(block.tasks) == 5 else None
        return process, until(ready)

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for block in cli.block_states():
            if block.supervisor == process.pid:
                cli.remove_block(block)


@pytest.fixture
def in_shm():
    """in_shm(make) is the path of what make(path) puts into /dev/shm under a block's name."""
    made = []

    def put(make):
        path = direct_map.SHM_DIR / f"{direct_map.PREFIX}{os.getpid()}-in-shm-{len(made)}"
        make(path)
        made.append(path)
        return path
    yield put
    for path in made:
        path.unlink(missing_ok=True)


def assert_gone(block):
    """Neither the block nor any of its tasks is there any more."""
    assert not (direct_map.SHM_DIR / block.name).exists()
    until(lambda: all(direct_map.process_gone(task.os_pid, task.start) for task in block.tasks), 10)


# ---- help and bad use ----

def test_version():
    done = shmkern_run("--version")
    assert (done.returncode, done.stdout) == (0, f"shmkern {shmkern.__version__}\n")


@pytest.mark.parametrize("command", [[], ["stress"], ["stress", "anon"], ["stress", "threads"], ["stress", "fork"],
                                     ["stress", "move_pages"], ["stress", "offline"],
                                     ["stress", "trace"], ["soak"], ["record"], ["ls"], ["rm"], ["bench"],
                                     ["trace"], ["show"], ["top"]])
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command, "--help"])
    assert stop.value.code == 0
    assert "example:\n  shmkern " in capsys.readouterr().out


@pytest.mark.parametrize("line, words", [
    ("", ["COMMAND"]), ("nonsense", ["nonsense"]),
    ("stress", ["SCENARIO"]), ("stress nonsense", ["nonsense"]), ("stress anon extra", ["extra"]),
    ("stress anon --workers 0", ["'0'", "1 to 400"]), ("stress anon --workers x", ["'x'"]),
    ("stress anon --workers 1e3", ["'1e3'"]), ("stress threads --workers 1", ["two workers"]),
    ("stress anon --nodes 65", ["2 to 64"]), ("stress anon --nodes 1", ["2 to 64"]),
    ("stress anon --frames 0", ["'0'"]), ("stress anon --frames 20", ["too few"]),
    ("stress anon --seconds 0", ["seconds"]), ("stress anon --seconds nan", ["'nan'"]),
    ("stress anon --seconds inf", ["'inf'"]), ("stress anon --seed -1", ["'-1'"]),
    ("stress anon --migrators 0", ["'0'"]), ("stress anon --json /nowhere/x", ["/nowhere/x", "No such file"]),
    ("soak nonsense", ["no scenario 'nonsense'"]), ("soak --hours 0", ["'0' is not a time in hours"]),
    ("stress trace", ["FILE"]), ("stress trace /nowhere", ["/nowhere", "No such file"]),
    ("stress trace /", ["/", "directory"]),
    ("record", ["no command"]), ("record --limit 0 -- true", ["'0'"]), ("record --limit x -- true", ["'x'"]),
    ("rm nonsense", ["no machine 'nonsense'"]), ("rm ../x", ["no machine"]),
    ("ls extra", ["extra"]), ("ls --json /nowhere/x", ["/nowhere/x"]),
    ("bench", ["no benchmark is named", "migrate"]), ("bench nonsense", ["benchmark"])])
def test_bad_use_is_one_sentence(line, words, capsys):
    try:
        status = cli.main(line.split())
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr().err
    assert status == 2 and len(said.splitlines()) == 1
    assert all(word in said for word in words), said


@pytest.mark.parametrize("args", [
    *(["stress", "anon", "--seconds", "0.2", option] for option in ("--json", "--html")), ["stress", "trace"],
    *(["soak", "anon", "--seconds", "1", option] for option in ("--json", "--html", "--samples", "--resume")),
    ["ls", "--json"], ["show", "migrate", "--json"], ["top", "--json"], ["top"], ["rm"], ["record", "-o"], ["trace", "-o"],
    *(["explore", "buffer_lock", option] for option in ("--json", "--html", "--output", "--file")),
    ["replay"], *(["replay", "x", option] for option in ("--json", "--html")),
    *(["bench", "migrate", option] for option in ("--json", "--html"))], ids=" ".join)
def test_an_empty_name_is_one_sentence(args, tmp_path):
    """It is not taken for the default, nor for a file that cannot be opened.  Nothing is left behind."""
    after = ["--", "true"] if args[0] in ("record", "trace") else []
    done = shmkern_run(*args, "", *after, cwd=tmp_path)
    assert_bad_use(done, "there is no machine ''" if len(args) == 1 and args[0] in ("top", "rm") else
                   "'' is not the name of a file")
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [
    "stress anon --frames 20 --json made --html page", "stress trace /nowhere --json made",
    "soak anon --frames 20 --json made --html page", "top --json made shmkern-none", "show migrate --json /nowhere/made",
    "trace -o made -- true", "trace -- true", "bench migrate --json made --pages 0", "explore --museum none --json made"])
def test_a_command_that_does_not_come_to_it_leaves_no_empty_result(line, tmp_path):
    done = shmkern_run(*line.split(), cwd=tmp_path)
    assert_bad_use(done)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", [
    "stress anon --seconds 1 --json made --html made", "soak anon --seconds 1 --json made --html made",
    "soak anon --seconds 1 --samples made --json made", "soak --resume made --html made", "explore fault --json made --html made",
    "explore fault --output made --html made", "replay made --html made", "bench migrate --json made --html made"])
def test_two_results_are_not_written_to_one_file(line, tmp_path):
    done = shmkern_run(*line.split(), cwd=tmp_path)
    assert_bad_use(done, "named for two things")
    assert list(tmp_path.iterdir()) == []
    # Nor to two names of one; what is there is kept.
    (tmp_path / "there").write_text("from before")
    (tmp_path / "made").symlink_to("there")
    assert_bad_use(shmkern_run(*line.rsplit("made", 1)[0].split(), "there", cwd=tmp_path), "named for two things")
    assert (tmp_path / "there").read_text() == "from before"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_result_is_not_half_written_by_who_is_told_to_end_meanwhile(number, tmp_path):
    path, size = tmp_path / "result", 1 << 28
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(f"""
        import signal
        from shmkern.interrupts import write_whole
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        write_whole({str(path)!r}, "x" * {size})
        signal.pause()""")])
    until(path.exists)
    process.send_signal(number)
    assert process.wait(30) == -number and path.stat().st_size == size


def test_what_is_written_to_a_pipe_can_be_interrupted(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        with pytest.raises(KeyboardInterrupt):
            interrupts.write_whole(tmp_path / "pipe", "x")
    finally:
        signal.signal(signal.SIGALRM, before)


# Every locale of a test host may be one of UTF-8.
ASCII = {**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii:strict"}


@pytest.mark.parametrize("name", [b"trace", b"\xff"])
def test_a_locale_or_a_name_that_is_no_text_costs_no_report(name, tmp_path):
    Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_text(LINES)
    done = subprocess.run([*SHMKERN, "stress", "trace", name, "--seconds", "0.2", "--workers", "1", "--html", "a.html"],
                          capture_output=True, timeout=50, cwd=tmp_path, env=ASCII)
    assert done.returncode == 0 and done.stderr == b"", done
    assert "\N{EN DASH}" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_what_the_locale_does_not_have_can_be_printed(tmp_path):
    program = ["-c", "import shmkern.command as c; c.carry_out('x', lambda: print('\\N{BLACK STAR}\\udcff'))"]
    done = subprocess.run([sys.executable, *program], capture_output=True, timeout=50, env=ASCII)
    assert (done.stdout, done.stderr) == (b"\\u2605\\udcff\n", b"")


def test_a_device_takes_two_results():
    command.check_outputs("/dev/null", "/dev/null", None, "-", "-")


def test_a_file_that_is_there_is_kept_by_a_command_that_does_not_come_to_writing_it(tmp_path):
    (tmp_path / "made").write_text("from before")
    assert_bad_use(shmkern_run("stress", "anon", "--frames", "20", "--json", "made", cwd=tmp_path))
    assert (tmp_path / "made").read_text() == "from before"


def test_bad_use_of_the_real_command():
    assert_bad_use(shmkern_run("stress", "anon", "--workers", "-3"), "--workers")


def test_host_without_room_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path / "none")
    assert cli.main(["stress", "anon", "--seconds", "1"]) == 2
    assert "shared memory" in capsys.readouterr().err


@pytest.mark.parametrize("files, line", [
    *((files, "stress anon --seconds 1") for files in (5, 7, 9, 12, 14, 16, 20)),
    (64, "stress anon --seconds 1 --workers 60"), (64, "stress threads --seconds 20 --workers 60"),
    (64, "stress file --seconds 1 --workers 100"), (24, "stress all --seconds 1"), (24, "stress buffers --seconds 1"),
    (10, "show migrate --table"), (14, "explore store --runs 5 --strategy random --jobs 4")])
def test_host_that_gives_no_more_descriptors_is_one_sentence(files, line):
    done = shmkern_run(*line.split(), preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)))
    assert_bad_use(done, "Too many open files")
    assert "BROKEN" not in done.stdout


# ---- trace files ----

def read_error(path):
    """The sentence about a trace file that cannot be read."""
    with pytest.raises(record.TraceError) as error:
        record.read_trace(str(path))
    return str(error.value)


def test_plain_and_gzip_are_the_same_trace(tmp_path):
    (tmp_path / "plain").write_text(LINES)
    (tmp_path / "packed").write_bytes(gzip.compress(LINES.encode()))
    plain, packed = record.read_trace(tmp_path / "plain"), record.read_trace(tmp_path / "packed")
    assert len(plain) == 2000 and plain[:3].tolist() == [(0x1ffeffe7e0, 8, 0), (0x1ffeffe7fc, 8, 1), (0x4a0000, 64, 2)]
    assert (plain == packed).all() and plain.dtype == packed.dtype


def test_trace_is_read_in_blocks_without_losing_a_line(tmp_path, monkeypatch):
    (tmp_path / "trace").write_text(LINES)
    whole = record.read_trace(tmp_path / "trace")
    for size in (40, 97, 1000):
        monkeypatch.setattr(record, "CHUNK", size)
        assert (record.read_trace(tmp_path / "trace") == whole).all()
    (tmp_path / "bad").write_text(LINES + "oops\n" + LINES)
    assert "line 2001 " in read_error(tmp_path / "bad")


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_a_trace_may_come_through_a_pipe(pack):
    done = subprocess.run([*SHMKERN, "stress", "trace", "/dev/stdin", "--seconds", "0.2", "--workers", "2"],
                          input=pack(LINES.encode()), capture_output=True, timeout=50)
    assert done.returncode == 0 and b"trace held" in done.stdout, done


def test_bad_trace_files_are_a_sentence(tmp_path):
    file = tmp_path / "file"
    file.write_text(" L 1ffeffe7e0,8\n==7== hello\n\n L 1ffeffe7e0\n")
    assert f"{file}, line 4 " in read_error(file) and "' L 1ffeffe7e0'" in read_error(file)
    file.write_bytes(b"\x7fELF" + bytes(5000))
    assert f"{file}, line 1 " in read_error(file)
    for empty in (b"", b"==1== nothing\nI  04001090,3\n", gzip.compress(b"")):
        file.write_bytes(empty)
        assert "no memory access" in read_error(file)
    packed = gzip.compress(os.urandom(3000))
    for damaged in (packed[:-20], packed[:100] + bytes(100) + packed[200:], b"\x1f\x8b" + bytes(50)):
        file.write_bytes(damaged)
        assert str(file) in read_error(file)
    if os.getuid() != 0:
        file.chmod(0)
        assert "denied" in read_error(file)


def test_trace_with_garbage_is_bad_use(tmp_path):
    (tmp_path / "bad").write_text(" L 1ffeffe7e0,8\ngarbage\n")
    assert_bad_use(shmkern_run("stress", "trace", tmp_path / "bad"), "line 2", "garbage")


def test_two_million_lines_are_read_quickly(tmp_path):
    (tmp_path / "trace.gz").write_bytes(gzip.compress((LINES * 1000).encode(), 1))
    began = time.process_time()
    assert len(record.read_trace(tmp_path / "trace.gz")) == 2_000_000
    assert time.process_time() - began < 5


# ---- stress ----

def test_stress_prints_the_seed_and_writes_json(tmp_path):
    done = shmkern_run("stress", "anon", "--seconds", "0.5", "--workers", "2", "--json", tmp_path / "out.json")
    assert done.returncode == 0 and done.stderr == "", done
    result = json.loads((tmp_path / "out.json").read_text())
    assert f"seed {result['seed']}" in done.stdout.splitlines()[0]
    assert f"anon held: 0 lost writes, clean audit, seed {result['seed']}" in done.stdout
    # No escape sequences where there is no terminal.
    assert "\x1b" not in done.stdout


def test_same_seed_is_printed_again():
    done = shmkern_run("stress", "anon", "--seconds", "0.2", "--workers", "1", "--seed", "0x11", "--json", "-")
    assert json.loads(done.stdout)["seed"] == 17


def test_trace_runs_from_the_command(tmp_path):
    (tmp_path / "trace").write_text(LINES)
    done = shmkern_run("stress", "trace", tmp_path / "trace", "--seconds", "0.5", "--workers", "2")
    assert done.returncode == 0 and "trace held" in done.stdout, done


def test_json_that_cannot_be_written_does_not_lose_the_result():
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = shmkern_run("stress", "anon", "--seconds", "0.2", "--workers", "1", "--json", "/dev/full")
    assert_bad_use(done, "/dev/full", "No space left")
    assert "anon held" in done.stdout


def test_reader_that_goes_away_is_no_failure():
    with subprocess.Popen([*SHMKERN, "stress", "anon", "--seconds", "0.5", "--workers", "1"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(30) == 0


OUTPUTS = [["ls"], ["ls", "--json", "-"], ["rm", "shmkern-not-there"], ["ls", "--help"], ["show", "migrate", "--table"],
           ["show", "migrate"], ["explore", "--list"], ["explore", "store", "--runs", "5", "--strategy", "random"],
           ["stress", "anon", "--seconds", "0.2", "--workers", "1"],
           ["stress", "anon", "--seconds", "0.2", "--workers", "1", "--json", "-"]]
# As users have it: what is printed is written when there is enough of it, or at the end.
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


@pytest.mark.parametrize("args", OUTPUTS, ids=" ".join)
def test_output_that_cannot_be_written_is_one_sentence(args):
    with open("/dev/full", "w") as full:
        done = subprocess.run([*SHMKERN, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=50,
                              env=BUFFERED)
    said = [line for line in done.stderr.splitlines() if not line.startswith("anon") and line[0] != " "]
    assert done.returncode == 2 and len(said) == 1 and said[0].startswith("shmkern "), done
    assert "No space left" in said[0] or "no machine" in said[0]


@pytest.mark.parametrize("args", OUTPUTS, ids=" ".join)
def test_a_closed_pipe_is_no_failure(args):
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run([*SHMKERN, *args], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=50, env=BUFFERED)
    os.close(write_end)
    said = [line for line in done.stderr.splitlines() if not line.startswith("anon") and line[0] != " "]
    if args[0] == "rm":
        assert done.returncode == 2 and len(said) == 1
    else:
        assert done.returncode == 0 and said == [], done


@pytest.mark.parametrize("args", [["ls", "--json", "-"], ["explore", "--list"]], ids=" ".join)
def test_a_closed_standard_output_is_one_sentence(args):
    done = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *SHMKERN, *args], stderr=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, timeout=50)
    assert_bad_use(done, "the standard output is closed")


def test_a_closed_standard_error_puts_no_words_into_the_result():
    args = ["stress", "anon", "--seconds", "0.2", "--workers", "1", "--json", "-"]
    done = subprocess.run(["sh", "-c", 'exec "$@" 2>&-', "sh", *SHMKERN, *args], stdout=subprocess.PIPE, text=True,
                          timeout=50)
    assert done.returncode == 0 and json.loads(done.stdout)["scenario"] == "anon"


def test_terminal_gets_a_live_line():
    master, slave = pty.openpty()
    with subprocess.Popen([*SHMKERN, "stress", "anon", "--seconds", "500", "--workers", "2"], stdout=slave, stderr=slave,
                          env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}) as process:
        os.close(slave)
        shown, told = b"", False
        try:
            while block := os.read(master, 65536):
                shown += block
                if shown.count(b"pages/s") > 2 and not told:
                    process.send_signal(signal.SIGINT)
                    told = True
        except OSError:
            pass        # Linux's end of file for a terminal.
        assert process.wait(30) == 130
    os.close(master)
    assert told and b"accesses/s" in shown and b"failures" in shown and b"\x1b[" in shown
    assert b"anon interrupted" in shown


# ---- however a run ends ----

def test_ctrl_c_prints_what_was_measured_and_leaves_nothing(running):
    process, block = running()
    # As a terminal does: to all of the process group.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "anon interrupted: 0 lost writes, clean audit, seed" in out and "pages migrated" in out
    assert_gone(block)


@pytest.mark.parametrize("module, command", [
    ("numpy", [*SHMKERN, "ls"]), ("rich", [*SHMKERN, "stress", "anon"]),
    ("numpy", [sys.executable, str(Path(shmkern.__file__).parent / "explore" / "__main__.py"), "explore", "--list"])],
    ids=["ls", "stress", "explore"])
def test_ctrl_c_while_a_command_is_imported_is_no_traceback(module, command, tmp_path):
    """A module that it comes by sends it."""
    (tmp_path / f"{module}.py").write_text("import os, signal, time\n"
                                           "os.kill(os.getpid(), signal.SIGINT)\n"
                                           "while True:\n"
                                           "    time.sleep(1)\n")
    done = subprocess.run(command, capture_output=True, text=True, timeout=20,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_impatient_ctrl_c_leaves_nothing(running):
    """The first waits for all to be checked, which a task that stands still holds up; the second
    does not, and more of them do no harm."""
    process, block = running()
    psutil.Process(block.tasks[2].os_pid).suspend()
    deadline = time.monotonic() + 20
    while process.poll() is None and time.monotonic() < deadline:
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.02)
    # The last one may come when Python has put its own things away.
    assert process.wait(1) in (130, -signal.SIGINT)
    assert "Traceback" not in process.stderr.read()
    assert_gone(block)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("group", [False, True])
def test_other_signals_leave_nothing(running, number, group):
    process, block = running()
    (os.killpg if group else os.kill)(process.pid, number)
    _out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert_gone(block)


def test_killed_worker_is_status_1(running, tmp_path):
    process, block = running("--json", str(tmp_path / "out.json"))
    victim = max(block.tasks)
    os.kill(victim.os_pid, signal.SIGKILL)
    out, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (1, "")
    assert "anon BROKEN" in out and "killed" in out
    assert json.loads((tmp_path / "out.json").read_text())["failures"]
    assert_gone(block)


# ---- ls and rm ----

def test_ls_shows_and_rm_removes_what_a_killed_supervisor_left(running):
    process, block = running()
    assert (block.nodes, block.frames, block.alive, block.state) == (2, 8192, True, "running")
    shown = [line for line in shmkern_run("ls").stdout.splitlines() if line.startswith(block.name)]
    assert len(shown) == 1 and "running" in shown[0]
    listed = {one["name"]: one for one in json.loads(shmkern_run("ls", "--json", "-").stdout)}
    assert listed[block.name]["alive"] and len(listed[block.name]["tasks"]) == 5
    assert_bad_use(shmkern_run("rm", block.name), block.name, process.pid, "--force")
    assert block_of(process.pid).alive
    process.kill()
    process.wait(10)
    left = block_of(process.pid)
    assert not left.alive and left.state == "left behind"
    assert "left behind" in shmkern_run("ls").stdout
    done = shmkern_run("rm", block.name)
    assert done.returncode == 0 and f"removed {block.name}" in done.stdout, done
    assert_gone(block)
    assert_bad_use(shmkern_run("rm", block.name), "no machine")


def test_rm_ends_tasks_that_outlived_their_supervisor(running):
    """The tasks of a killed supervisor die with it, unless they cannot: a stopped debugger, say."""
    process, block = running()
    sleeper = subprocess.Popen(["sleep", "600"])
    # A task that is somebody else: a process of that pid that started at another time.
    fakes = [cli.LeftTask(9, sleeper.pid, direct_map.process_start(sleeper.pid) + 1)]
    real = [cli.LeftTask(9, sleeper.pid, direct_map.process_start(sleeper.pid))]
    process.kill()
    process.wait(10)
    left = block_of(process.pid)
    assert "ended" not in cli.remove_block(left._replace(tasks=fakes))
    assert sleeper.poll() is None
    assert "ended 1 tasks" in cli.remove_block(left._replace(tasks=real))
    assert sleeper.wait(10) == -signal.SIGKILL
    assert_gone(block)


def test_rm_force_ends_nobody_who_has_the_pid_of_a_supervisor_by_now(running, tmp_path, monkeypatch, capsys):
    process, block = running()
    with subprocess.Popen(["sleep", "600"]) as sleeper:
        # The supervisor was ended meanwhile, and its pid is another's.
        process.kill()
        process.wait(10)
        cli.remove_block(block._replace(supervisor=sleeper.pid))
        assert_gone(block)
        # A supervisor that was killed before it had made its block leaves nothing but its pid.
        monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path)
        (tmp_path / f"shmkern-{sleeper.pid}-0").write_bytes(b"")
        assert cli.main(["ls"]) == 0
        assert "left behind (unfinished)" in capsys.readouterr().out
        assert cli.main(["rm", "--force"]) == 0
        assert list(tmp_path.iterdir()) == [] and sleeper.poll() is None
        sleeper.kill()


@pytest.mark.parametrize("step", ["ftruncate", "write_header"])
def test_a_block_that_is_being_made_is_not_left_behind(step, monkeypatch):
    """Its maker has it open, or mapped."""
    holder, seen = os if step == "ftruncate" else direct_map, []
    done = getattr(holder, step)

    def look(*args):
        # From another process: whoever looks has the file open, too.
        blocks = json.loads(shmkern_run("ls", "--json", "-").stdout)
        seen.extend(block for block in blocks if block["supervisor"] == os.getpid())
        return done(*args)
    with monkeypatch.context() as patch:
        patch.setattr(holder, step, look)
        shmkern.Machine(frames_per_node=64).close()
    assert [(block["alive"], block["note"]) for block in seen] == [(True, "unfinished")]


def forged_block(victim):
    """A block of a supervisor that is gone, with one task: the process `victim`.  As anybody can write it."""
    C, page = layout.constants, layout.constants["PAGE_SIZE"]
    header, kernel = (np.zeros(1, layout.dtypes[name]) for name in ("block_header", "Kernel"))
    tasks = np.zeros(3, layout.dtypes["Task"])
    header["magic"], header["layout_hash"], header["base"] = direct_map.MAGIC, layout.layout_hash(), direct_map.BASE
    header["supervisor_pid"] = 1 << 30
    offset = -(-(page + kernel.nbytes) // page) * page
    kernel["max_tasks"], kernel["nr_nodes"], kernel["tasks"] = len(tasks), 1, direct_map.BASE + offset
    tasks["state"][1], tasks["pid"][1] = C["TASK_RUNNING"], 2
    tasks["os_pid"][1], tasks["start_time"][1] = victim, direct_map.process_start(victim)
    data = header.tobytes().ljust(page, b"\0") + kernel.tobytes()
    return data.ljust(offset, b"\0") + tasks.tobytes()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, and somebody else")
@pytest.mark.parametrize("as_task", [True, False])
def test_rm_of_root_ends_no_process_that_the_owner_of_the_file_could_not(in_shm, as_task):
    """Neither as a task of a block, nor, with --force, as its supervisor."""
    nobody = 65534
    with subprocess.Popen(["sleep", "600"]) as theirs, subprocess.Popen(["sleep", "600"], user=nobody) as own:
        for victim in (theirs, own):
            path = in_shm(lambda path: path.write_bytes(forged_block(victim.pid)))
            if not as_task:
                header = np.frombuffer(forged_block(victim.pid), layout.dtypes["block_header"], 1).copy()
                header["supervisor_pid"], header["supervisor_start"] = victim.pid, direct_map.process_start(victim.pid)
                path.write_bytes(header.tobytes().ljust(layout.constants["PAGE_SIZE"] * 40, b"\0"))
            os.chown(path, nobody, nobody)
            done = shmkern_run("rm", "--force", path.name)
            assert done.returncode == 0 and f"removed {path.name}" in done.stdout, done
            assert not path.exists()
        assert own.wait(10) == -signal.SIGKILL
        assert theirs.poll() is None
        theirs.kill()


def test_rm_force_ends_a_running_machine(running):
    process, block = running()
    done = shmkern_run("rm", "--force", block.name)
    assert done.returncode == 0 and "removed" in done.stdout, done
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGKILL
    assert_gone(block)


def test_rm_without_names_takes_all_that_is_left_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f"shmkern-{dead.pid}-0").write_bytes(b"")
    (tmp_path / f"shmkern-{dead.pid}-1").write_bytes(bytes(8192))
    (tmp_path / "sem.other").write_bytes(b"")
    with (tmp_path / f"shmkern-{os.getpid()}-0").open("wb"):
        # That one is being made.
        assert cli.main(["ls"]) == 0
        said = capsys.readouterr().out
        assert said.count("left behind (unfinished)") == 2 and said.count("running (unfinished)") == 1
        assert cli.main(["rm", "--all"]) == 0
        assert capsys.readouterr().out.count("removed") == 2
        assert sorted(path.name for path in tmp_path.iterdir()) == ["sem.other", f"shmkern-{os.getpid()}-0"]
        assert cli.main(["rm"]) == 0
        assert "Nothing was left behind. 1 machines are running." in capsys.readouterr().out


def test_damaged_and_foreign_blocks_are_listed_and_removed(machine, tmp_path, monkeypatch, capsys):
    whole = (direct_map.SHM_DIR / machine._block.name).read_bytes()[:1 << 20]
    dead = subprocess.Popen(["true"])
    dead.wait()
    header = direct_map.read_header(machine._block.name).copy()
    header["supervisor_pid"] = dead.pid
    size = header.dtype.itemsize
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path)
    (tmp_path / "shmkern-1-0").write_bytes(header.tobytes() + whole[size:4096 + 100])
    header["layout_hash"] ^= 1
    (tmp_path / "shmkern-1-1").write_bytes(header.tobytes() + whole[size:])
    assert cli.main(["ls"]) == 0
    said = capsys.readouterr().out
    assert "left behind (damaged)" in said and "left behind (of another build)" in said
    assert cli.main(["rm"]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd"),
                                  lambda path: path.symlink_to("/nonexistent")], ids=["fifo", "link", "dead link"])
def test_what_is_no_plain_file_holds_nobody_up(in_shm, make, tmp_path):
    path = in_shm(make)
    for done in (shmkern_run("ls"), shmkern_run("rm", path.name), shmkern_run("top", "--once", path.name),
                 shmkern_run("trace", path.name, cwd=tmp_path)):
        assert path.name not in done.stdout and "Traceback" not in done.stderr
    assert_bad_use(done, path.name, "not a machine")
    assert os.path.lexists(path)


def test_ls_without_machines(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path)
    assert cli.main(["ls"]) == 0
    assert capsys.readouterr().out == "There are no machines.\n"


# ---- record ----

def test_record_without_valgrind_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(record.TraceError, match="apt install valgrind"):
        record.record(["true"], str(tmp_path / "out"), 10)


@valgrind_only
def test_recorded_program_can_be_replayed(tmp_path):
    trace = tmp_path / "echo.gz"
    done = shmkern_run("record", "-o", trace, "--", "/bin/echo", "hello  world")
    # The program's output is the program's alone.
    assert (done.returncode, done.stdout) == (0, "hello  world\n"), done
    assert str(trace) in done.stderr and "exit status 0" in done.stderr
    assert len(record.read_trace(trace)) > 10000
    assert not any(line.startswith(b"I") for line in gzip.open(trace))
    done = shmkern_run("stress", "trace", trace, "--seconds", "0.5", "--workers", "2")
    assert done.returncode == 0, done


@valgrind_only
def test_record_is_bounded(tmp_path):
    trace = tmp_path / "loop.gz"
    done = shmkern_run("record", "-o", trace, "--limit", "5000", "--", "sh", "-c", "while :; do :; done")
    assert done.returncode == 0 and "ended after 5,000 accesses" in done.stderr, done
    assert len(record.read_trace(trace)) == 5000


@valgrind_only
@pytest.mark.parametrize("group", [False, True])
@pytest.mark.parametrize("number, how", [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM"),
                                         (signal.SIGHUP, "SIGHUP")])
def test_ctrl_c_and_its_like_keep_what_was_recorded(tmp_path, group, number, how):
    """Also when it comes to us alone, and the program goes on."""
    trace = tmp_path / "loop.gz"
    with subprocess.Popen([*SHMKERN, "record", "-o", trace, "--", "sh", "-c", "echo on; while :; do :; done"], text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == "on\n"
        (os.killpg if group else os.kill)(process.pid, number)
        _out, err = process.communicate(timeout=40)
    assert process.returncode == 128 + number and f"ended by {how}" in err and len(err.splitlines()) == 1, err
    count = int(re.search(r"([0-9,]+) accesses in", err)[1].replace(",", ""))
    assert len(record.read_trace(trace)) == count > 1000


@valgrind_only
def test_record_names_its_file_after_the_program(tmp_path):
    done = shmkern_run("record", "--limit", "100", "--", "/bin/true", cwd=tmp_path)
    assert done.returncode == 0 and len(record.read_trace(tmp_path / "true.lackey.gz")) == 100


@valgrind_only
@pytest.mark.parametrize("args, words", [(["--", "no-such-program"], ["no-such-program"]),
                                         (["-o", "/nowhere/x", "--", "true"], ["/nowhere/x", "No such file"]),
                                         (["-o", "/dev/full", "--", "true"], ["/dev/full", "No space"])])
def test_record_that_cannot_be_is_a_sentence(args, words):
    assert_bad_use(shmkern_run("record", *args), *words)


# ---- bench ----

def test_bench_runs_a_file_of_the_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "CHECKOUT", tmp_path)
    assert cli.main(["bench", "one"]) == 2
    assert "no benchmarks here" in capsys.readouterr().err
    Path(tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "one.py").write_text("")
    became = []
    monkeypatch.setattr(os, "execv", lambda program, words: became.append((program, words)))
    cli.main(["bench", "one", "--json", "x"])
    assert became == [(sys.executable, [sys.executable, str(tmp_path / "bench" / "one.py"), "--json", "x"])]
    assert cli.main(["bench", "two"]) == 2
    assert "there is one" in capsys.readouterr().err


def test_bench_becomes_the_benchmark():
    assert_bad_use(shmkern_run("bench", "migrate", "--pages", "0"), "migrate.py", "'0'")
