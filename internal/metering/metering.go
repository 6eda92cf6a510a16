// Package metering counts what branches use: time, compute time, WAL, transfer and storage, by hour, day and month in the
// control database. Everything that is counted is the difference to a value that is stored with it, in one transaction: what
// passed while no server ran is counted once, by whoever looks next, however many look.
package metering

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store"
)

// DefaultEvery is how often usage is counted.
const DefaultEvery = 5 * time.Second

// stopTimeout bounds the last count.
const stopTimeout = 10 * time.Second

// hourBatch is how many branches' byte-hours are counted in one transaction.
const hourBatch = 200

// Computes are the computes of this server; see compute.Manager.
type Computes interface {
	Readings(now time.Time) (running, ended []compute.Reading)
}

// Options is what a Meter needs.
type Options struct {
	Store    *store.Store
	Computes Computes
	// Report makes the doors tell Transferred what has passed since they did last; may be nil.
	Report func()
	// Counted is told of the projects to whose usage something was added; may be nil. The last count of Stop does not tell it.
	Counted func(ctx context.Context, projectIDs []string)
	Every   time.Duration // 0: DefaultEvery
	Log     *slog.Logger
}

// Meter counts usage. What it is told it keeps until the next count.
type Meter struct {
	opt  Options
	log  *slog.Logger
	last map[string]counted // by endpoint: what this process counted last; belongs to Count
	seen map[string]core.LSN
	hour time.Time // whose byte-hours are counted; likewise
	one  sync.Mutex

	mu       sync.Mutex
	ended    []compute.Reading
	moved    map[string]int64 // endpoint → bytes
	branches map[string]look  // by branch

	total Totals // since this process began

	stop     context.CancelFunc
	stopOnce sync.Once
	work     sync.WaitGroup
}

// counted is where the counting of a run stands in this process.
type counted struct {
	run, at time.Time
	compute time.Duration
}

// look is the latest that is known of a branch.
type look struct {
	lsn     core.LSN
	history int64 // bytes of WAL that are kept; -1: not looked at
	at      time.Time
	sized   bool // its logical size may have changed
}

// New makes a Meter that does not count by itself yet.
func New(o Options) *Meter {
	o.Every = cmp.Or(o.Every, DefaultEvery)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Meter{opt: o, log: o.Log, last: map[string]counted{}, seen: map[string]core.LSN{}, moved: map[string]int64{}, branches: map[string]look{}}
}

// Transferred adds bytes that went to clients of an endpoint.
func (m *Meter) Transferred(endpointID string, bytes int64) {
	m.mu.Lock()
	m.moved[endpointID] += bytes
	m.mu.Unlock()
}

// Wrote notes where the WAL of a branch ends.
func (m *Meter) Wrote(branchID string, lsn core.LSN) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l, known := m.branches[branchID]
	if !known {
		l.history = -1
	}
	l.lsn, l.at = max(l.lsn, lsn), time.Now()
	m.branches[branchID] = l
}

// Sized notes that the logical size of a branch was looked at, and how much WAL it keeps, in bytes; -1: unknown.
func (m *Meter) Sized(branchID string, history int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := m.branches[branchID]
	l.history, l.at, l.sized = history, time.Now(), true
	m.branches[branchID] = l
}

// EndedAway notes that the last run of an endpoint's compute ended while no server watched; cu is its size.
func (m *Meter) EndedAway(endpointID string, at time.Time, cu float64) {
	m.mu.Lock()
	m.ended = append(m.ended, compute.Reading{EndpointID: endpointID, At: at, CU: cu, Ended: true})
	m.mu.Unlock()
}

// Totals are what a Meter has counted since it was made.
type Totals struct {
	Counts, Failures int64 // how often it counted, and how often that failed
	Active, Compute  time.Duration
	Written          int64 // bytes
}

// Counted returns the totals.
func (m *Meter) Counted() Totals {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.total
}

// Start counts in the background until Stop.
func (m *Meter) Start(ctx context.Context) {
	ctx, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	m.work.Go(func() {
		tick := time.NewTicker(m.opt.Every)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
				defer cancel()
				if _, err := m.count(last); err != nil {
					m.log.Warn("the last usage is not counted", "error", err)
				}
				return
			case <-tick.C:
			}
			if err := m.Count(ctx); err != nil && ctx.Err() == nil {
				m.log.Warn("usage is not counted; it will be with the next look", "error", err)
			}
		}
	})
}

// Stop counts once more and ends. It is safe twice.
func (m *Meter) Stop() {
	m.stopOnce.Do(func() {
		if m.stop != nil {
			m.stop()
		}
		m.work.Wait()
	})
}

// taken is what one count takes from the Meter.
type taken struct {
	now      time.Time
	running  []compute.Reading
	ended    []compute.Reading
	moved    map[string]int64
	branches map[string]look
}

