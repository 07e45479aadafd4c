package control_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/control"
)

func TestParse(t *testing.T) {
	const nobody, short = "nobody can connect from", "--for: the duration must be 1s or more"
	const print = "SHA256:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU"
	for _, c := range []struct{ line, want string }{ // want "": taken
		{`{"do":"status"}`, ""},
		{`{"do":"open","service":"ssh","addr":"192.0.2.7"}`, ""},
		{`{"do":"open","service":"ssh","addr":"2001:db8::7","for":"1s"}`, ""},
		{`{"do":"open","service":"ssh","addr":"::ffff:192.0.2.7"}`, ""},
		{`{"do":"open","service":"ssh","addr":"fe80::7"}`, ""},
		{`{"do":"close","addr":"127.0.0.1"}`, ""}, // an old grant must be ended whatever it is
		{`{"do":"close","addr":"::"}`, ""},
		{`{"do":"open","service":"ssh","addr":"192.0.2.7","for":"1ns"}`, short},
		{`{"do":"open","service":"ssh","addr":"2001:db8::7","for":"999ms"}`, short},
		{`{"do":"open","service":"ssh","addr":"2001:db8::7","for":"-1s"}`, short},
		{`{"do":"open","service":"ssh","addr":"0.0.0.0"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"::"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"::ffff:0.0.0.0"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"224.0.0.1"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"ff02::1"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"255.255.255.255"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"127.0.0.1"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"::1"}`, nobody},
		{`{"do":"open","service":"ssh","addr":"fe80::7%eth0"}`, "without a zone; leave out %eth0"},
		{`{"do":"close","addr":"fe80::7%eth0"}`, "without a zone; leave out %eth0"},
		{`{"do":"open","service":"ssh"}`, "open needs an IPv4 or IPv6 address"},
		{`{"do":"close"}`, "close needs an IPv4 or IPv6 address"},
		{`{"do":"open","addr":"192.0.2.7"}`, "open needs a service"},
		{`{"do":"close","addr":"2001:db8::7","cut":true}`, ""},
		{`{"do":"close","key":"` + print + `"}`, ""},
		{`{"do":"close","key":"` + print + `","cut":true}`, ""},
		{`{"do":"close","cut":true}`, "close needs an IPv4 or IPv6 address"},
		{`{"do":"close","key":"` + print + `","addr":"192.0.2.7"}`, "give one of them"},
		{`{"do":"close","key":"` + print + `","service":"ssh"}`, "give one of them"},
		{`{"do":"close","key":"` + print[7:] + `"}`, "the hash is not named; write " + print},
		{`{"do":"close","key":"MD5:d4:1d:8c:d9:8f:00:b2:04:e9:80:09:98:ec:f8:42:7e"}`, "MD5"},
		{`{"do":"close","key":"d4:1d:8c:d9:8f:00:b2:04:e9:80:09:98:ec:f8:42:7e"}`, "MD5"},
		{`{"do":"close","key":"` + print + `A"}`, "is no fingerprint"},
		{`{"do":"close","key":"SHA256:\u001b[2J"}`, `"SHA256:\x1b[2J" is no fingerprint`},
		{`{"do":"open","service":"ssh","addr":"192.0.2.7","cut":true}`, "open takes no key and cuts nothing"},
		{`{"do":"open","service":"ssh","key":"` + print + `"}`, "open takes no key and cuts nothing"},
		{`{"do":"close","service":"mail","port":"25/tcp","addr":"192.0.2.7"}`, ""},
		{`{"do":"close","service":"mail","port":"25/tcp","addr":"2001:db8::","bits":64}`, ""},
		{`{"do":"close","addr":"::ffff:192.0.2.0","bits":24}`, ""},
		{`{"do":"close","port":"25/tcp","addr":"192.0.2.7"}`, "a port behind its service"},
		{`{"do":"close","service":"mail","port":"25-26/tcp","addr":"2001:db8::7"}`, "a port behind its service"},
		{`{"do":"close","service":"mail","port":"0/tcp","addr":"2001:db8::7"}`, "a port behind its service"},
		{`{"do":"close","addr":"192.0.2.7","bits":24}`, "no network by its lowest address"},
		{`{"do":"close","addr":"2001:db8::7","bits":128}`, "no network by its lowest address"},
		{`{"do":"close","addr":"192.0.2.0","bits":33}`, "no network by its lowest address"},
		{`{"do":"close","addr":"192.0.2.0","bits":-1}`, "no network by its lowest address"},
		{`{"do":"close","addr":"192.0.2.0","bits":280}`, "no network by its lowest address"},
		{`{"do":"close","addr":"192.0.2.0","bits":24,"cut":true}`, "--cut ends the connections of one address"},
		{`{"do":"close","key":"` + print + `","bits":24}`, "give one of them"},
		{`{"do":"open","service":"ssh","addr":"192.0.2.0","bits":24}`, "open takes one address, and no port"},
		{`{"do":"open","service":"ssh","port":"22/tcp","addr":"192.0.2.7"}`, "open takes one address, and no port"},
		{`{"do":"explain","addr":"192.0.2.7"}`, ""},
		{`{"do":"explain","addr":"2001:db8::7"}`, ""},
		{`{"do":"explain"}`, "explain needs an IPv4 or IPv6 address"},
		{`{"do":"explain","addr":"fe80::7%eth0"}`, "without a zone; leave out %eth0"},
		{`{"do":"explain","addr":"192.0.2.7","for":"1s"}`, "explain takes an address and nothing else"},
		{`{"do":"dance"}`, "does not know the request"},
		{`{"do":"status","as":"root"}`, "the request is not understood"},
		{`[]`, "the request is not understood"},
	} {
		r, err := control.Parse([]byte(c.line))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
		if err == nil && r.Addr.Is4In6() {
			t.Errorf("%s: the address stays %v", c.line, r.Addr)
		}
	}
}

