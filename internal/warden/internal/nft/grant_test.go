package nft

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
	"golang.org/x/sys/unix"
)

func (w *world) grants() []Element {
	w.Helper()
	got, err := w.table.Grants()
	if err != nil {
		w.Fatal(err)
	}
	return got
}

// left gives what is left of one grant, 0 if there is none.
func (w *world) left(e Element) time.Duration {
	w.Helper()
	for _, g := range w.grants() {
		if g.target() == e.target() {
			return g.TTL
		}
	}
	return 0
}

// TestGrants: what was granted is what the kernel lists, with its time and who
// asked, and a repeat sets the time anew, longer or shorter.
func TestGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := guarding(config.Drop, "22/tcp", "53/udp")
	away := service(config.Drop, "22/tcp")
	away.On = []netip.Addr{away4, away6}
	cfg.Services = append(cfg.Services, away)
	if got := w.grants(); len(got) != 0 {
		t.Errorf("without a table there are grants: %v", got)
	}
	w.apply(cfg, Options{})
	var want []Element
	for i, p := range pairs {
		want = append(want,
			Element{Addr: p.stranger, Proto: sequence.TCP, Port: 22, TTL: time.Minute, By: strings.Repeat("k", MaxBy)},
			Element{Addr: p.stranger, Proto: sequence.UDP, Port: 53, TTL: time.Hour},
			Element{Addr: p.stranger, On: []netip.Addr{away4, away6}[i], Proto: sequence.TCP, Port: 22, TTL: time.Minute, By: "knock.front"})
	}
	for _, ttl := range []time.Duration{time.Minute, time.Hour, time.Second * 30} {
		for i := range want {
			want[i].TTL = ttl
		}
		w.grant(want...)
		got := w.grants()
		for _, e := range want {
			i := slices.IndexFunc(got, func(g Element) bool { return g.target() == e.target() && g.By == e.By })
			if i < 0 {
				t.Fatalf("%v is not among %v", e, got)
			}
			if off := ttl - got[i].TTL; off < 0 || off > 5*time.Second {
				t.Errorf("%v has %v left of %v", e.Addr, got[i].TTL, ttl)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d grants, want %d", len(got), len(want))
		}
	}
	if err := w.table.Revoke(append(want[:3:3], tcp(bystander4, 22, time.Minute), tcp(bystander6, 22, time.Minute))); err != nil {
		t.Error(err)
	}
	if got := w.grants(); len(got) != 3 || got[0].Addr != stranger6 {
		t.Errorf("after Revoke: %v", got)
	}
}

// TestGrantRefusesWhatTheKernelWouldMisread: a time of 0 means for ever to it.
func TestGrantRefusesWhatTheKernelWouldMisread(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(guarding(config.Drop, "22/tcp"), Options{})
	for name, change := range map[string]func(*Element){
		"no time":      func(e *Element) { e.TTL = 0 },
		"too short":    func(e *Element) { e.TTL = time.Millisecond - 1 },
		"negative":     func(e *Element) { e.TTL = -time.Second },
		"no address":   func(e *Element) { e.Addr = netip.Addr{} },
		"no ports":     func(e *Element) { e.Proto = sequence.ICMP },
		"two families": func(e *Element) { e.On = map[bool]netip.Addr{true: away6, false: away4}[e.Addr.Is4()] },
		"long name":    func(e *Element) { e.By = strings.Repeat("k", MaxBy+1) },
	} {
		for _, p := range pairs {
			good, bad := tcp(p.stranger, 22, time.Minute), tcp(p.stranger, 22, time.Minute)
			change(&bad)
			if err := w.table.Grant([]Element{good, bad}); err == nil {
				t.Errorf("%s %s: granted", p.name, name)
			}
		}
	}
	if got := w.grants(); len(got) != 0 {
		t.Errorf("granted: %v", got)
	}
}

// TestOneAddressManySpellings: 4-in-6 and zones are how Go says it, not the wire.
func TestOneAddressManySpellings(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.apply(guarding(config.Drop, "22/tcp"), Options{})
	w.grant(tcp(netip.AddrFrom16(stranger4.As16()), 22, time.Minute), tcp(stranger4, 22, time.Hour),
		tcp(netip.MustParseAddr("fe80::2%eth0"), 22, time.Minute), tcp(netip.MustParseAddr("fe80::2"), 22, time.Second))
	got := w.grants()
	if len(got) != 2 || got[0].Addr != stranger4 || got[0].TTL < 59*time.Minute || got[1].Addr != netip.MustParseAddr("fe80::2") || got[1].TTL < 58*time.Second {
		t.Errorf("%v", got)
	}
}

