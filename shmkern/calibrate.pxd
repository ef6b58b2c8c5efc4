# SPDX-License-Identifier: GPL-2.0-only
# Yardsticks for bench/.  May use: uaccess and below.

cimport cython
from shmkern.uaccess cimport *
