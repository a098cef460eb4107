/* The peer to compare with: a null device on libfuse's low-level API, single-threaded.
 *
 * null_libfuse MOUNTPOINT
 *
 * A file whose name begins with "null" reads as zeros and discards what is written; a read of the
 * file "echo" returns what the last write to it brought. It says "ready" when mounted and ends when
 * unmounted.
 */
#define FUSE_USE_VERSION 35
#include <errno.h>
#include <fuse_lowlevel.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { NULL_INODE = 2, ECHO_INODE = 3, LARGEST = 1 << 20 };

static char zeros[LARGEST], kept[LARGEST];
static size_t kept_size;

static struct stat attributes(fuse_ino_t inode)
{
	bool root = inode == FUSE_ROOT_ID;
	struct stat attr = {
		.st_ino = inode,
		.st_mode = root ? S_IFDIR | 0755 : S_IFREG | 0600,
		.st_nlink = root ? 2 : 1,
	};
	return attr;
}

static void null_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
	struct stat attr = attributes(inode);

	(void)info;
	fuse_reply_attr(request, &attr, 60);
}

static void null_lookup(fuse_req_t request, fuse_ino_t parent, const char *name)
{
	fuse_ino_t inode = strcmp(name, "echo") == 0 ? ECHO_INODE : NULL_INODE;
	struct fuse_entry_param entry = {
		.ino = inode,
		.attr = attributes(inode),
		.attr_timeout = 60,
		.entry_timeout = 60,
	};

	if (parent == FUSE_ROOT_ID && (inode == ECHO_INODE || strncmp(name, "null", 4) == 0))
		fuse_reply_entry(request, &entry);
	else
		fuse_reply_err(request, ENOENT);
}

static void null_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info)
{
	(void)inode;
	info->direct_io = 1;
	info->nonseekable = 1;
	fuse_reply_open(request, info);
}

static void null_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset,
		      struct fuse_file_info *info)
{
	bool echo = inode == ECHO_INODE;
	size_t have = echo ? kept_size : LARGEST;

	(void)offset, (void)info;
	fuse_reply_buf(request, echo ? kept : zeros, size < have ? size : have);
}

static void null_write(fuse_req_t request, fuse_ino_t inode, const char *data, size_t size,
		       off_t offset, struct fuse_file_info *info)
{
	(void)offset, (void)info;
	if (inode == ECHO_INODE && size <= LARGEST) {
		memcpy(kept, data, size);
		kept_size = size;
	}
	fuse_reply_write(request, size);
}

static const struct fuse_lowlevel_ops operations = {
	.getattr = null_getattr,
	.lookup = null_lookup,
	.open = null_open,
	.read = null_read,
	.write = null_write,
};

int main(int argc, char **argv)
{
	char *options[] = { argv[0], "-o", "default_permissions" };
	struct fuse_args args = FUSE_ARGS_INIT(3, options);
	struct fuse_session *session;
	int failed;

	if (argc < 2)
		return 2;
	session = fuse_session_new(&args, &operations, sizeof operations, NULL);
	if (!session || fuse_session_mount(session, argv[1]))
		return 1;
	puts("ready");
	fflush(stdout);
	failed = fuse_session_loop(session);
	fuse_session_unmount(session);
	fuse_session_destroy(session);
	return failed != 0;
}
