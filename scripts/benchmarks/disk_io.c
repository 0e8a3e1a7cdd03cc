/* Reads and writes two disks alternately, past the guest's caches: disk_io TURN DISK DISK.
 *
 * Prints the seconds of each act on the first disk, then on the second. Every act of every turn has a part of the disks
 * to itself, so that a layer has nothing of its own there, and the host neither. A program without an interpreter,
 * since what it costs itself counts for both disks, and would hide what the disks cost.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, STEP = 1 << 20, PART = 64 << 20, COUNT = 1500, ACTS = 5 };

static unsigned char *block;

static void check(int is_fine, const char *what)
{
    if (!is_fine) {
        perror(what);
        exit(1);
    }
}

static void read_all(int disk, off_t place)
{
    for (int i = 0; i < PART / STEP; i++)
        check(pread(disk, block, STEP, place + (off_t)i * STEP) == STEP, "read");
}

static void write_all(int disk, off_t place)
{
    for (int i = 0; i < PART / STEP; i++)
        check(pwrite(disk, block, STEP, place + (off_t)i * STEP) == STEP, "write");
}

/* No page twice, here and there: a factor that is odd permutes the numbers below a power of two. */
static off_t page(int i)
{
    return (off_t)((unsigned)i * 40503u % (PART / PAGE)) * PAGE;
}

static void read_some(int disk, off_t place)
{
    for (int i = 0; i < COUNT; i++)
        check(pread(disk, block, PAGE, place + page(i)) == PAGE, "read");
}

static void write_some(int disk, off_t place)
{
    for (int i = 0; i < COUNT; i++)
        check(pwrite(disk, block, PAGE, place + page(i)) == PAGE, "write");
}

static void (*const acts[ACTS])(int, off_t) = {read_all, write_all, read_some, write_some, write_all};

static double measure(int act, int disk, int turn)
{
    struct timespec began, ended;
    off_t place = (off_t)(turn * ACTS + act + 1) * PART; /* the first part says that the disk is in use */
    clock_gettime(CLOCK_MONOTONIC, &began);
    acts[act](disk, place);
    check(fdatasync(disk) == 0, "sync");
    clock_gettime(CLOCK_MONOTONIC, &ended);
    return (double)(ended.tv_sec - began.tv_sec) + 1e-9 * (double)(ended.tv_nsec - began.tv_nsec);
}

int main(int count, char **words)
{
    int disks[2];
    double seconds[2][ACTS];
    check(count == 4, "usage: disk_io TURN DISK DISK");
    int turn = atoi(words[1]);
    check(posix_memalign((void **)&block, PAGE, STEP) == 0, "memory");
    for (int i = 0; i < STEP; i++)
        block[i] = (unsigned char)rand();
    for (int i = 0; i < 2; i++)
        check((disks[i] = open(words[2 + i], O_RDWR | O_DIRECT)) >= 0, words[2 + i]);
    for (int act = 0; act < ACTS; act++)
        for (int i = 0; i < 2; i++)
            seconds[(i + turn) % 2][act] = measure(act, disks[(i + turn) % 2], turn);
    for (int i = 0; i < 2 * ACTS; i++)
        printf("%.9f%c", seconds[i / ACTS][i % ACTS], i == 2 * ACTS - 1 ? '\n' : ' ');
    return 0;
}
