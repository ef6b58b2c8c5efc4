# SPDX-License-Identifier: GPL-2.0-only
"""`shmkern top` in a real terminal (a pty, read by a terminal emulator) and without one, on
machines of this process: what it shows, its keys, and how it ends."""
import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent import futures
from pathlib import Path

import pexpect
import pyte
import pytest

from helpers import PAGE, Puppet, mm_of, page_at, pfn_at, until, until_waits
from shmkern import cli, command, direct_map, layout, peek, report, top
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(120)

TOP = [str(command.ENTRY), "top"]
LINES, COLUMNS = 40, 150
C = layout.constants


class Terminal:
    """A program in a terminal of its own; `screen` is what a person would see."""

    def __init__(self, *args):
        self.screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self.screen)
        # The size is the terminal's, and not what another one's was.
        environment = {name: value for name, value in os.environ.items() if name not in ("LINES", "COLUMNS")}
        self.process = pexpect.spawn(sys.executable, [*TOP, *args], dimensions=(LINES, COLUMNS),
                                     env={**environment, "TERM": "xterm-256color"})
        self.output = b""

    @property
    def text(self):
        return "\n".join(line.rstrip() for line in self.screen.display)

    def read(self, seconds=0.05):
        """Feeds what has been written to the screen.  False when the program has closed it."""
        try:
            block = self.process.read_nonblocking(1 << 16, seconds)
        except pexpect.TIMEOUT:
            return True
        except pexpect.EOF:
            return False
        self.output += block
        self._stream.feed(block)
        return True

    def until(self, pattern, what=None):
        """Returns the match of a pattern on the screen, when it is there."""
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, self.text, re.M)):
            assert self.read() and time.monotonic() < deadline, f"{what or pattern} is not on the screen:\n{self.text}"
        return found

    def until_gone(self, pattern):
        """Returns when a pattern is not on the screen."""
        deadline = time.monotonic() + 60
        while re.search(pattern, self.text, re.M):
            assert self.read() and time.monotonic() < deadline, f"{pattern} is on the screen still:\n{self.text}"

    def press(self, keys):
        """Keys for a program that stands still wait together for it; and then Escape, and what comes behind it, are
        one key.  So after Escape that has been done which it does, before anything else is pressed."""
        self.process.send(keys)

    def resize(self, lines, columns):
        self.screen.resize(lines, columns)
        self.process.setwinsize(lines, columns)

    def end(self):
        """Waits for the end; the exit status."""
        deadline = time.monotonic() + 60
        while self.read():
            assert time.monotonic() < deadline, self.text
        # It has closed the terminal, and is ending: close() would not wait long for that.
        self.process.wait()
        self.process.close()
        return self.process.exitstatus

    def pids(self):
        """The pids of the tasks in the order of the screen, which may have been drawn in part."""
        rows = re.search(r"^ ?PID.*\n((?: *\d+ .*\n)*)", self.text, re.M)
        return [int(line.split()[0]) for line in rows.group(1).splitlines()] if rows else []

    def until_pids(self, pids):
        """Returns when these tasks are on the screen, in this order."""
        deadline = time.monotonic() + 60
        while self.pids() != pids:
            assert self.read() and time.monotonic() < deadline, f"{pids} are not on the screen:\n{self.text}"


@pytest.fixture
def machine(boot):
    """A small machine, some of whose tasks wait for as long as somebody looks at them."""
    return boot(hung_task_timeout=120.0)


@pytest.fixture
def terminal(machine):
    """terminal(*args) is a Terminal with `shmkern top` of the machine, once it shows tasks."""
    opened = []

    def start(*args):
        opened.append(Terminal(machine.name, "--interval", "0.25", *args))
        opened[-1].until(r"^ +1 +init")
        return opened[-1]
    yield start
    for one in opened:
        one.process.close(force=True)


