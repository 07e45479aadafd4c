package sequence

import (
	"strings"
	"testing"
)

func TestParseStep(t *testing.T) {
	for text, want := range map[string]Step{
		"1/tcp":                     {Proto: TCP, Port: 1, Flags: Opening},
		"65535/udp":                 {Proto: UDP, Port: 65535},
		"icmp":                      {Proto: ICMP, AnySize: true},
		"0/icmp":                    {Proto: ICMP},
		"65507/icmp":                {Proto: ICMP, Port: MaxEcho},
		"7000/tcp:syn,!ack":         {Proto: TCP, Port: 7000, Flags: Flags{Set: SYN, Clear: ACK}},
		"7000/tcp:fin,psh,urg":      {Proto: TCP, Port: 7000, Flags: Flags{Set: FIN | PSH | URG}},
		"7000/tcp:!ack,!fin":        {Proto: TCP, Port: 7000, Flags: Flags{Clear: FIN | ACK}},
		"7000/tcp:any":              {Proto: TCP, Port: 7000, Flags: Nothing},
		"80/tcp:syn,!ack,!rst,!fin": {Proto: TCP, Port: 80, Flags: Opening},
	} {
		if got, err := ParseStep(text); err != nil || got != want {
			t.Errorf("ParseStep(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
}

func TestParseStepRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                  "not a step",
		"7000":              "not a step",
		"icmp:syn":          "not a step",
		"tcp/7000":          `the protocol "7000"`,
		"7000/TCP":          `the protocol "TCP"`,
		"7000/tcp/udp":      `the protocol "tcp/udp"`,
		"0/tcp":             "from 1 to 65535",
		"65536/udp":         "from 1 to 65535",
		"-1/tcp":            "from 1 to 65535",
		"+7000/tcp":         "from 1 to 65535",
		"07000/tcp":         "from 1 to 65535",
		" 7000/tcp":         "from 1 to 65535",
		"/tcp":              "from 1 to 65535",
		"65508/icmp":        "from 0 to 65507",
		"99999999999/tcp":   "from 1 to 65535",
		"7000/udp:any":      "only a tcp step",
		"7000/tcp:any,syn":  "any alone",
		"7000/tcp:syn,any":  "any alone",
		"7000/tcp:!any":     "not a TCP flag",
		"7000/tcp:Any":      "not a TCP flag",
		"7000/udp:syn":      "only a tcp step",
		"7000/tcp:":         "not a TCP flag",
		"7000/tcp:!":        "not a TCP flag",
		"7000/tcp:!!syn":    "not a TCP flag",
		"7000/tcp:syn,":     "not a TCP flag",
		"7000/tcp:syn,syn":  "named twice",
		"7000/tcp:syn,!syn": "named twice",
	} {
		if got, err := ParseStep(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseStep(%q) = %+v, %v; want an error with %q", text, got, err, want)
		}
	}
}

// A step of port 0 crosses to the engine, but nobody may write one.
func TestPortZeroCrosses(t *testing.T) {
	for _, step := range []Step{{Proto: TCP, Flags: Nothing}, {Proto: TCP, Flags: Opening}, {Proto: UDP}, {Proto: TCP, Flags: Flags{Set: SYN}}} {
		text, _ := step.MarshalText()
		var got Step
		if err := got.UnmarshalText(text); err != nil || got != step {
			t.Errorf("%+v crosses as %q and is %+v, %v", step, text, got, err)
		}
		if _, err := ParseStep(string(text)); err == nil {
			t.Errorf("a config can say %q", text)
		}
	}
	if err := new(Step).UnmarshalText([]byte("65536/tcp")); err == nil {
		t.Error("port 65536 crosses")
	}
}

// FuzzParseStep: what is accepted is written back as an equal step, in one
// spelling. Without named flags that spelling is the very text, byte for byte;
// flags may be named in any order.
func FuzzParseStep(f *testing.F) {
	for _, seed := range []string{"7000/tcp", "8500/udp", "icmp", "37/icmp", "7000/tcp:syn,!ack",
		"7000/tcp:!ack,syn", "80/tcp:syn,!ack,!rst,!fin", "0/icmp", "07/tcp", "7000/tcp:", "7000/tcp:any", "0/tcp:any",
		"9000/sctp", "9000/dccp", "9000/udplite", "proto/47", "proto/6", "proto/:any"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		step, err := ParseStep(text)
		if err != nil {
			return
		}
		var again Step
		if err := again.UnmarshalText([]byte(step.String())); err != nil || again != step {
			t.Fatalf("%q reads as %+v, but its spelling %q as %+v, %v", text, step, step.String(), again, err)
		}
		if !strings.Contains(text, ":") && step.String() != text {
			t.Fatalf("%q is written back as %q", text, step.String())
		}
	})
}
