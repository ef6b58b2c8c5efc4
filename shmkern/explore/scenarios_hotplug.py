# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios of nodes that come back, and of what reclaim and swap do beside nodes that go.

May import: room, scenarios, scenarios_swap.
"""
from shmkern import layout
from shmkern.explore.room import C, PAGE, scenario
from shmkern.explore.scenarios import NEW, OLD, offline, page_on_last_node
from shmkern.explore.scenarios_swap import ANON, reclaim, scan_control, swap_neighbours_out, zone_of


def of_last_node(struct):
    """Its zone or its PgData, live."""
    kernel = layout.kernel()
    return layout.struct(struct, (kernel.zones if struct == "Zone" else kernel.nodes) + layout.sizeof(struct))


@scenario
def offline_bound(room):
    """A first touch by a task that may use only the node which goes offline: it has memory there, and then where
    its cpuset has none, but never none."""
    user, va, other = page_on_last_node(room)
    user._cpuset_attach(user._cpuset_create(0, [1], 0), user.pid)
    new = user.mmap(PAGE)
    room.program(user, lambda task: task.store64(new, NEW))
    room.program(other, offline)
    room.check(lambda _none, status: status == 0 and (user.load64(va), user.load64(new)) == (OLD, NEW))


@scenario
def online_bound(room):
    """As offline_bound, of a node that comes back: with its memory, and with what is kept of that."""
    user, va, other = page_on_last_node(room)
    user._cpuset_attach(user._cpuset_create(0, [1], 0), user.pid)
    kept = int(of_last_node("Zone").watermark[C["WMARK_MIN"]])
    other.offline_node(1)
    new = user.mmap(PAGE)
    room.program(user, lambda task: task.store64(new, NEW))
    room.program(other, lambda task: task.online_node(1))
    room.check(lambda: (user.load64(va), user.load64(new)) == (OLD, NEW) and
               of_last_node("Zone").watermark[C["WMARK_MIN"]] == kept > 0)


@scenario
def online_read(room):
    """A page of a file is read, with no mmap_sem held, while a node without pages goes offline and comes back:
    who chose the node before that, and gets its memory now, finds that in order."""
    away, user = room.task(), room.task()
    away.exit()
    other = room.task(shares=user)
    user.set_mempolicy(C["MPOL_PREFERRED"], [1])
    file = room.file(user, [OLD])

    def program(task):
        task.offline_node(1)
        task.online_node(1)
    room.program(user, lambda task: int.from_bytes(task.pread(file.fd, 8, 0), "little"))
    room.program(other, program)
    room.check(lambda seen, _none: seen == OLD)


@scenario
def offline_munmap(room):
    """A page that was read ahead is unmapped, and so leaves the swap cache and is freed, while its node goes
    offline and takes it from there."""
    user, va, other = page_on_last_node(room)
    swap_neighbours_out(room, user, va)
    user.load64(va + PAGE)
    user.kernel("lru_add_drain_all")
    room.program(user, lambda task: task.munmap(va, PAGE))
    room.program(other, offline)
    room.check(lambda _none, status: status == 0 and user.load64(va + PAGE) == OLD)


@scenario
def offline_reclaim(room):
    """Reclaim takes a page whose node goes offline, out of the swap cache where that looks for pages which were
    read ahead."""
    user, va, other = page_on_last_node(room)
    room.swapon(user, 4)
    user.kernel("shrink_active_list", zone_of(user, va), ANON, 2, scan_control(room))
    user.load64(va + PAGE)
    room.program(other, offline)
    room.program(room.task(shares=user), reclaim(room, user, va))
    room.check(lambda status, _none: status == 0 and user.load64(va) == user.load64(va + PAGE) == OLD)


@scenario
def online_kswapd(room):
    """A node's memory comes back while its kswapd, which was woken before it went, looks how much there is."""
    user, va, other = page_on_last_node(room)
    other.offline_node(1)
    node = of_last_node("PgData")
    node.kswapd_pid, node.kswapd_wait = other.pid, 1
    room.program(user, lambda task: task.online_node(1))
    room.program(other, lambda task: task.kernel("kswapd", 1))
    room.check(lambda: user.load64(va) == OLD and node.kswapd_wait == 0)
