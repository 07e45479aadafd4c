//go:build linux

package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stuck is a pipe with room for 4,096 bytes that nobody reads.
func stuck(t *testing.T) (reader, writer *os.File) {
	t.Helper()
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	reader, writer = os.NewFile(uintptr(fds[0]), "reader"), os.NewFile(uintptr(fds[1]), "writer")
	t.Cleanup(func() { reader.Close() })
	return reader, writer
}

// The daemon's loop never waits for a terminal, and its end waits a moment.
func TestABlockedTerminalStopsNothing(t *testing.T) {
	reader, writer := stuck(t)
	u := &ui{err: writer}
	log := u.detach(false)
	const lines = 5000
	began := time.Now()
	for i := range lines {
		log.Info("a line", "number", i)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("%d lines took %v", lines, took)
	}
	began = time.Now()
	if u.flush(); time.Since(began) < flushLimit || time.Since(began) > flushLimit+2*time.Second {
		t.Errorf("the end took %v, want %v", time.Since(began), flushLimit)
	}
	// The reader goes on, and so do the words: in order, and what is lost is counted.
	go func() { u.flush(); u.say("the last word"); u.flush(); writer.Close() }()
	text, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	lost, last, passed := 0, -1, 0
	for _, m := range regexp.MustCompile(`(?m)^sallyport: (?:warning: lines of the log were lost here: .* lines=(\d+)|a line number=(\d+))$`).FindAllSubmatch(text, -1) {
		if n, err := strconv.Atoi(string(m[1])); err == nil {
			lost += n
			continue
		}
		n, _ := strconv.Atoi(string(m[2]))
		if passed++; n <= last {
			t.Fatalf("line %d comes after line %d", n, last)
		}
		last = n
	}
	if lost < lines/4 || passed+lost != lines {
		t.Errorf("of %d lines %d were written and %d are said to be lost", lines, passed, lost)
	}
	if !strings.HasSuffix(string(text), "sallyport: the last word\n") {
		t.Errorf("the end is %q", text[max(0, len(text)-100):])
	}
}

// A daemon that ends says why, though another goroutine writes.
func TestTheLastWordIsWritten(t *testing.T) {
	for range 200 {
		var out bytes.Buffer
		u := &ui{err: &out}
		u.detach(true).Error("something broke", "error", "with spaces")
		u.finish(fmt.Errorf("the end"))
		if u.flush(); out.String() != "<3>something broke error=\"with spaces\"\nsallyport: the end\n" {
			t.Fatalf("said %q", out.String())
		}
	}
}

// A value in a line of the log may come from strangers.
func TestALogLineIsOnePrintableLine(t *testing.T) {
	var out bytes.Buffer
	u := &ui{err: &out}
	u.logger().Info("open", "service", "a\x1b[2J", "address", "b\nsallyport: c", "why", "d\u202e", "more", "e\u009b2J", "last", "plain")
	want := `sallyport: open service="a\x1b[2J" address="b\nsallyport: c" why="d\u202e" more="e\u009b2J" last=plain` + "\n"
	if out.String() != want {
		t.Errorf("said %q, want %q", out.String(), want)
	}
}
