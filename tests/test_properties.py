# SPDX-License-Identifier: GPL-2.0-only
"""Random programs of a few tasks against a model that a child could write: for each address
space a dict of page -> [bytes, protection].  After each program the machine is audited.

One machine serves all programs, so that what leaks adds up and is found; each program begins
with fresh tasks, and the same program does the same every time.
"""
import errno
import os

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings, strategies as st

from helpers import PAGE, Puppet, errno_of, free_frames, run
from shmkern import (MPOL_MF_MOVE_ALL, MREMAP_FIXED, MREMAP_MAYMOVE, PROT_NONE, PROT_READ, PROT_WRITE,
                     SegmentationFault)

pytestmark = pytest.mark.timeout(170)

RW = PROT_READ | PROT_WRITE
FIXED = 0x32
NODES, FRAMES = 3, 512
# The arena lies across the end of a page table, a pmd and a pud.
PAGES = 16
ARENA = (1 << 39) - 7 * PAGE
EXAMPLES = int(os.environ.get("SHMKERN_TEST_EXAMPLES", 50))


# ---- the model -------------------------------------------------------------------

class Model:
    """One address space: page number -> [contents, protection].

    Also which calls made it what it is: mremap wants all of its range in one area, and what
    the same calls made is in one.
    """

    def __init__(self, pages=None):
        self.pages = {number: [bytearray(data), prot, area] for number, (data, prot, area) in (pages or {}).items()}

    def copy(self):
        return Model(self.pages)

    def mmap(self, span, prot, area):
        for number in span:
            self.pages[number] = [bytearray(PAGE), prot, area]

    def munmap(self, span):
        for number in span:
            self.pages.pop(number, None)

    def mprotect(self, span, prot, area):
        for number in span:
            if number not in self.pages:
                return "ENOMEM"
            self.pages[number][1:] = prot, (self.pages[number][2], area)
        return None

    def mremap(self, span, to):
        moved = [self.pages.pop(number) for number in span]
        self.munmap(range(to, to + len(span)))
        self.pages.update({to + index: page for index, page in enumerate(moved)})

    def load(self, start, length):
        """The bytes, or the offset of the first that cannot be loaded."""
        found = b""
        while len(found) < length:
            number, offset = divmod(start + len(found), PAGE)
            part = min(length - len(found), PAGE - offset)
            if self.pages.get(number, (None, PROT_NONE))[1] == PROT_NONE:
                return start + len(found)
            found += self.pages[number][0][offset:offset + part]
        return bytes(found)

    def store(self, start, data):
        """None, or the offset of the first byte that cannot be stored; those before it are."""
        done = 0
        while done < len(data):
            number, offset = divmod(start + done, PAGE)
            part = min(len(data) - done, PAGE - offset)
            if not self.pages.get(number, (None, PROT_NONE))[1] & PROT_WRITE:
                return start + done
            self.pages[number][0][offset:offset + part] = data[done:done + part]
            done += part
        return None


# ---- programs --------------------------------------------------------------------

NUMBER = st.integers(0, PAGES - 1)
COUNT = st.integers(1, 6)
PROT = st.sampled_from([RW, RW, PROT_READ, PROT_NONE])
WHO = st.integers(0, 3)
OFFSET = st.one_of(st.just(0), st.integers(0, PAGE - 1), st.just(PAGE - 2))
LENGTH = st.one_of(st.integers(1, 8), st.integers(1, 3 * PAGE))
NODE = st.integers(0, NODES - 1)
# First what a failing program shrinks to.
STEP = st.one_of(
    st.just(("nothing", 0)),
    st.tuples(st.just("mmap"), WHO, NUMBER, COUNT, PROT),
    st.tuples(st.just("munmap"), WHO, NUMBER, COUNT),
    st.tuples(st.just("mprotect"), WHO, NUMBER, COUNT, PROT),
    st.tuples(st.just("mremap"), WHO, NUMBER, COUNT, NUMBER),
    st.tuples(st.just("store"), WHO, NUMBER, OFFSET, LENGTH, st.integers(1, 255)),
    st.tuples(st.just("store"), WHO, NUMBER, OFFSET, LENGTH, st.integers(1, 255)),
    st.tuples(st.just("load"), WHO, NUMBER, OFFSET, LENGTH),
    st.tuples(st.just("fork"), WHO),
    st.tuples(st.just("clone"), WHO),
    st.tuples(st.just("exit"), WHO),
    st.tuples(st.just("move_pages"), WHO, st.lists(NUMBER, min_size=1, max_size=8, unique=True), NODE),
    st.tuples(st.just("migrate"), NODE, NODE),
)


