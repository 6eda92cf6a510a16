package compute

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// cleanupTimeout bounds what is done after the caller's context has ended.
const cleanupTimeout = 30 * time.Second

// start is the body of a Start: nothing of the compute runs when it fails.
func (m *Manager) start(ctx context.Context, u *unit, persist func(context.Context, Handle) error) (Ready, error) {
	const op = "compute.start"
	spec, sockDir, logFile := u.spec, m.socketDir(u.id), m.logFile(u.id)
	asked := time.Now()
	leave, err := m.queue.enter(ctx, spec.Background, func(t *ticket) {
		m.mu.Lock()
		u.ticket = t
		m.mu.Unlock()
	})
	if err != nil {
		return Ready{}, m.explain(ctx, err, logFile, fileSize(logFile))
	}
	defer leave()
	began := time.Now()

	if err := m.prepare(ctx, spec, sockDir); err != nil {
		return Ready{}, core.Wrap(err, op, "")
	}
	logOffset := rotateLog(logFile)
	args := []string{"unix_socket_directories=" + quoteListItem(sockDir), "cluster_name=" + u.id}
	if spec.Promote {
		// No dependence on the parent's max_connections, and the moment from which promotion is heard shows in the lock file.
		first := append(slices.Clone(args), "hot_standby=off", "restore_command=", "primary_conninfo=")
		if !postgres.MayHaveSubscriptions(spec.DataDir) {
			args = first
		} else if err := m.detach(ctx, u, append(first, postgres.NoLogicalWorkers), persist); err != nil {
			return Ready{}, m.explain(ctx, err, logFile, logOffset)
		}
	}
	proc, conn, group, err := m.boot(ctx, u, args, persist)
	if err != nil {
		return Ready{}, m.explain(ctx, err, logFile, logOffset)
	}
	m.log.Info("compute ready", "endpoint", u.id, "pid", proc.Handle().PID, "queued", began.Sub(asked).Round(time.Millisecond),
		"took", time.Since(began).Round(time.Millisecond))
	return m.adopt(u, proc, conn, group, false), nil
}

// detach runs a copy's first server, which acts on no subscription, for as long as it takes to part the copy from those of
// its parent. Nobody is told of that server, and it has ended when detach returns.
func (m *Manager) detach(ctx context.Context, u *unit, args []string, persist func(context.Context, Handle) error) error {
	proc, conn, _, err := m.boot(ctx, u, args, persist)
	if err != nil {
		return err
	}
	n, err := postgres.DetachSubscriptions(ctx, conn)
	closeConn(ctx, conn)
	if err != nil {
		m.abandon(ctx, u.spec, proc, m.socketDir(u.id))
		return core.Wrap(err, "compute.detach", "")
	}
	if n > 0 {
		m.log.Info("the subscriptions of the parent are disabled in its copy", "endpoint", u.id, "subscriptions", n)
	}
	endCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), m.opts.FastTimeout+2*m.opts.QuitTimeout)
	defer cancel()
	if err = m.end(endCtx, proc, StopFast); err == nil {
		err = m.clear(endCtx, u.id, u.spec.DataDir, m.socketDir(u.id))
	}
	proc.Release()
	return core.Wrap(err, "compute.detach", "")
}

// boot starts a server in its control group and returns it with a session once it is ready; nothing of it runs when it fails.
func (m *Manager) boot(ctx context.Context, u *unit, args []string, persist func(context.Context, Handle) error) (
	Process, *pgx.Conn, *cgroup.Group, error,
) {
	const op = "compute.boot"
	spec, sockDir := u.spec, m.socketDir(u.id)
	group := m.group(spec)
	proc, err := m.opts.Driver.Start(ctx, Launch{
		EndpointID: u.id, Build: spec.Build, DataDir: spec.DataDir, SocketDir: sockDir, LogFile: m.logFile(u.id), Args: args, Group: group,
	})
	if err != nil {
		m.ungroup(ctx, u.id)
		return nil, nil, nil, core.Wrap(err, op, "")
	}

	// The handle is made durable while the server boots; nobody is told of the server before both are done.
	persisted := make(chan error, 1)
	m.wg.Go(func() { persisted <- persist(ctx, proc.Handle()) })
	conn, err := m.waitReady(ctx, spec, proc)
	if perr := <-persisted; err == nil && perr != nil {
		err = core.Wrap(perr, op, "")
		closeConn(ctx, conn)
	}
	if err == nil && spec.Promote {
		// A repeated request may have come too late to be consumed.
		if rmErr := os.Remove(filepath.Join(spec.DataDir, promoteFile)); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			m.log.Warn("promote file stays", "endpoint", u.id, "error", rmErr)
		}
	}
	if err != nil {
		m.abandon(ctx, spec, proc, sockDir)
		return nil, nil, nil, err
	}
	return proc, conn, group, nil
}

