// Command sallyport hides network services and opens them to a knock. This one
// binary is the client, the daemon and its tools.
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
)

// The exit statuses.
const (
	exitDone   = 0
	exitFailed = 1 // it was tried and failed
	exitUsage  = 2 // the command line or the config is wrong
)

// cli is every subcommand: each has its own file.
type cli struct {
	Knock   knockCmd   `cmd:"" help:"Knock at a host, and wait until a port answers if asked to."`
	Add     addCmd     `cmd:"" help:"Store a server, to knock at it by a name of yours."`
	Ports   portsCmd   `cmd:"" help:"Print the ports that open a stored server now, to send with any tool."`
	Proxy   proxyCmd   `cmd:"" help:"Knock, and connect standard input and output to a port; for ssh's ProxyCommand."`
	Keygen  keygenCmd  `cmd:"" help:"Make a server's key, a person's secret, or a random sequence."`
	Version versionCmd `cmd:"" help:"Print the version."`
	serverCommands
}

// main goes by the name that it was started under: installed as knockd or as knock
// it is what these are.
func main() {
	u := &ui{in: os.Stdin, out: os.Stdout, err: os.Stderr}
	switch filepath.Base(os.Args[0]) {
	case "knockd":
		os.Exit(runKnockd(u, os.Args[1:]))
	case "knock":
		os.Exit(runKnock(u, os.Args[1:]))
	}
	os.Exit(run(u, os.Args[1:]))
}

// run is the whole program; tests call it too.
func run(u *ui, args []string) int {
	defer u.flush()
	// Before kong has built the model of every subcommand, which these would keep in
	// memory as long as they run.
	if len(args) > 0 && processes[args[0]] != nil {
		return u.finish(processes[args[0]](u, args[1:]))
	}
	var c cli
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("sallyport"),
		kong.Description("Hides network services and opens them to a knock, for one address and a short time."),
		kong.Writers(u.out, u.err),
		kong.Exit(func(code int) { exited = code }),
		kong.TypeMapper(reflect.TypeFor[time.Duration](), kong.MapperFunc(duration)),
		kong.UsageOnError(),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}))
	if err != nil {
		panic(err) // the struct above is wrong: a programming error
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	ctx, err := parser.Parse(args)
	if exited >= 0 { // --help has said it all
		return exited
	}
	if err != nil {
		u.misread(args, err)
		return exitUsage
	}
	return u.finish(ctx.Run(u))
}

// examples are the commands that take operands, as somebody would type them.
var examples = map[string]string{
	"knock": "knock home, or sallyport knock example.net 7000/tcp 8500/udp 7800/tcp", "add": "add home -", "ports": "ports home",
	"proxy": "proxy home example.net 22", "open": "open ssh 192.0.2.7 --for 10m", "explain": "explain 192.0.2.7",
	"replay": "replay FILE.pcap --explain 192.0.2.7",
}

// valueMissing is what kong says of an option at the end of the line, or before another.
var valueMissing = regexp.MustCompile(`^(--?[a-z0-9-]+): expected .*value but got "(EOL|--?[^"]*)"`)

// misread says what is wrong with a command line that could not be read.
func (u *ui) misread(args []string, err error) {
	word, unknown := strings.CutPrefix(err.Error(), "unexpected argument ")
	example, missing := examples[args[0]], strings.HasPrefix(err.Error(), "expected ")
	parse, typed := errors.AsType[*kong.ParseError](err)
	option := valueMissing.FindStringSubmatch(err.Error())
	switch {
	case option != nil && option[2] != "EOL":
		u.say("%s needs a value, and %s behind it is an option", option[1], option[2])
	case option != nil:
		u.say("%s needs a value behind it", option[1])
	case unknown && typed && parse.Context.Command() == "":
		u.say("no such command: %v", word)
	case missing && example != "":
		u.say("%v, as in: sallyport %s", err, example)
	default:
		u.say("%v", err)
	}
	u.hint("'sallyport --help' lists the commands, 'sallyport COMMAND --help' explains one")
}

// duration reads what time.ParseDuration does and says what to write instead of
// the rest: a bare number is the usual slip.
func duration(ctx *kong.DecodeContext, target reflect.Value) error {
	var text string
	if next := ctx.Scan.Peek(); negative(next.String()) { // kong would take it for an option
		text = ctx.Scan.Pop().String()
	} else if err := ctx.Scan.PopValueInto("duration", &text); err != nil {
		return err
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		if _, number := strconv.ParseFloat(text, 64); number == nil {
			return fmt.Errorf("%q has no unit; write %ss for seconds", text, text)
		}
		return fmt.Errorf("%q is not a duration; write it as 30s, 10m or 1h30m", text)
	}
	target.SetInt(int64(d))
	return nil
}

// negative reports whether text is a duration below zero, of which the commands
// say that it is out of range.
func negative(text string) bool {
	d, err := time.ParseDuration(text)
	return err == nil && d < 0
}

// finish says what went wrong, if anything did, and gives the exit status.
func (u *ui) finish(err error) int {
	if err == nil && u.lost != nil {
		err = fmt.Errorf("what was printed did not all arrive: %w; do not use what is there", pathCause(u.lost))
	}
	if err == nil {
		return exitDone
	}
	u.say("%v", err)
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}

type versionCmd struct{}

// version is set by the release build; else the module's own is used.
var version = ""

// Run prints one line: the name and the version.
func (versionCmd) Run(u *ui) error {
	u.print("sallyport %s\n", versionText())
	return nil
}

func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "" {
		return info.Main.Version
	}
	return version
}
