package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/sallyport/sallyport"
)

// proxyCmd is for ssh's ProxyCommand.
type proxyCmd struct {
	Name string `arg:"" help:"The stored server whose knock to send."`
	Host string `arg:"" help:"Where to knock and connect to; %h in ssh's configuration."`
	Port string `arg:"" help:"The TCP port; %p in ssh's configuration."`
	wayOut
	Timeout *time.Duration `placeholder:"30s" help:"Give up after this long; with one-time ports the default is a time step and 10s, if that is more."`
}

// Run knocks and connects, then standard input and output are the connection's.
func (c *proxyCmd) Run(u *ui) error {
	o, err := c.order()
	if err != nil {
		return err
	}
	if err := o.sign(u); err != nil {
		return err
	}
	dialer := sallyport.Dialer{Knock: o.knock, Local: o.local, Interface: c.Interface, Timeout: o.timeout(c.Timeout)}
	stop := o.tellWait(u)
	conn, err := dialer.DialContext(context.Background(), "tcp"+o.family, net.JoinHostPort(o.host, c.Port))
	stop()
	o.sayLeft(u)
	if err != nil {
		return o.explain(err)
	}
	defer conn.Close()
	return relay(conn.(*net.TCPConn), u)
}

func (c *proxyCmd) order() (*order, error) {
	if c.Timeout != nil && *c.Timeout <= 0 {
		return nil, usageError{errors.New("--timeout is out of range: it takes more than 0, such as 5s")}
	}
	s, err := loadServer(c.Name)
	if err != nil {
		return nil, usageError{err}
	}
	if s == nil {
		return nil, usageError{noServer(c.Name)}
	}
	host, err := checkHost(c.Host, false, false)
	if err != nil {
		return nil, usageError{err}
	}
	local, family, err := c.local("", host)
	if err != nil {
		return nil, usageError{err}
	}
	port, err := readPort(c.Port)
	if err != nil {
		return nil, usageError{err}
	}
	c.Port = port
	o := &order{server: s, host: host, local: local, family: family, knock: s.knock(), began: time.Now()}
	switch k := o.knock.(type) {
	case *sallyport.Encoded:
		// As below: the one port, if it is known to be one of those that open.
		for _, p := range s.services {
			if fmt.Sprint(p) == port {
				k.Port, k.PortProto = p, sallyport.TCP
			}
		}
	case *sallyport.Request:
		o.request = k
		// Only what ssh needs: a service that is not opened can't be attacked.
		for name, p := range s.services {
			if fmt.Sprint(p) == port {
				o.request.Services = append(o.request.Services, name)
			}
		}
	}
	return o, nil
}

// relay copies both ways. The end of standard input closes that half alone: the
// server may have more to say. The end of the connection ends it all, since
// nobody can end a read of standard input.
func relay(conn *net.TCPConn, u *ui) error {
	go func() {
		if _, err := io.Copy(conn, u.in); err == nil {
			conn.CloseWrite()
		}
	}()
	if _, err := io.Copy(u.out, conn); err != nil {
		return fmt.Errorf("the connection to %s broke: %w", conn.RemoteAddr(), err)
	}
	return nil
}
