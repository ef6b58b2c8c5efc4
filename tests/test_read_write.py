# SPDX-License-Identifier: GPL-2.0-only
"""Promises of read and write: there is one page cache, so they and mappings always agree; a page that is
being read or written is not moved meanwhile; a write never waits for the program's memory with a page of
the file locked."""
import errno
import os
import resource

import pytest

from helpers import C, PAGE, Mapper, Puppet, counter, errno_of, flags, migration_entry, node_at, page_at, pte_of, set_pte, until_waits
from shmkern import MAP_SHARED, MPOL_F_ADDR, MPOL_F_NODE, MPOL_MF_MOVE_ALL, PROT_READ, PROT_WRITE
from shmkern.kallsyms import ksym

PAGES = Mapper.PAGES
SIZE = PAGES * PAGE
# Where a file ends, at most.
LIMIT = ((1 << 36) - 1) * PAGE


@pytest.fixture
def path(tmp_path):
    """A host file of eight pages; byte i of page n is n + i."""
    file = tmp_path / "file"
    file.write_bytes(b"".join(bytes((n + i) % 256 for i in range(PAGE)) for n in range(PAGES)))
    return file


@pytest.mark.parametrize("fs", ["page", "buffer", "fallback", "ramfs"])
def test_what_is_written_is_in_every_mapping_and_what_is_stored_is_read(machine, path, fs):
    one, other, before = Mapper(machine, str(path), fs=fs, block_size=512), Mapper(machine, str(path)), path.read_bytes()
    fd, va, its_fd = one.fd, one.va, other.fd
    assert one(lambda task: task.pread(fd, SIZE + 5, 0)) == before
    # Across a page boundary, before and after the pages have moved.
    for turn in range(2):
        data = b"across%d" % turn
        assert one(lambda task: task.pwrite(fd, data, PAGE - 3)) == 7
        assert other.load(PAGE - 3, 7) == data == one.load(PAGE - 3, 7)
        other.store(3 * PAGE, b"stored%d" % turn)
        assert one(lambda task: task.pread(fd, 7, 3 * PAGE)) == b"stored%d" % turn
        machine.init.migrate_prep()
        if fs != "ramfs":
            target = 1 - node_at(one, va)
            assert one(lambda task: task.move_pages(0, [va, va + PAGE], [target] * 2, MPOL_MF_MOVE_ALL)) == [target] * 2
        machine.audit().raise_if_broken()
    assert other(lambda task: task.pread(its_fd, 7, PAGE - 3)) == b"across1"
    one(lambda task: task.fsync(fd))
    if fs != "ramfs":
        expected = bytearray(before)
        expected[PAGE - 3:PAGE + 4], expected[3 * PAGE:3 * PAGE + 7] = b"across1", b"stored1"
        assert path.read_bytes() == expected
        assert machine.vmstat()["nr_file_dirty"] == 0


def test_what_reads_and_writes_bring_into_the_cache_is_no_major_fault(machine, path):
    one = Mapper(machine, str(path))
    fd, va, count = one.fd, one.va, counter(machine)
    one(lambda task: (task.pread(fd, 2 * PAGE, 0), task.pwrite(fd, b"x", 2 * PAGE)))
    assert count("pgpgin") == 3 and count("pgmajfault") == count("pgfault") == 0
    one(lambda task: [task.load(va + i * PAGE, 1) for i in range(5)])
    assert count("pgpgin") == count("pgfault") == 5 and count("pgmajfault") == 2


def test_a_write_behind_the_end_makes_the_file_longer_with_zeros_in_between(machine, tmp_path):
    """What was stored behind the end in the last page was never part of the file."""
    path = tmp_path / "short"
    path.write_bytes(b"0123456789")
    one = Mapper(machine, str(path))
    fd, va = one.fd, one.va
    one.store(8, b"beyond the end")
    assert one(lambda task: task.pread(fd, 100, 0)) == b"01234567be"
    assert one(lambda task: task.pwrite(fd, b"far", 2 * PAGE + 1)) == 3
    assert one(lambda task: task.fstat_size(fd)) == 2 * PAGE + 4 == os.path.getsize(path)
    expected = b"01234567be".ljust(2 * PAGE + 1, b"\0") + b"far"
    assert one(lambda task: task.pread(fd, SIZE, 0)) == expected == one.load(0, 2 * PAGE + 4)
    one(lambda task: task.msync(va, SIZE))
    assert path.read_bytes() == expected


