# SPDX-License-Identifier: GPL-2.0-only
"""Promises of files: what a program stores through a shared mapping is in the file, what it stores
through a private one is its own; every process finds the same page, also while it moves; a file
becomes shorter and longer under its mappings; what is synced is on the host's disk."""
import errno
import fcntl
import gc
import os
import resource
import signal

import pytest

import shmkern
from helpers import (PAGE, Mapper, Puppet, Stop, counter, errno_of, flags, migration_entry, mm_of, node_at, page_at, pfn_at,
                     pte_of, set_pte, stop, until_waits, vmas)
from shmkern import (MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, MREMAP_MAYMOVE, MS_SYNC, PROT_READ, PROT_WRITE, layout, vmstat,
                     worker)
from shmkern.kallsyms import ksym

C = layout.constants
RW = PROT_READ | PROT_WRITE
MOVE_ALL = shmkern.MPOL_MF_MOVE_ALL
KINDS = ["page", "buffer", "fallback"]
PAGES = Mapper.PAGES


@pytest.fixture
def path(tmp_path):
    """A host file of eight pages; byte i of page n is n + i."""
    file = tmp_path / "file"
    file.write_bytes(b"".join(bytes((n + i) % 256 for i in range(PAGE)) for n in range(PAGES)))
    return str(file)


def on_disk(path, offset, length):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(length)


# ---- sharing -------------------------------------------------------------------------

@pytest.mark.parametrize("fs", KINDS)
def test_a_shared_store_is_in_the_file_and_in_every_mapping(machine, path, fs):
    one, other = Mapper(machine, path, fs=fs, block_size=1024), Mapper(machine, path)
    assert one.load(PAGE + 5, 3) == bytes([6, 7, 8])
    one.store(PAGE - 2, b"across")
    assert other.load(PAGE - 2, 6) == b"across"
    assert pfn_at(one, one.va) == pfn_at(other, other.va)
    assert on_disk(path, PAGE - 2, 6) != b"across"
    other.sync()
    assert on_disk(path, PAGE - 2, 6) == b"across"
    assert machine.vmstat()["nr_file_dirty"] == 0


def test_what_a_process_keeps_of_host_files_is_counted(machine, tmp_path):
    """So that a soak takes none of it for a leak: not what a fork inherits, nor what takes another's place."""
    def others():
        """Descriptors that the task's process has besides, and how many host files it keeps."""
        gc.collect()        # what pytest has left behind may have some, and lose them at any time
        pid = os.getpid()
        slot = next(slot for slot in vmstat.tasks() if slot["os_pid"] == pid)
        return len(os.listdir("/proc/self/fd")) - int(slot["nr_host_files"]), int(slot["nr_host_files"])

    def program(task):
        for number in range(3):
            task.close(task.open(tmp_path / f"{number}", os.O_RDWR | os.O_CREAT))
        child = task.fork(lambda child: others()).result()
        before = others()
        for number in range(3, 300):
            task.close(task.open(tmp_path / f"{number}", os.O_RDWR | os.O_CREAT))
        return before, child, others()
    before, child, after = machine.spawn(program).result(timeout=30)
    assert before[1] == child[1] == 3 and after == (before[0], 256)


def test_a_private_store_is_nobody_elses(machine, path):
    """Private COW: do_fault for a page that is not mapped yet, do_wp_page for one that is."""
    shared, private = Mapper(machine, path), Mapper(machine, path, MAP_PRIVATE)
    private.load(0, 1)
    private.store(0, b"mine"), private.store(PAGE, b"mine")
    shared.store(4, b"theirs")
    assert shared.load(0, 4) == bytes(range(4)) and private.load(0, 10) == b"mine" + bytes(range(4, 10))
    # What it has not written yet it still shares.
    shared.store(2 * PAGE, b"all")
    assert private.load(2 * PAGE, 3) == b"all"
    assert (mm_of(private).anon_rss, mm_of(private).file_rss) == (2, 1)
    shared.sync()
    assert on_disk(path, 0, 4) == bytes(range(4))


def test_the_last_close_writes_back_and_the_next_open_reads_the_host(machine, path):
    one = Mapper(machine, path)
    one.store(0, b"closed")
    one.exit()
    assert on_disk(path, 0, 6) == b"closed"
    assert machine.vmstat()["nr_file_pages"] == 0
    with open(path, "r+b") as file:
        file.write(b"edited")
    assert Mapper(machine, path).load(0, 6) == b"edited"


