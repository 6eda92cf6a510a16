package service

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/boughdb/bough/internal/compute"
	"github.com/boughdb/bough/internal/compute/local"
	"github.com/boughdb/bough/internal/core"
	"github.com/boughdb/bough/internal/postgres"
)

// controlDB is Bough's own PostgreSQL cluster in the data directory. It outlives the server like a compute does.
type controlDB struct {
	layout layout
	builds []postgres.Build
	cred   *syscall.Credential
	driver *local.Driver
	log    *slog.Logger
}

const (
	controlDatabase     = "bough"
	controlStartTimeout = 2 * time.Minute // a crash recovery may be part of it
)

func (l layout) controlSocket() string { return filepath.Join(l.runDir(), "control") }

// controlURL is the address of the own cluster.
func (l layout) controlURL() string {
	q := url.Values{"host": {l.controlSocket()}, "user": {postgres.AdminRole}, "application_name": {"bough"}, "sslmode": {"disable"}}
	return "postgres:///" + controlDatabase + "?" + q.Encode()
}

// start makes the cluster run, after making it if there is none, and returns its URL.
func (c *controlDB) start(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, controlStartTimeout)
	defer cancel()
	data := c.layout.control()
	running, err := c.driver.Scan(ctx, data)
	if err != nil {
		return "", err
	}
	if len(running) > 0 && gone(filepath.Join(c.layout.controlSocket(), postgres.SocketName)) && !gone(filepath.Join(data, "postmaster.pid")) {
		// A starting one makes its socket after its lock file: only one that stays away was removed.
		if lost, err := c.socketLost(ctx); err != nil {
			return "", err
		} else if lost {
			if _, err := c.build(data); err != nil {
				return "", err
			}
			c.log.Warn("the control database's socket was removed: restarting it")
			for _, p := range running {
				if err := end(ctx, p.PID, syscall.SIGINT, computeStop); err != nil {
					return "", err
				}
			}
			running = nil
		}
	}
	if len(running) > 0 { // whether or not its version is still installed
		c.sweepDrafts(data)
		return c.layout.controlURL(), c.await(ctx)
	}
	build, err := c.build(data)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(data, "PG_VERSION")); errors.Is(err, fs.ErrNotExist) {
		if err := c.create(ctx, build, data); err != nil {
			return "", err
		}
	} else {
		c.sweepDrafts(data)
	}
	if err := c.launch(ctx, build, data); err != nil {
		return "", err
	}
	return c.layout.controlURL(), c.await(ctx)
}

// socketLost tells a cluster that is ready and has no socket from one that starts.
func (c *controlDB) socketLost(ctx context.Context) (bool, error) {
	for {
		raw, err := os.ReadFile(filepath.Join(c.layout.control(), "postmaster.pid"))
		switch {
		case !gone(filepath.Join(c.layout.controlSocket(), postgres.SocketName)), errors.Is(err, fs.ErrNotExist):
			return false, nil
		case err != nil:
			return false, core.Wrap(err, "service.control_database", "")
		case strings.Contains(string(raw), "ready"): // the status line, written after the socket was made
			return gone(filepath.Join(c.layout.controlSocket(), postgres.SocketName)), nil
		}
		select {
		case <-ctx.Done():
			return false, core.Wrap(ctx.Err(), "service.control_database", "")
		case <-time.After(pollEvery):
		}
	}
}

// build chooses the PostgreSQL of the cluster: the version that made it, or the default one.
func (c *controlDB) build(data string) (postgres.Build, error) {
	standard, ok := postgres.Default(c.builds)
	if !ok {
		return postgres.Build{}, core.Errorf(core.KindUnavailable, "", "no PostgreSQL (%d to %d) was found; install your system's package, or run: bough postgres install %d, or name a folder with --postgres-dir", postgres.MinMajor, postgres.MaxMajor, postgres.DefaultMajor)
	}
	text, err := os.ReadFile(filepath.Join(data, "PG_VERSION"))
	if errors.Is(err, fs.ErrNotExist) {
		return standard, nil
	}
	if err != nil {
		return postgres.Build{}, core.Wrap(err, "service.control_database", "")
	}
	major, err := strconv.Atoi(strings.TrimSpace(string(text)))
	for _, b := range c.builds {
		if err == nil && b.Major == major {
			return b, nil
		}
	}
	return postgres.Build{}, core.Errorf(core.KindUnavailable, "", "the control database in %s needs PostgreSQL %[2]s, which is not installed; get it with: bough postgres install %[2]s", data, strings.TrimSpace(string(text)))
}

