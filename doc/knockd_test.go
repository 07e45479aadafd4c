package doc_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sallyport/sallyport/internal/knockd"
	"github.com/sallyport/sallyport/internal/testnet"
)

// byName is the pages of the names that the program also goes by.
var byName = map[string]string{"knockd.1": "knockd", "knock.1": "knock"}

// linked gives the program under another name.
func linked(t *testing.T, name string) string {
	t.Helper()
	link := filepath.Join(t.TempDir(), name)
	if err := os.Symlink(testnet.Binary(t), link); err != nil {
		t.Fatal(err)
	}
	return link
}

// takes asks the program under a name whether it takes a command line: options
// are read from left to right, an unknown one prints the usage, and -V at the end
// the version, which leaves all else undone.
func takes(t *testing.T, name string, args []string) (string, bool) {
	t.Helper()
	out, _ := exec.Command(linked(t, name), append(slices.Clone(args), "-V")...).CombinedOutput()
	first, _, _ := strings.Cut(string(out), "\n")
	return string(out), strings.HasPrefix(first, name+" 0.8")
}

// TestCommandsOfTheNamesAreTaken: of knockd and knock as of sallyport itself.
func TestCommandsOfTheNamesAreTaken(t *testing.T) {
	for name, least := range map[string]int{"knockd": 4, "knock": 4} {
		n := 0
		for _, d := range documents(t) {
			for _, args := range d.commands(name) {
				n++
				if out, ok := takes(t, name, args); !ok {
					t.Errorf("%s: '%s %s' is not understood:\n%s", d.path, name, strings.Join(args, " "), out)
				}
			}
		}
		if n < least {
			t.Errorf("only %d commands of %s were found in the documents: the search for them is broken", n, name)
		}
	}
}

// TestWrongCommandsOfTheNamesAreNot shows that the test above can fail.
func TestWrongCommandsOfTheNamesAreNot(t *testing.T) {
	for _, wrong := range []string{"knockd --nativ3", "knockd -x", "knock -x 192.0.2.1 7000", "knock --delai 3 2001:db8::1 7000"} {
		args := strings.Fields(wrong)
		if out, ok := takes(t, args[0], args[1:]); ok {
			t.Errorf("%q was taken for a command:\n%s", wrong, out)
		}
	}
}

var (
	usageLong  = regexp.MustCompile(`--([a-z][a-z0-9-]*)`)
	usageShort = regexp.MustCompile(`(?m)^\s*(-[A-Za-z0-9])\b`)
	pageLong   = regexp.MustCompile(`\bFl -([a-z][a-z0-9-]*)`)
	pageShort  = regexp.MustCompile(`(?m)^\.It .*?\bFl (\w)\b`)
)

// found is all matches but those of --help, sorted.
func found(pattern *regexp.Regexp, text string) []string {
	var list []string
	for _, m := range pattern.FindAllStringSubmatch(text, -1) {
		if word := strings.TrimPrefix(m[1], "-"); word != "help" && word != "h" {
			list = append(list, word)
		}
	}
	return sorted(list)
}

// TestOptionsOfTheNames: the usage and the page name the same options.
func TestOptionsOfTheNames(t *testing.T) {
	for page, name := range byName {
		out, _ := exec.Command(linked(t, name), "-h").CombinedOutput()
		options := strings.Join(section(t, page, "OPTIONS"), "\n")
		same(t, "options of "+name, found(pageLong, options), found(usageLong, string(out)))
		same(t, "short options of "+name, found(pageShort, options), found(usageShort, string(out)))
	}
}

// TestKnockdConfsAreRead: each knockd.conf of the documents, also with the line
// ends of another system.
func TestKnockdConfsAreRead(t *testing.T) {
	n := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "conf" {
				continue
			}
			n++
			doors := 0
			for _, line := range b.lines {
				if strings.HasPrefix(line, "[") && line != "[options]" {
					doors++
				}
			}
			for _, end := range []string{"\n", "\r\n"} {
				f, err := knockd.Parse(d.path, []byte(strings.Join(b.lines, end)))
				if err != nil || f == nil || len(f.Doors) != doors || doors == 0 {
					t.Errorf("a knockd.conf in %s, counted from its own first line: %v; of %d doors it gives %+v", d.path, err, doors, f)
				}
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d files were found in the documents: the search for them is broken", n)
	}
}

