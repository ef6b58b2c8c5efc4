# SPDX-License-Identifier: GPL-2.0-only
"""What a dead machine says: the `kernel BUG` and hung-task reports.

Reads a block as its last process left it.  Names kernel objects by what they are part
of ("zone 1 lru_lock", "page 4711"), since an address says nothing to anybody.
"""
import linecache
import time
from pathlib import Path

from shmkern import boot, direct_map, layout, vmstat
from shmkern.dump import page_flags_text

C = layout.constants
KINDS = {C["PANIC_BUG"]: "kernel BUG", C["PANIC_HUNG_TASK"]: "hung task",
         C["PANIC_HOST_MEMORY"]: "host memory", C["PANIC_LOST_TASK"]: "lost task"}
WAITS = {C["WAIT_SPINLOCK"]: "spinlock", C["WAIT_PAGE_LOCK"]: "page lock",
         C["WAIT_PAGE_WRITEBACK"]: "writeback", C["WAIT_RWSEM_READ"]: "rwsem (read)",
         C["WAIT_RWSEM_WRITE"]: "rwsem (write)", C["WAIT_CONDVAR"]: "condition variable",
         C["WAIT_TLB_ACK"]: "TLB shootdown acknowledgement", C["WAIT_RCU"]: "RCU grace period",
         C["WAIT_FREEZER"]: "freezer", C["WAIT_BUFFER"]: "buffer lock",
         C["WAIT_SWAPOFF"]: "free slots of"}
HOW = {C["HELD_PAGE"]: "page lock", C["HELD_READ"]: "rwsem (read)", C["HELD_WRITE"]: "rwsem (write)"}
# What the objects of a slab cache are, where the cache has not the struct's name.
SLAB_STRUCTS = {"filp": "File", "files": "FilesStruct", "shared_policy_node": "SpNode"}
SOURCE = Path(__file__).parent
# How long somebody may take to write the record of a panic, who has only to be given a CPU.
RECORD_SECONDS = 5.0


def _member(struct, offset):
    """The name of the field at `offset` of a struct, with the index if it is an array's."""
    dtype = layout.dtypes[struct]
    for name in dtype.names:
        field, start = dtype.fields[name][:2]
        if start <= offset < start + field.itemsize:
            if field.subdtype:
                return f"{name}[{(offset - start) // field.subdtype[0].itemsize}]"
            return name
    return f"+{offset}"


def _in_array(name, struct, address, base, count):
    """`address` as a field of an element of an array, or None."""
    size = layout.sizeof(struct)
    if not base <= address < base + count * size:
        return None
    index, offset = divmod(address - base, size)
    return f"{name} {index}" + (f" {_member(struct, offset)}" if offset else "")


def describe(address):
    """A kernel object by name."""
    k = layout.kernel()
    for name, struct, base, count in (
            ("page", "Page", k.mem_map, k.max_pfn), ("zone", "Zone", k.zones, k.nr_nodes),
            ("CPU", "Task", k.tasks, k.max_tasks), ("kernel", "Kernel", k.address, 1)):
        found = _in_array(name, struct, address, base, count)
        if found:
            return found
    if k.slab_base <= address < k.slab_end:
        for task in running():
            mm = int(task["mm"])
            if mm and mm <= address < mm + layout.sizeof("MmStruct"):
                return f"mm {layout.struct('MmStruct', mm).id} {_member('MmStruct', address - mm)}"
        return _slab_object(k, address) or f"slab object at {address:#x}"
    return hex(address)


def _slab_object(k, address):
    """An object of a slab cache, or a field of one; None when its slab is nobody's."""
    slab, offset = divmod(address - k.slab_base, C["PAGE_SIZE"])
    cache = layout.struct("Slab", k.slabs + slab * layout.sizeof("Slab")).cache
    index, rest = divmod(cache - k.address - layout.dtypes["Kernel"].fields["caches"][1], layout.sizeof("KmemCache"))
    if rest or not 0 <= index < k.nr_caches:
        return None
    name, size = k.caches[index]["name"].decode(errors="replace"), int(k.caches[index]["object_size"])
    offset %= size
    struct = SLAB_STRUCTS.get(name, name.title().replace("_", ""))
    return f"{name} at {address - offset:#x}" + (
        f" {_member(struct, offset)}" if offset and struct in layout.dtypes else "")


def living():
    """Copies of the slots that are taken: of tasks that run or are about to."""
    tasks = vmstat.tasks()
    return tasks[tasks["state"] != C["TASK_UNUSED"]]


def running():
    """Copies of the slots of tasks that run."""
    tasks = vmstat.tasks()
    return tasks[tasks["state"] == C["TASK_RUNNING"]]


def name_of(task):
    """A task as the reports name it."""
    return f"task {task['pid']} ({task['comm'].decode(errors='replace')}, CPU {task['cpu']}, host pid {task['os_pid']})"


