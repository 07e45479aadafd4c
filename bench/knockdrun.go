package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const (
	commandRounds = 200
	// toucher is the command of the door. What it takes by itself is a row too.
	toucher = "/usr/bin/touch"
)

// commandTiming is one row: who runs the command, and for which family.
type commandTiming struct {
	name string
	run  func() (time.Duration, bool)
	took []time.Duration
	lost int
}

// commands measures from the last step of a knock until the door's command has run.
func (b *bench) commands() {
	b.title("knockd.conf: knock -> command", fmt.Sprintf(`  From just before the last step is sent until the file is there that the door's command makes, "%s
  FILE", for %d knocks from fresh addresses, one at a time. The floor is the command started by this program.
  knockd's packets wait in libpcap, up to 50 ms.`, toucher, commandRounds))
	if err := precise(); err != nil {
		b.Fatal(err)
	}
	made := b.newMade()
	rows := []*commandTiming{{name: "floor", run: made.floor}}
	for _, k := range b.keepers() {
		k.start(fmt.Sprintf("[door]\nsequence = 47011:tcp,48022:udp,45033:tcp\nseq_timeout = 5\ntcpflags = syn\nstart_command = %s %s/%s-%%IP%%\n", toucher, made.dir, k.name), nil)
		made.ready(k)
		for i, family := range families {
			rows = append(rows, &commandTiming{name: k.name + ", " + family, run: func() (time.Duration, bool) { return made.knocked(k, i == 1) }})
		}
	}
	for range commandRounds {
		b.interrupted()
		for _, r := range rows {
			d, ok := r.run()
			if !ok {
				r.lost++
				continue
			}
			r.took = append(r.took, d)
		}
	}
	for _, r := range rows {
		if r.lost > openLost {
			b.Fatalf("%s: %d knocks of %d ran nothing", r.name, r.lost, commandRounds)
		}
		b.row(r.name, "n %-5d  p50 %-10s  p99 %-10s  max %-10s  ran nothing: %d",
			len(r.took), ms(quantile(r.took, .5)), ms(quantile(r.took, .99)), ms(quantile(r.took, 1)), r.lost)
	}
}

// ready waits until a daemon that was just started runs its command.
func (m *made) ready(k *keeper) {
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); {
		if _, ok := m.knocked(k, false); ok {
			for _, pid := range children(k.cmd.Process.Pid) {
				preferSession(pid) // one may be a command that has just ended
			}
			return
		}
	}
	m.b.Fatalf("%s does not run its command", k.name)
}

// knocked knocks from a fresh address and gives the time until the command ran. Its
// file has the daemon's name too: in both worlds the addresses are the same.
func (m *made) knocked(k *keeper, v6 bool) (time.Duration, bool) {
	w := k.w
	from, to := w.fresh(v6), serverAddr(v6)
	knock := opening(w, from, to)
	last := len(knock) - 1
	var began time.Time
	for i, packet := range knock {
		if i == last {
			began = time.Now()
		}
		if err := w.prober.wire.SendOne(packet); err != nil {
			m.b.Fatalf("sending: %v", err)
		}
		if i < last {
			time.Sleep(between)
		}
	}
	return m.await(k.name+"-"+from.String(), began)
}

// made is a directory where commands make files, watched by inotify(7).
type made struct {
	b    *bench
	dir  string
	fd   int
	last uint16
	in   [16 << 10]byte
}

func (b *bench) newMade() *made {
	dir, err := os.MkdirTemp("", "sallyport-bench-")
	m := &made{b: b, dir: dir, fd: -1}
	if err == nil {
		b.Cleanup(func() { os.RemoveAll(dir) })
		m.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	}
	if err == nil {
		b.Cleanup(func() { unix.Close(m.fd) })
		_, err = unix.InotifyAddWatch(m.fd, dir, unix.IN_CREATE)
	}
	if err != nil {
		b.Fatalf("watching a directory: %v", err)
	}
	return m
}

// floor starts the command.
func (m *made) floor() (time.Duration, bool) {
	m.last++
	name := netip.AddrFrom4([4]byte{0, 0, byte(m.last >> 8), byte(m.last)}).String()
	cmd := exec.Command(toucher, filepath.Join(m.dir, name))
	began := time.Now()
	if err := cmd.Start(); err != nil {
		m.b.Fatal(err)
	}
	defer cmd.Wait()
	return m.await(name, began)
}

// await waits for a file and gives the time since its command was asked for.
func (m *made) await(name string, began time.Time) (time.Duration, bool) {
	for {
		left := giveUp - time.Since(began)
		limit := unix.NsecToTimespec(int64(left))
		if n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(m.fd), Events: unix.POLLIN}}, &limit, nil); left <= 0 || n == 0 && err == nil {
			return 0, false
		}
		n, err := unix.Read(m.fd, m.in[:])
		if err == nil && hasName(m.in[:n], name) {
			return time.Since(began), true
		}
	}
}

// hasName reports whether one of the events is about a file of this name. Each has
// 16 bytes, the last four of which say how long its name is, padded with NULs.
func hasName(events []byte, name string) bool {
	for len(events) >= unix.SizeofInotifyEvent {
		length := int(binary.NativeEndian.Uint32(events[12:]))
		end := unix.SizeofInotifyEvent + length
		if length < 0 || end > len(events) {
			return false
		}
		if string(bytes.TrimRight(events[unix.SizeofInotifyEvent:end], "\x00")) == name {
			return true
		}
		events = events[end:]
	}
	return false
}
