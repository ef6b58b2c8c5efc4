# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios.  Each is two or three tasks that meet at one page, small enough that
all their interleavings can be tried.

May import: room.
"""
import errno

from shmkern import layout, worker
from shmkern.errors import SegmentationFault
from shmkern.explore.room import C, FRAMES_PER_NODE, PAGE, scenario
from shmkern.trace import end_breaks

PROT_READ, MREMAP_MAYMOVE, MREMAP_FIXED = C["PROT_READ"], C["MREMAP_MAYMOVE"], C["MREMAP_FIXED"]
OLD, NEW = 0x0123456789abcdef, 0xfedcba9876543210
LAST = PAGE - 8


def one_page(room, value=OLD, group=None):
    """A task with one page of its own that begins with a word, twice, and ends with it, and a migrator.  In a
    new control group of that name.  (user, va, migrator)"""
    user = room.task()
    if group:
        user.cgroup_attach(user.cgroup_create(group))
    va = user.mmap(PAGE)
    for at in (va, va + 8, va + LAST):
        user.store64(at, value)
    migrator = room.task()
    migrator.migrate_prep()
    return user, va, migrator


def is_stored(task, va, value=NEW):
    """Whether a word that was stored is in its page, with what was there beside it and at the page's end."""
    return (task.load64(va), task.load64(va + 8), task.load64(va + LAST)) == (value, OLD, OLD)


def stores(task, va, value=NEW, fault=SegmentationFault):
    """Stores a word.  Whether it could: the task may meet that fault instead."""
    try:
        task.store64(va, value)
    except fault:
        return False
    return True


def other_node(user, va):
    """The node that the page at `va` is not on."""
    return 1 - user.frame_of(va) // FRAMES_PER_NODE


def migrate(user, va, flags=C["MPOL_MF_MOVE_ALL"]):
    """A program that moves the page at `va` of another task to the other node, by its address.
    Returns its status."""
    pid, node = user.pid, other_node(user, va)
    return lambda task: task.move_pages(pid, [va], [node], flags)[0]


def migrate_frame(user, va):
    """A program that moves the frame at `va`, as taking memory offline does: it knows no address
    space.  Returns how many pages stayed."""
    frame, node = user.frame_of(va), other_node(user, va)
    return lambda task: task.migrate_frames(frame, frame + 1, node)[1]


@scenario
def fault(room):
    """A first touch of a page beside one that is being moved."""
    user, va, migrator = one_page(room)
    new = user.mmap(PAGE)
    room.program(user, lambda task: task.store64(new, NEW))
    room.program(migrator, migrate(user, va))
    room.check(lambda: user.load64(va) == OLD and user.load64(new) == NEW)


@scenario
def load(room):
    """A load from the page that is being moved."""
    user, va, migrator = one_page(room)
    room.program(user, lambda task: task.load64(va))
    room.program(migrator, migrate(user, va))
    room.check(lambda seen, _status: seen == OLD and user.load64(va) == OLD)


@scenario
def store(room):
    """A store to the page that is being moved, through a translation that the TLB has: it lands
    in the old frame before it is copied, or in the new one, and is never lost."""
    user, va, migrator = one_page(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate(user, va))
    room.check(lambda: is_stored(user, va))


@scenario
def store_clean(room):
    """As store, by a task whose TLB has the page as clean: the MMU sets DIRTY in the PTE while
    it is being taken away."""
    user, va, migrator = one_page(room)
    room.clean(user, va)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate(user, va))
    room.check(lambda: room.is_dirty(user, va) and is_stored(user, va))


@scenario
def store_frame(room):
    """As store, with a migrator that finds the page by its frame and takes no mmap_sem."""
    user, va, migrator = one_page(room)

    def program(task):
        task.store64(va, NEW)
        assert task.load64(va) == NEW
    room.program(user, program)
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_stored(user, va))


@scenario
def two_faults(room):
    """Two tasks of one address space touch the page that is being moved."""
    user, va, migrator = one_page(room)
    other = room.task(shares=user)
    room.program(user, lambda task: task.load64(va))
    room.program(other, lambda task: task.load64(va))
    room.program(migrator, migrate(user, va))
    room.check(lambda one, two, _status: one == two == OLD and user.load64(va) == OLD)


@scenario
def first_touch(room):
    """Two tasks of one address space touch the same page for the first time: one frame is given
    back."""
    user = room.task()
    va = user.mmap(PAGE)
    other = room.task(shares=user)
    room.program(user, lambda task: task.store64(va, OLD))
    room.program(other, lambda task: task.store64(va + 8, NEW))
    room.check(lambda: (user.load64(va), user.load64(va + 8)) == (OLD, NEW))


