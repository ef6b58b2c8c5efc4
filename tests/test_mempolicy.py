# SPDX-License-Identifier: GPL-2.0-only
"""Memory policies (mm/mempolicy.c): where pages come from, what mbind moves, which errno says
what; cpusets, which bound all of it; migrate_pages(2).  On real processes."""
import ctypes
import errno
import itertools
import random

import pytest

from helpers import C, PAGE, Mapper, Puppet, counter, errno_of, free_frames, mm_of, node_at, pfn_at, until_waits, vmas
from shmkern import (MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MPOL_BIND, MPOL_DEFAULT, MPOL_F_ADDR, MPOL_F_MEMS_ALLOWED, MPOL_F_NODE, MPOL_F_RELATIVE_NODES,
                     MPOL_F_STATIC_NODES, MPOL_INTERLEAVE, MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, MPOL_MF_STRICT,
                     MPOL_PREFERRED, PROT_READ, PROT_WRITE, layout, worker)
from shmkern.kallsyms import ksym, symbol_address

pytestmark = pytest.mark.timeout(60)

RW = PROT_READ | PROT_WRITE
BAD = 0x7f_ffff_0000_0000
PAGES = 12


@pytest.fixture
def four(boot):
    """A machine of four nodes."""
    return boot(nodes=4, frames_per_node=512)


def touch(puppet, va, count=PAGES):
    """Stores to `count` pages; the node of each."""
    puppet(lambda task: [task.store64(va + i * PAGE, i + 1) for i in range(count)])
    return nodes_at(puppet, va, count)


def nodes_at(puppet, va, count=PAGES):
    return [node_at(puppet, va + i * PAGE) for i in range(count)]


def area(puppet, count=PAGES):
    return puppet(lambda task: task.mmap(count * PAGE))


def home(puppet):
    """The node of a task's CPU."""
    return worker.slot(puppet.cpu).numa_node


# ---- at allocation -------------------------------------------------------------

def test_without_a_policy_memory_is_local(four):
    for _ in range(4):
        puppet = Puppet(four)
        assert set(touch(puppet, area(puppet))) == {home(puppet)}


def test_preferred_memory_comes_from_that_node_while_it_lasts(four):
    puppet = Puppet(four)
    node = (home(puppet) + 2) % 4
    va = area(puppet, 600)
    puppet(lambda task: task.mbind(va, 600 * PAGE, MPOL_PREFERRED, [node]))
    seen = touch(puppet, va, 600)
    assert set(seen[:400]) == {node}
    # Then it spills over to the nearest: the lower neighbour is behind on a ring.
    assert set(seen) == {node, (node + 1) % 4}
    # Preferring no node is the local one.
    other = area(puppet)
    puppet(lambda task: task.mbind(other, PAGES * PAGE, MPOL_PREFERRED))
    assert set(touch(puppet, other)) == {home(puppet)}


def test_bound_memory_comes_from_those_nodes_or_not_at_all(four):
    puppet = Puppet(four)
    nodes = sorted({0, 1, 2, 3} - {home(puppet)})[:2]
    va = area(puppet, 1100)
    puppet(lambda task: task.mbind(va, 1100 * PAGE, MPOL_BIND, nodes))

    def fill(task):
        done = 0
        try:
            for done in range(1100):
                task.store64(va + done * PAGE, done)
        except OSError as error:
            return done, error.errno
        return done, 0

    done, failed = puppet(fill)
    assert failed == errno.ENOMEM and 800 < done < 1024
    assert set(nodes_at(puppet, va, done)) == set(nodes)
    assert four.zoneinfo()[home(puppet)]["nr_free_pages"] > 400
    four.audit().raise_if_broken()


def test_interleaved_areas_spread_page_by_page_whoever_touches_them(four):
    """By the page's place in the area, so that two tasks agree, and from any end."""
    puppet = Puppet(four)
    va = area(puppet)
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [0, 2, 3]))
    thread = puppet.clone()
    for index in reversed(range(PAGES)):
        (thread if index % 2 else puppet)(lambda task: task.store64(va + index * PAGE, 1))
    seen = nodes_at(puppet, va)
    first = [0, 2, 3].index(seen[0])
    assert seen == list(itertools.islice(itertools.cycle([0, 2, 3]), first, first + PAGES))


def test_a_tasks_policy_interleaves_by_turns_and_says_whose_turn_it_is(four):
    puppet = Puppet(four)
    va, other = area(puppet), area(puppet)
    touch(puppet, other, 1)
    puppet(lambda task: task.set_mempolicy(MPOL_INTERLEAVE, [1, 3]))
    assert puppet(lambda task: task.get_mempolicy(0, MPOL_F_NODE)) == (1, [1, 3])
    # The same area's index does not matter: an area without a policy is interleaved by offset
    # too, once its task's policy says so.
    seen = touch(puppet, va)
    assert sorted(seen) == [1] * 6 + [3] * 6 and all(a != b for a, b in zip(seen, seen[1:]))
    puppet(lambda task: task.set_mempolicy(MPOL_DEFAULT))
    assert puppet(lambda task: errno_of(lambda: task.get_mempolicy(0, MPOL_F_NODE))) == "EINVAL"


def test_an_areas_policy_goes_before_its_tasks(four):
    puppet = Puppet(four)
    bound, free = area(puppet), puppet(lambda task: task.mmap(PAGES * PAGE, RW, 0x32, 0x10_0000_0000))
    puppet(lambda task: (task.set_mempolicy(MPOL_BIND, [1]), task.mbind(bound, PAGES * PAGE, MPOL_BIND, [2])))
    assert set(touch(puppet, bound)) == {2} and set(touch(puppet, free)) == {1}
    # A fork has both.
    child = puppet.fork()
    assert child(lambda task: (task.get_mempolicy(), task.get_mempolicy(bound, MPOL_F_ADDR))) == \
        ((MPOL_BIND, [1]), (MPOL_BIND, [2]))
    assert set(touch(child, bound)) == {2} and set(touch(child, free)) == {1}
    four.audit().raise_if_broken()


def test_copy_on_write_follows_the_policy(four):
    puppet = Puppet(four)
    va = area(puppet)
    touch(puppet, va)
    node = (home(puppet) + 1) % 4
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [node]))
    child = puppet.fork()
    assert set(touch(child, va)) == {node}
    # From the zero page, too.
    fresh = area(puppet)
    puppet(lambda task: (task.mbind(fresh, PAGES * PAGE, MPOL_BIND, [3]), task.load(fresh, PAGES * PAGE)))
    assert set(touch(puppet, fresh)) == {3}


def test_page_tables_follow_the_tasks_policy(four):
    puppet = Puppet(four)
    node = (home(puppet) + 1) % 4
    puppet(lambda task: task.set_mempolicy(MPOL_BIND, [node]))
    before = [zone["nr_pagetable"] for zone in four.zoneinfo()]
    puppet(lambda task: task.store64(task.mmap(PAGE, RW, 0x32, 0x1000_0000_0000), 1))
    grown = [zone["nr_pagetable"] - old for zone, old in zip(four.zoneinfo(), before)]
    assert grown[node] == sum(grown) >= 3


# ---- what a policy is ------------------------------------------------------------

