# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios that put a machine under stress.  Each store is checked by a shadow that the
emulator cannot see, so that a lost or torn write is found.  Run by `shmkern stress NAME`."""
