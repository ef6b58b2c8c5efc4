# SPDX-License-Identifier: GPL-2.0-only
# The structs of the machine, as include/linux/mm_types.h and mmzone.h have them
# (2.6.30).  They stand in one file because they point at each other.
#
# layout.py reads this file to give numpy the same structs, so keep to its plain
# form: one field a line, `type name` or `type name[constant]`.  Every field is
# naturally aligned and the order is the layout.

from shmkern.atomics cimport u8, u16, u32, u64, i32, i64

cdef enum:
    PAGE_SHIFT = 12
    PAGE_SIZE = 4096
    MAX_NUMNODES = 64
    MAX_ORDER = 11
    NR_CPUS = 1024             # upper bound; a machine boots with its own max_tasks
    CPU_MASK_WORDS = 16        # NR_CPUS / 64
    PAGEVEC_SIZE = 14
    TLB_ENTRIES = 1024
    TASK_COMM_LEN = 32
    HELD_LOCKS_MAX = 24
    WAIT_TABLE_BITS = 10
    WAIT_TABLE_SIZE = 1024
    SLAB_CACHES_MAX = 16
    SLAB_NAME_LEN = 24
    TRACE_RING_EVENTS_MAX = 65536
    RADIX_TREE_MAP_SHIFT = 6
    RADIX_TREE_MAP_SIZE = 64
    RADIX_TREE_MAX_TAGS = 2
    RADIX_TREE_MAX_PATH = 6
    RADIX_TREE_PRELOAD_SIZE = 11   # the most nodes that one insertion can need
    NR_OPEN = 64               # file descriptors of a task

# Page flags, by bit number (include/linux/page-flags.h).
cdef enum:
    PG_locked = 0
    PG_error = 1
    PG_referenced = 2
    PG_uptodate = 3
    PG_dirty = 4
    PG_lru = 5
    PG_active = 6
    PG_checked = 8
    PG_reserved = 10
    PG_private = 11
    PG_writeback = 12
    PG_swapcache = 13
    PG_mappedtodisk = 14
    PG_reclaim = 15
    PG_buddy = 16
    PG_swapbacked = 17
    PG_unevictable = 18
    PG_mlocked = 19
    PG_waiters = 20            # somebody sleeps on this page's lock or writeback
    PG_pagetable = 21          # the frame holds page-table entries
    NODES_PGSHIFT = 58         # the node, in the top six bits of the flags
    PAGE_MAPPING_ANON = 1

# enum lru_list
cdef enum:
    LRU_INACTIVE_ANON = 0
    LRU_ACTIVE_ANON = 1
    LRU_INACTIVE_FILE = 2
    LRU_ACTIVE_FILE = 3
    LRU_UNEVICTABLE = 4
    NR_LRU_LISTS = 5

# Per-zone counters; the first five follow lru_list.
# enum zone_stat_item
cdef enum:
    NR_INACTIVE_ANON = 0
    NR_ACTIVE_ANON = 1
    NR_INACTIVE_FILE = 2
    NR_ACTIVE_FILE = 3
    NR_UNEVICTABLE = 4
    NR_FREE_PAGES = 5
    NR_ANON_PAGES = 6          # mapped anonymous pages
    NR_FILE_MAPPED = 7
    NR_FILE_PAGES = 8
    NR_PAGETABLE = 9
    NR_MLOCK = 10              # PG_mlocked pages
    NR_FILE_DIRTY = 11
    NR_WRITEBACK = 12
    NR_VM_ZONE_STAT_ITEMS = 13
    VM_STAT_STRIDE = 16        # counters of one zone in Task.vm_stat_diff
    VM_STAT_DIFFS = 1024       # MAX_NUMNODES * VM_STAT_STRIDE

# enum zone_watermarks
cdef enum:
    WMARK_MIN = 0
    WMARK_LOW = 1
    WMARK_HIGH = 2
    NR_WMARK = 3

