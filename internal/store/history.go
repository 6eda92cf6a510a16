package store

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/store/db"
)

func toIncarnation(r db.Incarnation) core.Incarnation {
	i := core.Incarnation{ID: r.ID, BranchID: r.BranchID, Number: int(r.Number), Fork: core.LSN(r.ForkLsn), Begin: core.LSN(r.BeginLsn), BeginAt: r.BeginAt}
	if r.Parent != nil {
		i.Parent = *r.Parent
	}
	return i
}

func toSnapshot(r db.HistorySnapshot) core.Snapshot {
	return core.Snapshot{
		ID: r.ID, Incarnation: r.Incarnation, Volume: r.Volume, State: core.SnapshotState(r.State), Reason: r.Reason, Redo: core.LSN(r.RedoLsn),
		End: core.LSN(r.EndLsn), At: r.TakenAt, Took: time.Duration(r.TookMs) * time.Millisecond,
	}
}

// PutIncarnation records what a branch's data descend from: Parent, Fork and BeginAt. It can run twice.
func (q Q) PutIncarnation(ctx context.Context, i core.Incarnation) error {
	var parent *int64
	if i.Parent != 0 {
		parent = &i.Parent
	}
	return internal(q.db.PutIncarnation(ctx, db.PutIncarnationParams{
		BranchID: i.BranchID, Number: int32(i.Number), Parent: parent, ForkLsn: int64(i.Fork), BeginAt: i.BeginAt,
	}))
}

// BeginIncarnation records the first moment of an incarnation that can be reached.
func (q Q) BeginIncarnation(ctx context.Context, branchID string, number int, lsn core.LSN, at time.Time) error {
	return internal(q.db.BeginIncarnation(ctx, db.BeginIncarnationParams{BranchID: branchID, Number: int32(number), BeginLsn: int64(lsn), BeginAt: at}))
}

// Lineage returns an incarnation and its ancestors, itself first; it is empty when the incarnation is not known.
func (q Q) Lineage(ctx context.Context, branchID string, number int) ([]core.Incarnation, error) {
	rows, err := q.db.Lineage(ctx, db.LineageParams{BranchID: branchID, Number: int32(number)})
	return many(rows, err, func(r db.LineageRow) core.Incarnation { return toIncarnation(db.Incarnation(r)) })
}

// KeptSnapshots returns the finished snapshots of incarnations, by where they end.
func (q Q) KeptSnapshots(ctx context.Context, incarnations []int64) ([]core.Snapshot, error) {
	rows, err := q.db.KeptSnapshots(ctx, incarnations)
	return many(rows, err, toSnapshot)
}

// BranchSnapshots returns all snapshots of a branch.
func (q Q) BranchSnapshots(ctx context.Context, branchID string) ([]core.Snapshot, error) {
	rows, err := q.db.BranchSnapshots(ctx, branchID)
	return many(rows, err, toSnapshot)
}

// AllSnapshots returns every snapshot, by incarnation and by where they end.
func (q Q) AllSnapshots(ctx context.Context) ([]core.Snapshot, error) {
	rows, err := q.db.AllSnapshots(ctx)
	return many(rows, err, toSnapshot)
}

// InsertSnapshot records a snapshot before it is made, and returns its id.
func (q Q) InsertSnapshot(ctx context.Context, s core.Snapshot) (int64, error) {
	id, err := q.db.InsertSnapshot(ctx, db.InsertSnapshotParams{
		Incarnation: s.Incarnation, Volume: s.Volume, State: string(s.State), Reason: s.Reason, RedoLsn: int64(s.Redo), EndLsn: int64(s.End),
	})
	return id, internal(err)
}

// KeepSnapshot records that a snapshot is made: Redo, End, At and Took.
func (q Q) KeepSnapshot(ctx context.Context, s core.Snapshot) error {
	return internal(q.db.KeepSnapshot(ctx, db.KeepSnapshotParams{
		ID: s.ID, RedoLsn: int64(s.Redo), EndLsn: int64(s.End), TakenAt: s.At, TookMs: s.Took.Milliseconds(),
	}))
}

// DropSnapshot records that a snapshot's volume is about to go.
func (q Q) DropSnapshot(ctx context.Context, id int64) error {
	return internal(q.db.DropSnapshot(ctx, id))
}

// DeleteSnapshot forgets a snapshot whose volume is gone.
func (q Q) DeleteSnapshot(ctx context.Context, id int64) error {
	return internal(q.db.DeleteSnapshot(ctx, id))
}

// HistoryLines returns every incarnation, the oldest first.
func (q Q) HistoryLines(ctx context.Context) ([]core.HistoryLine, error) {
	rows, err := q.db.AllIncarnations(ctx)
	return many(rows, err, func(r db.AllIncarnationsRow) core.HistoryLine {
		return core.HistoryLine{
			Incarnation: toIncarnation(db.Incarnation{ID: r.ID, BranchID: r.BranchID, Number: r.Number, Parent: r.Parent, ForkLsn: r.ForkLsn,
				BeginLsn: r.BeginLsn, BeginAt: r.BeginAt}),
			ProjectID: r.ProjectID, BranchName: r.Name, Volume: r.VolumeID, Retention: time.Duration(r.HistoryRetention) * time.Second,
			Current: r.Current, Deleting: r.Deleting, Holder: r.Holder,
		}
	})
}

// History returns one incarnation with its project's retention.
func (q Q) History(ctx context.Context, branchID string, number int) (core.HistoryLine, error) {
	r, err := q.db.HistoryOf(ctx, db.HistoryOfParams{BranchID: branchID, Number: int32(number)})
	return one(r, err, func(r db.HistoryOfRow) core.HistoryLine {
		return core.HistoryLine{
			Incarnation: toIncarnation(db.Incarnation{ID: r.ID, BranchID: r.BranchID, Number: r.Number, Parent: r.Parent, ForkLsn: r.ForkLsn,
				BeginLsn: r.BeginLsn, BeginAt: r.BeginAt}),
			Retention: time.Duration(r.HistoryRetention) * time.Second, Current: true,
		}
	}, "the history of branch", branchID)
}
