//go:build linux

package warden

import (
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/sallyport/sallyport/internal/border"
	"github.com/sallyport/sallyport/internal/config"
	"github.com/sallyport/sallyport/internal/keys"
	"github.com/sallyport/sallyport/internal/onetime"
	"github.com/sallyport/sallyport/internal/sequence"
)

// LowLines is from how few unused lines on a list is worth a warning: time to make the
// next one and to take it to the other side.
const LowLines = 10

func hasList(cfg *config.Config) bool {
	return slices.ContainsFunc(cfg.Knocks, func(k config.Knock) bool { return k.List != "" })
}

// readLists fills in the lines of a config that is to come into use.
func (o *Options) readLists(cfg *config.Config, text []byte) error {
	left, err := Lists(cfg, o.Config, text, !o.Observe)
	if err != nil {
		return err
	}
	for i := range cfg.Knocks {
		if k := &cfg.Knocks[i]; k.List != "" {
			sayLeft(o.Log, k, left[i])
		}
	}
	return nil
}

func sayLeft(log *slog.Logger, k *config.Knock, left int) {
	switch {
	case left == 0:
		log.Error("the list of one-time sequences is used up: nobody can knock by this knock until it has new lines ('sallyport keygen --otp-list' makes some)", "knock", k.Name, "file", k.List)
	case left < LowLines:
		log.Warn("the list of one-time sequences is nearly used up", "knock", k.Name, "file", k.List, "lines left", left)
	}
}

// Lists reads the lists that a config's knocks name, and gives how many unused lines
// each has, by knock. The config's text is for the places in errors. A list that is to
// be marked and can't be is an error: each of its lines would be good for ever.
func Lists(cfg *config.Config, file string, text []byte, mark bool) (left []int, err error) {
	left = make([]int, len(cfg.Knocks))
	for i := range cfg.Knocks {
		k := &cfg.Knocks[i]
		if k.List == "" {
			continue
		}
		lines, faults, err := readList(cfg, i, mark)
		if err == nil {
			err = sharedList(cfg, i)
		}
		if err != nil {
			path := "knock." + k.Name + ".list"
			return nil, config.Errors{{File: file, Line: config.LineOf(text, path), Text: path + ": " + err.Error()}}
		}
		if len(faults) > 0 {
			return nil, faults
		}
		left[i] = len(lines)
		k.SetLines(lines)
	}
	return left, nil
}

// sharedList refuses a file that another knock has too: a line would be good for both.
func sharedList(cfg *config.Config, i int) error {
	for _, other := range cfg.Knocks[:i] {
		if other.List == cfg.Knocks[i].List {
			return fmt.Errorf("this is the list of knock.%s, and a line of it would make both; give each its own", other.Name)
		}
	}
	return nil
}

// readList gives a list's unused lines, and what is wrong with others.
func readList(cfg *config.Config, i int, mark bool) (lines [][]sequence.Step, faults config.Errors, err error) {
	path := cfg.Knocks[i].List
	text, err := keys.List(path)
	if err != nil {
		return nil, nil, err
	}
	if mark {
		f, err := onetime.Open(path)
		if err != nil {
			return nil, nil, fmt.Errorf("%s %w; under systemd it has to be below /var/lib/sallyport, or in a ReadWritePaths= of the unit", keys.Word(path), err)
		}
		f.Close()
	}
	good, bad := onetime.Sequences(onetime.LinesOf(text))
	for _, s := range good {
		if fault := cfg.LineFault(i, s.Steps); fault != "" {
			bad = append(bad, onetime.Fault{Line: s.Number, Text: fault})
		}
		lines = append(lines, s.Steps)
	}
	for _, b := range bad {
		faults = append(faults, config.Error{File: path, Line: b.Line, Text: "the line is no good: " + b.Text})
	}
	return lines, faults, nil
}

// spendLine marks a line of a list as used, and those before it, and turns to the next
// ones. Only then what it was made for is done.
func (w *warden) spendLine(m *border.Spent) {
	k := &w.cfg.Knocks[m.Knock]
	made := k.Lines()
	if int(m.Ahead) >= len(made) || len(made[m.Ahead]) == 0 {
		return // an engine that speaks the truth knows the lines
	}
	rest, err := onetime.Spend(k.List, made[m.Ahead])
	if err == nil || errors.Is(err, onetime.ErrSpentElsewhere) {
		w.takeLines(k, rest)
	} else {
		w.takeLines(k, nil) // what can't be marked must not be good again
		w.unspent[k.List] = made[m.Ahead]
	}
	w.gate.marked[int(m.Knock)] = err == nil
	if err != nil {
		w.log.Error("a one-time sequence was not marked as used, so what it was made for is not done", "knock", k.Name, "file", k.List, "error", err)
		return
	}
	w.log.Info("a one-time sequence was used", "knock", k.Name, "lines left", len(rest), "skipped", m.Ahead)
	sayLeft(w.log, k, len(rest))
}

// takeLines has the next config take these lines. Those of them that have become wrong
// meanwhile are left out.
func (w *warden) takeLines(k *config.Knock, rest []onetime.Sequence) {
	base, i := w.newest(k)
	if i < 0 {
		return // a reload has taken the knock out
	}
	var lines [][]sequence.Step
	for _, s := range rest {
		if base.LineFault(i, s.Steps) == "" {
			lines = append(lines, s.Steps)
		}
	}
	w.setLines(base, i, lines)
}

// setLines turns to a config in which a knock has these lines next, unless it has them.
func (w *warden) setLines(base *config.Config, i int, lines [][]sequence.Step) {
	next := *base
	next.Knocks = slices.Clone(base.Knocks)
	next.Knocks[i].SetLines(lines)
	if !slices.EqualFunc(next.Knocks[i].Lines(), base.Knocks[i].Lines(), slices.Equal) {
		w.next = &next
	}
}

// refreshLists looks whether somebody else has marked lines, or added some: another
// daemon with the same file, or its owner.
func (w *warden) refreshLists() {
	if w.options.Observe {
		return
	}
	for i := range w.cfg.Knocks {
		k := &w.cfg.Knocks[i]
		if k.List == "" {
			continue
		}
		if !w.spendOwed(k.List) {
			continue
		}
		lines, faults, err := readList(w.cfg, i, true)
		if err == nil && len(faults) > 0 {
			err = faults
		}
		if err != nil {
			w.ring.listFault(k, err)
			continue
		}
		delete(w.ring.lists, k.Name)
		if base, at := w.newest(k); at >= 0 {
			w.setLines(base, at, lines)
		}
	}
}

// spendOwed marks the line that could not be marked when it was made, and reports
// whether none is left. Before that no line of the file is good again: who read that
// one on its way could make it.
func (w *warden) spendOwed(list string) bool {
	made, owed := w.unspent[list]
	if !owed {
		return true
	}
	if _, err := onetime.Spend(list, made); err != nil && !errors.Is(err, onetime.ErrSpentElsewhere) {
		return false // as was said
	}
	delete(w.unspent, list)
	return true
}

// listFault tells of a fault in a list once.
func (r *keyring) listFault(k *config.Knock, err error) {
	if r.lists[k.Name] == err.Error() {
		return
	}
	if r.lists == nil {
		r.lists = map[string]string{}
	}
	r.lists[k.Name] = err.Error()
	r.log.Error("the list of one-time sequences changed and can't be used; the lines that were read before are", "knock", k.Name, "error", err)
}