@pytest.fixture
def tasks(machine):
    """Two tasks with 3 and 7 pages; the first holds the lock of its first page."""
    made = []
    for pages in (3, 7):
        puppet = Puppet(machine)
        puppet.va = puppet(lambda task: task.mmap(pages * PAGE))
        va = puppet.va
        puppet(lambda task: task.store(va, b"x" * pages * PAGE))
        made.append(puppet)
    page = page_at(made[0], made[0].va).address
    made[0](lambda task: ksym.lock_page(page))
    made[0].locked = page
    yield made
    if machine.is_open and layout.header().panic == 0:
        made[0](lambda task: ksym.unlock_page(page))


def row(pid, text):
    """What the screen says of a task."""
    return re.search(rf"^ *{pid} +\S.*$", text, re.M).group(0)


# ---- in a terminal ---------------------------------------------------------------------

def test_it_shows_nodes_tasks_and_who_waits_for_what(machine, tasks, terminal):
    holder, waiter = tasks
    page = holder.locked
    waiter.begin(lambda task: ksym.wait_on_page_locked(page))
    until_waits(waiter, "WAIT_PAGE_LOCK")
    screen = terminal()
    pfn = pfn_at(holder, holder.va)
    screen.until(rf"^ *{waiter.pid} +_obey .*page lock: page {pfn}")
    screen.until(r"page lock: any page, most for page")
    assert re.search(r"^ NODE +FRAMES +FREE", screen.text, re.M)
    assert machine.name in screen.text and "3 tasks on 2 nodes of 1,024 frames" in screen.text
    holder(lambda task: ksym.unlock_page(page))
    waiter.reply()
    screen.until(r"^ *nobody waits")
    holder(lambda task: ksym.lock_page(page))


def test_rates_are_of_what_happens_now(tasks, terminal):
    mover, va, pid = tasks[1], tasks[1].va, tasks[1].pid
    screen = terminal()
    deadline = time.monotonic() + 60
    while not re.search(r"a second: [1-9][\d,]* pages migrated", screen.text):
        mover(lambda task: [task.move_pages(pid, [va], [node]) for node in (1, 0) * 20])
        assert screen.read() and time.monotonic() < deadline
    screen.until("a second: 0 pages migrated")


def test_keys_sort_and_reverse(tasks, terminal):
    screen = terminal()
    small, large = tasks[0].pid, tasks[1].pid
    screen.press("s" * 4)
    screen.until("PAGES▼")
    screen.until_pids([large, small, 1])
    screen.press("r")
    screen.until("PAGES▲")
    screen.until_pids([1, small, large])


def test_a_filter_keeps_what_matches_and_escape_takes_it_off(tasks, terminal):
    screen = terminal()
    screen.press("/")
    screen.until("tasks that have this")
    screen.press("init\r")
    screen.until_pids([1])
    screen.press("/")
    screen.until("▊ +init +▎")
    screen.press("\x1b")
    screen.until_pids([1, tasks[0].pid, tasks[1].pid])


def test_a_task_and_a_page_can_be_opened(tasks, terminal):
    holder = tasks[0]
    pfn = pfn_at(holder, holder.va)
    screen = terminal()
    screen.press("\x1b[B\r")        # down, and Enter
    screen.until(rf"task {holder.pid} \(_obey, CPU {holder.cpu}, host pid {holder.os_pid}\)")
    screen.until(rf"holds page lock page {pfn}, 0 spinlocks")
    screen.until(rf"{holder.va:#x}.* rw- 3 pages".replace("0x", "0x0*"))
    screen.press("\x1b")
    screen.until_gone("holds page lock")
    screen.press("p")
    screen.until("number of a page")
    screen.press(f"{pfn}\r")
    screen.until(rf"page {pfn} on node 0")
    screen.until(rf"lock held by task {holder.pid} ")
    screen.until(rf"at {holder.va:#x}: page {pfn} ")
    screen.press("q")
    screen.until_gone("lock held by task")
    screen.press("p")
    screen.until("number of a page")
    screen.press("9999999\r")
    screen.until("there is no page '9999999'")


def test_a_look_while_details_come_or_go_is_no_error():
    """The next one is due when it is due: the details may not be on the screen yet, or not any more."""
    from textual.app import App

    from shmkern import top_screen

    async def script():
        app = App()
        async with app.run_test() as pilot:
            details = top_screen.Details(lambda: ["a line"])
            app.push_screen(details)
            details.refresh_details()
            await pilot.pause()
            assert "a line" in str(details.query_one("#details").render())
            app.pop_screen()
            details.refresh_details()
            await pilot.pause()
            details.refresh_details()
    # In a thread of its own: in this one a browser's loop may run.
    with futures.ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, script()).result()


