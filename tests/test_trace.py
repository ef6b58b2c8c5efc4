# SPDX-License-Identifier: GPL-2.0-only
"""Tracepoints: what is traced, in which order, and that an event arrives whole or is counted
as lost, whatever the reader does."""
import errno
import os
import re
import signal
from pathlib import Path

import multiprocess
import numpy as np
import pytest

from helpers import C, PAGE, Puppet, is_present, migration_entry, page_at, pte_of, until_asleep, until_waits
from shmkern import calibrate, direct_map, layout, tracing, vmstat, worker
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

E = {event.name: number for number, event in tracing.EVENTS.items()}
# As ftrace prints: task-pid [cpu] flags seconds.micros: event: arguments.
FTRACE = re.compile(r" *(\S.*)-(\d+) +\[(\d{3})\] \.{5} +\d+\.\d{6}: (\w+): (.*)")


def names(events, pid=None):
    """The names of events, of one task if asked for."""
    return [tracing.EVENTS[event["event"]].name for event in events if pid in (None, event["pid"])]


@pytest.fixture
def owner(machine):
    """A task with one page on node 0 at `va`."""
    puppet = Puppet(machine)
    puppet.va = va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"x"))
    machine.init.move_pages(puppet.pid, [va], [0])
    machine.init.migrate_prep()
    puppet(lambda task: task.load(va, 1))
    return puppet


def move(pid, va, node=1):
    """What has a mover move the page at `va` of task `pid`."""
    return lambda task: task.move_pages(pid, [va], [node])


# ---- what is traced -----------------------------------------------------------------

def test_a_migration_is_traced_in_the_order_of_the_protocol(machine, owner):
    mover, va = Puppet(machine), owner.va
    with tracing.Tracing() as trace:
        mover(move(owner.pid, va))
        events = trace.read()
    found = names(events, mover.pid)
    # Around it: the page that the system call keeps its request in.
    found = found[found.index("mm_migrate_pages_start"):found.index("mm_migrate_pages") + 1]
    expected = ["mm_migrate_pages_start", "migrate_stage", "mm_page_alloc", "migrate_stage", "migrate_stage",
                "tlb_flush", "set_migration_pte", "migrate_stage", "migrate_stage", "remove_migration_pte",
                "migrate_stage", "mm_page_free", "migrate_stage", "mm_migrate_pages"]
    assert found == expected
    stages = [tracing.STAGES[event["args"][0]] for event in events if event["event"] == E["migrate_stage"]]
    assert stages == ["new_page", "lock", "unmap", "move", "remap", "putback", "done"]
    entry = next(event["args"] for event in events if event["event"] == E["set_migration_pte"])
    assert entry[0] == va and migration_entry(int(entry[1]))[0] == "write"
    pte = next(event["args"] for event in events if event["event"] == E["remove_migration_pte"])
    assert pte[0] == va and pte[1] == pte_of(owner, va)