def test_policies_split_areas_and_merge_them_again(four):
    """Linux commit 9d8cebd4bcd7: else each mbind would leave its cuts behind."""
    puppet = Puppet(four)
    va = area(puppet)
    puppet(lambda task: task.mbind(va + 4 * PAGE, 4 * PAGE, MPOL_BIND, [1]))
    assert [(end - start) // PAGE for start, end, _prot in vmas(puppet)] == [4, 4, 4]
    for page, mode in ((0, MPOL_DEFAULT), (4, MPOL_BIND), (7, MPOL_BIND), (8, MPOL_DEFAULT)):
        at = va + page * PAGE
        assert puppet(lambda task: task.get_mempolicy(at, MPOL_F_ADDR))[0] == mode
    four.audit().raise_if_broken()
    # Another policy that says the same.
    puppet(lambda task: task.mbind(va + 8 * PAGE, 4 * PAGE, MPOL_BIND, [1]))
    assert [(end - start) // PAGE for start, end, _prot in vmas(puppet)] == [4, 8]
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_DEFAULT))
    assert [(end - start) // PAGE for start, end, _prot in vmas(puppet)] == [PAGES]
    four.audit().raise_if_broken()


def test_a_policy_moves_with_its_area_and_outlives_a_cut(four):
    puppet = Puppet(four)
    va, to = area(puppet), 0x10_0000_0000
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [1, 2]))
    puppet(lambda task: task.munmap(va + 4 * PAGE, PAGE))
    puppet(lambda task: task.mremap(va, 4 * PAGE, 8 * PAGE, 3, to))
    puppet(lambda task: task.mprotect(to, PAGE, PROT_READ))
    for at in (to, to + 7 * PAGE, va + 5 * PAGE):
        assert puppet(lambda task: task.get_mempolicy(at, MPOL_F_ADDR)) == (MPOL_INTERLEAVE, [1, 2])
    four.audit().raise_if_broken()
    puppet.exit()
    four.audit().raise_if_broken()


def test_the_errnos_of_mbind_in_their_order(four):
    user = Puppet(four, uid=1000)
    va = area(user)
    hole = user(lambda task: task.mmap(3 * PAGE, RW, 0x32, 0x10_0000_0000))
    user(lambda task: task.munmap(hole + PAGE, PAGE))

    def failures(task):
        return [errno_of(call) for call in (
            lambda: task.mbind(va, PAGE, MPOL_BIND, [1], 8),
            lambda: task.mbind(va, PAGE, MPOL_BIND, [1], MPOL_MF_MOVE_ALL),
            lambda: task.mbind(va + 1, PAGE, MPOL_BIND, [1]),
            lambda: task.mbind(va, (1 << 64) - 2 * PAGE, MPOL_BIND, [1]),
            lambda: task.mbind(va, 0, MPOL_BIND, []),
            lambda: task.mbind(va, PAGE, 4, [1]),
            lambda: task.mbind(va, PAGE, MPOL_BIND | MPOL_F_STATIC_NODES | MPOL_F_RELATIVE_NODES, [1]),
            lambda: task.mbind(va, PAGE, MPOL_DEFAULT, [1]),
            lambda: task.mbind(va, PAGE, MPOL_BIND, []),
            lambda: task.mbind(va, PAGE, MPOL_INTERLEAVE, []),
            lambda: task.mbind(va, PAGE, MPOL_PREFERRED | MPOL_F_STATIC_NODES, []),
            lambda: task.mbind(va, PAGE, MPOL_BIND, [17]),
            lambda: task.mbind(va - (1 << 30), PAGE, MPOL_BIND, [1]),
            lambda: task.mbind(hole, 3 * PAGE, MPOL_BIND, [1]),
            lambda: task.mbind(hole - PAGE, 2 * PAGE, MPOL_BIND, [1]),
            lambda: task.mbind(hole + 2 * PAGE, 2 * PAGE, MPOL_BIND, [1]),
            lambda: task.mbind(hole, 3 * PAGE, MPOL_DEFAULT))]

    assert user(failures) == ["EINVAL", "EPERM", "EINVAL", "EINVAL", None, "EINVAL", "EINVAL", "EINVAL", "EINVAL",
                              "EINVAL", "EINVAL", "EINVAL", "EFAULT", "EFAULT", "EFAULT", "EFAULT", None]
    assert user(lambda task: task.get_mempolicy(hole, MPOL_F_ADDR)) == (MPOL_DEFAULT, [])
    four.audit().raise_if_broken()


def test_without_memory_for_a_policy_nothing_changes(four):
    puppet = Puppet(four)
    va = area(puppet)

    def program(task):
        seen = []
        for nth in range(1, 10):
            task.fail_nth(nth)
            seen.append(errno_of(lambda: task.mbind(va + PAGE, PAGE, MPOL_BIND, [1])))
            if task.fail_nth(0):
                return seen
            assert task.get_mempolicy(va + PAGE, MPOL_F_ADDR)[0] == MPOL_DEFAULT
        return seen

    seen = puppet(program)
    # The policy, and two cuts.
    assert seen == ["ENOMEM"] * 3 + [None]
    puppet(lambda task: task.fail_nth(1))
    assert puppet(lambda task: errno_of(lambda: task.set_mempolicy(MPOL_BIND, [1]))) == "ENOMEM"
    four.audit().raise_if_broken()


@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5, 6])
def test_a_fork_without_memory_for_policies_leaves_none_behind(four, nth):
    puppet = Puppet(four)
    va = area(puppet)
    puppet(lambda task: (task.set_mempolicy(MPOL_BIND, [1]), task.mbind(va, PAGE, MPOL_BIND, [2]),
                         task.store64(va, 1), task.fail_nth(nth)))
    with pytest.raises(OSError):
        puppet.fork()
    puppet(lambda task: task.fail_nth(0))
    four.audit().raise_if_broken()


def test_get_mempolicy_says_what_was_set(four):
    puppet = Puppet(four)
    va = area(puppet)
    node = touch(puppet, va, 1)[0]

    def program(task):
        seen = [task.get_mempolicy()]
        for mode, nodes in ((MPOL_PREFERRED, [2]), (MPOL_PREFERRED, []), (MPOL_BIND, [1, 3]),
                            (MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, [0, 1, 9]),
                            (MPOL_BIND | MPOL_F_RELATIVE_NODES, [0, 5])):
            task.set_mempolicy(mode, nodes)
            seen.append(task.get_mempolicy())
        return seen, [errno_of(call) for call in (
            lambda: task.get_mempolicy(va),
            lambda: task.get_mempolicy(0, 8),
            lambda: task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED | MPOL_F_NODE),
            lambda: task.get_mempolicy(va - (1 << 30), MPOL_F_ADDR),
            lambda: task.get_mempolicy(0, MPOL_F_NODE))], \
            task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED), task.get_mempolicy(va + 77, MPOL_F_ADDR | MPOL_F_NODE)[0]

    seen, failed, allowed, where = puppet(program)
    assert seen == [(MPOL_DEFAULT, []), (MPOL_PREFERRED, [2]), (MPOL_PREFERRED, []), (MPOL_BIND, [1, 3]),
                    (MPOL_INTERLEAVE | MPOL_F_STATIC_NODES, [0, 1]), (MPOL_BIND | MPOL_F_RELATIVE_NODES, [0, 1])]
    assert failed == ["EINVAL", "EINVAL", "EINVAL", "EFAULT", "EINVAL"]
    assert allowed == (0, [0, 1, 2, 3]) and where == node


