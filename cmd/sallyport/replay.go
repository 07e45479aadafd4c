//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/control"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/warden"
)

type replayCmd struct {
	File    string    `arg:"" placeholder:"FILE" help:"The capture, pcap or pcapng; - is standard input."`
	Config  string    `short:"c" placeholder:"FILE" help:"The config (default /etc/sallyport/sallyport.toml)."`
	Knockd  string    `placeholder:"FILE" help:"Play it to the doors of this knockd.conf instead."`
	Explain address   `placeholder:"ADDR" help:"Say of this address, packet by packet, why it did or did not get in."`
	Host    []address `placeholder:"ADDR" help:"An address of the host whose traffic it is; may be repeated. Guessed unless given."`
	JSON    bool      `name:"json" help:"Print one JSON object a line."`
}

// Run plays a capture and prints what the daemon would have told. The engine that
// reads it has no privilege; this process sees typed events alone.
func (c *replayCmd) Run(u *ui) error {
	file, err := c.capture()
	if err != nil {
		return usageError{err}
	}
	defer file.Close()
	doors, err := c.doors()
	if err != nil {
		return err
	}
	request := control.Request{Do: control.DoEvents}
	if c.Explain.IsValid() {
		request = control.Request{Do: control.DoExplain, Addr: c.Explain.Addr}
	}
	if err := request.Check(); err != nil {
		return usageError{fmt.Errorf("--explain: %w", err)}
	}
	replay := &warden.Replay{Config: c.Config, Knockd: doors, Capture: file, Hosts: c.hosts(), Request: request, Log: u.logger()}
	conn, err := replay.Start()
	if err != nil {
		return configError(err)
	}
	defer conn.Close()
	if err := c.print(u, conn, request); err != nil {
		return err
	}
	if len(replay.Without) > 0 {
		return fmt.Errorf("the replay is without these knocks, whose files could not be used: %s", strings.Join(replay.Without, ", "))
	}
	return nil
}

// capture opens the file.
func (c *replayCmd) capture() (*os.File, error) {
	if c.File == "-" {
		c.File = "standard input"
		return os.Stdin, nil
	}
	file, err := os.Open(c.File)
	if err != nil {
		return nil, fmt.Errorf("the capture %s can't be read: %w; name a file that 'tcpdump -w FILE' wrote", keys.Word(c.File), pathCause(err))
	}
	if info, err := file.Stat(); err != nil || info.IsDir() {
		file.Close()
		return nil, fmt.Errorf("the capture: %s is a directory; name a file that 'tcpdump -w' wrote", c.File)
	}
	return file, nil
}

// doors gives the config of a knockd.conf; nil: there is one of ours.
func (c *replayCmd) doors() (*config.Config, error) {
	switch {
	case c.Knockd != "" && c.Config != "":
		return nil, usageError{errors.New("--knockd plays to a knockd.conf and --config to a config of ours; leave one out")}
	case c.Knockd == "" && c.Config == "":
		c.Config = defaultConfig
	}
	if c.Knockd == "" {
		return nil, nil
	}
	file, err := knockd.Load(c.Knockd)
	if err != nil {
		return nil, configError(err)
	}
	return file.Config(knockd.Settings{}), nil
}

func (c *replayCmd) hosts() (list []netip.Addr) {
	for _, a := range c.Host {
		list = append(list, a.Addr)
	}
	return list
}

// print prints the answers up to the capture's end.
func (c *replayCmd) print(u *ui, conn io.Reader, r control.Request) error {
	s := &story{of: r.Addr, none: "is in the capture", look: "'tcpdump -nr FILE' lists the addresses that are"}
	lines, ended := bufio.NewScanner(conn), false
	lines.Buffer(nil, control.MaxAnswer)
	for lines.Scan() {
		a, err := control.ParseAnswer(lines.Bytes(), r.Do)
		switch {
		case err != nil:
			return err
		case a.Error != "":
			return fmt.Errorf("%s: %s", c.File, a.Error)
		}
		if err := c.event(u, s, a.Event); err != nil {
			return err
		}
		ended = ended || a.Event.What == control.EventEnd
	}
	if !ended {
		return errors.New("the engine ended before the capture did; what it said is above")
	}
	return nil
}

// event prints one event.
func (c *replayCmd) event(u *ui, s *story, e *control.Event) error {
	explains := c.Explain.IsValid()
	switch {
	case c.JSON && explains && e.What != control.EventEnd && e.What != control.EventAssumed:
		return s.tell(u, e, true)
	case c.JSON:
		if err := u.json(e); err != nil {
			return err
		}
	case e.What == control.EventAssumed:
		u.say("assuming that %v is this host: %s", e.Addr, e.Why)
	case e.What == control.EventEnd && e.Why != "":
		u.say("%d packets: %s", e.Count, e.Why)
	case e.What == control.EventEnd && e.Count == 0:
		u.say("no packet is in the capture")
	case e.What == control.EventEnd:
	case explains:
		return s.tell(u, e, false)
	default:
		u.event(e, moment)
	}
	if explains && e.What == control.EventEnd {
		return s.end(u, c.JSON)
	}
	return nil
}
