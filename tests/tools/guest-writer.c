/* Writes numbered records of 4 KiB in turns to two disks, each durable before the next, as fast as the guest can: see tests/qemu.rs.
   Goes on after the number in /n; rests while there is /rest. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { RECORD = 4096, SLOTS = 2048 };

int main(void) {
    int disks[2] = {open("/dev/vdb", O_WRONLY | O_DIRECT), open("/dev/vdc", O_WRONLY | O_DIRECT)};
    static char text[RECORD + 1];
    static char record[RECORD] __attribute__((aligned(RECORD)));
    long n = 0;
    FILE *before = fopen("/n", "r");
    if (before) {
        if (fscanf(before, "%ld", &n) != 1)
            n = 0;
        fclose(before);
    }
    setlinebuf(stdout);
    for (;;) {
        if (access("/rest", F_OK) == 0) {
            printf("RESTS %ld.\n", n);
            while (access("/rest", F_OK) == 0)
                usleep(50000);
        }
        n++;
        snprintf(text, sizeof text, "%04096ld", n);
        memcpy(record, text, RECORD);
        int disk = disks[n % 2];
        if (pwrite(disk, record, RECORD, n % SLOTS * RECORD) != RECORD || fdatasync(disk) != 0)
            printf("WRITE-ERROR %ld\n", n);
        if (n % 100 == 0)
            printf("WROTE %ld.\n", n);
        /* In short bursts: so much is written in a second, and not all of the disks. */
        if (n % 8 == 0)
            usleep(10000);
    }
}