def test_shared_anonymous_memory_is_shared_over_fork(machine):
    parent = Puppet(machine)
    va = parent(lambda task: task.mmap(2 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS))
    parent(lambda task: task.store(va, b"parent"))
    child = parent.fork()
    assert child(lambda task: task.load(va, 6)) == b"parent"
    child(lambda task: task.store(va + PAGE, b"child"))
    assert parent(lambda task: task.load(va + PAGE, 5)) == b"child"
    assert parent(lambda task: task.move_pages(0, [va, va + PAGE], [1, 1], MOVE_ALL)) == [1, 1]
    assert child(lambda task: task.load(va, 6)) == b"parent"
    machine.audit().raise_if_broken()
    parent.exit(), child.exit()
    assert machine.vmstat()["nr_file_pages"] == 0


def test_a_fork_shares_the_files_and_copies_what_was_private(machine, path):
    parent = Mapper(machine, path, MAP_PRIVATE)
    va, fd = parent.va, parent.fd
    parent.store(0, b"private")
    child = parent.fork()
    child(lambda task: task.store(va, b"changed"))
    assert parent.load(0, 7) == b"private"
    assert child(lambda task: task.load(va + PAGE, 1)) == b"\1"
    parent(lambda task: task.close(fd))
    assert child(lambda task: task.fstat_size(fd)) == PAGES * PAGE
    thread = child.clone()
    child(lambda task: task.close(fd))
    assert thread(lambda task: errno_of(lambda: task.fstat_size(fd))) == "EBADF"
    machine.audit().raise_if_broken()


def test_the_flusher_writes_as_many_pages_as_it_is_asked_for_and_goes_on_there(machine, path):
    one = Mapper(machine, path)
    for number in range(5):
        one.store(number * PAGE, b"dirty")
    assert [machine.init.writeback(2) for _round in range(4)] == [2, 2, 1, 0]
    one.store(PAGE, b"dirty again")
    assert [machine.init.writeback(count) for count in (0, 2**64 - 1)] == [0, 1]


def test_a_file_that_is_gone_from_the_host_goes_on(machine, path):
    """Every process reaches it through init: also one that starts afterwards."""
    one = Mapper(machine, path)
    va, pid = one.va, one.pid
    os.unlink(path)
    one.store(3 * PAGE, b"nameless")
    assert machine.init.writeback() == 1
    one(lambda task: task.munmap(va, PAGE))
    child = one.fork()
    assert child(lambda task: task.load(va + 3 * PAGE, 8)) == b"nameless"
    assert child(lambda task: task.load(va + 5 * PAGE, 1)) == b"\5"
    assert machine.init.move_pages(pid, [va + 3 * PAGE], [1], MOVE_ALL) == [1]


# ---- moving --------------------------------------------------------------------------

@pytest.mark.parametrize("fs", KINDS)
def test_a_page_of_a_file_moves_with_its_mappings_its_dirt_and_its_tag(machine, path, fs):
    """migrate_page_move_mapping and migrate_page_copy, lines 262-394; for fallback after it was
    written back, lines 491-554."""
    one, other = Mapper(machine, path, fs=fs), Mapper(machine, path)
    one.store(0, b"dirty"), other.load(0, 5), other.load(PAGE, 1)
    machine.init.migrate_prep()
    before = page_at(one, one.va)
    assert before.flags & flags("PG_dirty")
    target = 1 - node_at(one, one.va)
    va, pid = one.va, one.pid
    assert machine.init.move_pages(pid, [va], [target], MOVE_ALL) == [target]
    assert before._count == 0 and before.mapping == 0
    assert one.load(0, 5) == b"dirty" == other.load(0, 5)
    assert pfn_at(one, one.va) == pfn_at(other, other.va)
    page = page_at(one, one.va)
    assert bool(page.flags & flags("PG_dirty")) == (fs != "fallback")
    assert (on_disk(path, 0, 5) == b"dirty") == (fs == "fallback")
    machine.audit().raise_if_broken()
    one.sync()
    assert on_disk(path, 0, 5) == b"dirty"


