# SPDX-License-Identifier: GPL-2.0-only
"""The processes of a machine: tasks, what they can do, and the migrator.

Every task is an OS process of its own, forked (never spawned) so that programs may be
closures over whatever their maker had.  A process that becomes a task ignores Ctrl-C,
which is its supervisor's business, and dies with its supervisor, however that ends.
"""
import contextlib
import ctypes
import errno
import multiprocess
import multiprocess.connection
import multiprocess.popen_fork
import operator
import os
import pickle
import random
import signal
import stat
import sys
import threading
import time
import types
from multiprocess.pool import ExceptionWithTraceback
from multiprocess.reduction import ForkingPickler

from shmkern import boot, bulk, direct_map, host_files, interrupts, layout, lifeline, swapoff, vmscan
from shmkern.errors import NO_TASK, HostError, TaskDied
from shmkern.numa import NumaSyscalls

C = layout.constants
_fork = multiprocess.get_context("fork")
POLL_SECONDS = 0.2


# The pipe that the result of this process goes through.
_results = None
# What __main__ had when this process was forked, and its maker has, too.
_inherited = types.SimpleNamespace()


class TaskExit(BaseException):
    """Unwinds a program that called task.exit()."""


class Task(NumaSyscalls):
    """The task that this process is: handed to a program as its first argument.

    `pid` is its pid in the machine, `cpu` its slot, `os_pid` the host's pid.
    """

    def __init__(self, cpu):
        if not lifeline.is_task:
            raise RuntimeError("a Task is what a machine hands to a program; see Machine.spawn")
        self.cpu = cpu
        self.os_pid = os.getpid()
        self.pid = slot(cpu).pid
        _objects.append(self)

    def __reduce__(self):
        raise TypeError("a task stays in its process")

    @property
    def mm_id(self):
        """The number of this task's address space; tasks that share one agree on it."""
        return layout.struct("MmStruct", slot(self.cpu).mm).id

    def fork(self, program, *args):
        """A child process with a copy of this address space, copy-on-write, that runs
        program(task, *args).  Returns a Child.  Raises OSError: EAGAIN, ENOMEM."""
        return self._make_child(False, program, args)

    def clone(self, program, *args):
        """As fork, but the child shares this address space, as a thread does."""
        return self._make_child(True, program, args)

    # ---- many words at once, without the interpreter in between ----
    # Arrays of addresses, one access each, in order; see bulk.py.

    def load64_many(self, addresses):
        """load64 of each address, as a u64 array."""
        return bulk.load64_many(addresses)

    def store64_many(self, addresses, values):
        """store64 of values[i], or of one value, at each address."""
        return bulk.store64_many(addresses, values)

    def fetch_add64_many(self, addresses, deltas):
        """fetch_add64 at each address; what the words were, as a u64 array."""
        return bulk.fetch_add64_many(addresses, deltas)

    def cmpxchg64_many(self, addresses, old, new):
        """cmpxchg64 at each address; what the words were, as a u64 array."""
        return bulk.cmpxchg64_many(addresses, old, new)

    def _swapon(self, path, pages):
        """Machine.swapon's part in init, who keeps the file open."""
        if pages >= layout.kernel().swap_maps_size:
            raise OSError(errno.ENOMEM, "four times as many slots as there are frames is the limit", path)
        created = not os.path.lexists(path)
        # No FIFO holds this up: opened for both, it does not wait for anybody.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        status = os.fstat(fd)
        try:
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISBLK(status.st_mode):
                raise OSError(errno.EINVAL, "neither a plain file nor a block device", path)
            # Before it is made longer: whoever writes to it may do so, too.
            if vmscan.swap_file_busy(status.st_dev, status.st_ino):
                raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), path)
            if stat.S_ISREG(status.st_mode):
                # With slot 0.  A hole would only show when it is written, which is too late.
                os.posix_fallocate(fd, 0, (pages + 1) * C["PAGE_SIZE"])
            area = vmscan.swapon(fd, pages, status.st_dev, status.st_ino)
            if area < 0:
                raise OSError(-area, os.strerror(-area), path)
        except BaseException:
            # As it was, for it may have taken much of the host's room.
            if created:
                os.unlink(path)
            elif stat.S_ISREG(status.st_mode) and os.fstat(fd).st_size > status.st_size:
                os.ftruncate(fd, status.st_size)
            os.close(fd)
            raise
        return area

    def _swapoff(self, area):
        """Machine.swapoff's part in init."""
        fd = int(layout.kernel().swap_info[area]["swap_file"]["i_host_fd"])
        rc = swapoff.swapoff(area)
        if rc < 0:
            raise OSError(-rc, os.strerror(-rc))
        os.close(fd)

    def _make_child(self, share_mm, program, args):
        cpu = None
        try:
            with interrupts.later():
                cpu = self._copy_process(share_mm)
                pid = slot(cpu).pid
            return start_process(cpu, program, args)
        except BaseException:
            # What a signal handler of the program's raises comes here, perhaps with the process made.
            if cpu is not None:
                self._abandon(cpu, pid)
            raise

    def open(self, path, flags=os.O_RDWR, mode=0o666, *, fs=None, block_size=None):
        """open(2) of a file of the host: O_RDONLY or O_RDWR (the default; O_WRONLY reads all the
        same), with O_CREAT, O_EXCL, O_TRUNC and mode.  Returns a descriptor for mmap, read, write,
        ftruncate, fsync, close and so on.

        fs: what sort of file it is to the machine: "page" (the default), "buffer", "fallback",
        "ramfs", "fixed"; see fs.py.  block_size: bytes of its buffers, 512 to 4096.  While it is open
        another open() must say the same, or nothing.

        Raises OSError: what the host says; ENODEV for what is no plain file; EBUSY when it is open as
        another sort; EMFILE; ENFILE when the host lets init keep no more files (RLIMIT_NOFILE); ENOMEM.
        """
        return host_files.open_file(self, path, flags, mode, fs, block_size)

    def exit(self, value=None):
        """Ends this task at once; `value` is what its result() returns."""
        raise TaskExit(value)


