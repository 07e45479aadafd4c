//go:build linux

package integration_test

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/secrets"
)

// TestOneTimePortsAreGoodOnce: by a real scanner as the client, after scans that met
// the ports, and not again, also after kill -9.
func TestOneTimePortsAreGoodOnce(t *testing.T) {
	eachPeopleHouse(t, func(t *testing.T, h *peopleHouse, p path) {
		const state = "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\n"
		h.serve(state + strings.ReplaceAll(h.config(otpKnock), "20s", "2s") + "time_step = \"1h\"\npool = [\"20000-29999/tcp\"]\n")
		text, err := os.ReadFile(h.file())
		if err != nil {
			t.Fatal(err)
		}
		secret, err := secrets.Decode(strings.Fields(string(text))[1])
		if err != nil {
			t.Fatal(err)
		}
		d := otp.Door{Name: "people", Pool: []otp.Span{{Low: 20000, High: 29999}}, Steps: 5, TimeStep: time.Hour}
		number := d.Number(time.Now()) + 1 // the present one began before the journal did
		ports := d.Ports(nil, secret, number, p.client)
		six := []string{"-n", "-Pn", "-sS", "--max-retries", "0", "-T5"}
		if p.client.Is6() {
			six = append(six, "-6")
		}
		for _, more := range [][]string{{"-p", "20000-29999"}, {"-p", "20000-29999", "-r"}} {
			h.client.Run("nmap", append(append(six[:len(six):len(six)], more...), p.server.String())...)
		}
		h.is(false, 22, p)
		knock := func() {
			for _, port := range ports {
				h.client.Run("nmap", append(six[:len(six):len(six)], "-p", fmt.Sprint(port), p.server.String())...)
			}
		}
		knock()
		h.await(true, 22, p)
		h.await(false, 22, p)
		knock()
		h.is(false, 22, p)
		h.Signal(syscall.SIGKILL)
		h.Wait()
		h.Start()
		h.Await("serving")
		knock()
		h.is(false, 22, p)
		if log := h.Log(); strings.Contains(log, fmt.Sprint(ports[1])) {
			t.Errorf("a port of a sequence is in the log:\n%s", log)
		}
	})
}
