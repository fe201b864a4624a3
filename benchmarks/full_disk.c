/* A disk that is full from a chosen moment on, for the files below one folder.
 *
 * gcc -shared -fPIC -O1 -o full_disk.so full_disk.c -ldl; LD_PRELOAD=./full_disk.so python ...
 * Every call that needs room (write, sync, new names) is counted and written to a log; from the
 * count that full_disk_at() was told on, each fails with ENOSPC. What frees room goes on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char under[4096];
static long limit = -1, count = 0;
static int log_to = -1;

void full_disk_at(const char *folder, long at, int log) {
    strncpy(under, folder, sizeof under - 1);
    limit = at;
    count = 0;
    log_to = log;
}

static ssize_t (*plain_write)(int, const void *, size_t);

static int refused(const char *what, const char *path) {
    if (!under[0] || strncmp(path, under, strlen(under))) return 0;
    count++;
    if (log_to >= 0) {
        char line[5000];
        int size = snprintf(line, sizeof line, "%ld\t%s\t%s\n", count, what, path);
        if (!plain_write) plain_write = dlsym(RTLD_NEXT, "write");
        if (size > 0) plain_write(log_to, line, size);
    }
    if (limit < 0 || count < limit) return 0;
    errno = ENOSPC;
    return 1;
}

static int refused_handle(const char *what, int handle) {
    char link[64], path[4096];
    if (!under[0] || handle == log_to) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return refused(what, path);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int h, const void *b, size_t n) { REAL(write); return refused_handle("write", h) ? -1 : real(h, b, n); }
ssize_t writev(int h, const struct iovec *v, int n) { REAL(writev); return refused_handle("write", h) ? -1 : real(h, v, n); }
ssize_t pwrite(int h, const void *b, size_t n, off_t o) { REAL(pwrite); return refused_handle("write", h) ? -1 : real(h, b, n, o); }
ssize_t pwrite64(int h, const void *b, size_t n, off64_t o) { REAL(pwrite64); return refused_handle("write", h) ? -1 : real(h, b, n, o); }
ssize_t sendfile(int h, int from, off_t *o, size_t n) { static ssize_t (*real)(int, int, off_t *, size_t); if (!real) real = dlsym(RTLD_NEXT, "sendfile"); return refused_handle("write", h) ? -1 : real(h, from, o, n); }
int fsync(int h) { REAL(fsync); return refused_handle("sync", h) ? -1 : real(h); }
int fdatasync(int h) { REAL(fdatasync); return refused_handle("sync", h) ? -1 : real(h); }
int ftruncate(int h, off_t n) { REAL(ftruncate); return refused_handle("size", h) ? -1 : real(h, n); }
int ftruncate64(int h, off64_t n) { REAL(ftruncate64); return refused_handle("size", h) ? -1 : real(h, n); }
int rename(const char *a, const char *b) { REAL(rename); return refused("rename", b) ? -1 : real(a, b); }
int link(const char *a, const char *b) { REAL(link); return refused("link", b) ? -1 : real(a, b); }
int mkdir(const char *p, mode_t m) { REAL(mkdir); return refused("mkdir", p) ? -1 : real(p, m); }

#define OPEN(name) \
    int name(const char *p, int flags, ...) { \
        REAL(name); \
        mode_t m = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list a; va_start(a, flags); m = va_arg(a, mode_t); va_end(a); } \
        if ((flags & O_CREAT) && access(p, F_OK) && refused("create", p)) return -1; \
        return real(p, flags, m); \
    }
OPEN(open)
OPEN(open64)
