package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// A pool image grows in three steps, each of which may be the last before a crash: the file, the loop device, the file
// system. The file leads: whatever a crash left, completeGrowth brings the other two to its size. A step that fails takes
// the file back, unless the file system has taken the new space already.

const (
	minStep    = gib // of growth by itself, unless that little is left
	maxStep    = 64 * gib
	leastStep  = 64 * mib // less is not worth it
	growRetry  = time.Minute
	lockMoment = 100 * time.Millisecond // for another process's lock on the data directory
)

// growthStep is how much an image of that size grows at once.
func growthStep(size int64) int64 { return min(max(size/4, minStep), maxStep) / mib * mib }

// imageInfo is an image and where it is attached.
type imageInfo struct {
	path      string
	size      int64 // of the file
	allocated int64 // on the host
	loop      string
}

// readImage finds a data directory's image; loop is "" when it is not mounted.
func readImage(dir string) (imageInfo, error) {
	img := imageInfo{path: imagePath(dir)}
	st, err := os.Lstat(img.path)
	if err != nil {
		return img, err
	}
	img.size = st.Size()
	if sys, ok := statOf(st); ok {
		img.allocated = sys.Blocks * 512
	}
	m, err := mountOf(poolPath(dir))
	if err != nil || m == nil {
		return img, err
	}
	devs, err := loopsOf(img.path)
	if err == nil && slices.Contains(devs, m.source) {
		img.loop = m.source
	}
	return img, err
}

// promised is what a sparse image may still take from the host.
func (i imageInfo) promised() int64 { return max(i.size-i.allocated, 0) }

// MakeRoom is Space, after the pool's image has grown by a step if it is nearly full and the host has room. It does nothing
// to a pool without an image. A failed step is logged, leaves the image as it was, and is tried again a minute later.
func (p *Pool) MakeRoom(ctx context.Context) (Space, error) {
	s, err := p.Space(ctx)
	if err != nil || !p.image || !p.wantsStep(s) {
		return s, err
	}
	p.growth.Lock()
	defer p.growth.Unlock()
	if s, err = p.Space(ctx); err != nil || !p.wantsStep(s) || time.Now().Before(p.growAfter) {
		return s, err
	}
	if err := p.growStep(ctx, s.Host); err != nil {
		p.growAfter = time.Now().Add(growRetry)
		p.log.WarnContext(ctx, "the pool image could not grow; it is as it was", "error", err)
	}
	return p.Space(ctx)
}

// wantsStep tells whether an image should grow: early enough that what is written until the next look still fits.
func (p *Pool) wantsStep(s Space) bool {
	return s.Pool.Free < s.Pool.Reserve+growthStep(s.Pool.Total)/2 || s.Metadata.Level() != LevelOK
}

// growStep grows the image by a step, or by what the limit and the host allow.
func (p *Pool) growStep(ctx context.Context, host Room) error {
	lockCtx, cancel := context.WithTimeout(ctx, lockMoment)
	defer cancel()
	unlock, err := lockDir(lockCtx, p.opts.Dir)
	if err != nil {
		return nil // somebody else is at it
	}
	defer unlock()
	img, err := readImage(p.opts.Dir)
	if err != nil || img.loop == "" { // somebody unmounted it
		return err
	}
	// Growing stops well before the host's reserve: the WAL lives beside the image.
	step := min(growthStep(img.size), host.Free-2*host.Reserve-img.promised())
	if p.opts.LimitBytes > 0 {
		step = min(step, p.opts.LimitBytes-img.size)
	}
	if step = step / mib * mib; step < leastStep {
		return nil
	}
	return growImage(ctx, p.opts, img, img.size+step)
}

// growImage grows a mounted image. The caller holds the data directory's lock.
func growImage(ctx context.Context, opts Options, img imageInfo, to int64) error {
	began := time.Now()
	if img.loop == "" {
		return fmt.Errorf("%s is not mounted at %s", img.path, poolPath(opts.Dir))
	}
	err := extendFile(img.path, img.size, to, opts.Preallocate)
	if err == nil {
		err = completeGrowth(opts.Dir)
	}
	if err != nil {
		return errors.Join(err, takeBack(opts.Dir, img))
	}
	opts.Log.InfoContext(ctx, "the pool image has grown", "path", img.path, "from", formatBytes(img.size), "to", formatBytes(to), "took", time.Since(began))
	return nil
}

// extendFile makes the image's file longer, with space on the host if it is preallocated.
func extendFile(path string, from, to int64, preallocate bool) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if preallocate {
		err = unix.Fallocate(int(f.Fd()), 0, from, to-from)
	} else {
		err = f.Truncate(to)
	}
	if err != nil {
		return fmt.Errorf("extend %s to %s: %w", path, formatBytes(to), err)
	}
	return f.Sync()
}

