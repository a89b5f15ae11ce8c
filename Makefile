# SPDX-License-Identifier: Apache-2.0
# make demo    real WordPress on real MariaDB in one pod, answering on a published port (sets up what is missing)
# make test    all tests (sets up what is missing)
# make help    the rest

export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

PYTHON ?= python3
PREFIX ?= /usr/local
OCI = $(firstword $(wildcard $(PREFIX)/lib/nsrun/bin/nsrun-oci) .venv/bin/nsrun-oci)
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
SOURCES := $(shell find nsrun csrc -name '*.py' -o -name '*.c' -o -name '*.h' -o -name '*.pyi' -o -name '*.json' | grep -v -e _templates -e _protocol) setup.py pyproject.toml nsrun/cli/nsrun-python nsrun/oci/nsrun-oci-python $(wildcard docs/labs/*.md)

COMPILED := $(wildcard csrc/*.[chp]*) nsrun/host/messages.py setup.py pyproject.toml nsrun/cli/nsrun-python nsrun/oci/nsrun-oci-python

help:           ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1	\2/p' $(MAKEFILE_LIST) | expand -t 22

deps:           ## install the system packages (Debian, Ubuntu; named elsewhere)
	@.ci/deps

.venv/.deps:
	@.ci/deps
	@mkdir -p .venv && touch $@

# A normal install with compiled bytecode; setuptools leaves again, because its .pth file would run in every command.
define install_into
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nsrun needs Python 3.11 or newer: make PYTHON=python3.11 …")'
	[ -x $(1)/bin/pip ] || $(PYTHON) -m venv $(1)
	$(1)/bin/pip uninstall -q -y nsrun 2>/dev/null || true
	env -u PYTHONDONTWRITEBYTECODE NSRUN_PYTHON=$(abspath $(1))/bin/python $(1)/bin/pip install -q --disable-pip-version-check $(2) '.[kube]'
	$(1)/bin/pip uninstall -q -y setuptools 2>/dev/null || true
	rm -rf build/lib* build/temp.* build/bdist.* nsrun.egg-info
endef

.venv/.built: .venv/.deps $(SOURCES)
	@echo "building nsrun into .venv …"
	@rm -f .venv/.dev
	@$(call install_into,.venv)
	@touch $@

build: .venv/.built   ## .venv/bin/nsrun, as it is installed elsewhere

# What runs is the checkout: an edit of Python needs no make.  The script pays for site, and Python compiles on first use.
.venv/.dev: .venv/.deps $(COMPILED)
	@echo "building nsrun for .venv, in place …"
	@rm -f .venv/.built
	@$(call install_into,.venv,-e)
	@touch $@

dev: .venv/.dev .venv/.tools   ## edit and test: .venv/bin/nsrun and .venv/bin/pytest use this checkout

# The tools stand in pyproject.toml, once.
define extra_into
	$(1)/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(2)"], sep="\n")' >$(1)/$(2).txt
	$(1)/bin/pip install -q --disable-pip-version-check -r $(1)/$(2).txt
endef

define tools_into
	.ci/deps test
	[ -x $(1)/bin/pip ] || $(PYTHON) -m venv $(1)
	$(call extra_into,$(1),test)
	$(call extra_into,$(1),site)
endef

.venv/.tools: .venv/.deps .ci/deps pyproject.toml
	@$(call tools_into,.venv)
	@touch $@

.venv/.tested: .venv/.built .venv/.tools
	@touch $@

install: .venv/.deps   ## install for everybody, where sudo finds it (PREFIX=/usr/local)
	@$(call install_into,$(PREFIX)/lib/nsrun)
	@mkdir -p $(PREFIX)/bin && ln -sf ../lib/nsrun/bin/nsrun $(PREFIX)/bin/nsrun
	@ln -sf ../lib/nsrun/bin/nsrun-oci $(PREFIX)/bin/nsrun-oci
	@$(PREFIX)/lib/nsrun/bin/python -I -m nsrun.cli.man $(PREFIX)/share
	@echo "installed $(PREFIX)/bin/nsrun, its manual pages and completions"

uninstall:      ## remove what install made
	rm -rf $(PREFIX)/lib/nsrun $(PREFIX)/bin/nsrun $(PREFIX)/bin/nsrun-oci
	rm -f $(PREFIX)/share/man/man1/nsrun.1 $(PREFIX)/share/man/man1/nsrun-*.1 $(PREFIX)/share/bash-completion/completions/nsrun \
		$(PREFIX)/share/zsh/site-functions/_nsrun $(PREFIX)/share/fish/vendor_completions.d/nsrun.fish

deb: .venv/.deps    ## dist/nsrun_VERSION_ARCH.deb (packaging/deb)
	@.ci/deps deb
	@packaging/deb dist

test: .venv/.tested   ## all tests; the live ones run as root in throwaway hosts
	@$(SUDO) rootfs/build busybox
	@$(SUDO) rootfs/build --image busybox
	@$(SUDO) env CI="$(CI)" PATH="$$PATH" NSRUN_REPLAY="$(NSRUN_REPLAY)" .venv/bin/pytest -n 4 $(PYTEST)

.venv-coverage/.built: .venv/.deps .venv/.tools $(COMPILED)
	@$(call install_into,.venv-coverage,-e)
	@$(call tools_into,.venv-coverage)
	@cd .venv-coverage/bin; for program in docker-registry containerd ctr containerd-shim-runc-v2 dockerd docker-proxy docker; do \
	    [ ! -e ../../.venv/bin/$$program ] || ln -sf ../../.venv/bin/$$program .; done
	@for tree in slurm cni; do [ ! -d .venv/$$tree ] || ln -sfn ../.venv/$$tree .venv-coverage/; done
	@touch $@

coverage: .venv-coverage/.built   ## all tests, with lines and branches counted; fails below the floor (tests/coverage)
	@$(SUDO) rootfs/build busybox
	@$(SUDO) rootfs/build --image busybox
	@$(SUDO) env CI="$(CI)" PATH="$$PATH" .venv-coverage/bin/python tests/coverage -n 4 --timeout 300 $(PYTEST)

unit: .venv/.tested   ## only the tests that need no root
	@.venv/bin/pytest -m 'not live' -n 2 $(PYTEST)

scenario: .venv/.tested   ## the user's scenario as a test: builds the real roots and images first
	@for name in mariadb wordpress; do $(SUDO) rootfs/build $$name && $(SUDO) rootfs/build --image $$name || exit; done
	@$(SUDO) env CI="$(CI)" PATH="$$PATH" .venv/bin/pytest tests/test_scenario.py $(PYTEST)

soak: .venv/.tested   ## random commands, kills, flips, full disks (MINUTES=30 SEED=n KINDS=commands,kills,…; tests/soak)
	@$(SUDO) rootfs/build busybox
	@$(SUDO) rootfs/build --image busybox
	@cd tests && $(SUDO) env PATH="$$PATH" MINUTES="$(MINUTES)" SEED="$(SEED)" KINDS="$(KINDS)" ROUNDS="$(ROUNDS)" WORKERS="$(WORKERS)" $(CURDIR)/.venv/bin/python -m soak

fresh-test:     ## the README's two commands on a fresh Debian, as an ordinary user (SUITES="bookworm trixie"; tests/fresh)
	@$(SUDO) tests/fresh $(SUITES)

fresh-deb: deb   ## the Debian package in a fresh root: doctor and the tiny demo (tests/fresh --deb)
	@$(SUDO) tests/fresh --deb dist/nsrun_*.deb

check: .venv/.tested   ## linters
	@.venv/bin/pytest tests/test_style.py $(PYTEST)

format: .venv/.tools   ## format Python and C
	@.venv/bin/ruff format -q .
	@.venv/bin/clang-format -i $$(find csrc tests bench -name '*.[ch]')

docs: build     ## docs/cli.md from the table of commands
	@.venv/bin/python -I -c 'from nsrun.cli import help; print(help.manual(), end="")' >docs/cli.md

.venv/.site: .venv/.deps pyproject.toml
	@[ -x .venv/bin/pip ] || $(PYTHON) -m venv .venv
	@$(call extra_into,.venv,site)
	@touch $@

site: .venv/.site   ## build/site: the documentation and the labs as pages to open in a browser, without network (docs/site)
	@rm -rf build/site
	@.venv/bin/python -B -m sphinx -q -E -n -W --keep-going -c docs/site -d build/doctrees . build/site
	@echo "open $(CURDIR)/build/site/index.html"

demo: build     ## WordPress on MariaDB in one pod (MYSQL=mysql: real MySQL; PORT=8080)
	@rootfs/demo up

demo-down:      ## remove the demo's pod
	@rootfs/demo down

demo-kube: build   ## the same pod from the YAML of Kubernetes (rootfs/demo.yaml); ENGINE=podman: by podman kube play on nsrun-oci
	@rootfs/demo kube

deploy-podman deploy-containerd deploy-docker: build   ## tell an engine of the runtime "nsrun" (docs/engines.md)
	@$(SUDO) $(OCI) install $(@:deploy-%=%)

undeploy-podman undeploy-containerd undeploy-docker: build   ## and take that away
	@$(SUDO) $(OCI) install --remove $(@:undeploy-%=%)

demo-tiny: build   ## the same with a busybox, in seconds
	@rootfs/demo tiny

bench: build    ## nsrun beside its peers: ratios of medians (installs the peers it can)
	@$(SUDO) env PATH="$$PATH" bench/run
	@$(SUDO) env PATH="$$PATH" bench/images
	@$(SUDO) env PATH="$$PATH" bench/many
	@$(SUDO) env PATH="$$PATH" bench/forward
	@$(SUDO) env PATH="$$PATH" bench/teach
	@$(SUDO) env PATH="$$PATH" bench/engines

clean:          ## what was built here
	rm -rf .venv .venv-coverage build dist *.egg-info nsrun/libexec nsrun/_kernel.*.so nsrun/host/_templates.py nsrun/_protocol.py

.PHONY: deploy-podman deploy-containerd deploy-docker undeploy-podman undeploy-containerd undeploy-docker
.PHONY: help deps build dev install uninstall deb test coverage unit scenario soak fresh-test fresh-deb check format docs site demo demo-down demo-kube demo-tiny bench clean
.DEFAULT_GOAL := help
