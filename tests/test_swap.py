# SPDX-License-Identifier: GPL-2.0-only
"""Promises of swap and reclaim: memory overflows into a file of the host and comes back whole,
whatever is done to it meanwhile; every slot is given back; what the host cannot do is an error
of the one who needs it, and nothing is lost.  All with real processes."""
import errno
import io
import os
import signal
import time
from functools import partial

import pytest

import shmkern
from shmkern import (MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MPOL_BIND, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, layout, tracing,
                     vmstat, worker)
from shmkern.direct_map import process_stat
from shmkern.kallsyms import ksym
from shmkern_stress import common, harness

from helpers import (PAGE, Puppet, counter, flags, is_present, kinds, mm_of, page_at, pte_of, set_pte, until, until_asleep,
                     until_waits)

C = layout.constants
GFP = C["GFP_HIGHUSER_MOVABLE"]


@pytest.fixture
def small(boot, tmp_path):
    """A machine of 2 nodes of 256 frames, with a swap area four times as large but for a few."""
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 1500)
    return machine


def fill(task, va, pages, first):
    """Makes word 0 of each page `first` plus its number."""
    for number in range(pages):
        task.store64(va + number * PAGE, first + number)


def wrong(task, va, pages, first):
    """How many of the words are not what fill() made them."""
    return sum(task.load64(va + number * PAGE) != first + number for number in range(pages))


def store_new(task, pages, first):
    """Maps and fills memory; its address."""
    va = task.mmap(pages * PAGE)
    fill(task, va, pages, first)
    return va


def slots_in_use():
    """Slots of all areas that are in use."""
    return layout.kernel().total_swap_pages - layout.kernel().nr_swap_pages


def assert_no_entry_is_left(machine):
    """No page table has a slot any more.  A page that reclaim or another task had locked just when its
    last entry went keeps its slot until reclaim meets it again."""
    until_kswapd_sleeps(machine)
    assert slots_in_use() == layout.kernel().swapper_space.nrpages
    machine.audit().raise_if_broken()


def swap_entry(pte):
    """(area, slot) of a swap entry; None for any other PTE."""
    area = pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]
    if pte == 0 or is_present(pte) or area >= C["SWP_MIGRATION_READ"]:
        return None
    return area, pte >> C["SWP_OFFSET_SHIFT"]


def uses_of(entry):
    """The count of a slot in its area's map."""
    info = layout.kernel().swap_info[entry[0]]
    return int(layout.view("u16", int(info["swap_map"]), int(info["max"]))[entry[1]])


def push_out(puppet, va):
    """Unmaps a page to swap, as reclaim does, and leaves it in the swap cache.  Its struct page."""
    out = page_at(puppet, va)

    def program(task, address=out.address):
        ksym.lru_add_drain_all()
        ksym.lock_page(address)
        added = ksym.add_to_swap(address)
        # Used since it was asked last, then no longer.
        rc = ksym.try_to_unmap(address, 0)
        if rc == C["SWAP_FAIL"]:
            rc = ksym.try_to_unmap(address, 0)
        ksym.unlock_page(address)
        return added, rc
    assert puppet(program) == (1, C["SWAP_SUCCESS"])
    return out


def until_kswapd_sleeps(machine):
    """Returns when no kswapd has anything to do, so that nothing is written to an area."""
    def asleep():
        nodes = layout.view("PgData", layout.kernel().nodes, layout.kernel().nr_nodes)
        return not nodes["kswapd_wait"].any() and layout.kernel().nr_isolators == 0
    until(asleep, "a sleeping kswapd", check=machine.check)


# ---- memory that overflows --------------------------------------------------------

def test_twice_the_memory_there_is_keeps_every_byte(small):
    def program(task, pages, first):
        va = store_new(task, pages, first)
        for turn in range(3):
            if wrong(task, va, pages, first + turn):
                return "lost"
            fill(task, va, pages, first + turn + 1)
        return wrong(task, va, pages, first + 3)
    count = counter(small)
    children = [small.spawn(program, 500, number << 32) for number in range(2)]
    assert [child.result(60) for child in children] == [0, 0]
    assert count("pswpout") > 500 and count("pswpin") > 500
    assert count("pgsteal_kswapd") + count("pgsteal_direct") > 500


def test_without_an_area_memory_ends_and_with_one_it_goes_on(boot, tmp_path):
    machine = boot(2, 256)
    task = Puppet(machine)
    va = task(lambda task: task.mmap(800 * PAGE))

    def until_full(task, va):
        for number in range(800):
            try:
                task.store64(va + number * PAGE, number)
            except OSError as error:
                return number, error.errno
        return 800, 0
    filled, code = task(partial(until_full, va=va))
    assert code == errno.ENOMEM and 400 < filled < 512
    assert machine.vmstat()["pgscan_direct"] == 0
    machine.swapon(tmp_path / "swap", 1000)
    assert task(partial(until_full, va=va)) == (800, 0)
    assert task(partial(wrong, va=va, pages=800, first=0)) == 0


def test_full_swap_is_out_of_memory_and_nothing_is_lost(boot, tmp_path):
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 300)

    def program(task):
        areas, filled = [], 0
        with pytest.raises(OSError) as full:
            while True:
                areas.append(task.mmap(100 * PAGE))
                fill(task, areas[-1], 100, len(areas) << 32)
        assert full.value.errno == errno.ENOMEM
        # Room to bring the rest back in, area by area.
        task.munmap(areas.pop(), 100 * PAGE)
        lost = 0
        while areas:
            lost += wrong(task, areas[-1], 100, len(areas) << 32)
            filled += 1
            task.munmap(areas.pop(), 100 * PAGE)
        return lost, filled
    lost, filled = machine.spawn(program).result(60)
    assert lost == 0 and 6 <= filled <= 8
    assert_no_entry_is_left(machine)


def test_kswapd_frees_before_anybody_has_to(boot, tmp_path):
    machine = boot(1, 1024)
    machine.swapon(tmp_path / "swap", 2000)
    count = counter(machine)
    task = Puppet(machine)
    va = task(lambda task: store_new(task, 960, 0))
    # One more at a time, and kswapd has all the time it wants in between.
    zone = machine.zoneinfo()[0]
    for number in range(40):
        task(lambda task, va=va: task.store64(task.mmap(PAGE), 1))
        until(lambda: machine.vmstat()["nr_free_pages"] > zone["min"], "a kswapd that frees", check=machine.check)
    assert count("pgsteal_kswapd") > 0 and count("allocstall") == 0
    assert task(partial(wrong, va=va, pages=960, first=0)) == 0


