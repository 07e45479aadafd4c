package main

import (
	"bytes"
	"errors"
	"fmt"
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
	return nil, fmt.Errorf("no key was found: in ssh-agent (%w), and none of %s is in %s; make one with 'ssh-keygen -t ed25519', or name one with --key",
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
	if len(keys) == 0 {
		return nil, errors.New("ssh-agent holds no key: ssh-add adds one")
	}
	return nil, fmt.Errorf("of its %d keys ssh-agent can use none here: ssh-add adds one, such as an ed25519 key", len(keys))
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
	half, err := sallyport.KeyFilePublic(file)
	if err != nil {
		return nil, err
	}
	if half.Key == nil {
		signer, err := sallyport.LoadKey(file, passphrase(file))
		if err != nil {
			return nil, err
		}
		half.Key = signer.PublicKey()
	}
	public, err := spa.ParsePublicKey(half.Key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if public.Hardware() && !strings.HasSuffix(file, ".pub") {
		return nil, fmt.Errorf("%s is a hardware key's: add it to the agent with 'ssh-add %s', and use --key agent:%s", file, file, public.Fingerprint())
	}
	if half.Comment == "" {
		if beside, err := sallyport.KeyFilePublic(file + ".pub"); err == nil && bytes.Equal(beside.Key, half.Key) {
			half.Comment = beside.Comment
		}
	}
	return &chosenKey{file, public, comment(half.Comment), file}, nil
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
	if half, err := sallyport.KeyFilePublic(s.key); err == nil && half.Encrypted && half.Key != nil {
		if public, err := spa.ParsePublicKey(half.Key); err == nil {
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
	if err == nil {
		p.signed.Store(true)
	}
	return signature, err
}

// wish is what the key may wait for.
func (p *patient) wish() string {
	if public, err := spa.ParsePublicKey(p.PublicKey()); err == nil && public.Hardware() {
		return "touch your security key"
	}
	return "waiting for ssh-agent: it may want you to confirm"
}
