/* A real browser without a window, for tests of pages: Chromium, driven by its own protocol over two pipes.
 * It resolves no names, so a page that wants something from a network does not get it. */
#ifndef LLMC_TEST_BROWSER_H
#define LLMC_TEST_BROWSER_H

#include "test/scratch.h"

#include <jansson.h>

/* Starts Chromium with its profile in the scratch directory. False if it is not installed: the test then says
 * that it is left out. */
bool browser_open(void);
#define NEED_BROWSER()                                                                                       \
    if (!browser_open()) {                                                                                   \
        print_message("# left out: Chromium is not installed\n");                                            \
        skip();                                                                                              \
    }
void browser_close(void);

/* The window, in CSS pixels, and which colours the user prefers. */
void browser_view(int width, int height, bool dark);
/* Opens an address and waits until the page is loaded. */
void browser_go(const char *url);
/* The value of an expression in the page, of a promise that what it becomes. Fails the test if it throws. */
json_t *browser_value(const char *fmt, ...) LLMC_PRINTF(1, 2);
double browser_number(const char *fmt, ...) LLMC_PRINTF(1, 2);
/* The caller frees. */
char *browser_text(const char *fmt, ...) LLMC_PRINTF(1, 2);
/* Waits until the expression is true; fails the test after `seconds`. Returns how long it took. */
double browser_wait(double seconds, const char *fmt, ...) LLMC_PRINTF(2, 3);
/* A real click in the middle of the first element that the selector finds, and a drag across it, from and to
 * being shares of its width. */
void browser_click(const char *selector);
void browser_drag(const char *selector, double from, double to);
/* A key for the element that has the focus: "ArrowLeft", "+". */
void browser_key(const char *key);
/* With LLMC_SCREENSHOTS=DIR in the environment: writes DIR/NAME-WIDTH-light.png or -dark.png of the whole
 * page. */
void browser_picture(const char *name);
/* Fails the test if the page, or what stands in an element of class "whole", is wider than this. */
void browser_expect_width(double width);
/* Fails the test if a page since the last call threw an exception, was refused something by its policy, or
 * asked another address than a file and what begins with `allowed` (NULL: nothing). */
void browser_expect_no_errors(const char *allowed);

#endif
