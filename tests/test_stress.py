# SPDX-License-Identifier: GPL-2.0-only
"""Promises of the stress scenarios: they hold on a machine that is whole, tasks really meet
migration entries, and each kind of damage, planted from outside or in a worker, is found
and named.  All with real processes."""
import argparse
import contextlib
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shmkern import bulk, direct_map, freezer, layout, replay, vmstat, worker
from shmkern_stress import anon, board, common, fork, harness, threads

pytestmark = pytest.mark.timeout(120)

C = layout.constants
PAGE = 4096
KEYS = {"scenario", "seed", "seconds", "workers", "nodes", "frames", "accesses", "faults", "migration_waits",
        "wait_p50_us", "wait_p99_us", "pages_migrated", "pages_per_second", "migrate_failed", "migrate_retried",
        "tlb_shootdowns", "lost_writes", "audit"}


@pytest.fixture(scope="module")
def trace_file(tmp_path_factory):
    """A small trace: a loop over an array, a stack, and accesses across page boundaries."""
    lines = ["==1== Lackey"]
    for number in range(20000):
        lines.append(f"I  {0x401000 + number % 64 * 4:08x},4")
        lines.append(f" S {0x1ffefff000 - number % 700 * 8:x},8")
        lines.append(f" M {0x4a0000 + number * 61 % 50000:08x},{1 << number % 7}")
        lines.append(f" L {0x4a0000 + number * 61 % 50000:08x},{1 << number % 7}")
    path = tmp_path_factory.mktemp("trace") / "loop.lackey"
    path.write_text("\n".join(lines) + "\n")
    return path


def options(name, *more):
    """Parsed options of a scenario, for a short run by default."""
    parser = common.Parser()
    common.add_options(parser, name)
    return parser.parse_args(["--seconds", "1", "--workers", "3", "--seed", "77", *map(str, more)])


def stress(name, *more, tick=None):
    """Runs a scenario; its result.  One that something is to happen in, a Once or an Until, has the time
    that this takes on a busy host; whatever happens ends it."""
    output = io.StringIO()
    seconds = ["--seconds", 60] if isinstance(tick, (Once, Until)) else []
    result = common.run(name, options(name, *seconds, *more), output, tick)
    assert result["failures"] or "BROKEN" not in "\n".join(common.summary(result))
    return result


class Once:
    """A tick that does something once, as soon as it can: when `act(supervision)` says so."""

    def __init__(self, act):
        self.act, self.done = act, False

    def __call__(self, supervision):
        if not self.done and supervision.began is not None and supervision.running:
            self.done = bool(self.act(supervision))


class Until:
    """A tick that ends the run, as if its time were over, once seen(supervision) is true."""

    def __init__(self, seen):
        self.seen = seen

    def __call__(self, supervision):
        if supervision.began is not None and supervision.running and self.seen(supervision):
            raise harness.Stop


def counted(**least):
    """For Until: counters of the machine are that high."""
    def seen(_supervision):
        counters = vmstat.vmstat()
        return all(counters[name] >= count for name, count in least.items())
    return seen


def mapped_frames():
    """The numbers of frames with anonymous pages that are mapped."""
    kernel = layout.kernel()
    pages = layout.view("Page", kernel.mem_map, kernel.max_pfn)
    lru = pages["flags"] >> np.uint64(C["PG_lru"]) & np.uint64(1)
    return np.flatnonzero((pages["_mapcount"] >= 0) & (lru == 1) & (pages["mapping"] & np.uint64(1) == 1)).tolist()


def frame(pfn):
    """The bytes of a frame, live."""
    return layout.view("u8", layout.kernel().frames_base + pfn * PAGE, PAGE)


@contextlib.contextmanager
def nobody_in_kernel(supervision):
    """Nobody takes, drops or moves a page meanwhile: a damage does just what is told of it."""
    freezer.freeze()
    try:
        while freezer.tasks_in_kernel():
            supervision.machine.check()
            time.sleep(0.001)
        yield
    finally:
        freezer.thaw()


