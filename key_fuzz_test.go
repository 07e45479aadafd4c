package sallyport_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport"
)

// header is the clear part of a private key in OpenSSH's form.
type header struct {
	Cipher, KDF, Options string
	Keys                 uint32
	Public               []byte
	Rest                 []byte `ssh:"rest"`
}

func (h header) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: append([]byte("openssh-key-v1\x00"), ssh.Marshal(h)...)})
}

// keySeeds are files of each kind; of the public ones, lines.
func keySeeds(f *testing.F) (private [][]byte, public []string) {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	plain, err := ssh.MarshalPrivateKey(key, "comment")
	if err != nil {
		f.Fatal(err)
	}
	locked, err := ssh.MarshalPrivateKeyWithPassphrase(key, "comment", []byte("open sesame"))
	if err != nil {
		f.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		f.Fatal(err)
	}
	blob, hardware := signer.PublicKey().Marshal(), hardwareKey{key}.PublicKey()
	private = [][]byte{pem.EncodeToMemory(plain), pem.EncodeToMemory(locked), nil,
		pem.EncodeToMemory(&pem.Block{Type: plain.Type, Bytes: bytes.Replace(plain.Bytes, blob[len(blob)-32:], make([]byte, 32), 1)}), // another key's half
		header{"none", "none", "", 1, hardware, nil}.pem(),
		header{"none", "none", "", 2, blob, nil}.pem(),
		header{"none", "none", "", 1, nil, nil}.pem(),
		pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}}),
		pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte{0x30, 0}}),
		[]byte("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEA\n-----END OPENSSH PRIVATE KEY-----\n")}
	line := string(ssh.MarshalAuthorizedKey(signer.PublicKey()))
	public = []string{line, strings.TrimSpace(line) + " me@there\n", "ssh-rsa AAAA\n", "ssh-rsa " + base64.StdEncoding.EncodeToString(blob), "\n", "a b c"}
	return private, public
}

// FuzzKeyFilePublic reads arbitrary key files: what is said of a file in clear is
// never another key than the one that signs, and what is read of a line is the
// line.
func FuzzKeyFilePublic(f *testing.F) {
	private, public := keySeeds(f)
	for _, text := range private {
		f.Add(false, text)
	}
	for _, line := range public {
		f.Add(true, []byte(line))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, pub bool, text []byte) {
		path := filepath.Join(dir, "key")
		if pub {
			path += ".pub"
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		half, err := sallyport.KeyFilePublic(path)
		switch {
		case err != nil && half != nil, err == nil && half == nil:
			t.Fatalf("%+v, %v", half, err)
		case err == nil && pub:
			checkLine(t, path, half)
		case !pub:
			checkPrivate(t, path, half)
		}
	})
}

func checkLine(t *testing.T, path string, half *sallyport.PublicHalf) {
	var kind struct {
		Name string
		Rest []byte `ssh:"rest"`
	}
	if err := ssh.Unmarshal(half.Key, &kind); err != nil {
		t.Fatal(err)
	}
	line := kind.Name + " " + base64.StdEncoding.EncodeToString(half.Key) + " " + half.Comment + "\n"
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := sallyport.KeyFilePublic(path)
	if err != nil || !bytes.Equal(again.Key, half.Key) || again.Comment != half.Comment {
		t.Fatalf("%+v was read again as %+v, %v", half, again, err)
	}
}

func checkPrivate(t *testing.T, path string, half *sallyport.PublicHalf) {
	signer, err := sallyport.LoadKey(path, nil)
	if err != nil {
		return
	}
	if half == nil || half.Encrypted || half.Key != nil && !bytes.Equal(half.Key, signer.PublicKey()) {
		t.Fatalf("%+v is said of a key that signs as %x", half, signer.PublicKey())
	}
}
