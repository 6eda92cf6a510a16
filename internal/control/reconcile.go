package control

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// Severity says how bad a drift is.
type Severity string

// The severities, from harmless to bad.
const (
	Notice   Severity = "notice"   // costs a little, breaks nothing
	Warning  Severity = "warning"  // something does not work as it should, or will not
	Critical Severity = "critical" // data or computes cannot be reached
)

// DriftKind names one way in which what is differs from what should be.
type DriftKind string

// Finding is one difference, as a check sees it.
type Finding struct {
	Kind    DriftKind
	Subject string // an id, a path, a pid: the same from look to look
	Problem string // a sentence for people
	Advice  string // what a person does about it; "" when the server does it all
	// Will says what the server does about it, once it is sure: "remove it". "" when a person must decide.
	Will string
	// Repair does so. It looks again, where nothing else can change it, before it acts, and may find nothing to do.
	Repair func(ctx context.Context) error
	// Now means that the first look is certain: there is nothing to wait for.
	Now bool
}

// DriftState is what happens with a drift.
type DriftState string

// The states of a drift.
const (
	DriftReported DriftState = "reported" // a person must decide
	DriftWaiting  DriftState = "waiting"  // the server repairs it if it lasts
	DriftFailed   DriftState = "failed"   // the server tried, and tries again
	DriftRepaired DriftState = "repaired"
)

// Drift is a difference that was there at two looks, and what is done about it.
type Drift struct {
	Kind     DriftKind  `json:"kind"`
	Severity Severity   `json:"severity"`
	Subject  string     `json:"subject"`
	Problem  string     `json:"problem"`
	Advice   string     `json:"advice,omitempty"`
	Will     string     `json:"will,omitempty"` // what the server does about it
	State    DriftState `json:"state"`
	Since    time.Time  `json:"since"`
	At       *time.Time `json:"repaired_at,omitempty"`
	Error    string     `json:"error,omitempty"` // why the last try failed

	looks  int
	logged bool
}

// Report is the outcome of a look.
type Report struct {
	At        time.Time      `json:"at"`
	Took      time.Duration  `json:"took_ns"`
	Looked    map[string]int `json:"looked_at"` // how many of what
	Open      []Drift        `json:"open"`
	Repaired  []Drift        `json:"repaired"` // since the server started, the newest first, at most 50
	Unchecked []string       `json:"unchecked,omitempty"`
}

// keepRepaired is how many repairs a report remembers.
const keepRepaired = 50

// ReconcileOptions say how often a server compares what should be with what is.
type ReconcileOptions struct {
	Every    time.Duration // between two looks; 0 takes half a minute
	Patience time.Duration // how long a difference must last before it is repaired; 0 repairs at the first look
	LogDir   string        // where computes log
	// Checks are comparisons of what other rooms own.
	Checks []func(ctx context.Context) []Finding
}

// reconciler remembers what the looks have found.
type reconciler struct {
	look  sync.Mutex // one look at a time
	nudge chan struct{}

	positioned time.Time // see checkPosition; used under look

	mu       sync.Mutex
	open     map[string]*Drift
	repaired []Drift
}

var errBusy = errors.New("somebody works on it; the next look tries again")

// Nudge asks for a look soon, because something went wrong that may be due to a drift.
func (s *Service) Nudge() {
	select {
	case s.drift.nudge <- struct{}{}:
	default:
	}
}

// reconcileLoop looks at the start, regularly, and when it is nudged.
func (s *Service) reconcileLoop(ctx context.Context) {
	tick := time.NewTicker(cmp.Or(s.Reconcile.Every, 30*time.Second))
	defer tick.Stop()
	for {
		if _, err := s.Look(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot compare what should be with what is", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-s.drift.nudge:
		}
	}
}

// Look compares what should be with what is, repairs what is certain, and returns what is open.
func (s *Service) Look(ctx context.Context) (Report, error) {
	s.drift.look.Lock()
	defer s.drift.look.Unlock()
	began := time.Now()
	l, err := s.gather(ctx)
	if err != nil {
		return Report{}, err
	}
	found := l.check()
	for _, check := range s.Reconcile.Checks {
		found = append(found, check(ctx)...)
	}
	if ctx.Err() != nil {
		return Report{}, ctx.Err()
	}
	due := s.drift.note(found, began, s.Reconcile.Patience)
	for _, f := range due {
		err := f.Repair(ctx)
		if ctx.Err() != nil {
			return Report{}, ctx.Err()
		}
		s.outcome(ctx, f, err)
	}
	return s.drift.report(began, l), nil
}

// OpenDrifts is how many differences the last look and the one before have seen.
func (s *Service) OpenDrifts() int {
	n := 0
	for _, count := range s.DriftCounts() {
		n += count
	}
	return n
}

// FreshReport looks now. What it sees for the first time it looks at twice, because much of what a single look sees is work
// that is under way.
func (s *Service) FreshReport(ctx context.Context) (Report, error) {
	r, err := s.Look(ctx)
	if err != nil || !s.drift.fresh() {
		return r, err
	}
	select {
	case <-ctx.Done():
		return r, ctx.Err()
	case <-time.After(secondLook):
	}
	return s.Look(ctx)
}