class World:
    """Some tasks of a machine, each with the model of its address space; clones share one.
    In the beginning there is one, with most of the arena mapped and written to."""

    def __init__(self, machine):
        self.machine = machine
        self.areas = 0
        self.tasks = []
        self.add(Puppet(machine), Model())
        for number in (0, 6):
            self.do("mmap", 0, number, 6, RW)
            self.do("store", 0, number, 0, 5 * PAGE, 1)

    def add(self, puppet, model):
        self.tasks.append((puppet, model))

    def do(self, name, who, *args):
        if name == "migrate":
            return self.migrate(who, *args)
        puppet, model = self.tasks[who % len(self.tasks)]
        getattr(self, name)(puppet, model, *args)

    def nothing(self, puppet, model):
        pass

    def mmap(self, puppet, model, number, count, prot):
        span = range(number, min(number + count, PAGES))
        va, length = ARENA + number * PAGE, len(span) * PAGE
        assert puppet(lambda task: task.mmap(length, prot, FIXED, va)) == va
        self.areas += 1
        model.mmap(span, prot, self.areas)

    def munmap(self, puppet, model, number, count):
        va, length = ARENA + number * PAGE, count * PAGE
        puppet(lambda task: task.munmap(va, length))
        model.munmap(range(number, number + count))

    def mprotect(self, puppet, model, number, count, prot):
        va, length = ARENA + number * PAGE, count * PAGE
        found = puppet(lambda task: errno_of(lambda: task.mprotect(va, length, prot)))
        self.areas += 1
        assert found == model.mprotect(range(number, number + count), prot, self.areas)

    def mremap(self, puppet, model, number, count, to):
        """What is in one area for sure moves; what may have been merged is left out."""
        span, target = range(number, number + count), range(to, to + count)
        areas = {tuple(model.pages[one][1:]) if one in model.pages else None for one in span}
        if set(span) & set(target) or target.stop > PAGES or len(areas) != 1 or areas == {None}:
            return
        va, length, there = ARENA + number * PAGE, count * PAGE, ARENA + to * PAGE
        assert puppet(lambda task: task.mremap(va, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, there)) == there
        model.mremap(span, to)
        self.areas += 1
        for one in target:
            model.pages[one][2] = self.areas

    def store(self, puppet, model, number, offset, length, byte):
        data = bytes([byte, 255 - byte]) * (length // 2) + b"!" * (length % 2)
        va = ARENA + number * PAGE + offset
        found = puppet(lambda task: fault_address(lambda: task.store(va, data)))
        expected = model.store(number * PAGE + offset, data)
        assert found == (None if expected is None else ARENA + expected)

    def load(self, puppet, model, number, offset, length):
        va = ARENA + number * PAGE + offset
        found = puppet(lambda task: fault_address(lambda: task.load(va, length)))
        expected = model.load(number * PAGE + offset, length)
        assert found == (expected if isinstance(expected, bytes) else ARENA + expected)

    def fork(self, puppet, model):
        if len(self.tasks) < 4:
            self.add(puppet.fork(), model.copy())

    def clone(self, puppet, model):
        if len(self.tasks) < 4:
            self.add(puppet.clone(), model)

    def exit(self, puppet, model):
        if len(self.tasks) > 1:
            puppet.exit()
            self.tasks.remove((puppet, model))

    def move_pages(self, puppet, model, numbers, node):
        """Each page that is somewhere is afterwards there; what is not says so."""
        places = [ARENA + number * PAGE for number in numbers]
        status = self.machine.init.move_pages(puppet.pid, places, [node] * len(places), MPOL_MF_MOVE_ALL)
        for number, one in zip(numbers, status):
            if number not in model.pages:
                assert one == -errno.EFAULT
            else:
                # Nothing mapped, or the zero page; nobody is at work on a page now.
                assert one in (node, -errno.ENOENT, -errno.EFAULT), (number, one)

    def migrate(self, source, target):
        self.machine.init.migrate_prep()
        pfn, end = source * FRAMES, (source + 1) * FRAMES
        while pfn < end:
            pfn, stayed = self.machine.init.migrate_frames(pfn, end, target)
            assert stayed == 0

    def check(self):
        """All memory is what the models say."""
        for puppet, model in self.tasks:
            found = puppet(lambda task: [fault_address(lambda: task.load(ARENA + number * PAGE, PAGE))
                                         for number in range(PAGES)])
            for number in range(PAGES):
                expected = model.load(number * PAGE, PAGE)
                expected = expected if isinstance(expected, bytes) else ARENA + expected
                assert found[number] == expected, f"page {number} of task {puppet.pid}"

    def close(self):
        for puppet, _ in self.tasks:
            puppet.exit()


def fault_address(call):
    """What an access returns, or the address of its fault."""
    try:
        return call()
    except SegmentationFault as fault:
        return fault.address


PHASES = (Phase.generate, Phase.shrink)


@given(st.lists(STEP, min_size=20, max_size=60))
@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, print_blob=False,
          phases=PHASES, suppress_health_check=list(HealthCheck))