// Count counts what has been used since the last time. What cannot be counted is kept for the next.
func (m *Meter) Count(ctx context.Context) error {
	projects, err := m.count(ctx)
	if err == nil && m.opt.Counted != nil && len(projects) > 0 {
		m.opt.Counted(ctx, projects)
	}
	return err
}

// count returns the projects to whose usage something was added.
func (m *Meter) count(ctx context.Context) (projects []string, err error) {
	m.one.Lock()
	defer m.one.Unlock()
	if m.opt.Report != nil {
		m.opt.Report()
	}
	t := m.take()
	u, err := m.add(ctx, t)
	if err != nil {
		m.giveBack(t)
	} else {
		m.remember(t)
		err = m.countHours(ctx, t.now)
	}
	m.tally(u, err)
	return u.projects(), err
}

func (m *Meter) take() taken {
	t := taken{now: time.Now()}
	var ended []compute.Reading
	t.running, ended = m.opt.Computes.Readings(t.now)
	m.mu.Lock()
	defer m.mu.Unlock()
	t.ended = append(m.ended, ended...)
	t.moved, t.branches = m.moved, m.branches
	m.ended, m.moved, m.branches = nil, map[string]int64{}, map[string]look{}
	// Most computes write nothing most of the time.
	maps.DeleteFunc(t.branches, func(id string, l look) bool { return !l.sized && l.lsn == m.seen[id] })
	return t
}

// giveBack keeps what was taken for the next count.
func (m *Meter) giveBack(t taken) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ended = append(t.ended, m.ended...)
	for id, n := range t.moved {
		m.moved[id] += n
	}
	for id, l := range t.branches {
		now, newer := m.branches[id]
		if !newer {
			m.branches[id] = l
			continue
		}
		now.lsn, now.sized = max(now.lsn, l.lsn), now.sized || l.sized
		if now.history < 0 {
			now.history = l.history
		}
		m.branches[id] = now
	}
}

// remember is for the next count: how large a compute was since this one, and which branches have not changed.
func (m *Meter) remember(t taken) {
	for _, r := range t.ended {
		delete(m.last, r.EndpointID)
	}
	running := make(map[string]counted, len(t.running))
	for _, r := range t.running {
		running[r.EndpointID] = counted{r.Run, r.At, r.Compute}
	}
	m.last = running
	for id, l := range t.branches {
		if l.lsn > 0 {
			m.seen[id] = l.lsn
		}
	}
	if len(m.seen) > 100_000 { // of branches long gone
		clear(m.seen)
	}
}

// size is the average size of a compute since this process counted it last.
func (m *Meter) size(r compute.Reading) float64 {
	before, since := time.Duration(0), r.Since
	if last, ok := m.last[r.EndpointID]; ok && last.run.Equal(r.Run) {
		before, since = last.compute, last.at
	}
	if took := r.At.Sub(since); !since.IsZero() && took > 0 {
		return float64(r.Compute-before) / float64(took)
	}
	return r.CU
}

// countHours counts the byte-hours of hours that have begun, and removes what is too old.
func (m *Meter) countHours(ctx context.Context, now time.Time) error {
	hour, _ := core.Frame(core.GrainHour, now)
	if hour.Equal(m.hour) {
		return nil
	}
	for {
		n := 0
		err := m.opt.Store.Tx(ctx, func(q store.Q) (err error) {
			if err := q.LockMeters(ctx); err != nil {
				return err
			}
			n, err = q.CountStorageHours(ctx, hour, hourBatch)
			return err
		})
		if err != nil {
			return err
		}
		if n < hourBatch {
			break
		}
	}
	if err := m.opt.Store.PruneUsage(ctx, now); err != nil {
		return err
	}
	m.hour = hour
	return nil
}

func (m *Meter) tally(u frames, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.total.Counts++
	if err != nil {
		m.total.Failures++
	}
	for _, f := range u.list {
		m.total.Active += f.Active
		m.total.Compute += f.Compute
		m.total.Written += f.Written
	}
}

// add counts what was taken in one transaction, and returns it.
func (m *Meter) add(ctx context.Context, t taken) (u frames, err error) {
	if len(t.running)+len(t.ended)+len(t.moved)+len(t.branches) == 0 {
		return u, nil
	}
	err = m.opt.Store.Tx(ctx, func(q store.Q) error {
		u = frames{}
		if err := q.CommitLater(ctx); err != nil { // a crash of the machine also ends the computes
			return err
		}
		if err := q.LockMeters(ctx); err != nil {
			return err
		}
		if err := m.addComputes(ctx, q, t, &u); err != nil {
			return err
		}
		if err := addBranches(ctx, q, t, &u); err != nil {
			return err
		}
		if err := q.AddUsage(ctx, u.list); err != nil || len(u.resized) == 0 {
			return err
		}
		return q.SetProjectStorage(ctx, t.now, u.resized)
	})
	if err != nil {
		u = frames{}
	}
	return u, err
}

