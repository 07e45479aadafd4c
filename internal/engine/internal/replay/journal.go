//go:build linux

package replay

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/dchest/siphash"
)

// A journal is two files. One is current and grows; the other is what it was
// rewritten from, or what a rewriting left half-done. Numbers are big-endian.
//
// A file has a header of 64 bytes, which is the same 32 bytes twice, so that no
// one bad byte can hide a whole file:
//
//	0  magic, 4 bytes
//	4  version, uint32
//	8  generation, uint64: the file with the greater one is current
//	16 least, uint64: how many records stood behind the header when it was
//	   written, the boundary among them
//	24 SipHash-2-4 of the 24 bytes before
//
// and then records of 64 bytes:
//
//	0  stamp, int64, 1 or more
//	8  key, 32 bytes
//	40 tag, 16 bytes
//	56 kind, 1 byte
//	57 the low 56 bits of SipHash-2-4 of bytes 0 to 55, keyed with the
//	   generation, the record's index in the file and its kind
//
// SipHash finds a torn or damaged record; nobody is kept from forging one, but
// whoever can write these files needs no forging. Its key makes what an earlier
// life of the file left at the same place a bad record.
const (
	magic      = "heRd"
	version    = 1
	headerSize = 64
	recordSize = 64

	// slack is how many superseded records a file may hold in any case: 256 KiB.
	slack = 4096
	// maxRecords bounds the reading: twice what long lets a full memory reach.
	maxRecords = 8 * MaxKeys * PerKey
	// chunk is what one read or one write of many records takes, in bytes.
	chunk = 1024 * recordSize
)

// The kinds of records: an accepted message by what its stamp is, and the stamp
// up to which an unclean boot refuses. It is a kind of its own because a start
// in the same boot must find it again.
const (
	clock    = 1
	counter  = 2
	boundary = 3
)

type record struct {
	kind byte
	Heard
}

// file is what a journal does with a descriptor. A test stands in for the disk
// to stop at every call and to lose what was never synced.
type file interface {
	size() (int64, error)
	read(b []byte, off int64) error  // all of b, or an error
	write(b []byte, off int64) error // all of b, or an error
	empty() error
	sync() error
}

type journal struct {
	files      [2]file
	current    int // index into files
	generation uint64
	least      uint64 // of the current file's header
	records    int64  // in the current file: the next one's index
	tryAt      int64  // no rewriting before there are that many
	// doubt: a sync failed, after which the kernel may take pages that it lost
	// for written, or the other file may look newer. Nothing may be accepted
	// until all is written afresh.
	doubt bool
	line  [recordSize]byte
}

var (
	errDamaged = errors.New("its header is damaged")
	errAbsent  = errors.New("it has no header")
	errLong    = errors.New("it has grown to its greatest size and could not be rewritten shorter: look for space on its disk")
)

// load gives each every whole record of both files: what is in a file was
// accepted once, and each must not depend on the order. The result is false
// if anything may be lost: both files are new, a header is damaged, a whole
// record's space holds something else, or each had no room. A tail shorter
// than a record is no loss: the process died before it said yes.
func (j *journal) load(each func(*record) bool) (bool, error) {
	whole := true
	for i, f := range j.files {
		generation, least, err := readHeader(f)
		switch {
		case err == errAbsent:
			continue
		case err == errDamaged:
			whole = false
			continue
		case err != nil:
			return false, err
		}
		n, good, err := readRecords(f, generation, each)
		if err != nil {
			return false, err
		}
		whole = whole && good && uint64(n) >= least
		if generation > j.generation {
			j.current, j.generation, j.least, j.records = i, generation, least, n
		}
	}
	return whole && j.generation > 0, nil
}

// readHeader gives the generation, at least 1, and how many records there must
// be. All zeros is no header: the process died in a rewriting, which leaves its
// place empty until the end.
func readHeader(f file) (generation, least uint64, err error) {
	size, err := f.size()
	if err != nil {
		return 0, 0, err
	}
	var h [headerSize]byte
	if err := f.read(h[:min(size, headerSize)], 0); err != nil {
		return 0, 0, err
	}
	switch {
	case h == [headerSize]byte{}:
		return 0, 0, errAbsent
	case size < headerSize:
		return 0, 0, errDamaged
	}
	for _, half := range [][]byte{h[:32], h[32:]} {
		if string(half[:4]) != magic || binary.BigEndian.Uint64(half[24:]) != siphash.Hash(0, 0, half[:24]) {
			continue
		}
		if v := binary.BigEndian.Uint32(half[4:]); v != version {
			return 0, 0, fmt.Errorf("it has version %d and this program reads %d: start the program that wrote it, or remove both journal files", v, version)
		}
		return max(binary.BigEndian.Uint64(half[8:]), 1), binary.BigEndian.Uint64(half[16:]), nil
	}
	return 0, 0, errDamaged
}

func putHeader(b []byte, generation, least uint64) {
	copy(b, magic)
	binary.BigEndian.PutUint32(b[4:], version)
	binary.BigEndian.PutUint64(b[8:], generation)
	binary.BigEndian.PutUint64(b[16:], least)
	binary.BigEndian.PutUint64(b[24:], siphash.Hash(0, 0, b[:24]))
	copy(b[32:headerSize], b[:32])
}