def flip_bytes(supervision):
    """Changes bytes all over the tasks' memory, as a lost write would."""
    with nobody_in_kernel(supervision):
        frames = mapped_frames()
        for pfn in frames:
            frame(pfn)[::64] ^= 0x55
    return len(frames) > 8


def assert_broken(result, *words):
    """A failure has all of these words and the seed, and the exit status is 1."""
    assert common.status_of(result) == common.BROKEN
    said = "\n".join(common.summary(result))
    assert "BROKEN" in said
    assert any(all(word in failure for word in (*words, "seed 77")) for failure in result["failures"]), said


# ---- a machine that is whole ----

@pytest.mark.parametrize("name", ["anon", "threads", "fork", "move_pages"])
def test_scenario_holds_and_tasks_meet_migration_entries(name):
    result = stress(name, tick=Until(counted(migration_entry_wait=1, pgmigrate_success=101, accesses=10001)))
    assert result["failures"] == [] and result["audit"] == [] and result["lost_writes"] == 0
    assert common.status_of(result) == common.HELD
    assert KEYS <= result.keys() and json.loads(json.dumps(result)) == result
    assert result["migration_waits"] > 0 and result["wait_p99_us"] >= result["wait_p50_us"] > 0
    assert result["pages_migrated"] > 100 and result["accesses"] > 10000 and result["faults"] > 0
    assert (result["scenario"], result["seed"], result["workers"], result["nodes"]) == (name, 77, 3, 2)
    assert 0 < result["seconds"] < 60


def test_all_has_frames_enough_by_itself_on_as_many_nodes_as_there_can_be():
    """Each node's kswapd and each task keeps pages in its pagevecs, and what is there cannot be reclaimed."""
    result = stress("all", "--workers", 12, "--nodes", 64, tick=Until(counted(pgmigrate_success=501, pswpout=101)))
    assert result["failures"] == [] and result["audit"] == []
    assert common.status_of(result) == common.HELD


@pytest.mark.parametrize("name", ["file", "buffers"])
def test_files_agree_with_the_host_while_their_pages_move(name):
    result = stress(name, "--workers", 8, tick=Until(counted(pgmigrate_success=1001, accesses=3001, pgfault=1001)))
    assert result["failures"] == [] and result["audit"] == []
    assert result["pages_migrated"] > 1000 and result["accesses"] > 3000 and result["faults"] > 1000


def damage_cache(supervision):
    """Changes bytes all over the page cache, as a page that moved without its last store would have."""
    kernel = layout.kernel()
    pages = layout.view("Page", kernel.mem_map, kernel.max_pfn)
    cached = np.flatnonzero((pages["mapping"] != 0) & (pages["mapping"] & np.uint64(1) == 0))
    for pfn in cached.tolist():
        frame(pfn)[::16] ^= 0x55
    return len(cached) > 8


def damage_host(supervision):
    """Changes a byte of each worker's file, as a page that was written back too early would."""
    for file in supervision.run.plan.files[:-1]:
        byte = os.pread(file.fileno(), 1, 100)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 0x55]) if byte else b"x", 100)


@pytest.mark.parametrize("damage", [Once(damage_cache), damage_host])
def test_bytes_changed_in_the_cache_or_in_the_file_are_lost_writes(damage):
    result = stress("file", "--workers", 2, "--seconds", 60, tick=damage)
    assert result["lost_writes"] > 0
    assert_broken(result, "lost write", "task ", "should be")


def test_nodes_go_offline_and_come_back_under_load():
    """A node has been emptied twice when that is over."""
    moved = counted(pgmigrate_success=101, accesses=10001)
    result = stress("offline", "--workers", 4, "--nodes", 3,
                    tick=Until(lambda run: run.board.rows["passes"].max() >= 2 and moved(run)))
    assert common.status_of(result) == common.HELD and result["seconds"] < 60


