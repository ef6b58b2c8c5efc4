# SPDX-License-Identifier: GPL-2.0-only
"""What nobody should pass, to every public function: the exception or errno that one would
expect, with a sentence, and a machine that is as it was."""
import errno
import functools
import os

import numpy as np
import pytest

import shmkern
from helpers import PAGE, run
from shmkern import MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MPOL_BIND, PROT_READ, SegmentationFault, direct_map

pytestmark = pytest.mark.timeout(60)

A = 0x10_0000_0000
HUGE = [1 << 63, (1 << 64) - 1, 1 << 64, 1 << 200]
NO_NUMBER = ["4096", None, 4096.5, [4096], b"4096"]


def outcome(call):
    """What a call returns, the name of its errno, or the name of its exception."""
    try:
        return call()
    except SegmentationFault as fault:
        return f"fault {fault.access}"
    except OSError as error:
        return errno.errorcode[error.errno]
    except Exception as error:
        return type(error).__name__


# ---- machines --------------------------------------------------------------------

@pytest.mark.parametrize("nodes", [0, -1, 65, 1 << 64, 1.5, True, "2", float("inf"), float("nan")])
def test_a_machine_has_1_to_64_nodes(nodes):
    with pytest.raises(ValueError, match="nodes is .* from 1 to 64"):
        shmkern.Machine(nodes=nodes)


@pytest.mark.parametrize("frames", [0, -1, 63, (1 << 22) + 1, 1 << 64, 100.5, True, "100"])
def test_a_node_has_64_to_4194304_frames(frames):
    with pytest.raises(ValueError, match="frames_per_node .* from 64 to 4194304"):
        shmkern.Machine(frames_per_node=frames)


@pytest.mark.parametrize("tasks", [0, 2, 1025, -5, 3.5, True])
def test_a_machine_has_3_to_1024_tasks(tasks):
    with pytest.raises(ValueError, match="max_tasks .* from 3 to 1024"):
        shmkern.Machine(max_tasks=tasks)


@pytest.mark.parametrize("seconds", [0, -1, 1e9, float("inf"), float("nan")])
def test_the_hung_task_limit_is_a_time(seconds):
    with pytest.raises(ValueError, match="hung_task_timeout"):
        shmkern.Machine(hung_task_timeout=seconds)


@pytest.mark.parametrize("name", ["nodes", "frames_per_node", "max_tasks", "hung_task_timeout"])
def test_no_parameter_of_a_machine_may_be_none_or_a_list(name):
    for value in (None, [2], {}):
        with pytest.raises((TypeError, ValueError)):
            shmkern.Machine(**{name: value})


def test_a_machine_that_the_host_has_no_room_for_says_how_much_it_needs():
    with pytest.raises(shmkern.BootError, match=r"needs \d+ MiB"):
        # As many as there can be: some numbers are a device's.
        shmkern.Machine(nodes=64, frames_per_node=(1 << 22) - 32)
    assert not [name for name in direct_map.blocks() if f"-{direct_map.os.getpid()}-" in name]


@pytest.mark.parametrize("shape", [dict(nodes=1, frames_per_node=64, max_tasks=3),
                                   dict(nodes=64, frames_per_node=64, max_tasks=4),
                                   dict(nodes=3, frames_per_node=1000, max_tasks=5),
                                   dict(nodes=np.int64(2), frames_per_node=np.uint16(257), max_tasks=1024)])
def test_odd_but_allowed_shapes_work(boot, shape):
    machine = boot(**shape)

    def program(task):
        va = task.mmap(8 * PAGE)
        for index in range(8):
            task.store64(va + index * PAGE, index)
        task.move_pages(0, [va + i * PAGE for i in range(8)], [int(shape["nodes"]) - 1] * 8)
        return [task.load64(va + i * PAGE) for i in range(8)]

    assert run(machine, program) == list(range(8))
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("nodes, error", [([], ValueError), ([0], ValueError), ([1, 1], ValueError),
                                          ([0, 2], ValueError), ([0, -1], ValueError), ([0, 1.5], ValueError),
                                          ([0, "1"], ValueError), (1, TypeError), ([0, None], ValueError)])
def test_a_migrator_needs_two_nodes_that_there_are(machine, nodes, error):
    with pytest.raises(error):
        machine.start_migrator(nodes=nodes)
    assert len(machine.children) == 1


def test_a_machine_of_one_node_has_no_migrator(boot):
    with pytest.raises(ValueError, match="two nodes"):
        boot(nodes=1).start_migrator()


