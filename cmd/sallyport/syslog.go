//go:build linux

package main

import (
	"fmt"
	"net"
	"os"
	"time"
)

// syslogPath is where the system's logger listens (syslog(3), _PATH_LOG).
const syslogPath = "/dev/log"

// syslogPriority is LOG_DAEMON and LOG_NOTICE (RFC 5424, 6.2.1: 3 times 8, and 5):
// what Debian's knockd 0.8 sends.
const syslogPriority = 3<<3 | 5

// syslogPatience is how long a full logger is waited for. Only the queue of lines
// waits meanwhile.
const syslogPatience = time.Second

// syslogger writes messages to the system's logger as syslog(3) of glibc does. A
// logger that was restarted is connected to again; a message that it can't take is
// lost, counted and told of when the next one gets through.
type syslogger struct {
	path string
	conn net.Conn // nil: not connected
	end  string   // what ends a message
	lost int
}

// Write sends one message.
func (s *syslogger) Write(message []byte) (int, error) {
	if s.lost > 0 && s.send([]byte(fmt.Sprintf("%s lines=%d", syslogLost, s.lost))) {
		s.lost = 0
	}
	if !s.send(message) {
		s.lost++
	}
	return len(message), nil
}

const syslogLost = "sallyport: warning: lines were lost here: the system's logger did not take them"

// send tries the connection that there is, and else a new one.
func (s *syslogger) send(message []byte) bool {
	line := fmt.Appendf(nil, "<%d>%s knockd: %s", syslogPriority, time.Now().Format("Jan _2 15:04:05"), message)
	for range 2 {
		if s.conn == nil && !s.connect() {
			return false
		}
		s.conn.SetWriteDeadline(time.Now().Add(syslogPatience))
		_, err := s.conn.Write(append(line, s.end...))
		if err == nil {
			return true
		}
		if os.IsTimeout(err) {
			return false // it is there, and full
		}
		s.conn.Close()
		s.conn = nil
	}
	return false
}

// connect takes datagrams, or a stream, in which a NUL byte ends each message.
func (s *syslogger) connect() bool {
	for _, kind := range []struct{ network, end string }{{"unixgram", ""}, {"unix", "\x00"}} {
		if conn, err := net.DialTimeout(kind.network, s.path, syslogPatience); err == nil {
			s.conn, s.end = conn, kind.end
			return true
		}
	}
	return false
}
