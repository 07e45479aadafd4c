package sandbox

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_AARCH64

// archRules is empty: this architecture has the newer calls only.
var archRules []rule

// archAttempts is empty for the same reason.
var archAttempts []attempt
