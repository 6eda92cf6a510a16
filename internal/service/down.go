package service

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/boughdb/bough/internal/auth"
	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/cgroup"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/control"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/storage"
	"github.com/boughdb/bough/internal/store"
)

const (
	serverStop  = 45 * time.Second // SIGTERM to SIGKILL
	computeStop = time.Minute      // fast to immediate
	quitStop    = 15 * time.Second // immediate to SIGKILL
	pollEvery   = 10 * time.Millisecond
)

// Down stops everything that runs on a data directory and returns when all is gone: the server, the computes, the control
// database, the pool's mount. It needs no running server and can be called again.
func Down(ctx context.Context, dir string, log *slog.Logger) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return core.Wrap(err, "service.down", "")
	}
	l := layout{dir}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return core.NotFoundf("there is no data directory %s; name yours with --data-dir", dir)
	}
	if err := stopServers(ctx, l, log); err != nil {
		return err
	}
	// Nobody starts meanwhile: who is at it has been stopped.
	if err := os.MkdirAll(l.servers(), 0o755); err != nil {
		return core.Wrap(err, "service.down", "")
	}
	starting, err := lockFile(ctx, l.server("starting"), syscall.LOCK_EX)
	if err != nil {
		return err
	}
	defer starting.Close()
	if err := stopServers(ctx, l, log); err != nil { // who was not seen before
		return err
	}
	if err := stopProcesses(ctx, l, log); err != nil {
		return err
	}
	if err := storage.Unmount(ctx, dir); err != nil {
		return err
	}
	return core.Wrap(os.RemoveAll(l.runDir()), "service.down", "")
}

// stopServers ends all servers at once, so that none goes on with what another one did.
func stopServers(ctx context.Context, l layout, log *slog.Logger) error {
	pids := serverPIDs(l)
	errs := make(chan error, len(pids))
	for _, pid := range pids {
		log.Info("stopping the server", "pid", pid)
		go func() { errs <- end(ctx, pid, syscall.SIGTERM, serverStop) }()
	}
	var err error
	for range pids {
		err = errors.Join(err, <-errs)
	}
	if err != nil {
		return err
	}
	// What they were just starting can be seen, and stopped, once their locks are free; see lockPatience.
	same := func(pid int) bool { return slices.Contains(pids, pid) }
	for deadline := time.Now().Add(lockPatience); slices.ContainsFunc(serverPIDs(l), same) && time.Now().Before(deadline) && ctx.Err() == nil; {
		time.Sleep(pollEvery)
	}
	return nil
}

// serverPIDs are the processes that serve a data directory.
func serverPIDs(l layout) []int {
	var pids []int
	alive, _ := members(l)
	for _, m := range alive {
		if m.PID > 1 {
			pids = append(pids, m.PID)
		}
	}
	if len(alive) > 0 || !locked(l) {
		return pids
	}
	// One of a version in which there was one server, which wrote its number into the lock.
	raw, err := os.ReadFile(l.lock())
	if pid, convErr := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && convErr == nil && pid > 1 {
		pids = append(pids, pid)
	}
	return pids
}

