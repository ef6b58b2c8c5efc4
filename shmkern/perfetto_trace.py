# SPDX-License-Identifier: GPL-2.0-only
"""A trace as Perfetto's protobuf, for ui.perfetto.dev and its trace processor.

A track a task: slices for faults, waits and migrations with their stages, everything else as
instants; an arrow from each wake-up to whoever it woke; a counter track for each node's free
frames and lists.  Slices of one task nest, since they are calls of one another; where events
were lost all that is open ends.
"""
from bisect import bisect_right
from collections import defaultdict

import numpy as np
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackDescriptor, TrackEvent
from perfetto.trace_builder.proto_builder import TraceProtoBuilder

from shmkern import layout, tracing

C = layout.constants
E = {event.name: number for number, event in tracing.EVENTS.items()}
COUNTERS = {"NR_FREE_PAGES": "free", "NR_ACTIVE_ANON": "active_anon", "NR_INACTIVE_ANON": "inactive_anon",
            "NR_ACTIVE_FILE": "active_file", "NR_INACTIVE_FILE": "inactive_file", "NR_UNEVICTABLE": "unevictable"}
PROCESS_UUID = 1
COUNTER_UUID, TASK_UUID = 1 << 20, 1 << 32
SEQUENCE = 1
# Packets that are put into bytes together.
CHUNK = 5000
BEGINS = {E["contention_begin"], E["wait_begin"]}
ENDS = {E["contention_end"], E["wait_end"]}


def match_wakeups(events):
    """Which wake-up ended which wait: {index of a sched_waking: [flow, ...]} and {index of the
    wait's end: (flow, pid of the waker)}.  A wait is ended by the last wake-up of what it
    waited for, by somebody else, while it lasted; some end without one."""
    wakings, began = defaultdict(list), {}
    starts, ends = defaultdict(list), {}
    numbers, pids = events["event"].tolist(), events["pid"].tolist()
    channels = events["args"][:, 0].tolist()
    for index, number in enumerate(numbers):
        channel, pid = channels[index], pids[index]
        if number == E["sched_waking"]:
            wakings[channel].append(index)
        elif number in BEGINS:
            began[pid] = index
        elif number in ENDS:
            first = began.pop(pid, index)
            candidates = wakings[channel]
            for waking in reversed(candidates[bisect_right(candidates, first):]):
                if pids[waking] != pid:
                    flow = len(ends) + 1
                    starts[waking].append(flow)
                    ends[index] = flow, pids[waking]
                    break
    return starts, ends


