package sequence

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

// told plays packets as traffic does and gives the words about each: "-" for
// none, " + " between two sequences' words.
func told(t testing.TB, m *Matcher, host func(int) netip.Addr, text string) []string {
	t.Helper()
	now, fresh := 0.0, uint64(1000)
	var all []string
	for _, word := range strings.Fields(text) {
		now += 0.25
		fresh++
		id := fresh
		if body, at, ok := strings.Cut(word, "@"); ok {
			word, now = body, number(t, at)
		}
		if body, n, ok := strings.Cut(word, "#"); ok {
			word, id = body, uint64(number(t, n))
		}
		h := hitOf(steps(t, word)[0], id)
		var words []string
		for _, meaning := range m.Explain(host(1), h, int64(now*1e9)) {
			words = append(words, meaning.Text)
		}
		m.Observe(host(1), h, int64(now*1e9))
		all = append(all, cmp.Or(strings.Join(words, " + "), "-"))
	}
	return all
}

func TestExplain(t *testing.T) {
	const front = "7000/tcp 8500/udp 7800/tcp"
	for _, c := range []struct {
		name, sequence, packets string
		want                    []string
	}{
		{"made", front, front, []string{"step 1 of 3 made", "step 2 of 3 made", "step 3 of 3 made: the knock is complete"}},
		{"copies", front, "7000/tcp#1 7000/tcp#1 8500/udp 7000/tcp#1 7800/tcp#2 7800/tcp#2", []string{
			"step 1 of 3 made", "a copy of step 1: harmless", "step 2 of 3 made", "a copy of step 1: harmless",
			"step 3 of 3 made: the knock is complete", "a copy of step 3: harmless"}},
		{"once more", front, "7000/tcp 7000/tcp", []string{"step 1 of 3 made", "step 1 once more: harmless"}},
		{"another port", front, "7000/tcp 8000/tcp", []string{"step 1 of 3 made", "this is not the port that step 2 wants; the attempt ends"}},
		{"a step is missing", front, "7000/tcp 7800/tcp", []string{"step 1 of 3 made", "this is step 3, and step 2 is missing; the attempt ends"}},
		{"the first again", front, "7000/tcp 8500/udp 7000/tcp", []string{"step 1 of 3 made", "step 2 of 3 made",
			"this is step 1, and step 3 was to come; the attempt ends; step 1 of 3 made"}},
		{"the protocol", front, "7000/tcp 8500/tcp", []string{"step 1 of 3 made", "the number is that of step 2, and its protocol is not; the attempt ends"}},
		{"the flags", front, "7000/tcp:syn,ack", []string{"-"}},
		{"flags of a step", "7000/tcp 7001/tcp:fin 7800/tcp", "7000/tcp 7001/tcp", []string{"step 1 of 3 made",
			"the port is that of step 2, and its flags are not; the attempt ends"}},
		{"too late", front, "7000/tcp@1 8500/udp@6.2", []string{"step 1 of 3 made", "too late: 5.2s after the first step, and within is 5s"}},
		{"too late, and anew", front, "7000/tcp@1 7000/tcp@7", []string{"step 1 of 3 made", "the attempt before it has run out; step 1 of 3 made"}},
		{"another, later", front, "7000/tcp@1 443/tcp@7", []string{"step 1 of 3 made", "the attempt before it has run out"}},
		{"not begun", front, "8500/udp 7500/tcp", []string{"this is step 2, and step 1 did not come before it, or too long ago: it counts for nothing",
			"no attempt is under way, and this is not its first step"}},
		{"far away", front, "22/tcp", []string{"-"}},
		{"in use", front, "7000/tcp 7443/tcp 8500/udp", []string{"step 1 of 3 made", "this is not the port that step 2 wants, but a port in use: harmless", "step 2 of 3 made"}},
		{"a ping", "icmp 8500/udp 7800/tcp", "37/icmp 38/icmp", []string{"step 1 of 3 made", "step 1 once more: harmless"}},
	} {
		bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
			m := New([]Sequence{seq(t, c.sequence)}, live(7443), 64)
			if got := told(t, m, host, c.packets); !slices.Equal(got, c.want) {
				t.Errorf("%s:\n got %q\nwant %q", c.name, got, c.want)
			}
		})
	}
}

func TestExplainSharedAndClassic(t *testing.T) {
	bothFamilies(t, func(t *testing.T, host func(int) netip.Addr) {
		opens, closes := seq(t, "7000/tcp 8000/tcp 9000/tcp"), seq(t, "9000/tcp 8000/tcp 7000/tcp")
		got := told(t, New([]Sequence{opens, closes}, nil, 64), host, "7000/tcp 8000/tcp 9000/tcp")
		if want := "step 3 of 3 made: the knock is complete + another knock has taken this packet, so it begins none here"; got[2] != want {
			t.Errorf("got %q, want %q", got[2], want)
		}
		opens.Classic, closes.Classic = true, true
		got = told(t, New([]Sequence{opens, closes}, nil, 64), host, "7000/tcp 9000/tcp 7000/tcp@9")
		want := []string{"step 1 of 3 made + " + idle3, "this is step 3, and step 2 is missing; the attempt ends + an attempt at another door is under way, so this begins none",
			"step 1 of 3 made + " + idle3}
		if !slices.Equal(got, want) {
			t.Errorf("classic:\n got %q\nwant %q", got, want)
		}
	})
}

const idle3 = "this is step 3, and step 1 did not come before it, or too long ago: it counts for nothing"

// Explain must not say what Observe does not do: random packets, as in the tests
// of the rules themselves.
func TestExplainSaysWhatObserveDoes(t *testing.T) {
	draws := []struct {
		seqs func(*rand.Rand) []Sequence
		hit  func(*rand.Rand, []Sequence, *int) Hit
	}{{drawSequences, drawHit}, {drawDoors, drawDoorHit}}
	seen := map[Verdict]int{}
	for seed := range uint64(2000) {
		draw := draws[seed%2]
		rng := rand.New(rand.NewPCG(seed, 9))
		seqs := draw.seqs(rng)
		m := New(seqs, live(7001, 64), 64)
		now, cursor := int64(rng.IntN(2e9)), 0
		for n := range 150 {
			now += pick(rng, []int64{0, 1, 1e6, 1e8, 3e8, 1e9, 1e9 + 1e6})
			src := families[pick(rng, []string{"IPv4", "IPv6"})](1)
			h := draw.hit(rng, seqs, &cursor)
			var said []string
			words := ""
			for _, meaning := range m.Explain(src, h, now) {
				for _, v := range meaning.verdicts {
					said = append(said, fmt.Sprint(meaning.Sequence, " ", v))
				}
				words += meaning.Text + "\n"
			}
			var did []string
			for _, o := range m.Observe(src, h, now) {
				did = append(did, fmt.Sprint(o.Sequence, " ", o.Verdict))
				seen[o.Verdict]++
			}
			slices.Sort(said)
			slices.Sort(did)
			if !slices.Equal(said, did) {
				t.Fatalf("seed %d packet %d %+v, sequences %v: said %q, did %q\n%s", seed, n, h, seqs, said, did, words)
			}
			for _, word := range strings.FieldsFunc(words, func(r rune) bool { return r < '0' || r > '9' }) {
				if len(word) > 3 {
					t.Fatalf("a number like a port's is in %q", words)
				}
			}
		}
	}
	for v := Started; v <= Expired; v++ {
		if seen[v] < 300 {
			t.Errorf("only %d packets were %v", seen[v], v)
		}
	}
}
