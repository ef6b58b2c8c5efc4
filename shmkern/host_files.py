# SPDX-License-Identifier: GPL-2.0-only
"""How a host file becomes one of the machine's.

A task opens the file itself, with its own rights and working directory.  If the machine does
not know the file yet, it hands its descriptor to init through a socket that all processes
inherit, and init keeps it as long as the machine needs the file.  Init's number for it is in
the inode, and from there every other process opens it again (inode.py).
"""
import errno
import os
import socket
import stat
import struct

from shmkern import interrupts, layout

C = layout.constants
KINDS = {"page": C["AOPS_PAGE"], "buffer": C["AOPS_BUFFER"], "fallback": C["AOPS_FALLBACK"],
         "ramfs": C["AOPS_RAMFS"], "fixed": C["AOPS_FIXED"]}
BLOCK_SIZES = (512, 1024, 2048, 4096)
_HOST_FLAGS = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_REQUEST = struct.Struct("QQIII")
_REPLY = struct.Struct("q")
TIDY_SECONDS = 1.0

# The two ends of the socket.  Every process has both; only init reads from the second.
_door = _keeper_end = None
# In init: its Keeper.
keeper = None


def open_door():
    """The supervisor's part, before the first task."""
    global _door, _keeper_end
    _door, _keeper_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def close_door():
    """The supervisor's part, after the last.  Does nothing the second time."""
    global _door, _keeper_end
    for end in (_door, _keeper_end):
        if end is not None:
            end.close()
    _door = _keeper_end = None


class Keeper:
    """Init's side: takes descriptors, and closes those that no inode needs any more."""

    def __init__(self, task):
        self._task = task
        self._kept = set()

    def fileno(self):
        return _keeper_end.fileno()

    def patience(self):
        """How long init may sleep: for ever, unless it has something to tidy up one day."""
        return TIDY_SECONDS if self._kept else None

    def tidy(self):
        """Closes what is not needed any more."""
        if not self._kept:
            return
        used = set(self._task._host_fds(len(self._kept) + 64))
        for fd in self._kept - used:
            os.close(fd)
        self._kept &= used

    def take(self):
        """Takes one descriptor and answers."""
        data, fds, _flags, _address = socket.recv_fds(_keeper_end, _REQUEST.size, 2)
        if len(fds) < 2:
            # The host has no room in our table for both.  Who asked is told by the end of its pipe.
            for fd in fds:
                os.close(fd)
            return
        fd, reply = fds
        try:
            outcome = self.keep(fd, *_REQUEST.unpack(data))
        except OSError as error:
            os.close(fd)
            outcome = -error.errno
        try:
            os.write(reply, _REPLY.pack(outcome))
        except BrokenPipeError:
            pass        # Killed while it waited.
        os.close(reply)

    def keep(self, fd, dev, ino, kind, blkbits, writable):
        """Makes the file known to the kernel, and takes `fd` over.  Raises OSError(ENOMEM)."""
        size = os.fstat(fd).st_size
        if self._task._register_host_file(dev, ino, size, kind, blkbits, fd, writable):
            self._kept.add(fd)
        else:
            os.close(fd)
        return 0


def _kind_of(fs, block_size):
    """(kind, log2 of the block size) that open() asks for; kind 0 when it asks for none."""
    if fs is None and block_size is not None:
        raise ValueError("block_size goes with fs")
    if fs is not None and fs not in KINDS:
        raise ValueError(f"fs is {fs!r}; it must be one of {', '.join(KINDS)}")
    if block_size is not None and block_size not in BLOCK_SIZES:
        raise ValueError(f"block_size is {block_size!r}; it must be one of {', '.join(map(str, BLOCK_SIZES))}")
    return KINDS.get(fs, 0), (block_size or C["PAGE_SIZE"]).bit_length() - 1


def _hand_to_init(fd, request):
    """Lets init keep a descriptor of the file; returns when it does.  Raises OSError."""
    if keeper is not None:
        keeper.keep(os.dup(fd), *_REQUEST.unpack(request))
        return
    answer, reply = os.pipe()
    try:
        try:
            socket.send_fds(_door, [request], [fd, reply])
        finally:
            os.close(reply)
        data = os.read(answer, _REPLY.size)
        outcome, = _REPLY.unpack(data) if data else (-errno.ENFILE,)
    finally:
        os.close(answer)
    if outcome < 0:
        raise OSError(-outcome, os.strerror(-outcome))


def open_file(task, path, flags, mode, fs, block_size):
    """worker.Task.open."""
    kind, blkbits = _kind_of(fs, block_size)
    writable = flags & os.O_ACCMODE != os.O_RDONLY
    # Pages are read before they are written, so O_WRONLY is not enough.  At a FIFO an open would wait.
    fd = os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_NONBLOCK | flags & _HOST_FLAGS, mode)
    opened = None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(19, "not a plain file", os.fspath(path))
        request = _REQUEST.pack(status.st_dev, status.st_ino, kind or KINDS["page"], blkbits, writable)
        while opened is None:
            try:
                # What a handler raises must not come before we know.
                with interrupts.later():
                    opened = task._open(status.st_dev, status.st_ino, flags & os.O_ACCMODE, kind, blkbits, fd)
            except OSError as error:
                if error.errno != 6:
                    raise
            # Not known, or not for writing; or known and forgotten again before we came.
            if opened is None:
                _hand_to_init(fd, request)
        if writable and flags & os.O_TRUNC:
            task.ftruncate(opened, 0)
    except BaseException:
        if opened is None:
            os.close(fd)
        else:
            # The host's descriptor is the kernel's by now.
            task.close(opened)
        raise
    return opened
