//go:build linux

package integration_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/internal/testnet"
)

// spadHouse is a key house with two services, whose client has two addresses of
// each family, and the daemon's events.
type spadHouse struct {
	*keyHouse
	clientWire string
	events     chan control.Event
	resend     func() // delivers the last copy once more
}

// spadPath is a path beside which the client has another address of the same
// family, and one of the other family.
type spadPath struct {
	path
	other path
	cross netip.Addr
}

var spadPaths = []spadPath{
	{paths[0], path{"IPv4, other", netip.MustParseAddr("192.0.2.3"), paths[0].server}, paths[1].client},
	{paths[1], path{"IPv6, other", netip.MustParseAddr("2001:db8::3"), paths[1].server}, paths[0].client},
}

func spadNewHouse(t *testing.T, lines ...string) *spadHouse {
	t.Helper()
	h := &spadHouse{keyHouse: newKeyHouse(t)}
	h.put("authorized_keys", strings.Join(lines, ""))
	h.listen(80)
	var links []net.Interface
	var err error
	h.client.Do(func() { links, err = net.Interfaces() })
	if err != nil || len(links) != 2 {
		t.Fatal(links, err)
	}
	h.clientWire = links[1].Name
	h.client.Address(h.clientWire, "192.0.2.3/24", "2001:db8::3/64")
	return h
}

// text is a config with these knocks.
func (h *spadHouse) text(daemon string, knocks ...string) string {
	return `[daemon]
state_dir = "` + h.path("state") + `"
control = "DIR/control.sock"
` + daemon + `
[service.ssh]
ports = ["22/tcp"]
open_for = "30s"
max_open_for = "1h"
[service.web]
ports = ["80/tcp"]
open_for = "30s"
max_open_for = "1h"
` + strings.Join(knocks, "")
}

// door is one knock of the config, with the house's key.
func (h *spadHouse) door(lines string) string { return h.doorAt("keys", spaPort, "server.key", lines) }

func (h *spadHouse) doorAt(name string, port uint16, key, lines string) string {
	return fmt.Sprintf("[knock.%s]\ntype = \"spa\"\nopens = [\"ssh\", \"web\"]\nport = %d\nkey = %q\nauthorized_keys = %q\n%s\n",
		name, port, h.path(key), h.path("authorized_keys"), lines)
}

// run starts the daemon and listens to its events.
func (h *spadHouse) run(config string) {
	h.t.Helper()
	h.serve(config)
	h.listenToEvents()
}

// listenToEvents is done when the daemon knows that it is listened to.
func (h *spadHouse) listenToEvents() {
	h.t.Helper()
	c := h.connect()
	h.t.Cleanup(func() { c.Close() })
	io.WriteString(c, `{"do":"events"}`+"\n")
	events := make(chan control.Event, 4096)
	h.events = events
	go func() {
		defer close(events)
		for lines := bufio.NewScanner(c); lines.Scan(); {
			var a control.Answer
			if json.Unmarshal(lines.Bytes(), &a) == nil && a.Event != nil {
				events <- *a.Event
			}
		}
	}()
	h.counters() // asked behind the other, so answered behind it
}

// spadPatience is how long a test waits before it sends a copy again. The queue
// behind a wire is shared by all namespaces of the machine (net.core.netdev_max_backlog),
// so another test's flood can lose a packet of this one's.
const spadPatience = 5 * time.Second

// outcome is the next thing that became of a request by this user.
func (h *spadHouse) outcome(what string, u sallyport.Signer) control.Event {
	h.t.Helper()
	mine := spadFingerprint(h.t, u)
	late := time.After(soon)
	for {
		select {
		case e, ok := <-h.events:
			if !ok {
				h.t.Fatalf("%s: the daemon is gone:\n%s", what, h.Log())
			}
			if e.Key == mine && slices.Contains([]string{control.EventOpen, control.EventClosed, control.EventRefused}, e.What) {
				return e
			}
		case <-time.After(spadPatience):
			h.resend()
		case <-late:
			h.t.Fatalf("%s: nothing became of the request\n%s", what, h.Log())
		}
	}
}