func (c *controlDB) sweepDrafts(data string) {
	old, err := filepath.Glob(data + ".draft*")
	for _, dir := range old {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		c.log.Warn("cannot remove a half-made control database", "error", err)
	}
}

// create makes the cluster under another name first, so that a half-made one never counts.
func (c *controlDB) create(ctx context.Context, b postgres.Build, data string) error {
	// An initdb that outlived a killed server still works on its draft: each try has one of its own, and those of earlier
	// tries go when they can, now or at a later start.
	c.sweepDrafts(data)
	draft := data + ".draft-" + core.NewUUID()[:8]
	if err := postgres.InitDB(ctx, b, postgres.InitOptions{DataDir: draft, Cred: c.cred}); err != nil {
		return err
	}
	if err := os.Rename(draft, data); err != nil {
		return core.Wrap(err, "service.control_database", "")
	}
	return syncDir(c.layout.dir)
}

func (c *controlDB) launch(ctx context.Context, b postgres.Build, data string) error {
	socket := c.layout.controlSocket()
	if err := postgres.OwnedDir(socket, c.cred); err != nil {
		return core.Wrap(err, "service.control_database", "")
	}
	if err := c.driver.Clear(ctx, data, socket); err != nil {
		return err
	}
	settings := []postgres.Setting{
		{Name: "listen_addresses", Value: ""},
		{Name: "unix_socket_directories", Value: socket},
		{Name: "max_connections", Value: "100"},
		{Name: "shared_buffers", Value: "32MB"},
		{Name: "max_wal_size", Value: "256MB"},
		{Name: "huge_pages", Value: "off"},
		{Name: "jit", Value: "off"},
		{Name: "random_page_cost", Value: "1.1"},
		{Name: "autovacuum_naptime", Value: "15s"},
		{Name: "log_destination", Value: "stderr"},
		{Name: "cluster_name", Value: "bough-control"},
	}
	if err := postgres.WriteConfig(data, settings, c.cred); err != nil {
		return err
	}
	p, err := c.driver.Start(ctx, compute.Launch{
		EndpointID: "control", Build: b, DataDir: data, SocketDir: socket, LogFile: filepath.Join(c.layout.logs(), "control.log"),
	})
	if err != nil {
		return err
	}
	_ = p // it is found again by its data directory
	return nil
}

// await returns when the cluster answers and has Bough's database.
func (c *controlDB) await(ctx context.Context) error {
	socket := c.layout.controlSocket()
	for {
		conn, err := postgres.Connect(ctx, socket, postgres.AdminDatabase)
		if err == nil {
			_, err = conn.Exec(ctx, "CREATE DATABASE "+controlDatabase)
			_ = conn.Close(context.WithoutCancel(ctx))
			var pgErr *pgconn.PgError
			switch {
			case err == nil:
				return nil
			case !errors.As(err, &pgErr):
				// The session broke off: again.
			case pgErr.Code == "42P04": // duplicate_database
				return nil
			case pgErr.Code != "23505" && pgErr.Code != "55006": // a session of a killed server is still at it: unique_violation, object_in_use
				return core.Wrap(err, "service.control_database", "")
			}
		}
		select {
		case <-ctx.Done():
			return core.Wrap(err, "service.control_database", "see "+filepath.Join(c.layout.logs(), "control.log"))
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return core.Wrap(err, "service.sync", "")
	}
	return core.Wrap(errors.Join(d.Sync(), d.Close()), "service.sync", "")
}
