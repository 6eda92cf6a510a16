package compute

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// Spec is what an endpoint's compute should be.
type Spec struct {
	EndpointID         string
	Build              postgres.Build
	DataDir            string // absolute
	WALDir             string // absolute; DataDir's pg_wal points to it; for messages only
	Size               postgres.SizeSpec
	Preload            []string // libraries; see postgres.PreloadList
	Database           string   // where preloaded libraries that work in one database do
	AuditLevel         string   // see postgres.ConfigOptions
	PGSettings         map[string]string
	Promote            bool          // DataDir is a fresh copy with standby.signal: end its recovery on a new timeline
	IdleTimeout        time.Duration // < 0: never idle; 0: core.DefaultSuspendTimeout
	LogicalReplication bool
	Background         bool     // no client waits for it: in the start queue it lets clients pass
	Standby            *Standby // DataDir is a copy with standby.signal that follows a primary; never with Promote
}

// Standby is what a hot standby has more than a primary.
type Standby struct {
	postgres.Standby
	ReplayTo core.LSN // ready means that everything before it is visible
}

// Ready is a compute that answers and, unless it is a standby, is not in recovery.
type Ready struct {
	SocketDir  string
	SocketPath string
	StartedAt  time.Time
	PID        int
}

// Sample is one look at a running compute.
type Sample struct {
	At          time.Time
	Active      bool
	LastActive  time.Time // never before the compute's start
	Connections int
	Fingerprint string   // changes when roles or databases do; see postgres.Fingerprint
	LSN         core.LSN // where the WAL ends; 0 on a standby
}

// Observer is told what happens to running computes. Calls for one endpoint come one after the other, from the compute's
// monitor: they should be quick, may call the Manager, and their ctx ends with the Manager's.
type Observer interface {
	// ComputeExited: the server ended and nobody had asked for it. Nothing of it runs any more; Start may be called.
	ComputeExited(ctx context.Context, endpointID string, exit Exit)
	// ComputeIdle: unused for longer than its timeout. Called again at every poll while that lasts.
	ComputeIdle(ctx context.Context, endpointID string, lastActive time.Time)
	// ComputeSampled: called at every poll that succeeded, before ComputeIdle.
	ComputeSampled(ctx context.Context, endpointID string, s Sample)
}

// Options configures a Manager. Zero durations take the defaults.
type Options struct {
	Driver   Driver
	RunDir   string              // short path; every compute gets a folder RunDir/<endpoint id> for its socket
	LogDir   string              // every compute appends to LogDir/<endpoint id>.log
	Cred     *syscall.Credential // OS user of the servers; nil when it is the caller's
	Observer Observer            // may be nil
	Log      *slog.Logger        // nil discards

	StartTimeout time.Duration // until ready, recovery included; default 10 min
	FastTimeout  time.Duration // a fast stop may take this long before it becomes immediate; default 30 s
	QuitTimeout  time.Duration // then this long before it becomes a kill; default 10 s
	MachineMem   int64         // bytes; 0: read from the system
	MachineCPUs  int           // 0: those that this process may use
	ScaleEvery   time.Duration // how often autoscaling looks; default 1 s

	Groups    *cgroup.Tree  // nil: the sizes of computes are not enforced
	Ungrouped string        // why, when Groups is nil
	MaxPoll   time.Duration // upper bound of the poll interval; default 5 s
	MaxStarts int           // starts at once; default two for each core
}

type phase int

const (
	starting phase = iota
	running
	stopping
)

// unit is one endpoint's compute. Fields below mu belong to Manager.mu.
type unit struct {
	id     string
	cancel context.CancelFunc // ends the start, or the monitor
	done   chan struct{}      // closed when the phase that is not running ends
	wake   chan struct{}      // tells the monitor that idle changed; capacity 1

	phase  phase
	idle   time.Duration
	spec   Spec
	limits postgres.SizeSpec // spec's, until Resize
	size   float64           // compute units
	proc   Process
	ready  Ready
	err    error // of a start, valid once done is closed

	sizing sync.Mutex    // taken before Manager.mu: one writes to the group at a time
	group  *cgroup.Group // nil: none; set before the unit runs
	load   load          // autoscaling's
	meter  runMeter      // zero until the unit is adopted

	stopErr error    // of a stop, likewise
	session *session // set before the phase is running
	ticket  *ticket  // of a start that goes through the queue; may be nil
}

