# SPDX-License-Identifier: GPL-2.0-only
"""Machines and their processes: programs and results, killing and dying, leaving nothing
behind.  All on real processes."""
import array
import contextlib
import errno
import fcntl
import gc
import os
import pickle
import random
import resource
import signal
import socket
import subprocess
import sys
import termios
import textwrap
import threading
import time
from pathlib import Path

import multiprocess
import psutil
import pytest

import shmkern
from helpers import PAGE, Puppet, Stop, blocks_of, free_frames, is_running, mm_of, run, stop, until, until_waits
from shmkern import boot as boot_module
from shmkern import direct_map, freezer, interrupts, layout, lifeline, report, tracing, vmstat, worker
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)


def look_now(machine):
    """Has the supervisor look after its tasks, however lately it did."""
    machine._checked = 0.0
    machine.check()


def tables_in_use():
    """How many slots are not free."""
    return int((vmstat.tasks()["state"] != 0).sum())


# ---- programs and results -----------------------------------------------------

def test_a_program_may_be_a_closure(machine):
    word, numbers = b"closure", [1, 2, 3]

    def program(task, more):
        va = task.mmap(PAGE)
        task.store(va, word)
        return task.load(va, len(word)), sum(numbers) + more

    assert run(machine, program, 4) == (word, 10)
    assert run(machine, lambda task: numbers[::-1]) == [3, 2, 1]


def test_the_program_in_the_readme_runs():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    program = textwrap.dedent(readme.split("## A program\n")[1].split("\n## ")[0])
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "2 [1]\n1 pages migrated\n", ""), done


def test_each_program_runs_in_a_process_of_its_own(machine):
    pids = {run(machine, lambda task: (os.getpid(), task.os_pid)) for _ in range(3)}
    assert len(pids) == 3 and all(one == other != os.getpid() for one, other in pids)


def test_result_raises_what_the_program_raised_with_its_traceback(machine):
    def deep_down(task):
        raise KeyError("the one that got away")

    with pytest.raises(KeyError, match="got away") as caught:
        run(machine, lambda task: deep_down(task))
    remote = str(caught.value.__cause__)
    assert "in deep_down" in remote and "test_machine.py" in remote


def test_result_may_be_asked_for_again(machine):
    good, bad = machine.spawn(lambda task: [1]), machine.spawn(lambda task: 1 // 0)
    assert good.result(10) == good.result(10) == [1]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            bad.result(10)


@pytest.mark.parametrize("length", [0, 1 << 20])
def test_a_result_may_be_waited_for_by_several_threads(machine, length):
    """Whoever takes what off the pipe, and although most of them find it empty."""
    for _ in range(40):
        child, results = machine.spawn(lambda task: bytes(length)), []
        waiting = [threading.Thread(target=lambda: results.append(len(child.result(20)))) for _ in range(4)]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        assert results == [length] * 4


def test_not_a_number_is_no_time_to_wait_for_ever(machine):
    with pytest.raises(TimeoutError):
        machine.spawn(lambda task: signal.pause()).result(float("nan"))


def test_exit_ends_a_program_at_once_with_a_value(machine):
    def program(task):
        try:
            task.exit({"value": 42})
        except Exception:
            return "swallowed"
        return "went on"

    assert run(machine, program) == {"value": 42}
    assert run(machine, lambda task: task.exit()) is None


def test_a_kernel_that_is_compiled_from_other_sources_does_not_boot(boot, monkeypatch):
    sizes = boot_module.struct_sizes()
    monkeypatch.setattr(boot_module, "struct_sizes", lambda: sizes | {"Task": sizes["Task"] + 8})
    with pytest.raises(shmkern.BootError, match=r"other sources than these \(struct Task .*: run `make build`"):
        boot()


def test_result_times_out_and_can_be_had_later(machine):
    read_end, write_end = os.pipe()
    child = machine.spawn(lambda task: os.read(read_end, 1))
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=f"task {child.pid} has no result after 0.1 s"):
        child.result(timeout=0.1)
    assert time.monotonic() - began < 20
    with pytest.raises(TimeoutError):
        child.result(timeout=0)
    os.write(write_end, b"!")
    assert child.result(10) == b"!"
    os.close(read_end), os.close(write_end)


BIG = b"result" * (1 << 20)


@pytest.fixture
def sending(machine):
    """A Child that is stopped in the middle of sending BIG."""
    child = machine.spawn(lambda task: BIG)
    until(lambda: child._connection.poll(), "the beginning")
    os.kill(child.os_pid, signal.SIGSTOP)
    yield child
    child.kill()


def test_result_times_out_in_the_middle_and_can_be_had_later(sending):
    for _ in range(2):
        with pytest.raises(TimeoutError):
            sending.result(timeout=0.1)
    os.kill(sending.os_pid, signal.SIGCONT)
    assert sending.result(20) == BIG


def test_a_handler_that_raises_while_a_result_is_sent_comes_too_late(machine):
    """The program is over, but not its alarm."""
    def program(task):
        signal.signal(signal.SIGALRM, stop)
        return BIG

    child = machine.spawn(program)
    until(lambda: child._connection.poll(), "the beginning")
    # The pipe is full.
    until(lambda: direct_map.process_stat(child.os_pid)[0] == "S", "its sleep")
    os.kill(child.os_pid, signal.SIGALRM)
    assert child.result(20) == BIG


def test_ctrl_c_in_the_middle_of_a_result_loses_nothing_of_it(sending):
    def interrupt():
        left = array.array("i", [1])
        while left[0]:
            fcntl.ioctl(sending._connection.fileno(), termios.FIONREAD, left)
        os.kill(os.getppid(), signal.SIGINT)
    other = multiprocess.get_context("fork").Process(target=interrupt)
    other.start()
    with pytest.raises(KeyboardInterrupt):
        sending.result()
    other.join()
    os.kill(sending.os_pid, signal.SIGCONT)
    assert sending.result(20) == BIG


@pytest.mark.parametrize("length", [b"\0\0\0\5", b"\xff\xff\xff\xff\0\0\0\0\0\0\0\5"], ids=["short", "two GiB or more"])
def test_a_result_is_there_when_its_last_byte_is(length):
    sent = length + b"hello"
    assert [worker.message(sent[:size]) for size in range(len(sent))] == [None] * len(sent)
    assert worker.message(sent) == b"hello"


def test_ctrl_c_while_a_result_is_unpacked_loses_nothing_of_it(machine):
    child = machine.spawn(lambda task: Interrupts())
    with pytest.raises(KeyboardInterrupt):
        child.result(20)
    assert child.result(20) == "unpacked"


class Interrupts:
    """When it is unpacked for the first time there is a Ctrl-C, then it is a word."""
    times = 0

    def __reduce__(self):
        return Interrupts.unpack, ()

    @classmethod
    def unpack(cls):
        cls.times += 1
        if cls.times == 1:
            signal.raise_signal(signal.SIGINT)
        return "unpacked"


def test_a_result_that_cannot_be_sent_is_an_error_of_its_own(machine):
    with pytest.raises(Exception, match="generator"):
        run(machine, lambda task: (number for number in ()))
    assert run(machine, lambda task: "next") == "next"