def test_a_killed_kswapd_stops_nobody_and_the_next_swapon_makes_another(boot, tmp_path):
    machine = boot(1, 1024)
    machine.swapon(tmp_path / "swap", 2000)
    node = layout.view("PgData", layout.kernel().nodes, 1)
    old = machine.kswapds[0]
    until(lambda: node["kswapd_pid"][0] == old.pid, "its sleep", check=machine.check)
    old.kill()
    old.process.join()
    count = counter(machine)
    assert machine.spawn(lambda task: wrong(task, store_new(task, 1500, 0), 1500, 0)).result(30) == 0
    assert count("pgsteal_direct") > 0 and count("pgsteal_kswapd") == 0
    machine.swapon(tmp_path / "more", 10)
    until(lambda: node["kswapd_pid"][0] == machine.kswapds[0].pid != old.pid, "another kswapd", check=machine.check)


def test_memory_is_not_out_as_long_as_anybody_frees_some(small):
    """Whoever finds every page in use has found them slowly, perhaps: others get on meanwhile."""
    owner, late, other = Puppet(small), Puppet(small), Puppet(small)
    va = owner(lambda task: store_new(task, 300, 1))
    owner(lambda task: task.mlock(va, 300 * PAGE))
    late_va = late(lambda task: task.mmap(300 * PAGE))
    kernel, late_slot = layout.kernel(), worker.slot(late.cpu)
    # Somebody else is at it, always: this test.  There are no pages but locked ones.
    kernel.nr_isolators += 1
    try:
        late.begin(lambda task: task.mlock(late_va, 300 * PAGE))
        for _round in range(2 * C["MAX_RECLAIM_RETRIES"]):
            stalls = late_slot.vm_events[C["ALLOCSTALL"]]
            other(lambda task: (ksym.reclaim_begin(), ksym.reclaim_end(1)))
            until(lambda: late_slot.vm_events[C["ALLOCSTALL"]] > stalls, "another try", check=small.check)
    finally:
        kernel.nr_isolators -= 1
    owner(lambda task: task.munlock(va, 300 * PAGE))
    late.reply()
    assert mm_of(late).locked_vm == 300 and late_slot.vm_events[C["PGFAULT_OOM"]] == 0


def test_memory_is_not_out_while_those_who_have_it_in_hand_stand_still(small):
    """A process may stand still for a while, the host being busy; and that others who wait have looked in vain
    meanwhile, again and again, means nothing."""
    owner, holder, other, *late = (Puppet(small) for _ in range(5))
    va = owner(lambda task: store_new(task, 400, 1))
    owner(lambda task: task.mlock(va, 400 * PAGE))
    slots = [worker.slot(task.cpu) for task in late]
    areas = [task(lambda task: task.mmap(110 * PAGE)) for task in late]
    holder(lambda task: ksym.isolation_begin())
    for task, area in zip(late, areas):
        task.begin(lambda task, area=area: task.mlock(area, 110 * PAGE))
    for slot in slots:
        until(lambda: slot.vm_events[C["ALLOCSTALL"]] > 1, "its wait", check=small.check)
    for _round in range(4 * C["MAX_RECLAIM_RETRIES"]):
        other(lambda task: (ksym.reclaim_begin(), ksym.reclaim_end(0)))
    owner(lambda task: task.munlock(va, 400 * PAGE))
    holder(lambda task: ksym.isolation_end())
    for task, slot in zip(late, slots):
        task.reply()
        assert mm_of(task).locked_vm == 110 and slot.vm_events[C["PGFAULT_OOM"]] == 0


def lock_more_than_is_left(machine, holder, event, function):
    """Has `holder` do function(task) and stand still at `event` until another task, which is returned, has found
    no memory: it is still at it, and wants more than there is without the holder's."""
    late = Puppet(machine)
    late_slot = worker.slot(late.cpu)
    with tracing.Tracing([event]):
        tracing.set_breaks(holder.cpu, [event])
        holder.begin(function)
        until(lambda: tracing.is_stopped(holder.cpu), "its stop", check=machine.check)
        # Each page is unevictable at once.
        late.begin(lambda task: task.mlock(task.mmap(320 * PAGE), 320 * PAGE))
        until(lambda: late_slot.vm_events[C["ALLOCSTALL"]] > 2 or late.is_done(), "its wait", check=machine.check)
        tracing.set_breaks(holder.cpu, [])
        tracing.go_on(holder.cpu)
    return late


@pytest.mark.parametrize("move", [
    lambda task, pid, va: task.migrate_pages(pid, [0], [1]),
    lambda task, pid, va: task.move_pages(pid, [va + number * PAGE for number in range(200)], [1] * 200),
    lambda task, pid, va: task.migrate_frames(0, 256, 1),
], ids=["migrate_pages", "move_pages", "migrate_frames"])
def test_memory_is_not_out_while_it_is_being_moved(boot, tmp_path, move):
    """The mover has all pages in its hands, and stands still."""
    machine = boot(2, 256)
    owner, mover = Puppet(machine), Puppet(machine)
    va = owner(lambda task: store_new(task, 200, 1))
    pid = owner.pid
    mover(lambda task: task.migrate_prep())
    machine.swapon(tmp_path / "swap", 1500)
    late = lock_more_than_is_left(machine, mover, "mm_migrate_pages_start", lambda task: move(task, pid, va))
    late.reply()
    assert mm_of(late).locked_vm == 320
    try:
        mover.reply()
    except OSError as error:            # late has the memory it wanted
        assert error.errno == errno.ENOMEM
    assert owner(partial(wrong, va=va, pages=200, first=1)) == 0


def test_memory_is_not_out_while_a_munmap_collects_it(boot, tmp_path):
    """The pages are on their lists still, but nobody can free them but who unmaps them, and stands still."""
    machine = boot(2, 256)
    owner = Puppet(machine)
    va = owner(lambda task: store_new(task, 200, 1))
    machine.swapon(tmp_path / "swap", 1500)
    late = lock_more_than_is_left(machine, owner, "tlb_flush", lambda task: task.munmap(va, 200 * PAGE))
    owner.reply()
    late.reply()
    assert mm_of(late).locked_vm == 320


def test_who_moves_pages_lets_those_go_first_who_wait_for_memory(small):
    owner, mover = Puppet(small), Puppet(small)
    owner(lambda task: store_new(task, 20, 1))
    kernel = layout.kernel()
    # It is this test that waits.
    kernel.nr_starving += 1
    try:
        began = time.monotonic()
        for target in (1, 0) * 10:
            mover(lambda task: task.migrate_frames((1 - target) * 256, (2 - target) * 256, target))
        assert time.monotonic() - began > 20 * 0.015
    finally:
        kernel.nr_starving -= 1


def test_pages_in_use_stay(small):
    """Reclaim asks twice: what is used between the two looks is not taken."""
    small.page_cluster = 0
    def program(task):
        hot = store_new(task, 32, 7)
        cold = task.mmap(900 * PAGE)
        for number in range(900):
            task.store64(cold + number * PAGE, number)
            for place in range(0, 32, 4):
                task.load64(hot + place * PAGE)
        return wrong(task, cold, 900, 0), wrong(task, hot, 32, 7)
    count = counter(small)
    assert small.spawn(program).result(60) == (0, 0)
    # The 8 hot pages came back a few times at most; the cold ones once each.
    assert count("pgactivate") > 0 and count("pswpin") < 1200


