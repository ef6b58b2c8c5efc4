# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of locks: nobody has one, for nobody is in the kernel.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.memcg import group_text
from shmkern.audit.slab import cache_name

C = layout.constants


def check_locks(m):
    """Nobody holds a lock in a still machine, or waits for one: every Spinlock and RwSem, wherever a struct
    has one, and every page table's split lock is free."""
    anon_vmas = m.gather(m.anon_vmas, "AnonVma")
    kernel = layout.view("Kernel", m.kernel.address, 1)
    check_lock_fields(m, kernel, lambda i: ("kernel", {}))
    check_lock_fields(m, m.zones, lambda i: (f"zone {i}", {}))
    check_lock_fields(m, m.kernel.caches[:m.kernel.nr_caches], lambda i: (cache_name(m, i), {}))
    check_lock_fields(m, m.tasks, lambda i: (f"CPU {i}", {}))
    check_lock_fields(m, m.mm, lambda i: (m.mm_text(i), {
        "mm": m.mm["id"][i], "address": m.mm_address[i]}))
    check_lock_fields(m, anon_vmas, lambda i: (
        f"anon_vma {m.anon_vmas[i]:#x}", {"address": m.anon_vmas[i]}))
    check_lock_fields(m, m.mem_cgroup, lambda i: (
        group_text(m, i), {"address": m.mem_cgroup_address[i]}))
    check_lock_fields(m, m.page_cgroup, lambda pfn: ("page_cgroup", {"page": pfn}))
    check_lock_fields(m, m.inode, lambda i: (f"inode {m.inode['i_id'][i]}", {"address": m.inode_address[i]}))
    check_lock_fields(m, m.gather(list(m.files), "FilesStruct"), lambda i: ("a descriptor table", {}))
    table = np.flatnonzero(m.table)
    words = m.ptl[table]
    m.report.each(words != 0, "lock", lambda i: lock_finding(
        m, f"ptl of a page table of {m.mm_text(m.table_mm[table[i]])}", int(words[i]),
        {"page": table[i], "mm": m.mm["id"][m.table_mm[table[i]]]}))


def check_lock_fields(m, rows, describe, path=""):
    """The locks in an array of structs, and in structs that these have as members; describe(i) gives the
    owner's name and details."""
    for field in rows.dtype.names:
        if rows.dtype[field] not in (layout.dtypes["Spinlock"], layout.dtypes["RwSem"]):
            if rows.dtype[field].names:
                check_lock_fields(m, rows[field], describe, f"{path}{field}.")
            continue
        words = rows[field]["word"]
        semaphore = rows.dtype[field] == layout.dtypes["RwSem"]
        # The rest of a semaphore that nobody holds; all but its sequence.
        rest = rows[field]["owner"] | rows[field]["writers_waiting"] if semaphore else np.zeros_like(words)

        def finding(i, field=field, words=words, rest=rest, semaphore=semaphore):
            name, details = describe(i)
            name, word = f"{name}: {path}{field}", int(words[i])
            if not word:
                return f"{name} is free, and has an owner or writers that wait", {**details, "expected": 0, "found": rest[i]}
            if semaphore and not word & C["RWSEM_WRITER"]:
                return f"{name} is held by {word & C['RWSEM_READERS']} readers", \
                    {**details, "expected": 0, "found": hex(word)}
            holder = int(rows[field]["owner"][i]) if semaphore else word
            return lock_finding(m, name, holder, {**details, "found": hex(word)})

        m.report.each((words | rest) != 0, "lock", finding)


def lock_finding(m, name, holder, details):
    """Message and details of a lock that CPU `holder` - 1 holds."""
    cpu = (holder & ~C["SPIN_WAITERS"]) - 1
    if 0 <= cpu < len(m.pid):
        details = {**details, "task": m.pid[cpu]}
    return f"{name} is held by {m.holder_text(holder)}", \
        {"expected": 0, "found": hex(holder), **details}