# Events, counted per task without atomics and summed by vmstat.
# enum vm_event_item
cdef enum:
    PGALLOC = 0
    PGFREE = 1
    PGFAULT = 2
    PGFAULT_ANON = 3
    PGFAULT_COW = 4
    PGFAULT_REUSE = 5
    PGFAULT_ZERO = 6
    PGFAULT_SEGV = 7
    PGFAULT_OOM = 8
    PGMIGRATE_SUCCESS = 9
    PGMIGRATE_FAIL = 10        # gave up: permanent failure, or busy after the tenth pass
    PGMIGRATE_RETRY = 11       # one -EAGAIN of one pass
    MIGRATION_ENTRY_WAIT = 12  # a task met a migration entry and waited
    MIGRATION_ENTRY_RETRY = 13 # met one whose page was just being freed; faulted again
    TLB_MISS = 14
    TLB_SHOOTDOWN = 15         # invalidations posted to a CPU, by the flusher
    TLB_ACK_WAIT = 16          # of these, how often that CPU was inside an access
    ACCESSES = 17
    SPIN_PARK = 18             # a spinlock's bounded spin ended in a futex
    PAGE_LOCK_WAIT = 19
    RWSEM_WAIT = 20
    FUTEX_WAIT = 21            # a wait went to sleep: one system call
    PGMAJFAULT = 22            # a fault that read from the host
    PGFAULT_SIGBUS = 23
    PGPGIN = 24                # pages read from host files
    PGPGOUT = 25               # and written
    PSWPIN = 26
    PSWPOUT = 27
    PGACTIVATE = 28
    PGDEACTIVATE = 29
    PGSCAN_KSWAPD = 30
    PGSCAN_DIRECT = 31
    PGSTEAL_KSWAPD = 32
    PGSTEAL_DIRECT = 33
    ALLOCSTALL = 34            # direct reclaims
    NR_VM_EVENTS = 40

cdef enum:
    NR_WAIT_BUCKETS = 128      # of a histogram of ns, four to an octave

cdef struct ListHead:
    ListHead* next
    ListHead* prev

# 0 when free; else the holder's CPU number + 1, with SPIN_WAITERS when somebody
# is parked on the word.
cdef struct Spinlock:
    u32 word

cdef struct WaitQueueHead:
    u32 sequence

cdef struct CondVar:
    u32 sequence
    u32 waiters

cdef struct SeqCount:
    u32 sequence

# Readers in the low bits; see locks.pxd for the rest of the word.
cdef struct RwSem:
    u32 word
    u32 sequence
    u32 owner                  # CPU number + 1 of the writer
    u32 writers_waiting

cdef struct RcuHead:
    RcuHead* next
    void* object               # to free, to this cache
    KmemCache* cache
    u64 epoch

# One physical frame: 64 bytes, one cache line.
cdef struct Page:
    u64 flags
    i32 _count
    i32 _mapcount              # mappings - 1, so -1 when unmapped
    void* mapping              # AddressSpace*, or AnonVma* + PAGE_MAPPING_ANON
    u64 index                  # offset in the mapping, in pages
    u64 private                # PG_buddy: the order
    ListHead lru
    u32 ptl                    # PG_pagetable: the split page-table lock
    u32 _unused

cdef struct FreeArea:
    ListHead free_list
    u64 nr_free

# How many of the pages looked at by reclaim were in use; anonymous, file.
cdef struct ZoneReclaimStat:
    u64 recent_rotated[2]
    u64 recent_scanned[2]

cdef struct Zone:
    Spinlock lock
    i32 node
    u64 zone_start_pfn
    u64 spanned_pages
    u64 present_pages          # 0 for a node without memory, or offline
    u64 watermark[3]           # NR_WMARK
    FreeArea free_area[11]     # MAX_ORDER
    u64 vm_stat[13]            # NR_VM_ZONE_STAT_ITEMS; without the CPUs' vm_stat_diff
    ZoneReclaimStat reclaim_stat
    Spinlock lru_lock
    u32 isolated               # going offline: what is freed stays free
    ListHead lru[5]            # NR_LRU_LISTS
    u64 inactive_ratio         # active anonymous pages for each inactive one
    u64 _pad1[4]

