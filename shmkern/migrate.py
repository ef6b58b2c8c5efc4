# SPDX-License-Identifier: GPL-2.0-only
"""Page migration: mm/migrate.c of Linux 2.6.30, after the seed.

A page moves like this, with its tasks running: it is taken off the LRU, locked, and each
PTE that maps it becomes a migration entry; a task that faults on one waits for the page
lock.  When nobody maps the page and nobody else has a reference, the new page takes its
place and its contents; then each migration entry becomes a PTE of the new page, and the
lock is given back.  If any step fails the same entries become PTEs of the old page, and
nothing has happened.

Lock order: mmap_sem (only where an address leads to the page), PG_locked of the old page,
PG_locked of the new one by trylock, buffers, i_mmap_lock or anon_vma->lock, split page-table
lock, tree_lock.

Line numbers are the seed's, whose text is that of a release candidate of 2.6.28
(docs/seed-map.md).  Where later kernels mended the protocol their way is taken,
and the docstring says so.
"""
from cython import NULL, address as addressof, cast, pointer
from cython.cimports.libc.errno import EAGAIN, EINVAL, EIO, ENOMEM


def migrate_prep():
    """Empties the pagevecs of all CPUs, so that the pages in them can be isolated.  What
    is added to one afterwards will fail to migrate, as any page that is busy.  Lines 43-55."""
    lru_add_drain_all()


def migrate_begin():
    """Before pages are isolated to be moved, which are out of reclaim's reach until migrate_end(): tasks that
    starve go first, for a moment.  (Linux counts isolated pages since 2.6.32, NR_ISOLATED_ANON.)
    The caller has mmap_sem, if it needs it: who waits for memory may have it, and must not wait for who waits
    for that.  Sleeps."""
    might_sleep()
    k = kernel()
    sequence = smp_load_acquire32(addressof(k.reclaim_sequence))
    if READ_ONCE32(addressof(k.nr_starving)) != 0:
        futex_wait(addressof(k.reclaim_sequence), sequence, CONGESTION_WAIT_NS)
    current().flags |= PF_MIGRATE
    isolation_begin()


def migrate_end():
    """No page is isolated any more."""
    current().flags &= ~cast(u32, PF_MIGRATE)
    isolation_end()


def putback_lru_pages(pagelist):
    """Puts all pages of an isolated list back on the LRU and drops the references that
    isolation took.  Returns their number.  Lines 57-74."""
    count = 0
    while not list_empty(pagelist):
        page = list_entry_page(pagelist.next)
        list_del(addressof(page.lru))
        putback_lru_page(page)
        count += 1
    return count


# ---- from migration entries back to PTEs -------------------------------------