// completeGrowth brings the loop device and the file system of a mounted image to the size of its file.
func completeGrowth(dir string) error {
	img, err := readImage(dir)
	if err != nil || img.loop == "" {
		return err
	}
	loop, err := os.OpenFile(img.loop, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	device, err := loop.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if device/mib < img.size/mib {
		if err := setCapacity(loop); err != nil {
			return err
		}
	}
	used, err := btrfsDeviceSize(poolPath(dir))
	if err != nil || used/mib >= img.size/mib {
		return err
	}
	args := new(btrfsVolArgs)
	copy(args.name[:], "max")
	if err := dirIoctl(poolPath(dir), btrfsIocResize, unsafe.Pointer(args)); err != nil {
		return fmt.Errorf("grow the file system at %s: %w", poolPath(dir), err)
	}
	return nil
}

// takeBack makes an image what it was before it failed to grow.
func takeBack(dir string, before imageInfo) error {
	used, err := btrfsDeviceSize(poolPath(dir))
	if err != nil {
		return err
	}
	if used > before.size {
		return nil // the file system has the space: cutting it off would destroy data
	}
	if err := os.Truncate(before.path, before.size); err != nil {
		return err
	}
	loop, err := os.OpenFile(before.loop, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer loop.Close()
	return setCapacity(loop)
}

// setCapacity tells a loop device that its file's size has changed.
func setCapacity(loop *os.File) error {
	if err := unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("tell %s its file's size: %w", loop.Name(), err)
	}
	return nil
}

// fillHoles allocates what is missing of a preallocated image, as after an fstrim by somebody.
func fillHoles(ctx context.Context, log *slog.Logger, dir string) {
	img, err := readImage(dir)
	if err != nil || img.promised() == 0 {
		return
	}
	if err := extendFile(img.path, 0, img.size, true); err != nil {
		log.WarnContext(ctx, "the preallocated pool image has holes that cannot be filled; the host may become too full for it", "missing", formatBytes(img.promised()), "error", err)
		return
	}
	log.InfoContext(ctx, "allocated the missing space of the pool image", "bytes", img.promised())
}

// GrowRequest asks for a larger image; one of By and To is set.
type GrowRequest struct {
	Dir    string // the data directory
	By, To int64  // bytes
	Log    *slog.Logger
}

// Grow makes the pool image of a data directory larger, also while a server and computes use it, and returns its size
// before and after. It keeps the host's reserve and ignores the limit, which is for growth by itself. An image that is not
// mounted is mounted meanwhile. What cannot be is KindInvalid, KindPrecondition or KindNoSpace, and changes nothing.
func Grow(ctx context.Context, req GrowRequest) (from, to int64, err error) {
	const op = "storage.grow"
	opts, unlock, err := lockExisting(ctx, req.Dir)
	if err != nil {
		return 0, 0, wrap(err, op, "")
	}
	defer unlock()
	opts.Log = req.Log
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	img, err := readImage(opts.Dir)
	if notExist(err) {
		return 0, 0, core.Errorf(core.KindPrecondition, op, "there is no pool image in %s: its volumes are on an ordinary file system (backend %s), which grows as its disk does", opts.Dir, opts.Backend)
	}
	if err != nil {
		return 0, 0, wrap(err, op, "")
	}
	if os.Geteuid() != 0 {
		return 0, 0, core.Errorf(core.KindPrecondition, op, "only root can grow the pool image")
	}
	to = req.To
	if to == 0 {
		to = img.size + req.By
	}
	to = (to + mib - 1) / mib * mib
	if to <= img.size {
		return 0, 0, core.Invalidf("the pool image has %s already; it cannot shrink", formatBytes(img.size))
	}
	host, err := roomOf(opts.Dir, opts.HostReserve)
	if err != nil {
		return 0, 0, wrap(err, op, "")
	}
	if room := host.Free - host.Reserve - img.promised(); to-img.size > room {
		return 0, 0, &core.Error{Kind: core.KindNoSpace, Op: op,
			Message: fmt.Sprintf("the disk has no room for a pool image of %s: it can grow by %s at most, to %s; %s must stay free for the WAL",
				formatBytes(to), formatBytes(max(room, 0)/mib*mib), formatBytes(img.size+max(room, 0)/mib*mib), formatBytes(host.Reserve))}
	}
	if img.loop == "" {
		if err := mountImage(ctx, opts); err != nil {
			return 0, 0, wrap(err, op, "")
		}
		defer func() {
			err = errors.Join(err, wrap(unmountPool(context.WithoutCancel(ctx), opts.Dir), op, ""))
		}()
		if img, err = readImage(opts.Dir); err != nil {
			return 0, 0, wrap(err, op, "")
		}
	}
	return img.size, to, wrap(growImage(ctx, opts, img, to), op, "the image is as it was")
}

// lockExisting locks a data directory that a pool has been made in, and returns how.
func lockExisting(ctx context.Context, dir string) (Options, func(), error) {
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if notExist(err) {
		return Options{}, nil, core.NotFoundf("there is no data directory %s; name yours with --data-dir", dir)
	}
	if err != nil {
		return Options{}, nil, err
	}
	m, err := readMarker(dir)
	if err != nil {
		return Options{}, nil, err
	}
	if m.Backend == "" {
		return Options{}, nil, core.NotFoundf("there is no storage pool in %s; a server makes it when it starts", dir)
	}
	unlock, err := lockDir(ctx, dir)
	return m.options(dir), unlock, err
}

// btrfsDevInfo is struct btrfs_ioctl_dev_info_args.
type btrfsDevInfo struct {
	devID      uint64
	uuid       [16]byte
	bytesUsed  uint64 // by chunks
	totalBytes uint64
	fsid       [16]byte
	unused     [377]uint64
	path       [1024]byte
}

// btrfsDevice asks the file system mounted at path about its first device, the only one of an image.
func btrfsDevice(path string) (*btrfsDevInfo, error) {
	info := &btrfsDevInfo{devID: 1}
	if err := dirIoctl(path, btrfsIocDevInfo, unsafe.Pointer(info)); err != nil {
		return nil, &fs.PathError{Op: "BTRFS_IOC_DEV_INFO", Path: path, Err: err}
	}
	return info, nil
}

func btrfsDeviceSize(path string) (int64, error) {
	info, err := btrfsDevice(path)
	if err != nil {
		return 0, err
	}
	return int64(info.totalBytes), nil
}
