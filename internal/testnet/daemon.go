package testnet

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// patience bounds every wait for an event, in tests on a busy machine.
const patience = time.Minute

var built struct {
	sync.Once
	path string
	err  error
	out  []byte
}

// Binary gives the path of the program, built once for this process from the
// tree that the tests belong to.
func Binary(t TB) string {
	t.Helper()
	built.Do(func() {
		dir, err := os.MkdirTemp("", "sallyport-test-")
		if err != nil {
			built.err = err
			return
		}
		os.Chmod(dir, 0o755) // some tests run it without root
		built.path = filepath.Join(dir, "sallyport")
		cmd := exec.Command("go", "build", "-o", built.path, "github.com/sallyport/sallyport/cmd/sallyport")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		built.out, built.err = cmd.CombinedOutput()
	})
	if built.err != nil {
		t.Fatalf("testnet: building the program: %v\n%s", built.err, built.out)
	}
	return built.path
}

// WriteProgram writes a file that is to be executed. A child forked meanwhile
// would hold the file open for writing until its own exec, and executing it
// would fail with ETXTBSY; so nothing forks meanwhile.
func WriteProgram(path string, text []byte) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	return os.WriteFile(path, text, 0o755)
}

// Main runs a test binary's tests and then removes the program that Binary
// built for them. It gives the exit status for os.Exit.
func Main(m interface{ Run() int }) int {
	defer func() {
		if built.path != "" {
			os.RemoveAll(filepath.Dir(built.path))
		}
	}()
	return m.Run()
}

// Daemon is a running sallyport, the real one.
type Daemon struct {
	Dir     string // its own directory: sallyport.toml, state, control.sock
	Control string // path of its control socket
	Cmd     *exec.Cmd
	t       TB
	bin     string
	ns      *Namespace
	log     Output
	ended   chan struct{}
}

// Serve starts the program inside the namespace on a config and waits until it
// serves. In the config's text, DIR stands for the daemon's own directory; a
// config without a [daemon] table gets one that keeps everything in there.
func (ns *Namespace) Serve(bin, config string, args ...string) *Daemon {
	ns.t.Helper()
	d := ns.Launch(bin, config, args...)
	d.Await("serving", "observing")
	return d
}

// Launch is Serve that does not wait, for daemons that are to fail.
func (ns *Namespace) Launch(bin, config string, args ...string) *Daemon {
	ns.t.Helper()
	dir, err := os.MkdirTemp("", "sallyport-daemon-")
	if err != nil {
		ns.t.Fatal(err)
	}
	ns.t.Cleanup(func() { os.RemoveAll(dir) })
	d := &Daemon{Dir: dir, Control: filepath.Join(dir, "control.sock"), t: ns.t, bin: bin, ns: ns}
	d.Configure(config)
	d.Start(args...)
	return d
}

// Configure replaces the config file, as an administrator would.
func (d *Daemon) Configure(config string) {
	d.t.Helper()
	if !strings.Contains(config, "[daemon]") {
		config = "[daemon]\nstate_dir = \"DIR/state\"\ncontrol = \"DIR/control.sock\"\n" + config
	}
	config = strings.ReplaceAll(config, "DIR", d.Dir)
	if err := os.WriteFile(d.Config(), []byte(config), 0o600); err != nil {
		d.t.Fatal(err)
	}
}

// Config is the path of the config file.
func (d *Daemon) Config() string { return filepath.Join(d.Dir, "sallyport.toml") }

// Start starts the daemon, for the first time or again after its end.
func (d *Daemon) Start(args ...string) {
	d.t.Helper()
	d.Cmd = exec.Command(d.bin, append([]string{"serve", "-c", d.Config()}, args...)...)
	d.Cmd.Stdout, d.Cmd.Stderr = &d.log, &d.log
	d.log.reset()
	if err := d.ns.Start(d.Cmd); err != nil {
		d.t.Fatal(err)
	}
	cmd, ended := d.Cmd, make(chan struct{})
	d.ended = ended
	go func() { cmd.Wait(); close(ended) }()
	d.t.Cleanup(func() { cmd.Process.Kill(); <-ended })
}

// Await waits for a log line that contains one of the texts and gives it.
func (d *Daemon) Await(texts ...string) string {
	d.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for line := range strings.Lines(d.log.String()) {
			for _, text := range texts {
				if strings.Contains(line, text) {
					return strings.TrimSuffix(line, "\n")
				}
			}
		}
		select {
		case <-d.ended:
			if !strings.Contains(d.log.String(), texts[0]) {
				d.t.Fatalf("the daemon ended before it said %q:\n%s", texts, d.log.String())
			}
		default:
		}
	}
	d.t.Fatalf("the daemon did not say %q:\n%s", texts, d.log.String())
	return ""
}

// Log gives everything that the daemon has written since its last start.
func (d *Daemon) Log() string { return d.log.String() }

// Signal sends a signal to the daemon.
func (d *Daemon) Signal(sig syscall.Signal) { d.Cmd.Process.Signal(sig) }

// Wait waits for the daemon's end and gives its exit status, -1 for a signal.
func (d *Daemon) Wait() int {
	d.t.Helper()
	select {
	case <-d.ended:
	case <-time.After(patience):
		d.t.Fatalf("the daemon did not end:\n%s", d.log.String())
	}
	return d.Cmd.ProcessState.ExitCode()
}

// Tool runs another command of the program against this daemon's control
// socket and gives both streams and its error.
func (d *Daemon) Tool(command string, args ...string) (string, error) {
	return d.ns.Output(d.bin, append([]string{command, "--control", d.Control}, args...)...)
}

// Output collects what a process writes while others read it. The zero value is
// ready.
type Output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write adds to what was written.
func (l *Output) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

// String gives all of it.
func (l *Output) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *Output) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}