def test_a_store_after_a_move_is_written_back_too(machine, path):
    """The PTE that takes the entry's place may only be writable if the page is dirty."""
    one = Mapper(machine, path, fs="fallback")
    va = one.va
    for turn in range(4):
        one.store(0, b"turn%d" % turn)
        assert one(lambda task: task.move_pages(0, [va], [turn % 2])) == [turn % 2]
        one.store(0, b"TURN%d" % turn)
        machine.audit().raise_if_broken()
        one.sync()
        assert on_disk(path, 0, 5) == b"TURN%d" % turn


def test_cached_pages_that_nobody_maps_are_moved(machine, path):
    one = Mapper(machine, path)
    va = one.va
    one.load(0, PAGES * PAGE)
    one(lambda task: task.munmap(va, PAGES * PAGE))
    machine.init.migrate_prep()
    frames = layout.kernel().frames_per_node
    cached = {node: machine.zoneinfo()[node]["nr_file_pages"] for node in (0, 1)}
    assert sum(cached.values()) == PAGES
    for node in (0, 1):
        machine.init.migrate_prep()
        assert machine.init.migrate_frames(node * frames, (node + 1) * frames, 1 - node)[1] == 0
    assert machine.zoneinfo()[0]["nr_file_pages"] == PAGES
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("fs, clean, dirty", [("ramfs", 1, -errno.EINVAL), ("fixed", -errno.EIO, -errno.EIO)])
def test_what_cannot_be_moved_says_why_and_stays(machine, path, fs, clean, dirty):
    """Lines 506-508: a mapping without writepage; lines 400-405: fail_migrate_page."""
    one = Mapper(machine, path, fs=fs)
    va = one.va
    one.load(0, 1), one.store(PAGE, b"dirty")
    one(lambda task: task.migrate_prep())
    target = 1 - node_at(one, va)
    assert node_at(one, va + PAGE) != target
    found = one(lambda task: task.move_pages(0, [va, va + PAGE], [target] * 2))
    assert found == [target if clean == 1 else clean, dirty]
    assert one.load(PAGE, 5) == b"dirty"
    machine.audit().raise_if_broken()


def test_a_mapped_page_under_way_is_waited_for_by_every_kind_of_look(machine, path):
    """A fault that meets the migration entry, and one that looks the page up in the cache, both
    wait for its lock."""
    one, other = Mapper(machine, path), Mapper(machine, path)
    one.store(0, b"x"), machine.init.migrate_prep()
    mover, old = Puppet(machine), page_at(one, one.va).address
    assert mover(lambda task: ksym.isolate_lru_page(old)) == 0
    mover(lambda task: ksym.lock_page(old))
    mover(lambda task: ksym.try_to_unmap(old, 1))
    assert migration_entry(pte_of(one, one.va))[0] == "write"
    va, its = one.va, other.va
    one.begin(lambda task: task.load(va, 1))
    other.begin(lambda task: task.load(its, 1))
    assert until_waits(one, "WAIT_PAGE_LOCK") == until_waits(other, "WAIT_PAGE_LOCK") == old

    def land(task):
        new = ksym.alloc_pages_node(1, C["GFP_HIGHUSER_MOVABLE"], 0)
        # Two tasks wait with a reference each.
        busy = ksym.move_to_new_page(new, old)
        ksym.remove_migration_ptes(old, old)
        ksym.unlock_page(old), ksym.putback_lru_page(old), ksym.putback_lru_page(new)
        return busy
    assert mover(land) == -errno.EAGAIN
    assert one.reply() == b"x" == other.reply()


def test_what_a_page_table_knew_of_a_pages_use_outlives_it(machine, path):
    """zap_pte_range: mark_page_accessed, for the page stays in the cache; a second use makes it active."""
    one = Mapper(machine, path)
    used, idle = one.va, one.va + PAGE
    one.load(0, 2 * PAGE), machine.init.migrate_prep()
    set_pte(one, idle, pte_of(one, idle) & ~C["_PAGE_ACCESSED"])
    rows = page_at(one, used), page_at(one, idle)
    noted = flags("PG_referenced", "PG_active")
    assert [row.flags & noted for row in rows] == [0, 0]
    one(lambda task: task.munmap(used, 2 * PAGE))
    assert [row.flags & noted for row in rows] == [flags("PG_referenced"), 0]
    fd = one.fd

    def use(task):
        va = task.mmap(PAGE, RW, MAP_SHARED, fd=fd)
        task.load(va, 1)
        task.munmap(va, PAGE)
    one(use)
    # Activated, it has to be noted twice again to be kept.
    assert [row.flags & noted for row in rows] == [flags("PG_active"), 0]
    machine.audit().raise_if_broken()


