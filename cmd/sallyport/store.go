package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/pelletier/go-toml/v2"

	"github.com/sallyport/sallyport"
	"github.com/sallyport/sallyport/internal/spa"
)

// Limits of a stored server.
const (
	// maxServerName is in bytes: the name is part of three file names.
	maxServerName = 64
	// maxStored is the most that is read of a stored file, in bytes: a
	// post-quantum address has 1,677, and 255 services of 40 each are 10,200.
	maxStored = 16384
)

// rawServer is a stored server as its file has it: $XDG_CONFIG_HOME/sallyport/
// NAME.toml.
type rawServer struct {
	Host     string            `toml:"host"`
	Address  string            `toml:"address,omitempty"`
	Sequence []string          `toml:"sequence,omitempty"`
	List     string            `toml:"list,omitempty"`  // path of a list of one-time sequences
	Knock    string            `toml:"knock,omitempty"` // a line with a secret
	Delay    string            `toml:"delay,omitempty"`
	Port     uint16            `toml:"port,omitempty"`
	Over     string            `toml:"over,omitempty"`
	Key      string            `toml:"key,omitempty"`
	Clock    string            `toml:"clock,omitempty"`
	Services map[string]uint16 `toml:"services,omitempty"`
}

// server is a stored server that was checked.
type server struct {
	name, file string
	host       string
	services   map[string]uint16 // tcp ports, by the services' names
	sequence   sallyport.Sequence
	list       string             // a file of one-time sequences in place of it; "": none
	address    *sallyport.Address // of these three one at most; none: it is the sequence
	otp        *sallyport.OTP
	encoded    *sallyport.Encoded
	port       uint16
	over       sallyport.Transport
	key        string // a file's path, or agent:SHA256:…
	counts     bool   // the server has no clock
}

// transports are the spellings of --over.
var transports = map[string]sallyport.Transport{
	"udp": sallyport.OverUDP, "icmp": sallyport.OverICMP, "tcp": sallyport.OverTCP,
}

// check turns what a file or a command line says into a server. The key's name
// is left to checkKeyName: add chooses the key only when all else is right.
func (r *rawServer) check(name string) (*server, error) {
	s := &server{name: name, host: r.Host, services: r.Services}
	if _, err := checkHost(r.Host, false, false); err != nil {
		return nil, err
	}
	for service, port := range r.Services {
		if err := checkService(service); err != nil {
			return nil, err
		}
		if port == 0 {
			return nil, fmt.Errorf("the service %s has the port 0: give 1 to 65535", service)
		}
	}
	switch {
	case r.List != "" && (r.Address != "" || len(r.Sequence) > 0 || r.Knock != ""):
		return nil, errors.New("it has a list of one-time sequences and something else that opens it: it can have one of them")
	case r.Address != "" && len(r.Sequence) > 0:
		return nil, errors.New("it has an address and a sequence: it can have one of them")
	case r.Knock != "" && (r.Address != "" || len(r.Sequence) > 0):
		return nil, errors.New("it has a knock with a secret and an address or a sequence: it can have one of them")
	case r.Address != "":
		return s, s.setAddress(r)
	case r.Port != 0 || r.Over != "" || r.Key != "" || r.Clock != "":
		return nil, errors.New("port, over, key and clock are for servers with an address: nothing else has them")
	case r.Knock != "":
		return s, s.setSecret(r)
	case r.List != "":
		return s, s.setList(r)
	}
	return s, s.setSequence(r)
}

func (s *server) setAddress(r *rawServer) (err error) {
	if s.address, err = sallyport.ParseAddress(r.Address); err != nil {
		return err
	}
	var known bool
	if s.over, known = transports[r.Over]; !known && r.Over != "" {
		return fmt.Errorf("over is %.20q: it can be udp, icmp or tcp", r.Over)
	}
	if r.Clock != "" && r.Clock != "system" && r.Clock != "none" {
		return fmt.Errorf("clock is %.20q: it can be system or none", r.Clock)
	}
	s.counts = r.Clock == "none"
	if r.Delay != "" {
		return errors.New("delay is the pause between the steps of a sequence: an address has none")
	}
	s.port, s.key = r.Port, r.Key
	return nil
}

// setSecret reads a line with a secret, of either kind.
func (s *server) setSecret(r *rawServer) (err error) {
	var delay time.Duration
	if r.Delay != "" {
		if delay, err = parseDelay(r.Delay); err != nil {
			return err
		}
	}
	if strings.HasPrefix(r.Knock, encodedLine) {
		if s.encoded, err = sallyport.ParseEncoded(r.Knock); err == nil {
			s.encoded.Delay = delay
		}
		return err
	}
	if s.otp, err = sallyport.ParseOTP(r.Knock); err == nil {
		s.otp.Delay = delay
	}
	return err
}

// The lines with a secret begin so.
const (
	otpLine     = "sallyport-otp"
	encodedLine = "sallyport-encoded"
)

