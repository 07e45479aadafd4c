package sallyport_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// skDummy stands for a hardware key; it comes with OpenSSH's own tests.
const skDummy = "/usr/lib/openssh/regress/misc/sk-dummy/sk-dummy.so"

func keygen(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command("ssh-keygen", append([]string{"-q"}, args...)...)
	cmd.Env = append(os.Environ(), "SSH_SK_PROVIDER="+skDummy)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen %v: %v\n%s", args, err, out)
	}
}

// makeKey makes a key without a passphrase.
func makeKey(t *testing.T, kind, bits string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	args := []string{"-t", kind, "-N", "", "-C", kind + bits, "-f", path}
	if bits != "" {
		args = append(args, "-b", bits)
	}
	if strings.HasSuffix(kind, "-sk") {
		args = append(args, "-w", skDummy)
	}
	keygen(t, args...)
	return path
}

// rewrite copies a key file and gives it another form and passphrase.
func rewrite(t *testing.T, path, form, passphrase string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(other, text, 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-p", "-P", "", "-N", passphrase, "-f", other}
	if form != "" {
		args = append(args, "-m", form)
	}
	keygen(t, args...)
	return other
}

var softKeys = []struct {
	kind, bits string
	size       int
	hybrid     bool // its signature fits into a post-quantum datagram
}{
	{"ed25519", "", spa.SmallSize, true},
	{"ecdsa", "256", spa.SmallSize, true},
	{"ecdsa", "384", spa.SmallSize, true},
	{"ecdsa", "521", spa.SmallSize, false},
	{"rsa", "2048", spa.LargeSize, false},
	{"rsa", "3072", spa.LargeSize, false},
	{"rsa", "4096", spa.LargeSize, false},
}

// accepted checks that a server opens what signer signed and believes it.
func accepted(t *testing.T, signer sallyport.Signer, suite spa.Suite, size int) {
	t.Helper()
	server := newServer(t, suite)
	r := sallyport.Request{Server: server.Address(), Signer: signer, Services: []string{"ssh"}}
	b, err := r.Seal(netip.MustParseAddr("192.0.2.1"))
	if err != nil {
		t.Error(err)
		return
	}
	if len(b) != size {
		t.Errorf("%d bytes, want %d", len(b), size)
	}
	if _, err := open(server, b, signer.PublicKey()); err != nil {
		t.Error(err)
	}
}

func said(passphrase string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(passphrase), nil }
}

func never(t *testing.T) func() ([]byte, error) {
	return func() ([]byte, error) { t.Error("asked for a passphrase"); return nil, errors.New("nobody is there") }
}

func TestKeysFromFiles(t *testing.T) {
	for _, k := range softKeys {
		t.Run(k.kind+k.bits, func(t *testing.T) {
			t.Parallel()
			path := makeKey(t, k.kind, k.bits)
			for _, form := range []string{"", "PEM", "PKCS8"} {
				for _, passphrase := range []string{"", "open sesame"} {
					if form == "PKCS8" && (passphrase != "" || k.kind == "ed25519") {
						continue // encrypted: below; ed25519: ssh-keygen has no such form
					}
					ask := never(t)
					if passphrase != "" {
						ask = said(passphrase)
					}
					signer, err := sallyport.LoadKey(rewrite(t, path, form, passphrase), ask)
					if err != nil {
						t.Errorf("form %q, passphrase %q: %v", form, passphrase, err)
						continue
					}
					accepted(t, signer, spa.Classic, k.size)
					if k.hybrid {
						accepted(t, signer, spa.PostQuantum, spa.PostQuantumSize)
					}
					if s := fmt.Sprintf("%v %+v %#v %s %d", signer, signer, signer, signer, signer); s != strings.TrimSuffix(strings.Repeat("(a private key) ", 5), " ") {
						t.Errorf("a log could have %s", s)
					}
				}
			}
		})
	}
}

// Old PEM says only by luck that a passphrase was wrong, so many are tried.
func TestAWrongPassphraseIsSaid(t *testing.T) {
	for _, form := range []string{"", "PEM"} {
		path := rewrite(t, makeKey(t, "ecdsa", "256"), form, "open sesame")
		for i := range 20 {
			_, err := sallyport.LoadKey(path, said(fmt.Sprint("wrong", i)))
			if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "passphrase") {
				t.Errorf("form %q: got %v", form, err)
			} else if i == 0 && form == "" && err.Error() != "the passphrase for "+path+" is wrong" {
				t.Errorf("got %v", err)
			}
		}
		_, err := sallyport.LoadKey(path, nil)
		if err == nil || !strings.Contains(err.Error(), "has a passphrase, and nobody can be asked for it: add the key to ssh-agent") {
			t.Errorf("form %q: got %v", form, err)
		}
		_, err = sallyport.LoadKey(path, func() ([]byte, error) { return nil, errors.New("no terminal") })
		if err == nil || err.Error() != "no passphrase for "+path+": no terminal" {
			t.Errorf("form %q: got %v", form, err)
		}
	}
}