// The engine may be a stranger's: it must not have another answer taken for
// the one that was asked for.
func TestAnAnswerAnswersItsRequest(t *testing.T) {
	done := &control.Done{Result: "granted", Until: time.Now()}
	fits := map[string]control.Answer{
		control.DoStatus:  {Status: &control.Status{}},
		control.DoGrants:  {Grants: &border.Listed{}},
		control.DoEvents:  {Event: &control.Event{}},
		control.DoExplain: {Event: &control.Event{}},
		control.DoOpen:    {Done: done},
		control.DoClose:   {Done: &control.Done{Result: "closed"}},
		control.DoConfirm: {Done: &control.Done{Result: "confirmed"}},
	}
	for do, answer := range fits {
		for _, a := range []control.Answer{answer, {Error: "no"}} {
			line, _ := json.Marshal(a)
			if _, err := control.ParseAnswer(line, do); err != nil {
				t.Errorf("%s: %s: %v", do, line, err)
			}
		}
		for _, line := range []string{`{}`, `null`, `[]`, `{"done":null}`, "\x1b]0;x\a", ``, `{"grants":7}`} {
			if a, err := control.ParseAnswer([]byte(line), do); err == nil {
				t.Errorf("%s: %q is taken for %+v", do, line, a)
			} else if !strings.HasPrefix(err.Error(), "the daemon's answer is not understood") || strings.ContainsAny(err.Error(), "\x1b\a") {
				t.Errorf("%s: %q: %q", do, line, err)
			}
		}
		for other, a := range fits {
			line, _ := json.Marshal(a)
			if _, err := control.ParseAnswer(line, do); err == nil && other != do && (other == control.DoStatus || other == control.DoGrants || other == control.DoEvents && do != control.DoExplain) {
				t.Errorf("%s: %s is taken", do, line)
			}
		}
	}
	if _, err := control.ParseAnswer([]byte(`{"done":{"result":"granted"}}`), control.DoOpen); err == nil {
		t.Error("open: an answer without an end is taken")
	}
}

// nasty is what a terminal obeys: an escape sequence in two spellings, the
// bell, another line, writing from right to left.
const nasty = "\x1b[2J\u009b2J\a\r\nx\u202ey\u2028"

// Every text that an answer can hold is printable behind ParseAnswer: a field
// that is added later is filled here by itself.
func TestNoAnswerSpeaksToTheTerminal(t *testing.T) {
	var a control.Answer
	fill(reflect.ValueOf(&a).Elem())
	for do, part := range map[string]control.Answer{
		control.DoStatus: {Status: a.Status}, control.DoGrants: {Grants: a.Grants},
		control.DoEvents: {Event: a.Event}, control.DoOpen: {Done: a.Done}, control.DoClose: {Error: a.Error},
	} {
		line, err := json.Marshal(part)
		if err != nil {
			t.Fatal(err)
		}
		got, err := control.ParseAnswer(line, do)
		if err != nil {
			t.Fatalf("%s: %v", do, err)
		}
		shown := fmt.Sprint(got.Error, got.Done, got.Status, got.Grants, got.Event)
		if strings.ContainsAny(shown, nasty[:1]+"\u009b\a\r\n\u202e\u2028") || !strings.Contains(shown, "?[2J") {
			t.Errorf("%s: %q", do, shown)
		}
	}
}

// fill puts something nasty into every text of v, through pointers and lists.
func fill(v reflect.Value) {
	switch v.Interface().(type) {
	case netip.Addr:
		v.Set(reflect.ValueOf(netip.MustParseAddr("fe80::1").WithZone(nasty)))
		return
	case time.Time:
		v.Set(reflect.ValueOf(time.Unix(1, 0)))
		return
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(nasty)
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(reflect.ValueOf(nasty), reflect.Zero(v.Type().Elem()))
	}
}