// prepare leaves the data directory and the socket folder ready for a server.
func (m *Manager) prepare(ctx context.Context, spec Spec, sockDir string) error {
	if err := postgres.OwnedDir(sockDir, m.opts.Cred); err != nil {
		return err
	}
	if err := os.MkdirAll(m.opts.LogDir, 0o750); err != nil {
		return err
	}
	if err := m.opts.Driver.Clear(ctx, spec.DataDir, sockDir); err != nil {
		return err
	}
	_, err := os.Lstat(filepath.Join(spec.DataDir, "standby.signal"))
	switch {
	case err == nil && !spec.Promote && spec.Standby == nil:
		return core.Errorf(core.KindInternal, "", "%s holds standby.signal, and its promotion was not asked for", spec.DataDir)
	case err != nil && spec.Standby != nil: // it would start as a second primary
		return core.Wrap(err, "", "a standby's data directory must hold standby.signal")
	}
	return postgres.WriteConfig(spec.DataDir, m.Settings(spec), m.opts.Cred)
}

// attach is the body of an Attach.
func (m *Manager) attach(ctx context.Context, u *unit, h Handle) (Ready, error) {
	spec := u.spec
	proc, err := m.opts.Driver.Attach(ctx, h)
	if isGone(err) {
		if cerr := m.clear(ctx, u.id, spec.DataDir, m.socketDir(u.id)); cerr != nil {
			return Ready{}, core.Wrap(cerr, "compute.attach", "")
		}
		return Ready{}, err
	} else if err != nil {
		return Ready{}, core.Wrap(err, "compute.attach", "")
	}
	logFile := m.logFile(u.id)
	conn, err := m.waitReady(ctx, spec, proc)
	if err == nil && spec.Promote {
		// The server of a first start that was cut off before it could end: the next try is another one.
		if held, heldErr := postgres.LogicalWorkersHeld(ctx, conn); heldErr != nil || held {
			closeConn(ctx, conn)
			m.abandon(ctx, spec, proc, h.SocketDir)
			return Ready{}, core.NotFoundf("the compute was not ready for use yet")
		}
	}
	if err != nil {
		if m.ctx.Err() != nil { // this server is going away, not the compute
			proc.Release()
			return Ready{}, errClosed
		}
		m.abandon(ctx, spec, proc, h.SocketDir)
		return Ready{}, m.explain(ctx, err, logFile, max(0, fileSize(logFile)-tailBytes))
	}
	var group *cgroup.Group
	if m.opts.Groups != nil {
		if g := m.opts.Groups.Group(u.id); g.Exists() {
			group = g
		}
	}
	return m.adopt(u, proc, conn, group, true), nil
}

// adopt hands a ready server over to the unit and its monitor, in its size.
func (m *Manager) adopt(u *unit, proc Process, conn *pgx.Conn, group *cgroup.Group, attached bool) Ready {
	h := proc.Handle()
	m.mu.Lock()
	u.proc, u.group, u.session = proc, group, newSession(conn)
	limits := u.limits
	m.mu.Unlock()
	m.apply(u, m.firstSize(limits, group, attached))
	m.mu.Lock()
	u.meter = runMeter{since: time.Now(), at: time.Now()}
	m.mu.Unlock()
	if lo, hi := m.bounds(limits); group != nil && lo < hi {
		if usage, err := group.Usage(); err == nil { // so that the first look says something already
			u.load.at, u.load.usage = time.Now(), usage
		}
	}
	if note := m.note(limits, group != nil); note != "" && m.opts.Groups != nil {
		m.log.Info("compute is not as large as its limits", "endpoint", u.id, "note", note)
	}
	return Ready{
		SocketDir: h.SocketDir, SocketPath: filepath.Join(h.SocketDir, postgres.SocketName),
		StartedAt: h.StartedAt, PID: h.PID,
	}
}