// readRecords goes on behind a bad record: a power cut can lose a page in the
// middle, and behind it may be the counters that were synced.
func readRecords(f file, generation uint64, each func(*record) bool) (n int64, whole bool, err error) {
	size, err := f.size()
	if err != nil {
		return 0, false, err
	}
	total := max(size-headerSize, 0) / recordSize
	whole = total <= maxRecords
	total = min(total, maxRecords)
	b := make([]byte, chunk)
	for n < total {
		part := b[:min((total-n)*recordSize, chunk)]
		if err := f.read(part, headerSize+n*recordSize); err != nil {
			return 0, false, err
		}
		for ; len(part) > 0; part = part[recordSize:] {
			var r record
			if !getRecord(part[:recordSize], generation, n, &r) || !each(&r) {
				whole = false
			}
			n++
		}
	}
	return n, whole, nil
}

func putRecord(b []byte, generation uint64, index int64, r *record) {
	binary.BigEndian.PutUint64(b, uint64(r.Stamp))
	copy(b[8:40], r.Key[:])
	copy(b[40:56], r.Tag[:])
	binary.BigEndian.PutUint64(b[56:], seal(b, generation, index, r.kind))
}

func getRecord(b []byte, generation uint64, index int64, r *record) bool {
	r.kind = b[56]
	if binary.BigEndian.Uint64(b[56:]) != seal(b, generation, index, r.kind) {
		return false
	}
	r.Stamp = int64(binary.BigEndian.Uint64(b))
	copy(r.Key[:], b[8:40])
	copy(r.Tag[:], b[40:56])
	return r.Stamp > 0 && (r.kind == clock || r.kind == counter || r.kind == boundary)
}

// seal is the last 8 bytes of a record.
func seal(b []byte, generation uint64, index int64, kind byte) uint64 {
	sum := siphash.Hash(generation, uint64(index)<<8|uint64(kind), b[:56])
	return uint64(kind)<<56 | sum&(1<<56-1)
}

// append writes over what a failed or torn append left.
func (j *journal) append(r *record, synced bool) error {
	if j.records >= maxRecords {
		j.doubt = true // so that the next one begins with a rewriting
		return errLong
	}
	f := j.files[j.current]
	putRecord(j.line[:], j.generation, j.records, r)
	if err := f.write(j.line[:], headerSize+j.records*recordSize); err != nil {
		return err
	}
	if synced {
		if err := f.sync(); err != nil {
			j.doubt = true
			return err
		}
	}
	j.records++
	return nil
}

// confirm puts the current file's header on the disk once more. The process
// before may have died ahead of its sync, or after one that failed; a kernel
// would not write that page again, and a power cut would hide all behind it.
func (j *journal) confirm() error {
	return j.putHeader(j.files[j.current], j.generation, j.least)
}

func (j *journal) putHeader(f file, generation, least uint64) error {
	putHeader(j.line[:], generation, least)
	if err := f.write(j.line[:], 0); err != nil {
		return err
	}
	return f.sync()
}

// long says that most of the current file is superseded.
func (j *journal) long(live int64) bool {
	return j.records > 4*live+slack && j.records >= j.tryAt
}

// rewrite puts all into the other file and goes on there. The header comes last
// and only when what is behind it is on the disk, so that at every moment the
// file with the greatest generation is whole.
func (j *journal) rewrite(all iter.Seq[*record], now time.Time) error {
	f := j.files[1-j.current]
	// With the clock in it, a generation is not used again even if both headers
	// were lost.
	generation := max(j.generation+1, uint64(max(now.UnixNano(), 0)))
	if err := f.empty(); err != nil {
		return err
	}
	// Else a power cut could leave the header of before over records of now.
	if err := f.sync(); err != nil {
		return err
	}
	n, err := writeRecords(f, generation, all)
	if err == nil {
		err = f.sync()
	}
	if err != nil {
		f.empty() // gives the space back; without a header it counts for nothing anyway
		return err
	}
	j.doubt = true // from the first byte of the header to the end of the sync
	if err := j.putHeader(f, generation, uint64(n)); err != nil {
		return err
	}
	j.current, j.generation, j.least, j.records, j.tryAt, j.doubt = 1-j.current, generation, uint64(n), n, 0, false
	return nil
}

func writeRecords(f file, generation uint64, all iter.Seq[*record]) (n int64, err error) {
	var b bytes.Buffer
	flush := func() error {
		off := headerSize + n*recordSize - int64(b.Len())
		defer b.Reset()
		return f.write(b.Bytes(), off)
	}
	var line [recordSize]byte
	for r := range all {
		putRecord(line[:], generation, n, r)
		b.Write(line[:])
		n++
		if b.Len() == chunk {
			if err := flush(); err != nil {
				return 0, err
			}
		}
	}
	return n, flush()
}

var errShort = fmt.Errorf("only a part was written, as on a full disk: %w", io.ErrShortWrite)
