/* What only C code does to a Python process. Called through ctypes.PyDLL, so with the GIL held. */
#include <stddef.h>
#include <unistd.h>

void hold(void)
{
    for (;;)
        pause(); /* goes on after a signal */
}

void crash(void)
{
    *(volatile int *)NULL = 1;
}