cdef struct PgData:
    i32 node_id
    u32 memoryless             # never had memory
    Zone* node_zone
    u32 movable                # only what moves may be here
    u32 _pad0
    i32 zonelist[64]           # MAX_NUMNODES, nearest first, -1 past the end
    i32 kswapd_pid             # 0: none
    u32 kswapd_wait            # 1: kswapd is wanted; it sleeps on the word while it is 0

cdef struct KmemCache:
    Spinlock lock
    u32 object_size
    ListHead slabs_partial     # of Slab.list: those with free objects
    u64 nr_objects             # in all its slabs
    u64 nr_free
    char name[24]              # SLAB_NAME_LEN

# One page of the slab arena.
cdef struct Slab:
    ListHead list              # in slabs_partial or Kernel.slabs_free; in none when full
    KmemCache* cache           # NULL when it is no cache's
    void* freelist             # each free object's first word is the next one's address
    u32 inuse                  # objects handed out
    u32 _pad0

cdef struct AnonVma:
    Spinlock lock
    u32 _pad0
    ListHead head              # of VmAreaStruct.anon_vma_node
    RcuHead rcu

# Counts bytes against a limit, its own and its parents' (include/linux/res_counter.h).
cdef struct ResCounter:
    Spinlock lock
    u32 _pad0
    u64 usage
    u64 max_usage
    u64 limit
    u64 failcnt                # charges that the limit refused
    ResCounter* parent

# enum mem_cgroup_stat_index: bytes, then pages that came and went
cdef enum:
    MEM_CGROUP_STAT_CACHE = 0
    MEM_CGROUP_STAT_RSS = 1
    MEM_CGROUP_STAT_PGPGIN_COUNT = 2
    MEM_CGROUP_STAT_PGPGOUT_COUNT = 3
    MEM_CGROUP_STAT_NSTATS = 4
    MEM_CGROUP_NAME_LEN = 32

cdef struct MemCgroup:
    ResCounter res             # with the children's
    ListHead list              # in Kernel.mem_cgroups
    MemCgroup* parent          # NULL: the root
    u64 css_refcnt             # 1, and one for each page charged or being charged
    i32 id
    u32 removing               # takes nobody in any more
    u64 nr_children
    u64 nr_mms                 # address spaces that are charged to it
    i32 last_scanned_child     # the group below it (or itself) that was reclaimed from last
    u32 _pad0
    u64 reclaim_progress       # how often somebody has made room for a charge below its limit
    u64 stat[4]                # MEM_CGROUP_STAT_NSTATS, without the children's
    char name[32]              # MEM_CGROUP_NAME_LEN
    MemCgroupPerZone* nodeinfo[64]  # MAX_NUMNODES, each node has one zone; NULL for the root

# A group's share of a zone's LRU lists, within lru_lock.
cdef struct MemCgroupPerZone:
    ListHead lists[5]          # NR_LRU_LISTS, of PageCgroup.lru
    u64 count[5]
    ZoneReclaimStat reclaim_stat

cdef enum:
    PCG_CACHE = 1              # charged as page cache
    PCG_USED = 2               # charged
    PCG_MIGRATION = 4          # in the air: unmapping does not uncharge it

# Who is charged for a frame; one for each struct page.
cdef struct PageCgroup:
    Spinlock lock
    u32 flags                  # PCG_*
    MemCgroup* mem_cgroup      # stays, as on lru, when the charge has gone
    ListHead lru               # in MemCgroupPerZone.lists; next is NULL when it is on none

cdef struct RbNode:
    RbNode* rb_parent
    RbNode* rb_left
    RbNode* rb_right
    u64 rb_red

cdef struct RbRoot:
    RbNode* rb_node

# A memory policy (include/linux/mempolicy.h).
cdef struct Mempolicy:
    i32 refcnt
    u32 mode
    u32 flags
    i32 preferred_node         # MPOL_PREFERRED, without MPOL_F_LOCAL
    u64 nodes                  # MPOL_BIND, MPOL_INTERLEAVE
    u64 user_nodemask          # as the program said, with a MPOL_F_*_NODES flag
    u64 cpuset_mems_allowed    # what `nodes` is relative to, without

# Pages of a shared object that have one policy (struct sp_node).
cdef struct SpNode:
    RbNode nd
    u64 start                  # indices: of the first, and behind the last
    u64 end
    Mempolicy* policy

