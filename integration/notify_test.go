package integration_test

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is what systemd is to the daemon: a socket that is told things
// (sd_notify(3)).
type manager struct {
	t    *testing.T
	conn *net.UnixConn
}

// next gives the next message, or "" when none comes in time.
func (m manager) next(limit time.Duration) string {
	m.t.Helper()
	var b [4096]byte
	m.conn.SetReadDeadline(time.Now().Add(limit))
	n, err := m.conn.Read(b[:])
	if err != nil && !os.IsTimeout(err) {
		m.t.Fatal(err)
	}
	return string(b[:n])
}

// await skips what the watchdog is told until want comes.
func (m manager) await(want string) {
	m.t.Helper()
	for end := time.Now().Add(soon); time.Now().Before(end); {
		switch got := m.next(time.Until(end)); {
		case strings.HasPrefix(got, want):
			return
		case got != "WATCHDOG=1":
			m.t.Fatalf("told %q, want %q", got, want)
		}
	}
	m.t.Fatalf("never told %q", want)
}

func TestTheServiceManagerIsToldTheTruth(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	socket := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	m := manager{t, conn}
	const watchdog = 900 * time.Millisecond // the packet then goes out every 300 ms
	bin := wrapper(t, fmt.Sprintf("env NOTIFY_SOCKET=%s WATCHDOG_USEC=%d ", socket, watchdog.Microseconds())+"%s")
	h.Daemon = h.server.Launch(bin, houseConfig("30s"))

	m.await("READY=1")
	h.Signal(syscall.SIGSTOP) // so that what is looked at is not done a moment later
	if h.table() == "" {
		t.Error("ready, and nothing is hidden")
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.enginePid()))
	for _, want := range []string{"NoNewPrivs:\t1\n", "Seccomp:\t2\n", "CapEff:\t0000000000000000\n", "CapBnd:\t0000000000000000\n"} {
		if !strings.Contains(string(status), want) {
			t.Errorf("ready, and the engine is not confined: no %q in\n%s", want, status)
		}
	}
	h.Signal(syscall.SIGCONT)

	for range 4 {
		if got := m.next(2 * watchdog); got != "WATCHDOG=1" {
			t.Fatalf("told %q, want the watchdog's food", got)
		}
	}
	resume := stopEngine(h)
	for m.next(50*time.Millisecond) != "" { // what was on its way
	}
	if got := m.next(2 * watchdog); got != "" {
		t.Errorf("told %q by a daemon that is deaf", got)
	}
	resume()
	m.await("WATCHDOG=1")

	h.Signal(syscall.SIGHUP)
	m.await("RELOADING=1")
	m.await("READY=1")
	h.Configure("[service")
	h.Signal(syscall.SIGHUP)
	m.await("RELOADING=1")
	m.await("READY=1") // it serves on by the config before
	h.enter(paths...)
	h.Signal(syscall.SIGTERM)
	m.await("STOPPING=1")
	h.end(0)
}
