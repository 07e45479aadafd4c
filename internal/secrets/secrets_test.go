package secrets

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	ann     = "MFRGGZDFMZTWQ2LKNNWG23TPOBYXE43U" // 20 bytes
	bob     = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"
	sixteen = "MFRGGZDFMZTWQ2LKNNWG23TPOA"
	short   = "MFRGGZDFMZTWQ2LKNNWG23TP" // 15 bytes
)

func TestLines(t *testing.T) {
	for _, test := range []struct{ line, want string }{
		{"ann " + ann, "ann 20 [] -"},
		{"\tann\t \t" + strings.ToLower(ann) + "\r", "ann 20 [] -"},
		{"ann " + sixteen, "ann 16 [] -"},
		{"ann " + Encode(make([]byte, 64)), "ann 64 [] -"},
		{"ann " + sixteen + "======", "ann 16 [] -"},
		{`a_2-x ` + ann + ` services="ssh,web"`, "a_2-x 20 [ssh web] -"},
		{`ann ` + ann + ` expiry-time="20270101Z"`, "ann 20 [] 2027-01-01T00:00:00Z"},
		{`ann ` + ann + ` Expiry-Time="20270101120000Z",services="ssh",expiry-time="20260101Z"`, "ann 20 [ssh] 2026-01-01T00:00:00Z"},

		{"", ""}, {"# ann " + ann, ""}, {"  \t", ""}, {"\r", ""},
		{"ann", "there is no secret behind the name"},
		{"Ann " + ann, "a person's name has 1 to 32 of a-z"},
		{strings.Repeat("a", 33) + " " + ann, "a person's name has 1 to 32"},
		{ann, "a person's name has 1 to 32"},
		{"ann " + short, "the secret has 15 bytes, which can be guessed; 16 (26 letters of base32) is the least, and 'sallyport keygen --secret' makes one of 20"},
		{"ann " + Encode(make([]byte, 65)), "the secret has 65 bytes, and 64 is the most"},
		{"ann " + ann[:31] + "1", "the secret is not base32"},
		{"ann " + ann[:31] + "\x00", "the secret is not base32"},
		{"ann " + ann[:25] + "V", "the secret is not base32"}, // bits behind the last byte
		{"ann " + ann[:27], "the secret is not base32"},
		{"ann " + sixteen + "=======", "the secret is not base32"},
		{"ann " + ann + " # mine", "a comment must have a line of its own"},
		{"ann " + ann + " servces=\"ssh\"", "servces is unknown here; there are services and expiry-time"},
		{"ann " + ann + " from=\"192.0.2.1\"", "from is unknown here; there are services and expiry-time"},
		{"ann " + ann + " no-pty", "no-pty is unknown here"},
		{"ann " + ann + " " + bob, "an option is unknown here"},
		{"ann " + ann + ` services=ssh`, "its value must stand in double quotes"},
		{"ann " + ann + ` services="Ssh"`, "name 1 is no service's name"},
		{"ann " + ann + ` services="ssh",services="web"`, "it stands there twice"},
		{"ann " + ann + ` expiry-time="2027"`, "write a time from 1970 to 9999"},
		{"ann " + ann + ` services="ssh" expiry-time="20270101Z"`, "something stands behind the options"},
	} {
		good, bad := Parse([]byte(test.line))
		got := ""
		for _, p := range good {
			end := "-"
			if !p.Expires.IsZero() {
				end = p.Expires.Format(time.RFC3339)
			}
			got += fmt.Sprintf("%s %d %v %s", p.Name, len(p.Secret), p.Services, end)
		}
		for _, b := range bad {
			got += b.Error()
		}
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%q: got %q, want %q", test.line, got, test.want)
		}
		for _, secret := range []string{ann, bob, short, sixteen} {
			if strings.Contains(strings.ToUpper(fmt.Sprint(bad)), secret) {
				t.Errorf("%q: a secret is in %v", test.line, bad)
			}
		}
	}
}

func TestWholeFiles(t *testing.T) {
	// Two lines of one name overlap; one secret for two is nobody's second.
	good, bad := Parse([]byte("# people\n\nann " + ann + ` expiry-time="20270101Z"` + "\nwhat\nann " + bob + "\nbob " + strings.ToLower(ann) + "\n"))
	if len(good) != 2 || good[0].Line != 3 || good[1].Line != 5 || len(bad) != 2 || bad[0].Line != 4 || bad[1].Line != 6 || !strings.Contains(bad[1].Text, "the secret of line 3") {
		t.Errorf("%v, %v", good, bad)
	}
	var many strings.Builder
	for i := range MaxPeople + 2 {
		fmt.Fprintf(&many, "p%d %s\n", i, Encode(fmt.Appendf(nil, "0123456789abcdef%d", i)))
	}
	good, bad = Parse([]byte(many.String()))
	if len(good) != MaxPeople || len(bad) != 1 || bad[0].Line != MaxPeople+1 {
		t.Errorf("%d people, %v", len(good), bad)
	}
	_, bad = Parse([]byte(strings.Repeat("x\n", maxFaults+5)))
	if len(bad) != maxFaults {
		t.Errorf("%d faults", len(bad))
	}
	if good, bad = Parse(append([]byte("ann "+ann+"\n"), bytes.Repeat([]byte{'\n'}, MaxSize)...)); len(good) != 0 || len(bad) != 1 {
		t.Errorf("a file that is too long: %v, %v", good, bad)
	}
}

