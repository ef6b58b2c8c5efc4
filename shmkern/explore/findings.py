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
from shmkern.explore.lock_order import HOW, Edge, LockOrder, Site, is_wrong, way_to, wrong_text
from shmkern.explore.names import Names, Source
from shmkern.explore.search import preemptions, source_hash
from shmkern.interrupts import write_whole

FORMAT = 2
COLUMN, NARROW = 58, 24
LONGEST_TURN = 200      # accesses, of what a livelock does again and again


# ---- following a schedule ---------------------------------------------------------

def follow(room, segments):
    """Runs one schedule; when it is used up, whoever comes first goes on.  Returns (Run, what it
    did); the memory is left as it is."""
    room.engine.strategy(engine_module.FOLLOW, 0, RUN_ON, 1, 0, 0)
    room.engine.plan(segments)
    run = room.run()
    room.judge(run)
    return run, room.engine.done()


def shrink(segments, shows):
    """The schedule with the fewest switches found that still shows the same: each preemption is left
    out, alone or with what the other task did meanwhile, until none can be.  `shows(plan)` is what a
    run of the plan did if it shows that, else None."""
    best = shows(segments)
    if best is None:
        return segments
    improved = True
    while improved:
        improved = False
        for plan in shorter(best):
            done = shows(plan)
            if done is not None and (preemptions(done), len(done)) < (preemptions(best), len(best)):
                best, improved = done, True
                break
    return best


def shrink_failure(room, kind, segments):
    """The shortest schedule found that fails in this way."""
    def fails(plan):
        run, done = follow(room, plan)
        room.engine.restore()
        return done if run.kind == kind else None
    return shrink(segments, fails)


def shrink_order(room, lock_order, edge, segments):
    """The shortest schedule found that takes two locks in this order, at these lines, and fails in no way."""
    def takes(plan):
        lock_order.forget()
        run, done = follow(room, plan)
        seen = lock_order.shown().get(edge)
        room.engine.restore()
        return way_to(done, seen) if seen and not run.failed else None
    return shrink(segments, takes)


def shorter(segments):
    """Schedules with a switch less."""
    if segments[0].until == RUN_ON:
        yield segments[1:]      # Perhaps what it did was not needed.
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
class Order:
    """A lock that was taken, or waited for, while another was held: by which task, with its accesses of
    these numbers (0: before the run)."""
    edge: Edge
    task: int
    held_step: int
    taken_step: int

    def __str__(self):
        return str(self.edge)


@dataclass
class Told:
    """A schedule of a finding, told.  It fails, or shows an `order` of locks, with which it ends."""
    segments: list
    switches: list      # for each preemption: where the task was, as [function, text of the line]
    events: list
    order: Order | None = None


@dataclass
class Finding:
    """What has failed: in one run; or in none, and each shows an order of locks that are wrong together."""
    scenario: str
    file: str | None
    kind: str
    text: str
    tasks: list
    runs: list
    source: str         # a hash


def new_finding(room, name, file, kind, text):
    """A Finding of which no run is told yet."""
    return Finding(name, file, kind, text, [task.pid for task, _program in room.programs], [], source_hash(room.build))


def tell(room, name, file, failure):
    """The Finding of a search's failure: each of its schedules shrunk, and run once more with a trace."""
    finding = new_finding(room, name, file, failure["kind"], failure["text"])
    if "segments" in failure:
        segments = shrink_failure(room, finding.kind, failure["segments"])
        kind, text, told = tell_failure(room, segments)
        finding.runs.append(told)
        finding.text = text if kind == finding.kind else \
            f"{finding.text}; but the same schedule, run again, ends in another way ({kind or 'nothing fails'}): do the " \
            "programs do the same in every run, and change memory through their tasks only?"
        return finding
    lock_order = LockOrder(room.engine)
    for edge, segments in failure["orders"]:
        segments = shrink_order(room, lock_order, edge, segments)
        finding.runs.append(tell_order(room, lock_order, segments, edge)[1])
    return finding