def test_the_position_moves_and_a_forked_task_shares_it(machine, path):
    one, before = Mapper(machine, str(path)), path.read_bytes()
    fd = one.fd
    assert one(lambda task: task.read(fd, 5)) == before[:5]
    child = one.fork()
    assert child(lambda task: task.read(fd, 5)) == before[5:10]
    assert one(lambda task: (task.write(fd, b"here"), task.lseek(fd, 0, os.SEEK_CUR))) == (4, 14)
    assert one(lambda task: task.lseek(fd, -3, os.SEEK_END)) == SIZE - 3
    assert child(lambda task: (task.read(fd, 100), task.read(fd, 100))) == (before[-3:], b"")
    assert child(lambda task: (task.lseek(fd, 9), task.read(fd, 6))) == (9, before[9:10] + b"here" + before[14:15])
    for offset, whence in ((-1, os.SEEK_SET), (-SIZE - 1, os.SEEK_END), (0, 3), (LIMIT + 1, 0), ((1 << 63) - 1, os.SEEK_END)):
        assert one(lambda task: errno_of(lambda: task.lseek(fd, offset, whence))) == "EINVAL"


def test_programs_memory_is_read_into_and_written_from(machine, path):
    """Also when it is a mapping of the very page, is not there yet, or ends in the middle."""
    one, before = Mapper(machine, str(path)), path.read_bytes()
    fd, va = one.fd, one.va

    def program(task):
        memory = task.mmap(2 * PAGE)
        task.munmap(memory + PAGE, PAGE)
        end = memory + PAGE
        assert task.sys_pread(fd, memory + 5, 100, PAGE - 50) == 100
        assert task.load(memory + 5, 100) == before[PAGE - 50:PAGE + 50]
        assert task.sys_pwrite(fd, memory + 5, 100, 0) == 100
        # Nobody has touched page 4 yet, neither as memory nor as a file.
        assert task.sys_pwrite(fd, va + 4 * PAGE + 8, 16, 4 * PAGE) == 16
        assert task.load(va + 4 * PAGE, 16) == before[4 * PAGE + 8:4 * PAGE + 24]
        # As far as it goes.
        task.store(end - 30, b"z" * 30)
        assert task.sys_pwrite(fd, end - 30, 100, 6 * PAGE - 10) in (10, 30)
        assert task.sys_pread(fd, end - 10, 4000, 0) == 10
        assert errno_of(lambda: task.sys_pread(fd, end, 10, 0)) == "EFAULT"
        assert errno_of(lambda: task.sys_pwrite(fd, end, 10, 0)) == "EFAULT"
        assert errno_of(lambda: task.sys_pwrite(fd, 1 << 63, 10, 0)) == "EFAULT"
        assert task.sys_pwrite(fd, end, 0, 0) == 0 == task.sys_pread(fd, end, 10, SIZE)
    one(program)
    assert one.load(0, 100) == before[PAGE - 50:PAGE + 50]
    assert one.load(6 * PAGE - 10, 10) == b"z" * 10


def test_the_errnos_of_read_and_write(machine, path):
    def program(task):
        reader, writer = task.open(str(path), os.O_RDONLY), task.open(str(path), os.O_WRONLY)
        assert errno_of(lambda: task.pwrite(reader, b"x", 0)) == "EBADF" == errno_of(lambda: task.write(reader, b"x"))
        assert errno_of(lambda: task.pread(writer, 1, 0)) == "EBADF" == errno_of(lambda: task.read(writer, 1))
        assert errno_of(lambda: task.pread(17, 1, 0)) == "EBADF" == errno_of(lambda: task.lseek(17, 0))
        assert errno_of(lambda: task.pwrite(writer, b"x", 1 << 63)) == "EINVAL"
        assert errno_of(lambda: task.pwrite(writer, b"x", LIMIT)) == "EFBIG"
        assert task.pwrite(writer, b"", LIMIT) == 0 and task.pread(reader, 0, 0) == b""
        with pytest.raises(TypeError):
            task.pwrite(writer, "text", 0)
        # The host sets a limit to how long the file may become.
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE + 10, limits[1]))
        assert errno_of(lambda: task.pwrite(writer, b"x" * 20, SIZE)) == "EFBIG" and task.fstat_size(writer) == SIZE
        assert task.pwrite(writer, b"x" * 10, SIZE) == 10 and task.pread(reader, 20, SIZE) == b"x" * 10
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        # The nth allocation fails, of a page or a node of its tree: what was written until then is.
        written = []
        while not written or task.fail_nth(0) == 0:
            task.ftruncate(writer, 0)
            task.fail_nth(len(written) + 1)
            try:
                written.append(task.pwrite(writer, bytes(3 * PAGE), 0))
            except OSError as error:
                assert error.errno == errno.ENOMEM
                written.append(0)
            assert task.fstat_size(writer) == written[-1]
        assert written[0] == 0 and written[-1] == 3 * PAGE and any(0 < done < 3 * PAGE for done in written)
        assert task.pwrite(writer, b"x", 0) == 1
    machine.spawn(program).result(timeout=20)
    machine.audit().raise_if_broken()