class NoTask(Task):
    """What a Task object is while its process is no task: has ended as one, or was forked by the program
    itself.  Nothing but what it was is told of it."""

    def __getattribute__(self, name):
        if name in ("cpu", "pid", "os_pid") or name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError(NO_TASK)


# The Task objects that this process has, or its makers had.
_objects = []


def _disown():
    """This process is no task, whatever it was: Task objects, of all makers, are none."""
    for task in _objects:
        task.__class__ = NoTask


def _forked():
    """First thing in a forked process: two processes must not be one CPU.  _become makes it a task."""
    if _objects:
        _disown()
        ctypes.memset(C["PERCPU_BASE"], 0, ctypes.sizeof(ctypes.c_void_p))


os.register_at_fork(after_in_child=_forked)


def slot(cpu):
    """struct Task of a slot, live."""
    return layout.struct("Task", layout.kernel().tasks + cpu * layout.sizeof("Task"))


# ---- making a task's process ---------------------------------------------------

class Popen(multiprocess.popen_fork.Popen):
    """Knows that its process has ended also when the program has been told instead, whose handler of SIGCHLD waits
    for all that have, or nobody has, because SIGCHLD is ignored."""

    def poll(self, flag=os.WNOHANG):
        if super().poll(flag) is None:
            try:
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                # As asyncio has it when nobody knows how.
                self.returncode = 255
        return self.returncode


class Process(_fork.Process):
    """A process that becomes a task."""
    _Popen = Popen


