# SPDX-License-Identifier: GPL-2.0-only
"""What it costs to move a page, against copying it.

A task maps pages (anonymous ones, of the swap cache, of a file, of a file with buffer heads) and
then sleeps.  One migrator moves all of them to the other node and back, again and again; after
each move the same process copies them back to the frames they came from, which are free now,
with memcpy, 4 KiB a call: the least that a move could cost.
The ratio is taken between a move and the copy right after it, so that it holds when the
host's speed drifts; and the rows take turns, so that they can be compared.  Before each of the two
all frames are dropped from the caches: a page that is worth moving was not used a moment ago, and
a thousand pages would otherwise stay in the cache where a million cannot.
"""
import multiprocess
import tempfile
import time

import common
import numpy as np

import shmkern
from shmkern import calibrate, layout, provenance
from shmkern.kallsyms import ksym

FLAT_SIZES = [1_000, 10_000, 200_000, 1_000_000]
# What the pages are.  The last are moved by buffer_migrate_page, all others by migrate_page.
KINDS = ["anonymous", "swap cache", "page cache", "buffers"]
TURNS = 3


def owner(task, connection, pages, kind):
    """Maps and touches `pages` pages of that kind, then sleeps until told to go."""
    if kind in ("page cache", "buffers"):
        map_file(task, pages, "buffer" if kind == "buffers" else "page")
    else:
        calibrate.store64_loop(task.mmap(pages * 4096), 4096, pages)
    if kind == "swap cache":
        enter_swap_cache()
    connection.send("ready")
    connection.recv()


def map_file(task, pages, fs):
    """Maps a file of holes, and loads from each of its pages: they stay clean."""
    with tempfile.TemporaryFile() as file:
        file.truncate(pages * 4096)
        fd = task.open(f"/proc/self/fd/{file.fileno()}", fs=fs)
    va = task.mmap(pages * 4096, shmkern.PROT_READ | shmkern.PROT_WRITE, shmkern.MAP_SHARED, fd=fd)
    task.load64_many(np.arange(va, va + pages * 4096, 4096, dtype=np.uint64))


def enter_swap_cache():
    """Gives each anonymous page a place in swap."""
    ksym.lru_add_drain_all()
    for pfn in [*page_frames(0), *page_frames(1)]:
        page = ksym.pfn_to_page(pfn)
        ksym.lock_page(page)
        ksym.add_to_swap(page)
        ksym.unlock_page(page)


def frames_of(node, which):
    """The numbers of the frames of a node for whose struct pages `which` holds, ascending."""
    kernel = layout.kernel()
    first = node * kernel.frames_per_node
    pages = layout.view("Page", kernel.mem_map, kernel.max_pfn)[first:first + kernel.frames_per_node]
    return first + np.flatnonzero(which(pages)).astype(np.uint64)


def page_frames(node):
    """The frames of a node that hold pages of programs: those that are in a mapping."""
    return frames_of(node, lambda pages: pages["mapping"])


def table_frames(node):
    """The frames of a node that hold page tables."""
    return frames_of(node, lambda pages: pages["flags"] & (1 << layout.constants["PG_pagetable"]))


def move_all(task, source, target):
    """Moves every page of node `source` to `target`; ns for all of them."""
    frames = layout.kernel().frames_per_node
    pfn, end, stayed = source * frames, (source + 1) * frames, 0
    began = time.perf_counter_ns()
    task.migrate_prep()
    while pfn < end:
        pfn, left = task.migrate_frames(pfn, end, target)
        stayed += left
    ns = time.perf_counter_ns() - began
    if stayed:
        raise RuntimeError(f"{stayed} pages could not be moved, though nobody uses them")
    return ns


