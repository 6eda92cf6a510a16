// Package storage owns volumes: the data directories (without WAL) of branches, as copy-on-write folders on one file
// system. A Pool creates, clones, deletes and lists them and watches the space they need; how a clone is made is the
// business of a Backend.
//
// On disk, under the data directory DIR:
//
//	DIR/pool.json     which backend the pool was made with
//	DIR/pool.img      the btrfs image, when the backend makes one
//	DIR/pool/         its mount point, or a plain folder
//	DIR/pool/volumes/ one folder for each volume
//	DIR/pool/staging/ volumes being made; emptied by Open
//	DIR/pool/deleting/ deleted volumes whose space is not free yet; see StartCleaning
package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// cleanupTimeout bounds the removal of what a failed call made, after the call's own context may have ended.
const cleanupTimeout = time.Minute

// Options say where a pool is and how it is made. The zero value of a field means its default.
type Options struct {
	Dir         string // the data directory; made when missing
	Backend     string // auto (the default), btrfs, reflink or copy
	Preallocate bool   // reserve the image's space on the host when it is made, and never give it back
	SizeBytes   int64  // first size of a new image; 0 chooses from the host's free space
	LimitBytes  int64  // size up to which the image grows by itself; 0: as far as the host has room
	UID, GID    int    // owner of new volumes; -1 leaves the owner alone
	HostReserve int64  // bytes to keep free on the host's file system; 0 chooses
	PoolReserve int64  // bytes to keep free in the pool; 0 chooses
	Log         *slog.Logger

	// Maker marks the half-made volumes of this process among those of others that may share the pool; MakerLives tells of
	// another mark whether its process still works on them. Without it everything that Open finds is left from before.
	Maker      string
	MakerLives func(maker string) bool
}

// Pool holds volumes. Its methods are safe for concurrent use; two calls that change the same volume are the caller's to
// keep apart.
type Pool struct {
	opts    Options
	backend Backend
	image   bool // the volumes are in a mounted image
	log     *slog.Logger
	staged  sync.Map // paths in staging that a call works on
	cleaner cleaner

	growth    sync.Mutex // held while the image grows
	growAfter time.Time  // guarded by growth
}

// Open makes or finds the pool of a data directory: it mounts what must be mounted, removes what a crash left half-made,
// and can be called again at any time, also after kill -9. There is nothing to close: a mounted pool stays mounted for the
// computes that run on it; see Unmount.
func Open(ctx context.Context, opts Options) (*Pool, error) {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	dir, err := prepareDir(opts.Dir)
	if err != nil {
		return nil, wrap(err, "storage.open", "the data directory must be creatable and writable")
	}
	opts.Dir = dir
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return nil, wrap(err, "storage.open", "another process is opening this data directory")
	}
	defer unlock()

	backend, err := selectBackend(ctx, opts)
	if err != nil {
		return nil, wrap(err, "storage.open", "")
	}
	if opts, err = noteOptions(ctx, opts); err != nil {
		return nil, wrap(err, "storage.open", "")
	}
	p := &Pool{opts: opts, backend: backend, log: opts.Log}
	p.cleaner.wake, p.cleaner.patience = make(chan struct{}, 1), cloneWait
	if img, err := readImage(dir); err == nil {
		p.image = img.loop != ""
	} else if !notExist(err) {
		return nil, wrap(err, "storage.open", "")
	}
	for _, d := range []string{p.volumes(), p.staging(), p.deleting()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, wrap(err, "storage.open", "")
		}
	}
	if err := p.sweep(ctx); err != nil {
		return nil, wrap(err, "storage.open", "a volume that a crash left in pool/staging could not be removed")
	}
	p.log.InfoContext(ctx, "storage is open", "backend", backend.Name(), "dir", dir)
	if backend.Name() == BackendCopy {
		p.log.WarnContext(ctx, "branches are full copies: each costs as much disk as its parent, and time in proportion",
			"backend", backend.Name())
	}
	return p, nil
}

// Backend is the name of the backend in use.
func (p *Pool) Backend() string { return p.backend.Name() }

