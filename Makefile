# The commands of the README. `make` lists them.
PYTHON := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help setup demo lint test chaos bench bench-quality bench-rows clean

help: ## List these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

setup: ## Make or update .venv (nothing to do when nothing changed)
	@bash .ci/setup

# On a fleet of its own, whatever fleet the shell is for.
demo: export REDIS_URL =
demo: setup ## Transcribe the samples on this machine's CPU
	.venv/bin/whisper-fleet run tests/samples/samples.jsonl --model whisper-base --details --table

lint: setup ## Check style and types
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# Two at a time: half of the tests' time is waiting for processes. More would share the cores with a real engine.
test: lint ## Check style and types, and run all tests
	$(PYTHON) -m pytest -n 2 --dist loadfile

chaos: setup ## Kill, stop and flush every part in the middle of a job (CHAOS_SEED); nothing may be lost
	$(PYTHON) -m benchmarks.chaos

bench: setup ## Measure speed, scaling, latency, start-up and queue work on this machine's CPU (an hour at most)
	$(PYTHON) -m benchmarks.all

bench-quality: setup ## Compare error rates with bare vLLM and faster-whisper
	$(PYTHON) -m benchmarks.quality

bench-rows: setup ## Measure what a row costs beside its transcription, in jobs of up to 10,000,000 rows
	$(PYTHON) -m benchmarks.rows

clean: ## Remove .venv, the caches of the tools and the demo's output (no other step file)
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis cache/samples_step1.*
	@rmdir cache 2>/dev/null || true
