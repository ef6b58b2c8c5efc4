# SPDX-License-Identifier: GPL-2.0-only
"""What a memory access costs: a fault, a TLB hit, a TLB miss; beside the host kernel's fault.

All by one task on its own memory, in one run, the host's anonymous memory included: the same
loop of stores to untouched pages, once through the machine's MMU and once through the real
one.  The machine's frames have been touched before, so that no fault of the host's hides in
a fault of ours.
"""
import ctypes
import mmap

import common

import shmkern
from shmkern import calibrate, provenance

TLB_REACH = 512         # pages; half of the TLB, so that all of them fit
HIT_ROUNDS = 200


def our_fault(task, pages):
    """ns for a first store to a page."""
    va = task.mmap(pages * 4096)
    ns = calibrate.store64_loop(va, 4096, pages) / pages
    task.munmap(va, pages * 4096)
    return ns


def host_fault(pages):
    """ns for the host's first store to a page of its own."""
    memory = mmap.mmap(-1, pages * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    # 4 KiB pages, as ours.
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    ns = calibrate.host_fault_loop(ctypes.addressof(ctypes.c_char.from_buffer(memory)), pages) / pages
    return ns


def accesses(task, pages):
    """ns for a load that hits the TLB, and for one that misses it and walks the page table:
    the same loop over fewer pages than the TLB holds, and over many times more."""
    va = task.mmap(pages * 4096)
    calibrate.store64_loop(va, 4096, pages)
    reach = min(TLB_REACH, pages)
    calibrate.load64_loop(va, 4096, reach, 1)
    hit = calibrate.load64_loop(va, 4096, reach, HIT_ROUNDS) / (reach * HIT_ROUNDS)
    misses = calibrate.load64_loop(va, 4096, pages, 1) / pages
    task.munmap(va, pages * 4096)
    return hit, misses


def program(task, pages, rounds):
    """A dict of lists: what each round measured."""
    our_fault(task, pages)
    found = {"fault": [], "host": [], "hit": [], "miss": []}
    for _round in range(rounds):
        found["fault"].append(our_fault(task, pages))
        found["host"].append(host_fault(pages))
        hit, miss = accesses(task, pages)
        found["hit"].append(hit)
        found["miss"].append(miss)
    return found


def main():
    parser = common.parser(__doc__.splitlines()[0], "shmkern bench fault --pages 20000")
    parser.add_argument("--pages", type=common.positive, default=20_000, help="pages touched a round (20000)")
    parser.add_argument("--rounds", type=common.positive, default=10, help="rounds (10)")
    options = parser.parse_args()
    common.progress(f"{options.rounds} rounds of {options.pages:,} pages")
    with shmkern.Machine(nodes=1, frames_per_node=options.pages * 5 // 4 + 2048, max_tasks=8) as machine:
        found = machine.spawn(program, options.pages, options.rounds).result()
        machine.audit().raise_if_broken()
    host = common.median(found["host"])
    names = {"fault": "first store to a page (do_anonymous_page)", "host": "the host kernel's",
             "hit": "load, TLB hit", "miss": "load, TLB miss, page walk"}
    rows = [{"access": names[key], "ns": common.median(values),
             "to_host": common.median(values) / host if key in ("fault", "host") else "",
             "lowest": min(values), "highest": max(values)} for key, values in found.items()]
    columns = {"access": "", "ns": "ns", "to_host": "to the host's", "lowest": "lowest", "highest": "highest"}
    common.show("what an access costs", columns, rows)
    common.write_html(options.html, "what an access costs",
                      f"A fault takes {common.median(found['fault']) / host:.2f} of the time of the host kernel's.", columns,
                      rows, [(common.bars([row["access"] for row in rows], {"ns": [row["ns"] for row in rows]}, "ns"),
                              "The median of all rounds")])
    common.write_json(options.json, {"bench": "fault", "host": provenance.host(), "rows": rows})


if __name__ == "__main__":
    common.run(main)
