# SPDX-License-Identifier: GPL-2.0-only
"""Fuzzing: whatever tasks ask of the kernel, with arguments that are random, wrong and overlap,
each gets an answer or an errno; no process dies, and the machine is sound after each burst.

A burst is a list of calls that one task makes, or that several make at the same time.  Hypothesis
draws a burst as bytes, of which each argument takes what it needs (a call costs one draw, and a
failure still shrinks: towards fewer and smaller bytes).  To fuzz another system call, add it to
CALLS: the name of a method of worker.Task (or of SPECIAL), and what its arguments are.

    make fuzz                    a million calls
    make fuzz FUZZ_CALLS=50000   as many
"""
import os
import tempfile

import pytest
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

import shmkern
from helpers import C, PAGE, Puppet
from shmkern import BusError, SegmentationFault, layout
from shmkern.kallsyms import ksym

GOAL = int(os.environ.get("FUZZ_CALLS", 6_000))
pytestmark = pytest.mark.timeout(max(120, GOAL / 100))

NODES, FRAMES = 3, 512
TASKS_MAX = 4
STEPS, BURST_BYTES = 20, 500
WINDOW = 0x10_0000_0000
# Answers that are no accident.
ANSWERS = (OSError, SegmentationFault, BusError, OverflowError, ValueError)
FILES, FILE_PAGES, SWAP_PAGES = 3, 12, 400


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
# Numbers of files, which become paths; and of control groups, which become ids: the newest first.
path = number(0, FILES - 1)
group = mostly(number(0, 5), -1, 99, 1 << 20)
open_flags = mostly(among(os.O_RDWR, os.O_RDWR, os.O_RDONLY), os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_CREAT | os.O_EXCL)
fs = mostly(among(None), "page", "buffer", "fallback", "ramfs", "fixed")
fd = mostly(number(0, 4), -1, 16, 1000)
file_flags = mostly(among(0x01, 0x01, 0x02, 0x11, 0x12), 0, 0x03, 0x2001, 0x21)
file_size = mostly(pages(FILE_PAGES), 0, 1, PAGE - 1, 3 * PAGE + 100, 1 << 40, 1 << 63)
file_offset = mostly(pages(FILE_PAGES), 7, 1 << 43, 1 << 63)
sync_flags = mostly(among(4, 4, 1), 0, 2, 5, 8, 6)
# Not more, for files may be as large as they like: 2 GiB would be read for minutes.
count = mostly(number(0, 3 * PAGE), 0, 1 << 20)
limit = mostly(pages(64), None, 0, 1, (1 << 64) - 1)


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
    "open": (path, open_flags, fs),
    "close": (fd,),
    "mmap_file": (length, prot, file_flags, address, fd, file_offset),
    "msync": (address, length, sync_flags),
    "fsync": (fd,),
    "ftruncate": (fd, file_size),
    "fstat_size": (fd,),
    "read": (fd, count),
    "write": (fd, data),
    "pread": (fd, count, file_offset),
    "pwrite": (fd, data, file_offset),
    "lseek": (fd, mostly(number(-PAGE, 3 * PAGE), 1 << 47, -(1 << 63)), number(-1, 3)),
    "sys_pread": (fd, address, count, file_offset),
    "sys_pwrite": (fd, address, count, file_offset),
    "writeback": (number(0, 64),),
    "reclaim": (node,),
    "cgroup_create": (number(0, 3), limit, group),
    "cgroup_remove": (group,),
    "cgroup_attach": (group, pid),
    "cgroup_set_limit": (group, limit),
    "cgroup_force_empty": (group,),
    "cgroup_stat": (group,),
}
# As often as not a call is one that puts pages there, for the others to meet.
NAMES = [*CALLS, *["mmap", "store", "store", "fetch_add64", "move_pages", "load", "mmap_file", "open"] * 3]
burst = st.binary(min_size=BURST_BYTES // 2, max_size=BURST_BYTES)


def reclaim(task, node):
    """Direct reclaim, as by an allocation that finds nothing on a node."""
    if not 0 <= node < NODES:
        raise ValueError(node)
    ksym.kernel_enter()
    ksym.reclaim_begin()
    ksym.try_to_free_pages(node, C["GFP_HIGHUSER_MOVABLE"], 0, (1 << NODES) - 1)
    ksym.reclaim_end(0)
    ksym.kernel_exit()


SPECIAL = {
    "open": lambda task, path, flags, fs: task.open(path, flags, fs=fs),
    "mmap_file": lambda task, length, prot, flags, addr, fd, offset: task.mmap(length, prot, flags, addr, fd, offset),
    "cgroup_create": lambda task, name, limit, parent: task.cgroup_create(f"group{name}", limit, parent),
    "reclaim": reclaim,
}


def calls_of(data):
    """The calls that a burst's bytes stand for."""
    source, calls = Source(data), []
    while not source.exhausted:
        name = source.choice(NAMES)
        calls.append((name, *(argument(source) for argument in CALLS[name])))
    return calls


class Names:
    """What numbers in arguments stand for: pids of tasks, paths of files, ids of control groups."""

    def __init__(self, pids, directory):
        self.pids, self.directory = pids, directory

    def resolve(self, kind, value):
        """An argument of that kind, as a call takes it."""
        if kind is pid:
            return 0 if value < 0 else self.pids[value] if value < len(self.pids) else value
        if kind is path:
            return os.path.join(self.directory, f"file{value}")
        if kind is group and 0 <= value <= 5:
            return max(1, int(layout.kernel().next_css_id) - value)
        return value


def do_calls(task, calls, names):
    """Makes the calls.  Returns how many had a result."""
    done = 0
    for name, *arguments in calls:
        arguments = [names.resolve(kind, value) for kind, value in zip(CALLS[name], arguments)]
        try:
            if name in SPECIAL:
                SPECIAL[name](task, *arguments)
            else:
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
        self.machine = shmkern.Machine(NODES, FRAMES, hung_task_timeout=20.0, max_tasks=20, movable={NODES - 1}, memcg=True)
        # In memory: a disk would be waited for at each sync.
        self.directory = tempfile.TemporaryDirectory(dir="/dev/shm")
        for number in range(FILES):
            with open(os.path.join(self.directory.name, f"file{number}"), "wb") as file:
                file.write(bytes([number + 1]) * (FILE_PAGES * PAGE - 100))
        self.tasks, self.areas = [], []
        self.still = True

    def teardown(self):
        self.machine.close()
        self.directory.cleanup()

    def pids(self):
        return [puppet.pid for puppet in self.tasks]

    def begin(self, puppet, data):
        names, calls = Names(self.pids(), self.directory.name), calls_of(data)
        note(f"task {puppet.pid}: {calls}")
        puppet.begin(lambda task: do_calls(task, calls, names))
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

    @rule(give=st.booleans())
    def swap(self, give):
        """A swap area comes, or the last one goes, if there is room for what is in it."""
        if give and len(self.areas) < 2:
            file = os.path.join(self.directory.name, f"swap{len(self.areas)}")
            self.areas.append(self.machine.swapon(file, SWAP_PAGES))
        elif self.areas:
            try:
                self.machine.swapoff(self.areas[-1])
                self.areas.pop()
            except OSError as error:
                note(f"swapoff: {error}")
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
