/* The list of the commands, and what all of them begin with. */
#include "llmc/cli/commands.h"

#include "llmc/base/console.h"
#include "llmc/ops/device.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} commands[] = {
    {"train", NULL, "trains a model (the name may be left out)"},
    {"sample", cmd_sample, "writes text with a trained model"},
    {"view", cmd_view, "shows how a model reads a text: attention, residual stream, next token"},
    {"eval", cmd_eval, "measures a model: loss on text, answers to multiple-choice questions"},
    {"export", cmd_export, "writes a model as a GGUF file or a Hugging Face directory"},
    {"plan", cmd_plan, "prints the memory and the FLOPs that a training run would need"},
    {"profile", cmd_profile, "times a training step, operation by operation"},
    {"compare", cmd_compare, "compares a device with the CPU reference, tensor by tensor"},
};

char *train_usage(void) {
    char *text = xstrdup("train_gpt COMMAND [options]\n");
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) {
        char *longer = xasprintf("%s  %-8s  %s\n", text, commands[i].name, commands[i].help);
        free(text);
        text = longer;
    }
    char *usage =
        xasprintf("%strain_gpt COMMAND --help lists the options of a command. Those of train:\n", text);
    free(text);
    return usage;
}

static int unknown_command(const char *name) {
    const char *names[ARRAY_LENGTH(commands)];
    fprintf(stderr, "error: %s: no such command; there are", name);
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++) {
        names[i] = commands[i].name;
        fprintf(stderr, "%s %s", i ? "," : "", names[i]);
    }
    int near = nearest_word(name, names, ARRAY_LENGTH(commands));
    if (near >= 0) fprintf(stderr, "; did you mean %s?", names[near]);
    fputc('\n', stderr);
    return 2;
}

/* OpenMP's threads wait for each other by spinning, by default so long that on a machine with other load a
 * training step takes three times as long (2.4 s instead of 0.8 s, 2 cores at a load of 5). A short spin
 * costs nothing on an idle machine. The library reads its settings before main() begins, so the program has
 * to start itself again. If it cannot, it is only slower. */
static void restart_with_short_spin(char **argv) {
    if (getenv("OMP_WAIT_POLICY") || getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", "1000", 1);
    execv("/proc/self/exe", argv);
}

int dispatch_command(int argc, char **argv, int (*train)(int argc, char **argv)) {
    open_standard_files();
    restart_with_short_spin(argv);
    if (argc < 2 || argv[1][0] == '-') return train(argc - 1, argv + 1);
    for (size_t i = 0; i < ARRAY_LENGTH(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0)
            return (commands[i].run ? commands[i].run : train)(argc - 2, argv + 2);
    return unknown_command(argv[1]);
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
    char *text = options_help(o);
    printf("%s\nDevices of this build: %s\n", text, device_backends());
    check(fflush(stdout) == 0 && !ferror(stdout), "the help cannot be written to standard output: %s",
          strerror(errno));
    free(text);
    options_free(o);
    return 0;
}