def tell_failure(room, segments):
    """Runs a schedule with a trace.  (kind, text, Told); kind is None when it does not fail."""
    names = Names()
    run, done, entries = follow_traced(room, segments)
    names.look()
    source = Source()
    lines = source.lines(entries["pc"].tolist())
    text, last = ending(room, run, entries, names, source)
    room.engine.restore()
    return run.kind, text, Told(done, switches_of(entries, lines, done),
                                events_of(entries, lines, names, {index: None for index in last}))


def tell_order(room, lock_order, segments, edge, step=(0, 0)):
    """Runs a schedule that is to show an edge with a trace; under gdb it stops at a task's access of a
    number, `step`.  (kind of what failed, or None; Told).  Its order is None when no lock of these classes
    was taken with one of these held."""
    names = Names()
    room.engine.show(*step)
    lock_order.forget()
    run, done, entries = follow_traced(room, segments)
    room.engine.show(0, 0)
    names.look()
    found = best_order(edge, lock_order.shown())
    lines = Source().lines(entries["pc"].tolist())
    room.engine.restore()
    told = Told(segments, switches_of(entries, lines, done), [])
    if found:
        todays, seen = found
        told.order = Order(todays, seen.task, seen.held_step, seen.taken_step)
        told.events = order_events(entries, lines, names, told.order, seen)
    return run.kind, told


def best_order(edge, shown):
    """Of the (Edge, LockEdge) that a run has shown the one that is most like `edge`, or None."""
    alike = [item for item in shown.items() if item[0][:2] == edge[:2] and item[0].same == edge.same]
    return min(alike, default=None, key=lambda item: (item[0] != edge, functions_of(item[0]) != functions_of(edge), item[0]))


def functions_of(edge):
    """In which functions the locks of an edge were taken."""
    return edge.held_at.function, edge.taken_at.function


def follow_traced(room, segments):
    """follow(), with what it did access by access."""
    room.engine.trace(True)
    run, done = follow(room, segments)
    entries = room.engine.traced()
    room.engine.trace(False)
    return run, done, entries


def switches_of(entries, lines, segments):
    """Where the task was, for each preemption."""
    return [where_switched(entries, lines, segment) for segment in segments if segment.until != RUN_ON]


def ending(room, run, entries, names, source):
    """How a run has failed, in words; and which of its accesses are to be told for that."""
    statistics = room.engine.statistics()
    at_end = last_of(entries["task"] == statistics.failed_task)
    if run.kind == "data race":
        race = room.engine.race()
        return race_text(room, names, source), [index for i in (0, 1) for index in last_of(
            (entries["task"] == race.task[i]) & (entries["pc"] == race.pc[i]) & (entries["how"] == race.how[i]))]
    if run.kind == "livelock":
        turn = last_turn(entries)
        return f"{run.text}; at the end the last {len(turn)} accesses come again and again", turn
    if run.kind == "deadlock":
        return room.deadlock_text(lambda address: str(names.of(address))), []
    if run.kind == "bad pointer":
        # The innermost ones are the runtime's.
        line = next(filter(lambda line: line.line, source.lines(room.engine.fault_site())), None)
        return f"{run.text} at {line} {line.function}" if line else run.text, at_end
    return run.text, at_end if run.kind == "kernel BUG" else []


def last_of(wanted):
    """The number of the last access that is wanted, in a list; none if none is."""
    return np.flatnonzero(wanted)[-1:].tolist()