class Child:
    """A task, seen by whoever made it.  `pid` is its pid in the machine, `os_pid` the host's."""

    def __init__(self, cpu, pid, process, connection, watch):
        self.cpu = cpu
        self.pid = pid
        self.process = process
        self.os_pid = process.pid
        self._connection = connection
        self._watch = watch
        # Whose maker may have threads: one at a time takes what comes.
        self._lock = threading.RLock()
        self._received = bytearray()
        self._outcome = None

    def is_alive(self):
        """Whether the process still runs."""
        return self.process.is_alive()

    def kill(self):
        """SIGKILL."""
        self.process.kill()

    def close(self):
        """Closes the pipe that the result would come through."""
        with self._lock:
            self._connection.close()

    def result(self, timeout=None):
        """Waits for the program's return value, and raises what it raised, with the traceback
        it had there.  TimeoutError after `timeout` seconds, TaskDied when the process ended
        without a word, KernelBug when the machine stopped."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self._outcome is None and not self._unpack():
            if self._connection.closed and self._outcome is None:
                self._watch(True)       # The machine ended first, and says why.
                raise TaskDied(self.pid, self.process.exitcode)
            wait = POLL_SECONDS
            if deadline is not None:
                wait = min(wait, max(0, deadline - time.monotonic()))
            if self._wait(wait):
                self._receive()
                continue
            self._watch(False)
            # In this way, for not-a-number is over as well.
            if deadline is not None and not time.monotonic() < deadline:
                raise TimeoutError(f"task {self.pid} has no result after {timeout} s")
        succeeded, value = self._outcome
        if succeeded:
            return value
        # If the machine has stopped, that is what there is to tell.
        self._watch(True)
        raise value

    def _wait(self, seconds):
        """Waits so long for something to take off the pipe, or to be known without."""
        try:
            return multiprocess.connection.wait([self._connection], seconds) or not self.process.is_alive()
        except OSError:
            # Another thread has taken the rest, and closed it.
            if not self._connection.closed:
                raise
            return True

    def _receive(self):
        """Takes what has come of the outcome off the pipe; if nothing will any more, the task has died."""
        # What is off the pipe is kept, whatever a signal does then: result() may be called again.
        with self._lock, interrupts.later():
            if self._connection.closed:
                return
            # In this order: what it has sent is there when it has ended.
            ended = not self.process.is_alive()
            # Processes that the program made otherwise may hold its end of the pipe open, so look first.
            if self._connection.poll():
                data = os.read(self._connection.fileno(), 1 << 16)
                self._received += data
                # Also for one that ends in the middle.
                ended = not data
        # Another thread may have taken the rest just now.
        if ended and not self._unpack():
            self.process.join()
            self._watch(True)
            with self._lock:
                self._outcome = self._outcome or (False, TaskDied(self.pid, self.process.exitcode))
                self._connection.close()

    def _unpack(self):
        """Whether all of the outcome has come; then it is unpacked."""
        with self._lock:
            if self._outcome is not None:
                return True
            outcome = message(memoryview(self._received))
            if outcome is None:
                return False
            try:
                self._outcome = ForkingPickler.loads(outcome)
            except Exception as error:
                # It could be pickled there, but not unpickled here.
                self._outcome = False, error
            self._received = b""
            self._connection.close()
            return True


def framed(data):
    """What Connection.recv_bytes takes for the message `data`."""
    size = len(data)
    prefix = size.to_bytes(4, "big") if size <= 0x7fffffff else b"\xff" * 4 + size.to_bytes(8, "big")
    return memoryview(prefix + data)


def message(data):
    """The message in what Connection.send has written; None when it is not all there."""
    size, start = int.from_bytes(data[:4], "big", signed=True), 4
    if size == -1:
        # It does not fit four bytes.
        size, start = int.from_bytes(data[4:12], "big"), 12
    return data[start:] if len(data) >= start and len(data) == start + size else None


def _host_error(error):
    """Tells what the host said from the machine's own errnos."""
    return HostError(error.errno, f"the host gives no process for a task: {error.strerror}")


def start_process(cpu, program, args, watch=lambda at_once: None, keep=lambda child: None):
    """Forks the process for a claimed slot.  Returns its Child.  Raises HostError when the host
    gives no process.  keep(child) is called as soon as there is one, whatever a signal does then."""
    # multiprocess does that too.  What goes wrong here is not for want of a process.
    for stream in (sys.stdout, sys.stderr):
        # There is none, or it is closed.
        with contextlib.suppress(AttributeError, ValueError):
            stream.flush()
    try:
        receive, send = _fork.Pipe(duplex=False)
    except OSError as error:
        raise _host_error(error) from error
    pid = slot(cpu).pid
    try:
        with interrupts.later() as end:
            process = Process(target=_main, args=(end, cpu, pid, program, args, receive, send), name=f"task-{pid}")
            try:
                process.start()
            except OSError as error:
                receive.close()
                raise _host_error(error) from error
            # The process does so too.  If it is killed before it comes to that, this is how the
            # supervisor knows.
            boot.announce_task(cpu, pid, process.pid)
            child = Child(cpu, pid, process, receive, watch)
            keep(child)
    finally:
        send.close()
    return child


def _main(end, cpu, pid, program, args, receive, send):
    """The life of a task's process; `end` is that of the time in which its maker puts signals off."""
    global _inherited, _results
    _inherited = types.SimpleNamespace()
    vars(_inherited).update(vars(sys.modules["__main__"]))
    receive.close()
    if _results is not None:
        # The maker's.  When that is killed in the middle of its result, who reads it must see the end.
        _results.close()
    _results = send
    lifeline.start_task_process()
    os_pid = os.getpid()
    end()
    try:
        outcome = True, _run(cpu, pid, program, args)
    except SystemExit:
        # It has no result, but a status.
        raise
    except BaseException as error:
        outcome = False, ExceptionWithTraceback(error, error.__traceback__)
    if os.getpid() != os_pid:
        # The program has forked, and here comes the fork out of it as well.  It has nothing to hand over.
        os._exit(1)
    # The program is over, but perhaps not its alarms: what a handler raises would come in the middle.
    with interrupts.later():
        hand_over(send, outcome)
        send.close()