func TestThePassphraseIsWiped(t *testing.T) {
	secret := []byte("open sesame")
	path := rewrite(t, makeKey(t, "ed25519", ""), "", string(secret))
	if _, err := sallyport.LoadKey(path, func() ([]byte, error) { return secret, nil }); err != nil {
		t.Fatal(err)
	}
	if string(secret) != strings.Repeat("\x00", len(secret)) {
		t.Error("the passphrase is still in memory")
	}
}

func TestWhichKeyFilesAreRefused(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	ed := makeKey(t, "ed25519", "")
	text, err := os.ReadFile(ed)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ path, want string }{
		{filepath.Join(dir, "none"), "can't be read: no such file or directory"},
		{file("empty", ""), "there is no private key in"},
		{file("words", "hello"), "there is no private key in"},
		{file("public", "ssh-ed25519 AAAA"), "name the file that ssh-keygen made, or its .pub file"},
		{dir, "can't be read: is a directory"},
		{file("short.pub", "ssh-rsa AAAA\n"), "damaged"},
		{file("other.pub", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f\n"), "damaged"},
		{file("base64.pub", "ssh-rsa A*AA\n"), "damaged"},
		{file("large", strings.Repeat("x", 64<<10+1)), "it is no key"},
		{file("cut", strings.Replace(string(text), string(text[40:80]), "", 1)), "damaged"},
		{file("half", "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"), "damaged"},
		{file("junk.pub", "hello"), "there is no public key in"},
		{makeKey(t, "rsa", "1024"), "1024 bits; from 2048 to 4096 are taken"},
		{rewrite(t, makeKey(t, "rsa", "1024"), "PEM", ""), "1024 bits; from 2048 to 4096 are taken"},
		{rewrite(t, makeKey(t, "ecdsa", "256"), "PKCS8", "open sesame"), "ssh-keygen -p -f "},
	} {
		_, err := sallyport.LoadKey(test.path, never(t))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", test.path, err, test.want)
		} else if strings.Contains(err.Error(), "hello") {
			t.Errorf("the error quotes the file: %v", err)
		}
	}
}