def migrator(task, pages, rounds):
    """(ns a page moved, ns a page copied) of each round."""
    found = []
    source = 0 if len(page_frames(0)) else 1
    after = frames_of(1 - source, lambda pages: pages["_count"] == 0)[:pages]
    for turn in range(rounds + 2):
        before = page_frames(source)
        for frames in (before, after, table_frames(0), table_frames(1)):
            calibrate.evict_frames(frames)
        move = move_all(task, source, 1 - source)
        source = 1 - source
        after = before
        moved = page_frames(source)
        calibrate.evict_frames(moved)
        calibrate.evict_frames(before)
        copy = calibrate.memcpy_frames(moved[:pages], before[:pages])
        # The first move each way is also the host's first touch of the frames.
        if turn >= 2:
            found.append((move / pages, copy / pages))
    return found


def measure(pages, rounds, kind):
    """(ns a page moved, ns a page copied) of each round, on a machine of its own with `pages` mapped pages of
    that kind."""
    # Room for the page tables, and for the watermarks.
    frames = pages + pages // 16 + 2048
    with shmkern.Machine(nodes=2, frames_per_node=frames, max_tasks=16) as machine:
        if kind == "swap cache":
            # Every page gets a slot, and none is ever written.
            with tempfile.NamedTemporaryFile() as file:
                machine.swapon(file.name, pages)
        here, there = multiprocess.Pipe()
        sleeper = machine.spawn(owner, there, pages, kind)
        here.recv()
        found = machine.spawn(migrator, pages, rounds).result()
        machine.audit(check_poison=True).raise_if_broken()
        here.send("go")
        sleeper.result()
    return found


def measure_in_turns(kinds, rounds):
    """The rows: of each (kind, pages) `rounds` moves there or back, more where they are short."""
    found = {row: [] for row in kinds}
    for turn in range(TURNS):
        for kind, pages in kinds:
            share = -(-max(rounds, min(100, 200_000 // pages)) // TURNS)
            common.progress(f"turn {turn + 1} of {TURNS}: {pages:,} pages, {kind}, moved {share + 2} times")
            found[kind, pages] += measure(pages, share, kind)
    return [summary(kind, pages, rounds) for (kind, pages), rounds in found.items()]


def summary(kind, pages, found):
    """One row."""
    ratios = [copy / move for move, copy in found]
    move = common.median([move for move, _ in found])
    return {"kind": kind, "pages": pages, "move_ns": move,
            "copy_ns": common.median([copy for _, copy in found]), "pages_per_second": 1e9 / move,
            "ratio": common.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios)}


def main():
    parser = common.parser(__doc__.splitlines()[0], "shmkern bench migrate --pages 200000")
    parser.add_argument("--pages", type=common.positive, default=200_000, help="mapped pages of each row (200000)")
    parser.add_argument("--rounds", type=common.positive, default=10, help="moves measured a row, at least (10)")
    parser.add_argument("--flat", action="store_true",
                        help="1,000 to 1,000,000 anonymous pages instead, beside --pages of them (8 GiB of /dev/shm)")
    options = parser.parse_args()
    if options.flat:
        kinds = [("anonymous", pages) for pages in sorted({options.pages, *FLAT_SIZES})]
    else:
        kinds = [(kind, options.pages) for kind in KINDS]
    rows = measure_in_turns(kinds, options.rounds)
    columns = {"kind": "pages of", "pages": "pages", "move_ns": "ns a move", "copy_ns": "ns a copy",
               "pages_per_second": "moves/s", "ratio": "copy/move", "ratio_min": "lowest", "ratio_max": "highest"}
    common.show("a page moved, against a memcpy of 4 KiB", columns, rows)
    ratio = next(row["ratio"] for row in rows if row["pages"] == options.pages)
    common.write_html(options.html, "a page moved, against a memcpy of 4 KiB",
                      f"Of {options.pages:,} pages, a copy takes {ratio:.2f} of the time of a move.", columns, rows,
                      [(common.bars([f"{row['pages']:,} pages, {row['kind']}" for row in rows], {
                          "move": [row["move_ns"] for row in rows], "copy": [row["copy_ns"] for row in rows]}, "ns a page"),
                        "What a move costs, and its copy alone")])
    common.write_json(options.json, {"bench": "migrate", "host": provenance.host(), "rows": rows})


if __name__ == "__main__":
    common.run(main)
