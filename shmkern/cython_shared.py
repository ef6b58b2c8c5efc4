# SPDX-License-Identifier: GPL-2.0-only
"""What Cython's own code in all kernel modules has in common; translator.py has Cython write it."""
