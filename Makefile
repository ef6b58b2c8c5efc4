# SPDX-License-Identifier: GPL-2.0-only
# Sets shmkern up and runs it.  `make` alone says how.
#
# Five files say what has been done, each made after the step it stands for:
#   .venv/.packages    the virtual environment and the packages in it
#   build/.shipped     the kernel modules, beside their sources
#   build/.compiled    these, and their second flavour, the explorer's
#   build/.bytecode    the other modules, in __pycache__
#   .venv/.installed   the project itself, editable: .venv/bin/shmkern
# Where all are newer than their sources no Python is started.

PYTHON ?= python3
ARGS ?=
VENV := .venv
FUZZ_CALLS ?= 1000000
PIP := $(VENV)/bin/python -m pip --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help build to-run ready test stress soak explore bench fuzz selftest clean distclean FORCE

help:
	@echo 'make build       set everything up in .venv; then .venv/bin/shmkern is the command'
	@echo 'make stress      build, and run the main job: shmkern stress anon'
	@echo 'make test        build, and run the tests'
	@echo 'make soak        build, and run all scenarios in turn for an hour: shmkern soak'
	@echo 'make explore     build, try every interleaving of the scenarios, and find the museum'\''s bugs'
	@echo 'make bench       build, and run the benchmarks; shmkern bench NAME runs one of them, with arguments'
	@echo 'make fuzz        build, and make a million random system calls'
	@echo 'make selftest    build, and run what the selftest mm/migration of the kernel does, 20 s for each part'
	@echo 'make clean       remove what was compiled'
	@echo 'make distclean   remove that and .venv'
	@echo
	@echo 'make stress ARGS="--workers 64" passes arguments on; so do test, soak, explore, fuzz and selftest.'
	@echo 'make build PYTHON=python3.12 chooses the Python that .venv is made from.'

# One build at a time in a tree: a second make waits for the first.
build:
	@flock --close Makefile $(MAKE) --silent --no-print-directory ready

# Without the explorer's flavour, which most commands do not need: that is half of the compiling.
to-run:
	@flock --close Makefile $(MAKE) --silent --no-print-directory ready BUILT=build/.shipped

# Three tests at a time on two cores: most wait for processes, more than they work.  And with bytecode: each
# pytest would compile the tests anew, for four seconds.
test: build
	@PYTHONDONTWRITEBYTECODE= $(VENV)/bin/pytest --numprocesses $$(($$(nproc) * 3 / 2)) --dist worksteal $(ARGS)

stress: to-run
	@$(VENV)/bin/shmkern stress anon $(ARGS)

soak: to-run
	@$(VENV)/bin/shmkern soak $(ARGS)

explore: build
	@$(VENV)/bin/shmkern explore --with-museum --jobs $$(nproc) $(ARGS)

bench: to-run
	@$(VENV)/bin/python bench/migrate.py
	@$(VENV)/bin/python bench/fault.py
	@$(VENV)/bin/python bench/trace.py
	@$(VENV)/bin/python bench/top.py

fuzz: to-run
	@FUZZ_CALLS=$(FUZZ_CALLS) $(VENV)/bin/pytest -o faulthandler_timeout=0 tests/test_fuzz.py $(ARGS)

selftest: to-run
	@SELFTEST_SECONDS=20 $(VENV)/bin/pytest -o faulthandler_timeout=0 tests/test_ltp.py -k selftest $(ARGS)

clean:
	rm -rf build dist *.egg-info shmkern/*.so shmkern/explore/*.so shmkern/explore/kernel .pytest_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)

BUILT := build/.compiled
ready: $(BUILT) build/.bytecode $(VENV)/.installed

# ---- the packages ---------------------------------------------------------

# .packages holds the tree and the interpreter it was made for: when the tree is
# moved, the interpreter replaced or the last attempt cut short, these differ and
# the environment is made anew.
VENV_FOR = $(CURDIR) $(realpath $(VENV)/bin/python)
ifneq ($(file <$(VENV)/.packages),$(VENV_FOR))
FRESH_VENV := yes
endif
# Somebody added or removed a package since.
CHANGED_VENV := $(shell find $(VENV)/lib/python*/site-packages -maxdepth 0 \
	-newer $(VENV)/.installed 2>/dev/null)

