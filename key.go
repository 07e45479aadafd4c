package sallyport

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
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
// sign; hardware keys (sk-) only in ssh-agent. The error says nothing of what
// is in the file.
func LoadKey(path string, passphrase func() ([]byte, error)) (Signer, error) {
	text, err := readKeyFile(path)
	if err != nil {
		return nil, err
	}
	if strings.HasSuffix(path, ".pub") {
		return agentKeyOf(path, text)
	}
	defer clear(text)
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("there is no private key in %s: name the file that ssh-keygen made, without .pub", path)
	}
	defer clear(block.Bytes)
	if err := refuse(path, block); err != nil {
		return nil, err
	}
	key, err := privateKey(path, text, passphrase)
	if err != nil {
		return nil, err
	}
	return fileSignerOf(path, key)
}

func readKeyFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("the key can't be read: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, fmt.Errorf("the key can't be read: %w", err)
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes: it is no key", path, maxKeyFile)
	}
	return text, nil
}

// refuse says which keys are of no use before anybody is asked for their
// passphrase.
func refuse(path string, block *pem.Block) error {
	switch block.Type {
	case "ENCRYPTED PRIVATE KEY": // PKCS #8, which package ssh reads only in clear
		return fmt.Errorf("%s is encrypted in a form that is not read here: ssh-keygen -p -f %s writes it anew in OpenSSH's", path, path)
	case "OPENSSH PRIVATE KEY":
	default:
		return nil
	}
	blob := publicPart(block.Bytes)
	if blob == nil {
		return fmt.Errorf("%s is damaged: restore it from a copy", path)
	}
	key, err := spa.ParsePublicKey(blob)
	switch {
	case err != nil:
		return fmt.Errorf("%s can't be used: %w", path, err)
	case strings.HasPrefix(key.Type(), "sk-"):
		return fmt.Errorf("%s is a hardware key's, which only ssh-agent can ask to sign: "+
			"add it to the agent with ssh-add, and use --key agent", path)
	}
	return nil
}

// publicPart gives the public key of an OpenSSH file, which is not encrypted
// (PROTOCOL.key of OpenSSH); nil if there is none.
func publicPart(b []byte) []byte {
	rest, ok := bytes.CutPrefix(b, []byte("openssh-key-v1\x00"))
	var head struct {
		Cipher, KDF, Options string
		Keys                 uint32
		Public               []byte
		Rest                 []byte `ssh:"rest"`
	}
	if !ok || ssh.Unmarshal(rest, &head) != nil {
		return nil
	}
	return head.Public
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

func (s fileSigner) PublicKey() []byte { return s.key.PublicKey().Marshal() }

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
