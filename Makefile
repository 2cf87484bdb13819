# Everything here needs Python 3.11 or newer, and nothing else.
#   make demo    set up, render a dozen requests, show where the pictures are
#   make test    set up, run the tests; as root it installs Chromium, for the tests of the pages
#   make stack   a bucket, a queue, a worker and the web server on this machine, until Ctrl-C
#   make lint    style, types, import directions
#   make bench   measurements, printed as ratios
#   make gpu     where a GPU is at hand: its tests, then the table of docs/performance.md, in minutes
#   make chaos   the long proof that nothing is lost, doubled or torn: hours; see docs/reliability.md
#   make interop other programs' clients (awscli, rclone, s3cmd, exiftool, ...) against ours: a quarter of an hour
#   make image-check  execute the Dockerfile without a container engine, and try the result: as root, on Debian
#   make deploy-check  the AWS and Kubernetes files against their schemas, and on an emulator: two minutes
#   make audit   known vulnerabilities, secrets in files, and a list of all that is used (build/sbom.json)
#   make docs    the documentation as a site with search, in build/site
#   make clean   remove what the above made
#
# No CUDA? TORCH_INDEX=<url of a CPU index> saves gigabytes where your index has no CPU build of torch.

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PYTEST_ARGS ?=
# Three at a time, as many tests wait for a process or a lease, each file in one process, which starts its servers once; PYTEST_ARGS="-n 0" for one after another.
side_by_side := -n 3 --dist loadfile --no-loadscope-reorder

bin := $(VENV)/bin
install := $(bin)/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
sizes := about 300 MB are downloaded with a CPU build of torch, gigabytes with CUDA. It takes minutes ...

.PHONY: demo stack test lint chaos bench gpu interop image-check deploy-check audit docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.for-use
	$(bin)/python -m producer.commands.local.demo

STACK_ARGS ?=

stack: $(VENV)/.for-development
	@exec $(bin)/python -m producer.commands.local.stack $(STACK_ARGS)

# The tests start some thousand processes: each would compile the code again where an image forbids to keep it.
test: export PYTHONDONTWRITEBYTECODE :=
test: $(VENV)/.for-development
	@.ci/browser
	$(bin)/python -m pytest -q -ra $(side_by_side) $(PYTEST_ARGS)

lint: $(VENV)/.for-development
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports
	@if [ -x $(bin)/hadolint ]; then echo $(bin)/hadolint Dockerfile; $(bin)/hadolint Dockerfile; fi  # no wheel elsewhere
	$(bin)/check-jsonschema -q --builtin-schema vendor.compose-spec compose.yaml

bench: $(VENV)/.for-development
	$(bin)/python tests/benchmarks/run.py $(BENCH_ARGS)

# Models of 1, 3 and 6 billion weights are made with random numbers: nothing is downloaded, 15 GB of TMPDIR are used.
gpu: $(VENV)/.for-development
	@$(bin)/python -m tests.benchmarks.gpu --check
	$(bin)/python -m pytest -q -ra -n 0 tests/gpu
	HF_HUB_OFFLINE=1 $(bin)/python -m tests.benchmarks.gpu --write docs/performance.md $(GPU_ARGS)

CHAOS_SEEDS ?= 100000
CHAOS_ARGS ?= --requests 100000 --harms 10000 --state chaos.jsonl

chaos: $(VENV)/.for-development
	$(bin)/python -m tests.chaos.model
	$(bin)/python -m tests.chaos.seeds --seeds $(CHAOS_SEEDS)
	$(bin)/python -m tests.chaos.seeds --seeds $(CHAOS_SEEDS) --queue
	$(bin)/python -m pytest -q tests/chaos/test_state_machine.py --hypothesis-profile=long
	$(bin)/python -m tests.chaos.figures
	$(bin)/python -m tests.chaos.run $(CHAOS_ARGS)

# The clients have an environment of their own: awscli wants one exact botocore.
interop: $(VENV)/clients/.installed
	INTEROP=$(VENV)/clients $(bin)/python -m pytest -q -ra -n 0 tests/interop tests/producer/test_recorded_bodies.py \
		tests/producer/test_a1111.py tests/producer/test_openai.py tests/producer/test_openai_batches.py \
		tests/producer/test_clients_page.py tests/producer/test_clients_draw.py $(PYTEST_ARGS)

IMAGE_ARGS ?= MODEL=doodle $(if $(TORCH_INDEX),TORCH_INDEX=$(TORCH_INDEX))

image-check: $(VENV)/.for-development
	$(bin)/python -m tests.deploy.image_check $(addprefix --build-arg ,$(IMAGE_ARGS))

# The checkers have an environment of their own, because they want other versions of libraries that the tests use, too.
deploy-check: $(VENV)/deploy-check/.installed
	DEPLOY_CHECK=$(VENV)/deploy-check $(bin)/python -m pytest -q -ra -n 0 tests/deploy $(PYTEST_ARGS)

# AUDIT_STRICT=1 fails where the advisories cannot be reached; without it the last lines say so.
audit: $(VENV)/audit/.installed
	$(VENV)/audit/bin/python -m tests.audit.audit $(AUDIT_ARGS)

# Where links to files of the repository lead, such as the address of its main branch; without it they are not links.
DOCS_ADDRESS ?=

docs: $(VENV)/docs/.installed
	$(VENV)/docs/bin/python -m tests.docs.site build/docs $(DOCS_ADDRESS)
	$(VENV)/docs/bin/zensical build --strict --clean
	@echo "The site is in build/site: open build/site/index.html, or serve the folder for its search."

clean:
	rm -rf $(VENV) build dist *.egg-info dreamdrop-demo .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Dreamdrop needs Python 3.11 or newer: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.for-use: $(bin)/python pyproject.toml constraints.txt
	@echo "Installing torch, diffusers and what they need into $(VENV): $(sizes)"
	$(install) -e '.[consumer,web]'
	@touch $@

$(VENV)/clients/.installed: $(VENV)/.for-development tests/interop/requirements.txt
	@echo "Installing other programs' clients into $(VENV)/clients: about 130 MB are downloaded ..."
	$(bin)/python -m venv $(VENV)/clients
	$(VENV)/clients/bin/python -m pip install -q --disable-pip-version-check -r tests/interop/requirements.txt
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends libimage-exiftool-perl rsync s3fs; \
	else echo "Not root, or no apt-get: exiftool, rsync and s3fs are tried where they are installed."; fi
	@touch $@

$(VENV)/deploy-check/.installed: $(VENV)/.for-development tests/deploy/requirements.txt
	$(bin)/python -m venv $(VENV)/deploy-check
	$(VENV)/deploy-check/bin/python -m pip install -q --disable-pip-version-check -r tests/deploy/requirements.txt
	@touch $@

$(VENV)/audit/.installed: tests/audit/requirements.txt
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/python -m pip install -q --disable-pip-version-check -r tests/audit/requirements.txt
	@touch $@

$(VENV)/docs/.installed: tests/docs/requirements.txt
	$(PYTHON) -m venv $(VENV)/docs
	$(VENV)/docs/bin/python -m pip install -q --disable-pip-version-check -r tests/docs/requirements.txt
	@touch $@

$(VENV)/.for-development: $(bin)/python pyproject.toml constraints.txt
	@echo "Installing torch, diffusers and the tests' packages into $(VENV): $(sizes)"
	$(install) -e '.[dev]'
	@touch $@ $(VENV)/.for-use
