# Needs Python 3.11 to 3.13 and make; everything else goes into .venv.
INSTALL = .venv/bin/pip install -qq --disable-pip-version-check -c constraints.txt -e

.PHONY: demo test test-browser lab lint clean

demo: .venv/.installed
	.venv/bin/minidalle demo

# The notebooks run one after the other, since each builds on what those before it trained, in a folder of their own.
test: .venv/.installed
	.venv/bin/pytest -n auto --maxprocesses 8
	@models=$$(mktemp -d); trap 'rm -rf "$$models"' EXIT; \
	MINIDALLE_BUDGET=quick MINIDALLE_MODELS="$$models" .venv/bin/pytest -p no:cacheprovider -W default \
	    --nbval-lax --nbval-current-env --nbval-cell-timeout=600 notebooks

test-browser: .venv/.browser
	.venv/bin/python tests/browser.py

lab: .venv/.course
	.venv/bin/jupyter lab notebooks/00_welcome.ipynb

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .hypothesis
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