def test_second_area_takes_what_the_first_cannot(boot, tmp_path):
    machine = boot(2, 256)
    assert machine.swapon(tmp_path / "a", 100) == 0
    assert machine.swapon(tmp_path / "b", 700) == 1
    task = Puppet(machine)
    va = task(lambda task: store_new(task, 900, 5))
    used = [int(layout.kernel().swap_info[area]["inuse_pages"]) for area in (0, 1)]
    assert used[0] == 100 and used[1] > 200
    assert task(partial(wrong, va=va, pages=900, first=5)) == 0


def test_area_given_back_brings_everything_in(boot, tmp_path):
    machine = boot(2, 512)
    area = machine.swapon(tmp_path / "swap", 1000)
    owner = Puppet(machine)
    va = owner(lambda task: store_new(task, 1100, 5))
    with pytest.raises(OSError) as error:
        machine.swapoff(area)
    assert error.value.errno == errno.ENOMEM and slots_in_use() > 0
    owner(lambda task: task.munmap(va, 500 * PAGE))
    child = owner.fork()
    machine.swapoff(area)
    kernel = layout.kernel()
    assert kernel.total_swap_pages == kernel.nr_swap_pages == kernel.swapper_space.nrpages == 0
    assert mm_of(owner).swap_ents == mm_of(child).swap_ents == 0
    for task in (owner, child):
        assert task(partial(wrong, va=va + 500 * PAGE, pages=600, first=505)) == 0
    with pytest.raises(OSError) as error:
        machine.swapoff(area)
    assert error.value.errno == errno.EINVAL
    # Its number and its room are free for another one.
    assert machine.swapon(tmp_path / "other", 4000) == area


def test_area_that_cannot_be_read_is_not_given_back(small, tmp_path):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 700, 1))
    until_kswapd_sleeps(small)
    os.truncate(tmp_path / "swap", 0)
    # There is memory for what is left, but for some of it no byte.
    owner(lambda task: task.munmap(va + 350 * PAGE, 350 * PAGE))
    assert slots_in_use() > 0
    with pytest.raises(OSError) as error:
        small.swapoff(0)
    assert error.value.errno == errno.EIO
    assert layout.kernel().total_swap_pages == 1500


@pytest.mark.parametrize("kind", ["page", "buffer", "fallback"])
def test_file_larger_than_memory_is_read_and_written_without_swap(boot, tmp_path, kind):
    """Pages of files go when frames are short: clean ones are dropped, dirty ones written first."""
    machine = boot(2, 256)
    path = tmp_path / "large"
    path.write_bytes(b"".join(number.to_bytes(8, "little") + bytes(PAGE - 8) for number in range(900)))

    def program(task):
        fd = task.open(str(path), fs=kind)
        va = task.mmap(900 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=fd)
        lost = wrong(task, va, 900, 0)
        fill(task, va, 900, 5000)
        lost += wrong(task, va, 900, 5000)
        task.msync(va, 900 * PAGE)
        return lost
    count = counter(machine)
    assert machine.spawn(program).result(60) == 0
    assert count("pgsteal_direct") > 900
    data = path.read_bytes()
    assert [int.from_bytes(data[at:at + 8], "little") for at in range(0, len(data), PAGE)] == list(range(5000, 5900))


# ---- what is done to swapped memory ------------------------------------------------

def test_fork_shares_what_is_swapped_out_and_writes_stay_private(small):
    def child(task, va, pages):
        lost = wrong(task, va, pages, 1)
        fill(task, va, pages // 2, 1000)
        return lost, wrong(task, va, pages // 2, 1000)

    def program(task):
        va = store_new(task, 400, 1)
        children = [task.fork(child, va, 400) for _ in range(3)]
        return [one.result(60) for one in children], wrong(task, va, 400, 1)
    count = counter(small)
    assert small.spawn(program).result(60) == ([(0, 0)] * 3, 0)
    assert count("pswpin") > 0
    assert_no_entry_is_left(small)


def test_forked_entry_is_one_more_use_of_its_slot(small):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 1, 77))
    push_out(owner, va)
    entry = swap_entry(pte_of(owner, va))
    assert entry is not None and uses_of(entry) == 2       # the entry and the cache
    child = owner.fork()
    assert swap_entry(pte_of(child, va)) == entry and uses_of(entry) == 3
    assert mm_of(child).swap_ents == 1 and mm_of(child).anon_rss == 0
    child(lambda task: task.store64(va, 78))
    assert owner(lambda task: task.load64(va)) == 77 and child(lambda task: task.load64(va)) == 78
    # The last one to come back leaves nothing.
    child.exit()
    owner(lambda task: task.munmap(va, PAGE))
    assert uses_of(entry) == 0


def test_sole_user_writes_where_the_page_is(small):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 1, 5))
    out = push_out(owner, va)
    count = counter(small)
    owner(lambda task: task.store64(va, 6))
    assert page_at(owner, va).address == out.address and count("pgfault_cow") == 0
    # The slot no longer says what is in the page, so it is gone.
    assert not out.flags & flags("PG_swapcache") and slots_in_use() == 0


def test_page_that_another_has_swapped_out_is_copied_on_write(small):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 1, 5))
    child = owner.fork()
    out = push_out(owner, va)
    assert owner(lambda task: task.load64(va)) == 5
    owner(lambda task: task.store64(va, 6))
    assert page_at(owner, va).address != out.address
    assert child(lambda task: task.load64(va)) == 5


def test_a_write_that_waits_for_a_page_which_goes_to_swap_meanwhile_finds_it_there(small):
    """do_wp_page sleeps on the page's lock; when it has it the page's only use may be a swap entry, the
    task's own.  The page must stay in the swap cache: nowhere else is what was stored."""
    writer, mover = Puppet(small), Puppet(small)
    va = writer(lambda task: store_new(task, 1, 77))
    writer.fork().exit()
    page = page_at(writer, va).address

    def lock(task):
        ksym.lru_add_drain_all()
        ksym.lock_page(page)
        return ksym.add_to_swap(page)
    assert mover(lock)
    writer.begin(lambda task: task.store64(va + 8, 78))
    assert until_waits(writer, "WAIT_PAGE_LOCK") == page

    def unmap_and_unlock(task):
        ksym.try_to_unmap(page, 1)
        ksym.unlock_page(page)
    mover(unmap_and_unlock)
    writer.reply()
    assert writer(lambda task: (task.load64(va), task.load64(va + 8))) == (77, 78)
    small.audit().raise_if_broken()


@pytest.mark.parametrize("end", ["munmap", "exit", "kill"])
def test_end_of_swapped_memory_gives_its_slots_back(small, end):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 900, 1))
    assert slots_in_use() > 300
    if end == "munmap":
        owner(lambda task: task.munmap(va, 900 * PAGE))
    elif end == "exit":
        owner.exit()
    else:
        owner.kill()
        until(lambda: worker.slot(owner.cpu).state == C["TASK_UNUSED"], "the reaping", check=lambda: small.check(True))
    assert_no_entry_is_left(small)


