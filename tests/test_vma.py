# SPDX-License-Identifier: GPL-2.0-only
"""Areas of an address space: split and merged as the kernel that we run on does it.

The host's Linux is asked: the same calls are made of it, at the same addresses of the same
process, and /proc/self/maps must show the same areas.
"""
import ctypes
import errno
import os
import random
import re

import pytest

import shmkern
from shmkern import MREMAP_FIXED, MREMAP_MAYMOVE, PROT_EXEC, PROT_NONE, PROT_READ, PROT_WRITE, layout
from shmkern.kallsyms import ksym
from shmkern.layout import constants as C
from shmkern.worker import slot

pytestmark = pytest.mark.timeout(60)

PAGE = C["PAGE_SIZE"]
# Free in a process of the host as well: far from the block, the program and its libraries.
REGION, PAGES = 0x1000000000, 40
ANON = C["MAP_PRIVATE"] | C["MAP_ANONYMOUS"]
FIXED = ANON | C["MAP_FIXED"]
# Else the host tells areas that were once writable from those that never were (VM_ACCOUNT).
MAP_NORESERVE = 0x4000
RW = PROT_READ | PROT_WRITE
# Before 6.0 an area that mremap had grown was not merged with the next.
HOST_MERGES_AS_WE_DO = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (6, 0)


def areas(task):
    """[(start, end, protection)] of an address space, from the list."""
    found, address = [], layout.struct("MmStruct", slot(task.cpu).mm).mmap
    while address:
        vma = layout.struct("VmAreaStruct", address)
        found.append((vma.vm_start, vma.vm_end, vma.vm_flags & C["VM_ACCESS_FLAGS"]))
        address = vma.vm_next
    return found


class Host:
    """The same calls of the host's kernel.  Raises OSError as task does."""

    def __init__(self):
        self._libc = ctypes.CDLL(None, use_errno=True)
        word = ctypes.c_ulong
        for name, arguments in ("mmap", [word, word, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]), \
                ("munmap", [word, word]), ("mprotect", [word, word, ctypes.c_int]), \
                ("mremap", [word, word, word, ctypes.c_int, word]):
            function = getattr(self._libc, name)
            function.argtypes, function.restype = arguments, ctypes.c_long

    def _call(self, name, *arguments):
        result = getattr(self._libc, name)(*arguments)
        if result == -1:
            raise OSError(ctypes.get_errno(), name)
        return result

    def mmap(self, length, prot=RW, flags=ANON, addr=0):
        return self._call("mmap", addr, length, prot, flags | MAP_NORESERVE, -1, 0)

    def munmap(self, addr, length):
        self._call("munmap", addr, length)

    def mprotect(self, addr, length, prot):
        self._call("mprotect", addr, length, prot)

    def mremap(self, old_address, old_size, new_size, flags=0, new_address=0):
        return self._call("mremap", old_address, old_size, new_size, flags, new_address)

    @staticmethod
    def store(address, data):
        ctypes.memmove(address, data, len(data))

    @staticmethod
    def areas():
        """[(start, end, protection)] of the region."""
        found = []
        for line in open("/proc/self/maps"):
            start, end, read, write, execute = re.match(r"(\w+)-(\w+) (.)(.)(.)", line).groups()
            if REGION <= int(start, 16) < REGION + PAGES * PAGE:
                prot = (read == "r") * PROT_READ | (write == "w") * PROT_WRITE | (execute == "x") * PROT_EXEC
                found.append((int(start, 16), int(end, 16), prot))
        return found


def outcome(call, *arguments):
    """What a call returns, or its errno, negative."""
    try:
        return call(*arguments)
    except OSError as error:
        return -error.errno


def both(task, host, name, *arguments):
    """Makes one call of both kernels, and compares what it returns and what it leaves."""
    ours, theirs = outcome(getattr(task, name), *arguments), outcome(getattr(host, name), *arguments)
    assert ours == theirs, f"{name}{arguments}"
    if HOST_MERGES_AS_WE_DO:
        assert text(areas(task)) == text(host.areas()), f"after {name}{arguments}"


def text(found):
    """Areas in pages from the start of the region."""
    return " ".join(f"{(start - REGION) // PAGE}-{(end - REGION) // PAGE}:{prot}" for start, end, prot in found)


def at(page):
    """The address of a page of the region."""
    return REGION + page * PAGE


