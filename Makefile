# Needs Python >= 3.11, a C++ compiler and make; everything else comes from pip into virtual environments of its own.
#
#   make demo    pump a million log lines through a sink that fails now and then, and check what came out
#                (LOG=path: this file instead; DEMO_LINES=n: another length)
#   make test    the tests, against the installed package, in parallel; the twenty slowest are listed at the end
#   make proofs  the tests that are long and have only a share of them in `make test`: kills at every instruction and the like
#   make test-freethreaded   the tests and proofs of everything that threads share, on a CPython without the GIL: FREETHREADED=path to
#                it, or python3.13t on the PATH, or the archive in ../shared/toolchains
#   make asan    the core's tests and the fuzzer of files under AddressSanitizer and UndefinedBehaviorSanitizer (needs gcc and its
#                libasan): memory that is read after it was freed, or beside what it is, ends it. make asan-smoke: a share of it
#   make tsan    the stress tests under ThreadSanitizer, without a GIL (needs gcc and its libtsan); a race of ours fails it.
#                make tsan-smoke: a share of it
#   make torture the long proofs: processes killed, power cut, every call to the disk failed, files of every kind damaged, followed
#                files rotated in every way.
#                TORTURE_SCALE=0.01: that share of their documented counts
#   make lint    ruff (rules and format), mypy --strict (of the tests and benches too), stubtest, cython-lint
#   make check-image   build deploy/Dockerfile and run it, as root, by buildah on a base of Debian packages: see deploy/check-image
#   make bench   the micro benches            make bench-smoke   each of them once, for its checks only
#   make clean   remove all that the above has made
#
# PARALLEL="-n 4" says by how many processes tests are run, PARALLEL= by none but pytest itself.
# PYTHON=python3.13 chooses the interpreter for environments that do not exist yet. TESTS="tests/cli/pump -k stdin" and
# BENCHES="bench/micro/test_ring_buffer.py" choose what runs.

PYTHON ?= python3
TESTS ?=
PARALLEL ?= -n auto --dist worksteal
BENCHES ?= bench/micro
DEMO_LINES ?= 1000000