def test_times_to_wait_are_times(machine):
    child = machine.spawn(lambda task: 1)
    assert child.result(10) == 1
    for timeout in ("soon", [1]):
        with pytest.raises(TypeError):
            machine.spawn(lambda task: 1).result(timeout)
    read_end, write_end = os.pipe()
    child = machine.spawn(lambda task: os.read(read_end, 1))    # has no result before it is asked for
    with pytest.raises(TimeoutError):
        child.result(-5)
    os.write(write_end, b"!")
    assert child.result(10) == b"!"
    os.close(read_end), os.close(write_end)


# ---- loads and stores ------------------------------------------------------------

def accesses(task, address):
    """The outcome of every kind of access at an address."""
    return [outcome(lambda: task.load(address, 8)), outcome(lambda: task.store(address, b"12345678")),
            outcome(lambda: task.load64(address)), outcome(lambda: task.store64(address, 1)),
            outcome(lambda: task.cmpxchg64(address, 0, 1)), outcome(lambda: task.fetch_add64(address, 1))]


def test_no_number_is_no_address(machine):
    found = run(machine, lambda task: [accesses(task, address) for address in NO_NUMBER])
    assert found == [["TypeError"] * 6] * len(NO_NUMBER)
    machine.audit().raise_if_broken()


def test_addresses_beyond_the_word_are_overflows_and_others_fault(machine):
    found = run(machine, lambda task: [accesses(task, address) for address in (-1, -PAGE, 1 << 64, 1 << 200)])
    assert found == [["OverflowError"] * 6] * 4
    for address in (0, PAGE, (1 << 47) - PAGE, 1 << 47, 1 << 63, (1 << 64) - 8):
        found = run(machine, lambda task: accesses(task, address))
        assert found == ["fault load", "fault store"] * 2 + ["fault store"] * 2, hex(address)
    machine.audit().raise_if_broken()


def test_lengths_that_cannot_be(machine):
    def program(task):
        va = task.mmap(PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, A)
        return [outcome(lambda: task.load(va, length)) for length in (-1, 1 << 64, 1 << 200, "1", None, 1.5)]
    assert run(machine, program) == ["OverflowError"] * 3 + ["TypeError"] * 3
    # As much as nobody has.
    for length in (1 << 47, 1 << 62, 1 << 63, (1 << 64) - 1):
        assert run(machine, lambda task: outcome(lambda: task.load(A, length))) in \
            ("MemoryError", "OverflowError", "fault load", "ValueError"), hex(length)
    machine.audit().raise_if_broken()


def test_what_is_no_bytes_is_not_stored(machine):
    def program(task):
        va = task.mmap(PAGE)
        return [outcome(lambda: task.store(va, data)) for data in
                ("text", None, 5, 1.5, [1, 2], np.arange(8)[::2], object())], task.load(va, 64)
    assert run(machine, program) == (["TypeError"] * 7, bytes(64))


def test_what_is_bytes_in_some_way_is_stored(machine):
    def program(task):
        va = task.mmap(PAGE)
        seen = []
        for data in (b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), np.frombuffer(b"abcd", np.uint16),
                     np.frombuffer(b"abcd", np.uint8).reshape(2, 2), memoryview(b"abcd").cast("H")):
            task.store(va, bytes(4))
            task.store(va, data)
            seen.append(task.load(va, 4))
        for nothing in (b"", bytearray(), np.zeros(0), np.zeros((0, 3))):
            task.store(va, nothing)
        return seen
    assert run(machine, program) == [b"abcd"] * 6


def test_what_is_bytes_in_some_way_is_written(machine, tmp_path):
    (tmp_path / "file").write_bytes(b"")

    def program(task):
        fd = task.open(tmp_path / "file")
        return [task.write(fd, data) + task.pwrite(fd, data, 8)
                for data in (np.frombuffer(b"abcd", np.uint16), b"", np.zeros(0), np.zeros((0, 3)))], task.pread(fd, 12, 0)
    assert run(machine, program) == ([8, 0, 0, 0], b"abcd" + bytes(4) + b"abcd")


def test_values_that_are_no_word(machine):
    def program(task):
        va = task.mmap(PAGE)
        bad = ["1", None, 1.5, b"12345678"]
        return [[outcome(lambda: task.store64(va, value)), outcome(lambda: task.cmpxchg64(va, value, 1)),
                 outcome(lambda: task.cmpxchg64(va, 0, value)), outcome(lambda: task.fetch_add64(va, value))]
                for value in bad], [outcome(lambda: task.store64(va, value)) for value in (1 << 64, -1 << 64)], \
            task.load64(va)
    wrong, wide, left = run(machine, program)
    assert wrong == [["TypeError"] * 4] * 4 and wide == ["OverflowError"] * 2 and left == 0


