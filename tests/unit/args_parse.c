/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line: what is accepted, what it becomes, and that each refusal names the thing and the fix. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vmm/args.h>
#include <vmm/chaos.h>

#define ARGS_MAX 40

static struct vm_config config;
static struct vm_error err;
static enum args_command command;

/* Parses "vmm " + @line, split at blanks. */
static int parse(const char *line)
{
	static char buf[4096];
	char *argv[ARGS_MAX + 1] = { (char *)(uintptr_t) "vmm" }, *save = NULL;
	int argc = 1;

	memset(&err, 0, sizeof(err));
	cr_assert_lt(strlen(line), sizeof(buf));
	strcpy(buf, line);
	for (char *w = strtok_r(buf, " ", &save); w && argc < ARGS_MAX;
	     w = strtok_r(NULL, " ", &save))
		argv[argc++] = w;
	return args_parse(argc, argv, &command, &config, &err);
}

static void refused(const char *line, const char *thing, const char *fix)
{
	cr_expect_eq(parse(line), VMM_EXIT_USAGE, "%s: was accepted", line);
	cr_expect_eq(err.code, VMM_EXIT_USAGE);
	cr_expect(strstr(err.text, thing), "%s: \"%s\" does not name %s", line, err.text, thing);
	cr_expect(strstr(err.text, fix), "%s: \"%s\" does not say %s", line, err.text, fix);
}

Test(args, defaults_are_a_quiet_256M_machine_of_two)
{
	cr_assert_eq(parse("run image"), 0);
	cr_expect_eq(command, ARGS_RUN);
	cr_expect_eq(config.memory, 256ULL << 20);
	cr_expect_eq(config.vcpus, 2);
	cr_expect_eq(config.backing, GUEST_BACKING_ANON);
	cr_expect_eq(config.pages, GUEST_PAGES_4K);
	cr_expect_eq(config.chaos.rate, 0);
	cr_expect_eq(config.sandbox, VM_SANDBOX_ON);
	cr_expect_eq(config.stats, VM_STATS_NONE);
	cr_expect_eq(config.log, VM_LOG_WARN);
	cr_expect(config.events_uffd);
	cr_expect_not(config.audit);
	cr_expect_eq(config.kvm_fd, -1);
	cr_expect_eq(config.uffd_fd, -1);
	cr_expect_not(config.events_module);
	cr_expect_eq(config.module_fd, -1);
	cr_expect_str_eq(config.image, "image");
	cr_expect_str_eq(config.args, "");
}

Test(args, every_option_is_heard_before_and_after_the_image)
{
	cr_assert_eq(
		parse("run -m 1G image -c 8 --mmu shadow --backing memfd --pages thp --chaos on "
		      "--stats=json --log debug --sandbox log --audit --events own -- a bc -d"),
		0, "%s", err.text);
	cr_expect_eq(config.memory, 1ULL << 30);
	cr_expect_eq(config.vcpus, 8);
	cr_expect_eq(config.backing, GUEST_BACKING_MEMFD);
	cr_expect_eq(config.pages, GUEST_PAGES_THP);
	cr_expect_neq(config.chaos.rate, 0);
	cr_expect_eq(config.stats, VM_STATS_JSON);
	cr_expect_eq(config.log, VM_LOG_DEBUG);
	cr_expect_eq(config.sandbox, VM_SANDBOX_LOG);
	cr_expect(config.audit);
	cr_expect_not(config.events_uffd);
	cr_expect_str_eq(config.args, "a bc -d");
}

Test(args, stats_alone_is_text_and_takes_no_following_word)
{
	cr_assert_eq(parse("run --stats json"), 0);
	cr_expect_eq(config.stats, VM_STATS_TEXT);
	cr_expect_str_eq(config.image, "json");
}

