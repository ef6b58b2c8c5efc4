# SPDX-License-Identifier: GPL-2.0-only
"""Memory control groups: who is charged for a page and from when to when, limits up the
hierarchy, and charges while pages migrate (seed lines 125-136, 633-641, 720).  On real
processes; what is to happen in the middle of a migration is done by hand."""
import ctypes
import errno
import os
import random

import pytest

import shmkern
from helpers import C, PAGE, Puppet, is_running, kinds, mm_of, node_at, page, page_at, pfn_at, pte_of, until, \
    until_waits
from shmkern import (MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MPOL_MF_MOVE_ALL, PROT_READ, PROT_WRITE,
                     boot as boot_module, layout, tracing, worker)
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

GFP = C["GFP_HIGHUSER_MOVABLE"]
USED, MIGRATION = C["PCG_USED"], C["PCG_MIGRATION"]


@pytest.fixture
def machine(boot):
    """A small machine with groups."""
    return boot(memcg=True)


@pytest.fixture
def tree(machine):
    """Two groups below a third: (parent, a, b)."""
    parent = machine.cgroup_create("parent")
    return parent, machine.cgroup_create("a", parent=parent), machine.cgroup_create("b", parent=parent)


def member(machine, group, pages=8):
    """A task in a group with room for some pages, at `va`."""
    puppet = Puppet(machine, cgroup=group)
    puppet.va = puppet(lambda task: task.mmap(pages * PAGE))
    return puppet


def touch(puppet, *indices):
    """Has a task store to pages of its memory."""
    va = puppet.va
    for index in indices:
        puppet(lambda task: task.store64(va + index * PAGE, index + 1))


def fails(number, function, *args):
    """Calls a function that must raise OSError with that errno."""
    with pytest.raises(OSError) as caught:
        function(*args)
    assert caught.value.errno == number, caught.value


