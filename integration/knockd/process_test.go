package knockd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// background gives the number of a daemon that was started with -d and a pid file
// of this world's, and ends it with the test.
func (w *world) background(d *daemon, file string) int {
	w.t.Helper()
	if status := d.status(); status != 0 {
		w.t.Fatalf("status %d: %s", status, d.out)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(w.read(file)))
	if err != nil || pid < 2 {
		w.t.Fatalf("the pid file has %q", w.read(file))
	}
	w.t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

// gone waits until a process that is no child of ours has ended.
func (w *world) gone(pid int) {
	w.t.Helper()
	w.eventually(fmt.Sprintf("the end of %d", pid), func() bool {
		_, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
		return err != nil
	})
}

// As container images run it to wake a server: one port, which is the server's own
// and may be listening, one second, no root but CAP_NET_RAW, in the background.
func TestWithoutRoot(t *testing.T) {
	w := newWorld(t)
	os.Chmod(w.dir, 0o777)
	w.listen(25565)
	w.write("resume", "#!/bin/sh\necho \"$# $1 $(id -u)\" >> DIR/resumed\n")
	w.write("knockd.conf", `[options]
 logfile = DIR/log
[unpauseMinecraftServer-server]
 sequence = 25565
 seq_timeout = 1
 command = DIR/resume %IP%
 tcpflags = syn
[unpauseMinecraftServer-rcon]
 sequence = 25575
 seq_timeout = 1
 start_command = DIR/resume %IP%
 tcpflags = syn
`)
	const raw = `set -- setpriv --reuid 65533 --regid 65533 --clear-groups --bounding-set=-all,+net_raw --inh-caps=-all,+net_raw --ambient-caps=-all,+net_raw "$@"`
	pid := w.background(w.start(raw, w.knockd, "-c", "DIR/knockd.conf", "-d", "-i", "WIRE", "-p", "DIR/pid"), "pid")
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || !strings.Contains(string(status), "CapPrm:\t0000000000002000\n") {
		t.Errorf("its capabilities (%v):\n%s", err, status)
	}
	want := ""
	for _, f := range families {
		if !w.reaches(f, 25565) {
			t.Errorf("%s: the server is not reached", f.name)
		}
		want += "1 " + f.client + " 65533\n"
		w.eventually("the command: "+w.read("log"), func() bool { return w.read("resumed") == want })
		w.reaches(f, 25575)
		want += "1 " + f.client + " 65533\n"
		w.eventually("the command: "+w.read("log"), func() bool { return w.read("resumed") == want })
	}
	syscall.Kill(pid, syscall.SIGTERM)
	w.gone(pid)
	w.eventually("the pid file's end", func() bool { return w.read("pid") == "" })
}

// SIGHUP with a good file, a bad one and a good one again; SIGTERM and SIGINT give
// the original's statuses; half a knock survives the reload.
func TestSignals(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", oneDoor+fence, "-i", "WIRE")
	for _, f := range families {
		w.hit(f, "7000", "8500")
		d.await(f.client+": door: Stage 2", 1)
	}
	w.write("knockd.conf", oneDoor+fence+"[new]\nsequence = 9000\n")
	d.Process.Signal(syscall.SIGHUP)
	d.await("re-reading config file: ", 1)
	for _, f := range families {
		w.eventually("the new door", func() bool { w.hit(f, "9000"); return d.said(opened(f, "new")) > 0 })
		w.hit(f, "7800")
		d.await(opened(f, "door"), 1)
	}
	w.write("knockd.conf", oneDoor+"[bad]\nsequence = 7000\nbogus\n")
	d.Process.Signal(syscall.SIGHUP)
	d.await("knockd.conf:6:", 1)
	d.await("the new config is refused and the one before stays in use", 1)
	for _, f := range families {
		n := d.said(opened(f, "new"))
		w.hit(f, "9000")
		d.await(opened(f, "new"), n+1)
		w.hit(f, "7000", "8500", "7800")
		d.await(opened(f, "door"), 2)
	}
	w.write("knockd.conf", fence)
	d.Process.Signal(syscall.SIGHUP)
	d.await("re-reading config file: ", 3)
	for _, f := range families {
		w.eventually("the end of a door", func() bool {
			n := d.said(opened(f, "new"))
			w.hit(f, "9000")
			d.fence(f)
			return d.said(opened(f, "new")) == n
		})
	}
	d.ends(syscall.SIGTERM, 15)
	w.again("knockd.conf", "-i", "WIRE").ends(syscall.SIGINT, 2)
}

// The engine is killed: the daemon can't hear any more and ends with 1, so that
// whoever watches it starts it again, and the stop that was due is run then.
func TestEngineKilled(t *testing.T) {
	w := newWorld(t)
	d := w.serve("knockd.conf", startStop("ran", 1), "-i", "WIRE")
	for _, f := range families {
		w.hit(f, "7000", "8500")
		w.ran("ran", "start", f.client, 1)
	}
	syscall.Kill(w.engine(d), syscall.SIGKILL)
	if status := d.status(); status != 1 || d.said("the engine was ended by killed") == 0 {
		t.Errorf("status %d:\n%s", status, d.out)
	}
	w.again("knockd.conf", "-i", "WIRE")
	for _, f := range families {
		w.ran("ran", "stop", f.client, 1)
	}
}

// engine finds the child of a daemon that reads packets.
func (w *world) engine(d *daemon) int {
	w.t.Helper()
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", d.Process.Pid))
	for _, name := range files {
		text, _ := os.ReadFile(name)
		for field := range strings.FieldsSeq(string(text)) {
			if args, _ := os.ReadFile("/proc/" + field + "/cmdline"); strings.HasPrefix(string(args), "sallyport: engine") {
				pid, _ := strconv.Atoi(field)
				return pid
			}
		}
	}
	w.t.Fatal("the daemon has no engine")
	return 0
}

// In the background the pid file holds the daemon's number while it lives.
func TestPidFile(t *testing.T) {
	w := newWorld(t)
	w.write("knockd.conf", "[options]\nlogfile = DIR/log\npidfile = DIR/knockd.pid\n"+oneDoor)
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		pid := w.background(w.start("", w.knockd, "-c", "DIR/knockd.conf", "-d", "-i", "WIRE"), "knockd.pid")
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); string(comm) != "knockd\n" {
			t.Errorf("process %d is named %q", pid, comm)
		}
		before := strings.Count(w.read("log"), "OPEN SESAME")
		for n, f := range families {
			w.hit(f, "7000", "8500", "7800")
			w.eventually("a door", func() bool { return strings.Count(w.read("log"), "OPEN SESAME") > before+n })
		}
		syscall.Kill(pid, sig)
		w.gone(pid)
		if text := w.read("knockd.pid"); text != "" {
			t.Errorf("after %v the pid file has %q", sig, text)
		}
	}
	d := w.start("", w.knockd, "-c", "DIR/nothing.conf", "-d", "-i", "WIRE")
	if status := d.status(); status != 1 {
		t.Errorf("without a file: status %d:\n%s", status, d.out)
	}
}