func spadFingerprint(t *testing.T, u sallyport.Signer) string {
	t.Helper()
	key, err := spa.ParsePublicKey(u.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	return key.Fingerprint().String()
}

// request is what a user asks of the first knock unless the test changes it.
func (h *spadHouse) request(u sallyport.Signer) *sallyport.Request {
	return &sallyport.Request{Server: h.keyHouse.server.Address(), Signer: u, Port: spaPort}
}

// seal makes a datagram for sending along a path.
func (h *spadHouse) seal(p path, r *sallyport.Request) []byte {
	h.t.Helper()
	b, err := r.Seal(p.client)
	if err != nil {
		h.t.Fatal(err)
	}
	return b
}

// deliver sends one copy.
func (h *spadHouse) deliver(p path, over sallyport.Transport, port uint16, datagram []byte) {
	h.t.Helper()
	protos := []sallyport.Proto{sallyport.OverUDP: sallyport.UDP, sallyport.OverICMP: sallyport.ICMP, sallyport.OverTCP: sallyport.TCP}
	packet := sallyport.Packet{Proto: protos[over], Payload: datagram}
	if over != sallyport.OverICMP {
		packet.Port = port
	}
	plan := &sallyport.Plan{Local: p.client, Remote: p.server, Packets: []sallyport.Packet{packet}}
	h.resend = func() { h.send(plan) }
	h.resend()
}

func (h *spadHouse) send(plan *sallyport.Plan) {
	h.t.Helper()
	var err error
	h.client.Do(func() { err = plan.Send(context.Background()) })
	if err != nil {
		h.t.Fatal(err)
	}
}

// asks seals, sends and gives what became of it.
func (h *spadHouse) asks(p path, u user, change func(*sallyport.Request)) control.Event {
	h.t.Helper()
	r := h.request(u)
	r.Services = []string{"ssh"}
	if change != nil {
		change(r)
	}
	h.deliver(p, r.Over, r.Port, h.seal(p, r))
	return h.outcome(p.name, u)
}

// enters asks for ssh and wants to be let in.
func (h *spadHouse) enters(p path, u user) {
	h.t.Helper()
	if e := h.asks(p, u, nil); e.What != control.EventOpen {
		h.t.Fatalf("%s: %s: %s\n%s", p.name, e.What, e.Why, h.Log())
	}
	h.is(true, 22, p)
}

// isRefused asks for ssh and wants to hear why not.
func (h *spadHouse) isRefused(p path, u user, why string) {
	h.t.Helper()
	if e := h.asks(p, u, nil); e.What != control.EventRefused || e.Why != why {
		h.t.Errorf("%s: %s: %q, want %q", p.name, e.What, e.Why, why)
	}
	h.is(false, 22, p)
}

// leaves ends all that users opened.
func (h *spadHouse) leaves(users ...user) {
	h.t.Helper()
	for _, u := range users {
		h.Tool("close", "--key", u.fingerprint(h.t))
	}
}

// inside lists who may reach what.
func (h *spadHouse) inside() []string {
	h.t.Helper()
	var list []string
	for _, g := range h.grants() {
		list = append(list, g.Addr.String()+" "+g.Service)
	}
	slices.Sort(list)
	return list
}

// spadCase is a request by a key of its own and what it is good for.
type spadCase struct {
	name    string
	options string // of the key's line
	ask     func(r *sallyport.Request, p spadPath)
	another bool          // the other address delivers it
	want    string        // grants: own, other or cross, and a service
	long    time.Duration // 0: open_for
	why     string        // of a refusal
}

var spadCases = []spadCase{
	{name: "everything", want: "own ssh, own web"},
	{name: "one by name", ask: spadNames("web"), want: "own web"},
	{name: "both by name", ask: spadNames("web", "ssh"), want: "own ssh, own web"},
	{name: "an unknown name", ask: spadNames("ssh", "db"), why: "the knock or the key does not open that service"},
	{name: "a time", ask: spadFor(5 * time.Minute), want: "own ssh", long: 5 * time.Minute},
	{name: "more than the service allows", ask: spadFor(5 * time.Hour), want: "own ssh", long: time.Hour},

	{name: "observed", ask: spadObserved, want: "own ssh, own web"},
	{name: "observed, delivered by another", ask: spadObserved, another: true, want: "other ssh, other web"},
	{name: "own, delivered by another", another: true, why: "it comes from another address than its sender's"},
	{name: "stated: another", ask: spadStates("other"), want: "other ssh, other web"},
	{name: "stated: its own, delivered by another", ask: spadStates("own"), another: true, want: "own ssh, own web"},
	{name: "stated: both families", ask: spadStates("own", "cross"), want: "cross ssh, cross web, own ssh, own web"},

	{name: "a key for ssh", options: `services="ssh"`, want: "own ssh"},
	{name: "a key for ssh asks for more", options: `services="ssh"`, ask: spadNames("ssh", "web"), why: "the knock or the key does not open that service"},
	{name: "a key for a short time", options: `max-time="10s"`, ask: spadFor(time.Minute), want: "own ssh", long: 10 * time.Second},
	{name: "a key for a short time, no time asked for", options: `max-time="10s"`, want: "own ssh, own web", long: 10 * time.Second},
	{name: "from here", options: `from="192.0.2.1,2001:db8::1"`, want: "own ssh, own web"},
	{name: "from elsewhere", options: `from="198.51.100.0/24,2001:db8:f::/48"`, why: "the key may not be used from there"},
	{name: "from all but here", options: `from="!192.0.2.1,!2001:db8::1,0.0.0.0/0,::/0"`, why: "the key may not be used from there"},
	{name: "from here, for elsewhere", options: `from="192.0.2.1,2001:db8::1"`, ask: spadStates("other"), why: "the key may not be used from there"},
	{name: "from elsewhere, for here", options: `from="192.0.2.1,2001:db8::1"`, ask: spadStates("own"), another: true, why: "the key may not be used from there"},
	{name: "may state nothing, states its own", options: "no-address", want: "own ssh, own web"},
	{name: "may state nothing, states another", options: "no-address", ask: spadStates("other"), why: "it may not state another address than its own"},
	{name: "expired", options: `expiry-time="20200101Z"`, why: "the key is not valid at this time"},
	{name: "not yet", options: `not-before="29990101Z"`, why: "the key is not valid at this time"},
	{name: "valid now", options: `not-before="20200101Z",expiry-time="29990101Z"`, want: "own ssh, own web"},
	{name: "extends nothing", ask: spadActs(sallyport.Extend), why: "nothing to extend"},
}

func spadNames(names ...string) func(*sallyport.Request, spadPath) {
	return func(r *sallyport.Request, _ spadPath) { r.Services = names }
}

func spadFor(d time.Duration) func(*sallyport.Request, spadPath) {
	return func(r *sallyport.Request, _ spadPath) { r.For, r.Services = d, []string{"ssh"} }
}

func spadActs(a sallyport.Action) func(*sallyport.Request, spadPath) {
	return func(r *sallyport.Request, _ spadPath) { r.Action, r.Services = a, []string{"ssh"} }
}

func spadObserved(r *sallyport.Request, _ spadPath) { r.Observed = true }

func spadStates(words ...string) func(*sallyport.Request, spadPath) {
	return func(r *sallyport.Request, p spadPath) {
		for _, w := range words {
			r.Addresses = append(r.Addresses, p.addr(w))
		}
	}
}

func (p spadPath) addr(word string) netip.Addr {
	return map[string]netip.Addr{"own": p.client, "other": p.other.client, "cross": p.cross}[word]
}

// wanted spells the words of a case as inside does.
func (p spadPath) wanted(words string) []string {
	var list []string
	for w := range strings.SplitSeq(words, ", ") {
		if whom, service, ok := strings.Cut(w, " "); ok {
			list = append(list, p.addr(whom).String()+" "+service)
		}
	}
	slices.Sort(list)
	return list
}

func TestSPARequests(t *testing.T) {
	t.Parallel()
	var lines []string
	for i, c := range spadCases {
		lines = append(lines, strings.TrimSpace(c.options+" "+newUser(i).line(fmt.Sprint("case", i)))+"\n")
	}
	h := spadNewHouse(t, lines...)
	h.run(h.text("", h.door("")))
	for i, c := range spadCases {
		for _, p := range spadPaths {
			h.try(c, newUser(i), p)
			h.leaves(newUser(i))
		}
	}
}

// try makes a case's request and looks at what it opened.
func (h *spadHouse) try(c spadCase, u user, p spadPath) {
	h.t.Helper()
	r := h.request(u)
	if c.ask != nil {
		c.ask(r, p)
	}
	by, name, wanted := p.path, c.name+", "+p.name, p.wanted(c.want)
	if c.another {
		by = p.other
	}
	h.deliver(by, r.Over, r.Port, h.seal(p.path, r))
	for range max(1, len(wanted)) {
		if e := h.outcome(name, u); (e.What == control.EventOpen) != (c.why == "") || e.Why != c.why {
			h.t.Errorf("%s: %s %q, want %q", name, e.What, e.Why, c.why)
		}
	}
	if got := h.inside(); !slices.Equal(got, wanted) {
		h.t.Errorf("%s: inside are %q, want %q", name, got, wanted)
	}
	h.lasts(name, c.long)
	h.is(slices.Contains(wanted, p.client.String()+" ssh"), 22, p.path)
	h.is(slices.Contains(wanted, p.other.client.String()+" web"), 80, p.other)
}

// lasts checks how long the grants are good; 0 is open_for.
func (h *spadHouse) lasts(name string, long time.Duration) {
	h.t.Helper()
	if long == 0 {
		long = 30 * time.Second
	}
	for _, g := range h.grants() {
		if left := time.Until(g.Until); left > long || left < long-5*time.Second {
			h.t.Errorf("%s: %s is open for another %v, want %v", name, g.Service, left, long)
		}
	}
}

// Each policy for addresses against each way to name one.
func TestSPAAddressPolicies(t *testing.T) {
	t.Parallel()
	const (
		elsewhere = "it comes from another address than its sender's"
		another   = "it may not state another address than its own"
		none      = "it must state an address"
	)
	asks := []spadCase{
		{name: "observed", ask: spadObserved, want: "own ssh, own web"},
		{name: "own", want: "own ssh, own web"},
		{name: "own, delivered by another", another: true},
		{name: "states another", ask: spadStates("other"), want: "other ssh, other web"},
		{name: "states both families", ask: spadStates("own", "cross"), want: "cross ssh, cross web, own ssh, own web"},
		{name: "states one, delivered by another", ask: spadStates("own"), another: true, want: "own ssh, own web"},
	}
	policies := []struct {
		name string
		why  [6]string // of each of the requests above; "": granted
	}{
		{"either", [6]string{"", "", elsewhere, "", "", ""}},
		{"observed", [6]string{"", "", elsewhere, another, another, another}},
		{"stated", [6]string{none, "", elsewhere, "", "", ""}},
		{"both", [6]string{none, "", elsewhere, another, another, another}},
	}
	u := newUser(1)
	h := spadNewHouse(t, u.line("ann"))
	var doors []string
	var servers []*spa.ServerKey
	for i, policy := range policies {
		key, err := spa.NewServerKey(spa.Classic)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, key)
		h.put(policy.name+".key", spa.FormatKeyFile([]spa.FileKey{{Key: key}}))
		doors = append(doors, h.doorAt(policy.name, spaPort+uint16(i), policy.name+".key", `address = "`+policy.name+`"`))
	}
	h.run(h.text("", doors...))
	for i, policy := range policies {
		for j, c := range asks {
			if c.why = policy.why[j]; c.why != "" {
				c.want = ""
			}
			ask := c.ask
			c.name = policy.name + ": " + c.name
			c.ask = func(r *sallyport.Request, p spadPath) {
				r.Server, r.Port = servers[i].Address(), spaPort+uint16(i)
				if ask != nil {
					ask(r, p)
				}
			}
			for _, p := range spadPaths {
				h.try(c, u, p)
				h.leaves(u)
			}
		}
	}
}

