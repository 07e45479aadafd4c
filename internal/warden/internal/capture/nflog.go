//go:build linux

package capture

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// linux/netfilter/nfnetlink_log.h: messages, attributes and their values.
const (
	configMessage = unix.NFNL_SUBSYS_ULOG<<8 | 1
	attrCommand   = 1
	attrMode      = 2
	attrThreshold = 5
	attrFlags     = 6
	bindGroup     = 1
	copyPacket    = 2
	flagNumbers   = 1
)

// maxBefore bounds the packets that are read over while the kernel's answer is
// looked for: they queue from the moment that the group is bound.
const maxBefore = 4096

// OpenNFLOG opens a non-blocking netlink socket that gets what rules of this
// namespace's firewalls send to the group, of both families, each packet at once
// and with a number, so that losses can be counted. It binds the group and nothing
// else: the logger of a family (NFULNL_CFG_CMD_PF_BIND) is not ours to change. The
// descriptor closes on exec; its owner closes it.
//
// An error wraps the system's errno and says what is missing, or that another
// program has the group.
func OpenNFLOG(group uint16) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_NETFILTER)
	if err != nil {
		return -1, fmt.Errorf("opening a netlink socket for NFLOG group %d: %w; allow the family where the unit restricts it (RestrictAddressFamilies)", group, err)
	}
	if err := bindNFLOG(fd, group); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func bindNFLOG(fd int, group uint16) error {
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("NFLOG group %d: %w", group, err)
	}
	if err := enlarge(fd); err != nil {
		return fmt.Errorf("the netlink socket of NFLOG group %d %w", group, err)
	}
	if err := unix.Sendto(fd, bindRequest(group), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("NFLOG group %d: %w", group, err)
	}
	switch err := answer(fd); {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EPERM) && mayAdminister():
		// Of a group that is somebody else's the kernel says EPERM too.
		return fmt.Errorf("NFLOG group %d can't be bound: %w; another program has it (/proc/net/netfilter/nfnetlink_log lists the groups in use): stop that, or take another nflog_group and send your rules' packets there", group, err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("NFLOG group %d can't be bound: %w; run as root, or give the daemon CAP_NET_ADMIN", group, err)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("NFLOG group %d can't be bound: %w; this kernel has no nfnetlink_log: load the module", group, err)
	case err != nil:
		return fmt.Errorf("NFLOG group %d can't be bound: %w", group, err)
	}
	return nil
}

// bindRequest asks for all in one message, so that no packet comes by other rules.
func bindRequest(group uint16) []byte {
	b := make([]byte, 20, 64)
	binary.NativeEndian.PutUint16(b[4:], configMessage)
	binary.NativeEndian.PutUint16(b[6:], unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	binary.BigEndian.PutUint16(b[18:], group)
	attr := func(kind uint16, value ...byte) {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, value...)
		b = append(b, make([]byte, -len(b)&3)...)
	}
	attr(attrCommand, bindGroup)
	attr(attrMode, append(binary.BigEndian.AppendUint32(nil, Snap), copyPacket, 0)...)
	attr(attrThreshold, 0, 0, 0, 1) // a knock must not wait for the next packet
	attr(attrFlags, 0, flagNumbers)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// answer gives what the kernel says to the request. The answer is in the queue when
// the request has been sent, behind packets that came meanwhile.
func answer(fd int) error {
	b := make([]byte, 64<<10)
	for range maxBefore {
		n, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
		switch {
		case err == unix.EINTR, err == unix.ENOBUFS:
			continue
		case err != nil:
			return err
		}
		if n >= 20 && binary.NativeEndian.Uint16(b[4:]) == unix.NLMSG_ERROR {
			if errno := -int32(binary.NativeEndian.Uint32(b[16:])); errno != 0 {
				return unix.Errno(errno)
			}
			return nil
		}
	}
	return errors.New("packets arrive faster than the kernel's answer is found")
}

// mayAdminister reports whether this thread has CAP_NET_ADMIN.
func mayAdminister() bool {
	var data [2]unix.CapUserData
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}
