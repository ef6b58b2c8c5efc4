# SPDX-License-Identifier: GPL-2.0-only
"""Fuzzing: whatever tasks ask of the kernel, with arguments that are random, wrong and overlap,
each gets an answer or an errno; no process dies, and the machine is sound after each burst.

A burst is a list of calls that one task makes, or that several make at the same time.  Hypothesis
draws a burst as bytes, of which each argument takes what it needs (a call costs one draw, and a
failure still shrinks: towards fewer and smaller bytes).  To fuzz another system call, add it to
CALLS: the name of a method of worker.Task, and what its arguments are.

    make fuzz                    a million calls
    make fuzz FUZZ_CALLS=50000   as many
"""
import os

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import shmkern
from helpers import C, PAGE, Puppet
from shmkern import SegmentationFault

GOAL = int(os.environ.get("FUZZ_CALLS", 20_000))
pytestmark = pytest.mark.timeout(max(120, GOAL / 100))

NODES, FRAMES = 3, 512
TASKS_MAX = 4
STEPS, BURST_BYTES = 20, 500
WINDOW = 0x10_0000_0000
# Answers that are no accident.
ANSWERS = (OSError, SegmentationFault, OverflowError, ValueError)


# ---- arguments ---------------------------------------------------------------------

class Source:
    """Bytes to make choices with; when they are used up, all further ones are the first."""

    def __init__(self, data):
        self.data, self.at = data, 0

    @property
    def exhausted(self):
        return self.at >= len(self.data)

    def below(self, limit):
        """A number below `limit`, 65536 at most."""
        size = 1 if limit <= 256 else 2
        value = int.from_bytes(self.data[self.at:self.at + size], "little")
        self.at += size
        return value % limit

    def choice(self, values):
        return values[self.below(len(values))]


def number(low, high):
    """An argument from `low` to `high`."""
    return lambda source: low + source.below(high - low + 1)


def among(*values):
    """An argument that is one of these."""
    return lambda source: source.choice(values)


def mostly(usual, *odd):
    """A usual argument, or one time in eight an odd one."""
    return lambda source: source.choice(odd) if source.below(8) == 7 else usual(source)


def several(item, most):
    """A list of up to `most`."""
    return lambda source: [item(source) for _ in range(source.below(most + 1))]


def pages(most, start=0):
    """The address of a page, or a length."""
    return lambda source: start + source.below(most + 1) * PAGE


address = mostly(pages(40, WINDOW), 0, 1, WINDOW + 7, WINDOW + 8 * PAGE - 4, PAGE, 0x7ffffffff000 - PAGE,
                 0x7ffffffff000, 1 << 47, (1 << 63) + PAGE, (1 << 64) - PAGE, (1 << 64) - 1)
length = mostly(pages(24), 1, PAGE + 1, 1 << 30, 1 << 47, (1 << 64) - 1)
word = among(0, 1, 0xdeadbeef, -1, -(1 << 63), (1 << 64) - 1)
data = lambda source: b"data" * source.below(8)     # noqa: E731
prot = mostly(among(3, 3, 3, 0, 1, 2, 5, 7), 8, 1 << 40)
map_flags = mostly(among(0x32, 0x32, 0x22), 0, 0x20, 0x21, 0x31, 0x33, 0x12, 0x2032, 0x2022, 1 << 50)
mremap_flags = mostly(among(1, 0, 3), 2, 4, 1 << 33)
node = mostly(number(0, NODES - 1), -1, NODES, 63, 64, 1 << 30)
nodes = several(mostly(number(0, NODES - 1), NODES, 63, 64), 4)
# Numbers of tasks, which become pids; beyond them pids of nobody.
pid = mostly(number(-1, TASKS_MAX - 1), 99, 1000)
move_flags = mostly(among(2, 2, 0, 4), 1, 6, 8, 1 << 20)
mode = mostly(number(0, 3), 4, 7, 0x8002, 0x4003, 0x8001, 0xc002, 1 << 20, -1)
policy_flags = mostly(number(0, 4), 5, 7, 8)
maxnode = mostly(among(65, 64, 4, 3, 2, 1, 0), 66, 4097, 32769, 32770, 1 << 60)
uid = among(-1, 0, 1, 1000)


def maybe_nodes(source):
    """Nodes to move to, or None to ask."""
    return several(node, 6)(source) if source.below(4) else None


