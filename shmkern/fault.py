# SPDX-License-Identifier: GPL-2.0-only
"""Page faults (mm/memory.c, arch/x86/mm/fault.c).

A fault looks at the PTE without the lock, prepares what it may have to (a frame, an
anon_vma, the page lock), then takes the split lock and looks again: if the PTE is not
what it was, somebody else was faster, what was prepared is given back, and the access
tries again.  Nothing below returns with a lock.

A page of a file stays locked from before the look at the file's size until it is mapped, and
is dirty before a PTE lets anybody write it; truncation and writeback take the page's lock.

Locks: mmap_sem for reading, held by do_page_fault; then PG_locked, then the split lock.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EFAULT, ENOMEM


# ---- memory that is not there yet --------------------------------------------

def do_zero_page(vma, ptep, ptl):
    """Maps the zero page, read-only, where nothing is mapped: a read needs no frame of its
    own.  (From 2.6.24 to 2.6.31 there is no zero page for anonymous memory.)"""
    spin_lock(ptl)
    if pte_none(READ_PTE(ptep)):
        set_pte_at(ptep, pte_mkspecial(mk_pte(ZERO_PAGE(), vma.vm_page_prot)))
        count_vm_event(PGFAULT_ZERO)
    spin_unlock(ptl)
    return 0


def do_anonymous_page(mm, vma, address, ptep, ptl, write):
    """Maps a fresh page, or the zero page for a read.  Returns 0 or -ENOMEM."""
    if not write:
        return do_zero_page(vma, ptep, ptl)
    if anon_vma_prepare(vma) != 0:
        return -ENOMEM
    page = alloc_page_vma(GFP_HIGHUSER_MOVABLE | __GFP_ZERO, vma, address)
    if page == NULL:
        return -ENOMEM
    SetPageUptodate(page)
    if mem_cgroup_newpage_charge(page, mm, GFP_KERNEL) != 0:
        put_page(page)
        return -ENOMEM
    pte = mk_pte(page, vma.vm_page_prot)
    if vma.vm_flags & VM_WRITE:
        pte = pte_mkwrite(pte_mkdirty(pte))
    spin_lock(ptl)
    # Another task of this mm may have been faster; or the PTE is for a moment none while
    # a migrator unmaps the page, and a migration entry by now.
    raced = 0 if pte_none(READ_PTE(ptep)) else 1
    if not raced:
        atomic_add_return64(addressof(mm.anon_rss), 1)
        page_add_new_anon_rmap(page, vma, address)
        set_pte_at(ptep, pte)
        count_vm_event(PGFAULT_ANON)
    spin_unlock(ptl)
    if raced:
        mem_cgroup_uncharge_page(page)
        put_page(page)
    return 0


# ---- pages of files ------------------------------------------------------------

def make_page_writable(page):
    """Lets a locked page of a file be written: its file system has what it needs for that, and the
    page is dirty.  Returns 0 or -ENOMEM."""
    page_mkwrite = a_ops(page_mapping(page)).page_mkwrite
    if page_mkwrite != NULL:
        rc = page_mkwrite(page)
        if rc != 0:
            return rc
    set_page_dirty(page)
    return 0


def cow_fault_page(vma, address, file_page):
    """A private copy of a page of a file, made before it is mapped for the first time; NULL without
    memory."""
    if anon_vma_prepare(vma) != 0:
        return NULL
    page = alloc_page_vma(GFP_HIGHUSER_MOVABLE, vma, address)
    if page == NULL:
        return NULL
    if mem_cgroup_newpage_charge(page, vma.vm_mm, GFP_KERNEL) != 0:
        put_page(page)
        return NULL
    copy_page(page_address(page), page_address(file_page))
    SetPageUptodate(page)
    return page


def map_file_page(mm, vma, page, ptep, ptl, write):
    """Maps a locked page of a file where nothing is mapped, if that is still so.  The PTE has a
    reference of its own."""
    pte = mk_pte(page, vma.vm_page_prot)
    if write:
        pte = pte_mkwrite(pte_mkdirty(pte))
    spin_lock(ptl)
    if pte_none(READ_PTE(ptep)):
        get_page(page)
        atomic_add_return64(addressof(mm.file_rss), 1)
        page_add_file_rmap(page)
        set_pte_at(ptep, pte)
    spin_unlock(ptl)


def map_cow_page(mm, vma, address, page, ptep, ptl):
    """Maps a private copy where nothing is mapped, writable, if that is still so.  Takes over the
    caller's reference."""
    pte = pte_mkwrite(pte_mkdirty(mk_pte(page, vma.vm_page_prot)))
    spin_lock(ptl)
    raced = 0 if pte_none(READ_PTE(ptep)) else 1
    if not raced:
        atomic_add_return64(addressof(mm.anon_rss), 1)
        page_add_new_anon_rmap(page, vma, address)
        set_pte_at(ptep, pte)
        count_vm_event(PGFAULT_COW)
    spin_unlock(ptl)
    if raced:
        mem_cgroup_uncharge_page(page)
        put_page(page)


