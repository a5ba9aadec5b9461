# Needs Python 3.11 to 3.13 and make; everything else goes into .venv.
INSTALL = .venv/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e
NBVAL = .venv/bin/pytest -q -p no:cacheprovider -W default --nbval-lax --nbval-current-env --nbval-cell-timeout=600

.PHONY: help install demo test test-quick test-browser lab book release grade lint clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s%s\n", $$1, $$2 }' Makefile

install: .venv/.installed ## put the package and what its tests need into .venv (a minute)

demo: .venv/.installed ## train everything from random weights and measure it (five to nine minutes)
	.venv/bin/minidalle demo

# The notebooks run one after the other, since each builds on what those before it trained, in a folder of their own.
test: .venv/.installed .venv/.book ## every test, and every notebook as a learner runs it (35 minutes)
	.venv/bin/pytest -n auto --maxprocesses 8
	@models=$$(mktemp -d); trap 'rm -rf "$$models"' EXIT; \
	MINIDALLE_BUDGET=quick MINIDALLE_MODELS="$$models" $(NBVAL) notebooks

# At this budget nothing is learned, so the notebooks need not wait for one another: one thread and one folder for each.
test-quick: .venv/.installed .venv/.book ## every test, and every notebook with hardly any training (ten minutes)
	.venv/bin/pytest -q -n auto --maxprocesses 8
	@models=$$(mktemp -d); trap 'rm -rf "$$models"' EXIT; export MINIDALLE_BUDGET=smoke OMP_NUM_THREADS=1; \
	ls notebooks/*.ipynb | xargs -P "$$(getconf _NPROCESSORS_ONLN)" -I FILE \
	    sh -c 'MINIDALLE_MODELS=$$(mktemp -d "$$0/XXXXXX") $(NBVAL) FILE' "$$models"

test-browser: .venv/.browser ## every notebook in JupyterLab in a real browser (ten minutes)
	@ls notebooks | sed -n 's/_.*ipynb$$//p' | \
	OMP_NUM_THREADS=1 xargs -P "$$(getconf _NPROCESSORS_ONLN)" -n 4 .venv/bin/python tests/browser.py
	.venv/bin/python tests/browser_classroom.py

lab: .venv/.course ## open the course in JupyterLab
	.venv/bin/jupyter lab notebooks/00_welcome.ipynb

book: .venv/.book ## the course as a web site, in build/book (ten seconds)
	.venv/bin/python tools/build_book.py

release: .venv/.installed ## student copies of the lessons, in classroom/release; SEED=7 draws numbers for a class
	.venv/bin/minidalle classroom release $(if $(SEED),--seed $(SEED))

grade: .venv/.installed ## marks, feedback and a picture of the class, for the folder SUBMISSIONS=submissions
	.venv/bin/minidalle classroom grade "$(or $(SUBMISSIONS),submissions)"

lint: .venv/.installed ## rules and format of the code, and which file may import which
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

clean: ## remove .venv, your runs and all caches
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	@found=; \
	for python in python3 python3.13 python3.12 python3.11; do \
	    $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null || continue; \
	    found=$$python; \
	    $$python -c 'import ensurepip, venv' 2>/dev/null || continue; \
	    echo "Installing into .venv; the first time this takes minutes."; \
	    $$python -m venv .venv && $(INSTALL) ".[test]" && touch $@; exit; \
	done; \
	if [ -n "$$found" ]; then \
	    echo "minidalle found $$found without its venv module: install that (Debian: apt install python3-venv), then run make again."; \
	else \
	    echo "minidalle needs Python 3.11, 3.12 or 3.13 and found none of them: install one, then run make again."; \
	fi >&2; exit 1

.venv/.course: .venv/.installed
	@echo "Installing JupyterLab into .venv."
	@$(INSTALL) ".[course]" && touch $@

.venv/.browser: .venv/.course
	@echo "Installing Playwright into .venv."
	@$(INSTALL) ".[browser]" && touch $@

.venv/.book: .venv/.installed
	@echo "Installing Sphinx into .venv."
	@$(INSTALL) ".[book]" && touch $@
