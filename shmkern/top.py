# SPDX-License-Identifier: GPL-2.0-only
"""The command `shmkern top`: what a running machine does, seen from another terminal.

The machine's block is mapped read-only, so that nothing here can change or hold up anything.
What is seen is therefore a moment's look at things that change meanwhile: sums may be off by
what happened during the look.  Rates are differences of counters.  Nobody counts how often a
lock is waited for; instead the tasks are looked at many times a second, and a lock is as hot
as the share of looks in which somebody waits for it.

top_screen.py shows it on a terminal; here is what there is to show, and the plain text of it.
"""
import re
import sys
import time
from collections import Counter

import numpy as np

from shmkern import command, direct_map, layout, report, vmstat
from shmkern.dump import page_flags_text, pte_text
from shmkern.errors import BootError, UsageError
from shmkern.peek import in_block, mm_at, page_at, pte_of, pte_pfn, vmas

C = layout.constants
EXAMPLE = "shmkern top"
INTERVAL = 2.0
LOOKS_PER_SECOND = 10
# A task's rates: column, counter.
TASK_RATES = {"faults": "PGFAULT", "flushes": "TLB_SHOOTDOWN", "migrated": "PGMIGRATE_SUCCESS",
              "accesses": "ACCESSES"}
# The machine's rates: name, counter of vmstat.
RATES = {"migrated": "pgmigrate_success", "retried": "pgmigrate_retry", "failed": "pgmigrate_fail",
         "migration_waits": "migration_entry_wait", "faults": "pgfault", "flushes": "tlb_shootdown",
         "accesses": "accesses"}
NODE_COLUMNS = {"node": "node", "frames": "spanned", "free": "nr_free_pages", "min": "min", "low": "low",
                "high": "high", "active_anon": "nr_active_anon", "inactive_anon": "nr_inactive_anon",
                "active_file": "nr_active_file", "inactive_file": "nr_inactive_file",
                "unevictable": "nr_unevictable", "page_tables": "nr_pagetable"}


# ---- one look after another ---------------------------------------------------------

class Sampler:
    """Looks at the machine that is mapped: look() many times a second, sample() once an interval."""

    def __init__(self):
        self._waits, self._looks = Counter(), 0
        self._before = self._count()

    @staticmethod
    def _count():
        """(time, the machine's counters, each running task's by pid)."""
        running = report.running()
        return time.monotonic(), vmstat.vmstat(), {int(task["pid"]): task["vm_events"].copy() for task in running}

    def look(self):
        """Notes who waits for what at this moment."""
        tasks = vmstat.tasks()
        waiting = np.flatnonzero((tasks["state"] == C["TASK_RUNNING"]) & (tasks["wait_kind"] != C["WAIT_NONE"]))
        for cpu in waiting:
            self._waits[int(tasks["wait_kind"][cpu]), int(tasks["wait_channel"][cpu])] += 1
        self._looks += 1

    def sample(self):
        """What there is to show, as a dict (which `--json` writes); rates are since the last."""
        before, self._before = self._before, self._count()
        waits, looks, self._waits, self._looks = self._waits, self._looks, Counter(), 0
        seconds = max(self._before[0] - before[0], 1e-3)
        return {"machine": machine_line(), "seconds": round(seconds, 3),
                "rates": {name: max(0, round((self._before[1][counter] - before[1][counter]) / seconds))
                          for name, counter in RATES.items()},
                "nodes": [{name: zone[item] for name, item in NODE_COLUMNS.items()} for zone in vmstat.zoneinfo()],
                "tasks": [task_row(task, before[2], seconds) for task in report.running()],
                "locks": hottest(waits, looks)}


def machine_line():
    """The machine: name, supervisor, age, size."""
    kernel, header = layout.kernel(), layout.header()
    return {"name": direct_map.mapped.name, "supervisor": header.supervisor_pid,
            "age": round(time.time() - header.boot_time_ns / 1e9, 1), "nodes": kernel.nr_nodes,
            "frames": kernel.max_pfn, "tasks": len(report.running())}


def task_row(task, before, seconds):
    """One task: who it is, what it waits for, its pages and its rates."""
    pid, mm = int(task["pid"]), mm_at(int(task["mm"]))
    # Who was not there before has begun at 0.
    old = before.get(pid, np.zeros_like(task["vm_events"]))
    row = {"pid": pid, "name": task["comm"].decode(errors="replace"), "cpu": int(task["cpu"]),
           "os_pid": int(task["os_pid"]), "pages": mm.anon_rss + mm.file_rss if mm else 0}
    for column, item in TASK_RATES.items():
        row[column] = max(0, round((int(task["vm_events"][C[item]]) - int(old[C[item]])) / seconds))
    row["waits_for"], row["waits_ms"], row["held_by"] = wait_of(task)
    return row


