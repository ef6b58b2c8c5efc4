# SPDX-License-Identifier: GPL-2.0-only
"""move_pages(2), seed lines 803-1097: what is moved, and what the result array says of the
rest.  Each test names the lines it is about."""
import errno

import multiprocess
import numpy as np
import pytest

from helpers import (C, PAGE, TASK_SIZE, Puppet, counter, flags, frame_bytes, is_running, node_at, page_at,
                     pfn_at, pte_of, run, until, until_waits)
from shmkern import (MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE,
                     PROT_READ, PROT_WRITE)
from shmkern import worker
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE
EFAULT, ENOENT, EBUSY, EACCES, EAGAIN = (-errno.EFAULT, -errno.ENOENT, -errno.EBUSY, -errno.EACCES, -errno.EAGAIN)


@pytest.fixture
def owner(machine):
    """A task with 8 pages on node 0, page i full of i; `va` is where."""
    puppet = Puppet(machine)
    puppet.va = puppet(lambda task: task.mmap(8 * PAGE))
    va = puppet.va
    puppet(lambda task: task.store(va, b"".join(bytes([i]) * PAGE for i in range(8))))
    machine.init.move_pages(puppet.pid, [va + i * PAGE for i in range(8)], [0] * 8)
    return puppet


def errno_of(call):
    """The errno that a call fails with."""
    with pytest.raises(OSError) as caught:
        call()
    return caught.value.errno


def test_pages_move_to_the_nodes_asked_for_with_their_contents(owner, machine):
    """Lines 830-913, 977-986."""
    va = owner.va
    before = [pfn_at(owner, va + i * PAGE) for i in range(8)]
    count = counter(machine)
    assert machine.init.move_pages(owner.pid, [va + i * PAGE for i in range(8)], [1] * 8) == [1] * 8
    assert [node_at(owner, va + i * PAGE) for i in range(8)] == [1] * 8
    assert count("pgmigrate_success") == 8 and count("pgmigrate_fail") == 0
    after = [pfn_at(owner, va + i * PAGE) for i in range(8)]
    assert not set(before) & set(after)
    assert [frame_bytes(pfn)[0] for pfn in after] == list(range(8))
    assert owner(lambda task: task.load(va, 8 * PAGE)) == b"".join(bytes([i]) * PAGE for i in range(8))
    # The old frames are free again.
    assert {frame_bytes(pfn) for pfn in before} == {bytes([C["PAGE_POISON"]]) * PAGE}
    machine.audit().raise_if_broken()


def test_each_page_goes_to_its_own_node(boot):
    """Lines 813-828: new_page_node finds the request by the page."""
    machine = boot(nodes=8, frames_per_node=128)
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(24 * PAGE))
    puppet(lambda task: [task.store64(va + i * PAGE, i) for i in range(24)])
    order = [(i * 7) % 24 for i in range(24)]
    nodes = [i % 8 for i in order]
    assert puppet(lambda task: task.move_pages(0, [va + i * PAGE for i in order], nodes)) == nodes
    assert [node_at(puppet, va + i * PAGE) for i in range(24)] == [i % 8 for i in range(24)]
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(24)]) == list(range(24))


def test_any_address_in_a_page_will_do(owner):
    """Line 865: follow_page rounds down."""
    va = owner.va
    assert owner(lambda task: task.move_pages(0, [va + 17, va + 2 * PAGE - 1], [1, 1])) == [1, 1]
    assert [node_at(owner, va), node_at(owner, va + PAGE)] == [1, 1]


def test_a_page_that_is_there_already_is_left_alone(owner, machine):
    """Lines 879-886."""
    va, frame = owner.va, pfn_at(owner, owner.va)
    count = counter(machine)
    assert owner(lambda task: task.move_pages(0, [va], [0])) == [0]
    assert pfn_at(owner, va) == frame and count("pgmigrate_success") == 0


