/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The explorer's runtime: what -fsanitize=thread calls, in place of libtsan.
 *
 * The kernel of the explore build tells us of every access before it happens.  Tasks are
 * greenlets of one process, so between two such calls nothing else runs, and a schedule is
 * nothing but the answers we give: go on, or let another task go on first.
 *
 * A schedule is a list of segments (task, until): the task runs until it is about to do its
 * until-th access of the block, or with RUN_ON until it sleeps, yields or ends.  Behind the
 * list a strategy decides, and writes down what it did as more segments, so that whatever
 * happened can be done again.
 *
 * Where a switch can matter.  Words that two tasks access with nothing that orders the two
 * accesses are *points*; before them the exhaustive strategy tries every other task.  Words
 * that are always ordered by locks never become points: a switch in front of such an access
 * is equivalent to one at the lock.  Points are found while exploring, and explore.py starts
 * over until a whole exploration finds no new one.
 *
 * Which schedules are equivalent.  Each access of a point gets a hash of its task's previous
 * access and of the accesses of the word that it depends on; the hashes of the tasks' last
 * accesses together name the partial order so far (happens-before caching, Musuvathi and
 * Qadeer 2007).  What was seen with as few preemptions is not branched from again.
 *
 * Which preemptions can matter.  If nobody touches the word in conflict while the task waits
 * before its access, it might as well have waited behind it, with as many preemptions.  So a
 * preemption waits until some run of the unit shows another task use the word more often than
 * it has so far.
 *
 * Data races.  Vector clocks per task and word, joined as the C11 memory order of each atomic
 * and fence says (as FastTrack, with fences).  A plain write and another access of the word
 * by another task that nothing orders are a race.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <greenlet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>
#include <unwind.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define EXPORT      __attribute__((visibility("default")))
#define CALLER      ((u64)__builtin_return_address(0))

enum {
	MAX_TASKS = 4,
	MAX_SEGMENTS = 8192,
	MAX_HELD = 32,
	MAX_EDGES = 8192,
	SITE_DEPTH = 6,
	FAULT_DEPTH = 12,
	CHUNK_SHIFT = 9,		/* the unit in which the block is restored */
	CACHE_BITS = 21,
	MAX_QUIET = 1 << 16,
	YIELDS_WITHOUT_PROGRESS = 3000,
	TIMEOUT_ROUNDS = 3,
	NR_DEPENDENCIES = 8,
};

#define RUN_ON 0xffffffffu

/* What an access is. */
enum { IS_WRITE = 1, IS_ATOMIC = 2, IS_ADD = 4, IS_WAIT = 8, IS_WAKE = 16, IS_SLEEP = 32, IS_RANGE = 64 };

/* What is known of a word (8 bytes) of the block. */
enum {
	WORD_POINT = 1,
	WORD_SPLIT = 2,			/* holds two 32-bit fields */
	WORD_COUNTER = 4,		/* its atomic additions commute: nobody uses their results */
	WORD_IGNORED = 8,		/* statistics: no part of the state */
	WORD_NEW_POINT = 16,		/* a point from the next round on */
};

enum mode { OFF, RUN, DRAIN };
enum strategy { EXHAUSTIVE, RANDOM, PCT, FOLLOW, ALL };
enum outcome { HELD, RACE, BUG, OOPS, DEADLOCK, LOST_WAKEUP, LIVELOCK, DIVERGED, BROKEN };
enum state { READY, ASLEEP, YIELDED, DONE, DEAD };

struct segment {
	u32 task, until;
};

/* The accesses of one word, or of one half of a split word, in this run. */
struct cell {
	u32 run;
	u32 plain_task, plain_clock;	/* the last plain write */
	u32 pad;
	u32 shared[MAX_TASKS];		/* clock of the task's last read */
	u32 exclusive[MAX_TASKS];	/* and write */
	u32 sync[MAX_TASKS];		/* what a release left here */
	u8 how[MAX_TASKS];
	u64 pc[MAX_TASKS];		/* of the task's last access, and what that was */
	u64 write_hash, read_hash;
};

/* What a marked load of a pointer or of a page-table entry promises for what it leads to. */
struct dependency {
	u64 page;			/* number of the 4 KiB page, from the block's start */
	u32 clock[MAX_TASKS];
};

/* A lock that a task holds: its address, with the kernel's HELD_* in the low bits if it is in the
 * task's held_locks; and where it was taken, innermost call first, by the task's access number `step`. */
struct held {
	u64 lock, key, site[SITE_DEPTH], step;
};

/* The second lock was taken, or waited for, by `task` while it held the first; nr_done segments of the
 * schedule were over then. */
struct edge {
	struct held held, taken;
	u64 task, nr_done;
};

struct task {
	PyGreenlet *greenlet;
	u64 percpu[2];			/* `current` and its pid */
	u32 cpu;
	enum state state;
	u32 steps;
	u32 clock[MAX_TASKS], acquired[MAX_TASKS], released[MAX_TASKS];
	u64 hash;
	u32 *futex;
	u64 asleep_since;
	int timed_out;
	u64 writes_seen;		/* when it yielded */
	u64 spin_address, spin_value, spins, priority;
	u64 sleeping_locks;		/* offset of its nr_held, which its held_locks follow */
	u64 *wait;			/* its wait_kind and wait_channel */
	volatile u32 *in_kernel, *access_seq;
	u32 nr_held, nr_sleeping, nr_dependencies;
	int taking;
	struct held held[MAX_HELD];
	struct dependency dependency[NR_DEPENDENCIES];
};

/* How often each task has used a cell of a point, in any way and to change it: in this run, and at
 * most in a run of this unit.  `later` are preemptions before an access that conflicts with no more. */
enum { USED, CHANGED };

struct uses {
	u32 unit, run;
	u32 now[2][MAX_TASKS], most[2][MAX_TASKS];
	struct work *later;
	int is_awaited;
};

struct race {
	u64 address, pc[2];
	u32 task[2], how[2];
};

struct traced {
	u64 address, pc, before, after;
	u32 size, step;
	u8 task, how;
	u16 pad0;
	u32 pad1;
};

/* A schedule that waits to be run; or for another task than `task` to use a cell more often. */
struct work {
	struct work *next;
	u32 count, cost, task;
	int kind;
	u32 now[MAX_TASKS];
	struct segment segments[];
};

static struct {
	u64 base, size, frames, host;	/* offsets: of frame 0, of the host's files */
	u8 *snapshot, *words, *dirty;
	struct cell *cells, *pages;
	struct uses *uses, **awaited;	/* of each cell; those with work for later */
	u64 nr_awaited;
	u64 (*page_touched)[8];
	u32 *chunks, nr_chunks;

	enum mode mode;
	u32 run;			/* stamps cells */
	u32 nr_tasks;
	struct task task[MAX_TASKS];
	struct task *cur;
	PyGreenlet *hub;
	PyObject *no_args;
	int aborted;

	/* the schedule that is followed, and what was done */
	struct segment plan[MAX_SEGMENTS], done[MAX_SEGMENTS];
	u32 nr_plan, at, nr_done, stop_at;
	u32 preemptions;

	/* the strategy */
	enum strategy strategy;
	u32 bound, step_bound, pct_depth, pct_points;
	u64 random;
	u32 pct_changes[16];
	int branching;
	u64 unit;			/* keeps the caches of units apart */
	u32 nr_units;			/* begun: stamps uses */

	/* of this run */
	enum outcome outcome;
	u32 failed_task;
	u64 fault_address, fault_site[FAULT_DEPTH];
	struct race race;
	u64 now, writes, sleeps, yields, steps, points;
	u32 step_limit;

	/* outside runs */
	u64 seconds_waited;

	/* of all runs */
	struct work *work[64];
	u64 nr_work, nr_cut;
	u32 new_points;
	u64 *cache;
	int (*on_quiet)(void);		/* audits the machine: 0 if it is whole */
	u64 quiet[MAX_QUIET], nr_quiet;	/* states that it has found to be */
	int is_quiet;
	void (*on_exit)(void);		/* the machine panics outside a run */
	u32 by_hand;			/* tasks that call kernel functions by name */

	struct edge edges[MAX_EDGES];	/* since they were forgotten last, in order */
	u64 nr_edges;
	u16 edge_numbers[2 * MAX_EDGES];	/* by hash, from 1 on */

	/* what is known of the kernel's locks */
	u64 lock_code, lock_code_end;	/* the module of the lock functions */
	u64 buffer_code, buffer_code_end, buffer_lock, page_wait;

	struct traced *trace;
	u64 nr_trace, max_trace;
	struct traced *pending;
	u32 shown_task, shown_step;	/* the access that a replay is about, if it is not its end */
} rt;


/* ---- small things ------------------------------------------------------ */

static inline u64 mix(u64 a, u64 b)
{
	__uint128_t product = (__uint128_t)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xd6e8feb86659fd93u);

	return (u64)product ^ (u64)(product >> 64);
}

