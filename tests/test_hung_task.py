# SPDX-License-Identifier: GPL-2.0-only
"""Nobody waits longer than the hung-task limit: the machine stops and says who waits for
what, and who has it."""
import os
import re
import signal
import time

import pytest
from multiprocess import get_context

import shmkern
from helpers import PAGE, Puppet, mm_of, until, until_asleep, until_waits
from shmkern import direct_map, layout
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)


def lose_patience():
    """From now on nobody may wait for longer than 0.2 s.  For who is about to wait in vain while all others are at
    rest: before, one that stands still for a second may have what another needs."""
    layout.kernel().hung_task_timeout_ns = 200_000_000


def in_vain(wait):
    """A program that waits in vain."""
    def waiter(task):
        lose_patience()
        return wait(task)
    return waiter


def lru_lock():
    """The address of zone 1's."""
    return layout.kernel().zones + layout.sizeof("Zone") + layout.offsetof("Zone", "lru_lock")


def page(pfn):
    """The address of a struct page."""
    return layout.kernel().mem_map + pfn * layout.sizeof("Page")


def set_writeback(pfn):
    """Makes a page look as if it were being written."""
    layout.struct("Page", page(pfn)).flags |= 1 << C["PG_writeback"]


# What the holder does, what the waiter does then, and what the report calls it.
CASES = {
    "spinlock": (lambda task: ksym.spin_lock(lru_lock()),
                 lambda task: ksym.spin_lock(lru_lock()),
                 "spinlock: zone 1 lru_lock", "1 spinlocks"),
    "page lock": (lambda task: ksym.lock_page(page(77)),
                  lambda task: ksym.lock_page(page(77)),
                  "page lock: page 77", "page lock page 77"),
    "wait for a page lock": (lambda task: ksym.lock_page(page(77)),
                             lambda task: ksym.wait_on_page_locked(page(77)),
                             "page lock: page 77", "page lock page 77"),
    "rwsem for reading": (lambda task: ksym.down_write(slot(task.cpu).mm + layout.offsetof("MmStruct", "mmap_sem")),
                          lambda task: task.load(task.parent_va, 1),
                          r"rwsem \(read\): mm \d+ mmap_sem", r"rwsem \(write\) mm \d+ mmap_sem"),
    "rwsem for writing": (lambda task: ksym.down_read(slot(task.cpu).mm + layout.offsetof("MmStruct", "mmap_sem")),
                          lambda task: task.mmap(4096),
                          r"rwsem \(write\): mm \d+ mmap_sem", r"rwsem \(read\) mm \d+ mmap_sem"),
}


@pytest.mark.parametrize("case", CASES)
def test_report_names_the_waiter_the_holder_and_the_lock(machine, case):
    take, wait, waited_for, held = CASES[case]
    held_now = mp.Event()

    def holder(task):
        task.parent_va = task.mmap(4096)

        def waiter(child):
            child.parent_va = task.parent_va
            assert held_now.wait(20)
            lose_patience()
            wait(child)
        task.clone(waiter)
        take(task)
        held_now.set()
        time.sleep(60)
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        machine.spawn(holder).result(timeout=30)
    assert stopped.value.kind == "hung task"
    report = stopped.value.report
    assert report.startswith("hung task: a task waits longer than the hung-task limit")
    holder_name = r"task 2 \(holder, CPU \d+, host pid \d+\)"
    waiter_name = r"task 3 \(waiter, CPU \d+, host pid \d+\)"
    assert re.search(rf"^  in {waiter_name}$", report, re.M), report
    assert re.search(rf"^    {waiter_name} waits \d+\.\d s for {waited_for}, held by {holder_name}( as .*)?$", report, re.M), report
    assert re.search(rf"^    {holder_name} holds {held}$", report, re.M), report


def test_two_tasks_that_wait_for_each_other_are_both_named(machine):
    """Two page locks, taken in two orders."""
    both = mp.Barrier(2)

    def program(task, first, second):
        ksym.lock_page(page(first))
        both.wait(20)
        ksym.lock_page(page(second))
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        children = [machine.spawn(program, 11, 22), machine.spawn(program, 22, 11)]
        until(lambda: all(slot(child.cpu).wait_kind == C["WAIT_PAGE_LOCK"] for child in children), "two that wait")
        lose_patience()
        for child in children:
            child.result(timeout=30)
    report = stopped.value.report
    for one, has, wants in (2, 11, 22), (3, 22, 11):
        assert re.search(rf"task {one} .*waits .* for page lock: page {wants}, held by task {5 - one} ", report), report
        assert re.search(rf"task {one} .*holds page lock page {has}$", report, re.M), report