@pytest.mark.parametrize("number", [1.5, 8.0, float("nan"), "8", b"8", None, [8, 1.5], np.float64(8), np.array(["8"])], ids=repr)
def test_many_words_are_whole_numbers_as_one_is(machine, number):
    def program(task):
        va = task.mmap(PAGE)
        return [outcome(call) for call in (
            lambda: task.load64_many(number), lambda: task.store64_many(number, 1), lambda: task.store64_many([va], number),
            lambda: task.fetch_add64_many(number, 1), lambda: task.fetch_add64_many([va], number),
            lambda: task.cmpxchg64_many(number, 0, 1), lambda: task.cmpxchg64_many([va], number, 1),
            lambda: task.cmpxchg64_many([va], 0, number))], task.load64(va)
    assert run(machine, program) == (["TypeError"] * 8, 0)


def test_many_words_may_be_of_any_whole_type(machine):
    def program(task):
        va = task.mmap(PAGE)
        seen = []
        for values in (7, [7], np.int8([7]), np.uint64([7]), np.array([True]) * 7, [np.int32(7)], [1 << 64 - 1], -1,
                       [(1 << 64) - 1, 1 << 63][:1], []):
            task.store64_many([va][:np.size(values)], values)
            seen.append(task.load64(va))
        return seen, list(map(outcome, [lambda: task.store64_many([va], 1 << 64), lambda: task.load64_many([])]))[0]
    assert run(machine, program) == ([7] * 6 + [1 << 63] + [(1 << 64) - 1] * 3, "OverflowError")


# ---- system calls ----------------------------------------------------------------

CALLS = ["mmap", "munmap", "mprotect", "mremap"]


def call(task, name, which, value):
    """A system call with one argument replaced, which else would succeed."""
    task.mmap(4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, A)
    args = {"mmap": [PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS, A + 64 * PAGE], "munmap": [A, PAGE],
            "mprotect": [A, PAGE, PROT_READ], "mremap": [A, PAGE, PAGE, 3, A + 32 * PAGE]}[name]
    if which >= len(args):
        return "TypeError"
    args[which] = value
    return outcome(lambda: getattr(task, name)(*args))


@pytest.mark.parametrize("name", CALLS)
def test_an_argument_that_is_no_number_is_a_type_error(machine, name):
    found = run(machine, lambda task: [call(task, name, which, value) for which in range(5) for value in NO_NUMBER])
    assert found == ["TypeError"] * 5 * len(NO_NUMBER)
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("name", CALLS)
def test_huge_and_negative_numbers_end_in_an_errno_or_an_overflow(machine, name):
    """Or in success, where Linux ignores what it does not know: flags, protections of mmap, a
    hint."""
    def program(task):
        return {(which, value): call(task, name, which, value) for which in range(5)
                for value in [*HUGE, -1, -PAGE, -(1 << 70), (1 << 47), (1 << 48) - PAGE, (1 << 63) + PAGE]}

    for (which, value), found in run(machine, program).items():
        assert found in ("EINVAL", "ENOMEM", "EFAULT", "EBADF", "EACCES", "OverflowError", "TypeError") or \
            (name == "mmap" and which in (1, 2, 3) and isinstance(found, int)), (which, hex(value), found)
    machine.audit().raise_if_broken()


def test_numbers_are_not_cut_to_a_word(machine):
    """A length of 2^64 + 4096 is no length of 4096."""
    def program(task):
        task.mmap(4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, A)
        wide = 1 << 64
        return [outcome(lambda: task.mmap(wide + PAGE)), outcome(lambda: task.munmap(wide + A, PAGE)),
                outcome(lambda: task.munmap(A, wide + PAGE)), outcome(lambda: task.mprotect(A, PAGE, wide + 1))]
    assert set(run(machine, program)) <= {"EINVAL", "ENOMEM", "OverflowError"}


# ---- move_pages and its like -----------------------------------------------------

def test_lists_of_different_lengths_are_refused(machine):
    def program(task):
        va = task.mmap(PAGE)
        return [outcome(lambda: task.move_pages(0, pages, nodes)) for pages, nodes in
                (([va], []), ([], [1]), ([va, va], [1]), ([va], np.zeros(5, np.int32)))]
    assert run(machine, program) == ["ValueError"] * 4


