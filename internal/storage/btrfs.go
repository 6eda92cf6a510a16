package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of linux/btrfs.h that volumes need: _IOW or _IOWR(0x94, n, size of the argument), which has one value on every
// architecture that Go's amd64 and arm64 ports share.
const (
	btrfsIocResize       = 0x50009403
	btrfsIocSubvolCreate = 0x5000940e
	btrfsIocSpaceInfo    = 0xc0109414
	btrfsIocDevInfo      = 0xd000941e
	btrfsIocSnapDestroy  = 0x5000940f
	btrfsIocSnapCreateV2 = 0x50009417

	btrfsIocStartSync  = 0x80089418
	btrfsIocWaitSync   = 0x40089416
	btrfsIocInoLookup  = 0xd0009412
	btrfsIocTreeSearch = 0xd0009411

	btrfsFirstFreeObjectID = 256 // also the inode number of a subvolume's root
	btrfsRootTree          = 1
	btrfsRootItem          = 132

	fsNoCowFlag = 0x00800000 // FS_NOCOW_FL of linux/fs.h
)

// btrfsVolArgs is struct btrfs_ioctl_vol_args.
type btrfsVolArgs struct {
	fd   int64
	name [4088]byte
}

// btrfsVolArgsV2 is struct btrfs_ioctl_vol_args_v2.
type btrfsVolArgsV2 struct {
	fd      int64
	transID uint64
	flags   uint64
	unused  [4]uint64
	name    [4040]byte
}

// btrfsInoLookupArgs is struct btrfs_ioctl_ino_lookup_args.
type btrfsInoLookupArgs struct {
	treeID   uint64
	objectID uint64
	name     [4080]byte
}

// btrfsSearchArgs is struct btrfs_ioctl_search_args.
type btrfsSearchArgs struct {
	treeID                   uint64
	minObjectID, maxObjectID uint64
	minOffset, maxOffset     uint64
	minTransID, maxTransID   uint64
	minType, maxType         uint32
	items                    uint32 // in: at most; out: found
	_                        uint32
	_                        [4]uint64
	buf                      [3992]byte
}

// btrfsBackend keeps a volume as a subvolume. A snapshot is one transaction of the file system: it catches one instant,
// writes out what is dirty in the source, and is committed to disk when the call returns.
type btrfsBackend struct{}

// openBtrfs finds or makes a btrfs file system for DIR/pool.
func openBtrfs(ctx context.Context, opts Options) (Backend, error) {
	pool := poolPath(opts.Dir)
	_, err := os.Lstat(imagePath(opts.Dir))
	hasImage := err == nil
	if native, err := isBtrfs(opts.Dir); err != nil {
		return nil, err
	} else if native && !hasImage {
		if err := os.MkdirAll(pool, 0o755); err != nil {
			return nil, err
		}
		return btrfsBackend{}, probeBtrfs(ctx, pool)
	}
	if err := mountImage(ctx, opts); err != nil {
		return nil, err
	}
	return btrfsBackend{}, nil
}

// probeBtrfs finds out whether this process may make and remove subvolumes where nobody prepared a file system for it.
func probeBtrfs(ctx context.Context, pool string) error {
	var b btrfsBackend
	path := filepath.Join(pool, ".probe")
	if err := b.Remove(ctx, path); err != nil {
		return err
	}
	err := b.Create(ctx, path)
	if err == nil {
		err = b.Clone(ctx, path, path+"2")
	}
	return errors.Join(err, b.Remove(ctx, path), b.Remove(ctx, path+"2"))
}

func isBtrfs(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return uint32(st.Type) == unix.BTRFS_SUPER_MAGIC, nil
}

func (btrfsBackend) Name() string { return BackendBtrfs }
func (btrfsBackend) Atomic() bool { return true }

func (btrfsBackend) Create(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	args := new(btrfsVolArgs)
	if err := putName(args.name[:], path); err != nil {
		return err
	}
	if err := dirIoctl(filepath.Dir(path), btrfsIocSubvolCreate, unsafe.Pointer(args)); err != nil {
		return fmt.Errorf("create subvolume %s: %w", path, err)
	}
	return noCow(path)
}

