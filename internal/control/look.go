package control

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/history"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

// Site says where the things are that a look compares.
type Site struct {
	DataDir  string // of the server
	Volumes  string // folder of the volumes
	WAL      string // folder of the WAL directories
	RunDir   string // folder of the sockets
	LogDir   string // where computes log
	UID, GID int    // owner of volumes and WAL directories; -1: whoever runs the server
	Driver   compute.Driver
	// Rows reads the control database; nil when it cannot be read, which leaves much unchecked.
	Rows func(ctx context.Context) (store.Inventory, error)
	Log  *slog.Logger
}

// look is what there was at one moment, or nearly: see gather.
type look struct {
	Site
	s         *Service // nil when no server runs: then nothing is repaired
	at        time.Time
	unchecked []string

	fault     storage.Fault
	pool      bool // what is below is of the pool, and can be believed
	volumes   map[string]*volume
	wal       map[string][]string // branch → incarnations
	leftovers []string
	logs      map[string]time.Time // of computes, by file name; when last written
	sockets   map[string]*volume   // folders in RunDir
	procs     []compute.Found
	units     []compute.Unit
	groups    []string         // computes that have a control group
	builds    []postgres.Build // installed; nobody looked when no server runs

	rows      bool // the inventory was read
	inv       store.Inventory
	projects  map[string]store.InventoryProject
	branches  map[string]store.InventoryBranch
	endpoints map[string]store.InventoryEndpoint
	busy      map[string]bool   // branches with open operations
	places    map[string]string // branches, volumes and endpoints → their projects
	doubt     string            // why nothing is removed although no row owns it
}

// volume is a folder that belongs to the computes' user.
type volume struct {
	uid, gid int
	mode     fs.FileMode
	wal      string // where pg_wal points; "" when it is no link
	standby  bool   // standby.signal is there
	pidFile  bool   // postmaster.pid is there
}

// gather looks at everything. The order matters: rows are inserted before their files are made, and deleted after them; so
// what is on disk is listed first, and what then has no row never had one, or is being deleted. In the same way a compute is
// known before its process is there.
func (s *Service) gather(ctx context.Context) (*look, error) {
	uid, gid := -1, -1
	if c := s.Init.Cred; c != nil {
		uid, gid = int(c.Uid), int(c.Gid)
	}
	l := &look{s: s, Site: Site{
		DataDir: s.DataDir, Volumes: s.Volumes.Path(""), WAL: s.WAL.Root(), RunDir: s.RunDir, LogDir: s.Reconcile.LogDir,
		UID: uid, GID: gid, Driver: s.Driver, Rows: s.Store.Inventory, Log: s.log,
	}}
	return l, l.gather(ctx)
}

// Inspect is a look from outside, when no server runs. Nothing is repaired.
func Inspect(ctx context.Context, site Site) (Report, error) {
	began := time.Now()
	l := &look{Site: site}
	if err := l.gather(ctx); err != nil {
		return Report{}, err
	}
	var r reconciler
	for range 2 { // nothing is under way that a second look would see as over
		r.note(l.check(), began, 0)
	}
	return r.report(began, l), nil
}

func (l *look) skip(what string, err error) {
	l.unchecked = append(l.unchecked, what+": "+core.UserMessage(err))
	if l.Log != nil && core.KindOf(err) == core.KindInternal {
		l.Log.Warn("reconciliation left something unchecked", "what", what, "error", err)
	}
}

func (l *look) gather(ctx context.Context) error {
	l.at = time.Now()
	if l.Log == nil {
		l.Log = slog.New(slog.DiscardHandler)
	}
	var err error
	if l.procs, err = l.Driver.Scan(ctx, l.Volumes); err != nil {
		l.skip("processes", err)
	}
	l.gatherPool(ctx)
	if err := l.gatherFiles(); err != nil {
		l.skip("WAL directories, logs and sockets", err)
	}
	if l.s != nil {
		if l.groups, err = l.s.Computes.Groups(); err != nil {
			l.skip("control groups", err)
		}
		l.units = l.s.Computes.Units()
		if l.builds, err = l.s.Builds.Find(ctx); err != nil && len(l.builds) == 0 {
			l.skip("PostgreSQL builds", err)
		}
	}
	if l.Rows != nil {
		if l.inv, err = l.Rows(ctx); err != nil {
			l.skip("the control database, and so everything that it says there should be", err)
		} else {
			l.rows = true
		}
	}
	l.index()
	return ctx.Err()
}

// gatherPool lists the volumes, when the pool is what it should be.
func (l *look) gatherPool(ctx context.Context) {
	fault, err := storage.LookForFault(l.DataDir)
	if err != nil {
		l.skip("the pool", err)
		return
	}
	if l.fault = fault; fault != storage.FaultNone && fault != storage.FaultReadOnly && fault != storage.FaultNoImage {
		if fault == storage.FaultUnmounted && l.s == nil {
			l.unchecked = append(l.unchecked, "volumes: the pool is not mounted, as after bough down")
		}
		return
	}
	names, err := readNames(l.Volumes)
	if err != nil {
		l.skip("volumes", err)
		return
	}
	l.volumes = map[string]*volume{}
	for _, name := range names {
		dir := filepath.Join(l.Volumes, name)
		v, ok := statVolume(dir)
		if !ok {
			continue
		}
		v.wal, _ = os.Readlink(filepath.Join(dir, "pg_wal"))
		v.standby = exists(filepath.Join(dir, "standby.signal"))
		v.pidFile = exists(filepath.Join(dir, "postmaster.pid"))
		l.volumes[name] = v
	}
	if l.s != nil {
		if l.leftovers, err = l.s.Volumes.Leftovers(ctx); err != nil {
			l.skip("staging", err)
		}
	}
	l.pool = true
}