class TakesTwo(Exception):
    """Pickles, but does not unpickle: its args are not those of its constructor."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def test_an_exception_that_cannot_be_received_is_an_error_and_stays_one(machine):
    def program(task):
        raise TakesTwo("this", "that")

    child = machine.spawn(program)
    for _ in range(2):
        with pytest.raises(Exception) as caught:
            child.result(10)
        assert not isinstance(caught.value, (shmkern.TaskDied, TimeoutError, EOFError, OSError))


class TakesAFile(Exception):
    """Cannot be pickled, nor can what is raised when that is tried."""

    def __reduce__(self):
        raise TakesTwo("pickling", "it")


@pytest.mark.parametrize("error", [lambda: TakesTwo("this", "that"), TakesAFile, lambda: ExceptionGroup("some", [TakesAFile()])],
                         ids=["not unpickled", "not pickled", "in a group"])
def test_who_cannot_have_the_exception_is_told_all_the_same_where_it_was_raised(machine, error):
    def the_culprit(task):
        raise error()

    with pytest.raises(pickle.PicklingError, match="what the task raised cannot be sent: T.*") as caught:
        run(machine, the_culprit)
    text = str(caught.value.__cause__)
    assert "in the_culprit" in text and text.index("raise error()") < text.index("cannot be sent")


class Outcome(BaseException):
    """As that of pytest.fail()."""


def test_what_is_no_exception_but_raised_is_handed_over_as_well(machine):
    for error in (KeyboardInterrupt("odd"), GeneratorExit(), Outcome("it failed")):
        def the_culprit(task):
            raise error

        with pytest.raises(type(error)) as caught:
            run(machine, the_culprit)
        assert str(caught.value) == str(error) and "in the_culprit" in str(caught.value.__cause__)
    machine.audit().raise_if_broken()


def test_an_outcome_that_cannot_be_sent_to_nobody_is_no_error(machine, capfd):
    read_end, write_end = os.pipe()

    def unwanted(_task):
        os.read(read_end, 1)
        return (number for number in ())

    def program(task):
        child = task.fork(unwanted)
        child.close()
        os.write(write_end, b"!")
        child.process.join()
        return child.process.exitcode

    assert run(machine, program) == 0 and capfd.readouterr().err == ""
    os.close(read_end), os.close(write_end)


def test_a_class_of_the_program_that_is_run_is_the_same_one_when_it_comes_back():
    """And no copy, which no `except` would catch.  One that only the task has comes as a copy."""
    program = textwrap.dedent("""
        import enum
        import shmkern

        class Outer:
            class Error(Exception):
                pass

        class Colour(enum.Enum):
            RED = 1

        class Redefined:
            pass

        def results(task):
            yield Outer()
            yield Colour.RED
            yield task.fork(lambda task: Outer()).result(20)
            old = Redefined()
            exec("class Redefined: pass\\nclass Own: pass", globals())
            yield [type(result).__name__ for result in (old, Redefined(), Own())]
            yield old, Redefined(), Own()

        def program(task):
            raise Outer.Error(list(results(task)))

        with shmkern.Machine(frames_per_node=256) as machine:
            try:
                machine.spawn(program).result(20)
            except Outer.Error as error:
                [[outer, colour, forked, names, others]] = error.args
            assert type(outer) is type(forked) is Outer and colour is Colour.RED
            assert [type(other).__name__ for other in others] == names
    """)
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, timeout=50,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr


def wait_for_all(*_signal):
    """A handler of SIGCHLD, as many a program has it."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


@pytest.mark.parametrize("handler", [signal.SIG_IGN, wait_for_all], ids=["ignored", "waited for"])
def test_a_task_has_ended_although_its_maker_cannot_be_told(boot, handler):
    """By the host, for its program is told, or SIGCHLD is ignored, as by who has started the program."""
    before = signal.signal(signal.SIGCHLD, handler)
    try:
        machine = boot()
        done, dead = machine.spawn(lambda task: 5), machine.spawn(lambda task: os._exit(3))
        assert done.result(20) == 5
        with pytest.raises(shmkern.TaskDied):
            dead.result(20)
        until(lambda: not done.is_alive() and not dead.is_alive(), "the end of both")
        machine.spawn(lambda task: signal.pause())
        # Nothing is kept of them, as the descriptors that each had here.
        assert done not in machine.children and dead not in machine.children
        assert not {done.process, dead.process} & set(multiprocess.active_children())
        machine.close()
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_process_that_the_supervisor_forks_ends_without_a_word(machine):
    """multiprocess would wait for the tasks, which are not its own."""
    child = machine.spawn(lambda task: signal.pause())
    pid = os.fork()
    if pid == 0:
        try:
            multiprocess.util._exit_function()
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0 and child.is_alive()


def test_sys_exit_is_a_death_with_a_status(machine):
    with pytest.raises(shmkern.TaskDied, match="exited with status 3") as caught:
        run(machine, lambda task: sys.exit(3))
    assert caught.value.status == 3
    assert machine.audit().clean


def test_a_program_that_is_no_program_fails_in_its_task(machine):
    with pytest.raises(TypeError, match="not callable"):
        run(machine, 42)


# ---- killed -------------------------------------------------------------------

def hold_memory(task, pages, ready):
    """Uses memory and then waits to be killed."""
    va = task.mmap(pages * PAGE)
    for index in range(pages):
        task.store64(va + index * PAGE, index)
    os.write(ready, b"!")
    signal.pause()


def test_a_task_killed_outside_the_kernel_gives_its_memory_back(machine):
    before = free_frames(machine)
    read_end, write_end = os.pipe()
    child = machine.spawn(hold_memory, 200, write_end)
    os.read(read_end, 1)
    assert free_frames(machine) <= before - 200
    child.kill()
    with pytest.raises(shmkern.TaskDied, match="killed by signal 9") as caught:
        child.result(10)
    assert (caught.value.pid, caught.value.status) == (child.pid, -signal.SIGKILL)
    until(lambda: tables_in_use() == 1, "the slot's return", check=machine.check)
    assert free_frames(machine) == before
    machine.audit().raise_if_broken()
    os.close(read_end), os.close(write_end)


@pytest.fixture
def no_descriptors():
    """Within its `with` block the host gives this process no more descriptors."""
    @contextlib.contextmanager
    def within():
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return within


def test_whom_the_supervisor_cannot_look_at_it_does_not_take_for_dead(machine, no_descriptors):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    with no_descriptors(), pytest.raises(OSError) as caught:
        look_now(machine)
    assert caught.value.errno == errno.EMFILE
    puppet(lambda task: task.store64(va, 1))
    look_now(machine)
    machine.audit().raise_if_broken()


def test_a_machine_is_closed_without_descriptors_too(boot, no_descriptors):
    machine = boot()
    puppet = Puppet(machine)
    with no_descriptors():
        machine.close()
    assert machine.name not in direct_map.blocks() and not alive(puppet.os_pid)


def test_a_task_killed_with_a_forked_child_is_noticed_and_the_child_lives_on(machine):
    read_end, write_end = os.pipe()

    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"family")

        def child(task):
            os.write(write_end, b"!")
            signal.pause()

        task.fork(child)
        signal.pause()

    parent = machine.spawn(program)
    os.read(read_end, 1)
    parent.kill()
    with pytest.raises(shmkern.TaskDied, match="killed by signal 9"):
        parent.result(10)
    until(lambda: tables_in_use() == 2, "the parent's slot", check=machine.check)
    machine.audit().raise_if_broken()
    os.close(read_end), os.close(write_end)


def test_a_task_killed_before_it_runs_gives_its_slot_back(boot, monkeypatch):
    machine = boot(max_tasks=6)
    # Its process lives, and never comes to be the task.
    monkeypatch.setattr(worker, "_run", lambda *_arguments: signal.pause())
    for _ in range(12):
        child = machine.spawn(lambda task: 1)
        child.kill()
        with pytest.raises(shmkern.TaskDied):
            child.result(10)
        until(lambda: tables_in_use() == 1, "the slot's return", check=lambda: look_now(machine))
    monkeypatch.undo()
    assert [machine.spawn(lambda task: 1).result(10) for _ in range(3)] == [1] * 3
    machine.audit().raise_if_broken()


def test_a_task_killed_before_it_runs_is_not_forgotten_for_the_next_one(machine, monkeypatch):
    """Nobody asks for its result, and others are spawned before the supervisor looks."""
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_run", lambda *_arguments: signal.pause())
        child = machine.spawn(lambda task: 1)
        child.kill()
        child.process.join()
    assert run(machine, lambda task: 1) == 1
    until(lambda: tables_in_use() == 1, "the slot's return", check=lambda: look_now(machine))
    machine.audit().raise_if_broken()


def test_a_task_killed_while_it_sends_its_result_has_died(machine):
    child = machine.spawn(lambda task: b"x" * (8 << 20))
    # It has left the machine, and the pipe is full.
    until(lambda: vmstat.tasks()["state"][child.cpu] == 0, "its exit")
    child.kill()
    with pytest.raises(shmkern.TaskDied):
        child.result(10)


def test_a_task_killed_while_it_sends_its_result_has_died_although_its_child_lives(machine):
    """The child does not keep the pipe open: who reads from it would wait for the rest for ever."""
    def program(task):
        task.fork(lambda task: signal.pause())
        return b"x" * (8 << 20)

    child = machine.spawn(program)
    until(lambda: worker.slot(child.cpu).pid != child.pid, "its exit")
    until(lambda: child._connection.poll(), "the pipe's filling up")
    child.kill()
    with pytest.raises(shmkern.TaskDied):
        child.result(10)


def test_a_task_killed_inside_the_kernel_stops_the_machine_and_is_named(machine):
    def program(task):
        ksym.kernel_enter()
        os.kill(os.getpid(), signal.SIGKILL)

    machine.check()
    child = machine.spawn(program)
    with pytest.raises(shmkern.KernelBug, match=f"in task {child.pid} \\(program, ") as caught:
        child.result(10)
    assert caught.value.kind == "lost task"
    for call in (machine.audit, machine.check, lambda: machine.init.mmap(PAGE)):
        with pytest.raises(shmkern.KernelBug):
            call()
    machine.close()


def busy(task):
    """Faults, maps, moves and unmaps as fast as it can."""
    while True:
        va = task.mmap(32 * PAGE)
        for index in range(32):
            task.store(va + index * PAGE, b"busy" * 200)
        va = task.mremap(va + 8 * PAGE, 24 * PAGE, 32 * PAGE, shmkern.MREMAP_MAYMOVE) - 8 * PAGE
        task.mprotect(va + 8 * PAGE, 8 * PAGE, shmkern.PROT_READ)
        task.munmap(va, 40 * PAGE)


