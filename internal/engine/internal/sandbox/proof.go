//go:build linux

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"syscall"

	"github.com/landlock-lsm/go-landlock/landlock"
	"golang.org/x/sys/unix"
)

// Hostname is what the warden calls the host in the engine's own UTS
// namespace, so that the engine can tell that it has one. The warden makes the
// IPC namespace by the same call.
const Hostname = "sallyport-engine"

// Binary is the one name in the engine's root directory.
const Binary = "engine"

// unprivileged tells without /proc whether any privilege is left.
func unprivileged() error {
	ruid, euid, suid := unix.Getresuid()
	rgid, egid, sgid := unix.Getresgid()
	if ruid == 0 || euid == 0 || suid == 0 {
		return errors.New("the engine runs as root; give the warden CAP_SETUID and CAP_SETGID, or start it as another user")
	}
	if rgid == 0 || egid == 0 || sgid == 0 {
		return errors.New("the engine runs with group 0; give the warden CAP_SETGID, or start it with another group")
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // 64 capabilities, 32 in each
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	// The ambient set is always within these (capabilities(7)).
	if data != ([2]unix.CapUserData{}) {
		return errors.New("a capability is left in the permitted, effective or inheritable set")
	}
	return nil
}

// onlyGiven finds descriptors that leaked through an exec: one file or socket
// of the warden's would undo the rest.
func onlyGiven(fds Files) error {
	given := fds.all()
	for _, fd := range given {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("descriptor %d was not given", fd)
		}
	}
	for fd := range 1024 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil && !slices.Contains(given, fd) {
			return fmt.Errorf("descriptor %d was inherited and none of the engine's", fd)
		}
	}
	return nil
}

// surroundings tells what of layer B the warden could build. It runs before
// seccomp, which would make every answer the same.
func surroundings(fds Files) Report {
	var report Report
	for _, p := range []struct {
		name, proven, absent string
		f                    func() bool
	}{
		{"own uid", "the border's maker has another uid and gid", "the warden has the engine's uid or gid", func() bool { return ownUser(fds) }},
		{"no supplementary groups", "getgroups gave none", "getgroups gave some", noGroups},
		{"empty bounding set", "every capability was asked for", "a capability is left in it", emptyBounding},
		{"empty network namespace", "no interface is up", "an interface is up, or they could not be listed", noNetwork},
		{"empty mount namespace", "/ holds the engine's binary alone and is read-only", "/ holds more than the engine's binary, or can be written", noFiles},
		{"own IPC and UTS namespaces", "the host's name is the engine's", "the host's name is not the engine's", ownName},
	} {
		why := p.absent
		ok := p.f()
		if ok {
			why = p.proven
		}
		report = append(report, Proof{p.name, ok, why})
	}
	return report
}

// ownUser asks who made the border: SO_PEERCRED of a socket pair is its maker
// (unix(7)).
func ownUser(fds Files) bool {
	warden, err := unix.GetsockoptUcred(fds.Border, unix.SOL_SOCKET, unix.SO_PEERCRED)
	return err == nil && int(warden.Uid) != os.Getuid() && int(warden.Gid) != os.Getgid()
}

func noGroups() bool {
	groups, err := unix.Getgroups()
	return err == nil && len(groups) == 0
}

func emptyBounding() bool {
	for c := range uintptr(64) {
		if on, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err == nil && on != 0 {
			return false
		}
	}
	return true
}

// noNetwork lists the interfaces. A new namespace may have some (lo, and the
// fallback devices of loaded tunnel modules), but all are down, and without
// CAP_NET_ADMIN they stay so.
func noNetwork() bool {
	rib, err := syscall.NetlinkRIB(unix.RTM_GETLINK, unix.AF_UNSPEC)
	if err != nil {
		return false
	}
	messages, err := syscall.ParseNetlinkMessage(rib)
	if err != nil {
		return false
	}
	found := false
	for _, m := range messages {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		found = true
		// ifi_flags is bytes 8 to 11 of struct ifinfomsg (rtnetlink(7)); IFF_UP
		// is bit 0, and both architectures are little-endian.
		if m.Data[8]&unix.IFF_UP != 0 {
			return false
		}
	}
	return found
}

func noFiles() bool {
	entries, err := os.ReadDir("/")
	if err != nil || len(entries) != 1 || entries[0].Name() != Binary {
		return false
	}
	return errors.Is(os.Mkdir("/new", 0o700), unix.EROFS)
}

func ownName() bool {
	name, err := os.Hostname()
	return err == nil && name == Hostname
}

// landlocked denies every file, TCP port, abstract socket and signal that this
// kernel's landlock knows, on every thread. BestEffort would accept a kernel
// without landlock, so the proof is an attempt.
func landlocked() error {
	if err := landlock.V11.BestEffort().Restrict(); err != nil {
		return err
	}
	fd, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		unix.Close(fd)
		return errors.New("/ could still be opened; the kernel needs landlock (Linux 5.13, and landlock in the lsm= list)")
	}
	if err != unix.EACCES {
		return fmt.Errorf("opening / gave %w where landlock gives EACCES", err)
	}
	return nil
}