def test_what_is_no_page_is_told_apart(owner, machine):
    """Lines 859-876: no area, nothing mapped, the zero page; the rest is moved."""
    va = owner.va
    fresh = owner(lambda task: task.mmap(3 * PAGE, RW, 0x22, 0x10_0000_0000))
    owner(lambda task: task.load(fresh + PAGE, 1))
    places = [fresh - PAGE, fresh, fresh + PAGE, fresh + 3 * PAGE, va, 0, TASK_SIZE + PAGE, (1 << 64) - PAGE]
    assert machine.init.move_pages(owner.pid, places, [1] * 8) == \
        [EFAULT, ENOENT, EFAULT, EFAULT, 1, EFAULT, EFAULT, EFAULT]
    assert node_at(owner, va) == 1 and pfn_at(owner, fresh + PAGE) == 0
    # Asking only, the zero page is no page.  Lines 1013-1028.
    assert machine.init.move_pages(owner.pid, places) == \
        [EFAULT, ENOENT, ENOENT, EFAULT, 1, EFAULT, EFAULT, EFAULT]
    machine.audit().raise_if_broken()


def test_asking_moves_nothing(owner, machine):
    """Lines 990-1036."""
    va = owner.va
    owner(lambda task: task.move_pages(0, [va + PAGE], [1]))
    count = counter(machine)
    assert machine.init.move_pages(owner.pid, [va, va + PAGE, va + 2 * PAGE]) == [0, 1, 0]
    assert owner(lambda task: task.move_pages(0, [])) == []
    assert count("pgmigrate_success") == 0
    machine.audit().raise_if_broken()


def test_a_shared_page_is_moved_with_move_all_only(owner, machine):
    """Lines 886-890: more than one mapping."""
    va = owner.va
    child = owner.fork()
    frame = pfn_at(owner, va)
    assert machine.init.move_pages(owner.pid, [va], [1], MPOL_MF_MOVE) == [EACCES]
    assert pfn_at(owner, va) == pfn_at(child, va) == frame
    assert machine.init.move_pages(owner.pid, [va], [1], MPOL_MF_MOVE_ALL) == [1]
    assert pfn_at(owner, va) == pfn_at(child, va) != frame and node_at(child, va) == 1
    assert child(lambda task: task.load(va, PAGE)) == bytes(PAGE)
    # Still copy-on-write.
    child(lambda task: task.store(va, b"child"))
    assert owner(lambda task: task.load(va, 5)) == bytes(5)
    machine.audit().raise_if_broken()


def test_no_flag_at_all_moves_as_move_does(owner):
    """Line 886 looks at MPOL_MF_MOVE_ALL alone."""
    va = owner.va
    assert owner(lambda task: task.move_pages(0, [va], [1], 0)) == [1]


def test_a_page_asked_for_twice_is_moved_once(owner, machine):
    """Line 892: the second time it is off the LRU, and busy."""
    va = owner.va
    count = counter(machine)
    assert machine.init.move_pages(owner.pid, [va, va + 5, va + PAGE], [1, 1, 1]) == [1, EBUSY, 1]
    assert count("pgmigrate_success") == 2
    assert page_at(owner, va)._count - (page_at(owner, va).flags & flags("PG_lru") == 0) == 1
    machine.audit().raise_if_broken()


def test_a_page_asked_for_to_two_nodes_says_where_it_is(owner, machine):
    """Lines 813-828 find the first of two requests for one page, also when only the second
    one has it moved."""
    va = owner.va
    owner(lambda task: task.move_pages(0, [va], [1]))
    status = machine.init.move_pages(owner.pid, [va, va], [1, 0])
    # On node 1 it was already when it was asked for.
    assert status == [1, 0] and node_at(owner, va) == 0
    machine.audit().raise_if_broken()


def test_memory_without_access_moves_and_keeps_its_protection(owner, machine):
    """Lines 139-143: the new PTE has the area's protection."""
    va = owner.va
    owner(lambda task: (task.mprotect(va, PAGE, PROT_NONE), task.mprotect(va + PAGE, PAGE, PROT_READ)))
    assert machine.init.move_pages(owner.pid, [va, va + PAGE], [1, 1]) == [1, 1]
    assert pte_of(owner, va) & C["_PAGE_PROTNONE"] and not pte_of(owner, va) & C["_PAGE_PRESENT"]
    assert not pte_of(owner, va + PAGE) & C["_PAGE_RW"]
    machine.audit().raise_if_broken()
    owner(lambda task: task.mprotect(va, 2 * PAGE, RW))
    assert owner(lambda task: task.load(va, 1) + task.load(va + PAGE, 1)) == b"\0\1"