def test_locked_memory_that_comes_back_gives_its_slots_back(small):
    """It will not go again.  (do_swap_page of mm/memory.c.)"""
    puppet = Puppet(small)
    va = puppet(lambda task: store_new(task, 8, 1))
    for number in range(8):
        push_out(puppet, va + number * PAGE)
    # Of what may be written mlock makes the pages the task's own, and that frees their slots anyway.
    puppet(lambda task: task.mprotect(va, 8 * PAGE, PROT_READ))
    assert slots_in_use() == 8
    puppet(lambda task: task.mlock(va, 8 * PAGE))
    assert slots_in_use() == 0
    assert puppet(partial(wrong, va=va, pages=8, first=1)) == 0
    small.audit().raise_if_broken()


def test_swapped_memory_moves_with_mremap_and_obeys_mprotect(small):
    def program(task):
        va = store_new(task, 700, 3)
        new = task.mremap(va, 700 * PAGE, 1000 * PAGE, MREMAP_MAYMOVE)
        lost = wrong(task, new, 700, 3)
        task.mprotect(new, 700 * PAGE, PROT_READ)
        refused = 0
        for number in range(0, 700, 50):
            try:
                task.store64(new + number * PAGE, 0)
            except shmkern.SegmentationFault:
                refused += 1
        lost += wrong(task, new, 700, 3)
        task.mprotect(new, 700 * PAGE, PROT_READ | PROT_WRITE)
        fill(task, new, 700, 9)
        return lost + wrong(task, new, 700, 9), refused
    assert small.spawn(program).result(60) == (0, 14)


def test_memory_mapped_over_swapped_memory_is_new(small):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 4, 1))
    push_out(owner, va)
    fixed = MAP_PRIVATE | MAP_ANONYMOUS | C["MAP_FIXED"]
    owner(lambda task: task.mmap(4 * PAGE, PROT_READ | PROT_WRITE, fixed, va))
    assert owner(lambda task: task.load64(va)) == 0
    assert slots_in_use() == 0


def test_group_pays_for_what_is_in_memory_and_not_for_what_is_swapped_out(boot, tmp_path):
    machine = boot(2, 256, memcg=True)
    machine.swapon(tmp_path / "swap", 1000)
    group = machine.cgroup_create("group")
    owner = Puppet(machine, cgroup=group)
    va = owner(lambda task: store_new(task, 900, 5))
    until_kswapd_sleeps(machine)
    machine.audit().raise_if_broken()
    assert mm_of(owner).anon_rss <= group.usage // PAGE <= 900 - 380
    migrator = machine.start_migrator()
    assert owner(partial(wrong, va=va, pages=900, first=5)) == 0
    migrator.stop(20)
    until_kswapd_sleeps(machine)
    machine.audit().raise_if_broken()
    # At its limit it may still use what it pays for.
    group.limit = group.usage
    present = [va + number * PAGE for number in range(900) if is_present(pte_of(owner, va + number * PAGE))]
    assert owner(lambda task: sum(task.load64(address) for address in present)) > 0
    owner(lambda task: task.munmap(va, 900 * PAGE))
    assert group.usage // PAGE <= layout.kernel().swapper_space.nrpages


# ---- read-ahead ------------------------------------------------------------------------

def swap_out(puppet, va, pages):
    """Sends `pages` pages from `va` on to swap, in this order, as reclaim does, so that nothing else has
    them."""
    frames = [page_at(puppet, va + number * PAGE).address for number in range(pages)]
    space = layout.kernel().address + layout.offsetof("Kernel", "swapper_space")

    def program(task):
        ksym.lru_add_drain_all()
        for page in frames:
            ksym.get_page(page)
            ksym.lock_page(page)
            assert ksym.add_to_swap(page) and ksym.try_to_unmap(page, 1) == C["SWAP_SUCCESS"]
            assert ksym.pageout(page, space) == C["PAGE_SUCCESS"]
            ksym.lock_page(page)
            assert ksym.remove_mapping(space, page)
            ksym.unlock_page(page)
            ksym.put_page(page)
    puppet(program)


@pytest.fixture
def swapped(boot, tmp_path):
    """(machine, puppet, va): 64 pages that are in the first slots of a swap area, in order, and nowhere
    else."""
    machine = boot(2, 512)
    machine.swapon(tmp_path / "swap", 200)
    puppet = Puppet(machine)
    va = puppet(lambda task: store_new(task, 64, 7))
    swap_out(puppet, va, 64)
    assert [swap_entry(pte_of(puppet, va + number * PAGE)) for number in range(64)] == [(0, slot) for slot in range(1, 65)]
    assert layout.kernel().swapper_space.nrpages == 0
    return machine, puppet, va


def cached(puppet, va, pages=64):
    """The pages, by number, that are in the swap cache though their PTE is a swap entry: {number: node}."""
    ptes = [pte_of(puppet, va + number * PAGE) for number in range(pages)]

    def program(task):
        found = {}
        for number, pte in enumerate(ptes):
            page = ksym.lookup_swap_cache(pte) if pte and not is_present(pte) else 0
            if page:
                found[number] = layout.struct("Page", page).flags >> C["NODES_PGSHIFT"]
                ksym.put_page(page)
        return found
    return puppet(program)


@pytest.mark.parametrize("cluster, faults", [(0, 64), (1, 33), (3, 9), (10, 1)])
def test_a_scan_of_swapped_memory_reads_a_block_of_slots_a_fault(swapped, cluster, faults):
    """swapin_readahead: blocks of 2^page_cluster slots, of which the first has no slot 0."""
    machine, puppet, va = swapped
    assert machine.page_cluster == 3
    machine.page_cluster = cluster
    count = counter(machine)
    assert puppet(partial(wrong, va=va, pages=64, first=7)) == 0
    assert (count("pgmajfault"), count("pswpin")) == (faults, 64)
    machine.audit().raise_if_broken()
    puppet(lambda task: task.munmap(va, 64 * PAGE))
    assert slots_in_use() == layout.kernel().swapper_space.nrpages == 0


def test_what_is_read_ahead_lies_beside_the_entry_and_is_in_use(swapped):
    """valid_swaphandles: the row within the block, up to the first slot that is free."""
    machine, puppet, va = swapped
    # Slots 18 and 23, that is pages 17 and 22, are free.
    puppet(lambda task: (task.munmap(va + 17 * PAGE, PAGE), task.munmap(va + 22 * PAGE, PAGE)))
    puppet(lambda task: task.load64(va + 19 * PAGE))
    assert set(cached(puppet, va)) == {18, 20, 21}
    # Page 16 is alone between the block's beginning and the gap.
    puppet(lambda task: task.load64(va + 16 * PAGE))
    assert set(cached(puppet, va)) == {15, 18, 20, 21}
    machine.audit().raise_if_broken()