def do_fault(mm, vma, address, ptep, ptl, write):
    """A fault where an area of a file has nothing mapped: the file's page, or a private copy for a
    write to a private area (__do_fault).  Returns 0, -ENOMEM or -VM_FAULT_SIGBUS."""
    mapping = vma_mapping(vma)
    offset = vma.vm_pgoff + ((address - vma.vm_start) >> PAGE_SHIFT)
    page = NULL
    if vma.vm_ops == VM_OPS_SHMEM:
        rc = shmem_fault(mapping, offset, addressof(page))
    else:
        rc = filemap_fault(mapping, offset, addressof(page))
    if rc != 0:
        return rc
    copy = cast(pointer(Page), NULL)
    if write and not vma.vm_flags & VM_SHARED:
        copy = cow_fault_page(vma, address, page)
        if copy == NULL:
            rc = -ENOMEM
    else:
        if write:
            rc = make_page_writable(page)
        if rc == 0:
            map_file_page(mm, vma, page, ptep, ptl, write)
    if copy != NULL:
        # With the file's page still locked: truncation unmaps private copies too.
        map_cow_page(mm, vma, address, copy, ptep, ptl)
    unlock_page(page)
    put_page(page)
    return rc


# ---- entries that are no mappings ------------------------------------------------

def pte_unmap_same(ptep, ptl, pte):
    """Whether a PTE that is not present still is what it was.  Takes the split lock."""
    spin_lock(ptl)
    same = READ_PTE(ptep) == pte
    spin_unlock(ptl)
    return same


def do_swap_page_locked(mm, vma, address, ptep, ptl, pte, page, write):
    """Maps a locked page in place of its swap entry.  Takes the split lock.

    Returns 0, also when the page is not (any longer) what the entry stands for, and the access
    must begin anew; -ENOMEM when its group's limit does not allow it; -VM_FAULT_SIGBUS when it
    could not be read.
    """
    entry = pte_to_swp_entry(pte)
    # While we waited for the lock the page may have left the cache, and even come back under
    # another entry; or somebody else was faster.  (2.6.30 does not look: fixed by Linux commit
    # 4969c1192d15.)
    if not PageSwapCache(page) or page.private != entry:
        return 0
    memcg = NULL
    if mem_cgroup_try_charge_swapin(page, mm, GFP_KERNEL, addressof(memcg)) != 0:
        return -ENOMEM
    spin_lock(ptl)
    if READ_PTE(ptep) != pte or not PageUptodate(page):
        same = READ_PTE(ptep) == pte
        spin_unlock(ptl)
        mem_cgroup_cancel_charge_swapin(memcg)
        return -VM_FAULT_SIGBUS if same else 0
    get_page(page)
    atomic_add_return64(addressof(mm.anon_rss), 1)
    atomic_add_return64(addressof(mm.swap_ents), -1)
    new = mk_pte(page, vma.vm_page_prot)
    # Mapped before it may leave the swap cache: in between it would look as if nobody used it, and
    # lose its charge.
    page_add_anon_rmap(page, vma, address)
    mem_cgroup_commit_charge_swapin(page, memcg)
    swap_free(entry)
    if write and reuse_swap_page(page):
        new = pte_mkwrite(pte_mkdirty(new))
    set_pte_at(ptep, new)
    spin_unlock(ptl)
    # What is locked will not go there again.
    if vm_swap_full() or vma.vm_flags & VM_LOCKED or PageMlocked(page):
        try_to_free_swap(page)
    return 0


