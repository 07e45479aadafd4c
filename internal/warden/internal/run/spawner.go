//go:build linux

package run

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

const (
	maxLine   = 400 // bytes of a line of output that are passed on
	maxLines  = 100 // of one command
	maxSecond = 20  // of one command in a second
	// maxReports is how many wait for a warden that does not read; further lines
	// are dropped, so that no command ever waits for the warden.
	maxReports = 1024

	// As sh(1) says it.
	notFound      = 127
	notExecutable = 126
	bySignal      = 128
)

// spawner starts commands for the warden and reads their output. When the warden has
// gone it leaves that to cat(1), so that a service which a knock started never meets
// SIGPIPE.
type spawner struct {
	env  []string
	null *os.File
	out  chan report

	mu    sync.Mutex
	pipes map[*os.File]bool // outputs that somebody has open
}

// Spawner is the main function of the process that starts commands: the warden
// starts it, with a socket as descriptor 3. It returns when the warden has gone.
func Spawner() error {
	if _, err := unix.GetsockoptInt(3, unix.SOL_SOCKET, unix.SO_TYPE); err != nil {
		return errors.New("the spawner is started by 'sallyport serve', not by hand")
	}
	// What our own starter left open must not reach a command.
	if err := unix.CloseRange(3, ^uint(0)>>1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	// Caught and not ignored: what is ignored stays so in every command.
	signal.Notify(make(chan os.Signal, 1), unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM,
		unix.SIGPIPE, unix.SIGUSR1, unix.SIGUSR2)
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(3, true); err != nil {
		return err
	}
	conn := os.NewFile(3, "warden")
	s := &spawner{env: environment(os.Environ()), null: null, out: make(chan report, maxReports), pipes: map[*os.File]bool{}}
	written := make(chan struct{})
	go func() {
		defer close(written)
		s.write(conn)
	}()
	s.out <- report{Kind: hello}
	for requests := json.NewDecoder(conn); ; {
		var m request
		if requests.Decode(&m) != nil {
			break // the warden has gone
		}
		s.run(&m)
	}
	s.out <- report{Kind: bye}
	<-written
	return s.leave()
}

// write passes the reports on, the last being the goodbye, and drops them when nobody
// is there.
func (s *spawner) write(conn io.Writer) {
	enc := json.NewEncoder(conn)
	var err error
	for m := range s.out {
		if err == nil {
			err = enc.Encode(&m)
		}
		if m.Kind == bye {
			return
		}
	}
}

// leave hands the outputs that somebody still has open to a program that reads them
// into nothing. This one must not stay for that: init scripts find a daemon by the
// file that it runs (start-stop-daemon --exec) and would take it for the daemon.
func (s *spawner) leave() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs error
	for pipe := range s.pipes {
		_, err := os.StartProcess("/bin/cat", []string{"cat"}, &os.ProcAttr{
			Dir: "/", Files: []*os.File{pipe, s.null, s.null}, Sys: &syscall.SysProcAttr{Setsid: true},
		})
		errs = errors.Join(errs, err)
	}
	return errs
}

// run starts a command.
func (s *spawner) run(m *request) {
	o := &lines{number: m.Number, out: s.out}
	read, write, err := os.Pipe()
	if err != nil { // out of descriptors: a command without a log is better than none
		read, write = nil, s.null
	}
	p, err := s.start(m, write)
	if read != nil {
		write.Close()
		s.mu.Lock()
		s.pipes[read] = true
		s.mu.Unlock()
		go s.follow(o, read)
	} else {
		go o.end()
	}
	if err != nil {
		s.out <- report{Kind: ended, Number: m.Number, Status: statusOf(err), Text: escape([]byte(err.Error()))}
		return
	}
	s.out <- report{Kind: began, Number: m.Number}
	go s.await(m.Number, p)
}

// follow passes a command's output on until nobody has it open.
func (s *spawner) follow(o *lines, pipe *os.File) {
	o.copy(pipe)
	s.mu.Lock()
	delete(s.pipes, pipe)
	s.mu.Unlock()
	pipe.Close()
	o.end()
}

// start executes a program, a script without a "#!" by sh as execvp(3) does.
func (s *spawner) start(m *request, output *os.File) (*os.Process, error) {
	words := plainList(m.Words)
	path, err := find(words[0], s.env)
	if err != nil {
		return nil, err
	}
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   append(s.env[:len(s.env):len(s.env)], plainList(m.Env)...),
		Files: []*os.File{s.null, output, output},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	p, err := os.StartProcess(path, words, attr)
	if errors.Is(err, unix.ENOEXEC) {
		p, err = os.StartProcess("/bin/sh", append([]string{"/bin/sh", path}, words[1:]...), attr)
	}
	return p, err
}

// await reports a process's end.
func (s *spawner) await(number uint64, p *os.Process) {
	status := notExecutable
	if state, err := p.Wait(); err == nil {
		w := state.Sys().(syscall.WaitStatus)
		if status = w.ExitStatus(); w.Signaled() {
			status = bySignal + int(w.Signal())
		}
	}
	s.out <- report{Kind: ended, Number: number, Status: status}
}

// find gives a program's path, as sh(1) finds it.
func find(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	err := fmt.Errorf("%q: %w in PATH", name, fs.ErrNotExist)
	for _, v := range env {
		dirs, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(dirs) {
			path := filepath.Join("/", dir, name)
			switch e := executable(path); {
			case e == nil:
				return path, nil
			case !errors.Is(e, fs.ErrNotExist):
				err = fmt.Errorf("%q: %w", path, e)
			}
		}
	}
	return "", err
}

func executable(path string) error {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = fs.ErrPermission
	}
	if err == nil {
		err = unix.Access(path, unix.X_OK)
	}
	return err
}

func statusOf(err error) int {
	if errors.Is(err, fs.ErrNotExist) {
		return notFound
	}
	return notExecutable
}

// lines passes a command's output on, as much of it as a log can bear, and reads
// all of it, so that the command never waits.
type lines struct {
	number uint64
	out    chan<- report
	passed int
	lost   int
	since  time.Time
	recent int // since then
}

// copy ends when nobody has the pipe open for writing any more.
func (l *lines) copy(r io.Reader) {
	in := bufio.NewReaderSize(r, maxLine)
	for whole := true; ; {
		b, err := in.ReadSlice('\n')
		if whole && len(b) > 0 {
			l.line(b, err == bufio.ErrBufferFull, time.Now())
		}
		whole = err != bufio.ErrBufferFull // the rest of a long line is lost
		if whole && err != nil {
			return
		}
	}
}

func (l *lines) end() { l.out <- report{Kind: silent, Number: l.number, Lost: l.lost} }

func (l *lines) line(b []byte, cut bool, now time.Time) {
	if now.Sub(l.since) >= time.Second {
		l.since, l.recent = now, 0
	}
	if l.passed >= maxLines || l.recent >= maxSecond {
		l.lost++
		return
	}
	text := escape(b)
	if cut {
		text += "…"
	}
	select {
	case l.out <- report{Kind: output, Number: l.number, Text: text}:
		l.passed++
		l.recent++
	default:
		l.lost++
	}
}

// escape keeps what a terminal or a log reader can't be fooled with: no escape
// sequence, no line of its own, no writing from right to left.
func escape(b []byte) string {
	var out strings.Builder
	for s := strings.TrimRight(string(b), "\r\n"); s != ""; {
		r, n := utf8.DecodeRuneInString(s)
		if strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			out.WriteString(s[:n])
		} else {
			q := strconv.Quote(s[:n])
			out.WriteString(q[1 : len(q)-1])
		}
		s = s[n:]
	}
	return out.String()
}
