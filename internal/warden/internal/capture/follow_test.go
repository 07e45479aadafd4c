//go:build linux

package capture

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// follow is a log that is followed, and what came of it.
type follow struct {
	t    *testing.T
	name string
	pipe *Pipe
	got  strings.Builder
}

func newFollow(t *testing.T, path string) *follow {
	t.Helper()
	pipe, err := NewPipe(false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := FollowFile(path, pipe, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { pipe.Close(); f.Close() })
	return &follow{t: t, name: path, pipe: pipe}
}

// write adds to a file as syslogd does, which makes it where it is missing.
func write(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := io.WriteString(f, text); err != nil {
		t.Fatal(err)
	}
}

// replace changes all of a file with one call, from its beginning on.
func replace(t *testing.T, name, text string) {
	t.Helper()
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte(text), 0); err != nil {
		t.Fatal(err)
	}
}

func (f *follow) write(text string) { f.t.Helper(); write(f.t, f.name, text) }

// await waits until what came is this, with the marks of torn lines.
func (f *follow) await(want string) {
	f.t.Helper()
	b := make([]byte, 64<<10)
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end) && f.got.String() != want; time.Sleep(time.Millisecond) {
		if n, err := unix.Read(f.pipe.Read, b); err == nil {
			f.got.Write(b[:n])
		}
	}
	if got := f.got.String(); got != want {
		f.t.Fatalf("got %q, want %q", got, want)
	}
}

// move and the others are what log rotation does.
func (f *follow) must(err error) {
	f.t.Helper()
	if err != nil {
		f.t.Fatal(err)
	}
}

func TestFollowFile(t *testing.T) {
	for _, tt := range []struct {
		name string
		f    func(f *follow)
	}{
		{"from its end on", func(f *follow) {
			f.write("a\n")
			f.await("a\n")
		}},
		{"rename and create", func(f *follow) {
			f.write("a\n")
			f.must(os.Rename(f.name, f.name+".1"))
			f.must(os.WriteFile(f.name, nil, 0o600))
			write(f.t, f.name+".1", "b\n") // syslogd was not told yet
			f.await("a\nb\n")
			write(f.t, f.name+".1", "c\n")
			f.write("d\n")
			f.await("a\nb\nc\nd\n")
			f.write("e\n")
			f.await("a\nb\nc\nd\ne\n")
		}},
		{"rename with half a line", func(f *follow) {
			f.write("a\nha")
			f.await("a\nha")
			f.must(os.Rename(f.name, f.name+".1"))
			f.write("b\n")
			f.await("a\nha\x00\nb\n")
		}},
		{"rename, and nobody writes for a while", func(f *follow) {
			f.must(os.Rename(f.name, f.name+".1"))
			time.Sleep(50 * time.Millisecond)
			f.write("b\n")
			f.await("b\n")
		}},
		{"several rotations", func(f *follow) {
			want := ""
			for i := range 5 {
				f.must(os.Rename(f.name, fmt.Sprint(f.name, ".", i)))
				f.write(fmt.Sprintf("line %d\n", i))
				want += fmt.Sprintf("line %d\n", i)
				f.await(want)
			}
		}},
		{"copytruncate", func(f *follow) {
			f.write("a\nb\n")
			f.await("a\nb\n")
			f.must(os.Truncate(f.name, 0))
			time.Sleep(2 * look)
			f.write("c\n")
			f.await("a\nb\nc\n")
		}},
		{"truncated within a line", func(f *follow) {
			f.write("a\nb\nhalf")
			f.await("a\nb\nhalf")
			f.must(os.Truncate(f.name, 0))
			f.write("c\n")
			f.await("a\nb\nhalf\x00\nc\n")
		}},
		{"deleted and made again", func(f *follow) {
			f.must(os.Remove(f.name))
			time.Sleep(20 * time.Millisecond)
			f.write("a\n")
			f.await("a\n")
		}},
		{"a directory in its place, for a while", func(f *follow) {
			f.must(os.Remove(f.name))
			f.must(os.Mkdir(f.name, 0o700))
			time.Sleep(20 * time.Millisecond)
			f.must(os.Remove(f.name))
			f.write("a\n")
			f.await("a\n")
		}},
		{"edited, which brings all of it again", func(f *follow) { // the engine looks at the times
			f.write("a\nb\n")
			f.await("a\nb\n")
			write(f.t, f.name+".new", "a\nb\nc\n")
			f.must(os.Rename(f.name+".new", f.name))
			f.await("a\nb\na\nb\nc\n")
		}},
		{"written anew in its place, longer than before", func(f *follow) { // cp, rsync --inplace
			f.write("a\n")
			f.await("a\n")
			replace(f.t, f.name, "another line\nb\n")
			f.await("a\n\x00r line\nb\n")
		}},
		{"written anew in its place amid a line", func(f *follow) {
			f.write("a\nhalf")
			f.await("a\nhalf")
			replace(f.t, f.name, "the other\nforged\nb\n")
			f.await("a\nhalf\x00forged\nb\n")
		}},
		{"a slow reader", func(f *follow) { // the file is the buffer
			line := strings.Repeat("x", 99) + "\n"
			text := strings.Repeat(line, 3*pipeSize/100)
			f.write(text)
			time.Sleep(50 * time.Millisecond)
			f.await(text)
		}},
		{"bytes that are no text", func(f *follow) {
			f.write("\x00\xff\r\x1b\n")
			f.await("\x00\xff\r\x1b\n")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			name := filepath.Join(t.TempDir(), "kern.log")
			write(t, name, "old\n")
			tt.f(newFollow(t, name))
		})
	}
}

