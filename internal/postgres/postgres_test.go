package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Run(m)) }

func query[T any](t *testing.T, conn *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := conn.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFindBuilds(t *testing.T) {
	b := pgtest.Build(t)
	if b.Major < postgres.MinMajor || !strings.HasPrefix(b.Version, fmt.Sprint(b.Major)) {
		t.Fatalf("build = %+v", b)
	}
	for _, dir := range []string{b.BinDir, filepath.Dir(b.BinDir), filepath.Dir(filepath.Dir(b.BinDir))} {
		builds, err := postgres.FindBuilds(t.Context(), []string{dir})
		if err != nil || !slices.Contains(builds, b) {
			t.Errorf("%s: builds = %v, err = %v", dir, builds, err)
		}
	}
	// A fake of a newer patch wins; one without initdb, and a major that is not supported, do not count.
	fake := t.TempDir()
	for dir, version := range map[string]string{"new": fmt.Sprintf("%d.999", b.Major), "old": fmt.Sprintf("%d.0", b.Major), "ancient": "9.6.1"} {
		bin := filepath.Join(fake, dir, "bin")
		must(t, os.MkdirAll(bin, 0o755))
		script := "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + " (Debian)'\n"
		must(t, os.WriteFile(filepath.Join(bin, "postgres"), []byte(script), 0o755))
		must(t, os.WriteFile(filepath.Join(bin, "initdb"), []byte(script), 0o755))
	}
	builds, err := postgres.FindBuilds(t.Context(), []string{fake})
	i := slices.IndexFunc(builds, func(x postgres.Build) bool { return x.Major == b.Major })
	if err != nil || i < 0 || builds[i].Version != fmt.Sprintf("%d.999", b.Major) {
		t.Fatalf("builds = %v, err = %v", builds, err)
	}
	if _, err := postgres.FindBuilds(t.Context(), []string{t.TempDir()}); !core.IsKind(err, core.KindInvalid) {
		t.Fatalf("empty folder: err = %v", err)
	}
}

func TestReadControl(t *testing.T) { pgtest.Each(t, testReadControl) }

func testReadControl(t *testing.T, b postgres.Build) {
	c := pgtest.NewCluster(t, pgtest.Options{Build: b})
	running, err := postgres.ReadControl(c.DataDir)
	if err != nil || running.State != postgres.StateProduction || running.ChecksumVersion != 1 || running.WALSegmentSize != 16<<20 {
		t.Fatalf("running: %+v, err = %v", running, err)
	}
	conn := c.Conn(t, "")
	if id := query[int64](t, conn, "SELECT system_identifier FROM pg_control_system()"); uint64(id) != running.SystemID {
		t.Fatalf("system id %d, server says %d", running.SystemID, id)
	}
	if v := query[int](t, conn, "SELECT catalog_version_no FROM pg_control_system()"); uint32(v) != running.CatalogVersion {
		t.Fatalf("catalog version %d, server says %d", running.CatalogVersion, v)
	}
	must(t, conn.Close(t.Context()))
	c.Stop(t)
	got, err := postgres.ReadControl(c.DataDir)
	must(t, err)
	if got.State != postgres.StateShutDown || got.Checkpoint != got.Redo || got.Timeline != 1 {
		t.Fatalf("stopped: %+v", got)
	}
	if _, err := os.Stat(c.Build.Tool("pg_controldata")); err != nil {
		t.Logf("not compared: this build has no pg_controldata")
	} else {
		cmd := exec.CommandContext(t.Context(), c.Build.Tool("pg_controldata"), c.DataDir)
		cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
		out, err := cmd.Output()
		must(t, err)
		for label, value := range map[string]string{
			"pg_control version number":          fmt.Sprint(got.ControlVersion),
			"max_connections setting":            fmt.Sprint(got.Limits.Connections),
			"max_worker_processes setting":       fmt.Sprint(got.Limits.Workers),
			"max_wal_senders setting":            fmt.Sprint(got.Limits.Senders),
			"max_prepared_xacts setting":         fmt.Sprint(got.Limits.Prepared),
			"max_locks_per_xact setting":         fmt.Sprint(got.Limits.Locks),
			"Catalog version number":             fmt.Sprint(got.CatalogVersion),
			"Database system identifier":         fmt.Sprint(got.SystemID),
			"Database cluster state":             got.State.String(),
			"pg_control last modified":           got.ModifiedAt.UTC().Format("Mon Jan _2 15:04:05 2006"),
			"Latest checkpoint location":         got.Checkpoint.String(),
			"Latest checkpoint's REDO location":  got.Redo.String(),
			"Latest checkpoint's TimeLineID":     fmt.Sprint(got.Timeline),
			"Latest checkpoint's PrevTimeLineID": fmt.Sprint(got.PrevTimeline),
			"Time of latest checkpoint":          got.CheckpointTime.UTC().Format("Mon Jan _2 15:04:05 2006"),
			"Minimum recovery ending location":   got.MinRecoveryPoint.String(),
			"Min recovery ending loc's timeline": fmt.Sprint(got.MinRecoveryTimeline),
			"Backup start location":              got.BackupStart.String(),
			"Backup end location":                got.BackupEnd.String(),
			"Database block size":                fmt.Sprint(got.BlockSize),
			"Bytes per WAL segment":              fmt.Sprint(got.WALSegmentSize),
			"Data page checksum version":         fmt.Sprint(got.ChecksumVersion),
		} {
			found := false
			for line := range strings.SplitSeq(string(out), "\n") {
				if l, v, ok := strings.Cut(line, ":"); ok && l == label {
					found = true
					if strings.TrimSpace(v) != value {
						t.Errorf("%s: %q, pg_controldata says %q", label, value, strings.TrimSpace(v))
					}
				}
			}
			if !found {
				t.Errorf("pg_controldata does not print %q", label)
			}
		}
	}
	path := filepath.Join(c.DataDir, "global", "pg_control")
	raw, err := os.ReadFile(path)
	must(t, err)
	raw[40] ^= 1
	must(t, os.WriteFile(path, raw, 0o600))
	if _, err := postgres.ReadControl(c.DataDir); err == nil {
		t.Fatal("a flipped bit was not noticed")
	}
}

func TestTemplate(t *testing.T) { pgtest.Each(t, testTemplate) }

func testTemplate(t *testing.T, b postgres.Build) {
	c := pgtest.NewCluster(t, pgtest.Options{Build: b})
	conn := c.Conn(t, "")
	must(t, postgres.Bootstrap(t.Context(), conn)) // again
	got, err := postgres.ReadCatalog(t.Context(), conn)
	must(t, err)
	if len(got.Roles) != 1 || got.Roles[0] != (postgres.CatalogRole{Name: "neondb_owner", CanLogin: true}) ||
		len(got.Databases) != 1 || got.Databases[0] != (postgres.CatalogDatabase{Name: "neondb", Owner: "neondb_owner"}) {
		t.Fatalf("catalog = %+v", got)
	}
	if s := query[string](t, conn, `SELECT format('%s %s %s %s', datcollate, datctype, pg_encoding_to_char(encoding),
		current_setting('data_checksums')) FROM pg_database WHERE datname = 'neondb'`); s != "C.UTF-8 C.UTF-8 UTF8 on" {
		t.Errorf("neondb: %s", s)
	}
	groups := query[[]string](t, conn, `SELECT array_agg(g.rolname || CASE WHEN m.admin_option THEN '*' ELSE '' END ORDER BY g.rolname)::text[]
		FROM pg_auth_members m JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = 'neon_superuser'::regrole`)
	want := []string{"pg_monitor*", "pg_read_all_data", "pg_signal_backend*", "pg_write_all_data"}
	if c.Build.Major >= 16 {
		want = slices.Insert(want, 0, "pg_create_subscription")
	}
	if !slices.Equal(groups, want) {
		t.Errorf("neon_superuser is in %v", groups)
	}
	// What a user of the service does on the first day.
	user := c.UserConn(t, "neondb_owner", "neondb")
	for _, sql := range []string{
		"CREATE TABLE t (n int)", "CREATE SCHEMA s", "CREATE ROLE app LOGIN PASSWORD 'x'", "GRANT neon_superuser TO app",
		"CREATE DATABASE mine", "CREATE EXTENSION pg_trgm", "DROP DATABASE mine", "DROP ROLE app",
	} {
		if _, err := user.Exec(t.Context(), sql); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
	if owner := query[string](t, user, "SELECT nspowner::regrole::text FROM pg_namespace WHERE nspname = 'public'"); owner != "pg_database_owner" {
		t.Errorf("public belongs to %s", owner)
	}
}

var oddNames = []string{`plain`, `with space`, `quo"te`, `apo'strophe`, `Ünïcödé 🌳`, `semi;colon--`, `back\slash`, `$1 %s {}`, strings.Repeat("x", 63), "select"}

func TestRolesAndDatabases(t *testing.T) { pgtest.Each(t, testRolesAndDatabases) }

func testRolesAndDatabases(t *testing.T, b postgres.Build) {
	c := pgtest.NewCluster(t, pgtest.Options{Build: b})
	ctx, conn := t.Context(), c.Conn(t, "")
	verifier, err := postgres.ScramVerifier("secret")
	must(t, err)
	names := oddNames
	if b.Major != postgres.DefaultMajor {
		names = names[1:3] // quoting does not depend on the version
	}
	for _, name := range names {
		before, err := postgres.Fingerprint(ctx, conn)
		must(t, err)
		role, db, renamed := name, name, "r"+name[:min(len(name), 40)]
		for range 2 {
			must(t, postgres.CreateRole(ctx, conn, postgres.RoleSpec{Name: role, Verifier: verifier}))
			must(t, postgres.CreateDatabase(ctx, conn, db, role))
		}
		after, err := postgres.Fingerprint(ctx, conn)
		must(t, err)
		if after == before {
			t.Error("the fingerprint stays")
		}
		cat, err := postgres.ReadCatalog(ctx, conn)
		must(t, err)
		if !slices.Contains(cat.Roles, postgres.CatalogRole{Name: role, CanLogin: true, Verifier: verifier}) ||
			!slices.Contains(cat.Databases, postgres.CatalogDatabase{Name: db, Owner: role}) {
			t.Fatalf("%q: catalog = %+v", name, cat)
		}
		user := c.UserConn(t, role, db)
		if _, err := user.Exec(ctx, "CREATE TABLE t (n int)"); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		for range 2 {
			must(t, postgres.RenameDatabase(ctx, conn, db, renamed))
		}
		if err := user.Ping(ctx); err == nil {
			t.Errorf("%q: a session survived the rename", name)
		}
		for range 2 {
			must(t, postgres.RenameRole(ctx, conn, role, renamed))
			must(t, postgres.SetRoleVerifier(ctx, conn, renamed, verifier))
		}
		user = c.UserConn(t, renamed, renamed)
		if err := postgres.DropRole(ctx, conn, renamed); !core.IsKind(err, core.KindUnprocessable) {
			t.Fatalf("%q: drop of a database's owner: %v", name, err)
		}
		for range 2 {
			must(t, postgres.SetDatabaseOwner(ctx, conn, renamed, "neondb_owner"))
		}
		for range 2 {
			must(t, postgres.DropRole(ctx, conn, renamed))
		}
		if err := user.Ping(ctx); err == nil {
			t.Errorf("%q: a session survived its role", name)
		}
		heir := c.UserConn(t, "neondb_owner", renamed)
		if owner := query[string](t, heir, "SELECT relowner::regrole::text FROM pg_class WHERE relname = 't'"); owner != "neondb_owner" {
			t.Errorf("%q: the table went to %s", name, owner)
		}
		if _, err := heir.Exec(ctx, "CREATE TABLE public.t2 (n int)"); err != nil {
			t.Errorf("%q: new owner: %v", name, err)
		}
		for range 2 {
			must(t, postgres.DropDatabase(ctx, conn, renamed))
		}
		if err := heir.Ping(ctx); err == nil {
			t.Errorf("%q: a session survived its database", name)
		}
	}
	if cat, err := postgres.ReadCatalog(ctx, conn); err != nil || len(cat.Roles) != 1 || len(cat.Databases) != 1 {
		t.Fatalf("left over: %+v, err = %v", cat, err)
	}
}

// A client that connects again and again must not hold up a rename or a drop.
func TestRenameAndDropUnderReconnects(t *testing.T) { pgtest.Each(t, testRenameAndDropUnderReconnects) }

func testRenameAndDropUnderReconnects(t *testing.T, b postgres.Build) {
	c := pgtest.NewCluster(t, pgtest.Options{Build: b})
	ctx, conn := t.Context(), c.Conn(t, "")
	must(t, postgres.CreateDatabase(ctx, conn, "busy", "neondb_owner"))
	stop, connected := make(chan struct{}), make(chan struct{}, 1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cfg, err := postgres.ConnConfig(c.SocketDir, "busy")
		if err != nil {
			t.Error(err)
			return
		}
		cfg.User, cfg.RuntimeParams = "neondb_owner", nil
		for {
			select {
			case <-stop:
				return
			default:
			}
			if cl, err := pgx.ConnectConfig(ctx, cfg); err == nil {
				select {
				case connected <- struct{}{}:
				default:
				}
				_, _ = cl.Exec(ctx, "SELECT pg_sleep(0.05)")
				_ = cl.Close(ctx)
			}
			cfg.Database = map[string]string{"busy": "busy2", "busy2": "busy"}[cfg.Database]
		}
	}()
	for i := range 10 {
		<-connected
		from, to := "busy", "busy2"
		if i%2 == 1 {
			from, to = to, from
		}
		must(t, postgres.RenameDatabase(ctx, conn, from, to))
	}
	<-connected
	must(t, postgres.DropDatabase(ctx, conn, "busy"))
	close(stop)
	<-ended
}

func TestRefusals(t *testing.T) { pgtest.Each(t, testRefusals) }

func testRefusals(t *testing.T, b postgres.Build) {
	c := pgtest.NewCluster(t, pgtest.Options{Build: b, Settings: map[string]string{"max_prepared_transactions": "5"}})
	ctx, conn := t.Context(), c.Conn(t, "")
	for what, err := range map[string]error{
		"long role":         postgres.CreateRole(ctx, conn, postgres.RoleSpec{Name: strings.Repeat("ü", 32)}),
		"empty role":        postgres.CreateRole(ctx, conn, postgres.RoleSpec{}),
		"superuser":         postgres.SetRoleVerifier(ctx, conn, "cloud_admin", ""),
		"group":             postgres.DropRole(ctx, conn, "neon_superuser"),
		"pg_ role":          postgres.RenameRole(ctx, conn, "neondb_owner", "pg_x"),
		"template1":         postgres.DropDatabase(ctx, conn, "template1"),
		"postgres":          postgres.RenameDatabase(ctx, conn, "postgres", "x"),
		"zero byte":         postgres.CreateDatabase(ctx, conn, "a\x00b", "neondb_owner"),
		"superuser's":       postgres.SetDatabaseOwner(ctx, conn, "neondb", "cloud_admin"),
		"protected setting": postgres.CheckSettings(map[string]string{"FSYNC": "off"}),
		"recovery setting":  postgres.CheckSettings(map[string]string{"recovery_target_xid": "1"}),
		"no setting":        postgres.CheckSettings(map[string]string{"work_mem\nfsync": "off"}),
	} {
		if !core.IsKind(err, core.KindInvalid) {
			t.Errorf("%s: err = %v", what, err)
		}
	}
	if err := postgres.CreateRole(ctx, conn, postgres.RoleSpec{Name: "clear", Verifier: "x' SUPERUSER --"}); err == nil {
		t.Error("a clear-text password was accepted")
	}
	must(t, postgres.CreateDatabase(ctx, conn, "two", "neondb_owner"))
	if err := postgres.RenameDatabase(ctx, conn, "two", "neondb"); !core.IsKind(err, core.KindConflict) {
		t.Errorf("taken name: %v", err)
	}
	for what, err := range map[string]error{
		"rename db":   postgres.RenameDatabase(ctx, conn, "nobody", "nobody2"),
		"rename role": postgres.RenameRole(ctx, conn, "nobody", "nobody2"),
		"owner":       postgres.SetDatabaseOwner(ctx, conn, "nobody", "neondb_owner"),
		"password":    postgres.SetRoleVerifier(ctx, conn, "nobody", ""),
		"new owner":   postgres.CreateDatabase(ctx, conn, "three", "nobody"),
	} {
		if !core.IsKind(err, core.KindNotFound) {
			t.Errorf("%s of what does not exist: %v", what, err)
		}
	}
	// A prepared transaction cannot be ended for the user; the database must be open again afterwards.
	user := c.UserConn(t, "neondb_owner", "two")
	if _, err := user.Exec(ctx, "BEGIN; CREATE TABLE t (n int); PREPARE TRANSACTION 'p'"); err != nil {
		t.Fatal(err)
	}
	if err := postgres.DropDatabase(ctx, conn, "two"); !core.IsKind(err, core.KindUnprocessable) {
		t.Errorf("prepared transaction: %v", err)
	}
	user = c.UserConn(t, "neondb_owner", "two")
	if _, err := user.Exec(ctx, "ROLLBACK PREPARED 'p'"); err != nil {
		t.Fatal(err)
	}
	must(t, postgres.DropDatabase(ctx, conn, "two"))
}

// A cut-off rename or drop leaves the database closed; the next run completes it.
func TestApplyCompletesWhatWasCutOff(t *testing.T) { pgtest.Each(t, testApplyCompletesWhatWasCutOff) }

func testApplyCompletesWhatWasCutOff(t *testing.T, b postgres.Build) {
	c := pgtest.NewCluster(t, pgtest.Options{Build: b})
	ctx, conn := t.Context(), c.Conn(t, "")
	for _, finish := range []func() error{
		func() error { return postgres.RenameDatabase(ctx, conn, "d", "e") },
		func() error { return postgres.RenameDatabase(ctx, conn, "e", "d") },
		func() error { return postgres.DropDatabase(ctx, conn, "d") },
	} {
		must(t, postgres.CreateDatabase(ctx, conn, "d", "neondb_owner"))
		if query[int](t, conn, "SELECT count(*) FROM pg_database WHERE datname = 'e'") == 1 {
			must(t, postgres.DropDatabase(ctx, conn, "d"))
		}
		for _, name := range []string{"d", "e"} {
			_, _ = conn.Exec(ctx, "ALTER DATABASE "+name+" ALLOW_CONNECTIONS false")
		}
		must(t, finish())
		if n := query[int](t, conn, "SELECT count(*) FROM pg_database WHERE NOT datallowconn AND datname <> 'template0'"); n != 0 {
			t.Fatal("a database stays closed")
		}
	}
}

// Real PostgreSQL accepts the verifier, with the characters that SASLprep changes and those it refuses.
func TestScramVerifier(t *testing.T) {
	c := pgtest.NewCluster(t, pgtest.Options{})
	ctx, conn := t.Context(), c.Conn(t, "")
	must(t, os.WriteFile(filepath.Join(c.DataDir, "pg_hba.conf"), []byte("local all cloud_admin trust\nlocal all all scram-sha-256\n"), 0o600))
	if _, err := conn.Exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		t.Fatal(err)
	}
	login := func(password string) error {
		cfg, err := postgres.ConnConfig(c.SocketDir, "neondb")
		must(t, err)
		cfg.User, cfg.Password = "neondb_owner", password
		cfg.RuntimeParams = nil
		cl, err := pgx.ConnectConfig(ctx, cfg)
		if err == nil {
			_ = cl.Close(ctx)
		}
		return err
	}
	deadline := time.Now().Add(30 * time.Second)
	for login("none") == nil { // until the reload has arrived
		if time.Now().After(deadline) {
			t.Fatal("pg_hba.conf is not read")
		}
	}
	for password, typed := range map[string]string{
		"npg_AbCd1234": "npg_AbCd1234", "p w'\"\\$": "p w'\"\\$", "paßwörd🌳": "paßwörd🌳", "x\u0007y": "x\u0007y",
		"\u00aa\u2168": "aIX", // RFC 4013's examples of what SASLprep maps; libpq would, pgx does not
	} {
		v, err := postgres.ScramVerifier(password)
		must(t, err)
		must(t, postgres.SetRoleVerifier(ctx, conn, "neondb_owner", v))
		if err := login(typed); err != nil {
			t.Errorf("%q: %v", password, err)
		}
		var pe *pgconn.PgError
		if err := login(typed + "x"); !errors.As(err, &pe) || pe.Code != "28P01" {
			t.Errorf("%q: a wrong password: %v", password, err)
		}
	}
	if _, err := postgres.ScramVerifier(""); !core.IsKind(err, core.KindInvalid) {
		t.Errorf("empty password: %v", err)
	}
	if log, err := os.ReadFile(c.LogFile); err != nil || bytes.Contains(log, []byte("SCRAM-SHA-256$")) {
		t.Errorf("the log holds a verifier (err = %v)", err)
	}
}

func TestConfig(t *testing.T) { pgtest.Each(t, testConfig) }

func testConfig(t *testing.T, b postgres.Build) {
	conf := func(lo, hi float64) map[string]string {
		out := map[string]string{}
		for _, s := range postgres.Config(postgres.ConfigOptions{Build: b, Size: postgres.SizeSpec{MinCU: lo, MaxCU: hi}, MachineMemory: 8 << 30}) {
			out[s.Name] = s.Value
		}
		return out
	}
	for _, c := range []struct {
		lo, hi            float64
		conns, workers, b string
	}{
		{0.25, 0.25, "104", "12", "131072kB"}, {0.25, 2, "839", "16", "131072kB"}, {1, 2, "839", "16", "1048576kB"}, {0.25, 8, "839", "28", "131072kB"},
		{10, 10, "4000", "32", "2097152kB"},
	} {
		got := conf(c.lo, c.hi)
		if got["max_connections"] != c.conns || got["max_worker_processes"] != c.workers || got["shared_buffers"] != c.b {
			t.Errorf("%v to %v CU: %s connections, %s workers, %s", c.lo, c.hi, got["max_connections"], got["max_worker_processes"], got["shared_buffers"])
		}
	}
	// The server reads back what was written, whatever the value; a protected setting stays.
	odd := `it's a \ "quoted" # value`
	c := pgtest.NewCluster(t, pgtest.Options{Build: b, Preload: b.PreloadList(true, nil), Settings: map[string]string{"odd.one": odd, "fsync": "off", "Work_Mem": "7MB"}})
	conn := c.Conn(t, "")
	if got := query[string](t, conn, "SELECT current_setting('odd.one')"); got != odd {
		t.Errorf("odd value: %q", got)
	}
	if got := query[string](t, conn, "SELECT concat_ws(' ', current_setting('fsync'), current_setting('work_mem'), current_setting('listen_addresses'))"); got != "on 7MB " {
		t.Errorf("settings: %q", got)
	}
	if b.HasLibrary("pg_stat_statements") {
		if got := query[string](t, conn, "SHOW shared_preload_libraries"); got != "pg_stat_statements" {
			t.Errorf("preloaded: %q", got)
		}
	}
	// Writing the same again touches nothing.
	path := filepath.Join(c.DataDir, "postgresql.conf")
	before, err := os.Stat(path)
	must(t, err)
	settings := postgres.Config(postgres.ConfigOptions{Build: b, Preload: b.PreloadList(true, nil), PGSettings: map[string]string{"odd.one": odd, "work_mem": "7MB"}})
	must(t, postgres.WriteConfig(c.DataDir, settings, pgtest.Cred(t)))
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("an identical file was written again (err = %v)", err)
	}
}

