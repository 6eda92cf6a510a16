# Bough: make up starts it, make test tests it. `make help` lists the rest.
GO    ?= go
TOOLS := $(CURDIR)/bin/tools

.PHONY: help deps build up down test test-unprivileged bench generate verify lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

deps: ## install what Bough runs on (Debian, Ubuntu; PostgreSQL 17 by npm where it is not packaged); says what it does
	@scripts/deps.sh run

build: ## build bin/bough
	$(GO) build -o bin/bough ./cmd/bough

up: deps build ## install, build, start in the background, print how to connect
	@bin/bough up

down: ## stop what `make up` started
	@bin/bough down

test: ## install what the tests need and run them all
	@scripts/deps.sh test
	@scripts/test.sh

test-unprivileged: ## as root: run the end-to-end tests once more as an ordinary user
	@scripts/test-unprivileged.sh

bench: build ## measure side by side with what one would use otherwise; prints a table
	@scripts/deps.sh run
	$(GO) run ./bench

generate: ## write the generated code anew
	$(GO) generate ./...

verify: lint ## what a change must pass besides the tests: lint, formatting, generated code, go.mod
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'run gofmt -w on:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(GO) mod tidy -diff
	@scripts/no-drift.sh $(GO) generate ./...

lint: $(TOOLS)/golangci-lint ## golangci-lint; the import rules are in .golangci.yaml
	$(TOOLS)/golangci-lint run ./...

$(TOOLS)/golangci-lint: tools/go.mod
	$(GO) -C tools build -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint

clean: ## remove what was built
	rm -rf bin
