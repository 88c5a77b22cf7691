/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vmm oracle: rows of the catalogue, one after the other, on memory that is a KVM memslot and in our tables, with
 * every source attached: what changed, who said so, and whether the tables obeyed.
 *
 *   oracle         the command line, the table, JSON
 *   oracle_run     one row: memory, tables, sources, the action
 *   oracle_judge   what was heard and seen of it, and the verdict
 *   oracle_rows    the rows, and the actions of a process
 *   oracle_machine the actions of the kernel
 *   oracle_keeper  a process that changes settings of the machine for them, and puts them back
 */
#ifndef VMM_ORACLE_H
#define VMM_ORACLE_H

#include <pthread.h>
#include <umbra/events.h>
#include <umbra/module.h>
#include <umbra/tracepoint.h>

/* `vmm oracle` with what follows it. Returns: the exit status. */
int oracle_main(int argc, char **argv);

/* ---- a row ----------------------------------------------------------------------------------------- */

/* The memory of a row: three blocks of 2M, in one mapping. Most rows act on AT, in the second block. */
#define ORACLE_BYTES (3 * UMBRA_HUGE_SIZE)
#define ORACLE_PAGES (3 * UMBRA_HUGE_PAGES)
#define ORACLE_AT    (UMBRA_HUGE_SIZE + 5 * UMBRA_PAGE_SIZE)
#define ORACLE_LAST  (2 * UMBRA_HUGE_SIZE)

enum oracle_memory {
	ORACLE_ANON,
	ORACLE_THP,
	ORACLE_MEMFD,
	ORACLE_MEMFD_THP,
	ORACLE_PRIVATE, /* of a memory file */
	ORACLE_FILE,
	ORACLE_HUGETLB,
	ORACLE_HUGETLB_FD,
};

/* Who acts: an own call of Umbra, another thread, another process, the kernel by itself. */
enum oracle_actor {
	ORACLE_OWN = 1 << 0,
	ORACLE_THREAD = 1 << 1,
	ORACLE_PROCESS = 1 << 2,
	ORACLE_KERNEL = 1 << 3,
};

/* By what a source could learn of it: this decides which promises apply. */
enum oracle_class {
	ORACLE_CALL,    /* a call that the kernel announces to userfaultfd */
	ORACLE_PROTECT, /* mprotect and write protection                   */
	ORACLE_NOTIFY,  /* told to an mmu_notifier only                    */
};

enum oracle_flags {
	ORACLE_HOLE = 1 << 0,      /* the page AT is not populated                  */
	ORACLE_HOLE_LAST = 1 << 1, /* the last block is not                         */
	ORACLE_ZEROES = 1 << 2,    /* populated by reads: the zero page             */
	ORACLE_READ = 1 << 3,      /* leaves by read faults                         */
	ORACLE_CHILD = 1 << 4,     /* a child is forked first, and lives            */
	ORACLE_SWAPS = 1 << 5,     /* needs swap                                    */
	ORACLE_NEEDS_UFFD = 1 << 6,
	ORACLE_NO_UFFD = 1 << 7,  /* registered for it, the kernel would not do it */
	ORACLE_SETTINGS = 1 << 8, /* changes settings of the machine, by a keeper */
};

struct oracle;

struct oracle_row {
	unsigned int nr; /* in the catalogue */
	const char *action;
	enum oracle_memory memory;
	unsigned int actors;
	enum oracle_class class;
	unsigned int flags;
	/* Before leaves are installed, and the action itself. Return: 0; -errno with o->why set where it helps. */
	int (*prepare)(struct oracle *o);
	int (*act)(struct oracle *o);
	const char *not_run; /* the reason why there is no action */
	const char *needs;   /* run with --disruptive only, and the reason */
	const char *by;      /* by what of the kernel's, where a row of the catalogue has several */
};
extern const struct oracle_row oracle_rows[];
extern const unsigned int oracle_rows_nr;

/* ---- a row while it runs ----------------------------------------------------------------------------- */

#define ORACLE_RANGES_MAX 4096
#define ORACLE_PATH       256                     /* longest path that the keeper takes */
#define ORACLE_BALLAST    (128 * UMBRA_HUGE_SIZE) /* what compaction finds to fill */

struct oracle_heard {
	struct hva_range v[ORACLE_RANGES_MAX];
	unsigned int nr, starts, ends;
	unsigned int late;      /* starts at which the host had changed already */
	enum umbra_cause cause; /* of the last */
	bool full;
};

struct oracle {
	int vm_fd; /* of KVM, or -1 */
	const struct oracle_row *row;
	enum oracle_actor actor;

	char *reservation;
	hva_t mem;
	int fd;
	struct umbra_chain *chain;
	struct umbra_mmu *mmu;
	struct umbra_root *root;
	struct umbra_hostmap *map;
	struct umbra_own *own;
	struct umbra_uffd *uffd;
	struct umbra_module *module;
	struct umbra_tracepoint *tracepoint;
	pthread_t reader;
	bool reading, registered, on_chain, listening;
	uint64_t own_removes; /* that userfaultfd heard before the action */
	uint64_t lost_before; /* by the tracepoints */
	char *window;
	uint64_t window_free[64];
	unsigned int window_nr;
	int child, to_child, from_child;
	int keeper, to_keeper;
	char *ballast; /* ORACLE_BALLAST bytes, or NULL */
	unsigned long vmstat_before[2];

