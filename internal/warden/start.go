//go:build linux

package warden

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
)

// engineArgs is the engine's command line: the name that ps(1) shows, and the
// hidden subcommand.
var engineArgs = []string{"sallyport: engine", "engine"}

// engineEnv is the engine's whole environment; ours may hold secrets. One
// goroutine does the engine's work. The GODEBUG settings keep Go's runtime from
// opening cgroup files, which would stay open, and from naming its memory by
// prctl(2), which the sandbox denies.
var engineEnv = []string{"GOMAXPROCS=1", "GOTRACEBACK=single", "GODEBUG=containermaxprocs=0,decoratemappings=0"}

const (
	// engineUser is made by the package.
	engineUser = "sallyport"
	// fallbackID is the uid and gid where that user is missing. systemd and
	// Debian both leave 65520 to 65533 unused, and it fits a container's usual
	// map of 65,536. It is never nobody (65534): other daemons run as that and
	// could then trace or signal the engine.
	fallbackID = 65527
	nobody     = 65534

	// engineHost and engineBinary are what the engine looks for when it proves
	// its namespaces: package sandbox knows the same words.
	engineHost   = "sallyport-engine"
	engineBinary = "engine"
)

// engineFiles is what the engine gets, besides /dev/null as 0 and 1 and a pipe
// to log as 2. The descriptors stay the caller's, who may close them as soon
// as start has returned.
type engineFiles struct {
	border  int           // becomes 3
	capture int           // becomes 4; -1: none
	source  config.Source // what capture is
	journal []int         // become 5 and 6; nil: none
	sockets []int         // become 7 and more
	replay  bool          // capture is a file
	log     *slog.Logger
}

// inherited gives the descriptors from 3 on. What there is none of leaves its
// number closed, so that the others keep theirs: a descriptor that the engine has
// no use for would be one more for a hijacked one.
func (f *engineFiles) inherited() []uintptr {
	const closed = ^uintptr(0)
	list := []uintptr{uintptr(f.border), closed, closed, closed}
	if f.capture >= 0 {
		list[1] = uintptr(f.capture)
	}
	for i, fd := range f.journal {
		list[2+i] = uintptr(fd)
	}
	for _, fd := range f.sockets {
		list = append(list, uintptr(fd))
	}
	return list
}

// args is the engine's command line, which says what is behind the numbers.
func (f *engineFiles) args() []string {
	args := slices.Clone(engineArgs)
	switch {
	case f.capture < 0:
		args = append(args, "--no-capture")
	case f.source == config.NFLOG:
		args = append(args, "--nflog")
	case f.source == config.Log:
		args = append(args, "--log")
	}
	if f.journal != nil {
		args = append(args, "--journal")
	}
	if f.replay {
		args = append(args, "--replay")
	}
	return append(args, fmt.Sprintf("--sockets=%d", len(f.sockets)))
}

// child is a running engine.
type child struct {
	what string // for messages
	pid  int
	uid  int
	// notes say which parts of layer B the kernel refused and why, and when
	// the user is missing. Empty is best.
	notes []string
	ended chan struct{} // closed when the engine has ended and err is set
	err   error

	mu    sync.Mutex
	pidfd int // -1 when the engine has ended
}

// kill ends the engine at once. It may be called at any time, more than once.
func (c *child) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd >= 0 {
		// A pidfd never means another process, as a number could (pidfd_open(2)).
		unix.PidfdSendSignal(c.pidfd, unix.SIGKILL, nil, 0)
	}
}

// wait waits for the engine's end. An engine never ends well by itself, so it
// always gives an error, which says how it ended.
func (c *child) wait() error {
	<-c.ended
	return c.err
}