// TestExpiry is promise 2: the kernel closes by itself, with our connection to
// it gone, for new connections; the established one lives on.
func TestExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	greet(t, w.host, "", 22)
	w.apply(guarding(config.Drop, "22/tcp"), Options{})
	for _, p := range pairs {
		w.grant(tcp(p.stranger, 22, 2*time.Second))
	}
	w.table.Close()
	var established []net.Conn
	for _, p := range pairs {
		c, err := dial(w.out, p.stranger, p.host, 22, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		established = append(established, c)
	}
	for i, p := range pairs {
		eventually(t, silent, 4*time.Second, func() string { return try(w.out, p.stranger, p.host, 22) })
		echoes(t, established[i])
	}
}

// TestFull: a full set refuses what is new, refreshes what it has, loses
// nothing, and has room again when a grant ended.
func TestFull(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := guarding(config.Drop, "22/tcp")
	cfg.Daemon.MaxGrants = 16
	w.apply(cfg, Options{})
	w.table.full = time.Now() // no waiting for room: there will be none
	for _, p := range pairs {
		var all []Element
		addr := p.bystander
		for range 16 {
			addr = addr.Next()
			all = append(all, tcp(addr, 22, time.Minute))
		}
		w.grant(all...)
		fresh := tcp(p.stranger, 22, time.Minute)
		if err := w.table.Grant([]Element{fresh}); !errors.Is(err, ErrFull) {
			t.Errorf("%s: a grant too many: %v", p.name, err)
		}
		all[0].TTL = time.Hour
		w.grant(all[0])
		if left := w.left(all[0]); left < 59*time.Minute {
			t.Errorf("%s: a refresh in a full set left %v", p.name, left)
		}
		all[1].TTL = time.Hour
		if err := w.table.Grant([]Element{fresh, all[1]}); !errors.Is(err, ErrFull) {
			t.Errorf("%s: a grant too many and a refresh: %v", p.name, err)
		}
		if left := w.left(all[1]); left < 59*time.Minute {
			t.Errorf("%s: a refresh beside a refused grant left %v", p.name, left)
		}
		for _, e := range all {
			if w.left(e) == 0 {
				t.Errorf("%s: %v was lost", p.name, e.Addr)
			}
		}
		if w.left(fresh) != 0 {
			t.Errorf("%s: the refused grant is there", p.name)
		}
		all[2].TTL = 100 * time.Millisecond
		w.grant(all[2])
		eventually(t, "ended", time.Second, func() string {
			if w.left(all[2]) == 0 {
				return "ended"
			}
			return "open"
		})
		w.table.full = time.Time{}
		w.grant(fresh)
	}
}

// TestApplyKeepsGrants: what is still hidden keeps its grants and their times,
// also when the sets must be made anew; what is not hidden any more loses them.
func TestApplyKeepsGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	cfg := guarding(config.Drop, "22/tcp")
	gone, away := service(config.Drop, "25/tcp"), service(config.Drop, "22/tcp")
	away.On = []netip.Addr{away4, away6}
	cfg.Services = append(cfg.Services, gone, away)
	for _, resized := range []bool{false, true} {
		w.apply(cfg, Options{})
		var keep, lose []Element
		for i, p := range pairs {
			k, l := tcp(p.stranger, 22, time.Minute), tcp(p.stranger, 25, time.Minute)
			ok, ol := k, k
			ok.On, ol.On = []netip.Addr{away4, away6}[i], []netip.Addr{awayOther4, awayOther6}[i]
			keep, lose = append(keep, k, ok), append(lose, l, ol)
		}
		w.grant(slices.Concat(keep, lose)...)
		less := guarding(config.Drop, "22/tcp")
		less.Services = append(less.Services, away)
		if resized {
			less.Daemon.MaxGrants = 64
		}
		w.apply(less, Options{})
		for _, e := range keep {
			if left := w.left(e); left < 55*time.Second || left > time.Minute {
				t.Errorf("resized %v: %v on %v has %v left", resized, e.Addr, e.On, left)
			}
		}
		for _, e := range lose {
			if w.left(e) != 0 {
				t.Errorf("resized %v: %v on %v port %d stayed", resized, e.Addr, e.On, e.Port)
			}
		}
		if got := w.grants(); got[0].By != "test" {
			t.Errorf("resized %v: asked for by %q", resized, got[0].By)
		}
	}
	// Too many for the new size: refused, and the old table stays whole.
	tiny := guarding(config.Auto, "22/tcp")
	tiny.Daemon.MaxGrants = 1
	w.grant(tcp(bystander4, 22, time.Minute), tcp(bystander6, 22, time.Minute))
	before := blocks(w.host)
	if err := w.table.Apply(tiny, Options{}); !errors.Is(err, ErrFull) {
		t.Errorf("max_grants below what is open: %v", err)
	}
	if diff := cmp.Diff(before, blocks(w.host)); diff != "" {
		t.Errorf("a failed Apply changed the table:\n%s", diff)
	}
}