def check_programs(machine, program):
    free = free_frames(machine)
    world = World(machine)
    try:
        for step in program:
            note(f"{step[0]}{step[1:]}")
            world.do(*step)
        machine.audit().raise_if_broken()
        world.check()
        machine.audit(check_poison=True).raise_if_broken()
    finally:
        world.close()
    machine.audit().raise_if_broken()
    assert free_frames(machine) == free


def test_any_program_sees_the_memory_that_its_model_has(boot):
    machine = boot(nodes=NODES, frames_per_node=FRAMES)
    # What the first program allocates and the machine keeps is not a leak of its.
    run(machine, lambda task: task.store(task.mmap(PAGE), b"x"))
    check_programs(machine)


@given(st.lists(STEP, min_size=20, max_size=60))
@settings(max_examples=max(EXAMPLES // 4, 5), deadline=None, database=None, derandomize=True, print_blob=False,
          phases=PHASES, suppress_health_check=list(HealthCheck))
def check_programs_that_move(machine, program):
    """As check_programs, with migrators at work all the time; what they make wait or fail is
    left out."""
    program = [step for step in program if step[0] not in ("move_pages", "migrate")]
    world = World(machine)
    try:
        for step in program:
            note(f"{step[0]}{step[1:]}")
            world.do(*step)
        world.check()
        machine.audit().raise_if_broken()
    finally:
        world.close()


def test_any_program_sees_the_same_while_its_pages_move(boot):
    machine = boot(nodes=NODES, frames_per_node=FRAMES)
    migrators = [machine.start_migrator(seed=seed) for seed in range(2)]
    check_programs_that_move(machine)
    for migrator in migrators:
        migrator.stop(10)
    assert machine.vmstat()["pgmigrate_success"] > 0
    assert machine.vmstat()["nr_anon_pages"] == 0


def test_the_model_is_one_that_can_be_wrong(machine):
    """The property above fails when memory is not what the model says."""
    world = World(machine)
    world.check()
    world.tasks[0][1].pages[4][0][17] = 1
    with pytest.raises(AssertionError, match="page 4"):
        world.check()
    world.close()
