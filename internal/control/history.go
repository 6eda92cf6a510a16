package control

import (
	"cmp"
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/store"
)

const (
	// archiveEvery is how often finished WAL is archived. Nothing depends on it: a slot keeps what is not archived.
	archiveEvery = time.Second
	// snapshotSmall is how much WAL is replayed without anybody noticing.
	snapshotSmall = 16 << 20
	// snapshotRest keeps snapshots of a branch apart, however fast it writes: in multiples of what the last one took, and at least.
	snapshotRest    = 30
	snapshotMinRest = 10 * time.Second
	// cheapSnapshot is the time of a snapshot up to which the above holds; for a dearer one there is more between two.
	cheapSnapshot = 300 * time.Millisecond
	// lineFresh is how long what the control database says of a branch's history is believed.
	lineFresh = 30 * time.Second
)

// HistoryOptions say how closely snapshots follow each other; 0 takes the default.
type HistoryOptions struct {
	SnapshotWAL   int64         // bytes of WAL between two: a moment is reached by replaying up to as much; default 128 MiB
	SnapshotEvery time.Duration // how long a branch that is written to may be without one; default an hour
}

func (o HistoryOptions) wal() float64         { return float64(cmp.Or(o.SnapshotWAL, 128<<20)) }
func (o HistoryOptions) every() time.Duration { return cmp.Or(o.SnapshotEvery, time.Hour) }

// Reasons for snapshots.
const (
	snapshotTemplate = "template" // the template that a root was made from
	snapshotFirst    = "first"    // there was none
	snapshotWritten  = "written"  // that much was written
	snapshotHourly   = "hourly"
	snapshotAsleep   = "suspended"
	snapshotGap      = "gap" // WAL was lost before it was archived
)

// historian keeps what the archive of each branch that runs needs to know.
type historian struct {
	mu    sync.Mutex
	lines map[string]*line // by branch
	wants map[string]bool  // branches that are to be looked at for a snapshot; true: they sleep
	wake  chan struct{}    // capacity 1
	epoch atomic.Int64     // changes when what is known of lines must be read again

	making     map[string]bool // volumes of snapshots
	changed    chan struct{}   // capacity 1: some window changed
	squeeze    int             // how often all windows are halved, because space is short
	squeezedAt time.Time
	sum        HistorySum

	// plans is held shared while the files of a past are copied, and alone while some are removed.
	plans sync.RWMutex
}

// line is the history of a branch that runs, or was just suspended.
type line struct {
	mu     sync.Mutex // held by who archives, or takes a snapshot's place into account
	known  core.HistoryLine
	read   time.Time
	epoch  int64 // when it was read
	based  bool  // there is a snapshot to start from
	last   core.Snapshot
	tail   history.Tail
	held   core.LSN // where the slot is
	clean  bool     // there is no slot
	failed time.Time
}

func (h *historian) line(branchID string) *line {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.lines == nil {
		h.lines, h.wants = map[string]*line{}, map[string]bool{}
	}
	l := h.lines[branchID]
	if l == nil {
		l = &line{}
		h.lines[branchID] = l
	}
	return l
}

func (h *historian) forget(branchID string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.lines, branchID)
	delete(h.wants, branchID)
}

// want asks for a look at a branch that may be due for a snapshot.
func (h *historian) want(branchID string, asleep bool) {
	h.mu.Lock()
	if h.wants == nil {
		h.wants = map[string]bool{}
	}
	h.wants[branchID] = asleep
	h.mu.Unlock()
	h.nudge()
}

// reread makes what is known of all lines be read again: a window has changed.
func (h *historian) reread() {
	h.epoch.Add(1)
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *historian) setMaking(volume string, making bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.making == nil {
		h.making = map[string]bool{}
	}
	if h.making[volume] = making; !making {
		delete(h.making, volume)
	}
}

func (h *historian) isMaking(volume string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.making[volume]
}

func (h *historian) nudge() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

func (h *historian) next() (branchID string, asleep, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, asleep := range h.wants {
		delete(h.wants, id)
		return id, asleep, true
	}
	return "", false, false
}