// ssh itself refuses such a key.
func TestAPrivateKeyThatOthersCanRead(t *testing.T) {
	path := makeKey(t, "ed25519", "")
	for mode, good := range map[os.FileMode]bool{
		0o600: true, 0o400: true, 0o700: true, 0o644: false, 0o640: false, 0o604: false, 0o620: false, 0o601: false, 0o777: false,
	} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := sallyport.LoadKey(path, never(t))
		_, half := sallyport.KeyFilePublic(path)
		want := fmt.Sprintf("others can read %s, mode %04o; type 'chmod 600 %s'", path, mode, path)
		for _, err := range []error{err, half} {
			if good && err != nil || !good && (err == nil || err.Error() != want) {
				t.Errorf("mode %04o: got %v", mode, err)
			}
		}
	}
	if err := os.Chmod(path+".pub", 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := sallyport.KeyFilePublic(path + ".pub"); err != nil {
		t.Errorf("a public key: %v", err)
	}
	if os.Getuid() != 0 {
		return
	}
	if err := errors.Join(os.Chmod(path, 0o644), os.Chown(path, 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	if _, err := sallyport.LoadKey(path, never(t)); err != nil {
		t.Errorf("somebody else's key: %v", err)
	}
}

// What a key file says in clear is what an owner is asked to let in.
func TestThePublicHalfOfAKeyFile(t *testing.T) {
	for _, k := range softKeys {
		path := makeKey(t, k.kind, k.bits)
		public, err := sallyport.KeyFilePublic(path + ".pub")
		if err != nil || public.Comment != k.kind+k.bits || public.Encrypted {
			t.Fatalf("%+v, %v", public, err)
		}
		for _, test := range []struct {
			form, passphrase string
			key              bool
		}{{"", "", true}, {"", "open sesame", true}, {"PEM", "", false}, {"PEM", "open sesame", false}} {
			if k.kind == "ed25519" && test.form != "" {
				continue // ssh-keygen has no such form
			}
			half, err := sallyport.KeyFilePublic(rewrite(t, path, test.form, test.passphrase))
			if err != nil || half.Encrypted != (test.passphrase != "") || test.key != bytes.Equal(half.Key, public.Key) || !test.key && half.Key != nil {
				t.Errorf("%s%s %v: %+v, %v", k.kind, k.bits, test, half, err)
			}
		}
	}
}

// A file whose clear half is another key's: its owner would be given a line for
// a key that never signs.
func TestHalvesOfTwoKeys(t *testing.T) {
	one, two := makeKey(t, "ed25519", ""), makeKey(t, "ed25519", "")
	half, err := sallyport.KeyFilePublic(two)
	if err != nil {
		t.Fatal(err)
	}
	other, err := sallyport.KeyFilePublic(one)
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(one)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	block.Bytes = bytes.Replace(block.Bytes, other.Key, half.Key, 1)
	if err := os.WriteFile(one, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := sallyport.LoadKey(one, never(t)); err == nil || !strings.HasSuffix(err.Error(), " is damaged: restore it from a copy") {
		t.Errorf("got %v", err)
	}
}

// agent starts a real ssh-agent with the keys.
func agent(t *testing.T, paths ...string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent")
	cmd := exec.Command("ssh-agent", "-D", "-a", socket, "-P", skDummy)
	cmd.Env = append(os.Environ(), "SSH_SK_HELPER=/usr/lib/openssh/ssh-sk-helper")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	await(t, "ssh-agent", func() bool { _, err := os.Stat(socket); return err == nil })
	t.Setenv("SSH_AUTH_SOCK", socket)
	for _, path := range paths {
		add := exec.Command("ssh-add", "-q", path)
		add.Env = append(os.Environ(), "SSH_SK_PROVIDER="+skDummy)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("ssh-add %s: %v\n%s", path, err, out)
		}
	}
}

func TestKeysFromTheAgent(t *testing.T) {
	var paths []string
	for _, k := range softKeys {
		paths = append(paths, makeKey(t, k.kind, k.bits))
	}
	agent(t, paths...)
	keys, err := sallyport.AgentKeys()
	if err != nil || len(keys) != len(softKeys) {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for i, k := range softKeys {
		out, err := exec.Command("ssh-keygen", "-lf", paths[i]).Output()
		if err != nil || !strings.Contains(string(out), " "+keys[i].Fingerprint.String()+" ") || keys[i].Comment != k.kind+k.bits {
			t.Errorf("ssh-keygen says %s (%v), the agent %s %s", out, err, keys[i].Fingerprint, keys[i].Comment)
		}
		accepted(t, keys[i], spa.Classic, k.size)
		byName, err := sallyport.LoadKey(paths[i]+".pub", never(t))
		if err != nil {
			t.Error(err)
			continue
		}
		accepted(t, byName, spa.Classic, k.size)
	}
	other := makeKey(t, "ed25519", "")
	if _, err := sallyport.LoadKey(other+".pub", nil); err == nil || !strings.HasSuffix(err.Error(), "add it with ssh-add "+other) {
		t.Errorf("got %v", err)
	}
}

func TestHardwareKeys(t *testing.T) {
	if _, err := os.Stat(skDummy); err != nil {
		t.Skipf("no stand-in for a hardware key: install openssh-tests (%v)", err)
	}
	paths := []string{makeKey(t, "ed25519-sk", ""), makeKey(t, "ecdsa-sk", "")}
	for _, path := range paths {
		_, err := sallyport.LoadKey(path, never(t))
		if err == nil || !strings.HasSuffix(err.Error(), "add it to the agent with ssh-add, and use --key agent") {
			t.Errorf("got %v", err)
		}
	}
	agent(t, paths...)
	keys, err := sallyport.AgentKeys()
	if err != nil || len(keys) != len(paths) {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, key := range keys {
		accepted(t, key, spa.Classic, spa.SmallSize)
		accepted(t, key, spa.PostQuantum, spa.PostQuantumSize)
	}
}

// A certificate is no key that a server could have in its list.
func TestCertificatesInTheAgentAreSkipped(t *testing.T) {
	path, ca := makeKey(t, "ed25519", ""), makeKey(t, "ed25519", "")
	keygen(t, "-s", ca, "-I", "somebody", path+".pub")
	agent(t, path)
	out, err := exec.Command("ssh-add", "-l").Output()
	if err != nil || !strings.Contains(string(out), "-CERT") {
		t.Fatalf("the agent has no certificate: %s, %v", out, err)
	}
	if keys, err := sallyport.AgentKeys(); err != nil || len(keys) != 1 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

func TestWithoutAnAgent(t *testing.T) {
	for _, test := range []struct{ socket, want string }{
		{"", "ssh-agent can't be reached: SSH_AUTH_SOCK is not set; start it"},
		{filepath.Join(t.TempDir(), "none"), "ssh-agent can't be reached: no such file or directory; start it"},
	} {
		t.Setenv("SSH_AUTH_SOCK", test.socket)
		if _, err := sallyport.AgentKeys(); err == nil || !strings.HasPrefix(err.Error(), test.want) {
			t.Errorf("got %v, want %q", err, test.want)
		}
	}
}

// The key was there when it was chosen, and then was taken out.
func TestAnAgentThatDoesNotSign(t *testing.T) {
	agent(t, makeKey(t, "ed25519", ""))
	keys, err := sallyport.AgentKeys()
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	if out, err := exec.Command("ssh-add", "-q", "-D").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	r := sallyport.Request{Server: newServer(t, spa.Classic).Address(), Signer: keys[0]}
	if _, err := r.Seal(netip.Addr{}); err == nil || !strings.Contains(err.Error(), "ssh-agent did not sign") {
		t.Errorf("got %v", err)
	}
}
