# cython: freethreading_compatible=True
"""ParticipantLocks: the locks by which the processes that share a file know of each
other, and what a fork does to them.

All locks are `F_OFD_SETLK`: they belong to the open file, so they end with the process,
however it ends. Each is one byte, far behind the end of any file:

    a participant slot   exclusive   held by a process that works on the file; see
                                     op_slots.pxd and _meters/bucket_file.pyx
    attendance           shared      held by every process that is attached, with a slot
                                     or without one
    tidying              exclusive   held while a process finishes what dead ones began

Forks. A forked child inherits the descriptor, and with it the locks: as long as it
keeps that, its parent's slots stay taken. So the child closes it at once, in a handler
in C that allocates nothing and cannot fail, and clears all that the owner of the locks
asked for: from then on the child has no slot, in any file. It opens the file anew, from
`base`, when it first needs a lock (SharedFile.reopen), where an error has a caller to
go to. `base` is a second opening, which never holds a lock. No fork comes between the
opening of a descriptor to lock by and its entry in the list that the handler goes
through, nor between its end in that list and its closing: else a child would keep it
unseen, and with it whatever is locked by it later.

Closed by others. Code that makes a daemon closes every descriptor it finds, and the
next file that is opened gets the number. So each call checks whether its descriptor is
still one of this file, and opens the file anew where it is not; nothing is locked in
another file, asked of it, or closed. The locks themselves outlive the number: they last
as long as the opening, and a page that is mapped from it, and that no child inherits,
keeps it until `close`.

Threads. Each call takes the descriptor for system calls that do not wait, under a spin
lock, so that a `close` in another thread never leaves it with a number of another file.
Nothing here runs Python code.
"""

from libc.stdint cimport uint64_t

from ringbuf._core.atomics cimport word

