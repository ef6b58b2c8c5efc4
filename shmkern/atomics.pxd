# SPDX-License-Identifier: GPL-2.0-only
# What atomics.h gives: floor 1, imports nothing.

cdef extern from "atomics.h" nogil:
    ctypedef unsigned char u8
    ctypedef unsigned short u16
    ctypedef unsigned int u32
    ctypedef unsigned long u64
    ctypedef int i32
    ctypedef long i64

    const u64 DIRECT_MAP_BASE
    const u64 PERCPU_BASE
    const u64 BLOCK_MAGIC
    const int PANIC_EXIT_STATUS
    bint likely(bint condition)
    bint unlikely(bint condition)

    u16 READ_ONCE16(const void* word)
    u32 READ_ONCE32(const void* word)
    u64 READ_ONCE64(const void* word)
    void WRITE_ONCE32(void* word, u32 value)
    void WRITE_ONCE64(void* word, u64 value)
    u32 smp_load_acquire32(const void* word)
    u64 smp_load_acquire64(const void* word)
    void smp_store_release16(void* word, u16 value)
    void smp_store_release32(void* word, u32 value)
    void smp_store_release64(void* word, u64 value)
    u32 xchg32(void* word, u32 value)
    u64 xchg64(void* word, u64 value)
    u32 cmpxchg32(void* word, u32 old, u32 new)
    u64 cmpxchg64(void* word, u64 old, u64 new)
    u32 atomic_add_return32(void* word, u32 value)
    u64 atomic_add_return64(void* word, u64 value)
    u32 fetch_or32(void* word, u32 bits)
    u64 fetch_or64(void* word, u64 bits)
    u32 fetch_and32(void* word, u32 bits)
    u64 fetch_and64(void* word, u64 bits)
    void smp_mb()
    void smp_mb_everywhere()
    int register_membarrier()
    void smp_wmb()
    void smp_rmb()
    void smp_mb__after_atomic()
    void smp_store_mb32(void* word, u32 value)
    void smp_store_mb64(void* word, u64 value)
    int __builtin_ctzl(u64 word)
    int __builtin_clzl(u64 word)
    int __builtin_popcountl(u64 word)
    void cpu_relax()
    void cpu_yield()

    u64 ktime_get_ns()
    int futex_wait(u32* word, u32 expected, u64 timeout_ns)
    int futex_wake(u32* word, int count)

    cdef enum panic_kind:
        PANIC_NONE
        PANIC_BUG
        PANIC_HUNG_TASK
        PANIC_HOST_MEMORY
        PANIC_LOST_TASK

    cdef struct block_header:
        u64 magic
        u64 layout_hash
        u64 size
        u64 metadata_size
        i32 supervisor_pid
        i32 _pad0
        u64 supervisor_start
        u64 boot_time_ns
        u64 base
        u64 address_size
        u32 panic
        u32 panic_kind
        i32 panic_pid
        i32 panic_os_pid
        i32 panic_line
        u32 _pad1
        u64 panic_object
        char panic_file[128]
        char panic_text[512]
        u64 panic_dump[8]

    u32 kernel_panicked()
    void record_panic(u32 kind, i32 pid, i32 os_pid, const char* file, int line, const char* text, const void* object)
    void BUG(const char* text)
    void BUG_AT(const char* text, const void* object)
    void BUG_ON(bint condition)
    void VM_BUG_ON(bint condition)
    void VM_BUG_ON_PAGE(bint condition, const void* page)
    void kernel_panic(u32 kind, const char* file, int line, const char* text, const void* object)

    int install_sigbus_handler()
    int kill_me_when_pipe_closes(int fd)

    void flush_cache_line(const void* line)
    void prefetch(const void* line)
    void prefetchw(const void* line)
    void copy_page(void* to, const void* source)
