# SPDX-License-Identifier: GPL-2.0-only
"""Promises of files that the host or somebody's work stands in the way of: on a full disk, made read-only,
with buffers that are locked or referred to.  What cannot be written or moved stays where it is, dirty
and readable, says why to who asks, and goes on when the way is free.  All with real processes."""
import ctypes
import errno
import fcntl
import os
import resource

import pytest

import shmkern
from helpers import PAGE, Mapper, Puppet, errno_of, flags, free_frames, node_at, page_at, pfn_at, until_waits
from shmkern import MS_ASYNC, layout
from shmkern.kallsyms import ksym

KINDS = ["page", "buffer", "fallback"]
PAGES = Mapper.PAGES
CLONE_NEWNS, CLONE_NEWUSER, MS_REC, MS_PRIVATE = 0x20000, 0x10000000, 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


# ---- a full disk ----------------------------------------------------------------------------

def mount_disk(directory):
    """Mounts a tmpfs of 64 KiB for this process alone; it goes with the process.  Raises OSError where
    the host does not allow that."""
    root = os.geteuid() == 0
    for rc in (_libc.unshare(CLONE_NEWNS if root else CLONE_NEWNS | CLONE_NEWUSER),
               _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
               _libc.mount(b"none", os.fsencode(directory), b"tmpfs", 0, b"size=64k")):
        if rc != 0:
            raise OSError(ctypes.get_errno(), "no tmpfs can be mounted")


class Disk:
    """A disk with a file of eight pages of holes, which fills up and gets room.  A small tmpfs; or, on
    hosts where nobody may mount one, a limit on the size of files that its writers have."""

    def __init__(self, directory):
        self.path, self.ballast = str(directory / "file"), str(directory / "ballast")
        self.directory, self.mounted = directory, False

    def attach(self, owner):
        """Mounts it for the task that is going to open the file."""
        def mount(_task):
            refused = errno_of(lambda: mount_disk(self.directory))
            with open(self.path, "wb") as file:
                file.truncate(PAGES * PAGE)
            return refused
        refused = owner(mount)
        assert refused in (None, "EPERM", "EACCES", "ENOSYS", "ENOSPC")
        self.mounted = refused is None

    def fill(self, *writers):
        """Leaves room for nothing more."""
        def write(_task):
            with open(self.ballast, "wb", buffering=0) as file:
                while errno_of(lambda: file.write(bytes(PAGE))) is None:
                    pass
        if self.mounted:
            writers[0](write)
        else:
            self._limit(writers, 0)

    def make_room(self, *writers):
        if self.mounted:
            writers[0](lambda _task: os.unlink(self.ballast))
        else:
            self._limit(writers, resource.RLIM_INFINITY)

    @staticmethod
    def _limit(writers, size):
        for writer in writers:
            writer(lambda _task: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)))

    def content(self, owner, offset, length):
        """What the host has."""
        def read(_task):
            with open(self.path, "rb") as file:
                file.seek(offset)
                return file.read(length)
        return owner(read)


@pytest.fixture
def disk(tmp_path):
    return Disk(tmp_path)


@pytest.mark.parametrize("fs", KINDS)
def test_what_a_full_disk_does_not_take_stays_dirty_until_there_is_room(machine, disk, fs):
    """AS_ENOSPC and -ENOSPC.  Meanwhile the page is read, written and moved; only a file system that has to
    write it before it can move it says -EIO (writeout, line 526)."""
    one, other = Mapper(machine, disk.path, prepare=disk.attach, fs=fs, block_size=1024), Puppet(machine)
    va, fd, pid, size = one.va, one.fd, one.pid, PAGES * PAGE
    one.store(0, b"before"), one.sync()
    disk.fill(one, other)
    one.store(3 * PAGE, b"no room"), one.store(5 * PAGE, b"nor here")
    assert one(lambda task: errno_of(lambda: task.msync(va, size))) == "ENOSPC"
    assert disk.content(one, 0, 6) == b"before" and disk.content(one, 3 * PAGE, 7) == bytes(7)
    assert page_at(one, va + 3 * PAGE).flags & flags("PG_dirty", "PG_error") == flags("PG_dirty", "PG_error")
    machine.audit().raise_if_broken()
    target = 1 - node_at(one, va + 3 * PAGE)
    other(lambda task: task.migrate_prep())
    moved = other(lambda task: task.move_pages(pid, [va + 3 * PAGE], [target], shmkern.MPOL_MF_MOVE_ALL))
    assert moved == ([-errno.EIO] if fs == "fallback" else [target])
    assert one.load(3 * PAGE, 7) == b"no room"
    one.store(3 * PAGE + 2, b" Room")
    # Somebody else's attempt is told to who syncs next, and that is all that is told.
    other(lambda task: task.writeback())
    assert machine.vmstat()["nr_file_dirty"] == 2 and machine.vmstat()["nr_writeback"] == 0
    disk.make_room(one, other)
    assert one(lambda task: errno_of(lambda: task.fsync(fd))) == "ENOSPC"
    assert disk.content(one, 3 * PAGE, 7) == b"no Room" and disk.content(one, 5 * PAGE, 8) == b"nor here"
    assert one(lambda task: errno_of(lambda: task.msync(va, size))) is None
    assert machine.vmstat()["nr_file_dirty"] == 0
    assert not page_at(one, va + 3 * PAGE).flags & flags("PG_dirty")


