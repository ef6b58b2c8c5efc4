# SPDX-License-Identifier: GPL-2.0-only
"""What an audit says: Finding, the collection of them, and their outcome.

May import: nothing of ours.
"""
from dataclasses import asdict, dataclass

import numpy as np

# Of one sort of damage this many findings are told in full; the rest are counted.
LIMIT = 16


@dataclass
class Finding:
    """One thing that does not hold.

    `kind` is the promise broken: block, zone, task, mm, vma, rbtree, anon_vma, pagetable,
    policy, cpuset, pte, device, mlock, migration_entry, rmap, mapcount, refcount, leak, owner, flags, file,
    page_tree, i_mmap, buffer, swap, free_page, buddy, free_list, lru, pagevec, counter, tlb, lock, slab, rcu,
    poison, memcg.  `page` is a page frame number, `task` a pid, `mm` an address space's id, `address` a virtual
    address or that of a kernel object.
    """
    kind: str
    message: str
    page: int | None = None
    task: int | None = None
    mm: int | None = None
    address: int | None = None
    expected: int | str | None = None
    found: int | str | None = None

    def __str__(self):
        where = [f"{name} {value}" for name, value in
                 (("page", self.page), ("task", self.task), ("mm", self.mm)) if value is not None]
        if self.address is not None:
            where.append(f"at {self.address:#x}")
        text = f"{self.kind}: {self.message}" + (f" [{', '.join(where)}]" if where else "")
        values = [f"{name} {value}" for name, value in
                  (("expected", self.expected), ("found", self.found)) if value is not None]
        return f"{text}: {', '.join(values)}" if values else text


class AuditError(Exception):
    """A machine is broken; `findings` says how."""

    def __init__(self, findings):
        super().__init__("\n".join(["the audit found a broken machine:", *map(str, findings)]))
        self.findings = findings


class Audit:
    """The outcome: `findings`, empty when all promises held."""

    def __init__(self, findings):
        self.findings = findings

    @property
    def clean(self):
        return not self.findings

    def raise_if_broken(self):
        """Raises AuditError listing the findings, if there are any."""
        if self.findings:
            raise AuditError(self.findings)

    def to_json(self):
        """The findings as a list of dicts of plain values."""
        return [asdict(finding) for finding in self.findings]

    def __str__(self):
        if self.clean:
            return "audit: clean"
        return "\n".join([f"audit: {len(self.findings)} findings",
                          *(f"  {finding}" for finding in self.findings)])


class Report:
    """Collects findings."""

    def __init__(self):
        self.findings = []

    def add(self, kind, message, **details):
        """One finding; numpy's numbers become Python's, so that they print and encode."""
        plain = {name: value.item() if isinstance(value, np.generic) else value
                 for name, value in details.items()}
        self.findings.append(Finding(kind, message, **plain))

    def each(self, broken, kind, describe):
        """One finding for each element of the mask `broken` that is set.

        `describe(i)` gives the message and a dict of details; it runs LIMIT times at most,
        so it may search.
        """
        indices = broken.nonzero()[0]
        for index in indices[:LIMIT].tolist():
            message, details = describe(index)
            self.add(kind, message, **details)
        if len(indices) > LIMIT:
            self.add(kind, f"... and {len(indices) - LIMIT} more like the last one")
