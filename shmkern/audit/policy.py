# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of memory policies and cpusets: who has a policy counts it, a cpuset has the nodes of its tasks.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout
from shmkern.audit.findings import LIMIT
from shmkern.audit.lists import walk_rb_tree

C = layout.constants


def find_shared_policies(m):
    """An inode's policies are a red-black tree of live objects, for ranges of its pages that are in
    order and do not overlap."""
    m.shared_policies = {}
    for inode, row in zip(m.inode_address, m.inode):
        root = int(row["i_policy"]["root"]["rb_node"])
        found, faults, pending = [], [], [root]
        while pending:
            address = pending.pop()
            if not address or address in m.shared_policies:
                continue
            fault = m.object_fault(address, "SpNode")
            if fault:
                faults.append((address, f"a range {fault}"))
                continue
            node = layout.struct("SpNode", address)
            m.shared_policies[address] = node.policy
            found.append(address)
            pending += [int(node.nd["rb_left"]), int(node.nd["rb_right"])]
        nodes = m.gather(found, "SpNode")
        order, broken = walk_rb_tree([tuple(node.tolist()) for node in nodes["nd"]], found,
                                     {address: i for i, address in enumerate(found)}, root)
        bounds = [int(bound) for i in order for bound in (nodes["start"][i], nodes["end"][i])]
        if not faults and not broken and (bounds != sorted(bounds) or (nodes["start"] >= nodes["end"]).any()):
            faults = [(inode, f"its ranges are empty, overlap or are not in order: {bounds}")]
        for where, fault in (faults or broken)[:LIMIT]:
            m.report.add("policy", f"the policies of inode {row['i_id']}: {fault}", address=where)


def find_policies(m):
    """A policy is a live object that counts those who have it: a task, VMAs, or ranges of an inode's
    pages.  Its nodes are nodes."""
    live = np.flatnonzero(m.live)
    owners = [(int(m.tasks["mempolicy"][cpu]), {"task": m.pid[cpu]}) for cpu in live.tolist()]
    owners += [(int(policy), {**m.whose(m.vma_mm[i]), "address": m.vma["vm_start"][i]})
               for i, policy in enumerate(m.vma["vm_policy"].tolist()) if policy]
    owners += [(policy, {"address": node}) for node, policy in m.shared_policies.items()]
    m.policies = {}
    for address, whose in owners:
        if not address:
            continue
        fault = m.object_fault(address, "Mempolicy")
        if fault:
            m.report.add("policy", f"a policy {fault}", **{**whose, "found": hex(address)})
            continue
        m.policies.setdefault(address, []).append(whose)
    nodes = (1 << m.kernel.nr_nodes) - 1
    for address, users in m.policies.items():
        policy = layout.struct("Mempolicy", address)
        if policy.refcnt != len(users):
            m.report.add("policy", "refcnt of a policy is not the number of those who have it",
                         **{**users[0], "expected": len(users), "found": policy.refcnt})
        if not C["MPOL_DEFAULT"] < policy.mode < C["MPOL_MAX"] or policy.nodes & ~nodes or \
                not 0 <= policy.preferred_node < m.kernel.nr_nodes:
            m.report.add("policy", "a policy has no such mode or names a node that is none",
                         **{**users[0], "found": repr(policy)})


def check_cpusets(m):
    """cpusets are a tree whose nodes are their parents' as well; a task may use what its cpuset
    may, or the next one above that has any of its memory left."""
    cpusets = m.kernel.cpusets
    used, parent = cpusets["in_use"] != 0, cpusets["parent"]
    usable = m.kernel.node_states[C["N_HIGH_MEMORY"]]
    if not used[0] or parent[0] != -1:
        m.report.add("cpuset", "the first cpuset is not the root")
        return
    below = {0}
    for _generation in range(len(used)):
        below.update(np.flatnonzero(used & np.isin(parent, list(below))).tolist())
    for number in (np.flatnonzero(used[1:]) + 1).tolist():
        if number not in below:
            m.report.add("cpuset", f"cpuset {number} is not below the root", found=parent[number])
        elif cpusets["mems_allowed"][number] & ~cpusets["mems_allowed"][parent[number]]:
            m.report.add("cpuset", f"cpuset {number} has nodes that its parent has not",
                         expected=hex(cpusets["mems_allowed"][parent[number]]),
                         found=hex(cpusets["mems_allowed"][number]))
    for cpu in np.flatnonzero(m.running).tolist():
        number, steps = int(m.tasks["cpuset"][cpu]), 0
        if number >= len(used) or not used[number]:
            m.report.add("cpuset", "a task is in no cpuset", task=m.pid[cpu], found=number)
            continue
        while parent[number] >= 0 and not cpusets["mems_allowed"][number] & usable and steps < len(used):
            number, steps = parent[number], steps + 1
        expected = cpusets["mems_allowed"][number] & usable
        if m.tasks["mems_allowed"][cpu] != expected:
            m.report.add("cpuset", "mems_allowed of a task is not what its cpuset may use", task=m.pid[cpu],
                         expected=hex(expected), found=hex(m.tasks["mems_allowed"][cpu]))
