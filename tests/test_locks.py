# SPDX-License-Identifier: GPL-2.0-only
"""Locks between processes: who may be in at once, who is woken, what is a bug."""
import ctypes
import errno
import faulthandler
import os
import re
import signal
import struct
import time

import pytest
from multiprocess import get_context

from helpers import woken
from shmkern import direct_map, layout
from shmkern.errors import TaskDied
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

LOCKED, WAITERS, WRITEBACK = (1 << C[bit] for bit in ("PG_locked", "PG_waiters", "PG_writeback"))


def waits_for(child, kind):
    """Whether a task waits, for the `kind` of thing."""
    return slot(child.cpu).wait_kind == C[kind]


def sleeps(child):
    """Whether a task's process is off the CPU."""
    return direct_map.process_stat(child.os_pid)[0] == "S"


def crowd(machine, count, program):
    """Runs program(task, number) in `count` tasks that begin at the same moment; what they
    return."""
    start = mp.Barrier(count)

    def member(task, number):
        start.wait(20)
        return program(task, number)
    children = [machine.spawn(member, number) for number in range(count)]
    return [child.result(timeout=40) for child in children]


def keep(machine, take):
    """A task that calls take() and then stays as it is, once it has."""
    taken = mp.Event()

    def keeper(task):
        take()
        taken.set()
        time.sleep(60)
    child = machine.spawn(keeper)
    assert taken.wait(20)
    return child


def gather(machine, until, count, take, *kinds):
    """`count` tasks that call take(task, number) at the same moment, when all of them sleep in it for one of those
    `kinds` of things.  Each returns for how long it was away, and what take() did."""
    start = mp.Barrier(count)

    def waiter(task, number):
        start.wait(20)
        came = time.monotonic()
        value = take(task, number)
        return time.monotonic() - came, value
    children = [machine.spawn(waiter, number) for number in range(count)]
    until(lambda: all(any(waits_for(child, kind) for kind in kinds) and sleeps(child) for child in children))
    return children


def times(children):
    """For how long each of gather()'s was away; all that take() returned was true."""
    results = [child.result(timeout=20) for child in children]
    assert all(value for _away, value in results), results
    return [away for away, _value in results]


def where(report):
    """The file that a report says the bug is in."""
    return re.search(r"^  at .*?(\w+\.\w+):(\d+): \S", report, re.M)[1]


# ---- spinlocks ----------------------------------------------------------------

def test_spinlock_admits_one_process_at_a_time(machine, shared):
    lock, counter = shared("Spinlock"), shared("u64")

    def program(task, number):
        for _ in range(3000):
            ksym.spin_lock(lock)
            counter[0] += 1
            ksym.spin_unlock(lock)
    crowd(machine, 4, program)
    assert counter[0] == 4 * 3000
    assert lock.word == 0


def test_spinlock_names_its_owner(run, shared):
    lock = shared("Spinlock")

    def program(task):
        ksym.spin_lock(lock)
        held = lock.word, slot(task.cpu).preempt_count, ksym.spin_is_held(lock)
        ksym.spin_unlock(lock)
        return task.cpu, held, (lock.word, slot(task.cpu).preempt_count, ksym.spin_is_held(lock))
    cpu, held, free = run(program)
    assert held == (cpu + 1, 1, 1)
    assert free == (0, 0, 0)


def test_trylock_takes_a_free_spinlock_and_no_other(machine, run, shared):
    lock, taken = shared("Spinlock"), mp.Event()

    def second(task):
        assert taken.wait(20)
        return ksym.spin_trylock(lock), slot(task.cpu).preempt_count

    def owner(task):
        other = task.clone(second)
        assert ksym.spin_trylock(lock) == 1
        assert ksym.spin_trylock(lock) == 0
        taken.set()
        assert other.result(timeout=20) == (0, 0)
        ksym.spin_unlock(lock)
        return lock.word
    assert run(owner) == 0


def test_second_lock_of_a_spinlock_is_a_kernel_bug(machine, shared, stops):
    lock = shared("Spinlock")

    def program(task):
        ksym.spin_lock(lock)
        ksym.spin_lock(lock)
    report = stops(machine, program)
    assert "takes a spinlock it already holds" in report
    assert where(report) == "locks.py"


