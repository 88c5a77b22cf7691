/* SPDX-License-Identifier: BSD-2-Clause */
/* The first instructions of every vCPU: a stack of its own, then C. rdi and rsi stay as vmm set them. */
#define STACK_SHIFT 14
#define VCPUS	    8

	.section .text.start, "ax"
	.globl _start
_start:
	cmp	$VCPUS, %rsi
	jae	1f
	mov	%rsi, %rax
	inc	%rax
	shl	$STACK_SHIFT, %rax
	lea	guest_stacks(%rip), %rsp
	add	%rax, %rsp
	xor	%ebp, %ebp
	cld
	call	guest_entry
1:	ud2

	.bss
	.balign 4096
	.globl guest_stacks
guest_stacks:
	.skip	VCPUS << STACK_SHIFT

	.section .note.GNU-stack, "", @progbits
