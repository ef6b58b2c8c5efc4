# SPDX-License-Identifier: GPL-2.0-only
"""A private machine for one scenario, and what a scenario may do with it.

    @scenario
    def fault(room):
        "Two first touches of one page."
        user = room.task()
        va = user.mmap(4096)                       # before the snapshot: nothing is explored yet
        other = room.task(shares=user)
        room.program(user, lambda task: task.store64(va, 1))
        room.program(other, lambda task: task.store64(va + 8, 2))
        room.check(lambda: (user.load64(va), user.load64(va + 8)) == (1, 2))

Every run begins with the memory as the scenario left it.  A program is given its task, whose
methods are the system calls and memory instructions of shmkern.syscalls; what it asserts is
checked in every run, and so is what room.check() is given, when all programs are done.  Programs
must be pure: the same in every run but for what the machine answers.

May import: engine, names, and everything of shmkern outside explore.
"""
import ctypes
import os
import sys
import traceback
from pathlib import Path

import numpy as np
from greenlet import greenlet

from shmkern import audit as audit_module
from shmkern import boot, direct_map, host_files, layout, vmscan, worker
from shmkern.explore import engine as engine_module
from shmkern.explore.engine import Engine, Outcome
from shmkern.explore.names import code_of
from shmkern.kallsyms import ksym, symbol_address
from shmkern.numa import NumaSyscalls

C = layout.constants
PAGE = C["PAGE_SIZE"]
NODES, FRAMES_PER_NODE, MAX_TASKS = 2, 64, 8
FIRST_OS_PID = 1000
HUNG_TASK_NS = 60_000_000_000
KERNEL = Path(__file__).resolve().parent.parent

scenarios = {}


def scenario(function=None, *, memcg=False, frames=FRAMES_PER_NODE):
    """Registers a scenario under the name of its function; `memcg`: its machine has memory control
    groups; `frames`: of each node.  (Frame 0 is the zero page only where those are a power of two.)"""
    def register(function):
        scenarios[function.__name__] = function
        function.memcg, function.frames = memcg, frames
        return function
    return register(function) if function is not None else register


class Cpu(NumaSyscalls):
    """What a program is given: the calls of shmkern.Task that need no process of their own."""

    def __init__(self, cpu, by_hand):
        self.cpu, self._by_hand = cpu, by_hand
        self.pid = worker.slot(cpu).pid

    def fork(self):
        """A child with a copy of this address space, that does nothing.  Its slot."""
        return self._copy_process(False)

    def kernel(self, function, *args):
        """A kernel function by name; see shmkern.kallsyms."""
        self._by_hand()
        return getattr(ksym, function)(*args)

    def exit(self):
        """Leaves the machine: the program's last call."""
        self._exit()


class Task:
    """A task of a scenario: every method of Cpu, done at once, outside any run."""

    def __init__(self, room, cpu):
        self._room, self._cpu = room, cpu
        self.pid, self.cpu = cpu.pid, cpu.cpu

    def __getattr__(self, name):
        method = getattr(self._cpu, name)

        def call(*args, **kwargs):
            self._room.become(self.cpu)
            return method(*args, **kwargs)
        return call

    def frame_of(self, va):
        """The number of the frame that is mapped at an address."""
        return (self._pte(va) & 0x000ffffffffff000) >> C["PAGE_SHIFT"]

    def _pte(self, va):
        return int(layout.view("u64", self._pte_address(va))[()])

    def _pte_address(self, va):
        table = layout.struct("MmStruct", worker.slot(self.cpu).mm).pgd
        for shift in (39, 30, 21):
            entry = int(layout.view("u64", table + (va >> shift & 511) * 8)[()])
            table = layout.kernel().frames_base + (entry & 0x000ffffffffff000)
        return table + (va >> 12 & 511) * 8