def wait_of(task):
    """(what for, how many ms, who has it) of a task that waits; ("", 0.0, "") of one that does not."""
    kind, channel, since = int(task["wait_kind"]), int(task["wait_channel"]), int(task["wait_since"])
    if kind == C["WAIT_NONE"]:
        return "", 0.0, ""
    what = f"{report.WAITS.get(kind, kind)}: {report.describe(channel)}"
    if kind == C["WAIT_SPINLOCK"] and in_block(channel):
        holder = report.spinlock_holder(channel) or ""
    else:
        holder = ", ".join(report.holders(channel))
    return what, max(0.0, round((time.monotonic_ns() - since) / 1e6, 1)), holder


def hottest(waits, looks):
    """What was waited for most: [{lock, share, most}], share being waiting tasks a look.  Locks
    of which there is one a page, a CPU or an object count together; `most` is the one that had the most."""
    share, most = Counter(), {}
    for (kind, channel), count in waits.most_common():
        if kind == C["WAIT_FREEZER"]:
            continue        # An audit's doing.
        what = report.describe(channel)
        group = re.sub(r"^(page|CPU) [0-9]+|^(\w+) at 0x[0-9a-f]+", r"any \1\2", what)
        lock = f"{report.WAITS.get(kind, kind)}: {group}"
        share[lock] += count / looks
        most.setdefault(lock, what)
    return [{"lock": lock, "share": round(count, 3), "most": most[lock]} for lock, count in share.most_common(10)]


# ---- one task, one page --------------------------------------------------------------

def task_lines(pid):
    """All about one task, as lines.  None when there is none."""
    found = [task for task in report.running() if task["pid"] == pid]
    if not found:
        return None
    task = found[0]
    lines = [report.name_of(task)]
    what, ms, holder = wait_of(task)
    lines.append(f"waits {ms:,} ms for {what}" + (f", held by {holder}" if holder else "") if what else "does not wait")
    held = [f"{report.HOW.get(entry & 3, '?')} {report.describe(entry & ~3)}"
            for entry in task["held_locks"][:min(int(task["nr_held"]), C["HELD_LOCKS_MAX"])].tolist()]
    lines.append(f"holds {', '.join(held) or 'no sleeping lock'}, {task['preempt_count']} spinlocks")
    mm = mm_at(int(task["mm"]))
    if mm:
        lines.append(f"mm {mm.id}: {mm.map_count} areas, {mm.total_vm:,} pages, {mm.anon_rss:,} anonymous, "
                     f"{mm.file_rss:,} of files, {mm.mm_users} users")
        for start, end, flags, _pgoff in vmas(mm):
            access = "".join(letter if flags >> bit & 1 else "-" for bit, letter in enumerate("rwx"))
            lines.append(f"  {start:#014x}-{end:#014x} {access} {(end - start) // C['PAGE_SIZE']:,} pages")
    lines += [f"{name.lower():24} {int(task['vm_events'][C[name]]):,}" for name in vmstat.EVENTS
              if task["vm_events"][C[name]]]
    return lines


def page_lines(pfn):
    """All about one page, as lines; None when there is no such frame."""
    kernel = layout.kernel()
    if not 0 <= pfn < kernel.max_pfn:
        return None
    page = page_at(pfn)
    lines = [f"page {pfn} on node {pfn // kernel.frames_per_node}", f"flags {page_flags_text(page.flags)}",
             f"count {page._count}, mapcount {page._mapcount + 1}, index {page.index:#x}, mapping {page.mapping:#x}"]
    lines += [f"lock held by {holder}" for holder in report.holders(page.address)]
    seen = set()
    for task in report.running():
        mm = mm_at(int(task["mm"]))
        if not mm or mm.address in seen:
            continue
        seen.add(mm.address)
        for start, end, _flags, pgoff in vmas(mm):
            va = start + ((page.index - pgoff) << 12)
            pte = pte_of(mm, va) if start <= va < end else 0
            if pte_pfn(pte) == pfn:
                lines.append(f"{report.name_of(task)} at {va:#x}: {pte_text(pte)}")
    return lines


# ---- as text -------------------------------------------------------------------------

