# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios of swap and of memory control groups.

May import: room, scenarios, scenarios_files.
"""
import errno

from shmkern import layout, worker
from shmkern.errors import SegmentationFault
from shmkern.explore.room import C, FRAMES_PER_NODE, PAGE, scenario
from shmkern.explore.scenarios import (MREMAP_FIXED, MREMAP_MAYMOVE, NEW, OLD, fork_while, is_stored, migrate,
                                       migrate_frame, one_page, store_apart)
from shmkern.explore.scenarios_files import (MAP_SHARED, NEWER, PROT_READ, PROT_WRITE, cached_page, is_kept,
                                             unmapped_page)

GFP_KERNEL, MAP_ANONYMOUS = C["GFP_KERNEL"], C["MAP_ANONYMOUS"]
ANON, FILE = 0, 1


def swappable_page(room, group=None, slots=4):
    """As one_page, in a machine with a swap area; the page is on the inactive list, and nobody has
    used it lately.  Charged to a new group of that name.  (user, va, migrator)"""
    user, va, migrator = one_page(room, group=group)
    room.swapon(user, slots)
    user.kernel("shrink_active_list", zone_of(user, va), ANON, 1, scan_control(room))
    return user, va, migrator


def zone_of(user, va):
    """The address of the zone that the page at `va` is in."""
    return layout.kernel().zones + user.frame_of(va) // FRAMES_PER_NODE * layout.sizeof("Zone")


def scan_control(room, memcg=0):
    """The address of a struct ScanControl as kswapd's, for all pages or those of a group."""
    # nr_reclaimed, gfp, kswapd, mem_cgroup.
    control = room.stack_words(4)
    layout.view("u64", control, 4)[:] = 0, GFP_KERNEL, 0, memcg
    return control


def reclaim(room, user, va, memcg=0):
    """A program that frees the page at `va` of another task if it can, as kswapd does, or with `memcg`
    as is done at that group's limit."""
    zone, control = zone_of(user, va), scan_control(room, memcg)
    return lambda task: task.kernel("shrink_inactive_list", zone, ANON, 1, control)


def in_swap_cache(room, group=None):
    """A task with a page that only a swap entry leads to, and that is still in the swap cache, since
    somebody had a reference when it was unmapped; and a migrator.  Charged to a new group of that
    name.  (user, va, page, migrator)"""
    user, va, migrator = swappable_page(room, group)
    page = room.page_of(user, va)
    evict = reclaim(room, user, va)
    user.kernel("get_page", page)
    evict(user)
    user.kernel("put_page", page)
    return user, va, page, migrator


def swapped_out(room, group=None):
    """A task with a page that is in its slot of the swap area and nowhere else, and a migrator; in a new
    group of that name.  (user, va, node, migrator), with the node that it will be read to."""
    user, va, migrator = swappable_page(room, group)
    node = user.frame_of(va) // FRAMES_PER_NODE
    reclaim(room, user, va)(user)
    return user, va, node, migrator


def migrate_node(node):
    """A program that moves all pages of a node that can be moved to the other node."""
    def program(task):
        task.migrate_prep()
        return task.migrate_frames(node * FRAMES_PER_NODE, (node + 1) * FRAMES_PER_NODE, 1 - node)[1]
    return program


def migrate_page(user, page):
    """A program that moves a page, which need not be mapped, to the other node."""
    frame = (page - layout.kernel().mem_map) // layout.sizeof("Page")
    node = 1 - frame // FRAMES_PER_NODE
    return lambda task: task.migrate_frames(frame, frame + 1, node)[1]


