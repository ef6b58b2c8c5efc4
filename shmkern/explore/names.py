# SPDX-License-Identifier: GPL-2.0-only
"""What an address of the block is called, what a word in it means, and where in the source an
instruction comes from.

    names.of(0x2000a3f8)         "page[3]._count"
    names.value(address, 4, 2)   "2"
    Source().lines([pc])         [Line("migrate.py", 78, "remove_migration_pte", "spin_lock")]

May import: engine, and everything of shmkern outside explore.
"""
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shmkern import direct_map, dump, layout, worker
from shmkern.explore.engine import HOST_FILE_SIZE

C = layout.constants
PAGE, SHIFT = C["PAGE_SIZE"], C["PAGE_SHIFT"]
PFN_MASK = 0x000ffffffffff000
SLAB_STRUCTS = {"vm_area_struct": ("VmAreaStruct", "vma"), "mm_struct": ("MmStruct", "mm"),
                "anon_vma": ("AnonVma", "anon_vma"), "mempolicy": ("Mempolicy", "mempolicy"),
                "shared_policy_node": ("SpNode", "sp_node"),
                "inode": ("Inode", "inode"), "filp": ("File", "file"), "files": ("FilesStruct", "files"),
                "radix_tree_node": ("RadixTreeNode", "node"), "buffer_head": ("BufferHead", "bh"),
                "mem_cgroup": ("MemCgroup", "memcg"), "mem_cgroup_per_zone": ("MemCgroupPerZone", "mz")}
PTE_LEVELS = (("pgd", C["PGDIR_SHIFT"]), ("pud", C["PUD_SHIFT"]), ("pmd", C["PMD_SHIFT"]), ("pte", C["PAGE_SHIFT"]))


class Place(NamedTuple):
    """A word of the block: the thing it lies in, by name; the struct that is; and the field."""
    owner: str
    struct: str
    field: str

    def __str__(self):
        return f"{self.owner}.{self.field}" if self.field else self.owner