def test_a_write_whose_source_leaves_lets_go_of_the_file_while_it_waits(machine, path):
    """The source is faulted in, and by the time the file's page is locked it is in the air: the page is
    unlocked before the source is waited for."""
    one, holder, before = Mapper(machine, str(path)), Puppet(machine), path.read_bytes()
    fd = one.fd
    one.load(0, 1)
    memory = one(lambda task: task.mmap(PAGE))
    one(lambda task: task.store(memory, b"source"))
    machine.init.migrate_prep()
    page, source = page_at(one, one.va), page_at(one, memory)
    target, moving = page.address, source.address
    holder(lambda task: ksym.lock_page(target))
    one.begin(lambda task: task.sys_pwrite(fd, memory, 6, 0))
    assert until_waits(one, "WAIT_PAGE_LOCK") == target

    def take_away(task):
        assert ksym.isolate_lru_page(moving) == 0
        ksym.lock_page(moving)
        ksym.try_to_unmap(moving, 1)
        ksym.unlock_page(target)
    holder(take_away)
    until_waits(one, "WAIT_PAGE_LOCK")
    while until_waits(one, "WAIT_PAGE_LOCK") != moving:
        machine.check()
    assert not page.flags & flags("PG_locked") and migration_entry(pte_of(one, memory))

    def give_back(task):
        ksym.remove_migration_ptes(moving, moving)
        ksym.unlock_page(moving), ksym.putback_lru_page(moving)
    holder(give_back)
    assert one.reply() == 6
    assert one.load(0, 8) == b"source" + before[6:8]


def test_a_page_that_is_being_read_is_not_moved(machine, path):
    """The reader sleeps in a fault on where it reads to, and has a reference."""
    one, mover, before = Mapper(machine, str(path)), Puppet(machine), path.read_bytes()
    fd, va, pid = one.fd, one.va, one.pid
    one.load(0, 1)
    memory = one(lambda task: task.mmap(PAGE))
    one(lambda task: task.store(memory, b"x"))
    machine.init.migrate_prep()
    target, moving = 1 - node_at(one, va), page_at(one, memory).address

    def take_away(task):
        assert ksym.isolate_lru_page(moving) == 0
        ksym.lock_page(moving)
        ksym.try_to_unmap(moving, 1)
    mover(take_away)
    one.begin(lambda task: task.sys_pread(fd, memory, 100, 0))
    assert until_waits(one, "WAIT_PAGE_LOCK") == moving
    assert machine.init.move_pages(pid, [va], [target]) == [-errno.EAGAIN]

    def give_back(task):
        ksym.remove_migration_ptes(moving, moving)
        ksym.unlock_page(moving), ksym.putback_lru_page(moving)
    mover(give_back)
    assert one.reply() == 100 and one(lambda task: task.load(memory, 100)) == before[:100]
    machine.init.migrate_prep()
    assert machine.init.move_pages(pid, [va], [target]) == [target]


def test_a_page_read_again_becomes_active(machine, path):
    """mark_page_accessed: noted the first time, activated the second."""
    one = Mapper(machine, str(path))
    fd = one.fd
    one.load(0, 1), machine.init.migrate_prep()
    page, both = page_at(one, one.va), flags("PG_referenced", "PG_active")
    seen = []
    for _read in range(3):
        one(lambda task: task.pread(fd, 1, 0))
        seen.append(page.flags & both)
    assert seen == [flags("PG_referenced"), flags("PG_active"), both]
    assert machine.vmstat()["nr_active_file"] == 1