@scenario
def reclaim_migrate(room):
    """Reclaim takes the page that is being moved: it gets a place in swap, is unmapped, written and
    freed, before it is moved, after that, or not at all."""
    user, va, migrator = swappable_page(room)
    room.program(user, reclaim(room, user, va))
    room.program(migrator, migrate(user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def reclaim_store(room):
    """Reclaim takes a page that its task stores to."""
    user, va, reclaimer = swappable_page(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(reclaimer, reclaim(room, user, va))
    room.check(lambda: is_stored(user, va))


@scenario
def reclaim_load_full(room):
    """A load brings a page back that reclaim is writing, where slots are scarce: the page gives its own back, but
    not from under who writes to it."""
    user, va, reclaimer = swappable_page(room, slots=1)
    room.program(user, lambda task: task.load64(va))
    room.program(reclaimer, reclaim(room, user, va))
    room.check(lambda seen, _none: seen == user.load64(va) == OLD)


@scenario
def reclaim_write(room):
    """As reclaim_store, of a page that is mapped read-only since it came back from swap, and that is
    still in the swap cache."""
    user, va, page, reclaimer = in_swap_cache(room)
    user.load64(va)
    evict = reclaim(room, user, va)
    user.kernel("page_referenced", page, 1, 0)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(reclaimer, evict)
    room.check(lambda: is_stored(user, va))


@scenario
def reclaim_mlock(room):
    """Reclaim takes a page that its task locks in memory: once that is done the page is there, and stays."""
    user, va, reclaimer = swappable_page(room)
    room.program(user, lambda task: task.mlock(va, PAGE))
    room.program(reclaimer, reclaim(room, user, va))
    room.check(lambda: user._pte(va) & C["_PAGE_PRESENT"] != 0 and user.load64(va) == OLD)


@scenario
def reclaim_store_migrate(room):
    """A task stores to a page that reclaim and a migrator both want."""
    user, va, migrator = swappable_page(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(room.task(), reclaim(room, user, va))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_stored(user, va))


@scenario
def swap_cache_load(room):
    """A load brings a page back that is still in the swap cache, while it is being moved there."""
    user, va, page, migrator = in_swap_cache(room)
    room.program(user, lambda task: task.load64(va))
    room.program(migrator, migrate_page(user, page))
    room.check(lambda seen, _stayed: seen == OLD and user.load64(va) == OLD)


@scenario
def swap_cache_store(room):
    """As swap_cache_load; a store, whose page leaves the swap cache."""
    user, va, page, migrator = in_swap_cache(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_page(user, page))
    room.check(lambda: is_stored(user, va))


@scenario
def swap_cache_mapped(room):
    """A store to a page that is in the swap cache and mapped, while it is being moved: its PTE becomes
    a swap entry for that, and the next fault finds the new page."""
    user, va, _page, migrator = in_swap_cache(room)
    user.load64(va)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_stored(user, va))


@scenario
def active_swap_in(room):
    """A load maps a page that is still in the swap cache, while reclaim asks who has used the pages of the active
    list, of which it locks none."""
    user, va, page, reclaimer = in_swap_cache(room)
    zone, control = zone_of_page(page), scan_control(room)
    user.kernel("activate_page", page)
    room.program(user, lambda task: task.load64(va))
    room.program(reclaimer, lambda task: task.kernel("shrink_active_list", zone, ANON, 1, control))
    room.check(lambda seen, _none: seen == OLD)


@scenario
def swap_in(room):
    """A load reads the page from its slot while everything on its node is being moved: a page that
    has just been read, and that nobody has mapped yet."""
    user, va, node, migrator = swapped_out(room)
    room.program(user, lambda task: task.load64(va))
    room.program(migrator, migrate_node(node))
    room.check(lambda seen, _stayed: seen == OLD and user.load64(va) == OLD)


@scenario
def swap_in_twice(room):
    """Two tasks of one address space read the page from its slot."""
    user, va, _node, _migrator = swapped_out(room)
    room.program(user, lambda task: task.load64(va))
    room.program(room.task(shares=user), lambda task: task.load64(va))
    room.check(lambda one, two: one == two == OLD and user.load64(va) == OLD)


@scenario
def swap_in_munmap(room):
    """One thread reads the page from its slot, another unmaps it."""
    user, va, _node, _migrator = swapped_out(room)

    def touch(task):
        try:
            return task.load64(va)
        except SegmentationFault:
            return 0
    room.program(user, touch)
    room.program(room.task(shares=user), lambda task: task.munmap(va, PAGE))
    room.check(lambda seen, _none: seen in (0, OLD))


@scenario
def swap_in_mlock(room):
    """A page comes back to be locked, and gives its slot back if nobody else has a use of it, while
    the other address space that has one unmaps it."""
    user, va, _page, _migrator = in_swap_cache(room)
    user.mprotect(va, PAGE, PROT_READ)
    other = room.forked(user)
    room.program(user, lambda task: task.mlock(va, PAGE))
    room.program(other, lambda task: task.munmap(va, PAGE))
    room.check(lambda *_none: user.load64(va) == OLD)


def read_ahead(room):
    """A task with two pages that are in neighbouring slots and nowhere else, in a machine that reads both
    when one is wanted.  (user, va)"""
    user = room.task()
    va = user.mmap(2 * PAGE)
    swap_neighbours_out(room, user, va)
    return user, va


def swap_neighbours_out(room, user, va):
    """Two pages of a task go to neighbouring slots; see read_ahead."""
    for at in (va, va + PAGE):
        user.store64(at, OLD)
    user.kernel("lru_add_drain_all")
    room.swapon(user, 4)
    layout.kernel().page_cluster = 2
    for at in (va, va + PAGE):
        user.kernel("shrink_active_list", zone_of(user, at), ANON, 1, scan_control(room))
        reclaim(room, user, at)(user)


@scenario
def read_ahead_twice(room):
    """Two tasks each read a page from its slot, and the other's with it."""
    user, va = read_ahead(room)
    room.program(user, lambda task: task.load64(va))
    room.program(room.task(shares=user), lambda task: task.load64(va + PAGE))
    room.check(lambda one, two: one == two == OLD)


@scenario
def read_ahead_munmap(room):
    """A page is read ahead while it is unmapped, and its slot becomes free."""
    user, va = read_ahead(room)
    room.program(user, lambda task: task.load64(va))
    room.program(room.task(shares=user), lambda task: task.munmap(va + PAGE, PAGE))
    room.check(lambda seen, _none: seen == OLD)


@scenario
def swap_fork(room):
    """The address space is copied, and with it the swap entry of a page that is being moved in the
    swap cache; then each side has its own."""
    user, va, page, migrator = in_swap_cache(room)
    fork_while(room, user, va, migrator, migrate_page(user, page))


@scenario
def swap_in_forked(room):
    """Two address spaces have one swap entry, and both store: each gets a page of its own."""
    user, va, _page, _migrator = in_swap_cache(room)
    store_apart(room, user, va)


@scenario
def swap_munmap(room):
    """The only swap entry of a page of the swap cache goes while the page is being moved."""
    user, va, page, migrator = in_swap_cache(room)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(migrator, migrate_page(user, page))


@scenario
def swapoff(room):
    """A swap area is given back while a task stores to the page that is in it."""
    user, va, _node, other = swapped_out(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, lambda task: task.kernel("do_swapoff", 0))
    room.check(lambda: is_stored(user, va))


@scenario
def swapoff_migrate(room):
    """A swap area is given back while the page that has a place in it is being moved."""
    user, va, page, migrator = in_swap_cache(room)
    room.program(user, lambda task: task.kernel("do_swapoff", 0))
    room.program(migrator, migrate_page(user, page))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def swapoff_exit(room):
    """A swap area is given back while a task exits that has a page in it: swapoff has a use of the address space,
    or leaves it alone."""
    user, _va, _node, other = swapped_out(room)
    room.program(user, lambda task: task.exit())
    room.program(other, lambda task: task.kernel("do_swapoff", 0))
    room.check(lambda _none, rc: rc == 0)


@scenario
def swapoff_munmap(room):
    """A swap area is given back while the only swap entry of it goes."""
    user, va, _page, other = in_swap_cache(room)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(other, lambda task: task.kernel("do_swapoff", 0))


def locked_in_swap_cache(room, fork=False):
    """As in_swap_cache; the page is mapped, and locked in memory.  With `fork` another address space has a swap
    entry for it.  (user, va, migrator, child)"""
    user, va, _page, migrator = in_swap_cache(room)
    child = room.forked(user) if fork else None
    user.load64(va)
    # Locked without a write, for that would take the page out of the swap cache.
    user.mprotect(va, PAGE, PROT_READ)
    user.mlock(va, PAGE)
    user.mprotect(va, PAGE, PROT_READ | PROT_WRITE)
    migrator.migrate_prep()
    return user, va, migrator, child


def locked_entry(room, fork=False):
    """As locked_in_swap_cache; the page has been moved in the swap cache, since when a swap entry leads to it."""
    user, va, migrator, child = locked_in_swap_cache(room, fork)
    migrate_frame(user, va)(migrator)
    return user, va, migrator, child


def is_unlocked(room, user, va):
    """Whether the page at `va`, once a store has taken it out of the swap cache, is one that nobody has locked:
    before that the audit cannot know."""
    user.store64(va, NEW)
    return is_stored(user, va) and room.audit_text() == ""


@scenario
def munlock_swap_cache(room):
    """A page of the swap cache is unlocked while it is being moved: its PTE becomes a swap entry while munlock waits
    for the page's lock."""
    user, va, migrator, _child = locked_in_swap_cache(room)
    room.program(user, lambda task: task.munlock(va, PAGE))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: is_unlocked(room, user, va))


@scenario
def munlock_entry(room):
    """A page that only a swap entry leads to is unlocked while it is being moved in the swap cache."""
    user, va, migrator, _child = locked_entry(room)
    room.program(user, lambda task: task.munlock(va, PAGE))
    room.program(migrator, migrate_node(0))
    room.check(lambda: is_unlocked(room, user, va))


@scenario
def munlock_entry_forked(room):
    """As munlock_entry, while a store of the other address space that has the entry brings the page back: it stays
    in the swap cache, for the entry is a use of its slot."""
    user, va, _migrator, child = locked_entry(room, fork=True)
    room.program(user, lambda task: task.munlock(va, PAGE))
    room.program(child, lambda task: task.store64(va, NEW))
    room.check(lambda: is_unlocked(room, user, va) and is_stored(child, va))


def group_of(user):
    """(id, address) of the group that a task is in."""
    memcg = layout.struct("MmStruct", worker.slot(user.cpu).mm).mem_cgroup
    return layout.struct("MemCgroup", memcg).id, memcg


def charged_page(room, page=one_page):
    """As `page` says; the page is charged to a group that has no tasks any more.  (user, va, group,
    migrator)"""
    user, va, migrator = page(room, group="group")
    group, _memcg = group_of(user)
    user.cgroup_attach(1)
    return user, va, group, migrator


def force_empty_of(group):
    """A program that empties a group; it returns the errno for which that was not done, or None."""
    def empty(task):
        try:
            task.cgroup_force_empty(group)
        except OSError as error:
            return error.errno
    return empty


@scenario(memcg=True)
def force_empty(room):
    """A group without tasks is emptied while a page that it is charged for is being moved."""
    user, va, group, migrator = charged_page(room)
    room.program(user, force_empty_of(group))
    room.program(migrator, migrate_frame(user, va))

    def paid_for(error, _stayed):
        if error is None:
            assert user.cgroup_stat(group)["usage"] == 0
        return user.load64(va) == OLD
    room.check(paid_for)


@scenario(memcg=True)
def charged_munmap(room):
    """A page that a group is charged for is unmapped while it is being moved: both charges go."""
    user, va, group, migrator = charged_page(room)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.cgroup_stat(group)["usage"] == 0)