def test_holder_that_is_stopped_for_good_is_named(machine):
    held = mp.Event()

    def holder(task):
        ksym.spin_lock(lru_lock())
        held.set()
        time.sleep(60)
    first = machine.spawn(holder)
    assert held.wait(20)
    os.kill(first.os_pid, signal.SIGSTOP)
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        machine.spawn(in_vain(lambda task: ksym.spin_lock(lru_lock()))).result(timeout=30)
    assert stopped.value.kind == "hung task"
    assert re.search(r"for spinlock: zone 1 lru_lock, held by task 2 \(holder, ", stopped.value.report)


def test_time_in_which_nobody_could_run_counts_against_nobody(machine, shared):
    """Ctrl-Z for longer than the limit, in a wait that sleeps and in one that only yields."""
    memory = shared("u32", 1)
    address = memory.ctypes.data
    holder, sleeper, yielder = Puppet(machine), Puppet(machine), Puppet(machine)
    holder(lambda task: ksym.lock_page(page(77)))
    memory[0] = 1
    sleeper.begin(lambda task: ksym.wait_on_page_locked(page(77)))
    yielder.begin(lambda task: ksym.read_seqcount_begin(address))
    until_asleep(sleeper, "WAIT_PAGE_LOCK")
    until_waits(yielder, "WAIT_SPINLOCK")
    waiters = (sleeper, yielder)
    for puppet in waiters:
        stand_still(puppet)
        # Whatever it has waited so far: from here on it is longer than the limit, and could not run.
        slot(puppet.cpu).wait_since = time.monotonic_ns()
    since = slot(sleeper.cpu).wait_since
    # What they wait for comes meanwhile, so that each looks up once more: how long that takes does not matter.
    holder(lambda task: ksym.unlock_page(page(77)))
    memory[0] = 2
    time.sleep(2.2)
    layout.kernel().hung_task_timeout_ns = 1_500_000_000
    for puppet in waiters:
        os.kill(puppet.os_pid, signal.SIGCONT)
    for puppet in waiters:
        puppet.reply()
    assert slot(sleeper.cpu).wait_since > since


def stand_still(puppet):
    os.kill(puppet.os_pid, signal.SIGSTOP)
    until(lambda: direct_map.process_stat(puppet.os_pid)[0] == "T", "a process that stands still")


@pytest.mark.parametrize("wait, waited_for", [
    (lambda shared: (set_writeback(9), ksym.wait_on_page_writeback(page(9))), "writeback: page 9"),
    (lambda shared: ksym.read_seqcount_begin(shared), "spinlock: 0x"),
    (lambda shared: (ksym.spin_lock(shared), ksym.cond_wait(shared + 64, shared)), "condition variable: 0x"),
], ids=["writeback", "seqcount", "condition"])
def test_every_kind_of_wait_has_the_limit(machine, shared, stops, wait, waited_for):
    memory = shared("u32", 64)
    if "spinlock" in waited_for:
        memory[0] = 1
    report = stops(machine, in_vain(lambda task: wait(memory.ctypes.data)), kind="hung task")
    assert re.search(rf"task 2 .*waits \d+\.\d s for {waited_for}", report), report


def test_grace_period_that_never_ends_is_a_hung_task(machine):
    inside = mp.Event()

    def reader(task):
        ksym.rcu_read_lock()
        inside.set()
        time.sleep(60)
    machine.spawn(reader)
    assert inside.wait(20)
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        machine.spawn(in_vain(lambda task: ksym.synchronize_rcu())).result(timeout=30)
    assert stopped.value.kind == "hung task"
    assert re.search(r"task 3 .*waits \d+\.\d s for RCU grace period: kernel.* rcu_epoch", stopped.value.report)


def test_shootdown_that_is_never_acknowledged_is_a_hung_task(machine):
    inside = mp.Event()

    def sharer(task):
        ksym.access_begin(slot(task.cpu))
        inside.set()
        time.sleep(60)

    def program(task):
        va = task.mmap(4096)
        task.store(va, b"x")
        task.clone(sharer)
        assert inside.wait(20)
        lose_patience()
        task.munmap(va, 4096)
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        machine.spawn(program).result(timeout=30)
    assert stopped.value.kind == "hung task"
    assert re.search(r"task 2 .*waits \d+\.\d s for TLB shootdown acknowledgement: CPU \d+", stopped.value.report)


