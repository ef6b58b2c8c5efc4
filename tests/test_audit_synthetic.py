# SPDX-License-Identifier: GPL-2.0-only
"""The audit on machines put together by hand.

No kernel runs here: a builder writes a small consistent machine into fresh memory at
DIRECT_MAP_BASE, word by word, and a test plants one kind of damage in it.  So the audit is
checked against the promises themselves, also those that a sound kernel never breaks.

Each machine lives in a forked child, since its address is taken once for good in a process.
"""
import ctypes
import errno
import json
import os
import pickle
import random
import traceback

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from shmkern import layout
from shmkern.audit import AuditError, Finding, audit, ptes
from shmkern.audit.findings import LIMIT
from shmkern.audit.lists import check_rings, walk_rb_tree

C = layout.constants
BASE = C["DIRECT_MAP_BASE"]
PAGE = C["PAGE_SIZE"]
MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED_NOREPLACE = 0x1, 0x20, 0x4000, 0x100000
POISON_WORD = 0x6b6b6b6b6b6b6b6b
LIST_POISON = 0x100100
SWAP_SLOTS = 64
CACHES = {"VmAreaStruct": "vm_area_cachep", "MmStruct": "mm_cachep", "AnonVma": "anon_vma_cachep",
          "Mempolicy": "policy_cachep", "SpNode": "sp_cachep", "RadixTreeNode": "radix_tree_node_cachep", "Inode": "inode_cachep",
          "File": "filp_cachep", "FilesStruct": "files_cachep", "BufferHead": "buffer_head_cachep"}

PRESENT, RW, USER = C["_PAGE_PRESENT"], C["_PAGE_RW"], C["_PAGE_USER"]
ACCESSED, DIRTY = C["_PAGE_ACCESSED"], C["_PAGE_DIRTY"]
PROTNONE, SPECIAL = C["_PAGE_PROTNONE"], C["_PAGE_SPECIAL"]
READABLE = PRESENT | USER | ACCESSED | 1 << 63
WRITABLE = READABLE | RW | DIRTY


def flag(*names):
    return sum(1 << C[name] for name in names)


def unmap_machine():
    """Unmaps whatever this process has inherited in the terabyte from DIRECT_MAP_BASE on, and the page below."""
    assert ctypes.CDLL(None).munmap(ctypes.c_void_p(C["PERCPU_BASE"]), ctypes.c_size_t(1 << 40)) == 0


