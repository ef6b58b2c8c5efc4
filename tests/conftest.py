# SPDX-License-Identifier: GPL-2.0-only
"""Every machine of the tests is made by `boot`: it is audited when the test is over, and a
process or block that is left behind fails the test."""
import contextlib
import ctypes
import fcntl
import gc
import mmap
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

# As in shmkern_entry.py, and for the commands that the tests start with `python -m`: numpy's threads
# spin for a tenth of a second in each process that begins.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# numpy imports them when they are first used, which would be in each task and forked process anew.
import numpy.ma  # noqa: F401
import numpy.random  # noqa: F401

# A shell has what it starts in the background ignore Ctrl-C, and nohup a hangup; and so would all that the tests start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

import shmkern
from shmkern import direct_map, layout


# Tests that bring scipy, matplotlib or a browser into this process.
HEAVY = {"test_soak", "test_report_html"}


def pytest_collection_modifyitems(items):
    """The heavy ones come last: a fork of this process, of which the tests make thousands, takes three
    times as long after them."""
    items.sort(key=lambda item: item.module.__name__ in HEAVY)


def pytest_collection_finish():
    """What is there now stays: no task, a fork of this process, looks through it for garbage, and so copies it."""
    gc.freeze()


# Processes that serve more than one test: they and their descendants are not left behind.
serving = []


def children(pid):
    """Pids of a process's children; none of one that has gone."""
    found = []
    with contextlib.suppress(OSError, psutil.Error):
        if not os.path.exists("/proc/thread-self/children"):    # a kernel that does not tell
            return [child.pid for child in psutil.Process(pid).children()]
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def our_processes():
    """Pids of this process's descendants, but for those that serve more than one test and theirs.  Each process is
    asked for its children: a look at all that the host has, before and after each test, takes long."""
    found, parents = set(), [os.getpid()]
    while parents:
        more = [pid for pid in children(parents.pop()) if pid not in serving]
        found.update(more)
        parents += more
    return found


def our_blocks():
    """Names of the blocks that this process made; others on the host run machines too."""
    return {name for name in direct_map.blocks() if name.startswith(f"{direct_map.PREFIX}{os.getpid()}-")}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fails a test that leaves a process or a block.  What it left is ended: multiprocess would
    wait for it when pytest ends."""
    processes, blocks = our_processes(), our_blocks()
    yield
    left = our_processes() - processes
    for pid in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert not left, "the test left processes behind"
    assert our_blocks() <= blocks, "the test left a block behind"


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """once(name, make) is a folder that make(folder) has filled, for all of pytest's processes: the
    first that asks has it made, the others wait for that."""
    # pytest-xdist gives each of its processes a folder of its own in that of the whole run.
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own

    def once(name, make):
        folder, done = shared / f"once-{name}", shared / f"once-{name}.done"
        with open(shared / f"once-{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                # There already if another process failed to make it.
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder
    return once


@pytest.fixture(scope="session")
def browser():
    """Chromium, headless, as a Browser of playwright's; for pages that must not need a network."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.fail("the pages are tested in Chromium: install the Debian package chromium")
    before = {process.pid for process in psutil.Process().children()}
    with sync_playwright() as playwright:
        serving.extend({process.pid for process in psutil.Process().children()} - before)
        browser = playwright.chromium.launch(executable_path=program, args=[
            "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
            "--disable-component-update", "--disable-sync"])
        yield browser
        browser.close()
        serving.clear()


@pytest.fixture
def show(browser):
    """show(path, scheme) opens a file in a window without a network.  What it asks for besides itself
    and what it complains of are in page.asked and page.complaints."""
    contexts = []

    def show(path, scheme="light", width=1150):
        context = browser.new_context(color_scheme=scheme, offline=True, viewport={"width": width, "height": 900})
        contexts.append(context)
        page = context.new_page()
        page.asked, page.complaints = [], []
        page.on("request", lambda request: page.asked.append(request.url))
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(f"file://{path}")
        return page
    yield show
    for context in contexts:
        context.close()


@pytest.fixture
def boot():
    """boot(**options) makes a Machine (small by default) that the test need not close."""
    machines = []

    def make(nodes=2, frames_per_node=1024, *, hung_task_timeout=20.0, **options):
        machine = shmkern.Machine(nodes, frames_per_node, hung_task_timeout=hung_task_timeout, **options)
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        # A test that broke its machine on purpose has closed it.
        if machine.is_open:
            try:
                machine.audit().raise_if_broken()
            finally:
                machine.close()


@pytest.fixture
def machine(boot):
    """A small machine: 2 nodes of 1024 frames."""
    return boot()


@pytest.fixture
def run(machine):
    """run(program, *args) is what the program returns as a task of `machine`."""
    return lambda program, *args: machine.spawn(program, *args).result(timeout=30)


@pytest.fixture
def stops():
    """stops(machine, program, *args, kind="kernel BUG") is the report of the machine, which the
    program must stop that way.  Closes the machine."""
    def stops(machine, program, *args, kind="kernel BUG"):
        with machine, pytest.raises(shmkern.KernelBug) as stopped:
            machine.spawn(program, *args).result(timeout=30)
        assert stopped.value.kind == kind, stopped.value.report
        return stopped.value.report
    return stops


@pytest.fixture
def until():
    """until(condition) returns when condition() is true, and fails when that takes 20 s."""
    def until(condition):
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, "it does not come to that"
            time.sleep(0.001)
    return until


@pytest.fixture
def shared():
    """shared(type, count) is zeroed memory outside the block that all tasks spawned later see
    at one address: a live struct (see layout.struct), or an array of scalars.  It begins on a
    cache line of its own."""
    memory = mmap.mmap(-1, 1 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    used = 0

    def shared(kind, count=None):
        nonlocal used
        start = address + used
        used += -(-layout.sizeof(kind) * (count or 1) // 64) * 64
        assert used <= len(memory)
        return layout.struct(kind, start) if kind in layout.dtypes else layout.view(kind, start, count or 1)
    yield shared


@pytest.fixture
def meet(shared):
    """meet(me) returns to tasks 0 and 1 at the same moment, whenever both have called it: as
    nearly as a store can be seen, so that what they do next collides."""
    turns = shared("u64", 16)

    def meet(me):
        mine, others = me * 8, 8 - me * 8
        turns[mine] += 1
        looks = 0
        while turns[others] < turns[mine]:
            looks += 1
            if looks % 1000 == 0:
                os.sched_yield()
    return meet
