package border

import (
	"net/netip"
	"time"

	"github.com/sallyport/sallyport/internal/authorized"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/secrets"
	"github.com/sallyport/sallyport/internal/sequence"
	"github.com/sallyport/sallyport/internal/spa"
)

// Generation is what a Config message brings.
type Generation struct {
	Config  config.Config
	Observe bool // serve --observe: the engine tells of every attempt it refuses
	// Keys is as long as Config.Knocks; knocks of type "sequence" have none.
	Keys []Keys
	// Journal says that what the journal has is all that was accepted: this boot
	// wrote it, or the daemon stopped cleanly before. It counts at the start.
	Journal bool
}

// Keys is what the files of a knock hold: of type "spa" the server's keys and the
// clients', of types "otp" and "encoded" the people's secrets. The number of a
// client's key or of a person crosses the border as Key.
type Keys struct {
	Server     []spa.FileKey // the newest first; secret
	Authorized []authorized.Key
	People     []secrets.Person // secret
}

// HostFacts is what the engine must know of the host and cannot ask for itself.
type HostFacts struct {
	Addrs      []netip.Addr       // packets to these are to this host
	Prefixes   []netip.Prefix     // and to these: local by a route, not by an interface
	Interfaces []int              // indices of the interfaces to listen to; nil: all
	Listening  []config.PortRange // ports with a listener: never a wrong step
	// With daemon.source = "log": what lines of a log call this host and its
	// interfaces, and how many seconds their time is ahead of UTC, two minutes ago and
	// in two minutes.
	Name  string
	Links map[string]int // indices by names
	Zone  [2]int
}

// Grant is one line of a Listing: an address may reach a service until a time.
type Grant struct {
	Addr    netip.Addr
	Bits    uint8 `json:",omitempty"` // length of the mask, with Addr its lowest address; 0: Addr alone
	Service string
	Proto   sequence.Proto `json:",omitzero"`
	Port    uint16         `json:",omitempty"` // the one port; 0: all of the service's
	Once    bool           `json:",omitempty"` // the first connection uses it up
	By      string         // the knock that asked, and its key or person, or "the administrator"
	Until   time.Time
}

// Who gives the address, or the network, that may come in.
func (g *Grant) Who() string {
	if g.Bits == 0 {
		return g.Addr.String()
	}
	return netip.PrefixFrom(g.Addr, int(g.Bits)).String()
}

// What gives the service, and the port where only one is open.
func (g *Grant) What() string {
	if g.Port == 0 {
		return g.Service
	}
	return g.Service + " " + config.PortRange{Proto: g.Proto, Low: g.Port, High: g.Port}.String()
}

// Listed is the whole of a Listing.
type Listed struct {
	Grants []Grant
	Error  string `json:",omitempty"` // why the kernel could not be asked
}
