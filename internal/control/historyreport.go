package control

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// BranchHistory is what is kept of a branch's past, for people.
type BranchHistory struct {
	ProjectID  string        `json:"project_id"`
	BranchID   string        `json:"branch_id"`
	Branch     string        `json:"branch"` // its name
	Retention  time.Duration `json:"retention_ns"`
	Since      *time.Time    `json:"since,omitempty"` // the oldest moment that can be reached; nil: only the head can
	SinceLSN   string        `json:"since_lsn,omitempty"`
	WAL        int64         `json:"wal_bytes"` // archived segments; what is still written is in the branch's own WAL
	Segments   int           `json:"wal_segments"`
	Snapshots  []KeptVolume  `json:"snapshots"`
	NeedParent bool          `json:"needs_parent"` // moments at the beginning of the window are reached through its parent's history
}

// KeptVolume is a snapshot of a branch.
type KeptVolume struct {
	Volume string        `json:"volume"`
	LSN    string        `json:"lsn"` // moments from here on are reached from it
	At     time.Time     `json:"at"`
	Reason string        `json:"reason"` // why it was taken
	Why    string        `json:"why"`    // why it is still there
	Took   time.Duration `json:"took_ns"`
}

// Histories tells what is kept of every branch, or of one that is named by its id or its name; and why.
func (s *Service) Histories(ctx context.Context, branch string) ([]BranchHistory, error) {
	lines, err := s.Store.HistoryLines(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := s.Store.AllSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	all := retention(lines, snapshots, now, 1)
	out := []BranchHistory{}
	for _, l := range lines {
		if l.Deleting || !l.Current || branch != "" && branch != l.BranchID && branch != l.BranchName {
			continue
		}
		k := all[l.ID]
		h := BranchHistory{ProjectID: l.ProjectID, BranchID: l.BranchID, Branch: l.BranchName, Retention: l.Retention, Snapshots: []KeptVolume{}}
		if had, _, err := s.WAL.DropArchived(ctx, l.BranchID, l.Number, 0, nil); err == nil {
			h.WAL, h.Segments = had.Bytes, had.Segments
		}
		var d descent
		for up := k; up != nil; up = all[up.line.Parent] {
			d.lines, d.snapshots = append(d.lines, up.line.Incarnation), append(d.snapshots, up.snapshots...)
		}
		since := now.Add(-l.Retention)
		if first, ok := d.first(since); ok && l.Retention > 0 {
			h.Since, h.SinceLSN = &first.At, first.End.String()
		}
		h.NeedParent = l.Parent != 0 && l.Retention > 0
		for _, n := range k.snapshots {
			h.NeedParent = h.NeedParent && n.At.After(since)
			why := k.keep[n.ID]
			if why == "" {
				why = "nothing needs it any more: it goes soon"
			}
			h.Snapshots = append(h.Snapshots, KeptVolume{Volume: n.Volume, LSN: n.End.String(), At: n.At, Reason: n.Reason, Why: why, Took: n.Took})
		}
		out = append(out, h)
	}
	if branch != "" && len(out) == 0 {
		return nil, core.NotFoundf("no branch has the id or the name %q", clip(branch))
	}
	return out, nil
}
