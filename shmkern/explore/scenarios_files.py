# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios of pages of files: the page cache, writeback, truncation, buffers.

May import: room, scenarios.
"""
import os

from shmkern import layout
from shmkern.errors import BusError
from shmkern.explore.room import C, PAGE, scenario
from shmkern.explore.scenarios import LAST, MREMAP_FIXED, MREMAP_MAYMOVE, NEW, OLD, is_stored, migrate_frame, stores

MAP_SHARED, PROT_READ, PROT_WRITE = C["MAP_SHARED"], C["PROT_READ"], C["PROT_WRITE"]
GFP_HIGHUSER_MOVABLE = C["GFP_HIGHUSER_MOVABLE"]
FAR, NEWER = 64, 3


def cached_page(room, fs="page", dirty=False, block_size=PAGE, group=None):
    """A task that maps a file of one page, which holds OLD, and has read it, or with `dirty` has
    stored NEW there; and a migrator.  The task may be in a new group.  (user, va, file, migrator)"""
    user = room.task()
    if group:
        user.cgroup_attach(user.cgroup_create(group))
    file = room.file(user, [OLD], fs, block_size)
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd)
    if dirty:
        user.store64(va, NEW)
    else:
        user.load64(va)
    migrator = room.task()
    migrator.migrate_prep()
    return user, va, file, migrator


def unmapped_page(room, **kwargs):
    """As cached_page, but nobody maps the page any more.  (user, file, page, move, migrator), where
    `move` is a program that moves the page to the other node."""
    user, va, file, migrator = cached_page(room, **kwargs)
    page, move = room.page_of(user, va), migrate_frame(user, va)
    user.munmap(va, PAGE)
    migrator.migrate_prep()
    return user, file, page, move, migrator


def word_in_cache(user, file):
    """The word at the beginning of a file as its page in the cache has it, or as it is read now."""
    va = user.mmap(PAGE, PROT_READ, MAP_SHARED, fd=file.fd)
    return user.load64(va)


def is_kept(user, va, file, value=NEW):
    """Whether a word that was stored is in the page, with what was there beside it, and in the file
    after an fsync."""
    assert (user.load64(va), user.load64(va + 8)) == (value, OLD)
    user.fsync(file.fd)
    return (file.word(0), file.word(8)) == (value, OLD)


def is_cut_off(user, va):
    """Whether an address lies behind the end of its file."""
    try:
        user.load64(va)
    except BusError:
        return True
    return False


def field(struct, address, name):
    """A field of a struct, read without being noticed: no access of the program's."""
    return getattr(layout.struct(struct, address), name)


# ---- the page cache --------------------------------------------------------------

@scenario
def find_get_page(room):
    """A look-up without a lock, of the page that is being moved: what it finds is the file's page,
    and stays so as long as the reference stands."""
    user, file, _page, move, migrator = unmapped_page(room)

    def find(task):
        page = task.kernel("find_get_page", file.mapping, 0)
        assert page and field("Page", page, "mapping") == file.mapping
        task.kernel("lock_page", page)
        assert field("Page", page, "mapping") == file.mapping
        task.kernel("unlock_page", page)
        task.kernel("put_page", page)
    room.program(user, find)
    room.program(migrator, move)
    room.check(lambda: word_in_cache(user, file) == OLD)


@scenario
def first_read(room):
    """Two threads touch a page of a file that nobody has read yet: one frame is given back."""
    user = room.task()
    file = room.file(user, [OLD, OLD])
    va = user.mmap(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd)
    # So that the page tree has its node.
    user.load64(va + PAGE)
    room.program(user, lambda task: task.load64(va))
    room.program(room.task(shares=user), lambda task: task.load64(va))
    room.check(lambda one, two: one == two == OLD)


@scenario
def radix_delete(room):
    """A look-up without a lock against the page's leaving its file, and with it a node of the page
    tree, which is freed when RCU lets it."""
    user = room.task()
    file = room.file(user, [OLD])
    # So far behind that it has a node of its own, in a tree of two levels with a page at 0.
    for index in (0, FAR):
        page = user.kernel("alloc_page", GFP_HIGHUSER_MOVABLE)
        user.kernel("add_to_page_cache_lru", page, file.mapping, index)
        user.kernel("unlock_page", page)
        user.kernel("put_page", page)

    def cut(task):
        task.kernel("truncate_inode_pages", file.mapping, PAGE)
        task.kernel("rcu_process_callbacks")

    def find(task):
        found = task.kernel("find_get_page", file.mapping, FAR)
        if found:
            assert found == page
            task.kernel("put_page", found)
    room.program(user, cut)
    room.program(room.task(), find)