// Atomic tells whether Clone catches one instant of its source. When it does not, the clone of a running cluster must be
// made in backup mode.
func (p *Pool) Atomic() bool { return p.backend.Atomic() }

// Path is the folder of a volume, whether or not the volume exists.
func (p *Pool) Path(id string) string { return filepath.Join(p.volumes(), id) }

func (p *Pool) root() string    { return poolPath(p.opts.Dir) }
func (p *Pool) volumes() string { return filepath.Join(p.root(), "volumes") }
func (p *Pool) staging() string { return filepath.Join(p.root(), "staging") }

func (p *Pool) deleting() string { return filepath.Join(p.root(), "deleting") }

// Create makes an empty volume, mode 0700, owned as Options say. It survives a crash of the machine once Create returns.
// A volume of that name is a conflict.
func (p *Pool) Create(ctx context.Context, id string) error {
	const op = "storage.create"
	if err := p.checkFree(id); err != nil {
		return wrap(err, op, "")
	}
	tmp := p.stagingPath(id)
	defer p.working(tmp)()
	err := p.backend.Create(ctx, tmp)
	if err == nil {
		err = own(tmp, p.opts.UID, p.opts.GID)
	}
	if err == nil {
		err = p.install(tmp, id)
	}
	if err != nil {
		p.discard(ctx, tmp)
		return wrap(err, op, "")
	}
	return nil
}

// Clone makes dst an independent copy of src: same content, owners and modes. It survives a crash of the machine once
// Clone returns; on an error there is no dst. A missing src is KindNotFound, an existing dst a conflict, a full file system
// KindNoSpace.
func (p *Pool) Clone(ctx context.Context, src, dst string) error {
	const op = "storage.clone"
	if err := p.checkFree(dst); err != nil {
		return wrap(err, op, "")
	}
	if err := p.checkExists(src); err != nil {
		return wrap(err, op, "")
	}
	p.cleaner.clones.Add(1)
	defer p.cleaner.clones.Add(-1)
	if p.backend.Atomic() {
		return wrap(p.backend.Clone(ctx, p.Path(src), p.Path(dst)), op, "")
	}
	tmp := p.stagingPath(dst)
	defer p.working(tmp)()
	err := p.backend.Clone(ctx, p.Path(src), tmp)
	if err == nil {
		err = p.install(tmp, dst)
	}
	if err != nil {
		p.discard(ctx, tmp)
		return wrap(err, op, "")
	}
	return nil
}

// Delete removes a volume; one that does not exist is not an error. Nothing may be using it. Its space is free when Delete
// returns, or later: see StartCleaning.
func (p *Pool) Delete(ctx context.Context, id string) error {
	const op = "storage.delete"
	if err := checkID(id); err != nil {
		return wrap(err, op, "")
	}
	// Out of the way first: a crash in the middle leaves something to clean up, never half a volume.
	tmp := filepath.Join(p.deleting(), filepath.Base(p.stagingPath(id)))
	if err := os.Rename(p.Path(id), tmp); err != nil {
		if notExist(err) {
			return nil
		}
		return wrap(err, op, "")
	}
	if err := syncPath(p.volumes()); err != nil {
		return wrap(err, op, "")
	}
	if p.cleaner.on.Load() {
		p.wakeCleaner()
		return nil
	}
	return wrap(p.backend.Remove(ctx, tmp), op, "the rest is removed at the next start")
}

// List returns the ids of all volumes, sorted.
func (p *Pool) List(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.volumes())
	if err != nil {
		return nil, wrap(err, "storage.list", "is the pool still mounted?")
	}
	var ids []string
	for _, e := range entries {
		if e.IsDir() && idPattern.MatchString(e.Name()) {
			ids = append(ids, e.Name())
		}
	}
	slices.Sort(ids)
	return ids, nil
}

func (p *Pool) checkFree(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	_, err := os.Lstat(p.Path(id))
	switch {
	case err == nil:
		return core.Errorf(core.KindConflict, "", "volume %s exists already", id)
	case notExist(err):
		return nil
	default:
		return err
	}
}

