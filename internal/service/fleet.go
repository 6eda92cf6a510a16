package service

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/core"
)

// Locks are files in DIR/servers that a process holds with flock(2): the kernel takes them back at any end of it, and a
// control database that restarts does not. A server holds
//
//	bough.lock         together with the others, as long as it lives
//	servers/<number>   its own, as long as it lives; it says where the server listens
//	servers/starting   while it starts: servers start one after the other
//	servers/leader     one of them: it does what is done once for all
//	servers/<name>     for a moment, what only one may do at a time
const (
	// lockPatience covers the moment in which a server that was killed is survived by a process that it was just starting: that
	// one holds the locks too, until it becomes the other program.
	lockPatience = 5 * time.Second
	// startPatience is how long a server waits for others that start.
	startPatience = 3 * time.Minute
	// fleetEvery is how often a server looks who else runs.
	fleetEvery = time.Second
)

func (l layout) servers() string           { return l.path("servers") }
func (l layout) server(name string) string { return filepath.Join(l.servers(), name) }

// Member is a server of a data directory, as `bough status` shows it.
type Member struct {
	Server    int64     `json:"server"` // its number
	PID       int       `json:"pid"`
	APIURL    string    `json:"api_url,omitempty"` // "" while it starts
	PGAddr    string    `json:"pg_addr,omitempty"`
	StartedAt time.Time `json:"started_at"`
}

// fleet is the servers of a data directory, as one of them sees it; see control.Fleet.
type fleet struct {
	layout   layout
	log      *slog.Logger
	me       Member
	alone    bool // at the start no other server ran
	file     *os.File
	shared   *os.File
	starting *os.File

	mu      sync.Mutex
	lead    *os.File // nil: another one leads
	company atomic.Bool
	leads   atomic.Bool

	cancel context.CancelFunc
	work   sync.WaitGroup
}

