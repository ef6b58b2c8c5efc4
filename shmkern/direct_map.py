# SPDX-License-Identifier: GPL-2.0-only
"""The block: one POSIX shared memory object, mapped at the same address by everybody.

The object lies in /dev/shm, mode 0600, as shm_open puts it there.  It is opened by path
and not through multiprocess.shared_memory: that starts a tracker process which would
remove the block of a running machine as soon as any process that attached to it ends.

Imports layout, errors and the compiled atomics' constants; knows nothing of what is in
the block behind its first page.
"""
import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import stat
import time
from pathlib import Path

import psutil

from shmkern import layout
from shmkern.errors import BootError

SHM_DIR = Path("/dev/shm")
PREFIX = "shmkern-"
BASE = layout.constants["DIRECT_MAP_BASE"]
PERCPU = layout.constants["PERCPU_BASE"]
PAGE_SIZE = layout.constants["PAGE_SIZE"]
MAGIC = layout.constants["BLOCK_MAGIC"]

_MAP_FIXED_NOREPLACE = 0x100000
_FALLOC_FL_KEEP_SIZE, _FALLOC_FL_PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
                       ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def _map_at(address, size, prot, flags, fd, what):
    """mmap at exactly `address`; BootError when something is there."""
    got = _libc.mmap(address, size, prot, flags | _MAP_FIXED_NOREPLACE, fd, 0)
    if got == address:
        return
    if got not in (None, ctypes.c_void_p(-1).value):
        _libc.munmap(got, size)
    number = ctypes.get_errno()
    raise BootError(f"{what} cannot be mapped at {address:#x}: {os.strerror(number)}" +
                    (". A process can be part of one machine at a time." if number == errno.EEXIST else ""))


# The block of this process's machine, or None.
mapped = None


class Block:
    """A block mapped in this process.  `name` is its name in /dev/shm, `size` the bytes of
    addresses it takes: more than it has, for trace rings may come to lie behind it."""

    def __init__(self, name, fd, size, prot):
        self.name = name
        self.size = size
        try:
            _map_at(BASE, size, prot, mmap.MAP_SHARED, fd, f"block {name}")
            try:
                _map_at(PERCPU, PAGE_SIZE, mmap.PROT_READ | mmap.PROT_WRITE,
                        mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, "the per-CPU page")
            except BootError:
                _libc.munmap(BASE, size)
                raise
        finally:
            os.close(fd)
        global mapped
        mapped = self

    @property
    def header(self):
        """struct block_header, live."""
        return layout.header()

    def close(self):
        """Unmaps the block.  Views on it must not be used any more."""
        global mapped
        mapped = None
        _libc.munmap(BASE, self.size)
        _libc.munmap(PERCPU, PAGE_SIZE)

    def unlink(self):
        """Removes the name; the memory goes with the last process that has it mapped."""
        (SHM_DIR / self.name).unlink(missing_ok=True)


def process_stat(pid):
    """The state letter of a process and when it started, in clock ticks since boot; ("", 0)
    when there is none.  Pid and start together tell it from a later one with its pid.  Raises OSError when the
    host does not let us look, as without descriptors: that does not mean that there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return "", 0
    fields = stat[stat.rindex(")") + 1:].split()
    return fields[0], int(fields[19])


def process_start(pid):
    """When a process started; see process_stat."""
    return process_stat(pid)[1]


def process_uid(pid):
    """Whose process it is: who may send it signals.  None when there is none."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return None
    return int(status.split("\nUid:")[1].split()[0])


def process_gone(pid, start=None):
    """Whether the process with that pid and start time (None: whichever) has ended, reaped or
    not."""
    state, began = process_stat(pid)
    return state in ("", "Z", "X") or start not in (None, began)


def kill_process(pid, start, uid=None):
    """SIGKILL to a process, if it is still the one that started then, and that user's, if one is given: anybody
    can make a file that names anybody's processes.  Says whether it was.  Raises OSError."""
    try:
        # A process held by a descriptor cannot become another one between check and kill.
        fd = os.pidfd_open(pid)
    except (OSError, OverflowError):
        return False
    try:
        if process_gone(pid, start) or uid not in (None, process_uid(pid)):
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return True
    finally:
        os.close(fd)


def create(size, metadata_size, address_size):
    """Makes and maps a new block of `size` bytes, the first `metadata_size` of them given by
    the host for good, with addresses for `address_size` bytes.  All of it reads as zeros.

    Raises BootError: no /dev/shm, or not enough room in it, or this process has a machine
    already.
    """
    try:
        room = os.statvfs(SHM_DIR)
    except OSError as error:
        raise BootError(f"{SHM_DIR} is needed for shared memory: {error.strerror}") from error
    available = room.f_bavail * room.f_frsize
    if size > available:
        raise BootError(f"the machine needs {size >> 20} MiB in {SHM_DIR}, which has "
                        f"{available >> 20} MiB left")
    if size > psutil.virtual_memory().total:
        raise BootError(f"the machine needs {size >> 20} MiB, the host has "
                        f"{psutil.virtual_memory().total >> 20} MiB of memory")
    fd, name = _new_object()
    try:
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, metadata_size)
        block = Block(name, fd, address_size, mmap.PROT_READ | mmap.PROT_WRITE)
    except OSError as error:
        os.close(fd)
        (SHM_DIR / name).unlink()
        raise BootError(f"{SHM_DIR} does not give {metadata_size >> 20} MiB: {error.strerror}") from error
    except BaseException:
        (SHM_DIR / name).unlink()
        raise
    write_header(size, metadata_size, address_size)
    return block


