# Every target does its own set-up, from a fresh clone on. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/demo.yaml
TRAIN_ARGS ?=
PYTEST_ARGS ?=
# Processes of `make test`, which share the cores; a file's tests stay in one, so that they share its models.
TEST_WORKERS ?= 2
# The tests of the C++ operators, run by `make sanitize`: one name an operator.
OPERATOR_TESTS := $(patsubst %,tests/test_%.py,span_scores span_loss span_entities span_vectors attention_varlen \
	attention_positions dropout geglu rotary add_layer_norm add_rms_norm linear_packed select_spans token_scores \
	token_entities low_rank chain)
# The tests of whole models, run by `make test-isa`.
MODEL_TESTS := $(patsubst %,tests/test_%.py,acceleration bi_encoder calibration chain contention encoder gliner_parity \
	inference inference_mode model packed_model pooling span_entities stored_dtypes token_level)
REPORT_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --constraint constraints.txt
CPP := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.hpp')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help train test test-isa test-one-isa test-lowest bench lint lint-imports format sanitize clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 14

train: $(VENV)/.installed-train ## set up, train and evaluate the demo model into runs/demo (CONFIG=, TRAIN_ARGS=)
	$(BIN)/python -m glimodern.train --config $(CONFIG) $(TRAIN_ARGS)

test: $(VENV)/.installed-test ## set up and run the tests (PYTEST_ARGS=, TEST_WORKERS=)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

test-isa: $(VENV)/.installed-test ## the tests of models, once with every lesser instruction set of this machine (PYTEST_ARGS=)
	for isa in $$($(BIN)/python -c 'import glimodern._C as c; print(*c.available_isas()[:-1])'); do \
		$(MAKE) --no-print-directory test-one-isa ISA=$$isa || exit 1; \
	done

test-one-isa: # PyTorch's own kernels keep to the same instruction set
	@echo "== $(ISA)"
	GLIMODERN_ISA=$(ISA) ATEN_CPU_CAPABILITY=$(if $(filter scalar,$(ISA)),default,$(firstword $(subst _, ,$(ISA)))) HF_HUB_OFFLINE=1 \
		$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadscope -m "not gpu" $(MODEL_TESTS) $(PYTEST_ARGS)

# torch is installed first, at its tested version, and then held there: an older one is gigabytes of CUDA libraries.
LOWEST := build/lowest

test-lowest: $(VENV)/.installed-test ## train, evaluate and predict with the lowest versions that pyproject.toml allows
	rm -rf $(LOWEST)
	$(BIN)/python -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --constraint constraints.txt torch uv
	$(LOWEST)/bin/python -c 'import importlib.metadata as m; print("torch==" + m.version("torch"))' >$(LOWEST)/torch.txt
	$(LOWEST)/bin/python -m pip uninstall --quiet --yes typing_extensions
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
		--constraint $(LOWEST)/torch.txt --requirement pyproject.toml
	$(PIP) --no-build-isolation --no-deps --target $(LOWEST)/site --config-settings=build-dir=build/{wheel_tag} .
	PYTHONPATH=$(LOWEST)/site HF_HUB_OFFLINE=1 $(LOWEST)/bin/python tests/smoke_lowest.py

bench: $(VENV)/.installed-bench ## set up, run the benchmarks, print and plot them (PYTEST_ARGS=, REPORT_ARGS=)
	@mkdir -p runs
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest bench --benchmark-only --benchmark-json=runs/bench.json $(PYTEST_ARGS)
	$(BIN)/python bench/report.py runs/bench.json $(REPORT_ARGS)

lint: $(VENV)/.installed-lint ## ruff, mypy, import-linter, clang-format, hadolint; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(MAKE) --no-print-directory lint-imports
	$(BIN)/clang-format --dry-run -Werror $(CPP)
	$(BIN)/hadolint Dockerfile

# Without the environment's .pth files: an editable install says that the package's folders are also this one, for kernels.
lint-imports: $(VENV)/.installed-lint
	PYTHONPATH=".:$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" $(BIN)/python -S -c \
		'import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))'

format: $(VENV)/.installed-lint ## let ruff and clang-format rewrite the files
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

# A build of its own, installed beside the usual one. The interpreter runs without the environment's .pth files, and without
# this folder in its path, else the editable install or the source tree would come first. No leak check: CPython and PyTorch leave memory to the end of the process.
SANITIZED := build/sanitize
SANITIZE_FLAGS := -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=undefined

sanitize: $(VENV)/.installed-test ## the operators' tests on an ASan + UBSan build of the extension (PYTEST_ARGS=)
	rm -rf $(SANITIZED)/site
	CXXFLAGS="$(SANITIZE_FLAGS)" $(PIP) --no-build-isolation --no-deps --target $(SANITIZED)/site \
		--config-settings=build-dir=$(SANITIZED)/cmake --config-settings=install.strip=false .
	PYTHONPATH="$(SANITIZED)/site:$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')" \
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 HF_HUB_OFFLINE=1 \
	"$$($(BIN)/python -c 'import sys; print(sys._base_executable)')" -c 'import sys; sys.path.pop(0); import glimodern._C as c, pytest; \
	assert "$(SANITIZED)" in c.__file__, c.__file__; sys.exit(pytest.main(sys.argv[1:]))' \
		-p no:cacheprovider -k "not triton" $(OPERATOR_TESTS) $(PYTEST_ARGS)

clean: ## remove the environment, builds and caches; runs/ stays
	rm -rf $(VENV) build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.tools: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) cmake nanobind ninja scikit-build-core
	touch $@

# The installation goes on without the extension when that does not build: right without a compiler, an error with one.
define NO_EXTENSION
{ if command -v "$${CXX:-c++}" >/dev/null; then \
	echo "The C++ extension did not build. To see why: $(PIP) -vv --no-build-isolation --editable ." >&2; exit 1; \
else \
	echo "No C++ compiler: installed without the extension, slower on CPUs (see glimodern.ops.backend_info())." >&2; \
fi; }
endef

# One stamp a set of extras, so that training needs no test packages. Without build isolation the build uses the pinned
# tools, and its folder can be kept: a second set, or a change in csrc, compiles only what changed.
EXTRAS_train :=
EXTRAS_test := [test,bench,peers,minilm,plots,spacy,presidio,haystack,datasets,serve,client,browser,parquet,ray,lora,onnx,jieba,janome]
EXTRAS_bench := [test,bench,peers,minilm,plots]
# mypy reads the types of the server's libraries.
EXTRAS_lint := [dev,serve,client]

$(VENV)/.installed-%: $(VENV)/.tools pyproject.toml CMakeLists.txt Makefile $(CPP)
	$(PIP) --no-build-isolation --config-settings=build-dir=build/{wheel_tag} --editable ".$(EXTRAS_$*)"
	@$(BIN)/python -c 'import glimodern._C' 2>/dev/null || $(NO_EXTENSION)
	touch $@
