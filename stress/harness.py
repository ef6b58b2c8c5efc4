# SPDX-License-Identifier: GPL-2.0-only
"""The supervisor's side of a stress run: boot, start the tasks and the migrator, watch, stop,
check, audit.

A run is over when its time is, at the first broken promise, or at a signal.  Then every
task checks all its memory, with the migrator still at work, and parks; the machine is
audited with everybody's memory in place; the tasks end, and it is audited once more.
"""
import errno
import os
import signal
import time

import shmkern
from shmkern import layout, vmstat
from shmkern.command import FULL, problem_text
from shmkern.errors import HostError, UsageError
from shmkern_stress.board import ABSENT, PARKED, SETTING_UP, WAITING, WORKING, Board, Run, entering

POLL = 0.02
AUDIT_EVERY = 5.0
START_LIMIT = 120.0
STOP_LIMIT = 90.0
# At these signals a run ends at once; at Ctrl-C it is told what was measured.
ENDING = (signal.SIGTERM, signal.SIGHUP)
# Of these the machine has none for its supervisor.
HOST_LIMITS = (errno.EMFILE, errno.ENFILE, *FULL)
RUNNING = layout.constants["TASK_RUNNING"]


class Signals:
    """Within its `with` block SIGINT, SIGTERM and SIGHUP are noted in `number` and do nothing
    else, so that they cannot come between two steps that belong together; a second one is a
    KeyboardInterrupt.  Tasks, which inherit this, keep to the defaults (and ignore SIGINT).
    With `outlive_terminal` SIGHUP is ignored, by the tasks as well."""

    def __init__(self, outlive_terminal=False):
        self.number, self.hurry = 0, False
        self._owner = os.getpid()
        self._before = {}
        self._hang_up = signal.SIG_IGN if outlive_terminal else self._note

    def __enter__(self):
        for number, handler in ((signal.SIGINT, self._note), (signal.SIGTERM, self._note),
                                (signal.SIGHUP, self._hang_up)):
            self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _frame):
        if os.getpid() != self._owner:
            # Here and not at once, for at once may be in the middle of the kernel.
            if number != signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif not self.number:
            self.number = number
        elif not self.hurry:
            # Once: the next one must not interrupt the cleaning up.
            self.hurry = True
            raise KeyboardInterrupt


class Stop(Exception):
    """A run cannot go on: it has a failure or a signal to report."""