REQUIREMENTS := import tomllib; p = tomllib.load(open("pyproject.toml", "rb")); \
	print(*p["build-system"]["requires"], *p["project"]["dependencies"], \
	      *p["project"]["optional-dependencies"]["test"], sep="\n")

$(VENV)/.packages: pyproject.toml $(if $(FRESH_VENV)$(CHANGED_VENV),FORCE)
	rm -f $@
ifdef FRESH_VENV
	command -v $(PYTHON) >/dev/null || \
		{ echo 'shmkern needs $(PYTHON): install the Debian package python3.' >&2; exit 1; }
	$(PYTHON) setup.py check-machine
	echo 'Making $(VENV)'
	$(PYTHON) -m venv --clear $(VENV)
endif
	echo 'Installing packages into $(VENV)'
	$(VENV)/bin/python -c '$(REQUIREMENTS)' >$(VENV)/requirements.txt
	$(PIP) install --requirement $(VENV)/requirements.txt || \
		{ echo 'shmkern could not be set up: pip did not get its packages, see above.' >&2; exit 1; }
	printf '%s' "$(CURDIR) $$(realpath $(VENV)/bin/python)" >$@

# ---- the kernel modules ---------------------------------------------------

# The same rule as setup.py's, which decides what of them is out of date.
KERNEL := $(sort $(foreach pxd,$(filter-out %/__init__.pxd,$(wildcard shmkern/*.pxd)),\
	$(if $(wildcard $(pxd:.pxd=.py)),$(pxd:.pxd=))))
COMPILED := $(sort $(foreach so,$(wildcard shmkern/*.so),$(firstword $(subst ., ,$(so)))))
EXPLORED := $(sort $(foreach so,$(wildcard shmkern/explore/kernel/*.so),shmkern/$(firstword $(subst ., ,$(notdir $(so))))))
RUNTIME := $(wildcard shmkern/explore/runtime.*.so)
ifneq ($(COMPILED) $(RUNTIME),$(KERNEL) $(firstword $(RUNTIME) none))
WRONG_SHIPPED := FORCE
endif
ifneq ($(EXPLORED),$(KERNEL))
WRONG_EXPLORED := FORCE
endif

BUILDERS := setup.py build_helper.py pxd_declarations.py struct_uses.py translator.py
SOURCES := $(BUILDERS) $(KERNEL:=.py) $(wildcard shmkern/*.pxd shmkern/*.h) shmkern/explore/runtime.c

build/.shipped: $(VENV)/.packages $(SOURCES) $(WRONG_SHIPPED)
	mkdir -p build
	touch $@.begun
	SHMKERN_FLAVOURS=shipped $(VENV)/bin/python setup.py --quiet build_ext --inplace
	mv $@.begun $@

build/.compiled: $(VENV)/.packages $(SOURCES) $(WRONG_SHIPPED) $(WRONG_EXPLORED)
	mkdir -p build
	touch $@.begun
	$(VENV)/bin/python setup.py --quiet build_ext --inplace
	mv $@.begun $@
	touch --reference $@ build/.shipped

# ---- the other modules ----------------------------------------------------

# Where PYTHONDONTWRITEBYTECODE is set, as in many containers, each command would compile what it imports.
PLAIN := $(filter-out $(BUILDERS) $(KERNEL:=.py),$(wildcard *.py shmkern/*.py shmkern/audit/*.py shmkern/explore/*.py stress/*.py))

build/.bytecode: $(VENV)/.packages $(PLAIN) | $(BUILT)
	$(VENV)/bin/python -m compileall -q $(PLAIN)
	touch $@

# ---- the project ----------------------------------------------------------

$(VENV)/.installed: $(VENV)/.packages setup.py \
		$(if $(wildcard $(VENV)/bin/shmkern),,FORCE) | $(BUILT)
	rm -f $@
	echo 'Installing shmkern into $(VENV)'
	SHMKERN_FLAVOURS=shipped $(PIP) install --no-build-isolation --no-deps --editable .
	touch $@
