package sallyport

import (
	"io"
	"os"
)

// agentPipe is where the system's agent listens.
const agentPipe = `\\.\pipe\openssh-ssh-agent`

func dialAgent() (io.ReadWriteCloser, error) {
	pipe, err := os.OpenFile(agentPipe, os.O_RDWR, 0)
	if err != nil {
		return nil, noAgent(err)
	}
	return pipe, nil
}