def test_second_unlock_of_a_spinlock_is_a_kernel_bug(machine, shared, stops):
    lock = shared("Spinlock")

    def program(task):
        ksym.spin_lock(lock)
        ksym.spin_unlock(lock)
        ksym.spin_unlock(lock)
    assert where(stops(machine, program)) == "locks.pxd"


def test_unlock_of_anothers_spinlock_is_a_kernel_bug(machine, shared, stops):
    lock = shared("Spinlock")

    keep(machine, lambda: ksym.spin_lock(lock))
    assert where(stops(machine, lambda task: ksym.spin_unlock(lock))) == "locks.pxd"


# What may sleep, and how to call it.
SLEEPERS = {
    "lock_page": lambda objects: ksym.lock_page(objects("Page")),
    "wait_on_page_locked": lambda objects: ksym.wait_on_page_bit(objects("Page"), C["PG_locked"], 0),
    "down_read": lambda objects: ksym.down_read(objects("RwSem")),
    "down_write": lambda objects: ksym.down_write(objects("RwSem")),
    "synchronize_rcu": lambda objects: ksym.synchronize_rcu(),
}


@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_sleeping_under_a_spinlock_is_a_kernel_bug(machine, shared, stops, sleeper):
    def program(task):
        ksym.spin_lock(shared("Spinlock"))
        SLEEPERS[sleeper](shared)
    report = stops(machine, program)
    assert where(report) == "locks.pxd" and "preempt_count" in report


@pytest.mark.parametrize("sleeper", SLEEPERS)
def test_sleeping_in_an_rcu_read_section_is_a_kernel_bug(machine, shared, stops, sleeper):
    def program(task):
        ksym.rcu_read_lock()
        SLEEPERS[sleeper](shared)
    report = stops(machine, program)
    assert where(report) == "locks.pxd" and "rcu_nesting" in report


def test_waiters_park_while_the_holder_is_stopped_and_all_wake_when_it_unlocks(machine, shared, until):
    lock = shared("Spinlock")

    def holder(task, held, give_back):
        ksym.spin_lock(lock)
        held.set()
        assert give_back.wait(20)
        ksym.spin_unlock(lock)

    def pass_through(task, _number):
        ksym.spin_lock(lock)
        ksym.spin_unlock(lock)
        return True

    def one_round():
        held, give_back = mp.Event(), mp.Event()
        first = machine.spawn(holder, held, give_back)
        assert held.wait(20)
        os.kill(first.os_pid, signal.SIGSTOP)
        until(lambda: direct_map.process_stat(first.os_pid)[0] == "T")
        waiting = gather(machine, until, 3, pass_through, "WAIT_SPINLOCK")
        assert lock.word == first.cpu + 1 | C["SPIN_WAITERS"]
        os.kill(first.os_pid, signal.SIGCONT)
        give_back.set()
        first.result(timeout=20)
        away = times(waiting)
        assert lock.word == 0
        return away
    parks = machine.vmstat()["spin_park"]
    assert woken(one_round)
    assert machine.vmstat()["spin_park"] - parks >= 3


def refuse(number, error):
    """From now on the host refuses this process a system call (seccomp(2), a filter of four instructions)."""
    words = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | error), (0x06, 0, 0, 0x7fff0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *word) for word in words))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(words), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP.
    assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0


def test_who_parks_has_everybody_pass_a_fence_first(machine, shared):
    """An unlock has none, and may not have seen that there is somebody to wake.  That no wake-up is lost is luck
    that lasts for hours; so the host is to refuse membarrier(2), without which nobody goes on."""
    lock, held, give_back = shared("Spinlock"), mp.Event(), mp.Event()

    def holder(task):
        ksym.spin_lock(lock)
        held.set()
        assert give_back.wait(20)
        ksym.spin_unlock(lock)

    def waiter(task):
        faulthandler.disable()
        refuse(324, errno.EPERM)
        ksym.spin_lock(lock)
    first = machine.spawn(holder)
    assert held.wait(20)
    second = machine.spawn(waiter)
    with pytest.raises(TaskDied) as died:
        second.result(timeout=10)
    give_back.set()
    first.result(timeout=20)
    assert died.value.status == -signal.SIGABRT


