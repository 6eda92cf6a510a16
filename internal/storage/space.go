package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/core"
)

// Level says how near the storage is to its end.
type Level int

// The levels, from good to bad.
const (
	LevelOK       Level = iota
	LevelRefuse         // below a reserve: no new branches
	LevelCritical       // below half of a reserve: suspend computes before the file system fails under them
)

// String is the level's name for logs.
func (l Level) String() string {
	switch l {
	case LevelOK:
		return "ok"
	case LevelRefuse:
		return "refuse"
	default:
		return "critical"
	}
}

// Room is the space on one file system, in bytes.
type Room struct {
	Total    int64
	Free     int64 // what this process may still write
	Reserve  int64 // below it new branches are refused
	Critical int64 // below it computes are suspended
}

// Level compares what is free with the limits.
func (r Room) Level() Level {
	switch {
	case r.Free < r.Critical:
		return LevelCritical
	case r.Free < r.Reserve:
		return LevelRefuse
	default:
		return LevelOK
	}
}

// Space is the room in both places that volumes and WAL need. Without an image the two are the same file system.
type Space struct {
	Host     Room // where the WAL, the image and the control database are
	Pool     Room // where the volumes are
	Metadata Room // of an image's file system, which has a room of its own for it; else zero
	Level    Level
}

const (
	gib        = int64(1) << 30
	mib        = int64(1) << 20
	minReserve = 512 * mib
	maxReserve = 10 * gib
	// A snapshot changes a few leaves of 16 KiB, a cleaned one thousands of them. Measured: small files are refused when 4.5 of
	// 33 MiB of metadata are free, because what transactions hold is not in the figures.
	metadataReserve = 64 * mib
)

// defaultReserve is 5 % of a file system, within bounds: enough for the checkpoint that a suspend needs.
func defaultReserve(total int64) int64 {
	return min(max(total/20, min(minReserve, total/4)), maxReserve)
}

// Space reads how much room there is.
func (p *Pool) Space(ctx context.Context) (Space, error) {
	var s Space
	if err := ctx.Err(); err != nil {
		return s, err
	}
	var err error
	if s.Host, err = roomOf(p.opts.Dir, p.opts.HostReserve); err != nil {
		return s, wrap(err, "storage.space", "")
	}
	if s.Pool, err = roomOf(p.root(), p.opts.PoolReserve); err != nil {
		return s, wrap(err, "storage.space", "")
	}
	if p.image {
		if s.Metadata, err = metadataRoom(p.root()); err != nil && !errors.Is(err, unix.ENOTTY) { // somebody unmounted it
			return s, wrap(err, "storage.space", "")
		}
	}
	s.Level = max(s.Host.Level(), s.Pool.Level(), s.Metadata.Level())
	return s, nil
}

// metadataRoom is what btrfs can still write of trees. Its free space, as statfs tells it, is that of data: when all of the
// disk is given to data, trees may be full before.
func metadataRoom(path string) (Room, error) {
	dev, err := btrfsDevice(path)
	if err != nil {
		return Room{}, err
	}
	const (
		metadata  = 1 << 2  // BTRFS_BLOCK_GROUP_METADATA
		duplicate = 1 << 5  // BTRFS_BLOCK_GROUP_DUP
		reserved  = 1 << 49 // BTRFS_SPACE_INFO_GLOBAL_RSV
		slots     = 16
	)
	// struct btrfs_ioctl_space_args
	var args struct {
		slots, total uint64
		spaces       [slots]struct{ flags, total, used uint64 }
	}
	args.slots = slots
	if err := dirIoctl(path, btrfsIocSpaceInfo, unsafe.Pointer(&args)); err != nil {
		return Room{}, &fs.PathError{Op: "BTRFS_IOC_SPACE_INFO", Path: path, Err: err}
	}
	r, unallocated := Room{}, int64(dev.totalBytes-dev.bytesUsed)
	for _, sp := range args.spaces[:min(args.total, slots)] {
		switch {
		case sp.flags&reserved != 0:
			r.Free -= int64(sp.total)
		case sp.flags&metadata != 0:
			if sp.flags&duplicate != 0 {
				unallocated /= 2
			}
			r.Total += int64(sp.total) + unallocated
			r.Free += int64(sp.total-sp.used) + unallocated
		}
	}
	r.Reserve = min(metadataReserve, r.Total/4)
	r.Critical = r.Reserve / 2
	return r, nil
}

// Flush writes everything out, which makes space that was freed on btrfs show.
func (p *Pool) Flush() error { return wrap(syncFS(p.root()), "storage.flush", "") }

// Admit refuses, as KindNoSpace, when a new branch would eat into a reserve.
func (p *Pool) Admit(ctx context.Context) error {
	s, err := p.MakeRoom(ctx)
	if err != nil || s.Level == LevelOK {
		return err
	}
	place, room := "on the server's disk", s.Host
	switch s.Level {
	case s.Pool.Level():
		place, room = "in the storage pool", s.Pool
	case s.Metadata.Level():
		place, room = "for metadata in the storage pool", s.Metadata
	}
	return &core.Error{Kind: core.KindNoSpace, Op: "storage.admit",
		Message: fmt.Sprintf("not enough space for a new branch: %s is free %s and %s must stay free; delete branches or projects that are not needed, or add disk space",
			formatBytes(room.Free), place, formatBytes(room.Reserve)),
		Hint: "level " + s.Level.String() + "; the reserves are set when the server starts"}
}

func roomOf(path string, reserve int64) (Room, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Room{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	r := Room{Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize, Reserve: reserve}
	if r.Reserve <= 0 {
		r.Reserve = defaultReserve(r.Total)
	}
	r.Critical = r.Reserve / 2
	return r, nil
}

func formatBytes(n int64) string {
	if n >= gib {
		return fmt.Sprintf("%.1f GiB", float64(n)/float64(gib))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/float64(mib))
}

func statOf(info fs.FileInfo) (*syscall.Stat_t, bool) {
	st, ok := info.Sys().(*syscall.Stat_t)
	return st, ok
}