# ---- shorter and longer ----------------------------------------------------------------

@pytest.mark.parametrize("fs", KINDS)
def test_truncation_takes_pages_and_private_copies_away(machine, path, fs):
    shared, private = Mapper(machine, path, fs=fs, block_size=512), Mapper(machine, path, MAP_PRIVATE)
    for n in range(PAGES):
        shared.store(n * PAGE, b"shared"), private.store(n * PAGE + 100, b"private")
    fd = shared.fd
    shared(lambda task: task.ftruncate(fd, 2 * PAGE + 50))
    for puppet in (shared, private):
        va = puppet.va
        puppet.load(2 * PAGE, 1)
        with pytest.raises(shmkern.BusError) as fault:
            puppet(lambda task: task.load(va + 3 * PAGE, 1))
        assert (fault.value.address, fault.value.access) == (va + 3 * PAGE, "load")
    assert machine.vmstat()["nr_file_pages"] == 3
    assert shared.load(2 * PAGE + 50, 50) == bytes(50)
    machine.audit().raise_if_broken()
    shared(lambda task: task.ftruncate(fd, 5 * PAGE))
    assert shared.load(3 * PAGE, 2 * PAGE) == bytes(2 * PAGE) and shared.load(2 * PAGE, 50)[:6] == b"shared"
    shared.store(4 * PAGE, b"again")
    shared(lambda task: task.fsync(fd))
    assert os.path.getsize(path) == 5 * PAGE and on_disk(path, 4 * PAGE, 5) == b"again"


def test_what_is_stored_behind_the_end_is_not_in_the_file(machine, tmp_path):
    """Not when it is written back, nor when the file grows over it."""
    path = str(tmp_path / "short")
    with open(path, "wb") as file:
        file.write(b"0123456789")
    one = Puppet(machine)
    fd = one(lambda task: task.open(path))
    va = one(lambda task: task.mmap(PAGE, RW, MAP_SHARED, fd=fd))
    one(lambda task: task.store(va + 8, b"beyond"))
    assert one(lambda task: task.load(va, 14)) == b"01234567beyond"
    one(lambda task: task.fsync(fd))
    assert on_disk(path, 0, 100) == b"01234567be"
    one(lambda task: task.ftruncate(fd, 20))
    assert one(lambda task: task.load(va, 20)) == b"01234567be" + bytes(10)
    one(lambda task: task.store(va + 12, b"in"))
    one(lambda task: task.msync(va, PAGE, MS_SYNC))
    assert on_disk(path, 0, 100) == b"01234567be\0\0in" + bytes(6)


def test_an_area_of_a_file_is_split_moved_and_merged_like_any_other(machine, path):
    one = Mapper(machine, path)
    va, fd = one.va, one.fd
    one.store(3 * PAGE, b"three")
    one(lambda task: task.mprotect(va + 2 * PAGE, 2 * PAGE, PROT_READ))
    machine.audit().raise_if_broken()
    with pytest.raises(shmkern.SegmentationFault):
        one.store(3 * PAGE, b"x")
    moved = one(lambda task: task.mremap(va + 2 * PAGE, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE))
    assert one(lambda task: task.load(moved + PAGE, 5)) == b"three"
    assert one(lambda task: task.load(moved + 3 * PAGE, 1)) == b"\5"
    machine.audit().raise_if_broken()
    back = one(lambda task: task.mmap(2 * PAGE, RW, MAP_SHARED | shmkern.MAP_FIXED, va + 2 * PAGE, fd, 2 * PAGE))
    one(lambda task: task.store(back + PAGE, b"THREE"))
    assert one(lambda task: task.load(moved + PAGE, 5)) == b"THREE"
    machine.audit().raise_if_broken()
    one(lambda task: task.munmap(va + PAGE, PAGE))
    machine.audit().raise_if_broken()


# ---- open, mmap: rights and wrong arguments ----------------------------------------------