@scenario
def shared_store(room):
    """Two tasks of one address space store to the page that is being moved: two TLBs to flush."""
    user, va, migrator = one_page(room)
    other = room.task(shares=user)
    other.load64(va)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, lambda task: task.fetch_add64(va + 16, 1))
    room.program(migrator, migrate(user, va))
    room.check(lambda: is_stored(user, va) and user.load64(va + 16) == 1)


@scenario
def shared_task(room):
    """One of two tasks that share an address space moves a page of theirs while the other uses
    it."""
    user, va, _migrator = one_page(room)
    other = room.task(shares=user)
    node = other_node(user, va)
    room.program(user, lambda task: task.fetch_add64(va, 1))
    room.program(other, lambda task: task.move_pages(0, [va], [node])[0])
    room.check(lambda before, _status: before == OLD and user.load64(va) == OLD + 1)


@scenario
def migrate_twice(room):
    """Two migrators, one page."""
    user, va, migrator = one_page(room)
    room.program(migrator, migrate(user, va))
    room.program(room.task(), migrate_frame(user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def munmap(room):
    """The page is unmapped while it is being moved, by a migrator that takes no mmap_sem."""
    user, va, migrator = one_page(room)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(migrator, migrate_frame(user, va))


@scenario
def mremap(room):
    """The page is moved in the address space and in memory at once."""
    user, va, migrator = one_page(room)
    target = va - (8 << 20)
    room.program(user, lambda task: task.mremap(va, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(target) == OLD)


@scenario
def mprotect(room):
    """The page becomes read-only while it is being moved, and stays so."""
    user, va, migrator = one_page(room)
    room.program(user, lambda task: task.mprotect(va, PAGE, PROT_READ))
    room.program(migrator, migrate_frame(user, va))

    def read_only():
        assert user.load64(va) == OLD
        return not stores(user, va)
    room.check(read_only)


def two_pages(room):
    """An area of two pages, and a migrator.  (user, va, migrator)"""
    user = room.task()
    va = user.mmap(2 * PAGE)
    for at in (va, va + PAGE):
        user.store64(at, OLD)
    migrator = room.task()
    migrator.migrate_prep()
    return user, va, migrator


@scenario
def mprotect_half(room):
    """One page of an area becomes read-only while the other one is being moved: the area is two then, and one of
    them has that page."""
    user, va, migrator = two_pages(room)
    room.program(user, lambda task: task.mprotect(va, PAGE, PROT_READ))
    room.program(migrator, migrate_frame(user, va + PAGE))
    room.check(lambda: user.load64(va) == user.load64(va + PAGE) == OLD and
               stores(user, va + PAGE) and not stores(user, va))


@scenario
def mprotect_merge(room):
    """Two areas become one again while the page of the upper one, which goes, is being moved."""
    user, va, migrator = two_pages(room)
    user.mprotect(va, PAGE, PROT_READ)
    room.program(user, lambda task: task.mprotect(va, PAGE, PROT_READ | C["PROT_WRITE"]))
    room.program(migrator, migrate_frame(user, va + PAGE))
    room.check(lambda: user.load64(va) == user.load64(va + PAGE) == OLD and
               stores(user, va + PAGE) and stores(user, va))


@scenario
def mlock(room):
    """The page is locked in memory while it is being moved."""
    user, va, migrator = one_page(room)
    room.program(user, lambda task: task.mlock(va, PAGE))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def mlock_mmap(room):
    """A thread locks the page in memory while another maps something, and sees whether that is to be filled."""
    user, va, _migrator = one_page(room)
    room.program(user, lambda task: task.mlock(va, PAGE))
    room.program(room.task(shares=user), lambda task: task.mmap(PAGE))
    room.check(lambda: user.load64(va) == OLD)


def mlock_refused(task, va):
    """Locks an area without access: what is there already is locked, and no more can be had."""
    try:
        task.mlock(va, PAGE)
    except OSError as error:
        assert error.errno == errno.ENOMEM
    else:
        raise AssertionError("an area without access was filled")


@scenario
def mlock_no_access(room):
    """As mlock, in an area that has no access: its pages are locked as they are, be it in the air."""
    user, va, migrator = one_page(room)
    user.mprotect(va, PAGE, C["PROT_NONE"])
    room.program(user, lambda task: mlock_refused(task, va))
    room.program(migrator, migrate_frame(user, va))


@scenario
def mlock_fault(room):
    """A fault in a locked area sees to the page that it has found there, while a thread's store puts a copy in
    its place: then the page is the child's alone, and nobody has it locked."""
    user, va, _migrator = one_page(room)
    child = room.forked(user)
    # Locked without a write, for that would be the copy.
    user.mprotect(va, PAGE, PROT_READ)
    user.mlock(va, PAGE)
    user.mprotect(va, PAGE, PROT_READ | C["PROT_WRITE"])
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(room.task(shares=user), end_of_fault(room, user, va))
    room.check(lambda: is_stored(user, va) and child.load64(va) == OLD)


def end_of_fault(room, user, va):
    """A program that does what a fault in a locked area of a task does once it has mapped a page."""
    mm = worker.slot(user.cpu).mm
    mmap_sem = mm + room.offset("MmStruct", "mmap_sem")

    def fault(task):
        task.kernel("down_read", mmap_sem)
        task.kernel("mlock_faulted_page", task.kernel("find_vma", mm, va), va)
        task.kernel("up_read", mmap_sem)
    return fault


@scenario
def mlock_fault_migrate(room):
    """A fault in a locked area has mapped a page, and that is moved before the fault comes to lock it.  Nobody
    need fault on it again."""
    user, va, migrator = one_page(room)
    user.mlock(va, PAGE)
    page = room.page_of(user, va)
    user.kernel("lock_page", page)
    user.kernel("clear_page_mlock", page)
    user.kernel("unlock_page", page)
    migrator.migrate_prep()
    room.begins_whole = False
    room.program(user, end_of_fault(room, user, va))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def mlock_copy(room):
    """A store to a page in a locked area gets a copy, which is locked from the start, while the child that has
    the page too exits, and frees frames beside that of the copy."""
    user, va, _migrator = one_page(room)
    child = room.forked(user)
    user.mprotect(va, PAGE, PROT_READ)
    user.mlock(va, PAGE)
    user.mprotect(va, PAGE, PROT_READ | C["PROT_WRITE"])
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(child, lambda task: task.exit())
    room.check(lambda: is_stored(user, va))


@scenario
def munlock(room):
    """A locked page is unlocked while it is being moved: it is evictable then, wherever it is."""
    user, va, migrator = one_page(room)
    user.mlock(va, PAGE)
    room.program(user, lambda task: task.munlock(va, PAGE))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(va) == OLD)


def fork_while(room, user, va, other, program):
    """The address space with a page at `va` is copied while another task runs `program`; then the parent
    writes, and the child must not see it."""
    room.program(user, lambda task: task.fork())
    room.program(other, program)

    def apart(child, _result):
        user.store64(va, NEW)
        assert room.load_in(child, va) == OLD
        return is_stored(user, va)
    room.check(apart)


@scenario
def fork(room):
    """The address space is copied while its page is being moved; then each side has its own."""
    user, va, migrator = one_page(room)
    fork_while(room, user, va, migrator, migrate_frame(user, va))


@scenario
def exit_(room):
    """The task whose page is being moved exits."""
    user, va, migrator = one_page(room)
    room.program(user, lambda task: task.exit())
    room.program(migrator, migrate_frame(user, va))


@scenario
def move_pages_exit(room):
    """move_pages of a task that exits: it has its address space, or none."""
    user, va, migrator = one_page(room)
    pid, node = user.pid, other_node(user, va)

    def program(task):
        try:
            return task.move_pages(pid, [va], [node])[0]
        except OSError as error:
            return error.errno
    room.program(user, lambda task: task.exit())
    room.program(migrator, program)
    room.check(lambda _none, status: status in (node, -errno.EACCES, -errno.EBUSY, -errno.ENOENT, -errno.EAGAIN,
                                               -errno.EFAULT, errno.ESRCH, errno.EINVAL))


@scenario
def forked_store(room):
    """A page that two address spaces share is moved while one of them writes to it, and so gets
    a copy of its own."""
    user, va, migrator = one_page(room)
    child = room.forked(user)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_stored(user, va) and child.load64(va) == OLD)


@scenario
def forked_exit(room):
    """A page that two address spaces share is moved while one of them exits: the anon_vma stays
    as long as anybody walks it."""
    user, va, migrator = one_page(room)
    child = room.forked(user)
    room.program(child, lambda task: task.exit())
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def mremap_store(room):
    """One thread moves the page in the address space, another stores to its old address, and a
    migrator moves it in memory: the store is seen at the new address, or faults."""
    user, va, migrator = one_page(room)
    other = room.task(shares=user)
    other.load64(va)
    target = va - (8 << 20)
    room.program(user, lambda task: task.mremap(va, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target))
    room.program(other, lambda task: stores(task, va))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda _new, stored, _stayed: user.load64(target) == (NEW if stored else OLD))