func (p *Pool) checkExists(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	_, err := os.Lstat(p.Path(id))
	if notExist(err) {
		return core.NotFoundf("volume %s does not exist", id)
	}
	return err
}

// stagingPath is a name that no other call uses, nor another process.
func (p *Pool) stagingPath(id string) string {
	return filepath.Join(p.staging(), id+"."+p.opts.Maker+"."+rand.Text()[:10])
}

// elsewhere tells whether another process that lives works on what has that name in staging.
func (p *Pool) elsewhere(name string) bool {
	parts := strings.Split(name, ".")
	if p.opts.MakerLives == nil || len(parts) < 3 {
		return false
	}
	maker := parts[len(parts)-2]
	return maker != p.opts.Maker && p.opts.MakerLives(maker)
}

// working says that a call works on a path in staging, until done is called; see Leftovers.
func (p *Pool) working(path string) (done func()) {
	p.staged.Store(path, nil)
	return func() { p.staged.Delete(path) }
}

// install gives a finished staged volume its name, durably.
func (p *Pool) install(tmp, id string) error {
	if err := os.Rename(tmp, p.Path(id)); err != nil {
		return err
	}
	err := syncPath(p.volumes())
	if err == nil && p.backend.Atomic() {
		// A file system with a log of its own for fsync may leave the rename of a whole subvolume to the next commit.
		err = syncFS(p.volumes())
	}
	if err != nil {
		// The name may or may not be durable: take it back, so that an error means there is no volume.
		return errors.Join(err, os.Rename(p.Path(id), tmp))
	}
	return nil
}

// discard removes what a failed call made. What cannot be removed now is swept by the next Open.
func (p *Pool) discard(ctx context.Context, tmp string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := p.backend.Remove(ctx, tmp); err != nil {
		p.log.WarnContext(ctx, "a half-made volume could not be removed; the next start tries again", "path", tmp, "error", err)
	}
}

// sweep takes the volumes whose making a crash interrupted out of the way: removing them could hold up the start.
func (p *Pool) sweep(ctx context.Context) error {
	entries, err := os.ReadDir(p.staging())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if p.elsewhere(e.Name()) {
			continue
		}
		p.log.InfoContext(ctx, "removing what a crash left behind", "path", filepath.Join(p.staging(), e.Name()))
		to := filepath.Join(p.deleting(), e.Name()+"."+rand.Text()[:10])
		if err := os.Rename(filepath.Join(p.staging(), e.Name()), to); err != nil {
			return err
		}
	}
	return nil
}

// prepareDir makes the data directory and returns its real, absolute path.
func prepareDir(dir string) (string, error) {
	if dir == "" {
		return "", core.Invalidf("no data directory given")
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return "", err
	}
	// Mount tables and loop devices name real paths.
	return filepath.EvalSymlinks(abs)
}

// lockDir takes an exclusive lock on a data directory that the process's end releases.
func lockDir(ctx context.Context, dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	err = poll(ctx, func() (bool, error) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, unix.EINTR) {
			return false, nil
		}
		return true, err
	})
	if err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// poll calls try every few milliseconds until it says done, fails, or ctx ends. At least one call is made.
func poll(ctx context.Context, try func() (done bool, err error)) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if done, err := try(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// own gives a new volume the mode that PostgreSQL demands, and its owner.
func own(path string, uid, gid int) error {
	if err := os.Chmod(path, 0o700); err != nil {
		return err
	}
	if uid < 0 && gid < 0 {
		return nil
	}
	return os.Lchown(path, uid, gid)
}

// syncPath makes a file, or the names in a folder, durable.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// syncFS makes everything written so far to path's file system durable.
func syncFS(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		err = &fs.PathError{Op: "syncfs", Path: path, Err: err}
		return errors.Join(err, f.Close())
	}
	return f.Close()
}

// writeFile replaces a file durably: temporary name, fsync, rename, fsync of the folder.
func writeFile(path string, data []byte) (err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(tmp)
		}
	}()
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = os.Rename(tmp, path); err != nil {
		return err
	}
	return syncPath(filepath.Dir(path))
}