def test_what_is_read_ahead_lies_where_the_area_wants_what_was_asked_for(swapped):
    machine, puppet, va = swapped
    puppet(lambda task: task.mbind(va + 10 * PAGE, PAGE, MPOL_BIND, [1]))
    puppet(lambda task: task.mbind(va + 30 * PAGE, PAGE, MPOL_BIND, [0]))
    puppet(lambda task: (task.load64(va + 10 * PAGE), task.load64(va + 30 * PAGE)))
    assert set(cached(puppet, va).values()) == {0, 1}
    assert {cached(puppet, va)[number] for number in (7, 8, 9, 11, 12, 13, 14)} == {1}
    machine.audit().raise_if_broken()


def test_without_memory_for_the_neighbours_only_the_page_itself_is_read(swapped):
    machine, puppet, va = swapped
    count = counter(machine)
    assert puppet(lambda task: (task.fail_nth(1), task.load64(va + 3 * PAGE), task.fail_nth(0))) == (0, 10, 0)
    assert count("pswpin") == 1 and count("pgmajfault") == 1 and cached(puppet, va) == {}
    machine.audit().raise_if_broken()


def test_a_group_pays_for_what_is_read_ahead_when_it_uses_it(boot, tmp_path):
    machine = boot(2, 512, memcg=True)
    machine.swapon(tmp_path / "swap", 200)
    group = machine.cgroup_create("group")
    puppet = Puppet(machine, cgroup=group)
    va = puppet(lambda task: store_new(task, 64, 7))
    swap_out(puppet, va, 64)
    before = group.usage
    puppet(lambda task: task.load64(va + 20 * PAGE))
    assert len(cached(puppet, va)) == 7 and group.usage == before + PAGE
    machine.audit().raise_if_broken()
    group.limit = before + 4 * PAGE
    assert puppet(partial(wrong, va=va, pages=64, first=7)) == 0
    assert group.usage <= group.limit
    machine.audit().raise_if_broken()


def test_swapoff_leaves_nothing_of_what_was_read_ahead(swapped):
    machine, puppet, va = swapped
    puppet(lambda task: [task.load64(va + number * PAGE) for number in (4, 20, 40)])
    assert len(cached(puppet, va)) == 6 + 7 + 7
    count = counter(machine)
    machine.swapoff(0)
    assert slots_in_use() == layout.kernel().swapper_space.nrpages == 0 and count("pswpin") == 64 - 7 - 8 - 8
    assert puppet(partial(wrong, va=va, pages=64, first=7)) == 0


def test_a_node_goes_offline_with_what_was_read_ahead_to_it(boot, tmp_path):
    """Migration leaves alone what nobody has mapped."""
    machine = boot(2, 512, movable={1})
    machine.swapon(tmp_path / "swap", 200)
    puppet = Puppet(machine)
    va = puppet(lambda task: store_new(task, 64, 7))
    swap_out(puppet, va, 64)
    puppet(lambda task: (task.mbind(va, 64 * PAGE, MPOL_BIND, [1]), task.load64(va + 20 * PAGE)))
    assert set(cached(puppet, va).values()) == {1}
    machine.offline(1)
    # What was asked for has moved, and is found by its entry.
    assert cached(puppet, va) == {20: 0} and machine.zoneinfo()[1]["present"] == 0
    assert puppet(partial(wrong, va=va, pages=64, first=7)) == 0


@pytest.mark.parametrize("cluster", [-1, 11, 1.5, True, "3", None])
def test_page_cluster_is_a_small_whole_number(machine, cluster):
    with pytest.raises(ValueError):
        machine.page_cluster = cluster
    assert machine.page_cluster == 3


# ---- shared anonymous memory ---------------------------------------------------------

def share_new(task, pages, first):
    """Maps shared memory and fills it; its address."""
    va = task.mmap(pages * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS)
    fill(task, va, pages, first)
    return va


def i_swapped():
    """How many pages of shared memory are in swap, of all files."""
    kernel = layout.kernel()
    node, total = int(kernel.inodes["next"]), 0
    head = kernel.address + layout.offsetof("Kernel", "inodes")
    while node != head:
        inode = layout.struct("Inode", node - layout.offsetof("Inode", "i_list"))
        total += inode.i_swapped
        node = int(inode.i_list["next"])
    return total


def test_shared_memory_twice_the_frames_is_everybodys_and_keeps_every_byte(small):
    owner = Puppet(small)
    va = owner(lambda task: share_new(task, 1000, 7))
    until_kswapd_sleeps(small)
    assert i_swapped() > 500
    small.audit().raise_if_broken()
    child = owner.fork()
    assert child(partial(wrong, va=va, pages=1000, first=7)) == 0
    child(lambda task: fill(task, va, 1000, 5000))
    assert owner(partial(wrong, va=va, pages=1000, first=5000)) == 0
    # Half of it goes with its last user only, which may be either.
    owner(lambda task: task.munmap(va, 1000 * PAGE))
    assert child(partial(wrong, va=va, pages=1000, first=5000)) == 0
    until_kswapd_sleeps(small)
    small.audit().raise_if_broken()
    child.exit()
    until(lambda: i_swapped() == 0, "the end of the file", check=lambda: small.check(at_once=True))
    assert_no_entry_is_left(small)


def test_area_given_back_brings_shared_memory_in(boot, tmp_path):
    machine = boot(2, 512)
    area = machine.swapon(tmp_path / "swap", 1000)
    owner = Puppet(machine)
    va = owner(lambda task: share_new(task, 700, 5))
    other = owner(lambda task: share_new(task, 400, 90))
    machine.audit().raise_if_broken()
    with pytest.raises(OSError) as error:
        machine.swapoff(area)
    assert error.value.errno == errno.ENOMEM and i_swapped() > 0
    owner(lambda task: task.munmap(other, 400 * PAGE))
    machine.swapoff(area)
    kernel = layout.kernel()
    assert i_swapped() == kernel.total_swap_pages == kernel.swapper_space.nrpages == 0
    machine.audit().raise_if_broken()
    assert owner(partial(wrong, va=va, pages=700, first=5)) == 0


def test_shared_memory_in_swap_that_cannot_be_read_is_a_bus_error(small, tmp_path):
    owner = Puppet(small)
    va = owner(lambda task: share_new(task, 900, 1))
    until_kswapd_sleeps(small)
    os.truncate(tmp_path / "swap", 0)

    def program(task):
        failed = 0
        for number in range(20):
            try:
                task.load64(va + number * PAGE)
            except shmkern.BusError as error:
                assert error.address == va + number * PAGE
                failed += 1
        return failed
    assert owner(program) > 0
    small.audit().raise_if_broken()