cdef extern from * nogil:
    """
    #include <atomic>
    #include <cerrno>
    #include <cstdint>
    #include <new>
    #if !defined(_WIN32)
    #include <cstdlib>
    #include <pthread.h>
    #include <sched.h>
    #include <sys/stat.h>
    #include <unistd.h>
    #endif
    #if defined(__linux__)
    #include <cstdio>
    #include <cstring>
    #include <fcntl.h>
    #include <sys/mman.h>
    #endif

    enum { RINGBUF_MOST_PARTICIPANTS = 1024, RINGBUF_MOST_OPENINGS = 16 };

    struct ringbuf_locks {
        std::atomic<int> fd{-1};          /* whose locks are ours; -1: none, now or (closed) ever */
        int base = -1;
        uint64_t device = 0, inode = 0;   /* of the file */
        /* A page of each opening that `fd` was a number of, the latest last. */
        void *kept[RINGBUF_MOST_OPENINGS] = {};
        char *path = nullptr, *proc = nullptr;  /* of the last call of `open` */
        bool closed = false;
        std::atomic<uint32_t> busy{0};    /* the spin lock */
        std::atomic<uint32_t> tidying{0}; /* 1: a thread of ours has the lock of that name */
        std::atomic<uint64_t> held[RINGBUF_MOST_PARTICIPANTS / 64]{};
        std::atomic<uint64_t> *owned = nullptr; /* made 0 in a forked child ... */
        uint64_t *epoch = nullptr;              /* ... and this counted up */
        ringbuf_locks *next = nullptr, *previous = nullptr;
    };

    static std::atomic<uint64_t> ringbuf_forks{0};
    static ringbuf_locks *ringbuf_all = nullptr;

    #if !defined(_WIN32)
    static bool ringbuf_is_of_file(const ringbuf_locks *s, int fd) {
        struct stat found;
        return fd >= 0 && fstat(fd, &found) == 0 && (uint64_t)found.st_dev == s->device
            && (uint64_t)found.st_ino == s->inode;
    }

    static pthread_mutex_t ringbuf_all_mutex = PTHREAD_MUTEX_INITIALIZER;

    static void ringbuf_before_fork(void) { pthread_mutex_lock(&ringbuf_all_mutex); }
    static void ringbuf_fork_in_parent(void) { pthread_mutex_unlock(&ringbuf_all_mutex); }

    /* The only thread of the child: threads that were in a call are the parent's. */
    static void ringbuf_fork_in_child(void) {
        ringbuf_forks.fetch_add(1);
        for (ringbuf_locks *s = ringbuf_all; s; s = s->next) {
            int fd = s->fd.exchange(-1);
            if (ringbuf_is_of_file(s, fd)) close(fd);
            for (void *&page : s->kept) page = nullptr; /* which are not mapped here */
            s->busy.store(0);
            s->tidying.store(0);
            for (auto &word : s->held) word.store(0);
            if (s->owned) s->owned->store(0);
            if (s->epoch) ++*s->epoch;
        }
        pthread_mutex_unlock(&ringbuf_all_mutex);
    }

    static int ringbuf_watch_forks(void) {
        return pthread_atfork(ringbuf_before_fork, ringbuf_fork_in_parent, ringbuf_fork_in_child);
    }

    static ringbuf_locks *ringbuf_new_locks(int base) {
        ringbuf_locks *s = new (std::nothrow) ringbuf_locks;
        if (!s) return s;
        struct stat found;
        if (fstat(base, &found) == 0) {
            s->device = found.st_dev;
            s->inode = found.st_ino;
        }
        s->base = base;
        pthread_mutex_lock(&ringbuf_all_mutex);
        s->next = ringbuf_all;
        if (s->next) s->next->previous = s;
        ringbuf_all = s;
        pthread_mutex_unlock(&ringbuf_all_mutex);
        return s;
    }

    static void ringbuf_locks_watch(
        ringbuf_locks *s, std::atomic<uint64_t> *owned, uint64_t *epoch) {
        pthread_mutex_lock(&ringbuf_all_mutex);
        s->owned = owned;
        s->epoch = epoch;
        pthread_mutex_unlock(&ringbuf_all_mutex);
    }

    struct ringbuf_turn {
        ringbuf_locks *s;
        explicit ringbuf_turn(ringbuf_locks *locks) : s(locks) {
            uint32_t none = 0;
            while (!s->busy.compare_exchange_weak(none, 1, std::memory_order_acquire)) {
                none = 0;
                sched_yield();
            }
        }
        ~ringbuf_turn() { s->busy.store(0, std::memory_order_release); }
    };

    static void ringbuf_locks_close(ringbuf_locks *s) {
        pthread_mutex_lock(&ringbuf_all_mutex);
        {
            ringbuf_turn turn(s);
            int fd = s->fd.exchange(-1), base = s->base;
            s->base = -1;
            s->closed = true;
            if (ringbuf_is_of_file(s, fd)) close(fd);
            if (ringbuf_is_of_file(s, base)) close(base);
    #if defined(__linux__)
            for (void *&page : s->kept) {
                if (page) munmap(page, 4096);
                page = nullptr;
            }
    #endif
        }
        pthread_mutex_unlock(&ringbuf_all_mutex);
    }

    static void ringbuf_delete_locks(ringbuf_locks *s) {
        if (!s) return;
        ringbuf_locks_close(s);
        pthread_mutex_lock(&ringbuf_all_mutex);
        if (s->previous) s->previous->next = s->next; else ringbuf_all = s->next;
        if (s->next) s->next->previous = s->previous;
        pthread_mutex_unlock(&ringbuf_all_mutex);
        free(s->path);
        free(s->proc);
        delete s;
    }
    #else
    static int ringbuf_watch_forks(void) { return 0; }
    static ringbuf_locks *ringbuf_new_locks(int) { return new (std::nothrow) ringbuf_locks; }
    static void ringbuf_locks_watch(ringbuf_locks *, std::atomic<uint64_t> *, uint64_t *) {}
    static void ringbuf_locks_close(ringbuf_locks *s) { s->closed = true; }
    static void ringbuf_delete_locks(ringbuf_locks *s) { delete s; }
    #endif

    #if defined(__linux__)
    static const int64_t ringbuf_participants_at = (int64_t)1 << 60;
    static const int64_t ringbuf_tidying_at = ringbuf_participants_at - 1;
    static const int64_t ringbuf_attendance_at = ringbuf_participants_at - 2;

    /* Another opening of the file: by `proc` from `base`, or, where that does not lead to it,
       by its name, if that does. Else a negative errno: ENOSYS, where `proc` is not there and
       would lead to it; ESTALE, where others have closed `base`. */
    static int ringbuf_open_again(ringbuf_locks *s) {
        char name[200];
        const bool known = ringbuf_is_of_file(s, s->base);
        if (known) {
            snprintf(name, sizeof name, "%s/self/fd/%d", s->proc, s->base);
            int fd = open(name, O_RDWR | O_CLOEXEC);
            if (fd >= 0 || errno != ENOENT) return fd >= 0 ? fd : -errno;
        }
        int fd = open(s->path, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
        if (fd < 0 && errno != ENOENT && errno != ENOTDIR) return -errno;
        if (fd < 0) return known ? -ENOSYS : -ESTALE;
        if (ringbuf_is_of_file(s, fd)) return fd;
        close(fd);
        return known ? -ENOSYS : -ESTALE;
    }

    /* Have a descriptor to lock by, if `closed` does not forbid it: 0, or an errno. */
    static int ringbuf_locks_open_again(ringbuf_locks *s) {
        int error = 0;
        pthread_mutex_lock(&ringbuf_all_mutex);
        {
            ringbuf_turn turn(s);
            int fd = s->fd.load();
            if (!s->closed && !ringbuf_is_of_file(s, fd)) {
                int free = 0;
                while (free < RINGBUF_MOST_OPENINGS && s->kept[free]) ++free;
                fd = free < RINGBUF_MOST_OPENINGS ? ringbuf_open_again(s) : -EMFILE;
                void *page = MAP_FAILED;
                if (fd >= 0) page = mmap(nullptr, 4096, PROT_NONE, MAP_SHARED, fd, 0);
                if (page != MAP_FAILED && madvise(page, 4096, MADV_DONTFORK) == 0) {
                    s->kept[free] = page;
                    s->fd = fd;
                } else {
                    error = fd < 0 ? -fd : errno;
                    s->fd = -1;
                    if (page != MAP_FAILED) munmap(page, 4096);
                    if (fd >= 0) close(fd);
                }
            }
        }
        pthread_mutex_unlock(&ringbuf_all_mutex);
        return error;
    }

    static int ringbuf_locks_open(ringbuf_locks *s, const char *path, const char *proc) {
        char *mine = strdup(path), *mounted = strdup(proc);
        if (!mine || !mounted) {
            free(mine);
            free(mounted);
            return ENOMEM;
        }
        pthread_mutex_lock(&ringbuf_all_mutex);
        free(s->path);
        free(s->proc);
        s->path = mine;
        s->proc = mounted;
        pthread_mutex_unlock(&ringbuf_all_mutex);
        return ringbuf_locks_open_again(s);
    }

    /* 1: done; 0: another process has it; an errno as a negative number. F_OFD_GETLK: 1:
       another process has it. */
    static int ringbuf_lock(ringbuf_locks *s, int command, short type, int64_t at) {
        for (int round = 0;; ++round) {
            {
                ringbuf_turn turn(s);
                int fd = s->fd.load();
                if (fd < 0) return -EBADF;
                if (ringbuf_is_of_file(s, fd)) {
                    struct flock lock = {};
                    lock.l_type = type;
                    lock.l_whence = SEEK_SET;
                    lock.l_start = at;
                    lock.l_len = 1;
                    if (fcntl(fd, command, &lock) < 0)
                        return errno == EAGAIN || errno == EACCES ? 0 : -errno;
                    return command == F_OFD_SETLK || lock.l_type != F_UNLCK;
                }
            }
            if (round == 3) return -EBADF;
            int error = ringbuf_locks_open_again(s);
            if (error) return -error;
        }
    }

    static int ringbuf_take_participant(ringbuf_locks *s, int participant) {
        std::atomic<uint64_t> &word = s->held[participant / 64];
        const uint64_t bit = (uint64_t)1 << participant % 64;
        if (word.load() & bit) return 0;
        int done = ringbuf_lock(s, F_OFD_SETLK, F_WRLCK, ringbuf_participants_at + participant);
        /* The locks of one opening are not in each other's way: of two threads, one has it. */
        return done == 1 && word.fetch_or(bit) & bit ? 0 : done;
    }

    static bool ringbuf_participant_is_taken(ringbuf_locks *s, int participant) {
        if (participant < 0 || participant >= RINGBUF_MOST_PARTICIPANTS) return false;
        if (s->held[participant / 64].load() >> participant % 64 & 1) return true;
        /* Without an answer it counts as taken: a living process is not tidied up after. */
        return ringbuf_lock(s, F_OFD_GETLK, F_WRLCK, ringbuf_participants_at + participant) != 0;
    }

    static int ringbuf_attend(ringbuf_locks *s) {
        return ringbuf_lock(s, F_OFD_SETLK, F_RDLCK, ringbuf_attendance_at);
    }

    static bool ringbuf_others_attend(ringbuf_locks *s) {
        return ringbuf_lock(s, F_OFD_GETLK, F_WRLCK, ringbuf_attendance_at) != 0;
    }

    static int ringbuf_begin_tidying(ringbuf_locks *s) {
        uint32_t none = 0;
        if (!s->tidying.compare_exchange_strong(none, 1)) return 0;
        int done = ringbuf_lock(s, F_OFD_SETLK, F_WRLCK, ringbuf_tidying_at);
        if (done != 1) s->tidying.store(0);
        return done;
    }

    static void ringbuf_end_tidying(ringbuf_locks *s) {
        ringbuf_lock(s, F_OFD_SETLK, F_UNLCK, ringbuf_tidying_at);
        s->tidying.store(0);
    }
    #else
    static int ringbuf_locks_open(ringbuf_locks *, const char *, const char *) { return ENOSYS; }
    static int ringbuf_take_participant(ringbuf_locks *, int) { return -ENOSYS; }
    static bool ringbuf_participant_is_taken(ringbuf_locks *, int) { return true; }
    static int ringbuf_attend(ringbuf_locks *) { return -ENOSYS; }
    static bool ringbuf_others_attend(ringbuf_locks *) { return true; }
    static int ringbuf_begin_tidying(ringbuf_locks *) { return -ENOSYS; }
    static void ringbuf_end_tidying(ringbuf_locks *) {}
    #endif
    static uint64_t ringbuf_fork_count(void) {
        return ringbuf_forks.load(std::memory_order_relaxed);
    }
    """
    int watch_forks "ringbuf_watch_forks"()
    Part* new_locks "ringbuf_new_locks"(int base)
    void delete_locks "ringbuf_delete_locks"(Part* part)
    void locks_watch "ringbuf_locks_watch"(Part* part, word* owned, uint64_t* epoch)
    int locks_open "ringbuf_locks_open"(Part* part, const char* path, const char* proc)
    void locks_close "ringbuf_locks_close"(Part* part)
    int take_participant_slot "ringbuf_take_participant"(Part* part, int participant)
    bint participant_is_taken "ringbuf_participant_is_taken"(Part* part, int participant)
    int lock_attendance "ringbuf_attend"(Part* part)
    bint others_attend "ringbuf_others_attend"(Part* part)
    int begin_tidying "ringbuf_begin_tidying"(Part* part)
    void end_tidying "ringbuf_end_tidying"(Part* part)
    uint64_t forks "ringbuf_fork_count"()