// abandon ends a server that did not get ready.
func (m *Manager) abandon(ctx context.Context, spec Spec, proc Process, sockDir string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := m.end(ctx, proc, StopImmediate); err != nil {
		m.log.Error("compute did not end", "endpoint", spec.EndpointID, "error", err)
	}
	if err := m.clear(ctx, spec.EndpointID, spec.DataDir, sockDir); err != nil {
		m.log.Error("compute was not cleared", "endpoint", spec.EndpointID, "error", err)
	}
	proc.Release()
}

const (
	promoteFile = "promote"

	pollFirst    = time.Millisecond
	pollLast     = 20 * time.Millisecond
	promoteEvery = 20 * time.Millisecond
)

// errExited tells that a server ended before it was ready.
var errExited = errors.New("the server ended while it started")

// waitReady waits until the server accepts a session and is not in recovery, and returns that session. It promotes the
// server when spec says so. A standby stays in recovery, and is waited for until it has replayed what spec says.
//
// The lock file's status line says when trying is worth it: every attempt before that would cost the starting server a
// fork. The line alone proves nothing; the session does.
func (m *Manager) waitReady(ctx context.Context, spec Spec, proc Process) (*pgx.Conn, error) {
	h := proc.Handle()
	delay := pollFirst
	var promoted time.Time
	timer := time.NewTimer(delay)
	defer timer.Stop()
	for {
		select {
		case <-proc.Done():
			return nil, errExited
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-timer.C:
		}
		switch readStatus(spec.DataDir, h.PID) {
		case "ready":
			conn, err := postgres.Connect(ctx, h.SocketDir, postgres.AdminDatabase)
			if err == nil {
				switch standby := conn.PgConn().ParameterStatus("in_hot_standby") == "on"; { // from major 14 on: pg_is_in_recovery()
				case standby != (spec.Standby != nil):
				case !standby:
					return conn, nil
				default:
					var at core.LSN
					if at, err = postgres.Replayed(ctx, conn); err == nil && at >= spec.Standby.ReplayTo {
						return conn, nil
					}
				}
				closeConn(ctx, conn)
			} else {
				m.log.Debug("compute not ready", "endpoint", spec.EndpointID, "error", err)
			}
		case "standby":
			// The server removes an early promote file when it starts, and a SIGUSR1 before its handlers exist would end it:
			// this status says that both are over.
			if spec.Promote && time.Since(promoted) >= promoteEvery {
				if err := proc.Promote(); err != nil && !isGone(err) {
					return nil, err
				}
				promoted = time.Now()
				delay = pollFirst
			}
		}
		timer.Reset(delay)
		if delay *= 2; delay > pollLast {
			delay = pollLast
		}
		if promoted.IsZero() && delay > 2*pollFirst && time.Since(h.StartedAt) < 200*time.Millisecond {
			delay = 2 * pollFirst // a clean start takes some 30 ms
		}
	}
}

// readStatus returns the last line of postmaster.pid ("starting", "stopping", "ready" or "standby"; LOCK_FILE_LINE_PM_STATUS
// in src/include/utils/pidfile.h), "" unless the file is that of pid.
func readStatus(dataDir string, pid int) string {
	raw, err := os.ReadFile(filepath.Join(dataDir, "postmaster.pid"))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(raw), "\n")
	if len(lines) < 8 || lines[0] != itoa(pid) {
		return ""
	}
	return strings.TrimSpace(lines[7])
}

// quoteListItem writes a folder for a list setting of folders.
func quoteListItem(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

func closeConn(ctx context.Context, conn *pgx.Conn) {
	if conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer cancel()
	_ = conn.Close(ctx)
}