# ---- rwsem --------------------------------------------------------------------

def test_readers_are_in_together(machine, shared):
    sem, together = shared("RwSem"), mp.Barrier(3)

    def program(task, number):
        ksym.down_read(sem)
        together.wait(20)
        word = sem.word
        together.wait(20)
        ksym.up_read(sem)
        return word & C["RWSEM_READERS"]
    assert crowd(machine, 3, program) == [3, 3, 3]
    assert sem.word == 0


def test_writer_is_alone_and_every_section_counts(machine, shared):
    sem, pair = shared("RwSem"), shared("u64", 2)

    def program(task, number):
        torn = 0
        for turn in range(1500):
            if (turn + number) % 3 == 0:
                ksym.down_write(sem)
                pair[0] += 1
                pair[1] += 1
                ksym.up_write(sem)
            else:
                ksym.down_read(sem)
                torn += pair[0] != pair[1]
                ksym.up_read(sem)
        return torn
    assert crowd(machine, 4, program) == [0] * 4
    assert pair.tolist() == [4 * 500] * 2
    assert sem.word == sem.owner == sem.writers_waiting == 0


def test_writer_keeps_out_everybody_and_names_itself(machine, shared, until):
    sem = shared("RwSem")
    held, give_back = mp.Event(), mp.Event()

    def writer(task):
        ksym.down_write(sem)
        held.set()
        assert give_back.wait(20)
        ksym.up_write(sem)

    def enter(task, down, up):
        getattr(ksym, down)(sem)
        inside = give_back.is_set()
        getattr(ksym, up)(sem)
        return inside
    first = machine.spawn(writer)
    assert held.wait(20)
    assert sem.owner == first.cpu + 1
    assert machine.spawn(lambda task: ksym.down_read_trylock(sem)).result(timeout=20) == 0
    reader = machine.spawn(enter, "down_read", "up_read")
    second = machine.spawn(enter, "down_write", "up_write")
    until(lambda: waits_for(reader, "WAIT_RWSEM_READ") and waits_for(second, "WAIT_RWSEM_WRITE"))
    give_back.set()
    assert reader.result(timeout=20) and second.result(timeout=20)
    first.result(timeout=20)


@pytest.mark.parametrize("held, goes_first", [("read", "write"), ("write", "read")])
def test_who_has_waited_for_the_one_sort_goes_before_the_other_one(machine, shared, until, held, goes_first):
    """A writer that waits before readers to come, and a reader that has waited for a writer before the next
    one: a stream of either would else keep the other out for ever."""
    sem, order = shared("RwSem"), shared("u64", 2)
    inside, leave = mp.Event(), mp.Event()

    def early(task):
        getattr(ksym, f"down_{held}")(sem)
        inside.set()
        assert leave.wait(20)
        getattr(ksym, f"up_{held}")(sem)

    def late(task, how):
        getattr(ksym, f"down_{how}")(sem)
        order[1] += 1
        place = int(order[1])
        getattr(ksym, f"up_{how}")(sem)
        return place
    first = machine.spawn(early)
    assert inside.wait(20)
    writer = machine.spawn(late, "write")
    until(lambda: waits_for(writer, "WAIT_RWSEM_WRITE") and sleeps(writer) and sem.writers_waiting == 1)
    reader = machine.spawn(late, "read")
    until(lambda: waits_for(reader, "WAIT_RWSEM_READ") and sleeps(reader))
    assert sem.word & C["RWSEM_READERS"] == (held == "read")
    leave.set()
    places = {"write": writer.result(timeout=20), "read": reader.result(timeout=20)}
    assert places == {goes_first: 1, held: 2}
    first.result(timeout=20)
    assert sem.word == sem.writers_waiting == 0


