package integration_test

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// stranger is a uid that owns nothing.
const stranger = 65533

// refused starts a daemon that is to give up by itself, and gives what it said.
// words come before the program, as in wrapper. DIR in the config is a
// directory that the stranger may use too.
func refused(t *testing.T, ns *testnet.Namespace, words, config string) string {
	t.Helper()
	dir := t.TempDir()
	file := filepath.Join(dir, "sallyport.toml")
	if !strings.Contains(config, "[daemon]") {
		config = "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\n" + config
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(config, "DIR", dir)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Dir(dir), dir} {
		os.Chmod(path, 0o755)
	}
	os.Chown(dir, stranger, stranger)
	argv := strings.Fields("timeout --foreground -k 2 20 " + strings.ReplaceAll(words, "DIR", dir) + " " + testnet.Binary(t) + " serve -c " + file)
	out, err := ns.Output(argv[0], argv[1:]...)
	exit, ok := err.(*exec.ExitError)
	if !ok || exit.ExitCode() != 1 {
		t.Fatalf("it ended with %v, want status 1\n%s", err, out)
	}
	return out
}

func contains(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
}

func TestMissingCapabilitiesAreNamed(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	as := fmt.Sprintf("setpriv --reuid=%d --regid=%[1]d --clear-groups", stranger)
	contains(t, refused(t, ns, as, houseConfig("30s")), "CAP_NET_ADMIN is missing", "run as root or give the service that capability")
	contains(t, refused(t, ns, as+" --inh-caps=+net_admin --ambient-caps=+net_admin", houseConfig("30s")),
		"operation not permitted", "run as root, or give the daemon CAP_NET_RAW")
	contains(t, refused(t, ns, "setpriv --bounding-set=-net_raw", houseConfig("30s")), "CAP_NET_RAW")
	contains(t, refused(t, ns, "setpriv --bounding-set=-net_admin", houseConfig("30s")), "CAP_NET_ADMIN")
	if out, err := ns.Output("nft", "list", "table", "inet", "sallyport"); err == nil {
		t.Errorf("a refused start left\n%s", out)
	}
}

// No machine of ours lacks these parts of the kernel, so a filter around the
// real daemon gives the errors that it would meet there: a simulation.
func TestAbsentPartsOfTheKernelAreNamed(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	absent := filepath.Join(t.TempDir(), "absent")
	build := exec.Command("go", "build", "-o", absent, "./absent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for part, want := range map[string][]string{
		"nftables": {"absent: simulated: a kernel without nftables", "this kernel has no nftables: load the module nf_tables"},
		"packet":   {"absent: simulated: a kernel without AF_PACKET", "this kernel has no AF_PACKET: load the module af_packet"},
	} {
		contains(t, refused(t, ns, absent+" "+part, houseConfig("30s")), want...)
		if out, err := ns.Output("nft", "list", "table", "inet", "sallyport"); err == nil {
			t.Errorf("%s: a refused start left\n%s", part, out)
		}
	}
}

func TestPlacesThatCannotBeUsedAreNamed(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, []byte("mine"), 0o600)
	daemon := func(state, control string) string {
		return "[daemon]\nstate_dir = \"" + state + "\"\ncontrol = \"" + control + "\"\n" + houseConfig("30s")
	}
	readOnly := wrapper(t, `unshare -m sh -c 'mount -t tmpfs -o ro none /mnt && exec "$@"' sh`+" env")
	for _, c := range []struct {
		name, words, config string
		want                []string
	}{
		{"a file in the state directory's place", "", daemon(file, "DIR/control.sock"), []string{"the state directory can't be made", file, "or set state_dir"}},
		{"a state directory on a read-only disk", readOnly, daemon("/mnt", "DIR/control.sock"), []string{"the state directory can't be written", "read-only file system", "or set state_dir"}},
		{"a state directory to be made there", readOnly, daemon("/mnt/state", "DIR/control.sock"), []string{"the state directory can't be made", "read-only file system"}},
		{"a file in the control socket's place", "", daemon("DIR/state", file), []string{file + " is there and is no socket", "or set control"}},
		{"a control socket on a read-only disk", readOnly, daemon("DIR/state", "/mnt/control.sock"), []string{"the control socket", "read-only file system", "or set control"}},
	} {
		t.Run(c.name, func(t *testing.T) { contains(t, refused(t, ns, c.words, c.config), c.want...) })
	}
	if text, _ := os.ReadFile(file); string(text) != "mine" {
		t.Errorf("the file now says %q", text)
	}
	if out, err := ns.Output("nft", "list", "table", "inet", "sallyport"); err == nil {
		t.Errorf("a refused start left\n%s", out)
	}
}

