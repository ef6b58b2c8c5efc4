# SPDX-License-Identifier: GPL-2.0-only
"""What a tracepoint costs: switched off, and switched on.

One task meets the same tracepoint again and again, in a loop of nothing else; most of what an
event costs is its look at the clock.  While it is on, nobody reads: the ring goes round and
round, which is what a writer does whose reader is slow.
"""
import sys

import common

import shmkern
from shmkern import calibrate, layout, tracing

LIMIT_NS = 100
# Any: the loop writes it by itself.
EVENT = layout.constants["TRACE_PAGE_REF_UNFREEZE"]


def program(task, events, rounds):
    """ns an event, one of each round."""
    calibrate.event_loop(EVENT, events)
    return [calibrate.event_loop(EVENT, events) / events for _round in range(rounds)]


def row(name, values):
    return {"tracepoint": name, "ns": common.median(values), "lowest": min(values), "highest": max(values)}


def main():
    parser = common.parser(__doc__.splitlines()[0], "python bench/trace.py --events 100000")
    parser.add_argument("--events", type=int, default=1_000_000, help="events a round (1000000)")
    parser.add_argument("--rounds", type=int, default=10, help="rounds (10)")
    options = parser.parse_args()
    with shmkern.Machine(nodes=1, frames_per_node=1024, max_tasks=4) as machine:
        rows = [row("off", machine.spawn(program, options.events, options.rounds).result())]
        with tracing.Tracing():
            rows.append(row("on", machine.spawn(program, options.events, options.rounds).result()))
        machine.audit().raise_if_broken()
    common.show("what a tracepoint costs", {"tracepoint": "", "ns": "ns", "lowest": "lowest", "highest": "highest"},
                rows, [f"An event must take less than {LIMIT_NS} ns."])
    common.write_json(options.json, {"bench": "trace", "host": common.host(), "rows": rows})
    sys.exit(1 if rows[1]["ns"] >= LIMIT_NS else 0)


if __name__ == "__main__":
    main()