Test(args, help_and_version)
{
	cr_expect_eq(parse("--help"), 0);
	cr_expect_eq(command, ARGS_HELP);
	cr_expect_eq(parse("run --help"), 0);
	cr_expect_eq(command, ARGS_HELP_RUN);
	cr_expect_eq(parse("--version"), 0);
	cr_expect_eq(command, ARGS_VERSION);
	refused("--version now", "now", "nothing goes after");
}

Test(args, commands_and_options_that_do_not_exist)
{
	refused("", "no command", "vmm run");
	refused("walk image", "walk", "run");
	refused("--frobnicate", "--frobnicate", "--help");
	refused("run --frobnicate image", "--frobnicate", "--help");
	refused("run -x image", "-x", "--help");
	refused("run image --memory", "--memory", "needs a value");
	refused("run --audit=yes image", "--audit=yes", "takes no value");
	refused("run", "no image", "IMAGE");
	refused("run one two", "two", "\"--\"");
}

Test(args, an_option_with_two_values_is_refused_with_both)
{
	refused("run -m 16M -m 32M image", "--memory 16M and --memory 32M", "given twice");
	refused("run -m 16M --mem 16M image", "--memory 16M and --memory 16M", "given twice");
	refused("run --stats --stats=json image", "--stats and --stats=json", "given twice");
	refused("run -c 1 image -c 2", "--cpus 1 and --cpus 2", "given twice");
	refused("run --chaos calm --chaos on image", "--chaos calm and --chaos on", "given twice");
	cr_expect_eq(parse("run --audit --audit image"), 0,
		     "a switch without a value says the same");
	cr_expect_eq(parse("run -m 16M image -- -m 32M"), 0, "those are the guest's");
}

Test(args, a_beginning_of_several_options_names_them)
{
	refused("run --s on image", "--s: ", "--stats, --sandbox");
	refused("run --s=on image", "--s: ", "--stats, --sandbox");
	refused("run --m 16M image", "--m: ", "--mmu, --memory");
	cr_expect_eq(parse("run --mem 16M --sa off image"), 0, "%s", err.text);
	cr_expect_eq(config.sandbox, VM_SANDBOX_OFF);
	refused("run --=1 image", "--=1", "unknown option");
}

/* parse() splits at blanks and knows no empty words. */
Test(args, an_empty_word_is_shown)
{
	static const struct {
		const char *words[4];
		const char *text;
	} cases[] = {
		{ { "" }, "\"\": unknown command" },
		{ { "run", "-m", "" }, "--memory \"\": not a size" },
		{ { "run", "-c", "" }, "--cpus \"\": not a number" },
		{ { "run", "--log", "" }, "--log \"\": unknown" },
		{ { "run", "--kvm-fd", "" }, "--kvm-fd \"\": not a file descriptor" },
		{ { "run", "" }, "name is empty" },
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		char *argv[6] = { (char *)(uintptr_t) "vmm" };
		int argc = 1;

		for (; argc < 5 && cases[i].words[argc - 1]; argc++)
			argv[argc] = (char *)(uintptr_t)cases[i].words[argc - 1];
		cr_expect_eq(args_parse(argc, argv, &command, &config, &err), VMM_EXIT_USAGE);
		cr_expect(strstr(err.text, cases[i].text), "%s", err.text);
	}
}

Test(args, memory_is_whole_2M_from_2M_to_64G)
{
	cr_expect_eq(parse("run -m 2M image"), 0);
	cr_expect_eq(parse("run -m 64G image"), 0);
	cr_expect_eq(parse("run -m 2048k image"), 0);
	refused("run -m 1M image", "1M", "at least 2M");
	refused("run -m 0 image", "0", "at least 2M");
	refused("run -m 66G image", "66G", "at most 64G");
	refused("run -m 3M image", "3M", "4M");
	refused("run -m 65537M image", "65537M", "at most 64G");
	refused("run -m 99999999999999999999 image", "9999", "at most 64G");
	refused("run -m 18014398509481985k image", "18014398509481985k", "at most 64G");
	refused("run -m big image", "big", "such as 256M");
	refused("run -m -2M image", "-2M", "such as 256M");
	refused("run -m 2MM image", "2MM", "such as 256M");
	refused("run -m 2.5G image", "2.5G", "such as 256M");
}

