# SPDX-License-Identifier: GPL-2.0-only
"""The machine as arrays: what the steps of an audit read, and what each leaves for those behind it.

May import: layout, dump.
"""
import numpy as np

from shmkern import layout
from shmkern.dump import PAGE_FLAGS

C = layout.constants

BASE = C["DIRECT_MAP_BASE"]
PAGE_SIZE = C["PAGE_SIZE"]
PAGE_SHIFT = C["PAGE_SHIFT"]
ENTRIES = C["PTRS_PER_TABLE"]
# A macro in pagetable.pxd, so layout does not know it.
TASK_SIZE = 0x7ffffffff000
# An address space and a page number in one sortable number.
VPN_BITS = 36
MAPPED_BY_MAX = 4


class Machine:
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
        mem_cgroup_address, mem_cgroup, mem_cgroup_zones, page_cgroup, group_of   see memcg.py
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
