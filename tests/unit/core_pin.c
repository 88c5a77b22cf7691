/* SPDX-License-Identifier: BSD-2-Clause */
/* Pins: what is pinned is not relocated by us; what the host takes is reported. On the fake host.
 */
#include <criterion/criterion.h>
#include <errno.h>

#include "tests/support/fakehost.h"

#define clean(f) cr_assert_eq(fake_check(f), 0)

Test(pin, a_pinned_page_is_not_relocated_by_us_until_unpinned)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range reloc =
		fake_test_range(10, 8, UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_RELOCATES);
	const struct umbra_range beside =
		fake_test_range(14, 4, UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_RELOCATES);
	struct umbra_pin a, b;

	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 12 }, 2, &a), 0);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 13 }, 1, &b), 0);
	cr_assert_eq(fake_leaf(f, 12), 1);
	cr_assert_eq(umbra_invalidate_start(f->chain, &reloc), -EBUSY);
	cr_assert_eq(fake_leaf(f, 12), 1, "a refused start drops nothing");
	cr_assert_eq(umbra_invalidate_start(f->chain, &beside), 0);
	umbra_invalidate_end(f->chain, &beside);
	cr_assert(umbra_unpin(f->mmu, &a));
	cr_assert_eq(umbra_invalidate_start(f->chain, &reloc), -EBUSY, "two pins, one gone");
	cr_assert(umbra_unpin(f->mmu, &b));
	cr_assert_eq(umbra_invalidate_start(f->chain, &reloc), 0);
	umbra_invalidate_end(f->chain, &reloc);
	clean(f);
	fake_destroy(f);
}

Test(pin, changes_that_do_not_relocate_are_allowed)
{
	struct fake *f = fake_create(NULL);
	struct umbra_pin pin;

	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 12 }, 1, &pin), 0);
	fake_invalidate(f, 12, 1); /* mprotect, say */
	cr_assert_eq(fake_leaf(f, 12), 0);
	cr_assert(umbra_unpin(f->mmu, &pin));
	fake_destroy(f);
}

Test(pin, a_pin_in_a_batch_refuses_the_batch_but_not_one_in_its_gaps)
{
	struct fake *f = fake_create(NULL);
	const struct hva_range parts[] = { fake_range(10, 1), fake_range(30, 1) };
	struct umbra_range r =
		fake_test_range(10, 21, UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_RELOCATES);
	struct umbra_pin gap, in;

	r.v = parts;
	r.nr = 2;
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 20 }, 1, &gap), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 30 }, 1, &in), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), -EBUSY);
	umbra_unpin(f->mmu, &in);
	umbra_unpin(f->mmu, &gap);
	fake_destroy(f);
}

Test(pin, what_a_forced_batch_takes_is_reported_of_every_part)
{
	struct fake *f = fake_create(NULL);
	const struct hva_range parts[] = { fake_range(10, 1), fake_range(30, 1) };
	struct umbra_range r = fake_test_range(10, 21, UMBRA_RANGE_FORCED | UMBRA_RANGE_RELOCATES);
	struct umbra_pin first, gap, last;

	r.v = parts;
	r.nr = 2;
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, 1, &first), 0);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 20 }, 1, &gap), 0);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 30 }, 1, &last), 0);
	cr_assert_eq(umbra_invalidate_start(f->chain, &r), 0);
	umbra_invalidate_end(f->chain, &r);
	cr_assert_eq(f->pins_lost, 2);
	cr_assert_not(umbra_unpin(f->mmu, &first));
	cr_assert(umbra_unpin(f->mmu, &gap));
	cr_assert_not(umbra_unpin(f->mmu, &last));
	clean(f);
	fake_destroy(f);
}

Test(pin, a_slot_with_a_pin_stays)
{
	struct fake *f = fake_create(NULL);
	struct umbra_pin pin;

	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 12 }, 1, &pin), 0);
	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), -EBUSY);
	cr_assert_eq(umbra_memslot_move(f->mmu, 1, (gfn_t){ 1 << 20 }, (pfn_t){ 1 << 20 }), -EBUSY);
	umbra_unpin(f->mmu, &pin);
	cr_assert_eq(umbra_memslot_remove(f->mmu, 1), 0);
	fake_destroy(f);
}

Test(pin, errors_leave_no_pin)
{
	struct fake *f = fake_create(NULL);
	const struct umbra_range reloc =
		fake_test_range(0, 4096, UMBRA_RANGE_BLOCKABLE | UMBRA_RANGE_RELOCATES);
	const struct umbra_range open = fake_test_range(50, 1, UMBRA_RANGE_BLOCKABLE);
	struct umbra_pin pin;

	f->pages[12].writable = false;
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, 5, &pin), -EACCES);
	f->pages[12].present = false;
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, 5, &pin), -EFAULT);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 4095 }, 2, &pin), -EFAULT, "no slot");
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, 0, &pin), -EFAULT);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 10 }, UINT64_MAX, &pin), -EFAULT);
	cr_assert_eq(umbra_invalidate_start(f->chain, &open), 0);
	cr_assert_eq(umbra_pin(f->root, (gfn_t){ 50 }, 1, &pin), -EAGAIN, "bounded, not for ever");
	umbra_invalidate_end(f->chain, &open);
	cr_assert_eq(umbra_invalidate_start(f->chain, &reloc), 0, "no pin was left");
	umbra_invalidate_end(f->chain, &reloc);
	clean(f);
	fake_destroy(f);
}