static u64 next_random(void)
{
	rt.random ^= rt.random << 13;
	rt.random ^= rt.random >> 7;
	rt.random ^= rt.random << 17;
	return rt.random * 0x2545f4914f6cdd1du;
}

static inline void join(u32 *into, const u32 *from)
{
	for (int i = 0; i < MAX_TASKS; i++)
		if (from[i] > into[i])
			into[i] = from[i];
}

static inline void mark_dirty(u64 offset, u64 size)
{
	for (u64 chunk = offset >> CHUNK_SHIFT; chunk <= (offset + size - 1) >> CHUNK_SHIFT; chunk++)
		if (!rt.dirty[chunk]) {
			rt.dirty[chunk] = 1;
			rt.chunks[rt.nr_chunks++] = chunk;
		}
}

static u64 peek(u64 address, u32 size)
{
	u64 value = 0;

	if (size <= 8)
		memcpy(&value, (void *)address, size);
	return value;
}

static void settle_trace(void)
{
	if (rt.pending) {
		rt.pending->after = peek(rt.pending->address, rt.pending->size);
		rt.pending = NULL;
	}
}

/* Not inlined: here `shmkern replay --gdb` stops, in a task that is about to take a lock in the wrong order. */
static __attribute__((noinline)) void lock_shown(void)
{
	__asm__ volatile("");
}

/* Notes what is about to happen; what it changed is known when the next thing happens. */
static void trace(u64 address, u32 size, int how, u64 pc)
{
	struct traced *entry;

	if (likely(!rt.trace))
		return;
	settle_trace();
	if (rt.cur->steps == rt.shown_step && rt.cur - rt.task == rt.shown_task)
		lock_shown();
	if (rt.nr_trace == rt.max_trace)
		return;
	entry = &rt.trace[rt.nr_trace++];
	*entry = (struct traced){ .address = address, .pc = pc, .size = size, .how = how,
				  .task = rt.cur - rt.task, .step = rt.cur->steps,
				  .before = peek(address, size) };
	entry->after = entry->before;
	rt.pending = entry;
}

/* ---- switching --------------------------------------------------------- */

#define PERCPU ((u64 *)(rt.base - 4096))

/* Not inlined: here `shmkern replay --gdb` stops. */
static __attribute__((noinline)) void switch_to(struct task *next)
{
	rt.cur->percpu[0] = PERCPU[0];
	rt.cur->percpu[1] = PERCPU[1];
	PERCPU[0] = next->percpu[0];
	PERCPU[1] = next->percpu[1];
	rt.cur = next;
	Py_XDECREF(PyGreenlet_Switch(next->greenlet, rt.no_args, NULL));
}

static void switch_to_hub(void)
{
	rt.cur->percpu[0] = PERCPU[0];
	rt.cur->percpu[1] = PERCPU[1];
	Py_XDECREF(PyGreenlet_Switch(rt.hub, rt.no_args, NULL));
}

static void note_segment(u32 task, u32 until)
{
	if (rt.nr_done < MAX_SEGMENTS)
		rt.done[rt.nr_done++] = (struct segment){ task, until };
}

/* Ends the run here and now; the current task, and whoever is not done, never run again. */
static void abort_run(enum outcome outcome)
{
	if (rt.mode == RUN)
		note_segment(rt.cur - rt.task, RUN_ON);
	if (rt.outcome == HELD || rt.outcome == RACE) {
		rt.outcome = outcome;
		rt.failed_task = rt.cur - rt.task;
	}
	settle_trace();
	rt.aborted = 1;
	for (;;)
		switch_to_hub();
}

static int is_enabled(struct task *t)
{
	return t->state == READY || (t->state == YIELDED && t->writes_seen != rt.writes);
}

static u32 enabled_mask(void)
{
	u32 mask = 0;

	for (u32 i = 0; i < rt.nr_tasks; i++)
		if (is_enabled(&rt.task[i]))
			mask |= 1u << i;
	return mask;
}

/* Begins the next segment of the plan, if there is one; else the strategy's own. */
static void start_segment(void)
{
	rt.stop_at = RUN_ON;
	if (rt.at < rt.nr_plan)
		rt.stop_at = rt.plan[rt.at].until;
}

/* ---- branching --------------------------------------------------------- */

/* Whether this state was seen before with no more preemptions than now. */
static int seen_before(int running)
{
	u64 key = mix(rt.unit, running + ((u64)enabled_mask() << 8)), *slot;

	if (rt.strategy == ALL)
		return 0;
	for (u32 i = 0; i < rt.nr_tasks; i++)
		key = mix(key, rt.task[i].hash + rt.task[i].state);
	slot = &rt.cache[key >> (64 - CACHE_BITS)];
	key = (key & ~63ull) | (rt.preemptions < 63 ? rt.preemptions : 63);
	if ((*slot ^ key) < 64 && *slot <= key && *slot)
		return 1;
	*slot = key;
	return 0;
}

static void queue_work(struct work *work)
{
	work->next = rt.work[work->cost];
	rt.work[work->cost] = work;
	rt.nr_work++;
}

static struct work *make_work(u32 task, u32 until, u32 next)
{
	u32 count = rt.nr_done + (until != RUN_ON) + 1;
	struct work *work = malloc(sizeof(*work) + count * sizeof(struct segment));

	memcpy(work->segments, rt.done, rt.nr_done * sizeof(struct segment));
	if (until != RUN_ON)
		work->segments[rt.nr_done] = (struct segment){ task, until };
	work->segments[count - 1] = (struct segment){ next, RUN_ON };
	work->count = count;
	work->cost = rt.preemptions + (until != RUN_ON);
	return work;
}

static struct uses *uses_of(u64 cell)
{
	struct uses *uses = &rt.uses[cell];

	if (uses->unit != rt.nr_units) {
		memset(uses, 0, sizeof(*uses));
		uses->unit = rt.nr_units;
	}
	if (uses->run != rt.run) {
		memset(uses->now, 0, sizeof(uses->now));
		uses->run = rt.run;
	}
	return uses;
}

/* The current task uses a cell of a point.  What has waited for somebody to use it that often need
 * not wait any more. */
static void note_use(u64 cell, int changes)
{
	struct uses *uses = uses_of(cell);
	u32 me = rt.cur - rt.task;

	for (int kind = USED; kind <= (changes ? CHANGED : USED); kind++) {
		struct work **later = &uses->later, *work;

		if (++uses->now[kind][me] <= uses->most[kind][me])
			continue;
		uses->most[kind][me] = uses->now[kind][me];
		while ((work = *later))
			if (work->kind == kind && work->task != me && work->now[me] < uses->most[kind][me]) {
				*later = work->next;
				queue_work(work);
			} else
				later = &work->next;
	}
}

/* Whether any other task is known to use a cell again, in this way. */
static int is_used_ahead(const struct uses *uses, int kind)
{
	for (u32 i = 0; i < rt.nr_tasks; i++)
		if (&rt.task[i] != rt.cur && uses->now[kind][i] < uses->most[kind][i])
			return 1;
	return 0;
}

static void push_work(struct work *work, struct uses *uses, int changes)
{
	int kind = changes ? USED : CHANGED;

	if (!uses || is_used_ahead(uses, kind)) {
		queue_work(work);
		return;
	}
	work->task = rt.cur - rt.task;
	work->kind = kind;
	memcpy(work->now, uses->now[kind], sizeof(work->now));
	if (!uses->is_awaited) {
		uses->is_awaited = 1;
		rt.awaited[rt.nr_awaited++] = uses;
	}
	work->next = uses->later;
	uses->later = work;
}

/*
 * The exhaustive strategy before an access of a point: all others that could go first.  `uses` is
 * the accessed cell's, NULL if there is no saying: sleeping and waking, more than one cell, a bound
 * on steps, and the run that the units are dealt out of, which belongs to no unit.
 */
static void branch_at_point(struct uses *uses, int changes)
{
	u32 me = rt.cur - rt.task;

	if (!rt.branching)
		return;
	if (seen_before(me)) {
		rt.branching = 0;
		rt.nr_cut++;
		return;
	}
	if (rt.preemptions >= rt.bound || rt.steps > rt.step_bound)
		return;
	for (u32 i = 0; i < rt.nr_tasks; i++)
		if (i != me && is_enabled(&rt.task[i]))
			push_work(make_work(me, rt.cur->steps, i), uses, changes);
}

static struct task *highest_priority(void)
{
	struct task *best = NULL;

	for (u32 i = 0; i < rt.nr_tasks; i++)
		if (is_enabled(&rt.task[i]) && (!best || rt.task[i].priority > best->priority))
			best = &rt.task[i];
	return best;
}

static struct task *random_enabled(void)
{
	u32 mask = enabled_mask(), nth = next_random() % __builtin_popcount(mask);

	for (u32 i = 0;; i++)
		if (mask >> i & 1 && nth-- == 0)
			return &rt.task[i];
}