def test_masks_come_from_the_tasks_memory_and_go_there(four):
    """get_nodes and copy_nodes_to_user: any number of bits up to a page's, zero beyond."""
    puppet = Puppet(four)
    va = area(puppet)

    def program(task):
        at = task.mmap(2 * PAGE, RW, 0x32, 0x10_0000_0000)
        task.store64(at, 0b0110)
        task.store(at + 8, bytes(512))
        seen = [errno_of(call) for call in (
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 65, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 3, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 2, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 1, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 4097, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, PAGE * 8 + 1, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, PAGE * 8 + 2, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 0, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_PREFERRED, 0, 0, 0),
            lambda: task.sys_mbind(va, PAGE, MPOL_BIND, BAD, 65, 0),
            lambda: task.sys_set_mempolicy(MPOL_BIND, BAD, 65),
            lambda: task.sys_set_mempolicy(-1, at, 65),
            lambda: task.sys_mbind(va, PAGE, -1, at, 65, 0))]
        task.store64(at + 8, 1 << 60)
        seen.append(errno_of(lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 129, 0)))
        # Only the bits that are said to be there count.
        seen.append(errno_of(lambda: task.sys_mbind(va, PAGE, MPOL_BIND, at, 125, 0)))
        task.sys_mbind(va, PAGE, MPOL_BIND, at, 65, 0)
        task.store(at, b"\xff" * 64)
        task.sys_get_mempolicy(at, at + 8, 129, va, MPOL_F_ADDR)
        out = task.load(at, 32)
        more = [errno_of(call) for call in (
            lambda: task.sys_get_mempolicy(at, at + 8, 63, va, MPOL_F_ADDR),
            lambda: task.sys_get_mempolicy(0, 0, 0, va, MPOL_F_ADDR),
            lambda: task.sys_get_mempolicy(BAD, 0, 0, va, MPOL_F_ADDR),
            lambda: task.sys_get_mempolicy(at, BAD, 65, va, MPOL_F_ADDR),
            lambda: task.sys_get_mempolicy(at, at, PAGE * 8 + 2, va, MPOL_F_ADDR))]
        return seen, out, more

    seen, out, more = puppet(program)
    assert seen == [None, None, "EINVAL", "EINVAL", None, None, "EINVAL", "EINVAL", None, "EFAULT", "EFAULT",
                    "EINVAL", "EINVAL", "EINVAL", None]
    assert out == MPOL_BIND.to_bytes(4, "little") + b"\xff" * 4 + (0b0110).to_bytes(8, "little") + bytes(8) + b"\xff" * 8
    assert more == ["EINVAL", None, "EFAULT", "EFAULT", "EINVAL"]


# ---- of shared memory --------------------------------------------------------------

def shared_area(puppet, count=PAGES):
    return puppet(lambda task: task.mmap(count * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS))


def policies_at(puppet, va, count=PAGES):
    return puppet(lambda task: [task.get_mempolicy(va + i * PAGE, MPOL_F_ADDR) for i in range(count)])


def test_a_policy_of_shared_memory_is_everybodys_and_each_gets_memory_by_it(four):
    """mpol_set_shared_policy: it is the object's, whoever set it and through which area."""
    setter = Puppet(four)
    va = shared_area(setter)
    other = setter.fork()
    setter(lambda task: task.mbind(va, 4 * PAGE, MPOL_BIND, [2]))
    other(lambda task: task.mbind(va + 8 * PAGE, 4 * PAGE, MPOL_BIND, [3]))
    assert policies_at(setter, va) == policies_at(other, va) == \
        [(MPOL_BIND, [2])] * 4 + [(MPOL_DEFAULT, [])] * 4 + [(MPOL_BIND, [3])] * 4
    # Where there is none it is the task's.
    for puppet, node in ((setter, 0), (other, 1)):
        puppet(lambda task: task.set_mempolicy(MPOL_BIND, [node]))
        pages = range(node, PAGES, 2)
        puppet(lambda task: [task.store64(va + page * PAGE, page) for page in pages])
    assert other(lambda task: [task.load64(va + page * PAGE) for page in range(PAGES)]) == list(range(PAGES))
    assert nodes_at(other, va) == [2] * 4 + [0, 1] * 2 + [3] * 4
    assert other(lambda task: task.get_mempolicy(va, MPOL_F_ADDR | MPOL_F_NODE)) == (2, [2])
    # The areas need not be cut for it.
    assert len(vmas(setter)) == len(vmas(other)) == 1
    four.audit().raise_if_broken()


@pytest.mark.parametrize("how", ["munmap", "exit"])
def test_a_policy_of_shared_memory_outlives_the_area_that_set_it(four, how):
    keeper = Puppet(four)
    va = shared_area(keeper)
    setter = keeper.fork()
    setter(lambda task: task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [1, 3]))
    setter.exit() if how == "exit" else setter(lambda task: task.munmap(va, PAGES * PAGE))
    assert policies_at(keeper, va) == [(MPOL_INTERLEAVE, [1, 3])] * PAGES
    # By the page's place in the object, whoever touches it, from any end.
    keeper(lambda task: [task.store64(va + i * PAGE, 1) for i in reversed(range(PAGES))])
    assert nodes_at(keeper, va) == [1, 3] * (PAGES // 2)
    # And moves along.
    to = keeper(lambda task: task.mremap(va, 6 * PAGE, 8 * PAGE, 1))
    assert policies_at(keeper, to, 6) == [(MPOL_INTERLEAVE, [1, 3])] * 6
    keeper.exit()
    four.audit().raise_if_broken()


def test_policies_of_shared_memory_are_cut_and_replaced_page_by_page(four):
    """shared_policy_replace, against a list."""
    puppet, rng = Puppet(four), random.Random(6)
    va, said = shared_area(puppet), [(MPOL_DEFAULT, [])] * PAGES
    for turn in range(60):
        first = rng.randrange(PAGES)
        count = rng.randint(1, PAGES - first)
        mode, nodes = rng.choice([(MPOL_DEFAULT, []), (MPOL_BIND, [1]), (MPOL_BIND, [2, 3]), (MPOL_PREFERRED, [0])])
        puppet(lambda task: task.mbind(va + first * PAGE, count * PAGE, mode, nodes))
        said[first:first + count] = [(mode, nodes)] * count
        assert policies_at(puppet, va) == said
        if turn % 8 == 0:
            four.audit().raise_if_broken()


def test_without_memory_for_a_policy_of_shared_memory_nothing_changes(four):
    puppet = Puppet(four)
    va = shared_area(puppet)
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [3]))

    def program(task):
        seen = []
        for nth in range(1, 12):
            task.fail_nth(nth)
            seen.append(errno_of(lambda: task.mbind(va + PAGE, PAGE, MPOL_BIND, [1])))
            if task.fail_nth(0):
                return seen
        return seen

    # The policy, two cuts, and for the object: what may be cut off, the range, its policy.
    assert puppet(program) == ["ENOMEM"] * 6 + [None]
    assert policies_at(puppet, va) == [(MPOL_BIND, [1 if page == 1 else 3]) for page in range(PAGES)]
    assert len(vmas(puppet)) == 1
    four.audit().raise_if_broken()


