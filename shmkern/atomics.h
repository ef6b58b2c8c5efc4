/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The hardware floor: what C can say and Python cannot.
 *
 * Atomic words, fences, futex, the widest page copy, and the two things that
 * end a machine: kernel_bug() and the SIGBUS handler.  Names and semantics are
 * those of Linux's memory model (Documentation/memory-barriers.txt); a number
 * at the end of a name is the width of the word in bits.  Everything is built
 * on GCC's __atomic builtins, so x86-64 and aarch64 need no code of their own,
 * and -fsanitize=thread sees every access.
 */
#ifndef SHMKERN_ATOMICS_H
#define SHMKERN_ATOMICS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if !defined(__x86_64__) && !defined(__aarch64__)
#error "shmkern runs on x86-64 and aarch64"
#endif

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int32_t i32;
typedef int64_t i64;

/*
 * Every process maps the block at this address, so that a pointer stored in
 * the block means the same everywhere.  128 GiB: above any non-PIE program,
 * below every PIE program, heap and library on both architectures, including
 * aarch64 with 39-bit addresses.  The page below it is private to each process
 * and plays the part of the per-CPU segment: its first word is `current`.
 */
#define DIRECT_MAP_BASE 0x2000000000UL
#define PERCPU_BASE     (DIRECT_MAP_BASE - 4096)
#define likely(x)       __builtin_expect(!!(x), 1)
#define unlikely(x)     __builtin_expect(!!(x), 0)

/* ---- atomic words ------------------------------------------------------ */

#define DEFINE_ATOMICS(T, N)                                                            \
static inline T READ_ONCE##N(const void *p)                                             \
{ return __atomic_load_n((const T *)p, __ATOMIC_RELAXED); }                             \
static inline void WRITE_ONCE##N(void *p, T v)                                          \
{ __atomic_store_n((T *)p, v, __ATOMIC_RELAXED); }                                      \
static inline T smp_load_acquire##N(const void *p)                                      \
{ return __atomic_load_n((const T *)p, __ATOMIC_ACQUIRE); }                             \
static inline void smp_store_release##N(void *p, T v)                                   \
{ __atomic_store_n((T *)p, v, __ATOMIC_RELEASE); }                                      \
static inline T xchg##N(void *p, T v)                                                   \
{ return __atomic_exchange_n((T *)p, v, __ATOMIC_SEQ_CST); }                            \
/* Returns what was there: equal to `old` exactly when `new` was stored. */             \
static inline T cmpxchg##N(void *p, T old, T new_)                                      \
{ __atomic_compare_exchange_n((T *)p, &old, new_, 0, __ATOMIC_SEQ_CST,                  \
			      __ATOMIC_SEQ_CST); return old; }                          \
static inline T atomic_add_return##N(void *p, T v)                                      \
{ return __atomic_add_fetch((T *)p, v, __ATOMIC_SEQ_CST); }                             \
static inline T fetch_or##N(void *p, T v)                                               \
{ return __atomic_fetch_or((T *)p, v, __ATOMIC_SEQ_CST); }                              \
static inline T fetch_and##N(void *p, T v)                                              \
{ return __atomic_fetch_and((T *)p, v, __ATOMIC_SEQ_CST); }

DEFINE_ATOMICS(u16, 16)
DEFINE_ATOMICS(u32, 32)
DEFINE_ATOMICS(u64, 64)

static inline void smp_mb(void)  { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void smp_wmb(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }
static inline void smp_rmb(void) { __atomic_thread_fence(__ATOMIC_ACQUIRE); }

/*
 * After an atomic read-modify-write: what it stored is visible before anything that follows is
 * read.  On x86 every locked instruction is such a fence; elsewhere the store may still lag.
 */
static inline void smp_mb__after_atomic(void)
{
#if defined(__x86_64__)
	__asm__ volatile("" ::: "memory");
#else
	smp_mb();
#endif
}

/*
 * Store, then a full fence; on x86 as one instruction: xchg costs less than mov and mfence on
 * every CPU we know.
 */
static inline void smp_store_mb32(void *p, u32 v)
{ __atomic_exchange_n((u32 *)p, v, __ATOMIC_SEQ_CST); smp_mb__after_atomic(); }
static inline void smp_store_mb64(void *p, u64 v)
{ __atomic_exchange_n((u64 *)p, v, __ATOMIC_SEQ_CST); smp_mb__after_atomic(); }

/*
 * The dear half of a fence that is free for the other side: every CPU that runs a process of the
 * machine passes a full fence before this returns.  So a plain store and load over there behave
 * as if there were a fence between them.  A processor interrupt each, so for slow paths only.
 */
static inline void smp_mb_everywhere(void)
{
	smp_mb();
	if (syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL_EXPEDITED, 0, 0) != 0)
		abort();
}

