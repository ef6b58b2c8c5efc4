# SPDX-License-Identifier: GPL-2.0-only
"""Credentials: user ids and capabilities (kernel/sys.c, security/commoncap.c).

Only a task changes its own.  Others read them at any time, a word each, and so may see one
id before a change and another after it; whoever must not asks under alloc_lock.
"""
from cython.cimports.libc.errno import EPERM


def set_creds(task, uid, caps):
    """Gives a task that does not run yet its ids, all alike, and its capabilities."""
    task.uid = uid
    task.euid = uid
    task.suid = uid
    task.cap_permitted = caps
    task.cap_effective = caps


def copy_creds(child, parent):
    """A forked task has its parent's rights, and the label of its memory."""
    child.uid = parent.uid
    child.euid = parent.euid
    child.suid = parent.suid
    child.cap_permitted = parent.cap_permitted
    child.cap_effective = parent.cap_effective
    child.security = parent.security


def is_own_id(id):
    """Whether the current task may become `id` without CAP_SETUID: it is one of its three, or
    no change."""
    me = current()
    return id == KEEP_ID or id == me.uid or id == me.euid or id == me.suid


def do_setresuid(ruid, euid, suid):
    """setresuid(2); KEEP_ID (-1) leaves an id as it is.  Returns 0 or -EPERM.

    Who was root in one of its ids and is in none any more loses all capabilities; effective
    ones come and go with an effective id of 0 (cap_emulate_setxuid).
    """
    me = current()
    if not capable(CAP_SETUID) and not (is_own_id(ruid) and is_own_id(euid) and is_own_id(suid)):
        return -EPERM
    was_root = me.uid == 0 or me.euid == 0 or me.suid == 0
    was_effective = me.euid == 0
    if ruid != KEEP_ID:
        me.uid = ruid
    if euid != KEEP_ID:
        me.euid = euid
    if suid != KEEP_ID:
        me.suid = suid
    if was_root and me.uid != 0 and me.euid != 0 and me.suid != 0:
        me.cap_permitted = 0
        me.cap_effective = 0
    if was_effective and me.euid != 0:
        me.cap_effective = 0
    if not was_effective and me.euid == 0:
        me.cap_effective = me.cap_permitted
    return 0
