package storage

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// restFactor is how much longer than a removal took nothing is removed; measured, see ARCHITECTURE.md.
	restFactor = 6
	maxRest    = 10 * time.Second
	// cloneWait is how long a removal waits for clones that are being made: each waits for what it would cause.
	cloneWait = 5 * time.Second
	// cleanRetry is when a volume that could not be removed is tried again.
	cleanRetry = time.Minute
	// cleanWait is how often a process looks whether another one has ended its cleaning.
	cleanWait = time.Second
)

// drainer is a backend whose Remove leaves the work to the file system. Drain removes a volume, or what is left of one, and
// returns when its space is free; on an error, and when ctx ends, the file system goes on by itself.
type drainer interface {
	Drain(ctx context.Context, path string) error
}

// cleaner removes deleted volumes one by one, with rests. A volume that shares its blocks is cheap to delete and dear to
// clean up: on btrfs each metadata block that it changed references all its extents, and taking those references back
// delays every snapshot, for seconds when many volumes go at once.
//
// What waits is the content of DIR/pool/deleting, so it survives every end of the server.
type cleaner struct {
	mu     sync.Mutex // start and stop
	cancel context.CancelFunc
	done   chan struct{}
	on     atomic.Bool
	wake   chan struct{} // capacity 1
	at     atomic.Value  // string: what is being removed now, "" for nothing
	clones atomic.Int32  // that are being made

	patience time.Duration // cloneWait, except in tests
}

// StartCleaning begins to remove deleted volumes in the background, those of earlier servers too. Until then, and after
// StopCleaning, Delete removes them itself. It is safe twice.
func (p *Pool) StartCleaning(ctx context.Context) {
	c := &p.cleaner
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel != nil {
		return
	}
	ctx, c.cancel = context.WithCancel(ctx)
	c.done = make(chan struct{})
	c.on.Store(true)
	go func() {
		defer close(c.done)
		p.clean(ctx)
	}()
}

// StopCleaning ends it and waits; what is left is for the next start. It is safe twice.
func (p *Pool) StopCleaning() {
	c := &p.cleaner
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cancel == nil {
		return
	}
	c.on.Store(false)
	c.cancel()
	<-c.done
	c.cancel = nil
}

// Deleting counts the deleted volumes whose space is not free yet. How much that will be only the file system knows: they
// share most of it with others.
func (p *Pool) Deleting(ctx context.Context) (volumes int, err error) {
	at, _ := p.cleaner.at.Load().(string) // before the list: what is in neither is free
	waiting, err := p.waiting(ctx)
	volumes = len(waiting)
	if at != "" && !slices.Contains(waiting, at) {
		volumes++ // removed already, but the file system still works on it
	}
	return volumes, err
}

// waiting lists what is to be removed.
func (p *Pool) waiting(ctx context.Context) ([]string, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.deleting())
	if err != nil {
		return nil, wrap(err, "storage.deleting", "is the pool still mounted?")
	}
	paths := make([]string, len(entries))
	for i, e := range entries {
		paths[i] = filepath.Join(p.deleting(), e.Name())
	}
	return paths, nil
}

// wakeCleaner tells that there is something new to remove.
func (p *Pool) wakeCleaner() {
	select {
	case p.cleaner.wake <- struct{}{}:
	default:
	}
}

func (p *Pool) clean(ctx context.Context) {
	for ctx.Err() == nil {
		unlock, ok := p.cleanAlone()
		if !ok {
			select {
			case <-ctx.Done():
			case <-time.After(cleanWait):
			}
			continue
		}
		again := p.cleanOnce(ctx)
		unlock()
		select {
		case <-ctx.Done():
		case <-p.cleaner.wake:
		case <-again:
		}
	}
}

// cleanAlone keeps other processes from cleaning; ok is false when one is at it, and takes care of what is there.
func (p *Pool) cleanAlone() (unlock func(), ok bool) {
	f, err := os.Open(p.deleting())
	if err != nil {
		return func() {}, true // which cleanOnce reports
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		_ = f.Close()
		return nil, false
	}
	return func() { _ = f.Close() }, true
}

// cleanOnce removes what waits until nothing does; again tells when to try the rest, and is nil when there is none.
func (p *Pool) cleanOnce(ctx context.Context) (again <-chan time.Time) {
	for ctx.Err() == nil {
		paths, err := p.waiting(ctx)
		if err != nil && ctx.Err() == nil {
			p.log.WarnContext(ctx, "cannot see which deleted volumes are left", "error", err)
		}
		failed := err != nil
		for _, path := range paths {
			if ctx.Err() != nil {
				return nil
			}
			p.awaitClones(ctx)
			began := time.Now()
			if err := p.drain(ctx, path); err != nil && ctx.Err() == nil {
				failed = true
				p.log.WarnContext(ctx, "a deleted volume could not be removed; it is tried again", "path", path, "error", err)
			}
			p.rest(ctx, time.Since(began))
		}
		switch {
		case failed:
			return time.After(cleanRetry)
		case len(paths) == 0: // else more may have come meanwhile
			return nil
		}
	}
	return nil
}

// drain removes one volume and returns when its space is free.
func (p *Pool) drain(ctx context.Context, path string) error {
	d, ok := p.backend.(drainer)
	if !ok {
		return p.backend.Remove(ctx, path)
	}
	p.cleaner.at.Store(path)
	defer p.cleaner.at.Store("")
	return d.Drain(ctx, path)
}

// rest lets others work for a while, unless space is short.
func (p *Pool) rest(ctx context.Context, took time.Duration) {
	level := LevelRefuse
	if s, err := p.Space(ctx); err == nil {
		level = s.Level
	}
	pause := restAfter(took, level)
	if pause <= 0 {
		return
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// restAfter is how long to rest after a removal that took so long.
func restAfter(took time.Duration, level Level) time.Duration {
	if level != LevelOK {
		return 0
	}
	return min(restFactor*took, maxRest)
}

// awaitClones waits until no clone is being made, or for long enough.
func (p *Pool) awaitClones(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, p.cleaner.patience)
	defer cancel()
	_ = poll(ctx, func() (bool, error) { return p.cleaner.clones.Load() == 0, nil })
}
