package doc_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/otp"
)

const phonePage = "phone.md"

// codePorts is how the ports of a code are written behind each other.
func codePorts(code, between string) string {
	d := otp.Digits{Base: 7000, Count: len(code)}
	var words []string
	for _, port := range d.Ports(code) {
		words = append(words, fmt.Sprint(port))
	}
	return strings.Join(words, between)
}

// TestPortsOfTheCodesShown: whoever has nothing but the page knocks as it says.
func TestPortsOfTheCodesShown(t *testing.T) {
	page := read(t, phonePage)
	for _, want := range []string{
		"for p in " + codePorts("123456", " ") + "; do",
		"of 012305 it is " + strings.Replace(codePorts("012305", ", "), ", 72", " and 72", 1),
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page does not say %q", want)
		}
	}
}

// TestFunctionOfThePhonePage runs the page's function in each shell that is here, with an
// nc that only says how it was called.
func TestFunctionOfThePhonePage(t *testing.T) {
	_, rest, found := strings.Cut(read(t, phonePage), "\nclient$ code() ")
	function, _, _ := strings.Cut(rest, "\n")
	if !found {
		t.Fatal("the page has no function any more")
	}
	ran := 0
	for _, shell := range [][]string{{"sh"}, {"dash"}, {"bash", "--posix"}, {"busybox", "sh"}} {
		if _, err := exec.LookPath(shell[0]); err != nil {
			continue
		}
		ran++
		for _, host := range []string{"192.0.2.1", "2001:db8::1"} {
			for _, code := range []string{"123456", "000000", "080908", "999999", "01234567"} {
				script := "nc() { echo \"$@\"; }\ncode() " + function + "\ncode " + host + " " + code
				cmd := exec.Command(shell[0], append(shell[1:], "-c", script)...)
				cmd.Env = append(os.Environ(), "LC_ALL=C")
				out, err := cmd.CombinedOutput()
				prefix := "-z -w 1 " + host + " "
				want := prefix + codePorts(code, "\n"+prefix) + "\n"
				if err != nil || string(out) != want {
					t.Errorf("%s: of %s at %s: %v\n%swant\n%s", shell[0], code, host, err, out, want)
				}
			}
		}
	}
	if ran == 0 {
		t.Error("no shell is here")
	}
}
