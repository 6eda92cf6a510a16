package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// shareDir is where the build keeps its extensions' control files and scripts, found relative to its program like
// PostgreSQL does it.
func (b Build) shareDir() (string, bool) {
	return b.relative("extension/plpgsql.control", "share/postgresql", "share", "share/pgsql", "../../../share/postgresql/"+strconv.Itoa(b.Major))
}

// libDir is where the build keeps its modules.
func (b Build) libDir() (string, bool) {
	return b.relative("plpgsql.so", libDirs(b.Major)...)
}

// relative returns the first of some folders beside the program's that holds a file.
func (b Build) relative(file string, dirs ...string) (string, bool) {
	for _, dir := range dirs {
		dir = filepath.Join(b.realBin(), "..", dir)
		if _, err := os.Stat(filepath.Join(dir, file)); err == nil {
			return dir, true
		}
	}
	return "", false
}

// realBin is where the program itself is: PostgreSQL follows symbolic links before it looks around.
func (b Build) realBin() string {
	if real, err := filepath.EvalSymlinks(b.Tool("postgres")); err == nil {
		return filepath.Dir(real)
	}
	return b.BinDir
}

// Overlays keeps a view of each build in which the allowed extensions are marked as trusted. A view is the build's program
// as a copy, and beside it, in the same places relative to it, symbolic links to everything else but the control files and
// scripts that differ. PostgreSQL finds its files relative to its program (make_relative_path), so a server that is started
// from there takes them. It works alike for every major and packager, needs no module, and nothing of the build is touched.
//
// A view is brought up to date in place, file by file by renaming: servers that run from it see new and updated extensions
// as they would without it.
type Overlays struct {
	dir   string
	allow AllowList
	cred  *syscall.Credential // OS user of servers
	log   *slog.Logger

	mu    sync.Mutex
	views map[string]view // by the build's program
}

type view struct {
	stamp string // of what it was made from
	bin   string // "" when the build's layout does not allow a view
}

// NewOverlays makes an Overlays that keeps its views under dir, which the servers' OS user must be able to traverse.
func NewOverlays(dir string, allow AllowList, cred *syscall.Credential, log *slog.Logger) *Overlays {
	return &Overlays{dir: dir, allow: allow, cred: cred, log: log, views: map[string]view{}}
}