def test_moved_memory_is_found_after_mremap_split_and_merge(owner, machine):
    """page->index counts in the area that first had the page; its copies keep pgoff."""
    va, to = owner.va, owner.va - (1 << 30) - 3 * PAGE
    owner(lambda task: task.munmap(va + 3 * PAGE, PAGE))
    owner(lambda task: task.mremap(va + 4 * PAGE, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to))
    owner(lambda task: task.mprotect(to + PAGE, PAGE, PROT_READ))
    places = [va, va + PAGE, va + 2 * PAGE, to, to + PAGE, to + 2 * PAGE, to + 3 * PAGE]
    for node in (1, 0, 1):
        assert machine.init.move_pages(owner.pid, places, [node] * 7) == [node] * 7
    assert owner(lambda task: [task.load(place, 1)[0] for place in places]) == [0, 1, 2, 4, 5, 6, 7]
    machine.audit().raise_if_broken()


def test_a_page_that_others_have_isolated_is_busy(owner, machine):
    """Line 892: isolate_lru_page fails."""
    va, other = owner.va, Puppet(machine)
    page = page_at(owner, va).address
    other(lambda task: (ksym.migrate_prep(), ksym.isolate_lru_page(page)))
    assert machine.init.move_pages(owner.pid, [va, va + PAGE], [1, 1]) == [EBUSY, 1]
    other(lambda task: ksym.putback_lru_page(page))
    assert machine.init.move_pages(owner.pid, [va], [1]) == [1]
    machine.audit().raise_if_broken()


def test_pages_that_wait_in_a_pagevec_are_moved_too(machine):
    """Lines 43-55: migrate_prep empties the pagevecs of all tasks."""
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(3 * PAGE))
    puppet(lambda task: task.store(va, b"x" * 3 * PAGE))
    assert not page_at(puppet, va).flags & flags("PG_lru")
    node = 1 - node_at(puppet, va)
    assert machine.init.move_pages(puppet.pid, [va], [node]) == [node]


def test_a_full_node_is_enomem_and_everything_goes_back(boot):
    """Lines 621-622, 775-776, 826-827: GFP_THISNODE, and -ENOMEM ends the whole call."""
    machine = boot(frames_per_node=256)
    puppet, hog = Puppet(machine), Puppet(machine)
    va = puppet(lambda task: task.mmap(20 * PAGE))
    puppet(lambda task: [task.store64(va + i * PAGE, i) for i in range(20)])
    places = [va + i * PAGE for i in range(20)]
    machine.init.move_pages(puppet.pid, places, [0] * 20)
    # Fill node 1: with pages that are moved there.
    big = hog(lambda task: task.mmap(400 * PAGE))
    moved = 0
    with pytest.raises(OSError) as caught:
        while True:
            hog(lambda task: task.store64(big + moved * PAGE, moved))
            hog(lambda task: task.move_pages(0, [big + moved * PAGE], [1]))
            moved += 1
    assert caught.value.errno == errno.ENOMEM and moved > 150
    low = machine.zoneinfo()[1]
    assert low["nr_free_pages"] == low["min"]
    frames = [pfn_at(puppet, place) for place in places]
    assert errno_of(lambda: machine.init.move_pages(puppet.pid, places, [1] * 20)) == errno.ENOMEM
    assert [pfn_at(puppet, place) for place in places] == frames
    machine.audit().raise_if_broken()
    # Four frames come free: one holds the request meanwhile, since init runs on node 1; three
    # pages move, and what does not fit goes back.
    assert worker.slot(machine.init._child.cpu).numa_node == 1
    hog(lambda task: task.munmap(big, 4 * PAGE))
    machine.init.migrate_prep()
    assert errno_of(lambda: machine.init.move_pages(puppet.pid, places, [1] * 20)) == errno.ENOMEM
    assert [node_at(puppet, place) for place in places].count(1) == 3
    assert puppet(lambda task: [task.load64(place) for place in places]) == list(range(20))
    machine.audit().raise_if_broken()


def test_five_thousand_pages_in_one_call(boot):
    """Lines 932-938: room for all of them."""
    machine = boot(frames_per_node=8192)
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(5000 * PAGE))
    puppet(lambda task: [task.store64(va + i * PAGE, i * i) for i in range(5000)])
    places = np.arange(5000, dtype=np.uint64) * PAGE + va
    for node in (1, 0):
        # In an order that makes the search for the request long.
        assert machine.init.move_pages(puppet.pid, places[::-1], np.full(5000, node)) == [node] * 5000
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(5000)]) == [i * i for i in range(5000)]
    machine.audit().raise_if_broken()