Test(args, sizes)
{
	uint64_t n;

	cr_expect_eq(args_size("4096", &n), 0);
	cr_expect_eq(n, 4096);
	cr_expect_eq(args_size("1T", &n), 0);
	cr_expect_eq(n, 1ULL << 40);
	cr_expect_eq(args_size("16777215T", &n), 0);
	cr_expect_eq(args_size("16777216T", &n), -ERANGE);
	cr_expect_eq(args_size("", &n), -EINVAL);
	cr_expect_eq(args_size("M", &n), -EINVAL);
	cr_expect_eq(args_size(" 1", &n), -EINVAL);
	cr_expect_eq(args_size("0x10", &n), -EINVAL);
}

Test(args, one_to_eight_cpus)
{
	cr_expect_eq(parse("run -c 1 image"), 0);
	refused("run -c 0 image", "0", "1 to 8");
	refused("run -c 9 image", "9", "1 to 8");
	refused("run -c two image", "two", "1 to 8");
	refused("run -c 4x image", "4x", "1 to 8");
}

Test(args, words_outside_the_list_are_refused_with_the_list)
{
	refused("run --mmu tdp image", "tdp", "not in this version");
	refused("run --mmu none image", "none", "shadow");
	refused("run --backing disk image", "disk", "anon, memfd");
	refused("run --pages 1g image", "1g", "4k, thp, hugetlb");
	refused("run --stats=xml image", "xml", "text, json");
	refused("run --log loud image", "loud", "debug");
	refused("run --sandbox maybe image", "maybe", "on, log, off");
	refused("run --events all image", "all", "own,uffd");
}

static void sources(const char *list, bool uffd, bool module)
{
	char line[64];

	for (unsigned int name = 0; name < 2; name++) {
		snprintf(line, sizeof(line), "run --%s %s image", name ? "events" : "source", list);
		cr_expect_eq(parse(line), 0, "%s: %s", line, err.text);
		cr_expect_eq(config.events_uffd, uffd, "%s", line);
		cr_expect_eq(config.events_module, module, "%s", line);
	}
}

Test(args, sources_are_those_of_the_list_in_any_order)
{
	sources("own", false, false);
	sources("uffd", true, false);
	sources("uffd,own", true, false);
	sources("module", false, true);
	sources("own,uffd,module", true, true);
	sources("module,uffd", true, true);
	sources("tracepoints", false, false);
	cr_assert_eq(parse("run --source uffd,tracepoints --stacks image"), 0, "%s", err.text);
	cr_expect(config.events_tracepoints);
	cr_expect(config.stacks);
	refused("run --stacks image", "--stacks", "tracepoints");
	refused("run --source own,own image", "own", "twice");
	refused("run --source module,uffd,module image", "module", "twice");
	refused("run --source own, image", "own,", "own, uffd, module");
	refused("run --source ,own image", ",own", "own, uffd, module");
	refused("run --source mod image", "mod", "own, uffd, module");
	refused("run --source modules image", "modules", "own, uffd, module");
	refused("run --source own --events uffd image", "--source", "keep one");
}

