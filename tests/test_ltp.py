# SPDX-License-Identifier: GPL-2.0-only
"""The promises of the Linux Test Project's move_pages01 to 12, migrate_pages01 to 03 and mbind01
to 04, by what their descriptions say, and of the kernel's own selftest mm/migration.c, on real
processes.  Each test names the one it stands for.

Not yet: move_pages12 and private_anon_thp (huge pages), migrate_pages03 (KSM).  What needs
MAP_SHARED memory is told with memory shared by a fork.
"""
import errno
import os
import time

import pytest

from helpers import PAGE, Puppet, node_at, run
from shmkern import (MPOL_BIND, MPOL_DEFAULT, MPOL_F_ADDR, MPOL_F_NODE, MPOL_INTERLEAVE, MPOL_MF_MOVE,
                     MPOL_MF_MOVE_ALL, MPOL_MF_STRICT, MPOL_PREFERRED, PROT_NONE, PROT_READ, PROT_WRITE)

pytestmark = pytest.mark.timeout(120)

RW = PROT_READ | PROT_WRITE
BAD = 0x7f_ffff_0000_0000
NOBODY = 65534
MODES = [MPOL_PREFERRED, MPOL_BIND, MPOL_INTERLEAVE]
# Of the selftest, which runs for 20; make selftest does.
SELFTEST_SECONDS = float(os.environ.get("SELFTEST_SECONDS", 1.5))