@scenario
def anon_vma(room):
    """The page is unmapped while it is being moved, and so is the last area of its anon_vma, which
    is freed when RCU lets it."""
    user, va, migrator = one_page(room)

    def program(task):
        task.munmap(va, PAGE)
        task.kernel("rcu_process_callbacks")
    room.program(user, program)
    room.program(migrator, migrate_frame(user, va))


@scenario
def munmap_forked(room):
    """Two address spaces that share a page unmap it: its anon_vma goes with the last area, once."""
    user, va, _migrator = one_page(room)
    child = room.forked(user)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(child, lambda task: task.munmap(va, PAGE))


@scenario
def munmap_forked_freed(room):
    """As munmap_forked; the anon_vma is freed at once. Who left its list before is through with its lock then."""
    user, va, _migrator = one_page(room)
    child = room.forked(user)

    def unmap(task):
        task.munmap(va, PAGE)
        task.kernel("rcu_process_callbacks")
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(child, unmap)


@scenario
def slab_reclaim(room):
    """A task wants an object when the arena is used up, but for one that waits for its grace period;
    another task takes that one off the queue, to free it."""
    freer, other, kernel = room.task(), room.task(), layout.kernel()
    cache = kernel.radix_tree_node_cachep
    taken = [freer.kernel("kmem_cache_alloc", cache)]
    kernel.slab_end = kernel.slab_next
    while node := freer.kernel("kmem_cache_alloc", cache):
        taken.append(node)
    last = taken.pop()
    freer.kernel("radix_tree_node_free", last)
    room.begins_whole = False

    def want(task):
        assert task.kernel("kmem_cache_alloc", cache) == last
        for each in (*taken, last):
            task.kernel("kmem_cache_free", cache, each)
    room.program(freer, lambda task: task.kernel("rcu_process_callbacks"))
    room.program(other, want)


