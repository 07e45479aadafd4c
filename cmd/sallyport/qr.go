//go:build linux

package main

import (
	"errors"
	"strings"

	"rsc.io/qr"
)

// quietZone is how many light modules must surround a code (ISO/IEC 18004).
const quietZone = 4

// The colours are told outright, black on white: many readers don't know a
// code whose light and dark are swapped, and terminals are dark or light. They
// are of the 256 because themes change the first 16.
const (
	blackOnWhite = "\x1b[38;5;16;48;5;231m"
	usualColours = "\x1b[0m"
)

// drawQR draws a text as a code for terminals, two modules in each letter, and
// gives its width in columns.
func drawQR(text string) (drawing string, width int, err error) {
	code, err := qr.Encode(text, qr.L)
	if err != nil {
		return "", 0, errors.New("it is too long for one")
	}
	width = code.Size + 2*quietZone
	var b strings.Builder
	for y := 0; y < width; y += 2 {
		b.WriteString(blackOnWhite)
		for x := range width {
			b.WriteString(halves(dark(code, x, y), dark(code, x, y+1)))
		}
		b.WriteString(usualColours + "\n")
	}
	return b.String(), width, nil
}

func dark(code *qr.Code, x, y int) bool { return code.Black(x-quietZone, y-quietZone) }

func halves(upper, lower bool) string {
	switch {
	case upper && lower:
		return "█"
	case upper:
		return "▀"
	case lower:
		return "▄"
	}
	return " "
}
