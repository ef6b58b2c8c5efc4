# SPDX-License-Identifier: GPL-2.0-only
"""What a failed schedule is told as: shrunk, traced, named, printed, saved.

May import: search and below.
"""
import html
import json
import textwrap
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

import numpy as np

from shmkern.explore import engine as engine_module
from shmkern.explore.engine import IS_SLEEP, IS_WAIT, IS_WAKE, IS_WRITE, RUN_ON, Segment
from shmkern.explore.names import Names, Source
from shmkern.explore.search import kernel_hash, preemptions

FORMAT = 1
COLUMN = 58


# ---- following a schedule ---------------------------------------------------------

def follow(room, segments):
    """Runs one schedule; when it is used up, whoever comes first goes on.  Returns (Run, what it
    did); the memory is left as it is."""
    room.engine.strategy(engine_module.FOLLOW, 0, RUN_ON, 1, 0)
    room.engine.plan(segments)
    run = room.run()
    room.judge(run)
    return run, room.engine.done()


def shrink(room, kind, segments):
    """The schedule with the fewest switches found that still fails in the same way: each
    preemption is left out, alone or with what the other task did meanwhile, until none can be."""
    def fails(plan):
        run, done = follow(room, plan)
        room.engine.restore()
        return done if run.kind == kind else None

    best = fails(segments)
    if best is None:
        return segments
    improved = True
    while improved:
        improved = False
        for plan in shorter(best):
            done = fails(plan)
            if done is not None and (preemptions(done), len(done)) < (preemptions(best), len(best)):
                best, improved = done, True
                break
    return best


def shorter(segments):
    """Schedules with a switch less."""
    for index, segment in enumerate(segments):
        if segment.until == RUN_ON:
            continue
        yield segments[:index] + [Segment(segment.task, RUN_ON)]
        later = next((at for at in range(index + 1, len(segments)) if segments[at].task == segment.task), None)
        if later is not None:
            yield segments[:index] + segments[later:]


# ---- events -----------------------------------------------------------------------

@dataclass
class Event:
    """One access of a failed schedule: by which task (a column), where in the source, to what, and
    what that was before and after.  `value` is what it left there, if it is one word and no sleep;
    `times` counts equal ones in a row."""
    task: int
    step: int
    line: str
    function: str
    place: str
    what: str
    value: str = ""
    times: int = 1


@dataclass
class Finding:
    """A failed schedule, told."""
    scenario: str
    file: str | None
    kind: str
    text: str
    tasks: list
    segments: list
    switches: list      # for each preemption: where the task was, as [function, text of the line]
    events: list
    kernel: str


def tell(room, name, file, failure):
    """The Finding of a failure, from running it once more with a trace."""
    segments = failure["segments"]
    finding = Finding(name, file, failure["kind"], failure["text"], [task.pid for task, _program in room.programs],
                      segments, [], [], kernel_hash())
    if not segments:
        return finding
    names = Names()
    room.engine.trace(True)
    run, done = follow(room, segments)
    entries = room.engine.traced()
    names.look()
    room.engine.trace(False)
    finding.segments = done
    source = Source()
    lines = source.lines(entries["pc"].tolist())
    finding.kind, finding.text = run.kind or finding.kind, run.text or finding.text
    if run.kind == "data race":
        finding.text = race_text(room, names, source)
    room.engine.restore()
    finding.switches = [where_switched(entries, lines, segment) for segment in done if segment.until != RUN_ON]
    finding.events = events_of(entries, lines, names)
    return finding


def race_text(room, names, source):
    """A data race in words."""
    race = room.engine.race()
    lines = source.lines(list(race.pc))
    sides = [f"{room.name_of(race.task[i])} {access_text(race.how[i])} it at {lines[i]} ({lines[i].function})"
             for i in (0, 1)]
    return f"nothing orders two accesses of {names.of(race.address)}: {sides[0]}, {sides[1]}"


def access_text(how):
    """What an access is, as a verb."""
    return ("marked " if how & engine_module.IS_ATOMIC else "plainly ") + ("writes" if how & IS_WRITE else "reads")


def where_switched(entries, lines, segment):
    """The function and the text of the line where a segment ends."""
    at = np.flatnonzero((entries["task"] == segment.task) & (entries["step"] == segment.until))
    if not len(at):
        return ["", ""]
    line = lines[at[0]]
    return [line.function, source_text(line)]


def source_text(line):
    """The text of a kernel line."""
    try:
        return (Path(engine_module.__file__).parent.parent / line.file).read_text().splitlines()[line.line - 1].strip()
    except (OSError, IndexError):
        return ""


