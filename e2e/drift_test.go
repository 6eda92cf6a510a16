package e2e

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// drift is one that `bough doctor --json` tells of.
type drift struct {
	Kind, Severity, Subject, Problem, Advice, Will, State, Error string
}

type diagnosis struct {
	Server    string
	Fine      []string
	Findings  []drift
	Repaired  []drift
	Unchecked []string `json:"not_looked"`
}

// doctor runs `bough doctor` and checks that its exit code says what it prints.
func (s *server) doctor(t *testing.T) diagnosis {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, "doctor", "--json", "--data-dir", s.dir)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var d diagnosis
	if jsonErr := json.Unmarshal(out.Bytes(), &d); jsonErr != nil {
		t.Fatalf("bough doctor: %v, %v\n%s%s", err, jsonErr, out.String(), errs.String())
	}
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1 || len(d.Findings) == 0) || (err == nil && len(d.Findings) > 0) {
		t.Errorf("bough doctor: %v with %d findings\n%s", err, len(d.Findings), errs.String())
	}
	return d
}

func find(list []drift, kind, subject string) (drift, bool) {
	for _, d := range list {
		if d.Kind == kind && strings.Contains(d.Subject, subject) {
			return d, true
		}
	}
	return drift{}, false
}

// awaitRepair waits until the server says that it has repaired a drift, and sees none of it any more.
func (s *server) awaitRepair(t *testing.T, kind, subject string) {
	t.Helper()
	eventually(t, opLimit, func() string {
		d := s.doctor(t)
		if open, ok := find(d.Findings, kind, subject); ok {
			return fmt.Sprintf("still there: %+v", open)
		}
		if _, ok := find(d.Repaired, kind, subject); !ok {
			return fmt.Sprintf("no repair of %s %s among %+v (open: %+v)", kind, subject, d.Repaired, d.Findings)
		}
		return ""
	})
}

// awaitReport waits until the server reports a drift that a person must decide on.
func (s *server) awaitReport(t *testing.T, kind, subject string) drift {
	t.Helper()
	var found drift
	eventually(t, opLimit, func() string {
		d := s.doctor(t)
		var ok bool
		if found, ok = find(d.Findings, kind, subject); !ok || found.State != "reported" {
			return fmt.Sprintf("no report of %s %s among %+v", kind, subject, d.Findings)
		}
		return ""
	})
	if found.Advice == "" {
		t.Errorf("%s: no advice in %+v", kind, found)
	}
	return found
}

// awaitHealth waits until there is no finding.
func (s *server) awaitHealth(t *testing.T) {
	t.Helper()
	eventually(t, opLimit, func() string {
		if d := s.doctor(t); len(d.Findings) > 0 {
			return fmt.Sprintf("%+v", d.Findings)
		}
		return ""
	})
}

func (s *server) runDir() string {
	sum := sha256.Sum256([]byte(s.dir))
	id := hex.EncodeToString(sum[:4])
	if isRoot() {
		return filepath.Join("/run/bough", id)
	}
	if base := os.Getenv("XDG_RUNTIME_DIR"); base != "" && len(base) < 30 {
		return filepath.Join(base, "bough", id)
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("bough-%d", os.Geteuid()), id)
}

// controlDB opens the control database by hand.
func (s *server) controlDB(t *testing.T) *pgx.Conn {
	t.Helper()
	q := url.Values{"host": {filepath.Join(s.runDir(), "control")}, "user": {"cloud_admin"}, "sslmode": {"disable"}}
	conn, err := pgx.Connect(t.Context(), "postgres:///bough?"+q.Encode())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(t.Context()) })
	return conn
}

