package e2e

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// pgTool finds a program of the PostgreSQL that made a data directory.
func pgTool(t *testing.T, dataDir, name string) string {
	t.Helper()
	major, err := os.ReadFile(filepath.Join(dataDir, "PG_VERSION"))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("/usr/lib/postgresql", strings.TrimSpace(string(major)), "bin", name)
	if _, err := os.Stat(path); err == nil {
		return path
	}
	path, err = exec.LookPath(name)
	if err != nil {
		return ""
	}
	return path
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
	cfg, err := pgx.ParseConfig("user=cloud_admin dbname=postgres sslmode=disable")
	if err != nil {
		t.Fatal(err)
	}
	cfg.Host, cfg.Port, cfg.Password = s.socket(t, branchID), 5432, ""
	conn, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

// sound checks every table and index of a running branch.
func (s *server) sound(t *testing.T, branchID string) {
	t.Helper()
	tool := pgTool(t, s.volume(branchID), "pg_amcheck")
	if tool == "" {
		t.Log("there is no pg_amcheck here: not checked")
		return
	}
	out, err := exec.Command(tool, "--host", s.socket(t, branchID), "--username", "cloud_admin", "--all", "--install-missing",
		"--heapallindexed").CombinedOutput()
	if err != nil {
		t.Errorf("pg_amcheck of branch %s: %v\n%s", branchID, err, out)
	}
}

// checksums checks every page of a sleeping branch.
func (s *server) checksums(t *testing.T, branchID string) {
	t.Helper()
	tool := pgTool(t, s.volume(branchID), "pg_checksums")
	if tool == "" {
		t.Log("there is no pg_checksums here: not checked")
		return
	}
	out, err := exec.Command(tool, "--check", "--pgdata", s.volume(branchID)).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "Bad checksums:  0") {
		t.Errorf("pg_checksums of branch %s: %v\n%s", branchID, err, out)
	}
}
