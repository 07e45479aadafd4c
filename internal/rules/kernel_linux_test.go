package rules_test

import (
	"math/rand/v2"
	"testing"
	"time"
)

// TestWikiRecipe is a person's afternoon with nmap: knock, get in, time out, knock
// again, refresh. The wiki's own rules lose every second knock.
func TestWikiRecipe(t *testing.T) {
	t.Parallel()
	each(t, short, func(t *testing.T, w *world) {
		w.want(t, false, "before any knock")
		w.nmap(steps...)
		w.want(t, true, "after the knock")
		if w.reaches(w.stranger, 22) {
			t.Error("a stranger gets in with the client's knock")
		}
		live, err := w.dial(w.side.client, 22, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer live.Close()
		for round := range 3 {
			time.Sleep(2200 * time.Millisecond)
			w.want(t, false, "after its time")
			if err := echo(live); err != nil {
				t.Fatalf("the live connection did not survive: %v", err)
			}
			w.nmap(steps...)
			w.want(t, true, "knocked again")
			if round > 0 { // a refresh counts from itself
				time.Sleep(1200 * time.Millisecond)
				w.nmap(steps...)
				w.want(t, true, "refreshed")
				time.Sleep(1200 * time.Millisecond)
				w.want(t, true, "after the first grant's time, within the refreshed one's")
			}
		}
	})
}

// TestWrongKnocks: order, loss by a wrong port, time, and what is harmless.
func TestWrongKnocks(t *testing.T) {
	t.Parallel()
	each(t, short, func(t *testing.T, w *world) {
		for _, c := range []struct {
			name  string
			ports []int
			open  bool
		}{
			{"the wrong order", []int{8881, 9991, 7777}, false},
			{"backwards", []int{9991, 7777, 8881}, false},
			{"two of three", []int{8881, 7777}, false},
			{"the rest of it later", []int{9991}, true},
			{"a wrong port within the guard", []int{8881, 7777, 9992, 9991}, false},
			{"a wrong port at the guard's end", []int{8881, 7777, 7777 - 64, 9991}, false},
			{"a port outside the guard", []int{8881, 7777, 7777 - 65, 443, 9991}, true},
			{"each step twice", []int{8881, 8881, 7777, 7777, 9991}, true},
			{"a first step that ends an attempt and begins one", []int{8881, 7777, 8881, 7777, 9991}, true},
			{"the hidden service between the steps", []int{8881, 22, 7777, 22, 9991}, true},
		} {
			w.syn(t, w.side.client, c.ports...)
			w.want(t, c.open, c.name)
			if c.open {
				time.Sleep(2100 * time.Millisecond)
				w.syn(t, w.side.client, 9991)
				w.want(t, false, c.name+", after its time the last step alone")
			}
		}
		w.syn(t, w.side.client, 8881, 7777)
		w.syn(t, w.stranger, 9990, 9991)
		w.syn(t, w.side.client, 9991)
		w.want(t, true, "a stranger's wrong packet breaks nobody else's attempt")
		time.Sleep(2100 * time.Millisecond)
		w.syn(t, w.side.client, 8881)
		time.Sleep(1800 * time.Millisecond)
		w.syn(t, w.side.client, 7777)
		time.Sleep(1500 * time.Millisecond)
		w.syn(t, w.side.client, 9991)
		w.want(t, false, "too slow: within counts from the first step")
		w.syn(t, w.side.client, 7777, 9991)
		w.want(t, false, "the rest without the first step")
		w.syn(t, w.side.client, 8881, 9991)
		w.want(t, false, "what was left of an attempt whose time was over")
	})
}

// TestScans: nothing opens to a scan, in whatever plain order, nor to nmap's own.
func TestScans(t *testing.T) {
	each(t, `[service.ssh]
ports = ["22/tcp"]
closed_as = "drop"
[knock.up]
type = "sequence"
opens = ["ssh"]
sequence = ["7000/tcp", "7002/tcp", "9000/tcp"]
within = "10m"
[knock.down]
type = "sequence"
opens = ["ssh"]
sequence = ["9100/tcp", "8100/tcp", "7100/tcp"]
within = "10m"
`, func(t *testing.T, w *world) {
		sweep := func(from, to, step int) {
			for p := from; p != to+step; p += step {
				w.syn(t, w.side.client, p)
				if p%256 == 0 { // no queue overflows
					time.Sleep(time.Millisecond)
				}
			}
		}
		sweep(6000, 10000, 1)
		w.want(t, false, "after an ascending scan")
		sweep(10000, 6000, -1)
		w.want(t, false, "after a descending scan")
		for _, p := range rand.New(rand.NewPCG(1, 2)).Perm(4000) {
			w.syn(t, w.side.client, 6000+p)
		}
		w.want(t, false, "after a scan in random order")
		w.nmap("6000-10000")
		w.want(t, false, "after nmap")
		w.syn(t, w.side.client, 7000, 7002, 9000)
		w.want(t, true, "after a knock: the scans were seen")
	})
}

// TestLoadTwice: who loads again keeps his connections, nothing of the owner's is
// touched, and knocks work as before.
func TestLoadTwice(t *testing.T) {
	for _, l := range loaders {
		for _, s := range sides {
			t.Run(l.name+"/"+s.name, func(t *testing.T) {
				w := newWorld(t, s)
				w.server.Run("nft", "add", "table", "inet", "owner")
				live, err := w.dial(s.client, 22, 5*time.Second) // before conntrack looks
				if err != nil {
					t.Fatal(err)
				}
				defer live.Close()
				for range 3 {
					l.load(t, w, short)
					if err := echo(live); err != nil {
						t.Fatalf("the live connection did not survive: %v", err)
					}
				}
				w.want(t, false, "loaded")
				w.syn(t, s.client, 8881, 7777, 9991)
				w.want(t, true, "knocked")
				w.syn(t, s.client, 8881, 7777)
				w.want(t, true, "half knocked")
				w.server.Run("nft", "list", "table", "inet", "owner")
			})
		}
	}
}

// TestRetransmission: one connect to a port that drops sends its SYN again, also
// behind the next step. Only nftables can see that.
func TestRetransmission(t *testing.T) {
	for _, s := range sides {
		t.Run(s.name, func(t *testing.T) {
			w := newWorld(t, s)
			loadNFT(t, w, short)
			first, second := w.packet(s.client, 40001, 8881, 1), w.packet(s.client, 40002, 7777, 2)
			w.wire.Send(t, first, second, first, second, first)
			w.syn(t, s.client, 9991)
			w.want(t, true, "steps that were sent again")
		})
	}
}
