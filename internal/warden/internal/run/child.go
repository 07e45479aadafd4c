//go:build linux

package run

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// helloWait is how long a spawner has to begin.
	helloWait = 5 * time.Second
	// byeWait is how long it has for its last reports.
	byeWait = time.Second
)

// child is the spawner as its parent sees it.
type child struct {
	conn     *os.File
	requests *json.Encoder
	reports  *json.Decoder
	ended    chan struct{} // closed when nothing is read any more
}

// facts is what decides how the spawner is started.
type facts struct {
	booted     bool   // systemd runs this machine: sd_booted(3)
	root       bool   // it would ask others for a password
	systemdRun string // its path; "": there is none
	pid        int    // ours
}

func look() facts {
	info, err := os.Lstat("/run/systemd/system")
	f := facts{booted: err == nil && info.IsDir(), root: os.Geteuid() == 0, pid: os.Getpid()}
	for _, path := range []string{"/usr/bin/systemd-run", "/bin/systemd-run"} {
		if f.systemdRun == "" && unix.Access(path, unix.X_OK) == nil {
			f.systemdRun = path
		}
	}
	return f
}

// command gives the spawner's program and arguments. Under systemd it gets a scope
// of its own: when our unit ends systemd kills what is left in its cgroup, and that
// would be the commands, or the spawner and by SIGPIPE the commands. Other than a
// service a scope keeps descriptors, environment and parent. /proc/PID/exe is the
// running binary even if an upgrade has replaced the file; /proc/self/exe would be
// systemd-run.
func (f facts) command(direct bool) (path string, args []string) {
	if direct || !f.booted || !f.root || f.systemdRun == "" {
		return "/proc/self/exe", []string{"sallyport: spawner", "spawner"}
	}
	return f.systemdRun, []string{
		f.systemdRun, "--scope", "--quiet", "--collect", "--no-ask-password",
		"--description=Commands that knocks run", "--", fmt.Sprintf("/proc/%d/exe", f.pid), "spawner",
	}
}

// spawn starts the spawner, without systemd-run where that does not do it.
func (r *Runner) spawn() error {
	path, args := look().command(r.direct)
	s, err := start(path, args)
	if err != nil && len(args) > 2 {
		r.o.Log.Warn("systemd-run gave no unit for the commands: what a knock starts ends with the daemon's unit, unless that has KillMode=process", "error", err)
		r.direct = true
		path, args = look().command(true)
		s, err = start(path, args)
	}
	if err != nil {
		return fmt.Errorf("the process that starts commands does not start: %w", err)
	}
	r.mu.Lock()
	r.spawner = s
	r.mu.Unlock()
	go r.reports(s)
	return nil
}

// start starts a spawner and waits until it says so.
func start(path string, args []string) (*child, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "spawner"), os.NewFile(uintptr(pair[1]), "spawner")
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return nil, err
	}
	defer null.Close()
	p, err := os.StartProcess(path, args, &os.ProcAttr{
		Dir:   "/",
		Env:   environment(os.Environ()),
		Files: []*os.File{null, null, null, theirs},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		ours.Close()
		return nil, err
	}
	theirs.Close() // so that its end is the end of the socket
	s := &child{conn: ours, requests: json.NewEncoder(ours), reports: json.NewDecoder(ours), ended: make(chan struct{})}
	if err := s.greet(); err != nil {
		ours.Close()
		p.Kill()
		p.Wait()
		return nil, err
	}
	go p.Wait()
	return s, nil
}

func (s *child) greet() error {
	s.conn.SetReadDeadline(time.Now().Add(helloWait))
	var m report
	err := s.reports.Decode(&m)
	if err == nil && m.Kind != hello {
		err = errors.New("it says something else")
	}
	if err != nil {
		return fmt.Errorf("it ended, or said nothing for %v: %w", helloWait, err)
	}
	return s.conn.SetReadDeadline(time.Time{})
}

// send asks for a command. A spawner that has gone is found by the reader.
func (s *child) send(m *request) { _ = s.requests.Encode(m) }

// end says that nothing more will be asked and takes the last reports.
func (s *child) end() {
	s.conn.SetReadDeadline(time.Now().Add(byeWait))
	if raw, err := s.conn.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_WR) })
	}
	<-s.ended
}

// withheld from a command's environment is what tells a daemon about itself, and what
// only we may say.
var withheld = []string{"NOTIFY_SOCKET=", "LISTEN_", "WATCHDOG_", "INVOCATION_ID=", "JOURNAL_STREAM=", "SALLYPORT_"}

// environment is that of the daemon's start, less what is withheld.
func environment(from []string) []string {
	begins := func(v string) func(string) bool { return func(w string) bool { return strings.HasPrefix(v, w) } }
	out := slices.DeleteFunc(from, func(v string) bool { return slices.ContainsFunc(withheld, begins(v)) })
	if !slices.ContainsFunc(out, func(v string) bool { return strings.HasPrefix(v, "PATH=") }) {
		out = append(out, "PATH="+defaultPath)
	}
	return out
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
