package control

import (
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// TestRetention: what leads to a moment of some window is kept, and nothing else.
func TestRetention(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	ago := func(h int) time.Time { return now.Add(-time.Duration(h) * time.Hour) }
	line := func(id, parent int64, fork core.LSN, window time.Duration) core.HistoryLine {
		return core.HistoryLine{Incarnation: core.Incarnation{ID: id, Parent: parent, Fork: fork, BranchID: string(rune('a' + id))}, Retention: window, Current: true}
	}
	snapshot := func(id, line int64, end core.LSN, hours int) core.Snapshot {
		return core.Snapshot{ID: id, Incarnation: line, State: core.SnapshotKept, Redo: end - 10, End: end, At: ago(hours)}
	}
	const day = 24 * time.Hour
	for name, c := range map[string]struct {
		lines     []core.HistoryLine
		snapshots []core.Snapshot
		factor    float64
		keep      []int64
		wal       map[int64][]core.LSN // bytes that are kept and that are not, by line: kept first, 0, then not kept
	}{
		"the newest before the window, and all later ones": {
			lines:     []core.HistoryLine{line(1, 0, 100, day)},
			snapshots: []core.Snapshot{snapshot(1, 1, 200, 60), snapshot(2, 1, 300, 50), snapshot(3, 1, 400, 20), snapshot(4, 1, 500, 1)},
			keep:      []int64{2, 3, 4}, wal: map[int64][]core.LSN{1: {290, 350, 900, 0, 289, 150}},
		},
		"no window": {
			lines:     []core.HistoryLine{line(1, 0, 100, 0)},
			snapshots: []core.Snapshot{snapshot(1, 1, 200, 60), snapshot(2, 1, 300, 1)},
			wal:       map[int64][]core.LSN{1: {0, 290, 900}},
		},
		"a child without a snapshot of its own needs its parent's before its fork": {
			lines:     []core.HistoryLine{line(1, 0, 100, day), line(2, 1, 250, day)},
			snapshots: []core.Snapshot{snapshot(1, 1, 200, 60), snapshot(2, 1, 300, 50), snapshot(3, 1, 400, 20), snapshot(4, 2, 270, 2)},
			keep:      []int64{1, 2, 3, 4}, wal: map[int64][]core.LSN{1: {190, 249, 290, 900, 0, 189, 260}, 2: {251, 900, 0, 240}},
		},
		"a child with one needs nothing": {
			lines:     []core.HistoryLine{line(1, 0, 100, day), line(2, 1, 250, day)},
			snapshots: []core.Snapshot{snapshot(1, 1, 200, 60), snapshot(2, 1, 300, 50), snapshot(4, 2, 270, 40)},
			keep:      []int64{2, 4}, wal: map[int64][]core.LSN{1: {290, 0, 250}, 2: {260, 0, 251}},
		},
		"a grandchild through a child that has none": {
			lines:     []core.HistoryLine{line(1, 0, 100, day), line(2, 1, 250, day), line(3, 2, 280, day)},
			snapshots: []core.Snapshot{snapshot(1, 1, 200, 60), snapshot(2, 1, 300, 50), snapshot(3, 2, 290, 40)},
			keep:      []int64{1, 2, 3}, wal: map[int64][]core.LSN{1: {190, 249, 290, 0, 260}, 2: {250, 279, 285, 900}},
		},
		"a shortened window": {
			lines:     []core.HistoryLine{line(1, 0, 100, day)},
			snapshots: []core.Snapshot{snapshot(1, 1, 200, 60), snapshot(2, 1, 300, 30), snapshot(3, 1, 400, 20), snapshot(4, 1, 500, 1)},
			factor:    0.5, keep: []int64{3, 4}, wal: map[int64][]core.LSN{1: {390, 0, 389}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			if c.factor == 0 {
				c.factor = 1
			}
			all := retention(c.lines, c.snapshots, now, c.factor)
			var keep []int64
			for _, k := range all {
				keep = slices.AppendSeq(keep, maps.Keys(k.keep))
			}
			if slices.Sort(keep); !slices.Equal(keep, c.keep) {
				t.Errorf("keeps snapshots %d, want %d", keep, c.keep)
			}
			for id, at := range c.wal {
				want := true
				for _, lsn := range at {
					if lsn == 0 {
						want = false
					} else if all[id].wants(lsn, lsn+1) != want {
						t.Errorf("line %d: the byte at %d is kept: %v", id, lsn, !want)
					}
				}
			}
		})
	}
}

// TestThin: of too many snapshots those go that are old and close to others; the first and the last stay.
func TestThin(t *testing.T) {
	now := time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)
	var list []core.Snapshot
	for i := range 2 * maxSnapshots {
		list = append(list, core.Snapshot{ID: int64(i), End: core.LSN(i) << 27, At: now.Add(time.Duration(i-2*maxSnapshots) * time.Minute)})
	}
	got := thin(list, now)
	if len(got) != maxSnapshots || got[0].ID != 0 || got[len(got)-1].ID != list[len(list)-1].ID || len(list) != 2*maxSnapshots {
		t.Fatalf("%d are left, from %d to %d", len(got), got[0].ID, got[len(got)-1].ID)
	}
	old, young := got[5].End-got[4].End, got[len(got)-4].End-got[len(got)-5].End
	if old <= young {
		t.Errorf("%d bytes between old ones, %d between young ones", old, young)
	}
}
