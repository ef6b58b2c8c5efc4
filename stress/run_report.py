# SPDX-License-Identifier: GPL-2.0-only
"""The report of a soak or stress run as one HTML page, from its samples.

For someone who was not there: the verdict first, then what ran, then each thing that was measured
with a sentence on what there is to see.
"""
import json

import numpy as np

from shmkern import vmstat
from shmkern.layout import constants as C
from shmkern_stress import trend, verdict
from shmkern_stress.common import UsageError
from shmkern_stress.recording import state_of
from shmkern_stress.sampler import SUPERVISOR

POINTS = 400
MIB = 1 << 20
# Nodes that get a plot of their own; of more only the share in use is drawn.
NODES_MAX = 6
SHOWN_TRENDS, SHOWN_SLOW = 10, 5
LEGEND_COLUMNS = 6
ROLES = {SUPERVISOR: 1, "init": 2, "migrator": 3, "descendant": 4}
PERCENTILES = (50, 90, 99, 99.9)


def write(path, samples, result):
    """Writes the report to `path`, if that is one.  Raises UsageError when it cannot be written."""
    if path is None:
        return
    try:
        report(samples, result).write(path)
    except OSError as error:
        raise UsageError(f"the report cannot be written to {path}: {error.strerror}") from None


def report(samples, result):
    """The Page."""
    # Here, since matplotlib takes half a second that only a report is worth.
    from shmkern.html_report import Page

    state = state_of(result)
    turns, found = result["turns"], [finding["kind"] for finding in result["findings"]]
    sentence = (f"{len(found)} finding{'s' * (len(found) != 1)} ({', '.join(dict.fromkeys(found))}) in " if found else
                "Nothing lost, no growth, nobody stalled in ") + \
        f"{len(turns)} turn{'s' * (len(turns) != 1)}, {result['seconds']:,.0f} of {result['planned_seconds']:,.0f} s."
    page = Page(f"shmkern: {', '.join(dict.fromkeys(turn['scenario'] for turn in turns))}", state, sentence,
                facts(samples, result))
    findings(page, result)
    overview(page, turns)
    over_time(page, samples, turns)
    latencies(page, samples, turns)
    processes(page, samples, result)
    nodes(page, samples, turns)
    kernel_objects(page, samples, turns)
    slow(page, samples)
    words(page)
    return page


def facts(samples, result):
    """What ran, on what."""
    sessions = samples.rows("SELECT began, revision, host, command, ended FROM session ORDER BY number")
    began, revision, host, command, _ended = sessions[-1]
    host = json.loads(host)
    found = {"command": command, "commit": revision, "seed": f"{result['seed']}, one more for each turn",
             "began": sessions[0][0],
             "host": f"{host['cpu']}, {host['cores']} cores, {host['memory_mib']:,} MiB, Linux {host['kernel']}, "
                     f"Python {host['python']}, load {host['load']:.1f} at the start",
             "samples": f"{samples.rows('SELECT count(*) FROM sample')[0][0]:,} in {samples.path}"}
    if len(sessions) > 1:
        found["sessions"] = "; ".join(f"{when}: {commit}, ended {how or 'not yet'}"
                                      for when, commit, _host, _command, how in sessions)
    return found


def findings(page, result):
    """What was wrong."""
    if result["findings"]:
        page.section("What was found")
        page.list([f"Turn {finding['turn']}: {finding['text']}" for finding in result["findings"]])


def overview(page, turns):
    """A row a turn."""
    page.section("Turns", "Each is a run of one scenario on a machine of its own. A page that stayed busy for ten passes "
                 "has failed to move, which is no fault; a store that got lost would be one.")
    rows = []
    for turn in turns:
        r = turn["result"]
        cells = [f"{r['seconds']:,.1f}", f"{r['workers']}", f"{r['accesses']:,}", f"{r['pages_migrated']:,}",
                 f"{r['pages_per_second']:,}", f"{r['migrate_retried']:,}", f"{r['migrate_failed']:,}",
                 f"{r['migration_waits']:,}", f"{r['lost_writes']}"] if r else ["–"] * 9
        rows.append(("bad" if turn["state"] == "broken" else "",
                     [str(turn["number"]), turn["scenario"], turn["state"], str(turn["seed"]), *cells]))
    page.table(["turn", "scenario", "state", "seed", "seconds", "workers", "accesses", "pages moved", "a second",
                "retried", "failed", "waits", "lost writes"], rows)


