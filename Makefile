# make install     .venv, chosen for this machine (GPU or not)
# make test        the same, then all tests
# make lint        ruff
# make star-graph  the same, then star graphs: a model that guesses the first edge, and a value model that is to steer it
# make quickstart  the same, then questions → answers → a trained, evaluated aggregator

# A Python that can make the environment: 3.11 or later; name another with PYTHON=...
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
endif

.PHONY: install test lint quickstart star-graph

install:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or later with venv found; name one: make install PYTHON=..." >&2; exit 2; }
	@$(PYTHON) tools/install.py

test: install
	.venv/bin/python -m pytest -q

lint: install
	.venv/bin/ruff check .

quickstart: install
	bash tools/quickstart.sh

star-graph: install
	.venv/bin/python benchmarks/star_graph.py --out outputs/star_graph --plot outputs/star_graph.png --json outputs/star_graph.json
