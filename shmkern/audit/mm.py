# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of tasks and address spaces: the areas of each, their order and their tree, the anon_vmas that
they are on.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.files import ACCOUNTING
from shmkern.audit.findings import LIMIT
from shmkern.audit.lists import check_rings, list_addresses, walk_rb_tree
from shmkern.audit.machine import TASK_SIZE
from shmkern.dump import ACCESSED, NX, PRESENT, PROTNONE, RW, USER

C = layout.constants
PAGE_SIZE = C["PAGE_SIZE"]
PAGE_SHIFT = C["PAGE_SHIFT"]
VM_WRITE = C["VM_WRITE"]
VM_ACCESS = C["VM_ACCESS_FLAGS"]


# ---- tasks and address spaces -----------------------------------------------

def check_tasks(m):
    """A slot's number is its index; live tasks have different pids; a task that stands still
    outside the kernel holds nothing: no spinlock (preempt_count), no sleeping lock, no RCU
    read section, no page that it frees or moves; it does not stand at a tracepoint, and has none
    of the rights that the kernel has for a while: to the last frames (PF_MEMALLOC), to pointers of
    its own (addr_limit)."""
    m.report.each(m.tasks["cpu"] != np.arange(len(m.tasks)), "task", lambda cpu: (
        "a task's CPU number is not its slot's",
        {"task": m.pid[cpu], "expected": cpu, "found": m.tasks["cpu"][cpu]}))
    m.report.each(~m.live & (m.state != C["TASK_UNUSED"]), "task", lambda cpu: (
        f"slot {cpu}: no such state", {"task": m.pid[cpu], "found": m.state[cpu]}))
    pids, times = np.unique(m.pid[m.live], return_counts=True)
    for pid in pids[times > 1].tolist():
        m.report.add("task", "several live tasks have this pid", task=pid)
    for field in ("preempt_count", "nr_held", "rcu_nesting", "rcu_epoch", "isolating_since", "trace_stopped"):
        m.report.each(m.running & (m.tasks[field] != 0), "lock", lambda cpu, field=field: (
            f"a task stands still with {field} not zero{held_text(m, cpu)}",
            {"task": m.pid[cpu], "expected": 0, "found": m.tasks[field][cpu]}))
    kswapd = (m.tasks["flags"] & C["PF_KSWAPD"]) != 0
    # What a task is, not what it is doing.
    lasting = np.where(kswapd, C["PF_KSWAPD"] | C["PF_SWAPWRITE"], 0)
    for field, expected in (("flags", lasting), ("addr_limit", np.zeros_like(lasting))):
        m.report.each(m.running & (m.tasks[field] != expected), "task", lambda cpu, field=field, expected=expected: (
            f"a task is outside the kernel with {field} as they are inside",
            {"task": m.pid[cpu], "expected": hex(expected[cpu]), "found": hex(m.tasks[field][cpu])}))
    for field in ("nr_isolators", "reclaim_waiters", "nr_starving"):
        if m.kernel[field]:
            m.report.add("counter", f"no task is in the kernel, and {field} is not zero", expected=0, found=m.kernel[field])


def held_text(m, cpu):
    """The sleeping locks that a task holds, in words."""
    row = m.tasks[cpu]
    held = row["held_locks"][:min(int(row["nr_held"]), C["HELD_LOCKS_MAX"])]
    return f" (holds {', '.join(hex(int(lock) & ~7) for lock in held)})" if len(held) else ""


def find_address_spaces(m):
    """Every address space that a task runs is on init_mmlist, and no other is; mm_users
    counts the tasks."""
    head = m.kernel.address + layout.offsetof("Kernel", "init_mmlist")
    listed, whole = list_addresses(m, head, "MmStruct", "mmlist")
    pointer = m.tasks["mm"]
    runs = m.live & (pointer != 0)
    m.mm_address, number = list(listed), {address: i for i, address in enumerate(listed)}
    m.users_of = np.full(len(m.tasks), -1)
    for cpu in np.flatnonzero(runs).tolist():
        address = int(pointer[cpu])
        fault = m.object_fault(address, "MmStruct")
        if fault:
            m.report.add("mm", f"the task's mm {fault}", task=m.pid[cpu], address=address)
            continue
        if address not in number:
            number[address] = len(m.mm_address)
            m.mm_address.append(address)
            if whole:
                m.report.add("mm", "the task's mm is not on init_mmlist", task=m.pid[cpu],
                             address=address)
        m.users_of[cpu] = number[address]
    m.mm = m.gather(m.mm_address, "MmStruct")
    users = np.bincount(m.users_of[m.users_of >= 0], minlength=len(m.mm))
    m.report.each(users != m.mm["mm_users"], "mm", lambda i: (
        f"mm_users is not the number of tasks that run {m.mm_text(i)}",
        {**m.whose(i), "address": m.mm_address[i], "expected": users[i],
         "found": m.mm["mm_users"][i]}))
    m.report.each((users == 0) & (m.mm["mm_users"] == 0), "mm", lambda i: (
        "an address space that no task runs is on init_mmlist",
        {**m.whose(i), "address": m.mm_address[i]}))