def write_header(size, metadata_size, address_size):
    """Makes the zeros that are mapped at BASE a block, made by this process."""
    header = layout.header()
    header.size, header.metadata_size, header.base, header.address_size = size, metadata_size, BASE, address_size
    header.layout_hash = layout.layout_hash()
    header.supervisor_pid = os.getpid()
    header.supervisor_start = process_start(os.getpid())
    header.boot_time_ns = time.time_ns()
    # Last: who finds it finds the rest.
    header.magic = MAGIC


def map_private(size):
    """Maps zeros at BASE that only this process has, for the explorer, and the per-CPU page.
    They stay until the process ends."""
    prot, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    _map_at(BASE, size, prot, flags, -1, "the explorer's block")
    _map_at(PERCPU, PAGE_SIZE, prot, flags, -1, "the per-CPU page")


def _new_object():
    """A new, empty shared memory object: its descriptor and its name."""
    for number in range(1 << 20):
        name = f"{PREFIX}{os.getpid()}-{number}"
        try:
            return os.open(SHM_DIR / name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), name
        except FileExistsError:
            continue
        except OSError as error:
            raise BootError(f"no shared memory object can be made in {SHM_DIR}: {error.strerror}") from error
    raise BootError(f"{SHM_DIR} is full of blocks named {PREFIX}{os.getpid()}-*")


def open_block(name, flags=os.O_RDONLY):
    """A descriptor of a plain file in /dev/shm; OSError when it is none.  Anybody can make files
    there: at a FIFO an open would wait, and a link may lead anywhere."""
    fd = os.open(SHM_DIR / name, flags | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a plain file", name)
    return fd


def read_header(name):
    """A copy of a block's header as a numpy record, without mapping the block; None when
    there is no such block or it is none of ours (whatever its layout)."""
    try:
        fd = open_block(name)
    except OSError:
        return None
    try:
        return header_of(fd)
    finally:
        os.close(fd)


def header_of(fd):
    """read_header of an open block."""
    data = os.pread(fd, layout.sizeof("block_header"), 0)
    if len(data) < layout.sizeof("block_header"):
        return None
    record = layout.np.frombuffer(data, layout.dtypes["block_header"])[0]
    return record if record["magic"] == MAGIC else None


def attach(name, writable=False):
    """Maps an existing block, made by whatever process.

    Raises BootError when there is none of that name, when it is not a machine's, when it was
    made by a build with other structs, or when this process has a machine already; and
    PermissionError when it is somebody else's.
    """
    if not name or "/" in name or not os.path.lexists(SHM_DIR / name):
        raise BootError(f"there is no machine {name!r}; `shmkern ls` shows those there are")
    try:
        fd = open_block(name, os.O_RDWR if writable else os.O_RDONLY)
    except PermissionError:
        raise
    except OSError:
        raise BootError(f"{name} is not a machine") from None
    try:
        record = header_of(fd)
        if record is None:
            raise BootError(f"{name} is not a machine")
        if record["layout_hash"] != layout.layout_hash() or record["base"] != BASE:
            raise BootError(f"{name} was made by another build of shmkern; its structs differ from this one's")
        size = os.fstat(fd).st_size
        if not record["size"] <= size <= record["address_size"]:
            raise BootError(f"{name} is damaged: it says it has {record['size']} bytes and has {size}")
    except BaseException:
        os.close(fd)
        raise
    return Block(name, fd, int(record["address_size"]), mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0))


@contextlib.contextmanager
def locked(block, wait=True):
    """Within its `with` block no other process is within one for the same block of memory; one that is killed
    there is out of it.  For what several words say together.  Raises BlockingIOError when another is there and
    this one is not to wait.  A block that has lost its name is nobody's to lock."""
    try:
        fd = open_block(block.name)
    except FileNotFoundError:
        yield
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)


def reserve(block, offset, length):
    """Has the host give memory for `length` bytes of a block's addresses from `offset` on, for
    good.  Raises BootError when it does not."""
    try:
        with (SHM_DIR / block.name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), offset, length)
    except OSError as error:
        raise BootError(f"{SHM_DIR} does not give {length >> 20} MiB: {error.strerror}") from error


def give_back(block, offset, length):
    """Gives memory of reserve() back.  Who touches it all the same gets new memory, zeroed.  Does
    nothing when the block has lost its name: then its memory goes with those who have it mapped."""
    try:
        file = (SHM_DIR / block.name).open("r+b")
    except FileNotFoundError:
        return
    with file:
        if _libc.fallocate(file.fileno(), _FALLOC_FL_KEEP_SIZE | _FALLOC_FL_PUNCH_HOLE, offset, length):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), block.name)


def blocks():
    """The names of all machines' blocks on this host that we may read, sorted."""
    return sorted(path.name for path in SHM_DIR.glob(f"{PREFIX}*") if read_header(path.name) is not None)


def has_ended():
    """Whether the machine that is mapped here has stopped, or lost its supervisor, or its name."""
    header = mapped.header
    return header.panic != 0 or process_gone(header.supervisor_pid, header.supervisor_start) or \
        not (SHM_DIR / mapped.name).exists()


def supervisor_alive(record):
    """Whether the process that made a block (its header given) still runs."""
    return not process_gone(int(record["supervisor_pid"]), int(record["supervisor_start"]))