def summary(sample):
    """The machine and its rates, in two lines."""
    machine, rates = sample["machine"], sample["rates"]
    return [f"{machine['name']}: {machine['tasks']} tasks on {machine['nodes']} nodes of "
            f"{machine['frames'] // machine['nodes']:,} frames, up {machine['age']:,.0f} s, "
            f"supervisor {machine['supervisor']}",
            f"a second: {rates['migrated']:,} pages migrated ({rates['retried']:,} retried, {rates['failed']:,} failed), "
            f"{rates['migration_waits']:,} waits for them, {rates['faults']:,} faults, {rates['flushes']:,} TLB flushes, "
            f"{rates['accesses']:,} accesses"]


# Numbers that are names: somebody will want to copy one.
NAMES = {"pid", "cpu", "os_pid", "node"}


def cell(row, column):
    """A value of a row as a person reads it."""
    value = row[column]
    return str(value) if column in NAMES or isinstance(value, str) else f"{value:,}"


def rows_text(rows, columns):
    """Rows (dicts) as aligned lines under their headings."""
    return command.table([[column.upper() for column in columns],
                          *([cell(row, column) for column in columns] for row in rows)])


TASK_COLUMNS = ["pid", "name", "cpu", "os_pid", "pages", *TASK_RATES, "waits_ms", "waits_for", "held_by"]


def text(sample):
    """A sample as plain text."""
    lines = [*summary(sample), "", *rows_text(sample["nodes"], list(NODE_COLUMNS)), "",
             *rows_text(sample["tasks"], TASK_COLUMNS)]
    if sample["locks"]:
        lines += ["", *rows_text(sample["locks"], ["share", "lock", "most"])]
    return "\n".join(lines)


def ending():
    """What is to be said, and the exit status, once the machine has ended."""
    found = report.panic()
    if found:
        return f"{direct_map.mapped.name} has stopped.\n{found[1]}", command.BROKEN
    return f"{direct_map.mapped.name} has ended.", command.DONE


# ---- the command ---------------------------------------------------------------------

def add_options(parser):
    """The command's options."""
    parser.add_argument("name", nargs="?", metavar="NAME",
                        help="as `shmkern ls` shows it (default: the machine that runs, if there is one)")
    parser.add_argument("--once", action="store_true", help="print what happens in one interval, and end")
    parser.add_argument("--interval", type=command.duration, default=INTERVAL, metavar="S",
                        help=f"seconds between two looks (default {INTERVAL:g})")
    parser.add_argument("--json", type=command.file_name, metavar="FILE",
                        help="write what happens in one interval to FILE, as JSON, and end; - is the standard output")
    parser.epilog += "\n\nkeys: s and r sort and reverse, / filters, Enter opens a task, p a page, + and - change\n" \
                     "the interval, q leaves.  The machine is only looked at, and does not notice."


def choose():
    """The name of the one machine that runs.  Raises UsageError."""
    headers = {name: direct_map.read_header(name) for name in direct_map.blocks()}
    names = [name for name, header in headers.items() if header is not None and direct_map.supervisor_alive(header)
             and header["layout_hash"] == layout.layout_hash()]
    if len(names) != 1:
        raise UsageError(f"there are {len(names)} machines, {', '.join(names)}; say which" if names
                         else "there is no machine that runs; `shmkern ls` shows what there is")
    return names[0]


def attach(name):
    """Maps a machine read-only.  Raises UsageError and BootError."""
    try:
        direct_map.attach(name)
    except OSError as error:
        raise UsageError(f"{name} cannot be read: {error.strerror}") from None
    if direct_map.has_ended() and not report.panic():
        raise UsageError(f"{name} was left behind by a supervisor that is gone; `shmkern rm` removes it")
    if not layout.kernel().max_tasks:
        raise BootError(f"{name} is still booting")


def one_sample(interval):
    """What happens within one interval; None when the machine ends meanwhile."""
    sampler, deadline = Sampler(), time.monotonic() + interval
    while time.monotonic() < deadline:
        if direct_map.has_ended():
            return None
        sampler.look()
        time.sleep(1 / LOOKS_PER_SECOND)
    return sampler.sample()


def run(args):
    """shmkern top"""
    if args.json not in (None, "-"):
        command.check_writable(args.json)
    attach(choose() if args.name is None else args.name)
    if not args.once and args.json is None and sys.stdout.isatty() and sys.stdin.isatty():
        from shmkern.top_screen import TopScreen
        screen = TopScreen(args.interval)
        if not screen.run():
            return 128 + screen.number if screen.number else command.DONE
    else:
        sample = one_sample(args.interval)
        if sample is not None:
            if args.json != "-":
                print(text(sample))
            command.write_json(args.json, sample)
            return command.DONE
    said, status = ending()
    print(said, file=sys.stderr)
    return status
