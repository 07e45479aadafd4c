package main

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

const (
	port     = 22  // of the service
	scanned  = 400 // ports, from 1 on
	greeting = "hello from the hidden port\n"

	// tryLimit bounds everything here that should take a millisecond.
	tryLimit = 3 * time.Second
)

// world is three machines, and what is remembered of them for the check at the
// end.
type world struct {
	server, near, far *testnet.Namespace
	daemon            *testnet.Daemon
	dir               string   // every file of this run is in it
	namespaces        []string // as /proc spells them: "net:[4026532201]"
	processes         []int    // pidfds of warden and engine
}

// build makes the machines, the wires and the service.
func (d *demo) build() {
	d.begin("network")
	dir, err := os.MkdirTemp("", "sallyport-demo-")
	if err != nil {
		d.Fatal(err)
	}
	d.dir = dir
	d.Cleanup(func() { os.RemoveAll(dir) })
	os.Setenv("TMPDIR", dir)

	d.server, d.near, d.far = d.namespace(), d.namespace(), d.namespace()
	testnet.Connect(d.server, d.near, []string{"192.0.2.1/24", "2001:db8::1/64"}, []string{"192.0.2.7/24", "2001:db8::7/64"})
	testnet.Connect(d.server, d.far, []string{"198.51.100.1/24", "2001:db8:1::1/64"}, []string{"198.51.100.9/24", "2001:db8:1::9/64"})
	d.far.Run("ip", "route", "add", "192.0.2.1/32", "via", "198.51.100.1")
	d.far.Run("ip", "route", "add", "2001:db8::1/128", "via", "2001:db8:1::1")
	d.greet()
	d.fact("%d namespaces, %d wires, a greeting server on %d/tcp", len(d.namespaces), 2, port)
}

func (d *demo) namespace() *testnet.Namespace {
	ns := testnet.New(d)
	ns.Do(func() {
		if name, err := os.Readlink("/proc/thread-self/ns/net"); err == nil {
			d.namespaces = append(d.namespaces, name)
		}
	})
	return ns
}

// greet starts the service: it greets whoever connects, then echoes.
func (d *demo) greet() {
	var l net.Listener
	var err error
	d.server.Do(func() { l, err = net.Listen("tcp", fmt.Sprintf(":%d", port)) })
	if err != nil {
		d.Fatalf("the greeting server: %v", err)
	}
	d.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer conn.Close()
				io.WriteString(conn, greeting)
				io.Copy(conn, conn)
			}()
		}
	}()
}

// dial connects from a machine, once. Its limit leaves time for a second SYN: a
// wire that has just been laid on a busy machine may lose the first.
func dial(from *testnet.Namespace, to netip.Addr, port uint16) (conn net.Conn, err error) {
	from.Do(func() { conn, err = net.DialTimeout("tcp", netip.AddrPortFrom(to, port).String(), tryLimit) })
	return conn, err
}

// watch opens pidfds (pidfd_open(2)) of a process and its children. A pidfd
// tells the end of a process that nobody has waited for yet, and never means
// another process.
func (d *demo) watch(pid int) {
	pids := []string{strconv.Itoa(pid)}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, list := range lists {
		text, _ := os.ReadFile(list) // a thread that has ended has no children
		pids = append(pids, strings.Fields(string(text))...)
	}
	for _, text := range pids {
		pid, _ := strconv.Atoi(text)
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			d.processes = append(d.processes, fd)
			d.Cleanup(func() { unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) })
		}
	}
}

// running counts the processes of the daemon that have not ended.
func (d *demo) running() (n int) {
	for _, fd := range d.processes {
		ended := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if ready, err := unix.Poll(ended, 0); ready == 0 || err != nil {
			n++
		}
	}
	return n
}

// kill ends the daemon in the worst way.
func (d *demo) kill() {
	d.begin("kill -9")
	d.daemon.Signal(syscall.SIGKILL)
	if !d.await(tryLimit, func() bool { return d.running() == 0 }) {
		d.Fatalf("%d of %d processes outlived the killed warden", d.running(), len(d.processes))
	}
	d.fact("the warden is killed; of %d processes %d run", len(d.processes), d.running())
}

// nothingLeft is the last step, after the clean-up, also after a failure. The
// threads that were inside a namespace end a moment after their work.
func (d *demo) nothingLeft() {
	failed := d.Failed()
	if !failed {
		d.step, d.since = "left", time.Now() // not begin: a Ctrl-C now has nothing left to end
	}
	var processes, files, held int
	for end := time.Now().Add(tryLimit); time.Now().Before(end); time.Sleep(pollEvery) {
		processes, files, held = d.running(), entries(d.dir), holders(d.namespaces)
		if processes+files+held == 0 {
			break
		}
	}
	what := fmt.Sprintf("%d processes, %d files and %d namespaces are left", processes, files, held)
	switch {
	case processes+files+held > 0 && failed:
		d.Failure += "\ndemo: and " + what + "; look in " + d.dir
	case processes+files+held > 0:
		d.Fatalf("%s; look in %s", what, d.dir)
	case !failed:
		d.fact("%d processes, %d files, %d of %d namespaces; %s in all",
			processes, files, held, len(d.namespaces), took(time.Since(d.began)))
	}
}

// entries counts a directory, if it is there, and what is in it.
func entries(dir string) (n int) {
	filepath.WalkDir(dir, func(_ string, _ os.DirEntry, err error) error {
		if err == nil {
			n++
		}
		return err
	})
	return n
}

// holders counts the named namespaces that a thread of any process, or a
// descriptor of ours, keeps alive.
func holders(names []string) int {
	held := map[string]bool{}
	for _, pattern := range []string{"/proc/[0-9]*/task/*/ns/net", "/proc/self/fd/*"} {
		links, _ := filepath.Glob(pattern)
		for _, link := range links {
			name, _ := os.Readlink(link) // what has ended meanwhile holds nothing
			for _, n := range names {
				if n == name {
					held[n] = true
				}
			}
		}
	}
	return len(held)
}
