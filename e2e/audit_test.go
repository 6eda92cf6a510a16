package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/boughdb/bough/internal/postgres"
	"github.com/boughdb/bough/sdk"
)

// TestAuditLog turns the audit log of a running project on, up and down, where its library is installed, and asks for it in
// vain where it is not.
func TestAuditLog(t *testing.T) {
	builds, err := postgres.FindBuilds(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	var with, without *postgres.Build
	for _, b := range builds {
		if b.HasLibrary(postgres.AuditLibrary) {
			with = &b
		} else {
			without = &b
		}
	}
	s := start(t)
	t.Run("without", func(t *testing.T) {
		if without == nil {
			t.Skip("needs a PostgreSQL without pgaudit")
		}
		p := s.projectWith(t, sdk.ProjectCreate{PgVersion: &without.Major})
		pid := s.postmaster(t, p.Branch)
		r := s.raw(t, "", "PATCH", "/projects/"+p.ID, `{"project":{"settings":{"audit_log_level":"base"}}}`)
		if r.status != 422 || !strings.Contains(r.message, "-pgaudit") || s.postmaster(t, p.Branch) != pid {
			t.Errorf("%d %s", r.status, r.message)
		}
	})
	t.Run("with", func(t *testing.T) {
		if with == nil {
			t.Skip("needs pgaudit: apt-get install postgresql-15-pgaudit")
		}
		p := s.projectWith(t, sdk.ProjectCreate{PgVersion: &with.Major, DefaultEndpointSettings: suspendAfter(never)})
		logged := func(text string) bool {
			t.Helper()
			files, err := filepath.Glob(filepath.Join(s.dir, "log", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range files {
				b, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				for line := range strings.Lines(string(b)) {
					if strings.Contains(line, "AUDIT: ") && strings.Contains(line, text) {
						return true
					}
				}
			}
			return false
		}
		level := func(level string) string {
			t.Helper()
			return actions(p.patchProject(t, `{"settings":{"audit_log_level":"`+level+`"}}`))
		}
		if got := level("base"); got != "suspend_compute start_compute" {
			t.Errorf("on: %s", got)
		}
		conn := s.connect(t, p.URI)
		shows := func(want string) {
			t.Helper()
			eventually(t, opLimit, func() string { // a session reads the configuration between two commands
				got := value[string](t, conn, "select concat_ws('/', current_setting('pgaudit.log'), current_setting('pgaudit.log_parameter'))")
				if got != want {
					return got
				}
				return ""
			})
		}
		shows("ddl/off")
		sql(t, conn, "create table seen (id int)")
		sql(t, conn, "insert into seen values (1001)")
		if !logged("create table seen") || logged("1001") {
			t.Errorf("base: created %v, inserted %v", logged("create table seen"), logged("1001"))
		}
		if _, err := conn.Exec(t.Context(), "set pgaudit.log = 'none'"); err == nil {
			t.Error("a user turned the audit log off")
		}
		p.patch(t, `{"settings":{"pg_settings":{"pgaudit.log":"none"}}}`)
		shows("ddl/off")
		if got := level("base"); got != "" {
			t.Errorf("the same again: %s", got)
		}
		if got := level("full"); got != "apply_config" {
			t.Errorf("full: %s", got)
		}
		shows("all/on")
		sql(t, conn, "insert into seen values ($1)", 2002)
		if !logged("2002") {
			t.Error("full: the value of a parameter is not in the log")
		}
		if got := level("extended"); got != "apply_config" {
			t.Errorf("extended: %s", got)
		}
		shows("all, -misc/off")
		sql(t, conn, "insert into seen values ($1)", 3003)
		if logged("3003") || !logged("insert into seen values ($1)") {
			t.Error("extended: wrong log")
		}
		child := p.branch(t, "")
		conn = s.connect(t, child.URI)
		shows("all, -misc/off")
	})
	s.settled(t)
}