static void preempt(struct task *next)
{
	note_segment(rt.cur - rt.task, rt.cur->steps);
	rt.preemptions++;
	start_segment();
	switch_to(next);
}

/* The current task is about to access a point, see branch_at_point: who goes on? */
static void at_point(struct uses *uses, int changes)
{
	struct task *next = rt.cur;

	rt.points++;
	if (rt.at + 1 < rt.nr_plan)
		return;
	if (rt.strategy == EXHAUSTIVE || rt.strategy == ALL) {
		branch_at_point(rt.strategy == ALL ? NULL : uses, changes);
		return;
	}
	if (rt.strategy == RANDOM)
		next = random_enabled();
	else if (rt.strategy == PCT) {
		for (u32 i = 0; i + 1 < rt.pct_depth; i++)
			if (rt.pct_changes[i] == rt.points)
				rt.cur->priority = i + 1;
		next = highest_priority();
	}
	if (next && next != rt.cur)
		preempt(next);
}

/* Who goes on when the current task cannot; NULL when nobody can. */
static struct task *choose(void)
{
	u32 mask = enabled_mask(), first;

	if (rt.at + 1 < rt.nr_plan) {
		struct segment *segment = &rt.plan[++rt.at];

		start_segment();
		/* With only yielders left one of them looks again, as in give_way. */
		if (!(mask >> segment->task & 1) && (mask || rt.task[segment->task].state != YIELDED)) {
			rt.outcome = DIVERGED;
			return NULL;
		}
		return &rt.task[segment->task];
	}
	rt.at = rt.nr_plan;
	rt.stop_at = RUN_ON;
	if (!mask)
		return NULL;
	if (rt.strategy == RANDOM)
		return random_enabled();
	if (rt.strategy == PCT)
		return highest_priority();
	first = __builtin_ctz(mask);
	if (rt.branching && mask & (mask - 1)) {
		if (seen_before(MAX_TASKS)) {
			rt.branching = 0;
			rt.nr_cut++;
		} else if (rt.steps <= rt.step_bound) {
			for (u32 i = first + 1; i < rt.nr_tasks; i++)
				if (mask >> i & 1)
					queue_work(make_work(0, RUN_ON, i));
		}
	}
	return &rt.task[first];
}

/* The current task cannot go on.  Returns when it can again. */
static void give_way(enum state state)
{
	struct task *me = rt.cur, *next;
	int is_still;

	me->state = state;
	if (rt.mode == DRAIN) {
		switch_to_hub();
		return;
	}
	note_segment(me - rt.task, RUN_ON);
	is_still = !enabled_mask();
	next = choose();
	if (!next && rt.outcome != DIVERGED)
		/* Only yielders are left: the one that waits longest looks again. */
		for (u32 i = 0; i < rt.nr_tasks; i++)
			if (rt.task[i].state == YIELDED &&
			    (!next || rt.task[i].asleep_since < next->asleep_since))
				next = &rt.task[i];
	/* Planned or not, so that a livelock is one at the same place again. */
	if (next && is_still && ++rt.yields > YIELDS_WITHOUT_PROGRESS)
		abort_run(LIVELOCK);
	if (!next) {
		switch_to_hub();
		return;
	}
	next->state = READY;
	if (next != me)
		switch_to(next);
}

/* ---- accesses ---------------------------------------------------------- */

static struct cell *fresh(struct cell *cell)
{
	if (unlikely(cell->run != rt.run)) {
		memset(cell, 0, sizeof(*cell));
		cell->run = rt.run;
	}
	return cell;
}

static void note_race(struct cell *cell, u32 other, u64 address, int how, u64 pc)
{
	u32 me = rt.cur - rt.task;

	if (rt.outcome != HELD)
		return;
	rt.outcome = RACE;
	rt.failed_task = me;
	rt.race = (struct race){ .address = address, .pc = { cell->pc[other], pc },
				 .task = { other, me }, .how = { cell->how[other], how } };
}

/*
 * One access of one cell against those of the other tasks.  `excludes` is whether it conflicts
 * with accesses of its own kind: writes do, reads do not.
 */
static void check(struct cell *cell, u8 *word, u64 address, int how, u64 pc)
{
	struct task *t = rt.cur;
	u32 me = t - rt.task;
	int counter = *word & WORD_COUNTER, racy = 0;
	int excludes = counter ? !(how & IS_ADD) : how & IS_WRITE;
	int plain_write = (how & (IS_WRITE | IS_ATOMIC)) == IS_WRITE;

	fresh(cell);
	for (u32 i = 0; i < rt.nr_tasks; i++) {
		if (i == me)
			continue;
		if (cell->exclusive[i] > t->clock[i] || (excludes && cell->shared[i] > t->clock[i])) {
			racy = 1;
			if (plain_write)
				note_race(cell, i, address, how, pc);
		}
	}
	if (cell->plain_clock && cell->plain_task != me && cell->plain_clock > t->clock[cell->plain_task])
		note_race(cell, cell->plain_task, address, how, pc);
	if (racy && !(*word & (WORD_POINT | WORD_NEW_POINT))) {
		*word |= WORD_NEW_POINT;
		rt.new_points++;
	}
	if (excludes)
		cell->exclusive[me] = t->clock[me];
	else
		cell->shared[me] = t->clock[me];
	if (plain_write) {
		cell->plain_task = me;
		cell->plain_clock = t->clock[me];
	}
	cell->pc[me] = pc;
	cell->how[me] = how;
	if (*word & WORD_POINT) {
		if (excludes) {
			t->hash = cell->write_hash = mix(t->hash, mix(cell->write_hash, cell->read_hash));
			cell->read_hash = 0;
		} else {
			t->hash = mix(t->hash, cell->write_hash);
			cell->read_hash += t->hash;
		}
		note_use(cell - rt.cells, excludes);
	}
}

static inline u64 cell_at(u64 offset)
{
	u64 word = offset >> 3;

	return 2 * word + (rt.words[word] & WORD_SPLIT ? offset >> 2 & 1 : 0);
}

static inline struct cell *cell_of(u64 offset)
{
	return &rt.cells[cell_at(offset)];
}

/* A 64-byte piece of a frame, or more, at once: against the page's pieces and its single words. */
static void check_page(u64 offset, u64 size, int how, u64 pc)
{
	u64 page = (offset - rt.frames) >> 12, first = (offset & 4095) >> 3;
	struct cell *whole = fresh(&rt.pages[page]);
	struct task *t = rt.cur;
	u32 me = t - rt.task;
	static u8 no_point;

	if (whole->pad == 0 && whole->exclusive[me] == 0 && whole->shared[me] == 0)
		memset(rt.page_touched[page], 0, 64), whole->pad = 1;
	/* Points whether they were touched or not: what a task has read or filled at once is part of its state. */
	for (u64 word = first; word < first + size / 8; word++) {
		u8 *flags = &rt.words[(offset >> 3) - first + word];

		if (rt.page_touched[page][word >> 6] >> (word & 63) & 1 || *flags & WORD_POINT)
			check(cell_of((offset & ~4095ull) + word * 8), flags,
			      rt.base + (offset & ~4095ull) + word * 8, how, pc);
	}
	if ((how & IS_WRITE ? whole->exclusive : whole->shared)[me] == t->clock[me])
		return;
	no_point = WORD_NEW_POINT;
	check(whole, &no_point, rt.base + offset, how, pc);
}

static void check_word(u64 offset, int how, u64 pc)
{
	u8 *word = &rt.words[offset >> 3];

	if (offset >= rt.frames) {
		u64 page = (offset - rt.frames) >> 12, index = (offset & 4095) >> 3;
		struct cell *whole = fresh(&rt.pages[page]);

		if (!whole->pad)
			memset(rt.page_touched[page], 0, 64), whole->pad = 1;
		rt.page_touched[page][index >> 6] |= 1ull << (index & 63);
		/* Against what was done to the page as a whole, without becoming part of that. */
		for (u32 i = 0; i < rt.nr_tasks; i++)
			if (i != (u32)(rt.cur - rt.task) &&
			    (whole->exclusive[i] > rt.cur->clock[i] ||
			     (how & IS_WRITE && whole->shared[i] > rt.cur->clock[i]))) {
				if (!(how & IS_ATOMIC) || whole->exclusive[i] > rt.cur->clock[i])
					note_race(whole, i, rt.base + offset, how, pc);
				if (!(*word & (WORD_POINT | WORD_NEW_POINT))) {
					*word |= WORD_NEW_POINT;
					rt.new_points++;
				}
			}
	}
	check(cell_of(offset), word, rt.base + offset, how, pc);
}

/*
 * Address dependencies: an access of what a marked load has led to comes after what was
 * released there, on every machine (READ_ONCE, as rcu_dereference).  We see values, not
 * dependencies, so the page that the value points to stands for what is reached through it.
 */
