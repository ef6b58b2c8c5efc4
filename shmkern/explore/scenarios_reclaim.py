# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios of memory that is short: who needs some and frees it, beside others who do.

May import: room, scenarios, scenarios_files, scenarios_swap.
"""
import errno

from shmkern import layout
from shmkern.explore.room import C, PAGE, scenario
from shmkern.explore.scenarios import NEW, OLD, is_stored, migrate_frame, stores
from shmkern.explore.scenarios_files import MAP_SHARED, PROT_READ, cached_page
from shmkern.explore.scenarios_swap import (ANON, FILE, fill_node, force_empty_of, full_node, group_of, in_swap_cache,
                                            reclaim, scan_control, swap_neighbours_out, swappable_page, swapped_out,
                                            zone_of, zone_of_page)

GFP_HIGHUSER_MOVABLE = C["GFP_HIGHUSER_MOVABLE"]


def touch(at):
    """A program that stores to an untouched page."""
    return lambda task: task.store64(at, NEW)


def reclaim_once(room, zone, lru, pages=1):
    """A program that is one round of reclaim: it isolates a page, or more, and frees it or puts it back."""
    control = scan_control(room)

    def program(task):
        task.kernel("reclaim_begin")
        task.kernel("shrink_inactive_list", zone, lru, pages, control)
        task.kernel("reclaim_end", 0)
    return program


# ---- a frame -------------------------------------------------------------------------

@scenario(frames=128)
def reclaim_ended(room):
    """A task that needs a frame has nothing to free, as another one has the last page in its hands: that is back
    when nobody is seen freeing memory any more."""
    user, va, at, _left = full_node(room, 1, 0)
    other, page = room.task(), room.page_of(user, va)
    other.kernel("reclaim_begin")
    other.kernel("isolate_lru_page", page)
    room.begins_whole = False

    def end(task):
        task.kernel("putback_lru_page", page)
        task.kernel("reclaim_end", 0)
    room.program(user, touch(at))
    room.program(other, end)
    room.check(lambda: user.load64(at) == NEW)


def last_file_page(room, mapped):
    """A machine without swap where no frame is free on a task's node, and the first round of a reclaim that takes
    the only page of a file, or, when it is mapped and was used, puts it back.  The task touches a page."""
    user, other = room.task(), room.task()
    user.set_mempolicy(C["MPOL_BIND"], [0])
    file = room.file(user, [OLD])
    va = user.mmap(PAGE, PROT_READ, MAP_SHARED, fd=file.fd)
    user.load64(va)
    if not mapped:
        user.munmap(va, PAGE)
    user.kernel("lru_add_drain_all")
    zones = layout.kernel().zones
    at, _left = fill_node(user, layout.struct("Zone", zones), 0)
    room.program(user, touch(at))
    room.program(other, reclaim_once(room, zones, FILE))
    room.check(lambda: user.load64(at) == NEW)


@scenario(frames=128)
def last_file_page_freed(room):
    """A task that needs a frame has nothing to free, as another one has just freed it: then there is a frame."""
    last_file_page(room, False)


@scenario(frames=128)
def last_file_page_kept(room):
    """As last_file_page_freed; the other one gives the page back, which may still be freed."""
    last_file_page(room, True)


@scenario(frames=128)
def reclaim_pagevec(room):
    """A task that needs a frame finds the only page that could be freed in another CPU's pagevec, from which it just
    enters a list; it was used, and so has to be looked at twice."""
    user, other = room.task(), room.task()
    for task in (user, other):
        task.set_mempolicy(C["MPOL_BIND"], [0])
    file = room.file(other, [OLD])
    # So that the page of the file needs no page table.
    anon, va = other.mmap(PAGE), other.mmap(PAGE, PROT_READ, MAP_SHARED, fd=file.fd)
    other.store64(anon, OLD)
    other.mlock(anon, PAGE)
    at, _left = fill_node(user, layout.struct("Zone", layout.kernel().zones), 1)
    other.load64(va)
    room.program(user, touch(at))
    room.program(other, lambda task: task.kernel("lru_add_drain"))
    room.check(lambda: user.load64(at) == NEW)


@scenario(frames=128)
def direct_reclaim_twice(room):
    """Two tasks touch a page each, of which both have to free one: there is enough for both."""
    user, other = room.task(), room.task()
    file = room.file(user, [OLD, OLD, OLD])
    for task in (user, other):
        task.set_mempolicy(C["MPOL_BIND"], [0])
    user.pread(file.fd, 3 * PAGE, 0)
    user.kernel("lru_add_drain_all")
    second = other.mmap(2 * PAGE)
    other.store64(second, OLD)
    at, left = fill_node(user, layout.struct("Zone", layout.kernel().zones), 0)
    room.program(user, touch(at))
    room.program(other, touch(second + PAGE))
    room.check(lambda: user.load64(at) == other.load64(second + PAGE) == NEW and left() == 1)


# ---- a page that comes back ------------------------------------------------------------

def swapped_neighbours(room):
    """A task of one node with two pages in neighbouring slots, which are read together, and a program that reclaims
    there both, if it finds them.  (user, va, evict)"""
    user = room.task()
    user.set_mempolicy(C["MPOL_BIND"], [0])
    va = user.mmap(2 * PAGE)
    swap_neighbours_out(room, user, va)
    return user, va, reclaim_once(room, layout.kernel().zones, ANON, 2)


@scenario
def swap_in_reclaim(room):
    """A load reads a page from its slot, and the next one with it, while reclaim takes them where they are: just
    read, in the swap cache with nobody who maps them, or mapped."""
    user, va, evict = swapped_neighbours(room)
    room.program(user, lambda task: task.load64(va))
    room.program(room.task(), evict)
    room.check(lambda seen, _none: seen == user.load64(va) == user.load64(va + PAGE) == OLD)


@scenario
def swap_in_reclaim_store(room):
    """As swap_in_reclaim; a store, whose page leaves the swap cache, and gets another slot if reclaim takes it."""
    user, va, evict = swapped_neighbours(room)
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(room.task(), evict)
    room.check(lambda: user.load64(va) == NEW and user.load64(va + PAGE) == OLD)


@scenario
def swap_in_reclaim_next(room):
    """A store to the page that was read ahead, while reclaim takes it and the one that was wanted first."""
    user, va, evict = swapped_neighbours(room)
    user.load64(va)
    user.kernel("lru_add_drain_all")
    room.program(user, lambda task: task.store64(va + PAGE, NEW))
    room.program(room.task(), evict)
    room.check(lambda: user.load64(va) == OLD and user.load64(va + PAGE) == NEW)


# ---- a charge ------------------------------------------------------------------------

def full_group(room):
    """A task in a group that may have two pages, and has one of its own and one of a file.  (user, page, move, at),
    with the file's page, a program that moves it, and an untouched page at `at`."""
    user = room.task()
    user.cgroup_attach(user.cgroup_create("group", 2 * PAGE))
    file = room.file(user, [OLD])
    va = user.mmap(2 * PAGE)
    user.store64(va, OLD)
    mapped = user.mmap(PAGE, PROT_READ, MAP_SHARED, fd=file.fd)
    user.load64(mapped)
    page, move = room.page_of(user, mapped), migrate_frame(user, mapped)
    user.munmap(mapped, PAGE)
    user.kernel("lru_add_drain_all")
    return user, page, move, va + PAGE