@pytest.mark.parametrize("fs", KINDS)
def test_a_file_made_read_only_is_an_error_of_its_own(machine, tmp_path, fs):
    """Sealed while it is mapped: from then on each write is refused.  Other files go on, and an error that
    nobody asks for stays to be told."""
    memory = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.truncate(memory, PAGES * PAGE)
    (tmp_path / "other").write_bytes(bytes(PAGES * PAGE))
    sealed = Mapper(machine, f"/proc/{os.getpid()}/fd/{memory}", fs=fs)
    va, fd, size = sealed.va, sealed.fd, PAGES * PAGE
    sealed.store(0, b"early"), sealed.sync()
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    sealed.store(0, b"later"), sealed.store(PAGE, b"page")
    machine.init.writeback()
    whole = Mapper(machine, str(tmp_path / "other"))
    whole.store(0, b"whole"), whole.sync()
    assert (tmp_path / "other").read_bytes()[:5] == b"whole"
    assert sealed(lambda task: [errno_of(lambda: task.msync(va, size)) for _ in range(2)]) == ["EIO", "EIO"]
    assert sealed(lambda task: errno_of(lambda: task.msync(va, size, MS_ASYNC))) is None
    assert os.pread(memory, 5, 0) == b"early" and sealed.load(0, 5) == b"later"
    machine.audit().raise_if_broken()
    sealed(lambda task: (task.munmap(va, size), task.close(fd)))
    # It keeps what it could not write, and tries again.
    assert machine.vmstat()["nr_file_dirty"] == 2
    machine.audit().raise_if_broken()
    os.close(memory)


# ---- buffers in use ---------------------------------------------------------------------------

def first_buffer(puppet, va):
    """The address of the first buffer of a page."""
    return page_at(puppet, va).private


def test_a_locked_buffer_is_waited_for_before_its_page_is_moved(machine, tmp_path):
    """lock_page_buffers, lines 452-459.  The page has been replaced in the page tree by then; who wants it
    waits until it has arrived."""
    (tmp_path / "file").write_bytes(b"content!" * 512 * PAGES)
    user = Mapper(machine, str(tmp_path / "file"), fs="buffer", block_size=1024)
    holder, mover, va, pid = Puppet(machine), Puppet(machine), user.va, user.pid
    user.load(0, 8), machine.init.migrate_prep()
    buffer, target = first_buffer(user, va), 1 - node_at(user, va)
    holder(lambda task: ksym.lock_buffer(buffer))
    mover.begin(lambda task: task.move_pages(pid, [va], [target]))
    assert until_waits(mover, "WAIT_BUFFER") == buffer
    user.begin(lambda task: task.load(va + 8, 8))
    until_waits(user, "WAIT_PAGE_LOCK")
    holder(lambda task: ksym.unlock_buffer(buffer))
    assert mover.reply() == [target] and user.reply() == b"content!"
    assert node_at(user, va) == target and first_buffer(user, va) == buffer
    assert layout.struct("BufferHead", buffer).b_page == page_at(user, va).address
    machine.audit().raise_if_broken()


