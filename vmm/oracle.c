/* SPDX-License-Identifier: BSD-2-Clause */
/* vmm oracle: which rows, by whom, and what came of them, as a table or as JSON. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <linux/capability.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <vmm/oracle.h>
#include <vmm/tracefs.h>
#include <vmm/vm.h>

#define SOURCES \
	(UMBRA_SOURCE_TRACEPOINT + 1) /* the columns; what comes after is no source of the host's */

static const struct {
	enum oracle_actor actor;
	const char *name;
} actors[] = {
	{ ORACLE_OWN, "own call" },
	{ ORACLE_THREAD, "thread" },
	{ ORACLE_PROCESS, "process" },
	{ ORACLE_KERNEL, "kernel" },
};

/* What was asked for. */
struct asked {
	char **words; /* numbers of rows; none: all */
	int nr;
	bool json, disruptive;
};

struct totals {
	unsigned int run, not_run, failed;
};

/* ---- what there is ------------------------------------------------------------------------------ */

static int open_kvm(char *why, size_t size)
{
	const int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int fd = -1;

	if (kvm < 0) {
		snprintf(why, size, "/dev/kvm: %s", strerror(errno));
		return -1;
	}
	do
		fd = ioctl(kvm, KVM_CREATE_VM, 0);
	while (fd < 0 && errno == EINTR);
	if (fd < 0)
		snprintf(why, size, "KVM_CREATE_VM: %s", strerror(errno));
	close(kvm);
	return fd;
}

static void off(struct oracle_sources *s, enum umbra_source source, const char *what, int error)
{
	snprintf(s->text[source], sizeof(s->text[source]), "%s: %s", what, strerror(error));
	s->off[source] = s->text[source];
}

static void probe_uffd(struct oracle_sources *s, struct umbra_chain *chain)
{
	const struct umbra_uffd_config config = { .fd = -1 };
	struct umbra_uffd_tried tried;
	struct umbra_uffd *uffd;
	const int e = umbra_uffd_open(&uffd, chain, &config, &tried);

	if (e)
		off(s, UMBRA_SOURCE_UFFD, "userfaultfd", -e);
	else
		umbra_uffd_close(uffd);
}

static void probe_module(struct oracle_sources *s, struct umbra_chain *chain,
			 const struct hva_range *page)
{
	const struct umbra_module_config config = { .fd = -1, .ranges = page, .nr = 1 };
	struct umbra_module *module;
	const int e = umbra_module_open(&module, chain, &config);

	if (!e)
		umbra_module_close(module);
	else if (e == -ENOENT)
		s->off[UMBRA_SOURCE_MODULE] =
			"no /dev/umbra: the module is not loaded (modprobe umbra)";
	else
		off(s, UMBRA_SOURCE_MODULE, "/dev/umbra", -e);
}

static void open_witness(struct oracle_sources *s, const char *no_kvm)
{
	/* once for all rows: to leave a tracepoint takes the kernel half a second */
	const struct hva_range user = { { 0 }, { 1ULL << 47 } };
	struct umbra_tracepoint_config config = { .ranges = &user, .nr = 1 };
	char *text = s->text[UMBRA_SOURCE_TRACEPOINT];
	const size_t size = sizeof(s->text[UMBRA_SOURCE_TRACEPOINT]);
	int e;

	if (no_kvm) {
		s->off[UMBRA_SOURCE_TRACEPOINT] = no_kvm;
		return;
	}
	e = tracefs_formats(config.formats, text, size);
	if (!e) {
		/* room for all that the kernel does to a row in one go; as much as is allowed */
		config.ring_order = 9;
		if (umbra_tracepoint_open(&s->witness, &config)) {
			config.ring_order = 0;
			e = umbra_tracepoint_open(&s->witness, &config);
		}
		if (e)
			tracefs_no_witness(-e, text, size);
	}
	if (e)
		s->off[UMBRA_SOURCE_TRACEPOINT] = text;
}