@scenario(memcg=True)
def limit_reclaim(room):
    """A task of a group at its limit has nothing to free, as reclaim of anybody's pages has just freed it: then
    there is room."""
    user, page, _move, at = full_group(room)
    room.program(user, touch(at))
    room.program(room.task(), reclaim_once(room, zone_of_page(page), FILE))
    room.check(lambda: user.load64(at) == NEW)


@scenario(memcg=True)
def limit_migrate(room):
    """A task of a group at its limit has nothing to free, as the only page that could be is being moved, which
    comes to nothing, there being no room for another one."""
    user, _page, move, at = full_group(room)
    room.program(user, touch(at))
    room.program(room.task(), move)
    room.check(lambda: user.load64(at) == NEW)


def charged_file(room, dirty):
    """A task in a group that is charged for a page of a file, which the task has mapped, but not used lately.
    (user, va, file, other)"""
    user, va, file, other = cached_page(room, dirty=dirty, group="group")
    user.kernel("page_referenced", room.page_of(user, va), 1, 0)
    return user, va, file, other


@scenario(memcg=True)
def charged_truncate(room):
    """A page that a group is charged for leaves its file while it is being moved, and with it both charges.  (There
    are more schedules of it than of most, for migration tries ten times; but nothing else takes a page of a file from
    between the two.)"""
    user, va, file, migrator = charged_file(room, dirty=False)
    group, move = group_of(user)[0], migrate_frame(user, va)
    user.munmap(va, PAGE)
    room.program(user, lambda task: task.kernel("truncate_inode_pages", file.mapping, 0))
    room.program(migrator, move)
    room.check(lambda: user.cgroup_stat(group)["usage"] == 0)


