package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"strconv"
	"strings"
	"time"
)

// stampDigits is the length of a counter's file in bytes, but for its line end:
// what the largest int64 has. It never changes, so that a new number covers the
// old one whole.
const stampDigits = 19

// nextStamp gives a number that no knock of this user has had, for servers with
// clock = "none": the time, or one more than the last. It is on the disk before
// it is given, since a server refuses what it has heard. The lock keeps two
// knocks at once apart; it lies on the file itself, which is never replaced.
func nextStamp(file string, now time.Time) (int64, error) {
	f, err := os.OpenFile(file, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return 0, fmt.Errorf("the counter %s can't be opened: %w", file, pathCause(err))
	}
	defer f.Close() // ends the lock
	if err := lock(f); err != nil {
		return 0, fmt.Errorf("the counter %s can't be locked: %w", file, err)
	}
	last, err := readStamp(f)
	if err != nil {
		return 0, fmt.Errorf("the counter %s %w; remove it, and a knock counts on from the time", file, err)
	}
	if last == math.MaxInt64 {
		return 0, fmt.Errorf("the counter %s has reached its end: make a new key", file)
	}
	next := max(now.UnixNano(), last+1)
	_, err = f.WriteAt(fmt.Appendf(nil, "%0*d\n", stampDigits, next), 0)
	if err = errors.Join(err, f.Sync()); err != nil {
		return 0, fmt.Errorf("the counter %s can't be written: %w", file, err)
	}
	return next, nil
}

// readStamp reads the last number; 0 in a new file.
func readStamp(f *os.File) (int64, error) {
	text, err := io.ReadAll(io.LimitReader(f, stampDigits+2))
	if err != nil || len(text) == 0 {
		return 0, err
	}
	line, ok := strings.CutSuffix(string(text), "\n")
	n, err := strconv.ParseUint(line, 10, 63)
	if !ok || len(line) != stampDigits || err != nil {
		return 0, errors.New("has something else in it than a number")
	}
	return int64(n), nil
}
