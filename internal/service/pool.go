package service

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/storage"
)

// PoolRoom is the space of one file system, in bytes.
type PoolRoom struct {
	Total    int64  `json:"total_bytes"`
	Free     int64  `json:"free_bytes"`
	Reserve  int64  `json:"reserve_bytes"`  // below it new branches are refused
	Critical int64  `json:"critical_bytes"` // below it computes are suspended
	Level    string `json:"level"`          // ok, refuse or critical
}

func poolRoom(r storage.Room) PoolRoom {
	return PoolRoom{r.Total, r.Free, r.Reserve, r.Critical, r.Level().String()}
}

// PoolImage is the file with the pool's own file system. Sizes are in bytes.
type PoolImage struct {
	Path         string `json:"path"`
	Preallocated bool   `json:"preallocated"`
	Size         int64  `json:"size_bytes"`
	Allocated    int64  `json:"allocated_bytes"` // on the disk
	Limit        int64  `json:"limit_bytes"`     // up to which it grows by itself; 0: as far as the disk has room
}

// PoolUser is what uses the space: a branch, or a template. Exclusive bytes come back when it is deleted; nil says that
// nobody asked, or that the file system cannot tell.
type PoolUser struct {
	Volume        string `json:"volume,omitempty"`
	BranchID      string `json:"branch_id,omitempty"`
	Branch        string `json:"branch,omitempty"` // its name, when the control database runs
	ProjectID     string `json:"project_id,omitempty"`
	Project       string `json:"project,omitempty"`
	Deleting      bool   `json:"deleting,omitempty"`
	Data          int64  `json:"data_bytes"`
	DataExclusive *int64 `json:"data_exclusive_bytes,omitempty"`
	WAL           int64  `json:"wal_bytes"`
	WALExclusive  int64  `json:"wal_exclusive_bytes"`
}

// size is what the users are ordered by.
func (u PoolUser) size() int64 {
	if u.DataExclusive != nil {
		return *u.DataExclusive + u.WALExclusive
	}
	return u.Data + u.WAL
}

// PoolStatus is what `bough pool status` shows.
type PoolStatus struct {
	DataDir   string     `json:"data_dir"`
	Backend   string     `json:"backend"`
	Level     string     `json:"level"`
	Disk      PoolRoom   `json:"disk"`
	Pool      *PoolRoom  `json:"pool,omitempty"`     // absent while the image is not mounted
	Metadata  *PoolRoom  `json:"metadata,omitempty"` // of an image
	Image     *PoolImage `json:"image,omitempty"`
	Names     bool       `json:"names"` // false: the control database does not run, so there are ids only
	Branches  []PoolUser `json:"branches"`
	Templates []PoolUser `json:"templates"`
	History   []PoolUser `json:"history"`           // snapshots of branches' pasts; see bough history
	Unknown   []PoolUser `json:"unknown,omitempty"` // in the pool, but not in the control database
	Staged    int        `json:"staged"`            // volumes being made at this moment
	Deleted   int        `json:"deleted"`           // deleted volumes whose space is not free yet
	WAL       int64      `json:"wal_bytes"`         // of all, shared segments once
	ControlDB int64      `json:"control_database_bytes"`
	Logs      int64      `json:"log_bytes"`
}

// LookPool measures what uses the space of a data directory. It reads only, one file after the other, at the lowest
// priority for processor and disk. With exclusive it also finds out what branches share, which takes longer; see
// storage.Measure. url names the control database when the server was given one.
func LookPool(ctx context.Context, dir, url string, exclusive bool) (PoolStatus, error) {
	st, err := storage.Look(ctx, dir)
	if err != nil {
		return PoolStatus{}, err
	}
	dir, err = filepath.Abs(dir)
	if err != nil {
		return PoolStatus{}, core.Wrap(err, "service.pool", "")
	}
	l := layout{dir}
	out := PoolStatus{DataDir: dir, Backend: st.Backend, Level: st.Space.Level.String(), Disk: poolRoom(st.Space.Host), Staged: st.Staged, Deleted: st.Deleted,
		Branches: []PoolUser{}, Templates: []PoolUser{}, History: []PoolUser{}}
	if st.Mounted {
		out.Pool = new(poolRoom(st.Space.Pool))
	}
	if st.Image != nil {
		out.Image = &PoolImage{st.Image.Path, st.Image.Preallocated, st.Image.Size, st.Image.Allocated, st.Image.Limit}
		if st.Mounted {
			out.Metadata = new(poolRoom(st.Space.Metadata))
		}
	}
	users, err := poolNames(ctx, l, url)
	out.Names = err == nil
	if err != nil && url != "" {
		return PoolStatus{}, err
	}
	err = gently(func() error { return out.measure(ctx, l, st.Volumes, users, exclusive) })
	return out, err
}

