//go:build linux

package engine

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/spa"
)

// desk is a loop with administrators before it; the warden behind it is out.
type desk struct {
	*loop
	t    *testing.T
	sent []border.Message
	full bool // the border takes nothing
}

// Send makes the desk the warden's side of the border.
func (d *desk) Send(m border.Message) error {
	if d.full {
		return errors.New("full")
	}
	d.sent = append(d.sent, m)
	return nil
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	cfg, err := config.Parse("desk.toml", []byte("[service.ssh]\nports = [\"22/tcp\"]\nmax_open_for = \"1h\"\n"+
		"[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nsequence = [\"7211/tcp\", \"8533/udp\", \"7877/tcp\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{t: t}
	d.loop = &loop{engine: New(d, noJournal, slog.New(slog.NewTextHandler(io.Discard, nil)))}
	d.engine.Use(1, &border.Generation{Config: *cfg, Keys: make([]border.Keys, len(cfg.Knocks))}, [8]byte{})
	return d
}

// visit connects an administrator who asks for something, or for nothing yet.
func (d *desk) visit(request string) net.Conn {
	d.t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		d.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fds[1]), "administrator")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	if request != "" {
		io.WriteString(conn, request+"\n")
	}
	d.accept(fds[0], 7)
	if n := len(d.clients); n > 0 && d.clients[n-1].fd == fds[0] {
		if request != "" {
			d.serve(d.clients[n-1], unix.POLLIN)
		}
	}
	return conn
}

// answer reads one line, or nothing at the end of the connection.
func answer(t *testing.T, lines *bufio.Reader) (a control.Answer) {
	t.Helper()
	line, err := lines.ReadBytes('\n')
	if err == io.EOF {
		return a
	}
	if err == nil {
		err = json.Unmarshal(line, &a)
	}
	if err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	return a
}

var sources = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("2001:db8::7")}

func TestARefusalSaysWhatToDo(t *testing.T) {
	for _, c := range []struct {
		request string
		result  border.Result
		full    bool
		want    string
	}{
		{`{"do":"open","service":"ssh","addr":"192.0.2.7","for":"61m"}`, 0, false, "max_open_for of ssh is 1h0m0s; ask for that at most"},
		{`{"do":"open","service":"ssh","addr":"2001:db8::7","for":"61m"}`, 0, false, "max_open_for of ssh is 1h0m0s; ask for that at most"},
		{`{"do":"open","service":"ssh","addr":"192.0.2.7"}`, border.Stale, false, "try again"},
		{`{"do":"open","service":"ssh","addr":"2001:db8::7"}`, border.Full, false, "raise max_grants"},
		{`{"do":"close","addr":"2001:db8::7"}`, border.Failed, false, "the daemon's log says why"},
		{`{"do":"close","addr":"192.0.2.7"}`, 0, true, "the warden does not keep up; try again in a moment"},
		{`{"do":"confirm"}`, border.NothingToConfirm, false, "the daemon is not on trial"},
	} {
		d := newDesk(t)
		d.full = c.full
		conn := d.visit(c.request)
		if c.result != 0 {
			d.engine.Done(&border.Done{ID: d.engine.lastID, Result: c.result})
		}
		if got := answer(t, bufio.NewReader(conn)); !strings.Contains(got.Error, c.want) {
			t.Errorf("%s: answered %+v, want %q", c.request, got, c.want)
		}
		if c.result == 0 && len(d.sent) != 0 {
			t.Errorf("%s: the warden was asked %+v", c.request, d.sent)
		}
	}
}

// The warden is asked what the administrator typed, with his own ticket.
func TestACloseIsPassedOn(t *testing.T) {
	const print = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
	f, err := spa.ParseFingerprint(print)
	if err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]border.Message{
		`{"do":"close","key":"` + print + `"}`:                      &border.CloseKey{ID: 1, Ticket: 7, Fingerprint: f},
		`{"do":"close","key":"` + print + `","cut":true}`:           &border.CloseKey{ID: 1, Ticket: 7, Fingerprint: f, Cut: true},
		`{"do":"close","addr":"192.0.2.7","cut":true}`:              &border.Close{ID: 1, Generation: 1, Rule: border.AnyRule, Service: border.AnyService, Ticket: 7, Cut: true, Addr: sources[0]},
		`{"do":"close","addr":"2001:db8::7","service":"ssh"}`:       &border.Close{ID: 1, Generation: 1, Rule: border.AnyRule, Ticket: 7, Addr: sources[1]},
		`{"do":"close","key":"` + print + `","addr":"2001:db8::7"}`: nil,
		`{"do":"close","key":"` + strings.ToLower(print) + `"}`:     nil,
	} {
		d := newDesk(t)
		conn := d.visit(request)
		if want == nil {
			if got := answer(t, bufio.NewReader(conn)); got.Error == "" || len(d.sent) != 0 {
				t.Errorf("%s: answered %+v, the warden was asked %+v", request, got, d.sent)
			}
			continue
		}
		if len(d.sent) != 1 || !reflect.DeepEqual(d.sent[0], want) {
			t.Errorf("%s: the warden was asked %+v, want %+v", request, d.sent, want)
			continue
		}
		d.engine.Done(&border.Done{ID: 1, Result: border.Closed, Count: 3, Left: 4})
		if got := answer(t, bufio.NewReader(conn)); got.Done == nil || got.Done.Count != 3 || got.Done.Left != 4 {
			t.Errorf("%s: answered %+v", request, got)
		}
	}
}

