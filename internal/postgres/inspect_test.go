package postgres_test

import (
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/pgtest"
	"github.com/boughdb/bough/internal/postgres"
)

// scratchDir is a folder as the server's data directory is: the servers' OS user may pass.
func scratchDir(t *testing.T) string {
	t.Helper()
	dir := pgtest.TempDir(t)
	must(t, os.Chmod(dir, 0o755))
	return dir
}

func TestInspector(t *testing.T) {
	b := pgtest.Build(t)
	c := pgtest.NewCluster(t, pgtest.Options{})
	i := postgres.NewInspector(scratchDir(t), pgtest.Cred(t))
	check := func(settings map[string]string) error {
		return i.Check(t.Context(), postgres.ConfigOptions{
			Build: b, Size: postgres.SizeSpec{MinCU: 0.25, MaxCU: 0.25}, MachineMemory: 8 << 30,
			Preload: b.PreloadList(true, nil), PGSettings: settings,
		}, c.DataDir)
	}
	for _, ok := range []map[string]string{
		nil, {},
		{"work_mem": "64MB", "Statement_Timeout": "10s", "random_page_cost": "1.1", "jit": "off", "log_min_duration_statement": "500ms"},
		{"max_connections": "200", "shared_buffers": "300MB", "max_prepared_transactions": "20"},
		{"timezone": "Europe/Berlin", "search_path": `"$user", public, extensions`, "default_transaction_isolation": "serializable"},
		{"pg_stat_statements.track": "all", "pg_trgm.similarity_threshold": "0.4", "plpgsql.check_asserts": "off"},
		{"idle_in_transaction_session_timeout": "0"},
	} {
		if err := check(ok); err != nil {
			t.Errorf("%v: %v", ok, err)
		}
	}
	var group sync.WaitGroup
	for range 12 { // each believes that the data directory is its own
		group.Go(func() {
			if err := check(map[string]string{"work_mem": "64MB"}); err != nil {
				t.Errorf("side by side: %v", err)
			}
		})
	}
	group.Wait()
	for _, bad := range []struct{ name, value, says string }{
		{"no_such_setting", "1", `PostgreSQL ` + fmt.Sprint(b.Major) + ` has no setting "no_such_setting"`},
		{"work mem", "1", "not a setting's name"},
		{"work_mem\nfsync", "off", "not a setting's name"},
		{"work_mem", "lots", `invalid value for parameter "work_mem": "lots"`},
		{"work_mem", "10XB", `Valid units for this parameter are "B", "kB", "MB"`},
		{"work_mem", "1kB", "outside the valid range"},
		{"random_page_cost", "-1", "outside the valid range"},
		{"wal_compression", "maybe", "wal_compression"},
		{"default_transaction_isolation", "none", "Available values: serializable"},
		{"timezone", "Middle/Earth", "TimeZone"},
		{"block_size", "16384", "cannot be set"},
		{"zero_damaged_pages", "on", "no acknowledged commit"},
		{"FSYNC", "off", "no acknowledged commit"},
		{"wal_level", "logical", "enable_logical_replication"},
		{"shared_preload_libraries", "x", "settings.preload_libraries"},
		{"session_preload_libraries", "x", "settings.preload_libraries"},
		{"archive_command", "cp %p /tmp", "branches"},
		{"recovery_target_xid", "1", "branches"},
		{"listen_addresses", "*", "proxy"},
		{"password_encryption", "md5", "proxy"},
		{"log_destination", "csvlog", "belong to the server"},
		{"jit_provider", "x", "what its build brings"},
		{"huge_pages", "on", "machine"},
		{"track_activities", "off", "platform"},
		{"plpython3.anything", "x", "what its build brings"},
		{"cron.host", "elsewhere", "inside their compute"},
		{"pg_partman_bgw.role", `me,"cloud_admin"`, "role of yours"},
		{"nosuchlibrary.x", "1", `"nosuchlibrary", which is not installed`},
		{"max_connections", "3", "at least 25"},
		{"max_replication_slots", "0", "at least 10"},
		{"shared_buffers", "4GB", "shared memory"},
		{"max_connections", "10000000", "outside the valid range"},
		{"work_mem", strings.Repeat("9", 2000), "longer than"},
		{"search_path", "a\x00b", "control characters"},
	} {
		err := check(map[string]string{bad.name: bad.value})
		if !core.IsKind(err, core.KindInvalid) || !strings.Contains(err.Error(), bad.says) {
			t.Errorf("%s = %.40q: %v, want something about %q", bad.name, bad.value, err, bad.says)
		}
	}
	// Together too large, each for itself not.
	err := check(map[string]string{"max_connections": "5000", "max_locks_per_transaction": "5000"})
	if !core.IsKind(err, core.KindInvalid) || !strings.Contains(err.Error(), "shared memory") {
		t.Errorf("locks of many connections: %v", err)
	}
	if err := check(map[string]string{"work_mem": "1MB", "Work_Mem": "2MB"}); err == nil || !strings.Contains(err.Error(), "same setting") {
		t.Errorf("one setting twice: %v", err)
	}
	if b.Major >= 16 { // a rule between settings, which only the server's start knows
		if err := check(map[string]string{"max_connections": "50", "reserved_connections": "45"}); !core.IsKind(err, core.KindInvalid) {
			t.Errorf("more connections reserved than there are: %v", err)
		}
	}

	for keys, want := range map[string]bool{"work_mem": false, "shared_buffers": true, "work_mem max_connections": true, "autovacuum": false} {
		restart, unknown, err := i.NeedsRestart(t.Context(), b, strings.Fields(keys))
		if err != nil || restart != want || len(unknown) > 0 {
			t.Errorf("%s: restart %v, unknown %v, err %v", keys, restart, unknown, err)
		}
	}
	if _, unknown, err := i.NeedsRestart(t.Context(), b, []string{"pg_stat_statements.max"}); err != nil || len(unknown) != 1 {
		t.Errorf("a library's setting: unknown %v, err %v", unknown, err)
	}
	if restart, err := postgres.NeedsRestart(t.Context(), c.Conn(t, ""), []string{"max_connections"}); err != nil || !restart {
		t.Errorf("asked the server: %v, %v", restart, err)
	}
}

