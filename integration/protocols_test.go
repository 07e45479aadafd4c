//go:build linux

package integration_test

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// doorConfig guards one port with one sequence.
func doorConfig(steps, keys string) string {
	var quoted []string
	for step := range strings.FieldsSeq(steps) {
		quoted = append(quoted, fmt.Sprintf("%q", step))
	}
	return "[service.ssh]\nports = [\"22/tcp\"]\n[knock.front]\ntype = \"sequence\"\nopens = [\"ssh\"]\nwithin = \"30s\"\nsequence = [" +
		strings.Join(quoted, ", ") + "]\n" + keys + "\n"
}

const otherSteps = "9000/sctp proto/47 9500/dccp 8500/udplite 9200/tcp"

// The client, the kernel's filter, the decoder and the matcher agree about each
// protocol, in both families.
func TestAKnockOfOtherProtocols(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(doorConfig(otherSteps, ""))
	for _, p := range paths {
		h.is(false, 22, p)
		h.knock(p, "9000/sctp proto/50 9500/dccp 8500/udplite 9200/tcp") // another number
		h.knock(p, "9000/sctp proto/47 9500/tcp 8500/udplite 9200/tcp")  // another protocol
		h.knock(p, "proto/47 9000/sctp 9500/dccp 8500/udplite 9200/tcp") // another order
		h.is(false, 22, p)
		h.knock(p, otherSteps)
		h.await(true, 22, p)
	}
}

// Every protocol that a step can name by its number alone arrives as that, in
// both families.
func TestAKnockOfEveryBareProtocol(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	var knocks []string
	var config strings.Builder
	var steps []string
	for n := range 256 {
		if p := sequence.Proto(n); p.Bare() {
			steps = append(steps, p.String())
		}
		if len(steps) == sequence.MaxSteps || n == 255 {
			port := 1000 + len(knocks)
			h.listen(port)
			text := doorConfig(strings.Join(steps, " "), "scan_opens = true")
			text = strings.NewReplacer("22/tcp", fmt.Sprintf("%d/tcp", port), "ssh", fmt.Sprintf("s%d", port), "front", fmt.Sprintf("k%d", port)).Replace(text)
			config.WriteString(text)
			knocks, steps = append(knocks, strings.Join(steps, " ")), nil
		}
	}
	h.serve(config.String())
	for _, p := range paths {
		for i, steps := range knocks {
			h.is(false, 1000+i, p)
			h.knock(p, steps)
			h.await(true, 1000+i, p)
		}
	}
}

// otherKnockers are programs that others wrote.
var otherKnockers = []struct {
	name, sequence, only, commands string
}{
	{"nmap's INIT", "9000/sctp 9200/tcp 9100/sctp", "",
		"for scan in sY:9000 sS:9200 sY:9100; do nmap V6 -n -Pn -${scan%:*} --max-retries 0 -p ${scan#*:} HOST; done"},
	{"nmap's scan of protocols", "proto/47 9200/tcp proto/103", "",
		"nmap V6 -n -Pn -sO --max-retries 0 -p 47 HOST; nmap V6 -n -Pn -sS --max-retries 0 -p 9200 HOST; nmap V6 -n -Pn -sO --max-retries 0 -p 103 HOST"},
	{"hping3", "proto/47 9200/tcp proto/50", "IPv4",
		"hping3 -0 -H 47 -c 1 -d 20 HOST; hping3 -S -c 1 -p 9200 HOST; hping3 --rawip -H 50 -c 1 HOST"},
	{"sallyport knock", otherSteps, "", "PROGRAM knock HOST " + otherSteps},
}

func TestRealKnockersOfOtherProtocols(t *testing.T) {
	t.Parallel()
	for _, k := range otherKnockers {
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.serve(doorConfig(k.sequence, ""))
			for _, p := range paths {
				if k.only != "" && k.only != p.name {
					continue
				}
				v6 := map[string]string{"IPv4": "", "IPv6": "-6"}[p.name]
				h.is(false, 22, p)
				out, _ := h.client.Output("sh", "-c", strings.NewReplacer("V6", v6, "HOST", p.server.String(), "PROGRAM", testnet.Binary(t)).Replace(k.commands))
				h.await(true, 22, p)
				if t.Failed() {
					t.Log(out)
				}
			}
		})
	}
}

// What is of the right protocol and port and opens no connection, or is a
// fragment, is no step.
func TestNoStepOfOtherProtocols(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(doorConfig("9000/sctp 9500/dccp 9200/tcp", ""))
	init := append([]byte{0x9c, 0x40, 0x23, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 20, 1, 2, 3, 4}, make([]byte, 12)...)
	request := append([]byte{0x9c, 0x40, 0x25, 0x1c, 5, 0, 0, 0, 1}, make([]byte, 11)...)
	with := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	for _, p := range paths {
		wire := h.client.Wire(clientWire(h), h.server.MAC(h.serverWire))
		send := func(first, second []byte, opts ...testnet.Option) {
			wire.Send(t, testnet.IP(p.client, p.server, 132, first), testnet.IP(p.client, p.server, 33, second, opts...),
				testnet.TCP(netip.AddrPortFrom(p.client, 40000), netip.AddrPortFrom(p.server, 9200), sequence.SYN, 1))
		}
		send(with(init, 12, 0), request)               // DATA
		send(with(init, 7, 1), request)                // a tag
		send(init[:31], request)                       // too short
		send(init, with(request, 8, 5))                // an acknowledgement
		send(init, with(request, 8, 0))                // short numbers
		send(init, request, testnet.Fragment(0, true)) // a fragment
		send(init, with(request, 4, 6))                // longer than it is
		h.is(false, 22, p)
		send(with(init, 17, 9), with(request, 19, 9))
		h.await(true, 22, p)
	}
}

// quiet keeps even the kernel's own "protocol unreachable" back.
func TestQuietWithOtherProtocols(t *testing.T) {
	t.Parallel()
	for quiet, want := range map[bool]string{false: "proto-unreach", true: "no-response"} {
		t.Run(fmt.Sprint(quiet), func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			h.serve(doorConfig("9000/sctp 9200/tcp 9100/sctp", fmt.Sprintf("quiet = %v", quiet)))
			if out := h.client.Run("nmap", "-n", "-Pn", "-sY", "--reason", "--max-retries", "0", "-p", "9000", "192.0.2.2"); !strings.Contains(out, want) {
				t.Errorf("want %s:\n%s", want, out)
			}
		})
	}
}
