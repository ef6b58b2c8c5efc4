# SPDX-License-Identifier: GPL-2.0-only
# Exports nothing that is ours.