func TestLibraries(t *testing.T) {
	b := pgtest.Build(t)
	var names []string
	for _, l := range b.Libraries() {
		if l.Name == "" || l.Description == "" || l.Version == "" {
			t.Errorf("%+v is not complete", l)
		}
		names = append(names, l.Name)
	}
	if !strings.Contains(strings.Join(names, " "), "pg_stat_statements auto_explain") {
		t.Errorf("libraries: %v", names)
	}
	if got := strings.Join(b.PreloadList(true, []string{"auto_explain", "gone"}), ","); got != "pg_stat_statements,auto_explain" {
		t.Errorf("preloaded: %s", got)
	}
	if got := b.PreloadList(false, nil); len(got) > 0 {
		t.Errorf("preloaded without defaults: %v", got)
	}
	err := b.CheckLibraries([]string{"auto_explain", "dblink"})
	if !core.IsKind(err, core.KindInvalid) || !strings.Contains(err.Error(), `"dblink"`) || !strings.Contains(err.Error(), "pg_stat_statements") {
		t.Errorf("a library that is not made to be preloaded: %v", err)
	}
}

func TestChangedSettings(t *testing.T) {
	got := strings.Join(postgres.ChangedSettings(
		map[string]string{"Work_Mem": "1MB", "jit": "on", "gone": "1"},
		map[string]string{"work_mem": "1MB", "jit": "off", "new": "1"}), ",")
	if got != "gone,jit,new" {
		t.Errorf("changed: %s", got)
	}
}
