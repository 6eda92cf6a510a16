package control

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

// The kinds of drift.
const (
	DriftPool             DriftKind = "pool"
	DriftIdentity         DriftKind = "identity"
	DriftMissingVolume    DriftKind = "missing_volume"
	DriftMissingWAL       DriftKind = "missing_wal"
	DriftWALLink          DriftKind = "wal_link"
	DriftStandby          DriftKind = "standby_signal"
	DriftOrphanVolume     DriftKind = "orphan_volume"
	DriftOrphanWAL        DriftKind = "orphan_wal"
	DriftOldWAL           DriftKind = "old_wal"
	DriftStaging          DriftKind = "staging"
	DriftTemplate         DriftKind = "template"
	DriftAccess           DriftKind = "access"
	DriftStray            DriftKind = "stray_process"
	DriftPIDFile          DriftKind = "stale_pid_file"
	DriftLostCompute      DriftKind = "lost_compute"
	DriftUnknownCompute   DriftKind = "unknown_compute"
	DriftEndpointState    DriftKind = "endpoint_state"
	DriftMissingHandle    DriftKind = "missing_handle"
	DriftStaleHandle      DriftKind = "stale_handle"
	DriftSocket           DriftKind = "lost_socket"
	DriftSocketDir        DriftKind = "stale_socket_folder"
	DriftLog              DriftKind = "stale_log"
	DriftStuckOperation   DriftKind = "stuck_operation"
	DriftSlowOperation    DriftKind = "slow_operation"
	DriftPending          DriftKind = "lost_operation"
	DriftMissingMajor     DriftKind = "missing_postgres"
	DriftSpace            DriftKind = "space"
	DriftAdminFile        DriftKind = "admin_file"
	DriftSecrets          DriftKind = "secrets"
	DriftControlDatabase  DriftKind = "control_database"
	DriftEnvironment      DriftKind = "environment"
	DriftServer           DriftKind = "server"
	DriftGroup            DriftKind = "stale_control_group"
	stuckAfter                      = 15 * time.Second // the queue looks every 5
	slowAfter                       = 10 * time.Minute
	keepLogs                        = 24 * time.Hour // of endpoints that were deleted
	fewOrphans                      = 3              // these may be removed whatever their share is
	suspiciousOrphanShare           = 4              // one of so many owned
)

var driftKinds = map[DriftKind]Severity{
	DriftPool: Critical, DriftIdentity: Critical, DriftMissingVolume: Critical, DriftMissingWAL: Critical,
	DriftWALLink: Critical, DriftStandby: Warning, DriftOrphanVolume: Notice, DriftOrphanWAL: Notice, DriftOldWAL: Notice,
	DriftStaging: Notice, DriftTemplate: Warning, DriftAccess: Warning, DriftStray: Warning, DriftPIDFile: Notice,
	DriftLostCompute: Warning, DriftUnknownCompute: Warning, DriftEndpointState: Warning, DriftMissingHandle: Warning,
	DriftStaleHandle: Notice, DriftSocket: Warning, DriftSocketDir: Notice, DriftLog: Notice, DriftStuckOperation: Warning,
	DriftSlowOperation: Warning, DriftPending: Warning, DriftMissingMajor: Warning, DriftSpace: Critical, DriftAdminFile: Warning,
	DriftSecrets: Critical, DriftControlDatabase: Critical, DriftEnvironment: Warning, DriftServer: Critical, DriftGroup: Notice,
}

// check compares. It changes nothing; what it returns may be work that is under way, which a second look tells.
func (l *look) check() []Finding {
	var out []Finding
	leads := l.leads()
	if leads {
		out = append(out, l.checkPool()...)
	}
	if l.rows && leads {
		out = append(out, l.checkIdentity()...)
	}
	if l.rows && l.pool {
		if leads {
			out = append(out, l.checkFiles()...)
			out = append(out, l.checkTemplates()...)
		}
		out = append(out, l.checkBranches()...)
	}
	if l.rows {
		out = append(out, l.checkComputes()...)
	}
	if l.rows && leads {
		out = append(out, l.checkOperations()...)
		out = append(out, l.checkNames()...)
	}
	return out
}

