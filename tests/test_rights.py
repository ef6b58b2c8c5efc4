# SPDX-License-Identifier: GPL-2.0-only
"""Who may move whose pages (seed lines 1053-1088), and move_pages(2) on arrays in a task's own
memory (lines 916-1036): every check, in the kernel's order."""
import errno
import itertools

import pytest

from helpers import PAGE, Puppet, counter, node_at, pfn_at
from shmkern import MPOL_MF_MOVE, MPOL_MF_MOVE_ALL, PROT_READ, PROT_WRITE, layout, worker

pytestmark = pytest.mark.timeout(60)

C = layout.constants
RW = PROT_READ | PROT_WRITE
CHUNK = C["MOVE_PAGES_CHUNK"]
# move_pages takes an array of as many struct page_to_node as a long can count.
E2BIG_FROM = (2 ** 64 - 1) // 24 - 1
BAD = 0x7f_ffff_0000_0000


def errno_of(call):
    """The name of the errno that a call fails with; None when it does not."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno]


class Owner(Puppet):
    """A task with 4 pages on node 0."""

    def __init__(self, machine, **rights):
        super().__init__(machine, **rights)
        self.va = va = self(lambda task: task.mmap(4 * PAGE))
        self(lambda task: task.store(va, b"".join(bytes([i]) * PAGE for i in range(4))))
        machine.init.move_pages(self.pid, [va + i * PAGE for i in range(4)], [0] * 4)


# ---- credentials -----------------------------------------------------------------

def test_root_has_all_rights_and_others_have_none(machine):
    root, user = Puppet(machine), Puppet(machine, uid=1000)
    nice = Puppet(machine, uid=1000, caps={"CAP_SYS_NICE"})
    slots = [worker.slot(puppet.cpu) for puppet in (root, user, nice)]
    assert [slot.cap_effective for slot in slots] == [2 ** 64 - 1, 0, 1 << C["CAP_SYS_NICE"]]
    assert [(slot.uid, slot.euid, slot.suid) for slot in slots] == [(0,) * 3, (1000,) * 3, (1000,) * 3]
    child = nice.fork()
    assert worker.slot(child.cpu).cap_effective == 1 << C["CAP_SYS_NICE"] and worker.slot(child.cpu).uid == 1000
    with pytest.raises(ValueError, match="CAP_SYS_NIC"):
        machine.spawn(lambda task: None, caps={"CAP_SYS_NIC"})
    for bad in (-1, 1 << 32, 1.5, None):
        with pytest.raises(ValueError):
            machine.spawn(lambda task: None, uid=bad)


def test_setresuid_drops_what_root_had(machine):
    """cap_emulate_setxuid of security/commoncap.c."""
    puppet = Puppet(machine)
    slot = worker.slot(puppet.cpu)
    puppet(lambda task: task.setresuid(-1, 7, -1))
    assert (slot.uid, slot.euid, slot.suid) == (0, 7, 0) and slot.cap_effective == 0 and slot.cap_permitted
    assert puppet(lambda task: errno_of(lambda: task.setresuid(-1, 8, -1))) == "EPERM"
    # An effective id of 0 brings them back.
    puppet(lambda task: task.setresuid(-1, 0, -1))
    assert slot.cap_effective == slot.cap_permitted == 2 ** 64 - 1
    puppet(lambda task: task.setresuid(7, 8, 9))
    assert (slot.uid, slot.euid, slot.suid) == (7, 8, 9) and slot.cap_permitted == slot.cap_effective == 0
    assert puppet(lambda task: errno_of(lambda: task.setresuid(0, -1, -1))) == "EPERM"
    # Among its own it may choose.
    puppet(lambda task: task.setresuid(9, 9, 9))
    assert (slot.uid, slot.euid, slot.suid) == (9, 9, 9)
    assert puppet(lambda task: errno_of(lambda: task.setresuid(7, 7, 7))) == "EPERM"


def test_one_common_id_is_the_right_to_move(machine):
    """Lines 1078-1083: the mover's real or effective id against the target's real or saved
    one.  The target's effective id counts for nothing."""
    mover, target = Puppet(machine), Owner(machine)
    va, pid = target.va, target.pid
    target(lambda task: task.setresuid(10, 30, 20))
    mover(lambda task: task.setresuid(-1, -1, 0))
    node = 0
    for number, (real, effective) in enumerate(itertools.product((10, 20, 30, 40), repeat=2)):
        walker = mover.fork()
        walker(lambda task: task.setresuid(real, effective, 50))
        assert worker.slot(walker.cpu).cap_effective == 0
        allowed = real in (10, 20) or effective in (10, 20)
        failed = walker(lambda task: errno_of(lambda: task.move_pages(pid, [va], [1 - node])))
        assert failed == (None if allowed else "EPERM"), (real, effective)
        node = 1 - node if allowed else node
        assert node_at(target, va) == node
        # Asking is no less.
        assert walker(lambda task: errno_of(lambda: task.move_pages(pid, [va]))) == failed
        walker.exit()