/* A process's own part in that; 0, or a negative errno where the host has no membarrier(2). */
static inline int register_membarrier(void)
{ return syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED, 0, 0) ? -errno : 0; }

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#else
	__asm__ volatile("yield" ::: "memory");
#endif
}

/* ---- time and waiting -------------------------------------------------- */

static inline u64 ktime_get_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (u64)ts.tv_sec * 1000000000u + (u64)ts.tv_nsec;
}

static inline void cpu_yield(void) { sched_yield(); }

/*
 * Sleeps while *word == expected, for at most timeout_ns.  Returns 0 when woken,
 * -EAGAIN when the word differed, -EINTR, or -ETIMEDOUT.  Not FUTEX_PRIVATE: the
 * waiters are processes.
 */
static inline int futex_wait(u32 *word, u32 expected, u64 timeout_ns)
{
	struct timespec ts = { (time_t)(timeout_ns / 1000000000u),
			       (long)(timeout_ns % 1000000000u) };

	return syscall(SYS_futex, word, FUTEX_WAIT, expected, &ts, NULL, 0) < 0 ? -errno : 0;
}

/* Wakes up to `count` waiters; returns how many it woke. */
static inline int futex_wake(u32 *word, int count)
{
	return (int)syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
}

/* ---- the end of a machine ---------------------------------------------- */

enum panic_kind { PANIC_NONE, PANIC_BUG, PANIC_HUNG_TASK, PANIC_HOST_MEMORY, PANIC_LOST_TASK };

/*
 * The first page of the block.  What an unrelated process must be able to trust
 * before it knows anything else, and where a dying machine leaves its last words.
 * Written in C because a signal handler and a failed VM_BUG_ON write it too.
 */
struct block_header {
	u64 magic;
	u64 layout_hash;	/* of every struct in the block, see layout.py */
	u64 size;		/* bytes, the whole block */
	u64 metadata_size;	/* bytes that are reserved, not only promised */
	i32 supervisor_pid;
	i32 _pad0;
	u64 supervisor_start;	/* start time of that pid, to know it from its successor */
	u64 boot_time_ns;	/* CLOCK_REALTIME at boot */
	u64 base;		/* DIRECT_MAP_BASE of whoever made it */
	u64 address_size;	/* bytes that are mapped; behind `size` lie trace rings */

	u32 panic;		/* 0, then 1 while the record is written, then 2; what follows is valid with 2 only */
	u32 panic_kind;
	i32 panic_pid;		/* the machine's pid, not the host's */
	i32 panic_os_pid;
	i32 panic_line;
	u32 _pad1;
	u64 panic_object;	/* address of the page or lock it is about, or 0 */
	char panic_file[128];
	char panic_text[512];
	u64 panic_dump[8];	/* the object's first 64 bytes at that moment */
};

#define BLOCK_MAGIC 0x6e72656b6d687301UL	/* "\1shmkern" */

static inline struct block_header *block_header(void)
{ return (struct block_header *)DIRECT_MAP_BASE; }

/* The machine's pid of whoever runs here; the second word of the per-CPU page. */
static inline i32 percpu_pid(void) { return *(i32 *)(PERCPU_BASE + 8); }

/* Not 0 when nobody should wait for anything any more; 2 when the record is complete, and then all of it is seen. */
static inline u32 kernel_panicked(void)
{ return __atomic_load_n(&block_header()->panic, __ATOMIC_ACQUIRE); }