@scenario
def load_file(room):
    """A load from a page of a file that is being moved."""
    user, va, _file, migrator = cached_page(room)
    room.program(user, lambda task: task.load64(va))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda seen, _status: seen == OLD and user.load64(va) == OLD)


@scenario
def store_file(room):
    """A store to a page of a file that is being moved: to a clean one, which becomes dirty."""
    user, va, file, migrator = cached_page(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_kept(user, va, file))


@scenario
def store_fallback(room):
    """A store to a dirty page that has to be written back before it can be moved, and is while it is
    stored to."""
    user, va, file, migrator = cached_page(room, fs="fallback", dirty=True)
    room.program(user, lambda task: task.store64(va, NEWER))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_kept(user, va, file, NEWER))


@scenario
def munmap_file(room):
    """A dirty page of a file is unmapped while it is being moved: the PTE's dirt is the page's then,
    whichever page it is."""
    user, va, file, migrator = cached_page(room, dirty=True)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(migrator, migrate_frame(user, va))

    def kept():
        user.fsync(file.fd)
        return file.word(0) == NEW
    room.check(kept)


@scenario
def munmap_locked(room):
    """A locked page of a file is unmapped while it is being moved: nobody has it locked then."""
    user, va, file, migrator = cached_page(room, dirty=True)
    user.mlock(va, PAGE)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(migrator, migrate_frame(user, va))


@scenario
def munlock_mprotect(room):
    """Two tasks have a page of a file locked.  One lets go while the other changes the protection of its
    mapping, whose PTE is none for a moment: the page stays locked."""
    user, va, _file, _migrator = cached_page(room)
    other = room.forked(user)
    for task in (user, other):
        task.mlock(va, PAGE)
    room.program(user, lambda task: task.munlock(va, PAGE))
    room.program(other, lambda task: task.mprotect(va, PAGE, PROT_READ))


@scenario
def fork_file(room):
    """The address space is copied while its page of a file is being moved."""
    user, va, file, migrator = cached_page(room, dirty=True)
    room.program(user, lambda task: task.fork())
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda child, _stayed: room.load_in(child, va) == NEW and is_kept(user, va, file))


@scenario
def mremap_file(room):
    """A page of a file is moved in the address space and in memory at once."""
    user, va, file, migrator = cached_page(room, dirty=True)
    target = va - (8 << 20)
    room.program(user, lambda task: task.mremap(va, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_kept(user, target, file))


@scenario
def mremap_grow_file(room):
    """An area of a file grows where it is, while its page is being moved."""
    user = room.task()
    file = room.file(user, [OLD, OLD])
    va = user.mmap(2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd)
    user.munmap(va + PAGE, PAGE)
    user.load64(va)
    migrator = room.task()
    migrator.migrate_prep()
    room.program(user, lambda task: task.mremap(va, PAGE, 2 * PAGE, 0))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(va) == user.load64(va + PAGE) == OLD)


@scenario
def private_store(room):
    """A store through a private mapping copies the page of a file that is being moved."""
    user, file, _page, move, migrator = unmapped_page(room)
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, C["MAP_PRIVATE"], fd=file.fd)
    user.load64(va)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, move)
    room.check(lambda: is_stored(user, va) and word_in_cache(user, file) == OLD)


@scenario
def shared_anonymous(room):
    """A store to a page of shared anonymous memory that is being moved."""
    user = room.task()
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | C["MAP_ANONYMOUS"])
    for at in (va, va + 8, va + LAST):
        user.store64(at, OLD)
    migrator = room.task()
    migrator.migrate_prep()
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_stored(user, va))


@scenario
def shared_policy(room):
    """The memory policy of shared anonymous memory is replaced while another task gets a page by it."""
    user = room.task()
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | C["MAP_ANONYMOUS"])
    user.mbind(va, PAGE, C["MPOL_BIND"], [0])
    other = room.forked(user)
    room.program(user, lambda task: task.mbind(va, PAGE, C["MPOL_BIND"], [1]))
    room.program(other, lambda task: task.store64(va, NEW))
    room.check(lambda: other.load64(va) == NEW and user.get_mempolicy(va, C["MPOL_F_ADDR"]) == (C["MPOL_BIND"], [1]))


@scenario
def close(room):
    """The file is closed for the last time, and so written and forgotten, while its dirty page is being
    moved."""
    user, file, _page, move, migrator = unmapped_page(room, dirty=True)
    room.program(user, lambda task: task.close(file.fd))
    room.program(migrator, move)
    room.check(lambda: file.word(0) == NEW)


