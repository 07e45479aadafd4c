package conntrack

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// ends are a client's and a server's address of each family.
var ends = [][2]netip.Addr{
	{netip.MustParseAddr("192.0.2.2"), netip.MustParseAddr("192.0.2.1")},
	{netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("2001:db8::1")},
}

// tracked is a server whose kernel tracks connections, and its client.
func tracked(t *testing.T) (server, client *testnet.Namespace) {
	server, client = testnet.New(t), testnet.New(t)
	testnet.Connect(server, client, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.2/24", "2001:db8::2/64"})
	return server, client
}

// track has the kernel begin: it tracks only where a rule asks for it.
func track(server *testnet.Namespace) {
	server.Input("table inet t { chain c { type filter hook input priority 0; ct state invalid drop; }; }", "nft", "-f", "-")
}

func TestFollowTellsOfConnections(t *testing.T) {
	t.Parallel()
	server, client := tracked(t)
	var events <-chan Event
	var l net.Listener
	var err error
	server.Do(func() {
		events, err = Follow(t.Context(), func(f Flow) bool { return f.Port == 22 || f.Port == 53 })
		if err == nil {
			l, err = net.Listen("tcp", ":22")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	track(server)
	server.Run("sysctl", "-qw", "net.netfilter.nf_conntrack_udp_timeout=1", "net.netfilter.nf_conntrack_udp_timeout_stream=1")
	t.Cleanup(func() { l.Close() })
	dial := func(network string, from, to netip.Addr, port uint16) (c net.Conn) {
		client.Do(func() { c, err = net.Dial(network, netip.AddrPortFrom(to, port).String()) })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, e := range ends {
		flow := Flow{Src: e[0], Dst: e[1], Port: 22, Proto: sequence.TCP}
		begun, ended := flow, flow
		begun.Assured, ended.Ended = true, true
		for _, how := range []string{"the client closes first", "the server closes first", "a reset"} {
			c := dial("tcp", e[0], e[1], 22)
			s, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			await(t, how, events, begun)
			first, second := c, s
			switch how {
			case "the server closes first":
				first, second = s, c
			case "a reset":
				c.(*net.TCPConn).SetLinger(0)
			}
			first.Close()
			if how != "a reset" {
				silent(t, how, events) // one end may still be sending
			}
			second.Close()
			await(t, how, events, ended)
			drain(events) // an end is told at each of its steps
		}
		// UDP ends when the kernel forgets it. Whoever does not answer gets no stream.
		c := dial("udp", e[0], e[1], 53)
		fmt.Fprint(c, "ping")
		c.Close()
		time.Sleep(1200 * time.Millisecond)
		server.Run("conntrack", "-L") // the kernel drops what is over when it is looked at, or within a minute
		await(t, "udp", events, Flow{Src: e[0], Dst: e[1], Port: 53, Proto: sequence.UDP, Ended: true})
	}
}

// await waits for news of a flow, and lets others of the same connection pass.
func await(t *testing.T, when string, events <-chan Event, want Flow) {
	t.Helper()
	late := time.After(time.Minute)
	for {
		select {
		case e, ok := <-events:
			if !ok || e.Lost {
				t.Fatalf("%s: the events end: %+v", when, e)
			}
			if e.Flow == want {
				return
			}
			if e.Ended != want.Ended && e.Ended {
				t.Fatalf("%s: told %+v before %+v", when, e.Flow, want)
			}
		case <-late:
			t.Fatalf("%s: not told of %+v", when, want)
		}
	}
}

func drain(events <-chan Event) {
	for {
		select {
		case <-events:
		case <-time.After(300 * time.Millisecond):
			return
		}
	}
}

// silent wants no end of a connection to be told.
func silent(t *testing.T, when string, events <-chan Event) {
	t.Helper()
	for late := time.After(300 * time.Millisecond); ; {
		select {
		case e := <-events:
			if e.Ended {
				t.Fatalf("%s: told %+v", when, e)
			}
		case <-late:
			return
		}
	}
}

func TestFollowSaysWhatItLost(t *testing.T) {
	t.Parallel()
	server, client := tracked(t)
	var events <-chan Event
	var p net.PacketConn
	var err error
	server.Do(func() {
		if p, err = net.ListenPacket("udp", ":53"); err == nil {
			events, err = Follow(t.Context(), func(Flow) bool { return true })
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	go func() {
		var b [1]byte
		for {
			_, from, err := p.ReadFrom(b[:])
			if err != nil {
				return
			}
			p.WriteTo(b[:], from)
		}
	}()
	track(server)
	// Nobody reads the events meanwhile. Each answered datagram is one.
	client.Do(func() {
		for i := range 12000 {
			c, err := net.Dial("udp", netip.AddrPortFrom(ends[i%2][1], 53).String())
			if err != nil {
				t.Error(err)
				return
			}
			c.Write([]byte{1})
			c.SetReadDeadline(time.Now().Add(time.Second))
			c.Read(make([]byte, 1))
			c.Close()
		}
	})
	for late := time.After(time.Minute); ; {
		select {
		case e, ok := <-events:
			if !ok {
				t.Fatal("the events end")
			}
			if e.Lost {
				return
			}
		case <-late:
			t.Fatal("it was not said that events were lost")
		}
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	server, client := tracked(t)
	track(server)
	var l net.Listener
	var err error
	server.Do(func() { l, err = net.Listen("tcp", ":22") })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, e := range ends {
		var c net.Conn
		client.Do(func() { c, err = net.Dial("tcp", netip.AddrPortFrom(e[1], 22).String()) })
		if err != nil {
			t.Fatal(err)
		}
		list := func() (flows []Flow) {
			server.Do(func() { err = List(func(f Flow) { flows = append(flows, f) }) })
			if err != nil {
				t.Fatal(err)
			}
			return flows
		}
		want := Flow{Src: e[0], Dst: e[1], Port: 22, Proto: sequence.TCP, Assured: true}
		if got := list(); !slices.Contains(got, want) {
			t.Errorf("%v: %+v", e, got)
		}
		c.(*net.TCPConn).SetLinger(0)
		c.Close()
		want.Assured, want.Ended = false, true
		if got := list(); !slices.Contains(got, want) {
			t.Errorf("%v, reset: %+v", e, got)
		}
	}
}

func TestFollowEnds(t *testing.T) {
	t.Parallel()
	ctx, stop := context.WithCancel(t.Context())
	var events <-chan Event
	var err error
	testnet.New(t).Do(func() { events, err = Follow(ctx, func(Flow) bool { return true }) })
	if err != nil {
		t.Fatal(err)
	}
	stop()
	select {
	case _, ok := <-events:
		if ok {
			t.Error("an event in an empty namespace")
		}
	case <-time.After(time.Minute):
		t.Error("the events do not end")
	}
}

// attr spells an attribute; nested ones stand behind each other in body.
func attr(kind uint16, body ...byte) []byte {
	b, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: kind, Data: body}})
	if err != nil {
		panic(err)
	}
	return b
}

func join(parts ...[]byte) []byte { return slices.Concat(parts...) }

// update spells an event as ctnetlink does.
func update(family byte, src, dst netip.Addr, proto, state byte, more ...byte) netlink.Message {
	kinds := [2]uint16{nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST}
	if src.Is6() {
		kinds = [2]uint16{nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST}
	}
	tuple := join(
		attr(nl.CTA_TUPLE_IP, join(attr(kinds[0], src.AsSlice()...), attr(kinds[1], dst.AsSlice()...))...),
		attr(nl.CTA_TUPLE_PROTO, join(attr(nl.CTA_PROTO_NUM, proto), attr(nl.CTA_PROTO_SRC_PORT, 1, 0), attr(nl.CTA_PROTO_DST_PORT, 0, 22))...),
	)
	return netlink.Message{
		Header: netlink.Header{Type: created(nl.IPCTNL_MSG_CT_NEW)},
		Data: join([]byte{family, 0, 0, 0}, attr(nl.CTA_TUPLE_ORIG, tuple...), attr(nl.CTA_STATUS, 0, 0, 0, assured),
			attr(nl.CTA_PROTOINFO, attr(nl.CTA_PROTOINFO_TCP, attr(nl.CTA_PROTOINFO_TCP_STATE, state)...)...), more),
	}
}

func TestDecode(t *testing.T) {
	for _, e := range ends {
		family, other := byte(unix.AF_INET), ends[1]
		if e[0].Is6() {
			family, other = unix.AF_INET6, ends[0]
		}
		deletes := func(m netlink.Message) netlink.Message { m.Header.Type = created(deleted); return m }
		flow := func(proto sequence.Proto, assured, ended bool) *Flow {
			return &Flow{e[0], e[1], 22, proto, assured, ended}
		}
		for name, c := range map[string]struct {
			m    netlink.Message
			want *Flow // nil: declined
		}{
			"established":          {update(family, e[0], e[1], 6, settled), flow(sequence.TCP, true, false)},
			"one end closed":       {update(family, e[0], e[1], 6, 4), flow(sequence.TCP, false, false)},
			"both ends closed":     {update(family, e[0], e[1], 6, lastAck), flow(sequence.TCP, false, true)},
			"over":                 {update(family, e[0], e[1], 6, timeWait), flow(sequence.TCP, false, true)},
			"reset":                {update(family, e[0], e[1], 6, closed), flow(sequence.TCP, false, true)},
			"forgotten half way":   {deletes(update(family, e[0], e[1], 6, 4)), flow(sequence.TCP, false, true)},
			"forgotten when over":  {deletes(update(family, e[0], e[1], 6, timeWait)), nil},
			"udp":                  {update(family, e[0], e[1], 17, 0), flow(sequence.UDP, true, false)},
			"udp forgotten":        {deletes(update(family, e[0], e[1], 17, 0)), flow(sequence.UDP, true, true)},
			"icmp":                 {update(family, e[0], e[1], 1, 0), nil},
			"another family":       {update(family^8, e[0], e[1], 6, 3), nil},
			"ends of two families": {update(family, e[0], other[1], 6, 3), nil},
			"4-in-6":               {update(unix.AF_INET6, netip.AddrFrom16(ends[0][0].As16()), ends[1][1], 6, 3), nil},
			"a second, shorter address": {update(family, e[0], e[1], 6, 3,
				attr(nl.CTA_TUPLE_ORIG, attr(nl.CTA_TUPLE_IP, attr(nl.CTA_IP_V4_SRC, 1, 2, 3)...)...)...), nil},
			"nothing": {netlink.Message{Header: netlink.Header{Type: created(0)}}, nil},
		} {
			got, ok := decode(c.m)
			if ok != (c.want != nil) || ok && got != *c.want {
				t.Errorf("%v, %s: %+v, %v", e[0], name, got, ok)
			}
		}
		whole := update(family, e[0], e[1], 6, settled)
		for n := range whole.Data {
			m := netlink.Message{Header: whole.Header, Data: whole.Data[:n]}
			if got, ok := decode(m); ok && (got.Src != e[0] || got.Dst != e[1] || got.Port != 22) {
				t.Errorf("%v: %d bytes of %d: %+v", e[0], n, len(whole.Data), got)
			}
		}
	}
}

// FuzzDecode: whatever is accepted has both ends of one family.
func FuzzDecode(f *testing.F) {
	for i, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		f.Add(update(family, ends[i][0], ends[i][1], 6, settled).Data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, ok := decode(netlink.Message{Header: netlink.Header{Type: created(0)}, Data: b})
		if ok && (got.Src.Is4() != got.Dst.Is4() || got.Port == 0 || got.Src.Is4In6()) {
			t.Errorf("%x: %+v", b, got)
		}
	})
}