@pytest.mark.parametrize("one, many, crowd_size, hold", [("write", "read", 4, 0), ("read", "write", 6, 0.001)])
def test_one_gets_in_under_a_stream_of_the_other_sort(machine, shared, one, many, crowd_size, hold):
    """Of five writers that hold it for a while and come back at once one is always waiting."""
    sem, over = shared("RwSem"), shared("u64")

    def program(task, number):
        if number == 0:
            for _ in range(20):
                getattr(ksym, f"down_{one}")(sem)
                getattr(ksym, f"up_{one}")(sem)
            over[0] = 1
            return True
        deadline = time.monotonic() + 15
        while not over[0] and time.monotonic() < deadline:
            getattr(ksym, f"down_{many}")(sem)
            if hold:
                time.sleep(hold)
            getattr(ksym, f"up_{many}")(sem)
        return bool(over[0])
    assert all(crowd(machine, crowd_size, program))
    assert sem.word == sem.writers_waiting == 0


@pytest.mark.parametrize("calls", [
    ["up_read"], ["up_write"], ["down_read", "up_write"], ["down_write", "up_read"]])
def test_release_by_one_who_does_not_hold_the_rwsem_so_is_a_kernel_bug(machine, shared, stops, calls):
    sem = shared("RwSem")
    if calls == ["up_read"]:
        # Somebody has it for reading, but not this task.
        keep(machine, lambda: ksym.down_read(sem))
    report = stops(machine, lambda task: [getattr(ksym, call)(sem) for call in calls])
    assert "gives back a lock it does not hold" in report and where(report) == "locks.py"


def test_second_down_write_is_a_kernel_bug(machine, shared, stops):
    sem = shared("RwSem")

    def program(task):
        ksym.down_write(sem)
        ksym.down_write(sem)
    assert where(stops(machine, program)) == "locks.py"


@pytest.mark.parametrize("down, up", [("down_read", "up_read"), ("down_write", "up_write")])
def test_last_one_out_wakes_all_sleepers(machine, shared, until, down, up):
    sem = shared("RwSem")

    def holder(task, held, leave):
        getattr(ksym, down)(sem)
        held.set()
        assert leave.wait(20)
        getattr(ksym, up)(sem)

    def pass_through(task, number):
        """A writer, and readers that come when it waits."""
        while number and sem.writers_waiting == 0:
            os.sched_yield()
        how = "read" if number else "write"
        getattr(ksym, f"down_{how}")(sem)
        getattr(ksym, f"up_{how}")(sem)
        return True

    def one_round():
        held, leave = mp.Event(), mp.Event()
        first = machine.spawn(holder, held, leave)
        assert held.wait(20)
        waiting = gather(machine, until, 3, pass_through, "WAIT_RWSEM_WRITE", "WAIT_RWSEM_READ")
        leave.set()
        first.result(timeout=20)
        return times(waiting)
    assert woken(one_round)


# ---- page lock ----------------------------------------------------------------

def test_page_lock_admits_one_process_at_a_time(machine, shared):
    page, counter = shared("Page"), shared("u64")

    def program(task, number):
        for _ in range(2000):
            ksym.lock_page(page)
            counter[0] += 1
            ksym.unlock_page(page)
    crowd(machine, 4, program)
    assert counter[0] == 4 * 2000
    assert page.flags & LOCKED == 0


def test_page_lock_is_in_the_list_of_what_a_task_holds(run, shared):
    one, two = shared("Page"), shared("Page")

    def program(task):
        me = slot(task.cpu)
        ksym.lock_page(one)
        ksym.lock_page(two)
        held = set(me.held_locks[:me.nr_held].tolist())
        ksym.unlock_page(one)
        after = me.held_locks[:me.nr_held].tolist()
        ksym.unlock_page(two)
        return held, after, me.nr_held
    how = C["HELD_PAGE"]
    assert run(program) == ({one.address | how, two.address | how}, [two.address | how], 0)


def test_trylock_takes_a_free_page_and_no_other(run, shared):
    page = shared("Page")

    def program(task):
        assert ksym.trylock_page(page) == 1
        assert ksym.trylock_page(page) == 0
        assert task.clone(lambda task: ksym.trylock_page(page)).result(timeout=20) == 0
        ksym.unlock_page(page)
        return page.flags
    assert run(program) == 0


