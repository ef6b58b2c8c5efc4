# SPDX-License-Identifier: GPL-2.0-only
"""The explorer: it covers what it says, finds what is wrong, tells it, and does it again."""
import contextlib
import fcntl
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pexpect
import psutil
import pytest

import shmkern as shmkern_package

from helpers import until
from pages import CONTRAST, contrasts

SHMKERN = [sys.executable, "-m", "shmkern.cli"]
# What that becomes for `explore` and `replay`, which takes half the time to begin.
EXPLORER = [sys.executable, str(Path(shmkern_package.__file__).parent / "explore" / "__main__.py")]
QUICK = ["fault", "load", "store", "mremap", "mprotect", "move_pages_exit", "radix_delete"]
# A compiler and an exploration of thousands of schedules, on a machine that may be busy.
pytestmark = pytest.mark.timeout(600)


def shmkern(*arguments, status=0, program=EXPLORER, timeout=580, **options):
    """Runs the command and returns what it prints."""
    done = subprocess.run([*program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, **options)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def explore(tmp_path, *arguments, status=0):
    """The results of an exploration, and what it prints."""
    text = shmkern("explore", *arguments, "--json", tmp_path / "results", status=status, cwd=tmp_path)
    return json.loads((tmp_path / "results").read_text()), text


def scenario_file(folder, body):
    """A file with a scenario named `mine`, made of the lines of its body."""
    path = folder / "mine.py"
    path.write_text("from shmkern.explore.room import C, PAGE, scenario\n\n@scenario\ndef mine(room):\n"
                    + textwrap.indent(textwrap.dedent(body), "    "))
    return path


@pytest.fixture
def scenario(tmp_path):
    """scenario(body) is such a file."""
    return lambda body: scenario_file(tmp_path, body)


LOST_UPDATE = """
    one = room.task()
    va = one.mmap(PAGE)
    one.store64(va, 0)
    two = room.task(shares=one)
    def increment(task):
        task.store64(va, task.load64(va) + 1)
    room.program(one, increment)
    room.program(two, increment)
    room.check(lambda: one.load64(va) == 2)
"""


DEADLOCK = """
    one, two = room.task(), room.task()
    va = one.mmap(PAGE)
    one.store64(va, 1), one.store64(one.mmap(PAGE), 1)
    from shmkern import layout
    pages = [layout.kernel().mem_map + (one.frame_of(va) - i) * layout.sizeof("Page") for i in (0, 1)]
    def take(*order):
        def program(task):
            for page in order:
                task.kernel("lock_page", page)
            for page in order:
                task.kernel("unlock_page", page)
        return program
    room.program(one, take(*pages))
    room.program(two, take(*reversed(pages)))
"""


# ---- the shipped kernel ---------------------------------------------------------

def test_every_schedule_with_two_preemptions_holds(tmp_path):
    """Of the quick scenarios; `make explore` has all."""
    results, _text = explore(tmp_path, *QUICK, "--jobs", 2)
    assert [result["scenario"] for result in results] == QUICK
    for result in results:
        assert result["failure"] is None and result["exhausted"], result
        # The new page's lock, the counts and the PTE can be met in between: if they no longer
        # can, the explorer has gone blind.
        assert result["points"] >= 4 and result["states"] >= 1 and result["runs"] > 300, result


def test_every_schedule_with_one_preemption_holds_where_that_has_found_bugs(tmp_path):
    """A task that met a frozen page went on and on while who froze it had lost its CPU; the flusher
    read a page tree's tags while they were changed; a page that was swapped out meanwhile was taken
    for the writer's own; munlock passed over a page that was just being unmapped."""
    for result in explore(tmp_path, "load_file", "writeback", "reclaim_write", "munlock", "fork", "swap_in", "--preemptions", 1,
                          "--jobs", 2)[0]:
        assert result["failure"] is None and result["exhausted"] and result["points"] >= 7, result


def test_more_jobs_give_the_same_result(tmp_path, scenario):
    """What holds, and of what fails the same schedule, though several jobs meet one."""
    twenty = """for _ in range(20):
            task.store64(va, task.load64(va) + 1)"""
    path = scenario(LOST_UPDATE.replace("task.store64(va, task.load64(va) + 1)", twenty).replace("== 2", "> 20"))

    def of(jobs, *arguments, status=0):
        results = explore(tmp_path, *arguments, "--jobs", jobs, status=status)[0]
        return [{name: value for name, value in result.items() if name != "seconds"} for result in results]
    assert of(1, *PCT) == of(3, *PCT)
    found = [of(jobs, "fault", "mine", "--file", path, status=1) for jobs in (1, 3)]
    assert found[0] == found[1]
    holds, fails = found[0]
    assert holds["exhausted"] and fails["failure"]["kind"] == "lost data"


def test_there_are_no_more_processes_than_units(tmp_path):
    """As many as there are jobs would take more descriptors than there are."""
    text = shmkern("explore", *PCT, "--jobs", 2000, cwd=tmp_path,
                   preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128)))
    assert "held" in text


FEW_PROCESSES = """
import os, runpy, sys
fork, left = os.fork, int(sys.argv.pop(1))
def few():
    global left
    left -= 1
    if left < 0:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()
os.fork = few
sys.argv.pop(0)
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("processes", [0, 1, 2, 3])
def test_a_host_with_too_few_processes_is_one_sentence(processes):
    """The first is the scenario's, the others are jobs; those there are do not wait for the others."""
    text = shmkern("explore", "fault", "--jobs", 4, status=2, program=[sys.executable, "-c", FEW_PROCESSES, str(processes), EXPLORER[1]])
    assert text.splitlines()[1:] == ["shmkern explore: Resource temporarily unavailable"]


