#include <math.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    (void)argv;
    printf("%.3f %d\n", sqrt(argc + 1.0), (int)getuid());
    return getuid() == 65532 ? 0 : 1;
}
