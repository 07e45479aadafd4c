package sallyport

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/sallyport/sallyport/internal/spa"
)

// AgentKey is a key that ssh-agent holds.
type AgentKey struct {
	Signer
	// Comment is what the agent says of the key. It may have any bytes in it.
	Comment     string
	Fingerprint Fingerprint
}

// AgentKeys lists ssh-agent's keys that can sign a Request: no certificates, and
// no keys of types that no server takes. It asks the agent at SSH_AUTH_SOCK; on
// Windows, the system's own.
//
// A key's Sign asks the agent anew and lasts as long as the agent needs to ask
// its user.
func AgentKeys() ([]AgentKey, error) {
	conn, err := dialAgent()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	listed, err := agent.NewClient(conn).List()
	if err != nil {
		return nil, fmt.Errorf("ssh-agent does not list its keys: %w", err)
	}
	var keys []AgentKey
	for _, k := range listed {
		if public, err := spa.ParsePublicKey(k.Blob); err == nil {
			keys = append(keys, AgentKey{agentSigner{k}, k.Comment, public.Fingerprint()})
		}
	}
	return keys, nil
}

// agentKeyOf finds the agent's key of a public key file.
func agentKeyOf(path string, text []byte) (Signer, error) {
	half, err := publicLine(path, text)
	if err != nil {
		return nil, err
	}
	keys, err := AgentKeys()
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if bytes.Equal(k.PublicKey(), half.Key) {
			return k.Signer, nil
		}
	}
	return nil, fmt.Errorf("ssh-agent does not have the key of %s: add it with ssh-add %s", path, strings.TrimSuffix(path, ".pub"))
}

// agentSigner is a key in the agent.
type agentSigner struct{ key *agent.Key }

// PublicKey gives the key in SSH's wire form.
func (s agentSigner) PublicKey() []byte { return s.key.Blob }

// Sign has the agent sign, which may ask its owner first.
func (s agentSigner) Sign(data []byte) ([]byte, error) {
	conn, err := dialAgent()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var flags agent.SignatureFlags
	if s.key.Format == ssh.KeyAlgoRSA {
		flags = agent.SignatureFlagRsaSha512 // without, it signs with SHA-1
	}
	signature, err := agent.NewClient(conn).SignWithFlags(s.key, data, flags)
	if err != nil {
		return nil, fmt.Errorf("ssh-agent did not sign: the key may have been removed, or a question or a touch not answered: %w", err)
	}
	return ssh.Marshal(signature), nil
}

// noAgent says what to do where no agent answers.
func noAgent(why error) error {
	return fmt.Errorf("ssh-agent can't be reached: %w; start it, add a key with ssh-add, or name a key file", why)
}
