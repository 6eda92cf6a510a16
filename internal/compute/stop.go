package compute

import (
	"context"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// Stop ends the endpoint's compute and waits until everything of it is gone. A fast stop that takes too long becomes an
// immediate one, and that a kill: the WAL keeps what was committed. A compute that is still starting is ended too. Stopping
// what does not run succeeds. The stop goes on when its caller gives up; ComputeExited is not called for it.
func (m *Manager) Stop(ctx context.Context, endpointID string, mode StopMode) error {
	m.mu.Lock()
	u := m.units[endpointID]
	if u == nil {
		m.mu.Unlock()
		return nil
	}
	if m.closed {
		m.mu.Unlock()
		return errClosed
	}
	switch u.phase {
	case starting:
		u.phase = stopping // the start sees it and undoes itself
		u.cancel()
	case stopping:
		if mode != StopFast && u.proc != nil {
			_ = u.proc.Signal(mode) // impatient; the stop under way sees the end
		}
	case running:
		u.phase, u.done = stopping, make(chan struct{})
		u.err = nil
		u.cancel() // the monitor
		m.wg.Go(func() { m.finish(u, mode) })
	}
	done := u.done
	m.mu.Unlock()
	select {
	case <-done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return u.stopErr
	case <-ctx.Done():
		return ctx.Err()
	}
}

// finish ends a unit's server, forgets the unit and tells those who wait.
func (m *Manager) finish(u *unit, mode StopMode) {
	began := time.Now()
	m.unlimit(u)
	err := m.end(m.ctx, u.proc, mode)
	if err == nil {
		err = m.clear(m.ctx, u.id, u.spec.DataDir, u.ready.SocketDir)
	}
	u.proc.Release()
	m.mu.Lock()
	if err != nil {
		u.stopErr = core.Wrap(err, "compute.stop", "")
	}
	m.ended(u)
	delete(m.units, u.id)
	close(u.done)
	m.mu.Unlock()
	m.log.Info("compute stopped", "endpoint", u.id, "took", time.Since(began).Round(time.Millisecond), "error", err)
}

// end signals a server, ever harder, until it has ended.
func (m *Manager) end(ctx context.Context, proc Process, mode StopMode) error {
	for ; ; mode++ {
		mode = min(mode, StopKill)
		if err := proc.Signal(mode); err != nil {
			return err
		}
		patience := m.opts.QuitTimeout
		if mode == StopFast {
			patience = m.opts.FastTimeout
		}
		timer := time.NewTimer(patience)
		select {
		case <-proc.Done():
			timer.Stop()
			return nil
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		case <-timer.C:
			m.log.Warn("compute takes long to stop", "pid", proc.Handle().PID, "waited", patience)
		}
	}
}
