package main

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	startRounds  = 9
	startDoors   = 1000
	startLimit   = 200 * time.Millisecond // the aim for so many doors
	startTimeout = 20 * time.Second       // for either daemon; what takes longer has no figure
)

// knockdPart measures our daemon under the name knockd beside Debian's.
func (b *bench) knockdPart() {
	b.starts()
	b.doorCosts()
	b.sourceCosts()
	b.liveCosts()
	b.commands()
}

// keeper is a daemon that serves a knockd.conf under the name knockd: ours or
// Debian's.
type keeper struct {
	name   string
	w      *world
	ours   bool
	binary string
	dir    string // of its config, and in place of /var/lib and /run
	cmd    *exec.Cmd
	pids   []int
	// What our packet socket had lost and got in all when last asked.
	lost, all uint64
}

// keepers gives both, in two worlds alike.
func (b *bench) keepers() [2]*keeper {
	ours, theirs := b.newWorld(), b.newWorld()
	return [2]*keeper{
		{name: "sallyport", w: ours, ours: true, binary: ours.copyProgram("knockd"), dir: ours.dir()},
		{name: "knockd", w: theirs, binary: "knockd", dir: theirs.dir()},
	}
}

// doorPorts gives three ports for each of so many doors, no port twice.
func doorPorts(doors int) []uint16 {
	random := rand.New(rand.NewPCG(uint64(doors), 0))
	ports := make([]uint16, 3*doors)
	for i, n := range random.Perm(1<<16 - 1024)[:len(ports)] {
		ports[i] = uint16(1024 + n)
	}
	return ports
}

// doorsFile writes a knockd.conf of doors with three ports each. The command, if
// any, is the same for all.
func doorsFile(ports []uint16, command string) string {
	var text strings.Builder
	for i := 0; i < len(ports); i += 3 {
		fmt.Fprintf(&text, "[door%d]\nsequence = %d,%d,%d\nseq_timeout = 600\ntcpflags = syn\n", i/3, ports[i], ports[i+1], ports[i+2])
		text.WriteString(command)
	}
	return text.String()
}

// start starts the daemon in the foreground on a config. Its output goes to out,
// which may be nil.
func (k *keeper) start(config string, out io.Writer, args ...string) {
	file := filepath.Join(k.dir, "knockd.conf")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		k.w.b.Fatal(err)
	}
	k.cmd = exec.Command(k.binary, append([]string{"-c", file, "-i", k.w.serverWire}, args...)...)
	k.cmd.Stdout = out
	var err error
	k.w.server.Do(func() {
		if err = ownDirectories(k.dir); err == nil {
			err = k.cmd.Start()
		}
	})
	if err != nil {
		k.w.b.Fatalf("%s: %v; Debian's is in the package knockd", k.name, err)
	}
	cmd := k.cmd
	k.w.b.Cleanup(func() { end(cmd, syscall.SIGKILL) })
}

// ownDirectories gives this thread, and what it starts, a /var/lib and a /run of
// its own: the daemon's state is no affair of this machine's. It is a directory on
// a disk, as the real one is.
func ownDirectories(dir string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	for _, at := range []string{"/var/lib", "/run"} {
		own := filepath.Join(dir, filepath.Base(at))
		if err := os.MkdirAll(own, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(own, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// end ends a process with a signal, unless it has ended.
func end(cmd *exec.Cmd, sig syscall.Signal) {
	if cmd.ProcessState == nil {
		cmd.Process.Signal(sig)
		cmd.Wait()
	}
}

func (k *keeper) stop() { end(k.cmd, syscall.SIGTERM) }

// starts measures from the start of the program until it says that it listens.
func (b *bench) starts() {
	b.title("knockd.conf: start", fmt.Sprintf(`  From just before the program is started until it prints "listening", with so many doors of three ports
  each, every port another, and a command to start and one to stop. Ours under the name knockd and Debian's
  knockd take turns, in two worlds alike; the median of %d. What takes longer than %v has no figure.`, startRounds, startTimeout))
	pair := b.keepers()
	sizes := []int{1, 100, startDoors}
	b.sizes("doors", sizes)
	table := [2][]time.Duration{}
	for _, doors := range sizes {
		const command = "start_command = /sbin/iptables -A INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\ncmd_timeout = 10\n" +
			"stop_command = /sbin/iptables -D INPUT -s %IP% -p tcp --dport 22 -j ACCEPT\n"
		config := doorsFile(doorPorts(doors), command)
		both := b.inTurn(startRounds, func(i int) (time.Duration, bool) { return pair[i].listens(config) })
		table[0], table[1] = append(table[0], both[0]), append(table[1], both[1])
	}
	for i, k := range pair {
		b.row(k.name, "%s", cells(table[i], ms))
	}
	last := table[0][len(sizes)-1]
	b.aim(fmt.Sprintf("sallyport, %d doors", startDoors), ms(last), "at most "+ms(startLimit), last > 0 && last <= startLimit)
}

// inTurn has both daemons measured so often, in alternation, and gives the
// medians; 0 for one that had no figure once, which is not tried again.
func (b *bench) inTurn(rounds int, measure func(i int) (time.Duration, bool)) (medians [2]time.Duration) {
	var figures [2][]time.Duration
	var none [2]bool
	for range rounds {
		for i := range figures {
			b.interrupted()
			if none[i] {
				continue
			}
			d, ok := measure(i)
			figures[i], none[i] = append(figures[i], d), !ok
		}
	}
	for i := range figures {
		if !none[i] {
			medians[i] = quantile(figures[i], .5)
		}
	}
	return medians
}

// listens starts the daemon, ends it, and gives how long it took to listen.
func (k *keeper) listens(config string) (time.Duration, bool) {
	out, in, err := os.Pipe()
	if err != nil {
		k.w.b.Fatal(err)
	}
	defer out.Close()
	out.SetReadDeadline(time.Now().Add(startTimeout))
	began := time.Now()
	k.start(config, in, "-v")
	in.Close()
	defer k.stop()
	said := ""
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "listening on ") {
			return time.Since(began), true
		}
		said += lines.Text() + "\n"
	}
	if time.Since(began) < startTimeout {
		k.w.b.Fatalf("%s ended before it listened: %s", k.name, said)
	}
	return 0, false
}

// sizes prints the head of a table.
func (b *bench) sizes(what string, sizes []int) {
	text := ""
	for _, n := range sizes {
		text += fmt.Sprintf("%12d", n)
	}
	b.row(what, "%s", text)
}

// cells gives a row of a table; a figure that is not there is a dash.
func cells(figures []time.Duration, spell func(time.Duration) string) string {
	text := ""
	for _, d := range figures {
		cell := "-"
		if d > 0 {
			cell = spell(d)
		}
		text += fmt.Sprintf("%12s", cell)
	}
	return text
}