def charged_race(room, user, va):
    """Two threads of an address space in a control group store to a page of which both get a frame: the
    one that is given back is not charged any more."""
    group, other = group_of(user)[0], room.task(shares=user)
    before = user.cgroup_stat(group)["usage"]
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, lambda task: task.store64(va + 8, NEW))
    room.check(lambda: user.load64(va) == user.load64(va + 8) == NEW and
               user.cgroup_stat(group)["usage"] == before + PAGE)


@scenario(memcg=True)
def charged_first_touch(room):
    """As first_touch, in a control group."""
    user, _va, _migrator = one_page(room, group="group")
    charged_race(room, user, user.mmap(PAGE))


@scenario(memcg=True)
def charged_fault(room):
    """As fault, in a control group: the new page may get the frame that the moved one has left, and no charge
    with it but its own."""
    user, va, migrator = one_page(room, group="group")
    new = user.mmap(PAGE)
    room.program(user, lambda task: task.store64(new, NEW))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: (user.load64(va), user.load64(new)) == (OLD, NEW) and
               user.cgroup_stat(group_of(user)[0])["usage"] == 2 * PAGE)


@scenario(memcg=True)
def charged_copy(room):
    """As charged_first_touch; the page is one that a fork shares."""
    user, va, _migrator = one_page(room, group="group")
    room.forked(user)
    charged_race(room, user, va)