@scenario
def munmap_isolated(room):
    """A page that a migrator has isolated already is unmapped: once it is gone, there is nothing left
    that could fail to move."""
    user, va, migrator = one_page(room)
    page = room.page_of(user, va)
    migrator.kernel("isolate_lru_page", page)
    room.begins_whole = False
    node, gone = other_node(user, va), []
    isolated = room.list_head()

    def unmap(task):
        gone.clear()
        task.munmap(va, PAGE)
        gone.append(va)

    def move(task):
        was_gone = bool(gone)
        task.kernel("INIT_LIST_HEAD", isolated)
        task.kernel("list_add", page + room.offset("Page", "lru"), isolated)
        stayed = task.kernel("migrate_pages", isolated, room.symbol("alloc_on_node"), node)
        assert not (was_gone and stayed)
        return stayed
    room.before_each_run(gone.clear)
    room.program(user, unmap)
    room.program(migrator, move)


@scenario
def load_freed(room):
    """Two threads of one address space: one touches the page that is being moved, the other unmaps
    it and maps a new one."""
    user, va, migrator = one_page(room)
    other = room.task(shares=user)

    def touch(task):
        try:
            return task.load64(va)
        except SegmentationFault:
            return 0
    room.program(user, touch)
    room.program(other, lambda task: task.munmap(va, PAGE))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda seen, _none, _stayed: seen in (0, OLD))


@scenario(frames=96)
def load_unhooked(room):
    """A CPU walks the tables while munmap unhooks them.  Where it would go if it looked at an entry
    twice, in frame 0, stands what another task wants it to find: that it may write to a third one's page."""
    third, spy = room.task(), room.task()
    secret = third.mmap(PAGE)
    third.store64(secret, OLD)
    at = spy.mmap(60 * PAGE)
    spy.store64(at, 0)
    while spy.frame_of(at) != 0:
        at += PAGE
        spy.store64(at, 0)
    for place in range(0, PAGE, 8):
        spy.store64(at + place, spy_word(third, secret))
    user = room.task()
    va = user.mmap(PAGE)
    user.store64(va, OLD)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(room.task(shares=user), lambda task: stores(task, va))
    room.check(lambda *_: third.load64(secret) == OLD)


