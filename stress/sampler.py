# SPDX-License-Identifier: GPL-2.0-only
"""Looks at a machine and its processes once a second, from the supervisor, while a scenario
runs: what the host knows of each process, by psutil, and what the block knows.

It is the `tick` of a stress run.  It also sees who has stopped: a migrator that moves nothing
and a worker that does nothing, over as many samples as `stall` seconds should hold; an audit,
during which everybody stands still, is no sample.
"""
import os
import time

import psutil

from shmkern import direct_map, layout, vmstat
from shmkern_stress.board import WORKING
from shmkern_stress.harness import Stop
from shmkern_stress.samples import SamplesError

C = layout.constants
# What a task does that waits or tries again, and so comes no further.
NO_PROGRESS = ["FUTEX_WAIT", "SPIN_PARK", "PAGE_LOCK_WAIT", "RWSEM_WAIT", "MIGRATION_ENTRY_WAIT",
               "MIGRATION_ENTRY_RETRY", "TLB_MISS", "TLB_SHOOTDOWN", "TLB_ACK_WAIT", "PGFAULT", "PGMIGRATE_RETRY",
               "PGMIGRATE_FAIL"]
PROGRESS = [C[name] for name in vmstat.EVENTS if name not in NO_PROGRESS]
SUPERVISOR = "supervisor"


class Sampler:
    """Samples into `samples`.  `clock()` is the run's time in seconds.  `stalled` are findings, as
    (kind, who, text); `error` is the SamplesError that ended the sampling."""

    def __init__(self, samples, every=1.0, stall=None, clock=time.monotonic):
        self.samples, self.every, self.clock = samples, every, clock
        self.patience = None if stall is None else max(2, round(stall / every))
        self.number = samples.rows("SELECT coalesce(max(number), 0) FROM sample")[0][0]
        self.turn, self.error, self.stalled = None, None, []
        self._next = 0.0
        self._idle, self._paused = {}, 0

    def begin(self, turn):
        """The samples to come are of this turn."""
        self.turn = turn
        self._next = 0.0
        self._idle, self._paused = {}, 0
        self.stalled = []

    # ---- the tick ----

    def __call__(self, run):
        now = time.monotonic()
        if now < self._next or self.error is not None:
            return
        self._next = now + self.every if now - self._next > self.every else self._next + self.every
        try:
            self.take(run)
        except SamplesError as error:
            # The run ends as at a signal: all that was measured so far is on the disk.
            self.error = error
            raise Stop from None
        if self.stalled and run.running:
            for _kind, _who, text in self.stalled:
                run.fail(text)

    def take(self, run):
        """One sample."""
        phase = "starting" if run.began is None else "running" if run.running else "checking"
        slots = vmstat.tasks()
        slots = slots[slots["state"] == C["TASK_RUNNING"]].copy()
        processes = self._look_at(slots, names(run))
        if self.patience is not None and phase == "running":
            self._find_stalled(run, slots, processes)
        self.number += 1
        with self.samples.writing() as db:
            db.execute("INSERT INTO sample VALUES (?, ?, ?, ?, ?)",
                       (self.number, self.turn, phase, self.clock(), time.time()))
            _insert(db, "process", self.number, processes)
            _insert(db, "counter", self.number, list(vmstat.vmstat().items()))
            _insert(db, "node", self.number, [nodes_row(zone) for zone in vmstat.zoneinfo()])
            _insert(db, "slab", self.number, slabs())
            db.execute("DELETE FROM latency WHERE turn = ?", (self.turn,))
            for kind in vmstat.HISTOGRAMS:
                _insert(db, "latency", self.turn, [(kind, bucket, int(count)) for bucket, count
                                                   in enumerate(vmstat.histogram(kind)) if count])
            _insert(db, "pause", self.turn, [(self.clock() - (time.monotonic() - began), "audit", seconds)
                                             for began, seconds in run.audits[self._paused:]])
            self._paused = len(run.audits)

    def between(self):
        """A sample of this process alone, when no machine is there."""
        self.number += 1
        with self.samples.writing() as db:
            db.execute("INSERT INTO sample VALUES (?, ?, 'between', ?, ?)",
                       (self.number, self.turn, self.clock(), time.time()))
            _insert(db, "process", self.number, self._look_at([], {}))

    # ---- processes ----

    def _look_at(self, slots, named):
        """The rows of this process and of the tasks' processes; one that is just ending has none."""
        me = os.getpid()
        rows = [self._row(me, 0, None, SUPERVISOR, 0, 0, 0)]
        for slot in slots:
            os_pid, cpu = int(slot["os_pid"]), int(slot["cpu"])
            events = slot["vm_events"]
            name = named.get(os_pid, "descendant")
            rows.append(self._row(os_pid, int(slot["pid"]), cpu, name, int(slot["nr_host_files"]),
                                  int(events[C["FUTEX_WAIT"]]), int(events[PROGRESS].sum())))
        return [row for row in rows if row is not None]

    @staticmethod
    def _row(os_pid, pid, cpu, name, host_files, futex_waits, progress):
        try:
            process = psutil.Process(os_pid)
            with process.oneshot():
                memory, switches = process.memory_info(), process.num_ctx_switches()
                times = process.cpu_times()
                if memory.rss == 0:
                    # Its memory is gone already.
                    return None
                return (os_pid, pid, cpu, name, memory.rss, memory.shared, process.num_fds(), host_files,
                        process.num_threads(), times.user + times.system, switches.voluntary, switches.involuntary,
                        futex_waits, progress)
        except psutil.Error:
            return None

    # ---- who has stopped ----

    def _find_stalled(self, run, slots, processes):
        """Counts for each task how many samples ago it last came further."""
        names_of = {row[0]: row[3] for row in processes}
        migrators = {migrator.child.os_pid for migrator in run.migrators}
        idle = {}
        for slot in slots:
            os_pid = int(slot["os_pid"])
            moves = os_pid in migrators
            if not moves and run.board.rows["state"][slot["cpu"]] != WORKING:
                continue
            done = int(slot["vm_events"][C["PGMIGRATE_SUCCESS"]] if moves else slot["vm_events"][PROGRESS].sum())
            before, samples = self._idle.get(os_pid, (None, 0))
            idle[os_pid] = done, samples + 1 if done == before else 0
            if idle[os_pid][1] >= self.patience:
                who = f"{names_of.get(os_pid, 'task')} (task {slot['pid']}, host pid {os_pid})"
                what = "stalled migrator", "has moved no page" if moves else "has done nothing"
                kind = what[0] if moves else "no progress"
                self.stalled.append((kind, who, f"{kind}: {who} {what[1]} for {idle[os_pid][1] * self.every:.0f} s"
                                     f"; {waits_for(slot)}"))
        self._idle = idle


