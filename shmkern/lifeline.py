# SPDX-License-Identifier: GPL-2.0-only
"""A process's ties to its machine: it dies with the supervisor, and a frame that the host
cannot give becomes a report.

The supervisor holds the write end of a pipe.  Every task has an open file of its own on
the read end, which sends it SIGKILL when the write end closes: by the supervisor's will or
by its death.  (PR_SET_PDEATHSIG would also kill a forked task when its parent exits.)
"""
import os
import signal

from shmkern.errors import BootError

_read_fd = _write_fd = -1
# Whether this process was made to be a task.
is_task = False


def open_lifeline():
    """The supervisor's part, before the first task.  Also ties the supervisor to the block,
    for it touches frames as well when it boots and audits."""
    global _read_fd, _write_fd
    _read_fd, _write_fd = os.pipe()
    guard_frames()
    join_fences()


def close_lifeline():
    """Kills every task that is left.  Does nothing the second time."""
    global _read_fd, _write_fd
    for fd in (_read_fd, _write_fd):
        if fd >= 0:
            os.close(fd)
    _read_fd = _write_fd = -1


def _forked():
    """First thing in a forked process, task or not: as long as it had the write end, its supervisor's death
    would close nothing."""
    global _write_fd
    if _write_fd >= 0:
        os.close(_write_fd)
        _write_fd = -1


os.register_at_fork(after_in_child=_forked)


def guard_frames():
    """Makes SIGBUS in the block a report: the host had promised memory it does not have."""
    if install_sigbus_handler() != 0:
        raise OSError("the SIGBUS handler cannot be installed")


def join_fences():
    """Lets others have this process pass a fence (smp_mb_everywhere), which who waits for a lock
    of ours relies on.  A fork does not inherit that."""
    rc = register_membarrier()
    if rc != 0:
        raise BootError(f"the host has no membarrier(2), as Linux has since 4.16: {os.strerror(-rc)}")


def start_task_process():
    """A task's part, first thing in its process: no Ctrl-C, no signal that its maker takes for its own, and ties to
    the supervisor."""
    global is_task
    is_task = True
    join_fences()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The maker's event loop reads what comes through it.
    signal.set_wakeup_fd(-1)
    # Opened anew: who gets the signal is kept in the open file, not in the descriptor.
    fd = os.open(f"/proc/self/fd/{_read_fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    rc = kill_me_when_pipe_closes(fd)
    if rc != 0:
        raise OSError(-rc, os.strerror(-rc))
    try:
        os.read(fd, 1)
    except BlockingIOError:
        return
    # It was closed before we asked to be told.
    os._exit(1)