static void note_dependency(const struct cell *cell, u64 value)
{
	struct task *t = rt.cur;
	u64 page = (value - rt.base) >> 12, frame = ((value & 0x000ffffffffff000ull) + rt.frames) >> 12;
	int news = 0;

	if (value - rt.base >= rt.size)
		page = frame;
	if (page >= rt.size >> 12)
		return;
	for (u32 i = 0; i < rt.nr_tasks; i++)
		news |= cell->sync[i] > t->clock[i];
	if (!news)
		return;
	struct dependency *d = &t->dependency[t->nr_dependencies++ % NR_DEPENDENCIES];
	d->page = page;
	memcpy(d->clock, cell->sync, sizeof(d->clock));
}

static void follow_dependencies(u64 offset)
{
	struct task *t = rt.cur;

	for (u32 i = 0; i < NR_DEPENDENCIES && i < t->nr_dependencies; i++)
		if (t->dependency[i].page == offset >> 12)
			join(t->clock, t->dependency[i].clock);
}

/* An access is about to happen: of a point, or of several words with points among them, such as a page that
 * is copied? */
static inline void look_for_points(u64 offset, u64 size, int how)
{
	u64 last = (offset + size - 1) >> 3, point = 0;
	int points = 0, one_cell;
	u8 word;

	for (u64 at = offset >> 3; at <= last; at++)
		if (!(at & 7) && !*(u64 *)(rt.words + at))
			at += 7;
		else if (rt.words[at] & WORD_POINT) {
			point = at;
			points++;
		}
	if (likely(!points))
		return;
	word = rt.words[point];
	one_cell = points == 1 && (size <= 4 || !(word & WORD_SPLIT));
	/* With a bound on steps it would not do as well behind the access. */
	at_point(rt.unit && one_cell && rt.step_bound == RUN_ON ?
		 uses_of(cell_at(offset >> 3 == point ? offset : point << 3)) : NULL,
		 word & WORD_COUNTER ? !(how & IS_ADD) : how & IS_WRITE);
}

static void watch_sleeping_locks(u64 offset, u64 pc);

/* An access is about to happen: switch if it is time to, then enter it in the books. */
static __attribute__((noinline)) void access_in_run(u64 offset, u64 size, int how, u64 pc)
{
	struct task *t = rt.cur;

	t->steps++;
	if (unlikely(++rt.steps > rt.step_limit))
		abort_run(LIVELOCK);
	if (unlikely(t->steps == rt.stop_at)) {
		struct task *next = &rt.task[rt.plan[++rt.at].task];

		if (!is_enabled(next)) {
			abort_run(DIVERGED);
		}
		next->state = READY;
		preempt(next);
	} else
		look_for_points(offset, size, how);
	if (rt.mode != RUN)
		return;
	trace(rt.base + offset, size, how, pc);
	if (t->nr_dependencies)
		follow_dependencies(offset);
	if (how & IS_WRITE) {
		rt.writes++;
		if (offset - t->sleeping_locks <= 8 * 24)
			watch_sleeping_locks(offset, pc);
	}
	t->spins = 0;
	if (size >= 64 && offset >= rt.frames) {
		check_page(offset, size, how, pc);
		return;
	}
	for (u64 end = offset + size; offset < end; offset = (offset & ~3ull) + 4) {
		check_word(offset, how, pc);
		if (!(rt.words[offset >> 3] & WORD_SPLIT))
			offset |= 4;
	}
}

static inline void on_access(const volatile void *p, u64 size, int how, u64 pc)
{
	u64 offset = (u64)p - rt.base;

	if (likely(offset >= rt.size) || !size)
		return;
	if (how & IS_WRITE)
		mark_dirty(offset, size);
	if (rt.mode == RUN)
		access_in_run(offset, size, how, pc);
}

static int in_run(const volatile void *p)
{
	return (u64)p - rt.base < rt.size && rt.mode == RUN;
}

/* ---- memory order ------------------------------------------------------ */

static int acquires(int order)
{
	return order == __ATOMIC_ACQUIRE || order == __ATOMIC_CONSUME || order == __ATOMIC_ACQ_REL ||
	       order == __ATOMIC_SEQ_CST;
}

static int releases(int order)
{
	return order == __ATOMIC_RELEASE || order == __ATOMIC_ACQ_REL || order == __ATOMIC_SEQ_CST;
}

/* What the current task learns, and lets others learn, by an atomic access. */
static void synchronize(const volatile void *p, int reads, int writes, int order)
{
	struct task *t = rt.cur;
	u32 me = t - rt.task;
	struct cell *cell;

	/* The other order of two additions is not tried, so this one must not hide a race. */
	if (rt.words[((u64)p - rt.base) >> 3] & WORD_COUNTER)
		return;
	cell = fresh(cell_of((u64)p - rt.base));
	if (reads && acquires(order))
		join(t->clock, cell->sync);
	else if (reads) {
		join(t->acquired, cell->sync);
		if (!writes)
			note_dependency(cell, *(const volatile u64 *)((u64)p & ~7ull));
	}
	if (writes) {
		/* A store that is no read-modify-write ends what others released here. */
		if (!reads)
			memset(cell->sync, 0, sizeof(cell->sync));
		join(cell->sync, releases(order) ? t->clock : t->released);
		if (releases(order))
			t->clock[me]++;
	}
}

EXPORT void __tsan_atomic_thread_fence(int order)
{
	struct task *t = rt.cur;

	if (rt.mode != RUN)
		return;
	if (acquires(order))
		join(t->clock, t->acquired);
	if (releases(order)) {
		memcpy(t->released, t->clock, sizeof(t->clock));
		t->clock[t - rt.task]++;
	}
}

EXPORT void __tsan_atomic_signal_fence(int order) { (void)order; }

/* ---- locks, for their order -------------------------------------------- */

/*
 * Who takes what while holding what, with where in the source; lock_order.py judges it.  Spinlocks
 * are known by their words; page locks and semaphores by the task's held_locks, in which the kernel
 * enters them; a buffer's lock by its bit and the module that alone changes it.
 */

/*
 * Where the kernel called from, and who called that.  What the unwinder learns is kept: a frame of the
 * code at one pc has one size, and where a return address is right below its end the next walk can read
 * it there.  A walk of ten frames takes the unwinder 4 us, which is a good part of a whole run.
 */
static struct frame {
	u64 pc, size;
} frames[1024];

struct walk {
	u64 from, *site, pc, stack;
	u32 depth;
};

/* One step of a walk: the code at `pc`, whose stack ends at `stack`.  Whether to go on. */
static int walk_to(struct walk *walk, u64 pc, u64 stack)
{
	walk->pc = pc;
	walk->stack = stack;
	/* The runtime's own frames end where the kernel called. */
	if (walk->depth || pc == walk->from)
		walk->site[walk->depth++] = pc;
	return walk->depth < SITE_DEPTH;
}

static struct frame *frame_of(u64 pc)
{
	return &frames[mix(pc, 0) % 1024];
}

static _Unwind_Reason_Code learn_frame(struct _Unwind_Context *context, void *argument)
{
	struct walk *walk = argument;
	u64 pc = _Unwind_GetIP(context), stack = _Unwind_GetCFA(context);

	if (walk->pc && ((u64 *)stack)[-1] == pc)
		*frame_of(walk->pc) = (struct frame){ walk->pc, stack - walk->stack };
	return walk_to(walk, pc, stack) ? _URC_NO_REASON : _URC_END_OF_STACK;
}

static __attribute__((noinline)) void find_callers(u64 pc, u64 *site)
{
	struct walk walk = { .from = pc, .site = site };
	u64 at = CALLER, stack = (u64)__builtin_dwarf_cfa();

	while (walk_to(&walk, at, stack)) {
		struct frame *frame = frame_of(at);

		if (frame->pc != at) {
			walk = (struct walk){ .from = pc, .site = site };
			_Unwind_Backtrace(learn_frame, &walk);
			return;
		}
		stack += frame->size;
		at = ((u64 *)stack)[-1];
	}
}

/* A lock that is taken.  Callers are looked up only where the line itself is one of the lock functions':
 * of an inlined spin_lock it says enough. */
static struct held lock_at(u64 lock, u64 pc, int is_function)
{
	struct held held = { .lock = lock, .site = { pc }, .step = rt.cur->steps };

	if (is_function || pc - rt.lock_code < rt.lock_code_end - rt.lock_code)
		find_callers(pc, held.site);
	for (u32 i = 0; i < SITE_DEPTH && held.site[i]; i++)
		held.key = mix(held.key, held.site[i]);
	return held;
}

static int is_held(const struct held *one, const struct held *other)
{
	return one->lock == other->lock && one->key == other->key;
}