# The policies of an object's pages, by index (struct shared_policy).
cdef struct SharedPolicy:
    RbRoot root                # of SpNode; they do not overlap
    Spinlock lock
    u32 _pad0

# A group of tasks that may use the same nodes.
cdef struct Cpuset:
    u64 mems_allowed
    i32 parent                 # -1 of the first, which has no parent
    u32 flags                  # CS_*
    u32 in_use
    u32 _pad0

# A node of a page tree.  Slots and the root change under tree_lock; readers only need RCU.
cdef struct RadixTreeNode:
    u32 height                 # 1: its slots are items
    u32 count                  # slots in use
    RadixTreeNode* parent
    RcuHead rcu
    u64 tags[2]                # RADIX_TREE_MAX_TAGS: a bit for each slot
    void* slots[64]            # RADIX_TREE_MAP_SIZE

cdef struct RadixTreeRoot:
    RadixTreeNode* rnode

# The pages of one file, or of a thing like a file (include/linux/fs.h).
cdef struct AddressSpace:
    Inode* host
    RadixTreeRoot page_tree
    Spinlock tree_lock         # page_tree, its tags, nrpages
    u32 a_ops                  # number of its operations, see inode.pxd
    u64 nrpages
    RbRoot i_mmap              # interval tree of VmAreaStruct.shared
    Spinlock i_mmap_lock
    Spinlock private_lock      # the buffers of its pages
    u64 flags                  # AS_EIO, AS_ENOSPC
    u64 writeback_index        # where the flusher goes on

# address_space.flags, by bit number (include/linux/pagemap.h).
cdef enum:
    AS_EIO = 0
    AS_ENOSPC = 1

# An open host file, or shared anonymous memory.
cdef struct Inode:
    AddressSpace i_data
    ListHead i_list            # of Kernel.inodes, under inode_lock
    u64 i_id                   # never given twice: what processes know their descriptor by
    u64 i_dev                  # of the host, with i_ino; 0 for shared anonymous memory
    u64 i_ino
    u64 i_size                 # bytes; changes under i_mutex
    u64 i_swapped              # swap entries in its page tree; changes under tree_lock
    SharedPolicy i_policy      # of shared anonymous memory
    i32 i_count                # open files; under inode_lock when it becomes or leaves 0
    i32 i_host_fd              # init's descriptor; -1 without a host file
    u32 i_writable             # whether that may write
    u32 i_blkbits              # log2 of the size of its buffers
    RwSem i_mutex              # writing, truncating, fsync: only ever taken for writing
    RcuHead rcu

# A swap area: slots of one page each in a host file (include/linux/swap.h).
cdef enum:
    SWP_USED = 1
    SWP_WRITEOK = 2            # slots may be given out
    SWAP_MAP_BAD = 0x8000      # no slot
    SWAP_MAP_MAX = 0x7fff
    SWAP_SLOTS_PER_FRAME = 4   # room for swap maps, which is laid by at boot

cdef struct SwapInfo:
    u64 flags                  # SWP_*
    u64 max                    # slots, with slot 0, which is never given out
    u64 inuse_pages
    u64 lowest_bit             # no slot below it is free, nor any above highest_bit
    u64 highest_bit
    u64 cluster_next           # where the search goes on
    u64 cluster_nr             # how many more it takes in a row
    u16* swap_map              # uses of each slot: entries in page tables, and the swap cache
    Inode swap_file            # only for its host file

# An open file; a descriptor and each area that maps it has a reference.
cdef struct File:
    i32 f_count
    u32 f_flags                # O_ACCMODE
    AddressSpace* f_mapping
    u64 f_pos                  # where read and write go on
    u64 f_prev_pos             # where the last read ended

cdef struct FilesStruct:
    i32 count                  # tasks that share it
    Spinlock file_lock
    File* fd[64]               # NR_OPEN

# One block of a file in a page (include/linux/buffer_head.h).
cdef struct BufferHead:
    u64 b_state                # BH_*
    BufferHead* b_this_page    # the ring of the page's buffers
    Page* b_page
    u64 b_blocknr
    u64 b_size
    u64 b_data                 # address of its bytes
    i32 b_count
    u32 _pad0

