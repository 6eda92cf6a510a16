package storage

import (
	"context"
	"errors"
	"io/fs"
	"regexp"
	"syscall"

	"github.com/boughdb/bough/internal/core"
)

// Backend is one way to keep volumes on a file system. The Pool names the folders, stages what is not atomic, and sweeps
// what a crash left behind; a backend only knows folders.
//
//   - Create makes an empty volume at path, which does not exist.
//   - Clone makes dst, which does not exist, an independent copy of src. On return the copy survives a crash of the
//     machine. An atomic backend makes dst complete or not at all; another may leave a part of it behind on an error, and
//     tolerates files that appear, grow, shrink or vanish in src meanwhile.
//   - Remove deletes a volume, or what is left of one; a path that does not exist is not an error.
//
// Both src and dst are on the pool's file system. No method changes src.
type Backend interface {
	Name() string
	Atomic() bool
	Create(ctx context.Context, path string) error
	Clone(ctx context.Context, src, dst string) error
	Remove(ctx context.Context, path string) error
}

// The names of the backends, as Options.Backend takes them.
const (
	BackendAuto    = "auto"
	BackendBtrfs   = "btrfs"
	BackendReflink = "reflink"
	BackendCopy    = "copy"
)

var idPattern = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)

// checkID keeps ids from naming anything but a folder of their own.
func checkID(id string) error {
	if !idPattern.MatchString(id) {
		return core.Invalidf("%q is not a volume id; it must match [a-z0-9-]{1,64}", id)
	}
	return nil
}

// isNoSpace tells whether the file system refused for want of room.
func isNoSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// wrap gives err an operation, and the kind NoSpace when a file system ran full.
func wrap(err error, op, hint string) error {
	if err == nil {
		return nil
	}
	if isNoSpace(err) && core.KindOf(err) == core.KindInternal {
		return &core.Error{Kind: core.KindNoSpace, Op: op, Err: err,
			Message: "the server's storage is full; delete branches or projects that are not needed, or add disk space, and try again",
			Hint:    "the file system answered ENOSPC; nothing half-made was left behind"}
	}
	return core.Wrap(err, op, hint)
}

func notExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }
