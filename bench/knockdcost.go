package main

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	costRounds = 5
	// streamSources of each family send streamPackets in one round, in portions that
	// either daemon's queue holds whole.
	streamSources = 4
	streamPackets = 8 * portion
	portion       = 2048
	// A daemon has finished when it used no more than restless in calm: libpcap
	// waits up to 50 ms until it shows knockd a packet, and a Go program has work of
	// its own now and then.
	calm     = 80 * time.Millisecond
	restless = time.Millisecond
	// enough processor time for one round of a stream: a slow daemon gets fewer
	// portions.
	enough = time.Second
	// fillLimit is for filling a daemon's table; beyond it there is no figure.
	fillLimit = 20 * time.Second
	// flat is how many times its cost for one a packet may cost for the most doors
	// or sources: what grows with them would be at a thousand.
	flat = 1.5
)

// column is what the daemons of one column of a table are given.
type column struct {
	doors   int
	sources int // with a half-done knock
	rate    int // packets a second; 0: they wait in a queue
}

// doorCosts measures what a packet costs beside so many doors.
func (b *bench) doorCosts() {
	b.title("knockd.conf: one packet, by doors", fmt.Sprintf(`  Processor time of all of the daemon's processes for each SYN to a random port of a random door, %d of
  them in a round, from %d sources of each family. Doors as above, without commands; neither has a log.
  Both take turns; the median of %d. A daemon is stopped while %d packets are queued, so that it is not
  woken for each. One that does not listen within %v has no figure.`, streamPackets, streamSources, costRounds, portion, startTimeout))
	sizes := []int{1, 10, 100, 1000}
	b.flat("doors", sizes, b.costs("doors", sizes, func(doors int) column { return column{doors: doors} }))
}

// sourceCosts measures what a packet costs beside so many half-done knocks.
func (b *bench) sourceCosts() {
	b.title("knockd.conf: one packet, by sources", fmt.Sprintf(`  The same with one door, after so many other sources, half of each family, have made its first step: their
  attempts are under way. A daemon that takes more than %v of processor time to hear these first steps
  has no figure.`, fillLimit))
	sizes := []int{1, 256, 4096, 16384, 65536}
	b.flat("sources", sizes, b.costs("sources", sizes, func(sources int) column { return column{doors: 1, sources: sources} }))
}

// liveCosts measures what a packet costs that comes by itself.
func (b *bench) liveCosts() {
	b.title("knockd.conf: one packet, as they come", `  The same with ten doors, the daemon running: so many packets a second. libpcap shows knockd all
  of up to 50 ms at once; ours is woken for each, so that a knock opens at once.`)
	b.costs("packets a second", []int{2000, 20_000}, func(rate int) column { return column{doors: 10, rate: rate} })
}

// flat judges how much our costs grow.
func (b *bench) flat(what string, sizes []int, costs []time.Duration) {
	first, last := costs[0], costs[len(costs)-1]
	growth := float64(last) / float64(first)
	b.aim(fmt.Sprintf("sallyport, %d %s to 1", sizes[len(sizes)-1], what), fmt.Sprintf("%.2f times", growth), fmt.Sprintf("at most %.1f", flat), first > 0 && last > 0 && growth <= flat)
}

// costs prints a table and gives our row.
func (b *bench) costs(what string, sizes []int, of func(size int) column) []time.Duration {
	pair := b.keepers()
	b.sizes(what, sizes)
	var table [2][]time.Duration
	for _, size := range sizes {
		c := of(size)
		ports := doorPorts(c.doors)
		var ready [2]bool
		for i, k := range pair {
			ready[i] = k.serve(ports) && k.fill(ports[0], c.sources)
		}
		both := b.inTurn(costRounds, func(i int) (time.Duration, bool) {
			if !ready[i] {
				return 0, false
			}
			return pair[i].cost(ports, c.rate), true
		})
		for i, k := range pair {
			table[i] = append(table[i], both[i])
			k.stop()
		}
	}
	for i, k := range pair {
		b.row(k.name, "%s", cells(table[i], func(d time.Duration) string { return fmt.Sprintf("%d ns", d) }))
	}
	return table[0]
}

// serve starts the daemon and waits until it listens, false if that took too long.
// It prints nothing then, because its lines of steps would be measured too; so it
// listens when it has a packet socket and nothing to do.
func (k *keeper) serve(ports []uint16) bool {
	k.start(doorsFile(ports, ""), nil)
	for end := time.Now().Add(startTimeout); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if k.pids = append([]int{k.cmd.Process.Pid}, children(k.cmd.Process.Pid)...); k.listening() && k.finish(calm) {
			for _, pid := range k.pids[1:] {
				if err := preferSession(pid); err != nil {
					k.w.b.Fatal(err)
				}
			}
			return true
		}
	}
	return false
}

// listening reports whether the daemon has what it hears packets through.
func (k *keeper) listening() bool {
	if k.ours {
		return len(k.pids) == 2 && k.control() != ""
	}
	fd := packetSocket(k.cmd.Process.Pid)
	if fd >= 0 {
		unix.Close(fd)
	}
	return fd >= 0
}

// fill makes attempts of so many sources at the door that begins with port.
func (k *keeper) fill(port uint16, sources int) bool {
	if sources == 0 {
		return true
	}
	packets := forged(7, max(sources/2, 1), sources > 1, func(src netip.AddrPort, to netip.Addr, random *rand.Rand) []byte {
		return testnet.TCP(src, netip.AddrPortFrom(to, port), sequence.SYN, random.Uint32())
	})
	before := k.used()
	k.drops() // counts from here
	for len(packets) > 0 {
		n := min(portion, len(packets))
		k.queue(packets[:n])
		packets = packets[n:]
		if !k.finish(2*fillLimit) || k.used()-before > fillLimit {
			return false
		}
	}
	if lost, _ := k.drops(); lost > 0 {
		k.w.b.Fatalf("%s did not hear %d of %d first steps", k.name, lost, sources)
	}
	return true
}

