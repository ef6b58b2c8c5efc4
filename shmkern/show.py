# SPDX-License-Identifier: GPL-2.0-only
"""The command `shmkern show migrate`: one migration, stopped after each of its steps.

Real processes on a real machine: two tasks share a page, a third moves it with move_pages(2),
and stops at its own tracepoints (tracing.set_breaks), in the middle of the kernel and with the
locks that it holds there.  Between two steps both pages, the PTEs and the tasks are looked at
from outside.  Nothing here does a step by itself.
"""
import time
from typing import NamedTuple

import multiprocess
import rich.console
from rich.text import Text

import shmkern
from shmkern import command, layout, report, tracing, worker
from shmkern.errors import UsageError
from shmkern.peek import mm_at, page_at, pte_of, pte_pfn

C = layout.constants
PAGE = C["PAGE_SIZE"]
EXAMPLE = "shmkern show migrate"
LIMIT = 20.0
SUBJECTS = ("migrate",)
BREAKS = ["migrate_stage", "set_migration_pte", "remove_migration_pte"]
FLAGS = {bit: name for bit, name in tracing.PAGE_FLAGS.items() if name not in ("waiters", "uptodate")}
# Of the picture.
LETTERS = {"locked": "L", "lru": "l", "active": "a", "dirty": "d", "swapbacked": ""}
PARENT, CHILD = "parent", "child"
CONTENTS = b"contents"

# What is done when the mover stops, by the event it stops at: a tracepoint of a stage stands
# before what it names.  (step, what it means)
AT_STAGE = {
    "again": ("next pass", "the page is still isolated, and on the list"),
    "new_page": ("isolate_lru_page", "the page is off the LRU, and isolation has a reference of its own"),
    "lock": ("get_new_page", "there is a frame on the other node"),
    "unmap": ("lock_page", "the page's identity is the mover's; rcu_read_lock keeps its anon_vma"),
    "move": ("try_to_unmap", "nobody maps the page; the new one is locked and has its place"),
    "remap": ("migrate_page_copy", "nobody else had a reference; contents and state are the new page's"),
    "putback": ("unlock_page", "both pages are unlocked, and who waited has been woken"),
    "done": ("putback_lru_page", "the old page is free; the new one is on its way to the LRU"),
}
AT_PTE = {
    "set_migration_pte": ("set_migration_pte", "every TLB has dropped the translation; the PTE is a migration entry"),
    "remove_migration_pte": ("remove_migration_pte", "the entry is a PTE of the new page, and counted"),
}


# ---- tasks that are told what to do -----------------------------------------------

class Led:
    """A task of the machine that runs worker.serve: begin() sends it a call, reply() waits for
    the result."""

    def __init__(self, machine, connection, pid, cpu):
        self.machine, self.pid, self.cpu = machine, pid, cpu
        self._connection = connection

    def begin(self, method, *args):
        """Has the task call task.method(*args)."""
        self._connection.send((method, args, {}))

    def is_done(self):
        """Whether what was begun is over."""
        return self._connection.poll(0)

    def reply(self):
        """Returns or raises what the call did."""
        wait_until(self.machine, self.is_done, f"the answer of task {self.pid}")
        succeeded, value = self._connection.recv()
        if not succeeded:
            raise value
        return value

    def __call__(self, method, *args):
        self.begin(method, *args)
        return self.reply()

    @property
    def slot(self):
        """struct Task, live."""
        return worker.slot(self.cpu)


def wait_until(machine, condition, what):
    """Returns when condition() holds.  TimeoutError when that takes too long."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        machine.check()
        if time.monotonic() >= deadline:
            raise TimeoutError(f"{what}: not within {LIMIT:.0f} s")
        time.sleep(0.0005)


def _serve_with_child(task, mine, childs):
    """A task's program: serves, and so does a child that it forks, with a page that both map."""
    va = task.mmap(PAGE)
    task.store(va, CONTENTS)
    child = task.fork(worker.serve, childs)
    mine.send((va, child.pid, child.cpu))
    worker.serve(task, mine)


def start_sharers(machine):
    """Two tasks that share a page: (va, parent, child)."""
    here, there = multiprocess.Pipe()
    childs_here, childs_there = multiprocess.Pipe()
    task = machine.spawn(_serve_with_child, there, childs_there)
    wait_until(machine, here.poll, "the page")
    va, pid, cpu = here.recv()
    parent = Led(machine, here, task.pid, task.cpu)
    child = Led(machine, childs_here, pid, cpu)
    for sharer in (parent, child):
        # In its TLB, and so in need of being shot down.
        sharer("load", va, len(CONTENTS))
    return va, parent, child


def start_mover(machine):
    """A task that is going to move the page."""
    here, there = multiprocess.Pipe()
    task = machine.spawn(worker.serve, there)
    mover = Led(machine, here, task.pid, task.cpu)
    mover("migrate_prep")
    return mover


# ---- looking ------------------------------------------------------------------------