def test_a_task_killed_at_any_moment_is_lost_or_cleaned_up(boot):
    """Either the kernel had it, and the machine says which task it lost; or it had not, and
    nothing of it is left."""
    rng = random.Random(5)
    lost = cleaned = 0
    machine = boot(frames_per_node=512)
    before = free_frames(machine)
    # Both will come, but how soon is a matter of luck.
    while lost + cleaned < 40 or not (lost and cleaned):
        child = machine.spawn(busy)
        until(lambda: is_running(child), "its start")
        # The moment is random on purpose.
        time.sleep(rng.random() * 0.003)
        child.kill()
        child.process.join()
        try:
            look_now(machine)
            assert not is_running(child)
            assert free_frames(machine) == before
            machine.audit().raise_if_broken()
            cleaned += 1
        except shmkern.KernelBug as bug:
            assert bug.kind == "lost task" and f"task {child.pid} (busy" in bug.report
            machine.close()
            machine = boot(frames_per_node=512)
            lost += 1


def test_a_task_killed_in_the_middle_of_an_access_does_not_hang_a_flush(machine):
    """The CPU will never acknowledge; its death is noticed, and the flusher goes on.  The
    flusher is init, who also cleans up after the dead."""
    victim = Puppet(machine)
    va = victim(lambda task: task.mmap(PAGE))
    victim(lambda task: task.store(va, b"x"))
    victim(lambda task: ksym.access_begin(worker.slot(task.cpu)))
    victim.kill()
    # Not through a call of init's, which would look for dead tasks first.
    status = machine.init.request("move_pages", victim.pid, [va], [1])
    assert status in ([1], [-errno.EAGAIN], [-errno.EFAULT], [-errno.ESRCH])
    look_now(machine)
    assert not is_running(victim)


def test_a_task_killed_while_it_begins_with_a_lock_stops_the_machine(machine, monkeypatch):
    """Who cleaned up after it would wait for the lock."""
    holder, go, begin = Puppet(machine), *multiprocess.Pipe()
    become = worker._run

    def late(*args):
        begin.recv()
        return become(*args)
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_run", late)
        child = machine.spawn(lambda task: 1)
    slot = worker.slot(child.cpu)
    lock = slot.address + layout.offsetof("Task", "alloc_lock")
    with machine, tracing.Tracing(["contention_end"]):
        tracing.set_breaks(child.cpu, ["contention_end"])
        holder(lambda task: ksym.spin_lock(lock))
        go.send("go")
        until(lambda: slot.wait_kind == layout.constants["WAIT_SPINLOCK"], "its wait for the lock")
        holder(lambda task: ksym.spin_unlock(lock))
        # It has the lock, and says so.
        until(lambda: tracing.is_stopped(child.cpu), "its stop")
        child.kill()
        child.process.join()
        with pytest.raises(shmkern.KernelBug) as caught:
            look_now(machine)
    assert caught.value.kind == "lost task"


def test_the_next_task_in_a_slot_does_not_inherit_a_dead_ones_wait(machine):
    victim = Puppet(machine)
    freezer.freeze()
    try:
        victim.begin(lambda task: task.mmap(PAGE))
        until_waits(victim, "WAIT_FREEZER")
        victim.kill()
    finally:
        freezer.thaw()
    look_now(machine)
    heir = Puppet(machine)
    assert heir.cpu == victim.cpu
    assert report.waiters() == []


def test_a_task_that_exits_while_the_supervisor_looks_is_not_taken_for_a_lost_one(machine, monkeypatch):
    """The supervisor finds it in its slot and inside the kernel; then it leaves and its
    process ends; then the supervisor looks for the process."""
    puppet = Puppet(machine)
    puppet(lambda task: ksym.kernel_enter())
    living = report.living

    def slow_living():
        rows = living()
        if is_running(puppet):
            puppet(lambda task: ksym.kernel_exit())
            puppet.exit()
            until(lambda: not psutil.pid_exists(puppet.os_pid) or
                  psutil.Process(puppet.os_pid).status() == "zombie", "the end of its process")
        return rows

    monkeypatch.setattr(report, "living", slow_living)
    look_now(machine)
    monkeypatch.undo()
    machine.audit().raise_if_broken()


def test_a_task_on_its_way_out_is_not_taken_for_a_lost_one(machine):
    """It has forgotten the host's pid and is still inside the kernel, as release_task has it for
    a moment; it may be preempted there."""
    puppet = Puppet(machine)
    puppet(lambda task: ksym.kernel_enter())
    slot = worker.slot(puppet.cpu)
    slot.pid = 0
    look_now(machine)
    slot.pid = puppet.pid
    puppet(lambda task: ksym.kernel_exit())
    machine.audit().raise_if_broken()


def test_a_task_killed_on_its_way_out_leaves_no_slot(machine):
    """In the middle of release_task: it had given everything back but the slot.  An audit does not wait
    for it."""
    victim = Puppet(machine)

    def retire(task):
        slot = worker.slot(task.cpu)
        ksym.kernel_enter()
        ksym.deactivate_mm(slot.mm, slot)
        ksym.drop_mm(slot)
        ksym.exit_files(slot)
        ksym.drain_cpu_pagevecs(slot)
        ksym.fold_vm_stat_diff(slot)
        slot.pid = 0
    victim(retire)
    victim.kill()
    machine.audit(timeout=5).raise_if_broken()
    look_now(machine)
    assert tables_in_use() == 1
    heir = Puppet(machine)
    assert heir.cpu == victim.cpu
    # Asked again it leaves the heir alone.
    for pid in (victim.pid, 0):
        machine.init.request("_reap", victim.cpu, pid, victim.os_pid)
    assert is_running(heir) and heir(lambda task: task.load(task.mmap(PAGE), 1)) == b"\0"


def test_a_slot_that_is_cleaned_up_twice_is_left_to_its_next_task(machine):
    """The supervisor was interrupted while it waited for init's answer, and asked again."""
    victim = Puppet(machine)
    victim.kill()
    look_now(machine)
    heir = Puppet(machine)
    assert heir.cpu == victim.cpu
    machine.init.request("_reap", victim.cpu, victim.pid, victim.os_pid)
    assert is_running(heir)
    assert heir(lambda task: task.load(task.mmap(PAGE), 1)) == b"\0"


def test_an_orphan_that_has_begun_when_init_comes_to_it_is_left_alone(machine):
    """Its parent was killed before it could tell of its process, and so the supervisor knew of none."""
    orphan = Puppet(machine)
    va = orphan(lambda task: task.mmap(PAGE))
    orphan(lambda task: task.store(va, b"mine"))
    machine.init.request("_reap", orphan.cpu, orphan.pid, 0)
    assert is_running(orphan)
    assert orphan(lambda task: task.load(va, 4)) == b"mine"


def test_a_child_that_is_being_made_is_not_taken_for_an_orphan(machine, monkeypatch):
    """Its parent's slot was free when the supervisor came by it; the child's was not, when it came by
    that."""
    parent, living = Puppet(machine), report.living
    cpu = parent(lambda task: task._copy_process(False))
    pid = worker.slot(cpu).pid
    with monkeypatch.context() as patch:
        patch.setattr(report, "living", lambda: (rows := living())[rows["pid"] != parent.pid])
        look_now(machine)
    assert (worker.slot(cpu).state, worker.slot(cpu).pid) == (layout.constants["TASK_EMBRYO"], pid)
    parent(lambda task: task._abandon(cpu, pid))
    assert tables_in_use() == 2


def test_a_slot_that_changes_hands_while_the_supervisor_looks_is_left_alone(machine, monkeypatch):
    old = Puppet(machine)
    living, new = report.living, []

    def slow_living():
        rows = living()
        if not new:
            old.exit()
            until(lambda: not psutil.pid_exists(old.os_pid) or
                  psutil.Process(old.os_pid).status() == "zombie", "the end of its process")
            new.append(Puppet(machine))
            va = new[0](lambda task: task.mmap(PAGE))
            new[0](lambda task: task.store(va, b"mine"))
            new.append(va)
        return rows

    monkeypatch.setattr(report, "living", slow_living)
    look_now(machine)
    monkeypatch.undo()
    new, va = new
    assert new.cpu == old.cpu
    assert new(lambda task: task.load(va, 4)) == b"mine"


# ---- the end of a machine -----------------------------------------------------

