# SPDX-License-Identifier: GPL-2.0-only
"""Locked memory (mm/mlock.c): PG_mlocked and the unevictable list, over faults, forks, copies and
migration (mlock_migrate_page and unevictable_migrate_page, seed lines 356 and 374); limits and
errnos.  Each machine is audited at the end: PG_mlocked is on exactly what locked areas map."""
import errno
import functools
import os

import pytest

from helpers import C, PAGE, Mapper, Puppet, counter, flags, mm_of, node_at, page_at, pte_of, set_pte, until_waits, vmas
from shmkern import (MAP_LOCKED, MAP_PRIVATE, MAP_SHARED, MCL_CURRENT, MCL_FUTURE, MPOL_MF_MOVE_ALL, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE,
                     PROT_READ, PROT_WRITE, layout)
from shmkern.kallsyms import ksym
from shmkern.worker import slot

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE
PAGES = 6
A = 0x10_0000_0000


def errno_of(call):
    """The name of the errno that a call fails with; None when it does not."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]


def locked(puppet, va, count=PAGES):
    """For each page whether it is PG_mlocked."""
    return [bool(page_at(puppet, va + i * PAGE).flags & flags("PG_mlocked")) for i in range(count)]


def area(puppet, count=PAGES):
    """An area of pages that are there, page i full of i."""
    va = puppet(lambda task: task.mmap(count * PAGE))
    puppet(lambda task: task.store(va, b"".join(bytes([i]) * PAGE for i in range(count))))
    return va


def test_locked_pages_are_there_and_on_the_unevictable_list(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGES * PAGE))
    count = counter(machine)
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    assert locked(puppet, va) == [True] * PAGES
    assert count("nr_mlock") == PAGES and count("nr_unevictable") == PAGES and mm_of(puppet).locked_vm == PAGES
    # Not one fault more.
    assert count("pgfault_anon") == PAGES
    puppet(lambda task: [task.store64(va + i * PAGE, i) for i in range(PAGES)])
    assert count("pgfault_anon") == PAGES and count("pgfault_cow") == 0
    machine.audit().raise_if_broken()
    puppet(lambda task: task.munlock(va, PAGES * PAGE))
    assert locked(puppet, va) == [False] * PAGES
    machine.init.migrate_prep()
    assert count("nr_mlock") == count("nr_unevictable") == 0 and mm_of(puppet).locked_vm == 0


def test_pages_that_were_there_already_move_to_the_unevictable_list(machine):
    puppet = Puppet(machine)
    va = area(puppet)
    count = counter(machine)
    puppet(lambda task: task.mlock(va + PAGE + 5, 2 * PAGE))
    # Rounded to whole pages.
    assert locked(puppet, va) == [False, True, True, True, False, False]
    assert count("nr_unevictable") == 3 and [end - start for start, end, _ in vmas(puppet)] == [PAGE, 3 * PAGE, 2 * PAGE]
    puppet(lambda task: task.munlock(va + 2 * PAGE, PAGE))
    assert locked(puppet, va) == [False, True, False, True, False, False]
    machine.audit().raise_if_broken()
    puppet(lambda task: task.munlock(va, PAGES * PAGE))
    assert len(vmas(puppet)) == 1


def test_what_a_locked_area_faults_in_later_is_locked_from_the_start(machine):
    puppet = Puppet(machine)
    puppet(lambda task: task.mlockall(MCL_FUTURE))
    va = puppet(lambda task: task.mmap(PAGES * PAGE))
    assert locked(puppet, va) == [True] * PAGES
    grown = puppet(lambda task: task.mremap(va, PAGES * PAGE, 2 * PAGES * PAGE, MREMAP_MAYMOVE))
    assert locked(puppet, grown, 2 * PAGES) == [True] * 2 * PAGES and mm_of(puppet).locked_vm == 2 * PAGES
    machine.audit().raise_if_broken()
    puppet(lambda task: task.munlockall())
    other = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: task.store(other, b"x"))
    assert locked(puppet, other, 1) == [False] and locked(puppet, grown, 2 * PAGES) == [False] * 2 * PAGES
    assert mm_of(puppet).locked_vm == 0


def test_locked_memory_beyond_the_limit_does_not_move(machine):
    """2.6.30 asks about the limit also where nothing grows."""
    def program(task):
        va = task.mmap(2 * PAGE)
        there = task.mmap(2 * PAGE)
        task.mlock(va, 2 * PAGE)
        move = functools.partial(task.mremap, va, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, there)
        slot(task.cpu).rlimit_memlock = PAGE
        refused = errno_of(move)
        slot(task.cpu).rlimit_memlock = 2 * PAGE
        return refused, move() == there, task.mremap(there, 2 * PAGE, 2 * PAGE) == there
    assert machine.spawn(program, uid=1000).result(timeout=10) == ("EAGAIN", True, True)
    machine.audit().raise_if_broken()


def test_mlockall_locks_what_there_is_and_map_locked_what_comes(machine):
    puppet = Puppet(machine)
    va = area(puppet)
    puppet(lambda task: task.mlockall(MCL_CURRENT))
    assert locked(puppet, va) == [True] * PAGES
    plain = area(puppet, 1)
    assert locked(puppet, plain, 1) == [False]
    kept = puppet(lambda task: task.mmap(PAGE, RW, 0x22 | MAP_LOCKED))
    assert locked(puppet, kept, 1) == [True]


def test_a_fork_inherits_no_locks_and_takes_none_away(machine):
    puppet = Puppet(machine)
    va = area(puppet)
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    child = puppet.fork()
    assert mm_of(child).locked_vm == 0
    assert locked(puppet, va) == [True] * PAGES
    # The child's copies are not locked, the parent's are.
    child(lambda task: task.store64(va, 7))
    assert locked(child, va) == [False] + [True] * (PAGES - 1)
    puppet(lambda task: task.store64(va + PAGE, 8))
    assert locked(puppet, va) == [True] * PAGES and locked(child, va)[:3] == [False, False, True]
    machine.audit().raise_if_broken()
    child.exit()
    assert locked(puppet, va) == [True] * PAGES
    machine.audit().raise_if_broken()


def test_a_page_that_two_have_locked_stays_locked_until_both_let_go(machine):
    """try_to_munlock."""
    puppet = Puppet(machine)
    va = area(puppet)
    child = puppet.fork()
    # Read-only, so that locking it copies nothing.
    for one in (puppet, child):
        one(lambda task: task.mprotect(va, PAGES * PAGE, PROT_READ))
        one(lambda task: task.mlock(va, PAGES * PAGE))
    assert page_at(puppet, va).address == page_at(child, va).address
    puppet(lambda task: task.munlock(va, PAGES * PAGE))
    assert locked(puppet, va) == [True] * PAGES
    machine.audit().raise_if_broken()
    child(lambda task: task.munmap(va, 2 * PAGE))
    assert locked(puppet, va) == [False, False] + [True] * (PAGES - 2)
    machine.audit().raise_if_broken()
    child.exit()
    assert locked(puppet, va) == [False] * PAGES


def test_a_write_to_a_shared_locked_page_leaves_it_to_who_else_has_it_locked(machine):
    """do_wp_page: the copy is this area's, and the page goes back unless others keep it."""
    puppet = Puppet(machine)
    va = area(puppet)
    child = puppet.fork()
    for one in (puppet, child):
        one(lambda task: task.mprotect(va, PAGES * PAGE, PROT_READ))
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    child(lambda task: task.mlock(va, PAGE))
    puppet(lambda task: (task.mprotect(va, PAGES * PAGE, RW), task.store64(va, 1), task.store64(va + PAGE, 1)))
    assert locked(puppet, va)[:2] == [True, True]
    assert locked(child, va)[:3] == [True, False, True]
    machine.audit().raise_if_broken()


