#include "greeting.h"

#include <stdio.h>

int greeting(char *text, size_t size, const char *name)
{
    int length = snprintf(text, size, "Hello, %s!", name);

    if (length < 0 || (size_t)length >= size)
        return -1;
    return length;
}