def spy_word(task, va):
    """What a PTE would be that lets a program write to the page of a task's."""
    return task.frame_of(va) * PAGE | C["_PAGE_PRESENT"] | C["_PAGE_RW"] | C["_PAGE_ACCESSED"] | C["_PAGE_DIRTY"]


@scenario
def late_reader(room):
    """A reader meets a semaphore that a writer waits for, and that the one before him gives back: whoever of
    the two sleeps is woken."""
    first, writer, late = room.task(), room.task(), room.task()
    sem = worker.slot(first.cpu).mm + room.offset("MmStruct", "mmap_sem")
    first.kernel("down_read", sem)
    room.begins_whole = False

    def through(down, up):
        def program(task):
            task.kernel(down, sem)
            task.kernel(up, sem)
        return program
    room.program(first, lambda task: task.kernel("up_read", sem))
    room.program(writer, through("down_write", "up_write"))
    room.program(late, through("down_read", "up_read"))


@scenario
def cpuset_fault(room):
    """A first touch of a page that is bound to a node, by a policy that follows when the task's
    cpuset gets another: there is memory before and after."""
    user, other = room.task(), room.task()
    va = user.mmap(2 * PAGE)
    user.store64(va + PAGE, OLD)
    cpuset = user._cpuset_create(0, [0], 0)
    user._cpuset_attach(cpuset, user.pid)
    user.set_mempolicy(C["MPOL_BIND"], [0])
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, lambda task: task._cpuset_set_mems(cpuset, [1]))
    room.check(lambda: (user.load64(va), user.load64(va + PAGE)) == (NEW, OLD))


@scenario
def isolated_fault(room):
    """A first touch of a page, which has to come from a node that begins to go offline and stays: there
    is other memory while it is going."""
    user, other = room.task(), room.task()
    va = user.mmap(2 * PAGE)
    user.store64(va + PAGE, OLD)
    user.set_mempolicy(C["MPOL_BIND"], [1])
    user._cpuset_attach(user._cpuset_create(0, [1], 0), user.pid)
    zone = layout.kernel().zones + layout.sizeof("Zone")

    def program(task):
        task.kernel("set_isolated", zone, 1)
        task.kernel("set_isolated", zone, 0)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, program)
    room.check(lambda: (user.load64(va), user.load64(va + PAGE)) == (NEW, OLD))


def page_on_last_node(room):
    """As one_page, of a machine whose last node has nothing that cannot be moved away.  The other task has
    the same address space.  (user, va, other)"""
    # The first task's page tables would be there.
    away, user = room.task(), room.task()
    away.exit()
    other = room.task(shares=user)
    va = user.mmap(2 * PAGE)
    user.store64(va + PAGE, OLD)
    user.set_mempolicy(C["MPOL_PREFERRED"], [1])
    for at in (va, va + 8, va + LAST):
        user.store64(at, OLD)
    user.kernel("lru_add_drain_all")
    return user, va, other


def offline(task):
    """A program that takes the last node offline.  Returns 0 or an errno."""
    try:
        task.offline_node(1)
    except OSError as error:
        return error.errno
    return 0


@scenario
def offline_store(room):
    """A store to a page whose node goes offline."""
    user, va, other = page_on_last_node(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, offline)
    room.check(lambda _none, status: is_stored(user, va) and (status == 0) == (user.frame_of(va) < FRAMES_PER_NODE))


@scenario
def offline_fault(room):
    """A first touch of a page that would come from a node which goes offline, and whose watermarks change
    with that."""
    user, va, other = page_on_last_node(room)
    new = user.mmap(PAGE)
    room.program(user, lambda task: task.store64(new, NEW))
    room.program(other, offline)
    room.check(lambda: (user.load64(va), user.load64(new)) == (OLD, NEW))


@scenario
def offline_exit(room):
    """A task exits while the node goes offline that its pages and page tables are on: who waits for
    the last of them, which is on no list, gives its CPU away."""
    user, other = room.task(), room.task()
    user.set_mempolicy(C["MPOL_PREFERRED"], [1])
    user.store64(user.mmap(PAGE), OLD)
    room.program(user, lambda task: task.exit())
    room.program(other, offline)
    room.check(lambda _none, status: status in (0, errno.EBUSY))


