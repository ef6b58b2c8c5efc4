# SPDX-License-Identifier: GPL-2.0-only
"""As `file`, but all files have buffer heads, of every size; those of half the workers are moved by
buffer_migrate_page, those of the others must be written back and lose their buffers first."""
from shmkern_stress import common, file

NAME = "buffers"
SORTS = [(fs, size) for size in (512, 1024, 2048, 4096) for fs in ("buffer", "fallback")]
plan = file.plan


def worker(task, run, number):
    """One worker."""
    file.worker(task, run, number, SORTS)


if __name__ == "__main__":
    common.script(NAME)
