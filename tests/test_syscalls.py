# SPDX-License-Identifier: GPL-2.0-only
"""mmap, munmap, mprotect, mremap, load and store: the errnos of their man pages, the same
outcome as the host's kernel, and accesses that end where they should."""
import ctypes
import errno
import os
import pickle

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import shmkern
from helpers import PAGE, TASK_SIZE, Puppet, counter, frame_bytes, pfn_at, run, vmas
from shmkern import (MAP_ANONYMOUS, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, MREMAP_FIXED, MREMAP_MAYMOVE, MS_SYNC,
                     PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE, SegmentationFault)

pytestmark = pytest.mark.timeout(60)

PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS
RW = PROT_READ | PROT_WRITE
ARENA = 0x10_0000_0000
ARENA_PAGES = 48


def errno_of(call):
    """The name of the errno that a call fails with, or what it returns."""
    try:
        return call()
    except OSError as error:
        return errno.errorcode[error.errno]


# ---- the host's kernel, with the same methods ----------------------------------

class Host:
    """The calls of a Task, made to the host's kernel; loads and stores go through a pipe, so
    that the kernel says EFAULT where the CPU would say SIGSEGV."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        for name, args in (("mmap", "QQiiiq"), ("munmap", "QQ"), ("mprotect", "QQi"), ("mremap", "QQQiQ"), ("msync", "QQi"),
                           ("read", "iQQ"), ("write", "iQQ")):
            types = {"Q": ctypes.c_uint64, "i": ctypes.c_int, "q": ctypes.c_int64}
            function = getattr(self.libc, name)
            function.restype = ctypes.c_int if name in ("munmap", "mprotect", "msync") else ctypes.c_int64
            function.argtypes = [types[arg] for arg in args]
        self.pipe = os.pipe()

    def _call(self, name, *args):
        result = getattr(self.libc, name)(*args)
        if result == -1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result & (1 << 64) - 1

    def mmap(self, length, prot=RW, flags=PRIVATE, addr=0):
        return self._call("mmap", addr, length, prot, flags, -1, 0)

    def munmap(self, addr, length):
        self._call("munmap", addr, length)

    def mprotect(self, addr, length, prot):
        self._call("mprotect", addr, length, prot)

    def mremap(self, old, old_size, new_size, flags=0, new=0):
        return self._call("mremap", old, old_size, new_size, flags, new)

    def msync(self, addr, length, flags=MS_SYNC):
        self._call("msync", addr, length, flags)

    def load(self, address, length):
        try:
            done = self._call("write", self.pipe[1], address, length)
        except OSError:
            raise SegmentationFault(address, "load") from None
        data = os.read(self.pipe[0], done)
        if done < length:
            raise SegmentationFault(address + done, "load")
        return data

    def store(self, address, data):
        os.write(self.pipe[1], data)
        try:
            done = self._call("read", self.pipe[0], address, len(data))
        except OSError:
            done = 0
        if done < len(data):
            os.set_blocking(self.pipe[0], False)
            try:
                os.read(self.pipe[0], len(data))
            except BlockingIOError:
                pass
            os.set_blocking(self.pipe[0], True)
            raise SegmentationFault(address + done, "store")


def on_host(program):
    """Runs program(Host()) in a forked process and returns its result."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            result = True, program(Host())
        except BaseException as error:
            result = False, repr(error)
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    succeeded, result = pickle.loads(data)
    assert succeeded, result
    return result


def outcome(cpu, name, *args):
    """What one call comes to: a value, an errno's name, or "fault"."""
    try:
        return getattr(cpu, name)(*args)
    except SegmentationFault:
        return "fault"
    except OSError as error:
        return errno.errorcode[error.errno]


# ---- errnos --------------------------------------------------------------------