// A close and an extend reach only what the same key opened.
func TestSPAActionsAreTheKeysOwn(t *testing.T) {
	t.Parallel()
	ann, bob := newUser(1), newUser(2)
	h := spadNewHouse(t, ann.line("ann"), bob.line("bob"))
	h.run(h.text("", h.door("")))
	act := func(p spadPath, u user, a sallyport.Action, long time.Duration, want string, names ...string) {
		t.Helper()
		e := h.asks(p.path, u, func(r *sallyport.Request) { r.Action, r.For, r.Services = a, long, names })
		if e.What+e.Why != want {
			t.Errorf("%s: %v: %s %s, want %s", p.name, a, e.What, e.Why, want)
		}
	}
	for _, p := range spadPaths {
		is := func(long time.Duration, words string) {
			t.Helper()
			if got := h.inside(); !slices.Equal(got, p.wanted(words)) {
				t.Errorf("%s: inside are %q, want %q", p.name, got, words)
			}
			h.lasts(p.name, long)
		}
		act(p, ann, sallyport.Open, 0, "open", "ssh")
		act(p, ann, sallyport.Open, 0, "open", "web")
		act(p, bob, sallyport.Extend, time.Minute, "refusednothing to extend", "ssh")
		act(p, bob, sallyport.Close, 0, "closednothing of this knock's own was open", "ssh")
		is(0, "own ssh, own web")
		act(p, ann, sallyport.Close, 0, "closed", "web")
		is(0, "own ssh")
		h.is(false, 80, p.path)
		act(p, ann, sallyport.Extend, 10*time.Minute, "open", "ssh")
		is(10*time.Minute, "own ssh")
		// What bob asked for as well stays until his time, and no longer.
		act(p, bob, sallyport.Open, 20*time.Second, "open", "ssh")
		is(10*time.Minute, "own ssh")
		act(p, ann, sallyport.Close, 0, "closed", "ssh")
		is(20*time.Second, "own ssh")
		act(p, bob, sallyport.Close, 0, "closed", "ssh")
		is(0, "")
		h.is(false, 22, p.path)
		act(p, ann, sallyport.Extend, time.Minute, "refusednothing to extend", "ssh")
		is(0, "")
	}
}