def test_what_is_no_list_of_numbers_is_a_type_error(machine):
    def program(task):
        va = task.mmap(PAGE)
        return [outcome(lambda: task.move_pages(0, pages, nodes)) for pages, nodes in
                ((None, [1]), (va, 1), ([va], 1), ([str(va)], [1]), ([va], ["1"]), ([va], [1.0]), ([float(va)], [1]),
                 ([None], [1]), ([va], [None]), (np.array([1.5]), [1]), ([va], np.array([1.5])))]
    assert run(machine, program) == ["TypeError"] * 11


@pytest.mark.parametrize("number", [1.5, 1.0, float("nan"), "1", None, b"1", [1]], ids=repr)
def test_what_is_no_whole_number_is_no_pid_no_node_no_group_and_no_descriptor(boot, number, tmp_path):
    """Nor is it cut to one."""
    (tmp_path / "file").write_bytes(b"x")

    def program(task):
        va, fd = task.mmap(PAGE), task.open(tmp_path / "file")
        return {name: found for name, call in {
            "migrate_pages": lambda: task.migrate_pages(number, [0], [1]),
            "sys_migrate_pages": lambda: task.sys_migrate_pages(number, 0, 0, 0),
            "move_pages": lambda: task.move_pages(number, [va], [1]), "move_pages flags": lambda: task.move_pages(0, [va], [1], number),
            "sys_move_pages": lambda: task.sys_move_pages(number, 0, 0, 0, 0, 2),
            "sys_move_pages flags": lambda: task.sys_move_pages(0, 0, 0, 0, 0, number),
            "mbind mode": lambda: task.mbind(va, PAGE, number, [0]), "mbind flags": lambda: task.mbind(va, PAGE, 0, [], number),
            "set_mempolicy": lambda: task.set_mempolicy(number, [0]), "get_mempolicy": lambda: task.get_mempolicy(0, number),
            "mmap_device": lambda: task.mmap_device(PAGE, number), "offline_node": lambda: task.offline_node(number),
            "online_node": lambda: task.online_node(number), "close": lambda: task.close(number),
            "fail_nth": lambda: task.fail_nth(number),
            "lseek": lambda: task.lseek(fd, number), "lseek whence": lambda: task.lseek(fd, 0, number),
            "cgroup_create": lambda: task.cgroup_create("a", parent=number), "cgroup_remove": lambda: task.cgroup_remove(number),
            "cgroup_attach": lambda: task.cgroup_attach(number), "cgroup_attach pid": lambda: task.cgroup_attach(1, number),
            "cgroup_stat": lambda: task.cgroup_stat(number), "cgroup_set_limit": lambda: task.cgroup_set_limit(number, PAGE),
            "cgroup_force_empty": lambda: task.cgroup_force_empty(number)}.items()
            if (found := outcome(call)) != "TypeError"}
    machine = boot(memcg=True)
    assert run(machine, program) == {}
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("whole", [np.uint8, np.int8, np.int32, np.int64, np.uint64, bool], ids=lambda kind: kind.__name__)
def test_a_node_may_be_of_any_whole_type(boot, whole):
    """However few bits its type has, or no bit that is no sign."""
    nodes = [1] if whole is bool else [1, 9, 31, 63]

    def program(task):
        seen = []
        for node in nodes:
            task.set_mempolicy(MPOL_BIND, [whole(node)])
            seen.append(task.get_mempolicy())
        return seen
    assert run(boot(nodes=64, frames_per_node=64, max_tasks=8), program) == [(MPOL_BIND, [node]) for node in nodes]


@pytest.mark.parametrize("number", [1.0, np.float64(1), "1", None, [1]], ids=repr)
def test_what_is_no_whole_number_is_no_node_of_a_policy(machine, number):
    assert run(machine, lambda task: [outcome(call) for call in (
        lambda: task.set_mempolicy(MPOL_BIND, [number]), lambda: task.mbind(0, PAGE, MPOL_BIND, [number]),
        lambda: task.migrate_pages(0, [number], [0]), lambda: task.migrate_pages(0, [0], [number]))]) == ["TypeError"] * 4


