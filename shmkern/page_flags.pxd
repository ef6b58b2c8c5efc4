# SPDX-License-Identifier: GPL-2.0-only
# Tests and changes of struct page flags, with the names of
# include/linux/page-flags.h: PageX reads, SetPageX and ClearPageX are atomic,
# TestSet and TestClear return what the bit was, a __ before the name means that
# nobody else changes the flags yet (or any more).  They may look, though: whoever frees
# a page asks its neighbour whether it is PG_buddy.

from shmkern.atomics cimport u64, READ_ONCE64, smp_load_acquire64, WRITE_ONCE64, fetch_or64, fetch_and64
from shmkern.current cimport *

cdef inline bint PageLocked(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_locked)) != 0

cdef inline void SetPageError(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_error))

cdef inline void ClearPageError(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_error))

cdef inline bint PageReferenced(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_referenced)) != 0

cdef inline void SetPageReferenced(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_referenced))

cdef inline void ClearPageReferenced(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_referenced))

cdef inline bint TestClearPageReferenced(Page* page) noexcept nogil:
    return (fetch_and64(&page.flags, ~(<u64>1 << PG_referenced)) & (<u64>1 << PG_referenced)) != 0

# Acquire: what was read into the page before the bit was set is there (Linux commit 0ed361dec369).
cdef inline bint PageUptodate(Page* page) noexcept nogil:
    return (smp_load_acquire64(&page.flags) & (<u64>1 << PG_uptodate)) != 0

cdef inline void SetPageUptodate(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_uptodate))

cdef inline bint PageDirty(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_dirty)) != 0

cdef inline void SetPageDirty(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_dirty))

cdef inline void ClearPageDirty(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_dirty))

cdef inline bint TestSetPageDirty(Page* page) noexcept nogil:
    return (fetch_or64(&page.flags, (<u64>1 << PG_dirty)) & (<u64>1 << PG_dirty)) != 0

cdef inline bint TestClearPageDirty(Page* page) noexcept nogil:
    return (fetch_and64(&page.flags, ~(<u64>1 << PG_dirty)) & (<u64>1 << PG_dirty)) != 0

cdef inline bint PageLRU(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_lru)) != 0

cdef inline void SetPageLRU(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_lru))

cdef inline void ClearPageLRU(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_lru))

cdef inline bint PageActive(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_active)) != 0

cdef inline void SetPageActive(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_active))

cdef inline void ClearPageActive(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_active))

cdef inline bint TestClearPageActive(Page* page) noexcept nogil:
    return (fetch_and64(&page.flags, ~(<u64>1 << PG_active)) & (<u64>1 << PG_active)) != 0

cdef inline bint PageReserved(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_reserved)) != 0

cdef inline void __SetPageReserved(Page* page) noexcept nogil:
    WRITE_ONCE64(&page.flags, page.flags | (<u64>1 << PG_reserved))

cdef inline void __ClearPageReserved(Page* page) noexcept nogil:
    page.flags &= ~(<u64>1 << PG_reserved)

cdef inline bint PagePrivate(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_private)) != 0

cdef inline void SetPagePrivate(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_private))

cdef inline void ClearPagePrivate(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_private))

cdef inline bint PageWriteback(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_writeback)) != 0

cdef inline bint TestSetPageWriteback(Page* page) noexcept nogil:
    return (fetch_or64(&page.flags, (<u64>1 << PG_writeback)) & (<u64>1 << PG_writeback)) != 0

cdef inline bint PageSwapCache(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_swapcache)) != 0

cdef inline void SetPageSwapCache(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_swapcache))

cdef inline void ClearPageSwapCache(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_swapcache))

cdef inline bint PageBuddy(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_buddy)) != 0

cdef inline void __SetPageBuddy(Page* page) noexcept nogil:
    WRITE_ONCE64(&page.flags, page.flags | (<u64>1 << PG_buddy))

cdef inline void __ClearPageBuddy(Page* page) noexcept nogil:
    WRITE_ONCE64(&page.flags, page.flags & ~(<u64>1 << PG_buddy))

cdef inline bint PageSwapBacked(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_swapbacked)) != 0

cdef inline void __SetPageSwapBacked(Page* page) noexcept nogil:
    WRITE_ONCE64(&page.flags, page.flags | (<u64>1 << PG_swapbacked))

cdef inline bint PageUnevictable(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_unevictable)) != 0

cdef inline void SetPageUnevictable(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_unevictable))

cdef inline void ClearPageUnevictable(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_unevictable))

cdef inline bint PageMlocked(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_mlocked)) != 0

cdef inline void SetPageMlocked(Page* page) noexcept nogil:
    fetch_or64(&page.flags, (<u64>1 << PG_mlocked))

cdef inline void ClearPageMlocked(Page* page) noexcept nogil:
    fetch_and64(&page.flags, ~(<u64>1 << PG_mlocked))

cdef inline bint TestClearPageMlocked(Page* page) noexcept nogil:
    return (fetch_and64(&page.flags, ~(<u64>1 << PG_mlocked)) & (<u64>1 << PG_mlocked)) != 0

cdef inline bint PagePageTable(Page* page) noexcept nogil:
    return (READ_ONCE64(&page.flags) & (<u64>1 << PG_pagetable)) != 0

cdef inline void __SetPagePageTable(Page* page) noexcept nogil:
    WRITE_ONCE64(&page.flags, page.flags | (<u64>1 << PG_pagetable))

cdef inline void __ClearPagePageTable(Page* page) noexcept nogil:
    WRITE_ONCE64(&page.flags, page.flags & ~(<u64>1 << PG_pagetable))