// TestHiddenFor: the kernel undoes a first hiding by itself, in every kind of
// set that hides, unless a later Apply makes it stay.
func TestHiddenFor(t *testing.T) {
	t.Parallel()
	for _, confirmed := range []bool{false, true} {
		w, third := newRouter(t)
		greet(t, w.host, "", 22)
		greet(t, third, "", 22)
		cfg := guarding(config.Auto, "22/tcp", "4000-5000/tcp")
		away := service(config.Drop, "22/tcp")
		away.On = []netip.Addr{away4, away6}
		cfg.Services = append(cfg.Services, away, service(config.Drop, "7001/tcp"), service(config.Reject, "7002/tcp"))
		cfg.Knocks = []config.Knock{{Quiet: true, Sequence: []sequence.Step{{Proto: sequence.TCP, Port: 7000, Flags: sequence.Opening}}}}
		w.apply(cfg, Options{HiddenFor: 3 * time.Second})
		end := time.Now().Add(3 * time.Second)
		for i, p := range pairs {
			expect(t, p.name+" hidden", try(w.out, p.stranger, p.host, 22), closed)
			expect(t, p.name+" hidden away", try(w.out, p.stranger, []netip.Addr{away4, away6}[i], 22), silent)
			expect(t, p.name+" quiet", try(w.out, p.stranger, p.host, 7000), silent)
			expect(t, p.name+" hidden drop", try(w.out, p.stranger, p.host, 7001), silent)
		}
		if confirmed {
			w.apply(cfg, Options{})
			if text := w.listing(); strings.Contains(text, "expires") {
				t.Errorf("something still ends:\n%s", text)
			}
			for time.Until(end) > 0 {
				expect(t, "until the end", try(w.out, stranger4, host4, 7000), silent)
			}
		}
		w.table.Close()
		for i, p := range pairs {
			want, wantAway, wantQuiet := open, open, closed
			if confirmed {
				want, wantAway, wantQuiet = closed, silent, silent
			}
			eventually(t, want, 5*time.Second, func() string { return try(w.out, p.stranger, p.host, 22) })
			eventually(t, wantAway, time.Second, func() string { return try(w.out, p.stranger, []netip.Addr{away4, away6}[i], 22) })
			expect(t, p.name+" quiet after", try(w.out, p.stranger, p.host, 7000), wantQuiet)
			expect(t, p.name+" drop after", try(w.out, p.stranger, p.host, 7001), wantQuiet)
		}
	}
}

// TestNoGap: while Apply replaces the whole table again and again, no
// connection attempt gets through.
func TestNoGap(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, p := range pairs {
		greet(t, w.host, p.host.String(), 22)
	}
	a, b := guarding(config.Auto, "22/tcp"), guarding(config.Reject, "22/tcp", "1000-2000/tcp")
	w.apply(a, Options{})
	done, got := make(chan bool), make(chan map[string]int)
	go func() {
		seen := map[string]int{}
		for i := 0; ; i++ {
			select {
			case <-done:
				got <- seen
				return
			default:
				p := pairs[i%2]
				seen[try(w.out, p.stranger, p.host, 22)]++
			}
		}
	}()
	times := 0
	for end := time.Now().Add(time.Second); time.Now().Before(end); times++ {
		w.apply(b, Options{})
		w.apply(a, Options{})
	}
	close(done)
	if seen := <-got; len(seen) != 1 || seen[closed] < 100 || times < 10 {
		t.Errorf("answers while applying %d times: %v, want only %q", 2*times, seen, closed)
	}
}

// TestPromise7OtherRulesStayAsTheyAre is promise 7: whatever we do, what others made stays as it
// is, to the letter.
func TestPromise7OtherRulesStayAsTheyAre(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	foreign := `table inet filter {
		set open4 { type ipv4_addr; elements = { 203.0.113.1 }
		}
		chain known { accept
		}
		chain input { type filter hook input priority filter; policy accept; jump known
		}
	}
	table ip sallyport { chain arrive { type filter hook input priority 0; accept
		}
	}
	table ip6 sallyport { chain arrive { type filter hook input priority 0; accept
		}
	}`
	w.host.Input(foreign, "nft", "-f", "-")
	want := w.host.Run("nft", "list", "ruleset")
	check := func(after string) {
		t.Helper()
		got := w.host.Run("nft", "list", "ruleset")
		if i := strings.Index(got, "table inet sallyport {"); i >= 0 {
			got = got[:i] + got[i+strings.Index(got[i:], "\n}\n")+3:]
		}
		if got != want {
			t.Errorf("after %s others' rules are\n%s\nwant\n%s", after, got, want)
		}
	}
	cfg := guarding(config.Auto, "22/tcp")
	w.apply(cfg, Options{})
	check("Apply")
	w.grant(tcp(stranger4, 22, time.Minute), tcp(stranger6, 22, time.Minute))
	check("Grant")
	w.apply(guarding(config.Drop, "23/tcp"), Options{HiddenFor: time.Minute})
	check("a second Apply")
	for range 2 { // the second finds no table, which is no error
		if err := w.table.Down(); err != nil {
			t.Error(err)
		}
		check("Down")
	}
	if ok, err := w.table.Exists(); ok || err != nil {
		t.Errorf("after Down: %v, %v", ok, err)
	}
}