// Manager runs the computes of one server. It is ready to use once made; Close ends it and leaves the computes running.
type Manager struct {
	opts   Options
	log    *slog.Logger
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup
	queue  *startQueue

	grown, shrunk atomic.Int64 // changes by autoscaling

	mu     sync.Mutex
	closed bool
	units  map[string]*unit
	past   []Reading         // of runs that have ended; see Readings
	guests map[string]*guest // computes of other servers
}

var errClosed = core.Errorf(core.KindUnavailable, "", "the server is shutting down; try again")

// NewManager makes a Manager whose background work ends with ctx or Close.
func NewManager(ctx context.Context, o Options) *Manager {
	o.StartTimeout = cmp.Or(o.StartTimeout, 10*time.Minute)
	o.FastTimeout = cmp.Or(o.FastTimeout, 30*time.Second)
	o.QuitTimeout = cmp.Or(o.QuitTimeout, 10*time.Second)
	o.MaxPoll = cmp.Or(o.MaxPoll, 5*time.Second)
	o.ScaleEvery = cmp.Or(o.ScaleEvery, time.Second)
	o.MachineCPUs = cmp.Or(o.MachineCPUs, runtime.NumCPU())
	if o.MachineMem == 0 {
		o.MachineMem = postgres.MachineMemory()
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(ctx)
	m := &Manager{opts: o, log: o.Log, ctx: ctx, cancel: cancel, units: map[string]*unit{}, guests: map[string]*guest{}, queue: newStartQueue(o.MaxStarts)}
	if o.Groups != nil {
		m.wg.Go(m.autoscale)
	}
	return m
}

// Close stops watching: starts that are under way are cut off and their processes ended, running computes keep running.
// It waits for all background work and is safe twice.
func (m *Manager) Close() {
	m.mu.Lock()
	m.closed = true
	m.mu.Unlock()
	m.cancel()
	m.wg.Wait()
}

// Start makes the endpoint's compute run and waits until it is ready. Callers that come while a start is under way share it
// and its outcome; only the first one's spec and persist are used. A compute that runs already is returned as it is. A
// start goes on when its callers give up. persist must store the handle durably; a start whose persist fails is undone.
//
// An error is a *core.Error whose message is for the user and whose hint holds the end of the server's log; nothing runs then.
func (m *Manager) Start(ctx context.Context, spec Spec, persist func(ctx context.Context, h Handle) error) (Ready, error) {
	for {
		m.mu.Lock()
		if m.closed {
			m.mu.Unlock()
			return Ready{}, errClosed
		}
		u := m.units[spec.EndpointID]
		switch {
		case u == nil:
			u = m.launch(ctx, spec, func(ctx context.Context, u *unit) (Ready, error) { return m.start(ctx, u, persist) })
			m.mu.Unlock()
			return m.await(ctx, u)
		case u.phase == running:
			r := u.ready
			m.mu.Unlock()
			return r, nil
		case u.phase == starting:
			m.mu.Unlock()
			return m.await(ctx, u)
		}
		done := u.done
		m.mu.Unlock()
		select {
		case <-done: // stopped: start anew
		case <-ctx.Done():
			return Ready{}, ctx.Err()
		}
	}
}

// Attach takes over a compute that an earlier server started. alive is false when its process is gone; what may be left of
// it is ended then. A compute that was not ready yet is waited for like in Start.
func (m *Manager) Attach(ctx context.Context, spec Spec, h Handle) (alive bool, err error) {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return false, errClosed
	}
	u := m.units[spec.EndpointID]
	if u != nil && u.phase != stopping {
		m.mu.Unlock()
		_, err := m.await(ctx, u)
		return err == nil, err
	}
	if u != nil {
		m.mu.Unlock()
		return false, core.Errorf(core.KindLocked, "", "the compute is stopping; try again")
	}
	gone := false
	u = m.launch(ctx, spec, func(ctx context.Context, u *unit) (Ready, error) {
		r, err := m.attach(ctx, u, h)
		gone = core.IsKind(err, core.KindNotFound)
		return r, err
	})
	m.mu.Unlock()
	if _, err := m.await(ctx, u); err != nil {
		select {
		case <-u.done:
			if gone {
				return false, nil
			}
		default: // the caller gave up first
		}
		return false, err
	}
	return true, nil
}