static void note_edges(const struct held *taken)
{
	struct task *t = rt.cur;

	for (u32 i = 0; i < t->nr_held; i++) {
		const struct held *held = &t->held[i];
		u64 slot = mix(held->lock ^ held->key, taken->lock ^ taken->key) % (2 * MAX_EDGES);
		u32 number;

		while ((number = rt.edge_numbers[slot]) && !(is_held(&rt.edges[number - 1].held, held) &&
							     is_held(&rt.edges[number - 1].taken, taken)))
			slot = (slot + 1) % (2 * MAX_EDGES);
		if (!number && rt.nr_edges < MAX_EDGES) {
			rt.edges[rt.nr_edges++] = (struct edge){ *held, *taken, t - rt.task, rt.nr_done };
			rt.edge_numbers[slot] = rt.nr_edges;
		}
	}
}

static void lock_taken(struct held taken)
{
	struct task *t = rt.cur;

	note_edges(&taken);
	if (t->nr_held < MAX_HELD)
		t->held[t->nr_held++] = taken;
}

static void lock_given(u64 lock)
{
	struct task *t = rt.cur;

	for (u32 i = t->nr_held; i-- > 0;)
		if (t->held[i].lock == lock) {
			memmove(&t->held[i], &t->held[i + 1], (--t->nr_held - i) * sizeof(t->held[0]));
			return;
		}
}

#define SPIN_OWNER 0xffffu

/* A spinlock's lower half names its owner.  So does nothing else, but that a semaphore's first reader
 * looks as CPU 0 does; what it is shows when it is entered in held_locks. */
static void watch_cmpxchg32(const volatile void *p, u32 old, u32 new, u64 pc)
{
	if ((old & SPIN_OWNER) == 0 && (new & SPIN_OWNER) == rt.cur->cpu + 1)
		lock_taken(lock_at((u64)p, pc, 0));
}

static void watch_store16(const volatile void *p, u32 old, u32 new)
{
	if (new == 0 && old == rt.cur->cpu + 1)
		lock_given((u64)p);
}

/* A bit of a word is set or cleared. */
static void watch_bits(const volatile void *p, u64 old, u64 new, u64 pc)
{
	if (!((old ^ new) & rt.buffer_lock) || pc - rt.buffer_code >= rt.buffer_code_end - rt.buffer_code)
		return;
	if (new & rt.buffer_lock)
		lock_taken(lock_at((u64)p, pc, 1));
	else
		lock_given((u64)p);
}

/*
 * The current task is about to write to its list of sleeping locks, or to their number.  Taking
 * one enters it first and counts it then; giving one back is the other way round, so that a write
 * to the list that is longer than the number strikes what is there.
 */
static void watch_sleeping_locks(u64 offset, u64 pc)
{
	struct task *t = rt.cur;
	u64 *count = (u64 *)(rt.base + t->sleeping_locks), *locks = count + 1;

	if (offset == t->sleeping_locks) {
		if (t->taking) {
			struct held taken = lock_at(locks[*count], pc, 1);

			lock_given(taken.lock & ~3ull);
			lock_taken(taken);
			t->nr_sleeping++;
			t->taking = 0;
		}
	} else if (*count == t->nr_sleeping) {
		t->taking = 1;
	} else {
		lock_given(*(u64 *)(rt.base + offset));
		t->nr_sleeping--;
	}
}

/* The current task falls asleep.  Waiting until somebody unlocks a page is an order of locks, even
 * if it does not want the lock. */
static void watch_sleep(u64 pc)
{
	enum { WAIT_KIND, WAIT_CHANNEL, HELD_PAGE = 1 };
	struct task *t = rt.cur;

	if (t->nr_held && t->wait[WAIT_KIND] == rt.page_wait) {
		struct held wanted = lock_at(t->wait[WAIT_CHANNEL] | HELD_PAGE, pc, 1);

		note_edges(&wanted);
	}
}

/* What a scenario's tasks hold when a run begins. */
static void find_sleeping_locks(struct task *t)
{
	u64 *count = (u64 *)(rt.base + t->sleeping_locks);

	t->taking = 0;
	t->nr_held = t->nr_sleeping = *count;
	for (u32 i = 0; i < t->nr_held; i++)
		t->held[i] = (struct held){ .lock = count[1 + i] };
}

/* ---- quiet points ------------------------------------------------------- */

/*
 * Nobody is inside the kernel, as the freezer would have it: the machine must be whole.  A program that
 * calls kernel functions by name is outside between them with all that it holds; so with one of these
 * there is no saying.
 */
static int nobody_inside(void)
{
	for (u32 i = 0; i < rt.nr_tasks; i++)
		if (*rt.task[i].in_kernel || *rt.task[i].access_seq & 1 ||
		    (rt.by_hand >> i & 1 && rt.task[i].state != DONE))
			return 0;
	return 1;
}

EXPORT u64 rt_state_hash(void);

/* The place of a state in the table of those that are known to be whole. */
static u64 *quiet_slot(u64 state)
{
	u64 slot = state % MAX_QUIET;

	while (rt.quiet[slot] && rt.quiet[slot] != state)
		slot = (slot + 1) % MAX_QUIET;
	return &rt.quiet[slot];
}

/* The current task has just left the kernel.  Each state is audited once, by the hub: an audit needs
 * more stack than a task's, and Python. */
static __attribute__((noinline)) void look_if_quiet(void)
{
	u64 state;

	if (!rt.on_quiet || rt.outcome != HELD || !nobody_inside())
		return;
	state = rt_state_hash() | 1;
	if (*quiet_slot(state) || rt.nr_quiet > MAX_QUIET / 2)
		return;
	rt.is_quiet = 1;
	switch_to_hub();
	/* As it was: what an audit reads is no part of the run. */
	*quiet_slot(state) = state;
	rt.nr_quiet++;
}

/* ---- what gcc calls ---------------------------------------------------- */

EXPORT void __tsan_init(void) { }
EXPORT void __tsan_func_entry(void *pc) { (void)pc; }
EXPORT void __tsan_func_exit(void) { }

#define PLAIN(N)                                                                                  \
	EXPORT void __tsan_read##N(void *p) { on_access(p, N, 0, CALLER); }                       \
	EXPORT void __tsan_write##N(void *p) { on_access(p, N, IS_WRITE, CALLER); }               \
	EXPORT void __tsan_unaligned_read##N(void *p) { on_access(p, N, 0, CALLER); }             \
	EXPORT void __tsan_unaligned_write##N(void *p) { on_access(p, N, IS_WRITE, CALLER); }     \
	EXPORT void __tsan_volatile_read##N(void *p) { on_access(p, N, 0, CALLER); }              \
	EXPORT void __tsan_volatile_write##N(void *p) { on_access(p, N, IS_WRITE, CALLER); }

PLAIN(1)
PLAIN(2)
PLAIN(4)
PLAIN(8)
PLAIN(16)

EXPORT void __tsan_read_range(void *p, u64 size) { on_access(p, size, 0, CALLER); }
EXPORT void __tsan_write_range(void *p, u64 size) { on_access(p, size, IS_WRITE, CALLER); }
EXPORT void __tsan_vptr_update(void **p, void *v) { on_access(p, 8, IS_WRITE, CALLER); (void)v; }

/*
 * A load that finds, with nothing else in between, what this task found there just now is a
 * turn of a bounded spin.  The second may still be switched before, the rest are not looked at:
 * whoever spins in vain falls asleep, and whoever is to meet the change meets it at the second.
 */
static int is_spin(const volatile void *p, u64 value)
{
	struct task *t = rt.cur;

	if (t->spins && t->spin_address == (u64)p && t->spin_value == value) {
		t->spins++;
		return t->spins > 2;
	}
	return 0;
}

