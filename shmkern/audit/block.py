# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of the block: its header, its regions, the rings of its tracepoints, the zones of its nodes.

The first steps of audit.audit(): nothing can be trusted before check_header() and check_regions() have passed.
"""
import ctypes
import errno

import numpy as np

from shmkern import layout
from shmkern.audit.machine import TASK_SIZE

C = layout.constants
BASE = C["DIRECT_MAP_BASE"]
PAGE_SIZE = C["PAGE_SIZE"]
NODE_SHIFT = C["NODES_PGSHIFT"]

_libc = ctypes.CDLL(None, use_errno=True)


def is_mapped(address, size):
    """Whether all of that memory is mapped in this process.

    msync(2) with MS_ASYNC does nothing but say ENOMEM when some of it is not.  To read /proc/self/maps
    takes as long as a quarter of the audit of a small machine.
    """
    return address + size <= TASK_SIZE and _libc.msync(ctypes.c_void_p(address), ctypes.c_size_t(size), C["MS_ASYNC"]) == 0


def check_header(report):
    """The first page says what the block is; nothing else can be trusted if it does not.

    Raises OSError(ENXIO) when nothing is mapped at DIRECT_MAP_BASE.
    """
    if not is_mapped(BASE, PAGE_SIZE):
        raise OSError(errno.ENXIO, "no machine is mapped in this process")
    if not is_mapped(BASE, PAGE_SIZE + layout.sizeof("Kernel")):
        report.add("block", "the block ends before struct Kernel does", address=BASE)
        return False
    header = layout.header()
    for field, expected in (("magic", C["BLOCK_MAGIC"]), ("layout_hash", layout.layout_hash()),
                            ("base", BASE)):
        if header[field] != expected:
            report.add("block", f"block_header.{field} is wrong", address=BASE,
                       expected=hex(expected), found=hex(header[field]))
    if not is_mapped(BASE, header.size):
        report.add("block", "block_header.size is more than is mapped", address=BASE, found=header.size)
    return not report.findings


def check_regions(report):
    """The tables that Kernel points to lie in the block, whole, aligned and apart.

    Everything later indexes them without looking again.
    """
    kernel = layout.kernel()
    bounds = (("nr_nodes", C["MAX_NUMNODES"]), ("frames_per_node", 1 << 40),
              ("max_tasks", C["NR_CPUS"]))
    for field, most in bounds:
        if not 1 <= kernel[field] <= most:
            report.add("block", f"kernel.{field} is out of range", expected=f"1 to {most}",
                       found=kernel[field])
    if kernel.max_pfn != kernel.nr_nodes * kernel.frames_per_node:
        report.add("block", "kernel.max_pfn is not nr_nodes * frames_per_node",
                   expected=kernel.nr_nodes * kernel.frames_per_node, found=kernel.max_pfn)
    if not kernel.slab_base <= kernel.slab_next <= kernel.slab_end or (kernel.slab_next - kernel.slab_base) % PAGE_SIZE:
        report.add("block", "kernel.slab_next lies outside the slab", found=hex(kernel.slab_next),
                   expected=f"{kernel.slab_base:#x} to {kernel.slab_end:#x}, by pages")
    if not kernel.zero_pfn < kernel.max_pfn:
        report.add("block", "kernel.zero_pfn is no frame", expected=f"below {kernel.max_pfn}",
                   found=kernel.zero_pfn)
    for field, most in (("nr_caches", C["SLAB_CACHES_MAX"]), ("nr_swapfiles", C["MAX_SWAPFILES"])):
        if kernel[field] > most:
            report.add("block", f"kernel.{field} is out of range", found=kernel[field], expected=f"at most {most}")
    if report.findings:
        return False
    regions = [("struct Kernel", BASE, PAGE_SIZE + layout.sizeof("Kernel"), 8)]
    for field, name, count in (
            ("mem_map", "Page", kernel.max_pfn), ("tasks", "Task", kernel.max_tasks),
            ("zones", "Zone", kernel.nr_nodes), ("nodes", "PgData", kernel.nr_nodes)):
        regions.append((f"kernel.{field}", kernel[field], count * layout.sizeof(name), 8))
    regions.append(("kernel.wait_table", kernel.wait_table, C["WAIT_TABLE_SIZE"] * layout.sizeof("WaitQueueHead"), 4))
    if kernel.page_cgroup:
        regions.append(("kernel.page_cgroup", kernel.page_cgroup,
                        kernel.max_pfn * layout.sizeof("PageCgroup"), 8))
    if kernel.swap_maps_size:
        regions.append(("kernel.swap_maps", kernel.swap_maps, kernel.swap_maps_size * 2, 2))
    slab_size, frames_size = kernel.slab_end - kernel.slab_base, kernel.max_pfn * PAGE_SIZE
    regions.append(("kernel.slabs", kernel.slabs, slab_size // PAGE_SIZE * layout.sizeof("Slab"), 8))
    regions.append(("kernel.slab_base", kernel.slab_base, slab_size, 8))
    regions.append(("kernel.frames_base", kernel.frames_base, frames_size, PAGE_SIZE))
    free_from, before = BASE, "the start of the block"
    for what, start, size, alignment in sorted(regions, key=lambda region: region[1]):
        if start < free_from or start + size > BASE + layout.header().size or start % alignment:
            report.add("block", f"{what} does not fit between {before} and the end of the block",
                       address=start, expected=f"{free_from:#x} or above", found=hex(start))
        free_from, before = start + size, what
    check_trace_rings(report, kernel)
    return not report.findings


def check_trace_rings(report, kernel):
    """Trace rings lie behind the block, in the addresses that are mapped for them, and are
    written only while somebody traces."""
    events = kernel.trace_ring_events
    end = kernel.trace_rings + kernel.max_tasks * events * layout.sizeof("TraceEvent")
    header = layout.header()
    if events and (events & (events - 1) or kernel.trace_rings < BASE + header.size
                   or end > BASE + header.address_size):
        report.add("block", f"trace rings of {events} events do not fit behind the block",
                   address=kernel.trace_rings, expected=f"{BASE + header.size:#x} to {BASE + header.address_size:#x}",
                   found=f"{kernel.trace_rings:#x} to {end:#x}")
    if kernel.trace_events and not (events and kernel.trace_owner):
        report.add("block", "events are traced, and there is no ring or nobody to read it", expected=0,
                   found=hex(kernel.trace_events))


def check_zones(m):
    """Node n has one zone, of its frames_per_node frames, and each page's flags say n."""
    nodes = layout.view("PgData", m.kernel.nodes, m.kernel.nr_nodes)
    for nid, zone in enumerate(m.zones):
        expected = {"node": nid, "zone_start_pfn": nid * m.zone_size, "spanned_pages": m.zone_size}
        for field, value in expected.items():
            if zone[field] != value:
                m.report.add("zone", f"zone {nid}: {field} is wrong", expected=value,
                             found=zone[field])
        if zone["present_pages"] not in (0, m.zone_size):
            m.report.add("zone", f"zone {nid}: present_pages is neither nothing nor all",
                         found=zone["present_pages"])
        has_memory = int(m.kernel.node_states[C["N_HIGH_MEMORY"]]) >> nid & 1
        if has_memory != (zone["present_pages"] != 0):
            m.report.add("zone", f"node {nid}: N_HIGH_MEMORY is wrong", expected=int(zone["present_pages"] != 0),
                         found=has_memory)
        if zone["isolated"]:
            m.report.add("zone", f"zone {nid} is isolated, and nobody is taking it offline", found=zone["isolated"])
        address = m.kernel.zones + nid * layout.sizeof("Zone")
        if nodes["node_zone"][nid] != address:
            m.report.add("zone", f"node {nid}: node_zone is another zone", expected=hex(address),
                         found=hex(nodes["node_zone"][nid]))
    check_node_states(m)
    check_nodes(m, nodes)
    m.absent = np.repeat(m.zones["present_pages"] == 0, m.zone_size)
    node = (m.flags >> NODE_SHIFT).reshape(-1, m.zone_size)
    right = np.arange(len(m.zones), dtype=np.uint64)[:, None]
    m.report.each((node != right).ravel(), "zone", lambda pfn: (
        "the node in the page's flags is wrong",
        {"page": pfn, "expected": pfn // m.zone_size, "found": m.flags[pfn] >> NODE_SHIFT}))


def check_node_states(m):
    """Memory that the kernel may use is memory, which only a node that is online has; all nodes
    are possible."""
    states = [int(m.kernel.node_states[C[name]])
              for name in ("N_NORMAL_MEMORY", "N_HIGH_MEMORY", "N_ONLINE", "N_POSSIBLE")] + \
             [(1 << m.kernel.nr_nodes) - 1]
    for some, more in zip(states, states[1:]):
        if some & ~more:
            m.report.add("zone", "node_states: a node is in a state without being in the one below it",
                         expected=hex(more), found=hex(some))
    if m.kernel.isolated_nodes:
        m.report.add("zone", "isolated_nodes: nobody is taking a node offline", found=hex(m.kernel.isolated_nodes))


def check_nodes(m, nodes):
    """A node knows its number, what its memory is for, and the way to the others: its zonelist begins with
    itself and has each node once.  Its kswapd is there.  Its zone's watermarks are in order."""
    pids = {0, *m.pid[m.running].tolist()}
    for nid, (node, zone) in enumerate(zip(nodes, m.zones)):
        has_memory, for_kernel = (int(m.kernel.node_states[C[name]]) >> nid & 1
                                  for name in ("N_HIGH_MEMORY", "N_NORMAL_MEMORY"))
        around = node["zonelist"].tolist()
        if sorted(around[:len(nodes)]) != list(range(len(nodes))) or around[0] != nid or \
                any(place != -1 for place in around[len(nodes):]):
            m.report.add("zone", f"node {nid}: zonelist is not all nodes, beginning with this one", found=str(around))
        marks = zone["watermark"].tolist()
        for what, wrong, found in (
                ("node_id is wrong", node["node_id"] != nid, node["node_id"]),
                ("memoryless, and it has memory", node["memoryless"] and has_memory, node["memoryless"]),
                ("movable, and the kernel may use its memory", node["movable"] and for_kernel, node["movable"]),
                ("kswapd_pid is no task's", node["kswapd_pid"] not in pids, node["kswapd_pid"]),
                ("its zone's watermarks are not in order", marks != sorted(marks), str(marks))):
            if wrong:
                m.report.add("zone", f"node {nid}: {what}", found=found)