# ---- VMAs -------------------------------------------------------------------

def find_vmas(m):
    """Follows each address space's mmap list; it ends, and leads to whole, live objects
    that are on no other list."""
    m.vma_address, owner, seen = [], [], set()
    link = layout.offsetof("VmAreaStruct", "vm_next")
    for mm, address in enumerate(m.mm["mmap"].tolist()):
        while address:
            fault = m.object_fault(address, "VmAreaStruct") or \
                ("is on a list already" if address in seen else None)
            if fault:
                m.report.add("vma", f"a VMA on the list of {m.mm_text(mm)} {fault}",
                             **m.whose(mm), address=address)
                break
            seen.add(address)
            m.vma_address.append(address)
            owner.append(mm)
            address = m.u64(address + link)
    m.vma = m.gather(m.vma_address, "VmAreaStruct")
    m.vma_mm = np.array(owner, np.int64)


def check_vmas(m):
    """VMAs are whole pages of user addresses, in ascending order without overlap; they know
    their address space, which counts them (map_count) and their pages (total_vm, and locked_vm
    of those that are locked)."""
    start, end = m.vma["vm_start"], m.vma["vm_end"]

    def vma(i, **details):
        return {**m.whose(m.vma_mm[i]), "address": start[i], **details}

    m.report.each((start % PAGE_SIZE != 0) | (end % PAGE_SIZE != 0) | (start >= end) |
                  (end > TASK_SIZE), "vma", lambda i: (
        "the bounds of a VMA are no range of user pages",
        vma(i, found=f"{start[i]:#x}-{end[i]:#x}")))
    same = m.vma_mm[1:] == m.vma_mm[:-1]
    m.report.each(np.append(False, same & (start[1:] < end[:-1])), "vma", lambda i: (
        "a VMA overlaps the one before it, or comes before it",
        vma(i, expected=f"{end[i - 1]:#x} or above", found=hex(start[i]))))
    addresses = np.array(m.mm_address, np.uint64)
    m.report.each(m.vma["vm_mm"] != addresses[m.vma_mm], "vma", lambda i: (
        "vm_mm is not the address space that has the VMA on its list",
        vma(i, expected=hex(addresses[m.vma_mm[i]]), found=hex(m.vma["vm_mm"][i]))))
    count = np.bincount(m.vma_mm, minlength=len(m.mm))
    pages = np.zeros(len(m.mm), np.uint64)
    np.add.at(pages, m.vma_mm, (end - start) >> PAGE_SHIFT)
    locked = np.zeros(len(m.mm), np.uint64)
    np.add.at(locked, m.vma_mm, np.where(m.vma["vm_flags"] & C["VM_LOCKED"], (end - start) >> PAGE_SHIFT, 0))
    for field, expected in (("map_count", count), ("total_vm", pages), ("locked_vm", locked)):
        m.report.each(m.mm[field] != expected, "vma", lambda i, field=field, expected=expected: (
            f"{field} is not what the VMAs of {m.mm_text(i)} add up to",
            {**m.whose(i), "expected": expected[i], "found": m.mm[field][i]}))


def access_prot(flags):
    """Of the protection that vm_get_page_prot has for VMAs with these flags, all but RW."""
    allowed = np.where((flags & C["VM_EXEC"]) != 0, np.uint64(0), np.uint64(NX)) | np.uint64(PRESENT | USER | ACCESSED)
    return np.where((flags & VM_ACCESS) != 0, allowed, np.uint64(PROTNONE | ACCESSED))