@scenario
def cpuset_exit(room):
    """A task's cpuset gets other nodes, and its pages are to follow, while it exits."""
    user, va, other = page_on_last_node(room)
    cpuset = user._cpuset_create(0, [0, 1], C["CS_MEMORY_MIGRATE"])
    user._cpuset_attach(cpuset, user.pid)
    room.program(user, lambda task: task.exit())
    room.program(other, lambda task: task._cpuset_set_mems(cpuset, [0]))
    room.check(lambda: other.load64(va) == OLD)


def store_apart(room, user, va):
    """The task and a forked child both store to the page: none sees the other's word."""
    child = room.forked(user)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(child, lambda task: task.store64(va, OLD + 1))
    room.check(lambda: is_stored(user, va) and is_stored(child, va, OLD + 1))


@scenario
def cow_twice(room):
    """Two address spaces share a page, and both write to it: one gets a copy, or both do."""
    user, va, _migrator = one_page(room)
    store_apart(room, user, va)


@scenario
def cow_exit(room):
    """A task writes to a page while the other one that has it exits: it copies the page, or keeps it."""
    user, va, _migrator = one_page(room)
    child = room.forked(user)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(child, lambda task: task.exit())
    room.check(lambda: is_stored(user, va))


@scenario
def cow_load(room):
    """One thread gets a copy of a page that is shared with a child, another reads by the translation that it
    had before: once it has seen what was stored it never sees the old page again."""
    user, va, _migrator = one_page(room)
    child, other = room.forked(user), room.task(shares=user)
    other.load64(va)
    room.program(user, lambda task: (task.store64(va, NEW), task.load64(va))[1])
    room.program(other, lambda task: (task.load64(va), task.load64(va)))
    room.check(lambda own, seen: own == NEW and seen in ((OLD, OLD), (OLD, NEW), (NEW, NEW)) and child.load64(va) == OLD)


@scenario
def fork_store(room):
    """The address space is copied while another thread stores to two words, by the translation that it
    has: the child has both, the first, or none, and what comes later it does not see."""
    user, va, _migrator = one_page(room)
    other = room.task(shares=user)
    other.store64(va, OLD)

    def store(task):
        task.store64(va, NEW)
        task.store64(va + 8, NEW)
    room.program(user, lambda task: task.fork())
    room.program(other, store)

    def apart(child, _none):
        seen = [room.load_in(child, va), room.load_in(child, va + 8)]
        assert seen in ([OLD, OLD], [NEW, OLD], [NEW, NEW])
        other.store64(va, OLD + 1)
        return room.load_in(child, va) == seen[0] and user.load64(va + 8) == NEW
    room.check(apart)


@scenario
def mprotect_store(room):
    """A page becomes read-only while another thread stores to it, by the translation that it has: once
    mprotect has returned, the page stays as it is."""
    user, va, _migrator = one_page(room)
    other = room.task(shares=user)
    other.store64(va, OLD)

    def protect(task):
        task.mprotect(va, PAGE, PROT_READ)
        return task.load64(va)
    room.program(user, protect)
    room.program(other, lambda task: stores(task, va))
    room.check(lambda seen, stored: seen == user.load64(va) == (NEW if stored else OLD))


@scenario
def reap_claimed(room):
    """Init is asked once more to give back the slot of a task that was killed when nothing else was left of it;
    a new task is just getting that slot, and keeps it."""
    init, maker, gone = room.task(), room.task(), room.task()
    gone.exit()
    slot = worker.slot(gone.cpu)
    os_pid = slot.os_pid

    def start(task):
        assert task.kernel("alloc_task") == slot.address
        pid = int(slot.pid)
        assert task.kernel("start_task", slot, pid, os_pid + 1, 1)
        task.kernel("set_current", worker.slot(maker.cpu))
        return pid
    room.program(init, lambda task: task.kernel("reap_task", slot, 0, os_pid))
    room.program(maker, start)
    room.check(lambda _none, pid: (slot.state, slot.pid) == (C["TASK_RUNNING"], pid))


@scenario
def tracing_ends(room):
    """A task is about to stop at a tracepoint while tracing ends; an event is on all the same, for somebody has begun
    to trace who knows nothing of that.  It goes on."""
    user, tracer = room.task(), room.task()
    slot, kernel = worker.slot(user.cpu), layout.kernel()
    slot.trace_breaks = 1
    # An event that there is not: nobody writes it.
    kernel.trace_ring_events, kernel.trace_owner, kernel.trace_events = 1024, 1, 1 << 63
    room.program(user, lambda task: task.kernel("trace_stop"))
    room.program(tracer, lambda _task: end_breaks())
    room.check(lambda: (slot.trace_stopped, slot.trace_breaks) == (0, 0))
