# SPDX-License-Identifier: GPL-2.0-only
"""Tracepoints that are on: each CPU writes its events into a ring of its own
(kernel/trace/ring_buffer.c).

The rings lie behind the block, in addresses that every process has mapped and that have
memory from the first time somebody traces.  There is no lock: a ring is written by the
process that runs its CPU, and by nobody else.  The newest events overwrite the oldest.  A
reader copies what has been published and then looks how far the writer has come meanwhile:
what it may have overwritten is thrown away and counted as lost (see tracing.Reader).  The
writer never waits for a reader, and cannot tell whether there is one.

A task can also be told to stop at a tracepoint, and waits there with whatever it holds.
That is how `shmkern show` looks at a migration between any two of its steps.
"""
from cython import address, cast, declare, pointer


def trace_write(event, arg0, arg1, arg2, arg3, arg4, arg5):
    """Writes one event of the current task into its CPU's ring, and stops there if asked to.

    May be called anywhere in the kernel: takes nothing and waits for nobody, unless it is
    told to stop.
    """
    me = current()
    k = kernel()
    # Somebody has just switched the event on: with what the rings are like, see rings_are_ready.
    smp_rmb()
    head = me.trace_head
    entry = address(cast(pointer(TraceEvent), k.trace_rings)[
        me.cpu * k.trace_ring_events + (head & (k.trace_ring_events - 1))])
    # Who sees any of these words also sees that events up to `head` were published, and so
    # that the one that was here before is gone.
    smp_wmb()
    WRITE_ONCE64(address(entry.time), ktime_get_ns())
    WRITE_ONCE64(address(entry.what), event | cast(u64, me.pid) << 32)
    WRITE_ONCE64(address(entry.args[0]), arg0)
    WRITE_ONCE64(address(entry.args[1]), arg1)
    WRITE_ONCE64(address(entry.args[2]), arg2)
    WRITE_ONCE64(address(entry.args[3]), arg3)
    WRITE_ONCE64(address(entry.args[4]), arg4)
    WRITE_ONCE64(address(entry.args[5]), arg5)
    smp_store_release64(address(me.trace_head), head + 1)
    if unlikely((READ_ONCE64(address(me.trace_breaks)) & cast(u64, 1) << event) != 0):
        trace_stop()


def trace_stop():
    """Waits, wherever it is, until whoever set trace_breaks lets it go on, or has none any more, or tracing has
    ended, and with it all breaks."""
    me = current()
    # Who ends tracing sees that we stand here, or we see that there are no breaks.  (Not whether any event is on:
    # of the next tracer's we would know nothing, nor he of us.)
    smp_store_mb32(address(me.trace_stopped), 1)
    while smp_load_acquire32(address(me.trace_stopped)) != 0 and READ_ONCE64(address(me.trace_breaks)) != 0:
        futex_wait(address(me.trace_stopped), 1, cast(u64, 1000000000))
        if kernel_panicked():
            BUG(b"the machine has stopped while a task stood at a tracepoint")
    smp_store_release32(address(me.trace_stopped), 0)


def trace_wait(begin, kind, channel):
    """A wait begins or ends: contention_begin or contention_end when it is for a spinlock or
    an rwsem, as in Linux, else wait_begin or wait_end."""
    flags = cast(u64, 0)
    if kind == WAIT_SPINLOCK:
        flags = LCB_F_SPIN
    elif kind == WAIT_RWSEM_READ:
        flags = LCB_F_READ
    elif kind == WAIT_RWSEM_WRITE:
        flags = LCB_F_WRITE
    if flags != 0:
        event = TRACE_CONTENTION_BEGIN if begin else TRACE_CONTENTION_END
        argument = flags if begin else cast(u64, 0)
    else:
        event = TRACE_WAIT_BEGIN if begin else TRACE_WAIT_END
        argument = kind
    if trace_enabled(event):
        trace_write(event, cast(u64, channel), argument, 0, 0, 0, 0)


def trace_page_ref(event, page, value, ret):
    """A page's references are frozen or given back: with what the page is now."""
    trace_write(event, trace_pfn(page), page.flags, cast(u64, page._count), cast(u64, page._mapcount + 1),
                value, ret)


def trace_task(event, task):
    """A task has begun or is about to end: its pid and its name, which outlive its slot here."""
    words = cast(pointer(u64), address(task.comm))
    trace_write(event, cast(u64, task.pid), words[0], words[1], words[2], words[3], task.cpu)


def read_ring(cpu, position, target):
    """Copies what a CPU has published from its event number `position` on, or a whole ring
    where that is less, to the address `target`.

    Returns (begin, first, end): events `begin` to `end` were copied, and those from `first`
    on are whole.  Only looks, so any process that has the block mapped may call it.
    """
    k = kernel()
    task = address(k.tasks[cast(u64, cpu)])
    size = k.trace_ring_events
    ring = cast(pointer(TraceEvent), k.trace_rings) + task.cpu * size
    to = cast(pointer(u64), cast(u64, target))
    begin = declare(u64, position)
    end = smp_load_acquire64(address(task.trace_head))
    if begin + size < end:
        begin = end - size
    for number in range(begin, end):
        source = cast(pointer(u64), address(ring[number & (size - 1)]))
        for word in range(8):
            to[word] = READ_ONCE64(source + word)
        to += 8
    # After the copy: the event that is being written takes the place of the one a ring older.
    smp_rmb()
    oldest = READ_ONCE64(address(task.trace_head)) + 1
    first = begin
    if begin + size < oldest:
        first = min(oldest - size, end)
    return begin, first, end


def rings_are_ready():
    """Who finds an event that is switched on after this finds how large the rings are, which is written the first
    time; with 0 for that its events would go to another CPU's.  The other half is in trace_write."""
    smp_wmb()


def end_breaks():
    """No task stops at a tracepoint any more, and who stands at one goes on.  For who ends tracing, and may be no
    task himself."""
    k = kernel()
    for cpu in range(k.max_tasks):
        WRITE_ONCE64(address(k.tasks[cpu].trace_breaks), 0)
    # The other half is in trace_stop.
    smp_mb()
    for cpu in range(k.max_tasks):
        if READ_ONCE32(address(k.tasks[cpu].trace_stopped)) != 0:
            go_on(cpu)


def go_on(cpu):
    """Lets the task that stands at a tracepoint on `cpu` go on.  For its controller, which
    may be no task itself."""
    task = address(kernel().tasks[cast(u64, cpu)])
    smp_store_release32(address(task.trace_stopped), 0)
    futex_wake(address(task.trace_stopped), 1)
