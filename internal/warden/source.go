//go:build linux

package warden

import (
	"slices"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/warden/internal/capture"
)

// openSource opens what packets are seen through.
func (w *warden) openSource() (err error) {
	if w.cfg.Daemon.Source == config.Socket {
		w.watch = new(watch)
		for _, port := range socketPorts(w.cfg) {
			fd, err := capture.OpenUDP(port)
			if err != nil {
				return err
			}
			w.sockets = append(w.sockets, fd)
		}
		return nil
	}
	if w.cfg.Daemon.Source != config.Capture {
		return w.openChosen()
	}
	if w.watch, err = newWatch(); err != nil {
		return err
	}
	w.capture, err = capture.Open(capture.Filter(w.wanted(w.cfg)))
	return err
}

// socketPorts gives the ports that need a UDP socket, sorted.
func socketPorts(cfg *config.Config) []uint16 {
	var ports []uint16
	for i := range cfg.Knocks {
		if k := &cfg.Knocks[i]; k.Type == "spa" && cfg.Daemon.Source == config.Socket {
			ports = append(ports, k.Port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// wanted is what the kernel must let through to the engine.
func (w *warden) wanted(cfg *config.Config) capture.Wanted {
	wanted := capture.WantedBy(cfg)
	wanted.Watch = capture.Watch{Port: w.watch.port, Token: w.watch.token}
	return wanted
}

// filter sets what the kernel lets through. A plain socket has one for its life.
func (w *warden) filter(wanted capture.Wanted) error {
	if w.capture < 0 {
		return nil
	}
	return capture.Attach(w.capture, capture.Filter(wanted))
}