def waits_for(slot):
    """What a task's slot says it waits for, for a report."""
    from shmkern import report

    kind = int(slot["wait_kind"])
    state = direct_map.process_stat(int(slot["os_pid"]))[0] or "gone"
    where = "in the kernel" if slot["in_kernel"] else "outside the kernel"
    if kind == C["WAIT_NONE"]:
        return f"it waits for nothing, is {where}, and the host says {state}"
    return f"it waits for {report.WAITS.get(kind, kind)}: {report.describe(int(slot['wait_channel']))}"


def names(run):
    """{host pid: what the process is}."""
    found = {root.os_pid: f"worker {number}" for number, root in enumerate(run.roots)}
    found |= {migrator.child.os_pid: f"migrator {number}" for number, migrator in enumerate(run.migrators)}
    if run.machine is not None and run.machine.init is not None:
        found[run.machine.init.os_pid] = "init"
    return found


def nodes_row(zone):
    """A row of the table node, but for its sample."""
    return (zone["node"], zone["spanned"], zone["nr_free_pages"], zone["nr_anon_pages"], zone["nr_file_pages"],
            zone["nr_pagetable"])


def slabs():
    """(cache, objects, in use) of each slab cache."""
    kernel = layout.kernel()
    caches = kernel.caches[:kernel.nr_caches]
    return [(cache["name"].decode(), int(cache["nr_objects"]), int(cache["nr_objects"]) - int(cache["nr_free"]))
            for cache in caches]


def _insert(db, table, key, rows):
    """Rows whose first column is `key`."""
    if rows:
        db.executemany(f"INSERT INTO {table} VALUES (?{', ?' * len(rows[0])})", [(key, *row) for row in rows])