@pytest.fixture
def same(run):
    """same(program) runs program(call, page) in a task, where call makes a call of both
    kernels; returns the areas that it leaves, as text."""
    def same(program):
        def compare(task):
            host = Host()
            assert host.areas() == [], "the host has something there"
            program(lambda name, *arguments: both(task, host, name, *arguments))
            return text(areas(task))
        return run(compare)
    return same


# ---- histories that once went wrong or easily could ---------------------------

def test_neighbours_that_agree_are_one_area(same):
    def program(call):
        call("mmap", 2 * PAGE, RW, FIXED, at(4))
        call("mmap", 2 * PAGE, RW, FIXED, at(8))
        call("mmap", 2 * PAGE, RW, FIXED, at(6))
    assert same(program) == "4-10:3"


def test_neighbours_that_differ_stay_apart(same):
    def program(call):
        call("mmap", 2 * PAGE, RW, FIXED, at(4))
        call("mmap", 2 * PAGE, PROT_READ, FIXED, at(6))
        call("mmap", 2 * PAGE, PROT_NONE, FIXED, at(2))
    assert same(program) == "2-4:0 4-6:3 6-8:1"


def test_hole_splits_an_area_and_filling_it_makes_it_whole(same):
    def program(call):
        call("mmap", 10 * PAGE, RW, FIXED, at(0))
        call("munmap", at(3), 2 * PAGE)
        call("mmap", 2 * PAGE, RW, FIXED, at(3))
    assert same(program) == "0-10:3"


def test_area_between_two_with_pages_of_their_own_goes_to_the_lower(same):
    """They have an anon_vma each, so that all three cannot be one."""
    def program(call):
        call("mmap", PAGE, RW, FIXED, at(4))
        call("mmap", PAGE, RW, FIXED, at(6))
        call("store", at(4), b"x")
        call("store", at(6), b"x")
        call("mmap", PAGE, RW, FIXED, at(5))
    assert same(program) == "4-6:3 6-7:3"


def test_neighbours_with_pages_of_one_anon_vma_are_one_area_again(same):
    def program(call):
        call("mmap", 6 * PAGE, RW, FIXED, at(4))
        for page in range(4, 10):
            call("store", at(page), b"x")
        call("mprotect", at(6), PAGE, PROT_READ)
        call("mprotect", at(6), PAGE, RW)
    assert same(program) == "4-10:3"


def test_page_touched_beside_a_touched_area_shares_its_anon_vma(same):
    """Areas that differ in protection alone, so that they can be one when it does not."""
    def program(call):
        call("mmap", PAGE, RW, FIXED, at(4))
        call("mmap", PAGE, RW | PROT_EXEC, FIXED, at(5))
        call("store", at(4), b"x")
        call("store", at(5), b"x")
        call("mprotect", at(5), PAGE, RW)
    assert same(program) == "4-6:3"


def test_moved_area_merges_at_its_new_place_only_without_pages(same):
    def program(call):
        for page in 0, 10:
            call("mmap", 2 * PAGE, RW, FIXED, at(page))
        call("mmap", 4 * PAGE, RW, FIXED, at(20))
        call("store", at(20), b"x")
        call("mremap", at(0), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(12))
        call("mremap", at(20), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(14))
    assert same(program) == "10-14:3 14-16:3 22-24:3"


def test_grown_area_meets_its_neighbour(same):
    def program(call):
        call("mmap", 2 * PAGE, RW, FIXED, at(4))
        call("mmap", 2 * PAGE, RW, FIXED, at(8))
        call("mremap", at(4), 2 * PAGE, 4 * PAGE, 0, 0)
        call("mremap", at(4), 6 * PAGE, 7 * PAGE, 0, 0)
        call("mmap", PAGE, PROT_READ, FIXED, at(11))
        call("mremap", at(4), 7 * PAGE, 8 * PAGE, 0, 0)
    assert same(program) == "4-11:3 11-12:1"


def test_protection_that_meets_a_hole_changes_what_lies_before_it(same):
    def program(call):
        call("mmap", 4 * PAGE, RW, FIXED, at(4))
        call("mmap", 4 * PAGE, RW, FIXED, at(10))
        call("mprotect", at(6), 6 * PAGE, PROT_READ)
        call("mprotect", at(3), 3 * PAGE, PROT_READ)
    assert same(program) == "4-6:3 6-8:1 10-14:3"


