# SPDX-License-Identifier: GPL-2.0-only
"""The project's scenarios of nodes that come back, and of what reclaim and swap do beside nodes that go.

May import: room, scenarios, scenarios_swap.
"""
from shmkern import layout
from shmkern.explore.room import scenario
from shmkern.explore.scenarios import OLD, page_on_last_node


def of_last_node(struct):
    """Its zone or its PgData, live."""
    kernel = layout.kernel()
    return layout.struct(struct, (kernel.zones if struct == "Zone" else kernel.nodes) + layout.sizeof(struct))


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
