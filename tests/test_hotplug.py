# SPDX-License-Identifier: GPL-2.0-only
"""Nodes that go offline and come back (mm/memory_hotplug.c), and memory without struct pages that
its owner moves (migrate_vmas, seed lines 1102-1118)."""
import errno

import pytest

from helpers import C, PAGE, Puppet, counter, kinds, mm_of, node_at, page_at, pfn_at, pte_of, set_pte, until_waits
from shmkern import (MPOL_BIND, MPOL_F_ADDR, MPOL_F_MEMS_ALLOWED, MPOL_F_NODE, MPOL_INTERLEAVE, MPOL_MF_MOVE,
                     MPOL_PREFERRED, MREMAP_MAYMOVE, PROT_READ, PROT_WRITE, layout)
from shmkern.kallsyms import ksym

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE
PAGES = 12


def errno_of(call):
    """The name of the errno that a call fails with; None when it does not."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]


@pytest.fixture
def three(boot):
    """Three nodes, of which 1 and 2 can be emptied."""
    return boot(nodes=3, frames_per_node=512, movable={1, 2})


def filled(puppet, nodes, count=PAGES):
    """An area with a page on each of `nodes` in turn, page i full of i."""
    va = puppet(lambda task: task.mmap(count * PAGE))
    puppet(lambda task: task.store(va, b"".join(bytes([i]) * PAGE for i in range(count))))
    assert puppet(lambda task: task.move_pages(0, [va + i * PAGE for i in range(count)],
                                               [nodes[i % len(nodes)] for i in range(count)]))
    return va


def intact(puppet, va, count=PAGES):
    """Whether the pages of filled() are as they were."""
    return puppet(lambda task: task.load(va, count * PAGE)) == b"".join(bytes([i]) * PAGE for i in range(count))


def nodes_at(puppet, va, count=PAGES):
    return [node_at(puppet, va + i * PAGE) for i in range(count)]


# ---- offline and online ------------------------------------------------------------

def test_a_node_goes_offline_with_everything_moved_away(three):
    puppet = Puppet(three)
    va = filled(puppet, [0, 1, 2])
    three.offline(1)
    assert 1 not in nodes_at(puppet, va) and intact(puppet, va)
    zone = three.zoneinfo()[1]
    assert zone["present"] == 0 and zone["nr_free_pages"] == 0 and zone["min"] == zone["high"] == 0
    # Nobody gets memory there, and nobody may ask for it.
    more = puppet(lambda task: task.mmap(200 * PAGE))
    puppet(lambda task: [task.store64(more + i * PAGE, i) for i in range(200)])
    assert 1 not in nodes_at(puppet, more, 200)
    assert puppet(lambda task: errno_of(lambda: task.move_pages(0, [va], [1]))) == "ENODEV"
    assert puppet(lambda task: errno_of(lambda: task.mbind(va, PAGE, MPOL_BIND, [1]))) == "EINVAL"
    assert three.init.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1] == [0, 2]
    three.audit().raise_if_broken()
    three.online(1)
    assert three.zoneinfo()[1]["nr_free_pages"] == three.zoneinfo()[1]["present"] == 512
    assert puppet(lambda task: task.move_pages(0, [va], [1])) == [1]
    assert three.init.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1] == [0, 1, 2]
    assert intact(puppet, va)
    three.audit().raise_if_broken()


def test_what_can_be_offline_and_online(boot):
    machine = boot(nodes=4, frames_per_node=256, movable={1}, memoryless={3})
    assert [errno_of(lambda: machine.offline(node)) for node in (3, 4, -1, 64)] == ["EINVAL"] * 4
    for call in (machine.offline, machine.online):
        for what in (1.5, 1.0, "1", None):
            with pytest.raises(TypeError):
                call(what)
    assert [errno_of(lambda: machine.online(node)) for node in (0, 1, 3, 4, -1)] == ["EINVAL"] * 5
    machine.offline(1)
    assert errno_of(lambda: machine.offline(1)) == "EINVAL"
    machine.online(1)
    # The zero page is on node 0.
    assert errno_of(lambda: machine.offline(0)) == "EBUSY"
    machine.audit().raise_if_broken()


def test_page_tables_keep_a_node_online(boot):
    """Nothing moves them; a movable node never has any."""
    machine = boot(nodes=2, frames_per_node=512)
    puppets = [Puppet(machine) for _ in range(4)]
    for puppet in puppets:
        filled(puppet, [0, 1])
    assert machine.zoneinfo()[1]["nr_pagetable"] > 0
    assert errno_of(lambda: machine.offline(1)) == "EBUSY"
    # As it was, and of use.
    assert puppets[0](lambda task: task.move_pages(0, [task.mmap(PAGE)], [1])) == [-errno.ENOENT]
    machine.audit().raise_if_broken()


def test_without_room_elsewhere_a_node_stays(boot):
    machine = boot(nodes=2, frames_per_node=512, movable={1})
    puppet = Puppet(machine)
    va = puppet(lambda task: task.mmap(700 * PAGE))
    puppet(lambda task: [task.store64(va + i * PAGE, i) for i in range(700)])
    assert errno_of(lambda: machine.offline(1)) == "ENOMEM"
    machine.audit().raise_if_broken()
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(700)]) == list(range(700))
    puppet(lambda task: task.munmap(va + 300 * PAGE, 400 * PAGE))
    machine.offline(1)
    assert set(nodes_at(puppet, va, 300)) == {0}
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(300)]) == list(range(300))


def test_a_page_that_somebody_holds_is_waited_for_and_then_given_up(three):
    puppet, holder = Puppet(three), Puppet(three)
    va = filled(puppet, [1])
    page = page_at(puppet, va).address
    holder(lambda task: ksym.get_page(page))
    assert errno_of(lambda: three.offline(1, timeout=0.2)) == "EBUSY"
    assert intact(puppet, va)
    holder(lambda task: ksym.put_page(page))
    three.audit().raise_if_broken()
    three.offline(1)
    assert 1 not in nodes_at(puppet, va) and intact(puppet, va)


@pytest.mark.parametrize("timeout", [1e300, float("inf")])
def test_a_node_may_be_waited_for_as_long_as_one_likes(three, timeout):
    three.offline(1, timeout)
    assert three.init.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1] == [0, 2]
    three.online(1)


def test_who_chose_a_node_before_it_was_isolated_gets_nothing_there(three):
    """Whoever comes too late must not put a page table where nothing would move it away again."""
    puppet = Puppet(three)
    zone = layout.kernel().zones + layout.sizeof("Zone")

    def program(task):
        ksym.set_isolated(zone, 1)
        late = ksym.alloc_pages_nodemask(1, C["GFP_HIGHUSER_MOVABLE"] | C["__GFP_THISNODE"], 0, 1 << 1)
        ksym.set_isolated(zone, 0)
        return late
    assert puppet(program) in (0, None)
    assert three.zoneinfo()[1]["nr_free_pages"] == 512


def test_a_locked_page_is_waited_for(three):
    puppet, holder, operator = Puppet(three), Puppet(three), Puppet(three)
    va = filled(puppet, [1])
    page = page_at(puppet, va).address
    holder(lambda task: ksym.lock_page(page))
    operator.begin(lambda task: task.offline_node(1))
    assert until_waits(operator, "WAIT_PAGE_LOCK") == page
    # While it is going, nothing new comes: whoever wants the node gets another.
    more = puppet(lambda task: task.mmap(PAGE))
    puppet(lambda task: (task.mbind(more, PAGE, MPOL_PREFERRED, [1]), task.store64(more, 1)))
    assert node_at(puppet, more) != 1
    holder(lambda task: ksym.unlock_page(page))
    operator.reply()
    assert three.zoneinfo()[1]["present"] == 0 and intact(puppet, va)


@pytest.mark.parametrize("ends", ("offline", "busy"))
def test_who_may_use_only_a_node_that_is_going_has_memory(three, ends):
    """A cpuset's next one above, or what a policy leaves; and all is as before when the node stays."""
    group, walled = three.create_cpuset({1}), three.create_cpuset({0, 1}, mem_hardwall=True)
    bound, grouped = Puppet(three), Puppet(three, cpuset=group)
    kept = Puppet(three, cpuset=three.create_cpuset({1}, walled))
    holder, operator = Puppet(three), Puppet(three)
    vas = [puppet(lambda task: task.mmap(PAGES * PAGE)) for puppet in (bound, grouped, kept)]
    bound(lambda task: task.mbind(vas[0], PAGES * PAGE, MPOL_BIND, [1]))
    for puppet, va in zip((bound, grouped, kept), vas):
        puppet(lambda task: task.store64(va, 1))
        assert node_at(puppet, va) == 1
    page = page_at(bound, vas[0]).address
    holder(lambda task: ksym.lock_page(page))
    operator.begin(lambda task: errno_of(lambda: task.offline_node(1, 0.2 if ends == "busy" else 50)))
    until_waits(operator, "WAIT_PAGE_LOCK")
    last = (PAGES - 1) * PAGE
    for puppet, va, nodes in zip((bound, grouped, kept), vas, ({0, 2}, {0, 2}, {0})):
        puppet(lambda task: [task.store64(va + i * PAGE, 1) for i in range(1, PAGES - 1)])
        assert set(nodes_at(puppet, va + PAGE, PAGES - 2)) <= nodes
    # A task that begins now has a place as well.
    more = Puppet(three, cpuset=group)
    more(lambda task: task.store64(task.mmap(PAGE), 1))
    if ends == "busy":
        holder(lambda task: ksym.get_page(page))
    holder(lambda task: ksym.unlock_page(page))
    assert operator.reply() == (None if ends == "offline" else "EBUSY")
    if ends == "busy":
        holder(lambda task: ksym.put_page(page))
    for puppet, va in zip((bound, grouped, kept), vas):
        puppet(lambda task: task.store64(va + last, 1))
        assert (node_at(puppet, va + last) == 1) == (ends == "busy")
    three.audit().raise_if_broken()


