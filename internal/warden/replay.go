//go:build linux

package warden

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/spa"
)

// Replay says what to play to an engine. It is confined as the daemon's own is,
// and gets nothing but the capture: strangers wrote that, and root may replay it.
type Replay struct {
	Config  string         // path of the config file
	Knockd  *config.Config // of a knockd.conf, in place of that file; nil: none
	Capture *os.File       // pcap or pcapng
	Hosts   []netip.Addr   // packets to these are to the host; none: the engine guesses
	Request control.Request
	Log     *slog.Logger
	// Without are the knocks whose files could not be read, set by Start.
	Without []string
}

// Start starts the engine and gives the connection that its answers come by. To
// close it ends the engine.
func (r *Replay) Start() (net.Conn, error) {
	cfg, text, err := r.Knockd, []byte(nil), error(nil)
	if cfg == nil {
		if cfg, text, err = config.LoadText(r.Config); err != nil {
			return nil, err
		}
	}
	readable, list := r.readable(cfg, text)
	ours, theirs, err := pair()
	if err != nil {
		return nil, err
	}
	defer unix.Close(theirs)
	e, err := startEngine(engineFiles{capture: int(r.Capture.Fd()), replay: true, log: r.Log})
	if err != nil {
		ours.Close()
		return nil, err
	}
	replaying := &replaying{ours, e}
	line, err := json.Marshal(r.Request)
	if err == nil {
		_, err = ours.Write(append(line, '\n'))
	}
	for _, send := range []func() error{
		func() error {
			return e.SendJSON(&border.Config{Generation: 1}, border.Generation{Config: *readable, Keys: list, Journal: true})
		},
		func() error { return e.SendJSON(&border.Host{Generation: 1}, border.HostFacts{Addrs: r.Hosts}) },
		func() error { return e.SendFile(&border.Control{}, theirs) },
	} {
		if err == nil {
			err = send()
		}
	}
	if err != nil {
		replaying.Close()
		return nil, fmt.Errorf("the engine takes no replay: %w", err)
	}
	return replaying, nil
}

// readable gives the config without the knocks whose files this user can't read
// or that serve would refuse, by themselves or beside those before them, and the keys
// of the others.
func (r *Replay) readable(cfg *config.Config, text []byte) (*config.Config, []border.Keys) {
	with, list := *cfg, []border.Keys{}
	with.Knocks = nil
	ring := &keyring{log: r.Log}
	for i := range cfg.Knocks {
		one := *cfg
		one.Knocks = cfg.Knocks[i : i+1]
		var its []border.Keys
		_, err := Lists(&one, r.Config, text, false)
		if err == nil {
			its, err = ring.load(&one, r.Config, text)
		}
		more, moreKeys := with, append(list, its...)
		more.Knocks = append(with.Knocks, cfg.Knocks[i])
		if err == nil {
			err = shares(&more, moreKeys)
		}
		if err != nil {
			r.Log.Error("this knock is left out of the replay, because what it needs can't be used", "knock", cfg.Knocks[i].Name, "error", err)
			r.Without = append(r.Without, cfg.Knocks[i].Name)
			continue
		}
		with, list = more, moreKeys
	}
	return &with, list
}

// shares says what the last knock has in common with one before that would let a
// message to the one be used at the other.
func shares(cfg *config.Config, list []border.Keys) error {
	last, servers := len(list)-1, make([][]spa.FileKey, len(list))
	for i := range list {
		servers[i] = list[i].Server
	}
	if j := keys.Shared(servers, last); j >= 0 {
		return keys.SharedError(cfg.Knocks[j].Name)
	}
	if j := sharedCode(cfg, list, last); j >= 0 {
		return keys.SharedCodeError(cfg.Knocks[j].Name)
	}
	if cfg.Knocks[last].List == "" {
		return nil
	}
	return sharedList(cfg, last)
}

// replaying is a connection to an engine that lives as long as it.
type replaying struct {
	net.Conn
	engine *link
}

// Close ends the engine too.
func (r *replaying) Close() error {
	r.engine.close()
	return r.Conn.Close()
}

// pair makes the connection. The engine's end is a descriptor that blocks.
func pair() (net.Conn, int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, -1, fmt.Errorf("socketpair: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "replay")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		unix.Close(fds[1])
		return nil, -1, err
	}
	return conn, fds[1], nil
}