def test_group_pays_for_shared_memory_as_cache_and_is_held_to_its_limit(boot, tmp_path):
    machine = boot(2, 512, memcg=True)
    machine.swapon(tmp_path / "swap", 500)
    group = machine.cgroup_create("group", limit=40 * PAGE)
    owner = Puppet(machine, cgroup=group)
    va = owner(lambda task: share_new(task, 200, 3))
    migrator = machine.start_migrator()
    assert owner(partial(wrong, va=va, pages=200, first=3)) == 0
    migrator.stop(20)
    machine.audit().raise_if_broken()
    assert group.max_usage <= 40 * PAGE and i_swapped() >= 160
    assert group.stat["rss"] == 0 and group.stat["cache"] == group.usage > 0
    owner(lambda task: task.munmap(va, 200 * PAGE))
    assert group.usage // PAGE <= layout.kernel().swapper_space.nrpages and i_swapped() == 0


def test_tasks_that_share_more_than_the_frames_see_each_others_stores_under_a_migrator(small):
    owner = Puppet(small)
    va = owner(lambda task: task.mmap(600 * PAGE, flags=MAP_SHARED | MAP_ANONYMOUS))
    child = owner.fork()
    migrator = small.start_migrator()

    def program(task, who):
        for turn in range(3):
            for number in range(who, 600, 2):
                task.fetch_add64(va + number * PAGE, 1)
                task.fetch_add64(va + (number ^ 1) * PAGE + 8, 1)

    for who, puppet in enumerate((owner, child)):
        puppet.begin(partial(program, who=who))
    for puppet in (owner, child):
        puppet.reply(60)
    assert owner(lambda task: {(task.load64(va + n * PAGE), task.load64(va + n * PAGE + 8)) for n in range(600)}) == {(3, 3)}
    migrator.stop(20)
    until_kswapd_sleeps(small)
    small.audit().raise_if_broken()


def test_audit_finds_a_lost_count_of_shared_memory_in_swap(small):
    owner = Puppet(small)
    owner(lambda task: share_new(task, 700, 1))
    until_kswapd_sleeps(small)
    node = layout.struct("Inode", int(layout.kernel().inodes["next"]) - layout.offsetof("Inode", "i_list"))
    node.i_swapped += 1
    assert "page_tree" in kinds(small.audit())
    node.i_swapped -= 1
    small.audit().raise_if_broken()


# ---- swap and migration --------------------------------------------------------------

def migrate(task, address, node):
    """Moves one page, given by its struct page, to a node; as migrate_frames."""
    pfn = (address - layout.kernel().mem_map) // layout.sizeof("Page")
    task.migrate_prep()
    return task.migrate_frames(pfn, pfn + 1, node)[1]


def other_node(struct):
    """The node that a page is not on, of two."""
    pfn = (struct.address - layout.kernel().mem_map) // layout.sizeof("Page")
    return 1 - pfn // layout.kernel().frames_per_node


def test_swapped_out_page_of_the_cache_moves_with_its_entry(small):
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 1, 41))
    old = push_out(owner, va)
    entry = old.private
    assert pte_of(owner, va) == entry
    node = other_node(old)
    assert owner(partial(migrate, address=old.address, node=node)) == 0
    new = owner(lambda task: ksym.lookup_swap_cache(entry))
    assert new not in (0, old.address)
    moved = layout.struct("Page", new)
    assert moved.private == entry and moved.flags & flags("PG_swapcache") and moved.flags >> C["NODES_PGSHIFT"] == node
    assert not old.flags & flags("PG_swapcache") and old._count == 0
    owner(lambda task: ksym.put_page(new))
    assert owner(lambda task: task.load64(va)) == 41
    assert page_at(owner, va).address == new


def test_mapped_page_of_the_cache_moves_by_its_swap_entry(small):
    """As in 2.6.30 its PTEs become swap entries, not migration entries: the cache leads on."""
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 1, 42))
    old = push_out(owner, va)
    entry = old.private
    assert owner(lambda task: task.load64(va)) == 42 and is_present(pte_of(owner, va))
    assert owner(partial(migrate, address=old.address, node=other_node(old))) == 0
    assert pte_of(owner, va) == entry
    assert owner(lambda task: task.load64(va)) == 42
    assert page_at(owner, va).address != old.address and page_at(owner, va).private == entry


@pytest.mark.parametrize("slots", (1, 2))
def test_who_waited_for_a_page_looks_whether_it_still_is_its_entrys(boot, tmp_path, slots):
    """Meanwhile the page may have left the cache, or have come back by another entry, and the PTE hold the same
    entry again for what is in that slot now (Linux commit 4969c1192d15)."""
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", slots)
    owner, holder = Puppet(machine), Puppet(machine)
    va = owner(lambda task: store_new(task, 1, 1))
    child, late = owner.fork(), owner.clone()
    old = push_out(owner, va).address
    entry = pte_of(owner, va)
    assert pte_of(child, va) == entry
    holder(lambda task: ksym.lock_page(old))
    late.begin(lambda task: task.load64(va))
    assert until_asleep(late, "WAIT_PAGE_LOCK") == old
    os.kill(late.os_pid, signal.SIGSTOP)
    until(lambda: process_stat(late.os_pid)[0] == "T", "a process that stands still")
    holder(lambda task: ksym.unlock_page(old))
    # A copy, for the child has the entry as well; then the page is the child's alone, and its slot is free.
    owner(lambda task: task.store64(va, 2))
    child(lambda task: task.store64(va, 3))
    if slots == 2:
        assert push_out(child, va).address == old and pte_of(child, va) != entry
    assert push_out(owner, va).address != old and pte_of(owner, va) == entry
    os.kill(late.os_pid, signal.SIGCONT)
    assert late.reply() == owner(lambda task: task.load64(va)) == 2
    assert child(lambda task: task.load64(va)) == 3


def test_page_just_read_into_the_cache_has_no_rmap_and_is_left_alone(small):
    """Seed lines 667-690: a page of the swap cache with mapping NULL."""
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 700, 1))
    swapped = [va + number * PAGE for number in range(700)
               if swap_entry(pte_of(owner, va + number * PAGE)) is not None]
    target, entry = None, None
    for address in swapped:
        pte = pte_of(owner, address)
        found = owner(lambda task, pte=pte: ksym.lookup_swap_cache(pte))
        if not found:
            target, entry = address, pte
            break
        owner(lambda task, found=found: ksym.put_page(found))
    read = owner(lambda task: ksym.read_swap_cache_async(entry, GFP, 0, 0))
    struct = layout.struct("Page", read)
    assert struct.mapping == 0 and struct.flags & flags("PG_swapcache") and struct.private == entry
    owner(lambda task: ksym.put_page(read))
    count = counter(small)
    assert owner(partial(migrate, address=read, node=other_node(struct))) == 1
    assert count("pgmigrate_fail") == 1 and count("pgmigrate_success") == 0
    assert struct.private == entry and struct.flags & flags("PG_swapcache", "PG_lru")
    # It is mapped by its owner's fault, not read again.
    count = counter(small)
    assert owner(lambda task: task.load64(target)) == 1 + (target - va) // PAGE
    assert count("pswpin") == 0 and page_at(owner, target).address == read