def test_a_locked_page_is_locked_where_it_arrives(machine):
    """Lines 356 and 374."""
    puppet = Puppet(machine)
    va = area(puppet)
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    node = node_at(puppet, va)
    before = machine.zoneinfo()
    places = [va + i * PAGE for i in range(PAGES)]
    assert machine.init.move_pages(puppet.pid, places, [1 - node] * PAGES) == [1 - node] * PAGES
    assert locked(puppet, va) == [True] * PAGES
    assert all(page_at(puppet, place).flags & flags("PG_unevictable") for place in places)
    machine.audit().raise_if_broken()
    after = machine.vmstat()
    assert after["nr_mlock"] == after["nr_unevictable"] == PAGES and before[node]["nr_unevictable"] == PAGES
    assert machine.zoneinfo()[1 - node]["nr_unevictable"] == PAGES
    puppet(lambda task: task.munlock(va, PAGES * PAGE))
    assert machine.vmstat()["nr_mlock"] == 0
    assert puppet(lambda task: task.load(va, PAGES * PAGE)) == b"".join(bytes([i]) * PAGE for i in range(PAGES))


def test_unlocking_a_page_in_the_air_waits_until_it_is_back(machine):
    """The bit goes with the page.  Whoever waits has a reference, so this time it does not land."""
    puppet, mover = Puppet(machine), Puppet(machine)
    va = area(puppet, 1)
    puppet(lambda task: task.mlock(va, PAGE))
    old, node = page_at(puppet, va).address, node_at(puppet, va)
    gfp = C["GFP_HIGHUSER_MOVABLE"] | C["__GFP_THISNODE"]
    mover(lambda task: (ksym.isolate_lru_page(old), ksym.lock_page(old), ksym.rcu_read_lock(), ksym.try_to_unmap(old, 1)))
    puppet.begin(lambda task: task.munlock(va, PAGE))
    assert until_waits(puppet, "WAIT_PAGE_LOCK") == old

    def land(task):
        new = ksym.alloc_pages_node(1 - node, gfp, 0)
        rc = ksym.move_to_new_page(new, old)
        ksym.remove_migration_ptes(old, old)
        ksym.rcu_read_unlock()
        ksym.unlock_page(old)
        ksym.putback_lru_page(old)
        ksym.putback_lru_page(new)
        return rc

    assert mover(land) == -errno.EAGAIN
    puppet.reply()
    assert locked(puppet, va, 1) == [False] and node_at(puppet, va) == node
    machine.init.migrate_prep()
    assert machine.vmstat()["nr_mlock"] == machine.vmstat()["nr_unevictable"] == 0