def family(task, report_pid):
    """A task, a child and a grandchild that would live for ever."""
    def grandchild(task):
        report_pid(os.getpid())
        signal.pause()

    def child(task):
        report_pid(os.getpid())
        task.fork(grandchild)
        signal.pause()

    report_pid(os.getpid())
    task.fork(child)
    signal.pause()


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_leaving_the_block_after_an_exception_ends_everything(error):
    read_end, write_end = os.pipe()
    with pytest.raises(error):
        with shmkern.Machine(frames_per_node=256) as machine:
            machine.spawn(family, lambda pid: os.write(write_end, b"%8d" % pid))
            migrator = machine.start_migrator()
            pids = [int(os.read(read_end, 8)) for _ in range(3)] + [migrator.child.os_pid, machine.init.os_pid]
            name = machine.name
            assert name in direct_map.blocks()
            raise error("stop")
    assert name not in direct_map.blocks()
    # The kernel takes a moment to deliver what the closed pipe sends.
    until(lambda: not any(alive(pid) for pid in pids), "the end of the family")
    os.close(read_end), os.close(write_end)


@pytest.mark.parametrize("cut", [lambda: os.closerange(3, 4096), lambda: os.execvp("sleep", ["sleep", "600"])],
                         ids=["closes all", "becomes another program"])
def test_a_child_of_a_task_that_has_cut_its_ties_ends_with_the_machine(boot, cut):
    machine = boot()
    read_end, write_end = os.pipe()

    def child(_task):
        os.close(read_end)
        # The last one who has it, and it is closed by what follows.
        cut()
        signal.pause()

    def program(task):
        child_pid = task.fork(child).os_pid
        os.close(write_end)
        assert os.read(read_end, 1) == b""
        return child_pid

    # Neither the supervisor nor init is to have it open.
    first = machine.spawn(program)
    os.close(write_end)
    pid = first.result(20)
    assert alive(pid)
    began = time.monotonic()
    machine.close()
    assert not alive(pid) and time.monotonic() - began < 5
    os.close(read_end)


def alive(pid):
    """Whether a process runs: not gone, not a zombie."""
    return direct_map.process_stat(pid)[0] not in ("", "Z", "X")


SUPERVISOR = textwrap.dedent("""
    import os, signal, sys
    import shmkern

    def tell(pid):
        os.write(1, b"%8d" % pid)

    def grandchild(task):
        tell(os.getpid())
        signal.pause()

    def child(task):
        tell(os.getpid())
        task.fork(grandchild)
        while True:
            task.munmap(task.mmap(4096), 4096)

    def program(task):
        va = task.mmap(64 * 4096)
        tell(os.getpid())
        task.fork(child)
        while True:
            task.store(va, b"x" * 4096 * 64)

    with shmkern.Machine(frames_per_node=512) as machine:
        tell(os.getpid())
        machine.start_migrator()
        parent = machine.spawn(program)
        machine.spawn(lambda task: signal.pause())
        parent.result()
""")