// fix is a repair, when a server can do it.
func (l *look) fix(f func(ctx context.Context, s *Service) error) func(ctx context.Context) error {
	if l.s == nil {
		return nil
	}
	return func(ctx context.Context) error { return f(ctx, l.s) }
}

func (l *look) checkPool() []Finding {
	f := Finding{Kind: DriftPool, Subject: filepath.Join(l.DataDir, "pool")}
	switch l.fault {
	case storage.FaultNone:
		return nil
	case storage.FaultUnmounted:
		if l.s == nil {
			return nil // `bough down` unmounts it
		}
		f.Problem = "The storage pool was unmounted while the server ran: no branch can be reached."
		f.Will, f.Now = "mount it again", true
		f.Advice = "if that fails: find out who unmounted it, then restart the server"
		f.Repair = l.fix(func(ctx context.Context, s *Service) error { return s.Volumes.Remount(ctx) })
	case storage.FaultForeign:
		f.Problem = "Something else is mounted over the storage pool, or the pool's image belongs to no loop device: the branches are hidden."
		f.Advice = "unmount what is there (umount " + f.Subject + "); the server mounts its own image again"
	case storage.FaultReadOnly:
		f.Problem = "The storage pool is read-only: its file system stopped itself after an error."
		f.Advice = "read the kernel's log (dmesg) for the cause, free space if it is full, and restart the server, which mounts it again"
	case storage.FaultNoImage:
		f.Problem = "The file of the storage pool, pool.img, was removed. What is in it lives only as long as it stays mounted."
		f.Advice = "do not stop anything: copy the branches' data out now (pg_dump, or the file through /proc), then set up a new data directory"
	case storage.FaultNoFolder:
		f.Problem = "The folder of the volumes, " + l.Volumes + ", does not exist: no branch can be reached."
		f.Advice = "restore it from a backup before you restart the server"
		if l.s == nil && !l.rows {
			return nil // a data directory that was never used
		}
	}
	return []Finding{f}
}

// checkIdentity decides whether what no row owns may be removed.
func (l *look) checkIdentity() []Finding {
	return append(l.checkSameDatabase(), l.checkPosition()...)
}

func (l *look) checkSameDatabase() []Finding {
	raw, err := os.ReadFile(filepath.Join(l.DataDir, "identity"))
	id, known := strings.TrimSpace(string(raw)), l.inv.Meta["data_directory"]
	if err == nil && id == known {
		return nil
	}
	l.doubt = "the control database may not be the one of this data directory"
	f := Finding{Kind: DriftIdentity, Subject: l.DataDir,
		Problem: "The data directory and the control database do not carry the same identity: they may belong to different installations.",
		Advice:  "check --data-dir and --database-url; until this is settled the server removes nothing. If the file identity was lost, it should hold: " + known}
	return []Finding{f}
}

// judgeOrphans stops all removals when there are so many orphans that the rows are more likely to be wrong.
func (l *look) judgeOrphans(orphans, owned int) {
	if l.doubt == "" && orphans > 0 && (owned == 0 || orphans > max(fewOrphans, owned/suspiciousOrphanShare)) {
		l.doubt = fmt.Sprintf("%d volumes or WAL directories have no owner and %d have one, which looks like an old or wrong control database", orphans, owned)
	}
}

// remove makes the finding of something that nobody owns.
func (l *look) remove(kind DriftKind, subject, problem string, f func(ctx context.Context, s *Service) error) Finding {
	out := Finding{Kind: kind, Subject: subject, Problem: problem}
	if l.doubt != "" {
		out.Advice = "nothing is removed, because " + l.doubt + ". Check the control database; if it is right, remove it by hand"
		return out
	}
	out.Will, out.Repair = "remove it", l.fix(f)
	return out
}