# vm_flags (include/linux/mm.h).
cdef enum:
    VM_READ = 0x01
    VM_WRITE = 0x02
    VM_EXEC = 0x04
    VM_SHARED = 0x08
    VM_MAYREAD = 0x10
    VM_MAYWRITE = 0x20
    VM_MAYEXEC = 0x40
    VM_MAYSHARE = 0x80         # mapped with MAP_SHARED; VM_SHARED only if it may be written
    VM_PFNMAP = 0x400          # frames without struct pages
    VM_LOCKED = 0x2000
    VM_IO = 0x4000
    VM_DONTCOPY = 0x20000
    VM_DONTEXPAND = 0x40000
    VM_RESERVED = 0x80000
    VM_ACCESS_FLAGS = 7        # VM_READ | VM_WRITE | VM_EXEC, equal to the PROT_ bits

cdef struct VmAreaStruct:
    MmStruct* vm_mm
    u64 vm_start
    u64 vm_end                 # first byte after
    VmAreaStruct* vm_next
    u64 vm_page_prot
    u64 vm_flags
    RbNode vm_rb
    ListHead anon_vma_node
    AnonVma* anon_vma
    u64 vm_pgoff
    Mempolicy* vm_policy       # NULL: its task's; or the object's that it maps, see get_vma_policy
    File* vm_file
    u64 vm_ops                 # VM_OPS_*: what a fault does, see vma.pxd
    RbNode shared              # in the i_mmap of vm_file
    u64 shared_last            # the last page index of any area in its subtree there

cdef struct MmStruct:
    VmAreaStruct* mmap         # sorted list
    RbRoot mm_rb
    u64* pgd
    i32 mm_users               # tasks that run it
    i32 map_count
    RwSem mmap_sem
    Spinlock page_table_lock
    i32 id
    ListHead mmlist            # all address spaces, from Kernel.init_mmlist
    u64 total_vm               # pages
    u64 locked_vm              # of them, those of VM_LOCKED areas
    u64 def_flags              # VM_LOCKED after mlockall(MCL_FUTURE)
    u64 anon_rss
    u64 file_rss
    u64 swap_ents              # PTEs that are swap entries
    u64 nr_ptes
    u64 cpu_vm_mask[16]        # CPU_MASK_WORDS: CPUs whose TLB may hold this mm
    Spinlock memcg_lock
    u32 _pad0
    MemCgroup* mem_cgroup      # who is charged for its pages; NULL without groups

cdef struct Pagevec:
    u64 nr
    Page* pages[14]            # PAGEVEC_SIZE

# Task states.
cdef enum:
    TASK_UNUSED = 0
    TASK_EMBRYO = 1            # slot claimed, process not running yet
    TASK_RUNNING = 2

cdef enum:
    PF_MEMALLOC = 0x00000800   # frees memory, and may use what is kept for that
    PF_KSWAPD = 0x00040000
    PF_SWAPWRITE = 0x00800000
    PF_MIGRATE = 0x08000000    # ours: moves pages, between migrate_begin and migrate_end

# include/linux/capability.h
cdef enum:
    CAP_SETUID = 7
    CAP_IPC_LOCK = 14
    CAP_SYS_NICE = 23

# enum node_states
cdef enum:
    N_POSSIBLE = 0
    N_ONLINE = 1
    N_NORMAL_MEMORY = 2        # has memory that the kernel may use for itself
    N_HIGH_MEMORY = 3          # has memory
    NR_NODE_STATES = 4

cdef enum:
    NR_CPUSETS = 64
    DEVICE_FRAMES = 32         # of a device's bank, one beside each node; 64 at most
    CS_MEM_HARDWALL = 1        # of the kernel's own allocations as well
    CS_MEMORY_MIGRATE = 2      # pages follow the tasks

