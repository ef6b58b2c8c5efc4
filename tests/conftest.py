# SPDX-License-Identifier: GPL-2.0-only
"""Every machine of the tests is made by `boot`: it is audited when the test is over, and a
process or block that is left behind fails the test."""
import psutil
import pytest

import shmkern
from shmkern import direct_map


def our_processes():
    """Pids of this process's descendants."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fails a test that leaves a process or a block."""
    processes, blocks = our_processes(), set(direct_map.blocks())
    yield
    assert our_processes() <= processes, "the test left processes behind"
    assert set(direct_map.blocks()) <= blocks, "the test left a block behind"


@pytest.fixture
def boot():
    """boot(**options) makes a Machine (small by default) that the test need not close."""
    machines = []

    def make(nodes=2, frames_per_node=1024, *, hung_task_timeout=20.0, **options):
        machine = shmkern.Machine(nodes, frames_per_node, hung_task_timeout=hung_task_timeout, **options)
        machines.append(machine)
        return machine

    yield make
    for machine in machines:
        # A test that broke its machine on purpose has closed it.
        if machine.is_open:
            try:
                machine.audit().raise_if_broken()
            finally:
                machine.close()


@pytest.fixture
def machine(boot):
    """A small machine: 2 nodes of 1024 frames."""
    return boot()
