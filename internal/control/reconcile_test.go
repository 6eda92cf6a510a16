package control

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

type counter struct {
	Recorder
	repaired []string
}

func (c *counter) Repaired(kind string) { c.repaired = append(c.repaired, kind) }

func TestPatience(t *testing.T) {
	var log strings.Builder
	count := &counter{}
	s := New(Options{Recorder: count, Log: slog.New(slog.NewTextHandler(&log, nil))})
	r, now := &s.drift, time.Now()
	f := Finding{Kind: DriftOrphanVolume, Subject: "a", Problem: "p", Will: "remove it", Repair: func(context.Context) error { return nil }}
	other := Finding{Kind: DriftMissingVolume, Subject: "b", Problem: "q", Advice: "do"}
	at := func(after time.Duration, found ...Finding) (due []Finding) {
		return r.note(found, now.Add(after), time.Minute)
	}
	l := &look{Site: Site{Log: s.log}}

	if due := at(0, f, other); len(due) != 0 || len(r.report(now, l).Open) != 0 {
		t.Error("one look is enough")
	}
	if due := at(30*time.Second, f, other); len(due) != 0 || len(r.report(now, l).Open) != 2 {
		t.Error("patience is not kept, or what lasts is not shown")
	}
	at(59*time.Second, other)
	if due := at(2*time.Minute, f, other); len(due) != 0 {
		t.Error("a drift that was over in between is old")
	}
	due := at(3*time.Minute, f, other)
	if len(due) != 1 || due[0].Subject != "a" {
		t.Fatalf("%+v", due)
	}

	s.outcome(t.Context(), f, errBusy)
	if d := r.report(now, l).Open; d[1].State != DriftWaiting || d[0].State != DriftReported || d[0].Severity != Critical {
		t.Errorf("%+v", d)
	}
	for range 3 {
		s.outcome(t.Context(), f, core.Errorf(core.KindUnavailable, "", "no"))
		at(4*time.Minute, f, other)
	}
	if d := r.report(now, l).Open; d[1].State != DriftFailed || d[1].Error != "no" {
		t.Errorf("%+v", d)
	}
	s.outcome(t.Context(), f, nil)
	rep := r.report(now, l)
	if len(rep.Open) != 1 || len(rep.Repaired) != 1 || rep.Repaired[0].State != DriftRepaired || rep.Repaired[0].Error != "" || len(count.repaired) != 1 {
		t.Errorf("%+v, counted %v", rep, count.repaired)
	}
	for what, times := range map[string]int{"cannot repair": 1, "found a drift": 1, "repaired a drift": 1} {
		if n := strings.Count(log.String(), what); n != times {
			t.Errorf("%q was logged %d times, want %d:\n%s", what, n, times, log.String())
		}
	}
	if due := r.note([]Finding{f}, now, 0); len(due) != 1 {
		t.Error("without patience the first look acts")
	}
	s.outcome(t.Context(), f, errNothing)
	if n := s.OpenDrifts(); n != 0 || len(count.repaired) != 1 {
		t.Errorf("a look that was overtaken counts: %d open, repaired %v", n, count.repaired)
	}
	f.Now, f.Repair = true, func(context.Context) error { return errors.New("x") }
	if due := at(time.Hour, f); len(due) != 1 || s.OpenDrifts() != 1 {
		t.Error("what is certain at once waits")
	}
}

func TestSuspiciousOrphans(t *testing.T) {
	for _, tc := range []struct {
		orphans, owned int
		doubt          bool
	}{{0, 0, false}, {1, 0, true}, {1, 1, false}, {3, 1, false}, {4, 1, true}, {4, 15, true}, {4, 16, false}, {250, 1000, false}, {251, 1000, true}} {
		l := &look{}
		l.judgeOrphans(tc.orphans, tc.owned)
		if (l.doubt != "") != tc.doubt {
			t.Errorf("%d orphans beside %d owned: doubt %q", tc.orphans, tc.owned, l.doubt)
		}
	}
}

// TestPosition goes back in the control database's history.
func TestPosition(t *testing.T) {
	dir := t.TempDir()
	at := func(system string, lsn core.LSN) []Finding {
		s := New(Options{Log: slog.New(slog.DiscardHandler)})
		l := &look{s: s, at: time.Now(), Site: Site{DataDir: dir, Log: s.log}}
		l.inv.Position = store.Position{System: system, LSN: lsn}
		found := l.checkPosition()
		if (len(found) > 0) != (l.doubt != "") {
			t.Errorf("findings %v, doubt %q", found, l.doubt)
		}
		return found
	}
	for i, step := range []struct {
		system string
		lsn    core.LSN
		doubt  bool
	}{{"", 0, false}, {"1", 100, false}, {"1", 200, false}, {"1", 200, false}, {"1", 150, true}, {"1", 300, true}} {
		if found := at(step.system, step.lsn); (len(found) > 0) != step.doubt {
			t.Errorf("step %d: %+v", i, found)
		}
	}
	dir = t.TempDir()
	at("1", 100)
	if found := at("2", 200); len(found) != 1 {
		t.Error("another cluster is not noticed")
	}
}