#define ATOMICS(T, N)                                                                             \
EXPORT T __tsan_atomic##N##_load(const volatile T *p, int order)                                  \
{                                                                                                 \
	if (in_run(p)) {                                                                          \
		u64 spins = rt.cur->spins;                                                        \
		if (is_spin(p, *p)) {                                                             \
			rt.cur->steps++;                                                          \
			if (rt.cur->steps != rt.stop_at)                                          \
				return *p;                                                        \
			rt.cur->steps--;                                                          \
		}                                                                                 \
		spins = rt.cur->spins;                                                            \
		on_access(p, sizeof(T), IS_ATOMIC, CALLER);                                       \
		synchronize(p, 1, 0, order);                                                      \
		rt.cur->spins = spins + !spins;                                                   \
		rt.cur->spin_address = (u64)p;                                                    \
		rt.cur->spin_value = *p;                                                          \
	}                                                                                         \
	return *p;                                                                                \
}                                                                                                 \
EXPORT void __tsan_atomic##N##_store(volatile T *p, T v, int order)                               \
{                                                                                                 \
	on_access(p, sizeof(T), IS_WRITE | IS_ATOMIC, CALLER);                                    \
	if (in_run(p)) {                                                                          \
		synchronize(p, 0, 1, order);                                                      \
		if (N == 16)                                                                      \
			watch_store16(p, *p, v);                                                  \
	}                                                                                         \
	*p = v;                                                                                   \
	if (N == 32 && v == 0 && rt.mode == RUN && (volatile u32 *)p == rt.cur->in_kernel)        \
		look_if_quiet();                                                                  \
}                                                                                                 \
EXPORT T __tsan_atomic##N##_exchange(volatile T *p, T v, int order)                               \
{                                                                                                 \
	T old;                                                                                    \
	on_access(p, sizeof(T), IS_WRITE | IS_ATOMIC, CALLER);                                    \
	if (in_run(p))                                                                            \
		synchronize(p, 1, 1, order);                                                      \
	old = *p;                                                                                 \
	*p = v;                                                                                   \
	return old;                                                                               \
}                                                                                                 \
EXPORT int __tsan_atomic##N##_compare_exchange_strong(volatile T *p, T *expected, T v, int order, \
						      int failure)                               \
{                                                                                                 \
	T old;                                                                                    \
	on_access(p, sizeof(T), IS_WRITE | IS_ATOMIC, CALLER);                                    \
	old = *p;                                                                                 \
	if (in_run(p)) {                                                                          \
		synchronize(p, 1, old == *expected, old == *expected ? order : failure);          \
		if (N == 32 && old == *expected)                                                  \
			watch_cmpxchg32(p, old, v, CALLER);                                               \
	}                                                                                         \
	if (old == *expected) {                                                                   \
		*p = v;                                                                           \
		return 1;                                                                         \
	}                                                                                         \
	*expected = old;                                                                          \
	return 0;                                                                                 \
}                                                                                                 \
EXPORT int __tsan_atomic##N##_compare_exchange_weak(volatile T *p, T *expected, T v, int order,   \
						    int failure)                                 \
{ return __tsan_atomic##N##_compare_exchange_strong(p, expected, v, order, failure); }            \
EXPORT T __tsan_atomic##N##_compare_exchange_val(volatile T *p, T expected, T v, int order,       \
						 int failure)                                    \
{ __tsan_atomic##N##_compare_exchange_strong(p, &expected, v, order, failure); return expected; } \
FETCH(T, N, add, +, IS_ADD)                                                                       \
FETCH(T, N, sub, -, IS_ADD)                                                                       \
FETCH(T, N, and, &, 0)                                                                            \
FETCH(T, N, or, |, 0)                                                                             \
FETCH(T, N, xor, ^, 0)

#define FETCH(T, N, name, op, extra)                                                              \
EXPORT T __tsan_atomic##N##_fetch_##name(volatile T *p, T v, int order)                           \
{                                                                                                 \
	T old;                                                                                    \
	on_access(p, sizeof(T), IS_WRITE | IS_ATOMIC | extra, CALLER);                            \
	if (in_run(p))                                                                            \
		synchronize(p, 1, 1, order);                                                      \
	old = *p;                                                                                 \
	*p = old op v;                                                                            \
	if (N == 64 && extra != IS_ADD && in_run(p))                                              \
		watch_bits(p, old, *p, CALLER);                                                   \
	return old;                                                                               \
}

ATOMICS(u8, 8)
ATOMICS(u16, 16)
ATOMICS(u32, 32)
ATOMICS(u64, 64)

/* ---- what the linker sends here instead of to libc ---------------------- */

EXPORT void *__wrap_memcpy(void *to, const void *from, size_t size)
{
	on_access(from, size, size > 8 ? IS_RANGE : 0, CALLER);
	on_access(to, size, IS_WRITE | (size > 8 ? IS_RANGE : 0), CALLER);
	return memcpy(to, from, size);
}

EXPORT void *__wrap_memmove(void *to, const void *from, size_t size)
{
	on_access(from, size, IS_RANGE, CALLER);
	on_access(to, size, IS_WRITE | IS_RANGE, CALLER);
	return memmove(to, from, size);
}

EXPORT void *__wrap_memset(void *to, int byte, size_t size)
{
	on_access(to, size, IS_WRITE | IS_RANGE, CALLER);
	return memset(to, byte, size);
}

EXPORT char *__wrap_strncpy(char *to, const char *from, size_t size)
{
	on_access(to, size, IS_WRITE | IS_RANGE, CALLER);
	return strncpy(to, from, size);
}

/* ---- the host's files ---------------------------------------------------- */

/*
 * A file of the host is memory behind the block: a page whose first word is its length, then its
 * bytes.  So what a run writes to it is undone with the run, and each job has files of its own.
 * A descriptor is HOST_FD + the file's number.  A system call is atomic, and orders nothing: two
 * transfers of the same page, one of which writes, are a data race unless the kernel orders them.
 */
enum { HOST_FD = 1 << 20, HOST_FILE_SIZE = 16 << 12 };

/* The length word of a file, which its bytes follow a page later; NULL for other descriptors. */
static u64 *host_file(int fd)
{
	u64 offset = rt.host + (u64)(fd - HOST_FD) * HOST_FILE_SIZE;

	return fd >= HOST_FD && offset < rt.size ? (u64 *)(rt.base + offset) : NULL;
}

EXPORT ssize_t __wrap_pread64(int fd, void *to, size_t size, off_t offset)
{
	u64 *length = host_file(fd);
	char *from = (char *)length + 4096 + offset;

	if (!length)
		return pread(fd, to, size, offset);
	on_access(length, 8, IS_ATOMIC, CALLER);
	if ((u64)offset >= *length)
		return 0;
	if (size > *length - offset)
		size = *length - offset;
	on_access(from, size, IS_RANGE, CALLER);
	on_access(to, size, IS_WRITE | IS_RANGE, CALLER);
	memcpy(to, from, size);
	return size;
}

EXPORT ssize_t __wrap_pwrite64(int fd, const void *from, size_t size, off_t offset)
{
	u64 *length = host_file(fd), end = offset + size;
	char *to = (char *)length + 4096 + offset;

	if (!length)
		return pwrite(fd, from, size, offset);
	if (end > HOST_FILE_SIZE - 4096) {
		errno = ENOSPC;
		return -1;
	}
	on_access(length, 8, IS_ATOMIC | (end > *length ? IS_WRITE : 0), CALLER);
	on_access(from, size, IS_RANGE, CALLER);
	on_access(to, size, IS_WRITE | IS_RANGE, CALLER);
	memcpy(to, from, size);
	if (end > *length)
		*length = end;
	return size;
}

EXPORT int __wrap_ftruncate64(int fd, off_t size)
{
	u64 *length = host_file(fd);
	char *to = (char *)length + 4096 + size;

	if (!length)
		return ftruncate(fd, size);
	if (size > HOST_FILE_SIZE - 4096) {
		errno = ENOSPC;
		return -1;
	}
	on_access(length, 8, IS_ATOMIC | IS_WRITE, CALLER);
	/* No access of the bytes: who writes behind the new end makes the file longer again. */
	if ((u64)size < *length) {
		mark_dirty((u64)to - rt.base, *length - size);
		memset(to, 0, *length - size);
	}
	*length = size;
	return 0;
}

EXPORT int __wrap_fdatasync(int fd)
{
	return host_file(fd) ? 0 : fdatasync(fd);
}

/* What is opened again, through /proc, has the number that it had. */
EXPORT int __wrap_open64(const char *path, int flags, ...)
{
	int fd;

	if (sscanf(path, "/proc/%*d/fd/%d", &fd) == 1 && host_file(fd))
		return fd;
	return open(path, flags);
}

EXPORT int __wrap_close(int fd)
{
	return host_file(fd) ? 0 : close(fd);
}

/* ---- time and sleep ------------------------------------------------------- */

/* Time passes by being looked at, the same in every run of a schedule. */
EXPORT int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	if (rt.mode == OFF) {
		int rc = clock_gettime(clock, ts);

		ts->tv_sec += rt.seconds_waited;
		return rc;
	}
	rt.now += 100;
	ts->tv_sec = rt.now / 1000000000u;
	ts->tv_nsec = rt.now % 1000000000u;
	return 0;
}

/* Sleeping and waking are accesses that conflict, and nothing that orders memory. */
static void futex_event(u32 *word, int how, u64 pc)
{
	struct task *t = rt.cur;
	struct cell *cell;

	t->steps++;
	rt.steps++;
	t->spins = 0;
	if (t->steps == rt.stop_at) {
		struct task *next = &rt.task[rt.plan[++rt.at].task];

		if (!is_enabled(next))
			abort_run(DIVERGED);
		next->state = READY;
		preempt(next);
	} else
		at_point(NULL, 1);
	trace((u64)word, 4, how, pc);
	cell = fresh(cell_of((u64)word - rt.base));
	t->hash = cell->write_hash = mix(t->hash, mix(cell->write_hash, cell->read_hash));
	cell->read_hash = 0;
}

static long futex_wait(u32 *word, u32 expected, u64 pc)
{
	struct task *t = rt.cur;

	if (rt.mode == RUN)
		futex_event(word, IS_WAIT | IS_ATOMIC, pc);
	if (*(volatile u32 *)word != expected) {
		errno = EAGAIN;
		return -1;
	}
	t->futex = word;
	t->asleep_since = ++rt.sleeps;
	t->timed_out = 0;
	if (rt.mode == RUN) {
		watch_sleep(pc);
		trace((u64)word, 4, IS_SLEEP | IS_ATOMIC, pc);
	}
	give_way(ASLEEP);
	if (t->timed_out) {
		errno = ETIMEDOUT;
		return -1;
	}
	return 0;
}

