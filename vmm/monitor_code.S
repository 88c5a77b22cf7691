/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * The monitor's routines: position-independent, copied into the window at start. Ring-0 code is
 * interpreted on some KVMs (0.7 us an instruction was measured), so every instruction here counts.
 * The 256 exception stubs are too regular to be written down: vmm/monitor.c makes them.
 *
 * A flush command is a list of addresses that ends at a fixed place, with the ticket and then the
 * ack word behind it:
 *
 *	tables ... entries ... pages ... | ticket | ack
 *
 * rsi: first address. rcx: how many of the first kind (never 0). rdx: how many of the next kind.
 * Stack: rdx, rcx, rsi, rax of the guest, then the frame that iretq takes.
 *
 * Touching: a locked OR of 0 stores what is there already. Being a store by the guest's CPU, it makes
 * a KVM that shadows these tables look at the entry again, which no store of the VMM does. A store
 * of 2 bytes is no entry's size: KVM then forgets the whole page as a table.
 */
	.section .rodata
	.balign 16
	.globl monitor_code_begin, monitor_code_end
	.globl monitor_code_iretq, monitor_code_round
	.globl monitor_code_tables, monitor_code_entries, monitor_code_all, monitor_code_flush_end

monitor_code_begin:

/* rcx tables, then rdx entries (perhaps 0), then the whole TLB. */
monitor_code_tables:
1:	lodsq
	lock orw $0, (%rax)
	loop	1b
	mov	%edx, %ecx
	jrcxz	monitor_code_all
	xor	%edx, %edx

/* rcx entries, then rdx pages, or with rdx 0 the whole TLB. */
monitor_code_entries:
2:	lodsq
	lock orq $0, (%rax)
	loop	2b
	mov	%edx, %ecx
	jrcxz	monitor_code_all
3:	lodsq
	invlpg	(%rax)
	loop	3b
	jmp	4f

monitor_code_all:
	mov	%cr3, %rax
	mov	%rax, %cr3

/* Ticket to ack. The VMM reads it with acquire; stores of x86 are releases. */
4:	lodsq
	mov	%rax, (%rsi)
	pop	%rdx
	pop	%rcx
	pop	%rsi
	pop	%rax
monitor_code_iretq:
	iretq
monitor_code_flush_end:

/* Where a command that is not the last of its batch goes instead of the guest. */
monitor_code_round:
	outb	%al, $0xe1
	hlt
monitor_code_end:

	.section .note.GNU-stack, "", @progbits