def test_memory_twice_the_frames_survives_a_migrator(boot, tmp_path, shared):
    machine = boot(2, 512)
    machine.swapon(tmp_path / "swap", 3000)
    enough = shared("u64", 1)

    def program(task, first):
        va = store_new(task, 500, first)
        lost = turn = 0
        while not enough[0]:
            lost += wrong(task, va, 500, first + turn)
            turn += 1
            fill(task, va, 500, first + turn)
        return lost
    count = counter(machine)
    migrator = machine.start_migrator()
    children = [machine.spawn(program, number << 32) for number in range(4)]
    until(lambda: count("pgmigrate_success") > 500 and count("pswpin") > 2000, "pages moved and swapped",
          check=machine.check)
    enough[0] = 1
    assert [child.result(90) for child in children] == [0] * 4
    migrator.stop(30)


# ---- a host that fails ------------------------------------------------------------------

def test_unreadable_slot_is_a_bus_error_of_whoever_needs_it(small, tmp_path):
    victim, other = Puppet(small), Puppet(small)
    va = victim(lambda task: store_new(task, 900, 1))
    kept = other(lambda task: store_new(task, 10, 900))
    until_kswapd_sleeps(small)
    lost = [va + number * PAGE for number in range(900) if swap_entry(pte_of(victim, va + number * PAGE)) is not None]
    os.truncate(tmp_path / "swap", 0)

    def program(task, addresses):
        failed = 0
        for address in addresses:
            try:
                task.load64(address)
            except shmkern.BusError as error:
                assert error.address == address
                failed += 1
        return failed
    assert victim(partial(program, addresses=lost[:20])) > 0
    # It lives, and so do the others; the machine is whole.
    assert victim(lambda task: task.load64(task.mmap(PAGE))) == 0
    small.audit().raise_if_broken()
    assert other(partial(wrong, va=kept, pages=10, first=900)) == 0


def test_what_cannot_be_written_stays_in_memory(boot, tmp_path):
    """/dev/full takes no byte: ENOSPC, as a full disk."""
    # Init inherits it, and it takes the area's file's place.
    full = os.open("/dev/full", os.O_RDWR)
    machine = boot(2, 256)
    area = machine.swapon(tmp_path / "swap", 600)
    layout.kernel().swap_info[area]["swap_file"]["i_host_fd"] = full
    os.close(full)

    def program(task):
        va = task.mmap(800 * PAGE)
        stored = 0
        try:
            for number in range(800):
                task.store64(va + number * PAGE, number + 1)
                stored += 1
        except OSError as error:
            assert error.errno == errno.ENOMEM
        return stored, wrong_where_possible(task, va, stored)

    def wrong_where_possible(task, va, stored):
        # Some are in the swap cache, unmapped, and need no frame to come back.
        return sum(task.load64(va + number * PAGE) != number + 1 for number in range(stored))
    stored, lost = machine.spawn(program).result(60)
    assert 400 < stored < 520 and lost == 0
    assert machine.vmstat()["pswpout"] > 0


def test_file_needs_no_name_once_it_is_in_use(small, tmp_path):
    os.unlink(tmp_path / "swap")

    def program(task):
        va = store_new(task, 900, 1)
        return wrong(task, va, 900, 1)
    assert small.spawn(program).result(60) == 0


def test_a_file_is_one_area_only_by_whatever_name(boot, tmp_path):
    """Two areas in one file would write over each other's pages."""
    machine = boot(2, 256)
    os.symlink(tmp_path / "swap", tmp_path / "symlink")
    area = machine.swapon(tmp_path / "swap", 300)
    os.link(tmp_path / "swap", tmp_path / "link")
    for name in ("swap", "symlink", "link"):
        with pytest.raises(OSError) as error:
            machine.swapon(tmp_path / name, 300)
        assert error.value.errno == errno.EBUSY
    task = Puppet(machine)
    va = task(lambda task: store_new(task, 600, 3))
    assert task(partial(wrong, va=va, pages=600, first=3)) == 0
    task(lambda task: task.munmap(va, 600 * PAGE))
    machine.swapoff(area)
    assert machine.swapon(tmp_path / "link", 300) == area


def test_the_file_of_an_area_cannot_be_opened_for_writing(small, tmp_path):
    """Nor does a file become an area that somebody has open for writing."""
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 700, 3))
    reader = owner(lambda task: task.open(tmp_path / "swap", os.O_RDONLY))
    for flags in (os.O_RDWR, os.O_RDWR | os.O_TRUNC, os.O_WRONLY):
        with pytest.raises(OSError) as error:
            owner(lambda task: task.open(tmp_path / "swap", flags))
        assert error.value.errno == errno.ETXTBSY
    owner(lambda task: task.close(reader))
    assert owner(partial(wrong, va=va, pages=700, first=3)) == 0
    writer = owner(lambda task: task.open(tmp_path / "other", os.O_RDWR | os.O_CREAT))
    before = os.stat(tmp_path / "other").st_ctime_ns
    with pytest.raises(OSError) as error:
        small.swapon(tmp_path / "other", 100)
    # Not even made longer for a moment, in which the writer may make it longer as well.
    assert error.value.errno == errno.EBUSY and os.stat(tmp_path / "other").st_ctime_ns == before
    owner(lambda task: task.close(writer))
    small.swapon(tmp_path / "other", 100)


def test_an_entry_of_an_area_that_is_gone_takes_nothing_of_another(boot, tmp_path):
    """A fault has read an entry from a PTE and lost its CPU; then the area is given back, and another is
    made, whose map is where the old one's was."""
    machine = boot(1, 512)
    first, second = machine.swapon(tmp_path / "a", 4), machine.swapon(tmp_path / "b", 200)
    stale = second << C["SWP_TYPE_SHIFT"] | 1 << C["SWP_OFFSET_SHIFT"]
    machine.swapoff(second)
    machine.swapoff(first)
    area = machine.swapon(tmp_path / "c", 600)
    task = Puppet(machine)
    va = task(lambda task: store_new(task, 900, 3))
    counts = layout.view("u16", int(layout.kernel().swap_info[area]["swap_map"]), 601)
    before = counts.copy()
    until_kswapd_sleeps(machine)
    assert before.sum() > 100 and task(lambda task: ksym.swap_duplicate(stale)) == 0
    assert task(partial(wrong, va=va, pages=900, first=3)) == 0


def test_what_is_no_place_for_pages_is_refused(boot, tmp_path):
    machine = boot(2, 256)
    os.mkfifo(tmp_path / "fifo")
    for path in ("/dev/null", "/dev/full", tmp_path / "fifo"):      # At none of them does it wait.
        with pytest.raises(OSError) as error:
            machine.swapon(path, 20)
        assert error.value.errno == errno.EINVAL
    assert layout.kernel().total_swap_pages == 0


