//go:build !windows

package sallyport

import (
	"errors"
	"io"
	"net"
	"os"
)

func dialAgent() (io.ReadWriteCloser, error) {
	path := os.Getenv("SSH_AUTH_SOCK")
	if path == "" {
		return nil, noAgent(errors.New("SSH_AUTH_SOCK is not set"))
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, noAgent(cause(err))
	}
	return conn, nil
}