def test_cap_sys_nice_is_the_right_to_move_anybodys(machine):
    target = Owner(machine, uid=1000)
    va, pid = target.va, target.pid
    nice = Puppet(machine, uid=2000, caps={"CAP_SYS_NICE"})
    other = Puppet(machine, uid=2000, caps={"CAP_IPC_LOCK", "CAP_SETUID"})
    assert nice(lambda task: task.move_pages(pid, [va], [1], MPOL_MF_MOVE_ALL)) == [1]
    assert other(lambda task: errno_of(lambda: task.move_pages(pid, [va], [0]))) == "EPERM"


def test_move_all_needs_cap_sys_nice(machine):
    """Lines 1056-1057, before anything is looked up."""
    user = Owner(machine, uid=1000)
    va = user.va
    assert user(lambda task: errno_of(lambda: task.move_pages(0, [va], [1], MPOL_MF_MOVE_ALL))) == "EPERM"
    assert user(lambda task: errno_of(lambda: task.move_pages(99999, [va], [1], MPOL_MF_MOVE_ALL))) == "EPERM"
    assert user(lambda task: errno_of(lambda: task.move_pages(99999, [va], [1], MPOL_MF_MOVE_ALL | 8))) == "EINVAL"
    assert user(lambda task: task.move_pages(0, [va], [1], MPOL_MF_MOVE)) == [1]


def test_the_security_module_has_the_last_word(machine):
    """Lines 1085-1087: after the credentials, and whoever asks."""
    target, stranger = Owner(machine, uid=1000), Puppet(machine, uid=2000)
    va, pid = target.va, target.pid
    machine.protect(pid)
    count = counter(machine)
    assert errno_of(lambda: machine.init.move_pages(pid, [va], [1])) == "EACCES"
    assert errno_of(lambda: machine.init.move_pages(pid, [va])) == "EACCES"
    assert target(lambda task: errno_of(lambda: task.move_pages(0, [va], [1]))) == "EACCES"
    assert stranger(lambda task: errno_of(lambda: task.move_pages(pid, [va], [1]))) == "EPERM"
    child = target.fork()
    assert errno_of(lambda: machine.init.move_pages(child.pid, [va], [1])) == "EACCES"
    assert count("pgmigrate_success") == 0
    machine.protect(pid, False)
    assert machine.init.move_pages(pid, [va], [1], MPOL_MF_MOVE_ALL) == [1]
    with pytest.raises(OSError):
        machine.protect(99999)


# ---- arrays in the task's memory ---------------------------------------------------

