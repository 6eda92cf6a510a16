package postgres

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// The majors that Bough runs.
const (
	MinMajor = 14
	MaxMajor = 18
)

// Build is one installed PostgreSQL.
type Build struct {
	Major   int    // 14 … 18
	Version string // "15.18", as the server prints it
	BinDir  string // absolute; holds at least postgres and initdb
}

// Tool is the path of one of the build's programs, which may not exist.
func (b Build) Tool(name string) string { return filepath.Join(b.BinDir, name) }

// clientPrograms are those of a whole PostgreSQL that people look for beside the server; Bough needs none.
var clientPrograms = []string{"psql", "pg_dump", "pg_restore", "pg_basebackup", "pg_amcheck", "pg_checksums", "pg_controldata", "pg_waldump", "pgbench"}

// Lacks names the client and maintenance programs that the build came without.
func (b Build) Lacks() []string {
	return slices.DeleteFunc(slices.Clone(clientPrograms), func(name string) bool {
		_, err := os.Stat(b.Tool(name))
		return err == nil
	})
}

// HasLibrary tells whether the build can load the named module, such as pg_stat_statements. PostgreSQL looks it up relative
// to its own binary, so the folders tried are those that its packagers use.
func (b Build) HasLibrary(name string) bool {
	_, ok := b.relative(name+".so", libDirs(b.Major)...)
	return ok
}

// libDirs are the places of modules beside a build's programs.
func libDirs(major int) []string {
	return []string{"lib/postgresql", "lib", "lib/pgsql", "lib64/pgsql", "lib64/postgresql", "lib64", "lib/postgresql/" + strconv.Itoa(major) + "/lib"}
}

// DefaultMajor is what a project runs that asks for none, where it is installed; elsewhere it is the newest that is.
const DefaultMajor = 17

// Default chooses among what FindBuilds found; ok is false when that is nothing.
func Default(builds []Build) (b Build, ok bool) {
	for _, b := range builds {
		if b.Major == DefaultMajor {
			return b, true
		}
	}
	if len(builds) == 0 {
		return Build{}, false
	}
	return builds[len(builds)-1], true
}

// Builds finds what is installed. It looks anew each time, because builds come and go while a server runs, but asks a binary
// for its version only once. It is safe for concurrent use.
type Builds struct {
	extra []string
	home  string // "" finds nothing of `bough postgres install`

	mu     sync.Mutex
	probed map[string]probed // by bin folder
}

// probed is what a binary said, as long as it is the same file.
type probed struct {
	dev, ino uint64
	size     int64
	changed  time.Time
	build    Build // zero: nothing that Bough runs
}

// NewBuilds makes a finder that looks into extraDirs too, each a bin folder or a folder that contains */bin.
func NewBuilds(extraDirs []string) *Builds {
	home, _ := Home() // without one there is nothing to find in it
	return &Builds{extra: extraDirs, home: home, probed: map[string]probed{}}
}

// FindBuilds looks once; see Builds.Find.
func FindBuilds(ctx context.Context, extraDirs []string) ([]Build, error) {
	return NewBuilds(extraDirs).Find(ctx)
}

// Find lists one build of every supported major that is installed, oldest major first. The folders that the operator named
// come first, then /usr/lib/postgresql/*/bin and the folders of PATH, then what `bough postgres install` fetched: a system's
// own build has more extensions and gets its updates. Within each of the three the newest patch release counts. A named
// folder without a usable build is a KindInvalid error, beside the builds that were found.
func (f *Builds) Find(ctx context.Context) ([]Build, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	best := map[int]Build{}
	look := func(dirs []string) {
		newest := map[int]Build{}
		for _, dir := range dirs {
			if b, ok := f.probe(ctx, dir); ok {
				if old, ok := newest[b.Major]; !ok || newer(b.Version, old.Version) {
					newest[b.Major] = b
				}
			}
		}
		for major, b := range newest {
			if _, ok := best[major]; !ok {
				best[major] = b
			}
		}
	}
	places := f.places()
	var empty []string
	for i, extra := range f.extra {
		usable := func(dir string) bool { _, ok := f.probe(ctx, dir); return ok }
		if !slices.ContainsFunc(places.named[i], usable) {
			empty = append(empty, extra)
		}
	}
	look(slices.Concat(places.named...))
	look(places.system)
	look(places.own)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	builds := slices.SortedFunc(maps.Values(best), func(a, b Build) int { return a.Major - b.Major })
	if len(empty) > 0 {
		return builds, core.Invalidf("no PostgreSQL %d to %d (postgres and initdb) in %s", MinMajor, MaxMajor, strings.Join(empty, ", "))
	}
	return builds, nil
}

// places are the folders that may hold PostgreSQL's programs.
type places struct {
	named  [][]string // for each folder that the operator named
	system []string
	own    []string // of `bough postgres install`
}

func (f *Builds) places() places {
	glob := func(pattern ...string) []string {
		matches, _ := filepath.Glob(filepath.Join(pattern...)) // the only error is a malformed pattern
		return matches
	}
	var p places
	for _, extra := range f.extra {
		p.named = append(p.named, append([]string{extra, filepath.Join(extra, "bin")}, glob(extra, "*", "bin")...))
	}
	p.system = append(glob("/usr/lib/postgresql/*/bin"), filepath.SplitList(os.Getenv("PATH"))...)
	for _, home := range homes(f.home) {
		p.own = append(p.own, glob(home, "[0-9][0-9]", "bin")...)
	}
	return p
}

// probe is the build in dir, if there is one that Bough runs.
func (f *Builds) probe(ctx context.Context, dir string) (Build, bool) {
	abs, err := filepath.Abs(dir)
	if err != nil || dir == "" {
		return Build{}, false
	}
	var is probed
	for _, tool := range []string{"initdb", "postgres"} {
		info, err := os.Stat(filepath.Join(abs, tool))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return Build{}, false
		}
		is = probed{size: info.Size(), changed: info.ModTime()}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			is.dev, is.ino = st.Dev, st.Ino
		}
	}
	if was, ok := f.probed[abs]; ok {
		is.build = was.build
		if was == is {
			return is.build, is.build.Major != 0
		}
	}
	version, err := runVersion(ctx, filepath.Join(abs, "postgres"), nil)
	if err != nil {
		return Build{}, false
	}
	is.build = Build{}
	if major, err := strconv.Atoi(leadingDigits(version)); err == nil && major >= MinMajor && major <= MaxMajor {
		is.build = Build{Major: major, Version: version, BinDir: abs}
	}
	f.probed[abs] = is
	return is.build, is.build.Major != 0
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d[^\s]*)`)

// runVersion asks one of PostgreSQL's programs for its version, as another OS user when cred is set.
func runVersion(ctx context.Context, program string, cred *syscall.Credential) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, "--version")
	cmd.Dir, cmd.Env = "/", ServerEnv()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out))
	}
	m := versionLine.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s: not PostgreSQL: %q", program, tail(string(out), 1))
	}
	return string(m[1]), nil
}

func leadingDigits(s string) string {
	return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
}

// newer compares the numbers after the major; a pre-release ("18beta2") counts as older than any release.
func newer(a, b string) bool { return patch(a) > patch(b) }

func patch(version string) int {
	_, minor, ok := strings.Cut(version, ".")
	if !ok {
		return -1
	}
	n, err := strconv.Atoi(minor)
	if err != nil {
		return -1
	}
	return n
}
