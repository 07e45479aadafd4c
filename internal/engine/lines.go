//go:build linux

package engine

import (
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/engine/internal/source"
)

// use tells a log's source which lines count. Before the first config none does.
func (l *loop) use() {
	if l.log == nil || l.engine.cfg == nil {
		return
	}
	d := &l.engine.cfg.Daemon
	host := &l.engine.host
	l.log.Use(source.Lines{Format: formatOf(d.LogFile), Prefix: d.LogPrefix, Host: host.Name, Links: host.Links, Zone: host.Zone})
}

// declinedLines adds what a log's source declined to the packets that were.
func (l *loop) declinedLines() {
	if l.log == nil {
		return
	}
	declined, other := l.log.Declined()
	c := &l.engine.counts
	c.packets += uint64(declined)
	c.declined += uint64(declined)
	c.untimely += uint64(other)
}

func formatOf(file string) source.Format {
	switch file {
	case config.LogKernel:
		return source.Kernel
	case config.LogJournal:
		return source.Journal
	}
	return source.Syslog
}

// chosen takes a packet that the owner's own rules chose to show. The packet socket's
// filter keeps lo out; rules may not, and on lo any program of this host can write
// anybody's address into a packet.
func (l *loop) chosen(b []byte, ifindex int) {
	if ifindex != loopbackIndex || l.engine.itself(ifindex) {
		l.engine.Packet(b, ifindex)
	}
}

// lossWords says what a loss means.
func (l *loop) lossWords() string {
	if l.log != nil {
		return "lines of the log were lost: knocks among them must be repeated; they were torn by a rotation, too long, or more than this machine reads"
	}
	return "the capture dropped packets: knocks among them were lost and their senders must repeat them; packets to knock ports arrive faster than this machine reads them"
}