@scenario
def close_unwritable(room):
    """The file is closed for the last time while somebody else writes two of its pages, the first of which the host
    has no room for: nor can the close write that one, and so the file stays."""
    user, other = room.task(), room.task()
    file, at = room.file(user, [OLD]), 15 * PAGE
    inode = layout.struct("Inode", field("AddressSpace", file.mapping, "host"))
    # So long that two pages lie behind what a file of the host may have.
    inode.i_size = at + 2 * PAGE
    va = user.mmap(at + 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd)
    for place in (va + at, va + at + PAGE):
        user.store64(place, NEW)
    first, second = (room.page_of(user, place) for place in (va + at, va + at + PAGE))
    user.munmap(va, at + 2 * PAGE)
    for page in (first, second):
        other.kernel("get_page", page)

    def begin(task, page):
        task.kernel("lock_page", page)
        task.kernel("wait_on_page_writeback", page)
        began = field("Page", page, "mapping") == file.mapping and task.kernel("clear_page_dirty_for_io", page)
        if began:
            task.kernel("set_page_writeback", page)
        task.kernel("unlock_page", page)
        return began
    begin(other, second)
    room.begins_whole = False

    def write(task):
        began = begin(task, first)
        # Who closes the file may have waited for this one.
        task.kernel("end_page_writeback", second)
        if began:
            task.kernel("redirty_page_for_writepage", first)
            task.kernel("end_page_writeback", first)
        task.kernel("put_page", first)
        task.kernel("put_page", second)
    room.program(user, lambda task: task.close(file.fd))
    room.program(other, write)

    def is_there():
        fd = user._open(0, file.host_fd, os.O_RDONLY, C["AOPS_NONE"], 0, file.host_fd)
        return int.from_bytes(user.pread(fd, 8, at), "little") == NEW
    room.check(is_there)


@scenario
def host_fd_replaced(room):
    """A task opens a file of the host while init takes a descriptor for it that may write, and closes the one it
    had: the task does not take that one for the new one."""
    user, init = room.task(), room.task()
    file, new = room.file(user, [OLD], writable=False), room.host_file([OLD])
    inode = field("AddressSpace", file.mapping, "host")
    ids = field("Inode", inode, "i_id"), layout.kernel().next_inode_id + 1

    def forget():
        for id in ids:
            user.kernel("host_fd_install", id + C["HOST_FILES"], new.host_fd)
    forget()
    room.before_each_run(forget)

    def open_twice(task):
        task.kernel("host_fd", inode)
        replaced = field("Inode", inode, "i_id") == ids[1]
        assert task.kernel("host_fd", inode) == new.host_fd or not replaced
    room.program(user, open_twice)
    room.program(init, lambda task: task._register_host_file(0, file.host_fd, PAGE, C["AOPS_PAGE"], C["PAGE_SHIFT"],
                                                             new.host_fd, 1))


# ---- truncation --------------------------------------------------------------------

@scenario
def truncate(room):
    """The file is truncated while its page, which nobody maps, is being moved."""
    user, file, _page, move, migrator = unmapped_page(room)
    room.program(user, lambda task: task.ftruncate(file.fd, 0))
    room.program(migrator, move)
    room.check(lambda: file.length == 0)


@scenario
def truncate_mapped(room):
    """The file is truncated while its page, which is mapped and dirty, is being moved."""
    user, va, file, migrator = cached_page(room, dirty=True)
    room.program(user, lambda task: task.ftruncate(file.fd, 0))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: file.length == 0 and is_cut_off(user, va))


def store_truncated(room, user, va, file, other):
    """The file is truncated while a task stores to its page: there is no page for the task in the end."""
    inode = field("AddressSpace", file.mapping, "host")
    room.program(user, lambda task: stores(task, va, fault=BusError))
    room.program(other, lambda task: task.kernel("do_truncate", inode, 0))
    room.check(lambda: file.length == 0 and is_cut_off(user, va))


@scenario
def truncate_fault(room):
    """The file is truncated while a task touches its page: what was there is gone in the end, for the
    task as well."""
    user, file, _page, _move, other = unmapped_page(room)
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd)
    store_truncated(room, user, va, file, other)


@scenario
def truncate_private(room):
    """As truncate_fault, with a private mapping: the copy that the task has just got goes as well."""
    user, file, _page, _move, other = unmapped_page(room)
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, C["MAP_PRIVATE"], fd=file.fd)
    store_truncated(room, user, va, file, other)