# Before each: pages 0-3 of the arena are mapped rw, 4-5 are a hole, 6-7 are mapped r.
A = ARENA
ERRNOS = [
    ("mmap", (0,), "EINVAL"),
    ("mmap", (PAGE, RW, MAP_ANONYMOUS), "EINVAL"),
    ("mmap", (PAGE, RW, MAP_ANONYMOUS | 8 | MAP_PRIVATE), "EINVAL"),
    ("mmap", (PAGE, RW, PRIVATE | MAP_FIXED, A + 1), "EINVAL"),
    ("mmap", (1 << 64) - 1, "ENOMEM"),
    ("mmap", (1 << 47,), "ENOMEM"),
    ("mmap", (PAGE, RW, PRIVATE | MAP_FIXED, TASK_SIZE), "ENOMEM"),
    ("mmap", (2 * PAGE, RW, PRIVATE | MAP_FIXED, TASK_SIZE - PAGE), "ENOMEM"),
    ("munmap", (A + 1, PAGE), "EINVAL"),
    ("munmap", (A, 0), "EINVAL"),
    ("munmap", (TASK_SIZE + PAGE, PAGE), "EINVAL"),
    ("munmap", (A, TASK_SIZE), "EINVAL"),
    ("munmap", (A, (1 << 64) - 1), "EINVAL"),
    ("munmap", (A + 4 * PAGE, 2 * PAGE), None),
    ("munmap", (A, 8 * PAGE), None),
    ("munmap", (A, 1), None),
    ("mprotect", (A + 1, PAGE, RW), "EINVAL"),
    ("mprotect", (A, PAGE, 0x100), "EINVAL"),
    ("mprotect", (A, 0, RW), None),
    ("mprotect", (A + 40 * PAGE, 0, RW), None),
    ("mprotect", (A + 4 * PAGE, PAGE, RW), "ENOMEM"),
    ("mprotect", (A + 5 * PAGE, 2 * PAGE, RW), "ENOMEM"),
    ("mprotect", (A, 5 * PAGE, PROT_READ), "ENOMEM"),
    ("mprotect", (A, (1 << 64) - PAGE, PROT_READ), "ENOMEM"),
    ("mprotect", (A, 1, PROT_NONE), None),
    ("mprotect", (A, 1 << 47, 0x100), "EINVAL"),
    ("mprotect", (TASK_SIZE, PAGE, 0x100), "EINVAL"),
    ("mprotect", (TASK_SIZE, PAGE, PROT_READ), "ENOMEM"),
    ("mprotect", (1 << 63, 1 << 63, 0x100), "ENOMEM"),
    ("mprotect", (A, 1 << 47, PROT_READ), "ENOMEM"),
    ("msync", (A + 1, PAGE), "EINVAL"),
    ("msync", (A, PAGE, 8), "EINVAL"),
    ("msync", (A, 4 * PAGE), None),
    ("msync", (A, 6 * PAGE), "ENOMEM"),
    ("msync", (A, 1 << 47), "ENOMEM"),
    ("msync", (A, (1 << 64) - PAGE), "ENOMEM"),
    ("msync", (A, (1 << 64) - 1), None),
    ("msync", (TASK_SIZE, PAGE), "ENOMEM"),
    ("msync", (1 << 63, 0), None),
    ("mremap", (A + 1, PAGE, 2 * PAGE), "EINVAL"),
    ("mremap", (A, PAGE, 0), "EINVAL"),
    ("mremap", (A, 0, PAGE), "EINVAL"),
    ("mremap", (A, PAGE, PAGE, 8), "EINVAL"),
    ("mremap", (A, PAGE, PAGE, MREMAP_FIXED, A + 20 * PAGE), "EINVAL"),
    ("mremap", (A, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A + 20 * PAGE + 1), "EINVAL"),
    ("mremap", (A, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A + PAGE), "EINVAL"),
    ("mremap", (A + PAGE, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A), "EINVAL"),
    ("mremap", (A, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, TASK_SIZE), "EINVAL"),
    ("mremap", (A + 4 * PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE), "EFAULT"),
    ("mremap", (A + 2 * PAGE, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE), "EFAULT"),
    ("mremap", (A + 6 * PAGE, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE), "EFAULT"),
    ("mremap", (A, 4 * PAGE, 8 * PAGE), "ENOMEM"),
    ("mremap", (A, 2 * PAGE, 3 * PAGE), "ENOMEM"),
    ("mremap", (A, 4 * PAGE, 6 * PAGE), A),
    ("mremap", (A, 4 * PAGE, 4 * PAGE), A),
    ("mremap", (A, 8 * PAGE, 8 * PAGE), A),
    ("mremap", (A, 4 * PAGE, PAGE), A),
    ("mremap", (A, 4 * PAGE, PAGE + 1), A),
    ("mremap", (A, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A + 20 * PAGE), A + 20 * PAGE),
    ("mremap", (A, 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A + 6 * PAGE), A + 6 * PAGE),
]
ERRNOS = [(name, args if isinstance(args, tuple) else (args,), expected) for name, args, expected in ERRNOS]