// checkFiles finds files without rows.
func (l *look) checkFiles() []Finding {
	var out []Finding
	own := owned(l.inv)
	var volumes, wal []string
	// Drafts, and files of replicas that sleep, say nothing against the rows.
	strange := map[string]bool{}
	unknown := func(id string) bool { return !isDraft(id) && l.endpoints[id].ID == "" }
	for id := range l.volumes {
		if !own.volumes[id] && !l.draftInUse(id) && !strings.HasPrefix(id, ".") && l.ours(id) {
			volumes = append(volumes, id)
			strange[id] = unknown(id)
		}
	}
	for id := range l.wal {
		if !own.wal[id] && !l.draftInUse(id) && !strings.HasPrefix(id, ".") && l.ours(id) {
			wal = append(wal, id)
			strange[id] = unknown(id)
		}
	}
	orphans := 0
	for _, counts := range strange {
		if counts {
			orphans++
		}
	}
	l.judgeOrphans(orphans, len(l.branches))
	for _, id := range sorted(volumes) {
		out = append(out, l.remove(DriftOrphanVolume, id, fmt.Sprintf("No branch owns the volume %s in %s.", id, l.Volumes),
			func(ctx context.Context, s *Service) error { return s.removeOrphanVolume(ctx, id) }))
	}
	for _, id := range sorted(wal) {
		out = append(out, l.remove(DriftOrphanWAL, id, fmt.Sprintf("No branch owns the WAL directory %s.", filepath.Join(l.WAL, id)),
			func(ctx context.Context, s *Service) error { return s.removeOrphanWAL(ctx, id) }))
	}
	for _, name := range l.leftovers {
		out = append(out, l.remove(DriftStaging, name, fmt.Sprintf("The half-made volume %s was left in pool/staging.", name),
			func(ctx context.Context, s *Service) error { return s.Volumes.RemoveLeftover(ctx, name) }))
	}
	return out
}

// checkBranches finds rows without files, and files that are not as they should be.
func (l *look) checkBranches() []Finding {
	var out []Finding
	own := owned(l.inv)
	for _, id := range sorted(slices.Collect(maps.Keys(l.volumes))) {
		if !own.volumes[id] || !l.ours(id) {
			continue
		}
		out = append(out, l.checkAccess(filepath.Join(l.Volumes, id), l.volumes[id])...)
	}
	for _, b := range l.inv.Branches {
		if b.State != core.BranchReady || b.Deleting || l.projects[b.ProjectID].Deleting || !l.ours(b.ID) {
			continue
		}
		data, wal := filepath.Join(l.Volumes, b.Volume), filepath.Join(l.WAL, b.ID, strconv.Itoa(b.Incarnation))
		if missing(data) {
			out = append(out, Finding{Kind: DriftMissingVolume, Subject: b.ID,
				Problem: fmt.Sprintf("The data of branch %s is gone: there is no volume %s.", b.ID, data),
				Advice:  "restore the folder from a backup, or delete the branch; until then its endpoints answer with an error and everything else works"})
		}
		if missing(wal) {
			out = append(out, Finding{Kind: DriftMissingWAL, Subject: b.ID,
				Problem: fmt.Sprintf("The write-ahead log of branch %s is gone: there is no folder %s.", b.ID, wal),
				Advice:  "restore the folder from a backup, or delete the branch; until then its endpoints answer with an error and everything else works"})
		}
		v := l.volumes[b.Volume]
		if v == nil {
			continue
		}
		for _, n := range l.wal[b.ID] {
			if n != strconv.Itoa(b.Incarnation) && !l.busy[b.ID] {
				out = append(out, l.remove(DriftOldWAL, b.ID+"/"+n, fmt.Sprintf("The WAL directory %s is of another incarnation than branch %s now is.", filepath.Join(l.WAL, b.ID, n), b.ID),
					func(ctx context.Context, s *Service) error { return s.removeOldWAL(ctx, b.ID, n) }))
			}
		}
		if v.wal != wal {
			out = append(out, Finding{Kind: DriftWALLink, Subject: b.ID,
				Problem: fmt.Sprintf("The link %s leads to %q instead of %s, as when the data directory was moved.", filepath.Join(data, "pg_wal"), v.wal, wal),
				Advice:  fmt.Sprintf("suspend the branch's endpoints; if %s holds its newest segments: ln -sfn %s %s", wal, wal, filepath.Join(data, "pg_wal"))})
		}
		if l.busy[b.ID] || l.working(data) {
			continue
		}
		if v.standby && !b.Promote {
			out = append(out, Finding{Kind: DriftStandby, Subject: b.ID,
				Problem: fmt.Sprintf("Branch %s has been started before, but its volume holds standby.signal, so it would start as a standby.", b.ID),
				Advice:  fmt.Sprintf("find out who made %s; if nobody restored a copy there, remove that file", filepath.Join(data, "standby.signal"))})
		}
		if v.pidFile && !l.processIn(data) {
			out = append(out, Finding{Kind: DriftPIDFile, Subject: b.ID,
				Problem: fmt.Sprintf("Branch %s sleeps, but a dead server left a postmaster.pid in its volume.", b.ID),
				Will:    "remove the file", Repair: l.fix(func(ctx context.Context, s *Service) error { return s.clearVolume(ctx, b.ID) })})
		}
	}
	return out
}