// data and wal are where a branch's files are.
func (s *server) data(branch string) string { return filepath.Join(s.dir, "pool", "volumes", branch) }
func (s *server) wal(branch string) string  { return filepath.Join(s.dir, "wal", branch) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// run runs a program and returns its output.
func runProgram(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// bystander is a project that no drift may touch.
type bystander struct {
	*project
	conn *pgx.Conn
	pid  int
	rows int
}

func (s *server) bystander(t *testing.T) *bystander {
	t.Helper()
	p := s.project(t)
	b := &bystander{project: p, conn: s.connect(t, p.URI), pid: s.postmaster(t, p.Branch)}
	sql(t, b.conn, "create table ticks (n int)")
	return b
}

// check writes and reads over the session of the beginning, on the process of the beginning.
func (b *bystander) check(t *testing.T) {
	t.Helper()
	if b.conn.IsClosed() {
		t.Fatal("a bystander's session was cut")
	}
	sql(t, b.conn, "insert into ticks values (1)")
	b.rows++
	if n := value[int](t, b.conn, "select count(*) from ticks"); n != b.rows {
		t.Errorf("the bystander has %d rows, want %d", n, b.rows)
	}
	if err := syscall.Kill(b.pid, 0); err != nil {
		t.Errorf("the bystander's compute, pid %d, was ended: %v", b.pid, err)
	}
}

// eager makes a server look often and act soon.
func eager() []string { return []string{"--reconcile-every", "200ms", "--reconcile-patience", "600ms"} }

// TestDrift makes every kind of drift by hand that the server repairs by itself.
func TestDrift(t *testing.T) {
	top := t // sessions that outlive a step
	s := start(t, eager()...)
	other := s.bystander(t)
	other.branch(t, "") // so that a few orphans are few
	p := s.project(t)
	conn := s.connect(t, p.URI)
	sql(t, conn, "create table kept as select generate_series(1, 100) as n")
	db := s.controlDB(t)
	s.awaitHealth(t)
	works := func(t *testing.T) {
		t.Helper()
		if n := value[int](t, s.connect(t, p.URI), "select count(*) from kept"); n != 100 {
			t.Errorf("%d rows, want 100", n)
		}
	}

	steps := []struct {
		name, kind, subject string
		needsRoot           string
		restarts            bool // the server
		make                func(t *testing.T)
		after               func(t *testing.T)
	}{
		{name: "orphan volume", kind: "orphan_volume", subject: "br-nobody-1", make: func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Join(s.data("br-nobody-1"), "base"), 0o700))
			must(t, os.WriteFile(filepath.Join(s.data("br-nobody-1"), "base", "1"), []byte("x"), 0o600))
		}, after: func(t *testing.T) {
			if _, err := os.Lstat(s.data("br-nobody-1")); err == nil {
				t.Error("it is still there")
			}
		}},
		{name: "orphan WAL directory", kind: "orphan_wal", subject: "br-nobody-2", make: func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Join(s.wal("br-nobody-2"), "1"), 0o700))
		}, after: func(t *testing.T) {
			if _, err := os.Lstat(s.wal("br-nobody-2")); err == nil {
				t.Error("it is still there")
			}
		}},
		{name: "WAL directory of another incarnation", kind: "old_wal", subject: p.Branch, make: func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Join(s.wal(p.Branch), "7"), 0o700))
		}},
		{name: "half-made volume", kind: "staging", subject: "br-half.AAAA", make: func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Join(s.dir, "pool", "staging", "br-half.AAAA", "base"), 0o700))
		}},
		{name: "mode of a volume", kind: "access", subject: p.Branch, make: func(t *testing.T) {
			must(t, os.Chmod(s.data(p.Branch), 0o755))
		}, after: func(t *testing.T) {
			if info, err := os.Stat(s.data(p.Branch)); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
		}},
		{name: "owner of a volume", kind: "access", subject: p.Branch, needsRoot: "gives a folder away", make: func(t *testing.T) {
			must(t, os.Chown(s.data(p.Branch), 0, 0))
		}},
		{name: "mode of a socket folder", kind: "access", subject: p.Endpoint, make: func(t *testing.T) {
			must(t, os.Chmod(filepath.Join(s.runDir(), p.Endpoint), 0o777))
		}},
		{name: "deleted handle", kind: "missing_handle", subject: p.Endpoint, restarts: true, make: func(t *testing.T) {
			sql(t, db, "delete from handles where compute_id = $1", p.Endpoint)
		}, after: func(t *testing.T) {
			pid := s.postmaster(t, p.Branch)
			s.Restart()
			if now := s.postmaster(t, p.Branch); now != pid {
				t.Error("the restarted server did not know the compute")
			}
		}},
		{name: "handle without a process", kind: "stale_handle", subject: "ep-nobody-3", make: func(t *testing.T) {
			sql(t, db, `insert into handles (compute_id, branch_id, handle)
				select 'ep-nobody-3', branch_id, jsonb_set(handle, '{pid}', '999999') from handles where compute_id = $1`, p.Endpoint)
		}},
		{name: "active in SQL, asleep in truth", kind: "lost_compute", subject: p.Endpoint, make: func(t *testing.T) {
			p.suspend(t, p.Endpoint)
			sql(t, db, "update endpoints set state = 'active' where id = $1", p.Endpoint)
		}, after: func(t *testing.T) { p.awaitState(t, p.Endpoint, api.Active) }},
		{name: "idle in SQL, awake in truth", kind: "endpoint_state", subject: p.Endpoint, make: func(t *testing.T) {
			sql(t, db, "update endpoints set state = 'idle' where id = $1", p.Endpoint)
		}, after: func(t *testing.T) { p.awaitState(t, p.Endpoint, api.Active) }},
		{name: "pending in SQL, nothing under way", kind: "endpoint_state", subject: p.Endpoint, make: func(t *testing.T) {
			sql(t, db, "update endpoints set pending_state = 'idle' where id = $1", p.Endpoint)
		}, after: func(t *testing.T) { p.awaitState(t, p.Endpoint, api.Active) }},
		{name: "stale postmaster.pid", kind: "stale_pid_file", subject: p.Branch, make: func(t *testing.T) {
			p.suspend(t, p.Endpoint)
			must(t, os.WriteFile(filepath.Join(s.data(p.Branch), "postmaster.pid"), []byte("999999\n"), 0o600))
		}},
		{name: "socket removed under a compute", kind: "lost_socket", subject: p.Endpoint, make: func(t *testing.T) {
			works(t)
			must(t, os.RemoveAll(filepath.Join(s.runDir(), p.Endpoint)))
		}, after: func(t *testing.T) { s.settled(t) }},
		{name: "socket folder of nobody", kind: "stale_socket_folder", subject: "ep-nobody-4", make: func(t *testing.T) {
			must(t, os.MkdirAll(filepath.Join(s.runDir(), "ep-nobody-4"), 0o700))
		}},
		{name: "control group of nobody", kind: "stale_control_group", subject: "ep-nobody-6", make: func(t *testing.T) {
			groups, _ := filepath.Glob("/sys/fs/cgroup/*/bough/" + filepath.Base(s.runDir()))
			if len(groups) == 0 {
				t.Skip("needs control groups")
			}
			for _, dir := range groups {
				must(t, os.Mkdir(filepath.Join(dir, "ep-nobody-6"), 0o755))
			}
		}},
		{name: "log of nobody", kind: "stale_log", subject: "ep-nobody-5.log", make: func(t *testing.T) {
			path := filepath.Join(s.dir, "log", "ep-nobody-5.log")
			must(t, os.WriteFile(path, []byte("x"), 0o600))
			old := time.Now().Add(-48 * time.Hour)
			must(t, os.Chtimes(path, old, old))
		}},
		{name: "stuck operation of a dead server", make: func(t *testing.T) {
			// The queue itself sees to it, within seconds.
			sql(t, db, `insert into operations (id, project_id, branch_id, endpoint_id, action, status, claimed_by)
				values ('11111111-1111-1111-1111-111111111111', $1, $2, $3, 'start_compute', 'running', 12345)`, p.ID, p.Branch, p.Endpoint)
		}, after: func(t *testing.T) { s.settled(t) }},
		{name: "branch that is deleted by nobody", kind: "lost_operation", make: func(t *testing.T) {
			b := p.branch(t, "")
			p.suspend(t, b.Endpoint)
			sql(t, db, "update branches set deleting = true where id = $1", b.ID)
		}, after: func(t *testing.T) { s.settled(t) }},
		{name: "endpoint row removed under a compute", kind: "unknown_compute", make: func(t *testing.T) {
			b := p.branch(t, "")
			s.connect(t, b.URI)
			sql(t, db, "delete from endpoints where id = $1", b.Endpoint)
		}, after: func(t *testing.T) { s.settled(t) }},
		{name: "PostgreSQL on a copy in the pool", kind: "orphan_volume", subject: "br-copy-6", make: func(t *testing.T) {
			b := p.branch(t, "")
			p.suspend(t, b.Endpoint)
			copyOfVolume(t, s, b.ID, "br-copy-6")
		}, after: func(t *testing.T) {
			if found := postmasters(filepath.Join(s.dir, "pool"))[s.data("br-copy-6")]; len(found) > 0 {
				t.Errorf("it still runs: %v", found)
			}
			s.settled(t)
		}},
		{name: "template", kind: "template", make: func(t *testing.T) {
			for _, dir := range folders(filepath.Join(s.dir, "wal")) {
				if strings.HasPrefix(dir, "template-") {
					must(t, os.RemoveAll(s.wal(dir)))
				}
			}
		}, after: func(t *testing.T) { s.project(t) }},
		{name: "admin.json removed", kind: "admin_file", make: func(t *testing.T) {
			must(t, os.Remove(filepath.Join(s.dir, "admin.json")))
		}, after: func(t *testing.T) {
			if !s.ready() {
				t.Error("admin.json does not work")
			}
		}},
		{name: "admin.json open to all", kind: "admin_file", make: func(t *testing.T) {
			must(t, os.Chmod(filepath.Join(s.dir, "admin.json"), 0o644))
		}},
		{name: "pool unmounted", kind: "pool", needsRoot: "unmounts the pool", make: func(t *testing.T) {
			must(t, syscall.Unmount(filepath.Join(s.dir, "pool"), syscall.MNT_DETACH))
		}, after: func(t *testing.T) {
			p.suspend(t, p.Endpoint)
			works(t)
		}},
	}
	for _, step := range steps {
		t.Run(step.name, func(t *testing.T) {
			if step.needsRoot != "" {
				needRoot(t, step.needsRoot)
			}
			step.make(t)
			if step.kind != "" {
				s.awaitRepair(t, step.kind, step.subject)
			}
			if step.after != nil {
				step.after(t)
			}
			works(t)
			if step.restarts { // its proxy's sessions ended
				other.conn = s.connect(top, other.URI)
			}
			other.check(t)
			s.awaitHealth(t)
		})
		if t.Failed() {
			return
		}
	}
	res, err := s.bough("doctor")
	if err != nil || !strings.Contains(res, "Nothing to do.") || !strings.Contains(res, "Repaired by the server") {
		t.Errorf("%v\n%s", err, res)
	}
	for _, secret := range []string{s.admin.APIKey, p.Password} {
		if strings.Contains(res, secret) {
			t.Error("bough doctor prints a secret")
		}
	}
	metrics := s.metrics(t) // since the last start
	for _, line := range []string{`bough_repairs_total{kind="orphan_volume"} 1`, `bough_drift{kind="orphan_volume"} 0`} {
		if !strings.Contains(metrics, line) {
			t.Errorf("metrics do not show %s", line)
		}
	}
}