// TestAdoptsAnotherLayout: chains and sets of our table that are not as wanted,
// say from another version, are replaced.
func TestAdoptsAnotherLayout(t *testing.T) {
	t.Parallel()
	w, fresh := newWorld(t), newWorld(t)
	w.host.Input(`table inet sallyport {
		set old { type inet_service; elements = { 22 }
		}
		set open4 { type ipv4_addr; flags timeout; elements = { 203.0.113.1 timeout 1h }
		}
		chain older { drop
		}
		chain arrive { type filter hook prerouting priority raw; policy accept; tcp dport @old jump older
		}
		chain keep { ip saddr @open4 accept
		}
	}`, "nft", "-f", "-")
	cfg := guarding(config.Auto, "22/tcp")
	w.apply(cfg, Options{})
	fresh.apply(cfg, Options{})
	if got, want := strings.Join(blocks(w.host), "\n"), strings.Join(blocks(fresh.host), "\n"); got != want {
		t.Errorf("adopted:\n%s\nwant:\n%s", got, want)
	}
}

// TestNoPermission: without the capability, Open says which one is missing.
func TestNoPermission(t *testing.T) {
	t.Parallel()
	ns := testnet.New(t)
	var err error
	ns.Do(func() { // this thread ends with the function, and its loss with it
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err = unix.Capset(&header, &none[0]); err == nil {
			_, err = Open()
		}
	})
	if !errors.Is(err, ErrPermission) {
		t.Errorf("Open without CAP_NET_ADMIN: %v", err)
	}
}

// TestKilledHalfWay: an Apply that was killed after any of its batches leaves
// the rules whole, and the next Apply comes to the same end.
func TestKilledHalfWay(t *testing.T) {
	t.Parallel()
	w, fresh := newWorld(t), newWorld(t)
	greet(t, w.host, "", 22)
	cfg := guarding(config.Auto, "22/tcp", "1000-2000/tcp")
	fresh.apply(cfg, Options{})
	want := strings.Join(blocks(fresh.host), "\n")
	l := newLayout(guarding(config.Reject, "22-23/tcp"), Options{})
	l.rename(next)
	plain := newLayout(guarding(config.Reject, "22-24/tcp"), Options{})
	steps := []func() error{
		func() error { return w.table.fill(l) }, func() error { return w.table.enforce(l) }, func() error { return w.table.fill(plain) },
	}
	for n := range len(steps) + 1 {
		w.apply(guarding(config.Auto, "22/tcp"), Options{})
		w.grant(tcp(bystander4, 22, time.Minute), tcp(bystander6, 22, time.Minute))
		for i, step := range steps[:n] {
			if err := step(); err != nil {
				t.Fatalf("step %d: %v", i, err)
			}
		}
		for _, p := range pairs {
			expect(t, p.name+" stranger", try(w.out, p.stranger, p.host, 22), closed)
			expect(t, p.name+" granted", try(w.out, p.bystander, p.host, 22), open)
		}
		w.apply(cfg, Options{})
		if len(w.grants()) != 2 {
			t.Errorf("after %d steps: grants %v", n, w.grants())
		}
		if err := w.table.Revoke(w.grants()); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(want, strings.Join(blocks(w.host), "\n")); diff != "" {
			t.Errorf("after %d steps:\n%s", n, diff)
		}
	}
}

// TestErrors: what the kernel says is translated, and only where it fits.
func TestErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		errno syscall.Errno
		want  error
	}{
		{unix.EPERM, ErrPermission}, {unix.EACCES, ErrPermission}, {unix.EPROTONOSUPPORT, ErrAbsent},
		{unix.EAFNOSUPPORT, ErrAbsent}, {unix.EOPNOTSUPP, ErrAbsent}, {unix.ENFILE, ErrFull},
	} {
		if err := because("x", c.errno); !errors.Is(err, c.want) || !errors.Is(err, c.errno) {
			t.Errorf("%v became %v", c.errno, err)
		}
	}
	for _, e := range []error{ErrPermission, ErrAbsent, ErrFull} {
		if errors.Is(because("x", unix.ENOENT), e) {
			t.Errorf("ENOENT became %v", e)
		}
	}
}
