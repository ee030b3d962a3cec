/*
 * A QEMU plugin (docs/devel/tcg-plugins.rst of QEMU) that counts the instructions a kernel executes, by function and by
 * what the boot was doing. `kernel-config/profile` compiles and loads it. Each element of a string instruction counts.
 *
 * What the boot was doing: the functions that call its steps are known by name; the first other function entered after
 * one of them is the step, until one of them runs again.
 */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of qemu-plugin.h that is used, version 1 of the interface; Debian packages QEMU without the header. */
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
typedef void (*translated)(plugin_id, struct qemu_plugin_tb *);
typedef void (*executed)(unsigned int vcpu, void *data);
typedef void (*finished)(plugin_id, void *data);
extern void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, translated);
extern void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *, executed, int flags, void *data);
extern void qemu_plugin_register_atexit_cb(plugin_id, finished, void *data);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t index);
extern uint64_t qemu_plugin_insn_vaddr(const struct qemu_plugin_insn *);
#define EXPORT __attribute__((visibility("default")))
EXPORT int qemu_plugin_version = 1;

#define KERNEL 0xffffffff81000000ull
#define MAX_FUNCTIONS 65536

struct function {
	uint64_t address;
	char *name;
	bool calls_steps;
	/* An artefact of QEMU without KVM's clock: timers calibrated against each other. */
	bool left_out;
	uint64_t instructions, calls, as_step;
};

static const char *const calls_steps[] = {
	"x86_64_start_kernel", "x86_64_start_reservations", "start_kernel", "setup_arch", "mm_init", "rest_init",
	"arch_call_rest_init", "kernel_init", "kernel_init_freeable", "do_basic_setup", "do_initcall_level",
	"do_one_initcall", NULL,
};
static const char *const left_out[] = {
	"calibrate_delay", "delay_loop", "delay_tsc", "setup_boot_APIC_clock", "quick_pit_calibrate",
	"pit_hpet_ptimer_calibrate_cpu", NULL,
};

static struct function functions[MAX_FUNCTIONS];
static size_t count;
static struct function *step = functions;
static bool step_ended = true;

struct block {
	struct function *function;
	uint64_t instructions;
	bool entry;
};

static bool is_in(const char *const *names, const char *name)
{
	for (; *names; names++)
		if (!strcmp(*names, name))
			return true;
	return false;
}

static int by_address(const void *a, const void *b)
{
	const struct function *f = a, *g = b;
	return f->address < g->address ? -1 : f->address > g->address;
}

static int by_instructions(const void *a, const void *b)
{
	const struct function *f = a, *g = b;
	return f->instructions < g->instructions ? 1 : f->instructions > g->instructions ? -1 : 0;
}

static int by_step(const void *a, const void *b)
{
	const struct function *f = a, *g = b;
	return f->as_step < g->as_step ? 1 : f->as_step > g->as_step ? -1 : 0;
}

static struct function *function_at(uint64_t address)
{
	size_t low = 0, high = count;

	while (high - low > 1) {
		size_t middle = (low + high) / 2;
		*(functions[middle].address <= address ? &low : &high) = middle;
	}
	return &functions[low];
}

static void on_executed(unsigned int vcpu, void *data)
{
	const struct block *block = data;
	struct function *function = block->function;

	(void)vcpu;
	if (function->calls_steps) {
		step = function;
		step_ended = true;
	} else if (step_ended) {
		step = function;
		step_ended = false;
	}
	function->calls += block->entry;
	function->instructions += block->instructions;
	if (!function->left_out)
		step->as_step += block->instructions;
}

static void on_translated(plugin_id id, struct qemu_plugin_tb *tb)
{
	uint64_t address = qemu_plugin_insn_vaddr(qemu_plugin_tb_get_insn(tb, 0));
	struct block *block;

	(void)id;
	if (address < KERNEL)
		return;
	block = malloc(sizeof(*block));
	if (!block)
		abort();
	block->function = function_at(address);
	block->instructions = qemu_plugin_tb_n_insns(tb);
	block->entry = block->function->address == address;
	/* 0: the callback reads no registers. */
	qemu_plugin_register_vcpu_tb_exec_cb(tb, on_executed, 0, block);
}

static void on_finished(plugin_id id, void *data)
{
	uint64_t total = 0;
	size_t i;

	(void)id;
	(void)data;
	for (i = 0; i < count; i++)
		total += functions[i].as_step;
	fprintf(stderr, "%lu kernel instructions\n\n%10s  step\n", total, "");
	qsort(functions, count, sizeof(*functions), by_step);
	for (i = 0; i < 40 && i < count; i++)
		fprintf(stderr, "%10lu  %s\n", functions[i].as_step, functions[i].name);
	fprintf(stderr, "\n%10s %9s  function\n", "", "calls");
	qsort(functions, count, sizeof(*functions), by_instructions);
	for (i = 0; i < 40 && i < count; i++)
		fprintf(stderr, "%10lu %9lu  %s%s\n", functions[i].instructions, functions[i].calls, functions[i].name,
			functions[i].left_out ? " (left out above)" : "");
}

EXPORT int qemu_plugin_install(plugin_id id, const void *info, int argc, char **argv)
{
	unsigned long address;
	char type, name[512];
	FILE *map;

	(void)info;
	if (argc != 1 || strncmp(argv[0], "map=", 4) || !(map = fopen(argv[0] + 4, "r"))) {
		fprintf(stderr, "the plugin needs map=SYSTEM.MAP\n");
		return -1;
	}
	while (count < MAX_FUNCTIONS && fscanf(map, "%lx %c %511s", &address, &type, name) == 3) {
		if (address < KERNEL || !strchr("tTwW", type))
			continue;
		functions[count++] = (struct function) {
			.address = address, .name = strdup(name),
			.calls_steps = is_in(calls_steps, name), .left_out = is_in(left_out, name),
		};
	}
	fclose(map);
	if (!count)
		return -1;
	qsort(functions, count, sizeof(*functions), by_address);
	qemu_plugin_register_vcpu_tb_trans_cb(id, on_translated);
	qemu_plugin_register_atexit_cb(id, on_finished, NULL);
	return 0;
}
