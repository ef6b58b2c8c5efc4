# SPDX-License-Identifier: GPL-2.0-only
"""The audit on machines that run: clean after every kind of work, and a planted fault is
found and named.  (test_audit_synthetic.py is about each of its checks.)"""
import signal
import time

import multiprocess
import pytest

import shmkern
from helpers import (C, PAGE, Puppet, flags, is_running, kinds, mm_of, page, page_at, pfn_at, pte_of, run, set_pte, until)
from shmkern import MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE, direct_map, layout, worker
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE


@pytest.fixture
def owner(machine):
    """A task with 8 pages that lie on the LRU; `va` is where."""
    puppet = Puppet(machine)
    puppet.va = va = puppet(lambda task: task.mmap(8 * PAGE))
    puppet(lambda task: task.store(va, b"x" * 8 * PAGE))
    machine.init.migrate_prep()
    return puppet


# ---- clean -----------------------------------------------------------------------

def test_clean_after_every_kind_of_work(machine):
    machine.audit(check_poison=True).raise_if_broken()
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(64 * PAGE))
    child = grandchild = thread = None
    work = [
        lambda: parent(lambda task: task.load(va, 64 * PAGE)),
        lambda: parent(lambda task: task.store(va, b"x" * 40 * PAGE)),
        lambda: parent(lambda task: task.mprotect(va + 8 * PAGE, 8 * PAGE, PROT_NONE)),
        lambda: parent(lambda task: task.munmap(va + 20 * PAGE, 4 * PAGE)),
        lambda: parent(lambda task: task.mremap(va, 4 * PAGE, 80 * PAGE, MREMAP_MAYMOVE)),
        lambda: machine.init.move_pages(parent.pid, [va + i * PAGE for i in range(64)], [1] * 64),
        lambda: machine.init.migrate_prep(),
        lambda: parent(lambda task: task.mprotect(va + 4 * PAGE, 16 * PAGE, PROT_READ)),
    ]
    for number, job in enumerate(work):
        job()
        audit = machine.audit(check_poison=True)
        assert audit.clean, f"after job {number}: {audit}"
    thread = parent.clone()
    child = parent.fork()
    grandchild = child.fork()
    for puppet in (child, grandchild, thread):
        puppet(lambda task: task.store(va + 30 * PAGE, b"y" * 5 * PAGE))
        machine.audit(check_poison=True).raise_if_broken()
    for puppet in (child, parent, thread, grandchild):
        puppet.exit()
        machine.audit(check_poison=True).raise_if_broken()


def test_clean_while_tasks_and_a_migrator_work(boot):
    """The freezer stops them between two system calls, and lets them go on."""
    machine = boot(frames_per_node=2048)

    def program(task, stop):
        rounds = 0
        va = task.mmap(100 * PAGE)
        while not stop.poll():
            for index in range(100):
                task.fetch_add64(va + index * PAGE, 1)
            task.munmap(task.mmap(4 * PAGE), 4 * PAGE)
            if rounds % 50 == 0:
                task.fork(lambda task: task.store(va, b"child")).result(10)
            rounds += 1
        return [task.load64(va + i * PAGE) for i in range(100)], rounds

    pipes = [multiprocess.Pipe() for _ in range(3)]
    children = [machine.spawn(program, theirs) for _, theirs in pipes]
    migrator = machine.start_migrator()
    for _ in range(40):
        machine.audit().raise_if_broken()
    for ours, _ in pipes:
        ours.send("stop")
    for child in children:
        counts, rounds = child.result(20)
        assert counts == [rounds] * 100
    migrator.stop(10)
    machine.audit(check_poison=True).raise_if_broken()


def test_a_task_that_stays_in_the_kernel_is_waited_for_and_then_named(machine):
    puppet = Puppet(machine)
    puppet(lambda task: ksym.kernel_enter())
    with pytest.raises(TimeoutError, match=rf"do not leave the kernel:\ntask {puppet.pid} \(.*\) is in the kernel"):
        machine.audit(timeout=0.2)
    puppet(lambda task: ksym.kernel_exit())
    machine.audit().raise_if_broken()
    # And it had let the others in again.
    assert run(machine, lambda task: task.load(task.mmap(PAGE), 1)) == b"\0"


def test_a_sleeping_task_is_not_waited_for(machine):
    """Or it would be named, as above."""
    child = machine.spawn(lambda task: signal.pause())
    until(lambda: is_running(child) and direct_map.process_stat(child.os_pid)[0] == "S", "its sleep")
    for _ in range(10):
        machine.audit(timeout=20).raise_if_broken()


# ---- planted ---------------------------------------------------------------------

class Planted:
    """Changes memory of the machine, and back again when left."""

    def __init__(self, struct, field, value):
        self.struct, self.field, self.value = struct, field, value

    def __enter__(self):
        self.was = self.struct[self.field]
        self.struct[self.field] = self.value

    def __exit__(self, *_):
        self.struct[self.field] = self.was


