package rules

import (
	_ "embed" // the clients are files, so that their own tools can check them
	"fmt"
	"strings"

	"github.com/sallyport/sallyport/internal/sequence"
)

//go:embed knock.sh
var shellText string

//go:embed knock.ps1
var powershellText string

//go:embed knock.cmd
var batchText string

// Shell gives a client for any POSIX shell. Steps, if there are any, are in it, and it
// is as secret as they are; so are the two below. An error says which step no such
// client can make.
func Shell(steps []sequence.Step) (string, error) {
	words, err := clientSteps(steps)
	return strings.Replace(shellText, "STEPS=''", "STEPS='"+strings.Join(words, " ")+"'", 1), err
}

// PowerShell gives a client for Windows PowerShell 5 and PowerShell 7.
func PowerShell(steps []sequence.Step) (string, error) {
	words, err := clientSteps(steps)
	for i, word := range words {
		words[i] = "'" + word + "'"
	}
	text := strings.Replace(powershellText, "$Steps = @()", "$Steps = @("+strings.Join(words, ", ")+")", 1)
	return crlf(text), err
}

// Batch gives a client for cmd.exe of Windows 10 and later.
func Batch(steps []sequence.Step) (string, error) {
	words, err := clientSteps(steps)
	return crlf(strings.Replace(batchText, `set "STEPS="`, `set "STEPS=`+strings.Join(words, " ")+`"`, 1)), err
}

// clientSteps spells steps. There is no character in them that means anything to a
// shell: digits, lower-case letters and the slash.
func clientSteps(steps []sequence.Step) ([]string, error) {
	var words []string
	for i, s := range steps {
		known := s.Proto == sequence.ICMP || s.Proto == sequence.UDP || s.Proto == sequence.TCP && s.Flags == sequence.Opening
		if !known {
			return nil, fmt.Errorf("step %d is %v, which needs raw packets and no such client can send; use sallyport knock", i+1, s)
		}
		words = append(words, s.String())
	}
	return words, nil
}

// crlf ends lines as Windows does: cmd.exe looks for labels by blocks and can miss one
// in a file without.
func crlf(text string) string { return strings.ReplaceAll(text, "\n", "\r\n") }