def raw(task, pages, nodes, *, pid=0, flags=MPOL_MF_MOVE, at=0x20_0000_0000):
    """move_pages on arrays that are put into the task's memory at `at`: the statuses, which are
    77 where nothing was written."""
    count = len(pages)
    pages_at, nodes_at, status_at = at, at + (1 << 24), at + (2 << 24)
    for where in (pages_at, nodes_at, status_at):
        task.mmap(count * 8 + 2 * PAGE, RW, 0x32, where & -PAGE)
    task.store(pages_at, b"".join(page.to_bytes(8, "little") for page in pages))
    task.store(nodes_at, b"".join(node.to_bytes(4, "little", signed=True) for node in nodes or ()))
    task.store(status_at, (77).to_bytes(4, "little") * count)
    try:
        task.sys_move_pages(pid, count, pages_at, nodes_at if nodes else 0, status_at, flags)
        failed = None
    except OSError as error:
        failed = errno.errorcode[error.errno]
    words = task.load(status_at, 4 * count)
    return failed, [int.from_bytes(words[i:i + 4], "little", signed=True) for i in range(0, 4 * count, 4)]


def test_arrays_lie_in_the_callers_memory_and_cross_its_pages(machine):
    owner, mover = Owner(machine), Puppet(machine)
    va, pid = owner.va, owner.pid
    places = [va, va + PAGE, va + 2 * PAGE, 64]
    failed, statuses = mover(lambda task: raw(task, places, [1, 1, 1, 1], pid=pid, at=0x20_0000_0000 + PAGE - 4))
    assert failed is None and statuses == [1, 1, 1, -errno.EFAULT]
    failed, statuses = mover(lambda task: raw(task, places, None, pid=pid))
    assert failed is None and statuses == [1, 1, 1, -errno.EFAULT]
    assert [node_at(owner, va + i * PAGE) for i in range(4)] == [1, 1, 1, 0]
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("moving", [True, False])
def test_an_array_that_is_not_there_is_efault(machine, moving):
    """Lines 950-961, 980-984, 1009-1010."""
    owner = Owner(machine)
    va = owner.va

    def calls(task):
        good = task.mmap(PAGE, RW, 0x32, 0x20_0000_0000)
        task.store64(good, va)
        task.store64(good + 64, 1)
        nodes = good + 64 if moving else 0
        readonly = task.mmap(PAGE, PROT_READ)
        seen = [errno_of(lambda: task.sys_move_pages(0, 1, BAD, nodes, good + 128, 2)),
                errno_of(lambda: task.sys_move_pages(0, 1, 0, nodes, good + 128, 2)),
                errno_of(lambda: task.sys_move_pages(0, 1, 1 << 63, nodes, good + 128, 2)),
                errno_of(lambda: task.sys_move_pages(0, 1, good, nodes, BAD, 2)),
                errno_of(lambda: task.sys_move_pages(0, 1, good, nodes, readonly, 2)),
                # Half of an address lies behind the end.
                errno_of(lambda: task.sys_move_pages(0, 1, good + PAGE - 4, nodes, good + 128, 2))]
        if moving:
            seen.append(errno_of(lambda: task.sys_move_pages(0, 1, good, BAD, good + 128, 2)))
        return seen

    assert owner(calls) == ["EFAULT"] * (7 if moving else 6)
    machine.audit().raise_if_broken()


def test_no_pages_means_no_array_is_touched(machine):
    owner = Owner(machine)
    assert owner(lambda task: task.sys_move_pages(0, 0, BAD, BAD, BAD, 2)) is None
    assert owner(lambda task: task.sys_move_pages(0, 0, BAD, 0, BAD, 2)) is None


def test_more_pages_than_can_be_are_e2big(machine):
    """Lines 932-936, before the arrays are looked at; one less runs into their end."""
    owner = Owner(machine)
    for count in (E2BIG_FROM, E2BIG_FROM + 1, 2 ** 64 - 1):
        assert owner(lambda task: errno_of(lambda: task.sys_move_pages(0, count, BAD, BAD, BAD, 2))) == "E2BIG"
    assert owner(lambda task: errno_of(lambda: task.sys_move_pages(0, E2BIG_FROM - 1, BAD, BAD, BAD, 2))) == "EFAULT"
    # Whoever only asks needs no room.
    assert owner(lambda task: errno_of(lambda: task.sys_move_pages(0, 2 ** 64 - 1, BAD, 0, BAD, 2))) == "EFAULT"