def test_uncontended_unlock_touches_no_wait_queue(run, shared):
    """Its sequence moves with every wake-up, and a wake-up is a system call."""
    page = shared("Page")

    def program(task):
        queue = layout.struct("WaitQueueHead", ksym.page_waitqueue(page))
        before, seen = queue.sequence, 0
        for _ in range(100):
            ksym.lock_page(page)
            seen |= page.flags
            ksym.unlock_page(page)
        return queue.sequence - before, seen
    assert run(program) == (0, LOCKED)


def lock_holder(task, page, held, leave):
    """Has a page locked until it is told to leave."""
    ksym.lock_page(page)
    held.set()
    assert leave.wait(20)
    ksym.unlock_page(page)


def test_all_waiters_of_a_page_lock_get_it_and_only_sleepers_set_pg_waiters(machine, shared, until):
    page, inside = shared("Page"), shared("u64")

    def pass_through(task, _number):
        ksym.lock_page(page)
        inside[0] += 1
        ksym.unlock_page(page)
        return True

    def one_round():
        held, leave = mp.Event(), mp.Event()
        first = machine.spawn(lock_holder, page, held, leave)
        assert held.wait(20)
        assert page.flags == LOCKED
        waiting = gather(machine, until, 3, pass_through, "WAIT_PAGE_LOCK")
        assert page.flags == LOCKED | WAITERS
        leave.set()
        first.result(timeout=20)
        away = times(waiting)
        assert page.flags == 0
        return away
    assert woken(one_round)
    assert inside[0] == machine.vmstat()["page_lock_wait"] >= 3


def test_pages_that_share_a_wait_queue_wake_each_other_only_for_nothing(machine, shared, until):
    first = shared("Page", 12000).address
    queue = ksym.page_waitqueue(first)
    second = next(page for page in range(first + 64, first + 64 * 12000, 64) if ksym.page_waitqueue(page) == queue)
    one, other = layout.struct("Page", first), layout.struct("Page", second)
    held, leave_other, leave_one = mp.Event(), mp.Event(), mp.Event()

    def holder(task):
        ksym.lock_page(one)
        ksym.lock_page(other)
        held.set()
        assert leave_other.wait(20)
        ksym.unlock_page(other)
        assert leave_one.wait(20)
        ksym.unlock_page(one)

    def waiter(task, page):
        ksym.lock_page(page)
        ksym.unlock_page(page)
        return leave_one.is_set()
    first = machine.spawn(holder)
    assert held.wait(20)
    for_one, for_other = machine.spawn(waiter, one), machine.spawn(waiter, other)
    until(lambda: all(waits_for(child, "WAIT_PAGE_LOCK") and sleeps(child) for child in (for_one, for_other)))
    leave_other.set()
    assert for_other.result(timeout=20) is False
    until(lambda: sleeps(for_one))
    assert waits_for(for_one, "WAIT_PAGE_LOCK") and one.flags == LOCKED | WAITERS
    leave_one.set()
    assert for_one.result(timeout=20) is True
    first.result(timeout=20)


def test_page_waitqueues_spread_neighbouring_pages(machine):
    mem_map = layout.kernel().mem_map
    queues = {ksym.page_waitqueue(mem_map + 64 * pfn) for pfn in range(C["WAIT_TABLE_SIZE"])}
    assert len(queues) > C["WAIT_TABLE_SIZE"] // 2
    table = layout.kernel().wait_table
    assert all(0 <= queue - table < 4 * C["WAIT_TABLE_SIZE"] for queue in queues)


def test_second_unlock_of_a_page_is_a_kernel_bug(machine, shared, stops):
    page = shared("Page")

    def program(task):
        ksym.lock_page(page)
        ksym.unlock_page(page)
        ksym.unlock_page(page)
    assert where(stops(machine, program)) == "locks.py"


