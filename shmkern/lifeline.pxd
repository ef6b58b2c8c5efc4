# SPDX-License-Identifier: GPL-2.0-only
# A process's ties to its machine.  May use: atomics.

from shmkern.atomics cimport install_sigbus_handler, kill_me_when_pipe_closes, register_membarrier
