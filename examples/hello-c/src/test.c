#include "greeting.h"

#include <stdio.h>
#include <string.h>

int main(void)
{
    char text[16];

    if (greeting(text, sizeof text, "kiln") != 12 || strcmp(text, "Hello, kiln!") != 0)
        return 1;
    if (greeting(text, sizeof text, "somebody with a long name") != -1)
        return 1;
    puts("all tests passed");
    return 0;
}
