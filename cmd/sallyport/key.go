package main

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// agentKey begins the name of a key in ssh-agent; its fingerprint follows.
const agentKey = "agent:"

// ownKeys are tried in ~/.ssh when nobody names a key. RSA comes last: its
// datagrams are the largest, and a post-quantum server takes none.
var ownKeys = []string{"id_ed25519", "id_ecdsa", "id_rsa"}

// maxKeyFile is the most that is read of a key's file, in bytes: ssh's own
// limit for one is 1 MiB, and RSA keys of 4,096 bits have 3,400.
const maxKeyFile = 1 << 20

// checkKeyName holds the key of a stored server to its two spellings.
func checkKeyName(name string) error {
	fingerprint, inAgent := strings.CutPrefix(name, agentKey)
	switch {
	case inAgent:
		_, err := spa.ParseFingerprint(fingerprint)
		return err
	case !filepath.IsAbs(name):
		return fmt.Errorf("the key is %.80q: it can be %sSHA256:… or a file's whole path", name, agentKey)
	}
	return nil
}

// chosenKey is a key that add found for a server.
type chosenKey struct {
	name    string // as the store has it
	public  *spa.PublicKey
	comment string
	where   string // for people
}

// line is what belongs into the server's authorized_keys.
func (k *chosenKey) line() string {
	text, _ := k.public.MarshalText() // has no error to give
	return strings.TrimSpace(k.public.Type() + " " + string(text) + " " + k.comment)
}

// fits says why a server can't take the key, if it can't.
func fits(suite spa.Suite, public *spa.PublicKey) error {
	_, err := suite.SizeFor(public)
	return err
}

// chooseKey finds the key that --key names; without a name, the one that ssh
// would come to first: the agent's, then a file's.
func chooseKey(name string, suite spa.Suite, u *ui) (*chosenKey, error) {
	var key *chosenKey
	var err error
	switch {
	case name == "":
		return ownKey(suite, u)
	case name == "agent" || strings.HasPrefix(name, agentKey):
		key, err = keyInAgent(strings.TrimPrefix(strings.TrimPrefix(name, "agent"), ":"), suite)
	default:
		key, err = keyInFile(name, u)
	}
	if err != nil {
		return nil, err
	}
	return key, fits(suite, key.public)
}

func ownKey(suite spa.Suite, u *ui) (*chosenKey, error) {
	key, agentErr := keyInAgent("", suite)
	if agentErr == nil {
		return key, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return nil, fmt.Errorf("no key was found: %w; name one with --key", err)
	}
	for _, name := range ownKeys {
		file := filepath.Join(home, ".ssh", name)
		if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		key, err := keyInFile(file, u)
		if err == nil {
			err = fits(suite, key.public)
		}
		if name == ownKeys[len(ownKeys)-1] || err == nil {
			return key, err
		}
		u.say("%s is left out: %v", file, err)
	}
	return nil, fmt.Errorf("no key was found: ssh-agent has none that can be used (%w), and none of %s is in %s; make one with 'ssh-keygen -t ed25519', or name one with --key",
		agentErr, strings.Join(ownKeys, ", "), filepath.Join(home, ".ssh"))
}

// keyInAgent gives the agent's key with a fingerprint; with none, the first one
// that the server can take.
func keyInAgent(fingerprint string, suite spa.Suite) (*chosenKey, error) {
	if fingerprint != "" {
		if _, err := spa.ParseFingerprint(fingerprint); err != nil {
			return nil, err
		}
	}
	keys, err := sallyport.AgentKeys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		public, err := spa.ParsePublicKey(k.Signer.PublicKey())
		if err != nil || fingerprint != "" && fingerprint != k.Fingerprint.String() || fingerprint == "" && fits(suite, public) != nil {
			continue
		}
		return &chosenKey{agentKey + k.Fingerprint.String(), public, comment(k.Comment), "ssh-agent"}, nil
	}
	if fingerprint != "" {
		return nil, notInAgent(fingerprint)
	}
	return nil, fmt.Errorf("of its %d keys it can use none here; add one with ssh-add", len(keys))
}

func notInAgent(fingerprint string) error {
	return fmt.Errorf("ssh-agent does not hold the key %s: add it with ssh-add; 'ssh-add -l' lists what it holds", fingerprint)
}

// keyInFile reads a key's public half. Only old formats want the passphrase for
// it.
func keyInFile(file string, u *ui) (*chosenKey, error) {
	file, err := filepath.Abs(file)
	if err != nil {
		return nil, err
	}
	half, err := readKeyFile(file)
	if err != nil {
		return nil, err
	}
	if half.blob == nil {
		signer, err := sallyport.LoadKey(file, passphrase(file))
		if err != nil {
			return nil, err
		}
		half.blob = signer.PublicKey()
	}
	public, err := spa.ParsePublicKey(half.blob)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if hardware(public) && !half.public {
		return nil, fmt.Errorf("%s is a hardware key's: add it to the agent with 'ssh-add %s', and use --key agent:%s", file, file, public.Fingerprint())
	}
	if half.comment == "" {
		if beside, err := readKeyFile(file + ".pub"); err == nil && bytes.Equal(beside.blob, half.blob) {
			half.comment = beside.comment
		}
	}
	return &chosenKey{file, public, half.comment, file}, nil
}

