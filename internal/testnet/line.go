package testnet

import (
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// lineHeld bounds how many frames a line keeps in each direction. What comes
	// above that goes on at once and is counted as crowded.
	lineHeld = 1 << 16
	// lineQueue is the receive buffer of each end, in bytes: a burst may wait while
	// the machine does something else.
	lineQueue = 64 << 20
	// lineIdle bounds a wait for frames, and so how long the end of a line takes.
	lineIdle = 50 * time.Millisecond
	// vnetHeader is struct virtio_net_hdr, in bytes. It goes with each frame, so that
	// a checksum that the sender left to its device stays left to the device.
	vnetHeader = 10
	// LongestHold is the longest that a frame is kept back for reordering; the
	// shortest is a millisecond, and all between are equally likely.
	LongestHold = 40 * time.Millisecond
)

// Flaws are what a line does to frames, in both directions. The zero value does
// nothing. Neither ARP nor neighbour discovery nor multicast housekeeping suffers.
type Flaws struct {
	Loss    float64       // the chance that a frame is thrown away, 0 to 1
	Reorder float64       // the chance that one is kept back for 1 ms to LongestHold
	Delay   time.Duration // what each frame takes
	Jitter  time.Duration // and up to so much more or less; at most Delay
	Seed    uint64        // the same seed and frames have the same fate
}

// Fates counts the frames of one direction that Flaws apply to.
type Fates struct{ Passed, Lost, Held, Crowded int64 }

// Line is a wire between two namespaces through a third, where a goroutine for each
// direction carries the frames: netem is not in every kernel.
type Line struct {
	ends  [2]*lineEnd
	flaws atomic.Pointer[Flaws]
}

// lineEnd takes frames in at one interface, for the other one's socket to send.
type lineEnd struct {
	line                          *Line
	fd, out                       int // packet sockets: where frames come from, and go to
	random                        *rand.Rand
	flaws                         *Flaws // those that random was seeded for
	queue                         frames
	number                        uint64
	passed, lost, delayed, crowds atomic.Int64
	buffer                        [vnetHeader + 65536 + 14]byte
}

// Lay lays a line between two namespaces, as Connect lays a wire. It has no flaws
// until Set gives it some, and ends with the test.
func Lay(a, b *Namespace, addrsA, addrsB []string) (line *Line, nameA, nameB string) {
	a.t.Helper()
	middle := New(a.t)
	// Its own interfaces have no addresses and say nothing.
	middle.Run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	nameA, left := Connect(a, middle, addrsA, nil)
	right, nameB := Connect(middle, b, nil, addrsB)
	line = &Line{}
	line.flaws.Store(&Flaws{})
	for i, name := range []string{left, right} {
		fd, err := middle.frameSocket(name)
		if err != nil {
			a.t.Fatalf("testnet: a packet socket on %s: %v", name, err)
		}
		line.ends[i] = &lineEnd{line: line, fd: fd}
	}
	line.ends[0].out, line.ends[1].out = line.ends[1].fd, line.ends[0].fd
	line.run(a.t)
	return line, nameA, nameB
}

// run carries frames until the test ends.
func (l *Line) run(t TB) {
	stop := make(chan struct{})
	var ended [2]chan error
	for i, e := range l.ends {
		ended[i] = make(chan error, 1)
		go func() { ended[i] <- e.carry(stop) }()
	}
	t.Cleanup(func() {
		close(stop)
		for i := range ended {
			if err := <-ended[i]; err != nil {
				t.Errorf("testnet: the line broke: %v", err)
			}
		}
		for _, e := range l.ends {
			unix.Close(e.fd)
		}
	})
}

// frameSocket opens a socket for whole frames on an interface.
func (ns *Namespace) frameSocket(name string) (fd int, err error) {
	fd = -1
	ns.Do(func() {
		var link *net.Interface
		if link, err = net.InterfaceByName(name); err != nil {
			return
		}
		// Protocol 0 until it is bound: nothing of other interfaces comes first.
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return
		}
		err = errors.Join(
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1),
			// What the other direction sends here must not come back.
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, lineQueue),
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, lineQueue),
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: link.Index}))
	})
	return fd, err
}

// Set gives the line other flaws, for the frames that come from now on, and begins
// the seed anew. Frames that are held already keep their time.
func (l *Line) Set(f Flaws) {
	for _, share := range []float64{f.Loss, f.Reorder} {
		if share < 0 || share > 1 {
			panic(fmt.Sprintf("testnet: a share of %v is not between 0 and 1", share))
		}
	}
	l.flaws.Store(&f)
}