func TestPeople(t *testing.T) {
	end := time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	p := Person{Name: "ann", Secret: []byte("0123456789abcdef"), Services: []string{"ssh"}, Expires: end}
	if !p.Opens("ssh") || p.Opens("web") || !p.At(end.Add(-1)) || p.At(end) {
		t.Error("services or end are not heeded")
	}
	for _, format := range []string{"%v", "%+v", "%s", "%#v", "%q"} {
		if said := fmt.Sprintf(format+format, p, []*Person{&p}) + fmt.Sprintf(format, []Person{p}); strings.Contains(said, "abcdef") || strings.Contains(said, "48 49") {
			t.Errorf("%s prints the secret: %s", format, said)
		}
	}
	text, err := json.Marshal(p)
	var back Person
	if err == nil {
		err = json.Unmarshal(text, &back)
	}
	if err != nil || !bytes.Equal(back.Secret, p.Secret) || !back.Expires.Equal(end) {
		t.Errorf("across the border: %+v, %v", back, err)
	}
	if a, b := New(), New(); len(a) != NewSecret || bytes.Equal(a, b) {
		t.Error("new secrets are not new")
	}
}

func TestAddAndRotate(t *testing.T) {
	now := time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)
	secret := func(b byte) []byte { return bytes.Repeat([]byte{b}, 20) }
	p := Person{Name: "ann", Secret: secret(9), Services: []string{"ssh"}}
	fresh := "ann " + Encode(secret(9))
	for _, test := range []struct {
		text    string
		rotate  bool
		overlap time.Duration
		p       Person
		want    string // the text, or with "!" what the error has
	}{
		{"", false, 0, p, fresh + ` services="ssh"` + "\n"},
		{"# x\nbob " + bob, false, 0, p, "# x\nbob " + bob + "\n" + fresh + ` services="ssh"` + "\n"},
		{"ann " + ann + "\n", false, 0, p, "!line 1 has a secret of ann already; to replace it add --rotate"},
		{"bob " + bob + "\n", true, time.Hour, p, "!ann has no line in it"},
		{"# x\r\nann " + ann + "\nbob " + bob, true, time.Hour, Person{Name: "ann", Secret: secret(9)},
			"# x\r\nann " + ann + ` expiry-time="20260501130000Z"` + "\n" + fresh + "\nbob " + bob + "\n"},
		// Services and the person's own end go on; a nearer end is not put off, and what is over leaves.
		{"ann " + bob + ` expiry-time="20260501123000Z"` + "\nwrong line\nann " + ann + ` services="ssh,web",expiry-time="20270101Z"` + "\n", true, time.Hour, Person{Name: "ann", Secret: secret(9)},
			"ann " + bob + ` expiry-time="20260501123000Z"` + "\nwrong line\nann " + ann + ` services="ssh,web",expiry-time="20260501130000Z"` + "\n" + fresh + ` services="ssh,web",expiry-time="20270101000000Z"` + "\n"},
		{"ann " + bob + ` expiry-time="20260401Z"` + "\nann " + ann + "\n", true, 0, p, fresh + ` services="ssh"` + "\n"},
		{"ann " + ann + ` expiry-time="20260401Z"` + "\n", true, time.Hour, p, "!the time of ann was over at 2026-04-01T00:00:00Z"},
		{"bob " + Encode(secret(9)) + "\n", false, 0, p, "!line 2: it has the secret of line 1"},
	} {
		var got []byte
		var err error
		if test.rotate {
			got, err = Rotate([]byte(test.text), test.p, now, test.overlap)
		} else {
			got, err = Add([]byte(test.text), test.p)
		}
		if want, fails := strings.CutPrefix(test.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q", test.text, err, want)
			}
		} else if err != nil || string(got) != test.want {
			t.Errorf("%q:\ngot  %q\nwant %q\n%v", test.text, got, test.want, err)
		}
	}
}

// What is taken is written back and reads as the same people.
func FuzzParse(f *testing.F) {
	f.Add([]byte("ann " + ann + ` services="ssh",expiry-time="20270101Z"` + "\nbob " + bob))
	f.Add([]byte("# x\n\r\nann"))
	f.Fuzz(func(t *testing.T, text []byte) {
		people, _ := Parse(text)
		var out strings.Builder
		for _, p := range people {
			if len(p.Secret) < MinSecret || len(p.Secret) > MaxSecret || CheckName(p.Name) != nil {
				t.Fatalf("%q gives %q with %d bytes", text, p.Name, len(p.Secret))
			}
			out.WriteString(FormatLine(p))
		}
		again, bad := Parse([]byte(out.String()))
		same := func(a, b Person) bool {
			return a.Name == b.Name && bytes.Equal(a.Secret, b.Secret) && slices.Equal(a.Services, b.Services) && a.Expires.Equal(b.Expires)
		}
		if len(bad) > 0 || !slices.EqualFunc(people, again, same) {
			t.Fatalf("%q was written as %q: %v, %v", text, out.String(), again, bad)
		}
	})
}