def test_wrong_calls_get_the_hosts_errno(same):
    down, up = C["PROT_GROWSDOWN"], C["PROT_GROWSUP"]

    def program(call):
        call("mmap", 4 * PAGE, RW, FIXED, at(4))
        call("mmap", PAGE, RW, FIXED, at(4) + 1)
        call("mmap", 0, RW, FIXED, at(4))
        call("mmap", PAGE, RW, C["MAP_ANONYMOUS"] | C["MAP_FIXED"], at(4))
        call("mmap", PAGE, RW, FIXED, 1 << 47)
        call("mmap", PAGE, RW, FIXED, (1 << 47) + 1)
        call("mmap", 1 << 47, RW, FIXED, at(4))
        call("munmap", at(4) + 1, PAGE)
        call("munmap", at(4), 0)
        call("munmap", 1 << 47, PAGE)
        call("munmap", at(20), PAGE)
        call("mprotect", at(4) + 1, PAGE, RW)
        call("mprotect", at(4), 0, RW)
        call("mprotect", at(20), PAGE, RW)
        call("mprotect", at(4), PAGE, 1 << 20)
        call("mprotect", at(4), 0, 1 << 20)
        call("mprotect", at(4), PAGE, RW | C["PROT_SEM"])
        for start, length in (at(4), PAGE), (at(4), 0), (at(3), 2 * PAGE), (at(20), PAGE), (at(4) + 1, 0), (at(5), 1 << 47):
            for grows in down, up, down | up:
                call("mprotect", start, length, RW | grows)
        call("mremap", at(4) + 1, PAGE, PAGE, 0, 0)
        call("mremap", at(4), PAGE, 0, 0, 0)
        call("mremap", at(4), PAGE, 2 * PAGE, 0, 0)
        call("mremap", at(4), PAGE, PAGE, MREMAP_FIXED, at(20))
        call("mremap", at(4), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(20) + 1)
        call("mremap", at(4), 2 * PAGE, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(5))
        call("mremap", at(4), PAGE, PAGE, 64, 0)
    assert same(program) == "4-8:3"


def test_nothing_becomes_shorter(run):
    """2.6.30 looks for an area only to let it grow or move.  (Later kernels: EFAULT; so the host is not asked.)"""
    def program(task):
        task.mmap(PAGE, RW, FIXED, at(4))
        assert task.mremap(at(20), PAGE, PAGE, MREMAP_MAYMOVE) == at(20)
        assert task.mremap(at(20), 2 * PAGE, PAGE) == at(20)
        assert outcome(task.mremap, at(20), PAGE, 2 * PAGE, MREMAP_MAYMOVE) == -errno.EFAULT
        return text(areas(task))
    assert run(program) == "4-5:3"


def test_areas_become_shorter_or_stay_as_they_are_together(same):
    """mremap that moves nothing does not look at more areas than the first."""
    def program(call):
        call("mmap", 4 * PAGE, RW, FIXED, at(4))
        call("mmap", 4 * PAGE, PROT_READ, FIXED, at(8))
        call("mremap", at(5), 6 * PAGE, 6 * PAGE, MREMAP_MAYMOVE, 0)
        call("mremap", at(5), 6 * PAGE, 2 * PAGE, 0, 0)
    assert same(program) == "4-7:3 11-12:1"


def test_shared_area_is_mapped_once_more(same, run):
    """An old length of 0; of private memory it makes no sense."""
    shared = C["MAP_SHARED"] | C["MAP_ANONYMOUS"] | C["MAP_FIXED"]

    def program(call):
        call("mmap", 4 * PAGE, RW, shared, at(4))
        call("mmap", 4 * PAGE, RW, FIXED, at(10))
        call("mremap", at(5), 0, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(20))
        call("mremap", at(5), 0, 2 * PAGE, 0, 0)
        call("mremap", at(10), 0, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(24))
        call("mremap", at(30), 0, PAGE, MREMAP_MAYMOVE, 0)
        # None, once it is whole pages; and one that is more than there is.
        call("mremap", at(6), (1 << 64) - 1, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(24))
        call("mremap", at(6), (1 << 64) - PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(25))
    assert same(program) == "4-8:3 10-14:3 20-22:3 24-25:3"

    def both_ways(task):
        task.mmap(4 * PAGE, RW, shared, addr=at(4))
        task.mremap(at(5), 0, 2 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(20))
        task.store64(at(21), 7)
        task.store64(at(5), 8)
        return task.load64(at(6)), task.load64(at(20))
    assert run(both_ways) == (7, 8)


