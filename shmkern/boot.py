# SPDX-License-Identifier: GPL-2.0-only
"""Boot: how the block is divided, and the kernel's first moments (init/main.c,
mm/bootmem.c).

The block is: header page, struct Kernel, then each table from a page boundary on, then
the slab arena, then all frames.  Everything up to the frames is metadata, which the host
gives at boot; a frame is only touched when it is used.  Behind the block come addresses for
trace rings, which have memory from the first trace on.
"""
from cython import NULL, address as addressof, cast, declare, pointer, sizeof


def align_up(offset, alignment):
    """`offset` rounded up."""
    return (offset + alignment - 1) // alignment * alignment


def carve(nr_nodes, frames_per_node, max_tasks, memcg, layout):
    """Fills `layout` for a machine of that shape, with or without memory control groups."""
    nr_frames = nr_nodes * frames_per_node
    layout.tasks = align_up(PAGE_SIZE + sizeof(Kernel), PAGE_SIZE)
    layout.zones = align_up(layout.tasks + max_tasks * sizeof(Task), PAGE_SIZE)
    layout.nodes = align_up(layout.zones + nr_nodes * sizeof(Zone), PAGE_SIZE)
    layout.wait_table = align_up(layout.nodes + nr_nodes * sizeof(PgData), PAGE_SIZE)
    layout.mem_map = align_up(layout.wait_table + WAIT_TABLE_SIZE * sizeof(WaitQueueHead), PAGE_SIZE)
    layout.page_cgroup = align_up(layout.mem_map + nr_frames * sizeof(Page), PAGE_SIZE)
    layout.swap_maps = align_up(layout.page_cgroup + (nr_frames * sizeof(PageCgroup) if memcg else 0), PAGE_SIZE)
    layout.slabs = align_up(layout.swap_maps + nr_frames * SWAP_SLOTS_PER_FRAME * 2, PAGE_SIZE)
    # Room for 24 KiB of kernel objects a task; for an area every eight frames, which a program
    # that unmaps every second page of a small machine comes near to; and for a page tree with
    # eight pages a node, or the buffers of pages in 4 KiB blocks.
    arena = align_up(max_tasks * 24576 + nr_frames * 96, PAGE_SIZE)
    layout.slab = align_up(layout.slabs + arena // PAGE_SIZE * sizeof(Slab), PAGE_SIZE)
    layout.slab_end = layout.slab + arena
    # A 2 MiB boundary lets the host back frames with huge pages if it likes to.
    layout.frames = align_up(layout.slab_end, cast(u64, 2) << 20)
    layout.end = layout.frames + (nr_frames + nr_nodes * DEVICE_FRAMES) * PAGE_SIZE
    layout.trace_end = layout.end + max_tasks * TRACE_RING_EVENTS_MAX * sizeof(TraceEvent)


def start_kernel(nr_nodes, frames_per_node, max_tasks, hung_task_timeout_ns, poison, memcg, memoryless, movable):
    """Makes the kernel in a block of zeros, and leaves it without tasks.  The caller is the
    boot CPU, slot 0, until it calls set_current(NULL)."""
    carve(nr_nodes, frames_per_node, max_tasks, memcg, addressof(layout))
    k = kernel()
    k.nr_nodes = nr_nodes
    k.frames_per_node = frames_per_node
    k.max_pfn = nr_nodes * frames_per_node
    k.max_tasks = max_tasks
    k.hung_task_timeout_ns = hung_task_timeout_ns
    k.poison = poison
    k.mem_map = cast(pointer(Page), DIRECT_MAP_BASE + layout.mem_map)
    k.tasks = cast(pointer(Task), DIRECT_MAP_BASE + layout.tasks)
    k.zones = cast(pointer(Zone), DIRECT_MAP_BASE + layout.zones)
    k.nodes = cast(pointer(PgData), DIRECT_MAP_BASE + layout.nodes)
    k.wait_table = cast(pointer(WaitQueueHead), DIRECT_MAP_BASE + layout.wait_table)
    k.frames_base = DIRECT_MAP_BASE + layout.frames
    k.swap_maps = cast(pointer(u16), DIRECT_MAP_BASE + layout.swap_maps)
    k.swap_maps_size = k.max_pfn * SWAP_SLOTS_PER_FRAME
    k.swapper_space.a_ops = AOPS_SWAP
    k.page_cluster = PAGE_CLUSTER
    k.slabs = cast(pointer(Slab), DIRECT_MAP_BASE + layout.slabs)
    INIT_LIST_HEAD(addressof(k.slabs_free))
    k.trace_rings = DIRECT_MAP_BASE + layout.end
    k.slab_base = DIRECT_MAP_BASE + layout.slab
    k.slab_next = k.slab_base
    k.slab_end = DIRECT_MAP_BASE + layout.slab_end
    k.rcu_epoch = 1
    INIT_LIST_HEAD(addressof(k.init_mmlist))
    for cpu in range(max_tasks):
        k.tasks[cpu].cpu = cpu
    k.cpusets[0].in_use = 1
    k.cpusets[0].parent = -1
    k.cpusets[0].mems_allowed = NODE_MASK_ALL
    k.tasks[0].mems_allowed = NODE_MASK_ALL
    set_current(k.tasks)
    k.vm_area_cachep = kmem_cache_create(b"vm_area_struct", sizeof(VmAreaStruct))
    k.mm_cachep = kmem_cache_create(b"mm_struct", sizeof(MmStruct))
    k.anon_vma_cachep = kmem_cache_create(b"anon_vma", sizeof(AnonVma))
    k.policy_cachep = kmem_cache_create(b"mempolicy", sizeof(Mempolicy))
    k.sp_cachep = kmem_cache_create(b"shared_policy_node", sizeof(SpNode))
    if memcg:
        mem_cgroup_init(cast(pointer(PageCgroup), DIRECT_MAP_BASE + layout.page_cgroup))
    k.radix_tree_node_cachep = kmem_cache_create(b"radix_tree_node", sizeof(RadixTreeNode))
    k.inode_cachep = kmem_cache_create(b"inode", sizeof(Inode))
    k.filp_cachep = kmem_cache_create(b"filp", sizeof(File))
    k.files_cachep = kmem_cache_create(b"files", sizeof(FilesStruct))
    k.buffer_head_cachep = kmem_cache_create(b"buffer_head", sizeof(BufferHead))
    INIT_LIST_HEAD(addressof(k.inodes))
    for nid in range(nr_nodes):
        free_area_init_node(nid, node_isset(nid, memoryless), node_isset(nid, movable))
    setup_per_zone_pages_min()
    setup_per_zone_inactive_ratio()
    zero = alloc_pages_node(0, GFP_KERNEL | __GFP_ZERO, 0)
    BUG_ON(zero == NULL)
    __SetPageReserved(zero)
    k.zero_pfn = page_to_pfn(zero)
    for nid in range(nr_nodes):
        k.device_free[nid] = (cast(u64, 1) << DEVICE_FRAMES) - 1
    # init is to be pid 1.
    k.next_pid = 0
    fold_vm_events(k.tasks)


def block_size(nr_nodes, frames_per_node, max_tasks, memcg):
    """Bytes of the block before the first frame, bytes of all of it, and bytes of addresses with
    those that trace rings may take."""
    layout = declare(BootLayout)
    carve(nr_nodes, frames_per_node, max_tasks, memcg, addressof(layout))
    return layout.frames, layout.end, layout.trace_end


def boot(nr_nodes, frames_per_node, max_tasks, hung_task_timeout_ns, poison, memcg, memoryless, movable):
    """start_kernel for Python.  The block is mapped and zero, and so is the per-CPU page."""
    start_kernel(nr_nodes, frames_per_node, max_tasks, hung_task_timeout_ns, poison, memcg, memoryless, movable)
    set_current(cast(pointer(Task), NULL))


def claim_task():
    """alloc_task for the supervisor: the slot's number, or -1 when all are taken."""
    task = alloc_task()
    return -1 if task == NULL else task.cpu


def announce_task(cpu, pid, os_pid):
    """announce_process for Python: whether the slot is still that task's."""
    return announce_process(addressof(kernel().tasks[cpu]), pid, os_pid)


def release_task_slot(cpu):
    """release_task for the supervisor, of a slot that never got more than a pid.  Not by two stores of
    Python's: on aarch64 others could claim the slot by the second and then lose their pid to the first."""
    release_task(addressof(kernel().tasks[cpu]))


def panic_state():
    """The header's `panic`; if that is 2, the caller sees the whole record."""
    return kernel_panicked()


def record_lost_task(pid, os_pid, text):
    """Stops the machine for a task whose process `os_pid` is dead, unless it has stopped already.  For the
    supervisor, beside whom a task may be doing that as well: then one of them has the record for himself."""
    words = declare(bytes, text.encode())
    record_panic(PANIC_LOST_TASK, pid, os_pid, b"", 0, words, NULL)


def struct_sizes():
    """What the compiler has made of the structs, to check layout.py against."""
    return {"Page": sizeof(Page), "Zone": sizeof(Zone), "PgData": sizeof(PgData),
            "KmemCache": sizeof(KmemCache), "Slab": sizeof(Slab), "AnonVma": sizeof(AnonVma),
            "Mempolicy": sizeof(Mempolicy), "SpNode": sizeof(SpNode), "Cpuset": sizeof(Cpuset),
            "VmAreaStruct": sizeof(VmAreaStruct), "MmStruct": sizeof(MmStruct),
            "MemCgroup": sizeof(MemCgroup), "MemCgroupPerZone": sizeof(MemCgroupPerZone), "PageCgroup": sizeof(PageCgroup),
            "RadixTreeNode": sizeof(RadixTreeNode), "AddressSpace": sizeof(AddressSpace),
            "Inode": sizeof(Inode), "File": sizeof(File), "FilesStruct": sizeof(FilesStruct),
            "BufferHead": sizeof(BufferHead), "Task": sizeof(Task), "Kernel": sizeof(Kernel),
            "RwSem": sizeof(RwSem), "RcuHead": sizeof(RcuHead), "TraceEvent": sizeof(TraceEvent), "Pagevec": sizeof(Pagevec),
            "block_header": sizeof(block_header)}