def test_unlock_of_a_page_that_another_task_locked_is_a_kernel_bug(machine, shared, stops):
    page = shared("Page")

    keep(machine, lambda: ksym.lock_page(page))
    assert "gives back a lock it does not hold" in stops(machine, lambda task: ksym.unlock_page(page))


def test_wait_on_page_locked_returns_after_the_unlock_and_takes_nothing(machine, shared, until):
    page = shared("Page")

    def one_round():
        held, leave = mp.Event(), mp.Event()

        def look_on(task, _number):
            ksym.wait_on_page_locked(page)
            return leave.is_set() and slot(task.cpu).nr_held == 0
        first = machine.spawn(lock_holder, page, held, leave)
        assert held.wait(20)
        waiting = gather(machine, until, 2, look_on, "WAIT_PAGE_LOCK")
        leave.set()
        first.result(timeout=20)
        return times(waiting)
    assert woken(one_round)
    # A page that is not locked is not waited for.
    machine.spawn(lambda task: ksym.wait_on_page_locked(page)).result(timeout=20)
    assert page.flags == 0


def test_page_is_not_freed_while_a_waiter_has_a_reference(machine, until):
    """The last reference is the waiter's; it frees the page after its wait."""
    page_number, ready, leave = mp.Queue(), mp.Event(), mp.Event()

    def holder(task):
        page = ksym.alloc_page(C["GFP_KERNEL"])
        ksym.lock_page(page)
        page_number.put(page)
        assert ready.wait(20)
        ksym.put_page(page)
        assert leave.wait(20)
        count = ksym.page_count(page)
        ksym.unlock_page(page)
        return count
    first = machine.spawn(holder)
    page = page_number.get(timeout=20)
    free = machine.vmstat()["nr_free_pages"]

    def waiter(task):
        ksym.get_page(page)
        ready.set()
        ksym.wait_on_page_locked(page)
        ksym.put_page(page)
    second = machine.spawn(waiter)
    until(lambda: waits_for(second, "WAIT_PAGE_LOCK") and layout.struct("Page", page)._count == 1)
    assert machine.vmstat()["nr_free_pages"] <= free
    leave.set()
    assert first.result(timeout=20) == 1
    second.result(timeout=20)
    assert layout.struct("Page", page)._count == 0
    page_number.close()


def test_end_of_writeback_wakes_its_waiters_and_an_unlock_does_not_end_it(machine, shared, until):
    page = shared("Page")

    def holder(task, held, unlock, end):
        lock_holder(task, page, held, unlock)
        assert end.wait(20)
        ksym.end_page_writeback(page)

    def one_round():
        page.flags = WRITEBACK
        held, unlock, end = mp.Event(), mp.Event(), mp.Event()

        def look_on(task, _number):
            ksym.wait_on_page_writeback(page)
            return end.is_set()
        first = machine.spawn(holder, held, unlock, end)
        assert held.wait(20)
        waiting = gather(machine, until, 2, look_on, "WAIT_PAGE_WRITEBACK")
        unlock.set()
        until(lambda: page.flags == WRITEBACK | WAITERS and
              all(waits_for(child, "WAIT_PAGE_WRITEBACK") and sleeps(child) for child in waiting))
        end.set()
        first.result(timeout=20)
        away = times(waiting)
        assert page.flags == 0
        return away
    assert woken(one_round)


def test_end_of_a_writeback_that_never_began_is_a_kernel_bug(machine, shared, stops):
    assert where(stops(machine, lambda task: ksym.end_page_writeback(shared("Page")))) == "writeback.py"


# ---- condition variables ------------------------------------------------------

def test_condition_variable_hands_every_item_over_once(machine, shared):
    """A mailbox for one item.  Whom nobody wakes looks up after a second."""
    lock, full, empty, box = shared("Spinlock"), shared("CondVar"), shared("CondVar"), shared("u64")
    items = 400

    def program(task, number):
        taken, unwoken = [], 0
        for item in range(1, items + 1):
            ksym.spin_lock(lock)
            while (box[0] == 0) == (number == 1):
                began = time.monotonic()
                ksym.cond_wait(full if number else empty, lock)
                unwoken += time.monotonic() - began > 0.9
            if number:
                taken.append(int(box[0]))
                box[0] = 0
                ksym.cond_signal(empty)
            else:
                box[0] = item
                ksym.cond_signal(full)
            ksym.spin_unlock(lock)
        return taken, unwoken
    (_none, before), (consumed, after) = crowd(machine, 2, program)
    assert consumed == list(range(1, items + 1))
    # A busy host may keep one waiting for as long, now and then.
    assert before + after < 10
    assert full.waiters == empty.waiters == lock.word == 0


