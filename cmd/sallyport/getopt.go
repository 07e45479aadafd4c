package main

import (
	"fmt"
	"os"
	"strings"
)

// longOption is an option that is spelled out behind two dashes. Letter is what
// it is reported as, whether or not there is a short option of that letter.
type longOption struct {
	name   string
	letter byte
	value  bool // it takes a value
}

// option is one option of a command line.
type option struct {
	letter byte
	value  string
}

// getopt reads a command line (without the program's name, which error texts
// begin with) as getopt_long(3) of glibc does: short names letters, each
// followed by a colon if it takes a value; options and operands in any order;
// "--" ends the options; letters in clusters; a value in the same word or the
// next; long options cut short as long as one is meant. The error is glibc's
// first one, with the options that stand before it.
//
// There is no library for it because the users of knock and knockd depend on
// glibc's exact reading: in init scripts and option files "-di eth0", "--conf=x"
// and "knock host 7000 -u" all occur.
func getopt(program string, args []string, short string, long []longOption) (options []option, operands []string, err error) {
	// As glibc: by POSIX (XBD 12.2, guideline 9) the first operand ends the options.
	_, posix := os.LookupEnv("POSIXLY_CORRECT")
	for len(args) > 0 {
		word := args[0]
		args = args[1:]
		var found []option
		switch {
		case word == "--":
			return options, append(operands, args...), nil
		case len(word) < 2 || word[0] != '-':
			operands = append(operands, word)
			if posix {
				return options, append(operands, args...), nil
			}
		case word[1] == '-':
			found, args, err = longWord(word[2:], args, long)
		default:
			found, args, err = cluster(word[1:], args, short)
		}
		options = append(options, found...)
		if err != nil {
			return options, operands, fmt.Errorf("%s: %w", program, err)
		}
	}
	return options, operands, nil
}

// cluster reads the letters behind one dash.
func cluster(letters string, args []string, short string) (found []option, rest []string, err error) {
	for letters != "" {
		letter := letters[0]
		letters = letters[1:]
		i := strings.IndexByte(short, letter)
		if i < 0 || letter == ':' || letter == ';' {
			return found, args, fmt.Errorf("invalid option -- '%s'", []byte{letter})
		}
		if !strings.HasPrefix(short[i+1:], ":") {
			found = append(found, option{letter: letter})
			continue
		}
		if letters == "" && len(args) == 0 {
			return found, args, fmt.Errorf("option requires an argument -- '%c'", letter)
		}
		if letters == "" { // a dash in front makes no difference here
			letters, args = args[0], args[1:]
		}
		return append(found, option{letter, letters}), args, nil
	}
	return found, args, nil
}

// longWord reads what is behind two dashes.
func longWord(word string, args []string, long []longOption) (found []option, rest []string, err error) {
	name, value, attached := strings.Cut(word, "=")
	meant := candidates(name, long)
	switch {
	case len(meant) == 0:
		return nil, args, fmt.Errorf("unrecognized option '--%s'", word)
	case len(meant) > 1:
		text := fmt.Sprintf("option '--%s' is ambiguous; possibilities:", word)
		for _, o := range meant {
			text += " '--" + o.name + "'"
		}
		return nil, args, fmt.Errorf("%s", text)
	case attached && !meant[0].value:
		return nil, args, fmt.Errorf("option '--%s' doesn't allow an argument", meant[0].name)
	case meant[0].value && !attached && len(args) == 0:
		return nil, args, fmt.Errorf("option '--%s' requires an argument", meant[0].name)
	case meant[0].value && !attached:
		value, args = args[0], args[1:]
	}
	return []option{{meant[0].letter, value}}, args, nil
}

// candidates are the options that name may be cut from: one alone if it is
// whole. (Two spellings of one option, of which glibc would take either, neither
// program has.)
func candidates(name string, long []longOption) (meant []longOption) {
	for _, o := range long {
		if o.name == name {
			return []longOption{o}
		}
	}
	for _, o := range long {
		if strings.HasPrefix(o.name, name) {
			meant = append(meant, o)
		}
	}
	return meant
}
