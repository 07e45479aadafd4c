package main

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	// forgedEach is the number of forged sources of each family: all of
	// 198.19.0.0/16, and as many random ones of IPv6. Both together fill the
	// default table of 65,536 attempts twice over.
	forgedEach = 1 << 16
	// sendBatch is how many packets go with one system call.
	sendBatch = 64
)

// flooder sends first steps from forged sources.
type flooder struct {
	fd      int
	names   [2]unix.RawSockaddrLinklayer // IPv4, IPv6
	packets [][]byte
	sent    atomic.Uint64
	stop    atomic.Bool
	ended   chan error
}

// newFlooder makes the packets of a flood, whole and with right checksums, in
// random order. Different seeds give different sources of IPv6.
func (w *world) newFlooder(seed uint64, v6 bool) *flooder {
	f := &flooder{ended: make(chan error, 1)}
	var link *net.Interface
	var err error
	w.client.Do(func() {
		if link, err = net.InterfaceByName(w.clientWire); err == nil {
			f.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		}
	})
	if err == nil {
		// No queue of the sender's own may drop or pace the flood (packet(7)).
		err = unix.SetsockoptInt(f.fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	}
	if err != nil {
		w.b.Fatalf("the flood's socket: %v", err)
	}
	w.b.Cleanup(func() { unix.Close(f.fd) })
	for i, ethertype := range []uint16{unix.ETH_P_IP, unix.ETH_P_IPV6} {
		f.names[i] = unix.RawSockaddrLinklayer{Family: unix.AF_PACKET, Ifindex: int32(link.Index), Halen: 6,
			Protocol: binary.NativeEndian.Uint16([]byte{byte(ethertype >> 8), byte(ethertype)})}
		copy(f.names[i].Addr[:], w.to)
	}
	random := rand.New(rand.NewPCG(seed, 0))
	for n := range forgedEach {
		f.forge(netip.AddrFrom4([4]byte{198, 19, byte(n >> 8), byte(n)}), server4, random)
		if v6 {
			a := netip.MustParseAddr("2001:db8:f::").As16()
			binary.BigEndian.PutUint64(a[8:], random.Uint64())
			f.forge(netip.AddrFrom16(a), server6, random)
		}
	}
	random.Shuffle(len(f.packets), func(i, j int) { f.packets[i], f.packets[j] = f.packets[j], f.packets[i] })
	return f
}

func (f *flooder) forge(from, to netip.Addr, random *rand.Rand) {
	src := netip.AddrPortFrom(from, uint16(1024+random.IntN(60000)))
	f.packets = append(f.packets, testnet.TCP(src, netip.AddrPortFrom(to, steps[0].Port), sequence.SYN, random.Uint32()))
}

// start sends count packets, or until halt, at so many a second at most; rate 0
// is as fast as this machine can.
func (f *flooder) start(count, rate uint64) {
	f.stop.Store(false)
	go func() { f.ended <- f.run(count, rate) }()
}

// halt ends the flood and waits for its end.
func (f *flooder) halt() error {
	f.stop.Store(true)
	return <-f.ended
}

func (f *flooder) run(count, rate uint64) error {
	var messages [sendBatch]struct {
		header unix.Msghdr
		length uint32
	}
	var vectors [sendBatch]unix.Iovec
	began := time.Now()
	for sent := uint64(0); sent < count && !f.stop.Load(); sent += sendBatch {
		if rate > 0 {
			time.Sleep(time.Duration(sent*uint64(time.Second)/rate) - time.Since(began))
		}
		for i := range messages {
			p := f.packets[(sent+uint64(i))%uint64(len(f.packets))]
			vectors[i].Base = &p[0]
			vectors[i].SetLen(len(p))
			h := &messages[i].header
			h.Name = (*byte)(unsafe.Pointer(&f.names[p[0]>>4/6])) // version 4 or 6
			h.Namelen = unix.SizeofSockaddrLinklayer
			h.Iov = &vectors[i]
			h.SetIovlen(1)
		}
		_, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(f.fd), uintptr(unsafe.Pointer(&messages)), sendBatch, 0, 0, 0)
		if errno != 0 && errno != unix.ENOBUFS && errno != unix.EINTR { // a full queue is the receiver's affair
			return errno
		}
		f.sent.Add(sendBatch)
	}
	return nil
}