@pytest.fixture
def supervisor():
    """A process with a machine of its own: (Popen, the pids of it, a task, its child and
    grandchild, the name of its block)."""
    process = subprocess.Popen([sys.executable, "-c", SUPERVISOR], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, start_new_session=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    pids = [int(process.stdout.read(8)) for _ in range(4)]
    [name] = blocks_of(process.pid)
    yield process, pids, name
    process.kill()
    process.communicate()
    (direct_map.SHM_DIR / name).unlink(missing_ok=True)


def test_ctrl_c_ends_all_processes_and_removes_the_block(supervisor):
    process, pids, name = supervisor
    os.killpg(process.pid, signal.SIGINT)
    _, text = process.communicate(timeout=20)
    assert process.returncode in (1, 130, -signal.SIGINT) and b"KeyboardInterrupt" in text
    # One traceback: the tasks leave Ctrl-C to their supervisor.
    assert text.count(b"Traceback") == 1
    until(lambda: not any(alive(pid) for pid in pids), "the end of all processes")
    assert name not in direct_map.blocks()


def test_ctrl_c_in_the_middle_of_a_fork_is_not_lost():
    """Python drops what a handler raises in the callbacks of a fork."""
    program = textwrap.dedent("""
        import os, signal
        import shmkern
        with shmkern.Machine(frames_per_node=512) as machine:
            os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), signal.SIGINT))
            machine.spawn(lambda task: signal.pause()).result()
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, start_new_session=True,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    try:
        _, text = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == -signal.SIGINT and b"ignored" not in text
    assert blocks_of(process.pid) == []


@pytest.mark.parametrize("how", ["fork", "clone"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=lambda number: number.name)
def test_a_handler_that_raises_in_the_middle_of_a_fork_takes_nothing_from_the_child(machine, how, number):
    """The signal is put off, and comes when the child's process is there."""
    def program(task):
        shared = task.mmap(PAGE, flags=shmkern.MAP_SHARED | shmkern.MAP_ANONYMOUS)
        own = task.mmap(PAGE)
        task.store64(own, 7)

        def child(task):
            for _ in range(50):
                task.store64(shared, task.load64(own))
                time.sleep(0.001)
            task.store64(shared, 8)

        signal.signal(number, stop)
        os.register_at_fork(after_in_parent=lambda: os.kill(os.getpid(), number))
        with pytest.raises(Stop):
            getattr(task, how)(child)
        until(lambda: task.load64(shared) == 8, "the child's end")
        return task.load64(own)
    assert machine.spawn(program).result(30) == 7
    until(lambda: tables_in_use() == 1, "the slots' return")
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["fork", "clone"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGALRM], ids=lambda number: number.name)
def test_a_handler_that_raises_when_a_child_has_its_slot_takes_no_slot(machine, how, number):
    """Before there is a process for it."""
    def program(task):
        task.store64(task.mmap(PAGE), 7)
        signal.signal(number, stop)
        copy_process = task._copy_process

        def interrupted(share_mm):
            cpu = copy_process(share_mm)
            signal.raise_signal(number)
            return cpu
        task._copy_process = interrupted
        with pytest.raises(Stop):
            getattr(task, how)(lambda task: 1)
        return tables_in_use()
    assert machine.spawn(program).result(30) == 2
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("group", [False, True])
def test_ctrl_c_while_a_task_is_spawned_takes_no_slot(boot, monkeypatch, group):
    machine = boot(memcg=group)

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt
    cgroup = machine.cgroup_create("one") if group else None
    with monkeypatch.context() as patch:
        patch.setattr(worker, "start_process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            machine.spawn(lambda task: 1, cgroup=cgroup)
    assert tables_in_use() == 1
    assert machine.spawn(lambda task: 1, cgroup=cgroup).result(10) == 1


@pytest.fixture
def other_thread():
    """other_thread() is a Ctrl-C, or another signal, that a thread of the program gets: its handler runs in
    the main thread."""
    (seen, wakeup), over = os.pipe(), threading.Event()
    os.set_blocking(wakeup, False)
    thread = threading.Thread(target=over.wait)
    thread.start()
    signal.set_wakeup_fd(wakeup)

    def come(number=signal.SIGINT):
        signal.pthread_kill(thread.ident, number)
        # When the thread has got it.
        os.read(seen, 1)
    yield come
    signal.set_wakeup_fd(-1)
    over.set()
    thread.join()
    os.close(seen), os.close(wakeup)


@pytest.mark.parametrize("threads", [False, True])
def test_ctrl_c_when_a_task_has_its_process_leaves_none_behind(boot, monkeypatch, threads, other_thread):
    """The spawn does not come to an end, so nobody knows of the process but the machine."""
    before = psutil.Process().children()
    machine, announce = boot(), boot_module.announce_task

    def interrupted(*args):
        # Once: the slot is not going to be given back.
        monkeypatch.undo()
        announced = announce(*args)
        other_thread() if threads else signal.raise_signal(signal.SIGINT)
        return announced
    monkeypatch.setattr(boot_module, "announce_task", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.spawn(lambda task: signal.pause())
    assert len(multiprocess.active_children()) == 2
    machine.close()
    # As psutil sees it: a zombie is one, too.
    assert psutil.Process().children() == before


def test_of_several_signals_that_are_put_off_none_is_lost(other_thread):
    """Although the handler of the first raises."""
    came = []
    before = signal.signal(signal.SIGTERM, lambda *_arguments: came.append("SIGTERM"))
    try:
        with pytest.raises(KeyboardInterrupt):
            with interrupts.later():
                other_thread()
                other_thread(signal.SIGTERM)
                came.append("over")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["over", "SIGTERM"]


def test_signals_are_put_off_no_longer_although_one_comes_while_that_ends(other_thread, monkeypatch):
    """Another thread gets it when its handler is back, and others are not."""
    real = signal.signal

    def interrupted(number, handler):
        real(number, handler)
        if number == signal.SIGINT and handler == signal.default_int_handler:
            monkeypatch.undo()
            other_thread()
    before = real(signal.SIGTERM, stop := lambda *_arguments: None)
    try:
        with pytest.raises(KeyboardInterrupt):
            with interrupts.later():
                monkeypatch.setattr(signal, "signal", interrupted)
        assert signal.getsignal(signal.SIGTERM) is stop
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    finally:
        real(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())


def test_a_real_time_signal_is_put_off_as_well():
    came, number = [], signal.SIGRTMIN + 1
    before = signal.signal(number, lambda *_arguments: came.append("signal"))
    try:
        with interrupts.later():
            signal.raise_signal(number)
            came.append("over")
    finally:
        signal.signal(number, before)
    assert came == ["over", "signal"]


def test_ctrl_c_while_an_audit_begins_does_not_leave_the_machine_frozen(machine, monkeypatch):
    puppet, freeze = Puppet(machine), freezer.freeze

    def interrupted():
        freeze()
        raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(freezer, "freeze", interrupted)
        with pytest.raises(KeyboardInterrupt):
            machine.audit()
    assert puppet(lambda task: task.load(task.mmap(PAGE), 1)) == b"\0"
    assert not machine.init.busy


@pytest.mark.parametrize("call", ["write", "read"])
def test_ctrl_c_in_the_middle_of_a_call_of_init_leaves_the_next_one_whole(machine, monkeypatch, call):
    """Init would take it for the rest of the request; or what is left of the answer would be the next one's."""
    channel, transfer, parts = machine.init._connection.fileno(), getattr(os, call), []

    def interrupted(fd, data):
        if fd == channel and call == "read":
            data = 3
        done = transfer(fd, data)
        if fd == channel:
            parts.append(done)
            if len(parts) == 1:
                signal.raise_signal(signal.SIGINT)
        return done
    size = 1 << 20
    va = machine.init.mmap(size)
    with monkeypatch.context() as patch:
        patch.setattr(os, call, interrupted)
        with pytest.raises(KeyboardInterrupt):
            machine.init.store(va, b"x" * size)
    assert len(parts) == 1
    assert machine.init.load(va, size) == b"x" * size


@pytest.mark.parametrize("length", [1, 1 << 20], ids=["short", "long"])
def test_ctrl_c_ends_a_call_of_init_that_is_stopped(machine, monkeypatch, length):
    va = machine.init.mmap(1 << 20)
    os.kill(machine.init.os_pid, signal.SIGSTOP)
    left = []

    def look(at_once=False):
        left.append(len(machine.init._unsent))
        # The request is sent, or as much of it as goes.
        if machine.init.busy and left[-2:] == [left[-1]] * 2:
            signal.raise_signal(signal.SIGINT)
    with monkeypatch.context() as patch:
        patch.setattr(machine, "check", look)
        with pytest.raises(KeyboardInterrupt):
            machine.init.store(va, b"x" * length)
    assert (left[-1] > 0) == (length > 1)
    os.kill(machine.init.os_pid, signal.SIGCONT)
    assert machine.init.load(va, length) == b"x" * length


@pytest.fixture
def interrupted(machine, monkeypatch):
    """interrupted(method, *args) is a call of init during which Ctrl-C comes, when init has the request."""
    def call(method, *args):
        go_on = machine.init._go_on

        def once(seconds):
            go_on(seconds)
            if not machine.init._unsent:
                raise KeyboardInterrupt
        with monkeypatch.context() as patch:
            patch.setattr(machine.init, "_go_on", once)
            with pytest.raises(KeyboardInterrupt):
                getattr(machine.init, method)(*args)
    return call


def test_a_long_answer_of_init_that_nobody_waits_for_does_not_hold_up_a_long_request(machine, interrupted):
    """Ctrl-C, and init is in the middle of its answer: there is no room for all of it."""
    size = 1 << 20
    va = machine.init.mmap(size)
    interrupted("load", va, size)
    machine.init.store(va, b"x" * size)
    assert machine.init.load(va, size) == b"x" * size


def test_a_long_answer_of_init_that_nobody_waits_for_does_not_hold_up_a_task(machine, interrupted, tmp_path):
    """That opens a file, which init keeps for it."""
    (tmp_path / "file").write_bytes(b"x" * PAGE)
    va = machine.init.mmap(1 << 20)
    interrupted("load", va, 1 << 20)
    assert run(machine, lambda task: task.pread(task.open(tmp_path / "file"), 1, 0)) == b"x"


def test_ctrl_c_while_a_machine_is_closed_is_put_off(boot, monkeypatch):
    before = psutil.Process().children()
    machine, running = boot(), report.running
    machine.spawn(lambda task: signal.pause())

    def interrupted():
        signal.raise_signal(signal.SIGINT)
        return running()
    monkeypatch.setattr(report, "running", interrupted)
    with pytest.raises(KeyboardInterrupt):
        machine.close()
    assert not machine.is_open and direct_map.mapped is None and machine.name not in direct_map.blocks()
    assert psutil.Process().children() == before


def test_a_task_has_the_signals_of_its_maker(machine):
    """They are blocked while it is forked, and their handlers put off."""
    def stop(*_arguments):
        pass
    before = signal.signal(signal.SIGTERM, stop)
    try:
        assert run(machine, lambda task: signal.pthread_sigmask(signal.SIG_BLOCK, ())) == set()
        assert run(machine, lambda task: signal.getsignal(signal.SIGTERM) is stop)
        assert run(machine, lambda task: signal.getsignal(signal.SIGINT)) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_of_a_task_is_not_told_to_its_makers_event_loop(machine):
    ours, theirs = socket.socketpair()
    ours.setblocking(False), theirs.setblocking(False)

    def program(_task):
        signal.signal(signal.SIGUSR1, lambda *_signal: None)
        signal.raise_signal(signal.SIGUSR1)

    before = signal.set_wakeup_fd(theirs.fileno())
    try:
        run(machine, program)
    finally:
        signal.set_wakeup_fd(before)
    with pytest.raises(BlockingIOError), ours, theirs:
        ours.recv(1)


@pytest.mark.parametrize("step", ["_new_object", "write_header"])
def test_ctrl_c_while_the_block_is_made_leaves_nothing(step, monkeypatch):
    done = getattr(direct_map, step)

    def interrupted(*args):
        made = done(*args)
        signal.raise_signal(signal.SIGINT)
        return made
    monkeypatch.setattr(direct_map, step, interrupted)
    with pytest.raises(KeyboardInterrupt):
        shmkern.Machine(frames_per_node=64)
    left = list(direct_map.SHM_DIR.glob(f"{direct_map.PREFIX}{os.getpid()}-*"))
    for path in left:
        path.unlink()
    assert left == [] and direct_map.mapped is None


def test_tasks_die_with_a_killed_supervisor_and_leave_a_block_to_be_seen(supervisor):
    process, pids, name = supervisor
    process.kill()
    until(lambda: not any(alive(pid) for pid in pids), "the end of all tasks")
    assert name in direct_map.blocks()
    record = direct_map.read_header(name)
    assert record["supervisor_pid"] == process.pid and not direct_map.supervisor_alive(record)


def test_tasks_die_with_a_killed_supervisor_although_a_process_that_it_forked_lives_on():
    program = textwrap.dedent("""
        import os, signal
        import shmkern

        with shmkern.Machine(frames_per_node=256) as machine:
            child = machine.spawn(lambda task: signal.pause())
            if os.fork() == 0:
                os.write(1, b"%8d%8d" % (child.os_pid, os.getpid()))
                signal.pause()
            child.result()
    """)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    task, other = (int(process.stdout.read(8)) for _ in range(2))
    [name] = blocks_of(process.pid)
    process.kill()
    process.wait()
    try:
        until(lambda: not alive(task), "the end of the task")
        assert alive(other)
    finally:
        os.kill(other, signal.SIGKILL)
        process.stdout.close()
        (direct_map.SHM_DIR / name).unlink()


def test_forty_boots_leave_nothing(boot):
    me = psutil.Process()

    def one():
        with shmkern.Machine(frames_per_node=256) as machine:
            child = machine.spawn(lambda task: task.store(task.mmap(PAGE), b"x"))
            child.result(10)
            machine.spawn(lambda task: signal.pause())

    def footprint():
        # Pipes hang on the garbage collector, and multiprocess keeps what has ended until it looks.
        multiprocess.active_children()
        gc.collect()
        return me.num_fds(), len(me.children()), len(blocks_of(me.pid)), me.num_threads(), \
            len(me.memory_maps(grouped=False))

    one()
    before = footprint()
    for _ in range(40):
        one()
    after = footprint()
    assert all(now <= then for now, then in zip(after[:4], before[:4])), (before, after)
    assert after[4] <= before[4] + 10


def of_nodes(machine):
    """Calls of a Machine's about nodes and their groups."""
    return [lambda: machine.create_cpuset([0]), lambda: machine.remove_cpuset(1), lambda: machine.set_mems(1, [0]),
            lambda: machine.attach(0, 1), lambda: machine.offline(1), lambda: machine.online(1)]


def test_a_closed_machine_says_so(boot):
    machine = boot()
    child = machine.spawn(lambda task: 5)
    assert child.result(10) == 5
    machine.close()
    machine.close()
    assert not machine.is_open
    assert child.result(10) == 5
    for call in (machine.audit, machine.vmstat, machine.zoneinfo, machine.check, machine.start_migrator,
                 lambda: machine.spawn(lambda task: 1), lambda: machine.init.mmap(PAGE), *of_nodes(machine)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_a_second_machine_in_a_process_is_refused_and_the_first_lives_on(machine):
    with pytest.raises(shmkern.BootError, match="one machine at a time"):
        shmkern.Machine(frames_per_node=256)
    assert run(machine, lambda task: 1) == 1

    def nested(task):
        with pytest.raises(shmkern.BootError, match="one machine at a time"):
            shmkern.Machine(frames_per_node=256)
        return task.load(task.mmap(PAGE), 1)

    assert run(machine, nested) == b"\0"
    # And one after the other is fine.
    machine.close()
    with shmkern.Machine(frames_per_node=256) as other:
        assert run(other, lambda task: 2) == 2


# ---- slots --------------------------------------------------------------------

def test_when_all_slots_are_taken_spawn_and_fork_say_eagain(boot):
    machine = boot(max_tasks=5)
    # Slot 0 is the boot CPU's and one is init's.
    puppets = [Puppet(machine) for _ in range(3)]
    with pytest.raises(OSError) as caught:
        machine.spawn(lambda task: 1)
    assert caught.value.errno == errno.EAGAIN
    for make in (puppets[0].fork, puppets[0].clone):
        with pytest.raises(OSError) as caught:
            make()
        assert caught.value.errno == errno.EAGAIN
    machine.audit().raise_if_broken()
    puppets[2].exit()
    again = puppets[0].fork()
    assert again.cpu == puppets[2].cpu and again.pid > puppets[2].pid
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("bad", [
    {"uid": -1}, {"caps": 5}, {"caps": ["CAP_NONSENSE"]}, {"rlimit_memlock": -1}, {"rlimit_memlock": None},
    {"rlimit_memlock": 1 << 64}, {"cpuset": "a"}, {"cpuset": None}, {"cpuset": -1}, {"cpuset": 7777777},
    {"cpuset": 1.5}, {"cgroup": "x"}, {"cgroup": 1}, {"mems_allowed": [99]}], ids=str)
def test_a_bad_argument_of_spawn_takes_no_slot(machine, bad):
    with pytest.raises((ValueError, TypeError, OSError)):
        machine.spawn(lambda task: 1, **bad)
    assert tables_in_use() == 1


def test_a_cpuset_that_does_not_exist_has_no_tasks(machine):
    for cpuset in (1, 63):
        with pytest.raises(OSError) as caught:
            machine.spawn(lambda task: 1, cpuset=cpuset)
        assert caught.value.errno == errno.ENOENT
    cpuset = machine.create_cpuset([0])
    assert machine.spawn(lambda task: 1, cpuset=cpuset).result(10) == 1
    machine.remove_cpuset(cpuset)
    with pytest.raises(OSError):
        machine.spawn(lambda task: 1, cpuset=cpuset)
    assert tables_in_use() == 1


def test_spawn_on_a_stopped_machine_says_why_at_once(machine):
    with machine:
        header = layout.header()
        header.panic_kind = layout.constants["PANIC_LOST_TASK"]
        header.panic_text, header.panic = b"stopped by the test", 2
        with pytest.raises(shmkern.KernelBug, match="stopped by the test"):
            machine.spawn(lambda task: 1)
        with pytest.raises(shmkern.KernelBug, match="stopped by the test"):
            machine.spawn(lambda task: 1)


class AMomentAgo:
    """The block's header to who looked at it just before a task fell."""

    def __init__(self, header):
        vars(self)["header"] = header

    def __getattr__(self, name):
        return 0 if name == "panic" else getattr(self.header, name)

    def __setattr__(self, name, value):
        setattr(self.header, name, value)


def test_a_task_that_falls_while_the_supervisor_finds_another_dead_has_the_record_for_itself(machine, monkeypatch):
    child = Puppet(machine)
    header = layout.header()
    header.panic_kind, header.panic_text, header.panic = layout.constants["PANIC_BUG"], b"the first to f", 1
    monkeypatch.setattr(layout, "header", lambda: AMomentAgo(header))

    def go_on_writing():
        header.panic_text, header.panic = header.panic_text + b"all", max(header.panic, 2)
    threading.Timer(0.3, go_on_writing).start()
    with machine, pytest.raises(shmkern.KernelBug, match="kernel BUG: the first to fall"):
        machine._dead(child.cpu, child.pid, worker.slot(child.cpu).os_pid, inside=True)


def test_a_record_that_is_being_written_is_waited_for_but_not_for_ever(machine, monkeypatch):
    with machine:
        header = layout.header()
        assert report.panic() is None
        header.panic_kind, header.panic = layout.constants["PANIC_HUNG_TASK"], 1

        def go_on_writing():
            header.panic_text, header.panic = b"all of it", 2
        threading.Timer(0.3, go_on_writing).start()
        assert report.panic()[1].startswith("hung task: all of it\n")
        header.panic = 1
        monkeypatch.setattr(report, "RECORD_SECONDS", 0.1)
        assert report.panic() == ("kernel BUG", "kernel BUG: died while it wrote its report")
        with pytest.raises(shmkern.KernelBug, match="died while it wrote its report"):
            machine.check()


def test_slots_are_reused_and_pids_are_not(boot):
    machine = boot(max_tasks=4)
    pids = [machine.spawn(lambda task: (task.pid, task.cpu)).result(10) for _ in range(20)]
    assert len({pid for pid, cpu in pids}) == 20
    assert len({cpu for pid, cpu in pids}) <= 2


# ---- fork and clone -----------------------------------------------------------

def test_forks_of_forks_each_have_their_own_copy(machine):
    def generation(task, va, depth):
        mine = task.load64(va)
        task.store64(va, mine + 1)
        below = task.fork(generation, va, depth - 1).result(10) if depth else []
        assert task.load64(va) == mine + 1
        return [(task.pid, task.mm_id, mine + 1)] + below

    def program(task):
        va = task.mmap(PAGE)
        return generation(task, va, 5)

    found = run(machine, program)
    assert [value for _, _, value in found] == [1, 2, 3, 4, 5, 6]
    assert len({pid for pid, _, _ in found}) == len({mm for _, mm, _ in found}) == 6


def test_clones_share_memory_and_it_lives_as_long_as_the_last(machine):
    first = Puppet(machine)
    va = first(lambda task: task.mmap(PAGE))
    second, third = first.clone(), first.clone()
    assert len({puppet(lambda task: task.mm_id) for puppet in (first, second, third)}) == 1
    first(lambda task: task.store(va, b"shared"))
    assert second(lambda task: task.load(va, 6)) == b"shared"
    second(lambda task: task.store(va, b"SHARED"))
    assert first(lambda task: task.load(va, 6)) == b"SHARED"
    fresh = third(lambda task: task.mmap(PAGE))
    third(lambda task: task.store(fresh, b"late"))
    assert mm_of(first).mm_users == 3
    first.exit()
    second.exit()
    assert third(lambda task: (task.load(va, 6), task.load(fresh, 4))) == (b"SHARED", b"late")
    assert mm_of(third).mm_users == 1
    machine.audit().raise_if_broken()


def test_a_fork_that_fails_in_the_host_leaves_nothing(machine, monkeypatch):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")

        def no_more(*_args, **_kwargs):
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

        monkeypatch.setattr(worker._fork.Process, "start", no_more)
        for make in (task.fork, task.clone):
            with pytest.raises(OSError) as caught:
                make(lambda task: 1)
            assert caught.value.errno == errno.EAGAIN
        return task.load(va, 1)

    assert run(machine, program) == b"x"
    assert tables_in_use() == 1
    machine.audit().raise_if_broken()


def test_who_cannot_write_what_was_printed_is_not_told_of_a_want_of_processes(machine, monkeypatch):
    """What is in the buffer is written before a fork, or both would write it."""
    read_end, write_end = os.pipe()
    before = tables_in_use()
    with open(write_end, "w") as output, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", output)
        print("nobody reads that")
        os.close(read_end)
        with pytest.raises(BrokenPipeError):
            machine.spawn(lambda task: 1)
        # So that it can be closed.
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), write_end)
    assert tables_in_use() == before and run(machine, lambda task: 1) == 1


def test_a_forked_child_outlives_its_parent(machine):
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(PAGE))
    parent(lambda task: task.store(va, b"will"))
    child = parent.fork()
    parent.exit()
    assert child(lambda task: task.load(va, 4)) == b"will"
    machine.audit().raise_if_broken()


# ---- init ---------------------------------------------------------------------

def test_init_has_its_memory_when_the_machine_is_there(boot):
    """Who looks for free frames then may take them for free; a benchmark overwrites them."""
    for _turn in range(10):
        machine = boot()
        init = worker.slot(1)
        assert (init.pid, init.os_pid, init.state) == (
            machine.init.pid, machine.init.os_pid, layout.constants["TASK_RUNNING"])
        assert layout.struct("MmStruct", init.mm).pgd
        machine.close()


def test_init_does_what_its_supervisor_asks(machine):
    va = machine.init.mmap(2 * PAGE)
    machine.init.store(va, b"init")
    assert machine.init.load(va, 4) == b"init"
    assert machine.init.pid == 1
    assert machine.init.move_pages(0, [va, va + PAGE], [1, 1]) == [1, -errno.ENOENT]
    with pytest.raises(shmkern.SegmentationFault) as caught:
        machine.init.store(va + 2 * PAGE, b"x")
    assert caught.value.address == va + 2 * PAGE
    with pytest.raises(OSError) as caught:
        machine.init.munmap(1, PAGE)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(AttributeError, match="no_such_call"):
        machine.init.no_such_call
    machine.init.munmap(va, 2 * PAGE)


def test_a_request_to_init_may_name_its_arguments(machine, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * PAGE)
    fd = machine.init.open(tmp_path / "file", fs="buffer", block_size=512)
    va = machine.init.mmap(PAGE, fd=fd, flags=shmkern.MAP_SHARED)
    assert machine.init.load(va, length=2) == b"xx"
    machine.init.munmap(va, PAGE)
    machine.init.close(fd)


def test_init_moves_another_tasks_pages(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(va, b"moved"))
    assert machine.init.move_pages(puppet.pid, [va], [1]) == [1]
    assert machine.init.move_pages(puppet.pid, [va], [0]) == [0]
    assert puppet(lambda task: task.load(va, 5)) == b"moved"


def test_a_reply_of_init_that_cannot_be_sent_is_an_error_of_that_call_alone(machine):
    with pytest.raises(Exception) as caught:
        machine.init.request("__getattribute__", "load")
    assert not isinstance(caught.value, (shmkern.TaskDied, shmkern.KernelBug))
    assert machine.init.load(machine.init.mmap(PAGE), 1) == b"\0"


def test_a_request_that_init_cannot_unpack_is_an_error_of_that_call_alone(machine):
    with pytest.raises(TypeError, match="other"):
        machine.init.load(TakesTwo("this", "that"), 1)
    assert machine.init.load(machine.init.mmap(PAGE), 1) == b"\0"


def test_init_does_not_fork(machine):
    for make in (machine.init.fork, machine.init.clone):
        with pytest.raises(PermissionError, match=r"init does not (fork|clone); Machine\.spawn\(\)"):
            make(lambda task: 1)
    assert tables_in_use() == 1


def test_init_does_not_exit(machine):
    with pytest.raises(Exception) as caught:
        machine.init.exit()
    assert not isinstance(caught.value, shmkern.TaskDied)
    assert machine.init.load(machine.init.mmap(PAGE), 1) == b"\0"


def test_a_death_during_a_call_of_init_does_not_mix_up_replies(machine, monkeypatch):
    """While the supervisor waits for init it finds a dead task, and has init clean up."""
    va = machine.init.mmap(PAGE)
    machine.init.store(va, b"x")
    holder = Puppet(machine)
    frame = machine.init.move_pages(0, [va])
    assert frame in ([0], [1])
    victim = Puppet(machine)
    victim.kill()
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.0)
    for _ in range(20):
        assert machine.init.load(va, 1) == b"x"
    assert machine.init.move_pages(0, [va]) == frame
    assert not is_running(victim) and is_running(holder)