@pytest.mark.parametrize("offset", [0, 1, 0x800, PAGE - 1])
def test_hint_that_is_free_is_taken_to_the_page(same, offset):
    def program(call):
        call("mmap", PAGE, RW, ANON, at(7) + offset)
    assert same(program) == "7-8:3"


# ---- random histories ---------------------------------------------------------

@pytest.mark.skipif(not HOST_MERGES_AS_WE_DO, reason="the host's kernel is older than 6.0")
@pytest.mark.parametrize("seed", range(5))
def test_random_history_leaves_the_areas_that_the_host_has(run, seed):
    def program(task):
        rng, host = random.Random(seed), Host()
        prots = [RW] * 6 + [PROT_READ] * 2 + [PROT_NONE, RW | PROT_EXEC]
        for _ in range(250):
            start = rng.randrange(PAGES - 6)
            length = rng.randrange(1, 6)
            mapped = host.areas()
            inside = [area for area in mapped if area[0] <= at(start) < area[1]]
            kind = rng.choice(["mmap", "mmap", "munmap", "mprotect", "mprotect", "touch", "touch", "grow", "move"])
            if kind == "mmap":
                both(task, host, "mmap", length * PAGE, rng.choice(prots), FIXED, at(start))
            elif kind == "munmap":
                both(task, host, "munmap", at(start), length * PAGE)
            elif kind == "mprotect":
                # Over holes too: what lies before the first is protected.
                both(task, host, "mprotect", at(start), length * PAGE, rng.choice(prots))
            elif inside and kind == "touch" and inside[0][2] & PROT_WRITE:
                both(task, host, "store", at(start), b"x")
            elif inside and kind == "grow":
                length = min(length, (inside[0][1] - at(start)) // PAGE)
                both(task, host, "mremap", at(start), length * PAGE, rng.randrange(1, 6) * PAGE, 0, 0)
            elif inside and kind == "move":
                length = min(length, (inside[0][1] - at(start)) // PAGE)
                both(task, host, "mremap", at(start), length * PAGE, rng.randrange(1, 6) * PAGE,
                     MREMAP_MAYMOVE | MREMAP_FIXED, at(rng.randrange(PAGES - 6)))
        return len(host.areas())
    assert run(program) > 0


# ---- finding ------------------------------------------------------------------

def test_find_vma_is_the_first_area_that_ends_above(run, shared):
    prev = shared("u64")

    def program(task):
        for page, length in (3, 2), (5, 1), (20, 4):
            task.mmap(length * PAGE, PROT_READ if page == 5 else RW, FIXED, at(page))
        mm = slot(task.cpu).mm
        table = areas(task)
        for page in range(-1, PAGES + 1):
            for address in at(page), at(page) + PAGE - 1:
                expected = next((area[0] for area in table if area[1] > address), None)
                before = max((area[0] for area in table if area[1] <= address), default=None)
                found = ksym.find_vma(mm, address)
                assert (layout.struct("VmAreaStruct", found).vm_start if found else None) == expected
                assert ksym.find_vma_prev(mm, address, prev.ctypes.data) == found
                assert (layout.struct("VmAreaStruct", int(prev[0])).vm_start if prev[0] else None) == before
                hit = ksym.find_vma_intersection(mm, address, address + 2 * PAGE)
                assert bool(hit) == any(low < address + 2 * PAGE and high > address for low, high, _ in table)
        return len(table)
    assert run(program) == 3


def test_place_for_a_mapping_is_the_highest_gap_it_fits_in(run):
    def program(task):
        top = task.mmap(2 * PAGE)
        hole = task.mmap(3 * PAGE, PROT_READ)
        below = task.mmap(PAGE)
        task.munmap(hole, 3 * PAGE)
        fits = task.mmap(2 * PAGE, PROT_READ)
        larger = task.mmap(4 * PAGE, PROT_READ)
        return [(address - top) // PAGE for address in (hole, below, fits, larger)]
    assert run(program) == [-3, -4, -2, -8]


def test_counters_of_an_address_space_follow_its_areas(run):
    def program(task):
        mm = layout.struct("MmStruct", slot(task.cpu).mm)
        counts = []
        for step in (lambda: task.mmap(10 * PAGE, RW, FIXED, at(0)),
                     lambda: task.mprotect(at(3), PAGE, PROT_READ),
                     lambda: task.munmap(at(5), 2 * PAGE),
                     lambda: task.mremap(at(7), 3 * PAGE, PAGE),
                     lambda: task.munmap(at(0), PAGES * PAGE)):
            step()
            counts.append((mm.map_count, mm.total_vm))
        return counts
    assert run(program) == [(1, 10), (3, 10), (4, 8), (4, 6), (0, 0)]


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_call_without_memory_for_a_split_leaves_all_as_it_was(machine, run, nth):
    """munmap in the middle needs one area more, an mprotect in the middle two."""
    def program(task):
        task.mmap(9 * PAGE, RW, FIXED, at(0))
        task.store(at(0), bytes(9 * PAGE))
        results = []
        for call in (lambda: task.munmap(at(3), PAGE), lambda: task.mprotect(at(3), PAGE, PROT_READ),
                     lambda: task.mmap(PAGE, PROT_READ, FIXED, at(3)),
                     lambda: task.mremap(at(3), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at(20))):
            before = areas(task)
            task.fail_nth(nth)
            result = outcome(call)
            failed = task.fail_nth(0) == 0
            assert failed == (result == -errno.ENOMEM)
            if failed:
                assert areas(task) == before
            results.append(failed)
            task.mmap(9 * PAGE, RW, FIXED, at(0))
            task.munmap(at(9), PAGES * PAGE)
            task.store(at(0), bytes(9 * PAGE))
        return results
    expected = {1: [True] * 4, 2: [True] * 4, 3: [False, False, True, True]}[nth]
    assert run(program) == expected
    machine.audit().raise_if_broken()


def test_there_are_65537_areas_at_most_and_no_call_that_may_need_more_is_taken_then(boot):
    """max_map_count is 65536: mmap asks before it counts the new area, and a split is refused already when that many
    are there; mremap, whose move may split, three before that.  Also what would come out even, as in Linux."""
    def program(task):
        def at(index):
            return REGION + 3 * index * PAGE

        most = 65537
        made = [outcome(lambda: task.mmap(3 * PAGE, (PROT_READ, RW)[index % 2], FIXED, at(index)))
                for index in range(most + 1)]
        calls = [lambda: task.mmap(3 * PAGE, PROT_READ, FIXED, at(0)),
                 lambda: task.mmap(PAGE, (PROT_READ, RW)[(most - 1) % 2], FIXED, at(most)),
                 lambda: task.munmap(at(0) + PAGE, PAGE), lambda: task.mprotect(at(0), PAGE, PROT_NONE),
                 lambda: task.mremap(at(1), 3 * PAGE, 4 * PAGE, MREMAP_MAYMOVE)]
        at_most = [outcome(call) for call in calls]
        task.munmap(at(10), 3 * PAGE)
        one_less = [outcome(call) for call in calls[2:]] + [outcome(lambda: task.mmap(PAGE, PROT_READ, FIXED, at(10)))]
        task.munmap(at(10), 3 * 5 * PAGE)
        return made, at_most, one_less, [outcome(call) for call in calls[2:]], len(areas(task))

    machine = boot(nodes=1, frames_per_node=65536)
    made, at_most, one_less, fewer, count = machine.spawn(program).result(60)
    assert made == [REGION + 3 * index * PAGE for index in range(65537)] + [-errno.ENOMEM]
    assert at_most == [-errno.ENOMEM] * 5
    assert one_less == [-errno.ENOMEM] * 3 + [REGION + 30 * PAGE]
    # The munmap makes two of one.
    assert (fewer, count) == ([None, None, -errno.ENOMEM], 65533)


def test_protection_of_every_kind_is_obeyed(run):
    def program(task):
        allowed = {}
        for prot in range(8):
            va = at(2 * prot)
            task.mmap(PAGE, prot, FIXED, va)
            for access in "load", "store":
                try:
                    task.load(va, 1) if access == "load" else task.store(va, b"x")
                    allowed[prot, access] = True
                except shmkern.SegmentationFault:
                    allowed[prot, access] = False
        return allowed
    allowed = run(program)
    for prot in range(8):
        # x86 cannot forbid reading what may be written or executed.
        assert allowed[prot, "load"] == (prot != 0)
        assert allowed[prot, "store"] == bool(prot & PROT_WRITE)
