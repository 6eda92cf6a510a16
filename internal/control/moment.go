package control

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/ops"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

// moment is a place in a branch's past, by position or by time; the zero one is the head. It is a parameter of operations.
type moment struct {
	LSN  string     `json:"lsn,omitempty"`
	Time *time.Time `json:"timestamp,omitempty"`
}

func (m moment) head() bool { return m.LSN == "" && m.Time == nil }

func (m moment) params() json.RawMessage {
	if m.head() {
		return nil
	}
	raw, _ := json.Marshal(m) // cannot fail
	return raw
}

// descent is an incarnation with its ancestors and their snapshots.
type descent struct {
	lines     []core.Incarnation // itself first
	snapshots []core.Snapshot    // by where they end
}

func (s *Service) lineage(ctx context.Context, branchID string, incarnation int) (d descent, err error) {
	if d.lines, err = s.Store.Lineage(ctx, branchID, incarnation); err != nil {
		return d, err
	}
	ids := make([]int64, len(d.lines))
	for i, l := range d.lines {
		ids[i] = l.ID
	}
	d.snapshots, err = s.Store.KeptSnapshots(ctx, ids)
	return d, err
}

// owner is the line that wrote what is before an LSN: the youngest that had forked by then.
func (d descent) owner(lsn core.LSN) int {
	for i, l := range d.lines {
		if lsn > l.Fork {
			return i
		}
	}
	return max(len(d.lines)-1, 0)
}

// usable lists the snapshots that lead to a place, the best first.
func (d descent) usable(lsn core.LSN) []core.Snapshot {
	var out []core.Snapshot
	limit := lsn
	for _, l := range d.lines[d.owner(lsn):] {
		for i := len(d.snapshots) - 1; i >= 0; i-- {
			if n := d.snapshots[i]; n.Incarnation == l.ID && n.End <= limit {
				out = append(out, n)
			}
		}
		limit = min(limit, l.Fork)
	}
	return out
}

func (d descent) newest(lsn core.LSN) (core.Snapshot, bool) {
	if list := d.usable(lsn); len(list) > 0 {
		return list[0], true
	}
	return core.Snapshot{}, false
}

// past names the WAL that leads from a snapshot to line number from.
func (d descent) past(from int, n core.Snapshot) []history.Line {
	var out []history.Line
	for _, l := range d.lines[from:] {
		out = append(out, history.Line{Branch: l.BranchID, Incarnation: l.Number})
		if l.ID == n.Incarnation {
			break
		}
	}
	if isTemplate(n) {
		out = append(out, history.Line{Branch: n.Volume, Incarnation: 1}) // a template's folder has its volume's name
	}
	return out
}

// spot is a moment that was found.
type spot struct {
	head bool     // nothing is behind it
	lsn  core.LSN // where it is; of the head, where that was
}

// rangeError says which moments of a branch can be reached.
func rangeError(what string, d descent, since time.Time, head core.LSN) error {
	first, ok := d.first(since)
	if !ok {
		return core.Invalidf("%s is not in the history that is kept: there is only the branch's head, at %s", what, head)
	}
	return core.Invalidf("%s is not in the history that is kept, which reaches from %s (%s) to now (%s)", what, first.End,
		first.At.UTC().Format(time.RFC3339Nano), head)
}

// first is the oldest moment that can be reached, as a snapshot; since is the beginning of the window.
func (d descent) first(since time.Time) (core.Snapshot, bool) {
	var first core.Snapshot
	limit := core.LSN(1<<63 - 1)
	for _, l := range d.lines {
		for _, n := range d.snapshots {
			if n.Incarnation != l.ID || n.End > limit {
				continue
			}
			if n.End < l.Begin {
				n.End, n.At = l.Begin, l.BeginAt
			}
			if first.End == 0 || n.End < first.End {
				first = n
			}
		}
		limit = min(limit, l.Fork)
	}
	if first.At.Before(since) {
		first.At = since
	}
	return first, first.End != 0
}

// headOf is where a ready branch's WAL ends, all of which is durable.
func (s *Service) headOf(ctx context.Context, b core.Branch) (head core.LSN, up bool, err error) {
	id, up, err := s.running(ctx, b.ID)
	if err != nil {
		return 0, false, err
	}
	if up {
		head, _, err = (&origin{s: s, id: id}).FlushLSN(ctx)
		return head, true, err
	}
	info, err := readControl(s.Volumes.Path(b.VolumeID))
	if err != nil {
		return 0, false, err
	}
	past, err := s.WAL.OpenPast(history.Line{Branch: b.ID, Incarnation: b.Incarnation})
	if err != nil {
		return 0, false, err
	}
	head, err = past.End(ctx, info.Redo)
	return head, false, err
}