def test_a_call_of_init_that_was_interrupted_does_not_answer_the_next_one(machine, interrupted):
    """Ctrl-C while the supervisor waits for init; it goes on with the machine."""
    va = machine.init.mmap(PAGE)
    machine.init.store(va, b"x")
    interrupted("mprotect", va, PAGE, shmkern.PROT_READ)
    assert machine.init.load(va, 1) == b"x"
    assert machine.init.load(va, 2) == b"x\0"


def test_the_death_of_init_stops_the_machine(machine):
    os.kill(machine.init.os_pid, signal.SIGKILL)
    with pytest.raises((shmkern.KernelBug, shmkern.TaskDied)):
        machine.init.mmap(PAGE)
    with pytest.raises(shmkern.KernelBug, match="init was killed") as caught:
        until(lambda: look_now(machine), "the news")
    assert caught.value.kind == "lost task"
    machine.close()


# ---- whose hands off what -----------------------------------------------------

def test_a_task_cannot_use_the_machine_object(machine):
    def program(task):
        refused = []
        for call in (lambda: machine.spawn(lambda task: 1), machine.audit, machine.vmstat, machine.check,
                     machine.zoneinfo, machine.start_migrator, *of_nodes(machine)):
            try:
                call()
            except RuntimeError as error:
                refused.append("a task cannot do that" in str(error))
        # Closing is for the supervisor; here it does nothing.
        machine.close()
        return refused

    assert run(machine, program) == [True] * 12
    assert run(machine, lambda task: 1) == 1