def the_one(machine, kind):
    """The findings of an audit that finds nothing but this kind, and at least one; the first."""
    audit = machine.audit()
    assert kinds(audit) == {kind}, str(audit)
    with pytest.raises(shmkern.AuditError, match=kind):
        audit.raise_if_broken()
    assert str(audit.findings[0]) in str(audit) and audit.to_json()[0]["kind"] == kind
    return audit.findings[0]


@pytest.mark.parametrize("by", [1, -1])
def test_a_wrong_refcount_names_the_page_its_mapper_and_both_values(machine, owner, by):
    frame = page_at(owner, owner.va)
    with Planted(frame, "_count", frame._count + by):
        found = the_one(machine, "refcount")
    assert (found.page, found.task, found.address) == (pfn_at(owner, owner.va), owner.pid, owner.va)
    assert (found.expected, found.found) == (1, 1 + by)
    assert f"page {found.page}" in str(found) and f"task {owner.pid}" in str(found)
    machine.audit().raise_if_broken()


def test_a_wrong_mapcount_names_the_page_and_both_values(machine, owner):
    frame = page_at(owner, owner.va + PAGE)
    with Planted(frame, "_mapcount", 3):
        found = the_one(machine, "mapcount")
    assert (found.page, found.task) == (pfn_at(owner, owner.va + PAGE), owner.pid)
    assert (found.expected, found.found) == (0, 3)


def test_a_page_table_entry_that_was_moved_is_not_found_by_rmap(machine, owner):
    """As a mover would that forgot the area's pgoff."""
    va = owner.va
    owner(lambda task: (task.munmap(va + 7 * PAGE, PAGE), task.mmap(PAGE, RW, 0x32, va + 7 * PAGE)))
    pte = pte_of(owner, va)
    owner(lambda task: ksym.flush_tlb_mm(worker.slot(task.cpu).mm))
    set_pte(owner, va, 0), set_pte(owner, va + 7 * PAGE, pte)
    audit = machine.audit()
    rmap = [finding for finding in audit.findings if finding.kind == "rmap"]
    assert rmap and rmap[0].page == pfn_at(owner, va + 7 * PAGE)
    assert rmap[0].address == va + 7 * PAGE and rmap[0].task == owner.pid
    set_pte(owner, va, pte), set_pte(owner, va + 7 * PAGE, 0)
    machine.audit().raise_if_broken()


def test_a_lost_page_table_entry_is_a_leak_and_a_wrong_count(machine, owner):
    va, frame = owner.va, pfn_at(owner, owner.va)
    owner(lambda task: ksym.flush_tlb_mm(worker.slot(task.cpu).mm))
    pte = pte_of(owner, va)
    set_pte(owner, va, 0)
    audit = machine.audit()
    assert {"leak", "mapcount", "counter"} <= kinds(audit)
    assert {finding.page for finding in audit.findings if finding.kind in ("leak", "mapcount")} == {frame}
    set_pte(owner, va, pte)
    machine.audit().raise_if_broken()


def test_a_frame_mapped_twice_without_a_count_is_found(machine, owner):
    va = owner.va
    before = pte_of(owner, va + PAGE)
    owner(lambda task: ksym.flush_tlb_mm(worker.slot(task.cpu).mm))
    set_pte(owner, va + PAGE, pte_of(owner, va))
    audit = machine.audit()
    assert {"mapcount", "refcount", "rmap"} <= kinds(audit), str(audit)
    set_pte(owner, va + PAGE, before)
    machine.audit().raise_if_broken()


def test_a_migration_entry_that_is_left_names_page_and_place(machine, owner):
    va, old = owner.va, page_at(owner, owner.va).address
    pfn = pfn_at(owner, va)
    owner(lambda task: (ksym.lock_page(old), ksym.get_page(old), ksym.try_to_unmap(old, 1)))
    audit = machine.audit()
    [left] = [finding for finding in audit.findings if finding.kind == "migration_entry"]
    assert (left.page, left.address, left.task) == (pfn, va, owner.pid) and "write migration entry" in left.found
    owner(lambda task: (ksym.remove_migration_ptes(old, old), ksym.unlock_page(old), ksym.put_page(old)))
    machine.audit().raise_if_broken()


def test_a_translation_that_outlived_its_entry_is_found(machine, owner):
    """What a forgotten flush leaves."""
    va = owner.va
    owner(lambda task: task.store64(va, 1))
    pte = pte_of(owner, va)
    set_pte(owner, va, pte & ~C["_PAGE_RW"])
    found = the_one(machine, "tlb")
    assert (found.task, found.address, found.page) == (owner.pid, va, pfn_at(owner, va))
    assert machine.audit(strict_tlb=False).clean
    set_pte(owner, va, pte)
    machine.audit().raise_if_broken()


def test_a_list_pointer_that_leads_astray_names_the_page_and_its_list(machine, owner):
    frame, other = page_at(owner, owner.va + PAGE), page_at(owner, owner.va + 5 * PAGE)
    lru = layout.struct("ListHead", frame.address + layout.offsetof("Page", "lru"))
    with Planted(lru, "next", other.address + layout.offsetof("Page", "lru")):
        found = the_one(machine, "lru")
    assert "LRU_ACTIVE_ANON" in str(found) and found.page is not None
    with Planted(lru, "prev", 0xdead):
        the_one(machine, "lru")
    machine.audit().raise_if_broken()


