# Everything runs from .venv, which any of these makes first.
.PHONY: quickstart test test-long slurm-packages chromium-package lint format docs constraints clean
.DELETE_ON_ERROR:

BIN := .venv/bin
PYTEST := $(BIN)/python -P -m pytest

# A trained model in about ten minutes, on a machine without a GPU too.
quickstart: .venv/installed
	$(BIN)/verst fetch smollm2-135m
	@if [ -e runs/quickstart/recipe.yaml ]; then $(BIN)/verst resume runs/quickstart; \
	else $(BIN)/verst run recipes/quickstart.yaml; fi

# tests/cluster starts a Slurm of its own: as root, if its packages are there. CI must run it, so CI installs them.
IN_CI := $(filter true 1,$(CI))

# The tests on Slurm wait most of their time and need a tenth of a core: they run beside all others.
test: .venv/installed $(if $(IN_CI),slurm-packages chromium-package)
	@mkdir -p build
	@$(PYTEST) -m "not long" tests/cluster > build/test-cluster.txt 2>&1 & cluster=$$!; \
	trap "kill $$cluster" INT TERM; \
	$(PYTEST) -m "not long" --ignore=tests/cluster; others=$$?; \
	echo "tests/cluster:"; \
	wait $$cluster; on_slurm=$$?; \
	cat build/test-cluster.txt; \
	exit $$((others ? others : on_slurm))

test-long: .venv/installed $(if $(IN_CI),slurm-packages)
	$(PYTEST) -m long

SLURM_PACKAGES := slurm-wlm munge iproute2 util-linux slurmdbd mariadb-server-core

# Debian and Ubuntu, as root. Starts nothing: the tests bring up daemons of their own and take them down.
slurm-packages:
	@for program in slurmctld slurmd munged slurmdbd mariadbd nsenter ip; do \
	  command -v $$program >/dev/null || missing=yes; \
	done; \
	[ -z "$$missing" ] || \
	{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(SLURM_PACKAGES); }

# The dashboard's tests look at it in a browser. Debian, as root; elsewhere any Chromium or Chrome in PATH will do.
chromium-package:
	@for program in chromium chromium-browser google-chrome; do \
	  if command -v $$program >/dev/null; then exit 0; fi; \
	done; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium

# mypy sees the folders under the names that they are imported by.
lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/lint/verst
	@for folder in launcher runtime slurm sync recipes; do ln -sfn ../../../$$folder build/lint/verst/$$folder; done
	cd build/lint && MYPYPATH=. ../../$(BIN)/python -P -m mypy --config-file ../../pyproject.toml -p verst

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/installed
	$(BIN)/verst schema > docs/recipes.md

# Writes down the versions that are installed here, after trying newer ones.
constraints: .venv/installed
	$(BIN)/python -m pip freeze --exclude-editable | grep -E '^[A-Za-z0-9._-]+==' > constraints.txt

clean:
	rm -rf .venv build dist *.egg-info

# The stamp: packages are installed again only when what is asked for has changed.
.venv/installed: pyproject.toml constraints.txt
	@$(FIND_PYTHON) \
	if ! .venv/bin/python -c 'import pip' >/dev/null 2>&1; then \
	  python=$$(find_python) || { no_python; exit 1; }; \
	  echo "making .venv with $$python"; \
	  "$$python" -m venv --clear .venv; \
	fi
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Python 3.12, or a newer one if there is no 3.12. A command may be there and not run (pyenv's shims), and
# Debian splits venv and ensurepip off, so each candidate must prove itself.
define FIND_PYTHON
works() { "$$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] < (3, 12))' >/dev/null 2>&1; }; \
first() { for candidate in "$$@"; do if works "$$candidate"; then echo "$$candidate"; return 0; fi; done; return 1; }; \
with_uv() { command -v uv >/dev/null 2>&1 || return 1; \
  uv python find 3.12 2>/dev/null || { uv python install 3.12 >&2 && uv python find 3.12; }; }; \
find_python() { \
  if [ -n "$$PYTHON" ]; then works "$$PYTHON" && echo "$$PYTHON"; return; fi; \
  first python3.12 "$${PYENV_ROOT:-$$HOME/.pyenv}"/versions/3.12*/bin/python3 /usr/bin/python3.12 \
    /usr/local/bin/python3.12 /opt/python/3.12*/bin/python3 || with_uv || first python3 /usr/bin/python3; }; \
no_python() { \
  echo "Verst needs Python 3.12 or newer with its venv module; none was found."; \
  echo "  Ubuntu 24.04:    sudo apt install python3.12-venv"; \
  echo "  Debian 13:       sudo apt install python3-venv (it has 3.13)"; \
  echo "  Debian 12:       has 3.11 only; use one of the next two"; \
  echo "  anywhere, uv:    install uv (https://docs.astral.sh/uv/), then run make again: it fetches 3.12"; \
  echo "  anywhere, pyenv: pyenv install 3.12, then run make again"; \
  echo "  or name one:     make PYTHON=/path/to/python3.12 ..."; } >&2;
endef
export PYTHON
