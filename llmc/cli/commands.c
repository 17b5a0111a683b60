/* The list of the commands, and what all of them begin with. */
#include "llmc/cli/commands.h"

#include "llmc/base/console.h"
#include "llmc/base/file.h"
#include "llmc/base/options_value.h"
#include "llmc/cli/about.h"
#include "llmc/ops/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const struct option_command *options;
    const char *help;
    struct option_command (*more)(
        struct option_group *groups); /* where `options` is NULL; NULL: of training */
} commands[] = {
    {"train", NULL, NULL, "trains a model (the name may be left out)"},
    {"sample", cmd_sample, &sample_command, "writes text with a trained model"},
    {"serve", cmd_serve, &serve_command, "serves a model to programs that speak OpenAI's API"},
    {"watch", cmd_watch, &watch_command,
     "shows runs in a browser while they train: curves, samples, options, checkpoints"},
    {"view", cmd_view, &view_command,
     "shows how a model reads a text: attention, residual stream, next token"},
    {"eval", cmd_eval, &eval_command, "measures a model: loss on text, answers to multiple-choice questions"},
    {"export", cmd_export, &export_command, "writes a model as a GGUF file or a Hugging Face directory"},
    {"plan", cmd_plan, NULL, "prints the memory and the FLOPs that a training run would need", plan_command},
    {"profile", cmd_profile, NULL, "times a training step, operation by operation", profile_command},
    {"compare", cmd_compare, &compare_command, "compares a device with the CPU reference, tensor by tensor"},
};
enum { COMMANDS = ARRAY_LENGTH(commands) };

static int find_command(const char *name) {
    for (int i = 0; i < COMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0) return i;
    return -1;
}

static int unknown_command(const char *name) {
    const char *names[COMMANDS + 1];
    fprintf(stderr, "error: %s: no such command; there are", name);
    for (int i = 0; i < COMMANDS; i++) {
        names[i] = commands[i].name;
        fprintf(stderr, "%s %s", i ? "," : "", names[i]);
    }
    names[COMMANDS] = "help";
    int near = nearest_word(name, names, COMMANDS + 1);
    if (near >= 0)
        fprintf(stderr, "; did you mean %s?", names[near]);
    else if (path_exists(name)) /* a name of a file goes to an option */
        fprintf(stderr, "; --text %s trains on a text, sample --from %s continues one with a run",
                option_show(name).text, option_show(name).text);
    fputc('\n', stderr);
    return 2;
}

/* What commands there are. */
static void print_overview(void) {
    char *name = program_name(NULL);
    int width = terminal_width();
    printf("usage: %s COMMAND [options]\n", name);
    for (int i = 0; i < COMMANDS; i++)
        print_wrapped(stdout, width, 12, temp_printf("  %-8s  %s", commands[i].name, commands[i].help));
    print_wrapped(stdout, width, 0,
                  temp_printf("%s help COMMAND lists the options of a command; %s --version says what this "
                              "program was built from.",
                              name, name));
    putchar('\n');
    free(name);
}

/* `help`, `help COMMAND` and --help without a command: that is of training, with the overview before it. */
static int help(const char *name, int (*train)(int argc, char **argv)) {
    char option[] = "--help", *arguments[] = {option, NULL};
    int i = name ? find_command(name) : 0;
    if (i < 0) return unknown_command(name);
    if (!name) print_overview();
    return (commands[i].run ? commands[i].run : train)(1, arguments);
}

static int about_commands(int argc, char **argv, const struct option_command *train_command) {
    struct option_group groups[COMMANDS][RUN_OPTION_GROUPS + 1];
    struct option_command more[COMMANDS];
    struct about_command list[COMMANDS];
    for (int i = 0; i < COMMANDS; i++) {
        const struct option_command *options = commands[i].options ? commands[i].options : train_command;
        if (commands[i].more) {
            more[i] = commands[i].more(groups[i]);
            options = &more[i];
        }
        list[i] = (struct about_command){commands[i].name, options, commands[i].help};
    }
    struct about about = {"trains language models of GPT-2's kind, on CPUs and NVIDIA GPUs", list, COMMANDS};
    return about_program(&about, argc, argv);
}

/* OpenMP's threads wait for each other by spinning, by default so long that on a machine with other load a
 * training step takes three times as long (2.4 s instead of 0.8 s, 2 cores at a load of 5). Without a spin,
 * threads must be woken for every operation. Of `tiny` on 2 cores, with spins of 1000, 2500, 5000 and 20000: a
 * run alone takes 1, 0.96, 0.96 and 0.94 of the time, and two runs at once 1, 1.05, 1.10 and 1.6. The library
 * reads its settings before main() begins, so the program has to start itself again. If it cannot, it is only
 * slower. */
static void restart_with_short_spin(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "2500", 1);
    execv("/proc/self/exe", argv);
}

int dispatch_command(int argc, char **argv, const struct option_command *train_command,
                     int (*train)(int argc, char **argv)) {
    open_standard_files();
    int status = about_commands(argc, argv, train_command);
    if (status >= 0) return status;
    restart_with_short_spin(argv);
    bool asks = argc == 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0);
    if (asks || (argc <= 3 && argc >= 2 && strcmp(argv[1], "help") == 0))
        return help(argc == 3 ? argv[2] : NULL, train);
    if (argc < 2 || argv[1][0] == '-') return train(argc - 1, argv + 1);
    int i = find_command(argv[1]);
    if (i < 0) return unknown_command(argv[1]);
    return (commands[i].run ? commands[i].run : train)(argc - 2, argv + 2);
}

/* The usage begins with the name by which the program was called. */
static void print_help(struct options *o) {
    struct option_command command = *o->command;
    char *name = program_name(NULL);
    char *usage = xasprintf("%s%s", name, command.usage + strcspn(command.usage, " "));
    command.usage = usage;
    o->command = &command;
    char *text = options_help(o, terminal_width());
    printf("%s", text);
    free(text);
    free(usage);
    free(name);
}

int command_options(struct options *o, const struct option_command *command, void *config, int argc,
                    char **argv) {
    struct error err;
    options_init(o, command, config);
    if (!options_parse(o, argc, argv, &err)) {
        report_error("%s", err.message);
        options_free(o);
        return 2;
    }
    if (!o->help) return -1;
    print_help(o);
    bool chooses_device = false;
    for (int i = 0; i < o->count; i++) chooses_device |= strcmp(o->state[i].row->name, "device") == 0;
    if (chooses_device) printf("\nDevices of this build: %s\n", device_backends());
    check(fflush(stdout) == 0 && !ferror(stdout), "the help cannot be written to standard output: %s",
          strerror(errno));
    options_free(o);
    return 0;
}
