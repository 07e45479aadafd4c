package integration_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// serveInto starts the daemon with its words going into a pipe of 4,096 bytes
// whose reading end the test gets, and waits until it answers.
func (h *house) serveInto(config string, args ...string) *os.File {
	h.t.Helper()
	pipe := filepath.Join(h.t.TempDir(), "words")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		h.t.Fatal(err)
	}
	reader, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { reader.Close() })
	raw, err := reader.SyscallConn()
	if err == nil {
		raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 4096) })
	}
	if err != nil {
		h.t.Fatal(err)
	}
	h.Daemon = h.server.Launch(wrapper(h.t, "%s 2>"+pipe), config, args...)
	h.eventually("the daemon answers", func() bool {
		_, err := toolOutput(h, "status")
		return err == nil
	})
	return reader
}

// toolOutput runs a tool by the program itself: the daemon's own is wrapped.
func toolOutput(h *house, command string, args ...string) (string, error) {
	return h.server.Output(testnet.Binary(h.t), append([]string{command, "--control", h.Control}, args...)...)
}

// Ctrl-S on the terminal that serve was started on must not stop knocks.
func TestALogThatNobodyReadsStopsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	reader := h.serveInto(houseConfig("2s"), "--undo-after=10m")
	for i := range 120 { // each is a line of the warden's
		addr := fmt.Sprintf("198.51.100.%d", i+1)
		if i%2 == 1 {
			addr = fmt.Sprintf("2001:db8:0:1::%d", i+1)
		}
		if out, err := toolOutput(h, "open", "ssh", addr); err != nil {
			t.Fatalf("open %s: %v, %s", addr, err, out)
		}
	}
	h.enter(paths...)
	if out, err := toolOutput(h, "confirm"); err != nil {
		t.Fatalf("confirm: %v, %s", err, out)
	}
	began := time.Now()
	h.Signal(syscall.SIGTERM)
	h.end(0)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the end took %v with nobody reading", took)
	}
	text := make([]byte, 8192)
	n, _ := reader.Read(text)
	if got := string(text[:n]); n < 3000 || !strings.Contains(got, "serving on trial") || !strings.Contains(got, "open service=ssh address=2001:db8:0:1::2") {
		t.Errorf("the pipe has %d bytes:\n%s", n, got)
	}
}

// A log reader that dies (a closed terminal, a pager that was left) must not
// take the daemon with it.
func TestALogReaderThatDiesStopsNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serveInto(houseConfig("2s")).Close()
	for _, addr := range []string{"198.51.100.7", "2001:db8:0:1::7"} {
		if out, err := toolOutput(h, "open", "ssh", addr); err != nil {
			t.Fatalf("open %s: %v, %s", addr, err, out)
		}
	}
	h.enter(paths...)
	h.Signal(syscall.SIGTERM)
	h.end(0)
}