def test_everything_at_once_holds():
    """Pages are swapped, nodes emptied, groups' limits hit, files written back, trees grow."""
    moved = counted(pswpout=1001, pswpin=1001, pgmigrate_success=1001, accesses=10001)
    result = stress("all", "--workers", 12, tick=Until(lambda run: moved(run) and (
        run.board.rows["passes"].max() > 0 and layout.kernel().next_css_id > 1 + 5 and run.board.rows["forks"].sum() > 3)))
    assert result["failures"] == [] and result["audit"] == [] and result["seconds"] < 60


@pytest.mark.parametrize("damage", ["bytes", "child"])
def test_everything_at_once_notices(damage, monkeypatch):
    """Bytes that change in a frame, and a mistake of one worker among the others."""
    if damage == "child":
        monkeypatch.setattr(threads, "count_up", lambda run, *_: 1 / 0)
        assert_broken(stress("all", "--workers", 8, "--seconds", 60), "ZeroDivisionError")
    else:
        result = stress("all", "--workers", 8, "--seconds", 60, tick=flip_bytes)
        # A lost write to a shadow's bytes, or a counter of threads that runs backwards: whoever looks first.
        counter = any("wrong sum" in failure for failure in result["failures"])
        assert_broken(result, "wrong sum" if counter else "lost write", "task ", "(page 0x")


def test_trace_holds(trace_file):
    result = stress("trace", trace_file, "--workers", 2, tick=Until(
        counted(accesses=100001, pgmigrate_success=101, migration_entry_wait=1)))
    assert common.status_of(result) == common.HELD and result["seconds"] < 60


def test_trace_without_a_time_goes_once_through(trace_file, monkeypatch):
    """The time of a run without --seconds may be over long before all are through."""
    asked = options("trace", trace_file)
    asked.seconds = None
    passes = []
    monkeypatch.setattr(harness.Supervision, "elapsed", lambda self: 1e6 if self.began else 0.0)
    result = common.run("trace", asked, io.StringIO(), lambda run: passes.append(run.board.rows["passes"].tolist()))
    assert result["failures"] == []
    assert sorted(passes[-1], reverse=True)[:3] >= [1, 1, 1]


def test_fork_keeps_as_many_tasks_alive_as_there_are_workers():
    alive = []

    def look(run):
        alive.append(int((vmstat.tasks()["state"] != 0).sum()) - 2)
        return run.board.rows["forks"].sum() > 60 and max(alive) >= 12
    result = stress("fork", "--workers", 12, tick=Until(look))
    assert result["failures"] == [] and result["seconds"] < 60
    # While there were eleven each of them may have seen room for one more.
    assert max(alive) <= 2 * 11 and result["cow_faults"] > 0


def test_memcg_holds_while_limits_are_hit_and_groups_are_removed():
    """More groups are made than there are at once, and tasks are refused memory; pages move, and go to
    files and to swap at a limit, with frames left for all."""
    moved = counted(pgmigrate_success=1, pgfault_oom=1, pgsteal_direct=1)
    # The root, two teams' and four below each.
    result = stress("memcg", "--workers", 9, tick=Until(lambda run: moved(run) and layout.kernel().next_css_id > 1 + 2 * 5))
    assert result["failures"] == [] and result["audit"] == [] and result["seconds"] < 60


def test_memcg_notices_a_charge_that_nobody_has(monkeypatch):
    """A group is charged for a page too many, and the audit names the group."""
    def overcharge(supervision):
        root = layout.struct("MemCgroup", layout.kernel().root_mem_cgroup)
        root.res["usage"] += PAGE
        return True
    monkeypatch.setattr(harness, "AUDIT_EVERY", 0.5)
    result = stress("memcg", tick=Once(overcharge))
    assert_broken(result, "group '/'")


