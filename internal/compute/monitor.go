package compute

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

const (
	minPoll     = 200 * time.Millisecond
	pollTimeout = 10 * time.Second // for one look
)

// monitor watches a running compute until it ends, is stopped, or the Manager closes. ctx ends with the latter two.
func (m *Manager) monitor(ctx context.Context, u *unit) {
	w := watch{m: m, u: u, lastActive: time.Now()}
	defer u.session.close(ctx)
	timer := time.NewTimer(m.interval(u))
	defer timer.Stop()
	for {
		select {
		case <-u.proc.Done():
			m.exited(u)
			return
		case <-ctx.Done():
			if m.ctx.Err() != nil { // closing; a stop that is under way releases it itself
				u.proc.Release()
			}
			return
		case <-u.wake:
		case <-timer.C:
			w.poll(ctx)
		}
		timer.Reset(m.interval(u))
	}
}

// interval is how often a compute is looked at: often enough to keep its idle timeout, never busily.
func (m *Manager) interval(u *unit) time.Duration {
	timeout := m.timeout(u)
	if timeout < 0 {
		return m.opts.MaxPoll
	}
	return max(minPoll, min(timeout/5, m.opts.MaxPoll))
}

// timeout is the unit's idle timeout; < 0 means never.
func (m *Manager) timeout(u *unit) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.idle == 0 {
		return core.DefaultSuspendTimeout
	}
	return u.idle
}

// exited deals with a server that ended by itself.
func (m *Manager) exited(u *unit) {
	m.mu.Lock()
	if u.phase != running { // a stop is under way
		m.mu.Unlock()
		return
	}
	u.phase, u.done = stopping, make(chan struct{})
	m.mu.Unlock()

	exit := u.proc.Exit()
	m.log.Warn("compute ended unexpectedly", "endpoint", u.id, "pid", u.ready.PID, "status", exit.Status,
		"log", logTail(m.logFile(u.id), 0))
	// Backends outlive a killed postmaster for a while; none may be left when the next server starts.
	if err := m.clear(m.ctx, u.id, u.spec.DataDir, u.ready.SocketDir); err != nil {
		m.log.Error("compute was not cleared", "endpoint", u.id, "error", err)
	}
	u.proc.Release()
	m.mu.Lock()
	m.ended(u)
	delete(m.units, u.id)
	close(u.done)
	m.mu.Unlock()
	if m.opts.Observer != nil && m.ctx.Err() == nil {
		m.opts.Observer.ComputeExited(m.ctx, u.id, exit)
	}
}

// watch is what a monitor remembers between looks.
type watch struct {
	m          *Manager
	u          *unit
	lastActive time.Time
	sessions   int64 // postgres.Activity.Sessions of the last look
	seen       bool  // sessions is valid
	failing    bool
}

// poll looks once and tells the observer. A compute that cannot be looked at is not idle: nobody knows.
func (w *watch) poll(ctx context.Context) {
	m, id := w.m, w.u.id
	a, err := w.look(ctx)
	if err != nil {
		w.seen = false
		w.lastActive = time.Now()
		if ctx.Err() == nil && !w.failing {
			m.log.Warn("compute cannot be looked at", "endpoint", id, "error", err)
		}
		w.failing = true
		return
	}
	w.failing = false
	now := time.Now()
	if w.seen && a.Sessions != w.sessions {
		a.LastActive = now // somebody came and went between two looks
	}
	w.sessions, w.seen = a.Sessions, true
	if a.LastActive.After(w.lastActive) {
		w.lastActive = a.LastActive
	}
	if m.opts.Observer == nil || ctx.Err() != nil {
		return
	}
	m.opts.Observer.ComputeSampled(m.ctx, id, Sample{
		At: now, Active: a.Active, LastActive: w.lastActive, Connections: a.Connections, Fingerprint: a.Fingerprint, LSN: a.LSN,
	})
	timeout := m.timeout(w.u)
	if !a.Active && timeout >= 0 && now.Sub(w.lastActive) >= timeout && ctx.Err() == nil {
		m.opts.Observer.ComputeIdle(m.ctx, id, w.lastActive)
	}
}

func (w *watch) look(ctx context.Context) (postgres.Activity, error) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	var a postgres.Activity
	err := w.u.session.do(ctx, w.u.ready.SocketDir, func(conn *pgx.Conn) (err error) {
		a, err = postgres.ReadActivity(ctx, conn)
		return err
	})
	return a, err
}
