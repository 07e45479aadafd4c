package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
)

// Error is one fault of a configuration. Its text never holds a step of a
// sequence, because the daemon logs it and a log is read by more people than
// the configuration is.
type Error struct {
	File string `json:"file"`
	Line int    `json:"line"` // from 1
	Text string `json:"text"`
}

// Error gives "FILE:LINE: text".
func (e Error) Error() string { return fmt.Sprintf("%s:%d: %s", e.File, e.Line, e.Text) }

// Errors is every fault that was found in a file, sorted by line.
type Errors []Error

// Error gives one line for each fault.
func (e Errors) Error() string {
	texts := make([]string, len(e))
	for i := range e {
		texts[i] = e[i].Error()
	}
	return strings.Join(texts, "\n")
}

// sort orders faults by line and drops those that are said twice. Each stays
// on one line and in plain characters, whatever a quoted key of the file holds.
func (e Errors) sort() Errors {
	for i := range e {
		e[i].Text = strings.Map(func(r rune) rune {
			if unicode.IsPrint(r) {
				return r
			}
			return '?'
		}, e[i].Text)
	}
	slices.SortStableFunc(e, func(a, b Error) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Text, b.Text))
	})
	return slices.Compact(e)
}

// nearest is the candidate that was most likely meant by a mistyped word, or
// "" when none is near. Two edits are a pair of letters that changed places.
func nearest(word string, candidates []string) string {
	best, limit := "", min((len(word)+1)/2, max(2, len(word)/3))+1
	for _, c := range candidates {
		d := distance(word, c)
		// Of two that are as near, the one that begins alike: people swap letters
		// more often than they miss the first one.
		if d < limit || d == limit && best != "" && alike(c, word) && !alike(best, word) {
			best, limit = c, d
		}
	}
	return best
}

func alike(a, b string) bool { return a != "" && b != "" && a[0] == b[0] }

// distance is Levenshtein's: the inserted, deleted and replaced bytes that
// turn a into b. Words that differ by more than a few bytes in length cannot be
// near, so a long key in a hostile file costs nothing.
func distance(a, b string) int {
	if d := len(a) - len(b); d > 8 || d < -8 {
		return 9
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := corner
			if a[i] != b[j] {
				replaced++
			}
			corner = row[j+1]
			row[j+1] = min(replaced, row[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}

// suggest ends a message with the word that was likely meant, or with all that
// there are.
func suggest(word string, candidates []string) string {
	if best := nearest(word, candidates); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(candidates) == 0 {
		return "there is none"
	}
	if len(candidates) > 20 {
		return fmt.Sprintf("there are %d others", len(candidates))
	}
	return "there are " + strings.Join(candidates, ", ")
}