// gatherFiles lists what is not in the pool.
func (l *look) gatherFiles() error {
	l.wal, l.logs, l.sockets = map[string][]string{}, map[string]time.Time{}, map[string]*volume{}
	branches, err := readNames(l.WAL)
	for _, b := range branches {
		incarnations, e := readNames(filepath.Join(l.WAL, b))
		if errors.Is(e, fs.ErrNotExist) || errors.Is(e, fs.ErrInvalid) {
			continue // deleted meanwhile
		}
		// An archive belongs to its branch; what is in it is history's to judge.
		l.wal[b] = slices.DeleteFunc(incarnations, history.IsArchive)
		err = errors.Join(err, e)
	}
	logs, e := readNames(l.LogDir)
	err = errors.Join(err, e)
	for _, name := range logs {
		if info, e := os.Lstat(filepath.Join(l.LogDir, name)); e == nil && info.Mode().IsRegular() {
			l.logs[name] = info.ModTime()
		}
	}
	sockets, e := readNames(l.RunDir)
	err = errors.Join(err, e)
	for _, name := range sockets {
		if v, ok := statVolume(filepath.Join(l.RunDir, name)); ok {
			l.sockets[name] = v
		}
	}
	return err
}

func (l *look) index() {
	l.projects, l.branches = map[string]store.InventoryProject{}, map[string]store.InventoryBranch{}
	l.endpoints, l.busy = map[string]store.InventoryEndpoint{}, map[string]bool{}
	for _, p := range l.inv.Projects {
		l.projects[p.ID] = p
	}
	for _, b := range l.inv.Branches {
		l.branches[b.ID] = b
	}
	for _, e := range l.inv.Endpoints {
		l.endpoints[e.ID] = e
	}
	for _, op := range l.inv.Open {
		l.busy[op.BranchID] = true
	}
	l.places = placesOf(l.inv)
}

// leads tells whether this look is for what no project's server looks after.
func (l *look) leads() bool { return l.s == nil || l.s.Fleet.Leads() }

// ours tells whether what has that id, a branch's, an endpoint's or a volume's, is for this look to judge: only the server that
// holds a project knows what it does there. What no row tells of, and what nobody holds, is the leader's.
func (l *look) ours(id string) bool {
	if l.s == nil {
		return true
	}
	switch holder := l.inv.Holders[l.places[id]]; {
	case holder == l.s.Fleet.Self():
		return true
	case holder != 0 && l.s.Fleet.Alive(holder):
		return false
	}
	return l.leads()
}

func (l *look) counts() map[string]int {
	return map[string]int{
		"projects": len(l.projects), "branches": len(l.branches), "endpoints": len(l.endpoints), "volumes": len(l.volumes),
		"wal_directories": len(l.wal), "processes": len(l.procs), "handles": len(l.inv.Handles), "open_operations": len(l.inv.Open),
	}
}

// owners says what the rows account for. Whoever keeps more files than those of branches names them here: what nobody owns
// is removed.
type owners struct {
	volumes map[string]bool
	wal     map[string]bool // folders below the WAL directory's root
	names   map[string]bool // of logs and socket folders: endpoints' and branches' ids
}

func owned(inv store.Inventory) owners {
	o := owners{volumes: map[string]bool{}, wal: map[string]bool{}, names: map[string]bool{}}
	for _, b := range inv.Branches {
		o.volumes[b.Volume], o.wal[b.ID], o.names[b.ID] = true, true, true
	}
	for _, e := range inv.Endpoints {
		o.names[e.ID] = true
		if e.Type == core.EndpointReadOnly && (e.State == core.EndpointActive || e.Pending != "" || e.Deleting) {
			o.volumes[e.ID], o.wal[e.ID] = true, true // a replica that sleeps has no files
		}
	}
	for _, n := range inv.Snapshots {
		o.volumes[n.Volume] = true
	}
	for major := postgres.MinMajor; major <= postgres.MaxMajor; major++ {
		t := templateRef(major)
		o.volumes[t.Volume], o.wal[t.Branch] = true, true
	}
	return o
}

// isDraft tells a template that is being made, or was when the server was killed.
func isDraft(id string) bool {
	return strings.HasPrefix(id, "template-") && strings.Contains(id, "-draft-")
}

// draftInUse tells whether this server makes a template under that name.
func (l *look) draftInUse(id string) bool {
	if l.s == nil {
		return false
	}
	_, busy := l.s.drafts.Load(id)
	return busy || isDraft(id) && l.s.Fleet.Company() // another server's, perhaps: what stays goes when one starts alone
}

// draftOf tells whether a template of that name is being made.
func (l *look) draftOf(template string) bool {
	found := false
	if l.s != nil {
		l.s.drafts.Range(func(name, _ any) bool {
			found = strings.HasPrefix(name.(string), template+"-draft-")
			return !found
		})
		found = found || l.s.Fleet.Company() && slices.ContainsFunc(slices.Collect(maps.Keys(l.volumes)), func(id string) bool {
			return strings.HasPrefix(id, template+"-draft-")
		})
	}
	return found
}

// readNames lists a folder; one that does not exist is empty.
func readNames(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// missing tells that there is nothing at path, and that this is certain.
func missing(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// statVolume reads a folder's owner and mode; ok is false for anything but a folder.
func statVolume(path string) (*volume, bool) {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() {
		return nil, false
	}
	v := &volume{uid: -1, gid: -1, mode: info.Mode().Perm()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		v.uid, v.gid = int(st.Uid), int(st.Gid)
	}
	return v, true
}