def check_vma_flags(m):
    """A VMA allows no more than it may; what a fault does there is what its file is for; and vm_page_prot
    follows from vm_flags, without RW where the first write has to fault."""
    flags, ops = m.vma["vm_flags"], m.vma["vm_ops"]

    def each(wrong, message, expected, found):
        m.report.each(wrong, "vma", lambda i: (message, {
            **m.whose(m.vma_mm[i]), "address": m.vma["vm_start"][i], "expected": hex(expected[i]), "found": hex(found[i])}))

    may = flags >> np.uint64(4) & VM_ACCESS
    each((flags & VM_ACCESS & ~may) != 0, "a VMA allows what it may not", may, flags & VM_ACCESS)

    def has_ops(*names):
        known = [address for address, row in zip(m.inode_address, m.inode) if row["i_data"]["a_ops"] in names]
        return np.isin(m.vma_mapping, np.array(known, np.uint64))

    kind = np.where(m.vma["vm_file"] != 0, np.where(has_ops(C["AOPS_SHMEM"]), C["VM_OPS_SHMEM"], C["VM_OPS_FILE"]),
                    np.where((flags & C["VM_PFNMAP"]) != 0, C["VM_OPS_DEVICE"], C["VM_OPS_ANON"])).astype(np.uint64)
    each(ops != kind, "vm_ops are not those of what the VMA maps", kind, ops)
    shared = (flags & (VM_WRITE | C["VM_SHARED"])) == VM_WRITE | C["VM_SHARED"]
    prot = access_prot(flags) | np.where(shared & ~has_ops(*ACCOUNTING), np.uint64(RW), np.uint64(0))
    each(m.vma["vm_page_prot"] != prot, "vm_page_prot does not follow from vm_flags", prot, m.vma["vm_page_prot"])


def check_rb_trees(m):
    """Each mm_rb is a red-black tree of the VMAs on the list, in the list's order, and parent
    pointers lead back: find_vma and the list must never disagree."""
    offset = layout.offsetof("VmAreaStruct", "vm_rb")
    node_address = [address + offset for address in m.vma_address]
    ends = np.searchsorted(m.vma_mm, np.arange(len(m.mm) + 1)).tolist()
    for mm, root in enumerate(m.mm["mm_rb"]["rb_node"].tolist()):
        first, end = ends[mm], ends[mm + 1]
        number = {address: i for i, address in enumerate(node_address[first:end])}
        nodes = m.vma["vm_rb"][first:end].tolist()
        order, faults = walk_rb_tree(nodes, node_address[first:end], number, root)
        if not faults and order != list(range(end - first)):
            faults = [(root, "its nodes are not the VMAs of the list in their order")]
        for address, fault in faults[:LIMIT]:
            m.report.add("rbtree", f"mm_rb of {m.mm_text(mm)}: {fault}", **m.whose(mm),
                         address=address)


def check_anon_vmas(m):
    """A VMA with an anon_vma is on that anon_vma's list, once, and nobody else is: rmap finds
    every VMA that may map a page, and never a dead one."""
    pointer = m.vma["anon_vma"]
    has = np.flatnonzero(pointer)
    good = {}
    for address in np.unique(pointer[has]).tolist():
        fault = m.object_fault(address, "AnonVma") or \
            ("waits for RCU to free it" if address in m.rcu_pending["AnonVma"] else None)
        good[address] = not fault
        if fault:
            i = has[pointer[has] == address][0]
            m.report.add("anon_vma", f"anon_vma of a VMA {fault}", **m.whose(m.vma_mm[i]),
                         address=m.vma["vm_start"][i], found=hex(address))
    m.anon_vmas = [address for address in good if good[address]]
    members = [i for i in has.tolist() if good[int(pointer[i])]]
    head_at = np.array(m.anon_vmas, np.uint64) + layout.offsetof("AnonVma", "head")
    offset = layout.offsetof("VmAreaStruct", "anon_vma_node")
    node_at = np.append(head_at, np.array(m.vma_address, np.uint64)[members] + offset)
    heads = m.gather(m.anon_vmas, "AnonVma")["head"]
    nodes = np.append(heads, m.vma["anon_vma_node"][members])
    number = {address: i for i, address in enumerate(m.anon_vmas)}
    owner = np.append(np.arange(len(heads)), [number[int(pointer[i])] for i in members]).astype(int)
    by_address = np.argsort(node_at)

    def ids(pointers):
        at = np.minimum(np.searchsorted(node_at[by_address], pointers), len(node_at) - 1)
        return np.where(node_at[by_address[at]] == pointers, by_address[at], -1)

    if not len(node_at):
        return
    next_, prev = ids(nodes["next"]), ids(nodes["prev"])
    broken, lost = check_rings(next_, prev, owner)

    def describe(i):
        i = int(i)
        details = {"address": node_at[i], "found": hex(nodes["next"][i])}
        if i >= len(heads):
            vma = members[i - len(heads)]
            details |= {**m.whose(m.vma_mm[vma]), "address": m.vma["vm_start"][vma]}
        what = "a VMA" if i >= len(heads) else "the head"
        fault = "not reached from the head" if lost[i] else "not followed by one that leads back"
        return f"the list of anon_vma {m.anon_vmas[owner[i]]:#x}: {what} is {fault}", details

    m.report.each(broken | lost, "anon_vma", describe)
