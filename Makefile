# Every target that needs Python builds .venv first, and again when pyproject.toml or constraints.txt change.

PYTHON ?= python3
JOBS ?= 2
ARGS ?=
BASE ?= HEAD

BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup test lint format sweep coverage mutants bench golden docs demo

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv: reparam (editable) and everything that developing it needs

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

test: $(STAMP) ## run the tests, the heavy ones left out (ARGS="-k fold" to choose, JOBS=2 processes)
	$(BIN)/pytest -n $(JOBS) --dist worksteal $(ARGS)

sweep: $(STAMP) ## run the heavy tests alone: whole zoos, many random cases, fresh examples of every property
	$(BIN)/pytest -n $(JOBS) --dist worksteal -m "sweep or hypothesis" --hypothesis-profile explore --timeout 3600 $(ARGS)

coverage: $(STAMP) ## try the networks of timm, torchvision and other libraries, and write docs/coverage.md; goes on where it was stopped
	$(BIN)/python benchmarks/coverage.py --jobs $(JOBS) $(ARGS)

mutants: $(STAMP) ## break the sources in small ways, list what no test noticed (ARGS="passes check.region", ARGS=--report)
	$(BIN)/python tests/mutants.py --jobs $(JOBS) $(ARGS)

lint: $(STAMP) ## check style, format, types and the order of the rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## reformat the sources and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP) ## measure: conversions, latencies, sizes
	$(BIN)/python benchmarks/run_all.py $(ARGS)

golden: $(STAMP) ## compare what the working tree does with what BASE does (BASE=HEAD), exactly, over 45 networks
	$(BIN)/python benchmarks/golden.py against $(BASE) $(ARGS)

docs: $(STAMP) ## write the table of rewrites into the README, and build the site into site/; a warning is an error
	$(BIN)/python docs/rewrites.py
	$(BIN)/python -m sphinx -nWq --keep-going -c docs -d site/.doctrees . site

demo: $(STAMP) ## fuse a ResNet-50, run the result with torch alone, and verify it against the original
	mkdir -p demo
	$(BIN)/python benchmarks/make_checkpoint.py torchvision/resnet50 demo/resnet50.pt
	$(BIN)/reparam convert demo/resnet50.pt --to fused --force --json demo/report.json
	$(BIN)/python -c 'import sys, torch; \
	  model = torch.export.load("demo/resnet50-fused.pt2").module(); \
	  output = model(torch.rand(1, 3, 224, 224)); \
	  assert not {"reparam", "torchvision", "timm"} & sys.modules.keys(); \
	  print("with torch alone: output shape", tuple(output.shape))'
	$(BIN)/reparam verify demo/resnet50.pt demo/resnet50-fused.pt2
