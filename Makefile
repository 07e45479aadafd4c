# Two commands do everything on a fresh Debian machine with Go and root:
#   make run    shows the main job, in namespaces of its own
#   make test   runs every test
export CGO_ENABLED = 0

PROGRAM := bin/sallyport
PACKAGES := nftables iptables iproute2 iputils-ping nmap hping3 knockd tcpdump openssh-server netcat-openbsd socat mandoc conntrack strace systemd
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: build run test check fuzz bench clean packages

build:
	go build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(PROGRAM) ./cmd/sallyport

# Installs by name what is missing, where that is possible: with root and apt.
packages:
	@./packaging/need $(PACKAGES)

run: build
	@./packaging/need iproute2
	@go run ./integration/demo $(PROGRAM)

test: packages
	go vet ./...
	go test ./...

check:
	go run honnef.co/go/tools/cmd/staticcheck@latest ./...
	go run golang.org/x/vuln/cmd/govulncheck@latest ./...

bench: packages build
	go run ./bench $(PROGRAM)

clean:
	rm -rf bin

include packaging/install.mk