@scenario(memcg=True)
def charged_truncate_reclaim(room):
    """A file with a dirty page that a group is charged for becomes empty while reclaim takes the page."""
    truncate_reclaimed(room, at_limit=False)


@scenario(memcg=True)
def charged_truncate_limit(room):
    """As charged_truncate_reclaim, by reclaim at the group's limit, which finds the page by the group's list."""
    truncate_reclaimed(room, at_limit=True)


def truncate_reclaimed(room, at_limit):
    """The file of charged_file is cut off while its page, which is dirty, is reclaimed: the charge goes, once."""
    user, va, file, other = charged_file(room, dirty=True)
    group, memcg = group_of(user)
    zone, control = zone_of(user, va), scan_control(room, memcg if at_limit else 0)
    room.program(user, lambda task: task.ftruncate(file.fd, 0))
    room.program(other, lambda task: task.kernel("shrink_inactive_list", zone, FILE, 1, control))
    room.check(lambda: user.cgroup_stat(group)["usage"] == file.length == 0)


def uncharge_once(page):
    """A program that gives the charge of a page back unless it is in use: what is done when nobody was seen to use
    it."""
    kernel = layout.kernel()
    pc = kernel.page_cgroup + (page - kernel.mem_map) // layout.sizeof("Page") * layout.sizeof("PageCgroup")
    return lambda task: task.kernel("__mem_cgroup_uncharge_common", pc, C["PCG_MIGRATION"])


@scenario(memcg=True)
def uncharge_late(room):
    """A store brings a page back and takes it out of the swap cache, while somebody has seen before that nobody
    maps it, and looks once more, whether it is to be charged."""
    user, va, page, other = in_swap_cache(room, "group")
    room.program(user, lambda task: task.store64(va, NEW))
    room.program(other, uncharge_once(page))
    room.check(lambda: is_stored(user, va) and user.cgroup_stat(group_of(user)[0])["usage"] == PAGE)


@scenario(memcg=True)
def uncharge_late_reclaim(room):
    """As uncharge_late, while reclaim takes the page from its page table, but not from the swap cache, where it keeps
    its charge."""
    user, va, reclaimer = swappable_page(room, "group")
    page, evict = room.page_of(user, va), reclaim(room, user, va)
    other = room.task()
    other.kernel("get_page", page)
    room.begins_whole = False

    def uncharge(task):
        uncharge_once(page)(task)
        task.kernel("put_page", page)
    room.program(reclaimer, evict)
    room.program(other, uncharge)
    room.check(lambda: user.cgroup_stat(group_of(user)[0])["usage"] ==
               (PAGE if layout.struct("Page", page).flags >> C["PG_swapcache"] & 1 else 0))


# ---- a group -------------------------------------------------------------------------