static int probe(struct oracle_sources *s, const char *no_kvm)
{
	void *at = mmap(NULL, UMBRA_PAGE_SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const uint64_t start = (uintptr_t)at;
	const struct hva_range page = { { start }, { start + UMBRA_PAGE_SIZE } };
	struct umbra_chain *chain;

	if (at == MAP_FAILED || umbra_chain_create(&chain, &umbra_os_posix))
		return -ENOMEM;
	probe_uffd(s, chain);
	probe_module(s, chain, &page);
	open_witness(s, no_kvm);
	umbra_chain_destroy(chain);
	munmap(at, UMBRA_PAGE_SIZE);
	return 0;
}

/* ---- the table ------------------------------------------------------------------------------------ */

static void print_head(const struct oracle_sources *s, const char *no_kvm)
{
	printf("What a source said of what changed:\n"
	       "  exact     all of it, and nothing that the call did not name\n"
	       "  wider     all of it, and more\n"
	       "  part      some of it             missed    nothing of it\n"
	       "  quiet     nothing changed, and nothing was said\n"
	       "  needless  nothing changed, and something was said\n"
	       "  known     userfaultfd heard of an own call, which has its own bracket, and left it to it\n"
	       "  n/a       the source is not there, or not for this memory\n"
	       "with how many starts/ends. \"!\": it had promised to. Changed, dropped, beyond need: pages of 4K.\n\n");
	if (no_kvm)
		printf("Not a memory slot of KVM: %s\n", no_kvm);
	for (unsigned int i = 0; i < SOURCES; i++) {
		if (s->off[i])
			printf("n/a %s: %s\n", umbra_source_name((enum umbra_source)i), s->off[i]);
	}
	printf("\n%3s  %-46s %-17s", "row", "action", "by");
	for (unsigned int i = 0; i < SOURCES; i++)
		printf(" %-16s", umbra_source_name((enum umbra_source)i));
	printf(" %7s %7s %6s  %s\n", "changed", "dropped", "beyond", "tables");
}

static void print_cell(const struct oracle_result *r, unsigned int i)
{
	const char *mark = r->source[i].broken ? "!" : "";
	char text[32];

	if (r->source[i].cell == ORACLE_OFF)
		snprintf(text, sizeof(text), "n/a");
	else if (i == UMBRA_SOURCE_TRACEPOINT)
		snprintf(text, sizeof(text), "%s%s %u/-", oracle_cell_names[r->source[i].cell],
			 mark, r->source[i].starts);
	else
		snprintf(text, sizeof(text), "%s%s %u/%u", oracle_cell_names[r->source[i].cell],
			 mark, r->source[i].starts, r->source[i].ends);
	printf(" %-16s", text);
}

static void print_tables(const struct oracle_result *r)
{
	if (r->checks)
		printf("  BROKEN: %u invariants", r->checks);
	else if (r->silent)
		printf("  WRONG: %u dropped, and nobody had said so", r->silent);
	else if (!r->obeyed)
		printf("  STALE: %u leaves, by the audit %u", r->stale, r->audit);
	else if (r->stale)
		printf("  stale: %u, no source here promises it", r->stale);
	else
		printf("  obeyed");
	if (r->no_uffd)
		printf("; uffd: %s", r->no_uffd);
	if (r->lost)
		printf("; the tracepoints lost %u", r->lost);
	printf("\n");
}

static void print_row(const struct oracle_row *row, const char *by, const struct oracle_result *r)
{
	printf("%3u  %-46s %-17s", row->nr, row->action, by);
	if (!r->run) {
		printf(" not run: %s\n", r->why);
		return;
	}
	for (unsigned int i = 0; i < SOURCES; i++)
		print_cell(r, i);
	printf(" %7u %7u %6u", r->changed, r->dropped, r->beyond);
	print_tables(r);
}

/* ---- JSON ------------------------------------------------------------------------------------------ */

static json_t *row_json(const struct oracle_row *row, const char *by, const struct oracle_result *r)
{
	json_t *all = json_pack("{si ss ss sb}", "row", (int)row->nr, "action", row->action, "by",
				by, "run", r->run);
	json_t *sources = json_object();

	if (!r->run) {
		json_object_set_new(all, "why", json_string(r->why));
		json_decref(sources);
		return all;
	}
	for (unsigned int i = 0; i < SOURCES; i++)
		json_object_set_new(
			sources, umbra_source_name((enum umbra_source)i),
			json_pack("{ss ss? si si si sb sb}", "saw",
				  oracle_cell_names[r->source[i].cell], "cause",
				  r->source[i].starts ? umbra_cause_name(r->source[i].cause) : NULL,
				  "starts", (int)r->source[i].starts, "ends",
				  (int)r->source[i].ends, "late", (int)r->source[i].late,
				  "promised", r->source[i].promised, "broken",
				  r->source[i].broken));
	json_object_set_new(all, "sources", sources);
	if (r->no_uffd)
		json_object_set_new(all, "no_uffd", json_string(r->no_uffd));
	json_object_update_new(all, json_pack("{si si si si si si si si si sb}", "lost",
					      (int)r->lost, "leaves", (int)r->leaves, "leaves_2m",
					      (int)r->leaves_2m, "changed", (int)r->changed,
					      "dropped", (int)r->dropped, "beyond", (int)r->beyond,
					      "stale", (int)r->stale, "check", (int)r->checks,
					      "audit", (int)r->audit, "obeyed", r->obeyed));
	return all;
}

static json_t *off_json(const struct oracle_sources *s)
{
	json_t *all = json_object();

	for (unsigned int i = 0; i < SOURCES; i++)
		json_object_set_new(all, umbra_source_name((enum umbra_source)i),
				    s->off[i] ? json_string(s->off[i]) : json_null());
	return all;
}

/* ---- all rows --------------------------------------------------------------------------------------- */

static bool has_failed(const struct oracle_result *r)
{
	bool broken = !r->obeyed;

	for (unsigned int i = 0; i < SOURCES; i++)
		broken |= r->source[i].broken;
	return r->run && broken;
}

/* Who does it: for a row of which the catalogue has several, by what, too. */
static void name_actor(const struct oracle_row *row, size_t i, char *name, size_t size)
{
	if (!row->by)
		snprintf(name, size, "%s", actors[i].name);
	else if (actors[i].actor == ORACLE_KERNEL)
		snprintf(name, size, "%s", row->by);
	else
		snprintf(name, size, "%s, %s", actors[i].name, row->by);
}

static void one_row(const struct oracle_row *row, const struct oracle_sources *s, int vm_fd,
		    const struct asked *asked, json_t *rows, struct totals *t)
{
	for (size_t i = 0; i < sizeof(actors) / sizeof(actors[0]); i++) {
		struct oracle_result r = { 0 };
		char by[40];

		if (!(row->actors & actors[i].actor))
			continue;
		name_actor(row, i, by, sizeof(by));
		if (row->not_run)
			snprintf(r.why, sizeof(r.why), "%s", row->not_run);
		else if (row->needs && !asked->disruptive)
			snprintf(r.why, sizeof(r.why), "needs --disruptive: it %s", row->needs);
		else if (oracle_run(row, actors[i].actor, s, vm_fd, &r))
			snprintf(r.why, sizeof(r.why), "%s", strerror(ENOMEM));
		t->run += r.run;
		t->not_run += !r.run;
		t->failed += has_failed(&r);
		if (rows)
			json_array_append_new(rows, row_json(row, by, &r));
		else
			print_row(row, by, &r);
		fflush(stdout);
	}
}

static bool wanted(unsigned int nr, const struct asked *asked)
{
	for (int i = 0; i < asked->nr; i++) {
		if (strtoul(asked->words[i], NULL, 10) == nr)
			return true;
	}
	return !asked->nr;
}

static int check_words(const struct asked *asked)
{
	for (int i = 0; i < asked->nr; i++) {
		const char *word = asked->words[i];
		char *end;
		const unsigned long nr = strtoul(word, &end, 10);
		unsigned int k = 0;

		while (k < oracle_rows_nr && oracle_rows[k].nr != nr)
			k++;
		if (*word < '0' || *word > '9' || *end || k == oracle_rows_nr) {
			fprintf(stderr,
				"umbra: oracle %.100s: no such row; vmm oracle --list shows them\n",
				word);
			return VMM_EXIT_USAGE;
		}
	}
	return 0;
}

/* The settings of the machine belong to who administers it; not to root in a name space of its own. */
static int may_disrupt(void)
{
	struct __user_cap_header_struct header = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct data[2] = { 0 };

	if (syscall(SYS_capget, &header, data) || !(data[0].effective & 1U << CAP_SYS_ADMIN)) {
		fprintf(stderr,
			"umbra: oracle --disruptive: it changes settings of the machine, for which it needs root\n"
			"(CAP_SYS_ADMIN); run: sudo vmm oracle --disruptive\n");
		return VMM_EXIT_CANNOT_RUN;
	}
	if (access("/proc/sys/vm/swappiness", W_OK)) {
		fprintf(stderr,
			"umbra: oracle --disruptive: the settings of this machine cannot be changed from here: "
			"/proc/sys/vm/swappiness: %s\n",
			strerror(errno));
		return VMM_EXIT_CANNOT_RUN;
	}
	return 0;
}

static void list_rows(void)
{
	for (unsigned int i = 0; i < oracle_rows_nr; i++) {
		const struct oracle_row *row = &oracle_rows[i];

		printf("%3u  %-48s%s%s\n", row->nr, row->action,
		       row->not_run ? "not run: "
		       : row->needs ? "needs --disruptive: it "
				    : "",
		       row->not_run ? row->not_run
		       : row->needs ? row->needs
				    : "");
	}
}

static int run(const struct asked *asked)
{
	char kvm_text[120] = "";
	const int vm_fd = open_kvm(kvm_text, sizeof(kvm_text));
	const char *no_kvm = vm_fd < 0 ? kvm_text : NULL;
	struct oracle_sources s = { 0 };
	json_t *rows = asked->json ? json_array() : NULL;
	struct totals t = { 0 };

	if (probe(&s, no_kvm)) {
		fprintf(stderr, "umbra: oracle: %s\n", strerror(ENOMEM));
		return VMM_EXIT_CANNOT_RUN;
	}
	if (!rows)
		print_head(&s, no_kvm);
	for (unsigned int i = 0; i < oracle_rows_nr; i++) {
		if (wanted(oracle_rows[i].nr, asked))
			one_row(&oracle_rows[i], &s, vm_fd, asked, rows, &t);
	}
	umbra_tracepoint_close(s.witness);
	if (vm_fd >= 0)
		close(vm_fd);
	if (rows) {
		json_t *all = json_pack("{so so si si si}", "not_there", off_json(&s), "rows", rows,
					"run", (int)t.run, "not_run", (int)t.not_run, "failed",
					(int)t.failed);

		json_dumpf(all, stdout, JSON_COMPACT);
		printf("\n");
		json_decref(all);
	} else {
		printf("\n%u run, %u not run, %u failed\n", t.run, t.not_run, t.failed);
	}
	if (fflush(stdout) || ferror(stdout))
		return VMM_EXIT_INTERNAL;
	return t.failed ? VMM_EXIT_INTERNAL : t.run ? VMM_EXIT_OK : VMM_EXIT_CANNOT_RUN;
}

static void help(void)
{
	fputs("vmm oracle [--json] [--disruptive] [ROW...]\n"
	      "\n"
	      "Does what can happen to guest memory, row by row of the catalogue, on memory that is a\n"
	      "slot of KVM and in Umbra's tables, with every source there is, and shows which source saw\n"
	      "what, and whether the tables obeyed. No guest runs. Without numbers: every row.\n"
	      "\n"
	      "      --disruptive  also the rows that change settings of the machine, make it short of\n"
	      "                    memory or take a page out of use until the next boot; as root. What\n"
	      "                    was set is put back, even when vmm is killed\n"
	      "      --json        one object on standard output\n"
	      "      --list        the rows, and why some are not run\n"
	      "\n"
	      "Exit status: 0 as promised; 4 a source missed what it promises to see, or the tables did\n"
	      "not obey; 2 bad arguments; 77 nothing could be run, or --disruptive without root.\n",
	      stdout);
}

int oracle_main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "json", no_argument, NULL, 'j' },
		{ "disruptive", no_argument, NULL, 'd' },
		{ "list", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	struct asked asked = { 0 };
	bool list = false;
	int c;

	optind = 0;
	opterr = 0;
	while ((c = getopt_long(argc, argv, "h", options, NULL)) != -1) {
		switch (c) {
		case 'j': asked.json = true; break;
		case 'd': asked.disruptive = true; break;
		case 'l': list = true; break;
		case 'h': help(); return fflush(stdout) ? VMM_EXIT_INTERNAL : VMM_EXIT_OK;
		default:
			fprintf(stderr,
				"umbra: oracle %.100s: unknown option; see vmm oracle --help\n",
				argv[optind - 1]);
			return VMM_EXIT_USAGE;
		}
	}
	asked.words = argv + optind;
	asked.nr = argc - optind;
	if (check_words(&asked))
		return VMM_EXIT_USAGE;
	if (list) {
		list_rows();
		return fflush(stdout) ? VMM_EXIT_INTERNAL : VMM_EXIT_OK;
	}
	if (asked.disruptive && may_disrupt())
		return VMM_EXIT_CANNOT_RUN;
	return run(&asked);
}