def test_a_page_whose_dirty_buffers_are_all_busy_is_not_written_and_stays(machine, tmp_path):
    """AOP_WRITEPAGE_ACTIVATE in writeout, lines 524-531: the page is still locked, and dirty."""
    (tmp_path / "file").write_bytes(bytes(PAGES * PAGE))
    user = Mapper(machine, str(tmp_path / "file"), fs="fallback", block_size=4096)
    holder, va = Puppet(machine), user.va
    user.store(0, b"dirty"), machine.init.migrate_prep()
    buffer, target = first_buffer(user, va), 1 - node_at(user, va)
    holder(lambda task: ksym.lock_buffer(buffer))
    assert user(lambda task: task.move_pages(0, [va], [target])) == [-errno.EAGAIN]
    assert page_at(user, va).flags & flags("PG_dirty", "PG_locked") == flags("PG_dirty")
    assert machine.vmstat()["nr_file_dirty"] == 1 and (tmp_path / "file").read_bytes()[:5] == bytes(5)
    holder(lambda task: ksym.unlock_buffer(buffer))
    assert user(lambda task: task.move_pages(0, [va], [target])) == [target]
    assert user.load(0, 5) == b"dirty" == (tmp_path / "file").read_bytes()[:5]


def test_a_page_with_one_busy_buffer_is_written_but_for_that_and_stays_to_be_written(machine, tmp_path):
    """block_write_full_page redirties the page before its writeback begins, which must leave it the tag of a
    dirty page: by that the next fsync finds it."""
    (tmp_path / "file").write_bytes(bytes(PAGES * PAGE))
    user = Mapper(machine, str(tmp_path / "file"), fs="buffer", block_size=2048)
    holder, va, fd = Puppet(machine), user.va, user.fd
    user.store(0, b"busy"), user.store(2048, b"idle")
    buffer = first_buffer(user, va)
    holder(lambda task: ksym.lock_buffer(buffer))
    machine.init.writeback()
    assert [(tmp_path / "file").read_bytes()[at:at + 4] for at in (0, 2048)] == [bytes(4), b"idle"]
    assert page_at(user, va).flags & flags("PG_dirty", "PG_writeback") == flags("PG_dirty")
    holder(lambda task: ksym.unlock_buffer(buffer))
    machine.audit().raise_if_broken()
    user(lambda task: task.fsync(fd))
    assert (tmp_path / "file").read_bytes()[:4] == b"busy" and machine.vmstat()["nr_file_dirty"] == 0


@pytest.mark.parametrize("fs", ["buffer", "fallback"])
def test_an_orphan_stays_as_long_as_its_buffers_are_busy_and_is_freed_by_migration(machine, tmp_path, fs):
    """Lines 679-688: a page that truncation took out of its file while somebody had a buffer of it.  And
    fallback_migrate_page of a page whose buffers cannot be dropped, line 549."""
    (tmp_path / "file").write_bytes(b"x" * PAGES * PAGE)
    user, holder = Mapper(machine, str(tmp_path / "file"), fs=fs, block_size=512), Puppet(machine)
    va, fd, pid = user.va, user.fd, user.pid
    before = free_frames(machine)
    user.load(0, 1), machine.init.migrate_prep()
    page, pfn, buffer, target = page_at(user, va), pfn_at(user, va), first_buffer(user, va), 1 - node_at(user, va)
    holder(lambda task: ksym.get_bh(buffer))
    if fs == "fallback":
        assert holder(lambda task: task.move_pages(pid, [va], [target])) == [-errno.EAGAIN]
        assert pfn_at(user, va) == pfn and user.load(0, 1) == b"x"
    user(lambda task: task.ftruncate(fd, 0))
    assert page.mapping == 0 and page.flags & flags("PG_private") and page._count > 0
    assert machine.vmstat()["nr_file_pages"] == 0
    # Ten passes, and it is still there.
    machine.init.migrate_prep()
    assert machine.init.migrate_frames(pfn, pfn + 1, target) == (pfn + 1, 1)
    assert page.flags & flags("PG_private")
    holder(lambda task: ksym.put_bh(buffer))
    machine.init.migrate_prep()
    machine.audit().raise_if_broken()
    # One pass frees the buffers, the next finds the page freed.
    assert machine.init.migrate_frames(pfn, pfn + 1, target) == (pfn + 1, 0)
    assert page._count == 0
    user(lambda task: task.munmap(va, PAGES * PAGE))
    assert free_frames(machine) >= before
