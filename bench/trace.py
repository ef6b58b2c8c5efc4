# SPDX-License-Identifier: GPL-2.0-only
"""What a tracepoint costs: switched off, and switched on; and what a page move with all of them.

One task meets the same tracepoint again and again, in a loop of nothing else; most of what an
event costs is its look at the clock.  While it is on, nobody reads: the ring goes round and
round, which is what a writer does whose reader is slow.
"""
import sys
import time

import common

import shmkern
from shmkern import calibrate, layout, provenance, tracing

LIMIT_NS = 100
PAGES = 1000
# Any: the loop writes it by itself.
EVENT = layout.constants["TRACE_PAGE_REF_UNFREEZE"]


def program(task, events, rounds):
    """ns an event, one of each round."""
    calibrate.event_loop(EVENT, events)
    return [calibrate.event_loop(EVENT, events) / events for _round in range(rounds)]


def mover(task, rounds):
    """ns a page moved from node to node and back by the task that owns it, one of each round."""
    va = task.mmap(PAGES * 4096)
    calibrate.store64_loop(va, 4096, PAGES)
    task.migrate_prep()
    frames, found = layout.kernel().frames_per_node, []
    for turn in range(rounds + 2):
        source = turn % 2
        pfn, end, began = source * frames, (source + 1) * frames, time.perf_counter_ns()
        while pfn < end:
            pfn, _stayed = task.migrate_frames(pfn, end, 1 - source)
        found.append((time.perf_counter_ns() - began) / PAGES)
        task.migrate_prep()
    return found[2:]


def row(name, values):
    return {"what": name, "ns": common.median(values), "lowest": min(values), "highest": max(values)}


def main():
    parser = common.parser(__doc__.splitlines()[0], "shmkern bench trace --events 100000")
    parser.add_argument("--events", type=common.positive, default=1_000_000, help="events a round (1000000)")
    parser.add_argument("--rounds", type=common.positive, default=10, help="rounds (10)")
    options = parser.parse_args()
    with shmkern.Machine(nodes=2, frames_per_node=4 * PAGES, max_tasks=8) as machine:
        def measure(how):
            common.progress(f"tracepoints that are {how}")
            return [row(f"a tracepoint, {how}", machine.spawn(program, options.events, options.rounds).result()),
                    row(f"a page move, {how}", machine.spawn(mover, options.rounds).result())]
        rows = measure("off")
        with tracing.Tracing():
            rows += measure("on")
        machine.audit().raise_if_broken()
    columns = {"what": "", "ns": "ns", "lowest": "lowest", "highest": "highest"}
    common.show("what tracing costs", columns, rows, [f"An event must take less than {LIMIT_NS} ns."])
    common.write_html(options.html, "what tracing costs",
                      f"An event takes {rows[2]['ns']:.0f} ns, and a tracepoint that is off {rows[0]['ns']:.1f}.", columns,
                      rows, [(common.bars([row["what"] for row in rows], {"ns": [row["ns"] for row in rows]}, "ns"),
                              "The median of all rounds")])
    common.write_json(options.json, {"bench": "trace", "host": provenance.host(), "rows": rows})
    sys.exit(1 if rows[2]["ns"] >= LIMIT_NS else 0)


if __name__ == "__main__":
    common.run(main)
