# SPDX-License-Identifier: GPL-2.0-only
"""Page migration and page faults beside the host kernel's, on the same amount of warm memory.

The host's own migration, as root on Linux: move_pages(2) where the host has two nodes.  Otherwise
memory hot-remove: the bench fills a block of physical memory with pages of its own and takes the
block offline, which moves whatever is in it (do_migrate_range, the function that ours is named
after); then it puts the block back online, whatever happens, even if the bench is killed.

What cannot be had on a host is skipped, with the reason; what is not comparable is said.
"""
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import tempfile
import time
from pathlib import Path

import common
import multiprocess
import numpy as np

import shmkern
from shmkern import calibrate, layout, provenance, worker

PAGE = 4096
MEMORY_BLOCKS, NODES = Path("/sys/devices/system/memory"), Path("/sys/devices/system/node")
SYS_MOVE_PAGES = {"x86_64": 279, "aarch64": 239}
MPOL_MF_MOVE = 2
# Blocks to try; one may hold pages that nobody can move.
BLOCKS_TRIED, OFFLINE_LIMIT = 6, 20.0
# Of a block's pages, so many must be the bench's own for it to be filled.
SHARE_MIN = 0.75
NOTES = {
    "move_pages": "move_pages(2) looks every address up, as ours would; ours moves by frame, which saves that walk.",
    "hot-remove": "Taking a block offline also empties per-CPU lists, flushes caches of the zone and rebuilds its lists; "
                  "all of that is in the host's time, and there is nothing like it in ours.",
    "migration": "The host moves pages between frames of one node, or over a real interconnect; ours between halves of one "
                 "block.  The host batches its TLB flushes and interrupts CPUs; ours empties a table of another process.  "
                 "The host charges control groups and counts references per CPU; ours has neither here.",
    "faults": "The host's fault enters the kernel, ours is a function call in the same process; the host clears its page "
              "with the CPU's fast string instructions, and so do we.",
    "host shares": "The host's flush share is not to be seen from outside; its copy share is what memcpy of as many pages of "
                   "the same memory takes.",
    "file faults": "The host's file system is asked before a page of its file becomes writable, and may make room on the "
                   "disk for it; ours marks the page dirty and asks nobody.  The host may keep a file in large folios, and "
                   "map many pages in one fault.",
}


class Skipped(Exception):
    """This host does not let the bench measure that; the text says why."""


# ---- the host's migration --------------------------------------------------------------

def anonymous(pages):
    """Memory of 4 KiB pages of the host's, all touched; an mmap."""
    memory = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    touch(memory, 0, pages)
    return memory


def address_of(memory):
    """Where an mmap is."""
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def touch(memory, first, count):
    """Writes to pages of an mmap, so that they are there and warm."""
    calibrate.host_fault_loop(address_of(memory) + first * PAGE, count)


def host_migration(pages, rounds):
    """Measures the host's migration the way this host has.  Returns (how, [(pages moved, ns, ns of CPU),
    ...])."""
    if os.geteuid() != 0:
        raise Skipped("not root")
    if len(list(NODES.glob("node[0-9]*"))) > 1:
        return "move_pages", move_pages(pages, rounds)
    return "hot-remove", hot_remove(pages, rounds)


def move_pages(pages, rounds):
    """move_pages(2) of all pages to the other of two nodes and back."""
    number = SYS_MOVE_PAGES.get(os.uname().machine)
    if number is None:
        raise Skipped(f"the number of move_pages(2) on {os.uname().machine} is not known here")
    nodes = sorted(int(path.name[4:]) for path in NODES.glob("node[0-9]*"))[:2]
    memory, libc = anonymous(pages), ctypes.CDLL(None, use_errno=True)
    addresses = np.arange(address_of(memory), address_of(memory) + pages * PAGE, PAGE, dtype=np.uint64)
    status, found = np.zeros(pages, np.int32), []
    for turn in range(rounds + 1):
        targets = np.full(pages, nodes[turn % 2], np.int32)
        touch(memory, 0, pages)
        began, used = time.perf_counter_ns(), time.process_time_ns()
        rc = libc.syscall(number, 0, ctypes.c_ulong(pages), *(ctypes.c_void_p(array.ctypes.data) for array in
                                                              (addresses, targets, status)), MPOL_MF_MOVE)
        ns, cpu = time.perf_counter_ns() - began, time.process_time_ns() - used
        if rc < 0:
            raise Skipped(f"move_pages(2): {os.strerror(ctypes.get_errno())}")
        # The first one only gathers them on one node.
        if turn:
            found.append((int((status == targets).sum()), ns, cpu))
    return found