// noCow makes the files of an empty folder be written in place unless a snapshot shares them. btrfs then keeps no
// checksums for them; PostgreSQL's own page checksums do that work.
func noCow(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|fsNoCowFlag)
	}
	if err != nil {
		return fmt.Errorf("turn off copy-on-write in %s: %w", path, err)
	}
	return nil
}

func (btrfsBackend) Clone(ctx context.Context, src, dst string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	args := &btrfsVolArgsV2{fd: int64(f.Fd())}
	if err := putName(args.name[:], dst); err != nil {
		return err
	}
	if err := dirIoctl(filepath.Dir(dst), btrfsIocSnapCreateV2, unsafe.Pointer(args)); err != nil {
		return fmt.Errorf("snapshot %s as %s: %w", src, dst, err)
	}
	return nil
}

func (btrfsBackend) Remove(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if _, err := os.Lstat(path); notExist(err) {
		return nil
	}
	args := new(btrfsVolArgs)
	if err := putName(args.name[:], path); err != nil {
		return err
	}
	err := dirIoctl(filepath.Dir(path), btrfsIocSnapDestroy, unsafe.Pointer(args))
	switch {
	case err == nil, notExist(err):
		return nil
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTDIR):
		// Without privilege a subvolume may still be emptied and removed like a folder; and what is not a subvolume is one.
		return removeTree(ctx, path)
	default:
		return fmt.Errorf("delete subvolume %s: %w", path, err)
	}
}

// Drain implements drainer. The kernel takes the references of a deleted subvolume back in the background, when its cleaner
// thread next wakes; a commit wakes it.
func (b btrfsBackend) Drain(ctx context.Context, path string) error {
	root, err := subvolumeID(path)
	if err != nil {
		return b.Remove(ctx, path) // a plain folder
	}
	if err := b.Remove(ctx, path); err != nil {
		return err
	}
	pool, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer pool.Close()
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for {
		// Without flushing data, which BTRFS_IOC_SYNC would do. It fails where nothing is to be committed.
		var transaction uint64
		_ = ioctl(pool, btrfsIocStartSync, unsafe.Pointer(&transaction))
		for range drainKick {
			there, err := hasRoot(pool, root)
			if err != nil {
				return nil // an ordinary user may not look: then nobody waits
			}
			if !there {
				// The references that were taken back are still to be written: by this commit, not by the next snapshot's.
				if ioctl(pool, btrfsIocStartSync, unsafe.Pointer(&transaction)) == nil {
					return ioctl(pool, btrfsIocWaitSync, unsafe.Pointer(&transaction))
				}
				return nil
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
}

const (
	drainPoll = 20 * time.Millisecond
	drainKick = 50 // polls between two kicks
)

// subvolumeID is the id of the tree that path is the root of.
func subvolumeID(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return 0, err
	}
	if st.Ino != btrfsFirstFreeObjectID {
		return 0, unix.ENOTDIR
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	args := &btrfsInoLookupArgs{objectID: btrfsFirstFreeObjectID}
	err = ioctl(f, btrfsIocInoLookup, unsafe.Pointer(args))
	return args.treeID, err
}

// hasRoot tells whether a tree still exists, deleted ones that are not cleaned up included.
func hasRoot(pool *os.File, id uint64) (bool, error) {
	args := &btrfsSearchArgs{
		treeID: btrfsRootTree, minObjectID: id, maxObjectID: id, maxOffset: ^uint64(0), maxTransID: ^uint64(0),
		minType: btrfsRootItem, maxType: btrfsRootItem, items: 1,
	}
	err := ioctl(pool, btrfsIocTreeSearch, unsafe.Pointer(args))
	return args.items > 0, err
}

// putName writes the last element of path, NUL-terminated, into an ioctl's name field.
func putName(field []byte, path string) error {
	name := filepath.Base(path)
	if len(name) > 255 {
		return &fs.PathError{Op: "subvolume", Path: path, Err: unix.ENAMETOOLONG}
	}
	copy(field, name)
	return nil
}

func dirIoctl(dir string, request uint, arg unsafe.Pointer) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return ioctl(f, request, arg)
}

func ioctl(f *os.File, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(request), uintptr(arg))
		switch errno {
		case 0:
			return nil
		case unix.EINTR:
			continue
		default:
			return errno
		}
	}
}