@scenario(memcg=True)
def charged_private(room):
    """As charged_first_touch; the page is a copy of one of a file, which is mapped private."""
    user, _va, _migrator = one_page(room, group="group")
    file = room.file(user, [OLD])
    user.load64(user.mmap(PAGE, PROT_READ, MAP_SHARED, fd=file.fd))
    charged_race(room, user, user.mmap(PAGE, PROT_READ | PROT_WRITE, C["MAP_PRIVATE"], fd=file.fd))


@scenario(memcg=True)
def charged_read(room):
    """Two tasks of a group bring the same page of a file into the page cache: who comes second gives a frame
    back, with its charge."""
    user = room.task()
    user.cgroup_attach(user.cgroup_create("group"))
    file = room.file(user, [OLD, OLD])
    user.pread(file.fd, 8, PAGE)
    for task in (user, room.forked(user)):
        room.program(task, lambda task: task.kernel("page_cache_read", file.mapping, 0))
    room.check(lambda one, two: one == two == 0 and user.cgroup_stat(group_of(user)[0])["usage"] == 2 * PAGE)


@scenario(memcg=True)
def empty_group_reclaim(room):
    """A group without tasks is emptied while reclaim takes the page that it is charged for."""
    user, va, migrator = swappable_page(room, "group")
    group, memcg = group_of(user)
    evict = reclaim(room, user, va, memcg)
    user.cgroup_attach(1)
    room.program(user, force_empty_of(group))
    room.program(migrator, evict)
    room.check(lambda: user.load64(va) == OLD)


