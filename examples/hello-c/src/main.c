#include "greeting.h"

#include <stdio.h>

int main(int argc, char **argv)
{
    char text[256];

    if (greeting(text, sizeof text, argc > 1 ? argv[1] : "nobody") < 0) {
        fputs("that name is too long\n", stderr);
        return 1;
    }
    puts(text);
    return 0;
}