Test(args, passed_descriptors_must_be_open_and_make_sense)
{
	char line[128];
	int fd = dup(0), other = dup(0);

	cr_assert_geq(fd, 3);
	snprintf(line, sizeof(line), "run --kvm-fd %d --uffd-fd %d image", fd, other);
	cr_expect_eq(parse(line), 0, "%s", err.text);
	cr_expect_eq(config.kvm_fd, fd);
	cr_expect_eq(config.uffd_fd, other);
	snprintf(line, sizeof(line), "run --kvm-fd %d --uffd-fd %d image", fd, fd);
	refused(line, "--uffd-fd", "both");
	snprintf(line, sizeof(line), "run --uffd-fd %d --events own image", fd);
	refused(line, "--uffd-fd", "leave one of them out");
	snprintf(line, sizeof(line), "run --module-fd %d image", fd);
	refused(line, "--module-fd", "add module");
	snprintf(line, sizeof(line), "run --module-fd %d --uffd-fd %d --source module,uffd image",
		 fd, fd);
	refused(line, "--uffd-fd", "both");
	snprintf(line, sizeof(line), "run --module-fd %d --uffd-fd %d --source module,uffd image",
		 fd, other);
	cr_expect_eq(parse(line), 0, "%s", err.text);
	cr_expect_eq(config.module_fd, fd);
	close(fd);
	snprintf(line, sizeof(line), "run --kvm-fd %d image", fd);
	refused(line, "--kvm-fd", "not open");
	refused("run --kvm-fd 1 image", "--kvm-fd 1", "3 or above");
	refused("run --kvm-fd x image", "--kvm-fd x", "not a file descriptor");
}

Test(args, the_guests_arguments_fit_or_are_refused)
{
	char line[GUEST_ARGS_MAX + 64] = "run image -- ";
	size_t at = strlen(line);

	memset(line + at, 'a', GUEST_ARGS_MAX - 1);
	cr_expect_eq(parse(line), 0);
	cr_expect_eq(strlen(config.args), GUEST_ARGS_MAX - 1);
	line[at + GUEST_ARGS_MAX - 1] = 'a';
	refused(line, "arguments", "1023");
}

Test(args, chaos_points_at_the_bad_word)
{
	refused("run --chaos rate image", "\"rate\"", "rate=");
	refused("run --chaos rate=0 image", "\"rate=0\"", "1 to 100000");
	refused("run --chaos rate=100001 image", "\"rate=100001\"", "1 to 100000");
	refused("run --chaos rate=1,rate=2 image", "\"rate=2\"", "twice");
	refused("run --chaos seed=-1 image", "\"seed=-1\"", "64 bits");
	refused("run --chaos seed=18446744073709551616 image", "\"seed=", "64 bits");
	refused("run --chaos speed=1 image", "\"speed\"", "rate=");
	refused("run --chaos mix=discard+explode image", "\"explode\"", "collapse");
	refused("run --chaos mix=discard+discard image", "\"discard\"", "twice");
	refused("run --chaos mix= image", "\"\"", "unknown action");
	refused("run --chaos mix=fork+ image", "\"\"", "unknown action");
	refused("run --chaos rate=1,,seed=2 image", "character 8", "rate=N");
	refused("run --chaos rate=1, image", "character 8", "rate=N");
	refused("run --chaos on,rate=1 image", "\"on\"", "alone");
	refused("run --chaos mix=\033[31mred image", "\"?[31mred\"", "unknown action");
	refused("run --chaos count=many image", "\"count=many\"", "whole number");
}

Test(args, chaos_that_the_memory_cannot_suffer_is_refused)
{
	refused("run --chaos mix=split image", "split", "--pages thp");
	refused("run --chaos mix=collapse --pages hugetlb image", "collapse", "--pages thp");
	refused("run --chaos mix=remap --pages hugetlb image", "remap", "--pages 4k or thp");
	refused("run --chaos mix=free --backing memfd image", "free", "--backing anon");
	cr_expect_eq(parse("run --chaos mix=split+collapse --pages thp image"), 0, "%s", err.text);
	/* Without mix=: what there is. */
	cr_expect_eq(parse("run --chaos on --pages hugetlb image"), 0);
	cr_expect_eq(config.chaos.mix,
		     1U << CHAOS_DISCARD | 1U << CHAOS_PROTECT | 1U << CHAOS_FORK);
}

Test(args, calm_is_no_chaos)
{
	cr_assert_eq(parse("run --chaos calm image"), 0);
	cr_expect_eq(config.chaos.rate, 0);
}