def test_mbind_of_private_and_shared_memory_in_one_call(four):
    """What the area has and what the object has are two copies: the one is rebound, and goes with the
    area (Linux commit 869833f2c5c6)."""
    group = four.create_cpuset({0, 1})
    puppet, at = Puppet(four, cpuset=group), 0x10_0000_0000
    puppet(lambda task: (task.mmap(2 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | C["MAP_FIXED"], at),
                         task.mmap(2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS | C["MAP_FIXED"], at + 2 * PAGE)))
    other = puppet.fork()
    puppet(lambda task: task.mbind(at, 4 * PAGE, MPOL_BIND, [1]))
    assert policies_at(puppet, at, 4) == [(MPOL_BIND, [1])] * 4
    assert policies_at(other, at, 4) == [(MPOL_DEFAULT, [])] * 2 + [(MPOL_BIND, [1])] * 2
    four.attach(0, other.pid)
    four.set_mems(group, {2, 3})
    assert policies_at(puppet, at, 4) == [(MPOL_BIND, [3])] * 2 + [(MPOL_BIND, [1])] * 2
    # Who may use none of the nodes does without; the other may.
    assert set(touch(puppet, at, 3)) <= {2, 3}
    other(lambda task: task.store64(at + 3 * PAGE, 1))
    assert node_at(other, at + 3 * PAGE) == 1
    four.audit().raise_if_broken()


def test_mbind_moves_shared_memory_by_the_policy_of_the_object(four):
    puppet = Puppet(four)
    va = shared_area(puppet)
    other = puppet.fork()
    puppet(lambda task: task.set_mempolicy(MPOL_BIND, [0]))
    assert set(touch(puppet, va)) == {0}
    other(lambda task: (task.load(va, PAGES * PAGE), task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [1, 2, 3])))
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_INTERLEAVE, [1, 2, 3], MPOL_MF_MOVE_ALL | MPOL_MF_STRICT))
    assert nodes_at(puppet, va) == [1, 2, 3] * (PAGES // 3)
    assert other(lambda task: [task.load64(va + i * PAGE) for i in range(PAGES)]) == list(range(1, PAGES + 1))
    four.audit().raise_if_broken()


def test_a_policy_of_shared_memory_may_change_while_others_allocate_by_it(four):
    """mpol_shared_policy_lookup takes a reference: the policy may be replaced and freed meanwhile."""
    setter, count = Puppet(four), 600
    va = shared_area(setter, count)
    others = [setter.fork() for _ in range(2)]
    for who, other in enumerate(others):
        pages = range(who, count, 2)
        other.begin(lambda task: [task.store64(va + page * PAGE, page) for page in pages])
    turns = itertools.cycle(([1], [2], []))
    while not all(other.is_done() for other in others):
        batch = [next(turns) for _ in range(30)]
        setter(lambda task: [task.mbind(va + i * PAGE, (count - i) * PAGE, MPOL_BIND if nodes else MPOL_DEFAULT, nodes)
                             for i, nodes in enumerate(batch)])
    for other in others:
        other.reply()
    assert setter(lambda task: [task.load64(va + i * PAGE) for i in range(count)]) == list(range(count))
    assert set(nodes_at(setter, va, count)) <= {1, 2, *map(home, others)}
    four.audit().raise_if_broken()


def test_shared_memory_comes_back_from_swap_by_its_policy(boot, tmp_path):
    machine = boot(nodes=2, frames_per_node=256)
    machine.swapon(tmp_path / "swap", 1000)
    puppet = Puppet(machine)
    va = shared_area(puppet, 700)
    puppet(lambda task: [task.store64(va + i * PAGE, i) for i in range(700)])
    setter = puppet.fork()
    setter(lambda task: task.mbind(va, 700 * PAGE, MPOL_BIND, [1]))
    came, page = [], 0
    while len(came) < 10:       # Of so many pages some hundred are in swap, but which is reclaim's business.
        at, count = va + page * PAGE, counter(machine)
        assert puppet(lambda task: task.load64(at)) == page
        if count("pgmajfault"):
            came.append(node_at(puppet, at))
        page += 1
    assert set(came) == {1}


# ---- mbind moves pages -----------------------------------------------------------

def test_strict_finds_a_page_in_the_wrong_place_and_changes_nothing(four):
    puppet = Puppet(four)
    va = area(puppet)
    node = touch(puppet, va)[0]
    other = (node + 1) % 4
    assert puppet(lambda task: errno_of(lambda: task.mbind(va, PAGES * PAGE, MPOL_BIND, [other], MPOL_MF_STRICT))) == "EIO"
    assert puppet(lambda task: task.get_mempolicy(va, MPOL_F_ADDR)) == (MPOL_DEFAULT, [])
    assert puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [node, other], MPOL_MF_STRICT)) is None
    # Without it what is there stays where it is.
    assert puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [other])) is None
    assert set(nodes_at(puppet, va)) == {node}
    # The zero page counts for nothing.
    fresh = area(puppet)
    puppet(lambda task: task.load(fresh, PAGES * PAGE))
    assert puppet(lambda task: task.mbind(fresh, PAGES * PAGE, MPOL_BIND, [3], MPOL_MF_STRICT)) is None


@pytest.mark.parametrize("mode, nodes", [(MPOL_BIND, [1]), (MPOL_BIND, [2, 3]), (MPOL_PREFERRED, [2]),
                                         (MPOL_INTERLEAVE, [0, 1, 3])])
def test_move_brings_the_pages_to_the_policys_nodes_with_their_contents(four, mode, nodes):
    puppet = Puppet(four)
    va = area(puppet)
    touch(puppet, va)
    puppet(lambda task: task.move_pages(0, [va + i * PAGE for i in range(PAGES)], [i % 4 for i in range(PAGES)]))
    before = nodes_at(puppet, va)
    puppet(lambda task: task.mbind(va, PAGES * PAGE, mode, nodes, MPOL_MF_MOVE | MPOL_MF_STRICT))
    after = nodes_at(puppet, va)
    assert set(after) <= set(nodes)
    # What was on one of them already did not move.
    assert all(new == old for new, old in zip(after, before) if old in nodes)
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(PAGES)]) == list(range(1, PAGES + 1))
    four.audit().raise_if_broken()


def test_pages_of_another_task_are_moved_with_move_all_only(four):
    puppet = Puppet(four)
    va = area(puppet)
    node = touch(puppet, va)[0]
    other = (node + 1) % 4
    child = puppet.fork()
    child(lambda task: task.store64(va, 99))
    # Linux commits a7f40cfe3b7a and d883544515aa: what can be moved is, and then EIO tells.
    flags = MPOL_MF_MOVE | MPOL_MF_STRICT
    assert puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [other], MPOL_MF_MOVE)) is None
    assert puppet(lambda task: errno_of(lambda: task.mbind(va, PAGES * PAGE, MPOL_BIND, [other], flags))) == "EIO"
    assert nodes_at(puppet, va) == [other] + [node] * (PAGES - 1)
    assert puppet(lambda task: task.get_mempolicy(va, MPOL_F_ADDR)) == (MPOL_BIND, [other])
    flags = MPOL_MF_MOVE_ALL | MPOL_MF_STRICT
    assert puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [other], flags)) is None
    assert nodes_at(puppet, va) == [other] * PAGES and nodes_at(child, va)[1:] == [other] * (PAGES - 1)
    four.audit().raise_if_broken()


