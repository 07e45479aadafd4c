//go:build linux

package warden

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/sallyport/sallyport/internal/border"
)

// watch sends a packet to ourselves now and then. It comes back only if the
// capture, its filter, the engine and the border all work, and only then does
// systemd's watchdog (sd_notify(3), WATCHDOG=1) get its food: a daemon that
// runs but is deaf is restarted.
type watch struct {
	conn  *net.UDPConn // nil: nothing captures
	port  uint16
	token [8]byte
}

// newWatch opens a UDP socket of our own on loopback: the packet ends there,
// and nothing answers it.
func newWatch() (*watch, error) {
	// The address stays when lo goes down, and sending to it is no error then.
	if lo, err := net.InterfaceByName("lo"); err == nil && lo.Flags&net.FlagUp == 0 {
		return nil, errors.New("the watch packet needs the loopback interface, which is down; bring lo up")
	}
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("the watch packet needs the loopback interface: %w; bring lo up", err)
	}
	w := &watch{conn: conn, port: uint16(conn.LocalAddr().(*net.UDPAddr).Port)}
	rand.Read(w.token[:])
	go w.drain()
	return w, nil
}

// watchInterval is a third of what systemd allows, or ten seconds.
func watchInterval() time.Duration {
	if limit, err := daemon.SdWatchdogEnabled(false); err == nil && limit > 0 {
		return limit / 3
	}
	return 10 * time.Second
}

// send sends the packet. Where nothing captures there is none: a plain socket
// hears no stranger's packets to loopback, so it says no more of the engine than
// that the border holds, and the watchdog is fed at once.
func (w *watch) send() {
	if w.conn == nil {
		daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		return
	}
	w.conn.WriteToUDPAddrPort(w.token[:], w.conn.LocalAddr().(*net.UDPAddr).AddrPort())
}

// drain keeps the socket's own queue empty; what counts is the copy that the
// capture saw.
func (w *watch) drain() {
	var b [16]byte
	for {
		if _, _, err := w.conn.ReadFromUDPAddrPort(b[:]); err != nil {
			return
		}
	}
}

// returned takes the engine's word that the packet arrived.
func (w *watch) returned(m *border.Watched) {
	if m.Token == w.token {
		daemon.SdNotify(false, daemon.SdNotifyWatchdog)
	}
}

func (w *watch) close() {
	if w.conn != nil {
		w.conn.Close()
	}
}
