// Preloaded into a trainer: a clock that jumps, a record of the files that it renames into place or appends to, and
// a folder that behaves as one on a network file system may.
//
//   LD_PRELOAD=faults.so FAULTS_PROGRAM=pretrain.py FAULTS_CLOCK=FILE FAULTS_JOURNAL=FILE python pretrain.py ...
//
// Nothing happens in processes whose command line lacks FAULTS_PROGRAM: Slurm's own tools and Snakemake have the true
// clock. FAULTS_CLOCK holds an int64: seconds that are added to the time of day. FAULTS_JOURNAL gets a line per renaming,
// and per opening of a file to append: seconds of the monotonic clock, process, Slurm's number of the job, "rename" or
// "append", the name.
//
// In FAULTS_FOLDER:
//   FAULTS_LINK=17       every link() is made, and answers with this number of an error: the true answer was lost, and the
//                        system has asked again (17, EEXIST), or given up (5, EIO)
//   FAULTS_RENAME=1      every rename() is made, and answers ENOENT, as the second one is answered
//   FAULTS_STALE=3       every third opening of a .json or .csv to read, and every third reading of one, answers ESTALE:
//                        another host has replaced the file
//   FAULTS_CACHE=1000    stat() answers for so many milliseconds what it has answered before, unless this process has
//                        changed something: a renaming or a deletion by another host is seen late
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static int active, journal = -1, link_error, rename_lost, stale, cached_ms;
static const char *folder;
static volatile const int64_t *jump;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int told(const char *text) {
    static char line[65536];
    int file = open("/proc/self/cmdline", O_RDONLY);
    ssize_t length = file < 0 ? 0 : read(file, line, sizeof line);
    if (file >= 0) close(file);
    return length > 0 && text && memmem(line, length, text, strlen(text)) != NULL;
}

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

__attribute__((constructor)) static void begin(void) {
    const char *clock = getenv("FAULTS_CLOCK"), *record = getenv("FAULTS_JOURNAL");
    active = told(getenv("FAULTS_PROGRAM"));
    if (active && clock) {
        int file = open(clock, O_RDONLY);
        void *page = file < 0 ? MAP_FAILED : mmap(NULL, sizeof *jump, PROT_READ, MAP_SHARED, file, 0);
        if (page != MAP_FAILED) jump = page;
        if (file >= 0) close(file);
    }
    folder = active ? getenv("FAULTS_FOLDER") : NULL;
    link_error = number("FAULTS_LINK");
    rename_lost = number("FAULTS_RENAME");
    stale = number("FAULTS_STALE");
    cached_ms = number("FAULTS_CACHE");
    if (active && record) journal = open(record, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    static __typeof__(&clock_gettime) real;
    if (!real) real = REAL(clock_gettime);
    int status = real(id, now);
    if (!status && jump && id == CLOCK_REALTIME) now->tv_sec += *jump;
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    int status = REAL(gettimeofday)(now, zone);
    if (!status && jump) now->tv_sec += *jump;
    return status;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

static void note(const char *how, const char *path) {
    char line[4352];
    struct timespec now;
    const char *job = getenv("SLURM_JOB_ID");
    if (journal < 0) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    int length = snprintf(line, sizeof line, "%lld.%09ld %d %s %s %s\n", (long long)now.tv_sec, now.tv_nsec,
                          getpid(), job ? job : "-", how, path);
    if (length > 0 && (size_t)length < sizeof line && write(journal, line, length) < 0) errno = 0;
}

static int inside(const char *path) {
    return folder && path && !strncmp(path, folder, strlen(folder));
}

// What stat() has answered, by path. Python calls it from one thread at a time.
enum { KEPT = 512 };
static struct answer {
    char path[512];
    double at;
    int status, error;
    struct stat found;
} answers[KEPT];
static int next_answer;

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

static void changed(void) {
    for (int i = 0; i < KEPT; i++) answers[i].at = 0;
}

static int cached_stat(const char *path, struct stat *found, int (*real)(const char *, struct stat *)) {
    if (!cached_ms || !inside(path) || strlen(path) >= sizeof answers[0].path) return real(path, found);
    for (int i = 0; i < KEPT; i++)
        if (answers[i].at && seconds() - answers[i].at < 1e-3 * cached_ms && !strcmp(answers[i].path, path)) {
            *found = answers[i].found;
            errno = answers[i].error;
            return answers[i].status;
        }
    struct answer *one = &answers[next_answer++ % KEPT];
    one->status = real(path, found);
    one->error = errno;
    one->at = seconds();
    one->found = *found;
    strcpy(one->path, path);
    return one->status;
}

int stat(const char *restrict path, struct stat *restrict found) {
    return cached_stat(path, found, dlsym(RTLD_NEXT, "stat"));
}

int stat64(const char *restrict path, struct stat64 *restrict found) {
    return cached_stat(path, (struct stat *)found, dlsym(RTLD_NEXT, "stat64"));
}

static int replaceable(const char *path) {
    size_t length = path ? strlen(path) : 0;
    return inside(path) && length > 5 && (!strcmp(path + length - 5, ".json") || !strcmp(path + length - 4, ".csv"));
}

static int openings, readings;
static char watched[4096];  // by file descriptor: whether it is a file that another host may replace

static int opened(const char *path, int flags, mode_t mode, const char *name) {
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, name);
    int mine = stale && replaceable(path) && (flags & O_ACCMODE) == O_RDONLY;
    if (mine && ++openings % stale == 0) {
        errno = ESTALE;
        return -1;
    }
    if (flags & O_CREAT) changed();
    int file = real(path, flags, mode);
    if (file >= 0 && active && flags & O_APPEND) note("append", path);
    if (file >= 0 && file < (int)sizeof watched) watched[file] = mine;
    return file;
}

#define OPEN(name)                                     \
    int name(const char *path, int flags, ...) {       \
        va_list more;                                  \
        va_start(more, flags);                         \
        mode_t mode = va_arg(more, mode_t);            \
        va_end(more);                                  \
        return opened(path, flags, mode, #name);       \
    }
OPEN(open)
OPEN(open64)

ssize_t read(int file, void *buffer, size_t count) {
    static __typeof__(&read) real;
    if (!real) real = REAL(read);
    if (stale && file >= 0 && file < (int)sizeof watched && watched[file] && ++readings % stale == 0) {
        errno = ESTALE;
        return -1;
    }
    return real(file, buffer, count);
}

int unlink(const char *path) {
    changed();
    return REAL(unlink)(path);
}

int link(const char *from, const char *to) {
    int status = REAL(link)(from, to);
    changed();
    if (!status && link_error && inside(to)) {
        errno = link_error;
        return -1;
    }
    return status;
}

int rename(const char *from, const char *to) {
    int status = REAL(rename)(from, to);
    changed();
    if (!status && active) note("rename", to);
    if (!status && rename_lost && inside(to)) {
        errno = ENOENT;
        return -1;
    }
    return status;
}