def do_swap_page(mm, vma, address, pmd, ptep, ptl, pte, write):
    """A PTE that is neither none nor present: waits out a migration, or brings the page back from
    swap.  Returns 0 when the access may be tried again, -ENOMEM, or -VM_FAULT_SIGBUS when
    the page could not be read."""
    entry = pte_to_swp_entry(pte)
    if is_migration_entry(entry):
        migration_entry_wait(mm, pmd, address)
        return 0
    page = lookup_swap_cache(entry)
    if page == NULL:
        pol = get_vma_policy(vma, address, addressof(ilx))
        page = swapin_readahead(entry, GFP_HIGHUSER_MOVABLE, pol, ilx)
        mpol_cond_put(pol)
        if page == NULL:
            # Without memory; or somebody else was faster, and the entry is gone.
            return -ENOMEM if pte_unmap_same(ptep, ptl, pte) else 0
        count_vm_event(PGMAJFAULT)
    lock_page(page)
    rc = do_swap_page_locked(mm, vma, address, ptep, ptl, pte, page, write)
    unlock_page(page)
    put_page(page)
    return rc


# ---- writing to what is mapped read-only -------------------------------------

def pte_unchanged(ptep, pte):
    """Whether a PTE still is what it was, but for what the MMU notes in it.  Holds the split lock."""
    return (READ_PTE(ptep) | _PAGE_ACCESSED | _PAGE_DIRTY) == (pte | _PAGE_ACCESSED | _PAGE_DIRTY)


def wp_page_reuse(ptep):
    """Makes a present PTE writable.  Holds the split lock."""
    while True:
        # The MMU may set a bit between the look and the change.
        now = READ_PTE(ptep)
        if cmpxchg64(ptep, now, pte_mkwrite(pte_mkdirty(pte_mkyoung(now)))) == now:
            count_vm_event(PGFAULT_REUSE)
            return


def wp_page_copy(mm, vma, address, ptep, ptl, pte):
    """Gives this address space its own copy of the page, writable.  Returns 0 or -ENOMEM.

    The caller has a reference to the old page (or it is the zero page).  While that stands
    the page cannot be migrated away, so its contents are where the PTE says.
    """
    if anon_vma_prepare(vma) != 0:
        return -ENOMEM
    old_page = cast(pointer(Page), NULL) if pte_special(pte) else pte_page(pte)
    new_page = alloc_page_vma(GFP_HIGHUSER_MOVABLE | (__GFP_ZERO if old_page == NULL else 0), vma, address)
    if new_page == NULL:
        return -ENOMEM
    if old_page != NULL:
        copy_page(page_address(new_page), page_address(old_page))
    SetPageUptodate(new_page)
    if mem_cgroup_newpage_charge(new_page, mm, GFP_KERNEL) != 0:
        put_page(new_page)
        return -ENOMEM
    spin_lock(ptl)
    same = pte_unchanged(ptep, pte)
    if same:
        # Gone from every TLB before the copy is visible: a reader of the old page must
        # not miss what another task then writes to the new one.
        ptep_clear_flush(mm, address, ptep)
        page_add_new_anon_rmap(new_page, vma, address)
        entry = mk_pte(new_page, vma.vm_page_prot)
        set_pte_at(ptep, pte_mkwrite(pte_mkdirty(pte_mkyoung(entry))))
        if old_page != NULL:
            # After the PTE: until here the page's mapcount is what tells the other
            # mappers not to reuse it (mm/memory.c has the long story).
            atomic_add_return64(rss_of(mm, old_page), -1)
            page_remove_rmap(old_page)
        atomic_add_return64(addressof(mm.anon_rss), 1)
        count_vm_event(PGFAULT_COW)
    spin_unlock(ptl)
    if not same:
        mem_cgroup_uncharge_page(new_page)
        put_page(new_page)
    elif old_page != NULL:
        if vma.vm_flags & VM_LOCKED:
            # This area has the copy locked now, and no claim to the page.
            lock_page(old_page)
            munlock_vma_page(old_page)
            unlock_page(old_page)
        # The PTE's reference.
        put_page(old_page)
    return 0