def events_of(entries, lines, names):
    """The accesses worth telling: of words that several tasks accessed and one changed, and
    sleeping and waking; equal ones in a row once."""
    words = entries["address"] >> np.uint64(3)
    told = np.zeros(len(entries), bool)
    for word in np.unique(words):
        mine = words == word
        if len(set(entries["task"][mine].tolist())) > 1 and (entries["how"][mine] & IS_WRITE).any():
            told |= mine
    told |= (entries["how"] & (IS_SLEEP | IS_WAIT | IS_WAKE)) != 0
    events, last = [], None
    for index in np.flatnonzero(told).tolist():
        entry, line = entries[index], lines[index]
        place = names.of(int(entry["address"]))
        what = change_text(entry, place, names)
        function = line.function + (f" · {line.inline}" if line.inline else "")
        key = int(entry["task"]), str(line), str(place), what
        if key == last:
            events[-1].times += 1
            continue
        last = key
        events.append(Event(int(entry["task"]), int(entry["step"]), str(line), function, str(place), what,
                            value_text(entry, place, names)))
    return events


def change_text(entry, place, names):
    """What an access did to a word."""
    how, size = int(entry["how"]), int(entry["size"])
    if how & IS_SLEEP:
        return "falls asleep"
    if how & IS_WAIT:
        return "is going to sleep"
    if how & IS_WAKE:
        return "wakes whoever sleeps on it"
    if size > 8:
        return f"{size} bytes {'written' if how & IS_WRITE else 'read'}"
    before = names.value(place, int(entry["before"]), size)
    if not how & IS_WRITE:
        return before
    after = names.value(place, int(entry["after"]), size)
    return f"{before} → {after}" if before != after else f"{before}, written but not changed"


def value_text(entry, place, names):
    """What an access left in its word; "" when it is no word, or nobody looked at it."""
    if int(entry["how"]) & (IS_SLEEP | IS_WAIT | IS_WAKE) or entry["size"] > 8:
        return ""
    return names.value(place, int(entry["after"]), int(entry["size"]))


# ---- in text ------------------------------------------------------------------------

def table(finding):
    """The schedule as a table with one column a task."""
    heads = [f"task {pid}" for pid in finding.tasks]
    rows = ["     " + "".join(f"{head:<{COLUMN + 2}}" for head in heads).rstrip(),
            "     " + "".join("─" * COLUMN + "  " for _head in heads).rstrip()]
    last = None
    for number, event in enumerate(finding.events, 1):
        if last is not None and event.task != last:
            rows.append("")
        last = event.task
        times = f" ({event.times} times)" if event.times > 1 else ""
        cell = [f"{event.line} {event.function}{times}", *textwrap.wrap(
            f"{event.place}: {event.what}", COLUMN - 2, initial_indent="  ", subsequent_indent="    ")]
        indent = " " * (COLUMN + 2) * event.task
        rows += [(f"{number:>4} " if at == 0 else "     ") + indent + line[:COLUMN + 20] for at, line in enumerate(cell)]
    return "\n".join([*rows, "", f"{finding.kind}: {finding.text}"])


# ---- in a file ------------------------------------------------------------------------

def save(finding, path):
    """Writes a finding for replay."""
    data = asdict(finding) | {"format": FORMAT}
    Path(path).write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def load(path):
    """A saved finding.  ValueError when it is none."""
    try:
        data = json.loads(Path(path).read_text())
        if data.pop("format") != FORMAT:
            raise ValueError("of another version of shmkern")
        data["segments"] = [Segment(*segment) for segment in data["segments"]]
        data["events"] = [Event(**event) for event in data["events"]]
        return Finding(**data)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no schedule that shmkern explore has saved") from error


def replay(room, saved):
    """Runs a saved schedule again.  Returns the Finding of today's run: its `kind` is None when
    nothing fails any more.  ValueError when the code has changed so much that the schedule says
    nothing about it."""
    now = tell(room, saved.scenario, saved.file, {"kind": None, "text": None, "segments": saved.segments})
    for number, (then, today) in enumerate(zip(saved.switches, now.switches), 1):
        if then != today:
            raise ValueError(f"the code has changed: switch {number} came before `{then[1]}` in {then[0]}, and would now "
                             f"come before `{today[1]}` in {today[0]}")
    if now.kind == "diverged" or len(now.switches) != len(saved.switches):
        raise ValueError("the code has changed: a task that was to go on cannot, or ends before its switch")
    return now


def page(finding):
    """The finding as one page of HTML that can be stepped through."""
    template = resources.files("shmkern.explore").joinpath("page.html").read_text()
    data = json.dumps(asdict(finding), ensure_ascii=False).replace("</", "<\\/")
    return template.replace("@TITLE@", html.escape(f"{finding.scenario}: {finding.kind}")).replace("@DATA@", data)