def test_a_job_that_is_killed_is_one_sentence():
    process = subprocess.Popen([*EXPLORER, "explore", "exit_", "--preemptions", "-1", "--jobs", "2"], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    explorer = psutil.Process(process.pid)

    def jobs():
        # What has ended meanwhile has no children.
        with contextlib.suppress(psutil.Error):
            return [job for child in explorer.children() for job in child.children()][1:]
    until(jobs, "the jobs")[0].kill()
    _out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (2, "shmkern explore: a job of the exploration of exit_ was killed\n")


PCT = ["two_faults", "--strategy", "pct", "--runs", 400]
SMALL = """
import random
from shmkern.explore.room import PAGE, scenario

def small(seed):
    "Three tasks of one address space read and change three words, and tell what they read."
    def small(room):
        rng, first = random.Random(seed), room.task()
        page = first.mmap(PAGE)
        words = [page, page + 8, page + 16]
        first.store64(page, 0)
        for task in (first, room.task(shares=first), room.task(shares=first)):
            task.fetch_add64(page, 0)
            arguments = {"load64": (), "store64": (rng.randrange(2, 9),), "fetch_add64": (1,), "cmpxchg64": (0, 7)}
            plan = [(rng.choice(["load64", *arguments]), rng.choice(words)) for _step in range(3)]
            room.program(task, lambda task, plan=plan, arguments=arguments: tuple(
                getattr(task, name)(word, *arguments[name]) for name, word in plan))
        def check(one, two, three):
            with open(f"seen-{seed}", "a") as file:
                print(one, two, three, [first.load64(word) for word in words], file=file)
        room.check(check)
    small.__name__ = f"small_{seed}"
    scenario(small)

for seed in range(5):
    small(seed)
"""


def test_what_is_left_out_leads_nowhere_else(tmp_path):
    """Small programs end in the same ways, read the same values on the way, whether every schedule with
    two preemptions is run or those are left out that are taken to be equivalent."""
    runs, ends = {}, {}
    for strategy in ("all", "dpor"):
        folder = tmp_path / strategy
        folder.mkdir()
        (folder / "small.py").write_text(SMALL)
        results, _text = explore(folder, "--file", "small.py", "--strategy", strategy)
        assert all(result["exhausted"] for result in results)
        runs[strategy] = sum(result["runs"] - 64 for result in results)
        ends[strategy] = {path.name: set(path.read_text().splitlines()) for path in folder.glob("seen-*")}
    assert ends["all"] == ends["dpor"] and sum(map(len, ends["all"].values())) > 50
    assert runs["dpor"] < 0.8 * runs["all"]


RANGE = """
    one = room.task()
    flag = one.mmap(2 * PAGE)
    data = flag + PAGE
    one.store64(flag, 0), one.store64(data, 0)
    two = room.task(shares=one)
    two.fetch_add64(flag, 0), two.fetch_add64(data, 0)
    def tell(task):
        task.store64(flag, 1)
        return task.load(data, {size})
    def answer(task):
        task.cmpxchg64(data, 0, 1 + task.load64(flag))
    room.program(one, tell)
    room.program(two, answer)
    room.check(lambda read, _none: not read.startswith(bytes([2])))
"""


@pytest.mark.parametrize("size", [16, 64, 4096])
def test_others_are_tried_before_words_are_read_at_once(tmp_path, scenario, size):
    """Somebody sees the flag and answers, in a word that is then copied with others: there is no access of
    a single word in between."""
    results, _text = explore(tmp_path, "--file", scenario(RANGE.format(size=size)), "--preemptions", 1, status=1)
    assert results[0]["failure"]["kind"] == "lost data"


@pytest.mark.parametrize("strategy", ["pct", "random"])
def test_sampling_runs_as_many_schedules_as_it_is_told(tmp_path, strategy):
    result = explore(tmp_path, "store", "--strategy", strategy, "--runs", 500, "--jobs", 2)[0][0]
    assert result["failure"] is None and result["runs"] >= 500 and not result["exhausted"]


# ---- what counts as wrong ---------------------------------------------------------

def test_a_lost_update_is_found_with_one_preemption_and_replayed(tmp_path):
    """With the text of docs/explore.md."""
    docs = (Path(shmkern_package.__file__).parent.parent / "docs" / "explore.md").read_text()
    path = tmp_path / "mine.py"
    path.write_text(textwrap.dedent(re.search(r"^    # mine.py\n(?:    .*\n|\n)+", docs, re.M).group()))
    results, text = explore(tmp_path, "--file", path, "--output", "lost", "--html", "page.html", status=1)
    assert results[0]["failure"]["kind"] == "lost data" and "lost data: the scenario's check does not hold" in text
    run, = json.loads((tmp_path / "lost").read_text())["runs"]
    assert sum(until != 0xffffffff for _task, until in run["segments"]) == 1
    assert "lost data" in shmkern("replay", tmp_path / "lost", status=1)
    page = (tmp_path / "page.html").read_text()
    assert json.loads(page.split('type="application/json">')[1].split("</script>")[0])["kind"] == "lost data"


@pytest.mark.parametrize("strategy", ["pct", "random"])
def test_sampling_finds_a_lost_update(tmp_path, scenario, strategy):
    results, _text = explore(tmp_path, "--file", scenario(LOST_UPDATE), "--strategy", strategy, status=1)
    assert results[0]["failure"]["kind"] == "lost data"


def test_a_store_to_a_frame_that_has_been_freed_is_found(tmp_path, scenario):
    """Though nobody gets the frame again, and the task itself has freed it: there is no race."""
    path = scenario("""
        from shmkern import layout
        one = room.task()
        file = room.file(one, [3])
        inode = layout.struct("AddressSpace", file.mapping).host
        def program(task):
            page = task.kernel("alloc_page", C["GFP_HIGHUSER_MOVABLE"])
            task.kernel("put_page", page)
            task.kernel("read_into_page", inode, page, 0, 2048)
        room.program(one, program)
        room.program(room.task(), lambda task: None)
    """)
    results, text = explore(tmp_path, "--file", path, status=1)
    assert results[0]["failure"]["kind"] == "audit" and "a free frame was written to" in text


def test_a_livelock_shows_what_is_done_again_and_again(tmp_path, scenario):
    """Two tasks wait for a writer that there is not; each gives its CPU away in between."""
    path = scenario("""
        from shmkern import layout
        one, two = room.task(), room.task()
        va = one.mmap(PAGE)
        one.store64(va, 1)
        count = layout.kernel().frames_base + one.frame_of(va) * PAGE
        room.program(one, lambda task: task.kernel("read_seqcount_begin", count))
        room.program(two, lambda task: task.kernel("read_seqcount_begin", count))
    """)
    results, text = explore(tmp_path, "--file", path, "--output", "live", status=1)
    assert results[0]["failure"]["kind"] == "livelock"
    again = shmkern("replay", tmp_path / "live", status=1)
    for told in (text, again):
        assert len(re.findall(r"locks.py:\d+ read_seqcount_begin", told)) == 2 and "come again and again" in told


def test_a_program_that_raises_is_why_another_waits_for_ever(tmp_path, scenario):
    path = scenario(DEADLOCK.replace("room.program(two, take(*reversed(pages)))", """def program(task):
        take(pages[0])(task)
        raise KeyError("nothing")
    def waiting(task):
        task.kernel("lock_page", pages[0]), task.kernel("lock_page", pages[0])
    room.programs.clear()
    room.program(one, waiting), room.program(two, program)"""))
    results, text = explore(tmp_path, "--file", path, status=1)
    assert results[0]["failure"]["kind"] == "error" and """task 2: KeyError: 'nothing' (raise KeyError("nothing"))""" in text


def test_a_deadlock_says_who_waits(tmp_path, scenario):
    results, text = explore(tmp_path, "--file", scenario(DEADLOCK), status=1)
    assert results[0]["failure"]["kind"] == "deadlock"
    assert len(re.findall(r"waits for a page lock at page\[\d+\]", text)) == 2


# A semaphore around both keeps the two apart: only the order is wrong.
CIRCLE = """
    from shmkern import layout, worker
    one = room.task()
    va = one.mmap(PAGE)
    one.store64(va, 0)
    two = room.task(shares=one)
    two.load64(va)
    gate = worker.slot(one.cpu).mm + layout.offsetof("MmStruct", "mmap_sem")
    locks = [layout.kernel().zones + layout.offsetof("Zone", "lru_lock"),
             worker.slot(one.cpu).address + layout.offsetof("Task", "pvec_lock")]
    def take(task, order):
        task.kernel("down_write", gate)
        for lock in order:
            task.kernel("spin_lock", lock)
        for lock in reversed(order):
            task.kernel("spin_unlock", lock)
        task.kernel("up_write", gate)
    def first(task):
        take(task, locks)
        task.store64(va, 1)
        task.store64(va, 2)
    def second(task):
        if task.load64(va) == 1:
            take(task, locks[::-1])
    room.program(one, first)
    room.program(two, second)
"""


def test_locks_taken_in_a_circle_are_found_without_the_deadlock(tmp_path, scenario):
    """And saved as a run for each order, with the fewest switches, whatever the number of jobs."""
    path, files = scenario(CIRCLE), []
    for jobs in (1, 3):
        results, text = explore(tmp_path, "--file", path, "--jobs", jobs, "--output", "circle", "--html", "circle.html", status=1)
        assert results[0]["failure"]["kind"] == "lock order"
        assert text.count("Nothing hung in these runs") == 1 and "saved: shmkern replay circle" in text
        files.append(((tmp_path / "circle").read_text(), {**results[0], "seconds": 0}))
    assert files[0] == files[1]
    runs = json.loads(files[0][0])["runs"]
    # The second task meets a 1 only if the first stands still meanwhile; the first comes first anyway.
    (_task, until), end = runs[0]["segments"]
    assert until < 0xffffffff and end == [1, 0xffffffff] and runs[1]["segments"] == [[0, 0xffffffff]]
    for run, held, wanted in zip(runs, ("cpu[1].pvec_lock", "zone[0].lru_lock"), ("zone[0].lru_lock", "cpu[1].pvec_lock")):
        assert [event["what"] for event in run["events"] if event["place"] == held and event["line"] == "the scenario's"] == ["taken"]
        assert run["events"][-1]["place"] == wanted
        assert run["events"][-1]["what"] == f"wanted with {held} held, since the scenario's spin_lock"


def test_which_schedule_shows_an_order_of_locks_does_not_depend_on_jobs(tmp_path, scenario):
    path = scenario(CIRCLE.replace("task.load64(va) == 1", "[task.load64(va) for _ in range(6)] == [0, 0, 1, 1, 2, 2]"))
    orders = [explore(tmp_path, "--file", path, "--strategy", "random", "--runs", 640, "--jobs", jobs,
                      status=1)[0][0]["failure"]["orders"] for jobs in (1, 3)]
    assert orders[0] == orders[1] and len(orders[0]) == 2


def test_a_circle_of_locks_is_replayed_until_the_code_changes(tmp_path, scenario):
    path = scenario(CIRCLE)
    explore(tmp_path, "--file", path, "--output", "circle", status=1)

    def replay(old, new, status):
        scenario(CIRCLE.replace(old, new))
        return shmkern("replay", tmp_path / "circle", status=status)
    text = replay("", "", 1)
    assert "run 1 of 2: " in text and "run 2 of 2: " in text and "Nothing hung in these runs" in text
    assert text.count("wanted with") == 2 and "lock order: locks are taken in a circle: Zone.lru_lock at" in text
    assert "mine: in run 2 no Task.pvec_lock is taken with Zone.lru_lock held any more (it was: lock order)" in \
        replay("take(task, locks)", "take(task, locks[::-1])", 0)
    assert "no longer applies: the code has changed" in replay("task.store64(va, 1)", "pass", 2)
    text = replay("room.program(two, second)", "room.program(two, second), room.check(lambda: False)", 1)
    assert "lost data: the scenario's check does not hold" in text and "Nothing hung" not in text


LOCKS = """
from shmkern import layout, worker
from shmkern.explore.room import C, PAGE, scenario
from shmkern.explore.scenarios_files import cached_page

def alone(room, task, *steps):
    "Each step is a kernel function and its arguments; another task does nothing."
    def program(task):
        for step in steps:
            task.kernel(*step)
    room.program(task, program)
    room.program(room.task(), lambda task: None)

def locks(room):
    user, va, file, _migrator = cached_page(room, fs="buffer")
    mm = worker.slot(user.cpu).mm
    page = room.page_of(user, va)
    return user, mm + layout.offsetof("MmStruct", "mmap_sem"), page, file.mapping

def both_orders(room, trylock):
    user, sem, page, _mapping = locks(room)
    alone(room, user, ("down_write", sem), ("lock_page", page), ("unlock_page", page), ("up_write", sem),
          ("lock_page", page), ("down_read_trylock" if trylock else "down_read", sem), ("up_read", sem), ("unlock_page", page))

@scenario
def page_and_semaphore(room):
    both_orders(room, False)

@scenario
def only_tried(room):
    both_orders(room, True)

@scenario
def two_pages(room):
    user, _sem, page, _mapping = locks(room)
    other = user.kernel("alloc_page", C["GFP_HIGHUSER_MOVABLE"])
    room.begins_whole = False
    alone(room, user, ("lock_page", page), ("lock_page", other), ("unlock_page", other), ("unlock_page", page),
          ("put_page", other))

@scenario
def read_twice(room):
    user, sem, _page, _mapping = locks(room)
    alone(room, user, ("down_read", sem), ("down_read", sem), ("up_read", sem), ("up_read", sem))

@scenario
def buffer_and_page(room):
    user, _sem, page, mapping = locks(room)
    bh = int(layout.struct("Page", page).private)
    alone(room, user, ("lock_page", page), ("lock_buffer", bh), ("unlock_buffer", bh), ("unlock_page", page),
          ("lock_buffer", bh), ("lock_page", page), ("unlock_page", page), ("unlock_buffer", bh))

@scenario
def in_the_kernel(room):
    user = room.task()
    user.store64(user.mmap(PAGE), 1)        # a page that is in the task's pagevec
    pvec_lock = worker.slot(user.cpu).address + layout.offsetof("Task", "pvec_lock")
    lru_lock = layout.kernel().zones + layout.offsetof("Zone", "lru_lock")
    alone(room, user, ("spin_lock", lru_lock), ("spin_lock", pvec_lock), ("spin_unlock", pvec_lock),
          ("spin_unlock", lru_lock), ("lru_add_drain",))
"""


def test_what_lockdep_would_say_is_said_with_the_lines(tmp_path):
    """One task is enough: no two orders have to meet."""
    (tmp_path / "locks.py").write_text(LOCKS)
    results, _text = explore(tmp_path, "--file", "locks.py", status=1)
    texts = {result["scenario"]: result["failure"]["text"] for result in results if result["failure"]}
    assert {result["failure"]["kind"] for result in results if result["failure"]} == {"lock order"}
    assert "only_tried" not in texts and len(results) == len(texts) + 1
    for name, wanted in {
            "page_and_semaphore": "in a circle: PG_locked at the scenario's lock_page with MmStruct.mmap_sem held since the "
                                  "scenario's down_write; MmStruct.mmap_sem at the scenario's down_read with PG_locked",
            "two_pages": "a second PG_locked is taken at .*, and no rule says in which order",
            "read_twice": "MmStruct.mmap_sem is taken at .* by a task that holds it since",
            "buffer_and_page": "in a circle: buffer lock at .* with PG_locked held since .*; PG_locked at .* with buffer lock",
            "in_the_kernel": r"Zone.lru_lock at lru.py:\d+ \w+ with Task.pvec_lock held since lru.py:\d+ drain_"}.items():
        assert re.search(wanted, texts[name]), texts[name]


def test_a_wild_pointer_is_a_finding_and_no_crash(tmp_path, scenario):
    path = scenario("""
        one, two = room.task(), room.task()
        room.program(one, lambda task: task.kernel("page_count", 64))
        room.program(two, lambda task: None)
    """)
    results, text = explore(tmp_path, "--file", path, status=1)
    assert results[0]["failure"]["kind"] == "bad pointer"
    assert re.search(r"task 1 follows a pointer to 0x\w+ at \w+.pyx?d?:\d+ page_count", text), text


def test_a_broken_invariant_is_a_finding_with_its_line(tmp_path, scenario):
    path = scenario("""
        one, two = room.task(), room.task()
        room.program(one, lambda task: task.kernel("rcu_read_unlock"))
        room.program(two, lambda task: None)
    """)
    results, text = explore(tmp_path, "--file", path, status=1)
    assert results[0]["failure"]["kind"] == "kernel BUG" and "rcu.pxd:" in text


def test_what_ends_a_run_in_its_middle_is_replayed(tmp_path, scenario):
    """In a process that has run nothing before."""
    path = scenario("""
        one = room.task()
        va = one.mmap(PAGE)
        one.store64(va, 0)
        two = room.task(shares=one)
        def program(task):
            task.store64(va, 1)
            task.store64(va, 2)
        room.program(one, program)
        room.program(two, lambda task: task.load64(va) == 1 and task.kernel("rcu_read_unlock"))
    """)
    explore(tmp_path, "--file", path, "--output", "bug", status=1)
    assert "kernel BUG in task 2: " in shmkern("replay", tmp_path / "bug", status=1)


def test_a_reference_that_is_never_dropped_is_found_by_the_audit(tmp_path, scenario):
    path = scenario("""
        one, two = room.task(), room.task()
        va = one.mmap(PAGE)
        one.store64(va, 1)
        from shmkern import layout
        page = layout.kernel().mem_map + one.frame_of(va) * layout.sizeof("Page")
        room.program(one, lambda task: task.kernel("get_page", page))
        room.program(two, lambda task: None)
    """)
    results, text = explore(tmp_path, "--file", path, status=1)
    assert results[0]["failure"]["kind"] == "audit" and "refcount" in text


def test_what_is_broken_only_for_a_while_is_found_when_nobody_is_inside_the_kernel(tmp_path, scenario):
    """A reference too many, which is dropped before the end but not before the next system call."""
    body = """
        one, two = room.task(), room.task()
        va = one.mmap(PAGE)
        one.store64(va, 1)
        from shmkern import layout
        from shmkern.kallsyms import ksym
        page = layout.kernel().mem_map + one.frame_of(va) * layout.sizeof("Page")
        def program(task):
            call = {call}
            call("get_page", page)
            task.mmap(PAGE)
            call("put_page", page)
        room.program(one, program)
        room.program(two, lambda task: None)
    """
    path = scenario(body.format(call="lambda name, page: getattr(ksym, name)(page)"))
    results, text = explore(tmp_path, "--file", path, "--output", "broken", status=1)
    assert results[0]["failure"]["kind"] == "audit" and "refcount" in text
    assert "while nobody is inside the kernel, task 1 having just left" in shmkern("replay", tmp_path / "broken", status=1)
    # A program that says that it calls the kernel by hand may hold what it likes.
    explore(tmp_path, "--file", scenario(body.format(call="task.kernel")))


def test_a_run_writes_to_the_host_and_that_is_undone(tmp_path, scenario):
    """Each run finds the file as it was, in every job."""
    path = scenario("""
        from shmkern.explore.scenarios_files import NEW, OLD, cached_page, migrate_frame
        user, va, file, migrator = cached_page(room, dirty=True)
        def sync(task):
            found = file.word(0)
            task.fsync(file.fd)
            return found, file.word(0)
        room.program(user, sync)
        room.program(migrator, migrate_frame(user, va))
        room.check(lambda words, _stayed: words == (OLD, NEW))
    """)
    results, _text = explore(tmp_path, "--file", path, "--jobs", 2, "--preemptions", 1)
    assert results[0]["failure"] is None and results[0]["runs"] > 200


def test_transfers_of_one_page_that_nothing_orders_are_a_race(tmp_path, scenario):
    path = scenario("""
        one, two = room.task(), room.task()
        file = room.file(one, [1])
        page = one.kernel("alloc_page", 0xd0)
        from shmkern import layout
        inode = layout.struct("AddressSpace", file.mapping).host
        memory = one.kernel("page_address", page)
        room.begins_whole = False
        room.program(one, lambda task: task.kernel("host_write", inode, memory, 4096, 0))
        room.program(two, lambda task: task.kernel("host_read", inode, memory + 2048, 512, 512))
    """)
    results, text = explore(tmp_path, "--file", path, status=1)
    assert results[0]["failure"]["kind"] == "data race"
    # Both accesses are rows of the table, though no word is the same.
    assert "frame[65]+0x0: 4096 bytes read" in text and "frame[65]+0x800: 512 bytes written" in text


# ---- looking at a finding ---------------------------------------------------------------

# One of several threads "hits" a breakpoint.
STOPPED = r"(?:^|hit )Breakpoint \d, (\w+)"


@pytest.fixture
def saved(tmp_path, once):
    """A copy of the file that the exploration of a deadlock has left; its page is beside it."""
    def find(folder):
        path = scenario_file(folder, DEADLOCK)
        explore(folder, "--file", path, "--output", "deadlock", "--html", "deadlock.html", status=1)
    shutil.copytree(once("deadlock", find), tmp_path, dirs_exist_ok=True)
    return tmp_path / "deadlock"


def test_page_of_a_finding_is_stepped_through_in_light_and_dark(saved, show):
    events = json.loads(saved.read_text())["runs"][0]["events"]
    changed = next(number for number, event in enumerate(events) if number and " → " in event["what"])
    switches = [number for number in range(changed + 1, len(events))
                if events[number]["task"] != events[number - 1]["task"]]
    assert switches
    path = saved.with_suffix(".html")
    for scheme in ("light", "dark"):
        page = show(path, scheme)
        rows, at, memory = page.locator("tbody tr"), page.locator("#at"), page.locator("#memory")

        def now(page=page):
            return page.evaluate("() => [...document.querySelectorAll('tbody tr')].findIndex(e => e.className.includes('now'))")
        assert page.locator("h1").inner_text() == "mine: deadlock" and "page lock" in page.locator("#text").inner_text()
        assert rows.count() == len(events) and now() == 0 and at.inner_text() == f"step 1 of {len(events)}"
        page.get_by_role("button", name="one step back", exact=True).click()
        assert now() == 0
        # Forward to the first change, which the memory shows from there on and not before.
        for _step in range(changed):
            page.get_by_role("button", name="one step on", exact=True).click()
        assert now() == changed and events[changed]["place"] in memory.inner_text()
        assert memory.locator("dt.changed + dd").inner_text() == events[changed]["what"].split(" → ")[1]
        shown = memory.inner_text()
        page.keyboard.press("ArrowLeft")
        assert now() == changed - 1 and memory.inner_text() != shown
        page.keyboard.press("ArrowRight")
        assert now() == changed and memory.inner_text() == shown
        for switch in switches:
            page.locator("#switch").click()
            assert now() == switch
        rows.nth(1).click()
        assert now() == 1
        page.locator("#last").click()
        page.keyboard.press("ArrowRight")
        assert now() == len(events) - 1 and rows.nth(len(events) - 1).is_visible()
        assert "asleep" not in memory.inner_text()
        found = contrasts(page)
        assert len(found) > 2 * len(events) and min(found) >= CONTRAST
        page.locator("#first").click()
        assert now() == 0 and page.asked == [f"file://{path}"] and page.complaints == []


def test_a_table_fits_the_terminal(saved):
    terminal = pexpect.spawn(EXPLORER[0], [EXPLORER[1], "replay", str(saved)], timeout=60, encoding="utf-8", dimensions=(24, 80))
    terminal.expect(pexpect.EOF)
    terminal.close()
    rows = terminal.before.partition("deadlock: ")[0].splitlines()
    assert len(rows) > 5 and 70 < max(map(len, rows)) <= 80, terminal.before


def test_page_and_debugger_show_the_runs_of_a_circle_of_locks(tmp_path, scenario, show):
    """The page has a title over each run and the memory of one run at a time; gdb stops where the second
    lock is taken, too."""
    explore(tmp_path, "--file", scenario(CIRCLE), "--output", "circle", "--html", "circle.html", status=1)
    runs = json.loads((tmp_path / "circle").read_text())["runs"]
    page = show(tmp_path / "circle.html")
    assert [title.split(": ")[0] for title in page.locator("th.run").all_inner_texts()] == ["run 1 of 2", "run 2 of 2"]
    assert "Nothing hung in these runs" in page.locator("#text").inner_text()
    for _switch in range(2):        # to the second task, and to the second run
        page.locator("#switch").click()
    assert page.locator("#at").inner_text() == f"step {len(runs[0]['events']) + 1} of {sum(len(run['events']) for run in runs)}"
    assert page.locator("tr.now").inner_text().count("taken") == 1 and page.locator("#memory").inner_text() == ""
    assert page.complaints == []
    text = shmkern("replay", "circle", "--gdb", input="run\n" + "backtrace 1\ncontinue\n" * 3, cwd=tmp_path)
    assert re.findall(STOPPED, text, re.M) == ["switch_to", "lock_shown", "lock_shown"]


def test_replay_under_gdb_stops_at_each_switch_in_the_kernel(saved):
    assert "there is no gdb; install the Debian package gdb" in \
        shmkern("replay", saved, "--gdb", status=2, env=os.environ | {"PATH": str(saved.parent)})
    switches = len(json.loads(saved.read_text())["runs"][0]["switches"])
    text = shmkern("replay", saved, "--gdb", input="run\n" + "backtrace\ncontinue\n" * (switches + 1))
    assert len(re.findall(STOPPED, text, re.M)) >= switches > 0
    assert re.search(r"in __pyx_f_7shmkern_5locks_\w+ .*\n? *at shmkern/locks.py:", text), text
    assert "deadlock: no task can go on" in text


# ---- files and interruptions ----------------------------------------------------------

def test_a_schedule_for_other_code_says_so(tmp_path, scenario):
    path = scenario(LOST_UPDATE)
    explore(tmp_path, "--file", path, "--output", "lost", status=1)
    saved = json.loads((tmp_path / "lost").read_text())
    saved["runs"][0]["switches"][0][1] = "page.flags = 0"
    (tmp_path / "lost").write_text(json.dumps(saved))
    assert "no source has changed" in shmkern("replay", tmp_path / "lost", status=2)
    (tmp_path / "lost").write_text(json.dumps(saved | {"source": "another"}))
    assert "no longer applies: the code has changed" in shmkern("replay", tmp_path / "lost", status=2)
    path.write_text(path.read_text().replace("load64(va) + 1", "load64(va) * 0 + 2"))
    saved["runs"][0]["switches"] = []
    (tmp_path / "lost").write_text(json.dumps(saved))
    assert "no longer applies" in shmkern("replay", tmp_path / "lost", status=2)


def test_an_interrupted_exploration_goes_on_to_the_same_result(tmp_path, scenario, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    body = """
        import os, signal
        one = room.task()
        va = one.mmap(PAGE)
        two = room.task(shares=one)
        stop = os.environ.get("STOP_AFTER")
        runs = []
        def program(task):
            runs.append(0)
            if stop and len(runs) == int(stop):
                os.kill(os.getpid(), signal.SIGINT)
            task.store64(va, 1)
        room.program(one, program)
        room.program(two, lambda task: task.store64(va + 8, 2))
    """
    path = scenario(body)
    arguments = ["--file", path, "--preemptions", 1]
    whole = explore(tmp_path, *arguments)[0][0]
    monkeypatch.setenv("STOP_AFTER", str(whole["runs"] - 50))
    part, text = explore(tmp_path, *arguments, status=128 + signal.SIGINT)
    assert part[0]["interrupted"] and not part[0]["exhausted"] and "--resume" in text
    monkeypatch.delenv("STOP_AFTER")
    rest = explore(tmp_path, *arguments, "--resume")[0][0]
    assert {**rest, "seconds": 0} == {**whole, "seconds": 0}
    assert "no exploration of mine was interrupted" in shmkern("explore", *arguments, "--resume", status=2)


def test_an_interrupted_exploration_goes_on_to_the_same_order_of_locks(tmp_path, scenario, monkeypatch):
    """Of two scenarios, in the one that was interrupted: the other was done before."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    body = CIRCLE.replace("    def first(task):", """    import os, signal
    runs = []
    def first(task):
        runs.append(0)
        if len(runs) == int(os.environ.get("STOP_AFTER", 0)):
            os.kill(os.getpid(), signal.SIGINT)""")
    arguments = ["buffer_lock", "mine", "--file", scenario(body), "--preemptions", 1]
    whole = explore(tmp_path, *arguments, status=1)[0][1]
    monkeypatch.setenv("STOP_AFTER", str(whole["runs"] - 2))
    part, text = explore(tmp_path, *arguments, status=1)
    assert [result["interrupted"] for result in part] == [False, True] and "go on with --resume" in text
    monkeypatch.delenv("STOP_AFTER")
    rest, = explore(tmp_path, *arguments, "--resume", status=1)[0]
    assert {**rest, "seconds": 0} == {**whole, "seconds": 0}


def test_ctrl_c_at_a_terminal_keeps_what_jobs_have_done(tmp_path, scenario, monkeypatch):
    """The jobs stand still in their middle when it comes; then they end at once, and another number of
    jobs goes on to the same result."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = scenario("""
        import fcntl, os
        one, two = room.task(), room.task()
        va, other = one.mmap(PAGE), two.mmap(PAGE)
        stop, runs = os.environ.get("STOP_AFTER"), []
        def program(task):
            runs.append(0)
            if stop and len(runs) == int(stop):
                open("reached", "w").close()
                with open("lock") as lock:
                    fcntl.flock(lock, fcntl.LOCK_SH)
            task.store64(va, 1)
        room.program(one, program)
        room.program(two, lambda task: task.store64(other, 2))
    """)
    arguments = ["--file", path, "--preemptions", 1]
    whole = explore(tmp_path, *arguments)[0][0]
    # So early in a round that no job is left to do the other's units.
    stop = 65 + (whole["runs"] - 65) // whole["rounds"] // 6
    with open(tmp_path / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = pexpect.spawn(sys.executable, [*SHMKERN[1:], "explore", *map(str, arguments), "--jobs", "2"], timeout=60,
                                cwd=str(tmp_path), env=os.environ | {"STOP_AFTER": str(stop)})
        until((tmp_path / "reached").exists, "a job comes to the run at which it waits")
        process.sendintr()
        process.expect_exact("mine: stopping")
    process.expect("go on with --resume")
    process.expect("interrupted")
    process.expect(pexpect.EOF)
    process.close()
    assert process.exitstatus == 128 + signal.SIGINT
    saved = json.loads(next((tmp_path / "state").rglob("explore-mine.json")).read_text())
    assert 1 < len(saved["units"]) < 17
    rest = explore(tmp_path, *arguments, "--jobs", 3, "--resume")[0][0]
    assert {**rest, "seconds": 0} == {**whole, "seconds": 0}


@pytest.mark.parametrize("arguments, sentence", [
    (["explore", "nothing"], "there is no scenario 'nothing'"),
    (["explore", "--file", "nowhere.py"], "there is no file nowhere.py"),
    (["explore", "fault", "store", "--html", "x"], "are for one scenario"),
    *((["explore", "--museum", "no_tlb_flush", *more], f"--museum does without {more[0]}: each piece has its scenario, "
       "explored at 2 preemptions")
      for more in (["--html", "x"], ["--output", "x"], ["--preemptions", "3"], ["--steps", "5"], ["--strategy", "pct"],
                   ["--runs", "5"], ["--depth", "2"], ["--seed", "2"], ["--seconds", "1"], ["--resume"],
                   ["--file", "x"], ["--with-museum"])),
    (["explore", "--museum", "no_tlb_flush", "--json", "nowhere/x"],
     "nowhere/x cannot be written: No such file or directory"),
    (["explore", "fault", "--output", "nowhere/x"], "nowhere/x cannot be written: No such file or directory"),
    (["explore", "fault", "--seconds", "-1"], "'-1' is not a time in seconds"),
    (["explore", "fault", "--preemptions", "63"], "'63' is not a whole number from -1 to 62"),
    (["explore", "fault", "--depth", "99999999999"], "'99999999999' is not a whole number from 1 to 16"),
    (["explore", "fault", "--depth", "0"], "'0' is not a whole number from 1 to 16"),
    (["explore", "fault", "--preemptions", "many"], "'many' is not a whole number"),
    (["replay", "nowhere"], "there is no file nowhere"),
    (["replay", __file__], "is no schedule"),
    (["replay", "."], ". cannot be read: Is a directory"),
])
def test_what_cannot_be_done_is_said_in_a_sentence(tmp_path, arguments, sentence):
    text = shmkern(*arguments, status=2, cwd=tmp_path)
    assert sentence in text and "Traceback" not in text


@pytest.mark.parametrize("body, sentence", [
    ("pass", "mine cannot be set up: ValueError: a scenario has 2 to 4 programs, not 0\n"),
    ("room.task().load64(0x123)", "mine cannot be set up: SegmentationFault: load at 0x123 (room.task().load64(0x123))"),
    ("room.task().kernel('rcu_read_unlock')", "mine: kernel BUG: an assertion does not hold, shmkern/rcu.pxd:"),
])
def test_a_scenario_that_cannot_be_set_up_says_why(tmp_path, scenario, body, sentence):
    text = shmkern("explore", "--file", scenario(body), status=2, cwd=tmp_path)
    assert sentence in text and "Traceback" not in text


def test_a_scenario_that_waits_for_itself_is_not_waited_for(tmp_path, scenario):
    """A minute, for the hung-task limit."""
    path = scenario("""
        one = room.task()
        va = one.mmap(PAGE)
        one.store64(va, 1)
        one.kernel("lock_page", room.page_of(one, va))
        one.kernel("lock_page", room.page_of(one, va))
    """)
    text = shmkern("explore", "--file", path, status=2, cwd=tmp_path, timeout=50)
    assert "mine: hung task: a task waits longer than the hung-task limit\n" in text


@pytest.mark.parametrize("text, sentence", [
    ("raise SystemExit(3)", "mine cannot be run: SystemExit: 3"),
    ("fault = 1", "mine has no scenario: a function with @scenario of shmkern.explore.room"),
])
def test_a_file_without_scenarios_says_so(tmp_path, text, sentence):
    (tmp_path / "mine").write_text(text)
    text = shmkern("explore", "--file", "mine", status=2, cwd=tmp_path)
    assert sentence in text and "Traceback" not in text


def test_a_scenario_of_ones_own_may_have_the_name_of_another(tmp_path, scenario):
    path = scenario(LOST_UPDATE)
    path.write_text(path.read_text().replace("def mine(", "def fault("))
    results, _text = explore(tmp_path, "--file", path, status=1)
    assert [(result["scenario"], result["failure"]["kind"]) for result in results] == [("fault", "lost data")]


PROBE = """
import sys
from pathlib import Path
from shmkern.explore import findings
for path in sorted(Path.cwd().glob("try-*")):
    try:
        print(path.name, findings.load(path).scenario)
    except ValueError as error:
        print(error)
"""


def test_a_file_that_is_no_schedule_is_not_loaded(tmp_path, saved):
    """The runtime believes what it is given.  A file of scenarios is run in the explorer's process."""
    good = json.loads(saved.read_text())
    run, end = good["runs"][0], [0, 0xffffffff]
    wrong = [5, [], {}, {"format": 2}, good | {"runs": []}, good | {"scenario": 5}, good | {"more": 1},
             *(good | {"runs": [run | {"segments": segments}]} for segments in (
                 [], [[0, 5]], [[2, 5], end], [[0, 0], end], [[0, -1], end], [[0, "x"], end], [[0.5, 7], end], [end] * 9000)),
             *(good | {"runs": [run | change]} for change in (
                 {"switches": 5}, {"switches": [5]}, {"events": [5]}, {"order": 5}, {"order": {"edge": [1]}}))]
    contents = [json.dumps(data).encode() for data in wrong] + [b"\xff\x00", b"", b"{", b"[" * 200_000]
    for number, content in enumerate(contents):
        (tmp_path / f"try-{number}").write_bytes(content)
    (tmp_path / "try-good").write_bytes(saved.read_bytes())
    (tmp_path / "try-old").write_text(json.dumps(good | {"format": 1}))
    (tmp_path / "probe.py").write_text(PROBE)
    lines = shmkern("explore", "--list", "--file", "probe.py", cwd=tmp_path).splitlines()
    assert sum("is no schedule that shmkern explore has saved" in line for line in lines) == len(contents)
    assert "try-good mine" in lines and any("try-old is of another version of shmkern" in line for line in lines)


# ---- the museum ----------------------------------------------------------------------

def test_bugs_that_linux_had_are_found_and_nothing_without_them(tmp_path):
    """One of them; `make explore` has all."""
    text = shmkern("explore", "--museum", "no_tlb_flush", "--json", "verdicts", cwd=tmp_path)
    verdicts = json.loads((tmp_path / "verdicts").read_text())
    assert [verdict["right"] for verdict in verdicts] == [True], text
    assert "without the patches nothing fails (1 scenarios)" in text


def test_no_more_preemptions_are_claimed_than_are_counted(tmp_path):
    assert "exhausted at 62 preemptions" in explore(tmp_path, "buffer_lock", "--preemptions", -1)[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_museum_that_is_told_to_end_leaves_nothing(tmp_path, number):
    """Neither the trees that it builds in, nor the builders."""
    museum = subprocess.Popen([*EXPLORER, "explore", "--museum", "no_tlb_flush", "rss_of_entry", "--jobs", "2"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(tmp_path)})
    process = psutil.Process(museum.pid)

    def builds():
        # What has ended meanwhile has no command line.
        with contextlib.suppress(psutil.Error):
            return sum("setup.py" in child.cmdline() for child in process.children()) == 2
    until(builds, "two builds")
    children = process.children(recursive=True)
    museum.send_signal(number)
    said, errors = museum.communicate(timeout=40)
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert museum.returncode == 128 + number and errors == "", (said, errors)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_scenarios_are_explored_with_the_bugs_that_they_show(tmp_path):
    """As `make explore` does with all; first_touch shows none."""
    text = shmkern("explore", "first_touch", "--preemptions", 1, "--with-museum", "--jobs", 2, "--json", "both", cwd=tmp_path)
    both = json.loads((tmp_path / "both").read_text())
    assert [result["scenario"] for result in both["scenarios"]] == ["first_touch"] and both["museum"] == []
    assert "exhausted at 1 preemption\n" in text and "0 of 0 found" in text


def test_a_node_is_isolated_and_is_not_any_more_within_an_allocation():
    """With three preemptions, one more than `make explore` has: before the node is isolated, while it is, and after."""
    assert "exhausted at 3 preemptions" in shmkern("explore", "isolated_fault", "--preemptions", 3)


def test_a_module_that_the_explorer_has_not_is_told(tmp_path):
    """`make stress` compiles the shipped kernel alone, and takes the explorer's module away that is out of date."""
    package = Path(shmkern_package.__file__).parent
    kernel = tmp_path / "shmkern" / "explore" / "kernel"
    kernel.mkdir(parents=True)
    for name in ("__main__.py", "flavour.py", *(path.name for path in package.glob("explore/runtime.*.so"))):
        shutil.copy(package / "explore" / name, kernel.parent)
    for name in ("one", "two"):
        (tmp_path / "shmkern" / f"{name}.so").touch()
    (kernel / "one.so").touch()
    program = [sys.executable, str(kernel.parent / "__main__.py")]
    assert shmkern("explore", program=program, status=1) == \
        "shmkern: the explorer is not compiled: run `make build` in shmkern's source tree\n"


def test_every_patch_of_the_museum_fits_todays_source(tmp_path):
    patches = sorted((Path(shmkern_package.__file__).parent / "explore" / "museum").glob("*.patch"))
    assert len(patches) >= 31
    told = (Path(shmkern_package.__file__).parent.parent / "docs" / "explore.md").read_text()
    scenarios = {line.split()[0] for line in shmkern("explore", "--list").splitlines()}
    for patch in patches:
        fields = dict(re.findall(r"^(\w+): (.*)", patch.read_text(), re.M))
        assert fields["Scenario"] in scenarios and fields["Symptom"] and fields["Linux"], patch.name
        assert f"| `{patch.stem}` |" in told, patch.name
        done = subprocess.run(["patch", "--dry-run", "--batch", "--forward", "-p1", "-i", patch], capture_output=True,
                              text=True, cwd=Path(shmkern_package.__file__).parent.parent)
        assert done.returncode == 0, f"{patch.name}: {done.stdout}"


def test_the_list_has_a_sentence_for_each_scenario():
    lines = shmkern("explore", "--list").splitlines()
    assert {"fault", "store", "migrate_twice", "forked_exit"} <= {line.split()[0] for line in lines}
    assert all(len(line.split()) > 3 for line in lines)
    told = (Path(shmkern_package.__file__).parent.parent / "docs" / "explore.md").read_text()
    assert [line.split()[0] for line in lines if f"| `{line.split()[0]}` |" not in told] == []


def test_a_finding_that_cannot_be_written_is_a_finding_all_the_same(tmp_path, scenario):
    """What cannot be written is told, and the other results are."""
    path = scenario(LOST_UPDATE)
    for more in (["--output", "/dev/full", "--json", "j"], ["--html", "/dev/full", "--json", "j"], ["--json", "/dev/full"]):
        text = shmkern("explore", "--file", path, "--preemptions", 1, *more, status=1, cwd=tmp_path)
        assert text.endswith("shmkern explore: /dev/full cannot be written: No space left on device\n"
                             if "--json" != more[0] else "cannot be written to /dev/full: No space left on device\n"), text
        if "j" in more:
            assert json.loads((tmp_path / "j").read_text())[0]["failure"]["kind"] == "lost data"
            (tmp_path / "j").unlink()
    text = shmkern("replay", "mine.schedule", "--html", "/dev/full", "--json", "j", status=1, cwd=tmp_path)
    assert text.endswith("shmkern replay: /dev/full cannot be written: No space left on device\n")
    assert json.loads((tmp_path / "j").read_text())["kind"] == "lost data"


@pytest.mark.parametrize("arguments, words", [
    (["explore", "buffer_lock"], "exhausted"), (["explore", "--list"], "buffer_lock "),
    (["explore", "first_touch", "--preemptions", "0", "--with-museum"], "0 of 0 found"), (["replay", "mine.schedule"], "lost data: ")],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_json_on_the_standard_output_is_alone_there(tmp_path, scenario, arguments, words):
    """So a program can read it.  What is there for people is on the standard error."""
    if arguments[0] == "replay":
        shmkern("explore", "--file", scenario(LOST_UPDATE), "--preemptions", 1, status=1, cwd=tmp_path)
    done = subprocess.run([*EXPLORER, *arguments, "--json", "-"], capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert json.loads(done.stdout)
    assert words in done.stderr


def test_the_list_is_written_as_json(tmp_path):
    lines = shmkern("explore", "--list", "--json", "list", cwd=tmp_path).splitlines()
    listed = json.loads((tmp_path / "list").read_text())
    assert [f"{one['scenario']} {one['text']}" for one in listed] == [" ".join(line.split()) for line in lines]