// isSecretLine tells them from addresses and steps.
func isSecretLine(text string) bool {
	return strings.HasPrefix(text, otpLine) || strings.HasPrefix(text, encodedLine)
}

// holdsSecret reports whether a text may be a part of such a line, or an authenticator
// app's, and so must not be quoted. Addresses have lower-case letters too.
func holdsSecret(text string) bool {
	return slices.ContainsFunc(strings.Fields(text), func(word string) bool {
		bare := len(word) >= 16 && strings.Trim(word, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567=") == ""
		return bare || strings.Contains(word, "secret=") || strings.HasPrefix(word, "otpauth:")
	})
}

// knock is what is sent when nobody says more. The caller may change it.
func (s *server) knock() sallyport.Knock {
	switch {
	case s.address != nil:
		return s.request()
	case s.otp != nil:
		k := *s.otp
		return &k
	case s.encoded != nil:
		k := *s.encoded
		return &k
	case s.list != "":
		return &listKnock{path: s.list, delay: s.sequence.Delay}
	}
	return s.sequence
}

func (s *server) setSequence(r *rawServer) (err error) {
	if s.sequence, err = sallyport.ParseSequence(strings.Join(r.Sequence, " ")); err != nil {
		return err
	}
	if r.Delay != "" {
		s.sequence.Delay, err = parseDelay(r.Delay)
	}
	return err
}

// parseDelay reads a pause between steps. The library's zero is its default, and
// a negative value is none.
func parseDelay(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	switch {
	case err != nil || d < 0:
		return 0, fmt.Errorf("the delay %.20q is out of range: it takes 0 or more, such as 20ms", text)
	case d == 0:
		return -1, nil
	}
	return d, nil
}

// checkService holds a name to what a request can carry.
func checkService(name string) error {
	if name == "" || len(name) > spa.MaxName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
		return fmt.Errorf("%.40q is no name of a service: it has 1 to %d of a-z, 0-9, _ and -", name, spa.MaxName)
	}
	return nil
}

// checkServerName keeps a name from leaving its directory, from being an option
// and from being taken for a host's address.
func checkServerName(name string) error {
	_, notAddress := netip.ParseAddr(name)
	switch {
	case name == "" || len(name) > maxServerName || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_-.") != "" || strings.ContainsAny(name[:1], "-."):
		return fmt.Errorf("%.40q is no name for a server: it has 1 to %d of a-z, 0-9, _, - and ., and begins with a letter or a digit", name, maxServerName)
	case notAddress == nil:
		return fmt.Errorf("%q is an address: a name comes first, as in 'sallyport add home … --host %s'", name, name)
	case isStep(name) || strings.HasPrefix(name, "sallyport1"):
		return fmt.Errorf("%.14q is what opens a server: its name comes first, as in 'sallyport add home %.14s…'", name, name)
	}
	return nil
}

// checkHost gives host without the brackets that an IPv6 address may have. It
// must fit the families that were asked for.
func checkHost(host string, only4, only6 bool) (string, error) {
	if inner, ok := strings.CutPrefix(host, "["); ok {
		host = strings.TrimSuffix(inner, "]")
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && only4 && !addr.Unmap().Is4():
		return "", fmt.Errorf("%s is an IPv6 address, but -4 asks for IPv4: leave one out", host)
	case err == nil && only6 && addr.Unmap().Is4():
		return "", fmt.Errorf("%s is an IPv4 address, but -6 asks for IPv6: leave one out", host)
	case err == nil && plainZone(addr.Zone()):
		return host, nil
	case isStep(host):
		return "", fmt.Errorf("%q is a step, but the host comes first: sallyport knock HOST %s", host, host)
	case len(host) > 253 || !plainHost(host):
		return "", fmt.Errorf("%.80q is no host: give a name or an address, without a port", host)
	}
	return host, nil
}

// plainHost takes only what means nothing else anywhere: ssh hands a host to a
// shell in place of %h, a leading dash would be an option, and a line end a line
// of its own in ssh's configuration.
func plainHost(s string) bool {
	odd := func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("._-", r)
	}
	return s != "" && s[0] != '-' && !strings.ContainsFunc(s, odd)
}

// plainZone is the same for the zone of an address, which package netip takes
// whatever is in it. The kernel's names of interfaces have 15 bytes at most.
func plainZone(zone string) bool { return zone == "" || len(zone) <= 15 && plainHost(zone) }

// storeDir is where servers are stored.
func storeDir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", fmt.Errorf("there is no place for stored servers: %w; set HOME, or XDG_CONFIG_HOME to an absolute path", err)
	}
	return filepath.Join(dir, "sallyport"), nil
}

