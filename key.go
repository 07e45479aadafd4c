package sallyport

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/sallyport/sallyport/internal/spa"
)

// maxKeyFile is the most that is read of a key file, in bytes: an RSA key of
// 4,096 bits needs 3,400.
const maxKeyFile = 64 << 10

// LoadKey reads an SSH private key file, in OpenSSH's form or in PEM. It calls
// passphrase, if the file is encrypted, and wipes what it gives; nil means that
// nobody can be asked. If path ends with .pub it gives ssh-agent's key of that
// public key. Keys of types ed25519, ecdsa and rsa (2,048 to 4,096 bits) can
// sign; hardware keys (sk-) only in ssh-agent. A private key of ours that others
// can read is refused, as by ssh. The error says nothing of what is in the file.
func LoadKey(path string, passphrase func() ([]byte, error)) (Signer, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".pub") {
		return agentKeyOf(path, text)
	}
	defer clear(text)
	block, err := decodePEM(path, text)
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	half, err := headerOf(path, block)
	if err == nil {
		err = refuse(path, block, half)
	}
	if err != nil {
		return nil, err
	}
	key, err := privateKey(path, text, passphrase)
	if err != nil {
		return nil, err
	}
	signer, err := fileSignerOf(path, key)
	// Else the line that an owner was given would not be this key's.
	if err == nil && half.Key != nil && !bytes.Equal(half.Key, signer.PublicKey()) {
		return nil, damaged(path)
	}
	return signer, err
}

// PublicHalf is what can be read of a key file without its passphrase.
type PublicHalf struct {
	// Key is the public key's wire form (RFC 4253 section 6.6); nil for a private
	// key in PEM, which has to be opened for it. Its type may be one that can't
	// sign a Request.
	Key []byte
	// Comment is that of a .pub file. It may have any bytes but line ends in it.
	Comment string
	// Encrypted says that the private key needs a passphrase.
	Encrypted bool
}

// KeyFilePublic reads the public half of a key file: of a private key's, as
// [LoadKey] takes it, or of a .pub file. The error says nothing of what is in a
// private key's file.
func KeyFilePublic(path string) (*PublicHalf, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".pub") {
		return publicLine(path, text)
	}
	defer clear(text)
	block, err := decodePEM(path, text)
	if err != nil {
		return nil, err
	}
	defer clear(block.Bytes)
	return headerOf(path, block)
}

func decodePEM(path string, text []byte) (*pem.Block, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("there is no private key in %s: name the file that ssh-keygen made, or its .pub file for a key in ssh-agent", path)
	}
	return block, nil
}

func damaged(path string) error {
	return fmt.Errorf("%s is damaged: restore it from a copy", path)
}

// publicLine reads a .pub file: a type, base64, a comment (sshd(8)).
func publicLine(path string, text []byte) (*PublicHalf, error) {
	line, _, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	fields := strings.Fields(line)
	if len(fields) < 2 || !strings.Contains(fields[0], "-") {
		return nil, fmt.Errorf("there is no public key in %s: it has one line, as in 'ssh-ed25519 AAAA… comment'", path)
	}
	blob, err := base64.StdEncoding.DecodeString(fields[1])
	var kind struct {
		Name string
		Rest []byte `ssh:"rest"`
	}
	if err != nil || ssh.Unmarshal(blob, &kind) != nil || kind.Name != fields[0] {
		return nil, damaged(path)
	}
	return &PublicHalf{Key: blob, Comment: strings.Join(fields[2:], " ")}, nil
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, unreadable(path, err)
	}
	defer f.Close()
	if err := checkMode(f, path); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, unreadable(path, err)
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes: it is no key", path, maxKeyFile)
	}
	return text, nil
}

// unreadable names the path once: errors of package os have it too.
func unreadable(path string, err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		err = at.Err
	}
	return fmt.Errorf("the key %s can't be read: %w", path, err)
}