def wp_page_shared(vma, ptep, ptl, pte, page):
    """The first write to a page of a file through a shared mapping since it was cleaned: it becomes
    dirty, then the PTE writable.  The page is locked.  Returns 0 or -ENOMEM."""
    # Truncated while we waited for it: there is no PTE any more.
    if page_mapping(page) != vma_mapping(vma):
        return 0
    rc = make_page_writable(page)
    if rc == 0:
        spin_lock(ptl)
        if pte_unchanged(ptep, pte):
            wp_page_reuse(ptep)
        spin_unlock(ptl)
    return rc


def wp_page_anon(ptep, ptl, pte, page):
    """A write to an anonymous page, which is locked: its last user may write it from now on.  Says
    whether that needs a copy instead.  Takes the split lock.

    First of all the PTE, for while we waited for the page's lock it may have become a swap entry;
    then reuse_swap_page, which counts that as our use, would take the page out of the swap cache
    with no other copy of what is in it.
    """
    spin_lock(ptl)
    same = pte_unchanged(ptep, pte)
    copy = same and not reuse_swap_page(page)
    if same and not copy:
        wp_page_reuse(ptep)
    spin_unlock(ptl)
    return copy


def do_wp_page(mm, vma, address, ptep, ptl, pte):
    """A write to a present, read-only PTE of a writable area.  Holds the split lock on
    entry, and gives it back.  Returns 0 or -ENOMEM.

    The last user of an anonymous page may write it, and everybody a page of a file that is mapped
    shared; anybody else gets a copy.  Whether one is the last is only certain under the page lock: a
    migrator that holds it has turned other mappings into entries that do not count, and they come
    back.
    """
    if pte_special(pte):
        spin_unlock(ptl)
        return wp_page_copy(mm, vma, address, ptep, ptl, pte)
    page = pte_page(pte)
    get_page(page)
    spin_unlock(ptl)
    lock_page(page)
    rc = 0
    copy = 0
    if not PageAnon(page) and vma.vm_flags & VM_SHARED:
        rc = wp_page_shared(vma, ptep, ptl, pte, page)
    elif PageAnon(page):
        # Only we could add a mapping of ours, and a fork of ours waits for mmap_sem.
        copy = wp_page_anon(ptep, ptl, pte, page)
    else:
        copy = 1
    unlock_page(page)
    if copy:
        rc = wp_page_copy(mm, vma, address, ptep, ptl, pte)
    put_page(page)
    return rc


# ---- the fault ---------------------------------------------------------------

def handle_pte_fault(mm, vma, address, pmd, ptep, write):
    """Does what the PTE calls for.  Returns 0 when the access may be tried again, -ENOMEM or
    -VM_FAULT_SIGBUS."""
    pte = READ_PTE(ptep)
    ptl = pte_lockptr(pmd)
    if pte_none(pte) and vma.vm_flags & VM_PFNMAP:
        # Its owner is just moving it, under the split lock.
        spin_lock(ptl)
        spin_unlock(ptl)
        return 0
    if pte_none(pte):
        if vma.vm_ops != VM_OPS_ANON:
            return do_fault(mm, vma, address, ptep, ptl, write)
        return do_anonymous_page(mm, vma, address, ptep, ptl, write)
    if not pte_present(pte):
        return do_swap_page(mm, vma, address, pmd, ptep, ptl, pte, write)
    if write and not pte_write(pte):
        spin_lock(ptl)
        now = READ_PTE(ptep)
        if pte_present(now) and not pte_write(now):
            return do_wp_page(mm, vma, address, ptep, ptl, now)
        spin_unlock(ptl)
    # Somebody else has mapped it meanwhile.
    return 0


