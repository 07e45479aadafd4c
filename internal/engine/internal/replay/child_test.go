//go:build linux

package replay

import (
	"bufio"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary started under one of these names is the process that is
// killed, or the one with a small disk of its own.
const (
	killedName = "replay test: killed"
	smallName  = "replay test: small disk"
)

func TestMain(m *testing.M) {
	switch os.Args[0] {
	case killedName:
		os.Exit(acceptForEver())
	case smallName:
		os.Exit(fillDisk(os.Args[1]))
	}
	os.Exit(m.Run())
}

// message is number n of the killed child: four keys, and the fourth counts.
func message(n int64) (*Heard, Rule, time.Time) {
	now := after(time.Duration(n+1) * time.Millisecond)
	if n%1024 == 3 {
		return stamped(3, n, uint64(n)), counting, now
	}
	return stamped(byte(n%3), now.UnixNano(), uint64(n)), minute, now
}

// acceptForEver prints each number when it is accepted, beginning with the one
// on its command line.
func acceptForEver() int {
	var n int64
	fmt.Sscan(os.Args[1], &n)
	m, err := New([2]int{3, 4}, n > 0, start)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	for end := n + 10_000_000; n < end; n++ {
		h, r, now := message(n)
		if err := m.Accept(h, r, now); err != nil {
			fmt.Println(err)
			return 1
		}
		os.Stdout.WriteString(fmt.Sprintln(n))
	}
	return 0
}

// kill -9 wherever it falls, also in a rewriting: whatever the process said
// that it had accepted is known to the next one.
func TestKilled(t *testing.T) {
	_, paths := files(t)
	random := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	next, rewritten, last := int64(0), 0, uint64(0)
	unsure := map[int64]bool{} // messages that a process may have died before writing
	for round := range 25 {
		said := killAfter(t, paths, next, time.Duration(5+random.IntN(60))*time.Millisecond)
		m, err := New(reopen(t, paths), true, start)
		if err != nil {
			t.Fatal(err)
		}
		for n := range said + 1 {
			h, r, now := message(n)
			if why := m.Check(h, r, now); !unsure[n] && why != Repeat && why != Forgotten && why != NotRising {
				t.Fatalf("round %d: message %d of %d: %q", round, n, said, why)
			}
		}
		if m.journal.generation != last {
			rewritten, last = rewritten+1, m.journal.generation
		}
		unsure[said+1] = true // one more may be written that it could not say
		next = said + 2
	}
	if rewritten < 5 || next < 10*slack {
		t.Errorf("only %d messages and %d rewritings were seen", next, rewritten)
	}
}

// killAfter gives the last number that the child said.
func killAfter(t *testing.T, paths [2]string, first int64, life time.Duration) int64 {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{killedName, fmt.Sprint(first)}
	for _, path := range paths {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines, said := bufio.NewScanner(out), first-1
	var timer *time.Timer
	for lines.Scan() {
		if _, err := fmt.Sscan(lines.Text(), &said); err != nil {
			t.Errorf("the child said %q", lines.Text())
		}
		if timer == nil {
			timer = time.AfterFunc(life, func() { cmd.Process.Kill() })
		}
	}
	if err := cmd.Wait(); err == nil || said < first {
		t.Fatalf("the child was not killed, or said nothing: %v", err)
	}
	return said
}

// A full disk, a real one: nothing is accepted that can't be written, nothing
// that was is lost, and with space the journal goes on.
func TestFullDisk(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{smallName, t.TempDir()}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if _, ran := errors.AsType[*exec.ExitError](err); err != nil && !ran {
		t.Skipf("no mount namespace to be had: %v", err)
	}
	if err != nil || strings.TrimSpace(string(out)) != "done" {
		t.Errorf("%v: %s", err, out)
	}
}

// fillDisk is the other side of TestFullDisk, alone in its mount namespace.
func fillDisk(dir string) int {
	if err := fillDiskIn(dir); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("done")
	return 0
}

func fillDiskIn(dir string) error {
	if err := unix.Mount("small", dir, "tmpfs", 0, "size=128k"); err != nil {
		return err
	}
	var fds [2]int
	for i := range fds {
		f, err := os.Create(fmt.Sprint(dir, "/", i))
		if err != nil {
			return err
		}
		fds[i] = int(f.Fd())
	}
	if err := os.WriteFile(dir+"/ballast", make([]byte, 32<<10), 0o600); err != nil {
		return err
	}
	m, err := New(fds, true, start)
	if err != nil {
		return err
	}
	var n int64
	for ; n < slack && err == nil; n++ {
		h, r, now := message(n)
		if err = m.Accept(h, r, now); err != nil {
			break
		}
	}
	if !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("after %d messages: %v, want a full disk", n, err)
	}
	if h, r, now := message(n); m.Check(h, r, now) != Fresh || m.Accept(h, r, now) == nil {
		return errors.New("what could not be written was remembered, or granted after all")
	}
	os.Remove(dir + "/ballast")
	for last := n + 20; n < last; n++ {
		h, r, now := message(n)
		if err := m.Accept(h, r, now); err != nil {
			return fmt.Errorf("with space again: %w", err)
		}
	}
	again, err := New(fds, true, start)
	if err != nil || !equal(m, again) {
		return fmt.Errorf("a restart knows something else: %v", err)
	}
	return nil
}