def set_up_arena(cpu):
    """The arena as the table above has it."""
    cpu.munmap(ARENA, ARENA_PAGES * PAGE)
    cpu.mmap(4 * PAGE, RW, PRIVATE | MAP_FIXED, ARENA)
    cpu.mmap(2 * PAGE, PROT_READ, PRIVATE | MAP_FIXED, ARENA + 6 * PAGE)


def try_errnos(cpu):
    """The outcome of each line of the table."""
    results = []
    for name, args, _expected in ERRNOS:
        set_up_arena(cpu)
        results.append(outcome(cpu, name, *args))
    return results


def test_every_errno_is_the_man_pages_and_the_hosts(machine):
    ours, hosts = run(machine, try_errnos), on_host(try_errnos)
    for (name, args, expected), here, there in zip(ERRNOS, ours, hosts):
        call = f"{name}({', '.join(hex(arg) for arg in args)})"
        assert here == expected, f"{call} is {here}, the man page says {expected}"
        assert there == expected, f"{call} is {there} on the host, {expected} in the table"


def test_what_lies_before_the_end_of_memory_is_protected(machine):
    """As before any other hole, and then it is told; a protection that there is not, first."""
    def program(cpu):
        set_up_arena(cpu)
        cpu.store(A, b"here")
        return [outcome(cpu, *call) for call in (
            ("mprotect", A, 1 << 47, 0x100), ("load", A, 4), ("mprotect", A, 1 << 47, PROT_NONE), ("load", A, 4),
            ("load", A + 3 * PAGE, 1), ("load", A + 6 * PAGE, 1))]
    assert run(machine, program) == on_host(program) == ["EINVAL", b"here", "ENOMEM", "fault", "fault", b"\0"]


def test_a_mapping_without_a_file_is_anonymous_or_refused(machine):
    assert run(machine, lambda task: errno_of(lambda: task.mmap(PAGE, RW, MAP_PRIVATE))) == "EBADF"
    assert run(machine, lambda task: errno_of(lambda: task.mmap(PAGE, RW, MAP_SHARED, 0, 63))) == "EBADF"
    assert run(machine, lambda task: errno_of(
        lambda: task.mmap(PAGE, RW, MAP_SHARED | PRIVATE))) == "EINVAL"


def test_low_addresses_cannot_be_mapped(machine):
    def program(task):
        return (errno_of(lambda: task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, 0)),
                errno_of(lambda: task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, 0xf000)),
                errno_of(lambda: task.mmap(PAGE, RW, PRIVATE | MAP_SHARED | MAP_FIXED, 0xf000)),
                task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, 0x10000),
                errno_of(lambda: task.mremap(0x10000, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, 0xf000)),
                task.mmap(PAGE, RW, PRIVATE, PAGE) >= 0x10000)
    assert run(machine, program) == ("EACCES", "EACCES", "EINVAL", 0x10000, "EACCES", True)


def test_a_new_length_beyond_the_address_space_has_no_room(machine):
    """And is asked about after the old range, as that may become as long as it wants."""
    def program(task):
        va = task.mmap(2 * PAGE)
        return [errno_of(lambda: task.mremap(va, *lengths, MREMAP_MAYMOVE)) for lengths in
                ((PAGE, 1 << 50), (2 * PAGE, (1 << 64) - PAGE), (4 * PAGE, 1 << 50), (1 << 49, 1 << 50), (1 << 50, PAGE),
                 (PAGE, (1 << 64) - 1))]
    assert run(machine, program) == ["ENOMEM", "ENOMEM", "EFAULT", "EFAULT", "EINVAL", "EINVAL"]


def test_shared_memory_mapped_again_over_itself_is_not_lost(machine):
    """An old length of 0 asks for a second mapping.  (Later kernels unmap the first, and then miss it.)"""
    def program(task):
        va = task.mmap(2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS)
        task.store(va + PAGE, b"here")
        same, around = (errno_of(lambda: task.mremap(va + PAGE, 0, size, MREMAP_MAYMOVE | MREMAP_FIXED, to))
                        for size, to in ((PAGE, va + PAGE), (2 * PAGE, va)))
        return same, around, task.load(va + PAGE, 4)
    assert run(machine, program) == ("EINVAL", "EINVAL", b"here")