// cost plays one round and gives the processor time of one packet.
func (k *keeper) cost(ports []uint16, rate int) time.Duration {
	k.drops()
	k.finish(calm)
	before, sent, began := k.used(), 0, time.Now()
	for sent < streamPackets && k.used()-before < enough && time.Since(began) < 2*enough {
		k.w.b.interrupted()
		if packets := k.stream(ports); rate == 0 {
			k.queue(packets)
		} else {
			k.send(packets, rate)
		}
		sent += portion
		if !k.finish(2 * fillLimit) {
			k.w.b.Fatalf("%s is busy still, %v after %d packets", k.name, 2*fillLimit, portion)
		}
	}
	took := k.used() - before
	lost, heard := k.drops()
	if heard < uint64(sent) || lost > heard/100 {
		k.w.b.Fatalf("%s was sent %d packets, its socket got %d and lost %d of them: this machine is too busy", k.name, sent, heard, lost)
	}
	return took / time.Duration(sent)
}

// stream makes a portion of packets. No two are alike, or they would be copies.
func (k *keeper) stream(ports []uint16) (packets [][]byte) {
	for n := range portion {
		source, is6 := n/2%streamSources, n%2 == 1
		from := netip.AddrFrom4([4]byte{198, 18, 0, byte(1 + source)})
		if is6 {
			from = netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 5: 1, 15: byte(1 + source)})
		}
		to := netip.AddrPortFrom(serverAddr(is6), ports[rand.IntN(len(ports))])
		packets = append(packets, testnet.TCP(netip.AddrPortFrom(from, uint16(1024+rand.IntN(60000))), to, sequence.SYN, rand.Uint32()))
	}
	return packets
}

// queue sends packets as fast as it can while the daemon is stopped.
func (k *keeper) queue(packets [][]byte) {
	k.signal(syscall.SIGSTOP)
	k.send(packets, 0)
	k.signal(syscall.SIGCONT)
}

func (k *keeper) signal(sig syscall.Signal) {
	for _, pid := range k.pids {
		if err := syscall.Kill(pid, sig); err != nil {
			k.w.b.Fatalf("%s: %v", k.name, err)
		}
	}
}

// send sends packets, so many a second at most; rate 0 is as fast as it can.
func (k *keeper) send(packets [][]byte, rate int) {
	began := time.Now()
	for i, p := range packets {
		if rate > 0 {
			time.Sleep(time.Duration(i)*time.Second/time.Duration(rate) - time.Since(began))
		}
		if err := k.w.prober.wire.SendOne(p); err != nil {
			k.w.b.Fatalf("sending: %v", err)
		}
	}
}

// finish waits until the daemon has nothing to do, and reports whether that was
// within the limit.
func (k *keeper) finish(limit time.Duration) bool {
	for end := time.Now().Add(limit); ; {
		before := k.used()
		time.Sleep(calm)
		if k.used()-before <= restless {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// used is the processor time of the daemon's processes.
func (k *keeper) used() (sum time.Duration) {
	for _, pid := range k.pids {
		// A process's own clock of processor time, clock_getcpuclockid(3): nanoseconds,
		// where /proc/PID/stat has hundredths of a second.
		var t unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &t); err != nil {
			k.w.b.Fatalf("the processor time of %s: %v", k.name, err)
		}
		sum += time.Duration(t.Nano())
	}
	return sum
}

// drops gives what the daemon's packet socket lost and what it got in all, since
// the last call.
func (k *keeper) drops() (lost, all uint64) {
	if k.ours {
		return k.counted()
	}
	fd := packetSocket(k.cmd.Process.Pid)
	if fd < 0 {
		k.w.b.Fatalf("%s has no packet socket", k.name)
	}
	defer unix.Close(fd)
	s, err := unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	if err != nil {
		k.w.b.Fatalf("the counters of %s: %v", k.name, err)
	}
	return uint64(s.Drops), uint64(s.Packets)
}

// counted is what our engine says of its packet socket.
func (k *keeper) counted() (lost, all uint64) {
	out, err := k.w.server.Output(k.w.b.program, "status", "--json", "--control", k.control())
	s := k.w.readStatus(out, err)
	lost, all = s.Counters["dropped"]-k.lost, s.Counters["captured"]-k.all
	k.lost, k.all = s.Counters["dropped"], s.Counters["captured"]
	return lost, all
}

// control is the path of our daemon's control socket, "" before it is there.
func (k *keeper) control() string {
	found, _ := filepath.Glob(filepath.Join(k.dir, "run", "sallyport", "*.sock"))
	if len(found) == 0 {
		return ""
	}
	return found[0]
}

// packetSocket gives a descriptor for the packet socket of another process, -1 if it
// has none. libpcap keeps knockd's counters to itself (pidfd_getfd(2)).
func packetSocket(pid int) int {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	defer unix.Close(process)
	list, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	for _, entry := range list {
		n, _ := strconv.Atoi(entry.Name())
		fd, err := unix.PidfdGetfd(process, n, 0)
		if err != nil {
			continue
		}
		if domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err == nil && domain == unix.AF_PACKET {
			return fd
		}
		unix.Close(fd)
	}
	return -1
}