@scenario(memcg=True)
def reclaim_group_migrate(room):
    """Reclaim at a group's limit takes the page that is being moved."""
    user, va, migrator = swappable_page(room, "group")
    room.program(user, reclaim(room, user, va, group_of(user)[1]))
    room.program(migrator, migrate_frame(user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario(memcg=True)
def charged_swap_cache_store(room):
    """As swap_cache_store, of a page that a group is charged for, and still is when its migration has come
    to nothing."""
    user, va, page, migrator = in_swap_cache(room, "group")
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_page(user, page))
    room.check(lambda: is_stored(user, va) and user.cgroup_stat(group_of(user)[0])["usage"] == PAGE)


@scenario(memcg=True)
def charged_swap_in(room):
    """As swap_in: the page may be charged when its migration has begun, and then the new page must be."""
    user, va, node, migrator = swapped_out(room, "group")
    room.program(user, lambda task: task.load64(va))
    room.program(migrator, migrate_node(node))
    room.check(lambda seen, _stayed: seen == OLD and user.load64(va) == OLD and
               user.cgroup_stat(group_of(user)[0])["usage"] == PAGE)


@scenario(memcg=True)
def charged_swap_in_store(room):
    """As charged_swap_in, but for a store, with which the page leaves the swap cache and is moved like any other."""
    user, va, node, migrator = swapped_out(room, "group")
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(migrator, migrate_node(node))
    room.check(lambda: is_stored(user, va) and user.cgroup_stat(group_of(user)[0])["usage"] == PAGE)


@scenario(memcg=True)
def remove_group(room):
    """A group is removed while the page that it is charged for is put on its list, and unmapped."""
    user, va, group, migrator = charged_page(room)
    page = room.page_of(user, va)
    migrator.kernel("isolate_lru_page", page)
    migrator.kernel("putback_lru_page", page)

    def remove(task):
        try:
            task.cgroup_remove(group)
        except OSError as error:
            assert error.errno == errno.EBUSY
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(migrator, lambda task: task.kernel("lru_add_drain"))
    room.program(room.task(), remove)


@scenario
def reclaim_close(room):
    """The last page of a file is reclaimed while the file is closed, and its inode freed."""
    user, va, file, other = cached_page(room)
    zone, control = zone_of(user, va), scan_control(room)
    user.munmap(va, PAGE)
    room.program(user, lambda task: task.close(file.fd))
    room.program(other, lambda task: task.kernel("shrink_inactive_list", zone, FILE, 1, control))


def active_page(room):
    """A task with a page of a file on the active list, and a program that looks who uses it, as reclaim does
    without its lock.  (user, va, file, look)"""
    user, va, file, _other = cached_page(room)
    zone, control = zone_of(user, va), scan_control(room)
    user.kernel("lru_add_drain_all")
    user.kernel("activate_page", room.page_of(user, va))
    return user, va, file, lambda task: task.kernel("shrink_active_list", zone, FILE, 1, control)


@scenario
def active_close(room):
    """The file of a page is closed, and its inode freed when RCU lets it, while reclaim looks whether anybody maps
    that file."""
    user, va, file, look = active_page(room)
    user.munmap(va, PAGE)

    def close(task):
        task.close(file.fd)
        task.kernel("rcu_process_callbacks")
    room.program(user, close)
    room.program(room.task(), look)


@scenario
def active_munmap(room):
    """The last area of a file is unmapped while reclaim looks whether anybody maps that file."""
    user, va, _file, look = active_page(room)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(room.task(), look)


@scenario
def shared_reclaim_munmap(room):
    """The last page of shared anonymous memory goes to swap while it is unmapped."""
    user = room.task()
    va = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS)
    user.store64(va, OLD)
    other = room.task()
    other.migrate_prep()
    room.swapon(user, 4)
    user.kernel("shrink_active_list", zone_of(user, va), ANON, 1, scan_control(room))
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(other, reclaim(room, user, va))


