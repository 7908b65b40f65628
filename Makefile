# Quicklime. `make help` lists the targets.

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  = -s -w -X main.version=$(VERSION)
TOOLS    = $(CURDIR)/.cache/tools
# All of staticcheck, doc comments included; ST1003 would rename what protoc names.
CHECKS   = -checks all,-ST1003
# What is close enough to the processor to be tested on arm64 as well.
ARM64    = ./agent/memory/... ./agent/pack/... ./proto/...
MEMORY  ?= auto
KEEP    ?=
PART    ?=
DURATION ?= 1m
SEED    ?= 0
NODES   ?= 3
GROW    ?=

.PHONY: help build test lint generate demo bench chaos clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

build: ## build the agent, the collector and the lab into bin/
	CGO_ENABLED=0 go build -tags grpcnotrace -trimpath -ldflags '$(LDFLAGS)' -o bin/quicklime-agent ./agent # it has no debug pages
	CGO_ENABLED=0 go build -trimpath -ldflags '$(LDFLAGS)' -o bin/quicklime-collector ./collector
	CGO_ENABLED=0 go build -C packaging/lab -trimpath -ldflags '$(LDFLAGS)' -o ../../bin/quicklime-lab .
	CGO_ENABLED=0 go build -C packaging/lab -trimpath -ldflags '-s -w' -o ../../bin/quicklime-guest-init ./guest/init

demo: build ## run the main job in the lab (MEMORY=auto|kcore|lime, KEEP=DIR)
	bin/quicklime-lab demo --bin bin --memory '$(MEMORY)' $(if $(KEEP),--keep '$(KEEP)')

test: ## run all tests
	go test -race ./...
	go test -C packaging/lab -race -timeout 30m $$(go list -C packaging/lab ./... | grep -v /e2e)
	go test -C packaging/lab -timeout 40m -parallel 4 ./e2e # they mostly wait, and the processes that they start are raced where they are tested
	@if command -v qemu-aarch64-static >/dev/null; then \
		echo 'for arm64, emulated'; GOARCH=arm64 CGO_ENABLED=0 go test -exec qemu-aarch64-static $(ARM64); \
	else echo 'not tested for arm64: qemu-aarch64-static (Debian: qemu-user-static) is missing'; fi

bench: build ## measure a capture, a line for each figure: name value unit (PART=kcore|object|encode|live|walk|fleet|failover)
	@bin/quicklime-lab bench --bin bin $(if $(PART),--part '$(PART)')

chaos: build ## torment collectors while they work (DURATION=10m, NODES=1, GROW=1, SEED=N); the last line is the verdict
	@bin/quicklime-lab chaos --bin bin --duration '$(DURATION)' --nodes '$(NODES)' --seed '$(SEED)' $(if $(GROW),--grow)

lint: $(TOOLS)/staticcheck ## check format, vet and staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'these files are not as gofmt writes them'; exit 1; }
	go vet ./... && go vet -C packaging/lab ./...
	GOARCH=arm64 go vet ./agent/... ./proto/...
	$(TOOLS)/staticcheck $(CHECKS) ./... && cd packaging/lab && $(TOOLS)/staticcheck $(CHECKS) ./...

generate: $(TOOLS)/protoc-gen-go ## make the gRPC code anew (needs protoc: Debian's protobuf-compiler and libprotobuf-dev)
	PATH="$(TOOLS):$$PATH" go generate ./...

$(TOOLS)/staticcheck $(TOOLS)/protoc-gen-go: .ci/tools.mod
	go build -modfile=.ci/tools.mod -o $(TOOLS)/ honnef.co/go/tools/cmd/staticcheck google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
	@touch $(TOOLS)/*

clean: ## remove what was built
	rm -rf bin .cache