class Writer:
    """Writes the events of one machine to an open file."""

    def __init__(self, file, machine, names, channels):
        self._file, self._machine = file, machine
        self._names, self._channels = names, channels
        self._builder, self._packets = TraceProtoBuilder(), 0
        # What is open on each task's track, outermost first.
        self._open = defaultdict(list)
        self._known = set()

    # ---- packets ----

    def _packet(self):
        if self._packets == CHUNK:
            self.flush()
        self._packets += 1
        packet = self._builder.add_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        return packet

    def flush(self):
        """Writes what has been gathered."""
        self._file.write(self._builder.serialize())
        self._builder, self._packets = TraceProtoBuilder(), 0

    def _event(self, time, kind, track, name=None, **annotations):
        packet = self._packet()
        packet.timestamp = time
        event = packet.track_event
        event.type, event.track_uuid = kind, track
        if name is not None:
            event.name = name
        for key, value in annotations.items():
            note = event.debug_annotations.add()
            note.name = key
            if isinstance(value, str):
                note.string_value = value
            else:
                note.int_value = value
        return event

    # ---- tracks ----

    def begin(self, nodes):
        """The machine's track, and its nodes' counters."""
        process = self._packet().track_descriptor
        process.uuid = PROCESS_UUID
        process.process.pid = int(layout.header().supervisor_pid)
        process.process.process_name = self._machine
        for node in range(nodes):
            for place, name in enumerate(COUNTERS.values()):
                track = self._packet().track_descriptor
                track.uuid = self._counter_track(node, place)
                track.parent_uuid = PROCESS_UUID
                track.name = f"node {node} {name}"
                track.counter.unit = TrackDescriptor().counter.UNIT_COUNT

    @staticmethod
    def _counter_track(node, place):
        return COUNTER_UUID + node * len(COUNTERS) + place

    def _track(self, pid):
        """The track of a task, which it gets when it is first seen."""
        uuid = TASK_UUID + pid
        if pid not in self._known:
            self._known.add(pid)
            track = self._packet().track_descriptor
            track.uuid, track.parent_uuid = uuid, PROCESS_UUID
            track.thread.pid = int(layout.header().supervisor_pid)
            track.thread.tid = pid
            track.thread.thread_name = f"{self._names.get(pid, 'task')} {pid}"
        return uuid

    def counters(self, time, zones):
        """The nodes' counters at one moment: a row of vm_stat for each."""
        for node, levels in enumerate(zones):
            for place, item in enumerate(COUNTERS):
                event = self._event(time, TrackEvent.TYPE_COUNTER, self._counter_track(node, place))
                event.counter_value = int(levels[C[item]])

    # ---- slices ----

    def _begin(self, time, pid, kind, name, **annotations):
        self._open[pid].append(kind)
        return self._event(time, TrackEvent.TYPE_SLICE_BEGIN, self._track(pid), name, **annotations)

    def _end(self, time, pid, kind):
        """Ends the innermost slice of a kind, with what is still open inside; none if there is
        none, because its beginning is not in the trace."""
        stack = self._open[pid]
        while kind in stack:
            self._event(time, TrackEvent.TYPE_SLICE_END, self._track(pid))
            if stack.pop() == kind:
                break

    def _end_all(self, time, pid):
        while self._open[pid]:
            self._end(time, pid, self._open[pid][-1])

    def _instant(self, time, pid, name, **annotations):
        return self._event(time, TrackEvent.TYPE_INSTANT, self._track(pid), name, **annotations)

    def _stage(self, time, pid, args):
        """A stage of a page's migration begins, and the one before it ends."""
        stage = tracing.STAGES[int(args[0])]
        self._end(time, pid, "stage")
        if stage == "done":
            self._end(time, pid, "page")
            return
        if stage == "new_page" or "page" not in self._open[pid]:
            self._end(time, pid, "page")
            self._begin(time, pid, "page", "migrate page", pfn=int(args[1]))
        self._begin(time, pid, "stage", stage, pfn=int(args[1]))

    def event(self, event, wakes=(), woken=None):
        """One event; `wakes` are the flows that start here, `woken` is (flow, pid of the waker)
        when one ends here."""
        time, number, pid, args = int(event["time"]), int(event["event"]), int(event["pid"]), event["args"]
        if number == E["page_fault_user"]:
            self._end(time, pid, "fault")
            self._begin(time, pid, "fault", "page fault", address=hex(args[0]),
                        write=int(args[1]) >> 1 & 1)
        elif number == E["page_fault_user_exit"]:
            self._end(time, pid, "fault")
        elif number in BEGINS:
            what = tracing.WAIT_NAMES[int(args[1])] if number == E["wait_begin"] else \
                f"{tracing.CONTENTION_FLAGS[int(args[1])].lower()} lock"
            self._begin(time, pid, "wait", f"wait: {what}", channel=self._channels.get(int(args[0]), hex(args[0])))
        elif number in ENDS:
            self._end(time, pid, "wait")
            if woken:
                flow, waker = woken
                self._instant(time, pid, "woken", by=waker).terminating_flow_ids.append(flow)
        elif number == E["sched_waking"]:
            instant = self._instant(time, pid, "wake up", channel=self._channels.get(int(args[0]), hex(args[0])))
            instant.flow_ids.extend(wakes)
        elif number == E["mm_migrate_pages_start"]:
            self._end(time, pid, "pages")
            self._begin(time, pid, "pages", "migrate_pages")
        elif number == E["mm_migrate_pages"]:
            self._end(time, pid, "pages")
        elif number == E["migrate_stage"]:
            self._stage(time, pid, args)
        else:
            self._instant(time, pid, tracing.EVENTS[number].name, args=tracing.EVENTS[number].text(args))

    def lost(self, time, pid, count):
        """Events of a task are missing here."""
        self._end_all(time, pid)
        self._instant(time, pid, "LOST EVENTS", count=count)

    def end(self, time):
        """The end of the trace: what is open ends."""
        for pid in list(self._open):
            self._end_all(time, pid)
        self.flush()


def write(path, record, progress=iter):
    """Writes a tracing record (see cli_trace.Record) to a file.  Raises OSError."""
    events = record.events
    starts, ends = match_wakeups(events)
    # Who ran on a CPU when events of it were lost: who was seen there last, or will be first.
    seen = events[events["event"] != tracing.LOST]
    cpus, firsts = np.unique(seen["cpu"], return_index=True)
    on_cpu = dict(zip(cpus.tolist(), seen["pid"][firsts].tolist()))
    with open(path, "wb") as file:
        writer = Writer(file, record.machine, record.names, record.channels)
        writer.begin(record.nodes)
        for time, zones in record.counters:
            writer.counters(time, zones)
        for index, event in progress(list(enumerate(events))):
            if event["event"] == tracing.LOST:
                writer.lost(int(event["time"]), on_cpu.get(int(event["cpu"]), 0), int(event["args"][0]))
                continue
            on_cpu[int(event["cpu"])] = int(event["pid"])
            writer.event(event, starts.get(index, ()), ends.get(index))
        writer.end(int(events["time"][-1]) if len(events) else 0)