// Build returns the build as servers should run it, after making or updating its view. A build of which no view can be made
// is returned as it is, and the log says so once: its untrusted extensions stay for superusers then.
func (o *Overlays) Build(ctx context.Context, b Build) (Build, error) {
	stamp, err := o.stamp(b)
	if err != nil {
		return b, &core.Error{Kind: core.KindUnavailable, Op: "postgres.overlay", Err: err,
			Message: fmt.Sprintf("PostgreSQL %d was removed from this server; its operator can install it again", b.Major)}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	key := b.Tool("postgres")
	v, ok := o.views[key]
	if !ok || v.stamp != stamp {
		v = view{stamp: stamp}
		if v.bin, err = o.make(ctx, b, stamp); err != nil {
			if ctx.Err() != nil {
				return b, ctx.Err()
			}
			o.log.Warn("untrusted extensions stay closed to the owners of databases", "postgres", b.Version, "error", err)
		}
		o.views[key] = v
	}
	if v.bin != "" {
		b.BinDir = v.bin
	}
	return b, nil
}

// stamp changes when the build, what is installed for it, or the allow-list does.
func (o *Overlays) stamp(b Build) (string, error) {
	program, err := os.Stat(b.Tool("postgres"))
	if err != nil {
		return "", err
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id") // what was not synced is looked at again after a crash of the machine
	s := fmt.Sprintf("v1 %s %s %d %d %s", strings.TrimSpace(string(boot)), b.realBin(), program.Size(), program.ModTime().UnixNano(), o.allow)
	if share, ok := b.shareDir(); ok {
		for _, dir := range []string{share, filepath.Join(share, "extension"), filepath.Join(share, "timezonesets")} {
			if info, err := os.Stat(dir); err == nil {
				s += fmt.Sprint(" ", info.ModTime().UnixNano())
			}
		}
	}
	return s, nil
}

const stampFile = "made-from"

// make brings the view of a build up to date and returns its program's folder.
func (o *Overlays) make(ctx context.Context, b Build, stamp string) (string, error) {
	bin := b.realBin()
	share, haveShare := b.shareDir()
	lib, haveLib := b.libDir()
	if !haveShare || !haveLib {
		return "", errors.New("its folders of extensions and modules were not found beside its program")
	}
	// The folder from which the program takes its shared libraries, too, when it is another one ($ORIGIN/../lib).
	if up := filepath.Join(bin, "..", "lib"); strings.HasPrefix(lib, up+"/") {
		lib = up
	}
	base := common(bin, common(share, lib))
	sum := sha256.Sum256([]byte(bin))
	root := filepath.Join(o.dir, strconv.Itoa(b.Major)+"-"+hex.EncodeToString(sum[:4]))
	at := func(path string) string { return filepath.Join(root, strings.TrimPrefix(path, base)) }
	if made, err := os.ReadFile(filepath.Join(root, stampFile)); err == nil && string(made) == stamp {
		return at(bin), nil
	}
	// Not under its stamp while it is neither the old nor the new.
	if err := os.Remove(filepath.Join(root, stampFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	for _, dir := range []string{at(bin), filepath.Join(at(share), "extension"), filepath.Join(at(share), "timezonesets"), filepath.Dir(at(lib))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
	}
	if err := copyProgram(b.Tool("postgres"), filepath.Join(at(bin), "postgres")); err != nil {
		return "", err
	}
	if err := link(lib, at(lib)); err != nil {
		return "", err
	}
	if err := mirror(share, at(share), map[string][]byte{"extension": nil, "timezonesets": nil}); err != nil {
		return "", err
	}
	if err := mirror(filepath.Join(share, "timezonesets"), filepath.Join(at(share), "timezonesets"), map[string][]byte{probe: []byte("UTC 0\n")}); err != nil {
		return "", err
	}
	changed, err := o.trusted(filepath.Join(share, "extension"))
	if err != nil {
		return "", err
	}
	if err := mirror(filepath.Join(share, "extension"), filepath.Join(at(share), "extension"), changed); err != nil {
		return "", err
	}
	if err := o.prove(ctx, filepath.Join(at(bin), "postgres")); err != nil {
		return "", err
	}
	return at(bin), replaceFile(filepath.Join(root, stampFile), []byte(stamp), nil, true)
}

// trusted returns the control files and scripts that a view has in another form.
func (o *Overlays) trusted(dir string) (map[string][]byte, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	changed := map[string][]byte{}
	for _, e := range entries {
		name, kind := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())), filepath.Ext(e.Name())
		extension, _, _ := strings.Cut(name, "--")
		if !o.allow.Allows(extension) || (kind != ".control" && (kind != ".sql" || afterScript[extension] == "")) {
			continue
		}
		content, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if kind == ".sql" {
			changed[e.Name()] = append(content, "\n"+afterScript[extension]+"\n"...)
			continue
		}
		var kept strings.Builder
		for line := range strings.Lines(string(content)) {
			if key, _ := controlLine(line); key != "trusted" {
				kept.WriteString(strings.TrimRight(line, "\r\n") + "\n")
			}
		}
		changed[e.Name()] = []byte(kept.String() + "trusted = true\n")
	}
	return changed, nil
}

// probe is the name of a set of time zone abbreviations that only views have.
const probe = "boughview"

// prove asks the program of a view for the probe: where programs may not be run, or this one looks elsewhere, it fails.
func (o *Overlays) prove(ctx context.Context, program string) error {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, append([]string{"-C", "port", "-c", "timezone_abbreviations=" + probe}, standalone...)...)
	cmd.Env, cmd.Dir, cmd.SysProcAttr = ServerEnv(), "/", &syscall.SysProcAttr{Credential: o.cred}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s does not take its files from its own place: %w: %s", program, err, out)
	}
	return nil
}

// common is the deepest folder that holds both paths.
func common(a, b string) string {
	for ; a != "/"; a = filepath.Dir(a) {
		if b == a || strings.HasPrefix(b, a+"/") {
			return a
		}
	}
	return a
}

// copyProgram puts a copy of a program under path, unless it is there. A hard link would do where the file system is the same,
// but then changing owner or mode of the copy would change the original's.
func copyProgram(from, path string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	info, err := src.Stat()
	if err != nil {
		return err
	}
	if have, err := os.Stat(path); err == nil && have.Size() == info.Size() && have.ModTime().Equal(info.ModTime()) {
		return nil
	}
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dst, err := os.OpenFile(temp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(dst, src)
	if err = errors.Join(err, dst.Chmod(0o755), dst.Sync(), dst.Close(), os.Chtimes(temp, time.Time{}, info.ModTime())); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return os.Rename(temp, path)
}

// mirror makes dst hold a symbolic link to every entry of src, except for those of own, which hold the given content, or are
// left alone when that is nil. What is in neither goes.
func mirror(src, dst string, own map[string][]byte) error {
	entries, err := os.ReadDir(src)
	if err != nil {
		return err
	}
	wanted := map[string]bool{}
	for name, content := range own {
		wanted[name] = true
		if content == nil {
			continue
		}
		if err := replaceFile(filepath.Join(dst, name), content, nil, false); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Join(dst, name), 0o644); err != nil {
			return err
		}
	}
	for _, e := range entries {
		if wanted[e.Name()] {
			continue
		}
		wanted[e.Name()] = true
		if err := link(filepath.Join(src, e.Name()), filepath.Join(dst, e.Name())); err != nil {
			return err
		}
	}
	have, err := os.ReadDir(dst)
	if err != nil {
		return err
	}
	for _, e := range have {
		if !wanted[e.Name()] {
			if err := os.RemoveAll(filepath.Join(dst, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// link makes path a symbolic link to target, in one step where there was something else.
func link(target, path string) error {
	if now, err := os.Readlink(path); err == nil && now == target {
		return nil
	}
	temp := path + ".tmp"
	if err := os.Remove(temp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, temp); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
