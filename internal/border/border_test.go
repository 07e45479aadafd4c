//go:build linux

package border_test

import (
	"bytes"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

var (
	v4 = netip.MustParseAddr("192.0.2.7")
	v6 = netip.MustParseAddr("2001:db8::7")
)

// all has each message at least once, with both families.
var all = []border.Message{
	&border.Open{ID: 1, Generation: 7, Rule: 2, Addr: v4, TTL: 30 * time.Second},
	&border.Open{ID: 1 << 60, Rule: 65534, Ticket: 9, Addr: v6, TTL: time.Hour},
	&border.Open{ID: 2, Rule: border.AnyRule, Service: 3, Ticket: 9, Addr: v4, TTL: time.Hour},
	&border.Open{ID: 2, Rule: 3, Key: 4, Extend: true, Addr: v6, TTL: time.Hour},
	&border.Open{ID: 2, Rule: 3, Key: 4, Addr: v6, TTL: time.Hour, Proto: sequence.UDP, Port: 65535},
	&border.Open{ID: 2, Rule: 3, Key: 4, Addr: netip.MustParseAddr("192.0.2.0"), TTL: 1, Bits: 24},
	&border.Open{ID: 2, Rule: 3, Key: 4, Addr: netip.MustParseAddr("2001:db8::"), TTL: 1, Bits: 127},
	&border.Close{ID: 3, Rule: 3, Service: 1, Key: 65535, Addr: v4},
	&border.Close{ID: 3, Rule: 3, Service: 1, Key: 65535, Addr: netip.MustParseAddr("2001:db8::"), Bits: 56},
	&border.Close{ID: 3, Rule: border.AnyRule, Ticket: 4, Cut: true, Addr: v4},
	&border.CloseKey{ID: 1, Ticket: 2, Fingerprint: spa.Fingerprint{1, 2, 31: 3}, Cut: true},
	&border.Close{ID: 3, Rule: border.AnyRule, Service: border.AnyService, Ticket: 4, Addr: v6},
	&border.Close{ID: 3, Generation: 1 << 31, Rule: 1, Service: 2, Addr: v4},
	&border.Close{ID: 3, Rule: border.AnyRule, Service: 2, Ticket: 4, Addr: v6, Proto: sequence.TCP, Port: 25},
	&border.Confirm{ID: 5, Ticket: 6},
	&border.List{ID: 7},
	&border.Took{Generation: 8},
	&border.Refused{Generation: 9},
	&border.Watched{Token: [8]byte{1, 2, 3, 4, 5, 6, 7, 8}},
	&border.Config{Generation: 10, Watch: [8]byte{9}},
	&border.Host{Generation: 11},
	&border.Control{Ticket: 12},
	&border.Listing{ID: 13},
	&border.Done{ID: 14, Result: border.Granted, Until: time.Unix(1_800_000_000, 5)},
	&border.Run{ID: 1, Generation: 7, Rule: 2, Addr: v4},
	&border.Run{ID: 1 << 60, Generation: 1 << 31, Rule: 65534, Key: 65535, Do: border.Extend, Addr: v6},
	&border.Run{ID: 3, Rule: 3, Do: border.Undo, Addr: v6},
	&border.Run{ID: 3, Rule: 3, Addr: v6, Payload: border.Payload{Length: 2, Bytes: [64]byte{0, 1}}},
	&border.Run{ID: 3, Rule: 3, Addr: v4, Payload: border.Payload{Length: 64, Bytes: [64]byte{63: 9}}},
	&border.Told{Generation: 7, Knock: 1, What: border.Stage, Stage: 1, Addr: v4},
	&border.Told{Generation: 7, Knock: 65535, What: border.TimedOut, Stage: 255, Addr: v6},
	&border.Spent{Generation: 1 << 31, Knock: 65535, Ahead: 64},
	&border.Done{ID: 16, Result: border.NothingToUndo},
	&border.Done{ID: 15, Result: border.Closed, Count: 3, Cut: 1 << 31, Left: 1<<31 + 1},
}

func TestMessagesReadBackEqual(t *testing.T) {
	for _, m := range all {
		b := border.Encode(m)
		got, err := border.Decode(b[:])
		if err != nil {
			t.Errorf("%T: %v", m, err)
		} else if d := cmp.Diff(m, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
			t.Errorf("%T: (-sent +read)\n%s", m, d)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	change := func(m border.Message, f func(b []byte)) []byte {
		b := border.Encode(m)
		f(b[:])
		return b[:]
	}
	open := &border.Open{ID: 1, Rule: 2, Addr: v4, TTL: time.Second}
	const family = 1 + 8 + 4 + 2 + 2 + 4 + 2 + 1
	for name, b := range map[string][]byte{
		"nothing":                    nil,
		"one byte short":             change(open, func([]byte) {})[:border.Size-1],
		"one byte long":              append(change(open, func([]byte) {}), 0),
		"kind 0":                     change(open, func(b []byte) { b[0] = 0 }),
		"an unknown kind":            change(open, func(b []byte) { b[0] = 200 }),
		"a byte behind the last":     change(&border.List{ID: 1}, func(b []byte) { b[border.Size-1] = 1 }),
		"no family":                  change(open, func(b []byte) { b[family] = 0 }),
		"a third family":             change(open, func(b []byte) { b[family] = 5 }),
		"IPv4 with more bytes":       change(open, func(b []byte) { b[family+1+15] = 1 }),
		"a 4-in-6 address":           border4in6(open, family),
		"no duration":                change(&border.Open{Addr: v4, TTL: 0}, func([]byte) {}),
		"a negative duration":        change(&border.Open{Addr: v4, TTL: -1}, func([]byte) {}),
		"a service beside a rule":    change(&border.Open{Addr: v4, Rule: 1, Service: 1, TTL: 1}, func([]byte) {}),
		"a key and no rule":          change(&border.Open{Addr: v4, Rule: border.AnyRule, Key: 1, TTL: 1}, func([]byte) {}),
		"an extension of nothing":    change(&border.Open{Addr: v4, Rule: border.AnyRule, Extend: true, TTL: 1}, func([]byte) {}),
		"a half truth":               change(open, func(b []byte) { b[family-1] = 2 }),
		"a key that closes all":      change(&border.Close{Addr: v4, Rule: border.AnyRule, Key: 1}, func([]byte) {}),
		"a knock that cuts":          change(&border.Close{Addr: v4, Rule: 1, Cut: true}, func([]byte) {}),
		"a knock that closes a port": change(&border.Close{Addr: v4, Rule: 1, Proto: sequence.TCP, Port: 25}, func([]byte) {}),
		"an unknown wish":            change(&border.Run{Addr: v4, Do: border.Extend + 1}, func([]byte) {}),
		"unknown progress":           change(&border.Told{Addr: v6, What: border.TimedOut + 1}, func([]byte) {}),
		"more than is spent":         change(&border.Spent{}, func(b []byte) { b[8] = 1 }),
		"a port without a protocol":  change(&border.Open{Addr: v4, TTL: 1, Port: 22}, func([]byte) {}),
		"a mask with host bits":      change(&border.Open{Addr: v4, TTL: 1, Bits: 8}, func([]byte) {}),
		"a mask of all bits":         change(&border.Close{Addr: v4, Bits: 32}, func([]byte) {}),
		"a mask beyond the family":   change(&border.Close{Addr: v4, Bits: 33}, func([]byte) {}),
		"a payload that is too long": change(&border.Run{Addr: v6, Payload: border.Payload{Length: 65}}, func([]byte) {}),
		"bytes behind a payload":     change(&border.Run{Addr: v6, Payload: border.Payload{Length: 1, Bytes: [64]byte{1, 2}}}, func([]byte) {}),
		"no result":                  change(&border.Done{ID: 1}, func([]byte) {}),
		"an unknown result":          change(&border.Done{ID: 1, Result: 99}, func([]byte) {}),
	} {
		if m, err := border.Decode(b); !errors.Is(err, border.ErrMessage) {
			t.Errorf("%s: got %+v, %v", name, m, err)
		}
	}
}

func border4in6(m border.Message, family int) []byte {
	b := border.Encode(m)
	b[family] = 6
	a := netip.AddrFrom16(v4.As16()).As16()
	copy(b[family+1:], a[:])
	return b[:]
}

// FuzzDecode: what the decoder accepts, the encoder gives back byte for byte,
// so that no message has a second spelling.
func FuzzDecode(f *testing.F) {
	seeds, err := filepath.Glob("testdata/fuzz/FuzzDecode/*")
	if err != nil || len(seeds) == 0 {
		f.Fatal("the committed seeds are missing")
	}
	for _, m := range all {
		b := border.Encode(m)
		f.Add(b[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := border.Decode(b)
		if err != nil {
			return
		}
		if again := border.Encode(m); !bytes.Equal(again[:], b) {
			t.Errorf("%x\nreads as %+v, which is written\n%x", b, m, again)
		}
	})
}

func TestConn(t *testing.T) {
	warden, file, err := border.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	engine := border.NewConn(int(file.Fd()))
	if err := unix.SetNonblock(engine.Fd(), true); err != nil { // Fd made it block
		t.Fatal(err)
	}

	if _, _, err := engine.Receive(); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("an empty border: got %v, want EAGAIN", err)
	}
	if err := engine.Send(&border.List{ID: 7}); err != nil {
		t.Fatal(err)
	}
	if m, fd, err := warden.Receive(); err != nil || fd != -1 || m.(*border.List).ID != 7 {
		t.Errorf("got %+v, %d, %v", m, fd, err)
	}

	want := border.HostFacts{Addrs: []netip.Addr{v4, v6}, Interfaces: []int{2}}
	if err := warden.SendJSON(&border.Host{Generation: 3}, want); err != nil {
		t.Fatal(err)
	}
	_, fd, err := engine.Receive()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Write(fd, []byte("x")); !errors.Is(err, unix.EPERM) {
		t.Errorf("a sealed file was written: %v", err)
	}
	var got border.HostFacts
	if err := border.ReadJSON(fd, &got); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); d != "" {
		t.Error(d)
	}

	for name, send := range map[string]func() error{
		"a short datagram":                func() error { _, err := unix.Write(engine.Fd(), []byte{1}); return err },
		"a long datagram":                 func() error { _, err := unix.Write(engine.Fd(), make([]byte, 65)); return err },
		"a descriptor where none belongs": func() error { return engine.SendFile(&border.List{ID: 1}, 0) },
		"no descriptor where one belongs": func() error { return engine.Send(&border.Host{}) },
	} {
		if err := send(); err != nil {
			t.Fatal(name, err)
		}
		if _, _, err := warden.Receive(); !errors.Is(err, border.ErrMessage) {
			t.Errorf("%s: got %v, want ErrMessage", name, err)
		}
	}

	file.Close()
	if _, _, err := warden.Receive(); !errors.Is(err, io.EOF) {
		t.Errorf("the other side is gone: got %v, want EOF", err)
	}
}

// A full border must not stop the engine.
func TestSendNeverBlocksTheEngine(t *testing.T) {
	_, file, err := border.Pair()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	engine := border.NewConn(int(file.Fd()))
	unix.SetNonblock(engine.Fd(), true)
	for range 1_000_000 {
		if err := engine.Send(&border.List{}); err != nil {
			if !errors.Is(err, unix.EAGAIN) {
				t.Errorf("got %v, want EAGAIN", err)
			}
			return
		}
	}
	t.Error("the queue has no end")
}