@pytest.mark.parametrize("program", [
    "shmkern.Task(0)",
    "shmkern.Task(0).mmap(4096)",
    "with shmkern.Machine(frames_per_node=256) as m: shmkern.Task(1).mmap(4096)",
    "with shmkern.Machine(frames_per_node=256) as m: m.spawn(lambda task: task).result(10).mmap(4096)",
    "with shmkern.Machine(frames_per_node=256) as m: m.spawn(lambda task: task).result(10).load(65536, 1)",
])
def test_a_task_object_in_a_process_that_is_no_task_is_an_error_and_no_crash(program):
    process = subprocess.Popen([sys.executable, "-c", f"import shmkern\n{program}"], stderr=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    _, text = process.communicate(timeout=30)
    left = blocks_of(process.pid)
    for name in left:
        (direct_map.SHM_DIR / name).unlink()
    assert process.returncode == 1, f"wait status {process.returncode}"
    assert b"Error" in text.splitlines()[-1] and not left


def test_threads_of_the_supervisor_may_use_the_machine_at_the_same_time(boot):
    """Each gets the answers to its own requests, nobody is thawed while another audits, and who is killed is
    cleaned up after once."""
    machine = boot(max_tasks=16)
    migrator = machine.start_migrator()
    va = machine.init.mmap(PAGE)
    rounds, words, wrong = 30, [], []

    def work():
        read_end, write_end = os.pipe()
        try:
            for _ in range(rounds):
                words.append(machine.init.fetch_add64(va, 1))
                assert machine.spawn(lambda task: task.mmap(PAGE) != 0).result(20)
                child = machine.spawn(hold_memory, 1, write_end)
                os.read(read_end, 1)        # It is out of the kernel, and stays there.
                child.kill()
                with pytest.raises(shmkern.TaskDied):
                    child.result(20)
                if not machine.audit().clean:
                    wrong.append(machine.audit().findings)
        except BaseException as error:
            wrong.append(error)
        finally:
            os.close(read_end), os.close(write_end)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 50
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert sorted(words) == list(range(len(threads) * rounds))
    migrator.stop(20)


USERS = textwrap.dedent("""
    import threading
    import shmkern

    def use(call, begun):
        try:
            while True:
                call()
                begun.release()
        # The second from the pipe to init, or to a task.
        except (RuntimeError, OSError) as error:
            assert "closed" in str(error)

    for _ in range(25):
        with shmkern.Machine(frames_per_node=64, max_tasks=8) as machine:
            begun = threading.Semaphore(0)
            calls = (machine.vmstat, machine.zoneinfo, lambda: machine.page_cluster, machine.audit,
                     lambda: machine.spawn(lambda task: 1).result(20), lambda: machine.check(at_once=True))
            threads = [threading.Thread(target=use, args=(call, begun)) for call in calls]
            for thread in threads:
                thread.start()
            begun.acquire()
        for thread in threads:
            thread.join()
    print("all told")
""")


def test_a_thread_that_uses_a_machine_is_told_when_it_is_closed():
    """And does not look at memory that is gone.  How many threads come to that is luck, but hardly ever none."""
    done = subprocess.run([sys.executable, "-c", USERS], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all told\n", "")


class SentAfter:
    """It is sent when a thread has ended, and then is a word."""

    def __init__(self, thread):
        self.thread = thread

    def __reduce__(self):
        self.thread.join(20)
        return str, ("sent",)


def test_a_thread_that_goes_on_after_its_task_has_ended_does_not_cost_the_result(machine):
    def program(task, seen):
        va = task.mmap(PAGE)

        def work():
            try:
                while True:
                    task.store64(va, 1)
            except RuntimeError as error:
                seen.send((str(error), task.pid))
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        until(lambda: task.load64(va) == 1, "its first store")
        return SentAfter(thread)
    here, there = multiprocess.Pipe()
    child = machine.spawn(program, there)
    assert child.result(20) == "sent" and here.poll()
    text, pid = here.recv()
    assert "not a task" in text and pid == child.pid


METHODS = {
    "load64": lambda task, va: (task.load64, va), "store": lambda task, va: (task.store, va, b"word"),
    "fetch_add64_many": lambda task, va: (task.fetch_add64_many, [va], [1]), "mmap": lambda task, va: (task.mmap, PAGE),
    "move_pages": lambda task, va: (task.move_pages, 0, [va], [1]), "get_mempolicy": lambda task, va: (task.get_mempolicy,),
    "sys_mbind": lambda task, va: (task.sys_mbind, va, PAGE, 0, 0, 0, 0), "fail_nth": lambda task, va: (task.fail_nth, 0)}


@pytest.mark.parametrize("name", METHODS)
def test_nor_does_one_that_has_got_hold_of_a_method(machine, name):
    def program(task, seen):
        method, *arguments = METHODS[name](task, task.mmap(PAGE))
        begun = threading.Event()

        def work():
            try:
                while True:
                    method(*arguments)
                    begun.set()
            except RuntimeError as error:
                seen.send(str(error))
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        assert begun.wait(20)
        return SentAfter(thread)
    here, there = multiprocess.Pipe()
    assert machine.spawn(program, there).result(20) == "sent" and "not a task" in here.recv()


def test_a_process_that_a_program_forks_itself_is_no_task(machine):
    """Two processes would be one CPU."""
    def program(task):
        va = task.mmap(PAGE)
        task.store64(va, 1)
        pid = os.fork()
        if pid == 0:
            try:
                task.store64(va, 2)
            except RuntimeError:
                # It has no result, and nothing to give back.
                return "the fork's"
            os._exit(3)
        assert os.waitpid(pid, 0)[1] == 1 << 8
        child = task.fork(lambda _child: task.load64(va))
        return task.load64(va), child.result(10)
    assert machine.spawn(program).result(20) == (1, 1)


def test_threads_of_a_program_take_turns_on_its_cpu(machine):
    def program(task):
        va = task.mmap(64 * PAGE)
        where, over = [va + index * PAGE for index in range(64)] * 100, []

        def work():
            while not over:
                task.store64_many(where, 7)
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            area = task.mmap(32 * PAGE)
            task.store64_many([area + index * PAGE for index in range(32)], 1)
            task.munmap(area, 32 * PAGE)
        over.append(True)
        for thread in threads:
            thread.join()
        return worker.slot(task.cpu).access_seq & 1
    migrator = machine.start_migrator()
    assert machine.spawn(program).result(30) == 0
    migrator.stop(10)


# ---- migrators ----------------------------------------------------------------

def test_a_migrator_can_be_stopped_and_another_started(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(50 * PAGE))
    puppet(lambda task: task.store(va, bytes(range(50)) * PAGE))
    for seed in range(3):
        before = machine.vmstat()["pgmigrate_success"]
        migrator = machine.start_migrator(seed=seed)
        # A pass over both nodes moves each of the 50 pages twice at most.
        until(lambda: machine.vmstat()["pgmigrate_success"] >= before + 300, "migrations", check=machine.check)
        count = migrator.stop(10)
        assert count["passes"] >= 1 and count["batches"] >= 2 and migrator.stop(10) == count
        until(lambda: not migrator.child.is_alive(), "the end of its process")
        assert puppet(lambda task: task.load(va, 50 * PAGE)) == bytes(range(50)) * PAGE
        machine.audit().raise_if_broken()


def test_several_migrators_work_at_once(boot):
    machine = boot(nodes=4, frames_per_node=512)

    def program(task):
        va = task.mmap(100 * PAGE)
        for index in range(100):
            task.store64(va + index * PAGE, index)
        rounds = 0
        while vmstat.vmstat()["pgmigrate_success"] < 1000:
            rounds += 1
            for index in range(100):
                seen = task.fetch_add64(va + index * PAGE, 1 << 32)
                assert seen & 0xffffffff == index, (index, hex(seen))
        return [task.load64(va + index * PAGE) >> 32 for index in range(100)], rounds

    migrators = [machine.start_migrator(seed=seed) for seed in range(3)]
    counts, rounds = run(machine, program)
    assert counts == [rounds] * 100
    for migrator in migrators:
        assert migrator.stop(10)["passes"] >= 0
    machine.audit().raise_if_broken()


def test_a_migrator_keeps_to_its_nodes(boot):
    machine = boot(nodes=4, frames_per_node=256)
    puppets = [Puppet(machine) for _ in range(4)]
    places = []
    for node, puppet in enumerate(puppets):
        va = puppet(lambda task: task.mmap(PAGE))
        puppet(lambda task: task.store(va, b"x"))
        assert machine.init.move_pages(puppet.pid, [va], [node]) == [node]
        places.append(va)
    count = machine.vmstat()["pgmigrate_success"]
    migrator = machine.start_migrator(nodes=[1, 2])
    until(lambda: machine.vmstat()["pgmigrate_success"] >= count + 10, "migrations", check=machine.check)
    migrator.stop(10)
    nodes = [machine.init.move_pages(puppet.pid, [va])[0] for puppet, va in zip(puppets, places)]
    assert nodes[0] == 0 and nodes[3] == 3 and set(nodes[1:3]) <= {1, 2}


def test_a_forked_child_killed_before_it_runs_gives_its_slot_back(machine, monkeypatch):
    def program(task):
        task.store(task.mmap(PAGE), b"x")
        # Its process lives, and never comes to be the task.
        monkeypatch.setattr(worker, "_run", lambda *_arguments: signal.pause())
        child = task.fork(lambda task: 1)
        child.kill()
        with pytest.raises(shmkern.TaskDied):
            child.result(10)
    machine.spawn(program).result(20)
    until(lambda: tables_in_use() == 1, "the slot's return", check=lambda: look_now(machine))
    machine.audit().raise_if_broken()


def test_a_forked_child_killed_before_it_runs_is_not_forgotten_when_nobody_asks_for_it(machine, monkeypatch):
    forked = multiprocess.get_context("fork").Event()

    def program(task):
        task.store(task.mmap(PAGE), b"x")
        monkeypatch.setattr(worker, "_run", lambda *_arguments: signal.pause())
        task.fork(lambda task: 1).kill()
        forked.set()
        signal.pause()
    parent = machine.spawn(program)
    assert forked.wait(20) and tables_in_use() == 3
    # Init and the parent stay.
    until(lambda: tables_in_use() == 2, "the slot's return", check=lambda: look_now(machine))
    machine.audit().raise_if_broken()
    assert parent.is_alive()


def test_a_parent_killed_before_it_has_made_the_childs_process_leaves_no_slot(machine):
    def program(task):
        task.store(task.mmap(PAGE), b"x")
        task._copy_process(False)
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(shmkern.TaskDied):
        machine.spawn(program).result(10)
    until(lambda: tables_in_use() == 1, "the slots' return", check=lambda: look_now(machine))
    machine.audit().raise_if_broken()


def test_a_process_that_comes_after_its_slot_was_taken_back_is_no_task(machine):
    """As above, but the parent had made the process, and not told of it."""
    begin, go = multiprocess.Pipe()

    def late(cpu, pid, alive):
        lifeline.start_task_process()
        begin.recv()
        try:
            worker._run(cpu, pid, lambda task: "ran", ())
        except ProcessLookupError:
            alive.send("no task")

    def program(task, alive):
        cpu = task._copy_process(False)
        worker._fork.Process(target=late, args=(cpu, worker.slot(cpu).pid, alive)).start()
        os.kill(os.getpid(), signal.SIGKILL)
    here, there = multiprocess.Pipe()
    with pytest.raises(shmkern.TaskDied):
        machine.spawn(program, there).result(10)
    until(lambda: tables_in_use() == 1, "the slots' return", check=lambda: look_now(machine))
    go.send("go")
    assert here.recv() == "no task"
    machine.audit().raise_if_broken()


def test_a_death_during_the_audit_does_not_hang_it(machine, monkeypatch):
    """The dead task is cleaned up by init, which is frozen like everybody."""
    victim = Puppet(machine)
    inside, audit = freezer.tasks_in_kernel, []

    def kill_first():
        if not audit:
            audit.append(victim.kill())
            machine.check(at_once=True)
        return inside()

    monkeypatch.setattr(freezer, "tasks_in_kernel", kill_first)
    machine.audit()
    monkeypatch.undo()
    until(lambda: not is_running(victim), "the slot's return", check=lambda: look_now(machine))
    machine.audit().raise_if_broken()