# ---- over time -----------------------------------------------------------------------

def counters(samples, turn, names):
    """(times, {name: values}) of counters over a turn, at POINTS times at most."""
    marks = ", ".join("?" * len(names))
    rows = samples.rows(f"SELECT t, name, value FROM counter JOIN sample ON sample = number WHERE turn = ? "
                        f"AND phase = 'running' AND name IN ({marks}) ORDER BY number", turn, *names)
    times = sorted({t for t, _name, _value in rows})
    values = {name: np.array([value for _t, key, value in rows if key == name], float) for name in names}
    return np.array(times), values


def rates(times, values, points):
    """The middles of `points` spans at most, and how fast the counter grew in each."""
    at = np.unique(np.linspace(0, len(times) - 1, points + 1).astype(int))
    return (times[at][1:] + times[at][:-1]) / 2, np.diff(values[at]) / np.diff(times[at])


def over_time(page, samples, turns):
    """Rates of the machine's counters."""
    from shmkern.html_report import SERIES, plot

    panels = [("pages moved a second", {"pgmigrate_success": "moved"}),
              ("moves that did not succeed, a second", {"pgmigrate_retry": "retried", "pgmigrate_fail": "failed"}),
              ("waits a second", {"migration_entry_wait": "for a page that moves", "page_lock_wait": "for a page lock",
                                  "rwsem_wait": "for an address space", "spin_park": "for a spinlock",
                                  "futex_wait": "sleeps, of all kinds"}),
              ("faults a second", {"pgfault": "faults"})]
    page.section("Over time", "What the migrators did, and what that cost the others. A dashed line is where a turn begins; "
                 "a gap lies between two machines.")
    figure, axes = plot(len(panels), sharex=True)
    names = [name for _title, lines in panels for name in lines]
    share = max(8, POINTS // max(1, len(turns)))
    for turn in turns:
        times, values = counters(samples, turn["number"], names)
        for (_title, lines), ax in zip(panels, axes):
            for number, name in enumerate(lines if len(times) > 1 else ()):
                ax.plot(*rates(times, values[name], share), color=SERIES[number])
    for (title, lines), ax in zip(panels, axes):
        ax.set_title(title)
        from_zero(ax)
        mark_turns(ax, samples)
        if len(lines) > 1:
            legend(ax, list(enumerate(lines.values())))
    axes[-1].set_xlabel("seconds")
    page.figure(figure, "Rates, from second to second")


def from_zero(ax):
    """Has the vertical axis begin at zero, and end above what is drawn: a level that stays is seen."""
    top = ax.dataLim.y1
    ax.set_ylim(0, 1.08 * top if 0 < top < np.inf else None)


def style(number):
    """The colour and the kind of line of a series: there are more series than colours."""
    from shmkern.html_report import SERIES

    return {"color": SERIES[number % len(SERIES)], "linestyle": "--" if number // len(SERIES) % 2 else "-"}


def legend(ax, entries):
    """A legend of (number of a series, text), above the axes or, if `ax` is one, the figure."""
    from matplotlib.lines import Line2D

    place = {"loc": "outside upper right"} if ax is ax.figure else \
        {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0}
    ax.legend([Line2D([], [], **style(number)) for number, _text in entries],
              [text for _number, text in entries], ncols=min(len(entries), LEGEND_COLUMNS), **place)


def mark_turns(ax, samples):
    """A line where each turn begins."""
    from shmkern.html_report import MUTED

    for _number, began in samples.rows("SELECT number, began FROM turn ORDER BY number")[1:]:
        ax.axvline(began, color=MUTED, linewidth=0.7, linestyle="--")


# ---- latencies -----------------------------------------------------------------------

def histograms(samples):
    """{(scenario, kind): buckets} over all turns."""
    found = {}
    for scenario, kind, bucket, count in samples.rows(
            "SELECT scenario, kind, bucket, sum(count) FROM latency JOIN turn ON turn = number "
            "GROUP BY scenario, kind, bucket"):
        buckets = found.setdefault((scenario, kind), np.zeros(C["NR_WAIT_BUCKETS"], np.int64))
        buckets[bucket] = count
    return found


def time_text(us):
    """A time in microseconds, as a person reads it."""
    return f"{us:,.2f} us" if us < 1000 else f"{us / 1000:,.2f} ms" if us < 1e6 else f"{us / 1e6:,.2f} s"


def latencies(page, samples, turns):
    """Histograms and percentiles of the three latencies."""
    from shmkern.html_report import SERIES, plot

    page.section("Latencies", "How long a task waited for a page that was being moved; how long its page faults took (one "
                 "in 16 is timed), waits for a moving page included; how long a lock made it wait, uncontended locks "
                 "left out. Each bar is a fifth longer than the one before it; the vertical scale is logarithmic, so that "
                 "the few slow ones show.")
    found = histograms(samples)
    scenarios = list(dict.fromkeys(turn["scenario"] for turn in turns))
    figure, axes = plot(1, len(vmstat.HISTOGRAMS), height=3.0, sharey=True)
    edges = np.array([2**(b // 4) * (1 + b % 4 / 4) for b in range(C["NR_WAIT_BUCKETS"] + 1)]) / 1000
    rows = []
    for kind, ax in zip(vmstat.HISTOGRAMS, axes):
        ax.set_title(kind)
        ax.set_xlabel("microseconds")
        for number, scenario in enumerate(scenarios):
            buckets = found.get((scenario, kind))
            if buckets is None:
                continue
            used = np.flatnonzero(buckets)
            first, last = used[0], used[-1] + 1
            ax.stairs(buckets[first:last], edges[first:last + 1], **style(number), baseline=None)
            rows.append([kind, scenario, f"{int(buckets.sum()):,}",
                         *(time_text(vmstat.percentile_us(buckets, percent)) for percent in PERCENTILES),
                         time_text(vmstat.bucket_ns(int(used[-1])) / 1000)])
        # Only once something is drawn: an empty logarithmic axis has no limits.
        if any((scenario, kind) in found for scenario in scenarios):
            ax.set_xscale("log")
            ax.set_yscale("log")
    axes[0].set_ylabel("how many")
    legend(figure, list(enumerate(scenarios)))
    page.figure(figure, "Latency histograms")
    page.table(["latency", "scenario", "counted", *(f"p{percent:g}" for percent in PERCENTILES), "longest"], rows,
               "Nobody waited.")


# ---- processes -----------------------------------------------------------------------

def role(name):
    """The number of a process's series: by what it is."""
    return ROLES.get(name.split()[0], 0)


def thin(rows):
    """A series at POINTS points at most."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, POINTS // 4).astype(int))] if len(rows) else rows


def processes(page, samples, result):
    """Memory and descriptors of each process, with the lines that were fitted."""
    from shmkern.html_report import BAD, INK, SERIES, plot

    judged = [judgement for turn in result["turns"] for judgement in verdict.judge(samples, turn["number"])]
    page.section("Processes", "Each process's own memory (resident less shared) and open descriptors. A dotted line is the "
                 f"trend of the steady part (Theil–Sen, {100 * trend.CONFIDENCE:g} % confidence); one that grows "
                 "for good is a leak, drawn in red and listed first.")
    figure, axes = plot(2, height=2.4, sharex=True)
    axes[0].set_title("memory, MiB")
    axes[1].set_title("descriptors")
    axes[1].set_xlabel("seconds")
    for turn in result["turns"]:
        for (_os_pid, who), rows in verdict.processes(samples, turn["number"]).items():
            shown = thin(rows)
            axes[0].plot(shown[:, 0], shown[:, 1] / MIB, color=SERIES[role(who)], linewidth=0.8)
            axes[1].plot(shown[:, 0], shown[:, 2], color=SERIES[role(who)], linewidth=0.8)
    for judgement in judged:
        fitted = judgement.trend
        if fitted is not None and judgement.quantity in (verdict.MEMORY, verdict.DESCRIPTORS):
            scale, ax = (MIB, axes[0]) if judgement.quantity is verdict.MEMORY else (1, axes[1])
            level = np.array([fitted.level, fitted.level + fitted.slope * (fitted.end - fitted.start)]) / scale
            ax.plot([fitted.start, fitted.end], level, linestyle=":", linewidth=2.5 if judgement.grows else 0.8,
                    color=BAD if judgement.grows else INK)
    for ax in axes:
        from_zero(ax)
        mark_turns(ax, samples)
    legend(axes[0], [(0, "worker"), *((number, name) for name, number in ROLES.items())])
    page.figure(figure, "Memory and descriptors of each process, with the fitted trends")
    trends_table(page, judged + verdict.judge_between(samples))


def trends_table(page, judged):
    """The judgements that come nearest to a leak."""
    judged = [judgement for judgement in judged if judgement.trend is not None]
    judged.sort(key=lambda judgement: (not judgement.grows, -judgement.trend.growth / judgement.quantity.floor))
    rows = []
    for judgement in judged[:SHOWN_TRENDS]:
        fitted, quantity = judgement.trend, judgement.quantity
        rows.append(("bad" if judgement.grows else "", [
            judgement.who, quantity.name, "–" if judgement.turn is None else str(judgement.turn),
            verdict.amount(quantity, fitted.level), verdict.amount(quantity, fitted.slope),
            f"{verdict.amount(quantity, fitted.low)} to {verdict.amount(quantity, fitted.high)}",
            "LEAK" if judgement.grows else "no trend" if fitted.low <= 0 else "too little, or over"]))
    page.table(["who", "what", "turn", "level", "grows a second", "at least, at most", "judged"], rows,
               "Nothing lived long enough to be judged.")


# ---- the machine ---------------------------------------------------------------------

def nodes(page, samples, turns):
    """What is in each node's frames."""
    from shmkern.html_report import SERIES, plot

    count = samples.rows("SELECT coalesce(max(node), -1) + 1 FROM node")[0][0]
    if count == 0:
        return
    page.section("Nodes", "What the frames of each node hold. Migrators take pages from node to node, so that the nodes "
                 "fill and empty in turn; what is in use on all of them together should stay.")
    shown = min(count, NODES_MAX)
    figure, axes = plot(shown, height=1.5, sharex=True)
    kinds = ("anonymous", "file", "page tables", "other")
    for node, ax in enumerate(axes):
        ax.set_title(f"node {node}, frames")
        for turn in turns:
            rows = np.array(samples.rows(
                "SELECT t, anon, file, pagetable, spanned - free - anon - file - pagetable, spanned FROM node JOIN sample "
                "ON sample = number WHERE turn = ? AND node = ? AND phase != 'between' ORDER BY number",
                turn["number"], node), float).reshape(-1, 6)
            if len(rows):
                rows = thin(rows)
                ax.stackplot(rows[:, 0], np.maximum(rows[:, 1:5].T, 0), colors=SERIES[:4], linewidth=0)
                ax.set_ylim(0, rows[:, 5].max())
        mark_turns(ax, samples)
    legend(axes[0], list(enumerate(kinds)))
    axes[-1].set_xlabel("seconds")
    page.figure(figure, "Node occupancy over time" + (f" (the first {shown} of {count} nodes)" if count > shown else ""))


def kernel_objects(page, samples, turns):
    """Slab caches and frames, with their trends."""
    from shmkern.html_report import BAD, INK, SERIES, plot

    page.section("Kernel objects", "Objects in use of each slab cache, and frames in use on all nodes, with their trends as "
                 "above.")
    figure, axes = plot(2, height=2.0, sharex=True)
    axes[0].set_title("slab objects in use")
    axes[1].set_title("frames in use")
    axes[1].set_xlabel("seconds")
    caches = [row[0] for row in samples.rows("SELECT DISTINCT cache FROM slab ORDER BY cache")]
    for turn in turns:
        for cache, rows in verdict.slabs(samples, turn["number"]).items():
            axes[0].plot(*thin(rows).T, **style(caches.index(cache)))
        rows = thin(verdict.frames(samples, turn["number"]))
        axes[1].plot(rows[:, 0], rows[:, 1], color=SERIES[0])
        for judgement in verdict.judge(samples, turn["number"]):
            fitted = judgement.trend
            if fitted is not None and judgement.quantity in (verdict.OBJECTS, verdict.FRAMES):
                axes[judgement.quantity is verdict.FRAMES].plot(
                    [fitted.start, fitted.end], [fitted.level, fitted.level + fitted.slope * (fitted.end - fitted.start)],
                    linestyle=":", color=BAD if judgement.grows else INK)
    for ax in axes:
        from_zero(ax)
        mark_turns(ax, samples)
    if caches:
        legend(axes[0], list(enumerate(caches)))
    page.figure(figure, "Kernel objects in use, with the fitted trends")


# ---- what was slow -------------------------------------------------------------------

def slow(page, samples):
    """Where the time went that was not spent on moving pages."""
    page.section("What was slow", "The slowest spells of the migrators, the longest audits (everybody stands still), and who "
                 "slept most often for a lock or a page.")
    rows = []
    spans = []
    for turn, scenario in samples.rows("SELECT number, scenario FROM turn"):
        times, values = counters(samples, turn, ["pgmigrate_success"])
        if len(times) > 2:
            pace = np.diff(values["pgmigrate_success"]) / np.diff(times)
            spans += [(float(rate / max(np.median(pace), 1)), float(rate), float(t), turn, scenario)
                      for rate, t in zip(pace, times)]
    for share, rate, t, turn, scenario in sorted(spans)[:SHOWN_SLOW]:
        rows.append([f"{t:,.0f}", str(turn), scenario, f"{rate:,.0f} pages a second, {100 * share:.0f} % of the turn's median"])
    for turn, t, what, seconds in samples.rows("SELECT turn, t, what, seconds FROM pause ORDER BY seconds DESC LIMIT ?",
                                               SHOWN_SLOW):
        rows.append([f"{t:,.0f}", str(turn), what, f"{seconds * 1000:,.0f} ms"])
    for turn, name, t, waits in samples.rows(
            "SELECT turn, name, max(t), max(futex_waits) / max(max(t) - min(t), 1) AS pace FROM process "
            "JOIN sample ON sample = number WHERE phase = 'running' GROUP BY turn, os_pid ORDER BY pace DESC LIMIT ?",
            SHOWN_SLOW):
        rows.append([f"{t:,.0f}", str(turn), name, f"slept {waits:,.0f} times a second"])
    page.table(["second", "turn", "what", "how slow"], rows, "Nothing was sampled.")


def words(page):
    """For who did not run it."""
    page.section("Words")
    page.list([
        "Migration: a page's contents go to a frame of another node while tasks use it; whoever touches it meanwhile waits.",
        "Retried: a pass found the page busy, another will try; failed: it was busy in all ten.",
        "Audit: everybody stands still, and every count and list of the machine is computed from the page tables and compared.",
        "Node: a part of the machine's memory, as on hardware where each processor has its own.",
        "Supervisor: the process that started all others; init: the machine's first task, which cleans up; descendant: a task "
        "that a worker forked."])