func (l *look) checkAccess(path string, v *volume) []Finding {
	wrongOwner := l.UID >= 0 && (v.uid != l.UID || v.gid != l.GID)
	wrongMode := v.mode != 0o700 && v.mode != 0o750
	if !wrongOwner && !wrongMode {
		return nil
	}
	problem := fmt.Sprintf("The folder %s has mode %#o; PostgreSQL demands 0700.", path, v.mode)
	if wrongOwner {
		problem = fmt.Sprintf("The folder %s belongs to user %d and group %d instead of %d and %d.", path, v.uid, v.gid, l.UID, l.GID)
	}
	return []Finding{{Kind: DriftAccess, Subject: path, Problem: problem, Will: "set owner and mode",
		Advice: "if files inside belong to somebody else too, correct them with: chown -R " + strconv.Itoa(l.UID) + " " + path,
		Repair: l.fix(func(context.Context, *Service) error { return setAccess(path, l.UID, l.GID) })}}
}

// checkTemplates finds templates that cannot be copied, and the default one when it is missing.
func (l *look) checkTemplates() []Finding {
	if l.s == nil {
		return nil // made at the next start
	}
	var out []Finding
	standard, _ := postgres.Default(l.builds)
	for _, build := range l.builds {
		t := templateRef(build.Major)
		_, volume := l.volumes[t.Volume]
		wal := !missing(filepath.Join(l.WAL, t.Branch, strconv.Itoa(t.Incarnation)))
		if (volume && wal) || (!volume && build.Major != standard.Major) {
			continue // the templates of other majors are made when they are needed
		}
		if l.draftOf(t.Volume) {
			continue
		}
		problem := fmt.Sprintf("There is no template for new projects with PostgreSQL %d.", build.Major)
		if volume {
			problem = fmt.Sprintf("The template for new projects with PostgreSQL %d has lost its WAL.", build.Major)
		}
		out = append(out, Finding{Kind: DriftTemplate, Subject: t.Volume, Problem: problem, Will: "make it again",
			Repair: l.fix(func(ctx context.Context, s *Service) error { return s.remakeTemplate(ctx, build) })})
	}
	return out
}

// working tells whether a compute of this server works on a data directory.
func (l *look) working(dataDir string) bool {
	return slices.ContainsFunc(l.units, unitOn(dataDir))
}

func (l *look) processIn(dataDir string) bool {
	for _, p := range l.procs {
		if p.DataDir == dataDir {
			return true
		}
	}
	return false
}

// checkNames finds logs and socket folders of endpoints that do not exist any more.
func (l *look) checkNames() []Finding {
	own := owned(l.inv).names
	foreign := func(id string) bool {
		return (strings.HasPrefix(id, "ep-") || strings.HasPrefix(id, "br-")) && !own[id] &&
			!slices.ContainsFunc(l.units, unitOf(id))
	}
	var out []Finding
	for name, written := range l.logs {
		id, ok := strings.CutSuffix(strings.TrimSuffix(name, ".1"), ".log")
		if ok && foreign(id) && l.at.Sub(written) > keepLogs {
			path := filepath.Join(l.LogDir, name)
			out = append(out, l.remove(DriftLog, name, fmt.Sprintf("The log %s is of an endpoint that was deleted.", path),
				func(ctx context.Context, s *Service) error {
					return s.ifUnowned(ctx, id, func(o owners) bool { return o.names[id] }, func() error { return os.Remove(path) })
				}))
		}
	}
	for name, v := range l.sockets {
		path := filepath.Join(l.RunDir, name)
		if foreign(name) {
			out = append(out, l.remove(DriftSocketDir, name, fmt.Sprintf("The socket folder %s is of an endpoint that was deleted.", path),
				func(ctx context.Context, s *Service) error {
					return s.ifUnowned(ctx, name, func(o owners) bool { return o.names[name] }, func() error { return os.RemoveAll(path) })
				}))
		} else if own[name] || name == "control" {
			out = append(out, l.checkAccess(path, v)...)
		}
	}
	slices.SortFunc(out, func(a, b Finding) int { return strings.Compare(a.Subject, b.Subject) })
	return out
}