// launch registers a unit and runs its start in the background. m.mu is held.
func (m *Manager) launch(caller context.Context, spec Spec, begin func(context.Context, *unit) (Ready, error)) *unit {
	// The values of the first caller (its request id) go along; its cancellation does not.
	ctx, cancel := context.WithCancel(context.WithoutCancel(caller))
	unhook := context.AfterFunc(m.ctx, cancel)
	u := &unit{
		id: spec.EndpointID, spec: spec, limits: spec.Size, idle: spec.IdleTimeout, phase: starting,
		cancel: cancel, done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	m.units[u.id] = u
	m.wg.Go(func() {
		defer unhook()
		defer cancel()
		startCtx, stopTimer := context.WithTimeout(ctx, m.opts.StartTimeout)
		ready, err := begin(startCtx, u)
		stopTimer()
		m.mu.Lock()
		u.ready, u.err = ready, err
		if err == nil && u.phase == starting {
			u.phase = running
			close(u.done)
			m.mu.Unlock()
			m.monitor(ctx, u)
			return
		}
		if err == nil { // Stop came just too late to cut the start off
			u.err = errStopped
			m.mu.Unlock()
			u.session.close(ctx)
			m.finish(u, StopFast)
			return
		}
		delete(m.units, u.id)
		close(u.done)
		m.mu.Unlock()
	})
	return u
}

var errStopped = core.Errorf(core.KindUnavailable, "", "the compute was stopped while it started; try again")

// await waits for a start's outcome.
func (m *Manager) await(ctx context.Context, u *unit) (Ready, error) {
	m.mu.Lock()
	done := u.done
	m.mu.Unlock()
	select {
	case <-done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return u.ready, u.err
	case <-ctx.Done():
		return Ready{}, ctx.Err()
	}
}

// Lookup returns a running compute.
func (m *Manager) Lookup(endpointID string) (Ready, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.units[endpointID]; u != nil && u.phase == running {
		return u.ready, true
	}
	return Ready{}, false
}

// Running lists the endpoints whose compute runs, sorted.
func (m *Manager) Running() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var ids []string
	for id, u := range m.units {
		if u.phase == running {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// SetIdleTimeout changes a running compute's timeout (< 0: never; 0: the default). Unknown endpoints are ignored.
func (m *Manager) SetIdleTimeout(endpointID string, d time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.units[endpointID]; u != nil {
		u.idle = d
		select {
		case u.wake <- struct{}{}:
		default:
		}
	}
}

// Conn opens a session of the platform to a database of a running compute.
func (m *Manager) Conn(ctx context.Context, endpointID, database string) (*pgx.Conn, error) {
	_, dir, ok := m.reach(endpointID)
	if !ok {
		return nil, core.Errorf(core.KindUnavailable, "", "the compute of endpoint %s is not running", endpointID)
	}
	conn, err := postgres.Connect(ctx, dir, database)
	if err != nil {
		return nil, core.Wrap(err, "compute.conn", "")
	}
	return conn, nil
}

// Spec returns what a running compute should be.
func (m *Manager) Spec(endpointID string) (Spec, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u := m.units[endpointID]; u != nil && u.phase == running {
		return u.spec, true
	}
	return Spec{}, false
}

// Settings are those that a compute of this kind gets.
func (m *Manager) Settings(spec Spec) []postgres.Setting {
	return postgres.Config(m.Config(spec))
}

// Follow points a running standby to its primary, or to none, without a restart, and makes it look for WAL at once. conn is
// a session on the standby. Calls for one endpoint come one after the other.
func (m *Manager) Follow(ctx context.Context, conn *pgx.Conn, endpointID string, s Standby) error {
	spec, ok := m.Spec(endpointID)
	if !ok {
		return core.Errorf(core.KindUnavailable, "", "the compute of endpoint %s is not running", endpointID)
	}
	spec.Standby = &s
	if err := postgres.WriteConfig(spec.DataDir, m.Settings(spec), m.opts.Cred); err != nil {
		return err
	}
	m.mu.Lock()
	if u := m.units[endpointID]; u != nil {
		u.spec.Standby = &s
	}
	m.mu.Unlock()
	_, err := conn.Exec(ctx, "SELECT pg_reload_conf()")
	return core.Wrap(err, "compute.follow", "")
}

func (m *Manager) socketDir(endpointID string) string {
	return filepath.Join(m.opts.RunDir, endpointID)
}

func (m *Manager) logFile(endpointID string) string {
	return filepath.Join(m.opts.LogDir, endpointID+".log")
}

// isGone tells a process that no longer exists.
func isGone(err error) bool {
	return err != nil && (core.IsKind(err, core.KindNotFound) || errors.Is(err, syscall.ESRCH))
}
