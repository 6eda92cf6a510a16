package postgres

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strconv"
	"strings"
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

// FindBuilds lists the newest patch release of every supported major, oldest major first. It looks into
// /usr/lib/postgresql/*/bin, the folders of PATH and extraDirs, each a bin folder or a folder that contains */bin. A folder
// of extraDirs without a usable build is an error, beside the builds that were found.
func FindBuilds(ctx context.Context, extraDirs []string) ([]Build, error) {
	var dirs []string
	add := func(pattern string) {
		matches, _ := filepath.Glob(pattern) // the only error is a malformed pattern
		dirs = append(dirs, matches...)
	}
	add("/usr/lib/postgresql/*/bin")
	dirs = append(dirs, filepath.SplitList(os.Getenv("PATH"))...)

	best := map[int]Build{}
	var empty []string
	keep := func(b Build) {
		if old, ok := best[b.Major]; !ok || newer(b.Version, old.Version) {
			best[b.Major] = b
		}
	}
	seen := map[string]bool{}
	for _, dir := range dirs {
		if b, ok := probeBuild(ctx, dir, seen); ok {
			keep(b)
		}
	}
	for _, extra := range extraDirs {
		dirs = []string{extra, filepath.Join(extra, "bin")}
		add(filepath.Join(extra, "*", "bin"))
		found := false
		for _, dir := range dirs {
			if b, ok := probeBuild(ctx, dir, map[string]bool{}); ok {
				keep(b)
				found = true
			}
		}
		if !found {
			empty = append(empty, extra)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	builds := make([]Build, 0, len(best))
	for _, b := range best {
		builds = append(builds, b)
	}
	sort.Slice(builds, func(i, j int) bool { return builds[i].Major < builds[j].Major })
	if len(empty) > 0 {
		return builds, core.Invalidf("no PostgreSQL %d to %d (postgres and initdb) in %s", MinMajor, MaxMajor, strings.Join(empty, ", "))
	}
	return builds, nil
}

var versionLine = regexp.MustCompile(`\(PostgreSQL\) (\d+)([^\s]*)`)

// probeBuild asks the postgres in dir for its version.
func probeBuild(ctx context.Context, dir string, seen map[string]bool) (Build, bool) {
	abs, err := filepath.Abs(dir)
	if err != nil || dir == "" || seen[abs] {
		return Build{}, false
	}
	seen[abs] = true
	for _, tool := range []string{"postgres", "initdb"} {
		info, err := os.Stat(filepath.Join(abs, tool))
		if err != nil || !info.Mode().IsRegular() || info.Mode()&0o111 == 0 {
			return Build{}, false
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(abs, "postgres"), "--version").Output()
	if err != nil {
		return Build{}, false
	}
	m := versionLine.FindStringSubmatch(string(out))
	if m == nil {
		return Build{}, false
	}
	major, err := strconv.Atoi(m[1])
	if err != nil || major < MinMajor || major > MaxMajor {
		return Build{}, false
	}
	return Build{Major: major, Version: m[1] + m[2], BinDir: abs}, true
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