def test_a_hard_wall_whose_last_memory_for_the_kernel_goes_is_the_next_ones(boot):
    machine = boot(nodes=4, frames_per_node=512, movable={1})
    walled = machine.create_cpuset({1, 3}, mem_hardwall=True)
    machine.offline(3)
    puppet = Puppet(machine, cpuset=walled)
    va = filled(puppet, [1])
    assert set(nodes_at(puppet, va)) == {1} and intact(puppet, va)
    machine.audit().raise_if_broken()


def test_policies_and_cpusets_let_go_of_a_node_that_is_gone(three):
    group = three.create_cpuset({1})
    bound, grouped = Puppet(three), Puppet(three, cpuset=group)
    va = bound(lambda task: task.mmap(PAGES * PAGE))
    bound(lambda task: (task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [1, 2]), task.set_mempolicy(MPOL_BIND, [1])))
    three.offline(1)
    nodes = bound(lambda task: (task.get_mempolicy(va, MPOL_F_ADDR)[1], task.get_mempolicy()[1]))
    assert 1 not in nodes[0] and 1 not in nodes[1] and nodes[0] and nodes[1]
    bound(lambda task: [task.store64(va + i * PAGE, 1) for i in range(PAGES)])
    assert set(nodes_at(bound, va)) == set(nodes[0])
    # A cpuset without a node left has its parent's, until its own is back.
    assert grouped(lambda task: task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1]) == [0, 2]
    more = grouped(lambda task: task.mmap(PAGE))
    grouped(lambda task: task.store64(more, 1))
    three.audit().raise_if_broken()
    three.online(1)
    assert grouped(lambda task: task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1]) == [1]
    three.audit().raise_if_broken()


