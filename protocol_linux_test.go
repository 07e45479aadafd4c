package sallyport_test

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
)

// hearProtocol gives what the server's kernel hands to a raw socket, without the
// IP header.
func (w *world) hearProtocol(number string) func() []byte {
	w.t.Helper()
	network := "ip4:" + number
	if w.remote.Is6() {
		network = "ip6:" + number
	}
	var conn net.PacketConn
	var err error
	w.server.Do(func() { conn, err = net.ListenPacket(network, w.remote.String()) })
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return func() []byte {
		w.t.Helper()
		conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		b := make([]byte, 2048)
		n, from, err := conn.ReadFrom(b)
		if err != nil {
			w.t.Fatalf("protocol %s: %v", number, err)
		}
		if from.String() != w.local.String() {
			w.t.Errorf("protocol %s comes from %s", number, from)
		}
		return b[:n]
	}
}

// sum is RFC 1071's over the pseudo-header and the segment: all ones if the
// checksum in it is right.
func (w *world) sum(proto byte, segment []byte) uint16 {
	b := append(append(w.local.AsSlice(), w.remote.AsSlice()...), 0, proto, byte(len(segment)>>8), byte(len(segment)))
	b = append(b, segment...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	sum := uint32(0)
	for ; len(b) > 0; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// crc is CRC32c bit by bit over an SCTP packet with its checksum taken as 0, and
// in the order of bytes that it travels in (RFC 9260 appendix A).
func crc(b []byte) []byte {
	b = bytes.Clone(b)
	clear(b[8:12])
	sum := ^uint32(0)
	for _, v := range b {
		sum ^= uint32(v)
		for range 8 {
			sum = sum>>1 ^ 0x82f63b78*(sum&1)
		}
	}
	return binary.LittleEndian.AppendUint32(nil, ^sum)
}

func TestSendOfOtherProtocols(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		sctp, dccp, lite, bare := w.hearProtocol("132"), w.hearProtocol("33"), w.hearProtocol("136"), w.hearProtocol("47")
		seen := map[string]bool{}
		for range 3 {
			if err := w.send(t.Context(), parse(t, "9000/sctp 9001/dccp 9002/udplite proto/47"), w.remote); err != nil {
				t.Fatal(err)
			}
			init, request, datagram, raw := sctp(), dccp(), lite(), bare()
			if len(init) != 32 || binary.BigEndian.Uint16(init[2:]) != 9000 || !bytes.Equal(init[4:8], make([]byte, 4)) ||
				!bytes.Equal(init[8:12], crc(init)) || !bytes.Equal(init[12:16], []byte{1, 0, 0, 20}) || binary.BigEndian.Uint32(init[16:]) == 0 {
				t.Errorf("no INIT as it should be: % x, CRC % x", init, crc(init))
			}
			if len(request) != 20 || binary.BigEndian.Uint16(request[2:]) != 9001 || request[4] != 5 || request[5] != 0 || request[8] != 1 || w.sum(33, request) != 0xffff {
				t.Errorf("no Request as it should be: % x, sum %#x", request, w.sum(33, request))
			}
			if len(datagram) != 16 || binary.BigEndian.Uint16(datagram[2:]) != 9002 {
				t.Errorf("no datagram of UDP-Lite as it should be: % x", datagram)
			}
			if covered := binary.BigEndian.Uint16(datagram[4:]); covered != 0 && covered != 16 || w.sum(136, datagram) != 0xffff {
				t.Errorf("the checksum of UDP-Lite is wrong: % x, sum %#x", datagram, w.sum(136, datagram))
			}
			if len(raw) != 8 {
				t.Errorf("%d bytes of protocol 47, want 8", len(raw))
			}
			for _, b := range [][]byte{init[16:20], request[10:16], datagram[8:], raw} {
				if seen[string(b)] {
					t.Errorf("% x came twice", b)
				}
				seen[string(b)] = true
			}
		}
	})
}

// The test's own CRC32c agrees with a program that others wrote.
func TestTheChecksumOfSCTPIsNmapsToo(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		heard := w.hearProtocol("132")
		args := []string{"-n", "-Pn", "-sY", "--max-retries", "0", "-p", "9000", w.remote.String()}
		if w.remote.Is6() {
			args = append(args, "-6")
		}
		w.client.Run("nmap", args...)
		if b := heard(); !bytes.Equal(b[8:12], crc(b)) {
			t.Errorf("nmap's INIT % x has another checksum than % x", b, crc(b))
		}
	})
}