// find finds a moment in a branch's past. The caller need not hold anything: what is found may be gone when it is used.
func (s *Service) find(ctx context.Context, b core.Branch, m moment) (spot, error) {
	head, up, err := s.headOf(ctx, b)
	if err != nil {
		return spot{}, err
	}
	project, err := s.Store.Project(ctx, b.ProjectID)
	if err != nil {
		return spot{}, err
	}
	now := time.Now()
	since := now.Add(-time.Duration(project.HistoryRetention) * time.Second)
	d, err := s.lineage(ctx, b.ID, b.Incarnation)
	if err != nil {
		return spot{}, err
	}
	if !up && len(d.lines) > 0 {
		head = max(head, d.lines[0].Fork) // it has not run yet, and its parent's last record was not complete there
	}
	if m.LSN != "" {
		lsn, err := core.ParseLSN(m.LSN)
		if err != nil {
			return spot{}, err
		}
		what := "branch.parent_lsn " + m.LSN
		if up && lsn > head {
			// What was inserted and is not flushed yet is the head, too; FlushLSN has just flushed all that had been committed.
			var insert core.LSN
			err := s.atPrimary(ctx, b, func(conn *pgx.Conn) (err error) {
				insert, err = postgres.Inserted(ctx, conn)
				return err
			})
			if err != nil {
				return spot{}, err
			}
			head = max(head, insert)
		}
		switch {
		case lsn > head:
			return spot{}, rangeError(what, d, since, head)
		case lsn == head:
			return spot{head: true, lsn: lsn}, nil
		}
		if !d.reaches(lsn, since) {
			return spot{}, rangeError(what, d, since, head)
		}
		return spot{lsn: lsn}, nil
	}
	what := "branch.parent_timestamp " + m.Time.UTC().Format(time.RFC3339Nano)
	if m.Time.After(now) {
		return spot{}, rangeError(what+" is in the future: it", d, since, head)
	}
	if m.Time.Before(since) {
		return spot{}, rangeError(what, d, since, head)
	}
	for i := len(d.lines) - 1; i >= 0; i-- {
		if d.lines[i].Parent == 0 && m.Time.Before(d.lines[i].BeginAt) {
			return spot{}, rangeError(what, d, since, head)
		}
	}
	// From the newest snapshot before which no commit can be later than the moment.
	var base core.Snapshot
	for _, n := range d.usable(head) {
		if base = n; !n.At.After(*m.Time) {
			break
		}
	}
	if base.ID == 0 || base.At.After(*m.Time) {
		return spot{}, rangeError(what, d, since, head)
	}
	past, err := s.WAL.OpenPast(d.past(0, base)...)
	if err != nil {
		return spot{}, err
	}
	from, err := past.Cut(ctx, base.Redo, base.End)
	if err != nil {
		return spot{}, gapError(err, what)
	}
	at, found, err := past.CommitAfter(ctx, from, head, *m.Time)
	switch {
	case err != nil:
		return spot{}, gapError(err, what)
	case !found:
		return spot{head: true, lsn: head}, nil
	}
	at = max(at, base.End)
	if l := d.lines[d.owner(at)]; at < l.Begin && at > l.Fork {
		return spot{}, rangeError(what, d, since, head)
	}
	return spot{lsn: at}, nil
}

// choose finds a moment that a caller asks for, and makes it exact: a time that is not the head's becomes a position, which
// later commits do not change.
func (s *Service) choose(ctx context.Context, b core.Branch, m *moment) (core.LSN, *time.Time, error) {
	at, err := s.find(ctx, b, *m)
	if err != nil {
		return 0, nil, err
	}
	if !at.head && m.LSN == "" {
		m.LSN = at.lsn.String()
	}
	return at.lsn, m.Time, nil
}

// gapError is what a caller is told of missing WAL.
func gapError(err error, what string) error {
	if !history.IsGap(err) {
		return err
	}
	return &core.Error{Kind: core.KindInvalid, Op: "control.moment", Err: err,
		Message: what + " cannot be reached: WAL that leads to it is missing. Choose a later moment, or the head",
		Hint:    "WAL was removed before it was archived, as when the server was away for long"}
}

// reaches tells whether a place can be reached from a snapshot, within the window.
func (d descent) reaches(lsn core.LSN, since time.Time) bool {
	if _, ok := d.newest(lsn); !ok {
		return false
	}
	l := d.lines[d.owner(lsn)]
	if lsn < l.Begin && (l.Parent == 0 || lsn > l.Fork) {
		return false
	}
	// A snapshot behind the place that was taken before the window says that the place is before it, too.
	for _, n := range d.snapshots {
		if n.Incarnation == l.ID && n.End > lsn && n.At.Before(since) {
			return false
		}
	}
	return true
}

// atPrimary calls f with a session on the server that runs on a branch's own volume.
func (s *Service) atPrimary(ctx context.Context, b core.Branch, f func(conn *pgx.Conn) error) error {
	id, up, err := s.running(ctx, b.ID)
	if err == nil && !up {
		err = core.Errorf(core.KindUnavailable, "", "the compute of branch %s has just stopped; try again", b.ID)
	}
	if err != nil {
		return err
	}
	return s.Computes.Do(ctx, id, f)
}