// Fates gives what happened so far to the frames from a to b, or from b to a.
func (l *Line) Fates(fromA bool) Fates {
	e := l.ends[1]
	if fromA {
		e = l.ends[0]
	}
	return Fates{e.passed.Load(), e.lost.Load(), e.delayed.Load(), e.crowds.Load()}
}

// carry takes frames in and lets them go when they are due.
func (e *lineEnd) carry(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		limit := unix.NsecToTimespec(int64(e.untilDue()))
		_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}}, &limit, nil)
		if err != nil && err != unix.EINTR {
			return err
		}
		// A burst must not keep back what is due.
		for range 64 {
			n, _, err := unix.Recvfrom(e.fd, e.buffer[:], 0)
			if n <= 0 || err != nil {
				break
			}
			e.decide(e.buffer[:n], time.Now())
		}
		e.release(time.Now())
	}
}

func (e *lineEnd) untilDue() time.Duration {
	if len(e.queue) == 0 {
		return lineIdle
	}
	return min(max(time.Until(e.queue[0].due), 0), lineIdle)
}

// decide throws a frame away, lets it go or keeps it.
func (e *lineEnd) decide(b []byte, now time.Time) {
	if housekeeping(b[vnetHeader:]) {
		e.send(b)
		return
	}
	wait, lost := e.fate()
	switch {
	case lost:
		e.lost.Add(1)
		return
	case len(e.queue) >= lineHeld:
		e.crowds.Add(1)
	case wait > 0:
		e.number++
		heap.Push(&e.queue, kept{now.Add(wait), e.number, slices.Clone(b)})
		return
	}
	e.passed.Add(1)
	e.send(b)
}

// fate draws what happens to the next frame: always as many numbers, so that the
// fate of each depends on its place alone.
func (e *lineEnd) fate() (wait time.Duration, lost bool) {
	if f := e.line.flaws.Load(); f != e.flaws {
		side := uint64(0)
		if e == e.line.ends[1] {
			side = 1
		}
		e.flaws, e.random = f, rand.New(rand.NewPCG(f.Seed, side))
	}
	f := e.flaws
	loss, reorder, hold, jitter := e.random.Float64(), e.random.Float64(), e.random.Float64(), e.random.Float64()
	wait = f.Delay + time.Duration((2*jitter-1)*float64(f.Jitter))
	if reorder < f.Reorder {
		wait += time.Millisecond + time.Duration(hold*float64(LongestHold-time.Millisecond))
		if loss >= f.Loss {
			e.delayed.Add(1)
		}
	}
	return wait, loss < f.Loss
}

// release sends what is due.
func (e *lineEnd) release(now time.Time) {
	for len(e.queue) > 0 && !e.queue[0].due.After(now) {
		e.passed.Add(1)
		e.send(heap.Pop(&e.queue).(kept).frame)
	}
}

// send sends a frame. One that the other end does not take, because its interface
// is down or going, is lost as on any wire.
func (e *lineEnd) send(b []byte) { unix.Write(e.out, b) }

// housekeeping reports whether a frame is ARP, neighbour discovery (ICMPv6 133 to
// 137, RFC 4861) or a multicast report, which a hop-by-hop header is before (RFC
// 3810): what the line itself needs, and nobody knocks with.
func housekeeping(b []byte) bool {
	if len(b) < 14 {
		return true
	}
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		return false
	case unix.ETH_P_IPV6:
		if len(b) < 14+41 {
			return false
		}
		next, kind := b[14+6], b[14+40]
		return next == unix.IPPROTO_HOPOPTS || next == unix.IPPROTO_ICMPV6 && kind >= 133 && kind <= 137
	}
	return true
}

// kept is a frame that waits. The number keeps two of one moment in their order.
type kept struct {
	due    time.Time
	number uint64
	frame  []byte
}

// frames is a heap, the next one that is due first.
type frames []kept

// Len is part of heap.Interface, as the others are.
func (f frames) Len() int { return len(f) }

// Less puts the earlier one first.
func (f frames) Less(i, j int) bool {
	if f[i].due.Equal(f[j].due) {
		return f[i].number < f[j].number
	}
	return f[i].due.Before(f[j].due)
}

// Swap swaps two.
func (f frames) Swap(i, j int) { f[i], f[j] = f[j], f[i] }

// Push adds one at the end.
func (f *frames) Push(x any) { *f = append(*f, x.(kept)) }

// Pop takes the last one.
func (f *frames) Pop() any {
	last := len(*f) - 1
	x := (*f)[last]
	(*f)[last] = kept{} // its bytes may go
	*f = (*f)[:last]
	return x
}
