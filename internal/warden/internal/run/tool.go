//go:build linux

package run

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	// toolTime is how long a tool may take: iptables waits for a lock that others hold.
	toolTime = 20 * time.Second
	// maxOutput is the most bytes that a tool can say; the rules of a host fit in that
	// has one for each of 100,000 containers.
	maxOutput = 64 << 20
	// maxComplaint is how much of that goes into an error.
	maxComplaint = 300
)

// ErrNoTool says that a program is not installed.
var ErrNoTool = errors.New("the program is not installed")

// Find gives the path of a system program, from the directories where the
// distributions have them and not from an environment.
func Find(name string) (string, error) {
	for dir := range strings.SplitSeq("/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin", ":") {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s: %w", name, ErrNoTool)
}

// Tool runs a program of the system to its end, without a shell, with input on its
// standard input, and gives what it printed. It ends the program after 20 seconds. The
// error has what the program said on standard error, escaped and cut short; more than
// 64 MiB on standard output are an error too, since half an answer would be a wrong one.
func Tool(input string, path string, args ...string) (string, error) {
	name := filepath.Base(path)
	out, complaint, status, err := tool(input, path, args)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", name, err)
	case status != 0:
		said := strings.Join(strings.Fields(complaint), " ")
		if len(said) > maxComplaint {
			said = said[:maxComplaint]
		}
		return "", fmt.Errorf("%s ended with status %d and said %s", name, status, strconv.Quote(said))
	}
	return out, nil
}

// pipes are the parent's ends.
type pipes struct{ in, out, complaint *os.File }

func (p *pipes) close() {
	for _, f := range []*os.File{p.in, p.out, p.complaint} {
		f.Close()
	}
}

func tool(input, path string, args []string) (out, complaint string, status int, err error) {
	process, ends, err := startTool(path, args)
	if err != nil {
		return "", "", 0, err
	}
	defer ends.close()
	kill := time.AfterFunc(toolTime, func() { syscall.Kill(-process.Pid, syscall.SIGKILL) })
	defer kill.Stop()
	// What it started could hold the pipes open for ever.
	late := time.Now().Add(toolTime + time.Second)
	for _, f := range []*os.File{ends.in, ends.out, ends.complaint} {
		f.SetDeadline(late)
	}
	go func() {
		io.WriteString(ends.in, input)
		ends.in.Close()
	}()
	errors := make(chan string, 1)
	go func() { errors <- drain(ends.complaint) }()
	out, complaint = drain(ends.out), <-errors
	state, err := process.Wait()
	switch {
	case err != nil:
		return "", "", 0, err
	case !kill.Stop():
		return "", "", 0, fmt.Errorf("it did not end within %v and was stopped", toolTime)
	case len(out) > maxOutput:
		return "", "", 0, fmt.Errorf("it said more than %d bytes", maxOutput)
	}
	return out, complaint, state.ExitCode(), nil
}

// drain reads to the end, so that nobody blocks, and keeps what fits and a byte more.
func drain(f *os.File) string {
	var kept bytes.Buffer
	io.Copy(&kept, io.LimitReader(f, maxOutput+1))
	io.Copy(io.Discard, f)
	return kept.String()
}

func startTool(path string, args []string) (*os.Process, *pipes, error) {
	var ends pipes
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
	}()
	for i, at := range []**os.File{&ends.in, &ends.out, &ends.complaint} {
		r, w, err := os.Pipe()
		if err != nil {
			ends.close()
			return nil, nil, err
		}
		if i > 0 {
			r, w = w, r // the child writes
		}
		theirs, *at = append(theirs, r), w
	}
	process, err := os.StartProcess(path, append([]string{path}, args...), &os.ProcAttr{
		Dir: "/", Env: []string{"PATH=" + defaultPath, "LC_ALL=C"}, Files: theirs,
		Sys: &syscall.SysProcAttr{Setpgid: true},
	})
	if err != nil {
		ends.close()
		return nil, nil, err
	}
	return process, &ends, nil
}
