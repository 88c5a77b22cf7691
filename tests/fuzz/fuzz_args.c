/* SPDX-License-Identifier: BSD-2-Clause */
/* The command line: any words are a machine within its limits, or an error that says something. */
#include <vmm/args.h>
#include <vmm/chaos.h>
#include "tests/fuzz/fuzz.h"

#define WORDS 24

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char buf[4096], *argv[WORDS + 2];
	struct vm_config config;
	struct vm_error err = { .code = VMM_EXIT_OK };
	enum args_command command;
	int argc = 1;

	if (size >= sizeof(buf))
		return 0;
	memcpy(buf, data, size);
	buf[size] = '\0';
	argv[0] = buf + size;
	/* words end with a newline, so that they may be empty and hold blanks */
	for (char *w = buf; w < buf + size && argc <= WORDS;) {
		char *end = memchr(w, '\n', (size_t)(buf + size - w));

		argv[argc++] = w;
		if (!end)
			break;
		*end = '\0';
		w = end + 1;
	}
	argv[argc] = NULL;
	memset(&config, 0, sizeof(config));
	if (args_parse(argc, argv, &command, &config, &err)) {
		fuzz_require(err.code == VMM_EXIT_USAGE && err.text[0]);
		fuzz_require(memchr(err.text, '\0', sizeof(err.text)));
		return 0;
	}
	if (command != ARGS_RUN)
		return 0;
	fuzz_require(config.memory >= VM_MEMORY_MIN && config.memory <= VM_MEMORY_MAX);
	fuzz_require(config.memory % (2ULL << 20) == 0);
	fuzz_require(config.vcpus >= 1 && config.vcpus <= VM_VCPUS_MAX);
	fuzz_require(config.image);
	fuzz_require(memchr(config.args, '\0', sizeof(config.args)));
	return 0;
}
