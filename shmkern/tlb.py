# SPDX-License-Identifier: GPL-2.0-only
"""The MMU of a task: a TLB, the page walk, accessed and dirty bits, shootdown.

A task is one CPU.  Its TLB is direct mapped and lies in the block, one word an entry.
On real hardware a flush is an interrupt that makes the other CPU empty its own TLB;
processes cannot interrupt each other that cheaply, so a flusher empties the entries of
the other CPU from outside and then waits until that CPU is not in the middle of an
access.  The result is the same: after shoot_down() no CPU uses the translation, nor
will it before it has walked the page table again.  A CPU that is outside an access, be
it asleep, preempted or computing, is not waited for.

Two races need care.

An access that has looked up its translation may go on using it after the entry is
emptied.  access_begin() is a store and a full fence, the flusher's emptying is a store
and a full fence: one of the two sees the other.  Either the flusher sees the odd
access_seq and waits, or the access sees the empty entry.

A fill that has read the PTE before it was cleared may enter the stale translation after
the flusher emptied the entry.  So the flusher first advances the CPU's flush_seq, and a
fill that finds it advanced takes its entry out again and starts over.
"""
from cython import NULL, address as addressof, cast, pointer


def tlb_fill(me, mm, address, write):
    """Walks the page table as x86 does and enters the translation: sets ACCESSED, and
    DIRTY for a write, in the PTE.

    Inside an access of CPU `me`, which keeps the tables from being freed.  Returns the
    TLB entry (odd), or FAULT_NOT_PRESENT or FAULT_PROT (even).
    """
    while True:
        flush_seq = smp_load_acquire32(addressof(me.flush_seq))
        ptep = walk_once(mm, address)
        if ptep == NULL:
            return FAULT_NOT_PRESENT
        pte = READ_PTE(ptep)
        while True:
            if not pte & _PAGE_PRESENT:
                return FAULT_PROT if pte_present(pte) else FAULT_NOT_PRESENT
            if write and not pte & _PAGE_RW:
                return FAULT_PROT
            marked = pte | _PAGE_ACCESSED | (_PAGE_DIRTY if write else 0)
            if marked == pte:
                break
            # Only onto the entry that was checked: it may be a migration entry by now.
            seen = cmpxchg64(ptep, pte, marked)
            if seen == pte:
                pte = marked
                break
            pte = seen
        entry = tlb_tag(address) | pte_pfn(pte) << TLB_PFN_SHIFT | TLB_VALID
        if pte_write(pte):
            entry |= TLB_WRITE
            if pte_dirty(pte):
                entry |= TLB_DIRTY
        smp_store_mb64(tlb_slot(me, address), entry)
        if READ_ONCE32(addressof(me.flush_seq)) == flush_seq:
            return entry
        WRITE_ONCE64(tlb_slot(me, address), 0)


# ---- shootdown ---------------------------------------------------------------

def tlb_invalidate(task, start, end):
    """Empties the entries of a CPU for [start, end), as its interrupt handler would.  Ends
    with a full fence, whichever way it went, so that access_seq is read after it."""
    atomic_add_return32(addressof(task.flush_seq), 1)
    smp_mb__after_atomic()
    if end - start >= cast(u64, TLB_FLUSH_ALL) << PAGE_SHIFT:
        for index in range(TLB_ENTRIES):
            if READ_ONCE64(addressof(task.tlb[index])):
                WRITE_ONCE64(addressof(task.tlb[index]), 0)
        smp_mb()
        return
    address = start
    while address < end:
        slot = tlb_slot(task, address)
        # An entry of another page stays.  If the owner replaces it while we look, the
        # advanced flush_seq tells it to check again.
        if READ_ONCE64(slot) & TLB_TAG_MASK == tlb_tag(address):
            smp_store_mb64(slot, 0)
        address += PAGE_SIZE


def tlb_wait_for_access(task):
    """Waits until the access that a CPU is in, if any, is over.  Accesses take well under
    a microsecond, unless their task is preempted in the middle."""
    seq = smp_load_acquire32(addressof(task.access_seq))
    if not seq & 1:
        return
    count_vm_event(TLB_ACK_WAIT)
    for _spin in range(SPIN_LIMIT):
        if smp_load_acquire32(addressof(task.access_seq)) != seq:
            return
        cpu_relax()
    wait_begin(WAIT_TLB_ACK, task)
    while smp_load_acquire32(addressof(task.access_seq)) == seq:
        cpu_yield()
        wait_check()
    wait_end()


