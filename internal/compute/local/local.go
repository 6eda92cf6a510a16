// Package local runs computes as processes of this machine: each in a session of its own, so that they outlive the
// server, watched through a pidfd, found again by pid, start time and boot id.
package local

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// Driver is a compute.Driver of local processes. It keeps no state: everything is in /proc.
type Driver struct {
	cred   *syscall.Credential
	log    *slog.Logger
	bootID string
}

var _ compute.Driver = (*Driver)(nil)

// New makes a driver whose servers run as cred's user; nil means the caller's. log may be nil.
func New(cred *syscall.Credential, log *slog.Logger) (*Driver, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, core.Wrap(err, "local.new", "computes need Linux with /proc mounted")
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{cred: cred, log: log, bootID: strings.TrimSpace(string(boot))}, nil
}

// Credential is the OS user that servers run as: nil when this process is not root, because then it is the process's own.
// As root it is the named user, or for "" the user bough if it exists, else postgres. PostgreSQL refuses to run as root.
func Credential(name string) (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	names := []string{name}
	if name == "" {
		names = []string{"bough", "postgres"}
	}
	for _, n := range names {
		u, err := user.Lookup(n)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 != nil || err2 != nil || uid == 0 {
			return nil, core.Invalidf("computes cannot run as the OS user %q: PostgreSQL refuses to run as root", n)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
	}
	return nil, core.Invalidf("no OS user %s to run computes as; make one with: useradd --system %s", strings.Join(names, " or "), names[0])
}

// oomAdjust protects a postmaster from the OOM killer as PostgreSQL's manual proposes (section "Linux Memory Overcommit"):
// its backends set themselves back to 0, so that one of them is chosen.
const oomAdjust = "-900"

// Start implements compute.Driver.
func (d *Driver) Start(ctx context.Context, l compute.Launch) (compute.Process, error) {
	const op = "local.start"
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	logFile, err := os.OpenFile(l.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, core.Wrap(err, op, "")
	}
	defer func() { _ = logFile.Close() }()

	args := []string{"-D", l.DataDir}
	for _, a := range l.Args {
		args = append(args, "-c", a)
	}
	cmd := exec.Command(l.Build.Tool("postgres"), args...) // not CommandContext: it outlives the caller
	cmd.Dir, cmd.Env = l.DataDir, postgres.ServerEnv()     // where list looks for it, from its first moment
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Credential: d.cred}
	root := os.Geteuid() == 0
	if root {
		cmd.Env = append(cmd.Env, "PG_OOM_ADJUST_FILE=/proc/self/oom_score_adj", "PG_OOM_ADJUST_VALUE=0")
	}
	startedAt := time.Now()
	start := cmd.Start
	if l.Group != nil {
		start = func() error { return l.Group.Start(cmd) }
	}
	if err := start(); err != nil {
		return nil, core.Wrap(err, op, "is "+cmd.Path+" executable for the computes' OS user?")
	}
	pid := cmd.Process.Pid
	if root {
		if err := os.WriteFile(procPath(pid, "oom_score_adj"), []byte(oomAdjust), 0); err != nil {
			d.log.Debug("postmaster is not protected from the OOM killer", "pid", pid, "error", err)
		}
	}
	// Until it is waited for, the pid cannot be another process's.
	p, err := d.watch(pid, cmd, compute.Handle{
		Version: compute.HandleVersion, PID: pid, BootID: d.bootID,
		DataDir: l.DataDir, SocketDir: l.SocketDir, StartedAt: startedAt,
	})
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, core.Wrap(err, op, "pidfd_open needs Linux 5.3 or newer")
	}
	return p, nil
}

// Attach implements compute.Driver.
func (d *Driver) Attach(ctx context.Context, h compute.Handle) (compute.Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if h.Version < 1 || h.Version > compute.HandleVersion {
		return nil, core.Wrap(fmt.Errorf("handle version %d", h.Version), "local.attach", "written by a newer version?")
	}
	if h.PID <= 0 || h.BootID != d.bootID {
		return nil, errGone
	}
	return d.watch(h.PID, nil, h)
}

// Scan implements compute.Driver.
func (d *Driver) Scan(ctx context.Context, prefix string) ([]compute.Found, error) {
	if real, err := filepath.EvalSymlinks(prefix); err == nil {
		prefix = real
	}
	procs, err := list(ctx)
	if err != nil {
		return nil, core.Wrap(err, "local.scan", "")
	}
	servers := map[int]proc{}
	for _, p := range procs {
		if p.isPostgres() {
			servers[p.pid] = p
		}
	}
	var found []compute.Found
	for pid, p := range servers {
		parent, child := servers[p.ppid]
		if child && parent.cwd == p.cwd {
			continue // a backend
		}
		dir := p.dataDir()
		if dir != "" && (dir == prefix || strings.HasPrefix(dir, strings.TrimSuffix(prefix, "/")+"/")) {
			found = append(found, compute.Found{PID: pid, DataDir: dir})
		}
	}
	return found, nil
}

const (
	quitPatience = time.Second      // between SIGQUIT and SIGKILL
	killPatience = 20 * time.Second // until a killed process is gone; longer means stuck in the kernel
)

// Clear implements compute.Driver. Every process of a server works in its data directory, also those whose postmaster was
// killed; sessions and process groups do not tell, for every backend makes its own.
func (d *Driver) Clear(ctx context.Context, dataDir, socketDir string) error {
	const op = "local.clear"
	lock := filepath.Join(dataDir, "postmaster.pid")
	if _, err := os.Lstat(lock); os.IsNotExist(err) {
		return nil // a server removes it last, and nothing starts without it
	}
	real, err := filepath.EvalSymlinks(dataDir)
	if err != nil {
		return core.Wrap(err, op, "")
	}
	began := time.Now()
	for {
		procs, err := list(ctx)
		if err != nil {
			return core.Wrap(err, op, "")
		}
		left := membersOf(procs, real)
		if len(left) == 0 {
			break
		}
		if waited := time.Since(began); waited > killPatience {
			return core.Wrap(fmt.Errorf("process %d does not end", left[0].pid), op, "it may hang in the kernel")
		} else if waited > quitPatience {
			signalAll(left, syscall.SIGKILL)
		} else {
			signalAll(left, syscall.SIGQUIT) // lets a postmaster release its shared memory
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
	// With these left, PostgreSQL would refuse to start if their pid meanwhile belongs to another process of the OS user.
	stale := []string{lock}
	if socketDir != "" {
		stale = append(stale, filepath.Join(socketDir, postgres.SocketName), filepath.Join(socketDir, postgres.SocketName+".lock"))
	}
	for _, path := range stale {
		if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
			return core.Wrap(err, op, "")
		}
	}
	return nil
}