def test_a_hint_is_taken_when_there_is_room_and_ignored_when_not(machine):
    def program(task):
        first = task.mmap(2 * PAGE, RW, PRIVATE, ARENA)
        second = task.mmap(PAGE, RW, PRIVATE, ARENA + PAGE)
        beyond = task.mmap(PAGE, RW, PRIVATE, TASK_SIZE)
        return first, second != ARENA + PAGE and second % PAGE == 0, 0 < beyond < TASK_SIZE
    assert run(machine, program) == (ARENA, True, True)


def test_mmap_fills_gaps_from_the_top_and_never_overlaps(machine):
    def program(task):
        places = [task.mmap(2 * PAGE) for _ in range(20)]
        for place in places[::2]:
            task.munmap(place, 2 * PAGE)
        again = [task.mmap(PAGE) for _ in range(20)]
        return places, again
    places, again = run(machine, program)
    ranges = sorted([(place, place + 2 * PAGE) for place in places[1::2]] +
                    [(place, place + PAGE) for place in again])
    assert all(one[1] <= other[0] for one, other in zip(ranges, ranges[1:]))
    assert min(again) >= min(places)


def test_an_address_space_full_of_areas_says_enomem_and_goes_on(boot):
    """max_map_count is 65536; mmap goes one further.  The kernel's objects get 16 KiB a task, so many tasks are room
    for that many areas."""
    machine = boot(max_tasks=1024)

    def program(task):
        count = 0
        va = task.mmap(140_000 * PAGE, PROT_NONE)
        try:
            while count < 70_000:
                task.mprotect(va + 2 * count * PAGE, PAGE, PROT_READ)
                count += 1
        except OSError as error:
            assert error.errno == errno.ENOMEM
        others = [[errno_of(lambda: task.mmap(PAGE, prot)) for prot in (PROT_WRITE, PROT_NONE) * 2][-1],
                  errno_of(lambda: task.mremap(va + 2 * count * PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE)),
                  errno_of(lambda: task.munmap(va + (2 * count + 1) * PAGE, PAGE))]
        task.munmap(va, 2 * PAGE)
        task.munmap(va + 2 * PAGE, 2 * PAGE)
        return count, others, errno_of(lambda: task.mmap(PAGE)) != "ENOMEM"
    count, others, again = run(machine, program, timeout=60)
    assert others == ["ENOMEM"] * 3 and again
    assert 2 * count - 1 <= 65536 <= 2 * count + 2


def test_areas_are_split_and_merged_again(machine):
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(6 * PAGE, RW, PRIVATE | MAP_FIXED, ARENA))
    assert vmas(puppet) == [(A, A + 6 * PAGE, RW)]
    puppet(lambda task: task.mprotect(A + 2 * PAGE, 2 * PAGE, PROT_READ))
    assert vmas(puppet) == [(A, A + 2 * PAGE, RW), (A + 2 * PAGE, A + 4 * PAGE, PROT_READ),
                            (A + 4 * PAGE, A + 6 * PAGE, RW)]
    puppet(lambda task: task.mprotect(A + 2 * PAGE, 2 * PAGE, RW))
    assert vmas(puppet) == [(A, A + 6 * PAGE, RW)]
    puppet(lambda task: task.munmap(A + 2 * PAGE, PAGE))
    puppet(lambda task: task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, A + 2 * PAGE))
    assert vmas(puppet) == [(A, A + 6 * PAGE, RW)]
    puppet(lambda task: task.mmap(2 * PAGE, RW, PRIVATE | MAP_FIXED, A + 6 * PAGE))
    assert vmas(puppet) == [(A, A + 8 * PAGE, RW)]
    puppet(lambda task: task.mremap(A + 6 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A + 20 * PAGE))
    assert vmas(puppet) == [(A, A + 6 * PAGE, RW), (A + 7 * PAGE, A + 8 * PAGE, RW),
                            (A + 20 * PAGE, A + 21 * PAGE, RW)]


@pytest.mark.parametrize("first", [0, 2])
def test_areas_merge_with_their_pages_in_place(machine, first):
    """rmap finds the pages of an area through the one that absorbed it, be that the one
    before, which had no anon_vma yet, or the one behind."""
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(3 * PAGE, RW, PRIVATE | MAP_FIXED, ARENA))
    puppet(lambda task: task.mprotect(A + PAGE, PAGE, PROT_READ))
    puppet(lambda task: task.store(A + first * PAGE, b"%d" % first))
    puppet(lambda task: task.mprotect(A + PAGE, PAGE, RW))
    assert vmas(puppet) == [(A, A + 3 * PAGE, RW)]
    machine.audit().raise_if_broken()
    puppet(lambda task: [task.store(A + i * PAGE, b"%d" % i) for i in range(3)])
    assert puppet(lambda task: task.move_pages(0, [A, A + PAGE, A + 2 * PAGE], [1] * 3)) == [1] * 3
    assert puppet(lambda task: [task.load(A + i * PAGE, 1) for i in range(3)]) == [b"0", b"1", b"2"]