def test_the_errnos_of_open_and_mmap(machine, path, tmp_path):
    os.mkfifo(tmp_path / "fifo")

    def program(task):
        read_only = task.open(path, os.O_RDONLY)
        assert errno_of(lambda: task.mmap(PAGE, RW, MAP_SHARED, fd=read_only)) == "EACCES"
        va = task.mmap(PAGE, PROT_READ, MAP_SHARED, fd=read_only)
        assert errno_of(lambda: task.mprotect(va, PAGE, RW)) == "EACCES"
        private = task.mmap(PAGE, RW, MAP_PRIVATE, fd=read_only)
        task.store(private, b"mine")
        assert errno_of(lambda: task.ftruncate(read_only, 0)) == "EINVAL"
        assert errno_of(lambda: task.mmap(PAGE, RW, MAP_PRIVATE, fd=read_only, offset=100)) == "EINVAL"
        assert errno_of(lambda: task.mmap(PAGE, RW, MAP_PRIVATE, fd=read_only, offset=1 << 60)) == "EOVERFLOW"
        assert errno_of(lambda: task.mmap(PAGE, RW, MAP_PRIVATE, fd=17)) == "EBADF"
        assert errno_of(lambda: task.close(17)) == "EBADF" == errno_of(lambda: task.fsync(-1))
        assert errno_of(lambda: task.open(str(tmp_path))) in ("EISDIR", "ENODEV")
        assert errno_of(lambda: task.open("/dev/null")) == "ENODEV"
        # Where an open waits for somebody who writes.
        assert errno_of(lambda: task.open(tmp_path / "fifo", os.O_RDONLY)) == "ENODEV"
        assert errno_of(lambda: task.open(path + ".not")) == "ENOENT"
        assert errno_of(lambda: task.open(path, fs="buffer")) == "EBUSY"
        with pytest.raises(ValueError):
            task.open(path, fs="ext4")
        # A second opener may write, and the first still may not.
        writer = task.open(path, os.O_RDWR)
        shared = task.mmap(PAGE, RW, MAP_SHARED, fd=writer)
        task.store(shared, b"written")
        task.fsync(writer)
        assert errno_of(lambda: task.ftruncate(read_only, 0)) == "EINVAL"
        task.open(path, os.O_RDWR | os.O_TRUNC)
        assert os.path.getsize(path) == 0
        opened = [task.open(path) for _ in range(C["NR_OPEN"] - 3)]
        assert errno_of(lambda: task.open(path)) == "EMFILE"
        return len(opened)
    machine.spawn(program).result(timeout=20)
    machine.audit().raise_if_broken()


def test_an_open_that_a_handler_interrupts_leaves_no_file_open(machine, path, tmp_path):
    """The kernel has the host's descriptor by then; closed behind its back, the number would be another file's."""
    (tmp_path / "mine").write_bytes(b"mine")

    def program(task):
        signal.signal(signal.SIGALRM, stop)
        first = task.open(path)
        task.close(first)
        task_open = task._open

        def interrupted(*args):
            opened = task_open(*args)
            signal.raise_signal(signal.SIGALRM)
            return opened
        task._open = interrupted
        with pytest.raises(Stop):
            task.open(path)
        task._open = task_open
        mine = os.open(tmp_path / "mine", os.O_RDONLY)
        assert task.open(path) == first
        return os.read(mine, 9), task.pread(first, 3, 0)
    assert machine.spawn(program).result(30) == (b"mine", bytes([0, 1, 2]))


def test_a_handler_that_raises_while_init_is_asked_closes_nothing_twice(machine, path):
    """The number may be another thread's by then."""
    def program(task):
        signal.signal(signal.SIGALRM, stop)
        close, closed = os.close, []

        def interrupted(fd):
            close(fd)
            closed.append(fd)
            if len(closed) == 1:
                signal.raise_signal(signal.SIGALRM)
        os.close = interrupted
        with pytest.raises(Stop):
            task.open(path)
        return len(closed) == len(set(closed)), task.pread(task.open(path), 3, 0)
    assert machine.spawn(program).result(30) == (True, bytes([0, 1, 2]))


def test_more_files_than_the_host_lets_init_keep_are_an_error_of_who_opens_them(machine, tmp_path):
    """Whatever is missing then: a place for the file, or for the pipe that is to be answered through."""
    init = f"/proc/{machine.init.os_pid}/fd"
    soft, hard = resource.prlimit(machine.init.os_pid, resource.RLIMIT_NOFILE)
    puppet = Puppet(machine)
    for room in (8, 9):
        # It closes those that nobody needs any more when it has nothing else to do.
        used = set(map(int, os.listdir(init)))
        free = [fd for fd in range(1024) if fd not in used]
        resource.prlimit(machine.init.os_pid, resource.RLIMIT_NOFILE, (free[room], hard))

        def program(task):
            opened = []
            try:
                for number in range(40):
                    opened.append(task.open(tmp_path / f"{room}-{number}", os.O_RDWR | os.O_CREAT))
            except OSError as error:
                return errno.errorcode[error.errno], len(opened)
            finally:
                for fd in opened:
                    task.close(fd)
        code, count = puppet(program)
        assert code == "ENFILE" and count < 40
        resource.prlimit(machine.init.os_pid, resource.RLIMIT_NOFILE, (soft, hard))
    assert puppet(lambda task: task.open(tmp_path / "one", os.O_RDWR | os.O_CREAT)) >= 0