@scenario
def truncate_store(room):
    """As truncate_fault; the task has the page mapped, clean, and makes it dirty."""
    user, va, file, other = cached_page(room)
    store_truncated(room, user, va, file, other)


@scenario
def truncate_tail(room):
    """The file is cut in the middle of its page while the flusher writes that: what lies behind the new
    end is zero, and does not come back."""
    user, va, file, flusher = cached_page(room, fs="buffer", dirty=True, block_size=2048)
    room.program(user, lambda task: task.ftruncate(file.fd, 8))
    room.program(flusher, lambda task: task.writeback())

    def cut():
        assert (user.load64(va), user.load64(va + 8)) == (NEW, 0)
        user.fsync(file.fd)
        return (file.length, file.word(0), file.word(8)) == (8, NEW, 0)
    room.check(cut)


@scenario
def orphan(room):
    """The file is truncated while a buffer of its page is in use, and the page is being moved: it is
    taken out of the file with its buffers, and whoever comes to it later frees them."""
    user, file, page, move, migrator = unmapped_page(room, fs="buffer")
    head = field("Page", page, "private")

    def cut(task):
        task.kernel("get_bh", head)
        task.ftruncate(file.fd, 0)
        task.kernel("put_bh", head)
    room.program(user, cut)
    room.program(migrator, move)
    room.check(lambda: file.length == 0)


# ---- writeback ---------------------------------------------------------------------

@scenario
def writeback(room):
    """The flusher writes the page that is being moved: dirty or clean, the file has it in the end."""
    user, va, file, migrator = cached_page(room, dirty=True)
    room.program(user, lambda task: task.writeback())
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_kept(user, va, file))


@scenario
def writeback_store(room):
    """The flusher writes a page that its task stores to: what comes too late for it is written
    another time."""
    user, va, file, flusher = cached_page(room, dirty=True)
    room.program(user, lambda task: task.store64(va, NEWER))
    room.program(flusher, lambda task: task.writeback())
    room.check(lambda: is_kept(user, va, file, NEWER))


@scenario
def fsync(room):
    """fsync of a file whose dirty page, which nobody maps, is being moved: when it returns, the host
    has the page."""
    user, file, _page, move, migrator = unmapped_page(room, dirty=True)

    def sync(task):
        task.fsync(file.fd)
        assert file.word(0) == NEW
    room.program(user, sync)
    room.program(migrator, move)


@scenario
def fsync_writeback(room):
    """A store and an fsync while the flusher writes the page: when that returns, the host has the store."""
    user, va, file, flusher = cached_page(room, dirty=True)

    def sync(task):
        task.store64(va, NEWER)
        task.fsync(file.fd)
        assert file.word(0) == NEWER
    room.program(user, sync)
    room.program(flusher, lambda task: task.writeback())


@scenario
def fsync_read(room):
    """The first page of a file comes into the page cache while an fsync looks whether there is any."""
    user = room.task()
    file = room.file(user, [OLD])
    other = room.forked(user)
    room.program(user, lambda task: int.from_bytes(task.pread(file.fd, 8, 0), "little"))
    room.program(other, lambda task: task.fsync(file.fd))
    room.check(lambda seen, _none: seen == OLD)


# ---- buffers -----------------------------------------------------------------------

@scenario
def free_buffers(room):
    """The page's buffers are freed while it is being moved with them."""
    user, file, _page, move, migrator = unmapped_page(room, fs="buffer", block_size=2048)

    def free(task):
        page = task.kernel("find_lock_page", file.mapping, 0)
        freed = task.kernel("try_to_free_buffers", page)
        task.kernel("unlock_page", page)
        task.kernel("put_page", page)
        return freed
    room.program(user, free)
    room.program(migrator, move)
    room.check(lambda freed, _stayed: freed and word_in_cache(user, file) == OLD)


@scenario
def buffer_lock(room):
    """Somebody fills a buffer under its lock while its page is being moved: what it fills in is in
    the page in the end.  A reference to the buffer is none to the page: the page is moved."""
    user, file, page, move, migrator = unmapped_page(room, fs="buffer", block_size=2048)
    inode = field("AddressSpace", file.mapping, "host")
    head = field("Page", page, "private")
    file.fill([NEW])

    def fill(task):
        task.kernel("get_bh", head)
        task.kernel("lock_buffer", head)
        task.kernel("read_into_page", inode, field("BufferHead", head, "b_page"), 0, 2048)
        task.kernel("unlock_buffer", head)
        task.kernel("put_bh", head)
    room.program(user, fill)
    room.program(migrator, move)
    room.check(lambda _none, stayed: stayed == 0 and word_in_cache(user, file) == NEW)


