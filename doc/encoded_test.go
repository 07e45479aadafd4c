package doc_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/encoded"
	"github.com/sallyport/sallyport/vectors"
)

const encodedPage = "sallyport-encoded.7"

// Each verdict of the page has a vector, and the other way round.
func TestEveryVerdictOfMessagesHasItsEntry(t *testing.T) {
	all, err := vectors.Messages()
	if err != nil {
		t.Fatal(err)
	}
	var real, listed []string
	for _, m := range all {
		real = append(real, m.Get("expect"))
	}
	for _, line := range section(t, encodedPage, "VECTORS") {
		if head, ok := strings.CutPrefix(line, ".It Ic "); ok {
			listed = append(listed, strings.Split(head, " , ")...)
		}
	}
	same(t, "verdicts", sorted(listed), sorted(real))
}

// The figures that a person copies from the page are the program's.
func TestFiguresOfMessages(t *testing.T) {
	rows := regexp.MustCompile(`(?m)^\.It (\d+) Ta (\d+) Ta (\d+) Ta (\d+) Ta (\d+)$`).FindAllStringSubmatch(read(t, encodedPage), -1)
	if len(rows) < 6 {
		t.Fatalf("%d shapes were found: the search for them is broken", len(rows))
	}
	for _, row := range rows {
		s := encoded.Shape{Base: 1}
		fmt.Sscan(row[1], &s.Payload)
		fmt.Sscan(row[2], &s.Span)
		if real := fmt.Sprint(s.Size(), s.Width(), s.Steps()); real != strings.Join(row[3:], " ") {
			t.Errorf("%s: it is %s", row[0], real)
		}
	}
	for _, text := range []string{
		fmt.Sprintf("up to %d (30 days)", int(encoded.MaxFor.Seconds())),
		fmt.Sprintf("good for %d messages", encoded.MaxMessages),
		fmt.Sprintf("of the operator's own a message can carry 0 to %d.", encoded.MaxPayload),
	} {
		if !strings.Contains(strings.ReplaceAll(read(t, encodedPage), ",", ""), text) {
			t.Errorf("the page does not say %q", text)
		}
	}
}
