# SPDX-License-Identifier: GPL-2.0-only
"""The explorer: every interleaving of the compiled kernel, up to stated bounds.

    flavour      the kernel compiled for exploring, put in the place of the shipped one
    runtime.c    what gcc's instrumentation calls: scheduler, equivalence, data races
    engine       runtime.c, seen from Python
    room         a private machine, its tasks, and what a scenario may do with them
    scenarios    the project's own
    search       exploring one scenario: rounds, units, jobs
    lock_order   which locks may be taken while which are held
    names        what addresses are called, and where instructions come from
    findings     what has failed, and how it is told: shrinking, table, page
    museum       bugs that Linux had, as patches that must be found
    command      `shmkern explore` and `shmkern replay`

Nothing here is imported by a running machine.  The command starts a process of its own
(__main__.py), in which the names of the kernel's modules mean the explorer's flavour.
"""