def test_broadcast_wakes_all_waiters(machine, shared, until):
    lock, cond, open_ = shared("Spinlock"), shared("CondVar"), shared("u64")

    def pass_through(task, _number):
        ksym.spin_lock(lock)
        while not open_[0]:
            ksym.cond_wait(cond, lock)
        ksym.spin_unlock(lock)
        return True

    def opener(task):
        ksym.spin_lock(lock)
        open_[0] = 1
        ksym.cond_broadcast(cond)
        ksym.spin_unlock(lock)

    def one_round():
        open_[0] = 0
        waiting = gather(machine, until, 3, pass_through, "WAIT_CONDVAR")
        assert cond.waiters == 3 and lock.word == 0
        machine.spawn(opener).result(timeout=20)
        away = times(waiting)
        assert cond.waiters == 0
        return away
    assert woken(one_round)


def test_signal_without_waiters_is_for_nobody(run, shared):
    lock, cond = shared("Spinlock"), shared("CondVar")

    def program(task):
        ksym.spin_lock(lock)
        ksym.cond_signal(cond)
        ksym.cond_broadcast(cond)
        ksym.spin_unlock(lock)
        return cond.sequence
    assert run(program) == 0


def test_waiting_for_a_condition_without_its_lock_is_a_kernel_bug(machine, shared, stops):
    assert where(stops(machine, lambda task: ksym.cond_wait(shared("CondVar"), shared("Spinlock")))) == "locks.py"


def test_waiting_for_a_condition_under_another_spinlock_is_a_kernel_bug(machine, shared, stops):
    outer, lock = shared("Spinlock"), shared("Spinlock")

    def program(task):
        ksym.spin_lock(outer)
        ksym.spin_lock(lock)
        ksym.cond_wait(shared("CondVar"), lock)
    assert "preempt_count" in stops(machine, program)


# ---- sequence counters --------------------------------------------------------

def test_a_read_that_no_retry_was_asked_for_is_never_torn(machine, shared):
    count, pair, over, met = shared("SeqCount"), shared("u64", 2), shared("u64"), shared("u64")

    def program(task, number):
        if number == 0:
            value = 0
            # Until a reader has met a writer, which two cores may take a while for.
            while value < 20000 or not met[0] and value < 2_000_000:
                value += 1
                ksym.write_seqcount_begin(count)
                pair[0] = value
                pair[1] = 2 * value
                ksym.write_seqcount_end(count)
            over[0] = 1
            return 0, value
        torn = retries = 0
        while not over[0]:
            start = ksym.read_seqcount_begin(count)
            one, two = int(pair[0]), int(pair[1])
            if ksym.read_seqcount_retry(count, start):
                retries += 1
                met[0] = 1
            else:
                torn += two != 2 * one
        return torn, retries
    results = crowd(machine, 3, program)
    assert [torn for torn, _ in results] == [0, 0, 0]
    assert results[1][1] + results[2][1] > 0
    assert count.sequence == 2 * results[0][1]


def test_reader_waits_for_the_writer_to_leave(machine, shared, until):
    count = shared("SeqCount")
    ksym.write_seqcount_begin(count)
    assert count.sequence == 1
    reader = machine.spawn(lambda task: ksym.read_seqcount_begin(count))
    until(lambda: waits_for(reader, "WAIT_SPINLOCK"))
    ksym.write_seqcount_end(count)
    assert reader.result(timeout=20) == 2
    assert ksym.read_seqcount_retry(count, 2) == 0 and ksym.read_seqcount_retry(count, 0) == 1