// checkOperations finds work that nobody does.
func (l *look) checkOperations() []Finding {
	var out []Finding
	heads := map[string]bool{}
	for _, op := range l.inv.Open {
		if heads[op.BranchID] {
			continue
		}
		heads[op.BranchID] = true
		age := l.at.Sub(op.Updated)
		what := fmt.Sprintf("Operation %s (%s on branch %s)", op.ID, op.Action, op.BranchID)
		switch {
		case l.s == nil:
			// The next start goes on with it.
		case age > stuckAfter && (op.Server == nil || !l.s.Fleet.Alive(*op.Server)):
			out = append(out, Finding{Kind: DriftStuckOperation, Subject: op.ID, Problem: what + " is open and no server works on it.",
				Will: "start it again", Repair: l.fix(func(ctx context.Context, s *Service) error { return s.kickBranch(ctx, op.BranchID) })})
		case age > slowAfter:
			out = append(out, Finding{Kind: DriftSlowOperation, Subject: op.ID,
				Problem: what + fmt.Sprintf(" makes no progress since %s.", op.Updated.UTC().Format(time.RFC3339)),
				Advice:  "look for its id in the server's log; a restart of the server starts it anew and harms nothing"})
		}
	}
	for _, b := range l.inv.Branches {
		if l.busy[b.ID] || (b.Pending == "" && !b.Deleting) {
			continue
		}
		what, will := fmt.Sprintf("Branch %s was being made, and no operation goes on with it.", b.ID), "mark its creation as failed"
		if b.Deleting {
			what, will = fmt.Sprintf("Branch %s is being deleted, and no operation goes on with it.", b.ID), "go on"
		}
		out = append(out, Finding{Kind: DriftPending, Subject: b.ID, Problem: what, Will: will,
			Repair: l.fix(func(ctx context.Context, s *Service) error { return s.resumeBranch(ctx, b.ID) })})
	}
	populated := map[string]bool{}
	for _, b := range l.inv.Branches {
		populated[b.ProjectID] = true
	}
	for _, p := range l.inv.Projects {
		if p.Deleting && !populated[p.ID] {
			out = append(out, Finding{Kind: DriftPending, Subject: p.ID, Problem: fmt.Sprintf("Project %s is being deleted and has no branch any more.", p.ID),
				Will: "remove its record", Repair: l.fix(func(ctx context.Context, s *Service) error { return s.Store.DeleteProjectIfEmpty(ctx, p.ID) })})
		}
	}
	return append(out, l.checkMajors()...)
}

// checkMajors finds projects whose PostgreSQL is not installed.
func (l *look) checkMajors() []Finding {
	if l.s == nil {
		return nil // doctor looks for builds itself
	}
	return MissingMajors(l.inv, l.builds)
}

// MissingMajors finds the projects whose PostgreSQL is not there.
func MissingMajors(inv store.Inventory, builds []postgres.Build) []Finding {
	count := map[int]int{}
	for _, p := range inv.Projects {
		if !p.Deleting && !slices.ContainsFunc(builds, func(b postgres.Build) bool { return b.Major == p.Major }) {
			count[p.Major]++
		}
	}
	var out []Finding
	for _, major := range slices.Sorted(maps.Keys(count)) {
		out = append(out, Finding{Kind: DriftMissingMajor, Subject: strconv.Itoa(major),
			Problem: fmt.Sprintf("%d projects use PostgreSQL %d, which is not installed: their computes cannot start.", count[major], major),
			Advice:  fmt.Sprintf("install it: bough postgres install %d (the server finds it by itself), or start the server with its folder as --postgres-dir", major)})
	}
	return out
}

func sorted(ids []string) []string {
	slices.Sort(ids)
	return ids
}
