package storage

import (
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// State is how the pool of a data directory is made and how full it is.
type State struct {
	Backend string
	Image   *Image // nil without one
	Space   Space
	Mounted bool // false: an image that nobody has mounted; Space.Pool is then zero

	Volumes []string // ids
	Staged  int      // volumes that are being made, or what a crash left of them
	// Deleted counts the deleted volumes whose space is still used: those that wait for StartCleaning's work and those that
	// btrfs works on. The latter an ordinary user cannot see.
	Deleted int
}

// Image is the file with the pool's own file system. Sizes are in bytes.
type Image struct {
	Path         string
	Preallocated bool
	Size         int64
	Allocated    int64 // on the host
	Limit        int64 // up to which it grows by itself; 0: as far as the host has room
}

// Look reads the state of a data directory's pool, also while a server uses it, and changes nothing.
func Look(ctx context.Context, dir string) (State, error) {
	const op = "storage.look"
	st := State{Mounted: true}
	dir, err := filepath.Abs(dir)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if notExist(err) {
		return st, core.NotFoundf("there is no data directory %s; name yours with --data-dir", dir)
	}
	if err != nil {
		return st, wrap(err, op, "")
	}
	m, err := readMarker(dir)
	if err != nil {
		return st, wrap(err, op, "")
	}
	if m.Backend == "" {
		return st, core.NotFoundf("there is no storage pool in %s; a server makes it when it starts", dir)
	}
	p := &Pool{opts: m.options(dir)}
	st.Backend = m.Backend
	img, err := readImage(dir)
	switch {
	case err == nil:
		st.Image = &Image{Path: img.path, Preallocated: m.Preallocated, Size: img.size, Allocated: img.allocated, Limit: m.Limit}
		st.Mounted = img.loop != ""
		p.image = st.Mounted
	case !notExist(err):
		return st, wrap(err, op, "")
	}
	if !st.Mounted {
		st.Space.Host, err = roomOf(dir, m.HostReserve)
		st.Space.Level = st.Space.Host.Level()
		return st, wrap(err, op, "")
	}
	if st.Space, err = p.Space(ctx); err != nil {
		return st, err
	}
	if st.Volumes, err = p.List(ctx); err != nil {
		return st, err
	}
	for folder, count := range map[string]*int{p.staging(): &st.Staged, p.deleting(): &st.Deleted} {
		entries, err := os.ReadDir(folder)
		if err != nil && !notExist(err) {
			return st, wrap(err, op, "")
		}
		*count = len(entries)
	}
	if m.Backend == BackendBtrfs {
		if n, err := deletedSubvolumes(p.root()); err == nil {
			st.Deleted += n
		}
	}
	return st, nil
}

// Usage is the disk space of a folder's files, in bytes.
type Usage struct {
	Referenced int64 // as if the folder were alone
	Exclusive  int64 // of that, what no other file has; -1: not asked, or unknown
	Files      int64
}

// Add sums up two folders.
func (u Usage) Add(v Usage) Usage {
	sum := Usage{u.Referenced + v.Referenced, u.Exclusive + v.Exclusive, u.Files + v.Files}
	if u.Exclusive < 0 || v.Exclusive < 0 {
		sum.Exclusive = -1
	}
	return sum
}

// Measure adds up the files below path. With exclusive it asks for each file which extents are shared (FIEMAP), which on
// btrfs means a search in the trees for each extent: seconds for a busy database. Files that vanish meanwhile do not count.
func Measure(ctx context.Context, path string, exclusive bool) (Usage, error) {
	var u Usage
	if !exclusive {
		u.Exclusive = -1
	}
	buf := new(fiemap)
	err := filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		var st unix.Stat_t
		if err == nil {
			err = unix.Lstat(path, &st)
		}
		var shared int64
		if err == nil && exclusive && d.Type().IsRegular() && st.Blocks > 0 {
			if shared, err = buf.shared(path); errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
				shared, err = 0, nil // a file system without extents shares none
			}
		}
		if notExist(err) {
			return nil
		}
		if err == nil && !d.IsDir() {
			u.Files++
		}
		u.Referenced += st.Blocks * 512
		if exclusive {
			u.Exclusive += max(st.Blocks*512-shared, 0)
		}
		return err
	})
	return u, wrap(err, "storage.measure", "")
}

// fiemap is struct fiemap of linux/fiemap.h with room for some extents.
type fiemap struct {
	start, length           uint64
	flags, mapped, count, _ uint32
	extents                 [256]struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
}

// shared adds up the extents of a file that other files have, too.
func (m *fiemap) shared(path string) (int64, error) {
	const (
		iocFiemap    = 0xc020660b // FS_IOC_FIEMAP
		lastExtent   = 0x1        // FIEMAP_EXTENT_LAST
		sharedExtent = 0x2000     // FIEMAP_EXTENT_SHARED
	)
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var sum int64
	m.start = 0
	for {
		m.length, m.flags, m.mapped, m.count = ^uint64(0)-m.start, 0, 0, uint32(len(m.extents))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), iocFiemap, uintptr(unsafe.Pointer(m)))
		if errno != 0 {
			return 0, &fs.PathError{Op: "FIEMAP", Path: path, Err: errno}
		}
		for _, e := range m.extents[:m.mapped] {
			if e.flags&sharedExtent != 0 {
				sum += int64(e.length)
			}
			if e.flags&lastExtent != 0 {
				return sum, nil
			}
			m.start = e.logical + e.length
		}
		if m.mapped == 0 {
			return sum, nil
		}
	}
}

// deletedSubvolumes counts the subvolumes of a btrfs that are deleted and not cleaned up: root items without references.
func deletedSubvolumes(path string) (int, error) {
	const (
		lastID     = ^uint64(0) - 255 // BTRFS_LAST_FREE_OBJECTID
		refsOffset = 216              // of refs in struct btrfs_root_item
		headerSize = 32               // of struct btrfs_ioctl_search_header: transaction, id, offset, type, size
	)
	deleted := 0
	// Keys are ordered by id, type and offset: items of other types lie between those of roots.
	args := &btrfsSearchArgs{minObjectID: btrfsFirstFreeObjectID, minType: btrfsRootItem}
	for {
		args.treeID, args.maxObjectID, args.maxOffset, args.maxTransID = btrfsRootTree, lastID, ^uint64(0), ^uint64(0)
		args.maxType, args.items = btrfsRootItem, 1<<16
		if err := dirIoctl(path, btrfsIocTreeSearch, unsafe.Pointer(args)); err != nil {
			return 0, err
		}
		if args.items == 0 {
			return deleted, nil
		}
		for at, n := 0, args.items; n > 0; n-- {
			id, offset := binary.NativeEndian.Uint64(args.buf[at+8:]), binary.NativeEndian.Uint64(args.buf[at+16:])
			kind, size := binary.NativeEndian.Uint32(args.buf[at+24:]), int(binary.NativeEndian.Uint32(args.buf[at+28:]))
			at += headerSize
			if kind == btrfsRootItem && id >= btrfsFirstFreeObjectID && size >= refsOffset+4 &&
				binary.LittleEndian.Uint32(args.buf[at+refsOffset:]) == 0 {
				deleted++
			}
			at += size
			args.minObjectID, args.minType, args.minOffset = id, kind, offset+1
			if offset == ^uint64(0) {
				args.minObjectID, args.minType, args.minOffset = id+1, 0, 0
			}
		}
	}
}