// start re-executes the running binary as the engine, confined before its
// first instruction. What the kernel refuses of layer B is left out, part by
// part, and noted; the engine then proves what it has.
func start(f engineFiles) (*child, error) {
	c := &child{what: "the engine", ended: make(chan struct{})}
	id, err := c.identity(user.Lookup, user.LookupId)
	if err != nil {
		return nil, err
	}
	// A descriptor that our own starter left open must not reach the engine.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("close_range: %w: the engine would inherit strange descriptors; Linux 5.11 or newer is needed", err)
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	said, stderr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer stderr.Close()
	attr := &syscall.ProcAttr{
		Dir:   "/",
		Env:   engineEnv,
		Files: append([]uintptr{null.Fd(), null.Fd(), stderr.Fd()}, f.inherited()...),
	}
	err = c.launch(f.args(), attr, id, true)
	if errors.Is(err, errHalfMounted) {
		c.notes = append(c.notes, err.Error())
		err = c.launch(f.args(), attr, id, false)
	}
	if err != nil {
		said.Close()
		return nil, err
	}
	go (&engineLog{log: f.log}).copy(said)
	return c, nil
}

// identity chooses the engine's uid and gid.
func (c *child) identity(byName, byID func(string) (*user.User, error)) (*syscall.Credential, error) {
	u, err := byName(engineUser)
	if err != nil {
		if u, err := byID(strconv.Itoa(fallbackID)); err == nil {
			return nil, fmt.Errorf("there is no user %s, and uid %d belongs to %s: make the user with useradd --system %s", engineUser, fallbackID, u.Username, engineUser)
		}
		c.notes = append(c.notes, fmt.Sprintf("there is no user %s, so it runs as uid %d (systemd-sysusers makes the user)", engineUser, fallbackID))
		return &syscall.Credential{Uid: fallbackID, Gid: fallbackID}, nil
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("the user %s: %w", engineUser, err)
	}
	if uid == 0 || gid == 0 || uid == nobody {
		return nil, fmt.Errorf("the user %s has uid %d and gid %d: the engine needs a uid and a group of its own, neither root's nor nobody's", engineUser, uid, gid)
	}
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
}

// launch does everything on one thread, which is spoilt by it and stays until
// the engine ends: the parent-death signal comes when the thread that forked
// ends, not the process (prctl(2)).
func (c *child) launch(args []string, attr *syscall.ProcAttr, id *syscall.Credential, mounts bool) error {
	started := make(chan error)
	go onSpareThread(func() {
		err := c.exec(args, attr, id, mounts)
		started <- err
		if err == nil {
			c.reap()
		}
	})
	return <-started
}

// onSpareThread runs f on a thread that ends with it. It is never the first
// thread: /proc/PID shows that one's namespaces and capabilities as the whole
// process's.
func onSpareThread(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	locked := make(chan struct{})
	go func() { // gets another thread: this one is taken
		runtime.LockOSThread()
		close(locked)
		f()
	}()
	<-locked
	runtime.UnlockOSThread()
}