@scenario
def swapoff_fork_areas(room):
    """One area is given back while a task forks that has a page in another."""
    first, user = room.task(), room.task()
    elsewhere = first.mmap(PAGE)
    first.store64(elsewhere, OLD)
    user.mmap(PAGE, PROT_READ)
    va = user.mmap(PAGE)
    user.store64(va, OLD)
    user.kernel("lru_add_drain_all")
    room.swapon(user, 1)
    room.swapon(user, 4)
    for task, at in ((first, elsewhere), (user, va)):
        task.kernel("shrink_active_list", zone_of(task, at), ANON, 1, scan_control(room))
        reclaim(room, task, at)(task)
    room.program(user, lambda task: task.fork())
    room.program(room.task(), lambda task: task.kernel("do_swapoff", 0))
    room.check(lambda child, _none: user.load64(va) == room.load_in(child, va) == first.load64(elsewhere) == OLD)


# ---- reclaim, and what programs do meanwhile ----------------------------------------

def zone_of_page(page):
    """The address of the zone that a page is in."""
    frame = (page - layout.kernel().mem_map) // layout.sizeof("Page")
    return layout.kernel().zones + frame // FRAMES_PER_NODE * layout.sizeof("Zone")


@scenario
def reclaim_fork(room):
    """The address space is copied while reclaim takes its page; then each side has its own."""
    user, va, reclaimer = swappable_page(room)
    fork_while(room, user, va, reclaimer, reclaim(room, user, va))


@scenario
def reclaim_munmap(room):
    """A page is unmapped while reclaim takes it: at most the swap cache has it then, until reclaim comes by again."""
    user, va, reclaimer = swappable_page(room)
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(reclaimer, reclaim(room, user, va))


@scenario
def reclaim_anon_vma(room):
    """As anon_vma, while reclaim asks who has used the page, and takes it."""
    user, va, reclaimer = swappable_page(room)

    def program(task):
        task.munmap(va, PAGE)
        task.kernel("rcu_process_callbacks")
    room.program(user, program)
    room.program(reclaimer, reclaim(room, user, va))


@scenario
def reclaim_munmap_forked(room):
    """The last swap entry of a page goes while reclaim takes the page from the other address space, where it is
    mapped again and becomes a swap entry: the swap cache has the only copy then."""
    user, va, page, reclaimer = in_swap_cache(room)
    child = room.forked(user)
    user.load64(va)
    evict = reclaim(room, user, va)
    user.kernel("page_referenced", page, 1, 0)
    room.program(child, lambda task: task.munmap(va, PAGE))
    room.program(reclaimer, evict)
    room.check(lambda: user.load64(va) == OLD)


@scenario
def reclaim_mremap(room):
    """A page is moved in the address space while reclaim takes it."""
    user, va, reclaimer = swappable_page(room)
    target = va - (8 << 20)
    room.program(user, lambda task: task.mremap(va, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, target))
    room.program(reclaimer, reclaim(room, user, va))
    room.check(lambda: user.load64(target) == OLD)


@scenario
def reclaim_cow(room):
    """Reclaim takes a page that two address spaces share, while one of them writes to it."""
    user, va, reclaimer = swappable_page(room)
    evict = reclaim(room, user, va)
    child = room.forked(user)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(reclaimer, evict)
    room.check(lambda: is_stored(user, va) and is_stored(child, va, OLD))


@scenario
def reclaim_swapoff(room):
    """Reclaim takes a page while the only swap area is given back."""
    user, va, reclaimer = swappable_page(room)
    room.program(room.task(), lambda task: task.kernel("do_swapoff", 0))
    room.program(reclaimer, reclaim(room, user, va))
    room.check(lambda: user.load64(va) == OLD)