def test_it_fits_the_terminal_after_a_resize(tasks, terminal):
    screen = terminal()
    screen.resize(20, 70)
    deadline = time.monotonic() + 60
    while not ("q quit" in screen.screen.display[19] and "NODE" in screen.text):
        assert screen.read() and time.monotonic() < deadline, screen.text
    screen.until(r"^ +1 +init")
    screen.resize(LINES, COLUMNS)
    while not "q quit" in screen.screen.display[LINES - 1]:
        assert screen.read() and time.monotonic() < deadline, screen.text


def test_it_can_be_left_and_entered_again_and_maps_the_block_read_only(machine, terminal):
    for _time in range(2):
        screen = terminal()
        maps = Path(f"/proc/{screen.process.pid}/maps").read_text()
        mine = [line.split()[1] for line in maps.splitlines() if line.endswith(machine.name)]
        assert mine and all(access == "r--s" for access in mine)
        screen.press("q")
        assert screen.end() == 0
        assert screen.output.rstrip().endswith(b"\x1b[?25h") or b"\x1b[?1049l" in screen.output
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(terminal, number):
    screen = terminal()
    os.kill(screen.process.pid, number)
    assert screen.end() == 128 + number
    assert b"\x1b[?1049l" in screen.output and b"Traceback" not in screen.output