// poolNames returns the branches that the control database knows, by their volume and by their id.
func poolNames(ctx context.Context, l layout, url string) (map[string]PoolUser, error) {
	admin, done, err := OpenAdmin(ctx, l.dir, url)
	if err != nil {
		return nil, err
	}
	defer done()
	names, err := admin.Store.BranchNames(ctx)
	users := make(map[string]PoolUser, len(names))
	for _, n := range names {
		u := PoolUser{Volume: n.VolumeID, BranchID: n.ID, Branch: n.Name, ProjectID: n.ProjectID, Project: n.ProjectName, Deleting: n.Deleting}
		users[n.ID], users[n.VolumeID] = u, u
	}
	if err != nil {
		return nil, err
	}
	inv, err := admin.Store.Inventory(ctx)
	for _, n := range inv.Snapshots {
		if u := users[n.BranchID]; users[n.Volume].Volume == "" {
			u.Volume = n.Volume
			users[n.Volume] = u
		}
	}
	return users, err
}

func (p *PoolStatus) measure(ctx context.Context, l layout, volumes []string, known map[string]PoolUser, exclusive bool) error {
	wal, total, err := history.NewDirs(l.path("wal"), -1, -1).Usage(ctx)
	if err != nil {
		return err
	}
	p.WAL = total
	for _, id := range volumes {
		use, err := storage.Measure(ctx, filepath.Join(l.volumes(), id), exclusive)
		if err != nil {
			return err
		}
		u, ok := known[id]
		if !ok {
			u = PoolUser{Volume: id, BranchID: id} // a volume has its branch's id, until a restore gives it another
		}
		u.Data = use.Referenced
		if use.Exclusive >= 0 {
			u.DataExclusive = &use.Exclusive
		}
		if snapshot := strings.HasPrefix(id, "snapshot-"); snapshot && (ok || !p.Names) {
			p.History = append(p.History, u)
			continue
		}
		u.WAL, u.WALExclusive = wal[u.BranchID].Referenced, wal[u.BranchID].Exclusive
		switch {
		case strings.HasPrefix(id, "template-"):
			u.BranchID = ""
			p.Templates = append(p.Templates, u)
		case ok || !p.Names:
			p.Branches = append(p.Branches, u)
		default:
			p.Unknown = append(p.Unknown, u)
		}
	}
	for _, users := range [][]PoolUser{p.Branches, p.Templates, p.History, p.Unknown} {
		slices.SortFunc(users, func(a, b PoolUser) int {
			return cmp.Or(cmp.Compare(b.size(), a.size()), cmp.Compare(a.Volume, b.Volume))
		})
	}
	for path, sum := range map[string]*int64{l.control(): &p.ControlDB, l.logs(): &p.Logs} {
		if _, err := os.Lstat(path); err != nil {
			continue // an external control database; no log yet
		}
		use, err := storage.Measure(ctx, path, false)
		if err != nil {
			return err
		}
		*sum = use.Referenced
	}
	return nil
}

// gently runs f where it takes processor and disk only when nothing else wants them.
func gently(f func() error) error {
	done := make(chan error)
	go func() {
		// Linux keeps both priorities for each thread; this one ends with the goroutine that does not give it back.
		runtime.LockOSThread()
		const whoProcess, classIdle, classShift = 1, 3, 13 // ioprio_set(2)
		_ = unix.Setpriority(unix.PRIO_PROCESS, 0, 19)
		_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, classIdle<<classShift)
		done <- f()
	}()
	return <-done
}

// GrowPool makes the pool image larger; see storage.Grow.
func GrowPool(ctx context.Context, dir string, by, to int64, log *slog.Logger) (before, after int64, err error) {
	return storage.Grow(ctx, storage.GrowRequest{Dir: dir, By: by, To: to, Log: log})
}
