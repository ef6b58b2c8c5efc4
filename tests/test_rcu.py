# SPDX-License-Identifier: GPL-2.0-only
"""RCU: what a reader may look at is not freed, and is freed once no reader may."""
import pytest
from multiprocess import get_context

from helpers import Puppet, until_waits
from shmkern import layout
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

WORDS = layout.sizeof("AnonVma") // 8
POISON = int.from_bytes(bytes([C["POISON_FREE"]]) * 8, "little")


def is_freed(anon_vma):
    """Whether an anon_vma is back in its cache."""
    return bool((layout.view("u64", anon_vma, WORDS)[1:] == POISON).all())


class Reader:
    """A task that is in a read section (`depth` of them) until it is told to leave() one."""

    def __init__(self, machine, depth=1):
        self._entered, self._leave, self._left = mp.Event(), mp.Semaphore(0), mp.Semaphore(0)

        def program(task):
            for _ in range(depth):
                ksym.rcu_read_lock()
            self._entered.set()
            for _ in range(depth):
                assert self._leave.acquire(timeout=30)
                ksym.rcu_read_unlock()
                self._left.release()
        self.child = machine.spawn(program)
        assert self._entered.wait(20)

    def leave(self):
        """Leaves one section."""
        self._leave.release()
        assert self._left.acquire(timeout=20)


@pytest.fixture
def collect(run):
    """collect() frees what may be freed."""
    return lambda: run(lambda task: ksym.rcu_process_callbacks())


@pytest.fixture
def retire(run):
    """retire() is an anon_vma that was handed to call_rcu."""
    def program(task):
        anon_vma = ksym.anon_vma_alloc()
        ksym.anon_vma_free(anon_vma)
        return anon_vma
    return lambda: run(program)


def test_object_is_freed_when_nobody_reads(retire, collect):
    anon_vma = retire()
    collect()
    assert is_freed(anon_vma)
    assert layout.kernel().rcu_pending == 0


def test_object_stays_until_the_reader_that_was_inside_has_left(machine, retire, collect):
    reader = Reader(machine)
    anon_vma = retire()
    for _ in range(3):
        collect()
        assert not is_freed(anon_vma)
    assert layout.kernel().rcu_pending == 1
    reader.leave()
    collect()
    assert is_freed(anon_vma)
    reader.child.result(timeout=20)


def test_reader_that_came_later_holds_nothing_up(machine, retire, collect):
    early = Reader(machine)
    anon_vma = retire()
    late = Reader(machine)
    collect()
    assert not is_freed(anon_vma)
    early.leave()
    collect()
    assert is_freed(anon_vma)
    late.leave()
    early.child.result(timeout=20)
    late.child.result(timeout=20)


def test_inner_unlock_does_not_end_the_outer_section(machine, retire, collect):
    reader = Reader(machine, depth=3)
    anon_vma = retire()
    for _ in range(2):
        reader.leave()
        collect()
        assert not is_freed(anon_vma)
    reader.leave()
    collect()
    assert is_freed(anon_vma)
    reader.child.result(timeout=20)


def test_section_entered_again_is_a_new_one(machine, retire, collect):
    """A reader that leaves and enters holds up what is retired after that, and only that."""
    turn, done = mp.Semaphore(0), mp.Semaphore(0)

    def program(task):
        ksym.rcu_read_lock()
        done.release()
        for _ in range(2):
            assert turn.acquire(timeout=30)
            ksym.rcu_read_unlock()
            ksym.rcu_read_lock()
            done.release()
        assert turn.acquire(timeout=30)
        ksym.rcu_read_unlock()
    child = machine.spawn(program)
    assert done.acquire(timeout=20)
    retired = []
    for _ in range(2):
        retired.append(retire())
        turn.release()
        assert done.acquire(timeout=20)
        last = retire()
        collect()
        assert all(map(is_freed, retired)) and not is_freed(last)
        retired.append(last)
    turn.release()
    child.result(timeout=20)
    collect()
    assert is_freed(last)


def test_sixteen_retired_objects_are_looked_after_without_being_asked(run):
    def program(task):
        pending = []
        for _ in range(C["RCU_BATCH"]):
            ksym.anon_vma_free(ksym.anon_vma_alloc())
            pending.append(layout.kernel().rcu_pending)
        return pending
    assert run(program) == [*range(1, C["RCU_BATCH"]), 0]


def test_queue_behind_a_reader_is_freed_in_order_and_whole(machine, run, collect):
    """A reader comes in the middle: what is before it goes, what is behind it stays."""
    def retire(count):
        def program(task):
            objects = [ksym.anon_vma_alloc() for _ in range(count)]
            for anon_vma in objects:
                ksym.anon_vma_free(anon_vma)
            return objects
        return run(program)
    first = Reader(machine)
    before = retire(5)
    second = Reader(machine)
    after = retire(5)
    collect()
    assert not any(map(is_freed, before + after)) and layout.kernel().rcu_pending == 10
    first.leave()
    collect()
    assert all(map(is_freed, before)) and not any(map(is_freed, after))
    assert layout.kernel().rcu_pending == 5
    second.leave()
    collect()
    assert all(map(is_freed, after))
    kernel = layout.kernel()
    assert kernel.rcu_pending == kernel.rcu_head == kernel.rcu_tail == 0
    first.child.result(timeout=20)
    second.child.result(timeout=20)