@scenario
def writeback_buffers(room):
    """The flusher writes the buffers of the page that is being moved with them."""
    user, va, file, migrator = cached_page(room, fs="buffer", dirty=True)
    room.program(user, lambda task: task.writeback())
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_kept(user, va, file))


def store_written(room, change):
    """A mapped page is written back while a thread stores to it by the translation that it has, and another
    does change(task, va).  A store that has succeeded is in the file after an fsync."""
    user, va, file, flusher = cached_page(room, dirty=True)
    other = room.task(shares=user)
    other.store64(va, NEW)
    room.program(user, lambda task: change(task, va))
    room.program(other, lambda task: stores(task, va, NEWER))
    room.program(flusher, lambda task: task.writeback())

    def is_written(_none, stored, _written):
        user.fsync(file.fd)
        return file.word(0) == (NEWER if stored else NEW)
    room.check(is_written)


@scenario
def munmap_writeback(room):
    """A page is unmapped while a thread stores to it by the translation that it has, and written
    back.  A store that has succeeded is in the file after an fsync."""
    store_written(room, lambda task, va: task.munmap(va, PAGE))


@scenario
def mprotect_writeback(room):
    """As munmap_writeback; the page is made read-only.  Its PTE is none for a moment, and writeback must not
    take it for unmapped then: no CPU has been told yet."""
    store_written(room, lambda task, va: task.mprotect(va, PAGE, PROT_READ))


@scenario
def read_migrate(room):
    """A page is read, without its lock, while it is moved."""
    user, file, _page, move, migrator = unmapped_page(room)
    room.program(user, lambda task: task.pread(file.fd, 8, 0))
    room.program(migrator, move)
    room.check(lambda read, _stayed: int.from_bytes(read, "little") == OLD)


@scenario
def read_twice(room):
    """Two tasks read a page that has been used before: it is activated, once."""
    user, file, _page, _move, _migrator = unmapped_page(room)
    other = room.forked(user)
    room.program(user, lambda task: task.pread(file.fd, 8, 0))
    room.program(other, lambda task: task.pread(file.fd, 8, 0))
    room.check(lambda one, two: one == two == OLD.to_bytes(8, "little"))


@scenario
def read_extend(room):
    """A file is read while a write makes it longer."""
    user = room.task()
    file = room.file(user, [OLD])
    user.ftruncate(file.fd, 8)
    user.pread(file.fd, 8, 0)
    room.program(user, lambda task: task.pwrite(file.fd, NEW.to_bytes(8, "little"), 8))
    room.program(room.forked(user), lambda task: task.pread(file.fd, 16, 0))
    old, new = (word.to_bytes(8, "little") for word in (OLD, NEW))
    room.check(lambda _count, read: read in (old, old + new))


# ---- write, msync, private copies --------------------------------------------------

@scenario
def write_migrate(room):
    """A file is written to while its page, which is mapped, is being moved."""
    user, va, file, migrator = cached_page(room)
    room.program(user, lambda task: task.pwrite(file.fd, NEW.to_bytes(8, "little"), 0))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_kept(user, va, file))


@scenario
def msync_store(room):
    """msync while another task stores to the page: what was stored before is in the file when it returns,
    and what comes too late is written another time."""
    user, va, file, _migrator = cached_page(room, dirty=True)

    def sync(task):
        task.store64(va, NEWER)
        task.msync(va, PAGE)
        assert file.word(0) == NEWER
    room.program(user, sync)
    room.program(room.forked(user), lambda task: task.store64(va + 16, NEWER))

    def written():
        assert is_kept(user, va, file, NEWER)
        return user.load64(va + 16) == file.word(16) == NEWER
    room.check(written)


@scenario
def truncate_copy(room):
    """As truncate_private; the task has the page mapped, and so has a child that does the truncation."""
    user, file, _page, _move, _migrator = unmapped_page(room)
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, C["MAP_PRIVATE"], fd=file.fd)
    user.load64(va)
    other = room.forked(user)
    room.program(user, lambda task: stores(task, va, fault=BusError))
    room.program(other, lambda task: task.ftruncate(file.fd, 0))
    room.check(lambda: file.length == 0 and is_cut_off(user, va) and is_cut_off(other, va))


@scenario
def truncate_exit(room):
    """The file is truncated while a task that maps its dirty page exits."""
    user, va, file, _migrator = cached_page(room, dirty=True)
    other = room.forked(user)
    room.program(user, lambda task: task.exit())
    room.program(other, lambda task: task.ftruncate(file.fd, 0))
    room.check(lambda: file.length == 0 and is_cut_off(other, va))