# What a task waits for, for the hung-task report.
cdef enum:
    WAIT_NONE = 0
    WAIT_SPINLOCK = 1
    WAIT_PAGE_LOCK = 2
    WAIT_PAGE_WRITEBACK = 3
    WAIT_RWSEM_READ = 4
    WAIT_RWSEM_WRITE = 5
    WAIT_CONDVAR = 6
    WAIT_TLB_ACK = 7
    WAIT_RCU = 8
    WAIT_FREEZER = 9
    WAIT_BUFFER = 10
    WAIT_SWAPOFF = 11

# One event in a CPU's trace ring: a cache line.
cdef struct TraceEvent:
    u64 time                   # CLOCK_MONOTONIC, ns
    u64 what                   # the event's number; the task's pid in the upper half
    u64 args[6]

# A task is one CPU.  Only its owner writes what is not said to be shared.  First comes what many files take: an edit
# concerns those that take what is edited or what follows it.  A new member goes below `tlb`.
cdef struct Task:
    u32 cpu                    # the slot's number
    u32 state
    i32 pid                    # one word with os_pid, see announce_process
    i32 os_pid                 # of the host; 0: not known yet
    i32 parent_pid
    u32 nr_host_files          # descriptors of host files that its process keeps; inode.py
    u32 flags                  # PF_*
    u32 preempt_count          # spinlocks held
    MmStruct* mm
    u32 in_kernel              # shared with the freezer
    u32 rcu_nesting
    u64 rcu_epoch              # shared: 0 outside, else the epoch it entered in
    u64 trace_head             # events written into this CPU's ring since boot
    u32 fail_nth               # fault injection: which allocation from now on fails
    u32 addr_limit             # KERNEL_DS while a system call is done with kernel pointers
    u64 mems_allowed           # shared: the cpuset's nodes that have memory
    Mempolicy* mempolicy       # changed under alloc_lock
    u64 vm_events[40]          # NR_VM_EVENTS
    i32 vm_stat_diff[1024]     # VM_STAT_DIFFS: what this CPU has not yet added to the zones
    u64 _line0[8]
    u32 access_seq             # shared: odd while inside a memory access
    u32 _pad1
    u64 _line1[7]
    u32 flush_seq              # shared: bumped by every shootdown aimed here
    u32 _pad2
    u64 _line2[7]
    u64 tlb[1024]              # TLB_ENTRIES, shared: a flusher zeroes entries
    Page* upcoming             # a hint: what this migrator moves next,
    Page* upcoming_target      # where to,
    u64 upcoming_line          # and how many cache lines of the two it has asked for; migrate.py
    u64 cap_effective
    u64 cap_permitted
    u32 uid
    u32 euid
    u32 suid
    u32 security               # security_task_movememory: its memory may not be moved
    u32 numa_node
    u32 cpuset                 # its number
    i32 il_next                # where its interleaving goes on
    u32 trace_stopped          # shared: 1 while it is stopped by trace_breaks
    u64 trace_breaks           # shared: events after which the task stops
    u64 nr_held
    u64 held_locks[24]         # HELD_LOCKS_MAX: sleeping locks, address | how
    u64 wait_kind
    u64 wait_channel
    u64 wait_since             # CLOCK_MONOTONIC, ns
    FilesStruct* files
    Pagevec lru_add_pvecs[5]   # NR_LRU_LISTS, under pvec_lock
    Spinlock alloc_lock        # shared: mm, against get_task_memory
    Spinlock pvec_lock         # shared: lru_add_drain_all is remote
    char comm[32]              # TASK_COMM_LEN
    u64 start_time             # of the OS process, to know it from its successor
    u64 rlimit_memlock         # bytes
    u64 isolating_since        # shared: CLOCK_MONOTONIC, ns, since when it has had pages in hand; 0: it has none
    u64 nr_preloads
    RadixTreeNode* radix_tree_preloads[11]     # RADIX_TREE_PRELOAD_SIZE
    u64 wait_buckets[128]      # NR_WAIT_BUCKETS, of migration waits
    u64 lock_wait_buckets[128] # of waits for spinlocks (once parked), page locks, rwsems
    u64 fault_buckets[128]     # of one fault in FAULT_SAMPLE