func hardware(public *spa.PublicKey) bool { return strings.HasPrefix(public.Type(), "sk-") }

// publicHalf is what can be read of a key's file without its passphrase.
type publicHalf struct {
	blob      []byte // wire form; nil: an old format, which has to be opened
	comment   string
	public    bool // a .pub file: the agent has the private half
	encrypted bool
}

func readKeyFile(file string) (*publicHalf, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("the key %s can't be read: %w", file, pathCause(err))
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile))
	if err != nil {
		return nil, fmt.Errorf("the key %s can't be read: %w", file, pathCause(err))
	}
	if strings.HasSuffix(file, ".pub") {
		return readPublicLine(file, text)
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s is no private key: name the file that ssh-keygen made, or its .pub file for a key in the agent", file)
	}
	return readHeader(block), nil
}

// readPublicLine reads a .pub file: a type, base64, a comment (sshd(8)).
func readPublicLine(file string, text []byte) (*publicHalf, error) {
	fields := strings.Fields(string(text))
	if len(fields) >= 2 {
		if blob, err := base64.StdEncoding.DecodeString(fields[1]); err == nil {
			return &publicHalf{blob: blob, comment: comment(strings.Join(fields[2:], " ")), public: true}, nil
		}
	}
	return nil, fmt.Errorf("%s is no public key: it has one line, as in 'ssh-ed25519 AAAA… comment'", file)
}

// readHeader reads the clear part of OpenSSH's own format (PROTOCOL.key): magic,
// cipher, key derivation, its options, the number of keys, the public key. Of
// other formats it gives nothing but whether they are encrypted.
func readHeader(block *pem.Block) *publicHalf {
	rest, ok := bytes.CutPrefix(block.Bytes, []byte("openssh-key-v1\x00"))
	if block.Type != "OPENSSH PRIVATE KEY" || !ok {
		return &publicHalf{encrypted: block.Headers["DEK-Info"] != "" || block.Type == "ENCRYPTED PRIVATE KEY"}
	}
	var cipher []byte
	cipher, rest, _ = wireString(rest)
	_, rest, _ = wireString(rest)
	_, rest, _ = wireString(rest)
	if len(rest) < 4 || binary.BigEndian.Uint32(rest) != 1 {
		return &publicHalf{}
	}
	blob, _, ok := wireString(rest[4:])
	if !ok {
		return &publicHalf{}
	}
	return &publicHalf{blob: blob, encrypted: string(cipher) != "none"}
}

// wireString takes a string with its length before it (RFC 4251 section 5).
func wireString(b []byte) (s, rest []byte, ok bool) {
	if len(b) < 4 || uint64(binary.BigEndian.Uint32(b)) > uint64(len(b)-4) {
		return nil, nil, false
	}
	n := binary.BigEndian.Uint32(b)
	return b[4 : 4+n], b[4+n:], true
}

// comment keeps a key's comment to what may stand behind it in a file: it comes
// from a file or an agent, and a line end in it would begin a line of its own.
func comment(text string) string {
	const most = 64
	text = strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") // half a letter
	}
	return text
}

// signer makes a stored server's key ready. A file with a passphrase whose key
// the agent holds too is not asked for, as with ssh.
func (s *server) signer(u *ui) (sallyport.Signer, error) {
	if fingerprint, ok := strings.CutPrefix(s.key, agentKey); ok {
		found, err := agentSigner(fingerprint)
		if err != nil {
			return nil, fmt.Errorf("the key of %s: %w", s.name, err)
		}
		return &patient{Signer: found, u: u}, nil
	}
	if half, err := readKeyFile(s.key); err == nil && half.encrypted && half.blob != nil {
		if public, err := spa.ParsePublicKey(half.blob); err == nil {
			if found, err := agentSigner(public.Fingerprint().String()); err == nil {
				return &patient{Signer: found, u: u}, nil
			}
		}
	}
	found, err := sallyport.LoadKey(s.key, passphrase(s.key))
	if err != nil {
		return nil, err
	}
	return &patient{Signer: found, u: u}, nil
}

func agentSigner(fingerprint string) (sallyport.Signer, error) {
	keys, err := sallyport.AgentKeys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if k.Fingerprint.String() == fingerprint {
			return k.Signer, nil
		}
	}
	return nil, notInAgent(fingerprint)
}

// patience is how long a signature may take before somebody is told what it
// waits for. An agent without a person to ask signs in milliseconds.
const patience = time.Second

// patient is a key that says what it waits for.
type patient struct {
	sallyport.Signer
	u      *ui
	signed atomic.Bool // at least once
}

// Sign signs, and asks for a touch meanwhile.
func (p *patient) Sign(data []byte) ([]byte, error) {
	said := time.AfterFunc(patience, func() { p.u.say("%s", p.wish()) })
	defer said.Stop()
	signature, err := p.Signer.Sign(data)
	p.signed.Store(err == nil)
	return signature, err
}

// wish is what the key may wait for.
func (p *patient) wish() string {
	if public, err := spa.ParsePublicKey(p.PublicKey()); err == nil && hardware(public) {
		return "touch your security key"
	}
	return "waiting for ssh-agent: it may want you to confirm"
}
