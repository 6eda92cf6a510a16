package compute

import (
	"context"
	"path/filepath"
	"time"

	"github.com/boughdb/bough/internal/postgres"
)

// guestIdle is how long the platform's session to somebody else's compute is kept unused.
const guestIdle = time.Minute

// guest is a running compute that another server's Manager starts, watches and stops. This one only talks to it.
type guest struct {
	handle  Handle
	ready   Ready
	session *session
	used    time.Time     // guarded by Manager.mu
	leave   chan struct{} // closed when another process took its place
}

// Visit lets Do and Conn reach a compute that another server watches. It fails with core.KindNotFound when its process is
// gone, and with core.KindUnavailable when it is this Manager's and does not run. Visits end by themselves: with the process,
// and when they are not used.
func (m *Manager) Visit(ctx context.Context, id string, h Handle) (Ready, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return Ready{}, errClosed
	}
	if u := m.units[id]; u != nil {
		if u.phase == running {
			return u.ready, nil
		}
		return Ready{}, errStoppedNow
	}
	if g := m.guests[id]; g != nil {
		if g.handle == h {
			g.used = time.Now()
			return g.ready, nil
		}
		delete(m.guests, id)
		close(g.leave)
	}
	proc, err := m.opts.Driver.Attach(ctx, h)
	if err != nil {
		return Ready{}, err
	}
	g := &guest{
		handle: h, session: newSession(nil), used: time.Now(), leave: make(chan struct{}),
		ready: Ready{SocketDir: h.SocketDir, SocketPath: filepath.Join(h.SocketDir, postgres.SocketName), StartedAt: h.StartedAt, PID: h.PID},
	}
	g.session.visit = true
	m.guests[id] = g
	m.wg.Go(func() {
		m.host(g, proc)
		m.mu.Lock()
		if m.guests[id] == g {
			delete(m.guests, id)
		}
		m.mu.Unlock()
		g.session.close(m.ctx)
		proc.Release()
	})
	return g.ready, nil
}

// host returns when a visit is over.
func (m *Manager) host(g *guest, proc Process) {
	tick := time.NewTicker(guestIdle / 2)
	defer tick.Stop()
	for {
		select {
		case <-proc.Done():
			return
		case <-m.ctx.Done():
			return
		case <-g.leave:
			return
		case <-tick.C:
			m.mu.Lock()
			idle := time.Since(g.used) > guestIdle
			m.mu.Unlock()
			if idle {
				return
			}
		}
	}
}

// SocketDir is the folder of a running compute's socket; the compute may be one that this Manager visits.
func (m *Manager) SocketDir(id string) (dir string, ok bool) {
	_, dir, ok = m.reach(id)
	return dir, ok
}

// reach returns the session to a running compute, this Manager's own or one that it visits.
func (m *Manager) reach(id string) (s *session, socketDir string, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.units[id]; u != nil {
		return u.session, u.ready.SocketDir, u.phase == running
	}
	if g := m.guests[id]; g != nil {
		g.used = time.Now()
		return g.session, g.ready.SocketDir, true
	}
	return nil, "", false
}
