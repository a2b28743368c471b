# Two commands do everything: `make up` and `make test`.
.PHONY: soak up down setup test check format lock clean

up: setup          ## start SOMA and print its address
	.venv/bin/soma up

down:              ## stop SOMA
	.venv/bin/soma down

setup:             ## make .venv and install into it (a second call costs nothing)
	@python3 deploy/bootstrap.py

check: setup       ## formatting, lint, types, import contracts
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/basedpyright --level error
	.venv/bin/lint-imports

test: setup        ## every test a change needs, in two processes
	.venv/bin/python -m deploy.tests

soak: setup        ## what takes hours: kills, power cuts, histories, Ray's head, floods, planted bugs, a long life
	.venv/bin/python -m bench.kills --kills 20000
	.venv/bin/python -m bench.powercut --cuts 20000
	.venv/bin/python -m bench.states --runs 1000 --steps 50
	.venv/bin/python -m bench.restore --messages 1000
	.venv/bin/python -m bench.diskfull
	.venv/bin/python -m bench.heads --rounds 4
	.venv/bin/python -m bench.overload
	.venv/bin/python -m bench.interruptions
	.venv/bin/python -m bench.bugs
	.venv/bin/python -m bench.soak --minutes 60

format: setup      ## let the formatter decide
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix-only .

lock: setup        ## pin every dependency with hashes; no registry's address is written
	.venv/bin/uv pip compile --universal --python-version 3.11 --no-header --no-annotate \
	  --generate-hashes --extra dev --excludes requirements/excludes.txt \
	  pyproject.toml -o requirements/lock.txt

clean:
	rm -rf .venv .pytest_cache .ruff_cache