func TestWithoutLoopbackThereIsNoWatch(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	ns.Run("ip", "link", "set", "lo", "down")
	contains(t, refused(t, ns, "", houseConfig("30s")), "the watch packet needs the loopback interface, which is down", "bring lo up")
	ns.Run("ip", "link", "set", "lo", "up")
	ns.Run("ip", "addr", "flush", "dev", "lo")
	contains(t, refused(t, ns, "", houseConfig("30s")), "the watch packet needs the loopback interface", "bring lo up")
}

func TestASecondDaemonIsRefused(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	table := h.table()
	first := fmt.Sprintf("another sallyport serves this machine already (pid %d, uid 0)", h.Cmd.Process.Pid)
	for range 5 { // each leaves a connection behind, and none may wait for the first daemon
		contains(t, refused(t, h.server, "", houseConfig("1m")), first)
	}
	if h.table() != table {
		t.Errorf("the table is\n%s\nand was\n%s", h.table(), table)
	}
	h.enter(paths...)
}

// Whoever takes the name first, its owner must learn whom to ask.
func TestATakenNameIsNamed(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	var l net.Listener
	var err error
	ns.Do(func() { l, err = net.Listen("unix", "@sallyport") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 3 {
		contains(t, refused(t, ns, "", houseConfig("1m")), fmt.Sprintf("(pid %d, uid 0)", os.Getpid()))
	}
	l.Close()
	// A daemon always listens, so one who does not is none, and keeps nobody out.
	var fd int
	ns.Do(func() {
		fd, _ = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: "@sallyport"})
	})
	defer unix.Close(fd)
	if err != nil {
		t.Fatal(err)
	}
	ns.Serve(testnet.Binary(t), houseConfig("1m")).Await("no daemon of ours")
}

func TestAFullGrantSetRefusesAndLosesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve("[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\nmax_grants = 16\n" + houseConfig("12s"))
	h.enter(paths...)
	for i := range 15 {
		h.must("open", "ssh", fmt.Sprintf("203.0.113.%d", i+1), "--for", "13s")
		h.must("open", "ssh", fmt.Sprintf("2001:db8:1::%x", i+1), "--for", "13s")
	}
	before := h.grants()
	if len(before) != 32 {
		t.Fatalf("%d grants, want 32", len(before))
	}
	for _, p := range paths {
		late := p
		late.client = p.client.Next().Next()
		h.client.Address(clientWire(h), netip.PrefixFrom(late.client, late.client.BitLen()).String())
		h.knock(late, frontSteps)
		h.Await("the grant set is full: this knock opened nothing, those who are in stay in; raise max_grants or shorten open_for service=ssh address=" + late.client.String())
		h.is(false, 22, late)
		if out, err := h.Tool("open", "ssh", late.client.String()); err == nil || !strings.Contains(out, "the grant set is full") {
			t.Errorf("open: %v, %s", err, out)
		}
		// A refresh needs no room.
		h.must("open", "ssh", p.client.String(), "--for", "13s")
		h.is(true, 22, p)
	}
	if after := h.grants(); len(after) != 32 {
		t.Errorf("%d grants, want 32: %v", len(after), after)
	}
	h.eventually("the grants end", func() bool { return len(h.grants()) == 0 })
	for _, p := range paths {
		h.knock(p, frontSteps)
		h.await(true, 22, p)
	}
}

// clientWire is the name of the client's end of the wire.
func clientWire(h *house) string { return "va" + strings.TrimPrefix(h.serverWire, "vb") }

// fromEngine is a copy of the engine's own end of the border.
func fromEngine(h *house) int {
	h.t.Helper()
	pidfd, err := unix.PidfdOpen(h.enginePid(), 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(pidfd)
	fd, err := unix.PidfdGetfd(pidfd, 3, 0)
	if err != nil {
		h.t.Fatalf("pidfd_getfd: %v", err)
	}
	h.t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// fromWarden is a copy of the warden's end: its one socket of that type.
func fromWarden(h *house) int {
	h.t.Helper()
	pidfd, err := unix.PidfdOpen(h.Cmd.Process.Pid, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	defer unix.Close(pidfd)
	for n := range 64 {
		fd, err := unix.PidfdGetfd(pidfd, n, 0)
		if err != nil {
			continue
		}
		if kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err == nil && kind == unix.SOCK_SEQPACKET {
			h.t.Cleanup(func() { unix.Close(fd) })
			return fd
		}
		unix.Close(fd)
	}
	h.t.Fatal("the warden has no border")
	return -1
}

// gets reads from a connection until its end or the deadline.
func gets(c net.Conn, limit time.Duration) (string, error) {
	c.SetReadDeadline(time.Now().Add(limit))
	text, err := io.ReadAll(c)
	return string(text), err
}

// stopEngine stops the engine until the test ends or resume is called.
func stopEngine(h *house) (resume func()) {
	pid := h.enginePid()
	syscall.Kill(pid, syscall.SIGSTOP)
	resume = func() { syscall.Kill(pid, syscall.SIGCONT) }
	h.t.Cleanup(resume)
	return resume
}