def test_ctrl_c_leaves_from_everywhere(terminal):
    for keys in ("", "/", "\r"):
        screen = terminal()
        if keys:
            screen.press(keys)
            screen.until("tasks that have this" if keys == "/" else "does not wait|waits ")
        screen.press("\x03")
        assert screen.end() == 0
        assert b"\x1b[?1049l" in screen.output


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, and somebody else")
def test_somebody_elses_machine_is_not_to_be_seen(machine):
    nobody = 65534
    done = subprocess.run([sys.executable, "-c", f"""if True:
        import os, sys
        from shmkern import cli
        os.setgroups([]), os.setgid({nobody}), os.setuid({nobody})
        sys.exit(cli.main(["top", "--once", "{machine.name}"]))
        """], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (2, f"shmkern top: {machine.name} cannot be read: Permission denied\n"), done


def test_a_machine_that_ends_is_a_sentence(machine, terminal):
    screen = terminal()
    name = machine.name
    machine.close()
    assert screen.end() == 0
    said = screen.output.split(b"\x1b[?1049l")[-1].decode()
    assert f"{name} has ended." in said


def test_a_machine_that_stops_leaves_its_report(machine, tasks, terminal):
    screen = terminal()
    page = page_at(tasks[1], tasks[1].va).address
    tasks[1].begin(lambda task: ksym.unlock_page(page))
    assert screen.end() == 1
    said = screen.output.split(b"\x1b[?1049l")[-1].decode()
    assert "has stopped" in said and "kernel BUG" in said and f"in task {tasks[1].pid} " in said
    machine.close()


# ---- without one -----------------------------------------------------------------------

def test_without_a_terminal_it_prints_once(machine, tasks):
    done = subprocess.run([sys.executable, *TOP, machine.name, "--interval", "0.3"], capture_output=True, text=True,
                          timeout=50)
    assert done.returncode == 0 and "\x1b" not in done.stdout and not done.stderr, done
    assert f"{machine.name}: 3 tasks" in done.stdout
    assert f"  {tasks[1].os_pid} " in row(tasks[1].pid, done.stdout)


def test_json_for_programs(machine, tasks, tmp_path):
    holder, waiter = tasks
    page = holder.locked
    waiter.begin(lambda task: ksym.wait_on_page_locked(page))
    until_waits(waiter, "WAIT_PAGE_LOCK")
    done = subprocess.run([sys.executable, *TOP, machine.name, "--interval", "0.3", "--json", "-"],
                          capture_output=True, text=True, timeout=50)
    sample = json.loads(done.stdout)
    holder(lambda task: ksym.unlock_page(page))
    waiter.reply()
    holder(lambda task: ksym.lock_page(page))
    found = {task["pid"]: task for task in sample["tasks"]}
    assert found[waiter.pid]["waits_for"] == f"page lock: page {pfn_at(holder, holder.va)}"
    assert found[waiter.pid]["waits_ms"] > 0 and f"task {holder.pid} " in found[waiter.pid]["held_by"]
    assert found[holder.pid]["pages"] == 3 and found[waiter.pid]["pages"] == 7
    assert sample["locks"] == [{"lock": "page lock: any page", "share": 1.0, "most": f"page {pfn_at(holder, holder.va)}"}]
    assert [node["frames"] for node in sample["nodes"]] == [1024, 1024]


@contextlib.contextmanager
def no_machines(tmp_path, monkeypatch):
    monkeypatch.setattr(direct_map, "SHM_DIR", tmp_path)
    yield


@pytest.mark.parametrize("args, words", [
    ([], ["no machine that runs"]), (["shmkern-1-nonsense"], ["no machine 'shmkern-1-nonsense'"]),
    (["../x"], ["no machine"]), (["--nonsense"], ["--nonsense"]), (["--interval", "0"], ["'0'"]),
    (["--json", "/nowhere/x"], ["/nowhere/x", "No such file"])])
def test_what_cannot_be_watched_is_a_sentence(args, words, tmp_path, monkeypatch, capsys):
    with no_machines(tmp_path, monkeypatch):
        try:
            status = cli.main(["top", *args])
        except SystemExit as stop:
            status = stop.code
    said = capsys.readouterr()
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert all(word in said.err for word in words), said.err


def test_a_lock_in_a_slab_object_has_the_name_of_what_it_is_in(tasks):
    anon_vma = page_at(tasks[0], tasks[0].va).mapping & ~1
    mm = mm_of(tasks[0])
    names = [report.describe(address) for address in (anon_vma, anon_vma + 8, mm.address + 8)]
    assert names[:2] == [f"anon_vma at {anon_vma:#x}", f"anon_vma at {anon_vma:#x} head"]
    assert names[2].startswith(f"mm {mm.id} ")
    waits = Counter({(C["WAIT_SPINLOCK"], anon_vma): 3})
    assert top.hottest(waits, 4) == [{"lock": "spinlock: any anon_vma", "share": 0.75, "most": names[0]}]


def test_a_task_that_is_new_has_done_all_that_it_did(machine, tasks):
    sampler = top.Sampler()
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(5 * PAGE))
    puppet(lambda task: task.store(va, b"x" * 5 * PAGE))
    sample = sampler.sample()
    faults = {row["pid"]: round(row["faults"] * sample["seconds"]) for row in sample["tasks"]}
    assert faults[puppet.pid] >= 4 and faults[tasks[0].pid] == 0


def test_a_machine_left_behind_is_not_watched(machine):
    process = subprocess.Popen([sys.executable, str(command.ENTRY), "stress", "anon", "--seconds", "300", "--workers",
                                "2"], stdout=subprocess.DEVNULL)

    def block():
        return next((block for block in cli.block_states() if block.supervisor == process.pid and block.nodes), None)
    name = until(block, "the block").name
    process.kill()
    process.wait()
    try:
        done = subprocess.run([sys.executable, *TOP, name], capture_output=True, text=True, timeout=50)
        assert done.returncode == 2 and "left behind" in done.stderr and len(done.stderr.splitlines()) == 1, done
    finally:
        assert cli.main(["rm", name]) == 0


def test_pointers_that_lead_nowhere_are_not_followed(machine, tasks):
    """A list that changes while it is read, or memory that was freed, may hold anything."""
    mm = mm_of(tasks[0])
    before = mm.mmap
    for wild in (0, 0xdeadbeef, direct_map.BASE + layout.header().size - 8, (1 << 64) - 4096):
        mm.mmap = wild
        assert peek.vmas(mm) == []
        assert top.task_lines(tasks[0].pid) is not None
    mm.mmap = before
