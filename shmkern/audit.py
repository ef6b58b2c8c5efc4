# SPDX-License-Identifier: GPL-2.0-only
"""What must hold in a machine that stands still, computed from the page tables up.

Primary state is what the machine means: which tasks run which address space, its VMAs,
its page tables.  All the rest (reference and map counts, rmap, LRU and free lists,
counters, TLBs, lock words) follows from it.  The audit computes what follows and
compares it with what the block says; each difference is a Finding.

The machine is a patient that may be badly hurt: no pointer is followed before it is
known to lead to a whole object of the right region, every walk of a list is bounded,
and whatever fails that is a finding too.  So the audit itself neither crashes nor hangs.

How it is fast: struct page is read once into columns, the last-level page tables are
taken out of the frames with one indexing, and every check is an operation on these
arrays.  Lists of a million pages are not walked (see audit_lists).  Only objects that are few (VMAs, address spaces, free slab objects) are
visited one by one.

Still means that nobody is inside the kernel.  Tasks may go on accessing memory that is
mapped: their MMUs fill TLBs and set ACCESSED and DIRTY in PTEs, and nothing else.  So the
TLBs are read before the PTEs that they must agree with.

May import: layout, audit_lists, audit_memcg.  Takes no lock; whoever calls it has frozen the machine.
"""
import ctypes
import errno
from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np

from shmkern import audit_memcg, layout, vmstat
from shmkern.audit_lists import check_rings, lru_of, ring_links

C = layout.constants

BASE = C["DIRECT_MAP_BASE"]
PAGE_SIZE = C["PAGE_SIZE"]
PAGE_SHIFT = C["PAGE_SHIFT"]
POISON_FREE_WORD = int.from_bytes(bytes([C["POISON_FREE"]]) * 8, "little")
NODE_SHIFT = C["NODES_PGSHIFT"]
ANON = C["PAGE_MAPPING_ANON"]
NR_LRU = C["NR_LRU_LISTS"]
MAX_ORDER = C["MAX_ORDER"]

PRESENT, RW, USER = C["_PAGE_PRESENT"], C["_PAGE_RW"], C["_PAGE_USER"]
ACCESSED, DIRTY, PTE_FILE = C["_PAGE_ACCESSED"], C["_PAGE_DIRTY"], C["_PAGE_FILE"]
PROTNONE, SPECIAL = C["_PAGE_PROTNONE"], C["_PAGE_SPECIAL"]
NX = np.uint64(1 << 63)
PTE_BITS = {"PRESENT": PRESENT, "RW": RW, "USER": USER, "ACCESSED": ACCESSED, "DIRTY": DIRTY,
            "PROTNONE": PROTNONE, "SPECIAL": SPECIAL, "NX": int(NX)}
ENTRIES = C["PTRS_PER_TABLE"]
# Macros in pagetable.pxd, so layout does not know them.
PTE_PFN_MASK = 0x000ffffffffff000
TASK_SIZE = 0x7ffffffff000
VM_WRITE, VM_ACCESS = C["VM_WRITE"], C["VM_ACCESS_FLAGS"]

# An address space and a page number in one sortable number.
VPN_BITS = 36

LRU_NAMES = sorted((name for name in C if name.startswith("LRU_")), key=C.get)
PAGE_FLAGS = {name: C[name] for name in C if name.startswith("PG_")}
MAPPED_BY_MAX = 4
# Of one sort of damage this many findings are told in full; the rest are counted.
LIMIT = 16


# ---- what an audit says -----------------------------------------------------

@dataclass
class Finding:
    """One thing that does not hold.

    `kind` is the promise broken: block, zone, task, mm, vma, rbtree, anon_vma, pagetable,
    policy, cpuset, pte, device, mlock, migration_entry, rmap, mapcount, refcount, leak, owner, flags, file,
    page_tree, i_mmap, buffer, swap, free_page, buddy, free_list, lru, pagevec, counter, tlb, lock, slab, rcu,
    poison, memcg.  `page` is a page frame
    number, `task` a pid, `mm` an address space's id, `address` a virtual address or that of
    a kernel object.
    """
    kind: str
    message: str
    page: int | None = None
    task: int | None = None
    mm: int | None = None
    address: int | None = None
    expected: int | str | None = None
    found: int | str | None = None

    def __str__(self):
        where = [f"{name} {value}" for name, value in
                 (("page", self.page), ("task", self.task), ("mm", self.mm)) if value is not None]
        if self.address is not None:
            where.append(f"at {self.address:#x}")
        text = f"{self.kind}: {self.message}" + (f" [{', '.join(where)}]" if where else "")
        values = [f"{name} {value}" for name, value in
                  (("expected", self.expected), ("found", self.found)) if value is not None]
        return f"{text}: {', '.join(values)}" if values else text


class AuditError(Exception):
    """A machine is broken; `findings` says how."""

    def __init__(self, findings):
        super().__init__("\n".join(["the audit found a broken machine:", *map(str, findings)]))
        self.findings = findings


class Audit:
    """The outcome: `findings`, empty when all promises held."""

    def __init__(self, findings):
        self.findings = findings

    @property
    def clean(self):
        return not self.findings

    def raise_if_broken(self):
        """Raises AuditError listing the findings, if there are any."""
        if self.findings:
            raise AuditError(self.findings)

    def to_json(self):
        """The findings as a list of dicts of plain values."""
        return [asdict(finding) for finding in self.findings]

    def __str__(self):
        if self.clean:
            return "audit: clean"
        return "\n".join([f"audit: {len(self.findings)} findings",
                          *(f"  {finding}" for finding in self.findings)])


class _Report:
    """Collects findings."""

    def __init__(self):
        self.findings = []

    def add(self, kind, message, **details):
        """One finding; numpy's numbers become Python's, so that they print and encode."""
        plain = {name: value.item() if isinstance(value, np.generic) else value
                 for name, value in details.items()}
        self.findings.append(Finding(kind, message, **plain))

    def each(self, broken, kind, describe):
        """One finding for each element of the mask `broken` that is set.

        `describe(i)` gives the message and a dict of details; it runs LIMIT times at most,
        so it may search.
        """
        indices = broken.nonzero()[0]
        for index in indices[:LIMIT].tolist():
            message, details = describe(index)
            self.add(kind, message, **details)
        if len(indices) > LIMIT:
            self.add(kind, f"... and {len(indices) - LIMIT} more like the last one")


def page_flags_text(flags):
    """struct page flags in words: "PG_lru|PG_active, node 1"."""
    names = [name for name, bit in PAGE_FLAGS.items() if flags >> bit & 1]
    return f"{'|'.join(names) or '0'}, node {flags >> NODE_SHIFT}"


def pte_text(pte):
    """A PTE in words."""
    if pte == 0:
        return "none"
    if pte & (PRESENT | PROTNONE):
        names = [name for name, bit in PTE_BITS.items() if pte & bit]
        return f"page {(pte & PTE_PFN_MASK) >> PAGE_SHIFT} {'|'.join(names)}"
    kind, offset = pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"], pte >> C["SWP_OFFSET_SHIFT"]
    if kind >= C["SWP_MIGRATION_READ"]:
        how = "write" if kind == C["SWP_MIGRATION_WRITE"] else "read"
        return f"{how} migration entry of page {offset}"
    return f"swap entry of type {kind}, offset {offset}"


# ---- the machine as arrays --------------------------------------------------

