/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line: options to struct vm_config, and a refusal with its reason for whatever makes
 * no sense. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>
#include <vmm/args.h>
#include <vmm/chaos.h>

enum {
	OPT_MMU = 256,
	OPT_BACKING,
	OPT_PAGES,
	OPT_CHAOS,
	OPT_STATS,
	OPT_LOG,
	OPT_SANDBOX,
	OPT_AUDIT,
	OPT_SOURCE,
	OPT_KVM_FD,
	OPT_UFFD_FD,
	OPT_MODULE_FD,
	OPT_STACKS,
	OPT_NR,
};

static const struct option options[] = {
	{ "mmu", required_argument, NULL, OPT_MMU },
	{ "memory", required_argument, NULL, 'm' },
	{ "cpus", required_argument, NULL, 'c' },
	{ "backing", required_argument, NULL, OPT_BACKING },
	{ "pages", required_argument, NULL, OPT_PAGES },
	{ "chaos", required_argument, NULL, OPT_CHAOS },
	{ "stats", optional_argument, NULL, OPT_STATS },
	{ "log", required_argument, NULL, OPT_LOG },
	{ "sandbox", required_argument, NULL, OPT_SANDBOX },
	{ "audit", no_argument, NULL, OPT_AUDIT },
	{ "source", required_argument, NULL, OPT_SOURCE },
	{ "events", required_argument, NULL, OPT_SOURCE }, /* its other name */
	{ "stacks", no_argument, NULL, OPT_STACKS },
	{ "kvm-fd", required_argument, NULL, OPT_KVM_FD },
	{ "uffd-fd", required_argument, NULL, OPT_UFFD_FD },
	{ "module-fd", required_argument, NULL, OPT_MODULE_FD },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

int args_size(const char *text, uint64_t *bytes)
{
	static const struct {
		char suffix;
		unsigned int shift;
	} units[] = { { 'k', 10 }, { 'K', 10 }, { 'm', 20 }, { 'M', 20 },
		      { 'g', 30 }, { 'G', 30 }, { 't', 40 }, { 'T', 40 } };
	unsigned int shift = 0;
	unsigned long long n;
	char *end;

	/* strtoull would take blanks and signs. */
	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	n = strtoull(text, &end, 10);
	if (errno == ERANGE)
		return -ERANGE;
	for (size_t i = 0; *end && i < sizeof(units) / sizeof(units[0]); i++) {
		if (*end != units[i].suffix)
			continue;
		shift = units[i].shift;
		end++;
		break;
	}
	if (*end)
		return -EINVAL;
	if (n > (~0ULL >> shift))
		return -ERANGE;
	*bytes = n << shift;
	return 0;
}

/* An empty argument would be a hole in the sentence. */
static const char *shown(const char *text)
{
	return *text ? text : "\"\"";
}

/* A whole decimal number and nothing else. */
static int parse_number(const char *text, uint64_t max, uint64_t *value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return -EINVAL;
	errno = 0;
	*value = strtoull(text, &end, 10);
	if (*end)
		return -EINVAL;
	return errno == ERANGE || *value > max ? -ERANGE : 0;
}

static int parse_word(const char *option, const char *text, const char *const *words, int *index,
		      struct vm_error *err)
{
	char list[128] = "";
	size_t at = 0;

	for (int i = 0; words[i]; i++) {
		if (strcmp(text, words[i]) == 0) {
			*index = i;
			return 0;
		}
		at += (size_t)snprintf(list + at, sizeof(list) - at, "%s%s", i ? ", " : "",
				       words[i]);
	}
	return vm_fail(err, VMM_EXIT_USAGE, "%s %s: unknown; it is one of: %s", option, shown(text),
		       list);
}

static int parse_memory(const char *text, struct vm_config *config, struct vm_error *err)
{
	switch (args_size(text, &config->memory)) {
	case 0: break;
	case -ERANGE:
		return vm_fail(err, VMM_EXIT_USAGE, "--memory %s: too large; at most 64G", text);
	default:
		return vm_fail(
			err, VMM_EXIT_USAGE,
			"--memory %s: not a size; write a number with K, M or G, such as 256M",
			shown(text));
	}
	if (config->memory < VM_MEMORY_MIN)
		return vm_fail(err, VMM_EXIT_USAGE, "--memory %s: too small; at least 2M", text);
	if (config->memory > VM_MEMORY_MAX)
		return vm_fail(err, VMM_EXIT_USAGE, "--memory %s: too large; at most 64G", text);
	if (config->memory % UMBRA_HUGE_SIZE)
		return vm_fail(err, VMM_EXIT_USAGE,
			       "--memory %s: not a multiple of 2M; the next one is %lluM", text,
			       (unsigned long long)((config->memory / UMBRA_HUGE_SIZE + 1) * 2));
	return 0;
}

static int parse_fd(const char *option, const char *text, int *fd, struct vm_error *err)
{
	uint64_t n;

	if (parse_number(text, 1 << 20, &n))
		return vm_fail(err, VMM_EXIT_USAGE, "%s %s: not a file descriptor number", option,
			       shown(text));
	if (n <= 2)
		return vm_fail(
			err, VMM_EXIT_USAGE,
			"%s %s: that is standard input, output or error; pass it as 3 or above",
			option, text);
	if (fcntl((int)n, F_GETFD) < 0)
		return vm_fail(err, VMM_EXIT_USAGE,
			       "%s %s: not open; the caller must pass it without close-on-exec",
			       option, text);
	*fd = (int)n;
	return 0;
}

/* Words of @text, each at most once. vmm's own calls are bracketed always: "own" may be said or not. */
static int parse_sources(const char *text, struct vm_config *config, struct vm_error *err)
{
	bool own = false;
	const struct {
		const char *name;
		bool *chosen;
	} words[] = { { "own", &own },
		      { "uffd", &config->events_uffd },
		      { "module", &config->events_module },
		      { "tracepoints", &config->events_tracepoints } };
	const size_t nr = sizeof(words) / sizeof(words[0]);
	const char *at = text;

	config->events_uffd = false;
	for (;;) {
		const size_t len = strcspn(at, ",");
		size_t i = 0;

		while (i < nr && (strlen(words[i].name) != len || memcmp(at, words[i].name, len)))
			i++;
		if (i == nr)
			return vm_fail(
				err, VMM_EXIT_USAGE,
				"--source %s: %.*s is unknown; it is own, uffd, module, tracepoints, or "
				"several of them, as in own,uffd",
				shown(text), len ? (int)len : 2, len ? at : "\"\"");
		if (*words[i].chosen)
			return vm_fail(err, VMM_EXIT_USAGE, "--source %s: %s is there twice", text,
				       words[i].name);
		*words[i].chosen = true;
		if (!at[len])
			return 0;
		at += len + 1;
	}
}

static int parse_option(int c, const char *arg, struct vm_config *config, struct vm_error *err)
{
	static const char *const mmus[] = { "shadow", "tdp", NULL };
	static const char *const backings[] = { "anon", "memfd", NULL };
	static const char *const pages[] = { "4k", "thp", "hugetlb", NULL };
	static const char *const stats[] = { "text", "json", NULL };
	static const char *const logs[] = { "error", "warn", "info", "debug", NULL };
	static const char *const sandboxes[] = { "on", "log", "off", NULL };
	uint64_t n;
	int i = 0, e;

	switch (c) {
	case 'm': return parse_memory(arg, config, err);
	case 'c':
		e = parse_number(arg, VM_VCPUS_MAX, &n);
		if (e == -EINVAL)
			return vm_fail(err, VMM_EXIT_USAGE, "--cpus %s: not a number; 1 to %d",
				       shown(arg), VM_VCPUS_MAX);
		if (e || !n)
			return vm_fail(err, VMM_EXIT_USAGE, "--cpus %s: out of range; 1 to %d", arg,
				       VM_VCPUS_MAX);
		config->vcpus = (unsigned int)n;
		return 0;
	case OPT_MMU:
		e = parse_word("--mmu", arg, mmus, &i, err);
		if (!e && i)
			e = vm_fail(
				err, VMM_EXIT_USAGE,
				"--mmu tdp: not in this version; leave it out, or write --mmu shadow");
		return e;
	case OPT_BACKING:
		e = parse_word("--backing", arg, backings, &i, err);
		config->backing = (enum guest_backing)i;
		return e;
	case OPT_PAGES:
		e = parse_word("--pages", arg, pages, &i, err);
		config->pages = (enum guest_page_kind)i;
		return e;
	case OPT_CHAOS: return chaos_parse(arg, &config->chaos, err);
	case OPT_STATS:
		e = arg ? parse_word("--stats", arg, stats, &i, err) : 0;
		config->stats = i ? VM_STATS_JSON : VM_STATS_TEXT;
		return e;
	case OPT_LOG:
		e = parse_word("--log", arg, logs, &i, err);
		config->log = (enum vm_log)i;
		return e;
	case OPT_SANDBOX:
		e = parse_word("--sandbox", arg, sandboxes, &i, err);
		config->sandbox = (enum vm_sandbox)i;
		return e;
	case OPT_AUDIT: config->audit = true; return 0;
	case OPT_STACKS: config->stacks = true; return 0;
	case OPT_SOURCE: return parse_sources(arg, config, err);
	case OPT_MODULE_FD: return parse_fd("--module-fd", arg, &config->module_fd, err);
	case OPT_KVM_FD: return parse_fd("--kvm-fd", arg, &config->kvm_fd, err);
	default: return parse_fd("--uffd-fd", arg, &config->uffd_fd, err);
	}
}

/* The long name of what getopt answered with @c. */
static const char *long_name(int c)
{
	const struct option *o = options;

	while (o->name && o->val != c)
		o++;
	return o->name ? o->name : "?";
}

static const char *as_given(int c, const char *value, char *buf, size_t size)
{
	if (c == OPT_STATS)
		snprintf(buf, size, "--stats%s%s", *value ? "=" : "", value);
	else
		snprintf(buf, size, "--%s %s", long_name(c), shown(value));
	return buf;
}

/*
 * Two values for one thing are a mistake that the last one would hide: somebody added an option to a command line that
 * had it. @given: what each option was given so far; a switch without a value may be said again.
 */
static int check_once(int c, const char *arg, const char **given, struct vm_error *err)
{
	const char *before = given[c];
	char first[128], second[128];

	given[c] = arg ? arg : "";
	if (!before || c == OPT_AUDIT || c == OPT_STACKS)
		return 0;
	return vm_fail(err, VMM_EXIT_USAGE, "%s and %s: given twice; keep one of them",
		       as_given(c, before, first, sizeof(first)),
		       as_given(c, given[c], second, sizeof(second)));
}

/* @word, as typed, is no option, or the beginning of several. */
static int unknown_option(const char *word, struct vm_error *err)
{
	const size_t len = strcspn(word, "=") - 2;
	unsigned int n = 0;
	char list[160] = "";
	size_t at = 0;

	for (const struct option *o = options; o->name; o++) {
		if (strncmp(o->name, word + 2, len) != 0)
			continue;
		at += (size_t)snprintf(list + at, sizeof(list) - at, "%s--%s", n++ ? ", " : "",
				       o->name);
	}
	if (n > 1 && len)
		return vm_fail(err, VMM_EXIT_USAGE, "%.*s: which of %s is meant?", (int)len + 2,
			       word, list);
	return vm_fail(err, VMM_EXIT_USAGE, "%s: unknown option; see vmm run --help", word);
}

/* What each option allows, but not together. */
static int check_together(struct vm_config *config, struct vm_error *err)
{
	if (!config->events_uffd && config->uffd_fd >= 0)
		return vm_fail(
			err, VMM_EXIT_USAGE,
			"--uffd-fd without uffd in --source: a userfaultfd that nobody would "
			"read; leave one of them out");
	if (!config->events_module && config->module_fd >= 0)
		return vm_fail(err, VMM_EXIT_USAGE,
			       "--module-fd without module in --source: nobody would read it; add "
			       "module, or leave it out");
	if (config->stacks && !config->events_tracepoints)
		return vm_fail(
			err, VMM_EXIT_USAGE,
			"--stacks without tracepoints in --source: nothing records them; add "
			"tracepoints, or leave it out");
	if (config->kvm_fd >= 0 && config->kvm_fd == config->uffd_fd)
		return vm_fail(err, VMM_EXIT_USAGE, "--kvm-fd and --uffd-fd are both %d",
			       config->kvm_fd);
	if (config->module_fd >= 0 &&
	    (config->module_fd == config->kvm_fd || config->module_fd == config->uffd_fd))
		return vm_fail(err, VMM_EXIT_USAGE, "--module-fd and %s are both %d",
			       config->module_fd == config->kvm_fd ? "--kvm-fd" : "--uffd-fd",
			       config->module_fd);
	return chaos_check(config, err);
}

static int join_args(char **argv, struct vm_config *config, struct vm_error *err)
{
	size_t at = 0;

	for (; *argv; argv++) {
		size_t len = strlen(*argv);

		if (at + (at ? 1 : 0) + len >= sizeof(config->args))
			return vm_fail(err, VMM_EXIT_USAGE,
				       "the guest's arguments are longer than %d bytes together",
				       GUEST_ARGS_MAX - 1);
		if (at)
			config->args[at++] = ' ';
		memcpy(config->args + at, *argv, len + 1);
		at += len;
	}
	return 0;
}

static int parse_run(int argc, char **argv, enum args_command *command, struct vm_config *config,
		     struct vm_error *err)
{
	const char *given[OPT_NR] = { NULL };
	int split = argc, c, e;

	/* Cut at "--" by hand: getopt, which permutes, would hide where it was. */
	for (int i = 1; i < argc; i++) {
		if (strcmp(argv[i], "--") == 0) {
			split = i;
			break;
		}
	}
	optind = 0; /* 0, not 1: glibc then forgets an earlier parse */
	opterr = 0;
	while ((c = getopt_long(split, argv, ":m:c:h", options, NULL)) != -1) {
		switch (c) {
		case 'h': *command = ARGS_HELP_RUN; return 0;
		case ':':
			return vm_fail(err, VMM_EXIT_USAGE, "%s: needs a value; see vmm run --help",
				       argv[optind - 1]);
		case '?':
			if (optopt > 255)
				return vm_fail(err, VMM_EXIT_USAGE, "%s: takes no value",
					       argv[optind - 1]);
			if (optopt)
				return vm_fail(err, VMM_EXIT_USAGE,
					       "-%c: unknown option; see vmm run --help", optopt);
			return unknown_option(argv[optind - 1], err);
		default:
			e = check_once(c, optarg, given, err);
			if (!e)
				e = parse_option(c, optarg, config, err);
			if (e)
				return e;
		}
	}
	if (optind >= split)
		return vm_fail(err, VMM_EXIT_USAGE,
			       "no image; write: vmm run [options] IMAGE [-- ARGS]");
	if (optind + 1 < split)
		return vm_fail(err, VMM_EXIT_USAGE,
			       "%s: a second image; arguments for the guest go after \"--\"",
			       argv[optind + 1]);
	config->image = argv[optind];
	if (!*config->image)
		return vm_fail(err, VMM_EXIT_USAGE, "the image's name is empty");
	*command = ARGS_RUN;
	e = split < argc ? join_args(argv + split + 1, config, err) : 0;
	return e ? e : check_together(config, err);
}

int args_parse(int argc, char **argv, enum args_command *command, struct vm_config *config,
	       struct vm_error *err)
{
	*config = (struct vm_config){
		.memory = 256ULL << 20,
		.vcpus = 2,
		.log = VM_LOG_WARN,
		.events_uffd = true,
		.uffd_fd = -1,
		.module_fd = -1,
		.kvm_fd = -1,
	};
	if (argc < 2)
		return vm_fail(
			err, VMM_EXIT_USAGE,
			"no command; write: vmm run [options] IMAGE [-- ARGS], or vmm --help");
	if (strcmp(argv[1], "run") == 0)
		return parse_run(argc - 1, argv + 1, command, config, err);
	if (strcmp(argv[1], "oracle") == 0) {
		*command = ARGS_ORACLE;
		return 0;
	}
	if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
	    strcmp(argv[1], "help") == 0)
		*command = ARGS_HELP;
	else if (strcmp(argv[1], "--version") == 0)
		*command = ARGS_VERSION;
	else
		return vm_fail(err, VMM_EXIT_USAGE,
			       "%s: unknown %s; there is: run, oracle, --help, --version",
			       shown(argv[1]), argv[1][0] == '-' ? "option" : "command");
	if (argc > 2)
		return vm_fail(err, VMM_EXIT_USAGE, "%s: nothing goes after %s", argv[2], argv[1]);
	return 0;
}