def test_areas_whose_pages_have_different_anon_vmas_are_not_merged(machine):
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(3 * PAGE, RW, PRIVATE | MAP_FIXED, ARENA))
    puppet(lambda task: task.mprotect(A + PAGE, PAGE, PROT_READ))
    puppet(lambda task: (task.store(A, b"0"), task.store(A + 2 * PAGE, b"2")))
    puppet(lambda task: task.mprotect(A + PAGE, PAGE, RW))
    assert vmas(puppet) == [(A, A + 2 * PAGE, RW), (A + 2 * PAGE, A + 3 * PAGE, RW)]
    machine.audit().raise_if_broken()


# ---- the same as the host --------------------------------------------------------

PAGES = st.integers(0, ARENA_PAGES - 1)
LENGTHS = st.integers(1, 6)
PROTS = st.sampled_from([PROT_NONE, PROT_READ, RW])
CALLS = st.one_of(
    st.tuples(st.just("mmap"), PAGES, LENGTHS, PROTS),
    st.tuples(st.just("munmap"), PAGES, LENGTHS),
    st.tuples(st.just("mprotect"), PAGES, LENGTHS, PROTS),
    st.tuples(st.just("move"), PAGES, LENGTHS, PAGES),
    st.tuples(st.just("resize"), PAGES, LENGTHS, LENGTHS),
    st.tuples(st.just("store"), PAGES, st.integers(0, PAGE - 1), st.binary(min_size=1, max_size=20)),
    st.tuples(st.just("store"), PAGES, st.just(PAGE - 3), st.binary(min_size=4, max_size=20)),
    st.tuples(st.just("load"), PAGES, st.integers(0, PAGE - 1), st.integers(1, 20)),
)


def sensible(calls):
    """The calls whose outcome does not depend on how areas happen to be merged, as arguments
    for a Task; most of the arena is mapped first.  Keeps a map of page -> the calls that made
    it what it is, and leaves out an mremap of what different calls made.
    """
    made = {}
    for start in (0, 20):
        made.update(dict.fromkeys(range(start, start + 15), -1 - start))
        yield "mmap", 15 * PAGE, RW, PRIVATE | MAP_FIXED, ARENA + start * PAGE
        yield "store", ARENA + start * PAGE + 100, bytes([start + 1]) * 13 * PAGE
    for number, (name, page, *rest) in enumerate(calls):
        va = ARENA + page * PAGE
        if name in ("load", "store"):
            yield name, va + rest[0], rest[1]
            continue
        span = range(page, page + rest[0])
        if span.stop > ARENA_PAGES:
            continue
        owners = {made.get(at) for at in span}
        if name == "mmap":
            made.update(dict.fromkeys(span, number))
            yield name, len(span) * PAGE, rest[1], PRIVATE | MAP_FIXED, va
        elif name == "munmap":
            for at in span:
                made.pop(at, None)
            yield name, va, len(span) * PAGE
        elif name == "mprotect":
            for at in span:
                if at not in made:
                    break
                made[at] = made[at], number
            yield name, va, len(span) * PAGE, rest[1]
        elif name == "move" and len(owners) == 1 and None not in owners:
            target = range(rest[1], rest[1] + len(span))
            if target.stop <= ARENA_PAGES and not set(span) & set(target):
                for at, to in zip(span, target):
                    del made[at]
                    made[to] = number
                yield "mremap", va, len(span) * PAGE, len(span) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, \
                    ARENA + rest[1] * PAGE
        elif name == "resize" and len(owners) == 1 and None not in owners:
            grown = range(span.stop, page + rest[1])
            # Growing the part of an area is an error, growing a whole one is not.
            if not grown or (grown.stop <= ARENA_PAGES and grown[0] in made):
                for at in range(page + rest[1], span.stop):
                    made.pop(at, None)
                yield "mremap", va, len(span) * PAGE, rest[1] * PAGE, 0


