# Two commands do everything on a fresh Debian machine with Go and root:
#   make run    shows the main job, in namespaces of its own
#   make test   runs every test
export CGO_ENABLED = 0

PROGRAM := bin/sallyport
PACKAGES := nftables iptables iproute2 iputils-ping nmap hping3 knockd tcpdump openssh-server openssh-client openssh-tests \
	netcat-openbsd socat mandoc conntrack strace systemd zbar-tools spin gcc libc6-dev python3-cryptography ipset chromium chromium-driver \
	busybox netcat-traditional ncat shellcheck rsyslog
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)

.PHONY: build run test model torture vuln fuzz bench loss clean packages

build:
	go build -trimpath -ldflags "-X main.version=$(VERSION)" -o $(PROGRAM) ./cmd/sallyport

# Installs by name what is missing, where that is possible: with root and apt.
packages:
	@./packaging/need $(PACKAGES)
	@command -v node >/dev/null && command -v npm >/dev/null || ./packaging/need nodejs npm

run: build
	@./packaging/need iproute2
	@go run ./integration/demo $(PROGRAM)

test: packages
	go vet ./...
	go run honnef.co/go/tools/cmd/staticcheck@v0.8.2 ./...
	@# -count=1: the cache does not know that tests build and run the program.
	@# -p 1: what runs beside a test that measures time must not be ten more.
	@# The differential test tells how often each difference from knockd decided.
	@if [ "$$(id -u)" = 0 ]; then \
		go test -count=1 -p 1 $$(go list ./... | grep -v /integration/differential) && \
		go test -count=1 -v ./integration/differential; \
	else ./packaging/test-without-root; fi

# The exchange of single-packet authorization, every order of events searched;
# 'make test' does a smaller search.
model:
	@./packaging/need spin gcc libc6-dev
	@./doc/model/check

# Ten million random datagrams and a million flipped bits, some minutes; 'make
# test' has a sample.
SEED ?= 0
torture:
	go test -count=1 -v -timeout 20m -run '^TestTorture' ./internal/engine -torture -seed $(SEED)

# The known holes in what we are linked with; needs the vulnerability database.
vuln:
	go run golang.org/x/vuln/cmd/govulncheck@latest ./...

# Fuzzes each decoder for FUZZTIME, and plays random doors and packets to knockd and
# to us for as long; 'make test' runs the committed seeds and 16 streams.
FUZZTIME ?= 1m
fuzz:
	go test -run '^$$' -fuzz '^FuzzParseStep$$' -fuzztime $(FUZZTIME) ./internal/sequence
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./internal/config
	go test -run '^$$' -fuzz '^FuzzDecode$$' -fuzztime $(FUZZTIME) ./internal/border
	go test -run '^$$' -fuzz '^FuzzDecode$$' -fuzztime $(FUZZTIME) ./internal/engine/internal/packet
	go test -run '^$$' -fuzz '^FuzzRequest$$' -fuzztime $(FUZZTIME) ./internal/spa
	go test -run '^$$' -fuzz '^FuzzOpen$$' -fuzztime $(FUZZTIME) ./internal/spa
	go test -run '^$$' -fuzz '^FuzzAddress$$' -fuzztime $(FUZZTIME) ./internal/spa
	go test -run '^$$' -fuzz '^FuzzPublicKey$$' -fuzztime $(FUZZTIME) ./internal/spa
	go test -run '^$$' -fuzz '^FuzzSignature$$' -fuzztime $(FUZZTIME) ./internal/spa
	go test -run '^$$' -fuzz '^FuzzKeyFile$$' -fuzztime $(FUZZTIME) ./internal/spa
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./internal/authorized
	go test -run '^$$' -fuzz '^FuzzNew$$' -fuzztime $(FUZZTIME) ./internal/engine/internal/replay
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./vectors
	go test -run '^$$' -fuzz '^FuzzStore$$' -fuzztime $(FUZZTIME) ./cmd/sallyport
	go test -run '^$$' -fuzz '^FuzzKeyFilePublic$$' -fuzztime $(FUZZTIME) .
	go test -run '^$$' -fuzz '^FuzzParse$$' -fuzztime $(FUZZTIME) ./internal/knockd
	go test -run '^$$' -fuzz '^FuzzRecognise$$' -fuzztime $(FUZZTIME) ./internal/knockd
	go test -count=1 -v -timeout 0 ./integration/differential -seed 0 -budget $(FUZZTIME)

bench: packages build
	@./packaging/need fwknop-server fwknop-client
	go run ./bench $(PROGRAM)

# The table of doc/loss.md, some ten minutes; 'make test' has a short form.
TRIES ?= 900
loss: packages build
	@./packaging/need fwknop-server fwknop-client
	go run ./bench -only loss -tries $(TRIES) $(PROGRAM)

clean:
	rm -rf bin

include packaging/install.mk
