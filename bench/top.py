# SPDX-License-Identifier: GPL-2.0-only
"""What it costs to watch a machine: the CPU time that `shmkern top` takes, as a share of the host's.

A stress run keeps the machine busy; top draws it in a terminal of its own, which nobody looks at.
It maps the machine read-only and takes no lock, so its CPU time is all that it can cost.
"""
import contextlib
import os
import pty
import subprocess
import sys
import time

import common
import psutil

from shmkern import direct_map, provenance

LIMIT_PERCENT = 1.0


@contextlib.contextmanager
def stress(workers, seconds):
    """The name of the machine of a stress run."""
    process = subprocess.Popen([sys.executable, "-m", "shmkern.cli", "stress", "anon", "--workers", str(workers),
                                "--seconds", str(seconds)], stdout=subprocess.DEVNULL)
    try:
        while not (names := [name for name in direct_map.blocks()
                             if direct_map.read_header(name)["supervisor_pid"] == process.pid]):
            if process.poll() is not None:
                sys.exit(2)     # It has said why.
            time.sleep(0.05)
        yield names[0]
    finally:
        process.terminate()
        process.wait()


def cpu_share(name, interval, seconds):
    """The share of all CPUs that top takes, once it has started."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "shmkern.cli", "top", name, "--interval", str(interval)])
    watcher, began, spent = psutil.Process(pid), None, 0.0
    start = time.monotonic()
    common.progress(f"a look every {interval:g} s, for {seconds} s")
    while began is None or time.monotonic() - began < seconds:
        os.read(terminal, 1 << 16)
        if began is None and time.monotonic() - start > 4:
            began, spent = time.monotonic(), sum(watcher.cpu_times()[:2])
    share = (sum(watcher.cpu_times()[:2]) - spent) / (time.monotonic() - began) / os.cpu_count()
    os.write(terminal, b"q")
    with contextlib.suppress(OSError):
        while os.read(terminal, 1 << 16):
            pass
    os.waitpid(pid, 0)
    os.close(terminal)
    return share * 100


def main():
    parser = common.parser(__doc__.splitlines()[0], "shmkern bench top --seconds 10")
    parser.add_argument("--workers", type=common.positive, default=8, help="tasks of the machine (8)")
    parser.add_argument("--seconds", type=common.positive, default=20, help="how long it is watched, a row (20)")
    options = parser.parse_args()
    with stress(options.workers, 4 * options.seconds + 60) as name:
        rows = [{"interval": interval, "percent": cpu_share(name, interval, options.seconds)} for interval in (2.0, 1.0)]
    columns = {"interval": "s between looks", "percent": "% of the host's CPUs"}
    common.show("what `shmkern top` costs", columns, rows,
                [f"At the default interval it must be less than {LIMIT_PERCENT:g} %."])
    common.write_html(options.html, "what shmkern top costs",
                      f"Watching a machine takes {rows[0]['percent']:.2f} % of the host's CPUs.", columns, rows)
    common.write_json(options.json, {"bench": "top", "host": provenance.host(), "rows": rows})
    sys.exit(1 if rows[0]["percent"] >= LIMIT_PERCENT else 0)


if __name__ == "__main__":
    common.run(main)
