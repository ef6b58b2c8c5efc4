# SPDX-License-Identifier: GPL-2.0-only
"""Where the command `shmkern` begins.  Not in the package: whatever comes before the first line of
a module in there takes half a second, in which Ctrl-C would be a traceback."""
import gc
import os
import signal


def main():
    """Runs the command line.  Returns the exit status."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # numpy's threads: a process that forks is to have none.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # What is imported stays: it is looked through for garbage neither meanwhile nor later, nor by a task.
    gc.disable()
    from shmkern import cli
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGINT, before)
    return cli.main()


if __name__ == "__main__":
    raise SystemExit(main())