def test_locking_without_access_waits_for_a_page_in_the_air(machine):
    """It locks what is there, and that is on its way back."""
    puppet, mover = Puppet(machine), Puppet(machine)
    va = area(puppet, 1)
    page = page_at(puppet, va).address
    puppet(lambda task: task.mprotect(va, PAGE, PROT_NONE))
    mover(lambda task: (ksym.migrate_prep(), ksym.isolate_lru_page(page)))
    mover(lambda task: (ksym.lock_page(page), ksym.rcu_read_lock(), ksym.try_to_unmap(page, 1)))
    puppet.begin(lambda task: errno_of(lambda: task.mlock(va, PAGE)))
    assert until_waits(puppet, "WAIT_PAGE_LOCK") == page
    mover(lambda task: (ksym.remove_migration_ptes(page, page), ksym.rcu_read_unlock(), ksym.unlock_page(page),
                        ksym.putback_lru_page(page)))
    assert puppet.reply() == "ENOMEM"
    assert locked(puppet, va, 1) == [True]
    machine.audit().raise_if_broken()


def test_a_page_that_is_unlocked_while_isolated_comes_back_to_an_evictable_list(machine):
    """putback_lru_page looks again: munlock found the page on no list."""
    puppet, other = Puppet(machine), Puppet(machine)
    va = area(puppet, 1)
    puppet(lambda task: task.mlock(va, PAGE))
    page = page_at(puppet, va).address
    other(lambda task: ksym.isolate_lru_page(page))
    puppet(lambda task: task.munlock(va, PAGE))
    other(lambda task: ksym.putback_lru_page(page))
    machine.init.migrate_prep()
    assert page_at(puppet, va).flags & flags("PG_unevictable") == 0 and page_at(puppet, va).flags & flags("PG_lru")


def test_unmapping_exiting_and_mapping_over_unlock(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGES * PAGE, RW, 0x32, A))
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    puppet(lambda task: task.munmap(va, PAGE))
    puppet(lambda task: task.mmap(2 * PAGE, RW, 0x32, va + PAGE))
    assert mm_of(puppet).locked_vm == PAGES - 3 and machine.vmstat()["nr_mlock"] == PAGES - 3
    machine.audit().raise_if_broken()
    puppet.exit()
    assert machine.vmstat()["nr_mlock"] == machine.vmstat()["nr_unevictable"] == 0


