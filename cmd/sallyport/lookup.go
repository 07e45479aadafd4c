//go:build linux

package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxNames bounds what is remembered: strangers choose the addresses.
	maxNames = 1024
	// maxAsked is how many addresses wait for the resolver; more are not asked for.
	maxAsked = 64
	// lookupsAtOnce and lookupLimit bound the resolver's own work.
	lookupsAtOnce = 8
	lookupLimit   = 5 * time.Second
	// lookupID is its uid and gid: of those that systemd and Debian leave unused,
	// and not the engine's, which must not be able to signal what can dial.
	lookupID = 65526
	// maxLookupLine is an address, a blank and a name (RFC 1035, 2.3.4), in bytes.
	maxLookupLine = 320
)

// plainName reports whether a name has what names of machines are made of, at most
// 253 bytes of it (RFC 1035, 2.3.4). Whoever owns an address chooses what the DNS
// says of it, and it ends up in a log.
func plainName(s string) bool {
	odd := func(r rune) bool {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z'
		return !letter && !('0' <= r && r <= '9') && !strings.ContainsRune("._-", r)
	}
	return s != "" && len(s) <= 253 && !strings.ContainsFunc(s, odd)
}

// names are those of addresses, as a process of its own finds them in the DNS: it
// has no privilege and holds nothing, and no line of the log waits for it.
type names struct {
	asked chan netip.Addr
	mu    sync.Mutex
	known map[netip.Addr]string // "": asked for
}

// of gives " (host)" once the name is known, and "" until then.
func (n *names) of(addr netip.Addr) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	name, there := n.known[addr]
	if there {
		if name == "" {
			return ""
		}
		return " (" + name + ")"
	}
	select {
	case n.asked <- addr:
	default:
		return ""
	}
	if len(n.known) >= maxNames {
		for some := range n.known {
			delete(n.known, some)
			break
		}
	}
	n.known[addr] = ""
	return ""
}

// take remembers an answer to a question that was asked.
func (n *names) take(line string) {
	text, name, _ := strings.Cut(line, " ")
	addr, err := netip.ParseAddr(text)
	if err != nil || !plainName(name) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, asked := n.known[addr]; asked {
		n.known[addr] = name
	}
}

// startNames starts the resolver. Without it the log has addresses alone.
func startNames(log *slog.Logger) *names {
	n := &names{asked: make(chan netip.Addr, maxAsked), known: map[netip.Addr]string{}}
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{"sallyport: lookup", "lookup"}, Dir: "/",
		Env:         []string{"GODEBUG=netdns=go", "GOMAXPROCS=1"},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if syscall.Geteuid() == 0 {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: lookupID, Gid: lookupID}
	}
	in, err := cmd.StdinPipe()
	var out io.ReadCloser
	if err == nil {
		out, err = cmd.StdoutPipe()
	}
	if err == nil {
		err = startWithoutPrivilege(cmd)
	}
	if err != nil {
		log.Warn("names are not looked up, and the log has addresses alone", "error", err)
		return nil
	}
	go func() {
		for addr := range n.asked {
			if _, err := fmt.Fprintln(in, addr); err != nil {
				return
			}
		}
	}()
	go func() {
		lines := bufio.NewScanner(out)
		lines.Buffer(make([]byte, maxLookupLine), maxLookupLine)
		for lines.Scan() {
			n.take(lines.Text())
		}
		cmd.Process.Kill()
		log.Warn("names are not looked up any more, and the log has addresses alone; a restart begins again", "error", cmd.Wait())
	}()
	return n
}

// startWithoutPrivilege starts a process that has no capability and can get none.
// That is done on a thread which ends afterwards.
func startWithoutPrivilege(cmd *exec.Cmd) (err error) {
	// What our own starter left open is not for it.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	onThreadToLose(func() {
		if err = dropPrivilege(cmd.SysProcAttr.Credential != nil); err == nil {
			err = cmd.Start()
		}
	})
	return err
}

// onThreadToLose runs f on a thread that ends with it, and is not the first one:
// that one's capabilities are shown as the whole process's.
func onThreadToLose(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			f()
			return
		}
		onThreadToLose(f)
		runtime.UnlockOSThread()
	}()
	<-done
}

// dropPrivilege leaves this thread the right to change its uid, if that is wanted.
func dropPrivilege(uid bool) error {
	for c := uintptr(0); c < 64; c++ {
		unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0) // not without CAP_SETPCAP, and then the rest holds
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if uid {
		const ids = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID
		data[0].Permitted, data[0].Effective = ids, ids
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("the right to change its uid is missing: capset: %w", err)
	}
	return nil
}

// runLookup is what startNames starts. It answers each line, an address, with the
// address and its name, if it has one, and ends with its input.
func runLookup(u *ui, _ []string) error {
	var mu sync.Mutex
	var all sync.WaitGroup
	free := make(chan struct{}, lookupsAtOnce)
	lines := bufio.NewScanner(u.in)
	lines.Buffer(make([]byte, maxLookupLine), maxLookupLine)
	for lines.Scan() {
		addr, err := netip.ParseAddr(lines.Text())
		if err != nil {
			return fmt.Errorf("this is no address: %q", lines.Text())
		}
		free <- struct{}{}
		all.Go(func() {
			if name := nameOf(addr); name != "" {
				mu.Lock()
				u.print("%s %s\n", addr, name)
				mu.Unlock()
			}
			<-free
		})
	}
	all.Wait()
	return lines.Err()
}

func nameOf(addr netip.Addr) string {
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	defer cancel()
	found, err := net.DefaultResolver.LookupAddr(ctx, addr.String())
	if err != nil || len(found) == 0 {
		return ""
	}
	if name := strings.TrimSuffix(found[0], "."); plainName(name) {
		return name
	}
	return ""
}
