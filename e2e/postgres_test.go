package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/sdk"
)

// checkable makes a project of a version whose pg_checksums is on this machine; of the default one where there is none.
func (s *server) checkable(t *testing.T) *project {
	t.Helper()
	p := sdk.ProjectCreate{DefaultEndpointSettings: suspendAfter(never)}
	for major := 18; major >= 14; major-- {
		if _, err := os.Stat(pgChecksums(major)); err == nil {
			p.PgVersion = &major
			break
		}
	}
	return s.projectWith(t, p)
}

func pgChecksums(major int) string {
	return fmt.Sprintf("/usr/lib/postgresql/%d/bin/pg_checksums", major)
}

func (s *server) volume(branchID string) string {
	return filepath.Join(s.dir, "pool", "volumes", branchID)
}

// socket is the folder of a running compute's socket.
func (s *server) socket(t *testing.T, branchID string) string {
	t.Helper()
	f, err := os.Open(filepath.Join(s.volume(branchID), "postmaster.pid"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		if n == 5 {
			return lines.Text()
		}
	}
	t.Fatalf("branch %s: postmaster.pid names no socket", branchID)
	return ""
}

// superuser opens a session on a running compute past the proxy, as the platform's own role.
func (s *server) superuser(t *testing.T, branchID string) *pgx.Conn {
	t.Helper()
	return s.superuserOf(t, branchID, "postgres")
}

func (s *server) superuserOf(t *testing.T, branchID, database string) *pgx.Conn {
	t.Helper()
	cfg, err := pgx.ParseConfig("user=cloud_admin sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host, cfg.Port, cfg.Password, cfg.Database = s.socket(t, branchID), 5432, "", database
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// sound checks every table and index of a running branch, as pg_amcheck --heapallindexed does.
func (s *server) sound(t *testing.T, branchID string) {
	t.Helper()
	databases := value[[]string](t, s.superuser(t, branchID), "select array_agg(datname::text) from pg_database where not datistemplate")
	for _, name := range databases {
		conn := s.superuserOf(t, branchID, name)
		sql(t, conn, "create extension if not exists amcheck")
		bad := value[[]string](t, conn, `select coalesce(array_agg(format('%s block %s: %s', c.oid::regclass, v.blkno, v.msg)), '{}')
			from pg_class c cross join lateral verify_heapam(c.oid) v where c.relkind in ('r', 't', 'm') and c.relpersistence <> 't'`)
		if len(bad) > 0 {
			t.Errorf("branch %s, database %s: %s", branchID, name, strings.Join(bad, "\n"))
		}
		if n := value[int](t, conn, `select count(bt_index_check(i.indexrelid, true)) from pg_index i join pg_class c on c.oid = i.indexrelid
			where c.relam = (select oid from pg_am where amname = 'btree') and c.relpersistence <> 't' and i.indisready and i.indisvalid`); n == 0 {
			t.Errorf("branch %s, database %s: no index was checked", branchID, name)
		}
		_ = conn.Close(t.Context())
	}
}

// checksums checks every page of a sleeping branch of a checkable project.
func (s *server) checksums(t *testing.T, branchID string) {
	t.Helper()
	major, err := os.ReadFile(filepath.Join(s.volume(branchID), "PG_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(major)))
	if err != nil {
		t.Fatal(err)
	}
	tool := pgChecksums(n)
	if _, err := os.Stat(tool); err != nil {
		t.Log("there is no pg_checksums here: not checked")
		return
	}
	out, err := exec.Command(tool, "--check", "--pgdata", s.volume(branchID)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Bad checksums:  0") {
		t.Errorf("pg_checksums of branch %s: %v\n%s", branchID, err, out)
	}
}