// TestDropInsAreUnderstood asks systemd about lines for a unit, behind those of
// the unit that the document speaks of.
func TestDropInsAreUnderstood(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil && os.Geteuid() != 0 {
		t.Skip("needs systemd-analyze, which only root can install")
	}
	n := 0
	for _, d := range documents(t) {
		for _, b := range d.blocks {
			if b.language != "ini" {
				continue
			}
			n++
			unit := filepath.Join(t.TempDir(), "test.service")
			// /bin/true stands for programs that are not on this machine.
			text := regexp.MustCompile(`(?m)^(ExecStartPre=)\S+`).ReplaceAllString(strings.Join(b.lines, "\n"), "$1/bin/true")
			if err := os.WriteFile(unit, []byte("[Service]\nExecStart=/bin/true\n"+text+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput(); err != nil || len(out) > 0 {
				t.Errorf("%s: %v\n%s", d.path, err, out)
			}
		}
	}
	if n < 2 {
		t.Errorf("only %d drop-ins were found in the documents: the search for them is broken", n)
	}
}

// tables gives the rows of a document's tables, without heads and rules, by their
// number of cells.
func tables(t *testing.T, path string) map[int][][]string {
	t.Helper()
	rows := map[int][][]string{}
	head := true
	for line := range strings.Lines(read(t, path)) {
		line, isRow := strings.CutPrefix(strings.TrimSpace(line), "|")
		if !isRow {
			head = true
			continue
		}
		if cells := strings.Split(strings.TrimSuffix(line, "|"), "|"); !head {
			rows[len(cells)] = append(rows[len(cells)], cells)
		}
		head = head && !strings.Contains(line, "---")
	}
	return rows
}

// answered says of each row that --strict-knockd turns back which tests show it, by
// the beginning of its first cell.
var answered = map[string][]string{
	"retransmissions":    {"TestClassic", "TestDifferential", "TestRetransmissionsToADroppedPortAreHarmless"},
	"a wrong packet":     {"TestClassic", "TestDifferential"},
	"several doors":      {"TestClassic", "TestDifferential", "TestKnockdLogOfAPage"},
	"scans":              {"TestClassic", "TestDifferential", "TestAScanInOrderOpensNothing"},
	"`Seq_Timeout`":      {"TestClassic", "TestDifferential"},
	"a knock while open": {"TestAKnockWhileOpen", "TestSettings", "TestAgain"},
	"an interface that is missing at the start": {"TestKnockdStories", "TestInterfacesThatComeAndGo"}, // config.txtar
	"no `Interface` and no `-i`":                {"TestWithoutAnInterface", "TestSeveralInterfaces"},
	"`PidFile`, `LogFile`":                      {"TestCommandLineBeforeFile"},
}

// asked says which tests show what users have asked for.
var asked = map[string][]string{
	"Tolerate duplicates":                    {"TestDifferential", "TestRetransmissionsToADroppedPortAreHarmless"},
	"Several interfaces":                     {"TestSeveralInterfaces"},
	"All interfaces":                         {"TestSeveralInterfaces", "TestInterfacesThatComeAndGo"},
	"tun and PPP interfaces":                 {"TestTunDevice", "TestEveryKindOfInterface"},
	"IPv6":                                   {"TestDifferential", "TestKnockersOpenOurDoor", "TestFamilies", "TestIPv4Only"},
	"Close when the client leaves":           {"TestAGrantEndsWithItsLastConnection"},
	"A knock while open must not open twice": {"TestAKnockWhileOpen", "TestPutOff"},
	"The client's source interface":          {"TestKnockBySourceAndInterface"},
	"No root":                                {"TestWithoutRoot", "TestKnockdWithoutRoot"},
	"A command at the start":                 {"TestAtStart"},
}

var (
	declared = regexp.MustCompile(`(?m)^func (Test\w+)\(t \*testing\.T\)`)
	inNames  = regexp.MustCompile(`(?m)^var names = \[differences\]string\{(.+)\}$`)
	switched = regexp.MustCompile(`^ (.+?) (?:\*\(([a-z ]+)\)\* )?$`)
)

// testNames gives the tests of the whole module.
func testNames(t *testing.T) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "_test.go") {
			list = append(list, found(declared, read(t, path))...)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// shown compares the rows of a table with those that have tests, and looks for these.
func shown(t *testing.T, what string, rows []string, tests map[string][]string) {
	t.Helper()
	same(t, what, sorted(rows), names(tests))
	real := testNames(t)
	for row, list := range tests {
		for _, name := range list {
			if !slices.Contains(real, name) {
				t.Errorf("%q: there is no %s", row, name)
			}
		}
	}
}

// TestDifferencesAreAnswered: the table says of each difference what becomes of it
// under --strict-knockd, and names those that the differential test counts.
func TestDifferencesAreAnswered(t *testing.T) {
	rows := tables(t, "knockd.md")
	var turnedBack, switches []string
	for _, row := range rows[4] {
		first := switched.FindStringSubmatch(row[0])
		if first == nil {
			t.Fatalf("the first cell of %q can't be read", row)
		}
		if first[2] != "" {
			switches = append(switches, first[2])
		}
		switch last := strings.TrimSpace(row[3]); last {
		case "as knockd":
			turnedBack = append(turnedBack, first[1])
		case "stays":
		default:
			t.Errorf("%s: with --strict-knockd: %q", row[0], last)
		}
	}
	shown(t, "what --strict-knockd turns back", turnedBack, answered)
	m := inNames.FindStringSubmatch(read(t, root+"/integration/differential/model_test.go"))
	if m == nil {
		t.Fatal("the differential test has no names of its differences")
	}
	var counted []string
	for name := range strings.SplitSeq(m[1], ", ") {
		counted = append(counted, strings.Trim(name, `"`))
	}
	if len(switches) != len(sorted(slices.Clone(switches))) {
		t.Errorf("a difference has two rows: %q", switches)
	}
	same(t, "differences", sorted(switches), sorted(counted))
}

// TestRequestsAreAnswered: each has its line, and its tests.
func TestRequestsAreAnswered(t *testing.T) {
	var rows []string
	for _, row := range tables(t, "knockd.md")[2] {
		rows = append(rows, strings.TrimSpace(row[0]))
	}
	shown(t, "requests", rows, asked)
}

// TestTablesAreWhole: nothing is left open, and no table is overlooked.
func TestTablesAreWhole(t *testing.T) {
	rows := tables(t, "knockd.md")
	for n, least := range map[int]int{4: 18, 3: 4, 2: 10} {
		if len(rows[n]) < least {
			t.Errorf("the tables with %d columns have %d rows, want %d", n, len(rows[n]), least)
		}
		for _, row := range rows[n] {
			if slices.ContainsFunc(row, func(cell string) bool { return strings.TrimSpace(cell) == "" }) {
				t.Errorf("a cell is empty: %q", row)
			}
		}
	}
	if len(rows) != 3 {
		t.Errorf("rows have %d different numbers of cells, want 3", len(rows))
	}
}

// logLines are knockd's own words, found by running knockd 0.8.
var logLines = []string{
	"starting up, listening on %", "%: %: Stage %", "%: %: OPEN SESAME", "%: running command: %",
	"%: command returned non-zero status code (%)", "%: %: command timeout", "%: %: sequence timeout (stage %)",
	"re-reading config file: %", "re-opening log file: %", "shutting down",
	"no more sequences left in the one time sequences file for door % --> disabling the door",
	"error while disabling used one time sequence for door % --> disabling the door",
}

// TestLogLinesAreKnockds: the page has these lines and no others, and the program
// has the words.
func TestLogLinesAreKnockds(t *testing.T) {
	var documented []string
	for _, line := range section(t, "knockd.1", "DIAGNOSTICS") {
		if item, ok := strings.CutPrefix(line, ".It "); ok {
			documented = append(documented, plainText(item))
		}
	}
	same(t, "log lines", sorted(documented), sorted(slices.Clone(logLines)))
	texts := strings.Join(literals(t, root+"/cmd/sallyport", root+"/internal/knockd"), "\x00")
	for _, line := range logLines {
		for words := range strings.SplitSeq(line, "%") {
			if words = strings.Trim(words, ": ()"); words != "" && !strings.Contains(texts, words) {
				t.Errorf("the program never says %q", words)
			}
		}
	}
}

var argument = regexp.MustCompile(`Ar \w+`)

// plainText gives an item's text with % for each argument.
func plainText(item string) string {
	s := argument.ReplaceAllString(item, "%")
	s = strings.NewReplacer(" Ns Li \\&", "", " Ns Li ", "", " Ns ", "", "Li ", "").Replace(s)
	return s
}
