//go:build linux

package engine

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
)

// pollPipe gives a loop that waits for a pipe alone, and the pipe's other end.
func pollPipe(t *testing.T) (l *loop, write int) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(p[0]); unix.Close(p[1]) })
	return &loop{brisk: true, polled: []unix.PollFd{{Fd: int32(p[0]), Events: unix.POLLIN}}}, p[1]
}

// waited waits again if one of Go's own signals came.
func waited(l *loop) error {
	err := l.wait()
	for i := 0; i < 10 && err == unix.EINTR; i++ {
		err = l.wait()
	}
	return err
}

// TestOthersRunWhileTheLoopWaits: with GOMAXPROCS=1, as the engine has it, what
// writes the log must neither wait for a packet nor for the end of the packets.
func TestOthersRunWhileTheLoopWaits(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	t.Run("silence", func(t *testing.T) {
		// The runtime's own interruption, EINTR, comes by chance now and then; who needs it
		// has it each time.
		var err error
		for range 5 {
			l, write := pollPipe(t)
			go unix.Write(write, []byte{1})
			began := time.Now()
			if err = l.wait(); err == nil && l.polled[0].Revents != 0 && time.Since(began) < tick {
				return
			}
		}
		t.Errorf("no other goroutine ran while the loop waited: %v", err)
	})
	t.Run("packets without end", func(t *testing.T) {
		l, write := pollPipe(t)
		unix.Write(write, []byte{1})
		ran := make(chan struct{})
		go close(ran)
		for end := time.Now().Add(tick); ; {
			if err := l.wait(); err != nil && err != unix.EINTR {
				t.Fatal(err)
			}
			select {
			case <-ran:
				return
			default:
			}
			if time.Now().After(end) {
				t.Fatalf("the other goroutine did not run in %v", tick)
			}
		}
	})
}

// TestWaitEnds: without anything to do a wait lasts a tick, so that what is due by
// the clock is done.
func TestWaitEnds(t *testing.T) {
	l, _ := pollPipe(t)
	began := time.Now()
	err := waited(l)
	if took := time.Since(began); err != nil || took < tick || took > 10*tick {
		t.Errorf("the wait ended after %v: %v", took, err)
	}
}

// TestOnlyABriskLoopWaitsUnseen: a lone packet must not cost two waits.
func TestOnlyABriskLoopWaitsUnseen(t *testing.T) {
	l, write := pollPipe(t)
	waited(l)
	if l.brisk {
		t.Error("after a silence it is brisk")
	}
	unix.Write(write, []byte{1})
	if waited(l); !l.brisk {
		t.Error("after a packet that followed closely it is not brisk")
	}
}

func TestWaitAllocatesNothing(t *testing.T) {
	l, write := pollPipe(t)
	unix.Write(write, []byte{1})
	if n := testing.AllocsPerRun(100, func() { l.wait() }); n != 0 {
		t.Errorf("%v allocations for a wait", n)
	}
}

// TestFullTablesAreTold: of each table that strangers can fill, once an interval, and
// not anew because of a reload, which each one-time sequence is that was used.
func TestFullTablesAreTold(t *testing.T) {
	cfg, err := config.Parse("loop.toml", []byte(`
[daemon]
max_attempts = 16
[service.ssh]
ports = ["22/tcp"]
[knock.front]
type = "sequence"
opens = ["ssh"]
sequence = ["9211/tcp", "9533/udp", "9877/tcp"]
[knock.code]
type = "otp"
opens = ["ssh"]
digits = 6
secrets = "/people"
[knock.message]
type = "encoded"
opens = ["ssh"]
secrets = "/people"
`))
	if err != nil {
		t.Fatal(err)
	}
	people := border.Keys{People: []secrets.Person{{Name: "ann", Secret: make([]byte, 20)}}}
	for family, first := range map[string][16]byte{"IPv4": netip.MustParseAddr("::ffff:192.0.2.0").As16(), "IPv6": netip.MustParseAddr("2001:db8::").As16()} {
		t.Run(family, func(t *testing.T) {
			var log bytes.Buffer
			l := &loop{engine: New(nil, [2]int{-1, -1}, slog.New(slog.NewTextHandler(&log, nil)))}
			use := func(generation uint32, span int) {
				g := border.Generation{Config: *cfg, Keys: []border.Keys{{}, people, people}}
				g.Config.Knocks = slices.Clone(cfg.Knocks)
				g.Config.Knocks[2].Span = span
				if err := l.engine.Use(generation, &g, [8]byte{}); err != nil {
					t.Fatal(err)
				}
			}
			use(1, 16384)
			for n := range uint32(40) {
				src := first
				binary.BigEndian.PutUint32(src[12:], binary.BigEndian.Uint32(src[12:])+n)
				for _, port := range []uint16{9211, 7012, 40000} {
					l.engine.recognise(&packet.Packet{Src: netip.AddrFrom16(src).Unmap(), Proto: sequence.TCP, SrcPort: 1024, DstPort: port, Flags: 2})
				}
			}
			now := time.Now()
			for i, want := range []int{3, 0, 0} {
				log.Reset()
				l.report(now.Add(time.Duration(i) * 2 * reportEvery))
				if n := strings.Count(log.String(), "attempts lost\"=24"); n != want || strings.Count(log.String(), "is full") != want {
					t.Errorf("report %d told of %d full tables, want %d:\n%s", i+1, n, want, log.String())
				}
				if i == 1 {
					use(2, 16384)
					use(3, 16385) // so that the messages get another table
				}
			}
			for _, table := range fullTables {
				if n := l.engine.numbers()[table.counter]; n != 24 {
					t.Errorf("after a reload %s is %d", table.counter, n)
				}
			}
		})
	}
}