/* By the process itself or, of one that is dead, by the supervisor. */
static inline __attribute__((unused)) void
record_panic(u32 kind, i32 pid, i32 os_pid, const char *file, int line, const char *text, const void *object)
{
	struct block_header *h = block_header();
	u32 idle = 0;

	/* The first to fall tells the story; what follows is its consequence. */
	if (!__atomic_compare_exchange_n(&h->panic, &idle, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
		return;
	h->panic_kind = kind;
	h->panic_pid = pid;
	h->panic_os_pid = os_pid;
	h->panic_line = line;
	h->panic_object = (u64)object;
	strncpy(h->panic_file, file, sizeof(h->panic_file) - 1);
	strncpy(h->panic_text, text, sizeof(h->panic_text) - 1);
	if ((u64)object >= DIRECT_MAP_BASE && (u64)object + 64 <= DIRECT_MAP_BASE + h->metadata_size)
		memcpy(h->panic_dump, object, 64);
	__atomic_store_n(&h->panic, 2, __ATOMIC_RELEASE);
	futex_wake(&h->panic, 0x7fffffff);
}

#define PANIC_EXIT_STATUS 70	/* EX_SOFTWARE */

/*
 * A broken invariant.  The process ends on the spot, without unwinding and without
 * giving back a lock: whatever it was doing cannot be trusted any more.  The
 * supervisor sees it die, reads the record and stops the rest.
 */
static __attribute__((noreturn, cold, noinline, unused)) void
kernel_panic(u32 kind, const char *file, int line, const char *text, const void *object)
{
	record_panic(kind, percpu_pid(), (i32)getpid(), file, line, text, object);
	_exit(PANIC_EXIT_STATUS);
}

#define BUG(text)		kernel_panic(PANIC_BUG, __FILE__, __LINE__, text, NULL)
#define BUG_ON(c)		do { if (unlikely(c)) BUG(""); } while (0)
#define VM_BUG_ON(c)		BUG_ON(c)
/* As VM_BUG_ON, and the record holds a copy of the struct page (or lock) at `p`. */
#define VM_BUG_ON_PAGE(c, p)	\
	do { if (unlikely(c)) kernel_panic(PANIC_BUG, __FILE__, __LINE__, "", p); } while (0)
#define BUG_AT(text, p)		kernel_panic(PANIC_BUG, __FILE__, __LINE__, text, p)

/*
 * tmpfs promises memory it may not have: a first touch of a frame can end in
 * SIGBUS.  Inside the block it becomes a sentence; anywhere else the default
 * action applies.
 */
static __attribute__((unused)) void sigbus_handler(int sig, siginfo_t *info, void *context)
{
	u64 address = (u64)info->si_addr;

	(void)context;
	if (address >= DIRECT_MAP_BASE && address < DIRECT_MAP_BASE + block_header()->address_size)
		kernel_panic(PANIC_HOST_MEMORY, __FILE__, __LINE__,
			     "the host has no memory left for the machine's frames: "
			     "/dev/shm is full or the memory cgroup is at its limit", info->si_addr);
	signal(sig, SIG_DFL);
	raise(sig);
}

static inline int install_sigbus_handler(void)
{
	struct sigaction action;

	memset(&action, 0, sizeof(action));
	action.sa_sigaction = sigbus_handler;
	action.sa_flags = SA_SIGINFO;
	return sigaction(SIGBUS, &action, NULL) ? -errno : 0;
}

/*
 * Asks for SIGKILL when the last writer of the pipe behind `fd` is gone.  `fd` must
 * be an open file of this process's own, since the owner is kept in the open file.
 * Unlike PR_SET_PDEATHSIG it survives the death of an intermediate parent, so a
 * forked task outlives its parent but not its supervisor.
 */
static inline int kill_me_when_pipe_closes(int fd)
{
	if (fcntl(fd, F_SETSIG, SIGKILL) || fcntl(fd, F_SETOWN, getpid()) ||
	    fcntl(fd, F_SETFL, O_RDONLY | O_NONBLOCK | O_ASYNC))
		return -errno;
	return 0;
}

/* Asks for a cache line that is going to be read, soon but not at once; it may be at any address. */
static inline void prefetch(const void *line) { __builtin_prefetch(line, 0, 3); }

/* The same for one that is going to be written. */
static inline void prefetchw(const void *line)
{
#if defined(__x86_64__)
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
	__builtin_prefetch(line, 1);
#endif
}

/* Writes a cache line back and drops it from all caches; that is over after the next full fence. */
static inline void flush_cache_line(const void *line)
{
#if defined(__x86_64__)
	/* clflush waits for each line: 150 ns here, against 4 ns. */
	if (__builtin_cpu_supports("clflushopt"))
		__asm__ volatile("clflushopt %0" : : "m"(*(const char *)line) : "memory");
	else
		__asm__ volatile("clflush %0" : : "m"(*(const char *)line) : "memory");
#else
	__asm__ volatile("dc civac, %0" : : "r"(line) : "memory");
#endif
}

/*
 * The widest copy that the CPU has: libc's, which finds out when it is loaded.  Where gcc knows the
 * size it puts `rep movsq` there instead, which is slower when the page is in no cache.
 */
static inline void copy_page(void *to, const void *from)
{
	size_t size = 4096;

	__asm__("" : "+r"(size));
	memcpy(to, from, size);
}

#endif
