// Package testnet builds private networks for tests: network namespaces, the
// wires between them, and the programs that run inside. Nothing here touches
// the host's own network.
package testnet

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TB is what this package needs of a test. A *testing.T is one; the
// demonstration and the benchmarks, which are programs, have their own.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatal(args ...any)
	Fatalf(format string, args ...any)
	Failed() bool
	FailNow()
	Skip(args ...any)
	Cleanup(func())
}

// RequireRoot skips a test that needs root; it is the one place where a test
// may skip for that.
func RequireRoot(t TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes network namespaces")
	}
}

// Namespace is a network namespace of a test's own. It lives as long as the
// test.
type Namespace struct {
	t  TB
	fd int
}

// New makes an empty network namespace with lo up.
func New(t TB) *Namespace {
	t.Helper()
	RequireRoot(t)
	ns := &Namespace{t: t, fd: -1}
	onOwnThread(func() {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return
		}
		ns.fd, _ = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	})
	if ns.fd < 0 {
		t.Fatal("testnet: no network namespace could be made")
	}
	t.Cleanup(func() { unix.Close(ns.fd) })
	ns.Run("ip", "link", "set", "lo", "up")
	return ns
}

// onOwnThread runs f on an operating-system thread that ends with it, so that
// nothing else ever runs in the namespace that f enters.
func onOwnThread(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// Do runs f on a thread inside the namespace: sockets that f opens and
// processes that it starts belong there. Goroutines that f starts do not.
func (ns *Namespace) Do(f func()) {
	ns.t.Helper()
	var err error
	onOwnThread(func() {
		if err = unix.Setns(ns.fd, unix.CLONE_NEWNET); err == nil {
			f()
		}
	})
	if err != nil {
		ns.t.Fatalf("testnet: setns: %v", err)
	}
}

// Start starts cmd inside the namespace.
func (ns *Namespace) Start(cmd *exec.Cmd) error {
	var err error
	ns.Do(func() { err = cmd.Start() })
	return err
}

// Output runs a program inside the namespace and gives what it printed on
// both streams, and its error.
func (ns *Namespace) Output(name string, args ...string) (string, error) {
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	return out.String(), err
}

// Run is Output that fails the test if the program fails.
func (ns *Namespace) Run(name string, args ...string) string {
	ns.t.Helper()
	out, err := ns.Output(name, args...)
	if err != nil {
		ns.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// Input runs a program inside the namespace with text on its standard input,
// and fails the test if the program fails.
func (ns *Namespace) Input(text, name string, args ...string) string {
	ns.t.Helper()
	var out strings.Builder
	cmd := exec.Command(name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(text), &out, &out
	err := ns.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		ns.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String()
}

var wires atomic.Uint32

// Connect lays a wire between two namespaces and gives each end its addresses
// ("192.0.2.1/24", "2001:db8::1/64"). It returns the interfaces' names. IPv6
// addresses are usable at once: duplicate detection is off.
func Connect(a, b *Namespace, addrsA, addrsB []string) (nameA, nameB string) {
	a.t.Helper()
	n := wires.Add(1)
	nameA, nameB = fmt.Sprintf("va%d", n), fmt.Sprintf("vb%d", n)
	a.Do(func() {
		link := &netlink.Veth{
			LinkAttrs:     netlink.LinkAttrs{Name: nameA},
			PeerName:      nameB,
			PeerNamespace: netlink.NsFd(b.fd),
		}
		if err := netlink.LinkAdd(link); err != nil {
			a.t.Errorf("testnet: veth: %v", err)
		}
	})
	if a.t.Failed() {
		a.t.FailNow()
	}
	a.Address(nameA, addrsA...)
	b.Address(nameB, addrsB...)
	return nameA, nameB
}

// Address brings an interface up and adds addresses to it.
func (ns *Namespace) Address(name string, addrs ...string) {
	ns.t.Helper()
	ns.Run("ip", "link", "set", name, "up")
	for _, addr := range addrs {
		args := []string{"addr", "add", addr, "dev", name}
		if netip.MustParsePrefix(addr).Addr().Is6() {
			args = append(args, "nodad")
		}
		ns.Run("ip", args...)
	}
}