static long futex_wake(u32 *word, int count, u64 pc)
{
	long woken = 0;

	if (rt.mode == RUN) {
		futex_event(word, IS_WAKE | IS_ATOMIC, pc);
		rt.writes++;
	}
	while (woken < count) {
		struct task *first = NULL;

		for (u32 i = 0; i < rt.nr_tasks; i++)
			if (rt.task[i].state == ASLEEP && rt.task[i].futex == word &&
			    (!first || rt.task[i].asleep_since < first->asleep_since))
				first = &rt.task[i];
		if (!first)
			break;
		first->state = READY;
		first->hash = mix(first->hash, rt.cur->hash);
		woken++;
	}
	return woken;
}

EXPORT long __wrap_syscall(long number, ...)
{
	long a[6];
	va_list list;

	va_start(list, number);
	for (int i = 0; i < 6; i++)
		a[i] = va_arg(list, long);
	va_end(list);
	if (rt.mode != OFF && number == SYS_futex && (u64)a[0] - rt.base < rt.size) {
		if ((int)a[1] == FUTEX_WAIT)
			return futex_wait((u32 *)a[0], a[2], CALLER);
		return futex_wake((u32 *)a[0], a[2], CALLER);
	}
	/* Who would sleep while a scenario is set up is alone, and would until the hung-task limit. */
	if (rt.mode == OFF && number == SYS_futex && (u64)a[0] - rt.base < rt.size && (int)a[1] == FUTEX_WAIT &&
	    *(u32 *)a[0] == (u32)a[2]) {
		rt.seconds_waited++;
		errno = ETIMEDOUT;
		return -1;
	}
	/* Every schedule is sequentially consistent already. */
	if (rt.mode != OFF && number == SYS_membarrier)
		return 0;
	return syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Whoever yields waits for somebody else to change something. */
EXPORT int __wrap_sched_yield(void)
{
	struct task *t = rt.cur;

	if (rt.mode == OFF)
		return 0;
	t->spins = 0;
	t->asleep_since = ++rt.sleeps;
	t->writes_seen = rt.writes;
	t->hash = mix(t->hash, 1);
	give_way(YIELDED);
	t->state = READY;
	return 0;
}

EXPORT void __wrap__exit(int status)
{
	if (rt.mode == OFF) {
		if (rt.on_exit)
			rt.on_exit();
		_exit(status);
	}
	rt.cur->state = DEAD;
	abort_run(BUG);
}

/* ---- a wild pointer ----------------------------------------------------- */

static void oops(void)
{
	rt.cur->state = DEAD;
	abort_run(OOPS);
}

static _Unwind_Reason_Code note_fault_frame(struct _Unwind_Context *context, void *argument)
{
	u32 *depth = argument;

	rt.fault_site[(*depth)++] = _Unwind_GetIP(context);
	return *depth < FAULT_DEPTH ? _URC_NO_REASON : _URC_END_OF_STACK;
}

/* Goes on in oops() instead, on the stack of the task. */
static void on_segv(int sig, siginfo_t *info, void *context)
{
	ucontext_t *uc = context;

	if (rt.mode == OFF) {
		signal(sig, SIG_DFL);
		return;
	}
	rt.fault_address = (u64)info->si_addr;
	memset(rt.fault_site, 0, sizeof(rt.fault_site));
	_Unwind_Backtrace(note_fault_frame, &(u32){ 0 });
#if defined(__x86_64__)
	uc->uc_mcontext.gregs[REG_RSP] = ((uc->uc_mcontext.gregs[REG_RSP] - 256) & ~15ull) - 8;
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)oops;
#else
	uc->uc_mcontext.sp = (uc->uc_mcontext.sp - 256) & ~15ull;
	uc->uc_mcontext.pc = (u64)oops;
#endif
}

/* ---- one run ------------------------------------------------------------ */

static void begin_run(PyObject **greenlets)
{
	static const u32 zero[MAX_TASKS];

	rt.run++;
	rt.aborted = 0;
	rt.at = rt.nr_done = rt.preemptions = 0;
	rt.outcome = HELD;
	rt.fault_address = 0;
	rt.now = 1000000000;
	rt.writes = rt.sleeps = rt.yields = rt.steps = rt.points = 0;
	rt.is_quiet = rt.by_hand = 0;
	rt.nr_trace = 0;
	rt.pending = NULL;
	rt.branching = rt.strategy == EXHAUSTIVE || rt.strategy == ALL;
	for (u32 i = 0; i < rt.nr_tasks; i++) {
		struct task *t = &rt.task[i];

		t->greenlet = (PyGreenlet *)greenlets[i];
		t->state = READY;
		t->steps = 0;
		t->hash = i + 1;
		t->spins = t->spin_address = t->nr_dependencies = 0;
		find_sleeping_locks(t);
		memcpy(t->clock, zero, sizeof(zero));
		memcpy(t->acquired, zero, sizeof(zero));
		memcpy(t->released, zero, sizeof(zero));
		t->clock[i] = 1;
		t->priority = 1000 + next_random() % 1000000;
	}
	for (u32 i = 0; i + 1 < rt.pct_depth; i++)
		rt.pct_changes[i] = 1 + next_random() % (rt.pct_points + 1);
}

static void enter_task(struct task *t)
{
	t->state = READY;
	rt.cur = t;
	PERCPU[0] = t->percpu[0];
	PERCPU[1] = t->percpu[1];
	Py_XDECREF(PyGreenlet_Switch(t->greenlet, rt.no_args, NULL));
}

/* Audits the machine for a task that has come here for that.  Whether it is whole. */
static int audit_when_quiet(void)
{
	int broken;

	rt.is_quiet = 0;
	rt.mode = OFF;
	broken = rt.on_quiet();
	rt.mode = RUN;
	if (broken) {
		note_segment(rt.cur - rt.task, RUN_ON);
		rt.outcome = BROKEN;
		rt.failed_task = rt.cur - rt.task;
		rt.aborted = 1;
	}
	return !broken;
}

static void resume_task(struct task *t)
{
	enter_task(t);
	while (rt.is_quiet && audit_when_quiet())
		enter_task(rt.cur);
	/* It was another task, perhaps, that came back here, and it has ended. */
	if (!rt.aborted && rt.cur->state == READY) {
		rt.cur->state = DONE;
		rt.writes++;
	}
}

static int all_done(void)
{
	for (u32 i = 0; i < rt.nr_tasks; i++)
		if (rt.task[i].state != DONE)
			return 0;
	return 1;
}

/* Nobody can go on.  Would they, if their sleep timed out?  Then they slept for nothing. */
static void explain_stillness(void)
{
	rt.mode = DRAIN;
	rt.failed_task = 0;
	while (rt.failed_task < rt.nr_tasks - 1 && rt.task[rt.failed_task].state != ASLEEP)
		rt.failed_task++;
	rt.outcome = DEADLOCK;
	for (u32 round = 0; round < TIMEOUT_ROUNDS * rt.nr_tasks && !all_done(); round++)
		for (u32 i = 0; i < rt.nr_tasks && !rt.aborted; i++)
			if (rt.task[i].state != DONE && rt.task[i].state != DEAD) {
				rt.task[i].timed_out = rt.task[i].state == ASLEEP;
				resume_task(&rt.task[i]);
			}
	if (all_done())
		rt.outcome = LOST_WAKEUP;
}

/* Runs the tasks by the plan and then by the strategy.  The outcome. */
EXPORT int rt_run(PyObject **greenlets)
{
	struct task *next;

	begin_run(greenlets);
	rt.hub = PyGreenlet_GetCurrent();
	rt.mode = RUN;
	rt.cur = &rt.task[0];
	if (rt.nr_plan) {
		start_segment();
		next = &rt.task[rt.plan[0].task];
	} else
		next = choose();
	while (next && !rt.aborted) {
		resume_task(next);
		if (rt.aborted || rt.cur->state != DONE)
			break;
		note_segment(rt.cur - rt.task, RUN_ON);
		if (all_done())
			break;
		next = choose();
		for (u32 i = 0; !next && rt.outcome != DIVERGED && i < rt.nr_tasks; i++)
			if (rt.task[i].state == YIELDED)
				next = &rt.task[i];
	}
	settle_trace();
	if (!rt.aborted && rt.outcome != DIVERGED && !all_done())
		explain_stillness();
	rt.mode = OFF;
	Py_DECREF(rt.hub);
	return rt.outcome;
}

/* ---- the block ---------------------------------------------------------- */

static void *zeroed(u64 size)
{
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return memory == MAP_FAILED ? NULL : memory;
}

