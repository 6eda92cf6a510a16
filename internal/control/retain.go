package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/storage"
)

const (
	// retainEvery is how often what nothing needs any more is looked for.
	retainEvery = 30 * time.Second
	// retainGrace is how much longer than the window history is kept, at most: calls that were let in still need it.
	retainGrace = 10 * time.Minute
	// squeezeEvery is how often the window is halved while space is short.
	squeezeEvery = 5 * time.Second

	// Removals come in small steps with rests, so that nobody notices them.
	dropRest    = 200 * time.Millisecond
	dropStep    = 64 // segments
	dropTries   = 20
	dropPatient = 100 * time.Millisecond
)

// extent is a part of the WAL of a line that is kept.
type extent struct{ from, to core.LSN }

const endless = core.LSN(1<<64 - 1)

// kept is what of a line's history is kept.
type kept struct {
	line      core.HistoryLine
	snapshots []core.Snapshot // all of it, by where they end
	keep      map[int64]string
	wal       []extent
}

// retention decides what is kept: for every line the newest snapshot before its window and all later ones, with the WAL that
// follows them, and what the moments of its children lead through that have no such snapshot themselves. factor shortens all
// windows.
func retention(lines []core.HistoryLine, snapshots []core.Snapshot, now time.Time, factor float64) map[int64]*kept {
	all := make(map[int64]*kept, len(lines))
	for _, l := range lines {
		all[l.ID] = &kept{line: l, keep: map[int64]string{}}
	}
	for _, n := range snapshots {
		if k := all[n.Incarnation]; k != nil && n.State == core.SnapshotKept {
			k.snapshots = append(k.snapshots, n)
		}
	}
	for _, k := range all {
		k.snapshots = thin(k.snapshots, now)
	}
	// through keeps what leads to a place in a line, and in its ancestors where it has no snapshot before it.
	var through func(k *kept, lsn core.LSN, why string)
	through = func(k *kept, lsn core.LSN, why string) {
		for i := len(k.snapshots) - 1; i >= 0; i-- {
			if n := k.snapshots[i]; n.End <= lsn {
				if k.keep[n.ID] == "" {
					k.keep[n.ID] = why
				}
				k.wal = append(k.wal, extent{n.Redo, lsn})
				return
			}
		}
		k.wal = append(k.wal, extent{k.line.Fork, lsn})
		if parent := all[k.line.Parent]; parent != nil {
			through(parent, min(lsn, k.line.Fork), why)
		}
	}
	for _, l := range lines {
		if l.Deleting || l.Retention == 0 || factor == 0 {
			continue
		}
		k := all[l.ID]
		window := time.Duration(float64(l.Retention) * factor)
		since := now.Add(-window - min(window/2, retainGrace))
		base := -1
		for i, n := range k.snapshots {
			if !n.At.After(since) {
				base = i
			}
		}
		from := l.Fork
		if base >= 0 {
			from = k.snapshots[base].Redo
			k.keep[k.snapshots[base].ID] = "the oldest moment of the window is reached from it"
		} else if parent := all[l.Parent]; parent != nil {
			through(parent, l.Fork, "branch "+l.BranchID+" has no snapshot as old as its window")
		}
		for _, n := range k.snapshots[base+1:] {
			k.keep[n.ID] = "moments of the window are reached from it"
		}
		k.wal = append(k.wal, extent{from, endless})
	}
	return all
}

// HistorySum is what all history takes.
type HistorySum struct {
	Snapshots int
	WAL       int64 // bytes of archived segments
	Squeeze   int   // how often all windows are halved, because space is short
}

// HistorySum is what all history took at the last look.
func (s *Service) HistorySum() HistorySum {
	s.history.mu.Lock()
	defer s.history.mu.Unlock()
	sum := s.history.sum
	sum.Squeeze = s.history.squeeze
	return sum
}

// maxSnapshots is how many snapshots a line has at most: a branch that writes all day long would have thousands.
const maxSnapshots = 200

// thin leaves out snapshots where there are too many: those that are close to others, in bytes of WAL, and old. A moment
// behind one takes a longer replay then, and none cannot be reached.
func thin(list []core.Snapshot, now time.Time) []core.Snapshot {
	list = slices.Clone(list)
	for len(list) > maxSnapshots {
		worst, least := 0, 0.0
		for i := 1; i < len(list)-1; i++ {
			score := float64(list[i+1].End-list[i-1].End) / max(now.Sub(list[i].At).Seconds(), 1)
			if worst == 0 || score < least {
				worst, least = i, score
			}
		}
		list = slices.Delete(list, worst, worst+1)
	}
	return list
}

