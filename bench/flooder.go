package main

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
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

// flooder sends packets from forged sources.
type flooder struct {
	fd      int
	names   [2]unix.RawSockaddrLinklayer // IPv4, IPv6
	packets [][]byte
	stop    atomic.Bool
	senders sync.WaitGroup
	failed  atomic.Pointer[error] // the first
}

// newFlooder is ready to send packets from the client's end, over and over.
func (w *world) newFlooder(packets [][]byte) *flooder {
	f := &flooder{packets: packets}
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
	return f
}

// forged makes packets, whole and with right checksums, in random order, from so
// many sources of each family. Different seeds give different sources of IPv6.
func forged(seed uint64, each int, v6 bool, packet func(src netip.AddrPort, to netip.Addr, random *rand.Rand) []byte) (packets [][]byte) {
	random := rand.New(rand.NewPCG(seed, 0))
	forge := func(from, to netip.Addr) {
		packets = append(packets, packet(netip.AddrPortFrom(from, uint16(1024+random.IntN(60000))), to, random))
	}
	for n := range each {
		forge(netip.AddrFrom4([4]byte{198, 19, byte(n >> 8), byte(n)}), server4)
		if v6 {
			a := netip.MustParseAddr("2001:db8:f::").As16()
			binary.BigEndian.PutUint64(a[8:], random.Uint64())
			forge(netip.AddrFrom16(a), server6)
		}
	}
	random.Shuffle(len(packets), func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
	return packets
}

// firstStep is what a flood of sequences sends.
func firstStep(src netip.AddrPort, to netip.Addr, random *rand.Rand) []byte {
	return testnet.TCP(src, netip.AddrPortFrom(to, steps[0].Port), sequence.SYN, random.Uint32())
}

// start sends count packets, or until halt, at so many a second at most; rate 0
// is as fast as this machine can. The packets are shared out among the senders.
func (f *flooder) start(count, rate uint64, senders int) {
	f.stop.Store(false)
	share := uint64(senders)
	for n := range share {
		f.senders.Go(func() {
			if err := f.run(count/share, rate/share, n*uint64(len(f.packets))/share); err != nil {
				f.failed.CompareAndSwap(nil, &err)
			}
		})
	}
}

// wait is for the end of a flood of so many packets.
func (f *flooder) wait() error {
	f.senders.Wait()
	if err := f.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// halt ends the flood and waits for its end.
func (f *flooder) halt() error {
	f.stop.Store(true)
	return f.wait()
}

// run sends the packets from the first on, which is the sender's own beginning.
func (f *flooder) run(count, rate, first uint64) error {
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
			p := f.packets[(first+sent+uint64(i))%uint64(len(f.packets))]
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
	}
	return nil
}