// joinFleet makes this process a server of the data directory, once no other one is starting. ready must be called at the
// end of the start.
func joinFleet(ctx context.Context, l layout, log *slog.Logger) (f *fleet, err error) {
	const op = "service.lock"
	f = &fleet{layout: l, log: log, me: Member{Server: 1 + rand.Int64N(1<<31), PID: os.Getpid(), StartedAt: time.Now()}}
	defer func() {
		if err != nil {
			f.leave()
		}
	}()
	if err := os.MkdirAll(l.servers(), 0o755); err != nil {
		return nil, core.Wrap(err, op, "")
	}
	waiting, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	if f.starting, err = lockFile(waiting, l.server("starting"), syscall.LOCK_EX); err != nil {
		return nil, &core.Error{Kind: core.KindUnavailable, Op: op, Err: err, Message: "another server is starting on " + l.dir + " and does not get ready; see its log"}
	}
	// One of an older version does not share.
	moment, cancel := context.WithTimeout(ctx, lockPatience)
	defer cancel()
	if f.shared, err = lockFile(moment, l.lock(), syscall.LOCK_SH); err != nil {
		pid, _ := os.ReadFile(l.lock())
		return nil, core.Errorf(core.KindUnavailable, "", "a server (pid %s) of an older version runs on %s; stop it with: bough down --data-dir %[2]s", bytes.TrimSpace(pid), l.dir)
	}
	// What is there only because of a process that a killed server was starting is waited for.
	others, _ := members(l)
	for deadline := time.Now().Add(lockPatience); time.Now().Before(deadline) && ctx.Err() == nil && anyGone(others); others, _ = members(l) {
		time.Sleep(pollEvery)
	}
	f.alone = len(others) == 0
	f.company.Store(!f.alone)
	if f.alone {
		_ = f.shared.Truncate(0) // the pid that older versions wrote
	}
	tmp, err := os.CreateTemp(l.servers(), ".new-*")
	if err != nil {
		return nil, core.Wrap(err, op, "")
	}
	f.file = tmp
	err = syscall.Flock(int(tmp.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err == nil {
		err = f.describe()
	}
	if err == nil {
		err = os.Rename(tmp.Name(), l.server(strconv.FormatInt(f.me.Server, 10)))
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return nil, core.Wrap(err, op, "")
	}
	if f.alone {
		f.tryLead()
	}
	return f, nil
}

// anyGone tells whether a lock is there whose server is not.
func anyGone(list []Member) bool {
	for _, m := range list {
		if m.PID > 1 && errors.Is(syscall.Kill(m.PID, 0), syscall.ESRCH) {
			return true
		}
	}
	return false
}

// describe writes down who this server is. A reader may see a part of it, which says nothing yet.
func (f *fleet) describe() error {
	raw, err := json.Marshal(f.me)
	if err == nil {
		_, err = f.file.WriteAt(append(raw, '\n'), 0)
	}
	return err
}

// ready ends the start: others may start now.
func (f *fleet) ready(apiURL, pgAddr string) error {
	f.me.APIURL, f.me.PGAddr = apiURL, pgAddr
	err := f.describe()
	_ = f.starting.Close()
	return core.Wrap(err, "service.ready", "")
}

// Start looks after the others until Stop: hooks.lead is called once when this server has become the leader, hooks.inherit
// by the leader for every server that has died, again until it succeeds, and hooks.tick at every look while there is company.
func (f *fleet) Start(ctx context.Context, hooks fleetHooks) {
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	f.work.Go(func() {
		tick := time.NewTicker(fleetEvery)
		defer tick.Stop()
		for {
			f.look(ctx, hooks)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// fleetHooks is what a server does when others come and go.
type fleetHooks struct {
	lead    func(ctx context.Context) error
	inherit func(ctx context.Context, dead int64) error
	tick    func(ctx context.Context) error
}

func (f *fleet) look(ctx context.Context, hooks fleetHooks) {
	alive, dead := members(f.layout)
	f.company.Store(len(alive) > 1)
	if f.tryLead() {
		f.log.Info("this server leads now: it does what one does for all")
		if err := hooks.lead(ctx); err != nil {
			f.log.Error("cannot take over the files of the server that led", "error", err)
		}
	}
	if f.Leads() {
		for _, server := range dead {
			f.log.Info("a server has ended: going on with what it did", "server", server)
			if err := hooks.inherit(ctx, server); err != nil {
				if ctx.Err() == nil {
					f.log.Error("cannot go on with what a server did; it is tried again", "server", server, "error", err)
				}
				continue
			}
			if err := os.Remove(f.layout.server(strconv.FormatInt(server, 10))); err != nil {
				f.log.Warn("the file of a server that has ended stays", "server", server, "error", err)
			}
		}
	}
	if f.Company() {
		if err := hooks.tick(ctx); err != nil && ctx.Err() == nil {
			f.log.Warn("cannot share the work with the other servers; it is tried again", "error", err)
		}
	}
}

// Stop ends the looks.
func (f *fleet) Stop() {
	if f.cancel != nil {
		f.cancel()
	}
	f.work.Wait()
}

// leave gives everything back: from now on this server does not live for the others. It comes when nothing of it works any more.
func (f *fleet) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, file := range []*os.File{f.lead, f.file, f.shared, f.starting} {
		if file != nil {
			_ = file.Close() // twice is harmless
		}
	}
}

// tryLead makes this server the leader when there is none; won tells whether it has just become it.
func (f *fleet) tryLead() (won bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.lead != nil {
		return false
	}
	file, err := openLock(f.layout.server("leader"))
	if err != nil {
		return false
	}
	if syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil {
		_ = file.Close()
		return false
	}
	f.lead = file
	f.leads.Store(true)
	return true
}

// Self implements control.Fleet.
func (f *fleet) Self() int64 { return f.me.Server }

// Company implements control.Fleet.
func (f *fleet) Company() bool { return f.company.Load() }

// Leads implements control.Fleet.
func (f *fleet) Leads() bool { return f.leads.Load() }

// Alive implements control.Fleet.
func (f *fleet) Alive(server int64) bool {
	return server == f.me.Server || held(f.layout.server(strconv.FormatInt(server, 10)))
}

// makerLives is Alive for a mark of the storage pool.
func (f *fleet) makerLives(maker string) bool {
	server, err := strconv.ParseInt(maker, 10, 64)
	return err == nil && f.Alive(server)
}

// Lock implements control.Fleet.
func (f *fleet) Lock(ctx context.Context, name string) (unlock func(), err error) {
	file, err := lockFile(ctx, f.layout.server(name+".lock"), syscall.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return func() { _ = file.Close() }, nil
}

func openLock(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
}

// lockFile locks a file until it is closed.
func lockFile(ctx context.Context, path string, how int) (*os.File, error) {
	file, err := openLock(path)
	if err != nil {
		return nil, core.Wrap(err, "service.lock", "")
	}
	for {
		err := syscall.Flock(int(file.Fd()), how|syscall.LOCK_NB)
		if err == nil {
			return file, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			_ = file.Close()
			return nil, core.Wrap(err, "service.lock", "")
		}
		select {
		case <-ctx.Done():
			_ = file.Close()
			return nil, ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// held tells whether a process holds a file locked for itself.
func held(path string) bool {
	file, err := os.Open(path)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) // who knows
	}
	defer file.Close()
	return errors.Is(syscall.Flock(int(file.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}

// members lists the servers of a data directory, and the numbers of those that have ended and whose work nobody has taken over.
func members(l layout) (alive []Member, dead []int64) {
	entries, err := os.ReadDir(l.servers())
	if err != nil {
		return nil, nil
	}
	for _, e := range entries {
		server, err := strconv.ParseInt(e.Name(), 10, 64)
		if err != nil {
			continue
		}
		if !held(l.server(e.Name())) {
			dead = append(dead, server)
			continue
		}
		m := Member{Server: server}
		if raw, err := os.ReadFile(l.server(e.Name())); err == nil {
			_ = json.Unmarshal(raw, &m) // it is just being written
		}
		alive = append(alive, m)
	}
	return alive, dead
}