def test_memcg_notices_a_group_that_had_one_page_more_than_its_limit():
    """The first group below the root: a team's."""
    def exceed(supervision):
        groups = layout.kernel().mem_cgroups
        root = layout.struct("MemCgroup", int(groups["next"]) - layout.offsetof("MemCgroup", "list"))
        team = layout.struct("MemCgroup", int(root.list["next"]) - layout.offsetof("MemCgroup", "list"))
        team.res["max_usage"] = team.res["limit"] + PAGE
        return True
    result = stress("memcg", tick=Once(exceed))
    assert_broken(result, "team 0 was charged")


def test_fork_holds_when_frames_run_out(monkeypatch):
    """Frames for a third of what the tasks want: -ENOMEM is theirs to bear, and nothing leaks."""
    monkeypatch.setattr(fork, "plan", lambda options: fork.PAGES_MAX)
    asked = options("fork", "--workers", 8, "--seconds", 60, "--frames", 400)
    asked.frames = 300
    result = common.run("fork", asked, io.StringIO(), Until(counted(pgfault_oom=20)))
    assert result["failures"] == [] and result["audit"] == [] and result["seconds"] < 60


def test_many_nodes():
    result = stress("anon", "--nodes", 8)
    assert common.status_of(result) == common.HELD and result["nodes"] == 8 and result["frames"] % 8 == 0