def test_synchronize_rcu_waits_for_the_readers_that_are_in_and_for_no_other(machine, until):
    early = Reader(machine)
    waiter = machine.spawn(lambda task: ksym.synchronize_rcu())
    until(lambda: slot(waiter.cpu).wait_kind == C["WAIT_RCU"])
    late = Reader(machine)
    assert slot(waiter.cpu).wait_kind == C["WAIT_RCU"]
    early.leave()
    waiter.result(timeout=20)
    assert slot(late.child.cpu).rcu_epoch != 0
    late.leave()
    early.child.result(timeout=20)
    late.child.result(timeout=20)


def test_synchronize_rcu_returns_at_once_without_readers(run):
    """In the 30 s that run() waits for a result; and each has begun an epoch, which later readers are in."""
    def program(task):
        before = layout.kernel().rcu_epoch
        for _ in range(1000):
            ksym.synchronize_rcu()
        return layout.kernel().rcu_epoch - before
    assert run(program) >= 1000


def test_unlock_without_a_lock_is_a_kernel_bug(machine, stops):
    assert "rcu_nesting" in stops(machine, lambda task: ksym.rcu_read_unlock())


def test_readers_of_what_is_replaced_all_the_time_never_see_a_freed_object(machine, shared):
    """The protocol that RCU is for: publish, unlink, retire; read what is published."""
    published, over, start, looks = shared("u64"), shared("u64"), mp.Barrier(3), shared("u64", 2)
    value = layout.offsetof("AnonVma", "head") // 8
    rounds = 1_000_000

    def writer(task):
        start.wait(20)
        for version in range(1, rounds):
            # A reader may come to no CPU for as long as that takes.
            if version >= 4000 and min(looks) > 10:
                break
            fresh = ksym.anon_vma_alloc()
            layout.view("u64", fresh, WORDS)[value:value + 2] = version
            old, published[0] = int(published[0]), fresh
            if old:
                ksym.anon_vma_free(old)
        over[0] = 1
        last, published[0] = int(published[0]), 0
        ksym.anon_vma_free(last)

    def reader(task, number):
        start.wait(20)
        wrong = 0
        while not over[0]:
            ksym.rcu_read_lock()
            anon_vma = int(published[0])
            if anon_vma:
                pair = layout.view("u64", anon_vma, WORDS)[value:value + 2]
                one = int(pair[0])
                wrong += not 0 < one < rounds or one != int(pair[1])
                looks[number] += 1
            ksym.rcu_read_unlock()
        return wrong
    children = [machine.spawn(reader, 0), machine.spawn(reader, 1), machine.spawn(writer)]
    results = [child.result(timeout=40) for child in children]
    assert results[:2] == [0, 0] and min(looks) > 10


# ---- memory that is still to come -----------------------------------------------------

def all_of(task, cache):
    """All the objects of a cache that there are."""
    taken = []
    while found := ksym.kmem_cache_alloc(cache):
        taken.append(found)
    return taken


def test_who_needs_an_object_waits_for_those_that_another_task_is_freeing(machine):
    """Their task has taken them off the queue and lost its CPU; they are nowhere to be found."""
    kernel, holder, other = layout.kernel(), Puppet(machine), Puppet(machine)
    cache = kernel.radix_tree_node_cachep
    taken = holder(lambda task: all_of(task, cache))
    assert len(taken) > 100 and other(lambda task: ksym.kmem_cache_alloc(cache)) == 0
    kernel.rcu_freers += 1
    other.begin(lambda task: ksym.kmem_cache_alloc(cache))
    until_waits(other, "WAIT_RCU")
    holder(lambda task: ksym.kmem_cache_free(cache, taken[-1]))
    kernel.rcu_freed += 1
    kernel.rcu_freers -= 1
    assert other.reply() == taken[-1]
    holder(lambda task: [ksym.kmem_cache_free(cache, each) for each in taken] and None)


def test_who_needs_an_object_waits_for_a_reader_that_holds_it_up(machine):
    cache, holder, other = layout.kernel().anon_vma_cachep, Puppet(machine), Puppet(machine)
    taken = holder(lambda task: all_of(task, cache))
    reader = Reader(machine)
    holder(lambda task: ksym.anon_vma_free(taken[-1]))
    other.begin(lambda task: ksym.anon_vma_alloc())
    until_waits(other, "WAIT_RCU")
    assert not is_freed(taken[-1])
    reader.leave()
    assert other.reply() == taken[-1]
    holder(lambda task: [ksym.kmem_cache_free(cache, each) for each in taken] and None)
    reader.child.result(timeout=20)


def test_a_queue_that_never_empties_keeps_nobody_from_hearing_that_there_is_no_memory(machine):
    """Whenever it looks, others have retired more; of that nothing is for who waits."""
    kernel, holder = layout.kernel(), Puppet(machine)
    cache = kernel.radix_tree_node_cachep
    taken = holder(lambda task: all_of(task, cache))
    kernel.rcu_pending += 1
    assert holder(lambda task: ksym.kmem_cache_alloc(cache)) == 0
    kernel.rcu_pending -= 1
    holder(lambda task: [ksym.kmem_cache_free(cache, each) for each in taken] and None)