/* Learns the block, with the host's files behind it.  0, or -1 without memory. */
EXPORT int rt_open(u64 base, u64 size, u64 frames, u64 host)
{
	struct sigaction action = { .sa_sigaction = on_segv, .sa_flags = SA_SIGINFO | SA_NODEFER };

	PyGreenlet_Import();
	if (!_PyGreenlet_API)
		return -1;
	rt.base = base;
	rt.size = size;
	rt.frames = frames;
	rt.host = host;
	rt.no_args = PyTuple_New(0);
	rt.snapshot = zeroed(size);
	rt.words = zeroed(size / 8);
	rt.dirty = zeroed(size >> CHUNK_SHIFT);
	rt.chunks = zeroed((size >> CHUNK_SHIFT) * sizeof(u32));
	rt.cells = zeroed(size / 4 * sizeof(struct cell));
	rt.uses = zeroed(size / 4 * sizeof(struct uses));
	rt.awaited = zeroed(size / 4 * sizeof(struct uses *));
	rt.pages = zeroed(((size - frames) >> 12) * sizeof(struct cell));
	rt.page_touched = zeroed(((size - frames) >> 12) * 64);
	rt.cache = zeroed(sizeof(u64) << CACHE_BITS);
	rt.random = 88172645463325252u;
	rt.step_limit = 200000;
	rt.step_bound = RUN_ON;
	if (!rt.snapshot || !rt.words || !rt.dirty || !rt.chunks || !rt.cells || !rt.uses ||
	    !rt.awaited || !rt.pages ||
	    !rt.page_touched || !rt.cache)
		return -1;
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	return 0;
}

/* Sets flags of the words from `address` on. */
EXPORT void rt_flag_words(u64 address, u64 size, u8 flags)
{
	for (u64 word = (address - rt.base) / 8; word < (address + size - rt.base + 7) / 8; word++)
		rt.words[word] |= flags;
}

EXPORT u8 *rt_words(void) { return rt.words; }

/* The block as it is now is what every run begins with. */
EXPORT void rt_snapshot(u64 used)
{
	memset(rt.dirty, 0, rt.size >> CHUNK_SHIFT);
	rt.nr_chunks = 0;
	memcpy(rt.snapshot, (void *)rt.base, used);
	memcpy(rt.snapshot + rt.frames, (void *)(rt.base + rt.frames), rt.size - rt.frames);
}

EXPORT void rt_restore(void)
{
	for (u32 i = 0; i < rt.nr_chunks; i++) {
		u64 offset = (u64)rt.chunks[i] << CHUNK_SHIFT;

		memcpy((void *)(rt.base + offset), rt.snapshot + offset, 1 << CHUNK_SHIFT);
		rt.dirty[rt.chunks[i]] = 0;
	}
	rt.nr_chunks = 0;
}

/* A number for the state that a run has left, whatever the order in which it came about. */
EXPORT u64 rt_state_hash(void)
{
	u64 sum = 0;

	for (u32 i = 0; i < rt.nr_chunks; i++) {
		u64 first = ((u64)rt.chunks[i] << CHUNK_SHIFT) / 8, hash = rt.chunks[i];
		u64 *now = (u64 *)rt.base, *then = (u64 *)rt.snapshot;
		int same = 1;

		for (u64 word = first; word < first + (1 << CHUNK_SHIFT) / 8; word++)
			if (now[word] != then[word] && !(rt.words[word] & WORD_IGNORED)) {
				hash = mix(hash + word, now[word]);
				same = 0;
			}
		if (!same)
			sum += hash;
	}
	return sum;
}

/* A task: its number, slot, pid and CPU, and where in the slot some fields are. */
EXPORT void rt_task(u32 index, u64 task, u64 pid, u32 cpu, u64 nr_held, u64 wait_kind, u64 in_kernel, u64 access_seq)
{
	rt.task[index].in_kernel = (u32 *)in_kernel;
	rt.task[index].access_seq = (u32 *)access_seq;
	rt.task[index].sleeping_locks = nr_held - rt.base;
	rt.task[index].wait = (u64 *)wait_kind;
	rt.task[index].percpu[0] = task;
	rt.task[index].percpu[1] = pid;
	rt.task[index].cpu = cpu;
	rt.nr_tasks = index + 1;
}

/* What is called at a quiet point that was not seen before; NULL: nothing. */
EXPORT void rt_on_quiet(int (*on_quiet)(void)) { rt.on_quiet = on_quiet; }

/* What is called when the machine panics outside a run, before that ends the process. */
EXPORT void rt_on_exit(void (*on_exit)(void)) { rt.on_exit = on_exit; }

/* The current task's program calls a kernel function by name. */
EXPORT void rt_by_hand(void)
{
	if (rt.mode == RUN)
		rt.by_hand |= 1u << (rt.cur - rt.task);
}

/* Where the code of the modules locks and buffer is, which bit locks a buffer, and which kind of wait
 * is for a page lock. */
EXPORT void rt_locks(const u64 *lock_code, const u64 *buffer_code, u64 buffer_lock, u64 page_wait)
{
	rt.lock_code = lock_code[0];
	rt.lock_code_end = lock_code[1];
	rt.buffer_code = buffer_code[0];
	rt.buffer_code_end = buffer_code[1];
	rt.buffer_lock = buffer_lock;
	rt.page_wait = page_wait;
}

/* ---- strategies, seen from explore.py ------------------------------------ */

EXPORT void rt_strategy(u32 strategy, u32 bound, u32 step_bound, u64 seed, u32 depth, u32 points)
{
	rt.strategy = strategy;
	rt.bound = bound < 62 ? bound : 62;
	rt.step_bound = step_bound;
	rt.random = mix(seed, 1) | 1;
	rt.pct_depth = depth < 16 ? depth : 16;
	rt.pct_points = points;
}

EXPORT void rt_plan(const struct segment *segments, u32 count)
{
	rt.nr_plan = count;
	memcpy(rt.plan, segments, count * sizeof(*segments));
}

/* Makes the next schedule that waits the plan, those with the fewest preemptions first.  Its
 * number of segments, or 0. */
EXPORT u32 rt_next(void)
{
	for (u32 cost = 0; cost < 64; cost++) {
		struct work *work = rt.work[cost];

		if (!work)
			continue;
		rt.work[cost] = work->next;
		rt.nr_work--;
		rt_plan(work->segments, work->count);
		free(work);
		return rt.nr_plan;
	}
	return 0;
}

/* Drops what has not been run, and what nothing has come for. */
EXPORT void rt_drop_work(void)
{
	while (rt_next())
		;
	while (rt.nr_awaited) {
		struct uses *uses = rt.awaited[--rt.nr_awaited];

		while (uses->later) {
			struct work *work = uses->later;

			uses->later = work->next;
			free(work);
		}
	}
}

/* A new unit: it shares nothing that is known with those before; 0: none, all is to be tried. */
EXPORT void rt_unit(u64 unit)
{
	rt.unit = unit ? mix(unit, 0x5bd1e995) : 0;
	rt.nr_units++;
}

/* A new round: what was found to be a point is one.  How many there are. */
EXPORT u32 rt_round(void)
{
	u32 points = 0;

	for (u64 word = 0; word < rt.size / 8; word++) {
		if (rt.words[word] & WORD_NEW_POINT)
			rt.words[word] = (rt.words[word] & ~WORD_NEW_POINT) | WORD_POINT;
		points += rt.words[word] & WORD_POINT;
	}
	rt.new_points = 0;
	memset(rt.cache, 0, sizeof(u64) << CACHE_BITS);
	return points;
}

EXPORT const struct segment *rt_done(u32 *count) { *count = rt.nr_done; return rt.done; }
EXPORT const struct segment *rt_planned(u32 *count) { *count = rt.nr_plan; return rt.plan; }
EXPORT const struct race *rt_race(void) { return &rt.race; }
EXPORT const u64 *rt_fault_site(void) { return rt.fault_site; }
EXPORT const struct edge *rt_edges(void) { return rt.edges; }

/* Edges that were seen already count as new again. */
EXPORT void rt_forget_edges(void)
{
	rt.nr_edges = 0;
	memset(rt.edge_numbers, 0, sizeof(rt.edge_numbers));
}

/* As Statistics of engine.py. */
EXPORT void rt_statistics(u64 *out)
{
	u64 numbers[] = { rt.nr_cut, rt.new_points, rt.steps, rt.points, rt.preemptions, rt.nr_edges,
			  rt.failed_task, rt.fault_address, rt.nr_quiet };

	memcpy(out, numbers, sizeof(numbers));
}

/* From here on runs are traced, into memory that lasts until the next call. */
EXPORT void rt_trace(struct traced *entries, u64 count)
{
	rt.trace = entries;
	rt.max_trace = count;
	rt.nr_trace = 0;
}

EXPORT u64 rt_traced(void) { return rt.nr_trace; }

/* Which access traced runs show; step 0: none. */
EXPORT void rt_show(u32 task, u32 step)
{
	rt.shown_task = task;
	rt.shown_step = step;
}
