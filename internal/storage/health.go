package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// Fault is what can be wrong with the place where the volumes are.
type Fault string

// The faults.
const (
	FaultNone      Fault = ""
	FaultUnmounted Fault = "unmounted" // somebody took the image out of the mount table
	FaultForeign   Fault = "foreign"   // something else is mounted there, or lies there, and hides the volumes
	FaultReadOnly  Fault = "read-only" // the file system has stopped itself after an error
	FaultNoImage   Fault = "no-image"  // the image's file was removed while it was mounted
	FaultNoFolder  Fault = "no-folder" // the folder of the volumes is gone
)

// LookForFault looks whether the pool of a data directory is what it should be. It needs no open Pool.
func LookForFault(dir string) (Fault, error) {
	const op = "storage.fault"
	image, pool := imagePath(dir), poolPath(dir)
	_, err := os.Lstat(image)
	devs, loopErr := loopsOf(image)
	m, mountErr := mountOf(pool)
	if loopErr != nil || mountErr != nil {
		return FaultNone, wrap(errors.Join(loopErr, mountErr), op, "")
	}
	switch ours := m != nil && slices.Contains(devs, m.source); {
	case err == nil && m == nil:
		return FaultUnmounted, nil
	case err == nil && !ours:
		return FaultForeign, nil
	case notExist(err) && len(devs) > 0:
		return FaultNoImage, nil
	case err != nil && !notExist(err):
		return FaultNone, wrap(err, op, "")
	}
	p := &Pool{opts: Options{Dir: dir}}
	if _, err := os.Stat(p.volumes()); notExist(err) {
		return FaultNoFolder, nil
	}
	writable, err := isWritable(p.volumes())
	if err == nil && !writable {
		return FaultReadOnly, nil
	}
	return FaultNone, wrap(err, op, "")
}

// Fault looks whether the pool is what it should be.
func (p *Pool) Fault() (Fault, error) { return LookForFault(p.opts.Dir) }

// Remount mounts the image again after somebody unmounted it. When its loop device still exists, because computes hold the
// file system, that device is mounted once more: the kernel then knows it as the same file system.
func (p *Pool) Remount(ctx context.Context) error {
	const op = "storage.remount"
	dir := p.opts.Dir
	unlock, err := lockDir(ctx, dir)
	if err != nil {
		return wrap(err, op, "another process is opening this data directory")
	}
	defer unlock()
	if fault, err := p.Fault(); err != nil || fault == FaultNone {
		return err
	} else if fault != FaultUnmounted {
		return wrap(fmt.Errorf("the pool is not only unmounted: %s", fault), op, "")
	}
	if hidden, err := hasVolumes(dir); err != nil {
		return wrap(err, op, "")
	} else if hidden {
		return core.Errorf(core.KindPrecondition, "", "%s holds volumes that mounting the image would hide", poolPath(dir))
	}
	m, err := readMarker(dir)
	if err != nil {
		return wrap(err, op, "")
	}
	opts := p.opts
	opts.Preallocate = m.Preallocated
	devs, err := loopsOf(imagePath(dir))
	if err != nil {
		return wrap(err, op, "")
	}
	if len(devs) == 1 {
		if err := mountDevice(opts, devs[0]); err == nil {
			return nil
		}
		// It was being detached.
	}
	return wrap(mountLoop(ctx, opts), op, "")
}

// mountDevice mounts a loop device that holds the image.
func mountDevice(opts Options, device string) error {
	data := "discard=async"
	if opts.Preallocate {
		data = "nodiscard"
		// Neither by fstrim: it would punch holes into what is reserved.
		limit := filepath.Join("/sys/block", filepath.Base(device), "queue", "discard_max_bytes")
		if err := os.WriteFile(limit, []byte("0"), 0); err != nil {
			opts.Log.Warn("cannot turn off discards of the preallocated pool image; fstrim would give its space back", "error", err)
		}
	}
	if err := unix.Mount(device, poolPath(opts.Dir), "btrfs", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("mount %s at %s: %w", imagePath(opts.Dir), poolPath(opts.Dir), err)
	}
	return nil
}

// Leftovers names what is in staging and belongs to no call: a call that failed could not remove it, or somebody put it
// there.
func (p *Pool) Leftovers(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.staging())
	if err != nil {
		return nil, wrap(err, "storage.leftovers", "is the pool still mounted?")
	}
	var names []string
	for _, e := range entries {
		if _, busy := p.staged.Load(filepath.Join(p.staging(), e.Name())); !busy && !p.elsewhere(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// RemoveLeftover removes one of Leftovers, unless a call works on it now.
func (p *Pool) RemoveLeftover(ctx context.Context, name string) error {
	if name != filepath.Base(name) || name == "." || name == ".." {
		return core.Invalidf("%q is not a name in staging", name)
	}
	path := filepath.Join(p.staging(), name)
	if _, busy := p.staged.LoadOrStore(path, nil); busy {
		return nil
	}
	defer p.staged.Delete(path)
	return wrap(p.backend.Remove(ctx, path), "storage.leftovers", "")
}

// SpaceOf reads how much room there is in a data directory, with the reserves of its last server. It needs no open Pool.
func SpaceOf(dir string) (Space, error) {
	var s Space
	m, err := readMarker(dir)
	if err != nil {
		return s, wrap(err, "storage.space", "")
	}
	if s.Host, err = roomOf(dir, m.HostReserve); err != nil {
		return s, wrap(err, "storage.space", "")
	}
	if s.Pool, err = roomOf(poolPath(dir), m.PoolReserve); err != nil {
		return s, wrap(err, "storage.space", "")
	}
	s.Level = max(s.Host.Level(), s.Pool.Level())
	return s, nil
}