def test_limits_and_errnos(machine):
    def failures(task):
        va = task.mmap(40 * PAGE, RW, 0x32, A)
        task.munmap(va + 20 * PAGE, PAGE)
        none = task.mmap(PAGE, PROT_NONE)
        return [errno_of(call) for call in (
            lambda: task.mlock(va, 17 * PAGE),
            lambda: task.mlock(va, 16 * PAGE),
            lambda: task.mlock(va + 16 * PAGE, PAGE),
            lambda: task.mmap(PAGE, RW, 0x22 | MAP_LOCKED),
            lambda: task.mremap(va, 16 * PAGE, 18 * PAGE, MREMAP_MAYMOVE),
            lambda: task.munlock(va, 16 * PAGE),
            lambda: task.mlock(va + 18 * PAGE, 5 * PAGE),
            lambda: task.munlock(va + 18 * PAGE, 5 * PAGE),
            lambda: task.mlock(va, (1 << 64) - PAGE),
            lambda: task.munlock(va, (1 << 64) - PAGE),
            lambda: task.mlock(va, 0),
            lambda: task.mlock(none, PAGE),
            lambda: task.munlockall(),
            lambda: task.mlockall(0),
            lambda: task.mlockall(4),
            lambda: task.mlockall(MCL_CURRENT),
            lambda: task.mlockall(MCL_FUTURE))]

    user = Puppet(machine, uid=1000)
    assert user(failures) == ["ENOMEM", None, "ENOMEM", "EAGAIN", "EAGAIN", None, "ENOMEM", "ENOMEM", "EINVAL", "EINVAL",
                              None, "ENOMEM", None, "EINVAL", "EINVAL", "ENOMEM", None]
    machine.audit().raise_if_broken()
    nothing = Puppet(machine, uid=1000, rlimit_memlock=0)
    va = area(nothing, 1)
    assert nothing(lambda task: [errno_of(call) for call in (
        lambda: task.mlock(va, PAGE), lambda: task.mlockall(MCL_CURRENT),
        lambda: task.mmap(PAGE, RW, 0x22 | MAP_LOCKED))]) == ["EPERM"] * 3
    able = Puppet(machine, uid=1000, caps={"CAP_IPC_LOCK"})
    assert able(lambda task: errno_of(lambda: task.mlock(task.mmap(40 * PAGE), 40 * PAGE))) is None


def test_a_hole_ends_mlock_and_what_lies_before_is_locked(machine):
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(PAGES * PAGE, RW, 0x32, A))
    puppet(lambda task: (task.store(va, b"x" * 3 * PAGE), task.munmap(va + 4 * PAGE, PAGE)))
    assert puppet(lambda task: errno_of(lambda: task.mlock(va, PAGES * PAGE))) == "ENOMEM"
    assert locked(puppet, va, 4) == [True] * 4 and mm_of(puppet).locked_vm == 4
    machine.audit().raise_if_broken()


def test_without_frames_mlock_says_so_and_what_is_there_is_locked(boot):
    machine = boot(nodes=1, frames_per_node=128)
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(200 * PAGE))
    puppet(lambda task: task.store(va + 199 * PAGE, b"x"))
    assert puppet(lambda task: errno_of(lambda: task.mlock(va, 200 * PAGE))) == "EAGAIN"
    assert locked(puppet, va + 199 * PAGE, 1) == [True]
    machine.audit().raise_if_broken()


def test_locking_while_pages_move_and_are_copied_stays_exact(machine):
    """Threads of one address space write, a child shares, a migrator moves, and the parent locks
    and unlocks; the audit knows which pages must be PG_mlocked."""
    puppet = Puppet(machine)
    va = area(puppet, 32)
    thread, child = puppet.clone(), puppet.fork()
    migrator = machine.start_migrator()
    for turn in range(25):
        thread.begin(lambda task: [task.fetch_add64(va + i * PAGE, 1) for i in range(32)])
        child.begin(lambda task: [task.fetch_add64(va + i * PAGE, 1) for i in range(turn, 32)])
        puppet(lambda task: (task.mlock(va + turn * PAGE, 8 * PAGE), task.munlock(va + 4 * PAGE, turn * PAGE)))
        thread.reply(), child.reply()
        machine.audit().raise_if_broken()
        if turn % 8 == 0:
            child.exit()
            child = puppet.fork()
    migrator.stop(20)
    machine.init.move_pages(puppet.pid, [va], [1], MPOL_MF_MOVE_ALL)


