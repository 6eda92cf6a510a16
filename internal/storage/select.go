package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/boughdb/bough/internal/core"
)

// marker is DIR/pool.json: what the pool was made with, so that a later start with other tools or rights never hides the
// volumes behind another backend.
type marker struct {
	Backend      string `json:"backend"`
	Preallocated bool   `json:"preallocated,omitempty"`
	// What the last server was told, for programs beside it.
	Limit       int64 `json:"limit_bytes,omitempty"`
	HostReserve int64 `json:"host_reserve_bytes,omitempty"`
	PoolReserve int64 `json:"pool_reserve_bytes,omitempty"`
}

// options are those of the pool as it is.
func (m marker) options(dir string) Options {
	return Options{Dir: dir, Backend: m.Backend, Preallocate: m.Preallocated, LimitBytes: m.Limit,
		HostReserve: m.HostReserve, PoolReserve: m.PoolReserve, UID: -1, GID: -1}
}

// noteOptions records what this start was told, and returns how the pool was made.
func noteOptions(ctx context.Context, opts Options) (Options, error) {
	m, err := readMarker(opts.Dir)
	if err != nil {
		return opts, err
	}
	opts.Preallocate = m.Preallocated
	now := m
	now.Limit, now.HostReserve, now.PoolReserve = opts.LimitBytes, opts.HostReserve, opts.PoolReserve
	if now != m {
		if err := writeMarker(opts.Dir, now); err != nil { // a full disk must open, to be emptied
			opts.Log.WarnContext(ctx, "cannot note the storage options", "error", err)
		}
	}
	return opts, nil
}

func poolPath(dir string) string   { return filepath.Join(dir, "pool") }
func imagePath(dir string) string  { return filepath.Join(dir, "pool.img") }
func markerPath(dir string) string { return filepath.Join(dir, "pool.json") }

func readMarker(dir string) (marker, error) {
	var m marker
	data, err := os.ReadFile(markerPath(dir))
	if err != nil {
		if notExist(err) {
			err = nil
		}
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("read %s: %w", markerPath(dir), err)
	}
	return m, nil
}

func writeMarker(dir string, m marker) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return writeFile(markerPath(dir), append(data, '\n'))
}

// selectBackend opens the backend that the options ask for, or the one that the pool was made with, or for a new pool on
// auto the first that works.
func selectBackend(ctx context.Context, opts Options) (Backend, error) {
	want := opts.Backend
	switch want {
	case "":
		want = BackendAuto
	case BackendAuto, BackendBtrfs, BackendReflink, BackendCopy:
	default:
		return nil, core.Invalidf("unknown storage backend %q; use auto, btrfs, reflink or copy", want)
	}
	m, err := readMarker(opts.Dir)
	if err != nil {
		return nil, err
	}
	inUse, err := poolInUse(opts.Dir)
	if err != nil {
		return nil, err
	}
	if inUse && m.Backend != "" {
		if plainFolders(want) && plainFolders(m.Backend) && want != m.Backend {
			b, err := openBackend(ctx, want, opts)
			if err != nil {
				return nil, err
			}
			return b, writeMarker(opts.Dir, marker{Backend: want})
		}
		if want != BackendAuto && want != m.Backend {
			return nil, &core.Error{Kind: core.KindPrecondition,
				Message: fmt.Sprintf("the data directory %s was made with the storage backend %s, not %s", opts.Dir, m.Backend, want),
				Hint:    "start with --storage " + m.Backend + " or auto, or use another data directory"}
		}
		opts.Preallocate = m.Preallocated
		return openBackend(ctx, m.Backend, opts)
	}
	if want != BackendAuto {
		return makeBackend(ctx, want, opts)
	}
	for _, name := range []string{BackendBtrfs, BackendReflink, BackendCopy} {
		b, err := makeBackend(ctx, name, opts)
		if err == nil {
			return b, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		opts.Log.InfoContext(ctx, "storage backend passed over", "backend", name, "reason", err)
	}
	return nil, core.Errorf(core.KindUnavailable, "", "no storage backend works in %s", opts.Dir)
}

// plainFolders tells whether a backend keeps volumes as ordinary folders: what one such made, another can go on with.
func plainFolders(backend string) bool { return backend == BackendReflink || backend == BackendCopy }

// makeBackend opens a backend for a pool that has no volumes yet. The marker comes first: a crash between the two leaves a
// marker without a pool, which binds nobody.
func makeBackend(ctx context.Context, name string, opts Options) (Backend, error) {
	if err := writeMarker(opts.Dir, marker{Backend: name, Preallocated: opts.Preallocate}); err != nil {
		return nil, err
	}
	return openBackend(ctx, name, opts)
}

func openBackend(ctx context.Context, name string, opts Options) (Backend, error) {
	switch name {
	case BackendBtrfs:
		return openBtrfs(ctx, opts)
	case BackendReflink, BackendCopy:
		if _, err := os.Lstat(imagePath(opts.Dir)); err == nil {
			return nil, fmt.Errorf("%s exists: the volumes are in it", imagePath(opts.Dir))
		}
		if name == BackendReflink {
			return openReflink(ctx, opts)
		}
		return copyBackend{}, os.MkdirAll(poolPath(opts.Dir), 0o755)
	default:
		return nil, fmt.Errorf("%s names an unknown backend %q", markerPath(opts.Dir), name)
	}
}

// poolInUse tells whether there is an image, or a volume in the pool's folder.
func poolInUse(dir string) (bool, error) {
	if _, err := os.Lstat(imagePath(dir)); err == nil {
		return true, nil
	}
	return hasVolumes(dir)
}

func hasVolumes(dir string) (bool, error) {
	f, err := os.Open(filepath.Join(poolPath(dir), "volumes"))
	if err != nil {
		if notExist(err) {
			err = nil
		}
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return len(names) > 0, err
}