def perform(cpu, sequences):
    """The outcomes of several sequences, and the arena after each as loads see it."""
    results = []
    for sequence in sequences:
        cpu.munmap(ARENA, ARENA_PAGES * PAGE)
        outcomes = [outcome(cpu, *call) for call in sequence]
        results.append((outcomes, [outcome(cpu, "load", ARENA + page * PAGE, PAGE)
                                   for page in range(ARENA_PAGES)]))
    return results


@given(st.lists(st.lists(CALLS, min_size=10, max_size=40), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None, database=None, derandomize=True,
          suppress_health_check=list(HealthCheck))
def check_against_host(machine, batch):
    sequences = [list(sensible(calls)) for calls in batch]
    ours, hosts = run(machine, perform, sequences), on_host(lambda host: perform(host, sequences))
    for sequence, here, there in zip(sequences, ours, hosts):
        for call, one, other in zip(sequence, here[0], there[0]):
            assert one == other, f"{call} is {one!r}, on the host {other!r}, in\n" + "\n".join(map(str, sequence))
        assert here[1] == there[1], f"memory differs from the host's after {sequence}"


def test_any_sequence_of_calls_and_accesses_ends_as_on_the_host(machine):
    check_against_host(machine)
    machine.audit().raise_if_broken()


# ---- loads and stores ------------------------------------------------------------

def test_bytes_go_across_pages_at_any_alignment(machine):
    def program(task):
        va = task.mmap(4 * PAGE)
        expected = bytearray(4 * PAGE)
        for start, length in ((0, 1), (PAGE - 1, 2), (PAGE - 3, PAGE + 6), (7, 3 * PAGE), (4 * PAGE - 1, 1),
                              (0, 4 * PAGE), (2 * PAGE, PAGE), (1234, 0)):
            data = bytes((start + i) % 251 for i in range(length))
            task.store(va + start, data)
            expected[start:start + length] = data
            assert task.load(va + start, length) == data
        return task.load(va, 4 * PAGE) == bytes(expected)
    assert run(machine, program)


def test_words_may_be_unaligned_and_lie_across_pages(machine):
    def program(task):
        va = task.mmap(2 * PAGE)
        for address in (va, va + 1, va + PAGE - 8, va + PAGE - 7, va + PAGE - 1, va + PAGE - 4):
            task.store64(address, 0x1122334455667788)
            assert task.load64(address) == 0x1122334455667788
            assert task.load(address, 8) == bytes.fromhex("8877665544332211")
        # What "no error" is for the compiler.
        task.store64(va, 2 ** 64 - 1)
        assert task.load64(va) == 2 ** 64 - 1
        return True
    assert run(machine, program)


def test_atomics_return_what_was_there(machine):
    def program(task):
        va = task.mmap(PAGE)
        assert task.fetch_add64(va, 5) == 0 and task.fetch_add64(va, 2 ** 64 - 1) == 5
        assert task.cmpxchg64(va, 3, 9) == 4 and task.load64(va) == 4
        assert task.cmpxchg64(va, 4, 2 ** 64 - 1) == 4 and task.load64(va) == 2 ** 64 - 1
        assert task.fetch_add64(va, 1) == 2 ** 64 - 1 and task.load64(va) == 0
        return [errno_of(lambda: task.cmpxchg64(va + 1, 0, 1)), errno_of(lambda: task.fetch_add64(va + 4, 1))]
    assert run(machine, program) == ["EINVAL", "EINVAL"]


def test_atomics_of_many_tasks_lose_nothing(machine):
    def add(task, va, rounds):
        for _ in range(rounds):
            task.fetch_add64(va, 1)
            while True:
                seen = task.load64(va + 8)
                if task.cmpxchg64(va + 8, seen, seen + 1) == seen:
                    break

    def program(task):
        va = task.mmap(PAGE)
        children = [task.clone(add, va, 2000) for _ in range(4)]
        for child in children:
            child.result(30)
        return task.load64(va), task.load64(va + 8)
    assert run(machine, program) == (8000, 8000)


def test_nothing_is_touched_by_an_access_of_no_bytes(machine):
    def program(task):
        task.store(0x123456, b"")
        return task.load(0x123456, 0), task.load(TASK_SIZE + 5, 0)
    count = counter(machine)
    assert run(machine, program) == (b"", b"")
    assert count("pgfault") == 0


def faults(call):
    """(address, access) of the SegmentationFault that a call ends in."""
    with pytest.raises(SegmentationFault) as caught:
        call()
    return caught.value.address, caught.value.access


def test_a_fault_names_the_first_byte_that_could_not_be_accessed(machine):
    def program(task):
        task.mmap(2 * PAGE, RW, PRIVATE | MAP_FIXED, A)
        task.mmap(PAGE, PROT_READ, PRIVATE | MAP_FIXED, A + 2 * PAGE)
        hole = A + 3 * PAGE
        return [
            faults(lambda: task.load(hole, 1)), faults(lambda: task.store(hole + 5, b"x")),
            faults(lambda: task.load(A, 4 * PAGE)), faults(lambda: task.store(A + 1, b"x" * 3 * PAGE)),
            faults(lambda: task.load64(hole - 3)), faults(lambda: task.store64(A + 2 * PAGE - 3, 1)),
            faults(lambda: task.load64(hole)), faults(lambda: task.store64(hole - 8, 1)),
            faults(lambda: task.fetch_add64(hole - 8, 1)), faults(lambda: task.cmpxchg64(hole, 0, 1)),
            faults(lambda: task.load(0, 1)), faults(lambda: task.store(TASK_SIZE, b"x")),
            faults(lambda: task.load(0xffff_8000_0000_0000, 1)), faults(lambda: task.load((1 << 64) - 8, 8))]
    hole, read_only = A + 3 * PAGE, A + 2 * PAGE
    assert run(machine, program) == [
        (hole, "load"), (hole + 5, "store"), (hole, "load"), (read_only, "store"), (hole, "load"),
        (read_only, "store"), (hole, "load"), (hole - 8, "store"), (hole - 8, "store"), (hole, "store"),
        (0, "load"), (TASK_SIZE, "store"), (0xffff_8000_0000_0000, "load"), ((1 << 64) - 8, "load")]


def test_what_lies_before_a_hole_is_stored(machine):
    def program(task):
        task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, A)
        assert faults(lambda: task.store(A + PAGE - 3, b"abcdef")) == (A + PAGE, "store")
        return task.load(A + PAGE - 4, 4)
    assert run(machine, program) == b"\0abc"