class Pickler(ForkingPickler):
    """For what goes back to this process's maker.  A class of __main__ that both have goes by its name: as a copy,
    which is what it would be, it is not the one that the maker has in its `except`, or asks isinstance() for."""

    def reducer_override(self, obj):
        if not isinstance(obj, type) or obj.__module__ != "__main__":
            return NotImplemented
        try:
            find = operator.attrgetter(obj.__qualname__)
            # The program may have put another one in its place.
            same = find(_inherited) is obj and find(sys.modules["__main__"]) is obj
        except AttributeError:
            same = False
        return obj.__qualname__ if same else NotImplemented


def hand_over(connection, outcome):
    """Sends an outcome, unless nobody is waiting for it any more."""
    with contextlib.suppress(BrokenPipeError):
        connection.send_bytes(_packed(outcome))


def _packed(outcome):
    """An outcome as bytes; or, when it cannot be sent, what was wrong with it, and where an exception was raised."""
    succeeded, value = outcome
    try:
        data = Pickler.dumps(outcome)
        if not succeeded:
            # Many an exception cannot be unpickled: its args are not those that its class takes.  Who finds that
            # out there does not know where it comes from.
            ForkingPickler.loads(data)
        return data
    except Exception as error:
        # Only its text goes along, for it may have the same flaw.
        problem = pickle.PicklingError(f"what the task {'returned' if succeeded else 'raised'} cannot be sent: "
                                       f"{type(error).__name__}: {error}")
        problem.__cause__ = error
        error.__cause__ = None if succeeded else value.exc
        return Pickler.dumps((False, ExceptionWithTraceback(problem, None)))


def _run(cpu, pid, program, args):
    """Runs a program as the task in slot `cpu`, from birth to exit."""
    # A function's is a string; a callable object's may be anything.
    name = str(getattr(program, "__name__", type(program).__name__))
    os_pid = os.getpid()
    task = Task(cpu)
    task._become(cpu, pid, os_pid, direct_map.process_start(os_pid), name)
    for maker in _objects:
        # Their methods do what this task's do.
        maker.__class__ = Task
    try:
        return program(task, *args)
    except TaskExit as stop:
        return stop.args[0]
    finally:
        if os.getpid() == os_pid:
            leave = task._exit
            # The program's threads may go on.
            _disown()
            leave()


# ---- programs of the machine's own ---------------------------------------------

def init(task, connection):
    """Does on request what its supervisor, who is no task, cannot do itself; and keeps the
    descriptors of the host files that tasks open."""
    keeper = host_files.keeper = host_files.Keeper(task)
    hand_over(connection, (True, None))
    while True:
        ready = multiprocess.connection.wait([connection, keeper], keeper.patience())
        keeper.tidy()
        if keeper in ready:
            keeper.take()
        if connection in ready and not answer(task, connection):
            return


def serve(task, connection):
    """Does on request what a task can do."""
    while answer(task, connection):
        pass


def answer(task, connection):
    """Does what the next request asks for, and replies.  False when there will be no more."""
    try:
        request = connection.recv_bytes()
    except EOFError:
        return False
    try:
        method, args, keywords = ForkingPickler.loads(request)
        reply = True, getattr(task, method)(*args, **keywords)
    except TaskExit:
        reply = False, PermissionError(1, "init does not exit")
    except Exception as error:
        reply = False, ExceptionWithTraceback(error, error.__traceback__)
    hand_over(connection, reply)
    return True


def flusher(task, connection, interval):
    """Writes dirty pages of all files back, a round every `interval` seconds, until told to stop;
    then one more round.  Returns how many pages it has written."""
    written = 0
    while not connection.poll(interval):
        written += task.writeback()
    return written + task.writeback(1 << 40)


def kswapd(task, node):
    """Frees memory of a node whenever it gets short, until it is killed."""
    vmscan.run_kswapd(node)


def migrator(task, connection, nodes, seed):
    """Moves every movable page from node to node, until told to stop: all frames of one node,
    256 pages at a time, each batch to some other node.

    Returns a dict: passes (over all nodes), batches, stayed (pages that a batch could not
    move), full (batches that found their target without frames).
    """
    rng = random.Random(seed)
    frames = layout.kernel().frames_per_node
    count = {"passes": 0, "batches": 0, "stayed": 0, "full": 0}
    while True:
        task.migrate_prep()
        for node in nodes:
            pfn, end = node * frames, (node + 1) * frames
            while pfn < end:
                if connection.poll():
                    return count
                target = rng.choice([other for other in nodes if other != node])
                pfn, stayed = task.migrate_frames(pfn, end, target)
                count["batches"] += 1
                if stayed < 0:
                    count["full"] += 1
                else:
                    count["stayed"] += stayed
        count["passes"] += 1