def test_a_busy_page_is_eio_when_strict(four):
    puppet, holder = Puppet(four), Puppet(four)
    va = area(puppet)
    node = touch(puppet, va)[0]
    page = layout.kernel().mem_map + pfn_at(puppet, va) * layout.sizeof("Page")
    holder(lambda task: ksym.get_page(page))
    for flags, failed in ((MPOL_MF_MOVE, None), (MPOL_MF_MOVE | MPOL_MF_STRICT, "EIO")):
        assert puppet(lambda task: errno_of(lambda: task.mbind(va, PAGE, MPOL_BIND, [(node + 1) % 4], flags))) == failed
    holder(lambda task: ksym.put_page(page))
    four.audit().raise_if_broken()


def test_a_full_node_leaves_the_pages_where_they_were(four):
    puppet, hog = Puppet(four), Puppet(four)
    va, big = area(puppet), area(hog, 600)
    node = touch(puppet, va)[0]
    full = (node + 1) % 4
    hog(lambda task: task.mbind(big, 600 * PAGE, MPOL_BIND, [full]))
    assert hog(lambda task: errno_of(lambda: [task.store64(big + i * PAGE, i) for i in range(600)])) == "ENOMEM"
    flags = MPOL_MF_MOVE | MPOL_MF_STRICT
    assert puppet(lambda task: errno_of(lambda: task.mbind(va, PAGES * PAGE, MPOL_BIND, [full], flags))) == "EIO"
    assert set(nodes_at(puppet, va)) == {node}
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(PAGES)]) == list(range(1, PAGES + 1))
    four.audit().raise_if_broken()


# ---- migrate_pages ---------------------------------------------------------------

def spread(puppet):
    """An area with three pages on each of four nodes."""
    va = area(puppet)
    touch(puppet, va)
    puppet(lambda task: task.move_pages(0, [va + i * PAGE for i in range(PAGES)], [i % 4 for i in range(PAGES)]))
    return va


@pytest.mark.parametrize("old, new", [
    ([0], [1]), ([0, 1], [2, 3]), ([0, 1], [1, 0]), ([0, 1, 2, 3], [1]), ([0, 1, 2, 3], [2, 3]),
    ([1, 2], [2, 3]), ([0, 1, 2], [1, 2, 3]), ([3], [3]), ([], [1]), ([0, 1], [])])
def test_pages_go_from_nodes_to_nodes_and_stay_together(four, old, new):
    """Node number i of the old set goes to number i of the new one, modulo its size."""
    puppet = Puppet(four)
    va = spread(puppet)

    def goes(node):
        return sorted(new)[sorted(old).index(node) % len(new)] if node in old and new else node

    # Sets are sorted: [1, 0] is [0, 1], and nothing moves.
    expected = [goes(i % 4) for i in range(PAGES)]
    assert puppet(lambda task: task.migrate_pages(0, old, new)) == 0
    assert nodes_at(puppet, va) == expected
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(PAGES)]) == list(range(1, PAGES + 1))
    four.audit().raise_if_broken()


def test_migrate_pages_counts_what_stays(four):
    puppet, holder = Puppet(four), Puppet(four)
    va = spread(puppet)
    page = layout.kernel().mem_map + pfn_at(puppet, va) * layout.sizeof("Page")
    holder(lambda task: ksym.get_page(page))
    assert puppet(lambda task: task.migrate_pages(0, [0, 1], [2])) == 1
    assert nodes_at(puppet, va) == [0, 2, 2, 3] + [2, 2, 2, 3] * 2
    holder(lambda task: ksym.put_page(page))


def test_migrate_pages_never_spills_to_another_node(four):
    """Linux commit b360edb43f8e: a full node is ENOMEM, not some other node."""
    puppet, hog = Puppet(four), Puppet(four)
    va, big = spread(puppet), area(hog, 600)
    hog(lambda task: task.mbind(big, 600 * PAGE, MPOL_BIND, [3]))
    hog(lambda task: errno_of(lambda: [task.store64(big + i * PAGE, i) for i in range(600)]))
    assert puppet(lambda task: errno_of(lambda: task.migrate_pages(0, [0], [3]))) == "ENOMEM"
    assert nodes_at(puppet, va) == [0, 1, 2, 3] * 3
    four.audit().raise_if_broken()


def test_shared_pages_follow_with_cap_sys_nice_only(four):
    puppet = Puppet(four, uid=1000)
    va = spread(puppet)
    child = puppet.fork()
    assert puppet(lambda task: task.migrate_pages(0, [0, 1, 2], [3])) == 0
    assert nodes_at(puppet, va) == [0, 1, 2, 3] * 3
    assert four.init.migrate_pages(puppet.pid, [0, 1, 2], [3]) == 0
    assert set(nodes_at(puppet, va)) == set(nodes_at(child, va)) == {3}
    four.audit().raise_if_broken()


def test_the_errnos_of_migrate_pages_in_their_order(boot):
    machine = boot(nodes=3, frames_per_node=512, memoryless={2})
    target, user = Puppet(machine, uid=1000, mems_allowed={0}), Puppet(machine, uid=2000)
    same, pid = Puppet(machine, uid=1000), target.pid
    area(target)

    def failures(task):
        return [errno_of(call) for call in (
            lambda: task.sys_migrate_pages(pid, 65, BAD, BAD),
            lambda: task.sys_migrate_pages(pid, PAGE * 8 + 2, BAD, BAD),
            lambda: task.migrate_pages(99999, [0], [1]),
            lambda: task.migrate_pages(pid, [0], [1]),
            lambda: task.migrate_pages(pid, [0], [0]),
            lambda: task.migrate_pages(0, [0], [2]),
            lambda: task.migrate_pages(0, [2], [1]))]

    assert user(failures) == ["EFAULT", "EINVAL", "ESRCH", "EPERM", "EPERM", "EPERM", None]
    # The target may not use node 1; who asks has no say in it.
    assert same(failures) == ["EFAULT", "EINVAL", "ESRCH", "EPERM", None, "EPERM", None]
    machine.protect(pid)
    assert errno_of(lambda: machine.init.migrate_pages(pid, [0], [2])) == "EINVAL"
    assert errno_of(lambda: machine.init.migrate_pages(pid, [0], [1])) == "EACCES"
    machine.protect(pid, False)
    assert machine.init.migrate_pages(pid, [0], [1]) == 0


def test_migrate_pages_to_no_node_moves_nothing(four):
    puppet = Puppet(four)
    va = spread(puppet)
    assert puppet(lambda task: [task.migrate_pages(0, [0, 1, 2, 3], []), task.sys_migrate_pages(0, 64, va, 0)]) == [0, 0]
    assert nodes_at(puppet, va) == [0, 1, 2, 3] * 3


def test_an_empty_address_space_has_nothing_to_migrate(four):
    puppet = Puppet(four)
    assert four.init.migrate_pages(puppet.pid, [0, 1, 2], [3]) == 0


# ---- cpusets ---------------------------------------------------------------------

def test_memory_keeps_to_the_cpuset(four):
    puppet = Puppet(four, mems_allowed={2})
    va = area(puppet, 600)
    assert puppet(lambda task: errno_of(lambda: [task.store64(va + i * PAGE, i) for i in range(600)])) == "ENOMEM"
    assert four.zoneinfo()[2]["nr_free_pages"] == four.zoneinfo()[2]["min"]
    child = puppet.fork()
    assert child(lambda task: task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1]) == [2]
    four.audit().raise_if_broken()