@pytest.mark.parametrize("path, pages, error", [
    ("no/such/place", 100, FileNotFoundError), (".", 100, IsADirectoryError), ("large", 2100, OSError),
    ("none", 0, ValueError), ("half", 1.5, ValueError)])
def test_bad_area_is_refused_and_changes_nothing(boot, tmp_path, path, pages, error):
    machine = boot(2, 256)
    with pytest.raises(error):
        machine.swapon(tmp_path / path, pages)
    assert layout.kernel().total_swap_pages == 0
    assert os.listdir(tmp_path) == []
    assert machine.swapon(tmp_path / "swap", 2000) == 0


# ---- slots --------------------------------------------------------------------------------

def test_slots_come_in_a_row_and_all_of_them_but_slot_0(boot, tmp_path):
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 600)

    def program(task):
        entries = [ksym.get_swap_page() for _ in range(600)]
        end = ksym.get_swap_page()
        slots = [ksym.swp_offset(entry) for entry in entries]
        for entry in entries[100:110]:
            ksym.swap_free(entry)
        again = sorted(ksym.swp_offset(ksym.get_swap_page()) for _ in range(10))
        for slot in slots:
            ksym.swap_free(ksym.swp_entry(0, slot))
        return slots, end, again
    slots, end, again = machine.spawn(program).result(20)
    assert slots == list(range(1, 601)) and end == 0
    assert again == slots[100:110]
    assert layout.kernel().nr_swap_pages == 600


def test_search_skips_a_fragmented_part_for_a_whole_cluster(boot, tmp_path):
    machine = boot(2, 512)
    machine.swapon(tmp_path / "swap", 1024)

    def program(task):
        entries = [ksym.get_swap_page() for _ in range(512)]
        for entry in entries[::2]:
            ksym.swap_free(entry)
        after = ksym.swp_offset(ksym.get_swap_page())
        ksym.swap_free(ksym.swp_entry(0, after))
        for entry in entries[1::2]:
            ksym.swap_free(entry)
        return after
    assert machine.spawn(program).result(20) == 513


def test_free_slot_cannot_be_duplicated(small):
    def program(task):
        entry = ksym.get_swap_page()
        taken = ksym.swap_duplicate(entry)
        ksym.swap_free(entry)
        ksym.swap_free(entry)
        return taken, ksym.swap_duplicate(entry)
    assert small.spawn(program).result(20) == (1, 0)


# ---- the scenario ---------------------------------------------------------------------------

def stress(*more, tick=None):
    """Runs the scenario `swap`, for a second if nothing else is said; its result."""
    parser = common.Parser()
    common.add_options(parser, "swap")
    options = parser.parse_args(["--seconds", "1", "--workers", "4", "--seed", "7", *more])
    return common.run("swap", options, io.StringIO(), tick)


def test_scenario_swaps_and_migrates_and_holds():
    def enough(supervision):
        counters = vmstat.vmstat()
        if supervision.began is not None and supervision.running and counters["pgmigrate_success"] > 100 and \
                min(counters["pswpin"], counters["pswpout"]) > 1000:
            raise harness.Stop
    result = stress("--seconds", "60", tick=enough)
    assert result["failures"] == [] and common.status_of(result) == common.HELD
    assert result["pages_swapped_in"] > 1000 and result["pages_swapped_out"] > 1000
    assert result["pages_migrated"] > 100
    assert "pages swapped" in "\n".join(common.summary(result))


def test_scenario_finds_what_the_file_has_lost():
    done = []

    def forget(supervision):
        """Overwrites the file with zeros, behind the machine's back."""
        if supervision.began is None or done or vmstat.vmstat()["pswpout"] < 500:
            return
        info = layout.kernel().swap_info[0]
        path = f"/proc/{supervision.machine.init.os_pid}/fd/{info['swap_file']['i_host_fd']}"
        with open(path, "r+b") as file:
            file.write(bytes(int(info["max"]) * PAGE))
        done.append(True)
    result = stress("--seconds", "60", tick=forget)
    assert done and result["lost_writes"] > 0 and common.status_of(result) == common.BROKEN


def test_scenario_names_the_frames_that_will_do():
    with pytest.raises(common.UsageError, match="100 frames are too few for 4 workers on 2 nodes; 1072 will do"):
        stress("--frames", "100")
    assert common.status_of(stress("--frames", "1072")) == common.HELD


# ---- audit ----------------------------------------------------------------------------------

@pytest.fixture
def pushed(small):
    """(machine, owner, address, page) of a page in the swap cache that a swap entry leads to."""
    owner = Puppet(small)
    va = owner(lambda task: store_new(task, 1, 41))
    return small, owner, va, push_out(owner, va)


def found_by(machine, kind):
    """The audit's findings of a kind; there are some."""
    findings = [finding for finding in machine.audit().findings if finding.kind == kind]
    assert findings, kinds(machine.audit())
    return findings


def test_audit_finds_a_slot_with_a_use_too_many(pushed):
    machine, owner, va, _out = pushed
    area, slot = swap_entry(pte_of(owner, va))
    info = layout.kernel().swap_info[area]
    count = layout.view("u16", int(info["swap_map"]), int(info["max"]))
    count[slot] += 1
    finding = found_by(machine, "swap")[0]
    assert f"type {area}, offset {slot}" in finding.message
    assert (finding.expected, finding.found, finding.task, finding.address) == (2, 3, owner.pid, va)
    count[slot] -= 1


def test_audit_finds_a_page_that_does_not_know_its_entry(pushed):
    machine, _owner, _va, out = pushed
    entry, out.private = out.private, out.private + (1 << C["SWP_OFFSET_SHIFT"])
    pfn = (out.address - layout.kernel().mem_map) // layout.sizeof("Page")
    assert found_by(machine, "swap")[0].page == pfn
    out.private = entry


def test_audit_finds_a_page_lost_from_the_cache(pushed):
    machine, _owner, _va, out = pushed
    out.flags &= ~flags("PG_swapcache")
    assert any("PG_swapcache" in finding.message for finding in found_by(machine, "swap"))
    out.flags |= flags("PG_swapcache")


@pytest.mark.parametrize("field", ["nr_swap_pages", "total_swap_pages"])
def test_audit_finds_a_wrong_count_of_slots(pushed, field):
    kernel = layout.kernel()
    setattr(kernel, field, getattr(kernel, field) + 1)
    assert any(field in finding.message for finding in found_by(pushed[0], "counter"))
    setattr(kernel, field, getattr(kernel, field) - 1)


def test_audit_finds_an_entry_that_no_area_has(pushed):
    machine, owner, va, _out = pushed
    pte = pte_of(owner, va)
    set_pte(owner, va, pte | 3 << C["SWP_TYPE_SHIFT"])
    finding = found_by(machine, "pte")[0]
    assert (finding.task, finding.address) == (owner.pid, va)
    set_pte(owner, va, pte)