def errno_of(call):
    """The name of the errno that a call fails with; None when it does not."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]


def pages_on(task, node, count, touched=None):
    """Addresses of pages that are bound to a node; the first `touched` of them (all by default)
    are there."""
    va = task.mmap(count * PAGE)
    task.mbind(va, count * PAGE, MPOL_BIND, [node])
    places = [va + i * PAGE for i in range(count)]
    for place in places[:touched]:
        task.store64(place, place)
    return places


# ---- move_pages ------------------------------------------------------------------

def test_move_pages01_asking_tells_the_node_of_each_page(machine):
    def program(task):
        places = [pages_on(task, i % 2, 1)[0] for i in range(6)]
        return task.move_pages(0, places)
    assert run(machine, program) == [0, 1] * 3


def test_move_pages02_pages_of_a_process_move_from_node_to_node(machine):
    def program(task):
        places = pages_on(task, 0, 8)
        moved = task.move_pages(0, places, [1] * 8, MPOL_MF_MOVE)
        return moved, task.move_pages(0, places), [task.load64(place) for place in places] == places
    assert run(machine, program) == ([1] * 8, [1] * 8, True)


def test_move_pages03_shared_pages_move_with_move_all(machine):
    owner = Puppet(machine)
    places = owner(lambda task: pages_on(task, 0, 4))
    child = owner.fork()
    assert owner(lambda task: task.move_pages(0, places, [1] * 4, MPOL_MF_MOVE_ALL)) == [1] * 4
    assert [node_at(child, place) for place in places] == [1] * 4
    assert child(lambda task: [task.load64(place) for place in places]) == places


def test_move_pages04_a_page_that_is_not_there_is_enoent(machine):
    def program(task):
        touched, untouched = pages_on(task, 0, 2, touched=1)
        return task.move_pages(0, [touched, untouched, BAD], [1] * 3, MPOL_MF_MOVE)
    assert run(machine, program) == [1, -errno.ENOENT, -errno.EFAULT]


def test_move_pages05_a_shared_page_is_eacces_without_move_all(machine):
    owner = Puppet(machine)
    places = owner(lambda task: pages_on(task, 0, 2))
    child = owner.fork()
    child(lambda task: task.store64(places[0], 1))
    assert owner(lambda task: task.move_pages(0, places, [1, 1], MPOL_MF_MOVE)) == [1, -errno.EACCES]


def test_move_pages06_an_invalid_node_is_enodev(machine):
    def program(task):
        places = pages_on(task, 0, 2)
        return [errno_of(lambda: task.move_pages(0, places, [1, node], MPOL_MF_MOVE)) for node in (2, 63, 64, 65535)]
    assert run(machine, program) == ["ENODEV"] * 4


def test_move_pages07_a_bad_pointer_is_efault(machine):
    def program(task):
        at = task.mmap(PAGE)
        task.store64(at, at)
        return [errno_of(lambda: task.sys_move_pages(0, 1, *pointers, MPOL_MF_MOVE)) for pointers in
                ((BAD, at + 64, at + 128), (at, BAD, at + 128), (at, at + 64, BAD))]
    assert run(machine, program) == ["EFAULT"] * 3


def test_move_pages08_too_many_pages_are_e2big(machine):
    def program(task):
        at = task.mmap(PAGE)
        return errno_of(lambda: task.sys_move_pages(0, (2 ** 64 - 1) // 16, at, at, at, MPOL_MF_MOVE))
    assert run(machine, program) == "E2BIG"


def test_move_pages09_pages_that_are_where_they_should_be_are_no_error(machine):
    """Since Linux commit e78bbfa82624; before, it was ENOENT."""
    def program(task):
        places = pages_on(task, 0, 2)
        return task.move_pages(0, places, [0, 0], MPOL_MF_MOVE)
    assert run(machine, program) == [0, 0]


def test_move_pages10_an_invalid_flag_is_einval(machine):
    def program(task):
        places = pages_on(task, 0, 2)
        return [errno_of(lambda: task.move_pages(0, places, [1, 1], flags)) for flags in (MPOL_MF_STRICT, 1 << 30, -1)]
    assert run(machine, program) == ["EINVAL"] * 3


def test_move_pages11_move_all_is_eperm_for_who_is_not_privileged(machine):
    owner = Puppet(machine)
    places = owner(lambda task: pages_on(task, 0, 2))
    owner.fork()
    owner(lambda task: task.setresuid(-1, NOBODY, -1))
    assert owner(lambda task: errno_of(lambda: task.move_pages(0, places, [1, 1], MPOL_MF_MOVE_ALL))) == "EPERM"
    assert [node_at(owner, place) for place in places] == [0, 0]


# ---- migrate_pages ---------------------------------------------------------------

def test_migrate_pages01_errnos(boot):
    machine = boot(nodes=3, memoryless={2})

    def program(task):
        at = task.mmap(PAGE)
        task.store64(at, 0b1)
        none, gone = task.mmap(PAGE, PROT_NONE), task.mmap(PAGE, RW, 0x32, 0x10_0000_0000)
        task.munmap(gone, PAGE)
        task.store64(at + 8, 0b100)
        seen = [task.sys_migrate_pages(0, 64, at, at)]
        seen += [errno_of(lambda: task.sys_migrate_pages(pid, 64, at, at)) for pid in (-1, 2 ** 22 + 1)]
        seen.append(errno_of(lambda: task.sys_migrate_pages(0, 2 ** 64 - 1, at, at)))
        seen += [errno_of(lambda: task.sys_migrate_pages(0, 64, mask, mask)) for mask in (2 ** 64 - 1, none, gone)]
        seen.append(errno_of(lambda: task.sys_migrate_pages(0, 64, at, at + 8)))
        return seen

    assert run(machine, program) == [0, "ESRCH", "ESRCH", "EINVAL", "EFAULT", "EFAULT", "EFAULT", "EINVAL"]
    root, user = Puppet(machine), Puppet(machine, uid=NOBODY)
    pid = root.pid
    assert user(lambda task: errno_of(lambda: task.migrate_pages(pid, [0], [0]))) == "EPERM"


@pytest.mark.parametrize("nice", [True, False])
def test_migrate_pages02_of_this_process(machine, nice):
    """Its own memory whoever it is; what it shares only with CAP_SYS_NICE."""
    parent = Puppet(machine)
    shared = parent(lambda task: pages_on(task, 0, 1)[0])
    parent(lambda task: task.mbind(shared, PAGE, MPOL_DEFAULT))
    child = parent.fork()
    own = child(lambda task: pages_on(task, 0, 1)[0])
    if not nice:
        child(lambda task: task.setresuid(-1, NOBODY, -1))
    child(lambda task: task.migrate_pages(0, [0, 1], [1]))
    assert child(lambda task: task.get_mempolicy(own, MPOL_F_NODE | MPOL_F_ADDR))[0] == 1
    assert parent(lambda task: task.get_mempolicy(shared, MPOL_F_NODE | MPOL_F_ADDR))[0] == (1 if nice else 0)


@pytest.mark.parametrize("nice", [True, False])
def test_migrate_pages02_of_another_process(machine, nice):
    """With CAP_SYS_NICE, or with the same user id."""
    target, mover = Puppet(machine), Puppet(machine)
    own, pid = target(lambda task: pages_on(task, 0, 1)[0]), target.pid
    target(lambda task: task.setresuid(NOBODY, NOBODY, NOBODY))
    if not nice:
        mover(lambda task: task.setresuid(NOBODY, NOBODY, NOBODY))
    assert mover(lambda task: task.migrate_pages(pid, [0, 1], [1])) == 0
    assert target(lambda task: task.get_mempolicy(own, MPOL_F_NODE | MPOL_F_ADDR))[0] == 1


# ---- mbind -----------------------------------------------------------------------

@pytest.mark.parametrize("mode, nodes, flags, failed", [
    (MPOL_DEFAULT, [], 0, None), (MPOL_DEFAULT, [0], 0, "EINVAL"), (MPOL_BIND, [], 0, "EINVAL"), (MPOL_BIND, [0], 0, None),
    (MPOL_INTERLEAVE, [], 0, "EINVAL"), (MPOL_INTERLEAVE, [0], 0, None), (MPOL_PREFERRED, [], 0, None),
    (MPOL_PREFERRED, [0], 0, None), (-1, [], 0, "EINVAL"), (MPOL_DEFAULT, [], -1, "EINVAL"),
    (MPOL_PREFERRED, None, 0, "EFAULT")])
def test_mbind01_arguments_and_what_get_mempolicy_says_of_them(machine, mode, nodes, flags, failed):
    def program(task):
        va = task.mmap(1024 * PAGE)
        if nodes is None:
            return errno_of(lambda: task.sys_mbind(va, 1024 * PAGE, mode, 0xc0000000, 65, flags)), None
        return errno_of(lambda: task.mbind(va, 1024 * PAGE, mode, nodes, flags)), task.get_mempolicy(va, MPOL_F_ADDR)

    seen, policy = run(machine, program)
    assert seen == failed
    if failed is None:
        assert policy == (mode, nodes)


@pytest.mark.parametrize("mode", MODES)
def test_mbind02_a_page_elsewhere_is_eio_when_strict(machine, mode):
    def program(task):
        place, = pages_on(task, 0, 1)
        return errno_of(lambda: task.mbind(place, PAGE, mode, [1], MPOL_MF_STRICT))
    assert run(machine, program) == "EIO"


@pytest.mark.parametrize("flag", [MPOL_MF_MOVE, MPOL_MF_MOVE_ALL])
@pytest.mark.parametrize("mode", MODES)
def test_mbind03_a_page_that_is_there_moves_to_the_policys_node(machine, mode, flag):
    def program(task):
        place, = pages_on(task, 0, 1)
        task.mbind(place, PAGE, mode, [1], flag)
        return task.move_pages(0, [place])
    assert run(machine, program) == [1]


@pytest.mark.parametrize("flag", [0, MPOL_MF_STRICT])
@pytest.mark.parametrize("mode", MODES)
def test_mbind04_memory_is_faulted_in_as_the_policy_says_in_parent_and_child(machine, mode, flag):
    def fault(task, places):
        for place in places:
            task.store64(place, 1)
        return task.move_pages(0, places)

    def program(task, node):
        va = task.mmap(16 * PAGE)
        task.mbind(va, 16 * PAGE, mode, [node], flag)
        places = [va + i * PAGE for i in range(16)]
        return task.fork(fault, places).result(20), fault(task, places)

    for node in (0, 1):
        assert run(machine, program, node) == ([node] * 16, [node] * 16)


# ---- tools/testing/selftests/mm/migration.c ---------------------------------------

BYTES = 4 << 20         # TWOMEG, as the selftest has it


def bounce(task, va, enough):
    """Moves one page back and forth, more than 20 times and until enough().  A task that waits for the
    page has a reference to it, and may make a move fail; the call then says EAGAIN of that page."""
    moves, node = 0, 1
    while moves <= 20 or not enough():
        status, = task.move_pages(0, [va], [node], MPOL_MF_MOVE_ALL)
        if status == node:
            node, moves = 1 - node, moves + 1
        else:
            assert status == -errno.EAGAIN, f"move number {moves}: {status}"


def keep_loading(task, va, over, loads):
    """Loads the page's first word all the time, and counts in loads[0] how often.  Returns what else it
    was than it should be."""
    while not over[0]:
        for _ in range(1000):
            value = task.load64(va)
            if value != 0xdededededededede:
                return hex(value)
        loads[0] += 1000
    return None


@pytest.mark.parametrize("how", ["clone", "fork"])
def test_selftest_migration_no_call_fails_and_no_load_is_lost(boot, shared, how):
    """private_anon with threads; shared_anon with memory that forks share."""
    machine, over, loads = boot(frames_per_node=4096), shared("u64"), shared("u64", 2)

    def program(task):
        va = task.mmap(BYTES)
        task.store(va, b"\xde" * BYTES)
        others = [getattr(task, how)(keep_loading, va, over, loads[i:i + 1]) for i in range(2)]
        end = time.monotonic() + SELFTEST_SECONDS
        bounce(task, va, lambda: time.monotonic() >= end and
               (min(loads) > 1000 or not all(other.is_alive() for other in others)))
        over[0] = 1
        return [other.result(60) for other in others]

    assert run(machine, program, timeout=SELFTEST_SECONDS + 60) == [None, None]
    assert min(loads) > 1000
    machine.audit().raise_if_broken()