func TestCleanChild(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		must(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600))
	}
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "standby.signal", "recovery.signal", "promote",
		"pg_replslot/slot/state", "pg_dynshmem/mmap.1", "pg_stat_tmp/x"} {
		write(name, "x")
	}
	write("backup_label", "keep")
	write("PG_VERSION", "15")
	write("postgresql.auto.conf", "# comment\nwork_mem = '8MB'\nrecovery_target_lsn = '0/1'\n  Primary_Conninfo='host=x'\nrestore_command = 'cp'\nenable_seqscan = 'off'\n")
	for range 2 {
		must(t, postgres.CleanChild(dir))
	}
	var left []string
	must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		left = append(left, strings.TrimPrefix(path, dir))
		return err
	}))
	want := []string{"", "/PG_VERSION", "/backup_label", "/pg_dynshmem", "/pg_replslot", "/pg_stat_tmp", "/postgresql.auto.conf"}
	if !slices.Equal(left, want) {
		t.Errorf("left: %v", left)
	}
	raw, err := os.ReadFile(filepath.Join(dir, "postgresql.auto.conf"))
	if err != nil || string(raw) != "# comment\nwork_mem = '8MB'\nenable_seqscan = 'off'\n" {
		t.Errorf("auto.conf: %q, err = %v", raw, err)
	}
}

// A template that fails leaves no server behind.
func TestCreateTemplateCutOff(t *testing.T) {
	dir := pgtest.TempDir(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	o := postgres.InitOptions{DataDir: filepath.Join(dir, "data"), WALDir: filepath.Join(dir, "wal"), Cred: pgtest.Cred(t)}
	if err := postgres.CreateTemplate(ctx, pgtest.Build(t), o, dir); err == nil {
		t.Fatal("no error")
	}
	must(t, os.RemoveAll(o.DataDir))
	must(t, os.RemoveAll(o.WALDir))
	must(t, postgres.CreateTemplate(t.Context(), pgtest.Build(t), o, dir))
	if target, err := os.Readlink(filepath.Join(o.DataDir, "pg_wal")); err != nil || target != o.WALDir {
		t.Fatalf("pg_wal → %q, err = %v", target, err)
	}
	size, err := postgres.ReadControl(o.DataDir)
	if err != nil || size.State != postgres.StateShutDown {
		t.Fatalf("state %v, err = %v", size.State, err)
	}
}