class Step(NamedTuple):
    """What was seen after a step: its name, what it means, and the state: a dict of cells by
    column, each a tuple of short texts.  `pass_` counts the passes of migrate_pages."""
    name: str
    meaning: str
    pass_: int
    state: dict


class Stage:
    """The machine with its tasks and its page, and what each looks like now."""

    def __init__(self, machine):
        self.machine = machine
        self.va, self.parent, self.child = start_sharers(machine)
        self.mover = start_mover(machine)
        self.frames = {"A": pte_pfn(self._pte(self.parent))}
        self.said = {PARENT: "", CHILD: ""}
        self.sharers = {PARENT: self.parent, CHILD: self.child}

    def _pte(self, sharer):
        return pte_of(mm_at(sharer.slot.mm), self.va)

    def frame_name(self, pfn):
        return next((name for name, frame in self.frames.items() if frame == pfn), f"frame {pfn}")

    def page(self, name):
        """One of the two pages in words."""
        if name not in self.frames:
            return ()
        page = page_at(self.frames[name])
        flags = [text for bit, text in FLAGS.items() if page.flags >> bit & 1]
        if page._count == 0 and page.flags >> C["PG_buddy"] & 1 or page.mapping == 0 and page._count == 0:
            return ("free",)
        return (f"count {page._count}", f"mapcount {page._mapcount + 1}", *flags)

    def pte(self, sharer):
        """A sharer's PTE in words."""
        pte = self._pte(sharer)
        if pte == 0:
            return ("none",)
        if pte & C["_PAGE_PRESENT"]:
            return (f"{self.frame_name(pte_pfn(pte))}, {'writable' if pte & C['_PAGE_RW'] else 'read-only'}",)
        return (f"migration entry of {self.frame_name(pte_pfn(pte))}",)

    def task(self, name):
        """What a sharer does."""
        slot = self.sharers[name].slot
        if slot.wait_kind != C["WAIT_NONE"]:
            kind = report.WAITS[slot.wait_kind]
            of = next((frame for frame, pfn in self.frames.items() if page_at(pfn).address == slot.wait_channel), "")
            return (f"waits: {kind}" + (f" of {of}" if of else ""),)
        return (self.said[name],) if self.said[name] else ()

    def holds(self):
        """What the mover holds."""
        slot = self.mover.slot
        locks = [int(entry) & ~3 for entry in slot.held_locks[:slot.nr_held]]
        held = [f"lock of {name}" for name, pfn in self.frames.items() if page_at(pfn).address in locks]
        held += ["RCU"] * (slot.rcu_nesting > 0)
        spinlocks = slot.preempt_count
        return (*held, *([f"{spinlocks} spinlocks"] if spinlocks else []))

    def look(self):
        """The state now."""
        return {"page A": self.page("A"), "page B": self.page("B"),
                "parent's PTE": self.pte(self.parent), "child's PTE": self.pte(self.child),
                PARENT: self.task(PARENT), CHILD: self.task(CHILD), "mover holds": self.holds()}

    def touch(self, name):
        """A sharer loads from the page; returns when it has, or waits."""
        sharer = self.sharers[name]
        sharer.begin("load", self.va, len(CONTENTS))
        wait_until(self.machine, lambda: sharer.is_done() or sharer.slot.wait_kind == C["WAIT_PAGE_LOCK"],
                   f"the load of {name}")
        self.note(name)

    def wait_for(self, name):
        """Waits until a sharer that has touched the page has read it."""
        if not self.said[name]:
            wait_until(self.machine, self.sharers[name].is_done, f"the load of {name}")
            self.note(name)

    def stops(self):
        """Has the mover move the page: yields (event or stage, arguments) where it stops."""
        mover = self.mover
        with tracing.Tracing(BREAKS) as trace:
            tracing.set_breaks(mover.cpu, BREAKS)
            mover.begin("move_pages", self.parent.pid, [self.va], [1], C["MPOL_MF_MOVE_ALL"])
            while True:
                wait_until(self.machine, lambda: mover.is_done() or tracing.is_stopped(mover.cpu), "the next step")
                if not tracing.is_stopped(mover.cpu):
                    mover.reply()
                    return
                event = trace.read()[-1]
                what, args = tracing.EVENTS[int(event["event"])].name, event["args"]
                if what == "migrate_stage":
                    what = tracing.STAGES[int(args[0])]
                if what == "lock":
                    self.frames["B"] = int(args[2])
                yield what, args
                tracing.go_on(mover.cpu)

    def note(self, name):
        """Takes the result of a load, if it has come."""
        sharer = self.sharers[name]
        if sharer.is_done():
            if sharer.reply() != CONTENTS:
                raise RuntimeError(f"{name} has read something else than what was stored")
            self.said[name] = f"has read {self.pte(sharer)[0].split(',')[0]}"