// checkMode refuses a private key that others can read, as ssh does: only if it
// is ours, because the mode of somebody else's is not ours to change. It looks at
// the open file; its name could lead elsewhere by now.
func checkMode(f *os.File, path string) error {
	if strings.HasSuffix(path, ".pub") {
		return nil
	}
	info, err := f.Stat()
	if err != nil {
		return unreadable(path, err)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 && info.Mode().IsRegular() && ours(info) {
		return fmt.Errorf("others can read %s, mode %04o; type 'chmod 600 %s'", path, mode, path)
	}
	return nil
}

// refuse says which keys are of no use before anybody is asked for their
// passphrase.
func refuse(path string, block *pem.Block, half *PublicHalf) error {
	if block.Type == "ENCRYPTED PRIVATE KEY" { // PKCS #8, which package ssh reads only in clear
		return fmt.Errorf("%s is encrypted in a form that is not read here: ssh-keygen -p -f %s writes it anew in OpenSSH's", path, path)
	}
	if half.Key == nil {
		return nil
	}
	key, err := spa.ParsePublicKey(half.Key)
	switch {
	case err != nil:
		return fmt.Errorf("%s can't be used: %w", path, err)
	case key.Hardware():
		return fmt.Errorf("%s is a hardware key's, which only ssh-agent can ask to sign: "+
			"add it to the agent with ssh-add, and use --key agent", path)
	}
	return nil
}

// headerOf reads the clear part of OpenSSH's own format (PROTOCOL.key of
// OpenSSH): magic, cipher, key derivation, its options, the number of keys, the
// public key. Of PEM it tells only whether it is encrypted (RFC 1421, PKCS #8).
func headerOf(path string, block *pem.Block) (*PublicHalf, error) {
	if block.Type != "OPENSSH PRIVATE KEY" {
		return &PublicHalf{Encrypted: block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY"}, nil
	}
	rest, ok := bytes.CutPrefix(block.Bytes, []byte("openssh-key-v1\x00"))
	var head struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public               []byte
		Rest                 []byte `ssh:"rest"`
	}
	if !ok || ssh.Unmarshal(rest, &head) != nil || head.Keys != 1 || len(head.Public) == 0 {
		return nil, damaged(path)
	}
	return &PublicHalf{Key: bytes.Clone(head.Public), Encrypted: head.Cipher != "none"}, nil
}

func privateKey(path string, text []byte, passphrase func() ([]byte, error)) (any, error) {
	key, err := ssh.ParseRawPrivateKey(text)
	if _, locked := errors.AsType[*ssh.PassphraseMissingError](err); !locked {
		if err != nil {
			return nil, fmt.Errorf("%s can't be read: %w", path, err)
		}
		return key, nil
	}
	if passphrase == nil {
		return nil, fmt.Errorf("%s has a passphrase, and nobody can be asked for it: add the key to ssh-agent with ssh-add", path)
	}
	secret, err := passphrase()
	if err != nil {
		return nil, fmt.Errorf("no passphrase for %s: %w", path, err)
	}
	defer clear(secret)
	key, err = ssh.ParseRawPrivateKeyWithPassphrase(text, secret)
	if errors.Is(err, x509.IncorrectPasswordError) {
		return nil, fmt.Errorf("the passphrase for %s is wrong", path)
	}
	if err != nil {
		return nil, fmt.Errorf("%s can't be read with this passphrase: %w", path, err)
	}
	return key, nil
}

func fileSignerOf(path string, key any) (Signer, error) {
	signer, err := ssh.NewSignerFromKey(key)
	if err == nil {
		_, err = spa.ParsePublicKey(signer.PublicKey().Marshal())
	}
	if err != nil {
		return nil, fmt.Errorf("%s can't be used: %w", path, err)
	}
	return fileSigner{signer.(ssh.AlgorithmSigner)}, nil
}

// fileSigner is a key in memory.
type fileSigner struct{ key ssh.AlgorithmSigner }

// PublicKey gives the key in SSH's wire form.
func (s fileSigner) PublicKey() []byte { return s.key.PublicKey().Marshal() }

// Sign signs; RSA with SHA-512 (RFC 8332).
func (s fileSigner) Sign(data []byte) ([]byte, error) {
	algorithm := s.key.PublicKey().Type()
	if algorithm == ssh.KeyAlgoRSA {
		algorithm = ssh.KeyAlgoRSASHA512 // ssh-rsa itself is a signature with SHA-1
	}
	signature, err := s.key.SignWithAlgorithm(rand.Reader, data, algorithm)
	if err != nil {
		return nil, err
	}
	return ssh.Marshal(signature), nil
}

// Format keeps the private key out of every verb of package fmt.
func (s fileSigner) Format(f fmt.State, _ rune) { fmt.Fprint(f, "(a private key)") }