// exec confines this thread and starts the engine from it: a process inherits
// namespaces, capabilities and no_new_privs from the thread that forks.
func (c *child) exec(args []string, attr *syscall.ProcAttr, id *syscall.Credential, mounts bool) error {
	var absent []string
	lacking := func(part string, err error) bool {
		if err != nil {
			absent = append(absent, part+": "+err.Error())
		}
		return err != nil
	}
	lacking("no network namespace", unix.Unshare(unix.CLONE_NEWNET))
	lacking("no IPC and UTS namespaces", ownName())
	path := "/proc/self/exe" // not a name: an upgrade may have replaced the file
	if mounts {
		err := emptyRoot()
		if errors.Is(err, errHalfMounted) {
			return err
		}
		if !lacking("no mount namespace", err) {
			path = "/" + engineBinary
		}
	}
	lacking("the bounding set is kept", dropBounding())
	own, kill, err := dropCaps()
	switch {
	case err != nil:
		return err
	case own && !kill:
		lacking("the engine ends only when it sees the border close", errors.New("CAP_KILL is missing"))
	case !own:
		id = nil
		lacking("no uid of its own", fmt.Errorf("CAP_SETUID and CAP_SETGID are missing, so it has the warden's, %d", os.Getuid()))
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	if err := c.fork(path, args, attr, id); err != nil {
		return err
	}
	c.notes = append(c.notes, absent...)
	return nil
}

func (c *child) fork(path string, args []string, attr *syscall.ProcAttr, id *syscall.Credential) error {
	attr.Sys = &syscall.SysProcAttr{
		Credential: id, // with no group list: no supplementary groups
		Pdeathsig:  unix.SIGKILL,
		PidFD:      &c.pidfd,
		Setsid:     true, // no terminal to type into (TIOCSTI), no Ctrl-C of its own
	}
	pid, err := syscall.ForkExec(path, args, attr)
	switch {
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("exec: %w: the user that the engine runs as may not execute this program; make its file mode 755", err)
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("exec: %w: there is no dynamic loader in the engine's empty root; build with CGO_ENABLED=0", err)
	case err != nil:
		return fmt.Errorf("exec: %w", err)
	}
	c.pid, c.uid = pid, os.Getuid()
	if id != nil {
		c.uid = int(id.Uid)
	}
	return nil
}

// startReader starts a program that reads a log for the engine, which gets what it
// prints. With groups it has these and the engine's uid, for it reads what strangers
// have a part in. The caller waits for it with reap, on the same thread, as the
// reader ends with that thread.
func (c *child) startReader(path string, args []string, out uintptr, groups []uint32) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"LC_ALL=C", "SYSTEMD_PAGER=", "SYSTEMD_COLORS=0"},
		Files: []uintptr{null.Fd(), out, null.Fd()},
		Sys:   &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL, PidFD: &c.pidfd, Setsid: true},
	}
	if groups != nil {
		id, err := c.identity(user.Lookup, user.LookupId)
		if err != nil {
			return err
		}
		id.Groups = groups
		attr.Sys.Credential = id
	}
	c.pid, err = syscall.ForkExec(path, args, attr)
	return err
}

func (c *child) reap() {
	var status unix.WaitStatus
	var err error
	for {
		if _, err = unix.Wait4(c.pid, &status, 0, nil); err != unix.EINTR {
			break
		}
	}
	switch {
	case err != nil:
		c.err = fmt.Errorf("%s is lost: wait4: %w", c.what, err)
	case status.Signaled():
		c.err = fmt.Errorf("%s was ended by %v", c.what, status.Signal())
	default:
		c.err = fmt.Errorf("%s ended with status %d", c.what, status.ExitStatus())
	}
	c.mu.Lock()
	unix.Close(c.pidfd)
	c.pidfd = -1
	c.mu.Unlock()
	close(c.ended)
}

// ownName makes the IPC and UTS namespaces in one call, and leaves a mark by
// which the engine knows both.
func ownName() error {
	if err := unix.Unshare(unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
		return err
	}
	return unix.Sethostname([]byte(engineHost))
}

// errHalfMounted says that this thread is of no use any more: it has a mount
// namespace that is neither the host's nor the engine's.
var errHalfMounted = errors.New("no mount namespace")