def handle_mm_fault(mm, vma, address, write):
    """Makes `address` accessible, as far as one step goes.  Holds mmap_sem for reading.
    Returns 0, -ENOMEM or -VM_FAULT_SIGBUS."""
    count_vm_event(PGFAULT)
    pmd = NULL
    ptep = pte_alloc(mm, address, addressof(pmd))
    if ptep == NULL:
        return -ENOMEM
    rc = handle_pte_fault(mm, vma, address, pmd, ptep, write)
    if rc == 0 and vma.vm_flags & VM_LOCKED:
        mlock_faulted_page(vma, address)
    return rc


def mlock_faulted_page(vma, address):
    """Locks what a fault in a locked area has brought, unless it came locked, as new pages do.  Holds
    mmap_sem for reading; takes the page lock."""
    # The access may find what is in the air once it is back, and come here no more.
    page = follow_landed_page(vma, address)
    if page == NULL:
        return
    if not PageMlocked(page) and not PageReserved(page):
        lock_page(page)
        # Truncated or written meanwhile, it is not the area's any more.
        if page_is_mapped_at(page, vma.vm_mm, address):
            mlock_vma_page(page)
        unlock_page(page)
    put_page(page)


def get_user_page(vma, address, write, rc):
    """The page at `address`, faulted in if it is not there (for writing, if it cannot be written),
    with a reference taken; NULL with -ENOMEM in *rc, or -EFAULT where there are no struct pages, or an
    access would end in SIGBUS.  Holds mmap_sem; sleeps (get_user_pages)."""
    if vma.vm_flags & VM_PFNMAP:
        rc[0] = -EFAULT
        return NULL
    while True:
        page = follow_page(vma, address, write)
        if page != NULL:
            # It is going to be used, though not through the PTE (FOLL_TOUCH).
            if not PageReserved(page):
                mark_page_accessed(page)
            return page
        rc[0] = handle_mm_fault(vma.vm_mm, vma, address, write)
        if rc[0] != 0:
            if rc[0] == -VM_FAULT_SIGBUS:
                rc[0] = -EFAULT
            return NULL


def access_error(vma, write):
    """Whether the area forbids the access.  x86 cannot forbid reading what may be written
    or executed."""
    if write:
        return not vma.vm_flags & VM_WRITE
    return not vma.vm_flags & VM_ACCESS_FLAGS


def do_page_fault(address, write):
    """Entry from the MMU: the current task cannot access `address`.

    Returns 0 when it may try again; -EFAULT where a CPU would raise SIGSEGV; -VM_FAULT_SIGBUS where
    it would raise SIGBUS; -ENOMEM.
    Takes mmap_sem for reading; sleeps.
    """
    me = current()
    mm = me.mm
    # One in FAULT_SAMPLE is timed: reading the clock twice costs a tenth of a fault.
    began = cast(u64, 0)
    if me.vm_events[PGFAULT] % FAULT_SAMPLE == 0:
        began = ktime_get_ns()
    entered = kernel_enter_nested()
    trace_page_fault_user(address, write)
    down_read(addressof(mm.mmap_sem))
    vma = find_vma(mm, address)
    if vma == NULL or vma.vm_start > address or access_error(vma, write):
        rc = -EFAULT
        count_vm_event(PGFAULT_SEGV)
    else:
        rc = handle_mm_fault(mm, vma, address, write)
        if rc == -ENOMEM:
            count_vm_event(PGFAULT_OOM)
        elif rc == -VM_FAULT_SIGBUS:
            count_vm_event(PGFAULT_SIGBUS)
    up_read(addressof(mm.mmap_sem))
    trace_page_fault_user_exit(address, rc)
    if entered:
        kernel_exit()
    if began != 0 and rc == 0:
        account_latency(me.fault_buckets, ktime_get_ns() - began)
    return rc