def frames_of(memory):
    """The host's frame numbers of an mmap's pages; 0 for a page that is not there."""
    with open("/proc/self/pagemap", "rb") as file:
        file.seek(address_of(memory) // PAGE * 8)
        entries = np.frombuffer(file.read(len(memory) // PAGE * 8), np.uint64)
    return np.where(entries >> np.uint64(63) == 1, entries & np.uint64((1 << 55) - 1), 0)


def vmstat(name):
    """A counter of the host's /proc/vmstat."""
    lines = dict(line.split() for line in open("/proc/vmstat"))
    if name not in lines:
        raise Skipped(f"the host's /proc/vmstat has no {name}")
    return int(lines[name])


def hot_remove(pages, rounds):
    """Takes blocks offline that the bench has filled.  Each is put back at once."""
    try:
        per_block = int((MEMORY_BLOCKS / "block_size_bytes").read_text(), 16) // PAGE
    except OSError as error:
        raise Skipped(f"no memory hot-remove: {MEMORY_BLOCKS}/block_size_bytes: {error.strerror}") from None
    most = common.available() // PAGE // 2
    if most < 2 * per_block:
        raise Skipped(f"half of the free memory, {most * PAGE >> 20} MiB, is less than two blocks of it")
    memory = mmap.mmap(-1, most * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    touched, found, refused = 0, [], {}
    while len(found) < rounds and len(refused) < BLOCKS_TRIED:
        block, share = fullest(memory, per_block, refused)
        if share < SHARE_MIN:
            # Free memory is scattered: the more the bench has, the fuller its fullest block.
            if touched + per_block > most:
                break
            touch(memory, touched, per_block)
            touched += per_block
            continue
        touch(memory, 0, touched)
        before = vmstat("pgmigrate_success")
        try:
            ns, cpu = offline_and_back(MEMORY_BLOCKS / f"memory{block}" / "state")
            found.append((vmstat("pgmigrate_success") - before, ns, cpu))
        except OSError as error:
            refused[block] = f"block {block}: {error.strerror}"
    memory.close()
    if not found:
        raise Skipped("no block of memory could be taken offline: " + (
            "; ".join(refused.values()) or f"none could be filled to {SHARE_MIN:.0%} with half of the free memory"))
    return found


def fullest(memory, per_block, refused):
    """The block, of those that were not refused, that holds most pages of an mmap, and of how many of
    its pages that is."""
    blocks, counts = np.unique(frames_of(memory) // per_block, return_counts=True)
    usable = [(int(count), int(block)) for block, count in zip(blocks, counts) if block and int(block) not in refused]
    count, block = max(usable, default=(0, 0))
    return block, count / per_block


def offline_and_back(state):
    """Takes a block offline and puts it back.  Returns the ns of the first, elapsed and of CPU.  Raises
    OSError."""
    with put_back(state):
        # In a process of its own: one that cannot be emptied is tried until a signal comes.
        receive, send = multiprocess.Pipe(False)
        process = multiprocess.Process(target=take_offline, args=(state, send))
        process.start()
        try:
            if not receive.poll(OFFLINE_LIMIT):
                raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))
            ns, cpu, number = receive.recv()
        finally:
            process.kill()
            process.join()
    if number:
        raise OSError(number, os.strerror(number))
    return ns, cpu


def take_offline(state, connection):
    """Writes "offline" to a block's state; sends (ns, ns of CPU, errno)."""
    began, used = time.perf_counter_ns(), time.process_time_ns()
    try:
        state.write_text("offline")
        connection.send((time.perf_counter_ns() - began, time.process_time_ns() - used, 0))
    except OSError as error:
        connection.send((0, 0, error.errno))


@contextlib.contextmanager
def put_back(state):
    """Within it a block may go offline; afterwards it is online.  A process of its own sees to that
    when this one comes to no end: it waits for the pipe to close, as it does at any death."""
    receive, send = os.pipe()
    guard = os.fork()
    if guard == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.setsid()
        os.close(send)
        os.read(receive, 1)
        online(state)
        os._exit(0)
    os.close(receive)
    try:
        yield
    finally:
        os.close(send)
        os.waitpid(guard, 0)
    if state.read_text().strip() != "online":
        raise OSError(errno.EBUSY, f"{state} could not be put back online")


def online(state):
    """Puts a block online, trying again while it is on its way out."""
    for _attempt in range(600):
        with contextlib.suppress(OSError):
            if state.read_text().strip() == "online":
                return
            state.write_text("online")
        time.sleep(0.1)


# ---- ours --------------------------------------------------------------------------------

def owner(task, connection, pages):
    """Maps pages, and touches them all as often as it is told to."""
    va = task.mmap(pages * PAGE)
    while connection.recv():
        calibrate.store64_loop(va, PAGE, pages)
        connection.send(worker.slot(task.cpu).mm)


def migrator(task, owner, pages, rounds):
    """(ns of a move, of CPU in it, of the copies in it, of the flushes in it) of all pages, each round."""
    found, frames = [], layout.kernel().frames_per_node
    for turn in range(rounds + 2):
        owner.send(True)
        mm = owner.recv()
        source = turn % 2
        mine = movable(source * frames, frames)
        began, used = time.perf_counter_ns(), time.process_time_ns()
        pfn, end, stayed = source * frames, (source + 1) * frames, 0
        task.migrate_prep()
        while pfn < end:
            pfn, left = task.migrate_frames(pfn, end, 1 - source)
            stayed += left
        move, cpu = time.perf_counter_ns() - began, time.process_time_ns() - used
        if stayed:
            raise RuntimeError(f"{stayed} pages could not be moved, though nobody uses them")
        flush = calibrate.flush_loop(mm, 0x10000000, pages)
        copy = calibrate.memcpy_frames(movable((1 - source) * frames, frames)[:len(mine)], mine)
        # The first move each way is also the host's first touch of the frames.
        if turn >= 2:
            found.append((move, cpu, copy, flush))
    return found


def movable(first, count):
    """The frames of a node that hold anonymous pages."""
    pages = layout.view("Page", layout.kernel().mem_map, layout.kernel().max_pfn)[first:first + count]
    return first + np.flatnonzero(pages["mapping"] & 1).astype(np.uint64)


def our_migration(pages, rounds):
    """What migrator() finds, of `pages` warm pages."""
    with shmkern.Machine(nodes=2, frames_per_node=pages + pages // 16 + 2048, max_tasks=8) as machine:
        here, there = multiprocess.Pipe()
        sleeper = machine.spawn(owner, there, pages)
        found = machine.spawn(migrator, here, pages, rounds).result()
        machine.audit(check_poison=True).raise_if_broken()
        here.send(False)
        sleeper.result()
    return found


# ---- faults ------------------------------------------------------------------------------

def our_fault(task, pages, fd=None):
    """ns for a first store to a page, of a file if there is one."""
    va = task.mmap(pages * PAGE) if fd is None else task.mmap(pages * PAGE, flags=shmkern.MAP_SHARED, fd=fd)
    ns = calibrate.store64_loop(va, PAGE, pages) / pages
    task.munmap(va, pages * PAGE)
    return ns


def anonymous_faults(task, pages, rounds):
    """(ours, the host's): ns for a first store to a page, round by round."""
    our_fault(task, pages)
    return [(our_fault(task, pages), host_fault(mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)))
            for _round in range(rounds)]


def host_fault(memory):
    """ns for the first store to a page of an mmap."""
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return calibrate.host_fault_loop(address_of(memory), len(memory) // PAGE) / (len(memory) // PAGE)


def file_faults(task, pages, rounds):
    """(ours, the host's): ns for a first store to a page of a shared file that is in the page cache,
    round by round."""
    with tempfile.TemporaryFile() as file:
        file.write(bytes(pages * PAGE))
        file.flush()
        # Opened once, so that the pages stay; the first round of each brings them in.
        fd = task.open(f"/proc/self/fd/{file.fileno()}")
        found = [(our_fault(task, pages, fd), host_fault(mmap.mmap(file.fileno(), pages * PAGE)))
                 for _round in range(rounds + 1)]
    return found[1:]


# ---- all of it ---------------------------------------------------------------------------

def row(what, host, ours, unit, more_is_better=False):
    """A row: the medians of both, None where there is none, and how many times better ours is."""
    ratio = "–"
    if host and ours and unit != "%":
        ratio = float(ours / host if more_is_better else host / ours)
    return {"what": what, "host": "–" if host is None else float(host), "ours": "–" if ours is None else float(ours),
            "unit": unit, "ratio": ratio}


def migration_rows(options, skipped, notes):
    """The rows of migration."""
    pages, host, host_cpu, how = options.pages, None, None, ""
    common.progress("migration in the host kernel")
    try:
        how, found = host_migration(options.pages, options.rounds)
        notes += [NOTES[how], NOTES["migration"], NOTES["host shares"]]
        # Ours on as many as the host moved.
        pages = int(common.median([moved for moved, _ns, _cpu in found]))
        host = common.median([ns / moved for moved, ns, _cpu in found])
        host_cpu = common.median([cpu / moved for moved, _ns, cpu in found])
    except Skipped as reason:
        skipped["the host's migration"] = str(reason)
    common.progress("migration here")
    found = our_migration(pages, options.rounds)
    move, cpu, copy = (common.median([numbers[at] / pages for numbers in found]) for at in range(3))
    # Each against the move right before it, for the host's speed drifts.
    copy_share, flush_share = (common.median([numbers[at] / numbers[0] for numbers in found]) for at in (2, 3))
    rows = [row(f"migration of {pages:,} pages" + (f" ({how})" if how else ""), host and 1e9 / host, 1e9 / move, "pages/s",
                True),
            row("  a page", host, move, "ns"),
            row("  copying it, of that", host and 100 * copy / host, 100 * copy_share, "%"),
            row("  flushing it, of that", None, 100 * flush_share, "%"),
            row("  a page, CPU time", host_cpu, cpu, "ns")]
    return rows, host / move if host else None


def fault_rows(options, notes):
    """The rows of faults."""
    common.progress("faults")
    with shmkern.Machine(nodes=1, frames_per_node=options.pages * 5 // 4 + 2048, max_tasks=8) as machine:
        found = {what: machine.spawn(program, options.pages, options.rounds).result() for what, program in (
            ("anonymous fault, a first store", anonymous_faults),
            ("file fault, a first store to a page in the cache", file_faults))}
        machine.audit().raise_if_broken()
    notes += [NOTES["faults"], NOTES["file faults"]]
    return [row(what, common.median([host for _ours, host in pairs]), common.median([ours for ours, _host in pairs]), "ns")
            for what, pairs in found.items()]


def main():
    parser = common.parser(__doc__.splitlines()[0], "shmkern bench kernel --pages 32768 --html kernel.html")
    parser.add_argument("--pages", type=common.positive, default=32_768, help="pages, if the way does not settle it (32768)")
    parser.add_argument("--rounds", type=common.positive, default=5, help="rounds (5)")
    options = parser.parse_args()
    skipped, notes, fault_notes = {}, [], []
    # Faults first: where there cannot be a machine with so many pages, that is told at once.
    faults = fault_rows(options, fault_notes)
    rows, ratio = migration_rows(options, skipped, notes)
    rows += faults
    notes += fault_notes
    columns = {"what": "", "host": "the host kernel", "ours": "shmkern", "unit": "unit", "ratio": "times better"}
    notes = [f"Skipped: {what}: {why}." for what, why in skipped.items()] + notes
    common.show("beside the host kernel", columns, rows, notes)
    common.write_json(options.json, {"bench": "kernel", "host": provenance.host(), "rows": rows, "skipped": skipped,
                                     "notes": notes})
    both = [each for each in rows if "–" not in (each["host"], each["ours"]) and each["unit"] != "%"]
    figures = [(common.bars([each["what"].strip() for each in both if each["unit"] == unit],
                            {name: [each[key] for each in both if each["unit"] == unit]
                             for key, name in (("host", "host"), ("ours", "shmkern"))}, unit), f"Medians, in {unit}")
               for unit in dict.fromkeys(each["unit"] for each in both)]
    sentence = f"shmkern migrates {ratio:.2f} times as many pages a second as the host kernel." if ratio else \
        "The host kernel's migration could not be measured here."
    common.write_html(options.html, "beside the host kernel", sentence, columns, rows, figures, notes)


if __name__ == "__main__":
    common.run(main)