# What the installed package is made of: when one of these changes, it is installed anew.
SOURCES := pyproject.toml setup.py CMakeLists.txt $(wildcard README.md LICENSE) \
	$(shell find src -name '*.py' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pyi' -o -name 'py.typed' -o -path '*/dashboard/*.*')

EXTRAS_demo := cli
EXTRAS_test := test
EXTRAS_lint := test,bench,lint

FT_ARCHIVE := $(firstword $(wildcard ../shared/toolchains/python-*freethreaded*.tar.xz))
FREETHREADED ?= $(or $(shell command -v python3.13t),$(if $(FT_ARCHIVE),.freethreaded/py313t/bin/python3))
FT_TESTS ?= tests/ringbuf tests/policies tests/lanes tests/buffer tests/stress -m "not single_thread"

ASAN_TESTS ?= tests/ringbuf tests/stress -m "not uninstrumented"
# Files of each kind for the fuzzer.
ASAN_FILES ?= 1000

TSAN_TESTS ?= tests/ringbuf tests/stress -m threads
# A tenth of the usual count: everything is some ten times slower.
TSAN_THOUSANDS ?= 1

DEMO_DIR := .demo
LOG ?= $(DEMO_DIR)/access-$(DEMO_LINES).log

# Of the counts that each proof is documented with.
TORTURE_SCALE ?= 1
scaled = $(shell awk 'BEGIN { n = int($(1) * $(TORTURE_SCALE)); print n < 1 ? 1 : n }')

# Tests start hundreds of interpreters, and nothing is compiled when it is installed (below): without this each would compile all
# that it imports (half a second for the buffer, more than one for the server), and each worker of pytest all tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test proofs test-freethreaded asan asan-smoke tsan tsan-smoke torture lint check-image bench bench-smoke clean
.DELETE_ON_ERROR:
# Two installs at once would build in one directory.
.NOTPARALLEL:
.SECONDARY:

# A fifth of the writes fails, and small batches make many of them. A sink like that is flaky, not dead: the breaker does not trip.
# Where it does, with another seed, its short reset keeps the demo short.
demo: .venv-demo/.installed $(LOG)
	@mkdir -p $(DEMO_DIR)
	.venv-demo/bin/forebay pump $(LOG) --to $(DEMO_DIR)/out.log \
		--inject-failures 0.2 --seed 7 --batch-size 5000 --reset-timeout 0.5
	.venv-demo/bin/python bench/demo/compare.py $(LOG) $(DEMO_DIR)/out.log

$(DEMO_DIR)/access-%.log: bench/demo/make_log.py
	@mkdir -p $(DEMO_DIR)
	$(PYTHON) bench/demo/make_log.py $* $@

test: .venv-test/.installed
	env -u PYTHONPATH .venv-test/bin/python -m pytest $(PARALLEL) --durations=20 -m "not proof" $(TESTS)

proofs: .venv-test/.installed
	env -u PYTHONPATH .venv-test/bin/python -m pytest $(PARALLEL) -m proof $(TESTS)

test-freethreaded: .venv-ft/.installed
	env -u PYTHONPATH .venv-ft/bin/python -m pytest $(PARALLEL) $(FT_TESTS)

# libstdc++ beside libasan: it is loaded after the interpreter else, and libasan finds no way to pass an exception on.
# PYTHONMALLOC: each object is a piece of malloc's own, so that one that was freed is known to be. numpy keeps what it freed below a
# KiB for itself. Leaks are not looked for: an interpreter leaves much when it ends. --capture=sys: a report goes to the descriptor
# itself, where pytest would lose it with the process that it ends.
ASAN := env -u PYTHONPATH LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	PYTHONMALLOC=malloc OPENBLAS_NUM_THREADS=1 UBSAN_OPTIONS=print_stacktrace=1 \
	ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:handle_segv=2:handle_sigbus=2:allocator_may_return_null=1

asan: .venv-asan/.installed
	$(ASAN) .venv-asan/bin/python -m pytest --capture=sys $(PARALLEL) $(ASAN_TESTS)
	$(ASAN) .venv-asan/bin/python -m tests.torture.fuzz_files --files $(ASAN_FILES)

asan-smoke:
	$(MAKE) asan ASAN_TESTS='tests/ringbuf tests/stress -m "not uninstrumented and not proof"' ASAN_FILES=50

.venv-asan/.installed: .venv-asan/bin/python $(SOURCES)
	$(call sanitized,asan,address;undefined) .venv-asan/bin/python -m pip install --quiet --no-compile \
		--disable-pip-version-check ".[test-core]"
	@touch $@

# With names for the frames in a report. A directory for each, as cmake remembers there what it was told.
sanitized = CXX=g++ FOREBAY_BUILD_BASE=build/$(1) CMAKE_ARGS="-DRINGBUF_SANITIZE=$(2)" SKBUILD_INSTALL_STRIP=false

# Addresses as they come without randomization: gcc's libtsan before 14 knows no others.
tsan: .venv-tsan/.installed
	setarch -R env -u PYTHONPATH LD_PRELOAD="$$(g++ -print-file-name=libtsan.so)" OPENBLAS_NUM_THREADS=1 \
		TSAN_OPTIONS="suppressions=tests/stress/tsan.supp exitcode=66" FOREBAY_STRESS_THOUSANDS=$(TSAN_THOUSANDS) \
		.venv-tsan/bin/python -m pytest $(TSAN_TESTS)

tsan-smoke:
	$(MAKE) tsan TSAN_TESTS='tests/ringbuf tests/stress -m "threads and not proof"'

.venv-tsan/.installed: $(SOURCES) .venv-ft/.installed
	test -x .venv-tsan/bin/python || .venv-ft/bin/python -m venv .venv-tsan
	.venv-tsan/bin/python -m pip install --quiet --disable-pip-version-check --prefer-binary --find-links ../shared/toolchains \
		$$(.venv-ft/bin/python -m pip freeze --exclude forebay)
	$(call sanitized,tsan,thread) .venv-tsan/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--force-reinstall .
	@touch $@

.venv-ft/.installed: $(SOURCES)
	@test -n "$(FREETHREADED)" || { echo "no free-threaded CPython found: run make FREETHREADED=/path/to/python3.13t" >&2; exit 1; }
	@test -x "$(FREETHREADED)" || { mkdir -p .freethreaded && tar -C .freethreaded -xf $(FT_ARCHIVE); }
	test -x .venv-ft/bin/python || "$(FREETHREADED)" -m venv .venv-ft
	# The newest of a package is not always there for the free-threaded ABI; an older one with a wheel does.
	.venv-ft/bin/python -m pip install --quiet --disable-pip-version-check --prefer-binary \
		--find-links ../shared/toolchains ".[test-core]"
	@touch $@

torture: .venv-test/.installed
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.kill_ring --kills $(call scaled,1000)
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.kill_records --kills $(call scaled,1000)
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.kill_buffer --cycles $(call scaled,10000)
	env -u PYTHONPATH .venv-test/bin/python -m tests.buffer.interrupt_driver
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.power_loss --images $(call scaled,20000)
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.ring_images --images $(call scaled,20000)
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.io_errors --seeds $(call scaled,20)
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.fuzz_files --files $(call scaled,50000)
	env -u PYTHONPATH .venv-test/bin/python -m tests.torture.follow_files --seeds $(call scaled,10000)

lint: .venv-lint/.installed
	.venv-lint/bin/ruff check
	.venv-lint/bin/ruff format --check
	.venv-lint/bin/mypy
	env -u PYTHONPATH .venv-lint/bin/python -m mypy.stubtest --mypy-config-file pyproject.toml ringbuf
	PATH="$(CURDIR)/.venv-lint/bin:$$PATH" cython-lint src/ringbuf

check-image:
	deploy/check-image

bench: .venv-test/.installed
	env -u PYTHONPATH .venv-test/bin/python -m pytest $(BENCHES) --benchmark-only

bench-smoke: .venv-test/.installed
	env -u PYTHONPATH .venv-test/bin/python -m pytest $(BENCHES) --benchmark-disable -q

clean:
	rm -rf .venv-demo .venv-test .venv-lint .venv-ft .venv-asan .venv-tsan .freethreaded $(DEMO_DIR) build dist src/forebay.egg-info \
		.pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find bench tests -name __pycache__ -prune -exec rm -rf {} +

.venv-%/.installed: .venv-%/bin/python $(SOURCES)
	@rm -rf build/lib.* build/bdist.*  # setuptools would install a module from there that is no longer in src
	@# Compiled to bytecode when it is imported: most of what is installed never is.
	.venv-$*/bin/python -m pip install --quiet --no-compile --disable-pip-version-check ".[$(EXTRAS_$*)]"
	@touch $@

.venv-%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "forebay needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1):" \
			"run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv .venv-$*