def test_without_memory_a_fault_on_a_file_says_so_and_leaves_nothing(machine, path):
    """The nth allocation fails, until none is reached: of the page, the tree's nodes, a page table,
    the anon_vma, the buffers."""
    def program(task, fs, how):
        fd = task.open(path, fs=fs)
        for n in range(1, 40):
            va = task.mmap(PAGES * PAGE, RW, how, fd=fd)
            task.fail_nth(n)
            failed = errno_of(lambda: task.store(va + PAGE, b"x"))
            left = task.fail_nth(0)
            assert failed in (None, "ENOMEM")
            assert task.load(va + PAGE + 1, 1) == b"\2"
            task.munmap(va, PAGES * PAGE)
            task.ftruncate(fd, 0), task.ftruncate(fd, PAGES * PAGE)
            with open(path, "r+b") as file:
                file.seek(PAGE + 1)
                file.write(b"\2")
            if left:
                return n
    for fs in KINDS:
        for how in (MAP_SHARED, MAP_PRIVATE):
            assert machine.spawn(program, fs, how).result(timeout=20) > 3
            machine.audit().raise_if_broken()


# ---- the flusher and errors -----------------------------------------------------------------

def test_the_flusher_writes_what_nobody_syncs(machine, path, until):
    one = Mapper(machine, path)
    flusher = machine.start_flusher(interval=0.01)
    for turn in range(5):
        one.store(turn * PAGE, b"flush%d" % turn)
        until(lambda: on_disk(path, turn * PAGE, 6) == b"flush%d" % turn)
    assert flusher.stop(timeout=20) >= 5
    assert machine.vmstat()["nr_file_dirty"] == machine.vmstat()["nr_writeback"] == 0


@pytest.mark.parametrize("fs", KINDS)
def test_a_host_that_does_not_take_the_bytes_is_an_error_of_the_file_told_once(machine, path, fs):
    """RLIMIT_FSIZE, which the host counts as no space; the page stays dirty and readable."""
    import resource
    one = Mapper(machine, path, fs=fs)
    va, fd, size = one.va, one.fd, PAGES * PAGE

    def limit(task, limit):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    one(lambda task: limit(task, 4 * PAGE))
    one.store(0, b"fits"), one.store(6 * PAGE, b"fits not")
    assert one(lambda task: errno_of(lambda: task.msync(va, size))) == "ENOSPC"
    assert on_disk(path, 0, 4) == b"fits" and on_disk(path, 6 * PAGE, 4) != b"fits"
    assert one.load(6 * PAGE, 8) == b"fits not" and page_at(one, va + 6 * PAGE).flags & flags("PG_dirty")
    assert one(lambda task: errno_of(lambda: task.fsync(fd))) == "ENOSPC"
    machine.audit().raise_if_broken()
    one(lambda task: limit(task, resource.RLIM_INFINITY))
    # A flusher's error is told by the next fsync, and then no more.
    other = Puppet(machine)
    one.store(7 * PAGE, b"late")
    other(lambda task: limit(task, 4 * PAGE))
    other(lambda task: task.writeback())
    assert one(lambda task: errno_of(lambda: task.fsync(fd))) == "ENOSPC"
    assert one(lambda task: errno_of(lambda: task.fsync(fd))) is None
    assert on_disk(path, 6 * PAGE, 8) == b"fits not" and on_disk(path, 7 * PAGE, 4) == b"late"


def test_counters_know_of_files(machine, path):
    count, one = counter(machine), Mapper(machine, path)
    one.load(0, PAGES * PAGE)
    assert count("nr_file_pages") == count("nr_file_mapped") == PAGES and count("pgpgin") == PAGES
    one.store(0, b"x")
    assert count("nr_file_dirty") == 1
    one.sync()
    assert count("nr_file_dirty") == 0 and count("pgpgout") == 1


