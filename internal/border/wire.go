package border

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// wire walks the fields of one message in either direction, so that a
// message's layout is written once. Numbers are big-endian.
type wire struct {
	rest    []byte
	writing bool
	bad     bool
}

func (w *wire) check(ok bool) { w.bad = w.bad || !ok }

func (w *wire) take(n int) []byte {
	b := w.rest[:n]
	w.rest = w.rest[n:]
	return b
}

func (w *wire) bytes(p []byte) {
	if b := w.take(len(p)); w.writing {
		copy(b, p)
	} else {
		copy(p, b)
	}
}

func (w *wire) bool(v *bool) {
	var b uint8
	if *v {
		b = 1
	}
	w.u8(&b)
	*v = b == 1
	w.check(b <= 1)
}

func (w *wire) u8(p *uint8) {
	if b := w.take(1); w.writing {
		b[0] = *p
	} else {
		*p = b[0]
	}
}

func (w *wire) u16(p *uint16) {
	if b := w.take(2); w.writing {
		binary.BigEndian.PutUint16(b, *p)
	} else {
		*p = binary.BigEndian.Uint16(b)
	}
}

func (w *wire) u32(p *uint32) {
	if b := w.take(4); w.writing {
		binary.BigEndian.PutUint32(b, *p)
	} else {
		*p = binary.BigEndian.Uint32(b)
	}
}

func (w *wire) u64(p *uint64) {
	if b := w.take(8); w.writing {
		binary.BigEndian.PutUint64(b, *p)
	} else {
		*p = binary.BigEndian.Uint64(b)
	}
}

func (w *wire) positive(p *time.Duration) {
	n := uint64(*p)
	w.u64(&n)
	*p = time.Duration(n)
	w.check(*p > 0)
}

// time carries nanoseconds since 1970; 0 is the zero time.
func (w *wire) time(p *time.Time) {
	var n uint64
	if !p.IsZero() {
		n = uint64(p.UnixNano())
	}
	w.u64(&n)
	if !w.writing && n != 0 {
		*p = time.Unix(0, int64(n))
	}
}

// mask carries the length of a mask, and wants the address to be its lowest, so
// that a network has one spelling.
func (w *wire) mask(bits *uint8, addr netip.Addr) {
	w.u8(bits)
	if *bits != 0 && !w.bad {
		p, err := addr.Prefix(int(*bits))
		w.check(err == nil && !p.IsSingleIP() && p.Addr() == addr)
	}
}

// payload carries a length and MaxPayload bytes, zero behind the length.
func (w *wire) payload(p *Payload) {
	w.u8(&p.Length)
	w.bytes(p.Bytes[:])
	if p.Length > MaxPayload {
		w.bad = true
		return
	}
	for _, c := range p.Bytes[p.Length:] {
		w.check(c == 0)
	}
}

// addr carries a family byte, 4 or 6, and 16 bytes. An IPv4 address stands in
// the first four. A 4-in-6 address is refused: it would be a second spelling.
func (w *wire) addr(p *netip.Addr) {
	var family uint8
	var b [16]byte
	if w.writing {
		family = 6
		if p.Is4() {
			family = 4
		}
		copy(b[:], p.AsSlice())
	}
	w.u8(&family)
	w.bytes(b[:])
	if w.writing {
		return
	}
	switch family {
	case 4:
		*p = netip.AddrFrom4([4]byte(b[:4]))
		w.check([12]byte(b[4:]) == [12]byte{})
	case 6:
		*p = netip.AddrFrom16(b)
		w.check(!p.Is4In6())
	default:
		w.bad = true
	}
}