def migrate(machine, busy=False):
    """Moves a page and stops after each step: yields Steps.  The parent touches the page once it
    is copied, and waits; the child when its PTE is back, and does not.  With `busy` the parent
    comes before the page is copied, so that the first pass fails."""
    stage = Stage(machine)
    yield Step("before", "two tasks map the page, copy-on-write", 0, stage.look())
    pass_, restored, touched = 0, 0, False
    for what, args in stage.stops():
        if what == "new_page":
            pass_, restored = pass_ + 1, 0
            what = "new_page" if pass_ == 1 else "again"
        elif what == "remove_migration_pte":
            restored += 1
        if not touched and what == ("move" if busy else "remap"):
            touched = True
            stage.touch(PARENT)
        elif touched and what == "putback":
            stage.wait_for(PARENT)
        elif restored == 2 and what == "remove_migration_pte" and not busy:
            stage.touch(CHILD)
        yield Step(*meaning_of(what, args), pass_, stage.look())
    stage.mover("migrate_prep")
    yield Step("lru_add_drain", "the new page is on the LRU, and only its mappings keep it", pass_, stage.look())


def meaning_of(what, args):
    """(step, what it means) of the tracepoint that the mover stands at."""
    if what in AT_PTE:
        return AT_PTE[what]
    rc = tracing.signed(args[3])
    if what == "remap" and rc:
        return "page_count", "somebody else has a reference: the entries become PTEs of the old page again"
    if what == "done" and rc:
        return "-EAGAIN", "the page is as it was, and stays on the list; the new frame is free again"
    return AT_STAGE[what]


def changes(before, after):
    """The columns in which two states differ."""
    return [column for column in after if before is None or before[column] != after[column]]


def steps_of(busy=False):
    """All Steps, on a machine of its own."""
    with shmkern.Machine(2, 512, max_tasks=8, hung_task_timeout=60) as machine:
        steps = list(migrate(machine, busy))
        machine.audit().raise_if_broken()
    return steps


# ---- showing ------------------------------------------------------------------------

def brief(column, cell):
    """A cell of the picture: of a page "count/mapcount" and the first letters of its flags."""
    if column.startswith("page") and len(cell) > 1:
        count, mapcount = (text.split()[1] for text in cell[:2])
        letters = "".join(letter for flag, letter in LETTERS.items() if flag in cell)
        return f"{count}/{mapcount} {letters}".rstrip()
    return ", ".join(cell).replace("migration entry of", "entry").replace(", read-only", "") \
        .replace("waits: page lock of", "waits for") or "-"


def picture(steps):
    """The steps as plain text, a row each with what has changed: what docs/protocol.md shows."""
    rows, before = [["step", *steps[0].state]], None
    for step in steps:
        changed = changes(before, step.state)
        rows.append([step.name, *(brief(column, cell) if column in changed else ""
                                  for column, cell in step.state.items())])
        before = step.state
    lines = command.table(rows)
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


class Console(rich.console.Console):
    """Where steps are shown.  That nobody reads any more is for the command to deal with; rich
    itself would end with status 1."""

    def on_broken_pipe(self):
        raise


def show(step, number, before, console):
    """One step on the console: what changed stands out, with what it was."""
    passes = f" (pass {step.pass_})" if step.pass_ > 1 else ""
    console.print(Text.assemble("\n", (f"{number}. {step.name}{passes}", "bold"), f": {step.meaning}"), soft_wrap=True)
    changed = changes(before, step.state) if before else []
    for column, cell in step.state.items():
        line = Text(f"  {'*' if column in changed else ' '} {column:14}")
        line.append(", ".join(cell) or "-", "bold green" if column in changed else "")
        if column in changed:
            line.append(f"   (was {', '.join(before[column]) or '-'})", "dim")
        if cell or column in changed:
            console.print(line, soft_wrap=True)


def to_json(steps):
    """The steps as a program wants them."""
    before, result = None, []
    for step in steps:
        result.append({"step": step.name, "meaning": step.meaning, "pass": step.pass_,
                       "state": {column: list(cell) for column, cell in step.state.items()},
                       "changed": changes(before, step.state) if before else []})
        before = step.state
    return result


def add_options(parser):
    """The command's options."""
    parser.add_argument("subject", metavar="migrate", help="what to show: a migration")
    parser.add_argument("--busy", action="store_true",
                        help="a task touches the page before it is copied, so that the first pass fails")
    parser.add_argument("--table", action="store_true", help="as one table, a row a step, as docs/protocol.md has it")
    parser.add_argument("--json", type=command.file_name, metavar="FILE",
                        help="write the steps to FILE, as JSON; - is the standard output")


def run(args):
    """shmkern show"""
    if args.subject not in SUBJECTS:
        raise UsageError(f"{args.subject!r} cannot be shown; there is {', '.join(SUBJECTS)}")
    if args.json not in (None, "-"):
        command.check_writable(args.json)
    with command.told_to_end():
        steps = steps_of(args.busy)
    if args.json == "-":
        pass
    elif args.table:
        print(picture(steps))
    else:
        console, before = Console(highlight=False), None
        for number, step in enumerate(steps):
            show(step, number, before, console)
            before = step.state
    command.write_json(args.json, to_json(steps))
    return command.DONE
