package main

import (
	"encoding/json"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	// receiveBuffer is the most that the kernel lets wait at the packet socket:
	// capture.Buffer, which the kernel doubles. It is no process's memory, so it
	// is counted whole where it may be in use.
	receiveBuffer = 8 << 20
	floodPackets  = 400_000
	// settle is how long a process has after its start or a flood before its
	// memory is read: queues empty, and Go gives back what it does not need.
	settle = 3 * time.Second

	idleAim = 16 << 20
	fullAim = 48 << 20
)

// memory measures both of our processes, idle and after two floods.
func (b *bench) memory() {
	b.title("memory, as Pss", fmt.Sprintf(`  /proc/PID/smaps_rollup of warden and engine together, %v after the start or the flood, the program
  mapped by these two alone. The packet socket's queue is the kernel's and empty when idle; after a
  flood its whole bound of %s is added. A flood is %d first steps, as fast as this machine
  sends them, from %d forged sources.`, settle, mib(receiveBuffer), floodPackets, 2*forgedEach))
	ours, theirs := b.newWorld(), b.newWorld()
	d := ours.sallyport(sallyportConfig)
	knockd := theirs.knockd()
	theirs.flush()
	time.Sleep(settle)
	pids := ours.processes(d)
	idle := b.pss(pids...)
	b.row("knockd, idle", "%s", mib(b.pss(knockd.Pid)))
	b.row("warden + engine, idle", "%s + %s", mib(b.pss(pids[0])), mib(b.pss(pids[1:]...)))
	b.aim("sallyport, idle", mib(idle), "at most "+mib(idleAim), idle <= idleAim)
	var after [2]int
	for i := range after {
		b.interrupted()
		ours.swamp(d, uint64(i))
		after[i] = b.pss(pids...) + receiveBuffer
		b.row("warden + engine", "%s + %s + %s queue", mib(b.pss(pids[0])), mib(b.pss(pids[1:]...)), mib(receiveBuffer))
		b.aim(fmt.Sprintf("sallyport, after flood %d", i+1), mib(after[i]), "at most "+mib(fullAim), after[i] <= fullAim)
	}
	growth := after[1] - after[0]
	b.aim("the second flood adds", mib(growth), "no more than 1 MiB", growth <= 1<<20)
	theirs.swamp(nil, 2)
	b.row("knockd, after one such flood", "%s", mib(b.pss(knockd.Pid)))
}

// swamp floods the server and prints the rate that its interface counted.
func (w *world) swamp(d *testnet.Daemon, seed uint64) {
	f := w.newFlooder(forged(seed, forgedEach, true, firstStep))
	before, began := w.received(), time.Now()
	f.start(floodPackets, 0, 1)
	if err := f.wait(); err != nil {
		w.b.Fatalf("the flood: %v", err)
	}
	took := time.Since(began)
	rate := float64(w.received()-before) / took.Seconds()
	time.Sleep(settle)
	if d == nil {
		w.b.row("flood of knockd", "%.0f packets a second received", rate)
		return
	}
	s := w.status(d)
	w.b.row("flood", "%.0f packets a second received, capture drops so far %d of %d; %d attempts in the table",
		rate, s.Counters["dropped"], s.Counters["captured"], s.Attempts)
}

func (w *world) status(d *testnet.Daemon) control.Status {
	return w.readStatus(d.Tool("status", "--json"))
}

// readStatus reads what the status command printed.
func (w *world) readStatus(out string, err error) (s control.Status) {
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	if err != nil {
		w.b.Fatalf("status: %v\n%s", err, out)
	}
	return s
}

// processes gives the daemon's processes, the warden first.
func (w *world) processes(d *testnet.Daemon) []int {
	pids := append([]int{d.Cmd.Process.Pid}, children(d.Cmd.Process.Pid)...)
	if len(pids) != 2 {
		w.b.Fatalf("the daemon has %d processes, not a warden and an engine", len(pids))
	}
	return pids
}

// children gives the processes that a process started and that have not ended.
func children(of int) (pids []int) {
	tasks, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", of))
	for _, task := range tasks {
		text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", of, task.Name()))
		for child := range strings.FieldsSeq(string(text)) {
			pid, _ := strconv.Atoi(child)
			pids = append(pids, pid)
		}
	}
	return pids
}

var pssLine = regexp.MustCompile(`(?m)^Pss:\s+(\d+) kB`)

// pss gives the sum in bytes of what the processes have in memory, each shared
// page divided by the number of processes that share it (proc(5)).
func (b *bench) pss(pids ...int) int {
	sum := 0
	for _, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		m := pssLine.FindSubmatch(text)
		if err != nil || m == nil {
			b.Fatalf("reading the memory of process %d: %v", pid, err)
		}
		kb, _ := strconv.Atoi(string(m[1]))
		sum += kb << 10
	}
	return sum
}