// A program begins a line before the start and the kernel's word follows after it:
// that is no line of its own.
func TestFollowFileFromAmidALine(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kern.log")
	write(t, name, "Nov 22 11:53:09 web1 su[1]: FAILED SU (to x) ")
	f := newFollow(t, name)
	f.write("Nov 22 11:53:09 web1 kernel: IN=forged\n")
	f.write("next\n")
	f.await("\x00Nov 22 11:53:09 web1 kernel: IN=forged\nnext\n")
}

func TestFollowFileThatAppearsLater(t *testing.T) {
	f := newFollow(t, filepath.Join(t.TempDir(), "kern.log"))
	time.Sleep(20 * time.Millisecond)
	f.write("a\n")
	f.await("a\n")
}

func TestFollowOnlyRegularFiles(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{dir, fifo, "/dev/zero"} {
		pipe, err := NewPipe(false)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := FollowFile(name, pipe, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: %v", name, err)
		}
		pipe.Close()
	}
}

// syslogd runs as a user of its own on some systems, whose files root reads only with
// the capability that the unit leaves out: the error says so.
func TestFollowAFileOfAnotherUser(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kern.log")
	pipe, err := NewPipe(false)
	if err != nil {
		t.Fatal(err)
	}
	defer pipe.Close()
	testnet.New(t).Do(func() {
		write(t, name, "a\n")
		if err = os.Chown(name, 65534, 65534); err == nil {
			err = errors.Join(withoutCapability(unix.CAP_DAC_OVERRIDE), withoutCapability(unix.CAP_DAC_READ_SEARCH))
		}
		if err == nil {
			_, err = FollowFile(name, pipe, slog.New(slog.DiscardHandler))
		}
	})
	if !errors.Is(err, unix.EACCES) || !strings.Contains(err.Error(), "CapabilityBoundingSet=CAP_DAC_READ_SEARCH") {
		t.Errorf("got %v", err)
	}
}

// Nobody reads: Close does not wait for him.
func TestCloseWithAFullPipe(t *testing.T) {
	name := filepath.Join(t.TempDir(), "kern.log")
	pipe, err := NewPipe(false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := FollowFile(name, pipe, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, strings.Repeat("x", 2*pipeSize))
	time.Sleep(100 * time.Millisecond)
	done := make(chan struct{})
	go func() { pipe.Close(); f.Close(); close(done) }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for ever")
	}
}

func TestFollowKernel(t *testing.T) {
	pipe, err := NewPipe(false)
	if err != nil {
		t.Fatal(err)
	}
	f, err := FollowKernel(pipe, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Skipf("needs the kernel's log: %v", err)
	}
	defer func() { pipe.Close(); f.Close() }()
	word := fmt.Sprintf("follow-test-%d", os.Getpid())
	kmsg, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("needs to write to the kernel's log")
	}
	defer kmsg.Close()
	fmt.Fprintf(kmsg, "<4>%s\n", word)
	var got strings.Builder
	b := make([]byte, 64<<10)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end) && !strings.Contains(got.String(), word); time.Sleep(time.Millisecond) {
		if n, err := unix.Read(pipe.Read, b); err == nil {
			got.Write(b[:n])
		}
	}
	// The facility of a program's is 1, whatever it says.
	if text := got.String(); !strings.Contains(text, word+"\n") || !strings.Contains("\n"+text, "\n12,") {
		t.Errorf("got %q", text)
	}
}