def test_the_kernels_own_memory_ends_at_the_hard_wall(four):
    """cpuset_zone_allowed_softwall: page tables may lie outside the cpuset, but within the
    nearest one with a wall."""
    wall = four.create_cpuset({1, 2}, mem_hardwall=True)
    inner = four.create_cpuset({2}, wall)

    def tables(puppet):
        before = [zone["nr_pagetable"] for zone in four.zoneinfo()]
        puppet(lambda task: [task.store64(task.mmap(PAGE, RW, 0x32, 0x1000_0000_0000 + (i << 30)), 1) for i in range(40)])
        return {nid for nid, zone in enumerate(four.zoneinfo()) if zone["nr_pagetable"] > before[nid]}

    walled = [Puppet(four, cpuset=inner) for _ in range(4)]
    free = [Puppet(four, mems_allowed={3}) for _ in range(4)]
    assert set().union(*map(tables, walled)) == {1, 2}
    assert set().union(*map(tables, free)) == {0, 1, 2, 3}
    four.audit().raise_if_broken()


def test_move_pages_keeps_to_the_targets_cpuset(four):
    """Seed lines 966-968."""
    puppet = Puppet(four, mems_allowed={0, 1})
    va = area(puppet)
    touch(puppet, va)
    frames = [pfn_at(puppet, va + i * PAGE) for i in range(PAGES)]
    assert errno_of(lambda: four.init.move_pages(puppet.pid, [va, va + PAGE], [1, 2])) == "EACCES"
    assert [pfn_at(puppet, va + i * PAGE) for i in range(PAGES)] == frames
    assert four.init.move_pages(puppet.pid, [va, va + PAGE], [1, 1]) == [1, 1]
    # Whose cpuset the mover is in does not matter.
    mover = Puppet(four, mems_allowed={3})
    pid = puppet.pid
    assert mover(lambda task: task.move_pages(pid, [va, va + PAGE], [0, 0])) == [0, 0]


def test_a_policy_is_made_within_the_cpuset(four):
    puppet = Puppet(four, mems_allowed={1, 3})

    def program(task):
        seen = []
        for mode, nodes in ((MPOL_BIND, [0, 1, 2]), (MPOL_BIND | MPOL_F_RELATIVE_NODES, [1]),
                            (MPOL_INTERLEAVE | MPOL_F_RELATIVE_NODES, [2, 5]), (MPOL_PREFERRED, [2, 3])):
            task.set_mempolicy(mode, nodes)
            seen.append(task.get_mempolicy()[1])
        return seen, errno_of(lambda: task.set_mempolicy(MPOL_BIND, [0, 2]))

    assert puppet(program) == ([[1], [3], [1, 3], [3]], "EINVAL")


def test_policies_follow_when_a_cpuset_gets_other_nodes(four):
    """mpol_rebind_policy: by place, unless the nodes are static or relative."""
    group = four.create_cpuset({0, 1})
    puppet = Puppet(four, cpuset=group)
    vas = [puppet(lambda task: task.mmap(PAGE, RW, 0x32, 0x10_0000_0000 + i * 0x10000)) for i in range(6)]
    modes = [(MPOL_BIND, [0]), (MPOL_INTERLEAVE, [0, 1]), (MPOL_PREFERRED, [1]),
             (MPOL_BIND | MPOL_F_STATIC_NODES, [1, 2]), (MPOL_BIND | MPOL_F_RELATIVE_NODES, [1]),
             (MPOL_PREFERRED | MPOL_F_STATIC_NODES, [0])]
    for va, (mode, nodes) in zip(vas, modes):
        puppet(lambda task: task.mbind(va, PAGE, mode, nodes))
    puppet(lambda task: task.set_mempolicy(MPOL_INTERLEAVE, [1]))

    def policies():
        return [puppet(lambda task: task.get_mempolicy(va, MPOL_F_ADDR))[1] for va in vas] + \
            [puppet(lambda task: task.get_mempolicy())[1]]

    assert policies() == [[0], [0, 1], [1], [1], [1], [0], [1]]
    four.set_mems(group, {2, 3})
    assert policies() == [[2], [2, 3], [3], [2], [3], [], [3]]
    assert puppet(lambda task: task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1]) == [2, 3]
    fresh = area(puppet)
    assert set(touch(puppet, fresh)) == {3}
    # And back, static nodes as well.
    four.set_mems(group, {0, 1})
    assert policies() == [[0], [0, 1], [1], [1], [1], [0], [1]]
    # A static policy with none of its nodes left says nothing, and allocation goes on.
    four.set_mems(group, {3})
    assert policies()[3] == []
    puppet(lambda task: task.store64(vas[3], 1))
    assert node_at(puppet, vas[3]) == 3
    four.audit().raise_if_broken()


def test_areas_whose_static_nodes_differ_stay_two_though_they_mean_the_same_now(four):
    """__mpol_equal: they will not when the cpuset has more nodes again."""
    group = four.create_cpuset({0, 1})
    puppet = Puppet(four, cpuset=group)
    va = area(puppet, 4)
    for at, nodes in ((va, [1, 2]), (va + 2 * PAGE, [1, 3])):
        puppet(lambda task: task.mbind(at, 2 * PAGE, MPOL_BIND | MPOL_F_STATIC_NODES, nodes))

    def policies():
        return [puppet(lambda task: task.get_mempolicy(at, MPOL_F_ADDR))[1] for at in (va, va + 2 * PAGE)]
    assert policies() == [[1], [1]]
    four.set_mems(group, {0, 1, 2, 3})
    assert policies() == [[1, 2], [1, 3]]


def test_interleaving_starts_anew_when_the_nodes_are_others(four):
    """interleave_nodes: it was about to go on at a node that lies behind all of the new ones."""
    group = four.create_cpuset({2, 3})
    puppet = Puppet(four, cpuset=group)

    def take(count):
        def program(task):
            pages = [ksym.alloc_pages_current(C["GFP_HIGHUSER_MOVABLE"], 0) for _ in range(count)]
            nodes = [layout.struct("Page", page).flags >> C["NODES_PGSHIFT"] for page in pages]
            for page in pages:
                ksym.put_page(page)
            return nodes
        return puppet(program)
    puppet(lambda task: task.set_mempolicy(MPOL_INTERLEAVE, [2, 3]))
    assert take(1) == [2] and worker.slot(puppet.cpu).il_next == 3
    four.set_mems(group, {0, 1})
    # So that 0 is not simply the local node.
    worker.slot(puppet.cpu).numa_node = 1
    assert take(4) == [0, 1, 0, 1]


def test_pages_follow_a_cpuset_that_is_told_to_take_them_along(four):
    group = four.create_cpuset({0, 1}, memory_migrate=True)
    other = four.create_cpuset({3})
    puppet = Puppet(four, cpuset=group)
    va = area(puppet)
    touch(puppet, va)
    puppet(lambda task: task.move_pages(0, [va + i * PAGE for i in range(PAGES)], [i % 2 for i in range(PAGES)]))
    four.set_mems(group, {2, 3})
    assert nodes_at(puppet, va) == [2, 3] * 6
    # To one that does not take them along.
    four.attach(other, puppet.pid)
    assert nodes_at(puppet, va) == [2, 3] * 6
    four.set_mems(group, {0})
    four.attach(group, puppet.pid)
    assert nodes_at(puppet, va) == [2, 0] * 6
    assert puppet(lambda task: [task.load64(va + i * PAGE) for i in range(PAGES)]) == list(range(1, PAGES + 1))
    four.audit().raise_if_broken()