// forkAt copies a branch as it was at a place before its head into a child. It returns the line that the child descends from.
func (s *Service) forkAt(ctx context.Context, parent, child core.Branch, lsn core.LSN) (res history.ForkResult, from core.Incarnation, err error) {
	s.history.plans.RLock()
	defer s.history.plans.RUnlock()
	d, err := s.lineage(ctx, parent.ID, parent.Incarnation)
	if err != nil {
		return res, from, err
	}
	for _, n := range d.usable(lsn) {
		if !s.fits(parent, n) {
			continue
		}
		owner := d.owner(lsn)
		res, err = history.Fork(ctx, history.ForkRequest{
			Parent: history.Ref{Volume: n.Volume, Branch: d.lines[owner].BranchID, Incarnation: d.lines[owner].Number}, Child: ref(child),
			At:      &history.Moment{Lines: d.past(owner, n), LSN: lsn},
			Volumes: s.Volumes, Dirs: s.WAL, ReadControl: readControl, CleanChild: postgres.CleanChild, Log: s.log,
		})
		if err != nil {
			return res, from, gapError(err, "the moment "+lsn.String())
		}
		// Without the note the first start takes longer, nothing else.
		if err := s.noteNeverSubscribed(ctx, child, d.past(owner, n), res); err != nil {
			s.log.Warn("cannot note that a branch has no subscriptions", "branch_id", child.ID, "error", err)
		}
		return res, d.lines[owner], nil
	}
	return res, from, core.Invalidf("the moment %s of branch %s is not in the history that is kept any more", lsn, parent.ID)
}

// noteNeverSubscribed notes that a copy of the past has no subscription, when neither its files nor the WAL that it will replay
// have one.
func (s *Service) noteNeverSubscribed(ctx context.Context, child core.Branch, lines []history.Line, res history.ForkResult) error {
	dir := s.Volumes.Path(child.VolumeID)
	locator, empty, err := postgres.SubscriptionCatalog(dir)
	if err != nil || !empty {
		return err
	}
	past, err := s.WAL.OpenPast(lines...)
	if err != nil {
		return err
	}
	mentioned, err := past.Mentions(ctx, res.LSN-core.LSN(res.ReplayLen), res.LSN, locator)
	if err != nil || mentioned {
		return err
	}
	return postgres.NoteNoSubscriptions(dir)
}

// fits tells whether a snapshot's volume is there and of the same cluster: a template may have been made anew.
func (s *Service) fits(b core.Branch, n core.Snapshot) bool {
	have, err := postgres.ReadControl(s.Volumes.Path(n.Volume))
	if err != nil {
		if !os.IsNotExist(err) {
			s.log.Warn("cannot read a snapshot", "volume", n.Volume, "branch_id", b.ID, "error", err)
		}
		return false
	}
	own, err := postgres.ReadControl(s.Volumes.Path(b.VolumeID))
	return err == nil && own.SystemID == have.SystemID
}

// forkMoment copies a branch as it was at a moment. The caller shares the parent's lock.
func (s *Service) forkMoment(ctx context.Context, parent, child core.Branch, m moment, running history.Source) (res history.ForkResult, from core.Incarnation, err error) {
	at, err := s.find(ctx, parent, m)
	if err != nil {
		return res, from, err
	}
	if at.head {
		if res, err = s.fork(ctx, ref(parent), ref(child), running); err != nil {
			return res, from, err
		}
		exact, lsn, err := s.nothingSince(ctx, parent, m, at.lsn, res.LSN)
		if err != nil {
			return res, from, err
		}
		if exact {
			d, err := s.lineage(ctx, parent.ID, parent.Incarnation)
			if err == nil && len(d.lines) > 0 {
				from = d.lines[0]
			}
			return res, from, err
		}
		at.lsn = lsn // somebody wrote while it was copied
	}
	return s.forkAt(ctx, parent, child, at.lsn)
}

// nothingSince tells whether a copy that was made of the head, and ends at end, has nothing that is later than a moment, which
// was the head when it was at lsn. If it has, it returns where the moment is.
func (s *Service) nothingSince(ctx context.Context, parent core.Branch, m moment, lsn, end core.LSN) (bool, core.LSN, error) {
	if end <= lsn {
		return true, lsn, nil
	}
	if m.LSN != "" {
		return false, lsn, nil
	}
	again, err := s.find(ctx, parent, m)
	return again.head || again.lsn >= end, again.lsn, err
}

// createBranchAt makes a branch of its parent's past.
func (s *Service) createBranchAt(ctx context.Context, parent, b core.Branch, m moment, running history.Source) (ops.Commit, error) {
	res, from, err := s.forkMoment(ctx, parent, b, m, running)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, q store.Q) error {
		lsn := res.LSN
		if m.LSN != "" { // as it was asked for, which says the same: no record ends in between
			lsn = b.ParentLSN
		}
		if err := q.BranchReady(ctx, b.ID, lsn, b.ParentTimestamp, true); err != nil {
			return err
		}
		i := core.Incarnation{BranchID: b.ID, Number: b.Incarnation, Parent: from.ID, Fork: res.LSN, BeginAt: time.Now()}
		return errors.Join(q.PutIncarnation(ctx, i), q.StartBranchMeter(ctx, b.ID, b.ProjectID, res.LSN))
	}, nil
}