// archiveLoop archives the WAL of what runs.
func (s *Service) archiveLoop(ctx context.Context) {
	tick := time.NewTicker(archiveEvery)
	defer tick.Stop()
	for {
		for _, id := range s.Computes.Running() {
			if err := s.archiveRunning(ctx, id); err != nil && ctx.Err() == nil {
				s.log.Warn("cannot archive the WAL of a branch; it is kept where it is", "endpoint_id", id, "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// archiveRunning archives the WAL of a compute that runs, and makes it hold the rest.
func (s *Service) archiveRunning(ctx context.Context, computeID string) error {
	spec, ok := s.Computes.Spec(computeID)
	if !ok || spec.Standby != nil {
		return nil
	}
	branchID, incarnation, ok := s.WAL.Owner(spec.WALDir)
	if !ok {
		return nil
	}
	return s.archive(ctx, branchID, incarnation, computeID)
}

// archive archives what an incarnation of a branch has finished, and lets its server drop that. computeID is "" when it has
// none, and none starts until archive returns.
func (s *Service) archive(ctx context.Context, branchID string, incarnation int, computeID string) error {
	l := s.history.line(branchID)
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := s.readLine(ctx, l, branchID, incarnation); err != nil {
		return err
	}
	if l.known.ID == 0 || l.known.Deleting {
		return nil
	}
	if l.known.Retention == 0 {
		if computeID == "" || l.clean {
			return nil
		}
		l.tail, l.held, l.clean = history.Tail{}, 0, true
		return s.Computes.Do(ctx, computeID, func(conn *pgx.Conn) error { return postgres.DropSlot(ctx, conn, postgres.HistorySlot) })
	}
	l.clean = false
	tail, err := s.WAL.Archive(ctx, branchID, incarnation, l.tail)
	l.tail = tail
	if err != nil || tail.Timeline == 0 {
		return err
	}
	if computeID != "" && tail.LSN() != l.held {
		var lost bool
		err := s.Computes.Do(ctx, computeID, func(conn *pgx.Conn) (err error) {
			lost, err = postgres.HoldHistory(ctx, conn, tail.LSN())
			return err
		})
		if err != nil {
			return err
		}
		l.held = tail.LSN()
		if lost {
			l.tail = history.Tail{}
			if l.tail, err = s.WAL.Archive(ctx, branchID, incarnation, l.tail); err != nil {
				return err
			}
		}
	}
	if l.tail.Gap {
		s.log.Warn("WAL of a branch was gone before it was archived: moments before now cannot be reached any more, up to the snapshot before",
			"branch_id", branchID, "from", l.tail.LSN())
	}
	if due := l.due(time.Now(), s.History); due != "" {
		s.history.want(branchID, false)
	}
	return nil
}

// archiveRest archives what a branch without a process has finished, and returns the oldest WAL that its history needs of the
// rest: 0 when there is none.
func (s *Service) archiveRest(ctx context.Context, r history.Ref) (core.LSN, error) {
	if err := s.archive(ctx, r.Branch, r.Incarnation, ""); err != nil {
		return 0, err
	}
	l := s.history.line(r.Branch)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known.ID == 0 || l.known.Retention == 0 || l.known.Deleting {
		return 0, nil
	}
	return max(l.known.Fork, 1), nil
}

// readLine brings what is known of a line up to date. l.mu is held.
func (s *Service) readLine(ctx context.Context, l *line, branchID string, incarnation int) error {
	epoch := s.history.epoch.Load()
	if time.Since(l.read) < lineFresh && l.epoch == epoch && l.known.Number == incarnation {
		return nil
	}
	known, err := s.Store.History(ctx, branchID, incarnation)
	if core.IsKind(err, core.KindNotFound) { // not ready yet, or gone
		l.known = core.HistoryLine{}
		return nil
	}
	if err != nil {
		return err
	}
	if known.ID != l.known.ID {
		l.tail, l.held, l.last, l.clean = history.Tail{}, 0, core.Snapshot{}, false
	}
	lineage, err := s.lineage(ctx, branchID, incarnation)
	if err != nil {
		return err
	}
	l.known, l.based, l.last = known, false, core.Snapshot{}
	if base, ok := lineage.newest(core.LSN(1<<63 - 1)); ok {
		l.based = true
		if base.Incarnation == known.ID && base.Reason != snapshotTemplate {
			l.last = base
		}
	}
	l.read, l.epoch = time.Now(), epoch
	return nil
}

// cost is how much dearer snapshots of this line are than cheap ones.
func (l *line) cost() float64 {
	return max(1, float64(l.last.Took)/float64(cheapSnapshot))
}

// due says why a running line may need a snapshot now, "" when it does not. l.mu is held.
func (l *line) due(now time.Time, o HistoryOptions) string {
	since := cmp.Or(l.last.At, l.known.BeginAt)
	if now.Sub(l.failed) < time.Minute || now.Sub(l.last.At) < max(snapshotMinRest, snapshotRest*l.last.Took) {
		return ""
	}
	written := float64(l.tail.LSN()) - float64(max(l.last.End, l.known.Fork))
	switch {
	case l.tail.Gap:
		return snapshotGap
	case !l.based:
		return snapshotFirst
	case written >= o.wal()*l.cost():
		return snapshotWritten
	case now.Sub(since) >= time.Duration(float64(o.every())*l.cost()):
		return snapshotHourly
	}
	return ""
}

// snapshotLoop takes the snapshots that are due, one at a time.
func (s *Service) snapshotLoop(ctx context.Context) {
	for {
		id, asleep, ok := s.history.next()
		if !ok {
			select {
			case <-ctx.Done():
				return
			case <-s.history.wake:
			}
			continue
		}
		if err := s.considerSnapshot(ctx, id, asleep); err != nil && ctx.Err() == nil {
			s.log.Warn("cannot take a snapshot of a branch; it is tried again", "branch_id", id, "error", err)
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// considerSnapshot takes a snapshot of a branch that is due for one.
func (s *Service) considerSnapshot(ctx context.Context, branchID string, asleep bool) error {
	unlock, err := s.locks.share(ctx, branchID)
	if err != nil {
		return err
	}
	defer unlock()
	b, err := s.Store.BranchByID(ctx, branchID)
	if core.IsKind(err, core.KindNotFound) {
		s.history.forget(branchID)
		return nil
	}
	if err != nil || b.Deleting || b.State != core.BranchReady || b.Promote {
		return err
	}
	id, up, err := s.running(ctx, b.ID)
	if err != nil || asleep && up { // it runs again: the archive says when
		return err
	}
	l := s.history.line(branchID)
	l.mu.Lock()
	reason, err := s.reason(ctx, l, b, id, up)
	inc := l.known.Incarnation
	l.mu.Unlock()
	if err != nil || reason == "" {
		return err
	}
	if s.full.check() != nil || s.Volumes.Admit(ctx) != nil {
		return nil // history waits until there is room
	}
	taken, err := s.takeSnapshot(ctx, b, inc, reason, id, up) // which nobody has to wait for
	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil || taken.ID == 0 {
		l.failed = time.Now()
		return err
	}
	l.last, l.based, l.tail.Gap, l.failed = taken, true, false, time.Time{}
	return nil
}

// reason says why a branch is due for a snapshot, "" when it is not. l.mu is held.
func (s *Service) reason(ctx context.Context, l *line, b core.Branch, id string, up bool) (string, error) {
	if err := s.readLine(ctx, l, b.ID, b.Incarnation); err != nil || l.known.ID == 0 || l.known.Retention == 0 {
		return "", err
	}
	reason := ""
	if up {
		reason = l.due(time.Now(), s.History)
	} else {
		info, err := readControl(s.Volumes.Path(b.VolumeID))
		if err != nil || !info.Clean {
			return "", err
		}
		written := float64(info.Checkpoint) - float64(max(l.last.End, l.known.Fork))
		switch {
		case l.tail.Gap:
			return snapshotGap, nil
		case !l.based:
			return snapshotFirst, nil
		// A suspension alone is no reason while a replay from the last one takes no time: each snapshot makes the volume's
		// metadata, and the cleaning up of it, dearer. Where a copy takes time a client that comes meanwhile would wait for it.
		case s.Volumes.Atomic() && (written >= min(snapshotSmall, s.History.wal()) || time.Since(cmp.Or(l.last.At, l.known.BeginAt)) >= s.History.every()):
			reason = snapshotAsleep
		}
	}
	if reason != snapshotHourly && reason != snapshotAsleep {
		return reason, nil
	}
	written, err := s.writtenSince(ctx, l, b, id, up)
	if err != nil || written {
		return reason, err
	}
	l.failed = time.Now() // it is asked again in a minute
	return "", nil
}

// writtenSince tells whether anything but what servers note for themselves was written since a line's last snapshot.
func (s *Service) writtenSince(ctx context.Context, l *line, b core.Branch, id string, up bool) (bool, error) {
	var to core.LSN
	info, err := readControl(s.Volumes.Path(b.VolumeID))
	if to = info.Checkpoint; err == nil && up {
		err = s.Computes.Do(ctx, id, func(conn *pgx.Conn) (err error) {
			to, err = postgres.Flushed(ctx, conn)
			return err
		})
	}
	if err != nil {
		return false, err
	}
	past, err := s.WAL.OpenPast(history.Line{Branch: b.ID, Incarnation: b.Incarnation})
	if err != nil {
		return false, err
	}
	written, err := past.Written(ctx, l.last.Redo, l.last.End, to)
	if history.IsGap(err) {
		return true, nil
	}
	return written, err
}

// takeSnapshot makes a snapshot of a branch, whose lock the caller shares. It returns none when the branch still replays its
// parent's WAL: then there is nothing yet that its parent's snapshots do not give.
func (s *Service) takeSnapshot(ctx context.Context, b core.Branch, inc core.Incarnation, reason, computeID string, up bool) (core.Snapshot, error) {
	snap := core.Snapshot{Incarnation: inc.ID, Volume: "snapshot-" + core.NewUUID(), State: core.SnapshotMaking, Reason: reason}
	var err error
	s.history.setMaking(snap.Volume, true)
	defer s.history.setMaking(snap.Volume, false)
	if snap.ID, err = s.Store.InsertSnapshot(ctx, snap); err != nil {
		return core.Snapshot{}, err
	}
	var src history.Source
	if up {
		o := &origin{s: s, id: computeID}
		defer o.close(ctx)
		src = o
	}
	took, err := history.TakeSnapshot(ctx, history.SnapshotRequest{
		Of: ref(b), Volume: snap.Volume, Running: src, Volumes: s.Volumes, Dirs: s.WAL, ReadControl: readControl,
	})
	if err == nil && took.Redo >= inc.Fork {
		snap.Redo, snap.End, snap.At, snap.Took = took.Redo, took.End, took.At, took.Took
		if err = s.Store.KeepSnapshot(ctx, snap); err == nil {
			s.log.Info("took a snapshot of a branch", "branch_id", b.ID, "reason", reason, "lsn", took.End, "took", took.Took)
			return snap, nil
		}
	}
	clean := context.WithoutCancel(ctx)
	return core.Snapshot{}, errors.Join(err, s.dropSnapshot(clean, snap))
}

// isTemplate tells a snapshot whose volume is a template.
func isTemplate(n core.Snapshot) bool { return strings.HasPrefix(n.Volume, "template-") }

// dropSnapshot removes a snapshot: its volume, then its row.
func (s *Service) dropSnapshot(ctx context.Context, n core.Snapshot) error {
	if !isTemplate(n) {
		if err := s.Store.DropSnapshot(ctx, n.ID); err != nil {
			return err
		}
		if err := s.Volumes.Delete(ctx, n.Volume); err != nil {
			return err
		}
	}
	return s.Store.DeleteSnapshot(ctx, n.ID)
}

// dropHistory removes what is kept of a branch's past, for a branch that goes.
func (s *Service) dropHistory(ctx context.Context, branchID string) error {
	snapshots, err := s.Store.BranchSnapshots(ctx, branchID)
	for _, n := range snapshots {
		err = errors.Join(err, s.dropSnapshot(ctx, n))
	}
	s.history.forget(branchID)
	return err
}

// beginHistory records what a branch that was copied from its parent's head descends from.
func beginHistory(ctx context.Context, q store.Q, b, parent core.Branch, res history.ForkResult) error {
	lines, err := q.Lineage(ctx, parent.ID, parent.Incarnation)
	if err != nil {
		return err
	}
	i := core.Incarnation{BranchID: b.ID, Number: b.Incarnation, Fork: res.LSN, BeginAt: res.Time}
	if len(lines) > 0 {
		i.Parent = lines[0].ID
	}
	return q.PutIncarnation(ctx, i)
}

// beginRoot records what a root descends from: the template is the snapshot from which its first moments are reached.
func (s *Service) beginRoot(ctx context.Context, q store.Q, b core.Branch, template history.Ref, res history.ForkResult) error {
	if err := q.PutIncarnation(ctx, core.Incarnation{BranchID: b.ID, Number: b.Incarnation, Fork: res.LSN, BeginAt: res.Time}); err != nil {
		return err
	}
	have, err := q.BranchSnapshots(ctx, b.ID)
	if err != nil || len(have) > 0 {
		return err
	}
	line, err := q.History(ctx, b.ID, b.Incarnation)
	if err != nil {
		return err
	}
	_, err = q.InsertSnapshot(ctx, core.Snapshot{Incarnation: line.ID, Volume: template.Volume, State: core.SnapshotKept,
		Reason: snapshotTemplate, Redo: res.LSN - core.LSN(res.ReplayLen), End: res.LSN})
	return err
}
