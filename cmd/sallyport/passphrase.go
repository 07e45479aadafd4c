package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"
)

const (
	// maxPassphrase is what is taken from an askpass program, in bytes, as ssh does.
	maxPassphrase = 1023
	// askpassLimit ends an askpass program that nobody answers.
	askpassLimit = 5 * time.Minute
)

// passphrase asks for a key file's passphrase when it is called.
func passphrase(file string) func() ([]byte, error) {
	return func() ([]byte, error) { return askSecret(fmt.Sprintf("passphrase for the key %s: ", file)) }
}

// askSecret asks where ssh would (ssh(1), SSH_ASKPASS_REQUIRE): at the terminal,
// which is not standard input, because ssh's pipes may be there; else through
// the program SSH_ASKPASS.
func askSecret(prompt string) ([]byte, error) {
	program := os.Getenv("SSH_ASKPASS")
	screen := os.Getenv("DISPLAY") != "" || os.Getenv("WAYLAND_DISPLAY") != ""
	required := strings.ToLower(os.Getenv("SSH_ASKPASS_REQUIRE"))
	may := program != "" && required != "never" && (screen || required == "force")
	if may && (required == "force" || required == "prefer") {
		return askProgram(program, prompt)
	}
	in, out, err := openTerminal()
	switch {
	case err == nil:
		defer in.Close()
		defer out.Close()
		return askTerminal(in, out, prompt)
	case may:
		return askProgram(program, prompt)
	}
	return nil, errors.New("the key has a passphrase, and there is no terminal to ask for it: add the key to ssh-agent with ssh-add, or set SSH_ASKPASS")
}

// openTerminal gives the terminal to read from and to write to.
func openTerminal() (in, out *os.File, err error) {
	if runtime.GOOS == "windows" {
		if in, err = os.OpenFile("CONIN$", os.O_RDWR, 0); err != nil {
			return nil, nil, err
		}
		if out, err = os.OpenFile("CONOUT$", os.O_RDWR, 0); err != nil {
			in.Close()
		}
		return in, out, err
	}
	if in, err = os.OpenFile("/dev/tty", os.O_RDWR, 0); err != nil {
		return nil, nil, err
	}
	if out, err = os.OpenFile("/dev/tty", os.O_WRONLY, 0); err != nil {
		in.Close()
	}
	return in, out, err
}

// askTerminal reads a line without an echo. A signal that ends the program must
// not leave the terminal without one.
func askTerminal(in, out *os.File, prompt string) ([]byte, error) {
	fd := int(in.Fd())
	before, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("the terminal can't be read without an echo: %w", err)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	done := make(chan struct{})
	defer close(done)
	defer signal.Stop(signals)
	go func() {
		select {
		case s := <-signals:
			term.Restore(fd, before)
			fmt.Fprintln(out)
			os.Exit(128 + signalNumber(s)) // as a shell counts
		case <-done:
		}
	}()
	fmt.Fprint(out, prompt)
	secret, err := term.ReadPassword(fd)
	fmt.Fprintln(out)
	if errors.Is(err, io.EOF) {
		return nil, errors.New("nothing was typed")
	}
	return secret, err
}

func signalNumber(s os.Signal) int {
	if n, ok := s.(syscall.Signal); ok {
		return int(n)
	}
	return 2
}

// askProgram runs an askpass program: the prompt is its argument, the secret the
// first line that it prints.
func askProgram(program, prompt string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), askpassLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, prompt)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("SSH_ASKPASS gave no passphrase: %s: %w", program, err)
	}
	line, _, _ := bytes.Cut(text, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) > maxPassphrase {
		return nil, fmt.Errorf("SSH_ASKPASS printed a line of more than %d bytes", maxPassphrase)
	}
	return line, nil
}
