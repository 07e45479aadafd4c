package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// archRules are the older calls that Go uses on this architecture alone.
var archRules = []rule{
	{unix.SYS_POLL, nil}, // unix.Poll; arm64 has ppoll only
}

// archAttempts are the older spellings that this architecture still has.
var archAttempts = []attempt{
	{name: "open", nr: unix.SYS_OPEN},
	{name: "creat", nr: unix.SYS_CREAT},
	{name: "pipe", nr: unix.SYS_PIPE},
	{name: "modify_ldt", nr: unix.SYS_MODIFY_LDT, args: [6]uintptr{99}},
	{name: "arch_prctl", nr: unix.SYS_ARCH_PRCTL},
	{name: "epoll_create", nr: unix.SYS_EPOLL_CREATE},
	{name: "eventfd", nr: unix.SYS_EVENTFD},
	{name: "inotify_init", nr: unix.SYS_INOTIFY_INIT},
	{name: "unlink", nr: unix.SYS_UNLINK},
}