# Everything Linux keeps in global variables.  First comes what many files take, as in Task; structs come last.
cdef struct Kernel:
    u64 nr_nodes
    u64 frames_per_node
    u64 max_pfn
    u64 max_tasks
    u64 hung_task_timeout_ns
    u64 poison                 # fill freed frames
    u64 trace_events           # bit n: event n is traced
    u64 trace_ring_events      # of one CPU's ring, a power of 2; 0 before the first trace
    u64 trace_rings            # address, behind the block; one ring a CPU
    u64 trace_owner            # host pid of whoever traces, 0 when nobody does
    u64 trace_owner_start      # when that process started
    Page* mem_map
    u64 frames_base            # address of frame 0
    Task* tasks
    Zone* zones
    PgData* nodes
    WaitQueueHead* wait_table
    u64 zero_pfn
    PageCgroup* page_cgroup    # NULL: the machine was booted without
    MemCgroup* root_mem_cgroup
    KmemCache* radix_tree_node_cachep
    KmemCache* vm_area_cachep
    KmemCache* mm_cachep
    KmemCache* anon_vma_cachep
    KmemCache* policy_cachep
    KmemCache* sp_cachep
    KmemCache* mem_cgroup_cachep
    KmemCache* mem_cgroup_per_zone_cachep
    KmemCache* inode_cachep
    KmemCache* filp_cachep
    KmemCache* files_cachep
    KmemCache* buffer_head_cachep
    # RCU
    u64 rcu_epoch
    Spinlock rcu_lock
    u32 rcu_pending
    u32 rcu_freers             # tasks that have taken some off the queue and are freeing them
    u32 _pad3
    u64 rcu_freed              # objects that have been freed in all
    RcuHead* rcu_head
    RcuHead* rcu_tail
    # nodes
    RwSem hotplug_sem          # one node at a time goes offline or comes back
    RwSem cpuset_sem           # for writing: no task changes its cpuset, none is forked
    u64 node_states[4]         # NR_NODE_STATES, a bit for each node
    u64 isolated_nodes         # going offline: Zone.isolated, where an allocation looks first
    u64 mems_sequence          # advanced when that, or a task's mems_allowed, has changed
    # swap
    Spinlock swap_lock         # the areas, their maps and the counts of slots
    u32 nr_swapfiles           # areas, of which some may be unused again
    u16* swap_maps             # of all areas
    u64 swap_maps_size
    u64 nr_swap_pages          # free slots
    u64 total_swap_pages
    u32 page_cluster           # log2 of the slots that are read at once; 0 reads none ahead
    u32 _pad8
    # reclaim
    u32 nr_isolators           # tasks that have pages in hand, to free or to move them
    u32 reclaim_sequence       # advanced when one is done
    u64 reclaim_progress       # advanced when one has freed something
    u32 reclaim_waiters
    u32 nr_starving            # tasks that have waited in vain for a while
    # tasks and address spaces
    i32 next_pid
    i32 next_mm_id
    u32 freezing               # 1 while the audit wants the machine still
    Spinlock mmlist_lock
    ListHead init_mmlist
    # files
    Spinlock inode_lock
    u32 _pad1
    ListHead inodes
    u64 next_inode_id
    # memory control groups
    ListHead mem_cgroups
    Spinlock cgroup_lock
    i32 next_css_id
    # slab
    Spinlock slab_lock
    u32 nr_caches
    Slab* slabs                # one for each page from slab_base to slab_end
    ListHead slabs_free        # pages that a cache has given back
    u64 slab_base
    u64 slab_next              # pages from here on were never taken
    u64 slab_end
    # structs, and what is large
    AddressSpace swapper_space
    Spinlock device_lock
    u32 _pad7
    u64 device_free[64]        # MAX_NUMNODES: a bit for each frame of a bank
    SwapInfo swap_info[30]     # MAX_SWAPFILES
    Cpuset cpusets[64]         # NR_CPUSETS
    KmemCache caches[16]       # SLAB_CACHES_MAX
    # counters of tasks that are gone
    Spinlock events_lock
    u32 _pad0
    u64 vm_events[40]          # NR_VM_EVENTS
    u64 wait_buckets[128]      # NR_WAIT_BUCKETS
    u64 lock_wait_buckets[128]
    u64 fault_buckets[128]