class Names:
    """The names of one machine.  look() learns the page tables as they are now; what is known of
    earlier ones stays."""

    def __init__(self):
        self.kernel = layout.kernel()
        kernel = self.kernel
        self.tables = {}        # pfn of a table: (mm's name, level, address of its first entry)
        self.slab = {}          # page of the slab: cache's name
        self.regions = [(kernel.address, "kernel", "Kernel", 1), (kernel.tasks, "cpu", "Task", kernel.max_tasks),
                        (kernel.zones, "zone", "Zone", kernel.nr_nodes),
                        (kernel.nodes, "node", "PgData", kernel.nr_nodes),
                        (kernel.wait_table, "wait_table", "WaitQueueHead", C["WAIT_TABLE_SIZE"]),
                        (kernel.mem_map, "page", "Page", kernel.max_pfn),
                        (kernel.slabs, "slab", "Slab", (kernel.slab_end - kernel.slab_base) // PAGE)]
        if kernel.page_cgroup:
            self.regions.append((kernel.page_cgroup, "page_cgroup", "PageCgroup", kernel.max_pfn))
        self.look()

    def look(self):
        """Learns what pages of the slab and page tables are for."""
        slabs = layout.view("Slab", self.kernel.slabs, (self.kernel.slab_end - self.kernel.slab_base) // PAGE)
        for index in np.flatnonzero(slabs["cache"]).tolist():
            name = layout.struct("KmemCache", int(slabs["cache"][index])).name
            self.slab[self.kernel.slab_base // PAGE + index] = name.decode()
        seen = set()
        for cpu in range(self.kernel.max_tasks):
            mm = worker.slot(cpu).mm
            if mm and mm not in seen and self.kernel.slab_base <= mm < self.kernel.slab_end:
                seen.add(mm)
                self._table(f"mm{layout.struct('MmStruct', mm).id}", 0, layout.struct("MmStruct", mm).pgd, 0)

    def _table(self, mm, level, address, first):
        """Enters one table and those below it."""
        pfn = (address - self.kernel.frames_base) >> SHIFT
        if not 0 <= pfn < self.kernel.max_pfn or level >= len(PTE_LEVELS):
            return
        self.tables[pfn] = mm, level, first
        if level + 1 < len(PTE_LEVELS):
            for index, entry in enumerate(layout.view("u64", self.kernel.frames_base + (pfn << SHIFT), 512).tolist()):
                if entry & C["_PAGE_PRESENT"]:
                    self._table(mm, level + 1, self.kernel.frames_base + (entry & PFN_MASK),
                                first + (index << PTE_LEVELS[level][1]))

    def of(self, address):
        """The Place that an address is in."""
        kernel = self.kernel
        for start, name, struct, count in self.regions:
            index, offset = divmod(address - start, layout.sizeof(struct))
            if 0 <= index < count:
                owner = name if count == 1 else f"{name}[{index}]"
                return Place(owner, struct, field_at(struct, offset))
        if kernel.slab_base <= address < kernel.slab_end:
            return self._object(address)
        host = address - direct_map.BASE - layout.header().size
        if host >= 0:
            number, offset = divmod(host, HOST_FILE_SIZE)
            return Place(f"host_file[{number}]", "host_file", "length" if offset < PAGE else f"bytes+{offset - PAGE:#x}")
        if address >= kernel.frames_base:
            pfn = (address - kernel.frames_base) >> SHIFT
            if pfn in self.tables:
                mm, level, first = self.tables[pfn]
                name, shift = PTE_LEVELS[level]
                return Place(f"{mm}.{name}[{first + ((address & (PAGE - 1)) // 8 << shift):#x}]", name, "")
            return Place(f"frame[{pfn}]+{address & (PAGE - 1):#x}", "frame", "")
        return Place(f"{address:#x}", "", "")

    def _object(self, address):
        """The place of an object of the slab; which one, by its number in its page."""
        cache = self.slab.get(address // PAGE)
        if cache not in SLAB_STRUCTS:
            return Place(f"slab+{address - self.kernel.slab_base:#x}", cache or "", "")
        struct, name = SLAB_STRUCTS[cache]
        index, offset = divmod(address % PAGE, layout.sizeof(struct))
        owner = f"{name}@{address // PAGE * PAGE - self.kernel.slab_base + index * layout.sizeof(struct):x}"
        return Place(owner, struct, field_at(struct, offset))

    def value(self, place, number, size):
        """What a value means in its place."""
        if place.struct == "pte":
            return dump.pte_text(number)
        if (place.struct, place.field) == ("Page", "flags"):
            return dump.page_flags_text(number)
        if place.field in ("_count", "_mapcount"):
            return str(number - (1 << 32) if number >> 31 else number)
        if number >= self.kernel.address and size == 8 and number < self.kernel.frames_base + (self.kernel.max_pfn << 12):
            return str(self.of(number & ~1)) + ("|ANON" if number & 1 else "")
        return str(number) if number < 1 << 16 else hex(number)


def field_at(struct, offset):
    """The path of the field at an offset of a struct: "lru.next", "tlb[5]"."""
    dtype, path = layout.dtypes[struct], ""
    while dtype.names:
        for name in dtype.names:
            kind, start = dtype.fields[name][:2]
            if start <= offset < start + kind.itemsize:
                break
        else:
            return f"{path}+{offset}"
        path, offset, dtype = f"{path}.{name}" if path else name, offset - start, kind
        if kind.shape:
            dtype = kind.base
            path += f"[{offset // dtype.itemsize}]"
            offset %= dtype.itemsize
    return path


# ---- source lines -------------------------------------------------------------

class Line(NamedTuple):
    """Where an instruction comes from: file, line, function, and the inline function of a .pxd
    that it belongs to there, if any."""
    file: str
    line: int
    function: str
    inline: str

    def __str__(self):
        return f"{self.file}:{self.line}"


def kernel_maps():
    """What is mapped of the kernel's modules: (start, end, protection, offset in the file, path) each."""
    for entry in Path("/proc/self/maps").read_text().splitlines():
        match = re.fullmatch(r"(\w+)-(\w+) (\S+) (\w+) \S+ \d+\s+(/.*/explore/kernel/.*\.so)", entry)
        if match:
            start, end, protection, offset, path = match.groups()
            yield int(start, 16), int(end, 16), protection, int(offset, 16), path


def code_of(module):
    """The addresses of a kernel module's code: (start, end)."""
    return next((start, end) for start, end, protection, _offset, path in kernel_maps()
                if "x" in protection and Path(path).name.split(".")[0] == module)


class Source:
    """The lines of the modules that are loaded in this process."""

    def __init__(self):
        self.known = {}
        self.modules = [(start, end, offset, path) for start, end, _protection, offset, path in kernel_maps()]

    def lines(self, pcs):
        """A Line for each return address."""
        by_module = {}
        for pc in set(pcs) - self.known.keys():
            for start, end, offset, path in self.modules:
                if start <= pc < end:
                    # The instruction before: the call itself.
                    by_module.setdefault(path, []).append((pc, pc - 1 - start + offset))
                    break
            else:
                self.known[pc] = Line("?", 0, "?", "")
        for path, found in by_module.items():
            self._ask(path, found)
        return [self.known[pc] for pc in pcs]

    def _ask(self, path, found):
        """Has addr2line tell the lines of (pc, offset) pairs of one module."""
        command = ["addr2line", "-a", "-f", "-i", "-e", path, *(hex(offset) for _pc, offset in found)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        blocks = re.split(r"^0x[0-9a-f]+\n", text, flags=re.M)[1:]
        for (pc, _offset), block in zip(found, blocks):
            rows = block.splitlines()
            self.known[pc] = line_of([(function_name(rows[i]), rows[i + 1]) for i in range(0, len(rows) - 1, 2)])


def function_name(symbol):
    """A kernel function's name from Cython's mangled one: the module's length and name are in
    front of it."""
    match = re.fullmatch(r"__pyx_f_7shmkern_(\d+)(.*)", symbol)
    if match:
        rest = match.group(2)
        length = int(match.group(1))
        return re.sub(r"^\d+\w+?_(?=[a-z])", "", rest[length + 1:]) if length < len(rest) else rest
    match = re.fullmatch(r"__pyx_pf_7shmkern_\d+[a-z]+_\d+[A-Z]\w+?_\d*(\w+)", symbol)
    return match.group(1) if match else symbol


def line_of(frames):
    """The Line of one instruction, from its frames, innermost first."""
    inline = ""
    for function, where in frames:
        file, _, line = where.partition(":")
        file = Path(file).name
        number = int(re.match(r"\d+", line).group()) if re.match(r"\d+", line) else 0
        if file.endswith(".py"):
            return Line(file, number, function, inline)
        if file.endswith(".pxd"):
            inline = function
    function, where = frames[0]
    return Line(Path(where.partition(":")[0]).name, 0, function, inline)