const secondLook = time.Second

// DriftCounts is how many open drifts there are of each kind, for metrics.
func (s *Service) DriftCounts() map[string]int {
	s.drift.mu.Lock()
	defer s.drift.mu.Unlock()
	counts := map[string]int{}
	for kind := range driftKinds {
		counts[string(kind)] = 0
	}
	for _, d := range s.drift.open {
		if d.looks > 1 {
			counts[string(d.Kind)]++
		}
	}
	return counts
}

func driftKey(kind DriftKind, subject string) string { return string(kind) + "\x00" + subject }

// note remembers what a look found and returns what is to be repaired now.
func (r *reconciler) note(found []Finding, now time.Time, patience time.Duration) []Finding {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open == nil {
		r.open = map[string]*Drift{}
	}
	seen := map[string]bool{}
	var due []Finding
	for _, f := range found {
		key := driftKey(f.Kind, f.Subject)
		if seen[key] {
			continue
		}
		seen[key] = true
		d := r.open[key]
		if d == nil {
			d = &Drift{Kind: f.Kind, Severity: driftKinds[f.Kind], Subject: f.Subject, Since: now}
			r.open[key] = d
		}
		d.Problem, d.Advice, d.Will = f.Problem, f.Advice, f.Will
		d.looks++
		if f.Now {
			d.looks = max(d.looks, 2)
		}
		switch {
		case f.Repair == nil:
			d.State, d.Error = DriftReported, ""
		case d.State != DriftFailed:
			d.State = DriftWaiting
		}
		if f.Repair != nil && (f.Now || patience <= 0 || (d.looks > 1 && now.Sub(d.Since) >= patience)) {
			due = append(due, f)
		}
	}
	for key := range r.open {
		if !seen[key] {
			delete(r.open, key) // over, by itself or by somebody else
		}
	}
	return due
}

// outcome records a try to repair. Each drift is logged once, not at every look.
func (s *Service) outcome(ctx context.Context, f Finding, err error) {
	r := &s.drift
	r.mu.Lock()
	defer r.mu.Unlock()
	key := driftKey(f.Kind, f.Subject)
	d := r.open[key]
	if d == nil {
		return
	}
	switch {
	case errors.Is(err, errNothing):
		delete(r.open, key)
	case errors.Is(err, errBusy):
		d.State = DriftWaiting
	case err != nil:
		text := core.UserMessage(err)
		if core.KindOf(err) == core.KindInternal {
			text = err.Error() // for the operator, who sees the log too
		}
		if d.Error != text {
			s.log.Error("cannot repair a drift; it is tried again", "kind", f.Kind, "subject", f.Subject, "problem", f.Problem, "error", err)
		}
		d.State, d.Error = DriftFailed, text
	default:
		now := time.Now()
		done := *d
		done.State, done.At, done.Error = DriftRepaired, &now, ""
		level := slog.LevelWarn
		if d.Severity == Notice {
			level = slog.LevelInfo
		}
		s.log.Log(ctx, level, "repaired a drift", "kind", f.Kind, "subject", f.Subject, "problem", f.Problem, "did", f.Will)
		r.repaired = append([]Drift{done}, r.repaired[:min(len(r.repaired), keepRepaired-1)]...)
		delete(r.open, key)
		s.Recorder.Repaired(string(f.Kind))
	}
}

// errNothing is what a repair returns when there was nothing to do: the look was overtaken.
var errNothing = errors.New("nothing to repair")

func (r *reconciler) fresh() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.open {
		if d.looks == 1 {
			return true
		}
	}
	return false
}

// report lists what two looks have seen.
func (r *reconciler) report(at time.Time, l *look) Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := Report{At: at, Took: time.Since(at), Looked: l.counts(), Open: []Drift{}, Repaired: slices.Clone(r.repaired), Unchecked: l.unchecked}
	for _, d := range r.open {
		if d.looks < 2 {
			continue
		}
		if !d.logged && d.State == DriftReported {
			l.Log.Warn("found a drift", "kind", d.Kind, "severity", d.Severity, "subject", d.Subject, "problem", d.Problem, "advice", d.Advice)
			d.logged = true
		}
		out.Open = append(out.Open, *d)
	}
	SortDrifts(out.Open)
	return out
}

// NewDrift is a finding that nobody repairs, seen at one time.
func NewDrift(f Finding, at time.Time) Drift {
	return Drift{Kind: f.Kind, Severity: driftKinds[f.Kind], Subject: f.Subject, Problem: f.Problem, Advice: f.Advice, Will: f.Will,
		State: DriftReported, Since: at, looks: 2}
}

// SortDrifts puts the worst first.
func SortDrifts(list []Drift) {
	rank := map[Severity]int{Critical: 0, Warning: 1, Notice: 2}
	slices.SortFunc(list, func(a, b Drift) int {
		return cmp.Or(cmp.Compare(rank[a.Severity], rank[b.Severity]), strings.Compare(string(a.Kind), string(b.Kind)), strings.Compare(a.Subject, b.Subject))
	})
}