class HostFile:
    """A file of the host, and of the machine when a task has it open as `fd`.  `mapping` is then the
    address of its address_space."""

    def __init__(self, number, fd=None, mapping=None):
        self.host_fd = engine_module.HOST_FD + number
        self.fd, self.mapping = fd, mapping
        self._length = direct_map.BASE + host_files_at() + number * engine_module.HOST_FILE_SIZE

    @property
    def length(self):
        """Bytes, as the host says."""
        return int(layout.view("u64", self._length)[()])

    def word(self, offset):
        """The word at an offset, as the host has it."""
        return int(layout.view("u64", self._length + PAGE + offset)[()])

    def fill(self, words):
        """Makes it as many pages long as there are `words`, which their pages begin with, twice, and end with."""
        layout.view("u64", self._length)[()] = len(words) * PAGE
        for index, word in enumerate(words):
            page = layout.view("u64", self._length + PAGE * (index + 1), PAGE // 8)
            page[:2] = page[-1] = word


class Run:
    """How one run went: an Outcome, what each program returned or raised, and, unless it held,
    `kind` and `text`: what counts as wrong, and in words.  `state` is a number for what it left."""

    def __init__(self, outcome, results):
        self.outcome, self.results = outcome, results
        self.kind = self.text = None
        self.state = 0

    @property
    def failed(self):
        return self.kind is not None


class Room:
    """The machine of this process's scenario."""

    def __init__(self, build):
        self.engine, self.build = Engine(), build
        memcg, frames = build.memcg, build.frames
        metadata, block, address_size = boot.block_size(NODES, frames, MAX_TASKS, memcg)
        # The host's files lie where trace rings would be, were there tracing.
        self.size = block + engine_module.HOST_FILES * engine_module.HOST_FILE_SIZE
        direct_map.map_private(max(address_size, self.size))
        direct_map.write_header(block, metadata, address_size)
        if self.engine.open(direct_map.BASE, self.size, metadata, block) != 0:
            raise MemoryError("the host has no memory for the explorer")
        self.engine.on_exit(lambda: print(f"{build.__name__}: {panic_text()}", file=sys.stderr, flush=True))
        boot.boot(NODES, frames, MAX_TASKS, HUNG_TASK_NS, True, memcg, 0, 0)
        self.programs, self.checks, self.resets, self._kept = [], [], [], []
        self._host_files = 0
        self.known = {}
        # Unless a scenario begins in the middle of something, with a page isolated, say.
        self.begins_whole = True
        self._stranded = []
        build(self)
        if not 1 < len(self.programs) <= engine_module.MAX_TASKS:
            raise ValueError(f"a scenario has 2 to {engine_module.MAX_TASKS} programs, not {len(self.programs)}")
        for index, (task, _program) in enumerate(self.programs):
            slot = worker.slot(task.cpu).address
            self.engine.task(index, slot, task.pid, task.cpu, *(slot + layout.offsetof("Task", field) for field in (
                "nr_held", "wait_kind", "in_kernel", "access_seq")))
        self.engine.locks(code_of("locks"), code_of("buffer"), 1 << C["BH_Lock"], C["WAIT_PAGE_LOCK"])
        self._flag_words()
        self.metadata = metadata
        self.engine.snapshot(metadata)
        self._broken = None
        if self.begins_whole:
            self.audit_once()
            self.engine.on_quiet(self._audit_when_quiet)

    # ---- what scenarios use ----

    def task(self, shares=None):
        """A new task, with an empty address space or with that of the task `shares`."""
        cpu = boot.claim_task()
        slot = worker.slot(cpu)
        if shares is not None:
            slot.mm = worker.slot(shares.cpu).mm
            layout.struct("MmStruct", slot.mm).mm_users += 1
        return self._start(cpu)

    def forked(self, parent):
        """A new task with a copy of its parent's address space."""
        return self._start(parent.fork())

    def _start(self, cpu):
        """Begins the task in a slot that is claimed."""
        self.become(cpu)
        task = Task(self, Cpu(cpu, self.engine.by_hand))
        task._cpu._become(cpu, task.pid, FIRST_OS_PID + cpu, 1, f"task {cpu}")
        return task

    def become(self, cpu):
        """Makes a slot's task the current one, outside runs."""
        slot = worker.slot(cpu)
        self.engine.become(slot.address, slot.pid)

    def clean(self, task, va):
        """Makes a page that the task has mapped look as if nobody had written to it, to the page
        table and to the task's TLB."""
        pte = layout.view("u64", task._pte_address(va))
        pte[()] &= ~np.uint64(C["_PAGE_DIRTY"])
        slot = worker.slot(task.cpu)
        slot.tlb[:] = 0
        task.load64(va)

    def load_in(self, cpu, va):
        """The word at an address of the task in a slot that no program runs, such as a child's
        that a program made."""
        if worker.slot(cpu).state == C["TASK_EMBRYO"]:
            return self._start(cpu).load64(va)
        return Task(self, Cpu(cpu, self.engine.by_hand)).load64(va)

    def is_dirty(self, task, va):
        """Whether reclaim would see that the page at an address was written to."""
        flags = layout.struct("Page", self.page_of(task, va)).flags
        return bool(task._pte(va) & C["_PAGE_DIRTY"] or flags >> C["PG_dirty"] & 1)

    def page_of(self, task, va):
        """The address of struct Page of what is mapped at an address."""
        return layout.kernel().mem_map + task.frame_of(va) * layout.sizeof("Page")

    def file(self, task, words, fs="page", block_size=PAGE, writable=True):
        """Opens a new file of the host for a task, as a file of that sort (shmkern.Task.open) with a
        page for each of `words`, which it begins with, twice; by a descriptor that may write or not.  A HostFile."""
        file = self.host_file(words)
        kind, blkbits = host_files.KINDS[fs], block_size.bit_length() - 1
        task._register_host_file(0, file.host_fd, len(words) * PAGE, kind, blkbits, file.host_fd, writable)
        file.fd = task._open(0, file.host_fd, os.O_RDWR if writable else os.O_RDONLY, kind, blkbits, file.host_fd)
        files = layout.struct("FilesStruct", worker.slot(task.cpu).files)
        file.mapping = layout.struct("File", int(files.fd[file.fd])).f_mapping
        return file

    def swapon(self, task, slots):
        """Gives the machine a swap area in a new file of the host, from which nothing is read ahead.  A
        HostFile."""
        file = self.host_file([0] * (slots + 1))
        layout.kernel().page_cluster = 0
        self.become(task.cpu)
        area = layout.kernel().swap_info[vmscan.swapon(file.host_fd, slots, 0, file.host_fd)]
        ksym.host_fd_install(int(area["swap_file"]["i_id"]), file.host_fd)
        return file

    def host_file(self, words):
        """A new file of the host that the machine does not know.  A HostFile."""
        if self._host_files == engine_module.HOST_FILES:
            raise ValueError(f"there are no more than {engine_module.HOST_FILES} files of the host")
        file = HostFile(self._host_files)
        self._host_files += 1
        file.fill(words)
        return file

    def list_head(self):
        """The address of a list head outside the block, as on a kernel stack."""
        return self.stack_words(2)

    def stack_words(self, count):
        """The address of so many words outside the block, zeros, as on a kernel stack."""
        self._kept.append((ctypes.c_uint64 * count)())
        return ctypes.addressof(self._kept[-1])

    def offset(self, struct, field):
        """Where a field lies in its struct."""
        return layout.offsetof(struct, field)

    def symbol(self, name):
        """The address of a kernel function."""
        return symbol_address(name)

    def before_each_run(self, function):
        """Puts back what programs keep outside the machine."""
        self.resets.append(function)

    def program(self, task, function):
        """What `task` does in every run."""
        self.programs.append((task, function))

    def check(self, function):
        """What must be true when all programs have ended; given each one's result, in order, if
        it takes arguments."""
        self.checks.append(function)

    # ---- runs ----

    def _flag_words(self):
        """Tells the runtime what it cannot know of the block's words."""
        split, ignored = engine_module.WORD_SPLIT, engine_module.WORD_IGNORED
        kernel = layout.kernel()
        places = [("block_header", direct_map.BASE, 1), ("Kernel", kernel.address, 1),
                  ("Task", kernel.tasks, kernel.max_tasks), ("Zone", kernel.zones, kernel.nr_nodes),
                  ("PgData", kernel.nodes, kernel.nr_nodes), ("WaitQueueHead", kernel.wait_table, C["WAIT_TABLE_SIZE"]),
                  ("Page", kernel.mem_map, kernel.max_pfn),
                  ("Slab", kernel.slabs, (kernel.slab_end - kernel.slab_base) // PAGE)]
        if kernel.page_cgroup:
            places.append(("PageCgroup", kernel.page_cgroup, kernel.max_pfn))
        for name, address, count in places:
            for offset in half_words(layout.dtypes[name]):
                for index in range(count):
                    self.engine.flag_words(address + index * layout.sizeof(name) + offset & ~7, 8, split)
            for field in layout.dtypes[name].names:
                size = layout.dtypes[name].fields[field][0].itemsize
                for index in range(count):
                    at = address + index * layout.sizeof(name) + layout.offsetof(name, field)
                    if field.endswith("buckets") or field in ("vm_events", "wait_since", "wait_channel"):
                        self.engine.flag_words(at, size, ignored)
                    if (name, field) == ("Zone", "vm_stat"):
                        self.engine.flag_words(at, size, engine_module.WORD_COUNTER)
        # Objects of any kind, at any place: 32-bit fields anywhere.
        self.engine.flag_words(kernel.slab_base, kernel.slab_end - kernel.slab_base, split)

    def run(self):
        """One run, of the engine's plan and strategy.  The memory is left as the run left it;
        the caller calls restore().  Returns a Run."""
        results = [None] * len(self.programs)
        for reset in self.resets:
            reset()

        def body(index, task, function):
            def run():
                try:
                    results[index] = function(task._cpu)
                except BaseException as error:
                    results[index] = error
            return run

        lets = [greenlet(body(index, task, function)) for index, (task, function) in enumerate(self.programs)]
        outcome = self.engine.run(lets)
        if outcome != Outcome.HELD:
            # Those that never came to an end must not be ended by Python.
            self._stranded += lets
        return Run(outcome, results)

    def judge(self, run):
        """Sets what is wrong with a run that has just been made."""
        # A program that raised is why others wait for ever.
        if run.outcome in (Outcome.HELD, Outcome.DEADLOCK, Outcome.LOST_WAKEUP, Outcome.LIVELOCK):
            for index, result in enumerate(run.results):
                if isinstance(result, BaseException):
                    run.kind, run.text = error_kind(result), f"{self.name_of(index)}: {describe_error(result)}"
                    return
        if run.outcome == Outcome.HELD:
            run.state = self.engine.state_hash()
            try:
                state = run.state, tuple(run.results)
                if state not in self.known:
                    self.known[state] = self._judge_state(run.results)
                run.kind, run.text = self.known[state]
            except TypeError:       # A result that cannot be hashed.
                run.kind, run.text = self._judge_state(run.results)
        else:
            run.kind, run.text = self._outcome(run.outcome)

    def _judge_state(self, results):
        """What is wrong with a state that no task runs in any more: (kind, text) or (None, None)."""
        found = self.audit_text()
        if found:
            return "audit", found
        for check in self.checks:
            try:
                held = check(*results) if check.__code__.co_argcount else check()
            except Exception as error:
                return "lost data", f"the scenario's check: {describe_error(error)}"
            if held is False:
                return "lost data", f"the scenario's check does not hold; results {results}"
        return None, None

    def audit_text(self):
        """What the audit says of the machine as it is; "" when it is whole."""
        return "; ".join(str(finding) for finding in audit_module.audit(check_poison=True).findings[:4])

    def audit_once(self):
        """ValueError when the scenario begins with a broken machine."""
        found = self.audit_text()
        if found:
            raise ValueError(f"the scenario begins with a broken machine: {found}")

    def _audit_when_quiet(self):
        """Whether the audit finds anything, for the engine."""
        self._broken = self.audit_text()
        return bool(self._broken)

    def name_of(self, index):
        """A task by its pid."""
        return f"task {self.programs[index][0].pid}"

    def _outcome(self, outcome):
        statistics = self.engine.statistics()
        who = self.name_of(statistics.failed_task)
        if outcome == Outcome.BUG:
            kind = "kernel BUG" if layout.header().panic_kind == C["PANIC_BUG"] else "hung task"
            return kind, panic_text(who)
        if outcome == Outcome.OOPS:
            return "bad pointer", f"{who} follows a pointer to {statistics.fault_address:#x}"
        if outcome == Outcome.DEADLOCK:
            return "deadlock", self.deadlock_text()
        if outcome == Outcome.LOST_WAKEUP:
            return "lost wake-up", f"{who} sleeps, and would go on if it looked, but nobody wakes it"
        if outcome == Outcome.LIVELOCK:
            return "livelock", f"{who} goes on and on and gets nowhere"
        if outcome == Outcome.BROKEN:
            return "audit", f"while nobody is inside the kernel, {who} having just left it: {self._broken}"
        if outcome == Outcome.RACE:
            race = self.engine.race()
            return "data race", f"{self.name_of(race.task[0])} and {self.name_of(race.task[1])} access " \
                f"{race.address:#x} and nothing orders it"
        return "diverged", "the schedule cannot be followed"

    def deadlock_text(self, name_of=hex):
        """Why no task can go on, in words; `name_of` names an address."""
        return "no task can go on: " + "; ".join(self.waits(name_of))

    def waits(self, name_of):
        """Who waits for what, in words."""
        kinds = {value: name[5:].lower().replace("_", " ") for name, value in C.items()
                 if name.startswith("WAIT_") and name not in ("WAIT_TABLE_BITS", "WAIT_TABLE_SIZE", "WAIT_SLICE_NS")}
        texts = []
        for task, _program in self.programs:
            slot = worker.slot(task.cpu)
            if slot.wait_kind:
                texts.append(f"task {task.pid} waits for a {kinds[slot.wait_kind]} at {name_of(int(slot.wait_channel))}")
        return texts


def panic_text(who=""):
    """Why the machine has stopped, in words."""
    header = layout.header()
    kind = "kernel BUG" if header.panic_kind == C["PANIC_BUG"] else "hung task"
    text = header.panic_text.decode() or "an assertion does not hold"
    where = f", {header.panic_file.decode()}:{header.panic_line}" if header.panic_line else ""
    return f"{kind}{who and f' in {who}'}: {text}{where}"


def host_files_at():
    """The offset of the host's files: they follow the block."""
    return layout.header().size


def half_words(dtype, base=0):
    """The offsets of all 32-bit scalars in a struct."""
    for field in dtype.names:
        kind, offset = dtype.fields[field][:2]
        element = kind.base
        for index in range(int(np.prod(kind.shape, dtype=int)) if kind.shape else 1):
            at = base + offset + index * element.itemsize
            if element.names:
                yield from half_words(element, at)
            elif element.itemsize == 4:
                yield at


def error_kind(error):
    """What an exception out of a program counts as."""
    return "lost data" if isinstance(error, AssertionError) else "error"


def describe_error(error):
    """An exception with the line of the scenario that raised it."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.line and (
        KERNEL not in Path(frame.filename).parents or Path(frame.filename).name.startswith("scenarios"))]
    line = f" ({frames[-1].line})" if frames else ""
    return f"{type(error).__name__}: {error}{line}"
