# SPDX-License-Identifier: GPL-2.0-only
"""What must hold of slab caches: their lists of slabs, the free objects in these, what waits for RCU.

Steps of audit.audit(), which says what they may take for granted.
"""
import numpy as np

from shmkern import layout

C = layout.constants
BASE = C["DIRECT_MAP_BASE"]
PAGE_SIZE = C["PAGE_SIZE"]
POISON_FREE_WORD = int.from_bytes(bytes([C["POISON_FREE"]]) * 8, "little")


def cache_name(m, index):
    """The name of a cache, or its number."""
    return m.kernel.caches["name"][index].decode("ascii", "replace") or f"cache {index}"


def find_caches(m):
    """Learns the object sizes of the caches that the audit knows.  Kernel's pointers to
    them lead into Kernel.caches, and the objects are large enough for their structs."""
    addresses = m.cache_addresses()
    known = [("VmAreaStruct", "vm_area_cachep"), ("MmStruct", "mm_cachep"), ("AnonVma", "anon_vma_cachep"),
             ("Mempolicy", "policy_cachep"), ("SpNode", "sp_cachep"),
             ("RadixTreeNode", "radix_tree_node_cachep"), ("Inode", "inode_cachep"),
             ("File", "filp_cachep"), ("FilesStruct", "files_cachep"), ("BufferHead", "buffer_head_cachep")]
    if m.kernel.page_cgroup:
        known += [("MemCgroup", "mem_cgroup_cachep"), ("MemCgroupPerZone", "mem_cgroup_per_zone_cachep")]
    for struct, field in known:
        if m.kernel[field] not in addresses:
            m.report.add("slab", f"kernel.{field} is no cache", address=m.kernel[field])
            continue
        index = addresses.index(m.kernel[field])
        size = int(m.kernel.caches["object_size"][index])
        m.cache_of[struct] = index
        if not layout.sizeof(struct) <= size <= PAGE_SIZE or size % 8:
            m.report.add("slab", f"{cache_name(m, index)}: object_size does not fit {struct}",
                         expected=layout.sizeof(struct), found=size)
        else:
            m.object_size[struct] = size


