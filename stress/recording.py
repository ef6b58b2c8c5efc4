# SPDX-License-Identifier: GPL-2.0-only
"""The bookkeeping of a sampled run, be it a soak or one stress run: sessions and turns in the file
of samples, and what that file then says."""
import json
import os
import shlex
import sys
import time
from datetime import datetime
from pathlib import Path

from shmkern import direct_map, provenance
from shmkern_stress import verdict
from shmkern_stress.sampler import Sampler
from shmkern_stress.samples import SamplesError


class Recording:
    """A session that writes to `samples`, new or with sessions before it.  `sampler` is the tick
    for the turns, `meta` what the run was begun with."""

    def __init__(self, samples, every=1.0, stall=None):
        self.samples, self.meta = samples, samples.meta()
        self.before = samples.elapsed()
        self._began = time.monotonic()
        self.sampler = Sampler(samples, every, stall, self.elapsed)
        self.turns = samples.rows("SELECT coalesce(max(number), 0) FROM turn")[0][0]
        # What the disk had no room for: the last turn and its findings.
        self._unsaved = None, []
        with samples.writing() as db:
            # A turn of an earlier session that never ended was killed.
            db.execute("UPDATE turn SET state = 'cut short' WHERE state = 'running'")
            db.execute("UPDATE session SET ended = 'killed' WHERE ended IS NULL")
            self.broken = bool(db.execute("SELECT count(*) FROM finding").fetchone()[0])
            # The name of a file may have bytes that are no text.
            command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]).encode(errors="backslashreplace").decode()
            self.session = db.execute(
                "INSERT INTO session (began, os_pid, start_time, revision, host, command) VALUES (?, ?, ?, ?, ?, ?)",
                (datetime.now().astimezone().isoformat(timespec="seconds"), os.getpid(),
                 direct_map.process_start(os.getpid()), provenance.revision(), json.dumps(provenance.host()),
                 command)).lastrowid

    def elapsed(self):
        """Seconds of the run, the earlier sessions' included."""
        return self.before + time.monotonic() - self._began

    def begin_turn(self, scenario, options):
        """A turn begins; the sampler is ready for it."""
        self.turns += 1
        self.turn_began = self.elapsed()
        with self.samples.writing() as db:
            db.execute("INSERT INTO turn VALUES (?, ?, ?, ?, ?, ?, NULL, 'running', NULL)",
                       (self.turns, self.session, scenario, json.dumps(vars(options), default=str), options.seed,
                        self.turn_began))
        self.sampler.begin(self.turns)

    def end_turn(self, scenario, result, findings):
        """A turn has ended with a result of harness's and findings, as (kind, who, text)."""
        self.broken = bool(findings)
        state = "broken" if findings else "interrupted" if result["signal"] or self.sampler.error else "held"
        turn = {"number": self.turns, "scenario": scenario, "seed": result["seed"],
                "seconds": self.elapsed() - self.turn_began, "state": state, "result": result}
        findings = [dict(zip(("turn", "kind", "who", "text"), (self.turns, *finding))) for finding in findings]
        self._unsaved = turn, findings
        if self.sampler.error is None:
            self._save(turn, findings)

    def _save(self, turn, findings):
        try:
            self.sampler.between()
            with self.samples.writing() as db:
                db.execute("UPDATE turn SET seconds = ?, state = ?, result = ? WHERE number = ?",
                           (turn["seconds"], turn["state"], json.dumps(turn["result"]), turn["number"]))
                db.executemany("INSERT INTO finding (turn, kind, who, text) VALUES (:turn, :kind, :who, :text)", findings)
        except SamplesError as error:
            self.sampler.error = error
        else:
            self._unsaved = None, []

    def end(self, how):
        """The session is over.  Raises SamplesError."""
        with self.samples.writing() as db:
            db.execute("UPDATE session SET ended = ? WHERE number = ?", (how, self.session))

    def result(self):
        """What result_of says of the samples, with what the disk had no room for."""
        result = result_of(self.samples)
        turn, findings = self._unsaved
        if turn:
            result["turns"][-1] = turn
            result["findings"] += findings
        return result


def result_of(samples):
    """All that a file of samples says, a dict; docs/soak.md describes it."""
    meta = samples.meta()
    turns = [{"number": number, "scenario": scenario, "seed": seed, "seconds": seconds, "state": state,
              "result": json.loads(result) if result else None}
             for number, scenario, seed, seconds, state, result in samples.rows(
                 "SELECT number, scenario, seed, seconds, state, result FROM turn ORDER BY number")]
    findings = [dict(zip(("turn", "kind", "who", "text"), row))
                for row in samples.rows("SELECT turn, kind, who, text FROM finding ORDER BY number")]
    judgements = [judgement for turn in turns for judgement in verdict.judge(samples, turn["number"])]
    return {"seed": meta["seed"], "planned_seconds": meta["seconds"], "seconds": round(samples.elapsed(), 1),
            "revision": samples.rows("SELECT revision FROM session ORDER BY number DESC")[0][0],
            "samples": samples.path, "turns": turns, "findings": findings,
            "trends": [trend_of(judgement) for judgement in [*judgements, *verdict.judge_between(samples)]
                       if judgement.trend]}


def trend_of(judgement):
    """A Judgement as a dict."""
    return {"turn": judgement.turn, "what": judgement.quantity.name, "who": judgement.who,
            "grows": judgement.grows, **judgement.trend._asdict()}


def state_of(result):
    """A result in a word: one of html_report.STATES."""
    if result["findings"]:
        return "broken"
    # An earlier turn that was interrupted has been gone on from.
    whole = all(turn["state"] != "interrupted" for turn in result["turns"][-1:])
    return "held" if whole and result["seconds"] >= result["planned_seconds"] - 1 else "interrupted"
