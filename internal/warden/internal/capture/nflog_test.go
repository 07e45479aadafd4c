//go:build linux

package capture

import (
	"errors"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sallyport/sallyport/internal/testnet"
)

// A group has one reader, and who is not the first is told so.
func TestOpenNFLOGRefusesATakenGroup(t *testing.T) {
	ns := testnet.New(t)
	open := func(group uint16) (fd int, err error) {
		ns.Do(func() { fd, err = OpenNFLOG(group) })
		return fd, err
	}
	first, err := open(7)
	if err != nil {
		t.Fatal(err)
	}
	other, err := open(8)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(other)
	if fd, err := open(7); fd != -1 || err == nil || !strings.Contains(err.Error(), "another program has it") {
		t.Errorf("a second reader got %d, %v", fd, err)
	}
	unix.Close(first)
	again, err := open(7)
	if err != nil {
		t.Errorf("the group is not free again: %v", err)
	}
	unix.Close(again)
}

func TestOpenNFLOGNeedsPrivilege(t *testing.T) {
	var err error
	testnet.New(t).Do(func() {
		if err = withoutCapability(unix.CAP_NET_ADMIN); err == nil {
			_, err = OpenNFLOG(7)
		}
	})
	if !errors.Is(err, unix.EPERM) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v", err)
	}
}

// What rules send is there at once, of both families, and the logger of a family is
// as it was.
func TestOpenNFLOGHears(t *testing.T) {
	w := newTown(t)
	loggers := func() string { return w.host.Run("sh", "-c", "cat /proc/net/netfilter/nf_log") }
	before := loggers()
	var fd int
	var err error
	w.host.Do(func() { fd, err = OpenNFLOG(65535) })
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if after := loggers(); after != before {
		t.Errorf("loggers before:\n%safter:\n%s", before, after)
	}
	w.host.Input("table inet x { chain c { type filter hook prerouting priority raw; udp dport 8000 log group 65535; }; }", "nft", "-f", "-")
	wire := w.stranger.Wire(w.strangerIf, w.host.MAC(w.hostIf))
	for _, e := range w.ends(8000) {
		wire.Send(t, testnet.UDP(e[0], e[1], make([]byte, 100)))
		if got := awaitMessage(t, fd); got < 128 || got > 400 {
			t.Errorf("%v: a message of %d bytes", e[0], got)
		}
	}
}

// awaitMessage gives the length of the next datagram.
func awaitMessage(t *testing.T, fd int) int {
	t.Helper()
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 2000); n != 1 {
		t.Fatalf("nothing came: %v", err)
	}
	b := make([]byte, 8192)
	n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
