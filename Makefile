# The same targets by hand and in CI. Everything lives in .venv; `make clean` forgets it.
# pip reads its own settings (index, proxy, cache) from its environment; nothing here says where packages come from.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.ONESHELL:
.PHONY: install demo demo-device demo-superlink demo-fleet test test-long test-postgres check bench docs clean help

PYTHON ?= python3.11
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
export FLWR_TELEMETRY_ENABLED := 0

# A stamp says which set of packages .venv holds; it is older than what decides the set, or it is good.
DECIDES := constraints.txt pyproject.toml clients/pyproject.toml server/pyproject.toml Makefile
LAB := $(VENV)/.installed-lab
DEV := $(VENV)/.installed-dev
DOCS := $(VENV)/.installed-docs

help:  ## what can be made
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)$$/  make \1\t\2/' | expand -t 18

install: $(LAB)  ## .venv with the lab: everything `fedlearn train` needs

$(LAB): $(DECIDES)
	@started=$$SECONDS
	echo "installing into $(VENV) (torch first; a few minutes, once) ..."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==$$(sed -n 's/^torch==//p' constraints.txt)
	$(PIP) -e .[lab] -e clients -e server
	touch $@
	echo "make install: $$((SECONDS - started)) s"

$(DEV): $(LAB)
	@started=$$SECONDS
	echo "installing what the tests need ..."
	$(PIP) -e .[lab,ray,tensorboard,mlflow,postgres,dev] -e clients -e server
	touch $@
	echo "test packages: $$((SECONDS - started)) s"

$(DOCS): $(LAB)
	@$(PIP) -e .[docs]
	touch $@

demo: $(LAB)  ## train on 1,000 simulated phones at epsilon 3, with every control
	@started=$$SECONDS
	run=runs/demo-$$(date +%Y%m%d-%H%M%S)-$$$$
	$(BIN)/fedlearn train experiment=city_quick run.dir=$$run
	echo "make demo: $$((SECONDS - started)) s, installation not counted. Open $$run/report.html"

demo-device: $(LAB)  ## a phone on this machine: signals, consent, a ranking, a night, a withdrawal
	@$(BIN)/fedlearn demo-device

demo-superlink: $(LAB)  ## the same job over a SuperLink with TLS and three resident nodes on this machine, at epsilon 3
	@started=$$SECONDS
	run=runs/superlink-$$(date +%Y%m%d-%H%M%S)-$$$$
	export FEDLEARN_STATE=$$PWD/build/demo-superlink  # another deployment of this user's is not the demo's to stop
	mkdir -p -m 700 "$$FEDLEARN_STATE"
	trap '$(BIN)/fedlearn down --stop-runs' EXIT
	$(BIN)/fedlearn up --nodes 3
	$(BIN)/fedlearn train experiment=city_quick runtime=superlink cohort.rounds=20 evaluation.controls=false run.dir=$$run
	$(BIN)/fedlearn ledger verify $$run
	echo "make demo-superlink: $$((SECONDS - started)) s, installation not counted. Open $$run/report.html"

demo-fleet: $(LAB)  ## phones, gateways and SuperLink on this machine: ten private steps, a verified ledger
	@mkdir -p build/demo-fleet-state
	FEDLEARN_STATE=$(CURDIR)/build/demo-fleet-state $(BIN)/fedlearn demo-fleet

test: $(DEV)  ## every test but the long ones (PYTEST_ADDOPTS is respected)
	@$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --durations=15

# Each long test file is a part with a stamp of its own: an interrupted `make test-long` goes on where it stopped,
# and a part whose stamp is older than any source runs again.
SOURCES = $(shell find fedlearn clients/fedlearn_client server/fedlearn_server configs -name '*.py' -o -name '*.yaml' -o -name '*.proto')
LONG = $(patsubst %.py,build/long/%.done,$(shell grep -rlE --include='test_*.py' 'mark\.long\b' tests))

test-long: $(LONG)  ## the full sizes, file by file; resumes where it stopped
	@echo "make test-long: $(words $(LONG)) files passed"

build/long/%.done: %.py $(DEV) $(SOURCES)
	@$(BIN)/python -m pytest -m long --timeout=7200 $<
	mkdir -p $(@D)
	touch $@

test-postgres: $(DEV)  ## the shared ledger, and gateways, on a PostgreSQL server of its own, which is stopped afterwards
	@tests/postgres.sh $(BIN)/python -m pytest -m postgres tests/unit/test_ledger_postgres.py tests/unit/test_gateway_postgres.py

check: $(DEV)  ## lint, format, types, import walls
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(LAB)  ## the engines against each other; the device runtime against its limits (four minutes, on a quiet machine)
	@$(BIN)/fedlearn bench engine
	$(BIN)/fedlearn bench device

docs: $(DOCS)  ## the documentation as a site, in site/
	@$(BIN)/mkdocs build --strict --quiet
	echo "Open site/index.html"

clean:  ## forget .venv and everything made; runs/ stays
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Appended: images and releases. KEY: the private key of releases, PUB: its public half (docs/release.md).
.PHONY: docker-test release release-verify
RELEASE := $(VENV)/.installed-release
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' fedlearn/__init__.py)
OUT ?= dist/$(VERSION)

$(RELEASE): $(DEV)
	@$(PIP) -e .[lab,postgres,release] -e clients -e server
	touch $@

docker-test: $(RELEASE)  ## build the four images from an imported base and run a fleet of them; as root, 15 minutes
	@$(BIN)/python -m tools.images

release: $(RELEASE)  ## wheels, sdists, SBOMs, licences, signed: make release KEY=release.key
	@test -n "$(KEY)" || { echo "make release KEY=FILE: name the private key of releases (docs/release.md)"; exit 2; }
	$(BIN)/python -m tools.release build --key "$(KEY)" --out "$(OUT)"

release-verify: $(RELEASE)  ## is a release whole, unchanged and signed? make release-verify OUT=DIR PUB=release.key.pub
	@test -n "$(PUB)" || { echo "make release-verify PUB=FILE: name the public key of releases"; exit 2; }
	$(BIN)/python -m tools.release verify "$(OUT)" --key "$(PUB)"
