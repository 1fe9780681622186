# Every target does the set-up that it needs. PORT=8081 make run: another port.
PORT ?= 8080
PYTHON := .venv/bin/python
UWSGI := .venv-uwsgi/bin/uwsgi
SOURCES := $(wildcard src/*.pyx src/wsgimaster/*.pxd)

.PHONY: run test check bench bench-quick bench-scaling bench-instructions chaos fuzz asan dist clean

run: .venv/built
	@echo "Open http://127.0.0.1:$(PORT)/ in a browser; Ctrl-C ends it."
	$(PYTHON) -m wsgimaster --http-socket 127.0.0.1:$(PORT) --module wsgimaster.demo --processes 2

test: .venv/built $(UWSGI)
	@tools/debian-packages test
	UWSGI_BIN=$(abspath $(UWSGI)) $(PYTHON) -m pytest $(ARGS)

check: .venv/built
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	$(PYTHON) -m pytest -q tests/test_layers.py

bench: .venv/built
	@tools/debian-packages bench
	$(PYTHON) benchmarks/run.py $(ARGS)

bench-quick: ARGS += --quick
bench-quick: bench

bench-scaling: .venv/built
	@tools/debian-packages bench
	$(PYTHON) benchmarks/scaling.py $(ARGS)

bench-instructions: .venv/built
	@tools/debian-packages instructions
	$(PYTHON) benchmarks/instructions.py $(ARGS)

chaos: .venv/built $(UWSGI)
	@tools/debian-packages test
	UWSGI_BIN=$(abspath $(UWSGI)) $(PYTHON) tests/chaos/run.py $(ARGS)

fuzz: .venv/built
	PYTHONPATH=tests $(PYTHON) -m support.packet_fuzz 1000000
	PYTHONPATH=tests $(PYTHON) -m support.http_fuzz 300000

# The packet parser once more under AddressSanitizer, built apart from the one that serves.
asan: .venv/built
	WSGIMASTER_SANITIZE=address $(PYTHON) setup.py -q build_ext --build-lib build/asan --build-temp build/asan-temp
	cp -r src/wsgimaster/*.py build/asan/wsgimaster/
	PYTHONPATH=build/asan:tests PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	    LD_PRELOAD=$$(gcc -print-file-name=libasan.so) $(PYTHON) -P -m support.packet_fuzz 1000000

dist: .venv/built
	$(PYTHON) -m build --outdir dist

clean:
	rm -rf .venv .venv-uwsgi build dist src/*.c src/*.egg-info src/wsgimaster/*.so benchmarks/.venv benchmarks/build

.venv/bin/pip:
	@tools/debian-packages build
	python3 -m venv .venv

.venv/built: .venv/bin/pip pyproject.toml setup.py $(SOURCES)
	.venv/bin/pip install -q -e '.[test,check]'
	@touch $@

$(UWSGI): | .venv/built
	python3 -m venv .venv-uwsgi
	.venv-uwsgi/bin/pip install -q uwsgi==2.0.31