def test_a_page_that_is_read_piece_by_piece_was_used_once(machine, path):
    one = Mapper(machine, str(path))
    fd = one.fd
    one.load(0, 1), machine.init.migrate_prep()
    page, both = page_at(one, one.va), flags("PG_referenced", "PG_active")
    one(lambda task: [task.read(fd, 512) for _ in range(8)])
    assert page.flags & both == flags("PG_referenced")
    # From another place, it is another use.
    one(lambda task: task.pread(fd, 512, 1024))
    assert page.flags & both == flags("PG_active")


@pytest.mark.parametrize("young", [True, False])
def test_a_mapping_that_used_a_page_leaves_word_of_it(machine, path, young):
    """zap_pte_range: the PTE knows of it, and goes.  As with read, once is noted, twice activates."""
    one = Mapper(machine, str(path))
    fd, both, seen = one.fd, flags("PG_referenced", "PG_active"), []
    for _ in range(3):
        va = one(lambda task: task.mmap(PAGE, PROT_READ, MAP_SHARED, fd=fd))
        one(lambda task: (task.load(va, 1), ksym.lru_add_drain_all()))
        page = page_at(one, va)
        if not young:
            set_pte(one, va, pte_of(one, va) & ~C["_PAGE_ACCESSED"])
        one(lambda task: task.munmap(va, PAGE))
        seen.append(page.flags & both)
    assert seen == ([flags("PG_referenced"), flags("PG_active"), both] if young else [0] * 3)
    machine.audit().raise_if_broken()


@pytest.mark.parametrize("call", ["mlock", "get_mempolicy"])
def test_who_gets_a_page_for_the_kernel_has_used_it(machine, call):
    """follow_page with FOLL_TOUCH, for get_user_pages."""
    one = Puppet(machine)
    va = one(lambda task: task.mmap(PAGE))
    one(lambda task: task.store64(va, 1))
    page = page_at(one, va)
    assert not page.flags & flags("PG_referenced")
    one(lambda task: task.mlock(va, PAGE) if call == "mlock" else task.get_mempolicy(va, MPOL_F_ADDR | MPOL_F_NODE))
    assert page.flags & flags("PG_referenced")


def test_writers_of_one_page_and_its_mappers_lose_nothing_while_it_moves(machine, path):
    """Each has words of its own, and a migrator is at work."""
    def program(task, number):
        fd = task.open(str(path))
        va = task.mmap(SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=fd)
        for turn in range(1, 300):
            offset, word = turn % PAGES * PAGE + number * 16, (number << 32 | turn).to_bytes(8, "little")
            task.pwrite(fd, word, offset)
            assert task.load(va + offset, 8) == word
            task.store(va + offset + 8, word)
            assert task.pread(fd, 16, offset) == word * 2
        return task.pread(fd, SIZE, 0)
    migrator = machine.start_migrator()
    children = [machine.spawn(program, number) for number in range(3)]
    for child in children:
        child.result(timeout=60)
    migrator.stop(30)
    last = path.read_bytes()
    for number in range(3):
        for turn in range(300 - PAGES, 300):
            offset, word = turn % PAGES * PAGE + number * 16, (number << 32 | turn).to_bytes(8, "little")
            assert last[offset:offset + 16] == word * 2


@pytest.mark.parametrize("pages, outcome", [(1, -errno.ENOMEM), (2, 6)])
def test_a_write_from_a_mapping_ends_though_its_group_has_no_room_for_both_pages(boot, path, pages, outcome):
    """Room for the file's page is made by putting out the one it is copied from, and the other way round."""
    machine = boot(memcg=True)
    one, name, before = Puppet(machine, cgroup=machine.cgroup_create("narrow", limit=pages * PAGE)), str(path), path.read_bytes()

    def write(task):
        fd = task.open(name, os.O_RDWR)
        va = task.mmap(SIZE, PROT_READ, MAP_SHARED, fd=fd)
        try:
            return task.sys_pwrite(fd, va + PAGE, 6, 0)
        except OSError as error:
            return -error.errno
        finally:
            task.fsync(fd)
    assert one(write, timeout=20) == outcome
    expected = before[PAGE:PAGE + 6] + before[6:] if outcome > 0 else before
    assert path.read_bytes() == expected