def test_cpusets_are_a_tree(four):
    outer = four.create_cpuset({0, 1, 2})
    inner = four.create_cpuset({1, 2}, outer)
    assert errno_of(lambda: four.create_cpuset({2, 3}, outer)) == "EACCES"
    assert errno_of(lambda: four.create_cpuset({4}, outer)) == "EINVAL"
    assert errno_of(lambda: four.create_cpuset(set())) == "EINVAL"
    assert errno_of(lambda: four.create_cpuset({1}, 63)) == "ENOENT"
    assert errno_of(lambda: four.set_mems(outer, {0, 1})) == "EBUSY"
    assert errno_of(lambda: four.set_mems(inner, {1, 3})) == "EACCES"
    assert errno_of(lambda: four.set_mems(0, {1})) == "ENOENT"
    assert errno_of(lambda: four.remove_cpuset(outer)) == "EBUSY"
    puppet = Puppet(four, cpuset=inner)
    assert errno_of(lambda: four.remove_cpuset(inner)) == "EBUSY"
    assert errno_of(lambda: four.attach(inner, 99999)) == "ESRCH"
    puppet.exit()
    four.remove_cpuset(inner)
    four.remove_cpuset(outer)
    assert errno_of(lambda: four.remove_cpuset(outer)) == "ENOENT"
    made = [four.create_cpuset({1}) for _ in range(C["NR_CPUSETS"] - 1)]
    assert errno_of(lambda: four.create_cpuset({1})) == "ENOSPC"
    four.remove_cpuset(made[5])
    assert four.create_cpuset({1}) == made[5]


def test_a_fork_cannot_miss_that_its_cpuset_changes(four):
    """copy_process holds cpuset_sem from the first policy it copies to the last: a child that
    was copied before is rebound, one that is copied after copies what was rebound."""
    group = four.create_cpuset({0, 1})
    puppet, holder = Puppet(four, cpuset=group), Puppet(four)
    va = area(puppet)
    puppet(lambda task: (task.mbind(va, PAGES * PAGE, MPOL_BIND, [1]), task.set_mempolicy(MPOL_BIND, [1])))
    semaphore = layout.kernel().cpuset_sem.address
    holder(lambda task: ksym.down_read(semaphore))
    changer = Puppet(four)
    changer.begin(lambda task: task._cpuset_set_mems(group, [2, 3]))
    until_waits(changer, "WAIT_RWSEM_WRITE")
    child = puppet.begin_fork()
    until_waits(puppet, "WAIT_RWSEM_READ")
    holder(lambda task: ksym.up_read(semaphore))
    changer.reply()
    child = puppet.end_fork(child)
    for one in (puppet, child):
        assert one(lambda task: (task.get_mempolicy()[1], task.get_mempolicy(va, MPOL_F_ADDR)[1],
                                 task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1])) == ([3], [3], [2, 3])
    four.audit().raise_if_broken()


def test_a_child_that_does_not_run_yet_follows_its_cpuset(four):
    group = four.create_cpuset({0, 1}, memory_migrate=True)
    puppet = Puppet(four, cpuset=group)
    # Who had the child's slot before could use what the group gets.
    last = Puppet(four, cpuset=four.create_cpuset({2, 3}))
    last.exit()
    va = area(puppet)
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [1]))
    touch(puppet, va)
    slot = puppet(lambda task: task._copy_process(False))
    assert slot == last.cpu
    # From here on the pages are the child's alone.
    touch(puppet, va)
    four.set_mems(group, {2, 3})
    child = Puppet(four, slot)
    assert child(lambda task: (task.get_mempolicy(va, MPOL_F_ADDR)[1],
                               task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1])) == ([3], [2, 3])
    assert set(nodes_at(child, va)) == {3}
    four.audit().raise_if_broken()


def test_a_child_that_begins_to_run_while_its_cpuset_changes_follows_it(four):
    group = four.create_cpuset({0, 1}, memory_migrate=True)
    first, puppet, holder, changer = Puppet(four, cpuset=group), Puppet(four, cpuset=group), Puppet(four), Puppet(four)
    va = area(puppet)
    puppet(lambda task: task.mbind(va, PAGES * PAGE, MPOL_BIND, [1]))
    touch(puppet, va)
    slot = puppet(lambda task: task._copy_process(False))
    touch(puppet, va)
    # The change comes to the first task, and waits there.
    assert first.cpu < slot
    area(first)
    semaphore = mm_of(first).address + layout.offsetof("MmStruct", "mmap_sem")
    holder(lambda task: ksym.down_read(semaphore))
    changer.begin(lambda task: task._cpuset_set_mems(group, [2, 3]))
    until_waits(changer, "WAIT_RWSEM_WRITE")
    child = Puppet(four, slot)
    holder(lambda task: ksym.up_read(semaphore))
    changer.reply()
    assert child(lambda task: (task.get_mempolicy(va, MPOL_F_ADDR)[1],
                               task.get_mempolicy(0, MPOL_F_MEMS_ALLOWED)[1])) == ([3], [2, 3])
    assert set(nodes_at(child, va)) == {3}
    four.audit().raise_if_broken()


@pytest.mark.parametrize("progress", (0, 1))
def test_an_allocation_goes_where_its_cpuset_has_gone(four, tmp_path, progress):
    """get_mems_allowed: a task that cannot get memory looks again whether it may use other nodes by
    now, also while it frees some."""
    group = four.create_cpuset({0})
    puppet = Puppet(four, cpuset=group)
    va = area(puppet, 600)
    # All of it locked: kswapd frees nothing either.
    assert puppet(lambda task: errno_of(lambda: task.mlock(va, 600 * PAGE))) == "EAGAIN"
    four.swapon(tmp_path / "swap", 10)

    def program(task):
        calls = []

        def reclaim(nid, gfp, order, nodes):
            calls.append(nodes)
            if len(calls) == 1:
                ksym.cpuset_set_mems(group, 1 << 1)
            return progress if len(calls) < 10 else 0
        hook = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_int32, *[ctypes.c_uint64] * 3)(reclaim)
        ksym.set_reclaim(ctypes.cast(hook, ctypes.c_void_p).value)
        page = ksym.alloc_page(C["GFP_HIGHUSER_MOVABLE"])
        node = ksym.page_to_pfn(page) // layout.kernel().frames_per_node if page else None
        if page:
            ksym.put_page(page)
        ksym.set_reclaim(symbol_address("try_to_free_pages"))
        return calls, node

    assert puppet(program) == ([1 << 0], 1)
    four.audit().raise_if_broken()


# ---- nodes without memory, and nodes for movable memory --------------------------

def test_a_node_without_memory_is_never_allocated_from(boot):
    machine = boot(nodes=3, frames_per_node=512, memoryless={1})
    assert machine.zoneinfo()[1]["present"] == 0 and machine.zoneinfo()[1]["nr_free_pages"] == 0
    puppets = [Puppet(machine) for _ in range(6)]
    assert 1 in {home(puppet) for puppet in puppets}
    for puppet in puppets:
        va = area(puppet)
        assert 1 not in touch(puppet, va)
        assert puppet(lambda task: errno_of(lambda: task.move_pages(0, [va], [1]))) == "ENODEV"
        assert puppet(lambda task: errno_of(lambda: task.mbind(va, PAGE, MPOL_BIND, [1]))) == "EINVAL"
    machine.audit().raise_if_broken()