def test_protection_is_what_mprotect_says_now(machine):
    def program(task):
        task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, A)
        task.store(A, b"kept")
        seen = []
        for prot in (PROT_NONE, PROT_READ, PROT_WRITE, PROT_EXEC, RW, PROT_NONE, RW):
            task.mprotect(A, PAGE, prot)
            seen.append((outcome(task, "load", A, 4), outcome(task, "store", A + 8, b"x")))
        return seen
    # x86 has no way to forbid reading what may be written or executed.
    assert run(machine, program) == [
        ("fault", "fault"), (b"kept", "fault"), (b"kept", None), (b"kept", "fault"), (b"kept", None),
        ("fault", "fault"), (b"kept", None)]


def test_a_fault_hits_its_task_alone(machine):
    victim, witness = Puppet(machine), Puppet(machine)
    victim(lambda task: task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, A))
    witness(lambda task: task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, A))
    clone = victim.clone()
    victim.begin(lambda task: task.store(A + PAGE, b"x"))
    with pytest.raises(SegmentationFault) as caught:
        victim.reply()
    assert (caught.value.address, caught.value.access) == (A + PAGE, "store")
    assert str(caught.value) == f"store at {A + PAGE:#x}"
    for puppet in (victim, witness, clone):
        puppet(lambda task: task.store(A, b"fine"))
    child = machine.spawn(lambda task: task.load(A, 1))
    with pytest.raises(SegmentationFault):
        child.result(10)
    machine.audit().raise_if_broken()


def test_other_threads_lose_a_page_at_once(machine):
    """Their TLBs have the translation; munmap and mprotect shoot it down."""
    one = Puppet(machine)
    one(lambda task: task.mmap(40 * PAGE, RW, PRIVATE | MAP_FIXED, A))
    other = one.clone()
    for puppet in (one, other):
        puppet(lambda task: [task.store64(A + i * PAGE, i) for i in range(40)])
    one(lambda task: task.mprotect(A, PAGE, PROT_READ))
    one(lambda task: task.munmap(A + PAGE, PAGE))
    one(lambda task: task.mremap(A + 2 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, A + 60 * PAGE))
    assert other(lambda task: [
        outcome(task, "store", A, b"x"), outcome(task, "load", A + PAGE, 1), outcome(task, "load", A + 2 * PAGE, 1),
        task.load64(A + 60 * PAGE), task.load64(A + 3 * PAGE)]) == ["fault", "fault", "fault", 2, 3]
    # A long range empties the whole TLB.
    one(lambda task: task.munmap(A, 40 * PAGE))
    assert other(lambda task: {outcome(task, "load", A + i * PAGE, 1) for i in range(40)}) == {"fault"}
    machine.audit().raise_if_broken()