def test_a_flag_that_says_another_list_is_found(machine, owner):
    frame = page_at(owner, owner.va)
    with Planted(frame, "flags", frame.flags & ~flags("PG_active")):
        audit = machine.audit()
    assert {"lru", "counter"} <= kinds(audit) and pfn_at(owner, owner.va) in {one.page for one in audit.findings}
    machine.audit().raise_if_broken()


def test_a_lock_that_is_held_names_the_lock_and_its_holder(machine, owner):
    zone = layout.struct("Zone", layout.kernel().zones + layout.sizeof("Zone"))
    lock = zone.lru_lock
    with Planted(lock, "word", owner.cpu + 1):
        found = the_one(machine, "lock")
    assert "zone 1: lru_lock" in str(found) and found.task == owner.pid
    semaphore = mm_of(owner).mmap_sem
    with Planted(semaphore, "word", 2):
        found = the_one(machine, "lock")
    assert "mmap_sem is held by 2 readers" in str(found)
    machine.audit().raise_if_broken()


def test_a_locked_page_names_its_holder(machine, owner):
    old = page_at(owner, owner.va).address
    owner(lambda task: ksym.lock_page(old))
    audit = machine.audit()
    assert kinds(audit) == {"flags", "lock"}
    assert f"locked by task {owner.pid}" in str(audit)
    owner(lambda task: ksym.unlock_page(old))
    machine.audit().raise_if_broken()


def test_a_writable_entry_of_a_shared_page_is_found(machine, owner):
    """Copy-on-write would leak."""
    va, child = owner.va, owner.fork()
    pte = pte_of(child, va)
    set_pte(child, va, pte | C["_PAGE_RW"])
    found = the_one(machine, "pte")
    assert found.page == pfn_at(owner, va) and found.task == child.pid
    set_pte(child, va, pte)
    machine.audit().raise_if_broken()


def test_a_write_to_a_free_frame_is_found_when_asked_for(machine, owner):
    va, frame = owner.va, pfn_at(owner, owner.va)
    owner(lambda task: task.munmap(va, PAGE))
    machine.init.migrate_prep()
    byte = layout.view("u8", layout.kernel().frames_base + frame * PAGE + 1234)
    byte[()] = 0
    assert machine.audit().clean
    audit = machine.audit(check_poison=True)
    assert kinds(audit) == {"poison"} and audit.findings[0].page == frame
    byte[()] = C["PAGE_POISON"]
    machine.audit(check_poison=True).raise_if_broken()


@pytest.mark.parametrize("field", ["anon_rss", "total_vm", "map_count", "nr_ptes", "mm_users"])
def test_a_wrong_counter_of_an_address_space_names_its_task(machine, owner, field):
    mm = mm_of(owner)
    with Planted(mm, field, mm[field] + 1):
        audit = machine.audit()
    assert len(audit.findings) == 1 and field in str(audit) and audit.findings[0].task == owner.pid
    assert (audit.findings[0].expected, audit.findings[0].found) == (mm[field], mm[field] + 1)


def test_a_leaked_frame_is_found(machine):
    """Allocated, and forgotten."""
    lost = run(machine, lambda task: ksym.page_to_pfn(ksym.alloc_pages_node(1, C["GFP_HIGHUSER_MOVABLE"], 0)))
    found = the_one(machine, "leak")
    assert found.page == lost and found.found == 1
    address = page(lost).address
    run(machine, lambda task: ksym.put_page(address))
    machine.audit().raise_if_broken()


def test_zones_that_are_no_multiple_of_the_largest_block_are_no_finding(boot):
    """Two free blocks on either side of a zone's end are no buddies."""
    for frames in (512, 100, 3000):
        machine = boot(nodes=4, frames_per_node=frames)
        machine.audit().raise_if_broken()
        machine.close()


# ---- the cost --------------------------------------------------------------------

def test_a_million_frames_are_audited_in_seconds(boot):
    """Linear in frames: four times as many cost at most ten times as much, and not above a
    generous bound."""
    def audited(frames):
        machine = boot(nodes=4, frames_per_node=frames // 4)

        def use(task):
            va = task.mmap(frames // 8 * PAGE)
            for index in range(0, frames // 8, 7):
                task.store64(va + index * PAGE, index)
            task.munmap(va, frames // 16 * PAGE)
            signal.pause()

        machine.spawn(use)
        puppet = Puppet(machine)
        puppet(lambda task: task.store(task.mmap(PAGE), b"x"))
        took = []
        for _ in range(3):
            began = time.process_time()
            machine.audit().raise_if_broken()
            took.append(time.process_time() - began)
        machine.close()
        return min(took)

    quarter, whole = audited(1 << 18), audited(1 << 20)
    print(f"audit of 256 Ki frames {quarter:.2f} s of CPU, of 1 Mi frames {whole:.2f} s")
    assert whole < 10 * quarter + 0.5 and whole < 10
