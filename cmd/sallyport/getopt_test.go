package main

import (
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// These are knock's, in the order in which the original lists them, and some of
// which one is the beginning of another.
const testLetters = "vud:hV46"

var testLong = []longOption{
	{"verbose", 'v', false}, {"udp", 'u', false}, {"delay", 'd', true}, {"help", 'h', false},
	{"version", 'V', false}, {"ipv4", '4', false}, {"ipv6", '6', false},
	{"colour", 'c', false}, {"color", 'k', false}, {"colours", 's', true},
}

// glibc is what getopt(1), which calls getopt_long(3), makes of a command line:
// options and operands in its normal form, and the first error.
func glibc(t *testing.T, args []string, env ...string) (words []string, first string) {
	t.Helper()
	var names []string
	for _, o := range testLong {
		if names = append(names, o.name); o.value {
			names[len(names)-1] += ":"
		}
	}
	all := append([]string{"-n", "prog", "-o", testLetters, "-l", strings.Join(names, ","), "--"}, args...)
	cmd := exec.Command("getopt", all...)
	cmd.Env = env
	var out, bad strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &bad
	if err := cmd.Run(); err != nil && cmd.ProcessState.ExitCode() != 1 {
		t.Fatalf("getopt %q: %v %s", all, err, bad.String())
	}
	first, _, _ = strings.Cut(bad.String(), "\n")
	return strings.Fields(out.String()), first
}

// normal is a result of ours as getopt(1) prints it, but for the names of the
// options, which are letters here.
func normal(options []option, operands []string) (words []string) {
	for _, o := range options {
		words = append(words, "-"+string(rune(o.letter)))
		if slices.ContainsFunc(testLong, func(l longOption) bool { return l.letter == o.letter && l.value }) {
			words = append(words, "'"+o.value+"'")
		}
	}
	words = append(words, "--")
	for _, o := range operands {
		words = append(words, "'"+o+"'")
	}
	return words
}

// asLetters puts letters in the place of long names.
func asLetters(words []string) []string {
	words = slices.Clone(words)
	for i, w := range words {
		for _, o := range testLong {
			if w == "--"+o.name {
				words[i] = "-" + string(rune(o.letter))
			}
		}
	}
	return words
}

// sameAsGlibc compares one command line. glibc goes on after an error; only what
// stands before the first is compared then.
func sameAsGlibc(t *testing.T, args []string, env ...string) (failed bool) {
	t.Helper()
	want, first := glibc(t, args, env...)
	options, operands, err := getopt("prog", args, testLetters, testLong)
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != first {
		t.Errorf("%q: %q, glibc says %q", args, text, first)
	}
	got, want := normal(options, operands), asLetters(want)
	if err != nil {
		got = got[:slices.Index(got, "--")]
		want = want[:min(len(got), len(want))]
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q: %q, glibc makes %q of it", args, got, want)
	}
	return err != nil
}

var commandLines = [][]string{
	nil,
	{"host", "7000"}, {"host", "7000", "-u"}, {"-u", "host", "-d", "5", "7000"}, {"-ud5", "host", "1"},
	{"-vud", "5", "host"}, {"-d=5"}, {"-d", "-5"}, {"-d", "--"}, {"-d"}, {"-ud"}, {"-dd"}, {"-d", ""}, {""},
	{"--", "-u", "--", "x"}, {"a", "--", "-u"}, {"-u", "a", "--", "-v", "b"}, {"-"}, {"-", "-u"}, {"-u-"}, {"-u", "-v-"},
	{"--delay", "5"}, {"--delay=5"}, {"--delay="}, {"--delay", ""}, {"--delay"}, {"--del=5", "a"}, {"--d", "--udp"}, {"--delay=a=b"},
	{"--u"}, {"--udp=1"}, {"--u=1"}, {"--udp="}, {"--v"}, {"--ver"}, {"--verb"}, {"--vers"}, {"--ipv"}, {"--ipv4"}, {"--ip=x"},
	{"--zzz"}, {"--zzz=4"}, {"--=x"}, {"--="}, {"---"}, {"---u"}, {"--udpx"}, {"--Udp"}, {"-x"}, {"-ux"}, {"-:"}, {"-;"}, {"-W"}, {"-é"},
	{"--col"}, {"--colo"}, {"--colour"}, {"--colours", "1"}, {"--color"}, {"--colou"},
	{"-x", "-y"}, {"a", "-x", "b", "--zzz"}, {"-u", "--zzz", "-v"},
}

func TestGetoptReadsAsGlibc(t *testing.T) {
	for _, args := range commandLines {
		sameAsGlibc(t, args)
	}
}

func TestGetoptUnderPOSIX(t *testing.T) {
	t.Setenv("POSIXLY_CORRECT", "")
	for _, args := range commandLines {
		sameAsGlibc(t, args, "POSIXLY_CORRECT=")
	}
}

// Random words of the same stock: what a table leaves out.
func TestGetoptReadsRandomLinesAsGlibc(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	failed := 0
	for range 300 {
		var args []string
		for range rng.IntN(7) {
			words := commandLines[1+rng.IntN(len(commandLines)-1)]
			args = append(args, words[rng.IntN(len(words))])
		}
		if sameAsGlibc(t, args) {
			failed++
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
	if failed == 0 || failed == 300 {
		t.Errorf("seed %d: %d of 300 lines were wrong: not a good mixture", seed, failed)
	}
}
