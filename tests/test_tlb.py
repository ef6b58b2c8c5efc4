# SPDX-License-Identifier: GPL-2.0-only
"""The MMU: translations, accessed and dirty bits as x86 sets them, and shootdown, after
which nobody uses what was shot down."""
import errno
import os
import signal
import time

import pytest
from multiprocess import get_context

import shmkern
from helpers import Puppet, until_waits
from shmkern import PROT_NONE, PROT_READ, PROT_WRITE, layout
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

mp = get_context("fork")
pytestmark = pytest.mark.timeout(60)

PAGE_SIZE = C["PAGE_SIZE"]
TASK_SIZE = 0x7ffffffff000
REACH = C["TLB_ENTRIES"] * PAGE_SIZE        # addresses that far apart share an entry
VALID, WRITE, CLEAN_TO_DIRTY = C["TLB_VALID"], C["TLB_WRITE"], C["TLB_DIRTY"]
ACCESSED, DIRTY, RW = C["_PAGE_ACCESSED"], C["_PAGE_DIRTY"], C["_PAGE_RW"]
FIXED = C["MAP_FIXED"] | C["MAP_PRIVATE"] | C["MAP_ANONYMOUS"]
POISON = bytes([C["PAGE_POISON"]]) * PAGE_SIZE


def mm_of(task):
    """struct MmStruct of a task."""
    return layout.struct("MmStruct", slot(task.cpu).mm)


def pte_at(task, va):
    """The PTE of an address, as a live array of one word."""
    return layout.view("u64", ksym.pte_offset(ksym.walk_to_pmd(mm_of(task), va), va), 1)


def pfn_at(task, va):
    """The frame that is mapped at an address."""
    return ksym.pte_pfn(int(pte_at(task, va)[0]))


def frame(pfn):
    """The bytes of a frame as they are now."""
    return layout.view("u8", layout.kernel().frames_base + pfn * PAGE_SIZE, PAGE_SIZE).tobytes()