def test_no_pages_is_no_error(owner, machine):
    """Lines 948-988 with nr_pages 0."""
    for nodes in ([], None):
        assert owner(lambda task: task.move_pages(0, [], nodes)) == []


def test_a_request_for_a_node_that_is_not_there_moves_nothing(owner):
    """Lines 962-968: all nodes are looked at before the first page is."""
    va, frame = owner.va, pfn_at(owner, owner.va)
    for bad in (2, 63, 64, -1, 2 ** 31 - 1, -2 ** 31):
        assert errno_of(lambda: owner(lambda task: task.move_pages(0, [va, va + PAGE], [1, bad]))) == errno.ENODEV
    assert pfn_at(owner, va) == frame


def test_unknown_flags_are_einval(owner):
    """Lines 1053-1054; MPOL_MF_STRICT is mbind's."""
    va = owner.va
    for bad in (MPOL_MF_STRICT, 8, MPOL_MF_MOVE | 16, -1, -2 ** 31):
        assert errno_of(lambda: owner(lambda task: task.move_pages(0, [va], [1], bad))) == errno.EINVAL


def test_a_pid_that_is_nobody_is_esrch(owner, machine):
    """Lines 1059-1065."""
    gone = Puppet(machine)
    gone.exit()
    for pid in (gone.pid, 99999, -1, -owner.pid, 2 ** 31 - 1):
        assert errno_of(lambda: machine.init.move_pages(pid, [owner.va], [1])) == errno.ESRCH
        assert errno_of(lambda: machine.init.move_pages(pid, [owner.va])) == errno.ESRCH
    machine.audit().raise_if_broken()


def test_a_task_without_an_address_space_is_einval(owner, machine):
    """Lines 1066-1070: it is on its way out, or not yet in."""
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: ksym.drop_mm(worker.slot(task.cpu)))
    assert errno_of(lambda: machine.init.move_pages(puppet.pid, [va], [1])) == errno.EINVAL
    puppet.exit()
    machine.audit().raise_if_broken()


def test_a_busy_page_is_tried_ten_times_and_put_back_as_it_was(owner, machine):
    """Lines 276-279, 696-700, 765-790: somebody has a reference all the time."""
    va = owner.va
    page = page_at(owner, va)
    address, frame, pte = page.address, pfn_at(owner, va), pte_of(owner, va)
    other = Puppet(machine)
    other(lambda task: ksym.get_page(address))
    count = counter(machine)
    assert machine.init.move_pages(owner.pid, [va, va + PAGE], [1, 1]) == [EAGAIN, 1]
    assert count("pgmigrate_retry") == 10 and count("pgmigrate_fail") == 1 and count("pgmigrate_success") == 1
    assert pfn_at(owner, va) == frame and page._mapcount == 0
    assert pte_of(owner, va) & C["_PAGE_RW"] == pte & C["_PAGE_RW"]
    assert owner(lambda task: (task.load(va, 1), task.store(va, b"!"))) == (b"\0", None)
    machine.init.migrate_prep()
    assert page.flags & flags("PG_lru")
    other(lambda task: ksym.put_page(address))
    machine.audit().raise_if_broken()
    assert machine.init.move_pages(owner.pid, [va], [1]) == [1]
    assert owner(lambda task: task.load(va, 1)) == b"!"


def test_a_locked_page_is_waited_for_from_the_fourth_pass_on(owner, machine):
    """Lines 640-645, 771: force is pass > 2; before that the page is passed over."""
    va, holder, mover = owner.va, Puppet(machine), Puppet(machine)
    page = page_at(owner, va).address
    holder(lambda task: ksym.lock_page(page))
    count, pid = counter(machine), owner.pid
    mover.begin(lambda task: task.move_pages(pid, [va], [1]))
    assert until_waits(mover, "WAIT_PAGE_LOCK") == page
    assert count("pgmigrate_retry") == 3 and count("pgmigrate_success") == 0
    # It is mapped meanwhile: the lock comes before the unmapping.
    assert owner(lambda task: task.load(va, 1)) == b"\0"
    holder(lambda task: ksym.unlock_page(page))
    assert mover.reply() == [1]
    assert count("pgmigrate_retry") == 3 and node_at(owner, va) == 1
    machine.audit().raise_if_broken()