// emptyRoot gives this thread a root directory that holds the running binary
// and nothing else, and no way back to the old one. There is no /proc in it,
// no device and nothing to write to.
func emptyRoot() error {
	// A detached mount of the very file that runs, even if its name is gone; a
	// plain bind mount cannot cross into the new namespace (open_tree(2)).
	binary, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree: %w", err)
	}
	defer unix.Close(binary)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV}
	if err := unix.MountSetattr(binary, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return fmt.Errorf("mount_setattr: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	const at = "/proc" // a directory that certainly exists; the host's own is not touched
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	for _, step := range []struct {
		name string
		f    func() error
	}{
		{"private", func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") }},
		{"tmpfs", func() error { return unix.Mount("tmpfs", at, "tmpfs", flags, "mode=0755,size=4k,nr_inodes=4") }},
		{"mknod", func() error { return unix.Mknod(at+"/"+engineBinary, unix.S_IFREG, 0) }},
		{"move_mount", func() error {
			return unix.MoveMount(binary, "", unix.AT_FDCWD, at+"/"+engineBinary, unix.MOVE_MOUNT_F_EMPTY_PATH)
		}},
		{"read-only", func() error { return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, "") }},
		{"chdir", func() error { return unix.Chdir(at) }},
		{"pivot_root", func() error { return unix.PivotRoot(".", ".") }}, // the old root then lies on top
		{"umount", func() error { return unix.Unmount(".", unix.MNT_DETACH) }},
		{"chdir", func() error { return unix.Chdir("/") }},
	} {
		if err := step.f(); err != nil {
			return fmt.Errorf("%w: %s: %w", errHalfMounted, step.name, err)
		}
	}
	return nil
}

// dropBounding empties the set that no exec can go beyond.
func dropBounding() error {
	for c := uintptr(0); c < 64; c++ {
		if on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil || on == 0 {
			continue // behind the kernel's last capability, or gone already
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("prctl: %w", err)
		}
	}
	return nil
}

// dropCaps leaves this thread what gives the engine its own uid, and says
// whether it had that. CAP_KILL stays too: the parent-death signal is sent with
// the rights of the thread that dies, and the engine's uid is another. Nothing
// of it reaches the engine: the change of uid or the exec clears it, as nothing
// is inheritable and so nothing ambient (capabilities(7)).
func dropCaps() (own, kill bool, err error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false, false, fmt.Errorf("capget: %w", err)
	}
	const ids, killing = 1<<unix.CAP_SETUID | 1<<unix.CAP_SETGID, 1 << unix.CAP_KILL
	had := data[0].Permitted
	own, kill = had&ids == ids, had&killing != 0
	data = [2]unix.CapUserData{}
	if own {
		data[0].Permitted, data[0].Effective = had&(ids|killing), had&(ids|killing)
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return false, false, fmt.Errorf("capset: %w", err)
	}
	return own, kill, nil
}

const (
	maxLine  = 400 // bytes of one line of the engine's that reach the log
	maxBurst = 100 // lines at once, which is one Go traceback
	perLine  = 100 * time.Millisecond
)

// engineLog passes on what the engine says, as one who may have been taken over
// by strangers: printable, short, and not too often.
type engineLog struct {
	log     *slog.Logger
	used    int // lines of the burst
	since   time.Time
	dropped int
}

// copy ends when the engine has.
func (l *engineLog) copy(r io.ReadCloser) {
	defer r.Close()
	lines := bufio.NewReaderSize(r, maxLine)
	for whole := true; ; {
		b, err := lines.ReadSlice('\n')
		if whole && len(b) > 0 {
			l.line(b, time.Now())
		}
		whole = err != bufio.ErrBufferFull // the rest of a long line is lost
		if whole && err != nil {
			return
		}
	}
}

func (l *engineLog) line(b []byte, now time.Time) {
	back := int(now.Sub(l.since) / perLine)
	if l.used = max(0, l.used-back); back > 0 {
		l.since = now
	}
	if l.used >= maxBurst {
		l.dropped++
		return
	}
	l.used++
	if l.dropped > 0 {
		l.log.Warn("engine: it said more than is passed on", "lines lost", l.dropped)
		l.dropped = 0
	}
	level, b := levelOf(b)
	l.log.Log(context.Background(), level, "engine: "+sanitise(b))
}

// levelOf reads the level that the engine writes before a line, as daemons do
// for systemd (sd-daemon(3)). What has none is Go's own word about a crash.
func levelOf(b []byte) (slog.Level, []byte) {
	for prefix, level := range map[string]slog.Level{"<3>": slog.LevelError, "<6>": slog.LevelInfo} {
		if rest, ok := bytes.CutPrefix(b, []byte(prefix)); ok {
			return level, rest
		}
	}
	return slog.LevelWarn, bytes.TrimPrefix(b, []byte("<4>"))
}

// sanitise keeps what a terminal or a log reader cannot be fooled with: no
// escape sequence, no line of its own, no writing from right to left.
func sanitise(b []byte) string {
	return control.Printable(strings.ReplaceAll(strings.TrimRight(string(b), "\r\n"), "\t", " "))
}