def entry_at(cpu, va):
    """The TLB entry of a CPU that an address would use."""
    return int(slot(cpu).tlb[va // PAGE_SIZE % C["TLB_ENTRIES"]])


def clear_bits(task, va, bits):
    """Takes bits off a PTE and flushes, as a kernel that ages or cleans pages does."""
    pte_at(task, va)[0] &= ~bits & (1 << 64) - 1
    ksym.flush_tlb_range(mm_of(task), va, va + PAGE_SIZE)


class Events:
    """What a task counted since: events("TLB_MISS")."""

    def __init__(self, task):
        self._now = slot(task.cpu).vm_events
        self._before = self._now.copy()

    def __call__(self, name):
        return int(self._now[C[name]] - self._before[C[name]])


# ---- hits and misses ----------------------------------------------------------

def test_first_access_misses_and_the_others_hit(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        events = Events(task)
        task.store(va, b"x")
        first = events("ACCESSES"), events("TLB_MISS"), events("PGFAULT")
        for offset in range(100):
            task.load(va + offset, 1)
            task.store64(va + 8 * offset, offset)
        return first, (events("ACCESSES"), events("TLB_MISS"), events("PGFAULT"))
    assert run(program) == ((1, 1, 1), (201, 1, 1))


def test_access_across_pages_is_one_for_each_page(run):
    def program(task):
        va = task.mmap(4 * PAGE_SIZE)
        events = Events(task)
        task.store(va + 100, bytes(3 * PAGE_SIZE))
        return events("ACCESSES"), events("TLB_MISS")
    assert run(program) == (4, 4)


def test_addresses_that_share_an_entry_push_each_other_out(run):
    def program(task):
        low = task.mmap(PAGE_SIZE, flags=FIXED, addr=1 << 32)
        high = task.mmap(PAGE_SIZE, flags=FIXED, addr=low + 5 * REACH)
        beside = task.mmap(PAGE_SIZE, flags=FIXED, addr=low + 5 * REACH + PAGE_SIZE)
        for va, text in (low, b"low"), (high, b"high"), (beside, b"beside"):
            task.store(va, text)
        events = Events(task)
        texts = [(task.load(low, 3), task.load(high, 4)) for _ in range(10)]
        pushed_out = events("TLB_MISS")
        both = [(task.load(low, 3), task.load(beside, 6)) for _ in range(10)]
        return set(texts), set(both), pushed_out, events("TLB_MISS") - pushed_out
    assert run(program) == ({(b"low", b"high")}, {(b"low", b"beside")}, 20, 1)


@pytest.mark.parametrize("bit", range(22, 47))
def test_entry_is_not_taken_for_an_address_that_differs_in_any_bit_above_its_index(run, bit):
    def program(task):
        va = task.mmap(PAGE_SIZE, flags=FIXED, addr=0x155555400000)
        task.store(va, b"x")
        with pytest.raises(shmkern.SegmentationFault) as fault:
            task.load(va ^ 1 << bit, 1)
        assert entry_at(task.cpu, va) & VALID
        return fault.value.address == va ^ 1 << bit
    assert run(program)


@pytest.mark.parametrize("address", [
    0, TASK_SIZE, TASK_SIZE + PAGE_SIZE, 1 << 47, 1 << 48, 1 << 63, 0xffff800000000000, (1 << 64) - 8])
def test_address_that_no_program_has_is_a_segmentation_fault(run, address):
    def program(task):
        # The same bits below, so that only the upper ones tell them apart.
        va = task.mmap(PAGE_SIZE, addr=address & TASK_SIZE - 1 & ~0xfff)
        task.store(va, b"x")
        found = []
        for access, arguments in (("load", (8,)), ("store", (bytes(8),)), ("load64", ()), ("store64", (1,)),
                                  ("cmpxchg64", (0, 1)), ("fetch_add64", (1,))):
            with pytest.raises(shmkern.SegmentationFault) as fault:
                getattr(task, access)(address, *arguments)
            found.append((fault.value.address, fault.value.access))
        return found
    assert run(program) == [(address, access) for access in ("load", "store", "load", "store", "store", "store")]


def test_access_that_runs_over_the_end_of_user_memory_faults_there(run):
    def program(task):
        va = task.mmap(PAGE_SIZE, flags=FIXED, addr=TASK_SIZE - PAGE_SIZE)
        with pytest.raises(shmkern.SegmentationFault) as fault:
            task.store(TASK_SIZE - 3, b"abcdef")
        return fault.value.address, task.load(va + PAGE_SIZE - 3, 3)
    assert run(program) == (TASK_SIZE, b"abc")


# ---- accessed and dirty -------------------------------------------------------

def test_load_sets_accessed_and_nothing_else(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        clear_bits(task, va, ACCESSED | DIRTY)
        before = int(pte_at(task, va)[0])
        task.load(va, 1)
        return int(pte_at(task, va)[0]) ^ before, before & (ACCESSED | DIRTY), entry_at(task.cpu, va) & 7
    assert run(program) == (ACCESSED, 0, VALID | WRITE)


def test_first_store_sets_dirty_and_so_does_one_through_a_clean_writable_entry(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        results = []
        for load_first in (False, True):
            clear_bits(task, va, ACCESSED | DIRTY)
            if load_first:
                task.load(va, 1)
            events = Events(task)
            task.store(va, b"y")
            task.store(va, b"z")
            results.append((int(pte_at(task, va)[0]) & (ACCESSED | DIRTY), entry_at(task.cpu, va) & 7,
                            events("TLB_MISS"), events("PGFAULT")))
        return results
    assert run(program) == [(ACCESSED | DIRTY, VALID | WRITE | CLEAN_TO_DIRTY, 1, 0)] * 2


def test_bits_that_are_cleared_without_a_flush_are_not_set_again(run):
    """Which is why a kernel must flush: the TLB goes on believing that they are set."""
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        pte_at(task, va)[0] &= ~(ACCESSED | DIRTY) & (1 << 64) - 1
        task.store(va, b"y")
        task.load(va, 1)
        stale = int(pte_at(task, va)[0]) & (ACCESSED | DIRTY)
        ksym.flush_tlb_mm(mm_of(task))
        task.store(va, b"z")
        return stale, int(pte_at(task, va)[0]) & (ACCESSED | DIRTY)
    assert run(program) == (0, ACCESSED | DIRTY)


def test_store_that_is_forbidden_leaves_the_entry_as_it_is(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        task.mprotect(va, PAGE_SIZE, PROT_READ)
        clear_bits(task, va, ACCESSED | DIRTY)
        before = int(pte_at(task, va)[0])
        with pytest.raises(shmkern.SegmentationFault) as fault:
            task.store(va + 5, b"y")
        after = int(pte_at(task, va)[0])
        return before == after, fault.value.address - va, fault.value.access, task.load(va, 1), \
            entry_at(task.cpu, va) & 7
    assert run(program) == (True, 5, "store", b"x", VALID)


def test_page_without_access_is_there_and_cannot_be_read(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"kept")
        task.mprotect(va, PAGE_SIZE, PROT_NONE)
        with pytest.raises(shmkern.SegmentationFault):
            task.load(va, 1)
        entry, present = entry_at(task.cpu, va), int(pte_at(task, va)[0]) & (C["_PAGE_PRESENT"] | C["_PAGE_PROTNONE"])
        task.mprotect(va, PAGE_SIZE, PROT_READ | PROT_WRITE)
        return entry, present, task.load(va, 4)
    assert run(program) == (0, C["_PAGE_PROTNONE"], b"kept")


# ---- shootdown ----------------------------------------------------------------

class Sharer:
    """A task that shares another's memory and does what it is told: sharer(function, ...)."""

    def __init__(self, task, how="clone"):
        self._ours, theirs = mp.Pipe()

        def obey(task):
            while True:
                method, args = theirs.recv()
                if method is None:
                    return
                try:
                    theirs.send(getattr(task, method)(*args))
                except (shmkern.SegmentationFault, OSError) as error:
                    theirs.send(error)
        self.child = getattr(task, how)(obey)
        self.cpu = self.child.cpu

    def __call__(self, method, *args):
        self._ours.send((method, args))
        assert self._ours.poll(20)
        return self._ours.recv()

    def end(self):
        """Lets it exit."""
        self._ours.send((None, ()))
        self.child.result(timeout=20)


def test_unmapping_empties_the_entries_of_every_cpu_that_shares_the_memory(run):
    def program(task):
        va = task.mmap(3 * PAGE_SIZE)
        task.store(va, bytes(3 * PAGE_SIZE))
        threads = [Sharer(task) for _ in range(2)]
        for thread in threads:
            thread("load", va, 3 * PAGE_SIZE)
        events = Events(task)
        task.munmap(va + PAGE_SIZE, PAGE_SIZE)
        sent = events("TLB_SHOOTDOWN")
        cpus = [task.cpu] + [thread.cpu for thread in threads]
        entries = [[bool(entry_at(cpu, va + index * PAGE_SIZE)) for index in range(3)] for cpu in cpus]
        faults = [type(thread("load", va + PAGE_SIZE, 1)) for thread in threads]
        for thread in threads:
            thread.end()
        return entries, sent, faults
    entries, sent, faults = run(program)
    assert entries == [[True, False, True]] * 3
    assert sent == 2
    assert faults == [shmkern.SegmentationFault] * 2


@pytest.mark.parametrize("pages, left", [(C["TLB_FLUSH_ALL"] - 1, True), (C["TLB_FLUSH_ALL"], False)])
def test_flush_of_a_long_range_empties_everything_and_of_a_short_one_that(run, pages, left):
    def program(task):
        va = task.mmap(100 * PAGE_SIZE)
        task.store(va, bytes(100 * PAGE_SIZE))
        seq = slot(task.cpu).flush_seq
        ksym.flush_tlb_range(mm_of(task), va, va + pages * PAGE_SIZE)
        return [bool(entry_at(task.cpu, va + index * PAGE_SIZE)) for index in range(100)], \
            slot(task.cpu).flush_seq - seq
    entries, advanced = run(program)
    assert entries == [False] * pages + [left] * (100 - pages)
    assert advanced >= 1


def test_flush_of_everything_empties_the_last_entry_too(run):
    """Each entry is in use.  (The zero page is at every address: there are not so many frames.)"""
    def program(task):
        tlb = slot(task.cpu).tlb
        task.load(task.mmap(REACH), REACH)
        filled = int((tlb != 0).sum())
        ksym.flush_tlb_mm(mm_of(task))
        return filled, int((tlb != 0).sum())
    assert run(program) == (C["TLB_ENTRIES"], 0)


def test_flush_leaves_cpus_of_other_address_spaces_alone(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        child = Sharer(task, "fork")
        child("load", va, 1)
        seq = slot(child.cpu).flush_seq
        task.munmap(va, PAGE_SIZE)
        result = bool(entry_at(child.cpu, va)), slot(child.cpu).flush_seq - seq, child("load", va, 1)
        child.end()
        return result
    assert run(program) == (True, 0, b"x")


def test_fork_takes_the_right_to_write_out_of_every_tlb_of_the_parent(run):
    """Or the parent's next store would be seen by the child."""
    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"old")
        thread = Sharer(task)
        thread("store", va + 100, b"old")
        child = Sharer(task, "fork")
        events = Events(task)
        task.store(va, b"new")
        thread("store", va + 100, b"new")
        result = child("load", va, 3), child("load", va + 100, 3), task.load(va, 3), task.load(va + 100, 3)
        faults = events("PGFAULT")
        child.end()
        thread.end()
        return result, faults
    assert run(program) == ((b"old", b"old", b"new", b"new"), 1)


def test_mprotect_takes_the_right_to_write_out_of_every_tlb(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        thread = Sharer(task)
        thread("store", va, b"x")
        task.mprotect(va, PAGE_SIZE, PROT_READ)
        result = type(thread("store", va, b"y")), thread("load", va, 1)
        thread.end()
        return result
    assert run(program) == (shmkern.SegmentationFault, b"x")


def test_task_that_is_gone_is_in_no_cpu_mask_and_has_an_empty_tlb(run):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        thread = Sharer(task)
        thread("store", va, b"x")
        mask = mm_of(task).cpu_vm_mask
        inside = [int(mask[cpu // 64]) >> cpu % 64 & 1 for cpu in (task.cpu, thread.cpu)]
        thread.end()
        after = [int(mask[cpu // 64]) >> cpu % 64 & 1 for cpu in (task.cpu, thread.cpu)]
        return inside, after, slot(thread.cpu).tlb.any()
    inside, after, left = run(program)
    assert inside == [1, 1] and after == [1, 0] and not left


def test_flush_waits_for_a_cpu_that_is_inside_an_access_and_for_that_one_only(machine, until):
    """A CPU stands still between its look into the TLB and its store: here a slot without a
    process, whose access_seq is made odd by hand."""
    ready, mapped = mp.Event(), mp.Queue()
    ghost = slot(200)
    entry = ksym.tlb_slot(ghost, 0)

    def program(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        mm_of(task).cpu_vm_mask[200 // 64] |= 1 << 200 % 64
        mm_of(task).cpu_vm_mask[201 // 64] |= 1 << 201 % 64
        mapped.put((va, pfn_at(task, va)))
        assert ready.wait(20)
        task.munmap(va, PAGE_SIZE)
        for cpu in 200, 201:
            mm_of(task).cpu_vm_mask[cpu // 64] &= ~(1 << cpu % 64) & (1 << 64) - 1
        return slot(task.cpu).vm_events[C["TLB_ACK_WAIT"]]
    child = machine.spawn(program)
    va, pfn = mapped.get(timeout=20)
    ghost.access_seq = 7
    entry = layout.view("u64", ksym.tlb_slot(ghost, va), 1)
    entry[0] = ksym.tlb_tag(va) | pfn << C["TLB_PFN_SHIFT"] | VALID
    ready.set()
    until(lambda: slot(child.cpu).wait_kind == C["WAIT_TLB_ACK"])
    page = layout.struct("Page", layout.kernel().mem_map + pfn * layout.sizeof("Page"))
    assert slot(child.cpu).wait_channel == ghost.address
    assert entry[0] == 0 and ghost.flush_seq > 0
    # The frame is not given away while the ghost may still write to it.
    assert page._count >= 1
    ghost.access_seq = 8
    assert child.result(timeout=20) == 1
    assert page._count == 0
    ghost.access_seq = 0
    mapped.close()


# ---- shootdown against processes that run -------------------------------------

ROUNDS = 100


class Hammer:
    """A thread of `task` that stores whole pages at `va`, and reads `reach` further to push the
    entry out, until it is stopped; it looks that each store is there."""

    def __init__(self, task, shared, va, reach=0):
        self._over, self._turns = shared("u64"), shared("u64")
        self._child = task.clone(self._run, va, reach)

    def _run(self, task, va, reach):
        stores = lost = faults = 0
        while not self._over[0]:
            text = (1 + stores % 0x7f).to_bytes(1, "little") * PAGE_SIZE
            try:
                task.store(va, text)
                if reach:
                    task.load(va + reach, 1)
                lost += task.load(va, PAGE_SIZE) != text
                stores += 1
            except shmkern.SegmentationFault:
                faults += 1
            self._turns[0] += 1
        return stores, lost, faults

    def work(self, until):
        """Returns when it has come round again, so that it has, and uses, a translation."""
        turn = int(self._turns[0])
        until(lambda: self._turns[0] > turn + 1)

    def stop(self):
        """(stores, stores that were not there, faults)"""
        self._over[0] = 1
        return self._child.result(timeout=20)


def has_stores(data):
    """Whether there is anything in a free frame that a program has stored."""
    return bool(set(data) - {0, POISON[0]})


def changes(look):
    """How often look() gives something else than the first time."""
    first = look()
    return sum(look() != first for _look in range(20))


@pytest.mark.parametrize("reach", [0, REACH], ids=["the entry stays", "the entry is filled each time"])
def test_no_store_lands_in_the_frame_that_a_page_was_moved_from(run, shared, until, reach):
    def program(task):
        va = task.mmap(PAGE_SIZE, flags=FIXED, addr=1 << 32)
        task.mmap(PAGE_SIZE, flags=FIXED, addr=va + REACH)
        task.store(va, b"x")
        hammer = Hammer(task, shared, va, reach)
        kernel = layout.kernel()
        broken = moved = 0
        for _ in range(ROUNDS):
            hammer.work(until)
            pfn = pfn_at(task, va)
            target = 1 - pfn // kernel.frames_per_node
            if task.move_pages(0, [va], [target]) != [target]:
                continue
            moved += 1
            # The hammer may have waited with a reference; then the page goes through a pagevec.
            until(lambda: frame(pfn) == POISON or ksym.lru_add_drain_all())
            # A fault that met the PTE while it was none may take the frame for a moment, and clears it; what
            # the hammer stores is neither of the two.
            broken += sum(has_stores(frame(pfn)) for _look in range(20))
            hammer.work(until)
            broken += has_stores(frame(pfn))
        return moved, broken, hammer.stop()
    moved, broken, (stores, lost, faults) = run(program)
    assert broken == lost == faults == 0
    assert moved > ROUNDS // 2 and stores > 0


def test_no_store_lands_in_the_frame_of_a_page_that_was_unmapped(run, shared, until):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        hammer = Hammer(task, shared, va)
        broken = freed = 0
        for _ in range(ROUNDS):
            hammer.work(until)
            ksym.lru_add_drain_all()
            pfn = pfn_at(task, va)
            task.munmap(va, PAGE_SIZE)
            freed += layout.struct("Page", layout.kernel().mem_map + pfn * layout.sizeof("Page"))._count == 0
            broken += sum(frame(pfn) != POISON for _look in range(20))
            hammer.work(until)
            broken += frame(pfn) != POISON
            task.mmap(PAGE_SIZE, flags=FIXED, addr=va)
        return freed, broken, hammer.stop()
    freed, broken, (stores, _lost, faults) = run(program)
    assert freed == ROUNDS and broken == 0
    assert stores > 0 and faults > 0


def test_no_store_lands_in_a_page_that_was_moved_to_another_address(run, shared, until):
    """mremap moves the entry; the hammer goes on at the old address and must fault there."""
    def program(task):
        va, there = task.mmap(PAGE_SIZE), task.mmap(2 * PAGE_SIZE)
        hammer = Hammer(task, shared, va)
        changed = 0
        for _ in range(ROUNDS):
            hammer.work(until)
            task.mremap(va, PAGE_SIZE, PAGE_SIZE, C["MREMAP_MAYMOVE"] | C["MREMAP_FIXED"], there)
            changed += changes(lambda: task.load(there, PAGE_SIZE))
            hammer.work(until)
            task.mmap(PAGE_SIZE, flags=FIXED, addr=va)
        return changed, hammer.stop()
    changed, (stores, _lost, faults) = run(program)
    assert changed == 0
    assert stores > 0 and faults > 0


def test_no_store_gets_into_a_page_after_mprotect_has_forbidden_it(run, shared, until):
    def program(task):
        va = task.mmap(PAGE_SIZE)
        hammer = Hammer(task, shared, va)
        changed = 0
        for _ in range(ROUNDS):
            hammer.work(until)
            task.mprotect(va, PAGE_SIZE, PROT_READ)
            changed += changes(lambda: task.load(va, PAGE_SIZE))
            hammer.work(until)
            task.mprotect(va, PAGE_SIZE, PROT_READ | PROT_WRITE)
        return changed, hammer.stop()
    changed, (stores, lost, faults) = run(program)
    assert changed == lost == 0
    assert stores > 0 and faults > 0


def test_child_never_sees_what_the_parents_threads_store_after_the_fork(run, shared, until):
    """Copy-on-write against a thread that writes all the time: for the child the page stands
    still from the moment it runs."""
    def program(task):
        va = task.mmap(PAGE_SIZE)
        hammer = Hammer(task, shared, va)
        changed = 0
        for _ in range(30):
            hammer.work(until)
            child = task.fork(lambda task: changes(lambda: task.load(va, PAGE_SIZE)))
            changed += child.result(timeout=20)
        return changed, hammer.stop()
    changed, (stores, lost, faults) = run(program)
    assert changed == lost == faults == 0
    assert stores > 0


def test_walk_that_a_flush_overtakes_leaves_no_translation_behind(machine, shared, until):
    """One CPU walks the page table and enters what it found, all the time, and is stopped now
    here, now there; another clears the entry and flushes.  What the walk had read before the
    flush may not be in the TLB after it."""
    over, rounds, walks = shared("u64"), shared("u64"), shared("u64")
    cpus = mp.Queue()

    def walker(task, mm, va):
        me = slot(task.cpu).address
        begin, fill, end = ksym.access_begin, ksym.tlb_fill, ksym.access_end
        while not over[0]:
            for _ in range(4):
                begin(me)
                fill(me, mm, va, 0)
                end(me)
            walks[0] += 1

    def flusher(task):
        va = task.mmap(PAGE_SIZE)
        task.store(va, b"x")
        mm, pte = mm_of(task).address, pte_at(task, va)
        child = task.clone(walker, mm, va)
        cpus.put(child.os_pid)
        entry = layout.view("u64", ksym.tlb_slot(slot(child.cpu), va), 1)
        ptep, stale, seen = pte.ctypes.data, 0, 0
        while not over[0]:
            seen += bool(entry[0])
            cleared = ksym.ptep_clear_flush(mm, va, ptep)
            stale += bool(entry[0])
            pte[0] = cleared
            rounds[0] += 1
        child.result(timeout=20)
        return stale, seen
    child = machine.spawn(flusher)
    walking = cpus.get(timeout=20)
    me, deadline, stops = slot(child.cpu), time.monotonic() + 2, 0
    while time.monotonic() < deadline or stops < 20:
        stops += 1
        walked = int(walks[0])
        while walks[0] == walked:
            os.sched_yield()
        os.kill(walking, signal.SIGSTOP)
        turn = int(rounds[0])
        while rounds[0] < turn + 2 and me.wait_kind != C["WAIT_TLB_ACK"]:
            os.sched_yield()
        os.kill(walking, signal.SIGCONT)
    over[0] = 1
    stale, seen = child.result(timeout=20)
    assert stale == 0 and seen > 0
    cpus.close()


def test_what_is_unmapped_after_a_full_gather_needs_a_flush_of_its_own(machine):
    """A gather that is full is flushed and forgets its range.  A CPU that walks meanwhile to a page which
    is still mapped has a translation again when that page goes."""
    owner = Puppet(machine)
    pages = C["GATHER_PAGES"] + 10
    # Below one table, which the page behind them keeps: freeing that would flush as well.
    va = 1 << 36
    late = va + (pages - 5) * PAGE_SIZE

    def prepare(task):
        for start, count in ((va, pages), (va + 511 * PAGE_SIZE, 1)):
            task.mmap(count * PAGE_SIZE, PROT_READ | PROT_WRITE, FIXED, start)
            task.store(start, bytes(count * PAGE_SIZE))
    owner(prepare)
    inside, walker = owner.clone(), owner.clone()
    inside(lambda task: ksym.access_begin(slot(task.cpu)))
    owner.begin(lambda task: task.munmap(va, pages * PAGE_SIZE))
    assert until_waits(owner, "WAIT_TLB_ACK") == slot(inside.cpu).address
    walker(lambda task: task.load(late, 1))
    assert entry_at(walker.cpu, late)
    inside(lambda task: ksym.access_end(slot(task.cpu)))
    owner.reply()
    assert not entry_at(walker.cpu, late)
    with pytest.raises(shmkern.SegmentationFault):
        walker(lambda task: task.load(late, 1))


def test_a_table_in_which_nothing_is_mapped_is_not_freed_under_a_walk(machine):
    """Where no page goes with it there is nothing else to flush; but a CPU may be on its way through."""
    owner = Puppet(machine)
    va = 1 << 36

    def prepare(task):
        task.mmap(2 * PAGE_SIZE, PROT_READ | PROT_WRITE, FIXED, va)
        task.store(va, b"x")
        task.munmap(va, PAGE_SIZE)
    owner(prepare)
    inside = owner.clone()
    inside(lambda task: ksym.access_begin(slot(task.cpu)))
    owner.begin(lambda task: task.munmap(va + PAGE_SIZE, PAGE_SIZE))
    assert until_waits(owner, "WAIT_TLB_ACK") == slot(inside.cpu).address
    inside(lambda task: ksym.access_end(slot(task.cpu)))
    owner.reply()


def test_memory_that_runs_out_is_enomem_for_the_access(boot):
    machine = boot(1, 64)

    def program(task):
        va = task.mmap(100 * PAGE_SIZE)
        with pytest.raises(OSError) as refused:
            for index in range(100):
                task.store(va + index * PAGE_SIZE, b"x")
        # What is there can still be used.
        return refused.value.errno, task.load(va, 1), task.store(va, b"y")
    assert machine.spawn(program).result(timeout=20) == (errno.ENOMEM, b"x", None)
