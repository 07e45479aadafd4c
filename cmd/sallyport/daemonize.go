//go:build linux

package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// backgroundMark is in the environment of the process that goes on in the
// background. Its standard output and error are a pipe to the one that was
// started, on which a NUL byte says that it serves.
const backgroundMark = "SALLYPORT_KNOCKD_BACKGROUND"

// The name of a process is that of its first thread, and while init runs this is
// that thread. Without it killall(1) and start-stop-daemon(8) would look for "exe".
func init() {
	if inBackground() {
		name := [...]byte{'k', 'n', 'o', 'c', 'k', 'd', 0}
		unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name)), 0, 0, 0)
	}
}

func inBackground() bool { return os.Getenv(backgroundMark) != "" }

// goBackground starts this program again, in a session of its own, and waits until
// it serves: then whoever started it can rely on that and on the file with the
// process id. If it fails before, its words and its status are given on.
func goBackground(u *ui) int {
	ours, its, err := os.Pipe()
	if err != nil {
		u.say("going into the background: %v", err)
		return exitFailed
	}
	defer ours.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: os.Args, Env: append(os.Environ(), backgroundMark+"=1"),
		Stdout: its, Stderr: its, SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	its.Close()
	if err != nil {
		u.say("going into the background: %v", err)
		return exitFailed
	}
	ended := make(chan error, 1)
	go func() {
		ended <- cmd.Wait()
		// What it started may still hold the pipe open.
		ours.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	}()
	if copyUntilReady(u.err, ours) {
		return exitDone
	}
	if exit, ok := errors.AsType[*exec.ExitError](<-ended); ok && exit.Exited() {
		return exit.ExitCode()
	}
	return exitFailed
}

// copyUntilReady copies what the daemon says, and reports whether it came to serve.
func copyUntilReady(to io.Writer, from io.Reader) bool {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		words, _, ready := bytes.Cut(b[:n], []byte{0})
		to.Write(words)
		if ready || err != nil {
			return ready
		}
	}
}

// leaveTerminal puts /dev/null in place of the standard streams and tells the
// process that was started first.
func leaveTerminal() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	starter, err := unix.FcntlInt(2, unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	defer unix.Close(starter)
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	// It may have been ended meanwhile, which is no reason to end too.
	unix.Write(starter, []byte{0})
	return nil
}
