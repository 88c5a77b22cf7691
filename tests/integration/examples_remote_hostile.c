/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * What can be taken from a peer that does not obey, and what cannot: the table of examples/README.md, row by row. The hostile peer
 * keeps its descriptor and mapping through BYE; the test asks it, word by word, what it can see and do.
 */
#include <criterion/criterion.h>
#include <sys/syscall.h>
#include "tests/examples/remote_peers.h"

#define PAGE UMBRA_PAGE_SIZE
/* Linux 5.1; older headers lack it. */
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* What the test asks, in progress[1]; the answer is in progress[2], and progress[3] counts answers. */
enum question {
	READ_WORD, /* the first word of the shared memory */
	MAP_WRITABLE,
	PUNCH,
	TRUNCATE,
	REOPEN_AS_NOBODY, /* for writing, by /proc/self/fd */
	QUIT,
};

static int hostile(int sock, int writable)
{
	struct remote_msg m;
	const int fd = hello(sock, &m);
	volatile uint64_t *mem = mmap(NULL, m.length, PROT_READ | (writable ? PROT_WRITE : 0),
				      MAP_SHARED, fd, (off_t)m.offset);
	uint64_t answered = 0;

	if (mem == MAP_FAILED)
		return 1;
	progress[3] = 1;
	for (;;) {
		char path[32];
		uint64_t answer = 0;

		/* Acknowledges, and keeps all: such a lie cannot be seen. */
		while (recv(sock, &m, sizeof(m), MSG_DONTWAIT) == (ssize_t)sizeof(m)) {
			const struct remote_msg ack = ack_of(m.seq);

			if (m.type == REMOTE_START)
				say(sock, &ack, sizeof(ack));
		}
		if (progress[0] == answered) {
			usleep(500);
			continue;
		}
		switch ((enum question)progress[1]) {
		case READ_WORD: answer = mem[0]; break;
		case MAP_WRITABLE:
			answer = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) ==
						 MAP_FAILED
					 ? (uint64_t)errno
					 : 0;
			break;
		case PUNCH:
			answer = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGE)
					 ? (uint64_t)errno
					 : 0;
			break;
		case TRUNCATE: answer = ftruncate(fd, 0) ? (uint64_t)errno : 0; break;
		case REOPEN_AS_NOBODY:
			snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
			if (syscall(SYS_setresuid, 65534, 65534, 65534) ||
			    prctl(PR_SET_DUMPABLE, 1))
				_exit(5);
			answer = open(path, O_RDWR) < 0 ? (uint64_t)errno : 0;
			break;
		default: return 0;
		}
		progress[2] = answer;
		progress[3] = ++answered + 1;
	}
}

static uint64_t ask(enum question question)
{
	static uint64_t asked;

	wait_until(progress[3] == asked + 1);
	progress[1] = question;
	progress[0] = ++asked;
	if (question == QUIT)
		return 0;
	wait_until(progress[3] == asked + 1);
	return progress[2];
}

static uint64_t *word(void)
{
	return (uint64_t *)(void *)guest;
}

static void finish(struct child c)
{
	ask(QUIT);
	cr_assert_eq(wait_for_child(c), 0);
	remote_destroy(remote);
	host_destroy(&h);
}

/* Cut off, it sees what is written later; a hole takes the contents, not the mapping; only another file takes all that comes. */
Test(hostile, keeps_its_mapping_of_the_file_until_the_guest_leaves_the_file, .timeout = 60)
{
	struct hva_range r;
	struct child c;
	int fresh;

	remote_set_up(NEVER, true);
	c = spawn(hostile, 1);
	*word() = 1;
	cr_assert_eq(ask(READ_WORD), 1);
	cr_assert_eq(remote_detach(remote, c.id), 0);
	*word() = 2;
	cr_assert_eq(ask(READ_WORD), 2);
	cr_assert_eq(punch(0, PAGE), 0);
	cr_assert(is_hole(0, PAGE));
	cr_assert_eq(ask(READ_WORD), 0);
	cr_assert_not(is_hole(0, PAGE)); /* and what it touches is there again, and charged */
	/* The guest moves to a new file: all closed while its memory is copied, then mapped over. */
	*word() = 3;
	r = hva_range_of(guest, SHARED_BYTES);
	fresh = memfd_create("fresh", MFD_CLOEXEC);
	cr_assert(fresh >= 0 && !ftruncate(fresh, (off_t)SHARED_BYTES));
	cr_assert_eq(umbra_own_start(h.own, r, UMBRA_CAUSE_REMAP, true), 0);
	cr_assert_eq(pwrite(fresh, guest, SHARED_BYTES, 0), (ssize_t)SHARED_BYTES);
	cr_assert_eq(umbra_mmap_over(h.own, r, PROT_READ | PROT_WRITE, MAP_SHARED, fresh, 0), 0);
	umbra_own_end(h.own, r, UMBRA_CAUSE_REMAP, true);
	cr_assert_eq(*word(), 3);
	*word() = 4;
	cr_assert_eq(ask(READ_WORD), 3);
	cr_assert(host_sound(&h));
	finish(c);
}