def holders(address):
    """Who holds the lock at `address`, as far as the lock or the tasks say."""
    found = []
    for task in running():
        for entry in task["held_locks"][:min(int(task["nr_held"]), C["HELD_LOCKS_MAX"])].tolist():
            if entry & ~3 == address:
                found.append(f"{name_of(task)} as {HOW.get(entry & 3, '?')}")
    return found


def spinlock_holder(address):
    """Who holds the spinlock at `address`, by its word; None when it is free."""
    owner = (int(layout.view("u32", address)[()]) & 0x7fffffff) - 1
    return name_of(vmstat.tasks()[owner]) if 0 <= owner < layout.kernel().max_tasks else None


def slot_holders(waiter):
    """Who may have what a swapoff waits for: tasks with swap entries in their page tables, and tasks that
    are in the kernel, with a slot in hand."""
    found = []
    for task in running():
        entries = int(layout.struct("MmStruct", int(task["mm"])).swap_ents) if task["mm"] else 0
        if task["pid"] != waiter["pid"] and (entries or task["in_kernel"]):
            found.append(f"{name_of(task)} " + (f"in {entries} swap entries" if entries else "in the kernel"))
    return found


def waiters():
    """A line for each task that waits: for what, how long, and who has it."""
    lines = []
    now = time.monotonic_ns()
    for task in running():
        kind, channel = int(task["wait_kind"]), int(task["wait_channel"])
        if kind == C["WAIT_NONE"]:
            continue
        seconds = (now - int(task["wait_since"])) / 1e9
        line = f"{name_of(task)} waits {seconds:.1f} s for {WAITS.get(kind, kind)}: {describe(channel)}"
        if kind == C["WAIT_SPINLOCK"]:
            line += f", held by {spinlock_holder(channel) or 'nobody now'}"
        else:
            found = slot_holders(task) if kind == C["WAIT_SWAPOFF"] else holders(channel)
            line += "".join(f", held by {holder}" for holder in found)
        lines.append(line)
    return lines


def in_kernel():
    """A line for each task that is in the kernel, with the state of its process, as ps shows it."""
    return [f"{name_of(task)} is in the kernel; the host says {direct_map.process_stat(int(task['os_pid']))[0] or 'gone'}"
            for task in living() if task["in_kernel"]]


def held():
    """A line for each task that holds a lock it may sleep with."""
    lines = []
    for task in running():
        entries = task["held_locks"][:min(int(task["nr_held"]), C["HELD_LOCKS_MAX"])].tolist()
        if entries or task["preempt_count"]:
            what = [f"{HOW.get(entry & 3, '?')} {describe(entry & ~3)}" for entry in entries]
            if task["preempt_count"]:
                what.append(f"{task['preempt_count']} spinlocks")
            lines.append(f"{name_of(task)} holds {', '.join(what)}")
    return lines


def page_text(page):
    """A struct page (a numpy record of it) as dump_page prints it."""
    return (f"flags {page_flags_text(int(page['flags']))} count {page['_count']} mapcount "
            f"{int(page['_mapcount']) + 1} mapping {int(page['mapping']):#x} index {int(page['index']):#x}")


def panic():
    """(kind, report) of the machine mapped here when it has stopped, None while it runs."""
    header = layout.header()
    deadline = time.monotonic() + RECORD_SECONDS
    while boot.panic_state() == 1:
        # Who writes the record may have lost his CPU, or been killed.
        if time.monotonic() >= deadline:
            return "kernel BUG", "kernel BUG: died while it wrote its report"
        time.sleep(0.01)
    if boot.panic_state() == 0:
        return None
    kind = KINDS.get(header.panic_kind, "panic")
    file, line = header.panic_file.decode(errors="replace"), header.panic_line
    text = header.panic_text.decode(errors="replace")
    lines = [f"{kind}: {text}" if text else kind]
    if file:
        source = linecache.getline(str(SOURCE / Path(file).name), line).strip()
        lines.append(f"  at {file}:{line}" + (f": {source}" if source else ""))
    tasks = running()
    who = [name_of(task) for task in tasks[tasks["pid"] == header.panic_pid]]
    lines.append(f"  in {who[0] if who else f'host process {header.panic_os_pid}'}")
    address = header.panic_object
    if address:
        lines.append(f"  about {describe(address)} ({address:#x})")
        k = layout.kernel()
        size = layout.sizeof("Page")
        if k.mem_map <= address < k.mem_map + k.max_pfn * size and (address - k.mem_map) % size == 0:
            lines.append(f"  {page_text(header._array['panic_dump'].view(layout.dtypes['Page'])[0])}")
    for title, entries in (("waiting", waiters()), ("holding", held())):
        if entries:
            lines.append(f"  {title}:")
            lines += [f"    {entry}" for entry in entries]
    return kind, "\n".join(lines)