// Followers stay, so they must leave room for who has one thing to ask.
func TestFollowersLeaveRoom(t *testing.T) {
	d := newDesk(t)
	for range maxFollowers {
		d.visit(`{"do":"events"}`)
	}
	if got := answer(t, bufio.NewReader(d.visit(`{"do":"events"}`))); got.Error != tooMany {
		t.Errorf("a follower too many: %+v", got)
	}
	d.tidy(time.Now())
	d.visit(`{"do":"confirm"}`)
	if len(d.sent) != 1 {
		t.Errorf("the warden was asked %+v, want a confirmation", d.sent)
	}
	for range maxClients {
		d.visit("")
	}
	if got := answer(t, bufio.NewReader(d.visit(`{"do":"status"}`))); got.Error != tooMany {
		t.Errorf("a connection too many: %+v", got)
	}
	if len(d.clients) != maxClients {
		t.Errorf("%d connections, want %d", len(d.clients), maxClients)
	}
}

// Who asks and does not read gives his place up; who reads, however slowly, does not.
func TestADeafClientGivesItsPlaceUp(t *testing.T) {
	d := newDesk(t)
	listed := &border.Listed{Grants: make([]border.Grant, 20000)}
	for i := range listed.Grants {
		listed.Grants[i] = border.Grant{Addr: sources[i%2], Service: "ssh", By: "front"}
	}
	d.visit(`{"do":"grants"}`)
	slow := d.visit(`{"do":"grants"}`)
	for id := range d.engine.asked {
		d.listing(id, listed)
	}
	began := time.Now()
	for _, after := range []time.Duration{patience / 2, patience - time.Second} {
		if d.tidy(began.Add(after)); len(d.clients) != 2 {
			t.Fatalf("%d clients are left %v after their answer, want 2", len(d.clients), after)
		}
	}
	for _, c := range d.clients {
		c.moved = c.moved.Add(-patience - time.Second)
	}
	io.ReadFull(slow, make([]byte, 1<<17))
	d.clients[1].flush()
	if d.tidy(time.Now()); len(d.clients) != 1 || d.clients[0].follows || len(d.clients[0].out) == 0 {
		t.Fatalf("%d clients are left, want the slow one", len(d.clients))
	}
	if d.tidy(time.Now().Add(patience + time.Second)); len(d.clients) != 0 {
		t.Error("a client that stopped reading keeps its place")
	}
}

// Strangers cause events at the rate of their packets, and a follower may be
// stopped: he must not give them the engine's memory, and he is told.
func TestAStalledFollowerMissesEvents(t *testing.T) {
	d := newDesk(t)
	stalled := d.visit(`{"do":"events"}`)
	now := time.Now()
	const seconds = 40
	told := uint64(0)
	for s := range seconds {
		for i := range 2 * maxPace {
			d.tell(control.Event{Time: now.Add(time.Duration(s) * time.Second), What: control.EventStep, Addr: sources[i%2], Knock: "front", Stage: 1})
			told++
		}
	}
	c := d.clients[0]
	if len(c.out) > maxBehind || cap(c.out) > 4*maxBehind {
		t.Errorf("%d bytes wait for a stalled follower, in %d", len(c.out), cap(c.out))
	}
	d.tidy(now.Add(time.Hour))
	if len(d.clients) != 1 || !c.follows {
		t.Fatal("a stalled follower lost its place")
	}
	// It reads again.
	lines := bufio.NewReader(stalled)
	got, steps := uint64(0), uint64(0)
	for got+steps < told {
		c.flush()
		d.notice(now.Add(2*time.Hour + time.Duration(steps)*time.Second))
		a := answer(t, lines)
		if a.Event == nil {
			t.Fatalf("answered %+v", a)
		}
		switch a.Event.What {
		case control.EventMissed:
			got += a.Event.Count
		case control.EventStep:
			steps++
		}
	}
	if got+steps != told || steps < 1000 {
		t.Errorf("%d events, and %d missed; want %d together", steps, got, told)
	}
}

// What strangers can't cause is told however fast they are.
func TestAFloodHidesNoGrant(t *testing.T) {
	d := newDesk(t)
	conn := d.visit(`{"do":"events"}`)
	now := time.Now()
	for range 3 * maxPace {
		d.tell(control.Event{Time: now, What: control.EventLost, Addr: sources[1], Knock: "front"})
	}
	d.tell(control.Event{Time: now, What: control.EventOpen, Addr: sources[0], Service: "ssh"})
	lines := bufio.NewReader(conn)
	lost := 0
	for {
		d.clients[0].flush()
		a := answer(t, lines)
		if a.Event.What == control.EventOpen {
			break
		}
		lost++
	}
	if lost > maxPace {
		t.Errorf("%d events of one second, want %d", lost, maxPace)
	}
	d.notice(now)
	if a := answer(t, lines); a.Event.What != control.EventMissed || a.Event.Count != 2*maxPace {
		t.Errorf("told %+v, want %d missed", a.Event, 2*maxPace)
	}
}
