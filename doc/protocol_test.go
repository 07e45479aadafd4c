package doc_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/spa"
	"github.com/sallyport/sallyport/vectors"
)

const protocol = "sallyport-protocol.7"

// verdictsIn gives the words that a section's items begin with.
func verdictsIn(t *testing.T, heading string) []string {
	t.Helper()
	var list []string
	for _, line := range section(t, protocol, heading) {
		if head, ok := strings.CutPrefix(line, ".It Ic "); ok {
			list = append(list, strings.Split(head, " , ")...)
		}
	}
	return sorted(list)
}

// Each verdict of the page has a vector, and the other way round.
func TestEveryVerdictHasItsEntry(t *testing.T) {
	all, err := vectors.All()
	if err != nil {
		t.Fatal(err)
	}
	var real []string
	for _, v := range all {
		real = append(real, v.Get("expect"))
	}
	same(t, "verdicts", verdictsIn(t, "WHAT A SERVER DOES"), sorted(real))
}

// The lengths that a person copies from the page are the program's.
func TestLengthsOfTheProtocol(t *testing.T) {
	page := strings.ReplaceAll(read(t, protocol), ",", "")
	for _, row := range []string{
		fmt.Sprintf("\n.It %d Ta 1 Ta %d Ta ", spa.SmallSize, spa.SmallSize-16-32-16),
		fmt.Sprintf("\n.It %d Ta 1 Ta %d Ta ", spa.LargeSize, spa.LargeSize-16-32-16),
		fmt.Sprintf("\n.It %d Ta 2 Ta %d Ta ", spa.PostQuantumSize, spa.PostQuantumSize-16-1120-16),
		fmt.Sprintf("up to %d (30 days)", int(spa.MaxFor.Seconds())),
		fmt.Sprintf("one byte of length (1 to %d)", spa.MaxName),
		fmt.Sprintf("The usual port is %d.", spa.DefaultPort),
	} {
		if !strings.Contains(page, row) {
			t.Errorf("the page does not say %q", row)
		}
	}
}