// spadFirewall is a host's own that lets no knock through, closed ports or not.
const spadFirewall = `table inet host {
	chain input {
		type filter hook input priority 0; policy drop;
		ct state established,related accept
		tcp dport { 22, 80 } accept
		icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
	}
}
`

var spadTransports = []sallyport.Transport{sallyport.OverUDP, sallyport.OverICMP, sallyport.OverTCP}

// A datagram of each size comes in over each transport, to closed ports and past
// a firewall that drops it behind us; three copies are one request.
func TestSPATransports(t *testing.T) {
	t.Parallel()
	ann, old := newUser(1), spadRSA(t)
	h := spadNewHouse(t, ann.line("ann"), "ssh-rsa "+base64.StdEncoding.EncodeToString(old.PublicKey())+" old\n")
	h.house.server.Input(spadFirewall, "nft", "-f", "-")
	quantum, err := spa.NewServerKey(spa.PostQuantum)
	if err != nil {
		t.Fatal(err)
	}
	h.put("quantum.key", spa.FormatKeyFile([]spa.FileKey{{Key: quantum}}))
	const all = `transports = ["udp", "icmp", "tcp"]`
	h.run(h.text("", h.door(all), h.doorAt("quantum", spaPort+1, "quantum.key", all)))
	for _, p := range spadPaths {
		for _, over := range spadTransports {
			for size, r := range map[int]*sallyport.Request{
				spa.SmallSize: h.request(ann), spa.LargeSize: h.request(old),
				spa.PostQuantumSize: {Server: quantum.Address(), Signer: ann, Port: spaPort + 1},
			} {
				r.Over, r.Services = over, []string{"ssh"}
				h.threeCopies(fmt.Sprintf("%s over %v, %d bytes", p.name, over, size), p.path, r, size)
			}
		}
	}
}