if watch_forks() != 0:
    raise MemoryError("no memory for a fork handler")


cdef uint64_t fork_count() noexcept nogil:
    """How many forks lie between the start of Python and this process."""
    return forks()


cdef class ParticipantLocks:
    """The locks of one opening of a file. Made by SharedFile; not for others.

    base: a descriptor to open the file from; closed with this, if it could be made.
    """

    def __cinit__(self, int base):
        self.part = new_locks(base)
        if self.part == NULL:
            raise MemoryError()

    def __dealloc__(self):
        delete_locks(self.part)

    cdef void watch(self, word* owned, uint64_t* epoch) noexcept nogil:
        """What to make 0 in a forked child, and what to count up there; NULL: nothing.
        """
        locks_watch(self.part, owned, epoch)

    cdef int take(self, int participant) noexcept nogil:
        """Take a participant slot. 1: it is ours now; 0: it was taken already, by us or
        others; else a negative errno.
        """
        return take_participant_slot(self.part, participant)

    cdef bint is_taken(self, int participant) noexcept nogil:
        """Whether a living process has this slot. True where there is no telling; of a
        slot that cannot be, False.
        """
        return participant_is_taken(self.part, participant)

    cdef int attend(self) noexcept nogil:
        """Let others know that we are attached: 1, or a negative errno."""
        return lock_attendance(self.part)

    cdef bint others_attend(self) noexcept nogil:
        return others_attend(self.part)

    cdef int begin_tidying(self) noexcept nogil:
        """1: until `end_tidying` no other process tidies up or takes a slot; 0: another
        one does now; else a negative errno.
        """
        return begin_tidying(self.part)

    cdef void end_tidying(self) noexcept nogil:
        end_tidying(self.part)

    cdef void close(self) noexcept nogil:
        """Let go of all locks, for ever. A second call does nothing."""
        locks_close(self.part)

    # ---------------------------------------------------------------- for Python

    def open(self, bytes path not None, bytes proc not None):
        """Have a descriptor to lock by, after `__init__` and after a fork: 0, also
        where there is one or `close` was called.

        Else an errno. ENOSYS: neither `proc`, a file system of that kind, nor this path
        leads to the file. ESTALE: the path does not, and others have closed the
        descriptor that would.
        """
        cdef const char* name = path
        cdef const char* mounted = proc
        cdef int error
        with nogil:
            error = locks_open(self.part, name, mounted)
        return error

    def try_tidying(self):
        return checked(begin_tidying(self.part))

    def stop_tidying(self):
        end_tidying(self.part)

    def give_up(self):
        locks_close(self.part)

    def __reduce__(self):
        raise TypeError("ParticipantLocks belong to one process and cannot be copied or pickled")


cdef bint checked(int done) except -1:
    if done < 0:
        import os
        raise OSError(-done, os.strerror(-done))
    return done == 1
