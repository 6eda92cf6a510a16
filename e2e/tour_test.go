package e2e

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tour extracts the fenced sh blocks between <!-- tour --> and <!-- /tour --> of the README.
func tour(t *testing.T) string {
	t.Helper()
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, found := strings.Cut(string(readme), "<!-- tour -->")
	text, _, closed := strings.Cut(rest, "<!-- /tour -->")
	if !found || !closed {
		t.Fatal("README.md has no tour: put it between <!-- tour --> and <!-- /tour -->")
	}
	var script strings.Builder
	inside := false
	for line := range strings.Lines(text) {
		switch fence := strings.TrimSpace(line); {
		case !inside && fence == "```sh":
			inside = true
		case inside && fence == "```":
			inside = false
		case inside:
			script.WriteString(line)
		}
	}
	if inside || script.Len() == 0 {
		t.Fatal("README.md's tour has no complete ```sh block")
	}
	return script.String()
}

// TestTour starts Bough as the README says and runs its tour in a fresh home.
func TestTour(t *testing.T) {
	noteSources()
	script := tour(t)
	if _, err := exec.LookPath("psql"); err != nil {
		t.Fatal("the tour needs psql: install Debian's postgresql-client")
	}
	base, err := os.MkdirTemp("", "bough-e2e-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	if base, err = filepath.EvalSymlinks(base); err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, base: base, dir: filepath.Join(base, "data")}
	t.Cleanup(s.end)
	home := filepath.Join(base, "home")
	if err := os.MkdirAll(filepath.Join(home, "bin"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(program, filepath.Join(home, "bin", "bough")); err != nil {
		t.Fatal(err)
	}
	env := []string{"HOME=" + home, "PATH=" + filepath.Join(home, "bin") + ":" + os.Getenv("PATH"), "TMPDIR=" + os.TempDir(), "TERM=dumb",
		"BOUGH_DATA_DIR=" + s.dir, "BOUGH_STORAGE_SIZE=6GiB", "BOUGH_HOST_RESERVE=256MiB", "BOUGH_HTTP_LISTEN=127.0.0.1:0",
		"BOUGH_PG_LISTEN=127.0.0.1:0"}
	sh := func(script string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", script)
		cmd.Dir, cmd.Env = home, env
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.WaitDelay = 10 * time.Second // the server of `bough up` must not hold the pipe
		if err := cmd.Run(); err != nil {
			t.Fatalf("%v; the output:\n%s\nthe server's log:\n%s", err, out.String(), tail(filepath.Join(s.dir, "log", "server.log"), 4000))
		}
		return out.String()
	}
	up := sh("bough up")
	uri, ok := between(up, "psql '", "'")
	if !ok {
		t.Fatalf("bough up prints no connection string:\n%s", up)
	}
	// What it printed is for pasting.
	if out := sh("psql -tA '" + uri + "' -c 'select 40 + 2'"); strings.TrimSpace(out) != "42" {
		t.Errorf("the printed connection string answers %q", out)
	}
	out := sh("set -x\n" + script)
	t.Logf("the tour:\n%s", out)
	if again := sh("bough up"); !strings.Contains(again, uri) {
		t.Errorf("a second bough up does not print the same connection string:\n%s", again)
	}
	if !s.ready() {
		t.Fatal("the server does not answer after the tour")
	}
	s.settled(t)
	sh("bough down")
}

// between returns what is between the first from and the next to.
func between(s, from, to string) (string, bool) {
	_, rest, ok := strings.Cut(s, from)
	text, _, closed := strings.Cut(rest, to)
	return text, ok && closed
}