// spadRSA is a user with an RSA key in a file, as somebody has had for years.
func spadRSA(t *testing.T) sallyport.Signer {
	t.Helper()
	file := filepath.Join(t.TempDir(), "id_rsa")
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "rsa", "-b", "3072", "-N", "", "-f", file).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := sallyport.LoadKey(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// threeCopies sends a whole plan and looks at what the daemon makes of it.
func (h *spadHouse) threeCopies(name string, p path, r *sallyport.Request, size int) {
	h.t.Helper()
	before := h.counters()
	plan, err := r.Plan(p.client, p.server)
	if err != nil {
		h.t.Fatal(err)
	}
	if n := len(plan.Packets[0].Payload); n != size || len(plan.Packets) != 3 {
		h.t.Fatalf("%s: %d packets of %d bytes", name, len(plan.Packets), n)
	}
	h.resend = func() {}
	h.send(plan)
	if e := h.outcome(name, r.Signer); e.What != control.EventOpen {
		h.t.Errorf("%s: %s %s", name, e.What, e.Why)
	}
	h.is(true, 22, p)
	h.eventually(name+": all copies are counted", func() bool { return h.counters()["spa_repeat"] >= before["spa_repeat"]+2 })
	if now := h.counters(); now["spa_made"] != before["spa_made"]+1 || now["spa_repeat"] != before["spa_repeat"]+2 {
		h.t.Errorf("%s: three copies made %d requests and %d repeats", name,
			now["spa_made"]-before["spa_made"], now["spa_repeat"]-before["spa_repeat"])
	}
	h.must("close", p.client.String())
	h.is(false, 22, p)
}

// What the config does not name as a transport carries nothing.
func TestSPAOtherTransportsAreNotHeard(t *testing.T) {
	t.Parallel()
	ann, bob := newUser(1), newUser(2)
	h := spadNewHouse(t, ann.line("ann"), bob.line("bob"))
	for i, only := range spadTransports {
		config := h.text(fmt.Sprintf("max_attempts = %d", 1000+i), h.door(fmt.Sprintf("transports = [%q]", only)))
		if i == 0 {
			h.run(config)
		} else {
			h.reload(config, readAgain)
		}
		for _, p := range spadPaths {
			for _, over := range spadTransports {
				if over != only {
					h.deliver(p.path, over, spaPort, h.seal(p.path, h.request(ann)))
				}
			}
			// What comes behind by the right way was read behind.
			if e := h.asks(p.path, bob, func(r *sallyport.Request) { r.Over = only }); e.What != control.EventOpen {
				t.Errorf("%s, only over %v: %s %s", p.name, only, e.What, e.Why)
			}
			if got, want := h.inside(), []string{p.client.String() + " ssh"}; !slices.Equal(got, want) {
				t.Errorf("%s, only over %v: inside are %q", p.name, only, got)
			}
			h.leaves(bob)
		}
	}
}

// quiet drops the knock's own ports, and the knock is heard all the same.
func TestSPAQuiet(t *testing.T) {
	t.Parallel()
	ann := newUser(1)
	h := spadNewHouse(t, ann.line("ann"))
	for _, quiet := range []bool{false, true} {
		config := h.text("", h.door(fmt.Sprintf("transports = [\"udp\", \"tcp\"]\nquiet = %v", quiet)))
		if quiet {
			h.reload(config, readAgain)
		} else {
			h.run(config)
		}
		for _, p := range spadPaths {
			if _, err := h.dial(p.path, spaPort); errors.Is(err, syscall.ECONNREFUSED) == quiet {
				t.Errorf("quiet = %v: %s: a stranger's connection: %v", quiet, p.name, err)
			}
			if err := h.unreachable(p.path, spaPort); errors.Is(err, syscall.ECONNREFUSED) == quiet {
				t.Errorf("quiet = %v: %s: a stranger's datagram: %v", quiet, p.name, err)
			}
			h.enters(p.path, ann)
			h.leaves(ann)
		}
	}
}

// unreachable is what a datagram to the port is answered with.
func (h *spadHouse) unreachable(p path, port uint16) error {
	h.t.Helper()
	var c net.Conn
	var err error
	h.client.Do(func() { c, err = net.Dial("udp", netip.AddrPortFrom(p.server, port).String()) })
	if err != nil {
		h.t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	c.Write([]byte("who is there"))
	_, err = c.Read(make([]byte, 1))
	return err
}

// On a machine that allows no packet sockets at all.
func TestSPAFromASocketWithoutCapNetRaw(t *testing.T) {
	t.Parallel()
	const capNetRaw = 13 // capability.h
	ann, bob := newUser(1), newUser(2)
	h := spadNewHouse(t, ann.line("ann"), bob.line("bob"))
	bin := wrapper(t, "setpriv --bounding-set -net_raw --inh-caps -net_raw %s")
	h.Daemon = h.house.server.Serve(bin, h.text(`source = "socket"`, h.door("")))
	h.listenToEvents()
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.Cmd.Process.Pid))
	_, rest, _ := strings.Cut(string(status), "CapPrm:\t")
	held, err := strconv.ParseUint(rest[:16], 16, 64)
	if err != nil || held&(1<<capNetRaw) != 0 {
		t.Fatalf("the daemon has %x, %v", held, err)
	}
	for _, p := range spadPaths {
		h.enters(p.path, ann)
		h.leaves(ann)
		datagram := h.seal(p.path, h.request(ann))
		h.deliver(p.path, sallyport.OverICMP, spaPort, datagram)
		h.deliver(p.path, sallyport.OverTCP, spaPort, datagram)
		h.enters(p.path, bob)
		if got := h.inside(); len(got) != 1 {
			t.Errorf("%s: inside are %q", p.name, got)
		}
		h.leaves(bob)
	}
}

