//go:build linux

package run

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A payload reaches the command's standard input, whole and as it is, and nothing
// else: not its arguments, its environment, its parent's arguments, the journal, the
// log, or what people are told; nor the undo.
func TestInput(t *testing.T) {
	families(t, func(t *testing.T, addr netip.Addr) {
		mark := "5c7fpayload"
		for name, input := range map[string][]byte{
			"a text": []byte(mark + "\n"), "hostile": []byte("$(" + mark + ")\x00\xff`;'\"\n\\"), "one byte": {0},
			"the longest": []byte(mark + strings.Repeat("x", MaxInput-len(mark))),
		} {
			t.Run(name, func(t *testing.T) {
				w := newWorld(t)
				a := w.shell("a", "cat >OUT; tr '\\0' '\\n' </proc/$$/environ >OUT.env; tr '\\0' '\\n' </proc/$$/cmdline >>OUT.env; cat /proc/$PPID/cmdline /proc/$PPID/environ >>OUT.env; readlink /proc/self/fd/0 >>OUT.env; echo done >OUT.done",
					"readlink /proc/$$/fd/0 >OUT.undo", 0)
				if err := w.Run(Job{Action: a, Addr: addr, Input: input}, time.Now()); err != nil {
					t.Fatal(err)
				}
				eventually(t, "the command ends", func() bool { return w.read(".done") == "done\n" })
				if got := w.read(""); got != string(input) {
					t.Errorf("it read %q, want %q", got, input)
				}
				if !w.Undo(a, addr, everybody, time.Now()) {
					t.Fatal("there is no undo")
				}
				eventually(t, "the undo ends", func() bool { return strings.HasSuffix(w.read(".undo"), "\n") })
				if got := w.read(".undo"); got != "/dev/null\n" {
					t.Errorf("the undo reads %q", got)
				}
				journal, _ := os.ReadFile(filepath.Join(w.dir, journalName))
				told := w.log.String() + w.read(".env") + string(journal)
				for _, e := range w.told() {
					told += e.Command
				}
				if bytes.Contains([]byte(told), []byte(mark)) {
					t.Errorf("the payload is elsewhere too:\n%s", told)
				}
			})
		}
	})
}

func (w *world) read(suffix string) string {
	b, _ := os.ReadFile(w.out + suffix)
	return string(b)
}

// Without a payload a command reads the end of /dev/null, whatever the one before
// it had.
func TestNoInput(t *testing.T) {
	w := newWorld(t)
	a := w.shell("a", "readlink /proc/$$/fd/0 >>OUT; cat >>OUT", "", 0)
	a.Again = true
	if err := w.Run(Job{Action: a, Addr: v4, Input: []byte("x\n")}, time.Now()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first ends", func() bool { return strings.HasSuffix(w.text(), "x\n") })
	w.run(a, v6)
	eventually(t, "the second ends", func() bool { return strings.HasSuffix(w.text(), "/dev/null\n") })
}

// What is longer than a payload can be is refused by whoever is asked, and a command
// that does not read holds nobody up.
func TestInputIsBounded(t *testing.T) {
	w := newWorld(t)
	if err := w.Run(Job{Action: w.logs("a", 0), Addr: v4, Input: make([]byte, MaxInput+1)}, time.Now()); err == nil {
		t.Error("too much is taken")
	}
	s := &spawner{}
	if f, err := s.input(make([]byte, MaxInput+1)); err == nil {
		f.Close()
		t.Error("too much is taken by the spawner")
	}
	a := w.shell("b", "exec sleep 3", "", 0)
	a.Again = true
	for range actionRunning {
		if err := w.Run(Job{Action: a, Addr: v4, Input: make([]byte, MaxInput)}, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	w.run(w.logs("c", 0), v6)
	w.until("start 2001:db8::7\n")
}