def in_child(function, *args):
    """Runs function(*args) in a forked process without a machine; returns what it returns."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            unmap_machine()
            outcome = True, function(*args)
        except BaseException:
            outcome = False, traceback.format_exc()
        with os.fdopen(write_end, "wb") as pipe:
            pickle.dump(outcome, pipe)
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        data = pipe.read()
    status = os.waitpid(pid, 0)[1]
    assert status == 0, f"the child ended with wait status {status}"
    good, value = pickle.loads(data)
    assert good, value
    return value


# ---- building a machine -----------------------------------------------------

class Synthetic:
    """An empty machine at DIRECT_MAP_BASE; frames are handed out from each zone's start.

    Everything that finish() derives (lists, counters) must not be looked at before it.
    """

    def __init__(self, nodes=2, frames_per_node=256, max_tasks=4, slab_pages=16):
        self.frames_per_node, self.max_pfn = frames_per_node, nodes * frames_per_node
        self.end = BASE + PAGE
        kernel_at = self.carve(layout.sizeof("Kernel"))
        places = {name: self.carve(count * layout.sizeof(struct)) for name, struct, count in (
            ("zones", "Zone", nodes), ("nodes", "PgData", nodes), ("tasks", "Task", max_tasks),
            ("mem_map", "Page", self.max_pfn),
            ("wait_table", "WaitQueueHead", C["WAIT_TABLE_SIZE"]), ("swap_maps", "u16", SWAP_SLOTS))}
        places["slabs"] = self.carve(slab_pages * layout.sizeof("Slab"))
        slab = self.carve(slab_pages * PAGE)
        self.metadata_end = self.end
        frames_at = self.carve(self.max_pfn * PAGE)
        self.map_memory(self.end - BASE)
        self.kernel = kernel = layout.struct("Kernel", kernel_at)
        for name, address in places.items():
            kernel[name] = address
        kernel.nr_nodes, kernel.frames_per_node = nodes, frames_per_node
        kernel.max_pfn, kernel.max_tasks = self.max_pfn, max_tasks
        kernel.frames_base, kernel.poison = frames_at, 1
        kernel.slab_base = kernel.slab_next = slab
        kernel.slab_end = slab + slab_pages * PAGE
        kernel.swap_maps_size = SWAP_SLOTS
        self.slabs = layout.view("Slab", kernel.slabs, slab_pages)
        self.zones = layout.view("Zone", kernel.zones, nodes)
        self.tasks = layout.view("Task", kernel.tasks, max_tasks)
        self.tasks["cpu"] = np.arange(max_tasks)
        self.pages = layout.view("Page", kernel.mem_map, self.max_pfn)
        self.frames = layout.view("u64", frames_at, self.max_pfn * 512).reshape(self.max_pfn, 512)
        self.init_header()
        self.init_pages()
        self.init_caches()
        self.mms, self.vmas, self.anon_vmas = [], {}, {}
        self.leaf_tables = {}

    def carve(self, size):
        start, self.end = self.end, -(-(self.end + size) // PAGE) * PAGE
        return start

    @staticmethod
    def map_memory(size):
        mmap = ctypes.CDLL(None, use_errno=True).mmap
        mmap.restype = ctypes.c_void_p
        mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
        flags = MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE
        assert mmap(BASE, size, 3, flags, -1, 0) == BASE

    def init_header(self):
        header = layout.header()
        header.magic, header.layout_hash = C["BLOCK_MAGIC"], layout.layout_hash()
        header.size, header.base = self.end - BASE, BASE
        header.metadata_size = self.metadata_end - BASE

    def init_pages(self):
        nid = np.arange(self.max_pfn, dtype=np.uint64) // self.frames_per_node
        self.pages["flags"] = nid << C["NODES_PGSHIFT"]
        self.pages["_mapcount"] = -1
        self.next_frame = [nid * self.frames_per_node for nid in range(len(self.zones))]
        for nid, zone in enumerate(self.zones):
            zone["node"], zone["zone_start_pfn"] = nid, nid * self.frames_per_node
            zone["spanned_pages"] = zone["present_pages"] = self.frames_per_node
            node = layout.view("PgData", self.kernel.nodes, len(self.zones))[nid]
            node["node_id"] = nid
            node["zonelist"] = [*range(nid, len(self.zones)), *range(nid)] + [-1] * (C["MAX_NUMNODES"] - len(self.zones))
            node["node_zone"] = self.kernel.zones + nid * layout.sizeof("Zone")
        self.kernel.node_states[:] = (1 << len(self.zones)) - 1
        self.kernel.device_free[:len(self.zones)] = (1 << C["DEVICE_FRAMES"]) - 1
        self.kernel.cpusets["in_use"][0], self.kernel.cpusets["parent"][0] = 1, -1
        self.kernel.cpusets["mems_allowed"][0] = self.tasks["mems_allowed"][:] = (1 << len(self.zones)) - 1
        self.kernel.zero_pfn = zero = self.take_frames(0, 1)[0]
        self.pages["flags"][zero] |= flag("PG_reserved")
        self.pages["_count"][zero] = 1

    # -- slab

    def init_caches(self):
        self.kernel.nr_caches = len(CACHES)
        self.list_init(self.kernel.address + layout.offsetof("Kernel", "slabs_free"))
        self.list_init(self.kernel.address + layout.offsetof("Kernel", "inodes"))
        for struct, field in CACHES.items():
            cache = self.cache(struct)
            cache.object_size, cache.name = layout.sizeof(struct), field[:-1].encode()
            self.kernel[field] = cache.address
            self.list_init(cache.address + layout.offsetof("KmemCache", "slabs_partial"))

    def cache(self, struct):
        return layout.struct("KmemCache", self.kernel.address + layout.offsetof("Kernel", "caches") +
                             list(CACHES).index(struct) * layout.sizeof("KmemCache"))

    def slab_of(self, address):
        return self.slabs[(int(address) - self.kernel.slab_base) // PAGE]

    def slab_entry(self, address):
        return self.kernel.slabs + (address - self.kernel.slab_base) // PAGE * layout.sizeof("Slab")

    def words(self, struct, address):
        return layout.view("u64", address, layout.sizeof(struct) // 8)

    def list_init(self, head):
        layout.view("u64", head, 2)[:] = head

    def list_add(self, entry, head):
        first = int(layout.view("u64", head, 2)[0])
        layout.view("u64", entry, 2)[:] = first, head
        layout.view("u64", first, 2)[1] = entry
        layout.view("u64", head, 2)[0] = entry

    def list_del(self, entry):
        following, before = layout.view("u64", entry, 2).tolist()
        layout.view("u64", following, 2)[1] = before
        layout.view("u64", before, 2)[0] = following

    def slab_free(self, struct, address):
        slab, words = self.slab_of(address), self.words(struct, address)
        words[:] = POISON_WORD
        words[0], slab["freelist"] = slab["freelist"], address
        slab["inuse"] -= 1
        self.cache(struct).nr_free += 1

    def slab_of_cache(self, struct):
        """The number of the first slab of a struct's cache."""
        return int(np.flatnonzero(self.slabs["cache"] == self.cache(struct).address)[0])

    def slab_page(self):
        """A page of the arena, poisoned and nobody's."""
        address = self.kernel.slab_next
        self.kernel.slab_next = address + PAGE
        layout.view("u64", address, PAGE // 8)[:] = POISON_WORD
        return address

    def slab_alloc(self, struct):
        cache, size = self.cache(struct), layout.sizeof(struct)
        partial = cache.address + layout.offsetof("KmemCache", "slabs_partial")
        if layout.view("u64", partial, 1)[0] == partial:
            page = self.slab_page()
            self.slab_of(page)["cache"], self.slab_of(page)["inuse"] = cache.address, PAGE // size
            cache.nr_objects += PAGE // size
            for index in range(PAGE // size):
                self.slab_free(struct, page + index * size)
            self.list_add(self.slab_entry(page), partial)
        entry = int(layout.view("u64", partial, 1)[0])
        slab = self.slabs[(entry - self.kernel.slabs) // layout.sizeof("Slab")]
        address = int(slab["freelist"])
        words = self.words(struct, address)
        slab["freelist"] = words[0]
        slab["inuse"] += 1
        cache.nr_free -= 1
        words[:] = 0
        if not slab["freelist"]:
            self.list_del(entry)
        return layout.struct(struct, address)

    # -- address spaces

    def new_mm(self, *slots):
        """An address space run by the tasks in these slots."""
        mm = self.slab_alloc("MmStruct")
        self.mms.append(mm)
        self.vmas[mm.address] = []
        mm.id, mm.mm_users = len(self.mms), len(slots)
        mm.pgd = self.frame_address(self.new_table(0))
        for slot in slots:
            task = self.tasks[slot]
            task["mm"], task["state"], task["pid"] = mm.address, C["TASK_RUNNING"], slot + 1
            mm.cpu_vm_mask[slot // 64] |= np.uint64(1 << slot % 64)
        return mm

    def new_anon_vma(self):
        anon_vma = self.slab_alloc("AnonVma")
        self.anon_vmas[anon_vma.address] = []
        return anon_vma

    def new_vma(self, mm, start, nr_pages, vm_flags, anon_vma=None, pgoff=None):
        vma = self.slab_alloc("VmAreaStruct")
        vma.vm_mm, vma.vm_start, vma.vm_end = mm.address, start, start + nr_pages * PAGE
        vma.vm_flags = vm_flags | C["VM_MAYREAD"] | C["VM_MAYWRITE"] | C["VM_MAYEXEC"]
        vma.vm_page_prot = READABLE if vm_flags & C["VM_READ"] else PROTNONE | ACCESSED
        vma.vm_pgoff = start // PAGE if pgoff is None else pgoff
        if anon_vma is not None:
            vma.anon_vma = anon_vma.address
            self.anon_vmas[anon_vma.address].append(vma)
        self.vmas[mm.address].append(vma)
        mm.map_count += 1
        mm.total_vm += nr_pages
        mm.locked_vm += nr_pages if vm_flags & C["VM_LOCKED"] else 0
        return vma

    # -- frames and page tables

    def take_frames(self, nid, count):
        first = self.next_frame[nid]
        self.next_frame[nid] += count
        assert self.next_frame[nid] <= (nid + 1) * self.frames_per_node
        return np.arange(first, first + count)

    def frame_address(self, pfn):
        return self.kernel.frames_base + int(pfn) * PAGE

    def page_address(self, pfn):
        return self.kernel.mem_map + int(pfn) * layout.sizeof("Page")

    def new_table(self, nid):
        pfn = int(self.take_frames(nid, 1)[0])
        self.pages["flags"][pfn] |= flag("PG_pagetable")
        self.pages["_count"][pfn] = 1
        self.zones["vm_stat"][nid, C["NR_PAGETABLE"]] += 1
        return pfn

    def leaf_table(self, mm, address):
        """The number of the frame with the last-level table over `address`, made if need be."""
        known = self.leaf_tables.get((mm.address, address >> 21))
        if known is not None:
            return known
        pfn = (mm.pgd - self.kernel.frames_base) // PAGE
        for shift in (39, 30, 21):
            slot = address >> shift & 511
            if not self.frames[pfn, slot]:
                self.frames[pfn, slot] = self.new_table(0) << 12 | C["_PAGE_TABLE"]
                mm.nr_ptes += shift == 21
            pfn = int(self.frames[pfn, slot]) >> 12
        self.leaf_tables[mm.address, address >> 21] = pfn
        return pfn

    def pte(self, mm, address):
        """The word of a PTE, as an array of one."""
        return self.frames[self.leaf_table(mm, address)][address >> 12 & 511:][:1]

    def map_anon(self, vma, address, pfns, bits):
        """Maps frames from `address` on; those that are new become anonymous pages."""
        mm = layout.struct("MmStruct", vma.vm_mm)
        vpn = address // PAGE + np.arange(len(pfns))
        for table in np.unique(vpn >> 9):
            mask = vpn >> 9 == table
            self.frames[self.leaf_table(mm, int(table) << 21), vpn[mask] & 511] = \
                pfns[mask].astype(np.uint64) << np.uint64(12) | np.uint64(bits)
        fresh = pfns[self.pages["_mapcount"][pfns] == -1]
        self.pages["flags"][fresh] |= flag("PG_swapbacked", "PG_lru", "PG_uptodate")
        self.pages["mapping"][pfns] = vma.anon_vma + C["PAGE_MAPPING_ANON"]
        self.pages["index"][pfns] = vpn - vma.vm_start // PAGE + vma.vm_pgoff
        self.pages["_count"][pfns] += 1
        self.pages["_mapcount"][pfns] += 1
        self.count_pages(fresh, "NR_ANON_PAGES")
        mm.anon_rss += len(pfns)

    def count_pages(self, pfns, item):
        node = pfns // self.frames_per_node
        for nid in range(len(self.zones)):
            self.zones["vm_stat"][nid, C[item]] += np.count_nonzero(node == nid)

    def set_tlb(self, slot, address, pfn, bits=0):
        self.tasks["tlb"][slot, address >> 12 & 1023] = \
            address >> 22 << 32 | int(pfn) << 4 | C["TLB_VALID"] | bits

    # -- what follows from the rest

    def finish(self, shuffle=None):
        """Links all lists and trees, frees the frames that are left, counts.

        With a random generator `shuffle`, LRU lists are in its order.
        """
        for mm in self.mms:
            vmas = sorted(self.vmas[mm.address], key=lambda vma: vma.vm_start)
            for vma, after in zip(vmas, [vma.address for vma in vmas[1:]] + [0]):
                vma.vm_next = after
            mm.mmap = vmas[0].address if vmas else 0
            mm.mm_rb.rb_node = self.link_tree(vmas, 0, 0, len(vmas).bit_length() - 1)
        for address, vmas in self.anon_vmas.items():
            self.link_ring(address + layout.offsetof("AnonVma", "head"),
                           [vma.anon_vma_node.address for vma in vmas])
        self.link_ring(self.kernel.init_mmlist.address, [mm.mmlist.address for mm in self.mms])
        for nid in range(len(self.zones)):
            self.link_lrus(nid, shuffle)
            self.free_the_rest(nid)

    @classmethod
    def link_tree(cls, vmas, parent, depth, last):
        """A balanced tree of sorted VMAs; the nodes of its last level are red."""
        if not vmas:
            return 0
        middle = len(vmas) // 2
        node = vmas[middle].vm_rb
        node.rb_parent, node.rb_red = parent, int(depth == last and depth > 0)
        node.rb_left = cls.link_tree(vmas[:middle], node.address, depth + 1, last)
        node.rb_right = cls.link_tree(vmas[middle + 1:], node.address, depth + 1, last)
        return node.address

    def link_ring(self, head, nodes):
        ring = np.append(np.uint64(head), np.array(nodes, np.uint64))
        words = layout.view("u64", BASE, layout.header().size // 8)
        words[(ring - BASE) // 8] = np.roll(ring, -1)
        words[(ring - BASE) // 8 + 1] = np.roll(ring, 1)

    def link_lrus(self, nid, shuffle):
        zone = self.kernel.zones + nid * layout.sizeof("Zone") + layout.offsetof("Zone", "lru")
        first = nid * self.frames_per_node
        flags = self.pages["flags"][first:first + self.frames_per_node]
        for lru in range(C["NR_LRU_LISTS"]):
            wanted = {0: ("PG_swapbacked",), 1: ("PG_swapbacked", "PG_active"), 2: (),
                      3: ("PG_active",)}.get(lru)
            relevant = flag("PG_lru", "PG_swapbacked", "PG_active", "PG_unevictable")
            pfns = first + np.flatnonzero(
                flags & relevant == flag("PG_lru", *wanted) if wanted is not None else
                flags & flag("PG_lru", "PG_unevictable") == flag("PG_lru", "PG_unevictable"))
            if shuffle is not None:
                shuffle.shuffle(pfns)
            self.zones["vm_stat"][nid, lru] = len(pfns)
            self.link_ring(zone + lru * layout.sizeof("ListHead"),
                           self.page_address(0) + pfns.astype(np.uint64) * layout.sizeof("Page") +
                           layout.offsetof("Page", "lru"))
        self.zones["vm_stat"][nid, C["NR_MLOCK"]] = np.count_nonzero(flags & flag("PG_mlocked"))

    def free_the_rest(self, nid):
        index = self.next_frame[nid] - nid * self.frames_per_node
        zone, blocks = self.zones[nid], [[] for _order in range(C["MAX_ORDER"])]
        zone["vm_stat"][C["NR_FREE_PAGES"]] = self.frames_per_node - index
        while index < self.frames_per_node:
            order = C["MAX_ORDER"] - 1
            while index % (1 << order) or index + (1 << order) > self.frames_per_node:
                order -= 1
            blocks[order].append(nid * self.frames_per_node + index)
            index += 1 << order
        for order, heads in enumerate(blocks):
            self.pages["flags"][heads] |= flag("PG_buddy")
            self.pages["private"][heads] = order
            zone["free_area"]["nr_free"][order] = len(heads)
            head = self.kernel.zones + nid * layout.sizeof("Zone") + \
                layout.offsetof("Zone", "free_area") + order * layout.sizeof("FreeArea")
            self.link_ring(head, [lru_node(self, pfn).address for pfn in heads])


HEAP, ROM, GUARD, STACK = 0x10000000, 0x10020000, 0x20000000, 0x7ffe00000000


def small_machine():
    """Two nodes; a process of two threads (pids 1 and 2), its forked child (pid 3), and
    nearly every sort of page there is.  Names on the result tell tests where things are."""
    s = Synthetic()
    s.parent, s.child = s.new_mm(0, 1), s.new_mm(2)
    s.heap_anon, s.guard_anon, s.stack_anon = (s.new_anon_vma() for _ in range(3))
    read, write = C["VM_READ"], C["VM_READ"] | C["VM_WRITE"]
    s.heap = s.new_vma(s.parent, HEAP, 8, write, s.heap_anon)
    s.rom = s.new_vma(s.parent, ROM, 4, read)
    s.guard = s.new_vma(s.parent, GUARD, 2, C["VM_LOCKED"], s.guard_anon)
    s.stack = s.new_vma(s.parent, STACK, 4, write, s.stack_anon, pgoff=77)
    s.extra = [s.new_vma(s.parent, 0x30000000 + i * 0x10000, 1, write) for i in range(3)]
    s.child_heap = s.new_vma(s.child, HEAP, 8, write, s.heap_anon)
    s.own, s.shared, s.far = s.take_frames(0, 2), s.take_frames(0, 2), s.take_frames(1, 6)
    s.map_anon(s.heap, HEAP, s.own, WRITABLE)
    s.map_anon(s.heap, HEAP + 2 * PAGE, s.shared, READABLE)
    s.map_anon(s.child_heap, HEAP + 2 * PAGE, s.shared, READABLE)
    s.map_anon(s.heap, HEAP + 4 * PAGE, s.far[:2], WRITABLE)
    s.map_anon(s.guard, GUARD, s.far[2:3], PROTNONE | ACCESSED)
    s.map_anon(s.stack, STACK + PAGE, s.far[3:6], WRITABLE)
    s.pages["flags"][s.own] |= flag("PG_active")
    s.pages["flags"][s.far[2]] |= flag("PG_unevictable", "PG_mlocked")
    s.pte(s.parent, ROM)[:] = s.kernel.zero_pfn << 12 | READABLE | SPECIAL
    # The newest page waits in pid 2's pagevec.
    s.waiting = s.far[5]
    s.pages["flags"][s.waiting] &= ~np.uint64(flag("PG_lru"))
    s.pages["_count"][s.waiting] += 1
    pvec = s.tasks["lru_add_pvecs"][1, C["LRU_ACTIVE_ANON"]]
    pvec["nr"], pvec["pages"][0] = 1, s.page_address(s.waiting)
    s.set_tlb(0, HEAP, s.own[0], C["TLB_WRITE"] | C["TLB_DIRTY"])
    s.set_tlb(0, ROM, s.kernel.zero_pfn)
    s.set_tlb(2, HEAP + 2 * PAGE, s.shared[0])
    # An anon_vma that waits for a grace period.
    s.retired = retired = s.slab_alloc("AnonVma")
    retired.rcu.object, retired.rcu.cache = retired.address, s.kernel.anon_vma_cachep
    s.kernel.rcu_head = s.kernel.rcu_tail = retired.rcu.address
    s.kernel.rcu_pending = 1
    s.finish()
    return s


def findings_of(damage, **options):
    """The findings, as dicts, after damage(machine) was done to a small machine."""
    def run():
        machine = small_machine()
        damage(machine)
        return audit(**options).to_json()
    return in_child(run)


# ---- damage -----------------------------------------------------------------
#
# Each function does one sort of damage to a small machine.  Beside it stand the kinds of
# findings it must lead to, all and no others, and where the first of them must point.

DAMAGE = []


def damage(*kinds, **where):
    def register(function):
        DAMAGE.append(pytest.param(function, set(kinds), where, id=function.__name__))
        return function
    return register


# Blocks

@damage("block")
def magic_is_wrong(s):
    layout.header().magic = 1


@damage("block")
def layout_is_another_builds(s):
    layout.header().layout_hash ^= 1


@damage("block")
def size_is_more_than_mapped(s):
    layout.header().size *= 16


@damage("block")
def size_is_more_than_there_are_addresses(s):
    layout.header().size = (1 << 64) - 1


@damage("block")
def mem_map_points_out_of_the_block(s):
    s.kernel.mem_map = 0x1000


@damage("block")
def frames_overlap_the_slab(s):
    s.kernel.frames_base = s.kernel.slab_base


@damage("block")
def max_pfn_is_not_nodes_times_frames(s):
    s.kernel.max_pfn += 1


@damage("block")
def too_many_tasks(s):
    s.kernel.max_tasks = 1 << 40


@damage("block")
def slab_next_is_past_the_end(s):
    s.kernel.slab_next = s.kernel.slab_end + PAGE


@damage("block")
def zero_page_is_no_frame(s):
    s.kernel.zero_pfn = s.max_pfn


@damage("block")
def wait_table_points_out_of_the_block(s):
    s.kernel.wait_table = 0x1000


@damage("block")
def swap_maps_leave_the_block(s):
    s.kernel.swap_maps_size = 1 << 40


@damage("block")
def more_swap_areas_than_there_can_be(s):
    s.kernel.nr_swapfiles = C["MAX_SWAPFILES"] + 1


# Zones, free lists

@damage("zone", expected=256, found=300)
def zone_starts_elsewhere(s):
    s.zones["zone_start_pfn"][1] = 300


@damage("zone")
def node_has_anothers_zone(s):
    layout.view("PgData", s.kernel.nodes, 2)["node_zone"][1] = s.kernel.zones


@damage("zone", found=1)
def node_has_anothers_number(s):
    nodes_of(s)["node_id"][0] = 1


@damage("zone", found=str([1, 1] + [-1] * 62))
def node_is_twice_on_a_zonelist(s):
    nodes_of(s)["zonelist"][1, 1] = 1


@damage("zone", found=str([1, 0, 2] + [-1] * 61))
def zonelist_has_a_node_that_is_none(s):
    nodes_of(s)["zonelist"][1, 2] = 2


@damage("zone")
def nodes_own_memory_is_not_the_nearest(s):
    nodes_of(s)["zonelist"][1, :2] = 0, 1


@damage("zone", found=1)
def node_with_memory_is_memoryless(s):
    nodes_of(s)["memoryless"][0] = 1


@damage("zone", found=1)
def kernel_may_use_a_movable_node(s):
    nodes_of(s)["movable"][0] = 1


@damage("zone", found=9)
def kswapd_is_no_task(s):
    nodes_of(s)["kswapd_pid"][1] = 9


@damage("zone", found="[9, 8, 10]")
def watermarks_are_out_of_order(s):
    s.zones["watermark"][1] = 9, 8, 10


@damage("counter", task=2)
def counter_of_no_item_has_changed(s):
    s.tasks["vm_stat_diff"][1, C["VM_STAT_STRIDE"] + C["NR_VM_ZONE_STAT_ITEMS"]] = 1


@damage("counter", task=2)
def counter_of_no_zone_has_changed(s):
    s.tasks["vm_stat_diff"][1, len(s.zones) * C["VM_STAT_STRIDE"]] = -1


@damage("zone", page=300, expected=1, found=5)
def page_is_flagged_for_another_node(s):
    s.pages["flags"][300] = 5 << C["NODES_PGSHIFT"]


def nodes_of(s):
    """struct PgData of all nodes, live."""
    return layout.view("PgData", s.kernel.nodes, len(s.zones))


def free_head(s, order):
    """A free block of this order of node 1."""
    return pages_on_free_list(s, order)[-1]


@damage("buddy", "free_list", "counter", "leak")
def free_block_has_a_crazy_order(s):
    s.pages["private"][free_head(s, 6)] = 99


@damage("buddy", page=448)
def buddies_are_not_merged(s):
    # The block of order 6 at 448 (in the second half of node 1) becomes two of order 5.
    assert free_head(s, 6) < 448 < free_head(s, 7) + 128
    split_last_block(s)


def split_last_block(s):
    """Splits node 1's block of order 7 into orders 6, 5 and 5, lists and counts right."""
    area = s.zones["free_area"][1]
    ring = {order: pages_on_free_list(s, order) for order in (5, 6, 7)}
    head = ring[7].pop()
    ring[6].append(head)
    ring[5] += [head + 64, head + 96]
    for order, heads in ring.items():
        s.pages["flags"][heads] |= flag("PG_buddy")
        s.pages["private"][heads] = order
        area["nr_free"][order] = len(heads)
        s.link_ring(free_list_head(s, order), [lru_node(s, pfn).address for pfn in heads])


def free_list_head(s, order):
    return s.kernel.zones + layout.sizeof("Zone") + layout.offsetof("Zone", "free_area") + \
        order * layout.sizeof("FreeArea")


def pages_on_free_list(s, order):
    """Heads of node 1's free blocks of an order."""
    flags, private = s.pages["flags"][256:], s.pages["private"][256:]
    return (256 + np.flatnonzero((flags & flag("PG_buddy") != 0) & (private == order))).tolist()


@damage("buddy", "free_list", "counter", "leak")
def free_block_is_not_aligned(s):
    """The block's head moves up by one page."""
    head = free_head(s, 6)
    s.pages["flags"][head] ^= flag("PG_buddy")
    s.pages["flags"][head + 1] ^= flag("PG_buddy")
    s.pages["private"][head + 1] = 6


@damage("counter", expected=1, found=2)
def nr_free_is_wrong(s):
    s.zones["free_area"]["nr_free"][1, 6] = 2


@damage("counter")
def nr_free_pages_is_wrong(s):
    s.zones["vm_stat"][0, C["NR_FREE_PAGES"]] -= 1


@damage("free_list", "leak", "counter")
def free_block_loses_its_flag(s):
    s.pages["flags"][free_head(s, 6)] ^= flag("PG_buddy")


@damage("free_list")
def free_list_is_cut(s):
    """The head forgets the only block."""
    head = layout.struct("ListHead", free_list_head(s, 6))
    head.next = head.prev = free_list_head(s, 6)


@damage("free_page", page=400)
def free_page_is_flagged(s):
    s.pages["flags"][400] |= flag("PG_waiters")


@damage("free_page", page=400)
def free_page_has_a_mapping(s):
    s.pages["mapping"][400] = s.heap_anon.address + 1


@damage("refcount", page=400, expected=0, found=1)
def free_page_has_a_reference(s):
    s.pages["_count"][400] = 1


@damage("mapcount", page=400, expected=-1, found=0)
def free_page_has_a_mapcount(s):
    s.pages["_mapcount"][400] = 0


@damage("owner", "refcount", "mapcount", "lru", "rmap", "counter", page=400)
def freed_page_is_still_mapped(s):
    s.pte(s.parent, HEAP + 6 * PAGE)[:] = 400 << 12 | READABLE


# LRU lists

@damage("lru", "counter", page=256)
def page_forgets_that_it_is_on_a_list(s):
    assert s.far[0] == 256
    s.pages["flags"][256] ^= flag("PG_lru")


@damage("lru", "counter", page=256)
def page_is_on_the_list_of_other_flags(s):
    s.pages["flags"][256] |= flag("PG_active")


@damage("lru", page=256)
def lru_next_goes_astray(s):
    s.pages["lru"]["next"][256] = 0x123456


@damage("lru", page=256)
def lru_prev_does_not_lead_back(s):
    s.pages["lru"]["prev"][257] = s.pages["lru"]["prev"][256]


@damage("lru", page=256)
def lru_ring_is_cut_in_two(s):
    """256 and 257 go round without the head, which goes round with the others."""
    a, b = lru_node(s, 256), lru_node(s, 257)
    before, after = layout.struct("ListHead", a.prev), layout.struct("ListHead", b.next)
    before.next, after.prev = after.address, before.address
    a.prev, b.next = b.address, a.address


def lru_node(s, pfn):
    return layout.struct("Page", s.page_address(pfn)).lru


@damage("counter")
def lru_counter_is_wrong(s):
    s.zones["vm_stat"][1, C["NR_INACTIVE_ANON"]] += 1


@damage("lru", page=256)
def page_stays_isolated(s):
    """A migrator took it off its list, as it should, and never put it back."""
    s.pages["flags"][256] ^= flag("PG_lru")
    node = lru_node(s, 256)
    before, after = layout.struct("ListHead", node.prev), layout.struct("ListHead", node.next)
    before.next, after.prev = after.address, before.address
    s.zones["vm_stat"][1, C["NR_INACTIVE_ANON"]] -= 1


@damage("lru", "counter", "flags")
def page_table_is_on_a_list(s):
    s.pages["flags"][s.leaf_table(s.parent, HEAP)] |= flag("PG_lru", "PG_swapbacked")


# Pagevecs

@damage("pagevec", task=2, found=15)
def pagevec_is_too_long(s):
    s.tasks["lru_add_pvecs"]["nr"][1, 1] = 15
    s.tasks["lru_add_pvecs"]["pages"][1, 1, 1:] = 0


@damage("pagevec", task=3)
def pagevec_holds_no_page(s):
    s.tasks["lru_add_pvecs"]["nr"][2, 0] = 1
    s.tasks["lru_add_pvecs"]["pages"][2, 0, 0] = s.page_address(9) + 8


@damage("pagevec", page=256, task=3)
def pagevec_holds_a_page_of_a_list(s):
    s.tasks["lru_add_pvecs"]["nr"][2, 0] = 1
    s.tasks["lru_add_pvecs"]["pages"][2, 0, 0] = s.page_address(256)
    s.pages["_count"][256] += 1


@damage("pagevec", found=2)
def page_waits_twice(s):
    s.tasks["lru_add_pvecs"]["nr"][2, 0] = 1
    s.tasks["lru_add_pvecs"]["pages"][2, 0, 0] = s.page_address(s.waiting)
    s.pages["_count"][s.waiting] += 1


@damage("refcount", "lru", page=261, expected=1, found=2)
def pagevec_forgets_its_page(s):
    assert s.waiting == 261
    s.tasks["lru_add_pvecs"]["nr"][1, 1] = 0


# Nodes, cpusets, policies

@damage("zone", "cpuset", expected=1, found=0)
def node_with_memory_is_not_known_to_have_any(s):
    s.kernel.node_states[C["N_HIGH_MEMORY"]] = s.kernel.node_states[C["N_NORMAL_MEMORY"]] = 0b01


@damage("zone", expected=hex(0b10), found=hex(0b11))
def node_has_memory_and_is_not_online(s):
    s.kernel.node_states[C["N_ONLINE"]] = 0b10


@damage("zone", found=1)
def zone_stays_isolated(s):
    s.zones["isolated"][1] = 1


@damage("zone", found=hex(0b10))
def node_stays_isolated(s):
    s.kernel.isolated_nodes = 0b10


@damage("cpuset", task=2, expected=hex(0b11), found=hex(0b01))
def task_may_use_less_than_its_cpuset(s):
    s.tasks["mems_allowed"][1] = 0b01


@damage("cpuset", task=1, found=5)
def task_is_in_no_cpuset(s):
    s.tasks["cpuset"][0] = 5


@damage("cpuset", expected=hex(0b11), found=hex(0b111))
def cpuset_has_more_than_its_parent(s):
    s.kernel.cpusets["mems_allowed"][0] = 0b11
    s.kernel.cpusets["in_use"][3], s.kernel.cpusets["mems_allowed"][3] = 1, 0b111


@damage("cpuset", found=4)
def cpusets_are_each_others_parents(s):
    s.kernel.cpusets["in_use"][3:5] = 1
    s.kernel.cpusets["parent"][3:5] = 4, 3


def give_policy(s, **fields):
    """The task in slot 1 gets a policy."""
    policy = s.slab_alloc("Mempolicy")
    policy.refcnt, policy.mode, policy.nodes = 1, C["MPOL_BIND"], 1
    for name, value in fields.items():
        policy[name] = value
    s.tasks["mempolicy"][1] = policy.address


@damage("policy", task=2, expected=1, found=2)
def policy_is_counted_twice(s):
    give_policy(s, refcnt=2)


@damage("policy", task=2)
def policy_names_a_node_that_is_none(s):
    give_policy(s, nodes=0b1000)


def give_shared_policies(s):
    """An inode that nobody has open, s.inode, with policies for its pages 0 to 3 and 5; its three nodes."""
    s.inode = inode = s.slab_alloc("Inode")
    inode.i_id = s.kernel.next_inode_id = 7
    inode.i_data["host"], inode.i_data["a_ops"] = inode.address, C["AOPS_SHMEM"]
    s.list_add(inode.address + layout.offsetof("Inode", "i_list"),
               s.kernel.address + layout.offsetof("Kernel", "inodes"))
    nodes = []
    for start, end in ((0, 2), (2, 4), (5, 6)):
        node, policy = s.slab_alloc("SpNode"), s.slab_alloc("Mempolicy")
        policy.refcnt, policy.mode, policy.nodes = 1, C["MPOL_BIND"], 1
        node.start, node.end, node.policy = start, end, policy.address
        nodes.append(node)
    left, root, right = nodes
    inode.i_policy["root"]["rb_node"] = root.address
    root.nd["rb_left"], root.nd["rb_right"] = left.address, right.address
    left.nd["rb_parent"] = right.nd["rb_parent"] = root.address
    left.nd["rb_red"] = right.nd["rb_red"] = 1
    return nodes


@damage("lock", task=3)
def lock_of_shared_policies_is_held(s):
    give_shared_policies(s)
    s.inode.i_policy["lock"]["word"] = 3


@damage("file", found=0)
def mapping_does_not_lead_back_to_its_inode(s):
    give_shared_policies(s)
    s.inode.i_data["host"] = 0


@damage("file", found=C["AOPS_SWAP"])
def inode_has_the_operations_of_the_swap_cache(s):
    give_shared_policies(s)
    s.inode.i_data["a_ops"] = C["AOPS_SWAP"]


@damage("file", found=7)
def two_inodes_have_one_number(s):
    give_shared_policies(s), give_shared_policies(s)


@damage("file", found=7)
def inodes_number_was_never_given(s):
    give_shared_policies(s)
    s.kernel.next_inode_id = 6


@damage("page_tree", task=2)
def preload_is_no_node(s):
    s.tasks["nr_preloads"][1], s.tasks["radix_tree_preloads"][1, 0] = 1, s.heap_anon.address


@damage("page_tree", "slab", task=2)
def preload_is_another_tasks_as_well(s):
    node = s.slab_alloc("RadixTreeNode")
    s.slab_alloc("RadixTreeNode")
    s.tasks["nr_preloads"][:2] = 1
    s.tasks["radix_tree_preloads"][:2, 0] = node.address


@damage("page_tree", task=2, found=C["RADIX_TREE_PRELOAD_SIZE"] + 1)
def more_preloads_than_there_is_room_for(s):
    nodes = [s.slab_alloc("RadixTreeNode").address for _ in range(C["RADIX_TREE_PRELOAD_SIZE"])]
    s.tasks["nr_preloads"][1], s.tasks["radix_tree_preloads"][1] = len(nodes) + 1, nodes


def give_swap_area(s, **fields):
    """An area that nobody uses, of all the room there is."""
    info = layout.struct("SwapInfo", s.kernel.address + layout.offsetof("Kernel", "swap_info"))
    info.flags, info.max, info.swap_map = C["SWP_USED"], SWAP_SLOTS, s.kernel.swap_maps
    info.lowest_bit, info.highest_bit = 1, SWAP_SLOTS - 1
    layout.view("u16", info.swap_map)[()] = C["SWAP_MAP_BAD"]
    s.kernel.nr_swapfiles, s.kernel.nr_swap_pages, s.kernel.total_swap_pages = 1, SWAP_SLOTS - 1, SWAP_SLOTS - 1
    for name, value in fields.items():
        info[name] = value


@damage("swap", expected=f"below {SWAP_SLOTS}", found=SWAP_SLOTS)
def swap_area_gives_out_what_is_no_slot(s):
    give_swap_area(s, highest_bit=SWAP_SLOTS)


@damage("swap", "counter")
def swap_area_has_no_slots(s):
    give_swap_area(s, max=0)


@damage("policy")
def shared_policies_overlap(s):
    give_shared_policies(s)[0].end = 3


@damage("policy")
def shared_policies_are_out_of_order(s):
    left, _root, right = give_shared_policies(s)
    left.start, left.end, right.start, right.end = 5, 6, 0, 2


@damage("policy", "slab")
def shared_policy_is_freed(s):
    nodes = give_shared_policies(s)
    s.slab_free("SpNode", nodes[2].address)


@damage("policy", expected=1, found=3)
def shared_policy_has_a_reference_too_many(s):
    node = give_shared_policies(s)[1]
    layout.struct("Mempolicy", node.policy).refcnt = 3


@damage("device", expected=1, found="0 mappings, in use")
def devices_frame_is_lost(s):
    s.kernel.device_free[1] ^= 4


@damage("mlock", "counter", page=256)
def mlocked_page_is_in_no_locked_area(s):
    s.pages["flags"][256] |= flag("PG_mlocked")


@damage("mlock", task=1, mm=1)
def locked_area_maps_a_page_that_is_not(s):
    s.heap.vm_flags |= C["VM_LOCKED"]
    s.parent.locked_vm += 8


@damage("vma", mm=1, expected=2, found=3)
def locked_vm_is_wrong(s):
    s.parent.locked_vm = 3


@damage("slab", expected=0, found=1)
def policy_is_nobodys(s):
    s.slab_alloc("Mempolicy")


@damage("policy", task=2)
def policy_is_freed(s):
    give_policy(s)
    s.slab_free("Mempolicy", int(s.tasks["mempolicy"][1]))


# Tasks, address spaces

@damage("task", expected=1, found=0)
def task_has_anothers_number(s):
    s.tasks["cpu"][1] = 0


@damage("task", task=1)
def two_tasks_have_one_pid(s):
    s.tasks["pid"][1] = 1


@damage("task")
def task_has_no_state(s):
    s.tasks["state"][3] = 17


@damage("mm", mm=1, task=1, expected=2, found=3)
def mm_users_is_too_many(s):
    s.parent.mm_users = 3


@damage("mm", mm=2, expected=0, found=1)
def address_space_outlives_its_task(s):
    s.tasks["state"][2] = C["TASK_UNUSED"]


@damage("mm", mm=2)
def address_space_without_users_is_listed(s):
    s.tasks["state"][2] = C["TASK_UNUSED"]
    s.child.mm_users = 0


@damage("mm", task=3)
def address_space_is_not_listed(s):
    s.link_ring(s.kernel.init_mmlist.address, [s.parent.mmlist.address])


@damage("mm")
def mmlist_goes_astray(s):
    s.child.mmlist.next = s.kernel.slab_end + 64


@damage("mm")
def mmlist_prev_does_not_lead_back(s):
    s.child.mmlist.prev = s.child.mmlist.address


@damage("mm", "leak", "slab", "counter", "mapcount", "refcount", "anon_vma", task=3)
def task_runs_freed_memory(s):
    s.tasks["mm"][2] = s.slabs["freelist"][s.slab_of_cache("MmStruct")]
    s.link_ring(s.kernel.init_mmlist.address, [s.parent.mmlist.address])


# VMAs

@damage("vma", "pte", address=HEAP)
def vma_ends_before_it_starts(s):
    s.heap.vm_end = HEAP - PAGE


@damage("vma", address=0x30000800)
def vma_is_not_of_whole_pages(s):
    s.extra[0].vm_start += 0x800


@damage("vma", address=0x30010000)
def vmas_overlap(s):
    s.extra[0].vm_end = s.extra[1].vm_end
    s.parent.total_vm += 16


@damage("vma", address=0x30000000)
def vma_thinks_it_is_anothers(s):
    s.extra[0].vm_mm = s.child.address


@damage("vma", mm=1, expected=7, found=8)
def map_count_is_wrong(s):
    s.parent.map_count += 1


@damage("vma", mm=2, expected=8, found=7)
def total_vm_is_wrong(s):
    s.child.total_vm -= 1


@damage("vma", "rbtree", "slab", "pte", mm=1, task=1)
def vma_list_goes_astray(s):
    s.extra[0].vm_next = 0x1000


@damage("vma", "rbtree", "slab", "pte", mm=1, task=1)
def vma_list_goes_round(s):
    s.extra[1].vm_next = s.extra[0].address


@damage("vma", "rbtree", "slab", "pte", mm=1, task=1)
def vma_list_leads_to_a_freed_object(s):
    s.extra[1].vm_next = s.slabs["freelist"][s.slab_of_cache("VmAreaStruct")]


@damage("vma", "rbtree", "slab")
def vma_list_misses_one(s):
    s.extra[0].vm_next = s.extra[2].address


@damage("rbtree", mm=1)
def tree_misses_a_vma(s):
    leaf = next(vma for vma in s.vmas[s.parent.address]
                if not vma.vm_rb.rb_left and not vma.vm_rb.rb_right)
    parent = layout.struct("RbNode", leaf.vm_rb.rb_parent)
    parent["rb_left" if parent.rb_left == leaf.vm_rb.address else "rb_right"] = 0


@damage("rbtree", mm=1)
def tree_is_not_sorted(s):
    root = layout.struct("RbNode", s.parent.mm_rb.rb_node)
    root.rb_left, root.rb_right = root.rb_right, root.rb_left


@damage("rbtree", mm=1)
def tree_has_a_red_root(s):
    layout.struct("RbNode", s.parent.mm_rb.rb_node).rb_red = 1


@damage("rbtree", mm=1)
def tree_has_two_reds_in_a_row(s):
    root = layout.struct("RbNode", s.parent.mm_rb.rb_node)
    layout.struct("RbNode", root.rb_left).rb_red = 1
    layout.struct("RbNode", root.rb_right).rb_red = 1


@damage("rbtree", mm=1)
def tree_is_not_balanced(s):
    root = layout.struct("RbNode", s.parent.mm_rb.rb_node)
    leaf = layout.struct("RbNode", layout.struct("RbNode", root.rb_left).rb_left)
    leaf.rb_red = 0


@damage("rbtree", mm=1)
def tree_has_a_wrong_parent(s):
    root = layout.struct("RbNode", s.parent.mm_rb.rb_node)
    layout.struct("RbNode", root.rb_left).rb_parent = 0


@damage("rbtree", mm=1)
def tree_leads_to_another_address_space(s):
    layout.struct("RbNode", s.parent.mm_rb.rb_node).rb_left = s.child_heap.vm_rb.address


@damage("vma", task=1, address=HEAP, expected="0x3", found="0x7")
def vma_allows_what_it_may_not(s):
    s.heap.vm_flags = s.heap.vm_flags & ~C["VM_MAYEXEC"] | C["VM_EXEC"]
    s.heap.vm_page_prot &= ~(1 << 63)
    for entry in range(8):
        s.pte(s.parent, HEAP + entry * PAGE)[:] &= ~np.uint64(1 << 63)


@damage("vma", task=1, address=HEAP, expected=hex(C["VM_OPS_ANON"]), found=hex(C["VM_OPS_SHMEM"]))
def vma_faults_as_if_it_mapped_something_else(s):
    s.heap.vm_ops = C["VM_OPS_SHMEM"]


@damage("vma", task=1, address=HEAP, expected=hex(READABLE), found=hex(READABLE | RW))
def protection_of_a_vma_lets_the_first_write_pass(s):
    s.heap.vm_page_prot |= RW


# anon_vmas and rmap

@damage("anon_vma", "rmap", address=HEAP, task=1)
def anon_vma_is_freed_memory(s):
    s.heap.anon_vma = s.slabs["freelist"][s.slab_of_cache("AnonVma")]


@damage("anon_vma", "rmap", "slab", address=STACK, task=1)
def anon_vma_waits_for_rcu(s):
    s.stack.anon_vma = s.retired.address


@damage("anon_vma")
def vma_is_missing_from_its_anon_vma(s):
    s.link_ring(s.heap_anon.head.address, [s.heap.anon_vma_node.address])


@damage("anon_vma", "rmap", "slab")
def anon_vma_lists_a_vma_of_another(s):
    """The guard VMA says that it belongs to the heap, whose list does not have it."""
    s.guard.anon_vma = s.heap_anon.address


@damage("slab")
def empty_anon_vma_lives(s):
    s.new_anon_vma()


@damage("rmap", page=256, address=HEAP + 4 * PAGE, task=1)
def page_belongs_to_another_anon_vma(s):
    s.pages["mapping"][256] = s.guard_anon.address + 1


@damage("rmap", page=256, found=5)
def page_has_a_wrong_index(s):
    s.pages["index"][256] = 5


# Page tables

@damage("pagetable", "mapcount", "refcount", "leak", "counter", "tlb", task=3, page=5)
def pgd_goes_astray(s):
    s.child.pgd += 8


@damage("pagetable", "leak", "counter", "refcount", "mapcount", "lru", "mlock", "tlb", task=1)
def table_entry_points_to_no_frame(s):
    s.frames[(s.parent.pgd - s.kernel.frames_base) // PAGE, 0] = s.max_pfn << 12 | C["_PAGE_TABLE"]


@damage("pagetable", "leak", "counter", "refcount", "mapcount", "lru", task=1)
def table_entry_is_no_table_entry(s):
    upper = int(s.frames[(s.parent.pgd - s.kernel.frames_base) // PAGE, STACK >> 39]) >> 12
    s.frames[upper, STACK >> 30 & 511] = 0x1234 << 12


@damage("pagetable", mm=2, page=9)
def two_entries_point_to_one_table(s):
    assert s.leaf_table(s.parent, HEAP) == 9
    pgd = (s.child.pgd - s.kernel.frames_base) // PAGE
    pud = int(s.frames[pgd, 0]) >> 12
    pmd = int(s.frames[pud, 0]) >> 12
    s.frames[pmd, 7] = 9 << 12 | C["_PAGE_TABLE"]


@damage("pagetable")
def page_table_points_to_itself(s):
    pgd = (s.child.pgd - s.kernel.frames_base) // PAGE
    s.frames[pgd, 3] = pgd << 12 | C["_PAGE_TABLE"]


@damage("leak")
def page_table_is_leaked(s):
    table = s.take_frames(1, 1)[0]
    assert table == 262
    take_free_page(s, table)
    s.pages["flags"][table] |= flag("PG_pagetable")
    s.pages["_count"][table] = 1


def take_free_page(s, pfn):
    """Takes a free block of order 1 that begins with `pfn` apart: its second page stays free."""
    zone = s.zones[1]
    assert s.pages["private"][pfn] == 1 and s.pages["flags"][pfn] & flag("PG_buddy")
    s.pages["flags"][pfn] ^= flag("PG_buddy")
    s.pages["flags"][pfn + 1] |= flag("PG_buddy")
    s.pages["private"][[pfn, pfn + 1]] = 0
    zone["free_area"]["nr_free"][:2] = 1, 0
    zone["vm_stat"][C["NR_FREE_PAGES"]] -= 1
    s.link_ring(free_list_head(s, 1), [])
    s.link_ring(free_list_head(s, 0), [lru_node(s, pfn + 1).address])


@damage("leak", page=262, expected=0, found=1)
def frame_is_leaked(s):
    take_free_page(s, 262)
    s.pages["_count"][262] = 1


@damage("leak", page=262)
def frame_is_lost(s):
    take_free_page(s, 262)


@damage("counter", mm=1)
def nr_ptes_is_wrong(s):
    s.parent.nr_ptes += 1


@damage("counter")
def nr_pagetable_is_wrong(s):
    s.zones["vm_stat"][0, C["NR_PAGETABLE"]] += 1


# Page table entries

@damage("pte", address=HEAP + PAGE, task=1)
def pte_lets_run_what_its_vma_does_not(s):
    s.pte(s.parent, HEAP + PAGE)[:] &= ~np.uint64(1 << 63)


@damage("pte", address=HEAP + PAGE, task=1)
def pte_has_a_bit_that_there_is_not(s):
    s.pte(s.parent, HEAP + PAGE)[:] |= np.uint64(1 << 10)


@damage("pte", address=HEAP, task=1)
def writable_pte_in_a_read_only_vma(s):
    s.heap.vm_flags &= ~C["VM_WRITE"]


@damage("pte", address=GUARD)
def present_pte_in_a_vma_without_access(s):
    s.pte(s.parent, GUARD)[:] = int(s.far[2]) << 12 | READABLE


@damage("pte", page=5, address=HEAP + 2 * PAGE)
def shared_page_is_writable(s):
    s.pte(s.child, HEAP + 2 * PAGE)[:] |= np.uint64(RW)


@damage("pte", address=HEAP + 9 * PAGE, task=1)
def pte_outside_any_vma(s):
    s.pte(s.parent, HEAP + 9 * PAGE)[:] = s.kernel.zero_pfn << 12 | READABLE | SPECIAL


@damage("migration_entry", page=256, task=1, address=HEAP + 7 * PAGE)
def migration_entry_is_left(s):
    s.pte(s.parent, HEAP + 7 * PAGE)[:] = C["SWP_MIGRATION_WRITE"] << 1 | 256 << 9


@damage("pte", address=HEAP + 7 * PAGE)
def swap_entry_without_swap(s):
    s.pte(s.parent, HEAP + 7 * PAGE)[:] = 3 << 1 | 256 << 9


@damage("pte", address=HEAP + 7 * PAGE)
def pte_maps_no_frame(s):
    s.pte(s.parent, HEAP + 7 * PAGE)[:] = 1 << 45 | READABLE


@damage("pte", address=ROM)
def zero_page_is_writable(s):
    s.rom.vm_flags |= C["VM_WRITE"]
    s.pte(s.parent, ROM)[:] |= np.uint64(RW)


@damage("pte", "mapcount", "refcount", "rmap", "lru", "counter", "owner", address=ROM)
def zero_page_is_mapped_as_a_page(s):
    s.pte(s.parent, ROM)[:] ^= np.uint64(SPECIAL)


@damage("pte", "mapcount", "leak", "lru", "counter", page=256)
def page_is_mapped_as_special(s):
    s.pte(s.parent, HEAP + 4 * PAGE)[:] |= np.uint64(SPECIAL)


@damage("mapcount", "leak", "lru", "counter", page=257)
def pte_is_lost(s):
    s.pte(s.parent, HEAP + 5 * PAGE)[:] = 0


# Pages

@damage("refcount", page=256, task=1, expected=1, found=2)
def reference_is_leaked(s):
    s.pages["_count"][256] += 1


@damage("refcount", page=256, expected=1, found=0)
def reference_is_dropped_twice(s):
    s.pages["_count"][256] -= 1


@damage("mapcount", page=256, task=1, expected=0, found=1)
def mapcount_is_wrong(s):
    s.pages["_mapcount"][256] += 1


@damage("refcount", page=0, expected=1, found=2)
def zero_page_is_counted(s):
    assert s.kernel.zero_pfn == 0
    s.pages["_count"][0] += 1


@damage("flags", page=256, task=1)
def page_stays_locked(s):
    s.pages["flags"][256] |= flag("PG_locked")


@damage("flags", page=256)
def page_stays_under_writeback(s):
    s.pages["flags"][256] |= flag("PG_writeback")


@damage("flags", page=256)
def page_is_reserved(s):
    s.pages["flags"][256] |= flag("PG_reserved")


@damage("counter", mm=1, task=1)
def anon_rss_is_wrong(s):
    s.parent.anon_rss -= 1


@damage("counter", mm=2, expected=0, found=1)
def file_rss_is_wrong(s):
    s.child.file_rss += 1


@damage("counter")
def nr_anon_pages_is_wrong(s):
    s.zones["vm_stat"][1, C["NR_ANON_PAGES"]] += 1


@damage("counter")
def nr_file_mapped_is_wrong(s):
    s.zones["vm_stat"][1, C["NR_FILE_MAPPED"]] += 1


@damage("counter")
def cpu_keeps_a_count_that_is_nobodys(s):
    s.tasks["vm_stat_diff"][3, C["VM_STAT_STRIDE"] + C["NR_ANON_PAGES"]] = -1


@damage("flags", page=256)
def page_has_a_flag_that_there_is_not(s):
    s.pages["flags"][256] |= 1 << 30


@damage("flags", page=256)
def sleepers_flag_is_left_on_a_page(s):
    s.pages["flags"][256] |= flag("PG_waiters")


@damage("flags", page=256, address=HEAP + 4 * PAGE)
def mapped_page_was_never_filled(s):
    s.pages["flags"][256] &= ~np.uint64(flag("PG_uptodate"))


@damage("flags", page=9)
def page_table_is_dirty(s):
    s.pages["flags"][s.leaf_table(s.parent, HEAP)] |= flag("PG_dirty")


@damage("flags", page=9)
def page_table_has_a_mapping(s):
    s.pages["mapping"][s.leaf_table(s.parent, HEAP)] = s.heap_anon.address + C["PAGE_MAPPING_ANON"]


@damage("flags", page=0)
def somebody_has_written_to_the_zero_page(s):
    s.frames[s.kernel.zero_pfn, 17] = 1


# TLBs

@damage("tlb", task=3, page=256, address=HEAP + 2 * PAGE)
def tlb_leads_to_another_frame(s):
    s.set_tlb(2, HEAP + 2 * PAGE, 256)


@damage("tlb", task=1, address=HEAP + 20 * PAGE)
def tlb_outlives_its_pte(s):
    s.set_tlb(0, HEAP + 20 * PAGE, 256)


@damage("tlb", task=3, address=HEAP + 2 * PAGE)
def tlb_lets_writes_pass(s):
    s.set_tlb(2, HEAP + 2 * PAGE, s.shared[0], C["TLB_WRITE"])


@damage("tlb", task=1, address=HEAP)
def tlb_hides_a_dirty_page(s):
    s.pte(s.parent, HEAP)[:] &= ~np.uint64(DIRTY)


@damage("tlb", task=1, address=HEAP)
def tlb_holds_a_page_that_looks_old(s):
    s.pte(s.parent, HEAP)[:] &= ~np.uint64(ACCESSED)


@damage("tlb", task=2)
def tlb_entry_is_not_valid(s):
    s.tasks["tlb"][1, 5] = 1 << 32


@damage("tlb", task=3)
def cpu_is_not_in_the_mask(s):
    s.child.cpu_vm_mask[0] = 0


@damage("tlb", task=2)
def cpu_without_translations_is_not_in_the_mask(s):
    s.parent.cpu_vm_mask[0] ^= np.uint64(2)


# Locks

LOCKS = [("kernel", field) for field in layout.dtypes["Kernel"].names
         if layout.dtypes["Kernel"][field] == layout.dtypes["Spinlock"]] + \
        [("zone", "lock"), ("zone", "lru_lock"), ("task", "pvec_lock"), ("task", "alloc_lock"),
         ("mm", "page_table_lock"), ("anon_vma", "lock"), ("cache", "lock")]


def lock_in(s, what):
    return {"kernel": s.kernel, "zone": s.zones[1], "task": s.tasks[3], "mm": s.child,
            "anon_vma": s.heap_anon, "cache": s.kernel.caches[1]}[what]


@damage("lock", task=2, expected=0, found=hex(C["RWSEM_WRITER"]))
def mmap_sem_is_held_for_writing(s):
    s.child.mmap_sem.word, s.child.mmap_sem.owner = C["RWSEM_WRITER"], 2


@damage("lock", mm=2, found="0x3")
def mmap_sem_is_held_by_readers(s):
    s.child.mmap_sem.word = 3


@damage("lock", page=9, task=3)
def page_table_lock_is_held(s):
    s.pages["ptl"][s.leaf_table(s.parent, HEAP)] = 3


@damage("lock", task=2, expected=0, found=1)
def task_stands_still_with_a_spinlock(s):
    s.tasks["preempt_count"][1] = 1


@damage("lock", task=2)
def task_stands_still_with_a_sleeping_lock(s):
    s.tasks["nr_held"][1], s.tasks["held_locks"][1, 0] = 1, s.page_address(256) | C["HELD_PAGE"]


@damage("lock", task=2)
def task_stands_still_within_rcu(s):
    s.tasks["rcu_nesting"][1] = 1


@damage("lock", mm=2, expected=0, found=1)
def writer_waits_for_a_free_mmap_sem(s):
    s.child.mmap_sem.writers_waiting = 1


@damage("lock", mm=2, expected=0, found=3)
def free_mmap_sem_has_an_owner(s):
    s.child.mmap_sem.owner = 3


@damage("lock", task=3, found="0x3")
def lock_of_the_swap_caches_tree_is_held(s):
    s.kernel.swapper_space.tree_lock.word = 3


@damage("task", task=2, expected="0x0", found=hex(C["PF_MIGRATE"]))
def task_is_said_to_move_pages(s):
    s.tasks["flags"][1] = C["PF_MIGRATE"]


@damage("task", task=2, expected=hex(C["PF_KSWAPD"] | C["PF_SWAPWRITE"]),
        found=hex(C["PF_KSWAPD"] | C["PF_SWAPWRITE"] | C["PF_MEMALLOC"]))
def kswapd_may_take_the_last_frames(s):
    s.tasks["flags"][1] = C["PF_KSWAPD"] | C["PF_SWAPWRITE"] | C["PF_MEMALLOC"]


@damage("task", task=3, expected="0x0", found="0x1")
def programs_pointers_are_taken_for_the_kernels(s):
    s.tasks["addr_limit"][2] = C["KERNEL_DS"]


@damage("lock", task=2, expected=0, found=5)
def task_stands_still_with_pages_in_hand(s):
    s.tasks["isolating_since"][1] = 5


@damage("counter", expected=0, found=1)
def somebody_is_said_to_have_pages_in_hand(s):
    s.kernel.nr_isolators = 1


@damage("counter", expected=0, found=1)
def somebody_is_said_to_wait_for_memory(s):
    s.kernel.reclaim_waiters = 1


@damage("counter", expected=0, found=1)
def somebody_is_said_to_starve(s):
    s.kernel.nr_starving = 1


# Slab and RCU

@damage("slab")
def freed_object_is_written_to(s):
    s.words("VmAreaStruct", int(s.slabs["freelist"][s.slab_of_cache("VmAreaStruct")]))[3] = 0


@damage("slab")
def free_list_of_a_slab_goes_round(s):
    first = int(s.slabs["freelist"][s.slab_of_cache("VmAreaStruct")])
    s.words("VmAreaStruct", first)[0] = first


@damage("slab")
def free_list_of_a_slab_goes_astray(s):
    s.slabs["freelist"][s.slab_of_cache("MmStruct")] = 0x1238


@damage("slab")
def free_list_of_a_slab_leads_into_another(s):
    s.slabs["freelist"][s.slab_of_cache("MmStruct")] = s.slabs["freelist"][s.slab_of_cache("VmAreaStruct")]


@damage("slab")
def object_count_is_wrong(s):
    s.cache("VmAreaStruct").nr_objects += 1


@damage("slab")
def free_count_is_wrong(s):
    s.cache("VmAreaStruct").nr_free += 1


@damage("slab")
def inuse_count_is_wrong(s):
    s.slabs["inuse"][s.slab_of_cache("MmStruct")] += 1


@damage("slab")
def page_of_the_slab_is_nobodys(s):
    s.slab_page()


@damage("slab")
def free_page_of_the_slab_is_written_to(s):
    page = s.slab_page()
    s.list_add(s.slab_entry(page), s.kernel.address + layout.offsetof("Kernel", "slabs_free"))
    layout.view("u64", page, 8)[7] = 0


@damage("slab", "rcu", "anon_vma")
def slab_is_that_of_no_cache(s):
    s.slabs["cache"][s.slab_of_cache("AnonVma")] += 8


@damage("slab")
def slab_is_missing_from_its_partial_list(s):
    cache = s.cache("VmAreaStruct")
    s.list_init(cache.address + layout.offsetof("KmemCache", "slabs_partial"))


@damage("slab")
def partial_list_goes_astray(s):
    cache = s.cache("VmAreaStruct")
    layout.view("u64", cache.address + layout.offsetof("KmemCache", "slabs_partial"), 1)[0] = 0x1238


@damage("slab")
def object_is_leaked(s):
    s.slab_alloc("VmAreaStruct")


@damage("slab")
def cache_pointer_goes_astray(s):
    s.kernel.mm_cachep += 1


@damage("slab")
def object_size_is_crazy(s):
    s.kernel.caches["object_size"][2] = 5


@damage("rcu")
def rcu_queue_is_miscounted(s):
    s.kernel.rcu_pending = 2


@damage("rcu", expected="0 to 4", found=5)
def object_waits_for_an_epoch_that_has_not_begun(s):
    s.retired.rcu.epoch, s.kernel.rcu_epoch = 5, 4


@damage("rcu", expected="6 to 7", found=5)
def rcu_queue_is_out_of_order(s):
    later = s.slab_alloc("AnonVma")
    later.rcu.object, later.rcu.cache = later.address, s.kernel.anon_vma_cachep
    s.retired.rcu.next = s.kernel.rcu_tail = later.rcu.address
    s.retired.rcu.epoch, later.rcu.epoch = 6, 5
    s.kernel.rcu_epoch, s.kernel.rcu_pending = 7, 2


@damage("rcu")
def rcu_freer_never_came_back(s):
    s.kernel.rcu_freers = 1


@damage("rcu")
def rcu_tail_is_wrong(s):
    s.kernel.rcu_tail = 0


@damage("rcu", "slab")
def rcu_queue_goes_astray(s):
    s.kernel.rcu_head = s.kernel.slab_base - 8


@damage("rcu")
def rcu_frees_something_else(s):
    s.retired.rcu.object = s.heap_anon.address


# ---- tests ------------------------------------------------------------------

def test_a_consistent_machine_is_clean():
    assert findings_of(lambda s: None, check_poison=True) == []


def test_shared_memory_may_have_policies():
    assert findings_of(give_shared_policies) == []


@pytest.mark.parametrize("function, kinds, where", DAMAGE)
def test_damage_is_found_and_named(function, kinds, where):
    findings = findings_of(function)
    print("\n".join(str(Finding(**finding)) for finding in findings))
    assert {finding["kind"] for finding in findings} == kinds
    assert any(where.items() <= finding.items() for finding in findings), where


@pytest.mark.parametrize("what, field", LOCKS)
def test_held_spinlock_is_found_with_its_holder(what, field):
    def hold(s):
        lock_in(s, what)[field]["word"] = C["SPIN_WAITERS"] | 3
    findings = findings_of(hold)
    assert [finding["kind"] for finding in findings] == ["lock"]
    assert findings[0]["task"] == 3 and field in findings[0]["message"]
    assert "held by CPU 2" in findings[0]["message"]


def test_page_lock_names_its_holder():
    def hold(s):
        s.pages["flags"][256] |= flag("PG_locked")
        s.tasks["nr_held"][2], s.tasks["held_locks"][2, 0] = 1, s.page_address(256) | C["HELD_PAGE"]
    flags = [finding for finding in findings_of(hold) if finding["kind"] == "flags"]
    assert len(flags) == 1 and flags[0]["message"].endswith("locked by task 3")


def test_shared_page_finding_names_all_who_map_it():
    def damage(s):
        s.pages["_count"][s.shared[0]] += 1
    finding, = findings_of(damage)
    assert "mm 1 of tasks 1, 2 at 0x10002000" in finding["message"]
    assert "mm 2 of task 3 at 0x10002000" in finding["message"]
    assert (finding["expected"], finding["found"]) == (2, 3)


def test_tasks_may_access_memory_during_the_audit():
    """An MMU sets DIRTY in a PTE and then enters it, after the audit has read the tables."""
    def run():
        machine = small_machine()
        machine.pte(machine.parent, HEAP + PAGE)[:] &= ~np.uint64(DIRTY | ACCESSED)
        find_ptes = ptes.find_ptes

        def find_ptes_then_store(*args):
            find_ptes(*args)
            machine.pte(machine.parent, HEAP + PAGE)[:] |= np.uint64(DIRTY | ACCESSED)
            machine.set_tlb(0, HEAP + PAGE, machine.own[1], C["TLB_WRITE"] | C["TLB_DIRTY"])

        ptes.find_ptes = find_ptes_then_store
        during = audit().to_json()
        ptes.find_ptes = find_ptes
        return during, audit().to_json()

    assert in_child(run) == ([], [])


def test_tlb_is_left_out_on_request_and_inside_an_access():
    def stale(s):
        s.set_tlb(2, HEAP + 2 * PAGE, 256)

    def stale_inside_an_access(s):
        stale(s)
        s.tasks["access_seq"][2] = 7

    assert findings_of(stale, strict_tlb=False) == []
    assert findings_of(stale_inside_an_access) == []


def test_write_to_a_freed_frame_is_found_on_request():
    def write(s):
        s.frames[400:402] = 0xaaaaaaaaaaaaaaaa
        s.frames[401, 17] = 1

    def write_unpoisoned(s):
        write(s)
        s.kernel.poison = 0

    assert findings_of(write) == []
    assert findings_of(write_unpoisoned, check_poison=True) == []
    finding, = findings_of(write, check_poison=True)
    assert (finding["kind"], finding["page"], finding["found"]) == ("poison", 401, "0x1")


def test_much_damage_of_one_sort_is_counted():
    def damage(s):
        s.pages["mapping"][262:500] = 9
    findings = findings_of(damage)
    assert len(findings) == LIMIT + 1
    assert f"{238 - LIMIT} more" in findings[-1]["message"]


def test_outcome_is_json_and_raises_when_broken():
    def run():
        machine = small_machine()
        audit().raise_if_broken()
        text = [str(audit())]
        machine.pages["_count"][256] += np.int32(1)
        outcome = audit()
        try:
            outcome.raise_if_broken()
        except AuditError as error:
            text += [str(error), str(outcome)]
            assert error.findings == outcome.findings
        return text, outcome.clean, json.dumps(outcome.to_json())

    (clean, *texts), is_clean, encoded = in_child(run)
    assert clean == "audit: clean" and not is_clean and len(texts) == 2
    for text in texts:
        assert "refcount" in text and "page 256" in text and "expected 1, found 2" in text
    assert json.loads(encoded)[0]["page"] == 256


def test_audit_without_a_machine_is_an_os_error():
    def run():
        try:
            audit()
        except OSError as error:
            return error.errno, error.strerror

    assert in_child(run) == (errno.ENXIO, "no machine is mapped in this process")


# ---- a patient in any state -------------------------------------------------

def regions_of(s):
    """(address, words) of all memory that the audit believes something of."""
    tables = np.flatnonzero(s.pages["flags"] & flag("PG_pagetable"))
    tlb = layout.offsetof("Task", "tlb")
    task = layout.sizeof("Task")
    return [(s.kernel.address, layout.sizeof("Kernel") // 8),
            (s.kernel.zones, layout.sizeof("Zone") * len(s.zones) // 8),
            (s.kernel.nodes, layout.sizeof("PgData") * len(s.zones) // 8),
            (s.kernel.mem_map, layout.sizeof("Page") * s.max_pfn // 8),
            (s.kernel.slabs, layout.sizeof("Slab") * len(s.slabs) // 8),
            (s.kernel.slab_base, (s.kernel.slab_next - s.kernel.slab_base) // 8),
            *[(s.kernel.tasks + slot * task, tlb // 8) for slot in range(len(s.tasks))],
            *[(s.frame_address(pfn), 512) for pfn in tables]]


def strange_word(s, rng, old):
    """A value as damage leaves it: a flipped bit, rubbish, or a pointer to the wrong thing."""
    return rng.choice([
        lambda: old ^ 1 << rng.randrange(64), lambda: rng.getrandbits(64), lambda: 0,
        lambda: (1 << 64) - 1, lambda: (old + rng.choice((-8, 8, 64, PAGE))) % (1 << 64),
        lambda: BASE + rng.randrange(0, s.end - BASE, 8),
        lambda: BASE + rng.randrange(s.end - BASE),
        lambda: rng.choice([mm.address for mm in s.mms] + [s.heap.address, s.heap_anon.address]),
        lambda: rng.randrange(s.max_pfn) << 12 | C["_PAGE_TABLE"]])()


@pytest.mark.parametrize("seed", range(4))
def test_no_damage_makes_the_audit_crash_or_hang(seed):
    """Words that hold something, or might, are overwritten at random, up to eight at a time."""
    def run():
        s, rng, broken = small_machine(), random.Random(seed), 0
        regions = regions_of(s)
        for _round in range(100):
            undo = []
            for _word in range(rng.choice((1, 1, 1, 2, 8))):
                start, count = rng.choice(regions)
                words = layout.view("u64", start, count)
                used = np.flatnonzero(words)
                at = rng.choice(used.tolist()) if rng.random() < 0.8 and len(used) else \
                    rng.randrange(count)
                undo.append((words, at, int(words[at])))
                words[at] = strange_word(s, rng, int(words[at]))
            outcome = audit()
            broken += not outcome.clean
            json.dumps(outcome.to_json())
            for words, at, value in reversed(undo):
                words[at] = value
        return broken, audit().to_json()

    broken, at_last = in_child(run)
    assert at_last == []
    # Much of the memory (free fields, padding) has no meaning, but not most.
    assert broken > 50


@settings(deadline=None)
# ---- the two algorithms -----------------------------------------------------

@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_rings_of_any_size_and_order_are_whole(owners, rng):
    next_, prev, owner = rings(owners, rng)
    broken, lost = check_rings(next_, prev, owner)
    assert not broken.any() and not lost.any()


def rings(owners, rng):
    """Four heads, numbered 0 to 3, and a member for each element of `owners`, in rings."""
    owner = np.append(np.arange(4), owners)
    next_, prev = np.empty_like(owner), np.empty_like(owner)
    for head in range(4):
        members = [i for i in range(4, len(owner)) if owner[i] == head]
        rng.shuffle(members)
        ring = [head, *members]
        next_[ring], prev[ring] = np.roll(ring, -1), np.roll(ring, 1)
    return next_, prev, owner


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(1, 28), st.randoms(use_true_random=False))
def test_ring_without_its_head_is_lost(members, cut, rng):
    next_, prev, owner = rings([0] * members, rng)
    cut = min(cut, members - 1)
    ring = [0]
    while len(ring) <= members:
        ring.append(int(next_[ring[-1]]))
    for part in (ring[:cut + 1], ring[cut + 1:]):
        next_[part], prev[part] = np.roll(part, -1), np.roll(part, 1)
    broken, lost = check_rings(next_, prev, owner)
    assert not broken.any()
    assert set(np.flatnonzero(lost)) == set(ring[cut + 1:])


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.randoms(use_true_random=False))
def test_any_wrong_link_is_broken_or_loses_members(owners, rng):
    next_, prev, owner = rings(owners, rng)
    links = rng.choice((next_, prev))
    at = rng.randrange(len(owner))
    links[at] = rng.choice([node for node in range(-1, len(owner)) if node != links[at]])
    broken, lost = check_rings(next_, prev, owner)
    assert broken.any() or lost.any()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 200))
def test_balanced_trees_of_any_size_are_sound(size):
    nodes = [None] * size

    def link(low, high, parent, depth):
        if low == high:
            return 0
        middle = (low + high) // 2
        nodes[middle] = (parent, link(low, middle, middle + 1, depth + 1),
                         link(middle + 1, high, middle + 1, depth + 1),
                         int(depth == size.bit_length() - 1 and depth > 0))
        return middle + 1

    root = link(0, size, 0, 0)
    addresses = list(range(1, size + 1))
    order, faults = walk_rb_tree(nodes, addresses, {a: a - 1 for a in addresses}, root)
    assert order == list(range(size)) and faults == []