def test_without_room_for_the_request_nothing_moves(machine):
    """Lines 938-942."""
    owner = Owner(machine)
    va, frame = owner.va, pfn_at(owner, owner.va)

    def program(task):
        task.fail_nth(1)
        return errno_of(lambda: task.move_pages(0, [va], [1])), task.fail_nth(0)

    assert owner(program) == ("ENOMEM", 0)
    assert pfn_at(owner, va) == frame
    machine.audit().raise_if_broken()


def test_arrays_of_any_length_are_moved_chunk_by_chunk(boot):
    """What lies before the chunk with the error is done, statuses included; of that chunk
    nothing is.  (Linux since 3140a2273009.)"""
    machine = boot(frames_per_node=2048)
    puppet = Puppet(machine)
    count = 3 * CHUNK + 5
    va = puppet(lambda task: task.mmap(count * PAGE))
    puppet(lambda task: [task.store64(va + i * PAGE, i) for i in range(count)])
    places = [va + i * PAGE for i in range(count)]
    machine.init.move_pages(puppet.pid, places, [0] * count)
    bad = list(places)
    failed, statuses = puppet(lambda task: raw(task, places, [1] * (2 * CHUNK + 3) + [17] + [1] * (CHUNK + 1)))
    assert failed == "ENODEV"
    assert statuses == [1] * 2 * CHUNK + [77] * (CHUNK + 5)
    assert [node_at(puppet, place) for place in places] == [1] * 2 * CHUNK + [0] * (CHUNK + 5)
    bad[CHUNK] = 64
    failed, statuses = puppet(lambda task: raw(task, bad, [0] * count))
    assert failed is None
    assert statuses == [0] * CHUNK + [-errno.EFAULT] + [0] * (count - CHUNK - 1)
    assert [node_at(puppet, place) for place in places].count(1) == 1
    assert puppet(lambda task: [task.load64(place) for place in places]) == list(range(count))
    machine.audit().raise_if_broken()


def test_a_task_may_move_the_very_arrays_it_asks_with(machine):
    """The kernel reads and writes them through the caller's page tables, while they move."""
    puppet = Puppet(machine)

    def program(task):
        at = task.mmap(3 * PAGE)
        pages, nodes, status = at, at + PAGE, at + 2 * PAGE
        task.store64(status, 0)
        seen = []
        for node in (0, 1, 0, 1):
            for index, page in enumerate((pages, nodes, status)):
                task.store64(pages + 8 * index, page)
                task.store(nodes + 4 * index, node.to_bytes(4, "little"))
            task.sys_move_pages(0, 3, pages, nodes, status, MPOL_MF_MOVE)
            seen.append(list(task.load(status, 12)[::4]))
        return seen, at

    seen, at = puppet(program)
    assert seen == [[0] * 3, [1] * 3] * 2
    assert [node_at(puppet, at + i * PAGE) for i in range(3)] == [1] * 3
    machine.audit().raise_if_broken()


def test_a_status_that_faults_its_page_in_is_written(machine):
    """The array's pages need not be there yet, or be this task's alone."""
    puppet = Puppet(machine)

    def program(task):
        data, arrays = task.mmap(PAGE), task.mmap(2 * PAGE)
        task.store64(arrays, data)
        task.store(data, b"x")
        node = task.move_pages(0, [data])[0]
        task.sys_move_pages(0, 1, arrays, 0, arrays + PAGE + 8, 0)
        child = task.fork(lambda child: (child.sys_move_pages(0, 1, arrays, 0, arrays + PAGE, 0),
                                         child.load(arrays + PAGE, 4))[1])
        return node, task.load(arrays + PAGE, 12), child.result(10)

    node, own, childs = puppet(program)
    expected = node.to_bytes(4, "little")
    assert own == bytes(8) + expected and childs == expected