def test_a_movable_node_has_programs_pages_only(boot):
    machine = boot(nodes=2, frames_per_node=512, movable={1})
    puppets = [Puppet(machine) for _ in range(4)]
    for puppet in puppets:
        va = area(puppet)
        assert set(touch(puppet, va)) == {home(puppet)}
    zones = machine.zoneinfo()
    assert zones[1]["nr_pagetable"] == 0 and zones[0]["nr_pagetable"] > 0 and zones[1]["nr_anon_pages"] > 0
    machine.audit().raise_if_broken()


def test_a_hard_wall_has_memory_for_the_kernel_inside(boot):
    """Or no task in there could have a page table."""
    machine = boot(nodes=3, frames_per_node=512, movable={1, 2})
    assert errno_of(lambda: machine.create_cpuset({1, 2}, mem_hardwall=True)) == "EINVAL"
    walled = machine.create_cpuset({0, 1}, mem_hardwall=True)
    assert errno_of(lambda: machine.set_mems(walled, {1})) == "EINVAL"
    # Without a wall of its own it has the kernel's memory from further up.
    inner = machine.create_cpuset({1}, walled)
    for group in (walled, inner):
        puppet = Puppet(machine, cpuset=group)
        assert set(touch(puppet, area(puppet))) <= {0, 1}
    machine.audit().raise_if_broken()


def test_a_machine_needs_memory_for_the_kernel(boot):
    for options in ({"memoryless": {0, 1}}, {"movable": {0, 1}}, {"memoryless": {0}, "movable": {1}},
                    {"memoryless": {2}}, {"movable": {-1}}):
        with pytest.raises(ValueError):
            boot(**options)


def test_memory_that_was_bound_is_all_given_back(four):
    puppet = Puppet(four)
    free = free_frames(four)
    for mode in (MPOL_BIND, MPOL_INTERLEAVE, MPOL_PREFERRED):
        va = area(puppet)
        puppet(lambda task: task.mbind(va, PAGES * PAGE, mode, [1]))
        touch(puppet, va)
        puppet(lambda task: task.munmap(va, PAGES * PAGE))
    assert free_frames(four) == free
    four.audit().raise_if_broken()


# ---- files -----------------------------------------------------------------------

@pytest.fixture
def file(tmp_path):
    """The path of a host file of Mapper.PAGES pages."""
    (tmp_path / "file").write_bytes(b"file" * 1024 * Mapper.PAGES)
    return str(tmp_path / "file")


def test_the_page_cache_is_filled_by_the_tasks_policy_and_copies_by_the_areas(four, file):
    """A page of a file is for everybody, so it is not the area that decides."""
    reader, count = Puppet(four), Mapper.PAGES

    def program(task):
        fd = task.open(file)
        shared = task.mmap(count * PAGE, RW, MAP_SHARED, fd=fd)
        private = task.mmap(count * PAGE, RW, MAP_PRIVATE, fd=fd)
        task.mbind(shared, count * PAGE, MPOL_BIND, [3])
        task.mbind(private, count * PAGE, MPOL_BIND, [3])
        task.set_mempolicy(MPOL_INTERLEAVE, [1, 2])
        # By a read, by faults, and by copies of what is there.
        task.pread(fd, 4 * PAGE, 0)
        task.load(shared, count * PAGE)
        task.store(private, b"x"), task.store(private + PAGE, b"x")
        return shared, private
    shared, private = reader(program)
    nodes = nodes_at(reader, shared, count)
    assert sorted(nodes) == [1] * 4 + [2] * 4 and nodes[:4] in ([1, 2, 1, 2], [2, 1, 2, 1])
    assert nodes_at(reader, private, 2) == [3, 3]
    four.audit().raise_if_broken()


@pytest.mark.parametrize("fs", ["page", "buffer", "fallback"])
def test_mbind_moves_the_pages_of_a_file_that_an_area_maps(four, file, fs):
    """By the policy of the area (new_vma_page); those that others map as well only with MOVE_ALL."""
    one, other, count = Mapper(four, file, fs=fs), Mapper(four, file), Mapper.PAGES
    va, its, size = one.va, other.va, count * PAGE
    one(lambda task: task.set_mempolicy(MPOL_BIND, [0]))
    one.load(0, size), other.load(0, 2 * PAGE), one.store(5 * PAGE, b"dirty")
    assert nodes_at(one, va, count) == [0] * count
    assert one(lambda task: errno_of(lambda: task.mbind(va, size, MPOL_BIND, [1], MPOL_MF_STRICT))) == "EIO"
    assert one(lambda task: errno_of(lambda: task.mbind(va, size, MPOL_INTERLEAVE, [1, 2, 3],
                                                        MPOL_MF_MOVE | MPOL_MF_STRICT))) == "EIO"
    assert nodes_at(one, va, count) == [0, 0] + [1 + page % 3 for page in range(2, count)]
    one(lambda task: task.mbind(va, size, MPOL_INTERLEAVE, [1, 2, 3], MPOL_MF_MOVE_ALL | MPOL_MF_STRICT))
    assert nodes_at(one, va, 2) == nodes_at(other, its, 2) == [1, 2]
    assert one.load(5 * PAGE, 9) == b"dirtyilef" and other.load(PAGE, 4) == b"file"
    assert other(lambda task: task.migrate_pages(0, [1, 2], [0])) == 0
    assert nodes_at(other, its, 2) == [0, 0]
    four.audit().raise_if_broken()


def test_a_file_that_cannot_be_moved_is_eio(four, file):
    one, count = Mapper(four, file, fs="fixed"), Mapper.PAGES
    va = one.va
    one(lambda task: task.set_mempolicy(MPOL_BIND, [0]))
    one.load(0, count * PAGE)
    assert one(lambda task: errno_of(lambda: task.mbind(va, count * PAGE, MPOL_BIND, [1], MPOL_MF_MOVE | MPOL_MF_STRICT))) == "EIO"
    one(lambda task: task.mbind(va, count * PAGE, MPOL_BIND, [1], MPOL_MF_MOVE))
    assert nodes_at(one, va, count) == [0] * count
    assert one(lambda task: task.get_mempolicy(va, MPOL_F_ADDR)) == (MPOL_BIND, [1])
    assert one(lambda task: task.migrate_pages(0, [0], [1])) == count


def test_the_node_of_what_cannot_be_read_is_not_told(four, tmp_path):
    """PROT_NONE, and behind the end of a file."""
    (tmp_path / "file").write_bytes(b"x")

    def program(task):
        none = task.mmap(PAGE, 0)
        task.mprotect(none, PAGE, PROT_READ | PROT_WRITE), task.store64(none, 1), task.mprotect(none, PAGE, 0)
        fd = task.open(tmp_path / "file")
        va = task.mmap(2 * PAGE, PROT_READ, MAP_SHARED, fd=fd)
        return [errno_of(lambda: task.get_mempolicy(at, MPOL_F_NODE | MPOL_F_ADDR)) for at in (none, va, va + PAGE)]
    assert four.spawn(program).result(20) == ["EFAULT", None, "EFAULT"]


def test_mbind_where_nothing_is_mapped_from_there_on(four):
    """MPOL_DEFAULT does not mind holes, but there must be something."""
    def program(task):
        va = task.mmap(PAGE)
        top = 0x7ffffffff000 - PAGE
        return [errno_of(lambda: task.mbind(at, PAGE, MPOL_DEFAULT, [])) for at in (va - PAGE, top)]
    assert four.spawn(program).result(20) == [None, "EFAULT"]