def last_turn(entries):
    """Of a task that goes round and round, the accesses of one turn: as few as come three times at the end."""
    keys = entries[["task", "pc", "address"]]
    for length in range(1, min(len(keys) // 3, LONGEST_TURN) + 1):
        if (keys[-length:] == keys[-2 * length:-length]).all() and (keys[-length:] == keys[-3 * length:-2 * length]).all():
            return range(len(keys) - length, len(keys))
    return []


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


def events_of(entries, lines, names, also):
    """The accesses worth telling: of words that several tasks accessed and one changed, and
    sleeping and waking; equal ones in a row once.  Those with a number in `also` are told too, as an Event
    if it has one."""
    told = worth_telling(entries)
    told[list(also)] = True
    events, last = [], None
    for index in np.flatnonzero(told).tolist():
        event = also.get(index) or event_of(entries[index], lines[index], names)
        key = event.task, event.line, event.place, event.what
        if key == last:
            events[-1].times += 1
        else:
            events.append(event)
        last = key
    return events


def worth_telling(entries):
    """Which accesses are."""
    words = entries["address"] >> np.uint64(3)
    told = (entries["how"] & (IS_SLEEP | IS_WAIT | IS_WAKE)) != 0
    for word in np.unique(words):
        mine = words == word
        if len(set(entries["task"][mine].tolist())) > 1 and (entries["how"][mine] & IS_WRITE).any():
            told |= mine
    return told


def event_of(entry, line, names):
    """An access, told."""
    place = names.of(int(entry["address"]))
    function = line.function + (f" · {line.inline}" if line.inline else "")
    return Event(int(entry["task"]), int(entry["step"]), str(line), function, str(place), change_text(entry, place, names),
                 value_text(entry, place, names))


def order_events(entries, lines, names, order, seen):
    """The events of a run up to the access with which it takes the second lock; that, and the one with
    which it took the first, are told as what they are."""
    edge = order.edge
    held, taken = (str(names.of(lock.lock & ~HOW)).removesuffix(".word") for lock in (seen.held, seen.taken))
    instead = {}
    for step, site, place, what in ((order.held_step, edge.held_at, held, "taken"),
                                    (order.taken_step, edge.taken_at, taken, f"wanted with {held} held, since {edge.held_at}")):
        if step:
            last = int(np.flatnonzero((entries["task"] == order.task) & (entries["step"] == step))[-1])
            instead[last] = Event(order.task, step, site.line, site.function, place, what)
    return events_of(entries[:last + 1], lines, names, instead)


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

def title_of(finding, number):
    """What the run of that number shows, if it is not that it fails."""
    order = finding.runs[number].order
    return order and f"run {number + 1} of {len(finding.runs)}: {order}"


def ending_of(finding):
    """What broke, in words."""
    text = f"{finding.kind}: {finding.text}"
    if any(run.order for run in finding.runs):
        text += "\nNothing hung in " + (
            "these runs: each shows one of the orders. Tasks that take the locks at the same time, each in its order, wait "
            "for each other for ever, unless something always keeps them apart." if len(finding.runs) > 1 else
            "this run: it shows in which order the locks were taken, and not what can come of it.")
    return text


def table(finding, width=None):
    """The schedules as tables with one column a task, and what broke; for a terminal of that width, if it
    is one."""
    column = COLUMN if width is None else max(NARROW, min(COLUMN, (width - 5) // len(finding.tasks) - 2))
    rows = []
    for number, run in enumerate(finding.runs):
        title = title_of(finding, number)
        rows += [*textwrap.wrap(title, width or 2 * COLUMN), ""] if title else []
        lines = table_of(finding.tasks, run.events, column)
        rows += [*lines, ""] if lines else []
    return "\n".join([*rows, ending_of(finding)])


def table_of(tasks, events, column):
    """The lines of the table of one run; none if there is nothing to tell."""
    if not events:
        return []
    heads = [f"task {pid}" for pid in tasks]
    rows = ["     " + "".join(f"{head:<{column + 2}}" for head in heads).rstrip(),
            "     " + "".join("─" * column + "  " for _head in heads).rstrip()]
    last = None
    for number, event in enumerate(events, 1):
        if last is not None and event.task != last:
            rows.append("")
        last = event.task
        times = f" ({event.times} times)" if event.times > 1 else ""
        cell = [*textwrap.wrap(f"{event.line} {event.function}{times}", column, subsequent_indent="  "), *textwrap.wrap(
            f"{event.place}: {event.what}", column, initial_indent="  ", subsequent_indent="    ")]
        indent = " " * (column + 2) * event.task
        rows += [(f"{number:>4} " if at == 0 else "     ") + indent + line for at, line in enumerate(cell)]
    return rows


# ---- in a file ------------------------------------------------------------------------

def save(finding, path):
    """Writes a finding for replay."""
    data = asdict(finding) | {"format": FORMAT}
    write_whole(path, json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def load(path):
    """A saved finding.  ValueError when it is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        if data.pop("format") == FORMAT:
            saved = Finding(**data | {"runs": [told_from(run) for run in data["runs"]]})
            need(saved.runs and isinstance(saved.scenario, str) and isinstance(saved.file, str | None))
            need(all(0 <= segment.task < len(saved.tasks) for run in saved.runs for segment in run.segments))
            return saved
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no schedule that shmkern explore has saved") from error
    raise ValueError(f"{path} is of another version of shmkern")


def need(sense):
    """TypeError when something makes none."""
    if not sense:
        raise TypeError("no sense")


def told_from(data):
    """A Told from plain data.  TypeError or KeyError when it is none."""
    if data["order"]:
        held, taken, held_at, taken_at, same = data["order"]["edge"]
        data["order"] = Order(**data["order"] | {"edge": Edge(held, taken, Site(*held_at), Site(*taken_at), same)})
        need(all(type(number) is int and 0 <= number < RUN_ON for number in (data["order"].task, data["order"].taken_step)))
    told = Told(**data | {"segments": [Segment(*segment) for segment in data["segments"]],
                          "switches": [[str(function), str(text)] for function, text in data["switches"]],
                          "events": [Event(**event) for event in data["events"]]})
    # The runtime goes through them and believes what they say.
    need(0 < len(told.segments) <= engine_module.MAX_SEGMENTS and told.segments[-1].until == RUN_ON)
    need(all(type(number) is int for segment in told.segments for number in segment))
    need(all(0 < segment.until <= RUN_ON for segment in told.segments))
    return told


def replay(room, saved):
    """Runs what was saved again.  Returns the Finding of today's runs: its `kind` is None when nothing is
    wrong any more, and `text` why, if there is more to say.  ValueError when the code has changed so much
    that the schedules say nothing about it."""
    now = new_finding(room, saved.scenario, saved.file, None, "")
    if now.tasks != saved.tasks:
        raise ValueError("the scenario has other tasks now")
    if any(run.order for run in saved.runs):
        return replay_orders(room, saved, now)
    for run in saved.runs:
        now.kind, now.text, told = tell_failure(room, run.segments)
        compare_switches(run, told, now.kind)
        now.runs.append(told)
    return now


def replay_orders(room, saved, now):
    """replay() of a finding each of whose runs shows an order."""
    lock_order = LockOrder(room.engine)
    for number, run in enumerate(saved.runs, 1):
        failed, told = tell_order(room, lock_order, run.segments, run.order.edge, (run.order.task, run.order.taken_step))
        compare_switches(run, told, failed)
        if failed:
            now.kind, now.text, told = tell_failure(room, run.segments)
            now.runs = [told]
            return now
        if told.order is None:
            now.text = f"in run {number} no {run.order.edge.taken} is taken with {run.order.edge.held} held any more"
            return now
        now.runs.append(told)
    edges = [run.order.edge for run in now.runs]
    if len(edges) > 1 or is_wrong(edges[0]):
        now.kind, now.text = "lock order", wrong_text(edges)
    else:
        now.text = "there is a rule for this order now"
    return now


def compare_switches(then, now, kind):
    """ValueError when a schedule does not switch where it did."""
    for number, (old, new) in enumerate(zip(then.switches, now.switches), 1):
        if old != new:
            raise ValueError(f"the code has changed: switch {number} came before `{old[1]}` in {old[0]}, and would now "
                             f"come before `{new[1]}` in {new[0]}")
    if kind == "diverged" or len(now.switches) != len(then.switches):
        raise ValueError("the code has changed: a task that was to go on cannot, or ends before its switch")


def page(finding):
    """The finding as one page of HTML that can be stepped through."""
    template = resources.files("shmkern.explore").joinpath("page.html").read_text()
    data = asdict(finding) | {"titles": [title_of(finding, number) for number in range(len(finding.runs))],
                              "ending": ending_of(finding)}
    data = json.dumps(data, ensure_ascii=False).replace("</", "<\\/")
    return template.replace("@TITLE@", html.escape(f"{finding.scenario}: {finding.kind}")).replace("@DATA@", data)