@scenario(memcg=True)
def charged_drain(room):
    """A page comes back from swap into another group than the one that its frame was charged to before, while it
    enters its list, and its group's, from the CPU's pagevec."""
    user, va, _node, other = swapped_out(room, "group")
    old, new = group_of(user)[0], user.cgroup_create("other")
    user.cgroup_attach(new)
    room.program(user, lambda task: task.load64(va))
    room.program(other, lambda task: task.kernel("lru_add_drain_all"))
    room.check(lambda: (user.cgroup_stat(old)["usage"], user.cgroup_stat(new)["usage"]) == (0, PAGE))


@scenario(memcg=True)
def empty_group_reuse(room):
    """A group is emptied while reclaim frees its page, and the frame is charged to another group at once."""
    user, va, other = swappable_page(room, "group")
    group, memcg = group_of(user)
    evict, new = reclaim(room, user, va, memcg), user.cgroup_create("other")
    user.cgroup_attach(new)
    at = user.mmap(PAGE)

    def program(task):
        evict(task)
        task.store64(at, NEW)
    room.program(user, program)
    room.program(other, force_empty_of(group))
    room.check(lambda: user.cgroup_stat(new)["usage"] == PAGE)


def remove_of(group):
    """A program that removes a group, if it can."""
    def remove(task):
        try:
            task.cgroup_remove(group)
        except OSError as error:
            assert error.errno == errno.EBUSY
    return remove


@scenario(memcg=True)
def attach_remove(room):
    """A task is put into another group while it touches a page, and its old group is removed: it has the one or the
    other, and holds on to it."""
    user, other = room.task(), room.task()
    old, new = user.cgroup_create("old"), user.cgroup_create("new")
    user.cgroup_attach(old)
    va, pid = user.mmap(PAGE), user.pid
    remove = remove_of(old)

    def move(task):
        task.cgroup_attach(new, pid)
        remove(task)
    room.program(user, touch(va))
    room.program(other, move)
    room.check(lambda: user.load64(va) == NEW)


@scenario(memcg=True)
def limit_remove(room):
    """A group below one that is at its limit is removed while it is asked for pages."""
    user, other = room.task(), room.task()
    group = user.cgroup_create("group", PAGE)
    child = user.cgroup_create("child", parent=group)
    user.cgroup_attach(group)
    va = user.mmap(2 * PAGE)
    user.store64(va, OLD)
    room.program(user, lambda task: stores(task, va + PAGE, fault=OSError))
    room.program(other, remove_of(child))
    room.check(lambda stored, _none: not stored and user.load64(va) == OLD)


# ---- nodes that may be used -----------------------------------------------------------

def cpuset_there_and_back(room, *policy):
    """A task's cpuset gets another node, the last frame of its own goes, and comes back, and then so does the
    cpuset: it had memory all the time."""
    user, hog = room.task(), room.task()
    if policy:
        user.set_mempolicy(*policy)
    cpuset = user._cpuset_create(0, [0], 0)
    user._cpuset_attach(cpuset, user.pid)
    hog.set_mempolicy(C["MPOL_BIND"], [0])
    at, _left = fill_node(hog, layout.struct("Zone", layout.kernel().zones), 1)
    taken = []

    def allocate(task):
        page = task.kernel("alloc_page", GFP_HIGHUSER_MOVABLE)
        assert page
        task.kernel("put_page", page)

    def there(task):
        task._cpuset_set_mems(cpuset, [1])
        try:
            task.store64(at, OLD)
        except OSError:
            return
        task.kernel("lru_add_drain")
        taken.append(at)

    def back(task):
        if taken:
            task.munmap(at, PAGE)
            task._cpuset_set_mems(cpuset, [0])
    room.before_each_run(taken.clear)
    room.program(user, allocate)
    room.program(hog, there)
    room.program(room.task(shares=hog), back)


@scenario
def cpuset_flip(room):
    """A task's cpuset gets another node and its own again while the task allocates a page, with no mmap_sem held
    that would keep its cpuset from that."""
    cpuset_there_and_back(room)


@scenario
def cpuset_flip_interleave(room):
    """As cpuset_flip, by a policy that names a node for each page."""
    cpuset_there_and_back(room, C["MPOL_INTERLEAVE"], [0, 1])
