package sallyport_test

import (
	"strings"
	"testing"

	"github.com/sallyport/sallyport"
)

func TestParseSequence(t *testing.T) {
	longest := strings.Repeat("7000/tcp ", sallyport.MaxSteps)
	for _, test := range []struct {
		text, want string // want: part of the error; empty: it is good
	}{
		{"7000/tcp 8500/udp icmp 37/icmp", ""},
		{" 7000/tcp\n\t8500/udp\r\n", ""},
		{"7000/tcp:syn,!ack", ""},
		{longest, ""},
		{"", "no steps"},
		{" \n", "no steps"},
		{longest + "1/udp", "33 steps: 32 is the most"},
		{"7000/tcp 7001", `"7001" is not a step`},
		{"0/tcp", "from 1 to 65535"},
		{"7000/tcp 7001/tcp:fin", "step 2, 7001/tcp:fin, is no plain SYN"},
		{"7000/tcp:syn,ack", "is no plain SYN"},
		{"7000/tcp:!syn", "is no plain SYN"},
	} {
		knock, err := sallyport.ParseSequence(test.text)
		if test.want == "" {
			if err != nil || len(knock.Steps) != len(strings.Fields(test.text)) {
				t.Errorf("%q: %d steps, %v", test.text, len(knock.Steps), err)
			}
		} else if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q: got %v, want %q", test.text, err, test.want)
		}
	}
}

func TestValidateRefusesAStepOfNoProtocol(t *testing.T) {
	knock := sallyport.Sequence{Steps: []sallyport.Step{{Port: 7000}}}
	if err := knock.Validate(); err == nil || !strings.Contains(err.Error(), "no protocol") {
		t.Errorf("got %v", err)
	}
}