class _Machine:
    """The block in the form that the checks want.  Made when check_header() and
    check_regions() have passed.

    Columns of struct page, one element a frame:
        flags count mapcount mapping index private_word next prev
    Filled in by the find_* functions, in this order:
        cache_of                                number of the cache of each struct
        free_objects                            addresses of free slab objects
        users_of, mm, mm_address                address space of each slot (-1: none); MmStruct
                                                rows and their addresses
        vma, vma_address, vma_mm                VmAreaStruct rows, by address space and order
        absent                                  which frames are not there: their node has no memory
        anon_vmas, rcu_pending                  addresses of AnonVma objects, and by struct of what waits for RCU
        inode, inode_address, file_address      rows and addresses of inodes, addresses of open files
        files, vma_mapping                      users of descriptor tables; mapping of each VMA's file
        cached, tagged, accounts, behind        which pages are in a page tree, are tagged dirty there,
                                                have their dirt counted, and lie behind their file's end
        swap_maps, swap_uses, swapped           {area: its counts, and how often each slot is used}, and
                                                which pages are in the swap cache
        private, nr_buffers                     which pages have buffers, and how many there are
        policies                                {address: [details of who has it]} of Mempolicy objects
        shared_policies                         {address of an SpNode: that of its policy}
        table, table_mm, leaf_mm                which frames are page tables, and whose
        pte, pte_mm, pte_vpn, pte_key, pte_pfn, pte_vma   one element an entry, sorted by key
        maps, map_pfn                           the entries that map a frame that counts, and it
        nr_maps, nr_held                        PTEs, pagevec slots that lead to each frame
        mem_cgroup_address, mem_cgroup, mem_cgroup_zones, page_cgroup, group_of   see audit_memcg
        free                                    which frames lie in a free block
    """

    def __init__(self, report):
        self.report = report
        self.kernel = kernel = layout.kernel()
        self.max_pfn = kernel.max_pfn
        self.slab_base, self.slab_used = kernel.slab_base, kernel.slab_next - kernel.slab_base
        self.slabs = layout.view("Slab", kernel.slabs, self.slab_used // PAGE_SIZE)
        self.arena = layout.view("u64", self.slab_base, self.slab_used // 8).reshape(-1, ENTRIES)
        self.zone_size = kernel.frames_per_node
        self.words = layout.view("u64", BASE, layout.header().size // 8)
        self.quads = memoryview(self.words)
        self.frames = layout.view("u64", kernel.frames_base, self.max_pfn * ENTRIES
                                  ).reshape(self.max_pfn, ENTRIES)
        self.zones = layout.view("Zone", kernel.zones, kernel.nr_nodes)
        self.tasks = layout.view("Task", kernel.tasks, kernel.max_tasks)
        self.state = self.tasks["state"].copy()
        self.running = self.state == C["TASK_RUNNING"]
        self.live = self.running | (self.state == C["TASK_EMBRYO"])
        self.pid = self.tasks["pid"].copy()
        # CPUs of tasks that are outside an access, and what they have cached, before any PTE is read.
        self.quiet = np.flatnonzero(self.running & (self.tasks["access_seq"] % 2 == 0))
        self.tlb = self.tasks["tlb"][self.quiet]
        pages = layout.view("Page", kernel.mem_map, self.max_pfn)
        for column, field in (("flags", "flags"), ("count", "_count"), ("mapcount", "_mapcount"),
                              ("mapping", "mapping"), ("index", "index"), ("private_word", "private")):
            setattr(self, column, np.ascontiguousarray(pages[field]))
        self.next = np.ascontiguousarray(pages["lru"]["next"])
        self.prev = np.ascontiguousarray(pages["lru"]["prev"])
        self.ptl = pages["ptl"]
        self.object_size = {name: layout.sizeof(name) for name in (
            "VmAreaStruct", "MmStruct", "Mempolicy", "SpNode", "AnonVma", "RadixTreeNode", "Inode", "File", "FilesStruct",
            "BufferHead", "MemCgroup", "MemCgroupPerZone")}
        self.cache_of = {}
        self.free_objects = set()

    def has(self, *names):
        """Mask of the pages that have any of these flags."""
        return (self.flags & sum(1 << PAGE_FLAGS[name] for name in names)) != 0

    def per_zone(self, per_page):
        """Sums of a mask or count of pages over each zone."""
        return per_page.reshape(-1, self.zone_size).sum(axis=1)

    def u64(self, address):
        """The word at an address of the block that is known to be good."""
        return self.quads[(address - BASE) >> 3]

    def gather(self, addresses, name):
        """Copies of the structs at `addresses`, as a structured array."""
        if not len(addresses):
            return np.zeros(0, layout.dtypes[name])
        first = (np.array(addresses, np.uint64) - BASE) >> 3
        words = np.arange(layout.sizeof(name) // 8, dtype=np.uint64)
        return self.words[first[:, None] + words].view(layout.dtypes[name])[:, 0]

    def cache_addresses(self):
        """The addresses of all slab caches."""
        first = self.kernel.address + layout.offsetof("Kernel", "caches")
        return [first + index * layout.sizeof("KmemCache") for index in range(self.kernel.nr_caches)]

    def object_fault(self, address, name):
        """Why no live slab object of this struct can be at `address`; None when one can.

        None also means that the memory is there to be read.
        """
        size, offset = self.object_size[name], address - self.slab_base
        if not 0 <= offset < self.slab_used:
            return "lies outside the slab"
        if offset % PAGE_SIZE % size or offset % PAGE_SIZE + size > PAGE_SIZE:
            return "is not the start of an object"
        cache = self.slabs["cache"][offset // PAGE_SIZE]
        if name in self.cache_of and cache != self.cache_addresses()[self.cache_of[name]]:
            return "lies in a slab of another cache"
        if address in self.free_objects:
            return "is a freed object"
        return None

    def pids_of(self, mm):
        """The pids of the tasks that run address space number `mm`."""
        return self.pid[self.users_of == mm].tolist()

    def whose(self, mm):
        """The details of a finding about address space number `mm`."""
        return {"task": next(iter(self.pids_of(mm)), None), "mm": int(self.mm["id"][mm])}

    def mm_text(self, mm):
        """An address space by its tasks."""
        pids = self.pids_of(mm)
        return f"mm {self.mm['id'][mm]} of task{'s'[:len(pids) != 1]} " + \
            (", ".join(map(str, pids)) or "none")

    def mapped_by(self, pfn):
        """(text, details): who maps a page, and the first of them."""
        at = np.flatnonzero(self.map_pfn == pfn)
        entries = self.maps[at[:MAPPED_BY_MAX]]
        if not len(entries):
            return "mapped by nobody", {"page": pfn}
        places = [f"{self.mm_text(self.pte_mm[entry])} at {self.pte_vpn[entry] << PAGE_SHIFT:#x}"
                  for entry in entries]
        if len(at) > MAPPED_BY_MAX:
            places.append(f"{len(at) - MAPPED_BY_MAX} more")
        return "mapped by " + "; ".join(places), \
            {"page": pfn, "address": int(self.pte_vpn[entries[0]]) << PAGE_SHIFT,
             **self.whose(self.pte_mm[entries[0]])}

    def pte_details(self, entry):
        """The details of a finding about one PTE."""
        pfn = int(self.pte_pfn[entry])
        return {"page": pfn if pfn < self.max_pfn else None,
                "address": int(self.pte_vpn[entry]) << PAGE_SHIFT, **self.whose(self.pte_mm[entry])}

    def holder_text(self, word):
        """Who holds a lock, by its word."""
        cpu = (word & ~C["SPIN_WAITERS"] & 0xffffffff) - 1
        return f"CPU {cpu}, task {self.pid[cpu]}" if 0 <= cpu < len(self.pid) else f"CPU {cpu}"


# ---- the block and its zones ------------------------------------------------

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


# ---- slab -------------------------------------------------------------------

def cache_name(m, index):
    """The name of a cache, or its number."""
    return m.kernel.caches["name"][index].decode("ascii", "replace") or f"cache {index}"


def find_caches(m):
    """Learns the object sizes of the caches that the audit knows.  Kernel's pointers to
    them lead into Kernel.caches, and the objects are large enough for their structs."""
    addresses = m.cache_addresses()
    known = [("VmAreaStruct", "vm_area_cachep"), ("MmStruct", "mm_cachep"), ("AnonVma", "anon_vma_cachep"),
             ("Mempolicy", "policy_cachep"), ("SpNode", "sp_cachep"),
             ("RadixTreeNode", "radix_tree_node_cachep"), ("Inode", "inode_cachep"),
             ("File", "filp_cachep"), ("FilesStruct", "files_cachep"), ("BufferHead", "buffer_head_cachep")]
    if m.kernel.page_cgroup:
        known += [("MemCgroup", "mem_cgroup_cachep"), ("MemCgroupPerZone", "mem_cgroup_per_zone_cachep")]
    for struct, field in known:
        if m.kernel[field] not in addresses:
            m.report.add("slab", f"kernel.{field} is no cache", address=m.kernel[field])
            continue
        index = addresses.index(m.kernel[field])
        size = int(m.kernel.caches["object_size"][index])
        m.cache_of[struct] = index
        if not layout.sizeof(struct) <= size <= PAGE_SIZE or size % 8:
            m.report.add("slab", f"{cache_name(m, index)}: object_size does not fit {struct}",
                         expected=layout.sizeof(struct), found=size)
        else:
            m.object_size[struct] = size


def find_free_objects(m):
    """Each slab's free list and inuse count make up all its objects, none twice, each filled
    with POISON_FREE but for the link; no free object was written to since.  The slabs of a
    cache add up to its counters, its partial list has those with free objects, and the pages
    without a cache are on slabs_free."""
    kernel, slabs = m.kernel, m.slabs
    caches = m.cache_addresses()
    m.report.each((slabs["cache"] != 0) & ~np.isin(slabs["cache"], caches), "slab", lambda page: (
        "a slab is that of no cache", {"address": m.slab_base + page * PAGE_SIZE, "found": hex(slabs["cache"][page])}))
    for index, address in enumerate(caches):
        cache, name = kernel.caches[index], cache_name(m, index)
        size = int(cache["object_size"])
        if not 16 <= size <= PAGE_SIZE or size % 8:
            m.report.add("slab", f"{name}: object_size is out of range", found=size)
            continue
        mine = np.flatnonzero(slabs["cache"] == address).tolist()
        found = {page: free_objects_of_slab(m, name, size, page) for page in mine}
        free = [address for objects in found.values() for address in objects]
        for counter, expected in (("nr_objects", len(mine) * (PAGE_SIZE // size)), ("nr_free", len(free))):
            if cache[counter] != expected:
                m.report.add("slab", f"{name}: {counter} is not what its slabs add up to", expected=expected,
                             found=cache[counter])
        partial = address + layout.offsetof("KmemCache", "slabs_partial")
        check_slab_list(m, f"{name}: slabs_partial", partial, [page for page in mine if found[page]])
        check_object_poison(m, name, size, np.array(free, np.uint64))
    unused = np.flatnonzero(slabs["cache"] == 0).tolist()
    check_slab_list(m, "kernel.slabs_free", kernel.address + layout.offsetof("Kernel", "slabs_free"), unused)
    m.report.each((m.arena[unused] != POISON_FREE_WORD).any(axis=1), "slab", lambda at: (
        "a free page of the slab arena was written to", {"address": m.slab_base + unused[at] * PAGE_SIZE}))


def free_objects_of_slab(m, name, size, page):
    """The addresses on a slab's free list, as far as it can be followed."""
    found, address = [], int(m.slabs["freelist"][page])
    m.object_size["free"] = size
    while address:
        fault = "is on a free list already" if address in m.free_objects else m.object_fault(address, "free")
        if not fault and (address - m.slab_base) // PAGE_SIZE != page:
            fault = "lies in another slab"
        if fault:
            m.report.add("slab", f"{name}: an entry of a free list {fault}", address=address)
            break
        found.append(address)
        m.free_objects.add(address)
        address = m.u64(address)
    if len(found) + m.slabs["inuse"][page] != PAGE_SIZE // size:
        m.report.add("slab", f"{name}: a slab's free list is not as long as inuse says",
                     address=m.slab_base + page * PAGE_SIZE, expected=PAGE_SIZE // size - int(m.slabs["inuse"][page]),
                     found=len(found))
    return found


def check_slab_list(m, name, head, pages):
    """A list of slabs is whole and has the slabs of these arena pages."""
    links = {m.kernel.slabs + page * layout.sizeof("Slab"): page for page in range(len(m.slabs))}
    seen, before, at = [], head, m.u64(head)
    while at != head:
        if at not in links or links[at] in seen or m.slabs["list"]["prev"][links[at]] != before:
            m.report.add("slab", f"{name} is broken", address=before, found=hex(at))
            return
        seen.append(links[at])
        before, at = at, int(m.slabs["list"]["next"][links[at]])
    if m.u64(head + 8) != before:
        m.report.add("slab", f"{name} is broken", address=head, expected=hex(before), found=hex(m.u64(head + 8)))
    for page in set(pages).symmetric_difference(seen):
        m.report.add("slab", f"{name} has a slab it should not have" if page in seen else f"{name} lacks a slab",
                     address=m.slab_base + page * PAGE_SIZE)


def check_object_poison(m, name, size, addresses):
    """All words of a free object but its first are POISON_FREE."""
    if not len(addresses):
        return
    words = np.arange(1, size // 8, dtype=np.uint64)
    contents = m.words[((addresses - BASE) >> 3)[:, None] + words]
    m.report.each((contents != POISON_FREE_WORD).any(axis=1), "slab", lambda i: (
        f"{name}: a free object was written to",
        {"address": addresses[i], "expected": hex(POISON_FREE_WORD),
         "found": hex(contents[i][contents[i] != POISON_FREE_WORD][0])}))


def rcu_object(m, head):
    """(struct, address) of the object that an entry of the RCU queue lies in; what is freed by RCU
    are anon_vmas, inodes and nodes of page trees.  (None, why not) when it lies in none of them."""
    for struct in m.rcu_pending:
        address = head - layout.offsetof(struct, "rcu")
        fault = m.object_fault(address, struct)
        if not fault:
            return struct, address
    return None, fault


def find_rcu_pending(m):
    """The RCU queue, from rcu_head to rcu_tail, has rcu_pending entries, each inside the object
    that it is going to free, in the order of their epochs; and nobody is freeing any."""
    kernel = m.kernel
    cachep = {"RadixTreeNode": kernel.radix_tree_node_cachep, "Inode": kernel.inode_cachep,
              "AnonVma": kernel.anon_vma_cachep}
    m.rcu_pending, head, last, epoch = {struct: set() for struct in cachep}, kernel.rcu_head, 0, 0
    while head:
        struct, address = rcu_object(m, head)
        fault = address if struct is None else \
            "is queued twice" if address in m.rcu_pending[struct] else None
        if fault:
            m.report.add("rcu", f"an entry of the RCU queue {fault}", address=head)
            return
        entry = layout.struct("RcuHead", head)
        if (entry.object, entry.cache) != (address, cachep[struct]):
            m.report.add("rcu", f"an entry of the RCU queue frees something else than the {struct} it lies in",
                         address=head, found=hex(entry.object), expected=hex(address))
        # Readers are waited for by epoch, and the queue is cut where they begin.
        if not epoch <= entry.epoch <= kernel.rcu_epoch:
            m.report.add("rcu", "an entry of the RCU queue is of an epoch before that of the one ahead, or of none yet",
                         address=head, expected=f"{epoch} to {kernel.rcu_epoch}", found=entry.epoch)
        m.rcu_pending[struct].add(address)
        last, head, epoch = head, entry.next, entry.epoch
    if last != kernel.rcu_tail:
        m.report.add("rcu", "rcu_tail is not the end of the RCU queue", expected=hex(last),
                     found=hex(kernel.rcu_tail))
    queued = sum(len(addresses) for addresses in m.rcu_pending.values())
    if queued != kernel.rcu_pending:
        m.report.add("rcu", "the RCU queue is not as long as rcu_pending", expected=queued, found=kernel.rcu_pending)
    if kernel.rcu_freers:
        m.report.add("rcu", "rcu_freers is not 0, and nobody is in the kernel", expected=0, found=kernel.rcu_freers)


def check_slab_usage(m):
    """Every object that is not free was reached: a VMA by its address space, an address
    space by init_mmlist or a task, an anon_vma by a VMA or the RCU queue, a policy by a task, a VMA
    or a range of an inode's, such a range by the inode, that by the list or the RCU queue, an open file
    by a descriptor or a VMA, a node of a page tree by the tree, a task's preloads or the RCU queue, a
    buffer by its page, a group by the list.  More is a leak."""
    reached = {"VmAreaStruct": len(m.vma), "MmStruct": len(m.mm),
               "AnonVma": len(m.rcu_pending["AnonVma"].union(m.anon_vmas)), "Mempolicy": len(m.policies),
               "SpNode": len(m.shared_policies),
               "RadixTreeNode": len(m.tree_nodes | m.rcu_pending["RadixTreeNode"]),
               "Inode": len(m.inode) + len(m.rcu_pending["Inode"]),
               "File": len(m.file_address), "FilesStruct": len(m.files), "BufferHead": m.nr_buffers,
               "MemCgroup": len(m.mem_cgroup), "MemCgroupPerZone": len(set(m.mem_cgroup_zones))}
    for struct, index in m.cache_of.items():
        cache = m.kernel.caches[index]
        live = int(cache["nr_objects"]) - int(cache["nr_free"])
        if live != reached[struct]:
            m.report.add("slab", f"{cache_name(m, index)}: objects in use are not those that can "
                         "be reached", expected=reached[struct], found=live)


# ---- tasks and address spaces -----------------------------------------------

def check_tasks(m):
    """A slot's number is its index; live tasks have different pids; a task that stands still
    outside the kernel holds nothing: no spinlock (preempt_count), no sleeping lock, no RCU
    read section, no page that it frees or moves; it does not stand at a tracepoint, and has none
    of the rights that the kernel has for a while: to the last frames (PF_MEMALLOC), to pointers of
    its own (addr_limit)."""
    m.report.each(m.tasks["cpu"] != np.arange(len(m.tasks)), "task", lambda cpu: (
        "a task's CPU number is not its slot's",
        {"task": m.pid[cpu], "expected": cpu, "found": m.tasks["cpu"][cpu]}))
    m.report.each(~m.live & (m.state != C["TASK_UNUSED"]), "task", lambda cpu: (
        f"slot {cpu}: no such state", {"task": m.pid[cpu], "found": m.state[cpu]}))
    pids, times = np.unique(m.pid[m.live], return_counts=True)
    for pid in pids[times > 1].tolist():
        m.report.add("task", "several live tasks have this pid", task=pid)
    for field in ("preempt_count", "nr_held", "rcu_nesting", "rcu_epoch", "isolating_since", "trace_stopped"):
        m.report.each(m.running & (m.tasks[field] != 0), "lock", lambda cpu, field=field: (
            f"a task stands still with {field} not zero{held_text(m, cpu)}",
            {"task": m.pid[cpu], "expected": 0, "found": m.tasks[field][cpu]}))
    kswapd = (m.tasks["flags"] & C["PF_KSWAPD"]) != 0
    # What a task is, not what it is doing.
    lasting = np.where(kswapd, C["PF_KSWAPD"] | C["PF_SWAPWRITE"], 0)
    for field, expected in (("flags", lasting), ("addr_limit", np.zeros_like(lasting))):
        m.report.each(m.running & (m.tasks[field] != expected), "task", lambda cpu, field=field, expected=expected: (
            f"a task is outside the kernel with {field} as they are inside",
            {"task": m.pid[cpu], "expected": hex(expected[cpu]), "found": hex(m.tasks[field][cpu])}))
    for field in ("nr_isolators", "reclaim_waiters", "nr_starving"):
        if m.kernel[field]:
            m.report.add("counter", f"no task is in the kernel, and {field} is not zero", expected=0, found=m.kernel[field])


def held_text(m, cpu):
    """The sleeping locks that a task holds, in words."""
    row = m.tasks[cpu]
    held = row["held_locks"][:min(int(row["nr_held"]), C["HELD_LOCKS_MAX"])]
    return f" (holds {', '.join(hex(int(lock) & ~7) for lock in held)})" if len(held) else ""


def list_addresses(m, head, struct, field):
    """The structs on a short circular list, by address.

    What breaks the list is reported and ends the walk.  Returns (addresses, whole).
    """
    offset = layout.offsetof(struct, field)
    found, previous, node = {}, head, m.u64(head)
    while node != head:
        address = node - offset
        fault = m.object_fault(address, struct) or \
            ("is on it twice" if address in found else None)
        if fault:
            m.report.add("mm", f"the list {field}: an entry {fault}", address=node)
            return list(found), False
        if m.u64(node + 8) != previous:
            m.report.add("mm", f"the list {field}: prev does not lead back", address=node,
                         expected=hex(previous), found=hex(m.u64(node + 8)))
        found[address] = None
        previous, node = node, m.u64(node)
    if m.u64(head + 8) != previous:
        m.report.add("mm", f"the list {field}: the head's prev is not the last entry", address=head,
                     expected=hex(previous), found=hex(m.u64(head + 8)))
    return list(found), True


def find_address_spaces(m):
    """Every address space that a task runs is on init_mmlist, and no other is; mm_users
    counts the tasks."""
    head = m.kernel.address + layout.offsetof("Kernel", "init_mmlist")
    listed, whole = list_addresses(m, head, "MmStruct", "mmlist")
    pointer = m.tasks["mm"]
    runs = m.live & (pointer != 0)
    m.mm_address, number = list(listed), {address: i for i, address in enumerate(listed)}
    m.users_of = np.full(len(m.tasks), -1)
    for cpu in np.flatnonzero(runs).tolist():
        address = int(pointer[cpu])
        fault = m.object_fault(address, "MmStruct")
        if fault:
            m.report.add("mm", f"the task's mm {fault}", task=m.pid[cpu], address=address)
            continue
        if address not in number:
            number[address] = len(m.mm_address)
            m.mm_address.append(address)
            if whole:
                m.report.add("mm", "the task's mm is not on init_mmlist", task=m.pid[cpu],
                             address=address)
        m.users_of[cpu] = number[address]
    m.mm = m.gather(m.mm_address, "MmStruct")
    users = np.bincount(m.users_of[m.users_of >= 0], minlength=len(m.mm))
    m.report.each(users != m.mm["mm_users"], "mm", lambda i: (
        f"mm_users is not the number of tasks that run {m.mm_text(i)}",
        {**m.whose(i), "address": m.mm_address[i], "expected": users[i],
         "found": m.mm["mm_users"][i]}))
    m.report.each((users == 0) & (m.mm["mm_users"] == 0), "mm", lambda i: (
        "an address space that no task runs is on init_mmlist",
        {**m.whose(i), "address": m.mm_address[i]}))


# ---- VMAs -------------------------------------------------------------------

def find_vmas(m):
    """Follows each address space's mmap list; it ends, and leads to whole, live objects
    that are on no other list."""
    m.vma_address, owner, seen = [], [], set()
    link = layout.offsetof("VmAreaStruct", "vm_next")
    for mm, address in enumerate(m.mm["mmap"].tolist()):
        while address:
            fault = m.object_fault(address, "VmAreaStruct") or \
                ("is on a list already" if address in seen else None)
            if fault:
                m.report.add("vma", f"a VMA on the list of {m.mm_text(mm)} {fault}",
                             **m.whose(mm), address=address)
                break
            seen.add(address)
            m.vma_address.append(address)
            owner.append(mm)
            address = m.u64(address + link)
    m.vma = m.gather(m.vma_address, "VmAreaStruct")
    m.vma_mm = np.array(owner, np.int64)


def check_vmas(m):
    """VMAs are whole pages of user addresses, in ascending order without overlap; they know
    their address space, which counts them (map_count) and their pages (total_vm, and locked_vm
    of those that are locked)."""
    start, end = m.vma["vm_start"], m.vma["vm_end"]

    def vma(i, **details):
        return {**m.whose(m.vma_mm[i]), "address": start[i], **details}

    m.report.each((start % PAGE_SIZE != 0) | (end % PAGE_SIZE != 0) | (start >= end) |
                  (end > TASK_SIZE), "vma", lambda i: (
        "the bounds of a VMA are no range of user pages",
        vma(i, found=f"{start[i]:#x}-{end[i]:#x}")))
    same = m.vma_mm[1:] == m.vma_mm[:-1]
    m.report.each(np.append(False, same & (start[1:] < end[:-1])), "vma", lambda i: (
        "a VMA overlaps the one before it, or comes before it",
        vma(i, expected=f"{end[i - 1]:#x} or above", found=hex(start[i]))))
    addresses = np.array(m.mm_address, np.uint64)
    m.report.each(m.vma["vm_mm"] != addresses[m.vma_mm], "vma", lambda i: (
        "vm_mm is not the address space that has the VMA on its list",
        vma(i, expected=hex(addresses[m.vma_mm[i]]), found=hex(m.vma["vm_mm"][i]))))
    count = np.bincount(m.vma_mm, minlength=len(m.mm))
    pages = np.zeros(len(m.mm), np.uint64)
    np.add.at(pages, m.vma_mm, (end - start) >> PAGE_SHIFT)
    locked = np.zeros(len(m.mm), np.uint64)
    np.add.at(locked, m.vma_mm, np.where(m.vma["vm_flags"] & C["VM_LOCKED"], (end - start) >> PAGE_SHIFT, 0))
    for field, expected in (("map_count", count), ("total_vm", pages), ("locked_vm", locked)):
        m.report.each(m.mm[field] != expected, "vma", lambda i, field=field, expected=expected: (
            f"{field} is not what the VMAs of {m.mm_text(i)} add up to",
            {**m.whose(i), "expected": expected[i], "found": m.mm[field][i]}))


def access_prot(flags):
    """Of the protection that vm_get_page_prot has for VMAs with these flags, all but RW."""
    allowed = np.where((flags & C["VM_EXEC"]) != 0, np.uint64(0), NX) | np.uint64(PRESENT | USER | ACCESSED)
    return np.where((flags & VM_ACCESS) != 0, allowed, np.uint64(PROTNONE | ACCESSED))


def check_vma_flags(m):
    """A VMA allows no more than it may; what a fault does there is what its file is for; and vm_page_prot
    follows from vm_flags, without RW where the first write has to fault."""
    flags, ops = m.vma["vm_flags"], m.vma["vm_ops"]

    def each(wrong, message, expected, found):
        m.report.each(wrong, "vma", lambda i: (message, {
            **m.whose(m.vma_mm[i]), "address": m.vma["vm_start"][i], "expected": hex(expected[i]), "found": hex(found[i])}))

    may = flags >> np.uint64(4) & VM_ACCESS
    each((flags & VM_ACCESS & ~may) != 0, "a VMA allows what it may not", may, flags & VM_ACCESS)

    def has_ops(*names):
        known = [address for address, row in zip(m.inode_address, m.inode) if row["i_data"]["a_ops"] in names]
        return np.isin(m.vma_mapping, np.array(known, np.uint64))

    kind = np.where(m.vma["vm_file"] != 0, np.where(has_ops(C["AOPS_SHMEM"]), C["VM_OPS_SHMEM"], C["VM_OPS_FILE"]),
                    np.where((flags & C["VM_PFNMAP"]) != 0, C["VM_OPS_DEVICE"], C["VM_OPS_ANON"])).astype(np.uint64)
    each(ops != kind, "vm_ops are not those of what the VMA maps", kind, ops)
    shared = (flags & (VM_WRITE | C["VM_SHARED"])) == VM_WRITE | C["VM_SHARED"]
    prot = access_prot(flags) | np.where(shared & ~has_ops(*ACCOUNTING), np.uint64(RW), np.uint64(0))
    each(m.vma["vm_page_prot"] != prot, "vm_page_prot does not follow from vm_flags", prot, m.vma["vm_page_prot"])


def check_rb_trees(m):
    """Each mm_rb is a red-black tree of the VMAs on the list, in the list's order, and parent
    pointers lead back: find_vma and the list must never disagree."""
    offset = layout.offsetof("VmAreaStruct", "vm_rb")
    node_address = [address + offset for address in m.vma_address]
    ends = np.searchsorted(m.vma_mm, np.arange(len(m.mm) + 1)).tolist()
    for mm, root in enumerate(m.mm["mm_rb"]["rb_node"].tolist()):
        first, end = ends[mm], ends[mm + 1]
        number = {address: i for i, address in enumerate(node_address[first:end])}
        nodes = m.vma["vm_rb"][first:end].tolist()
        order, faults = walk_rb_tree(nodes, node_address[first:end], number, root)
        if not faults and order != list(range(end - first)):
            faults = [(root, "its nodes are not the VMAs of the list in their order")]
        for address, fault in faults[:LIMIT]:
            m.report.add("rbtree", f"mm_rb of {m.mm_text(mm)}: {fault}", **m.whose(mm),
                         address=address)


def walk_rb_tree(nodes, address_of, number, root):
    """(order, faults) of one red-black tree.

    `nodes` are tuples (parent, left, right, red), `number` maps addresses to indices into
    it.  order lists the indices as an in-order walk meets them, faults pairs of an address
    and what is wrong there.
    """
    order, faults, heights, seen = [], [], set(), set()
    # (address, parent, parent is red, black nodes above), or an index to put into order.
    stack = [(root, 0, True, 0)]
    while stack:
        top = stack.pop()
        if isinstance(top, int):
            order.append(top)
            continue
        address, parent, red_parent, blacks = top
        if address == 0:
            heights.add(blacks)
            continue
        index = number.get(address)
        if index is None or index in seen:
            faults.append((address, "a pointer leads to no VMA of the list" if index is None
                           else "a node is reached twice"))
            continue
        seen.add(index)
        its_parent, left, right, red = nodes[index]
        if its_parent != parent:
            faults.append((address, f"rb_parent is {its_parent:#x}, not {parent:#x}"))
        if red not in (0, 1):
            faults.append((address, f"the colour is {red}"))
        if red and red_parent:
            faults.append((address, "a red node has a red parent" if parent else "the root is red"))
        below = address_of[index], bool(red), blacks + (not red)
        stack += [(right, *below), index, (left, *below)]
    if len(heights) > 1:
        faults.append((root, f"the number of black nodes on a path varies: {sorted(heights)}"))
    return order, faults


def check_anon_vmas(m):
    """A VMA with an anon_vma is on that anon_vma's list, once, and nobody else is: rmap finds
    every VMA that may map a page, and never a dead one."""
    pointer = m.vma["anon_vma"]
    has = np.flatnonzero(pointer)
    good = {}
    for address in np.unique(pointer[has]).tolist():
        fault = m.object_fault(address, "AnonVma") or \
            ("waits for RCU to free it" if address in m.rcu_pending["AnonVma"] else None)
        good[address] = not fault
        if fault:
            i = has[pointer[has] == address][0]
            m.report.add("anon_vma", f"anon_vma of a VMA {fault}", **m.whose(m.vma_mm[i]),
                         address=m.vma["vm_start"][i], found=hex(address))
    m.anon_vmas = [address for address in good if good[address]]
    members = [i for i in has.tolist() if good[int(pointer[i])]]
    head_at = np.array(m.anon_vmas, np.uint64) + layout.offsetof("AnonVma", "head")
    offset = layout.offsetof("VmAreaStruct", "anon_vma_node")
    node_at = np.append(head_at, np.array(m.vma_address, np.uint64)[members] + offset)
    heads = m.gather(m.anon_vmas, "AnonVma")["head"]
    nodes = np.append(heads, m.vma["anon_vma_node"][members])
    number = {address: i for i, address in enumerate(m.anon_vmas)}
    owner = np.append(np.arange(len(heads)), [number[int(pointer[i])] for i in members]).astype(int)
    by_address = np.argsort(node_at)

    def ids(pointers):
        at = np.minimum(np.searchsorted(node_at[by_address], pointers), len(node_at) - 1)
        return np.where(node_at[by_address[at]] == pointers, by_address[at], -1)

    if not len(node_at):
        return
    next_, prev = ids(nodes["next"]), ids(nodes["prev"])
    broken, lost = check_rings(next_, prev, owner)

    def describe(i):
        i = int(i)
        details = {"address": node_at[i], "found": hex(nodes["next"][i])}
        if i >= len(heads):
            vma = members[i - len(heads)]
            details |= {**m.whose(m.vma_mm[vma]), "address": m.vma["vm_start"][vma]}
        what = "a VMA" if i >= len(heads) else "the head"
        fault = "not reached from the head" if lost[i] else "not followed by one that leads back"
        return f"the list of anon_vma {m.anon_vmas[owner[i]]:#x}: {what} is {fault}", details

    m.report.each(broken | lost, "anon_vma", describe)


# ---- policies and cpusets -----------------------------------------------------

def find_shared_policies(m):
    """An inode's policies are a red-black tree of live objects, for ranges of its pages that are in
    order and do not overlap."""
    m.shared_policies = {}
    for inode, row in zip(m.inode_address, m.inode):
        root = int(row["i_policy"]["root"]["rb_node"])
        found, faults, pending = [], [], [root]
        while pending:
            address = pending.pop()
            if not address or address in m.shared_policies:
                continue
            fault = m.object_fault(address, "SpNode")
            if fault:
                faults.append((address, f"a range {fault}"))
                continue
            node = layout.struct("SpNode", address)
            m.shared_policies[address] = node.policy
            found.append(address)
            pending += [int(node.nd["rb_left"]), int(node.nd["rb_right"])]
        nodes = m.gather(found, "SpNode")
        order, broken = walk_rb_tree([tuple(node.tolist()) for node in nodes["nd"]], found,
                                     {address: i for i, address in enumerate(found)}, root)
        bounds = [int(bound) for i in order for bound in (nodes["start"][i], nodes["end"][i])]
        if not faults and not broken and (bounds != sorted(bounds) or (nodes["start"] >= nodes["end"]).any()):
            faults = [(inode, f"its ranges are empty, overlap or are not in order: {bounds}")]
        for where, fault in (faults or broken)[:LIMIT]:
            m.report.add("policy", f"the policies of inode {row['i_id']}: {fault}", address=where)


def find_policies(m):
    """A policy is a live object that counts those who have it: a task, VMAs, or ranges of an inode's
    pages.  Its nodes are nodes."""
    live = np.flatnonzero(m.live)
    owners = [(int(m.tasks["mempolicy"][cpu]), {"task": m.pid[cpu]}) for cpu in live.tolist()]
    owners += [(int(policy), {**m.whose(m.vma_mm[i]), "address": m.vma["vm_start"][i]})
               for i, policy in enumerate(m.vma["vm_policy"].tolist()) if policy]
    owners += [(policy, {"address": node}) for node, policy in m.shared_policies.items()]
    m.policies = {}
    for address, whose in owners:
        if not address:
            continue
        fault = m.object_fault(address, "Mempolicy")
        if fault:
            m.report.add("policy", f"a policy {fault}", **{**whose, "found": hex(address)})
            continue
        m.policies.setdefault(address, []).append(whose)
    nodes = (1 << m.kernel.nr_nodes) - 1
    for address, users in m.policies.items():
        policy = layout.struct("Mempolicy", address)
        if policy.refcnt != len(users):
            m.report.add("policy", "refcnt of a policy is not the number of those who have it",
                         **{**users[0], "expected": len(users), "found": policy.refcnt})
        if not C["MPOL_DEFAULT"] < policy.mode < C["MPOL_MAX"] or policy.nodes & ~nodes or \
                not 0 <= policy.preferred_node < m.kernel.nr_nodes:
            m.report.add("policy", "a policy has no such mode or names a node that is none",
                         **{**users[0], "found": repr(policy)})


def check_cpusets(m):
    """cpusets are a tree whose nodes are their parents' as well; a task may use what its cpuset
    may, or the next one above that has any of its memory left."""
    cpusets = m.kernel.cpusets
    used, parent = cpusets["in_use"] != 0, cpusets["parent"]
    usable = m.kernel.node_states[C["N_HIGH_MEMORY"]]
    if not used[0] or parent[0] != -1:
        m.report.add("cpuset", "the first cpuset is not the root")
        return
    below = {0}
    for _generation in range(len(used)):
        below.update(np.flatnonzero(used & np.isin(parent, list(below))).tolist())
    for number in (np.flatnonzero(used[1:]) + 1).tolist():
        if number not in below:
            m.report.add("cpuset", f"cpuset {number} is not below the root", found=parent[number])
        elif cpusets["mems_allowed"][number] & ~cpusets["mems_allowed"][parent[number]]:
            m.report.add("cpuset", f"cpuset {number} has nodes that its parent has not",
                         expected=hex(cpusets["mems_allowed"][parent[number]]),
                         found=hex(cpusets["mems_allowed"][number]))
    for cpu in np.flatnonzero(m.running).tolist():
        number, steps = int(m.tasks["cpuset"][cpu]), 0
        if number >= len(used) or not used[number]:
            m.report.add("cpuset", "a task is in no cpuset", task=m.pid[cpu], found=number)
            continue
        while parent[number] >= 0 and not cpusets["mems_allowed"][number] & usable and steps < len(used):
            number, steps = parent[number], steps + 1
        expected = cpusets["mems_allowed"][number] & usable
        if m.tasks["mems_allowed"][cpu] != expected:
            m.report.add("cpuset", "mems_allowed of a task is not what its cpuset may use", task=m.pid[cpu],
                         expected=hex(expected), found=hex(m.tasks["mems_allowed"][cpu]))


# ---- files ------------------------------------------------------------------

# Whose dirty pages are counted and tagged: those that are written back.
ACCOUNTING = [C[name] for name in ("AOPS_PAGE", "AOPS_BUFFER", "AOPS_FALLBACK", "AOPS_FIXED")]


def find_files(m):
    """Descriptor tables, open files, inodes: each counts who has it.  A task has a descriptor table;
    a descriptor and a VMA have a file; an open file has an inode, and all inodes are on one list."""
    head = m.kernel.address + layout.offsetof("Kernel", "inodes")
    m.inode_address, _whole = list_addresses(m, head, "Inode", "i_list")
    m.inode = m.gather(m.inode_address, "Inode")
    m.files, users = {}, Counter(int(address) for address in m.tasks["files"][m.live] if address)
    for address, count in users.items():
        fault = m.object_fault(address, "FilesStruct")
        if fault:
            m.report.add("file", f"a task's descriptor table {fault}", address=address)
            continue
        m.files[address] = count
        table = layout.struct("FilesStruct", address)
        if table.count != count:
            m.report.add("file", "the count of a descriptor table is not the number of tasks that have it",
                         address=address, expected=count, found=table.count)
    uses = Counter(int(file) for address in m.files for file in layout.struct("FilesStruct", address).fd if file)
    uses.update(int(file) for file in m.vma["vm_file"] if file)
    m.file_address, mapping_of, opened = [], {}, Counter()
    for address, count in uses.items():
        fault = m.object_fault(address, "File")
        if fault:
            m.report.add("file", f"an open file {fault}", address=address)
            continue
        m.file_address.append(address)
        file = layout.struct("File", address)
        # An inode begins with its mapping.
        mapping_of[address] = file.f_mapping
        opened[file.f_mapping] += 1
        if file.f_count != count:
            m.report.add("file", "f_count is not the number of descriptors and areas", address=address,
                         expected=count, found=file.f_count)
        if file.f_mapping not in m.inode_address:
            m.report.add("file", "an open file's inode is not on the list of inodes", address=address,
                         found=hex(file.f_mapping))
    for address, row in zip(m.inode_address, m.inode):
        if row["i_count"] != opened[address]:
            m.report.add("file", f"i_count of inode {row['i_id']} is not the number of its open files",
                         address=address, expected=opened[address], found=int(row["i_count"]))
    m.vma_mapping = np.array([mapping_of.get(int(file), 0) for file in m.vma["vm_file"]], np.uint64)
    check_inodes(m)


def check_inodes(m):
    """A mapping leads back to its inode and knows what to do with its pages; and an inode's number, by which
    processes know their descriptors, is its own."""
    ids = Counter(m.inode["i_id"].tolist())
    for address, row in zip(m.inode_address, m.inode):
        data = row["i_data"]
        for what, found, good in (
                ("i_data.host is another", data["host"], data["host"] == address),
                ("i_data.a_ops are no file's", data["a_ops"], C["AOPS_NONE"] < data["a_ops"] < C["AOPS_SWAP"]),
                ("i_id is another's as well, or was not given yet", row["i_id"],
                 ids[int(row["i_id"])] == 1 and row["i_id"] <= m.kernel.next_inode_id)):
            if not good:
                m.report.add("file", f"inode {row['i_id']}: {what}", address=address, found=found)


def find_preloads(m):
    """Nodes that a task has laid by for page trees are live objects, and each is one task's alone."""
    m.tree_nodes, most = set(), C["RADIX_TREE_PRELOAD_SIZE"]
    for cpu in np.flatnonzero(m.live & (m.tasks["nr_preloads"] != 0)).tolist():
        count = int(m.tasks["nr_preloads"][cpu])
        if count > most:
            m.report.add("page_tree", "a task has more preloads than there is room for", task=m.pid[cpu],
                         expected=f"at most {most}", found=count)
        for address in m.tasks["radix_tree_preloads"][cpu][:min(count, most)].tolist():
            fault = m.object_fault(address, "RadixTreeNode") or \
                ("is in use elsewhere" if address in m.tree_nodes | m.rcu_pending["RadixTreeNode"] else None)
            if fault:
                m.report.add("page_tree", f"a preload of a task {fault}", task=m.pid[cpu], address=address)
            else:
                m.tree_nodes.add(address)


def find_cached_pages(m):
    """Each page tree is well formed, with tags, and has nrpages pages, each of which says that it is
    there; and each page that says so is."""
    m.cached = np.zeros(m.max_pfn, bool)
    m.tagged, m.accounts, m.behind = m.cached.copy(), m.cached.copy(), m.cached.copy()
    m.file_entries = []
    find_preloads(m)
    for address, row in zip(m.inode_address, m.inode):
        data, pages, entries = row["i_data"], [], []
        if data["page_tree"]["rnode"]:
            walk_page_tree(m, int(row["i_id"]), int(data["page_tree"]["rnode"]), 0, None, 0, pages, entries)
        if len(pages) != data["nrpages"]:
            m.report.add("page_tree", f"nrpages of inode {row['i_id']} is wrong", address=address,
                         expected=len(pages), found=int(data["nrpages"]))
        if len(entries) != row["i_swapped"]:
            m.report.add("page_tree", f"i_swapped of inode {row['i_id']} is wrong", address=address,
                         expected=len(entries), found=int(row["i_swapped"]))
        if entries and data["a_ops"] != C["AOPS_SHMEM"]:
            m.report.add("page_tree", f"inode {row['i_id']}, a file of the host, has swap entries", address=address)
        m.file_entries += entries
        accounts = data["a_ops"] in ACCOUNTING
        end = -(-int(row["i_size"]) // PAGE_SIZE)
        for pfn, index, tags in pages:
            if m.cached[pfn]:
                m.report.add("page_tree", "a page is in a page tree twice", page=pfn)
            m.cached[pfn], m.accounts[pfn], m.behind[pfn] = True, accounts, index >= end
            m.tagged[pfn] = tags >> C["PAGECACHE_TAG_DIRTY"] & 1
            if m.mapping[pfn] != address or m.index[pfn] != index:
                m.report.add("page_tree", f"a page in the tree of inode {row['i_id']} at index {index} says otherwise",
                             page=pfn, expected=hex(address), found=f"{m.mapping[pfn]:#x}, index {m.index[pfn]}")
            if tags >> C["PAGECACHE_TAG_WRITEBACK"] & 1:
                m.report.add("page_tree", "a page is tagged as under writeback", page=pfn)
    lost = (m.mapping != 0) & ((m.mapping & ANON) == 0) & ~m.cached
    m.report.each(lost & ~m.has("PG_buddy"), "page_tree", lambda pfn: (
        "a page says that it is in a mapping and is not", {"page": pfn, "found": hex(m.mapping[pfn])}))


def walk_page_tree(m, inode, address, parent, height, base, pages, entries=None):
    """Adds (frame, index, tags) of all pages below a node, whose height must be `height` (None: any),
    and the swap entries to `entries` (None: there may be none).  Returns which tags are set below it."""
    fault = m.object_fault(address, "RadixTreeNode") or \
        ("is in use elsewhere" if address in m.tree_nodes | m.rcu_pending["RadixTreeNode"] else None)
    if fault:
        m.report.add("page_tree", f"a node of the tree of inode {inode} {fault}", address=address)
        return 0
    m.tree_nodes.add(address)
    node = layout.struct("RadixTreeNode", address)
    slots, of_node = node.slots.copy(), [int(tags) for tags in node.tags]
    used = np.flatnonzero(slots).tolist()
    height = node.height if height is None else height
    if node.height != height or not 1 <= height <= C["RADIX_TREE_MAX_PATH"] or \
            node.parent != parent or node.count != len(used):
        m.report.add("page_tree", f"a node of the tree of inode {inode} is wrong", address=address,
                     expected=f"height {height}, parent {parent:#x}, count {len(used)}",
                     found=f"height {node.height}, parent {node.parent:#x}, count {node.count}")
        return 0
    tags_of = {}
    for slot in used:
        index = base << C["RADIX_TREE_MAP_SHIFT"] | slot
        if height > 1:
            tags_of[slot] = walk_page_tree(m, inode, int(slots[slot]), address, height - 1, index, pages, entries)
            continue
        tags_of[slot] = sum((tags >> slot & 1) << tag for tag, tags in enumerate(of_node))
        if entries is not None and slots[slot] & C["RADIX_TREE_EXCEPTIONAL"]:
            entries.append(int(slots[slot]) & ~C["RADIX_TREE_EXCEPTIONAL"])
            continue
        pfn, rest = divmod(int(slots[slot]) - m.kernel.mem_map, layout.sizeof("Page"))
        if rest or not 0 <= pfn < m.max_pfn:
            m.report.add("page_tree", f"the tree of inode {inode} has what is no page", address=int(slots[slot]))
        else:
            pages.append((pfn, index, tags_of[slot]))
    for tag, found in enumerate(of_node):
        expected = sum(1 << slot for slot in used if tags_of[slot] >> tag & 1)
        if found != expected:
            m.report.add("page_tree", f"tag {tag} of a node of inode {inode} is wrong", address=address,
                         expected=hex(expected), found=hex(found))
    return sum(1 << tag for tag, tags in enumerate(of_node) if tags)


def find_buffers(m):
    """A page with PG_private has a ring of buffers that fill it, in order, and know it; nobody uses
    one in a still machine; a dirty one lies in a dirty page."""
    m.private = m.has("PG_private") & ~m.has("PG_buddy")
    m.nr_buffers, seen = 0, set()
    for pfn in np.flatnonzero(m.private).tolist():
        first = address = int(m.private_word[pfn])
        offset, dirty, fault = 0, False, None
        while not fault and (address != first or offset == 0):
            fault = m.object_fault(address, "BufferHead") or ("is in a ring twice" if address in seen else None)
            if fault:
                break
            seen.add(address)
            bh = layout.struct("BufferHead", address)
            fault = buffer_fault(m, bh, pfn, offset)
            dirty |= bool(bh.b_state >> C["BH_Dirty"] & 1)
            offset += bh.b_size
            address = bh.b_this_page
        if not fault and offset != PAGE_SIZE:
            fault = f"is one of a ring of {offset} bytes"
        if fault:
            m.report.add("buffer", f"a buffer {fault}", page=pfn, address=address)
        elif dirty and not m.flags[pfn] >> PAGE_FLAGS["PG_dirty"] & 1:
            m.report.add("buffer", "a dirty buffer in a clean page", page=pfn, address=first)
    m.nr_buffers = len(seen)


def buffer_fault(m, bh, pfn, offset):
    """Why this cannot be the buffer at `offset` of a page, or None."""
    if bh.b_page != m.kernel.mem_map + pfn * layout.sizeof("Page") or \
            bh.b_data != m.kernel.frames_base + pfn * PAGE_SIZE + offset or bh.b_size not in (512, 1024, 2048, 4096):
        return "is not that part of its page"
    if m.cached[pfn] and bh.b_blocknr * bh.b_size != m.index[pfn] * PAGE_SIZE + offset:
        return f"is of block {bh.b_blocknr}, and page {m.index[pfn]} of the file"
    if m.flags[pfn] >> PAGE_FLAGS["PG_uptodate"] & 1 and not bh.b_state >> C["BH_Uptodate"] & 1:
        return "was not read, and its page was"
    if bh.b_count != 0 or bh.b_state >> C["BH_Lock"] & 1 or bh.b_state >> C["BH_Async_Write"] & 1:
        return "is in use"
    return None


def check_cached_pages(m):
    """A page of a file that is written back is tagged dirty exactly when it is dirty, and dirty when a
    PTE lets a program write it: or the flusher would not find what is written.  What is mapped has
    been read.  Behind its file's end is at most what a fault has brought that came too late."""
    dirty = m.has("PG_dirty")
    m.report.each(m.cached & (m.tagged != (dirty & m.accounts)), "page_tree", lambda pfn: (
        "the dirty tag of a page is not its PG_dirty",
        {"page": pfn, "expected": int(dirty[pfn] & m.accounts[pfn]), "found": int(m.tagged[pfn])}))
    entry = m.maps[m.cached[m.map_pfn] & m.accounts[m.map_pfn]]
    clean = ((m.pte[entry] & RW) != 0) & ~dirty[m.pte_pfn[entry]]
    m.report.each(clean, "pte", lambda i: (
        "a clean page of a file is mapped writable", {**m.pte_details(entry[i]), "found": pte_text(int(m.pte[entry[i]]))}))
    m.report.each(m.behind & (dirty | (m.nr_maps > 0)), "page_tree", lambda pfn: (
        "a page behind the end of its file is dirty or mapped", {**m.mapped_by(pfn)[1], "found": m.index[pfn]}))
    m.report.each(m.cached & (m.nr_maps > 0) & ~m.has("PG_uptodate"), "flags", lambda pfn: (
        "a page of a file is mapped and was not read", m.mapped_by(pfn)[1]))


def check_i_mmap(m):
    """Each mapping's i_mmap is a red-black tree of just the VMAs that map the file, by their first
    index, in which each node knows the last index below it."""
    offset = layout.offsetof("VmAreaStruct", "shared")
    last = m.vma["vm_pgoff"] + ((m.vma["vm_end"] - m.vma["vm_start"]) >> PAGE_SHIFT) - 1
    for address, row in zip(m.inode_address, m.inode):
        mine = np.flatnonzero(m.vma_mapping == address).tolist()
        node_address = [m.vma_address[i] + offset for i in mine]
        number = {node: i for i, node in enumerate(node_address)}
        nodes = [tuple(m.vma["shared"][i].tolist()) for i in mine]
        order, faults = walk_rb_tree(nodes, node_address, number, int(row["i_data"]["i_mmap"]["rb_node"]))
        starts = [int(m.vma["vm_pgoff"][mine[i]]) for i in order]
        if not faults and (len(order) != len(mine) or starts != sorted(starts)):
            faults = [(address, "it does not have all areas that map the file, in order")]
        for i in [] if faults else order:
            below = [int(last[mine[i]])] + [int(m.vma["shared_last"][mine[number[child]]])
                                            for child in nodes[i][1:3] if child]
            if m.vma["shared_last"][mine[i]] != max(below):
                faults.append((node_address[i], "a node does not know the last index below it"))
        for where, fault in faults[:LIMIT]:
            m.report.add("i_mmap", f"i_mmap of inode {row['i_id']}: {fault}", address=where)


# ---- swap -------------------------------------------------------------------

def entry_text(area, slot):
    """A swap entry in words, as pte_text has it."""
    return f"swap entry of type {area}, offset {slot}"


def entry_word(area, slot):
    """A swap entry as PTEs and pages have it."""
    return area << C["SWP_TYPE_SHIFT"] | slot << C["SWP_OFFSET_SHIFT"]


def find_swap_areas(m):
    """Each area's map lies in the room for maps and overlaps no other's.

    Makes m.swap_maps, a live array of counts for each area that is in use, and m.swap_uses, the
    counts that will be found.
    """
    kernel = m.kernel
    m.swap_maps, m.swap_uses, taken = {}, {}, []
    for area in range(kernel.nr_swapfiles):
        info = kernel.swap_info[area]
        if not info["flags"] & C["SWP_USED"]:
            continue
        first = (int(info["swap_map"]) - kernel.swap_maps) // 2
        end = first + int(info["max"])
        if not 0 <= first < end <= kernel.swap_maps_size or \
                any(first < other_end and other < end for other, other_end in taken):
            m.report.add("swap", f"area {area}: its map is not in the room for maps, or is another's as well",
                         address=info["swap_map"])
            continue
        taken.append((first, end))
        m.swap_maps[area] = layout.view("u16", int(info["swap_map"]), int(info["max"]))
        m.swap_uses[area] = np.zeros(int(info["max"]), np.int64)


def find_swap_cache(m):
    """The pages of the swap cache's tree are those with PG_swapcache, each at the index of the entry
    that its private has; nrpages counts them.  They are m.cached too."""
    find_swap_areas(m)
    space, pages = m.kernel.swapper_space, []
    if space.page_tree.rnode:
        walk_page_tree(m, "swapper_space", space.page_tree.rnode, 0, None, 0, pages)
    if len(pages) != space.nrpages:
        m.report.add("counter", "swapper_space.nrpages is not the number of pages in its tree",
                     expected=len(pages), found=space.nrpages)
    m.swapped = np.zeros(m.max_pfn, bool)
    for entry in m.file_entries:
        area, slot = entry >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"], entry >> C["SWP_OFFSET_SHIFT"]
        if area not in m.swap_uses or not 0 < slot < len(m.swap_uses[area]):
            m.report.add("swap", f"a page tree has {entry_text(area, slot)}, which no area has", found=hex(entry))
        else:
            m.swap_uses[area][slot] += 1
    for pfn, index, _tags in pages:
        area, slot = index >> C["SWP_INDEX_TYPE_SHIFT"], index & (1 << C["SWP_INDEX_TYPE_SHIFT"]) - 1
        text = entry_text(area, slot)
        if m.cached[pfn]:
            m.report.add("swap", f"a page is in the swap cache for {text}, and in a cache already", page=pfn)
        m.cached[pfn] = m.swapped[pfn] = True
        if area not in m.swap_uses or not 0 < slot < len(m.swap_uses[area]):
            m.report.add("swap", f"the swap cache has a page for {text}, which no area has", page=pfn)
            continue
        m.swap_uses[area][slot] += 1
        if m.private_word[pfn] != entry_word(area, slot):
            m.report.add("swap", f"private of a page in the swap cache is not {text}", page=pfn,
                         expected=hex(entry_word(area, slot)), found=hex(m.private_word[pfn]))
    m.report.each(m.has("PG_swapcache") != m.swapped, "swap", lambda pfn: (
        "PG_swapcache is not on the pages of the swap cache alone",
        {"page": pfn, "found": page_flags_text(int(m.flags[pfn]))}))


def is_swap_entry(m):
    """Mask of the PTEs that are swap entries of a slot that some area has."""
    kind = (m.pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]).astype(np.int64)
    slot = (m.pte >> C["SWP_OFFSET_SHIFT"]).astype(np.int64)
    most = np.zeros(C["SWP_TYPE_MASK"] + 1, np.int64)
    for area, uses in m.swap_uses.items():
        most[area] = len(uses)
    return ~m.pte_present & ((m.pte & PTE_FILE) == 0) & (slot > 0) & (slot < most[kind])


def check_swap_map(m):
    """Each slot's count is the number of its uses; swap_ents counts each address space's swap
    entries; a page that somebody may write has no swap entry left; and what an area and the
    machine count of slots is what the maps say."""
    swapped = np.flatnonzero(is_swap_entry(m))
    kind = (m.pte[swapped] >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]).astype(np.int64)
    slot = (m.pte[swapped] >> C["SWP_OFFSET_SHIFT"]).astype(np.int64)
    users = np.bincount(m.pte_mm[swapped], minlength=len(m.mm))
    m.report.each(m.mm["swap_ents"] != users, "counter", lambda i: (
        f"swap_ents is not the number of swap entries of {m.mm_text(i)}",
        {**m.whose(i), "expected": users[i], "found": m.mm["swap_ents"][i]}))
    page_of = {int(m.private_word[pfn]): pfn for pfn in np.flatnonzero(m.swapped).tolist()}
    check_shared_writable(m, kind, slot)
    free, pages = 0, 0
    for area, uses in m.swap_uses.items():
        np.add.at(uses, slot[kind == area], 1)
        check_area(m, area, uses, lambda at, area=area: swapped[(kind == area) & (slot == at)], page_of)
        pages += len(uses) - 1
        free += int((m.swap_maps[area][1:] == 0).sum())
    for counter, expected in (("total_swap_pages", pages), ("nr_swap_pages", free)):
        if m.kernel[counter] != expected:
            m.report.add("counter", f"kernel.{counter} is not what the areas add up to", expected=expected,
                         found=m.kernel[counter])


def check_shared_writable(m, kind, slot):
    """A page that is mapped writable has no swap entry: its slot's other user would see the writes."""
    entries = set(zip(kind.tolist(), slot.tolist(), strict=True))
    rw = (m.pte[m.maps] & RW) != 0
    writable = m.maps[rw & m.swapped[m.map_pfn]]
    for entry in writable.tolist():
        private = int(m.private_word[m.pte_pfn[entry]])
        area, at = private >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"], private >> C["SWP_OFFSET_SHIFT"]
        if (area, at) in entries:
            m.report.add("swap", f"a page is mapped writable while others have {entry_text(area, at)} for it",
                         **m.pte_details(entry))


def check_area(m, area, uses, entries_of, page_of):
    """One area: its map, its count of slots in use, and the bounds of its free slots."""
    info, found = m.kernel.swap_info[area], m.swap_maps[area].astype(np.int64)
    if found[0] != C["SWAP_MAP_BAD"]:
        m.report.add("swap", f"area {area}: slot 0 can be given out", expected=hex(C["SWAP_MAP_BAD"]),
                     found=hex(found[0]))
    uses[0] = found[0]

    def describe(slot):
        entry = entry_word(area, slot)
        details = {"expected": uses[slot], "found": found[slot]}
        if entry in page_of:
            details["page"] = page_of[entry]
        users = entries_of(slot)
        if len(users):
            details |= {"address": int(m.pte_vpn[users[0]]) << PAGE_SHIFT, **m.whose(m.pte_mm[users[0]])}
        return f"the count of {entry_text(area, slot)} is not the number of its uses", details

    m.report.each(found != uses, "swap", describe)
    free = np.flatnonzero(found[1:] == 0) + 1
    if info["inuse_pages"] != len(found) - 1 - len(free):
        m.report.add("counter", f"area {area}: inuse_pages is not the number of slots in use",
                     expected=len(found) - 1 - len(free), found=info["inuse_pages"])
    if info["highest_bit"] >= len(found):
        m.report.add("swap", f"area {area}: highest_bit is no slot", expected=f"below {len(found)}", found=info["highest_bit"])
    outside = free[(free < info["lowest_bit"]) | (free > info["highest_bit"])]
    if len(outside):
        m.report.add("swap", f"area {area}: free slot {outside[0]} lies outside lowest_bit and highest_bit, and "
                     "will never be found", expected=f"{info['lowest_bit']}-{info['highest_bit']}", found=outside[0])


# ---- page tables ------------------------------------------------------------

def admit_tables(m, pfn, mm, describe):
    """Which of the frames `pfn`, that something points to as page tables, are; marks them.

    Each is flagged PG_pagetable and pointed to once.  `describe(i)` names the pointer.
    """
    inside = pfn < m.max_pfn
    flagged = inside.copy()
    flagged[inside] = m.has("PG_pagetable")[pfn[inside]]
    new = flagged.copy()
    new[flagged] = ~m.table[pfn[flagged]]
    candidates = np.flatnonzero(new)
    first = np.zeros(len(pfn), bool)
    first[candidates[np.unique(pfn[candidates], return_index=True)[1]]] = True

    def finding(text):
        def one(i):
            page = int(pfn[i]) if inside[i] else None
            return f"{describe(i)} {text}", {**m.whose(mm[i]), "page": page, "found": pfn[i]}
        return one

    for mask, text in ((~inside, "points to no frame"),
                       (inside & ~flagged, "points to a frame that is no page table"),
                       (flagged & ~first, "points to a table that is in use elsewhere")):
        m.report.each(mask, "pagetable", finding(text))
    m.table[pfn[first]] = True
    m.table_mm[pfn[first]] = mm[first]
    return first


def find_page_tables(m):
    """Walks all address spaces' upper levels at once; each table is reached exactly once.

    Tables of a level stay in the order of address space and address, so the entries of the
    last level come out sorted.
    """
    m.table = np.zeros(m.max_pfn, bool)
    m.table_mm = np.full(m.max_pfn, -1)
    pgd = m.mm["pgd"]
    # Not a multiple of the page size, or below the frames: a number that is no frame.
    pfn = np.where(pgd % PAGE_SIZE == 0, (pgd - m.kernel.frames_base) >> PAGE_SHIFT, m.max_pfn)
    pfn, mm, vpn = np.minimum(pfn, m.max_pfn).astype(np.int64), np.arange(len(m.mm)), \
        np.zeros(len(m.mm), np.int64)
    good = admit_tables(m, pfn, mm, lambda i: f"pgd of {m.mm_text(i)}")
    pfn, mm, vpn = pfn[good], mm[good], vpn[good]
    for level in ("PGDIR", "PUD", "PMD"):
        entries = m.frames[pfn].ravel()
        at = np.flatnonzero(entries)
        value, row = entries[at], at // ENTRIES
        vpn = vpn[row] + (at % ENTRIES << (C[f"{level}_SHIFT"] - PAGE_SHIFT))
        mm = mm[row]

        def entry(i, level=level, mm=mm, vpn=vpn):
            return f"the {level} entry over {vpn[i] << PAGE_SHIFT:#x} of {m.mm_text(mm[i])}"

        usable = (value & (PRESENT | RW | USER)) == PRESENT | RW | USER
        m.report.each(~usable, "pagetable", lambda i, entry=entry, value=value, mm=mm: (
            f"{entry(i)} is no table entry", {**m.whose(mm[i]), "found": hex(value[i])}))
        mm, vpn = mm[usable], vpn[usable]
        pfn = ((value[usable] & PTE_PFN_MASK) >> PAGE_SHIFT).astype(np.int64)
        good = admit_tables(m, pfn, mm, lambda i, entry=entry, back=np.flatnonzero(usable):
                            entry(back[i]))
        pfn, mm, vpn = pfn[good], mm[good], vpn[good]
    m.leaf_mm = mm
    find_ptes(m, pfn, mm, vpn)


def find_ptes(m, pfn, mm, vpn):
    """All entries that are not none, out of the last-level tables `pfn`; finds for each its
    VMA (-1: none), and counts how often each frame is mapped."""
    entries = m.frames[pfn].ravel()
    at = np.flatnonzero(entries)
    row = at // ENTRIES
    m.pte = entries[at]
    m.pte_mm = mm[row]
    m.pte_vpn = vpn[row] + at % ENTRIES
    m.pte_key = (m.pte_mm << VPN_BITS) + m.pte_vpn
    m.pte_pfn = ((m.pte & PTE_PFN_MASK) >> PAGE_SHIFT).astype(np.int64)
    m.pte_vma = vmas_of(m, m.pte_key)
    m.pte_present = (m.pte & (PRESENT | PROTNONE)) != 0
    counts = m.pte_present & ((m.pte & SPECIAL) == 0) & (m.pte_pfn < m.max_pfn)
    m.maps = np.flatnonzero(counts)
    m.map_pfn = m.pte_pfn[m.maps]
    m.nr_maps = np.bincount(m.map_pfn, minlength=m.max_pfn)


def vmas_of(m, keys):
    """The number of the VMA that each key (address space and page number) lies in, or -1."""
    if not len(m.vma):
        return np.full(len(keys), -1)
    most = 1 << VPN_BITS
    base = m.vma_mm << VPN_BITS
    start = base + np.minimum(m.vma["vm_start"] >> PAGE_SHIFT, most).astype(np.int64)
    end = base + np.minimum(m.vma["vm_end"] >> PAGE_SHIFT, most).astype(np.int64)
    order = np.argsort(start, kind="stable")
    vma = order[np.searchsorted(start[order], keys, side="right") - 1]
    return np.where((start[vma] <= keys) & (keys < end[vma]), vma, -1)


def check_page_tables(m):
    """PG_pagetable is on the frames that were reached and no others; nr_ptes counts each
    address space's last-level tables."""
    m.report.each(m.has("PG_pagetable") & ~m.table, "leak", lambda pfn: (
        "a page table that no address space leads to", {"page": pfn}))
    tables = np.bincount(m.leaf_mm, minlength=len(m.mm))
    m.report.each(tables != m.mm["nr_ptes"], "counter", lambda i: (
        f"nr_ptes is not the number of last-level tables of {m.mm_text(i)}",
        {**m.whose(i), "expected": tables[i], "found": m.mm["nr_ptes"][i]}))


# ---- page table entries and rmap --------------------------------------------

def check_ptes(m):
    """A PTE lies in a VMA and maps a frame, or nothing; in a still machine no migration
    entry is left; a swap entry is that of a slot."""
    def found(i):
        return {**m.pte_details(i), "found": pte_text(int(m.pte[i]))}

    m.report.each(m.pte_vma < 0, "pte", lambda i: ("a PTE outside any VMA", found(i)))
    kind = m.pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"]
    swap = ~m.pte_present & ((m.pte & PTE_FILE) == 0)
    migration = swap & (kind >= C["SWP_MIGRATION_READ"])
    m.report.each(migration, "migration_entry", lambda i: (
        "a migration entry is left",
        {**found(i), "page": int(m.pte[i]) >> C["SWP_OFFSET_SHIFT"]}))
    m.report.each(~m.pte_present & ~migration & ~is_swap_entry(m), "pte", lambda i: (
        "neither a frame nor a swap or migration entry", found(i)))
    of_device = find_device_ptes(m)
    m.report.each(m.pte_present & (m.pte_pfn >= m.max_pfn) & ~of_device, "pte", lambda i: (
        "a PTE maps a frame that does not exist", found(i)))
    zero = m.pte_pfn == m.kernel.zero_pfn
    special = (m.pte & SPECIAL) != 0
    m.report.each(m.pte_present & (zero != special) & ~of_device, "pte", lambda i: (
        "SPECIAL is for the zero page, and the zero page for it", found(i)))
    m.report.each(m.pte_present & zero & ((m.pte & RW) != 0), "pte", lambda i: (
        "the zero page is mapped writable", found(i)))


def find_device_ptes(m):
    """Mask of the PTEs that map a device's frames: in VM_PFNMAP areas, which map nothing else, each
    frame once, and those that nobody maps are free."""
    pfnmap = np.append(m.vma["vm_flags"] & C["VM_PFNMAP"] != 0, False)[m.pte_vma]
    banks = m.kernel.nr_nodes * C["DEVICE_FRAMES"]
    frame = m.pte_pfn - m.max_pfn
    good = m.pte_present & pfnmap & (frame >= 0) & (frame < banks) & ((m.pte & SPECIAL) != 0)
    m.report.each(pfnmap & ~good, "device", lambda i: (
        "an area of a device's maps something else", {**m.pte_details(i), "found": pte_text(int(m.pte[i]))}))
    mapped = np.bincount(frame[good], minlength=banks)
    free = m.kernel.device_free[:m.kernel.nr_nodes, None] >> np.arange(C["DEVICE_FRAMES"], dtype=np.uint64) & 1
    m.report.each(mapped + free.ravel().astype(np.int64) != 1, "device", lambda i: (
        "a device's frame is mapped more than once, or neither mapped nor free, or both",
        {"expected": 1, "found": f"{mapped[i]} mappings, {'free' if free.ravel()[i] else 'in use'}"}))
    return good


def check_pte_protection(m):
    """A PTE allows no more than its VMA.  An anonymous page that can be written through one
    PTE has no other: copy-on-write would leak the writes to whoever shares it."""
    def found(i, expected):
        return {**m.pte_details(i), "found": pte_text(int(m.pte[i])), "expected": expected}

    inside = m.pte_present & (m.pte_vma >= 0)
    # One more, for the VMA number -1.
    flags = np.append(m.vma["vm_flags"], np.uint64(0))[m.pte_vma]
    writable = (m.pte & RW) != 0
    m.report.each(inside & writable & ((flags & VM_WRITE) == 0), "pte", lambda i: (
        "a writable PTE in a VMA that does not allow writing", found(i, "not RW")))
    allowed = (flags & VM_ACCESS) != 0
    m.report.each(inside & (allowed != ((m.pte & PRESENT) != 0)), "pte", lambda i: (
        "a PTE is PRESENT for the MMU exactly when its VMA allows any access",
        found(i, "PRESENT" if allowed[i] else "PROTNONE")))
    # RW has been seen to; the others come and go.
    fixed = ~np.uint64(PTE_PFN_MASK | ACCESSED | DIRTY | RW | SPECIAL)
    other = inside & (allowed == ((m.pte & PRESENT) != 0)) & (((m.pte ^ access_prot(flags)) & fixed) != 0)
    m.report.each(other, "pte", lambda i: (
        "a PTE has another protection than its VMA", found(i, pte_text(int(m.pte[i] & ~fixed | access_prot(flags)[i] & fixed)))))
    anon = (m.mapping[m.map_pfn] & ANON) != 0
    shared = anon & writable[m.maps] & (m.nr_maps[m.map_pfn] > 1)
    m.report.each(shared, "pte", lambda i: (
        f"a page with several mappings is mapped writable: {m.mapped_by(m.map_pfn[i])[0]}",
        found(m.maps[i], "not RW")))


def check_rmap(m):
    """rmap of a page finds each PTE that maps it: its mapping is the anon_vma of the VMA that the PTE
    lies in, or the mapping of that VMA's file, and its index the PTE's place there."""
    entry = m.maps[m.pte_vma[m.maps] >= 0]
    vma, pfn = m.pte_vma[entry], m.pte_pfn[entry]
    first = (m.vma["vm_start"] >> PAGE_SHIFT).astype(np.int64)
    start_index = m.vma["vm_pgoff"].astype(np.int64) - first
    file_page = (m.mapping[pfn] & ANON) == 0
    mapping = np.where(file_page & (m.vma_mapping[vma] != 0), m.vma_mapping[vma], m.vma["anon_vma"][vma] + ANON)
    index = m.pte_vpn[entry] + start_index[vma]
    found_mapping, found_index = m.mapping[pfn], m.index[pfn].astype(np.int64)
    m.report.each(found_mapping != mapping, "rmap", lambda i: (
        "the page's mapping is neither the anon_vma nor the file of the VMA that maps it",
        {**m.pte_details(entry[i]), "expected": hex(mapping[i]), "found": hex(found_mapping[i])}))
    m.report.each(found_index != index, "rmap", lambda i: (
        "the page's index is not its place in the VMA that maps it",
        {**m.pte_details(entry[i]), "expected": index[i], "found": found_index[i]}))


def check_rss(m):
    """anon_rss and file_rss count the PTEs that map a page of that sort."""
    anon = (m.mapping[m.map_pfn] & ANON) != 0
    for field, mask in (("anon_rss", anon), ("file_rss", ~anon)):
        count = np.bincount(m.pte_mm[m.maps][mask], minlength=len(m.mm))
        m.report.each(m.mm[field] != count, "counter", lambda i, field=field, count=count: (
            f"{field} is not the number of such PTEs of {m.mm_text(i)}",
            {**m.whose(i), "expected": count[i], "found": m.mm[field][i]}))


# ---- pages ------------------------------------------------------------------

def find_pagevecs(m):
    """A pagevec holds a reference to each of its pages, which are on no list yet, and wait
    in one place only."""
    pvecs = m.tasks["lru_add_pvecs"]
    nr = pvecs["nr"]
    m.report.each((nr > C["PAGEVEC_SIZE"]).any(axis=1), "pagevec", lambda cpu: (
        f"a pagevec of CPU {cpu} is longer than a pagevec",
        {"task": m.pid[cpu], "expected": f"at most {C['PAGEVEC_SIZE']}", "found": nr[cpu].max()}))
    used = np.arange(C["PAGEVEC_SIZE"]) < nr[:, :, None]
    offset = pvecs["pages"][used] - m.kernel.mem_map
    size = layout.sizeof("Page")
    task = m.pid[np.nonzero(used)[0]]
    good = (offset % size == 0) & (offset // size < m.max_pfn)
    m.report.each(~good, "pagevec", lambda i: (
        "a pagevec entry is no page", {"task": task[i], "found": hex(pvecs["pages"][used][i])}))
    pfn = (offset[good] // size).astype(np.int64)
    m.nr_held = np.bincount(pfn, minlength=m.max_pfn)
    waits = m.nr_held > 0

    def holder(page):
        return {"page": page, "task": task[good][pfn == page][0]}

    m.report.each(waits & m.has("PG_lru"), "pagevec", lambda page: (
        "a page in a pagevec is on an LRU list", holder(page)))
    m.report.each(m.nr_held > 1, "pagevec", lambda page: (
        "a page is in pagevecs more than once", {**holder(page), "found": m.nr_held[page]}))


def zero_page(m):
    """Mask of the one zero page."""
    mask = np.zeros(m.max_pfn, bool)
    mask[m.kernel.zero_pfn] = True
    return mask


def check_counts(m):
    """_mapcount + 1 is the number of PTEs; _count is that, one for each pagevec slot, one
    for a page table, one for the zero page, one for the page cache, one for buffers.  Isolated pages have one more, but nobody
    isolates a page in a still machine."""
    def details(pfn, expected, found):
        text, where = m.mapped_by(pfn)
        return f": {text}", {**where, "expected": expected, "found": found}

    def mapcount(pfn):
        text, where = details(pfn, m.nr_maps[pfn] - 1, m.mapcount[pfn])
        return f"_mapcount is not the number of PTEs - 1{text}", where

    def refcount(pfn):
        text, where = details(pfn, expected[pfn], m.count[pfn])
        return f"_count is not the number of references{text}", where

    m.report.each(m.mapcount + 1 != m.nr_maps, "mapcount", mapcount)
    expected = m.nr_maps + m.nr_held + m.table + zero_page(m) + m.cached + m.private
    wrong, owned = m.count != expected, (expected > 0) | m.free
    m.report.each(wrong & owned, "refcount", refcount)
    # A page table that nobody leads to has been told already.
    m.report.each(wrong & ~owned & ~m.has("PG_pagetable"), "leak", lambda pfn: (
        "a frame in use that nobody owns",
        {"page": pfn, "expected": 0, "found": m.count[pfn]}))
    m.report.each(~wrong & ~owned & ~m.absent, "leak", lambda pfn: (
        "a frame that is neither in use nor free", {"page": pfn}))


def check_owners(m):
    """A frame is one thing only: free, a page table, a mapped page, the zero page, or one of a node
    without memory."""
    uses = {"that of a node without memory": m.absent, "free": m.free, "a page table": m.table, "the zero page": zero_page(m),
            "mapped, cached or in a pagevec": (m.nr_maps > 0) | (m.nr_held > 0) | m.cached | m.private}
    several = sum(mask.astype(np.int8) for mask in uses.values()) > 1

    def describe(pfn):
        text, where = m.mapped_by(pfn)
        names = " and ".join(name for name, mask in uses.items() if mask[pfn])
        return f"a frame is {names} at once: {text}", where

    m.report.each(several, "owner", describe)


def check_page_flags(m):
    """In a still machine no page is locked or under writeback; PG_reserved is the zero
    page's, and that of frames that are not there; an anonymous page that is mapped is swap-backed, and on an LRU list or about to
    be, as is a page of the page cache; what is neither, nor an orphan that its buffers keep, is on
    none."""
    def found(message):
        def one(pfn):
            text, where = m.mapped_by(pfn)
            return f"{message}: {text}{page_lock_text(m, pfn)}", \
                {**where, "found": page_flags_text(int(m.flags[pfn]))}
        return one

    mapped, lru = m.nr_maps > 0, m.has("PG_lru")
    unknown = m.flags & ~np.uint64(sum(1 << bit for bit in PAGE_FLAGS.values()) | ((1 << 64) - (1 << NODE_SHIFT)))
    m.report.each((unknown != 0) & ~m.free, "flags", found("a page has a flag that there is not"))
    m.report.each(m.has("PG_locked"), "flags", found("a page is locked"))
    m.report.each(m.has("PG_waiters") & ~m.has("PG_locked", "PG_writeback") & ~m.free, "flags", found(
        "PG_waiters is left on a page that nobody unlocks"))
    m.report.each(m.has("PG_writeback"), "flags", found("a page is under writeback"))
    m.report.each(m.has("PG_reserved") != (zero_page(m) | m.absent), "flags", found(
        "PG_reserved is not on the zero page and absent frames alone"))
    anon = mapped & ((m.mapping & ANON) != 0)
    m.report.each(anon & ~m.has("PG_swapbacked"), "flags", found(
        "an anonymous page is not PG_swapbacked"))
    m.report.each(anon & ~m.has("PG_uptodate"), "flags", found(
        "an anonymous page is mapped and was never filled"))
    kernels = m.table | zero_page(m)
    own = np.where(m.table, 1 << PAGE_FLAGS["PG_pagetable"], 1 << PAGE_FLAGS["PG_reserved"]).astype(np.uint64)
    wrong = ((m.flags & ~np.uint64((1 << 64) - (1 << NODE_SHIFT))) != own) | (m.mapping != 0)
    m.report.each(kernels & wrong & ~m.free & ~mapped, "flags", found(
        "a page table, or the zero page, has the flags or the mapping of something else"))
    if m.frames[m.kernel.zero_pfn].any():
        m.report.add("flags", "the zero page is not zero", page=m.kernel.zero_pfn)
    m.report.each((mapped | m.cached) & ~lru & (m.nr_held == 0), "lru", found(
        "a mapped or cached page is on no LRU list and in no pagevec"))
    m.report.each(lru & ~mapped & ~m.cached & ~m.private & ~m.free, "lru", found(
        "a page on an LRU list is neither mapped nor cached"))


def check_mlocked(m):
    """A page is PG_mlocked exactly when a VM_LOCKED area maps it, and nothing else is on the
    unevictable list."""
    locked_vma = np.append(m.vma["vm_flags"] & C["VM_LOCKED"] != 0, False)
    locked = np.zeros(m.max_pfn, bool)
    locked[m.map_pfn[locked_vma[m.pte_vma[m.maps]]]] = True

    def found(message, expected):
        def one(pfn):
            text, where = m.mapped_by(pfn)
            return f"{message}: {text}", {**where, "expected": expected, "found": page_flags_text(int(m.flags[pfn]))}
        return one

    mlocked = m.has("PG_mlocked")
    m.report.each(locked & ~mlocked, "mlock", found("a locked area maps a page that is not PG_mlocked", "PG_mlocked"))
    # A page of the swap cache may be locked for an area that has a swap entry for it.
    m.report.each(mlocked & ~locked & ~m.free & ~m.has("PG_swapcache"), "mlock", found("a PG_mlocked page that no locked area maps", "not PG_mlocked"))
    m.report.each(m.has("PG_unevictable") & ~mlocked & ~m.free, "mlock", found(
        "a page on the unevictable list could be evicted", "PG_mlocked"))


def page_lock_text(m, pfn):
    """Who holds a page's lock, as far as tasks say."""
    page = m.kernel.mem_map + pfn * layout.sizeof("Page")
    holders = [m.pid[cpu] for cpu in range(len(m.pid))
               if page | C["HELD_PAGE"] in
               m.tasks["held_locks"][cpu][:min(int(m.tasks["nr_held"][cpu]), C["HELD_LOCKS_MAX"])]]
    return f"; locked by task {', '.join(map(str, holders))}" if holders else ""


# ---- free pages -------------------------------------------------------------

def find_free_blocks(m):
    """Free blocks have an order below MAX_ORDER, are aligned to their size and lie in their
    zone; no two overlap.  Marks all frames in them as free."""
    head = np.flatnonzero(m.has("PG_buddy"))
    order = m.private_word[head]
    relative = head % m.zone_size
    size = np.left_shift(1, np.minimum(order, MAX_ORDER - 1).astype(np.int64))
    bad = (order >= MAX_ORDER) | (relative % size != 0) | (relative + size > m.zone_size)
    m.report.each(bad, "buddy", lambda i: (
        "a free block has no order, is not aligned to it, or leaves its zone",
        {"page": head[i], "found": f"order {order[i]}"}))
    m.block_head, m.block_order = head[~bad], order[~bad].astype(np.int64)
    edges = np.zeros(m.max_pfn + 1, np.int64)
    np.add.at(edges, m.block_head, 1)
    np.add.at(edges, m.block_head + (1 << m.block_order), -1)
    cover = np.cumsum(edges[:-1])
    m.free = cover > 0
    m.report.each(cover > 1, "buddy", lambda pfn: ("free blocks overlap", {"page": pfn}))


def check_buddies(m):
    """A free block's buddy of the same order is not free too: they would have been merged."""
    order_at = np.full(m.max_pfn, -1)
    order_at[m.block_head] = m.block_order
    relative = m.block_head % m.zone_size
    relative_buddy = relative ^ (1 << m.block_order)
    buddy = m.block_head - relative + relative_buddy
    # Left ones only, so that a pair is told once; and none beyond the end of a zone.
    pairs = (buddy > m.block_head) & (m.block_order < MAX_ORDER - 1) & (relative_buddy < m.zone_size)
    pairs[pairs] = order_at[buddy[pairs]] == m.block_order[pairs]
    m.report.each(pairs, "buddy", lambda i: (
        f"two free buddies of order {m.block_order[i]} were not merged: pages "
        f"{m.block_head[i]} and {buddy[i]}", {"page": m.block_head[i]}))


def check_free_pages(m):
    """A free page is blank: no reference, mapping or flag but its node, and PG_buddy on the
    first of a block.  Anything else was left by, or belongs to, somebody who still uses it."""
    node_bits = ((1 << 6) - 1) << NODE_SHIFT
    expected = np.zeros(m.max_pfn, np.uint64)
    expected[m.block_head] = 1 << PAGE_FLAGS["PG_buddy"]
    flags = m.flags & ~np.uint64(node_bits)
    m.report.each(m.free & (flags != expected), "free_page", lambda pfn: (
        "a free page has flags", {"page": pfn, "expected": page_flags_text(int(expected[pfn])),
                                  "found": page_flags_text(int(m.flags[pfn]))}))
    m.report.each(m.free & (m.mapping != 0), "free_page", lambda pfn: (
        "a free page has a mapping", {"page": pfn, "expected": 0, "found": hex(m.mapping[pfn])}))


def check_free_counts(m):
    """nr_free counts the blocks of each order, NR_FREE_PAGES the frames in them."""
    key = m.block_head // m.zone_size * MAX_ORDER + m.block_order
    blocks = np.bincount(key, minlength=len(m.zones) * MAX_ORDER)
    nr_free = m.zones["free_area"]["nr_free"].ravel()
    m.report.each(nr_free != blocks, "counter", lambda i: (
        f"zone {i // MAX_ORDER}: free_area[{i % MAX_ORDER}].nr_free is not the number of blocks",
        {"expected": blocks[i], "found": nr_free[i]}))


# ---- lists of pages, counters -----------------------------------------------

def list_heads(m):
    """Addresses and names of all list heads that pages hang on: NR_LRU for each zone, then
    MAX_ORDER for each zone."""
    addresses, names = [], []
    for field, count, step, name in (
            ("lru", NR_LRU, layout.sizeof("ListHead"), "{}"),
            ("free_area", MAX_ORDER, layout.sizeof("FreeArea"), "free_area[{}]")):
        for nid in range(len(m.zones)):
            first = m.kernel.zones + nid * layout.sizeof("Zone") + layout.offsetof("Zone", field)
            for i in range(count):
                addresses.append(first + i * step)
                names.append(f"zone {nid} " + name.format(LRU_NAMES[i] if field == "lru" else i))
    return np.array(addresses, np.uint64), names


def check_page_lists(m):
    """A page with PG_lru is on the list of its zone that its flags say, a free block on that
    of its order, and nothing else is on these lists, forwards or backwards."""
    head_at, names = list_heads(m)
    owner = np.full(m.max_pfn + len(head_at), -1)
    owner[m.max_pfn:] = np.arange(m.max_pfn, len(owner))
    on_lru = np.flatnonzero(m.has("PG_lru") & ~m.has("PG_buddy"))
    owner[on_lru] = m.max_pfn + on_lru // m.zone_size * NR_LRU + lru_of(m.flags[on_lru])
    free_lists = m.max_pfn + len(m.zones) * NR_LRU
    owner[m.block_head] = free_lists + m.block_head // m.zone_size * MAX_ORDER + m.block_order
    next_, prev = ring_links(owner[:m.max_pfn] >= 0, (m.next, m.prev), m.kernel.mem_map + layout.offsetof("Page", "lru"),
                             layout.sizeof("Page"), head_at, m.gather(head_at, "ListHead"))
    broken, lost = check_rings(next_, prev, owner)

    def name(node):
        if node < 0:
            return "something that is no list entry"
        return f"page {node}" if node < m.max_pfn else "the head"

    def describe(node):
        where = f"of {names[owner[node] - m.max_pfn]}"
        details = {"page": node} if node < m.max_pfn else {}
        if node < m.max_pfn:
            details = {**m.mapped_by(node)[1], "found": page_flags_text(int(m.flags[node]))}
        if lost[node]:
            return f"{name(node)} {where} is on a ring that does not lead to the head", details
        after = next_[node]
        text = f"{name(node)} {where}: next is {name(after)}, "
        if after < 0 or owner[after] != owner[node]:
            return text + "which is not on that list", details
        return text + f"whose prev is {name(prev[after])}", details

    wrong = broken | lost
    free_list = owner >= free_lists
    m.report.each(wrong & ~free_list, "lru", describe)
    m.report.each(wrong & free_list, "free_list", describe)


def check_zone_counters(m):
    """vm_stat of each zone, with what CPUs have counted for themselves, is what its pages add up to."""
    found = vmstat.zone_page_states()
    mapped = m.nr_maps > 0
    anon = (m.mapping & ANON) != 0
    on_lru = m.has("PG_lru") & ~m.has("PG_buddy")
    lru = lru_of(m.flags)
    expected = {item: m.per_zone(on_lru & (lru == i)) for i, item in enumerate(
        ("NR_INACTIVE_ANON", "NR_ACTIVE_ANON", "NR_INACTIVE_FILE", "NR_ACTIVE_FILE",
         "NR_UNEVICTABLE"))}
    expected["NR_FREE_PAGES"] = m.per_zone(m.free)
    expected["NR_ANON_PAGES"] = m.per_zone(mapped & anon)
    expected["NR_FILE_MAPPED"] = m.per_zone(mapped & ~anon)
    expected["NR_PAGETABLE"] = m.per_zone(m.table)
    expected["NR_MLOCK"] = m.per_zone(m.has("PG_mlocked") & ~m.free)
    expected["NR_FILE_PAGES"] = m.per_zone(m.cached)
    expected["NR_FILE_DIRTY"] = m.per_zone(m.cached & m.accounts & m.has("PG_dirty"))
    expected["NR_WRITEBACK"] = m.per_zone(m.cached & m.has("PG_writeback"))
    stray = m.tasks["vm_stat_diff"].reshape(-1, C["MAX_NUMNODES"], C["VM_STAT_STRIDE"]).copy()
    stray[:, :len(m.zones), :C["NR_VM_ZONE_STAT_ITEMS"]] = 0
    m.report.each(stray.any(axis=(1, 2)), "counter", lambda cpu: (
        f"CPU {cpu} has counted for a zone, or an item, that there is not", {"task": m.pid[cpu]}))
    for item, sums in expected.items():
        m.report.each(found[:, C[item]] != sums, "counter", lambda nid, item=item, sums=sums: (
            f"zone {nid}: {item} is wrong", {"expected": sums[nid], "found": found[nid, C[item]]}))


# ---- TLBs -------------------------------------------------------------------

def check_tlbs(m):
    """A translation in a TLB is the page table's: the PTE is PRESENT and ACCESSED and maps
    that frame; it is RW if the TLB lets writes pass, and DIRTY if it lets them pass unseen.
    Otherwise a store goes to a page that is not there any more.  CPUs in the middle of an access are
    left out.  A CPU that runs an address space is in its cpu_vm_mask, or no flush would ever reach it."""
    has_mm = m.users_of[m.quiet] >= 0
    rows, tlb = m.quiet[has_mm], m.tlb[has_mm]
    row, slot = np.nonzero(tlb)
    entry, cpu = tlb[row, slot], rows[row]
    mm = m.users_of[cpu]
    vpn = (entry >> C["TLB_TAG_SHIFT"] << C["TLB_INDEX_BITS"]).astype(np.int64) + slot
    pfn = (entry & ((1 << C["TLB_TAG_SHIFT"]) - 1)) >> C["TLB_PFN_SHIFT"]
    pte = lookup_ptes(m, mm, vpn)
    needed = PRESENT | ACCESSED | np.where((entry & C["TLB_WRITE"]) != 0, RW, 0) | \
        np.where((entry & C["TLB_DIRTY"]) != 0, DIRTY, 0)
    valid = (entry & C["TLB_VALID"]) != 0
    stale = ((pte & needed.astype(np.uint64)) != needed) | \
        ((pte & PTE_PFN_MASK) >> PAGE_SHIFT != pfn)

    def describe(i):
        bits = [name for name in ("WRITE", "DIRTY") if entry[i] & C[f"TLB_{name}"]]
        return f"CPU {cpu[i]}: a TLB entry does not agree with the PTE", {
            "page": int(pfn[i]) if pfn[i] < m.max_pfn else None, "task": m.pid[cpu[i]],
            "mm": m.mm["id"][mm[i]], "address": int(vpn[i]) << PAGE_SHIFT,
            "expected": pte_text(int(pte[i])), "found": f"page {'|'.join([str(pfn[i]), *bits])}"}

    m.report.each(valid & stale, "tlb", describe)
    m.report.each(~valid, "tlb", lambda i: (
        f"CPU {cpu[i]}: TLB slot {slot[i]} is neither empty nor valid",
        {"task": m.pid[cpu[i]], "found": hex(entry[i])}))
    # Whether it has translations already or not: the next access makes one.
    used = np.flatnonzero(m.running & (m.users_of >= 0))
    mask = m.mm["cpu_vm_mask"][m.users_of[used], used // 64] >> (used % 64).astype(np.uint64)
    m.report.each(mask & 1 == 0, "tlb", lambda i: (
        f"CPU {used[i]} runs an address space and is not in its cpu_vm_mask",
        {**m.whose(m.users_of[used[i]]), "task": m.pid[used[i]]}))


def lookup_ptes(m, mm, vpn):
    """The PTEs of pages `vpn` of address spaces `mm`; 0 where there is none."""
    if not len(m.pte):
        return np.zeros(len(vpn), np.uint64)
    key = (mm << VPN_BITS) + vpn
    at = np.minimum(np.searchsorted(m.pte_key, key), len(m.pte) - 1)
    return np.where((m.pte_key[at] == key) & (vpn < 1 << VPN_BITS), m.pte[at], 0)


# ---- locks ------------------------------------------------------------------

def check_locks(m):
    """Nobody holds a lock in a still machine, or waits for one: every Spinlock and RwSem, wherever a struct
    has one, and every page table's split lock is free."""
    anon_vmas = m.gather(m.anon_vmas, "AnonVma")
    kernel = layout.view("Kernel", m.kernel.address, 1)
    check_lock_fields(m, kernel, lambda i: ("kernel", {}))
    check_lock_fields(m, m.zones, lambda i: (f"zone {i}", {}))
    check_lock_fields(m, m.kernel.caches[:m.kernel.nr_caches], lambda i: (cache_name(m, i), {}))
    check_lock_fields(m, m.tasks, lambda i: (f"CPU {i}", {}))
    check_lock_fields(m, m.mm, lambda i: (m.mm_text(i), {
        "mm": m.mm["id"][i], "address": m.mm_address[i]}))
    check_lock_fields(m, anon_vmas, lambda i: (
        f"anon_vma {m.anon_vmas[i]:#x}", {"address": m.anon_vmas[i]}))
    check_lock_fields(m, m.mem_cgroup, lambda i: (
        audit_memcg.group_text(m, i), {"address": m.mem_cgroup_address[i]}))
    check_lock_fields(m, m.page_cgroup, lambda pfn: ("page_cgroup", {"page": pfn}))
    check_lock_fields(m, m.inode, lambda i: (f"inode {m.inode['i_id'][i]}", {"address": m.inode_address[i]}))
    check_lock_fields(m, m.gather(list(m.files), "FilesStruct"), lambda i: ("a descriptor table", {}))
    table = np.flatnonzero(m.table)
    words = m.ptl[table]
    m.report.each(words != 0, "lock", lambda i: lock_finding(
        m, f"ptl of a page table of {m.mm_text(m.table_mm[table[i]])}", int(words[i]),
        {"page": table[i], "mm": m.mm["id"][m.table_mm[table[i]]]}))


def check_lock_fields(m, rows, describe, path=""):
    """The locks in an array of structs, and in structs that these have as members; describe(i) gives the
    owner's name and details."""
    for field in rows.dtype.names:
        if rows.dtype[field] not in (layout.dtypes["Spinlock"], layout.dtypes["RwSem"]):
            if rows.dtype[field].names:
                check_lock_fields(m, rows[field], describe, f"{path}{field}.")
            continue
        words = rows[field]["word"]
        semaphore = rows.dtype[field] == layout.dtypes["RwSem"]
        # The rest of a semaphore that nobody holds; all but its sequence.
        rest = rows[field]["owner"] | rows[field]["writers_waiting"] if semaphore else np.zeros_like(words)

        def finding(i, field=field, words=words, rest=rest, semaphore=semaphore):
            name, details = describe(i)
            name, word = f"{name}: {path}{field}", int(words[i])
            if not word:
                return f"{name} is free, and has an owner or writers that wait", {**details, "expected": 0, "found": rest[i]}
            if semaphore and not word & C["RWSEM_WRITER"]:
                return f"{name} is held by {word & C['RWSEM_READERS']} readers", \
                    {**details, "expected": 0, "found": hex(word)}
            holder = int(rows[field]["owner"][i]) if semaphore else word
            return lock_finding(m, name, holder, {**details, "found": hex(word)})

        m.report.each((words | rest) != 0, "lock", finding)


def lock_finding(m, name, holder, details):
    """Message and details of a lock that CPU `holder` - 1 holds."""
    cpu = (holder & ~C["SPIN_WAITERS"]) - 1
    if 0 <= cpu < len(m.pid):
        details = {**details, "task": m.pid[cpu]}
    return f"{name} is held by {m.holder_text(holder)}", \
        {"expected": 0, "found": hex(holder), **details}


# ---- poison -----------------------------------------------------------------

def check_frame_poison(m, chunk=4096):
    """A free frame that the host has memory for was used before, so it is filled with
    PAGE_POISON; one that is all zero was only looked at.  Reads every such frame."""
    vector = np.zeros(m.max_pfn, np.uint8)
    if _libc.mincore(ctypes.c_void_p(m.kernel.frames_base), ctypes.c_size_t(m.max_pfn * PAGE_SIZE),
                     ctypes.c_void_p(vector.ctypes.data)):
        raise OSError(ctypes.get_errno(), "mincore")
    poison = int.from_bytes(bytes([C["PAGE_POISON"]]) * 8, "little")
    resident = np.flatnonzero(m.free & (vector & 1 != 0))
    for first in range(0, len(resident), chunk):
        pfn = resident[first:first + chunk]
        words = m.frames[pfn]
        dirty = (words != poison).any(axis=1) & words.any(axis=1)
        m.report.each(dirty, "poison", lambda i, pfn=pfn, words=words: (
            "a free frame was written to", {
                "page": pfn[i], "expected": hex(poison),
                "found": hex(words[i][words[i] != poison][0])}))


# ---- all of it --------------------------------------------------------------

def audit(strict_tlb=True, check_poison=False):
    """Audits the machine whose block is mapped in this process; nobody may be inside the
    kernel meanwhile.

    Without `strict_tlb` the TLBs are left out.  `check_poison` also reads all free frames
    that were ever used, if the machine poisons them.  Returns an Audit; raises
    OSError(ENXIO) when no machine is mapped.
    """
    report = _Report()
    if not check_header(report) or not check_regions(report):
        return Audit(report.findings)
    m = _Machine(report)
    # Each of the find_* functions needs those before it.
    for step in (check_zones, find_caches, find_free_objects, find_rcu_pending,
                 check_tasks, find_address_spaces, find_vmas, check_vmas, check_rb_trees,
                 find_files, check_vma_flags, find_cached_pages, find_swap_cache, find_buffers, check_i_mmap, check_anon_vmas,
                 find_shared_policies, find_policies, check_cpusets, audit_memcg.find_mem_cgroups, find_page_tables,
                 check_page_tables, find_pagevecs,
                 find_free_blocks, check_ptes, check_swap_map, check_pte_protection, check_rmap,
                 check_cached_pages, check_rss,
                 check_counts, check_owners, check_page_flags, check_mlocked,
                 check_buddies, check_free_pages, check_free_counts,
                 check_page_lists, check_zone_counters, audit_memcg.check_mem_cgroup_tree,
                 audit_memcg.check_page_cgroups, audit_memcg.check_mem_cgroup_counters,
                 audit_memcg.check_mem_cgroup_lists,
                 check_slab_usage, check_locks):
        step(m)
    if strict_tlb:
        check_tlbs(m)
    if check_poison and m.kernel.poison:
        check_frame_poison(m)
    return Audit(report.findings)