@scenario
def swap_cache_reclaim(room):
    """A store brings back a page that is still in the swap cache, while reclaim takes it from there."""
    user, va, page, reclaimer = in_swap_cache(room)
    zone, control = zone_of_page(page), scan_control(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(reclaimer, lambda task: task.kernel("shrink_inactive_list", zone, ANON, 1, control))
    room.check(lambda: is_stored(user, va))


@scenario
def swap_in_fork(room):
    """The address space is copied while another thread stores to a page that is in its slot: the child has
    the page as it was before or after, and stays with it."""
    user, va, _node, _migrator = swapped_out(room)
    other = room.task(shares=user)
    room.program(user, lambda task: task.fork())
    room.program(other, lambda task: task.store64(va, NEW))

    def apart(child, _none):
        seen = room.load_in(child, va)
        assert seen in (OLD, NEW) and is_stored(user, va)
        other.store64(va, OLD + 1)
        return room.load_in(child, va) == seen
    room.check(apart)


@scenario
def reclaim_write_file(room):
    """A file is written to while reclaim takes its page."""
    user, file, page, _move, reclaimer = unmapped_page(room)
    user.kernel("lru_add_drain_all")
    zone, control = zone_of_page(page), scan_control(room)
    room.program(user, lambda task: task.pwrite(file.fd, NEW.to_bytes(8, "little"), 0))
    room.program(reclaimer, lambda task: task.kernel("shrink_inactive_list", zone, FILE, 1, control))

    def kept():
        va = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd)
        return is_kept(user, va, file)
    room.check(kept)


@scenario
def reclaim_store_file(room):
    """A store to a clean page of a file that reclaim takes: it is in the page that is given up, which is
    dirty then and stays, or in the one that the file gets next."""
    store_while_reclaimed(room, *cached_page(room), NEW)


@scenario
def reclaim_store_dirty(room):
    """As reclaim_store_file, of a dirty page, to which one may store without a fault: the file has that, or the
    page stays."""
    store_while_reclaimed(room, *cached_page(room, dirty=True), NEWER)


@scenario
def reclaim_store_munmap(room):
    """As reclaim_store_dirty, and the page is unmapped at once, so that it may be dirty and nobody else's when
    reclaim has written it."""
    store_while_reclaimed(room, *cached_page(room, dirty=True), NEWER, munmap=True)


@scenario
def reclaim_store_munmap_buffers(room):
    """As reclaim_store_munmap, with buffers, which go before the page does."""
    store_while_reclaimed(room, *cached_page(room, fs="buffer", dirty=True, block_size=2048), NEWER, munmap=True)


def store_while_reclaimed(room, user, va, file, reclaimer, value, munmap=False):
    """The user stores to its page of a file that is inactive and that reclaim comes to; and unmaps it."""
    def store(task):
        task.store64(va, value)
        if munmap:
            task.munmap(va, PAGE)

    def kept():
        at = user.mmap(PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd=file.fd) if munmap else va
        return is_kept(user, at, file, value)
    user.kernel("lru_add_drain_all")
    zone, control = zone_of(user, va), scan_control(room)
    user.kernel("page_referenced", room.page_of(user, va), 1, 0)
    user.kernel("shrink_active_list", zone, FILE, 1, control)
    room.program(user, store)
    room.program(reclaimer, lambda task: task.kernel("shrink_inactive_list", zone, FILE, 1, control))
    room.check(kept)


@scenario(memcg=True)
def limit_faults(room):
    """Two threads touch a page each in a group that may have one: one of them gets it."""
    user = room.task()
    group = user.cgroup_create("group", PAGE)
    user.cgroup_attach(group)
    va = user.mmap(2 * PAGE)

    def touch(at):
        def program(task):
            try:
                task.store64(at, NEW)
            except OSError as error:
                assert error.errno == errno.ENOMEM
                return 0
            return PAGE
        return program
    room.program(user, touch(va))
    room.program(room.task(shares=user), touch(va + PAGE))
    room.check(lambda one, two: one + two == PAGE == user.cgroup_stat(group)["usage"])


@scenario(memcg=True)
def limit_resize(room):
    """A group is given room for one more page while a task of it touches that page: the task has it, or there was
    no room yet."""
    user, other = room.task(), room.task()
    group = user.cgroup_create("group", PAGE)
    user.cgroup_attach(group)
    va = user.mmap(2 * PAGE)
    user.store64(va, OLD)

    def touch(task):
        try:
            task.store64(va + PAGE, NEW)
        except OSError as error:
            assert error.errno == errno.ENOMEM
            return PAGE
        return 2 * PAGE
    room.program(user, touch)
    room.program(other, lambda task: task.kernel("mem_cgroup_resize_limit", group, 2 * PAGE))
    room.check(lambda usage, _none: user.cgroup_stat(group)["usage"] == usage)