def test_what_lies_before_an_area_that_may_not_be_written_gets_its_protection(machine, path):
    """As what lies before a hole."""
    one = Puppet(machine)
    fd = one(lambda task: task.open(path, os.O_RDONLY))
    va = one(lambda task: task.mmap(4 * PAGE, PROT_READ))
    one(lambda task: task.mmap(PAGE, PROT_READ, MAP_SHARED | shmkern.MAP_FIXED, va + 2 * PAGE, fd))
    assert one(lambda task: errno_of(lambda: task.mprotect(va, 4 * PAGE, RW))) == "EACCES"
    one(lambda task: task.store(va + PAGE, b"x"))
    for page in (2, 3):
        with pytest.raises(shmkern.SegmentationFault):
            one(lambda task: task.store(va + page * PAGE, b"x"))
    # Where nothing may change nothing is split.
    va = one(lambda task: task.mmap(4 * PAGE, PROT_READ, MAP_SHARED, fd=fd))
    before = len(vmas(one))
    assert one(lambda task: errno_of(lambda: task.mprotect(va + PAGE, PAGE, RW))) == "EACCES"
    assert len(vmas(one)) == before


def test_a_write_that_cannot_make_the_file_longer_leaves_nothing_behind_its_end(machine, path):
    """A limit of the host's forbids it; then another task makes the file longer."""
    one, two = Puppet(machine), Puppet(machine)
    os.truncate(path, 100)
    fds = [puppet(lambda task: task.open(path)) for puppet in (one, two)]

    def limit(_task):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE // 2, resource.RLIM_INFINITY))
    one(limit)
    for offset in (200, PAGE - 8, 5 * PAGE):
        assert one(lambda task: errno_of(lambda: task.pwrite(fds[0], b"secret" * 1000, offset))) == "EFBIG"
    two(lambda task: task.ftruncate(fds[1], 8 * PAGE))
    assert two(lambda task: task.pread(fds[1], 8 * PAGE, 100)).strip(b"\0") == b""
    two(lambda task: task.fsync(fds[1]))
    assert on_disk(path, 100, 8 * PAGE).strip(b"\0") == b""


def test_a_file_that_the_host_does_not_make_shorter_stays_whole(machine):
    memory = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.truncate(memory, 3 * PAGE)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    one = Puppet(machine)
    fd = one(lambda task: task.open(f"/proc/{os.getpid()}/fd/{memory}"))
    one(lambda task: task.pwrite(fd, b"N" * 3 * PAGE, 0))
    assert one(lambda task: errno_of(lambda: task.ftruncate(fd, 100))) == "EPERM"
    assert one(lambda task: task.pread(fd, 4 * PAGE, 0)) == b"N" * 3 * PAGE
    one(lambda task: task.fsync(fd))
    assert os.pread(memory, 4 * PAGE, 0) == b"N" * 3 * PAGE
    os.close(memory)


# ---- others at work on the page ------------------------------------------------------

def test_a_dirty_page_counts_as_mapped_until_no_cpu_can_store_to_it(machine, path):
    """zap_pte: writeback asks those who map a page to stop storing to it, and nobody else, before it takes it for
    clean.  (Linux commit 1cf35d47712d.)"""
    one = Mapper(machine, path)
    one.store(0, b"dirty")
    va, page, thread = one.va, page_at(one, one.va), one.clone()
    thread(lambda task: ksym.access_begin(worker.slot(task.cpu)))
    one.begin(lambda task: task.munmap(va, PAGE))
    assert until_waits(one, "WAIT_TLB_ACK") == worker.slot(thread.cpu).address
    assert page._mapcount == 0
    thread(lambda task: ksym.access_end(worker.slot(task.cpu)))
    one.reply()
    assert page._mapcount == -1 and page.flags & flags("PG_dirty")


def test_cleaning_a_page_does_not_overlook_an_entry_that_is_just_being_changed(machine, path):
    """page_mkclean: mprotect takes a PTE away for a moment, and then it lets the program write again."""
    one, other = Mapper(machine, path), Puppet(machine)
    one.store(0, b"dirty")
    va, page, entry = one.va, page_at(one, one.va).address, pte_of(one, one.va)

    def take_away(task):
        mm = worker.slot(task.cpu).mm
        pmd = ksym.walk_to_pmd(mm, va)
        ksym.spin_lock(ksym.pte_lockptr(pmd))
        ksym.ptep_clear_flush(mm, va, ksym.pte_offset(pmd, va))
    one(take_away)
    other.begin(lambda task: (ksym.lock_page(page), ksym.page_mkclean(page), ksym.unlock_page(page))[1])
    until_waits(other, "WAIT_SPINLOCK")
    set_pte(one, va, entry)
    one(lambda task: ksym.spin_unlock(ksym.pte_lockptr(ksym.walk_to_pmd(worker.slot(task.cpu).mm, va))))
    assert other.reply() == 1 and not pte_of(one, va) & C["_PAGE_RW"]


