# SPDX-License-Identifier: GPL-2.0-only
"""Looking at page tables and areas from outside, while they change: what `show` and `top` need.

A pointer that was read while it changed, or from memory that has been freed, may be anything;
it is followed only within the block.
"""
from shmkern import direct_map, layout

C = layout.constants
PTE_PFN_MASK = 0x000ffffffffff000
VMAS_MAX = 1000


def in_block(address, size=8):
    """Whether that is memory of the block."""
    return direct_map.BASE <= address and address + size <= direct_map.BASE + layout.header().size


def page_at(pfn):
    """struct Page of a frame, live."""
    return layout.struct("Page", layout.kernel().mem_map + pfn * layout.sizeof("Page"))


def mm_at(address):
    """struct MmStruct at an address, live; None when it is not in the block."""
    return layout.struct("MmStruct", address) if in_block(address, layout.sizeof("MmStruct")) else None


def pte_of(mm, va):
    """The PTE at an address of an address space; 0 when there is no table for it."""
    table = mm.pgd
    for shift in (39, 30, 21):
        slot = table + (va >> shift & 511) * 8
        entry = int(layout.view("u64", slot)[()]) if in_block(slot) else 0
        if not entry & C["_PAGE_PRESENT"]:
            return 0
        table = layout.kernel().frames_base + (entry & PTE_PFN_MASK)
    slot = table + (va >> 12 & 511) * 8
    return int(layout.view("u64", slot)[()]) if in_block(slot) else 0


def pte_pfn(pte):
    """The frame that a PTE maps, or that its migration entry is about; None for neither."""
    if pte & (C["_PAGE_PRESENT"] | C["_PAGE_PROTNONE"]):
        return (pte & PTE_PFN_MASK) >> 12
    if pte >> C["SWP_TYPE_SHIFT"] & C["SWP_TYPE_MASK"] >= C["SWP_MIGRATION_READ"]:
        return pte >> C["SWP_OFFSET_SHIFT"]
    return None


def vmas(mm):
    """The areas of an address space: [(start, end, flags, pgoff)], as far as they can be followed."""
    found, address = [], mm.mmap
    while in_block(address, layout.sizeof("VmAreaStruct")) and len(found) < VMAS_MAX:
        vma = layout.struct("VmAreaStruct", address)
        found.append((vma.vm_start, vma.vm_end, vma.vm_flags, vma.vm_pgoff))
        address = vma.vm_next
    return found