def test_addresses_and_nodes_out_of_range(machine):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        return [outcome(lambda: task.move_pages(0, [va], [node])) for node in
                (-1, 2, 64, 1 << 31, 1 << 32, (1 << 32) + 1, -(1 << 40), 1 << 64)], \
            [outcome(lambda: task.move_pages(0, [page], [1])) for page in (0, 1 << 47, (1 << 64) - 1)], \
            [outcome(lambda: task.move_pages(0, [page], [1])) for page in (-1, 1 << 64, (1 << 64) + va)]
    nodes, pages, beyond = run(machine, program)
    assert set(map(str, nodes)) <= {"ENODEV", "OverflowError", "ValueError"}, nodes
    assert pages == [[-errno.EFAULT]] * 3
    assert set(map(str, beyond)) <= {"OverflowError", "ValueError", str([-errno.EFAULT])}
    machine.audit().raise_if_broken()


def test_pids_and_flags_that_cannot_be(machine):
    def program(task):
        va = task.mmap(PAGE)
        task.store(va, b"x")
        pids = [outcome(lambda: task.move_pages(pid, [va], [1])) for pid in (-1, 12345, 1 << 31, 1 << 64, "1", None, 1.5)]
        flags = [outcome(lambda: task.move_pages(0, [va], [1], flag)) for flag in
                 (1, 8, -1, 1 << 30, 1 << 32, 1 << 64, "2", None, 2.5)]
        return pids, flags
    pids, flags = run(machine, program)
    assert pids[:2] == ["ESRCH"] * 2 and set(pids[2:4]) <= {"ESRCH", "OverflowError"} and pids[4:] == ["TypeError"] * 3
    assert flags[:4] == ["EINVAL"] * 4 and set(flags[4:6]) <= {"EINVAL", "OverflowError"}
    assert flags[6:] == ["TypeError"] * 3


def test_read_only_and_strided_arrays_will_do(machine):
    def program(task):
        va = task.mmap(4 * PAGE)
        task.store(va, b"x" * 4 * PAGE)
        pages = np.arange(4, dtype=np.uint64) * PAGE + va
        pages.setflags(write=False)
        nodes = np.zeros(8, np.int64)[::2]
        return task.move_pages(0, pages, nodes), task.move_pages(0, pages[::2], [0, 0]), \
            task.move_pages(0, tuple(pages), (0, 0, 0, 0))
    assert run(machine, program) == ([0] * 4, [0] * 2, [0] * 4)


def test_ranges_of_frames_out_of_range(machine):
    """Of the migrator's call; and across nodes, for each has its own lock."""
    def program(task):
        return [outcome(lambda: task.migrate_frames(*args)) for args in
                ((5, 3, 1), (5, 5, 1), (2048, 2048, 0), (0, 2049, 1), (1000, 1040, 1), (0, 10, 2), (0, 10, -1),
                 (1 << 63, 1 << 63, 0))], \
            [outcome(lambda: task.migrate_frames(*args)) for args in ((-1, 5, 0), (0, 1 << 64, 0), (0, 5, 1 << 40))], \
            [outcome(lambda: task.migrate_frames(*args)) for args in (("0", 5, 0), (0, None, 0), (0, 5, 1.5))]
    einval, overflow, types = run(machine, program)
    assert einval == ["EINVAL"] * 8 and set(overflow) <= {"EINVAL", "OverflowError"} and types == ["TypeError"] * 3


# ---- programs --------------------------------------------------------------------

def test_a_child_without_a_program(machine):
    def program(task):
        return [outcome(lambda: task.fork(None).result(10)), outcome(lambda: task.clone(7).result(10)),
                outcome(lambda: task.fork()), outcome(lambda: task.fork(lambda task: 1, 2).result(10))]
    assert run(machine, program) == ["TypeError"] * 4
    machine.audit().raise_if_broken()


def test_a_programs_name_may_be_anything(machine):
    """It is cut to what fits in the task's slot, on a boundary of characters or not."""
    def program(task):
        return task.pid
    for name in ("x" * 500, "ä" * 40, "名" * 20, "", "a b\nc", "\udcff"):
        program.__name__ = name
        assert run(machine, program) > 0
    for name in (5, None, b"x"):
        callable_object = functools.partial(program)
        callable_object.__name__ = name
        assert run(machine, callable_object) > 0
    machine.audit().raise_if_broken()


def test_a_recursion_or_a_huge_result_is_the_programs_problem(machine):
    def deep(task):
        return deep(task)
    with pytest.raises(RecursionError):
        run(machine, deep)
    assert len(run(machine, lambda task: b"x" * (20 << 20))) == 20 << 20
    machine.audit().raise_if_broken()