// The program itself on both sides.
func TestSPAKnockCommand(t *testing.T) {
	t.Parallel()
	h := spadNewHouse(t)
	// With two addresses the system would choose, and the test look at the other.
	h.client.Run("ip", "addr", "del", "2001:db8::3/64", "dev", h.clientWire)
	home := t.TempDir()
	key := filepath.Join(home, "id_ed25519")
	h.client.Run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	h.put("authorized_keys", string(public))
	h.serve(h.text("", h.door(`transports = ["udp", "icmp", "tcp"]`)))
	tool := func(args ...string) string {
		t.Helper()
		return h.client.Run("env", append([]string{"HOME=" + home, "XDG_CONFIG_HOME=" + home, testnet.Binary(t)}, args...)...)
	}
	address := strings.TrimSpace(tool("keygen", "--address", h.path("server.key")))
	for _, p := range spadPaths {
		for _, over := range spadTransports {
			name := strings.ToLower(p.name) + "-" + over.String()
			tool("add", name, address, "--host", p.server.String(), "--port", fmt.Sprint(spaPort), "--over", over.String(),
				"--key", key, "--service", "ssh=22", "--service", "web=80")
			tool("knock", name, "ssh", "--wait")
			h.is(true, 22, p.path)
			tool("knock", name, "ssh", "web", "--for", "10m", "--extend")
			tool("knock", name, "web", "--wait")
			h.is(true, 80, p.path)
			tool("knock", name, "--close")
			h.await(false, 22, p.path)
			h.await(false, 80, p.path)
		}
	}
}