CALLS = {
    "mmap": (length, prot, map_flags, address),
    "munmap": (address, length),
    "mprotect": (address, length, prot),
    "mremap": (address, length, length, mremap_flags, address),
    "mlock": (address, length),
    "munlock": (address, length),
    "mlockall": (number(0, 4),),
    "munlockall": (),
    "load": (address, number(0, 3 * PAGE)),
    "store": (address, data),
    "load64": (address,),
    "store64": (address, word),
    "cmpxchg64": (address, word, word),
    "fetch_add64": (address, word),
    "move_pages": (pid, several(address, 6), maybe_nodes, move_flags),
    "sys_move_pages": (pid, mostly(number(0, 400), 1 << 40, (1 << 64) - 1), address, address, address, move_flags),
    "migrate_pages": (pid, nodes, nodes),
    "sys_migrate_pages": (pid, maxnode, address, address),
    "mbind": (address, length, mode, nodes, policy_flags),
    "sys_mbind": (address, length, mode, address, maxnode, policy_flags),
    "set_mempolicy": (mode, nodes),
    "sys_set_mempolicy": (mode, address, maxnode),
    "get_mempolicy": (address, policy_flags),
    "sys_get_mempolicy": (address, address, maxnode, address, policy_flags),
    "setresuid": (uid, uid, uid),
    "migrate_frames": (number(-1, NODES * FRAMES + 1), number(-1, NODES * FRAMES + 1), node),
    "mmap_device": (length, node),
    "offline_node": (mostly(among(NODES - 1), 0, 1, NODES, -1), among(0.0, 0.01)),
    "online_node": (node,),
}
# As often as not a call is one that puts pages there, for the others to meet.
NAMES = [*CALLS, *["mmap", "store", "store", "fetch_add64", "move_pages"] * 3]
burst = st.binary(min_size=BURST_BYTES // 2, max_size=BURST_BYTES)


def calls_of(data):
    """The calls that a burst's bytes stand for."""
    source, calls = Source(data), []
    while not source.exhausted:
        name = source.choice(NAMES)
        calls.append((name, *(argument(source) for argument in CALLS[name])))
    return calls


def do_calls(task, calls, pids):
    """Makes the calls.  Returns how many had a result."""
    done = 0
    for name, *arguments in calls:
        if CALLS[name][:1] == (pid,):
            which = arguments[0]
            arguments[0] = 0 if which < 0 else pids[which] if which < len(pids) else which
        try:
            getattr(task, name)(*arguments)
            done += 1
        except ANSWERS:
            pass
    return done


# ---- the machine -------------------------------------------------------------------

class Fuzz(RuleBasedStateMachine):
    """A machine with a few tasks, which come and go."""
    calls = done = 0

    def __init__(self):
        super().__init__()
        self.machine = shmkern.Machine(NODES, FRAMES, hung_task_timeout=20.0, max_tasks=16, movable={NODES - 1})
        self.tasks = []
        self.still = True

    def teardown(self):
        self.machine.close()

    def pids(self):
        return [puppet.pid for puppet in self.tasks]

    def begin(self, puppet, data):
        pids, calls = self.pids(), calls_of(data)
        note(f"task {puppet.pid}: {calls}")
        puppet.begin(lambda task: do_calls(task, calls, pids))
        Fuzz.calls += len(calls)

    def end(self, puppet):
        Fuzz.done += puppet.reply(60)
        self.still = False

    @rule(caps=st.none() | st.sets(st.sampled_from(["CAP_SYS_NICE", "CAP_SETUID"])), uid=st.sampled_from([0, 0, 1000]),
          mems=st.sampled_from([None, {0, 1}, {2}]))
    @precondition(lambda self: len(self.tasks) < TASKS_MAX)
    def spawn(self, caps, uid, mems):
        try:
            self.tasks.append(Puppet(self.machine, uid=uid, caps=caps, mems_allowed=mems))
        except OSError as error:
            # All its nodes are offline.
            note(f"spawn: {error}")

    @rule(how=st.sampled_from(["fork", "clone"]), number=st.integers(0, TASKS_MAX - 1))
    @precondition(lambda self: 0 < len(self.tasks) < TASKS_MAX)
    def multiply(self, how, number):
        parent = self.tasks[number % len(self.tasks)]
        try:
            self.tasks.append(getattr(parent, how)())
        except OSError as error:
            note(f"{how}: {error}")

    @rule(how=st.sampled_from(["exit", "kill"]), number=st.integers(0, TASKS_MAX - 1))
    @precondition(lambda self: len(self.tasks) > 2)
    def leave(self, how, number):
        getattr(self.tasks.pop(number % len(self.tasks)), how)()

    @rule(number=st.integers(0, TASKS_MAX - 1), data=burst)
    @precondition(lambda self: self.tasks)
    def one(self, number, data):
        puppet = self.tasks[number % len(self.tasks)]
        self.begin(puppet, data)
        self.end(puppet)

    @rule(bursts=st.lists(burst, min_size=TASKS_MAX, max_size=TASKS_MAX))
    @precondition(lambda self: len(self.tasks) > 1)
    def together(self, bursts):
        for puppet, data in zip(self.tasks, bursts):
            self.begin(puppet, data)
        for puppet in self.tasks:
            self.end(puppet)

    @rule(mems=st.sets(st.integers(0, NODES - 1), min_size=1), migrate=st.booleans(), number=st.integers(0, TASKS_MAX - 1))
    @precondition(lambda self: self.tasks)
    def regroup(self, mems, migrate, number):
        try:
            group = self.machine.create_cpuset(mems, memory_migrate=migrate)
        except OSError as error:
            # A node of it is offline.
            note(f"create_cpuset: {error}")
            return
        self.machine.attach(group, self.tasks[number % len(self.tasks)].pid)
        self.machine.set_mems(group, {0})
        for puppet in self.tasks:
            self.machine.attach(0, puppet.pid)
        self.machine.remove_cpuset(group)
        self.still = False

    @invariant()
    def sound(self):
        """After each burst: everybody lives, and the audit is clean."""
        if not self.still:
            self.machine.check(at_once=True)
            self.machine.audit().raise_if_broken()
            self.still = True


def test_whatever_tasks_ask_for_the_machine_stays_sound():
    Fuzz.calls = Fuzz.done = round_ = 0
    while Fuzz.calls < GOAL:
        round_ += 1
        fuzz = seed(round_)(type(f"Fuzz{round_}", (Fuzz,), {}))
        run_state_machine_as_test(fuzz, settings=settings(
            max_examples=4, stateful_step_count=STEPS, deadline=None, database=None,
            phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck)))
    # Not all of them are refused.
    assert Fuzz.done > Fuzz.calls / 5