// addComputes counts the time of computes and what went through the doors.
func (m *Meter) addComputes(ctx context.Context, q store.Q, t taken, u *frames) error {
	readings := append(slices.Clone(t.ended), t.running...)
	ids := slices.Collect(maps.Keys(t.moved))
	for _, r := range readings {
		ids = append(ids, r.EndpointID)
	}
	slices.Sort(ids)
	meters, err := q.ComputeMeters(ctx, slices.Compact(ids))
	if err != nil {
		return err
	}
	changed := map[string]store.ComputeMeter{}
	for _, r := range readings {
		c := meters[r.EndpointID]
		if c.ProjectID == "" {
			continue // work on a branch, or gone for long
		}
		if from, ok := uncounted(c, r); ok {
			u.time(c, from, r.At, m.size(r))
			if !r.Run.IsZero() {
				c.Run = r.Run
			}
			c.SeenAt = r.At
			meters[r.EndpointID], changed[r.EndpointID] = c, c
		}
	}
	for id, n := range t.moved {
		if c := meters[id]; c.ProjectID != "" {
			f := core.UsageFrame{ProjectID: c.ProjectID, BranchID: c.BranchID, Start: t.now}
			f.Transferred = n
			u.add(f)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	return q.SaveComputeMeters(ctx, slices.Collect(maps.Values(changed)))
}

// uncounted returns from when on a reading's time is not counted yet; ok is false when all of it is.
func uncounted(c store.ComputeMeter, r compute.Reading) (from time.Time, ok bool) {
	switch {
	case r.Run.IsZero() || r.Run.Equal(c.Run): // the run that the meter knows
		from = c.SeenAt
	case r.Run.Before(c.Run): // an older one: a newer was counted meanwhile
		return from, false
	default:
		from = r.Run
		if c.SeenAt.After(from) {
			from = c.SeenAt // runs of one endpoint do not overlap, clocks may
		}
	}
	return from, !from.IsZero() && r.At.After(from)
}

// addBranches counts the WAL and the sizes of branches.
func addBranches(ctx context.Context, q store.Q, t taken, u *frames) error {
	if len(t.branches) == 0 {
		return nil
	}
	lsns := make(map[string]core.LSN, len(t.branches))
	for id, l := range t.branches {
		lsns[id] = l.lsn
	}
	meters, err := q.BranchMeters(ctx, lsns)
	if err != nil {
		return err
	}
	for i := range meters {
		b := &meters[i]
		f := core.UsageFrame{ProjectID: b.ProjectID, BranchID: b.BranchID, Start: t.now}
		if advance(b, t.branches[b.BranchID], t.now, &f.Usage) {
			u.resized = append(u.resized, b.ProjectID)
		}
		if f.Usage != (core.Usage{}) {
			u.add(f)
		}
	}
	return q.SaveBranchMeters(ctx, meters)
}

// advance brings a branch's meter up to a look, and adds to u what is new. It tells whether the branch's size has changed.
func advance(b *store.BranchMeter, l look, now time.Time, u *core.Usage) (resized bool) {
	if l.lsn > b.LSN && !l.at.Before(b.Since) {
		u.Written = int64(l.lsn - b.LSN)
		b.Written += u.Written
		b.LSN = l.lsn
	}
	before := b.Sizes
	if b.Now != nil {
		b.Logical = *b.Now
	}
	if l.history >= 0 && l.sized {
		b.History = l.history
	}
	if b.Data = b.Logical; !b.Root {
		b.Data = min(b.Logical, b.Written)
	}
	if hour, _ := core.Frame(core.GrainHour, now); !b.Hour.Before(hour) { // else the hour is counted with the sizes as they are now
		grow := func(now int64, largest *int64) (more int64) {
			more = max(0, now-*largest)
			*largest += more
			return more
		}
		data := grow(b.Data, &b.Largest.Data)
		if b.Root {
			u.RootHours = data
		} else {
			u.ChildHours = data
		}
		u.HistoryHours, u.LogicalHours = grow(b.History, &b.Largest.History), grow(b.Logical, &b.Largest.Logical)
	}
	return b.Sizes != before
}

// frames collects usage.
type frames struct {
	list    []core.UsageFrame
	resized []string // projects whose size has changed
}

// projects are those that have something in it.
func (u *frames) projects() []string {
	out := slices.Clone(u.resized)
	for _, f := range u.list {
		out = append(out, f.ProjectID)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (u *frames) add(f core.UsageFrame) { u.list = append(u.list, f) }

// time adds the time of a compute from one moment to another, to each hour its part.
func (u *frames) time(c store.ComputeMeter, from, to time.Time, cu float64) {
	for from.Before(to) {
		_, end := core.Frame(core.GrainHour, from)
		if end.After(to) {
			end = to
		}
		f := core.UsageFrame{ProjectID: c.ProjectID, BranchID: c.BranchID, Start: from}
		f.Active = end.Sub(from)
		f.Compute = time.Duration(float64(f.Active) * cu)
		u.add(f)
		from = end
	}
}