# ---- pages of files, and of swap ------------------------------------------------------

@pytest.fixture
def path(tmp_path):
    """A host file of six pages."""
    file = tmp_path / "file"
    file.write_bytes(bytes(PAGES * PAGE))
    return str(file)


def map_file(puppet, path, how):
    """The descriptor and the address of a mapping of the file."""
    def program(task):
        fd = task.open(path, os.O_RDWR)
        return fd, task.mmap(PAGES * PAGE, RW, how, fd=fd)
    return puppet(program)


@pytest.mark.parametrize("how", [MAP_SHARED, MAP_PRIVATE])
def test_pages_of_a_locked_file_mapping_are_locked_until_no_locked_area_maps_them(machine, path, how):
    one, other = Puppet(machine), Puppet(machine)
    _fd, va = map_file(one, path, how)
    _fd, there = map_file(other, path, MAP_SHARED)
    count = counter(machine)
    one(lambda task: task.mlock(va, PAGES * PAGE))
    assert locked(one, va) == [True] * PAGES and count("nr_mlock") == PAGES
    # The file's own pages, if the mapping is shared, and then the others see the same.
    other(lambda task: task.load(there, PAGES * PAGE))
    assert locked(other, there) == [how == MAP_SHARED] * PAGES
    other(lambda task: task.mlock(there, PAGE))
    machine.audit().raise_if_broken()
    one(lambda task: task.munlock(va, PAGES * PAGE))
    assert locked(other, there) == [True] + [False] * (PAGES - 1)
    machine.audit().raise_if_broken()


def test_what_a_locked_file_mapping_faults_in_later_is_locked(machine, path):
    puppet = Puppet(machine)
    puppet(lambda task: task.mlockall(MCL_FUTURE))
    fd, va = map_file(puppet, path, MAP_SHARED)
    # Truncated and made longer again, it has no pages; then they come one by one.
    puppet(lambda task: (task.ftruncate(fd, 0), task.ftruncate(fd, PAGES * PAGE)))
    assert machine.vmstat()["nr_mlock"] == machine.vmstat()["nr_unevictable"] == 0
    puppet(lambda task: (task.load(va, 1), task.store(va + PAGE, b"x")))
    assert locked(puppet, va, 2) == [True, True]
    machine.audit().raise_if_broken()


def test_private_copies_that_truncation_takes_away_are_counted_off(machine, path):
    puppet = Puppet(machine)
    fd, va = map_file(puppet, path, MAP_PRIVATE)
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    puppet(lambda task: [task.store(va + i * PAGE, b"mine") for i in range(PAGES)])
    assert locked(puppet, va) == [True] * PAGES
    puppet(lambda task: task.ftruncate(fd, PAGE))
    assert machine.vmstat()["nr_mlock"] == 1 and locked(puppet, va, 1) == [True]
    machine.audit().raise_if_broken()


def test_a_locked_page_of_a_file_is_locked_where_it_arrives(machine, path):
    puppet = Puppet(machine)
    _fd, va = map_file(puppet, path, MAP_SHARED)
    puppet(lambda task: (task.mlock(va, PAGE), task.store(va, b"stays")))
    target = 1 - node_at(puppet, va)
    assert machine.init.move_pages(puppet.pid, [va], [target], MPOL_MF_MOVE_ALL) == [target]
    machine.init.migrate_prep()
    assert locked(puppet, va, 1) == [True] and page_at(puppet, va).flags & flags("PG_unevictable")
    assert machine.zoneinfo()[target]["nr_mlock"] == 1 and puppet(lambda task: task.load(va, 5)) == b"stays"
    machine.audit().raise_if_broken()


