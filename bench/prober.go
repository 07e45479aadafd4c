package main

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	// probeEvery is the time between two tries of a port, and so about how much
	// later than the truth an answer may be seen, with both daemons and at the
	// floor.
	probeEvery = 50 * time.Microsecond
	// between is the time from one step to the next: no daemon is still busy with
	// a step when its next one comes.
	between = 2 * time.Millisecond
	// giveUp is how long a prober waits for a port to open.
	giveUp = 2 * time.Second
)

// The sequence that ours and knockd wait for, and as many packets that neither
// watches for, but close by.
var (
	steps = mustSteps("47011/tcp", "48022/udp", "45033/tcp")
	stray = mustSteps("1011/tcp", "1022/udp", "1033/tcp")
)

func mustSteps(texts ...string) []sequence.Step {
	var list []sequence.Step
	for _, text := range texts {
		step, err := sequence.ParseStep(text)
		if err != nil {
			panic(err) // a constant above is wrong
		}
		list = append(list, step)
	}
	return list
}

// prober knocks and tries ports with packets of its own making, so that a try
// costs microseconds and any source address will do. It sees SYN-ACKs by a
// packet socket; the client's kernel, which knows of no such connection, then
// ends it with a RST.
type prober struct {
	wire *testnet.Wire
	fd   int
	seq  uint32
	in   [128]byte
}

func (b *bench) newProber(client *testnet.Namespace, wire *testnet.Wire) *prober {
	p := &prober{wire: wire}
	var err error
	client.Do(func() {
		p.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	})
	if err != nil {
		b.Fatalf("the prober's socket: %v", err)
	}
	b.Cleanup(func() { unix.Close(p.fd) })
	if err := onlySynAcks(p.fd); err != nil {
		b.Fatalf("the prober's filter: %v", err)
	}
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL}) // packet(7) wants network byte order
	if err := unix.Bind(p.fd, &unix.SockaddrLinklayer{Protocol: all}); err != nil {
		b.Fatalf("the prober's socket: %v", err)
	}
	return p
}

// onlySynAcks keeps the RSTs of closed ports, which come at the rate of our own
// SYNs, out of the prober's queue.
func onlySynAcks(fd int) error {
	program, err := bpf.Assemble(synAcks)
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(program))
	for i, in := range program {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
}

// synAcks takes TCP packets with just these two flags, in IP packets without
// options or extension headers: our own server sends no others.
var synAcks = []bpf.Instruction{
	bpf.LoadAbsolute{Off: 0, Size: 1},
	bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipFalse: 4},
	bpf.LoadAbsolute{Off: 9, Size: 1},                                      // IPv4: protocol
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 7}, // to the end
	bpf.LoadAbsolute{Off: 20 + 13, Size: 1},                                // flags
	bpf.Jump{Skip: 3},
	bpf.LoadAbsolute{Off: 6, Size: 1},                                      // IPv6: next header
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 3}, // to the end
	bpf.LoadAbsolute{Off: 40 + 13, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(sequence.SYN | sequence.ACK), SkipTrue: 1},
	bpf.RetConstant{Val: 128},
	bpf.RetConstant{Val: 0},
}

// precise puts the calling goroutine on a thread of its own whose sleeps end on
// time: the kernel may otherwise add 50 microseconds (prctl(2)).
func precise() error {
	runtime.LockOSThread()
	return unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0)
}

// knocking makes the packets of a knock.
type knocking func(w *world, from, to netip.Addr) [][]byte

// What the knockers of a sequence send, and at the floor.
var opening, strangers = stepping(steps), stepping(stray)

func stepping(list []sequence.Step) knocking {
	return func(w *world, from, to netip.Addr) (packets [][]byte) {
		for _, s := range list {
			packets = append(packets, w.prober.packet(from, to, s, []byte("knock")))
		}
		return packets
	}
}

// packet makes one step, or a try of a port, which is a SYN too; only a datagram
// has the payload.
func (p *prober) packet(from, to netip.Addr, step sequence.Step, payload []byte) []byte {
	p.seq += 0x10001 // no packet may look like a copy of another
	src := netip.AddrPortFrom(from, uint16(20000+p.seq%40000))
	dst := netip.AddrPortFrom(to, step.Port)
	if step.Proto == sequence.UDP {
		return testnet.UDP(src, dst, payload)
	}
	return testnet.TCP(src, dst, sequence.SYN, p.seq)
}

// try sends a SYN to a port.
func (p *prober) try(from, to netip.Addr, port uint16) error {
	return p.wire.SendOne(p.packet(from, to, sequence.Step{Proto: sequence.TCP, Port: port}, nil))
}

// time sends the knock and gives the time from its last packet to the first
// answer of the port; false when there was none.
func (p *prober) time(from, to netip.Addr, knock [][]byte, port uint16) (time.Duration, bool, error) {
	last := len(knock) - 1
	if port == guarded { // a port that is open already would be a fine figure
		if err := p.try(from, to, port); err != nil {
			return 0, false, err
		}
		if _, ok := p.answered(between); ok {
			return 0, false, errors.New("the port was open before the knock")
		}
	}
	for _, packet := range knock[:last] {
		if err := p.wire.SendOne(packet); err != nil {
			return 0, false, err
		}
		time.Sleep(between)
	}
	start := time.Now()
	if err := p.wire.SendOne(knock[last]); err != nil {
		return 0, false, err
	}
	for time.Since(start) < giveUp {
		tried := time.Now()
		if err := p.try(from, to, port); err != nil {
			return 0, false, err
		}
		for wait := probeEvery; wait > 0; wait = probeEvery - time.Since(tried) {
			if a, ok := p.answered(wait); ok && a == from {
				return time.Since(start), true, nil
			}
		}
	}
	return 0, false, nil
}

// answered waits for a SYN-ACK and gives whom it is for.
func (p *prober) answered(wait time.Duration) (netip.Addr, bool) {
	limit := unix.NsecToTimespec(int64(wait))
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	if n, err := unix.Ppoll(fds, &limit, nil); n == 0 || err != nil {
		return netip.Addr{}, false
	}
	n, _, err := unix.Recvfrom(p.fd, p.in[:], 0)
	if err != nil || n < 40 {
		return netip.Addr{}, false
	}
	if p.in[0]>>4 == 4 {
		return netip.AddrFrom4([4]byte(p.in[16:20])), true
	}
	return netip.AddrFrom16([16]byte(p.in[24:40])), true
}
