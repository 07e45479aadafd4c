//go:build linux

package integration_test

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/internal/secrets"
)

// connectTo sends one SYN to each port by plain connects, as any program can, in the
// order that is given.
func (h *house) connectTo(p path, ports []uint16) {
	h.t.Helper()
	h.client.Do(func() {
		for _, port := range ports {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(p.server, port).String(), 100*time.Millisecond)
			if err == nil {
				c.Close()
				h.t.Errorf("something listens at %d", port)
			}
		}
	})
}

// A payload that travelled in port numbers reaches the action's standard input, byte
// for byte, and is in no argument, no environment and no log. The same packets do
// nothing again, also after a restart.
func TestPayloadOfAMessage(t *testing.T) {
	t.Parallel()
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			h := newHouse(t)
			dir := t.TempDir()
			secret := secrets.New()
			people, script, out := filepath.Join(dir, "people"), filepath.Join(dir, "note"), filepath.Join(dir, "out")
			write := func(file, text string, mode os.FileMode) {
				if err := os.WriteFile(file, []byte(text), mode); err != nil {
					t.Fatal(err)
				}
			}
			write(people, "ann "+secrets.Encode(secret)+"\n", 0o600)
			write(script, "#!/bin/sh\ncat >>"+out+"\nenv >>"+out+".rest\necho \"$0 $@\" >>"+out+".rest\necho ran >>"+out+".done\n", 0o755)
			h.serve(`[service.ssh]
ports = ["22/tcp"]
[action.note]
run = ["` + script + `", "{addr}"]
[knock.message]
type = "encoded"
opens = ["ssh"]
runs = ["note"]
payload = 16
secrets = "` + people + "\"\n")

			shape := encoded.Shape{Base: 40000, Span: 16384, Payload: 16}
			payload := "5c7f$(id)\x00\xff\n'"
			ports, err := shape.Encode(encoded.NewKey(secret, "message"), &encoded.Message{Action: encoded.Open, Time: time.Now(), Payload: []byte(payload)})
			if err != nil {
				t.Fatal(err)
			}
			h.connectTo(p, ports[1:])
			h.is(false, 22, p)
			h.connectTo(p, ports[:1])
			h.await(true, 22, p)
			text := func(suffix string) string {
				b, _ := os.ReadFile(out + suffix)
				return string(b)
			}
			h.eventually("the action ends", func() bool { return text(".done") == "ran\n" })
			if text("") != payload {
				t.Errorf("it read %q, want %q", text(""), payload)
			}
			if all := text(".rest") + h.Log(); strings.Contains(all, "5c7f") || strings.Contains(all, secrets.Encode(secret)) {
				t.Errorf("the payload or the secret is elsewhere too:\n%s", all)
			}
			h.connectTo(p, ports)
			h.Signal(syscall.SIGTERM)
			h.Wait()
			h.Start()
			h.Await("serving")
			h.connectTo(p, ports)
			h.eventually("the repeat is counted", func() bool { return h.counters()["encoded_repeat"] == 1 })
			if text(".done") != "ran\n" {
				t.Error("the action ran again")
			}
		})
	}
}