def test_reclaim_leaves_locked_memory_alone_and_what_comes_back_to_it_is_locked(boot, tmp_path):
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 1500)
    puppet = Puppet(machine)
    va, other = area(puppet), area(puppet)

    def fill(task):
        rest = task.mmap(600 * PAGE)
        for number in range(600):
            task.store64(rest + number * PAGE, number)
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    puppet(fill)
    assert machine.vmstat()["pswpout"] > 100
    assert locked(puppet, va) == [True] * PAGES, "a locked page was swapped out"
    # Some of these are out by now; locking brings them in, and keeps them.
    puppet(lambda task: task.mlock(other, PAGES * PAGE))
    assert locked(puppet, other) == [True] * PAGES
    assert puppet(lambda task: task.load(other, PAGES * PAGE)) == b"".join(bytes([i]) * PAGE for i in range(PAGES))
    machine.audit().raise_if_broken()


def test_a_page_of_a_locked_area_is_not_unmapped_for_reclaim_before_it_is_locked_either(boot, tmp_path):
    """An area is VM_LOCKED before its pages are PG_mlocked, one by one."""
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 1500)
    puppet = Puppet(machine)
    va = area(puppet, 1)
    page = page_at(puppet, va).address
    puppet(lambda task: task.mlock(va, PAGE))

    def reclaim(task):
        ksym.migrate_prep()
        ksym.lock_page(page)
        ksym.add_to_swap(page)
        found = [ksym.try_to_unmap(page, 0) for _ in range(2)]
        ksym.unlock_page(page)
        return found
    assert puppet(reclaim) == [C["SWAP_MLOCK"]] * 2
    assert puppet(lambda task: task.load(va, 1)) == b"\0"
    machine.audit().raise_if_broken()


def test_a_page_that_leaves_its_area_for_the_swap_cache_is_unlocked_with_the_area(boot, tmp_path):
    """A migration makes swap entries of the PTEs of a page of the swap cache, in locked areas as well."""
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 100)
    puppet = Puppet(machine)
    va = area(puppet, 1)
    page, node = page_at(puppet, va).address, node_at(puppet, va)

    def enter_swap_cache(task):
        ksym.lock_page(page)
        ksym.add_to_swap(page)
        ksym.unlock_page(page)
    puppet(enter_swap_cache)
    # Or locking would copy it.
    puppet(lambda task: (task.mprotect(va, PAGE, PROT_READ), task.mlock(va, PAGE)))
    assert locked(puppet, va, 1) == [True]
    moved = machine.init.move_pages(puppet.pid, [va], [1 - node], MPOL_MF_MOVE_ALL)
    assert moved == [1 - node] and not pte_of(puppet, va) & C["_PAGE_PRESENT"]
    puppet(lambda task: task.munlock(va, PAGE))
    puppet(lambda task: (task.load(va, 1), task.mprotect(va, PAGE, RW), task.store(va, b"x")))
    assert locked(puppet, va, 1) == [False] and machine.vmstat()["nr_mlock"] == 0
    machine.audit().raise_if_broken()


def test_a_page_that_becomes_a_swap_entry_while_munlock_waits_for_it_is_unlocked(boot, tmp_path):
    machine = boot(2, 256)
    machine.swapon(tmp_path / "swap", 100)
    puppet, mover = Puppet(machine), Puppet(machine)
    va = area(puppet, 1)
    page = page_at(puppet, va).address
    puppet(lambda task: (ksym.lock_page(page), ksym.add_to_swap(page), ksym.unlock_page(page)))
    puppet(lambda task: (task.mprotect(va, PAGE, PROT_READ), task.mlock(va, PAGE)))
    mover(lambda task: ksym.lock_page(page))
    puppet.begin(lambda task: task.munlock(va, PAGE))
    assert until_waits(puppet, "WAIT_PAGE_LOCK") == page
    # As migration does, which then fails, for munlock has a reference.
    mover(lambda task: (ksym.try_to_unmap(page, 1), ksym.unlock_page(page)))
    puppet.reply()
    assert not pte_of(puppet, va) & C["_PAGE_PRESENT"]
    puppet(lambda task: task.load(va, 1))
    assert page_at(puppet, va).address == page
    assert locked(puppet, va, 1) == [False] and machine.vmstat()["nr_mlock"] == 0