def test_a_first_write_that_waits_for_a_page_finds_that_it_is_no_longer_the_files(machine, path):
    """wp_page_shared: truncated meanwhile, it has no operations to ask."""
    one, other = Mapper(machine, path), Puppet(machine)
    one.load(0, 1)
    va, page = one.va, page_at(one, one.va)
    address, mapping = page.address, page.mapping
    other(lambda task: (ksym.lock_page(address), ksym.get_page(address)))
    one.begin(lambda task: task.store(va, b"again"))
    until_waits(one, "WAIT_PAGE_LOCK")
    other(lambda task: (ksym.unmap_mapping_range(mapping, 0, 0, 1), ksym.truncate_complete_page(mapping, address),
                        ksym.unlock_page(address)))
    one.reply()
    assert one.load(0, 5) == b"again" and page_at(one, va).address != address
    other(lambda task: ksym.put_page(address))


def test_a_first_store_without_memory_for_buffers_maps_nothing(machine, path):
    """do_fault: writable and clean, the page would not be written back."""
    one, two = Mapper(machine, path, fs="buffer", block_size=1024), Mapper(machine, path)
    # One has a table for it, and two the page, without buffers.
    one.load(PAGE, 1), two.load(0, 1)
    va, page = one.va, page_at(two, two.va)
    address = page.address
    two(lambda task: (ksym.lock_page(address), ksym.try_to_free_buffers(address), ksym.unlock_page(address)))
    assert not page.flags & flags("PG_private")

    def store(task):
        task.fail_nth(1)
        return errno_of(lambda: task.store(va, b"x")), task.fail_nth(0)
    assert one(store) == ("ENOMEM", 0) and pte_of(one, va) == 0
    one.store(0, b"x")
    assert page.flags & flags("PG_private", "PG_dirty") == flags("PG_private", "PG_dirty")


def test_private_copies_before_the_new_end_of_a_file_stay(machine, path):
    """unmap_mapping_range: an area is not unmapped from its beginning on."""
    one, two = Mapper(machine, path, how=MAP_PRIVATE), Mapper(machine, path)
    fd, places = two.fd, (0, 3 * PAGE)
    for place in places:
        one.store(place, b"mine")
    two(lambda task: task.ftruncate(fd, 4 * PAGE))
    assert [one.load(place, 4) for place in places] == [b"mine"] * 2


# ---- the audit -----------------------------------------------------------------------

@pytest.mark.parametrize("kind, what, damage", [
    ("page_tree", "behind the end", lambda inode, _bh: inode.__setitem__("i_size", 5 * PAGE)),
    ("buffer", "is of block 9", lambda _inode, bh: bh.__setitem__("b_blocknr", 9)),
    ("buffer", "was not read", lambda _inode, bh: bh.__setitem__("b_state", bh.b_state & ~(1 << C["BH_Uptodate"]))),
])
def test_the_audit_finds_a_page_that_would_go_to_another_place_of_its_file(machine, path, kind, what, damage):
    """Or nowhere, or be taken for one that is not there yet."""
    owner = Mapper(machine, path, fs="buffer", block_size=1024)
    owner.store(5 * PAGE, b"dirty")
    page = page_at(owner, owner.va + 5 * PAGE)
    structs = layout.struct("Inode", page.mapping), layout.struct("BufferHead", page.private)
    words = [layout.view("u64", one.address, layout.sizeof(name) // 8)
             for one, name in zip(structs, ("Inode", "BufferHead"), strict=True)]
    before = [word.copy() for word in words]
    damage(*structs)
    # A ring that is not followed to its end has leaked the rest.
    [finding] = [finding for finding in machine.audit().findings if finding.kind == kind]
    assert what in finding.message and finding.page == pfn_at(owner, owner.va + 5 * PAGE)
    for word, was in zip(words, before, strict=True):
        word[:] = was
