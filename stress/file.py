# SPDX-License-Identifier: GPL-2.0-only
"""Each worker has a file of the host, mapped shared twice and private once, stores and loads all over
it, writes and reads it, syncs it, makes it shorter and longer; and all of them have one file in common, with words of
their own in each of its pages.  Meanwhile every page is moved and written back, by whoever gets to
it.  What is loaded must be what was stored, and after each sync the host's file must be, byte for
byte.  The files have no names: the kernel reaches them through descriptors alone."""
import os
import tempfile

import shmkern
from shmkern import MAP_PRIVATE, MAP_SHARED, MS_ASYNC, MS_SYNC, PROT_READ, PROT_WRITE
from shmkern_stress import common
from shmkern_stress.board import PAGE, Broken

NAME = "file"
PAGES_MIN, PAGES_MAX = 4, 64
COMMON_PAGES = 32
TABLES = 12
STORES = 200
READ_WRITE = PROT_READ | PROT_WRITE
# What the workers' files are to the machine, in turn: open()'s fs and block_size.
SORTS = [("page", None), ("buffer", 1024), ("fallback", 4096), ("buffer", 512)]


class Plan:
    """The host's files: one for each worker, and the common one behind them."""

    def __init__(self, workers, pages):
        self.pages = pages
        self.files = [tempfile.TemporaryFile() for _ in range(workers + 1)]
        for file in self.files:
            file.truncate(pages * PAGE)
        self.files[-1].truncate(COMMON_PAGES * PAGE)