	struct umbra_notifier listener;
	pthread_mutex_t lock;
	struct oracle_heard heard[UMBRA_SOURCE_NR];
	struct hva_range named[4],
		refused[4]; /* what the call named; what it took a permission from */
	unsigned int named_nr, refused_nr;
	char why[160];
};

/* For actions: what is named, and what may not be written any more. */
void oracle_names(struct oracle *o, uint64_t offset, uint64_t bytes);
void oracle_refuses(struct oracle *o, uint64_t offset, uint64_t bytes);
struct hva_range oracle_range(const struct oracle *o, uint64_t offset, uint64_t bytes);
int oracle_why(struct oracle *o, int error, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The pages of this row touched as at its beginning; how many are mapped otherwise than before the action. */
void oracle_touch(struct oracle *o);
unsigned int oracle_changed_so_far(struct oracle *o);
/* Hears what the sources have to say so far. */
void oracle_drain(struct oracle *o);
/* Files of /proc and /sys. Read: the first line; where the words of a choice are listed, the one that is chosen. Return: 0, -errno. */
int oracle_write_text(const char *path, const char *text);
int oracle_read_text(const char *path, char *text, size_t size);
/* Has the child do it, or ends it. */
int oracle_child_acts(struct oracle *o);
void oracle_child_ends(struct oracle *o);

/* ---- the machine, while a row with ORACLE_SETTINGS runs --------------------------------------------------- */

/*
 * The keeper is a process beside, forked before there is memory to share with it. What it has changed it puts back, the
 * last first, when it is ended, or the oracle is gone, by whatever signal. Idempotent: end.
 */
int oracle_keeper_start(struct oracle *o);
void oracle_keeper_end(struct oracle *o);
/* Each returns 0, -errno. The file @path says @text, until the end. */
int oracle_keeper_sets(struct oracle *o, const char *path, const char *text);
/* @text to @path; at the end @undo_text to @undo_path, unless NULL. */
int oracle_keeper_writes(struct oracle *o, const char *path, const char *text,
			 const char *undo_path, const char *undo_text);
/* The directory @path, until the end. */
int oracle_keeper_makes(struct oracle *o, const char *path);
/* A process that takes the memory of node @node, until the end. */
int oracle_keeper_hogs(struct oracle *o, int node);

enum oracle_cell {
	ORACLE_EXACT,    /* all that changed, and nothing that the call did not name */
	ORACLE_WIDER,    /* all that changed, and more                               */
	ORACLE_PART,     /* some of what changed                                     */
	ORACLE_MISSED,   /* it changed, and nothing was said                         */
	ORACLE_QUIET,    /* nothing changed, nothing was said                        */
	ORACLE_NEEDLESS, /* nothing changed, and something was said                 */
	ORACLE_KNOWN,    /* userfaultfd: it heard of it, and left it to the own call's bracket */
	ORACLE_OFF,      /* not there: the reason is in off[]                        */
	ORACLE_CELL_NR
};
extern const char *const oracle_cell_names[ORACLE_CELL_NR];

struct oracle_result {
	bool run;
	char why[256];       /* it was not */
	const char *no_uffd; /* why its cell is empty in this row only, or NULL */
	struct {
		enum oracle_cell cell;
		unsigned int starts, ends, late;
		enum umbra_cause cause;
		bool promised, broken;
	} source[UMBRA_SOURCE_NR];
	unsigned int leaves, leaves_2m; /* before, in pages; of them in 2M leaves */
	unsigned int changed, dropped, beyond, stale, silent;
	unsigned int checks, audit;
	unsigned int
		lost; /* records that the tracepoints' rings had no room for: then they promise nothing */
	bool obeyed; /* as far as a source promised it */
};

/* What the sources say goes here; while o->listening. */
extern const struct umbra_notifier_ops oracle_listener_ops;
void oracle_on_record(void *ctx, const struct umbra_tracepoint_record *rec);
/* How it is before the action; then, after it and a drain, what came of it. */
struct oracle_sources;
void oracle_look(struct oracle *o);
unsigned int oracle_heard_so_far(struct oracle *o);
void oracle_judge(struct oracle *o, const struct oracle_sources *s, struct oracle_result *r);

/* Which sources can be had at all; off[] says why not, or is NULL. */
struct oracle_sources {
	const char *off[UMBRA_SOURCE_NR];
	char text[UMBRA_SOURCE_NR][200];
	struct umbra_tracepoint *witness; /* of all addresses, for all rows */
};
int oracle_run(const struct oracle_row *row, enum oracle_actor actor,
	       const struct oracle_sources *s, int vm_fd, struct oracle_result *result);

#endif
