# SPDX-License-Identifier: GPL-2.0-only
"""Where a measurement comes from: which build, on which host."""
import os
import platform
import subprocess
from pathlib import Path

import shmkern


def revision():
    """What was built: the commit of the checkout, or the version."""
    root = Path(shmkern.__file__).resolve().parent.parent
    try:
        done = subprocess.run(["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=12"],
                              capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return f"version {shmkern.__version__}"
    return done.stdout.strip() if done.returncode == 0 else f"version {shmkern.__version__}"


def host():
    """What it ran on: a dict of cpu, cores, memory_mib, kernel, python and load."""
    model = next((line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo")
                  if line.startswith("model name")), platform.machine())
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return {"cpu": model, "cores": os.cpu_count(), "memory_mib": memory, "kernel": platform.release(),
            "python": platform.python_version(), "load": os.getloadavg()[0]}