// locked tells whether a server holds the data directory.
func locked(l layout) bool {
	f, err := os.OpenFile(l.lock(), os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// stopProcesses ends the computes, then the control database.
func stopProcesses(ctx context.Context, l layout, log *slog.Logger) error {
	driver, err := local.New(nil, log)
	if err != nil {
		return err
	}
	if err := cgroup.Lift(l.id()); err != nil {
		log.Warn("computes stop within their limits", "error", err)
	}
	for _, prefix := range []string{l.volumes(), l.control()} {
		found, err := driver.Scan(ctx, prefix)
		if err != nil {
			return err
		}
		errs := make(chan error, len(found))
		for _, f := range found {
			log.Info("stopping", "pid", f.PID, "data_dir", f.DataDir)
			go func() { errs <- endPostgres(ctx, driver, f) }()
		}
		for range found {
			err = errors.Join(err, <-errs)
		}
		if err != nil {
			return err
		}
	}
	return cgroup.Clean(ctx, l.id())
}

func endPostgres(ctx context.Context, driver *local.Driver, f compute.Found) error {
	if err := end(ctx, f.PID, syscall.SIGINT, computeStop); err == nil {
		return nil
	}
	return driver.Clear(ctx, f.DataDir, "")
}

// end asks a process to stop and waits; after the limit it is killed.
func end(ctx context.Context, pid int, sig syscall.Signal, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return core.Wrap(err, "service.end", "")
	}
	defer unix.Close(fd)
	for _, step := range []struct {
		sig   syscall.Signal
		limit time.Duration
	}{{sig, limit}, {syscall.SIGQUIT, quitStop}, {syscall.SIGKILL, quitStop}} {
		if err := unix.PidfdSendSignal(fd, step.sig, nil, 0); errors.Is(err, unix.ESRCH) {
			return nil
		} else if err != nil {
			return core.Wrap(err, "service.end", "it may belong to another user: run as the one that started it")
		}
		for deadline := time.Now().Add(step.limit); time.Now().Before(deadline); {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(pollEvery.Milliseconds()))
			if n > 0 {
				return nil
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return core.Wrap(err, "service.end", "")
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
		}
	}
	return core.Errorf(core.KindUnavailable, "", "process %d does not end, not even by SIGKILL", pid)
}

// Status is what `bough status` shows.
type Status struct {
	DataDir   string     `json:"data_dir"`
	PID       int        `json:"pid"`     // of the server that admin.json names; 0: no server
	Servers   []Member   `json:"servers"` // all that run
	Healthy   bool       `json:"healthy"`
	Problem   string     `json:"problem,omitempty"`
	Admin     *AdminFile `json:"-"`
	APIURL    string     `json:"api_url,omitempty"`
	PGAddr    string     `json:"pg_addr,omitempty"`
	Sizes     string     `json:"compute_sizes,omitempty"` // whether they are enforced
	Computes  int        `json:"computes"`                // that run
	Drifts    int        `json:"findings"`                // of the server's last look; see bough doctor
	ControlDB bool       `json:"control_database"`
	Pool      string     `json:"pool"` // file system of the volumes
	PoolFree  int64      `json:"pool_free_bytes"`
	HostFree  int64      `json:"host_free_bytes"`
}

// Look finds out what runs on a data directory.
func Look(ctx context.Context, dir string) (Status, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return Status{}, core.Wrap(err, "service.status", "")
	}
	l := layout{dir}
	st := Status{DataDir: dir}
	if _, err := os.Stat(dir); err != nil {
		return st, core.NotFoundf("there is no data directory %s; name yours with --data-dir, or start a server with: bough serve", dir)
	}
	st.Servers, _ = members(l)
	if raw, err := os.ReadFile(l.admin()); err == nil {
		var a AdminFile
		if json.Unmarshal(raw, &a) == nil {
			st.Admin, st.APIURL, st.PGAddr, st.Sizes = &a, a.APIURL, a.PGAddr, a.Sizes
		}
	}
	for _, m := range st.Servers {
		if st.PID == 0 || m.APIURL == st.APIURL {
			st.PID = m.PID
		}
	}
	if st.PID != 0 && st.APIURL != "" {
		ask, cancel := context.WithTimeout(ctx, 2*time.Second)
		_ = askServer(ask, l, "/drifts", &st.Drifts) // bough doctor says when it does not answer
		cancel()
		st.Healthy, st.Problem = healthy(ctx, strings.TrimSuffix(st.APIURL, "/api/v2")+"/healthz")
	}
	driver, err := local.New(nil, slog.New(slog.DiscardHandler))
	if err != nil {
		return st, err
	}
	computes, err := driver.Scan(ctx, l.volumes())
	if err != nil {
		return st, err
	}
	clusters, err := driver.Scan(ctx, l.control())
	if err != nil {
		return st, err
	}
	st.Computes, st.ControlDB = len(computes), len(clusters) > 0
	st.HostFree, _ = free(dir)
	st.PoolFree, st.Pool = free(l.path("pool"))
	return st, nil
}

func healthy(ctx context.Context, url string) (bool, string) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false, err.Error()
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err.Error()
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return false, res.Status
	}
	return true, ""
}

func free(path string) (bytes int64, fs string) {
	var st unix.Statfs_t
	if unix.Statfs(path, &st) != nil {
		return 0, ""
	}
	switch st.Type {
	case unix.BTRFS_SUPER_MAGIC:
		fs = "btrfs"
	case unix.XFS_SUPER_MAGIC:
		fs = "xfs"
	default:
		fs = "other"
	}
	return int64(st.Bavail) * st.Bsize, fs
}

// OpenAdmin gives `bough admin` the control database of a data directory whose server runs, or the one at url.
func OpenAdmin(ctx context.Context, dir, url string) (control.Admin, func(), error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return control.Admin{}, nil, core.Wrap(err, "service.admin", "")
	}
	if url == "" {
		l := layout{dir}
		if _, err := os.Stat(l.controlSocket()); err != nil {
			return control.Admin{}, nil, &core.Error{Kind: core.KindUnavailable, Err: err,
				Message: "the control database of " + dir + " is not reachable: start the server (bough serve), and run this as the same user"}
		}
		url = l.controlURL()
	}
	st, err := store.Open(ctx, url, 2)
	if err != nil {
		return control.Admin{}, nil, err
	}
	a := control.Admin{Store: st}
	if a.Sealer, err = auth.OpenSealer(layout{dir}.sealer()); err != nil {
		st.Close()
		return control.Admin{}, nil, err
	}
	var file AdminFile
	if raw, err := os.ReadFile(layout{dir}.admin()); err == nil && json.Unmarshal(raw, &file) == nil {
		a.BaseURL = cmp.Or(file.PublicURL, strings.TrimSuffix(file.APIURL, "/api/v2"))
	}
	return a, st.Close, nil
}