// copyOfVolume copies a sleeping branch's volume by hand and starts PostgreSQL on it.
func copyOfVolume(t *testing.T, s *server, branch, name string) {
	t.Helper()
	to := filepath.Join(s.dir, "pool", "."+name) // it has its name when it is complete: the server does not wait
	runProgram(t, "cp", "-a", s.data(branch), to)
	wal := filepath.Join(s.base, name+"-wal")
	runProgram(t, "cp", "-a", filepath.Join(s.wal(branch), "1"), wal)
	must(t, os.Remove(filepath.Join(to, "pg_wal")))
	must(t, os.Symlink(wal, filepath.Join(to, "pg_wal")))
	must(t, os.Rename(to, s.data(name)))
	to = s.data(name)
	version, err := os.ReadFile(filepath.Join(to, "PG_VERSION"))
	must(t, err)
	cmd := exec.Command(filepath.Join(postgresBin(t, strings.TrimSpace(string(version))), "postgres"), "-D", to, "-k", s.base, "-p", "54329", "-c", "listen_addresses=")
	cmd.Dir = to
	if isRoot() {
		u, err := user.Lookup("bough")
		if err != nil {
			u, err = user.Lookup("postgres")
		}
		must(t, err)
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		must(t, os.Chown(s.base, uid, gid)) // for the socket
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGQUIT) // it has ended unless the test failed
		<-ended
	})
}