def test_locked_pages_leave_like_the_others(three):
    puppet = Puppet(three)
    va = filled(puppet, [1])
    puppet(lambda task: task.mlock(va, PAGES * PAGE))
    three.offline(1)
    assert 1 not in nodes_at(puppet, va) and intact(puppet, va)
    assert three.vmstat()["nr_mlock"] == PAGES
    three.audit().raise_if_broken()


def test_a_node_can_come_and_go_many_times(three):
    puppet = Puppet(three)
    va = filled(puppet, [1, 2])
    for turn in range(10):
        three.offline(1 + turn % 2)
        three.audit(check_poison=True).raise_if_broken()
        three.online(1 + turn % 2)
        puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [1, 2], MPOL_MF_MOVE))
        assert intact(puppet, va)
    three.audit().raise_if_broken()


# ---- a device's memory ---------------------------------------------------------------

def bank(puppet, va):
    """The node of the bank whose frame is mapped at an address."""
    return (pfn_at(puppet, va) - layout.kernel().max_pfn) // C["DEVICE_FRAMES"]


def device_area(puppet, node, count=4):
    va = puppet(lambda task: task.mmap_device(count * PAGE, node))
    puppet(lambda task: task.store(va, b"".join(bytes([i + 1]) * PAGE for i in range(count))))
    return va


def test_a_devices_memory_has_no_pages_to_move_one_by_one(three):
    puppet = Puppet(three)
    va = device_area(puppet, 1)
    assert [bank(puppet, va + i * PAGE) for i in range(4)] == [1] * 4
    assert three.init.move_pages(puppet.pid, [va], [0]) == [-errno.EFAULT]
    assert three.init.move_pages(puppet.pid, [va]) == [-errno.EFAULT]
    assert puppet(lambda task: task.mlock(va, PAGE)) is None and mm_of(puppet).locked_vm == 0
    assert puppet(lambda task: errno_of(lambda: task.get_mempolicy(va, MPOL_F_NODE | MPOL_F_ADDR))) == "EFAULT"
    assert puppet(lambda task: task.mbind(va, 4 * PAGE, MPOL_BIND, [2], MPOL_MF_MOVE)) is None
    assert bank(puppet, va) == 1
    three.audit().raise_if_broken()


