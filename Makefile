# Everything runs from .venv, which any of these makes first.
.PHONY: install quickstart test test-long slurm-packages chromium-package lint format docs constraints clean
.DELETE_ON_ERROR:

BIN := .venv/bin
# Where it is set, every process would compile every module that it imports anew.
unexport PYTHONDONTWRITEBYTECODE

# The environment alone, in .venv.
install: .venv/installed

# A trained model in about ten minutes, on a machine without a GPU too.
quickstart: export CUDA_VISIBLE_DEVICES :=  # its recipe is in float32, for CPUs
quickstart: .venv/installed
	$(BIN)/verst fetch smollm2-135m
	@if [ -e runs/quickstart/recipe.yaml ]; then $(BIN)/verst resume runs/quickstart; \
	else $(BIN)/verst run recipes/quickstart.yaml; fi

# tests/cluster starts a Slurm of its own: as root, if its packages are there. CI must run it, so CI installs them.
IN_CI := $(filter true 1,$(CI))

test: .venv/installed-dev $(if $(IN_CI),slurm-packages chromium-package)
	scripts/test.sh

test-long: .venv/installed-tasks $(if $(IN_CI),slurm-packages)
	scripts/test.sh -m long

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
lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	@mkdir -p build/lint/verst
	@for folder in launcher runtime slurm sync recipes; do ln -sfn ../../../$$folder build/lint/verst/$$folder; done
	cd build/lint && MYPYPATH=. ../../$(BIN)/python -P -m mypy --config-file ../../pyproject.toml -p verst

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The generated pages, and the guide as a site, in build/site; a broken link or anchor is an error.
docs: .venv/installed-dev
	$(BIN)/verst schema > docs/recipes.md
	$(BIN)/verst schema --commands > docs/commands.md
	$(BIN)/python -P -m verst.runtime.metrics.glossary > docs/metrics.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# The newest versions that pyproject.toml admits, all of them pinned: try the tests with them, then commit.
constraints: .venv/installed-dev
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra dev --extra tasks --extra trackers --universal --python-version 3.12 \
	  --upgrade --no-annotate --no-emit-index-url --custom-compile-command 'make constraints' --quiet -o constraints.txt

clean:
	rm -rf .venv build dist *.egg-info

# The stamps: packages are installed again only when their list has changed.
.venv/installed: pyproject.toml constraints.txt scripts/environment.sh
	scripts/environment.sh
	@touch $@

.venv/installed-dev: pyproject.toml constraints.txt scripts/environment.sh
	scripts/environment.sh dev
	@touch .venv/installed $@

.venv/installed-tasks: pyproject.toml constraints.txt scripts/environment.sh
	scripts/environment.sh dev,tasks
	@touch .venv/installed .venv/installed-dev $@
