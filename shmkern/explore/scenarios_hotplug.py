# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios of nodes that come back, and of what reclaim and swap do beside nodes that go.

May import: room, scenarios, scenarios_swap.
"""
from shmkern import layout
from shmkern.explore.room import PAGE, scenario
from shmkern.explore.scenarios import OLD, offline, page_on_last_node
from shmkern.explore.scenarios_swap import ANON, reclaim, scan_control, zone_of


def of_last_node(struct):
    """Its zone or its PgData, live."""
    kernel = layout.kernel()
    return layout.struct(struct, (kernel.zones if struct == "Zone" else kernel.nodes) + layout.sizeof(struct))


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