// wants tells whether any of a part of the WAL is kept.
func (k *kept) wants(from, to core.LSN) bool {
	return slices.ContainsFunc(k.wal, func(e extent) bool { return from < e.to && to > e.from })
}

// retainLoop removes what is out of every window.
func (s *Service) retainLoop(ctx context.Context) {
	for {
		again, err := s.retain(ctx)
		if err != nil && ctx.Err() == nil {
			s.log.Warn("cannot remove old history; it is tried again", "error", err)
		}
		wait := retainEvery
		if again {
			wait = squeezeEvery
		}
		select {
		case <-ctx.Done():
			return
		case <-s.history.changed:
		case <-time.After(wait):
		}
	}
}

// squeezed is the factor of the windows: less than one while space is short. again says to come back soon.
func (s *Service) squeezed(ctx context.Context) (factor float64, again bool, err error) {
	h := &s.history
	space, err := s.Volumes.Space(ctx)
	if err != nil {
		return 1, false, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case space.Level == storage.LevelOK:
		h.squeeze = 0
	case time.Since(h.squeezedAt) >= squeezeEvery:
		h.squeeze++
		h.squeezedAt = time.Now()
		s.log.Warn("space is short: history is kept for a shorter time than projects ask for", "divided_by", 1<<min(h.squeeze, 30),
			"host_free", space.Host.Free, "pool_free", space.Pool.Free)
	}
	if h.squeeze == 0 {
		return 1, false, nil
	}
	if h.squeeze > 12 { // a day is 20 seconds by now
		return 0, true, nil
	}
	return 1 / float64(int(1)<<h.squeeze), true, nil
}

// retain removes once what nothing needs.
func (s *Service) retain(ctx context.Context) (again bool, err error) {
	factor, again, err := s.squeezed(ctx)
	if err != nil {
		return false, err
	}
	lines, err := s.Store.HistoryLines(ctx)
	if err != nil {
		return again, err
	}
	snapshots, err := s.Store.AllSnapshots(ctx)
	if err != nil {
		return again, err
	}
	all := retention(lines, snapshots, time.Now(), factor)
	var errs []error
	for _, n := range snapshots {
		k := all[n.Incarnation]
		if k == nil || !s.retains(k.line) || n.State == core.SnapshotKept && k.keep[n.ID] != "" || n.State == core.SnapshotMaking && s.history.isMaking(n.Volume) {
			continue
		}
		err := s.whenNobodyPlans(ctx, func() error { return s.dropSnapshot(ctx, n) })
		if err == nil {
			s.log.Info("dropped a snapshot that nothing needs any more", "branch_id", k.line.BranchID, "lsn", n.End, "at", n.At)
			err = rest(ctx, dropRest)
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			return again, ctx.Err()
		}
	}
	var sum HistorySum
	for _, l := range lines {
		k := all[l.ID]
		if !s.retains(l) {
			continue
		}
		for {
			var had history.Archived
			n := 0
			err := s.whenNobodyPlans(ctx, func() (err error) {
				had, n, err = s.WAL.DropArchived(ctx, l.BranchID, l.Number, dropStep, k.wants)
				return err
			})
			if errs = append(errs, err); err != nil || n < dropStep {
				sum.WAL += had.Bytes
				break
			}
			if err := rest(ctx, dropRest); err != nil {
				return again, err
			}
		}
	}
	for _, n := range snapshots {
		if n.State == core.SnapshotKept && !isTemplate(n) {
			sum.Snapshots++
		}
	}
	s.history.mu.Lock()
	s.history.sum = sum
	s.history.mu.Unlock()
	return again, errors.Join(errs...)
}

// retains tells whether it is this server that removes what a line does not need any more.
func (s *Service) retains(l core.HistoryLine) bool {
	switch {
	case l.Deleting: // with everything else
		return false
	case l.Holder == s.Fleet.Self():
		return true
	case l.Holder != 0 && s.Fleet.Alive(l.Holder):
		return false
	}
	return s.Fleet.Leads()
}

// whenNobodyPlans does something while no past is copied.
func (s *Service) whenNobodyPlans(ctx context.Context, do func() error) error {
	for range dropTries {
		if s.history.plans.TryLock() {
			defer s.history.plans.Unlock()
			return do()
		}
		if err := rest(ctx, dropPatient); err != nil {
			return err
		}
	}
	return nil // next time
}

func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