func TestSendOfOtherProtocolsSaysWhatPrivilegeItNeeds(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		for step, want := range map[string]string{
			"9000/sctp":    "this user may not send packets of sctp: give this program CAP_NET_RAW with setcap",
			"9001/dccp":    "this user may not send packets of dccp: give this program CAP_NET_RAW with setcap",
			"9002/udplite": "", // no right where the kernel has it
			"proto/47":     "this user may not send packets of a bare protocol: give this program CAP_NET_RAW with setcap",
		} {
			plan, err := parse(t, step).Plan(w.local, w.remote)
			if err != nil {
				t.Fatal(err)
			}
			w.unprivileged(func() { err = plan.Send(t.Context()) })
			if strings.HasSuffix(step, "udplite") && err != nil && strings.Contains(err.Error(), "packets of udplite") {
				t.Skip("this kernel has no UDP-Lite")
			}
			if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
				t.Errorf("%s: got %v, want %q", step, err, want)
			}
			if err != nil && (strings.Contains(err.Error(), "900") || strings.Contains(err.Error(), "47")) {
				t.Errorf("%s: the error has the port or the number: %v", step, err)
			}
		}
	})
}

func TestPlanOfOtherProtocols(t *testing.T) {
	plan, err := parse(t, "9000/sctp 9001/dccp 9002/udplite proto/47 7000/tcp").Plan(netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2"))
	if err != nil {
		t.Fatal(err)
	}
	want := `to 192.0.2.2 from 192.0.2.1:
  sctp port 9000, 0 bytes
  dccp port 9001, 0 bytes, after 20ms
  udplite port 9002, 8 bytes, after 20ms
  proto/47, 8 bytes, after 20ms
  tcp port 7000, 0 bytes, after 20ms
`
	if got := plan.String(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for _, bad := range []sallyport.Step{{Proto: 58}, {Proto: 255}, {}} {
		if err := (sallyport.Sequence{Steps: []sallyport.Step{bad}}).Validate(); err == nil {
			t.Errorf("%v can be sent", bad)
		}
	}
}

// withoutLite runs f on a thread whose kernel seems to have no UDP-Lite: a seccomp
// program says so to each socket(2) that asks for its datagrams.
func (w *world) withoutLite(f func()) {
	w.client.Do(func() { // on a thread of its own, which ends with it
		low := func(arg uint32) bpf.LoadAbsolute { return bpf.LoadAbsolute{Off: 16 + 8*arg, Size: 4} } // struct seccomp_data
		raw, err := bpf.Assemble([]bpf.Instruction{
			bpf.LoadAbsolute{Off: 0, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_SOCKET, SkipTrue: 6},
			low(2),
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_UDPLITE, SkipTrue: 4},
			low(1),
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xf},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SOCK_DGRAM, SkipTrue: 1},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
			bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
		})
		if err != nil {
			w.t.Error(err)
			return
		}
		program := make([]unix.SockFilter, len(raw))
		for i, r := range raw {
			program[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		fprog := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
		if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&fprog))); errno != 0 {
			w.t.Errorf("seccomp: %v", errno)
			return
		}
		f()
	})
}

func TestSendOfUDPLiteWhereTheKernelHasNone(t *testing.T) {
	onBothFamilies(t, func(t *testing.T, w *world) {
		heard := w.hearProtocol("136")
		plan, err := parse(t, "9002/udplite").Plan(w.local, w.remote)
		if err != nil {
			t.Fatal(err)
		}
		w.withoutLite(func() { err = plan.Send(t.Context()) })
		if err != nil {
			t.Fatal(err)
		}
		b := heard()
		if len(b) != 16 || binary.BigEndian.Uint16(b)>>14 != 3 || binary.BigEndian.Uint16(b[2:]) != 9002 ||
			binary.BigEndian.Uint16(b[4:]) != 0 || w.sum(136, b) != 0xffff {
			t.Errorf("no datagram of UDP-Lite as it should be: % x, sum %#x", b, w.sum(136, b))
		}
	})
}
