//go:build linux

package integration_test

import (
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// onceConfig is the house's with a service that one connection uses up, a second knock
// that opens it too, and one that extends.
func onceConfig() string {
	return strings.Replace(houseConfig("1m"), "open_for", "once = true\nopen_for", 1) + `
[knock.again]
type = "sequence"
opens = ["ssh"]
sequence = ["47111/tcp", "48122/udp", "45133/tcp"]
within = "30s"
[knock.longer]
type = "sequence"
extends = ["ssh"]
sequence = ["47211/tcp", "48222/udp", "45233/tcp"]
within = "30s"
`
}

// The knocks of onceConfig behind the house's own.
const (
	againSteps  = "47111/tcp 48122/udp 45133/tcp"
	longerSteps = "47211/tcp 48222/udp 45233/tcp"
)

// granted waits until so many grants are listed.
func (h *house) granted(n int) {
	h.t.Helper()
	h.eventually(fmt.Sprintf("%d grants", n), func() bool { return len(h.grants()) == n })
}

// The first connection uses the grant up, whatever becomes of the daemon, and lives
// on; another knock lets the next one in.
func TestOnceIsOneConnection(t *testing.T) {
	t.Parallel()
	for _, killed := range []bool{false, true} {
		h := newHouse(t)
		h.serve(onceConfig())
		for _, p := range paths {
			h.knock(p, frontSteps)
		}
		h.granted(len(paths))
		if killed {
			syscall.Kill(h.Cmd.Process.Pid, syscall.SIGKILL)
			h.Wait()
		}
		var calls []call
		for _, p := range paths {
			calls = append(calls, h.call(p))
			h.is(false, 22, p)
		}
		h.lives("the grant was used up", calls...)
		if killed {
			h.Start()
			h.Await("serving")
			h.is(false, 22, paths...)
			h.lives("a new start", calls...)
		}
		h.granted(0)
		for _, p := range paths {
			h.knock(p, longerSteps) // prolongs nothing: it is used up
			h.knock(p, againSteps)
		}
		h.granted(len(paths))
		for _, p := range paths {
			h.lives("the next knock", h.call(p))
			h.is(false, 22, p)
		}
		h.lives("the next one came in", calls...)
	}
}

// Of connections that begin at the same moment one is served.
func TestOnceServesOneOfManyAtOnce(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(onceConfig())
	for round := range 5 {
		for _, p := range paths {
			h.knock(p, frontSteps)
			h.granted(1)
			var group sync.WaitGroup
			served := make([]bool, 6)
			for i := range served {
				group.Go(func() { served[i] = h.served(p) })
			}
			group.Wait()
			n := 0
			for _, ok := range served {
				if ok {
					n++
				}
			}
			if n != 1 {
				t.Errorf("%s, round %d: %d of %d were served", p.name, round, n, len(served))
			}
		}
	}
}

// served reports whether a connection is answered.
func (h *house) served(p path) bool {
	c, err := h.dial(p, 22)
	if err != nil {
		return false
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := c.Write([]byte("ping")); err != nil {
		return false
	}
	n, err := c.Read(make([]byte, 4))
	return err == nil && n == 4
}

// A table that somebody flushed comes back without grants for one connection, because
// with it went the word whether they were used.
func TestOnceIsNotBroughtBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(onceConfig())
	for _, p := range paths {
		h.knock(p, frontSteps)
		h.granted(1)
		c, err := h.dial(p, 22)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		h.granted(0)
	}
	h.server.Run("nft", "flush", "ruleset")
	h.Await("the table was removed, and is back with its grants")
	h.said("must knock again")
	h.is(false, 22, paths...)
	h.granted(0)
	for _, p := range paths {
		h.knock(p, frontSteps)
		h.granted(1)
		h.lives("the table was made anew", h.call(p))
		h.is(false, 22, p)
	}
}

// A sequence that extends prolongs what a sequence opened, and opens nothing.
func TestASequenceExtends(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(strings.Replace(strings.Replace(onceConfig(), "once = true\n", "", 1), `"1m"`, `"6s"`, 1))
	for _, p := range paths {
		h.knock(p, longerSteps)
	}
	for range 5 {
		h.is(false, 22, paths...)
	}
	h.granted(0)
	start := time.Now()
	for _, p := range paths {
		h.knock(p, frontSteps)
	}
	h.await(true, 22, paths...)
	time.Sleep(time.Until(start.Add(4 * time.Second)))
	for _, p := range paths {
		h.knock(p, longerSteps)
	}
	time.Sleep(time.Until(start.Add(8 * time.Second)))
	h.is(true, 22, paths...)
	h.await(false, 22, paths...)
}