def test_what_lies_behind_the_end_of_a_file_cannot_be_locked(machine, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * PAGE)
    puppet = Puppet(machine)
    fd = puppet(lambda task: task.open(tmp_path / "file"))
    va = puppet(lambda task: task.mmap(2 * PAGE, RW, MAP_SHARED, fd=fd))
    assert puppet(lambda task: errno_of(lambda: task.mlock(va, 2 * PAGE))) == "ENOMEM"
    assert locked(puppet, va, 1) == [True]


def test_locked_memory_is_not_invalidated(machine):
    puppet = Puppet(machine)
    va = area(puppet)
    puppet(lambda task: task.mlock(va + PAGE, PAGE))
    assert puppet(lambda task: [errno_of(lambda: task.msync(va, length, C["MS_INVALIDATE"])) for length in (PAGE, 2 * PAGE)]) \
        == [None, "EBUSY"]


def test_a_page_that_waited_for_a_list_while_it_was_unlocked_is_not_stranded(machine):
    """putback_lru_page: munlock found it on no list, and left it to whoever has it.  So that one looks again."""
    owner, other = Puppet(machine), Puppet(machine)
    va = area(owner, 1)
    owner(lambda task: task.mlock(va, PAGE))
    page = page_at(owner, va)
    address, lock = page.address, layout.kernel().zones + node_at(owner, va) * layout.sizeof("Zone") + \
        layout.offsetof("Zone", "lru_lock")
    assert owner(lambda task: ksym.isolate_lru_page(address)) == 0
    other(lambda task: ksym.spin_lock(lock))
    owner.begin(lambda task: ksym.putback_lru_page(address))
    until_waits(owner, "WAIT_SPINLOCK")
    other(lambda task: (ksym.free_page_mlock(address), ksym.spin_unlock(lock)))
    owner.reply()
    machine.init.migrate_prep()
    assert page.flags & flags("PG_lru", "PG_unevictable") == flags("PG_lru") and page._count == 1
    owner(lambda task: (ksym.lock_page(address), ksym.mlock_vma_page(address), ksym.unlock_page(address)))


def test_munlock_does_not_overlook_an_area_whose_entry_is_just_being_changed(machine):
    """mprotect takes a PTE away for a moment; the page is still the other area's, and locked."""
    owner, other = Puppet(machine), Puppet(machine)
    va = area(owner, 1)
    owner(lambda task: task.mlock(va, PAGE))
    page, entry = page_at(owner, va).address, pte_of(owner, va)

    def change(task):
        ksym.spin_lock(ksym.pte_lockptr(ksym.walk_to_pmd(slot(task.cpu).mm, va)))
        # A translation of its own would disagree with it.
        ksym.ptep_clear_flush(slot(task.cpu).mm, va, ksym.pte_offset(ksym.walk_to_pmd(slot(task.cpu).mm, va), va))
    owner(change)
    other.begin(lambda task: (ksym.lock_page(page), ksym.try_to_munlock(page), ksym.unlock_page(page))[1])
    until_waits(other, "WAIT_SPINLOCK")
    set_pte(owner, va, entry)
    owner(lambda task: ksym.spin_unlock(ksym.pte_lockptr(ksym.walk_to_pmd(slot(task.cpu).mm, va))))
    assert other.reply() == C["SWAP_MLOCK"]


def test_a_fault_that_waits_for_a_page_does_not_lock_what_is_not_mapped_any_more(machine, tmp_path):
    """mlock_faulted_page: truncation unlocks the page and unmaps it, and whoever waits comes too late."""
    path = tmp_path / "file"
    path.write_bytes(bytes(PAGE))
    owner, other = Mapper(machine, str(path)), Puppet(machine)
    va = owner.va
    owner(lambda task: task.mlock(va, PAGE))
    page = page_at(owner, va)
    address, mapping = page.address, page.mapping
    other(lambda task: (ksym.lock_page(address), ksym.clear_page_mlock(address)))
    owner.begin(lambda task: ksym.handle_mm_fault(slot(task.cpu).mm, ksym.find_vma(slot(task.cpu).mm, va), va, 0))
    until_waits(owner, "WAIT_PAGE_LOCK")
    other(lambda task: (ksym.unmap_mapping_range(mapping, 0, 0, 1), ksym.unlock_page(address)))
    assert owner.reply() == 0
    assert not page.flags & flags("PG_mlocked", "PG_unevictable")