def remove_migration_pte(vma, old, new):
    """Makes the migration entry for `old` in one VMA, if there is one, a PTE of `new`, and
    takes a reference and a mapping of `new` for it.  Lines 77-155.

    Holds anon_vma->lock or i_mmap_lock; takes the split lock.  `new` is locked.
    """
    mm = vma.vm_mm
    address = page_address_in_vma(new, vma)
    if address == 0:
        return
    pmd = walk_to_pmd(mm, address)
    if pmd == NULL:
        return
    ptep = pte_offset(pmd, address)
    # Without the lock: an entry for our page cannot appear any more, only be zapped or
    # copied by a fork, and the copy stands in a VMA that is further down the list.
    # Acquire: who has zapped it was done with `old` before, and when we are done that is free.
    if not is_swap_pte(smp_load_acquire64(ptep)):
        return
    # The pages behind this one will probably be next, and their PTEs stand behind this one.
    prefetchw(ptep + CACHE_LINE // 8)
    ptl = pte_lockptr(pmd)
    spin_lock(ptl)
    pte = READ_PTE(ptep)
    entry = pte_to_swp_entry(pte)
    if is_swap_pte(pte) and is_migration_entry(entry) and migration_entry_to_page(entry) == old:
        # Lines 125-136: mem_cgroup_prepare_migration or mem_cgroup_migrate saw to it.
        VM_BUG_ON_PAGE(PageAnon(new) and not mem_cgroup_page_is_charged(new), new)
        # mprotect may be at the area; then it comes to this PTE next, by the lock we hold.
        pte = pte_mkold(mk_pte(new, READ_ONCE64(addressof(vma.vm_page_prot))))
        if is_write_migration_entry(entry):
            pte = pte_mkwrite(pte)
        # Counted before it can be seen: the MMU may walk to it at once.
        if not PageAnon(new):
            get_page(new)
            page_add_file_rmap(new)
        elif new != old and page_count(new) == 1 and not page_mapped(new):
            page_move_anon_rmap(new, vma, address)
        else:
            get_page(new)
            page_add_anon_rmap(new, vma, address)
        set_pte_at(ptep, pte)
        trace_remove_migration_pte(address, pte)
        # No flush: the entry was not present before.
    spin_unlock(ptl)


def remove_anon_migration_ptes(old, new):
    """remove_migration_pte for every VMA of an anonymous page.  Lines 179-204.

    Within rcu_read_lock since the page was last seen mapped, so the anon_vma is still
    there even if all its VMAs have gone.  Takes anon_vma->lock.

    A fork that runs meanwhile linked its VMA behind the parent's before it copied an
    entry.  So if it copied a migration entry we come to its VMA later; and if it copies
    after we were at the parent's, it copies a PTE.
    """
    mapping = cast(u64, new.mapping)
    if not mapping & PAGE_MAPPING_ANON:
        return
    anon_vma = cast(pointer(AnonVma), mapping - PAGE_MAPPING_ANON)
    spin_lock(addressof(anon_vma.lock))
    node = anon_vma.head.next
    while node != addressof(anon_vma.head):
        remove_migration_pte(list_entry_vma(node), old, new)
        node = node.next
    spin_unlock(addressof(anon_vma.lock))


def remove_file_migration_ptes(old, new):
    """remove_migration_pte for every VMA that maps the page's place in its file.  Lines 158-177.
    The page is locked, which keeps its mapping.  Takes i_mmap_lock.

    What remove_anon_migration_ptes says of a fork holds here too: the tree has the forked VMA
    right behind the one it was copied from.
    """
    mapping = page_mapping(new)
    if mapping == NULL:
        return
    spin_lock(addressof(mapping.i_mmap_lock))
    vma = vma_interval_tree_iter_first(addressof(mapping.i_mmap), new.index, new.index)
    while vma != NULL:
        remove_migration_pte(vma, old, new)
        vma = vma_interval_tree_iter_next(vma, new.index, new.index)
    spin_unlock(addressof(mapping.i_mmap_lock))


def remove_migration_ptes(old, new):
    """Replaces every migration entry for `old` by a PTE of `new`, which is `old` itself
    when the migration failed.  Lines 206-216.

    A page of the swap cache has none: its PTEs have become swap entries.  (Nor may one look for
    them, for it may have had no PTE to begin with, and then its anon_vma may be gone.)"""
    if PageSwapCache(new):
        return
    if PageAnon(new):
        remove_anon_migration_ptes(old, new)
    else:
        remove_file_migration_ptes(old, new)


# ---- waiting for a migration -------------------------------------------------

def migration_entry_wait(mm, pmd, address):
    """Sleeps until the page whose migration entry stands at `address` is unlocked; the
    caller then faults again.  Lines 218-259.  Holds mmap_sem for reading, takes the split
    lock for the look."""
    ptl = pte_lockptr(pmd)
    ptep = pte_offset(pmd, address)
    spin_lock(ptl)
    pte = READ_PTE(ptep)
    if not is_swap_pte(pte) or not is_migration_entry(pte_to_swp_entry(pte)):
        spin_unlock(ptl)
        return
    page = migration_entry_to_page(pte_to_swp_entry(pte))
    # While its references are frozen the page has none, and a plain get_page would bring
    # it back to life; then the fault just tries again.
    if not get_page_unless_zero(page):
        spin_unlock(ptl)
        count_vm_event(MIGRATION_ENTRY_RETRY)
        # Whoever froze it may have lost its CPU.
        cpu_yield()
        return
    spin_unlock(ptl)
    count_vm_event(MIGRATION_ENTRY_WAIT)
    began = ktime_get_ns()
    wait_on_page_locked(page)
    account_latency(current().wait_buckets, ktime_get_ns() - began)
    put_page(page)


# ---- moving one page ---------------------------------------------------------

def migrate_page_move_mapping(mapping, newpage, page):
    """Makes sure that nobody but us has a reference to `page`, and puts `newpage` in its
    place in the mapping.  Lines 262-335.

    Both pages are locked, `page` is unmapped.  The references that there may be: ours; the
    mapping's, if it is in one; that of its buffers, if it has any.  Any other is somebody at work
    on the page.  Returns 0 or -EAGAIN.  Takes tree_lock.
    """
    if mapping == NULL:
        # An anonymous page without swap is in no mapping, so there is nothing to replace.
        return 0 if page_count(page) == 1 else -EAGAIN
    expected_count = 2 + PagePrivate(page)
    spin_lock(addressof(mapping.tree_lock))
    slot = radix_tree_lookup_slot(addressof(mapping.page_tree), page_index(page))
    # While it is frozen, find_get_page gets no reference and looks again until the new page is
    # in the slot.
    if page_count(page) != expected_count or radix_tree_deref_slot(slot) != page or \
            not page_freeze_refs(page, expected_count):
        spin_unlock(addressof(mapping.tree_lock))
        return -EAGAIN
    get_page(newpage)       # The cache's reference.
    if PageSwapCache(page):
        SetPageSwapCache(newpage)
        newpage.private = page.private
    radix_tree_replace_slot(slot, newpage)
    # Without the cache's reference.  Not the last: we have one.
    page_unfreeze_refs(page, expected_count - 1)
    # The other counters follow when the new page is mapped, and has its dirt.
    dec_zone_page_state(page, NR_FILE_PAGES)
    inc_zone_page_state(newpage, NR_FILE_PAGES)
    spin_unlock(addressof(mapping.tree_lock))
    return 0


def expect_copy(target):
    """Begins to ask for the lines of the page that this migrator moves next, and of `target`, where it will probably go
    to; prefetch_upcoming goes on.  Called as soon as a copy is made, whose stores the next locked instruction has to
    wait for."""
    me = current()
    me.upcoming_target = target
    me.upcoming_line = 0
    prefetchw(target)
    prefetch_lines()


def prefetch_lines():
    """The slow half of prefetch_upcoming."""
    me = current()
    source = cast(pointer(char), page_address(me.upcoming))
    target = cast(pointer(char), page_address(me.upcoming_target))
    first = me.upcoming_line
    last = min(first + LINES_AT_ONCE, cast(u64, PAGE_LINES))
    for line in range(first, last):
        prefetch(source + line * CACHE_LINE)
        prefetchw(target + line * CACHE_LINE)
    me.upcoming_line = last


def migrate_page_copy(newpage, page):
    """Copies contents and state to the new page and strips the old one.  Lines 337-394.
    Both are locked and unmapped."""
    copy_page(page_address(newpage), page_address(page))
    expect_copy(next_free_page(page_zone(newpage)))
    VM_BUG_ON_PAGE(PageActive(page) and PageUnevictable(page), page)
    # The seed goes flag by flag.  Here all go at once, for each would be a locked
    # instruction: what the new page takes over, and what the old page loses, whose waiters may
    # be setting PG_waiters.
    carried = READ_ONCE64(addressof(page.flags)) & page_flags_carried()
    if page_mapping(page) == NULL:
        # Nobody else can see the new page yet.
        WRITE_ONCE64(addressof(newpage.flags), newpage.flags | carried)
    else:
        # It is in its tree, and may have waiters already.
        fetch_or64(addressof(newpage.flags), carried & ~(cast(u64, 1) << PG_dirty))
        if PageDirty(page):
            # The dirt is counted, by zone, and tagged: it goes from the one to the other.  Not by
            # set_page_dirty, which would say that all of the page's buffers are dirty.
            clear_page_dirty_for_io(page)
            __set_page_dirty_nobuffers(newpage)
    if carried & cast(u64, 1) << PG_mlocked:
        # mlock_migrate_page: the bit stands still under the page lock.
        dec_zone_page_state(page, NR_MLOCK)
        inc_zone_page_state(newpage, NR_MLOCK)
    fetch_and64(addressof(page.flags), ~page_flags_stripped())
    page.private = 0
    if not PageAnon(page):
        # An anonymous page stays one until it is freed: who zaps or copies one of its migration
        # entries, while they stand, has to know what it counts (later kernels do so too).
        WRITE_ONCE64(addressof(page.mapping), 0)
    if PageWriteback(newpage):
        end_page_writeback(newpage)


def fail_migrate_page(mapping, newpage, page):
    """The migratepage of mappings that cannot be moved: always -EIO.  Lines 400-405."""
    return -EIO


def migrate_page(mapping, newpage, page):
    """Moves a page that has nothing private.  Both are locked on entry and exit.  Returns
    0 or -EAGAIN.  Lines 408-428."""
    BUG_ON(PageWriteback(page))
    rc = migrate_page_move_mapping(mapping, newpage, page)
    if rc == 0:
        migrate_page_copy(newpage, page)
    return rc


def lock_page_buffers(head):
    """Takes a reference to each buffer of a page's ring, and its lock.  Lines 452-459.  May sleep."""
    bh = head
    while True:
        get_bh(bh)
        lock_buffer(bh)
        bh = bh.b_this_page
        if bh == head:
            return


def unlock_page_buffers(head):
    """Undoes lock_page_buffers.  Lines 478-484."""
    bh = head
    while True:
        unlock_buffer(bh)
        put_bh(bh)
        bh = bh.b_this_page
        if bh == head:
            return


def buffer_migrate_page(mapping, newpage, page):
    """Moves a page with its buffers, for file systems whose buffers nobody uses without the page's
    or the buffer's lock.  Lines 432-487.  Returns as migrate_page.  May sleep on a buffer."""
    if not page_has_buffers(page):
        return migrate_page(mapping, newpage, page)
    head = page_buffers(page)
    rc = migrate_page_move_mapping(mapping, newpage, page)
    if rc:
        return rc
    lock_page_buffers(head)
    ClearPagePrivate(page)
    newpage.private = page.private
    page.private = 0
    # The buffers' reference goes with them.
    put_page(page)
    get_page(newpage)
    bh = head
    while True:
        set_bh_page(bh, newpage, bh_offset(bh))
        bh = bh.b_this_page
        if bh == head:
            break
    SetPagePrivate(newpage)
    migrate_page_copy(newpage, page)
    unlock_page_buffers(head)
    return 0


def writeout(mapping, page):
    """Writes a dirty page back, so that a file system which cannot move dirty pages can move this
    one at another pass.  Lines 491-534.  The page is locked, on entry and exit.

    Returns -EAGAIN when it was written, or somebody else does; -EINVAL for a mapping that cannot
    write; -EIO.
    """
    if a_ops(mapping).writepage == NULL:
        return -EINVAL
    # The page will be unlocked to be written, and what was checked for the migration will not
    # hold any more; so it is off.  (The seed cleans the page first.  Then an entry that becomes a
    # writable PTE again would let programs write a clean page, and nobody would notice.)
    remove_migration_ptes(page, page)
    if not clear_page_dirty_for_io(page):
        # Somebody else already began to write it.
        return -EAGAIN
    wbc.sync_mode = WB_SYNC_NONE
    wbc.nr_to_write = 1
    wbc.range_start = 0
    wbc.range_end = RADIX_TREE_MAX_INDEX
    rc = a_ops(mapping).writepage(page, addressof(wbc))
    if rc != AOP_WRITEPAGE_ACTIVATE:
        # Also after an error, which the seed forgets and later kernels do not.
        lock_page(page)
    return -EIO if rc < 0 else -EAGAIN


def fallback_migrate_page(mapping, newpage, page):
    """Moves a page for a file system that has no migratepage: written back if it is dirty, and
    without its buffers.  Lines 536-554.  Returns as migrate_page, or as writeout."""
    if PageDirty(page):
        return writeout(mapping, page)
    if PagePrivate(page) and not try_to_release_page(page, GFP_KERNEL):
        return -EAGAIN
    return migrate_page(mapping, newpage, page)


def move_to_new_page(newpage, page):
    """Moves a locked, unmapped page into `newpage`, and on success turns its migration
    entries into PTEs of the new page.  Lines 556-610.

    Returns 0; -EAGAIN when somebody has a reference; another errno for good.
    """
    # Keeps others off the new page while it is given an identity.  We alone have it.
    # (The seed tries the lock, and it is a BUG if that fails.)
    VM_BUG_ON_PAGE(PageLocked(newpage), newpage)
    __set_page_locked(newpage)
    newpage.index = page.index
    newpage.mapping = page.mapping
    if PageSwapBacked(page):
        __SetPageSwapBacked(newpage)
    mapping = page_mapping(page)
    migrate_stage(MIGRATE_STAGE_MOVE, page, newpage, 0)
    if mapping == NULL:
        rc = migrate_page(mapping, newpage, page)
    elif a_ops(mapping).migratepage != NULL:
        rc = a_ops(mapping).migratepage(mapping, newpage, page)
    else:
        rc = fallback_migrate_page(mapping, newpage, page)
    if rc == 0:
        # Before anybody can map it, and unmap it again.
        mem_cgroup_migrate(page, newpage)
        migrate_stage(MIGRATE_STAGE_REMAP, page, newpage, 0)
        remove_migration_ptes(page, newpage)
    else:
        newpage.mapping = NULL
    unlock_page(newpage)
    return rc


def unmap_and_move_mapped(newpage, page):
    """Unmaps a locked page and moves it.  Lines 692-699.  Returns as unmap_and_move_locked."""
    migrate_stage(MIGRATE_STAGE_UNMAP, page, newpage, 0)
    try_to_unmap(page, 1)
    rc = -EAGAIN
    if not page_mapped(page):
        rc = move_to_new_page(newpage, page)
    if rc:
        migrate_stage(MIGRATE_STAGE_REMAP, page, newpage, rc)
        remove_migration_ptes(page, page)
    return rc


def unmap_and_move_locked(newpage, page):
    """The part of unmap_and_move under the page lock.  Lines 654-703.

    Returns 0, -EAGAIN, or another errno for good; in all but the first case the page is
    mapped again as before.
    """
    if page.mapping == NULL:
        # An orphan, taken out of its file while its buffers were busy: nothing but freeing those
        # frees it.  Or a page that has just been read into the swap cache, and not mapped yet.
        if PagePrivate(page):
            try_to_free_buffers(page)
        return -EAGAIN
    if not PageAnon(page):
        return unmap_and_move_mapped(newpage, page)
    # The walk that restores the PTEs needs the anon_vma, and once the page is unmapped
    # nothing else keeps it.  It is not freed before rcu_read_unlock if the page is mapped
    # after rcu_read_lock; if not, its last VMA may be gone and the anon_vma with it.  Then there is
    # nothing to move, or a page that only swap entries lead to: the swap cache says where it is,
    # and no PTE has to be restored (later kernels: commit 3fe2011ff51e).
    rcu_read_lock()
    rc = -EAGAIN
    if page_mapped(page):
        rc = unmap_and_move_mapped(newpage, page)
    elif PageSwapCache(page):
        rc = move_to_new_page(newpage, page)
    rcu_read_unlock()
    return rc


def lock_and_move(newpage, page, force):
    """Locks the page, waits for writeback, moves it, unlocks.  Lines 640-705.

    Without `force` a page that is locked or under writeback is left for another pass.
    Returns as unmap_and_move_locked.
    """
    if not trylock_page(page):
        if not force:
            return -EAGAIN
        lock_page(page)
    rc = -EAGAIN
    if not PageWriteback(page) or force:
        wait_on_page_writeback(page)
        rc = unmap_and_move_locked(newpage, page)
    unlock_page(page)
    return rc


def unmap_and_move(get_new_page, private, page, force):
    """Moves one isolated page to a page from `get_new_page`.  Lines 612-735.

    Returns 0 when it was moved, or was freed meanwhile; -ENOMEM without a new page;
    -EAGAIN when it is busy and stays on its list; another errno when it can never be
    moved.  But for -ENOMEM and -EAGAIN the page is off its list and put back.
    """
    result = NULL
    migrate_stage(MIGRATE_STAGE_NEW_PAGE, page, NULL, 0)
    newpage = get_new_page(page, private, addressof(result))
    if newpage == NULL:
        migrate_stage(MIGRATE_STAGE_DONE, page, NULL, -ENOMEM)
        return -ENOMEM
    rc = 0
    if page_count(page) == 1:
        # Freed from under us, so we are done.  (2.6.30 leaves it on the list, to be met
        # again by the next pass.)
        list_del(addressof(page.lru))
        putback_lru_page(page)
    elif mem_cgroup_prepare_migration(page, newpage) == -ENOMEM:
        rc = -ENOMEM
    else:
        migrate_stage(MIGRATE_STAGE_LOCK, page, newpage, 0)
        rc = lock_and_move(newpage, page, force)
        migrate_stage(MIGRATE_STAGE_PUTBACK, page, newpage, rc)
        if rc == 0:
            count_vm_event(PGMIGRATE_SUCCESS)
        # While it cannot be freed and be somebody else's.
        mem_cgroup_end_migration(page, newpage)
        if rc != -EAGAIN:
            # Moved: nobody refers to it any more and it is freed.  Failed: it has its
            # mappings back and returns to the LRU.
            list_del(addressof(page.lru))
            putback_lru_page(page)
    nid = page_to_nid(newpage)
    prefetch_upcoming()
    # To the LRU when it has become the page; freed otherwise.
    putback_lru_page(newpage)
    migrate_stage(MIGRATE_STAGE_DONE, page, newpage, rc)
    if result != NULL:
        result[0] = rc if rc else nid
    return rc


# ---- moving many -------------------------------------------------------------

def migrate_list(pagelist, get_new_page, private):
    """The passes of migrate_pages.  Returns how many pages were not moved, or -ENOMEM; what
    could not be moved now is still on the list.  Lines 765-790."""
    me = current()
    # Nothing is asked for ahead of the first copy.
    me.upcoming_line = PAGE_LINES
    nr_failed = 0
    retry = 1
    for attempt in range(NR_MIGRATE_PASSES):
        if retry == 0:
            break
        retry = 0
        node = pagelist.next
        while node != pagelist:
            # The page may leave the list.
            page = list_entry_page(node)
            node = node.next
            me.upcoming = list_entry_page(node) if node != pagelist else page
            rc = unmap_and_move(get_new_page, private, page, attempt > 2)
            if rc == -ENOMEM:
                return -ENOMEM
            if rc == -EAGAIN:
                retry += 1
                count_vm_event(PGMIGRATE_RETRY)
            elif rc != 0:
                nr_failed += 1
                count_vm_event(PGMIGRATE_FAIL)
    me.vm_events[PGMIGRATE_FAIL] += retry
    return nr_failed + retry


def migrate_pages(pagelist, get_new_page, private):
    """Moves a list of isolated pages, each to the page that `get_new_page` gives for it.

    Ten passes over what is still busy; from the fourth on locks and writeback are waited
    for.  In the end no page is isolated any more.  Returns how many pages were not moved,
    or -ENOMEM when there was no page to move to.  Lines 738-800.
    """
    me = current()
    swapwrite = me.flags & PF_SWAPWRITE
    me.flags |= PF_SWAPWRITE
    moved = me.vm_events[PGMIGRATE_SUCCESS]
    trace_mm_migrate_pages_start()
    rc = migrate_list(pagelist, get_new_page, private)
    trace_mm_migrate_pages(me.vm_events[PGMIGRATE_SUCCESS] - moved, rc)
    if not swapwrite:
        me.flags &= ~cast(u32, PF_SWAPWRITE)
    putback_lru_pages(pagelist)
    return rc


# ---- moving a range of frames ------------------------------------------------

def alloc_on_node(page, private, result):
    """A page on node `private`, as hotremove_migrate_alloc (mm/memory_hotplug.c)."""
    return alloc_pages_node(cast(i32, private), GFP_HIGHUSER_MOVABLE | __GFP_THISNODE, 0)


def migrate_pfn_range(pfn, end, get_new_page, private, done):
    """Moves up to NR_OFFLINE_AT_ONCE_PAGES movable pages of the frames from `pfn` to `end`, all of
    one zone, to where `get_new_page` says; leaves in *done the frame to go on with.  No mmap_sem: the
    pages are found by frame, as when memory is taken offline (do_migrate_range).

    Returns as migrate_pages.
    """
    INIT_LIST_HEAD(addressof(pagelist))
    migrate_begin()
    done[0] = isolate_lru_pages(pfn, end, NR_OFFLINE_AT_ONCE_PAGES, addressof(pagelist))
    rc = 0
    if not list_empty(addressof(pagelist)):
        rc = migrate_pages(addressof(pagelist), get_new_page, private)
    migrate_end()
    return rc


# ---- what has no pages to move -------------------------------------------------

def migrate_vmas(mm, to_nodes, from_nodes, flags):
    """Has the owners of areas that know how to move their memory do it.  Returns 0, or the first
    error.  Lines 1102-1118, but for their end: they leave the last area out, and follow a NULL in
    an empty address space.  Holds mmap_sem for reading."""
    rc = 0
    vma = mm.mmap
    while vma != NULL and rc == 0:
        if vma_ops(vma).migrate != NULL:
            rc = vma_ops(vma).migrate(vma, to_nodes, from_nodes, flags)
        vma = vma.vm_next
    return rc