def find_free_objects(m):
    """Each slab's free list and inuse count make up all its objects, none twice, each filled
    with POISON_FREE but for the link; no free object was written to since.  The slabs of a
    cache add up to its counters, its partial list has those with free objects, and the pages
    without a cache are on slabs_free."""
    kernel, slabs = m.kernel, m.slabs
    caches = m.cache_addresses()
    m.report.each((slabs["cache"] != 0) & ~np.isin(slabs["cache"], caches), "slab", lambda page: (
        "a slab is that of no cache", {"address": m.slab_base + page * PAGE_SIZE, "found": hex(slabs["cache"][page])}))
    for index, address in enumerate(caches):
        cache, name = kernel.caches[index], cache_name(m, index)
        size = int(cache["object_size"])
        if not 16 <= size <= PAGE_SIZE or size % 8:
            m.report.add("slab", f"{name}: object_size is out of range", found=size)
            continue
        mine = np.flatnonzero(slabs["cache"] == address).tolist()
        found = {page: free_objects_of_slab(m, name, size, page) for page in mine}
        free = [address for objects in found.values() for address in objects]
        for counter, expected in (("nr_objects", len(mine) * (PAGE_SIZE // size)), ("nr_free", len(free))):
            if cache[counter] != expected:
                m.report.add("slab", f"{name}: {counter} is not what its slabs add up to", expected=expected,
                             found=cache[counter])
        partial = address + layout.offsetof("KmemCache", "slabs_partial")
        check_slab_list(m, f"{name}: slabs_partial", partial, [page for page in mine if found[page]])
        check_object_poison(m, name, size, np.array(free, np.uint64))
    unused = np.flatnonzero(slabs["cache"] == 0).tolist()
    check_slab_list(m, "kernel.slabs_free", kernel.address + layout.offsetof("Kernel", "slabs_free"), unused)
    m.report.each((m.arena[unused] != POISON_FREE_WORD).any(axis=1), "slab", lambda at: (
        "a free page of the slab arena was written to", {"address": m.slab_base + unused[at] * PAGE_SIZE}))


def free_objects_of_slab(m, name, size, page):
    """The addresses on a slab's free list, as far as it can be followed."""
    found, address = [], int(m.slabs["freelist"][page])
    m.object_size["free"] = size
    while address:
        fault = "is on a free list already" if address in m.free_objects else m.object_fault(address, "free")
        if not fault and (address - m.slab_base) // PAGE_SIZE != page:
            fault = "lies in another slab"
        if fault:
            m.report.add("slab", f"{name}: an entry of a free list {fault}", address=address)
            break
        found.append(address)
        m.free_objects.add(address)
        address = m.u64(address)
    if len(found) + m.slabs["inuse"][page] != PAGE_SIZE // size:
        m.report.add("slab", f"{name}: a slab's free list is not as long as inuse says",
                     address=m.slab_base + page * PAGE_SIZE, expected=PAGE_SIZE // size - int(m.slabs["inuse"][page]),
                     found=len(found))
    return found


def check_slab_list(m, name, head, pages):
    """A list of slabs is whole and has the slabs of these arena pages."""
    links = {m.kernel.slabs + page * layout.sizeof("Slab"): page for page in range(len(m.slabs))}
    seen, before, at = [], head, m.u64(head)
    while at != head:
        if at not in links or links[at] in seen or m.slabs["list"]["prev"][links[at]] != before:
            m.report.add("slab", f"{name} is broken", address=before, found=hex(at))
            return
        seen.append(links[at])
        before, at = at, int(m.slabs["list"]["next"][links[at]])
    if m.u64(head + 8) != before:
        m.report.add("slab", f"{name} is broken", address=head, expected=hex(before), found=hex(m.u64(head + 8)))
    for page in set(pages).symmetric_difference(seen):
        m.report.add("slab", f"{name} has a slab it should not have" if page in seen else f"{name} lacks a slab",
                     address=m.slab_base + page * PAGE_SIZE)


def check_object_poison(m, name, size, addresses):
    """All words of a free object but its first are POISON_FREE."""
    if not len(addresses):
        return
    words = np.arange(1, size // 8, dtype=np.uint64)
    contents = m.words[((addresses - BASE) >> 3)[:, None] + words]
    m.report.each((contents != POISON_FREE_WORD).any(axis=1), "slab", lambda i: (
        f"{name}: a free object was written to",
        {"address": addresses[i], "expected": hex(POISON_FREE_WORD),
         "found": hex(contents[i][contents[i] != POISON_FREE_WORD][0])}))


def rcu_object(m, head):
    """(struct, address) of the object that an entry of the RCU queue lies in; what is freed by RCU
    are anon_vmas, inodes and nodes of page trees.  (None, why not) when it lies in none of them."""
    for struct in m.rcu_pending:
        address = head - layout.offsetof(struct, "rcu")
        fault = m.object_fault(address, struct)
        if not fault:
            return struct, address
    return None, fault


def find_rcu_pending(m):
    """The RCU queue, from rcu_head to rcu_tail, has rcu_pending entries, each inside the object
    that it is going to free, in the order of their epochs; and nobody is freeing any."""
    kernel = m.kernel
    cachep = {"RadixTreeNode": kernel.radix_tree_node_cachep, "Inode": kernel.inode_cachep,
              "AnonVma": kernel.anon_vma_cachep}
    m.rcu_pending, head, last, epoch = {struct: set() for struct in cachep}, kernel.rcu_head, 0, 0
    while head:
        struct, address = rcu_object(m, head)
        fault = address if struct is None else \
            "is queued twice" if address in m.rcu_pending[struct] else None
        if fault:
            m.report.add("rcu", f"an entry of the RCU queue {fault}", address=head)
            return
        entry = layout.struct("RcuHead", head)
        if (entry.object, entry.cache) != (address, cachep[struct]):
            m.report.add("rcu", f"an entry of the RCU queue frees something else than the {struct} it lies in",
                         address=head, found=hex(entry.object), expected=hex(address))
        # Readers are waited for by epoch, and the queue is cut where they begin.
        if not epoch <= entry.epoch <= kernel.rcu_epoch:
            m.report.add("rcu", "an entry of the RCU queue is of an epoch before that of the one ahead, or of none yet",
                         address=head, expected=f"{epoch} to {kernel.rcu_epoch}", found=entry.epoch)
        m.rcu_pending[struct].add(address)
        last, head, epoch = head, entry.next, entry.epoch
    if last != kernel.rcu_tail:
        m.report.add("rcu", "rcu_tail is not the end of the RCU queue", expected=hex(last),
                     found=hex(kernel.rcu_tail))
    queued = sum(len(addresses) for addresses in m.rcu_pending.values())
    if queued != kernel.rcu_pending:
        m.report.add("rcu", "the RCU queue is not as long as rcu_pending", expected=queued, found=kernel.rcu_pending)
    if kernel.rcu_freers:
        m.report.add("rcu", "rcu_freers is not 0, and nobody is in the kernel", expected=0, found=kernel.rcu_freers)


def check_slab_usage(m):
    """Every object that is not free was reached: a VMA by its address space, an address
    space by init_mmlist or a task, an anon_vma by a VMA or the RCU queue, a policy by a task, a VMA
    or a range of an inode's, such a range by the inode, that by the list or the RCU queue, an open file
    by a descriptor or a VMA, a node of a page tree by the tree, a task's preloads or the RCU queue, a
    buffer by its page, a group by the list.  More is a leak."""
    reached = {"VmAreaStruct": len(m.vma), "MmStruct": len(m.mm),
               "AnonVma": len(m.rcu_pending["AnonVma"].union(m.anon_vmas)), "Mempolicy": len(m.policies),
               "SpNode": len(m.shared_policies),
               "RadixTreeNode": len(m.tree_nodes | m.rcu_pending["RadixTreeNode"]),
               "Inode": len(m.inode) + len(m.rcu_pending["Inode"]),
               "File": len(m.file_address), "FilesStruct": len(m.files), "BufferHead": m.nr_buffers,
               "MemCgroup": len(m.mem_cgroup), "MemCgroupPerZone": len(set(m.mem_cgroup_zones))}
    for struct, index in m.cache_of.items():
        cache = m.kernel.caches[index]
        live = int(cache["nr_objects"]) - int(cache["nr_free"])
        if live != reached[struct]:
            m.report.add("slab", f"{cache_name(m, index)}: objects in use are not those that can "
                         "be reached", expected=reached[struct], found=live)