#define EXIT_CODES                                                                                              \
	"Exit status:\n"                                                                                        \
	"  0    the guest reported success\n"                                                                   \
	"  1    the guest reported a failure\n"                                                                 \
	"  2    bad arguments, or a bad image\n"                                                                \
	"  3    the guest crashed: registers and the last invalidations are printed\n"                          \
	"  4    our error, the tables were found wrong, or what the guest said or the report\n"                 \
	"       asked for could not be written\n"                                                               \
                                                                                                                \
	"  77   this host lacks something or limits it; the message says what, and the command that mends it\n" \
	"  130  interrupted (Ctrl-C)\n"

void args_help(FILE *out)
{
	fputs("vmm - run a small guest on Umbra's own 4K/2M shadow page tables\n"
	      "\n"
	      "  vmm run [options] IMAGE [-- ARGS]   run a guest; options: vmm run --help\n"
	      "  vmm oracle [--json] [ROW...]        what each source of events sees; vmm oracle --help\n"
	      "  vmm --help                          this text\n"
	      "  vmm --version\n"
	      "\n" EXIT_CODES,
	      out);
}

void args_help_run(FILE *out)
{
	fputs("vmm run [options] IMAGE [-- ARGS]\n"
	      "\n"
	      "IMAGE is a static x86-64 ELF executable; ARGS are handed to the guest.\n"
	      "An option with a value is given once.\n"
	      "\n"
	      "Machine\n"
	      "  -m, --memory SIZE       guest memory, 2M to 64G in steps of 2M; sparse       [256M]\n"
	      "  -c, --cpus N            vCPUs, 1 to 8                                        [2]\n"
	      "      --mmu shadow        whose tables translate: Umbra's                      [shadow]\n"
	      "      --backing KIND      anon: private memory; memfd: a shared memory file    [anon]\n"
	      "      --pages KIND        4k, thp or hugetlb: what the host backs it with      [4k]\n"
	      "\n"
	      "What the host does to the guest's memory while it runs\n"
	      "      --chaos SPEC        on, calm, or key=value,...                           [calm]\n"
	      "                            rate=N   actions a second, 1 to 100000             [1000]\n"
	      "                            seed=N   the same seed repeats the same plan       [1]\n"
	      "                            mix=A+B  of discard free protect split collapse\n"
	      "                                     swap remap fork                           [all]\n"
	      "                            count=N  stop after N actions; 0: never            [0]\n"
	      "                          discard and free act only in arenas the guest declared.\n"
	      "      --audit             hold the tables against the kernel's after every action\n"
	      "      --source LIST       who tells of changes to guest memory: own calls of vmm   [own,uffd]\n"
	      "                          (always), uffd: other code of this process; module: the\n"
	      "                          kernel itself, by /dev/umbra. tracepoints only watch:\n"
	      "                          what KVM was told and nobody announced to vmm.\n"
	      "                          --events is another name of it\n"
	      "      --stacks            with tracepoints: which path of the kernel it was\n"
	      "\n"
	      "Seeing\n"
	      "      --stats[=FORMAT]    text: a table on standard error; json: one line on\n"
	      "                          standard output, after the guest's own               [text]\n"
	      "      --log LEVEL         error, warn, info or debug, on standard error        [warn]\n"
	      "\n"
	      "Rights\n"
	      "      --sandbox MODE      on; log: forbidden calls are only logged; off        [on]\n"
	      "      --kvm-fd N          an open /dev/kvm; with it and the next, no root is needed\n"
	      "      --uffd-fd N         an open userfaultfd, not yet used\n"
	      "      --module-fd N       an open /dev/umbra, not yet used\n"
	      "\n"
	      "Examples\n"
	      "  vmm run hello.elf\n"
	      "  vmm run -m 1G -c 4 --pages thp --chaos on --stats tour.elf\n"
	      "  vmm run --chaos rate=2000,seed=7,mix=discard+remap --audit write.elf -- rounds=100\n"
	      "  vmm run --kvm-fd 3 --events own hello.elf 3<>/dev/kvm\n"
	      "\n" EXIT_CODES,
	      out);
}
