//go:build linux

package main

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/sequence"
)

// gatherFacts looks at this machine for check. What can't be read stays unknown
// and is warned of by nothing; no program is run for it.
func gatherFacts(file string) config.Facts {
	f := config.Facts{Listening: listening("/proc/net"), Fresh: func() []sequence.Step {
		steps, _ := sequence.Random(4)
		return steps
	}}
	f.SSHPorts, f.Passwords = sshdFacts("/etc/ssh/sshd_config")
	all, _ := os.ReadFile("/proc/sys/net/netfilter/nf_log_all_netns")
	f.NamespacesLog = string(bytes.TrimSpace(all)) == "1"
	// A pipe (check -c <(…)) has no mode that says anything of the text's.
	if info, err := os.Stat(file); err == nil && info.Mode().IsRegular() {
		f.File, f.Mode = file, info.Mode()
		f.Owner = int(info.Sys().(*syscall.Stat_t).Uid)
	}
	return f
}

// listening reads the ports with a socket that takes packets from the network
// out of proc_net(5): TCP in state LISTEN (0A), UDP without a peer (07), less
// what is bound to loopback. check runs on any kernel and as any user, and the
// files are there for all of them.
func listening(dir string) []config.PortRange {
	var ports []config.PortRange
	for _, source := range []struct {
		file, state string
		proto       sequence.Proto
	}{{"tcp", "0A", sequence.TCP}, {"tcp6", "0A", sequence.TCP}, {"udp", "07", sequence.UDP}, {"udp6", "07", sequence.UDP}} {
		text, err := os.ReadFile(filepath.Join(dir, source.file))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) < 4 || fields[3] != source.state {
				continue
			}
			local, err := parseProcAddr(fields[1])
			p := config.PortRange{Proto: source.proto, Low: local.Port(), High: local.Port()}
			if err == nil && !local.Addr().IsLoopback() && !slices.Contains(ports, p) {
				ports = append(ports, p)
			}
		}
	}
	return ports
}

// parseProcAddr reads "0100007F:0016": words of 32 bits, each printed as this
// machine's number, then the port.
func parseProcAddr(s string) (netip.AddrPort, error) {
	words, port, _ := strings.Cut(s, ":")
	n, err := strconv.ParseUint(port, 16, 16)
	if err != nil || (len(words) != 8 && len(words) != 32) {
		return netip.AddrPort{}, fmt.Errorf("%q is not an address", s)
	}
	var raw []byte
	for ; words != ""; words = words[8:] {
		word, err := strconv.ParseUint(words[:8], 16, 32)
		if err != nil {
			return netip.AddrPort{}, err
		}
		raw = binary.NativeEndian.AppendUint32(raw, uint32(word))
	}
	addr, _ := netip.AddrFromSlice(raw)
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// sshdFacts reads where sshd listens and whether it takes passwords, as
// sshd_config(5) says: the first value of a keyword counts, and a Match block
// ends what holds for everybody. Without a file both are unknown.
func sshdFacts(file string) (ports []uint16, passwords string) {
	s := sshd{dir: filepath.Dir(file), values: map[string]string{"passwordauthentication": "", "kbdinteractiveauthentication": ""}}
	if !s.read(file, 0) {
		return nil, ""
	}
	if len(s.ports) == 0 {
		s.ports = []uint16{22}
	}
	for _, value := range s.values {
		if value != "no" { // both are "yes" where nothing is said
			return s.ports, "yes"
		}
	}
	return s.ports, "no"
}

type sshd struct {
	dir    string // of the main file: names in Include are relative to it alone
	ports  []uint16
	values map[string]string // lower-case keywords of interest; "": not yet said
}

// includeDepth is sshd's own limit (SERVCONF_MAX_DEPTH in its servconf.c).
const includeDepth = 16

// read takes one file and those that it includes, and reports whether it could.
func (s *sshd) read(file string, depth int) bool {
	text, err := os.ReadFile(file)
	if err != nil || depth > includeDepth {
		return false
	}
	for scan := bufio.NewScanner(bytes.NewReader(text)); scan.Scan(); {
		keyword, args := sshdLine(scan.Text())
		if keyword == "match" {
			break
		}
		for _, arg := range args {
			s.take(keyword, arg, depth)
		}
	}
	return true
}

func (s *sshd) take(keyword, arg string, depth int) {
	switch keyword {
	case "challengeresponseauthentication": // its name before OpenSSH 8.7
		keyword = "kbdinteractiveauthentication"
	case "port":
		if n, err := strconv.ParseUint(arg, 10, 16); err == nil {
			s.ports = append(s.ports, uint16(n))
		}
	case "include":
		if !filepath.IsAbs(arg) {
			arg = filepath.Join(s.dir, arg)
		}
		files, _ := filepath.Glob(arg) // sorted, as sshd takes them
		for _, f := range files {
			s.read(f, depth+1)
		}
	}
	if value, known := s.values[keyword]; known && value == "" {
		s.values[keyword] = strings.ToLower(arg)
	}
}

// sshdLine splits a line into its keyword, in lower case, and its arguments,
// which may follow an equals sign and stand in quotes.
func sshdLine(line string) (keyword string, args []string) {
	line, _, _ = strings.Cut(line, "#")
	words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r=\"", r) })
	if len(words) == 0 {
		return "", nil
	}
	return strings.ToLower(words[0]), words[1:]
}
