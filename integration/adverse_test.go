package integration_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/testnet"
)

// An engine that ends while it takes a new config must end the daemon too: a
// warden alone is deaf, and the ports are shut.
func TestAnEngineThatDiesDuringAReloadEndsTheDaemon(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"))
	engine := h.enginePid()
	syscall.Kill(engine, syscall.SIGSTOP)
	h.Signal(syscall.SIGHUP)
	h.eventually("the warden waits for the engine", func() bool { return inState(engine, "T") })
	syscall.Kill(engine, syscall.SIGKILL)
	h.end(1, "the engine was ended by killed")
}

func inState(pid int, state string) bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(text), ") "+state+" ")
}

// Promise 6: a confirmation that fails leaves the trial a trial.
func TestPromise6AFailedConfirmationKeepsTheTrial(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"), "--undo-after", "6s")
	state := filepath.Join(h.Dir, "state")
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	if out, err := h.Tool("confirm"); err == nil {
		t.Errorf("confirmed without a state directory: %s", out)
	}
	h.Await("the trial goes on")
	if table := h.table(); !strings.Contains(table, "tcp . 22 timeout") {
		t.Errorf("the hiding is lasting:\n%s", table)
	}
	h.Signal(syscall.SIGKILL)
	h.Wait()
	h.await(true, 22, paths...)
}

// A trial that was never confirmed must not become lasting by the boot's unit.
func TestPromise6HideLeavesATrialAlone(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"), "--undo-after", "5s")
	hide := func(want string) {
		t.Helper()
		out, err := h.server.Output(testnet.Binary(t), "hide", "--state-dir", filepath.Join(h.Dir, "state"), "-c", h.Config())
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("hide: %v, %s, want %q", err, out, want)
		}
	}
	hide("a daemon serves this machine")
	h.Signal(syscall.SIGKILL)
	h.Wait()
	hide("nobody confirmed it")
	h.await(true, 22, paths...)
}

func TestASecondTrialSaysWhatItsEndMeans(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"))
	h.Signal(syscall.SIGTERM)
	h.end(0, "what is hidden stays hidden")
	h.Start("--undo-after", "5s")
	h.Await("when the trial ends unconfirmed, that is gone too")
	h.Await("serving on trial")
	h.Signal(syscall.SIGTERM)
	h.end(0, "the kernel undoes the hiding")
	h.await(true, 22, paths...)
}

// A table that goes while the daemon starts is missed by nobody.
func TestPromise2ATableRemovedAtTheStartComesBack(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	// The earliest moment: another program waits for the table and deletes it.
	remove := exec.Command("sh", "-c", "for i in $(seq 2000); do nft delete table inet sallyport 2>/dev/null && exit 0; done; exit 1")
	if err := h.server.Start(remove); err != nil {
		t.Fatal(err)
	}
	h.serve(houseConfig("1m"))
	if err := remove.Wait(); err != nil {
		t.Fatal("the table was never removed")
	}
	h.await(false, 22, paths...)
}

// A config that is in use is not called refused because it could not be kept.
func TestAReloadThatCannotBeKeptIsInUse(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.listen(2222)
	h.serve(houseConfig("1m"))
	if err := os.RemoveAll(filepath.Join(h.Dir, "state")); err != nil {
		t.Fatal(err)
	}
	h.reload(strings.Replace(houseConfig("1m"), `"22/tcp"`, `"2222/tcp"`, 1), readAgain)
	h.said("a reboot would hide what the one before did")
	h.is(true, 22, paths...)
	h.is(false, 2222, paths...)
}

func TestConfirmAfterDownHidesNothing(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"), "--undo-after", "1m")
	h.server.Run(testnet.Binary(t), "down")
	h.Await("the table was taken down")
	if out, err := h.Tool("confirm"); err == nil {
		t.Errorf("confirmed what is not there: %s", out)
	}
	h.is(true, 22, paths...)
}

// Anybody may take the name by which a second daemon is noticed; the daemon
// must not be kept out by it.
func TestASquattedNameKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	squatter := exec.Command("socat", "ABSTRACT-LISTEN:sallyport,fork", "PIPE")
	squatter.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65533, Gid: 65533}}
	if err := h.server.Start(squatter); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { squatter.Process.Kill(); squatter.Wait() })
	h.eventually("the name is taken", func() bool {
		return strings.Contains(h.server.Run("cat", "/proc/net/unix"), "@sallyport")
	})
	h.serve(houseConfig("1m"))
	h.said("a program that is no daemon of ours")
	h.enter(paths...)
}

// Two daemons may share a file system but no control socket.
func TestALiveControlSocketIsNotTaken(t *testing.T) {
	t.Parallel()
	h := newHouse(t)
	h.serve(houseConfig("1m"))
	other := newHouse(t)
	config := "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"" + h.Control + "\"\n" + houseConfig("1m")
	other.Daemon = other.server.Launch(testnet.Binary(t), config)
	other.end(1, "another daemon answers at")
	h.must("status")
}

// A flood of forged knocks, by somebody who knows the sequence, and a reload
// together: the queue to the warden is full when the engine has to answer.
func TestPromise4AFloodedReloadEndsNothing(t *testing.T) { // not in parallel: a flood takes a core
	h := newHouse(t)
	h.serve(houseConfig("2s"))
	for round := range uint32(5) {
		before := h.counters()["unanswered"]
		stop, done := make(chan struct{}), make(chan struct{})
		h.Signal(syscall.SIGSTOP) // a warden that does not keep up, on a machine of any speed
		go func() {
			defer close(done)
			h.forge(stop, round<<13)
		}()
		time.AfterFunc(500*time.Millisecond, func() { h.Signal(syscall.SIGCONT) })
		h.reload(houseConfig("2s"), readAgain)
		close(stop)
		<-done
		if after := h.counters()["unanswered"]; after == before {
			t.Errorf("the queue was never full: %d requests had no room", after)
		}
		h.reload(houseConfig("2s"), readAgain) // a knock may be made 1000 times again
	}
	h.enter(paths...)
}

// forge sends whole knocks from forged addresses, the first of that number, until stop.
func (h *house) forge(stop chan struct{}, first uint32) {
	var fd int
	h.client.Do(func() { fd, _ = unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW) })
	defer unix.Close(fd)
	to := &unix.SockaddrInet4{Addr: paths[0].server.As4()}
	at := func(port uint16) netip.AddrPort { return netip.AddrPortFrom(paths[0].server, port) }
	for i := first; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		if i%64 == 0 {
			time.Sleep(time.Millisecond) // the daemon's processes need a core too
		}
		// RFC 2544's range: nobody has these addresses.
		src := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), uint16(i)|1)
		for _, p := range [][]byte{
			testnet.TCP(src, at(47011), sequence.SYN, i),
			testnet.UDP(src, at(48022), []byte{byte(i)}),
			testnet.TCP(src, at(45033), sequence.SYN, i),
		} {
			unix.Sendto(fd, p, 0, to)
		}
	}
}

// counters are those of status.
func (h *house) counters() map[string]uint64 {
	h.t.Helper()
	var s control.Status
	if err := json.Unmarshal([]byte(h.must("status", "--json")), &s); err != nil {
		h.t.Fatal(err)
	}
	return s.Counters
}
