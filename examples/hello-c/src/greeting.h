#ifndef GREETING_H
#define GREETING_H

#include <stddef.h>

/* Writes a greeting for `name` into `text`. Returns its length, or -1 when there is no room for it. */
int greeting(char *text, size_t size, const char *name);

#endif