def test_what_a_worker_does_follows_from_the_seed():
    ranges = [(0x10000000, 8 * PAGE), (0x20000000, PAGE)]

    def made(seed):
        run = board.Run(argparse.Namespace(seed=seed), None, None)
        return board.random_accesses(run.rng(3), ranges, 5000)

    stream = made(1)
    assert (made(1) == stream).all() and (made(2) != stream).any()
    first, last = stream["address"], stream["address"] + stream["size"]
    inside = [(first >= start) & (last <= start + length) for start, length in ranges]
    assert (inside[0] | inside[1]).all() and inside[0].any() and inside[1].any()
    assert set(stream["op"].tolist()) == {replay.LOAD, replay.STORE, replay.MODIFY}
    # Some lie across a page boundary.
    assert (first // PAGE != (last - 1) // PAGE).any()


# ---- planted damage ----

# A worker of memcg may give the memory back before it looks at it again.
@pytest.mark.parametrize("name, tick", [("anon", Once(flip_bytes)), ("fork", Once(flip_bytes)), ("memcg", flip_bytes)])
def test_bytes_changed_behind_the_tasks_backs_are_lost_writes(name, tick):
    result = stress(name, "--seconds", 60, tick=tick)
    assert result["lost_writes"] > 0
    assert_broken(result, "lost write", "task ", "(page 0x", "expected", "found")


def test_trace_finds_changed_bytes(trace_file):
    result = stress("trace", trace_file, tick=Once(flip_bytes))
    assert result["lost_writes"] > 0
    assert_broken(result, "lost write", "task ", "(page 0x")


def test_page_that_moves_without_its_last_store_is_found(monkeypatch):
    """One store that the shadow knows of and the machine does not."""
    checked = board.Run.checked

    def lose_one(run, records, shadow, seed):
        checked(run, records, shadow, seed)
        shadow.write(int(records["address"][0]), b"lost!")

    monkeypatch.setattr(board.Run, "checked", lose_one)
    result = stress("anon", "--seconds", 60)
    assert result["lost_writes"] > 0
    assert_broken(result, "lost write")


def test_increment_that_is_lost_is_a_wrong_sum(monkeypatch):
    """A load and a store where a fetch-and-add should be."""
    def add_in_two_steps(addresses, deltas):
        before = bulk.load64_many(addresses)
        bulk.store64_many(addresses, before + deltas)
        return before

    # bulk itself is as it was: the shared name is replaced in the scenario alone.
    class Careless:
        def __getattr__(self, name):
            return add_in_two_steps if name.endswith("add64_many") else getattr(bulk, name)

    monkeypatch.setattr(threads, "bulk", Careless())
    result = stress("threads", "--seconds", 60)
    assert_broken(result, "wrong sum", "task ", "(page 0x", "counter")


def test_sum_is_checked_at_the_end(monkeypatch):
    """One member says that it added more than it did."""
    def boast(run, group, counters, check=threads.check_sums):
        run.wait_until(lambda: run.plan.done[group, :3].all())
        run.plan.counts[group, 0, 5] += 1
        check(run, group, counters)

    monkeypatch.setattr(threads, "check_sums", boast)
    assert_broken(stress("threads", tick=Until(counted(accesses=10_001))), "wrong sum", "1 of 512 counters", "should be ")


def test_write_where_nobody_may_write_is_found(monkeypatch):
    """The common changes under its guard: a write through a stale translation would."""
    def unruly(task, rng, guard=threads.guard):
        mprotect = type(task).mprotect
        task_like = argparse.Namespace(mmap=task.mmap, munmap=task.munmap, load=task.load,
                                       mprotect=lambda address, length, _prot: mprotect(task, address, length, 3))
        guard(task_like, rng)

    monkeypatch.setattr(threads, "guard", unruly)
    monkeypatch.setattr(threads, "poach", lambda rng, poach=threads.poach: [poach(rng) for _ in range(200)])
    result = stress("threads", "--seconds", 60)
    assert_broken(result, "stale translation", "task ", "nobody may write")


def test_access_that_must_fault_and_does_not_is_found(monkeypatch):
    def trespass(space):
        for start, _length in space.ranges(fork.READ_WRITE):
            fork.must_fault(space.task, start, "load")

    monkeypatch.setattr(fork.Space, "trespass", trespass)
    result = stress("fork", "--seconds", 60)
    assert_broken(result, "succeeds where it is forbidden")


@pytest.mark.parametrize("name", ["anon", "threads", "fork"])
def test_killed_worker_breaks_the_run(name):
    def kill(supervision):
        os.kill(supervision.roots[-1].os_pid, signal.SIGKILL)
        return True
    result = stress(name, "--workers", 4, tick=Once(kill))
    # Inside the kernel its death stops the machine.
    assert_broken(result, "killed")


def test_killed_descendant_breaks_the_run():
    def kill(supervision):
        running = vmstat.tasks()
        running = running[running["state"] == C["TASK_RUNNING"]]
        rows = supervision.board.rows
        for task in running.tolist():
            pid, os_pid, parent = (task[running.dtype.names.index(field)] for field in ("pid", "os_pid", "parent_pid"))
            if parent and rows["state"][task[0]] == board.WORKING and rows["pid"][task[0]] == pid:
                os.kill(os_pid, signal.SIGKILL)
                return True
        return False
    result = stress("fork", "--workers", 6, tick=Once(kill))
    assert common.status_of(result) == common.BROKEN
    assert any("died" in failure or "killed" in failure for failure in result["failures"])


def test_killed_migrator_breaks_the_run():
    def kill(supervision):
        supervision.migrators[0].child.kill()
        return True
    assert_broken(stress("anon", tick=Once(kill)), "killed")


def test_audit_finding_breaks_the_run(monkeypatch):
    """A reference that nobody has, given to some mapped pages."""
    def raise_counts(supervision):
        kernel = layout.kernel()
        pages = layout.view("Page", kernel.mem_map, kernel.max_pfn)
        with nobody_in_kernel(supervision):
            frames = mapped_frames()[:4]
            for pfn in frames:
                pages["_count"][pfn] += 1
        return len(frames) == 4
    monkeypatch.setattr(harness, "AUDIT_EVERY", 0.5)
    result = stress("anon", tick=Once(raise_counts))
    assert result["audit"] and {"kind", "message", "page", "expected", "found"} <= result["audit"][0].keys()
    assert_broken(result, "audit", "refcount")


def test_a_value_error_of_the_runs_own_is_no_bad_use(monkeypatch):
    """That of a machine that cannot be is."""
    def bug(*_arguments):
        raise ValueError("a bug")
    assert common.main("anon", options("anon", "--nodes", "64", "--frames", str(1 << 28))) == common.BAD_USE
    monkeypatch.setattr(harness.Supervision, "result", bug)
    with pytest.raises(ValueError, match="a bug"):
        common.main("anon", options("anon", "--seconds", "0.2"))


def test_stopped_machine_breaks_the_run():
    def panic(_supervision):
        header = layout.header()
        header.panic_kind, header.panic_text = C["PANIC_BUG"], b"planted"
        header.panic = 2
        return True
    result = stress("anon", tick=Once(panic))
    assert_broken(result, "kernel BUG: planted")
    assert len(result["failures"]) == 1


@pytest.mark.parametrize("what", [errno.EMFILE, errno.EAGAIN])
def test_a_host_that_gives_a_worker_no_process_breaks_no_promise(monkeypatch, what):
    def no_more(*_args, **_kwargs):
        raise OSError(what, os.strerror(what))

    def worker_of_hers(task, run, number):
        monkeypatch.setattr(worker._fork.Process, "start", no_more)
        run.working()
        task.fork(lambda task: None)

    monkeypatch.setattr(anon, "worker", worker_of_hers)
    with pytest.raises(common.UsageError, match="the host gives no process for a task: "):
        stress("anon")


def test_a_host_without_memory_for_frames_breaks_no_promise():
    def cut_short(_supervision):
        kernel, header = layout.kernel(), layout.header()
        os.truncate(direct_map.SHM_DIR / direct_map.mapped.name, kernel.frames_base - header.base + PAGE)

    with pytest.raises(common.UsageError, match="^host memory: the host has no memory left for the machine's frames"):
        stress("anon", tick=Once(cut_short))


def test_error_in_a_worker_breaks_the_run(monkeypatch):
    monkeypatch.setattr(anon, "random_accesses", lambda *_: 1 / 0)
    assert_broken(stress("anon", "--seconds", 60), "ZeroDivisionError", "test_stress.py, line")


# ---- bad use ----

@pytest.mark.parametrize("name, given, says", [
    ("anon", ["--frames", 100], "too few for 3 workers"), ("threads", ["--frames", 100], "too few"),
    ("fork", ["--frames", 100], "too few"), ("anon", ["--nodes", 64, "--frames", 4000], "4096 will do"),
    ("anon", ["--frames", 1 << 24], "too many"), ("threads", ["--workers", 1], "two workers"),
    ("all", ["--workers", 7], "8 workers"), ("all", ["--workers", 8, "--frames", 100], "too few")])
def test_bad_options_are_a_sentence(name, given, says):
    with pytest.raises(common.UsageError, match=says):
        stress(name, *given)


def test_frames_that_are_said_to_do_will_do():
    for name in ("anon", "threads", "fork", "memcg", "move_pages", "offline", "all"):
        with pytest.raises(common.UsageError) as error:
            stress(name, "--workers", 8 if name == "all" else 3, "--frames", 10)
        enough = str(error.value).split("; ")[1].split()[0]
        result = stress(name, "--workers", 8 if name == "all" else 3, "--frames", enough, "--seconds", 0.3)
        assert common.status_of(result) == common.HELD


def test_task_without_frames_is_no_lost_write():
    """Out of frames is an error of its own kind."""
    records = np.zeros(1, replay.ACCESS)
    records["address"], records["size"] = 0x10000, 8

    def no_frames(*_args):
        return 0, -errno.ENOMEM, 0x10000

    run = board.Run(argparse.Namespace(seed=1), None, None)
    before, board.replay.replay = board.replay.replay, no_frames
    try:
        with pytest.raises(OSError) as error:
            run.checked(records, replay.Shadow(), 1)
    finally:
        board.replay.replay = before
    assert error.value.errno == errno.ENOMEM


def test_scenario_runs_as_a_script():
    script = Path(common.__file__).resolve().parent / "anon.py"
    done = subprocess.run([sys.executable, script, "--seconds", "0.5", "--workers", "2", "--seed", "9", "--json", "-"],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["seed"] == 9
    assert "anon held: 0 lost writes, clean audit, seed 9" in done.stderr