class Supervision:
    """One run of a scenario.  `failures` are sentences, `lost_writes` counts some of them,
    `findings` are the audits'."""

    def __init__(self, scenario, options, plan, signals, display, tick):
        self.scenario, self.options = scenario, options
        self.signals, self.display, self.tick = signals, display, tick
        # A forked task may be there before the one whose place it takes has gone.
        self.max_tasks = 2 * options.workers + options.migrators + options.nodes + 8
        self.board = Board(self.max_tasks)
        self.run = Run(options, plan, self.board)
        self.failures, self.findings, self.lost_writes = [], [], 0
        # When each audit began, by the monotonic clock, and how many seconds it took.
        self.audits = []
        self.machine, self.roots, self.migrators = None, [], []
        self.began, self.seconds, self.live = None, 0.0, 0
        # Whether a failure or signal ends the stage, and whether tasks have to be alive.
        self.running, self.watching = True, True
        self.dead = set()
        self.panicked = False

    def fail(self, text):
        """Notes a broken promise.  Not when all is being ended: that breaks what it breaks."""
        if self.signals.number in ENDING:
            return
        self.board.broken = True
        first, *rest = text.split("\n")
        self.failures.append("\n".join([f"{first}; seed {self.options.seed}", *rest]))

    def host_failed(self, text):
        """The host does not give what a run takes, which breaks no promise: raises UsageError, unless
        one was broken before."""
        if not self.failures:
            raise UsageError(text)
        raise Stop

    # ---- one look ----

    def poll(self):
        """Looks after machine and tasks.  Raises Stop when there is something to report, and
        KernelBug when the machine has stopped."""
        if self.signals.number in ENDING:
            raise Stop
        self.machine.check()
        self.read_messages()
        if self.watching:
            self.look_for_dead()
            self.live = max(self.live, self.tasks_left() - len(self.migrators))
        if self.running and (self.failures or self.signals.number):
            raise Stop
        if self.tick:
            self.tick(self)
        self.display.update(self)
        time.sleep(POLL)

    def read_messages(self):
        """Notes what tasks have told."""
        for message in self.board.messages():
            if message["kind"] == "host":
                self.host_failed(message["text"])
            self.lost_writes += message["kind"] == "lost write"
            self.fail(message["text"])

    def tasks_left(self):
        """How many tasks there are that are not the machine's own."""
        return int((vmstat.tasks()["state"] != 0).sum()) - 1 - len(self.machine.kswapds)

    def look_for_dead(self):
        """Finds tasks that ended without a word: who ends otherwise leaves the board first."""
        for child in [*self.roots, *(migrator.child for migrator in self.migrators)]:
            if child.pid not in self.dead and not child.is_alive():
                self.dead.add(child.pid)
                self.read_messages()
                if child.process.exitcode or not self.failures:
                    self.fail(str(shmkern.TaskDied(child.pid, child.process.exitcode)))
        rows = self.board.rows
        for cpu in rows["pid"].copy().nonzero()[0].tolist():
            pid, slot = int(rows["pid"][cpu]), vmstat.tasks()[cpu]
            gone = slot["state"] != RUNNING or slot["pid"] != pid
            # Looked at twice: it may have left between the two.
            if gone and pid and int(rows["pid"][cpu]) == pid:
                if pid not in self.dead:
                    self.fail(f"task {pid} died")
                rows["pid"][cpu], rows["state"][cpu] = 0, ABSENT

    def poll_until(self, condition, limit, what):
        """Polls until condition() holds; a failure after `limit` seconds."""
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() >= deadline:
                self.fail(f"{what} after {limit:.0f} s; {self.stuck()}")
                raise Stop
            self.poll()

    def stuck(self):
        """Who is not parked, for a report."""
        rows = self.board.rows
        busy = rows["pid"][(rows["pid"] != 0) & (rows["state"] != PARKED)].tolist()
        return f"busy are tasks {busy}" if busy else "all tasks have parked"

    # ---- the stages ----

    def start(self):
        """Starts the tasks, and the migrators when all are set up."""
        scenario, options = self.scenario, self.options
        if hasattr(scenario, "prepare"):
            scenario.prepare(self.machine, options)
        count = scenario.roots(options) if hasattr(scenario, "roots") else options.workers
        for number in range(count):
            self.roots.append(self.machine.spawn(entering(self.run, scenario.worker, f"worker {number}"), number))
            self.poll()
        self.poll_until(lambda: self.board.count(WORKING) >= count, START_LIMIT, "not all tasks are set up")
        for number in range(options.migrators):
            self.migrators.append(self.machine.start_migrator(seed=options.seed + number))
        self.began = time.monotonic()

    def elapsed(self):
        """Seconds since the migrators came."""
        return 0.0 if self.began is None else self.seconds or time.monotonic() - self.began

    def watch(self):
        """The run itself."""
        next_audit = self.began + AUDIT_EVERY
        while self.elapsed() < self.options.seconds or not self.through():
            self.poll()
            if time.monotonic() >= next_audit:
                self.audit()
                next_audit = time.monotonic() + AUDIT_EVERY

    def through(self):
        """Whether every worker has done what it is to do at least once, if it is."""
        if not self.options.once_through:
            return True
        passes = self.board.rows["passes"][[root.cpu for root in self.roots]]
        return bool((passes > 0).all())

    def settle(self):
        """Has the tasks check their memory and park, then end; audits before and after."""
        self.running = False
        self.board.stop()
        self.poll_until(lambda: self.board.count(SETTING_UP, WORKING, WAITING) == 0, STOP_LIMIT,
                        "not all tasks have stopped")
        self.seconds = self.elapsed()
        self.audit()
        # Parked tasks leave as they please now.
        self.watching = False
        for migrator in self.migrators:
            migrator.stop(STOP_LIMIT)
        self.audit()
        self.board.release()
        self.poll_until(lambda: not any(root.is_alive() for root in self.roots), STOP_LIMIT, "not all tasks have ended")
        self.poll_until(lambda: self.tasks_left() <= 0, STOP_LIMIT, "not all tasks have ended")
        self.audit()

    def audit(self):
        """Audits the machine.  Raises Stop when it is broken."""
        began = time.monotonic()
        found = self.machine.audit()
        self.audits.append((began, time.monotonic() - began))
        if not found.clean:
            self.findings += found.to_json()
            for finding in found.findings[:8]:
                self.fail(f"audit: {finding}")
            raise Stop

    # ---- all of it ----

    def supervise(self):
        """Runs the scenario.  Returns the result, a dict; see result()."""
        try:
            more = self.scenario.machine_options(self.options) if hasattr(self.scenario, "machine_options") else {}
            with shmkern.Machine(self.options.nodes, self.options.frames // self.options.nodes,
                                 max_tasks=self.max_tasks, **more) as self.machine:
                self.stage(self.start, self.watch)
                if self.signals.number not in ENDING:
                    self.stage(self.settle)
                return self.result()
        finally:
            self.board.close()

    def step(self, step):
        """Does a step.  What the host has said is what host_failed() makes of it."""
        try:
            step()
        except shmkern.KernelBug as bug:
            if bug.kind != "host memory" or self.panicked:
                raise
            self.host_failed(bug.report.split("\n")[0])
        except OSError as error:
            if not isinstance(error, HostError) and error.errno not in HOST_LIMITS:
                raise
            self.host_failed(problem_text(error))

    def stage(self, *steps):
        """Does steps until one raises what a run can end with."""
        try:
            for step in steps:
                self.step(step)
        except Stop:
            pass
        except shmkern.KernelBug as bug:
            if not self.panicked:
                self.panicked = True
                self.fail(str(bug))
        except (shmkern.TaskDied, OSError, TimeoutError) as error:
            self.fail(f"{type(error).__name__}: {error}")

    def result(self):
        """What was measured, as README and --help describe it."""
        counters, waits, options = self.machine.vmstat(), vmstat.histogram("migration wait"), self.options
        seconds = self.elapsed()
        moved = counters["pgmigrate_success"]
        return {
            "scenario": self.scenario.NAME, "seed": options.seed, "seconds": round(seconds, 3),
            "workers": options.workers, "nodes": options.nodes, "frames": options.frames,
            "accesses": counters["accesses"], "faults": counters["pgfault"],
            "migration_waits": counters["migration_entry_wait"],
            "wait_p50_us": round(vmstat.percentile_us(waits, 50), 3),
            "wait_p99_us": round(vmstat.percentile_us(waits, 99), 3),
            "pages_migrated": moved, "pages_per_second": round(moved / seconds) if seconds else 0,
            "migrate_failed": counters["pgmigrate_fail"], "migrate_retried": counters["pgmigrate_retry"],
            "tlb_shootdowns": counters["tlb_shootdown"], "lost_writes": self.lost_writes,
            "audit": self.findings, "failures": self.failures,
            "forks": int(self.board.rows["forks"].sum()), "tasks_live_max": self.live,
            "cow_faults": counters["pgfault_cow"], "out_of_frames": counters["pgfault_oom"],
            "pages_swapped_out": counters["pswpout"], "pages_swapped_in": counters["pswpin"],
            "refused": int(self.board.rows["refused"].sum()),
            "signal": self.signals.number,
        }
