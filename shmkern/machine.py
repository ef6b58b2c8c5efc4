# SPDX-License-Identifier: GPL-2.0-only
"""A machine: boot, spawn, supervise, shut down.

The process that makes a Machine is its supervisor.  It is no task: after boot it changes
nothing in the block but single words (claiming a slot, the freezer's flag), so that it can
be interrupted at any time.  What needs a lock is done by init, the machine's pid 1.

Supervision is polling, four or five times a second and only while the supervisor waits for
something: it starts no threads, since it forks.  Those of its program take turns.
"""
import atexit
import contextlib
import numbers
import operator
import os
import select
import threading
import time

from multiprocess.reduction import ForkingPickler

from shmkern import audit as audit_module
from shmkern.cgroup import Cgroup
from shmkern import boot, direct_map, freezer, host_files, interrupts, layout, lifeline, report, vmstat, worker
from shmkern.errors import ArgumentError, BootError, KernelBug, TaskDied
from shmkern.tracing import await_tracer, end_what_is_left

C = layout.constants
MIN_FRAMES = 64
# Sixteen GiB a node; the TLB's frame numbers have 28 bits for all of them.
MAX_FRAMES = 1 << 22
MAX_PFN = (1 << 28) - C["MAX_NUMNODES"] * C["DEVICE_FRAMES"]


def _whole(name, value, low, high):
    """`value` as an int within bounds, or ValueError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not low <= value <= high \
            or int(value) != value:
        raise ArgumentError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
    return int(value)


_CAPS = {name: bit for name, bit in C.items() if name.startswith("CAP_")}
_ALL_CAPS = (1 << 64) - 1


def check_build():
    """BootError when what is compiled is not of the sources that layout.py has read: they have been edited, or
    another version has been checked out."""
    for name, size in boot.struct_sizes().items():
        if size != layout.sizeof(name):
            raise BootError(f"the kernel is compiled from other sources than these (struct {name} has {size} bytes "
                            f"there, and {layout.sizeof(name)} here): run `make build`")


def _mask_of(what, names, known):
    """A mask of the bits that names stand for, or ValueError."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ArgumentError(f"{what}: there is no {unknown[0]!r}; there is {', '.join(sorted(known))}")
    return sum(1 << known[name] for name in set(names))


def _nodes(what, nodes, count):
    """A mask of node numbers, or ValueError."""
    return sum(1 << node for node in {_whole(f"a node of {what}", node, 0, count - 1) for node in nodes})


class Init:
    """The machine's own task, pid 1: every method of worker.Task, done in init's process."""

    def __init__(self, machine):
        self._machine = machine
        self._connection, other = worker._fork.Pipe()
        self._child = machine.spawn(worker.init, other)
        other.close()
        # Both ways, so that nothing waits for init, which may be stopped.
        os.set_blocking(self._connection.fileno(), False)
        self.pid = self._child.pid
        self.os_pid = self._child.os_pid
        # The thread that is in the middle of a call, if one is: it cannot take another one.
        self.busy = None
        # Whether it has an answer to give, or to be taken: unasked it says when it has begun.
        self._due = True
        # What is still to be sent of a request, and what has come of its answer.
        self._unsent = memoryview(b"")
        self._received = bytearray()

    def __getattr__(self, name):
        if not callable(getattr(worker.Task, name, None)):
            raise AttributeError(f"tasks have no {name}()")

        def call(*args, **keywords):
            self._machine.check()
            if name in ("fork", "clone"):
                # The Child would be init's, and stay there.
                raise PermissionError(1, f"init does not {name}; Machine.spawn() makes a task")
            return self.request(name, *args, **keywords)
        return call

    def request(self, name, /, *args, **keywords):
        """Has init call task.name(*args, **keywords); returns or raises what that does."""
        with self._machine.lock:
            return self._answer((name, args, keywords))

    def settle(self):
        """Goes on with a call that was interrupted, as far as that takes no time: init does nothing else while it
        is sending a long answer."""
        try:
            if self._due and not self.busy:
                self._go_on(0)
        except (EOFError, ConnectionError):
            pass        # It has died, and check() will come to that.

    def wait_for_start(self):
        """Waits until it runs and has its address space; worker.init says so unasked."""
        self._answer(None)

    def _answer(self, request):
        """Sends a request, if there is one; what the answer to the last one says."""
        self.busy = threading.get_ident()
        try:
            if request is not None:
                # One that was interrupted comes first, and nobody wants its answer.
                self._finish()
                request = worker.framed(ForkingPickler.dumps(request))
                with interrupts.later():
                    self._unsent, self._due = request, True
            answer = self._finish()
        except (EOFError, ConnectionError):
            self._child.process.join()
            self._machine.check(at_once=True)
            raise TaskDied(self.pid, self._child.process.exitcode) from None
        finally:
            self.busy = None
        succeeded, value = ForkingPickler.loads(answer)
        if succeeded:
            return value
        raise value

    def _finish(self):
        """Sends what is left of a request and waits for its answer; None when there is nothing to be answered.
        Begins where it was interrupted."""
        answer = None
        while self._due and (answer := self._go_on(worker.POLL_SECONDS)) is None:
            self._machine.check()
        return answer

    def _go_on(self, seconds):
        """Sends and takes what goes, waiting so long for something to go.  The answer when that was the rest of it,
        or None."""
        channel = self._connection.fileno()
        ready = select.poll()
        ready.register(channel, select.POLLIN | (select.POLLOUT if self._unsent else 0))
        events = dict(ready.poll(seconds * 1000)).get(channel, 0)
        # What is on its way is noted, or the next request would be taken for the rest of this one.
        with interrupts.later():
            if events & select.POLLOUT:
                self._unsent = self._unsent[os.write(channel, self._unsent):]
            if events & ~select.POLLOUT:
                data = os.read(channel, 1 << 16)
                if not data:
                    raise EOFError
                self._received += data
            answer = worker.message(memoryview(self._received))
            if answer is not None:
                self._received, self._due = bytearray(), False
        return answer

    def hang_up(self):
        """Closes the connection; init ends when it sees that.  (close() is the system call.)"""
        self._connection.close()