def usages(*groups):
    """What groups use, in pages."""
    return tuple(group.usage // PAGE for group in groups)


def pcg(pfn):
    """struct PageCgroup of a frame, live."""
    return layout.struct("PageCgroup", layout.kernel().page_cgroup + pfn * layout.sizeof("PageCgroup"))


def charged(pfn):
    """(flags, id of the group charged or None) of a frame."""
    row = pcg(pfn)
    return int(row.flags), layout.struct("MemCgroup", row.mem_cgroup).id if row.flags & USED else None


def prepare(old, new):
    """Both pages' charges are held."""
    assert ksym.__mem_cgroup_prepare_migration(old, new) == 0


def finish(old, new):
    """And no more."""
    ksym.__mem_cgroup_end_migration(old, new)


def frame_of(address):
    """The number of the frame of a struct Page."""
    return (address - layout.kernel().mem_map) // layout.sizeof("Page")


def depart(machine, owner, va):
    """The Flight of the page at an address."""
    return Flight(machine, page_at(owner, va).address)


class Flight:
    """A page in the air, with what unmap_and_move does before and after.  `meanwhile` is done while
    the page is still to be locked."""

    def __init__(self, machine, old, meanwhile=lambda: None):
        self.mover = Puppet(machine)
        self.pfn = frame_of(old)
        self.old = old
        self.new = new = self.mover(lambda task: (ksym.migrate_prep(), ksym.isolate_lru_page(old),
                                                  ksym.alloc_pages_node(1, GFP | C["__GFP_THISNODE"], 0))[2])
        self.new_pfn = frame_of(new)
        self.mover(lambda task: prepare(old, new))
        meanwhile()
        self.mover(lambda task: (ksym.lock_page(old), ksym.rcu_read_lock(), ksym.try_to_unmap(old, 1)))

    def end(self):
        """What follows when its entries are PTEs again."""
        old, new = self.old, self.new
        self.mover(lambda task: (ksym.rcu_read_unlock(), ksym.unlock_page(old),
                                 finish(old, new), ksym.putback_lru_page(old), ksym.putback_lru_page(new)))
        self.mover.exit()

    def land(self):
        """It succeeds."""
        old, new = self.old, self.new
        assert self.mover(lambda task: ksym.move_to_new_page(new, old)) == 0
        self.end()

    def put_back(self):
        """It fails."""
        old = self.old
        self.mover(lambda task: ksym.remove_migration_ptes(old, old))
        self.end()


# ---- charging and uncharging -----------------------------------------------------

def test_a_page_is_charged_from_its_first_write_to_its_last_mapping(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    va = one.va
    assert usages(parent, a, b) == (0, 0, 0)
    one(lambda task: task.load(va, 8 * PAGE))
    assert usages(parent, a, b) == (0, 0, 0), "the zero page is nobody's"
    touch(one, 0, 1, 2)
    assert usages(machine.root_cgroup, parent, a, b) == (3, 3, 3, 0)
    assert charged(pfn_at(one, va)) == (USED, a.id)
    frame = pfn_at(one, va)
    one(lambda task: task.munmap(va, PAGE))
    assert usages(parent, a) == (2, 2) and charged(frame) == (0, None)
    one.exit()
    assert usages(parent, a) == (0, 0)
    assert a.max_usage == parent.max_usage == 3 * PAGE
    assert (a.stat["pgpgin"], a.stat["pgpgout"], a.stat["rss"]) == (3, 3, 0)
    assert parent.stat["pgpgin"] == 0 and parent.stat["total_pgpgin"] == 3


def test_a_fork_charges_nobody_and_a_copy_on_write_the_writer(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    child = one.fork()
    child.va = one.va
    assert usages(a) == (2,)
    touch(child, 0)
    assert usages(a) == (3,), "the child is in its parent's group"
    b.attach(child.pid)
    touch(child, 1)
    assert usages(parent, a, b) == (4, 3, 1)
    assert a.stat["rss"] == 3 * PAGE and parent.stat["rss"] == 0 and parent.stat["total_rss"] == 4 * PAGE
    # The zero page is copied too.
    va = child.va
    child(lambda task: task.load(va + 5 * PAGE, 1))
    touch(child, 5)
    assert usages(b) == (2,)
    child.exit()
    assert usages(parent, a, b) == (2, 2, 0)


def test_a_shared_page_stays_charged_to_whom_it_was_until_nobody_maps_it(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    child = one.fork()
    b.attach(child.pid)
    one.exit()
    assert usages(a, b) == (2, 0)
    machine.audit().raise_if_broken()
    child.exit()
    assert usages(parent, a, b) == (0, 0, 0)


def test_a_task_that_moves_is_charged_in_its_new_group_from_then_on(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    thread = one.clone()
    thread.va = one.va
    b_id = b.id
    one(lambda task: task.cgroup_attach(b_id))
    touch(thread, 2)
    assert usages(a, b) == (2, 1), "threads share an address space, and so a group"
    va = one.va
    one(lambda task: task.munmap(va, 2 * PAGE))
    assert usages(parent, a, b) == (1, 0, 1)


def test_only_root_moves_the_tasks_of_others(machine, tree):
    parent, a, b = tree
    mine, theirs = Puppet(machine, uid=5), Puppet(machine, uid=6)
    a_id, pid, own = a.id, theirs.pid, mine.pid
    fails(errno.EPERM, mine, lambda task: task.cgroup_attach(a_id, pid))
    mine(lambda task: task.cgroup_attach(a_id, own))
    va = mine(lambda task: task.mmap(PAGE))
    mine(lambda task: task.store(va, b"x"))
    assert usages(a) == (1,)
    fails(errno.ESRCH, a.attach, 9999)


@pytest.mark.parametrize("what", ["untouched", "zero page", "shared"])
def test_threads_that_fault_on_one_page_are_charged_for_it_once(machine, tree, what):
    """Both have a frame of their own and wait to be charged for it; one is too late to map it."""
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    va, thread, holder = one.va, one.clone(), Puppet(machine)
    at = va + (PAGE if what == "shared" else 2 * PAGE)
    child = one.fork() if what == "shared" else None
    if what == "zero page":
        one(lambda task: task.load(at, 1))
    lock = worker.slot(one.cpu).mm + layout.offsetof("MmStruct", "memcg_lock")
    holder(lambda task: ksym.spin_lock(lock))
    for puppet in (one, thread):
        puppet.begin(lambda task: task.fetch_add64(at, 1))
        until_waits(puppet, "WAIT_SPINLOCK")
    holder(lambda task: ksym.spin_unlock(lock))
    first = 2 if what == "shared" else 0
    assert sorted([one.reply(), thread.reply()]) == [first, first + 1]
    assert usages(parent, a) == (3, 3)
    machine.audit().raise_if_broken()
    if child:
        assert child(lambda task: task.load64(at)) == 2


def test_who_is_killed_leaves_no_charge(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, *range(8))
    assert usages(a) == (8,)
    one.kill()
    until(lambda: not is_running(one), "the cleaning up", check=lambda: machine.check(at_once=True))
    assert usages(parent, a) == (0, 0)
    a.remove()


# ---- limits ----------------------------------------------------------------------

def test_a_limit_is_never_exceeded_and_what_is_given_back_can_be_used_again(machine):
    group = machine.cgroup_create("small", limit=5 * PAGE)
    one = member(machine, group)
    va = one.va
    touch(one, *range(5))
    fails(errno.ENOMEM, touch, one, 5)
    assert usages(group) == (5,) and group.failcnt == 1 and group.max_usage == group.limit == 5 * PAGE
    machine.audit().raise_if_broken()
    one(lambda task: task.munmap(va, PAGE))
    touch(one, 5)
    fails(errno.ENOMEM, touch, one, 6)
    # Copy-on-write too, and the old page stays as it was.
    child = one.fork()
    child.va = va
    fails(errno.ENOMEM, touch, child, 1)
    assert child(lambda task: task.load64(va + PAGE)) == 2
    group.limit = 6 * PAGE
    touch(child, 1)
    assert usages(group) == (6,)


def test_a_private_copy_that_a_limit_forbids_leaves_no_frame(machine, tmp_path):
    """cow_fault_page, of a page that another group has brought into the cache."""
    path = str(tmp_path / "file")
    with open(path, "wb") as file:
        file.write(b"file" * 1024)
    other, group = Puppet(machine), machine.cgroup_create("small", limit=PAGE)
    other(lambda task: task.load(task.mmap(PAGE, PROT_READ, MAP_PRIVATE, fd=task.open(path)), 4))
    one = member(machine, group)
    touch(one, 0)
    at = one(lambda task: task.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd=task.open(path)))
    fails(errno.ENOMEM, one, lambda task: task.store(at, b"copy"))
    assert usages(group) == (1,) and one(lambda task: task.load(at, 4)) == b"file"
    machine.audit().raise_if_broken()


def test_the_limit_of_an_ancestor_holds_and_the_failure_is_counted_there(machine):
    parent = machine.cgroup_create("parent", limit=6 * PAGE)
    a, b = (machine.cgroup_create(name, limit=4 * PAGE, parent=parent) for name in "ab")
    one, two, outside = member(machine, a), member(machine, b), member(machine, machine.root_cgroup)
    touch(one, *range(4))
    fails(errno.ENOMEM, touch, one, 4)
    touch(two, 0, 1)
    fails(errno.ENOMEM, touch, two, 2)
    assert usages(parent, a, b) == (6, 4, 2), "a charge that fails further up is taken back below"
    assert (parent.failcnt, a.failcnt, b.failcnt) == (1, 1, 0)
    touch(outside, *range(8))
    one.exit()
    touch(two, 2, 3)
    assert usages(parent, a, b) == (4, 0, 4)


def test_limits_are_whole_pages_and_not_below_the_usage(machine):
    group = machine.cgroup_create("g", limit=4 * PAGE - 1)
    assert group.limit == 4 * PAGE
    one = member(machine, group)
    touch(one, 0, 1, 2)
    fails(errno.EBUSY, setattr, group, "limit", 2 * PAGE)
    assert group.limit == 4 * PAGE
    group.limit = 3 * PAGE
    group.limit = None
    assert group.limit is None
    group.limit = (1 << 64) - 1
    assert group.limit is None
    fails(errno.EINVAL, setattr, machine.root_cgroup, "limit", 100 * PAGE)


# ---- groups ------------------------------------------------------------------------

def test_what_is_wrong_with_a_group_to_be_made_is_said(machine, tree, boot):
    parent, a, b = tree
    fails(errno.EEXIST, machine.cgroup_create, "a", None, parent)
    for name in ("", ".", "..", "x/y", "x" * 32, "nul\0"):
        fails(errno.EINVAL, machine.cgroup_create, name)
    a.remove()
    fails(errno.ENOENT, machine.cgroup_create, "c", None, a)
    fails(errno.ENOENT, lambda: a.usage)
    assert machine.cgroup_create("a", parent=parent).id != a.id
    with pytest.raises(OverflowError):
        machine.cgroup_create("d", limit=-1)


def test_a_task_cannot_be_made_in_a_group_that_is_gone(machine, tree):
    parent, a, b = tree
    a.remove()
    before = machine.vmstat()["nr_free_pages"]
    with pytest.raises(OSError) as caught:
        machine.spawn(lambda task: None, cgroup=a)
    assert caught.value.errno == errno.ENOENT and machine.vmstat()["nr_free_pages"] == before
    assert len([state for state in layout.view("Task", layout.kernel().tasks, 256)["state"] if state]) == 1


def test_a_machine_without_groups_has_no_room_for_them_and_says_so(boot):
    bare = boot()
    fails(errno.ENODEV, bare.cgroup_create, "g")
    fails(errno.ENODEV, lambda: bare.root_cgroup)
    fails(errno.ENODEV, bare.init.cgroup_attach, 1, 0)
    for call in (bare.init.cgroup_remove, bare.init.cgroup_force_empty):
        fails(errno.ENOENT, call, 1)
    without, with_groups = (boot_module.block_size(2, 1024, 8, memcg)[0] for memcg in (False, True))
    assert with_groups - without < 2 * 1024 * layout.sizeof("PageCgroup") + (2 << 20)
    assert layout.kernel().page_cgroup == 0


def test_a_group_is_removed_only_when_nobody_is_in_it(machine, tree):
    parent, a, b = tree
    fails(errno.EBUSY, parent.remove)
    fails(errno.EBUSY, machine.root_cgroup.remove)
    one = member(machine, a)
    fails(errno.EBUSY, a.remove)
    touch(one, 0, 1)
    parent.attach(one.pid)
    a.remove(), b.remove()
    assert usages(parent) == (2,) and charged(pfn_at(one, one.va)) == (USED, parent.id)
    machine.audit().raise_if_broken()
    fails(errno.ENOENT, a.remove)
    one.exit()
    parent.remove()


def test_force_empty_has_the_parent_pay_even_when_its_limit_is_reached(machine):
    parent = machine.cgroup_create("parent", limit=4 * PAGE)
    child = machine.cgroup_create("child", parent=parent)
    one = member(machine, child)
    touch(one, *range(4))
    fails(errno.EBUSY, child.force_empty)
    parent.attach(one.pid)
    child.force_empty()
    assert usages(parent, child) == (4, 0) and parent.stat["rss"] == 4 * PAGE and child.stat["rss"] == 0
    assert parent.failcnt == 0
    machine.audit().raise_if_broken()
    fails(errno.EBUSY, parent.force_empty)
    fails(errno.EINVAL, machine.root_cgroup.force_empty)
    one.exit()
    assert usages(parent, child) == (0, 0)


# ---- migration ---------------------------------------------------------------------

@pytest.mark.parametrize("how", ["land", "put_back"])
def test_both_pages_are_charged_while_one_is_in_the_air_and_one_afterwards(machine, tree, how):
    """Lines 633-641, 720."""
    parent, a, b = tree
    one = member(machine, a)
    va = one.va
    touch(one, 0, 1)
    flight = depart(machine, one, va)
    assert usages(parent, a) == (3, 3)
    assert charged(flight.pfn) == charged(flight.new_pfn) == (USED | MIGRATION, a.id)
    getattr(flight, how)()
    frame, gone = (flight.new_pfn, flight.pfn) if how == "land" else (flight.pfn, flight.new_pfn)
    assert pfn_at(one, va) == frame and charged(frame) == (USED, a.id) and charged(gone) == (0, None)
    assert usages(parent, a) == (2, 2) and one(lambda task: task.load64(va)) == 1
    machine.audit().raise_if_broken()


def test_a_migration_leaves_the_charge_where_it_was(machine, tree):
    """Not with the group of whoever maps the page, or moves it."""
    parent, a, b = tree
    one = member(machine, a)
    touch(one, *range(4))
    va, pid = one.va, one.pid
    b.attach(pid)
    machine.init.move_pages(pid, [va + i * PAGE for i in range(4)], [0] * 4)
    assert machine.init.move_pages(pid, [va + i * PAGE for i in range(4)], [1] * 4) == [1] * 4
    assert usages(parent, a, b) == (4, 4, 0)
    machine.audit().raise_if_broken()


def test_a_group_at_its_limit_cannot_have_its_pages_moved(machine, tree):
    """Lines 634-637: -ENOMEM for the call, and everything as it was."""
    group = machine.cgroup_create("full", limit=4 * PAGE)
    one = member(machine, group)
    touch(one, *range(4))
    va, pid = one.va, one.pid
    nodes = [node_at(one, va + i * PAGE) for i in range(4)]
    free = machine.vmstat()["nr_free_pages"]
    fails(errno.ENOMEM, machine.init.move_pages, pid, [va + i * PAGE for i in range(4)], [1 - n for n in nodes])
    assert [node_at(one, va + i * PAGE) for i in range(4)] == nodes and group.failcnt == 1
    assert machine.vmstat()["nr_free_pages"] == free and usages(group) == (4,)
    assert all(charged(pfn_at(one, va + i * PAGE)) == (USED, group.id) for i in range(4))
    machine.audit().raise_if_broken()
    one(lambda task: task.munmap(va, PAGE))
    assert machine.init.move_pages(pid, [va + i * PAGE for i in range(1, 4)], [1 - n for n in nodes[1:]]) == \
        [1 - n for n in nodes[1:]]


def test_a_page_that_is_unmapped_before_it_is_locked_is_uncharged_when_the_migration_ends(machine, tree):
    """mem_cgroup_prepare_migration has held the charge of a page whose last mapping then goes."""
    parent, a, b = tree
    one, other = member(machine, a), Puppet(machine)
    touch(one, 0, 1)
    va, frame = one.va, pfn_at(one, one.va)
    old = page(frame).address
    new = other(lambda task: ksym.alloc_page(GFP))
    other(lambda task: ksym.get_page(old))
    other(lambda task: prepare(old, new))
    one(lambda task: task.munmap(va, PAGE))
    assert charged(frame) == (USED | MIGRATION, a.id) and usages(a) == (3,)
    other(lambda task: finish(old, new))
    assert charged(frame) == (0, None) and usages(a) == (1,)
    other(lambda task: (ksym.put_page(old), ksym.put_page(new)))
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_an_exit_while_the_page_is_in_the_air_ends_its_charge(machine, tree, how):
    """Nobody maps what has arrived: mem_cgroup_end_migration uncharges it."""
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0)
    flight = depart(machine, one, one.va)
    one.exit()
    assert usages(parent, a) == (2, 2)
    getattr(flight, how)()
    assert usages(parent, a) == (0, 0)
    machine.audit().raise_if_broken()
    a.remove()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_a_sharer_that_unmaps_the_page_between_two_entries_does_not_uncharge_it(machine, tree, how):
    """Lines 125-143: the first entry is a PTE again and is unmapped, and the second one's charge
    finds the page charged.  The walk waits for the child's table meanwhile."""
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0)
    va, child, holder = one.va, one.fork(), Puppet(machine)
    b.attach(child.pid)
    flight = depart(machine, one, va)
    old, new, mm = flight.old, flight.new, worker.slot(child.cpu).mm
    holder(lambda task: ksym.spin_lock(ksym.pte_lockptr(ksym.walk_to_pmd(mm, va))))
    flight.mover.begin(lambda task: ksym.move_to_new_page(new, old) if how == "land" else
                       ksym.remove_migration_ptes(old, old))
    until_waits(flight.mover, "WAIT_SPINLOCK")
    frame = flight.new_pfn if how == "land" else flight.pfn
    assert pfn_at(one, va) == frame
    # The whole area, as cutting it would need the anon_vma's lock, which the walk holds.
    one.begin(lambda task: task.munmap(va, 8 * PAGE))
    until_waits(one, "WAIT_SPINLOCK")
    assert page(frame)._mapcount == -1 and charged(frame) == (USED | MIGRATION, a.id)
    holder(lambda task: ksym.spin_unlock(ksym.pte_lockptr(ksym.walk_to_pmd(mm, va))))
    flight.mover.reply(), one.reply()
    flight.end()
    assert pfn_at(child, va) == frame and charged(frame) == (USED, a.id) and usages(parent, a, b) == (1, 1, 0)
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
@pytest.mark.parametrize("sharing, kind", [(MAP_PRIVATE, 0), (MAP_SHARED, C["PCG_CACHE"])])
def test_a_charge_that_comes_before_the_page_is_locked_is_handed_over_within_the_limit(roomy, sharing, kind, how):
    """Lines 125-136: the page was read from swap, and nobody was charged for it yet when its migration
    began.  Then it is mapped and charged, and there is no room for a second charge."""
    group = roomy.cgroup_create("group")
    one, other = Puppet(roomy, cgroup=group), Puppet(roomy)
    va = one.va = one(lambda task: task.mmap(PAGE, PROT_READ | PROT_WRITE, sharing | MAP_ANONYMOUS))
    touch(one, 0)
    group.limit = 0
    assert usages(group) == (0,)
    group.limit = PAGE
    slots = layout.view("u16", int(layout.kernel().swap_info[0]["swap_map"]), 500)
    [entry] = [offset << C["SWP_OFFSET_SHIFT"] for offset in range(1, 500) if slots[offset]]
    old = other(lambda task: ksym.read_swap_cache_async(entry, GFP, 0, 0))
    before = group.failcnt

    def map_it():
        other(lambda task: ksym.put_page(old))
        assert charged(frame_of(old)) == (MIGRATION, None) and one(lambda task: task.load64(va)) == 1
        assert charged(frame_of(old)) == (USED | MIGRATION | kind, group.id)

    flight = Flight(roomy, old, map_it)
    assert charged(flight.new_pfn) == (MIGRATION, None)
    getattr(flight, how)()
    frame, gone = (flight.new_pfn, flight.pfn) if how == "land" else (flight.pfn, flight.new_pfn)
    assert charged(frame) == (USED | kind, group.id) and charged(gone) == (0, None)
    assert usages(group) == (1,) and group.failcnt == before and group.max_usage == PAGE
    assert one(lambda task: task.load64(va)) == 1 and pfn_at(one, va) == frame
    roomy.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["land", "put_back"])
def test_a_group_emptied_and_removed_under_a_migration_leaves_the_charge_with_its_parent(machine, tree, how):
    """force_empty while a migration is in flight: both charges move, wherever the pages are."""
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    va = one.va
    flight = depart(machine, one, va)
    b.attach(one.pid)
    a.force_empty()
    assert usages(parent, a, b) == (3, 0, 0)
    assert charged(flight.pfn) == charged(flight.new_pfn) == (USED | MIGRATION, parent.id)
    a.remove()
    getattr(flight, how)()
    assert usages(parent, b) == (2, 0) and charged(pfn_at(one, va)) == (USED, parent.id)
    machine.audit().raise_if_broken()


def test_a_group_that_is_just_being_charged_is_not_removed(machine, tree):
    """Somebody has found it and has a reference: it would charge a group that is gone."""
    parent, a, b = tree
    other = Puppet(machine)
    a_id = a.id
    address = other(lambda task: ksym.get_mem_cgroup(a_id))
    fails(errno.EBUSY, a.remove)
    assert other(lambda task: ksym.__mem_cgroup_try_charge(address, C["GFP_KERNEL"], 1)) == 0
    fails(errno.EBUSY, a.force_empty)
    fails(errno.EBUSY, a.remove)
    other(lambda task: ksym.__mem_cgroup_cancel_charge(address))
    a.force_empty()
    a.remove()


def test_a_group_is_removed_as_soon_as_reclaim_at_its_parents_limit_has_left_it(machine, tree):
    """Reclaim has a reference for as long as it looks for pages there, be there any or not."""
    parent, a, b = tree
    other, remover, kernel = Puppet(machine), Puppet(machine), layout.kernel()
    for group, call in ((a, "cgroup_force_empty"), (b, "cgroup_remove")):
        group_id = group.id
        address = other(lambda task: ksym.get_mem_cgroup(group_id))
        # Somebody reclaims: this test.
        kernel.nr_isolators += 1
        try:
            remover.begin(lambda task: getattr(task, call)(group_id))
            for _round in range(20):
                until(lambda: kernel.reclaim_waiters or remover.is_done(), "a wait", check=machine.check)
                assert not remover.is_done()
                # And others come and go.
                other(lambda task: (ksym.reclaim_begin(), ksym.reclaim_end(0)))
        finally:
            kernel.nr_isolators -= 1
            other(lambda task: ksym.css_put(address))
        remover.reply()
    fails(errno.ENOENT, b.remove)


def test_pages_of_many_groups_move_while_tasks_wander_and_groups_are_emptied(boot, shared):
    """All of it at once, until some of each has been."""
    machine, enough = boot(frames_per_node=2048, memcg=True), shared("u64")
    parent = machine.cgroup_create("parent", limit=600 * PAGE)
    groups = [machine.cgroup_create(f"g{i}", limit=120 * PAGE, parent=parent) for i in range(5)]
    ids = [group.id for group in groups[:4]]

    def program(task, seed):
        rng, expected, refused = random.Random(seed), {}, 0
        va, rounds = task.mmap(100 * PAGE), 0
        while rounds < 400 or not enough[0]:
            rounds += 1
            index = rng.randrange(100)
            try:
                before = task.fetch_add64(va + index * PAGE, 1)
            except OSError as error:
                assert error.errno == errno.ENOMEM
                refused += 1
                at = rng.randrange(80)
                task.munmap(va + at * PAGE, 20 * PAGE)
                task.mmap(20 * PAGE, addr=va + at * PAGE, flags=0x32)
                for gone in range(at, at + 20):
                    expected.pop(gone, None)
                continue
            assert before == expected.get(index, 0)
            expected[index] = before + 1
            if rounds % 50 == 1:
                task.cgroup_attach(rng.choice(ids))
            if rounds % 70 == 1:
                task.fork(lambda task: task.fetch_add64(va, 1)).process.join()
        return refused

    children = [machine.spawn(program, seed, cgroup=groups[seed % 4]) for seed in range(6)]
    migrator = machine.start_migrator()
    emptied = 0
    while any(child.is_alive() for child in children):
        for group in groups[:4]:
            try:
                group.force_empty()
                emptied += 1
            except OSError as error:
                assert error.errno == errno.EBUSY
        enough[0] = emptied > 0 and machine.vmstat()["pgmigrate_success"] > 0
        machine.audit().raise_if_broken()
    assert [type(child.result(30)) for child in children] == [int] * 6
    migrator.stop(30)
    until(lambda: usages(parent) == (0,), "the last exit", check=machine.check)
    assert parent.max_usage <= parent.limit


# ---- the audit ---------------------------------------------------------------------

def row_of(group):
    """struct MemCgroup of a group, live."""
    at = layout.kernel().root_mem_cgroup
    while layout.struct("MemCgroup", at).id != group.id:
        at = layout.struct("MemCgroup", at).list["next"] - layout.offsetof("MemCgroup", "list")
    return layout.struct("MemCgroup", at)


@pytest.mark.parametrize("damage, what", [
    (lambda row: row.res.__setitem__("usage", 5 * PAGE), "res.usage"),
    (lambda row: setattr(row, "css_refcnt", 9), "css_refcnt"),
    (lambda row: setattr(row, "nr_mms", 3), "nr_mms"),
    (lambda row: setattr(row, "nr_children", 1), "nr_children"),
    (lambda row: setattr(row, "removing", 1), "removing"),
    (lambda row: row.stat.__setitem__(C["MEM_CGROUP_STAT_RSS"], 0), "stat[RSS]"),
    (lambda row: row.stat.__setitem__(C["MEM_CGROUP_STAT_CACHE"], PAGE), "stat[CACHE]"),
    (lambda row: row.res.__setitem__("max_usage", 0), "res.max_usage"),
    (lambda row: row.res.__setitem__("limit", PAGE), "res.limit"),
])
def test_the_audit_names_the_group_whose_numbers_are_wrong(machine, tree, damage, what):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    row = row_of(a)
    copy = layout.view("u64", row.address, layout.sizeof("MemCgroup") // 8).copy()
    damage(row)
    found = [finding for finding in machine.audit().findings if finding.kind == "memcg"]
    assert any(what in finding.message and f"group 'a' ({a.id})" in finding.message for finding in found), found
    assert all(finding.expected is not None and finding.found is not None for finding in found)
    layout.view("u64", row.address, len(copy))[:] = copy


@pytest.mark.parametrize("field, what", [("root_mem_cgroup", "is not the first group"), ("mem_cgroups", "prev is not the last")])
def test_the_audit_finds_a_pointer_to_another_group(machine, tree, field, what):
    parent, a, b = tree
    where = layout.view("u64", layout.kernel().address + layout.offsetof("Kernel", field), 2)
    before = where.copy()
    where[-1 if field == "mem_cgroups" else 0] += 8
    [finding] = machine.audit().findings
    assert finding.kind == "memcg" and what in finding.message
    where[:] = before


@pytest.mark.parametrize("flags, group, message", [
    (0, None, "mapped by"), (USED, "no group", "charged to what is no group"),
    (USED | C["PCG_CACHE"], "own", "mapped by"), (USED | MIGRATION, "own", "mapped by"),
    (USED, "other", "res.usage")])
def test_the_audit_names_the_page_that_is_charged_wrongly(machine, tree, flags, group, message):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0, 1)
    row = pcg(pfn_at(one, one.va))
    before = int(row.flags), int(row.mem_cgroup)
    row.flags = flags
    row.mem_cgroup = {None: before[1], "no group": before[1] + 8, "own": before[1], "other": row_of(b).address}[group]
    audit = machine.audit()
    assert "memcg" in kinds(audit) and any(message in finding.message for finding in audit.findings), audit
    if group != "other":
        assert any(finding.page == pfn_at(one, one.va) for finding in audit.findings)
    row.flags, row.mem_cgroup = before


def test_the_audit_finds_the_charge_of_a_free_frame(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0)
    frame = next(pfn for pfn in range(100, 2048) if page(pfn).flags & 1 << C["PG_buddy"]) + 1
    row = pcg(frame)
    row.flags, row.mem_cgroup = USED, row_of(a).address
    [finding] = [finding for finding in machine.audit().findings if finding.page == frame]
    assert "is free" in finding.message and finding.expected == "0" and "group 'a'" in finding.found
    row.flags, row.mem_cgroup = 0, 0


def test_the_audit_finds_a_lock_that_is_held_and_an_address_space_without_group(machine, tree):
    parent, a, b = tree
    one = member(machine, a)
    touch(one, 0)
    frame, mm = pfn_at(one, one.va), layout.struct("MmStruct", worker.slot(one.cpu).mm)
    locks = [pcg(frame).address, row_of(a).address, mm.address + layout.offsetof("MmStruct", "memcg_lock")]
    for lock in locks:
        layout.view("u32", lock, 1)[0] = one.cpu + 1
        [finding] = machine.audit().findings
        assert finding.kind == "lock" and finding.task == one.pid
        layout.view("u32", lock, 1)[0] = 0
    group, mm.mem_cgroup = int(mm.mem_cgroup), 0
    findings = machine.audit().findings
    assert {finding.kind for finding in findings} == {"memcg"} and any("is in no group" in f.message for f in findings)
    mm.mem_cgroup = group


def zone_of(group, node):
    """struct MemCgroupPerZone of a group and a node, live."""
    return layout.struct("MemCgroupPerZone", int(row_of(group).nodeinfo[node]))


def lists(group):
    """What is on a group's LRU lists: {(node, list): frames, newest first}, of those that are not empty."""
    found = {}
    for node in range(2):
        for lru in range(C["NR_LRU_LISTS"]):
            head = zone_of(group, node).address + layout.offsetof("MemCgroupPerZone", "lists") + lru * 16
            at = int(layout.view("u64", head)[()])
            while at != head:
                pc = at - layout.offsetof("PageCgroup", "lru")
                found.setdefault((node, lru), []).append(
                    (pc - layout.kernel().page_cgroup) // layout.sizeof("PageCgroup"))
                at = int(layout.view("u64", at)[()])
            assert zone_of(group, node).count[lru] == len(found.get((node, lru), ()))
    return found


def drain(puppet):
    """Puts what waits in pagevecs on its lists."""
    puppet(lambda task: ksym.lru_add_drain_all())


def put_on(group, pfn):
    """Links a frame's page_cgroup, which is on no list, into a group's."""
    head = zone_of(group, 0).address + layout.offsetof("MemCgroupPerZone", "lists") + C["LRU_ACTIVE_ANON"] * 16
    link = pcg(pfn).address + layout.offsetof("PageCgroup", "lru")
    layout.view("u64", link, 2)[:] = head, head
    layout.view("u64", head, 2)[:] = link, link


@pytest.mark.parametrize("damage, message", [
    (lambda a, b, pfn: pcg(pfn).lru.__setitem__("next", 0), "is not on the list of the group that is charged"),
    (lambda a, b, pfn: pcg(pfn).lru.__setitem__("prev", pcg(pfn).address), "not followed by one that leads back"),
    (lambda a, b, pfn: zone_of(a, 0).count.__setitem__(C["LRU_ACTIVE_ANON"], 5), "count is not the number of pages"),
    (lambda a, b, pfn: put_on(b, pfn), "group 'a'"),
    (lambda a, b, pfn: put_on(b, 1500), "a page is on a list of a group, and should be on none"),
    (lambda a, b, pfn: row_of(a).nodeinfo.__setitem__(1, 8), "nodeinfo[1] lies outside the slab"),
    (lambda a, b, pfn: row_of(a).nodeinfo.__setitem__(2, 8), "nodeinfo[2] is there"),
])
def test_the_audit_finds_what_is_wrong_with_a_groups_lists(machine, tree, damage, message):
    parent, a, b = tree
    one = member(machine, a)
    one(lambda task: task.set_mempolicy(C["MPOL_BIND"], [0]))
    touch(one, 0, 1)
    drain(one)
    machine.audit().raise_if_broken()
    places = [(row_of(group).address, "MemCgroup") for group in (a, b)] + \
        [(zone_of(group, node).address, "MemCgroupPerZone") for group in (a, b) for node in (0, 1)] + \
        [(pcg(pfn).address, "PageCgroup") for pfn in (pfn_at(one, one.va), 1500)]
    copies = [(layout.view("u64", at, layout.sizeof(name) // 8), layout.view("u64", at, layout.sizeof(name) // 8).copy())
              for at, name in places]
    damage(a, b, pfn_at(one, one.va))
    found = machine.audit().findings
    assert {finding.kind for finding in found} <= {"memcg", "slab"}, found
    assert any(message in finding.message for finding in found), found
    for live, copy in copies:
        live[:] = copy


def test_the_audit_survives_a_list_of_groups_that_goes_astray(machine, tree):
    parent, a, b = tree
    row = row_of(parent)
    before = int(row.list["next"])
    for wrong in (row.address + 8, layout.kernel().address, row.address + layout.offsetof("MemCgroup", "list")):
        row.list["next"] = wrong
        assert "memcg" in kinds(machine.audit())
    row.list["next"] = before


# ---- a group's LRU lists ---------------------------------------------------------------

ACTIVE_ANON, INACTIVE_ANON, UNEVICTABLE = C["LRU_ACTIVE_ANON"], C["LRU_INACTIVE_ANON"], C["LRU_UNEVICTABLE"]


def resident(machine, group):
    """A task in a group whose memory is on node 0."""
    puppet = member(machine, group)
    puppet(lambda task: task.set_mempolicy(C["MPOL_BIND"], [0]))
    return puppet


def test_a_page_is_on_the_list_of_its_group_that_it_is_on_in_its_zone(machine, tree):
    parent, a, b = tree
    one, outside = resident(machine, a), member(machine, machine.root_cgroup)
    touch(one, 0, 1, 2)
    touch(outside, 0)
    va, frames = one.va, [pfn_at(one, one.va + i * PAGE) for i in range(3)]
    assert lists(a) == {}, "they wait in a pagevec"
    drain(one)
    assert lists(a) == {(0, ACTIVE_ANON): frames[::-1]} and lists(b) == lists(parent) == {}
    pages = [page(frame).address for frame in frames]
    one(lambda task: ksym.isolate_lru_page(pages[0]))
    assert lists(a) == {(0, ACTIVE_ANON): [frames[2], frames[1]]}
    page(frames[0]).flags &= ~(1 << C["PG_active"])
    one(lambda task: (ksym.putback_lru_page(pages[0]), task.mlock(va + PAGE, PAGE)))
    drain(one)
    assert lists(a) == {(0, INACTIVE_ANON): [frames[0]], (0, ACTIVE_ANON): [frames[2]], (0, UNEVICTABLE): [frames[1]]}
    b.attach(one.pid)
    one(lambda task: task.munmap(va, PAGE))
    assert lists(a) == {(0, ACTIVE_ANON): [frames[2]], (0, UNEVICTABLE): [frames[1]]} and lists(b) == {}
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("at_limit", [False, True])
def test_a_page_that_is_just_being_freed_is_the_newest_of_its_groups_list_then(machine, tree, at_limit):
    """Reclaim cannot have it, and is not to come by it again and again."""
    _parent, a, _b = tree
    one = resident(machine, a)
    touch(one, 0, 1, 2)
    frames = [pfn_at(one, one.va + i * PAGE) for i in range(3)]
    drain(one)
    oldest, memcg = page(frames[0]).address, row_of(a).address

    def program(task):
        words, zone = (ctypes.c_uint64 * 3)(), layout.kernel().zones
        pagelist = ctypes.addressof(words)
        ksym.INIT_LIST_HEAD(pagelist)
        assert ksym.page_freeze_refs(oldest, 1)
        which = (memcg, zone) if at_limit else (zone,)
        function = ksym.mem_cgroup_isolate_pages if at_limit else ksym.isolate_pages_global
        looked_at = function(*which, ACTIVE_ANON, 1, 0, pagelist, pagelist + 16)
        ksym.page_unfreeze_refs(oldest, 1)
        return looked_at, words[2]
    assert one(program) == (1, 0)
    assert lists(a) == {(0, ACTIVE_ANON): [frames[0], frames[2], frames[1]]}
    machine.audit().raise_if_broken()


def test_emptying_a_group_moves_its_pages_to_the_parents_lists_or_with_the_root_to_none(machine, tree):
    parent, a, b = tree
    one = resident(machine, a)
    touch(one, 0, 1)
    frames = [pfn_at(one, one.va + i * PAGE) for i in range(2)]
    machine.root_cgroup.attach(one.pid)
    a.force_empty()
    assert lists(a) == {} and sorted(lists(parent)[0, ACTIVE_ANON]) == sorted(frames)
    machine.audit().raise_if_broken()
    a.remove(), b.remove()
    parent.force_empty()
    assert lists(parent) == {} and [charged(frame) for frame in frames] == [(USED, machine.root_cgroup.id)] * 2
    machine.audit().raise_if_broken()


def test_a_page_that_has_moved_is_on_the_list_of_its_group_where_it_is(machine, tree):
    parent, a, b = tree
    one = resident(machine, a)
    touch(one, 0)
    va, pid = one.va, one.pid
    assert machine.init.move_pages(pid, [va], [1]) == [1]
    drain(one)
    assert lists(a) == {(1, ACTIVE_ANON): [pfn_at(one, va)]}
    machine.audit().raise_if_broken()


def test_a_group_is_removed_with_a_page_on_its_list_that_it_is_no_longer_charged_for(machine, tree):
    """Somebody has a reference to a page that nobody maps any more, so that it is still on its lists."""
    parent, a, b = tree
    one, other = resident(machine, a), Puppet(machine)
    touch(one, 0)
    drain(one)
    va, frame = one.va, pfn_at(one, one.va)
    address = page(frame).address
    other(lambda task: ksym.get_page(address))
    one(lambda task: task.munmap(va, PAGE))
    assert charged(frame) == (0, None) and lists(a) == {(0, ACTIVE_ANON): [frame]}
    b.attach(one.pid)
    a.remove()
    assert pcg(frame).lru["next"] == 0
    other(lambda task: ksym.put_page(address))
    machine.audit().raise_if_broken()


def test_without_memory_for_its_lists_a_group_is_not_made(machine, tree):
    parent, a, b = tree
    other, parent_id = Puppet(machine), parent.id

    def attempt(task, nth):
        task.fail_nth(nth)
        try:
            task.cgroup_create("c", None, parent_id)
        except OSError as error:
            assert error.errno == errno.ENOMEM
            task.fail_nth(0)
            return True
        return False

    nth = 1
    while other(lambda task: attempt(task, nth)):
        machine.audit().raise_if_broken()
        nth += 1
    assert nth == 4, "one object for the group, and one for each of two nodes"


# ---- pages of files ------------------------------------------------------------------

@pytest.fixture
def path(tmp_path):
    """A host file of eight pages."""
    file = tmp_path / "file"
    file.write_bytes(b"".join(bytes([n]) * PAGE for n in range(8)))
    return str(file)


def mapper(machine, group, path, how=MAP_SHARED):
    """A task in a group that has mapped the file at `va`."""
    puppet = Puppet(machine, cgroup=group)
    puppet.fd, puppet.va = puppet(lambda task: (fd := task.open(path, os.O_RDWR),
                                                task.mmap(8 * PAGE, PROT_READ | PROT_WRITE, how, fd=fd)))
    return puppet


def test_a_page_of_a_file_is_charged_to_who_brought_it_in_until_it_leaves_the_cache(machine, tree, path):
    parent, a, b = tree
    one, two = mapper(machine, a, path), mapper(machine, b, path)
    va, other_va, fd = one.va, two.va, two.fd
    one(lambda task: task.load(va, 3 * PAGE))
    two(lambda task: task.load(other_va, 4 * PAGE))
    assert usages(parent, a, b) == (4, 3, 1)
    assert (a.stat["cache"], a.stat["rss"], parent.stat["total_cache"]) == (3 * PAGE, 0, 4 * PAGE)
    machine.audit().raise_if_broken()
    one.exit()
    assert usages(a, b) == (3, 1), "not mapped by it any more, but in the cache"
    two(lambda task: task.ftruncate(fd, 2 * PAGE))
    assert usages(parent, a, b) == (2, 2, 0)
    machine.audit().raise_if_broken()
    two.exit()
    assert usages(parent, a, b) == (0, 0, 0)


def test_a_private_copy_of_a_page_of_a_file_is_charged_as_anonymous(machine, tree, path):
    parent, a, b = tree
    one, two = mapper(machine, a, path, MAP_PRIVATE), mapper(machine, b, path, MAP_PRIVATE)
    va, other_va = one.va, two.va
    one(lambda task: task.store(va, b"x"))
    two(lambda task: (task.load(other_va, 1), task.store(other_va, b"x")))
    assert (a.stat["cache"], a.stat["rss"], b.stat["cache"], b.stat["rss"]) == (PAGE, PAGE, 0, PAGE)
    machine.audit().raise_if_broken()


def test_shared_anonymous_memory_is_charged_as_cache(machine, tree):
    parent, a, b = tree
    one = Puppet(machine, cgroup=a)
    va = one(lambda task: task.mmap(4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS))
    one(lambda task: task.store(va, b"x" * 2 * PAGE))
    assert a.stat["cache"] == 2 * PAGE and a.stat["rss"] == 0
    machine.audit().raise_if_broken()
    one.exit()
    assert usages(parent, a) == (0, 0)


def test_an_allocation_that_fails_on_the_way_into_the_cache_leaves_no_charge(machine, tree, path):
    parent, a, b = tree
    one = mapper(machine, a, path)
    va = one.va

    def attempt(task, nth):
        task.fail_nth(nth)
        try:
            task.load(va, 1)
        except OSError as error:
            assert error.errno == errno.ENOMEM
        return task.fail_nth(0) == 0

    nth, left = 1, []
    while one(lambda task: attempt(task, nth)):
        left.append(usages(a))
        machine.audit().raise_if_broken()
        nth += 1
    assert (0,) in left and usages(a) == (1,) and nth > 2


def test_a_page_of_a_file_that_moves_is_charged_in_one_place(machine, tree, path):
    """Line 386."""
    parent, a, b = tree
    one, two = mapper(machine, a, path), mapper(machine, b, path)
    va, other_va, pid = one.va, two.va, one.pid
    one(lambda task: task.load(va, 8 * PAGE))
    two(lambda task: task.load(other_va, 8 * PAGE))
    for node in (1, 0, 1):
        old = [pfn_at(one, va + i * PAGE) for i in range(8)]
        assert machine.init.move_pages(pid, [va + i * PAGE for i in range(8)], [node] * 8, MPOL_MF_MOVE_ALL) == [node] * 8
        new = [pfn_at(one, va + i * PAGE) for i in range(8)]
        assert usages(parent, a, b) == (8, 8, 0) and a.stat["cache"] == 8 * PAGE
        assert all(charged(pfn) == (USED | C["PCG_CACHE"], a.id) for pfn in new)
        assert all(charged(pfn) == (0, None) for pfn in set(old) - set(new))
        machine.audit().raise_if_broken()


# ---- reclaim at a limit --------------------------------------------------------------

@pytest.fixture
def roomy(boot, tmp_path):
    """A machine with groups, far more frames than are used, and swap."""
    machine = boot(memcg=True)
    machine.swapon(tmp_path / "swap", 500)
    return machine


def is_present_at(puppet, va):
    """Whether a page is mapped."""
    return bool(pte_of(puppet, va) & C["_PAGE_PRESENT"])


def present(puppet, pages):
    """How many of the first pages of its memory are mapped."""
    return sum(is_present_at(puppet, puppet.va + i * PAGE) for i in range(pages))


def intact(puppet, pages):
    """Whether what touch() stored is what is loaded."""
    va = puppet.va
    return puppet(lambda task: [task.load64(va + i * PAGE) for i in range(pages)]) == list(range(1, pages + 1))


def test_a_task_over_its_groups_limit_goes_on_with_swap_and_nobody_else_pays_for_it(roomy):
    group, other = roomy.cgroup_create("small", limit=16 * PAGE), roomy.cgroup_create("other")
    one, two = member(roomy, group, 100), member(roomy, other, 64)
    touch(two, *range(64))
    touch(one, *range(100))
    assert intact(one, 100)
    assert group.max_usage <= 16 * PAGE and 0 < present(one, 100) <= 16
    assert present(two, 64) == 64 and usages(other) == (64,)
    assert roomy.vmstat()["pgscan_kswapd"] == 0, "there was memory for all"
    roomy.audit().raise_if_broken()


def test_without_swap_that_task_alone_is_out_of_memory(machine):
    group, other = machine.cgroup_create("small", limit=4 * PAGE), machine.cgroup_create("other")
    one, two = member(machine, group), member(machine, other)
    touch(one, *range(4))
    fails(errno.ENOMEM, touch, one, 4)
    touch(two, *range(8))
    assert intact(one, 4) and intact(two, 8)
    machine.audit().raise_if_broken()


def test_locked_pages_of_a_group_stay_and_its_limit_holds(roomy):
    group = roomy.cgroup_create("small", limit=4 * PAGE)
    one = member(roomy, group, 6)
    va = one.va
    one(lambda task: task.mlock(va, 4 * PAGE))
    touch(one, *range(4))
    fails(errno.ENOMEM, touch, one, 4)
    assert present(one, 4) == 4 and usages(group) == (4,)
    one(lambda task: task.munlock(va, 4 * PAGE))
    touch(one, 4, 5)
    assert intact(one, 6)
    roomy.audit().raise_if_broken()


def test_a_group_is_not_out_of_memory_as_long_as_anybody_makes_room(roomy):
    """Whoever finds all of its pages in use has found them slowly, perhaps: others get on meanwhile."""
    group = roomy.cgroup_create("small", limit=4 * PAGE)
    one, late, other = member(roomy, group, 4), member(roomy, group, 1), Puppet(roomy)
    va, late_va = one.va, late.va
    one(lambda task: task.mlock(va, 4 * PAGE))
    kernel, memcg = layout.kernel(), layout.struct("MemCgroup", pcg(pfn_at(one, va)).mem_cgroup)
    # Somebody else is at it, always: this test.
    kernel.nr_isolators += 1
    try:
        late.begin(lambda task: task.store64(late_va, 1))
        for _round in range(2 * C["MAX_RECLAIM_RETRIES"]):
            failures = group.failcnt
            memcg.reclaim_progress += 1
            other(lambda task: (ksym.reclaim_begin(), ksym.reclaim_end(1)))
            until(lambda: group.failcnt > failures, "another try", check=roomy.check)
    finally:
        kernel.nr_isolators -= 1
    one(lambda task: task.munlock(va, 4 * PAGE))
    late.reply()
    assert intact(late, 1) and group.usage <= group.limit
    roomy.audit().raise_if_broken()


def test_who_finds_all_groups_given_to_others_asks_them_itself(roomy):
    """Another task that reclaims for the same limit has just been given the last of the groups, and then
    once more."""
    group = roomy.cgroup_create("g")
    one, setter = member(roomy, group, 20), Puppet(roomy)
    touch(one, *range(20))
    memcg, group_id = layout.struct("MemCgroup", mm_of(one).mem_cgroup), group.id
    memcg.last_scanned_child = group_id
    with tracing.Tracing(["mm_lru_insertion"]):
        # Where a round may end, the pagevecs are emptied.
        tracing.set_breaks(setter.cpu, ["mm_lru_insertion"])
        setter.begin(lambda task: task.cgroup_set_limit(group_id, 10 * PAGE))
        until(lambda: tracing.is_stopped(setter.cpu) or setter.is_done(), "a stop", check=roomy.check)
        memcg.last_scanned_child = group_id
        tracing.set_breaks(setter.cpu, [])
        tracing.go_on(setter.cpu)
        setter.reply()
    assert usages(group)[0] <= 10 and group.limit == 10 * PAGE and intact(one, 20)
    roomy.audit().raise_if_broken()


def test_a_group_that_is_being_removed_has_nobody_to_ask(roomy):
    group = roomy.cgroup_create("g")
    one, other = member(roomy, group, 4), Puppet(roomy)
    touch(one, *range(4))
    address = mm_of(one).mem_cgroup
    memcg = layout.struct("MemCgroup", address)
    memcg.removing = 1
    assert other(lambda task: ksym.mem_cgroup_hierarchical_reclaim(address, C["GFP_KERNEL"], 0)) == 0
    assert roomy.vmstat()["pgscan_direct"] == 0
    memcg.removing = 0
    assert other(lambda task: ksym.mem_cgroup_hierarchical_reclaim(address, C["GFP_KERNEL"], 0)) == 1
    assert intact(one, 4)


def test_the_limit_of_a_parent_is_kept_by_all_below_it(roomy):
    parent = roomy.cgroup_create("parent", limit=24 * PAGE)
    a, b = (roomy.cgroup_create(name, parent=parent) for name in "ab")
    one, two, outside = member(roomy, a, 20), member(roomy, b, 20), member(roomy, roomy.root_cgroup, 20)
    for puppet in (outside, one, two):
        touch(puppet, *range(20))
    assert parent.max_usage <= 24 * PAGE and parent.failcnt > 0 and a.failcnt == b.failcnt == 0
    assert present(one, 20) + present(two, 20) <= 24 and present(outside, 20) == 20
    assert intact(one, 20) and intact(two, 20)
    roomy.audit().raise_if_broken()


def test_a_file_larger_than_the_limit_is_written_page_by_page(machine, tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(40 * PAGE))
    group, other = machine.cgroup_create("small", limit=6 * PAGE), machine.cgroup_create("other")
    one, two = Puppet(machine, cgroup=group), member(machine, other, 20)
    touch(two, *range(20))
    va = one(lambda task: task.mmap(40 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED,
                                    fd=task.open(str(path), os.O_RDWR)))
    one(lambda task: [task.store(va + i * PAGE, bytes([i + 1]) * PAGE) for i in range(40)])
    assert group.max_usage <= 6 * PAGE and group.stat["cache"] == group.usage
    assert one(lambda task: [task.load(va + i * PAGE, PAGE) == bytes([i + 1]) * PAGE for i in range(40)]) == [True] * 40
    one(lambda task: task.msync(va, 40 * PAGE, C["MS_SYNC"]))
    assert path.read_bytes() == b"".join(bytes([i + 1]) * PAGE for i in range(40))
    assert present(two, 20) == 20
    machine.audit().raise_if_broken()


def test_a_smaller_limit_has_pages_given_back(roomy):
    group = roomy.cgroup_create("g", limit=40 * PAGE)
    one = member(roomy, group, 40)
    touch(one, *range(40))
    group.limit = 5 * PAGE
    assert usages(group)[0] <= 5 and intact(one, 40)
    va = one.va
    one(lambda task: task.mlock(va, 3 * PAGE))
    fails(errno.EBUSY, setattr, group, "limit", 2 * PAGE)
    assert group.limit == 5 * PAGE
    roomy.audit().raise_if_broken()


def test_a_slot_that_cannot_be_read_charges_nobody(roomy, tmp_path):
    group = roomy.cgroup_create("group")
    one = member(roomy, group, 8)
    touch(one, *range(8))
    group.limit = PAGE
    lost = next(one.va + i * PAGE for i in range(8) if not is_present_at(one, one.va + i * PAGE))
    group.limit = None
    before = group.usage
    os.truncate(tmp_path / "swap", 0)
    for _time in range(2):
        with pytest.raises(shmkern.BusError):
            one(lambda task: task.load64(lost))
        assert group.usage == before
    roomy.audit().raise_if_broken()


def test_the_pages_of_a_group_at_its_limit_move_when_others_of_it_can_go(roomy):
    group = roomy.cgroup_create("full", limit=8 * PAGE)
    one = member(roomy, group, 8)
    touch(one, *range(8))
    va, pid = one.va, one.pid
    for node in (1, 0):
        here = [i for i in range(8) if is_present_at(one, va + i * PAGE)]
        status = roomy.init.move_pages(pid, [va + i * PAGE for i in here[:2]], [node] * 2)
        assert status == [node] * 2
    assert group.max_usage <= 8 * PAGE and intact(one, 8)
    roomy.audit().raise_if_broken()


def test_tasks_of_a_group_that_together_want_more_than_its_limit_all_go_on(roomy):
    group = roomy.cgroup_create("crowd", limit=48 * PAGE)

    def program(task):
        va = task.mmap(30 * PAGE)
        for turn in range(6):
            for i in range(30):
                task.store64(va + i * PAGE, turn * 100 + i)
            if any(task.load64(va + i * PAGE) != turn * 100 + i for i in range(30)):
                return "lost"
        return "whole"

    children = [roomy.spawn(program, cgroup=group) for _ in range(4)]
    migrator = roomy.start_migrator()
    assert [child.result(timeout=30) for child in children] == ["whole"] * 4
    migrator.stop(20)
    assert group.max_usage <= 48 * PAGE
    roomy.audit().raise_if_broken()


def test_swapoff_ends_though_a_group_has_no_room_for_what_it_brings_back(machine, tmp_path):
    """Two pages, each in two address spaces, so that they keep their slots when they come back; and room
    for one."""
    area, group = machine.swapon(tmp_path / "swap", 64), machine.cgroup_create("narrow", limit=4 * PAGE)
    one = member(machine, group)
    touch(one, 0, 1)
    other = one.fork()
    other.va = one.va
    group.limit = PAGE
    assert pte_of(one, one.va) & 1 == 0 or pte_of(one, one.va + PAGE) & 1 == 0
    fails(errno.ENOMEM, machine.swapoff, area)
    machine.audit().raise_if_broken()
    group.limit = None
    machine.swapoff(area)
    for puppet in (one, other):
        va = puppet.va
        assert puppet(lambda task: [task.load64(va), task.load64(va + PAGE)]) == [1, 2]