def test_writeback_is_waited_for_from_the_fourth_pass_on(owner, machine):
    """Lines 648-652."""
    va, mover = owner.va, Puppet(machine)
    page = page_at(owner, va)
    page.flags |= flags("PG_writeback")
    count, pid, address = counter(machine), owner.pid, page.address
    mover.begin(lambda task: task.move_pages(pid, [va], [1]))
    assert until_waits(mover, "WAIT_PAGE_WRITEBACK") == address
    assert count("pgmigrate_retry") == 3
    owner(lambda task: ksym.end_page_writeback(address))
    assert mover.reply() == [1] and node_at(owner, va) == 1
    machine.audit().raise_if_broken()


def test_the_target_may_exit_while_its_pages_are_moved(owner, machine):
    """Lines 1066-1067: get_task_memory keeps the address space for the mover, who tears it down."""
    va, holder, mover = owner.va, Puppet(machine), Puppet(machine)
    page = page_at(owner, va).address
    holder(lambda task: ksym.lock_page(page))
    pid = owner.pid
    mover.begin(lambda task: task.move_pages(pid, [va, va + PAGE], [1, 1]))
    until_waits(mover, "WAIT_PAGE_LOCK")
    owner.exit()
    holder(lambda task: ksym.unlock_page(page))
    assert mover.reply() == [1, 1]
    holder.exit(), mover.exit()
    assert machine.vmstat()["nr_anon_pages"] == 0
    machine.audit().raise_if_broken()


def test_moving_while_the_owner_maps_and_unmaps_leaves_nothing_behind(machine):
    """mmap_sem: the pages are looked up and moved between the owner's calls."""
    def churn(task, stop):
        rounds = 0
        while not stop.poll():
            va = task.mmap(16 * PAGE, RW, 0x32, 0x10_0000_0000)
            for index in range(16):
                task.store64(va + index * PAGE, rounds + index)
            for index in range(16):
                assert task.load64(va + index * PAGE) == rounds + index
            task.munmap(va + (rounds % 8) * PAGE, 8 * PAGE)
            rounds += 1
        return rounds

    ours, theirs = multiprocess.Pipe()
    child = machine.spawn(churn, theirs)
    # A task on its way in has no address space yet, which is -EINVAL.
    until(lambda: is_running(child) and worker.slot(child.cpu).mm, "its start")
    places = [0x10_0000_0000 + i * PAGE for i in range(16)]
    seen, number = set(), 0
    while number < 300 or machine.vmstat()["pgmigrate_success"] == 0:
        seen.update(machine.init.move_pages(child.pid, places, [number % 2] * 16))
        number += 1
    ours.send("stop")
    assert child.result(10) > 0
    assert seen <= {0, 1, EFAULT, ENOENT, EBUSY, EAGAIN}
    machine.audit().raise_if_broken()


def test_migrate_frames_moves_what_lies_in_a_range_of_frames(machine, owner):
    """do_migrate_range of memory_hotplug.c: found by frame, and at most 256 at a time.  All of
    one node, whose lock is taken."""
    va, home = owner.va, page_at(owner, owner.va)
    frames = [pfn_at(owner, va + i * PAGE) for i in range(8)]
    low, high = min(frames), max(frames) + 1
    machine.init.migrate_prep()
    done, stayed = machine.init.migrate_frames(low, high, 1)
    assert done == high and stayed == 0
    assert {node_at(owner, va + i * PAGE) for i in range(8)} == {1}
    assert machine.init.migrate_frames(low, high, 1) == (high, 0)
    assert home._count == 0
    for bad in ((5, 3, 1), (5, 5, 1), (0, 2049, 1), (1020, 1030, 1), (0, 10, 2), (0, 10, -1)):
        assert errno_of(lambda: machine.init.migrate_frames(*bad)) == errno.EINVAL
    machine.audit().raise_if_broken()


def test_a_mover_can_be_a_thread_of_the_owner(owner, machine):
    """pid 0 is the caller."""
    va, thread = owner.va, owner.clone()
    assert thread(lambda task: task.move_pages(0, [va], [1])) == [1]
    assert thread(lambda task: task.move_pages(task.pid, [va], [0])) == [0]
    assert owner(lambda task: task.load(va, 1)) == b"\0"
    assert run(machine, lambda task: task.move_pages(0, [va])) == [EFAULT]