class Migrator:
    """A process that moves all movable pages from node to node until stop()."""

    def __init__(self, machine, nodes, seed):
        self._connection, other = worker._fork.Pipe()
        self.child = machine.spawn(worker.migrator, other, nodes, seed)
        other.close()

    def stop(self, timeout=None):
        """Lets it finish its batch, and returns what it did (see worker.migrator)."""
        try:
            self._connection.send("stop")
        except BrokenPipeError:
            pass  # It is gone; result() tells why.
        return self.child.result(timeout)


class Flusher:
    """A process that writes dirty pages back to their files until stop()."""

    def __init__(self, machine, interval):
        self._connection, other = worker._fork.Pipe()
        self.child = machine.spawn(worker.flusher, other, interval)
        other.close()

    def stop(self, timeout=None):
        """Has it write what is dirty now, and end.  Returns how many pages it has written in all."""
        try:
            self._connection.send("stop")
        except BrokenPipeError:
            pass  # It is gone; result() tells why.
        return self.child.result(timeout)


class Machine:
    """A running machine.  Leaving its `with` block ends every process and removes the block.

    nodes: 1 to 64.  frames_per_node: 64 to 4194304, of 4 KiB.  max_tasks: how many there can
    be at once, with init and each migrator.  hung_task_timeout: seconds that a task may wait
    before the machine stops with a report.  poison: fill freed frames, so that a use after
    free shows.  memoryless: nodes that have CPUs only.  movable: nodes that hold nothing but
    programs' pages, so that they can be emptied (as with the kernel's parameter movable_node).
    memcg: with memory control groups; see cgroup_create().

    Raises ValueError for numbers out of range and BootError when the host has no room.
    """

    def __init__(self, nodes=2, frames_per_node=16384, *, max_tasks=256, hung_task_timeout=60.0,
                 poison=True, memcg=False, memoryless=(), movable=()):
        nodes = _whole("nodes", nodes, 1, C["MAX_NUMNODES"])
        frames_per_node = _whole("frames_per_node", frames_per_node, MIN_FRAMES, MAX_FRAMES)
        max_tasks = _whole("max_tasks", max_tasks, 3, C["NR_CPUS"])
        if not 0 < hung_task_timeout < 1e9:
            raise ArgumentError(f"hung_task_timeout is {hung_task_timeout!r}; it must be a time in seconds")
        if nodes * frames_per_node > MAX_PFN:
            raise ArgumentError(f"{nodes} nodes of {frames_per_node} frames are more than {MAX_PFN} frames")
        memoryless, movable = (_nodes(name, which, nodes) for name, which in
                               (("memoryless", memoryless), ("movable", movable)))
        if (memoryless | movable).bit_count() == nodes:
            raise ArgumentError("no node is left that has memory for the kernel")
        check_build()
        metadata, size, address_size = boot.block_size(nodes, frames_per_node, max_tasks, bool(memcg))
        self._block = None
        self._supervisor = os.getpid()
        # Its maker may have threads: one at a time talks to init, forks, or looks after the tasks.
        self.lock = threading.RLock()
        # Held by who looks into the block without that lock, which may be held for long.
        self._mapped = threading.RLock()
        self._panic = None
        self._cpusets = {}
        self._checked = 0.0
        self.init = None
        self.children = []
        # By node.
        self.kswapds = {}
        atexit.register(self.close)
        try:
            with interrupts.later():
                self._block = direct_map.create(size, metadata, address_size)
            self.name = self._block.name
            lifeline.open_lifeline()
            host_files.open_door()
            boot.boot(nodes, frames_per_node, max_tasks, int(hung_task_timeout * 1e9), bool(poison),
                      bool(memcg), memoryless, movable)
            self.init = Init(self)
            # What it takes for itself is taken before anybody counts, or uses, free frames.
            self.init.wait_for_start()
            await_tracer()
        except OSError as error:
            self.close()
            raise BootError(f"the machine cannot be started: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self):
        """Whether the machine is there: not closed."""
        return self._block is not None

    def __enter__(self):
        return self

    def __exit__(self, *_exception):
        self.close()

    # ---- processes ----

    def spawn(self, program, *args, uid=0, caps=None, mems_allowed=None, cpuset=0, cgroup=None,
              rlimit_memlock=C["MLOCK_LIMIT"]):
        """Runs program(task, *args) in a new process, as a task with an empty address space.
        Returns its worker.Child.  Raises OSError: EAGAIN when all slots are taken, ENOENT when there
        is no such cpuset or cgroup.

        uid: its user id.  caps: names of the capabilities it has (all by default for uid 0, and
        none for others), such as {"CAP_SYS_NICE"}.  cpuset: the group it is in, from
        create_cpuset; mems_allowed: nodes, for a group of that kind.  cgroup: the memory control
        group that pays for it, a Cgroup; the root by default.  rlimit_memlock: bytes that it may lock
        without CAP_IPC_LOCK.  Its children inherit all this.
        """
        self.check()
        # All before a slot is claimed, which nobody would give back.
        uid = _whole("uid", uid, 0, (1 << 32) - 2)
        caps = (_ALL_CAPS if uid == 0 else 0) if caps is None else _mask_of("caps", caps, _CAPS)
        rlimit_memlock = _whole("rlimit_memlock", rlimit_memlock, 0, _ALL_CAPS)
        if cgroup is not None and not isinstance(cgroup, Cgroup):
            raise TypeError(f"cgroup is {cgroup!r}; it must be a Cgroup, as cgroup_create() returns it")
        cpuset = _whole("cpuset", cpuset, 0, C["NR_CPUSETS"] - 1)
        with self.lock:
            self._mine()
            if mems_allowed is not None:
                cpuset = self._cpuset_of(mems_allowed)
            elif not layout.kernel().cpusets[cpuset]["in_use"]:
                raise OSError(2, f"there is no cpuset {cpuset}")
            return self._spawn(program, args, uid, caps, cpuset, cgroup, rlimit_memlock)

    def _spawn(self, program, args, uid, caps, cpuset, cgroup, rlimit_memlock):
        """spawn, with what it takes checked and the lock held."""
        slot = None
        try:
            with interrupts.later():
                cpu = boot.claim_task()
                if cpu < 0:
                    raise OSError(11, f"all {layout.kernel().max_tasks - 1} tasks of the machine are taken")
                slot = worker.slot(cpu)
                pid = slot.pid
            slot.cpuset = cpuset
            slot.rlimit_memlock = rlimit_memlock
            slot.uid = slot.euid = slot.suid = uid
            slot.cap_permitted = slot.cap_effective = caps
            if cgroup is not None:
                self.init.request("_prepare_mm", cpu, cgroup.id)
            self.children = [child for child in self.children if child.process.exitcode is None]
            return worker.start_process(cpu, program, args, self.check, self.children.append)
        except BaseException:
            if slot is not None:
                self._take_back(slot, pid, cgroup is not None)
            raise

    def _take_back(self, slot, pid, prepared):
        """Gives the slot of task `pid` back, which could not be made; unless there is a process for it all
        the same, as after Ctrl-C.  prepared: init may have given it an address space."""
        if layout.header().panic:
            return
        if prepared:
            self.init.request("_abandon", slot.cpu, pid)
        elif boot.announce_task(slot.cpu, pid, -1):
            boot.release_task_slot(slot.cpu)

    # ---- nodes ----

    def create_cpuset(self, mems, parent=0, *, memory_migrate=False, mem_hardwall=False):
        """Makes a group of tasks that may use the nodes `mems`, below group `parent` (0: the one of
        all nodes).  Returns its number.  Raises OSError: ENOENT, EINVAL, EACCES, ENOSPC.

        memory_migrate: pages follow when the group's nodes change or a task comes in.
        mem_hardwall: page tables and the like keep to the group's nodes, too; EINVAL when these are
        movable nodes only, which have no room for them.
        """
        self._mine()
        flags = C["CS_MEMORY_MIGRATE"] * bool(memory_migrate) | C["CS_MEM_HARDWALL"] * bool(mem_hardwall)
        return self.init.request("_cpuset_create", operator.index(parent), list(mems), flags)

    def remove_cpuset(self, cpuset):
        """Removes a group.  Raises OSError: ENOENT, EBUSY (it has tasks or groups)."""
        self._mine()
        self.init.request("_cpuset_remove", operator.index(cpuset))

    def set_mems(self, cpuset, mems):
        """Gives a group other nodes; its tasks' policies follow.  Raises OSError: ENOENT, EINVAL (as
        for create_cpuset), EACCES, EBUSY."""
        self._mine()
        self.init.request("_cpuset_set_mems", operator.index(cpuset), list(mems))

    def attach(self, cpuset, pid):
        """Puts a task in a group.  Raises OSError: ENOENT, ESRCH."""
        self._mine()
        self.init.request("_cpuset_attach", operator.index(cpuset), operator.index(pid))

    def offline(self, node, timeout=10.0):
        """Takes a node's memory offline: everything on it moves to other nodes.  Raises OSError:
        EINVAL (it has none), EBUSY (something will not move, as page tables on a node that is not
        movable; or has not within `timeout` seconds), ENOMEM (the other nodes have no room)."""
        self._mine()
        self.init.request("offline_node", operator.index(node), timeout)

    def online(self, node):
        """Brings the memory of an offline node back.  Raises OSError(EINVAL)."""
        self._mine()
        self.init.request("online_node", operator.index(node))

    def _cpuset_of(self, mems):
        """The group below the first that was made for tasks with these nodes."""
        mems = frozenset(mems)
        if mems not in self._cpusets:
            self._cpusets[mems] = self.create_cpuset(mems)
        return self._cpusets[mems]

    # ---- more about tasks ----

    def protect(self, pid, protected=True):
        """The security module's label of a task: system calls may not move its memory (EACCES),
        whoever asks.  Tasks that it forks from now on inherit it.  Raises OSError(ESRCH)."""
        with self._mapped:
            self._mine()
            for row in vmstat.tasks():
                if row["pid"] == pid and row["state"] == C["TASK_RUNNING"]:
                    row["security"] = bool(protected)
                    return
        raise OSError(3, f"there is no task {pid}")

    def start_migrator(self, nodes=None, seed=0):
        """Starts a process that moves all pages among `nodes` (all of them by default) until its
        stop().  Returns a Migrator."""
        self._mine()
        count = layout.kernel().nr_nodes
        nodes = list(range(count)) if nodes is None else [_whole("node", node, 0, count - 1) for node in nodes]
        if len(set(nodes)) < 2:
            raise ArgumentError("a migrator needs two nodes at least")
        return Migrator(self, nodes, seed)

    def start_flusher(self, interval=0.5):
        """Starts a process that writes dirty pages back to their files, a round every `interval`
        seconds, until its stop().  Returns a Flusher."""
        self._mine()
        if not 0 < interval < 1e6:
            raise ArgumentError(f"interval is {interval!r}; it must be a time in seconds")
        return Flusher(self, interval)

    def swapon(self, path, pages):
        """Lets memory overflow into a file of the host, which is made if there is none and keeps
        room for `pages` pages from now on; anonymous pages that are not in use go there when frames
        are short.  Starts a kswapd for each node that has none, which are tasks as well: the first call all,
        a later one those that were killed, without which tasks free memory themselves.

        Returns the area's number.  Raises OSError: whatever the host says to the file; EINVAL (no
        pages, or neither a plain file nor a block device), EBUSY (it is an area already, or a task has it
        open for writing), EPERM (there are 30 areas), ENOMEM (all areas together are more than four times
        the frames), EAGAIN (all slots for tasks are taken).
        """
        self._mine()
        pages = _whole("pages", pages, 1, 1 << 30)
        for node in range(layout.kernel().nr_nodes):
            if node not in self.kswapds or not self.kswapds[node].is_alive():
                self.kswapds[node] = self.spawn(worker.kswapd, node)
        return self.init.request("_swapon", os.path.abspath(path), pages)

    def swapoff(self, area):
        """Gives an area back, once everything in it is in memory again.  Raises OSError: EINVAL (there
        is no such area), ENOMEM (it does not fit), EIO (the host does not read it); then nothing has
        changed."""
        self._mine()
        self.init.request("_swapoff", _whole("area", area, 0, C["MAX_SWAPFILES"] - 1))

    @property
    def page_cluster(self):
        """log2 of how many slots of a swap area are read at once, as /proc/sys/vm/page-cluster: 3 after
        the boot, for eight; with 0 nothing is read ahead.  ValueError for what is no whole number
        from 0 to 10."""
        with self._mapped:
            self._mine()
            return layout.kernel().page_cluster

    @page_cluster.setter
    def page_cluster(self, cluster):
        with self._mapped:
            self._mine()
            layout.kernel().page_cluster = _whole("page_cluster", cluster, 0, C["PAGE_CLUSTER_MAX"])

    def check(self, at_once=False):
        """Looks after the tasks: cleans up after those that were killed, and raises KernelBug
        when the machine has stopped.  Looks for dead tasks five times a second, however often
        it is called, or now if `at_once`."""
        self._mine()
        if self.init is None:
            return      # Still booting.
        if not at_once and self.init.busy not in (None, threading.get_ident()):
            return      # Another thread waits for init, and looks meanwhile.
        with self.lock:
            self._mine()
            self._check(at_once)

    def _check(self, at_once):
        """check, with the lock held."""
        if self._panic is None and layout.header().panic:
            self._stopped()
        if self._panic is not None:
            raise KernelBug(*self._panic)
        now = time.monotonic()
        if at_once or now - self._checked >= worker.POLL_SECONDS:
            self._checked = now
            end_what_is_left()
            self.init.settle()
            tasks = report.living()
            running = set(tasks["pid"][tasks["state"] == C["TASK_RUNNING"]].tolist())
            for task in tasks:
                if self._is_dead(task, running):
                    self._lost(task)

    @staticmethod
    def _is_dead(task, running):
        """Whether the process of a task has ended, or of one that has not begun, as a copy of its
        slot says; `running` are the pids of those that have begun."""
        if task["pid"] == 0:
            # On its way out, or the last one's of a slot that is being claimed.
            return task["state"] == C["TASK_RUNNING"] and task["os_pid"] != 0 and \
                direct_map.process_gone(int(task["os_pid"]), int(task["start_time"]))
        if task["os_pid"]:
            start = int(task["start_time"]) if task["state"] == C["TASK_RUNNING"] else None
            return direct_map.process_gone(int(task["os_pid"]), start)
        # Its maker may have been killed before it could tell of a process.
        return task["state"] == C["TASK_EMBRYO"] and task["parent_pid"] != 0 and \
            int(task["parent_pid"]) not in running

    def _lost(self, task):
        """A task that was there a moment ago, as `task` says, is dead."""
        slot = worker.slot(int(task["cpu"]))
        pid, os_pid = int(task["pid"]), slot.os_pid
        if slot.state != task["state"] or slot.pid != pid or os_pid != int(task["os_pid"]):
            # It had left by itself, or has begun or is about to; somebody else may have the slot by now.
            return
        if not os_pid and int(task["parent_pid"]) in report.running()["pid"]:
            # Its maker's slot was free when we came by it, and this one was not when we came by here.
            return
        # Without a pid it was out but for its slot.
        inside = pid != 0 and slot.in_kernel
        self._dead(slot.cpu, pid, os_pid, inside)

    def _dead(self, cpu, pid, os_pid, inside):
        """A slot's process is dead, and did not leave.  Killed outside the kernel it is as if it
        had exited; inside, nobody can tell what it had begun, and the machine stops."""
        slot = worker.slot(cpu)
        if layout.header().panic == 0 and not inside and pid != self.init.pid:
            # It may have died in the middle of an access, and a flusher waits for its end:
            # perhaps the very one that keeps init busy.
            if slot.access_seq & 1:
                slot.access_seq += 1
            if not self.init.busy:
                self.init.request("_reap", cpu, pid, os_pid)
            return
        boot.record_lost_task(pid, os_pid, "a task's process was killed inside the kernel" if pid != self.init.pid
                              else "init was killed")
        self._stopped()
        raise KernelBug(*self._panic)

    def _stopped(self):
        """Reads the report of a machine that has stopped and ends its processes."""
        self._panic = report.panic()
        self._end_processes()

    def _mine(self):
        """Raises what a call on a closed machine, or from a task of it, deserves."""
        if self._block is None:
            raise RuntimeError("the machine is closed")
        if os.getpid() != self._supervisor:
            raise RuntimeError("a task cannot do that; only the process that made the machine can")

    # ---- memory control groups ----

    def cgroup_create(self, name, limit=None, parent=None):
        """A new memory control group, below `parent` (a Cgroup; the root by default), that may use
        `limit` bytes (None: any number).  Returns its Cgroup.  Raises OSError: ENODEV (booted
        without memcg=True), EINVAL (a name that no directory has), EEXIST, ENOENT, ENOMEM."""
        self._mine()
        return Cgroup(self, self.init.cgroup_create(name, limit, 1 if parent is None else parent.id), name)

    @property
    def root_cgroup(self):
        """The Cgroup of all tasks that are in no other.  Raises OSError(ENODEV)."""
        self._mine()
        if not layout.kernel().page_cgroup:
            raise OSError(19, "the machine was booted without memory control groups; see memcg=")
        return Cgroup(self, 1, "/")

    # ---- looking inside ----

    def audit(self, timeout=60.0, **options):
        """Makes the machine still and computes from the page tables up what must hold.  Returns
        an audit.Audit.  TimeoutError when tasks do not leave the kernel."""
        with self.lock:
            return self._audit(timeout, options)

    def _audit(self, timeout, options):
        """audit, with the lock held."""
        self.check()
        try:
            # Init is frozen like the rest: who dies meanwhile is cleaned up afterwards.
            self.init.busy = threading.get_ident()
            freezer.freeze()
            deadline = time.monotonic() + timeout
            while freezer.tasks_in_kernel():
                self.check()
                if not time.monotonic() < deadline:
                    raise TimeoutError("tasks do not leave the kernel:\n" + "\n".join(report.in_kernel() + report.waiters()))
                time.sleep(0.001)
            return audit_module.audit(**options)
        finally:
            # In this order: a Ctrl-C comes through behind a call, and then both are done.
            self.init.busy = None
            freezer.thaw()

    def vmstat(self):
        """All counters by name; see vmstat.vmstat."""
        with self._mapped:
            self._mine()
            return vmstat.vmstat()

    def zoneinfo(self):
        """The nodes' counters; see vmstat.zoneinfo."""
        with self._mapped:
            self._mine()
            return vmstat.zoneinfo()

    # ---- the end ----

    @interrupts.later()
    def _end_processes(self):
        """Kills every task and waits until all are gone."""
        tasks = [(int(task["os_pid"]), int(task["start_time"])) for task in report.running()]
        lifeline.close_lifeline()
        host_files.close_door()
        for child in self.children:
            # Or its pid may be another's.
            if child.is_alive():
                child.kill()
        for child in self.children:
            child.process.join()
            child.close()
        if self.init is not None:
            self.init.hang_up()
        # Children of tasks got the signal from the lifeline, unless the program has closed its descriptors or become
        # another one; somebody else reaps them.
        for task in tasks:
            with contextlib.suppress(OSError):
                direct_map.kill_process(*task)
        deadline = time.monotonic() + 10
        # Without descriptors nobody can be looked at, and they end all the same.
        with contextlib.suppress(OSError):
            while not all(direct_map.process_gone(*task) for task in tasks) and time.monotonic() < deadline:
                time.sleep(0.005)

    @interrupts.later()
    def close(self):
        """Ends every process and removes the block.  Does nothing the second time, or in a
        task."""
        if os.getpid() != self._supervisor:
            return
        atexit.unregister(self.close)
        if self._block is None:
            return
        block, self._block = self._block, None
        # Other threads find it closed, and must not look at the block when it is gone.
        with self.lock:
            try:
                self._end_processes()
            finally:
                block.unlink()
                with self._mapped:
                    block.close()