def test_migrate_pages_has_the_device_take_its_memory_along(three):
    """Lines 1102-1118, the last area included."""
    puppet = Puppet(three)
    normal = filled(puppet, [1])
    first, last = device_area(puppet, 1), device_area(puppet, 2, 2)
    assert puppet(lambda task: task.migrate_pages(0, [1, 2], [0])) == 0
    assert [bank(puppet, first + i * PAGE) for i in range(4)] + [bank(puppet, last)] == [0] * 5
    assert puppet(lambda task: task.load(first, 4 * PAGE)) == b"".join(bytes([i + 1]) * PAGE for i in range(4))
    assert intact(puppet, normal)
    three.audit().raise_if_broken()


def test_a_store_to_a_devices_memory_while_it_moves_is_not_lost(three):
    puppet = Puppet(three)
    va, pid = device_area(puppet, 0, 8), puppet.pid
    puppet(lambda task: task.store(va, bytes(8 * PAGE)))
    puppet.begin(lambda task: [task.fetch_add64(va + (i % 8) * PAGE, 1) for i in range(20000)] and None)
    mover = Puppet(three)
    mover(lambda task: [task.migrate_pages(pid, [turn % 3], [(turn + 1) % 3]) for turn in range(200)] and None)
    puppet.reply()
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(8)]) == [2500] * 8
    three.audit().raise_if_broken()


def test_a_full_bank_is_enomem(three):
    puppet = Puppet(three)
    va = device_area(puppet, 0, C["DEVICE_FRAMES"])
    other = device_area(puppet, 1, 4)
    assert puppet(lambda task: errno_of(lambda: task.mmap_device(PAGE, 0))) == "ENOMEM"
    assert puppet(lambda task: errno_of(lambda: task.migrate_pages(0, [1], [0]))) == "ENOMEM"
    assert bank(puppet, other) == 1
    puppet(lambda task: task.munmap(va + PAGE, 4 * PAGE))
    assert puppet(lambda task: task.migrate_pages(0, [1], [0])) == 0
    assert puppet(lambda task: task.load(other, 4 * PAGE)) == b"".join(bytes([i + 1]) * PAGE for i in range(4))
    three.audit().raise_if_broken()
    assert [errno_of(lambda: three.init.mmap_device(*bad)) for bad in ((0, 0), (PAGE, 3), (PAGE, -1), (1 << 50, 0))] == \
        ["EINVAL", "EINVAL", "EINVAL", "ENOMEM"]


def test_a_devices_memory_is_not_forked_grown_or_leaked(three):
    puppet = Puppet(three)
    va = device_area(puppet, 0, 6)
    child = puppet.fork()
    assert child(lambda task: errno_of(lambda: task.munmap(va, PAGE))) is None
    assert bank(puppet, va) == 0
    assert puppet(lambda task: errno_of(lambda: task.mremap(va, 6 * PAGE, 7 * PAGE, MREMAP_MAYMOVE))) == "EFAULT"
    to = puppet(lambda task: task.mremap(va + 2 * PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | 2, 0x10_0000_0000))
    puppet(lambda task: (task.mprotect(to, PAGE, PROT_READ), task.mprotect(to, PAGE, RW), task.store(to, b"again")))
    assert puppet(lambda task: task.load(to, 5) + task.load(to + PAGE, 1)) == b"again\4"
    three.audit().raise_if_broken()
    puppet.exit(), child.exit()
    assert layout.kernel().device_free[0] == (1 << C["DEVICE_FRAMES"]) - 1
    three.audit().raise_if_broken()


def test_the_audit_sees_a_devices_frame_that_is_mapped_twice(boot):
    machine = boot(nodes=2, frames_per_node=256)
    puppet = Puppet(machine)
    va = device_area(puppet, 0, 2)
    own = pte_of(puppet, va)
    set_pte(puppet, va, pte_of(puppet, va + PAGE))
    assert "device" in kinds(machine.audit(strict_tlb=False))
    set_pte(puppet, va, own)
    count = counter(machine)
    assert machine.audit(strict_tlb=False).clean and count("pgfault") == 0