def test_a_fault_is_traced_from_its_beginning_to_its_end(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    with tracing.Tracing(["exceptions:*"]) as trace:
        puppet(lambda task: task.store(va, b"x"))
        with pytest.raises(Exception, match="store at"):
            puppet(lambda task: task.store(va + PAGE, b"x"))
        events = trace.read()
    assert names(events) == ["page_fault_user", "page_fault_user_exit"] * 2
    assert events["args"][:, 0].tolist() == [va, va, va + PAGE, va + PAGE]
    assert events["args"][0][1] == C["PF_ERROR_USER"] | C["PF_ERROR_WRITE"]
    assert events["args"][3][1].astype(np.int64) == -errno.EFAULT


def test_who_waits_for_a_page_is_traced_and_so_is_who_wakes_it(machine, owner):
    mover, va = Puppet(machine), owner.va
    page = page_at(owner, va).address
    mover(lambda task: ksym.lock_page(page))
    with tracing.Tracing(["wait_*", "sched_waking"]) as trace:
        owner.begin(lambda task: ksym.lock_page(page))
        until_asleep(owner, "WAIT_PAGE_LOCK")
        mover(lambda task: ksym.unlock_page(page))
        owner.reply()
        events = trace.read()
    assert [(name, event["pid"]) for name, event in zip(names(events), events)] == [
        ("wait_begin", owner.pid), ("sched_waking", mover.pid), ("wait_end", owner.pid)]
    assert set(events["args"][:, 0]) == {page}
    assert events["args"][0][1] == C["WAIT_PAGE_LOCK"]
    owner(lambda task: ksym.unlock_page(page))


def test_contention_of_a_lock_has_linuxs_names(machine):
    holder, waiter = Puppet(machine), Puppet(machine)
    lock = layout.kernel().zones + layout.offsetof("Zone", "lru_lock")
    sem = worker.slot(holder.cpu).mm + layout.offsetof("MmStruct", "mmap_sem")
    holder(lambda task: (ksym.spin_lock(lock), None)[1])
    with tracing.Tracing(["lock:*", "wait_*"]) as trace:
        waiter.begin(lambda task: (ksym.spin_lock(lock), ksym.spin_unlock(lock))[1])
        until_waits(waiter, "WAIT_SPINLOCK")
        holder(lambda task: ksym.spin_unlock(lock))
        waiter.reply()
        holder(lambda task: ksym.down_read(sem))
        waiter.begin(lambda task: (ksym.down_write(sem), ksym.up_write(sem))[1])
        until_waits(waiter, "WAIT_RWSEM_WRITE")
        holder(lambda task: ksym.up_read(sem))
        waiter.reply()
        events = trace.read()
    assert names(events) == ["contention_begin", "contention_end"] * 2
    assert events["args"][:, 0].tolist() == [lock, lock, sem, sem]
    texts = [tracing.text(event, trace.names) for event in events]
    assert "(flags=SPIN)" in texts[0] and "(flags=WRITE)" in texts[2] and "(ret=0)" in texts[3]


def test_the_end_of_a_wait_can_be_traced_without_its_beginning(machine, owner):
    mover, page = Puppet(machine), page_at(owner, owner.va).address
    mover(lambda task: ksym.lock_page(page))
    with tracing.Tracing(["wait_end"]) as trace:
        owner.begin(lambda task: ksym.wait_on_page_locked(page))
        until_asleep(owner, "WAIT_PAGE_LOCK")
        mover(lambda task: ksym.unlock_page(page))
        owner.reply()
        assert names(trace.read()) == ["wait_end"]


def test_frozen_references_are_traced_with_what_the_page_was(machine, owner):
    page = page_at(owner, owner.va).address
    with tracing.Tracing(["page_ref:*"]) as trace:
        assert owner(lambda task: ksym.page_freeze_refs(page, 7)) == 0
        assert owner(lambda task: ksym.page_freeze_refs(page, 1)) == 1
        owner(lambda task: ksym.page_unfreeze_refs(page, 1))
        events = trace.read()
    texts = [tracing.text(event, trace.names) for event in events]
    assert names(events) == ["page_ref_freeze", "page_ref_freeze", "page_ref_unfreeze"]
    assert re.search(r"flags=\S*swapbacked\S* count=1 mapcount=1 val=7 ret=0", texts[0])
    assert re.search(r"count=0 mapcount=1 val=1 ret=1", texts[1])


def test_only_the_events_that_were_asked_for_are_written(machine, owner):
    mover = Puppet(machine)
    with tracing.Tracing(["migrate:set_*", "tlb_flush"]) as trace:
        mover(move(owner.pid, owner.va))
        assert names(trace.read()) == ["tlb_flush", "set_migration_pte"]
    with pytest.raises(tracing.TracingError, match="no event 'nonsense'"):
        tracing.Tracing(["nonsense"])


def test_nothing_is_written_when_nobody_traces(machine, owner):
    size = (direct_map.SHM_DIR / machine.name).stat().st_size
    assert size == layout.header().size
    mover = Puppet(machine)
    mover(move(owner.pid, owner.va))
    assert not vmstat.tasks()["trace_head"].any()
    with tracing.Tracing():
        mover(move(owner.pid, owner.va, 0))
    written = vmstat.tasks()["trace_head"].copy()
    assert written[mover.cpu] > 0
    mover(move(owner.pid, owner.va))
    assert (vmstat.tasks()["trace_head"] == written).all()


def test_a_task_has_its_name_in_the_trace_when_it_has_gone(machine):
    def short_lived(task):
        return task.mmap(PAGE)

    with tracing.Tracing() as trace:
        child = machine.spawn(short_lived)
        child.result(10)
        events = trace.read()
    mine = events[events["pid"] == child.pid]
    assert names(mine)[0] == "task_newtask" and "sched_process_exit" in names(mine)
    assert trace.names[child.pid] == "short_lived"


def test_a_task_that_begins_while_tracing_begins_has_its_name(machine, monkeypatch):
    late, running = [], tracing.report.running

    def look():
        tasks = running()
        late.append(Puppet(machine))
        return tasks
    monkeypatch.setattr(tracing.report, "running", look)
    with tracing.Tracing() as trace:
        trace.read()
    assert late[0].pid in trace.names


def test_text_is_ftraces(machine, owner):
    mover = Puppet(machine)
    with tracing.Tracing() as trace:
        mover(move(owner.pid, owner.va))
        events = trace.read()
    for event in events:
        task, pid, cpu, name, _args = FTRACE.fullmatch(tracing.text(event, trace.names)).groups()
        assert (task, int(pid), int(cpu)) == ("_obey", event["pid"], event["cpu"])
        assert name == tracing.EVENTS[event["event"]].name


def test_every_tracepoint_has_a_text():
    assert set(tracing.EVENTS) == set(range(C["NR_TRACE_EVENTS"]))
    for event in tracing.EVENTS.values():
        assert event.text(np.ones(tracing.ARGS, np.uint64))


# ---- the rings ----------------------------------------------------------------------

def test_an_event_arrives_whole_and_in_order_or_is_counted_as_lost(machine):
    """Four writers go round their rings many times while they are read."""
    count, writers = 60_000, 4
    number = E["mm_page_free"]
    with tracing.Tracing(["mm_page_free"], ring_events=1024) as trace:
        children = [machine.spawn(lambda task: [calibrate.event_loop(number, 500) for _ in range(count // 500)])
                    for _ in range(writers)]
        parts = []
        while any(child.is_alive() for child in children):
            parts.append(trace.read())
        for child in children:
            child.result(10)
        parts.append(trace.read())
        lost = trace.lost
    events = np.concatenate(parts)
    gaps = events[events["event"] == tracing.LOST]
    assert gaps["args"][:, 0].sum() == lost > 0
    whole = 0
    for child in children:
        mine = events[(events["cpu"] == child.cpu) & (events["event"] == number) & (events["pid"] == child.pid)]
        # What exit frees has other arguments.
        mine = mine[mine["args"][:, 0] == ~mine["args"][:, 1]]
        assert (np.diff(mine["time"].astype(np.int64)) >= 0).all()
        for column in range(tracing.ARGS):
            assert (mine["args"][:, column] == (mine["args"][:, 0] if column % 2 == 0 else ~mine["args"][:, 0])).all()
        whole += len(mine)
    total = int(vmstat.tasks()["trace_head"].sum())
    assert whole > 0 and len(events) - len(gaps) + lost == total


def test_a_reader_that_is_too_late_is_told_how_much_it_missed(machine):
    puppet = Puppet(machine)
    number = E["tlb_flush"]
    with tracing.Tracing(["tlb_flush"], ring_events=1024) as trace:
        puppet(lambda task: calibrate.event_loop(number, 1023))
        assert len(trace.read()) == 1023 and trace.lost == 0
        puppet(lambda task: calibrate.event_loop(number, 5000))
        events = trace.read()
    # The place of the next event is not read, for it may be being written.
    assert trace.lost == 5000 - 1023 and len(events) == 1 + 1023
    assert tracing.text(events[0], {}) == f"CPU:{puppet.cpu} [LOST {5000 - 1023} EVENTS]"
    assert events["args"][1:, 0].tolist() == list(range(5000 - 1023, 5000))


def test_rings_have_memory_only_while_somebody_traces(machine):
    path = direct_map.SHM_DIR / machine.name

    def used():
        return path.stat().st_blocks * 512

    before = used()
    with tracing.Tracing(ring_events=1024):
        assert used() >= before + 256 * 1024 * 64
    assert used() < before + 1024 * 64
    # And again, with rings of the size they have.
    with tracing.Tracing() as trace:
        Puppet(machine)
        assert len(trace.read())
    with pytest.raises(tracing.TracingError, match="1024 events each"), tracing.Tracing(ring_events=2048):
        pass


def test_a_host_without_room_for_the_rings_is_a_sentence_and_nothing_is_traced(machine, monkeypatch):
    def refuse(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(direct_map.BootError, match="does not give .* No space left"), tracing.Tracing():
        pass
    assert layout.kernel().trace_events == 0 and layout.kernel().trace_owner == 0


@pytest.mark.parametrize("size", [512, 3000, 1 << 17])
def test_rings_have_sizes_that_they_can_have(machine, size):
    with pytest.raises(tracing.TracingError, match="power of two from 1024"), tracing.Tracing(ring_events=size):
        pass


def test_a_machine_is_traced_by_one_until_that_one_is_gone(machine):
    def trace_and_hang(connection):
        tracing.Tracing().__enter__()
        connection.send("tracing")
        connection.recv()

    here, there = multiprocess.Pipe()
    other = multiprocess.get_context("fork").Process(target=trace_and_hang, args=(there,))
    other.start()
    here.recv()
    with pytest.raises(tracing.TracingError, match=f"traced by process {other.pid}"), tracing.Tracing():
        pass
    other.kill()
    other.join()
    assert layout.kernel().trace_events != 0
    with tracing.Tracing() as trace:
        Puppet(machine)
        assert len(trace.read())


def test_a_killed_tracers_machine_stops_writing_events(machine):
    def trace_and_die():
        tracing.Tracing().__enter__()
        os.kill(os.getpid(), signal.SIGKILL)

    other = multiprocess.get_context("fork").Process(target=trace_and_die)
    other.start()
    other.join()
    assert layout.kernel().trace_events != 0
    machine.check(at_once=True)
    assert layout.kernel().trace_events == 0 and layout.kernel().trace_owner == 0


class WatchedKernel:
    """struct Kernel, whose writer calls a function when it comes to a word."""

    def __init__(self, word, function):
        object.__setattr__(self, "_word", word)
        object.__setattr__(self, "_function", function)

    def __getattr__(self, name):
        return getattr(layout.kernel(), name)

    def __setattr__(self, name, value):
        if name == self._word:
            self._function()
        setattr(layout.kernel(), name, value)


def begin_and_tell(connection, word=None):
    """Traces until it is told to end; tells how that began, and before that when it has come to a word of the
    kernel's, where it then waits to be told to go on."""
    def halfway():
        connection.send("halfway")
        connection.recv()
    trace = tracing.Tracing()
    trace._kernel = WatchedKernel(word, halfway)
    try:
        with trace:
            connection.send("tracing")
            connection.recv()
    except tracing.TracingError as error:
        connection.send(str(error))


def waits_for_the_block(process):
    """Whether a process waits for a file lock, and for nothing else."""
    return any(line.split()[1:3] == ["->", "FLOCK"] and int(line.split()[5]) == process.pid
               for line in Path("/proc/locks").read_text().splitlines())


@pytest.mark.parametrize("before", ["nobody", "one that was killed"])
def test_of_two_tracers_that_begin_at_once_one_gets_the_machine(machine, until, before):
    if before != "nobody":
        killed = multiprocess.get_context("fork").Process(
            target=lambda: (tracing.Tracing().__enter__(), os.kill(os.getpid(), signal.SIGKILL)))
        killed.start()
        killed.join()
    pipes = [multiprocess.Pipe() for _ in range(2)]
    one, two = (multiprocess.get_context("fork").Process(target=begin_and_tell, args=(there, word))
                for (_here, there), word in zip(pipes, ["trace_owner_start", None]))
    (one_says, _), (two_says, _) = pipes
    one.start()
    assert one_says.recv() == "halfway"
    two.start()
    until(lambda: two_says.poll() or waits_for_the_block(two))
    one_says.send("go on")
    assert one_says.recv() == "tracing"
    assert two_says.recv() == f"the machine is being traced by process {one.pid}"
    two.join()
    assert layout.kernel().trace_owner == one.pid and layout.kernel().trace_events != 0
    one_says.send("end")
    one.join()
    assert layout.kernel().trace_owner == 0


def test_the_supervisor_does_not_wait_for_who_is_about_to_trace(machine):
    """Who is stopped there would keep it for as long; it looks again the next time."""
    other = multiprocess.get_context("fork").Process(
        target=lambda: (tracing.Tracing().__enter__(), os.kill(os.getpid(), signal.SIGKILL)))
    other.start()
    other.join()
    with direct_map.locked(direct_map.mapped):
        machine.check(at_once=True)
        assert layout.kernel().trace_owner == other.pid
    machine.check(at_once=True)
    assert layout.kernel().trace_owner == 0


@pytest.mark.parametrize("word", ["trace_owner", "trace_ring_events", "trace_events"])
def test_a_tracer_killed_while_it_begins_does_not_harm_the_machine(machine, word):
    def trace_and_die():
        trace = tracing.Tracing()
        trace._kernel = WatchedKernel(word, lambda: os.kill(os.getpid(), signal.SIGKILL))
        trace.__enter__()

    other = multiprocess.get_context("fork").Process(target=trace_and_die)
    other.start()
    other.join()
    assert other.exitcode == -signal.SIGKILL
    machine.check(at_once=True)
    assert layout.kernel().trace_owner == 0
    with tracing.Tracing() as trace:
        Puppet(machine)
        assert len(trace.read())


def test_tracing_that_is_interrupted_while_it_begins_is_over(machine, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(tracing, "Reader", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tracing.Tracing().__enter__()
    with tracing.Tracing() as trace:
        Puppet(machine)
        assert len(trace.read())


def test_a_machine_closed_while_it_is_traced_takes_the_rings_along(boot):
    machine = boot()
    block = direct_map.SHM_DIR / machine.name
    with tracing.Tracing():
        assert block.stat().st_size > layout.header().size
        machine.close()
    assert not block.exists()


# ---- stopping at a tracepoint -------------------------------------------------------

def test_a_task_stops_at_a_tracepoint_with_what_it_holds(machine, owner, until):
    mover, va = Puppet(machine), owner.va
    with tracing.Tracing() as trace:
        tracing.set_breaks(mover.cpu, ["set_migration_pte"])
        mover.begin(move(owner.pid, va))
        until(lambda: tracing.is_stopped(mover.cpu))
        assert names(trace.read(), mover.pid)[-1] == "set_migration_pte"
        assert migration_entry(pte_of(owner, va)) and worker.slot(mover.cpu).preempt_count == 2
        # It has the page table's lock.
        owner.begin(lambda task: task.load(va, 1))
        until_waits(owner, "WAIT_SPINLOCK")
        tracing.set_breaks(mover.cpu, [])
        tracing.go_on(mover.cpu)
        assert mover.reply() == [1] and owner.reply() == b"x"
        assert is_present(pte_of(owner, va))


def test_a_move_asks_for_the_whole_of_the_next_page_before_that_is_copied(machine, until):
    """Not for some lines less: for the first that is left the copy would wait as long as for all."""
    owner, mover = Puppet(machine), Puppet(machine)
    pid = owner.pid
    first = owner(lambda task: task.mmap(2 * PAGE))
    second = first + PAGE
    owner(lambda task: task.store(first, b"x" * 2 * PAGE))

    def goes_on_to(event, is_there):
        tracing.set_breaks(mover.cpu, [event])
        tracing.go_on(mover.cpu)
        until(lambda: is_there() and tracing.is_stopped(mover.cpu))
        return worker.slot(mover.cpu).upcoming_line

    with tracing.Tracing():
        tracing.set_breaks(mover.cpu, ["set_migration_pte"])
        mover.begin(lambda task: task.move_pages(pid, [first, second], [1, 1]))
        until(lambda: migration_entry(pte_of(owner, first)) and tracing.is_stopped(mover.cpu))
        lines = layout.constants["PAGE_LINES"]
        assert goes_on_to("remove_migration_pte", lambda: is_present(pte_of(owner, first))) < lines
        assert goes_on_to("set_migration_pte", lambda: migration_entry(pte_of(owner, second))) == lines
    assert mover.reply() == [1, 1]


class Raised(Exception):
    pass


def test_a_task_at_a_tracepoint_goes_on_when_tracing_ends(machine, owner, until):
    mover = Puppet(machine)
    with pytest.raises(Raised), tracing.Tracing():
        tracing.set_breaks(mover.cpu, ["set_migration_pte"])
        mover.begin(move(owner.pid, owner.va))
        until(lambda: tracing.is_stopped(mover.cpu))
        raise Raised
    assert mover.reply() == [1]
    # Nor is it told to stop by who traces next.
    with tracing.Tracing():
        assert mover(move(owner.pid, owner.va, 0)) == [0]


@pytest.mark.parametrize("heir", ["the supervisor", "the next tracer"])
def test_a_task_at_a_tracepoint_goes_on_when_its_controller_is_killed(machine, owner, until, heir):
    mover = Puppet(machine)

    def stop_it_and_die():
        tracing.Tracing().__enter__()
        tracing.set_breaks(mover.cpu, ["set_migration_pte"])
        mover.begin(move(owner.pid, owner.va))
        until(lambda: tracing.is_stopped(mover.cpu))
        os.kill(os.getpid(), signal.SIGKILL)

    other = multiprocess.get_context("fork").Process(target=stop_it_and_die)
    other.start()
    other.join()
    assert tracing.is_stopped(mover.cpu)
    if heir == "the supervisor":
        machine.check(at_once=True)
        assert mover.reply() == [1]
    else:
        with tracing.Tracing():
            until(mover.is_done)
        assert mover.reply() == [1]


def test_the_audit_knows_the_trace_rings(machine):
    kernel = layout.kernel()
    # What nobody does here, for a ring of that size would be written anywhere.
    with tracing.Tracing(["page_ref_freeze"], ring_events=1024):
        machine.audit().raise_if_broken()
        kernel.trace_ring_events = 1 << 20
        assert "trace rings" in str(machine.audit())
        kernel.trace_ring_events = 1024
    kernel.trace_events = 1
    assert "nobody to read" in str(machine.audit())
    kernel.trace_events = 0
