package integration_test

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
)

// The test speaks on the real border, through a copy of either side's own
// descriptor (pidfd_getfd(2)), as a process that strangers took over would.
func TestWhatIsNoMessageEndsBothProcesses(t *testing.T) {
	list := border.Encode(&border.List{ID: 1})
	took := border.Encode(&border.Took{Generation: 1})
	open := border.Encode(&border.Open{ID: 1, Generation: 1, Rule: 0, Addr: paths[0].client, TTL: time.Second})
	dirty := list
	dirty[border.Size-1] = 1
	for _, c := range []struct {
		name   string
		end    func(*house) int
		bytes  []byte
		rights []byte
	}{
		{"the engine: one byte", fromEngine, []byte{1}, nil},
		{"the engine: a byte short", fromEngine, list[:border.Size-1], nil},
		{"the engine: a byte long", fromEngine, append(list[:border.Size:border.Size], 0), nil},
		{"the engine: no kind", fromEngine, make([]byte, border.Size), nil},
		{"the engine: a byte behind the fields", fromEngine, dirty[:], nil},
		{"the engine: an answer that nobody waits for", fromEngine, took[:], nil},
		{"the engine: a descriptor", fromEngine, list[:], unix.UnixRights(0)},
		{"the warden: one byte", fromWarden, []byte{1}, nil},
		{"the warden: a request of the engine's", fromWarden, open[:], nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.serve(houseConfig("30s"))
			engine := h.enginePid()
			if err := unix.Sendmsg(c.end(h), c.bytes, c.rights, nil, 0); err != nil {
				t.Fatal(err)
			}
			h.end(1)
			h.gone(engine)
			h.is(false, 22, paths...)
		})
	}
}

// Promise 1: what a hijacked engine may say is checked against the config, and
// without an administrator nobody speaks in his name.
func TestPromise1AHijackedEngineGetsNothingBeyondTheRules(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	h.must("open", "ssh", "203.0.113.7", "--for", "10m")
	h.must("open", "ssh", "2001:db8:7::7", "--for", "10m")
	before := h.grants()
	fd := fromEngine(h)
	for _, p := range paths {
		for _, m := range []border.Message{
			&border.Open{Generation: 1, Rule: 1, Addr: p.client, TTL: time.Second},
			&border.Open{Generation: 1, Rule: 0, Addr: p.client, TTL: 31 * time.Second},
			&border.Open{Generation: 1, Rule: border.AnyRule, Addr: p.client, TTL: time.Second},
			&border.Open{Generation: 1, Rule: border.AnyRule, Ticket: 1 << 20, Addr: p.client, TTL: time.Second},
			&border.Close{Generation: 1, Rule: 0, Service: border.AnyService, Addr: netip.MustParseAddr("203.0.113.7")},
			&border.Close{Generation: 1, Rule: 0, Service: border.AnyService, Addr: netip.MustParseAddr("2001:db8:7::7")},
			&border.Close{Generation: 1, Rule: border.AnyRule, Service: border.AnyService, Addr: netip.MustParseAddr("203.0.113.7")},
			&border.Close{Generation: 1, Rule: border.AnyRule, Service: border.AnyService, Addr: netip.MustParseAddr("2001:db8:7::7")},
			&border.Confirm{Ticket: 1 << 20},
		} {
			b := border.Encode(m)
			if _, err := unix.Write(fd, b[:]); err != nil {
				t.Fatal(err)
			}
		}
	}
	after := h.grants() // asked for last, so answered last
	if len(after) != 2 || len(before) != 2 {
		t.Fatalf("before %v, after %v", before, after)
	}
	for i := range after {
		if after[i].Addr != before[i].Addr || after[i].Until.Sub(before[i].Until).Abs() > time.Second {
			t.Errorf("before %v, after %v", before[i], after[i])
		}
	}
	h.is(false, 22, paths...)
	h.enter(paths...)
}

// An engine that is stuck while the warden wants it does not stop the daemon's
// end, and the ports stay hidden.
func TestAStuckEngineDoesNotKeepTheDaemonFromEnding(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("30s"))
	engine := h.enginePid()
	stopEngine(h)
	h.Signal(syscall.SIGTERM)
	h.end(0)
	h.gone(engine)
	h.is(false, 22, paths...)
}
