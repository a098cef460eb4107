/* What the peers are asked to do. FILE may be a unix socket with a listener.
 *
 * client read|write FILE BLOCK SECONDS   -> bytes per second
 * client pingpong FILE ROUNDS            -> median and 99th percentile of a round, microseconds;
 *                                           a round is a write of one byte and a read of one
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static int ascending(const void *left, const void *right)
{
	double a = *(const double *)left, b = *(const double *)right;

	return (a > b) - (a < b);
}

static void stream(int file, int writing, size_t block, double seconds)
{
	char *buffer = calloc(1, block);
	double start, end;
	long long total = 0;

	if (!buffer)
		fail("calloc");
	memset(buffer, 1, block); /* pages of its own, not the zero page */
	start = end = now();
	while (end - start < seconds) {
		ssize_t done = writing ? write(file, buffer, block) : read(file, buffer, block);

		if (done <= 0)
			fail(writing ? "write" : "read");
		total += done;
		end = now();
	}
	printf("%.0f\n", total / (end - start));
}

static void ping_pong(int file, int rounds)
{
	double *took = calloc(rounds, sizeof *took);
	char byte = 'x';

	if (!took)
		fail("calloc");
	for (int round = -200; round < rounds; round++) { /* the first 200 warm up */
		double start = now();

		if (write(file, &byte, 1) != 1 || read(file, &byte, 1) != 1)
			fail("ping-pong");
		if (round >= 0)
			took[round] = (now() - start) * 1e6;
	}
	qsort(took, rounds, sizeof *took, ascending);
	printf("%.2f %.2f\n", took[rounds / 2], took[(int)(rounds * 0.99)]);
}

static int open_or_connect(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	int file = open(path, O_RDWR);

	if (file >= 0 || errno != ENXIO)
		return file;
	strncpy(address.sun_path, path, sizeof address.sun_path - 1);
	file = socket(AF_UNIX, SOCK_STREAM, 0);
	if (file < 0 || connect(file, (struct sockaddr *)&address, sizeof address))
		return -1;
	return file;
}

int main(int argc, char **argv)
{
	int file = argc > 3 ? open_or_connect(argv[2]) : -1;

	if (file < 0)
		fail(argc > 3 ? argv[2] : "usage");
	if (strcmp(argv[1], "pingpong") == 0)
		ping_pong(file, atoi(argv[3]));
	else if (argc > 4)
		stream(file, strcmp(argv[1], "write") == 0, atol(argv[3]), atof(argv[4]));
	else
		return 2;
	return 0;
}
