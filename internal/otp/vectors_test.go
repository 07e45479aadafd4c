package otp

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the answers into the vectors")

const vectorDir = "../../vectors/otp"

// questions and answers are the names of a vector's lines, in the order that files
// have them.
var (
	questions = []string{"about", "door", "secret", "pool", "steps", "digits", "base", "time-step", "time", "from", "expect"}
	answers   = []string{"number", "code", "ports", "bits", "tag"}
)

type vector map[string]string

func (v vector) format() string {
	var b strings.Builder
	for _, names := range [][]string{questions, answers} {
		for _, name := range names {
			if v[name] != "" {
				fmt.Fprintf(&b, "%s: %s\n", name, v[name])
			}
		}
	}
	return b.String()
}

func (v vector) number(t *testing.T, name string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(v[name], 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func readVectors(t *testing.T) map[string]vector {
	t.Helper()
	files, err := filepath.Glob(vectorDir + "/*.txt")
	if err != nil || len(files) < 30 {
		t.Fatalf("%d vectors, %v", len(files), err)
	}
	all := map[string]vector{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		v := vector{}
		for line := range strings.Lines(string(text)) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			v[name] = value
		}
		if v.format() != string(text) && !*update {
			t.Errorf("%s has another spelling than\n%s", file, v.format())
		}
		all[strings.TrimSuffix(filepath.Base(file), ".txt")] = v
	}
	return all
}

// answer computes what a vector's last lines say, or why it is refused.
func (v vector) answer(t *testing.T) (map[string]string, error) {
	secret, err := hex.DecodeString(v["secret"])
	if err != nil {
		t.Fatal(err)
	}
	if len(secret) < MinSecret || len(secret) > MaxSecret {
		return nil, errors.New("the secret is too short or too long")
	}
	moment := time.Unix(v.number(t, "time"), 0)
	if v["digits"] != "" {
		return v.code(t, secret, moment)
	}
	d := Door{Name: v["door"], Pool: spans(t, v["pool"]), Steps: int(v.number(t, "steps")), TimeStep: time.Duration(v.number(t, "time-step")) * time.Second, AnyAddress: v["from"] == "any"}
	if err := d.Check(); err != nil {
		return nil, err
	}
	var addr netip.Addr
	if !d.AnyAddress {
		addr = netip.MustParseAddr(v["from"])
	}
	n := d.Number(moment)
	return said(n, d.Ports(nil, secret, n, addr), d.Bits(), d.Tag(NewKey(secret), n, addr)), nil
}

func (v vector) code(t *testing.T, secret []byte, moment time.Time) (map[string]string, error) {
	d := Digits{Base: uint16(v.number(t, "base")), Count: int(v.number(t, "digits"))}
	if err := d.Check(); err != nil {
		return nil, err
	}
	door := Door{Name: v["door"], TimeStep: CodeStep, AnyAddress: true}
	n, code := door.Number(moment), Code(secret, moment, d.Count)
	out := said(n, d.Ports(code), d.Bits(), door.Tag(NewKey(secret), n, netip.Addr{}))
	out["code"] = code
	return out, nil
}

func said(number uint64, ports []uint16, bits float64, tag [16]byte) map[string]string {
	return map[string]string{
		"number": strconv.FormatUint(number, 10), "ports": strings.Trim(fmt.Sprint(ports), "[]"),
		"bits": fmt.Sprintf("%.2f", bits), "tag": hex.EncodeToString(tag[:]),
	}
}

func spans(t *testing.T, text string) []Span {
	t.Helper()
	var list []Span
	for word := range strings.FieldsSeq(text) {
		low, high, ranged := strings.Cut(word, "-")
		if !ranged {
			high = low
		}
		a, errA := strconv.ParseUint(low, 10, 16)
		b, errB := strconv.ParseUint(high, 10, 16)
		if errA != nil || errB != nil {
			t.Fatalf("%q is no range", word)
		}
		list = append(list, Span{uint16(a), uint16(b)})
	}
	return list
}

func TestVectors(t *testing.T) {
	for name, v := range readVectors(t) {
		got, err := v.answer(t)
		expect := "good"
		if err != nil {
			expect = "refused"
		}
		if expect != v["expect"] {
			t.Errorf("%s is %s: %v", name, expect, err)
		}
		if *update {
			for _, a := range answers {
				v[a] = got[a]
			}
			if err := os.WriteFile(filepath.Join(vectorDir, name+".txt"), []byte(v.format()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		for _, a := range answers {
			if got[a] != v[a] {
				t.Errorf("%s: %s is %s, not %s", name, a, got[a], v[a])
			}
		}
	}
}

// TestDecoder: a program in another language that follows the manual page computes
// every vector. Then one answer is changed, and it must notice.
func TestDecoder(t *testing.T) {
	if _, err := exec.LookPath("python3"); err != nil {
		if os.Geteuid() != 0 {
			t.Skip("needs python3, which only root can install")
		}
		t.Fatal("there is no python3: 'make packages' installs it")
	}
	all := readVectors(t)
	if out, complaint, err := decode(t, vectorDir); err != nil || strings.Count(out, "\n") != len(all) {
		t.Fatalf("%v\n%s%s", err, out, complaint)
	}
	for _, change := range []struct{ name, line, value string }{
		{"sequence-ipv4", "ports", "20001 20002 20003 20004 20005"},
		{"sequence-ipv6", "tag", strings.Repeat("0", 32)},
		{"sequence-any", "bits", "40.00"},
		{"sequence-next-step", "expect", "refused"},
		{"refused-small-pool", "expect", "good"},
		{"code-6", "code", "287083"},
	} {
		dir := t.TempDir()
		for name, v := range all {
			old := v[change.line]
			if name == change.name {
				v[change.line] = change.value
			}
			if err := os.WriteFile(filepath.Join(dir, name+".txt"), []byte(v.format()), 0o644); err != nil {
				t.Fatal(err)
			}
			v[change.line] = old
		}
		out, _, err := decode(t, dir)
		if err == nil || strings.Count(out, "expected") != 1 || !strings.Contains(out, change.name+": ") {
			t.Errorf("with another %s of %s: %v", change.line, change.name, err)
		}
	}
}

func decode(t *testing.T, dir string) (out, complaint string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var printed, said bytes.Buffer
	cmd := exec.CommandContext(ctx, "python3", vectorDir+"/decode.py", dir)
	cmd.Stdout, cmd.Stderr = &printed, &said
	err = cmd.Run()
	return printed.String(), said.String(), err
}
