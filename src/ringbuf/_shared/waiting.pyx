# cython: freethreading_compatible=True
"""Waiting: how the users of one ring wait for each other, as threads that sleep and as
event loops that listen.

An operation that wakes no other pays for one load of an event count (`wanted`); all
that is here happens only when something waits.

    sleep    seen = before_sleep(event); try once more; if it is still in vain:
             sleep(event, seen, deadline); and again.
    listen   a pop that finds nothing while an event loop listens: listen(); try once
             more; if it now finds something: hear().

Where processes share a ring, one of them may be killed between a push or a pop and the
call that wakes others. So nothing waits for long there without a try of its own: a
sleeping thread for SHORT_SLEEP_NS, an event loop for LISTEN_NS, after which its
descriptor is readable as if it had been called. Each try also finds what dead processes
have left.

Others are woken after a push or a pop has been done, so that cannot fail: no Python
code runs in `call`, `listen` and `hear`, nothing is allocated, and where a system call
fails, the tries above make up for it. A call of other processes' event loops goes
through one socket of this process.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.math cimport INFINITY
from libc.stdint cimport INT64_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport strcpy

from ringbuf._core.atomics cimport (
    exchange_total, fetch_or_total, load_acquire, store_relaxed, store_release, store_total,
)
from ringbuf._core.eventcount cimport (
    LISTENERS, SLEEPERS, EventCount, barrier, futex_wait, futex_wake, have_barrier, let_settle,
)
from ringbuf._core.timing cimport steady_ns
from ringbuf._shared.op_slots cimport PARTICIPANTS
from ringbuf._shared.participant cimport Participant
from ringbuf._shared.participant_locks cimport fork_count

from numbers import Real

from ringbuf._core.ready_fd import ReadyFd, prefix_of

cdef extern from * nogil:
    """
    #include <cstdint>
    #if defined(_WIN32)
    #include <io.h>
    static inline void ringbuf_poke(int fd) {
        uint64_t one = 1;
        (void)_write(fd, &one, sizeof one);
    }
    static inline void ringbuf_drain(int fd) {
        char bytes[64];
        while (_read(fd, bytes, sizeof bytes) > 0) {}
    }
    static inline bool ringbuf_leads_to(int, uint64_t, uint64_t) { return true; }
    #else
    #include <sys/stat.h>
    #include <unistd.h>
    /* Full, it is readable already. */
    static inline void ringbuf_poke(int fd) {
        uint64_t one = 1;
        if (write(fd, &one, sizeof one) < 0) return;
    }

    static inline void ringbuf_drain(int fd) {
        char bytes[64];
        while (read(fd, bytes, sizeof bytes) > 0) {}
    }

    static inline bool ringbuf_leads_to(int fd, uint64_t device, uint64_t inode) {
        struct stat found;
        return fstat(fd, &found) == 0 && (uint64_t)found.st_dev == device
            && (uint64_t)found.st_ino == inode;
    }
    #endif
    #if defined(__linux__)
    #include <atomic>
    #include <cstdio>
    #include <cstdlib>
    #include <cstring>
    #include <sys/socket.h>
    #include <sys/timerfd.h>
    #include <sys/un.h>

    /* The socket of this process to call from. Device and inode are noted: code that closes all
       descriptors of a process closes this one too, and another file gets its number. */
    struct ringbuf_caller { int fd; dev_t device; ino_t inode; uint64_t forks; };
    static std::atomic<ringbuf_caller *> ringbuf_one_caller{nullptr};

    static bool ringbuf_is_caller(const ringbuf_caller *caller) {
        struct stat found;
        return fstat(caller->fd, &found) == 0 && found.st_ino == caller->inode
            && found.st_dev == caller->device;
    }

    /* -1: there can be none at the moment. */
    static int ringbuf_calling_socket(uint64_t forks) {
        ringbuf_caller *caller = ringbuf_one_caller.load(), *made;
        struct stat found;
        if (caller && caller->forks == forks && ringbuf_is_caller(caller)) return caller->fd;
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (fd < 0) return -1;
        made = fstat(fd, &found) == 0 ? (ringbuf_caller *)malloc(sizeof *made) : nullptr;
        if (made) *made = {fd, found.st_dev, found.st_ino, forks};
        if (!made || !ringbuf_one_caller.compare_exchange_strong(caller, made)) {
            /* No memory, or another thread was faster: then this time goes without. */
            close(fd);
            free(made);
            return -1;
        }
        /* The memory of an earlier one is left: another thread may be reading it. A parent's
           socket is closed here. */
        if (caller && caller->forks != forks && ringbuf_is_caller(caller)) close(caller->fd);
        return fd;
    }

    static inline void ringbuf_call_ear(const char *prefix, uint64_t nonce, uint64_t forks) {
        struct sockaddr_un name = {};
        int fd = ringbuf_calling_socket(forks);
        if (fd < 0) return;
        name.sun_family = AF_UNIX; /* the name begins with a zero: it is not in the file system */
        int size = snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "%s%llx", prefix,
                            (unsigned long long)nonce);
        const char one = 1;
        socklen_t length = offsetof(struct sockaddr_un, sun_path) + 1 + size;
        sendto(fd, &one, 1, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&name, length);
    }

    static inline int ringbuf_make_timer(void) {
        return timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    }

    /* Not readable any more, until that much later. */
    static inline void ringbuf_set_timer(int timer, int64_t ns) {
        struct itimerspec when = {{0, 0}, {(time_t)(ns / 1000000000), (long)(ns % 1000000000)}};
        timerfd_settime(timer, 0, &when, nullptr);
    }
    #else
    static inline int ringbuf_make_timer(void) { return -1; }
    static inline void ringbuf_set_timer(int, int64_t) {}
    static inline int ringbuf_calling_socket(uint64_t) { return -1; }
    static inline void ringbuf_call_ear(const char *, uint64_t, uint64_t) {}
    #endif
    """
    void poke "ringbuf_poke"(int fd)
    void drain "ringbuf_drain"(int fd)
    bint leads_to "ringbuf_leads_to"(int fd, uint64_t device, uint64_t inode)
    int calling_socket "ringbuf_calling_socket"(uint64_t forks)
    void call_ear "ringbuf_call_ear"(const char* prefix, uint64_t nonce, uint64_t forks)
    int make_timer "ringbuf_make_timer"()
    void set_timer "ringbuf_set_timer"(int timer, int64_t ns)

cdef enum:
    SHORT_SLEEP_NS = 10000000  # the tries then cost a thousandth of a core
    LISTEN_NS = 50000000       # an event loop's own round is some 20 us: less than a two-thousandth
    # A signal that comes just before the sleep does not end it; its handler is late by
    # no more than this.
    LONG_SLEEP_NS = 1000000000

# None: for ever; but no clock goes that far.
cdef int64_t FOREVER_NS = INT64_MAX // 2
# Seconds (31 years) that are no different from for ever.
cdef double LONGEST = 1e9


cdef class Waiting:
    """One for a ring and all its handles; made by the ring."""

    cdef int sleep(self, EventCount* event, uint32_t seen, int64_t deadline_ns) except -1:
        """Sleep until the count of the event is no longer `seen`, or until the
        deadline; or less.
        """
        cdef int64_t most = min(deadline_ns - steady_ns(), <int64_t>LONG_SLEEP_NS)
        if self.participant is not None or not have_barrier():
            most = min(most, <int64_t>SHORT_SLEEP_NS)
        if most > 0:
            with nogil:
                futex_wait(&event.count, seen, most)
        PyErr_CheckSignals()
        return 0

    cdef void call(self, EventCount* event) noexcept:
        """Wake the threads that sleep, and tell the event loops that listen."""
        cdef uint64_t participant, nonce, waiters = exchange_total(&event.waiters, 0)
        if waiters & SLEEPERS:
            futex_wake(&event.count)
        if not waiters & LISTENERS:
            return
        if self.participant is None:
            self.hear()
            return
        for participant in range(<uint64_t>PARTICIPANTS):
            nonce = exchange_total(&self.participant.control.participants[participant].listens, 0)
            if nonce != 0:
                call_ear(self._name, nonce, fork_count())

    cdef int fileno(self) except -1:
        """What event loops listen to. It is readable at first: the pop that finds
        nothing makes it wait.
        """
        cdef uint64_t epoch = self._epoch_now()
        check_open(self)
        if load_acquire(&self.listening) and not self._is_ours():
            # Inherited by a fork: the parent's.
            store_relaxed(&self.listening, 0)
            self.ears.clear()
        if not self.ears:
            if self.participant is None:
                ear = ReadyFd()
            else:
                ear = ReadyFd(
                    self.participant.file.uuid, self.participant.own_number(), make_timer()
                )
            self.ears.append(ear)
            ear = self.ears[0]  # another thread may have been faster
            self._source = ear.source
            self._writer = ear.writer
            self._timer = ear.timer
            self._number = ear.participant
            self._nonce = ear.nonce
            self._source_device, self._source_inode = ear.source_id
            self._writer_device, self._writer_inode = ear.writer_id
            self._epoch = epoch
            store_release(&self.listening, 1)
            self.hear()
        return self.ears[0].fd

    cdef void listen(self) noexcept:
        """Nothing was there: ask to be called when there is. The caller has to try once
        more.
        """
        if not self._is_ours():
            return
        drain(self._source)
        if self.participant is not None:
            set_timer(self._timer, LISTEN_NS)
            store_total(&self.participant.control.participants[self._number].listens, self._nonce)
        fetch_or_total(&self.filled.waiters, LISTENERS)
        if not barrier():
            let_settle()
        if load_acquire(&self.closed):
            self.hear()

    cdef void hear(self) noexcept:
        """Make the descriptor readable."""
        if not self._is_ours():
            return
        if self.participant is None:
            poke(self._writer)
        else:
            set_timer(self._timer, 1)

    cdef bint _is_ours(self) noexcept:
        """Whether there is a ReadyFd, of this process; a forked child inherits its
        parent's.

        Code that closes all descriptors of a process closes these too, and other files
        get their numbers.
        """
        return (
            load_acquire(&self.listening) and self._epoch == self._epoch_now()
            and leads_to(self._source, self._source_device, self._source_inode)
            and (
                self._writer < 0
                or leads_to(self._writer, self._writer_device, self._writer_inode)
            )
        )

    cdef uint64_t _epoch_now(self) noexcept:
        return fork_count() if self.participant is None else self.participant.epoch

    # ---------------------------------------------------------------- the end

    cdef void close(self, EventCount* room) noexcept:
        """End the use of the ring by this process. Its threads that wait for something
        or for room find that out at once, and so do its event loops.

        Pairs with `check_open` in the try after `before_sleep`: a thread that has seen
        the count from before the wake sleeps no more. In a ring that processes share,
        sleeping threads of this process try again by themselves, soon, and other
        processes are not concerned.
        """
        store_total(&self.closed, CLOSED)
        if self.participant is None:
            futex_wake(&self.filled.count)
            futex_wake(&room.count)
        self.hear()
        if self.participant is not None:
            self.participant.close()

    cdef int refuse(self) except -1:
        if load_acquire(&self.closed) == UNMADE:
            raise TypeError(
                "this ring was never made: MessageRing(...) or MessageRing.attach(...) makes one"
            )
        raise ValueError("the ring is closed")


cdef Waiting new_waiting(EventCount* filled, object memory, Participant participant):
    cdef Waiting waiting = Waiting.__new__(Waiting)
    cdef bytes prefix
    waiting.filled = filled
    waiting.memory = memory
    waiting.participant = participant
    waiting.ears = []
    if participant is not None:
        prefix = prefix_of(participant.file.uuid)
        assert len(prefix) < sizeof(waiting._name)
        strcpy(waiting._name, prefix)
        calling_socket(fork_count())  # while there are descriptors; without it, `call` tries again
    return waiting


cdef double seconds_of(object timeout) except -1:
    """A timeout as seconds, infinite for None; ValueError for what is none. A method
    with a timeout calls it first.
    """
    if type(timeout) is float and <double>timeout >= 0:
        return timeout
    if timeout is None:
        return INFINITY
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float, Real)) or not timeout >= 0:
        raise ValueError(
            f"timeout must be a number of seconds from 0 on, or None for no limit, not {timeout!r}"
        )
    # An int may be larger than any double.
    return LONGEST if timeout >= LONGEST else float(timeout)


cdef int64_t deadline_of(double seconds) noexcept:
    """When that many seconds from now are over, on the steady clock in ns."""
    if seconds >= LONGEST:
        return FOREVER_NS
    return steady_ns() + <int64_t>(seconds * 1e9)
