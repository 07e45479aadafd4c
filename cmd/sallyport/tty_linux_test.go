package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// terminal is a pseudo-terminal, with a program whose own terminal it is though
// its standard streams are elsewhere, as under ssh's ProxyCommand.
type terminal struct {
	t      *testing.T
	master *os.File
	slave  *os.File
	cmd    *exec.Cmd
	words  strings.Builder
}

func newTerminal(t *testing.T, env []string, args ...string) *terminal {
	t.Helper()
	master, slave := newPTY(t)
	p := &terminal{t: t, master: master, slave: slave}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd = exec.Command(self, args...)
	p.cmd.Args[0] = "sallyport"
	p.cmd.Path = filepath.Join(t.TempDir(), "sallyport")
	if err := os.Symlink(self, p.cmd.Path); err != nil {
		t.Fatal(err)
	}
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stderr = &p.words
	p.cmd.ExtraFiles = []*os.File{slave}
	if args[len(args)-1] == "-" {
		p.cmd.Stdin = slave
	}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 3}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill(); p.cmd.Wait() })
	return p
}

func newPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { master.Close() })
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|syscall.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func (p *terminal) echoes() bool {
	state, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
	if err != nil {
		p.t.Fatal(err)
	}
	return state.Lflag&unix.ECHO != 0
}

// prompted waits for the prompt, with the echo off behind it.
func (p *terminal) prompted() { p.asked("passphrase for the key ") }

func (p *terminal) asked(prompt string) {
	p.t.Helper()
	seen := make(chan string, 1)
	go func() {
		b := make([]byte, 256)
		n, _ := io.ReadAtLeast(p.master, b, len(prompt))
		seen <- string(b[:n])
	}()
	select {
	case text := <-seen:
		if !strings.HasPrefix(text, prompt) {
			p.t.Fatalf("the terminal shows %q", text)
		}
	case <-time.After(20 * time.Second):
		p.t.Fatal("no prompt")
	}
	for range 1000 {
		if !p.echoes() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	p.t.Fatal("what is typed would be shown")
}

// lockedServer stores a server whose key has the passphrase "sesame".
func lockedServer(t *testing.T) (env []string) {
	dir := t.TempDir()
	key, err := spa.NewServerKey(spa.Classic)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "sesame", "-f", dir+"/key").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	raw := rawServer{Host: "127.0.0.1", Address: key.Address().String(), Key: dir + "/key"}
	if err := raw.store(dir+"/sallyport/locked.toml", "locked"); err != nil {
		t.Fatal(err)
	}
	return []string{"XDG_CONFIG_HOME=" + dir, "SSH_AUTH_SOCK=", "SSH_ASKPASS="}
}

func TestPassphraseAtTheTerminal(t *testing.T) {
	p := newTerminal(t, lockedServer(t), "knock", "locked", "--dry-run")
	p.prompted()
	io.WriteString(p.master, "sesame\n")
	if err := p.cmd.Wait(); err != nil || !p.echoes() {
		t.Errorf("%v, echo %v: %s", err, p.echoes(), p.words.String())
	}
}

func TestWrongPassphraseAtTheTerminal(t *testing.T) {
	p := newTerminal(t, lockedServer(t), "knock", "locked", "--dry-run")
	p.prompted()
	io.WriteString(p.master, "sesamoid\n")
	err := p.cmd.Wait()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != exitFailed || !p.echoes() {
		t.Errorf("%v, echo %v", err, p.echoes())
	}
	if words := p.words.String(); !strings.Contains(words, "passphrase") || strings.Contains(words, "sesamoid") {
		t.Errorf("it said %q", words)
	}
}

// An authenticator app's code is asked for where standard input is a terminal, and
// nobody who looks over a shoulder or into the process list sees it.
func TestCodeAtTheTerminal(t *testing.T) {
	for _, test := range []struct {
		typed, want string
		status      int
	}{{"123456", "would send one-time ports to HOST", 0}, {"12345", "the code must have 6 digits", exitUsage}, {"", "nothing was given", exitUsage}} {
		for _, host := range []string{"127.0.0.1", "::1"} {
			dir := t.TempDir()
			raw := rawServer{Host: host, Knock: "sallyport-otp 1 door=a digits=6 base=7000/tcp within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"}
			if err := raw.store(dir+"/sallyport/home.toml", "home"); err != nil {
				t.Fatal(err)
			}
			p := newTerminal(t, []string{"XDG_CONFIG_HOME=" + dir}, "knock", "home", "--dry-run", "--code", "-")
			p.asked("code that the authenticator app shows: ")
			io.WriteString(p.master, test.typed+"\n")
			p.cmd.Wait()
			words := p.words.String()
			want := strings.Replace(test.want, "HOST", host, 1)
			if p.cmd.ProcessState.ExitCode() != test.status || !p.echoes() || !strings.Contains(words, want) || test.typed != "" && strings.Contains(words, test.typed) {
				t.Errorf("%q at %s: status %d, echo %v: %s", test.typed, host, p.cmd.ProcessState.ExitCode(), p.echoes(), words)
			}
		}
	}
}

// Who types add's lone - sees that it waits, and for what.
func TestAddAsksAtTheTerminal(t *testing.T) {
	const line = "sallyport-otp 1 door=a digits=6 base=7000/tcp within=10s secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
	for _, test := range []struct {
		typed  string
		status int
		want   string
	}{
		{line + "\n\x04", exitDone, "stored home"},
		{"\x04", exitUsage, "nothing to store"},
		{line[:40] + "\x03", -1, ""}, // Ctrl-C
	} {
		p := newTerminal(t, []string{"XDG_CONFIG_HOME=" + t.TempDir()}, "add", "home", "--host", "2001:db8::7", "-")
		io.WriteString(p.master, test.typed)
		p.cmd.Wait()
		words := p.words.String()
		if p.cmd.ProcessState.ExitCode() != test.status || !strings.HasPrefix(words, "sallyport: paste what the server's owner gave you, then type Return and Ctrl-D\n") && test.status >= 0 || !strings.Contains(words, test.want) || strings.Contains(words, "GEZD") {
			t.Errorf("%q: status %d: %s", test.typed, p.cmd.ProcessState.ExitCode(), words)
		}
	}
}

// Ctrl-C at the prompt gives the echo back.
func TestInterruptedPassphrase(t *testing.T) {
	p := newTerminal(t, lockedServer(t), "knock", "locked", "--dry-run")
	p.prompted()
	io.WriteString(p.master, "ses\x03")
	err := p.cmd.Wait()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 130 {
		t.Errorf("it ended with %v: %s", err, p.words.String())
	}
	if !p.echoes() {
		t.Error("the terminal has no echo any more")
	}
}

// Somebody who sits there learns why a knock takes long, and a program that reads the
// words of another does not.
func TestALongWaitIsSaid(t *testing.T) {
	t.Parallel()
	o := &order{knock: &sallyport.OTP{TimeStep: time.Minute}}
	master, slave := newPTY(t)
	var piped strings.Builder
	defer o.tellWait(&ui{err: &piped})()
	at := time.Now()
	stop := o.tellWait(&ui{err: slave})
	line, err := bufio.NewReader(master).ReadString('\n')
	if took := time.Since(at); err != nil || took < wonder || !strings.Contains(line, "still shut: ") || !strings.Contains(line, "new ones come in ") {
		t.Errorf("after %v: %q, %v", took, line, err)
	}
	if stop() {
		t.Error("it would say it once more")
	}
	if piped.Len() > 0 {
		t.Errorf("a program was told %s", piped.String())
	}
}