def plan(options):
    """Room for each worker's file twice over, for its private copies."""
    frames = common.take_frames(options, (2 * PAGES_MIN + TABLES) * options.workers + COMMON_PAGES)
    return Plan(options.workers, min(((frames - COMMON_PAGES) // options.workers - TABLES) // 2, PAGES_MAX))


class OwnFile:
    """A worker's file and what must be in it: `content`, and in the private mapping `copies` by page."""

    def __init__(self, task, run, number, sort):
        self.task, self.host, self.pages = task, run.plan.files[number], run.plan.pages
        fs, block_size = sort
        self.fd = task.open(f"/proc/self/fd/{self.host.fileno()}", fs=fs, block_size=block_size)
        size = self.pages * PAGE
        self.shared = [task.mmap(size, READ_WRITE, MAP_SHARED, fd=self.fd) for _ in range(2)]
        self.private = task.mmap(size, READ_WRITE, MAP_PRIVATE, fd=self.fd)
        self.content, self.copies = bytearray(size), {}

    def store(self, rng):
        """Some bytes, through one of the shared mappings; or by a write, of bytes or from the mapping."""
        offset = int(rng.integers(len(self.content)))
        length, how = min(int(rng.integers(1, 200)), len(self.content) - offset), rng.random()
        if how < 0.1:
            source = int(rng.integers(len(self.content) - length + 1))
            data = bytes(self.content[source:source + length])
            if source < offset + length and offset < source + length:
                # Nothing is said of a write to where it reads from.
                return
            self.written(self.task.sys_pwrite(self.fd, self.shared[0] + source, length, offset), length, offset)
        elif how < 0.2:
            data = rng.bytes(length)
            self.written(self.task.pwrite(self.fd, data, offset), length, offset)
        else:
            data = rng.bytes(length)
            self.task.store(self.shared[int(rng.integers(2))] + offset, data)
        self.content[offset:offset + length] = data

    @staticmethod
    def written(done, length, offset):
        """A write must be whole.  Raises Broken."""
        if done != length:
            raise Broken("write", f"{done} bytes of {length} were written at {offset:#x}")

    def store_private(self, rng):
        """A few bytes of one page, for nobody else."""
        page = int(rng.integers((len(self.content) + PAGE - 1) // PAGE))
        offset, data = int(rng.integers(PAGE - 8)), rng.bytes(8)
        self.task.store(self.private + page * PAGE + offset, data)
        if page not in self.copies:
            self.copies[page] = bytearray(self.page(page))
        self.copies[page][offset:offset + 8] = data

    def page(self, page):
        """What a page of the file has; zeros behind the end."""
        return bytes(self.content[page * PAGE:(page + 1) * PAGE]).ljust(PAGE, b"\0")

    def check(self, pages):
        """Loads pages through all mappings, and reads them.  Raises Broken."""
        for page in pages:
            found = self.task.pread(self.fd, PAGE, page * PAGE)
            compare(found, bytes(self.content[page * PAGE:(page + 1) * PAGE]), page * PAGE, "the file")
            wanted = min(PAGE, len(self.content) - page * PAGE)
            expected = self.page(page)
            for base, content in (*((base, expected) for base in self.shared),
                                  (self.private, self.copies.get(page, expected))):
                compare(self.task.load(base + page * PAGE, wanted), content[:wanted], base + page * PAGE, "memory")

    def check_host(self):
        """Compares the host's file, after a sync."""
        compare(os.pread(self.host.fileno(), self.pages * PAGE + 1, 0), bytes(self.content), 0, "the host's file")

    def resize(self, rng):
        """Shorter, with nothing behind the end; and longer again, with zeros there."""
        size = int(rng.integers(1, len(self.content) + 1))
        self.task.ftruncate(self.fd, size)
        del self.content[size:]
        last = (size + PAGE - 1) // PAGE
        self.copies = {page: copy for page, copy in self.copies.items() if page < last}
        for base in (*self.shared, self.private):
            if last < self.pages:
                must_not_be_there(self.task, base + last * PAGE)
        self.content.extend(bytes(self.pages * PAGE - size))
        if size < self.pages * PAGE and rng.random() < 0.5:
            # What is written last makes it as long.
            self.written(self.task.pwrite(self.fd, b"\0", self.pages * PAGE - 1), 1, self.pages * PAGE - 1)
        else:
            self.task.ftruncate(self.fd, self.pages * PAGE)

    def sync(self, rng):
        """msync of some of it, or fsync of all; what is synced is on the host's disk."""
        if rng.random() < 0.5:
            page = int(rng.integers(self.pages))
            self.task.msync(self.shared[0] + page * PAGE, PAGE, MS_SYNC)
            self.task.msync(self.shared[1], self.pages * PAGE, MS_ASYNC)
            on_host = os.pread(self.host.fileno(), PAGE, page * PAGE)
            compare(on_host, self.page(page), page * PAGE, "the host's file")
        else:
            self.task.fsync(self.fd)
            self.check_host()


def compare(found, expected, address, where):
    """Raises Broken for the first byte that differs."""
    if found != expected:
        at = next((i for i, pair in enumerate(zip(found, expected)) if pair[0] != pair[1]), min(len(found), len(expected)))
        raise Broken("lost write", f"{where} at {address + at:#x} is {found[at:at + 8].hex() or 'not there'}, "
                     f"should be {expected[at:at + 8].hex() or 'not there'}", (address + at) & -PAGE)


def must_not_be_there(task, address):
    """A load behind the end of the file is a bus error.  Raises Broken."""
    try:
        task.load(address, 1)
    except shmkern.BusError:
        return
    raise Broken("fault", f"{address:#x} lies behind the end of its file and could be loaded", address)


class CommonFile:
    """The file that all share: word `number` of each page is this worker's."""

    def __init__(self, task, run, number):
        self.task, self.host, self.number = task, run.plan.files[-1], number
        self.fd = task.open(f"/proc/self/fd/{self.host.fileno()}", fs="page")
        self.va = task.mmap(COMMON_PAGES * PAGE, READ_WRITE, MAP_SHARED, fd=self.fd)
        self.words = [0] * COMMON_PAGES

    def step(self, rng):
        """Adds to one of its words, atomically, and checks what it was."""
        page = int(rng.integers(COMMON_PAGES))
        address = self.va + page * PAGE + self.number * 8
        was = self.task.fetch_add64(address, 1)
        if was != self.words[page]:
            raise Broken("lost write", f"memory at {address:#x} was {was}, should be {self.words[page]}", address & -PAGE)
        self.words[page] += 1

    def check_host(self):
        """Its words in the host's file, after a sync."""
        self.task.fsync(self.fd)
        for page, word in enumerate(self.words):
            offset = page * PAGE + self.number * 8
            compare(os.pread(self.host.fileno(), 8, offset), word.to_bytes(8, "little"), offset, "the common file")


def worker(task, run, number, sorts=SORTS):
    """One worker."""
    rng = run.rng(number)
    own, shared = OwnFile(task, run, number, sorts[number % len(sorts)]), CommonFile(task, run, number)
    run.working()
    while not run.board.stopping:
        for _store in range(STORES):
            own.store(rng)
            shared.step(rng)
        for _store in range(STORES // 20):
            own.store_private(rng)
        own.check(rng.integers(own.pages, size=8).tolist())
        what = rng.random()
        if what < 0.15:
            own.resize(rng)
        elif what < 0.4:
            own.sync(rng)
        elif what < 0.6:
            task.writeback(64)
        os.sched_yield()
    own.check(range(own.pages))
    task.fsync(own.fd)
    own.check_host()
    shared.check_host()
    run.park()


if __name__ == "__main__":
    common.script(NAME)