// spadAtOnce is what an administrator who removes a line may expect.
const spadAtOnce = time.Second

// untilHeard polls with requests of a user until one is granted, or until the
// user is a stranger about whose requests nothing is said, and checks that this
// took no longer than at once.
func (h *spadHouse) untilHeard(want bool, what string, p path, u user) {
	h.t.Helper()
	for began := time.Now(); ; {
		sent := time.Now()
		if h.hears(p, u, h.keyHouse.server.Address(), spadMoment) == want {
			if took := sent.Sub(began); took > spadAtOnce {
				h.t.Errorf("%s, %s: only after %v", what, p.name, took)
			}
			return
		}
		if time.Since(began) > soon {
			h.t.Fatalf("%s, %s: it never came\n%s", what, p.name, h.Log())
		}
	}
}

// spadMoment is how long a test waits for an outcome that is not to come.
const spadMoment = 200 * time.Millisecond

// hears sends one request and tells whether it was granted within the limit, and
// ends the grant.
func (h *spadHouse) hears(p path, u user, a *sallyport.Address, limit time.Duration) bool {
	h.t.Helper()
	r := h.request(u)
	r.Server, r.Services = a, []string{"web"}
	h.deliver(p, r.Over, r.Port, h.seal(p, r))
	e, said := h.outcomeWithin(u, limit)
	h.leaves(u)
	return said && e.What == control.EventOpen
}

// outcomeWithin is outcome that may be none.
func (h *spadHouse) outcomeWithin(u user, limit time.Duration) (control.Event, bool) {
	late := time.After(limit)
	for {
		select {
		case e := <-h.events:
			if e.Key == u.fingerprint(h.t) && (e.What == control.EventOpen || e.What == control.EventRefused) {
				return e, true
			}
		case <-late:
			return control.Event{}, false
		}
	}
}