def flush_tlb_range(mm, start, end):
    """Returns when no CPU has, or uses, a translation of [start, end) that it got before
    the call.  The page tables have been changed.  Any locks may be held."""
    # The change comes before the look at who might have cached what was there: a CPU that
    # joins the mask afterwards walks the changed table.
    smp_mb()
    shoot_down(mm, start, end)


def shoot_down(mm, start, end):
    """flush_tlb_range after a page-table change that was a full fence by itself."""
    k = kernel()
    me = current()
    trace_tlb_flush(start, end)
    for word in range((k.max_tasks + 63) // 64):
        cpus = READ_ONCE64(addressof(mm.cpu_vm_mask[word]))
        while cpus:
            cpu = word * 64 + __builtin_ctzl(cpus)
            cpus &= cpus - 1
            tlb_invalidate(addressof(k.tasks[cpu]), start, end)
            if cpu != me.cpu:
                me.vm_events[TLB_SHOOTDOWN] += 1
    # All are told before the first is waited for, and emptied before it is looked at.
    smp_mb__after_atomic()
    for word in range((k.max_tasks + 63) // 64):
        cpus = READ_ONCE64(addressof(mm.cpu_vm_mask[word]))
        while cpus:
            cpu = word * 64 + __builtin_ctzl(cpus)
            cpus &= cpus - 1
            if cpu != me.cpu:
                tlb_wait_for_access(addressof(k.tasks[cpu]))


def flush_tlb_mm(mm):
    """flush_tlb_range for the whole address space."""
    flush_tlb_range(mm, 0, TASK_SIZE)


def ptep_clear_flush(mm, address, ptep):
    """Clears a PTE and returns what it held; no CPU can reach the page through it any
    more, and DIRTY tells whether any has written.  Holds the split lock."""
    pte = ptep_get_and_clear(ptep)
    if pte_present(pte):
        smp_mb__after_atomic()
        shoot_down(mm, address & PAGE_MASK, (address & PAGE_MASK) + PAGE_SIZE)
    return pte


def ptep_clear_flush_young(mm, address, ptep):
    """Takes ACCESSED off a PTE and says whether it was there; the next access through it sets it
    again, as no CPU has the translation any more.  Holds the split lock."""
    if not pte_young(READ_PTE(ptep)):
        return False
    young = pte_young(fetch_and64(ptep, ~cast(u64, _PAGE_ACCESSED)))
    if young:
        smp_mb__after_atomic()
        shoot_down(mm, address & PAGE_MASK, (address & PAGE_MASK) + PAGE_SIZE)
    return young


def activate_mm(mm):
    """This CPU begins to run `mm`."""
    me = current()
    fetch_or64(addressof(mm.cpu_vm_mask[me.cpu // 64]), cast(u64, 1) << (me.cpu % 64))


def deactivate_mm(mm, task):
    """CPU `task` will not access `mm` any more.  Called by itself, or after its death."""
    tlb_invalidate(task, 0, TASK_SIZE)
    fetch_and64(addressof(mm.cpu_vm_mask[task.cpu // 64]), ~(cast(u64, 1) << (task.cpu % 64)))


# ---- gathering what is unmapped ----------------------------------------------

def tlb_gather_mmu(tlb, mm):
    """Starts to gather what is unmapped from `mm`."""
    tlb.mm = mm
    tlb.start = TASK_SIZE
    tlb.end = 0
    tlb.nr = 0


def tlb_note_range(tlb, start, end):
    """Translations of [start, end) have gone from the page tables."""
    tlb.start = min(tlb.start, start)
    tlb.end = max(tlb.end, end)


def tlb_remove_page(tlb, page):
    """Takes over a reference to a page or table that the noted ranges led to."""
    if tlb.nr == 0:
        # Reclaim can free them no more than those that a task has isolated: isolation_begin.
        WRITE_ONCE64(addressof(current().isolating_since), ktime_get_ns())
    tlb.pages[tlb.nr] = page
    tlb.nr += 1
    if tlb.nr == GATHER_PAGES:
        tlb_finish_mmu(tlb)


def tlb_finish_mmu(tlb):
    """Flushes what was noted, then drops the references.  The gather may be used on."""
    if tlb.start < tlb.end:
        flush_tlb_range(tlb.mm, tlb.start, tlb.end)
    for index in range(tlb.nr):
        page = tlb.pages[index]
        if PagePageTable(page):
            table_free_one(cast(pointer(u64), page_address(page)))
        else:
            put_page(page)
    if tlb.nr != 0:
        WRITE_ONCE64(addressof(current().isolating_since), 0)
    tlb_gather_mmu(tlb, tlb.mm)
