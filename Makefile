# The one entry for people and CI; the build itself is CMake's. `make help` lists the targets.

BUILD ?= build
JOBS ?= $(shell nproc)
PREFIX ?= /usr/local
TESTS ?=
FUZZ ?= 60
FUZZ_RUNS ?= 10000000

run_tests = python3 scripts/run_tests.py --demo-model --jobs $(JOBS) $(if $(TESTS),--regex '$(TESTS)')

.DEFAULT_GOAL := all
.PHONY: all asan bench bench-serving build clean deps dist format format-check fuzz help install \
        lint run sanitizers serve test test-eviction-head test-long tsan

all: ## build everything into build/, programs into build/bin/
	@scripts/deps.sh build test
	@cmake -S . -B $(BUILD) -G Ninja > /dev/null
	@cmake --build $(BUILD) -j $(JOBS)

build: all ## the same

deps: ## install the Debian packages that are missing, and the Python environment
	@scripts/deps.sh
	@scripts/venv.sh
	@echo "deps: all there"

run: all ## start a coordinator and a worker, stream answers of the demo model; MODEL=<directory>
	@scripts/deps.sh test
	@BUILD=$(BUILD) exec scripts/run_demo.sh

serve: all ## start both and keep them up until Ctrl-C; MODEL=<directory>, LISTEN=HOST:PORT
	@scripts/deps.sh test
	@scripts/venv.sh
	@BUILD=$(BUILD) exec scripts/run_demo.sh --serve

test: all ## run the tests; TESTS=<regex> picks programs
	@scripts/venv.sh
	@$(run_tests) --build $(BUILD)

test-long: all ## run the tests, those that take long, and FUZZ_RUNS of each fuzz target
	@scripts/deps.sh dev
	@scripts/venv.sh
	@$(run_tests) --build $(BUILD) --long
	@$(MAKE) test-eviction-head
	@scripts/fuzz.sh $(FUZZ_RUNS)x

test-eviction-head: ## test the tool that fits eviction heads; brings PyTorch (3 GB) into .venv
	@scripts/venv.sh tools/requirements.txt tools/eviction_head/requirements.txt
	@.venv/bin/python -B tests/eviction_head/test_eviction_head.py
	@.venv/bin/python -B tests/eviction_head/test_eviction_head_study.py

bench: all ## run the benchmark
	@scripts/bench.sh

bench-serving: all ## measure serving; PARTS="relay ..." takes some parts
	@scripts/venv.sh
	@python3 -B scripts/bench_serving.py $(PARTS) --programs $(BUILD)/bin \
	    --model "$${MODEL:-$$(.venv/bin/python tools/make_demo_model.py)}"

dist: all ## make the portable archive in dist/
	@scripts/deps.sh dist
	@scripts/dist.sh $(BUILD)

install: all ## install the programs; PREFIX=/usr/local
	@cmake --install $(BUILD) --prefix $(PREFIX)

format: ## format the sources
	@scripts/deps.sh dev
	@scripts/format.sh

format-check: ## fail when a source is not formatted
	@scripts/deps.sh dev
	@scripts/format.sh --check

lint: all ## run clang-tidy over the sources
	@scripts/deps.sh dev
	@scripts/lint.sh $(BUILD)

asan tsan: ## build into build-asan or build-tsan and run the same tests there
	@scripts/deps.sh build test
	@scripts/venv.sh
	@cmake -S . -B $(BUILD)-$@ -G Ninja > /dev/null \
	    -DNOSA_SANITIZE=$(if $(filter asan,$@),address,thread)
	@cmake --build $(BUILD)-$@ -j $(JOBS)
	@$(run_tests) --build $(BUILD)-$@

sanitizers: asan tsan ## both

fuzz: ## fuzz every parser; FUZZ=<seconds> or FUZZ=<executions>x for each target
	@scripts/deps.sh build test dev
	@scripts/fuzz.sh $(FUZZ)

clean: ## remove what was built
	rm -rf $(BUILD) $(BUILD)-asan $(BUILD)-tsan build-fuzz dist

help: ## list the targets
	@sed -n 's/^\([a-z -]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | \
	    awk -F '\t' '{ printf "%-14s %s\n", $$1, $$2 }'