def test_remapped_memory_is_new(machine):
    def program(task):
        va = task.mmap(2 * PAGE)
        task.store(va, b"old" * 1000)
        task.munmap(va, 2 * PAGE)
        again = task.mmap(2 * PAGE)
        return again == va, task.load(again, 2 * PAGE) == bytes(2 * PAGE)
    assert run(machine, program) == (True, True)


def test_map_fixed_replaces_what_was_there(machine):
    def program(task):
        task.mmap(4 * PAGE, RW, PRIVATE | MAP_FIXED, A)
        task.store(A, b"x" * 4 * PAGE)
        task.mmap(2 * PAGE, PROT_READ, PRIVATE | MAP_FIXED, A + PAGE)
        return task.load(A, 4 * PAGE) == b"x" * PAGE + bytes(2 * PAGE) + b"x" * PAGE
    assert run(machine, program)


def test_mremap_moves_frames_and_not_bytes(machine):
    puppet = Puppet(machine)
    puppet(lambda task: task.mmap(600 * PAGE, RW, PRIVATE | MAP_FIXED, A))
    puppet(lambda task: [task.store64(A + i * PAGE, i) for i in range(600)])
    frames = [pfn_at(puppet, A + i * PAGE) for i in range(600)]
    # Not aligned alike: each table's entries go to two others.
    to = A + 5000 * PAGE
    puppet(lambda task: task.mremap(A, 600 * PAGE, 600 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to))
    assert [pfn_at(puppet, to + i * PAGE) for i in range(600)] == frames
    assert puppet(lambda task: [task.load64(to + i * PAGE) for i in range(600)]) == list(range(600))
    assert puppet(lambda task: outcome(task, "load", A, 1)) == "fault"
    assert int.from_bytes(frame_bytes(frames[5])[:8], "little") == 5
    machine.audit().raise_if_broken()


def test_mremap_grows_in_place_or_moves_and_shrinks(machine):
    def program(task):
        task.mmap(2 * PAGE, RW, PRIVATE | MAP_FIXED, A)
        task.store(A, b"a" * 2 * PAGE)
        assert task.mremap(A, 2 * PAGE, 4 * PAGE) == A
        assert task.load(A, 4 * PAGE) == b"a" * 2 * PAGE + bytes(2 * PAGE)
        task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, A + 4 * PAGE)
        task.store(A + 4 * PAGE, b"b")
        moved = task.mremap(A, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE)
        assert moved != A and task.load(moved, 8 * PAGE) == b"a" * 2 * PAGE + bytes(6 * PAGE)
        assert outcome(task, "load", A, 1) == "fault" and task.load(A + 4 * PAGE, 1) == b"b"
        assert task.mremap(moved, 8 * PAGE, PAGE) == moved
        assert outcome(task, "load", moved + PAGE, 1) == "fault"
        return task.load(moved, PAGE) == b"a" * PAGE
    assert run(machine, program)


def test_an_empty_page_table_is_given_back(machine):
    """What munmap leaves without an area has no tables either; neighbours keep theirs."""
    puppet = Puppet(machine)
    # Init has its tables by then.
    machine.init.migrate_prep()
    before = machine.vmstat()["nr_pagetable"]
    far = [A, A + (1 << 21), A + (1 << 30), A + (1 << 39)]
    for va in far:
        puppet(lambda task: task.mmap(PAGE, RW, PRIVATE | MAP_FIXED, va))
        puppet(lambda task: task.store(va, b"x"))
    # A table for each of the four; one more pmd for the third, a pud and a pmd for the fourth,
    # and a pud and a pmd for the first.
    assert machine.vmstat()["nr_pagetable"] == before + 4 + 1 + 2 + 2
    puppet(lambda task: task.munmap(far[1], PAGE))
    assert machine.vmstat()["nr_pagetable"] == before + 8
    puppet(lambda task: task.munmap(far[3], PAGE))
    assert machine.vmstat()["nr_pagetable"] == before + 5
    assert puppet(lambda task: task.load(far[2], 1) + task.load(far[0], 1)) == b"xx"
    puppet(lambda task: task.munmap(A, 1 << 40))
    assert machine.vmstat()["nr_pagetable"] == before