/* With a descriptor to write through, a peer can take the memory away from the VMM, unless the file is sealed before. */
Test(hostile, can_punch_and_truncate_what_is_not_sealed, .timeout = 60)
{
	struct child c;

	remote_set_up(NEVER, true);
	c = spawn(hostile, 1);
	*word() = 1;
	cr_assert_eq(ask(PUNCH), 0);
	cr_assert_eq(*word(), 0);
	cr_assert_eq(ask(TRUNCATE), 0);
	finish(c);
}

static void set_up_sealed(unsigned int seals, bool peers_write)
{
	struct remote_config config = {
		.deadline_ms = NEVER,
		.peers_write = peers_write,
	};

	remote_set_up(NEVER, peers_write);
	remote_destroy(remote);
	guest_fd = memfd_create("sealed", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	cr_assert(guest_fd >= 0 && !ftruncate(guest_fd, (off_t)SHARED_BYTES));
	guest = host_map(&h, SHARED_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, guest_fd);
	cr_assert(guest);
	cr_assert_eq(fcntl(guest_fd, F_ADD_SEALS, seals), 0);
	config.chain = h.chain;
	config.hva = hva_range_of(guest, SHARED_BYTES);
	config.fd = guest_fd;
	cr_assert_eq(remote_create(&remote, &config), 0);
	remote_settle();
}

Test(hostile, seal_shrink_forbids_truncation_not_holes, .timeout = 60)
{
	struct child c;

	set_up_sealed(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL, true);
	c = spawn(hostile, 1);
	*word() = 1;
	cr_assert_eq(ask(TRUNCATE), EPERM);
	cr_assert_eq(ask(PUNCH), 0);
	cr_assert_eq(*word(), 0);
	finish(c);
}

/* Peers that only read: even with a descriptor of their own they change nothing. But neither does the VMM punch any more. */
Test(hostile, seal_future_write_forbids_all_change_ours_too, .timeout = 60)
{
	struct child c;

	set_up_sealed(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL, true);
	c = spawn(hostile, 0);
	*word() = 1;
	cr_assert_eq(ask(READ_WORD), 1);
	cr_assert_eq(ask(MAP_WRITABLE), EPERM);
	cr_assert_eq(ask(PUNCH), EPERM);
	cr_assert_eq(ask(TRUNCATE), EPERM);
	cr_assert_eq(punch(0, PAGE), -EPERM);
	*word() = 2;
	cr_assert_eq(ask(READ_WORD), 2);
	finish(c);
}

/* A descriptor that only reads: the VMM stays free. Its file's mode must forbid to open it anew, and the peer be another user. */
Test(hostile, a_read_only_descriptor_needs_the_right_mode, .timeout = 60)
{
	struct child c;

	remote_set_up(NEVER, false);
	c = spawn(hostile, 0);
	*word() = 1;
	cr_assert_eq(ask(READ_WORD), 1);
	cr_assert_eq(ask(MAP_WRITABLE), EACCES);
	cr_assert_eq(ask(PUNCH), EBADF);
	cr_assert_eq(ask(TRUNCATE), EINVAL);
	cr_assert_eq(punch(0, PAGE), 0);
	if (geteuid()) {
		ask(QUIT);
		cr_skip_test("only root can start a peer of another user");
	}
	cr_assert_eq(fchmod(guest_fd, 0600), 0);
	cr_assert_eq(ask(REOPEN_AS_NOBODY), EACCES);
	finish(c);
}

Test(hostile, the_mode_of_a_memfd_lets_anyone_open_it_anew, .timeout = 60)
{
	struct child c;

	if (geteuid())
		cr_skip_test("only root can start a peer of another user");
	remote_set_up(NEVER, false);
	c = spawn(hostile, 0);
	cr_assert_eq(ask(REOPEN_AS_NOBODY), 0);
	finish(c);
}
