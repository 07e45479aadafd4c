package knock

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/packet"
	"github.com/sallyport/sallyport/internal/engine/internal/replay"
	"github.com/sallyport/sallyport/internal/otp"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
)

// otpDoor is one knock of type "otp".
type otpDoor struct {
	otp.Door // of codes it has a name and the time step only
	digits   otp.Digits
	knock    int
	cfg      *config.Knock
	proto    sequence.Proto
	ports    *portSet // that a step can have
	people   []otpPerson
	number   uint64 // the present time step
	steps    [otp.Window]inForce
	first    *portSet // first ports of the sequences in force; of codes nil
}

// otpPerson is one line of a knock's secrets.
type otpPerson struct {
	*secrets.Person
	key    *otp.Key
	heard  replay.Key
	holder int32 // the number of who has the secret, for whatever knocks
}

// inForce is what the people's secrets give for one time step.
type inForce struct {
	number uint64
	known  bool
	good   []good // sorted
}

// good is a person's first port, or code.
type good struct {
	what   uint32
	person int32
}

// portSet has a bit for each port.
type portSet [1 << 16 / 64]uint64

func (s *portSet) has(port uint16) bool { return s[port/64]>>(port%64)&1 != 0 }

func (s *portSet) add(port uint16) { s[port/64] |= 1 << (port % 64) }

func newOTPDoor(setting *Setting, i int) otpDoor {
	k := &setting.Config.Knocks[i]
	d := otpDoor{knock: i, cfg: k, Door: k.OTPDoor(), digits: k.OTPDigits(), proto: k.Ports()[0].Proto, ports: new(portSet), first: new(portSet)}
	for _, r := range k.Ports() {
		for port := int(r.Low); port <= int(r.High); port++ {
			d.ports.add(uint16(port))
		}
	}
	people := setting.Keys[i].People
	for j := range people {
		p := otpPerson{Person: &people[j], key: otp.NewKey(people[j].Secret)}
		// Without the name, or else a new one would make what was used up good again.
		// The length keeps one knock's key from being another's.
		p.heard = sha256.Sum256(fmt.Appendf(nil, "otp %d %s %s", len(k.Name), k.Name, p.Secret))
		d.people = append(d.people, p)
	}
	return d
}

// count gives each secret of sequences a number.
func (d *otpDoor) count(holders map[replay.Key]int32) {
	for i := range d.people {
		key := replay.Key(sha256.Sum256(d.people[i].Secret))
		if _, known := holders[key]; !known && d.digits.Count == 0 {
			holders[key] = int32(len(holders))
		}
		d.people[i].holder = holders[key]
	}
}

// queue is where an attempt waits to be evicted. A second step takes the secret only
// where it depends on the address: else whoever saw one knock can send it from any.
func (d *otpDoor) queue(a *attempt) int32 {
	switch {
	case a.stage == 1:
		return begun
	case d.AnyAddress || d.digits.Count > 0:
		return further
	}
	return proved + d.people[a.person].holder
}

// length is how many packets a password of the knock takes.
func (d *otpDoor) length() int {
	if d.digits.Count > 0 {
		return d.digits.Steps()
	}
	return d.Steps
}

// turn computes what is good at a moment, if the time step is another one than
// before.
func (d *otpDoor) turn(now time.Time) {
	number := d.Number(now)
	if d.steps[number%otp.Window].known && d.number == number {
		return
	}
	d.number = number
	*d.first = portSet{}
	for n := max(number, 1) - 1; n <= number+1; n++ {
		step := &d.steps[n%otp.Window]
		if !step.known || step.number != n {
			*step = inForce{number: n, known: true, good: d.compute(n)}
		}
	}
	for i := range d.steps {
		for _, g := range d.steps[i].good {
			if d.digits.Count == 0 {
				d.first.add(uint16(g.what))
			}
		}
	}
}

// stamp is what a password is used up under: the start of its time step. Sequences for
// an address have one for each family, so that a knock at a host's two addresses opens
// both; a password for any would be good once more for whoever saw it.
func (d *otpDoor) stamp(number uint64, src netip.Addr) int64 {
	stamp := d.Start(number).UnixNano()
	if src.Is6() && !d.AnyAddress {
		stamp--
	}
	return stamp
}

// compute gives the first port or the code of each person in a time step.
func (d *otpDoor) compute(number uint64) []good {
	list := make([]good, 0, len(d.people))
	var port [1]uint16
	for i := range d.people {
		what := uint32(0)
		if d.digits.Count > 0 {
			code, _ := strconv.ParseUint(otp.CodeAt(d.people[i].Secret, number, d.digits.Count), 10, 32)
			what = uint32(code)
		} else if len(d.First(port[:0], d.people[i].key, number)) == 1 {
			what = uint32(port[0])
		}
		list = append(list, good{what, int32(i)})
	}
	slices.SortFunc(list, func(a, b good) int { return cmp.Compare(a.what, b.what) })
	return list
}

// find gives those whose first port or code it is.
func (step *inForce) find(what uint32) []good {
	low, _ := slices.BinarySearchFunc(step.good, what, func(g good, what uint32) int { return cmp.Compare(g.what, what) })
	high := low
	for high < len(step.good) && step.good[high].what == what {
		high++
	}
	return step.good[low:high]
}

// same reports whether attempts at one knock are good for the other.
func (d *otpDoor) same(o *otpDoor) bool {
	return d.Name == o.Name && d.digits == o.digits && d.proto == o.proto && d.Steps == o.Steps &&
		d.TimeStep == o.TimeStep && d.AnyAddress == o.AnyAddress && slices.Equal(d.Pool, o.Pool)
}

// hundred is the place of a pair of digits in its code.
func (d *otpDoor) hundred(port uint16) int { return int(port-d.digits.Base) / 100 }

// awaits reports whether a port is the next step.
func (d *otpDoor) awaits(steps []made, stage int, port uint16) bool {
	if d.digits.Count > 0 {
		return d.hundred(port) == stage
	}
	return steps[stage].port == port
}

// expect computes the ports behind the first one, which was met.
func (d *otpDoor) expect(steps []made, person int32, number uint64, p *packet.Packet) {
	var room [otp.MaxSteps]uint16
	ports := d.Rest(append(room[:0], p.DstPort), d.people[person].key, number, p.Src)
	clear(steps[1:])
	for i := 1; i < len(ports); i++ {
		steps[i].port = ports[i]
	}
}

// codeOf puts a code's pairs of digits together.
func (d *otpDoor) codeOf(steps []made) (code uint32) {
	for i := range d.digits.Steps() {
		code = code*100 + uint32((steps[i].port-d.digits.Base)%100)
	}
	return code
}