// loadServer reads a stored server. Without one of that name it gives nil and no
// error; so it does for what can't be a name, and where there is no store.
func loadServer(name string) (*server, error) {
	dir, err := storeDir()
	if err != nil || checkServerName(name) != nil {
		return nil, nil
	}
	file := filepath.Join(dir, name+".toml")
	text, err := readPrivate(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscallNotDir) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	raw, err := parseServer(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	s, err := raw.check(name)
	if err == nil && s.address != nil {
		err = checkKeyName(s.key)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w; store it again with 'sallyport add --force'", file, err)
	}
	s.file = file
	return s, nil
}

// readPrivate reads a file that nobody else may read: what is in it opens a
// server. What others may write they could turn to a server of their own.
func readPrivate(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%s can't be read: %w", file, pathCause(err))
	}
	defer f.Close()
	if err := checkPrivate(f, file); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxStored+1))
	if err != nil {
		return nil, fmt.Errorf("%s can't be read: %w", file, pathCause(err))
	}
	if len(text) > maxStored {
		return nil, fmt.Errorf("%s has more than %d bytes: this is no stored server", file, maxStored)
	}
	return text, nil
}

func checkPrivate(f *os.File, file string) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	// Windows has no such bits; a profile's directory is its owner's there.
	if mode := info.Mode().Perm(); runtime.GOOS != "windows" && mode&0o077 != 0 {
		return fmt.Errorf("%s is open to other users (mode %#o), and what is in it opens the server: make it yours with 'chmod 600 %s'", file, mode, file)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", file)
	}
	return nil
}

// pathCause is the system's error without the path, which our texts name.
func pathCause(err error) error {
	if at, ok := errors.AsType[*fs.PathError](err); ok {
		return at.Err
	}
	return err
}

// parseServer reads the text of a stored server. Errors name a line.
func parseServer(text []byte) (*rawServer, error) {
	var raw rawServer
	decoder := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields()
	err := decoder.Decode(&raw)
	if missing, ok := errors.AsType[*toml.StrictMissingError](err); ok && len(missing.Errors) > 0 {
		line, _ := missing.Errors[0].Position()
		return nil, fmt.Errorf("line %d: unknown key %.40q", line, strings.Join(missing.Errors[0].Key(), "."))
	}
	if at, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := at.Position()
		return nil, fmt.Errorf("line %d: %s", line, strings.TrimPrefix(at.Error(), "toml: "))
	}
	return &raw, err
}

const storedComment = "# A server that 'sallyport knock %s' opens. Keep it to yourself: what is in it\n# is what keeps strangers out.\n"

// text is the file of a stored server. What would be too long to be read again
// is refused.
func (r *rawServer) text(name string) ([]byte, error) {
	body, err := toml.Marshal(r)
	if err != nil {
		return nil, err
	}
	text := append(fmt.Appendf(nil, storedComment, name), body...)
	if len(text) > maxStored {
		return nil, fmt.Errorf("the server would take %d bytes, and %d is the most: store fewer services", len(text), maxStored)
	}
	return text, nil
}

// store writes a server's file, whole or not at all.
func (r *rawServer) store(file, name string) error {
	text, err := r.text(name)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("the directory for stored servers can't be made: %w", err)
	}
	return writeWhole(file, text, 0o600)
}

// writeWhole replaces a file: after a crash it has the old text or the new one.
func writeWhole(file string, text []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(file), ".sallyport-*")
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", file, pathCause(err))
	}
	defer os.Remove(f.Name()) // not there any more if all went well
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(mode), keepOwner(f, file), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		return fmt.Errorf("%s can't be written: %w", file, err)
	}
	return syncDir(filepath.Dir(file))
}

// syncDir makes a rename last through a loss of power.
func syncDir(dir string) error {
	if runtime.GOOS == "windows" { // it has no such call
		return nil
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// servicePort is the tcp port of a service: the store's, else the system's.
func (s *server) servicePort(service string) (string, error) {
	if s != nil {
		if port, ok := s.services[service]; ok {
			return strconv.Itoa(int(port)), nil
		}
	}
	port, err := net.LookupPort("tcp", service)
	switch {
	case err == nil && port > 0:
		return strconv.Itoa(port), nil
	case s == nil:
		return "", fmt.Errorf("no port is known for the service %.40q: give --then a number", service)
	}
	return "", fmt.Errorf("no port is known for the service %.40q: give --then PORT, or store it with 'sallyport add %s … --service %s=PORT'", service, s.name, service)
}

// ports are those of the named services, or of all that the store has.
func (s *server) ports(services []string) (ports []string, err error) {
	if len(services) == 0 {
		for service := range s.services {
			services = append(services, service)
		}
		slices.Sort(services)
	}
	if len(services) == 0 {
		services = []string{"ssh"}
	}
	for _, service := range services {
		port, err := s.servicePort(service)
		if err != nil {
			return nil, err
		}
		if !slices.Contains(ports, port) {
			ports = append(ports, port)
		}
	}
	return ports, nil
}

// request asks for all that the key may open, until the caller says less. The
// signer is not in it.
func (s *server) request() *sallyport.Request {
	r := &sallyport.Request{Server: s.address, Port: s.port, Over: s.over}
	if s.counts {
		counter := strings.TrimSuffix(s.file, ".toml") + ".counter"
		r.Stamp = func() (int64, error) { return nextStamp(counter, time.Now()) }
	}
	return r
}