func TestSPAAuthorizedKeysTakeEffectAtOnce(t *testing.T) {
	t.Parallel()
	ann, bob, eve := newUser(1), newUser(2), newUser(3)
	h := spadNewHouse(t, ann.line("ann"), eve.line("eve"))
	h.run(h.text("", h.door("")))
	for _, p := range spadPaths {
		h.enters(p.path, eve)
		h.leaves(eve)

		h.put("authorized_keys", ann.line("ann")) // by rename
		h.untilHeard(false, "removed", p.path, eve)
		contains(t, h.Await("the key is not in authorized_keys"), eve.fingerprint(t))
		h.enters(p.path, ann)
		h.leaves(ann)

		// In place, as a shell's >> does.
		f, err := os.OpenFile(h.path("authorized_keys"), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteString("services=\"ssh broken\n" + bob.line("bob"))
		f.Close()
		h.untilHeard(true, "added behind a broken line", p.path, bob)
		h.enters(p.path, ann)
		h.leaves(ann)
		line := h.Await("a line of authorized_keys gives no key")
		contains(t, line, "line=2")

		os.Remove(h.path("authorized_keys"))
		h.untilHeard(false, "without the file", p.path, ann)
		contains(t, h.Await("nobody can knock by this knock until its authorized_keys file is back"), h.path("authorized_keys"))
		h.put("authorized_keys", ann.line("ann")+eve.line("eve"))
		h.untilHeard(true, "with the file again", p.path, ann)
	}
}

func TestSPARotation(t *testing.T) {
	t.Parallel()
	ann := newUser(1)
	h := spadNewHouse(t, ann.line("ann"))
	h.run(h.text("", h.door("")))
	rotate := func(overlap string) *sallyport.Address {
		t.Helper()
		var address *sallyport.Address
		for line := range strings.Lines(h.client.Run(testnet.Binary(t), "keygen", "--out", h.path("server.key"), "--rotate", "--overlap", overlap)) {
			if a, err := sallyport.ParseAddress(strings.TrimSpace(line)); err == nil {
				address = a
			}
		}
		if address == nil {
			t.Fatal("keygen printed no address")
		}
		return address
	}
	works := func(p path, a *sallyport.Address) bool { t.Helper(); return h.hears(p, ann, a, soon) }
	ended := func(p path, a *sallyport.Address) bool { t.Helper(); return !h.hears(p, ann, a, spadMoment) }
	first := h.keyHouse.server.Address()
	second := rotate("1h")
	h.Await("server_keys=2")
	for _, p := range spadPaths {
		if !works(p.path, first) || !works(p.path, second) {
			t.Errorf("%s: in the overlap an address does not work", p.name)
		}
	}
	const overlap = 4 * time.Second
	began := time.Now()
	third := rotate(overlap.String())
	h.Await("server_keys=3")
	for _, p := range spadPaths {
		if !works(p.path, third) {
			t.Errorf("%s: the newest address does not work", p.name)
		}
		for i, a := range []*sallyport.Address{first, second} {
			if sent := time.Since(began); sent < overlap-time.Second && !works(p.path, a) {
				t.Errorf("%s: address %d does not work before its time", p.name, i+1)
			}
		}
	}
	// No word to the daemon: it looks at the time itself.
	time.Sleep(time.Until(began.Add(overlap + 500*time.Millisecond)))
	for _, p := range spadPaths {
		if !ended(p.path, first) || !ended(p.path, second) {
			t.Errorf("%s: an old address works past its time", p.name)
		}
		if !works(p.path, third) {
			t.Errorf("%s: the newest address does not work any more", p.name)
		}
	}
	fourth := rotate("0s")
	h.eventually("the last key is there", func() bool { return strings.Count(h.Log(), "the keys changed") == 3 })
	for _, p := range spadPaths {
		if !ended(p.path, third) || !works(p.path, fourth) {
			t.Errorf("%s: with no overlap the old address works, or the new one does not", p.name)
		}
	}
	stranger, err := spa.NewServerKey(spa.Classic)
	if err != nil {
		t.Fatal(err)
	}
	if !ended(paths[0], stranger.Address()) {
		t.Error("an address of another server works")
	}
}

// What a lost key opened is ended, and nothing else is.
func TestSPACloseByKeyLeavesOthersAlone(t *testing.T) {
	t.Parallel()
	lost, ann := newUser(1), newUser(2)
	h := spadNewHouse(t, lost.line("lost"), ann.line("ann"))
	h.run(h.text("", h.door("")))
	var theirs, others []call
	for _, p := range spadPaths {
		h.enters(p.path, lost)
		theirs = append(theirs, h.call(p.path))
		h.enters(p.other, ann)
		others = append(others, h.call(p.other))
	}
	h.must("close", "--key", lost.fingerprint(t))
	h.lives("close --key", slices.Concat(theirs, others)...)
	for _, p := range spadPaths {
		h.is(false, 22, p.path)
		h.is(true, 22, p.other)
	}
	h.must("close", "--key", lost.fingerprint(t), "--cut")
	h.dead("close --key --cut", theirs...)
	h.lives("another key's close --key --cut", others...)
	for _, g := range h.grants() {
		if g.By != "keys "+ann.fingerprint(t) {
			t.Errorf("%v is left", g)
		}
	}
	if n := len(h.grants()); n != 2 {
		t.Errorf("%d grants are left, want 2", n)
	}
}