@scenario(memcg=True)
def limit_full_swap(room):
    """Reclaim at a group's limit asks whether anything can go to swap, where no slot is free, while a store takes
    the only page out of the swap cache."""
    user, va, other = one_page(room, group="group")
    room.swapon(user, 1)
    user.kernel("shrink_active_list", zone_of(user, va), ANON, 1, scan_control(room))
    page, evict, memcg = room.page_of(user, va), reclaim(room, user, va), group_of(user)[1]
    user.kernel("get_page", page)
    evict(user)
    user.kernel("put_page", page)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, lambda task: task.kernel("try_to_free_mem_cgroup_pages", memcg, GFP_KERNEL))
    room.check(lambda: is_stored(user, va))


@scenario(memcg=True)
def attach_exit(room):
    """A task is put into another group while it exits: no group has a charge or a task left over."""
    user, _va, _migrator = one_page(room, group="group")
    old, _memcg = group_of(user)
    other = room.task()
    new = other.cgroup_create("other")
    pid = user.pid

    def attach(task):
        try:
            task.cgroup_attach(new, pid)
        except OSError as error:
            assert error.errno in (errno.ESRCH, errno.EINVAL)
    room.program(user, lambda task: task.exit())
    room.program(other, attach)
    room.check(lambda: other.cgroup_stat(old)["usage"] == other.cgroup_stat(new)["usage"] == 0)


# ---- kswapd -------------------------------------------------------------------------

def full_node(room, pages, spare, mark="WMARK_MIN"):
    """A task with so many pages on a node that reclaim would take, and so many free frames above a watermark.
    All other pages there are locked in memory.  (user, va, at, left), with untouched pages from `at` on, and
    a function for what is left above."""
    user = room.task()
    kernel = layout.kernel()
    zone = layout.struct("Zone", kernel.zones)
    user.set_mempolicy(C["MPOL_BIND"], [0])
    va = user.mmap(pages * PAGE)
    for page in range(pages):
        user.store64(va + page * PAGE, OLD)
    user.kernel("lru_add_drain_all")
    room.swapon(user, 4)
    user.kernel("shrink_active_list", kernel.zones, ANON, pages, scan_control(room))
    at, left = fill_node(user, zone, spare, mark)
    return user, va, at, left


def fill_node(user, zone, spare, mark="WMARK_MIN"):
    """Has a task that is bound to the node of `zone` touch pages, and lock them in memory, until only so many
    free frames are above the watermark.  (at, left) as full_node."""
    def left():
        return int(zone.vm_stat[C["NR_FREE_PAGES"]]) - int(zone.watermark[C[mark]])
    at = rest = user.mmap(zone.spanned_pages * PAGE)
    while left() > spare:
        user.store64(at, OLD)
        at += PAGE
    user.mlock(rest, at - rest)
    user.kernel("lru_add_drain_all")
    return at, left


def nearly_low_node(room, spare):
    """As full_node, of the low watermark, with three pages that reclaim would take, and a task that is the node's
    kswapd, which is awake.  (user, va, at, kswapd, left)"""
    user, va, at, left = full_node(room, 3, spare, "WMARK_LOW")
    kswapd = room.task(shares=user)
    node = layout.struct("PgData", layout.kernel().nodes)
    node.kswapd_pid, node.kswapd_wait = kswapd.pid, 1
    return user, va, at, kswapd, left


@scenario(frames=128)
def kswapd_wakeup(room):
    """Three touches take a node below its low watermark while its kswapd finds that there is enough: it frees
    some after all, or is awake."""
    user, _va, at, kswapd, left = nearly_low_node(room, 2)
    node = layout.struct("PgData", layout.kernel().nodes)

    def touch(task):
        for page in range(3):
            task.store64(at + page * PAGE, NEW)
    room.program(user, touch)
    room.program(kswapd, lambda task: task.kernel("kswapd", 0))
    room.check(lambda: left() > 0 or node.kswapd_wait == 1)


@scenario(frames=128)
def kswapd_migrate(room):
    """A node's kswapd frees while one of the pages that it would take is being moved."""
    user, va, _at, kswapd, left = nearly_low_node(room, 0)
    frame = user.frame_of(va)
    room.program(user, lambda task: task.migrate_frames(frame, frame + 1, 1)[1])
    room.program(kswapd, lambda task: task.kernel("kswapd", 0))
    room.check(lambda: left() > 0 and [user.load64(va + page * PAGE) for page in range(3)] == [OLD] * 3)
