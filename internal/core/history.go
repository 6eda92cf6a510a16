package core

import "time"

// Incarnation is the data that a branch has, or had before it was restored in place: a line of WAL that begins where it forked
// from its parent's.
type Incarnation struct {
	ID       int64
	BranchID string
	Number   int
	Parent   int64 // another incarnation's id; 0 for a root
	Fork     LSN   // all before it is the parent's; a root's is its template's
	Begin    LSN   // the first moment that can be reached; behind Fork when the first start had something to set up
	BeginAt  time.Time
}

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

// The states of a snapshot. Its row is there before its volume, and goes after it.
const (
	SnapshotMaking   SnapshotState = "making"
	SnapshotKept     SnapshotState = "kept"
	SnapshotDropping SnapshotState = "dropping"
)

// Snapshot is a volume from which, with the WAL from Redo on, every moment at or after End can be reached.
type Snapshot struct {
	ID          int64
	Incarnation int64
	Volume      string
	State       SnapshotState
	Reason      string
	Redo, End   LSN
	At          time.Time // every commit before End was made by then
	Took        time.Duration
}

// HistoryLine is an incarnation with what decides how much of its history is kept.
type HistoryLine struct {
	Incarnation
	ProjectID  string
	BranchName string
	Volume     string        // of the branch now
	Retention  time.Duration // the project's
	Current    bool          // it is what the branch is now
	Deleting   bool          // its branch or project is
	Holder     int64         // the server that holds the project; 0: none
}