// postgresBin is the folder of a major version's programs.
func postgresBin(t *testing.T, major string) string {
	t.Helper()
	builds, err := postgres.FindBuilds(t.Context(), nil)
	must(t, err)
	for _, b := range builds {
		if strconv.Itoa(b.Major) == major {
			return b.BinDir
		}
	}
	t.Fatalf("PostgreSQL %s is not on this machine", major)
	return ""
}

// TestDriftThatIsReported makes drifts that only a person can decide on.
func TestDriftThatIsReported(t *testing.T) {
	top := t // sessions that outlive a step
	s := start(t, eager()...)
	other := s.bystander(t)
	p := s.project(t)
	db := s.controlDB(t)
	aside := func(t *testing.T, path string) (back func()) {
		t.Helper()
		away := filepath.Join(filepath.Dir(path), ".aside")
		must(t, os.Rename(path, away))
		return func() { must(t, os.Rename(away, path)) }
	}
	fails := func(t *testing.T, part string) {
		t.Helper()
		if _, err := s.tryConnect(t, p.URI); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("connecting to a branch without its files: %v", err)
		}
		if _, err := s.CreateBranch(t.Context(), p.ID, sdk.BranchCreateRequest{}); err == nil || !strings.Contains(err.Error(), part) {
			t.Errorf("branching one without its files: %v", err)
		}
	}
	for _, step := range []struct {
		name, kind, subject string
		make                func(t *testing.T) (undo func())
	}{
		{"volume gone", "missing_volume", p.Branch, func(t *testing.T) func() {
			p.suspend(t, p.Endpoint)
			back := aside(t, s.data(p.Branch))
			fails(t, "data of branch "+p.Branch+" is missing")
			return back
		}},
		{"WAL gone", "missing_wal", p.Branch, func(t *testing.T) func() {
			p.suspend(t, p.Endpoint)
			back := aside(t, filepath.Join(s.wal(p.Branch), "1"))
			fails(t, "write-ahead log of branch "+p.Branch+" is missing")
			return back
		}},
		{"wrong link to the WAL", "wal_link", p.Branch, func(t *testing.T) func() {
			p.suspend(t, p.Endpoint)
			link := filepath.Join(s.data(p.Branch), "pg_wal")
			to, err := os.Readlink(link)
			must(t, err)
			must(t, os.Remove(link))
			must(t, os.Symlink("/nowhere", link))
			return func() { must(t, os.Remove(link)); must(t, os.Symlink(to, link)) }
		}},
		{"standby.signal in a branch that was started", "standby_signal", p.Branch, func(t *testing.T) func() {
			p.suspend(t, p.Endpoint)
			path := filepath.Join(s.data(p.Branch), "standby.signal")
			must(t, os.WriteFile(path, nil, 0o600))
			return func() { must(t, os.Remove(path)) }
		}},
		{"many orphans", "orphan_volume", "br-many-4", func(t *testing.T) func() {
			for i := range 6 {
				must(t, os.Mkdir(s.data(fmt.Sprintf("br-many-%d", i)), 0o700))
			}
			return func() {
				for i := range 6 {
					must(t, os.Remove(s.data(fmt.Sprintf("br-many-%d", i))))
				}
			}
		}},
		{"identity lost", "identity", s.dir, func(t *testing.T) func() {
			path := filepath.Join(s.dir, "identity")
			raw, err := os.ReadFile(path)
			must(t, err)
			must(t, os.Remove(path))
			must(t, os.Mkdir(s.data("br-doubt-1"), 0o700))
			s.awaitReport(t, "orphan_volume", "br-doubt-1")
			must(t, os.Remove(s.data("br-doubt-1")))
			return func() { must(t, os.WriteFile(path, raw, 0o600)) }
		}},
		{"control database restored from a backup", "identity", "control-position", func(t *testing.T) func() {
			path := filepath.Join(s.dir, "control-position")
			raw, err := os.ReadFile(path)
			must(t, err)
			var seen map[string]any
			must(t, json.Unmarshal(raw, &seen))
			seen["lsn"] = 1 << 50 // as if the data directory had seen it there
			raw, err = json.Marshal(seen)
			must(t, err)
			must(t, os.WriteFile(path, raw, 0o600))
			must(t, os.Mkdir(s.data("br-newer-1"), 0o700)) // a branch that the backup does not know
			s.awaitReport(t, "orphan_volume", "br-newer-1")
			s.Restart()
			s.awaitReport(t, "orphan_volume", "br-newer-1")
			other.conn = s.connect(top, other.URI)
			db = s.controlDB(top)
			return func() { must(t, os.Remove(path)); s.awaitRepair(t, "orphan_volume", "br-newer-1") }
		}},
		{"key of the passwords gone", "secrets", "passwords.key", func(t *testing.T) func() {
			return aside(t, filepath.Join(s.dir, "keys", "passwords.key"))
		}},
		{"a major that is not installed", "missing_postgres", "11", func(t *testing.T) func() {
			major := value[int](t, db, "select pg_version from projects where id = $1", p.ID)
			sql(t, db, "update projects set pg_version = 11 where id = $1", p.ID)
			return func() { sql(t, db, "update projects set pg_version = $2 where id = $1", p.ID, major) }
		}},
		{"control database's socket gone", "control_database", "control", func(t *testing.T) func() {
			return aside(t, filepath.Join(s.runDir(), "control", ".s.PGSQL.5432"))
		}},
	} {
		t.Run(step.name, func(t *testing.T) {
			undo := step.make(t)
			s.awaitReport(t, step.kind, step.subject)
			other.check(t)
			undo()
			s.awaitHealth(t)
			if n := value[int](t, s.connect(t, p.URI), "select 1"); n != 1 {
				t.Error(n)
			}
		})
		if t.Failed() {
			return
		}
	}
	// Each was logged once, not at every look.
	log, err := os.ReadFile(s.logFile())
	must(t, err)
	if n := strings.Count(string(log), "kind=missing_volume"); n != 1 { // it was before the restart
		t.Errorf("missing_volume was logged %d times", n)
	}
}

// metrics is what GET /metrics shows.
func (s *server) metrics(t *testing.T) string {
	t.Helper()
	res, err := http.Get(strings.TrimSuffix(s.admin.APIURL, "/api/v2") + "/metrics")
	must(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	must(t, err)
	return string(text)
}
