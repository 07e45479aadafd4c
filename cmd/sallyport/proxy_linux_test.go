package main

import (
	"bytes"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/testnet"
)

// guarded is a real daemon at the server of a world: it hides 22/tcp and 2222/tcp behind a
// sequence, and the client has it stored as "door".
type guarded struct {
	*world
	config string // XDG_CONFIG_HOME
}

func newGuarded(t *testing.T, host string) *guarded {
	g := &guarded{newWorld(t), t.TempDir()}
	g.server.Serve(testnet.Binary(t), `[service.door]
ports = ["22/tcp", "2222/tcp"]
open_for = "1m"
[knock.front]
type = "sequence"
opens = ["door"]
sequence = ["7000/tcp", "8500/udp", "7800/tcp"]
`)
	if out, err := g.run(strings.NewReader("7000/tcp 8500/udp 7800/tcp"), "add", "door", "-", "--host", host, "--service", "a=22", "--service", "b=2222"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return g
}

// command is the program at the client.
func (g *guarded) command(args ...string) *exec.Cmd {
	cmd := exec.Command(g.program, args...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+g.config)
	return cmd
}

func (g *guarded) run(in io.Reader, args ...string) (string, error) {
	cmd := g.command(args...)
	var words bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, &words, &words
	if err := g.client.Start(cmd); err != nil {
		g.t.Fatal(err)
	}
	end := time.AfterFunc(time.Minute, func() { cmd.Process.Kill() })
	defer end.Stop()
	err := cmd.Wait()
	return words.String(), err
}

func (g *guarded) shut(host string) bool {
	var err error
	g.client.Do(func() {
		var conn net.Conn
		if conn, err = net.DialTimeout("tcp", net.JoinHostPort(host, "22"), 300*time.Millisecond); err == nil {
			conn.Close()
		}
	})
	return err != nil
}

func TestKnockByNameAtARealDaemon(t *testing.T) {
	for _, f := range families {
		g := newGuarded(t, f.server)
		var l net.Listener
		var err error
		g.server.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(f.server, "22")) })
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if !g.shut(f.server) {
			t.Fatalf("%s: the port is open before any knock", f.name)
		}
		var late atomic.Pointer[net.Listener] // the other service comes up behind the knock
		time.AfterFunc(700*time.Millisecond, func() {
			g.server.Do(func() {
				if l, err := net.Listen("tcp", net.JoinHostPort(f.server, "2222")); err == nil {
					late.Store(&l)
				}
			})
		})
		words, err := g.run(nil, "knock", "door", "--wait")
		if l := late.Load(); l == nil {
			t.Errorf("%s: it did not wait for 2222/tcp", f.name)
		} else {
			defer (*l).Close()
		}
		if err != nil || !strings.HasPrefix(words, "sallyport: 22/tcp, 2222/tcp at "+f.server+" is open, after ") {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
		if g.shut(f.server) {
			t.Errorf("%s: the port is shut behind the knock", f.name)
		}
		// It is not known whether the port is one that the knock opened.
		words, err = g.run(nil, "knock", "door", "--then", "22")
		if err != nil || !strings.HasPrefix(words, "sallyport: 22/tcp at "+f.server+" answers, after ") {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
		words, err = g.run(nil, "knock", "door", "--then", "23", "--timeout", "200ms")
		if err == nil || !strings.Contains(words, ":23 did not open within") {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
	}
}

// socat answers with what it got only when the client's half has ended, so the
// answer shows that each half ends by itself.
func TestProxyAtARealDaemon(t *testing.T) {
	for _, f := range families {
		g := newGuarded(t, f.server)
		listen := "TCP4-LISTEN:22,reuseaddr"
		if f.name == "ipv6" {
			listen = "TCP6-LISTEN:22,ipv6only,reuseaddr"
		}
		socat := exec.Command("socat", listen, "SYSTEM:cat >"+filepath.Join(g.config, "got")+"; wc -c <"+filepath.Join(g.config, "got"))
		if err := g.server.Start(socat); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socat.Process.Kill(); socat.Wait() })
		const size = 1 << 20
		words, err := g.run(bytes.NewReader(make([]byte, size)), "proxy", "door", f.server, "22")
		if err != nil || strings.TrimSpace(words) != "1048576" {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
	}
}

// The server ends the connection while standard input stays open: ssh's does.
func TestProxyEndsWithTheConnection(t *testing.T) {
	for _, f := range families {
		g := newGuarded(t, f.server)
		var l net.Listener
		var err error
		g.server.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(f.server, "22")) })
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				io.WriteString(conn, "bye\n")
				conn.Close()
			}
		}()
		in, hold, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		words, err := g.run(in, "proxy", "door", f.server, "22")
		hold.Close()
		in.Close()
		if err != nil || words != "bye\n" {
			t.Errorf("%s: %v, %q", f.name, err, words)
		}
	}
}

func TestProxyThatFindsNothing(t *testing.T) {
	g := newGuarded(t, "192.0.2.2")
	for _, f := range families {
		var out, words bytes.Buffer
		cmd := g.command("proxy", "door", f.server, "23", "--timeout", "300ms")
		cmd.Stdout, cmd.Stderr = &out, &words
		if err := g.client.Start(cmd); err != nil {
			t.Fatal(err)
		}
		err := cmd.Wait()
		if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != exitFailed || out.Len() > 0 || !strings.Contains(words.String(), "did not open within") {
			t.Errorf("%s: %v, %q, %q", f.name, err, out.String(), words.String())
		}
	}
}

// The real ssh, with the file that 'add --ssh' writes, at the real sshd.
func TestSSHKnocksFirst(t *testing.T) {
	os.MkdirAll("/run/sshd", 0o755) // sshd wants it, and systemd would make it
	for _, f := range families {
		g := newGuarded(t, f.server)
		for _, name := range []string{"host", "user"} {
			g.client.Run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(g.config, name))
		}
		sshd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", "/dev/null", "-h", filepath.Join(g.config, "host"),
			"-o", "AuthorizedKeysFile="+filepath.Join(g.config, "user.pub"), "-o", "StrictModes=no", "-o", "UsePAM=no",
			"-o", "PermitRootLogin=yes", "-o", "PidFile=none", "-o", "ListenAddress="+f.server)
		if err := g.server.Start(sshd); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sshd.Process.Kill(); sshd.Wait() })
		add := g.command("add", "door2", "7000/tcp", "8500/udp", "7800/tcp", "--host", f.server, "--ssh")
		add.Env = append(add.Env, "HOME="+g.config)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		ssh := exec.Command("ssh", "-F", filepath.Join(g.config, ".ssh/config.d/sallyport-door2"), "-i", filepath.Join(g.config, "user"),
			"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "ConnectTimeout=20", "door2", "echo inside")
		var out, words bytes.Buffer
		ssh.Stdout, ssh.Stderr = &out, &words
		ssh.Env = append(os.Environ(), "XDG_CONFIG_HOME="+g.config, "SSH_AUTH_SOCK=")
		if !g.shut(f.server) {
			t.Fatalf("%s: the port is open before ssh", f.name)
		}
		if err := g.client.Start(ssh); err != nil {
			t.Fatal(err)
		}
		end := time.AfterFunc(time.Minute, func() { ssh.Process.Kill() })
		defer end.Stop()
		if err := ssh.Wait(); err != nil || out.String() != "inside\n" {
			t.Errorf("%s: %v, %q, %q", f.name, err, out.String(), words.String())
		}
	}
}