def test_swapoff_that_cannot_get_on_is_a_hung_task_and_names_who_may_have_the_slots(machine, tmp_path):
    """try_to_unuse: nobody can bring back what is in somebody's hands alone."""
    area = machine.swapon(tmp_path / "swap", 100)
    taken = mp.Event()

    def holder(task):
        ksym.kernel_enter()
        ksym.get_swap_page()
        taken.set()
        time.sleep(60)
    machine.spawn(holder)
    assert taken.wait(20)
    lose_patience()
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        machine.swapoff(area)
    assert stopped.value.kind == "hung task"
    assert re.search(r"  in task 1 \(.*\)$", stopped.value.report, re.M), stopped.value.report
    assert re.search(r"task 1 \(.*\) waits \d+\.\d s for free slots of: kernel 0 swap_info\[0\], "
                     r"held by task \d+ \(holder, CPU \d+, host pid \d+\) in the kernel", stopped.value.report), stopped.value.report


def test_swapoff_whose_process_is_stopped_for_longer_than_the_limit_goes_on(boot, tmp_path):
    """In the middle of a round, where it waits for an address space to let it in."""
    machine = boot(frames_per_node=2048)
    area = machine.swapon(tmp_path / "swap", 8000)
    user, giver = Puppet(machine), Puppet(machine)
    va = user(lambda task: task.mmap(5000 * PAGE))
    user(lambda task: task.store64_many([va + index * PAGE for index in range(5000)], 7) is None)
    # Room for what comes back.
    user(lambda task: task.munmap(va + 2500 * PAGE, 2500 * PAGE))
    info = layout.struct("SwapInfo", layout.kernel().address + layout.offsetof("Kernel", "swap_info") +
                         area * layout.sizeof("SwapInfo"))
    assert info.inuse_pages > 0
    holder, sem = user.clone(), mm_of(user).address + layout.offsetof("MmStruct", "mmap_sem")
    holder(lambda task: ksym.down_write(sem))
    giver.begin(lambda task: ksym.do_swapoff(area))
    until_asleep(giver, "WAIT_RWSEM_READ")
    stand_still(giver)
    slot(giver.cpu).wait_since = time.monotonic_ns()
    holder(lambda task: ksym.up_write(sem))
    time.sleep(2.7)
    # There is room, so nobody but the giver works from here on.
    layout.kernel().hung_task_timeout_ns = 2_500_000_000
    os.kill(giver.os_pid, signal.SIGCONT)
    assert giver.reply() == 0 and info.inuse_pages == 0


def test_swapoff_ends_with_the_machine(boot, tmp_path):
    machine = boot(hung_task_timeout=60)
    area = machine.swapon(tmp_path / "swap", 100)
    giver, other = Puppet(machine), Puppet(machine)
    other(lambda task: ksym.get_swap_page())
    giver.begin(lambda task: ksym.do_swapoff(area))
    until_waits(giver, "WAIT_SWAPOFF")
    other.begin(lambda task: ksym.unlock_page(page(5)))
    # Before anybody looks after it, and ends those that are left.
    until(lambda: direct_map.process_stat(giver.os_pid)[0] in ("", "Z", "X"), "the end of the swapoff")
    with machine, pytest.raises(shmkern.KernelBug) as stopped:
        machine.check(at_once=True)
    assert stopped.value.kind == "kernel BUG"


def test_wait_that_ends_in_time_is_no_hung_task(boot, until):
    machine = boot(hung_task_timeout=30)
    held, leave = mp.Event(), mp.Event()

    def holder(task):
        ksym.lock_page(page(5))
        held.set()
        assert leave.wait(20)
        ksym.unlock_page(page(5))
    first = machine.spawn(holder)
    assert held.wait(20)

    def waiter(task):
        ksym.lock_page(page(5))
        ksym.unlock_page(page(5))
        return "fine"
    second = machine.spawn(waiter)
    until(lambda: slot(second.cpu).wait_kind == C["WAIT_PAGE_LOCK"])
    leave.set()
    assert second.result(timeout=20) == "fine"
    first.result(timeout=20)
    machine.check()


def test_every_other_task_ends_with_the_machine(machine):
    """One hangs; a third that has nothing to do with it is gone as well."""
    bystander = machine.spawn(lambda task: time.sleep(60))
    held = mp.Event()

    def holder(task):
        ksym.lock_page(page(5))
        held.set()
        time.sleep(60)
    first = machine.spawn(holder)
    assert held.wait(20)
    with pytest.raises(shmkern.KernelBug):
        machine.spawn(in_vain(lambda task: ksym.lock_page(page(5)))).result(timeout=30)
    assert not bystander.is_alive() and not first.is_alive()
    with pytest.raises(shmkern.KernelBug):
        bystander.result(timeout=1)
    with pytest.raises(shmkern.KernelBug):
        machine.vmstat() and machine.spawn(lambda task: None).result(timeout=1)
    machine.close()
